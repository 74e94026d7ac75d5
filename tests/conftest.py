"What the tests share."
import os, shutil
from pathlib import Path

import pytest
from command import TINY
from images import write_images

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def root():
    "The project's root folder."
    return ROOT


def skip_or_fail(reason):
    "Skip a test that cannot run on this machine, and fail it in continuous integration, where it must run."
    if os.environ.get('CI') == 'true': pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope='session')
def browser():
    "A headless chromium."
    executable = next(filter(None, map(shutil.which, ['chromium', 'chromium-browser', 'google-chrome'])), None)
    if not executable: skip_or_fail('No chromium, chromium-browser or google-chrome: install one to test the pages')
    from playwright.sync_api import sync_playwright
    flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
             '--disable-component-update', '--disable-sync']
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=executable, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope='session')
def demo_run(tmp_path_factory):
    "The folder of a finished demo run in miniature: `report.html` and `results.json`."
    from spot_artifacts.demo import demo
    from spot_artifacts.recipe import Recipe
    out = tmp_path_factory.mktemp('runs')/'demo'
    recipe = Recipe.demo(size=32, width=.1, ae_width=.1, ae_epochs=2., epochs=2.)
    demo(out, recipe=recipe, plan=dict(images=300, tests=100, labels=200, seeds=(0, 1), random_seeds=(0, 1, 2), most=5))
    return out


@pytest.fixture(scope='session')
def photos(tmp_path_factory):
    "A folder of two classes, 12 images each."
    return write_images(tmp_path_factory.mktemp('photos'), 24, seed=1, classes=('cats', 'dogs'))


@pytest.fixture(scope='session')
def finished(photos, tmp_path_factory):
    "A finished run of two epochs a phase, not to be changed."
    from spot_artifacts.cli import main
    out = tmp_path_factory.mktemp('runs')/'finished'
    main(['pretrain', '--images', str(photos), '--out', str(out), '--epochs', '2', *TINY])
    return out


@pytest.fixture
def run(finished, tmp_path):
    "A copy of the finished run, which a test may change."
    return shutil.copytree(finished, tmp_path/'run')


@pytest.fixture
def fails(capsys):
    "Runs a command that must fail; returns its one line, after checking that it says all of `says`."
    from spot_artifacts.cli import main
    def check(*words, says=(), status=1):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop: main([str(w) for w in words])
        err = capsys.readouterr().err
        *notices, line = err.splitlines()
        assert stop.value.code == status and err.endswith('\n') and line.startswith('spot-artifacts: '), err
        assert all(': skipped ' in n or ': damaged' in n for n in notices) and 'Traceback' not in err, err
        missing = [str(s) for s in says if str(s) not in line]
        assert not missing, f'{missing} not in {line!r}'
        return line
    return check


@pytest.fixture
def succeeds(capsys):
    "Runs a command that must succeed; returns what it printed."
    from spot_artifacts.cli import main
    def check(*words):
        capsys.readouterr()
        main([str(w) for w in words])
        return capsys.readouterr()
    return check


@pytest.fixture
def tiny_stl10(tmp_path):
    "STL-10's files with 40 training images in ten overlapping folds of 20, and 30 test images."
    import torch
    from spot_artifacts.toy import toy_images
    folder = tmp_path/'stl10_binary'
    folder.mkdir()
    (folder/'class_names.txt').write_text('\n'.join(toy_images(1, 96, cache=False).classes))
    for split, n, seed in ('train', 40, 0), ('test', 30, 1):
        data = toy_images(n, 96, seed=seed, cache=False)
        (folder/f'{split}_X.bin').write_bytes(data.images.transpose(2, 3).contiguous().numpy().tobytes())
        (folder/f'{split}_y.bin').write_bytes((data.labels + 1).byte().numpy().tobytes())
    def fold(seed): return torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:20].tolist()
    (folder/'fold_indices.txt').write_text('\n'.join(' '.join(map(str, fold(f))) for f in range(10)))
    return tmp_path
