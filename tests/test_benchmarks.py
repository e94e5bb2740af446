"""What benchmarks rest on: rows, sides in processes of their own, and kernels that agree."""

import contextlib
import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from benchmarks import __main__ as command
from benchmarks import accuracy, kernels, profile, routes
from benchmarks.campaigns import ChipsByHand, OurChips, Work, measure_chips
from benchmarks.kernels import Kernel
from benchmarks.rows import Row, table, write_json
from benchmarks.search_steps import OurSteps, Size, measure_phase
from benchmarks.training_steps import Job, OurTraining, measure_training
from benchmarks.turns import Side
from ftnas_jax.costs import count_macs, layer_costs
from ftnas_jax.errors import InputError
from ftnas_jax.space import Architecture, Space


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
    ours = kernels._in_turns(kernel)(x[0], k, g[0])
    assert len(ours[0]) == 4  # turns
    expected = kernels._at_once(kernel)(x[0], k, g[0])
    for got, want in zip(ours, expected, strict=True):
        np.testing.assert_allclose(np.reshape(got, want.shape), want, rtol=1e-3, atol=1e-3)


class Small(Size):
    """Cells of one operation."""

    def config(self):
        space = Space(nodes=3, primitives=("none", "conv_1x1"))
        return dataclasses.replace(super().config(), space=space)


class Here:
    """A side in this process."""

    def __init__(self, there):
        self.there = there

    def call(self, method, *args):
        return getattr(self.there, method)(*args)

    def peak_memory(self):
        return 2_500_000_000


def test_steps_are_timed_and_their_work_counted():
    size = Small(batch=4, channels=4, cells=3)
    ours = Here(OurSteps(size, 1))
    for phase, passes in (("weights", 3), ("controller", 1)):
        row = measure_phase(size, phase, 2, ours, None)
        assert row.workload == f"{phase} step, mibb, batch 4, 4 channels, 3 cells"
        assert row.facts["programs"] == 1
        assert len(row.ours) == 2
        assert min(row.ours) > 0
        # Least and most: no connection, or all six of 1x1 convolutions.
        config = size.config()
        macs = [
            count_macs(layer_costs(config.network, config.space, known, (32, 32, 3)))
            for known in (Architecture.from_array([[[0, op], [0, op]]] * 2) for op in (0, 1))
        ]
        least, most = (2 * m * 4 * 2 * passes / 1e9 for m in macs)
        assert least <= row.facts["GFLOP a step"] <= most
    assert row.ratios == []


def test_chips_are_timed_and_those_of_a_loop_by_hand():
    work = Work("stuck_at:p0=0.067,p1=0.013", width=1 / 16, images=16, batch=8, side=8)
    ours, by_hand = OurChips(work, 2), ChipsByHand(work)
    compiled = ours.compile()
    assert 0 < compiled["program GB a device"] < compiled["budget GB a device"]
    (row,) = measure_chips(work, 3, 2, Here(ours), {"by hand": Here(by_hand)})
    assert row.workload.startswith("3 chips, resnet18:width=0.0625, 16 images in batches of 8, ")
    assert (row.peer, len(row.ours), len(row.theirs)) == ("by hand", 2, 2)
    assert min(*row.ours, *row.theirs) > 0
    assert row.facts["chips/s"] == pytest.approx(3 / np.median(row.ours))
    assert len(ours.correct()) == 2 + 6  # two to compile
    assert ours.correct()[3:6] == by_hand.correct()
    (alone,) = measure_chips(work, 1, 1, Here(ours), {})
    assert (alone.workload[:7], alone.peer, alone.theirs) == ("1 chip,", "", [])


class Chips:
    """Chips of a network, of which one at a time take a second and several take less."""

    def __init__(self, work, at_once):
        self.at_once = at_once

    def compile(self):
        return {"compile s": 10.0 * self.at_once}

    def turn(self, chips):
        return chips / self.at_once


def test_routes_are_measured_for_every_kind_of_faults(monkeypatch):
    monkeypatch.setattr(routes, "OurChips", Chips)
    monkeypatch.setattr(routes, "side", lambda make, *a: contextlib.nullcontext(Here(make(*a))))
    rows = list(routes.routes(2, False))
    assert len({row.workload for row in rows}) == len(rows) == 4 * 3
    for row in rows:
        assert (row.peer, row.ratios) == ("4 at once", [0.25, 0.25])
        assert (row.facts["compile s"], row.facts["peer's compile s"]) == (10, 40)
    assert rows[-1].workload.startswith("8 chips, mobilenet_v2:width=0.125, 128 images")


class Constant:
    """A peer that takes a second for everything."""

    def turn(self, steps):
        return 1.0


@pytest.mark.parametrize(("count", "devices"), [(1, "1 device"), (2, "2 devices")])
def test_training_steps_are_timed(count, devices):
    job = Job("tests.small_models:Linear", batch=4)
    ours = Here(OurTraining(job, count))
    row = measure_training(job, 3, ours, Here(Constant()))
    assert row.workload.startswith(f"training step, {devices}, tests.small_models:Linear, batch 4,")
    assert (row.peer, row.theirs, len(row.ours)) == ("PyTorch eager", [1.0] * 3, 3)
    assert min(row.ours) > 0
    assert row.facts["GFLOP a step"] == pytest.approx(2 * 6 * 4 * 32 * 32 * 3 * 10 / 1e9)
    alone = measure_training(job, 1, ours, None)
    assert (alone.peer, alone.theirs, alone.ratios) == ("", [], [])


def test_the_papers_training_is_the_default():
    config = Job().config()
    assert (config.batch_size, config.alpha_l) == (128, 0.7)
    assert config.hardware.weights.encoding == "sign_magnitude"
    (faults,) = config.hardware.faults
    assert (faults.p0, faults.p1, faults.layers) == (0.067, 0.013, "!classifier")
    assert Job().model().config.channels == 20


class Trainings:
    """Trainings whose accuracies are known."""

    def __init__(self, *accuracies):
        self.accuracies, self.started = accuracies, []

    def start(self, seed):
        self.started.append(seed)

    def epoch(self, epoch):
        assert epoch in (0, 1)

    def accuracy(self):
        return self.accuracies[self.started[-1]]


def test_accuracies_go_on_and_are_compared(tmp_path):
    path, settings = tmp_path / "made" / "accuracy.json", accuracy.Settings(epochs=2)
    ours, theirs = Trainings(0.50, 0.53, 0.52), Trainings(0.49, 0.47, 0.55)
    sides = {"ours": Here(ours), "PyTorch": Here(theirs)}
    accuracy.measure(accuracy.Record(path, settings, "data"), 1, sides, "a machine")
    first = json.loads(path.read_text())
    assert first["summary"]["difference"] == pytest.approx(0.01)
    assert first["summary"]["ours"] == {"n": 1, "mean": 0.5, "standard_deviation": None}
    assert "interval_95" not in first["summary"]
    assert accuracy.lines({"ours": [0.5], "PyTorch": [0.49]}).splitlines() == [
        "ours    0.5000: mean 0.5000, n 1",
        "PyTorch 0.4900: mean 0.4900, n 1",
        "ours - PyTorch: +0.0100",
    ]
    record = accuracy.Record(path, settings, "data")
    accuracy.measure(record, 3, sides, "a machine")
    assert ours.started == theirs.started == [0, 1, 2]
    content = json.loads(path.read_text())
    assert content["runs"]["ours"]["0"] == first["runs"]["ours"]["0"]
    assert content["settings"] == dataclasses.asdict(settings)
    a, b = np.array(ours.accuracies), np.array(theirs.accuracies)
    u, v = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 3
    freedom = (u + v) ** 2 / (u**2 / 2 + v**2 / 2)  # Welch and Satterthwaite
    half = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(u + v)
    expected = np.mean(a) - np.mean(b) + np.array([-half, half])
    np.testing.assert_allclose(content["summary"]["interval_95"], expected)
    last = accuracy.lines(record.accuracies()).splitlines()[-1]
    assert last.startswith("ours - PyTorch: +0.0133 [-0.0")


@pytest.mark.parametrize(
    ("epochs", "data", "text", "message"),
    [
        (3, "data", None, "other settings or data"),
        (2, "others", None, "other settings or data"),
        (2, "data", "[]", "holds no accuracies"),
    ],
)
def test_accuracies_of_something_else_are_kept(tmp_path, epochs, data, text, message):
    path, settings = tmp_path / "accuracy.json", accuracy.Settings(epochs=2)
    sides = {"ours": Here(Trainings(0.5))}
    accuracy.measure(accuracy.Record(path, settings, "data"), 1, sides, "a machine")
    if text:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        accuracy.Record(path, dataclasses.replace(settings, epochs=epochs), data)


def test_accuracy_is_a_command_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "accuracy", "--seeds=0", "--out=unused.json"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert capsys.readouterr().err == "error: --seeds must be at least 1\n"


def test_an_unknown_network_is_told_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "training", "--network=resnet19"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert "did you mean resnet18?" in capsys.readouterr().err


def test_the_command_prints_a_table_and_writes_every_row(monkeypatch, tmp_path, capsys):
    def suite(rounds, peer):
        yield Row(f"first, {rounds}", [1.0])
        assert "first, 7" in path.read_text()  # at once
        yield Row("second", [2.0])

    path = tmp_path / "rows.json"
    monkeypatch.setitem(command.SUITES, "mine", suite)
    monkeypatch.setattr("sys.argv", ["benchmarks", "mine", "--rounds=7", f"--json={path}"])
    command.main()
    assert "second" in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert [row["workload"] for row in content["rows"]] == ["first, 7", "second"]
    assert "as 2 devices" in content["machine"] or "1 core" in content["machine"]


def test_an_unknown_suite_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "mine"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert "there is no suite 'mine'" in capsys.readouterr().err


def test_work_is_told_by_the_innermost_scope():
    def step(x, kernel):
        with jax.named_scope("batch_norm"):
            with jax.named_scope("window"):
                y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME")
            return jnp.cumsum(jnp.sin(y) + jnp.mean(y))

    shapes = ((2, 3, 8, 8), (4, 3, 3, 3))
    program = jax.jit(step).lower(*(jnp.ones(s) for s in shapes)).compile().as_text()
    kinds = profile.works(program)
    assert {"convolutions and pooling", "sums and gradients of BatchNorm"} <= set(kinds.values())
    assert profile.work_of("while", "jit(f)/window/while") is None
    assert profile.work_of("fusion", "jit(f)/window/add") == "convolutions and pooling"
    gradients = "gradients of convolutions and pooling"
    path = "transpose(jvp(net))/batch_norm/window_gradients/transpose(jvp())/mul"
    assert profile.work_of("fusion", path) == gradients
    assert profile.work_of("copy", "") == "copies and zeros"
    assert profile.work_of("fusion", "jit(f)/add") == "all other instructions"


def test_the_papers_size_is_the_default():
    config = Size().config()
    assert (config.batch_size, config.network.channels, config.network.cells) == (64, 20, 8)
    assert config.network.reductions == (2, 5)
    assert Size(cells=14).config().network.reductions == (4, 9)
