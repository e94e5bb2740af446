"""Fault-tolerant training of one network: `python -m experiments.train --config C --workdir W`.

The same command goes on with a run that was interrupted, to the same result. Fields of the config
are overridden as --config.weights.alpha_l=0; see `configs/train_defaults.py` for all of them.
`python -m experiments.evaluate --run W` measures what it leaves behind on many chips.
"""

if __name__ == "__main__":
    from experiments import large_pages

    large_pages.restart()  # before the other imports, which would all be made again

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import cli, train_report
from experiments.phases import EpochEnd, Loop, Phase
from experiments.prepare import check_disk, load_data
from experiments.train_configuration import genotype, network, training_config, with_genotype
from experiments.trained import DATA, GENOTYPE, JOB, facts
from ftnas_jax.errors import InputError, as_input_error
from ftnas_jax.loop import Progress, Terminator
from ftnas_jax.nn.hardware import DRAWS
from ftnas_jax.run import RunDir
from ftnas_jax.training import Training, TrainingData, TrainingState

_MAY_CHANGE = ("data.data_dir", "data.cache_dir", "checkpoint_minutes")
"""Fields that change no result, so that a run may go on with other values."""


def train(config: Mapping[str, Any], workdir: str, devices: list[Any] | None = None) -> int:
    """Run, or go on with, the training that `config` describes in `workdir`; returns an exit code.

    Args:
        config: as in `configs/train_defaults.py`.
        workdir: the run directory.
        devices: to run on; by default one.

    Raises:
        InputError: for bad input, before anything is compiled.
    """
    training_config(config)  # before the directory or any data are touched
    network(config, num_classes=2)
    # What a genotype's file is called, and where, is not part of the run: a copy of it is.
    kept = dict(config) | {"network": with_genotype(config["network"], GENOTYPE)}
    with RunDir(workdir, kept, job=JOB, ignore=_MAY_CHANGE) as run:
        job = _prepare(config, run, devices)
        with Terminator() as stop:  # until here nothing would be lost
            state = _train(job, run, stop, config["checkpoint_minutes"])
            if not stop.requested:
                train_report.write(run, config, job, state)
                print(f"\nresults: {run.path / 'README.md'}")
            return stop.exit_code


def _prepare(config: Mapping[str, Any], run: RunDir, devices) -> Training:
    """The training on its data, checked and then compiled as far as the first step needs."""
    dataset = load_data(config["data"])
    run.pin(DATA, facts(dataset))
    run.pin("draws.json", {"draws": DRAWS})
    found = genotype(config)
    if found is not None:
        run.pin(GENOTYPE, found)
    data = TrainingData.of(dataset)
    with as_input_error():
        model = network(config, dataset.num_classes)
        job = Training(training_config(config), model, data, devices)
    check_disk(run, job.shapes())
    Progress(0).log("compiling the training ...")
    job.compile()
    return job


def _train(job: Training, run: RunDir, stop: Terminator, checkpoint_minutes: float):
    """From the newest checkpoint on; saves at the end of every epoch and in between."""
    training = Phase(job.train, job.train_steps)
    test = Phase(job.test, job.test_steps)

    def phases(epoch: int) -> tuple[Phase, ...]:
        return (training, test) if job.config.is_tested(epoch) else (training,)

    def end_epoch(state: TrainingState, epoch: int) -> EpochEnd:
        row = _end_epoch(job, run, state, epoch)
        shown = {"loss": row["train/loss"]}
        if job.gives_up(state, epoch):
            line = f"{_line(row)}; at a rate of {row['train/rate']:g} that is too little"
            return EpochEnd(line, shown, job.next_trial(state), anew=True)
        return EpochEnd(_line(row), shown, job.reset_totals(state))

    state = job.init()
    state, done = run.restore(state) or (state, 0)
    loop = Loop("training", job.config.epochs, phases, end_epoch)
    given_up = int(state.trial) * job.trial_steps()
    return loop.run(state, done, run, stop, checkpoint_minutes, given_up)


def _end_epoch(job: Training, run: RunDir, state: TrainingState, epoch: int) -> dict[str, float]:
    """Write the epoch's rows; a training that diverged ends here."""
    row = job.metrics(state, epoch)
    if not np.isfinite(row["train/gradient_norm"]):
        raise InputError(
            f"the training diverged in epoch {epoch + 1} (gradients are not finite); "
            "lower weights.learning_rate or weights.gradient_clip and start in a new workdir"
        )
    run.write_metrics(row)
    run.write_scalars(int(state.trial) * job.config.trial_epochs + epoch + 1, row)
    return row


def _line(row: Mapping[str, float]) -> str:
    """As in "epoch 3: loss 0.512; accuracy clean 0.871, faulty 0.822; test clean 0.9, ..."."""
    parts = [f"epoch {row['epoch']}: loss {row['train/loss']:.3f}"]
    for title in ("train", "test"):
        names = [name for name in ("clean", "faulty") if f"{title}/accuracy_{name}" in row]
        if names:
            accuracies = [f"{name} {row[f'{title}/accuracy_{name}']:.3f}" for name in names]
            parts.append(f"{title} accuracy {', '.join(accuracies)}")
    return "; ".join(parts)


if __name__ == "__main__":
    cli.run(train)
