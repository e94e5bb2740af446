"""What stands beside every number: the cores that a process may use, and its devices."""

import re

import jax
import pytest

from ftnas_jax import machine


@pytest.mark.parametrize(
    ("cores", "devices", "expected"),
    [
        (1, None, "1 core, jax"),
        (2, None, "2 cores, jax"),
        (1, 1, "1 core, jax"),
        (2, 1, "2 cores as 1 device, jax"),
        (1, 2, "1 core as 2 devices, jax"),
        (2, 2, "2 cores as 2 devices, jax"),
    ],
)
def test_cores_of_the_process_and_devices_of_the_job(monkeypatch, cores, devices, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    text = machine.describe(devices and jax.devices()[:devices])
    assert f", {expected} {jax.__version__}, Python " in text


def test_accelerators_are_counted_and_named(monkeypatch):
    class Accelerator:
        platform, device_kind = "tpu", "TPU v4"

    monkeypatch.setattr(jax, "devices", lambda: [Accelerator()] * 4)
    assert re.match("4 x TPU v4, jax ", machine.describe())
    assert re.match("1 x TPU v4, jax ", machine.describe([Accelerator()]))
