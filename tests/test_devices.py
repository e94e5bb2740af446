"""The devices and the process of a job."""

import os
import subprocess
import sys

import pytest

from experiments import large_pages

RESTART = """
import os, sys
from experiments.large_pages import restart
print("begin", flush=True)
restart()
print(os.environ["GLIBC_TUNABLES"], *sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="large pages are asked for on Linux")
@pytest.mark.parametrize("own", [None, "glibc.malloc.check=0"])
def test_a_process_begins_again_with_large_pages_unless_the_user_has_tunables(own):
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    if own:
        environment["GLIBC_TUNABLES"] = own
    command = [sys.executable, "-c", RESTART, "--flag", "two words"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    begins = ["begin"] * (1 if own else 2)
    expected = own or large_pages.ENVIRONMENT["GLIBC_TUNABLES"]
    assert done.stdout.splitlines() == [*begins, f"{expected} --flag two words"]


COUNT = """
import sys
from experiments import devices
devices.make_cpu_devices(int(sys.argv[1]))
print(len(devices.take(int(sys.argv[1]))))
"""


@pytest.mark.parametrize(("cores", "wanted", "taken"), [(1, 0, 1), (2, 0, 2), (8, 0, 2), (8, 3, 3)])
def test_a_cpu_is_two_devices_where_it_has_the_cores(cores, wanted, taken):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "JAX_PLATFORMS": "cpu"
    }
    code = f"from ftnas_jax import machine\nmachine.cores = lambda: {cores}\n{COUNT}"
    command = [sys.executable, "-c", code, str(wanted)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(taken)]
