"Training on labels, heads and fine-tuning: what takes longer, or needs more, than notebook 31 should."
import json, sys

import fastai.callback.schedule  # noqa: F401 (adds fine_tune to a Learner)
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from networks import SMALL, state, unmoved
from torch import nn

from spot_artifacts.backbone import LAYERS
from spot_artifacts.core import Diverged, SpotError
from spot_artifacts.data import ImageSet, spot_dls
from spot_artifacts.transfer.finetune import (classify, export_onnx, probe_sgd, stl10_table, supervised,
                                              train_on_labels, transfer_body, transfer_groups, transfer_model)
from spot_artifacts.transfer.probes import RawPixels


def test_folded_body_computes_the_same_and_nothing_adapts(net):
    before, body, x = state(net), transfer_body(net), torch.randn(8, 3, 32, 32)
    torch.testing.assert_close(body(x), net.forward_layers(x)[-1], rtol=1e-4, atol=1e-4)
    alone = body.train()(x[:1])
    torch.testing.assert_close(body(x)[:1], alone, rtol=1e-4, atol=1e-4)
    assert unmoved(net, before) and not any(isinstance(m, nn.BatchNorm2d) for m in body.modules())


def test_batch_norm_that_is_kept_adapts_while_a_head_is_trained(net, sets):
    model = transfer_model(net, 10, bn='keep')
    model[0].requires_grad_(False)
    first = state(model[0])
    train_on_labels(model, sets[0], SMALL, 1, 1e-3, progress=False)
    moved = {k for k, v in model[0].state_dict().items() if not v.equal(first[k])}
    assert moved == {k for k in first if 'running' in k or 'num_batches' in k}
    assert 'kept' in classify(net, *sets, SMALL, epochs=1, bn='keep')['protocol']


def test_to_a_plateau_or_for_a_number_of_epochs(net, sets):
    r = classify(net, *sets, SMALL, head='linear', most=200)
    assert r['plateau'] and 0 < r['best_epoch'] < r['epochs'] < 200 and r['validation_images'] == 40
    assert 'stops falling' in r['protocol'] and json.dumps(r)
    assert classify(net, *sets, SMALL, head='linear', most=200)['accuracy'] == r['accuracy']
    given = classify(net, *sets, SMALL, epochs=2, head='linear')
    assert given['epochs'] == 2 and 'plateau' not in given and 'linearly to 1 %' in given['protocol']
    C, took = supervised(SMALL, sets[0], progress=False, most=2)
    assert not took['plateau'] and took['epochs'] == pytest.approx(2, abs=.5) and not C.training


def test_a_loss_that_is_not_finite_is_an_error(sets):
    with pytest.raises(Diverged, match='validation loss is not finite'):
        supervised(SMALL, sets[0], lr=1e30, progress=False, most=30)


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
    with pytest.raises(SpotError, match='needs labels'):
        classify(net, ImageSet(sets[0].images), sets[1], SMALL, epochs=1)


class OneLayer(nn.Module):
    "conv3 alone."
    layer_names = ('conv3',)
    def __init__(self, net): super().__init__(); self.net = net
    def forward_layers(self, x): return [self.net.forward_layers(x)[2]]


def test_five_heads_at_once_learn_what_each_learns_alone(net, sets):
    before = state(net)
    found = [probe_sgd(n, *sets, SMALL, epochs=2, feature_dim=300)['layers']['conv3'] for n in (net, OneLayer(net))]
    assert found[0]['mean'] == found[1]['mean'] and unmoved(net, before)


def test_sgd_on_a_network_and_on_pixels(net, sets):
    r = probe_sgd(net, *sets, SMALL, epochs=10, feature_dim=600)
    assert set(r['layers']) == set(LAYERS) and 'SGD' in r['protocol'] and json.dumps(r)
    assert max(d['mean'] for d in r['layers'].values()) > 15
    assert set(probe_sgd(RawPixels(), *sets, SMALL, epochs=1)['layers']) == {'pixels'}


@pytest.mark.parametrize('finetune', [False, True])
def test_all_ten_folds(net, tiny_stl10, finetune):
    r = stl10_table(net, tiny_stl10, SMALL, epochs=2, finetune=finetune)
    a = np.array(r['accuracies'])
    assert len(a) == 10 and r['mean'] == pytest.approx(np.mean(a))
    assert r['sd'] == pytest.approx(np.sqrt(np.sum((a - np.mean(a))**2)/9))
    assert r['train_images'] == 20 and r['test_images'] == 30 and 'ten folds' in r['protocol'] and json.dumps(r)


def test_stl10_that_is_not_there(net, tmp_path):
    with pytest.raises(SpotError, match='is missing'): stl10_table(net, tmp_path, SMALL)


class Watch(Callback):
    "Learning rates, and whether the body moved in each fit."
    def __init__(self): self.rates, self.moved = [], []
    def before_fit(self): self.first = state(self.model[0])
    def after_batch(self):
        if self.training: self.rates.append([h['lr'] for h in self.opt.hypers])
    def after_fit(self): self.moved.append(not unmoved(self.model[0], self.first))


def test_fastai_fine_tune(net, sets):
    dls, watch = spot_dls(*sets, 32, bs=50), Watch()
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
    assert [o.name for o in session.get_outputs()] == list(LAYERS)
    assert [f.name for f in tmp_path.iterdir()] == ['c.onnx']
    for n in 1, 5:
        x = torch.randn(n, 3, 32, 32)
        for a, b in zip(session.run(None, {'images': x.numpy()}), transfer_body(net).forward_layers(x)):
            np.testing.assert_allclose(a, b.detach(), rtol=1e-3, atol=1e-4)


def test_onnx_names_what_is_missing(net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(SpotError, match='pip install onnx onnxscript'): export_onnx(net, tmp_path/'c.onnx', 32)


def test_what_cannot_be_trained_is_one_line(net, sets, monkeypatch):
    train, test = sets
    for epochs in 0, -1, float('nan'), float('inf'):
        with pytest.raises(SpotError, match='epochs must be more than 0'): classify(net, train, test, SMALL, epochs)
    other = ImageSet(torch.zeros(20, 3, 40, 40, dtype=torch.uint8), torch.arange(20) % 10, train.classes)
    with pytest.raises(SpotError, match='40 px, not 32 px'): classify(net, other, test, SMALL)
    def fails(*args): raise MemoryError
    with pytest.raises(SpotError, match='labels, a batch of 32 images of 32 px: memory is full. Try batch 16'):
        train_on_labels(transfer_model(net, 10), train, SMALL, 1, 1e-3, progress=False, loss=fails)


@pytest.mark.parametrize('train', [lambda net, a, b: classify(net, a, b, SMALL, epochs=4, lr=1e25),
                                   lambda net, a, b: probe_sgd(net, a, b, SMALL, epochs=4, lr=1e30)])
def test_a_number_of_epochs_that_diverges_is_no_accuracy(net, sets, train):
    with pytest.raises(Diverged, match='not finite'): train(net, *sets)
