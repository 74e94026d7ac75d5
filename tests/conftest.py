"What the tests share."
import os, shutil
from pathlib import Path

import pytest

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
    from spot_artifacts.cli import demo
    from spot_artifacts.recipe import Recipe
    out = tmp_path_factory.mktemp('runs')/'demo'
    recipe = Recipe.demo(size=32, width=.1, ae_width=.1, ae_epochs=2., epochs=2.)
    demo(out, recipe=recipe, plan=dict(images=300, tests=100, labels=200, seeds=(0, 1), random_seeds=(0, 1, 2), most=5))
    return out
