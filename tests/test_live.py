"The page on which you damage a picture, made by the command line from a run in miniature, in a browser."
import base64, io, re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from spot_artifacts.cli import main
from spot_artifacts.data import to_float
from spot_artifacts.live import answers, compact, graphs
from spot_artifacts.runs import load_weights

pytest.importorskip('onnxscript')
ort = pytest.importorskip('onnxruntime')
SWITCHES = [{}, dict(repair=0.), dict(gate=0.), dict(times=2), dict(repair=0., gate=0., times=2)]
ANSWER = 'replica', 'damaged', 'repaired', 'real', 'fake', 'map'


@pytest.fixture(scope='module')
def players(demo_run): return load_weights(demo_run)


@pytest.fixture(scope='module')
def models(players): return graphs(players)


@pytest.fixture(scope='module')
def file(demo_run, tmp_path_factory):
    out = tmp_path_factory.mktemp('live')/'live.html'
    main(['live', '--run', str(demo_run), '--out', str(out)])
    return out


@pytest.fixture(scope='module')
def opened(file, browser):
    "The page from the disk, on a phone in the dark, with its errors and requests."
    page = browser.new_page(viewport={'width': 390, 'height': 800}, color_scheme='dark')
    page.errors, page.requested = [], []
    page.on('console', lambda message: page.errors.append(message.text))
    page.on('pageerror', lambda error: page.errors.append(str(error)))
    page.on('request', lambda request: page.requested.append(request.url))
    page.goto(file.as_uri(), wait_until='load')
    answered(page)
    yield page
    page.close()


@pytest.fixture
def page(opened):
    "The page as at its start, with nothing erased."
    for name, on in dict(repair=True, gate=True, twice=False).items(): opened.set_checked(f'#{name}', on)
    opened.locator('#pictures button').first.click()
    opened.click('#clear')
    answered(opened)
    return opened


def answered(page):
    page.evaluate('new Promise(resolve => setTimeout(resolve, 50))')
    page.wait_for_selector('#outcome[aria-busy=false]', timeout=60_000)


def erased(page): return page.eval_on_selector_all('#grid button', 'all => all.map(b => b.ariaPressed == "true")')


def offered(page, k=0):
    "A picture that the page offers (1, 3, S, S) in [-1, 1]."
    src = page.locator('#pictures img').nth(k).get_attribute('src')
    return to_float(pil_to_tensor(Image.open(io.BytesIO(base64.b64decode(src.split(',')[1]))))[None])


def by_onnx(models, x, mask, repair=1., gate=1., times=1):
    "`answers` by ONNX Runtime."
    run = {name: ort.InferenceSession(m.SerializeToString()).run for name, m in models.items()}
    switches = dict(mask=mask.numpy(), repair=np.float32([repair]), gate=np.float32([gate]))
    def decode(image): return run['decode'](None, dict(phi=run['encode'](None, dict(image=image))[0], **switches))
    replica, damaged, repaired = decode(x.numpy())
    if times > 1: repaired = decode(repaired)[2]
    (real, _), (fake, where) = (run['judge'](None, dict(image=seen)) for seen in (replica, repaired))
    return dict(zip(ANSWER, (replica, damaged, repaired, real, fake, where)))


def same(found, wanted, atol):
    for k in ANSWER: np.testing.assert_allclose(np.ravel(found[k]), np.ravel(wanted[k]), rtol=0, atol=atol, err_msg=k)


@pytest.mark.parametrize('switches', SWITCHES, ids=str)
def test_graphs_compute_what_pytorch_does(players, models, switches):
    g = torch.Generator().manual_seed(0)
    for drop_rate in 0, .5, 1:
        x = torch.rand(1, 3, 32, 32, generator=g)*2 - 1
        mask = (torch.rand(1, 1, 8, 8, generator=g) >= drop_rate).float()
        same(by_onnx(models, x, mask, **switches), answers(players, x, mask, **switches), 1e-4)


def pages_answer(page, switches):
    "What the page shows under these switches, set as a reader sets them."
    wanted = dict(repair=1., gate=1., times=1) | switches
    for name, on in dict(repair=wanted['repair'], gate=wanted['gate'], twice=wanted['times'] - 1).items():
        if page.is_checked(f'#{name}') != bool(on):
            page.focus(f'#{name}')
            page.keyboard.press('Space')
    answered(page)
    return page.evaluate('Object.fromEntries(Object.entries(shown).map(([k, v]) => [k, v.length ? [...v] : v]))')


def test_the_keyboard_erases_and_the_answers_are_pytorchs(page, players, models):
    "The engine may add 1e-4, and weights of two bytes 1e-2."
    page.focus('#theta')
    page.keyboard.press('Shift+Tab')
    assert page.evaluate('document.activeElement.parentElement.id') == 'grid', 'the grid is one stop'
    moves = ['ArrowUp', 'ArrowLeft']*8      # to the corner, wherever the last test was, and not beyond
    for key in [*moves, 'Space', 'ArrowRight', 'ArrowDown', 'Enter', 'ArrowDown', 'Space', 'Space']:
        page.keyboard.press(key)
    assert page.evaluate('document.activeElement.ariaLabel') == 'row 3, column 2, erased'
    gone = erased(page)
    assert [k for k, e in enumerate(gone) if e] == [0, 9]
    x, mask = offered(page), 1 - torch.tensor(gone).float().view(1, 1, 8, 8)
    small = {name: compact(model) for name, model in models.items()}
    for switches in SWITCHES:
        found = pages_answer(page, switches)
        same(found, by_onnx(small, x, mask, **switches), 1e-4)
        same(found, answers(players, x, mask, **switches), 1e-2)
        verdict = page.inner_text('#verdict')
        said = 'real' if found['fake'] > .5 else 'corrupt'
        assert f' {said}, {100*max(found["fake"], 1 - found["fake"]):.0f} % sure, and the replica ' in verdict
        assert 'You erased 2 of 64 entries' in verdict


def test_it_is_heard(page):
    assert page.get_attribute('#verdict', 'aria-live') == 'polite' and page.get_attribute('#problem', 'role') == 'alert'
    assert 'Nothing is erased yet' in page.inner_text('#verdict')
    named = page.eval_on_selector_all('canvas', 'all => all.map(c => c.getAttribute("aria-label"))')
    assert len(named) == 5 and all(named)
    assert page.eval_on_selector_all('#pictures button, #grid button', 'all => all.every(b => b.ariaPressed)')
    assert page.eval_on_selector_all('input', 'all => all.every(i => i.labels.length == 1)')


def centre(page, k):
    box = page.locator('#grid button').nth(k).bounding_box()
    return box['x'] + box['width']/2, box['y'] + box['height']/2


def stroke(page, *entries):
    "A pointer that is pressed on the first entry, drawn over the others, and lifted."
    page.locator('#grid').scroll_into_view_if_needed()
    page.mouse.move(*centre(page, entries[0]))
    page.mouse.down()
    for k in entries[1:]: page.mouse.move(*centre(page, k), steps=4)
    page.mouse.up()


def test_a_pointer_draws(page):
    "The first entry of a stroke decides whether it erases or restores."
    stroke(page, 9, 11)
    stroke(page, 30)
    assert [k for k, e in enumerate(erased(page)) if e] == [9, 10, 11, 30]
    stroke(page, 11, 14)
    stroke(page, 30)
    assert [k for k, e in enumerate(erased(page)) if e] == [9, 10]
    answered(page)
    assert page.evaluate('shown.kept.indexOf(0)') == 9


def test_random_masks_grow_with_theta(page):
    page.click('#random')
    masks = []
    for theta in 20, 50, 80:
        page.fill('#theta', str(theta))
        masks.append(np.array(erased(page)))
        assert page.inner_text('#share') == f'{theta} %'
    assert all((a <= b).all() for a, b in zip(masks, masks[1:])) and 10 < masks[1].sum() < 54
    page.click('#clear')
    assert not any(erased(page))


def png(image, **how):
    out = io.BytesIO()
    image.save(out, 'png', **how)
    return out.getvalue()


def offer(page, name, data):
    page.set_input_files('#file', dict(name=name, mimeType='image/png', buffer=data))
    page.wait_for_timeout(50)
    answered(page)


def test_a_photograph_of_ones_own(page):
    "Its centred square, and white where it is transparent; chosen or dropped."
    photo = Image.new('RGB', (300, 100), 'red')
    photo.paste((0, 128, 0), (100, 0, 200, 100))
    offer(page, 'wide.png', png(photo))
    assert page.inner_text('#problem') == '' and page.locator('#pictures [aria-pressed=true]').count() == 0
    pixels = np.array(page.evaluate('[...pixels]')).reshape(3, -1)
    np.testing.assert_allclose(pixels, np.array([[-1], [128/127.5 - 1], [-1]]).repeat(32*32, 1), atol=1e-6)
    glass = base64.b64encode(png(Image.new('RGBA', (64, 64), (9, 9, 9, 0)))).decode()
    page.evaluate("""async text => {
        const dropped = new DataTransfer(), bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0))
        dropped.items.add(new File([bytes], 'glass.png', {type: 'image/png'}))
        document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: dropped, bubbles: true, cancelable: true}))
    }""", glass)
    page.wait_for_timeout(50)
    answered(page)
    assert page.evaluate('pixels.every(v => v == 1)')


@pytest.mark.parametrize('name, data, says', [
    ('text.jpg', b'not a picture', 'text.jpg cannot be opened as a picture.'),
    ('empty.png', b'', 'empty.png cannot be opened as a picture.'),
    ('half.png', png(Image.effect_noise((200, 200), 50))[:9000], 'half.png cannot be opened as a picture.'),
    ('giant.png', png(Image.new('1', (10_000, 10_000))), 'giant.png has 100 million pixels. Make it smaller first')],
    ids=['text', 'empty', 'half', 'giant'])
def test_a_file_that_cannot_be_used_gets_a_sentence(page, name, data, says):
    before = page.evaluate('[...pixels]')
    offer(page, name, data)
    assert page.inner_text('#problem').startswith(says)
    assert page.evaluate('[...pixels]') == before
    page.locator('#pictures button').nth(1).click()
    page.wait_for_selector('#problem:empty', state='attached')


@pytest.mark.parametrize('scheme', ['dark', 'light'])
@pytest.mark.parametrize('width', [390, 1280])
def test_fits_and_can_be_read(page, width, scheme):
    page.set_viewport_size(dict(width=width, height=800))
    page.emulate_media(color_scheme=scheme)
    fits = 'all => all.every(e => e.scrollWidth <= e.clientWidth)'
    assert page.eval_on_selector_all('html, main, section, #grid', fits)
    def brightness(css, of):
        colour = page.eval_on_selector(css, f'e => getComputedStyle(e).{of}')
        return np.mean([float(v) for v in re.findall(r'[\d.]+', colour)[:3]])
    papers = [brightness(css, 'backgroundColor') for css in ('body', '#verdict', '#random')]
    inks = [brightness(css, 'color') for css in ('body', '#verdict', '#random')]
    assert (min(papers) > 230 and max(inks) < 100) if scheme == 'light' else (max(papers) < 60 and min(inks) > 180)


def test_one_small_file_that_asks_nobody(opened, file):
    assert file.stat().st_size < 15e6 and opened.errors == []
    assert [url for url in opened.requested if not url.startswith(('data:', 'blob:'))] == [file.as_uri()]
