"""Fault maps of an operation that is chosen from a list, while tracing or by a traced index.

The maps are drawn outside of the operations, by one sampler for all of them: what an operation
does differs from branch to branch of a switch, how its faults are drawn does not, and a sampler in
every branch would make up most of the program. Both kinds of index draw the same maps.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ftnas_jax.nn.hardware import Draw, Hardware, Maps, draw_maps, exposures_at
from ftnas_jax.nn.primitives import FaultMaps, count_kernels, site_macs

_WEIGHT_MACS = 1  # weights are not computed: no model of weight faults looks at it


@dataclasses.dataclass(frozen=True)
class FaultTable:
    """What the fault models need to know of every operation that may be chosen.

    Attributes:
        hardware: number formats and faults.
        operations: (name, stride) of each choice.
        channels: of the input.
        out_channels: of the output.
    """

    hardware: Hardware
    operations: tuple[tuple[str, int], ...]
    channels: int
    out_channels: int

    @functools.cached_property
    def macs(self) -> list[list[int]]:
        """M_l of every feature site of every choice."""
        return [
            site_macs(name, self.channels, self.out_channels, stride=stride)
            for name, stride in self.operations
        ]

    @functools.cached_property
    def kernels(self) -> list[int]:
        """Number of weights of every choice that may fail."""
        return [
            count_kernels(name, self.channels, self.out_channels, stride=stride)
            for name, stride in self.operations
        ]

    def draw(
        self, choice: int | jax.Array, weights: Draw, features: Draw, shape: tuple[int, ...]
    ) -> FaultMaps:
        """The maps of one operation with an output of `shape`; consumes the keys of both draws.

        Weight maps are as long as those of the choice with most weights, so that they do not
        depend on whether the choice is known.
        """
        return FaultMaps(
            self._draw_weights(choice, weights), self._draw_features(choice, features, shape)
        )

    def _draw_weights(self, choice, draw: Draw) -> Maps:
        active = (
            self.kernels[choice] > 0
            if isinstance(choice, int)
            else jnp.asarray(np.array(self.kernels) > 0)[choice]
        )
        if active is False or max(self.kernels) == 0:
            return None
        exposures = exposures_at(self.hardware, "weights", _WEIGHT_MACS)
        shape = (max(self.kernels),)
        return draw_maps(self.hardware, "weights", draw, shape, exposures, active)

    def _draw_features(self, choice, draw: Draw, shape: tuple[int, ...]) -> Maps:
        has_sites = any(self.macs)
        if not (has_sites and self.hardware.faults_at("features")) or draw.faulty is False:
            return None
        if isinstance(choice, int):
            return self._known_features(self.macs[choice], draw, shape)
        return self._traced_features(choice, draw, shape)

    def _known_features(self, macs: list[int], draw: Draw, shape) -> Maps:
        sites = []
        for site, count in enumerate(macs):
            exposures = exposures_at(self.hardware, "features", count)
            sites.append(draw_maps(self.hardware, "features", draw.at(site), shape, exposures))
        return jax.tree.map(lambda *maps: jnp.stack(maps), *sites) if sites else None

    def _traced_features(self, choice, draw: Draw, shape) -> Maps:
        most = max(len(macs) for macs in self.macs)
        exposures = self._stack_exposures(most)

        def sample(site):
            own = jax.tree.map(lambda table: jnp.asarray(table)[choice, site], exposures)
            # The number of turns already says whether this pass has faults.
            known = Draw(draw.at(site).key, True)
            return draw_maps(self.hardware, "features", known, shape, own)

        def add_site(site, maps):
            return jax.tree.map(
                lambda m, one: lax.dynamic_update_index_in_dim(m, one, site, 0), maps, sample(site)
            )

        sound = jax.tree.map(
            lambda m: jnp.zeros((most, *m.shape), m.dtype), jax.eval_shape(sample, 0)
        )
        counts = jnp.asarray([len(macs) for macs in self.macs], jnp.int32)
        turns = jnp.where(jnp.asarray(draw.faulty), counts[choice], 0)
        return lax.fori_loop(0, turns, add_site, sound)

    def _stack_exposures(self, most: int):
        """Exposures as NumPy tables [choices, sites], sites that are not there with M_l = 1."""
        rows = []
        for macs in self.macs:
            sites = [exposures_at(self.hardware, "features", m) for m in macs]
            sites += [exposures_at(self.hardware, "features", 1)] * (most - len(macs))
            rows.append(_stack(sites))
        return _stack(rows)


def _stack(trees: list):
    """Trees of scalars or arrays as one tree of arrays; NumPy as long as all is known."""
    known = all(isinstance(leaf, (np.ndarray, np.generic)) for leaf in jax.tree.leaves(trees))
    return jax.tree.map(lambda *leaves: (np if known else jnp).stack(leaves), *trees)
