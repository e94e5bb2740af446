"""Which layers fail: patterns of their paths, and groups of them of which a number chooses one."""

import dataclasses
import functools
import numbers
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["selected"], meta_fields=["groups"]
)
@dataclasses.dataclass(frozen=True)
class Only:
    """One group of layers, chosen by a number that may be traced: one program serves all groups.

    A model with `only` has its rates in the layers of that group and rates of 0 in all others. Its
    draws do not depend on the choice: a layer that fails has the faults that it has without `only`.

    Attributes:
        groups: patterns of paths as in `FaultModel.layers`, one text for each group; a layer may be
            in several groups.
        selected: place of the group that fails among `groups`, from 0, int32. A traced number that
            is no place selects none.

    Raises:
        ValueError: there are no groups, a pattern is empty, or a Python number is no place.
    """

    groups: tuple[str, ...]
    selected: int | jax.Array

    def __post_init__(self):
        if isinstance(self.groups, str) or not self.groups:
            raise ValueError(f"only: groups is {self.groups!r}; give a tuple of patterns")
        object.__setattr__(self, "groups", tuple(self.groups))
        for group in self.groups:
            check_patterns("only", "groups", group)
        known = isinstance(self.selected, numbers.Integral)
        if known and not 0 <= int(self.selected) < len(self.groups):
            raise ValueError(
                f"only: selected is {self.selected}; the places of groups are "
                f"0-{len(self.groups) - 1}"
            )

    def at(self, path: str, rate: Any) -> Any:
        """`rate` where a layer at `path` is of the selected group, else 0; float32 if traced."""
        own = [place for place, group in enumerate(self.groups) if fits(path, group)]
        if not own:
            return 0.0
        if isinstance(self.selected, numbers.Integral):
            return rate if self.selected in own else 0.0
        chosen = jnp.any(jnp.asarray(self.selected, jnp.int32) == jnp.array(own, jnp.int32))
        return jnp.where(chosen, jnp.asarray(rate, jnp.float32), jnp.float32(0))


def fits(path: str, patterns: str) -> bool:
    """Whether a path is one of `patterns`, which `|` joins; those behind `!` are left out."""
    each = [pattern.strip() for pattern in patterns.split("|")]
    wanted = [pattern for pattern in each if not pattern.startswith("!")] or ["*"]
    sound = [pattern.removeprefix("!").strip() for pattern in each if pattern.startswith("!")]
    return _fits_any(path, wanted) and not _fits_any(path, sound)


def _fits_any(path: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def check_patterns(owner: str, field: str, patterns: str) -> None:
    """Raise ValueError where one of the patterns is empty."""
    if not all(pattern.strip(" !") for pattern in patterns.split("|")):
        raise ValueError(f"{owner}: {field} is {patterns!r}, with an empty pattern")
