"The commands that measure features, probe and stl10: controls, draws, and what their files say."
import json
from functools import partial
from types import SimpleNamespace

import numpy as np, pytest
from networks import SMALL

from spot_artifacts.cli import main
from spot_artifacts.options import PROTOCOLS
from spot_artifacts.recipe import build
from spot_artifacts.toy import toy_images
from spot_artifacts.transfer import compare, protocols


def test_stl10_command_measures_controls_too(demo_run, tiny_stl10, capsys):
    out = tiny_stl10/'stl10.json'
    main(['stl10', *f'--weights {demo_run} --root {tiny_stl10} --epochs 1 --random 2 --device cpu --out {out}'.split()])
    found = json.loads(out.read_text())['stl10']
    names = 'random', 'rescaled', 'pretrained'
    assert list(found) == [f'{name}, {way}' for name in names for way in ('frozen', 'fine-tuned')]
    for name, r in found.items():
        networks = 1 if 'pretrained' in name else 2
        assert len(r['epochs']) == len(r['accuracies']) == networks and all(len(a) == 10 for a in r['accuracies'])
        assert r['mean'] == pytest.approx(np.mean(r['accuracies']))
    printed = capsys.readouterr().out
    assert all(name in printed for name in found) and 'ten folds of STL-10 and 2 networks' in printed


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_what_is_written_is_what_was_done(protocol, monkeypatch):
    net, calls = build(SMALL).discriminator.eval(), []
    sets = toy_images(200, 32, seed=0, cache=False), toy_images(100, 32, seed=1, cache=False)
    def watch(module, name):
        real = getattr(module, name)
        def spy(*args, **kw):
            if args[0] is net: calls.append(args[1])
            return real(*args, **kw)
        monkeypatch.setattr(module, name, spy)
    for name in 'classify', 'probe_sgd', 'knn_probe': watch(protocols, name)
    monkeypatch.setattr(protocols, 'few_labels', partial(compare.few_labels, steps=3))
    monkeypatch.setattr(compare, 'supervised', lambda recipe, data, **kw: (net, dict(epochs=1)))
    found, done = protocols.measure_features(SimpleNamespace(discriminator=net, recipe=SMALL), *sets, protocol,
                                             labels=50, values=100, seeds=(3, 4), random=1, epochs=1)
    assert done['seeds'] == [3, 4] and done['random_networks'] == 1 and json.dumps([found, done])
    for layer in found['pretrained'].values(): assert len(layer['seeds']) == 2, 'every protocol uses all draws'
    if protocol in ('sgd', 'knn', 'fc', 'conv5', 'finetune'):
        assert {len(data) for data in calls} == {50} and len({data.fingerprint for data in calls}) == 2
    assert ('labels' in done) is (protocol != 'few')
    assert ('epochs' in done) is (protocol in ('sgd', 'fc', 'conv5', 'finetune'))
    assert ('values' in done) is (protocol in ('linear', 'sgd', 'knn', 'few'))
