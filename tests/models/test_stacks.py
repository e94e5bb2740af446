"""The networks of §5.5: layers of one primitive, and blocks that are drawn anew in every step."""

import jax
import numpy as np
import pytest

from ftnas_jax.models.stacks import Primitive, RandomBlocks, Stack
from ftnas_jax.nn.primitives import layer_macs, parameter_shapes


@pytest.mark.parametrize(
    "primitive", ["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]
)
def test_a_layer_of_a_stack_costs_what_the_primitive_does(primitive):
    """Parameters and multiply-accumulates of the search space's own operation."""
    layer = Primitive(primitive, 8)
    x = jax.ShapeDtypeStruct((1, 6, 6, 8), np.float32)
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    shapes = parameter_shapes(primitive, 8, 8, stride=1, affine=True)
    ours = sum(int(np.prod(s)) for part in shapes.values() for s in part.values())
    norms = 2 if primitive.startswith("sep") else 1
    assert count == ours
    assert layer_macs(primitive, 8, 8, stride=1)[1::2] == [8] * norms


def test_a_stack_halves_every_second_layer():
    stack = Stack(primitive="dil_conv_3x3", channels=4)
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), np.float32)
    variables = jax.eval_shape(stack.init, jax.random.key(0), x)
    widths = [variables["params"][f"layer{i}"]["pointwise0"]["kernel"].shape[-1] for i in range(5)]
    assert widths == [4, 8, 8, 16, 16]
    with pytest.raises(ValueError, match="primitive is 'conv'; choose from"):
        Stack(primitive="conv").init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))


def test_random_blocks_are_drawn_in_training_alone():
    blocks, x = RandomBlocks(layers=2, channels=2), np.ones((2, 8, 8, 3), np.float32)
    variables = blocks.init(jax.random.key(0), x)

    @jax.jit
    @jax.grad
    def gradient(params, seed):
        out, _ = blocks.apply(
            {**variables, "params": params},
            x * np.arange(2)[:, None, None, None],
            True,
            rngs={"dropout": jax.random.key(seed)},
            mutable=["batch_stats"],
        )
        return out.sum()

    def blocks_drawn(seed):
        return {
            name
            for name, own in gradient(variables["params"], seed).items()
            if name.startswith("block") and any(np.any(leaf != 0) for leaf in jax.tree.leaves(own))
        }

    drawn = [blocks_drawn(seed) for seed in range(6)]
    assert all(len(names) == 2 for names in drawn)  # one of each block
    assert len(set(map(frozenset, drawn))) > 1
    plain = blocks.apply(variables, x)
    np.testing.assert_array_equal(plain, blocks.apply(variables, x))
