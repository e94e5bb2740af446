"""A batch that is split over devices: statistics and random draws are those of the whole of it.

Each function takes the mesh axis that splits the batch (its name, or the names of several axes that
split it together), or None where nothing does.
"""

from typing import Any

import jax
from jax import lax

Axis = str | tuple[str, ...] | None


def whole_count(count: int, axis: Axis) -> int:
    """Images in the whole batch, of which every device has `count`."""
    return count if axis is None else count * lax.axis_size(axis)


def own_part(whole: jax.Array, axis: Axis) -> jax.Array:
    """This device's part of an array [B, ...] of the whole batch."""
    if axis is None:
        return whole
    count = whole.shape[0] // lax.axis_size(axis)
    return lax.dynamic_slice_in_dim(whole, lax.axis_index(axis) * count, count)


def first_of_part(count: int, axis: Axis) -> int | jax.Array:
    """The number, in the whole batch, of the first of the `count` images on this device."""
    return 0 if axis is None else lax.axis_index(axis) * count


def mean_of_parts(own: Any, axis: Axis) -> Any:
    """The means over the whole batch of what are means over a part of it, a tree of arrays."""
    return own if axis is None else lax.pmean(own, axis)


def largest_of_parts(own: jax.Array, axis: Axis) -> jax.Array:
    """The maximum over the whole batch of what is a maximum over a part of it."""
    return own if axis is None else lax.pmax(own, axis)
