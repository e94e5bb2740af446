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
from ftnas_jax.nn.hardware import Hardware, Maps, hold_weights, write_features
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

    def shapes(self, channels: int, out_channels: int, affine: bool) -> dict[str, tuple[int, ...]]:
        """Shapes of the layer's parameters by name."""
        kernel = (self.kernel, self.kernel, channels)
        shapes: dict[str, tuple[int, ...]] = {
            "kernel": kernel if self.depthwise else (*kernel, out_channels)
        }
        if self.bias:
            shapes["bias"] = (out_channels,)
        if self.norm and affine:
            shapes |= {"scale": (out_channels,), "offset": (out_channels,)}
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


class FaultMaps(NamedTuple):
    """All fault maps of one operation, a tuple with one for each fault model, or None.

    Attributes:
        weights: each [n], for the operation's kernels one after the other, each flat.
        features: each [sites, B, h, w, C], for its sites one after the other; C is that of the
            widest of them.
    """

    weights: Maps
    features: Maps

    def kernel(self, start: int, shape: tuple[int, ...]) -> Maps:
        """The maps of a kernel that begins at place `start` of all weights."""
        if self.weights is None:
            return None
        return tuple(m[start : start + math.prod(shape)].reshape(shape) for m in self.weights)

    def site(self, place: int, channels: int) -> Maps:
        """The maps of the operation's feature site number `place`."""
        if self.features is None:
            return None
        return tuple(m[place, ..., :channels] for m in self.features)


def site_macs(name: str, channels: int, out_channels: int, *, stride: int) -> list[int]:
    """M_l of every site of feature faults in an operation."""
    if name == "skip_connect" and stride > 1:
        return [REDUCTION[0].macs(channels)]
    widths = _widths(name, channels, out_channels)
    return [layer.macs(w) for layer, w in zip(LAYERS.get(name, ()), widths, strict=False)]


def count_kernels(name: str, channels: int, out_channels: int, *, stride: int) -> int:
    """Number of weights of an operation that weight faults can hit."""
    shapes = parameter_shapes(name, channels, out_channels, stride=stride, affine=False)
    return sum(math.prod(layer["kernel"]) for layer in shapes.values() if "kernel" in layer)


def parameter_shapes(
    name: str, channels: int, out_channels: int, *, stride: int, affine: bool
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of an operation's parameters, by layer and name; empty where it has none."""
    if name == "skip_connect" and stride > 1:
        halves = (out_channels // 2, out_channels - out_channels // 2)
        shapes = {f"conv{i}": {"kernel": (1, 1, channels, half)} for i, half in enumerate(halves)}
        norm = {"scale": (out_channels,), "offset": (out_channels,)}
        return shapes | ({"norm": norm} if affine else {})
    widths = _widths(name, channels, out_channels)
    return {
        f"conv{i}": layer.shapes(widths[i], widths[i + 1], affine)
        for i, layer in enumerate(LAYERS.get(name, ()))
    }


def _widths(name: str, channels: int, out_channels: int) -> list[int]:
    """Channels into each layer and out of the last, the one that changes their number."""
    return [channels] * len(LAYERS.get(name, ())) + [out_channels]


def widest_site(name: str, channels: int, out_channels: int) -> int:
    """Most channels that a convolution of the operation puts out."""
    return max(_widths(name, channels, out_channels)[1:], default=out_channels)


def initialize_primitive(
    key: jax.Array, shapes: dict[str, dict[str, tuple[int, ...]]], rows: int | None = None
) -> Params:
    """Parameters of one operation, shapes from `parameter_shapes`. Consumes `key`.

    Kernels and biases are uniform in ±1/√fan_in (PyTorch's default), scales 1, offsets 0.

    Args:
        rows: number of independent copies to stack along a new first axis; None for one, unstacked.
    """
    names = [(layer, field) for layer in shapes for field in shapes[layer]]
    keys = jax.random.split(key, len(names))
    params: Params = {layer: {} for layer in shapes}
    for (layer, field), own_key in zip(names, keys, strict=True):
        params[layer][field] = initialize(own_key, field, shapes[layer], rows)
    return params


def initialize(
    key: jax.Array, field: str, shapes: dict[str, tuple[int, ...]], rows: int | None = None
) -> jax.Array:
    """The parameter `field` of a layer with `shapes`; see `initialize_primitive`."""
    shape = shapes[field] if rows is None else (rows, *shapes[field])
    if field in ("scale", "offset"):
        return jnp.full(shape, float(field == "scale"), jnp.float32)
    kernel = shapes["kernel"]
    depthwise = len(kernel) == 3
    bound = 1 / math.sqrt(math.prod(kernel[:2] if depthwise else kernel[:-1]))
    # A flat draw compiles many times faster than a shaped one (CPU).
    flat = jax.random.uniform(key, (math.prod(shape),), jnp.float32, -bound, bound)
    return flat.reshape(shape)


def apply_primitive(
    name: str,
    params: Params,
    x: jax.Array,
    running: jax.Array | None,
    maps: FaultMaps,
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
        running: [NORM_SLOTS, 2, C_out] statistics to normalize with, None for the batch's own.
        maps: its faults.
        stride: 1 or 2.
        hardware: number formats and faults.
        pool_norm: whether a BatchNorm stands behind pooling.

    Returns:
        Features [B, H/stride, W/stride, C_out], again representable, and the BatchNorms'
        statistics [NORM_SLOTS, 2, C], C of the widest layer, zero where unused.
    """
    if name == "none":
        y, statistics = jnp.zeros_like(x[:, ::stride, ::stride]), []
    elif name == "skip_connect" and stride == 1:
        y, statistics = x, []
    elif name == "skip_connect":
        y, statistics = _factorized_reduction(params, x, running, maps, hardware)
    elif name in POOLS:
        y, statistics = _pool(name, x, running, stride, hardware, pool_norm)
    else:
        y, statistics = _chain(name, params, x, running, maps, stride, hardware)
    return y, _fill_slots(statistics, widest_site(name, x.shape[-1], y.shape[-1]))


def _fill_slots(statistics: list[jax.Array], width: int) -> jax.Array:
    slots = [jnp.pad(s, ((0, 0), (0, width - s.shape[1]))) for s in statistics]
    empty = jnp.zeros((2, width), jnp.float32)
    return jnp.stack(slots + [empty] * (NORM_SLOTS - len(slots)))


def _chain(name, params, x, running, maps: FaultMaps, stride, hardware):
    statistics, start = [], 0
    for i, layer in enumerate(LAYERS[name]):
        own = params[f"conv{i}"]
        width = own["kernel"].shape[-1]
        slot = None
        if running is not None and layer.norm:
            slot = running[len(statistics), :, :width]
        faults = (maps.kernel(start, own["kernel"].shape), maps.site(i, width))
        x, used = _layer(layer, own, x, slot, faults, stride if i == 0 else 1, hardware)
        statistics += [used] if layer.norm else []
        start += own["kernel"].size
    return x, statistics


def _layer(layer: ConvLayer, params, x, running, faults: tuple[Maps, Maps], stride, hardware):
    """One `ConvLayer` on x [B, H, W, C]; returns features and the statistics of its BatchNorm."""
    x = jax.nn.relu(x) if layer.relu else x
    kernel = hold_weights(params["kernel"], hardware, faults[0])
    if layer.depthwise:
        f = depthwise_conv2d(x, kernel, stride=stride, dilation=layer.dilation)
    else:
        f = conv2d(x, kernel, stride=stride)
    if layer.bias:
        f = f + params["bias"][None, None, None]
    statistics = None
    if layer.norm:
        f, statistics = _norm(f, running, params, hardware)
    return write_features(f, hardware, faults[1]), statistics


def _norm(f, running, params, hardware: Hardware):
    """BatchNorm with the scale and the offset that are among `params`, if any."""
    axis = hardware.batch_axis
    return batch_norm(f, running, params.get("scale"), params.get("offset"), batch_axis=axis)


def _factorized_reduction(params, x, running, maps: FaultMaps, hardware):
    """Two 1x1 convolutions at stride 2, the second shifted by one pixel, then one BatchNorm."""
    x = jax.nn.relu(x)
    halves, start = [], 0
    for shift in range(len(REDUCTION)):
        kernel = params[f"conv{shift}"]["kernel"]
        held = hold_weights(kernel, hardware, maps.kernel(start, kernel.shape))
        halves.append(conv2d(x[:, shift:, shift:], held, stride=2))
        start += kernel.size
    slot = None if running is None else running[0]
    f, statistics = _norm(jnp.concatenate(halves, axis=-1), slot, params.get("norm", {}), hardware)
    return write_features(f, hardware, maps.site(0, f.shape[-1])), [statistics]


def _pool(name, x, running, stride, hardware, pool_norm):
    y = POOLS[name](x, stride)
    if not pool_norm:
        return write_features(y, hardware, None), []
    y, statistics = _norm(y, None if running is None else running[0], {}, hardware)
    return write_features(y, hardware, None), [statistics]
