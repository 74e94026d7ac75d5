"Every method of the library is trained, stopped, kept, measured and refused like the first one."
import json
from dataclasses import dataclass

import pytest
import torch
from command import TINY
from fastai.callback.core import Callback
from images import write_images

from spot_artifacts import measure, pretrain
from spot_artifacts.cli import main
from spot_artifacts.core import RecipeError, WeightsError
from spot_artifacts.folders import folder_images
from spot_artifacts.options import METHODS
from spot_artifacts.pretext import PretextChoices, Rotation
from spot_artifacts.recipe import build, load_recipe, PRETEXTS, Recipe, seeded_weights
from spot_artifacts.runs import load_players, load_weights
from spot_artifacts.transfer.compare import compare

OTHERS = list(PRETEXTS.rooms)
each = pytest.mark.parametrize('name', OTHERS)


def quick(name, **changes):
    "A recipe of two steps."
    return PRETEXTS[name].Recipe.small(32, **{**dict(width=.05, batch=8, epochs=1., bf16=False), **changes})


def fresh(name, **changes):
    with seeded_weights(0): return build(quick(name, **changes))


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(v.equal(b[k]) for k, v in a.items())


@pytest.fixture(scope='module')
def photos(tmp_path_factory): return write_images(tmp_path_factory.mktemp('photos'), 24, 40, classes=('a', 'b'))


@pytest.fixture(scope='module')
def runs(photos, tmp_path_factory):
    "A finished run of each method: its folder and its network."
    out = tmp_path_factory.mktemp('runs')
    return {name: (out/name, pretrain(photos, quick(name), out/name, progress=False)[0]) for name in OTHERS}


class Stop(Callback):
    "Ctrl-C in the second round."
    def before_epoch(self):
        if self.epoch == 1: raise KeyboardInterrupt


# ---- a run

@each
def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(name, photos, runs, tmp_path):
    with pytest.raises(KeyboardInterrupt): pretrain(photos, quick(name), tmp_path/'run', progress=False, cbs=Stop())
    torch.manual_seed(99)                       # what is drawn outside a run does not matter to it
    again, logs, _ = pretrain(photos, quick(name), tmp_path/'run', resume=True, progress=False)
    assert logs['pretext'][-1]['step'] == 3 and equal(again, runs[name][1])


@each
def test_weights_are_loaded_as_the_method_that_learned_them(name, runs):
    out, net = runs[name]
    again = load_weights(out)
    assert type(again) is PRETEXTS[name] and again.recipe == load_recipe(out/'recipe.json') and equal(again, net)
    with pytest.raises(WeightsError, match=f'a run of {name}, and one of artifacts'): load_players(out)


@each
def test_a_seed_decides_the_tasks_and_leaves_torchs_random_numbers_alone(name, photos):
    net, data = fresh(name), folder_images(photos, 32)
    before = torch.get_rng_state()
    first, second = (measure(net, data, seed=seed) for seed in (1, 2))
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(5)
    assert measure(net, data, seed=1) == first != second


@each
def test_a_method_takes_a_backbone_of_the_users(name, photos, tmp_path):
    from torchvision.models import resnet18
    from spot_artifacts.backbone import TorchvisionBackbone
    def backbone(): return TorchvisionBackbone(resnet18(weights=None))
    net, *_ = pretrain(photos, quick(name, epochs=.3), tmp_path/'run', progress=False, backbone=backbone())
    assert equal(load_weights(tmp_path/'run', backbone=backbone()), net)


@each
def test_every_part_learns(name, photos):
    "The task reaches each of a network's parameters, and the loss is a number."
    net = fresh(name)
    with net.seeded(0):
        x = torch.rand(8, 3, 32, 32)*2 - 1
        net.loss(net(x), x).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)


# ---- what is refused

def test_another_methods_recipe_or_an_unknown_method_is_named():
    with pytest.raises(RecipeError, match='a recipe of rotation, and one of artifacts is wanted'):
        Recipe.from_dict(quick('rotation').to_dict())
    with pytest.raises(RecipeError, match='rotations: no such pretext. Give one of artifacts, context, inpainting'):
        PRETEXTS['rotations']
    with pytest.raises(RecipeError, match="unknown field 'patches'. Did you mean 'patch'?"):
        PRETEXTS['context'].Recipe.from_dict(dict(patches=3))


@pytest.mark.parametrize('name,wrong', [('context', dict(patch=15)), ('jigsaw', dict(permutations=1)),
                                        ('inpainting', dict(holes='round')), ('rotation', dict(batch=1)),
                                        ('simclr', dict(temperature=0.))])
def test_a_wrong_choice_is_named(name, wrong):
    with pytest.raises(RecipeError, match=next(iter(wrong))): quick(name, **wrong)


def test_a_method_of_the_readers_is_trained_and_loaded(photos, tmp_path, monkeypatch):
    class Mirror(Rotation):
        @dataclass(frozen=True)
        class Recipe(PretextChoices): "Nothing of its own."
    monkeypatch.setitem(PRETEXTS, 'mirror', Mirror)
    recipe = Mirror.Recipe.small(32, width=.05, batch=8, epochs=.3, bf16=False)
    net, *_ = pretrain(photos, recipe, tmp_path/'run', progress=False)
    assert type(load_weights(tmp_path/'run')) is Mirror and equal(load_weights(tmp_path/'run'), net)


def test_only_this_papers_method_has_an_autoencoder_to_adopt(photos, runs, tmp_path):
    with pytest.raises(RecipeError, match='rotation has no autoencoder'):
        pretrain(photos, quick('rotation'), tmp_path/'run', progress=False, autoencoder=runs['rotation'][0])


# ---- features

def test_a_probe_takes_the_backbone_of_any_method(photos, runs):
    data = folder_images(photos, 32, labelled=True)
    for name in OTHERS:
        net = runs[name][1]
        how = dict(labels=24, seeds=[0], random_seeds=[0], progress=False, most=1)
        found = compare(net, net.recipe, data, data, **how)['networks']
        assert {'pretrained', 'random'} <= found.keys() and len(found['pretrained']) == 5, name


# ---- the command line

def refused(capsys, *words):
    "What a command that fails says."
    with pytest.raises(SystemExit): main([str(word) for word in words])
    return capsys.readouterr().err


def test_help_names_every_method(capsys):
    assert set(METHODS) == {'artifacts', *OTHERS}
    with pytest.raises(SystemExit): main(['pretrain', '--help'])
    said = ' '.join(capsys.readouterr().out.split())
    assert '--pretext {artifacts,context,' in said and all(f'{k}: {v}' in said for k, v in METHODS.items())


@pytest.mark.parametrize('words,says', [
    (['--pretext', 'rotation', '--recipe', 'released'], 'released: no such recipe of rotation'),
    (['--pretext', 'context', '--recipe', 'paper', '--size', '64'], 'recipe: three patches of 96 px')])
def test_what_does_not_fit_a_method_ends_in_one_line(words, says, photos, tmp_path, capsys):
    error = refused(capsys, 'pretrain', '--images', photos, '--out', tmp_path/'run', '--device', 'cpu', *words)
    assert error.count('\n') == 1 and says in error and not (tmp_path/'run').exists()


@pytest.fixture(scope='module')
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'rotation'
    main(['pretrain', '--pretext', 'rotation', '--images', str(photos), '--out', str(out), '--steps', '3', *TINY])
    return out


def test_rotation_from_images_to_probes(run, photos, capsys):
    files = {'recipe.json', 'run.json', 'pretext.csv', 'weights.safetensors', 'results.json'}
    assert files <= {f.name for f in run.iterdir()}
    results = json.loads((run/'results.json').read_text())
    assert results['recipe']['pretext'] == 'rotation' and 0 <= results['task']['accuracy'] <= 1
    main(['probe', '--weights', str(run), '--images', str(photos), '--labels', '10', '--seeds', '1', '--random', '1',
          '--protocol', 'knn', '--out', str(run/'knn.json'), '--device', 'cpu'])
    assert 'pretrained' in json.loads((run/'knn.json').read_text())['probe']


def test_weights_come_back_as_their_method(run):
    net = load_weights(run)
    assert type(net) is Rotation and net.recipe.pretext == 'rotation' and not net.training


def test_a_pretext_that_is_not_there(photos, tmp_path, capsys):
    error = refused(capsys, 'pretrain', '--pretext', 'nonsense', '--images', photos, '--out', tmp_path/'run')
    assert error.count('\n') == 1 and 'nonsense' in error and 'rotation' in error
    with pytest.raises(RecipeError, match='no such pretext'): PRETEXTS['nonsense']


def test_a_run_is_not_resumed_under_another_pretext(run, photos, capsys):
    error = refused(capsys, 'pretrain', '--pretext', 'jigsaw', '--images', photos, '--out', run, '--resume', *TINY)
    assert error.count('\n') == 1 and 'pretext rotation' in error and 'jigsaw' in error


def test_what_is_made_for_two_players(run, capsys, tmp_path):
    error = refused(capsys, 'figures', '--run', run, '--out', tmp_path/'figures', '--device', 'cpu')
    assert error.count('\n') == 1 and 'a run of rotation' in error


def test_a_method_has_a_recipe_of_its_own():
    with pytest.raises(RecipeError, match='Give it a class of its own'): PRETEXTS['mine'] = Rotation
    with pytest.raises(RecipeError, match='epochs must lie between'): PretextChoices(epochs=-1.)
