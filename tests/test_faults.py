"""Fault models bit by bit against their equations, and in distribution.

Every statistical test has a fixed seed and a false-alarm rate of at most 1e-6 for each assertion.
"""

import decimal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ftnas_jax.faults import (
    HEALTHY,
    MODELS,
    STUCK_AT_0,
    STUCK_AT_1,
    MiBB,
    StuckAt,
    bernoulli,
    format_text,
    parse,
)
from ftnas_jax.fixed_point import FixedPoint

FALSE_ALARM = 1e-6
EIGHT = FixedPoint(8)
EIGHT_SIGNED = FixedPoint(8, "sign_magnitude")


def assert_rate(hits, n, rate):
    """Exact binomial test at `FALSE_ALARM`."""
    assert stats.binomtest(int(hits), int(n), rate).pvalue > FALSE_ALARM, (hits / n, rate)


def assert_counts(counts, probabilities):
    """Chi-square test of counts of independent outcomes at `FALSE_ALARM`."""
    counts, probabilities = np.ravel(counts), np.ravel(probabilities)
    expected = counts.sum() * probabilities / probabilities.sum()
    assert expected.min() >= 5, "the chi-square needs more draws"
    assert stats.chisquare(counts, expected).pvalue > FALSE_ALARM, (counts, expected)


def assert_positions(hits, rate):
    """Chi-square test at `FALSE_ALARM` that each column of `hits` [maps, positions] has `rate`."""
    maps, positions = hits.shape
    excess = (hits.sum(0) - maps * rate) ** 2 / (maps * rate * (1 - rate))
    assert stats.chi2.sf(excess.sum(), positions) > FALSE_ALARM, hits.mean(0)


def assert_independent(hits, rate):
    """Chi-square test at `FALSE_ALARM` of all patterns of the few positions of `hits`."""
    positions = hits.shape[1]
    pattern = hits @ (1 << np.arange(positions))
    number = np.array([bin(code).count("1") for code in range(2**positions)])
    counts = np.bincount(pattern, minlength=2**positions)
    assert_counts(counts, rate**number * (1 - rate) ** (positions - number))


PATHS = {"dense": 0.0, "sparse": 1.0}
every_path = pytest.mark.parametrize("path", PATHS)


def force(monkeypatch, path, chunks=None):
    """Make later traces draw failures on one path, `chunks` times for as many elements."""
    monkeypatch.setattr(bernoulli, "_SPARSE_BELOW", PATHS[path])
    if chunks is not None:
        monkeypatch.setattr(bernoulli, "_CHUNKS", chunks)


def sample(model, key, shape, *, fmt=EIGHT, macs=1):
    return model.sample(key, shape, fmt, model.exposure(macs))


def inject(model, codes, key, fmt):
    return model.apply(codes, sample(model, key, codes.shape, fmt=fmt), fmt)


def one_map(model, size, *, fmt=EIGHT, macs=1, seed=0):
    """A fault map [size] under a fresh trace."""
    draw = jax.jit(lambda key: sample(model, key, (size,), fmt=fmt, macs=macs))
    return np.asarray(draw(jax.random.key(seed)))


def many_maps(model, maps, size, *, seed=0):
    """Fault maps [maps, size] under a fresh trace."""
    draw = jax.jit(jax.vmap(lambda key: sample(model, key, (size,))))
    return np.asarray(draw(jax.random.split(jax.random.key(seed), maps)))


# Rates.


def exact_rate(p_m, macs, form):
    """Either form with 80 digits; p_m is read exactly."""
    with decimal.localcontext() as context:
        context.prec = 80
        p = decimal.Decimal(float(p_m))
        return float(min(p * macs, 1) if form == "linear" else 1 - (1 - p) ** macs)


RATES = (0.0, 1e-12, 1e-8, 1e-5, 1e-4, 1e-3, 0.04, 0.4, 0.5, 0.7, 0.99, 1 - 2**-20, 1.0)
MACS = (1, 9, 72, 720, 5000)


@pytest.mark.parametrize("form", ["compound", "linear"])
def test_mibb_rate_is_exact(form):
    for macs in MACS:
        traced = jax.jit(jax.vmap(lambda p, macs=macs: MiBB(p, form).rate(macs)))
        arrays = np.asarray(traced(jnp.array(RATES, jnp.float32)))
        for p_m, array in zip(RATES, arrays, strict=True):
            rate = MiBB(p_m, form).rate(macs)
            assert isinstance(rate, float)
            assert 0 <= rate <= 1
            assert rate == pytest.approx(exact_rate(p_m, macs, form), rel=1e-13, abs=0)
            assert 0 <= array <= 1
            expected = exact_rate(np.float32(p_m), macs, form)
            assert array == pytest.approx(expected, rel=1e-6, abs=0)


def test_mibb_forms_agree_to_first_order_and_compound_is_the_default():
    assert MiBB().rate(9) == MiBB(form="compound").rate(9) < MiBB(form="linear").rate(9)
    assert MiBB(1e-9).rate(72) == pytest.approx(MiBB(1e-9, "linear").rate(72), rel=1e-6)
    assert MiBB(0.1, "linear").rate(72) == 1.0
    assert MiBB(0.1).rate(72) < 1.0


@given(st.floats(0, 1))
@settings(deadline=None, max_examples=300)
def test_thresholds_are_exact_to_the_resolution_of_the_words(rate):
    fixed = int(bernoulli.as_rate(rate).threshold)
    assert abs(fixed / 2**32 - rate) <= 2**-32
    traced = int(bernoulli.as_rate(jnp.float32(rate)).threshold)
    assert abs(traced / 2**32 - float(np.float32(rate))) <= 2**-32


@pytest.mark.parametrize("as_rate", [float, jnp.float32], ids=["static", "traced"])
def test_rate_0_takes_no_word_and_rate_1_every_word(as_rate):
    words = jnp.array([0, 1, 2**31, 2**32 - 1], jnp.uint32)
    assert not np.any(bernoulli.below(words, bernoulli.as_rate(as_rate(0))))
    assert np.all(bernoulli.below(words, bernoulli.as_rate(as_rate(1))))


def test_integers_are_rates_too():
    assert one_map(StuckAt(1, 0), 100).tolist() == [STUCK_AT_0] * 100
    assert np.all(one_map(MiBB(1), 100))
    assert not np.any(one_map(MiBB(0), 100))


def even_words(monkeypatch):
    """Replace random words by 2^16 words spread evenly: shares of failures need no statistics."""
    words = jnp.arange(2**16, dtype=jnp.uint32) * jnp.uint32(2**16) + jnp.uint32(2**15)
    monkeypatch.setattr(bernoulli, "random_words", lambda key, shape: words.reshape(shape))


@pytest.mark.parametrize("as_rate", [float, jnp.float32], ids=["static", "traced"])
@pytest.mark.parametrize(
    ("p0", "p1"),
    [(0.01, 0.01), (0.067, 0.013), (0.02, 0), (0, 0.02), (0.4, 0.6), (0.7, 0.2), (0.1, 0.9)],
)
def test_even_words_give_each_kind_its_share(monkeypatch, p0, p1, as_rate):
    even_words(monkeypatch)
    model = StuckAt(as_rate(p0), as_rate(p1))
    states = np.asarray(sample(model, jax.random.key(0), (2**16,)))
    assert np.mean(states == STUCK_AT_0) == pytest.approx(p0, abs=2**-16)
    assert np.mean(states == STUCK_AT_1) == pytest.approx(p1, abs=2**-15)


def test_even_words_hit_the_share_of_features_that_was_asked_for(monkeypatch):
    even_words(monkeypatch)
    force(monkeypatch, "dense")
    draw = jax.jit(lambda exposure: MiBB().sample(jax.random.key(0), (2**16,), EIGHT, exposure))
    for rate in (0.0, 0.01, 0.26, 0.4, 0.5, 0.51, 0.7, 0.99, 1.0):
        for as_rate in (float, jnp.float32):
            exposure = jax.tree.map(jnp.asarray, MiBB(as_rate(rate)).exposure(1))
            assert np.mean(np.asarray(draw(exposure)) != 0) == pytest.approx(rate, abs=2**-16)


# MiBB bit by bit.


@pytest.mark.parametrize("fmt", [FixedPoint(2), EIGHT, FixedPoint(5), EIGHT_SIGNED, FixedPoint(16)])
def test_mibb_adds_the_bias_of_eq_8_and_saturates(fmt):
    high = 2 ** (fmt.bits - 1) - 1
    low = -high if fmt.encoding == "sign_magnitude" else -high - 1
    codes = np.linspace(low, high, 257).astype(np.int32)
    alpha, beta = np.meshgrid(np.arange(fmt.bits), [0, 1])
    bias = ((-1) ** beta * 2**alpha).ravel()
    places = ((-1) ** beta * (alpha + 1)).astype(np.int8).ravel()  # how a map holds them
    expected = np.array([[min(max(int(c) + int(b), low), high) for b in bias] for c in codes])
    grid = np.broadcast_to(codes[:, None], expected.shape)
    maps = np.broadcast_to(places[None], expected.shape)
    got = MiBB().apply(jnp.asarray(grid), jnp.asarray(maps), fmt)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, expected)


def test_mibb_reaches_the_sign_bit():
    fault_map = jnp.array([-8, 8, -7, 7, 0], jnp.int8)
    got = MiBB().apply(jnp.array([5, -5, 3, -3, 9], jnp.int32), fault_map, EIGHT)
    assert got.tolist() == [-123, 123, -61, 61, 9]
    from_zero = inject(MiBB(1.0), jnp.zeros(5000, jnp.int32), jax.random.key(0), EIGHT)
    assert {-128, 127} <= set(from_zero.tolist())  # +128 saturates


@every_path
@pytest.mark.parametrize("bits", [5, 16])
def test_mibb_biases_are_uniform_over_all_bits_and_both_signs(monkeypatch, path, bits):
    """Chi-square over the 2 · bits biases, false alarms at 1e-6."""
    force(monkeypatch, path)
    biases = one_map(MiBB(0.3), 2**17, fmt=FixedPoint(bits), seed=bits)
    assert biases.dtype == np.int8
    values = [sign * (alpha + 1) for sign in (1, -1) for alpha in range(bits)]
    counts = [np.sum(biases == value) for value in values]
    assert sum(counts) == np.sum(biases != 0)
    assert_counts(counts, np.full(2 * bits, 1 / (2 * bits)))


@every_path
def test_mibb_bit_and_sign_do_not_depend_on_the_place(monkeypatch, path):
    """Chi-square over 16 biases at each of 8 places, false alarms at 1e-6."""
    force(monkeypatch, path)
    biases = many_maps(MiBB(0.5), 8192, 8)
    values = np.array([sign * (alpha + 1) for sign in (1, -1) for alpha in range(8)])
    counts = (biases[:, :, None] == values).sum(0)
    table = np.concatenate([counts, (8192 - counts.sum(1))[:, None]], axis=1)
    expected = 8192 * np.array([0.5 / 16] * 16 + [0.5])
    assert stats.chi2.sf(((table - expected) ** 2 / expected).sum(), 8 * 16) > FALSE_ALARM


# MiBB in distribution, on both paths.


@every_path
@pytest.mark.parametrize("rate", [2e-4, 0.04, 0.7])
def test_mibb_hits_as_many_features_as_its_rate(monkeypatch, path, rate):
    """Binomial test of one map of 2^17 features, false alarms at 1e-6."""
    force(monkeypatch, path)
    assert_rate(np.count_nonzero(one_map(MiBB(rate), 2**17)), 2**17, rate)


def test_mibb_hits_as_many_features_as_a_traced_rate():
    """Binomial test of one map of 2^17 features for each rate, false alarms at 1e-6."""
    draw = jax.jit(lambda key, p: sample(MiBB(p), key, (2**17,)))
    for rate in (0.0, 1e-14, 2e-4, 0.003, 0.079, 0.081, 0.4, 0.7, 1.0):
        biases = np.asarray(draw(jax.random.key(1), jnp.float32(rate)))
        assert_rate(np.count_nonzero(biases), 2**17, float(np.float32(rate)))


@pytest.mark.parametrize(("p_m", "macs"), [(1e-4, 720), (1e-4, 72), (1e-3, 5000), (2e-6, 9)])
def test_mibb_rate_grows_with_the_macs(p_m, macs):
    """Binomial test of 2^18 features, false alarms at 1e-6; the path is the library's choice."""
    biases = one_map(MiBB(p_m), 2**18, macs=macs)
    assert_rate(np.count_nonzero(biases), 2**18, exact_rate(p_m, macs, "compound"))


# Sparse positions in one chunk if they fit, in chunks of the usual size, and one at a time.
CHUNKS = [("dense", None), ("sparse", 1), ("sparse", None), ("sparse", 2**30)]
every_chunk = pytest.mark.parametrize(("path", "chunks"), CHUNKS)


@every_chunk
def test_mibb_hits_places_independently(monkeypatch, path, chunks):
    """Chi-square over the 16 patterns of 4 features, false alarms at 1e-6."""
    force(monkeypatch, path, chunks)
    assert_independent(many_maps(MiBB(0.3), 20_000, 4) != 0, 0.3)


@every_chunk
def test_mibb_hits_the_last_place_as_often_as_the_first(monkeypatch, path, chunks):
    """Chi-square over places, binomial tests of both ends; false alarms at 1e-6 each."""
    rate = 0.05
    force(monkeypatch, path, chunks)
    hits = many_maps(MiBB(rate), 8192, 30) != 0
    assert_positions(hits, rate)
    assert_rate(hits[:, 0].sum(), 8192, rate)
    assert_rate(hits[:, -1].sum(), 8192, rate)
    # The number of hits of a map is binomial, not only right on average.
    counts = np.bincount(np.minimum(hits.sum(1), 5), minlength=6)
    assert_counts(
        counts, np.append(stats.binom.pmf(range(5), 30, rate), stats.binom.sf(4, 30, rate))
    )


@every_chunk
def test_mibb_gaps_are_geometric_and_blocks_alike_in_a_long_map(monkeypatch, path, chunks):
    """Chi-square over gaps and over 32 blocks of one map, false alarms at 1e-6 each."""
    size, rate = 2**17, 0.04
    force(monkeypatch, path, chunks)
    hits = one_map(MiBB(rate), size, seed=3) != 0
    edges = np.array([0, 1, 2, 3, 5, 8, 12, 18, 25, 40, 60, 100, np.inf])
    counts, _ = np.histogram(np.diff(np.flatnonzero(hits)), edges + 0.5)
    assert_counts(counts, np.diff(1 - (1 - rate) ** edges))
    in_block = hits.reshape(32, -1).sum(1)
    variance = size / 32 * rate * (1 - rate)
    excess = (in_block - size / 32 * rate) ** 2 / variance
    assert stats.chi2.sf(excess.sum(), 32) > FALSE_ALARM, in_block


def exact_gaps(words, rate):
    """The geometric distribution's inverse at (w + 1/2) / 2^32, in float64.

    The survival 1 - u is formed from integers, so that it keeps its digits near u = 1.
    """
    survival = (2**32 - words.astype(np.float64) - 0.5) / 2**32
    small = -np.log1p(-(words + 0.5) / 2**32)
    exponential = np.where(words < 2**31, small, -np.log(survival))
    return np.floor(exponential / -np.log1p(-rate)) + 1


@pytest.mark.parametrize("rate", [1e-6, 1e-3, 0.05, 0.6])
@pytest.mark.parametrize("as_rate", [float, jnp.float32], ids=["static", "traced"])
def test_gaps_follow_every_word_to_both_ends(monkeypatch, rate, as_rate):
    low = [0, 1, 2, 100, 2**16, 2**24 + 1, 2**31 - 1]
    high = [2**31, 2**32 - 2**24, 2**32 - 2**16, 2**32 - 2**10, 2**32 - 200]
    last = [2**32 - 128, 2**32 - 64, 2**32 - 2, 2**32 - 1]
    words = np.array(low + high + last, np.int64)
    fixed = jnp.asarray(words.astype(np.uint32))
    rate = as_rate(rate)
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: fixed)
    gaps = bernoulli._geometric_gaps(jax.random.key(0), len(words), bernoulli.as_rate(rate))
    # Arrays that are drawn by gaps are shorter than 2^24. Rounding in float32 may move a gap by a
    # part in 2^21, and by one at a boundary.
    gaps, exact = np.minimum(gaps, 2**24), np.minimum(exact_gaps(words, float(rate)), 2**24)
    np.testing.assert_allclose(gaps, exact, rtol=2**-21, atol=1)


def test_positions_are_exact_in_the_largest_sparse_map():
    """Odd and even places of the upper half are hit alike; binomial tests, false alarms at 1e-6."""
    size, rate = 2**24 - 1, 1e-4
    places = np.flatnonzero(one_map(MiBB(rate), size))
    assert_rate(places.size, size, rate)
    upper = places[places > 2**23]
    assert_rate(upper.size, 2**23 - 2, rate)
    assert_rate(np.sum(upper % 2), upper.size, 0.5)


@pytest.mark.parametrize("rate", [1e-30, 1e-14])
def test_hardly_ever_is_hardly_ever(rate):
    """2^20 features at 1e-14: a hit is a false alarm of 1e-8."""
    assert not np.any(one_map(MiBB(rate), 2**20))


@pytest.mark.parametrize(
    ("model", "macs"),
    [(MiBB(1e-4), 72), (MiBB(1e-3), 720), (StuckAt(0.1, 0.2), 1)],
)
def test_an_exposure_gives_the_same_map_static_and_traced(model, macs):
    known = model.exposure(macs)
    assert all(isinstance(leaf, np.generic) for leaf in jax.tree.leaves(known))
    draw = jax.jit(lambda key, exposure: model.sample(key, (5000,), EIGHT, exposure))
    traced = draw(jax.random.key(0), jax.tree.map(jnp.asarray, known))
    np.testing.assert_array_equal(traced, one_map(model, 5000, macs=macs))


@every_path
def test_mibb_rate_0_is_the_identity(monkeypatch, path):
    force(monkeypatch, path)
    assert not np.any(one_map(MiBB(0.0), 1000))
    codes = jnp.arange(-128, 128, dtype=jnp.int32)
    out = inject(MiBB(0.0), codes, jax.random.key(0), EIGHT)
    np.testing.assert_array_equal(out, codes)


@pytest.mark.parametrize("rate", [1.0, jnp.float32(1)], ids=["static", "traced"])
@pytest.mark.parametrize("form", ["compound", "linear"])
def test_mibb_rate_1_hits_everything(rate, form):
    assert np.all(one_map(MiBB(rate, form), 5000, macs=9))


jit_inject = jax.jit(inject, static_argnums=(0, 3))


@given(
    st.sampled_from([FixedPoint(2), EIGHT_SIGNED, FixedPoint(16)]),
    st.sampled_from([MiBB(1.0), StuckAt(0.4, 0.4)]),
    st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_faulty_codes_are_codes(fmt, model, seed):
    high = 2 ** (fmt.bits - 1) - 1
    low = -high - (fmt.encoding == "twos_complement")
    codes = jnp.asarray(np.linspace(low, high, 64).astype(np.int32))
    out = np.asarray(jit_inject(model, codes, jax.random.key(seed), fmt))
    assert out.dtype == np.int32
    assert out.min() >= low
    assert out.max() <= high


# Stuck-at.


def test_stuck_at_of_eq_9():
    codes = np.array([5, -5, 0, 127, -127, 1, -1], np.int32)
    for state, expected in [
        (HEALTHY, codes),
        (STUCK_AT_0, np.zeros(7)),
        (STUCK_AT_1, [127, -127, 127, 127, -127, 127, -127]),  # 0 counts as positive
    ]:
        fault_map = jnp.full(7, state, jnp.int8)
        got = StuckAt().apply(jnp.asarray(codes), fault_map, EIGHT_SIGNED)
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(got, expected)


def test_stuck_at_of_figure_3():
    """A positive 8 stuck at the bound, and a negative weight stuck at zero (l = 0, bound 127)."""
    kernel = np.array([[2, 3, 12], [0, 8, 5], [15, 9, 23]], np.int32)
    negative = np.array([[0, 0, 0], [-1, 0, 0], [0, 0, 0]], np.int32)
    states = np.zeros((3, 3), np.int8)
    states[1, 1], states[1, 0] = STUCK_AT_1, STUCK_AT_0
    got = StuckAt().apply(jnp.asarray(kernel + negative), jnp.asarray(states), EIGHT_SIGNED)
    assert got.tolist() == [[2, 3, 12], [0, 127, 5], [15, 9, 23]]
    assert EIGHT_SIGNED.max_code == 127


def eq_9(codes, theta, m, bits):
    """W' = (1 - θ) W + θ e with e = R_w sgn(W) m, in codes; sgn(0) = 1."""
    sign = np.where(codes < 0, -1, 1)
    return (1 - theta) * codes + theta * (2 ** (bits - 1) - 1) * sign * m


@pytest.mark.parametrize("fmt", [FixedPoint(2, "sign_magnitude"), EIGHT_SIGNED, EIGHT])
def test_stuck_at_against_the_equation(fmt):
    rng = np.random.default_rng(0)
    codes = rng.integers(-(2 ** (fmt.bits - 1)) + 1, 2 ** (fmt.bits - 1), 2000).astype(np.int32)
    theta, m = rng.integers(0, 2, (2, 2000))
    states = np.where(theta == 0, HEALTHY, np.where(m == 1, STUCK_AT_1, STUCK_AT_0))
    got = StuckAt().apply(jnp.asarray(codes), jnp.asarray(states.astype(np.int8)), fmt)
    np.testing.assert_array_equal(got, eq_9(codes, theta, m, fmt.bits))


SPLITS = [
    (0.01, 0.01), (0.067, 0.013), (0.05, 0.0), (0.0, 0.05), (0.4, 0.1), (0.25, 0.6), (0.3, 0.7)
]  # fmt: skip


@pytest.mark.parametrize("as_rate", [float, jnp.float32], ids=["static", "traced"])
def test_stuck_at_splits_its_faults_as_asked(as_rate):
    """Binomial tests of both kinds and of the rest in 2^18 weights, false alarms at 1e-6 each."""
    draw = jax.jit(lambda key, known: StuckAt().sample(key, (2**18,), EIGHT_SIGNED, known))
    for seed, (p0, p1) in enumerate(SPLITS):
        exposure = jax.tree.map(jnp.asarray, StuckAt(as_rate(p0), as_rate(p1)).exposure(1))
        states = np.asarray(draw(jax.random.key(seed), exposure))
        assert states.dtype == np.int8
        for state, rate in ((STUCK_AT_0, p0), (STUCK_AT_1, p1), (HEALTHY, 1 - p0 - p1)):
            assert_rate(np.sum(states == state), 2**18, min(max(rate, 0.0), 1.0))


def test_stuck_at_certain_kinds():
    for p0, p1, state in ((0.0, 0.0, HEALTHY), (1.0, 0.0, STUCK_AT_0), (0.0, 1.0, STUCK_AT_1)):
        for as_rate in (float, jnp.float32):
            assert np.all(one_map(StuckAt(as_rate(p0), as_rate(p1)), 5000) == state)
    assert HEALTHY not in one_map(StuckAt(0.9, 0.1), 5000)


def test_stuck_at_states_are_independent_of_each_other():
    """Chi-square over the 27 states of 3 weights, false alarms at 1e-6."""
    states = many_maps(StuckAt(0.3, 0.2), 20_000, 3).astype(int)
    counts = np.bincount(states @ [1, 3, 9], minlength=27)
    p = np.array([0.5, 0.3, 0.2])
    assert (HEALTHY, STUCK_AT_0, STUCK_AT_1) == (0, 1, 2)
    assert_counts(counts, np.einsum("a,b,c->abc", p, p, p))


def test_stuck_at_does_not_look_at_the_weights():
    """Binomial tests among negative, zero and positive weights, false alarms at 1e-6 each."""
    codes = np.resize(np.array([-90, -1, 0, 1, 90], np.int32), 2**17)
    out = np.asarray(jit_inject(StuckAt(0.1, 0.05), codes, jax.random.key(5), EIGHT_SIGNED))
    for value in (-90, -1, 0, 1, 90):
        now = out[codes == value]
        bound = -127 if value < 0 else 127
        assert_rate(np.sum(now == bound), now.size, 0.05)
        if value:
            assert_rate(np.sum(now == 0), now.size, 0.1)


# Both models.


@pytest.mark.parametrize("model", [MiBB(0.02), MiBB(0.3), StuckAt(0.1, 0.2)])
def test_a_map_is_a_function_of_its_key(model):
    shape = (4, 3, 5)

    def draw(key):
        return sample(model, key, shape)

    keys = jax.random.split(jax.random.key(0), 5)
    batch = np.asarray(jax.jit(jax.vmap(draw))(keys))
    assert batch.shape == (5, *shape)
    alone = jax.jit(draw)
    for key, row in zip(jax.random.split(jax.random.key(0), 5), batch, strict=True):
        np.testing.assert_array_equal(alone(key), row)
    assert len({row.tobytes() for row in batch}) == 5


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 1, 3)])
@pytest.mark.parametrize("model", [MiBB(0.01), StuckAt(0.3, 0.3)])
def test_maps_of_any_shape(model, shape):
    assert sample(model, jax.random.key(0), shape, macs=9).shape == shape


def test_one_program_serves_a_sweep_of_rates():
    codes = jnp.zeros(2**14, jnp.int32)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def share_hit(model, key):
        return (inject(model, codes + 1, key, EIGHT_SIGNED) != 1).mean()

    shares = [
        float(share_hit(StuckAt(jnp.float32(p), jnp.float32(p / 2)), jax.random.key(0)))
        for p in (0.0, 0.1, 0.3, 0.6)
    ]
    assert shares[0] == 0
    assert shares == sorted(set(shares))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def biases(model, key):
        return sample(model, key, (2**14,), macs=72)

    for p_m in (0.0, 1e-5, 1e-3, 0.7):
        hits = np.count_nonzero(biases(MiBB(jnp.float32(p_m)), jax.random.key(1)))
        assert_rate(hits, 2**14, exact_rate(np.float32(p_m), 72, "compound"))  # at 1e-6


def test_rates_under_vmap():
    """Binomial test of each rate, false alarms at 1e-6."""
    rates = np.array([0.0, 0.01, 0.5, 1.0], np.float32)
    draw = jax.jit(jax.vmap(lambda p, key: sample(MiBB(p), key, (4096,))))
    # vmap of a condition selects between a key and itself, which the check takes for a second use.
    with jax.debug_key_reuse(False):
        maps = draw(jnp.asarray(rates), jax.random.split(jax.random.key(0), 4))
    for rate, row in zip(rates, np.asarray(maps), strict=True):
        assert_rate(np.count_nonzero(row), 4096, float(rate))


def test_models_are_frozen_hashable_pytrees_of_their_rates():
    assert hash(MiBB(1e-4)) == hash(MiBB(1e-4))
    assert MiBB(1e-4) == MiBB(1e-4) != MiBB(1e-4, "linear")
    assert jax.tree.leaves(StuckAt(0.1, 0.2)) == [0.1, 0.2]
    assert jax.tree.leaves(MiBB(0.3)) == [0.3]
    halved = jax.tree.map(lambda rate: rate / 2, MiBB(0.5, "linear"))
    assert halved == MiBB(0.25, "linear")
    with pytest.raises(AttributeError):
        MiBB().p_m = 0.5


# Refusals and text.


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MiBB(-1e-9), "mibb: p_m is -1e-09; a rate lies in [0, 1]"),
        (lambda: MiBB(1.5), "mibb: p_m is 1.5; a rate lies in [0, 1]"),
        (lambda: MiBB(float("nan")), "mibb: p_m is nan; a rate lies in [0, 1]"),
        (lambda: MiBB(0.1, "cubic"), "mibb: form is 'cubic'; choose compound or linear"),
        (lambda: StuckAt(-0.1, 0.2), "stuck_at: p0 is -0.1; a rate lies in [0, 1]"),
        (lambda: StuckAt(0.1, 2), "stuck_at: p1 is 2; a rate lies in [0, 1]"),
        (lambda: StuckAt(0.6, 0.5), "stuck_at: p0 + p1 is 1.1; a rate lies in [0, 1]"),
        (lambda: parse("bit_flip"), "unknown fault model 'bit_flip'; choose from mibb, stuck_at"),
        (lambda: parse(""), "unknown fault model ''; choose from mibb, stuck_at"),
        (lambda: parse("mibb:p=1"), "mibb: cannot read 'p=1'; its fields are p_m, form"),
        (lambda: parse("mibb:p_m"), "mibb: cannot read 'p_m'; its fields are p_m, form"),
        (lambda: parse("stuck_at:0.1"), "stuck_at: cannot read '0.1'; its fields are p0, p1"),
        (lambda: parse("mibb:p_m=often"), "mibb: p_m is 'often', not a number"),
        (lambda: parse("mibb:p_m="), "mibb: p_m is '', not a number"),
        (lambda: parse("mibb:p_m=2"), "mibb: p_m is 2.0; a rate lies in [0, 1]"),
        (lambda: parse("mibb:p_m=nan"), "mibb: p_m is nan; a rate lies in [0, 1]"),
        (lambda: parse("mibb:form=cubic"), "mibb: form is 'cubic'; choose compound or linear"),
        (lambda: parse("stuck_at:p0=0.7,p1=0.7"), "stuck_at: p0 + p1 is 1.4; a rate lies in"),
    ],
)
def test_errors_say_what_is_wrong_in_one_line(build, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole text is compared below
        build()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@given(st.floats(0, 1))
@settings(deadline=None)
def test_rates_that_add_up_to_one_are_accepted(p0):
    StuckAt(p0, 1 - p0)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("mibb", MiBB()),
        ("mibb:", MiBB()),
        ("mibb:p_m=3e-4", MiBB(3e-4)),
        (" mibb:p_m = 0.5 , form = linear ", MiBB(0.5, "linear")),
        ("stuck_at", StuckAt(0.067, 0.013)),
        ("stuck_at:p1=0.02", StuckAt(p1=0.02)),
        ("stuck_at:p0=1,p1=0", StuckAt(1.0, 0.0)),
    ],
)
def test_text_is_read(text, model):
    assert parse(text) == model


rates = st.floats(0, 1)
models = st.one_of(
    st.builds(MiBB, rates, st.sampled_from(["compound", "linear"])),
    st.builds(lambda p0, share: StuckAt(p0, (1 - p0) * share), rates, rates),
)


@given(models)
def test_text_round_trip(model):
    text = format_text(model)
    assert parse(text) == model
    assert text.partition(":")[0] in MODELS
    assert format_text(parse(text)) == text


def test_text_names_the_papers_symbols():
    assert format_text(StuckAt()) == "stuck_at:p0=0.067,p1=0.013"
    assert format_text(MiBB(1e-4, "linear")) == "mibb:p_m=0.0001,form=linear"
