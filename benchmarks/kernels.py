"""Layers' kernels, forward and backward, at the sizes of the paper's network.

Ours run inside a loop, some images at a time, as they do in a search. The platform's are the same
convolutions by XLA, as it differentiates them, inside a loop as well: control flow is where its own
gradients are slow on a CPU.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rows import Row
from benchmarks.turns import Side
from experiments import devices
from ftnas_jax.nn.conv import (
    conv2d,
    conv2d_native,
    depthwise_conv2d,
    depthwise_conv2d_native,
)
from ftnas_jax.nn.layer import images_at_a_time

BATCH, INPUTS = 64, 4
"""Images in an input, and inputs in a turn of measurement."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A convolution at one place of the network.

    Attributes:
        kind: `depthwise` or `dense`.
        width: k.
        side: height and width of its input.
        channels: of input and output.
        stride: step of the output grid.
        dilation: distance between taps.
    """

    kind: Literal["depthwise", "dense"]
    width: int
    side: int
    channels: int
    stride: int = 1
    dilation: int = 1

    def __str__(self) -> str:
        place = f"{self.side}x{self.side}x{self.channels}"
        detail = f" stride {self.stride} dilation {self.dilation}"
        shown = detail if self.kind == "depthwise" else ""
        return f"{self.kind} {self.width}x{self.width}{shown}, {place}"

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs [INPUTS, B, H, W, C], a kernel, and gradients of the outputs."""
        rng = np.random.default_rng(0)
        shape = (INPUTS, BATCH, self.side, self.side, self.channels)
        out = (*shape[:2], *(-(-side // self.stride) for side in shape[2:4]), self.channels)
        last = () if self.kind == "depthwise" else (self.channels,)
        kernel = (self.width, self.width, self.channels, *last)
        x, k, g = (rng.standard_normal(s, np.float32) for s in (shape, kernel, out))
        return x, k, g


def network_kernels() -> list[Kernel]:
    """Those of a network of 20 channels on images of 32 x 32."""
    normal, reduction = ((32, 20), (16, 40), (8, 80)), ((32, 40), (16, 80))
    kernels = [
        Kernel("depthwise", k, *place, stride, dilation)
        for stride, places in ((1, normal), (2, reduction))
        for dilation in (1, 2)
        for k in (3, 5)
        for place in places
    ]
    return kernels + [Kernel("dense", k, *place) for k in (1, 3, 5) for place in normal]


class OurKernels:
    """Our kernels and the platform's, one at a time."""

    def __init__(self):
        devices.make_cpu_devices(1)

    def prepare(self, kernel: Kernel, whose: Literal["ours", "platform"]) -> None:
        """Compile it."""
        x, k, g = kernel.arrays()
        inputs = (_in_turns if whose == "ours" else _at_once)(kernel, jnp.asarray(k))
        self._arguments = (jnp.asarray(x), jnp.asarray(g))
        self._run = jax.jit(lambda x, g: jax.lax.map(lambda pair: inputs(*pair), (x, g)))
        self.run()

    def run(self) -> float:
        """Seconds an input, forward and backward."""
        began = time.perf_counter()
        jax.block_until_ready(self._run(*self._arguments))
        return (time.perf_counter() - began) / INPUTS


def _in_turns(kernel: Kernel, k: jax.Array) -> Callable[..., Any]:
    """(x, g) → y, gradients of x and k; some images at a time, as layers go over them."""

    def function(x, k):
        if kernel.kind == "dense":
            return conv2d(x, k, stride=kernel.stride)
        return depthwise_conv2d(x, k, stride=kernel.stride, dilation=kernel.dilation)

    def add_turn(dk, turn):
        y, differentiate = jax.vjp(function, turn[0], k)
        dx, own = differentiate(turn[1])
        return dk + own, (y, dx)

    def all_turns(x, g):
        turns = BATCH // images_at_a_time(x.shape)
        parts = (a.reshape(turns, -1, *a.shape[1:]) for a in (x, g))
        return jax.lax.scan(add_turn, jnp.zeros_like(k), tuple(parts))

    return all_turns


def _at_once(kernel: Kernel, k: jax.Array) -> Callable[..., Any]:
    """The same by XLA's convolutions, as it differentiates them."""

    def function(x, k):
        if kernel.kind == "dense":
            return conv2d_native(x, k, kernel.stride)
        return depthwise_conv2d_native(x, k, kernel.stride, kernel.dilation)

    def all_images(x, g):
        y, differentiate = jax.vjp(function, x, k)
        return y, *differentiate(g)

    return all_images


def kernels(rounds: int, with_peer: bool) -> Iterator[Row]:
    """Every kernel of the network against the peer's and the platform's."""
    peers: dict[str, Side] = {}
    with Side(OurKernels, environment=devices.ENVIRONMENT) as ours:
        if with_peer:
            from benchmarks.torch_peer import TorchKernels  # PyTorch is optional

            peers["PyTorch channels-last"] = Side(TorchKernels, environment={})
        peers["XLA's own"] = Side(OurKernels, environment=devices.ENVIRONMENT)
        for kernel in network_kernels():
            for name, peer in peers.items():
                # A hundred times slower (on CPU), the platform's would take most of the time.
                turns = rounds if name != "XLA's own" else min(rounds, 3)
                yield _measure(kernel, ours, name, peer, turns)
        for peer in peers.values():
            peer.close()


def _measure(kernel: Kernel, ours: Side, name: str, peer: Side, rounds: int) -> Row:
    ours.call("prepare", kernel, "ours")
    peer.call("prepare", kernel, "platform")
    row = Row(str(kernel), [], name)
    for _ in range(rounds):
        row.ours.append(ours.call("run"))
        row.theirs.append(peer.call("run"))
    return row
