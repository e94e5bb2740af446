"""No test of data reaches a network or a folder of the user."""

import errno
import socket
from types import SimpleNamespace

import pytest
from sets import prepare_toy

from ftnas_jax import cifar, tfds_reader


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing listens where the archive is looked for, and TFDS finds no host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(cifar, "URL", f"http://127.0.0.1:{port}/cifar-10-binary.tar.gz")

    def refuse(*args, **kwargs):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(tfds_reader, "socket", SimpleNamespace(create_connection=refuse))
    monkeypatch.setattr(tfds_reader, "getproxies", dict)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path):
    """A data_dir that does not exist yet."""
    return tmp_path / "some" / "data"


@pytest.fixture
def toy(root):
    """The directory of a prepared toy set: 7 + 7 images of 6x5x3, three classes."""
    return prepare_toy(root)
