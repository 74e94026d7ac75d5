"""What people get wrong, and what machines do to them: one line that names the thing and the mend, and nothing is lost.

On stderr stands that one line, `spot-artifacts: ...`; notices of images that were skipped or of a damaged checkpoint may stand before it."""
import errno, hashlib, json, os, pickle, shutil, signal, subprocess, sys, time

import numpy as np, pytest, torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from spot_artifacts import training
from spot_artifacts.cli import main
from spot_artifacts.runs import before, load_checkpoint, load_weights

TINY = ['--size', '32', '--width', '0.05', '--batch', '8', '--device', 'cpu']


def paint(folder, n=12, size=40, seed=0):
    "A folder of `n` coloured noise images."
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(n): Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder/f'{i:02d}.png')
    return folder


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "A folder of two classes, 12 images each."
    folder = tmp_path_factory.mktemp('photos')
    paint(folder/'cats', seed=1)
    paint(folder/'dogs', seed=2)
    return folder


@pytest.fixture(scope='module')
def finished(photos, tmp_path_factory):
    "A finished run of two epochs a phase, not to be changed."
    out = tmp_path_factory.mktemp('runs')/'finished'
    main(['pretrain', '--images', str(photos), '--out', str(out), '--epochs', '2', *TINY])
    return out


@pytest.fixture
def run(finished, tmp_path):
    "A copy of the finished run, to be spoilt."
    return shutil.copytree(finished, tmp_path/'run')


@pytest.fixture
def fails(capsys):
    "Runs a command that must fail; returns its one line, after checking that it says all of `says`."
    def check(*words, says=(), status=1):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop: main([str(w) for w in words])
        err = capsys.readouterr().err
        *notices, line = err.splitlines()
        assert stop.value.code == status and err.endswith('\n') and line.startswith('spot-artifacts: '), err
        assert all(': skipped ' in n or ': damaged. Going on from ' in n for n in notices) and 'Traceback' not in err, err
        missing = [str(s) for s in says if str(s) not in line]
        assert not missing, f'{missing} not in {line!r}'
        return line
    return check


@pytest.fixture
def succeeds(capsys):
    "Runs a command that must succeed; returns what it said."
    def check(*words):
        capsys.readouterr()
        main([str(w) for w in words])
        return capsys.readouterr()
    return check


def state(folder):
    "The content of every file in a folder, as {name: hash}."
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir() if f.is_file()}


def same_weights(a, b):
    a, b = load_weights(a).state_dict(), load_weights(b).state_dict()
    return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


def digests(run):
    "The SHA-256 of the contents of all checkpoints."
    return {f.name: torch.load(f, weights_only=True)['sha256'] for f in run.glob('*.ckpt')}


def halve(file): file.write_bytes(file.read_bytes()[:file.stat().st_size//2])


def flip(file):
    "One bit, in the middle of the largest tensor."
    content = bytearray(file.read_bytes())
    content[len(content)//2] ^= 1
    file.write_bytes(content)


class Bomb:
    "Unpickled, it writes a file."
    def __init__(self, file): self.file = str(file)
    def __reduce__(self): return open, (self.file, 'w')


def test_the_bomb_is_live(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path/'boom')))
    assert (tmp_path/'boom').exists()


# ---- folders of images

@pytest.mark.parametrize('kind, mend', [('missing', 'Give the folder'), ('empty', 'Put .jpg'), ('text', 'Give other images'), ('small', 'Give a smaller size')])
def test_folders_without_a_usable_image(tmp_path, fails, kind, mend):
    folder = tmp_path/kind
    if kind != 'missing': folder.mkdir()
    if kind == 'text': (folder/'a.png').write_text('not an image')
    if kind == 'small': paint(folder, 3, size=20)
    fails('pretrain', '--images', folder, '--out', tmp_path/'run', *TINY, says=[folder, mend])
    assert not (tmp_path/'run').exists()


def test_too_few_images(tmp_path, fails):
    fails('pretrain', '--images', paint(tmp_path/'few', 3), '--out', tmp_path/'run', *TINY, says=['few', '3 images', '8 '])
    assert not (tmp_path/'run').exists()


def test_a_truncated_jpeg_among_good_images(tmp_path, fails, succeeds):
    folder = paint(tmp_path/'mixed')
    Image.effect_noise((64, 64), 80).save(folder/'cut.jpg')
    halve(folder/'cut.jpg')
    command = 'pretrain', '--images', folder, '--steps', 1, *TINY
    said = succeeds(*command, '--out', tmp_path/'run')
    assert said.err.count('\n') == 1 and 'skipped 1 of 13 images: cut.jpg (' in said.err and 'truncated' in said.err
    assert json.loads((tmp_path/'run/results.json').read_text())['data']['skipped'] == 1
    fails(*command, '--out', tmp_path/'strict', '--strict', says=['cut.jpg', 'truncated', 'remove'])
    assert not (tmp_path/'strict').exists()


def test_labels_wanted_but_none_there(run, tmp_path, fails):
    fails('probe', '--weights', run, '--images', paint(tmp_path/'flat'), '--device', 'cpu', says=['flat', 'Give each of two or more classes'])


def test_classes_of_training_and_test_differ(run, photos, tmp_path, fails):
    paint(tmp_path/'test/cats')
    paint(tmp_path/'test/horses')
    fails('probe', '--weights', run, '--images', photos, '--test', tmp_path/'test', '--device', 'cpu', says=[tmp_path/'test', 'Give both the same classes'])


def test_spot_judges_what_it_can_and_names_the_rest(run, photos, tmp_path, fails):
    good, bad = photos/'cats/00.png', tmp_path/'bad.png'
    bad.touch()
    out = tmp_path/'spotted'
    fails('spot', '--weights', run, '--out', out, '--device', 'cpu', good, bad, tmp_path/'none.png', says=['2 of 3', bad, 'none.png', 'Give another image'])
    assert [found['image'] for found in json.loads((out/'spot.json').read_text())['images']] == [str(good)]
    fails('spot', '--weights', run, '--out', tmp_path/'nothing', '--device', 'cpu', bad, says=['1 of 1', bad])
    assert not (tmp_path/'nothing').exists()


# ---- words and numbers

@pytest.mark.parametrize('option, says', [
    ('--size 33', '32 or 36 px'), ('--size 8', '8 px are too small'), ('--size 100000', 'size must lie between'), ('--width 0', 'width must lie between'),
    ('--width -1', 'width must lie between'), ('--batch 1', 'batch must lie between'), ('--seed -1', 'seed must lie between'),
    ('--recipe smal', 'small, demo, paper, released'), ('--device abacus', 'Try --device cpu')])
def test_choices_out_of_range(photos, tmp_path, fails, option, says):
    fails('pretrain', '--images', photos, '--out', tmp_path/'run', *option.split(), says=[says])
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('command, says', [
    ('pretrain --images x --out y --steps 0', '--steps: must be at least 1'), ('pretrain --images x --out y --epochs -1', '--epochs: must be at least'),
    ('pretrain --images x --out y --epochs nan', '--epochs: must be at least'), ('pretrain --images x --out y --size big', "--size: must be a whole number, and is 'big'"),
    ('pretrain --images x --out y --steps 1 --epochs 1', 'not allowed with'), ('pretrain --images x', 'required: --out'), ('pretrain --images x --out y --speed 3', '--speed'),
    ('probe --weights x --images y --labels 0', '--labels: must be at least 10'), ('probe --weights x --images y --seeds 0', '--seeds: must be at least 1'),
    ('probe --weights x --images y --epochs 0', '--epochs: must be at least'), ('spot --weights x', 'required: IMAGE'), ('dance', 'pretrain'), ('', 'COMMAND')])
def test_wrong_usage(fails, command, says):
    fails(*command.split(), says=[says, '--help'], status=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without a GPU')
def test_cuda_where_there_is_none(photos, tmp_path, fails):
    fails('pretrain', '--images', photos, '--out', tmp_path/'run', '--device', 'cuda', says=['--device cuda', 'Try --device cpu'])


@pytest.mark.parametrize('text, says', [
    ('{"drop_rat": 0.3}', ["'drop_rat'", "Did you mean 'drop_rate'?"]), ('{"drop_rate": 1.5}', ['drop_rate', 'between 0.01 and 0.99', '1.5']),
    ('{"size": 100}', ['size 100', 'Try size 96']), ('{"batch": "many"}', ['batch', 'whole number']), ('{"fill": "zeros"}', ['fill', 'mean, noise']),
    ('{"area": [1, 0.5]}', ['area', 'small to large']), ('{"drop_rate": NaN}', ['drop_rate', 'between']), ('[1, 2]', ['JSON object']), ('{"size": ', ['not JSON']),
    ('', ['not JSON']), ('\x93\xff', ['not JSON']), (None, ['no such recipe', 'Name a JSON file'])])
def test_recipes(photos, tmp_path, fails, text, says):
    file = tmp_path/'mine.json'
    if text is not None: file.write_text(text, encoding='latin-1')
    fails('pretrain', '--images', photos, '--out', tmp_path/'run', '--recipe', file, says=['mine.json', *says])
    assert not (tmp_path/'run').exists()


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
    (set_field('width', .1), 'another architecture'), (set_field('layers', 3), 'another architecture'), (set_field('bn_fc', True), 'another architecture'),
    (set_field('slop', .1), "Did you mean 'slope'?"), (set_field('drop_rate', 7), 'drop_rate must lie between'),
    (lambda header, tensors: header.update(recipe='{'), 'damaged'), (lambda header, tensors: header.pop('recipe'), 'damaged'),
    (lambda header, tensors: tensors.pop(min(tensors)), 'another architecture'), (lambda header, tensors: tensors.update(extra=torch.zeros(1)), 'another architecture')],
    ids=['width', 'depth', 'batch norm', 'unknown field', 'out of range', 'header not JSON', 'no recipe', 'missing tensor', 'extra tensor'])
def test_weights_that_do_not_fit(run, photos, fails, change, says):
    file = run/'weights.safetensors'
    rewrite(file, change)
    fails('spot', '--weights', run, '--device', 'cpu', photos/'cats/00.png', says=[file, says])


@pytest.mark.parametrize('spoil', [halve, lambda f: f.write_bytes(b''), lambda f: f.write_text('hello')], ids=['cut', 'empty', 'text'])
def test_damaged_weights(run, fails, spoil):
    spoil(run/'weights.safetensors')
    fails('info', '--weights', run, says=[run/'weights.safetensors', 'damaged', 'spot-artifacts pretrain'])


def test_no_weights(tmp_path, fails):
    for path in tmp_path, tmp_path/'none.safetensors': fails('info', '--weights', path, says=[path, 'no weights', 'run folder'])


@pytest.mark.parametrize('dump', [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))], ids=['torch', 'pickle'])
def test_weights_that_are_a_pickle_are_never_executed(run, tmp_path, fails, dump):
    file = run/'weights.safetensors'
    dump(Bomb(tmp_path/'boom'), file)
    fails('info', '--weights', run, says=[file, 'damaged'])
    fails('info', '--weights', file.rename(tmp_path/'weights.pt'), says=['weights.pt', 'damaged'])
    assert not (tmp_path/'boom').exists()


# ---- runs: taken, resumed, damaged

def resume(photos, run): return 'pretrain', '--images', photos, '--out', run, '--resume', '--device', 'cpu'


def test_a_results_folder_that_exists(run, photos, tmp_path, fails):
    was = state(run)
    fails('pretrain', '--images', photos, '--out', run, *TINY, says=[run, 'exists', '--resume', '--out'])
    assert state(run) == was
    (tmp_path/'a file').touch()
    fails('pretrain', '--images', photos, '--out', tmp_path/'a file', *TINY, says=['a file', 'exists'])
    fails('pretrain', '--images', photos, '--out', tmp_path/'a file/run', *TINY, says=['a file', 'Check the path'])


def test_other_results_get_a_free_name(run, photos, tmp_path, succeeds):
    for k in '', '-2', '-3':
        succeeds('spot', '--weights', run, '--out', tmp_path/'spotted', '--device', 'cpu', photos/'cats/00.png')
        assert (tmp_path/f'spotted{k}/spot.json').exists()
    for k in '', '-2':
        succeeds('probe', '--weights', run, '--images', photos, '--labels', 12, '--seeds', 1, '--epochs', 1, '--device', 'cpu')
        assert f'probe{k}.json' in state(run)


def test_resume_of_a_finished_run_changes_nothing(run, finished, photos, succeeds):
    succeeds(*resume(photos, run), '--epochs', 2, *TINY)                # the whole command may be repeated
    assert same_weights(run, finished) and state(run).keys() == state(finished).keys()


@pytest.mark.parametrize('option', ['--size 64', '--width 0.1', '--batch 4', '--seed 5', '--epochs 3', '--steps 7', '--recipe paper'])
def test_resume_with_other_options(run, photos, fails, option):
    was = state(run)
    fails(*resume(photos, run), *option.split(), says=[run, 'began with', 'Leave'])
    assert state(run) == was


def test_resume_with_other_images(run, tmp_path, fails):
    fails(*resume(paint(tmp_path/'others', 24, seed=9), run), says=[run, 'other images', 'give the same folder'])


@pytest.mark.parametrize('there', [False, True])
def test_resume_where_no_run_is(tmp_path, photos, fails, there):
    if there: (tmp_path/'run').mkdir()
    fails(*resume(photos, tmp_path/'run'), says=[tmp_path/'run', 'no run to resume', 'without --resume'])


@pytest.mark.parametrize('name', ['auto.ckpt', 'game.ckpt'])
@pytest.mark.parametrize('spoil', [halve, lambda f: f.write_bytes(b''), lambda f: torch.save({'model': 3}, f), lambda f: torch.save([1, 2], f),
                                   lambda f: shutil.copy(f.with_name(f.name.replace('auto', 'x').replace('game', 'auto').replace('x', 'game')), f), flip],
                         ids=['cut', 'empty', 'dictionary', 'list', 'other phase', 'bit'])
def test_a_damaged_checkpoint(run, finished, photos, fails, succeeds, name, spoil):
    files = run/name, before(run/name)
    spoil(run/name)
    said = succeeds(*resume(photos, run))
    assert said.err == f'{run/name}: damaged. Going on from {files[1].name}, one round earlier.\n'
    assert same_weights(run, finished) and digests(run) == digests(finished), 'the same, although one round is played again'
    for file in files: spoil(file)
    was = state(run)
    fails(*resume(photos, run), says=[*files, 'delete both', '--resume'])
    assert state(run) == was, 'the other files must stay as they are'
    for file in files: file.unlink()
    succeeds(*resume(photos, run))                                      # the mend
    assert same_weights(run, finished)


@pytest.mark.parametrize('dump', [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))], ids=['torch', 'pickle'])
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
    fails('pretrain', '--images', photos, '--out', out, '--epochs', 2, *TINY, says=[out/f'{phase}.ckpt', 'No space left', 'Free some space', '--resume'])
    monkeypatch.undo()
    assert not list(out.glob('*tmp*')), 'half a file was left'
    if good: assert len(rows(out/f'{phase}.ckpt')) == good
    else: assert not (out/f'{phase}.ckpt').exists()
    succeeds(*resume(photos, out))
    assert same_weights(out, finished)


def test_no_space_for_the_weights(photos, finished, tmp_path, monkeypatch, fails, succeeds):
    out = tmp_path/'run'
    half_saved(monkeypatch, training, 'save_file', 0)
    fails('pretrain', '--images', photos, '--out', out, '--epochs', 2, *TINY, says=[out/'weights.safetensors', 'No space left', '--resume'])
    monkeypatch.undo()
    assert not list(out.glob('*tmp*')) and not (out/'weights.safetensors').exists()
    succeeds(*resume(photos, out))
    assert same_weights(out, finished)


def test_no_space_for_a_picture(photos, tmp_path, monkeypatch, fails):
    monkeypatch.setattr(training, 'save_grid', full)
    fails('pretrain', '--images', photos, '--out', tmp_path/'run', '--epochs', 1, *TINY, says=[tmp_path/'run', 'No space left', 'free space'])


@pytest.fixture
def small_disk(tmp_path):
    "A disk of 16 MB of its own."
    disk = tmp_path/'disk'
    disk.mkdir()
    mount = shutil.which('mount') and subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', disk], capture_output=True, text=True)
    if not mount or mount.returncode: pytest.skip('only root can mount a small disk, on Linux')
    yield disk
    subprocess.run(['umount', '--lazy', disk], check=True)


def test_a_disk_that_is_really_full(photos, finished, small_disk, fails, succeeds):
    "It has room for two checkpoints of the game and half of a third."
    out, other = small_disk/'run', small_disk/'other'
    with other.open('wb') as f: os.posix_fallocate(f.fileno(), 0, 2**24 - 5*(finished/'game.ckpt').stat().st_size//2)
    fails('pretrain', '--images', photos, '--out', out, '--epochs', 2, *TINY, says=[out/'game.ckpt', 'No space left', 'Free some space', '--resume'])
    assert not list(out.glob('*tmp*')), 'half a file was left'
    assert [len(rows(f)) for f in (out/'game.ckpt', before(out/'game.ckpt'))] == [2, 1]
    other.unlink()
    succeeds(*resume(photos, out))
    assert same_weights(out, finished) and digests(out) == digests(finished)


def test_a_loss_that_is_not_finite(photos, tmp_path, monkeypatch, fails):
    loss, calls = training.GameLoss.__call__, []
    def spoilt(self, game, target):
        calls.append(1)
        return loss(self, game, target)*(float('nan') if len(calls) > 5 else 1)
    monkeypatch.setattr(training.GameLoss, '__call__', spoilt)
    out = tmp_path/'run'
    fails('pretrain', '--images', photos, '--out', out, '--epochs', 3, *TINY, says=['game', 'not finite', 'learning rate'])
    assert 1 <= len(rows(out/'game.ckpt')) <= 5 and all(t.isfinite().all() for t in load_checkpoint(out/'game.ckpt')['model'].values())


def test_an_error_of_our_own_keeps_its_traceback(photos, tmp_path, monkeypatch):
    def bug(*args): raise RuntimeError('a bug')
    monkeypatch.setattr(training, 'measure', bug)
    with pytest.raises(RuntimeError, match='a bug'): main(['pretrain', '--images', str(photos), '--out', str(tmp_path/'run'), '--steps', '1', *TINY])


# ---- a process of its own

def spot_artifacts(*words, **kw):
    "Starts the command line in a new process."
    return subprocess.Popen([sys.executable, '-c', 'from spot_artifacts.cli import main; main()', *map(str, words)], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **kw)


def wait_for(file, process, seconds=40):
    while not file.exists():
        assert process.poll() is None and (seconds := seconds - .02) > 0, f'{file.name} was not written: {process.communicate()}'
        time.sleep(.02)


def test_ctrl_c_in_mid_run_and_on_to_the_end(photos, tmp_path, root, succeeds):
    out = tmp_path/'run'
    process = spot_artifacts('pretrain', '--images', photos, '--out', out, '--epochs', 12, *TINY, cwd=root)
    wait_for(out/'auto.ckpt', process)
    process.send_signal(signal.SIGINT)
    said, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err == f'spot-artifacts: stopped. {out} is kept: continue with --resume.\n', err
    assert not list(out.glob('*tmp*')) and not (out/'weights.safetensors').exists()
    assert rows(out/'auto.ckpt')
    succeeds(*resume(photos, out))
    assert len((out/'game.csv').read_text().splitlines()) == 13 and load_weights(out)


def test_ctrl_c_before_there_is_a_run(tmp_path, photos, monkeypatch, fails):
    def stop(*args, **kw): raise KeyboardInterrupt
    monkeypatch.setattr(training, 'random_split', stop)
    line = fails('pretrain', '--images', photos, '--out', tmp_path/'run', *TINY, status=130, says=['stopped'])
    assert 'resume' not in line


def test_help_does_not_wait_for_torch(root):
    code = 'import sys; from spot_artifacts.cli import parser; parser(); print("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True).stdout == 'False\n'


def test_a_reader_that_leaves_is_no_traceback(monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, 'w') as pipe, pytest.raises(SystemExit) as stop:
        monkeypatch.setattr(sys, 'stdout', pipe)
        main(['info'])
    assert stop.value.code == 1 and capsys.readouterr().err == ''
