"""Stuck-at faults of multi-bit RRAM cells, seen at weights (adSAF, Eq. 9)."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp

from ftnas_jax.faults import bernoulli
from ftnas_jax.faults.model import (
    AccumulatingModel,
    Place,
    Site,
    check_rate,
    compound,
    first_order,
)
from ftnas_jax.fixed_point import FixedPoint

HEALTHY, STUCK_AT_0, STUCK_AT_1 = 0, 1, 2
_STATES = 3


class CellRates(NamedTuple):
    """Rates of the two kinds of stuck cells."""

    saf0: bernoulli.Rate
    saf1: bernoulli.Rate


def sample_states(keys: jax.Array, size: int, rates: CellRates) -> jax.Array:
    """int8 [n, size]: HEALTHY, STUCK_AT_0 or STUCK_AT_1 for every cell. Consumes `keys`.

    SAF0 takes the words at one end and SAF1 those at the other, so that raising either rate leaves
    the cells stuck that were so before.
    """
    words = bernoulli.random_words(keys, size)
    saf1 = jnp.where(bernoulli.below(~words, rates.saf1), STUCK_AT_1, HEALTHY)
    return jnp.where(bernoulli.below(words, rates.saf0), STUCK_AT_0, saf1).astype(jnp.int8)


@dataclasses.dataclass(frozen=True)
class StuckCells(AccumulatingModel):
    """Rates of stuck cells, for models of what a stuck cell does to a weight.

    Attributes:
        p0: rate of SAF0 in a cell, in [0, 1].
        p1: rate of SAF1 in a cell, in [0, 1]; p0 + p1 is at most 1.
    """

    p0: float | jax.Array = 0.067
    p1: float | jax.Array = 0.013

    site: ClassVar[Site] = "weights"
    rates: ClassVar[tuple[str, ...]] = ("p0", "p1")
    in_text: ClassVar[tuple[str, ...]] = ("rate", "ratio")
    crossbar: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_rate(self.name, "p0", self.p0)
        check_rate(self.name, "p1", self.p1)
        known = all(isinstance(rate, numbers.Real) for rate in (self.p0, self.p1))
        # Sums such as 0.9 + 0.1 may exceed 1 by a rounding error.
        total = round(float(self.p0) + float(self.p1), 6) if known else None
        check_rate(self.name, "p0 + p1", total)

    @classmethod
    def from_text(cls, values: Mapping[str, Any]) -> Self:
        """The model of p0 and p1, or of `rate` = p0 + p1 and `ratio` = p0 / (p0 + p1)."""
        given = set(values) & set(cls.in_text)
        if not given:
            return cls(**values)
        if set(values) & set(cls.rates):
            raise ValueError(f"{cls.name}: give p0 and p1, or rate and ratio; not of both")
        rate = values.get("rate", cls.p0 + cls.p1)
        ratio = values.get("ratio", cls.p0 / (cls.p0 + cls.p1))
        check_rate(cls.name, "rate", rate)
        if not 0 <= ratio <= 1:
            raise ValueError(f"{cls.name}: ratio is {ratio}; p0 / (p0 + p1) lies in [0, 1]")
        others = {field: value for field, value in values.items() if field not in given}
        return cls(p0=rate * ratio, p1=rate * (1 - ratio), **others)

    @property
    def rate(self) -> Any:
        """p0 + p1."""
        return self.p0 + self.p1

    @property
    def rate_name(self) -> str:
        """That of the sum."""
        return "rate"

    def at_rate(self, rate: float | jax.Array) -> Self:
        """The model with another sum of p0 and p1, in the proportion that they have now.

        Raises:
            ValueError: p0 and p1 are both 0, or a Python number is no rate.
        """
        check_rate(self.name, "rate", rate)
        known = isinstance(self.rate, numbers.Real)
        if known and not self.rate:
            raise ValueError(f"{self.name}: p0 and p1 are 0, of which no proportion is known")
        total = self.rate if known else jnp.maximum(self.rate, 1e-30)
        return dataclasses.replace(self, p0=rate * (self.p0 / total), p1=rate * (self.p1 / total))

    def cell_rates(self) -> tuple[Any, Any]:
        """p0 and p1 after accumulation, in the same proportion."""
        if isinstance(self.accumulated, numbers.Real) and self.accumulated == 1:
            return self.p0, self.p1
        total = self.p0 + self.p1
        if isinstance(total, numbers.Real):
            grown = compound(min(float(total), 1.0), self.accumulated) / total if total else 0.0
        else:
            grown = compound(total, self.accumulated) / jnp.maximum(total, 1e-30)
        return self.p0 * grown, self.p1 * grown

    def stuck_rate(self) -> Any:
        """That a cell is stuck: p0 + p1 after accumulation, without what rounding adds to 1."""
        p0, p1 = self.cell_rates()
        return first_order(p0 + p1, 1)

    def exposure(self, place: Place) -> CellRates:
        """The rates of a cell; every place has the same."""
        del place
        p0, p1 = self.cell_rates()
        return CellRates(bernoulli.as_rate(p0), bernoulli.as_rate(p1))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["p0", "p1", "accumulated", "only"],
    meta_fields=["cells", "layers", "per"],
)
@dataclasses.dataclass(frozen=True)
class StuckAt(StuckCells):
    """Every weight is stuck at zero with p0 and at the bound ±R_w of its own sign with p1 (Eq. 9).

    A cell stuck in its high-resistance state (SAF0) holds 0, one stuck in its low-resistance state
    (SAF1) the largest magnitude. Positive and negative weights live in separate crossbars, so the
    sign stays; a weight of 0 counts as positive (§3.5). R_w is the representation bound of Eq. 3,
    2^-l · (2^(bits-1) - 1); the paper's published code takes max|w| in its place.

    Attributes:
        p0: rate of SAF0, in [0, 1].
        p1: rate of SAF1, in [0, 1]; p0 + p1 is at most 1.
        cells: `one` for a weight, the one that holds it, as in Eq. 9; or a `pair`, in the crossbar
            of either sign one, each with the rates p0 and p1, of which the weight is the
            difference. A pair is what the hardware has and the paper's published code computes:
            a stuck cell of the other sign pulls at a weight, too.
    """

    cells: Literal["one", "pair"] = "one"

    name: ClassVar[str] = "stuck_at"

    def __post_init__(self):
        super().__post_init__()
        if self.cells not in ("one", "pair"):
            raise ValueError(f"stuck_at: cells is {self.cells!r}; choose one or pair")

    def probability(self, place: Place, fmt: FixedPoint | None = None):
        """That a cell of a weight is stuck."""
        del place, fmt
        total = self.stuck_rate()
        return total if self.cells == "one" else total * (2 - total)

    def sample(
        self, keys: jax.Array, shape: tuple[int, ...], fmt: FixedPoint, exposure: CellRates
    ) -> jax.Array:
        """int8 [n, *shape], a state for every weight.

        HEALTHY, STUCK_AT_0 or STUCK_AT_1; of a pair the state of the positive cell plus 3 times
        that of the negative one.
        """
        del fmt
        size = math.prod(shape)
        if self.cells == "pair":
            states = sample_states(keys, 2 * size, exposure)
            states = states[:, :size] + jnp.int8(_STATES) * states[:, size:]
        else:
            states = sample_states(keys, size, exposure)
        return states.reshape(len(keys), *shape)

    def apply(self, codes: jax.Array, fault_map: jax.Array, fmt: FixedPoint) -> jax.Array:
        """The codes that stuck cells leave."""
        if self.cells == "one":
            held = _cell(jnp.abs(codes), fault_map, fmt)
            return jnp.where(codes < 0, -held, held)
        positive = _cell(jnp.maximum(codes, 0), fault_map % _STATES, fmt)
        return positive - _cell(jnp.maximum(-codes, 0), fault_map // _STATES, fmt)


def _cell(level: jax.Array, state: jax.Array, fmt: FixedPoint) -> jax.Array:
    """The level of a cell, 0 .. max_code, in its state."""
    stuck = jnp.where(state == STUCK_AT_0, 0, fmt.max_code)
    return jnp.where(state == HEALTHY, level, stuck)
