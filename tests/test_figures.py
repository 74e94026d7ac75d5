"The paper's figures, of a run in miniature."
import warnings
from copy import deepcopy
from dataclasses import replace

import matplotlib
import matplotlib.pyplot
import pytest
import torch
from PIL import Image

from spot_artifacts import figures
from spot_artifacts.core import OutOfMemory
from spot_artifacts.data import to_float
from spot_artifacts.toy import toy_images
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


@pytest.mark.parametrize('draw', [
    figures.mixture_figure, figures.damage_figure, figures.rates_figure, figures.features_figure,
    figures.neighbours_figure, figures.grad_cam_figure,
    lambda players, images: figures.entries_figure(players, images[0])])
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
    with torch.no_grad(): replicas = players.repaired.decoder(players.encoder(x))
    assert torch.allclose(seen[~corrupt], replicas[~corrupt], atol=1e-5)
    other = figures.copy(players)
    other.recipe = replace(players.recipe, real='image')
    assert torch.equal(figures.mixture(other, held_out.images)[0][~corrupt], x[~corrupt])


def test_the_panel_is_a_picture_without_a_kernel(players, held_out):
    assert not figures._can_click()
    fig = figures.damage_panel(players, held_out.images[0])
    assert len(fig.axes) == 4
    matplotlib.pyplot.close(fig)


@pytest.mark.parametrize('kill', ['conv5', 'all'])
def test_a_dead_network_has_figures_that_say_so(players, held_out, kill, tmp_path):
    players = deepcopy(players)
    if kill == 'conv5': players.discriminator.backbone.conv5.norm.bias.data.fill_(-100)
    else:
        for p in players.discriminator.parameters(): p.data.zero_()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fig = figures.features_figure(players, held_out.images)
        assert len(figures.all_figures(players, held_out.images, tmp_path)) == 8
    dead = [ax.get_title() for ax in fig.axes if any('dead' in t.get_text() for t in ax.texts)]
    assert [title.split(':')[0] for title in dead][-1] == 'conv5' and len(dead) == (1 if kill == 'conv5' else 5)
    matplotlib.pyplot.close(fig)


def test_no_memory_for_a_figure(players, held_out, tmp_path, monkeypatch):
    def fails(*args): raise MemoryError
    monkeypatch.setattr(figures, 'features_figure', fails)
    with pytest.raises(OutOfMemory, match='fig7: memory is full. Try fewer images'):
        figures.all_figures(players, held_out.images, tmp_path)
