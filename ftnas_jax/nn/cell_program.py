"""What a traced cell may be asked to run: the windows of all operations, and layers as tables.

A traced operation and layer look up here what a known one reads off `ftnas_jax.nn.primitives`.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ftnas_jax.nn.cell import CellSpec
from ftnas_jax.nn.layer import Window
from ftnas_jax.nn.primitives import (
    MAX_LAYERS,
    NORM_SLOTS,
    count_kernels,
    kernel_shapes,
    layers_of,
)
from ftnas_jax.nn.window import WindowShape


class Tables(NamedTuple):
    """Numbers by choice, see `CellSpec.choices`, and layer; int32 if not said otherwise.

    Attributes:
        layers: [choices] how many layers there are.
        window: [choices, MAX_LAYERS] place among the windows of its stride.
        floor: float32 [choices, MAX_LAYERS] 0 for a ReLU before the window, else -inf.
        norm: [choices, MAX_LAYERS] which BatchNorm of the operation it has, NORM_SLOTS for none.
        start: [choices, MAX_LAYERS] where its weights begin among those of the operation.
        ends: [choices, kernels] where each kernel ends.
    """

    layers: np.ndarray
    window: np.ndarray
    floor: np.ndarray
    norm: np.ndarray
    start: np.ndarray
    ends: np.ndarray


@dataclasses.dataclass(frozen=True)
class Program:
    """What a traced cell of a given width runs.

    Attributes:
        spec: the cell's settings.
        channels: of every node.
        affine: whether BatchNorms have scale and offset.
    """

    spec: CellSpec
    channels: int
    affine: bool

    @functools.cached_property
    def windows(self) -> dict[int, list[WindowShape]]:
        """The windows among which layers choose, by stride; those of no stride are left out."""
        found: dict[int, list[WindowShape]] = {}
        for name, stride in self.spec.choices:
            for layer in layers_of(name, stride=stride, pool_norm=self.spec.pool_norm):
                own = found.setdefault(layer.window.stride, [])
                if layer.window not in own:
                    own.append(layer.window)
        return found

    @functools.cached_property
    def tables(self) -> Tables:
        """See `Tables`."""
        choices = self.spec.choices
        shape = (len(choices), MAX_LAYERS)
        tables = Tables(
            np.zeros(len(choices), np.int32),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.float32),
            np.full(shape, NORM_SLOTS, np.int32),
            np.zeros(shape, np.int32),
            np.zeros(shape, np.int32),
        )
        for row, (name, stride) in enumerate(choices):
            layers = layers_of(name, stride=stride, pool_norm=self.spec.pool_norm)
            kernels = kernel_shapes(name, self.channels, self.channels, stride=stride)
            sizes = [[int(np.prod(shape)) for shape in own] for own in kernels]
            flat = [size for own in sizes for size in own]
            tables.ends[row] = sum(flat)
            tables.ends[row, : len(flat)] = np.cumsum(flat)
            tables.layers[row] = len(layers)
            norms = 0
            for place, layer in enumerate(layers):
                tables.window[row, place] = self.windows[layer.window.stride].index(layer.window)
                tables.floor[row, place] = 0.0 if layer.relu else -np.inf
                tables.start[row, place] = sum(sum(own) for own in sizes[:place])
                if layer.norm:
                    tables.norm[row, place] = norms
                    norms += 1
        return tables

    @property
    def weights(self) -> int:
        """Number of weights of the operation that has most of them."""
        return max(
            count_kernels(name, self.channels, self.channels, stride=self.spec.stride(0))
            for name in self.spec.space.primitives
        )

    def window(self, stride: int, choice, layer) -> Window:
        """The window of a traced layer of a traced choice."""
        shapes = self.windows[stride]
        place, start = (
            jnp.asarray(table)[choice, layer] for table in (self.tables.window, self.tables.start)
        )

        def own_kernel(shape: WindowShape, kernel):
            size = shape.kernel_size(self.channels, self.channels)
            return lax.dynamic_slice_in_dim(kernel, start, size)

        def apply_one(shape: WindowShape, x, kernel):
            return shape.apply(x, own_kernel(shape, kernel), out_channels=self.channels)

        def differentiate_one(shape: WindowShape, x, kernel, df):
            window = shape.window(self.channels)
            dx, own = window.differentiate(x, own_kernel(shape, kernel), df)
            return dx, lax.dynamic_update_slice_in_dim(jnp.zeros_like(kernel), own, start, 0)

        def switch(function):
            branches = [functools.partial(function, shape) for shape in shapes]
            return lambda *operands: lax.switch(place, branches, *operands)

        return Window(switch(apply_one), switch(differentiate_one))
