"Table 1 from the command line: run, stop, go on, and find what is finished again."
import json, shutil

import numpy as np, pytest
from fastai.callback.core import Callback
from PIL import Image

from spot_artifacts import ablations
from spot_artifacts.ablations import CONTROLS, ROWS, ablate, load_results, table_rows, to_csv, to_markdown
from spot_artifacts.cli import main
from spot_artifacts.data import embedded
from spot_artifacts.training import Checkpoint, Recipe

SMALL = ['--size', '32', '--width', '.1', '--budget', '4', '--labels', '40', '--epochs', '1', '--device', 'cpu']


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "train/ and test/ with two classes of noise, red and blue."
    root, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for part, n in (('train', 30), ('test', 10)):
        for channel, name in ((0, 'red'), (2, 'blue')):
            (root/part/name).mkdir(parents=True)
            for i in range(n):
                image = rng.integers(0, 128, (32, 32, 3), dtype=np.uint8)
                image[..., channel] += 127
                Image.fromarray(image).save(root/part/name/f'{i}.png')
    return root


@pytest.fixture(scope='module')
def finished(photos, tmp_path_factory):
    "All rows and controls, one seed, four steps each."
    out = tmp_path_factory.mktemp('runs')/'ablations'
    recipe = out.parent/'recipe.json'
    Recipe.small(32, ae_width=.1, bf16=False, batch=16, auto_epochs=1.).save(recipe)
    command = ['ablate', '--data', photos, '--recipe', recipe, '--out', out, *SMALL]
    main([str(word) for word in command])
    return out, command


def test_every_row_leaves_a_file_and_a_place_in_the_table(finished):
    out, _ = finished
    results = load_results(out)
    assert [r['row'] for r in results] == [*ROWS, *CONTROLS]
    for r in results:
        assert 0 <= r['accuracy'] <= 100 and len(r['probe']) == 5
        assert {'data', 'device', 'versions', 'commit', 'recipe', 'seconds', 'protocol', 'seed'} <= set(r)
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
    assert {k: now[k] for k in ('accuracy', 'probe', 'classifier', 'mask')} == {k: was[k] for k in ('accuracy', 'probe', 'classifier', 'mask')}


@pytest.mark.parametrize('extra, says', [(['--rows', 'a,m'], "no row 'm'"), (['--labels', '20'], 'made with another labels'), (['--data', 'nowhere'], 'nowhere'),
                                         (['--width', '.15'], 'made with another recipe')])
def test_what_does_not_fit_is_said_in_a_line(finished, extra, says, capsys):
    _, command = finished
    with pytest.raises(SystemExit) as status: main([str(word) for word in command] + extra)
    assert status.value.code == 1
    err = capsys.readouterr().err
    assert says in err and err.startswith('spot-artifacts: ') and err.count('\n') == 1


def test_the_controls_see_the_same_images_as_the_rows(finished):
    results = {r['row']: r for r in load_results(finished[0])}
    assert len({(r['data']['fingerprint'], r['protocol']['labels'], r['protocol']['test_images']) for r in results.values()}) == 1
    assert 'classifier' not in results['random'] and results['l']['mask']['balanced_accuracy'] is None
