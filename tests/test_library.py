"The names of `from spot_artifacts import ...`: few, lazy, no clash with fastai's, each on the page about the library."
import inspect, re, subprocess, sys

import nbformat, pytest

import spot_artifacts


@pytest.fixture(scope='module')
def page(root): return nbformat.read(root/'nbs/library.ipynb', as_version=4)


def test_fewer_than_twenty(): assert 0 < len(set(spot_artifacts.__all__)) == len(spot_artifacts.__all__) < 20


def test_star_import_gives_them():
    names = {}
    exec('from spot_artifacts import *', names)
    assert not set(spot_artifacts.__all__) - names.keys()
    for name in spot_artifacts.__all__:
        value = names[name]
        assert value.__name__ == name and name in sys.modules[value.__module__].__all__ and name in dir(spot_artifacts)


@pytest.mark.parametrize('name', spot_artifacts.__all__)
def test_import_by_name_whatever_was_imported_before(name):
    "A name stays itself beside a module that is imported first, and is not a module."
    module = getattr(spot_artifacts, name).__module__
    code = f'import {module}, spot_artifacts; from spot_artifacts import {name}; assert {name} is {module}.{name}'
    exec(code, {})
    assert not inspect.ismodule(getattr(spot_artifacts, name))


def test_import_is_light():
    "The command line's --help needs no torch."
    code = 'import sys, spot_artifacts; dir(spot_artifacts); assert not {"torch", "fastai", "numpy"} & {*sys.modules}'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_learning_imports_neither_a_compiler_nor_vision():
    "torchvision imports torch.compile's parts, and fastai's vision part imports torchvision: half of the start."
    code = ('import sys, spot_artifacts as s; [getattr(s, name) for name in ("pretrain", "probe", "load_weights")]; '
            'assert not {"torch._dynamo", "torch._inductor", "torchvision", "fastai.vision"} & {*sys.modules}')
    subprocess.run([sys.executable, '-c', code], check=True)


def test_unknown_name():
    with pytest.raises(AttributeError, match="'spot_artifacts' has no attribute 'pretrian'"): spot_artifacts.pretrian


def test_no_name_of_fastai():
    names = {}
    exec('from fastai.vision.all import *', names)
    assert not names.keys() & set(spot_artifacts.__all__)


def test_page_has_each_name(page):
    "A heading, the signature as it is now, and a cell that uses it."
    text = '\n'.join(c.source for c in page.cells if c.cell_type == 'markdown')
    assert set(re.findall(r'^### `(\w+)`$', text, re.M)) == set(spot_artifacts.__all__)
    code = '\n'.join(c.source for c in page.cells if c.cell_type == 'code' and '#| echo: false' not in c.source)
    outputs = [o.get('data', {}) for c in page.cells for o in c.get('outputs', [])]
    shown = ' '.join(' '.join(data.get('text/markdown', '') for data in outputs).split())
    for name in spot_artifacts.__all__:
        value = getattr(spot_artifacts, name)
        assert f'`{value.__module__}.{name}`' in shown and re.search(rf'\b{name}\b', code)
        if inspect.isfunction(value):
            assert f"{name}({', '.join(map(str, inspect.signature(value).parameters.values()))})" in shown


def test_each_promise_names_tests_that_exist(page, root):
    text = next(c.source for c in page.cells if c.source.startswith('## What is promised'))
    rows = [line for line in text.splitlines() if line.startswith('| ') and 'promise | tests' not in line]
    assert len(rows) > 9
    for row in rows:
        named = re.findall(r'`(tests/[\w/]+\.py)::(\w+)`', row)
        assert named, row
        for file, name in named: assert f'\ndef {name}(' in (root/file).read_text(), f'{file}::{name}'
