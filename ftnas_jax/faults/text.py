"""Fault models as text, for configs and command lines: `stuck_at:p0=0.067,p1=0.013`."""

import dataclasses
import difflib
import re
from collections.abc import Iterable

from ftnas_jax.faults.bit_bias import BitBias
from ftnas_jax.faults.bit_flip import BitFlip
from ftnas_jax.faults.defect_map import DefectMap
from ftnas_jax.faults.drift import Drift
from ftnas_jax.faults.mibb import MiBB
from ftnas_jax.faults.model import FaultModel
from ftnas_jax.faults.stuck_at import StuckAt
from ftnas_jax.faults.stuck_bits import StuckBits
from ftnas_jax.faults.variation import LogNormal, ReciprocalNormal

MODELS: dict[str, type[FaultModel]] = {
    model.name: model
    for model in (
        *(MiBB, BitBias, BitFlip, StuckAt, StuckBits),
        *(LogNormal, ReciprocalNormal, Drift, DefectMap),
    )
}
"""All fault models by name."""

_JOINT = re.compile(r"\+(?=\s*[a-zA-Z])")
"""A plus sign before a letter joins models; in 1e+0 it does not."""


def parse(text: str) -> tuple[FaultModel, ...]:
    """Read models `name` or `name:field=value,...`, joined by `+`.

    Fields left out keep their defaults. The empty text is no model.

    Raises:
        ValueError: in one line, for an unknown model or field, a value that cannot be read, or one
            that the model refuses, as a rate outside [0, 1].
    """
    return tuple(_parse_one(part) for part in _JOINT.split(text)) if text.strip() else ()


def _parse_one(text: str) -> FaultModel:
    name, _, rest = text.strip().partition(":")
    if name not in MODELS:
        raise ValueError(f"unknown fault model {name!r}; {_choices(name, MODELS)}")
    model = MODELS[name]
    defaults = {field.name: field.default for field in _fields(model)}
    defaults |= dict.fromkeys(model.in_text, 0.0)
    values = {}
    for item in filter(None, rest.split(",")):
        field, equals, value = (part.strip() for part in item.partition("="))
        if not equals or field not in defaults:
            raise ValueError(f"{name}: cannot read {item!r}; its fields are {', '.join(defaults)}")
        if field in values:
            raise ValueError(f"{name}: {field} is given twice")
        values[field] = _read(name, field, value, defaults[field])
    return model.from_text(values)


def _fields(model: FaultModel | type[FaultModel]) -> list[dataclasses.Field]:
    """A model's own fields, then those that all have, without what only a program chooses."""
    written = (field for field in dataclasses.fields(model) if field.default is not None)
    return sorted(written, key=lambda field: bool(field.kw_only))


def _choices(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(names)}"


def _read(name: str, field: str, value: str, default):
    if isinstance(default, str):
        return value
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name}: {field} is {value!r}, not a number") from None


def format_text(models: FaultModel | Iterable[FaultModel]) -> str:
    """The text that `parse` reads back as the same models; fields at their defaults are left out.

    Rates that are arrays are written as numbers.

    Raises:
        ValueError: for a path or pattern that no text can hold, and for a group of layers or a bit
            that a number chooses.
    """
    models = (models,) if isinstance(models, FaultModel) else models
    return "+".join(_format_one(model) for model in models)


def _format_one(model: FaultModel) -> str:
    chosen = [name for name in ("only", "bit") if getattr(model, name, None) is not None]
    if chosen:
        raise ValueError(f"{model.name}: {chosen[0]} is set, which text has no field for")
    texts = []
    for field in _fields(model):
        value = getattr(model, field.name)
        value = _readable(model.name, field.name, value) if isinstance(value, str) else float(value)
        if field.name in model.rates or value != _default(model, field):
            texts.append(f"{field.name}={value}")
    return ":".join(filter(None, (model.name, ",".join(texts))))


def _readable(name: str, field: str, value: str) -> str:
    if "," in value or _JOINT.search(value) or value != value.strip():
        raise ValueError(
            f"{name}: {field} is {value!r}; text has no comma, outer blank or + before a letter"
        )
    return value


def _default(model: FaultModel, field: dataclasses.Field):
    """What a field becomes where it is left out."""
    if field.name != "per":
        return field.default
    return "chip" if model.site == "weights" else "image"
