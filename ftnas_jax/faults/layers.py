"""Whether the layers that fault models name are there."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

from ftnas_jax.faults.defect_map import DefectMap
from ftnas_jax.faults.model import FaultModel, Site

_SHOWN = 10
"""Paths in a message."""


def check_layers(
    models: Collection[FaultModel],
    paths: Mapping[Site, Iterable[str]],
    own: Iterable[str] | None = None,
) -> None:
    """Raise ValueError where a model names a layer that it cannot act on.

    A group of layers is one for all models that act together: one of them may find none in it.

    Args:
        models: with patterns of layers, groups of them, and cells of a chip.
        paths: for every site of faults those of the layers that have it.
        own: of the layers whose weights are there; by default all that `paths` has for weights.
    """
    everywhere = sorted({path for own_paths in paths.values() for path in own_paths})
    acting = sorted({path for model in models for path in paths[model.site]})
    for model in models:
        known = sorted(set(paths[model.site]))
        _check_patterns(model, (model.layers,), known, everywhere)
        _check_patterns(model, model.only.groups if model.only else (), acting, everywhere)
        present = known if own is None else sorted(set(own))
        cells = model.cells if isinstance(model, DefectMap) else ()
        for path in cells:
            if path not in present:
                raise ValueError(_message(model, path, present))


def _check_patterns(
    model: FaultModel, groups: tuple[str, ...], known: list[str], everywhere: list[str]
) -> None:
    for pattern in (part.strip() for group in groups for part in group.split("|")):
        # To protect a layer that would not fail anyway is no mistake.
        sound = pattern.startswith("!")
        wanted, among = pattern.removeprefix("!").strip(), everywhere if sound else known
        if wanted != "*" and not any(fnmatchcase(path, wanted) for path in among):
            raise ValueError(_message(model, wanted, among))


def _message(model: FaultModel, name: str, paths: list[str]) -> str:
    close = difflib.get_close_matches(name, paths, 1)
    some = ", ".join(paths[:_SHOWN]) + (", ..." if len(paths) > _SHOWN else "")
    known = f"did you mean {close[0]}?" if close else f"there are {some or 'none'}"
    return f"{model.name}: no layer that it acts on is called {name!r}; {known}"
