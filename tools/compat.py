"""Does the library run with these versions? Runs its tests in the environment that runs this file.

compat.py floors   the oldest versions that settings.ini allows, as constraints for pip
compat.py NAME     run the tests, and write versions and counts to nbs/results/compat.json under that name

    pip install -e '.[test]' -c <(python tools/compat.py floors)
    python tools/compat.py oldest"""
import datetime, json, platform, re, subprocess, sys, tempfile
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT/'nbs/results/compat.json'
DEV = 'docs_site', 'jupyterlab', 'tools', 'wheel'     # their tests need nbdev, which holds fastcore back


def requirements():
    "The library's requirements, as settings.ini names them."
    cfg = ConfigParser()
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']['requirements'].split()


def run_tests():
    "What pytest's own report says."
    with tempfile.TemporaryDirectory() as tmp:
        report = Path(tmp)/'report.xml'
        ignored = [f'--ignore=tests/test_{name}.py' for name in DEV]
        subprocess.run([sys.executable, '-m', 'pytest', f'--junitxml={report}', *ignored], cwd=ROOT)
        suite = ElementTree.parse(report).find('testsuite')
    count = {k: int(suite.get(k)) for k in ('tests', 'failures', 'errors', 'skipped')}
    skipped = sorted({s.get('message') for s in suite.iter('skipped')})
    failed = count['failures'] + count['errors']
    return dict(passed=count['tests'] - failed - count['skipped'], failed=failed, skipped=count['skipped'],
                why_skipped=skipped, seconds=round(float(suite.get('time'))))


def main():
    if len(sys.argv) != 2: sys.exit(__doc__)
    if sys.argv[1] == 'floors': return print('\n'.join(requirements()).replace('>=', '=='))
    from spot_artifacts.core import commit, device_name, write_json
    names = [re.match(r'[\w-]+', r)[0] for r in requirements()] + ['accelerate']
    versions = dict(python=platform.python_version(), **{name: version(name) for name in names})
    found = dict(date=f'{datetime.date.today()}', platform=platform.platform(), device=device_name('cpu'),
                 commit=commit(), versions=versions, **run_tests())
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    write_json(RESULTS, {**before, sys.argv[1]: found})
    if found['failed']: sys.exit(f'{found["failed"]} tests failed.')


if __name__ == '__main__': main()
