"""Runs and weights that are damaged, foreign or stopped, from the command line."""
import errno, json, os, pickle, shutil, signal, subprocess, zipfile

import pytest, torch
from command import TINY, halve, start, state, wait_for
from fastai.callback.core import Callback
from images import write_images
from safetensors import safe_open
from safetensors.torch import save_file

from spot_artifacts import monitor, runs
from spot_artifacts.core import Diverged
from spot_artifacts.folders import folder_images
from spot_artifacts.pretraining import pretrain
from spot_artifacts.recipe import Recipe
from spot_artifacts.runs import before, load_checkpoint, load_weights


def same_weights(a, b):
    a, b = load_weights(a).state_dict(), load_weights(b).state_dict()
    return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


def digests(run):
    "The SHA-256 of the contents of all checkpoints."
    return {f.name: torch.load(f, weights_only=True)['sha256'] for f in run.glob('*.ckpt')}


def flip(file):
    "One bit, in the middle of the largest tensor."
    with zipfile.ZipFile(file) as z: largest = max(z.infolist(), key=lambda part: part.file_size)
    content = bytearray(file.read_bytes())
    content[largest.header_offset + 128 + largest.file_size//2] ^= 1
    file.write_bytes(content)


class Bomb:
    "Unpickled, it writes a file."
    def __init__(self, file): self.file = str(file)
    def __reduce__(self): return open, (self.file, 'w')


def test_the_bomb_is_live(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path/'boom')))
    assert (tmp_path/'boom').exists()


both_pickles = pytest.mark.parametrize('dump', [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))],
                                       ids=['torch', 'pickle'])


# ---- weights

def rewrite(file, change):
    "Write a safetensors file again after `change(header, tensors)`."
    with safe_open(file, 'pt') as f: header, tensors = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}
    change(header, tensors)
    save_file(tensors, file, header)


def set_field(name, value):
    def change(header, tensors): header['recipe'] = json.dumps({**json.loads(header['recipe']), name: value})
    return change


@pytest.mark.parametrize('change, says', [
    (set_field('width', .1), 'another architecture'), (set_field('layers', 3), 'another architecture'),
    (set_field('bn_fc', True), 'another architecture'), (set_field('slop', .1), "Did you mean 'slope'?"),
    (set_field('drop_rate', 7), 'drop_rate must lie between'),
    (lambda header, tensors: header.update(recipe='{'), 'damaged'),
    (lambda header, tensors: header.pop('recipe'), 'damaged'),
    (lambda header, tensors: tensors.pop(min(tensors)), 'another architecture'),
    (lambda header, tensors: tensors.update(extra=torch.zeros(1)), 'another architecture')],
    ids=['width', 'depth', 'batch norm', 'unknown field', 'out of range', 'header not JSON', 'no recipe',
         'missing tensor', 'extra tensor'])
def test_weights_that_do_not_fit(run, photos, fails, change, says):
    file = run/'weights.safetensors'
    rewrite(file, change)
    fails('spot', '--weights', run, '--device', 'cpu', photos/'cats/00.png', says=[file, says])


@pytest.mark.parametrize('spoil', [halve, lambda f: f.write_bytes(b''), lambda f: f.write_text('hello')],
                         ids=['cut', 'empty', 'text'])
def test_damaged_weights(run, fails, spoil):
    spoil(run/'weights.safetensors')
    fails('info', '--weights', run, says=[run/'weights.safetensors', 'damaged', 'spot-artifacts pretrain'])


def test_no_weights(tmp_path, fails):
    for path in tmp_path, tmp_path/'none.safetensors':
        fails('info', '--weights', path, says=[path, 'no weights', 'run folder'])


@both_pickles
def test_weights_that_are_a_pickle_are_never_executed(run, tmp_path, fails, dump):
    file = run/'weights.safetensors'
    dump(Bomb(tmp_path/'boom'), file)
    fails('info', '--weights', run, says=[file, 'damaged'])
    fails('info', '--weights', file.rename(tmp_path/'weights.pt'), says=['weights.pt', 'damaged'])
    assert not (tmp_path/'boom').exists()


# ---- in use, resumed, damaged

def resume(photos, run): return 'pretrain', '--images', photos, '--out', run, '--resume', '--device', 'cpu'


def test_a_results_folder_that_exists(run, photos, tmp_path, fails):
    was = state(run)
    fails('pretrain', '--images', photos, '--out', run, *TINY, says=[run, 'exists', '--resume', '--out'])
    assert state(run) == was
    (tmp_path/'a file').touch()
    fails('pretrain', '--images', photos, '--out', tmp_path/'a file', *TINY, says=['a file', 'exists'])
    fails('pretrain', '--images', photos, '--out', tmp_path/'a file/run', *TINY, says=['a file', 'Check the path'])


def test_resume_of_a_finished_run_changes_nothing(run, finished, photos, succeeds):
    succeeds(*resume(photos, run), '--epochs', 2, *TINY)                # the whole command may be repeated
    assert same_weights(run, finished) and state(run).keys() == state(finished).keys()


@pytest.mark.parametrize('option', ['--size 64', '--width 0.1', '--batch 4', '--seed 5', '--epochs 3', '--steps 7',
                                    '--recipe paper'])
def test_resume_with_other_options(run, photos, fails, option):
    was = state(run)
    fails(*resume(photos, run), *option.split(), says=[run, 'began with', 'Leave'])
    assert state(run) == was


def test_resume_with_other_images(run, tmp_path, fails):
    fails(*resume(write_images(tmp_path/'others', 24, seed=9), run), says=[run, 'other images', 'give the same folder'])


@pytest.mark.parametrize('there', [False, True])
def test_resume_where_no_run_is(tmp_path, photos, fails, there):
    if there: (tmp_path/'run').mkdir()
    fails(*resume(photos, tmp_path/'run'), says=[tmp_path/'run', 'no run to resume', 'without --resume'])


def other_phase(file):
    phase, _, rest = file.name.partition('.')
    shutil.copy(file.with_name(f'{dict(auto="game", game="auto")[phase]}.{rest}'), file)


@pytest.mark.parametrize('name', ['auto.ckpt', 'game.ckpt'])
@pytest.mark.parametrize('spoil', [halve, lambda f: f.write_bytes(b''), lambda f: torch.save({'model': 3}, f),
                                   lambda f: torch.save([1, 2], f), other_phase, flip],
                         ids=['cut', 'empty', 'dictionary', 'list', 'other phase', 'bit'])
def test_a_damaged_checkpoint(run, finished, photos, fails, succeeds, name, spoil):
    files = run/name, before(run/name)
    spoil(run/name)
    said = succeeds(*resume(photos, run))
    assert said.err == f'{run/name}: damaged. Going on from {files[1].name}, one round earlier.\n'
    assert same_weights(run, finished) and digests(run) == digests(finished), 'although one round is played again'
    for file in files: spoil(file)
    was = state(run)
    fails(*resume(photos, run), says=[*files, 'delete both', '--resume'])
    assert state(run) == was, 'the other files must stay as they are'
    for file in files: file.unlink()
    succeeds(*resume(photos, run))                                      # what the line advises
    assert same_weights(run, finished)


@both_pickles
def test_a_hostile_checkpoint_is_never_executed(run, photos, tmp_path, fails, dump):
    for file in run/'game.ckpt', before(run/'game.ckpt'): dump(dict(model=Bomb(tmp_path/'boom'), sha256=''), file)
    fails(*resume(photos, run), says=[run/'game.ckpt', 'delete both', '--resume'])
    assert not (tmp_path/'boom').exists()


@pytest.mark.parametrize('name', ['run.json', 'recipe.json'])
@pytest.mark.parametrize('text', ['', '{"data": ', '[]', '{}'])
def test_damaged_run_files(run, photos, fails, name, text):
    (run/name).write_text(text)
    if (name, text) != ('recipe.json', '{}'): fails(*resume(photos, run), says=[name])


# ---- during a run

def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_saved(monkeypatch, module, name, good):
    "Let `module.name(what, file, ...)` work `good` times, and then find the disk full after half a file."
    save, calls = getattr(module, name), []
    def write(what, file, *args, **kw):
        calls.append(file)
        save(what, file, *args, **kw)
        if len(calls) > good:
            os.truncate(file.fileno() if hasattr(file, 'fileno') else file, 1000)
            full()
    monkeypatch.setattr(module, name, write)


def rows(checkpoint): return load_checkpoint(checkpoint)['callbacks']['epoch_log']['rows']


@pytest.mark.parametrize('phase, good', [('auto', 0), ('auto', 1), ('game', 1)])
def test_no_space_for_a_checkpoint(photos, finished, tmp_path, monkeypatch, fails, succeeds, phase, good):
    out = tmp_path/'run'
    half_saved(monkeypatch, torch, 'save', good + len(rows(finished/'auto.ckpt'))*(phase == 'game'))
    fails('pretrain', '--images', photos, '--out', out, '--epochs', 2, *TINY,
          says=[out/f'{phase}.ckpt', 'No space left', 'Free some space', '--resume'])
    monkeypatch.undo()
    assert not list(out.glob('*tmp*')), 'half a file was left'
    if good: assert len(rows(out/f'{phase}.ckpt')) == good
    else: assert not (out/f'{phase}.ckpt').exists()
    succeeds(*resume(photos, out))
    assert same_weights(out, finished)


def test_no_space_for_the_weights(photos, finished, tmp_path, monkeypatch, fails, succeeds):
    out = tmp_path/'run'
    half_saved(monkeypatch, runs, 'save_file', 0)
    fails('pretrain', '--images', photos, '--out', out, '--epochs', 2, *TINY,
          says=[out/'weights.safetensors', 'No space left', '--resume'])
    monkeypatch.undo()
    assert not list(out.glob('*tmp*')) and not (out/'weights.safetensors').exists()
    succeeds(*resume(photos, out))
    assert same_weights(out, finished)


def test_no_space_for_a_picture(photos, tmp_path, monkeypatch, fails):
    monkeypatch.setattr(monitor.ImageGrid, 'after_epoch', full)
    fails('pretrain', '--images', photos, '--out', tmp_path/'run', '--epochs', 1, *TINY,
          says=[tmp_path/'run', 'No space left', 'free space'])


@pytest.fixture
def small_disk(tmp_path):
    "A disk of 16 MB of its own."
    disk = tmp_path/'disk'
    disk.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', disk]
    mount = shutil.which('mount') and subprocess.run(command, capture_output=True, text=True)
    if not mount or mount.returncode: pytest.skip('only root can mount a small disk, on Linux')
    yield disk
    subprocess.run(['umount', '--lazy', disk], check=True)


def test_a_disk_that_is_really_full(photos, finished, small_disk, fails, succeeds):
    "It has room for two checkpoints of the game and half of a third."
    out, other = small_disk/'run', small_disk/'other'
    with other.open('wb') as f: os.posix_fallocate(f.fileno(), 0, 2**24 - 5*(finished/'game.ckpt').stat().st_size//2)
    fails('pretrain', '--images', photos, '--out', out, '--epochs', 2, *TINY,
          says=[out/'game.ckpt', 'No space left', 'Free some space', '--resume'])
    assert not list(out.glob('*tmp*')), 'half a file was left'
    assert [len(rows(f)) for f in (out/'game.ckpt', before(out/'game.ckpt'))] == [2, 1]
    other.unlink()
    succeeds(*resume(photos, out))
    assert same_weights(out, finished) and digests(out) == digests(finished)


class Spoil(Callback):
    "After five batches of the game, a weight is no number."
    def after_step(self):
        if self.epoch*self.n_iter + self.iter == 5: next(self.model.parameters()).data[0] = torch.nan


def test_a_loss_that_is_not_finite(photos, tmp_path):
    recipe = Recipe.small(32, width=.05, ae_width=.05, ae_batch=8, batch=8, ae_epochs=3., epochs=3.)
    with pytest.raises(Diverged, match='^game.*not finite.*learning rate'):
        pretrain(folder_images(photos, 32), recipe, tmp_path/'run', progress=False, cbs=[Spoil()])
    last = load_checkpoint(tmp_path/'run/game.ckpt')
    assert 1 <= len(rows(tmp_path/'run/game.ckpt')) <= 5 and all(t.isfinite().all() for t in last['model'].values())


def test_ctrl_c_in_mid_run_and_on_to_the_end(photos, tmp_path, root, succeeds):
    out = tmp_path/'run'
    words = 'pretrain', '--images', photos, '--out', out, '--epochs', 12, *TINY
    process = start('-m', 'spot_artifacts', *words, cwd=root)
    wait_for(out/'auto.ckpt', process)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == f'spot-artifacts: stopped. {out} is kept: continue with --resume.\n'
    assert not list(out.glob('*tmp*')) and not (out/'weights.safetensors').exists()
    assert rows(out/'auto.ckpt')
    succeeds(*resume(photos, out))
    assert len((out/'game.csv').read_text().splitlines()) == 13 and load_weights(out)
