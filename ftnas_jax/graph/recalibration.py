"""Statistics of BatchNorm taken anew on a chip, with its faults.

    variables = ft.recalibrate(chip, variables, images, draw=ft.Draw(key))

Faults move means and deviations of features away from the running ones of a training, which were
averaged on other chips or on sound hardware. Where hardware keeps normalization apart from weights,
a chip can be given statistics of its own after its faults are known.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ftnas_jax.nn.hardware import CLEAN, Draw

_STATISTICS = "batch_stats"


def recalibrate(
    chip: Any,
    variables: Mapping[str, Any],
    images: Any,
    *args: Any,
    draw: Draw = CLEAN,
    **kwargs: Any,
) -> dict[str, Any]:
    """Variables whose running statistics are those of some images on a chip.

    They are exactly the batch's, whatever the momentum of the model's running averages: these are
    linear in what they were before, so that two starts tell the momentum. Both are computed in one
    pass, of which nothing else depends on them.

    Args:
        chip: a linen module on hardware, called as `model(images, train=...)`; see
            `ftnas_jax.graph.model.on_hardware`. A model with dropout drops as in training.
        variables: with the collection `batch_stats`.
        images: [N, ...], as the model takes them; a few hundred.
        *args: of the call, behind the images.
        draw: faults of the pass; its key is consumed. By default there are none.
        **kwargs: of the call; `train` has no say.

    Returns:
        The variables with other `batch_stats`.

    Raises:
        ValueError: the variables have no `batch_stats`.
    """
    check_statistics(variables)

    def after(statistics: Any) -> Any:
        own = {**variables, _STATISTICS: statistics}
        rngs = {"dropout": jax.random.key(0)}
        options = {**kwargs, "train": True, "mutable": [_STATISTICS], "rngs": rngs}
        return chip.apply(own, images, *args, draw=draw, **options)[1][_STATISTICS]

    def starts(a: Any) -> jax.Array:
        return jnp.stack([jnp.zeros_like(a), jnp.ones_like(a)])

    from_both = jax.vmap(after)(jax.tree.map(starts, variables[_STATISTICS]))

    def solve(pair: jax.Array, given: jax.Array) -> jax.Array:
        moved = 1 - (pair[1] - pair[0])
        # What no pass moves, as of operations that an architecture leaves out, stays as it is.
        return jnp.where(moved == 0, given, pair[0] / jnp.where(moved == 0, 1, moved))

    found = jax.tree.map(solve, from_both, variables[_STATISTICS])
    return {**variables, _STATISTICS: found}


def check_statistics(variables: Any, name: str = "the model") -> None:
    """Raise ValueError where variables have no statistics of BatchNorm, as linen keeps them."""
    if not isinstance(variables, Mapping) or not variables.get(_STATISTICS):
        raise ValueError(
            f"{name} has no BatchNorm to recalibrate: its variables have no {_STATISTICS}"
        )
