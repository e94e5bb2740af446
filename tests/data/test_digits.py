"""Digits, which need no files; and what can be done with any set that is loaded."""

import subprocess
import sys

import numpy as np
import pytest
from sets import pairs
from sklearn.datasets import load_digits

from ftnas_jax import data


def test_digits_are_those_of_scikit_learn():
    digits = data.load("digits", size=8)
    assert digits.images.shape == (1437, 8, 8, 1)
    assert digits.test_images.shape == (360, 8, 8, 1)
    assert digits.images.dtype == np.uint8
    assert digits.labels.dtype == digits.test_labels.dtype == np.int32
    original = load_digits()
    scaled = np.floor(original.images / 16 * 255 + 0.5).astype(np.uint8)
    both = [
        np.concatenate([digits.images, digits.test_images]),
        np.concatenate([digits.labels, digits.test_labels]),
    ]
    assert pairs(*both) == pairs(scaled, original.target)
    assert digits.classes == tuple("0123456789")


def test_digits_are_shuffled_stratified_and_the_same_every_time():
    one, two = data.load("digits"), data.load("digits")
    assert one.image_shape == (16, 16, 1)
    assert one.num_classes == 10
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.test_labels, two.test_labels)
    share = np.bincount(one.test_labels) / np.bincount(load_digits().target)
    np.testing.assert_allclose(share, 0.2, atol=0.005)
    assert len(set(one.labels[:30])) > 5
    assert one.labels[:10].tolist() != list(range(10))


def test_digits_grow_bilinearly():
    small, large = data.load("digits", size=8), data.load("digits", size=16)
    # Halving 16x16 by 2x2 means gives back a blur of 8x8 whose mean is that of the original.
    halved = large.images[..., 0].reshape(-1, 8, 2, 8, 2).mean((2, 4))
    inner = np.s_[:, 1:-1, 1:-1]
    x = small.images[..., 0].astype(float)
    kernel = np.array([1, 6, 1]) / 8
    blurred = sum(
        a * b * np.roll(x, (i - 1, j - 1), (1, 2))
        for i, a in enumerate(kernel)
        for j, b in enumerate(kernel)
    )
    np.testing.assert_allclose(halved[inner], blurred[inner], atol=1.0)


def test_mean_std_is_numpys():
    images = np.random.default_rng(3).integers(0, 256, (2100, 3, 4, 2), dtype=np.uint8)
    images[..., 1] = 7
    labels = np.zeros(len(images), np.int32)
    mean, std = data.Dataset("x", images, labels, images, labels, ("a",)).mean_std()
    assert mean.dtype == std.dtype == np.float32
    unit = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, unit.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, unit.std((0, 1, 2)), rtol=1e-6, atol=1e-7)


def test_split_is_the_first_part_and_the_last():
    digits = data.load("digits", size=8)
    train, validation = data.split(digits)
    assert (len(train.images), len(validation.images)) == (1149, 288)
    for field in ("images", "labels"):
        joined = np.concatenate([getattr(train, field), getattr(validation, field)])
        np.testing.assert_array_equal(joined, getattr(digits, field))
    assert len(data.split(digits, 0.5)[0].labels) == 718


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.5])
def test_split_leaves_no_part_empty(fraction):
    with pytest.raises(data.DataError, match=r"leaves one part of 1437 images empty; take one"):
        data.split(data.load("digits", size=8), fraction)


def test_importing_is_light():
    code = (
        "import sys, ftnas_jax.data; heavy = {'tensorflow_datasets', 'tensorflow', 'sklearn', "
        "'PIL'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
