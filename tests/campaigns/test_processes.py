"""A campaign of two processes, joined by `jax.distributed`, has the rows of one alone."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import small

from ftnas_jax.campaigns.campaign import compare

HERE = Path(__file__).parent


def _free_port() -> int:
    with socket.socket() as own:
        own.bind(("localhost", 0))
        return own.getsockname()[1]


def _started(folders: list[Path]) -> list[tuple[int, str, str]]:
    """Of one process for each folder its exit status, what it prints and what it says of errors."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    port = str(_free_port())
    started = [
        subprocess.Popen(
            [
                sys.executable,
                HERE / "two_processes.py",
                port,
                str(len(folders)),
                str(number),
                folder,
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, folder in enumerate(folders)
    ]
    ended = [process.communicate(timeout=1500) for process in started]
    return [(p.returncode, *said) for p, said in zip(started, ended, strict=True)]


def _run(folder: Path) -> list[str]:
    """What each of two processes prints."""
    ended = _started([folder, folder])
    for status, _, said in ended:
        assert status == 0, said
    return [out for _, out, _ in ended]


def test_two_processes_find_what_one_finds(tmp_path):
    alone = compare(
        [small.subject("mibb:p_m=0.02")],
        small.data(),
        faults="mibb:p_m=0.02",
        rates=[0.01, 0.05],
        key=jax.random.key(3),
        chips=300,
        margin=0.02,
        batch_size=25,
        workdir=tmp_path / "alone",
    )
    said = _run(tmp_path / "both")
    assert all(one.endswith(f"{alone}\n") for one in said)  # behind what the library says
    for name in ("chips.csv", "rights.bin", "summary.csv"):
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    again = _run(tmp_path / "both")  # they go on with what is there
    assert all(one.endswith(f"{alone}\n") for one in again)


def test_processes_that_do_not_share_the_directory_are_refused(tmp_path):
    for status, _, said in _started([tmp_path / "one", tmp_path / "other"]):
        assert status != 0
        assert "not all processes see the same files in" in said
    assert not (tmp_path / "one" / "chips.csv").exists()
