"The page on which you play against C, for a run in miniature."
import json, re

import numpy as np
import pytest
from pages import read, until

from spot_artifacts.core import SpotError
from spot_artifacts.game_page import rounds, write_game
from spot_artifacts.runs import load_weights
from spot_artifacts.toy import toy_images


@pytest.fixture(scope='module')
def players(demo_run): return load_weights(demo_run)


@pytest.fixture(scope='module')
def held_out(): return toy_images(12, 32, seed=1)


def test_the_committed_game_is_one_small_file(root):
    page = (root/'nbs/game/index.html').read_text(encoding='utf-8')
    assert len(page) < 2_000_000 and len(list((root/'nbs/game').iterdir())) == 1
    pool = json.loads(re.search(r'id="pool" type="application/json">(.*?)</script>', page)[1])
    assert len(pool) == 25 and all(r[ask].keys() == {'30', '50', '70'} for r in pool for ask in ('whether', 'where'))
    assert 'href="../index.html"' in page and 'creativecommons.org/licenses/by/2.0' in page


def test_too_few_or_wrong_images_are_named(players, held_out, tmp_path):
    few, big = held_out.images[:9], toy_images(20, 64, cache=False).images
    with pytest.raises(SpotError, match='too few for a game of 10'): write_game(players, few, tmp_path)
    with pytest.raises(SpotError, match='give images of 32 px'): write_game(players, big, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=[1280, 390], ids=lambda width: f'{width}px')
def page(request, players, held_out, browser, tmp_path):
    "The page at a desktop's and at a phone's width, with its errors and requests."
    write_game(players, held_out.images, tmp_path)
    page = browser.new_page(viewport={'width': request.param, 'height': 800})
    page.add_init_script('delete self.WebAssembly; delete self.DecompressionStream')
    page.errors, page.requested, page.uri = [], [], (tmp_path/'index.html').as_uri()
    page.on('console', lambda message: page.errors.append(message.text) if message.type == 'error' else None)
    page.on('pageerror', lambda error: page.errors.append(str(error)))
    page.on('request', lambda request: page.requested.append(request.url))
    page.goto(page.uri, wait_until='load')
    yield page
    assert page.errors == [] and [url for url in page.requested if not url.startswith('data:')] == [page.uri]
    page.close()


def asked(page):
    "Waits for the next picture, and returns what the page knows of it."
    page.wait_for_selector('#turn[aria-busy=false]')
    until(page, 'round && !round.over')
    return read(page, 'round')


def known(r, pool, ask, share):
    "The picture of the pool that is shown: number, what is known of it."
    for k, own in enumerate(pool):
        is_ = own[ask][share] if r['corrupt'] else own['real']
        if r['map'] == is_['map'] and r['p'] == is_['p']: return k, is_
    raise AssertionError('shown, and not in the pool')


def test_a_game_is_played_to_its_end(page, players, held_out):
    "Half by keys, half by buttons; right answers, except for the first ones. Each gets C's answer."
    pool, seen, c = rounds(players, held_out.images), [], 0
    for n in range(10):
        r = asked(page)
        k, is_ = known(r, pool, 'whether', '60')
        seen.append((k, r['corrupt']))
        assert ''.join(str(int(v)) for v in r['kept']) == is_['kept'] and ('0' in is_['kept']) == r['corrupt']
        assert page.inner_text('#task') == f'{n + 1} of 10: real or corrupt?' and not page.is_visible('#solution')
        said = r['corrupt'] ^ (n < 3)
        if n % 2: page.keyboard.press('c' if said else 'r')
        else: page.click('#corrupt' if said else '#real')
        c += (r['p'] <= .5) == r['corrupt']
        told = page.inner_text('#said')
        assert told.startswith(f'{"Wrong" if n < 3 else "Right"}: it is {"corrupt" if r["corrupt"] else "real"}')
        assert page.is_visible('#places') == r['corrupt'] and page.is_visible('#before')
        assert page.inner_text('#score') == f'Right so far: you {max(0, n - 2)} and C {c} of {n + 1}.'
        page.keyboard.press('r')                    # too late
        assert page.inner_text('#said') == told
        assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
        if n < 9: page.keyboard.press('n' if n % 2 else 'Enter')
    assert f'you were right about 7, C about {c} of 10 pictures.' in told
    assert page.inner_text('#next').startswith('Play again')
    assert len({k for k, _ in seen}) == 10, 'an image came twice'
    page.click('#next')
    asked(page)
    assert page.inner_text('#task').startswith('1 of 10') and page.inner_text('#score') == 'You play against C.'


def test_levels_and_where(page, players, held_out):
    "The level is the share that was erased; marks are counted against what was, and C marks as many."
    pool = rounds(players, held_out.images)
    assert page.eval_on_selector_all('#level option', 'all => all.map(o => o.value)') == ['70', '60', '50', '30']
    assert page.input_value('#level') == '60', 'the share in training'
    page.select_option('#level', '70')
    until(page, 'round && round.kept')
    r = asked(page)
    known(r, pool, 'whether', '70')
    page.check('#where')
    page.wait_for_selector('#marks button')
    until(page, 'game.where && round.corrupt && !document.querySelector("#marks").hidden')
    r = asked(page)
    _, is_ = known(r, pool, 'where', '30')
    gone = 1 - np.array(r['kept'])
    assert r['corrupt'] and gone.sum() == 16 and is_['kept'].count('0') == 16
    page.keyboard.press('d')
    assert page.inner_text('#said') == 'Mark at least one square first.'
    for k in 0, 9, 63: page.locator('#marks button').nth(k).click()
    page.keyboard.press('d')
    you, theirs = int(gone[[0, 9, 63]].sum()), int(gone[np.argsort(r['map'], kind='stable')[-3:]].sum())
    said = page.inner_text('#said')
    assert said.startswith(f'{you} of your 3 marks {"is" if you == 1 else "are"} right, and {theirs} of C\'s. ')
    assert '16 of 64 entries were erased' in said


def test_it_is_heard(page):
    asked(page)
    named = page.eval_on_selector_all('canvas', 'all => all.map(c => c.getAttribute("aria-label"))')
    assert len(named) == 3 and all(named) and page.get_attribute('#said', 'aria-live') == 'polite'
    assert page.eval_on_selector_all('input, select', 'all => all.every(i => i.labels.length == 1)')
