"""Every example runs, at a size that shows nothing, and writes and prints what it says."""

import re
import sys

import jax
import numpy as np
import pytest

from examples import digits, resnet_blocks, small_cnn, small_vit

TINY = ["--steps", "2", "--chips", "2", "--seed", "1"]


def call(monkeypatch, capsys, module, out):
    """What `python -m examples.<module>` prints."""
    monkeypatch.setattr(sys, "argv", [module.__name__, "--out", str(out), *TINY])
    with jax.numpy_dtype_promotion("standard"):  # optax.adam needs it
        module.main()
    name = module.__name__.removeprefix("examples.")
    for kind in ("png", "svg"):
        assert (out / f"{name}.{kind}").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert said.splitlines()[-1].split() == [str(out / f"{name}.{kind}") for kind in ("png", "svg")]
    assert "2 chips; intervals at 95 %" in said
    return said


def shares(said):
    """All `mean ± margin %` that were printed, in percent."""
    return [(float(m), float(n)) for m, n in re.findall(r"(-?[\d.]+) ± +([\d.]+) %", said)]


def test_small_cnn(monkeypatch, capsys, tmp_path):
    said = call(monkeypatch, capsys, small_cnn, tmp_path)
    assert len(re.findall(r"float32 .* quantized .*540 images", said)) == 2
    assert said.count("stuck_at:p0=0.067,p1=0.013") == 4
    found = shares(said)
    assert len(found) == 2 * len(small_cnn.RATES)
    assert all(0 <= mean <= 100 for mean, _ in found)
    assert [margin for _, margin in found[:2]] == [0.0, 0.0]  # sound chips are alike


def test_resnet_blocks(monkeypatch, capsys, tmp_path):
    said = call(monkeypatch, capsys, resnet_blocks, tmp_path)
    layers = re.findall(r"^(stem|blocks/\S+) +(\d+) ", said, re.MULTILINE)
    assert [int(macs) for _, macs in layers] == [9, 144, 144, 144, 288, 16, 288, 288]
    assert len(shares(said)) == len(resnet_blocks.RATES) + 2 * len(layers) + 1


def test_small_vit(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(small_vit, "BITS", 2)  # fewer bits to flip compile sooner
    said = call(monkeypatch, capsys, small_vit, tmp_path)
    assert len(shares(said)) == 2 * small_vit.BITS + len(small_vit.RATES)
    assert "/product" in said


def test_digits_are_split_alike_by_a_seed():
    first, again, other = digits.load(0), digits.load(0), digits.load(1)
    np.testing.assert_array_equal(first.test_images, again.test_images)
    assert np.any(first.test_labels != other.test_labels)
    assert np.abs(first.images).max() == 1
    assert (len(first.labels), len(first.test_labels)) == (1257, 540)


def test_intervals_are_those_of_student():
    mean, margin = digits.interval(np.array([[1.0], [2.0], [3.0]]))
    assert mean == pytest.approx([2.0])
    assert margin == pytest.approx([4.302653 / np.sqrt(3)])
