"""The points of a sweep: fault models at several rates, or after several times."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from ftnas_jax.faults import FaultModel, format_text, parse

Faults = tuple[FaultModel, ...]


class Visited(Protocol):
    """What a campaign visits, as its tables and its count of chips see it.

    Attributes:
        faults: models that act.
        rate: that was swept, if any.
        time: that was swept, if any.
        text: its name.
        label: the same, short: what makes it differ from the other points of a sweep.
        sound: whether nothing can fail: all chips are alike.
    """

    @property
    def faults(self) -> Faults: ...
    @property
    def rate(self) -> float | None: ...
    @property
    def time(self) -> float | None: ...
    @property
    def text(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def sound(self) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Point:
    """Fault models with all their rates.

    Attributes:
        faults: the models; their rates are Python numbers.
        rate: that was swept, None where none was.
        time: that was swept, None where none was.
        group: of layers that fails alone, None where all do that the models name.
        bit: that fails alone, None where all do that the models name.
        program: the same models in the form in which one program serves many points; None where
            that is how they stand in `faults`.
    """

    faults: Faults
    rate: float | None = None
    time: float | None = None
    group: str | None = None
    bit: int | None = None
    program: Faults | None = None

    @property
    def text(self) -> str:
        """The models as text: the point's name in tables."""
        return format_text(self.faults)

    @property
    def label(self) -> str:
        """What makes it differ from the other points of a sweep."""
        names = "+".join(model.name for model in self.faults)
        if self.rate is not None:
            return f"{names} {self.rate:g}"
        if self.time is not None:
            return f"{names}, time {self.time:g}"
        parts = [self.group or ""] + ([] if self.bit is None else [f"bit {self.bit}"])
        return " ".join(filter(None, parts)) or self.text

    @property
    def sound(self) -> bool:
        """Whether nothing can fail: all chips are alike."""
        return all(
            model.rates and not any(getattr(model, name) for name in model.rates)
            for model in self.faults
        )


def as_models(faults: FaultModel | Sequence[FaultModel] | str) -> Faults:
    """Fault models from a model, several, or their text.

    Raises:
        ValueError: there is none.
    """
    if isinstance(faults, str):
        faults = parse(faults)
    models = (faults,) if isinstance(faults, FaultModel) else tuple(faults)
    if not models:
        raise ValueError("there are no fault models; name one, as in mibb:p_m=1e-4")
    return models


def points(
    faults: Faults,
    rates: Sequence[float] | None = None,
    times: Sequence[float] | None = None,
    sweep: str | None = None,
) -> tuple[Point, ...]:
    """The points that a campaign visits.

    Args:
        faults: models that act together.
        rates: of the model that is swept, see `FaultModel.at_rate`; None leaves it as it is.
        times: to which all models age that time acts on, see `FaultModel.at_time`.
        sweep: name of the model whose rate is swept; needed where there are several.

    Raises:
        ValueError: rates and times are given both, a rate or time is given twice, it is not known
            which model is swept, or time acts on none.
    """
    if rates is not None and times is not None:
        raise ValueError("rates and times are both given; sweep one of them")
    for name, values in (("rate", rates), ("time", times)):
        if values is not None and (not len(values) or len(set(values)) < len(values)):
            raise ValueError(f"the {name}s are {list(values)}; give at least one, each once")
    if rates is not None:
        place = _swept(faults, sweep)
        return tuple(Point(_replaced(faults, place, float(r)), rate=float(r)) for r in rates)
    if times is not None:
        if not any(model.ages for model in faults):
            raise ValueError(
                f"time acts on none of {format_text(faults)}; persistent faults accumulate, and "
                "drift moves conductances"
            )
        return tuple(
            Point(tuple(m.at_time(float(t)) for m in faults), time=float(t)) for t in times
        )
    return (Point(faults),)


def _swept(faults: Faults, sweep: str | None) -> int:
    names = [model.name for model in faults]
    if sweep is None and len(names) > 1:
        raise ValueError(f"there are {' and '.join(names)}; say by sweep= whose rate it is")
    if sweep is not None and names.count(sweep) != 1:
        raise ValueError(f"sweep is {sweep!r}; it names one of {', '.join(names)}")
    return names.index(sweep or names[0])


def _replaced(faults: Faults, place: int, rate: float) -> Faults:
    return (*faults[:place], _tidy(faults[place].at_rate(rate)), *faults[place + 1 :])


def _tidy(model: FaultModel) -> FaultModel:
    """Without what rounding adds behind the twelfth digit of a rate, which text would show."""
    rates = {name: float(f"{getattr(model, name):.12g}") for name in model.rates}
    return dataclasses.replace(model, **rates)
