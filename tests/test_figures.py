"The paper's figures of a run in miniature, and the page on which one plays against C."
import json, re, warnings
from dataclasses import replace

import matplotlib
import matplotlib.pyplot
import pytest
import torch
from PIL import Image

from spot_artifacts import figures
from spot_artifacts.data import to_float
from spot_artifacts.toy import toy_images
from spot_artifacts.game_page import guess_score, rounds, write_game
from spot_artifacts.runs import load_weights

matplotlib.use('Agg')


@pytest.fixture(scope='module')
def players(demo_run): return load_weights(demo_run)


@pytest.fixture(scope='module')
def held_out(): return toy_images(40, 32, seed=1)


def test_all_figures_are_written_without_a_warning(players, held_out, tmp_path):
    labels, before = [held_out.classes[i] for i in held_out.labels], matplotlib.pyplot.get_fignums()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        files = figures.all_figures(players, held_out.images, tmp_path/'a'/'b', labels)
    assert [f.name for f in files] == [*(f'fig{k}.png' for k in (1, 3, 4, 6, 7, 8, 9)), 'figures.jpg']
    assert all(Image.open(f).width == 950 for f in files[:-1]) and Image.open(files[-1]).width > 950
    assert matplotlib.pyplot.get_fignums() == before, 'figures were left open'


@pytest.mark.parametrize('draw', [figures.mixture_figure, figures.damage_figure, figures.rates_figure, figures.features_figure, figures.neighbours_figure,
                                  figures.grad_cam_figure, lambda players, images: figures.entries_figure(players, images[0])])
def test_no_text_is_cut_off(players, held_out, draw):
    fig = draw(players, held_out.images)
    width, height = fig.canvas.get_width_height()
    fig.canvas.draw()
    texts = [*fig.texts, *(t for ax in fig.axes if ax.get_visible() for t in (ax.title, ax.yaxis.label, *ax.texts))]
    for box, text in ((t.get_window_extent(), t.get_text()) for t in texts if t.get_text()):
        assert -1 <= box.x0 and box.x1 <= width + 1 and -1 <= box.y0 and box.y1 <= height + 1, text
    matplotlib.pyplot.close(fig)


def test_real_is_what_c_calls_real(players, held_out):
    x = to_float(held_out.images)
    seen, corrupt, _ = figures.mixture(players, held_out.images)
    with torch.no_grad(): assert torch.allclose(seen[~corrupt], players.repaired.decoder(players.encoder(x))[~corrupt], atol=1e-5)
    other = figures.copy(players)
    other.recipe = replace(players.recipe, real='image')
    assert torch.equal(figures.mixture(other, held_out.images)[0][~corrupt], x[~corrupt])


def test_the_panel_is_a_picture_where_nobody_can_click(players, held_out):
    assert not figures._can_click()
    fig = figures.damage_panel(players, held_out.images[0])
    assert len(fig.axes) == 4
    matplotlib.pyplot.close(fig)


def test_the_committed_game_is_one_small_file(root):
    page = (root/'nbs/game/index.html').read_text(encoding='utf-8')
    assert len(page) < 500_000 and len(list((root/'nbs/game').iterdir())) == 1
    assert len(json.loads(re.search(r'type="application/json">(.*?)</script>', page)[1])) == 20


@pytest.mark.parametrize('width', [1280, 390])
def test_a_game_is_played_to_its_end(players, held_out, browser, tmp_path, width):
    "Half by keys, half by buttons; right answers, except for the first three."
    write_game(players, held_out.images, tmp_path)
    truth = [r['corrupt'] for r in rounds(players, held_out.images[:20])]
    c_right = sum((r['p'] <= .5) == r['corrupt'] for r in rounds(players, held_out.images[:20]))
    page, errors, requested = browser.new_page(viewport={'width': width, 'height': 800}), [], []
    page.on('console', lambda message: errors.append(message.text) if message.type == 'error' else None)
    page.on('pageerror', lambda error: errors.append(str(error)))
    page.on('request', lambda request: requested.append(request.url) if not request.url.startswith('data:') else None)
    page.goto((tmp_path/'index.html').as_uri(), wait_until='load')
    for k, corrupt in enumerate(truth):
        assert page.inner_text('#count') == f'Image {k + 1} of 20' and not page.is_visible('#result')
        assert page.get_attribute('#shown', 'alt') == f'Image {k + 1}: real or corrupt?'
        said = corrupt ^ (k < 3)
        if k % 2: page.keyboard.press('c' if said else 'r')
        else: page.click('#corrupt' if said else '#real')
    assert page.is_visible('#result') and not page.is_visible('#play')
    assert (page.inner_text('#you'), page.inner_text('#c')) == ('17 of 20', f'{c_right} of 20')
    assert 'You: 17 of 20' in page.inner_text('#live') and page.evaluate('document.activeElement.id') == 'over'
    assert page.eval_on_selector_all('#cards li h3', 'all => all.map(h => h.textContent)') == [f'{k + 1}: {"corrupt" if t else "real"}' for k, t in enumerate(truth)]
    kinds = page.eval_on_selector_all('#cards li', 'all => all.map(li => [...li.querySelectorAll("figcaption")].map(c => c.textContent.split(":")[0]))')
    assert kinds == [['shown'] + ['undamaged', 'dropped', 'C says dropped']*t for t in truth]
    labels = page.eval_on_selector_all('#cards canvas', 'all => all.map(c => c.getAttribute("aria-label"))')
    assert len(labels) == 2*sum(truth) and all('% of image' in label for label in labels)
    assert f'right about {guess_score(rounds(players, held_out.images[:20])):.0f} % of the entries' in page.inner_text('#result')
    assert page.evaluate('document.documentElement.scrollWidth <= innerWidth')
    page.click('#again')
    assert page.is_visible('#play') and page.inner_text('#count') == 'Image 1 of 20'
    assert errors == [] and requested == [(tmp_path/'index.html').as_uri()]
    page.close()
