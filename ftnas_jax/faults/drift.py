"""Conductance drift of phase-change and other resistive cells: weights shrink with time."""

import dataclasses
import functools
import math
import numbers
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ftnas_jax.faults.model import FaultModel, Place, Site, check_least
from ftnas_jax.faults.variation import standard_normal
from ftnas_jax.fixed_point import FixedPoint


class DriftExposure(NamedTuple):
    """What drift does to a cell of the mean exponent, and how cells differ.

    Attributes:
        mean: float32 ν · ln(t/t0).
        spread: float32, as `Drift.spread`.
    """

    mean: jax.Array
    spread: jax.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["nu", "spread", "time", "only"],
    meta_fields=["layers", "per"],
)
@dataclasses.dataclass(frozen=True)
class Drift(FaultModel):
    """w(t) = w0 · (t/t0)^-ν_i, with an exponent ν_i ~ N(ν, (spread · ν)²) of each cell, cut at 0.

    The amorphous part of a cell relaxes after programming, and its conductance falls as a power of
    time. A chip draws its exponents once: at two times its cells are the same. No cell gains. The
    cut moves Φ(-1 / spread) of the cells, none for the default. Weights are left between the codes;
    a cell at 0 stays there. A weight is the one cell that holds it: an empty cell of the other sign
    has nothing to lose.

    The defaults are what Nandakumar et al. (*Phase-change memory models for deep learning training
    and inference*, ICECS 2019) fit to cells of the highest conductance, ν_i = 0.049 ± 0.008. They
    find exponents that grow as the conductance falls, up to 0.1 ± 0.045; here all cells have one
    distribution.

    Attributes:
        nu: ν, mean of the exponents before the cut, at least 0; nothing moves at 0.
        spread: standard deviation of the exponents over their mean, at least 0.
        time: t/t0, at least 1, where t0 is the time since programming at which the weights were
            right. By default hours, where t0 is a second.
    """

    nu: float | jax.Array = 0.049
    spread: float | jax.Array = 0.16
    time: float | jax.Array = 1e4

    name: ClassVar[str] = "drift"
    site: ClassVar[Site] = "weights"
    rates: ClassVar[tuple[str, ...]] = ("nu",)
    crossbar: ClassVar[bool] = True
    analog: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_least(self.name, "nu", self.nu, 0)
        check_least(self.name, "spread", self.spread, 0)
        check_least(self.name, "time", self.time, 1)
        if self.per != "chip":
            raise ValueError(f"drift: per is {self.per!r}; a chip draws its exponents once")

    @property
    def ages(self) -> bool:
        """Conductances fall with time."""
        return True

    def at_time(self, time: float | jax.Array) -> "Drift":
        """The same cells at t/t0 = `time`."""
        return dataclasses.replace(self, time=time)

    def exposure(self, place: Place) -> DriftExposure:
        """The drift of a cell of the mean exponent; every place has the same."""
        del place
        mean = jnp.float32(self.nu) * jnp.log(jnp.float32(self.time))
        return DriftExposure(mean, jnp.float32(self.spread))

    def probability(self, place: Place, fmt: FixedPoint | None = None):
        """Φ(1 / spread), that the exponent of a cell is above 0; 0 for ν = 0 and at t = t0."""
        del place, fmt
        values = (self.nu, self.spread, self.time)
        if not all(isinstance(value, numbers.Real) for value in values):
            nu, spread, time = (jnp.asarray(value, jnp.float32) for value in values)
            return jnp.where((nu > 0) & (time > 1), jax.scipy.stats.norm.cdf(1 / spread), 0.0)
        nu, spread, time = map(float, values)
        if nu == 0 or time == 1:
            return 0.0
        return math.erfc(-1 / (spread * math.sqrt(2))) / 2 if spread else 1.0

    def sample(
        self, keys: jax.Array, shape: tuple[int, ...], fmt: FixedPoint, exposure: Any
    ) -> jax.Array:
        """float32 [n, *shape], ν_i · ln(t/t0) of every cell, at least 0."""
        del fmt
        mean, spread = map(jnp.asarray, exposure)
        return mean * jnp.maximum(1 + spread * standard_normal(keys, shape), 0)

    def apply(self, codes: jax.Array, fault_map: jax.Array, fmt: FixedPoint) -> jax.Array:
        """float32 codes, each times its own (t/t0)^-ν_i."""
        del fmt
        return codes.astype(jnp.float32) * jnp.exp(-fault_map)
