"""Several processes play one game: as many as there are GPUs, and here two on the CPU, talking by gloo.

Each test starts processes as `torchrun` does, with RANK and WORLD_SIZE in the environment; the last two ask `torchrun` itself, and `accelerate launch`."""
import json, multiprocessing, os, socket, subprocess, sys
from dataclasses import replace

import pytest, torch
from PIL import Image
from safetensors.torch import load_file

from spot_artifacts.core import SpotError
from spot_artifacts.toy import toy_images
from fastai.callback.core import Callback
from spot_artifacts.pretraining import pretrain
from spot_artifacts.recipe import Recipe
from spot_artifacts.runs import load_checkpoint

forks = multiprocessing.get_context('forkserver')
forks.set_forkserver_preload(['spot_artifacts.training'])

# 64 images to learn from, 16 to a batch: 20 steps a phase. They are short: after long ones, ReLUs near zero make much of rounding errors.
RECIPE = Recipe.small(32, width=.1, ae_width=.1, ae_batch=16, batch=16, ae_epochs=5., epochs=5., bf16=False, history=0., balance=.94, ae_lr=1e-6, lr=1e-6, repair_lr=1e-6, eps=1e-6)


def data(): return toy_images(68, 32, seed=4, cache=False)


def play(rank, world_size, port, out, recipe, precise, kw):
    "One of `world` processes that train together."
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    if precise: torch.set_default_dtype(torch.float64)
    try: pretrain(data(), recipe, out, progress=False, **kw)
    except SpotError as e: sys.exit(f'{e}')


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def together(world_size, out, recipe=RECIPE, precise=False, **kw):
    "Trains with so many processes; returns their exit codes."
    port = free_port()
    processes = [forks.Process(target=play, args=(rank, world_size, port, out, recipe, precise, kw)) for rank in range(world_size)]
    for p in processes: p.start()
    for p in processes: p.join(120)
    return [p.exitcode for p in processes]


def rows(out): return load_checkpoint(out/'game.ckpt')['callbacks']['epoch_log']['rows']


class Stop(Callback):
    "Ends the game in its third round."
    order = 99
    def after_epoch(self):
        if self.epoch == 2: sys.exit(1)


def distance(a, b):
    "The largest difference of any weight of two runs."
    a, b = (load_file(out/'weights.safetensors') for out in (a, b))
    assert a.keys() == b.keys()
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "A finished run of one process, in 64-bit numbers: in 32 bits, Adam blows rounding errors up where a gradient is zero."
    out = tmp_path_factory.mktemp('runs')/'alone'
    assert together(1, out, precise=True) == [0]
    return out


def test_two_processes_are_one_of_twice_the_batch(alone, tmp_path):
    assert together(2, tmp_path/'two', precise=True) == [0, 0]
    assert distance(alone, tmp_path/'two') < 1e-8
    assert {f.name for f in alone.iterdir()} == {f.name for f in (tmp_path/'two').iterdir()}
    assert rows(alone) == [pytest.approx(row, rel=1e-5) for row in rows(tmp_path/'two')] and rows(alone)[-1]['step'] == 20


def test_every_kind_of_game_is_shared(tmp_path):
    other = replace(RECIPE, clip=.5, class_outputs=2, bn_fc=True, fakes='gan', update='alternating', ema=.9, ae_epochs=0.)
    for world in (1, 2): assert together(world, tmp_path/str(world), other, precise=True) == [0]*world
    assert distance(tmp_path/'1', tmp_path/'2') < 1e-8


def test_two_processes_begin_and_one_goes_on(alone, tmp_path):
    assert together(2, tmp_path/'run', precise=True, cbs=[Stop()]) == [1, 1] and len(rows(tmp_path/'run')) == 3
    assert together(1, tmp_path/'run', precise=True, resume=True) == [0]
    assert distance(alone, tmp_path/'run') < 1e-8


def test_each_process_has_a_history_and_they_are_kept_together(tmp_path):
    recipe = replace(RECIPE, history=.5, ae_epochs=0.)
    assert together(2, tmp_path/'run', recipe, cbs=[Stop()]) == [1, 1]
    kept = load_checkpoint(tmp_path/'run/game.ckpt')['callbacks']['replay_buffer']
    assert [len(kept[k]) for k in ('fakes', 'masks')] == [64, 64] and not kept['fakes'][:32].equal(kept['fakes'][32:])
    assert together(1, tmp_path/'run', recipe, resume=True) == [0] and len(rows(tmp_path/'run')) == 8


def test_a_batch_that_cannot_be_shared(tmp_path):
    assert together(2, tmp_path/'run', replace(RECIPE, batch=15)) == [1, 1] and not (tmp_path/'run').exists()


def launch(out, root, *launcher):
    "A run of two processes, begun by a launcher from the command line."
    photos, script = out.parent/'photos', out.with_suffix('.py')
    photos.mkdir()
    script.write_text('from spot_artifacts.cli import main; main()')
    for i, image in enumerate(data().images.permute(0, 2, 3, 1).numpy()): Image.fromarray(image).save(photos/f'{i}.png')
    words = f'pretrain --images {photos} --out {out} --size 32 --width 0.05 --batch 8 --steps 9 --device cpu'.split()
    done = subprocess.run([sys.executable, '-m', *launcher, script, *words], cwd=root, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0 and done.stdout.count('are written') == 1, done.stderr
    assert json.loads((out/'results.json').read_text())['data']['images'] == 68 and not list(out.glob('*.tmp'))
    return out


@pytest.fixture(scope='module')
def by_torchrun(tmp_path_factory, root):
    return launch(tmp_path_factory.mktemp('torchrun')/'run', root, 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')


def test_torchrun_and_the_command_line(by_torchrun): assert {'weights.safetensors', 'auto.csv', 'game.csv'} <= {f.name for f in by_torchrun.iterdir()}


def test_accelerate_launch_does_what_torchrun_does(by_torchrun, tmp_path, root):
    pytest.importorskip('accelerate', reason='accelerate is not installed')
    out = launch(tmp_path/'run', root, 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--main_process_port', str(free_port()))
    assert distance(by_torchrun, out) == 0
    assert (out/'game.csv').read_text() == (by_torchrun/'game.csv').read_text()
