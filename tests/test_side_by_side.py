"Pretexts side by side from the command line: run, go on, and refuse what does not belong together."
import json, shutil
from functools import partial

import numpy as np, pytest
from images import write_images

from spot_artifacts import side_by_side
from spot_artifacts.cli import main
from spot_artifacts.core import RunError, SpotError
from spot_artifacts.runs import folder_lock
from spot_artifacts.side_by_side import (REFERENCES, SYSTEMS, Setup, best_gain, best_layer, compare_pretexts, gain,
                                         least_seconds, load_more, load_runs, measured_as, plot_gains, plot_seconds,
                                         ranking, read_run, same_minutes, system_rows, systems_markdown)
from spot_artifacts.toy import toy_images

TINY = ['--size', '32', '--width', '.05', '--epochs', '1', '--labels', '40', '--device', 'cpu']


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "All systems and references, one seed; where a supervised network would take 300 epochs, 3."
    root, rng = tmp_path_factory.mktemp('pretexts'), np.random.default_rng(0)
    for part, n in (('train', 30), ('test', 10)):
        for channel, name in ((0, 'red'), (2, 'blue')):
            images = rng.integers(0, 128, (n, 3, 32, 32), dtype=np.uint8)
            images[:, channel] += 127
            write_images(root/'photos'/part, classes=(name,), images=images)
    command = ['pretexts', '--data', str(root/'photos'), '--out', str(root/'out'), *TINY]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(side_by_side, 'supervised', partial(side_by_side.supervised, most=3))
        main(command)
    return root/'out', command


@pytest.fixture
def copy(finished, tmp_path):
    out, command = finished
    shutil.copytree(out, tmp_path/'out')
    return tmp_path/'out', [str(tmp_path/'out') if word == str(out) else word for word in command]


def refused(command, capsys):
    with pytest.raises(SystemExit): main(command)
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    return error


def test_every_system_leaves_a_file_and_a_row(finished):
    out, _ = finished
    results = load_runs(out)
    assert [(r['pretext'], r['seed']) for r in results] == [(name, 0) for name in [*SYSTEMS, *REFERENCES]]
    for r in results:
        assert {'data', 'device', 'versions', 'commit', 'recipe', 'seconds', 'identity'} <= set(r)
        own = dict(pixels=['pixels'], encoder=['E1', 'E2', 'E3']).get(r['pretext'])
        assert list(r['probe']) == (own or ['conv1', 'conv2', 'conv3', 'conv4', 'conv5'])
        if r['pretext'] in SYSTEMS: assert r['recipe']['pretext'] == r['pretext'] and r['measured']
    assert (out/'table.md').read_text() == systems_markdown(system_rows(results))
    assert (out/'gains.png').stat().st_size > 5000


def test_what_is_finished_is_not_run_again(finished, monkeypatch, capsys):
    out, command = finished
    before = {f.name: f.read_bytes() for f in out.glob('*.json')}
    for name in ('pretrain', 'probe', 'baselines', 'supervised'):
        monkeypatch.setattr(side_by_side, name, lambda *args, **kw: pytest.fail('it is run again'))
    main(command)
    assert before == {f.name: f.read_bytes() for f in out.glob('*.json')}
    assert 'Jigsaw puzzles' in capsys.readouterr().out


def test_a_run_is_measured_again_from_its_weights(copy, monkeypatch):
    out, command = copy
    before = json.loads((out/'rotation-0.json').read_text())
    (out/'rotation-0.json').unlink()
    monkeypatch.setattr(side_by_side, 'pretrain', lambda *args, **kw: pytest.fail('it is trained again'))
    main([*command, '--names', 'rotation'])
    after = json.loads((out/'rotation-0.json').read_text())
    assert all(after[k] == before[k] for k in ('probe', 'measured', 'identity'))


def test_neighbours_and_few_labels_of_what_is_finished(copy, monkeypatch, capsys):
    out, command = copy
    for file in out.glob('*-0.json'):
        if file.stem not in ('artifacts-0', 'jigsaw-0', 'random-0', 'pixels-0'): file.unlink()
    monkeypatch.setattr(side_by_side, 'STEPS', 1)
    monkeypatch.setattr(side_by_side, 'pretrain', lambda *args, **kw: pytest.fail('it is trained again'))
    main([*command, '--names', 'pixels', '--more'])
    found = load_more(out)
    assert [r['pretext'] for r in found] == ['artifacts', 'jigsaw', 'random']
    for r in found:
        assert list(r['knn']) == ['conv1', 'conv2', 'conv3', 'conv4', 'conv5'] and {'commit', 'protocol'} <= set(r)
        assert all(0 <= value <= 100 for value in [*r['knn'].values(), *r['few'].values()])
    assert gain(measured_as(found, 'few'), 'jigsaw', 'fine-tuned')['seeds'] == 1
    monkeypatch.setattr(side_by_side, 'knn_probe', lambda *args, **kw: pytest.fail('it is measured again'))
    main([*command, '--names', 'pixels', '--more'])


@pytest.mark.parametrize('option, says', [('--epochs', 'another setup: epochs (1.0, now 2.0)'),
                                          ('--labels', 'another setup: labels (40, now 20)')])
def test_another_budget_does_not_mix(finished, capsys, option, says):
    out, command = finished
    assert says in refused([*command, option, '20' if option == '--labels' else '2'], capsys)


def test_the_same_minutes(copy, tmp_path, capsys):
    out, command = copy
    times = same_minutes(load_runs(out))
    assert set(times) == set(SYSTEMS) and min(times.values()) == 1
    base = tmp_path/'base'
    base.mkdir()
    for name, seconds in (('jigsaw', 20.), ('rotation', 10.)):
        r = json.loads((out/f'{name}-0.json').read_text())
        (base/f'{name}-0.json').write_text(json.dumps(dict(r, seconds=dict(r['seconds'], training=seconds))))
    for file in (out/'rotation-0.json', out/'rotation-0'): shutil.rmtree(file) if file.is_dir() else file.unlink()
    same = [str(tmp_path/'minutes') if word == str(out) else word for word in command]
    main([*same, '--names', 'rotation', '--minutes-of', str(base)])
    r = json.loads((tmp_path/'minutes'/'rotation-0.json').read_text())
    assert r['recipe']['epochs'] == 2 and r['identity']['setup']['times'] == dict(jigsaw=1, rotation=2)
    assert 'another setup: times' in refused([*command, '--names', 'rotation', '--minutes-of', str(base)], capsys)
    assert 'had the same minutes already' in refused([*same, '--minutes-of', str(tmp_path/'minutes')], capsys)
    assert 'two systems or more' in refused([*same, '--minutes-of', str(tmp_path)], capsys)


def test_a_damaged_result_is_named_and_kept(copy, capsys):
    out, command = copy
    file = out/'context-0.json'
    file.write_text(file.read_text()[:-20])
    main([*command, '--names', 'pixels'])
    assert 'left out context-0.json' in capsys.readouterr().err
    assert 'Context' not in (out/'table.md').read_text()
    with pytest.raises(SystemExit): main([*command, '--names', 'context'])
    assert 'context-0.json: damaged' in capsys.readouterr().err and read_run(file) is None


def test_a_folder_that_is_in_use(copy, capsys):
    out, command = copy
    images = toy_images(40, 32, cache=False)
    with folder_lock(out), pytest.raises(RunError, match='in use by process'):
        compare_pretexts(images, images, out, 'pixels', progress=False)


def test_what_cannot_be_run_is_one_line(tmp_path, capsys):
    images = toy_images(40, 32, cache=False)
    for how, says in ((dict(names=()), 'nothing to run'), (dict(names='pixels', seeds=0), 'nothing to run'),
                      (dict(names='byol'), "no system 'byol': use artifacts, context")):
        with pytest.raises(SpotError, match=says): compare_pretexts(images, images, tmp_path/'out', **how)
    assert not (tmp_path/'out').exists()
    assert '4 px are too small' in refused(['pretexts', '--size', '4', '--out', str(tmp_path/'out')], capsys)


def test_pairs_of_seeds_and_the_chart():
    probes = dict.fromkeys(['conv1', 'conv2', 'conv3', 'conv4', 'conv5'])
    def run(name, seed, score): return dict(pretext=name, seed=seed, probe=dict.fromkeys(probes, score))
    results = [run('random', s, 40. + s) for s in range(3)] + [run('jigsaw', s, 50. + 2*s) for s in range(1, 4)]
    rows = system_rows(results)
    found = {r['name']: r['gain']['conv4'] for r in rows}['jigsaw']
    assert found['seeds'] == 2 and found['mean'] == 11.5 and found['low'] < 11.5 < found['high']
    assert len(plot_gains(rows).axes[0].containers) == 1
    assert Setup() == Setup(size=32)


def test_each_at_its_best_layer():
    def run(name, seed, **probe): return dict(pretext=name, seed=seed, probe=probe, seconds=dict(training=9. - seed))
    results = [run('jigsaw', s, conv1=40. + s, conv2=30.) for s in range(3)]
    results += [run('rotation', s, conv1=20., conv2=50. + 2*s) for s in range(3)]
    rows = {r['name']: r for r in system_rows(results)}
    assert (best_layer(rows['jigsaw']), best_layer(rows['rotation'])) == ('conv1', 'conv2')
    assert ranking(results) == ['rotation', 'jigsaw'] and least_seconds(results) == dict(jigsaw=7., rotation=7.)
    d = best_gain(results, 'rotation', 'jigsaw')
    assert d['seeds'] == 3 and d['mean'] == 11
    assert len(plot_seconds(results).axes[0].texts) == 2
