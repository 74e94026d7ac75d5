"Segmentation: presets' first steps, pictures of several sizes, the matrix against a plain loop and torchmetrics."
import json, shutil

import pytest, torch
from networks import SMALL
from PIL import Image

from spot_artifacts.core import SpotError
from spot_artifacts.recipe import Recipe, build, seeded_weights
from spot_artifacts.transfer.segmentation import FCN, confusion, mean_iou, padded, segment_voc
from spot_artifacts.scenes import toy_voc
from spot_artifacts.transfer.voc import VOCMasks, transfer_convs


@pytest.fixture(scope='module')
def tree(tmp_path_factory): return toy_voc(tmp_path_factory.mktemp('voc'), (12, 5), 48)


def test_confusion_is_what_a_loop_counts_and_borders_are_left_out():
    truth, said = torch.randint(0, 4, (200,)), torch.randint(0, 4, (200,))
    truth[::7] = 255
    plain = torch.zeros(4, 4, dtype=torch.long)
    for t, s in zip(truth.tolist(), said.tolist()):
        if t != 255: plain[t, s] += 1
    assert confusion(said, truth, 4).equal(plain)
    perfect = mean_iou(confusion(truth, truth, 5), 'abcde')
    assert perfect['mean'] == 100 and perfect['without'] == ['e']
    with pytest.raises(SpotError, match='nothing can be scored'): mean_iou(torch.zeros(2, 2, dtype=torch.long), 'ab')


def test_mean_iou_is_that_of_torchmetrics():
    from torchmetrics.classification import MulticlassJaccardIndex
    g, names = torch.Generator().manual_seed(0), 'abcde'
    truth, said = (torch.randint(0, 5, (4, 30, 40), generator=g) for _ in range(2))
    said = torch.where(torch.rand(said.shape, generator=g) < .6, truth, said)
    truth[:, ::5], theirs = 255, MulticlassJaccardIndex(5, average=None, ignore_index=255)
    for t, s in zip(truth, said): theirs.update(s[None], t[None])                  # one image at a time, as we do
    ours, theirs = mean_iou(sum(confusion(s, t, 5) for t, s in zip(truth, said)), names), 100*theirs.compute()
    assert list(ours['classes'].values()) == pytest.approx(theirs.tolist(), abs=1e-3)
    assert ours['mean'] == pytest.approx(theirs.mean().item(), abs=1e-3)


def test_padding_changes_no_mask_and_no_picture():
    one, two = (torch.randint(0, 256, (3, *s), dtype=torch.uint8) for s in ((8, 6), (5, 9)))
    x, m = padded([(one, torch.ones(8, 6).long()), (two, torch.ones(5, 9).long())])
    assert x.shape == (2, 3, 8, 9) and (m == 1).sum() == 8*6 + 5*9
    assert x[1, :, :5].equal(two/127.5 - 1) and not x[1, :, 5:].any()


@pytest.mark.parametrize('skips', [0, 1, 2])
def test_first_steps_of_both_presets(tree, skips):
    train, test = VOCMasks(tree), VOCMasks(tree, 'test')
    with seeded_weights(0): C, large = (build(r).discriminator for r in (SMALL, Recipe.small(96, width=.05)))
    r, net = segment_voc(large, train, test, preset='paper', steps=20, width=16, skips=skips)
    assert r['plan']['lr'] == 1e-4 and r['plan']['every'] is None and isinstance(net, FCN) and json.dumps(r)
    small = dict(steps=4, batch=3, width=16, skips=skips)
    scores = [segment_voc(C, train, test, 'rescaled', seed=seed, **small)[0]['score'] for seed in (0, 0)]
    assert scores[0] == scores[1] and 0 < scores[0] < 100


def test_pictures_of_several_sizes(tree, tmp_path):
    folder = shutil.copytree(tree/'VOCdevkit', tmp_path/'VOCdevkit')/'VOC2007'
    for kind, suffix in (('JPEGImages', '.jpg'), ('SegmentationClass', '.png')):
        file = folder/kind/f'000000{suffix}'
        Image.open(file).crop((0, 0, 40, 30)).save(file)
    train = VOCMasks(tmp_path)
    assert train.mask(0).shape == (30, 40)
    with seeded_weights(0): C = build(SMALL).discriminator
    r, _ = segment_voc(C, train, train, steps=2, batch=12, width=8)
    assert r['train_images'] == 12


def test_a_network_that_scores_every_pixel(tree):
    with seeded_weights(0): C = build(SMALL).discriminator
    images = torch.randint(0, 256, (8, 3, 48, 48), dtype=torch.uint8)
    net = FCN(transfer_convs(C, images), 6, 8).eval()
    assert net(torch.zeros(1, 3, 33, 50)).shape == (1, 6, 33, 50)
