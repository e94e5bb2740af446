"""Fault-tolerant training of one network from scratch (§5.1, Fig. 4c), in compiled steps.

Every step is a pure function of the state, the data and keys folded from (seed, phase, epoch,
step), so how many steps one call runs, and where a training was interrupted, change nothing.

* The clean and the faulty pass of a step see the same images, both in fixed point; the faults of
  every step are new ones.
* Running statistics of BatchNorm are those of clean passes, by default, or means over both passes;
  of faulty ones where there are no others (alpha_l = 1). Accuracies on test images are measured
  with them.
* The random crop moves in zeros of the normalized image, its mean colour, not black.
* Two devices share a step: one runs the clean pass, the other the faulty one. More are not used,
  since a linen BatchNorm would have to be synchronized over a batch that they split.
* On CPU every step is a call of its program, because inside loops XLA computes gradients of
  convolutions many times slower there; elsewhere all the steps of a call are one program.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftnas_jax.augment import augment, normalize
from ftnas_jax.data import Dataset
from ftnas_jax.graph.calibration import sound_lengths
from ftnas_jax.graph.model import on_hardware
from ftnas_jax.nn.hardware import Draw
from ftnas_jax.search_mesh import SearchMesh
from ftnas_jax.training_config import TrainingConfig

_INIT, _TRAIN, _TEST = range(3)  # as folded into the root key

_COLLECTIONS = {"params", "batch_stats"}


class TrainingData(NamedTuple):
    """A data set as arrays on the device.

    Attributes:
        train_images: uint8 [N, H, W, C].
        train_labels: int32 [N].
        test_images: uint8 [N_test, H, W, C].
        test_labels: int32 [N_test].
        mean: float32 [C] of the training pixels, in [0, 1] units.
        std: float32 [C].
    """

    train_images: jax.Array
    train_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array
    mean: jax.Array
    std: jax.Array

    @classmethod
    def of(cls, dataset: Dataset) -> "TrainingData":
        """All images of a data set, and how they are normalized."""
        arrays = (dataset.images, dataset.labels, dataset.test_images, dataset.test_labels)
        return cls(*map(jnp.asarray, (*arrays, *dataset.mean_std())))


class TrainingState(NamedTuple):
    """What a training carries from step to step, all of it arrays.

    Attributes:
        params: weights.
        batch_stats: running statistics of BatchNorm; empty in a model without.
        opt_state: of the optimizer.
        totals: sums over the steps of the current epoch, by metric.
        trial: which of the rates of `RateTrials` is at work, an int32 scalar; 0 without them.
    """

    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    totals: dict[str, jax.Array]
    trial: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """As the model takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def steps(self) -> jax.Array:
        """Steps of training that are done, an int32 scalar."""
        return optax.tree.get(self.opt_state, "count")


class Training:
    """The compiled steps of one training.

    Args:
        config: how to train.
        model: a Flax linen module, called as `model(images, train=...)`, that returns logits
            [B, classes]; its variables are in `params` and `batch_stats`.
        data: what to train and test on; it is copied to every device.
        devices: that share the work, by default one; those that find no work are left out.

    Raises:
        ValueError: model, data and config do not fit.

    Attributes:
        train_steps: steps of training in an epoch.
        test_steps: steps of a measurement on all test images.
        chip: the model on the hardware of the config.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: nn.Module,
        data: TrainingData,
        devices: Sequence[Any] | None = None,
    ):
        there = list(devices or jax.devices()[:1])
        self.mesh = SearchMesh(there[: len(config.passes)], config.batch_size)
        self.config, self.model, self.data = config, model, self.mesh.place(data)
        self.chip = on_hardware(model, config.hardware)
        self.train_steps = len(data.train_images) // config.batch_size
        self.test_steps = -(-len(data.test_images) // config.batch_size)
        self._optimizer = _optimizer(config, self.train_steps)
        self._root = jax.random.key(config.seed)
        self._shapes = state_shapes(config, model, data.train_images.shape[1:])
        self._check()
        self._run_init = self.mesh.jit(self._init)
        self._run_order = self.mesh.jit(self._order)
        self._run_train = self._program(self._train_step)
        self._run_test = self._program(self._test_step)

    # What a job calls

    def compile(self) -> dict[str, jax.stages.Compiled]:
        """Compile what the first step needs, side by side; the rest is compiled at its first call.

        Returns:
            The programs, to look at: `init`, `order` and `train`.
        """
        state, number = self.mesh.described(self.shapes()), np.int32(0)
        order = self.mesh.described(self._run_order.eval_shape(self._root))
        ends = (number, number) if self._loops else (number,)
        calls = {
            "train": (self._run_train, state, self.data, order, self._root, number, *ends),
            "init": (self._run_init, self._root),
            "order": (self._run_order, self._root),
        }
        with ThreadPoolExecutor(len(calls)) as pool:
            # XLA holds no lock of Python's: while it compiles one program the next is traced here.
            compiling = {
                name: pool.submit(run.lower(*args).compile) for name, (run, *args) in calls.items()
            }
        return {name: program.result() for name, program in compiling.items()}

    def shapes(self) -> TrainingState:
        """The shapes and types of a state's arrays; nothing is compiled."""
        return self._shapes

    def init(self) -> TrainingState:
        """The state before the first step."""
        return self._run_init(initial_key(self.config.seed))

    def train(self, state: TrainingState, epoch: int, start: int, stop: int) -> TrainingState:
        """Steps `start` to `stop` (exclusive) of training in an epoch; donates `state`."""
        key = jax.random.fold_in(jax.random.fold_in(self._root, _TRAIN), epoch)
        order = self._run_order(key)
        return self._call(self._run_train, state, order, key, epoch, start, stop)

    def test(self, state: TrainingState, epoch: int, start: int, stop: int) -> TrainingState:
        """Batches `start` to `stop` (exclusive) of test images; donates `state`.

        Every epoch meets the same chip: the faults are those of one draw.
        """
        key = jax.random.fold_in(self._root, _TEST)
        return self._call(self._run_test, state, (), key, epoch, start, stop)

    def metrics(self, state: TrainingState, epoch: int) -> dict[str, float]:
        """Means over an epoch (counted from 0) as a flat row.

        The row's own `epoch` counts how many are done. Accuracies on test images are there after
        an epoch that was tested.
        """
        totals = {name: float(value) for name, value in jax.device_get(state.totals).items()}
        row: dict[str, float] = {"epoch": epoch + 1}
        for name, value in totals.items():
            if name.startswith("train/"):
                row[name] = value / self.train_steps
            elif self.config.is_tested(epoch):
                row[name] = value / len(self.data.test_images)
        row["train/learning_rate"] = float(learning_rate(self.config, jnp.int32(epoch)))
        if self.config.rates is not None:
            row["train/rate"] = self.config.rates.tried[int(state.trial)]
        return row

    def reset_totals(self, state: TrainingState) -> TrainingState:
        """The state at the start of an epoch."""
        return state._replace(totals=jax.tree.map(jnp.zeros_like, state.totals))

    def gives_up(self, state: TrainingState, epoch: int) -> bool:
        """Whether an epoch, counted from 0, ended the trial of a rate that is not kept."""
        rates = self.config.rates
        if rates is None or not self.config.judges(epoch) or int(state.trial) == rates.last:
            return False
        return self.metrics(state, epoch)["test/accuracy_clean"] <= rates.least_accuracy

    def trial_steps(self) -> int:
        """Steps, those on test images included, of a trial that is given up."""
        tests = sum(map(self.config.is_tested, range(self.config.trial_epochs)))
        return self.config.trial_epochs * self.train_steps + tests * self.test_steps

    def next_trial(self, state: TrainingState) -> TrainingState:
        """The state before the first step at the next rate."""
        return self.init()._replace(trial=state.trial + 1)

    def _check(self) -> None:
        """Raise ValueError where there is no step to make, or the model is none for the data."""
        data, size = self.data, self.config.batch_size
        if not self.train_steps:
            count = len(data.train_images)
            raise ValueError(f"batch_size is {size}, but there are only {count} training images")
        if not len(data.test_images):
            raise ValueError("there are no test images")
        images = jax.ShapeDtypeStruct((size, *data.train_images.shape[1:]), jnp.float32)

        def logits(variables, images, key):
            try:
                passes = self.config.test_passes
                chip = self._frozen(self.chip, passes, variables, images, train=False)
            except ValueError as error:
                raise ValueError(f"fraction_lengths is clean: {error}") from error
            return chip.apply(variables, images, draw=Draw(key), train=False)

        found = jax.eval_shape(logits, self._shapes.variables, images, self._root)
        classes = 1 + int(max(data.train_labels.max(), data.test_labels.max()))
        shape = getattr(found, "shape", ())
        if len(shape) != 2 or len(found) != size or shape[1] < classes:
            raise ValueError(
                f"the model returns {shape or type(found).__name__} for {size} images of {classes} "
                f"classes; it is to return logits [images, classes]"
            )

    # Programs

    @property
    def _loops(self) -> bool:
        """Whether steps, and the two passes of a step, may stand in loops; see the module."""
        return self.mesh.devices[0].platform != "cpu"

    def _program(self, step: Callable[..., TrainingState]) -> Callable[..., TrainingState]:
        """Steps compiled: (state, data, order, key, epoch, start, stop), or on CPU a single one."""

        def loop(state, data, order, key, epoch, start, stop):
            def body(number, state):
                return step(state, data, order, key, epoch, number)

            return jax.lax.fori_loop(start, stop, body, state)

        return self.mesh.jit(loop if self._loops else step, donate_argnums=0)

    def _call(self, program, state, order, key, epoch: int, start: int, stop: int):
        args = (self.data, order, key, np.int32(epoch))
        if self._loops:
            return program(state, *args, np.int32(start), np.int32(stop))
        for number in range(start, stop):
            state = jax.block_until_ready(program(state, *args, np.int32(number)))
        return state

    def _init(self, key: jax.Array) -> TrainingState:
        return _initial_state(self.config, self.model, self.data.train_images.shape[1:], key)

    def _order(self, key: jax.Array) -> jax.Array:
        """The epoch's order of images, int32 [N]; of a fold that no step uses."""
        return jax.random.permutation(jax.random.fold_in(key, 0), len(self.data.train_images))

    # Training

    def _train_step(self, state: TrainingState, data, order, key, epoch, step) -> TrainingState:
        """One step of SGD on Eq. 13."""
        augment_key, pass_key = jax.random.split(jax.random.fold_in(key, step + 1))
        size = self.config.batch_size
        rows = jax.lax.dynamic_slice_in_dim(order, step * size, size)
        x = self._augment(augment_key, data.train_images[rows], data)
        chip = self._chip(state.trial, fault_scale(self.config, self.train_steps, epoch, step))
        # The clean pass has them from itself: for both it is one forward pass more.
        _, dropout_key = _pass_keys(pass_key, False)
        passes, options = self.config.passes, _training(dropout_key)
        chip = self._frozen(chip, passes, state.variables, x, **options)
        loss = functools.partial(self._loss, chip, state, x, data.train_labels[rows], pass_key)
        gradient, metrics, batch_stats = self._gradients(state.params, loss)
        metrics["train/gradient_norm"] = optax.tree.norm(gradient)
        with jax.named_scope("optimizer"):
            updates, opt_state = self._optimizer.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        totals = _add(state.totals, metrics)
        return TrainingState(params, batch_stats, opt_state, totals, state.trial)

    def _augment(self, key: jax.Array, images: jax.Array, data: TrainingData) -> jax.Array:
        config = self.config
        return augment(
            *(key, images, data.mean, data.std), crop_padding=config.crop_padding, flip=config.flip
        )

    def _chip(self, trial: jax.Array, scale: jax.Array | None = None) -> Any:
        """The model on hardware whose faults have the rates of a trial times `scale`."""
        rates, faults = self.config.rates, self.config.hardware.faults
        if rates is None and scale is None:
            return self.chip
        if rates is not None:
            faults = (faults[0].at_rate(jnp.asarray(rates.tried, jnp.float32)[trial]),)
        if scale is not None:
            faults = tuple(m.at_rate(m.rate * scale) for m in faults)
        return self.chip.with_hardware(dataclasses.replace(self.config.hardware, faults=faults))

    def _loss(self, chip, state: TrainingState, x, labels, key, params, faulty):
        """Cross entropy of one pass; also its accuracy and the BatchNorm statistics after it."""
        fault_key, dropout_key = _pass_keys(key, faulty)
        variables = {"params": params, "batch_stats": state.batch_stats}
        draw = Draw(fault_key, faulty)
        logits, updates = chip.apply(variables, x, draw=draw, **_training(dropout_key))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        accuracy = jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))
        return loss, (accuracy, updates.get("batch_stats", state.batch_stats))

    def _frozen(self, chip, passes, variables, x, **options):
        """The chip with the fraction lengths of a clean pass of x, if faulty passes are to have."""
        if self.config.fraction_lengths == "batch" or not any(faulty for faulty, _ in passes):
            return chip
        with jax.named_scope("fraction_lengths"):
            return dataclasses.replace(chip, lengths=sound_lengths(chip, variables, x, **options))

    def _gradients(self, params, loss):
        """The gradient of Eq. 13, metrics, and the statistics of BatchNorm."""
        passes = self.config.passes
        differentiate = jax.value_and_grad(loss, has_aux=True)

        def add_pass(total, one):
            faulty, weight = one
            (value, (accuracy, stats)), gradient = differentiate(params, faulty)
            total = jax.tree.map(lambda t, g: t + weight * g, total, gradient)
            return total, (value, accuracy, stats)

        zero = jax.tree.map(jnp.zeros_like, params)
        gradient, (values, accuracies, stats) = self._over(passes, add_pass, zero)
        metrics = {"train/loss": jnp.dot(values, jnp.asarray([w for _, w in passes]))}
        for place, (faulty, _) in enumerate(passes):
            metrics[f"train/loss_{_name(faulty)}"] = values[place]
            metrics[f"train/accuracy_{_name(faulty)}"] = accuracies[place]
        return gradient, metrics, jax.tree.map(self._join_statistics, stats)

    def _join_statistics(self, of_passes: jax.Array) -> jax.Array:
        """Running statistics after a step out of those after each pass, [passes, ...].

        Averages are linear: the mean of both is the running average of their mean.
        """
        clean = self.config.norm_passes == "clean"
        averages = jnp.issubdtype(of_passes.dtype, jnp.inexact)  # others count something
        return of_passes[0] if clean or not averages else jnp.mean(of_passes, 0)

    def _over(self, passes: Sequence[tuple[bool, float]], add_pass, zero):
        """`lax.scan` over passes, in whichever way is fast."""
        if len(passes) == 2 and (self.mesh.two_passes or self._loops):
            faulty, weights = zip(*passes, strict=True)
            both = (jnp.asarray(faulty), jnp.asarray(weights, jnp.float32))
            return self.mesh.scan_passes(add_pass, zero, both)
        total, outputs = zero, []
        for one in passes:  # known while tracing: a clean one draws no faults
            total, output = add_pass(total, one)
            outputs.append(output)
        return total, jax.tree.map(lambda *own: jnp.stack(own), *outputs)

    # Test

    @property
    def _test_batch(self) -> int:
        return min(self.config.batch_size, len(self.data.test_images))

    def _test_step(self, state: TrainingState, data, order, key, epoch, step) -> TrainingState:
        """Images classified rightly of one batch, added to the totals. Consumes `key`."""
        del order, epoch
        size = self._test_batch
        # The last batch is full as well: what others have counted, it does not count again.
        first = jnp.minimum(step * size, len(data.test_images) - size)
        counted = first + jnp.arange(size, dtype=jnp.int32) >= step * size
        images, labels = (
            jax.lax.dynamic_slice_in_dim(whole, first, size)
            for whole in (data.test_images, data.test_labels)
        )
        x = normalize(images, data.mean, data.std)

        def count(nothing, one):
            draw = Draw(key, one[0], first)
            logits = chip.apply(state.variables, x, draw=draw, train=False)
            right = (jnp.argmax(logits, -1) == labels) & counted
            return nothing, jnp.sum(right.astype(jnp.float32))

        passes = self.config.test_passes
        chip = self._frozen(self._chip(state.trial), passes, state.variables, x, train=False)
        _, rights = self._over(passes, count, ())
        names = [f"test/accuracy_{_name(faulty)}" for faulty, _ in passes]
        return state._replace(totals=_add(state.totals, dict(zip(names, rights, strict=True))))


def initial_key(seed: int) -> jax.Array:
    """The key by which the model's variables are drawn."""
    return jax.random.fold_in(jax.random.key(seed), _INIT)


def state_shapes(
    config: TrainingConfig, model: nn.Module, image_shape: tuple[int, ...]
) -> TrainingState:
    """The shapes and types of a state's arrays, for images [H, W, C].

    Raises:
        ValueError: the model has no `train`, or variables that a training does not know.
    """
    parameters = inspect.signature(type(model).__call__).parameters
    if not any(p.name == "train" or p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise ValueError(f"{type(model).__name__} cannot be called as model(images, train=True)")
    init = functools.partial(_initial_state, config, model, image_shape)
    return jax.eval_shape(init, jax.random.key(0))


def learning_rate(config: TrainingConfig, epoch: jax.Array) -> jax.Array:
    """Of SGD in an epoch, counted from 0."""
    drops = config.drop_epochs()
    rates = jnp.asarray([config.learning_rate / 10**count for count in range(len(drops) + 1)])
    return rates[jnp.sum(jnp.asarray(drops, jnp.int32) <= epoch)]


def fault_scale(
    config: TrainingConfig, steps: int, epoch: jax.Array, step: jax.Array
) -> jax.Array | None:
    """What the rates of faults are multiplied with in a step; None without a curriculum.

    Args:
        config: has `curriculum_epochs`, k.
        steps: in an epoch.
        epoch: counted from 0.
        step: of the epoch, counted from 0.

    Returns:
        float32, from 1 / (k · steps) in the very first step to 1 in the last one of k epochs.
    """
    if not config.curriculum_epochs:
        return None
    done = (epoch * steps + step + 1).astype(jnp.float32)
    return jnp.minimum(done / jnp.float32(config.curriculum_epochs * steps), 1.0)


def _initial_state(
    config: TrainingConfig, model: nn.Module, image_shape: tuple[int, ...], key: jax.Array
) -> TrainingState:
    variables = model.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False)
    unknown = sorted(set(variables) - _COLLECTIONS)
    if unknown:
        raise ValueError(
            f"{type(model).__name__} has variables in {unknown[0]!r}; a training knows those in "
            "params and batch_stats"
        )
    return TrainingState(
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=_optimizer(config, 1).init(variables["params"]),
        totals={name: jnp.zeros((), jnp.float32) for name in _metric_names(config)},
        trial=jnp.int32(0),
    )


def _metric_names(config: TrainingConfig) -> list[str]:
    names = ["train/loss", "train/gradient_norm"]
    for faulty, _ in config.passes:
        names += [f"train/loss_{_name(faulty)}", f"train/accuracy_{_name(faulty)}"]
    return names + [f"test/accuracy_{_name(faulty)}" for faulty, _ in config.test_passes]


def _pass_keys(key: jax.Array, faulty: bool | jax.Array) -> jax.Array:
    """Of the faults and of the dropout of a pass."""
    return jax.random.split(jax.random.fold_in(key, faulty))


def _training(dropout_key: jax.Array) -> dict[str, Any]:
    """Options of a model's call in training."""
    return {"train": True, "rngs": {"dropout": dropout_key}, "mutable": ["batch_stats"]}


def _name(faulty: bool) -> str:
    return "faulty" if faulty else "clean"


def _optimizer(config: TrainingConfig, steps: int) -> optax.GradientTransformation:
    """SGD as in the published code: clip, decay, momentum, a rate that drops."""

    def rate(count: Any) -> jax.Array:
        return learning_rate(config, count // steps)

    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate, config.momentum),
    )


def _add(totals: dict[str, jax.Array], metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return totals | {name: totals[name] + value for name, value in metrics.items()}
