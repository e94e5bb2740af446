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

from ftnas_jax.faults import Place
from ftnas_jax.nn.hardware import Draw, Hardware, Kind, Maps, draw_maps, exposures_at
from ftnas_jax.nn.primitives import FaultMaps, count_kernels, layer_macs


@dataclasses.dataclass(frozen=True)
class FaultTable:
    """What the fault models need to know of every operation that may be chosen.

    Attributes:
        hardware: number formats and faults.
        operations: (name, stride) of each choice.
        channels: of the input.
        out_channels: of the output.
        paths: [edges][choices] of the operations, on every edge that may be chosen.
    """

    hardware: Hardware
    operations: tuple[tuple[str, int], ...]
    channels: int
    out_channels: int
    paths: tuple[tuple[str, ...], ...]

    @functools.cached_property
    def macs(self) -> list[list[int]]:
        """M_l of every feature site of every choice: its convolutions, or all that is stored."""
        macs = [
            layer_macs(name, self.channels, self.out_channels, stride=stride)
            for name, stride in self.operations
        ]
        if self.hardware.buffer_fails:
            return macs
        return [[count for count in own if count] for own in macs]

    @functools.cached_property
    def kernels(self) -> list[int]:
        """Number of weights of every choice that may fail."""
        return [
            count_kernels(name, self.channels, self.out_channels, stride=stride)
            for name, stride in self.operations
        ]

    def draw(
        self,
        edge: int | jax.Array,
        choice: int | jax.Array,
        weights: Draw,
        features: Draw,
        shape: tuple[int, ...],
    ) -> FaultMaps:
        """The maps of one operation with an output of `shape`; consumes the keys of both draws.

        Weight maps are as long as those of the choice with most weights, so that they do not
        depend on whether the choice is known. Edge and choice are both known, or both traced.
        """
        return FaultMaps(
            self._draw_weights(edge, choice, weights),
            self._draw_features(edge, choice, features, shape),
        )

    def _draw_weights(self, edge, choice, draw: Draw) -> Maps:
        most = max(self.kernels)
        if most == 0 or not self.hardware.models("weights") or draw.faulty is False:
            return None
        if isinstance(choice, int):
            if self.kernels[choice] == 0:
                return None
            exposures = self._exposures("weights", edge, choice)
            known = jax.tree.map(lambda leaf: _lengthen(leaf, most), exposures)
            return draw_maps(self.hardware, "weights", draw, (most,), known)
        rows = [
            [self._exposures("weights", e, c) for c in range(len(self.operations))]
            for e in range(len(self.paths))
        ]
        if any(np.ndim(leaf) for leaf in jax.tree.leaves(rows)):
            raise ValueError(
                "a given defect map is that of one chip, which holds one architecture; "
                "call the network with an Architecture"
            )
        table = stack_exposures([stack_exposures(row) for row in rows])
        own = jax.tree.map(lambda leaf: jnp.asarray(leaf)[edge, choice], table)
        active = jnp.asarray(np.array(self.kernels) > 0)[choice]
        return draw_maps(self.hardware, "weights", draw, (most,), own, active)

    def _draw_features(self, edge, choice, draw: Draw, shape: tuple[int, ...]) -> Maps:
        if not (any(self.macs) and self.hardware.models("features")) or draw.faulty is False:
            return None
        if isinstance(choice, int):
            return self._known_features(edge, choice, draw, shape)
        return self._traced_features(edge, choice, draw, shape)

    def _known_features(self, edge: int, choice: int, draw: Draw, shape) -> Maps:
        sites = []
        for site, count in enumerate(self.macs[choice]):
            exposures = self._exposures("features", edge, choice, count)
            sites.append(draw_maps(self.hardware, "features", draw.at(site), shape, exposures))
        return jax.tree.map(lambda *maps: jnp.stack(maps), *sites) if sites else None

    def _traced_features(self, edge, choice, draw: Draw, shape) -> Maps:
        most = max(len(macs) for macs in self.macs)
        exposures = self._stack_features(most)

        def sample(site):
            own = jax.tree.map(lambda table: jnp.asarray(table)[edge, choice, site], exposures)
            # The number of turns already says whether this pass has faults.
            known = draw.at(site)._replace(faulty=True)
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

    def _stack_features(self, most: int):
        """Exposures as tables [edges, choices, sites], sites that are not there with M_l = 0."""
        return stack_exposures(
            [
                stack_exposures(
                    [
                        stack_exposures(
                            [
                                self._exposures("features", edge, choice, count)
                                for count in macs + [0] * (most - len(macs))
                            ]
                        )
                        for choice, macs in enumerate(self.macs)
                    ]
                )
                for edge in range(len(self.paths))
            ]
        )

    def _exposures(self, kind: Kind, edge: int, choice: int, macs: int = 0):
        size = self.kernels[choice] if kind == "weights" else 0
        return exposures_at(self.hardware, kind, Place(self.paths[edge][choice], macs, size))


def _lengthen(leaf, size: int):
    """A scalar as it is; a vector with zeros up to `size`."""
    return np.pad(leaf, (0, size - len(leaf))) if np.ndim(leaf) else leaf


def stack_exposures(trees: list):
    """Trees of scalars or arrays as one tree of arrays; NumPy as long as all is known."""
    known = all(isinstance(leaf, (np.ndarray, np.generic)) for leaf in jax.tree.leaves(trees))
    return jax.tree.map(lambda *leaves: (np if known else jnp).stack(leaves), *trees)
