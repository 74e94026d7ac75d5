"Detection: proposals, matches by hand and against a plain loop, AP against COCO's, first steps of both presets."
import json, sys

import numpy as np, pytest, torch
from networks import SMALL

from spot_artifacts.core import SpotError
from spot_artifacts.recipe import Recipe, build, seeded_weights
from spot_artifacts.transfer import detection
from spot_artifacts.transfer.detection import (FastRCNN, detect_voc, detection_ap, error_kinds, errors_by_kind, match,
                                               near_objects, proposal_recall, propose)
from spot_artifacts.scenes import Scene, toy_voc
from spot_artifacts.transfer.voc import VOCBoxes, transfer_convs

pytest.importorskip('cv2.ximgproc', reason="pip install 'spot_artifacts[cv]'")


@pytest.fixture(scope='module')
def tree(tmp_path_factory): return toy_voc(tmp_path_factory.mktemp('voc'), (8, 4), 48)


def scene(boxes, labels, difficult):
    "A scene of 100 x 100 px."
    flags = torch.tensor(difficult, dtype=torch.bool)
    return Scene((100, 100), torch.tensor(boxes).view(-1, 4).float(), torch.tensor(labels), flags, flags & False)


def found(boxes, labels, scores):
    boxes = torch.tensor(boxes, dtype=torch.float).view(-1, 4)
    return dict(boxes=boxes, labels=torch.tensor(labels, dtype=torch.long), scores=torch.tensor(scores))


def test_proposals_are_kept_and_computed_again_where_the_file_is_damaged(tree, tmp_path, monkeypatch):
    image, asked = VOCBoxes(tree).image(0), []
    search = detection._search
    monkeypatch.setattr(detection, '_search', lambda *a: asked.append(1) or search(*a))
    one, two = (propose(image, cache=tmp_path) for _ in range(2))
    assert one.equal(two) and len(asked) == 1 and (one[:, 2:] - one[:, :2]).min() >= 12
    assert len(propose(image, cache=tmp_path, most=3)) == min(3, len(one)) and len(asked) == 1
    file, = tmp_path.glob('*/*.npy')
    for damage in (b'', b'junk', file.read_bytes()[:-4]):
        file.write_bytes(damage)
        propose(image, cache=tmp_path)
    np.save(file, np.zeros((2, 3), np.int32))
    propose(image, cache=tmp_path)
    assert len(asked) == 5
    with pytest.raises(SpotError, match="'fast' or 'quality'"): propose(image, 'slow')


def test_a_picture_without_proposals_is_its_own_one(tmp_path, monkeypatch):
    monkeypatch.setattr(detection, '_search', lambda *a: np.zeros((0, 4), np.int32))
    assert propose(torch.zeros(3, 5, 7, dtype=torch.uint8), cache=tmp_path).tolist() == [[0, 0, 7, 5]]


def test_without_opencv_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2.ximgproc.segmentation', None)
    with pytest.raises(SpotError, match='pip install'): propose(torch.zeros(3, 5, 7, dtype=torch.uint8), cache=tmp_path)


def test_average_precision_with_difficult_objects_and_duplicates():
    a, b, far = [0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]
    scenes = [scene([a, b], [0, 0], [False, True]), scene([a], [0], [False])]
    both = [found([a, a, b, far], [0]*4, [.9, .8, .95, .1]), found([a], [0], [.5])]
    # in order: difficult (not counted), right, duplicate, right, nowhere; two to find
    assert detection_ap(both, scenes, 'x', 'all')['mean'] == pytest.approx(100*(1/2 + 1/2*2/3))
    assert detection_ap(both, scenes, 'x')['mean'] == pytest.approx(100*(6 + 5*2/3)/11)
    nothing = [found([], [], []), found([], [], [])]
    assert detection_ap(nothing, scenes, 'x')['mean'] == 0
    assert detection_ap(both, scenes, 'xy')['without'] == ['y'], 'a class without objects is left out'
    with pytest.raises(SpotError, match='nothing can be scored'):
        detection_ap(nothing[:1], [scene([b], [0], [True])], 'x')


def test_matches_are_those_of_a_plain_loop():
    g = torch.Generator().manual_seed(0)
    for _ in range(30):
        corner, side = 40*torch.rand(2, 9, 2, generator=g)[0], 10 + 20*torch.rand(9, 2, generator=g)
        boxes = torch.cat([corner, corner + side], 1)
        truth, difficult, scores = boxes[:3] + 2, torch.tensor([False, True, False]), torch.rand(9, generator=g)
        hits, taken = match(boxes, scores, truth, difficult), set()
        for d in scores.argsort(descending=True).tolist():
            def overlap(k):
                low, high = torch.maximum(boxes[d, :2], truth[k, :2]), torch.minimum(boxes[d, 2:], truth[k, 2:])
                area = lambda b: (b[2] - b[0])*(b[3] - b[1])
                both = float((high - low).clamp(min=0).prod())
                return both/float(area(boxes[d]) + area(truth[k]) - both)
            k = max(range(3), key=overlap)
            right = -1 if difficult[k] else int(k not in taken)
            if overlap(k) < .5: right = 0
            elif not difficult[k]: taken.add(k)
            assert hits[d] == right


@pytest.fixture(scope='module')
def drawn():
    """60 pictures with objects of three classes that do not overlap, and 300 detections of which some are right.

    Where objects of a class overlap, COCO gives a second detection to the second object, and VOC does not."""
    g, cells = torch.Generator().manual_seed(0), torch.cartesian_prod(torch.arange(4.), torch.arange(4.))*25
    scenes, detections = [], []
    for _ in range(60):
        k = int(torch.randint(1, 4, (), generator=g))
        corner = cells[torch.randperm(16, generator=g)[:k]]
        labels = torch.randint(0, 3, (k,), generator=g)
        scenes.append(scene(torch.cat([corner, corner + 20], 1).tolist(), labels.tolist(), [False]*k))
        at = torch.randint(0, k, (5,), generator=g)                            # an object may be found twice
        shift, said = 6*torch.rand(5, 2, generator=g), torch.randint(0, 3, (5,), generator=g)
        said = torch.where(torch.rand(5, generator=g) < .7, labels[at], said)
        boxes = torch.cat([corner[at] + shift, corner[at] + shift + 20], 1)
        detections.append(found(boxes.tolist(), said.tolist(), torch.rand(5, generator=g).tolist()))
    return detections, scenes


@pytest.mark.parametrize('points, recalls, tolerance', [(11, 11, 1e-4), ('all', 101, 1)])
def test_average_precision_is_that_of_coco_where_both_must_agree(drawn, points, recalls, tolerance):
    """No difficult object, no overlap of objects, no equal scores. At the same 11 recalls both agree up to rounding;
    COCO's own 101 recalls sample a falling curve each .01, so its mean is within a point of the whole area."""
    from torchmetrics.detection import MeanAveragePrecision
    thresholds = (torch.linspace(0, 1, recalls, dtype=torch.float64) - 1e-9).tolist()           # .3 is 3 of 10
    coco = MeanAveragePrecision(iou_thresholds=[.5], rec_thresholds=thresholds, class_metrics=True)
    detections, scenes = drawn
    coco.update(detections, [dict(boxes=s.boxes, labels=s.labels) for s in scenes])
    theirs, ours = coco.compute(), detection_ap(detections, scenes, 'abc', points)
    assert list(ours['classes'].values()) == pytest.approx((100*theirs['map_per_class']).tolist(), abs=tolerance)
    assert ours['mean'] == pytest.approx(100*theirs['map_50'].item(), abs=tolerance) and 10 < ours['mean'] < 90


def test_kinds_of_errors():
    a, b = [0, 0, 10, 10], [50, 50, 60, 60]
    scenes = [scene([a, b], [0, 1], [False, False])]
    kinds = errors_by_kind([found([a, b], [0, 0], [.9, .8])], scenes)
    assert kinds == {'right': 1, 'place': 0, 'class': 1, 'background': 0}
    moved = found([[6, 0, 16, 10], [80, 0, 90, 10]], [0, 1], [.9, .8])
    assert errors_by_kind([moved], scenes) == {'right': 0, 'place': 1, 'class': 0, 'background': 1}
    assert sum(errors_by_kind([found([a], [0], [.5])], [scene([], [], [])]).values()) == 0
    assert error_kinds(found([a], [0], [.5]), scene([], [], [])).tolist() == [3], 'nothing there: background'
    assert error_kinds(found([a, a], [0, 0], [.4, .5]), scene([a], [0], [False])).tolist() == [1, 0], 'found twice'
    assert error_kinds(found([a], [0], [.5]), scene([a], [0], [True])).tolist() == [-1], 'difficult: not counted'
    assert error_kinds(found([], [], []), scene([a], [0], [False])).tolist() == []


def test_pictures_without_an_object_or_only_with_difficult_ones_or_without_a_proposal(tree, tmp_path, monkeypatch):
    "They are learned as background, and count no object; a picture without a proposal is proposed as a whole."
    train, test = (VOCBoxes(tree, part) for part in ('trainval', 'test'))
    empty, hard = (s._replace(boxes=s.boxes[:k], labels=s.labels[:k], truncated=s.truncated[:k],
                              difficult=torch.ones(k, dtype=torch.bool)) for s, k in zip(train.scenes, (0, 1)))
    train.scenes[:2], test.scenes[0] = (empty, hard), hard
    search = detection._search
    def none_in_dark(image, mode): return search(image, mode)[:0] if image.float().mean() < 110 else search(image, mode)
    monkeypatch.setattr(detection, '_search', none_in_dark)
    with seeded_weights(0): C = build(SMALL).discriminator
    r, out = detect_voc(C, train, test, 'rescaled', steps=6, width=16, mode='fast', cache=tmp_path)
    assert len(out) == len(test) and 0 <= r['score'] <= 100 and not set(r['classes']) & set(r['without'])
    assert set(r['classes']) == {train.classes[k] for s in test.scenes for k in s.labels[~s.difficult]}


def test_background_comes_from_near_objects_where_there_are_any():
    p = torch.tensor([[0., 0, 10, 10], [50, 50, 60, 60]])
    assert near_objects(p, p[:1]).equal(p[:1]) and near_objects(p, p[:0]).equal(p)
    assert near_objects(p, torch.tensor([[90., 90, 95, 95]])).equal(p)
    assert proposal_recall([p], [scene([[0, 0, 10, 9], [30, 30, 40, 40]], [0, 0], [False, False])]) == 50


def test_detections_lie_in_pictures_of_any_size():
    with seeded_weights(0): C = build(SMALL).discriminator
    images = torch.randint(0, 256, (8, 3, 48, 48), dtype=torch.uint8)
    net = FastRCNN(transfer_convs(C, images), 3, 16, scales=(64, 48), largest=200).eval()
    nn_bias = net.heads.box_predictor.cls_score.bias
    with torch.no_grad(): nn_bias.copy_(torch.tensor([0., 3, 0, 0]))
    pictures = [images[0], images[1, :, :30, :40]]
    with torch.no_grad(): out = net(pictures, [torch.tensor([[0., 0, 20, 20]]), torch.tensor([[5., 5, 40, 30]])])
    for f, x in zip(out, pictures):
        assert f['labels'][0] == 0 and (f['boxes'] >= 0).all()
        assert (f['boxes'][:, 2] <= x.shape[2]).all() and (f['boxes'][:, 3] <= x.shape[1]).all()
    torch.testing.assert_close(out[1]['boxes'][0], torch.tensor([5., 5, 40, 30]), atol=.5, rtol=0)


def test_first_steps_of_both_presets(tree, tmp_path):
    train, test = VOCBoxes(tree), VOCBoxes(tree, 'test')
    with seeded_weights(0): C, large = (build(r).discriminator for r in (SMALL, Recipe.small(96, width=.05)))
    few = dict(width=16, mode='fast', cache=tmp_path)
    r, _ = detect_voc(large, train, test, preset='paper', steps=20, **few)
    assert r['plan']['every'] == 30_000 and r['plan']['scales'][-1] == 600 and json.dumps(r)
    scores = [detect_voc(C, train, test, 'rescaled', steps=3, **few) for _ in range(2)]
    assert all(a['boxes'].equal(b['boxes']) for a, b in zip(scores[0][1], scores[1][1]))
