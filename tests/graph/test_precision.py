"""At which precision matrix units are asked for the products of a model."""

import flax.linen as nn
import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import Precision
from networks import BARE, array

import ftnas_jax as ft

X = array(2, 6, 6, 3)
HIGHEST = (Precision.HIGHEST,) * 2


class Net(nn.Module):
    """A convolution that is XLA's own on all devices, and a product, in a loop the second time."""

    precision: Precision | None = None

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (2, 2), padding="VALID", precision=self.precision, name="conv")(x)
        x = nn.relu(x).mean((1, 2))
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (4, 4))

        def turn(x, _):
            return nn.relu(jnp.dot(x, kernel, precision=self.precision)), None

        return jax.lax.scan(turn, x, length=2)[0]


def precisions(jaxpr) -> list:
    """Of all products and convolutions, those of loops included."""
    found = [e.params["precision"] for e in jaxpr.eqns if "precision" in e.params]
    for equation in jaxpr.eqns:
        for inner in jex.core.jaxprs_in_params(equation.params):
            found += precisions(inner)
    return found


def asked(hardware, net=None):
    net = net or Net()
    variables = net.init(jax.random.key(0), X)
    chip = ft.on_hardware(net, hardware)
    run = jax.make_jaxpr(lambda key: chip.apply(variables, X, draw=ft.Draw(key)))
    found = precisions(run(jax.random.key(1)).jaxpr)
    assert len(found) == 2
    return set(found)


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        (BARE, None),
        (ft.Hardware(), None),
        (ft.Hardware(faults=ft.faults.parse("stuck_at+mibb")), None),
        (ft.Hardware(weights=ft.FixedPoint(10)), HIGHEST),
        (ft.Hardware(features=ft.FixedPoint(16)), HIGHEST),
        (ft.Hardware(faults=ft.faults.parse("log_normal")), HIGHEST),
        (ft.Hardware(faults=ft.faults.parse("drift")), HIGHEST),
    ],
)
def test_what_eight_significant_bits_do_not_hold_is_multiplied_in_float32(hardware, expected):
    assert asked(hardware) == {expected}


def test_what_a_model_asks_for_stays():
    chosen = (Precision.DEFAULT,) * 2
    assert asked(ft.Hardware(features=ft.FixedPoint(16)), Net(Precision.DEFAULT)) == {chosen}


@pytest.mark.parametrize("bits", [2, 8, 9, 10])
def test_bfloat16_holds_the_codes_of_which_it_is_said(bits):
    """All of them, times a power of two, in both encodings."""
    codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1) + 1) * 2.0**-5
    kept = np.asarray(jnp.asarray(codes, jnp.bfloat16), np.float64)
    assert np.array_equal(kept, codes) == (not ft.Hardware(ft.FixedPoint(bits)).needs_float32)
