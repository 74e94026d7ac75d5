"A network and images for the tests of transfer."
import pytest, torch
from networks import SMALL

from spot_artifacts.recipe import build
from spot_artifacts.toy import toy_images


@pytest.fixture(scope='module')
def sets(): return toy_images(200, 32, seed=0, cache=False), toy_images(100, 32, seed=1, cache=False)


@pytest.fixture
def net():
    torch.manual_seed(0)
    C = build(SMALL).discriminator
    C(torch.randn(64, 3, 32, 32)*.5 + .2)              # batch norm has seen something
    return C.eval()
