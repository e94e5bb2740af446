"""Final training: its steps against plain gradients and NumPy, its keys, devices and refusals.

One tiny training serves most tests, because compilation takes nearly all the time. Its codes have
16 bits, so that a tie that two programs round differently is lost in the tolerances.
"""

import dataclasses
import math
import re
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftnas_jax import training as training_module
from ftnas_jax.augment import normalize, random_crop, random_flip
from ftnas_jax.checkpoints import Checkpoints
from ftnas_jax.faults import MiBB, StuckAt
from ftnas_jax.fixed_point import FixedPoint
from ftnas_jax.graph.calibration import calibrate
from ftnas_jax.nn.hardware import CLEAN, Draw, Hardware
from ftnas_jax.space import Space
from ftnas_jax.supernet import Network, NetworkConfig
from ftnas_jax.training import (
    Training,
    TrainingData,
    TrainingState,
    fault_scale,
    learning_rate,
    state_shapes,
)
from ftnas_jax.training_config import RateTrials, TrainingConfig

BATCH, STEPS, TEST = 8, 4, 21
CLASSES, SIZE = 3, 6


class Tiny(nn.Module):
    """A convolution with BatchNorm, and a classifier."""

    classes: int = CLASSES

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(4, (3, 3), use_bias=False, name="conv")(images)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="norm")(x))
        return nn.Dense(self.classes, name="classifier")(x.reshape(len(x), -1))


class Deep(nn.Module):
    """A second convolution, whose features are made of faulty ones."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), name="first")(images))
        x = nn.Conv(4, (3, 3), use_bias=False, name="second")(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name="norm")(x))
        return nn.Dense(CLASSES, name="classifier")(x.reshape(len(x), -1))


def hardware(*faults) -> Hardware:
    return Hardware(FixedPoint(16, "sign_magnitude"), FixedPoint(16), faults)


STUCK, BIASED = StuckAt(0.2, 0.1, layers="!classifier"), MiBB(1e-2)
CONFIG = TrainingConfig(
    hardware(STUCK),
    epochs=5,
    batch_size=BATCH,
    learning_rate=0.2,
    weight_decay=0.05,
    gradient_clip=0.5,
    alpha_l=0.3,
    crop_padding=1,
    test_every=2,
)


def changed(**fields) -> TrainingConfig:
    return dataclasses.replace(CONFIG, **fields)


def make_data(train=BATCH * STEPS + 5, test=TEST) -> TrainingData:
    rng = np.random.default_rng(0)

    def part(count):
        images = rng.integers(0, 256, (count, SIZE, SIZE, 1), np.uint8)
        return images, rng.integers(0, CLASSES, count, np.int32)

    arrays = (*part(train), *part(test), np.float32([0.5]), np.float32([0.3]))
    return TrainingData(*map(jnp.asarray, arrays))


DATA = make_data()


def copy(tree):
    """The steps donate their state."""
    return jax.tree.map(jnp.copy, tree)


@pytest.fixture(scope="module")
def job() -> Training:
    return Training(CONFIG, Tiny(), DATA)


@pytest.fixture(scope="module")
def initial(job) -> TrainingState:
    return job.init()


@pytest.fixture(scope="module")
def after(job, initial) -> TrainingState:
    """Behind the first two steps."""
    return job.train(copy(initial), 0, 0, 2)


def assert_bit_identical(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# A step


def batch(job, epoch, step):
    """Images, augmented, their labels and the key of the passes, of one step."""
    key = jax.random.fold_in(jax.random.fold_in(job._root, training_module._TRAIN), epoch)
    rows = jax.random.permutation(jax.random.fold_in(key, 0), len(DATA.train_images))
    rows = rows[step * BATCH : (step + 1) * BATCH]
    augment_key, pass_key = jax.random.split(jax.random.fold_in(key, step + 1))
    crop_key, flip_key = jax.random.split(augment_key)
    x = normalize(DATA.train_images[rows], DATA.mean, DATA.std)
    x = random_flip(flip_key, random_crop(crop_key, x, CONFIG.crop_padding))
    return x, DATA.train_labels[rows], pass_key


def one_pass(chip, faulty, params, stats, x, labels, key):
    """Cross entropy and running statistics of one pass, on the chip itself; also accuracy."""
    variables = {"params": params, "batch_stats": stats}
    draw = Draw(key) if faulty else CLEAN
    logits, updates = chip.apply(variables, x, draw=draw, train=True, mutable=["batch_stats"])
    log_probs = jax.nn.log_softmax(logits)
    loss = -jnp.mean(log_probs[jnp.arange(BATCH), labels])
    return loss, (jnp.mean(jnp.argmax(logits, -1) == labels), updates["batch_stats"])


def numpy_sgd(params, gradients, trace, config):
    """PyTorch's SGD behind clip_grad_norm_: clip, decay, momentum; float64, leaf by leaf."""
    norm = math.sqrt(sum(float(np.sum(np.square(np.float64(g)))) for g in gradients))
    shrink = min(1.0, config.gradient_clip / norm)
    trace = [
        config.momentum * t + shrink * np.float64(g) + config.weight_decay * np.float64(p)
        for t, g, p in zip(trace, gradients, params, strict=True)
    ]
    rate = config.learning_rate
    return [np.float64(p) - rate * t for p, t in zip(params, trace, strict=True)], trace, norm


def test_two_steps_are_equation_13_and_sgd(job, initial, after):
    passes = {
        name: (
            weight,
            jax.jit(jax.value_and_grad(partial(one_pass, job.chip, faulty), has_aux=True)),
        )
        for name, faulty, weight in (("clean", False, 0.7), ("faulty", True, 0.3))
    }
    params, stats = initial.params, initial.batch_stats
    leaves, structure = jax.tree.flatten(params)
    trace, sums = [np.zeros(p.shape) for p in leaves], dict.fromkeys(initial.totals, 0.0)
    for step in range(2):
        x, labels, pass_key = batch(job, 0, step)
        gradients = [np.zeros(p.shape) for p in leaves]
        outputs = {}
        for name, (weight, differentiate) in passes.items():
            key = fault_key(pass_key, name == "faulty")
            (loss, (accuracy, own)), g = differentiate(params, stats, x, labels, key)
            outputs[name] = own
            pairs = zip(gradients, jax.tree.leaves(g), strict=True)
            gradients = [total + weight * np.float64(own) for total, own in pairs]
            sums["train/loss"] += weight * float(loss)
            sums[f"train/loss_{name}"] += float(loss)
            sums[f"train/accuracy_{name}"] += float(accuracy)
        leaves, trace, norm = numpy_sgd(leaves, gradients, trace, CONFIG)
        assert norm > CONFIG.gradient_clip  # else this would not test clipping
        sums["train/gradient_norm"] += norm
        params = jax.tree.unflatten(structure, [jnp.asarray(p, jnp.float32) for p in leaves])
        assert not np.allclose(*map(_flat, outputs.values()), rtol=1e-3)
        stats = outputs["clean"]
    for name, total in after.totals.items():
        np.testing.assert_allclose(total, sums[name], rtol=1e-3, err_msg=name)
    chex.assert_trees_all_close(after.params, params, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(after.batch_stats, stats, rtol=1e-4, atol=1e-6)
    assert int(after.steps) == 2


def fault_key(pass_key, faulty):
    """Of the faults of a pass; the other half is for its dropout."""
    return jax.random.split(jax.random.fold_in(pass_key, faulty))[0]


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_two_devices_agree_with_one_and_more_find_no_work(job, after):
    one = job
    job = Training(CONFIG, Tiny(), DATA, jax.devices()[:3])
    assert len(job.mesh.devices) == 2
    state = job.train(job.init(), 0, 0, 2)
    chex.assert_trees_all_close(state, after, rtol=1e-4, atol=1e-6)
    tested = job.test(state, 0, 0, job.test_steps)
    expected = one.test(copy(after), 0, 0, job.test_steps)
    chex.assert_trees_all_close(tested.totals, expected.totals, rtol=1e-4)


def test_without_alpha_l_the_training_is_a_clean_one(initial, monkeypatch):
    configs = [changed(alpha_l=0.0, hardware=hardware(*faults)) for faults in ((), (STUCK,))]
    jobs = [Training(config, Tiny(), DATA) for config in configs]

    def refuse(*_):
        raise AssertionError("a clean pass drew a fault map")

    monkeypatch.setattr(StuckAt, "sample", refuse)
    clean, other = [job.train(job.init(), 0, 0, 2) for job in jobs]
    assert_bit_identical(clean.params, other.params)
    assert_bit_identical(clean.batch_stats, other.batch_stats)
    assert not [name for name in clean.totals if "faulty" in name]
    assert clean.totals["train/loss"] == clean.totals["train/loss_clean"]
    assert_bit_identical(jobs[0].init().params, initial.params)


def test_with_alpha_l_of_one_statistics_are_those_of_faulty_passes(job, initial):
    alone = Training(changed(alpha_l=1.0), Tiny(), DATA)
    assert len(alone.mesh.devices) == 1
    state = alone.train(copy(initial)._replace(totals=alone.init().totals), 0, 0, 1)
    assert "train/loss_clean" not in state.totals
    x, labels, pass_key = batch(job, 0, 0)
    run = jax.jit(partial(one_pass, job.chip, True, *initial[:2], x, labels))
    loss, (_, stats) = run(fault_key(pass_key, True))
    np.testing.assert_allclose(state.totals["train/loss"], loss, rtol=1e-4)
    chex.assert_trees_all_close(state.batch_stats, stats, rtol=1e-4, atol=1e-6)


class Looping(Training):
    """As on a GPU or TPU: the steps of a call, and the passes of a step, in loops."""

    _loops = True


BOTH = changed(norm_passes="both", fraction_lengths="clean", hardware=hardware(MiBB(0.3)))


@pytest.fixture(scope="module")
def both() -> tuple[Training, TrainingState]:
    """A training with statistics of both passes, and fraction lengths of the clean one."""
    job = Training(BOTH, Deep(), DATA)
    return job, job.train(job.init(), 0, 0, 1)


def test_faulty_passes_with_fraction_lengths_of_clean_ones_and_statistics_of_both(both):
    """Against a chip whose lengths were frozen by the same images."""
    job, state = both
    start = job.init()
    x, labels, pass_key = batch(job, 0, 0)
    call, options = (start.variables, x), {"train": True, "mutable": ["batch_stats"]}
    chips = (job.chip, calibrate(job.chip, [call], **options))
    passes = []
    for chip, faulty in ((chips[0], False), (chips[0], True), (chips[1], True)):
        run = jax.jit(partial(one_pass, chip, faulty, *start[:2], x, labels))
        passes.append(run(fault_key(pass_key, faulty)))
    (_, (_, clean)), (following, _), (loss, (_, faulty)) = passes
    assert float(loss) != pytest.approx(float(following), rel=1e-2)
    np.testing.assert_allclose(state.totals["train/loss_faulty"], loss, rtol=1e-4)
    mean = jax.tree.map(lambda a, b: (np.float64(a) + np.float64(b)) / 2, clean, faulty)
    chex.assert_trees_all_close(state.batch_stats, mean, rtol=1e-4, atol=1e-6)
    assert not np.allclose(_flat(clean), _flat(faulty), rtol=1e-3)


def test_two_devices_and_loops_agree_on_both(both):
    for other in (Training(BOTH, Deep(), DATA, jax.devices()[:2]), Looping(BOTH, Deep(), DATA)):
        state = other.train(other.init(), 0, 0, 1)
        chex.assert_trees_all_close(state, both[1], rtol=1e-4, atol=1e-6)


def test_accuracies_of_tests_have_fraction_lengths_of_clean_passes(both):
    job, start = both[0], both[0].init()
    state = job.test(copy(start), 1, 0, 1)
    x = normalize(DATA.test_images[:BATCH], DATA.mean, DATA.std)
    chip = calibrate(job.chip, [(start.variables, x)], train=False)
    draw = Draw(jax.random.fold_in(job._root, training_module._TEST), True, 0)
    logits = jax.jit(lambda v: chip.apply(v, x, draw=draw))(start.variables)
    right = np.sum(np.argmax(np.asarray(logits), -1) == np.asarray(DATA.test_labels[:BATCH]))
    assert int(state.totals["test/accuracy_faulty"]) == int(right)


def test_what_counts_steps_is_no_average(both):
    joined = both[0]._join_statistics(jnp.array([[3], [4]], jnp.int32))
    assert (joined.dtype, joined.tolist()) == (jnp.int32, [3])


def test_loops_agree_with_single_steps(job, after):
    loops = Looping(CONFIG, Tiny(), DATA)
    state = loops.train(loops.init(), 0, 0, 2)
    chex.assert_trees_all_close(state, after, rtol=1e-4, atol=1e-6)
    tested = [own.test(copy(after), 0, 0, 3).totals for own in (loops, job)]
    chex.assert_trees_all_close(*tested, rtol=1e-4)


# Keys and epochs


def test_how_many_steps_a_call_makes_and_a_restart_change_no_bit(job, initial, after, tmp_path):
    whole = job.test(job.train(copy(after), 0, 2, STEPS), 0, 0, job.test_steps)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, after)
    shapes = state_shapes(CONFIG, Tiny(), (SIZE, SIZE, 1))
    assert jax.tree.structure(shapes) == jax.tree.structure(initial)
    state = checkpoints.restore(shapes).state
    for step in range(2, STEPS):
        state = job.train(state, 0, step, step + 1)
    state = job.test(job.test(state, 0, 0, 1), 0, 1, job.test_steps)
    assert_bit_identical(state, whole)


def test_what_the_first_step_needs_is_compiled_ahead(initial, caplog):
    job = Training(CONFIG, Tiny(), DATA)
    programs = job.compile()
    assert set(programs) == {"init", "order", "train"}
    with jax.log_compiles():
        job.train(copy(initial), 0, 0, 1)
    assert "on_every_device" not in caplog.text


class Counting(Training):
    """Steps that only count which images they see."""

    def _train_step(self, state, data, order, key, epoch, step):
        rows = jax.lax.dynamic_slice_in_dim(order, step * BATCH, BATCH)
        return state._replace(totals={"seen": state.totals["seen"].at[rows].add(1)})


def test_an_epoch_sees_no_image_twice():
    jobs = [Counting(changed(seed=seed), Tiny(), DATA) for seed in (0, 1)]

    def seen(seed, epoch, stop):
        seen = {"seen": jnp.zeros(BATCH * STEPS + 5, jnp.int32)}
        state = TrainingState({}, {}, (), seen, jnp.int32(0))
        return np.asarray(jobs[seed].train(state, epoch, 0, stop).totals["seen"])

    whole, part = seen(0, 0, STEPS), seen(0, 0, 2)
    assert (whole.max(), whole.sum(), part.sum()) == (1, BATCH * STEPS, 2 * BATCH)
    assert (whole >= part).all()
    assert (part != seen(0, 1, 2)).any()
    assert (part != seen(1, 0, 2)).any()


def test_the_learning_rate_drops_by_ten_at_fractions_of_all_epochs():
    config = dataclasses.replace(TrainingConfig(hardware(STUCK)), learning_rate=0.1)
    rates = [float(learning_rate(config, jnp.int32(epoch))) for epoch in range(100)]
    np.testing.assert_allclose(rates, [0.1] * 40 + [0.01] * 40 + [0.001] * 20, rtol=1e-6)
    assert changed(drops=(0.5,), epochs=4).drop_epochs() == (2,)
    assert float(learning_rate(changed(drops=()), jnp.int32(4))) == pytest.approx(0.2)


# Curriculum


def test_rates_grow_linearly_over_the_first_epochs():
    config = changed(curriculum_epochs=2, hardware=hardware(STUCK, BIASED))
    steps = [divmod(number, STEPS) for number in range(3 * STEPS)]
    scales = [fault_scale(config, STEPS, jnp.int32(e), jnp.int32(s)) for e, s in steps]
    np.testing.assert_allclose(scales, np.minimum(np.arange(1, 13) / 8, 1), rtol=1e-6)
    assert fault_scale(CONFIG, STEPS, jnp.int32(0), jnp.int32(0)) is None

    job = Training(config, Tiny(), DATA)
    stuck, biased = job._chip(jnp.int32(0), jnp.float32(0.25)).hardware.faults
    rates = [float(rate) for rate in (stuck.p0, stuck.p1, biased.p_m)]
    np.testing.assert_allclose(rates, [0.05, 0.025, 0.0025], rtol=1e-6)
    assert job._chip(jnp.int32(0)) is job.chip


def test_faults_of_a_curriculum_are_those_of_the_rate_at_hand(job, initial):
    grown = Training(changed(curriculum_epochs=1), Tiny(), DATA)
    half = hardware(dataclasses.replace(STUCK, p0=0.1, p1=0.05))
    for epoch, step, platform in ((0, 1, half), (1, 0, CONFIG.hardware)):
        totals = grown.train(copy(initial), epoch, step, step + 1).totals
        x, labels, pass_key = batch(job, epoch, step)
        chip = job.chip.with_hardware(platform)
        loss_of = jax.jit(partial(one_pass, chip, True, *initial[:2], x, labels))
        loss, _ = loss_of(fault_key(pass_key, True))
        np.testing.assert_allclose(totals["train/loss_faulty"], loss, rtol=1e-4)


def test_a_network_of_the_search_space_has_all_of_it_too():
    space = Space(nodes=3, primitives=("none", "conv_1x1", "sep_conv_3x3"))
    cells = "normal=[('sep_conv_3x3', 0, 2), ('conv_1x1', 1, 2)], "
    architecture = space.parse(cells + cells.replace("normal", "reduction").strip(", "))
    shape = NetworkConfig(
        CLASSES, 4, cells=1, reductions=(), batch_norm="running", affine=True, pool_norm=False
    )
    network = Network(shape, space, Hardware(None, None), architecture)
    config = changed(curriculum_epochs=1, fraction_lengths="clean", norm_passes="both")
    config = dataclasses.replace(config, hardware=hardware(STUCK, BIASED))
    job = Training(config, network, DATA)
    state = jax.eval_shape(lambda state: job.train(state, 0, 0, 1), job.shapes())
    assert jax.tree.leaves(state.batch_stats)


# Rates tried in turn


def test_a_trial_is_a_training_at_its_rate(job, initial, after):
    """STUCK has a rate of 0.3: the second trial is the training that the other tests look at."""
    tries = Training(changed(rates=RateTrials((0.6, 0.3), 1)), Tiny(), DATA)
    begin = tries.next_trial(tries.init())
    assert int(begin.trial) == 1
    assert_bit_identical(begin[:-1], initial[:-1])
    state = tries.train(begin, 0, 0, 2)
    assert int(state.trial) == 1
    chex.assert_trees_all_close(state[:-1], after[:-1], rtol=1e-4, atol=1e-6)
    tested, expected = (
        own.test(copy(s), 0, 0, 3).totals for own, s in ((tries, state), (job, after))
    )
    chex.assert_trees_all_close(tested, expected, rtol=1e-4)
    first = tries.train(tries.init(), 0, 0, 2)
    assert not np.allclose(first.totals["train/loss_faulty"], after.totals["train/loss_faulty"])


@pytest.mark.parametrize(
    ("trial", "epoch", "accuracy", "given_up"),
    [
        (0, 1, 0.4, True),
        (0, 1, 0.5, True),
        (0, 1, 0.6, False),
        (0, 0, 0.4, False),
        (0, 2, 0.4, False),
        (1, 1, 0.4, False),
    ],
)
def test_a_rate_is_given_up_at_the_end_of_its_trial(initial, trial, epoch, accuracy, given_up):
    """The last one never is."""
    tries = Training(changed(rates=RateTrials((0.6, 0.3), 2), test_every=5), Tiny(), make_data())
    assert [tries.config.is_tested(e) for e in range(5)] == [False, True, False, False, True]
    assert tries.trial_steps() == 2 * STEPS + 3
    totals = initial.totals | {"test/accuracy_clean": jnp.float32(accuracy * TEST)}
    state = initial._replace(totals=totals, trial=jnp.int32(trial))
    assert tries.gives_up(state, epoch) is given_up
    assert tries.metrics(state, epoch)["train/rate"] == (0.6, 0.3)[trial]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tried": ()}, "tried is (); rates decrease"),
        ({"tried": (0.1, 0.3)}, "rates decrease"),
        ({"tried": (1.5,)}, "rates decrease"),
        ({"tried": (0.1, 0.0)}, "rates decrease"),
        ({"tried": (0.1, math.nan)}, "rates decrease"),
        ({"epochs": 0}, "rates.epochs is 0"),
        ({"least_accuracy": 1.0}, "least_accuracy is 1.0"),
    ],
)
def test_trials_that_cannot_be_are_named(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RateTrials(**({"tried": (0.1,)} | fields))


def test_rates_are_those_of_one_fault_model_in_a_training_that_has_them():
    with pytest.raises(ValueError, match="only a training under one fault model"):
        changed(rates=RateTrials((0.1,), 1), hardware=hardware(STUCK, BIASED))
    with pytest.raises(ValueError, match="only a training under one fault model"):
        changed(rates=RateTrials((0.1,), 1), alpha_l=0.0)
    with pytest.raises(ValueError, match=r"rates\.epochs is 6; epochs is 5"):
        changed(rates=RateTrials((0.1,), 6))
    with pytest.raises(ValueError, match="rates: stuck_at: p0 and p1 are 0"):
        changed(rates=RateTrials((0.1,), 1), hardware=hardware(StuckAt(0.0, 0.0)))


# Tests


def test_accuracies_are_of_all_test_images_on_one_chip(job, after):
    state = job.test(job.reset_totals(copy(after)), 1, 0, job.test_steps)
    assert job.test_steps == 3  # 8 + 8 + 5 images
    row = job.metrics(state, 1)
    key = jax.random.fold_in(job._root, training_module._TEST)
    x = normalize(DATA.test_images, DATA.mean, DATA.std)

    def classes(faulty, first):
        images = jax.lax.dynamic_slice_in_dim(x, first, BATCH)
        draw = Draw(key, True, first) if faulty else CLEAN
        return jnp.argmax(job.chip.apply(after.variables, images, draw=draw), -1)

    for name, faulty in (("clean", False), ("faulty", True)):
        found, measure = np.zeros(TEST, np.int32), jax.jit(partial(classes, faulty))
        for first in (13, 8, 0):
            found[first : first + BATCH] = measure(first)
        share = np.mean(found == np.asarray(DATA.test_labels))
        assert row[f"test/accuracy_{name}"] == pytest.approx(share, rel=1e-6)


def test_a_row_has_the_means_of_an_epoch(job, after):
    row = job.metrics(job.test(copy(after), 0, 0, 1), 0)
    assert row["epoch"] == 1
    assert row["train/loss"] == pytest.approx(float(after.totals["train/loss"]) / STEPS)
    loss = 0.7 * row["train/loss_clean"] + 0.3 * row["train/loss_faulty"]
    assert row["train/loss"] == pytest.approx(loss, rel=1e-5)
    assert row["train/learning_rate"] == pytest.approx(0.2)
    # Every second epoch is tested, and the last one.
    assert [CONFIG.is_tested(epoch) for epoch in range(5)] == [False, True, False, True, True]
    assert not [name for name in row if name.startswith("test/")]
    assert not any(map(float, job.reset_totals(copy(after)).totals.values()))


# Mistakes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha_l", -0.1),
        ("alpha_l", math.nan),
        ("epochs", 0),
        ("batch_size", "64"),
        ("test_every", 0),
        ("learning_rate", math.nan),
        ("gradient_clip", -1.0),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("crop_padding", -1),
        ("seed", 2**32),
        ("drops", (0.8, 0.4)),
        ("drops", (0.0,)),
        ("drops", (1.0,)),
        ("norm_passes", "batch"),
        ("fraction_lengths", "both"),
        ("curriculum_epochs", -1),
        ("curriculum_epochs", 6),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=field) as error:
        changed(**{field: value})
    assert "\n" not in str(error.value)


def test_faults_that_are_needed_are_asked_for():
    with pytest.raises(ValueError, match=r"alpha_l is 0\.3, but there are no faults"):
        changed(hardware=hardware())
    with pytest.raises(ValueError, match=r"fraction_lengths is clean, but features are in float32"):
        changed(hardware=Hardware(features=None, faults=(STUCK,)), fraction_lengths="clean")
    with pytest.raises(ValueError, match="curriculum_epochs: with an alpha_l of 0"):
        changed(alpha_l=0.0, curriculum_epochs=1)
    with pytest.raises(ValueError, match="curriculum_epochs: stuck_at: p0 and p1 are 0"):
        changed(hardware=hardware(StuckAt(0.0, 0.0)), curriculum_epochs=1)


class Deaf(nn.Module):
    """A model that is the same in training."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(CLASSES)(images.reshape(len(images), -1))


class Branching(nn.Module):
    """A model with a layer in a branch."""

    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(len(images), -1)
        own = self.param("kernel", nn.initializers.ones, (x.shape[-1], CLASSES))
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ own, lambda: 2 * x @ own)


class Remembering(nn.Module):
    """A model with variables of its own kind."""

    @nn.compact
    def __call__(self, images, train=False):
        self.variable("memory", "calls", lambda: jnp.zeros(()))
        return nn.Dense(CLASSES)(images.reshape(len(images), -1))


@pytest.mark.parametrize(
    ("config", "model", "data", "message"),
    [
        (changed(batch_size=64), Tiny(), DATA, "only 37 training images"),
        (CONFIG, Tiny(), make_data(test=0), "no test images"),
        (CONFIG, Tiny(classes=2), DATA, r"returns \(8, 2\) for 8 images of 3 classes"),
        (CONFIG, Deaf(), DATA, r"Deaf cannot be called as model\(images, train=True\)"),
        (CONFIG, Remembering(), DATA, "Remembering has variables in 'memory'"),
        (BOTH, Branching(), DATA, "^fraction_lengths is clean: layers in a branch cannot"),
        (changed(hardware=hardware(MiBB(layers="stem"))), Tiny(), DATA, "called 'stem'"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_compiled(config, model, data, message):
    with pytest.raises(ValueError, match=message) as error:
        Training(config, model, data)
    assert "\n" not in str(error.value)
