"""Chips as the model on hardware computes them one by one, whatever the chunk and the devices."""

import types

import jax
import numpy as np
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st

import ftnas_jax as ft
from ftnas_jax.campaigns.trials import Batches, Trials, batches

FAULTS = ("stuck_at:p0=0.1,p1=0.05", "mibb:p_m=0.02", "mibb:p_m=0.02,per=chip")


@given(st.integers(1, 500), st.integers(1, 100))
def test_batches_hold_every_image_and_each_counts_once(images, size):
    own = batches(images, size)
    numbers = np.stack([np.arange(start, start + own.size) for start in own.starts])
    assert numbers.min() == 0
    assert numbers.max() == images - 1
    np.testing.assert_array_equal(own.join(numbers[None])[0], np.arange(images))


def test_an_image_of_two_batches_counts_in_the_first():
    own = Batches(images=5, size=3)
    predicted = np.array([[[0, 0, 0], [1, 1, 1]]])
    np.testing.assert_array_equal(own.join(predicted)[0], [0, 0, 0, 1, 1])


@pytest.mark.parametrize(("images", "size"), [(10_000, 250), (540, 180), (100, 100), (257, 129)])
def test_by_default_batches_are_alike(images, size):
    assert batches(images, None) == Batches(images, size)


def _trials(faults: str, **options) -> tuple[Trials, tuple]:
    own = small.subject(faults)
    key = np.asarray(jax.random.key_data(jax.random.key(3)))
    shared = (jax.tree.map(np.float32, ft.faults.parse(faults)), key, np.bool_(True))
    return Trials(own.on_chip, own.variables, small.data()[0], shared, **options), shared


def _classes(trials: Trials, shared: tuple, numbers) -> np.ndarray:
    numbers = np.array(numbers)[:, None]
    return np.concatenate([classes for _, classes in trials.run(shared, numbers)])


@pytest.mark.parametrize("faults", FAULTS)
def test_chips_are_those_of_the_model_on_hardware(faults):
    trials, shared = _trials(faults, batch_size=25, devices=jax.devices()[:1])
    found = _classes(trials, shared, range(6))
    for number in range(6):
        expected = small.classes_of_chip(faults, jax.random.key(3), number, 25)
        np.testing.assert_array_equal(found[number], expected)


@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize(("chunk", "devices"), [(1, 4), (3, 1), (7, 2), (64, 4)])
def test_chunks_devices_and_order_change_nothing(faults, chunk, devices):
    base, shared = _trials(faults, devices=jax.devices()[:1], batch_size=20)
    other, _ = _trials(faults, chunk=chunk, devices=jax.devices()[:devices], batch_size=20)
    numbers = [11, 4, 0, 30, 7, 2, 19]
    expected = _classes(base, shared, sorted(numbers))
    order = np.argsort(np.argsort(numbers))
    np.testing.assert_array_equal(_classes(other, shared, numbers), expected[order])


def test_a_chip_can_be_replayed_alone():
    trials, shared = _trials(FAULTS[0])
    together = _classes(trials, shared, range(20))
    np.testing.assert_array_equal(_classes(trials, shared, [13])[0], together[13])


def test_stopping_keeps_what_is_ready():
    trials, shared = _trials(FAULTS[0], devices=jax.devices()[:1])
    expected = _classes(trials, shared, range(8))
    asked = iter([False, True])
    fresh, _ = _trials(FAULTS[0], devices=jax.devices()[:1])
    ready = list(fresh.run(shared, np.arange(8)[:, None], lambda: next(asked)))
    assert [count for count, _ in ready] == [1]
    np.testing.assert_array_equal(ready[0][1], expected[:1])


def test_a_chunk_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"64 x 50 images at once take .* GiB .* smaller chunk"):
        _trials(FAULTS[0], chunk=64, memory=1000.0)
    with pytest.raises(ValueError, match="chunk is 0"):
        _trials(FAULTS[0], chunk=0)


def test_a_call_has_no_more_room_than_it_takes():
    trials, _ = _trials(FAULTS[0], chunk=4096, devices=jax.devices()[:1])
    assert trials.bytes < 2**26  # 1024 blocks of this chunk would be 800 MiB


@pytest.mark.parametrize(("most", "chunk"), [(12, 12), (1, 1), (5000, 256)])
def test_elsewhere_a_chunk_is_no_more_than_there_are_chips(most, chunk):
    trials, shared = _trials(FAULTS[0], devices=jax.devices()[:1], most=most)
    trials.devices = [types.SimpleNamespace(platform="gpu")]  # of which only the kind matters
    assert trials._compile(shared, None, 2.0**30)[0] == chunk


def test_the_program_says_how_much_it_takes_and_more_chips_take_no_more():
    trials, shared = _trials("mibb:p_m=0.02", chunk=4, memory=2.0**26)
    assert 0 < trials.bytes < 2**26
    assert len(_classes(trials, shared, range(512))) == 512
