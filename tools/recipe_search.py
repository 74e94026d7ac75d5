"""What does each choice of a recipe do to the features? Writes nbs/results/recipe-search/NAME.json, one for each trial.

recipe_search.py TRAIN TEST RUNS [NAME ...]
TRAIN and TEST hold a folder for each class. RUNS takes the runs: a trial that was stopped continues from there.
All trials learn from the same images in the same order, differ by the changes of TRIALS, and are probed after
1, 2, 4, 8, ... rounds and at the end."""
import csv, json, sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from time import process_time

import torch
from spot_artifacts.core import provenance, write_json
from spot_artifacts.folders import folder_images
from spot_artifacts.pretraining import pretrain
from spot_artifacts.recipe import Recipe
from spot_artifacts.runs import kept_weights, KeepWeights, load_weights
from spot_artifacts.transfer.probes import baselines, probe

RESULTS = Path(__file__).resolve().parents[1]/'nbs/results/recipe-search'
BASE = Recipe.photos(32, epochs=4.)
NOVEMBER = dict(drop_rate=.5, mask_weight=1., balance=.9, tanh=False, brightness=0., saturation=0., lr=1e-3,
                repair_lr=1.5e-4, history=.5, fake_all=True, ae_width=.25, ae_batch=16)
TRIALS = dict(
    photos={}, photos_again={}, november=NOVEMBER,          # again: on another machine, to see what chance does
    theta_5=dict(drop_rate=.5), theta_85=dict(drop_rate=.85), no_jitter=dict(brightness=0., saturation=0.),
    no_crop=dict(area=(1., 1.)), mask_0=dict(mask_weight=0.), mask_1=dict(mask_weight=1.), balance_8=dict(balance=.8),
    no_tanh=dict(tanh=False), ae_width_25=dict(ae_width=.25), width_5=dict(width=.5), lr_1e3=dict(lr=1e-3),
    lr_25e5=dict(lr=2.5e-4), repair_6e4=dict(repair_lr=6e-4), batch_32=dict(batch=32), history_0=dict(history=0.),
    all_fakes=dict(fake_all=True), lrn=dict(lrn=True), ae_epochs_1=dict(ae_epochs=1.),
    l2_5e5=dict(l2=5e-5), l2_5e4=dict(l2=5e-4))
LABELS, VALUES = 5000, 2300
AUTO = 'tanh', 'ae_width', 'ae_batch', 'ae_epochs'      # trials that agree in these share one autoencoder


def train(images, recipe, out, **more):
    "A run's folder, trained to its end, and its seconds of CPU time; None where they were not all counted here."
    if (out/'weights.safetensors').exists(): return out, None
    began, start = (out/'run.json').exists(), process_time()
    pretrain(images, recipe, out, resume=began, progress=False, **more)
    return out, None if began else process_time() - start


def autoencoder(recipe, images, runs):
    "The run whose autoencoder the trials with these choices share."
    name = '-'.join(f'{k}={getattr(recipe, k)}' for k in AUTO).replace(' ', '')
    return train(images, replace(recipe, epochs=0.), runs/f'autoencoder-{name}')[0]


def probed(net, images, test):
    return {layer: r['mean'] for layer, r in probe(net, images, test, LABELS, (0,), VALUES).items()}


def random_networks(recipe, images, test, runs):
    "Probes of three calibrated random networks of this architecture."
    file = runs/f'random-{recipe.width}-{recipe.lrn}.json'
    if not file.exists():
        write_json(file, [probed(net, images, test) for net in baselines(recipe, images)['random']])
    return json.loads(file.read_text())


def log(out):
    with (out/'game.csv').open() as f: return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(f)]


def trial(name, images, test, runs):
    recipe = replace(BASE, **TRIALS[name])
    shared = autoencoder(recipe, images, runs)
    out, seconds = train(images, recipe, runs/name, autoencoder=shared, cbs=KeepWeights(runs/name))
    rows = log(out)
    kept = kept_weights(out) | {len(rows): out}
    curve = [dict(rows[n - 1], probe=probed(load_weights(file).discriminator, images, test))
             for n, file in sorted(kept.items())]
    return dict(provenance(images, 'cpu'), recipe=asdict(recipe), changes=TRIALS[name], seconds=dict(game=seconds),
                curve=curve, random=random_networks(recipe, images, test, runs),
                protocol=dict(labels=LABELS, values=VALUES, draws=1, test_images=len(test)))


def main(images, test, runs, *names):
    torch.set_num_threads(1)
    images, test = (folder_images(f, BASE.size, labelled=True) for f in (images, test))
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in names or TRIALS:
        file = RESULTS/f'{name}.json'
        if file.exists(): continue
        found = trial(name, images, test, Path(runs))
        write_json(file, found)
        gains = (v - mean(r[k] for r in found["random"]) for k, v in found["curve"][-1]["probe"].items())
        print(name, *(f"{gain:+.1f}" for gain in gains))


if __name__ == '__main__': main(*sys.argv[1:])
