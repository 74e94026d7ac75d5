"A run of inpainting: resumed, loaded, probed, and refused where it cannot be. (Masks and losses: the notebook.)"
import json
from dataclasses import replace

import pytest
from fastai.callback.core import Callback
from images import write_images

from spot_artifacts.cli import main
from spot_artifacts.core import RecipeError
from spot_artifacts.folders import folder_images
from spot_artifacts.inpainting import Inpainting
from spot_artifacts.pretraining import pretrain
from spot_artifacts.runs import load_weights
from spot_artifacts.transfer.probes import probe

QUICK = Inpainting.Recipe.small(32, width=.05, batch=8, epochs=3., bf16=False)


@pytest.fixture(scope='module')
def photos(tmp_path_factory): return write_images(tmp_path_factory.mktemp('photos'), 24, 40, classes=('a', 'b'))


class Stop(Callback):
    "Interrupts a run after its first round."
    order = 99
    def after_epoch(self): raise KeyboardInterrupt


@pytest.mark.parametrize('change', [dict(holes='blocks'), dict(holes='regions', adversarial_weight=.001)], ids=str)
def test_a_run_that_was_stopped_ends_as_if_it_was_not(change, photos, tmp_path):
    recipe, images = replace(QUICK, **change), folder_images(photos, 32)
    whole, logs, _ = pretrain(images, recipe, tmp_path/'whole', progress=False)
    with pytest.raises(KeyboardInterrupt):
        pretrain(images, recipe, tmp_path/'stopped', progress=False, cbs=[Stop()])
    _, again, _ = pretrain(images, recipe, tmp_path/'stopped', resume=True, progress=False)
    loaded = load_weights(tmp_path/'stopped')
    assert again == logs and type(loaded) is Inpainting and loaded.recipe == recipe
    assert all(a.equal(b) for a, b in zip(whole.state_dict().values(), loaded.state_dict().values()))
    assert ('adversary_accuracy' in logs['pretext'][0]) == ('adversarial_weight' in change)


@pytest.mark.parametrize('field, value', [('holes', 'round'), ('overlap', .5), ('adversarial_weight', 2.)])
def test_a_wrong_recipe_is_refused(field, value):
    with pytest.raises(RecipeError, match=f'recipe: {field} must'): replace(QUICK, **{field: value})


def test_the_command(photos, tmp_path, capsys):
    main(['pretrain', '--pretext', 'inpainting', '--images', str(photos), '--out', str(tmp_path/'run'), '--steps', '2',
          '--size', '32', '--width', '.05', '--batch', '8', '--device', 'cpu'])
    assert 'inpainting_error' in capsys.readouterr().out
    results = json.loads((tmp_path/'run/results.json').read_text())
    assert results['recipe']['pretext'] == 'inpainting' and results['task']['inpainting_error'] > 0
    images = folder_images(photos, 32, labelled=True)
    found = probe(tmp_path/'run', images, images, labels=20, seeds=(0,))
    assert list(found) == ['conv1', 'conv2', 'conv3', 'conv4', 'conv5']
