"""i.i.d. bit-bias in its exact form: every bit of every adder may fail, several at once (Eq. 7)."""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from ftnas_jax.faults import bernoulli
from ftnas_jax.faults.model import AccumulatingModel, Place, Site, check_rate, compound
from ftnas_jax.fixed_point import FixedPoint, saturate


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rate", "accumulated", "only"],
    meta_fields=["layers", "per"],
)
@dataclasses.dataclass(frozen=True)
class BitBias(AccumulatingModel):
    """A feature gets the sum over all bits q of e_q · ±2^q steps, each sign uniform (Eq. 7).

    e_q is 1 with 1 - (1 - r_s)^(M_l · M_p), to first order the r_s · M_l · M_p of §3.2: at least
    one of the M_l adders behind the feature fails at bit q; several count once. Eq. 7 writes one
    sign β for all bits and draws one β_q for each; here each bit has its own. `MiBB` with
    p_m = r_s · bits is the same where two bits hardly ever fail together.

    Attributes:
        rate: r_s, error rate of one bit of one adder, in [0, 1].
    """

    rate: float | jax.Array = 1e-5  # pyright: ignore[reportIncompatibleVariableOverride]

    name: ClassVar[str] = "bit_bias"
    site: ClassVar[Site] = "features"
    rates: ClassVar[tuple[str, ...]] = ("rate",)

    def __post_init__(self):
        super().__post_init__()
        check_rate(self.name, "rate", self.rate)

    def exposure(self, place: Place) -> bernoulli.Rate:
        """The rate of one bit of a feature."""
        return bernoulli.as_rate(compound(self.rate, place.macs * self.accumulated))

    def probability(self, place: Place, fmt: FixedPoint):
        """That at least one bit of a feature is hit."""
        return compound(self.rate, place.macs * self.accumulated * fmt.bits)

    def sample(
        self, keys: jax.Array, shape: tuple[int, ...], fmt: FixedPoint, exposure: bernoulli.Rate
    ) -> jax.Array:
        """int32 [n, *shape]: the sum of e_q · ±2^q, which is 0 only where no bit fails."""
        signs = bernoulli.bit_failures(
            keys, math.prod(shape), fmt.bits, exposure, _signs, nested=self.nested
        )
        places = jnp.left_shift(jnp.int32(1), jnp.arange(fmt.bits, dtype=jnp.int32))
        return jnp.sum(signs * places[None, None], -1).reshape(len(keys), *shape)

    def apply(self, codes: jax.Array, fault_map: jax.Array, fmt: FixedPoint) -> jax.Array:
        """The codes with the biases of all bits added, then saturated."""
        return saturate(codes + fault_map, fmt)


def _signs(words: jax.Array) -> jax.Array:
    """int8, each of ±1 equally likely, by uniform uint32 words."""
    return jnp.where(words & 1 == 1, jnp.int8(-1), jnp.int8(1))
