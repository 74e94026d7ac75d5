"""Puts a run's weights into the library, in half precision, with a card that says what they are.

pack_weights.py RUN NAME RESULTS "LICENCE OF THE IMAGES"
RESULTS is a folder of nbs/results with the run's results.json and probe.json. Afterwards `load_weights(NAME)` gives
the networks."""
import json, sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from spot_artifacts.core import atomic_write, markdown_table
from spot_artifacts.runs import load_weights

LAYERS = 'conv1', 'conv2', 'conv3', 'conv4', 'conv5'
CARD = """# {name}

Networks of the paper's method (encoder, decoder, repair network, discriminator), trained on images without labels.
Load them with `load_weights('{name}')`; `.discriminator` has the features.

- Images: {data[name]}, {data[images]:,} of {data[size]} px, fingerprint {data[fingerprint]}. {licence}
- Recipe: in the file's header, and in `nbs/results/{folder}/recipe.json`. C at {recipe[width]:g} of the paper's width,
  {recipe[epochs]:g} epochs of the game, {minutes:.0f} minutes ({device}), commit {commit}.
- Test accuracy of linear probes in percent, {protocol[labels]:,} labels, {protocol[test_images]:,} test images,
  mean over {draws} draws of the labels (and {protocol[random_networks]} random networks):

{table}

Stored in half precision: {megabytes:.1f} MB. One run, one seed. The networks have seen small photographs of things
and animals; do not use them to decide anything about people, and do not take their verdicts for proof that an image was
changed.
"""


def card(name, folder, licence, size):
    read = lambda file: json.loads((folder/file).read_text())
    run, probe = read('results.json'), read('probe.json')
    rows = [[net, *(f'{probe["probe"][net][k]:.1f}' for k in LAYERS)]
            for net in ('random', 'rescaled', 'pretrained', 'supervised')]
    return CARD.format(**run, name=name, folder=folder.name, licence=licence, protocol=probe['protocol'],
                       draws=len(probe['protocol']['seeds']), minutes=sum(run['seconds'].values())/60,
                       table=markdown_table(['', *LAYERS], rows), megabytes=size/1e6)


def main(run, name, results, licence):
    players = load_weights(run)
    state = {k: v.half() if v.is_floating_point() else v for k, v in players.state_dict().items()}
    file = Path(__file__).resolve().parents[1]/'spot_artifacts/weights'/f'{name}.safetensors'
    file.parent.mkdir(exist_ok=True)
    meta = dict(recipe=json.dumps(asdict(players.recipe)))
    atomic_write(file, lambda tmp: save_file({k: v.contiguous() for k, v in state.items()}, tmp, metadata=meta))
    text = card(name, Path(results), licence, file.stat().st_size)
    atomic_write(file.with_suffix('.md'), lambda tmp: Path(tmp).write_text(text))
    kept = load_weights(file)
    worst = max(float((a - b).abs().max()) for a, b in zip(kept.state_dict().values(), players.state_dict().values()))
    print(f'{file}: {file.stat().st_size/1e6:.1f} MB; no value differs by more than {worst:.1e}')


if __name__ == '__main__':
    torch.set_grad_enabled(False)
    main(*sys.argv[1:])
