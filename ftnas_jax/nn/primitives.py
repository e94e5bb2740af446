"""The 11 operations of §4.2 as pure functions of parameters and features.

Operations made of convolutions are lists of layers; parameters, sites of faults and
multiply-accumulates all follow from the list. A convolution with a BatchNorm behind it fails after
that BatchNorm, which hardware folds into it.

Structures follow the code behind the published numbers: `conv_1x1` is a plain convolution with a
bias, without ReLU and BatchNorm; `skip_connect` is the identity at stride 1 and a factorized
reduction at stride 2; average pooling leaves padding out of the mean.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ftnas_jax.nn.conv import conv2d, depthwise_conv2d
from ftnas_jax.nn.hardware import Draw, Hardware, hold_weights, store_features, write_features
from ftnas_jax.nn.norm import batch_norm
from ftnas_jax.nn.pool import avg_pool, max_pool

NORM_SLOTS = 2
"""BatchNorms of the operation that has most of them; statistics of all are stored in as many."""

Params = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class ConvLayer:
    """ReLU, convolution, bias, BatchNorm, each but the convolution optional.

    Attributes:
        kernel: width k of the kernel.
        depthwise: one kernel a channel instead of a dense one.
        dilation: distance between taps.
        relu: whether a ReLU stands before the convolution.
        norm: whether a BatchNorm stands behind it.
        bias: whether the convolution adds a bias.
    """

    kernel: int
    depthwise: bool = False
    dilation: int = 1
    relu: bool = False
    norm: bool = False
    bias: bool = False

    def macs(self, channels: int) -> int:
        """M_l: multiply-accumulates behind one feature, for an input of `channels` channels."""
        return self.kernel**2 * (1 if self.depthwise else channels)

    def shapes(self, channels: int, features: int, affine: bool) -> dict[str, tuple[int, ...]]:
        """Shapes of the layer's parameters by name."""
        kernel = (self.kernel, self.kernel, channels)
        shapes = {"kernel": kernel if self.depthwise else (*kernel, features)}
        if self.bias:
            shapes["bias"] = (features,)
        if self.norm and affine:
            shapes |= {"scale": (features,), "offset": (features,)}
        return shapes


def _separable(k: int, dilation: int = 1) -> tuple[ConvLayer, ConvLayer]:
    depthwise = ConvLayer(k, depthwise=True, dilation=dilation, relu=True)
    return depthwise, ConvLayer(1, norm=True)


LAYERS: dict[str, tuple[ConvLayer, ...]] = {
    "conv_bn_3x3": (ConvLayer(3, norm=True),),
    "conv_1x1": (ConvLayer(1, bias=True),),
    "relu_conv_bn_1x1": (ConvLayer(1, relu=True, norm=True),),
    "relu_conv_bn_3x3": (ConvLayer(3, relu=True, norm=True),),
    "relu_conv_bn_5x5": (ConvLayer(5, relu=True, norm=True),),
    "sep_conv_3x3": _separable(3) * 2,
    "sep_conv_5x5": _separable(5) * 2,
    "dil_conv_3x3": _separable(3, dilation=2),
    "dil_conv_5x5": _separable(5, dilation=2),
}
"""Operations that are chains of convolutions, of which only the first has a stride. The two
that are not primitives of the space serve as stem and preprocessing."""

POOLS = {"avg_pool_3x3": avg_pool, "max_pool_3x3": max_pool}
REDUCTION = (ConvLayer(1), ConvLayer(1))
"""The two halves of a factorized reduction."""


class Sites(NamedTuple):
    """Draws of one operation: weights of shared edges fail alike, their features on their own."""

    weights: Draw
    features: Draw

    def at(self, place: int) -> "Sites":
        """The draws of the operation's convolution number `place`."""
        return Sites(self.weights.at(place), self.features.at(place))


def parameter_shapes(
    name: str, channels: int, features: int, *, stride: int, affine: bool
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of an operation's parameters, by layer and name; empty where it has none."""
    if name == "skip_connect" and stride > 1:
        halves = (features // 2, features - features // 2)
        shapes = {f"conv{i}": {"kernel": (1, 1, channels, half)} for i, half in enumerate(halves)}
        norm = {"scale": (features,), "offset": (features,)}
        return shapes | ({"norm": norm} if affine else {})
    widths = _widths(name, channels, features)
    return {
        f"conv{i}": layer.shapes(width, features if not layer.depthwise else width, affine)
        for i, (layer, width) in enumerate(zip(LAYERS.get(name, ()), widths, strict=True))
    }


def _widths(name: str, channels: int, features: int) -> list[int]:
    """Input channels of each layer: the first dense layer changes their number."""
    widths = []
    for layer in LAYERS.get(name, ()):
        widths.append(channels)
        channels = channels if layer.depthwise else features
    return widths


def initialize_primitive(key: jax.Array, shapes: dict[str, dict[str, tuple[int, ...]]]) -> Params:
    """Parameters of one operation, shapes from `parameter_shapes`. Consumes `key`.

    Kernels and biases are uniform in ±1/√fan_in (PyTorch's default), scales 1, offsets 0.
    """
    names = [(layer, field) for layer in shapes for field in shapes[layer]]
    keys = jax.random.split(key, len(names))
    params: Params = {layer: {} for layer in shapes}
    for (layer, field), own_key in zip(names, keys, strict=True):
        params[layer][field] = initialize(own_key, field, shapes[layer])
    return params


def initialize(key: jax.Array, field: str, shapes: dict[str, tuple[int, ...]]) -> jax.Array:
    """The parameter `field` of a layer with `shapes`. Consumes `key`."""
    if field in ("scale", "offset"):
        return jnp.full(shapes[field], float(field == "scale"), jnp.float32)
    kernel = shapes["kernel"]
    depthwise = len(kernel) == 3
    bound = 1 / math.sqrt(math.prod(kernel[:2] if depthwise else kernel[:-1]))
    return jax.random.uniform(key, shapes[field], jnp.float32, -bound, bound)


def apply_primitive(
    name: str,
    params: Params,
    x: jax.Array,
    running: jax.Array | None,
    sites: Sites,
    *,
    stride: int,
    hardware: Hardware,
    pool_norm: bool,
) -> tuple[jax.Array, jax.Array]:
    """One operation.

    Args:
        name: of the primitive, or of a preprocessing convolution.
        params: by layer and name, shapes as in `parameter_shapes`.
        x: [B, H, W, C] features that the hardware can represent.
        running: [NORM_SLOTS, 2, features] statistics to normalize with, None for the batch's own.
        sites: draws of its weight and feature faults.
        stride: 1 or 2.
        hardware: number formats and faults.
        pool_norm: whether a BatchNorm stands behind pooling.

    Returns:
        Features [B, H/stride, W/stride, features], again representable, and the BatchNorms'
        statistics [NORM_SLOTS, 2, features], zero in unused slots.
    """
    if name == "none":
        y, statistics = jnp.zeros_like(x[:, ::stride, ::stride]), []
    elif name == "skip_connect" and stride == 1:
        y, statistics = x, []
    elif name == "skip_connect":
        y, statistics = _factorized_reduction(params, x, running, sites, hardware)
    elif name in POOLS:
        y, statistics = _pool(name, x, running, stride, hardware, pool_norm)
    else:
        y, statistics = _chain(name, params, x, running, sites, stride, hardware)
    return y, _fill_slots(statistics, y.shape[-1])


def _fill_slots(statistics: list[jax.Array], features: int) -> jax.Array:
    empty = jnp.zeros((2, features), jnp.float32)
    return jnp.stack(statistics + [empty] * (NORM_SLOTS - len(statistics)))


def _chain(name, params, x, running, sites: Sites, stride, hardware):
    statistics = []
    for i, layer in enumerate(LAYERS[name]):
        slot = None if running is None or not layer.norm else running[len(statistics)]
        step = stride if i == 0 else 1
        x, used = apply_layer(layer, params[f"conv{i}"], x, slot, sites.at(i), step, hardware)
        statistics += [used] if layer.norm else []
    return x, statistics


def apply_layer(
    layer: ConvLayer,
    params: dict[str, jax.Array],
    x: jax.Array,
    running: jax.Array | None,
    sites: Sites,
    stride: int,
    hardware: Hardware,
) -> tuple[jax.Array, jax.Array | None]:
    """One `ConvLayer` on x [B, H, W, C]; returns features and the statistics of its BatchNorm."""
    macs = layer.macs(x.shape[-1])
    x = jax.nn.relu(x) if layer.relu else x
    kernel = hold_weights(params["kernel"], hardware, sites.weights)
    if layer.depthwise:
        f = depthwise_conv2d(x, kernel, stride=stride, dilation=layer.dilation)
    else:
        f = conv2d(x, kernel, stride=stride)
    if layer.bias:
        f = f + params["bias"][None, None, None]
    statistics = None
    if layer.norm:
        f, statistics = batch_norm(f, running, params.get("scale"), params.get("offset"))
    return write_features(f, hardware, sites.features, macs=macs), statistics


def _factorized_reduction(params, x, running, sites: Sites, hardware):
    """Two 1x1 convolutions at stride 2, the second shifted by one pixel, then one BatchNorm."""
    x = jax.nn.relu(x)
    halves = [
        conv2d(
            x[:, shift:, shift:],
            hold_weights(params[f"conv{shift}"]["kernel"], hardware, sites.at(shift).weights),
            stride=2,
        )
        for shift in range(len(REDUCTION))
    ]
    norm = params.get("norm", {})
    slot = None if running is None else running[0]
    f, statistics = batch_norm(
        jnp.concatenate(halves, axis=-1), slot, norm.get("scale"), norm.get("offset")
    )
    macs = REDUCTION[0].macs(x.shape[-1])
    return write_features(f, hardware, sites.features.at(0), macs=macs), [statistics]


def _pool(name, x, running, stride, hardware, pool_norm):
    y = POOLS[name](x, stride)
    if not pool_norm:
        return store_features(y, hardware), []
    y, statistics = batch_norm(y, None if running is None else running[0])
    return store_features(y, hardware), [statistics]
