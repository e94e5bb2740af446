"""Stuck-at faults of multi-bit RRAM cells, seen at weights (adSAF, Eq. 9)."""

import dataclasses
import functools
import numbers
from typing import ClassVar

import jax
import jax.numpy as jnp

from ftnas_jax.faults import bernoulli
from ftnas_jax.faults.model import Site, check_rate
from ftnas_jax.fixed_point import FixedPoint

HEALTHY, STUCK_AT_0, STUCK_AT_1 = 0, 1, 2


@functools.partial(jax.tree_util.register_dataclass, data_fields=["p0", "p1"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class StuckAt:
    """Every weight is stuck at zero with p0 and at the bound ±R_w of its own sign with p1 (Eq. 9).

    A cell stuck in its high-resistance state (SAF0) holds 0, one stuck in its low-resistance state
    (SAF1) the largest magnitude. Positive and negative weights live in separate crossbars, so the
    sign stays; a weight of 0 counts as positive (§3.5). R_w is the representation bound of Eq. 3,
    2^-l · (2^(bits-1) - 1); the paper's published code takes max|w| in its place.

    Attributes:
        p0: rate of SAF0, in [0, 1].
        p1: rate of SAF1, in [0, 1]; p0 + p1 is at most 1.
    """

    p0: float | jax.Array = 0.067
    p1: float | jax.Array = 0.013

    name: ClassVar[str] = "stuck_at"
    site: ClassVar[Site] = "weights"

    def __post_init__(self):
        check_rate(self.name, "p0", self.p0)
        check_rate(self.name, "p1", self.p1)
        check_rate(self.name, "p0 + p1", self._total())

    def _total(self):
        both = (self.p0, self.p1)
        known = all(isinstance(rate, numbers.Real) for rate in both)
        # Sums such as 0.9 + 0.1 may exceed 1 by a rounding error.
        return round(float(self.p0) + float(self.p1), 6) if known else None

    def exposure(self, macs: int) -> tuple[bernoulli.Rate, bernoulli.Rate]:
        """The rates of SAF0 and of both kinds; every weight has the same."""
        del macs
        return bernoulli.as_rate(self.p0), bernoulli.as_rate(self.p0 + self.p1)

    def sample(
        self, key: jax.Array, shape: tuple[int, ...], fmt: FixedPoint, exposure
    ) -> jax.Array:
        """int8 of `shape`: HEALTHY, STUCK_AT_0 or STUCK_AT_1 for every weight."""
        del fmt
        rate_0, rate_both = exposure
        words = bernoulli.random_words(key, shape)
        state = jnp.where(bernoulli.below(words, rate_0), STUCK_AT_0, STUCK_AT_1)
        return jnp.where(bernoulli.below(words, rate_both), state, HEALTHY).astype(jnp.int8)

    def apply(self, codes: jax.Array, fault_map: jax.Array, fmt: FixedPoint) -> jax.Array:
        """The codes with stuck weights at 0 or at the bound of their sign."""
        bound = jnp.where(codes < 0, -fmt.max_code, fmt.max_code)
        stuck = jnp.where(fault_map == STUCK_AT_0, 0, bound)
        return jnp.where(fault_map == HEALTHY, codes, stuck)
