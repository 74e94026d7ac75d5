"Runs on shards: stopped and resumed, in two processes, from the command line. Notebook 04 tests the order."
import json, multiprocessing, sys
from dataclasses import replace

import pytest
pytest.importorskip('webdataset', reason="pip install 'spot_artifacts[shards]'")
from fastai.callback.core import Callback
from images import write_images
from safetensors.torch import load_file
from test_distributed import RECIPE, launched, together

from spot_artifacts.pretraining import pretrain
from spot_artifacts.runs import digest
from spot_artifacts.shards import read_shard, shard_images, write_shards
from spot_artifacts.toy import toy_images

# 9 steps in 8 rounds: the passes over 76 images end within rounds
RECIPE = replace(RECIPE, epochs=2., ae_epochs=0.)


class Seen(Callback):
    "Writes down what this process's batches were, and may end the run in its third round."
    order = 99
    def __init__(self, file, stop): self.file, self.stop = file, stop
    def after_batch(self):
        if not self.training: return
        with self.file.open('a') as f: f.write(f'{self.step} {digest(self.xb[0])}\n')
    def after_epoch(self):
        if self.stop and self.epoch == 2: sys.exit(1)


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    "80 images in six shards."
    tmp = tmp_path_factory.mktemp('shards')
    photos = write_images(tmp/'photos', images=toy_images(80, 40, seed=4, cache=False).images, classes=('a', 'b'))
    write_shards(photos, tmp/'shards', per_shard=15)
    return tmp/'shards'


def learn(rank, world, port, shards, out, stop, resume):
    "One of `world` processes that learn from shards."
    if world > 1: launched(rank, world, port)
    seen = Seen(out.with_name(f'{out.name}-{rank}.txt'), stop)
    pretrain(shard_images(shards, 32), RECIPE, out, progress=False, cbs=[seen], resume=resume)


@pytest.mark.parametrize('world', [1, 2])
def test_a_stopped_run_goes_on_with_the_same_batches(world, shards, tmp_path):
    for name, stop, resume in ('whole', False, False), ('stopped', True, False), ('stopped', False, True):
        assert together(world, learn, shards, tmp_path/name, stop, resume) == [int(stop)]*world
    seen = [{name: (tmp_path/f'{name}-{r}.txt').read_text().split() for name in ('whole', 'stopped')}
            for r in range(world)]
    for of in seen: assert of['whole'] == of['stopped'] and len(set(of['whole'])) == 2*10
    if world == 2: return       # each process has random numbers of its own, and only the first one's are kept
    a, b = (load_file(tmp_path/name/'weights.safetensors') for name in ('whole', 'stopped'))
    assert all(a[k].equal(b[k]) for k in a)
    assert (tmp_path/'whole/game.csv').read_text() == (tmp_path/'stopped/game.csv').read_text()


def test_from_folder_to_shards_to_a_run(photos, tmp_path, succeeds, fails):
    (tmp_path/'x.tar').write_bytes(b'')
    said = succeeds('shards', '--images', photos, '--out', tmp_path/'tars', '--size', 32, '--per-shard', 7)
    assert '24 images in 4 shards' in said.out
    assert json.loads((tmp_path/'tars/classes.json').read_text()) == ['cats', 'dogs']
    labels = [label for file in sorted((tmp_path/'tars').glob('*.tar')) for _, label in read_shard(file)]
    assert sorted(labels) == [0]*12 + [1]*12 and labels != sorted(labels)
    words = ['--images', tmp_path/'tars', '--out', tmp_path/'run', '--width', .05, '--batch', 8, '--device', 'cpu']
    before = multiprocessing.active_children()
    succeeds('pretrain', '--size', 32, '--steps', 3, *words)
    assert multiprocessing.active_children() == before, 'the processes that read shards end with their phase'
    results = json.loads((tmp_path/'run/results.json').read_text())
    assert (results['data']['images'], results['data']['name']) == (24, f'{photos.name}-shards-32')
    fails('pretrain', '--size', 64, *words[:2], '--out', tmp_path/'other', says=['side of 32 px', '--size 64'])
    fails('shards', '--images', photos, '--out', tmp_path/'tars', says=['exists already'])
    fails('shards', '--images', photos, '--out', photos/'tars', says=['lies in'])


def test_no_shards_of_ours(tmp_path, fails):
    (tmp_path/'tars').mkdir()
    (tmp_path/'tars/images.tar').write_bytes(b'')
    fails('pretrain', '--images', tmp_path/'tars', '--out', tmp_path/'run', says=['no shards.json', 'not written by'])


def test_without_webdataset(photos, shards, tmp_path, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, 'webdataset', None)
    for words in (['shards', '--images', photos, '--out', tmp_path/'tars'],
                  ['pretrain', '--images', shards, '--out', tmp_path/'run']):
        fails(*words, says=["pip install 'spot_artifacts[shards]'"])
    assert not [*tmp_path.iterdir()]


def test_a_shard_of_which_all_images_are_held_out(tmp_path):
    photos = write_images(tmp_path/'photos', images=toy_images(100, 32, seed=4, cache=False).images, classes=('a', 'b'))
    write_shards(photos, tmp_path/'shards', per_shard=5)
    _, logs, _ = pretrain(shard_images(tmp_path/'shards', 32), RECIPE, tmp_path/'run', progress=False)
    assert len(logs['game']) == 8
