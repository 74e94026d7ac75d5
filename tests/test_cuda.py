"""What only a GPU can show: `pytest -m cuda`. Elsewhere these tests are skipped."""
import pytest, torch
from dataclasses import replace
from safetensors.torch import load_file

from spot_artifacts.core import autocast, has_bf16
from spot_artifacts.damage import draw_mask
from spot_artifacts.data import Augment, TensorDL, to_float
from spot_artifacts.pretraining import measure, pretrain
from spot_artifacts.recipe import build, Recipe
from spot_artifacts.runs import load_weights
from spot_artifacts.toy import toy_images
from spot_artifacts.training import game_loss
from spot_artifacts.transfer.table3 import voc_run
from spot_artifacts.scenes import toy_voc

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')]
DEVICE = 'cuda'
RECIPE = Recipe.small(32, width=.1, ae_width=.1, ae_batch=16, batch=16, ae_epochs=2., epochs=2., bf16=False)


def data(): return toy_images(80, 32, seed=4, cache=False)


def gradients(device, monkeypatch):
    "Of all parameters of R and C for one step in double precision, on the CPU, with batch norm in eval mode."
    torch.manual_seed(0)
    players, x = build(RECIPE).double().eval().to(device), to_float(data().images[:16]).double().to(device)
    mask = draw_mask(16, RECIPE.grid, RECIPE.drop_rate, torch.Generator().manual_seed(1)).double().to(device)
    monkeypatch.setattr('spot_artifacts.players.draw_mask', lambda *args, **kw: mask)
    game_loss(RECIPE)(players(x)).backward()
    return {k: p.grad.cpu() for k, p in players.named_parameters() if p.grad is not None}


def test_gradients_are_those_of_the_cpu(monkeypatch):
    here, there = gradients('cpu', monkeypatch), gradients(DEVICE, monkeypatch)
    assert len(here) > 10 and here.keys() == there.keys()
    for k in here: torch.testing.assert_close(there[k], here[k], rtol=1e-6, atol=1e-9)


def test_a_run_and_its_weights(tmp_path):
    net, logs, _ = pretrain(data(), RECIPE, tmp_path/'run', DEVICE, progress=False)
    assert next(net.parameters()).device.type == DEVICE and len(logs['game']) == 8
    saved = load_file(tmp_path/'run/weights.safetensors')
    assert all(t.isfinite().all() for t in saved.values())
    there, here = (measure(load_weights(tmp_path/'run', device), data()) for device in (DEVICE, 'cpu'))
    assert abs(there['autoencoder']['psnr'] - here['autoencoder']['psnr']) < .05


def test_a_finished_run_resumes_on_the_cpu(tmp_path):
    pretrain(data(), RECIPE, tmp_path/'run', DEVICE, progress=False)
    net, *_ = pretrain(data(), RECIPE, tmp_path/'run', 'cpu', resume=True, progress=False)
    assert all(p.cpu().isfinite().all() for p in net.parameters())


def test_bf16_learns(tmp_path):
    if not has_bf16(torch.device(DEVICE)): pytest.skip('this GPU has no bfloat16')
    x = torch.ones(2, 2, device=DEVICE)
    with autocast(DEVICE, True): assert (x @ x).dtype == torch.bfloat16
    _, logs, _ = pretrain(data(), replace(RECIPE, bf16=True), tmp_path/'run', DEVICE, progress=False)
    assert logs['auto'][-1]['psnr'] > logs['auto'][0]['psnr']


def test_batches_are_made_on_the_device():
    dl = TensorDL(data(), 16, Augment(32), shuffle=True, device=DEVICE)
    x, _ = dl.one_batch()
    assert x.device.type == DEVICE and dl.source.store.device.type == DEVICE and -1 <= x.min() <= x.max() <= 1


def test_shards_feed_the_device(tmp_path):
    pytest.importorskip('webdataset', reason="pip install 'spot_artifacts[shards]'")
    from images import write_images
    from spot_artifacts.shards import shard_images, write_shards
    write_shards(write_images(tmp_path/'photos', images=data().images), tmp_path/'shards', per_shard=15)
    net, *_ = pretrain(shard_images(tmp_path/'shards', 32), RECIPE, tmp_path/'run', DEVICE, progress=False)
    assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize('task', ['classification', 'detection', 'segmentation'])
def test_table_3(task, tmp_path):
    tree = toy_voc(tmp_path/'voc', (10, 4), 48)
    few = dict(classification=dict(crops=2, size=48), detection=dict(mode='fast'), segmentation={})[task]
    r = voc_run(task, tree, 'rescaled', RECIPE, out=tmp_path/'out', device=DEVICE, steps=2, width=8, **few)
    assert 0 <= r['score'] <= 100
