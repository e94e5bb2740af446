"""Steps of a search: how long ours and the peer's take, how often and how long ours compiles.

Both sides run the same architectures, those that our controller samples, so the spread of seconds
is that of architectures too, and the ratio is taken turn by turn on the same ones.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.host import matmul_rate
from benchmarks.rows import Row
from benchmarks.turns import Side
from configs import adsaf, mibb
from experiments import devices, large_pages
from experiments.configuration import search_config
from ftnas_jax.costs import count_macs, layer_costs
from ftnas_jax.data import Dataset
from ftnas_jax.search import Search, SearchData
from ftnas_jax.search_config import SearchConfig
from ftnas_jax.space import Architecture

CONFIGS: dict[str, ModuleType] = {"mibb": mibb, "adsaf": adsaf}
"""Configs of the paper's size by name of their faults."""

Phase = Literal["weights", "controller"]

STEPS_A_TURN: dict[Phase, int] = {"weights": 4, "controller": 1}
"""How many steps a turn of measurement takes; of ours in one call, as a search makes them."""

_IMAGE = (32, 32, 3)
_MOST_STEPS = 64


@dataclasses.dataclass(frozen=True)
class Size:
    """A search to measure; by default the paper's.

    Attributes:
        faults: key of `CONFIGS`.
        batch: images in a step.
        channels: of the first cells.
        cells: in all; those at a third and at two thirds of the depth reduce.
    """

    faults: str = "mibb"
    batch: int = 64
    channels: int = 20
    cells: int = 8

    def __str__(self) -> str:
        return f"{self.faults}, batch {self.batch}, {self.channels} channels, {self.cells} cells"

    def config(self) -> SearchConfig:
        """What the experiments would search with."""
        fields = CONFIGS[self.faults].get_config()
        fields.batch_size = self.batch
        fields.network.channels, fields.network.cells = self.channels, self.cells
        fields.network.reductions = (self.cells // 3, 2 * self.cells // 3)
        return search_config(fields.to_dict(), noise(1))


def noise(images: int) -> Dataset:
    """Random images of CIFAR-10's size, as training and test set."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, *_IMAGE), dtype=np.uint8)
    labels = rng.integers(0, 10, images).astype(np.int32)
    return Dataset("noise", pixels, labels, pixels, labels, tuple(str(c) for c in range(10)))


class OurSteps:
    """A search of ours, measured step by step; on the devices that the experiments take."""

    def __init__(self, size: Size, count: int = 0):
        devices.make_cpu_devices(count)
        self._watch = CompileWatch()
        config, dataset = size.config(), noise(_MOST_STEPS * size.batch)
        part = (jnp.asarray(dataset.images), jnp.asarray(dataset.labels))
        data = SearchData(*part, *part, *map(jnp.asarray, dataset.mean_std()))
        self.search = Search(config, data, devices.take(count))
        self._state = jax.block_until_ready(self.search.init())
        self._next = 0

    def first_step(self, phase: Phase) -> dict[str, float]:
        """Compile a phase by running a step of it; returns what that took."""
        self.search.sampled_architecture(self._state, phase, 0, 0)  # no program of the search's
        before = self._watch.compilations, self._watch.seconds
        self.turn(phase, 1)
        return {
            "programs": self._watch.compilations - before[0],
            "compile s": self._watch.seconds - before[1],
        }

    def turn(self, phase: Phase, steps: int) -> tuple[float, list[np.ndarray]]:
        """Seconds a step of some steps in one call, and the architectures of weight steps.

        Of controller steps, each of which changes what the next samples, that of the first.
        """
        first = self._next % _MOST_STEPS
        numbers = range(first, first + (steps if phase == "weights" else 1))
        architectures = [
            np.asarray(self.search.sampled_architecture(self._state, phase, 0, number))
            for number in numbers
        ]
        call = {"weights": self.search.train_weights, "controller": self.search.train_controller}
        began = time.perf_counter()
        self._state = jax.block_until_ready(call[phase](self._state, 0, first, first + steps))
        seconds = time.perf_counter() - began
        self._next += steps
        return seconds / steps, architectures

    def matmul_rate(self) -> float:
        """See `benchmarks.host`; in the process, and by the library, of the steps."""
        return matmul_rate()


class CompileWatch:
    """Counts compilations, and seconds of tracing and compiling, as JAX reports them."""

    def __init__(self):
        self.compilations, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, seconds: float, **_: Any) -> None:
        compiled = event == "/jax/core/compile/backend_compile_duration"
        self.compilations += compiled
        if compiled or event == "/jax/core/compile/jaxpr_trace_duration":
            self.seconds += seconds


def steps(size: Size, rounds: int, with_peer: bool) -> Iterator[Row]:
    """Rows of the weight step and the controller step, each measured `rounds` times."""
    with contextlib.ExitStack() as sides:
        ours = sides.enter_context(Side(OurSteps, size, environment=large_pages.ENVIRONMENT))
        theirs = sides.enter_context(_peer(size)) if with_peer else None
        for phase in ("weights", "controller"):
            yield measure_phase(size, phase, rounds, ours, theirs)


def _peer(size: Size) -> Side:
    from benchmarks.torch_peer import TorchSteps  # PyTorch is optional

    return Side(TorchSteps, size.config(), environment=large_pages.ENVIRONMENT)


def measure_phase(size: Size, phase: Phase, rounds: int, ours: Side, theirs: Side | None) -> Row:
    """The row of one phase, `rounds` turns of each side."""
    compiled = ours.call("first_step", phase)
    row = Row(f"{phase} step, {size}", [], "PyTorch eager" if theirs else "")
    gflops = []
    for _ in range(rounds):
        seconds, architectures = ours.call("turn", phase, STEPS_A_TURN[phase])
        row.ours.append(seconds)
        gflops.append(np.mean([_gigaflops(size, own, phase) for own in architectures]))
        if theirs:
            own = [theirs.call("step", phase, architecture) for architecture in architectures]
            row.theirs.append(float(np.mean(own)))
    row.facts |= compiled
    row.facts["GFLOP a step"] = float(np.mean(gflops))
    rates = np.array(gflops) / row.ours
    row.facts["of matmul rate"] = float(np.median(rates)) / ours.call("matmul_rate")
    if phase == "weights":  # which takes more
        row.facts["peak GB"] = ours.peak_memory() / 1e9
        if theirs:
            row.facts["peer's peak GB"] = theirs.peak_memory() / 1e9
    return row


def _gigaflops(size: Size, architecture: np.ndarray, phase: Phase) -> float:
    """Of the convolutions of both passes; a gradient takes twice what its forward pass takes."""
    config = size.config()
    known = Architecture.from_array(architecture)
    macs = count_macs(layer_costs(config.network, config.space, known, _IMAGE))
    forward = 2 * macs * size.batch * 2
    return forward * (3 if phase == "weights" else 1) / 1e9
