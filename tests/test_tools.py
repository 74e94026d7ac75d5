"The scripts in tools/ notice what they are there to notice. Each test has a tiny project of its own."
import json, shutil, subprocess, sys
from pathlib import Path

import nbformat, pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

BIN = Path(sys.executable).parent
PIXEL = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=='


class Project:
    "A folder with the real settings and tools, two notebooks, of which one exports into a sub-package, and an index."
    def __init__(self, folder): self.folder = folder

    def make(self, root):
        shutil.copytree(root/'tools', self.folder/'tools')
        shutil.copy(root/'settings.ini', self.folder)
        self.write('00_tiny', ['#| default_exp tiny', '#| export\ndef one(): return 1', '1 + 1',
                               '#| slow\nprint("ran")'])
        self.write('01_inner', ['#| default_exp deep.inner', '#| export\ndef two(): return 2'])
        self.write('index', ['#| hide\nsecret = 1', '#| echo: false\nprint("shown")', 'print("both")'],
                   '# Tiny\n\nSee [this](00_tiny.ipynb), ![that](../images/that.png) and [there](https://example.org).')
        for command in 'nbdev_export', 'nbdev_clean': self.run(BIN/command)
        self.tool('readme')
        return self

    def run(self, *command): return subprocess.run(command, cwd=self.folder, capture_output=True, text=True)

    def tool(self, name, *args): return self.run(sys.executable, f'tools/{name}.py', *args)

    def write(self, name, code, *markdown):
        cells = [*map(new_markdown_cell, markdown), *map(new_code_cell, code)]
        for i, cell in enumerate(cells): cell.id = f'cell-{i}'
        kernel = {'name': 'python3', 'display_name': 'python3', 'language': 'python'}
        (self.folder/'nbs').mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=cells, metadata={'kernelspec': kernel}), self.folder/f'nbs/{name}.ipynb')

    def read(self, name): return nbformat.read(self.folder/f'nbs/{name}.ipynb', as_version=4)

    def replace(self, file, old, new):
        path = self.folder/file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))


@pytest.fixture(scope='module')
def pristine(root, tmp_path_factory): return Project(tmp_path_factory.mktemp('tiny')).make(root)


@pytest.fixture
def project(pristine, tmp_path):
    shutil.copytree(pristine.folder, tmp_path, dirs_exist_ok=True)
    return Project(tmp_path)


def test_sync_accepts_what_export_wrote(project):
    assert project.tool('check_sync').returncode == 0


@pytest.mark.parametrize('change, complaint', [
    (lambda p: p.replace('spot_artifacts/tiny.py', 'return 1', 'return 2'), 'tiny.py: differs from its notebook'),
    (lambda p: p.replace('nbs/00_tiny.ipynb', 'def one', 'def won'), 'tiny.py: differs from its notebook'),
    (lambda p: p.replace('spot_artifacts/deep/inner.py', 'return 2', 'return 3'), 'deep/inner.py: differs from'),
    (lambda p: p.replace('spot_artifacts/_modidx.py', 'tiny.one', 'tiny.two'), '_modidx.py: differs from its notebook'),
    (lambda p: p.replace('nbs/00_tiny.ipynb', '"execution_count": null', '"execution_count": 3'),
     '00_tiny.ipynb: not clean'),
    (lambda p: (p.folder/'spot_artifacts/tiny.py').unlink(), 'tiny.py: missing'),
    (lambda p: (p.folder/'nbs/00_tiny.ipynb').unlink(), 'tiny.py: no notebook exports it'),
], ids=['edited module', 'module not exported', 'edited sub-package', 'edited index', 'unclean notebook',
        'no module', 'no notebook'])
def test_sync_names_what_differs(project, change, complaint):
    change(project)
    result = project.tool('check_sync')
    assert result.returncode == 1 and complaint in result.stderr and 'make export' in result.stderr


def test_readme_shows_what_the_index_shows(project):
    text = (project.folder/'README.md').read_text()
    assert text.startswith('# Tiny\n') and 'secret' not in text and '#|' not in text
    assert '[this](nbs/00_tiny.ipynb), ![that](images/that.png) and [there](https://example.org)' in text
    assert 'print("shown")' not in text and '```python\nprint("both")\n```' in text


def test_readme_outputs(project):
    "Markdown stays markdown, text is fenced, pictures become files, and stale pictures go."
    nb = project.read('index')
    nb.cells[2].outputs = [new_output('stream', text='plain\n'),
                           new_output('display_data', {'text/markdown': '| [b](01_b.ipynb) |', 'text/plain': '<M>'}),
                           new_output('display_data', {'image/png': PIXEL, 'text/plain': '<Figure>'})]
    nbformat.write(nb, project.folder/'nbs/index.ipynb')
    stale = project.folder/'images/readme/old.png'
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b'')
    assert project.tool('readme').returncode == 0
    text, picture = (project.folder/'README.md').read_text(), 'images/readme/cell-2-2.png'
    assert '```text\nplain\n```' in text and '\n| [b](nbs/01_b.ipynb) |\n' in text and f']({picture})' in text
    assert (project.folder/picture).read_bytes().startswith(b'\x89PNG') and not stale.exists()
    assert project.tool('readme', '--check').returncode == 0


@pytest.mark.parametrize('file, old, new', [('README.md', 'both', 'none'), ('nbs/index.ipynb', 'both', 'none')])
def test_readme_check_names_a_stale_readme(project, file, old, new):
    assert project.tool('readme', '--check').returncode == 0
    project.replace(file, old, new)
    result = project.tool('readme', '--check')
    assert result.returncode == 1 and 'README.md' in result.stderr and 'make readme' in result.stderr


def test_refresh_runs_what_nbdev_test_runs(project):
    "New outputs are saved, those of skipped cells are kept, and the result is clean."
    nb = project.read('00_tiny')
    nb.cells[3].outputs = [new_output('stream', text='from another day\n')]
    nbformat.write(nb, project.folder/'nbs/00_tiny.ipynb')
    result = project.tool('refresh', '00_tiny')
    assert result.returncode == 0, result.stderr
    cells = project.read('00_tiny').cells
    assert cells[2].outputs[0].data['text/plain'] == '2' and cells[3].outputs[0].text == 'from another day\n'
    assert project.tool('check_sync').returncode == 0


def test_refresh_names_the_cell_that_fails(project):
    project.replace('nbs/00_tiny.ipynb', '1 + 1', '1 / 0')
    before = (project.folder/'nbs/00_tiny.ipynb').read_bytes()
    result = project.tool('refresh', '00_tiny.ipynb')
    assert result.returncode == 1
    assert 'nbs/00_tiny.ipynb, cell 2' in result.stderr and 'ZeroDivisionError' in result.stderr
    assert (project.folder/'nbs/00_tiny.ipynb').read_bytes() == before


def test_the_oldest_versions_that_are_allowed_were_tested(root):
    command = [sys.executable, 'tools/compat.py', 'floors']
    floors = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split()
    tested = json.loads((root/'nbs/results/compat.json').read_text())['oldest']
    floors = [f for f in floors if '==' in f]
    stale = [f for f in floors if not f'{tested["versions"][f.split("==")[0]]}.'.startswith(f.split('==')[1] + '.')]
    assert not stale, f'{stale}: run tools/compat.py oldest with them'
    assert tested['passed'] and not tested['failed']
