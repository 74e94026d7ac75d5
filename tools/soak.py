"""What takes long: runs that are killed, an hour of training, a million files. Writes nbs/results/soak/NAME.json.

soak.py kills [N]      a run killed N times (24) with SIGKILL and resumed ends as the run that was left alone
soak.py hour [MINUTES] memory and open files of a run of that length (60), sampled from outside, and a picture
soak.py paths [N]      listing and sampling N image files (1,000,000)"""
import contextlib, filecmp, io, json, multiprocessing, os, random, resource, signal, stat, subprocess, sys, tempfile, time
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1]/'nbs/results/soak'
forks = multiprocessing.get_context('forkserver')
forks.set_forkserver_preload([f'spot_artifacts.{m}' for m in ('cli', 'training', 'visualize', 'transfer.probes')])


# ---- kills

def die(): os.kill(os.getpid(), signal.SIGKILL)


def arm(countdown, share):
    "The process dies at a file operation: before a rename, or with only a `share` of a file on the disk."
    fsync, replace = os.fsync, os.replace
    def next_is_last():
        nonlocal countdown
        countdown -= 1
        return countdown < 0
    def half(fd):
        if stat.S_ISREG(os.fstat(fd).st_mode) and next_is_last():
            os.ftruncate(fd, int(os.fstat(fd).st_size*share))
            die()
        fsync(fd)
    def unrenamed(*args):
        if next_is_last(): die()
        replace(*args)
    os.fsync, os.replace = half, unrenamed


def command(words, crash=None):
    "A command line, in a process of its own."
    import torch
    from spot_artifacts.cli import main
    torch.set_num_threads(1)
    if crash: arm(*crash)
    with contextlib.redirect_stdout(io.StringIO()): main(words)


def start(words, *args):
    process = forks.Process(target=command, args=([str(w) for w in words], *args))
    process.start()
    return process


def pretrain(photos, out):
    begun = (out/'run.json').exists()
    return ['pretrain', '--images', photos, '--out', out, '--device', 'cpu',
            *(['--resume'] if begun else ['--size', 32, '--width', .05, '--batch', 8, '--epochs', 6])]


def finish(photos, out):
    "The rest of a run, and probes on it; the seconds that the run took."
    began = time.perf_counter()
    probe = ['probe', '--weights', out, '--images', photos, '--device', 'cpu',
             '--labels', 12, '--seeds', 1, '--epochs', 1]
    for words in pretrain(photos, out), probe:
        process = start(words)
        process.join()
        assert process.exitcode == 0, f'{words[0]} failed'
        if words[0] == 'pretrain': seconds = time.perf_counter() - began
    return seconds


def differences(a, b):
    "Files of two run folders that differ; checkpoints by their content, results without seconds and commit."
    import torch
    def sha256(ckpt): return torch.load(ckpt, weights_only=True)['sha256']
    def result(file): return {k: v for k, v in json.loads(file.read_text()).items() if k not in ('seconds', 'commit')}
    def same(x, y):
        if x.suffix == '.ckpt': return sha256(x) == sha256(y)
        if x.name in ('results.json', 'probe.json', 'run.json'): return result(x) == result(y)
        return filecmp.cmp(x, y, shallow=False)
    names = {f.name for folder in (a, b) for f in folder.iterdir()}
    return [n for n in sorted(names) if not ((a/n).exists() and (b/n).exists() and same(a/n, b/n))]


def write_images(folder, n, size=40):
    "`n` images in each of two classes."
    from PIL import Image
    from spot_artifacts.toy import toy_images
    images = toy_images(2*n, size, seed=9, cache=False).images.permute(0, 2, 3, 1).numpy()
    for i, image in enumerate(images):
        file = folder/'ab'[i % 2]/f'{i:04d}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return folder


def kills(n=24, seed=0):
    "Kills runs `n` times, every other time while a file is written; each is resumed until it ends, and compared."
    rng, found, tmp, differing = random.Random(seed), [], Path(tempfile.mkdtemp()), None
    photos, whole = write_images(tmp/'photos', 40), tmp/'whole'
    seconds, run = finish(photos, whole), 0
    while len(found) < n or differing is None:
        out, differing = tmp/f'run{run}', None
        while len(found) < n:
            in_write = len(found) % 2 == 1
            process = start(pretrain(photos, out), (rng.randrange(25), rng.random()) if in_write else None)
            process.join(None if in_write else rng.uniform(0, .4*seconds))
            process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL: break
            files = {f.name for f in out.iterdir()} if out.exists() else set()
            phase = 'game' if files & {'game.csv', 'game.ckpt'} else 'auto'
            found.append(dict(run=run, moment='in a write' if in_write else 'any', phase=phase,
                              half_written=sorted(f for f in files if f.endswith('.tmp'))))
        finish(photos, out)
        if differing := differences(whole, out): break
        run += 1
    return dict(kills=found, runs=run, differing=differing, seconds_of_a_run_left_alone=round(seconds, 1),
                compared=sorted(f.name for f in whole.iterdir()))


# ---- an hour

def sample(pid):
    "Resident memory in MB and the number of open files of a process."
    status = dict(line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines())
    return int(status['VmRSS'].split()[0])/1024, len(os.listdir(f'/proc/{pid}/fd'))


def hour(minutes=60., every=5.):
    "Trains for so long, or until stopped; both phases, a checkpoint and a picture every hundred steps or so."
    import numpy as np
    tmp = Path(tempfile.mkdtemp())
    recipe = dict(size=32, layers=2, width=.1, ae_width=.1, ae_batch=16, batch=16, ae_epochs=minutes/2, epochs=1e5,
                  bf16=False, lrn=False, balance=.94)
    (tmp/'recipe.json').write_text(json.dumps(recipe))
    words = ['pretrain', '--images', write_images(tmp/'photos', 1000), '--out', tmp/'run',
             '--recipe', tmp/'recipe.json', '--device', 'cpu']
    process = subprocess.Popen([sys.executable, '-c', 'from spot_artifacts.cli import main; main()', *map(str, words)],
                               stdout=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'},
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # as in a shell
    began, samples = time.perf_counter(), []
    while process.poll() is None and time.perf_counter() - began < 60*minutes:
        with contextlib.suppress(OSError, KeyError):
            samples.append((round(time.perf_counter() - began, 1), *sample(process.pid)))
        time.sleep(every)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130, 'the run ended before its time'
    logs = {name: (tmp/f'run/{name}.csv').read_text().splitlines() for name in ('auto', 'game')}
    late = [(t, mb, files) for t, mb, files in samples if t > samples[-1][0]/3]
    t, mb, files = zip(*late)
    per_hour = round(3600*float(np.polyfit(t, mb, 1)[0]), 1)
    return dict(minutes=round(t[-1]/60, 1), rounds={k: len(v) - 1 for k, v in logs.items()},
                steps={k: int(v[-1].split(',')[1]) for k, v in logs.items()},
                mb=dict(after_a_third=round(mb[0], 1), last=round(mb[-1], 1), most=round(max(mb), 1),
                        per_hour=per_hour),
                open_files=dict(least=min(files), most=max(files)),
                samples=[(t, round(mb, 1), files) for t, mb, files in samples])


def draw(found, path):
    "Memory and open files over time."
    import matplotlib.pyplot as plt
    t, mb, files = zip(*found['samples'])
    fig, axs = plt.subplots(1, 2, figsize=(9, 2.6), layout='constrained')
    for ax, y, title in zip(axs, (mb, files), ('Resident memory, MB', 'Open files')):
        ax.plot([s/60 for s in t], y)
        ax.set(title=title, xlabel='minutes of training', ylim=(0, 1.2*max(y)))
    fig.savefig(path, dpi=90, metadata={'Software': None})


# ---- a million files

def paths(n=1_000_000, picked=256):
    "Lists `n` image files, hard links to a thousand images, and decodes some of them."
    from PIL import Image
    from spot_artifacts.folders import list_images, load_image
    from spot_artifacts.toy import toy_images
    tmp, images = Path(tempfile.mkdtemp()), toy_images(1000, 32, seed=9, cache=False).images
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()): Image.fromarray(image).save(tmp/f'{i}.png')
    for k in range(n):
        folder = tmp/'all'/f'{k//1000:04d}'
        if k % 1000 == 0: folder.mkdir(parents=True)
        os.link(tmp/f'{k % 1000}.png', folder/f'{k:07d}.png')
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    files = list_images(tmp/'all')
    listed = time.perf_counter() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    for file in random.Random(0).sample(files, picked): load_image(file, 32)
    return dict(files=len(files), seconds_to_list=round(listed, 1), mb_to_list=round(grown/1024),
                bytes_per_file=round(1024*grown/len(files)),
                ms_per_image=round(1000*(time.perf_counter() - began - listed)/picked, 2))


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in ('kills', 'hour', 'paths'): sys.exit(__doc__)
    name, more = sys.argv[1], [json.loads(a) for a in sys.argv[2:]]
    from spot_artifacts.core import provenance, write_json
    from spot_artifacts.toy import toy_images
    with tempfile.TemporaryDirectory() as tempfile.tempdir: found = globals()[name](*more)
    RESULTS.mkdir(parents=True, exist_ok=True)
    about = {k: v for k, v in provenance(toy_images(1, 32, cache=False), 'cpu').items() if k != 'data'}
    write_json(RESULTS/f'{name}.json', {**about, **found})
    if name == 'hour': draw(found, RESULTS/'hour.png')
    print({k: v for k, v in found.items() if k not in ('samples', 'kills', 'compared')})
    if found.get('differing'): sys.exit('A resumed run differs from the one that was left alone.')


if __name__ == '__main__': main()
