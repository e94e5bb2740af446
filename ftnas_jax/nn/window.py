"""The windows of layers: convolutions and poolings, with their kernels as flat vectors.

A window stands between a layer's ReLU and its BatchNorm. With flat kernels all windows among which
a traced architecture chooses take the same arguments.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from ftnas_jax.nn.conv import conv2d, depthwise_conv2d
from ftnas_jax.nn.layer import Window
from ftnas_jax.nn.pool import avg_pool, max_pool

POOLS = {"avg_pool": avg_pool, "max_pool": max_pool}


@dataclasses.dataclass(frozen=True)
class WindowShape:
    """A convolution or a pooling.

    Attributes:
        kind: `dense` and `depthwise` convolutions; `halves`, the two 1x1 convolutions at stride 2
            of a factorized reduction, the second on the input shifted by one pixel, each for one
            half of the output; 3x3 poolings.
        width: k of a k x k convolution, odd.
        dilation: distance between taps of a depthwise convolution.
        stride: step of the output grid.
    """

    kind: Literal["dense", "depthwise", "halves", "avg_pool", "max_pool"]
    width: int = 1
    dilation: int = 1
    stride: int = 1

    def macs(self, channels: int) -> int:
        """M_l: multiply-accumulates behind one feature; 0 for pooling."""
        if self.kind in POOLS:
            return 0
        return self.width**2 * (1 if self.kind == "depthwise" else channels)

    def kernel_shapes(self, channels: int, out_channels: int) -> list[tuple[int, ...]]:
        """Shapes of its kernels: [k, k, C] of a depthwise one, else [k, k, C, C_out]."""
        if self.kind in POOLS:
            return []
        square = (self.width, self.width, channels)
        if self.kind == "depthwise":
            return [square]
        half = out_channels // 2 if self.kind == "halves" else 0
        return [(*square, out) for out in (half, out_channels - half) if out]

    def kernel_size(self, channels: int, out_channels: int) -> int:
        """Number of weights."""
        return sum(math.prod(shape) for shape in self.kernel_shapes(channels, out_channels))

    def apply(self, x: jax.Array, kernel: jax.Array, *, out_channels: int) -> jax.Array:
        """Features [B, ceil(H / stride), ceil(W / stride), C_out], float32.

        Args:
            x: [B, H, W, C], of the kernel's type.
            kernel: [n], all kernels one after the other, each flat.
            out_channels: C_out.
        """
        if self.kind in POOLS:
            return POOLS[self.kind](x.astype(jnp.float32), self.stride)
        kernels = _split(kernel, self.kernel_shapes(x.shape[-1], out_channels))
        if self.kind == "depthwise":
            return depthwise_conv2d(x, *kernels, stride=self.stride, dilation=self.dilation)
        shifted = (x[:, shift:, shift:] for shift in range(len(kernels)))
        convolved = [
            conv2d(s, k, stride=self.stride) for s, k in zip(shifted, kernels, strict=True)
        ]
        return jnp.concatenate(convolved, axis=-1)

    def window(self, out_channels: int) -> Window:
        """With its gradients, for `ftnas_jax.nn.layer`."""
        apply = functools.partial(self.apply, out_channels=out_channels)

        def differentiate(x, kernel, df):
            return jax.vjp(apply, x, kernel)[1](df)

        return Window(apply, differentiate)


def _split(flat: jax.Array, shapes: list[tuple[int, ...]]) -> list[jax.Array]:
    """The arrays of `shapes` that lie flat one after the other at the beginning of a vector."""
    arrays, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        arrays.append(flat[start : start + size].reshape(shape))
        start += size
    return arrays
