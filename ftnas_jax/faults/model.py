"""What every fault model has in common: where it acts, when its maps are drawn, how they act."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp

from ftnas_jax.faults.only import Only, check_patterns, fits
from ftnas_jax.fixed_point import FixedPoint

Site = Literal["weights", "features", "activations"]
"""What a model acts on (Table 3): weights w, pre-activation features f where logic computes them,
or activations y in the buffer that stores them."""

Per = Literal["image", "batch", "chip"]
"""When maps are drawn: transient faults for every image or every batch, persistent ones once."""


class Place(NamedTuple):
    """A tensor of a network, as fault models see it.

    Attributes:
        path: of its layer, as in `encoder/conv_0`.
        macs: M_l, multiply-accumulates behind one element; 0 where it is only stored.
        size: number of elements, of all images together.
    """

    path: str
    macs: int = 0
    size: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaultModel:
    """A statistical fault model: a frozen dataclass of rates that is also a pytree of them.

    With Python numbers as rates a model is hashable and its rates are known when a program is
    traced; with arrays one compiled program serves many rates.

    Attributes:
        layers: which layers fail, as patterns of their paths joined by `|`: `*` stands for
            anything, a pattern behind `!` names layers that stay sound. `!stem` is all but the
            stem, `cell*|!cell0/*` all cells but the first.
        per: `image` and `batch` draw a map anew for each (transient faults), `chip` draws one for
            all of them (persistent faults). By default weights fail per chip, all else per image.
        only: of `layers` those of one group, chosen by a number that may be traced; None for all.
    """

    layers: str = "*"
    per: Per | Literal["default"] = "default"
    only: Only | None = None

    name: ClassVar[str]
    site: ClassVar[Site]
    rates: ClassVar[tuple[str, ...]]
    """The fields that are 0 where nothing fails."""
    in_text: ClassVar[tuple[str, ...]] = ()
    """Numbers that a text may give in place of fields; see `from_text`."""
    crossbar: ClassVar[bool] = False
    """Whether the faults are of crossbars, which hold the signs of weights apart."""
    analog: ClassVar[bool] = False
    """Whether faulty codes lie between those of the format: conductances, not numbers."""

    def __post_init__(self):
        if self.per == "default":
            object.__setattr__(self, "per", "chip" if self.site == "weights" else "image")
        if self.per not in ("image", "batch", "chip"):
            raise ValueError(f"{self.name}: per is {self.per!r}; choose image, batch or chip")
        if self.site == "weights" and self.per == "image":
            raise ValueError(
                f"{self.name}: weights are read once for a batch; per is chip or batch, not image"
            )
        check_patterns(self.name, "layers", self.layers)
        if self.only is not None and not self.rates:
            raise ValueError(f"{self.name}: only sets rates of 0, and it has no rate; use layers")

    @classmethod
    def from_text(cls, values: Mapping[str, Any]) -> Self:
        """The model of fields, and of numbers `in_text`, that a text gives by name."""
        return cls(**values)

    @property
    def rate(self) -> Any:
        """What `at_rate` sets: p_m, σ, or whichever rate the model has.

        Raises:
            ValueError: the model has none.
        """
        return getattr(self, self.rate_name)

    @property
    def rate_name(self) -> str:
        """How its text calls what `at_rate` sets, as `p_m`.

        Raises:
            ValueError: the model has none.
        """
        if len(self.rates) != 1:
            raise ValueError(f"{self.name}: it has no rate that could be set")
        return self.rates[0]

    def at_rate(self, rate: float | jax.Array) -> Self:
        """The model at another rate, which may be a traced float32.

        Raises:
            ValueError: the model has no rate, or a Python number is none for it.
        """
        return dataclasses.replace(self, **{self.rate_name: rate})

    @property
    def ages(self) -> bool:
        """Whether `at_time` changes anything: persistent faults accumulate, variation does not."""
        return False

    def at_time(self, time: float | jax.Array) -> Self:
        """The model of a chip of some age; itself where time has no effect.

        Args:
            time: at least 1, in units of the time in which the rates are met once, M_p(t) = t; may
                be a traced float32.

        Raises:
            ValueError: a Python number is below 1 or not finite.
        """
        del time
        return self

    def at_bit(self, bit: int | jax.Array) -> Self:
        """The model of one bit alone, which may be a traced int32; 0 is the lowest.

        Raises:
            ValueError: the faults are not of single bits.
        """
        if not hasattr(self, "bit"):
            raise ValueError(f"{self.name}: its faults are not of single bits that could be chosen")
        return dataclasses.replace(self, bit=bit)

    def acts_at(self, path: str) -> bool:
        """Whether a layer at `path` is one of `layers`."""
        return fits(path, self.layers)

    def at(self, path: str) -> Self:
        """The model as it acts on a layer: itself, or with rates of 0 where it does not."""
        if not self.acts_at(path):
            return dataclasses.replace(self, **dict.fromkeys(self.rates, 0.0))
        if self.only is None:
            return self
        own = {field: self.only.at(path, getattr(self, field)) for field in self.rates}
        return dataclasses.replace(self, **own)

    def check(self, fmt: FixedPoint) -> None:
        """Raise ValueError where codes of a format cannot have these faults."""
        del fmt

    def exposure(self, place: Place) -> Any:
        """What `sample` needs to know of a place: a pytree of scalars, alike for all places.

        A model whose faults are given, not drawn, has an array for every weight instead.
        """
        raise NotImplementedError

    def probability(self, place: Place, fmt: FixedPoint) -> Any:
        """That an element of a place is hit, in [0, 1]; a float where the rates are numbers."""
        raise NotImplementedError

    def sample(
        self, keys: jax.Array, shape: tuple[int, ...], fmt: FixedPoint, exposure: Any
    ) -> jax.Array:
        """Fault maps for codes of `shape`, one for each key. Consumes `keys`.

        Args:
            keys: typed keys [n].
            shape: of one map.
            fmt: number format of the codes.
            exposure: from `exposure`.

        Returns:
            Integers or float32 [n, *shape]; 0 is sound.
        """
        raise NotImplementedError

    def apply(self, codes: jax.Array, fault_map: jax.Array, fmt: FixedPoint) -> jax.Array:
        """The codes that hardware with these faults holds.

        Args:
            codes: int32.
            fault_map: like `codes`, but that its first dimension may be 1.
            fmt: number format of the codes.

        Returns:
            int32 codes of `fmt` again; float32 from a model that is `analog`.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class AccumulatingModel(FaultModel):
    """A model whose persistent faults grow in number with time.

    Attributes:
        accumulated: M_p(t) >= 1 (§3.2), how many times the rates of `per=chip` have been met. A
            rate r becomes 1 - (1 - r)^M_p, which stays a probability; r · M_p to first order. The
            faults of one chip at a larger M_p contain those at a smaller one.
    """

    accumulated: float | jax.Array = 1.0

    def __post_init__(self):
        super().__post_init__()
        check_least(self.name, "accumulated", self.accumulated, 1, "M_p")
        known = isinstance(self.accumulated, numbers.Real)
        if known and self.accumulated != 1 and not self.ages:
            raise ValueError(f"{self.name}: faults drawn per {self.per} do not accumulate")

    @property
    def ages(self) -> bool:
        """Whether faults accumulate: those of a chip do."""
        return self.per == "chip"

    def at_time(self, time: float | jax.Array) -> Self:
        """The model with M_p(t) = t; itself where faults do not accumulate."""
        return dataclasses.replace(self, accumulated=time) if self.ages else self

    @property
    def nested(self) -> bool:
        """Whether the maps of one key must grow with the rate: those of a chip do."""
        return self.ages


def apply_maps(
    codes: jax.Array, models: tuple[FaultModel, ...], maps: tuple[Any, ...] | None, fmt: FixedPoint
) -> jax.Array:
    """The codes with the faults of every model in turn.

    Args:
        codes: int32.
        models: of the faults.
        maps: one for each model, None where it does not act; or None for no faults at all.
        fmt: number format of the codes.
    """
    for model, fault_map in _present(models, maps):
        codes = model.apply(codes, fault_map, fmt)
    return codes


def faulty_positions(
    models: tuple[FaultModel, ...], maps: tuple[Any, ...] | None
) -> jax.Array | None:
    """Bool array: which elements any of the models hits; None where there are no maps.

    Variation, which leaves no element as it is, is no fault of any one of them.
    """
    hits = [m != 0 for model, m in _present(models, maps) if not model.analog]
    return functools.reduce(jnp.logical_or, hits) if hits else None


def _present(models, maps):
    pairs = zip(models, maps, strict=True) if maps is not None else ()
    return [(model, fault_map) for model, fault_map in pairs if fault_map is not None]


def check_rate(model: str, field: str, rate: Any) -> None:
    """Raise ValueError where `rate` is a number outside [0, 1]; arrays are let through."""
    if isinstance(rate, numbers.Real) and not 0 <= float(rate) <= 1:
        raise ValueError(f"{model}: {field} is {rate}; a rate lies in [0, 1]")


def check_least(model: str, field: str, value: Any, least: float, what: str = "it") -> None:
    """Raise ValueError where `value` is a number below `least`, or not finite."""
    if isinstance(value, numbers.Real) and not least <= float(value) < math.inf:
        raise ValueError(f"{model}: {field} is {value}; {what} is at least {least}")


def compound(rate: Any, times: Any) -> Any:
    """1 - (1 - rate)^times: met `times` times over; a float where both are numbers."""
    if isinstance(rate, numbers.Real) and isinstance(times, numbers.Real):
        if not times:
            return 0.0
        return 1.0 if rate == 1 else -math.expm1(float(times) * math.log1p(-float(rate)))
    rate, times = jnp.asarray(rate, jnp.float32), jnp.asarray(times, jnp.float32)
    return jnp.where(times == 0, 0.0, -jnp.expm1(times * jnp.log1p(-rate)))


def first_order(rate: Any, times: Any) -> Any:
    """rate · times, cut at 1; a float where both are numbers."""
    if isinstance(rate, numbers.Real) and isinstance(times, numbers.Real):
        return min(float(rate) * float(times), 1.0)
    return jnp.minimum(jnp.asarray(rate, jnp.float32) * jnp.asarray(times, jnp.float32), 1.0)
