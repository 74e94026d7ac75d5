"A small network for the tests, and whether it has moved."
from spot_artifacts.recipe import Recipe

SMALL = Recipe.small(32, width=.1, ae_width=.1, bf16=False, batch=32)


def state(net): return {k: v.clone() for k, v in net.state_dict().items()}


def unmoved(net, before): return all(v.equal(before[k]) for k, v in net.state_dict().items())
