"""Passes of a network over a test set, under many faults: one compiled program for all of them.

The work is cut into blocks: one batch of images under `chunk` faults, which are an axis of vmap.
Blocks are spread over devices, and a device goes through its own in a loop. What becomes of an
image depends on its batch and its fault alone, so devices, chunks and order change nothing; and
where weights and features are in fixed point, sums of products are whole numbers, so that their
order does not even change the rounding.

How many faults at once are fastest depends on what fails and on the device. Where features fail,
a chunk is like a larger batch of images. Where weights fail, every convolution becomes one of many
small groups: on a CPU that takes several times longer than one fault after the other, so there a
chunk is one. What no fault reaches, vmap computes once for the whole chunk.

Axis letters: N images, B images of a batch, F faults (chips), K numbers that tell a fault.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ftnas_jax.compiling import compiler_options
from ftnas_jax.machine import free_memory
from ftnas_jax.processes import agree, gather

_BLOCKS = "blocks"
_CAPACITY = 1024
"""Most blocks of a device in one call."""

_CLASSES = 2**22
"""Most classes of a device in one call, but for those of a single block: 16 MiB."""

_SECONDS_A_CALL = 2.0
"""A call is to return about this often, for the display, for signals and for the disk."""

_MOST_AT_ONCE = 256
_BATCH = 256
"""Images of a batch where none is given, at most."""


class Predict(Protocol):
    """What the network says under a fault."""

    def __call__(
        self, variables: Any, shared: Any, fault: jax.Array, images: jax.Array, first: jax.Array
    ) -> jax.Array:
        """Classes int32 [B] of images [B, ...], the first of which has the number `first`.

        A negative one is none at all.

        `shared` is alike for all faults, `fault` int32 [K].
        """
        ...


class Batches(NamedTuple):
    """A test set in batches of one size.

    Where the size does not divide the images, the last batch reaches back over some of the batch
    before it, which count only there: no image is made up, and none counts twice.

    Attributes:
        images: N.
        size: B.
    """

    images: int
    size: int

    @property
    def count(self) -> int:
        """Number of batches."""
        return -(-self.images // self.size)

    @property
    def starts(self) -> np.ndarray:
        """Number of the first image of every batch, int32."""
        return np.minimum(np.arange(self.count) * self.size, self.images - self.size).astype("i4")

    def join(self, predicted: np.ndarray) -> np.ndarray:
        """Of batches [F, count, B] the images [F, N]."""
        whole = np.empty((len(predicted), self.images), predicted.dtype)
        for place, start in reversed(list(enumerate(self.starts))):
            whole[:, start : start + self.size] = predicted[:, place]
        return whole


def batches(images: int, size: int | None) -> Batches:
    """Batches of `size` images, by default of one near 256 that divides them well.

    Raises:
        ValueError: the size is below 1.
    """
    if size is not None and size < 1:
        raise ValueError(f"batch_size is {size}; it is at least 1")
    if size is None:
        size = -(-images // -(-images // _BATCH))
    return Batches(images, min(size, images))


class Trials:
    """A network's passes over one test set.

    Args:
        predict: what the network says; traced.
        variables: its variables.
        images: float32 [N, ...], as the model takes them.
        shared: what is alike for all faults of a call; its values may change from call to call.
        width: K.
        name: of the network, for messages.
        beside: images that a fault is met by beside those of a batch, for messages.
        batch_size: B. Fraction lengths that are not frozen are those of a batch.
        chunk: faults at once on a device; by default 1 on a CPU, elsewhere what memory allows, up
            to 256 and `most`.
        most: faults that there will be, as far as is known.
        devices: by default all of this process; with `jax.distributed` all of all processes.
        memory: bytes of a device that a call may take; by default nearly all that are free.

    Raises:
        ValueError: a chunk does not fit into the memory, or the model does not take the images.

    Attributes:
        chunk: faults at once on a device.
        bytes: that a call takes on a device.
        compile_seconds: that the program took to trace and compile.
    """

    def __init__(
        self,
        predict: Predict,
        variables: Any,
        images: np.ndarray,
        shared: Any,
        *,
        width: int = 1,
        name: str = "the network",
        beside: int = 0,
        batch_size: int | None = None,
        chunk: int | None = None,
        most: int = _MOST_AT_ONCE,
        devices: Sequence[Any] | None = None,
        memory: float | None = None,
    ):
        began = time.monotonic()
        self._predict, self._width, self._name, self._beside = predict, width, name, beside
        self._most = min(most, _MOST_AT_ONCE)
        self.batches = batches(len(images), batch_size)
        self.devices = list(devices or jax.devices())
        self._mesh = Mesh(np.array(self.devices), (_BLOCKS,))
        self._variables = self._everywhere(variables)
        self._images = self._everywhere(np.asarray(images, np.float32))
        self.chunk, self._program, self.bytes = self._compile(shared, chunk, memory)
        self.compile_seconds = time.monotonic() - began
        self._pace = _Pace(self._capacity(self.chunk))

    def run(
        self, shared: Any, faults: np.ndarray, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Faults as they get ready, in their order: how many, and their classes int32 [F, N].

        Args:
            shared: for this call.
            faults: int32 [F, K].
            stop: asked between calls whether to end.
        """
        faults = np.asarray(faults, np.int32).reshape(len(faults), self._width)
        groups = -(-len(faults) // self.chunk)
        whole = np.resize(faults, (groups * self.chunk, self._width))
        whole = whole.reshape(groups, self.chunk, self._width)
        count, place, ready = self.batches.count, 0, []
        while place < groups * count:
            if agree(stop()):
                return
            end = place + self._pace.blocks(groups * count - place, len(self.devices))
            numbers = np.arange(place, end)
            starts = self.batches.starts[numbers % count]
            ready += list(self._call(shared, whole[numbers // count], starts))
            place = end
            done = len(ready) // count
            if done:
                # [groups, count, chunk, B] → [faults, count, B]
                own = np.stack(ready[: done * count]).reshape(done, count, self.chunk, -1)
                ready = ready[done * count :]
                own = own.swapaxes(1, 2).reshape(done * self.chunk, count, -1)
                own = own[: len(faults)]
                faults = faults[len(own) :]
                yield len(own), self.batches.join(own)

    def _call(self, shared: Any, faults: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Classes int32 [blocks, chunk, B] of faults [blocks, chunk, K] and batches [blocks]."""
        began, count = time.monotonic(), len(starts)
        own = -(-count // len(self.devices))
        # A device's blocks lie at the front of its part; what fills it up is not computed.
        capacity = self._capacity(self.chunk)
        laid = [_laid_out(array, len(self.devices), own, capacity) for array in (faults, starts)]
        split = [self._placed(array, self._sharding(_BLOCKS)) for array in laid]
        turns = self._everywhere(np.int32(own))
        shared = self._everywhere(shared)
        out = gather(self._program(self._variables, self._images, shared, *split, turns))
        found = out.reshape(len(self.devices), capacity, *out.shape[1:])[:, :own]
        self._pace.note(own, agree(time.monotonic() - began))
        return found.reshape(-1, *out.shape[1:])[:count]

    # The program

    def _capacity(self, chunk: int) -> int:
        """Blocks of a device in one call, at most."""
        return min(_CAPACITY, max(1, _CLASSES // (chunk * self.batches.size)))

    def _compile(self, shared: Any, chunk: int | None, memory: float | None):
        """(chunk, program, bytes that it takes on a device)."""
        limit = memory or agree(free_memory(self.devices))
        if chunk is None and self.devices[0].platform == "cpu":
            chunk = 1
        if chunk is not None:
            return self._fitting(shared, chunk, limit)
        own, program, taken = self._fitting(shared, 1, limit)
        while own < self._most:
            wanted = min(own * 4, int(own * limit / taken), self._most)
            larger = self._lowered(shared, wanted) if wanted > own else None
            if larger is None or larger[1] > limit:
                break
            own, (program, taken) = wanted, larger
        return own, program, taken

    def _fitting(self, shared: Any, chunk: int, limit: float):
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}; it is at least 1")
        program, taken = self._lowered(shared, chunk)
        if taken > limit:
            less = "a smaller batch_size" if chunk == 1 else "a smaller chunk or batch_size"
            size, norm = self.batches.size, ""
            if self._beside:
                norm = f", and {self._beside} to recalibrate by,"
                less += ", fewer images to recalibrate by"
            raise ValueError(
                f"{self._name}: {chunk} x {size} images at once{norm} take "
                f"{taken / 2**30:.2f} GiB of a device, and there are {limit / 2**30:.2f}; "
                f"give {less}, or more memory"
            )
        return chunk, program, taken

    def _lowered(self, shared: Any, chunk: int):
        """The program for a chunk, and the bytes that it takes on a device."""
        whole, parts = PartitionSpec(), PartitionSpec(_BLOCKS)
        program = jax.shard_map(
            lambda *args: self._loop(chunk, *args),
            mesh=self._mesh,
            in_specs=(whole, whole, whole, parts, parts, whole),
            out_specs=parts,
            check_vma=False,
        )
        blocks = len(self.devices) * self._capacity(chunk)
        described = [
            jax.ShapeDtypeStruct(shape, np.int32, sharding=self._sharding(*axes))
            for shape, axes in (
                ((blocks, chunk, self._width), (_BLOCKS,)),
                ((blocks,), (_BLOCKS,)),
                ((), ()),
            )
        ]
        jitted = jax.jit(program, compiler_options=compiler_options(self.devices))
        try:
            lowered = jitted.lower(
                self._variables, self._images, self._everywhere(shared), *described
            )
        except (TypeError, FlaxError) as error:  # shapes that do not fit each other
            why = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{self._name} cannot be called with its variables and images of "
                f"{list(self._images.shape[1:])}: {why}"
            ) from error
        compiled = lowered.compile()
        sizes: Any = compiled.memory_analysis()
        parts_of = (f"{part}_size_in_bytes" for part in ("temp", "argument", "output"))
        return compiled, sum(getattr(sizes, part) for part in parts_of)

    def _loop(self, chunk, variables, images, shared, faults, starts, turns):
        """One device's blocks: classes int32 [capacity, chunk, B]."""
        size = self.batches.size

        def turn(block, out):
            own = lax.dynamic_slice_in_dim(images, starts[block], size)

            def under(fault):
                return self._predict(variables, shared, fault, own, starts[block])

            found = under(faults[block][0])[None] if chunk == 1 else jax.vmap(under)(faults[block])
            return lax.dynamic_update_index_in_dim(out, found, block, 0)

        out = jnp.zeros((self._capacity(chunk), chunk, size), jnp.int32)
        return lax.fori_loop(0, turns, turn, out)

    # Devices, of one process or of several

    def _sharding(self, *axes: str) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec(*axes))

    def _everywhere(self, tree: Any) -> Any:
        return jax.tree.map(lambda a: self._placed(np.asarray(a), self._sharding()), tree)

    def _placed(self, array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


class _Pace:
    """How many blocks a call should have, by how long the ones before took."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._seconds: float | None = None

    def blocks(self, left: int, devices: int) -> int:
        """Blocks of the next call, of those that are left."""
        seconds = self._seconds
        most = self._capacity
        wanted = 1 if seconds is None else max(1, min(most, int(_SECONDS_A_CALL / seconds)))
        # In parts of about one size: a last one of a single block would leave devices idle.
        parts = max(-(-left // (devices * most)), round(left / (devices * wanted)), 1)
        return -(-left // parts)

    def note(self, blocks: int, seconds: float) -> None:
        """That a device took so long for so many blocks."""
        self._seconds = max(seconds, 1e-6) / blocks


def _laid_out(array: np.ndarray, devices: int, own: int, capacity: int) -> np.ndarray:
    """Blocks in order, `own` at the front of every device's part of `capacity`."""
    laid = np.zeros((devices, capacity, *array.shape[1:]), np.int32)
    padded = np.zeros((devices * own, *array.shape[1:]), np.int32)
    padded[: len(array)] = array
    laid[:, :own] = padded.reshape(devices, own, *array.shape[1:])
    return laid.reshape(-1, *array.shape[1:])
