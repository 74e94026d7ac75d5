"C in two parts, its names, and its first weights."
import torch
from torch import nn
from torch.func import functional_call
from torchvision.models import resnet18

from spot_artifacts.backbone import AlexNet, TorchvisionBackbone, kaiming_init
from spot_artifacts.discriminator import Discriminator


def as_before():
    "The state of C as drawn before the backbone had its own module: all layers by torch, then all by Kaiming."
    torch.manual_seed(0)
    net = AlexNet(.25, 2)
    n = net.num_features
    parts = [*net.children(), nn.Conv2d(n, 1, 3), nn.Linear(n*64, 1024), nn.Linear(1024, 1)]
    return kaiming_init(nn.Sequential(*parts)).state_dict()


def test_a_seed_gives_the_network_that_it_always_gave():
    torch.manual_seed(0)
    state = Discriminator(64, layers=3, width=.25).state_dict()
    assert len(state) == len(as_before())
    for (name, a), b in zip(state.items(), as_before().values()): assert a.equal(b), name


def test_names_in_a_file_of_weights():
    names = set(Discriminator(64, layers=3, width=.1, bn_fc=True).state_dict())
    assert {'backbone.conv1.conv.weight', 'backbone.conv5.norm.running_mean', 'mask_head.weight',
            'class_head.fc1.weight', 'class_head.norm.weight', 'class_head.fc2.bias'} <= names
    assert {n.split('.')[0] for n in names} == {'backbone', 'mask_head', 'class_head'}


def test_trunk_and_verdict_are_forward_for_any_backbone():
    torch.manual_seed(0)
    for backbone in None, AlexNet(.1, 2), TorchvisionBackbone(resnet18()):
        C, x = Discriminator(64, 3, .1, backbone=backbone), torch.rand(6, 3, 64, 64)*2 - 1
        h = torch.cat([C.trunk(x[:2]), C.trunk(x[2:])])
        for a, b in zip(C.verdict(h), C(x)): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_image_alone_where_parameters_are_constants():
    "As R sees C: `functional_call` with detached parameters, for a backbone with names of its own too."
    for backbone in None, TorchvisionBackbone(resnet18()):
        C, x = Discriminator(64, 3, .1, backbone=backbone), torch.rand(4, 3, 64, 64).requires_grad_()
        state = {k: v.detach() for k, v in C.named_parameters()} | {k: v.clone() for k, v in C.named_buffers()}
        before = {k: v.clone() for k, v in C.named_buffers()}
        functional_call(C, state, (x,))[0].sum().backward()
        assert x.grad.norm() > 0 and all(p.grad is None for p in C.parameters())
        assert all(v.equal(before[k]) for k, v in C.named_buffers())


def test_layers_of_a_backbone_without_names_for_them():
    class Small(nn.Module):
        num_features = 8
        def forward_features(self, x): return x[:, :1].expand(-1, 8, -1, -1)
    C, x = Discriminator(32, 2, .1, backbone=Small()), torch.rand(2, 3, 32, 32)
    assert C.layer_names == ('features',) and [h.shape for h in C.forward_layers(x)] == [(2, 8, 32, 32)]
    assert C(x)[1].shape == (2, 1, 8, 8)
