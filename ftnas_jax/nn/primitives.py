"""The 11 operations of §4.2 as chains of layers.

Parameters, sites of faults and multiply-accumulates all follow from an operation's layers. A
convolution with a BatchNorm behind it fails after that BatchNorm, which hardware folds into it.

Structures follow the code behind the published numbers: `conv_1x1` is a plain convolution with a
bias, without ReLU and BatchNorm; `skip_connect` is the identity at stride 1 and a factorized
reduction at stride 2; average pooling leaves padding out of the mean.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ftnas_jax.nn.hardware import Hardware, Maps, hold_weights, mask, masked_positions
from ftnas_jax.nn.layer import (
    Features,
    layer_gradients,
    normalization,
    over_devices,
    run_window,
    write,
)
from ftnas_jax.nn.window import WindowShape

NORM_SLOTS = 2
"""BatchNorms of the operation that has most of them; statistics of all are stored in as many."""

Params = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Layer:
    """ReLU, window, bias, BatchNorm, each but the window optional.

    Attributes:
        window: a convolution or a pooling.
        relu: whether a ReLU stands before the window.
        norm: whether a BatchNorm stands behind it.
        bias: whether the convolution adds a bias.
    """

    window: WindowShape
    relu: bool = False
    norm: bool = False
    bias: bool = False


def _chain(*layers: Layer, stride: int) -> tuple[Layer, ...]:
    """Layers of which only the first has a stride."""
    first = dataclasses.replace(layers[0].window, stride=stride)
    return dataclasses.replace(layers[0], window=first), *layers[1:]


def _separable(k: int, dilation: int = 1) -> tuple[Layer, Layer]:
    depthwise = Layer(WindowShape("depthwise", k, dilation), relu=True)
    return depthwise, Layer(WindowShape("dense"), norm=True)


def _dense(k: int, **options: bool) -> tuple[Layer]:
    return (Layer(WindowShape("dense", k), **options),)


_CONVOLUTIONS: dict[str, tuple[Layer, ...]] = {
    "conv_bn_3x3": _dense(3, norm=True),
    "conv_1x1": _dense(1, bias=True),
    "relu_conv_bn_1x1": _dense(1, relu=True, norm=True),
    "relu_conv_bn_3x3": _dense(3, relu=True, norm=True),
    "relu_conv_bn_5x5": _dense(5, relu=True, norm=True),
    "sep_conv_3x3": _separable(3) * 2,
    "sep_conv_5x5": _separable(5) * 2,
    "dil_conv_3x3": _separable(3, dilation=2),
    "dil_conv_5x5": _separable(5, dilation=2),
}
"""`conv_bn_3x3` and `relu_conv_bn_1x1` are no primitives of the space: they serve as stem and as
preprocessing."""

MAX_LAYERS = max(len(layers) for layers in _CONVOLUTIONS.values())


@functools.cache
def layers_of(name: str, *, stride: int, pool_norm: bool = True) -> tuple[Layer, ...]:
    """The layers of an operation.

    Args:
        name: of a primitive, a preprocessing convolution, or the stem's.
        stride: 1 or 2.
        pool_norm: whether a BatchNorm stands behind pooling.

    Returns:
        The empty tuple for `none` and for an identity.
    """
    match name:
        case "none":
            return ()
        case "skip_connect":
            halves = WindowShape("halves", stride=stride)
            return () if stride == 1 else (Layer(halves, relu=True, norm=True),)
        case "avg_pool_3x3":
            return (Layer(WindowShape("avg_pool", 3, stride=stride), norm=pool_norm),)
        case "max_pool_3x3":
            return (Layer(WindowShape("max_pool", 3, stride=stride), norm=pool_norm),)
    return _chain(*_CONVOLUTIONS[name], stride=stride)


class FaultMaps(NamedTuple):
    """All fault maps of one operation; see `ftnas_jax.nn.hardware.Maps`.

    Attributes:
        weights: each [n], for the operation's kernels one after the other, each flat.
        features: each [sites, B or 1, h, w, C], for its layers one after the other; C is that of
            the widest of them.
    """

    weights: Maps
    features: Maps

    def kernel(self, start: int, shape: tuple[int, ...]) -> Maps:
        """The maps of a kernel that begins at place `start` of all weights."""
        if self.weights is None:
            return None
        size = math.prod(shape)
        return jax.tree.map(lambda m: m[start : start + size].reshape(shape), self.weights)

    def site(self, place: int, channels: int) -> Maps:
        """The maps of the features of the operation's layer number `place`."""
        return jax.tree.map(lambda m: m[place, ..., :channels], self.features)


def layer_macs(name: str, channels: int, out_channels: int, *, stride: int) -> list[int]:
    """M_l of every layer of an operation, 0 for pooling."""
    layers = layers_of(name, stride=stride)
    widths = _widths(layers, channels, out_channels)
    return [layer.window.macs(w) for layer, w in zip(layers, widths, strict=False)]


def kernel_shapes(
    name: str, channels: int, out_channels: int, *, stride: int
) -> list[list[tuple[int, ...]]]:
    """Shapes of the kernels of every layer."""
    layers = layers_of(name, stride=stride)
    widths = _widths(layers, channels, out_channels)
    return [
        layer.window.kernel_shapes(*widths[place : place + 2]) for place, layer in enumerate(layers)
    ]


def count_kernels(name: str, channels: int, out_channels: int, *, stride: int) -> int:
    """Number of weights of an operation that weight faults can hit."""
    shapes = kernel_shapes(name, channels, out_channels, stride=stride)
    return sum(math.prod(kernel) for layer in shapes for kernel in layer)


class ParameterNames(NamedTuple):
    """Where a layer's parameters stand among those of its operation, as (layer, field) each."""

    kernels: tuple[tuple[str, str], ...]
    scale: tuple[str, str] | None
    offset: tuple[str, str] | None


@functools.cache
def parameter_names(name: str, *, stride: int, affine: bool) -> tuple[ParameterNames, ...]:
    """For every layer of an operation; a bias stands in place of an offset."""
    names = []
    for place, layer in enumerate(layers_of(name, stride=stride)):
        halves = layer.window.kind == "halves"
        own, norm = f"conv{place}", "norm" if halves else f"conv{place}"
        pools = not layer.window.macs(1)
        kernels = () if pools else tuple((f"conv{i}", "kernel") for i in range(2)) if halves else ()
        kernels = kernels or (() if pools else ((own, "kernel"),))
        has_affine = layer.norm and affine and not pools
        scale = (norm, "scale") if has_affine else None
        offset = (norm, "offset") if has_affine else (own, "bias") if layer.bias else None
        names.append(ParameterNames(kernels, scale, offset))
    return tuple(names)


def parameter_shapes(
    name: str, channels: int, out_channels: int, *, stride: int, affine: bool
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of an operation's parameters, by layer and name; empty where it has none."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    kernels = kernel_shapes(name, channels, out_channels, stride=stride)
    for own, names in zip(
        kernels, parameter_names(name, stride=stride, affine=affine), strict=True
    ):
        for (part, field), shape in zip(names.kernels, own, strict=True):
            shapes.setdefault(part, {})[field] = shape
        for place in (names.scale, names.offset):
            if place:
                width = sum(shape[-1] for shape in own)
                shapes.setdefault(place[0], {})[place[1]] = (width,)
    return shapes


def _widths(layers: tuple[Layer, ...], channels: int, out_channels: int) -> list[int]:
    """Channels into each layer and out of the last, the one that changes their number."""
    return [channels] * len(layers) + [out_channels]


def widest_site(name: str, channels: int, out_channels: int) -> int:
    """Most channels that a convolution of the operation puts out."""
    layers = layers_of(name, stride=1)
    return max(_widths(layers, channels, out_channels)[1:], default=out_channels)


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
    path: str = "",
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
        path: of the operation, for those who watch the hardware or freeze fraction lengths.

    Returns:
        Features [B, H/stride, W/stride, C_out], again representable, and the BatchNorms'
        statistics [NORM_SLOTS, 2, C], C of the widest layer, zero where unused.
    """
    if name == "none":
        x = jnp.zeros_like(x[:, ::stride, ::stride])
    affine = any("scale" in part for part in params.values())
    names = parameter_names(name, stride=stride, affine=affine)
    held = _hold_kernels(params, names, hardware, maps, path)
    statistics, widest = [], 0
    layers = layers_of(name, stride=stride, pool_norm=pool_norm)
    for site, (layer, own, kernel) in enumerate(zip(layers, names, held, strict=True)):
        width = sum(params[part][field].shape[-1] for part, field in own.kernels) or x.shape[-1]
        slot = running[len(statistics), :, :width] if running is not None and layer.norm else None
        settings = _Settings(layer, width, hardware)
        scale = _vector(params, own.scale, 1.0, width)
        offset = _vector(params, own.offset, 0.0, width)
        tensor = f"{path}/{site}"
        length, own_maps = hardware.length(tensor), maps.site(site, width)
        arguments = (settings, x, kernel, scale, offset, slot, length, own_maps)
        if hardware.watch is None:
            outputs: Any = _layer(*arguments)
        else:
            outputs = _watched_layer(tensor, path, *arguments)
        x, used = outputs
        statistics += [used] if layer.norm else []
        widest = max(widest, width)
    return x, _fill_slots(statistics, widest or x.shape[-1])


def _hold_kernels(params, names, hardware: Hardware, maps: FaultMaps, path: str) -> list[jax.Array]:
    """For every layer the weights that the hardware holds for its kernels, one after the other."""
    held, start = [], 0
    for layer in names:
        flat = [jnp.zeros(0, jnp.float32)]
        for part, field in layer.kernels:
            kernel = params[part][field]
            own = maps.kernel(start, kernel.shape)
            held_kernel = hold_weights(kernel, hardware, own)
            hardware.note(f"{path}/{part}/{field}", path, "weights", 0, kernel, held_kernel, own)
            flat.append(held_kernel.ravel())
            start += kernel.size
        held.append(jnp.concatenate(flat))
    return held


def _vector(params, place: tuple[str, str] | None, default: float, width: int) -> jax.Array:
    return jnp.full(width, default, jnp.float32) if place is None else params[place[0]][place[1]]


def _fill_slots(statistics: list[jax.Array], width: int) -> jax.Array:
    slots = [jnp.pad(s, ((0, 0), (0, width - s.shape[1]))) for s in statistics]
    empty = jnp.zeros((2, width), jnp.float32)
    return jnp.stack(slots + [empty] * (NORM_SLOTS - len(slots)))


class _Settings(NamedTuple):
    """What is known of a layer while tracing."""

    layer: Layer
    width: int
    hardware: Hardware

    @property
    def floor(self) -> float:
        return 0.0 if self.layer.relu else -math.inf


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer(settings: _Settings, x, kernel, scale, offset, running, length, maps):
    """One layer on x [B, H, W, C]; returns features and the statistics of its BatchNorm."""
    return _layer_forward(settings, x, kernel, scale, offset, running, length, maps)[0]


def _layer_forward(settings: _Settings, x, kernel, scale, offset, running, length, maps):
    hardware = settings.hardware
    window = settings.layer.window.window(settings.width)
    held = Features(x, jnp.float32(1))
    shape = jax.eval_shape(window.apply, x, kernel).shape

    def store(f, part, start):
        return lax.dynamic_update_slice_in_dim(f, part, start, 0)

    empty, floor = jnp.zeros(shape, jnp.float32), settings.floor
    f, own = run_window(window, kernel, held, floor, hardware.operands, store, empty)
    moments = over_devices(own, hardware.batch_axis)
    norm = normalization(moments, running, scale, offset, settings.layer.norm)
    y = write(f, norm, moments, hardware, maps, length)
    statistics = jnp.stack([norm.mean, moments.variance if running is None else running[1]])
    masked = masked_positions(hardware, "features", maps)
    return (y.values, statistics), (x, kernel, f, norm, masked)


def _watched_layer(name: str, path: str, settings: _Settings, x, kernel, *rest):
    """`_layer` without its gradient, for those who watch what it writes."""
    (y, statistics), (*_, f, norm, _) = _layer_forward(settings, x, kernel, *rest)
    window, maps = settings.layer.window, rest[-1]
    macs = window.macs(x.shape[-1])
    kind = "features" if macs else "stored"
    settings.hardware.note(name, path, kind, macs, norm(f), y, maps)
    return y, statistics


def _layer_backward(settings: _Settings, residuals, cotangents):
    x, kernel, f, norm, masked = residuals

    def f_part(start, count):
        return lax.dynamic_slice_in_dim(f, start, count)

    gradients = layer_gradients(
        settings.layer.window.window(settings.width),
        kernel,
        Features(x, jnp.float32(1)),
        settings.floor,
        f_part,
        mask(cotangents[0], masked),
        norm,
        settings.hardware.batch_axis,
    )
    return *gradients, None, None, None


_layer.defvjp(_layer_forward, _layer_backward)
