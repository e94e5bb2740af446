"""Stuck-at faults of single-bit RRAM cells: bits of weights' magnitudes (1bit-adSAF, Eq. 10)."""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from ftnas_jax.faults.bits import Bit, check_bits, check_text, count_bits, put_bits
from ftnas_jax.faults.model import Place, compound
from ftnas_jax.faults.stuck_at import HEALTHY, STUCK_AT_1, CellRates, StuckCells, sample_states
from ftnas_jax.fixed_point import FixedPoint

_HALF = 16
"""Bits of a map for stuck places; as many above them hold the values stuck at."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["p0", "p1", "accumulated", "bit", "only"],
    meta_fields=["bits", "layers", "per"],
)
@dataclasses.dataclass(frozen=True)
class StuckBits(StuckCells):
    """Each bit of a weight's magnitude is stuck at 0 with p0 and at 1 with p1 (Eq. 10).

    The magnitude has `bits - 1` bits, each in a crossbar of its own; the sign stays. (Eq. 10 counts
    Q of them, Eq. 3 with its bound 2^(Q+1) - 1 one more; here it is every bit there is.) Eq. 10
    leaves open what sgn(0) is: as under `StuckAt` a weight of 0 counts as positive, so that its
    stuck ones show. The paper's published runs of this model added biases; this is Eq. 10.

    Attributes:
        p0: rate of SAF0 in a cell, in [0, 1].
        p1: rate of SAF1 in a cell, in [0, 1]; p0 + p1 is at most 1.
        bits: which may be stuck: `all`, one as in `6`, or a range as in `0-5`; 0 is the lowest.
        bit: the one that may be stuck, in place of `bits`; see `at_bit`. Bit 6 of a key is stuck
            where it is with `bits=6`, and where any other bit is that is chosen alone.
    """

    bits: str = "all"
    bit: Bit = dataclasses.field(default=None, kw_only=True)

    name: ClassVar[str] = "stuck_bits"

    def __post_init__(self):
        super().__post_init__()
        check_text(self.name, self.bits)

    def check(self, fmt: FixedPoint) -> None:
        """Raise ValueError where a magnitude has fewer bits."""
        check_bits(self.name, self.bits, self.bit, "magnitude", fmt.bits - 1)

    def probability(self, place: Place, fmt: FixedPoint):
        """That at least one cell of a weight is stuck."""
        del place
        return compound(self.stuck_rate(), count_bits(self.bits, self.bit, fmt.bits - 1))

    def sample(
        self, keys: jax.Array, shape: tuple[int, ...], fmt: FixedPoint, exposure: CellRates
    ) -> jax.Array:
        """int32 [n, *shape]: stuck bits θ in the lower half, what they are stuck at, e, above."""
        self.check(fmt)
        bits, size = fmt.bits - 1, math.prod(shape)
        own = count_bits(self.bits, self.bit, bits)
        states = sample_states(keys, size * own, exposure).reshape(len(keys), size, own)
        stuck, ones = (
            put_bits(found.astype(jnp.int32), self.bits, self.bit, bits)
            for found in (states != HEALTHY, states == STUCK_AT_1)
        )
        return (stuck | ones << _HALF).reshape(len(keys), *shape)

    def apply(self, codes: jax.Array, fault_map: jax.Array, fmt: FixedPoint) -> jax.Array:
        """sgn(w) · ((¬θ ∧ |w|) ∨ (θ ∧ e)) of the codes."""
        theta, value = fault_map & (2**_HALF - 1), fault_map >> _HALF
        held = (jnp.minimum(jnp.abs(codes), fmt.max_code) & ~theta) | (theta & value)
        return jnp.where(codes < 0, -held, held)
