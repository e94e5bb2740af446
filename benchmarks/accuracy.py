"""Test accuracy of a training of ours, and of the same training in PyTorch, seed by seed.

    python -m benchmarks accuracy --seeds 3 --out results/benchmarks/accuracy.json

Both sides train the same network without faults, on the same images, augmented alike, for as many
steps of the same SGD, from initial values of the same distributions; random choices are their own.
Ours is in 8-bit fixed point; so is PyTorch's, unless --peer-float leaves it in float32. Every
finished training is in the file at once, and the same command goes on, also with more --seeds.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.stats

from benchmarks.host import describe
from benchmarks.turns import Side
from configs import train_defaults
from experiments import devices, large_pages
from experiments.cli import one_line_errors
from experiments.prepare import load_data
from experiments.train_configuration import network
from ftnas_jax.data import Dataset
from ftnas_jax.data_io import replacing
from ftnas_jax.errors import InputError, as_input_error
from ftnas_jax.nn.hardware import Hardware
from ftnas_jax.training import Training, TrainingData
from ftnas_jax.training_config import TrainingConfig

SIDES = ("ours", "PyTorch")

_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Settings:
    """A training, but for its seed. All else is the paper's (§5.1).

    Attributes:
        network: as text.
        epochs: how long it is.
        batch: images in a step.
        peer_float: whether PyTorch computes in float32, and not in 8-bit fixed point.
        data: the name of the data set.
        size: side that its images are resized to, 0 for their own.
    """

    network: str = "resnet18:width=0.125"
    epochs: int = 4
    batch: int = 128
    peer_float: bool = False
    data: str = "cifar10"
    size: int = 0

    def config(self, seed: int, hardware: Hardware) -> TrainingConfig:
        """Without faults."""
        with as_input_error():
            return TrainingConfig(
                hardware,
                seed=seed,
                epochs=self.epochs,
                batch_size=self.batch,
                alpha_l=0.0,
                test_every=self.epochs,
            )

    def model(self, num_classes: int) -> Any:
        """The network.

        Raises:
            InputError: there is none of this name.
        """
        return network({"network": self.network}, num_classes)


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where data sets are, and where decoded ones are kept; empty for the default."""

    data_dir: str = ""
    cache_dir: str = ""

    def load(self, settings: Settings) -> Dataset:
        """The data set of a training, as the experiments read it."""
        fields = train_defaults.get_config().data.to_dict()
        fields |= {"name": settings.data, "size": settings.size, "cache_dir": self.cache_dir}
        fields |= {"data_dir": self.data_dir} if self.data_dir else {}
        return load_data(fields)


class OurTrainings:
    """Trainings of ours, one after the other, on the first device that the experiments take."""

    def __init__(self, settings: Settings, folders: Folders):
        devices.make_cpu_devices(1)
        self._settings, self._dataset = settings, folders.load(settings)
        self._data = TrainingData.of(self._dataset)

    def start(self, seed: int) -> None:
        """Prepare a training; no step is left to compile."""
        config = self._settings.config(seed, Hardware())
        model = self._settings.model(self._dataset.num_classes)
        self._job = Training(config, model, self._data, devices.take(0))
        self._job.compile()
        self._state = self._job.init()

    def epoch(self, epoch: int) -> None:
        """Train for an epoch, counted from 0."""
        state = self._job.reset_totals(self._state)
        self._state = self._job.train(state, epoch, 0, self._job.train_steps)
        jax.block_until_ready(self._state)

    def accuracy(self) -> float:
        """On the test images, after the last epoch."""
        self._state = self._job.test(self._state, 0, 0, self._job.test_steps)
        last = self._settings.epochs - 1
        return self._job.metrics(self._state, last)["test/accuracy_clean"]


class Record:
    """What was measured so far, and the file that holds it.

    Args:
        path: of the file, which may be there.
        settings: of the trainings.
        data: digest of the training images and labels.

    Raises:
        InputError: the file is of something else.
    """

    def __init__(self, path: Path, settings: Settings, data: str):
        self._path, self.settings = path, settings
        self._facts = {"settings": dataclasses.asdict(settings), "data_sha256": data}
        self.runs: dict[str, dict[int, dict[str, float]]] = {side: {} for side in SIDES}
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            content = json.loads(self._path.read_text())
            same = all(content[name] == fact for name, fact in self._facts.items())
            runs = {
                side: {int(seed): run for seed, run in content["runs"][side].items()}
                for side in SIDES
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{self._path} holds no accuracies; choose another --out") from None
        if not same:
            raise InputError(f"{self._path} is of other settings or data; choose another --out")
        self.runs = runs

    def add(self, side: str, seed: int, run: Mapping[str, float], machine: str) -> None:
        """One more training; it is in the file when this returns."""
        self.runs[side][seed] = dict(run)
        command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
        content = {"machine": machine, "command": command, **self._facts}
        content |= {"runs": self.runs, "summary": summary(self.accuracies())}
        with replacing(self._path) as file:
            file.write(f"{json.dumps(content, indent=1)}\n".encode())

    def accuracies(self) -> dict[str, list[float]]:
        """By side, in the order of seeds."""
        return {
            side: [runs[seed]["accuracy"] for seed in sorted(runs)]
            for side, runs in self.runs.items()
        }


def summary(accuracies: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Of either side n, mean and standard deviation (n - 1), and how far ours is ahead.

    The difference of means has Welch's t interval, over seeds; None where a side has fewer than
    two of them.
    """
    found: dict[str, Any] = {}
    for side, own in accuracies.items():
        deviation = float(np.std(own, ddof=1)) if len(own) > 1 else None
        mean = float(np.mean(own)) if own else None
        found[side] = {"n": len(own), "mean": mean, "standard_deviation": deviation}
    ours, theirs = (accuracies[side] for side in SIDES)
    if ours and theirs:
        found["difference"] = float(np.mean(ours) - np.mean(theirs))
    if min(len(ours), len(theirs)) > 1:
        test = scipy.stats.ttest_ind(ours, theirs, equal_var=False)
        found["interval_95"] = [float(end) for end in test.confidence_interval(_LEVEL)]
    return found


def lines(accuracies: Mapping[str, Sequence[float]]) -> str:
    """The summary as text."""
    found, text = summary(accuracies), []
    for side, own in accuracies.items():
        row = found[side]
        shown = " ".join(f"{accuracy:.4f}" for accuracy in own)
        spread = row["standard_deviation"]
        after = "" if spread is None else f", standard deviation {spread:.4f}"
        text.append(f"{side:8}{shown}: mean {row['mean']:.4f}{after}, n {row['n']}")
    if "difference" in found:
        text.append(f"ours - PyTorch: {found['difference']:+.4f}")
    if "interval_95" in found:
        low, high = found["interval_95"]
        text[-1] += f" [{low:+.4f}, {high:+.4f}] (Welch's t, 95 %, over seeds)"
    return "\n".join(text)


def measure(record: Record, seeds: int, sides: Mapping[str, Any], machine: str) -> None:
    """Run the trainings that are not there yet, of seeds 0 to `seeds` - 1, side by side in turn."""
    epochs = record.settings.epochs
    for seed in range(seeds):
        for name, side in sides.items():
            if seed in record.runs[name]:
                continue
            side.call("start", seed)
            began = time.perf_counter()
            for epoch in range(epochs):
                side.call("epoch", epoch)
                seconds = time.perf_counter() - began
                _tell(f"{name}, seed {seed}: epoch {epoch + 1} of {epochs} after {seconds:.0f} s")
            run = {"accuracy": side.call("accuracy"), "seconds": seconds}
            record.add(name, seed, run, machine)
            _tell(f"{name}, seed {seed}: accuracy {run['accuracy']:.4f}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> None:
    """Measure what is not there yet, print the summary."""
    args = _parser().parse_args(arguments)
    settings = Settings(
        args.network, args.epochs, args.batch, args.peer_float, args.data, args.size
    )
    with one_line_errors():
        if args.seeds < 1:
            raise InputError("--seeds must be at least 1")
        _run(settings, Folders(args.data_dir, args.cache_dir), args.seeds, args.out)


def _parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks accuracy", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--network", default=default.network, help="as in %(default)s, or w_ftt_net:channels=4")
    add("--epochs", type=int, default=default.epochs, help="of a training (%(default)s)")
    add("--batch", type=int, default=default.batch, help="images in a step (%(default)s)")
    add("--seeds", type=int, default=3, help="trainings of either side (%(default)s)")
    add("--peer-float", action="store_true", help="PyTorch in float32, not in 8-bit fixed point")
    add("--data", default=default.data, help="digits, or a data set of TFDS (%(default)s)")
    add("--size", type=int, default=default.size, help="side to resize images to, 0 for none")
    add("--data-dir", default="", help="where data sets of TFDS are")
    add("--cache-dir", default="", help="where decoded images are kept")
    add("--out", type=Path, required=True, help="JSON file; trainings in it are not run again")
    return parser


def _run(settings: Settings, folders: Folders, seeds: int, path: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        raise InputError("this takes PyTorch: pip install -r requirements-benchmarks.txt")
    settings.config(0, Hardware())  # refuses what is out of range
    dataset = folders.load(settings)
    record = Record(path, settings, dataset.sha256())
    from benchmarks.torch_final import final_network
    from benchmarks.torch_training import TorchTrainings

    with as_input_error():
        final_network(settings.model(dataset.num_classes), dataset.image_shape[-1])
    _, machine = describe()
    with contextlib.ExitStack() as stack:
        sides = {
            name: stack.enter_context(
                Side(make, settings, folders, environment=large_pages.ENVIRONMENT)
            )
            for name, make in zip(SIDES, (OurTrainings, TorchTrainings), strict=True)
        }
        measure(record, seeds, sides, machine)
    print(lines(record.accuracies()))
