"""Whether the layers that fault models name are there."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from ftnas_jax.faults.defect_map import DefectMap
from ftnas_jax.faults.model import FaultModel

_SHOWN = 10
"""Paths in a message."""


def check_layers(
    models: Iterable[FaultModel], paths: Iterable[str], own: Iterable[str] | None = None
) -> None:
    """Raise ValueError where a model names a layer that a network has not.

    Args:
        models: with patterns of layers, and cells of a chip.
        paths: of all layers that patterns may speak of.
        own: of the layers that are there, by default all of these.
    """
    known = sorted(set(paths))
    present = known if own is None else sorted(set(own))
    for model in models:
        for pattern in model.layers.split("|"):
            wanted = pattern.strip().removeprefix("!").strip()
            if not any(fnmatchcase(path, wanted) for path in known):
                raise ValueError(_message(model, wanted, known))
        cells = model.cells if isinstance(model, DefectMap) else ()
        for path in cells:
            if path not in present:
                raise ValueError(_message(model, path, present))


def _message(model: FaultModel, name: str, paths: list[str]) -> str:
    close = difflib.get_close_matches(name, paths, 1)
    some = ", ".join(paths[:_SHOWN]) + (", ..." if len(paths) > _SHOWN else "")
    known = f"did you mean {close[0]}?" if close else f"there are {some}"
    return f"{model.name}: no layer is called {name!r}; {known}"
