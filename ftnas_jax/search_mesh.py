"""The devices of a search, and how a step is shared among them.

Of an even number of devices one half runs the clean pass and the other the faulty pass at the same
time, which takes no communication until the gradients are there; within a half, or among an odd
number, every device has a part of the batch. A step of one pass only, as the weight steps of
FT-NAS, splits the batch among all devices. All else (parameters, data, the controller) is on every
device alike.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ftnas_jax.compiling import compiler_options
from ftnas_jax.split_batch import Axis

PASSES, BATCH = "passes", "batch"


class SearchMesh:
    """Devices as passes times parts of the batch.

    Args:
        devices: at least one.
        batch_size: images in a step.
        one_pass: whether weight steps run one pass only.

    Raises:
        ValueError: the batch cannot be split evenly.

    Attributes:
        devices: that share the work.
        two_passes: whether the clean and the faulty pass run side by side.
        batch_axis: mesh axis that splits the batch of two passes, or None.
        weights_axis: mesh axis, or axes, that split the batch of a weight step, or None.
    """

    def __init__(self, devices: Sequence[Any], batch_size: int, one_pass: bool = False):
        self.devices = list(devices)
        self.two_passes = len(devices) % 2 == 0
        parts = len(devices) // (1 + self.two_passes)
        most = len(devices) if one_pass else parts
        if batch_size % most:
            raise ValueError(
                f"batch_size is {batch_size}; {len(devices)} devices cannot split it into {most} "
                f"equal parts; take a multiple of {most}, or other devices"
            )
        self.batch_axis: Axis = BATCH if parts > 1 else None
        all_axes = (PASSES, BATCH) if len(devices) > 1 else None
        self.weights_axis: Axis = all_axes if one_pass else self.batch_axis
        self._mesh = Mesh(np.array(devices).reshape(-1, parts), (PASSES, BATCH))
        self._everywhere = NamedSharding(self._mesh, PartitionSpec())

    def jit(self, function: Callable[..., Any], **options) -> Callable[..., Any]:
        """`jax.jit` of a function that every device runs; what it returns is alike on all."""

        def on_every_device(*args):
            everywhere = PartitionSpec()
            return jax.shard_map(
                function,
                mesh=self._mesh,
                in_specs=everywhere,
                out_specs=everywhere,
                check_vma=False,  # the control flow of cells mixes both kinds of values
            )(*args)

        chosen = compiler_options(self.devices)
        return jax.jit(on_every_device, compiler_options=chosen, **options)

    def scan_passes(self, add_pass: Callable[..., Any], zero: Any, passes: Any) -> tuple[Any, Any]:
        """`lax.scan` over two passes, inside of what `jit` compiles; side by side if it can be.

        Args:
            add_pass: (total, pass) → (total with something added, outputs of the pass).
            zero: a tree of zeros, the total before the passes.
            passes: a tree of arrays [2, ...].

        Returns:
            The total over both passes and their outputs, stacked along a new first axis.
        """
        if not self.two_passes:
            return lax.scan(add_pass, zero, passes)
        own = jax.tree.map(lambda both: both[lax.axis_index(PASSES)], passes)
        total, outputs = add_pass(zero, own)
        return lax.psum(total, PASSES), lax.all_gather(outputs, PASSES)

    def place(self, tree: Any) -> Any:
        """Arrays on every device."""
        return jax.device_put(tree, self._everywhere)

    def described(self, shapes: Any) -> Any:
        """The shapes of arrays, as of arrays on every device."""
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self._everywhere), shapes
        )
