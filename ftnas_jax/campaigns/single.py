"""Single faults: which share of all bits of the weights is critical (Leveugle et al., DATE 2009).

    table = ft.single_faults(model, variables, test_set, by=("layer", "bit"), margin=0.05, key=key)
    print(table)

The population is finite: every bit of every quantized weight. Of each stratum, a layer, a bit or
both, faults are drawn without replacement, as many as the margin takes; each flips one bit and
leaves all others as they are. A fault is critical if it changes the class of more images than is
allowed.

This is no estimate of accuracy at a fault rate, for which a chip is the sampling unit; see
`ftnas_jax.campaigns.campaign`.
"""

import dataclasses
import hashlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ftnas_jax.campaigns import finite
from ftnas_jax.campaigns.campaign import Campaign, Run
from ftnas_jax.campaigns.held_weights import HeldWeights, flip, held_weights, quantize
from ftnas_jax.campaigns.outcome import columns, level_text, write_rows
from ftnas_jax.campaigns.settings import Settings, Verdict
from ftnas_jax.campaigns.statistics import Interval
from ftnas_jax.campaigns.subject import Subject, as_subject
from ftnas_jax.fixed_point import FixedPoint
from ftnas_jax.graph.sites import text_table
from ftnas_jax.nn.hardware import CLEAN, Hardware

Strata = Literal["layer", "bit"]

_LISTED = 2**22
"""Populations up to here are shuffled whole; of larger ones faults are drawn until they differ."""


@dataclasses.dataclass(frozen=True)
class Stratum:
    """Faults that are sampled together.

    Attributes:
        layer: path of their layer, None for all layers.
        bit: that flips, None for all bits; 0 is the lowest.
        parts: places of the weight tensors among those of the network.
        bits: that may flip.
        population: how many faults there are.
        wanted: how many are to be drawn.
    """

    layer: str | None
    bit: int | None
    parts: tuple[int, ...]
    bits: tuple[int, ...]
    population: int
    wanted: int

    faults: tuple[()] = dataclasses.field(default=(), init=False)  # no fault model acts
    rate: None = dataclasses.field(default=None, init=False)
    time: None = dataclasses.field(default=None, init=False)
    sweep: None = dataclasses.field(default=None, init=False)
    parameter: None = dataclasses.field(default=None, init=False)
    sound: bool = dataclasses.field(default=False, init=False)

    @property
    def label(self) -> str:
        """Its name in tables, short."""
        return self.text

    @property
    def text(self) -> str:
        """Its name in tables."""
        return (
            f"single_flip:layers={self.layer or '*'},bits={'all' if self.bit is None else self.bit}"
        )


@dataclasses.dataclass(frozen=True)
class StratumShare:
    """What became of the faults of a stratum.

    Attributes:
        stratum: which.
        drawn: how many faults were drawn.
        critical: how many of them were critical.
        share: of critical faults in the stratum, with its interval.
        changed: mean share of images whose class a fault changes.
        loss: mean loss of accuracy by a fault, a share of the images.
    """

    stratum: Stratum
    drawn: int
    critical: int
    share: Interval
    changed: float
    loss: float


@dataclasses.dataclass(frozen=True)
class SingleFaultTable:
    """All strata, and the whole population.

    Attributes:
        rows: a stratum each.
        share: of critical faults in the population, with its interval.
        population: number of faults.
        clean: accuracy without faults.
    """

    rows: tuple[StratumShare, ...]
    share: Interval
    population: int
    clean: float

    def __str__(self) -> str:
        head = ("layer", "bit", "faults", "drawn", "critical %", "interval", "images changed %")
        table = text_table([head, *map(_cells, self.rows)])
        level, clean = level_text(self.share.level), _percent(self.clean)
        return (
            f"{table}\n\ncritical in all: {_percent(self.share.estimate)} % of {self.population:,} "
            f"faults, {_ends(self.share)} at {level}; clean accuracy {clean} %"
        )

    def write_csv(self, folder: str | Path) -> None:
        """Write summary.csv into a folder: a row for each stratum, then one for them all."""
        rows = [_row(row) for row in self.rows]
        rows.append(
            {"population": self.population}
            | {"drawn": sum(row.drawn for row in self.rows)}
            | {"critical": sum(row.critical for row in self.rows)}
            | columns("share", self.share)
        )
        write_rows(Path(folder) / "summary.csv", rows)


def _row(row: StratumShare) -> dict[str, Any]:
    return {
        "layer": row.stratum.layer,
        "bit": row.stratum.bit,
        "population": row.stratum.population,
        "drawn": row.drawn,
        "critical": row.critical,
        **columns("share", row.share),
        "changed": row.changed,
        "loss": row.loss,
    }


def _cells(row: StratumShare) -> tuple[str, ...]:
    return (
        row.stratum.layer or "all",
        "all" if row.stratum.bit is None else str(row.stratum.bit),
        str(row.stratum.population),
        str(row.drawn),
        _percent(row.share.estimate),
        _ends(row.share),
        _percent(row.changed),
    )


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _ends(interval: Interval) -> str:
    return f"{_percent(interval.low)} .. {_percent(interval.high)}"


class SingleFaults(Campaign):
    """A campaign whose chips have one flipped bit each.

    Args:
        subject: the network; its weights are in fixed point.
        test_set: images and labels.
        by: what makes a stratum.
        key: typed key of the draws.
        margin: half-width of each stratum's interval that its sample is made for, by Leveugle.
        level: of all intervals.
        tolerance: share of the images whose class a fault may change without being critical.
        weights: patterns of the names of weights, joined by `|`; by default all that the hardware
            holds.
        **options: as `Campaign` has them.
    """

    def __init__(
        self,
        subject: Subject,
        test_set: tuple[Any, Any],
        by: Sequence[Strata],
        key: jax.Array,
        margin: float,
        level: float = 0.95,
        tolerance: float = 0.0,
        weights: str = "",
        **options: Any,
    ):
        fmt = subject.hardware.weights
        if fmt is None:
            raise ValueError(
                "single faults flip bits of weights; weights need a fixed point format"
            )
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance is {tolerance}; it is a share of the images, below 1")
        self._format, self._tolerance = fmt, tolerance
        self._parts = held_weights(subject, test_set[0], weights, fmt)
        self._strata = _strata(self._parts, fmt, by, margin, level)
        held = quantize(subject.variables, self._parts, fmt)
        subject = dataclasses.replace(subject, variables=held)
        super().__init__([subject], test_set, self._strata, key, Settings(level=level), **options)

    def table(self) -> SingleFaultTable:
        """What is known so far.

        Raises:
            ValueError: no fault of some stratum was drawn yet.
        """
        subject, images = self.subjects[0], len(self._labels)
        for stratum in self._strata:
            if not self._chips(subject, stratum):
                raise ValueError(f"no fault of {stratum.text} was drawn yet; go on to have a table")
        clean = self._store.clean(subject.name)
        rows = []
        for stratum in self._strata:
            chips = self._chips(subject, stratum)[: stratum.wanted]
            critical = sum(chip.changed > self._tolerance * images for chip in chips)
            interval = finite.share(
                critical, len(chips), stratum.population, level=self.settings.level
            )
            changed = float(np.mean([chip.changed for chip in chips])) / images
            loss = float(clean - np.mean([chip.correct for chip in chips])) / images
            rows.append(StratumShare(stratum, len(chips), critical, interval, changed, loss))
        whole = finite.stratified(
            [row.critical for row in rows],
            [row.drawn for row in rows],
            [row.stratum.population for row in rows],
            level=self.settings.level,
        )
        population = sum(row.stratum.population for row in rows)
        return SingleFaultTable(tuple(rows), whole, population, clean / images)

    def _identity(self) -> dict[str, Any]:
        """Fault numbers count the weights that may fail: of others they are other faults."""
        named = "\n".join(f"{part.name} {part.size}" for part in self._parts)
        return super()._identity() | {"population": hashlib.sha256(named.encode()).hexdigest()}

    def _verdict(self, subject: Subject, point: Any) -> Verdict:
        return Verdict(point.wanted, len(self._chips(subject, point)) >= point.wanted)

    def _most(self, point: Any) -> int:
        return point.wanted

    def _expected(self, subject: Subject, point: Any) -> int:
        return point.wanted

    def _predict(self, subject: Subject):
        leaves = sorted({part.leaf for part in self._parts})

        def predict(variables, shared, fault, images, first):
            del shared, first
            flipped = flip(variables, leaves, fault, self._format)
            return subject.classes(flipped, (), images, CLEAN)

        return predict

    def _shared(self, subject: Subject, point: Any) -> Any:
        return ()

    def _sound(self, subject: Subject, point: Any) -> tuple[Any, np.ndarray]:
        return (), np.array([[-1, 0, 0, 0]], np.int32)

    def _fault_numbers(self, subject: Subject, point: Any, numbers: list[int]) -> np.ndarray:
        """int32 [F, 4]: which parameter, which weight of it, which bit, its fraction length."""
        seed = [
            *np.asarray(jax.random.key_data(self._key)).ravel(),
            zlib.crc32(point.text.encode()),
        ]
        drawn = draw_distinct(point.population, numbers[-1] + 1, np.random.default_rng(seed))
        weights, bits = np.divmod(drawn[numbers[0] :], len(point.bits))
        parts = [self._parts[place] for place in point.parts]
        ends = np.cumsum([part.size for part in parts])
        own = np.searchsorted(ends, weights, side="right")
        begins = np.concatenate([[0], ends[:-1]]) - [part.start for part in parts]
        leaves, lengths = (
            np.array([getattr(p, n) for p in parts])[own] for n in ("leaf", "length")
        )
        columns = [leaves, weights - begins[own], np.array(point.bits)[bits], lengths]
        return np.stack(columns, 1).astype(np.int32)


def draw_distinct(population: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` different numbers below `population`, int64; of more, the first are the same."""
    if population <= _LISTED:
        return rng.permutation(population)[:count]
    found: dict[int, None] = {}
    while len(found) < count:
        found |= dict.fromkeys(rng.integers(population, size=1024).tolist())
    return np.array(list(found)[:count])


def _strata(
    parts: Sequence[HeldWeights],
    fmt: FixedPoint,
    by: Sequence[Strata],
    margin: float,
    level: float,
) -> tuple[Stratum, ...]:
    if not set(by) <= {"layer", "bit"}:
        raise ValueError(f"by is {','.join(by)!r}; strata are by layer, by bit, by both or by none")
    layers = list(dict.fromkeys(part.layer for part in parts)) if "layer" in by else [None]
    bits = list(range(fmt.bits)) if "bit" in by else [None]
    found = []
    for layer in layers:
        chosen = tuple(i for i, part in enumerate(parts) if layer in (None, part.layer))
        for bit in bits:
            own = tuple(range(fmt.bits)) if bit is None else (bit,)
            population = sum(parts[place].size for place in chosen) * len(own)
            wanted = finite.sample_size(population, margin, level=level)
            found.append(Stratum(layer, bit, chosen, own, population, wanted))
    return tuple(found)


def single_faults(
    model: Any,
    variables: Any,
    test_set: tuple[Any, Any],
    *,
    key: jax.Array,
    by: Sequence[Strata] = ("layer",),
    margin: float = 0.05,
    level: float = 0.95,
    tolerance: float = 0.0,
    weights: str = "",
    hardware: Hardware | None = None,
    norm_images: Any = None,
    batch_size: int | None = None,
    run: Run | None = None,
    workdir: str | Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> SingleFaultTable:
    """Which share of all single bit flips in weights is critical.

    Args:
        model: as `ftnas_jax.campaigns.campaign.campaign` takes it.
        variables: of the model; None for an nnx module.
        test_set: images as the model takes them, float32 [N, ...], and labels int [N].
        key: typed key of the draws.
        by: what makes a stratum: `layer`, `bit`, both, or nothing.
        margin: half-width of each stratum's interval, in (0, 1), that its sample is made for.
        level: of all intervals.
        tolerance: share of the images whose class a fault may change without being critical.
        weights: patterns of the names of weights, joined by `|`; by default all that the hardware
            holds.
        hardware: number formats, for a model that is not yet on hardware; by default 8 bits.
        norm_images: as `ftnas_jax.campaigns.campaign.campaign` takes them.
        batch_size: images at a time.
        run: how to use the machine.
        workdir: directory of the rows; a campaign in it goes on. None for nowhere.
        stop: asked now and then whether to end before all are drawn.

    Raises:
        ValueError: in one line, for what does not fit, and where it ends before every stratum has a
            fault.
        RunError: the workdir holds another campaign.
    """
    subject = as_subject(model, variables, hardware or Hardware(), norm_images=norm_images)
    with SingleFaults(
        *(subject, test_set, by, key, margin, level, tolerance, weights),
        batch_size=batch_size,
        run=run or Run(),
        workdir=workdir,
    ) as job:
        job.run(stop)
        return job.table()
