"""What people get wrong: one line that names the thing and the fix, and nothing is lost.

The line on stderr is `spot-artifacts: ...`; notices of images that were skipped may stand before it."""
import json

import pytest, torch
from PIL import Image
from command import TINY, halve
from images import write_images

from spot_artifacts import folders, runs, speed, toy
from spot_artifacts.transfer import protocols


# ---- folders of images

@pytest.mark.parametrize('kind, fix', [('missing', 'Give the folder'), ('empty', 'Put .jpg'),
                                       ('text', 'Give other images'), ('small', 'Give a smaller size')])
def test_folders_without_a_usable_image(tmp_path, fails, kind, fix):
    folder = tmp_path/kind
    if kind != 'missing': folder.mkdir()
    if kind == 'text': (folder/'a.png').write_text('not an image')
    if kind == 'small': write_images(folder, 3, size=20)
    fails('pretrain', '--images', folder, '--out', tmp_path/'run', *TINY, says=[folder, fix])
    assert not (tmp_path/'run').exists()


def test_too_few_images(tmp_path, fails):
    few = write_images(tmp_path/'few', 3)
    fails('pretrain', '--images', few, '--out', tmp_path/'run', *TINY, says=['few', '3 images', '8 '])
    assert not (tmp_path/'run').exists()


def test_a_truncated_jpeg_among_good_images(tmp_path, fails, succeeds):
    folder = write_images(tmp_path/'mixed')
    Image.effect_noise((64, 64), 80).save(folder/'cut.jpg')
    halve(folder/'cut.jpg')
    command = 'pretrain', '--images', folder, '--steps', 1, *TINY
    said = succeeds(*command, '--out', tmp_path/'run')
    assert said.err.count('\n') == 1 and 'skipped 1 of 13 images: cut.jpg (' in said.err and 'truncated' in said.err
    assert json.loads((tmp_path/'run/results.json').read_text())['data']['skipped'] == 1
    fails(*command, '--out', tmp_path/'strict', '--strict', says=['cut.jpg', 'truncated', 'remove'])
    assert not (tmp_path/'strict').exists()


def test_labels_wanted_but_none_there(run, tmp_path, fails):
    fails('probe', '--weights', run, '--images', write_images(tmp_path/'flat'), '--device', 'cpu',
          says=['flat', 'Give each of two or more classes'])


def test_classes_of_training_and_test_differ(run, photos, tmp_path, fails):
    other = write_images(tmp_path/'test', classes=('cats', 'horses'))
    fails('probe', '--weights', run, '--images', photos, '--test', other, '--device', 'cpu',
          says=[other, 'Give both the same classes'])


def test_spot_judges_what_it_can_and_names_the_rest(run, photos, tmp_path, fails):
    good, bad = photos/'cats/00.png', tmp_path/'bad.png'
    bad.touch()
    out = tmp_path/'spotted'
    fails('spot', '--weights', run, '--out', out, '--device', 'cpu', good, bad, tmp_path/'none.png',
          says=['2 of 3', bad, 'none.png', 'Give another image'])
    assert [found['image'] for found in json.loads((out/'spot.json').read_text())['images']] == [str(good)]
    fails('spot', '--weights', run, '--out', tmp_path/'nothing', '--device', 'cpu', bad, says=['1 of 1', bad])
    assert not (tmp_path/'nothing').exists()


# ---- words and numbers

@pytest.mark.parametrize('option, says', [
    ('--size 33', '32 or 36 px'), ('--size 8', '8 px are too small'), ('--size 100000', 'size must lie between'),
    ('--width 0', 'width must lie between'), ('--width -1', 'width must lie between'),
    ('--batch 1', 'batch must lie between'), (f'--size 32 --steps {10**9}', 'epochs must lie'),
    ('--recipe smal', 'small, demo, paper, released'),
    ('--device abacus', 'Try --device cpu'), ('--device hpu', 'Try --device cpu'),
    ('--device meta', 'Try --device cpu')])
def test_choices_out_of_range(photos, tmp_path, fails, option, says):
    fails('pretrain', '--images', photos, '--out', tmp_path/'run', *option.split(), says=[says])
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('command, says', [
    ('pretrain --images x --out y --steps 0', '--steps: must be at least 1'),
    ('pretrain --images x --out y --epochs -1', '--epochs: must be at least'),
    ('pretrain --images x --out y --epochs nan', '--epochs: must be at least'),
    ('pretrain --images x --out y --epochs inf', '--epochs: must be at most'),
    ('pretrain --images x --out y --size big', "--size: must be a whole number, and is 'big'"),
    ('pretrain --images x --out y --steps 1 --epochs 1', 'not allowed with'),
    ('pretrain --images x --out y --seed -1', '--seed: must be at least 0'),
    (f'pretrain --images x --out y --seed {10**20}', '--seed: must be at most'),
    (f'probe --weights x --images y --seed {10**20}', '--seed: must be at most'),
    (f'figures --run x --seed {10**20}', '--seed: must be at most'),
    ('pretrain --images x', 'required: --out'), ('pretrain --images x --out y --speed 3', '--speed'),
    ('pretrain --images x --out=', '--out: must be a path'),
    ('probe --weights x --images y --labels 0', '--labels: must be at least 10'),
    (f'probe --weights x --images y --labels {10**30}', '--labels: must be at most'),
    ('probe --weights x --images y --seeds 0', '--seeds: must be at least 1'),
    ('probe --weights x --images y --epochs 0', '--epochs: must be at least'),
    ('probe --weights x --images y --epochs inf', '--epochs: must be at most'),
    ('stl10 --weights x --epochs 1e99', '--epochs: must be at most'),
    ('ablate --epochs inf', '--epochs: must be at most'),
    ('probe --weights x --images y --protocol guess', 'invalid choice'),
    ('info --recipe paper --weights x', 'not allowed'),
    ('spot --weights x', 'required: IMAGE'), ('dance', 'pretrain'), ('', 'COMMAND')])
def test_wrong_usage(fails, command, says):
    fails(*command.split(), says=[says, '--help'], status=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')
def test_cuda_where_there_is_none(photos, tmp_path, fails):
    fails('pretrain', '--images', photos, '--out', tmp_path/'run', '--device', 'cuda',
          says=['--device cuda', 'Try --device cpu'])


@pytest.mark.parametrize('text, says', [
    ('{"drop_rat": 0.3}', ["'drop_rat'", "Did you mean 'drop_rate'?"]),
    ('{"drop_rate": 1.5}', ['drop_rate', 'between 0.01 and 0.99', '1.5']),
    ('{"size": 100}', ['size 100', 'Try size 96']), ('{"batch": "many"}', ['batch', 'whole number']),
    ('{"fill": "zeros"}', ['fill', 'mean, noise']), ('{"area": [1, 0.5]}', ['area', 'small to large']),
    ('{"drop_rate": NaN}', ['drop_rate', 'between']), ('[1, 2]', ['JSON object']), ('{"size": ', ['not JSON']),
    ('', ['not JSON']), ('\x93\xff', ['not JSON']), (None, ['no such recipe', 'Name a JSON file'])])
def test_recipes(photos, tmp_path, fails, text, says):
    file = tmp_path/'mine.json'
    if text is not None: file.write_text(text, encoding='latin-1')
    fails('pretrain', '--images', photos, '--out', tmp_path/'run', '--recipe', file, says=['mine.json', *says])
    assert not (tmp_path/'run').exists()


# ---- labelled folders

def labels_of(folder, test=None): return protocols.labelled(folder, test, 32, 0, False)


def test_to_learn_from_and_to_test_on_are_different(run, photos, fails):
    fails('probe', '--weights', run, '--images', photos, '--test', photos,
          says=[photos, 'is the same', 'Leave out --test'])


@pytest.mark.parametrize('second', ['val', 'valid', 'test'])
def test_the_second_part_of_a_set(tmp_path, second):
    write_images(tmp_path/'train', 12, classes=('cats', 'dogs'))
    write_images(tmp_path/second, 8, classes=('cats', 'dogs'))
    assert [len(data) for data in labels_of(tmp_path)] == [12, 8]


def test_a_class_that_is_called_train(tmp_path):
    train, test = labels_of(write_images(tmp_path, 20, classes=('plane', 'train')))
    assert train.classes == ('plane', 'train') and len(train) + len(test) == 20


def test_a_class_without_an_image_that_can_be_used(run, tmp_path, fails):
    folder = write_images(tmp_path/'photos', 20, classes=('cats', 'dogs'))
    (folder/'eels').mkdir()
    (folder/'eels/1.png').touch()
    fails('probe', '--weights', run, '--images', folder, '--protocol', 'few', '--device', 'cpu',
          says=['a class has no image'])


# ---- places for results

def nowhere(tmp_path):
    (tmp_path/'a file').touch()
    return tmp_path/'a file/results'


@pytest.mark.parametrize('command', [
    'demo', 'pretrain --images PHOTOS', 'probe --weights RUN --images PHOTOS', 'stl10 --weights RUN',
    'spot --weights RUN x.png', 'figures --run RUN', 'game --run RUN', 'ablate', 'pretexts', 'bench'])
@pytest.mark.parametrize('out', [nowhere, lambda tmp_path: '/proc/self/results', lambda tmp_path: tmp_path/('x'*300)],
                         ids=['in a file', 'read-only', 'long name'])
def test_a_place_that_cannot_be_written_is_found_first(run, photos, tmp_path, monkeypatch, fails, command, out):
    monkeypatch.chdir(tmp_path)
    words = command.replace('RUN', str(run)).replace('PHOTOS', str(photos)).split()
    work = dict(folder_images=folders, labelled=protocols, load_weights=runs, bench=speed, toy_images=toy)
    for name, module in work.items():
        monkeypatch.setattr(module, name, lambda *args, **kw: pytest.fail('work began'))
    fails(*words, '--device', 'cpu', '--out', out(tmp_path), says=['Check the path'])


@pytest.mark.parametrize('command', ['probe --weights RUN --images PHOTOS', 'stl10 --weights RUN', 'bench'])
def test_a_folder_where_a_file_is_wanted(run, photos, tmp_path, fails, command):
    words = command.replace('RUN', str(run)).replace('PHOTOS', str(photos)).split()
    fails(*words, '--device', 'cpu', '--out', tmp_path, says=[tmp_path, 'is a folder'])


@pytest.mark.parametrize('command', ['pretrain --images PHOTOS', 'figures --run RUN --images PHOTOS',
                                     'game --run RUN --images PHOTOS', 'ablate --data PHOTOS',
                                     'pretexts --data PHOTOS'])
def test_results_among_the_images(run, photos, fails, command):
    words = command.replace('RUN', str(run)).replace('PHOTOS', str(photos)).split()
    fails(*words, '--device', 'cpu', '--out', photos/'results', says=[f'lies in {photos}', 'Choose another --out'])
    assert not (photos/'results').exists()


def test_a_recipe_where_the_run_writes_its_own(photos, tmp_path, fails):
    file = tmp_path/'run/recipe.json'
    file.parent.mkdir()
    file.write_text('{"size": 32, "layers": 2}')
    fails('pretrain', '--images', photos, '--recipe', file, '--out', file.parent, says=[file, 'Move it'])
    assert file.read_text() == '{"size": 32, "layers": 2}'
