"""Which architectures make one network, and which cells of a network do anything.

    cells_in_use(network, space, architecture)      # places of cells that the logits depend on
    canonical(network, space, architecture)         # one architecture for all that make a network

A cell whose output no other cell reads is built, has parameters and costs, and changes no logit: so
it is with the reduction cell of three where the cell behind it takes all from c_{k-2}.
"""

from ftnas_jax.space import CELL_TYPES, FAN_IN, INPUT_NODES, Architecture, Cell, Connection, Space
from ftnas_jax.supernet import NetworkConfig


def cells_in_use(
    network: NetworkConfig, space: Space, architecture: Architecture
) -> tuple[int, ...]:
    """Places of the cells, from 0, that the logits depend on, in order.

    The last cell is always one: the classifier reads it, be it all `none`.
    """
    used = {network.cells - 1}
    for place in reversed(range(network.cells)):
        if place in used:
            cell = architecture[place in network.reductions]
            inputs = {c.input for c in cell if c.input < INPUT_NODES and not _is_none(space, c)}
            used |= {place - INPUT_NODES + i for i in inputs}
    return tuple(place for place in sorted(used) if place >= 0)


def unused_types(
    network: NetworkConfig, space: Space, architecture: Architecture
) -> tuple[str, ...]:
    """Those of `CELL_TYPES` that no cell in use has."""
    used = {place in network.reductions for place in cells_in_use(network, space, architecture)}
    return tuple(name for reduction, name in enumerate(CELL_TYPES) if reduction not in used)


def canonical(network: NetworkConfig, space: Space, architecture: Architecture) -> Architecture:
    """The one architecture for all those that make the same network of this shape.

    The connections of a node are in order, a `none` comes from node 0, and a cell that is not in
    use is that of `Space.first`. What further becomes of a `none`'s zeros is not followed: `none`
    and a skip of a node that is 0 stay two. Draws of faults go by the places of connections, so
    that with one key architectures of one network meet other faults.
    """
    unused = unused_types(network, space, architecture)
    return Architecture(
        *(
            first if name in unused else _ordered(space, cell)
            for name, first, cell in zip(CELL_TYPES, space.first(), architecture, strict=True)
        )
    )


def _ordered(space: Space, cell: Cell) -> Cell:
    plain = [Connection(0, c.op) if _is_none(space, c) else c for c in cell]
    nodes = [sorted(plain[i : i + FAN_IN]) for i in range(0, len(plain), FAN_IN)]
    return tuple(connection for node in nodes for connection in node)


def _is_none(space: Space, connection: Connection) -> bool:
    return space.primitives[connection.op] == "none"
