"""The operations of `ftnas_jax.nn.primitives` in PyTorch eager, channels-last on CPU.

Faults come after the BatchNorm that is folded into a convolution and before the activation.
A pass says whose statistics BatchNorm takes; that of a pool has none but the batch's.

Features that no operation keeps for its gradient are overwritten by what follows them: outputs of
convolutions and BatchNorms, of pooling and of sums.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_hardware import Pass

_VECTOR = 16
"""Most float32 numbers in a vector register."""


class Convolution(nn.Module):
    """ReLU, convolution, BatchNorm, each but the convolution optional; then faults.

    Args:
        channels: of the input.
        out_channels: of the output; as many kernels as channels where it is depthwise.
        kernel: width of the kernel.
        relu: whether a ReLU overwrites the input; only inside of an operation.
        norm: whether a BatchNorm follows.
        affine: whether it has scale and offset.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        relu: bool = False,
        norm: bool = False,
        affine: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        self.macs = kernel**2 * (1 if depthwise else channels)  # M_l
        shape = (out_channels, 1 if depthwise else channels, kernel, kernel)
        self.kernel = uniform(shape, self.macs)
        self.bias = uniform((out_channels,), self.macs) if bias else None
        self.norm = norm
        _add_norm(self, out_channels, norm, affine)
        self.stride, self.dilation, self.depthwise, self.relu = stride, dilation, depthwise, relu

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        if self.relu:
            x = F.relu(x, inplace=True)
        kernel = run.held[self.kernel]
        if self.depthwise:
            f = depthwise(x, kernel, self.stride, self.dilation)
        else:
            f = dense(x, kernel, self.bias, self.stride)
        if self.norm:
            return run.normalize(f, self.scale, self.offset, self.macs, self.running)
        return run.write_(f, self.macs)


def dense(x: Tensor, kernel: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Padded by (k - 1) / 2; x [B, C, H, W] is channels last, kernel [C_out, C, k, k]."""
    size = kernel.shape[-1]
    if size == 1 and stride == 2 and x.shape[1] < _VECTOR:
        # For fewer channels than a vector has, oneDNN's gradient of the kernel writes past its
        # memory (uxlfoundation/oneDNN#6035).
        (x,), stride = _Grids.apply(x, 0), 1
    return F.conv2d(x, kernel, bias, stride=stride, padding=size // 2)


def depthwise(x: Tensor, kernel: Tensor, stride: int, dilation: int) -> Tensor:
    """Padded as in `ftnas_jax.nn.conv`; x [B, C, H, W] is channels last, kernel [C, 1, k, k]."""
    channels, padding = x.shape[1], kernel.shape[-1] // 2
    if dilation == 2 and stride == 2:
        # The taps of these positions lie on the same grid as they do.
        (x,), stride, dilation = _Grids.apply(x, 0), 1, 1
    if dilation == 2 and x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0:
        # A tap stays on one of four grids. With the grids as channels the gradients are 3 times
        # faster than with dilation.
        kernels = kernel.repeat(4, 1, 1, 1)
        f = F.conv2d(_fold_grids(x), kernels, padding=padding, groups=4 * channels)
        return _unfold_grids(f)
    return F.conv2d(
        x, kernel, stride=stride, padding=padding * dilation, dilation=dilation, groups=channels
    )


def _fold_grids(x: Tensor) -> Tensor:
    """[B, C, H, W] → [B, 4C, H/2, W/2], one group of channels for each parity of (row, column)."""
    batch, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2, channels)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)
    return x.permute(0, 3, 1, 2)


def _unfold_grids(x: Tensor) -> Tensor:
    """The inverse of `_fold_grids`."""
    batch, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(batch, height, width, 2, 2, channels // 4)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels // 4)
    return x.permute(0, 3, 1, 2)


class _Grids(torch.autograd.Function):
    """Every second pixel of every second row, once for each shift.

    Slices do the same, but their gradients come in another layout, and in pieces to add up.
    """

    @staticmethod
    def forward(ctx, x: Tensor, *shifts: int):
        ctx.shape, ctx.shifts = x.shape, shifts
        return tuple(copy(x[:, :, shift::2, shift::2]) for shift in shifts)

    @staticmethod
    def backward(ctx, *gradients):
        batch, channels, height, width = ctx.shape
        dx = gradients[0].new_zeros(batch, height, width, channels).permute(0, 3, 1, 2)
        for shift, g in zip(ctx.shifts, gradients, strict=True):
            dx[:, :, shift::2, shift::2] = g
        return dx, *(None for _ in ctx.shifts)


class Chain(nn.Module):
    """Convolutions one after the other.

    Attributes:
        after_relu: whether the input must have gone through a ReLU.
    """

    def __init__(self, *layers: Convolution, after_relu: bool):
        super().__init__()
        self.after_relu = after_relu
        for place, layer in enumerate(layers):
            self.add_module(f"conv{place}", layer)

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        for layer in self.children():
            x = layer(x, run)
        return x


class FactorizedReduction(nn.Module):
    """Two 1x1 convolutions at stride 2, the second shifted by one pixel, then one BatchNorm."""

    after_relu = True

    def __init__(self, channels: int, out_channels: int, affine: bool):
        super().__init__()
        half = out_channels // 2
        self.macs = channels
        self.conv0 = Convolution(channels, half, 1)
        self.conv1 = Convolution(channels, out_channels - half, 1)
        self.norm = nn.Module()
        _add_norm(self.norm, out_channels, True, affine)

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        halves = [
            F.conv2d(grid, run.held[conv.kernel])
            for grid, conv in zip(_Grids.apply(x, 0, 1), (self.conv0, self.conv1), strict=True)
        ]
        norm = self.norm
        return run.normalize(join(halves), norm.scale, norm.offset, self.macs, norm.running)


class Pool(nn.Module):
    """3x3 pooling, with a BatchNorm behind it where `norm` says so."""

    after_relu = False

    def __init__(self, kind: str, stride: int, norm: bool):
        super().__init__()
        self.kind, self.stride, self.norm = kind, stride, norm

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        if self.kind == "max":
            y = F.max_pool2d(x, 3, self.stride, padding=1)
        else:
            y = _window_sum(x, self.stride) * _inverse_counts(*x.shape[1:], self.stride)
        return run.normalize(y, None, None, None) if self.norm else run.write_(y)


def _window_sum(x: Tensor, stride: int) -> Tensor:
    """Sums of 3x3 neighbours: with them an average takes a fifth of the time of `avg_pool2d`."""
    ones = torch.ones(x.shape[1], 1, 3, 3)
    return F.conv2d(x, ones, stride=stride, padding=1, groups=x.shape[1])


@functools.cache
def _inverse_counts(channels: int, height: int, width: int, stride: int) -> Tensor:
    """One over the number of neighbours inside the image, [1, C, H/stride, W/stride]."""
    return copy(_window_sum(torch.ones(1, channels, height, width), stride).reciprocal_())


def operation(
    name: str,
    channels: int,
    out_channels: int,
    *,
    stride: int,
    affine: bool,
    pool_norm: bool,
) -> nn.Module | None:
    """A primitive, the stem or a preprocessing, without a ReLU at its beginning.

    Its attribute `after_relu` says whether there is one, which is left to the caller: many
    operations share their input. None for `none` and for the identity.
    """
    norm = {"norm": True, "affine": affine}
    kind, _, size = name.rpartition("_")
    match kind:
        case "skip" if stride == 2:
            return FactorizedReduction(channels, out_channels, affine)
        case "skip" | "":
            return None
        case "avg_pool" | "max_pool":
            return Pool(kind[:3], stride, pool_norm)
    width = int(size[0])
    dense = functools.partial(Convolution, channels, out_channels, width, stride=stride)
    depthwise = functools.partial(Convolution, channels, channels, width, depthwise=True)
    pointwise = functools.partial(Convolution, channels, kernel=1, **norm)
    match kind:
        case "conv":
            return Chain(dense(bias=True), after_relu=False)
        case "conv_bn" | "relu_conv_bn":
            return Chain(dense(**norm), after_relu=kind == "relu_conv_bn")
        case "dil_conv":
            first = depthwise(stride=stride, dilation=2)
            return Chain(first, pointwise(out_channels), after_relu=True)
        case "sep_conv":
            first = depthwise(stride=stride), pointwise(channels)
            second = depthwise(relu=True), pointwise(out_channels)
            return Chain(*first, *second, after_relu=True)
    raise ValueError(f"unknown operation {name!r}")


# Small helpers


def uniform(shape: tuple[int, ...], fan_in: int) -> nn.Parameter:
    """A parameter, uniform in ±1/√fan_in."""
    bound = 1 / math.sqrt(fan_in)
    x = torch.empty(shape).uniform_(-bound, bound)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(x)


def _add_norm(module: nn.Module, channels: int, norm: bool, affine: bool) -> None:
    """Scale, offset and running statistics [2, C] of a BatchNorm; None where it has none."""
    for name, make in (("scale", torch.ones), ("offset", torch.zeros)):
        own = nn.Parameter(make(channels)) if norm and affine else None
        module.register_parameter(name, own)
    start = torch.stack([torch.zeros(channels), torch.ones(channels)]) if norm else None
    module.register_buffer("running", start)


def copy(x: Tensor) -> Tensor:
    """x in the channels-last layout; itself where it has it."""
    return x.contiguous(memory_format=torch.channels_last)


def join(xs: list[Tensor], relu: bool = False) -> Tensor:
    """Concatenate channels; four times faster than `torch.cat` along them in this layout."""
    x = torch.cat([x.permute(0, 2, 3, 1) for x in xs], dim=-1)
    # In place behind the permutation, autograd would copy the gradient to another layout.
    return (x.relu_() if relu else x).permute(0, 3, 1, 2)
