"""Layers of usual modules: their names, kinds, multiply-accumulates and shapes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import (
    SOUND,
    Block,
    Small,
    SmallNNX,
    Stacked,
    Tied,
    initialized,
    linen_rows,
    rows,
    table,
)

import ftnas_jax as ft

LEFT = ["in", "float32:", "bias"]
IMAGES, TOKENS = jnp.ones((2, 9, 9, 6)), jnp.ones((2, 5, 8))

SINGLE = {
    "conv": (nn.Conv(5, (3, 3)), IMAGES, 54),
    "strided": (nn.Conv(5, (3, 2), strides=2), IMAGES, 36),
    "dilated": (nn.Conv(5, (3, 3), kernel_dilation=2), IMAGES, 54),
    "grouped": (nn.Conv(6, (3, 3), feature_group_count=3), IMAGES, 18),
    "depthwise": (nn.Conv(6, (3, 3), feature_group_count=6), IMAGES, 9),
    "pointwise": (nn.Conv(5, (1, 1)), IMAGES, 6),
    "transposed": (nn.ConvTranspose(5, (3, 3), (2, 2)), IMAGES, 24),
    "transposed_4": (nn.ConvTranspose(5, (4, 2), (2, 2)), IMAGES, 12),
    "local": (nn.ConvLocal(5, (3, 3)), IMAGES, 54),
    "dense": (nn.Dense(5), TOKENS, 8),
    "general": (nn.DenseGeneral((2, 3), axis=(-2, -1)), TOKENS, 40),
    "batched": (nn.DenseGeneral(3, batch_dims=(0,)), TOKENS, 8),
    "einsum": (nn.Einsum((8, 4, 2), "abc,cde->abde"), TOKENS, 8),
}


@pytest.mark.parametrize("name", SINGLE)
def test_macs_are_counted_by_a_layer_of_ones(name):
    """Ones times ones add up to M_l, wherever the kernel does not stand over the edge."""
    module, x, macs = SINGLE[name]
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x))
    ones = jax.tree.map(lambda s: jnp.full(s.shape, float(len(s.shape) > 1)), shapes)
    ones["params"]["bias"] = jnp.zeros(shapes["params"]["bias"].shape)
    assert float(jnp.max(module.apply(ones, x))) == macs
    kernel = "x".join(map(str, shapes["params"]["kernel"].shape))
    found = rows(ft.on_hardware(module, SOUND), shapes, x)
    # Logits leave the model from the accumulators: no features.
    assert found[1:] == [["kernel", "weights", str(macs), kernel], LEFT]
    assert found[0][:3] == ["input", "input", "0"]


NNX_SINGLE = {
    "conv": (nnx.Conv, (6, 5, (3, 3)), {}, IMAGES, 54),
    "depthwise": (nnx.Conv, (6, 6, (3, 3)), {"feature_group_count": 6}, IMAGES, 9),
    "transposed": (nnx.ConvTranspose, (6, 5, (3, 3)), {"strides": 2}, IMAGES, 24),
    "linear": (nnx.Linear, (8, 5), {}, TOKENS, 8),
    "general": (nnx.LinearGeneral, ((5, 8), (2, 3)), {"axis": (-2, -1)}, TOKENS, 40),
    "einsum": (nnx.Einsum, ("abc,cde->abde", (8, 4, 2), (4, 2)), {}, TOKENS, 8),
}


@pytest.mark.parametrize("name", NNX_SINGLE)
def test_layers_of_nnx_are_those_of_linen(name):
    kind, args, kwargs, x, macs = NNX_SINGLE[name]
    module = kind(*args, rngs=nnx.Rngs(0), **kwargs)
    found = rows(ft.on_hardware(module, SOUND), x)
    kernel = "x".join(map(str, module.kernel.shape))
    assert found[1:] == [["kernel", "weights", str(macs), kernel], LEFT]


SMALL = """
    input        input     0   2x5x5x3
    conv/kernel  weights   27  3x3x3x4
    conv         computed  27  2x5x5x4
    conv/stored  stored    0   2x4
    head/kernel  weights   4   4x3
    in float32: conv/bias, head/bias, norm/bias, norm/scale
"""


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_batch_norm_comes_before_features_are_written(batch, train, fast):
    x = jnp.ones((batch, 5, 5, 3))
    found = linen_rows(Small(train, fast), x, mutable=["batch_stats"])
    assert found == table(SMALL.replace("2x5", f"{batch}x5").replace("2x4", f"{batch}x4"))


def test_twins_in_linen_and_nnx_have_the_same_sites():
    module = SmallNNX(nnx.Rngs(0))
    assert rows(ft.on_hardware(module, SOUND), jnp.ones((2, 5, 5, 3))) == table(SMALL)
    module.eval()
    assert rows(ft.on_hardware(module, SOUND), jnp.ones((2, 5, 5, 3))) == table(SMALL)


ATTENTION = """
    input           input     0  2x5x8
    query/kernel    weights   8  8x2x4
    query           features  8  2x5x2x4
    key/kernel      weights   8  8x2x4
    key             features  8  2x5x2x4
    value/kernel    weights   8  8x2x4
    value           features  8  2x5x2x4
    product         computed  4  2x2x5x5
    product#2       features  5  2x2x4x5
    product/stored  stored    0  2x2x5x5
    out/kernel      weights   8  2x4x8
    in float32: key/bias, out/bias, query/bias, value/bias
"""


def test_attention_multiplies_features_as_well():
    module = nn.MultiHeadDotProductAttention(2, qkv_features=8)
    assert linen_rows(module, TOKENS) == table(ATTENTION)
    twin = nnx.MultiHeadAttention(2, 8, qkv_features=8, decode=False, rngs=nnx.Rngs(0))
    found = rows(ft.on_hardware(twin, SOUND), TOKENS)
    assert [row[:3] for row in found] == [row[:3] for row in table(ATTENTION)]


def test_a_table_is_held_once_for_lookup_and_for_attend():
    assert linen_rows(Tied(), jnp.ones((2, 5), jnp.int32)) == table("""
        embed/embedding  weights  0  11x6
        embed/stored     stored   0  2x5x6
        in float32: norm/bias, norm/scale
    """)


@pytest.mark.parametrize("norm", [nn.LayerNorm, functools.partial(nn.GroupNorm, 3)])
@pytest.mark.parametrize("batch", [1, 2])
def test_norms_of_one_image_read_features_that_are_written(norm, batch):
    module = nn.Sequential([nn.Conv(6, (3, 3)), norm(), nn.relu, nn.Dense(2)])
    found = linen_rows(module, jnp.ones((batch, 5, 5, 3)))
    assert [row[:3] for row in found[2:4]] == [
        ["layers_0", "computed", "27"],
        ["layers_0/stored", "stored", "0"],
    ]


def test_scanned_layers_are_those_of_one_turn():
    assert linen_rows(Stacked(), jnp.ones((2, 6))) == table("""
        blocks/dense/kernel    weights   6  6x6
        blocks/dense           computed  6  2x6
        blocks/dense/stored#2  stored    0  2x6
        blocks/dense/stored    stored    0  2x6
        head/kernel            weights   6  6x2
        in float32: blocks/dense/bias, head/bias
    """)


def test_a_recurrent_cell_holds_its_weights_once():
    assert linen_rows(nn.RNN(nn.SimpleCell(4)), jnp.ones((2, 5, 3))) == table("""
        input          input     0  2x5x3
        cell/i/kernel  weights   3  3x4
        cell/i         computed  3  2x4
        cell/h/kernel  weights   4  4x4
        cell/h         computed  4  2x4
        cell/h/stored  stored    0  2x4
        in float32: cell/i/bias
    """)


@pytest.mark.parametrize(
    ("cell", "shapes"),
    [
        (nn.LSTMCell, ["3x4"] * 4 + ["4x4"] * 4),
        (nn.OptimizedLSTMCell, ["3x16", "4x16"]),  # of four kernels side by side
        (nn.GRUCell, ["3x4"] * 3 + ["4x4"] * 3),
    ],
)
def test_kernels_of_a_cell_are_held_as_they_are_multiplied(cell, shapes):
    found = linen_rows(nn.RNN(cell(4)), jnp.ones((2, 5, 3)))
    assert sorted(row[3] for row in found if row[1] == "weights") == shapes
    assert not any("kernel" in word for word in found[-1])  # none is left in float32


def test_remat_and_dropout_change_no_layer():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, drop=False, block=Block):
            x = block(name="block")(x)[0]
            return nn.Dense(2)(nn.Dropout(0.5, deterministic=not drop)(x))

    plain = linen_rows(Plain(), jnp.ones((2, 6)))
    again = linen_rows(Plain(), jnp.ones((2, 6)), block=nn.remat(Block))
    dropped = linen_rows(Plain(), jnp.ones((2, 6)), drop=True, rngs={"dropout": jax.random.key(0)})
    assert len(plain) == 6
    assert [row[1:] for row in plain] == [row[1:] for row in dropped]
    assert [row[1:4] for row in plain[:-1]] == [row[1:4] for row in again[:-1]]


def test_half_precision_changes_no_layer():
    class Mixed(nn.Module):
        dtype: jnp.dtype

        @nn.compact
        def __call__(self, x):
            x = nn.Conv(6, (3, 3), dtype=self.dtype)(x)
            x = nn.BatchNorm(True, dtype=self.dtype)(x).astype(jnp.float32)
            return nn.Dense(3, dtype=self.dtype)(nn.relu(x)).astype(jnp.float32)

    x = jnp.ones((2, 5, 5, 3))
    with jax.numpy_dtype_promotion("standard"):
        assert linen_rows(Mixed(jnp.bfloat16), x) == linen_rows(Mixed(jnp.float32), x)


def test_mapped_modules_are_one_layer_with_many_kernels():
    class Ensemble(nn.Module):
        @nn.compact
        def __call__(self, x):
            own = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x = nn.vmap(nn.Dense, in_axes=None, axis_size=3, **own)(5, name="first")(x)
            return nn.vmap(nn.Dense, **own)(2, name="second")(nn.relu(x))

    found = linen_rows(Ensemble(), jnp.ones((4, 6)))
    # The bias of each kernel comes before features are written, and logits are not written.
    assert found == table("""
        input          input     0  4x6
        first/kernel   weights   6  3x6x5
        first          computed  6  3x4x5
        first/stored   stored    0  3x4x5
        second/kernel  weights   5  3x5x2
        in float32: first/bias, second/bias
    """)


def test_names_of_parameters_behind_lists():
    parameters = [{"w": jnp.ones((6, 6))}, {"w": jnp.ones((6, 2))}]
    chip = ft.on_hardware(lambda p, x: x @ p[0]["w"] @ p[1]["w"], SOUND)
    assert [row[0] for row in rows(chip, parameters, jnp.ones((4, 6)))[:-1]] == [
        "input",
        "0/w",
        "0",
        "1/w",
    ]
    alone = ft.on_hardware(lambda w, x: x @ w, SOUND)
    assert rows(alone, jnp.ones((6, 2)), jnp.ones((4, 6)))[1][0] == "weight"


def test_sites_are_printed_with_a_line_for_each_tensor():
    chip = ft.on_hardware(SmallNNX(nnx.Rngs(0)), SOUND)
    lines = str(chip.sites(jnp.ones((2, 5, 5, 3)))).splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["tensor", *SMALL.split()[:20:4]]
    assert lines[-1] == "in float32: conv/bias, head/bias, norm/bias, norm/scale"


def test_boxes_around_parameters_are_no_part_of_their_names():
    split = nn.with_partitioning(nn.initializers.ones, (None, "model"))
    found = linen_rows(nn.Sequential([nn.Dense(3, kernel_init=split), nn.Dense(2)]), TOKENS)
    assert [row[0] for row in found[1:3]] == ["layers_0/kernel", "layers_0"]


def test_sites_of_shapes_are_those_of_arrays():
    x = jnp.ones((2, 5, 5, 3))
    variables = initialized(Small(), x)
    chip = ft.on_hardware(Small(), SOUND)
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    assert rows(chip, variables, shape) == rows(chip, variables, np.ones(x.shape, np.float32))
