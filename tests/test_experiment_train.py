"""Final training, end to end: what it writes, what survives a signal, what it refuses.

Trainings run in this process, on digits with a model of two layers, so that each compiles within
seconds.
"""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import (
    train_fftt,
    train_mobilenet_v2,
    train_quickstart,
    train_resnet18,
    train_vgg16,
    train_wftt,
)
from experiments import train as experiment
from experiments import train_report, trained
from experiments.train_configuration import genotype, network, training_config
from ftnas_jax.checkpoints import RunError
from ftnas_jax.errors import InputError
from ftnas_jax.faults import MiBB, StuckAt
from ftnas_jax.supernet import Network
from ftnas_jax.training import Training, TrainingData

ROOT = Path(__file__).resolve().parent.parent
EPOCHS, TRAIN_STEPS = 3, 22  # 1437 images, in batches of 64


class Tiny(nn.Module):
    """A convolution with BatchNorm, and a classifier."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(6, (3, 3), use_bias=False, name="conv")(images)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="norm")(x))
        return nn.Dense(self.num_classes, name="classifier")(x.reshape(len(x), -1))


FIELDS = {
    "network": f"{__name__}:Tiny",
    "epochs": EPOCHS,
    "test_every": 2,
    "data.size": 8,
    "weights.learning_rate": 0.05,
}


def config_with(**fields) -> dict:
    """The quickstart's config with other fields (__ for a dot)."""
    config = train_quickstart.get_config()
    config.update_from_flattened_dict(FIELDS | {k.replace("__", "."): v for k, v in fields.items()})
    return config.to_dict()


def run(workdir, devices=None, **fields) -> int:
    return experiment.train(config_with(**fields), str(workdir), devices or jax.devices()[:2])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A training that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("trainings") / "whole"
    assert run(workdir) == 0
    return workdir


def rows(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_an_nnx_module_trains_and_is_loaded_as_any_other(tmp_path):
    assert run(tmp_path, network="tests.small_models:NnxNormed,width=20", epochs=4) == 0
    last = rows(tmp_path)[-1]
    assert last["test/accuracy_clean"] > 0.5  # of ten digits
    loaded = trained.load(tmp_path)
    images, labels = loaded.test_set()
    logits = loaded.model.apply(loaded.variables, images, train=False)
    accuracy = np.mean(np.argmax(logits, -1) == labels)
    assert accuracy == pytest.approx(last["test/accuracy_clean"], abs=0.05)  # but in fixed point


# The run directory


def test_metrics_have_a_row_an_epoch_and_tests_where_asked(finished):
    history = rows(finished)
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert ["test/accuracy_faulty" in row for row in history] == [False, True, True]
    for row in history:
        mixed = 0.3 * row["train/loss_clean"] + 0.7 * row["train/loss_faulty"]
        assert row["train/loss"] == pytest.approx(mixed, rel=1e-5)
    rates = [row["train/learning_rate"] for row in history]
    np.testing.assert_allclose(rates, [0.05, 0.005, 0.0005], rtol=1e-6)
    assert history[-1]["train/loss"] < history[0]["train/loss"]
    assert history[-1]["test/accuracy_clean"] > 0.8
    assert 0.5 < history[-1]["test/accuracy_faulty"] < 1


def test_files_tell_what_it_was(finished):
    stored = json.loads((finished / "config.json").read_text())
    assert stored == {"job": "training", "config": json.loads(json.dumps(config_with()))}
    text = (finished / "README.md").read_text()
    row = rows(finished)[-1]
    for fact in (
        "test_experiment_train:Tiny` on digits, trained under `stuck_at:p0=0.067,p1=0.013",
        f"{EPOCHS} epochs of batches of 64, seed 0",
        "0.3 clean + 0.7 faulty",
        "divided by 10 behind epochs [1, 2]",
        f"| {row['test/accuracy_clean']:.4f} |",
        f"| {row['test/accuracy_faulty']:.4f} |",
        "as 2 devices",
        "average clean passes; fraction lengths in faulty passes are those of the batch at hand",
        "](train.png)",
        "python -m experiments.evaluate --run",
    ):
        assert fact in text, fact
    assert (finished / "train.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished / "tensorboard").iterdir())


def test_signals_change_no_byte_of_the_result(finished, tmp_path, monkeypatch, capfd):
    """SIGTERM in the midst of either phase of an epoch, and each time the same command again."""

    def signalling(phase, when):
        whole, calls = getattr(Training, phase), []

        def call(*args):
            calls.append(args)
            if len(calls) == when:
                os.kill(os.getpid(), signal.SIGTERM)
            return whole(*args)

        return call

    # In the second of an epoch's 22 steps at the earliest; behind the first batch of a test.
    for phase, when, least in (("train", 2, 2), ("test", 1, 2 * TRAIN_STEPS + 1)):
        with monkeypatch.context() as patched:
            patched.setattr(Training, phase, signalling(phase, when))
            assert run(tmp_path) == 128 + signal.SIGTERM
        assert "stopping after this call, saving" in capfd.readouterr().err
        saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
        assert least <= saved < least + 4
        assert not (tmp_path / "README.md").exists()
    assert run(tmp_path) == 0
    assert f"after {saved} steps" in capfd.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    ours, theirs = trained.load(tmp_path), trained.load(finished)
    for a, b in zip(*(jax.tree.leaves(t.variables) for t in (ours, theirs)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_another_config_in_the_same_place_is_refused(finished):
    with pytest.raises(InputError, match=r"weights\.learning_rate was 0\.05, now 0\.1"):
        run(finished, weights__learning_rate=0.1)


def test_what_other_draws_began_is_not_gone_on_with(finished, monkeypatch):
    now = experiment.DRAWS
    monkeypatch.setattr(experiment, "DRAWS", now + 1)
    began = rf'began with {{"draws": {now}}} in draws.json, now it is {{"draws": {now + 1}}}'
    with pytest.raises(InputError, match=began):
        run(finished)


# Rates tried in turn


def test_rates_are_tried_in_turn_and_a_signal_changes_nothing(tmp_path, monkeypatch, capfd):
    fields = {"rates__tried": "0.9,0.08", "rates__epochs": 2, "rates__least_accuracy": 0.99}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(whole, **fields) == 0
    history = rows(whole)
    assert [row["epoch"] for row in history] == [1, 2, 1, 2, 3]
    assert [row["train/rate"] for row in history] == [0.9, 0.9, 0.08, 0.08, 0.08]
    assert "at a rate of 0.9 that is too little" in capfd.readouterr().out
    text = (whole / "README.md").read_text()
    judged = [f"{100 * history[place]['test/accuracy_clean']:.1f} % at" for place in (1, 3)]
    assert f"{judged[0]} 0.9, {judged[1]} 0.08; kept 0.08" in text
    found = trained.load(whole)
    assert found.epochs == EPOCHS
    assert f"under `{found.faults}`" in found.description
    assert training_config(config_with(faults=found.faults)).hardware.faults[0].rate == (
        pytest.approx(0.08)
    )

    train, calls = Training.train, []

    def signalling(*args):
        calls.append(args)
        if int(args[1].trial) == 1 and len(calls) > 4:
            calls.clear()
            os.kill(os.getpid(), signal.SIGTERM)
        return train(*args)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "train", signalling)
        assert run(cut, **fields) == 128 + signal.SIGTERM
    assert run(cut, **fields) == 0
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


# What is loaded


def test_a_trained_network_is_loaded_as_it_was_tested(finished):
    found = trained.load(finished)
    assert (found.name, found.epochs, found.data_name) == ("whole", EPOCHS, "digits")
    assert found.hardware == training_config(config_with()).hardware
    assert set(found.variables) == {"params", "batch_stats"}
    assert "after 3 of 3 epochs on digits under `stuck_at" in found.description
    images, labels = found.test_set()
    assert (images.shape, images.dtype, labels.shape) == ((360, 8, 8, 1), np.float32, (360,))
    np.testing.assert_allclose(images.mean(), 0, atol=0.1)
    logits = jax.jit(found.model.apply)(found.variables, images)
    share = float(np.mean(np.argmax(logits, -1) == labels))
    # In float32, where the test was in 8 bits.
    assert share == pytest.approx(rows(finished)[-1]["test/accuracy_clean"], abs=0.03)


def test_initial_variables_are_those_that_the_training_began_with(finished):
    found, config = trained.load(finished), config_with()
    data = TrainingData.of(trained.load_data(config["data"]))
    begun = Training(training_config(config), found.model, data).init().variables
    ours = found.initial_variables()
    assert jax.tree.structure(ours) == jax.tree.structure(begun)
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(begun), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)
    changed = found.variables["params"]["conv"]["kernel"] - ours["params"]["conv"]["kernel"]
    assert np.abs(changed).max() > 0.01


@pytest.fixture
def other(finished, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "other"))


def test_an_unfinished_training_is_loaded_with_a_warning(other, caplog):
    newest = max((other / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(newest)
    with caplog.at_level(logging.WARNING):
        found = trained.load(other)
    assert found.epochs == 2
    assert "2 of 3 epochs are done" in caplog.text


def without(*names: str):
    """Leave fields out of the config of a training."""

    def spoil(path: Path) -> None:
        stored = json.loads((path / "config.json").read_text())
        for name in names:
            del stored["config"][name]
        (path / "config.json").write_text(json.dumps(stored))

    return spoil


def test_a_training_from_before_a_field_came_is_loaded(other):
    before = trained.load(other).config
    without("norm_passes", "fraction_lengths")(other)
    assert trained.load(other).config == before


def damage(path: Path) -> None:
    for checkpoint in (path / "checkpoints").iterdir():
        os.truncate(checkpoint / "about.json", 10)


def rename_job(path: Path) -> None:
    stored = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(stored | {"job": "search"}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "there is no directory"),
        (lambda path: (path / "config.json").unlink(), "holds no run; name the --workdir"),
        (rename_job, "holds a search; name the --workdir of a training"),
        (lambda path: (path / "config.json").write_text("{"), "config.json is damaged"),
        (lambda path: shutil.rmtree(path / "checkpoints"), "has no checkpoint yet"),
        (lambda path: (path / "data.json").unlink(), "has no checkpoint yet"),
        (without("faults"), "the config lacks the field faults"),
        (damage, "checkpoints in .* are damaged"),
    ],
)
def test_what_cannot_be_loaded_is_named_in_one_line(other, spoil, message):
    spoil(other)
    with pytest.raises(InputError, match=message) as error:
        trained.load(other)
    assert "\n" not in str(error.value)


def test_other_data_than_those_of_the_training_are_refused(finished, monkeypatch):
    found = trained.load(finished)
    load = trained.load_data
    monkeypatch.setattr(trained, "load_data", lambda fields: load(fields | {"size": 10}))
    with pytest.raises(InputError, match="digits is no longer what"):
        found.test_set()


# Genotypes out of files


def test_the_genotype_of_a_file_is_kept(tmp_path):
    mine, kept = tmp_path / "mine.txt", tmp_path / "genotype.json"
    cells = "normal=[('{0}', 0, 2), ('none', 1, 2)], reduction=[('{0}', 0, 2), ('none', 1, 2)]"
    mine.write_text("# of my own\n" + cells.format("conv_1x1"))
    config = config_with(network=f"genotype: {mine}, channels=4")
    text = cells.format("conv_1x1")
    assert genotype(config) == {"best": {"genotype": text}}
    kept.write_text(json.dumps(genotype(config)))
    mine.write_text(cells.format("sep_conv_3x3"))
    found = network(config, 10, kept)
    assert isinstance(found, Network)
    assert found.config.channels == 4
    assert found.architecture == found.space.parse(text)
    assert genotype(config_with()) is None


def test_a_run_does_not_depend_on_where_a_genotype_was(tmp_path, monkeypatch):
    """The same genotype in two files is one run, another in the same file is refused."""
    monkeypatch.setattr(Training, "compile", lambda _: None)
    monkeypatch.setattr(experiment, "_train", lambda *_: None)
    monkeypatch.setattr(train_report, "write", lambda *_: None)
    one = "normal=[('none', 0, 2), ('none', 1, 2)], reduction=[('none', 0, 2), ('none', 1, 2)]"
    other = one.replace("none", "skip_connect")
    first, second, directory = tmp_path / "one.txt", tmp_path / "two.txt", tmp_path / "run"
    first.write_text(one)
    assert run(directory, network=f"genotype:{first},channels=4") == 0
    (directory / "metrics.jsonl").write_text("{}\n")  # work has been done
    second.write_text(one)
    assert run(directory, network=f"genotype:{second},channels=4") == 0
    stored = json.loads((directory / "config.json").read_text())["config"]
    assert stored["network"] == "genotype:genotype.json,channels=4"
    assert json.loads((directory / "genotype.json").read_text()) == {"best": {"genotype": one}}
    with pytest.raises(RunError, match=r'network was "genotype:genotype\.json,channels=4", now'):
        run(directory, network=f"genotype:{second},channels=5")
    second.write_text(other)
    with pytest.raises(RunError, match=r"began with .* in genotype.json, now it is .*skip_connect"):
        run(directory, network=f"genotype:{second},channels=4")


# What a training recommends


@pytest.mark.parametrize(("lengths", "calibrated"), [("batch", None), ("clean", "1024")])
def test_a_campaign_measures_a_network_as_it_was_trained(tmp_path, lengths, calibrated):
    config = config_with(fraction_lengths=lengths)
    data = SimpleNamespace(train_images=np.zeros((1437, 1, 1, 1)))
    job = SimpleNamespace(config=training_config(config), data=data)
    arguments = train_report._evaluation(tmp_path, config, job, SimpleNamespace(trial=0))
    flags = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert flags.get("--calibrate") == calibrated
    assert flags["--faults"] == config["faults"]


# Bad input


def never(*_):
    raise AssertionError("bad input was let through to the compiled steps")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network": "resnet19"}, "unknown network 'resnet19'; did you mean resnet18"),
        ({"network": "resnet18:width=0"}, "width is 0.0"),
        ({"network": "vgg16"}, "images of 8x8 are too small for vgg16"),
        ({"network": "genotype:no/file"}, "genotype: cannot read 'no/file'"),
        ({"faults": ""}, "alpha_l is 0.7, but there are no faults"),
        ({"faults": "mibb:p_m=1.5"}, "p_m is 1.5; a rate lies in"),
        ({"faults": "stuck_at:layers=stem"}, "called 'stem'"),
        ({"gradients": "none"}, "gradients is 'none'"),
        ({"curriculum_epochs": 4}, "curriculum_epochs is 4"),
        ({"test_every": 0}, "test_every is 0"),
        ({"rates.tried": "3e-4;1e-4"}, "rates.tried is '3e-4;1e-4'; give numbers"),
        ({"rates.tried": "0.1,0.2", "rates.epochs": 1}, "rates.tried is (0.1, 0.2)"),
        (
            {"rates.tried": "0.2,0.1", "rates.epochs": 2, "curriculum_epochs": 2},
            "rates.epochs is 2; a trial outlasts curriculum_epochs, 2",
        ),
        ({"weights.drops": (0.8, 0.4)}, "drops is (0.8, 0.4)"),
        ({"weights.drops": (1,)}, "weights.drops is (1,); it takes a value like (0.4, 0.8)"),
        ({"weights.alpha_l": 1.5}, "alpha_l is 1.5"),
        ({"batch_size": 2000}, "batch_size is 2000, but there are only 1437 training images"),
        ({"data.name": "no_such_set"}, "unknown data set 'no_such_set'"),
        ({"data.size": -1}, "data.size is -1"),
        ({"checkpoint_minutes": 0.0}, "checkpoint_minutes is 0.0"),
        ({"quantization.weight_encoding": "twos_complement"}, "are of crossbars"),
    ],
)
def test_bad_input_is_named_before_anything_is_compiled(tmp_path, monkeypatch, fields, message):
    monkeypatch.setattr(Training, "compile", never)
    fields |= {"data.data_dir": str(tmp_path / "data")}
    with pytest.raises(InputError) as error:
        run(tmp_path / "run", **fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_mistake_on_the_command_line_is_one_line_and_code_2(tmp_path):
    flags = ["--config=configs/train_quickstart.py", "--config.network=resnet19"]
    command = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path / 'run'}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: unknown network 'resnet19'; did you mean resnet18?"]
    assert not (tmp_path / "run").exists()


# The configs


@pytest.mark.parametrize(
    ("module", "fault", "alpha_l"),
    [
        (train_wftt, StuckAt(0.067, 0.013, layers="!classifier"), 0.7),
        (train_resnet18, StuckAt(0.067, 0.013, layers="!classifier"), 0.7),
        (train_vgg16, StuckAt(0.067, 0.013, layers="!classifier"), 0.7),
        (train_mobilenet_v2, StuckAt(0.067, 0.013, layers="!classifier"), 0.7),
        (train_fftt, MiBB(3e-4), 0.5),
    ],
)
def test_published_settings(module, fault, alpha_l):
    """§5.1's numbers, and those of §5.2 and §5.3."""
    fields = module.get_config().to_dict()
    config = training_config(fields)
    assert (config.hardware.faults, config.alpha_l) == ((fault,), alpha_l)
    assert (config.epochs, config.batch_size, config.drop_epochs()) == (100, 128, (40, 80))
    assert (config.learning_rate, config.momentum, config.weight_decay) == (0.1, 0.9, 4e-5)
    assert (config.gradient_clip, config.hardware.gradients) == (5.0, "straight_through")
    assert (config.hardware.weights.bits, config.hardware.features.bits) == (8, 8)
    assert fields["data"]["name"] == "cifar10"
    assert network(fields, 10) is not None
