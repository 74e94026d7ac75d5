"`spot-artifacts bench` from the command line; notebook 61 tests what it measures."
import json

import pytest
from PIL import Image

from spot_artifacts import speed
from spot_artifacts.cli import main
from spot_artifacts.recipe import Recipe


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
