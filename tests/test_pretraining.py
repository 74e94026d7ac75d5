"`pretrain` takes what a user has, and refuses what does not fit."
import json
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from threading import Event, Thread

import pytest
import torch
from fastai.callback.core import Callback
from images import write_images

from spot_artifacts import measure, pretrain, training
from spot_artifacts.core import OutOfMemory, SpotError
from spot_artifacts.data import spot_dls
from spot_artifacts.folders import folder_images
from spot_artifacts.recipe import build, Recipe
from spot_artifacts.runs import load_checkpoint, load_weights

QUICK = Recipe.small(32, width=.05, ae_width=.05, ae_batch=8, batch=8, ae_epochs=.5, epochs=.5, bf16=False)


class Fails(Callback):
    "Raises an error at the second step."
    def __init__(self, error): self.error = error
    def after_backward(self):
        if self.step == 1: raise self.error


@pytest.fixture(scope='module')
def photos(tmp_path_factory): return write_images(tmp_path_factory.mktemp('photos'), 24, 40, classes=('a', 'b'))


@pytest.fixture(scope='module')
def by_folder(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'folder'
    return pretrain(photos, QUICK, out, progress=False)[0].state_dict()


@pytest.mark.parametrize('kind', ['ImageSet', 'tensor', 'DataLoaders', 'dataset'])
def test_any_source_of_the_same_images_gives_the_same_weights(kind, photos, by_folder, tmp_path):
    images = folder_images(photos, 32)
    pairs = list(zip(images.images, torch.zeros(24, dtype=torch.int64)))
    source = dict(ImageSet=images, tensor=images.images, DataLoaders=spot_dls(images, images[:4], 32, bs=8),
                  dataset=[(image.permute(1, 2, 0).numpy(), int(label)) for image, label in pairs])[kind]
    if kind == 'dataset':
        from PIL import Image
        source = [(Image.fromarray(image), label) for image, label in source]
    players, logs, seconds = pretrain(source, QUICK, tmp_path/'run', progress=False)
    assert all(a.equal(by_folder[k]) for k, a in players.state_dict().items())
    assert set(logs) == set(seconds) == {'auto', 'game'} and logs['game'][-1]['step'] == 1


def test_a_resumed_run_counts_the_seconds_of_all_its_parts(photos, tmp_path):
    def seconds(): return json.loads((tmp_path/'run/run.json').read_text())['seconds']
    long = replace(QUICK, epochs=2*QUICK.epochs)
    with pytest.raises(RuntimeError, match='stop'):
        pretrain(photos, long, tmp_path/'run', progress=False, cbs=Fails(RuntimeError('stop')))
    file = tmp_path/'run/run.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(seconds=dict(seconds(), game=1000.))))
    auto = seconds()['auto']
    *_, found = pretrain(photos, long, tmp_path/'run', resume=True, progress=False)
    assert found == seconds() and found['auto'] == auto > 0 and 1000 < found['game'] < 1100


def test_another_size_than_the_recipe_fails_before_there_is_a_folder(photos, tmp_path):
    with pytest.raises(SpotError, match='images of 40 px, not 32 px'):
        pretrain(folder_images(photos, 40), QUICK, tmp_path/'run', progress=False)
    assert not (tmp_path/'run').exists()


def test_a_run_with_another_backbone_is_loaded_with_one(photos, tmp_path):
    from torchvision.models import resnet18
    from spot_artifacts.backbone import TorchvisionBackbone
    def backbone(): return TorchvisionBackbone(resnet18(weights=None))
    players, *_ = pretrain(photos, QUICK, tmp_path/'run', progress=False, backbone=backbone())
    again = load_weights(tmp_path/'run', backbone=backbone())
    assert all(a.equal(b) for a, b in zip(players.state_dict().values(), again.state_dict().values()))
    with pytest.raises(SpotError, match='backbone='): load_weights(tmp_path/'run')
    assert load_checkpoint(tmp_path/'run/game.ckpt')['callbacks']['steps'] == dict(done=1)


CPU_FULL = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


@pytest.mark.parametrize('error', [RuntimeError(CPU_FULL), MemoryError(), torch.cuda.OutOfMemoryError('CUDA out of')],
                         ids=lambda e: type(e).__name__)
def test_running_out_of_memory_names_the_phase_and_what_to_try(error, photos, tmp_path, monkeypatch):
    says = 'game, a batch of 8 images of 32 px: memory is full. Try batch 4, or a smaller size or width.'
    two_steps = replace(QUICK, ae_epochs=0., epochs=1.)
    with pytest.raises(OutOfMemory, match=says):
        pretrain(photos, two_steps, tmp_path/'run', progress=False, cbs=Fails(error))
    def fails(*args, **kw): raise error
    monkeypatch.setattr(training, 'ae_loss', fails)
    with pytest.raises(OutOfMemory, match='auto, a batch of 8 .* Try ae_batch 4'):
        pretrain(photos, QUICK, tmp_path/'auto', progress=False)


def test_another_error_of_a_callback_keeps_its_words(photos, tmp_path):
    with pytest.raises(RuntimeError, match='mine'):
        pretrain(photos, replace(QUICK, epochs=1.), tmp_path/'run', progress=False, cbs=[Fails(RuntimeError('mine'))])


@pytest.mark.parametrize('change', [{}, dict(fill='noise', dropout=.5, history=.5), dict(fakes='gan')], ids=str)
def test_two_runs_in_two_threads_share_no_random_numbers(change, photos, tmp_path):
    images = folder_images(photos, 32)
    recipe = replace(QUICK, ae_epochs=1., epochs=4., **change)
    def weights(name): return pretrain(images, recipe, tmp_path/name, progress=False)[0].state_dict()
    alone, done = weights('alone'), Event()
    def disturb():
        while not done.wait(1e-4): torch.manual_seed(0)
    Thread(target=disturb).start()
    try:
        with ThreadPool(2) as pool: beside = pool.map(weights, 'ab')
    finally: done.set()
    for other in beside: assert all(a.equal(b) for a, b in zip(alone.values(), other.values()))


def test_a_run_leaves_the_random_numbers_of_others_alone(photos, tmp_path):
    before = torch.get_rng_state()
    players, *_ = pretrain(photos, QUICK, tmp_path/'run', progress=False)
    measure(players, folder_images(photos, 32))
    assert torch.get_rng_state().equal(before) and players.g is None


@pytest.mark.parametrize('device', ['hpu', 'gpu', '', None, 'meta', 'cuda:99'])
def test_a_device_that_is_not_there(device, photos, by_folder, tmp_path):
    with pytest.raises(SpotError, match='not usable here'):
        pretrain(photos, QUICK, tmp_path/'run', device=device, progress=False)
    with pytest.raises(SpotError, match='not usable here'): load_weights(tmp_path, device)
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('recipe', ['small', dict(size=32), None])
def test_what_is_not_a_recipe(recipe, photos, tmp_path):
    with pytest.raises(SpotError, match='no recipe'): pretrain(photos, recipe, tmp_path/'run', progress=False)


def test_a_folder_that_cannot_be_made(photos, tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(SpotError, match='no folder can be made there'):
        pretrain(photos, QUICK, tmp_path/'file/run', progress=False)


def test_variables_of_a_launcher_that_is_gone(photos, tmp_path, monkeypatch):
    for name, value in dict(RANK='1', WORLD_SIZE='4', LOCAL_RANK='1').items(): monkeypatch.setenv(name, value)
    pretrain(photos, QUICK, tmp_path/'run', progress=False)
    assert (tmp_path/'run/weights.safetensors').exists()


def test_measuring_wants_the_images_of_the_run(photos, tmp_path):
    players = build(QUICK)
    for images, says in ((folder_images(photos, 40), '40 px, not 32 px'), (folder_images(photos, 32)[:0], '0 images')):
        with pytest.raises(SpotError, match=says): measure(players, images)
