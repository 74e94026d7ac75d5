"""Whatever comes in: recipes, command lines and image files that nobody would write.

Each works or ends in one line; none prints a traceback, hangs or fills the memory."""
import contextlib, io, json, os, resource, socket, subprocess, sys, tempfile, zlib
from dataclasses import fields
from pathlib import Path

import numpy as np, pytest, torch
from fastcore.foundation import working_directory
from hypothesis import HealthCheck, given, settings, strategies as st
from images import write_images
from PIL import Image

from spot_artifacts import folders
from spot_artifacts.cli import main
from spot_artifacts.core import ImagesError, RecipeError, SpotError
from spot_artifacts.folders import folder_images, list_images, load_image
from spot_artifacts.toy import toy_images
from spot_artifacts.pretraining import pretrain
from spot_artifacts.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
quick = settings(deadline=None, max_examples=25, derandomize=True, database=None,
                 suppress_health_check=list(HealthCheck))
many = settings(quick, max_examples=150)


# ---- recipes

def values(f):
    "What a field may be set to: mostly in its range, with small networks, sometimes anything."
    m, low = f.metadata, dict(size=16, layers=2, width=.05, ae_width=.05, batch=2, ae_batch=2)
    high = dict(size=40, layers=3, width=.15, ae_width=.15, batch=9, ae_batch=9)
    if isinstance(f.default, bool): good = st.booleans()
    elif m['among']: good = st.sampled_from(m['among'])
    else:
        lo, hi = low.get(f.name, m['lo']), high.get(f.name, m['hi'])
        one = st.integers(lo, hi) if f.type in (int, int|None) else st.floats(lo, hi)
        good = st.tuples(one, one).map(sorted) if isinstance(f.default, tuple) else one
    if f.default is None: good = good | st.none()
    return good


numbers = st.booleans() | st.integers() | st.floats()
anything = st.none() | numbers | st.text(max_size=5) | st.lists(st.floats(), max_size=3)
choices = {f.name: values(f) for f in fields(Recipe) if f.name not in ('epochs', 'ae_epochs')}
small = dict(size=32, layers=2, width=.05, ae_width=.05, batch=8, ae_batch=8, lrn=False)


@many
@given(st.dictionaries(st.sampled_from([*choices, 'epochs', 'dropp_rate', '']), anything, min_size=1, max_size=3))
def test_any_value_makes_a_recipe_or_one_line(changes):
    try: recipe = Recipe.from_dict({**small, **json.loads(json.dumps(changes))})
    except RecipeError as e: assert len(str(e).splitlines()) == 1 and len(str(e)) < 300
    else: assert Recipe.from_dict(json.loads(json.dumps(recipe.__dict__))) == recipe


@pytest.fixture(scope='module')
def data(): return {size: toy_images(12, size, seed=1, cache=False) for size in range(16, 41)}


@quick
@given(st.fixed_dictionaries({}, optional=choices))
def test_a_recipe_plays_two_steps_or_says_why_not(data, changes):
    try: recipe = Recipe.from_dict({**small, **changes, 'ae_epochs': .01, 'epochs': .01})
    except RecipeError: return
    with tempfile.TemporaryDirectory() as tmp:
        try: pretrain(data[recipe.size], recipe, Path(tmp)/'run', progress=False)
        except SpotError as e: assert len(str(e).splitlines()) == 1 and len(str(e)) < 300


# ---- command lines

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    images = toy_images(12, 36, seed=1, cache=False).images
    return write_images(tmp_path_factory.mktemp('photos'), classes=('a', 'b'), images=images)


@pytest.fixture(scope='module')
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'run'
    main(f'pretrain --images {photos} --out {out} --size 32 --width 0.05 --batch 8 --steps 2 --device cpu'.split())
    return out


words = st.sampled_from([
    '0', '-1', '1', '2', '12', '33', '0.05', 'nan', 'inf', '1e99', '9'*30, '', ' ', 'cpu', 'cuda', 'paper',
    'x\ny', '\u202eé', '--', '-', '\x00', '\udcff', 'a'*300, '.', '/dev/null'])
commands = dict(
    pretrain=['--images', '--out', '--recipe', '--size', '--width', '--batch', '--epochs', '--seed', '--resume',
              '--strict', '--device'],
    probe=['--weights', '--images', '--test', '--labels', '--seeds', '--epochs', '--out', '--device'],
    spot=['--weights', '--out', '--device'],
    info=['--recipe', '--weights', '--images'])
sensible = dict(
    pretrain='--images PHOTOS --out OUT --size 32 --width 0.05 --batch 8 --steps 2 --device cpu',
    probe='--weights RUN --images PHOTOS --labels 10 --seeds 1 --epochs 1 --out OUT --device cpu',
    spot='--weights RUN --out OUT --device cpu PHOTOS/a/00.png',
    info='')


@st.composite
def lines(draw):
    "A command with some options that make sense, and one or two that don't."
    command = draw(st.sampled_from(sorted(commands)))
    line = sensible[command].split()
    for change in draw(st.lists(st.sampled_from(['value', 'option', 'word']), max_size=2)):
        k = draw(st.integers(0, len(line)))
        if change == 'value' and k < len(line): line[k] = draw(words)
        if change == 'option': line += [draw(st.sampled_from(commands[command])), draw(words)]
        if change == 'word': line.insert(k, draw(words))
    return [command, *line]


def outcome(argv):
    "Exit status and the text on stderr; anything but SystemExit fails the test."
    out, err = io.TextIOWrapper(io.BytesIO(), 'utf-8'), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main(argv)
        except SystemExit as e: return e.code or 0, err.getvalue()
    return 0, err.getvalue()


@settings(quick, max_examples=60)
@given(lines())
def test_a_command_line_works_or_ends_in_one_line(photos, run, line):
    with tempfile.TemporaryDirectory() as tmp, working_directory(tmp):
        line = [w.replace('PHOTOS', str(photos)).replace('RUN', str(run)).replace('OUT', f'{tmp}/out') for w in line]
        status, said = outcome(line)
    assert status in (0, 1, 2), (line, said)
    assert status == 0 or said.splitlines()[-1].startswith('spot-artifacts: '), (line, said)


# ---- images

def encoded(fmt, mode='RGB', size=(40, 36), **kw):
    "The bytes of a noisy image."
    pixels, out = Image.effect_noise(size, 80), io.BytesIO()
    if mode == 'I;16': image = Image.fromarray(np.asarray(pixels).astype(np.uint16)*257)
    else: image = pixels.convert(mode)
    image.save(out, fmt, **kw)
    return out.getvalue()


FRAMES = dict(save_all=True, append_images=[Image.effect_noise((40, 36), 9)]*3)
FILES = {
    'jpeg': encoded('JPEG'), 'cmyk': encoded('JPEG', 'CMYK'), 'progressive': encoded('JPEG', progressive=True),
    'png': encoded('PNG'), '16-bit': encoded('PNG', 'I;16'), 'alpha': encoded('PNG', 'RGBA'),
    'palette': encoded('PNG', 'P'), 'bits': encoded('PNG', '1'), 'webp': encoded('WEBP'), 'bmp': encoded('BMP'),
    'animated': encoded('GIF', 'P', **FRAMES), 'apng': encoded('PNG', **FRAMES)}


def decoded(content, suffix='.png', size=32):
    "The image in these bytes, or the line that says why there is none."
    with tempfile.TemporaryDirectory() as tmp:
        file = Path(tmp)/f'x{suffix}'
        file.write_bytes(content)
        try: image = load_image(file, size)
        except ImagesError as e:
            assert len(str(e).splitlines()) == 1, e
            return str(e)
    assert image.shape == (3, size, size) and image.dtype == torch.uint8
    return image


@pytest.mark.parametrize('kind', FILES)
@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_any_format_whatever_the_name_says(kind, suffix):
    assert not isinstance(decoded(FILES[kind], suffix), str)


def test_16_bits_become_8():
    wide = np.linspace(0, 65535, 32*32).reshape(32, 32).astype(np.uint16)
    out = io.BytesIO()
    Image.fromarray(wide).save(out, 'PNG')
    assert (decoded(out.getvalue())[0].int() - torch.from_numpy(wide >> 8).int()).abs().max() == 0


@many
@given(st.sampled_from(sorted(FILES)),
       st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=4),
       st.floats(.01, 1))
def test_broken_bytes(kind, changes, share):
    content = bytearray(FILES[kind])
    for where, what in changes:
        i = int(where*len(content))
        content[i:i + len(what)] = what
    decoded(bytes(content[:int(share*len(content))]))


HEADS = [b'', b'\xff\xd8\xff\xe0', b'\x89PNG\r\n\x1a\n', b'RIFF\x00\x00\x00\x00WEBP', b'BM',
         b'GIF89a', b'%!PS', b'<svg>', b'PK\x03\x04']


@many
@given(st.binary(max_size=64), st.sampled_from(HEADS))
def test_any_bytes(content, head): assert isinstance(decoded(head + content), str)


def png(width, height, body, chunks=b'', depth=8, colour=2):
    "A PNG file of any claimed size."
    chunk = lambda kind, data: len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big')
    head = width.to_bytes(4, 'big') + height.to_bytes(4, 'big') + bytes([depth, colour, 0, 0, 0])
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunks + chunk(b'IDAT', body) + chunk(b'IEND', b'')


def test_bombs(tmp_path):
    """A claim of 50,000 x 50,000 pixels, a text that unpacks to 300 MB, images just below the limit.

    All of them fit into 5 GB of address space."""
    text, big, squeeze = b'k\x00\x00' + zlib.compress(bytes(3*10**8), 1), bytes(9000*4 + 1), zlib.compressobj(1)
    large = png(9000, 9000, b''.join(squeeze.compress(big) for _ in range(9000)) + squeeze.flush(), colour=6)
    chunk = len(text).to_bytes(4, 'big') + b'zTXt' + text + zlib.crc32(b'zTXt' + text).to_bytes(4, 'big')
    files = dict(claim=png(50_000, 50_000, zlib.compress(bytes(1000))), large1=large, large2=large, large3=large,
                 text=png(40, 40, zlib.compress(bytes(40*121)), chunk))
    for name, content in files.items(): (tmp_path/f'{name}.png').write_bytes(content)
    code = f"""import json, resource, spot_artifacts.folders as d
resource.setrlimit(resource.RLIMIT_AS, (5*2**30, 5*2**30))
s = d.folder_images({str(tmp_path)!r}, 32, progress=False)
print(json.dumps(dict(images=len(s), skipped=s.skipped)))"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found['images'] == 3 and [f for f, _ in found['skipped']] == ['claim.png', 'text.png']
    assert 'million pixels' in found['skipped'][0][1]


# ---- files

NAMES = ['a b.png', ' .png', 'ünï ☃.png', 'two\nlines.png', 'tab\t.png', '"quoted\'.png', '<b onclick=alert(1)>.png',
         '--out.png', '%s{}.png', 'RTL\u202e.png', '\udcff\udcfe.png', 'x'*240 + '.png']


@pytest.fixture
def odd(tmp_path):
    "A folder of images with odd names, in two classes with odd names."
    images = toy_images(12, 36, seed=1, cache=False).images.permute(0, 2, 3, 1).numpy()
    for i, (name, image) in enumerate(zip(NAMES, images)):
        folder = tmp_path/'odd'/['a "class"\n<b>', '\udcfeé'][i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder/name).open('wb') as f: Image.fromarray(image).save(f, 'PNG')
    return tmp_path/'odd'


def test_odd_names(odd, run, tmp_path):
    (odd/'a\nb.png').write_bytes(b'not an image')
    words = '--size 32 --width 0.05 --batch 8 --steps 2 --device cpu'.split()
    assert outcome(['pretrain', '--images', str(odd), '--out', str(tmp_path/'run\n<i>'), *words])[0] == 0
    words = '--labels 10 --seeds 1 --epochs 1 --device cpu --out'.split()
    status, said = outcome(['probe', '--weights', str(run), '--images', str(odd), *words, str(tmp_path/'p.json')])
    assert status == 0 and said.count('\n') == 1 and 'a\\nb.png' in said, said
    for file in sorted(odd.rglob('*.png'))[1:]:
        status, said = outcome(['spot', '--weights', str(run), '--out', str(tmp_path/'spotted'), '--device', 'cpu',
                                '--', str(file)])
        assert (status == 0) == (file.parent != odd), (file, said)


def test_links_pipes_and_folders_with_the_name_of_an_image(odd):
    there = len(list_images(odd))
    (odd/'broken.png').symlink_to('nowhere')
    (odd/'loop.png').symlink_to('loop.png')
    (odd/'round').symlink_to(odd)
    (odd/'folder.png').mkdir()
    (odd/'device.png').symlink_to('/dev/zero')
    os.mkfifo(odd/'pipe.png')
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(odd/'socket.png')[-100:]) if len(str(odd)) < 80 else None
        found = folder_images(odd, 32, progress=False)
    assert len(found) == there and {f for f, _ in found.skipped} == {'broken.png', 'loop.png'}


def test_files_that_disappear_or_cannot_be_read(odd, monkeypatch):
    files, opened = list_images(odd), folders.Image.open
    def refuse(file, *args, **kw):
        if file == files[4]: raise PermissionError(13, 'Permission denied', str(file))
        return opened(file, *args, **kw)
    monkeypatch.setattr(folders.Image, 'open', refuse)
    monkeypatch.setattr(folders, 'list_images', lambda path: files)
    files[2].unlink()
    found = folder_images(odd, 32, progress=False)
    assert len(found) == len(files) - 2
    assert [why for _, why in found.skipped] == ['No such file or directory', 'Permission denied']


@pytest.mark.parametrize('kilobytes', [1, 400])
def test_files_that_cannot_grow(photos, tmp_path, kilobytes):
    """As on a full disk, by the system's own limit.

    Wherever the run is cut off, it says so in one line, and goes on when there is room."""
    words = f'--images {photos} --out {tmp_path}/run --size 32 --width 0.05 --batch 8 --device cpu'.split()
    def limit(): resource.setrlimit(resource.RLIMIT_FSIZE, (1024*kilobytes, resource.RLIM_INFINITY))
    code = 'from spot_artifacts.cli import main; main()'
    done = subprocess.run([sys.executable, '-c', code, 'pretrain', *words, '--steps', '2'], preexec_fn=limit,
                          capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 1, done.stderr
    assert done.stderr.count('\n') == 1 and done.stderr.startswith('spot-artifacts: '), done.stderr
    assert not list((tmp_path/'run').glob('*.tmp')) and not (tmp_path/'run/weights.safetensors').exists()
    started = (tmp_path/'run/run.json').exists()
    assert outcome(['pretrain', *words, '--steps', '2', *['--resume']*started])[0] == 0
    assert (tmp_path/'run/weights.safetensors').exists()
