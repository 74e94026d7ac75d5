"Games that go wrong: a loss that is not finite ends the run, a player that gives up is named."

import pytest, torch
from fastai.callback.core import Callback
from fastai.learner import ValueMetric
from fastcore.foundation import L

from spot_artifacts import training
from spot_artifacts.game import Stateful
from spot_artifacts.losses import GameLoss
from spot_artifacts.core import Diverged, SpotError
from spot_artifacts.toy import toy_images
from spot_artifacts.monitor import COLLAPSES
from spot_artifacts.pretraining import pretrain
from spot_artifacts.recipe import Recipe
from spot_artifacts.runs import load_checkpoint

# eight rounds of two steps
QUICK = dict(width=.05, ae_width=.05, ae_batch=16, batch=16, ae_epochs=0., epochs=.4, bf16=False, balance=None)


@pytest.fixture(scope='module')
def data(): return toy_images(680, 32, seed=3, cache=False)    # 34 of them are held out


@pytest.mark.parametrize('phase, step', [('auto', 9), ('game', 3), ('game', 45)])
def test_a_loss_that_is_not_finite_is_named_by_its_step(phase, step, data, tmp_path, monkeypatch):
    owner, name = (training, 'ae_loss') if phase == 'auto' else (GameLoss, '__call__')
    good, steps = getattr(owner, name), []
    def broken(*args, **kw):
        value = good(*args, **kw)
        if value.requires_grad: steps.append(1)
        return value*float('inf') if value.requires_grad and len(steps) == step else value
    monkeypatch.setattr(owner, name, broken)
    epochs = dict(ae_epochs=.4 + 2.*(phase == 'auto'), epochs=8.)                  # a round of the game has 40 steps
    recipe = Recipe.small(32, **{**QUICK, **epochs})
    with pytest.raises(Diverged, match=f'{phase}: the loss is not finite at step {step}.*smaller learning rate'):
        pretrain(data, recipe, tmp_path/'run', progress=False)
    assert len(steps) <= step + 31, 'not at the end of the epoch'
    file = tmp_path/f'run/{phase}.ckpt'
    assert file.exists() == (step == 45)
    if file.exists(): assert all(t.isfinite().all() for t in load_checkpoint(file)['model'].values())


class Pretend(Callback):
    "Makes the players look as they would after a collapse."
    order = 81
    def __init__(self, **what): self.what = what
    def before_validate(self):
        if 'dead' in self.what: self.model.discriminator.backbone.conv5.norm.bias.data.fill_(-100)
    def after_pred(self):
        if self.training or 'same' not in self.what: return
        self.learn.pred = self.pred._replace(fake=self.pred.fake[:1].expand_as(self.pred.fake))
    def after_epoch(self): self.rows[-1]['accuracy'] = self.what.get('accuracy', .8)


@pytest.mark.parametrize('sign, what', [('won', dict(accuracy=1.)), ('lost', dict(accuracy=.5)), ('dead', dict(dead=1)),
                                        ('same', dict(same=1)), (None, {})])
def test_a_collapse_is_named_once(sign, what, data, tmp_path, capsys):
    pretrain(data, Recipe.small(32, **QUICK), tmp_path/'run', progress=False, cbs=[Pretend(**what)])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == bool(sign)
    if sign:
        what, helps = COLLAPSES[sign]
        assert said[0] == f'game: {what}, 3 rounds in a row. What usually helps: {helps}.'
    kept = load_checkpoint(tmp_path/'run/game.ckpt')['callbacks']['collapse_monitor']
    assert kept['rounds'] == {k: 8*(k == sign) for k in COLLAPSES}


def test_each_player_is_clipped_for_itself(data, tmp_path):
    class Norms(Callback):
        order, seen = 5, []
        def before_step(self):
            norms = [torch.stack([p.grad.norm() for p in group]).norm() for group in self.opt.param_lists]
            self.seen.append(norms)
    pretrain(data, Recipe.small(32, **QUICK, clip=.01), tmp_path/'run', progress=False, cbs=[Norms()])
    norms = torch.tensor(Norms.seen)
    assert norms.shape[1] == 2 and ((norms - .01).abs() < 1e-4).all()


def test_what_helps_are_choices_that_exist():
    known = Recipe.__dataclass_fields__
    for _, helps in COLLAPSES.values():
        for word in helps.replace('=', ' ').replace(',', ' ').split():
            if '_' in word: assert word in known, word
    Recipe.small(balance=.94, clip=1.)


def test_every_error_of_the_family_says_cause_and_fix():
    for kind in SpotError.__subclasses__():
        cause, *fix = kind.__doc__.split('. ')
        assert len(cause) > 20 and fix, kind


class Once(Callback):
    "A metric that a resumed run may lack."
    def before_fit(self):
        if 'extra' in self.metrics.attrgot('name'): return
        self.learn.metrics = self.metrics + L(ValueMetric(lambda: 1., 'extra'))


class StopsAt(Callback):
    order = 99
    def __init__(self, epoch): self.at = epoch
    def after_epoch(self):
        if self.epoch == self.at: raise KeyboardInterrupt


@pytest.mark.parametrize('first, then', [([Once()], []), ([], [Once()])], ids=['lost', 'new'])
def test_a_log_keeps_its_columns_when_a_run_goes_on_with_other_callbacks(first, then, data, tmp_path):
    recipe = Recipe.small(32, **QUICK)
    with pytest.raises(KeyboardInterrupt):
        pretrain(data, recipe, tmp_path/'run', progress=False, cbs=[*first, StopsAt(1)])
    _, logs, _ = pretrain(data, recipe, tmp_path/'run', progress=False, resume=True, cbs=then)
    head, *rows = (line.split(',') for line in (tmp_path/'run/game.csv').read_text().splitlines())
    assert len(rows) == len(logs['game']) == 8 and all(len(row) == len(head) for row in rows)
    column = [row[head.index('extra')] for row in rows]
    assert column == (['1']*2 + ['']*6 if first else ['']*2 + ['1']*6)
    assert float(rows[-1][head.index('lr_r')]) == pytest.approx(logs['game'][-1]['lr_r'], rel=1e-4)


def test_a_callback_with_a_memory_may_join_later(data, tmp_path):
    class Counts(Stateful):
        keeps, n = ('n',), 0
        def after_step(self): self.n += 1
    recipe, cb = Recipe.small(32, **QUICK), Counts()
    with pytest.raises(KeyboardInterrupt): pretrain(data, recipe, tmp_path/'run', progress=False, cbs=StopsAt(1))
    pretrain(data, recipe, tmp_path/'run', progress=False, resume=True, cbs=cb)
    assert cb.n > 0
