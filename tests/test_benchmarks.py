"""What benchmarks rest on: rows, sides in processes of their own, and kernels that agree."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import kernels
from benchmarks.kernels import Kernel
from benchmarks.rows import Row, table, write_json
from benchmarks.search_steps import Size
from benchmarks.turns import Side


class Counter:
    """An object for another process."""

    def __init__(self, start: int):
        self.count = start

    def add(self, number: int) -> int:
        self.count += number
        return self.count

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)


def test_a_side_keeps_its_object_in_a_process_of_its_own():
    with Side(Counter, 5, environment={"OF_A_SIDE": "yes"}) as side:
        assert (side.call("add", 2), side.call("add", 3)) == (7, 10)
        assert side.call("variable", "OF_A_SIDE") == "yes"
        assert side.peak_memory() > 10e6
    assert "OF_A_SIDE" not in os.environ


def test_what_fails_in_a_side_is_told_here():
    with Side(Counter, 5, environment={}) as side, pytest.raises(RuntimeError, match="subtract"):
        side.call("subtract", 1)


def test_a_ratio_is_taken_turn_by_turn(tmp_path):
    row = Row("steps", [1.0, 2.0, 4.0], "peer", [3.0, 2.0, 2.0], {"GFLOP": 12.345})
    assert row.ratios == [3.0, 1.0, 0.5]
    alone = Row("alone", [0.5])
    head, first, second = table([row, alone]).splitlines()
    assert "peer / ours" in head
    assert [cell.strip() for cell in first.split("|")] == [
        *("steps", "2 [1-4]", "peer", "2 [2-3]", "1 [0.5-3]", "3", "GFLOP 12.3")
    ]
    assert [cell.strip() for cell in second.split("|")][:2] == ["alone", "0.5 [0.5-0.5]"]

    write_json(tmp_path / "made" / "rows.json", "a machine", "a command", [row, alone])
    content = json.loads((tmp_path / "made" / "rows.json").read_text())
    assert (content["machine"], content["command"]) == ("a machine", "a command")
    assert content["rows"][0]["ratio_median_min_max"] == [1.0, 0.5, 3.0]
    assert content["rows"][1]["ratio_median_min_max"] is None


@pytest.mark.parametrize(
    "kernel", [Kernel("depthwise", 5, 8, 6, 2, 2), Kernel("dense", 3, 8, 6)], ids=str
)
def test_our_kernels_in_turns_compute_what_the_platform_does(monkeypatch, kernel):
    monkeypatch.setattr("ftnas_jax.nn.layer._CACHE_ELEMENTS", 8 * 8 * 6 * 16)
    x, k, g = (jnp.asarray(a) for a in kernel.arrays())
    dk, (y, dx) = kernels._in_turns(kernel, k)(x[0], g[0])
    assert len(y) == 4  # turns
    expected = kernels._at_once(kernel, k)(x[0], g[0])
    for got, want in zip((y, dx, dk), expected, strict=True):
        np.testing.assert_allclose(np.reshape(got, want.shape), want, rtol=1e-3, atol=1e-3)


def test_the_papers_size_is_the_default():
    config = Size().config()
    assert (config.batch_size, config.network.channels, config.network.cells) == (64, 20, 8)
    assert config.network.reductions == (2, 5)
    assert Size(cells=14).config().network.reductions == (4, 9)
