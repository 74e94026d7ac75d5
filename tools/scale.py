"""What lies beyond one process and one memory, measured. Writes nbs/results/NAME-cpu.json; run it on an idle machine.

scale.py shards IMAGES [N] [PX]   N (6000) image files read from shards, memory, a mapped file, and one by one
scale.py ddp                      a step of each phase by two processes and by one, for the same batch"""
import json, multiprocessing, os, shutil, socket, sys, tempfile
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from unittest import mock

RESULTS = Path(__file__).resolve().parents[1]/'nbs/results'
ROUNDS = 5
forks = multiprocessing.get_context('forkserver')
forks.set_forkserver_preload(['spot_artifacts.pretraining'])


def seconds(f):
    start = perf_counter()
    result = f()
    return perf_counter() - start, result


# ---- shards

def rate(dl, batches=60):
    "Seconds before the first batch, and images a second after it."
    it = iter(dl)
    first, x = seconds(lambda: next(it))
    n = min(batches, len(dl) - 1)
    spent, _ = seconds(lambda: [next(it) for _ in range(n)])
    return first, n*len(x[0])/spent


@contextmanager
def another_cache(memory):
    "The cache is a new folder; with `memory` False, no memory is free."
    with tempfile.TemporaryDirectory() as tmp, mock.patch.dict(os.environ, XDG_CACHE_HOME=tmp):
        if memory: yield Path(tmp)
        else:
            with mock.patch('spot_artifacts.folders.free_memory', lambda: 0): yield Path(tmp)


def megabytes(folder): return sum(f.stat().st_size for f in Path(folder).rglob('*') if f.is_file())/1e6


def shards(images, n=6000, px=64, batch=128):
    "Start, rate and disk of four ways to read the same files."
    from spot_artifacts.data import TensorDL
    from spot_artifacts.folders import folder_images, list_images
    from spot_artifacts.recipe import Recipe
    from spot_artifacts.shards import shard_images, ShardDL, write_shards
    from spot_artifacts.plain import FileDL
    import torch
    steps = n//batch - 1
    tmp, files = Path(tempfile.mkdtemp()), list_images(images)
    for i, f in enumerate(files[::max(1, len(files)//n)][:n]): shutil.copy(f, tmp/f'{i:05d}{f.suffix}')
    found = {k: [] for k in ('shards', 'memory', 'mapped file', 'file by file')}
    def add(name, start, dl, mb):
        first, images_per_second = rate(dl)
        found[name].append(dict(start=start + first, images_per_second=images_per_second, mb_on_disk=mb))
    writing = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as out:
            writing.append(seconds(lambda: write_shards(tmp, out, per_shard=500, progress=False))[0])
            start, data = seconds(lambda: shard_images(out, px))
            dl = ShardDL(data, batch, steps=steps)
            add('shards', start, dl, megabytes(out))
            dl.close()                              # its processes end, and take no time from the others
        for name, memory in ('memory', True), ('mapped file', False):
            with another_cache(memory) as cache:
                start, data = seconds(lambda: folder_images(tmp, px, progress=False))
                add(name, start, TensorDL(data, batch, shuffle=True, steps=steps), megabytes(cache))
        still = Recipe.small(px, area=(1., 1.), aspect=(1., 1.), flip=0., brightness=0., saturation=0.)
        add('file by file', 0, FileDL(list_images(tmp), still, batch, steps, torch.device('cpu')), 0)
    ways = {name: {k: median(r[k] for r in rounds) for k in rounds[0]} | dict(rounds=rounds)
            for name, rounds in found.items()}
    shutil.rmtree(tmp)
    return dict(images=n, px=px, batch=batch, written=dict(images_per_second=n/median(writing)), ways=ways)


# ---- ddp

def step(phase, batch, world):
    "For each round seconds of a step, of one without sharing gradients, and of sharing alone; bytes of gradients."
    import torch, torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from spot_artifacts.data import to_float
    from spot_artifacts.recipe import build, Recipe
    from spot_artifacts.toy import toy_images
    from spot_artifacts.training import game_loss
    recipe = Recipe.small(64, width=.5, ae_width=.5, bf16=False)
    players, x = build(recipe), to_float(toy_images(batch, 64).images)[:batch//world]
    players.frozen.requires_grad_(phase == 'auto')
    model = torch.nn.Sequential(players.encoder, players.repaired.decoder) if phase == 'auto' else players
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    loss = (lambda y: (y - x).square().mean()) if phase == 'auto' else game_loss(recipe)
    learned = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.Adam(learned, 1e-5, fused=True)
    def learn():
        loss(wrapped(x)).backward()
        opt.step()
        opt.zero_grad()
    def alone():
        with wrapped.no_sync(): learn()
    flat = torch.zeros(sum(p.numel() for p in learned))
    parts = dict(step=learn)
    if world > 1: parts.update(unshared=alone, all_reduce=lambda: dist.all_reduce(flat))
    for _ in range(3): learn()
    found = [{k: seconds(f)[0] for k, f in parts.items()} for _ in range(4*ROUNDS)]
    return found, 4*flat.numel()


def process(rank, world, port, batch, out):
    "One of `world` processes, which writes what it measured."
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=str(port))
    import torch
    from spot_artifacts.distributed import setup_distrib, teardown_distrib
    torch.set_num_threads(1)
    setup_distrib('cpu')
    found = {phase: step(phase, batch, world) for phase in ('auto', 'game')}
    if not rank: out.write_text(json.dumps(found))
    teardown_distrib()


def together(world, batch):
    "What `world` processes measured."
    with socket.socket() as s, tempfile.TemporaryDirectory() as tmp:
        s.bind(('127.0.0.1', 0))
        port, out = s.getsockname()[1], Path(tmp)/'found.json'
        s.close()
        processes = [forks.Process(target=process, args=(r, world, port, batch, out)) for r in range(world)]
        for p in processes: p.start()
        for p in processes: p.join()
        return json.loads(out.read_text())


def ddp(batch=64):
    "Medians of one process, of two with half the batch each, and of their parts; a thread for each process."
    found = {world: together(world, batch) for world in (1, 2)}
    def medians(phase, world):
        rounds = found[world][phase][0]
        return {k: median(r[k] for r in rounds) for k in rounds[0]}
    phases = {phase: dict(gradient_bytes=found[1][phase][1], one=medians(phase, 1), two=medians(phase, 2),
                          rounds={world: found[world][phase][0] for world in (1, 2)}) for phase in ('auto', 'game')}
    return dict(batch=batch, size=64, width=.5, backend='gloo', threads_each=1, phases=phases)


def main():
    if len(sys.argv) < 2 or sys.argv[1] not in ('shards', 'ddp'): sys.exit(__doc__)
    name, *words = sys.argv[1:]
    from spot_artifacts.core import provenance, write_json
    from spot_artifacts.toy import toy_images
    load = os.getloadavg()[0]
    found = globals()[name](*words[:1], *map(int, words[1:]))
    about = {k: v for k, v in provenance(toy_images(1, 32, cache=False), 'cpu').items() if k != 'data'}
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    rounds = 4*ROUNDS if name == 'ddp' else ROUNDS
    write_json(RESULTS/f'{name}-cpu.json', {**about, **found, 'rounds': rounds, 'cpus': cpus, 'load': load,
                                            'busy': load > .5})
    print(json.dumps({k: v for k, v in found.items() if k not in ('phases', 'ways')}))


if __name__ == '__main__': main()
