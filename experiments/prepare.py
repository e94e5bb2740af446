"""What a job does before its first step: it reads the data, and sees that checkpoints will fit."""

from collections.abc import Mapping
from typing import Any

import jax

from ftnas_jax import data
from ftnas_jax.data_io import check_space
from ftnas_jax.run import RunDir


def load_data(fields: Mapping[str, Any]) -> data.Dataset:
    """The data set of a config's fields `data`."""
    return data.load(
        fields["name"],
        fields["data_dir"] or None,
        cache_dir=fields["cache_dir"] or None,
        size=fields["size"] or None,
    )


def check_disk(run: RunDir, shapes: Any) -> None:
    """Refuse to begin where the checkpoints that are still to come will not fit.

    Args:
        run: the directory they go to.
        shapes: of the state's arrays.
    """
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    # One more than are kept: the newest is whole before the oldest goes.
    to_come = run.checkpoints.max_to_keep + 1 - len(run.checkpoints.steps())
    check_space(run.path, size * max(to_come, 1), "free some, or choose another --workdir")
