"""An nnx module as a linen one computes what it computes by itself."""

import jax
import numpy as np
import pytest
from flax import nnx

from ftnas_jax.models import by_name
from ftnas_jax.models.nnx_network import NnxNetwork
from tests.small_models import NnxNormed

NETWORK = by_name("tests.small_models:NnxNormed,width=5", 3)
IMAGES = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
VARIABLES = NETWORK.init(jax.random.key(0), IMAGES[:1])


def by_itself() -> NnxNormed:
    """The module with the arrays of `VARIABLES`, put where they belong by hand."""
    module = NnxNormed(3, 5, rngs=nnx.Rngs(7))
    params, stats = VARIABLES["params"], VARIABLES["batch_stats"]["norm"]
    for layer, own in [(module.hidden[0], params["hidden"]["0"])] + [
        (getattr(module, name), params[name]) for name in ("norm", "classifier")
    ]:
        for name, array in own.items():
            setattr(layer, name, nnx.Param(array))
    module.norm.mean, module.norm.var = nnx.BatchStat(stats["mean"]), nnx.BatchStat(stats["var"])
    return module


class Plain(nnx.Module):
    """Takes `train` itself, and holds a variable of another kind if asked to."""

    def __init__(self, other: bool = False, *, rngs: nnx.Rngs):
        self.layer = nnx.Linear(2, 2, rngs=rngs)
        if other:
            self.seen = nnx.Cache(jax.numpy.zeros(()))

    def __call__(self, x, train):
        return self.layer(x) if train else x


def test_it_is_the_same_function_without_training():
    assert NnxNetwork(NnxNormed, (("width", 5), ("num_classes", 3))) == NETWORK
    module = by_itself()
    module.eval()
    np.testing.assert_allclose(NETWORK.apply(VARIABLES, IMAGES), module(IMAGES), rtol=1e-5)


def test_training_moves_the_statistics_as_by_itself():
    module = by_itself()
    module.train()
    module.dropout.deterministic = True  # what it computes behind the BatchNorm is not compared
    module(IMAGES)
    _, updates = NETWORK.apply(VARIABLES, IMAGES, train=True, mutable=["batch_stats"])
    for name in ("mean", "var"):
        got, before = updates["batch_stats"]["norm"][name], VARIABLES["batch_stats"]["norm"][name]
        np.testing.assert_allclose(got, getattr(module.norm, name)[...], rtol=1e-5)
        assert np.abs(got - before).max() > 1e-3


def test_dropout_is_of_the_key_and_of_training_alone():
    def run(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return NETWORK.apply(
            VARIABLES, IMAGES, train=train, rngs=rngs, mutable=["batch_stats"] if train else False
        )

    np.testing.assert_array_equal(run(1, train=True)[0], run(1, train=True)[0])
    assert np.any(run(1, train=True)[0] != run(2, train=True)[0])
    np.testing.assert_array_equal(run(1, train=False), run(2, train=False))


def test_weights_are_of_the_key():
    other = NETWORK.init(jax.random.key(1), IMAGES[:1])["params"]["classifier"]["kernel"]
    assert np.all(other != VARIABLES["params"]["classifier"]["kernel"])


def test_a_module_that_takes_train_gets_it():
    network, x = NnxNetwork(Plain), np.ones((1, 2), np.float32)
    variables = network.init(jax.random.key(0), x)
    assert set(variables) == {"params"}
    np.testing.assert_array_equal(network.apply(variables, x), x)
    assert np.any(network.apply(variables, x, train=True) != x)


def test_variables_of_other_kinds_are_refused():
    with pytest.raises(ValueError, match="Plain has variables of kind Cache; a network") as error:
        NnxNetwork(Plain, (("other", True),)).init(jax.random.key(0), np.ones((1, 2), np.float32))
    assert "\n" not in str(error.value)
