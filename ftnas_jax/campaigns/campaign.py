"""Monte-Carlo fault campaigns: how much accuracy is lost, and how sure are we.

    report = ft.campaign(model, variables, (images, labels), key=key, margin=0.01,
                         faults=ft.faults.StuckAt(p0=0.067, p1=0.013))
    print(report)

A campaign draws chips, each with faults of its own, and measures the accuracy of each on the whole
test set. Chip number i is a function of (key, i) alone: any of them can be replayed, more can be
added, and networks that meet the same chips are compared pair by pair. Where persistent faults grow
with a rate or with time, those of a chip at the larger one contain those at the smaller.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from ftnas_jax.campaigns.outcome import Outcome, Report
from ftnas_jax.campaigns.points import Visited, as_models, points, told_apart
from ftnas_jax.campaigns.settings import Settings
from ftnas_jax.campaigns.store import Store
from ftnas_jax.campaigns.subject import NO_CLASS, Subject, as_subject
from ftnas_jax.campaigns.trials import Predict, Trials, batches
from ftnas_jax.faults import FaultModel
from ftnas_jax.nn.hardware import DRAWS, Hardware
from ftnas_jax.processes import agree, is_first


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a campaign stands.

    Attributes:
        network: at hand.
        point: at hand.
        chips: that are there for both.
        expected: about how many there will be.
        outcome: of those that are there.
        done: chips of the whole campaign that are there.
        total: about how many there will be.
        seconds: about how many it will still take; None while no one knows.
    """

    network: str
    point: Visited
    chips: int
    expected: int
    outcome: Outcome
    done: int
    total: int
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Run:
    """How a campaign uses the machine; nothing of it changes a result.

    Attributes:
        chunk: chips at once on a device; None for what is best.
        devices: None for all.
        memory: bytes of a device that a call may take; None for nearly all that are free.
    """

    chunk: int | None = None
    devices: Sequence[Any] | None = None
    memory: float | None = None


class Speed(NamedTuple):
    """How fast a network is evaluated.

    Attributes:
        seconds_a_chip: on all devices together.
        compile_seconds: of one program.
    """

    seconds_a_chip: float
    compile_seconds: float


class Campaign:
    """Networks, points and chips.

    Args:
        subjects: the networks; their names differ.
        test_set: images as the networks take them, float32 [N, ...], and labels int [N].
        visited: the points.
        key: typed key of all chips.
        settings: how sure to be.
        batch_size: images at a time; see `ftnas_jax.campaigns.trials`.
        run: how to use the machine.
        workdir: where rows are kept and gone on with; None for nowhere.

    Raises:
        ValueError: networks, images and labels do not fit.
        RunError: the workdir holds another campaign.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        test_set: tuple[Any, Any],
        visited: Sequence[Visited],
        key: jax.Array,
        settings: Settings,
        *,
        batch_size: int | None = None,
        run: Run = Run(),
        workdir: str | Path | None = None,
    ):
        self._images, self._labels = _checked(test_set)
        _check_names([subject.name for subject in subjects])
        for subject in subjects:
            for point in visited:
                subject.on(point.faults)  # refuses faults that the number formats cannot have
        self.subjects, self.points = tuple(subjects), told_apart(visited)
        self.settings = settings
        self._key, self._batch_size, self._run = _checked_key(key), batch_size, run
        self._trials: tuple[Any, Trials] | None = None
        self._clean: dict[str, np.ndarray] = {}
        self._speed: dict[str, float] = {}
        self._store = Store(workdir, self._identity(), len(self._labels))
        try:
            for subject in subjects:
                self._store.claim(subject.name, subject.sha256())
        except BaseException:
            self.close()
            raise

    def run(
        self,
        stop: Callable[[], bool] = lambda: False,
        watch: Callable[[Position], None] = lambda position: None,
    ) -> Report:
        """Draw chips until the settings are met.

        Args:
            stop: asked now and then whether to end before that; what is there is kept.
            watch: told after every few chips where the campaign stands.
        """
        for subject in self.subjects:
            for point in self.points:
                while not agree(stop()) and not self._verdict(subject, point).enough:
                    self._advance(subject, point, self._verdict(subject, point).chips, stop, watch)
        return self.report()

    def pilot(
        self,
        stop: Callable[[], bool] = lambda: False,
        watch: Callable[[Position], None] = lambda position: None,
    ) -> list[Position]:
        """Draw the first `min_chips` everywhere, and tell what the whole campaign will take."""
        for subject in self.subjects:
            for point in self.points:
                first = min(self.settings.min_chips, self._verdict(subject, point).chips)
                self._advance(subject, point, first, stop, watch)
        return [
            self._position(s, p) for s in self.subjects for p in self.points if self._chips(s, p)
        ]

    def speed(self) -> Speed | None:
        """Draw the next one or two chips: how long it took. None where nothing is left to draw."""
        for subject in self.subjects:
            for point in self.points:
                there, verdict = len(self._chips(subject, point)), self._verdict(subject, point)
                if not verdict.enough:
                    wanted = min(there + 2, verdict.chips)
                    self._advance(subject, point, wanted, lambda: False, lambda position: None)
                    trials, _ = self._prepared(subject, point)
                    return Speed(self._speed[subject.name], trials.compile_seconds)
        return None

    def report(self) -> Report:
        """What is known so far."""
        found = (
            self._outcome(s, p) for s in self.subjects for p in self.points if self._chips(s, p)
        )
        return Report(tuple(found))

    def close(self) -> None:
        """Let another process in. Also done by the end of a `with`."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # One network at one point

    def _advance(self, subject: Subject, point: Visited, wanted: int, stop, watch) -> None:
        numbers = list(range(len(self._chips(subject, point)), wanted))
        if not numbers:
            return
        trials, clean = self._prepared(subject, point)
        # Devices compute whole chunks: what fills one up are the next chips, whose rows are kept.
        filled = numbers[0] + -(-len(numbers) // trials.chunk) * trials.chunk
        numbers = list(range(numbers[0], max(wanted, min(filled, self._most(point)))))
        began, made = time.monotonic(), 0
        faults = self._fault_numbers(subject, point, numbers)
        for count, classes in trials.run(self._shared(subject, point), faults, stop):
            right, changed = classes == self._labels[None], classes != clean[None]
            self._store.table.add(subject.name, point, numbers[:count], right, changed)
            numbers, made = numbers[count:], made + count
            self._speed[subject.name] = (time.monotonic() - began) / made
            watch(self._position(subject, point))

    def _prepared(self, subject: Subject, point: Visited) -> tuple[Trials, np.ndarray]:
        """The compiled program of a network and its faults, and its classes without faults."""
        shared, fault = self._sound(subject, point)
        kind = (subject.name, jax.tree.structure(shared))
        if self._trials is None or self._trials[0] != kind:
            self._trials = None  # the memory of one program at a time
            own = Trials(
                *(self._predict(subject), subject.variables, self._images, shared),
                width=fault.shape[-1],
                most=max(map(self._most, self.points)),
                name=subject.name,
                beside=subject.norm_images,
                batch_size=self._batch_size,
                chunk=self._run.chunk,
                devices=self._run.devices,
                memory=self._run.memory,
            )
            self._trials = (kind, own)
        trials = self._trials[1]
        if subject.name not in self._clean:
            clean = next(trials.run(shared, fault))[1][0]
            _check_clean(subject.name, clean)
            self._clean[subject.name] = clean
            self._store.note_clean(subject.name, int(np.sum(clean == self._labels)))
        return trials, self._clean[subject.name]

    # What a chip is

    def _predict(self, subject: Subject) -> Predict:
        return subject.on_chip

    def _shared(self, subject: Subject, point: Any) -> Any:
        """What all chips at a point have in common: rates are arrays, so one program does."""
        rates = jax.tree_util.tree_map_with_path(_as_array, point.program or point.faults)
        return rates, np.asarray(jax.random.key_data(self._key)), np.bool_(True)

    def _sound(self, subject: Subject, point: Any) -> tuple[Any, np.ndarray]:
        """The same, and a chip, for a pass without faults."""
        return (*self._shared(subject, point)[:2], np.bool_(False)), np.zeros((1, 1), np.int32)

    def _fault_numbers(self, subject: Subject, point: Any, numbers: list[int]) -> np.ndarray:
        """int32 [F, K] for chips of these numbers."""
        return np.array(numbers, np.int32)[:, None]

    def _chips(self, subject: Subject, point: Visited) -> list:
        return self._store.table.chips(subject.name, point)

    def _most(self, point: Any) -> int:
        """Chips that a network may need at a point."""
        return 1 if point.sound else self.settings.chips

    def _verdict(self, subject: Subject, point: Visited):
        return self.settings.judge(point, self._accuracies(subject, point))

    def _expected(self, subject: Subject, point: Visited) -> int:
        return self.settings.expected(point, self._accuracies(subject, point))

    def _accuracies(self, subject: Subject, point: Visited) -> list[float]:
        return [chip.correct / len(self._labels) for chip in self._chips(subject, point)]

    def _outcome(self, subject: Subject, point: Visited) -> Outcome:
        verdict, chips = self._verdict(subject, point), self._chips(subject, point)
        clean = self._store.clean(subject.name) / len(self._labels)
        own = tuple(chips[: verdict.chips])
        counts = (subject.name, point, len(self._labels), clean, own)
        return Outcome(*counts, self.settings.level, verdict.critical, verdict.reached)

    def _position(self, subject: Subject, point: Visited) -> Position:
        cells = [(s, p) for s in self.subjects for p in self.points]
        there = {(s.name, p.text): len(self._chips(s, p)) for s, p in cells}
        wanted = {(s.name, p.text): self._expected(s, p) for s, p in cells}
        here = (subject.name, point.text)
        return Position(
            subject.name,
            point,
            there[here],
            wanted[here],
            self._outcome(subject, point),
            sum(there.values()),
            sum(max(wanted[cell], there[cell]) for cell in there),
            self._seconds(there, wanted),
        )

    def _seconds(self, there: dict, wanted: dict) -> float | None:
        """About how long the rest will take, by the networks whose speed is known."""
        if not self._speed:
            return None
        usual = float(np.mean(list(self._speed.values())))
        return sum(
            self._speed.get(cell[0], usual) * max(0, wanted[cell] - there[cell]) for cell in there
        )

    def _identity(self) -> dict[str, Any]:
        """What a chip's row depends on, but for the network and the point."""
        return {
            "key": jax.random.key_data(self._key).tolist(),
            "draws": DRAWS,
            "batch_size": batches(len(self._labels), self._batch_size).size,
            "images": _digest(self._images, self._labels),
        }


def campaign(
    model: Any,
    variables: Any,
    test_set: tuple[Any, Any],
    *,
    faults: FaultModel | Sequence[FaultModel] | str,
    key: jax.Array,
    name: str = "network",
    arguments: tuple[Any, ...] = (),
    keywords: Mapping[str, Any] | None = None,
    norm_images: Any = None,
    **options: Any,
) -> Report:
    """How much accuracy a network loses under faults, over many chips.

    Args:
        model: a linen or nnx module, a function `(parameters, images)`, or any of them that is
            `on_hardware` already.
        variables: of the model; None for an nnx module.
        test_set: images as the model takes them, float32 [N, ...], and labels int [N].
        faults: models that act together, or their text.
        key: typed key of all chips.
        name: of the network, in tables.
        arguments: of a call of the model, behind the images.
        keywords: of a call of the model.
        norm_images: by which every chip takes statistics of BatchNorm anew, as the model takes
            them, [N, ...]; None where it has those among the variables.
        **options: as `compare` has them.

    Raises:
        ValueError: in one line, for what does not fit.
        RunError: the workdir holds another campaign.
    """
    models = as_models(faults)
    subject = as_subject(
        *(model, variables, Hardware(faults=models)),
        name=name,
        arguments=arguments,
        keywords=keywords,
        norm_images=norm_images,
    )
    return compare([subject], test_set, faults=models, key=key, **options)


def compare(
    subjects: Sequence[Subject],
    test_set: tuple[Any, Any],
    *,
    faults: FaultModel | Sequence[FaultModel] | str,
    key: jax.Array,
    rates: Sequence[float] | None = None,
    times: Sequence[float] | None = None,
    sweep: str | None = None,
    chips: int = 64,
    margin: float | None = None,
    min_chips: int = 16,
    level: float = 0.95,
    batch_size: int | None = None,
    chunk: int | None = None,
    devices: Sequence[Any] | None = None,
    memory: float | None = None,
    workdir: str | Path | None = None,
) -> Report:
    """Several networks on the same chips.

    Args:
        subjects: from `as_subject`, with different names.
        test_set: images as the networks take them, float32 [N, ...], and labels int [N].
        faults: models that act together, or their text.
        key: typed key of all chips.
        rates: of the model that is swept; by default it stays as it is.
        times: after which accuracy is measured, as faults accumulate and conductances drift.
        sweep: which model's rate is swept, where there are several.
        chips: of every network at every point; with a margin, at most so many.
        margin: half-width of the accuracy's interval, a share of the images, at which a point
            has seen enough.
        min_chips: before a margin is looked at.
        level: of all intervals.
        batch_size: images at a time; fraction lengths that are not frozen follow a batch.
        chunk: chips at once on a device; None for what is best.
        devices: None for all.
        memory: bytes of a device that may be taken; None for nearly all that are free.
        workdir: directory of the rows; a campaign in it goes on. None for nowhere.

    Raises:
        ValueError: in one line, for what does not fit.
        RunError: the workdir holds another campaign.
    """
    visited = points(as_models(faults), rates, times, sweep)
    settings = Settings(chips, margin, min_chips, level)
    run = Run(chunk, devices, memory)
    with Campaign(
        *(subjects, test_set, visited, key, settings),
        batch_size=batch_size,
        run=run,
        workdir=workdir,
    ) as job:
        report = job.run()
        if workdir is not None and is_first():
            report.write_csv(workdir)
    return report


def _as_array(path: tuple[Any, ...], number: Any) -> np.ndarray:
    """Of a field: whole where it chooses a bit or a group, else float32, also where it is a 0."""
    whole = getattr(path[-1], "name", None) in ("bit", "selected")
    return np.asarray(number, np.int32 if whole else np.float32)


def _checked_key(key: Any) -> jax.Array:
    try:
        data, kind = jax.random.key_data(key), str(jax.random.key_impl(key))
    except TypeError:
        raise ValueError(f"key is {key!r}; give a typed key, as jax.random.key(0)") from None
    # Others draw other numbers for a chip alone than for several at once.
    if "threefry2x32" not in kind or data.shape != (2,):
        raise ValueError(
            f"key is {list(key.shape)} of {kind}; give one key, as "
            'jax.random.key(0, impl="threefry2x32")'
        )
    return key


def _checked(test_set: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = (np.asarray(part) for part in test_set)
    if len(images) != len(labels) or not len(labels):
        raise ValueError(
            f"the test set has {len(images)} images and {len(labels)} labels; give one for each"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels are {labels.dtype}{list(labels.shape)}; give whole numbers [N]")
    if labels.min() < 0:
        raise ValueError(f"a label is {labels.min()}; classes count from 0")
    return images.astype(np.float32), labels.astype(np.int32)


def _check_clean(name: str, classes: np.ndarray) -> None:
    unknown = int(np.sum(classes == NO_CLASS))
    if unknown:
        raise ValueError(
            f"{name}: {unknown} of {len(classes)} images have NaN logits without any fault; "
            "a campaign takes a network that classifies on sound hardware"
        )


def _check_names(names: Sequence[str]) -> None:
    if not names or len(set(names)) < len(names):
        raise ValueError(f"the networks are called {', '.join(names)}; give each its own name")
    for name in names:
        if not name.strip() or any(c in name for c in "\n\r"):
            raise ValueError(f"a network is called {name!r}; give it a name of one line")


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
