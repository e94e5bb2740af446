"""Convolutions of a model: which are computed our way on CPU, and that it comes to the same."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import BARE, array

import ftnas_jax as ft
from ftnas_jax.nn.conv import on_cpu

C = 6


def conv(size=3, features=C, padding=None, stride=1, dilation=1, **options):
    padding = dilation * (size // 2) if padding is None else padding
    options = {"feature_group_count": C} | options
    return nn.Conv(
        features, (size, size), stride, padding, kernel_dilation=dilation, name="own", **options
    )


class One(nn.Module):
    """A convolution of its own making."""

    make: object

    @nn.compact
    def __call__(self, x):
        return self.make()(x)


def ours(function, *args) -> bool:
    """Whether a function's only convolution is a product, or has a gradient of our own."""
    names = [equation.primitive.name for equation in jax.make_jaxpr(function)(*args).jaxpr.eqns]
    own = {"custom_vjp_call", "dot_general"} & set(names)
    assert ("conv_general_dilated" in names) != bool(own)
    return bool(own)


def differentiated(apply, variables, x):
    """Output, and gradients of a number that every element of it has its own share in."""

    def number(variables, x):
        y = apply(variables, x)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

    (_, y), gradients = jax.value_and_grad(number, (0, 1), has_aux=True)(variables, x)
    return y, gradients


DENSE = {"feature_group_count": 1}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"stride": 2}, True),
        ({"size": 5, "dilation": 2}, True),
        ({"size": 5, "stride": 2, "use_bias": False}, True),
        (DENSE, True),
        (DENSE | {"stride": 2, "features": 4}, True),
        (DENSE | {"size": 5, "features": 2 * C}, True),
        (DENSE | {"dilation": 2}, False),
        (DENSE | {"size": 1}, True),
        (DENSE | {"size": 1, "stride": 2, "features": 4}, True),
        ({"size": 1}, True),
        ({"stride": 2, "padding": "SAME"}, False),  # pads at the end alone
        ({"padding": "VALID"}, False),
        ({"features": 2 * C}, False),
        ({"feature_group_count": 2}, False),
        ({"size": 2, "padding": "SAME"}, False),
    ],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_the_model(options, expected):
    model, x = One(lambda: conv(**options)), array(3, 8, 8, C)
    variables = model.init(jax.random.key(0), x)
    chip = ft.on_hardware(model, BARE)
    theirs, found = (jax.jit(lambda *a, m=m: differentiated(m.apply, *a)) for m in (model, chip))
    chex.assert_trees_all_close(found(variables, x), theirs(variables, x), rtol=1e-4, atol=1e-4)
    assert ours(chip.apply, variables, x) == (expected and on_cpu())


@pytest.mark.parametrize("options", [{}, DENSE, DENSE | {"size": 1}], ids=str)
def test_chips_of_different_weights_are_computed_together(options):
    model, x = One(lambda: conv(**options)), array(2, 6, 6, C)
    variables = model.init(jax.random.key(0), x)
    hardware = ft.Hardware(faults=ft.faults.parse("stuck_at:p0=0.2,p1=0.1"))
    chip = ft.on_hardware(model, hardware)
    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.vmap(lambda key: chip.apply(variables, x, draw=ft.Draw(key)))(keys)
    alone = [chip.apply(variables, x, draw=ft.Draw(key)) for key in keys]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-5, atol=1e-6)
    assert np.ptp(together, axis=0).max() > 0


def test_it_is_a_choice_for_cpu(monkeypatch):
    monkeypatch.setattr("ftnas_jax.graph.convolutions.on_cpu", lambda: False)
    model, x = One(conv), array(2, 6, 6, C)
    variables = model.init(jax.random.key(0), x)
    assert not ours(ft.on_hardware(model, BARE).apply, variables, x)
