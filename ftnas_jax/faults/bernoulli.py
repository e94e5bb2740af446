"""Exact random choices at given rates.

A position fails where a uniform 32-bit word lies below rate · 2^32: rates are exact to 2^-32 for
Python numbers (and to 2^-25 next to 1) and to float32 precision for arrays, over all of [0, 1].

Where few positions fail, only those are drawn: the gaps between failures of independent trials are
geometric. Both ways have the same distribution.
"""

import math
import numbers
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_WORDS = 2**32
_SPARSE_BELOW = 0.08
"""Rates under which drawing the failing positions beats a word for each position (on CPU)."""

_CHUNKS = 32
"""Positions drawn at a time: one for as many elements."""

_EXACT_FLOAT = 2**24
"""Sums of whole numbers are exact in float32 up to here."""


Values = Callable[[jax.Array], jax.Array] | None
"""Values of failures: uniform uint32 words → int8, element by element; None for 1."""


class Rate(NamedTuple):
    """A probability and what the samplers need of it; NumPy scalars where it is known.

    Attributes:
        p: float32 in [0, 1].
        threshold: uint32 t such that a uniform word lies below it with probability p; for p = 1,
            which no t gives, see `below`.
        gap_scale: float32 -1 / log(1 - p), the mean gap between failures in units of log.
    """

    p: jax.Array | np.float32
    threshold: jax.Array | np.uint32
    gap_scale: jax.Array | np.float32


def as_rate(p) -> Rate:
    """The rate of a Python number, computed in float64, or of a float32 array."""
    if isinstance(p, numbers.Real):
        p = float(p)
        threshold = np.uint32(min(round(p * _WORDS), _WORDS - 1))
        scale = -1 / math.log1p(-p) if 0 < p < 1 else 0.0
        # Above 0 the mean gap is cut where it exceeds any array.
        scale = min(scale, 1e30) if p > 0 else 1e30
        return Rate(np.float32(p), threshold, np.float32(scale))
    p = jnp.asarray(p, jnp.float32)
    # The largest float32 below 1 still fits after scaling.
    scaled = jnp.minimum(p, jnp.float32(1 - 2**-24)) * jnp.float32(_WORDS)
    threshold = jnp.where(p >= 1, jnp.uint32(_WORDS - 1), scaled.astype(jnp.uint32))
    scale = jnp.where(p > 0, jnp.minimum(-1 / jnp.log1p(-p), jnp.float32(1e30)), jnp.float32(1e30))
    return Rate(p, threshold, scale)


def random_words(keys: jax.Array, size: int) -> jax.Array:
    """Uniform uint32 [n, size], a row for each of the keys [n]. Consumes `keys`.

    XLA compiles flat draws many times faster than shaped ones (CPU).
    """
    return jax.vmap(lambda key: jax.random.bits(key, (size,), jnp.uint32))(keys)


def below(words: jax.Array, rate: Rate) -> jax.Array:
    """Bool array: which uniform uint32 `words` mean a failure."""
    return (words < jnp.asarray(rate.threshold)) | jnp.asarray(rate.p >= 1)


def failures(
    keys: jax.Array, size: int, rate: Rate, values: Values = None, *, nested: bool = False
) -> jax.Array:
    """Zeros with values at the positions of independent failures. Consumes `keys`.

    The cheaper sampler is chosen while tracing where the rate is known, else when it runs; a rate
    gives the same failures either way. A row depends on its key alone.

    Args:
        keys: typed keys [n].
        size: number of positions.
        rate: probability of a failure, scalar.
        values: what a failing position holds, by default 1.
        nested: whether the failures of a key at a rate must be among those at any higher rate,
            with the same values: only a word for each position does that.

    Returns:
        int8 [n, size].
    """

    def sparse():
        return _sparse_failures(keys, size, rate, values)

    def dense():
        words, drawn = _words_and_values(keys, size, values)
        return jnp.where(below(words, rate), drawn, jnp.int8(0))

    # Not by the number of keys: a row must not depend on those drawn with it.
    if nested or size >= _EXACT_FLOAT:
        return dense()
    if isinstance(rate.p, np.generic):
        return sparse() if rate.p < _SPARSE_BELOW else dense()
    return jax.lax.cond(rate.p < _SPARSE_BELOW, sparse, dense)


def bit_failures(
    keys: jax.Array,
    size: int,
    bits: int,
    rate: Rate,
    values: Values = None,
    *,
    nested: bool = False,
) -> jax.Array:
    """`failures` of every bit of `size` codes on its own: int32 [n, size, bits]."""
    found = failures(keys, size * bits, rate, values, nested=nested)
    return found.reshape(len(keys), size, bits).astype(jnp.int32)


def _words_and_values(keys: jax.Array, size: int, values: Values):
    """Words that say what fails, uint32 [n, size], and the values there, int8 as many; 1 for all.

    They are halves of one draw, since every draw takes long to compile.
    """
    if values is None:
        return random_words(keys, size), jnp.int8(1)
    words = random_words(keys, 2 * size)
    return words[:, :size], values(words[:, size:])


def _sparse_failures(keys, size: int, rate: Rate, values: Values) -> jax.Array:
    """Draws chunks of positions until one lies behind every row, so no tail is cut."""
    chunk, rows = max(1, size // _CHUNKS), len(keys)

    def unfinished(state):
        return jnp.any(state[0] < size)

    def draw(state):
        last, turn, out = state
        own = jax.vmap(lambda key: jax.random.fold_in(key, turn))(keys)
        words, drawn = _words_and_values(own, chunk, values)
        gaps = _geometric_gaps(words, rate)
        # float32 sums are exact up to `size`; larger ones need only stay behind the row.
        ends = last[:, None].astype(jnp.float32) + jnp.cumsum(gaps, 1)
        positions = jnp.minimum(ends, jnp.float32(size + 1)).astype(jnp.int32)
        out = out.at[jnp.arange(rows)[:, None], positions - 1].set(drawn, mode="drop")
        return positions[:, -1], turn + 1, out

    start = (jnp.zeros(rows, jnp.int32), jnp.int32(0), jnp.zeros((rows, size), jnp.int8))
    return jax.lax.while_loop(unfinished, draw, start)[2]


def _geometric_gaps(words: jax.Array, rate: Rate) -> jax.Array:
    """Distances from one failure to the next, P(gap = g) = p (1 - p)^(g-1), by uniform words.

    float32, as large as uint32 `words`.
    """
    # -log(1 - u) of a uniform u, from the end that u is near to: 1 - u is exact in float32 at
    # both, and never 0.
    near = (jnp.minimum(words, ~words).astype(jnp.float32) + jnp.float32(0.5)) * jnp.float32(
        1 / _WORDS
    )
    exponential = jnp.where(words < jnp.uint32(_WORDS // 2), -jnp.log1p(-near), -jnp.log(near))
    return jnp.floor(exponential * jnp.asarray(rate.gap_scale)) + 1
