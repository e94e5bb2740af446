"""Campaigns on trained networks, end to end: what they write, what survives, what is refused.

Networks are trained for an epoch on digits, with models of one layer and of two.
"""

import csv
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import ftnas_jax as ft
from configs import train_quickstart
from experiments import evaluate as experiment
from experiments import train, trained
from ftnas_jax import data
from ftnas_jax.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
FAULTS = "stuck_at:ratio=0.8"


def _train(workdir: Path, model: str) -> Path:
    config = train_quickstart.get_config()
    config.network, config.epochs = f"small_models:{model}", 1
    config.faults, config.data.size = "stuck_at", 8
    assert train.train(config.to_dict(), str(workdir), jax.devices()[:2]) == 0
    return workdir


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> list[str]:
    """Run directories of two networks."""
    folder = tmp_path_factory.mktemp("trainings")
    return [str(_train(folder / "first", "Linear")), str(_train(folder / "second", "Hidden"))]


@pytest.fixture(scope="module", autouse=True)
def _flags():
    flags.FLAGS.mark_as_parsed()
    yield
    flags.FLAGS.unparse_flags()


def _evaluate(workdir: Path, devices: int = 2, **given) -> int:
    with flagsaver.flagsaver(**given):
        experiment.check_flags()
        return experiment.evaluate(str(workdir), jax.devices()[:devices])


def _rows(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / name, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_sweep_of_two_networks(tmp_path, networks, capsys):
    rates = ["0.0", "0.05", "0.3"]
    assert _evaluate(tmp_path, run=networks, faults=[FAULTS], rates=rates, chips=6) == 0
    summary = _rows(tmp_path, "summary.csv")
    assert [(row["network"], row["rate"]) for row in summary] == [
        (name, rate) for name in ("first", "second") for rate in rates
    ]
    assert [int(row["chips"]) for row in summary] == [1, 6, 6] * 2
    accuracies = [float(row["accuracy"]) for row in summary[:3]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert len(_rows(tmp_path, "chips.csv")) == 26
    differences = _rows(tmp_path, "differences.csv")
    assert [(row["network"], row["minus"]) for row in differences] == [("second", "first")] * 3
    page = (tmp_path / "README.md").read_text()
    assert "| first | stuck_at 0.05 | 6 |" in page
    assert "- seed: 0\n- fraction lengths of features: follow the batch\n" in page
    assert "| curves.png |" in page
    assert "| sensitivity.png |" not in page
    assert "stuck_at:p0=0.04,p1=0.01" not in page  # only the first of a sweep is written out
    for name in ("curves.png", "curves.svg", "chips.png"):
        assert (tmp_path / name).stat().st_size > 1000
    assert "results:" in capsys.readouterr().out


def test_devices_change_nothing(tmp_path, networks):
    for devices in (1, 4):
        folder = tmp_path / str(devices)
        _evaluate(folder, devices, run=networks[:1], faults=["mibb:p_m=1e-3"], chips=5)
    for name in ("chips.csv", "rights.bin"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "4" / name).read_bytes()


def test_a_margin_is_in_points_and_a_plan_says_what_it_takes(tmp_path, networks, capsys):
    given = {"run": networks[:1], "faults": [FAULTS], "margin": 1.5, "min_chips": 8}
    assert _evaluate(tmp_path, plan=True, **given) == 0
    said = capsys.readouterr().out
    assert "(8 are there, standard deviation" in said
    assert "in all about" in said
    assert not (tmp_path / "README.md").exists()
    assert _evaluate(tmp_path, **given) == 0
    (row,) = _rows(tmp_path, "summary.csv")
    half = (float(row["accuracy_high"]) - float(row["accuracy_low"])) / 2
    assert half <= 0.015
    assert "chips in all" in capsys.readouterr().out


def test_two_sweeps_of_a_model_and_a_margin_that_is_not_reached(tmp_path, networks):
    given = {"run": networks[:1], "rates": ["0.1", "0.2"], "level": 0.999}
    given |= {"margin": 0.01, "chips": 8, "min_chips": 4}
    texts = ["stuck_at:ratio=0.75", "stuck_at:ratio=0.25"]
    assert _evaluate(tmp_path, faults=texts, **given) == 0
    page = (tmp_path / "README.md").read_text()
    for text in texts:
        assert f"| first | {text} 0.2 | 8 |" in page
        assert f"- margin not reached: first under {text} 0.1, after 8 chips" in page
    assert page.count("- faults: ") == 2
    assert "Intervals at 99.9 %" in page
    assert [row["reached"] for row in _rows(tmp_path, "summary.csv")] == ["False"] * 4


def test_layers_and_bits_and_single_faults(tmp_path, networks):
    given = {"run": networks[:1], "by": ["layer", "bit"], "chips": 2}
    assert _evaluate(tmp_path / "by", faults=["bit_flip:rate=0.1"], **given) == 0
    assert len(_rows(tmp_path / "by", "summary.csv")) == 8
    assert (tmp_path / "by" / "sensitivity.png").exists()
    page = (tmp_path / "by" / "README.md").read_text()
    assert "| sensitivity.png |" in page
    assert "| curves.png |" not in page
    assert page.count("- faults: ") == 1
    single = {"run": networks[:1], "by": ["bit"], "single_faults": True, "margin": 30.0}
    assert _evaluate(tmp_path / "single", **single) == 0
    rows = _rows(tmp_path / "single", "summary.csv")
    assert [row["bit"] for row in rows] == [*"01234567", ""]
    page = (tmp_path / "single" / "README.md").read_text()
    assert "critical in all" in page
    assert "- seed: 0\n" in page
    assert "| summary.csv |" in page
    assert "| chips.png |" not in page


def test_age_is_swept_as_a_rate_is(tmp_path, networks):
    given = {"run": networks[:1], "faults": ["stuck_at:p0=0.01,p1=0.002+drift"], "chips": 3}
    assert _evaluate(tmp_path, times=["1", "30"], **given) == 0
    assert [row["time"] for row in _rows(tmp_path, "summary.csv")] == ["1.0", "30.0"]
    assert (tmp_path / "curves.png").exists()


def test_fraction_lengths_are_frozen_by_a_training_image(tmp_path, networks):
    given = {"run": networks[1:], "faults": ["mibb:p_m=3e-3"], "chips": 4}
    for name, count in (("frozen", 1), ("following", 0)):
        assert _evaluate(tmp_path / name, calibrate=count, **given) == 0
    frozen, following = (
        [int(row["correct"]) for row in _rows(tmp_path / name, "chips.csv")]
        for name in ("frozen", "following")
    )
    assert frozen != following
    page = (tmp_path / "frozen" / "README.md").read_text()
    assert "- fraction lengths of features: frozen by 1 training images\n" in page
    run = trained.load(networks[1])
    digits = data.load("digits", size=8)
    mean, std = digits.mean_std()
    images, own = (
        ((part / 255 - mean) / std).astype(np.float32)
        for part in (digits.images[:1], digits.test_images)
    )
    chip = ft.on_hardware(run.model, dataclasses.replace(run.hardware, faults=()))
    report = ft.campaign(
        ft.calibrate(chip, [(run.variables, images)]),
        run.variables,
        (own, digits.test_labels),
        faults="mibb:p_m=3e-3",
        key=jax.random.key(0),
        chips=4,
    )
    assert [chip.correct for chip in report.outcomes[0].chips] == frozen
    with pytest.raises(InputError, match="another network called second"):
        _evaluate(tmp_path / "frozen", **given)
    with pytest.raises(InputError, match="digits has 1437 training images, not 2000"):
        _evaluate(tmp_path / "more", calibrate=2000, **given)


def test_every_chip_takes_statistics_of_batch_norm_anew(tmp_path, networks):
    folder = _train(tmp_path / "normed", "Normed")
    given = {"run": [str(folder)], "faults": [FAULTS], "rates": ["0.3"], "chips": 4}
    for name, count in (("anew", 64), ("trained", 0)):
        assert _evaluate(tmp_path / name, recalibrate=count, **given) == 0
        line = "every chip's own, by 64 training images" if count else "of the training"
        page = (tmp_path / name / "README.md").read_text()
        assert f"- statistics of BatchNorm: {line}\n" in page
    run = trained.load(folder)
    report = ft.campaign(
        *(run.model, run.variables, run.test_set()),
        faults=FAULTS,
        rates=[0.3],
        key=jax.random.key(0),
        chips=4,
        norm_images=run.training_images(64),
    )
    rows = _rows(tmp_path / "anew", "chips.csv")
    assert [chip.correct for chip in report.outcomes[0].chips] == [int(r["correct"]) for r in rows]
    assert rows != _rows(tmp_path / "trained", "chips.csv")
    with pytest.raises(InputError, match="another network called normed"):
        _evaluate(tmp_path / "anew", **given)
    with pytest.raises(
        InputError, match=r"^second cannot be recalibrated .* no variables are batch_stats$"
    ):
        _evaluate(tmp_path / "none", recalibrate=8, run=networks[1:], faults=["mibb"])


def _command(workdir: Path, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "experiments.evaluate", f"--workdir={workdir}"),
        *(f"--compilation_cache={workdir.parent}/programs", *arguments),
    ]


def test_a_signal_keeps_what_is_done_and_the_same_command_goes_on(tmp_path, networks):
    arguments = [f"--run={networks[0]}", f"--faults={FAULTS}", "--chips=60000", "--images=50"]
    found = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": found, "XLA_FLAGS": ""}
    options = {"cwd": ROOT, "env": environment}
    process = subprocess.Popen(_command(tmp_path / "run", *arguments), **options)
    chips = tmp_path / "run" / "chips.csv"
    deadline = time.monotonic() + 1500
    while not (chips.exists() and len(chips.read_bytes()) > 1000):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=1500) == 143
    before = chips.read_bytes()
    count = len(before.splitlines()) - 1
    assert 0 < count < 60000
    more = [a.replace("60000", str(count + 5)) for a in arguments]
    done = subprocess.run(_command(tmp_path / "run", *more), check=False, **options)
    assert done.returncode == 0
    assert chips.read_bytes().startswith(before)
    assert len(chips.read_bytes().splitlines()) == count + 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "name a trained network"),
        ({"run": ["x"]}, "name the faults"),
        ({"run": ["/none"], "faults": ["mibb"]}, "/none"),
        ({"run": ["x"], "faults": ["mibb:p_m=2"]}, r"p_m is 2.0; a rate lies in \[0, 1\]"),
        ({"run": ["x"], "faults": ["mibb"], "rates": ["1.5"]}, "p_m is 1.5"),
        ({"run": ["x"], "faults": ["mibb"], "rates": ["a"]}, "--rates is 'a'; give numbers"),
        ({"run": ["x"], "faults": ["mibb"], "rates": ["nan"]}, "finite"),
        ({"run": ["x"], "faults": ["mibb"], "times": ["2"]}, "time acts on none"),
        ({"run": ["x"], "faults": ["mibb"], "margin": 150.0}, "--margin is 150; it is in points"),
        ({"run": ["x"], "faults": ["mibb"], "chips": -3}, "chips is -3"),
        ({"run": ["x", "y"], "faults": ["mibb"], "by": ["layer"]}, "look at one network"),
        ({"run": ["x"], "faults": ["mibb"], "by": ["bit"], "rates": ["0.1"]}, "at one rate"),
        ({"run": ["x"], "faults": ["mibb"], "single_faults": True}, "takes no --faults"),
        ({"run": ["x"], "faults": ["mibb"], "processes": 2}, "go together"),
        ({"run": ["x"], "faults": ["mibb", "mibb"]}, "is visited twice"),
        ({"run": ["x"], "faults": ["mibb"], "by": ["layer"], "sweep": "mibb"}, "takes no --sweep"),
        ({"run": ["x"], "single_faults": True, "rates": ["0.1"]}, "takes no --rates"),
        ({"run": ["x"], "single_faults": True, "times": ["2"]}, "takes no --rates, --times"),
        ({"run": ["x"], "single_faults": True, "chips": 3}, "--chips"),
        ({"run": ["x"], "single_faults": True, "sweep": "mibb"}, "--sweep"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path, given, message):
    with pytest.raises(InputError, match=message) as caught:
        _evaluate(tmp_path / "run", **given)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_the_network_is_refused(tmp_path, networks):
    given = {"run": networks[:1], "faults": [FAULTS]}
    with pytest.raises(InputError, match="there are 360 test images"):
        _evaluate(tmp_path, images=1000, **given)
    with pytest.raises(InputError, match=r"GiB of a device.*smaller"):
        _evaluate(tmp_path, memory=1e-6, **given)
    assert _evaluate(tmp_path / "run", chips=2, **given) == 0
    with pytest.raises(InputError, match="key"):
        _evaluate(tmp_path / "run", chips=2, seed=1, **given)
    other = tmp_path / "first"
    shutil.copytree(networks[1], other)
    with pytest.raises(InputError, match="another network called first"):
        _evaluate(tmp_path / "run", chips=2, run=[str(other)], faults=[FAULTS])
    names = [networks[0], str(other)]
    with pytest.raises(InputError, match=r"are both called first; name one, as --run NAME=/"):
        _evaluate(tmp_path / "two", chips=2, run=names, faults=[FAULTS])


def test_networks_get_names_and_paths_may_look_like_it(tmp_path, networks):
    like_a_name = tmp_path / "rate=0.1"
    shutil.copytree(networks[1], like_a_name)
    runs = [networks[0], f"other={networks[0]}", f"third={like_a_name}", str(like_a_name)]
    assert _evaluate(tmp_path / "run", run=runs, faults=[FAULTS], chips=2) == 0
    summary = _rows(tmp_path / "run", "summary.csv")
    names = [row["network"] for row in summary]
    assert names == ["first", "other", "third", "rate=0.1"]
    first, other, third, fourth = (row["accuracy"] for row in summary)
    assert first == other
    assert third == fourth
    with pytest.raises(InputError, match="/none"):
        _evaluate(tmp_path / "run", run=["a=/none"], faults=[FAULTS])
    twice = [f"a={networks[0]}", f"a={networks[1]}"]
    with pytest.raises(InputError, match=f"both called a; name one, as --run NAME={networks[1]}"):
        _evaluate(tmp_path / "run", run=twice, faults=[FAULTS])


def test_networks_of_other_data_cannot_be_compared(networks, monkeypatch, tmp_path):
    load = trained.load

    def other_data(path):
        found = load(path)
        return found if path == networks[0] else trained.dataclasses.replace(found, data_sha256="0")

    monkeypatch.setattr(trained, "load", other_data)
    with pytest.raises(InputError, match="different data"):
        _evaluate(tmp_path, run=networks, faults=[FAULTS])
