"""Stuck-at faults of single-bit RRAM cells: bits of weights' magnitudes (1bit-adSAF, Eq. 10)."""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from ftnas_jax.faults.model import Place, compound
from ftnas_jax.faults.stuck_at import STUCK_AT_0, STUCK_AT_1, CellRates, StuckCells, sample_states
from ftnas_jax.fixed_point import FixedPoint

_HALF = 16
"""Bits of a map for stuck places; as many above them hold the values stuck at."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["p0", "p1", "accumulated"],
    meta_fields=["layers", "per"],
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
    """

    name: ClassVar[str] = "stuck_bits"

    def probability(self, place: Place, fmt: FixedPoint):
        """That at least one cell of a weight is stuck."""
        del place
        return compound(self.stuck_rate(), fmt.bits - 1)

    def sample(
        self, keys: jax.Array, shape: tuple[int, ...], fmt: FixedPoint, exposure: CellRates
    ) -> jax.Array:
        """int32 [n, *shape]: stuck bits θ in the lower half, what they are stuck at, e, above."""
        bits, size = fmt.bits - 1, math.prod(shape)
        states = sample_states(keys, size * bits, exposure).reshape(len(keys), size, bits)
        places = jnp.arange(bits, dtype=jnp.int32)
        values = {STUCK_AT_0: 1, STUCK_AT_1: 1 + 2**_HALF}
        of_bits = sum(jnp.where(states == state, value, 0) for state, value in values.items())
        packed = jnp.sum(jnp.left_shift(jnp.asarray(of_bits), places[None, None]), -1)
        return packed.reshape(len(keys), *shape)

    def apply(self, codes: jax.Array, fault_map: jax.Array, fmt: FixedPoint) -> jax.Array:
        """sgn(w) · ((¬θ ∧ |w|) ∨ (θ ∧ e)) of the codes."""
        theta, value = fault_map & (2**_HALF - 1), fault_map >> _HALF
        held = (jnp.minimum(jnp.abs(codes), fmt.max_code) & ~theta) | (theta & value)
        return jnp.where(codes < 0, -held, held)
