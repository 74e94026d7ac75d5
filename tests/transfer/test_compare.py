"Comparisons: what takes longer, or needs more, than notebook 32 should."
import json

import pytest, torch
from networks import SMALL

from spot_artifacts.core import SpotError
from spot_artifacts.transfer import compare as compare_module
from spot_artifacts.transfer.compare import compare, few_labels, measure_all, per_class, transfer_report
from spot_artifacts.transfer.probes import as_frame, knn_probe, probe

NETWORKS = ['pixels', 'random', 'rescaled', 'pretrained', 'supervised']


def test_few_labels(net, sets):
    r = few_labels(net, SMALL, *sets, numbers=(1, 5), seeds=(0, 1), feature_dim=300, steps=10)
    assert list(r['networks']) == ['pretrained', 'random', 'rescaled', 'fine-tuned', 'scratch']
    assert r['numbers'] == [1, 5]
    for name, d in r['networks'].items():
        n = 6 if name in ('random', 'rescaled') else 2
        assert len(d['mean']) == len(d['sd']) == 2 and all(len(s) == n for s in d['seeds'])
    assert as_frame(r).loc[('scratch', 5), 'mean'] == r['networks']['scratch']['mean'][1] and json.dumps(r)
    assert torch.bincount(per_class(sets[0], 4).labels).tolist() == [4]*10
    with pytest.raises(SpotError, match='a class has 20 images, and 21 are wanted'): per_class(sets[0], 21)


def test_few_images_take_the_steps_that_were_asked_for(net, sets, monkeypatch):
    monkeypatch.setattr(compare_module, 'classify', lambda *args, **how: args[4])
    assert SMALL.batch > 10
    assert compare_module._whole(net, per_class(sets[0], 1), None, SMALL, 60, 0, 'cpu') == 60
    few = sets[0][:2*SMALL.batch]
    assert compare_module._whole(net, few, None, SMALL, 60, 0, 'cpu') == 30


def test_comparison_has_every_baseline(net, sets):
    how = dict(labels=100, seeds=(0, 1), feature_dim=200)
    r = compare(net, SMALL, *sets, **how, random_seeds=(0, 1), progress=False, most=2)
    nets = r['networks']
    assert list(nets) == NETWORKS and set(nets['pixels']) == {'pixels'} and json.dumps(r)
    assert [len(nets[n]['conv3' if n != 'pixels' else 'pixels']['seeds']) for n in nets] == [2, 4, 4, 2, 1]
    assert r['random_networks'] == 2 and '2 random networks' in r['protocol'] and r['supervised']['epochs'] > 0
    alone = probe(net, *sets, **how)
    assert nets['pretrained']['conv5']['seeds'] == alone['conv5']['seeds']
    assert as_frame(r).loc[('pretrained', 'conv5'), 'mean'] == alone['conv5']['mean']
    one = measure_all(dict(pretrained=[net]), lambda n: knn_probe(n, *sets))
    assert one['pretrained']['conv1']['sd'] is None


def test_report_is_whole(net, sets):
    r = transfer_report(net, SMALL, *sets, 60, random_seeds=(0, 1), numbers=(1, 2), steps=2, progress=False, most=1)
    heads = r['head']['networks']
    assert list(heads) == NETWORKS[1:] and len(r['head']['epochs']) == 12
    assert heads['random']['frozen']['sd'] is not None
    assert list(r['knn']['networks']) == list(r['probe']['networks']) == NETWORKS
    assert all(r[k]['protocol'] for k in ('probe', 'knn', 'head', 'few_labels')) and json.dumps(r)


def test_numbers_and_layers_that_are_not_there(net, sets):
    for wrong, says in ((dict(numbers=(0,)), '0 are wanted'), (dict(layer='conv9'), "no layer 'conv9'")):
        with pytest.raises(SpotError, match=says):
            few_labels(net, SMALL, *sets, **{**dict(numbers=(1,), seeds=(0,), steps=1, random_seeds=(0,)), **wrong})
