"""Several processes at one job, joined by `jax.distributed`: who writes, and what they agree on.

They make the same calls in the same order, so whatever the calls depend on must be alike: where it
is not by itself, as time and signals, the first process decides.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


def wait(place: str) -> None:
    """Until the other processes are at the same place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def agree(value: float) -> float:
    """The first process's value; those of the others are ignored."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def gather(array: Any) -> np.ndarray:
    """All of an array whose parts lie on the devices of several processes."""
    if jax.process_count() == 1:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
