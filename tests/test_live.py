"The page on which you damage a picture and play, made by the command line from a run in miniature, in a browser."
import base64, io, re

import numpy as np
import pytest
import torch
from pages import read, until
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from spot_artifacts import live
from spot_artifacts.cli import main
from spot_artifacts.damage import draw_mask
from spot_artifacts.data import to_float
from spot_artifacts.live import answers, compact, graphs, write_live
from spot_artifacts.runs import load_weights
from spot_artifacts.toy import toy_images

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
    "The page with nothing erased."
    opened.click('#damagetab')
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
    return read(page, 'shown')


def test_the_keyboard_erases_and_the_answers_are_pytorchs(page, players, models):
    "The engine may add 1e-4, and weights of two bytes 1e-2."
    page.focus('#random')
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
        right = len({0, 9} & {*np.argsort(found['map'])[-2:]})
        assert 'Erased: 2 of 64 entries' in verdict and f'of the 2 that C suspects most, {right} w' in verdict


def test_it_opens_with_the_same_random_mask(opened, players):
    opened.reload(wait_until='load')
    answered(opened)
    mask = draw_mask(1, players.recipe.grid, players.recipe.drop_rate, torch.Generator().manual_seed(0))
    assert erased(opened) == (mask.flatten() == 0).tolist() and opened.url.endswith('#')


def test_float32_weights_give_pytorchs_answers(browser, players, tmp_path, monkeypatch):
    monkeypatch.setattr(live, 'compact', lambda model: model)
    write_live(players, toy_images(2, 32, cache=False).images, tmp_path/'live.html', home='../index.html')
    page = browser.new_page()
    page.goto((tmp_path/'live.html').as_uri(), wait_until='load')
    answered(page)
    mask = 1 - torch.tensor(erased(page)).float().view(1, 1, 8, 8)
    for switches in SWITCHES:
        same(pages_answer(page, switches), answers(players, offered(page), mask, **switches), 1e-4)
    assert page.locator('header a').get_attribute('href') == '../index.html'
    page.close()


def test_it_is_heard(page):
    assert page.get_attribute('#verdict', 'aria-live') == 'polite' and page.get_attribute('#problem', 'role') == 'alert'
    assert page.locator('[aria-busy] #verdict').count() == 0, 'what is busy is not read'
    assert 'Nothing is erased yet' in page.inner_text('#verdict')
    named = page.eval_on_selector_all('canvas', 'all => all.map(c => c.getAttribute("aria-label"))')
    assert len(named) == 8 and all(named) and page.get_attribute('#said', 'aria-live') == 'polite'
    assert page.eval_on_selector_all('#pictures button, .board button', 'all => all.every(b => b.ariaPressed)')
    assert page.eval_on_selector_all('input, select', 'all => all.every(i => i.labels.length == 1)')


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


def test_a_finger_draws(browser, file):
    "The page does not scroll under it."
    context = browser.new_context(viewport={'width': 390, 'height': 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(file.as_uri(), wait_until='load')
    answered(page)
    page.tap('#clear')
    page.locator('#picture').evaluate('board => board.scrollIntoView()')
    before, send = page.evaluate('scrollY'), context.new_cdp_session(page).send
    for kind, at in ('Start', [17]), ('Move', [18]), ('Move', [19]), ('Move', [27]), ('End', []):
        points = [dict(zip('xy', centre(page, k))) for k in at]
        send('Input.dispatchTouchEvent', dict(type=f'touch{kind}', touchPoints=points))
    page.tap('#grid button >> nth=33')
    assert [k for k, e in enumerate(erased(page)) if e] == [17, 18, 19, 27, 33]
    assert page.evaluate('scrollY') == before
    context.close()


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


def asked(page):
    "Waits for the next round, and returns it."
    page.wait_for_selector('#turn[aria-busy=false]', timeout=60_000)
    return read(page, 'round')


@pytest.fixture
def playing(opened):
    "The page at the start of a new game of real or corrupt."
    opened.click('#playtab')
    opened.check('#whether')
    opened.select_option('#level', '50')
    opened.evaluate('play()')
    asked(opened)
    return opened


def test_tabs_by_keyboard_and_by_address(page):
    page.focus('#damagetab')
    for key, panel, other in ('ArrowRight', 'play', 'damage'), ('ArrowLeft', 'damage', 'play'):
        tab = f'{panel}tab'
        page.keyboard.press(key)
        assert page.evaluate('document.activeElement.id') == tab
        assert page.is_visible(f'#{panel}') and not page.is_visible(f'#{other}')
        assert page.get_attribute(f'#{tab}', 'aria-selected') == 'true'
        assert page.url.endswith('#play') == (panel == 'play')
    page.evaluate('location.hash = "play"')
    page.wait_for_selector('#play:visible')


def test_a_game_is_played_with_the_keyboard(playing, models):
    "What is shown is the replica or the repaired picture, and C answers about what is shown."
    small, you, c, inputs = {name: compact(model) for name, model in models.items()}, 0, 0, set()
    for k in range(10):
        r = asked(playing)
        assert playing.inner_text('#task') == f'{k + 1} of 10: real or corrupt?' and playing.inner_text('#said') == ''
        if k < 3:
            x, mask = (torch.tensor(v).view(1, -1, n, n) for v, n in ((r['input'], 32), (r['kept'], 8)))
            wanted = by_onnx(small, x.float(), mask.float())
            shown, p = ('repaired', 'fake') if r['corrupt'] else ('replica', 'real')
            np.testing.assert_allclose(r['seen'], wanted[shown].ravel(), atol=1e-4)
            assert abs(r['p'] - wanted[p].item()) < 1e-4
        playing.keyboard.press('c' if k % 2 else 'r')
        right = r['corrupt'] == bool(k % 2)
        you, c = you + right, c + ((r['p'] <= .5) == r['corrupt'])
        said = playing.inner_text('#said')
        assert said.startswith(f'{"Right" if right else "Wrong"}: it is {"corrupt" if r["corrupt"] else "real"}')
        assert playing.inner_text('#score') == f'Right so far: you {you} and C {c} of {k + 1}.'
        assert playing.is_visible('#places') == r['corrupt'] and playing.is_visible('#before')
        inputs.add(round(sum(r['input']), 4))
        if k == 9: break
        playing.keyboard.press('Enter' if k % 2 else 'n')      # the button has the focus
        until(playing, 'document.activeElement.id == "task"')
    assert len(inputs) > 5, 'the same few pictures come again'
    assert f'you were right about {you}, C about {c} of 10 pictures.' in said
    playing.keyboard.press('n')
    until(playing, 'document.activeElement.id == "task"')
    assert playing.inner_text('#task').startswith('1 of 10') and playing.inner_text('#score') == 'You play against C.'


def test_the_damage_is_marked_and_c_marks_as_many(playing):
    playing.check('#where')
    r = asked(playing)
    gone = 1 - np.array(r['kept']).reshape(8, 8)
    rows, columns = gone.any(1).sum(), gone.any(0).sum()
    assert r['corrupt'] and (rows, columns) == (4, 4) and gone.sum() == 16, 'a square hole of about 30 %'
    playing.keyboard.press('d')
    assert playing.inner_text('#said') == 'Mark at least one square first.'
    playing.focus('#marks button[tabindex="0"]')
    for key in [*['ArrowUp', 'ArrowLeft']*8, 'Space', 'ArrowDown', 'Enter', 'ArrowDown', 'Space', 'Space', 'ArrowRight',
                'Space']: playing.keyboard.press(key)
    mine, theirs = [0, 8, 17], np.argsort(r['map'])[-3:]
    pressed = playing.eval_on_selector_all('#marks button', 'all => all.map(b => b.ariaPressed == "true")')
    assert [k for k, p in enumerate(pressed) if p] == mine
    playing.keyboard.press('d')
    you, c = (int(gone.ravel()[k].sum()) for k in (mine, theirs))
    said = playing.inner_text('#said')
    assert said.startswith(f'{you} of your 3 marks {"is" if you == 1 else "are"} right, and {c} of C\'s. ')
    assert '0.8: 16 of 64' in said and playing.inner_text('#score') == f'Right so far: you {you} and C {c} of 3 marks.'


def test_theta_is_the_level(playing):
    gone = []
    for level in '30', '70':
        playing.select_option('#level', level)
        gone.append(asked(playing)['kept'].count(0))
        playing.focus('#level')
        playing.keyboard.press('c')                 # letters choose in the list, and answer nothing
        assert playing.evaluate('round.over') is False
        asked(playing)
    assert gone[0] < 36 < gone[1]


def test_a_game_with_photographs_of_ones_own(playing):
    blue, text = png(Image.new('RGB', (200, 90), (0, 0, 255))), b'not a picture'
    files = [dict(name=name, mimeType='image/png', buffer=data) for name, data in (('b.png', blue), ('t.png', text))]
    playing.set_input_files('#files', files)
    playing.wait_for_selector('#trouble:not(:empty)')
    assert playing.inner_text('#trouble').startswith('t.png cannot be opened as a picture.')
    playing.set_input_files('#files', files[:1])
    playing.wait_for_selector('#trouble:empty', state='attached')
    until(playing, 'round.input[0] == -1 && round.input.at(-1) == 1')
    assert set(asked(playing)['input']) == {-1, 1}


def test_without_webassembly_it_says_so(browser, file):
    page = browser.new_page()
    page.add_init_script('delete self.WebAssembly')
    page.goto(f'{file.as_uri()}#play', wait_until='load')
    page.wait_for_selector('#old:visible')
    assert 'lacks WebAssembly' in page.inner_text('#old')
    assert page.inner_text('#task') == page.evaluate('$("verdict").textContent') == 'Nothing can be computed here.'
    page.close()


@pytest.mark.parametrize('scheme', ['dark', 'light'])
@pytest.mark.parametrize('width', [320, 390, 1280])
def test_fits_and_can_be_read(page, width, scheme):
    page.set_viewport_size(dict(width=width, height=800))
    page.emulate_media(color_scheme=scheme)
    fits = 'all => all.every(e => e.scrollWidth <= e.clientWidth)'
    assert page.eval_on_selector_all('html, main, section, #grid', fits)
    page.click('#playtab')
    assert page.eval_on_selector_all('html, main, section, #choices', fits)
    page.click('#damagetab')
    def brightness(css, of):
        colour = page.eval_on_selector(css, f'e => getComputedStyle(e).{of}')
        return np.mean([float(v) for v in re.findall(r'[\d.]+', colour)[:3]])
    papers = [brightness(css, 'backgroundColor') for css in ('body', '#verdict', '#random')]
    inks = [brightness(css, 'color') for css in ('body', '#verdict', '#random')]
    assert (min(papers) > 230 and max(inks) < 100) if scheme == 'light' else (max(papers) < 60 and min(inks) > 180)


@pytest.mark.parametrize('width, height, seen', [
    (1280, 800, 'grid verdict replica damaged repaired map repair gate twice random clear theta'),
    (390, 844, 'grid verdict repaired')])
def test_cause_and_effect_on_one_screen(browser, file, width, height, seen):
    "On a wide screen without scrolling; on a phone when the board has been scrolled to the top."
    page = browser.new_page(viewport=dict(width=width, height=height))
    page.goto(file.as_uri(), wait_until='load')
    answered(page)
    if width < 900: page.locator('#grid').evaluate('grid => grid.scrollIntoView()')
    for id in seen.split():
        box = page.locator(f'#{id}').bounding_box()
        assert box['y'] > -1 and box['y'] + box['height'] <= height, id
        at = f'document.elementFromPoint({box["x"] + 9}, {box["y"] + box["height"] - 9})'
        assert page.evaluate(f'$("{id}").contains({at})'), f'{id} is covered'
    page.close()


def test_one_small_file_that_asks_nobody(opened, file):
    assert file.stat().st_size < 15e6 and opened.errors == []
    assert {url for url in opened.requested if not url.startswith(('data:', 'blob:'))} == {file.as_uri()}
