"Probes, nearest neighbours and controls: what takes longer, or needs more, than the tutorial of notebook 30 should."
import json
from copy import deepcopy

import numpy as np, pandas as pd, pytest, torch
from fastai.data.core import DataLoaders
from images import write_images
from networks import SMALL, state, unmoved
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

from spot_artifacts.backbone import LAYERS, TorchvisionBackbone
from spot_artifacts.core import OutOfMemory, SpotError
from spot_artifacts.data import ImageSet, spot_dls
from spot_artifacts.discriminator import Discriminator
from spot_artifacts.pretraining import pretrain
from spot_artifacts.recipe import Recipe, build
from spot_artifacts.runs import save_weights
from spot_artifacts.transfer import probes
from spot_artifacts.transfer.finetune import probe_sgd, transfer_body
from spot_artifacts.transfer.probes import (KNNMonitor, TorchProbe, as_frame, as_network, baselines, calibrate,
                                            fit_probe, knn, knn_probe, labelled_set, probe, rescale)


def means(results): return {layer: r['mean'] for layer, r in results.items()}


# ---- what can be measured

def test_a_run_its_file_its_players_and_its_discriminator_are_one_network(sets, tmp_path):
    players = build(SMALL).eval()
    (tmp_path/'run').mkdir()
    save_weights(players, tmp_path/'run/weights.safetensors')
    wanted = knn_probe(players.discriminator, *sets, feature_dim=200)
    for net in tmp_path/'run', str(tmp_path/'run/weights.safetensors'), players:
        assert knn_probe(net, *sets, feature_dim=200) == wanted


def test_a_torchvision_network_and_a_bare_backbone_are_measured(sets):
    resnet = resnet18(num_classes=10)
    backbone = TorchvisionBackbone(resnet, ('layer1', 'layer3'))
    whole = probe(Discriminator(32, 2, backbone=backbone), *sets, labels=60, seeds=(0,), feature_dim=100)
    assert list(whole) == ['layer1', 'layer3']
    class LastLayer(nn.Module):
        num_features = 256
        def forward_features(self, x): return backbone.forward_features(x)
    alone = probe(LastLayer(), *sets, labels=60, seeds=(0,), feature_dim=100)
    assert list(alone) == ['features'] and alone['features']['mean'] == whole['layer3']['mean']
    with pytest.raises(SpotError, match='ResNet has neither forward_layers nor forward_features'): as_network(resnet)


@pytest.fixture
def photos(sets, tmp_path):
    "Folders train and test with the images of `sets`, a sub-folder for each class."
    for part, data in zip(('train', 'test'), sets):
        order = data.labels.argsort(stable=True)
        for c, name in enumerate(data.classes):
            write_images(tmp_path/part, classes=(name,), images=data.images[order[data.labels[order] == c]])
    return tmp_path


def test_images_from_a_folder_a_data_set_and_loaders(net, sets, photos):
    how = dict(labels=100, seeds=(0,), feature_dim=100)
    folders = probe(net, photos/'train', photos/'test', size=32, **how)
    vision = probe(net, ImageFolder(photos/'train'), ImageFolder(photos/'test'), **how)
    assert means(folders) == means(vision)
    dls = spot_dls(*sets, 32)
    assert means(probe(net, dls, dls, **how)) == means(probe(net, *sets, **how))
    assert labelled_set(ImageFolder(photos/'train'), 32).classes == tuple(sorted(sets[0].classes))
    assert isinstance(dls, DataLoaders) and labelled_set(dls, held_out=True).fingerprint == sets[1].fingerprint


def test_images_without_labels_are_refused(net, sets, tmp_path):
    write_images(tmp_path/'flat', 12)
    for images in ImageSet(sets[0].images), sets[0].images:
        with pytest.raises(SpotError, match='needs labels'): probe(net, images, sets[1])
    with pytest.raises(SpotError): probe(net, tmp_path/'flat', sets[1], size=32)
    with pytest.raises(SpotError, match='size'): probe(net, tmp_path/'flat', sets[1])


def test_results_are_plain_data_with_a_table_view(net, sets):
    r = probe(net, *sets, labels=100, seeds=(0, 1), feature_dim=100)
    assert json.loads(json.dumps(r)) == r
    frame = as_frame(r)
    assert list(frame.index) == list(LAYERS) and list(frame.columns) == ['mean', 'sd', 'seeds', 'l2']
    assert frame.loc['conv3', 'sd'] == pytest.approx(np.std(r['conv3']['seeds'], ddof=1))
    both = as_frame(dict(a=r, b=knn_probe(net, *sets)))
    assert both.index.names == ['network', 'layer'] and len(both) == 10 and pd.isna(both.loc[('b', 'conv1'), 'sd'])
    few = dict(numbers=[1, 5], networks=dict(a=dict(mean=[1., 2.], sd=[.1, .2], seeds=[[1.], [2.]])))
    assert as_frame(few).loc[('a', 5), 'mean'] == 2 and as_frame(few).index.names == ['network', 'labels per class']


# ---- solvers

def test_solvers_agree_on_features(net, sets):
    how = dict(labels=150, seeds=(0,), feature_dim=300)
    first, second = (means(probe(net, *sets, **how, solver=solver)) for solver in ('sklearn', 'torch'))
    assert max(abs(first[layer] - second[layer]) for layer in LAYERS) <= 3


def test_solvers_agree_to_the_last_digits():
    g = np.random.default_rng(0)
    y = g.integers(0, 4, 200)
    x = g.normal(size=(200, 30)) + np.eye(4, 30)[y]
    ours = TorchProbe(.03, tol=1e-8).fit(x, y)
    theirs = fit_probe(x, y, .03).set_params(logisticregression__tol=1e-8).fit(x, y)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-4)
    assert ours.score(x, y) == theirs.score(x, y)


def test_no_probe_of_features_that_are_not_finite(net, sets):
    with torch.no_grad(): next(net.backbone.conv4.parameters())[0] = torch.inf
    for measure in (lambda: probe(net, *sets, labels=50, feature_dim=100), lambda: knn_probe(net, *sets),
                    lambda: probe_sgd(net, *sets, SMALL, epochs=1, feature_dim=100)):
        with pytest.raises(SpotError, match='^conv4: its features are not finite'): measure()


# ---- controls

def test_controls_take_mapped_images_and_leave_weights_alone(net, sets, tmp_path):
    np.save(tmp_path/'images.npy', sets[0].images.flip(0).numpy())
    mapped = torch.from_numpy(np.load(tmp_path/'images.npy', mmap_mode='c'))
    disk = ImageSet(mapped, rows=torch.arange(len(mapped)).flip(0))
    for make in calibrate, rescale:
        a, b = make(deepcopy(net), sets[0].images), make(deepcopy(net), disk)
        assert all(p.equal(q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))
    before = state(net)
    rescale(net, disk, keep=True)
    assert unmoved(net, before)
    calibrated = calibrate(deepcopy(net), sets[0], n=50)
    assert all(p.equal(q) for p, q in zip(net.parameters(), calibrated.parameters()))
    assert not unmoved(calibrated, before)


def test_controls_see_images_of_all_classes(monkeypatch):
    images = torch.arange(3000, dtype=torch.int16)[:, None, None, None].expand(-1, 3, 2, 2)
    monkeypatch.setattr(probes, 'rescale', lambda net, images: net)
    monkeypatch.setattr(probes, 'calibrate', lambda net, images: images)
    for seen in (baselines(SMALL, images, (0,))[name][0] for name in ('random', 'rescaled')):
        assert len(seen) == 2000 and seen[:500].max() > 2500


def test_rescaling_keeps_what_a_body_computes(net, sets):
    x = torch.randn(8, 3, 32, 32)
    for bn in 'fold', 'drop', 'keep':
        body = transfer_body(net, bn)
        with torch.no_grad(): before, after = body(x), rescale(body, sets[0], n=100, keep=True)(x)
        torch.testing.assert_close(after/after.norm(), before/before.norm(), rtol=1e-3, atol=1e-5)
        if bn == 'keep': torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_a_filter_that_never_varies_stays_finite(net, sets):
    with torch.no_grad(): net.backbone.conv2.conv.weight[0] = 0
    for keep in False, True: assert all(p.isfinite().all() for p in rescale(net, sets[0], n=50, keep=keep).parameters())


# ---- nearest neighbours

def test_knn_equals_votes_counted_by_torch():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (400,), generator=g)
    x, xt = torch.randn(400, 16, generator=g) + torch.eye(5, 16)[y]*2, torch.randn(150, 16, generator=g) + 1
    cos = nn.functional.normalize(xt)@nn.functional.normalize(x).T
    for k, T in (1, .07), (7, .07), (20, .5), (400, 1.):
        similarity, near = cos.topk(k)
        votes = torch.zeros(150, 5).scatter_add_(1, y[near], (similarity/T).exp())
        assert knn(x, y, xt, k, T).tolist() == votes.argmax(1).tolist(), (k, T)


def test_the_nearest_neighbour_counts():
    x, y = torch.eye(6), torch.arange(6)
    assert knn(x, y, x, k=1).tolist() == y.tolist() and knn(x, y, x, k=3).tolist() == y.tolist()


def test_knn_in_chunks_is_the_same():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 8, generator=g), torch.randint(0, 3, (50,), generator=g)
    xt = torch.randn(2**24//50 + 7, 8, generator=g)                     # 134 MB of distances
    whole = knn(x, y, xt)
    assert len(whole) == len(xt) and whole.dtype == int
    for part in slice(-7, None), slice(9): assert (whole[part] == knn(x, y, xt[part])).all()
    assert knn(x, y, xt[:5], k=100, temperature=1e-3).shape == (5,), 'more neighbours than images, and cold'


def test_monitor_adds_a_column(sets, tmp_path):
    recipe = Recipe.small(32, width=.1, ae_width=.1, bf16=False, ae_epochs=1, epochs=1)
    plain = pretrain(sets[0], recipe, tmp_path/'a', progress=False)
    watched = pretrain(sets[0], recipe, tmp_path/'b', progress=False, cbs=[KNNMonitor(sets[0], sets[1], k=5)])
    column = 'knn conv4 k=5 T=0.07'
    rows = watched[1]['game']
    assert all(5 < r[column] <= 60 for r in rows) and column in (tmp_path/'b/game.csv').read_text().splitlines()[0]
    assert rows[-1][column] == pytest.approx(knn_probe(watched[0], *sets, k=5)['conv4']['mean'])
    drop = lambda r: {k: v for k, v in r.items() if k != column}
    assert [drop(r) for r in rows] == plain[1]['game'], 'watching changes nothing'


def test_what_cannot_be_measured_is_one_line(net, sets, monkeypatch):
    train, test = sets
    for images in (train[:0], test), (train, test[:0]):
        for measure in probe, knn_probe:
            with pytest.raises(SpotError, match='no images'): measure(net, *images)
    with pytest.raises(SpotError, match='one draw or more'): probe(net, train, test, seeds=())
    def fails(*args): raise MemoryError
    monkeypatch.setattr(probes, 'pool_to', fails)
    with pytest.raises(OutOfMemory, match='features: memory is full. Try bs=125'): knn_probe(net, train, test)
