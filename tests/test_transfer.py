"Transfer: what takes longer, or needs more, than the tutorial of notebook 30 should."
import json, sys, types
from copy import deepcopy
from functools import partial

import numpy as np, pytest, torch
from torch import nn

from spot_artifacts import transfer
from spot_artifacts.cli import PROTOCOLS, main, measure_features
from spot_artifacts.core import Diverged, SpotError
from spot_artifacts.data import ImageSet, spot_dls
from spot_artifacts.toy import toy_images
from spot_artifacts.backbone import LAYERS
from spot_artifacts.pretraining import pretrain
from spot_artifacts.recipe import Recipe, build
from spot_artifacts.transfer.compare import compare, few_labels, measure_all, per_class, transfer_report
from spot_artifacts.transfer.finetune import (classify, export_onnx, probe_sgd, stl10_table, supervised,
                                              train_on_labels, transfer_body, transfer_groups, transfer_model)
from spot_artifacts.transfer.probes import (KNNMonitor, RawPixels, TorchProbe, calibrate, fit_probe, knn, knn_probe,
                                            probe, rescale)
from fastai.callback.core import Callback
import fastai.callback.schedule
from fastai.learner import Learner

SMALL = Recipe.small(32, width=.1, ae_width=.1, bf16=False, batch=32)


@pytest.fixture(scope='module')
def sets(): return toy_images(200, 32, seed=0, cache=False), toy_images(100, 32, seed=1, cache=False)


@pytest.fixture
def net():
    torch.manual_seed(0)
    C = build(SMALL).discriminator
    C(torch.randn(64, 3, 32, 32)*.5 + .2)              # batch norm has seen something
    return C.eval()


def state(net): return {k: v.clone() for k, v in net.state_dict().items()}


def unmoved(net, before): return all(v.equal(before[k]) for k, v in net.state_dict().items())


def test_folded_body_computes_the_same_and_nothing_adapts(net):
    before, body, x = state(net), transfer_body(net), torch.randn(8, 3, 32, 32)
    torch.testing.assert_close(body(x), net.forward_layers(x)[-1], rtol=1e-4, atol=1e-4)
    alone = body.train()(x[:1])
    torch.testing.assert_close(body(x)[:1], alone, rtol=1e-4, atol=1e-4)
    assert unmoved(net, before) and not any(isinstance(m, nn.BatchNorm2d) for m in body.modules())


def test_controls_take_an_image_set_and_leave_weights_alone(net, sets):
    disk = sets[0][torch.arange(len(sets[0]))]
    for make in calibrate, rescale:
        a, b = make(deepcopy(net), sets[0].images), make(deepcopy(net), disk)
        assert all(p.equal(q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))
    before = state(net)
    rescale(net, disk, keep=True)
    assert unmoved(net, before)
    other = calibrate(deepcopy(net), sets[0].images, n=50)
    assert all(p.equal(q) for p, q in zip(net.parameters(), other.parameters())) and not unmoved(other, before)


def test_rescaling_keeps_what_a_body_computes(net, sets):
    x = torch.randn(8, 3, 32, 32)
    for bn in 'fold', 'drop', 'keep':
        body = transfer_body(net, bn)
        with torch.no_grad(): before, after = body(x), rescale(body, sets[0].images, n=100, keep=True)(x)
        torch.testing.assert_close(after/after.norm(), before/before.norm(), rtol=1e-3, atol=1e-5)
        if bn == 'keep': torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_a_filter_that_never_varies_stays_finite(net, sets):
    with torch.no_grad(): next(m for m in net.backbone.conv2.modules() if isinstance(m, nn.Conv2d)).weight[0] = 0
    for keep in False, True: assert all(p.isfinite().all() for p in rescale(net, sets[0].images, n=50, keep=keep).parameters())


def test_no_probe_of_features_that_are_not_finite(net, sets):
    with torch.no_grad(): next(net.backbone.conv4.parameters())[0] = torch.inf
    for measure in (lambda: probe(net, *sets, labels=50, values=100), lambda: knn_probe(net, *sets), lambda: probe_sgd(net, *sets, SMALL, epochs=1, values=100)):
        with pytest.raises(SpotError, match='^conv4: its features are not finite'): measure()


def test_batch_norm_that_is_kept_adapts_while_a_head_is_trained(net, sets):
    model = transfer_model(net, 10, bn='keep')
    model[0].requires_grad_(False)
    first = state(model[0])
    train_on_labels(model, sets[0], SMALL, 1, 1e-3, progress=False)
    moved = {k for k, v in model[0].state_dict().items() if not v.equal(first[k])}
    assert moved == {k for k in first if 'running' in k or 'num_batches' in k}
    assert 'kept' in classify(net, *sets, SMALL, epochs=1, bn='keep')['protocol']


def test_to_a_plateau_or_as_long_as_told(net, sets):
    r = classify(net, *sets, SMALL, head='linear', most=200)
    assert r['plateau'] and 0 < r['best_epoch'] < r['epochs'] < 200 and r['validation_images'] == 40 and 'stops falling' in r['protocol'] and json.dumps(r)
    assert classify(net, *sets, SMALL, head='linear', most=200)['accuracy'] == r['accuracy']
    told = classify(net, *sets, SMALL, epochs=2, head='linear')
    assert told['epochs'] == 2 and 'plateau' not in told and 'linearly to 1 %' in told['protocol']
    C, took = supervised(SMALL, sets[0], progress=False, most=2)
    assert not took['plateau'] and took['epochs'] == pytest.approx(2, abs=.5) and not C.training


def test_a_loss_that_is_not_finite_is_told(net, sets):
    with pytest.raises(Diverged, match='validation loss is not finite'): supervised(SMALL, sets[0], lr=1e30, progress=False, most=30)


def test_frozen_convolutions_stay_and_fine_tuned_ones_move(net, sets):
    before = state(net)
    for finetune in (False, True):
        model = transfer_model(net, 10)
        model[0].requires_grad_(finetune)
        first = state(model[0])
        train_on_labels(model, sets[0], SMALL, 1, 1e-3, progress=False)
        assert unmoved(model[0], first) is not finetune
    r = classify(net, *sets, SMALL, epochs=1, finetune=True)
    assert unmoved(net, before) and r['lr'] == 3e-4 and 'fine-tuned' in r['protocol'] and json.dumps(r)
    again = classify(net, *sets, SMALL, epochs=1, finetune=True)
    assert again['accuracy'] == r['accuracy'], 'the same seed gives the same number'


def test_classify_names_what_is_wrong(net, sets):
    with pytest.raises(SpotError, match="'fc' or 'linear'"): classify(net, *sets, SMALL, epochs=1, head='mlp')
    with pytest.raises(SpotError, match='needs labels'): classify(net, ImageSet(sets[0].images), sets[1], SMALL, epochs=1)


def test_solvers_agree_on_features(net, sets):
    for solver in ('sklearn', 'torch'):
        r = probe(net, *sets, labels=150, seeds=(0,), values=300, solver=solver)
        scores = [r[l]['mean'] for l in LAYERS] if solver == 'sklearn' else scores
        assert max(abs(r[l]['mean'] - a) for l, a in zip(LAYERS, scores)) <= 3


def test_solvers_agree_to_the_last_digits():
    g = np.random.default_rng(0)
    y = g.integers(0, 4, 200)
    x = g.normal(size=(200, 30)) + np.eye(4, 30)[y]
    ours = TorchProbe(.03, tol=1e-8).fit(x, y)
    theirs = fit_probe(x, y, .03).set_params(logisticregression__tol=1e-8).fit(x, y)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-4)
    assert ours.score(x, y) == theirs.score(x, y)


class OneLayer(nn.Module):
    "conv3 alone."
    layer_names = ('conv3',)
    def __init__(self, net): super().__init__(); self.net = net
    def forward_layers(self, x): return [self.net.forward_layers(x)[2]]


def test_five_heads_at_once_learn_what_each_learns_alone(net, sets):
    before = state(net)
    both = [probe_sgd(n, *sets, SMALL, epochs=2, values=300)['layers']['conv3']['mean'] for n in (net, OneLayer(net))]
    assert both[0] == both[1] and unmoved(net, before)


def test_sgd_on_a_network_and_on_pixels(net, sets):
    r = probe_sgd(net, *sets, SMALL, epochs=10, values=600)
    assert set(r['layers']) == set(LAYERS) and 'SGD' in r['protocol'] and json.dumps(r)
    assert max(d['mean'] for d in r['layers'].values()) > 15
    assert set(probe_sgd(RawPixels(), *sets, SMALL, epochs=1)['layers']) == {'pixels'}


def test_knn_equals_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (400,), generator=g)
    x, xt = torch.randn(400, 16, generator=g) + torch.eye(5, 16)[y]*2, torch.randn(150, 16, generator=g) + 1
    for k, T in (1, .07), (7, .07), (20, .5), (400, 1.):
        theirs = KNeighborsClassifier(k, metric='cosine', algorithm='brute', weights=lambda d: np.exp((1 - d)/T)).fit(x, y).predict(xt)
        assert knn(x, y, xt, k, T).tolist() == theirs.tolist(), (k, T)


def test_the_nearest_neighbour_counts():
    x, y = torch.eye(6), torch.arange(6)
    assert knn(x, y, x, k=1).tolist() == y.tolist() and knn(x, y, x, k=3).tolist() == y.tolist()


def test_knn_in_chunks_is_the_same():
    g = torch.Generator().manual_seed(0)
    x, y, xt = torch.randn(50, 8, generator=g), torch.randint(0, 3, (50,), generator=g), torch.randn(2**24//50 + 7, 8, generator=g)
    whole = knn(x, y, xt)
    assert len(whole) == len(xt) and whole[-7:].equal(knn(x, y, xt[-7:])) and whole[:9].equal(knn(x, y, xt[:9]))
    assert knn(x, y, xt[:5], k=100, temperature=1e-3).shape == (5,), 'more neighbours than images, and a cold temperature'


def test_monitor_adds_a_column(sets, tmp_path):
    recipe = Recipe.small(32, width=.1, ae_width=.1, bf16=False, ae_epochs=1, epochs=1)
    plain = pretrain(sets[0], recipe, tmp_path/'a', progress=False)
    watched = pretrain(sets[0], recipe, tmp_path/'b', progress=False, cbs=[KNNMonitor(sets[0], sets[1], k=5)])
    column = 'knn conv4 k=5 T=0.07'
    rows = watched[1]['game']
    assert all(5 < r[column] <= 60 for r in rows) and column in (tmp_path/'b/game.csv').read_text().splitlines()[0]
    assert rows[-1][column] == pytest.approx(knn_probe(watched[0].discriminator, *sets, k=5)['conv4']['mean'])
    drop = lambda r: {k: v for k, v in r.items() if k != column}
    assert [drop(r) for r in rows] == plain[1]['game'], 'watching changes nothing'


@pytest.fixture
def tiny_stl10(tmp_path):
    "STL-10's files with 40 training images in ten overlapping folds of 20, and 30 test images."
    folder = tmp_path/'stl10_binary'
    folder.mkdir()
    (folder/'class_names.txt').write_text('\n'.join(toy_images(1, 96, cache=False).classes))
    for split, n, seed in ('train', 40, 0), ('test', 30, 1):
        s = toy_images(n, 96, seed=seed, cache=False)
        (folder/f'{split}_X.bin').write_bytes(s.images.transpose(2, 3).contiguous().numpy().tobytes())
        (folder/f'{split}_y.bin').write_bytes((s.labels + 1).byte().numpy().tobytes())
    folds = [' '.join(map(str, torch.randperm(40, generator=torch.Generator().manual_seed(f))[:20].tolist())) for f in range(10)]
    (folder/'fold_indices.txt').write_text('\n'.join(folds))
    return tmp_path


@pytest.mark.parametrize('finetune', [False, True])
def test_all_ten_folds(net, tiny_stl10, finetune):
    r = stl10_table(net, tiny_stl10, SMALL, epochs=2, finetune=finetune)
    a = r['accuracies']
    assert len(a) == 10 and r['mean'] == pytest.approx(np.mean(a)) and r['sd'] == pytest.approx(np.sqrt(np.sum((np.array(a) - np.mean(a))**2)/9))
    assert r['train_images'] == 20 and r['test_images'] == 30 and 'ten folds' in r['protocol'] and json.dumps(r)


def test_stl10_command_measures_controls_too(demo_run, tiny_stl10, capsys):
    out = tiny_stl10/'stl10.json'
    main(['stl10', *f'--weights {demo_run} --root {tiny_stl10} --epochs 1 --random 2 --device cpu --out {out}'.split()])
    found = json.loads(out.read_text())['stl10']
    assert list(found) == [f'{name}, {way}' for name in ('random', 'rescaled', 'pretrained') for way in ('frozen', 'fine-tuned')]
    for name, r in found.items():
        networks = 1 if 'pretrained' in name else 2
        assert len(r['epochs']) == len(r['accuracies']) == networks and all(len(a) == 10 for a in r['accuracies'])
        assert r['mean'] == pytest.approx(np.mean(r['accuracies']))
    said = capsys.readouterr().out
    assert all(name in said for name in found) and 'ten folds of STL-10 and 2 networks' in said


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_what_is_written_is_what_was_done(net, sets, protocol):
    calls, players = [], types.SimpleNamespace(discriminator=net, recipe=SMALL)
    def draws(name):
        real = getattr(transfer, name)
        def spy(*args, **kw):
            if args[0] is net: calls.append((name, args, kw))
            return real(*args, **kw)
        return spy
    with pytest.MonkeyPatch.context() as patch:
        for name in 'classify', 'knn_probe', 'probe_sgd': patch.setattr(transfer, name, draws(name))
        patch.setattr(transfer, 'few_labels', partial(few_labels, steps=3))
        patch.setattr(transfer, 'supervised', lambda recipe, data, **kw: (net, dict(epochs=1)))
        found, done = measure_features(players, *sets, protocol, 50, 100, seeds=(3, 4), random=1, epochs=1)
    assert done['seeds'] == [3, 4] and done['random_networks'] == 1 and json.dumps([found, done])
    for layer in found['pretrained'].values(): assert len(layer['seeds']) == 2, 'every protocol uses all draws'
    if protocol in ('sgd', 'knn', 'fc', 'conv5', 'finetune'):
        assert {len(args[1]) for _, args, _ in calls} == {50} and len({args[1].fingerprint for _, args, _ in calls}) == 2
    assert ('labels' in done) is (protocol != 'few') and ('epochs' in done) is (protocol in ('sgd', 'fc', 'conv5', 'finetune'))
    assert ('values' in done) is (protocol in ('linear', 'sgd', 'knn', 'few'))


def test_stl10_that_is_not_there(net, tmp_path):
    with pytest.raises(SpotError, match='is missing'): stl10_table(net, tmp_path, SMALL)


def test_few_labels(net, sets):
    r = few_labels(net, SMALL, *sets, numbers=(1, 5), seeds=(0, 1), values=300, steps=10)
    assert list(r['networks']) == ['pretrained', 'random', 'rescaled', 'scratch'] and r['numbers'] == [1, 5] and json.dumps(r)
    for name, d in r['networks'].items():
        assert len(d['mean']) == len(d['sd']) == 2 and all(len(s) == (6 if name in ('random', 'rescaled') else 2) for s in d['seeds'])
    assert torch.bincount(per_class(sets[0], 4).labels).tolist() == [4]*10
    with pytest.raises(SpotError, match='a class has 20 images, and 21 are wanted'): per_class(sets[0], 21)


def test_comparison_has_every_baseline(net, sets):
    r = compare(net, SMALL, *sets, labels=100, seeds=(0, 1), random_seeds=(0, 1), values=200, progress=False, most=2)
    nets = r['networks']
    assert list(nets) == ['pixels', 'random', 'rescaled', 'pretrained', 'supervised'] and set(nets['pixels']) == {'pixels'} and json.dumps(r)
    assert [len(nets[n]['conv3' if n != 'pixels' else 'pixels']['seeds']) for n in nets] == [2, 4, 4, 2, 2]
    assert r['random_networks'] == 2 and '2 random networks' in r['protocol'] and r['supervised']['epochs'] > 0
    alone = probe(net, *sets, labels=100, seeds=(0, 1), values=200)
    assert nets['pretrained']['conv5']['seeds'] == alone['conv5']['seeds']
    one = measure_all(dict(pretrained=[net]), lambda n: knn_probe(n, *sets))
    assert one['pretrained']['conv1']['sd'] is None


def test_report_is_whole(net, sets):
    r = transfer_report(net, SMALL, *sets, labels=60, numbers=(1, 2), steps=2, progress=False, most=2)
    assert set(r['head']['networks']) == {'random', 'rescaled', 'pretrained', 'supervised'} and len(r['head']['epochs']) == 16 and set(r['knn']['networks']) == set(r['probe']['networks'])
    assert r['head']['networks']['random']['frozen']['sd'] is not None and all(r[k]['protocol'] for k in ('probe', 'knn', 'head', 'few_labels')) and json.dumps(r)


class CollapseMonitor(Callback):
    "Learning rates and the body's weights after each epoch."
    def __init__(self): self.rates, self.moved = [], []
    def before_fit(self): self.first = state(self.model[0])
    def after_batch(self):
        if self.training: self.rates.append([h['lr'] for h in self.opt.hypers])
    def after_fit(self): self.moved.append(not unmoved(self.model[0], self.first))


def test_fastai_fine_tune(net, sets):
    dls, watch = spot_dls(*sets, 32, bs=50), CollapseMonitor()
    learn = Learner(dls, transfer_model(net, 10), nn.CrossEntropyLoss(), splitter=transfer_groups, cbs=[watch])
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, 1e-2, freeze_epochs=1)
    assert watch.moved == [False, True], 'the body rests while the head gets started'
    last = watch.rates[-1]
    assert len(last) == 6 and last == sorted(last) and last[-1] == pytest.approx(100*last[0])


def test_onnx_computes_the_same(net, tmp_path):
    ort = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    export_onnx(net, tmp_path/'c.onnx', 32)
    session = ort.InferenceSession(tmp_path/'c.onnx', providers=['CPUExecutionProvider'])
    assert [o.name for o in session.get_outputs()] == list(LAYERS) and [f.name for f in tmp_path.iterdir()] == ['c.onnx']
    for n in 1, 5:
        x = torch.randn(n, 3, 32, 32)
        for a, b in zip(session.run(None, {'images': x.numpy()}), transfer_body(net).forward_layers(x)): np.testing.assert_allclose(a, b.detach(), rtol=1e-3, atol=1e-4)


def test_onnx_says_what_is_missing(net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(SpotError, match='pip install onnx onnxscript'): export_onnx(net, tmp_path/'c.onnx', 32)
