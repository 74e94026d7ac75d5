"What notebook 24 shows on one recipe, on the others: every field does something, and nothing breaks."
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ShowGraphCallback
from fastai.learner import load_learner

from spot_artifacts import training
from spot_artifacts.core import Diverged
from spot_artifacts.data import random_split
from spot_artifacts.losses import Game, Verdict
from spot_artifacts.monitor import TerminateOnNaN
from spot_artifacts.pretraining import fit, measure, pretrain
from spot_artifacts.recipe import Recipe, build
from spot_artifacts.report import verdicts
from spot_artifacts.runs import load_weights
from spot_artifacts.toy import toy_images
from spot_artifacts.training import game_learner, game_loss, get_dls


def tiny(**changes):
    quick = dict(width=.1, ae_width=.1, ae_batch=16, batch=16, ae_epochs=.5, epochs=.5, bf16=False)
    return Recipe.small(32, **{**quick, **changes})


@pytest.fixture(scope='module')
def data(): return toy_images(72, 32, seed=3, cache=False)


def learner(data, recipe, steps=4, cbs=()):
    torch.manual_seed(0)
    dls, rounds, total = get_dls(*random_split(data), recipe, steps*recipe.batch/(len(data) - 4), recipe.batch)
    return game_learner(dls, build(recipe), recipe, total, cbs), rounds


VARIANTS = dict(
    paper=dict(objective='minimax', kept_weight=0., balance=None, drop_rate=.7, lrn=True),
    local=dict(repair='local'), none=dict(repair='none'), ungated=dict(gated=False), real=dict(real='image'),
    noise=dict(fill='noise'), padding=dict(mean_counts_padding=True), overlap=dict(kernel=3),
    no_mask=dict(mask_weight=0.), no_history=dict(history=0.), softmax=dict(class_outputs=2, bn_fc=True),
    shares=dict(repair_shares=True, mask_on_real=True, mask_mean=True), turns=dict(update='alternating'),
    average=dict(ema=.9), blocks=dict(repair_blocks=2), plain=dict(repair_preact=False, tanh=False, slope=.2),
    flipped=dict(objective='flipped'), dropout=dict(dropout=.5),
    bytes=dict(bytes_in=True, lrn=True, lrn_after_pool=True), legacy=dict(conventions='tensorflow', l2=1e-4),
    clip=dict(clip=1.), bf16=dict(bf16=True), tall=dict(layers=3), gan=dict(fakes='gan'))


@pytest.mark.parametrize('name', VARIANTS)
def test_every_choice_plays(name, data, tmp_path):
    recipe = tiny(**VARIANTS[name])
    players, logs, seconds = pretrain(data, recipe, tmp_path/'run', progress=False)
    assert all(torch.isfinite(p).all() for p in players.parameters())
    assert set(logs) == set(seconds) == {'auto', 'game'}
    assert 0 <= measure(players, data[:8])['classifier']['accuracy'] <= 100
    again = load_weights(tmp_path/'run')
    assert again.recipe == recipe
    assert all(a.equal(b) for a, b in zip(players.state_dict().values(), again.state_dict().values()))


def test_released_and_paper_recipes_build_and_play(data, tmp_path):
    for recipe in (Recipe.released, Recipe.paper):
        small = recipe(size=32, layers=2, width=.1, ae_width=.1, ae_batch=16, batch=16, ae_epochs=.3, epochs=.3)
        pretrain(data, small, tmp_path/recipe.__name__, progress=False)


OTHER = dict(real='image', fill='noise', drop_rate=.2, history=0., mask_weight=0., objective='minimax',
             repair_shares=True, mask_on_real=True, kept_weight=0., update='alternating', lr=1e-4, seed=1)


@pytest.mark.parametrize('field', OTHER)
def test_every_choice_changes_the_outcome(field, data):
    runs = [learner(data, tiny(**change)) for change in ({}, {field: OTHER[field]})]
    for learn, rounds in runs: fit(learn, rounds, progress=False)
    of_r = field in ('objective', 'repair_shares', 'kept_weight')
    moved = [learn.model.repaired.blocks if of_r else learn.model.discriminator for learn, _ in runs]
    a, b = (next(m.parameters()) for m in moved)
    assert not a.equal(b)


class Moves(Callback):
    "Remembers which player moved at each step."
    def before_fit(self): self.moved = []
    def players(self):
        both = self.model.discriminator, self.model.repaired.blocks
        return [[p.detach().clone() for p in m.parameters()] for m in both]
    def before_batch(self): self.before = self.players()
    def after_batch(self):
        if not self.training: return
        pairs = zip(self.before, self.players())
        self.moved.append(tuple(any(not a.equal(b) for a, b in zip(x, y)) for x, y in pairs))


def test_simultaneous_and_alternating_players(data):
    for update, expected in (('simultaneous', [(True, True)]*4), ('alternating', [(True, False), (False, True)]*2)):
        moves = Moves()
        learn, rounds = learner(data, tiny(update=update), cbs=[moves])
        fit(learn, rounds, progress=False)
        assert moves.moved == expected


def test_average_lags_behind(data):
    learn, rounds = learner(data, tiny(ema=.9))
    start = [p.detach().clone() for p in learn.ema.weights]
    fit(learn, rounds, progress=False)
    both = [*learn.model.discriminator.parameters(), *learn.model.repair_net.parameters()]
    assert len(learn.ema.average) == len(both)
    a, m, b = (torch.cat([t.flatten() for t in ts]) for ts in (start, learn.ema.average, learn.ema.weights))
    assert 0 < (m - a).norm() < (b - a).norm()


@pytest.mark.parametrize('steps, images, batch', [(9, 72, 16), (7, 72, 16), (1, 72, 16), (20, 12, 64)])
def test_a_run_has_exactly_the_steps_that_were_asked_for(steps, images, batch, data, tmp_path):
    "With fewer images than a batch, a step takes them all: 20 epochs are 20 steps."
    n = images - 4 if images > 12 else images - 2
    recipe = tiny(ae_epochs=0., epochs=steps*min(batch, n)/n, batch=batch)
    _, logs, _ = pretrain(data[:images], recipe, tmp_path/'run', progress=False)
    assert logs['game'][-1]['step'] == steps


def test_a_loss_that_is_not_finite_ends_a_learner_without_a_log(data):
    class BadLoss(Callback):
        run_before = TerminateOnNaN
        def after_loss(self):
            if self.training and self.epoch == 2: self.learn.loss_grad = self.learn.loss = self.loss*float('nan')
    learn, rounds = learner(data, tiny(balance=None), cbs=[BadLoss(), TerminateOnNaN()])
    with pytest.raises(Diverged, match='game: the loss is not finite at step 3'): fit(learn, rounds, progress=False)


def test_frozen_player_gets_no_gradient_through_a_whole_epoch(data):
    learn, rounds = learner(data, tiny())
    before = {k: t.clone() for k, t in learn.model.frozen.state_dict().items()}
    fit(learn, rounds, progress=False)
    assert all(before[k].equal(t) for k, t in learn.model.frozen.state_dict().items())


def test_bf16_gradients_are_near_those_of_fp32(data):
    grads = []
    for bf16 in (False, True):
        torch.manual_seed(0)
        players = build(tiny(bf16=bf16))
        torch.manual_seed(1)
        x = torch.rand(16, 3, 32, 32)*2 - 1
        game_loss(players.recipe)(players(x)).backward()
        grads.append(torch.cat([p.grad.flatten() for p in players.discriminator.parameters()]))
    assert torch.cosine_similarity(*grads, dim=0) > .99


@pytest.mark.filterwarnings('ignore')
def test_the_game_is_a_learner_like_any_other(data, tmp_path):
    "Cast, collected, shown and exported by fastai."
    learn, rounds = learner(data, tiny(), cbs=[ShowGraphCallback(), MixedPrecision()])
    learn.path = tmp_path
    learn.fit(2)
    learn.remove_cbs([learn.show_graph, learn.mixed_precision])
    with learn.no_bar(): game, x = learn.get_preds()
    assert isinstance(game, Game) and isinstance(game.for_c, Verdict) and game.x.equal(x) and len(x) == 4
    learn.export()
    again = load_learner(tmp_path/'export.pkl')
    assert all(a.equal(b) for a, b in zip(learn.model.state_dict().values(), again.model.state_dict().values()))


def test_a_gan_has_a_demo_and_figures(tmp_path):
    from spot_artifacts.demo import demo
    from spot_artifacts.figures import all_figures
    recipe = Recipe.demo(size=32, width=.1, ae_width=.1, ae_epochs=.5, epochs=.5, fakes='gan')
    few = dict(images=100, tests=50, labels=60, seeds=(0,), random_seeds=(0,), most=1)
    results = demo(tmp_path/'demo', recipe=recipe, plan=few)
    assert len(verdicts(results)) == 3 and results['mask']['iou'] is None
    assert 'its guess is right' not in (tmp_path/'demo/report.html').read_text()
    assert all_figures(load_weights(tmp_path/'demo'), toy_images(20, 32, seed=1).images, tmp_path/'figures')


def test_processes_have_parts_of_one_size(data, monkeypatch):
    monkeypatch.setattr(training, 'world_size', lambda: 2)
    dls, _, _ = get_dls(data[:39], data[:4], tiny(), 1., 64)
    assert dls.train.bs == 38
