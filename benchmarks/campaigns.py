"""Chips of a fault campaign: how many a second, beside the same chips in loops written by hand.

Every side classifies the same images with the same ResNet-18, in the same batches, once for each
chip. The peers are a loop over a jitted call of the model on hardware, one for each chip and batch,
and the same loop in PyTorch eager. All of them have compiled before they are timed.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import ftnas_jax as ft
from benchmarks.rows import Row
from benchmarks.turns import Side
from experiments import devices, large_pages
from ftnas_jax.campaigns.campaign import Campaign, Run
from ftnas_jax.campaigns.points import points
from ftnas_jax.campaigns.settings import Settings

FAULTS = ("stuck_at:p0=0.067,p1=0.013", "mibb:p_m=0.0001")

TURNS = {1: 12, 8: 6, 64: 3, 512: 1}
"""How often so many chips are measured at most: in all some ten minutes."""

BUDGET = 2.0**30
"""Bytes of a device that a program may take, however many chips there are."""


@dataclasses.dataclass(frozen=True)
class Work:
    """A network under faults, and the images that every chip classifies.

    Attributes:
        faults: as text.
        base: name of the network.
        width: its channels, as a share.
        images: N.
        batch: B, of which N is a multiple.
        side: height and width of an image.
    """

    faults: str
    base: str = "resnet18"
    width: float = 0.25
    images: int = 256
    batch: int = 128
    side: int = 32

    @property
    def network(self) -> str:
        """Its name with its width."""
        return f"{self.base}:width={self.width:g}"

    def __str__(self) -> str:
        return f"{self.network}, {self.images} images in batches of {self.batch}, {self.faults}"

    def model(self) -> nn.Module:
        """The network; BatchNorm in evaluation is what its call does by default."""
        return ft.models.by_name(self.network, 10)

    def hardware(self) -> ft.Hardware:
        """8-bit, with the faults."""
        return ft.Hardware(faults=ft.faults.parse(self.faults))

    def variables(self, seed: int = 0) -> Any:
        """Random float32 parameters and running statistics, as `init` lays them out."""
        shape = (1, self.side, self.side, 3)
        shapes = jax.eval_shape(lambda: self.model().init(jax.random.key(0), jnp.zeros(shape)))
        rng = np.random.default_rng(seed)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: _random(rng, path[-1].key, leaf.shape), shapes
        )

    def test_set(self) -> tuple[np.ndarray, np.ndarray]:
        """Random images [N, H, W, C] and labels [N]."""
        rng = np.random.default_rng(1)
        images = rng.standard_normal((self.images, self.side, self.side, 3), np.float32)
        return images, rng.integers(0, 10, self.images).astype(np.int32)

    def batches(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Of every batch the number of its first image, the images and the labels."""
        images, labels = self.test_set()
        return [
            (first, images[first : first + self.batch], labels[first : first + self.batch])
            for first in range(0, self.images, self.batch)
        ]


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values as a trained network could have them, by the name of the variable."""
    if name == "var":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    noise = rng.standard_normal(shape, np.float32)
    if name == "kernel":
        return noise * np.float32(np.sqrt(2 / np.prod(shape[:-1])))
    return np.float32(name == "scale") + np.float32(0.1) * noise


class OurChips:
    """A campaign of ours, on the devices that the experiments take; it grows with every turn.

    Args:
        work: what every chip does.
        at_once: chips at once on a device; None for what a campaign takes for best.
    """

    def __init__(self, work: Work, at_once: int | None = None):
        devices.make_cpu_devices(0)
        models = ft.faults.parse(work.faults)
        subject = ft.as_subject(work.model(), work.variables(), work.hardware())
        self._job = Campaign(
            *([subject], work.test_set(), points(models), jax.random.key(0), Settings(chips=2)),
            batch_size=work.batch,
            run=Run(at_once, devices.take(0), BUDGET),
        )

    def compile(self) -> dict[str, float]:
        """Compile by drawing two chips; returns what it took, and takes from now on."""
        compiled = self._job.speed().compile_seconds
        trials, _ = self._job._prepared(self._job.subjects[0], self._job.points[0])
        return {
            "compile s": compiled,
            "program GB a device": trials.bytes / 1e9,
            "budget GB a device": BUDGET / 1e9,
        }

    def turn(self, chips: int) -> float:
        """Seconds that so many more chips take."""
        began = time.perf_counter()
        self._job.settings = Settings(chips=len(self.correct()) + chips)
        self._job.run()
        return time.perf_counter() - began

    def correct(self) -> list[int]:
        """Images that every chip so far classified rightly."""
        return [chip.correct for chip in self._job.report().outcomes[0].chips]


class ChipsByHand:
    """A loop over chips and batches, each a call of one jitted function."""

    def __init__(self, work: Work):
        chip = ft.on_hardware(work.model(), work.hardware())

        @jax.jit
        def count_right(variables, images, labels, key, first):
            logits = chip.apply(variables, images, draw=ft.Draw(key, True, first))
            return jnp.sum(jnp.argmax(logits, -1) == labels)

        self._count, self._key = count_right, jax.random.key(0)
        self._variables, self._batches = jax.device_put((work.variables(), work.batches()))
        self._drawn = 0
        self.turn(1)
        self._drawn = 0

    def turn(self, chips: int) -> float:
        """Seconds that so many more chips take."""
        began = time.perf_counter()
        numbers = range(self._drawn, self._drawn + chips)
        # Fetched at the end, so that a call does not wait for the one before it.
        self._correct = jax.device_get([self._one(number) for number in numbers])
        self._drawn += chips
        return time.perf_counter() - began

    def _one(self, number: int) -> list[jax.Array]:
        key = jax.random.fold_in(self._key, number)
        return [
            self._count(self._variables, images, labels, key, first)
            for first, images, labels in self._batches
        ]

    def correct(self) -> list[int]:
        """Images that every chip of the last turn classified rightly."""
        return [int(np.sum(counts)) for counts in self._correct]


def campaigns(rounds: int, with_peer: bool) -> Iterator[Row]:
    """For either fault and every number of chips a row against each peer."""
    for faults in FAULTS:
        work = Work(faults)
        with contextlib.ExitStack() as sides:
            ours = sides.enter_context(side(OurChips, work))
            peers = {name: sides.enter_context(peer) for name, peer in _peers(work, with_peer)}
            compiled = ours.call("compile")
            for chips, most in TURNS.items():
                for row in measure_chips(work, chips, min(rounds, most), ours, peers):
                    row.facts |= compiled
                    yield row


def _peers(work: Work, with_peer: bool) -> Iterator[tuple[str, Side]]:
    if with_peer:
        from benchmarks.torch_resnet import TorchChips  # PyTorch is optional

        yield "jitted calls", side(ChipsByHand, work)
        yield "PyTorch eager", side(TorchChips, work)


def side(make: Any, *args: Any) -> Side:
    """A side that gets its memory as the experiments do."""
    return Side(make, *args, environment=large_pages.ENVIRONMENT)


def measure_chips(
    work: Work, chips: int, rounds: int, ours: Side, peers: Mapping[str, Side]
) -> list[Row]:
    """A row for each peer, `rounds` turns of all sides; without peers one row."""
    workload = f"{chips} {'chip' if chips == 1 else 'chips'}, {work}"
    rows = [Row(workload, [], name) for name in peers or ("",)]
    for _ in range(rounds):
        seconds = ours.call("turn", chips)
        for row in rows:
            row.ours.append(seconds)
            if row.peer:
                row.theirs.append(peers[row.peer].call("turn", chips))
    for row in rows:
        row.facts["chips/s"] = chips / float(np.median(row.ours))
        row.facts["peak GB"] = ours.peak_memory() / 1e9
        if row.peer:
            row.facts["peer's peak GB"] = peers[row.peer].peak_memory() / 1e9
    return rows
