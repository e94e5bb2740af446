"""FTT-NAS, Algorithm 1: shared weights and a controller, trained in turn, with faults in the loop.

Every step is a pure function of the state, the data and keys folded from (seed, phase, epoch,
step), so how many steps one compiled call runs, and where a run was interrupted, change nothing.
The number of devices changes only how sums are rounded.

Where the paper leaves a choice open:

* The clean and the faulty pass of a step see the same images and architecture, with dropout of
  their own.
* Both passes compute in fixed point, as the text says; in the published code the clean pass under
  feature faults does not.
* The reward is measured without dropout, on augmented held-out batches as in the published code.
* The random crop moves in zeros of the normalized image, its mean colour, not black.
* Every parameter decays and moves by its momentum in every step, also where the sampled
  architecture does not use it, as with the PyTorch of the published code. (Since PyTorch 2.0
  `zero_grad` removes gradients in place of zeroing them, and unused parameters stand still.)
"""

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftnas_jax.augment import augment, normalize
from ftnas_jax.controller import Controller, ControllerState
from ftnas_jax.nn.hardware import Draw
from ftnas_jax.search_config import SearchConfig
from ftnas_jax.search_mesh import SearchMesh
from ftnas_jax.split_batch import Axis, mean_of_parts, own_part
from ftnas_jax.supernet import Network

_INIT, _WEIGHTS, _CONTROLLER, _SCORE, _PROPOSE, _RANDOM = range(6)  # as folded into the root key


class SearchData(NamedTuple):
    """A data set as arrays on the device, split for the two kinds of steps.

    Attributes:
        train_images: uint8 [N, H, W, C], for the shared weights.
        train_labels: int32 [N].
        held_images: uint8 [N_held, H, W, C], for the controller.
        held_labels: int32 [N_held].
        mean: float32 [C] of the training pixels, in [0, 1] units.
        std: float32 [C].
    """

    train_images: jax.Array
    train_labels: jax.Array
    held_images: jax.Array
    held_labels: jax.Array
    mean: jax.Array
    std: jax.Array


class SearchState(NamedTuple):
    """What a search carries from step to step, all of it arrays.

    Attributes:
        params: shared weights.
        batch_stats: running statistics of BatchNorm; empty in the batch mode.
        opt_state: of the weights' optimizer.
        controller: the policy and its optimizer.
        totals: sums over the steps of the current epoch, by metric.
    """

    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    controller: ControllerState
    totals: dict[str, jax.Array]


class Scores(NamedTuple):
    """Accuracies of one architecture on held-out batches, and their reward; float32 scalars."""

    reward: jax.Array
    accuracy_clean: jax.Array
    accuracy_faulty: jax.Array


class Search:
    """The compiled steps of one search.

    Args:
        config: what to search.
        data: what to search on; it is copied to every device.
        devices: that share the work, see `ftnas_jax.search_mesh`; by default one.

    Raises:
        ValueError: data, config and devices do not fit.
    """

    def __init__(
        self, config: SearchConfig, data: SearchData, devices: Sequence[Any] | None = None
    ):
        self.mesh = make_mesh(config, devices)
        self.config, self.data = config, self.mesh.place(data)
        self.network = self._network(self.mesh.batch_axis)
        self._weight_network = self._network(self.mesh.weights_axis)
        self.controller = Controller(config.space, config.controller)
        self.weight_steps = _steps(data.train_images, config.batch_size, "training part")
        self.controller_steps = _steps(data.held_images, config.batch_size, "held-out part")
        config.network.check_image(*data.train_images.shape[1:3])
        self._optimizer = _optimizer(config, self.weight_steps)
        self._root = jax.random.key(config.seed)
        self._run_init = self.mesh.jit(self._init)
        self._run_weights = self.mesh.jit(self._weight_loop, donate_argnums=0)
        self._run_controller = self.mesh.jit(self._controller_loop, donate_argnums=0)
        self._run_scores = self.mesh.jit(self._score_loop)
        self._run_sample = jax.jit(self._sample)

    # What a job calls

    def compile(self) -> dict[str, jax.stages.Compiled]:
        """Compile what the first step needs, side by side; the rest is compiled at its first call.

        Returns:
            The programs, to look at: `init` and `train_weights`.
        """
        state, step = self.mesh.described(self.shapes()), np.int32(0)
        calls = {
            "train_weights": (self._run_weights, state, self.data, self._root, step, step),
            "init": (self._run_init, self._root),
        }
        with ThreadPoolExecutor(len(calls)) as pool:
            # XLA holds no lock of Python's: while it compiles one program the next is traced here.
            compiling = {
                name: pool.submit(run.lower(*args).compile) for name, (run, *args) in calls.items()
            }
        return {name: program.result() for name, program in compiling.items()}

    def shapes(self) -> SearchState:
        """The shapes and types of a state's arrays; nothing is compiled."""
        return self._run_init.eval_shape(self._root)

    def init(self) -> SearchState:
        """The state before the first step."""
        return self._run_init(jax.random.fold_in(self._root, _INIT))

    def train_weights(self, state: SearchState, epoch: int, start: int, stop: int) -> SearchState:
        """Weight steps `start` to `stop` (exclusive) of an epoch; donates `state`."""
        key = self._epoch_key(_WEIGHTS, epoch)
        return self._run_weights(state, self.data, key, np.int32(start), np.int32(stop))

    def train_controller(
        self, state: SearchState, epoch: int, start: int, stop: int
    ) -> SearchState:
        """Controller steps `start` to `stop` (exclusive) of an epoch; donates `state`."""
        key = self._epoch_key(_CONTROLLER, epoch)
        return self._run_controller(state, self.data, key, np.int32(start), np.int32(stop))

    def sampled_architecture(
        self, state: SearchState, phase: Literal["weights", "controller"], epoch: int, step: int
    ) -> jax.Array:
        """What a step samples that begins with `state`; int32 [2, 2(B-2), 2]."""
        key = self._epoch_key({"weights": _WEIGHTS, "controller": _CONTROLLER}[phase], epoch)
        return self._run_sample(state.controller, _step_keys(key, step)[0])

    def score(self, state: SearchState, architecture: jax.Array, batches: int) -> Scores:
        """An architecture with the shared weights on the first held-out batches, not augmented.

        Every architecture meets the same images and the same draws of faults.

        Args:
            state: not changed.
            architecture: int32 [2, 2(B-2), 2].
            batches: how many held-out batches to use.
        """
        key = jax.random.fold_in(self._root, _SCORE)
        batch_numbers = np.arange(batches, dtype=np.int32)
        return self._run_scores(_variables(state), self.data, key, architecture, batch_numbers)

    def propose(self, state: SearchState, count: int) -> jax.Array:
        """`count` architectures sampled from the controller, int32 [count, 2, 2(B-2), 2]."""
        keys = jax.random.split(jax.random.fold_in(self._root, _PROPOSE), count)
        params = state.controller.params
        return jax.jit(jax.vmap(lambda k: self.controller.sample(params, k).architecture))(keys)

    def propose_random(self, count: int) -> jax.Array:
        """`count` uniformly random architectures, int32 [count, 2, 2(B-2), 2]."""
        keys = jax.random.split(jax.random.fold_in(self._root, _RANDOM), count)
        return jax.jit(jax.vmap(self.config.space.random))(keys)

    def metrics(self, state: SearchState, epoch: int) -> dict[str, float]:
        """Means over the steps of an epoch (counted from 0) as a flat row.

        The row's own `epoch` counts how many are done.
        """
        totals = {name: float(value) for name, value in state.totals.items()}
        row: dict[str, float] = {"epoch": epoch + 1}
        for name, value in totals.items():
            steps = self.weight_steps if name.startswith("weights/") else self.controller_steps
            row[name] = value / steps
        row["weights/learning_rate"] = float(_learning_rate(self.config, jnp.int32(epoch)))
        return row

    def reset_totals(self, state: SearchState) -> SearchState:
        """The state at the start of an epoch."""
        return state._replace(totals=jax.tree.map(jnp.zeros_like, state.totals))

    def _network(self, batch_axis: Axis) -> Network:
        """The network in steps whose batch is split along `batch_axis`."""
        hardware = dataclasses.replace(self.config.hardware, batch_axis=batch_axis)
        return Network(self.config.network, self.config.space, hardware)

    # Initialization

    def _init(self, key: jax.Array) -> SearchState:
        net_key, controller_key = jax.random.split(key)
        images = jnp.zeros((1, *self.data.train_images.shape[1:]), jnp.float32)
        # Any architecture makes all parameters; a known one is quickly traced.
        variables = self.network.init(net_key, images, self.config.space.first())
        return SearchState(
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=self._optimizer.init(variables["params"]),
            controller=self.controller.init_state(controller_key),
            totals={name: jnp.zeros((), jnp.float32) for name in self._metric_names()},
        )

    def _metric_names(self) -> list[str]:
        names = ["weights/loss", "weights/gradient_norm"]
        for faulty, _ in _loss_passes(self.config):
            suffix = "faulty" if faulty else "clean"
            names += [f"weights/loss_{suffix}", f"weights/accuracy_{suffix}"]
        names += [f"controller/accuracy_{suffix}" for suffix in ("clean", "faulty")]
        return names + [f"controller/{name}" for name in ("reward", "entropy", "baseline")]

    def _epoch_key(self, phase: int, epoch: int) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(self._root, phase), epoch)

    # Weight steps

    def _weight_loop(self, state, data: SearchData, key, start, stop):
        order = _order(key, len(data.train_images))

        def body(step, state):
            images, labels = self._batch(data.train_images, data.train_labels, order, step)
            return self._weight_step(state, data, images, labels, _step_keys(key, step))

        return jax.lax.fori_loop(start, stop, body, state)

    def _weight_step(self, state: SearchState, data, images, labels, keys) -> SearchState:
        """Lines 7 to 12 of Algorithm 1. Consumes `keys`."""
        arch_key, augment_key, pass_key = keys
        architecture = self._sample(state.controller, arch_key)
        x = self._augment(augment_key, images, data)
        loss = functools.partial(self._pass_loss, state, x, labels, architecture, pass_key)
        gradient, metrics, batch_stats = self._pass_gradients(state.params, loss)
        metrics["weights/gradient_norm"] = optax.tree.norm(gradient)
        with jax.named_scope("optimizer"):
            updates, opt_state = self._optimizer.update(gradient, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        return state._replace(
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            totals=_add(state.totals, metrics),
        )

    def _pass_loss(self, state: SearchState, x, labels, architecture, key, params, faulty):
        """Cross entropy of one pass; also its accuracy and the BatchNorm statistics after it.

        Loss and gradient are those of this device's part of the batch.
        """
        fault_key, dropout_key = jax.random.split(jax.random.fold_in(key, faulty))
        logits, updates = self._weight_network.apply(
            {"params": params, "batch_stats": state.batch_stats},
            own_part(x, self.mesh.weights_axis),
            architecture,
            Draw(fault_key, faulty),
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        labels = own_part(labels, self.mesh.weights_axis)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        stats = updates.get("batch_stats", state.batch_stats)
        return loss, (_accuracy(logits, labels), stats)

    def _pass_gradients(self, params, loss):
        """The gradient of Eq. 13, metrics, and the statistics of the first pass.

        Two passes run in one compiled body, one after the other (half the program, and half the
        memory of both at once) or on two halves of the devices; a single one runs on all devices.
        """
        passes = _loss_passes(self.config)
        differentiate = jax.value_and_grad(loss, has_aux=True)

        def add_pass(total, one):
            faulty, weight = one
            (value, (accuracy, stats)), gradient = differentiate(params, faulty)
            total = jax.tree.map(lambda t, g: t + weight * g, total, gradient)
            value, accuracy = mean_of_parts((value, accuracy), self.mesh.weights_axis)
            return total, (value, accuracy, stats)

        zero = jax.tree.map(jnp.zeros_like, params)
        if len(passes) == 1:
            # Known while tracing: a clean pass draws no faults.
            gradient, outputs = add_pass(zero, passes[0])
            outputs = jax.tree.map(lambda a: a[None], outputs)
        else:
            faulty, weights = zip(*passes, strict=True)
            xs = (jnp.asarray(faulty), jnp.asarray(weights, jnp.float32))
            gradient, outputs = self.mesh.scan_passes(add_pass, zero, xs)
        gradient = mean_of_parts(gradient, self.mesh.weights_axis)
        values, accuracies, stats = outputs
        metrics = {"weights/loss": jnp.dot(values, jnp.asarray([w for _, w in passes]))}
        for place, (faulty, _) in enumerate(passes):
            suffix = "faulty" if faulty else "clean"
            metrics[f"weights/loss_{suffix}"] = values[place]
            metrics[f"weights/accuracy_{suffix}"] = accuracies[place]
        return gradient, metrics, jax.tree.map(lambda a: a[0], stats)

    # Controller steps

    def _controller_loop(self, state, data: SearchData, key, start, stop):
        order = _order(key, len(data.held_images))
        variables = _variables(state)

        def body(step, carry):
            controller, totals = carry
            images, labels = self._batch(data.held_images, data.held_labels, order, step)
            keys = _step_keys(key, step)
            controller, metrics = self._controller_step(
                variables, controller, data, images, labels, keys
            )
            return controller, _add(totals, metrics)

        carry = jax.lax.fori_loop(start, stop, body, (state.controller, state.totals))
        return state._replace(controller=carry[0], totals=carry[1])

    def _controller_step(self, variables, controller: ControllerState, data, images, labels, keys):
        """Lines 15 to 20 of Algorithm 1. Consumes `keys`."""
        arch_key, augment_key, fault_key = keys
        architecture = self._sample(controller, arch_key)
        x = self._augment(augment_key, images, data)
        scores = self._scores(variables, x, labels, architecture, fault_key)
        controller, update = self.controller.reinforce_update(
            controller, architecture, scores.reward
        )
        metrics = {f"controller/{name}": value for name, value in scores._asdict().items()}
        metrics |= {f"controller/{name}": update[name] for name in ("entropy", "baseline")}
        return controller, metrics

    def _sample(self, controller: ControllerState, key: jax.Array) -> jax.Array:
        return self.controller.sample(controller.params, key).architecture

    def _scores(self, variables, x, labels, architecture, key) -> Scores:
        """Eq. 12 on one batch. Consumes `key`."""

        axis = self.mesh.batch_axis

        def one_pass(nothing, faulty):
            own = own_part(x, axis)
            logits: Any = self.network.apply(variables, own, architecture, Draw(key, faulty))
            accuracy = _accuracy(logits, own_part(labels, axis))
            return nothing, mean_of_parts(accuracy, axis)

        _, (clean, faulty) = self.mesh.scan_passes(one_pass, (), jnp.asarray([False, True]))
        alpha = self.config.alpha_r
        return Scores((1 - alpha) * clean + alpha * faulty, clean, faulty)

    # Scoring of candidates

    def _score_loop(self, variables, data: SearchData, key, architecture, batches) -> Scores:
        order = _order(key, len(data.held_images))

        def one_batch(step):
            images, labels = self._batch(data.held_images, data.held_labels, order, step)
            x = normalize(images, data.mean, data.std)
            return self._scores(variables, x, labels, architecture, _step_key(key, step))

        scores = jax.lax.map(one_batch, batches)
        return jax.tree.map(jnp.mean, scores)

    # Batches

    def _batch(self, images, labels, order, step):
        size = self.config.batch_size
        rows = jax.lax.dynamic_slice_in_dim(order, step * size, size)
        return images[rows], labels[rows]

    def _augment(self, key, images, data: SearchData):
        config = self.config
        return augment(
            *(key, images, data.mean, data.std), crop_padding=config.crop_padding, flip=config.flip
        )


def make_mesh(config: SearchConfig, devices: Sequence[Any] | None = None) -> SearchMesh:
    """How `devices`, by default one, share a search; ValueError where they cannot."""
    one_pass = len(_loss_passes(config)) == 1
    return SearchMesh(devices or jax.devices()[:1], config.batch_size, one_pass)


def _loss_passes(config: SearchConfig) -> list[tuple[bool, float]]:
    """(faulty, weight in Eq. 13) of the passes that count."""
    alpha = config.alpha_l
    return [(faulty, w) for faulty, w in ((False, 1 - alpha), (True, alpha)) if w > 0]


def _steps(images, batch_size: int, part: str) -> int:
    steps = len(images) // batch_size
    if steps == 0:
        raise ValueError(
            f"batch_size is {batch_size}, but the {part} of the data has only {len(images)} images"
        )
    return steps


def _optimizer(config: SearchConfig, steps: int) -> optax.GradientTransformation:
    """SGD as in the published code: clip, decay, momentum, a rate that falls epoch by epoch."""

    def rate(count: Any) -> jax.Array:
        return _learning_rate(config, count // steps)

    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(rate, config.momentum),
    )


def _learning_rate(config: SearchConfig, epoch: jax.Array) -> jax.Array:
    turn = epoch.astype(jnp.float32) * jnp.float32(jnp.pi / config.epochs)
    return jnp.float32(config.learning_rate / 2) * (1 + jnp.cos(turn))


def _variables(state: SearchState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def _order(key: jax.Array, count: int) -> jax.Array:
    """The epoch's order of images; a fold that no step uses."""
    return jax.random.permutation(jax.random.fold_in(key, 0), count)


def _step_key(key: jax.Array, step: jax.Array | int) -> jax.Array:
    return jax.random.fold_in(key, step + 1)


def _step_keys(key: jax.Array, step: jax.Array | int) -> jax.Array:
    """Of a step's architecture, of its augmentation, and of all else."""
    return jax.random.split(_step_key(key, step), 3)


def _accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32))


def _add(totals: dict[str, jax.Array], metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return totals | {name: totals[name] + value for name, value in metrics.items()}
