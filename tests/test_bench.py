"`spot-artifacts bench` from the command line; notebooks 60 to 63 test what it measures."
import json

import pytest
from PIL import Image

from spot_artifacts import speed, time_to_accuracy
from spot_artifacts.backbone import LAYERS
from spot_artifacts.cli import main
from spot_artifacts.core import RunError, SpotError, device_name
from spot_artifacts.recipe import Recipe
from spot_artifacts.toy import toy_images


def test_what_the_command_writes(root, tmp_path, monkeypatch, capsys):
    "The measuring itself takes minutes: a committed result stands in for it."
    committed, asked = json.loads((root/'nbs/results/bench-cpu.json').read_text()), []
    monkeypatch.setattr(speed, 'bench', lambda recipe, device, say: asked.append((recipe, device)) or committed)
    words = f'bench --size 32 --width 0.25 --batch 16 --device cpu --out {tmp_path}/new/bench.json'.split()
    for _ in range(2): main(words)
    recipe, device = asked[0]
    assert (recipe.size, device) == (32, 'cpu')
    assert (recipe.width, recipe.ae_width, recipe.batch, recipe.ae_batch) == (.25, .25, 16, 16)
    assert {f.name for f in (tmp_path/'new').iterdir()} == {'bench.json', 'bench.png', 'bench-2.json', 'bench-2.png'}
    assert json.loads((tmp_path/'new/bench.json').read_text()) == committed
    assert Image.open(tmp_path/'new/bench.png').width > 800
    assert f'{committed["phase2"]["ratio"]:.2f} times the plain version' in capsys.readouterr().out


def test_the_picture_of_something_else_is_kept(root, tmp_path, monkeypatch, fails, succeeds):
    committed = json.loads((root/'nbs/results/bench-cpu.json').read_text())
    monkeypatch.setattr(speed, 'bench', lambda recipe, device, say: committed)
    (tmp_path/'x.png').write_text('a photo')
    succeeds('bench', '--device', 'cpu', '--out', tmp_path/'x.json')
    assert {f.name for f in tmp_path.iterdir()} == {'x.png', 'x-2.json', 'x-2.png'}
    assert (tmp_path/'x.png').read_text() == 'a photo'
    fails('bench', '--device', 'cpu', '--out', tmp_path/'y.png', says=['Name a JSON file'])


def test_a_batch_larger_than_the_set(monkeypatch):
    "The rate counts whole batches, so there must be images for them."
    class Enough(Exception): pass
    def draw(n, size):
        assert n >= 2*3000
        raise Enough
    monkeypatch.setattr(speed, 'toy_images', draw)
    with pytest.raises(Enough): speed.bench(Recipe.small(32, batch=3000))


# ---- --to-accuracy

def reached(seconds, fingerprint='f', test_images=2):
    "What `to_accuracy` returns, where the new recipe takes `seconds`."
    def way(*points): return dict(curve=[dict(seconds=s, probe=dict.fromkeys(LAYERS, a)) for s, a in points])
    ways = dict(old=way((60., 40.), (240., 50.)), new=way((10., 40.), (seconds, 50.)), plain=way((800., 45.)))
    found = dict(ways=ways, random=dict.fromkeys(LAYERS, 38.), clock='CPU seconds', seconds=240.,
                 device=device_name('cpu'), protocol=dict(test_images=test_images),
                 data=dict(name='photos', images=9, size=32, fingerprint=fingerprint))
    return time_to_accuracy._with_ratios(found, 'conv4')


@pytest.fixture
def asked(monkeypatch):
    "The arguments of each call of `to_accuracy`, which measures nothing."
    calls = []
    def to_accuracy(recipe, images, test, save, **how):
        calls.append(dict(how, recipe=recipe, images=images, test=test))
        return reached(80., images.fingerprint, len(test))
    monkeypatch.setattr(time_to_accuracy, 'to_accuracy', to_accuracy)
    return calls


def test_what_to_accuracy_writes(asked, photos, tmp_path, capsys):
    out = tmp_path/'to/a.json'
    words = f'bench --to-accuracy --images {photos} --size 32 --minutes 4 --device cpu --out {out}'.split()
    main(words)
    assert json.loads(out.read_text()) == reached(80., asked[0]['images'].fingerprint, len(asked[0]['test']))
    assert Image.open(out.with_suffix('.png')).width > 800
    said = capsys.readouterr().out
    assert 'after 80 CPU seconds' in said
    assert 'at least 10.0 times sooner than the old recipe in a plain version, 3.0 times sooner' in said
    call = asked[0]
    assert (call['recipe'].size, call['recipe'].drop_rate, call['seconds'], call['done']) == (32, .7, 240., None)
    assert len(call['images']) > len(call['test']) > 0


def test_going_on(asked, photos, tmp_path, fails, succeeds):
    out = tmp_path/'a.json'
    options = f'bench --to-accuracy --images {photos} --size 32 --device cpu --out {out} --resume'.split()
    fails(*options, says=[str(out), 'Start it without --resume'])
    nothing = [(text, 'nothing to go on with') for text in ('', '[1]', '{"a": 1}')]
    for text, says in (json.dumps(reached(80.)), 'other images'), *nothing:
        out.write_text(text)
        fails(*options, '--minutes', 4, says=[str(out), says])
    succeeds(*options[:-1], '--minutes', 4)
    done = json.loads((tmp_path/'a-2.json').read_text())
    out.write_text(json.dumps(done))
    succeeds(*options, '--minutes', 4)
    assert [call['done'] for call in asked] == [None, done]
    fails(*options, '--minutes', 5, says=[str(out), 'another time'])


def test_nothing_measured_leaves_no_file(photos, tmp_path, fails, monkeypatch):
    out = tmp_path/'a.json'
    def stopped(*args, **how): raise SpotError('stopped before the first way')
    monkeypatch.setattr(time_to_accuracy, 'to_accuracy', stopped)
    options = f'bench --to-accuracy --size 32 --device cpu --out {out}'.split()
    for images in (tmp_path/'none', photos):
        fails(*options, '--images', images)
        assert not out.exists()


def test_another_recipe_is_not_gone_on_with():
    images, recipe = toy_images(20, 32, cache=False), Recipe.photos(32, width=.1)
    found = dict(reached(80.), ways=dict(old=dict(recipe=dict(width=.2))))
    with pytest.raises(RunError, match='old: was run with another recipe'):
        time_to_accuracy.to_accuracy(recipe, images, images, 1, done=found)
