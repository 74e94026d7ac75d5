"VOC's files, average precision and classification: bad input, and what needs more than notebook 33 shows."
import csv, json, shutil
from pathlib import Path

import numpy as np, pytest, torch
from images import write_images
from networks import SMALL
from PIL import Image

from spot_artifacts.core import Diverged, SpotError
from spot_artifacts.recipe import Recipe, build, seeded_weights
from spot_artifacts.scenes import draw_scenes, toy_voc, voc_palette
from spot_artifacts.transfer.voc import (VOC_CLASSES, VOCBoxes, VOCMasks, average_precision, batch_rows, classify_voc,
                                         mean_ap, precision_recall, train_sgd, transfer_convs, voc_from_boxes)


@pytest.fixture(scope='module')
def tree(tmp_path_factory): return toy_voc(tmp_path_factory.mktemp('voc'), (20, 8), 48)


@pytest.fixture
def copy(tree, tmp_path):
    "A tree that a test may damage; its VOC2007 folder."
    return shutil.copytree(tree/'VOCdevkit', tmp_path/'VOCdevkit')/'VOC2007'


@pytest.fixture(scope='module')
def C():
    with seeded_weights(0): return build(SMALL).discriminator


def first(folder, kind, suffix): return folder/kind/f'000000{suffix}'


def edit(file, old, new): file.write_text(file.read_text().replace(old, new, 1))


def refused(folder, match, kind=VOCBoxes, image_set='trainval', read=lambda data: None):
    "One line that says what is wrong and what to do."
    with pytest.raises(SpotError, match=match) as e: read(kind(folder.parents[1], image_set))
    assert '\n' not in str(e.value) and str(e.value).endswith('.')


@pytest.mark.parametrize('old, new, match', [
    ('</annotation>', '', 'broken XML'),
    ('<annotation>', '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation>', 'document type'),
    ('<annotation>', '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>', 'document type'),
    ('<annotation>', '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>', 'document type'),
    ('<annotation>', '<annotation>' + '<a>'*5000 + '</a>'*5000, 'recursion'),
    ('<width>48', '<width>4', 'does not lie in 4 x 48 px'),
    ('<width>48</width>', '', "width' is missing"),
    ('<xmin>', '<xmin>-', 'does not lie in'),
    ('<ymax>', '<ymax>9', 'does not lie in'),
    ('<ymin>', '<ymin>4', 'does not lie in'),
    ('<xmin>', '<xmin>x', 'could not convert'),
    ('<bndbox>', '<box>', 'broken XML'),
    ('<name>', '<name>un\u001b', 'broken XML'),
    ('<name>', '<name>un', 'unknown class')])
def test_annotations_that_cannot_be(copy, old, new, match):
    edit(first(copy, 'Annotations', '.xml'), old, new)
    refused(copy, match)


def test_a_picture_of_another_size_than_its_annotation_says(copy):
    edit(first(copy, 'Annotations', '.xml'), '<width>48', '<width>49')
    refused(copy, 'says 49 x 48 px, and .* has 48 x 48', read=lambda data: data.image(0))


def test_an_annotation_without_objects_is_a_picture_without_any(copy):
    file = first(copy, 'Annotations', '.xml')
    text = file.read_text()
    file.write_text(text[:text.index('<object>')] + '</annotation>')
    data = VOCBoxes(copy.parents[1])
    assert data.scenes[0].boxes.shape == (0, 4) and not data.presence[0].any()


def test_a_class_that_no_test_image_has_is_named_and_left_out(copy, tree, C):
    for file in (copy/'Annotations').glob('1*.xml'):
        text = file.read_text()
        for name in ('boat', 'fish'): text = text.replace(f'<name>{name}<', '<name>spider<')
        file.write_text(text)
    r, _ = classify_voc(C, VOCBoxes(tree), VOCBoxes(copy.parent, 'test'), steps=1, width=16, crops=1, size=32)
    assert r['without'] == ['boat', 'fish'] and set(r['classes']) == {'chair', 'person', 'spider'}
    assert r['score'] == pytest.approx(sum(r['classes'].values())/3)


def test_parts_that_are_missing(copy):
    file = first(copy, 'JPEGImages', '.jpg')
    file.write_bytes(file.read_bytes()[:500])
    refused(copy, '(?i)truncated', read=lambda data: data.image(0))
    file.unlink()
    refused(copy, 'No such file', read=lambda data: data.image(0))
    refused(copy, 'val.txt is missing', image_set='val')
    refused(copy, 'nonsense', image_set='nonsense')
    (copy/'ImageSets'/'Main'/'val.txt').write_text('')
    refused(copy, 'val is empty', image_set='val')
    first(copy, 'Annotations', '.xml').unlink()
    refused(copy, '000000.xml is missing')
    with pytest.raises(SpotError, match='no such folder'): VOCBoxes(copy)


@pytest.mark.parametrize('change, match', [
    (lambda im: im.resize((40, 48)), '40 x 48 px, and its picture has 48 x 48'),
    (lambda im: im.convert('RGB'), 'mode RGB'),
    (lambda im: Image.fromarray(np.full((48, 48), 77, np.uint8)), 'value 77, and there are 5 classes')])
def test_masks_that_cannot_be(copy, change, match):
    file = first(copy, 'SegmentationClass', '.png')
    change(Image.open(file)).save(file)
    refused(copy, match, VOCMasks, read=lambda data: data.mask(0))


def test_a_mask_with_another_palette(copy):
    file = first(copy, 'SegmentationClass', '.png')
    image = Image.open(file)
    image.putpalette(voc_palette()[::-1].tobytes())
    image.save(file)
    refused(copy, 'another palette', VOCMasks, read=lambda data: data.mask(0))


def test_a_tree_without_lists_of_classes_has_vocs_twenty(copy):
    for f in (copy/'ImageSets'/'Main').glob('*_*.txt'): f.unlink()
    refused(copy, 'unknown class')
    assert VOCMasks(copy.parent).classes == VOC_CLASSES


def test_drawn_trees_are_the_same_again_and_whole_or_not_there(tree, tmp_path, monkeypatch):
    again = toy_voc(tmp_path/'again', (20, 8), 48)
    one, two = VOCBoxes(tree), VOCBoxes(again/'VOCdevkit')
    assert one.fingerprint == two.fingerprint and one.classes == two.classes and len(one) == 20
    assert one.fingerprint != VOCBoxes(tree, 'test').fingerprint
    monkeypatch.setattr('spot_artifacts.scenes.write_lists', lambda *a, **k: open('/nowhere/at/all'))
    with pytest.raises(SpotError, match='could not be written'): toy_voc(tmp_path/'half', (2, 2), 48)
    assert not list((tmp_path/'half').rglob('*.*'))


def test_scenes_have_hidden_difficult_and_truncated_objects_and_boxes_that_fit_their_masks():
    scenes = list(draw_scenes(60, 64, 3))
    difficult, truncated = (torch.cat([s[k] for _, _, s in scenes]).float().mean() for k in (3, 4))
    assert 0 < difficult < .3 and difficult < truncated < .9
    alone = [(mask, s) for _, mask, s in scenes if len(s.labels) == 1]
    assert alone
    for mask, s in alone:
        rows, cols = (mask > 0).nonzero().T
        assert s.boxes[0].tolist() == [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]


def test_photographs_with_boxes_become_a_tree(tmp_path):
    write_images(tmp_path/'in', 12, 40, classes=('n1', 'n2', 'n3'))
    with open(tmp_path/'boxes.csv', 'w', newline='') as f:
        rows = [(p.relative_to(tmp_path/'in'), 0, 5, 39, 20) for p in sorted((tmp_path/'in').rglob('*.png'))]
        csv.writer(f).writerows([('file', 'xmin', 'ymin', 'xmax', 'ymax'), *rows])
    how = dict(listing=tmp_path/'boxes.csv', folder=tmp_path/'in')
    voc_from_boxes(tmp_path/'out', classes=dict(n1='dog', n2='cat'), n=(2, 1), **how)
    train, test = (VOCBoxes(tmp_path/'out', part) for part in ('trainval', 'test'))
    assert train.classes == ('cat', 'dog') and (len(train), len(test)) == (4, 2)
    assert train.scenes[0].boxes.tolist() == [[0, 5, 40, 21]] and train.image(0).shape == (3, 40, 40)
    with pytest.raises(SpotError, match='not the name of a class'):
        voc_from_boxes(tmp_path/'no', classes=dict(n1='a/b'), **how)
    with pytest.raises(SpotError, match='none of its files'): voc_from_boxes(tmp_path/'no', classes=dict(x='y'), **how)
    how['listing'] = tmp_path/'in'/'n1'/'00.png'
    with pytest.raises(SpotError, match='not a list'): voc_from_boxes(tmp_path/'no', classes=dict(n1='y'), **how)
    assert not list(tmp_path.glob('no/**/*.xml'))


def test_photographs_in_folders_val_or_test_are_the_test_set(tmp_path):
    for part in ('train', 'val'): write_images(tmp_path/part, 6, 40, classes=('n1', 'n2'))
    files = [p.relative_to(tmp_path) for p in sorted(tmp_path.rglob('*.png'))]
    (tmp_path/'boxes.csv').write_text('file,xmin,ymin,xmax,ymax\n' + ''.join(f'{f},0,5,39,20\n' for f in files))
    voc_from_boxes(tmp_path/'out', tmp_path/'boxes.csv', tmp_path, dict(n1='dog'), n=(2, 9))
    train, test = (VOCBoxes(tmp_path/'out', part) for part in ('trainval', 'test'))
    assert {p.resolve().parts[-3] for p in map(Path, train.files)} == {'train'} and len(train) == 2
    assert {p.resolve().parts[-3] for p in map(Path, test.files)} == {'val'} and len(test) == 3


def test_average_precision_by_hand():
    curve = precision_recall([3, 2, 1], [0, 1, 1], 4)
    assert average_precision(*curve) == pytest.approx(2/4*2/3)
    assert average_precision(*curve, 11) == pytest.approx(6*2/3/11)             # recalls 0 to .5
    assert average_precision(*precision_recall([], [], 4)) == 0
    assert average_precision(*precision_recall([1, 1], [1, 0])) == .5, 'answers of one score come together'
    with pytest.raises(SpotError, match='nothing can be scored'): mean_ap(torch.zeros(2, 1), -torch.ones(2, 1), 'a')


def test_each_picture_once_in_an_epoch():
    rows = batch_rows(7, 3, 1)
    seen = sum((rows(step) for step in range(7)), [])
    assert all(sorted(seen[7*k:7*k + 7]) == list(range(7)) for k in range(3)) and seen[:7] != seen[7:14]
    assert len(batch_rows(2, 5, 0)(3)) == 5


def test_starts_of_the_convolutions(C, tree):
    images = torch.randint(0, 256, (20, 3, 48, 48), dtype=torch.uint8)
    before = {k: v.clone() for k, v in C.state_dict().items()}
    x, conv1 = torch.randn(4, 3, 48, 48), C.backbone.conv1.conv.weight
    kept = transfer_convs(C, images)
    ratio = kept(x)/transfer_convs(C.eval(), images)(x)
    assert ratio.nan_to_num(1).std() < 1e-3, 'the same function, up to a factor'
    assert transfer_convs(C, images, 'random').conv1.conv.weight.equal(conv1)
    assert not transfer_convs(C, images, 'rescaled').conv1.conv.weight.equal(conv1)
    assert all(v.equal(before[k]) for k, v in C.state_dict().items())
    with pytest.raises(SpotError, match='init is one of'): transfer_convs(C, images, 'lucky')


def test_first_steps_of_both_presets_and_the_same_numbers_again(C, tree):
    train, test = VOCBoxes(tree), VOCBoxes(tree, 'test')
    with seeded_weights(0): large = build(Recipe.small(96, width=.05)).discriminator      # conv1 has stride 4
    paper, _ = classify_voc(large, train, test, preset='paper', steps=20, width=16, crops=1)
    assert paper['plan']['size'] == 227 and paper['plan']['every'] == 10_000 and json.dumps(paper)
    small = dict(steps=6, width=16, crops=2, size=32)
    r, other = (classify_voc(C, train, test, seed=seed, **small)[0] for seed in (0, 1))
    assert 0 < r['score'] <= 100 and set(r['classes']) | set(r['without']) == set(train.classes)
    assert classify_voc(C, train, test, **small)[0]['score'] == r['score'] != other['score']


def test_a_rate_that_is_too_large_is_an_error():
    model, x = torch.nn.Linear(4, 1), torch.randn(8, 4)
    with pytest.raises(Diverged, match='not finite'):
        train_sgd(model, lambda model, step: model(x).square().mean().exp(), 200, 1e9)
    late = torch.nn.Linear(4, 1)
    with pytest.raises(Diverged, match='step 39'):
        train_sgd(late, lambda model, step: model(x).mean()*(float('nan') if step > 5 else 1), 40, .1)
