"""Frozen fraction lengths of features: what a model on hardware may be given of them."""

from collections.abc import Iterable, Mapping

import jax

from ftnas_jax.fixed_point import FixedPoint

Lengths = Mapping[str, jax.Array]
"""int32 by the tensor's name; of features that are not there they follow the features at hand."""


def check_names(lengths: Lengths, names: Iterable[str]) -> None:
    """Raise ValueError where a length is not of the features that a model has, by their names."""
    for name in lengths.keys() - set(names):
        raise ValueError(
            f"there is a fraction length of {name!r}, which is no feature tensor of this model"
        )


def check_format(lengths: Lengths, before: FixedPoint | None, after: FixedPoint | None) -> None:
    """Raise ValueError where lengths that were frozen for a format go with another one."""
    if lengths and after != before:
        raise ValueError(
            f"fraction lengths were frozen for {before}, not for {after}; calibrate again"
        )
