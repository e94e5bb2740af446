"""Steps of fault-tolerant final training: a clean and a faulty pass, their gradients, and SGD.

Ours is measured as the experiments run it, on one CPU device and on two, of which one runs the
clean pass and the other the faulty one. The peer is the same step in PyTorch eager on all cores.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import flax.linen as nn
import jax
import numpy as np

from benchmarks.host import matmul_rate
from benchmarks.rows import Row
from benchmarks.search_steps import CompileWatch, noise
from benchmarks.turns import Side
from configs import train_wftt
from experiments import devices, large_pages
from experiments.train_configuration import network, training_config
from ftnas_jax import machine
from ftnas_jax.costs import costs_at
from ftnas_jax.data import Dataset
from ftnas_jax.errors import as_input_error
from ftnas_jax.training import Training, TrainingData
from ftnas_jax.training_config import TrainingConfig

STEPS_OF_DATA = 8
"""How many batches of images there are."""

STEPS_A_TURN = 1
"""How many steps a turn of measurement takes."""

_IMAGE = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Job:
    """A training to measure; by default the paper's of W-FTT-Net-20, under stuck-at faults.

    Attributes:
        network: as text.
        batch: images in a step.
    """

    network: str = "w_ftt_net:channels=20"
    batch: int = 128

    def __str__(self) -> str:
        return f"{self.network}, batch {self.batch}, {self._fields()['faults']}"

    def _fields(self) -> dict:
        fields = train_wftt.get_config()
        fields.network, fields.batch_size = self.network, self.batch
        return fields.to_dict()

    def config(self) -> TrainingConfig:
        """What the experiments would train with."""
        return training_config(self._fields())

    def model(self) -> nn.Module:
        """The network."""
        return network(self._fields(), 10)

    def check(self) -> None:
        """Raise InputError where there is no such training."""
        self.config()
        self.model()

    def data(self) -> Dataset:
        """Noise."""
        return noise(STEPS_OF_DATA * self.batch)


class OurTraining:
    """A training of ours on some of the devices that the experiments take, 0 for all of them."""

    def __init__(self, job: Job, count: int = 0):
        devices.make_cpu_devices(count)
        self._watch = CompileWatch()
        data = TrainingData.of(job.data())
        self.job = Training(job.config(), job.model(), data, devices.take(count))
        self._state, self._next = jax.block_until_ready(self.job.init()), 0

    def first_step(self) -> dict[str, float]:
        """Compile the step by running it; returns what that took."""
        before = self._watch.seconds
        self.turn(1)
        return {"devices": len(self.job.mesh.devices), "compile s": self._watch.seconds - before}

    def turn(self, steps: int) -> float:
        """Seconds a step, of some steps."""
        began = time.perf_counter()
        for _ in range(steps):
            first = self._next % STEPS_OF_DATA
            self._state = self.job.train(self._state, 0, first, first + 1)
            self._next += 1
        jax.block_until_ready(self._state)
        return (time.perf_counter() - began) / steps

    def matmul_rate(self) -> float:
        """See `benchmarks.host`; in the process, and by the library, of the steps."""
        return matmul_rate()


def training(rounds: int, with_peer: bool, job: Job | None = None) -> Iterator[Row]:
    """A row for every number of devices, one after the other, each in turns with the peer.

    Without a peer one row, on all devices that a training takes.

    Raises:
        InputError: the peer does not have the network.
    """
    job = job or Job()
    with contextlib.ExitStack() as sides:
        theirs = sides.enter_context(_peer(job)) if with_peer else None
        for count in sorted({1, min(2, machine.cores())}) if with_peer else (0,):
            # All at once would take more memory than two cores tend to have.
            with _side(OurTraining, job, count) as ours:
                yield measure_training(job, rounds, ours, theirs)


def _peer(job: Job) -> Side:
    from benchmarks.torch_final import final_network  # PyTorch is optional
    from benchmarks.torch_training import TorchTrainingSteps

    with as_input_error():
        final_network(job.model(), 3)
    return _side(TorchTrainingSteps, job)


def _side(make, *args) -> Side:
    return Side(make, *args, environment=large_pages.ENVIRONMENT)


def measure_training(job: Job, rounds: int, ours: Side, theirs: Side | None) -> Row:
    """The row of one side of ours, `rounds` turns of it and of the peer."""
    facts = ours.call("first_step")
    count = facts.pop("devices")
    devices = f"{count} device" + ("s" if count != 1 else "")
    row = Row(f"training step, {devices}, {job}", [], "PyTorch eager" if theirs else "")
    for _ in range(rounds):
        row.ours.append(ours.call("turn", STEPS_A_TURN))
        if theirs:
            row.theirs.append(theirs.call("turn", STEPS_A_TURN))
    # Of the convolutions of both passes; a gradient takes twice what its forward pass takes.
    gigaflops = costs_at(job.model(), _IMAGE).flops * job.batch * 2 * 3 / 1e9
    row.facts |= facts | {"GFLOP a step": gigaflops}
    row.facts["of matmul rate"] = gigaflops / float(np.median(row.ours)) / ours.call("matmul_rate")
    row.facts["peak GB"] = ours.peak_memory() / 1e9
    if theirs:
        row.facts["peer's peak GB"] = theirs.peak_memory() / 1e9
    return row
