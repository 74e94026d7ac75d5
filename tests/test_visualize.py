"Pictures of a run in miniature."
import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from spot_artifacts.core import WeightsError
from spot_artifacts.data import to_float
from spot_artifacts.runs import load_weights
from spot_artifacts.toy import toy_images
from spot_artifacts.visualize import as_grid, discriminate, fakes_figure, heatmap, maps_figure
from spot_artifacts.visualize import play_once, spot_artifacts

matplotlib.use('Agg')


@pytest.fixture(scope='module')
def images(): return toy_images(8, 32, seed=1).images


@pytest.fixture
def players(demo_run): return load_weights(demo_run)


def test_c_is_shown_replicas(players, images):
    p_real, p_dropped, shown = spot_artifacts(players, images)
    with torch.no_grad(): replicas = players.repaired.decoder(players.encoder(to_float(images)))
    assert torch.allclose(shown, replicas, atol=1e-5)
    for a, b in zip((p_real, p_dropped), discriminate(players, replicas)): assert torch.allclose(a, b, atol=1e-5)
    assert 0 <= min(p_real.min(), p_dropped.min()) and max(p_real.max(), p_dropped.max()) <= 1


def test_weights_that_are_not_finite_are_named(players, images):
    players.discriminator.mask_head.bias.data[0] = torch.nan
    with pytest.raises(WeightsError, match='not finite'): spot_artifacts(players, images)


def test_a_heatmap_changes_what_is_suspected_only(images):
    dropped = torch.zeros(8, 8)
    assert heatmap(images[0], dropped).tobytes() == images[0].permute(1, 2, 0).numpy().tobytes()
    dropped[7, 7] = 1
    marked = heatmap(images[0], dropped)
    assert marked.size == (32, 32)
    assert marked.crop((0, 0, 28, 32)).tobytes() == heatmap(images[0], dropped*0).crop((0, 0, 28, 32)).tobytes()


def test_a_draw_of_masks_is_fixed_and_leaves_the_random_state_alone(players, images):
    before = torch.get_rng_state()
    (rows, mask), (again, _) = play_once(players, images, seed=3), play_once(players, images, seed=3)
    assert all(map(torch.equal, rows, again)) and not torch.equal(mask, play_once(players, images, seed=4)[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_grid_of_images():
    images = torch.tensor([-1., 0, 1, 3]).view(4, 1, 1, 1).expand(4, 3, 10, 10)
    grid = as_grid(images, cols=2)
    assert grid.shape == (23, 23, 3) and [grid[r, c, 0] for r in (5, 16) for c in (5, 16)] == [0, .5, 1, 1]
    assert grid[0].min() == 1 and as_grid(images[0]).shape == (10, 10, 3)


def test_figures_have_a_row_per_image(players, images):
    for figure, axes in ((fakes_figure(players, images, n=3), 15), (maps_figure(players, images, 2, 1), 9)):
        assert len(figure.axes) == axes
        plt.close(figure)
