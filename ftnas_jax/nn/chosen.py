"""Parameters of the operations that a traced architecture chooses, in one form for all of them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ftnas_jax.nn.cell import edge_rows
from ftnas_jax.nn.cell_program import Program
from ftnas_jax.nn.primitives import MAX_LAYERS, parameter_names
from ftnas_jax.space import edge_index, target_node


class Chosen(NamedTuple):
    """Parameters of one operation on one edge, whatever operation it is.

    Attributes:
        kernel: [weights], its kernels one after the other, then zeros.
        scale: [MAX_LAYERS, C], 1 where a layer has none.
        offset: [MAX_LAYERS, C], of a BatchNorm, or a bias; 0 where a layer has none.
    """

    kernel: jax.Array
    scale: jax.Array
    offset: jax.Array


def _choose_known(program: Program, name: str, rows) -> Chosen:
    """From the parameters of operation `name` on an edge."""
    names = parameter_names(name, stride=program.spec.stride(0), affine=program.affine)
    flat = [rows[part][field].ravel() for own in names for part, field in own.kernels]
    kernel = jnp.concatenate([*flat, jnp.zeros(0, jnp.float32)])
    kernel = jnp.pad(kernel, (0, program.weights - kernel.size))

    def stack(places, default):
        default = jnp.full(program.channels, default, jnp.float32)
        own = [default if p is None else rows[p[0]][p[1]] for p in places]
        return jnp.stack(own + [default] * (MAX_LAYERS - len(own)))

    scale, offset = stack([n.scale for n in names], 1.0), stack([n.offset for n in names], 0.0)
    return Chosen(kernel, scale, offset)


def choose(program: Program, params, edge, op) -> Chosen:
    """The parameters of a traced operation on a traced edge."""
    branches = [
        lambda params, edge, name=name: _choose_known(
            program, name, edge_rows(params.get(name, {}), edge)
        )
        for name in program.spec.space.primitives
    ]
    return lax.switch(op, branches, params, edge)


def gradients_by_edge(program: Program, params, cell, chosen: Chosen):
    """Gradients like `params` out of those of every connection's chosen parameters."""
    edges = edge_index(cell[:, 0], target_node(jnp.arange(cell.shape[0])))
    gradients = {}
    for op, name in enumerate(program.spec.space.primitives):
        if name not in params:
            continue
        row = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), params[name])
        transposed = jax.linear_transpose(functools.partial(_choose_linear, program, name), row)
        rows = jax.vmap(lambda own, transposed=transposed: transposed(own)[0])(chosen)
        mine = cell[:, 1] == op

        def add(p, own, mine=mine):
            own = jnp.where(mine.reshape(-1, *[1] * (own.ndim - 1)), own, 0.0)
            return jnp.zeros_like(p).at[edges].add(own)

        gradients[name] = jax.tree.map(add, params[name], rows)
    return gradients


def _choose_linear(program: Program, name: str, rows) -> Chosen:
    """`_choose_known` without its constants."""
    zero = jax.tree.map(jnp.zeros_like, rows)
    return jax.tree.map(
        jnp.subtract, _choose_known(program, name, rows), _choose_known(program, name, zero)
    )
