"""Fixed point against exact rational arithmetic, written from the definition of a code."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftnas_jax.fixed_point import (
    FixedPoint,
    fraction_length,
    from_codes,
    quantize,
    saturate,
    straight_through,
    to_codes,
)

ENCODINGS = ("twos_complement", "sign_magnitude")
FORMATS = [FixedPoint(bits, encoding) for bits in range(2, 17) for encoding in ENCODINGS]
EIGHT = FixedPoint(8)
EIGHT_SIGNED = FixedPoint(8, "sign_magnitude")
LONGEST = 120  # lengths are kept within ±120

every_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f"{f.encoding}-{f.bits}")

jit_length = jax.jit(fraction_length, static_argnums=1)
jit_codes = jax.jit(to_codes, static_argnums=2)
jit_quantize = jax.jit(quantize, static_argnums=1)


@functools.partial(jax.jit, static_argnums=1)
def by_row(rows, fmt):
    """Lengths [T]; codes [3, T, 4], the fraction 0, 1 and 3 bits longer; quantized rows [T, 4]."""
    lengths = jax.vmap(lambda row: fraction_length(row, fmt))(rows)
    y = jax.vmap(lambda row: quantize(row, fmt))(rows)
    shifted = jnp.array([0, 1, 3])[:, None] + lengths[None, :]
    return lengths, to_codes(rows[None], jnp.minimum(shifted, LONGEST)[:, :, None], fmt), y


@functools.partial(jax.jit, static_argnums=2)
def quantize_every_way(x, length, fmt):
    """Own length; codes with it and with `length`; quantized once, twice, and with `length`."""
    own = fraction_length(x, fmt)
    once = quantize(x, fmt)
    codes = to_codes(x, own, fmt), to_codes(x, length, fmt)
    return own, codes, once, quantize(once, fmt), quantize(x, fmt, length)


def code_range(fmt):
    """Smallest and largest code: `bits` bits with the sign among them."""
    largest = 2 ** (fmt.bits - 1) - 1
    return (-largest if fmt.encoding == "sign_magnitude" else -largest - 1), largest


def rounded(value, length):
    """value · 2^length to the nearest integer, ties to even, by exact arithmetic."""
    return round(Fraction(float(value)) * Fraction(2) ** int(length))


def oracle_code(value, length, fmt):
    low, high = code_range(fmt)
    return min(max(rounded(value, length), low), high)


def fits(values, length, fmt):
    """Whether no finite element of `values` overflows with this fraction length."""
    low, high = code_range(fmt)
    return all(low <= rounded(v, length) <= high for v in values if np.isfinite(v))


def array(*values):
    return jnp.asarray(np.array(values, np.float32))


def table(rows):
    """float32 [256, 4]: the rows, and zeros where there is nothing; one shape compiles once."""
    out = np.zeros((256, 4), np.float32)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out


def tensors(fmt):
    """float32 [256, 4]: tensors at and beside every edge of the format, and ordinary ones."""
    low, high = code_range(fmt)
    rows = [[s * c] for s in (1, -1) for c in (0.3, 1.0, 127.5, 128.5, 1e30, 1e-30)]
    for exponent in (-60, -3, -1, 0, 1, 4, 60):
        rows += [[sign * 2.0**exponent] for sign in (1, -1)]
        for edge in (low - 0.5, low, low + 0.5, high - 0.5, high, high + 0.5):
            at = np.float32(edge * 2.0**exponent)
            beside = (at, np.nextafter(at, np.float32(np.inf)), np.nextafter(at, -np.float32(1e38)))
            rows += [[value] for value in beside]
            rows.append([edge * 2.0**exponent, -edge * 2.0**exponent, 2.0**exponent])
    rng = np.random.default_rng(fmt.bits)
    rows += list(rng.normal(size=(40, 4)) * 2.0 ** rng.integers(-40, 40, size=(40, 1)))
    rows += [[2.0**-126, -(2.0**-125)], [2.0**-119], [2.0**-110, -(2.0**-112)]]
    return table(rows)


@every_format
def test_codes_span_the_bits(fmt):
    assert (fmt.min_code, fmt.max_code) == code_range(fmt)
    patterns = 2**fmt.bits - (fmt.encoding == "sign_magnitude")  # it has two zeros
    assert fmt.max_code - fmt.min_code + 1 == patterns


@pytest.mark.parametrize("bits", [1, 17, 0, -8, 8.0, "8", None])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(ValueError, match="bits is") as error:
        FixedPoint(bits)
    assert "\n" not in str(error.value)


def test_an_unknown_encoding_is_refused():
    with pytest.raises(ValueError, match="encoding is 'ones_complement'") as error:
        FixedPoint(8, "ones_complement")
    assert "\n" not in str(error.value)


@every_format
def test_length_is_the_largest_without_overflow_and_codes_are_nearest(fmt):
    rows = tensors(fmt)
    lengths, codes, _ = jax.tree.map(np.asarray, by_row(jnp.asarray(rows), fmt))
    for row, length in zip(rows, lengths, strict=True):
        if not row.any():
            assert length == fmt.bits - 1
            continue
        assert length <= LONGEST
        assert fits(row, length, fmt), (row, length)
        assert length == LONGEST or not fits(row, length + 1, fmt), (row, length)
    assert codes.dtype == np.int32
    for shift, got in zip((0, 1, 3), codes, strict=True):  # a longer fraction saturates
        at = np.minimum(lengths + shift, LONGEST)
        expected = [[oracle_code(v, n, fmt) for v in row] for row, n in zip(rows, at, strict=True)]
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("values", "fmt", "length", "codes"),
    [
        ([127.0], EIGHT, 0, [127]),
        ([127.49], EIGHT, 0, [127]),
        ([127.5], EIGHT, -1, [64]),  # would round to the even 128; 63.75 rounds to 64
        ([-128.0], EIGHT, 0, [-128]),
        ([-128.5], EIGHT, 0, [-128]),  # rounds to the even -128
        ([-128.51], EIGHT, -1, [-64]),
        ([-127.5], EIGHT_SIGNED, -1, [-64]),
        ([-128.0], EIGHT_SIGNED, -1, [-64]),
        ([1.0], EIGHT, 6, [64]),
        ([-1.0], EIGHT, 7, [-128]),
        ([-1.0], EIGHT_SIGNED, 6, [-64]),
        ([-1.0, 1.0], EIGHT, 6, [-64, 64]),
        ([100.0, 0.5, 1.5, 2.5, -0.5, -1.5], EIGHT, 0, [100, 0, 2, 2, 0, -2]),
        ([1.0], FixedPoint(2), 0, [1]),
        ([-1.0], FixedPoint(2), 1, [-2]),
        ([1.49], FixedPoint(2), 0, [1]),
        ([1.5], FixedPoint(2), -1, [1]),
        ([32767.0, -32768.0], FixedPoint(16), 0, [32767, -32768]),
    ],
)
def test_length_and_codes_at_hand_checked_edges(values, fmt, length, codes):
    x = jnp.asarray(np.array(values + [0.0] * (6 - len(values)), np.float32))
    assert int(jit_length(x, fmt)) == length
    assert jit_codes(x, jnp.int32(length), fmt).tolist() == codes + [0] * (6 - len(codes))


@pytest.mark.parametrize(
    "values", [[0.0], [0.0, -0.0], [np.nan], [np.inf, -np.inf], [np.nan, 0.0, np.inf]]
)
@pytest.mark.parametrize("fmt", [EIGHT, EIGHT_SIGNED, FixedPoint(2), FixedPoint(16)])
def test_length_without_a_finite_nonzero_element(values, fmt):
    assert int(jit_length(array(*values), fmt)) == fmt.bits - 1


@pytest.mark.parametrize("other", [np.nan, np.inf, -np.inf])
def test_elements_that_are_not_finite_have_no_say(other):
    x = array(3.0, -5.5, 0.25)
    spoiled = array(3.0, -5.5, 0.25, other)
    assert int(jit_length(spoiled, EIGHT)) == int(jit_length(x, EIGHT)) == 4
    np.testing.assert_array_equal(jit_quantize(spoiled, EIGHT)[:3], jit_quantize(x, EIGHT))


def test_infinities_saturate_and_nan_becomes_zero():
    for fmt in (EIGHT, EIGHT_SIGNED):
        codes = to_codes(array(np.nan, np.inf, -np.inf, 3e38, -3e38), jnp.int32(4), fmt)
        low, high = code_range(fmt)
        assert codes.tolist() == [0, high, low, high, low]


@pytest.mark.parametrize("values", [[1e-40], [-1e-45], [1e-40, -1e-42]])
def test_subnormals_alone_are_zero(values):
    x = array(*values)
    assert int(jit_length(x, EIGHT)) in (7, LONGEST)  # a machine may flush them to zero
    assert not np.any(jit_quantize(x, EIGHT))


def test_subnormals_do_not_disturb_normal_numbers():
    assert int(jit_length(array(1e-40, 1.0), EIGHT)) == 6
    assert jit_quantize(array(1e-40, 1.0), EIGHT).tolist() == [0.0, 1.0]


@every_format
def test_huge_values_stay_finite(fmt):
    largest = np.finfo(np.float32).max
    rows = table([[v, -w] for v in (largest, 0.0) for w in (largest, 0.0)] + [[2.0**126]])
    y = np.asarray(by_row(jnp.asarray(rows), fmt)[2])
    assert np.all(np.isfinite(y))
    np.testing.assert_array_equal(np.sign(y), np.sign(rows))


@every_format
def test_codes_to_values_and_back_are_exact(fmt):
    low, high = code_range(fmt)
    codes = np.resize(np.arange(low, high + 1, dtype=np.int32), 2**16)
    for length in (-100, -7, -1, 0, 1, 7, 100):
        values = from_codes(jnp.asarray(codes), jnp.int32(length))
        assert values.dtype == jnp.float32
        np.testing.assert_array_equal(np.asarray(values, np.float64), codes * 2.0**-length)
        np.testing.assert_array_equal(jit_codes(values, jnp.int32(length), fmt), codes)


def test_eight_bit_values_are_exact_in_bfloat16():
    codes = jnp.arange(-128, 128, dtype=jnp.int32)
    for length in range(-LONGEST, LONGEST + 1, 8):
        values = from_codes(codes, jnp.int32(length))
        narrow = values.astype(jnp.bfloat16)
        np.testing.assert_array_equal(np.asarray(narrow.astype(jnp.float32)), np.asarray(values))


@every_format
def test_saturate_moves_to_the_nearest_code(fmt):
    low, high = code_range(fmt)
    codes = [low - 2**fmt.bits, low - 1, low, 0, high, high + 1, high + 2**fmt.bits]
    got = saturate(jnp.asarray(np.array(codes, np.int32)), fmt)
    assert got.tolist() == [low, low, low, 0, high, high, high]


some_formats = st.sampled_from([f for f in FORMATS if f.bits in (2, 8, 13)])
ordinary = st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda v: v == 0 or abs(v) > 2.0**-100)
rows_of_5 = st.lists(ordinary, min_size=5, max_size=5)
anything = st.lists(st.floats(width=32), min_size=5, max_size=5)


@given(some_formats, anything, st.integers(-LONGEST, LONGEST))
@settings(deadline=None, max_examples=150)
def test_codes_stay_in_range_whatever_comes(fmt, values, length):
    low, high = code_range(fmt)
    _, both, *_ = quantize_every_way(array(*values), jnp.int32(length), fmt)
    for codes in map(np.asarray, both):
        assert codes.min() >= low
        assert codes.max() <= high


@given(some_formats, rows_of_5)
@settings(deadline=None, max_examples=150)
def test_quantize_is_idempotent_and_off_by_half_a_step_at_most(fmt, values):
    own, _, once, twice, _ = quantize_every_way(array(*values), jnp.int32(0), fmt)
    half_a_step = Fraction(2) ** (-int(own) - 1)
    for before, after in zip(array(*values).tolist(), once.tolist(), strict=True):
        assert abs(Fraction(after) - Fraction(before)) <= half_a_step
    np.testing.assert_array_equal(twice, once)


@given(some_formats, rows_of_5, st.integers(-20, 20))
@settings(deadline=None, max_examples=150)
def test_quantize_keeps_the_order_with_a_given_length(fmt, values, length):
    *_, y = quantize_every_way(array(*sorted(values)), jnp.int32(length), fmt)
    assert np.all(np.diff(np.asarray(y, np.float64)) >= 0)


def test_quantize_with_its_own_length_and_with_that_length_given_agree():
    x = array(0.7, -1.3, 2.6)
    given_length = jit_quantize(x, EIGHT, jit_length(x, EIGHT))
    np.testing.assert_array_equal(jit_quantize(x, EIGHT), given_length)


def test_a_frozen_length_saturates():
    y = quantize(array(0.5, 3.0, -3.0), EIGHT, jnp.int32(7))
    assert y.tolist() == [0.5, 127 / 128, -1.0]


@pytest.mark.parametrize("length", [None, 12, -2])
def test_the_gradient_is_the_identity(length):
    x = array(0.3, -4.0, 2.51, 0.0, 1e-9)  # with 12 the large ones saturate, with -2 all vanish
    given_length = None if length is None else jnp.int32(length)
    weights = array(1.5, -2.0, 1e-6, 3e4, 0.1)
    tangent = array(-1.0, 2.0, 0.25, 1e-3, 7.0)

    def function(x):
        return quantize(x, EIGHT, given_length)

    np.testing.assert_array_equal(jax.jit(jax.vjp(function, x)[1])(weights)[0], weights)
    np.testing.assert_array_equal(jax.jit(function)(x), function(x))
    value, moved = jax.jvp(function, (x,), (tangent,))
    np.testing.assert_array_equal(value, function(x))
    np.testing.assert_array_equal(moved, tangent)


def test_straight_through_takes_value_from_one_and_gradient_from_the_other():
    x, value = array(1.0, 2.0), array(10.0, -20.0)
    np.testing.assert_array_equal(straight_through(x, value), value)
    by_x, by_value = jax.grad(lambda x, v: (straight_through(x, v) ** 2).sum(), (0, 1))(x, value)
    np.testing.assert_array_equal(by_x, 2 * value)
    np.testing.assert_array_equal(by_value, jnp.zeros(2))


def test_rows_under_vmap_have_their_own_length():
    rng = np.random.default_rng(3)
    rows = (rng.normal(size=(6, 5)) * 2.0 ** np.arange(6)[:, None]).astype(np.float32)
    lengths = [int(jit_length(row, EIGHT)) for row in jnp.asarray(rows)]
    assert len(set(lengths)) > 1

    def value_and_gradient(row):
        y, vjp = jax.vjp(lambda r: quantize(r, EIGHT), row)
        return y, vjp(row)[0]

    y, gradient = jax.jit(jax.vmap(value_and_gradient))(jnp.asarray(rows))
    each = [jit_quantize(row, EIGHT) for row in jnp.asarray(rows)]
    np.testing.assert_array_equal(np.asarray(y), np.stack(each))
    np.testing.assert_array_equal(gradient, rows)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 1, 2)])
def test_any_shape(shape):
    y = jit_quantize(jnp.full(shape, 0.75), EIGHT)
    np.testing.assert_array_equal(y, jnp.full(shape, 0.75))
