"""The built wheel beside the newest fastai and fastcore.

nbdev 2 holds this environment's fastcore back, so a second one, .venv-newest, has the newest of both. It borrows every
other package, torch among them, from this one: a .pth file puts this environment behind its own packages."""
import json, os, shutil, subprocess, sys, sysconfig
from importlib.metadata import version

import pytest
from conftest import skip_or_fail
from images import write_images

BENCHMARK = 'plain', 'roofline', 'speed', 'time_to_accuracy'     # the modules that are not installed
NEWEST = ['fastai', 'fastcore>=2']  # a floor, so that the borrowed fastcore is never enough


def run(*command, cwd=None):
    "Run a command without this clone on the path; if it fails, the test shows its output."
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    result = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, f'{result.args}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}'
    return result.stdout


@pytest.fixture(scope='module')
def newest(root, tmp_path_factory):
    "The bin folder of .venv-newest, made where there is none for this torch."
    venv = root/'.venv-newest'
    python, stamp = venv/'bin/python', venv/'made-for'
    key = f'{sys.version} torch {version("torch")} {sysconfig.get_path("purelib")}'
    if stamp.exists() and stamp.read_text() == key: return python.parent
    shutil.rmtree(venv, ignore_errors=True)
    run(sys.executable, '-m', 'venv', venv)
    own = run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip()
    with open(f'{own}/borrowed.pth', 'w') as f: f.write(sysconfig.get_path('purelib') + '\n')
    keep = tmp_path_factory.mktemp('pip')/'constraints.txt'
    keep.write_text(''.join(f'{name}=={version(name)}\n' for name in ['torch', 'torchvision']))
    install = subprocess.run([python, '-m', 'pip', 'install', '--upgrade', '--retries', '1', '-c', keep, *NEWEST],
                             capture_output=True, text=True)
    if install.returncode:
        print(install.stderr)
        skip_or_fail('.venv-newest needs the network once: ' + install.stderr.strip().splitlines()[-1])
    stamp.write_text(key)
    return python.parent


@pytest.fixture(scope='module')
def installed(root, newest, tmp_path_factory):
    "The same bin folder, after the library's wheel, built by way of the source distribution, went in."
    dist = tmp_path_factory.mktemp('dist')
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', dist, root)
    run(newest/'python', '-m', 'pip', 'install', '--no-index', '--no-deps', '--force-reinstall', *dist.glob('*.whl'))
    return newest


def test_newest_versions_meet_the_wheel(installed, tmp_path, capsys):
    code = '''import json, fastai, fastcore, torch, spot_artifacts
    print(json.dumps({m.__name__: [m.__version__, m.__file__] for m in [fastai, fastcore, torch, spot_artifacts]}))'''
    found = json.loads(run(installed/'python', '-c', code.replace('\n    ', '\n'), cwd=tmp_path))
    with capsys.disabled(): print('', *(f'{name} {number}' for name, (number, _) in found.items()))
    assert '.venv-newest' in found['spot_artifacts'][1], 'the wheel is not what was imported'
    assert int(found['fastcore'][0].split('.')[0]) >= 2, 'fastcore is held back'
    assert '.venv-newest' not in found['torch'][1], 'torch was downloaded again'


def test_the_wheel_has_every_module_of_the_library(root, installed, tmp_path):
    """Sub-packages, and the engine and photographs of the live page too, and nothing that is for the clone only: the
    benchmark, and its other folders."""
    code = '''import json, spot_artifacts
from pathlib import Path
folder = Path(spot_artifacts.__file__).parent
print(json.dumps([sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*.py")), spot_artifacts.__all__,
                  [f.name for f in folder.parent.iterdir() if f.name in ("tests", "tools", "nbs")],
                  [sorted(f.name for f in (folder/data).iterdir()) for data in ("ort", "photographs")]]))'''
    modules, names, others, data = json.loads(run(installed/'python', '-c', code, cwd=tmp_path))
    own = root/'spot_artifacts'
    wanted = {f.relative_to(own).as_posix() for f in own.rglob('*.py')} - {f'{name}.py' for name in BENCHMARK}
    assert modules == sorted(wanted) and not others
    assert data == [sorted(f.name for f in (own/name).iterdir()) for name in ('ort', 'photographs')]
    run(installed/'python', '-c', f'from spot_artifacts import {", ".join(names)}', cwd=tmp_path)


def test_two_steps_beside_the_newest(root, installed, tmp_path):
    images = write_images(tmp_path/'images', 16)
    run(installed/'spot-artifacts', 'pretrain', '--images', images, '--out', tmp_path/'run', '--size', 32,
        '--width', 0.125, '--steps', 2, '--device', 'cpu', cwd=tmp_path)
    assert any((tmp_path/'run').iterdir()), 'the run left nothing'


def test_help_beside_the_newest_is_the_same(root, installed, tmp_path, monkeypatch):
    "Comments become help texts by fastcore, whose versions 1 and 2 read them in ways of their own."
    monkeypatch.setenv('COLUMNS', '100')
    for command in ['probe'], []:
        words = '-m', 'spot_artifacts', *command, '--help'
        newest, ours = run(installed/'python', *words, cwd=tmp_path), run(sys.executable, *words, cwd=root)
        assert newest == ours and 'usage: spot-artifacts' in ours


def test_the_benchmark_asks_for_a_clone(installed, tmp_path):
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run([installed/'spot-artifacts', 'bench'], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and 'in a clone of the repository' in done.stderr and not list(tmp_path.iterdir())
