"""What rate am I really injecting? For every tensor of a model, asked and realised.

table = ft.exposure(chip, variables, images, key=key, maps=16)
print(table)
table.write_csv("exposure.csv")
plots.save_figure(plots.draw_exposure(table.rows), "exposure")
"""

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from ftnas_jax.faults import DefectMap, FaultModel, format_text
from ftnas_jax.fixed_point import FixedPoint, power_of_two, to_codes
from ftnas_jax.graph.model import jitted
from ftnas_jax.graph.plan import Tensor
from ftnas_jax.graph.run import Held, Observe
from ftnas_jax.graph.sites import text_table
from ftnas_jax.nn.hardware import Draw, Hardware

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class ExposureRow:
    """One fault model at one tensor.

    Attributes:
        tensor: its name.
        layer: path of its layer.
        faults: the model, as text.
        macs: M_l behind one element, 0 where it is only stored.
        elements: number of elements that a fault can hit, of all images of the batch.
        asked: probability that an element is hit, by the model's rates and M_l.
        hits: number of elements that were hit, in all maps together.
        drawn: number of elements of all maps together, those that images share once.
        low: lower end of the Clopper-Pearson interval of the realised rate at 95 %.
        high: its upper end.
        before: lowest and highest code that was hit, as it would be without the fault.
        after: lowest and highest code in the places of faults; None where nothing was hit.
    """

    tensor: str
    layer: str
    faults: str
    macs: int
    elements: int
    asked: float
    hits: int
    drawn: int
    low: float
    high: float
    before: tuple[float, float] | None
    after: tuple[float, float] | None

    @property
    def realised(self) -> float:
        """Share of elements that were hit."""
        return self.hits / self.drawn


@dataclasses.dataclass(frozen=True)
class Exposure:
    """Rows for all tensors and the models that act on them, and how many maps were drawn."""

    rows: tuple[ExposureRow, ...]
    maps: int

    def __str__(self) -> str:
        table = text_table([_HEADER, *map(_cells, self.rows)])
        return f"{table}\n{self.maps} maps; intervals at 95 %, Clopper-Pearson"

    def write_csv(self, file: str | Path) -> None:
        """One line for each row, columns as the fields of `ExposureRow`."""
        with Path(file).open("w", newline="", encoding="utf-8") as lines:
            writer = csv.writer(lines)
            names = [field.name for field in dataclasses.fields(ExposureRow)[:-2]]
            ends = ["before_low", "before_high", "after_low", "after_high"]
            writer.writerow([*names, "realised", *ends])
            for row in self.rows:
                codes = [end for pair in (row.before, row.after) for end in pair or ("", "")]
                writer.writerow([*(getattr(row, n) for n in names), row.realised, *codes])


_HEADER = ("tensor", "faults", "M_l", "asked", "realised", "interval", "codes hit", "become")


def _cells(row: ExposureRow) -> tuple[str, ...]:
    return (
        row.tensor,
        row.faults,
        str(row.macs) if row.macs else "",
        f"{row.asked:.3g}",
        f"{row.realised:.3g}",
        f"{row.low:.3g} .. {row.high:.3g}",
        *(
            "" if pair is None else f"{pair[0]:g} .. {pair[1]:g}"
            for pair in (row.before, row.after)
        ),
    )


def exposure(chip: Any, *args: Any, key: jax.Array, maps: int = 16, **kwargs: Any) -> Exposure:
    """Draw the faults of some chips and count what they hit.

    Args:
        chip: from `ftnas_jax.graph.model.on_hardware`.
        *args: of a call of the model.
        key: typed key; consumed.
        maps: number of chips to draw.
        **kwargs: of a call of the model.

    Raises:
        ValueError: there are no faults, or no maps to draw.
    """
    hardware: Hardware = chip.hardware
    if not hardware.faults:
        raise ValueError("the hardware has no faults; give Hardware(faults=...)")
    if maps < 1:
        raise ValueError(f"maps is {maps}; draw at least one")

    @jitted
    def one_chip(key, args):
        return chip.observed(_counter(hardware), *args, draw=Draw(key), **kwargs)[1]

    tensors = chip.sites(*args, **kwargs).tensors
    total: dict[str, Any] = {}
    for number in range(maps):
        seen = jax.device_get(one_chip(jax.random.fold_in(key, number), args))
        total = {
            tensor.name: _add(total.get(tensor.name), _once(tensor, seen[tensor.name]))
            for tensor in tensors
        }
    rows = (row for tensor in tensors for row in _rows(hardware, tensor, total.get(tensor.name)))
    return Exposure(tuple(rows), maps)


def _counter(hardware: Hardware) -> Observe:
    """What to keep of a tensor: for each model hits, elements, and codes where it hits."""

    def count(tensor: Tensor, held: Held):
        fmt = hardware.format(tensor.kind)
        pairs = zip(held.maps or (), held.drawn or (), strict=True)
        return [None if m is None else _count(m, drawn, held, fmt) for m, drawn in pairs]

    return count


def _count(fault_map: jax.Array, drawn: Any, held: Held, fmt: FixedPoint | None):
    assert fmt is not None  # faults need codes
    hit = jnp.broadcast_to(fault_map != 0, held.x.shape)
    ends = []
    for codes in (to_codes(held.x, held.length, fmt), held.held * power_of_two(held.length)):
        codes = codes.astype(jnp.float32)
        ends.append(jnp.min(codes, where=hit, initial=jnp.inf))
        ends.append(jnp.max(codes, where=hit, initial=-jnp.inf))
    return jnp.sum(drawn != 0), jnp.int32(drawn.size), jnp.stack(ends)


def _once(tensor: Tensor, counts):
    """Counts of a tensor, without those of turns in which it is the same again."""
    for loop in sorted(tensor.repeated, reverse=True):
        counts = jax.tree.map(lambda count, loop=loop: np.take(count, 0, axis=loop), counts)
    return counts


def _add(total, own):
    """Counts of one chip more, the turns of loops taken together."""
    counts = [None if c is None else _over_turns(*c) for c in own]
    if total is None:
        return counts
    return [
        None if more is None else (*np.add(before[:2], more[:2]), _ends([before[2], more[2]]))
        for before, more in zip(total, counts, strict=True)
    ]


def _over_turns(hits, drawn, ends):
    return int(np.sum(hits, dtype=np.int64)), int(np.sum(drawn, dtype=np.int64)), _ends(ends)


def _ends(ends) -> np.ndarray:
    """Lowest and highest code before, and after, out of several such rows."""
    rows = np.reshape(ends, (-1, 4))
    return np.where([True, False] * 2, rows.min(0), rows.max(0))


def _rows(hardware: Hardware, tensor: Tensor, counts) -> Iterator[ExposureRow]:
    fmt = hardware.format(tensor.kind)
    for model, own in zip(hardware.models(tensor.kind), counts or (), strict=False):
        if own is None or fmt is None:
            continue
        hits, drawn, ends = int(own[0]), int(own[1]), own[2]
        least, most = _interval(model, hits, drawn)
        low, high, faulty_low, faulty_high = map(float, ends)
        yield ExposureRow(
            tensor=tensor.name,
            layer=tensor.path,
            faults=format_text(model),
            macs=0 if tensor.kind == "weights" else tensor.macs,
            elements=tensor.place.size,
            asked=float(model.at(tensor.path).probability(tensor.place, fmt)),
            hits=hits,
            drawn=drawn,
            low=least,
            high=most,
            before=(low, high) if hits else None,
            after=(faulty_low, faulty_high) if hits else None,
        )


def _interval(model: FaultModel, hits: int, drawn: int) -> tuple[float, float]:
    """Clopper-Pearson; the realised rate alone where faults are given and not drawn."""
    if isinstance(model, DefectMap):
        return hits / drawn, hits / drawn
    interval = scipy.stats.binomtest(hits, drawn).proportion_ci(CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)
