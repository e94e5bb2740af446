"""Statistics of BatchNorm taken anew on a chip, with its faults.

    variables = ft.recalibrate(chip, variables, images, draw=ft.Draw(key))
    logits = chip.apply(variables, others, draw=ft.Draw(key))  # the same chip

Faults move means and deviations of features away from the running ones of a training, which were
averaged on other chips or on sound hardware. Where hardware keeps normalization apart from weights,
a chip can be given statistics of its own after its faults are known.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from ftnas_jax.graph.model import LinenOnHardware
from ftnas_jax.graph.network import NetworkOnHardware
from ftnas_jax.nn.hardware import CLEAN, Draw

RECALIBRATED = (LinenOnHardware, NetworkOnHardware)
"""Models on hardware that can be."""

_STATISTICS = "batch_stats"

_FAR = 2.0**60
"""Where the second of two running averages starts: far beyond all statistics, so that what it keeps
of that tells the momentum, to float32's rounding."""

_FIRST_IMAGE = 2**30
"""Number of the first image that statistics are taken by: that of no other image, so that faults
which are drawn for every image are others."""


def recalibrate(
    chip: Any,
    variables: Mapping[str, Any],
    images: Any,
    *args: Any,
    draw: Draw = CLEAN,
    **kwargs: Any,
) -> Any:
    """Variables whose running statistics are those of some images on a chip.

    They are the batch's, whatever the momentum m of the model's running averages. These are linear
    in what they were before, so that two starts tell m, and the batch's share, to a rounding of
    1e-7 / (1 - m). Both are computed in one pass, of which nothing else may depend on them.

    Args:
        chip: a linen module on hardware, called as `model(images, train=...)`; see
            `ftnas_jax.graph.model.on_hardware`. A model with dropout drops as in training.
        variables: with the collection `batch_stats`.
        images: [N, ...], as the model takes them; a few hundred.
        *args: of the call, behind the images.
        draw: faults of the pass; by default there are none. The call that follows takes the same
            one, to be on the same chip; faults that are drawn for every image are others in it.
        **kwargs: of the call; `train` and `mutable` have no say, `rngs` are kept, by name.

    Returns:
        The variables with other `batch_stats`.

    Raises:
        ValueError: the model is no linen module, its variables have no `batch_stats`, or its
            training pass computes with them, as a BatchNorm does that is frozen.
    """
    _check(chip, variables)
    rngs = {"dropout": jax.random.key(0)} | (kwargs.get("rngs") or {})
    options = {**kwargs, "train": True, "mutable": [_STATISTICS], "rngs": rngs}
    met = draw._replace(first=_FIRST_IMAGE)

    def after(statistics: Any) -> tuple[Any, Any]:
        own = {**variables, _STATISTICS: statistics}
        logits, updates = chip.apply(own, images, *args, draw=met, **options)
        return jax.tree.leaves(updates[_STATISTICS]), logits

    given, structure = jax.tree.flatten(variables[_STATISTICS])
    starts = [_starts(jnp.asarray(a)) for a in given]
    try:
        both, _ = jax.vmap(after, out_axes=(0, None))(jax.tree.unflatten(structure, starts))
    except ValueError as error:
        if "out_axes" not in str(error):
            raise
        raise ValueError(
            "the model computes with its batch_stats in training, too, as a frozen BatchNorm does; "
            "it cannot be recalibrated"
        ) from error
    found = [_solve(own, before) for own, before in zip(both, given, strict=True)]
    return {**variables, _STATISTICS: jax.tree.unflatten(structure, found)}


def _starts(before: jax.Array) -> jax.Array:
    """Two starts of a running average; what counts something starts twice where it is."""
    if not jnp.issubdtype(before.dtype, jnp.inexact):
        return jnp.stack([before, before])
    return jnp.stack([jnp.zeros_like(before), jnp.full_like(before, _FAR)])


def _solve(ends: jax.Array, before: jax.Array) -> jax.Array:
    """The batch's statistics out of averages that began as `_starts` says."""
    if not jnp.issubdtype(ends.dtype, jnp.inexact):
        return jnp.asarray(before)
    share = 1 - (ends[1] - ends[0]) / _FAR
    # What no pass moves, as of operations that an architecture leaves out, stays as it is.
    return jnp.where(share == 0, before, ends[0] / jnp.where(share == 0, 1, share))


def check_recalibration(name: str, chip: Any, variables: Any, images: Any, *args, **kwargs) -> None:
    """Raise ValueError where `recalibrate` cannot be called so; nothing is computed."""
    try:
        jax.eval_shape(lambda own: recalibrate(chip, own, images, *args, **kwargs), variables)
    except (ValueError, TypeError, FlaxError) as error:
        why = " ".join(str(error).split())[:200]
        shape = list(jnp.shape(images))
        raise ValueError(
            f"{name} cannot be recalibrated by images of shape {shape}: {why}"
        ) from error


def _check(chip: Any, variables: Any) -> None:
    if not isinstance(chip, RECALIBRATED):
        raise ValueError("only Flax linen modules on hardware can be recalibrated")
    if not variables.get(_STATISTICS):
        raise ValueError(f"there is no BatchNorm to recalibrate: no variables are {_STATISTICS}")
