"""Runs that are killed, and runs that are made twice: not a bit differs.

`tools/soak.py kills` does the same with two dozen kills, and writes what it finds to nbs/results/soak/kills.json."""
import os, random, subprocess, sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
import soak

from spot_artifacts import core
from spot_artifacts.core import CheckpointError, RecipeError, RunError, WeightsError
from spot_artifacts.recipe import Recipe
from spot_artifacts.pretraining import pretrain
from spot_artifacts.runs import (KeepWeights, before, digest, folder_lock, free_folder, load_checkpoint, load_weights,
                                 save_checkpoint)
from spot_artifacts.toy import toy_images


def test_killed_and_resumed_is_left_alone():
    found = soak.kills(3)
    assert len(found['kills']) == 3 and found['differing'] == []
    assert any(k['half_written'] for k in found['kills']), 'a kill in the middle of writing a file leaves half of one'
    assert {'weights.safetensors', 'game.csv', 'results.json', 'probe.json', 'game.ckpt'} <= set(found['compared'])


def test_two_processes_with_one_seed(tmp_path, root):
    photos = soak.write_images(tmp_path/'photos', 12)
    for name, order in (('a', '1'), ('b', '2')):
        words = ['pretrain', '--images', photos, '--out', tmp_path/name, '--seed', 5, '--size', 32, '--width', .05,
                 '--batch', 8, '--epochs', 1, '--device', 'cpu']
        code = 'from spot_artifacts.cli import main; main()'
        subprocess.run([sys.executable, '-c', code, *map(str, words)], cwd=root, check=True, capture_output=True,
                       env={**os.environ, 'PYTHONHASHSEED': order, 'OMP_NUM_THREADS': '1'})
    assert soak.differences(tmp_path/'a', tmp_path/'b') == []


@pytest.mark.parametrize('operation', range(3))
def test_a_checkpoint_is_whole_at_every_moment(tmp_path, monkeypatch, operation):
    "Cut off before the disk has all of it, before the old one is renamed, and before the new one takes its name."
    class Cut(BaseException): pass
    calls = []
    def cut(real):
        def call(*args):
            if len(calls) == operation: raise Cut
            calls.append(real(*args))
        return call
    file = tmp_path/'game.ckpt'
    for k in (1, 2): save_checkpoint(dict(k=k), file)
    with monkeypatch.context() as m, pytest.raises(Cut):
        for name in 'fsync', 'replace': m.setattr(core.os, name, cut(getattr(os, name)))
        save_checkpoint(dict(k=3), file)
    kept = [load_checkpoint(f)['k'] for f in (file, before(file)) if f.exists()]
    assert kept == ([2, 1] if operation < 2 else [2]), 'the newest that was whole comes first'


def test_every_flipped_bit_is_found(tmp_path):
    "In a checkpoint of nothing but tensors and numbers; bits that no value depends on may flip."
    state = dict(model=dict(a=torch.randn(50), b=torch.arange(9)), rows=[dict(step=1, loss=.5)])
    file, rng = tmp_path/'x.ckpt', random.Random(0)
    save_checkpoint(state, file)
    whole, found = file.read_bytes(), 0
    for _ in range(200):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        try: assert digest(load_checkpoint(file)) == digest(state)
        except CheckpointError: found += 1
    assert found > 20


def test_a_run_killed_before_it_began_does_not_block_its_folder(tmp_path):
    killed = '.recipe.json.0123456789abcdef.tmp', '.run.json.fedcba9876543210.tmp'
    for left in [], ['.lock'], [killed[0]], ['recipe.json', killed[1]]:
        for name in left: (tmp_path/name).touch()
        assert free_folder(tmp_path) == tmp_path
    (tmp_path/'holiday.jpg').touch()
    with pytest.raises(RunError, match='exists already'): free_folder(tmp_path)


def test_a_run_in_use_is_left_alone(tmp_path, root):
    "A second process gets an error that names the first; once that has ended, in any way, the folder is free."
    code = """import sys, time
from spot_artifacts.runs import folder_lock
with folder_lock(sys.argv[1]):
    print('mine', flush=True)
    time.sleep(60)"""
    other = subprocess.Popen([sys.executable, '-c', code, tmp_path], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == 'mine\n'
        with pytest.raises(RunError, match=f'in use by process {other.pid}'), folder_lock(tmp_path): pass
    finally:
        other.kill()
        other.wait()
    with folder_lock(tmp_path): pass


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    file = tmp_path/'x.ckpt'
    save_checkpoint(dict(k=1), file)
    def fails_with(error):
        def load(*args, **kw): raise error
        monkeypatch.setattr(torch, 'load', load)
        with pytest.raises(CheckpointError) as e: load_checkpoint(file)
        return str(e.value)
    assert 'could not be read (Permission denied)' in fails_with(PermissionError(13, 'Permission denied'))
    assert 'does not fit into the memory of cpu' in fails_with(MemoryError())
    assert 'does not fit into the memory of cpu' in fails_with(RuntimeError("can't allocate memory"))
    assert 'damaged' in fails_with(RuntimeError('bad zip'))


def test_a_pipe_is_neither_a_recipe_nor_weights(tmp_path):
    os.mkfifo(tmp_path/'weights.safetensors')
    with pytest.raises(WeightsError, match='no weights there'): load_weights(tmp_path)
    with pytest.raises(RecipeError, match='not JSON .no regular file'): Recipe.load(tmp_path/'weights.safetensors')


def test_weights_are_kept_after_powers_of_two(tmp_path):
    out = tmp_path/'run'
    recipe = Recipe.small(32, width=.05, ae_width=.05, ae_batch=8, batch=8, ae_epochs=1., epochs=9.)
    photos = toy_images(20, 32, cache=False)
    players, logs, _ = pretrain(photos, recipe, out, progress=False, cbs=KeepWeights(out))
    assert len(logs['game']) == 9
    assert sorted(f.name for f in out.glob('weights-*')) == [f'weights-{n}.safetensors' for n in (1, 2, 4, 8)]
    def c(where): return torch.cat([p.flatten() for p in load_weights(where).discriminator.parameters()])
    assert not c(out/'weights-1.safetensors').equal(c(out/'weights-4.safetensors'))
    assert not c(out/'weights-4.safetensors').equal(c(out))


def test_a_run_goes_on_on_another_kind_of_device(tmp_path):
    "A GPU's random numbers are of another form: they cannot be put back, and the checkpoint is not damaged."
    recipe = Recipe.small(32, width=.05, ae_width=.05, ae_batch=8, batch=8, ae_epochs=0., epochs=8.)
    photos, out = toy_images(20, 32, cache=False), tmp_path/'run'
    class Stop(KeepWeights):
        def after_epoch(self):
            if len(self.rows) == 3: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): pretrain(photos, recipe, out, progress=False, cbs=Stop(tmp_path))
    state, other = load_checkpoint(out/'game.ckpt'), torch.zeros(16, dtype=torch.uint8)
    save_checkpoint(dict(state, device='cuda', order=other, g=other, cuda=other), out/'game.ckpt')
    _, logs, _ = pretrain(photos, recipe, out, progress=False, resume=True)
    _, whole, _ = pretrain(photos, recipe, tmp_path/'whole', progress=False)
    assert len(logs['game']) == 8 and logs['game'][:2] == whole['game'][:2]
    assert logs['game'][2:] != whole['game'][2:], 'other random numbers from there on'
