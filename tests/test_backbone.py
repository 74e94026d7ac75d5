"What can be C's backbone: AlexNet, torchvision's networks, timm's, and anything with the two names."
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
import torchvision
from torch import nn

from spot_artifacts.backbone import AlexNet, TorchvisionBackbone, kaiming_init
from spot_artifacts.core import SpotError
from spot_artifacts.damage import draw_mask
from spot_artifacts.discriminator import Discriminator
from spot_artifacts.losses import class_loss, mask_loss
from spot_artifacts.recipe import Recipe, build
from spot_artifacts.runs import load_weights, save_weights
from spot_artifacts.training import game_loss


class Small(nn.Module):
    "A backbone with timm's two names and nothing else."
    num_features = 24
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, 4)
    def forward_features(self, x): return self.stem(x).relu()


class Tokens(Small):
    "Like a vision transformer: (N, places, channels)."
    def forward_features(self, x): return self.stem(x).flatten(2).transpose(1, 2)


def resnet(): return TorchvisionBackbone(torchvision.models.resnet18())


def one_step(net, size=64, layers=3):
    "C's two losses on random images, backward; the mask's side."
    torch.manual_seed(0)
    C, x = Discriminator(size, layers, .1, backbone=net), torch.rand(8, 3, size, size)*2 - 1
    mask = draw_mask(4, size//2**layers, .5)
    score, logits = C(x)
    (class_loss(score[:4], score[4:]) + mask_loss(logits[4:], mask)).backward()
    assert all(p.grad.isfinite().all() for p in C.parameters() if p.grad is not None)
    for part in net, C.mask_head, C.class_head:
        assert any(p.grad is not None and p.grad.norm() > 0 for p in part.parameters())
    assert score.shape == (8,)
    return logits.shape[-1]


@pytest.mark.parametrize('make', (resnet, Small, lambda: AlexNet(.1, stride=2), lambda: AlexNet(.1, stride=4)))
def test_one_step_of_both_losses(make):
    assert one_step(make()) == 8


@pytest.mark.skipif(not find_spec('timm'), reason='timm is not installed')
@pytest.mark.parametrize('name', ('resnet10t', 'mobilenetv3_small_050'))
def test_timm_as_it_is(name):
    net = import_module('timm').create_model(name, num_classes=0)
    with torch.no_grad(): assert net.eval().forward_features(torch.zeros(1, 3, 64, 64)).shape[1] == net.num_features
    assert one_step(net.train()) == 8


def test_layers_of_a_torchvision_network():
    net = TorchvisionBackbone(torchvision.models.resnet18(), ('layer1', 'layer3')).eval()
    x = torch.randn(2, 3, 64, 64)
    assert (net.layer_names, net.num_features) == (('layer1', 'layer3'), 256)
    assert [tuple(h.shape[1:]) for h in net.forward_layers(x)] == [(64, 16, 16), (256, 4, 4)]
    assert net.forward_layers(x)[-1].equal(net.forward_features(x))
    after = [name for name, _ in net.named_parameters() if 'layer4' in name]
    assert not after, 'what comes after the feature should be left out'


def test_building_it_changes_no_statistics():
    net = torchvision.models.resnet18()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    wrapped = TorchvisionBackbone(net)
    assert wrapped.training and all(v.equal(before[k]) for k, v in net.state_dict().items())


def test_a_backbone_keeps_its_weights_and_constants():
    net = resnet()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for recipe in Recipe.small(64, width=.1, ae_width=.1), Recipe.released(size=64, layers=3, width=.1, ae_width=.1):
        C = build(recipe, net).discriminator
        assert C.backbone is net and all(v.equal(before[k]) for k, v in net.state_dict().items())
        assert {(m.eps, m.momentum) for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {(1e-5, .1)}


def test_what_is_not_a_backbone():
    with pytest.raises(SpotError, match='ResNet has no num_features, see TorchvisionBackbone'):
        Discriminator(64, 3, backbone=torchvision.models.resnet18())
    with pytest.raises(SpotError, match=r'Tokens gives \(8, 256, 24\).*\(N, 24, h, w\)'): one_step(Tokens())


def test_a_seed_fixes_the_first_weights():
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(kaiming_init(AlexNet(.1)))
    assert all(a.equal(b) for a, b in zip(*(n.parameters() for n in nets)))
    assert all(m.bias.abs().max() == 0 for m in nets[0].modules() if isinstance(m, nn.Conv2d))


def test_a_step_of_the_game_and_its_weights(tmp_path):
    recipe = Recipe.small(32, width=.1, ae_width=.1, bf16=False)
    torch.manual_seed(0)
    players, x = build(recipe, resnet()).train(), torch.rand(8, 3, 32, 32)*2 - 1
    game_loss(recipe)(players(x)).backward()
    for part in players.discriminator.backbone, players.repair_net:
        assert any(p.grad is not None and p.grad.norm() > 0 for p in part.parameters())
    save_weights(players, tmp_path/'weights.safetensors')
    again = load_weights(tmp_path, backbone=resnet())
    for a, b in zip(players.eval().discriminator(x), again.discriminator(x)): torch.testing.assert_close(a, b)
    with pytest.raises(SpotError, match='backbone'): load_weights(tmp_path)
