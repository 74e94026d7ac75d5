"The command line in a process of its own, and what its tests share."
import hashlib, signal, subprocess, sys, time

TINY = ['--size', '32', '--width', '0.05', '--batch', '8', '--device', 'cpu']


def state(folder):
    "The content of every file in a folder, as {name: hash}."
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir() if f.is_file()}


def halve(file): file.write_bytes(file.read_bytes()[:file.stat().st_size//2])


def start(*words, **kw):
    "Starts Python with these words in a new process, in which Ctrl-C works."
    can_stop = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, *map(str, words)], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, preexec_fn=can_stop, **kw)


def wait_for(file, process, seconds=40):
    "Waits until a process has written a file."
    while not file.exists():
        assert process.poll() is None and (seconds := seconds - .02) > 0, f'{file.name}: {process.communicate()}'
        time.sleep(.02)
