"What any pretext's run promises, on the command line, with rotation as the example."
import json

import pytest
from images import write_images

from spot_artifacts.cli import main
from spot_artifacts.core import RecipeError
from spot_artifacts.pretext import PretextChoices, Rotation
from spot_artifacts.recipe import PRETEXTS
from spot_artifacts.runs import load_weights

TINY = ['--size', '32', '--width', '.05', '--batch', '8', '--device', 'cpu']


@pytest.fixture(scope='module')
def photos(tmp_path_factory): return write_images(tmp_path_factory.mktemp('photos'), 24, 40, classes=('a', 'b'))


@pytest.fixture(scope='module')
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'rotation'
    main(['pretrain', '--pretext', 'rotation', '--images', str(photos), '--out', str(out), '--steps', '3', *TINY])
    return out


def refused(capsys, *words):
    with pytest.raises(SystemExit): main([str(word) for word in words])
    return capsys.readouterr().err


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
