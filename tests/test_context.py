"Context prediction: patches, the lens and its remedies; runs that stop, and the command."
import json
from dataclasses import replace

import pytest
import torch
from fastai.callback.core import Callback
from images import write_images

from spot_artifacts.context import (AROUND, CENTRE, ContextChoices, ContextPrediction, PatchPlace, aberrate, cut,
                                    draw_grids, drop_colours, lens_study, project, rolled)
from spot_artifacts.core import SpotError
from spot_artifacts.data import to_float
from spot_artifacts.pretraining import pretrain
from spot_artifacts.recipe import build
from spot_artifacts.runs import load_weights
from spot_artifacts.toy import toy_images

TINY = ContextChoices.small(32, width=.05, fc6=8, fc7=8, batch=8, epochs=3., bf16=False)


@pytest.fixture(scope='module')
def images(): return toy_images(40, 32, cache=False)


class Stop(Callback):
    "Interrupts a run after its second round, as Ctrl-C would."
    order = 99
    def after_epoch(self):
        if self.epoch == 1: raise KeyboardInterrupt


def test_patches_are_cut_where_the_corners_say():
    g = torch.Generator().manual_seed(0)
    corners, x = draw_grids(5, 40, 8, 4, 2, g=g), torch.randn(5, 3, 40, 40, generator=g)
    for image, grid, patches in zip(x, corners, cut(x, corners, 8)):
        for (r, c), patch in zip(grid.tolist(), patches): assert patch.equal(image[:, r:r + 8, c:c + 8])


@pytest.mark.parametrize('size, patch, gap, jitter', [(32, 7, 3, 1), (28, 7, 3, 0), (33, 11, 0, 0), (48, 4, 8, 3)])
def test_grids_stay_within_the_image(size, patch, gap, jitter):
    corners = draw_grids(500, size, patch, gap, jitter, g=torch.Generator().manual_seed(0))
    assert corners.min() >= 0 and corners.max() + patch <= size
    apart = corners[:, 1::3] - corners[:, ::3] - torch.tensor([0, patch + gap])     # to the right neighbour
    assert apart.abs().max() <= 2*jitter
    assert corners.equal(draw_grids(500, size, patch, gap, jitter, g=torch.Generator().manual_seed(0)))


def test_no_lens_changes_nothing_and_a_lens_leaves_green():
    x = torch.rand(2, 3, 20, 20)
    assert torch.allclose(aberrate(x, 0), x, atol=1e-5)
    assert aberrate(x, 2)[:, 1].equal(x[:, 1]) and not torch.allclose(aberrate(x, 2)[:, 0], x[:, 0], atol=.01)


def test_remedies():
    p = torch.randn(6, 3, 8, 8)
    assert torch.allclose(2*project(p)[:, 1], project(p)[:, 0] + project(p)[:, 2], atol=1e-5)
    kept = torch.tensor([0, 1, 2]*2)
    dropped = drop_colours(p, kept, torch.zeros_like(p))
    for a, b, k in zip(p, dropped, kept): assert b[k].equal(a[k]) and b.abs().sum() == a[k].abs().sum()


def test_rolled_images_keep_their_pixels(images):
    x = to_float(images.images[:4])
    moved = rolled(x, seed=1)
    assert not moved.equal(x) and moved.flatten(2).sort().values.equal(x.flatten(2).sort().values)
    assert moved.equal(rolled(x, seed=1))


@pytest.mark.parametrize('colours', ['keep', 'project', 'drop'])
def test_questions_follow_from_the_seed(images, colours):
    task, x = build(replace(TINY, colours=colours)), to_float(images.images)
    def asked(seed):
        with task.seeded(seed): return task(x).patches
    assert asked(1).equal(asked(1)) and not asked(1).equal(asked(2))
    with task.seeded(1):
        torch.manual_seed(5)
        assert task(x).patches.equal(asked(1))


def test_answers_do_not_see_other_pairs(images):
    task, x = build(TINY).eval(), to_float(images.images[:2])
    patches = task.draw(x)
    other = patches.clone()
    other[:, AROUND[0]] += 1
    def answers(patches):
        task.draw = lambda x: patches
        return task(x).logits
    with torch.no_grad(): a, b = answers(patches), answers(other)
    assert a[:, 1:].equal(b[:, 1:]) and not a[:, 0].equal(b[:, 0])
    other[:, CENTRE] += 1
    with torch.no_grad(): assert not answers(other)[:, 1:].equal(a[:, 1:])


def test_a_stopped_run_ends_like_one_that_was_not(images, tmp_path):
    whole, logs, _ = pretrain(images, TINY, tmp_path/'whole', progress=False)
    with pytest.raises(KeyboardInterrupt): pretrain(images, TINY, tmp_path/'stopped', progress=False, cbs=Stop())
    resumed, again, _ = pretrain(images, TINY, tmp_path/'stopped', resume=True, progress=False)
    loaded = load_weights(tmp_path/'stopped')
    assert logs == again and isinstance(loaded, ContextPrediction) and loaded.recipe == TINY
    for other in resumed, loaded:
        for (name, a), b in zip(whole.state_dict().items(), other.state_dict().values()): assert a.equal(b), name


@pytest.mark.parametrize('wrong, says', [
    (dict(patch=12), 'three patches of 12 px with gaps of 3 and a jitter of 1 take 44 px, and size is 32'),
    (dict(colours='grey'), 'colours must be one of drop, project, keep'), (dict(jitter=-1), 'jitter must'),
    (dict(gap=2.5), 'gap'), (dict(tile=8), 'tile')])
def test_wrong_fields_are_named(wrong, says):
    with pytest.raises(SpotError, match=says): ContextChoices.from_dict({**TINY.to_dict(), **wrong})


def test_lens_study_has_a_row_for_each_case(images):
    rows = lens_study(images, images, replace(TINY, epochs=.2), cases=((0, 'keep'), (2, 'drop')), kind=PatchPlace)
    assert [(r['shift'], r['colours']) for r in rows] == [(0, 'keep'), (2, 'drop')]
    assert all(0 <= r['accuracy'] <= 100 for r in rows)


def test_command(images, tmp_path, succeeds, fails):
    folder, out = write_images(tmp_path/'photos', images=images.images[:20]), tmp_path/'run'
    words = ['pretrain', '--pretext', 'context', '--images', folder, '--out', out, '--size', 32, '--width', .05,
             '--batch', 8, '--device', 'cpu', '--steps', 2]
    assert 'accuracy' in succeeds(*words).out
    results = json.loads((out/'results.json').read_text())
    assert results['recipe']['pretext'] == 'context' and 0 <= results['task']['accuracy'] <= 1
    assert isinstance(load_weights(out), ContextPrediction)
    fails(*words, says=[out])
