"""Files from strangers: nothing in them is executed, unpacked elsewhere or believed.

Hostile checkpoints and pickles: tests/test_cli_runs.py."""
import ast, csv, io, json, socket, tarfile, time, urllib.error
from dataclasses import asdict
from html.parser import HTMLParser

import pytest, torch
from images import write_images
from safetensors.torch import save_file
from torchvision.datasets import STL10

from spot_artifacts.cli import main
from spot_artifacts.core import ImagesError, SpotError, WeightsError
from spot_artifacts.folders import stl10
from spot_artifacts.toy import toy_images
from spot_artifacts.recipe import Recipe
from spot_artifacts.runs import load_weights
from spot_artifacts.report import render, write_report


def head(header, body=b'', length=None):
    "A safetensors file with any header."
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, 'little') + text + body


F32 = dict(dtype='F32', shape=[2], data_offsets=[0, 8])
ABOUT = {'__metadata__': {'recipe': json.dumps(asdict(Recipe.small(32)))}}


@pytest.mark.parametrize('content', [
    b'', b'\x00'*8, b'\xff'*8, head({}, length=2**63), head({}, length=10**9), head(b'[['*50_000),
    head(b'{"a":'*20_000), head({'a': 1}), head({'a': F32}),
    head({**ABOUT, 'a': dict(F32, shape=[2**40, 2**40])}, bytes(8)),
    head({**ABOUT, 'a': dict(F32, shape=[-2])}, bytes(8)),
    head({**ABOUT, 'a': dict(F32, data_offsets=[8, 0])}, bytes(8)),
    head({**ABOUT, 'a': F32, 'b': F32}, bytes(8)),
    head({**ABOUT, 'a': dict(F32, data_offsets=[0, 2**60])}, bytes(8)),
    head({**ABOUT, 'a': dict(F32, dtype='F1')}, bytes(8)),
    head({'__metadata__': {'recipe': '{"__class__": "os.system"}'}}),
    head({'__metadata__': {'recipe': '['*5000}}),
    head({'__metadata__': {'recipe': 3}}), head(ABOUT)],
    ids=lambda c: f'{len(c)} bytes')
def test_hostile_safetensors(tmp_path, content):
    (tmp_path/'weights.safetensors').write_bytes(content)
    with pytest.raises(SpotError) as e: load_weights(tmp_path)
    assert len(str(e.value).splitlines()) == 1


def test_a_recipe_that_asks_for_all_memory(tmp_path):
    "4.4 TB of weights are announced, none is there: refused before any memory is taken."
    greedy = Recipe.released(size=1024, layers=2, width=4., ae_width=4.)
    save_file({'a': torch.zeros(1)}, tmp_path/'weights.safetensors', {'recipe': json.dumps(asdict(greedy))})
    start = time.perf_counter()
    with pytest.raises(WeightsError, match='another architecture'): load_weights(tmp_path)
    assert time.perf_counter() - start < 20


def test_an_archive_that_is_not_the_right_one_is_not_unpacked(tmp_path, monkeypatch):
    root = tmp_path/'data'
    root.mkdir()
    with tarfile.open(root/STL10.filename, 'w:gz') as tar:
        for name in '../evil', str(tmp_path/'evil'), 'stl10_binary/train_X.bin':
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b'boom'))
    def offline(*args, **kw): raise urllib.error.URLError('offline')
    monkeypatch.setattr('urllib.request.urlopen', offline)
    with pytest.raises(ImagesError, match='could not be downloaded'): stl10(root, download=True)
    assert sorted(f.name for f in tmp_path.rglob('*')) == ['data', STL10.filename]


class Tags(HTMLParser):
    "Names and attributes of all tags."
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)
    def handle_starttag(self, tag, attrs): self.found.append((tag, tuple(k for k, _ in attrs)))


def test_a_report_escapes_its_values(demo_run, tmp_path):
    results, players = json.loads((demo_run/'results.json').read_text()), load_weights(demo_run)
    def log(name):
        with (demo_run/f'{name}.csv').open() as f:
            return [{k: float(v) for k, v in r.items()} for r in csv.DictReader(f)]
    logs, images = {name: log(name) for name in ('auto', 'game')}, toy_images(8, 32, cache=False).images
    def page(name):
        data = dict(results['data'], name=name, fingerprint=name)
        renamed = dict(results, data=data, device=name, commit=name, versions=dict(results['versions'], torch=name))
        write_report(tmp_path/'report.html', renamed, players, images, logs)
        return (tmp_path/'report.html').read_text()
    plain, hostile = page('photos'), page('"><script>alert(1)</script><img src=x onerror=alert(1)>')
    assert Tags(plain).found == Tags(hostile).found and '<script>alert' not in hostile


def test_a_game_escapes_its_data():
    "What stands in a script element ends neither the element nor the JSON."
    hostile = '</script><script>alert(1)</script>'
    page = render(dict(page='<script type="application/json">{{ x|tojson }}</script>'), x=hostile)
    assert Tags(page).found == [('script', ('type',))]
    assert json.loads(page[page.index('>') + 1:-len('</script>')]) == hostile


def test_nothing_asks_the_network(tmp_path, monkeypatch):
    def connect(self, address): raise AssertionError(f'a connection to {address}')
    monkeypatch.setattr(socket.socket, 'connect', connect)
    monkeypatch.setattr(socket, 'getaddrinfo', connect)
    run, images = tmp_path/'run', toy_images(16, 32, cache=False).images
    photos = write_images(tmp_path/'photos', classes=('a', 'b'), images=images)
    for line in (f'pretrain --images {photos} --out {run} --size 32 --width 0.05 --batch 8 --steps 2',
                 f'probe --weights {run} --images {photos} --labels 10 --seeds 1 --epochs 1',
                 f'spot --weights {run} --out {tmp_path}/spotted {photos}/a/00.png'):
        main([*line.split(), '--device', 'cpu'])


def test_the_library_has_no_way_to_run_what_it_reads(root):
    for file in (root/'spot_artifacts').rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not {'pickle', 'dill', 'marshal', 'shelve'} & {a.name for a in node.names}, file
            if not isinstance(node, ast.Call): continue
            name, words = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert name not in ('eval', 'exec', 'os.system'), (file, name)
            assert words.get('shell') != 'True' and words.get('allow_pickle') != 'True', (file, name)
            if name == 'torch.load': assert words.get('weights_only') == 'True', file
