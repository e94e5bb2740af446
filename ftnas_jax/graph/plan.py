"""What the hardware does at the values of a graph: tensors that it holds or writes."""

import dataclasses
import math
import zlib

from ftnas_jax.faults import Place
from ftnas_jax.graph.graph import Node, Value
from ftnas_jax.nn.hardware import Kind


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What the hardware holds or writes at one place of a graph.

    Attributes:
        name: unique in the model: the path of a parameter, or of the layer that computes features,
            with what is special about them behind it.
        path: of the layer, as `FaultModel.layers` knows it.
        kind: weights, or what kind of features; see `ftnas_jax.nn.hardware.Kind`.
        macs: M_l.
        shape: of the tensor; of a loop's body, in one turn.
        faulty: False for the model's inputs, which are only quantized.
        repeated: of the loops around it, counted from the outermost, those in whose turns it is the
            same: weights that a loop does not slice.
    """

    name: str
    path: str
    kind: Kind
    macs: int
    shape: tuple[int, ...]
    faulty: bool = True
    repeated: frozenset[int] = frozenset()

    @property
    def number(self) -> int:
        """A stable integer in place of the name, to fold into keys."""
        return zlib.crc32(self.name.encode())

    @property
    def place(self) -> Place:
        """As fault models see it."""
        return Place(self.path, self.macs, math.prod(self.shape))


@dataclasses.dataclass(eq=False)
class Plan:
    """What happens at the values of a graph, and of the bodies of its loops and branches.

    Attributes:
        tensors: what is held or written, by value.
        bodies: plans of the bodies of a node.
    """

    tensors: dict[Value, Tensor] = dataclasses.field(default_factory=dict)
    bodies: dict[Node, "list[Plan]"] = dataclasses.field(default_factory=dict)

    def all_tensors(self) -> list[Tensor]:
        """Of this plan and of those of its bodies, each once."""
        own = list(self.tensors.values())
        own += [t for plans in self.bodies.values() for p in plans for t in p.all_tensors()]
        return list({tensor.name: tensor for tensor in own}.values())


def layer_path(name: str) -> str:
    """The path of the layer that a parameter belongs to."""
    parts = name.split("/")
    conventional = parts[-1] in ("kernel", "weight", "w", "embedding")
    return "/".join(parts[:-1]) if conventional and len(parts) > 1 else name
