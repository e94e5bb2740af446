"""The project's own networks, which compute on hardware themselves, as models on hardware."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ftnas_jax.graph.lengths import Lengths, check_format, check_names
from ftnas_jax.graph.plan import Tensor
from ftnas_jax.graph.run import Held, Observe, Observed, own_length
from ftnas_jax.graph.sites import Sites
from ftnas_jax.nn.hardware import CLEAN, SITES, Draw, Hardware, Kind, Maps
from ftnas_jax.space import Architecture, edge_index
from ftnas_jax.supernet import Network


def _array(leaf: Any) -> Any:
    """Zeros where only a shape is given."""
    shape = isinstance(leaf, jax.ShapeDtypeStruct)
    return jnp.zeros(leaf.shape, leaf.dtype) if shape else leaf


@dataclasses.dataclass(frozen=True)
class NetworkOnHardware:
    """A `Network` on hardware.

    Attributes:
        model: the network; its own hardware has no say.
        hardware: number formats and faults.
        lengths: frozen fraction lengths of features, by the tensor's name.
    """

    model: Network
    hardware: Hardware
    lengths: Lengths = dataclasses.field(default_factory=dict, hash=False)

    def apply(self, variables: Any, *args: Any, draw: Draw = CLEAN, **kwargs: Any) -> Any:
        """As the network's own `apply`; `draw` says which faults this pass has."""
        return self._on(self.hardware)(variables, *args, draw=draw, **kwargs)

    def observed(
        self, observe: Observe | None, *args: Any, draw: Draw = CLEAN, **kwargs: Any
    ) -> tuple[Any, Observed]:
        """What a call returns, and what `observe` makes of every tensor, by its name.

        Raises:
            ValueError: of a supernet, the architecture is not known while tracing.
        """
        if observe is None:
            return self.apply(*args, draw=draw, **kwargs), {}
        self._check_known("to list what fails", args[2:], kwargs)
        seen: Observed = {}

        def watch(name: str, path: str, kind: Kind, macs: int, x: Any, held: Any, maps: Maps):
            unique = _unique(name, seen)
            tensor = Tensor(unique, path, kind, macs, x.shape, path != "input")
            length = self.lengths.get(unique)
            length = own_length(self.hardware, kind, x) if length is None else length
            seen[unique] = observe(tensor, self._held(kind, x, held, length, maps))

        watched = dataclasses.replace(self.hardware, watch=watch)
        return self._on(watched)(*args, draw=draw, **kwargs), seen

    def with_hardware(self, hardware: Hardware) -> "NetworkOnHardware":
        """The same network, with the same frozen fraction lengths, on other hardware.

        Raises:
            ValueError: the lengths were frozen for another format of features.
        """
        check_format(self.lengths, self.hardware.features, hardware.features)
        return dataclasses.replace(self, hardware=hardware)

    def sites(self, variables: Any, *args: Any, **kwargs: Any) -> Sites:
        """What may fail in a call with these arguments, in the order in which it is computed."""
        found: list[Tensor] = []

        def note(tensor: Tensor, held: Held) -> None:
            del held
            found.append(tensor)

        args, kwargs = jax.tree.map(_array, (args, kwargs))
        jax.eval_shape(lambda own: self.observed(note, own, *args, **kwargs)[0], variables)
        return Sites(tuple(found))

    def _on(self, hardware: Hardware) -> Callable[..., Any]:
        def run(variables, images, architecture=None, *, draw: Draw, **kwargs):
            asked = _Asked(self.lengths)
            if self.lengths:
                self._check_known("to freeze fraction lengths", (architecture,), {})
            own = dataclasses.replace(hardware, frozen=asked if self.lengths else None)
            network = self.model.clone(hardware=own)
            outputs = network.apply(variables, images, architecture, draw, **kwargs)
            if self.lengths:
                check_names(self.lengths, asked.names)
            return outputs

        return run

    def _check_known(self, purpose: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise ValueError where a supernet is called with an architecture that is traced."""
        given = (*args, *kwargs.values())
        if self.model.architecture is None and not any(isinstance(a, Architecture) for a in given):
            raise ValueError(f"{purpose}, call the supernet with an Architecture")

    def _held(self, kind: Kind, x: jax.Array, held: jax.Array, length: Any, maps: Maps) -> Held:
        """With the maps of those faults alone that a tensor of its kind has."""
        if maps is not None:
            pairs = zip(self.hardware.models(kind), maps, strict=True)
            maps = tuple(own if model.site in SITES[kind] else None for model, own in pairs)
        return Held(x, held, length, maps, maps)


class _Asked:
    """Frozen fraction lengths for a network that asks for them, tensor by tensor.

    Attributes:
        names: for which it has asked.
    """

    def __init__(self, lengths: Lengths):
        self._lengths = lengths
        self.names: set[str] = set()

    def __call__(self, name: str) -> jax.Array | None:
        """That of the next tensor with this name."""
        unique = _unique(name, self.names)
        self.names.add(unique)
        return self._lengths.get(unique)


def _unique(name: str, known: Collection[str]) -> str:
    """The name of a tensor: two equal connections of a cell have features of their own."""
    count = sum(other.partition("#")[0] == name for other in known)
    return f"{name}#{count + 1}" if count else name


_ON_EDGE = re.compile(r"(cell\d+)/edge(\d+)-(\d+)/(\w+)/(.+)")


def rows_of_weights(
    network: Network, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[str, int]]:
    """Where the weights that the hardware holds are among the parameters, which are stacked.

    Args:
        network: whose weights.
        names: of the weight tensors of a call, in their order.
        shapes: of the parameters, by their paths in the collection `params`.

    Returns:
        For every name the path of a parameter and a row of it; -1 for all of it.
    """
    rows: dict[str, tuple[str, int]] = {}
    used: dict[str, int] = {}
    for name in names:
        if (on_edge := _ON_EDGE.fullmatch(name)) is None:
            rows[name] = (_alone(name, shapes), -1)
            continue
        cell, source, target, op, layer = on_edge.groups()
        path = f"{cell}/{op}/{layer}"
        # A network of one architecture has rows for its own edges alone, in order of appearance.
        row = used.setdefault(path, 0)
        used[path] += 1
        if network.architecture is None:
            row = int(edge_index(int(source), int(target)))
        rows[name] = (path, row)
    return rows


def _alone(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The parameter of a layer outside of cells' edges, whose path names its primitive, too."""
    if name == "classifier/kernel":
        return "kernel"
    block, _, layer = name.partition("/conv")
    (path,) = (p for p in shapes if p.startswith(f"{block}/") and p.endswith(f"/conv{layer}"))
    return path
