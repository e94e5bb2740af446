"""Fault models as text, for configs and command lines: `stuck_at:p0=0.067,p1=0.013`."""

import dataclasses

from ftnas_jax.faults.mibb import MiBB
from ftnas_jax.faults.model import FaultModel
from ftnas_jax.faults.stuck_at import StuckAt

MODELS: dict[str, type] = {model.name: model for model in (MiBB, StuckAt)}


def parse(text: str) -> FaultModel:
    """Read `name` or `name:field=value,...`; fields left out keep their defaults.

    Raises:
        ValueError: in one line, for an unknown model or field, a value that cannot be read, or a
            rate outside [0, 1].
    """
    name, _, rest = text.strip().partition(":")
    if name not in MODELS:
        raise ValueError(f"unknown fault model {name!r}; choose from {', '.join(MODELS)}")
    fields = {field.name: field for field in dataclasses.fields(MODELS[name])}
    values = {}
    for item in filter(None, rest.split(",")):
        field, equals, value = (part.strip() for part in item.partition("="))
        if not equals or field not in fields:
            raise ValueError(f"{name}: cannot read {item!r}; its fields are {', '.join(fields)}")
        if field in values:
            raise ValueError(f"{name}: {field} is given twice")
        values[field] = _read(name, field, value, fields[field].default)
    return MODELS[name](**values)


def _read(name: str, field: str, value: str, default):
    if isinstance(default, str):
        return value
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name}: {field} is {value!r}, not a number") from None


def format_text(model: FaultModel) -> str:
    """The text that `parse` reads back as the same model."""
    fields = dataclasses.fields(model)  # pyright: ignore[reportArgumentType]
    values = ",".join(f"{field.name}={getattr(model, field.name)}" for field in fields)
    return f"{model.name}:{values}"
