"""What a finished training leaves behind for its reader: a picture and README.md."""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from configs import train_defaults
from experiments.durations import duration
from experiments.trained import faults_of
from ftnas_jax import machine
from ftnas_jax.campaigns.statistics import proportion
from ftnas_jax.plots.curves import draw_training
from ftnas_jax.plots.style import save_figure
from ftnas_jax.run import RunDir
from ftnas_jax.training import Training, TrainingState
from ftnas_jax.training_config import TrainingConfig

_NAMES = ("clean", "faulty")

_CALIBRATION = 1024
"""Training images that freeze fraction lengths in the campaign of a training that held them."""


def write(run: RunDir, config: Mapping[str, Any], job: Training, state: TrainingState) -> None:
    """Write the picture and README.md of a finished training."""
    history = _rows(run.path / "metrics.jsonl")
    save_figure(draw_training(history[-job.config.epochs :]), run.path / "train")
    run.write_text("README.md", _readme(run.path, config, job, state, history))


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _readme(path: Path, config, job: Training, state: TrainingState, history) -> str:
    return "\n".join(
        [
            f"# Training {path.name}",
            "",
            *_what_it_was(path, config, job, state),
            *_trials(job.config, history),
            "",
            "Every field is in [config.json](config.json).",
            "",
            "## What came of it",
            "",
            *_numbers(history[-1], job),
            "",
            "![Losses and accuracies by epoch](train.png)",
            "",
            "What many chips say, with an interval over them:",
            "",
            "```",
            f"python -m experiments.evaluate {shlex.join(_evaluation(path, config, job, state))}",
            "```",
            "",
            *_FILES,
            "",
        ]
    )


def _evaluation(path: Path, config, job: Training, state: TrainingState) -> list[str]:
    folder = os.path.relpath(path)
    trained_under = faults_of(config, job.config, int(state.trial))
    faults = trained_under or train_defaults.get_config().faults
    named = ["--run", folder, "--workdir", f"{folder}-campaign", "--faults", str(faults)]
    if job.config.fraction_lengths == "batch":
        return named
    # As in its own tests; without it lengths would follow the faults again.
    return [*named, "--calibrate", str(min(_CALIBRATION, len(job.data.train_images)))]


def _what_it_was(path: Path, config, job: Training, state: TrainingState) -> list[str]:
    settings, quantization = job.config, config["quantization"]
    weights = jax.tree.leaves(state.params)
    how = _how(config, settings, int(state.trial))
    seconds = sum(row["seconds"] for row in _rows(path / "timing.jsonl"))
    return [
        f"`{config['network']}` on {config['data']['name']}, trained {how}, "
        f"{settings.epochs} epochs of batches of {settings.batch_size}, seed {settings.seed}.",
        "",
        "```",
        f"python -m experiments.train {shlex.join(sys.argv[1:])}",
        "```",
        "",
        f"- network: {sum(leaf.size for leaf in weights):,} parameters",
        f"- loss: {1 - settings.alpha_l:g} clean + {settings.alpha_l:g} faulty; gradients at "
        f"faults {settings.hardware.gradients.replace('_', ' ')}",
        f"- SGD: learning rate {settings.learning_rate:g}, divided by 10 behind epochs "
        f"{list(settings.drop_epochs())}, momentum {settings.momentum:g}, "
        f"weight decay {settings.weight_decay:g}, gradients clipped at {settings.gradient_clip:g}",
        f"- fixed point: weights of {quantization['weight_bits']} bits in "
        f"{quantization['weight_encoding']}, features of {quantization['feature_bits']} bits",
        f"- running statistics of BatchNorm average {settings.norm_passes} passes; fraction "
        f"lengths in faulty passes are those of the {_LENGTHS[settings.fraction_lengths]}",
        f"- time: {duration(seconds)}, tests included, on {machine.describe(job.mesh.devices)}",
    ]


def _trials(settings: TrainingConfig, history) -> list[str]:
    """What became of the rates that were tried."""
    if settings.rates is None:
        return []
    judged = [row for row in history if settings.judges(row["epoch"] - 1)]
    passed = judged[-1]["test/accuracy_clean"] > settings.rates.least_accuracy
    kept = f"kept {judged[-1]['train/rate']:g}" + ("" if passed else ", the last, which is not")
    accuracies = ", ".join(
        f"{100 * row['test/accuracy_clean']:.1f} % at {row['train/rate']:g}" for row in judged
    )
    return [
        f"- rates tried ({settings.rates.epochs} epochs each, to go on above "
        f"{100 * settings.rates.least_accuracy:g} % clean accuracy): {accuracies}; {kept}"
    ]


def _how(config, settings: TrainingConfig, trial: int) -> str:
    if settings.alpha_l == 0:
        return "without faults"
    epochs = settings.curriculum_epochs
    growing = f", whose rates grew over the first {epochs} epochs," if epochs else ""
    return f"under `{faults_of(config, settings, trial)}`{growing}"


def _numbers(last: Mapping[str, float], job: Training) -> list[str]:
    images = len(job.data.test_images)
    lines = ["| pass | training accuracy | test accuracy | 95 % interval |", "|---|---|---|---|"]
    for name in _NAMES:
        test = last.get(f"test/accuracy_{name}")
        if test is not None:
            interval = proportion(round(test * images), images)
            train = last.get(f"train/accuracy_{name}")
            lines.append(
                f"| {name} | {'-' if train is None else f'{train:.4f}'} | {test:.4f} "
                f"| {interval.low:.4f} to {interval.high:.4f} |"
            )
    return [
        *lines,
        "",
        "Training accuracy is the mean over the last epoch, on augmented images and while the "
        f"weights moved. Test accuracy is after it, on {images:,} images with the running "
        "statistics of BatchNorm; the interval is Wilson's, over images. The faulty one is of one "
        "chip.",
    ]


_LENGTHS = {"batch": "batch at hand", "clean": "clean pass"}

_FILES = [
    "## Files",
    "",
    "| file | what is in it |",
    "|---|---|",
    "| config.json | every setting |",
    "| data.json | which data, and how images are normalized |",
    "| genotype.json | the genotype of the network, where it was in a file |",
    "| draws.json | by which version of the sampler faults are drawn |",
    "| metrics.jsonl | means over each epoch, and test accuracies |",
    "| timing.jsonl | seconds up to each checkpoint |",
    "| tensorboard/ | the metrics, as events |",
    "| checkpoints/ | the newest states |",
]
