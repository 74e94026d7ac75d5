"Table 3: one run and its file, the table of a folder, and the command."
import json
from dataclasses import replace

import pytest, torch
from images import write_images
from networks import SMALL

from spot_artifacts.cli import main
from spot_artifacts.core import ImagesError, SpotError
from spot_artifacts.pretext import Rotation
from spot_artifacts.recipe import build
from spot_artifacts.runs import save_weights
from spot_artifacts.transfer import table3
from spot_artifacts.transfer.table3 import cut_objects, voc_gains, voc_results, voc_run, voc_sets, voc_start, voc_table
from spot_artifacts.scenes import toy_voc
from spot_artifacts.transfer.voc import VOCBoxes

FEW = dict(steps=2, width=8)


@pytest.fixture(scope='module')
def tree(tmp_path_factory): return toy_voc(tmp_path_factory.mktemp('voc'), (10, 4), 48)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A folder with weights that have learned nothing."
    folder = tmp_path_factory.mktemp('run')/'mine'
    folder.mkdir()
    save_weights(build(SMALL), folder/'weights.safetensors')
    return folder


def test_a_finished_run_is_read_and_anything_else_is_computed(tree, tmp_path, monkeypatch):
    asked, segment = [], table3.TASKS['segmentation'][1]
    sets = table3.TASKS['segmentation'][0]
    monkeypatch.setitem(table3.TASKS, 'segmentation', (sets, lambda *a, **k: asked.append(1) or segment(*a, **k)))
    def one(seed=0, **how):
        return voc_run('segmentation', tree, 'random', SMALL, seed=seed, out=tmp_path, **{**FEW, **how})
    first = one()
    assert one() == first and len(asked) == 1 and len(first['data']['fingerprint']) == 16
    file, = tmp_path.iterdir()
    file.write_text('{')                                    # damaged: computed again
    assert one()['score'] == first['score'] and len(asked) == 2
    assert one(seed=1)['weights'] != first['weights'] and len(asked) == 3


def test_what_is_not_one_table_is_refused_before_it_is_trained(tree, tmp_path, monkeypatch):
    def one(weights='random', out=tmp_path, root=tree, recipe=SMALL, **how):
        return voc_run('segmentation', root, weights, recipe, out=out, **{**FEW, **how})
    one()
    sets = table3.TASKS['segmentation'][0]
    monkeypatch.setitem(table3.TASKS, 'segmentation', (sets, lambda *a, **k: pytest.fail('it is trained')))
    with pytest.raises(ImagesError, match='differ in length or size'): one(steps=3)
    with pytest.raises(ImagesError, match='different data'): one(root=toy_voc(tmp_path/'more', (10, 5), 48))
    with pytest.raises(ImagesError, match='are called random, seed 0. Give one of them another --name'):
        one(recipe=replace(SMALL, width=.15))
    with pytest.raises(SpotError, match='--name a/b: is part of a file name'): one(name='a/b')


def test_a_table_has_one_test_set(tree, tmp_path):
    for seed in (0, 1): r = voc_run('segmentation', tree, 'random', SMALL, seed=seed, out=tmp_path, **FEW)
    file, = tmp_path.glob('*-1-*.json')
    file.write_text(json.dumps(dict(r, test_data=dict(r['test_data'], fingerprint='another'))))
    with pytest.raises(ImagesError, match='different data'): voc_results(tmp_path)


def test_the_recipe_of_another_pretext_makes_the_controls():
    for weights in ('random', 'rescaled'):
        net, *_ = voc_start(weights, Rotation.Recipe.small(32, width=.1), None)
        assert isinstance(net, Rotation) and len(net.forward_layers(torch.zeros(2, 3, 32, 32))) == 5


def test_starts(tree, run):
    objects = cut_objects(VOCBoxes(tree), 32)
    assert objects.size == 32 and len(objects) == sum(int((~s.difficult).sum()) for s in VOCBoxes(tree).scenes)
    for weights, init, name in ((run, 'pretrained', 'mine'), (run/'weights.safetensors', 'pretrained', 'mine'),
                                ('random', 'random', 'random')):
        assert voc_start(weights, SMALL, None)[1:] == (init, name)
    net, *names = voc_start('supervised', SMALL, lambda: objects, most=1)
    assert names == ['supervised']*2 and not net.training
    with pytest.raises(SpotError): voc_start('nowhere', SMALL, None)


@pytest.mark.parametrize('pretext', ['context', 'inpainting', 'jigsaw', 'rotation', 'simclr'])
def test_the_command_takes_a_run_of_any_pretext_and_names_its_row(tree, tmp_path, capsys, pretext):
    write_images(tmp_path/'images', 24, 48)
    few = ['--size', '32', '--width', '.05', '--batch', '8', '--steps', '1', '--device', 'cpu']
    main(['pretrain', '--images', str(tmp_path/'images'), '--out', str(tmp_path/'run-0'), '--pretext', pretext, *few])
    main(['voc', '--task', 'segmentation', '--root', str(tree), '--weights', str(tmp_path/'run-0'), '--name', pretext,
          '--steps', '1', '--device', 'cpu', '--out', str(tmp_path/'voc')])
    result, = voc_results(tmp_path/'voc')
    assert (result['name'], result['init']) == (pretext, 'pretrained') and f'{pretext} small' in capsys.readouterr().out


@pytest.mark.parametrize('task', ['classification', 'segmentation'])
def test_the_command_trains_a_supervised_start_on_the_objects(tree, run, tmp_path, task):
    main(['voc', '--task', task, '--root', str(tree), '--weights', 'supervised', '--like', str(run), '--steps', '1',
          '--device', 'cpu', '--out', str(tmp_path)])
    result, = voc_results(tmp_path)
    assert (result['name'], result['init'], result['task']) == ('supervised', 'supervised', task)


def test_sets_of_a_task(tree, tmp_path):
    assert [d.name for d in voc_sets('segmentation', tree)] == ['voc2007-trainval', 'voc2007-test']
    with pytest.raises(SpotError, match='2012'): voc_sets('segmentation', tree, 2012)
    with pytest.raises(SpotError, match='task is one of'): voc_sets('counting', tree)
    (tmp_path/'VOCdevkit'/'VOC2012').mkdir(parents=True)
    with pytest.raises(SpotError, match='VOC2012.*train.txt is missing'): voc_sets('segmentation', tmp_path)


def test_the_table_and_its_gains(tmp_path):
    def write(name, task, seed, score, data='a', steps=9):
        run = dict(name=name, preset='small', task=task, seed=seed, score=score, data=dict(fingerprint=data),
                   test_data=dict(fingerprint='t'), plan=dict(steps=steps))
        (tmp_path/f'{name}-{task}-{seed}.json').write_text(json.dumps(run))
    for seed in range(3):
        write('rescaled', 'detection', seed, 10 + seed)
        write('mine', 'detection', seed, 15 + 2*seed)
    write('mine', 'segmentation', 0, 50.)
    (tmp_path/'other.json').write_text('{"task": "other"}')
    runs = voc_results(tmp_path)
    table = voc_table(runs)
    assert table.loc['mine small', 'detection'] == '17.0 ± 5.0 (n = 3)'         # 4.303*2/3^.5
    assert table.loc['mine small - rescaled', 'detection'] == '+6.0 (+3.5 to +8.5, n = 3)'
    assert table.loc['mine small', 'segmentation'] == '50.0' and table.loc['rescaled small', 'classification'] == ''
    gain = voc_gains(runs)
    assert gain['detection']['mine small']['mean'] == 6 and gain['segmentation'] == {}
    write('longer', 'detection', 0, 1., steps=10)
    with pytest.raises(SpotError, match='differ in length'): voc_results(tmp_path)
    write('longer', 'detection', 0, 1.)
    write('late', 'detection', 0, 1., 'b')
    with pytest.raises(SpotError, match='different data'): voc_results(tmp_path)


def test_the_command(tree, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    words = ['voc', '--task', 'segmentation', '--root', str(tree), '--weights', str(run), '--steps', '2',
             '--seeds', '2', '--device', 'cpu', '--out', str(tmp_path/'out')]
    main(words)
    told = capsys.readouterr().out
    assert 'segmentation, mine, seed 1: ' in told and '(n = 2)' in told and len(list((tmp_path/'out').iterdir())) == 2
    main(words)
    assert capsys.readouterr().out.splitlines()[-4:] == told.splitlines()[-4:]
    with pytest.raises(SystemExit): main([*words[:4], str(tmp_path), *words[5:]])
    err = capsys.readouterr().err
    assert err.startswith('spot-artifacts: ') and err.count('\n') == 1 and 'no such folder' in err
