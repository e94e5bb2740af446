"""The operations against float64 NumPy written from their description, faults included."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftnas_jax.faults import FaultModel
from ftnas_jax.fixed_point import FixedPoint, saturate
from ftnas_jax.nn import layer
from ftnas_jax.nn.hardware import Hardware
from ftnas_jax.nn.primitives import (
    NORM_SLOTS,
    FaultMaps,
    apply_primitive,
    count_kernels,
    initialize_primitive,
    layer_macs,
    parameter_shapes,
)
from ftnas_jax.space import PRIMITIVES

FLOAT = Hardware(None, None)


@pytest.fixture(autouse=True)
def one_image_at_a_time(monkeypatch):
    """Layers go over images in turns, as they do over large ones (CPU)."""
    monkeypatch.setattr(layer, "_CACHE_ELEMENTS", 1)


IMAGE = (3, 6, 4)  # B, H, W
WIDTH = 4  # channels of operations inside a cell

KERNELS = {
    "conv_bn_3x3": [(3, 3, "in", "out")],
    "conv_1x1": [(1, 1, "in", "out")],
    "relu_conv_bn_1x1": [(1, 1, "in", "out")],
    "relu_conv_bn_3x3": [(3, 3, "in", "out")],
    "relu_conv_bn_5x5": [(5, 5, "in", "out")],
    "sep_conv_3x3": [(3, 3, "in"), (1, 1, "in", "in"), (3, 3, "in"), (1, 1, "in", "out")],
    "sep_conv_5x5": [(5, 5, "in"), (1, 1, "in", "in"), (5, 5, "in"), (1, 1, "in", "out")],
    "dil_conv_3x3": [(3, 3, "in"), (1, 1, "in", "out")],
    "dil_conv_5x5": [(5, 5, "in"), (1, 1, "in", "out")],
}
"""Kernels of the operations that are chains of convolutions, in their order."""

NORMALIZED = {
    "conv_1x1": [],
    "sep_conv_3x3": [1, 3],
    "sep_conv_5x5": [1, 3],
    "dil_conv_3x3": [1],
    "dil_conv_5x5": [1],
}
"""Places of the convolutions with a BatchNorm behind them; the first for all others."""

CASES = [(name, stride) for name in PRIMITIVES for stride in (1, 2)]


def expected_shapes(name, channels, features, stride, affine):
    """Shapes of the parameters, from `KERNELS`."""
    if name == "skip_connect" and stride == 2:
        first = features // 2
        widths = {"conv0": first, "conv1": features - first}
        shapes = {layer: {"kernel": (1, 1, channels, width)} for layer, width in widths.items()}
        return shapes | ({"norm": {"scale": (features,), "offset": (features,)}} if affine else {})
    sizes = {"in": channels, "out": features}
    shapes = {}
    for place, kernel in enumerate(KERNELS.get(name, [])):
        kernel = tuple(sizes.get(axis, axis) for axis in kernel)
        own = {"kernel": kernel}
        if name == "conv_1x1":
            own["bias"] = (features,)
        if affine and place in NORMALIZED.get(name, [0]):
            own |= {"scale": kernel[-1:], "offset": kernel[-1:]}
        shapes[f"conv{place}"] = own
    return shapes


def windows(x, k, stride, dilation, fill):
    """For every output position its window [B, k, k, C], as ((row, column), window)."""
    pad = dilation * (k - 1) // 2
    padded = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)], constant_values=fill)
    span = dilation * (k - 1) + 1
    for row in range(0, x.shape[1], stride):
        for column in range(0, x.shape[2], stride):
            window = padded[:, row : row + span : dilation, column : column + span : dilation]
            yield (row // stride, column // stride), window


def slide(x, k, stride, dilation=1, fill=0.0, *, function):
    """[B, h, w, ...]: `function` of the window at every output position."""
    rows, columns = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    out = {at: function(window) for at, window in windows(x, k, stride, dilation, fill)}
    return np.stack([np.stack([out[r, c] for c in range(columns)], 1) for r in range(rows)], 1)


def convolve(x, kernel, stride=1, dilation=1):
    """Dense for a kernel [k, k, I, O], depthwise for [k, k, C]."""
    how = "bijc,ijc->bc" if kernel.ndim == 3 else "bijc,ijco->bo"
    apply = functools.partial(np.einsum, how)
    return slide(x, kernel.shape[0], stride, dilation, function=lambda w: apply(w, kernel))


def relu(x):
    return np.maximum(x, 0.0)


class Oracle:
    """One operation in float64, with hooks where the hardware quantizes and fails.

    `weight(place, kernel)` and `feature(place, f)` return what the hardware holds.
    """

    def __init__(self, params, running=None, weight=None, feature=None, pool_norm=False):
        self.params, self.running, self.pool_norm = params, running, pool_norm
        self.weight = weight or (lambda place, kernel: kernel)
        self.feature = feature or (lambda place, f: f)
        self.statistics = []

    def norm(self, f, params):
        mean, variance = f.mean((0, 1, 2)), f.var((0, 1, 2))
        if self.running is not None:
            mean, variance = self.running[len(self.statistics)]
        self.statistics.append(np.stack([mean, variance]))
        f = (f - mean) / np.sqrt(variance + 1e-5)
        return f * params.get("scale", 1.0) + params.get("offset", 0.0)

    def conv(self, place, x, stride=1, dilation=1, norm=False):
        """A convolution, its BatchNorm where it has one, then the hardware."""
        own = self.params[f"conv{place}"]
        f = convolve(x, self.weight(place, own["kernel"]), stride, dilation) + own.get("bias", 0.0)
        return self.feature(place, self.norm(f, own) if norm else f)

    def __call__(self, name, x, stride):
        if name == "none":
            return np.zeros_like(x[:, ::stride, ::stride])
        if name == "skip_connect":
            return x if stride == 1 else self.factorized_reduction(x)
        if "pool" in name:
            return self.pool(name, x, stride)
        if name == "conv_1x1":
            return self.conv(0, x, stride)
        if name == "conv_bn_3x3":
            return self.conv(0, x, stride, norm=True)
        if name.startswith("relu_conv_bn"):
            return self.conv(0, relu(x), stride, norm=True)
        dilation = 2 if name.startswith("dil") else 1
        y = self.conv(1, self.conv(0, relu(x), stride, dilation), norm=True)
        if name.startswith("sep"):
            y = self.conv(3, self.conv(2, relu(y)), norm=True)
        return y

    def factorized_reduction(self, x):
        x = relu(x)
        halves = [x[:, ::2, ::2], x[:, 1::2, 1::2]]
        kernels = [self.weight(i, self.params[f"conv{i}"]["kernel"]) for i in (0, 1)]
        both = np.concatenate([h @ k[0, 0] for h, k in zip(halves, kernels, strict=True)], -1)
        return self.feature(0, self.norm(both, self.params.get("norm", {})))

    def pool(self, name, x, stride):
        fill = -np.inf if name.startswith("max") else np.nan
        mean_or_max = np.max if name.startswith("max") else np.nanmean
        y = slide(x, 3, stride, fill=fill, function=lambda w: mean_or_max(w, (1, 2)))
        y = self.norm(y, {}) if self.pool_norm else y
        return self.feature(None, y)


def random_like(rng, shapes):
    """Random float64 parameters in which scales stay away from 0."""
    return {
        layer: {
            field: rng.normal(size=shape) * 0.5 + (field == "scale")
            for field, shape in fields.items()
        }
        for layer, fields in shapes.items()
    }


def single(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def directional_derivative(function, point, direction, step=1e-6):
    def at(sign):
        return function(jax.tree.map(lambda p, d: p + sign * step * d, point, direction))

    return (at(1) - at(-1)) / (2 * step)


def inner_product(a, b):
    parts = jax.tree.map(lambda p, q: np.sum(np.asarray(p, np.float64) * q), a, b)
    return sum(jax.tree.leaves(parts))


@pytest.mark.parametrize(("name", "stride"), CASES)
def test_primitive_and_its_gradients(name, stride):
    """Batch statistics and given ones; gradients against central differences in float64."""
    rng = np.random.default_rng(PRIMITIVES.index(name) * 2 + stride)
    x = rng.normal(size=(*IMAGE, WIDTH))
    shapes = parameter_shapes(name, WIDTH, WIDTH, stride=stride, affine=True)
    params, direction = (
        random_like(rng, shapes),
        (random_like(rng, shapes), rng.normal(size=x.shape)),
    )
    running = rng.uniform(0.5, 2.0, size=(NORM_SLOTS, 2, WIDTH))
    for pool_norm in (False, True) if "pool" in name else (True,):
        oracle = Oracle(params, pool_norm=pool_norm)
        y = oracle(name, x, stride)
        g = rng.normal(size=y.shape)

        @jax.jit
        def program(params, x, running, g, pool_norm=pool_norm):
            def apply(params, x, running=None):
                sound, settings = FaultMaps(None, None), {"stride": stride, "hardware": FLOAT}
                return apply_primitive(
                    name, params, x, running, sound, pool_norm=pool_norm, **settings
                )

            y, vjp, statistics = jax.vjp(apply, params, x, has_aux=True)
            return y, statistics, vjp(g), apply(params, x, running)

        got, statistics, gradients, evaluated = program(
            single(params), single(x), single(running), single(g)
        )
        np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-4)
        used = np.zeros((NORM_SLOTS, 2, WIDTH))
        used[: len(oracle.statistics)] = np.reshape(oracle.statistics, (-1, 2, WIDTH))
        np.testing.assert_allclose(statistics, used, rtol=1e-4, atol=1e-5)

        def loss(point, g=g, pool_norm=pool_norm):
            return np.sum(Oracle(point[0], pool_norm=pool_norm)(name, point[1], stride) * g)

        np.testing.assert_allclose(
            inner_product(gradients, direction),
            directional_derivative(loss, (params, x), direction),
            rtol=1e-3,
            atol=1e-3,
        )
        oracle = Oracle(params, running, pool_norm=pool_norm)
        np.testing.assert_allclose(evaluated[0], oracle(name, x, stride), rtol=1e-4, atol=1e-4)
        used[: len(oracle.statistics)] = running[: len(oracle.statistics)]
        np.testing.assert_allclose(evaluated[1], used, rtol=1e-6)


PREPROCESS_CASES = [
    *(
        (name, s, 4)
        for name in ("relu_conv_bn_1x1", "relu_conv_bn_3x3", "sep_conv_3x3")
        for s in (1, 2)
    ),
    ("skip_connect", 2, 4),
    ("skip_connect", 2, 5),
    ("conv_bn_3x3", 1, 9),
]


@pytest.mark.parametrize(("name", "stride", "features"), PREPROCESS_CASES)
def test_operations_that_change_the_number_of_channels(name, stride, features):
    rng = np.random.default_rng(features)
    x = rng.normal(size=(*IMAGE, 6))
    shapes = parameter_shapes(name, 6, features, stride=stride, affine=True)
    assert shapes == expected_shapes(name, 6, features, stride, affine=True)
    params = random_like(rng, shapes)

    @jax.jit
    def program(params, x):
        sound = FaultMaps(None, None)
        settings = {"stride": stride, "hardware": FLOAT, "pool_norm": False}
        return apply_primitive(name, params, x, None, sound, **settings)[0]

    y = Oracle(params)(name, x, stride)
    assert y.shape[-1] == features
    np.testing.assert_allclose(program(single(params), single(x)), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("name", "stride"), CASES)
def test_parameter_shapes(name, stride, affine):
    shapes = parameter_shapes(name, WIDTH, WIDTH, stride=stride, affine=affine)
    assert shapes == expected_shapes(name, WIDTH, WIDTH, stride, affine)


def test_initial_parameters_have_the_bounds_of_their_fan_in():
    shapes = {
        "conv0": {"kernel": (5, 5, 300)},
        "conv1": {"kernel": (1, 1, 300, 40), "bias": (40,), "scale": (40,), "offset": (40,)},
    }
    params = jax.jit(lambda key: initialize_primitive(key, shapes))(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(tuple, shapes, is_leaf=_is_shape)
    for kernel, fan_in in ((params["conv0"]["kernel"], 25), (params["conv1"]["kernel"], 300)):
        bound = 1 / np.sqrt(fan_in)
        assert 0.99 * bound < np.max(np.abs(kernel)) <= bound
        assert abs(np.mean(kernel)) < 0.05 * bound
    assert 0 < np.max(np.abs(params["conv1"]["bias"])) <= 1 / np.sqrt(300)
    assert np.all(params["conv1"]["scale"] == 1)
    assert not np.any(params["conv1"]["offset"])


def _is_shape(node):
    return isinstance(node, tuple)


# Faults


C = 16  # a width that no kernel has as its number of taps
SITES = {
    "none": [],
    "skip_connect": [],
    "avg_pool_3x3": [0],
    "max_pool_3x3": [0],
    "conv_1x1": [C],
    "relu_conv_bn_3x3": [9 * C],
    "relu_conv_bn_5x5": [25 * C],
    "sep_conv_3x3": [9, C, 9, C],
    "sep_conv_5x5": [25, C, 25, C],
    "dil_conv_3x3": [9, C],
    "dil_conv_5x5": [25, C],
}
"""M_l of every layer, for C channels; pooled features are only stored."""


@pytest.mark.parametrize(("name", "stride"), CASES)
def test_multiply_accumulates_of_every_layer(name, stride):
    expected = [C] if (name, stride) == ("skip_connect", 2) else SITES[name]
    assert layer_macs(name, C, C, stride=stride) == expected


def test_multiply_accumulates_of_preprocessing_and_stem():
    assert layer_macs("relu_conv_bn_1x1", 60, 20, stride=1) == [60]
    assert layer_macs("relu_conv_bn_3x3", 60, 20, stride=2) == [540]
    assert layer_macs("sep_conv_3x3", 60, 20, stride=1) == [9, 60, 9, 60]
    assert layer_macs("skip_connect", 60, 20, stride=2) == [60]
    assert layer_macs("conv_bn_3x3", 3, 60, stride=1) == [27]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class AddSteps(FaultModel):
    """A fault model whose map is the number of steps by which each code changes."""

    site: str = dataclasses.field(kw_only=True)
    name: ClassVar[str] = "add_steps"

    def apply(self, codes, fault_map, fmt):
        return saturate(codes + fault_map, fmt)


SIXTEEN_BITS = FixedPoint(16)
FAILING = Hardware(
    SIXTEEN_BITS, SIXTEEN_BITS, (AddSteps(site="weights"), AddSteps(site="features"))
)
"""Steps so small that one more or less, where float32 rounds a tie otherwise than float64, is lost
in the tolerance; faults are thousands of steps."""


def faulty(x, steps):
    """x as codes of 16 bits, `steps` added, saturated, as values again."""
    exponent = 14 - int(np.floor(np.log2(max(np.abs(x).max(), 1e-30))))
    fits = [
        length
        for length in range(exponent - 2, exponent + 3)
        if np.round(x * 2.0**length).max() <= 32767 and np.round(x * 2.0**length).min() >= -32768
    ]
    length = max(fits)
    codes = np.round(x * 2.0**length) + (0 if steps is None else steps)
    return np.clip(codes, -32768, 32767) * 2.0**-length


def is_representable(y, bits=16):
    """Whether one power of two makes every element a code."""
    scaled = (y * 2.0**length for length in range(-10, 30))
    high = 2 ** (bits - 1)
    return any(np.all(s == np.round(s)) and s.min() >= -high and s.max() < high for s in scaled)


@pytest.mark.parametrize(
    ("name", "stride"), [case for case in CASES if case[1] == 2 or "pool" in case[0]]
)
def test_faults_hit_kernels_and_the_features_behind_batch_norm(name, stride):
    """All kernels fail, biases and BatchNorms do not; features fail after BatchNorm, before ReLU.

    Pooled features are only quantized, and everything that comes out is a code.
    """
    rng = np.random.default_rng(PRIMITIVES.index(name))
    x = rng.integers(-30000, 30000, size=(*IMAGE, WIDTH)) * 2.0**-14
    shapes = parameter_shapes(name, WIDTH, WIDTH, stride=stride, affine=True)
    params = random_like(rng, shapes)
    kernels = [fields["kernel"] for fields in params.values() if "kernel" in fields]
    starts = np.cumsum([0, *(kernel.size for kernel in kernels)])
    sites = np.count_nonzero(layer_macs(name, WIDTH, WIDTH, stride=stride))
    assert count_kernels(name, WIDTH, WIDTH, stride=stride) == starts[-1]
    size = (sites, IMAGE[0], IMAGE[1] // stride, IMAGE[2] // stride, WIDTH)
    weight_steps = rng.integers(-20000, 20000, size=starts[-1])
    feature_steps = rng.integers(-20000, 20000, size=size)

    def weight(place, kernel):
        steps = weight_steps[starts[place] : starts[place + 1]]
        return faulty(kernel, steps.reshape(kernel.shape))

    def feature(place, f):
        return faulty(f, None if place is None else feature_steps[place])

    @jax.jit
    def program(params, x, weight_steps, feature_steps):
        maps = FaultMaps((weight_steps,), (feature_steps,) if sites else None)
        settings = {"stride": stride, "hardware": FAILING, "pool_norm": False}
        return apply_primitive(name, params, x, None, maps, **settings)[0]

    steps = (jnp.asarray(weight_steps, jnp.int32), jnp.asarray(feature_steps, jnp.int32))
    y = program(single(params), single(x), *steps)
    expected = Oracle(params, weight=weight, feature=feature)(name, x, stride)
    np.testing.assert_allclose(y, expected, atol=1e-3 * max(np.abs(expected).max(), 1.0))
    assert is_representable(np.asarray(y, np.float64))


@pytest.mark.parametrize("name", ["sep_conv_5x5", "relu_conv_bn_3x3", "avg_pool_3x3", "conv_1x1"])
def test_an_operation_on_codes_loses_nothing_in_bfloat16(monkeypatch, name):
    """As matrix units take it: the same features, gradients and statistics, bit by bit."""
    rng = np.random.default_rng(1)
    x = single(rng.integers(-128, 128, size=(*IMAGE, WIDTH)) * 2.0**-6)
    params = single(random_like(rng, parameter_shapes(name, WIDTH, WIDTH, stride=2, affine=True)))

    def outputs():
        def apply(params, x):
            settings = {"stride": 2, "hardware": Hardware(), "pool_norm": True}
            return apply_primitive(name, params, x, None, FaultMaps(None, None), **settings)

        (y, statistics), differentiate = jax.vjp(apply, params, x)
        return y, statistics, differentiate((y, statistics))

    expected = jax.jit(outputs)()
    monkeypatch.setattr(type(Hardware()), "operands", jnp.bfloat16)
    traced = jax.jit(lambda: outputs()).trace()  # another function: the first is cached
    assert "bf16" in str(traced.jaxpr)
    jax.tree.map(np.testing.assert_array_equal, traced.lower().compile()(), expected)
