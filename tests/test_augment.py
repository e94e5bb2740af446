"""Augmentation, against loops in NumPy and in distribution; false alarms of 1 in a million."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ftnas_jax.augment import normalize, random_crop, random_flip

FALSE_ALARM = 1e-6


def numbered(count, height=5, width=7, channels=2):
    """float32 images without zeros, of which no two pixels are equal."""
    shape = (count, height, width, channels)
    return (1 + np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)


def shifted(image, down, right):
    """An image moved by whole pixels, zeros moving in; loops on purpose."""
    height, width, _ = image.shape
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[y, x] = image[y - down, x - right]
    return result


def find_shift(image, cropped, padding):
    """The (down, right) that made `cropped`; fails where there is none, or not only one."""
    shifts = range(-padding, padding + 1)
    matches = [
        (down, right)
        for down in shifts
        for right in shifts
        if np.array_equal(shifted(image, down, right), cropped)
    ]
    assert len(matches) == 1
    return matches[0]


# Normalization


def test_normalizes_like_numpy_in_float64():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 4, 5, 3), np.uint8)
    images[0, 0, :2, 0] = 0, 255
    mean, std = np.float32([0.49, 0.48, 0.45]), np.float32([0.2, 0.24, 0.26])
    result = normalize(jnp.asarray(images), jnp.asarray(mean), jnp.asarray(std))
    assert result.dtype == jnp.float32
    expected = (images.astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_a_constant_channel_becomes_zero():
    images = np.full((2, 3, 3, 2), 51, np.uint8)
    images[..., 1] = np.arange(9, dtype=np.uint8).reshape(1, 3, 3) * 25
    pixels = images.reshape(-1, 2) / 255
    mean, std = pixels.mean(0).astype(np.float32), np.float32([0, pixels[:, 1].std()])
    result = np.asarray(normalize(jnp.asarray(images), jnp.asarray(mean), jnp.asarray(std)))
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result[..., 0], 0, atol=0.1)  # a rounding over 1e-6
    np.testing.assert_allclose(result[..., 1].mean(), 0, atol=1e-5)
    np.testing.assert_allclose(result[..., 1].std(), 1, rtol=1e-5)


# Crops


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_a_crop_is_a_shift_with_zeros_moving_in(padding):
    images = numbered(32)
    cropped = np.asarray(random_crop(jax.random.key(1), jnp.asarray(images), padding))
    assert cropped.shape == images.shape
    shifts = [find_shift(*pair, padding) for pair in zip(images, cropped, strict=True)]
    for axis in zip(*shifts, strict=True):
        assert min(axis) < 0 < max(axis)
    assert len(set(shifts)) > 1


def test_a_shift_beyond_the_image_leaves_only_zeros():
    images = numbered(64, height=2, width=2)
    cropped = np.asarray(random_crop(jax.random.key(0), jnp.asarray(images), 3))
    kept = cropped != 0
    assert (kept.sum((1, 2, 3)) == 0).any()
    assert np.isin(cropped[kept], images).all()


def test_no_padding_is_the_identity():
    images = jnp.asarray(numbered(3))
    np.testing.assert_array_equal(random_crop(jax.random.key(0), images, 0), images)


def test_offsets_are_uniform_and_independent():
    padding, count = 2, 5000
    side = 2 * padding + 1
    images = np.broadcast_to(numbered(1, 5, 5, 1), (count, 5, 5, 1))
    cropped = np.asarray(random_crop(jax.random.key(2), jnp.asarray(images), padding))
    shifts = range(-padding, padding + 1)
    known = {shifted(images[0], y, x).tobytes(): (y, x) for y in shifts for x in shifts}
    counts = collections.Counter(known[image.tobytes()] for image in cropped)
    observed = [counts[y, x] for y in shifts for x in shifts]
    assert len(observed) == side**2
    assert stats.chisquare(observed).pvalue > FALSE_ALARM
    # One image's offset says nothing of the next one's.
    down = np.array([known[image.tobytes()][0] for image in cropped]) + padding
    pairs = np.bincount(down[:-1:2] * side + down[1::2], minlength=side**2)
    assert stats.chisquare(pairs).pvalue > FALSE_ALARM


# Flips


def test_each_image_is_mirrored_or_left_alone():
    images = numbered(64)
    flipped = np.asarray(random_flip(jax.random.key(3), jnp.asarray(images)))
    mirrored = images[:, :, ::-1]
    same = [np.array_equal(a, b) for a, b in zip(images, flipped, strict=True)]
    turned = [np.array_equal(a, b) for a, b in zip(mirrored, flipped, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert 0 < sum(turned) < 64


def test_half_of_the_images_are_mirrored():
    images = np.broadcast_to(numbered(1, 1, 2, 1), (20_000, 1, 2, 1))
    flipped = np.asarray(random_flip(jax.random.key(4), jnp.asarray(images)))
    turned = int((flipped[:, 0, 0, 0] == 2).sum())
    assert stats.binomtest(turned, len(images), 0.5).pvalue > FALSE_ALARM


# Keys


def crop(key, images):
    return random_crop(key, images, 2)


@pytest.mark.parametrize("augment", [crop, random_flip])
def test_the_key_decides(augment):
    images = jnp.asarray(numbered(32))
    first, again, other = (np.asarray(augment(jax.random.key(n), images)) for n in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(jax.jit(augment)(jax.random.key(0), images), first)
