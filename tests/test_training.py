"What notebook 24 shows on one recipe, on the others: every field does something, and nothing breaks."
import json
from dataclasses import asdict

import pytest
import torch
from fastai.callback.core import Callback

from spot_artifacts.core import SpotError
from spot_artifacts.toy import toy_images
from spot_artifacts.data import random_split
from spot_artifacts.game import Balance, ReplayBuffer, EMA
from spot_artifacts.players import GameLoss
from spot_artifacts.pretraining import fit, measure, pretrain
from spot_artifacts.recipe import Recipe, build
from spot_artifacts.runs import load_weights
from spot_artifacts.training import game_learner, get_dls


def tiny(**changes):
    return Recipe.small(32, **{**dict(width=.1, ae_width=.1, ae_batch=16, batch=16, ae_epochs=.5, epochs=.5, bf16=False), **changes})


@pytest.fixture(scope='module')
def data(): return toy_images(72, 32, seed=3, cache=False)


def learner(data, recipe, steps=4, cbs=()):
    torch.manual_seed(0)
    dls, rounds, total = get_dls(*random_split(data), recipe, steps*recipe.batch/(len(data) - 4), recipe.batch)
    return game_learner(dls, build(recipe), recipe, total, cbs), rounds


VARIANTS = dict(paper=dict(objective='minimax', kept_weight=0., balance=None, drop_rate=.7, lrn=True), local=dict(repair='local'), none=dict(repair='none'), ungated=dict(gated=False),
    real=dict(real='image'), noise=dict(fill='noise'), padding=dict(mean_counts_padding=True), overlap=dict(kernel=3), no_mask=dict(mask_weight=0.),
    no_history=dict(history=0.), softmax=dict(class_outputs=2, bn_fc=True), shares=dict(repair_shares=True, mask_on_real=True, mask_mean=True),
    turns=dict(update='alternating'), average=dict(ema=.9), blocks=dict(repair_blocks=2), plain=dict(repair_preact=False, tanh=False, slope=.2),
    flipped=dict(objective='flipped'), dropout=dict(dropout=.5), bytes=dict(bytes_in=True, lrn=True, lrn_after_pool=True), legacy=dict(conventions='tensorflow', l2=1e-4), clip=dict(clip=1.),
    bf16=dict(bf16=True), tall=dict(layers=3), gan=dict(fakes='gan'))


@pytest.mark.parametrize('name', VARIANTS)
def test_every_choice_plays(name, data, tmp_path):
    recipe = tiny(**VARIANTS[name])
    players, logs, seconds = pretrain(data, recipe, tmp_path/'run', progress=False)
    assert all(torch.isfinite(p).all() for p in players.parameters())
    assert set(logs) == set(seconds) == {'auto', 'game'}
    assert 0 <= measure(players, data[:8])['classifier']['accuracy'] <= 100
    again = load_weights(tmp_path/'run')
    assert again.recipe == recipe and all(a.equal(b) for a, b in zip(players.state_dict().values(), again.state_dict().values()))


def test_released_and_paper_recipes_build_and_play(data, tmp_path):
    for recipe in (Recipe.released, Recipe.paper):
        small = recipe(size=32, layers=2, width=.1, ae_width=.1, ae_batch=16, batch=16, ae_epochs=.3, epochs=.3)
        pretrain(data, small, tmp_path/recipe.__name__, progress=False)


@pytest.mark.parametrize('field', ['real', 'fill', 'drop_rate', 'history', 'mask_weight', 'objective', 'repair_shares', 'mask_on_real', 'kept_weight', 'update', 'lr', 'seed'])
def test_every_choice_changes_the_outcome(field, data, tmp_path):
    other = dict(real='image', fill='noise', drop_rate=.2, history=0., mask_weight=0., objective='minimax', repair_shares=True, mask_on_real=True, kept_weight=0.,
                 update='alternating', lr=1e-4, seed=1)[field]
    runs = [learner(data, tiny(**change)) for change in ({}, {field: other})]
    for learn, rounds in runs: fit(learn, rounds, progress=False)
    moved = (lambda m: m.repaired.blocks) if field in ('objective', 'repair_shares', 'kept_weight') else (lambda m: m.discriminator)
    a, b = (next(moved(learn.model).parameters()) for learn, _ in runs)
    assert not a.equal(b)


class CollapseMonitor(Callback):
    "Remembers both players' parameters before and after each step."
    def before_fit(self): self.moved = []
    def snapshot(self): return [[p.detach().clone() for p in m.parameters()] for m in (self.model.discriminator, self.model.repaired.blocks)]
    def before_batch(self): self.before = self.snapshot()
    def after_batch(self):
        if self.training: self.moved.append(tuple(any(not a.equal(b) for a, b in zip(x, y)) for x, y in zip(self.before, self.snapshot())))


def test_simultaneous_and_alternating_players(data):
    for update, expected in (('simultaneous', {(True, True)}), ('alternating', {(True, False), (False, True)})):
        watch = CollapseMonitor()
        learn, rounds = learner(data, tiny(update=update), cbs=[watch])
        fit(learn, rounds, progress=False)
        assert len(watch.moved) == 4 and set(watch.moved) == expected


def test_history_mixes_its_share(data):
    learn, rounds = learner(data, tiny(history=.5), steps=1)
    mix = learn.replay_buffer
    x = torch.rand(8, 3, 32, 32)*2 - 1
    learn.training, learn.pred = True, learn.model(x)
    mix.after_pred()
    learn.pred = learn.model(x)
    fresh = learn.pred.fake.detach()
    mix.after_pred()
    seen = learn.pred.seen
    assert sum(any(s.equal(f) for f in fresh) for s in seen) == 4
    assert sum(any(s.equal(f) for f in mix.fakes) for s in seen[4:]) >= 1
    assert len(seen) == len(learn.pred.seen_mask) == 8 and not seen.requires_grad


def test_balance_slows_the_winner():
    class Opt:
        hypers = [dict(lr=1.), dict(lr=1.)]
        def set_hyper(self, _, values): self.lrs = values
    for accuracy, faster in ((1., True), (.5, False)):
        balance, opt = Balance(.8, every=1), Opt()
        balance.learn = type('L', (), dict(opt=opt, linear_decay=type('D', (), dict(step=0)), loss_func=type('F', (), dict(stats=dict(accuracy=torch.tensor(accuracy))))))()
        for _ in range(30): balance.before_step()
        assert opt.lrs[0] == 1 and (opt.lrs[1] > 1) == faster and .03 <= opt.lrs[1] <= 5


def test_average_lags_behind(data):
    learn, rounds = learner(data, tiny(ema=.9))
    start = [p.detach().clone() for p in learn.ema.weights]
    fit(learn, rounds, progress=False)
    assert len(learn.ema.average) == len(list(learn.model.discriminator.parameters())) + len(list(learn.model.repair_net.parameters()))
    a, m, b = (torch.cat([t.flatten() for t in ts]) for ts in (start, learn.ema.average, learn.ema.weights))
    assert 0 < (m - a).norm() < (b - a).norm()


@pytest.mark.parametrize('steps, images, batch', [(9, 72, 16), (7, 72, 16), (1, 72, 16), (20, 12, 64)])
def test_a_run_has_exactly_the_steps_that_were_asked_for(steps, images, batch, data, tmp_path):
    "With fewer images than a batch, a step takes them all: 20 epochs are 20 steps."
    n = images - 4 if images > 12 else images - 2
    recipe = tiny(ae_epochs=0., epochs=steps*min(batch, n)/n, batch=batch)
    _, logs, _ = pretrain(data[:images], recipe, tmp_path/'run', progress=False)
    assert logs['game'][-1]['step'] == steps


def test_pretrain_copies_the_images_once(data):
    "The part to learn from is a copy, made once; nothing else holds the pixels."
    from unittest import mock
    from spot_artifacts import training
    seen = []
    with mock.patch.object(training, 'random_split', side_effect=lambda *a, **k: seen.append(1) or random_split(*a, **k)):
        import tempfile
        with tempfile.TemporaryDirectory() as tmp: pretrain(data, tiny(), tmp + '/run', progress=False)
    assert len(seen) == 1


def test_stop_at_nan_needs_no_log(data):
    from spot_artifacts.core import Diverged
    from spot_artifacts.monitor import TerminateOnNaN
    class Spoil(Callback):
        run_before = TerminateOnNaN
        def after_loss(self):
            if self.training and self.epoch == 2: self.learn.loss_grad = self.learn.loss = self.loss*float('nan')
    learn, rounds = learner(data, tiny(balance=None), cbs=[Spoil(), TerminateOnNaN()])
    with pytest.raises(Diverged, match='training: the loss is not finite at step 3'): fit(learn, rounds, progress=False)


def test_frozen_player_gets_no_gradient_through_a_whole_epoch(data):
    learn, rounds = learner(data, tiny())
    before = [t.clone() for t in (*learn.model.encoder.state_dict().values(), *learn.model.repaired.decoder.state_dict().values())]
    fit(learn, rounds, progress=False)
    after = [*learn.model.encoder.state_dict().values(), *learn.model.repaired.decoder.state_dict().values()]
    assert all(a.equal(b) for a, b in zip(before, after))


def test_bf16_gradients_are_near_those_of_fp32(data):
    grads = []
    for bf16 in (False, True):
        torch.manual_seed(0)
        players = build(tiny(bf16=bf16))
        torch.manual_seed(1)
        x = torch.rand(16, 3, 32, 32)*2 - 1
        GameLoss(players)(players(x), x).backward()
        grads.append(torch.cat([p.grad.flatten() for p in players.discriminator.parameters()]))
    assert torch.cosine_similarity(*grads, dim=0) > .99


@pytest.mark.parametrize('change, words', [
    (dict(size=100), 'Try size'), (dict(drop_rate=1.), 'drop_rate'), (dict(fill='zeros'), 'mean, noise'), (dict(flip='yes'), 'number'), (dict(lrn=1), 'true or false'),
    (dict(area=(1., .5)), 'small to large'), (dict(repair_blocks=6), 'repair_blocks'), (dict(batch=1), 'batch'), (dict(repair_blocks=2.5), 'whole number'), (dict(lr=float('nan')), 'lr')])
def test_recipe_errors_name_field_and_mend(change, words):
    with pytest.raises(SpotError, match=words): Recipe(**change)


def test_recipe_survives_json():
    r = Recipe.released(size=64, layers=3)
    assert Recipe.from_dict(json.loads(json.dumps(asdict(r)))) == r
