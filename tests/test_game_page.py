"The page on which you play against C, for a run in miniature."
import json, re

import pytest

from spot_artifacts.core import SpotError
from spot_artifacts.game_page import rounds, write_game
from spot_artifacts.runs import load_weights
from spot_artifacts.toy import toy_images


@pytest.fixture(scope='module')
def players(demo_run): return load_weights(demo_run)


@pytest.fixture(scope='module')
def held_out(): return toy_images(40, 32, seed=1)


def test_the_committed_game_is_one_small_file(root):
    page = (root/'nbs/game/index.html').read_text(encoding='utf-8')
    assert len(page) < 2_000_000 and len(list((root/'nbs/game').iterdir())) == 1
    pool = json.loads(re.search(r'type="application/json">(.*?)</script>', page)[1])
    assert len(pool) == 60 and 20 < sum(r['corrupt'] for r in pool) < 40
    assert 'href="../index.html"' in page and 'creativecommons.org/licenses/by/2.0' in page


def test_too_few_or_wrong_images_are_named(players, held_out, tmp_path):
    few, big = held_out.images[:19], toy_images(20, 64, cache=False).images
    with pytest.raises(SpotError, match='too few for a game of 20'): write_game(players, few, tmp_path)
    with pytest.raises(SpotError, match='give images of 32 px'): write_game(players, big, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=[1280, 390], ids=lambda width: f'{width}px')
def game(request, players, held_out, browser, tmp_path):
    "The page at a desktop's and at a phone's width, with its errors and requests, and the rounds that it shows."
    write_game(players, held_out.images, tmp_path)
    page = browser.new_page(viewport={'width': request.param, 'height': 800})
    page.errors, page.requested, page.uri = [], [], (tmp_path/'index.html').as_uri()
    page.on('console', lambda message: page.errors.append(message.text) if message.type == 'error' else None)
    page.on('pageerror', lambda error: page.errors.append(str(error)))
    page.on('request', lambda request: page.requested.append(request.url))
    page.goto(page.uri, wait_until='load')
    by_picture = {r['shown']: r for r in rounds(players, held_out.images)}
    yield page, [by_picture[shown] for shown in page.evaluate('images.map(im => im.shown)')]
    page.close()


def play(page, found, wrong=3):
    "A whole game, half by keys, half by buttons; right answers, except for the first ones. Each gets its feedback."
    word = {True: 'corrupt', False: 'real'}
    for k, r in enumerate(found):
        assert page.inner_text('#count') == f'Image {k + 1} of 20' and not page.is_visible('#result')
        assert page.get_attribute('#shown', 'alt') == f'Image {k + 1}: real or corrupt?'
        assert not page.is_visible('#last')
        said, c_said = r['corrupt'] ^ (k < wrong), r['p'] <= .5
        if k % 2: page.keyboard.press('c' if said else 'r')
        else: page.click('#corrupt' if said else '#real')
        told = page.inner_text('#live')
        assert told.startswith(f'{k + 1}: {word[r["corrupt"]]}') and page.is_visible('#last')
        assert f'You said {word[said]}, {"wrong" if k < wrong else "right"}. C said {word[c_said]} (' in told
        if r['corrupt']:
            right = sum(a == b == '1' for a, b in zip(r['dropped'], r['guess']))
            assert f'C suspects these: {right} of {r["dropped"].count("1")} right' in told
        page.keyboard.press('r')                    # too late
        page.keyboard.press('n' if k % 2 else 'Enter')


def test_a_game_is_played_to_its_end(game):
    page, found = game
    c_right = sum((r['p'] <= .5) == r['corrupt'] for r in found)
    play(page, found)
    assert page.is_visible('#result') and not page.is_visible('#play')
    assert (page.inner_text('#you'), page.inner_text('#c')) == ('17 of 20', f'{c_right} of 20')
    assert 'You: 17 of 20' in page.inner_text('#live') and page.evaluate('document.activeElement.id') == 'over'
    hits = sum(a == b == '1' for r in found for a, b in zip(r['dropped'], r['guess']))
    dropped = sum(r['dropped'].count('1') for r in found)
    assert f'as many as were dropped, {100*hits/dropped:.0f} % were dropped' in page.inner_text('#where')
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    page.click('#again')
    assert page.is_visible('#play') and page.inner_text('#count') == 'Image 1 of 20'
    assert page.evaluate('images.map(im => im.shown)') != [r['shown'] for r in found], 'the same game again'
    assert page.errors == [] and [url for url in page.requested if not url.startswith('data:')] == [page.uri]


def test_each_image_has_a_card(game):
    page, found = game
    truth = [r['corrupt'] for r in found]
    play(page, found)
    titles = page.eval_on_selector_all('#cards li h3', 'all => all.map(h => h.textContent)')
    assert titles == [f'{k + 1}: {"corrupt" if t else "real"}' for k, t in enumerate(truth)]
    kinds = page.eval_on_selector_all('#cards li', """all => all.map(li =>
        [...li.querySelectorAll("figcaption")].map(c => c.textContent.split(":")[0]))""")
    assert kinds == [['shown'] + ['undamaged', 'dropped', 'C suspects these']*t for t in truth]
    labels = page.eval_on_selector_all('#cards canvas', 'all => all.map(c => c.getAttribute("aria-label"))')
    assert len(labels) == 2*sum(truth) and all('image' in label for label in labels)
