"""A Flax nnx module as a linen one, whose variables are arrays beside it as in a training."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

_COLLECTIONS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


class NnxNetwork(nn.Module):
    """Images → what an nnx module returns for them.

    Its `nnx.Param`s are the collection `params`, its `nnx.BatchStat`s `batch_stats`, by the same
    paths. It is built anew at every call, without arrays; random streams begin with the `dropout`
    key of the call.

    Attributes:
        build: the module's class, or a function that returns one: takes `rngs=` and the options.
        options: for it, names and values.
    """

    build: Callable[..., nnx.Module]
    options: tuple[tuple[str, Any], ...] = ()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Any:
        """[B, ...] → as the module; `train` sets dropout and BatchNorm as `module.train()` does.

        Raises:
            ValueError: the module has variables of another kind.
        """
        abstract = self.abstract()
        kinds = (*_COLLECTIONS.values(), nnx.RngState)
        graph, *states, streams, rest = nnx.split(abstract, *kinds, ...)
        if others := {type(v).__name__ for _, v in nnx.to_flat_state(rest)}:
            raise ValueError(
                f"{type(abstract).__name__} has variables of kind {min(others)}; a network here "
                "has those of Param and BatchStat, and random streams"
            )
        self._fill(dict(zip(_COLLECTIONS, states, strict=True)))
        module = nnx.merge(graph, *states, self._seeded(streams))
        module.train() if train else module.eval()
        takes_train = "train" in inspect.signature(type(module).__call__).parameters
        outputs = module(images, train=train) if takes_train else module(images)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            for name, value in _as_dict(nnx.state(module, nnx.BatchStat)).items():
                self.put_variable("batch_stats", name, value)
        return outputs

    def abstract(self) -> nnx.Module:
        """The nnx module with shapes in place of arrays."""
        return nnx.eval_shape(lambda: self._built(jax.random.key(0)))

    def _built(self, key: jax.Array) -> nnx.Module:
        return self.build(**dict(self.options), rngs=nnx.Rngs(key))

    def _fill(self, states: Mapping[str, Any]) -> None:
        """Put the arrays that this module has into the states of its collections."""
        initial = {}
        if self.is_initializing():
            built = self._built(self.make_rng("params"))
            initial = {c: _as_dict(nnx.state(built, kind)) for c, kind in _COLLECTIONS.items()}
        for collection, state in states.items():
            arrays = {
                name: self.variable(collection, name, lambda c=collection, n=name: initial[c][n])
                for name in _as_dict(state)
            }
            nnx.replace_by_pure_dict(state, {name: v.value for name, v in arrays.items()})

    def _seeded(self, streams: Any) -> Any:
        """Random streams that begin with the `dropout` key of this call, if it has one."""
        key = self.make_rng("dropout") if self.has_rng("dropout") else jax.random.key(0)

        def start(number, leaf):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.fold_in(key, number)
            return jnp.zeros(leaf.shape, leaf.dtype)

        leaves, tree = jax.tree.flatten(streams)
        return jax.tree.unflatten(tree, [start(n, leaf) for n, leaf in enumerate(leaves)])


def _as_dict(state: Any) -> dict[str, Any]:
    """A state as nested dicts of arrays, all keys text."""

    def with_text(tree):
        if not isinstance(tree, Mapping):
            return tree
        return {str(key): with_text(value) for key, value in tree.items()}

    return with_text(nnx.to_pure_dict(state))
