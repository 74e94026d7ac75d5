"What all notebooks have in common: lines that say how a result was made, a way to run in Colab, and a size."
import base64, json, os, re, shutil, subprocess, sys, sysconfig
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path

import nbformat
import pytest

NBS = Path(__file__).resolve().parents[1]/'nbs'
NOTEBOOKS = sorted(NBS.glob('*.ipynb'))
COLAB = """#| hide
#| eval: false
! [ -e /content ] && git clone -q --depth 1 https://github.com/spot-artifacts/spot_artifacts /tmp/clone \\
  && pip install -q {} && cp -r /tmp/clone/nbs/results .  # in Colab only"""
EXTRAS = dict(cv2='cv', onnx='onnx', onnxruntime='onnx', webdataset='shards')     # Colab has what the others install
RESULTS = sorted(f.relative_to(NBS/'results').as_posix() for f in (NBS/'results').rglob('*.json')
                 if f.name not in ('commands.json', 'recipe.json'))


def cells(notebook): return nbformat.read(notebook, as_version=4).cells


def made(notebook):
    "The files whose lines the notebook shows; of many of a folder, the first."
    outputs = [o.get('data', {}).get('text/markdown', '') for c in cells(notebook) for o in c.get('outputs', ())]
    lines = [line for text in outputs for line in text.splitlines() if line.startswith(('*How was this made?*', '- ['))]
    return {file for line in lines for file in re.findall(r'\]\(results/([^)]+)\)(?: and \d+ more)?, by ', line)}


def used(notebook):
    "Files and folders of nbs/results/ that the notebook's code reads."
    read = [c.source for c in cells(notebook) if c.cell_type == 'code' and 'write_json(' not in c.source]
    code = re.sub('#.*', '', '\n'.join(read))
    paths = re.findall(r"(?:results/|'(?!results/)(?=[\w-]+/))([\w./-]+)", code)
    return {path for path in paths if (NBS/'results'/path).exists() and path not in ('commands.json', '.')}


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda f: f.stem)
def test_results_say_how_they_were_made(notebook):
    found = made(notebook)
    def shown(path): return any(f'{file}/'.startswith(f'{path}/'.replace('//', '/')) for file in found)
    assert not {path for path in used(notebook) if Path(path).suffix in ('', '.json') and not shown(path)}
    assert all((NBS/'results'/file).is_file() for file in found)


def test_lines_are_made_for_many_results():
    assert len({file.split('/')[0] for notebook in NOTEBOOKS for file in made(notebook)}) > 15


def test_every_result_has_a_command():
    commands = json.loads((NBS/'results/commands.json').read_text())
    assert not [name for name in RESULTS if not any(fnmatch(name, key) for key in commands)]
    assert not [key for key in commands if not any(fnmatch(name, key) for name in RESULTS)]


def test_commits_of_results_exist(root):
    "Those that were lost before the repository was published are in a list, which must not grow."
    def git(*words): return subprocess.run(['git', *words], cwd=root, capture_output=True, text=True)
    if not (root/'.git').exists() or git('rev-parse', '--is-shallow-repository').stdout.strip() != 'false':
        pytest.skip('not a clone with its history')
    lost = (NBS/'results/lost_commits.txt').read_text().split()
    text = ' '.join((NBS/'results'/name).read_text() for name in RESULTS)
    named = set(re.findall(r'"commit": "([0-9a-f]{40})', text))
    missing = {commit[:10] for commit in named if git('cat-file', '-e', commit).returncode}
    assert len(named) > 10 and missing == set(lost)
    assert len(lost) <= 7


def test_sizes():
    "What a clone has to fetch and a browser to show."
    def too_large(files, kilobytes): return [f.name for f in files if f.stat().st_size > 1000*kilobytes]
    pictures = [f for folder in (NBS, NBS.parent/'images') for f in folder.rglob('*')
                if f.suffix in ('.png', '.jpg', '.jpeg', '.gif', '.webp')]
    assert pictures and not too_large(pictures, 300)
    assert not too_large(NOTEBOOKS, 700)


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda f: f.stem)
def test_pictures_in_outputs_are_small(notebook):
    for cell in cells(notebook):
        for kind, data in [item for o in cell.get('outputs', ()) for item in o.get('data', {}).items()]:
            if kind in ('image/png', 'image/jpeg'): assert len(base64.b64decode(data)) <= 300_000, cell.id


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda f: f.stem)
def test_second_cell_installs_in_colab(root, notebook):
    "With the extras whose packages the notebook imports."
    assert [i for i, c in enumerate(cells(notebook)) if '/content' in c.source] == [1]
    found = cells(notebook)[1].source
    what = re.search('pip install -q (.*?) &&', found)[1]
    assert found == COLAB.format(what)
    named = re.fullmatch(r"/tmp/clone|'/tmp/clone\[([\w,]+)\]'", what)[1]
    settings = ConfigParser()
    settings.read(root/'settings.ini')
    named = set(named.split(',')) if named else set()
    assert all(f'{extra}_requirements' in settings['DEFAULT'] for extra in named)
    code = '\n'.join(c.source for c in cells(notebook) if c.cell_type == 'code')
    imported = re.findall(rf'\b(?:import|from) ({"|".join(EXTRAS)})\b', code)
    assert {EXTRAS[package] for package in imported} <= named


def test_colab_cell_installs(root, tmp_path):
    "Where there is a /content, the cell's command leaves the library and the files of results; elsewhere nothing."
    if not (root/'.git').exists(): pytest.skip('not a clone')
    command = COLAB.format("'/tmp/clone[cv,onnx]'").split('\n', 2)[2].removeprefix('! ')
    venv, clone = tmp_path/'venv', tmp_path/'clone'
    subprocess.run([sys.executable, '-m', 'venv', venv], check=True)
    site, = venv.glob('lib/python*/site-packages')
    for old in site.glob('setuptools*'): shutil.rmtree(old)
    (site/'borrowed.pth').write_text(sysconfig.get_path('purelib') + '\n')     # torch and the rest, as Colab has them
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    env |= dict(PATH=f'{venv}/bin:{os.environ["PATH"]}', PIP_NO_DEPS='1', PIP_NO_BUILD_ISOLATION='0', PIP_NO_INDEX='1')
    def shell(text, content):
        text = text.replace('https://github.com/spot-artifacts/spot_artifacts', root.as_uri())
        text = text.replace('/content', str(content)).replace('/tmp/clone', str(clone))
        return subprocess.run(['sh', '-c', text], cwd=tmp_path, env=env, capture_output=True, text=True)
    shell(command, tmp_path/'nowhere')
    assert not clone.exists() and not (tmp_path/'results').exists()
    ended = shell(command, tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    code = ("from spot_artifacts.core import how_made; import spot_artifacts; print(spot_artifacts.__file__); "
            "print(how_made('demo/results.json').data)")
    ended = subprocess.run(['python', '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ended.returncode == 0 and str(site) in ended.stdout and '(results/demo/' in ended.stdout, ended.stderr
