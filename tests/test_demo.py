"What the demo leaves behind, on a run in miniature."
import html, json, math

import pytest

from spot_artifacts import demo as room
from spot_artifacts.cli import main
from spot_artifacts.core import SpotError
from spot_artifacts.demo import demo
from spot_artifacts.recipe import Recipe
from spot_artifacts.runs import load_weights
from spot_artifacts.report import verdicts

LAYERS = [f'conv{i}' for i in range(1, 6)]


@pytest.fixture(scope='module')
def results(demo_run): return json.loads((demo_run/'results.json').read_text())


def leaves(value):
    "All numbers in nested dictionaries and lists."
    if isinstance(value, dict): value = list(value.values())
    if isinstance(value, list): return [n for v in value for n in leaves(v)]
    return [value]


def test_results_are_complete_and_in_range(results):
    assert all(list(results['probe'][name]) == LAYERS for name in ('random', 'rescaled', 'pretrained', 'supervised'))
    assert results['supervised']['epochs'] > 0 and 0 <= results['shortcuts']['patches'] <= 100
    mask = results['mask']
    percents = [results['probe'], mask['balanced_accuracy'], mask['iou'], mask['chance_iou'],
                results['classifier']['accuracy']]
    assert all(0 <= n <= 100 for n in leaves(percents)), percents
    assert 5 < results['autoencoder']['psnr'] < 60
    assert list(results['seconds']) == ['data', 'autoencoder', 'game', 'probe', 'shortcuts']
    assert all(s >= 0 for s in results['seconds'].values())
    assert all(math.isfinite(n) for n in leaves(results) if isinstance(n, float))


def test_a_probe_is_the_mean_of_its_seeds(results):
    for name, layers in results['probe'].items():
        for layer, mean in layers.items():
            seeds = results['probe_detail'][name][layer]['seeds']
            networks = results['protocol']['random_networks'] if name in ('random', 'rescaled') else 1
            draws = 1 if name == 'supervised' else len(results['protocol']['seeds'])     # its own labels alone
            assert len(seeds) == networks*draws
            assert mean == pytest.approx(sum(seeds)/len(seeds))
    assert results['protocol']['random_networks'] == 3 and '3 random networks' in results['protocol']['kind']


def test_results_say_where_they_come_from(results, demo_run):
    assert set(results['data']) >= {'name', 'images', 'size', 'fingerprint'} and results['data']['images'] == 300
    assert set(results['versions']) >= {'python', 'torch', 'torchvision', 'fastai'}
    assert all(results['versions'].values())
    assert results['device'] and 'commit' in results and {'labels', 'seeds', 'test_images'} <= set(results['protocol'])
    assert Recipe.from_dict(results['recipe']) == load_weights(demo_run).recipe == Recipe.load(demo_run/'recipe.json')


def test_the_page_holds_every_verdict(results, demo_run):
    page = (demo_run/'report.html').read_text()
    for met, sentence in verdicts(results): assert html.escape(sentence) in page
    assert page.count('src="data:image/png;base64,') >= 3


def test_a_demo_is_never_overwritten(demo_run, tmp_path, monkeypatch, capsys):
    with pytest.raises(SpotError, match='exists already'): demo(demo_run)
    def stand_in(out, device, recipe):
        (out/'sub').mkdir(parents=True)
        return json.loads((demo_run/'results.json').read_text())
    monkeypatch.setattr(room, 'demo', stand_in)
    for k in '', '-2', '-3':
        main(['demo', '--out', str(tmp_path/'demo'), '--device', 'cpu'])
        said = capsys.readouterr().out
        assert f'demo{k}/report.html shows' in said and ('is kept as it is' in said) == bool(k) and 'conv5' in said


def test_shortcuts_stand_beside_c(results, demo_run):
    s, page = results['shortcuts'], (demo_run/'report.html').read_text()
    assert list(s['statistics']) == ['laplacian', 'variation', 'saturation', 'clipped', 'together']
    assert all(0 <= v <= 100 for v in [*s['statistics'].values(), s['patches'], s['discriminator']])
    assert s['chance'] == 50
    assert (s['images'], s['learned_from'], s['window'], s['seed']) == (100, 300, 6, results['recipe']['seed'])
    assert 'How far do shortcuts get?' in page and page.count(f'<td>{s["patches"]:.1f}</td>') >= 1
