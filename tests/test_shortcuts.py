"Shortcuts beside C, for a run in miniature. (What the demo reports of them: test_demo.py.)"
import pytest
import torch

from spot_artifacts.core import SpotError
from spot_artifacts.data import to_float
from spot_artifacts.runs import load_weights
from spot_artifacts.shortcuts import PatchNet, real_and_fake, shortcuts, statistics, statistics_accuracy
from spot_artifacts.toy import toy_images


@pytest.fixture(scope='module')
def players(demo_run): return load_weights(demo_run)


def test_statistics_do_not_depend_on_where_things_are():
    x = to_float(toy_images(4, 32, cache=False).images)
    assert torch.allclose(statistics(x), statistics(x.flip(3)), atol=1e-6)
    assert torch.allclose(statistics(x), statistics(x.transpose(2, 3)), atol=1e-6)


def test_no_statistic_separates_images_from_themselves():
    x = to_float(toy_images(40, 32, cache=False).images)
    found = statistics_accuracy(x, x)
    assert list(found) == ['laplacian', 'variation', 'saturation', 'clipped', 'together']
    assert set(found.values()) == {50.}


def test_a_window_does_not_see_beyond_its_field():
    torch.manual_seed(0)
    net, x = PatchNet(2).eval(), torch.randn(1, 3, 32, 32)
    far = x.clone()
    far[..., 20:] += 1
    same = (net.windows(x) == net.windows(far))[0, 0]
    assert net.field == 6 and same[:, :3].all() and not same[:, -1].any()


def test_what_is_wrong_with_images_is_named(players):
    train, test = toy_images(20, 32, cache=False).images, toy_images(8, 64, cache=False).images
    with pytest.raises(SpotError, match='give 2 or more'): shortcuts(players, train, train[:1])
    with pytest.raises(SpotError, match='images of 64 px for a run of 32 px'): shortcuts(players, train, test)


def test_the_run_and_the_random_state_do_not_change(players):
    images, before = toy_images(20, 32, cache=False).images, torch.get_rng_state()
    weights = {k: v.clone() for k, v in players.state_dict().items()}
    found = shortcuts(players, images, images, most=10)
    assert found == shortcuts(players, images, images, most=10) and found['images'] == found['learned_from'] == 10
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, weights[k]) for k, v in players.state_dict().items())
    assert all(side.shape == (20, 3, 32, 32) and side.abs().max() <= 1 for side in real_and_fake(players, images))
