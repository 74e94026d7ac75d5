"`pretrain` takes what a user has, and refuses what does not fit."
import pytest
import torch
from images import write_images

from spot_artifacts import pretrain
from spot_artifacts.core import SpotError
from spot_artifacts.data import spot_dls
from spot_artifacts.folders import folder_images
from spot_artifacts.recipe import Recipe
from spot_artifacts.runs import load_checkpoint, load_weights

QUICK = Recipe.small(32, width=.05, ae_width=.05, ae_batch=8, batch=8, ae_epochs=.5, epochs=.5, bf16=False)


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
