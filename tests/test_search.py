"""Algorithm 1: its steps against two separate passes and NumPy, its keys, and its programs.

One small search serves most tests, because compilation takes nearly all the time. Its codes have
16 bits, so that a tie that two programs round differently is lost in the tolerances.
"""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftnas_jax import search as search_module
from ftnas_jax.augment import normalize, random_crop, random_flip
from ftnas_jax.controller import ControllerConfig
from ftnas_jax.faults import MiBB
from ftnas_jax.fixed_point import FixedPoint
from ftnas_jax.nn.hardware import CLEAN, Draw, Hardware
from ftnas_jax.search import Scores, Search, SearchData, SearchState
from ftnas_jax.search_config import SearchConfig
from ftnas_jax.space import Architecture, Space
from ftnas_jax.supernet import NetworkConfig

BATCH, WEIGHT_STEPS, CONTROLLER_STEPS = 8, 4, 3


def hardware(*faults):
    return Hardware(FixedPoint(16), FixedPoint(16), faults)


CONFIG = SearchConfig(
    space=Space(nodes=3, primitives=("none", "skip_connect", "conv_1x1", "max_pool_3x3")),
    network=NetworkConfig(num_classes=3, channels=4, cells=1, reductions=(), dropout=0.0),
    hardware=hardware(MiBB(1e-2)),
    controller=ControllerConfig(hidden=8, learning_rate=0.05),
    epochs=4,
    batch_size=BATCH,
    learning_rate=0.2,
    weight_decay=0.05,
    gradient_clip=0.5,
    alpha_l=0.3,
    alpha_r=0.2,
    crop_padding=1,
)


def make_data(train=BATCH * WEIGHT_STEPS + 5, held=BATCH * CONTROLLER_STEPS, size=8) -> SearchData:
    rng = np.random.default_rng(0)

    def part(count):
        images = rng.integers(0, 256, (count, size, size, 1), np.uint8)
        return images, rng.integers(0, 3, count, np.int32)

    arrays = (*part(train), *part(held), np.float32([0.5]), np.float32([0.3]))
    return SearchData(*map(jnp.asarray, arrays))


DATA = make_data()


class CountedSearch(Search):
    """Fails where a step is traced a second time."""

    def __init__(self, config, data):
        super().__init__(config, data)
        self._weight_step = chex.assert_max_traces(self._weight_step, n=1)
        self._controller_step = chex.assert_max_traces(self._controller_step, n=1)
        self._scores = chex.assert_max_traces(self._scores, n=2)  # in controller steps, in `score`


def copy(tree):
    """The steps donate their state."""
    return jax.tree.map(jnp.copy, tree)


@pytest.fixture(scope="module")
def job() -> Search:
    chex.clear_trace_counter()
    return CountedSearch(CONFIG, DATA)


@pytest.fixture(scope="module")
def initial(job) -> SearchState:
    return job.init()


def assert_bit_identical(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def all_equal(left, right) -> bool:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


# Programs


def test_what_the_first_step_needs_is_compiled_ahead_and_all_once_whatever_they_sample(
    job, initial, caplog
):
    with jax.log_compiles():
        programs = job.compile()
        assert "Compiling jit(on_every_device)" in caplog.text
        caplog.clear()
        state = job.train_weights(copy(initial), 0, 0, 1)
        assert "on_every_device" not in caplog.text
        for epoch in range(2):
            for start, stop in ((0, 1), (1, WEIGHT_STEPS)):
                state = job.train_weights(state, epoch, start, stop)
            for start, stop in ((0, 2), (2, CONTROLLER_STEPS)):
                state = job.train_controller(state, epoch, start, stop)
            state = job.reset_totals(state)
        for architecture in job.propose_random(3):
            job.score(state, architecture, 1)
    assert set(programs) == {"init", "train_weights"}
    # JAX's own count of a function's programs forgets what was not called for long.
    later = [line for line in caplog.messages if line.startswith("Compiling jit(on_every_device)")]
    assert len(later) == 2  # the controller's step, and scores


@pytest.mark.parametrize("phase", ["train_weights", "train_controller"])
def test_how_many_steps_a_call_makes_changes_no_bit(job, initial, phase):
    steps = {"train_weights": WEIGHT_STEPS, "train_controller": CONTROLLER_STEPS}[phase]
    results = []
    for chunk in (steps, 2, 1):
        state = copy(initial)
        for start in range(0, steps, chunk):
            state = getattr(job, phase)(state, 1, start, min(start + chunk, steps))
        results.append(state)
    assert not all_equal(results[0], initial)
    assert_bit_identical(results[0], results[1])
    assert_bit_identical(results[0], results[2])


def test_phases_leave_each_other_alone(job, initial):
    after = job.train_weights(copy(initial), 0, 0, 1)
    assert_bit_identical(after.controller, initial.controller)
    assert not all_equal(after.params, initial.params)
    after = job.train_controller(copy(initial), 0, 0, CONTROLLER_STEPS)
    assert_bit_identical(after.params, initial.params)
    assert_bit_identical(after.opt_state, initial.opt_state)
    assert not all_equal(after.controller.params, initial.controller.params)


# Equations


def first_batch(job, phase, images, labels, controller_params):
    """What step 0 of epoch 0 works on: inputs, labels, architecture and the key of its passes."""
    key = job._epoch_key(phase, 0)
    rows = search_module._order(key, len(images))[:BATCH]
    step_key = search_module._step_key(key, jnp.int32(0))
    arch_key, augment_key, pass_key = jax.random.split(step_key, 3)
    crop_key, flip_key = jax.random.split(augment_key)
    x = normalize(images[rows], DATA.mean, DATA.std)
    x = random_flip(flip_key, random_crop(crop_key, x, CONFIG.crop_padding))
    architecture = job.controller.sample(controller_params, arch_key).architecture
    return x, labels[rows], architecture, pass_key


def weight_batch(job, initial):
    images, labels = DATA.train_images, DATA.train_labels
    phase = search_module._WEIGHTS
    return first_batch(job, phase, images, labels, initial.controller.params)


def logits_of(job, params, x, architecture, draw):
    """An own pass, for a training step without dropout."""
    variables = {"params": params, "batch_stats": {}}
    return job.network.apply(variables, x, architecture, draw)


def numpy_sgd(params, gradients, trace, rate, config):
    """PyTorch's SGD behind clip_grad_norm_: clip, decay, momentum; float64, leaf by leaf."""
    norm = math.sqrt(sum(float(np.sum(np.square(np.float64(g)))) for g in gradients))
    shrink = min(1.0, config.gradient_clip / norm)
    trace = [
        config.momentum * t + shrink * np.float64(g) + config.weight_decay * np.float64(p)
        for t, g, p in zip(trace, gradients, params, strict=True)
    ]
    return [np.float64(p) - rate * t for p, t in zip(params, trace, strict=True)], trace, norm


def test_a_weight_step_is_equation_13_and_sgd(job, initial):
    x, labels, architecture, pass_key = weight_batch(job, initial)
    assert_bit_identical(job.sampled_architecture(initial, "weights", 0, 0), architecture)
    fault_key, _ = jax.random.split(jax.random.fold_in(pass_key, True))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def by_hand(params):
        def cross_entropy(draw):
            log_probs = jax.nn.log_softmax(logits_of(job, params, x, architecture, draw))
            return -jnp.mean(log_probs[jnp.arange(BATCH), labels])

        clean, faulty = cross_entropy(CLEAN), cross_entropy(Draw(fault_key))
        return (1 - CONFIG.alpha_l) * clean + CONFIG.alpha_l * faulty, (clean, faulty)

    (loss, (clean, faulty)), gradient = by_hand(initial.params)
    assert clean != faulty
    params, gradients = map(jax.tree.leaves, (initial.params, gradient))
    zeros = [np.zeros(p.shape) for p in params]
    expected, _, norm = numpy_sgd(params, gradients, zeros, CONFIG.learning_rate, CONFIG)
    assert norm > CONFIG.gradient_clip  # else this would not test clipping

    after = job.train_weights(copy(initial), 0, 0, 1)
    totals = {name: float(value) for name, value in after.totals.items()}
    np.testing.assert_allclose(totals["weights/loss_clean"], clean, rtol=1e-4)
    np.testing.assert_allclose(totals["weights/loss_faulty"], faulty, rtol=1e-4)
    np.testing.assert_allclose(totals["weights/loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(totals["weights/gradient_norm"], norm, rtol=1e-3)
    for value, p in zip(expected, jax.tree.leaves(after.params), strict=True):
        np.testing.assert_allclose(p, value, rtol=1e-3, atol=1e-5)


def test_the_optimizer_is_clip_decay_momentum_with_a_cosine_by_epoch():
    rng = np.random.default_rng(0)
    params = [rng.normal(size=(3, 2)).astype(np.float32), rng.normal(size=4).astype(np.float32)]
    steps = 3
    optimizer = search_module._optimizer(CONFIG, steps)
    ours, state = list(map(jnp.asarray, params)), optimizer.init(list(map(jnp.asarray, params)))
    trace = [np.zeros(p.shape) for p in params]
    norms = []
    for step in range(CONFIG.epochs * steps):
        scale = 0.01 if step % 2 else 1.0  # below and above the limit
        gradients = [(rng.normal(size=p.shape) * scale).astype(np.float32) for p in params]
        rate = CONFIG.learning_rate / 2 * (1 + math.cos(math.pi * (step // steps) / CONFIG.epochs))
        params, trace, norm = numpy_sgd(params, gradients, trace, rate, CONFIG)
        updates, state = optimizer.update(list(map(jnp.asarray, gradients)), state, ours)
        ours = optax.apply_updates(ours, updates)
        norms.append(norm)
        for value, p in zip(params, ours, strict=True):
            np.testing.assert_allclose(p, value, rtol=2e-5, atol=1e-6)
    assert min(norms) < CONFIG.gradient_clip < max(norms)


def test_the_learning_rate_reported_is_a_cosine_from_all_to_nothing(job, initial):
    rates = [
        job.metrics(initial, epoch)["weights/learning_rate"] for epoch in range(CONFIG.epochs + 1)
    ]
    angles = np.pi * np.arange(CONFIG.epochs + 1) / CONFIG.epochs
    np.testing.assert_allclose(rates, 0.1 * (1 + np.cos(angles)), rtol=1e-6, atol=1e-7)
    assert (rates[0], rates[-1]) == (pytest.approx(0.2), pytest.approx(0, abs=1e-7))


def test_a_controller_step_is_rewarded_by_equation_12(job, initial):
    images, labels = DATA.held_images, DATA.held_labels
    phase, params = search_module._CONTROLLER, initial.controller.params
    x, labels, architecture, fault_key = first_batch(job, phase, images, labels, params)
    assert_bit_identical(job.sampled_architecture(initial, "controller", 0, 0), architecture)

    @jax.jit
    def by_hand(draw):
        logits = logits_of(job, initial.params, x, architecture, draw)
        return jnp.sum(jnp.argmax(logits, -1) == labels)

    clean, faulty = (int(by_hand(d)) / BATCH for d in (Draw(fault_key, False), Draw(fault_key)))
    reward = (1 - CONFIG.alpha_r) * clean + CONFIG.alpha_r * faulty
    after = job.train_controller(copy(initial), 0, 0, 1)
    totals = {name: float(value) for name, value in after.totals.items()}
    assert totals["controller/accuracy_clean"] == clean
    assert totals["controller/accuracy_faulty"] == faulty
    assert totals["controller/reward"] == pytest.approx(reward, rel=1e-6)
    expected, _ = job.controller.reinforce_update(
        initial.controller, architecture, jnp.float32(reward)
    )
    chex.assert_trees_all_close(after.controller, expected, rtol=1e-4, atol=1e-5)


# One pass only


class Refusing(MiBB):
    """A fault model that must not be drawn from."""

    def sample(self, key, shape, fmt, exposure):
        raise AssertionError("a clean pass drew a fault map")


@pytest.fixture(scope="module")
def first_losses(job, initial):
    return job.train_weights(copy(initial), 0, 0, 1).totals


def weights_after(config, initial, steps):
    """Weight steps of another search from the same parameters."""
    job = Search(config, DATA)
    totals = {name: jnp.zeros(()) for name in job._metric_names()}
    return job.train_weights(copy(initial)._replace(totals=totals), 0, 0, steps)


def test_without_alpha_l_no_faults_are_drawn(initial, first_losses):
    config = dataclasses.replace(CONFIG, alpha_l=0.0, hardware=hardware(Refusing(0.9)))
    after = weights_after(config, initial, 1)
    assert not [name for name in after.totals if name.startswith("weights") and "faulty" in name]
    assert after.totals["weights/loss"] == after.totals["weights/loss_clean"]
    expected = first_losses["weights/loss_clean"]
    np.testing.assert_allclose(after.totals["weights/loss"], expected, rtol=1e-4)
    config = dataclasses.replace(config, hardware=hardware(MiBB(1e-3)))
    other = weights_after(config, initial, 1)
    assert_bit_identical(after, other)


def test_with_alpha_l_of_one_only_the_faulty_pass_counts(initial, first_losses):
    config = dataclasses.replace(CONFIG, alpha_l=1.0)
    after = weights_after(config, initial, 1)
    assert "weights/loss_clean" not in after.totals
    assert after.totals["weights/loss"] == after.totals["weights/loss_faulty"]
    expected = first_losses["weights/loss_faulty"]
    np.testing.assert_allclose(after.totals["weights/loss"], expected, rtol=1e-4)
    assert expected != first_losses["weights/loss_clean"]


# Batches of an epoch. Images and labels carry their own number, and a step counts what it got.


class CountingSearch(Search):
    """Steps that only count which images they see."""

    def count(self, images, labels):
        seen = jnp.zeros(self.config.network.num_classes, jnp.int32).at[labels].add(1)
        paired = jnp.all(images[:, 0, 0, 0].astype(jnp.int32) == labels)
        return {"seen": seen, "paired": paired.astype(jnp.int32)}

    def _weight_step(self, state, data, images, labels, key):
        return state._replace(totals=search_module._add(state.totals, self.count(images, labels)))

    def _controller_step(self, variables, controller, data, images, labels, key):
        return controller, self.count(images, labels)


def seen_in(seed, phase, epoch, stop):
    """How often each image was seen, [N]."""
    labels = jnp.arange(45, dtype=jnp.int32)
    images = jnp.broadcast_to(labels.astype(jnp.uint8)[:, None, None, None], (45, 8, 8, 1))
    data = SearchData(images, labels, images, labels, DATA.mean, DATA.std)
    network = dataclasses.replace(CONFIG.network, num_classes=45)
    config = dataclasses.replace(CONFIG, seed=seed, network=network)
    job = CountingSearch(config, data)
    assert job.weight_steps == job.controller_steps == 5
    totals = {"seen": jnp.zeros(45, jnp.int32), "paired": jnp.int32(0)}
    state = SearchState({}, {}, (), {}, totals)
    totals = getattr(job, phase)(state, epoch, 0, stop).totals
    assert totals["paired"] == stop
    return np.asarray(totals["seen"])


@pytest.mark.parametrize("phase", ["train_weights", "train_controller"])
def test_an_epoch_sees_no_image_twice(phase):
    seen = seen_in(0, phase, 0, 5)
    assert seen.max() == 1
    assert seen.sum() == 5 * BATCH
    first = seen_in(0, phase, 0, 2)
    assert first.sum() == 2 * BATCH
    np.testing.assert_array_equal(first, seen_in(0, phase, 0, 2))
    assert (first != seen_in(0, phase, 1, 2)).any()
    assert (first != seen_in(1, phase, 0, 2)).any()


# Scores


class OneNetwork:
    """Logits that depend on the images and on the draw, not on the architecture."""

    def apply(self, variables, x, architecture, draw):
        clean = jax.nn.one_hot(jnp.sum(x > 0, (1, 2, 3)) % 3, 3)
        key = draw.at(0, 1).key
        return jnp.where(draw.faulty, jax.random.normal(key, clean.shape), clean)


def test_every_architecture_meets_the_same_images_and_draws():
    job = Search(CONFIG, DATA)
    job.network = OneNetwork()
    state = SearchState({}, {}, (), {}, {})
    for batches in (1, CONTROLLER_STEPS):
        scores = [job.score(state, a, batches) for a in job.propose_random(3)]
        assert_bit_identical(scores[0], scores[1])
        assert_bit_identical(scores[0], scores[2])
        assert scores[0].accuracy_clean != scores[0].accuracy_faulty
    # With the last of them, all held-out images are seen.
    scores = Scores(*map(float, scores[0]))
    x = (np.asarray(DATA.held_images) / 255 - 0.5) / 0.3
    correct = (x > 0).sum((1, 2, 3)) % 3 == DATA.held_labels
    assert scores.accuracy_clean == pytest.approx(float(correct.mean()), rel=1e-6)
    mixed = 0.8 * scores.accuracy_clean + 0.2 * scores.accuracy_faulty
    assert scores.reward == pytest.approx(mixed, rel=1e-6)
    single = [scores_of_batch(job, batch) for batch in range(CONTROLLER_STEPS)]
    assert len({faulty for _, faulty in single}) > 1  # each batch draws its own
    np.testing.assert_allclose(np.mean(single, 0), scores[1:], rtol=1e-6)


def scores_of_batch(job, batch):
    """Accuracies on one batch, clean and with that batch's faults."""
    key = jax.random.fold_in(job._root, search_module._SCORE)
    rows = search_module._order(key, len(DATA.held_images))[batch * BATCH :][:BATCH]
    x = normalize(DATA.held_images[rows], DATA.mean, DATA.std)
    step_key = search_module._step_key(key, jnp.int32(batch))
    draws = (Draw(step_key, jnp.asarray(faulty)) for faulty in (False, True))
    logits = (job.network.apply({}, x, None, draw) for draw in draws)
    return tuple(float(jnp.mean(jnp.argmax(y, -1) == DATA.held_labels[rows])) for y in logits)


def test_a_score_repeats_and_changes_nothing(job, initial):
    before = copy(initial)
    architecture = job.propose_random(1)[0]
    first, second = (job.score(initial, architecture, 1) for _ in range(2))
    assert_bit_identical(first, second)
    assert_bit_identical(initial, before)


def test_proposals_are_of_the_space_and_repeat(job, initial):
    for propose in (lambda n: job.propose(initial, n), job.propose_random):
        proposed = np.asarray(propose(5))
        np.testing.assert_array_equal(proposed, propose(5))
        for array in proposed:
            CONFIG.space.check(Architecture.from_array(array))
        assert len({a.tobytes() for a in proposed}) > 1


# Metrics


def test_metrics_are_means_over_the_steps_of_an_epoch(job, initial):
    state = job.train_weights(copy(initial), 0, 0, WEIGHT_STEPS)
    state = job.train_controller(state, 0, 0, CONTROLLER_STEPS)
    row = job.metrics(state, 0)
    assert row["epoch"] == 1  # the number of epochs done
    totals = {name: float(value) for name, value in state.totals.items()}
    for name, total in totals.items():
        steps = WEIGHT_STEPS if name.startswith("weights/") else CONTROLLER_STEPS
        assert row[name] == pytest.approx(total / steps)
        assert math.isfinite(row[name])
    loss = 0.7 * row["weights/loss_clean"] + 0.3 * row["weights/loss_faulty"]
    assert row["weights/loss"] == pytest.approx(loss, rel=1e-5)
    reward = 0.8 * row["controller/accuracy_clean"] + 0.2 * row["controller/accuracy_faulty"]
    assert row["controller/reward"] == pytest.approx(reward, rel=1e-5)
    cleared = job.reset_totals(state)
    assert set(cleared.totals) == set(totals)
    assert not any(map(float, cleared.totals.values()))
    assert_bit_identical(cleared._replace(totals={}), state._replace(totals={}))


# Mistakes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha_l", -0.1),
        ("alpha_l", 1.1),
        ("alpha_r", 2.0),
        ("alpha_r", math.nan),
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("batch_size", "64"),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("gradient_clip", -1.0),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -1e-4),
        ("crop_padding", -1),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=field) as error:
        SearchConfig(**{field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (make_data(train=7), "batch_size is 8, but the training part of the data has only 7"),
        (make_data(held=7), "batch_size is 8, but the held-out part of the data has only 7"),
        (make_data(size=9), "images of 9x9 cannot be halved 1 times"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, message):
    network = dataclasses.replace(CONFIG.network, cells=2, reductions=(1,))
    with pytest.raises(ValueError, match=message):
        Search(dataclasses.replace(CONFIG, network=network), data)
