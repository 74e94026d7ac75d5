"""Several processes play one game: as many as there are GPUs, and here two on the CPU, talking by gloo.

Each test starts processes as `torchrun` does, with RANK and WORLD_SIZE in the environment; the last ones use
`torchrun` itself, on one node and on two, and `accelerate launch`."""
import json, multiprocessing, os, re, socket, subprocess, sys
from dataclasses import replace
from unittest import mock

import nbformat, pytest, torch
from fastai.callback.core import Callback
from images import write_images
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.run import parse_args
from torch.nn.parallel import DistributedDataParallel

from spot_artifacts import players as players_module
from spot_artifacts.cli import parser
from spot_artifacts.core import SpotError, shard
from spot_artifacts.damage import draw_mask
from spot_artifacts.data import to_float
from spot_artifacts.distributed import setup_distrib, teardown_distrib
from spot_artifacts.pretraining import pretrain
from spot_artifacts.recipe import Recipe, build
from spot_artifacts.runs import load_checkpoint
from spot_artifacts.toy import toy_images
from spot_artifacts.training import game_loss

forks = multiprocessing.get_context('forkserver')
forks.set_forkserver_preload(['spot_artifacts.pretraining'])

# 64 images to learn from, 16 to a batch: 20 steps a phase
RECIPE = Recipe.small(32, width=.1, ae_width=.1, ae_batch=16, batch=16, ae_epochs=5., epochs=5., bf16=False,
                      balance=.94)


def data(): return toy_images(68, 32, seed=4, cache=False)


def launched(rank, world, port):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=str(port))
    torch.set_num_threads(1)


def play(rank, world, port, out, recipe, kw):
    "One of `world` processes that train together."
    launched(rank, world, port)
    try: pretrain(data(), recipe, out, progress=False, **kw)
    except SpotError as e: sys.exit(f'{e}')


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def together(world, target, *args):
    "Runs `target(rank, world, port, *args)` in so many processes; returns their exit codes."
    port = free_port()
    processes = [forks.Process(target=target, args=(rank, world, port, *args)) for rank in range(world)]
    for p in processes: p.start()
    for p in processes: p.join(120)
    return [p.exitcode for p in processes]


def gradients_of_one_step(rank, world, port, out, phase):
    "Writes the gradients of a step on 16 images, of which this process has its part; batch norm is in eval mode."
    launched(rank, world, port)
    setup_distrib('cpu')
    torch.manual_seed(0)
    recipe = replace(RECIPE, kept_weight=0.)       # its mean is over the kept pixels of a process
    players, x = build(recipe).double(), to_float(data().images[:16]).double()
    mask = draw_mask(16, recipe.grid, recipe.drop_rate, torch.Generator().manual_seed(1)).double()
    for m in players.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm): m.eval()
    if phase == 'auto': model = nn.Sequential(players.encoder, players.repaired.decoder).requires_grad_(True)
    else: model = players
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    with mock.patch.object(players_module, 'draw_mask', lambda *args, **kw: shard(mask)): y = wrapped(shard(x))
    loss = (y - shard(x)).square().mean() if phase == 'auto' else game_loss(recipe)(y)
    loss.backward()
    found = {k: p.grad.contiguous() for k, p in model.named_parameters() if p.grad is not None}
    save_file(found, f'{out}-{world}-{rank}')
    teardown_distrib()


@pytest.mark.parametrize('phase', ['auto', 'game'])
def test_two_processes_have_the_gradients_of_one_with_twice_the_batch(phase, tmp_path):
    for world in (1, 2): assert together(world, gradients_of_one_step, tmp_path/'g', phase) == [0]*world
    alone, *parts = (load_file(tmp_path/f'g-{name}') for name in ('1-0', '2-0', '2-1'))
    assert len(alone) > 10
    for part in parts:
        assert part.keys() == alone.keys()
        for k in alone: torch.testing.assert_close(part[k], alone[k], rtol=1e-6, atol=1e-10)


def rows(out): return load_checkpoint(out/'game.ckpt')['callbacks']['epoch_log']['rows']


class Stop(Callback):
    "Ends the game in its third round."
    order = 99
    def after_epoch(self):
        if self.epoch == 2: sys.exit(1)


def test_two_processes_write_one_run(tmp_path):
    for world in (1, 2): assert together(world, play, tmp_path/str(world), RECIPE, {}) == [0]*world
    files = [{f.name for f in (tmp_path/name).iterdir()} for name in '12']
    assert files[0] == files[1]
    assert rows(tmp_path/'2')[-1]['step'] == rows(tmp_path/'1')[-1]['step'] == 20
    a, b = (load_file(tmp_path/f'{name}/weights.safetensors') for name in '12')
    assert {k: t.shape for k, t in a.items()} == {k: t.shape for k, t in b.items()}
    assert all(t.isfinite().all() for t in b.values())


def test_every_kind_of_game_is_shared(tmp_path):
    other = replace(RECIPE, clip=.5, class_outputs=2, bn_fc=True, fakes='gan', update='alternating', ema=.9,
                    ae_epochs=0.)
    assert together(2, play, tmp_path/'run', other, {}) == [0, 0]


def test_each_process_has_a_buffer_and_another_number_of_processes_goes_on(tmp_path):
    recipe = replace(RECIPE, history=.5, ae_epochs=0.)
    assert together(2, play, tmp_path/'run', recipe, dict(cbs=[Stop()])) == [1, 1] and len(rows(tmp_path/'run')) == 3
    kept = load_checkpoint(tmp_path/'run/game.ckpt')['callbacks']['replay_buffer']
    assert [len(kept[k]) for k in ('fakes', 'masks')] == [64, 64]
    assert not kept['fakes'][:32].equal(kept['fakes'][32:])
    assert together(1, play, tmp_path/'run', recipe, dict(resume=True)) == [0]
    assert len(rows(tmp_path/'run')) == 8 and rows(tmp_path/'run')[-1]['step'] == 20


def test_a_batch_that_cannot_be_shared(tmp_path):
    assert together(2, play, tmp_path/'run', replace(RECIPE, batch=15), {}) == [1, 1] and not (tmp_path/'run').exists()


def launch(out, root, *launchers):
    "A run of two processes, started by one launcher from the command line, or by one on each of two nodes."
    photos, script = write_images(out.parent/'photos', images=data().images), out.with_suffix('.py')
    script.write_text('from spot_artifacts.cli import main; main()')
    words = f'pretrain --images {photos} --out {out} --size 32 --width 0.05 --batch 8 --steps 9 --device cpu'.split()
    nodes = [subprocess.Popen([sys.executable, '-m', *launcher, script, *words], cwd=root, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env={**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'})
             for launcher in launchers]
    said = [node.communicate() for node in nodes]
    assert not any(node.returncode for node in nodes) and sum(o.count('are written') for o, _ in said) == 1, said
    assert json.loads((out/'results.json').read_text())['data']['images'] == 68 and not list(out.glob('*.tmp'))
    return out


def same_weights(run, other):
    a, b = (load_file(r/'weights.safetensors') for r in (run, other))
    return all(a[k].equal(b[k]) for k in a) and (run/'game.csv').read_text() == (other/'game.csv').read_text()


@pytest.fixture(scope='module')
def by_torchrun(tmp_path_factory, root):
    return launch(tmp_path_factory.mktemp('torchrun')/'run', root,
                  ['torch.distributed.run', '--standalone', '--nproc-per-node', '2'])


def test_torchrun_and_the_command_line(by_torchrun):
    assert {'weights.safetensors', 'auto.csv', 'game.csv'} <= {f.name for f in by_torchrun.iterdir()}


def test_accelerate_launch_does_what_torchrun_does(by_torchrun, tmp_path, root):
    pytest.importorskip('accelerate', reason='accelerate is not installed')
    out = launch(tmp_path/'run', root, ['accelerate.commands.launch', '--multi_gpu', '--num_processes', '2',
                                        '--main_process_port', str(free_port())])
    assert same_weights(out, by_torchrun)


def test_two_nodes_do_what_two_processes_of_one_do(by_torchrun, tmp_path, root):
    node = ['torch.distributed.run', '--nnodes', '2', '--nproc-per-node', '1', '--master-addr', '127.0.0.1',
            '--master-port', str(free_port()), '--node-rank']
    assert same_weights(launch(tmp_path/'run', root, [*node, '0'], [*node, '1']), by_torchrun)


def test_slurm_lines(root, tmp_path, monkeypatch):
    "The script that reproduce.ipynb shows starts a torchrun that can be parsed, and goes on when it is requeued."
    text = ''.join(c.source for c in nbformat.read(root/'nbs/reproduce.ipynb', as_version=4).cells)
    script, tools = re.search('```sh\n(#!/bin/bash\n#SBATCH.*?)```', text, re.DOTALL)[1], tmp_path/'bin'
    tools.mkdir()
    for name, lines in dict(srun='printf "%s\\n" "$@"', scontrol='printf "n1\\nn2\\nn3\\nn4\\n"').items():
        (tools/name).write_text(f'#!/bin/bash\n{lines}\n')
        (tools/name).chmod(0o755)
    def command():
        done = subprocess.run(['bash', '-euc', script], cwd=tmp_path, capture_output=True, text=True, check=True,
                              env=dict(PATH=f'{tools}:{os.environ["PATH"]}', SLURM_NNODES='4',
                                       SLURM_JOB_NODELIST='n[1-4]'))
        launcher, *words = done.stdout.splitlines()
        args = parse_args(words)
        assert (launcher, args.training_script, args.no_python) == ('torchrun', 'spot-artifacts', True)
        assert (args.nnodes, args.nproc_per_node, args.rdzv_endpoint) == ('4', '8', 'n1:29500')
        return parser().parse_args(args.training_script_args)
    first = command()
    assert (first.command, first.resume, first.batch % 32) == ('pretrain', False, 0)
    (tmp_path/first.out).mkdir(parents=True)
    (tmp_path/first.out/'run.json').touch()
    assert command().resume
