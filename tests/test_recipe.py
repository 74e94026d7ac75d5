"The recipe: errors, and the way through JSON."
import json
from dataclasses import asdict

import pytest

from spot_artifacts.core import SpotError
from spot_artifacts.recipe import Recipe


@pytest.mark.parametrize('change, words', [
    (dict(size=100), 'Try size'), (dict(drop_rate=1.), 'drop_rate'), (dict(fill='zeros'), 'mean, noise'),
    (dict(flip='yes'), 'number'), (dict(lrn=1), 'true or false'), (dict(area=(1., .5)), 'small to large'),
    (dict(repair_blocks=6), 'repair_blocks'), (dict(batch=1), 'batch'), (dict(repair_blocks=2.5), 'whole number'),
    (dict(lr=float('nan')), 'lr')])
def test_recipe_errors_name_the_field_and_the_fix(change, words):
    with pytest.raises(SpotError, match=words): Recipe(**change)


def test_recipe_survives_json():
    r = Recipe.released(size=64, layers=3)
    assert Recipe.from_dict(json.loads(json.dumps(asdict(r)))) == r
