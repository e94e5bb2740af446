"""Layers' kernels, forward and backward, at the sizes of the paper's network and of a narrow one.

Ours run inside a loop, some images at a time, first forward and then backward, as they do in a
search, and as there a CPU's two devices work side by side, each on inputs of its own. The
platform's are the same convolutions by XLA, as it differentiates them, in the same loop: control
flow is where its own gradients are slow on a CPU.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.rows import Row
from benchmarks.turns import Side
from experiments import devices, large_pages
from ftnas_jax.nn.conv import (
    conv2d,
    conv2d_native,
    depthwise_conv2d,
    depthwise_conv2d_native,
)
from ftnas_jax.nn.layer import images_at_a_time
from ftnas_jax.search_mesh import PASSES, SearchMesh
from ftnas_jax.split_batch import own_part

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
    """Those of a network of 20 channels on images of 32 x 32, and dense ones of 4 channels."""
    normal, reduction = ((32, 20), (16, 40), (8, 80)), ((32, 40), (16, 80))
    kernels = [
        Kernel("depthwise", k, *place, stride, dilation)
        for stride, places in ((1, normal), (2, reduction))
        for dilation in (1, 2)
        for k in (3, 5)
        for place in places
    ]
    kernels += [Kernel("dense", k, *place) for k in (1, 3, 5) for place in normal]
    narrow = ((32, 4), (16, 8), (8, 16))
    return kernels + [Kernel("dense", k, *place) for k in (3, 5) for place in narrow]


class OurKernels:
    """Our kernels and the platform's, one at a time."""

    def __init__(self):
        devices.make_cpu_devices(0)
        self._mesh = SearchMesh(devices.take(0)[:2], BATCH)
        self._prepared = {}

    def prepare(self, kernel: Kernel, whose: Literal["ours", "platform"]) -> None:
        """Compile it."""
        x, k, g = kernel.arrays()
        one = (_in_turns if whose == "ours" else _at_once)(kernel)

        def own_inputs(x, k, g):
            x, g = (own_part(a, PASSES if self._mesh.two_passes else None) for a in (x, g))
            # What the devices return differs; only the time it takes is looked at.
            return jax.lax.map(lambda pair: one(pair[0], k, pair[1]), (x, g))

        self._prepared[whose] = (self._mesh.jit(own_inputs), self._mesh.place((x, k, g)))
        self.run(whose)

    def run(self, whose: Literal["ours", "platform"]) -> float:
        """Seconds an input, forward and backward."""
        program, arguments = self._prepared[whose]
        began = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        return (time.perf_counter() - began) / INPUTS


def _in_turns(kernel: Kernel) -> Callable[..., Any]:
    """(x, k, g) → y, gradients of x and k; some images at a time, as layers go over them."""

    def function(x, k):
        if kernel.kind == "dense":
            return conv2d(x, k, stride=kernel.stride)
        return depthwise_conv2d(x, k, stride=kernel.stride, dilation=kernel.dilation)

    def all_turns(x, k, g):
        def add_turn(dk, turn):
            dx, own = jax.vjp(function, turn[0], k)[1](turn[1])
            return dk + own, dx

        turns = BATCH // images_at_a_time(x.shape)
        xs, gs = (a.reshape(turns, -1, *a.shape[1:]) for a in (x, g))
        y = jax.lax.map(lambda x: function(x, k), xs)
        dk, dx = jax.lax.scan(add_turn, jnp.zeros_like(k), (xs, gs))
        return y, dx, dk

    return all_turns


def _at_once(kernel: Kernel) -> Callable[..., Any]:
    """The same by XLA's convolutions, as it differentiates them."""

    def function(x, k):
        if kernel.kind == "dense":
            return conv2d_native(x, k, kernel.stride)
        return depthwise_conv2d_native(x, k, kernel.stride, kernel.dilation)

    def all_images(x, k, g):
        y, differentiate = jax.vjp(function, x, k)
        return y, *differentiate(g)

    return all_images


def kernels(rounds: int, with_peer: bool) -> Iterator[Row]:
    """Every kernel of the network against the peer's and the platform's."""
    with contextlib.ExitStack() as sides:
        ours = sides.enter_context(Side(OurKernels, environment=large_pages.ENVIRONMENT))
        peers = {"XLA's own": ours}
        if with_peer:
            from benchmarks.torch_peer import TorchKernels  # PyTorch is optional

            peer = Side(TorchKernels, environment=large_pages.ENVIRONMENT)
            peers["PyTorch channels-last"] = sides.enter_context(peer)
        for kernel in network_kernels():
            ours.call("prepare", kernel, "ours")
            for name, peer in peers.items():
                # A hundred times slower (on CPU), the platform's would take most of the time.
                turns = min(rounds, 3) if peer is ours else rounds
                yield _measure(kernel, ours, name, peer, turns)


def _measure(kernel: Kernel, ours: Side, name: str, peer: Side, rounds: int) -> Row:
    peer.call("prepare", kernel, "platform")
    row = Row(str(kernel), [], name)
    for _ in range(rounds):
        row.ours.append(ours.call("run", "ours"))
        row.theirs.append(peer.call("run", "platform"))
    return row
