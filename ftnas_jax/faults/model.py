"""What every fault model has in common: where it acts, and how faults reach codes."""

import numbers
from typing import Any, ClassVar, Literal, Protocol

import jax

from ftnas_jax.fixed_point import FixedPoint

Site = Literal["weights", "features"]
"""What a model acts on: weights w, or pre-activation features f (Table 3)."""


class FaultModel(Protocol):
    """A statistical fault model: a frozen dataclass of rates that is also a pytree of them.

    With Python numbers as rates a model is hashable and its rates are known when a program is
    traced; with arrays one compiled program serves many rates.
    """

    name: ClassVar[str]
    site: ClassVar[Site]

    def exposure(self, macs: int) -> Any:
        """What `sample` needs to know of a site: a pytree of scalars, alike for all sites.

        `macs` is M_l, the multiply-accumulates behind one element; only models of faults in logic
        use it.
        """
        ...

    def sample(self, key: jax.Array, shape: tuple[int, ...], fmt: FixedPoint, exposure) -> Any:
        """Draw a fault map for codes of `shape`, as an array of it; 0 is sound. Consumes `key`."""
        ...

    def apply(self, codes: jax.Array, fault_map: Any, fmt: FixedPoint) -> jax.Array:
        """The codes (int32) that hardware with these faults holds; again codes of `fmt`."""
        ...


def apply_maps(
    codes: jax.Array, models: tuple[FaultModel, ...], maps: tuple[Any, ...] | None, fmt: FixedPoint
) -> jax.Array:
    """The codes with the faults of every model in turn; unchanged where `maps` is None."""
    if maps is None:
        return codes
    for model, fault_map in zip(models, maps, strict=True):
        codes = model.apply(codes, fault_map, fmt)
    return codes


def check_rate(model: str, field: str, rate: Any) -> None:
    """Raise ValueError where `rate` is a number outside [0, 1]; arrays are let through."""
    if isinstance(rate, numbers.Real) and not 0 <= float(rate) <= 1:
        raise ValueError(f"{model}: {field} is {rate}; a rate lies in [0, 1]")
