"""The main job, end to end: what it writes, what survives a kill, what it refuses.

Searches run as a user runs them, in processes of their own, on the quickstart config with a smaller
space and network. They share one folder of compiled programs, so that only the first one compiles.
"""

import fnmatch
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from configs import quickstart
from experiments import search as experiment
from experiments.configuration import search_config
from experiments.report import difference, idle_cells, rank
from ftnas_jax.errors import InputError
from ftnas_jax.faults import MiBB, StuckAt
from ftnas_jax.search import Search
from ftnas_jax.search_config import SearchConfig
from ftnas_jax.space import PRIMITIVES, Space
from ftnas_jax.supernet import NetworkConfig

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 1500  # of a job that hangs, not of one that other work slows down

EPOCHS, STEPS = 4, 26 + 17  # 1437 images: 862 and 575, in batches of 32
SAMPLED, RANDOM = 16, 12
SPACE = Space(nodes=3, primitives=("none", "skip_connect", "conv_1x1", "relu_conv_bn_3x3"))
OVERRIDES = {
    "epochs": EPOCHS,
    "data.size": 8,
    "space.nodes": SPACE.nodes,
    "space.primitives": SPACE.primitives,
    "network.channels": 4,
    "network.cells": 2,
    "candidates.sampled": SAMPLED,
    "candidates.random": RANDOM,
    "candidates.batches": 4,
}

RESULTS = ("metrics.jsonl", "candidates.json", "genotype.json")
"""Files that must not depend on how often a run was interrupted."""


class Job:
    """One process of the main job; its output goes to files, so it is no terminal."""

    def __init__(self, *flags: str, logs: Path):
        self.logs = logs
        logs.mkdir(parents=True)
        # Without the devices and the compiled programs of these tests; see conftest.
        own = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
        environment = {k: v for k, v in os.environ.items() if k not in own}
        with open(logs / "stdout", "wb") as out, open(logs / "stderr", "wb") as err:
            command = [sys.executable, "-m", "experiments.search", *flags]
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=out, stderr=err, env=environment
            )

    @property
    def stdout(self) -> str:
        return (self.logs / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.logs / "stderr").read_text()

    def wait(self) -> int:
        try:
            return self.process.wait(TIMEOUT)
        finally:
            self.process.kill()

    def wait_until(self, condition) -> None:
        """Poll for what the process writes; fails where it ends before."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"the job did not get there: {self.stdout}{self.stderr}")
            time.sleep(0.005)

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        return self.wait()


class Runs:
    """Starts searches that share compiled programs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._count = 0

    def start(self, workdir: Path, *flags: str, **changes) -> Job:
        """A search with `changes` of fields (__ for a dot) and more flags."""
        fields = OVERRIDES | {name.replace("__", "."): value for name, value in changes.items()}
        self._count += 1
        return Job(
            "--config=configs/quickstart.py",
            f"--workdir={workdir}",
            f"--compilation_cache={self.folder / 'programs'}",
            *(f"--config.{name}={value}" for name, value in fields.items()),
            *flags,
            logs=self.folder / f"logs{self._count}",
        )


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("searches"))


@pytest.fixture(scope="module")
def finished(runs) -> tuple[Path, Job]:
    """A search that nothing interrupted."""
    workdir = runs.folder / "uninterrupted"
    job = runs.start(workdir)
    assert job.wait() == 0, job.stderr
    return workdir, job


def steps_saved(workdir: Path) -> list[int]:
    """Steps of the checkpoints, oldest first."""
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def newest_step(workdir: Path) -> int:
    return max(steps_saved(workdir), default=-1)


# Kills


def test_kills_signals_and_damage_change_no_byte_of_the_result(runs, finished):
    workdir = runs.folder / "interrupted"
    rng = random.Random(0)

    # A kill at any moment of the first half, with checkpoints in the midst of epochs.
    target = rng.randrange(1, EPOCHS * STEPS // 2)
    job = runs.start(workdir, checkpoint_minutes=1e-3)
    job.wait_until(lambda: newest_step(workdir) >= target)
    time.sleep(rng.uniform(0, 0.2))
    assert job.stop(signal.SIGKILL) == -signal.SIGKILL
    killed_at = newest_step(workdir)
    assert target <= killed_at < EPOCHS * STEPS

    # SIGTERM during the first call after that, whose one step is saved.
    job = runs.start(workdir, checkpoint_minutes=60.0)
    job.wait_until(lambda: "going on" in job.stdout)
    assert job.stop(signal.SIGTERM) == 128 + signal.SIGTERM, job.stderr
    assert "stopping after this call, saving" in job.stderr
    assert f"after {killed_at} steps" in job.stdout
    assert newest_step(workdir) == killed_at + 1
    assert not (workdir / "genotype.json").exists()

    # A kill while the candidates are scored or the report is written.
    job = runs.start(workdir)
    job.wait_until((workdir / "candidates.json").exists)
    assert job.stop(signal.SIGKILL) == -signal.SIGKILL
    assert f"after {killed_at + 1} steps" in job.stdout

    # The newest checkpoint is damaged: the one before it is used, and the last epoch repeated.
    assert steps_saved(workdir)[-2:] == [(EPOCHS - 1) * STEPS, EPOCHS * STEPS]
    os.truncate(workdir / "checkpoints" / str(EPOCHS * STEPS) / "about.json", 10)
    scored = json.loads((workdir / "candidates.json").read_text())
    scored[0]["reward"] = 2.0  # as of other weights
    (workdir / "candidates.json").write_text(json.dumps(scored))
    job = runs.start(workdir)
    assert job.wait() == 0, job.stderr
    assert "is damaged" in job.stderr
    assert f"after {(EPOCHS - 1) * STEPS} steps" in job.stdout

    for name in RESULTS:
        assert (workdir / name).read_bytes() == (finished[0] / name).read_bytes(), name


@pytest.fixture
def heeded_ctrl_c():
    """Tests in the background of a script would ignore it, and so would the jobs they start."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.usefixtures("heeded_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_ends_at_once_and_silently(runs, number):
    workdir = runs.folder / f"ended by {number}"
    job = runs.start(workdir, "--compilation_cache=")
    job.wait_until(lambda: "compiling" in job.stdout)
    assert job.stop(number) == -number  # by the system's own handler, which waits for nothing
    assert (job.stdout, job.stderr) == ("compiling the search ...\n", "")
    assert newest_step(workdir) == -1


# The run directory


PICTURES = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml"}
"""Kind of a picture → how its file begins."""


def test_every_file_is_there(finished):
    found = {str(path.relative_to(finished[0])) for path in finished[0].rglob("*")}
    pictures = (f"{name}.{kind}" for name in ("cells", "search", "candidates") for kind in PICTURES)
    for name in (*RESULTS, *pictures, "config.json", "timing.jsonl", "README.md"):
        assert name in found
    assert fnmatch.filter(found, "tensorboard/events.out.tfevents.*")
    assert newest_step(finished[0]) == EPOCHS * STEPS
    assert not fnmatch.filter(found, "*.tmp")


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("name", ["cells", "search", "candidates"])
def test_pictures_are_pictures(finished, name, kind):
    content = (finished[0] / f"{name}.{kind}").read_bytes()
    assert content.startswith(PICTURES[kind])
    assert len(content) > 4000


def test_the_config_is_kept(finished):
    stored = json.loads((finished[0] / "config.json").read_text())
    assert stored["job"] == "search"
    assert stored["config"] == json.loads(json.dumps(quickstart_with(**OVERRIDES)))


def test_metrics_have_a_row_an_epoch(finished):
    rows = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    for row in rows:
        assert row.keys() == rows[0].keys()
        assert 0 <= row["controller/accuracy_faulty"] <= 1
        clean, faulty = row["weights/loss_clean"], row["weights/loss_faulty"]
        assert row["weights/loss"] == pytest.approx((clean + faulty) / 2, rel=1e-5)
        accuracies = row["controller/accuracy_clean"], row["controller/accuracy_faulty"]
        assert row["controller/reward"] == pytest.approx(sum(accuracies) / 2, rel=1e-5)
    assert rows[-1]["weights/loss_clean"] < rows[0]["weights/loss_clean"]
    assert rows[0]["weights/learning_rate"] == pytest.approx(0.05)


def test_the_genotypes_are_the_best_candidates(finished):
    genotypes = json.loads((finished[0] / "genotype.json").read_text())
    candidates = json.loads((finished[0] / "candidates.json").read_text())
    groups = [row["group"] for row in candidates]
    assert groups == ["controller"] * SAMPLED + ["random"] * RANDOM
    for row in candidates:
        SPACE.parse(row["genotype"])
        accuracies = row["accuracy_clean"], row["accuracy_faulty"]
        assert row["reward"] == pytest.approx(sum(accuracies) / 2, rel=1e-5)
    top, best = genotypes["top"], genotypes["best"]
    assert 0 < len(top) <= 5
    assert len({row["genotype"] for row in top}) == len(top)
    rewards = [row["reward"] for row in top]
    assert rewards == sorted(rewards, reverse=True)
    assert rewards[0] == max(row["reward"] for row in candidates[:SAMPLED])
    assert {name: best[name] for name in top[0]} == top[0]
    assert SPACE.parse(best["aw_nas"]) == SPACE.parse(best["genotype"])
    assert "reduce_1=" in best["aw_nas"]


def test_the_readme_tells_what_was_found(finished):
    text = (finished[0] / "README.md").read_text()
    genotype = json.loads((finished[0] / "genotype.json").read_text())["best"]["genotype"]
    assert "".join(genotype.split()) in "".join(text.split())
    for picture in ("cells.png", "search.png", "candidates.png"):
        assert f"]({picture})" in text
    for fact in ("FTT-NAS on digits under `mibb:p_m=1e-3`", f"{EPOCHS} epochs", "4 channels"):
        assert fact in text
    assert "Controller minus random:" in text


def test_without_a_terminal_there_are_only_lines(finished):
    workdir, job = finished
    compiling, *epochs, empty, last = job.stdout.splitlines()
    assert compiling == "compiling the search ..."
    assert len(epochs) == EPOCHS
    for number, line in enumerate(epochs, 1):
        assert line.startswith(f"epoch {number}: loss ")
    assert (empty, last) == ("", f"results: {workdir / 'README.md'}")
    assert not set("\r\x1b\b") & set(job.stdout + job.stderr)


def test_another_config_in_the_same_place_is_refused(runs, finished):
    job = runs.start(finished[0], weights__learning_rate=0.1)
    assert job.wait() == 2
    assert job.stdout == ""
    (line,) = job.stderr.splitlines()
    assert "weights.learning_rate was 0.05, now 0.1" in line


def test_what_other_draws_began_is_not_gone_on_with(finished, monkeypatch):
    stored = json.loads((finished[0] / "config.json").read_text())
    monkeypatch.setattr(experiment, "DRAWS", experiment.DRAWS + 1)
    with pytest.raises(InputError, match=r"in draws\.json, now it is"):
        experiment.search(stored["config"], str(finished[0]))


# Architectures of the user's


ALIKE = "[('skip_connect', 0, 2), ('none', 1, 2)]"
GIVEN = f"normal={ALIKE}, reduction={ALIKE}"


def test_given_architectures_are_scored_and_pinned_and_one_device_is_enough(runs):
    workdir, path = runs.folder / "given", runs.folder / "mine.txt"
    path.write_text(f"# two of mine\n{GIVEN}\n{GIVEN}\n")
    fields = {
        "epochs": 1,
        "network__cells": 1,
        "network__reductions": (0,),
        "space__primitives": ("none", "skip_connect"),
        "candidates__sampled": 2,
        "candidates__random": 0,
        "candidates__genotypes": path,
    }
    job = runs.start(workdir, "--devices=1", **fields)
    assert job.wait() == 0, job.stderr
    *others, first, second = json.loads((workdir / "candidates.json").read_text())
    assert [row["group"] for row in others] == ["controller"] * 2
    assert first == second
    assert (first["group"], first["genotype"]) == ("given", GIVEN)
    report = (workdir / "README.md").read_text()
    assert f"| given | 2 | {first['reward']:.3f} | 0.000 |" in report
    assert " as 2 devices" not in report

    path.write_text(GIVEN)
    job = runs.start(workdir, "--devices=1", **fields)
    assert job.wait() == 2
    (line,) = job.stderr.splitlines()
    assert "began with" in line
    assert "given.json" in line


# The report's choices


def candidate(group, genotype, reward):
    return {"group": group, "genotype": genotype, "reward": reward}


def test_the_ranking_is_of_distinct_networks_of_the_controller():
    settings = SearchConfig(SPACE, NetworkConfig(cells=3, reductions=(1,)))
    reduction = "reduction=[('none', 0, 2), ('none', 0, 2)]"
    texts = {
        name: f"normal=[('{op}', 0, 2), ('conv_1x1', 0, 2)], {reduction}"
        for name, op in zip("abcd", SPACE.primitives, strict=True)
    }
    swapped = texts["b"].replace(
        "('skip_connect', 0, 2), ('conv_1x1', 0, 2)", "('conv_1x1', 0, 2), ('skip_connect', 0, 2)"
    )
    assert swapped != texts["b"]
    unread = texts["b"].replace(reduction, "reduction=[('conv_1x1', 0, 2), ('conv_1x1', 1, 2)]")
    rewards = {"a": 0.2, "b": 0.5, "c": 0.5, "d": 0.9}
    rows = [candidate("controller", texts[name], rewards[name]) for name in "abcab"]
    # The network b again, with other draws of faults.
    rows += [candidate("controller", swapped, 0.6), candidate("controller", unread, 0.7)]
    rows.append(candidate("random", texts["d"], rewards["d"]))
    ranked = [row["genotype"] for row in rank(settings, rows)]
    assert ranked == [texts["b"], texts["c"], texts["a"]]


@pytest.mark.parametrize(
    ("cells", "read", "line"),
    [
        (3, 0, "do not depend on cell 1 (reduction), counted"),
        (8, 0, "do not depend on cells 0 (normal), 2 (reduction), 4 (normal), 6 (normal), counted"),
        (3, 1, None),
    ],
)
def test_the_report_says_which_cells_do_nothing(cells, read, line):
    reductions = (1,) if cells == 3 else (2, 5)
    settings = SearchConfig(SPACE, NetworkConfig(cells=cells, reductions=reductions))
    connections = [("conv_1x1", read, 2)] * 2
    genotype = f"normal={connections}, reduction={connections}"
    text = " ".join(idle_cells(settings, genotype))
    assert (line in text) if line else (text == "")


def test_the_interval_of_the_difference_is_welchs():
    rows = [candidate("controller", "a", r) for r in (0.5, 0.6, 0.7, 0.8)]
    rows += [candidate("random", "a", r) for r in (0.1, 0.4, 0.7)]
    mean, low, high = difference(rows)
    # By hand: variances 1/60 and 0.09, so an error of 0.18484 with 2.5605 degrees of freedom.
    assert mean == pytest.approx(0.25)
    assert (low, high) == pytest.approx((0.25 - 0.64965, 0.25 + 0.64965), abs=1e-3)
    assert difference(rows[:5]) is None


# Bad input


def quickstart_with(**fields) -> dict:
    config = quickstart.get_config()
    config.update_from_flattened_dict(fields)
    return config.to_dict()


def never(*_):
    raise AssertionError("bad input was let through to the compiled steps")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"faults": "mibb:p_m=1.5"}, "mibb: p_m is 1.5; a rate lies in [0, 1]"),
        ({"faults": "mibb:p_m=nan"}, "p_m is nan"),
        ({"faults": "stuck_at:p0=-0.1,p1=0"}, "p0 is -0.1"),
        ({"faults": "stuck_at:p0=0.6,p1=0.6"}, "p0 + p1 is 1.2"),
        ({"faults": "mibb:p_m=often"}, "p_m is 'often', not a number"),
        ({"faults": "cosmic_rays:p=0.1"}, "unknown fault model 'cosmic_rays'"),
        ({"quantization.weight_bits": 1}, "quantization.weight_bits: bits is 1"),
        ({"quantization.weight_bits": 17}, "quantization.weight_bits: bits is 17"),
        ({"quantization.feature_bits": 1}, "quantization.feature_bits: bits is 1"),
        ({"quantization.feature_bits": 17}, "quantization.feature_bits: bits is 17"),
        ({"quantization.weight_encoding": "gray"}, "encoding is 'gray'"),
        ({"network.reductions": (3,)}, "network.reductions names cell 3; cells are 0 to 2"),
        ({"network.reductions": (-1,)}, "network.reductions names cell -1"),
        ({"network.reductions": ("a",)}, "network.reductions is ('a',)"),
        ({"network.reductions": (2, 1)}, "network.reductions (2, 1) must increase"),
        ({"network.reductions": (0, 1), "data.size": 18}, "18x18 cannot be halved 2 times"),
        ({"network.cells": 0}, "network.cells is 0"),
        ({"network.channels": 0}, "network.channels is 0"),
        ({"network.preprocess": "conv"}, "network.preprocess is 'conv'"),
        ({"network.dropout": 1.0}, "network.dropout is 1.0"),
        ({"space.nodes": 2}, "space.nodes is 2"),
        ({"space.primitives": ("none", "conv_9x9")}, "unknown operation 'conv_9x9'"),
        ({"space.primitives": ()}, "space.primitives is empty"),
        ({"data.name": "no_such_set"}, "unknown data set 'no_such_set'"),
        ({"data.size": -1}, "size is -1"),
        ({"data.train_fraction": 1.0}, "data.train_fraction is 1.0"),
        ({"data.train_fraction": float("nan")}, "data.train_fraction is nan"),
        ({"batch_size": 863}, "batch_size is 863, but the training part"),
        ({"batch_size": 600}, "batch_size is 600, but the held-out part"),
        ({"epochs": 0}, "epochs is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"weights.alpha_l": 1.5}, "alpha_l is 1.5"),
        ({"weights.learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"controller.alpha_r": -0.5}, "alpha_r is -0.5"),
        ({"controller.hidden": 0}, "controller.hidden is 0"),
        ({"controller.learning_rate": -0.1}, "controller.learning_rate is -0.1"),
        ({"augment.crop_padding": -1}, "crop_padding"),
        ({"candidates.sampled": 0}, "candidates.sampled is 0"),
        ({"candidates.random": -1}, "candidates.random is -1"),
        ({"candidates.batches": 0}, "candidates.batches is 0"),
        ({"candidates.top": 0}, "candidates.top is 0"),
        ({"candidates.genotypes": "no/file"}, "candidates.genotypes: cannot read no/file"),
    ],
)
def test_bad_input_is_named_before_anything_is_compiled(tmp_path, monkeypatch, fields, message):
    monkeypatch.setattr(experiment, "_train", never)
    config = quickstart_with(**fields, **{"data.data_dir": str(tmp_path / "data")})
    with pytest.raises(InputError) as error:
        experiment.search(config, str(tmp_path / "run"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_full_disk_is_named_before_anything_is_compiled(tmp_path, monkeypatch):
    init = Search.init

    def only_traced(job):
        state = init(job)
        assert all(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state))
        return state

    monkeypatch.setattr(Search, "init", only_traced)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(InputError, match=r"has 1 MB of free space and needs .* --workdir"):
        experiment.search(quickstart_with(**OVERRIDES), str(tmp_path / "run"))


def test_devices_that_cannot_share_a_batch_are_named_before_the_directory_is_made(tmp_path):
    with pytest.raises(InputError, match="batch_size is 32; 3 devices cannot split it"):
        experiment.search(quickstart_with(), str(tmp_path / "run"), jax.devices()[:3])
    assert not (tmp_path / "run").exists()


QUICKSTART = "--config=configs/quickstart.py"
MISTAKES = {
    "a rate": ([QUICKSTART, "--config.faults=mibb:p_m=2"], "p_m is 2.0; a rate lies in"),
    "a field": ([QUICKSTART, "--config.network.depth=3"], "no field 'depth'"),
    "a type": ([QUICKSTART, "--config.epochs=many"], "--config.epochs=many"),
    "a flag": ([QUICKSTART, "--epochs=3"], "'epochs'"),
    "an argument": ([QUICKSTART, "configs/mibb.py"], "cannot read the argument 'configs/mibb.py'"),
    "no config": ([], "name a config"),
    "no such config": (
        ["--config=configs/none.py"],
        "No such file or directory: 'configs/none.py'",
    ),
    "a genotype": (
        [QUICKSTART, "--config.candidates.genotypes=README.md"],
        "candidates.genotypes: README.md, genotype 1: ",
    ),
    "too many devices": ([QUICKSTART, "--devices=99999"], "--devices is 99999, and there are "),
    "less than no device": ([QUICKSTART, "--devices=-1"], "--devices=-1"),
    "no workdir": ([QUICKSTART, "--workdir="], "name a run directory"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_on_the_command_line_is_one_line_and_code_2(tmp_path, name):
    flags, message = MISTAKES[name]
    job = Job(f"--workdir={tmp_path / 'run'}", *flags, logs=tmp_path / "logs")
    assert job.wait() == 2, job.stderr
    (line,) = job.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert job.stdout == ""
    assert not (tmp_path / "run").exists()


# The configs


def config_of(name: str) -> dict:
    return importlib.import_module(f"configs.{name}").get_config().to_dict()


FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
CONFIGS = [name for name in FILES if not name.startswith(("train_", "paper_"))]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_describes_a_search(name):
    config = search_config(config_of(name))
    assert len(config.hardware.faults) == 1


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "quickstart"])
def test_published_settings(name):
    """§5.1's numbers."""
    config = search_config(config_of(name))
    assert config.space == Space(6, PRIMITIVES)
    assert (config.network.cells, config.network.channels) == (8, 20)
    assert len(config.network.reductions) == 2
    assert (config.epochs, config.batch_size) == (100, 64)
    assert (config.learning_rate, config.momentum, config.weight_decay) == (0.05, 0.9, 1e-4)
    assert config.gradient_clip == 5.0
    assert (config.controller.hidden, config.controller.learning_rate) == (100, 1e-3)
    assert (config.controller.baseline_decay, config.controller.entropy_weight) == (0.99, 0.01)
    assert (config.hardware.weights.bits, config.hardware.features.bits) == (8, 8)
    data = config_of(name)["data"]
    assert (data["name"], data["train_fraction"]) == ("cifar10", 0.8)


@pytest.mark.parametrize(
    ("name", "fault", "alpha_l", "alpha_r"),
    [
        ("mibb", MiBB(1e-4), 0.5, 0.5),
        ("mibb_ft", MiBB(1e-4), 0.0, 0.5),
        ("adsaf", StuckAt(0.067, 0.013, layers="!classifier"), 0.7, 0.2),
        ("adsaf_ft", StuckAt(0.067, 0.013, layers="!classifier"), 0.0, 0.2),
    ],
)
def test_published_faults_and_weights(name, fault, alpha_l, alpha_r):
    config = search_config(config_of(name))
    assert config.hardware.faults == (fault,)
    assert (config.alpha_l, config.alpha_r) == (alpha_l, alpha_r)
    encoding = "sign_magnitude" if isinstance(fault, StuckAt) else "twos_complement"
    assert config.hardware.weights.encoding == encoding
