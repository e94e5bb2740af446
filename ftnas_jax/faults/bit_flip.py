"""i.i.d. bit flips in the memories that hold weights and activations (iBF, Eq. 6)."""

import dataclasses
import functools
import math
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from ftnas_jax.faults import bernoulli
from ftnas_jax.faults.bits import Bit, check_bits, check_text, count_bits, put_bits
from ftnas_jax.faults.model import AccumulatingModel, Place, check_rate, compound
from ftnas_jax.fixed_point import FixedPoint


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rate", "accumulated", "bit", "only"],
    meta_fields=["site", "bits", "layers", "per"],
)
@dataclasses.dataclass(frozen=True)
class BitFlip(AccumulatingModel):
    """Every bit of a stored code flips on its own, the sign bit included (Eq. 6).

    The bits are those that the format stores: in two's complement bit `bits - 1` weighs
    -2^(bits-1); in sign-magnitude it is the sign, and a weight of -0 is 0. The paper's published
    code cannot flip the sign.

    Attributes:
        rate: r_s or r_h, of one bit, in [0, 1].
        bits: which bits may flip: `all`, one as in `7`, or a range as in `0-6`; 0 is the lowest.
        bit: the one that may flip, in place of `bits`; see `at_bit`. Bit 7 of a key flips where it
            does with `bits=7`, and where any other bit does that is chosen alone.
        site: `weights` (the weight buffer) or `activations` (the feature buffer).
    """

    rate: float | jax.Array = 1e-4  # pyright: ignore[reportIncompatibleVariableOverride]
    bits: str = "all"
    site: Literal["weights", "activations"] = dataclasses.field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default="weights", kw_only=True
    )
    bit: Bit = dataclasses.field(default=None, kw_only=True)

    name: ClassVar[str] = "bit_flip"
    rates: ClassVar[tuple[str, ...]] = ("rate",)

    def __post_init__(self):
        if self.site not in ("weights", "activations"):
            raise ValueError(f"bit_flip: site is {self.site!r}; choose weights or activations")
        super().__post_init__()
        check_rate(self.name, "rate", self.rate)
        check_text(self.name, self.bits)

    def check(self, fmt: FixedPoint) -> None:
        """Raise ValueError where a code has fewer bits."""
        check_bits(self.name, self.bits, self.bit, "code", fmt.bits)

    def exposure(self, place: Place) -> bernoulli.Rate:
        """The rate of a bit; every place has the same."""
        del place
        return bernoulli.as_rate(compound(self.rate, self.accumulated))

    def probability(self, place: Place, fmt: FixedPoint):
        """That at least one bit of a code flips."""
        del place
        own = count_bits(self.bits, self.bit, fmt.bits)
        return compound(self.rate, self.accumulated * own)

    def sample(
        self, keys: jax.Array, shape: tuple[int, ...], fmt: FixedPoint, exposure: bernoulli.Rate
    ) -> jax.Array:
        """uint8 [n, *shape], uint16 for formats of more than 8 bits: the bits to flip."""
        self.check(fmt)
        own = count_bits(self.bits, self.bit, fmt.bits)
        flips = bernoulli.bit_failures(keys, math.prod(shape), own, exposure, nested=self.nested)
        masks = put_bits(flips, self.bits, self.bit, fmt.bits)
        word = jnp.uint8 if fmt.bits <= 8 else jnp.uint16
        return masks.astype(word).reshape(len(keys), *shape)

    def apply(self, codes: jax.Array, fault_map: jax.Array, fmt: FixedPoint) -> jax.Array:
        """The codes with their bits flipped; again codes without any saturation."""
        return from_words(to_words(codes, fmt) ^ fault_map.astype(jnp.int32), fmt)


def to_words(codes: jax.Array, fmt: FixedPoint) -> jax.Array:
    """The words of `fmt.bits` bits that a memory holds for codes, int32."""
    if fmt.encoding == "twos_complement":
        return codes & (2**fmt.bits - 1)
    return jnp.abs(codes) | jnp.where(codes < 0, fmt.max_code + 1, 0)


def from_words(words: jax.Array, fmt: FixedPoint) -> jax.Array:
    """The codes, int32, that words of `fmt.bits` bits stand for."""
    sign = fmt.max_code + 1
    if fmt.encoding == "twos_complement":
        return (words & (sign - 1)) - (words & sign)
    magnitude = words & (sign - 1)
    return jnp.where(words & sign != 0, -magnitude, magnitude)
