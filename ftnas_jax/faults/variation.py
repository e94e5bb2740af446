"""Variation of RRAM programming: weights as conductances near the ones asked for (Table 3)."""

import dataclasses
import functools
import math
import numbers
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ftnas_jax.faults.model import FaultModel, Place, Site, check_least
from ftnas_jax.fixed_point import FixedPoint


@dataclasses.dataclass(frozen=True)
class _Variation(FaultModel):
    """One normal number for every cell.

    Attributes:
        sigma: standard deviation, at least 0; see the model.
    """

    sigma: float | jax.Array = 0.1

    site: ClassVar[Site] = "weights"
    rates: ClassVar[tuple[str, ...]] = ("sigma",)
    crossbar: ClassVar[bool] = True
    analog: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_least(self.name, "sigma", self.sigma, 0)

    def exposure(self, place: Place) -> Any:
        """σ as float32; every place has the same."""
        del place
        return jnp.float32(self.sigma)

    def probability(self, place: Place, fmt: FixedPoint | None = None):
        """1: every cell varies, but for σ = 0."""
        del place, fmt
        if isinstance(self.sigma, numbers.Real):
            return float(self.sigma > 0)
        return jnp.where(self.sigma > 0, 1.0, 0.0)

    def sample(
        self, keys: jax.Array, shape: tuple[int, ...], fmt: FixedPoint, exposure: Any
    ) -> jax.Array:
        """float32 [n, *shape], σ times a standard normal number for every weight."""
        del fmt
        return jnp.asarray(exposure) * standard_normal(keys, shape)


def standard_normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """float32 [n, *shape], independent; a row depends on its key alone. Consumes `keys` [n]."""
    size = math.prod(shape)
    normal = jax.vmap(lambda key: jax.random.normal(key, (size,), jnp.float32))(keys)
    return normal.reshape(len(keys), *shape)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["sigma", "only"], meta_fields=["layers", "per"]
)
@dataclasses.dataclass(frozen=True)
class LogNormal(_Variation):
    """w = w0 · exp(N(0, σ²)): resistances, and so conductances, are log-normal around their target.

    The target is the median; the mean is exp(σ²/2) times it. Weights are left between the codes:
    conductances are not numbers. A cell at 0 stays there.

    Attributes:
        sigma: σ, of the natural logarithm, at least 0.
    """

    name: ClassVar[str] = "log_normal"

    def apply(self, codes: jax.Array, fault_map: jax.Array, fmt: FixedPoint) -> jax.Array:
        """float32 codes, each times its own factor."""
        del fmt
        return codes.astype(jnp.float32) * jnp.exp(fault_map)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["sigma", "only"],
    meta_fields=["smallest", "layers", "per"],
)
@dataclasses.dataclass(frozen=True)
class ReciprocalNormal(_Variation):
    """w = w0 / (1 + N(0, σ²)): resistances are normal around their target, weights conductances.

    A normal distribution reaches resistances of zero and below, which no cell has: they are cut at
    `smallest`, which for σ = 0.3 moves 0.13 % of the cells. A cell at 0 stays there.

    Attributes:
        sigma: σ, of the resistance over its target, at least 0.
        smallest: resistance over its target below which none is, in (0, 1).
    """

    smallest: float = 0.1

    name: ClassVar[str] = "reciprocal_normal"

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.smallest < 1:
            raise ValueError(f"{self.name}: smallest is {self.smallest}; it lies between 0 and 1")

    def apply(self, codes: jax.Array, fault_map: jax.Array, fmt: FixedPoint) -> jax.Array:
        """float32 codes, each over its own resistance."""
        del fmt
        return codes.astype(jnp.float32) / jnp.maximum(1 + fault_map, self.smallest)
