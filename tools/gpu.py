"""All that is wanted of a GPU, in order, each part with a time limit. Start it again to go on: what is finished is
skipped, what was stopped or failed goes on. OUT/gpu.json says how each part ended, OUT/NAME.log what it printed.

gpu.py CIFAR10 PHOTOS OUT   two folders of images with a sub-folder per class, and a folder for all results
gpu.py --tiny OUT           the same parts on a CPU and drawn images, in a minute: shows that they run, no more"""
import json, os, signal, subprocess, sys
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parents[1]
CLI = [sys.executable, '-c', 'from spot_artifacts.cli import main; main()']


def pretrain(out, *words):
    "The command that begins a run, or goes on with it."
    begun = ['--resume']*(out/'run.json').exists()
    return [*CLI, 'pretrain', '--out', out, *words, *begun]


def recipe(out, **changes):
    "A recipe for CIFAR-10, as a file."
    from spot_artifacts.recipe import Recipe
    out.mkdir(parents=True, exist_ok=True)
    Recipe.small(32, **changes).save(out/'recipe.json')
    return out/'recipe.json'


def parts(cifar, photos, out):
    "Name, command and minutes of each part."
    table = recipe(out, width=1., ae_width=1., batch=128, ae_batch=128, epochs=100., ae_epochs=20.)
    this, cuda = [sys.executable, __file__], ['--device', 'cuda']
    yield 'tests', [sys.executable, '-m', 'pytest', '-m', 'cuda', ROOT/'tests'], 10
    yield 'bench', [*CLI, 'bench', '--recipe', 'paper', '--size', 96, '--width', 1, '--batch', 256, *cuda,
                    '--out', out/'bench-gpu.json'], 40
    yield 'compile', [*this, 'compile', 'cuda', out/'compile.json'], 15
    yield 'table1', [*CLI, 'ablate', '--data', cifar, '--recipe', table, '--out', out/'table1', *cuda], 600
    yield 'photos', pretrain(out/'photos', '--images', photos, '--size', 64, '--width', 1, *cuda), 240
    yield 'probe', [*CLI, 'probe', '--weights', out/'photos', '--images', photos, *cuda], 60


def tiny_parts(out):
    "The same on a CPU. Measuring the speed takes minutes at any size: its help text stands for it."
    from PIL import Image
    from spot_artifacts.toy import toy_images
    data, cpu = toy_images(60, 32, seed=3, cache=False), ['--device', 'cpu']
    for i, image in enumerate(data.images):
        file = out/'drawn'/'ab'[i % 2]/f'{i:02}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    table = recipe(out, width=.05, ae_width=.05, batch=8, ae_batch=8, epochs=.2, ae_epochs=.2, bf16=False)
    this, size = [sys.executable, __file__], ['--size', 32, '--width', .05, '--batch', 8]
    yield 'tests', [sys.executable, '-m', 'pytest', '-m', 'cuda', ROOT/'tests/test_cuda.py'], 1
    yield 'bench', [*CLI, 'bench', '--help'], 1
    yield 'compile', [*this, 'compile', 'cpu', out/'compile.json'], 1
    yield 'table1', [*CLI, 'ablate', '--data', out/'drawn', '--recipe', table, '--rows', 'baseline', '--epochs', 1,
                     '--labels', 20, '--out', out/'table1', *cpu], 1
    yield 'photos', pretrain(out/'photos', '--images', out/'drawn', *size, '--steps', 4, *cpu), 1
    yield 'probe', [*CLI, 'probe', '--weights', out/'photos', '--images', out/'drawn', '--seeds', 1, '--random', 1,
                    '--epochs', 1, *cpu], 1


def run(command, minutes, log):
    "How it ended: done, failed or stopped. A part that takes too long gets Ctrl-C, and a minute to end."
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    can_stop = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with log.open('a') as f:
        p = subprocess.Popen([str(word) for word in command], stdout=f, stderr=f, preexec_fn=can_stop,
                             env={**os.environ, 'PYTHONPATH': path, 'PYTHONUNBUFFERED': '1'})
        try: return 'failed' if p.wait(60*minutes) else 'done'
        except subprocess.TimeoutExpired:
            p.send_signal(signal.SIGINT)
            try: p.wait(60)
            except subprocess.TimeoutExpired: p.kill()
            return 'stopped'


def compiled(device, out):
    "Seconds of a step of the game with a batch of one shape: as it is, compiled, and as CUDA graphs."
    import torch
    from statistics import median
    from spot_artifacts.core import autocast, provenance, write_json
    from spot_artifacts.data import to_float
    from spot_artifacts.recipe import build, Recipe
    from spot_artifacts.toy import toy_images
    from spot_artifacts.training import game_loss
    cuda = device == 'cuda'
    tiny = Recipe.small(32, width=.05, ae_width=.05, bf16=False)
    r, n = (Recipe.paper(size=96, bf16=True), 128) if cuda else (tiny, 4)
    data = toy_images(n, r.size)
    x = to_float(data.images).to(device, memory_format=torch.channels_last)
    kinds = dict(eager=None, compiled={}, graphs=dict(mode='reduce-overhead')) if cuda else dict(
        eager=None, compiled=dict(backend='eager'))
    def timed(how):
        players, loss = build(r).to(device, memory_format=torch.channels_last), game_loss(r)
        players.frozen.requires_grad_(False)
        model = players if how is None else torch.compile(players, **how)
        opt = torch.optim.Adam([p for p in players.parameters() if p.requires_grad], 1e-5, fused=True)
        def step():
            start = perf_counter()
            with autocast(device, r.bf16): y = model(x)
            loss(y).backward()
            opt.step()
            opt.zero_grad()
            if cuda: torch.cuda.synchronize()
            return perf_counter() - start
        first = step()
        return dict(first=first, step=median([step() for _ in range(25 if cuda else 2)][5*cuda:]))
    found = {}
    for name, how in kinds.items():
        try: found[name] = timed(how)
        except Exception as e: found[name] = dict(error=f'{type(e).__name__}: {str(e).splitlines()[0]}')
    write_json(out, dict(provenance(data, device), recipe=r.to_dict(), batch=n, ways=found))


def main():
    words = sys.argv[1:]
    if words[:1] == ['compile']: return compiled(words[1], Path(words[2]))
    if len(words) != 2*(words[:1] == ['--tiny']) + 3*(words[:1] != ['--tiny']): sys.exit(__doc__)
    out = Path(words[-1]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    report = out/'gpu.json'
    found = json.loads(report.read_text()) if report.exists() else {}
    for name, command, minutes in tiny_parts(out) if words[0] == '--tiny' else parts(*map(Path, words[:2]), out):
        was = found.get(name, dict(ended=None, seconds=0., starts=0))
        if was['ended'] == 'done': continue
        start = perf_counter()
        ended = run(command, minutes, out/f'{name}.log')
        found[name] = dict(ended=ended, seconds=round(was['seconds'] + perf_counter() - start, 1),
                           starts=was['starts'] + 1, command=' '.join(map(str, command)))
        report.write_text(json.dumps(found, indent=1) + '\n')
        print(f'{name}: {ended}, {found[name]["seconds"]:.0f} s', flush=True)
    if any(part['ended'] != 'done' for part in found.values()): sys.exit('Start it again to go on.')


if __name__ == '__main__': main()
