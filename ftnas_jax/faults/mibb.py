"""MAC-i.i.d. bit-bias: upsets in the LUTs of adders, seen at pre-activation features (Eq. 8)."""

import dataclasses
import functools
import math
from typing import ClassVar, Literal

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
from ftnas_jax.fixed_point import FixedPoint, saturate


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["p_m", "accumulated", "only"],
    meta_fields=["form", "layers", "per"],
)
@dataclasses.dataclass(frozen=True)
class MiBB(AccumulatingModel):
    """A feature gets a bias of ±2^α steps, α uniform over all bits, the sign uniform (Eq. 8).

    Eq. 8 simplifies Eq. 7: at most one bit of a feature is hit; see `BitBias`. The result saturates
    at the ends of the feature format.

    Attributes:
        p_m: error rate of one multiply-accumulate, in [0, 1].
        form: how a feature behind M_l of them fails. `compound`, 1 - (1 - p_m)^M_l, stays a
            probability and is what the paper's published code computes; `linear`, p_m · M_l cut
            at 1, is the paper's first-order text. With M_p, M_l · M_p stands in place of M_l.
    """

    p_m: float | jax.Array = 1e-4
    form: Literal["compound", "linear"] = "compound"

    name: ClassVar[str] = "mibb"
    site: ClassVar[Site] = "features"
    rates: ClassVar[tuple[str, ...]] = ("p_m",)

    def __post_init__(self):
        super().__post_init__()
        check_rate(self.name, "p_m", self.p_m)
        if self.form not in ("compound", "linear"):
            raise ValueError(f"mibb: form is {self.form!r}; choose compound or linear")

    def probability(self, place: Place, fmt: FixedPoint | None = None):
        """That one feature is hit."""
        del fmt
        over = compound if self.form == "compound" else first_order
        return over(self.p_m, place.macs * self.accumulated)

    def exposure(self, place: Place) -> bernoulli.Rate:
        """The rate of features."""
        return bernoulli.as_rate(self.probability(place))

    def sample(
        self, keys: jax.Array, shape: tuple[int, ...], fmt: FixedPoint, exposure: bernoulli.Rate
    ) -> jax.Array:
        """int8 [n, *shape]: ±(α + 1) where a feature gets a bias of ±2^α, else 0."""
        values = functools.partial(_biases, bits=fmt.bits)
        maps = bernoulli.failures(keys, math.prod(shape), exposure, values, nested=self.nested)
        return maps.reshape(len(keys), *shape)

    def apply(self, codes: jax.Array, fault_map: jax.Array, fmt: FixedPoint) -> jax.Array:
        """The codes with their biases added, saturated."""
        places = jnp.abs(fault_map).astype(jnp.int32) - 1
        size = jnp.left_shift(jnp.int32(1), jnp.maximum(places, 0))
        return saturate(codes + jnp.sign(fault_map).astype(jnp.int32) * size, fmt)


def _biases(words: jax.Array, *, bits: int) -> jax.Array:
    """int8, each of ±1 .. ±bits equally likely, to 2^-28, by uniform uint32 words."""
    # The product of the 28 bits above the sign with `bits` stays below 2^32.
    place = (((words >> 4) * jnp.uint32(bits)) >> 28).astype(jnp.int8) + jnp.int8(1)
    return jnp.where(words & 1 == 1, -place, place)
