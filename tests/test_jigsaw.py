"Jigsaw puzzles: permutations, tiles and what is done to them; runs that stop, and the command."
import json
from dataclasses import replace

import pytest
import torch
from images import write_images
from test_context import Stop

from spot_artifacts.context import cut
from spot_artifacts.core import SpotError
from spot_artifacts.data import to_float
from spot_artifacts.jigsaw import (Jigsaw, JigsawChoices, TABLE5, as_bytes, average_and_minimum,
                                   colour_share, distances, jitter_channels, normalise, permutation_set,
                                   shortcut_study, thin, tile_corners, tiles_in_place, to_grey)
from spot_artifacts.pretraining import pretrain
from spot_artifacts.recipe import build
from spot_artifacts.runs import load_weights
from spot_artifacts.toy import toy_images
from spot_artifacts.transfer.probes import held_against

TINY = JigsawChoices.small(32, width=.05, permutations=10, fc6=8, fc7=8, batch=8, epochs=3., bf16=False)


@pytest.fixture(scope='module')
def images(): return toy_images(40, 32, cache=False)


@pytest.mark.parametrize('maximal', [True, False])
def test_a_set_has_different_permutations(maximal):
    found = permutation_set(30, 1, maximal)
    assert found.sort(1).values.equal(torch.arange(9).expand(30, 9)) and len({tuple(p) for p in found.tolist()}) == 30
    assert average_and_minimum(found)[1] >= 2


def test_each_step_of_the_greedy_choice_is_best():
    found = permutation_set(9, 2)
    assert distances(found).sum() == 9*8*9                              # nine that differ at every place exist
    assert average_and_minimum(permutation_set(9, 2, maximal=False))[0] < 5


def test_thinned_sets_keep_their_distance():
    for distance in (0, 6, 7, 8, 9):
        kept = thin(permutation_set(40), distance)
        assert len(kept) == 1 or average_and_minimum(kept)[1] >= distance
    assert thin(permutation_set(40), 0).equal(permutation_set(40))


@pytest.mark.parametrize('size, tile, gap', [(32, 8, 2), (24, 8, 0), (30, 5, 5)])
def test_tiles_are_in_the_image_and_apart(size, tile, gap):
    order, g = torch.arange(9).expand(400, 9), torch.Generator().manual_seed(0)
    corners = tile_corners(order, size, tile, gap, g)
    assert corners.min() >= 0 and corners.max() + tile <= size
    gaps = (corners[:, [1, 2, 4, 5, 7, 8], 1] - corners[:, [0, 1, 3, 4, 6, 7], 1]) - tile
    assert gaps.min() == 0 and gaps.max() == 2*gap


def test_the_order_is_that_of_the_tiles():
    "An image whose cells hold their own numbers, cut one by one."
    x = torch.arange(9.).view(1, 1, 3, 3).repeat_interleave(8, 2).repeat_interleave(8, 3)
    order = permutation_set(5)
    tiles = cut(x.expand(5, -1, -1, -1), tile_corners(order, 24, 8, 0), 8)
    for tile, number in zip(tiles.flatten(0, 1), order.flatten()): assert (tile == number).all()


def test_preparation_of_tiles():
    t = torch.rand(5, 3, 8, 8)
    assert normalise(t).mean((2, 3)).abs().max() < 1e-5
    assert (normalise(t, 0.).std((2, 3), correction=0) - 1).abs().max() < 1e-5
    assert torch.allclose(normalise(3*t + 1, 0.), normalise(t, 0.), atol=1e-4)
    assert jitter_channels(t, torch.zeros(5, 3, 2, dtype=torch.long)).equal(t)
    down = torch.tensor([1, 0]).expand(5, 3, 2)
    assert jitter_channels(t, down)[..., 1:, :].equal(t[..., :-1, :])
    grey = to_grey(t, torch.tensor([True]*5))
    assert torch.allclose(grey[:, 0], grey[:, 1]) and torch.allclose(grey[:, 1], grey[:, 2])


def test_grey_images_keep_equal_channels(images):
    task = build(replace(TINY, grey=1., channel_jitter=2))
    tiles = task(to_float(images.images[:4])).patches
    assert torch.allclose(tiles[:, :, 0], tiles[:, :, 2], atol=1e-3)


def test_puzzles_follow_from_the_seed(images):
    task, x = build(TINY), to_float(images.images)
    def asked(seed):
        with task.seeded(seed): return task(x)
    a, b, c = asked(1), asked(1), asked(2)
    assert a.patches.equal(b.patches) and a.target.equal(b.target)
    assert not a.patches.equal(c.patches) and not a.target.equal(c.target)


def test_a_wrong_answer_has_some_tiles_in_place(images):
    task = build(TINY)
    out = task(to_float(images.images[:6]))
    said = (out.target + 1) % 10
    out = out._replace(logits=torch.nn.functional.one_hot(said, 10).float())
    plain = [sum(a == b for a, b in zip(task.permutations[s].tolist(), task.permutations[t].tolist()))/9
             for s, t in zip(said[:, 0], out.target[:, 0])]
    assert abs(tiles_in_place(out) - sum(plain)/6) < 1e-6 and task.accuracy(out) == 0


def test_a_stopped_run_ends_like_one_that_was_not(images, tmp_path):
    whole, logs, _ = pretrain(images, TINY, tmp_path/'whole', progress=False)
    with pytest.raises(KeyboardInterrupt): pretrain(images, TINY, tmp_path/'stopped', progress=False, cbs=Stop())
    resumed, again, _ = pretrain(images, TINY, tmp_path/'stopped', resume=True, progress=False)
    loaded = load_weights(tmp_path/'stopped')
    assert logs == again and isinstance(loaded, Jigsaw) and loaded.permutations.equal(whole.permutations)
    for other in resumed, loaded:
        for (name, a), b in zip(whole.state_dict().items(), other.state_dict().values()): assert a.equal(b), name


@pytest.mark.parametrize('wrong, says', [
    (dict(tile=10), 'three tiles of 10 px with gaps of 2 take 36 px, and size is 32'), (dict(grey=1.5), 'grey must'),
    (dict(permutations=1), 'permutations must'), (dict(normalised='yes'), 'normalised'), (dict(patch=8), 'patch')])
def test_wrong_fields_are_named(wrong, says):
    with pytest.raises(SpotError, match=says): JigsawChoices.from_dict({**TINY.to_dict(), **wrong})


def test_shortcut_study_has_a_row_for_each_switch(images):
    rows = {name: TABLE5[name] for name in ('all three', 'without gap')}
    found = shortcut_study(images, images, replace(TINY, epochs=.2), rows, labels=30, feature_dim=50)
    assert list(found) == [*rows, 'random weights'] and 'accuracy' not in found['random weights']
    for row in found.values():
        assert 0 <= row['probe']['conv4'] <= 100 and 0 < row['colour'] < 100
        assert len(bytes.fromhex(row['filters'])) % 75 == 0             # 3 x 5 x 5 values each
    for name in rows: assert 0 <= found[name]['accuracy'] <= 100 and 0 <= found[name]['tiles_in_place'] <= 100


def test_colour_is_what_a_grey_image_does_not_excite():
    w = torch.randn(4, 3, 5, 5)
    grey, colour = w.mean(1, keepdim=True).expand_as(w), w - w.mean(1, keepdim=True)
    assert colour_share(grey).max() < 1e-6 and colour_share(colour).min() > 1 - 1e-6
    assert torch.allclose((w*grey).sum((1, 2, 3))/(w*w).sum((1, 2, 3)), 1 - colour_share(w), atol=1e-5)
    assert max(bytes.fromhex(as_bytes(w.abs()))) == 127


@pytest.mark.parametrize('low, high, printed, says', [
    (.1, 2., 5., 'agrees'), (.1, 2., -5., 'disagrees'), (-2., -.1, -5., 'agrees'), (-2., -.1, 5., 'disagrees'),
    (-1., 2., 5., 'cannot be told apart'), (None, None, 5., 'cannot be told apart')])
def test_only_an_interval_without_zero_has_a_sign(low, high, printed, says):
    mean = None if low is None else (low + high)/2
    assert held_against(dict(mean=mean, low=low, high=high), printed) == says


def test_command(images, tmp_path, succeeds):
    folder, out = write_images(tmp_path/'photos', images=images.images[:20]), tmp_path/'run'
    recipe = tmp_path/'recipe.json'
    recipe.write_text(json.dumps(TINY.to_dict()))
    said = succeeds('pretrain', '--pretext', 'jigsaw', '--images', folder, '--out', out, '--recipe', recipe,
                    '--device', 'cpu', '--steps', 2).out
    results = json.loads((out/'results.json').read_text())
    assert 'tiles_in_place' in said and results['recipe']['permutations'] == 10
    assert set(results['task']) == {'loss', 'accuracy', 'tiles_in_place'}
