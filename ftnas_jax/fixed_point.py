"""Dynamic fixed point (§2.2): integer codes times a power of two, one per tensor.

A tensor x is held as integer codes c with x = c · 2^-l. The fraction length l may be negative.

The paper's Eqs. 2 to 4 count magnitude bits only and do not agree with each other (Fig. 3 uses
Q = 6 for the bound 127). Here `bits` counts every bit of the code, the sign included, so 8 bits
hold -128..127 in two's complement and -127..127 in sign-magnitude.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ftnas_jax.split_batch import Axis, largest_of_parts

MIN_BITS, MAX_BITS = 2, 16
_MAX_SHIFT = 120  # keeps 2^l and 2^-l normal float32 numbers
_MANTISSA_BITS, _EXPONENT_BIAS = 23, 127  # of float32

Encoding = Literal["twos_complement", "sign_magnitude"]


@dataclasses.dataclass(frozen=True)
class FixedPoint:
    """A fixed-point format.

    Attributes:
        bits: width of a code in bits, its sign included, 2..16.
        encoding: `twos_complement` (features, CMOS; Eqs. 2 and 4) with codes in
            [-2^(bits-1), 2^(bits-1) - 1], or `sign_magnitude` (weights held by a positive and a
            negative RRAM crossbar; Eq. 3) with codes in ±(2^(bits-1) - 1).
    """

    bits: int = 8
    encoding: Encoding = "twos_complement"

    def __post_init__(self):
        if not isinstance(self.bits, int) or not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"bits is {self.bits!r}; a code has {MIN_BITS} to {MAX_BITS} bits")
        if self.encoding not in ("twos_complement", "sign_magnitude"):
            raise ValueError(
                f"encoding is {self.encoding!r}; choose twos_complement or sign_magnitude"
            )

    @property
    def max_code(self) -> int:
        """The largest code; times 2^-l it is the bound R of Eqs. 2 to 4."""
        return 2 ** (self.bits - 1) - 1

    @property
    def min_code(self) -> int:
        """The smallest code."""
        return -self.max_code - (self.encoding == "twos_complement")


def fraction_length(x: jax.Array, fmt: FixedPoint, batch_axis: Axis = None) -> jax.Array:
    """The largest l for which no element of `x` overflows (minimal overflow, §5.1).

    An element overflows where x · 2^l, rounded half to even, is not a code. Elements that are not
    finite have no say. A tensor without any finite, nonzero element gets l = bits - 1, the format
    of [-1, 1). l is kept within ±120 (and above bits - 128), so tensors smaller than about 2^-120
    lose resolution, and elements beyond the largest code times 2^120 saturate.

    Args:
        x: float32 of any shape, at least one element.
        fmt: the format.
        batch_axis: mesh axis over which `x` is split.

    Returns:
        int32 scalar.
    """
    return length_for_range(*_finite_range(x, batch_axis), fmt)


def length_for_range(high: jax.Array, low: jax.Array, fmt: FixedPoint) -> jax.Array:
    """The `fraction_length` of a tensor that reaches from `low` to `high`.

    Args:
        high: float32, finite, at least 0.
        low: float32 like `high`, finite, at most 0.
        fmt: the format.

    Returns:
        int32 like `high`.
    """
    # Positive floats are ordered like their bits, and times 2^l adds l to their exponent. Rounded
    # half to even, x stays a code below max_code + 1/2, from where max_code + 1 is nearest, and
    # above min_code - 1/2; on that, too, where min_code is even.
    top, bottom = np.array([fmt.max_code + 0.5, 0.5 - fmt.min_code], np.float32).view(np.int32)
    to_high = jnp.int32(top - 1) - _as_bits(high)
    to_low = jnp.int32(bottom - fmt.min_code % 2) - _as_bits(low)
    fits = jnp.minimum(to_high, to_low) >> _MANTISSA_BITS
    lowest = max(-_MAX_SHIFT, fmt.bits - 128)  # code · 2^-l stays a finite float32
    best = jnp.clip(fits, lowest, _MAX_SHIFT)
    empty = (high == 0) & (low == 0)
    return jnp.where(empty, jnp.int32(fmt.bits - 1), best)


def _as_bits(x: jax.Array) -> jax.Array:
    """The magnitude of a float32 as an integer; that of -0 is 0 too."""
    return jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32)


def _finite_range(x: jax.Array, batch_axis: Axis) -> tuple[jax.Array, jax.Array]:
    """Largest and smallest of 0 and the finite elements."""

    def over_batch(high, low):
        return largest_of_parts(high, batch_axis), -largest_of_parts(-low, batch_axis)

    high, low = over_batch(jnp.max(x, initial=0.0), jnp.min(x, initial=0.0))

    def masked():
        finite = jnp.isfinite(x)
        largest = jnp.max(x, initial=0.0, where=finite)
        return over_batch(largest, jnp.min(x, initial=0.0, where=finite))

    # The mask costs four times as much as the plain reduction, and is hardly ever needed.
    return jax.lax.cond(jnp.isfinite(high) & jnp.isfinite(low), lambda: (high, low), masked)


def to_codes(x: jax.Array, length: jax.Array, fmt: FixedPoint) -> jax.Array:
    """Nearest codes, ties to even, saturated at the ends of the format.

    Infinities saturate and NaN becomes 0, as in the usual float to integer conversions of
    hardware; a caller that must notice a diverged computation checks for NaN before.

    Args:
        x: float32 [...].
        length: int32, broadcastable to `x`; the fraction length.

    Returns:
        int32 [...].
    """
    scaled = jnp.round(x * power_of_two(length))
    scaled = jnp.where(jnp.isnan(scaled), 0.0, scaled)
    return jnp.clip(scaled, fmt.min_code, fmt.max_code).astype(jnp.int32)


def from_codes(codes: jax.Array, length: jax.Array) -> jax.Array:
    """The float32 values codes · 2^-l, exact."""
    return codes.astype(jnp.float32) * power_of_two(-length)


def saturate(codes: jax.Array, fmt: FixedPoint) -> jax.Array:
    """Codes (int32, maybe out of range) moved to the nearest code of the format."""
    return jnp.clip(codes, fmt.min_code, fmt.max_code)


def quantize(x: jax.Array, fmt: FixedPoint, length: jax.Array | None = None) -> jax.Array:
    """Round `x` to the format; the gradient passes straight through.

    Args:
        x: float32 [...].
        length: int32 fraction length; by default that of `x` (minimal overflow).

    Returns:
        float32 [...], every element a code times 2^-length.
    """
    length = fraction_length(jax.lax.stop_gradient(x), fmt) if length is None else length
    return straight_through(x, from_codes(to_codes(x, length, fmt), length))


@jax.custom_jvp
def straight_through(x: jax.Array, value: jax.Array) -> jax.Array:
    """`value` in the forward pass, the gradient of `x` in the backward pass."""
    del x
    return value


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return primals[1], tangents[0]


def power_of_two(exponent: jax.Array) -> jax.Array:
    """float32 2^exponent, exact, of an int32 from -126 to 127."""
    biased = jnp.asarray(exponent, jnp.int32) + jnp.int32(_EXPONENT_BIAS)
    return jax.lax.bitcast_convert_type(biased << jnp.int32(_MANTISSA_BITS), jnp.float32)
