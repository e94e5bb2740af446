"""What faults cannot reach is named in one line, with a way out."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from networks import SOUND, array, function_rows, table

import ftnas_jax as ft

P, X = {"w": array(6, 6)}, array(4, 6)
LINE = r"[^ ]*test_what_is_refused\.py:\d+(:\d+)? \([^)]+\): "


@jax.custom_vjp
def multiply(x, w):
    return x @ w


multiply.defvjp(lambda x, w: (x @ w, (x, w)), lambda known, g: (g @ known[1].T, known[0].T @ g))


@jax.custom_jvp
def convolve(x, w):
    return lax.conv_general_dilated(
        x[None], w[None], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    )


convolve.defjvp(lambda primals, tangents: (convolve(*primals), convolve(*tangents)))


def in_while(p, x):
    return lax.while_loop(lambda h: h.sum() < 0, lambda h: h @ p["w"], x)


def carried(p, x):
    def turn(known, _):
        return (known[0] @ known[1], known[1] * 0.9), None

    return lax.scan(turn, (x, p["w"]), None, length=2)[0][0]


REFUSED = {
    "while": (
        in_while,
        "a dot_general inside while is out of the reach of faults; "
        "write the loop with a known number of turns, as lax.scan or fori_loop",
    ),
    "custom_vjp": (
        lambda p, x: multiply(x, p["w"]),
        "a dot_general inside custom_vjp_call is out of the reach of faults; "
        "call the function without its custom gradient",
    ),
    "custom_jvp": (
        lambda p, x: convolve(x, p["w"]),
        "a conv_general_dilated inside custom_jvp_call is out of the reach of faults; "
        "call the function without its custom gradient",
    ),
    "mapped": (
        lambda p, x: jax.vmap(in_while, (None, 0))(p, x[:, None]),
        "a dot_general inside while is out of the reach of faults; "
        "write the loop with a known number of turns, as lax.scan or fori_loop",
    ),
    "elementwise": (
        lambda p, x: (x * p["w"][:4]) @ p["w"],
        "the parameter w of shape (4, 6) multiplies features element by element, which is no "
        "layer that faults are known for; compute it by a dot_general, or leave it in float32 "
        "with ignore='w'",
    ),
    "carried": (
        carried,
        "the weights w are carried from turn to turn; close over them, or scan over them",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_out_of_reach(name):
    function, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^{LINE}{re.escape(message)}$"):
        function_rows(function, P, X)


NO_LAYER = (
    "no layer was found: no parameter is multiplied with an argument of the model by a "
    "convolution or a dot_general; pass parameters first, and images as an argument"
)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (lambda p, x: x + p["w"][0][None], (P, X)),
        (lambda p, x: (x * p["w"][0][None]).sum(1), (P, X)),
        (lambda p: p["w"] @ p["w"], (P,)),
    ],
)
def test_a_model_without_a_layer(function, args):
    with pytest.raises(ValueError, match=f"^{NO_LAYER}$"):
        function_rows(function, *args)


@pytest.mark.parametrize(("model", "name"), [(3, "int"), (None, "NoneType"), ({"w": 1}, "dict")])
def test_what_is_no_model(model, name):
    message = f"^{name} is no model: give a Flax module or a function of parameters$"
    with pytest.raises(TypeError, match=message):
        ft.on_hardware(model, SOUND)


@pytest.mark.parametrize("ignore", ["mask", "m*", "other|mask", " mask "])
def test_a_mask_may_be_left_in_float32(ignore):
    p = {"mask": array(4, 6), "w": array(6, 6)}

    def masked(p, x):
        return (x * p["mask"]) @ p["w"]

    assert function_rows(masked, p, X, ignore=ignore) == table("""
        input  input    0  4x6
        w      weights  6  6x6
        in float32: mask
    """)


def test_one_scale_of_a_stack_is_left_in_float32():
    p = {"scales": array(2, 6), "w": array(6, 6)}

    def scaled(p, x):
        return (x * p["scales"][1][None]) @ p["w"]

    assert function_rows(scaled, p, X)[-1] == ["in", "float32:", "scales"]


@pytest.mark.parametrize("shape", [(), (6,), (1, 6), (4, 1)])
def test_scales_of_one_dimension_are_left_in_float32(shape):
    p = {"scale": jnp.ones(shape), "w": array(6, 6)}

    def scaled(p, x):
        return (x * jnp.broadcast_to(p["scale"], x.shape)) @ p["w"]

    assert function_rows(scaled, p, X)[-1] == ["in", "float32:", "scale"]


def test_layers_in_branches_cannot_be_observed():
    def branched(p, x):
        return lax.cond(x[0, 0] > 0, lambda x: x @ p["w"], lambda x: x, x)

    with pytest.raises(ValueError, match=r"^layers in a branch") as error:
        ft.calibrate(ft.on_hardware(branched, SOUND), [(P, X)])
    assert str(error.value) == "layers in a branch cannot be observed: only one branch runs"


def test_a_kernel_that_is_no_parameter_is_listed():
    kernel = jnp.ones((3, 2))

    def model(params, x):
        return jnp.tanh(x @ kernel) @ params["w"]

    chip = ft.on_hardware(model, ft.Hardware())
    sites = chip.sites({"w": jnp.ones((2, 2))}, jnp.ones((4, 3)))
    (found,) = sites.fixed
    assert found.startswith("dot_general at ")
    assert "test_what_is_refused.py" in found
    assert "by constants, never faulty: dot_general at" in str(sites)


def test_a_ragged_product_is_named():
    def model(params, x):
        return lax.ragged_dot(x, params["w"], jnp.array([2, 2], jnp.int32))

    with pytest.raises(ValueError, match=r"faults are not known of ragged_dot"):
        ft.on_hardware(model, ft.Hardware())({"w": jnp.ones((2, 3, 3))}, jnp.ones((4, 3)))
