"""The points of a sweep: fault models at several rates, or after several times."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from ftnas_jax.faults import FaultModel, StuckAt, format_text, parse

Faults = tuple[FaultModel, ...]


class Visited(Protocol):
    """What a campaign visits, as its tables and its count of chips see it.

    Attributes:
        faults: models that act.
        rate: that was swept, if any.
        time: that was swept, if any.
        text: its name.
        label: the same, short: what makes it differ from the other points of a sweep.
        sweep: name of the sweep that it belongs to, None where nothing was swept.
        parameter: name of what was swept, as `p_m` or `time`, if anything.
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
    def sweep(self) -> str | None: ...
    @property
    def parameter(self) -> str | None: ...
    @property
    def sound(self) -> bool: ...


AnyPoint = TypeVar("AnyPoint", bound=Visited)


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
        sweep: the models as text without what was swept, or as short as `told_apart` makes it; None
            where nothing was.
        parameter: name of what was swept, as `p_m` or `time`, None where nothing was.
    """

    faults: Faults
    rate: float | None = None
    time: float | None = None
    group: str | None = None
    bit: int | None = None
    program: Faults | None = None
    sweep: str | None = None
    parameter: str | None = None

    @property
    def text(self) -> str:
        """The models as text: the point's name in tables."""
        return format_text(self.faults)

    @property
    def names(self) -> str:
        """Of the models."""
        return "+".join(model.name for model in self.faults)

    @property
    def label(self) -> str:
        """What makes it differ from the other points of a sweep."""
        sweep = self.sweep or self.names
        if self.rate is not None:
            return f"{sweep} {self.rate:g}"
        if self.time is not None:
            return f"{sweep}, time {self.time:g}"
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
        swept = [_replaced(faults, place, float(rate)) for rate in rates]
        texts = [format_text(model) for model in faults]
        texts[place] = _without_rate(faults[place])
        return tuple(
            Point(own, rate=float(rate), sweep="+".join(texts), parameter=faults[place].rate_name)
            for own, rate in zip(swept, rates, strict=True)
        )
    if times is not None:
        if not any(model.ages for model in faults):
            raise ValueError(
                f"time acts on none of {format_text(faults)}; persistent faults accumulate, and "
                "drift moves conductances"
            )
        sweep = format_text(faults)
        return tuple(
            Point(
                tuple(m.at_time(float(t)) for m in faults),
                time=float(t),
                sweep=sweep,
                parameter="time",
            )
            for t in times
        )
    return (Point(faults),)


def told_apart(visited: Sequence[AnyPoint]) -> tuple[AnyPoint, ...]:
    """The points of a campaign, each sweep with a name as short as tells it from the others.

    Raises:
        ValueError: a point is there twice. Without faults, as at a rate of 0, sweeps may share one.
    """
    seen = [point.text if not point.sound else (point.text, point.sweep) for point in visited]
    for place, one in enumerate(seen):
        if one in seen[:place]:
            raise ValueError(f"{visited[place].text} is visited twice; name faults and rates once")
    sweeps: dict[str, set[str]] = {}
    for point in visited:
        if isinstance(point, Point) and point.sweep is not None:
            sweeps.setdefault(point.names, set()).add(point.sweep)
    return tuple(_shortened(point, sweeps) for point in visited)


def _shortened(point: Any, sweeps: Mapping[str, set[str]]) -> Any:
    if isinstance(point, Point) and len(sweeps.get(point.names, ())) == 1:
        return dataclasses.replace(point, sweep=point.sweep and point.names)
    return point


def _without_rate(model: FaultModel) -> str:
    """The model's text without its rate; of stuck cells with the proportion, which stays."""
    name, _, rest = format_text(model).partition(":")
    fields = [field for field in rest.split(",") if field.partition("=")[0] not in model.rates]
    if isinstance(model, StuckAt):
        fields.insert(0, f"ratio={float(model.p0) / float(model.rate):.12g}")
    return ":".join(filter(None, (name, ",".join(filter(None, fields)))))


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
