"""Which bits of a code may fail: given as text, or one of them chosen by a number."""

import numbers
import re

import jax
import jax.numpy as jnp

_TEXT = re.compile(r"(\d+)(?:-(\d+))?")

Bit = int | jax.Array | None
"""The one bit that may fail, int32 where it is traced; None for all that a text names."""


def check_text(model: str, bits: str) -> None:
    """Raise ValueError where a text is neither `all`, nor one bit as `7`, nor a range as `0-6`."""
    found = _TEXT.fullmatch(bits)
    if bits != "all" and not (found and int(found[1]) <= int(found[2] or found[1])):
        raise ValueError(f"{model}: bits is {bits!r}; give all, or as in 7 or 0-6")


def check_bits(model: str, bits: str, bit: Bit, holder: str, count: int) -> None:
    """Raise ValueError where a code or magnitude (`holder`) of `count` bits has fewer."""
    if bit is None:
        given, wrong = f"bits is {bits!r}", _range(bits, count).stop > count
    else:
        given = f"bit is {bit}"
        wrong = isinstance(bit, numbers.Integral) and not 0 <= int(bit) < count
    if wrong:
        raise ValueError(f"{model}: {given}; a {holder} of {count} bits has 0-{count - 1}")


def count_bits(bits: str, bit: Bit, count: int) -> int:
    """How many of `count` bits may fail."""
    return 1 if bit is not None else len(_range(bits, count))


def put_bits(found: jax.Array, bits: str, bit: Bit, count: int) -> jax.Array:
    """Words [...] in which the bits that may fail are `found`, int32 [..., count_bits] of 0 or 1.

    A traced `bit` that is none of the `count` leaves the words 0.
    """
    if bit is None:
        places = jnp.array(_range(bits, count), jnp.int32)
    else:
        places = jnp.asarray(bit, jnp.int32)[None]
    places = places.reshape((1,) * (found.ndim - 1) + (-1,))
    words = jnp.sum(jnp.left_shift(found, places), -1)
    return words & (2**count - 1)


def _range(bits: str, count: int) -> range:
    if bits == "all":
        return range(count)
    ends = [int(end) for end in bits.split("-")]
    return range(ends[0], ends[-1] + 1)
