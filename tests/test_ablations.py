"Table 1 from the command line: run, stop, go on, and find what is finished again."
import json, shutil, subprocess, sys
from functools import partial

import numpy as np, pytest
from images import write_images
from PIL import Image

from spot_artifacts import ablations, folders
from spot_artifacts.ablations import CONTROLS, PROTOCOL, ROWS, load_results, table_rows, to_csv, to_markdown
from spot_artifacts.cli import main
from spot_artifacts.core import RunError, SpotError
from spot_artifacts.recipe import Recipe
from spot_artifacts.toy import toy_images
from spot_artifacts.runs import Checkpoint, folder_lock

SMALL = ['--size', '32', '--width', '.1', '--budget', '4', '--labels', '40', '--epochs', '1', '--device', 'cpu']


@pytest.fixture(scope='module', autouse=True)
def few_epochs():
    "A supervised control takes up to 300 epochs to its plateau; here it is about files."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablations, 'supervised', partial(ablations.supervised, most=3))
        yield


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "train/ and test/ with two classes of noise, red and blue."
    root, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for part, n in (('train', 30), ('test', 10)):
        for channel, name in ((0, 'red'), (2, 'blue')):
            images = rng.integers(0, 128, (n, 3, 32, 32), dtype=np.uint8)
            images[:, channel] += 127
            write_images(root/part, classes=(name,), images=images)
    return root


@pytest.fixture(scope='module')
def finished(photos, tmp_path_factory):
    "All rows and controls, one seed, four steps each."
    out = tmp_path_factory.mktemp('runs')/'ablations'
    recipe = out.parent/'recipe.json'
    Recipe.small(32, ae_width=.1, bf16=False, batch=16, ae_epochs=1.).save(recipe)
    command = ['ablate', '--data', photos, '--recipe', recipe, '--out', out, *SMALL]
    main([str(word) for word in command])
    return out, command


def test_every_row_leaves_a_file_and_a_place_in_the_table(finished):
    out, _ = finished
    results = load_results(out)
    assert list(dict.fromkeys(r['row'] for r in results)) == [*ROWS, *CONTROLS]
    for row in [*ROWS, *CONTROLS]:
        assert [r['seed'] for r in results if r['row'] == row] == ([0, 1, 2] if row in ('random', 'rescaled') else [0])
    for r in results:
        assert 0 <= r['accuracy'] <= 100 and len(r['probe']) == 5
        assert {'data', 'device', 'versions', 'commit', 'recipe', 'seconds', 'protocol', 'seed', 'identity'} <= set(r)
        expected = ROWS[r['row']].change if r['row'] in ROWS else {}
        assert all(r['recipe'][k] == v for k, v in expected.items())
    rows = table_rows(results)
    assert (out/'table.md').read_text() == to_markdown(rows) and (out/'table.csv').read_text() == to_csv(rows)
    assert all(f'| {row} | {ROWS[row].title} |' in to_markdown(rows) for row in ROWS)
    assert {p.name for p in out.glob('autoencoder-*')} == {'autoencoder-2x2-0', 'autoencoder-3x3-0'}
    assert Image.open(out/'renderings.png').size[0] > 300 and Image.open(out/'plot.png').size[0] > 300


def test_what_is_finished_is_not_run_again(finished, capsys, monkeypatch):
    out, command = finished
    before = {p: p.stat().st_mtime_ns for p in out.rglob('*') if p.suffix in ('.json', '.safetensors')}
    monkeypatch.setattr(ablations, 'pretrain', lambda *a, **k: pytest.fail('trained again'))
    main([str(word) for word in command])
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert "Spearman's rho" in capsys.readouterr().out


def test_a_stopped_row_goes_on_and_ends_the_same(finished, photos, tmp_path, monkeypatch, capsys):
    out, command = finished
    copy, was = tmp_path/'copy', json.loads((out/'baseline-0.json').read_text())
    shutil.copytree(out/'autoencoder-2x2-0', copy/'autoencoder-2x2-0')
    words = [str(copy if word == out else word) for word in command] + ['--rows', 'baseline']
    after = Checkpoint.after_epoch
    def stop(self):
        after(self)
        if len(self.learn.epoch_log.rows) == 2: raise KeyboardInterrupt
    monkeypatch.setattr(Checkpoint, 'after_epoch', stop)
    with pytest.raises(SystemExit) as status: main(words)
    assert status.value.code == 130 and 'the same command goes on' in capsys.readouterr().err
    assert not (copy/'baseline-0.json').exists()
    monkeypatch.setattr(Checkpoint, 'after_epoch', after)
    main(words)
    now = json.loads((copy/'baseline-0.json').read_text())
    for k in 'accuracy', 'probe', 'classifier', 'mask': assert now[k] == was[k], k


@pytest.mark.parametrize('extra, says', [
    (['--rows', 'a,m'], "no row 'm'"), (['--data', 'nowhere'], 'nowhere'),
    (['--labels', '20'], 'made with another number of labels (40, now 20)'),
    (['--width', '.15'], 'made with another recipe: width (0.1, now 0.15)'),
    (['--epochs', '2'], 'made with another number of head epochs (1.0, now 2.0)')])
def test_what_does_not_fit_is_one_line(finished, extra, says, capsys):
    _, command = finished
    with pytest.raises(SystemExit) as status: main([str(word) for word in command] + extra)
    assert status.value.code == 1
    err = capsys.readouterr().err
    assert says in err and err.startswith('spot-artifacts: ') and err.count('\n') == 1


def test_the_controls_see_the_same_images_as_the_rows(finished):
    results = {r['row']: r for r in load_results(finished[0])}
    sizes = {(r['protocol']['labels'], r['protocol']['test_images']) for r in results.values()}
    assert len(sizes) == 1 and len({r['data']['fingerprint'] for r in results.values()}) == 1
    assert 'classifier' not in results['random'] and results['l']['mask']['balanced_accuracy'] is None


@pytest.fixture
def copy(finished, tmp_path):
    "A copy of the finished folder that a test may change, and its command line."
    out, command = finished
    shutil.copytree(out, tmp_path/'copy')
    return tmp_path/'copy', [str(tmp_path/'copy' if word == out else word) for word in command]


def refused(words, capsys):
    "The one line in which a command is refused."
    with pytest.raises(SystemExit) as status: main(words)
    assert status.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith('spot-artifacts: ') and err.count('\n') == 1, err
    return err


def changed(command, **options):
    "The command with other options."
    return command + [word for k, v in options.items() for word in (f'--{k}', str(v))]


def other_recipe(tmp_path, **changes):
    Recipe.small(32, ae_width=.1, bf16=False, batch=16, **{'ae_epochs': 1., **changes}).save(tmp_path/'other.json')
    return tmp_path/'other.json'


@pytest.mark.parametrize('part', ['recipe', 'images', 'damaged'])
def test_a_shared_autoencoder_of_another_kind_is_refused(copy, photos, tmp_path, capsys, part):
    out, command = copy
    for f in out.glob('*-*.json'): f.unlink()
    for row in ROWS: shutil.rmtree(out/f'{row}-0')
    if part == 'recipe': command = changed(command, recipe=other_recipe(tmp_path, ae_epochs=2.))
    if part == 'images':
        shutil.copytree(photos, tmp_path/'photos')
        (tmp_path/'photos/train/red/00.png').unlink()
        command = changed(command, data=tmp_path/'photos')
    if part == 'damaged': (out/'autoencoder-2x2-0/run.json').write_text('{')
    says = dict(recipe='autoencoder-2x2-0: made with another recipe: ae_epochs (1.0, now 2.0)',
                images='autoencoder-2x2-0: made with other training images', damaged='autoencoder-2x2-0: damaged')[part]
    err = refused(changed(command, rows='baseline'), capsys)
    assert says in err and 'Choose another --out, or delete' in err and not (out/'baseline-0.json').exists()


def test_a_stopped_row_does_not_go_on_under_another_recipe(copy, tmp_path, capsys):
    out, command = copy
    for f in out.glob('*-*.json'): f.unlink()
    shutil.rmtree(out/'autoencoder-2x2-0')
    err = refused(changed(command, rows='baseline', recipe=other_recipe(tmp_path, lr=.002)), capsys)
    assert 'baseline-0: made with another recipe: lr (0.001, now 0.002)' in err
    assert not (out/'baseline-0.json').exists()


def test_an_identity_is_what_was_trained(finished):
    out, _ = finished
    for r in load_results(out):
        me = r['identity']
        assert r['recipe'] == me['recipe'] and me['protocol'] == PROTOCOL
        assert (me['row'], me['seed']) == (r['row'], r['seed'])
        assert me['train'] == r['data']['fingerprint'] and me['head_epochs'] == r['protocol']['head_epochs'] == 1
        if r['row'] in ROWS: assert Recipe.from_dict(r['recipe']) == Recipe.load(out/f'{r["row"]}-0/recipe.json')
    assert len({json.dumps({k: r['identity'][k] for k in ablations.SHARED}) for r in load_results(out)}) == 1


def test_another_test_set_is_refused(copy, photos, tmp_path, capsys):
    out, command = copy
    shutil.copytree(photos, tmp_path/'photos')
    (tmp_path/'photos/test/red/00.png').unlink()
    assert 'made with other test images' in refused(changed(command, data=tmp_path/'photos', rows='baseline'), capsys)


def test_tables_hold_the_rows_of_earlier_calls(copy, capsys):
    out, command = copy
    before = (out/'table.md').read_text(), (out/'table.csv').read_text()
    main(changed(command, rows='k'))
    assert ((out/'table.md').read_text(), (out/'table.csv').read_text()) == before
    assert before[0].count('\n') == 2 + len(ROWS) + len(CONTROLS) and before[0] in capsys.readouterr().out


def test_a_row_that_is_named_twice_is_one_row(copy, capsys):
    out, command = copy
    for f in out.glob('*-*.json'):
        if f.name != 'a-0.json': f.unlink()
    main(changed(command, rows=' a,a'))
    printed = capsys.readouterr().out
    assert printed.count('a: Input image as real, seed 0') == 1 and '±' not in printed
    assert '| a | Input image as real | 74.99 | 1 |' in printed


def test_a_later_seed_is_added(copy, capsys):
    out, command = copy
    main(changed(command, rows='baseline', seed=1))
    assert [r['seed'] for r in load_results(out) if r['row'] == 'baseline'] == [0, 1]
    assert '| baseline | Baseline (dropping rate = 0.5) | 79.94 | 2 |' in (out/'table.md').read_text()
    shutil.rmtree(out/'baseline-0')                                     # weights may go, the table stays
    main(changed(command, rows='baseline'))


def test_a_later_seed_sees_the_same_images_where_none_are_for_testing(photos, tmp_path, capsys):
    recipe = tmp_path/'recipe.json'
    Recipe.small(32, ae_width=.1, bf16=False, batch=16, ae_epochs=1.).save(recipe)
    command = ['ablate', '--data', str(photos/'train'), '--recipe', str(recipe), '--out', str(tmp_path/'out'),
               '--rows', 'random', *SMALL]
    for seed in 0, 1: main([*command, '--seed', str(seed)])
    assert [r['seed'] for r in load_results(tmp_path/'out')] == [0, 1, 2, 3]


FOREIGN = {'notes-2.json': b'{"my": "notes"}', 'list-1.json': b'[1, 2]', 'cut-0.json': b'{"row": "a", "se',
           'deep-0.json': b'['*100_000, 'bytes-0.json': b'\xff\xfe\x00'}


def test_files_that_are_not_ours_are_left_out_and_named_in_one_line(copy, capsys):
    out, command = copy
    for name, content in FOREIGN.items(): (out/name).write_bytes(content)
    shutil.copy(out/'a-0.json', out/'a-0 (copy)-1.json')
    (out/'folder-1.json').mkdir()
    main(changed(command, rows='baseline'))
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'no results of ablate' in err
    assert all(name in err for name in [*FOREIGN, 'a-0 (copy)-1.json', 'folder-1.json'])


@pytest.mark.parametrize('change', [
    dict(probe={}), dict(accuracy='high'), dict(accuracy=float('nan')), dict(accuracy=None), dict(seed=1),
    dict(seed='0'), dict(row=['baseline']), dict(mask=3), dict(seconds=9)], ids=repr)
def test_a_damaged_result_is_not_read(finished, tmp_path, change):
    r = json.loads((finished[0]/'baseline-0.json').read_text())
    file = tmp_path/'baseline-0.json'
    file.write_text(json.dumps(r))
    assert ablations.read_result(file) == r
    file.write_text(json.dumps(dict(r, **change)))
    assert ablations.read_result(file) is None


def test_a_damaged_result_hurts_no_other_row_and_is_not_overwritten(copy, capsys):
    out, command = copy
    file = out/'baseline-0.json'
    file.write_text(file.read_text()[:-20])
    main(changed(command, rows='k'))
    assert 'baseline-0.json' in capsys.readouterr().err and '| baseline |' not in (out/'table.md').read_text()
    with pytest.raises(SystemExit): main(changed(command, rows='baseline'))
    assert 'baseline-0.json: damaged, or no result of ablate' in capsys.readouterr().err


def test_a_result_of_an_earlier_version_is_not_mixed_with_ours(copy, capsys):
    out, command = copy
    old = json.loads((out/'a-0.json').read_text())
    del old['identity']
    (out/'a-0.json').write_text(json.dumps(old))
    assert 'a-0.json: made with another measurement (None, now 2)' in refused(changed(command, rows='k'), capsys)
    with pytest.raises(RunError, match='made with'): load_results(out)
    for f in out.glob('*-*.json'):
        if f.name != 'a-0.json': f.unlink()
    assert [r['row'] for r in load_results(out)] == ['a']               # by itself it can be read


def test_controls_alone(copy, tmp_path, capsys):
    out, command = copy
    main(changed(command, rows='random,supervised', out=tmp_path/'controls'))
    printed = capsys.readouterr().out
    assert '| random | Random initialisation |  | 3 |' in printed and 'table.md, table.csv, plot.png and one' in printed
    assert not (tmp_path/'controls/renderings.png').exists()


def test_random_networks_are_three_and_calibrated(finished):
    results = [r for r in load_results(finished[0]) if r['row'] in ('random', 'rescaled')]
    assert len({r['accuracy'] for r in results}) > 1
    rows = {r['row']: r for r in table_rows(results)}
    assert all(rows[name]['seeds'] == 3 and rows[name]['sd'] is not None for name in ('random', 'rescaled'))
    base, images = Recipe.small(32, width=.1, ae_width=.1), toy_images(40, 32, cache=False)
    networks = [ablations.control(name, base, images, 40, 'cpu', False)[0] for name in ('random', 'rescaled')]
    means = [b for C in networks for name, b in C.named_buffers() if name.endswith('running_mean')]
    assert len(means) >= 2 and all(m.abs().max() > 0 for m in means)
    assert not networks[0].backbone.conv3[2].weight.equal(networks[1].backbone.conv3[2].weight)


def test_from_the_disk_it_is_the_same(finished, photos, tmp_path, monkeypatch):
    out, command = finished
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    monkeypatch.setattr(folders, 'free_memory', lambda: 0)
    main([str(tmp_path/'disk' if word == out else word) for word in command] + ['--rows', 'baseline,random'])
    assert len(list((tmp_path/'cache/spot_artifacts').glob('*.bytes'))) == 2
    def scores(folder): return {(r['row'], r['seed']): (r['accuracy'], r['probe']) for r in load_results(folder)}
    found, wanted = scores(tmp_path/'disk'), scores(out)
    assert found == {k: wanted[k] for k in found} and (tmp_path/'disk/renderings.png').exists()


def test_two_in_one_folder(copy, capsys):
    out, command = copy
    with folder_lock(out):
        code = f'import sys; from spot_artifacts.cli import main; main({command!r})'
        other = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert other.returncode == 1 and other.stderr.count('\n') == 1
        assert 'in use by process' in other.stderr
    main(changed(command, rows='k'))


def test_heads_are_trained_to_a_plateau_unless_epochs_are_given(monkeypatch, finished):
    asked = []
    class Enough(Exception): pass
    def classify(C, train, test, recipe, epochs, **how):
        asked.append(epochs)
        raise Enough
    monkeypatch.setattr(ablations, 'classify', classify)
    out, command = finished
    without = [str(word) for i, word in enumerate(command) if word != '--epochs' and command[i - 1] != '--epochs']
    for words in without, [str(word) for word in command]:
        with pytest.raises(Enough): main(changed(words, rows='random', out=out.parent/'new'))
    assert asked == [None, 1]


def test_what_cannot_be_run_is_one_line(tmp_path):
    base, images = Recipe.small(32, width=.1, ae_width=.1), toy_images(40, 32, cache=False)
    for how, says in ((dict(rows=()), 'nothing to run'), (dict(rows='random', seeds=0), 'nothing to run'),
                      (dict(rows='nothing'), "no row 'nothing'")):
        with pytest.raises(SpotError, match=says): ablations.ablate(images, images, base, tmp_path/'out', **how)
    for train, test in (images, images[:0]), (images, toy_images(40, 64, cache=False)):
        with pytest.raises(SpotError): ablations.ablate(train, test, base, tmp_path/'out', rows='random')
    assert not (tmp_path/'out').exists()
