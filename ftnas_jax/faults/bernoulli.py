"""Exact random choices at given rates.

A position fails where a uniform 32-bit word lies below rate · 2^32. Rates are exact to 2^-32 for
Python numbers and to float32 precision for arrays, over all of [0, 1].

Where few positions fail, only those are drawn: the gaps between failures of independent trials are
geometric. Both ways have the same distribution; which is cheaper is decided while tracing.
"""

import math

import jax
import jax.numpy as jnp

_WORDS = 2**32
_SPARSE_BELOW = 0.06
"""Rates under which drawing the failing positions beats a word for each position (on CPU)."""


def random_words(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform uint32 of `shape`. Consumes `key`.

    The same numbers as a draw of that shape, but XLA compiles a flat draw many times faster (CPU).
    """
    return jax.random.bits(key, (math.prod(shape),), jnp.uint32).reshape(shape)


def word_threshold(rate) -> jax.Array:
    """uint32 t such that a uniform word w has P(w < t) = rate; rate 1 gives 2^32 - 1.

    The one word that rate 1 would miss is dealt with by `below`.
    """
    if isinstance(rate, (int, float)):
        return jnp.uint32(min(round(rate * _WORDS), _WORDS - 1))
    rate = jnp.asarray(rate, jnp.float32)
    # The largest float32 below 1 still fits after scaling.
    scaled = jnp.minimum(rate, jnp.float32(1 - 2**-24)) * jnp.float32(_WORDS)
    return jnp.where(rate >= 1, jnp.uint32(_WORDS - 1), scaled.astype(jnp.uint32))


def below(words: jax.Array, rate) -> jax.Array:
    """Bool array: which uniform uint32 `words` mean a failure at `rate`."""
    certain = rate >= 1
    return (words < word_threshold(rate)) | certain


def is_sparse(rate, size: int) -> bool:
    """Whether to draw only the failing positions; needs a rate that is known while tracing."""
    return isinstance(rate, (int, float)) and rate < _SPARSE_BELOW and size > 1


def scatter_failures(key: jax.Array, size: int, rate: float, values) -> jax.Array:
    """Zeros with `values(key, n)` at the positions of independent failures at `rate`.

    Positions are drawn in chunks of a static number that is seldom exceeded; a loop draws more
    when a chunk ends before the array does, so the distribution has no cut tail. Consumes `key`.

    Args:
        key: typed key.
        size: number of positions.
        rate: probability of a failure, a Python number in [0, 1).
        values: (key, n) → int32 [n], the value at a failing position.

    Returns:
        int32 [size].
    """
    if rate == 0:
        return jnp.zeros(size, jnp.int32)
    chunk = _chunk_size(size, rate)

    def unfinished(state):
        return state[0] < size

    def draw(state):
        last, turn, out = state
        gap_key, value_key = jax.random.split(jax.random.fold_in(key, turn))
        positions = last + jnp.cumsum(_geometric_gaps(gap_key, chunk, rate, size))
        # Positions behind the end are dropped: they belong to no element.
        out = out.at[positions - 1].set(values(value_key, chunk), mode="drop", unique_indices=True)
        return positions[-1], turn + 1, out

    start = (jnp.int32(0), jnp.int32(0), jnp.zeros(size, jnp.int32))
    return jax.lax.while_loop(unfinished, draw, start)[2]


def _chunk_size(size: int, rate: float) -> int:
    """Expected failures and six standard deviations: a second chunk is a rare event."""
    mean = size * rate
    return max(1, min(size, math.ceil(mean + 6 * math.sqrt(mean) + 8)))


def _geometric_gaps(key: jax.Array, count: int, rate: float, size: int) -> jax.Array:
    """int32 [count] distances from one failure to the next, P(gap = g) = rate (1 - rate)^(g-1).

    A gap over `size` cannot be told from one of `size`: both end behind the last position. It is
    cut there (plus one), so that sums stay within int32.
    """
    words = jax.random.bits(key, (count,), jnp.uint32)
    # -log of a uniform number, with its resolution where it matters: at small gaps.
    uniform = (words.astype(jnp.float32) + jnp.float32(0.5)) * jnp.float32(1 / _WORDS)
    exponential = -jnp.log1p(-uniform)
    gaps = jnp.floor(exponential * jnp.float32(-1 / math.log1p(-rate)))
    # uniform may round to 1 and its logarithm to infinity; the cut covers that too.
    return jnp.minimum(gaps, jnp.float32(size)).astype(jnp.int32) + 1
