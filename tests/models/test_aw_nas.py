"""State dicts of aw_nas: logits against float64 NumPy written from its modules, and mistakes."""

import functools
import io
import re
import zipfile

import jax
import numpy as np
import pytest

from ftnas_jax.models import from_aw_nas, genotype_network
from ftnas_jax.space import PRIMITIVES

quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Jit that compiles in half the time."""

SOURCES = (1, 0, 2, 1, 3, 0, 4, 2, 5, 3, 6)
NORMAL = [(op, SOURCES[place], 2 + place // 2) for place, op in enumerate(PRIMITIVES)]
NORMAL += [(PRIMITIVES[-1], 6, 7)]
"""All operations, one of them on an edge twice."""

REDUCTION = [(op, place % 2, 2 + place // 2) for place, op in enumerate(PRIMITIVES)]
REDUCTION += [("skip_connect", 3, 7)]
"""All operations from the input nodes, and an identity between inner ones."""

ROWS = [("skip_connect", 1, 2), ("conv_1x1", 1, 2), ("skip_connect", 2, 3)]
ROWS += [("skip_connect", 0, 3), ("conv_1x1", 2, 4), ("conv_1x1", 0, 4)]
"""Operations on several edges, which are not in the order of their nodes."""

PLAIN = [("skip_connect", 1, 2), ("conv_1x1", 0, 2)]


class Model:
    """A final model of aw_nas in evaluation mode, [B, C, H, W] float64.

    Its arrays are made up where they are first needed, under the names of the state dict.
    """

    def __init__(
        self,
        normal=PLAIN,
        reduction=PLAIN,
        *,
        channels=2,
        cells=3,
        reductions=(1,),
        preprocess=("relu_conv_bn_1x1", "skip_connect"),
        affine=True,
        classes=3,
    ):
        self.genotype = f"normal_0={normal}, reduce_1={reduction}"
        self.cells = [reduction if cell in reductions else normal for cell in range(cells)]
        self.channels, self.reductions, self.classes = channels, reductions, classes
        self.preprocess, self.affine = preprocess, affine
        self.rng, self.arrays = np.random.default_rng(0), {}
        self.images = self.rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
        self.logits = self(self.images.astype(np.float64))

    def array(self, name, *shape):
        if name not in self.arrays:
            norm = len(shape) == 1 and name.endswith(("weight", "running_var"))
            fan_in = np.prod(shape[1:])
            made = self.rng.uniform(0.5, 1.5, shape) if norm else self.rng.normal(size=shape)
            self.arrays[name] = (made / np.sqrt(fan_in)).astype(np.float32)
        assert self.arrays[name].shape == shape, name
        return self.arrays[name].astype(np.float64)

    def __call__(self, x):
        stem = self.norm("stem.op.1", self.conv("stem.op.0", x, 3 * self.channels, 3))
        older, newer, channels, step = stem, stem, self.channels, 1
        for place, connections in enumerate(self.cells):
            reduction = place in self.reductions
            channels *= 1 + reduction
            nodes = []
            for i, (x, stride) in enumerate([(older, step), (newer, 1)]):
                name = f"cells.{place}.preprocess_ops.{i}"
                op = self.preprocess[stride - 1]
                nodes.append(self.operation(name, op, x, channels, stride, self.affine))
            for op, source, target in connections:
                nodes += [0.0] * (target + 1 - len(nodes))
                name = f"cells.{place}.edge_mod.f_{source}_t_{target}-{op}-0"
                stride = 2 if reduction and source < 2 else 1
                y = self.operation(name, op, nodes[source], channels, stride)
                nodes[target] = nodes[target] + y
            older, newer, step = newer, np.concatenate(nodes[2:], 1), 1 + reduction
        pooled = newer.mean((2, 3))
        weight = self.array("classifier.weight", self.classes, pooled.shape[1])
        return pooled @ weight.T + self.array("classifier.bias", self.classes)

    def operation(self, name, op, x, out, stride, affine=True):
        kind, _, size = op.rpartition("_")
        k, relu = int(size[0]) if size[0].isdigit() else 0, np.maximum(x, 0)
        if op == "none":
            return 0 * x[:, :, ::stride, ::stride]
        if op == "skip_connect" and stride == 1:
            return x
        if op == "skip_connect":
            convs = [
                self.conv(f"{name}.convs.{i}", relu[:, :, i:, i:], out // 2, 1, 2) for i in (0, 1)
            ]
            return self.norm(f"{name}.bn", np.concatenate(convs, 1), affine)
        if op == "avg_pool_3x3":
            ones = windows(np.ones_like(x), 3, stride)
            return windows(x, 3, stride).sum((4, 5)) / ones.sum((4, 5))
        if op == "max_pool_3x3":
            return windows(x, 3, stride, fill=-np.inf).max((4, 5))
        if op == "conv_1x1":
            return self.conv(name, x, out, 1, stride) + column(self.array(f"{name}.bias", out))
        if kind == "relu_conv_bn":
            y = self.conv(f"{name}.op.1", relu, out, k, stride)
            return self.norm(f"{name}.op.2", y, affine)
        if kind == "dil_conv":
            return self.separable(f"{name}.op", 1, x, out, k, stride, affine, dilation=2)
        y = self.separable(f"{name}.op", 1, x, x.shape[1], k, stride, affine)
        return self.separable(f"{name}.op", 5, y, out, k, 1, affine)

    def separable(self, name, place, x, out, k, stride, affine, dilation=1):
        kernel = self.array(f"{name}.{place}.weight", x.shape[1], 1, k, k)
        rows = windows(np.maximum(x, 0), k, stride, dilation)
        y = np.einsum("bchwij,cij->bchw", rows, kernel[:, 0])
        return self.norm(f"{name}.{place + 2}", self.conv(f"{name}.{place + 1}", y, out, 1), affine)

    def conv(self, name, x, out, k, stride=1):
        kernel = self.array(f"{name}.weight", out, x.shape[1], k, k)
        return np.einsum("bchwij,ocij->bohw", windows(x, k, stride), kernel)

    def norm(self, name, x, affine=True):
        fields = ("running_mean", "running_var", "weight", "bias")[: 4 if affine else 2]
        mean, variance, *rest = (
            column(self.array(f"{name}.{field}", x.shape[1])) for field in fields
        )
        scale, offset = rest or (1, 0)
        return (x - mean) / np.sqrt(variance + 1e-5) * scale + offset


def windows(x, k, stride, dilation=1, fill=0.0):
    """[B, C, h, w, k, k]."""
    pad, span = dilation * (k - 1) // 2, dilation * (k - 1) + 1
    padded = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)], constant_values=fill)
    every = np.lib.stride_tricks.sliding_window_view(padded, (span, span), axis=(2, 3))
    return every[:, :, ::stride, ::stride, ::dilation, ::dilation]


def column(values):
    return values[:, None, None]


NETWORKS = {
    "every operation": {
        "normal": NORMAL,
        "reduction": REDUCTION,
        "cells": 2,
        "reductions": (0,),
        "channels": 4,
    },
    "separable": {"preprocess": ("relu_conv_bn_3x3", "sep_conv_3x3"), "reductions": (0, 1)},
    "rows": {
        "normal": ROWS,
        "reduction": ROWS,
        "preprocess": ("sep_conv_3x3", "relu_conv_bn_3x3"),
        "cells": 2,
        "reductions": (0,),
        "channels": 4,
        "classes": 11,
    },
    "not affine": {"preprocess": ("relu_conv_bn_3x3", "relu_conv_bn_1x1"), "affine": False},
    "no reduction": {"reductions": (), "cells": 1},
}


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    return Model(**NETWORKS[request.param])


@pytest.fixture(scope="module")
def plain():
    return Model()


def test_logits_are_those_of_the_state_dict(model):
    network, variables = from_aw_nas(model.arrays, genotype=model.genotype)
    images = model.images.transpose(0, 2, 3, 1)
    logits = quick(network.apply)(variables, images)
    np.testing.assert_allclose(logits, model.logits, rtol=1e-5, atol=1e-5)


def test_settings_are_told_by_names_and_shapes(model):
    network, _ = from_aw_nas(model.arrays, genotype=model.genotype)
    strided = any(place + 1 < len(model.cells) for place in model.reductions)
    expected = genotype_network(
        model.genotype,
        num_classes=model.classes,
        channels=model.channels,
        cells=len(model.cells),
        reductions=model.reductions,
        preprocess=model.preprocess[0],
        preprocess_stride2=model.preprocess[1] if strided else "skip_connect",
    )
    assert network == expected


@pytest.mark.parametrize("model", ["every operation", "separable"], indirect=True)
def test_variables_are_as_the_network_makes_them(model):
    network, variables = from_aw_nas(model.arrays, genotype=model.genotype)
    images = model.images.transpose(0, 2, 3, 1)
    made = jax.eval_shape(network.init, jax.random.key(0), images)
    assert jax.tree.structure(variables) == jax.tree.structure(made)
    for own, expected in zip(jax.tree.leaves(variables), jax.tree.leaves(made), strict=True):
        assert (own.shape, own.dtype) == (expected.shape, expected.dtype)


# The state dict of variables of ours, names and layouts written out once more.

KERNELS = {
    "conv_bn": ("op.0",),
    "conv": ("",),
    "relu_conv_bn": ("op.1",),
    "sep_conv": ("op.1", "op.2", "op.5", "op.6"),
    "dil_conv": ("op.1", "op.2"),
    "skip": ("convs.0", "convs.1"),
}
"""Modules that are conv0, conv1, ... of ours, by the names of operations without their size."""

NORMS = {
    "conv_bn": {"op.1": "conv0"},
    "relu_conv_bn": {"op.2": "conv0"},
    "sep_conv": {"op.3": "conv1", "op.7": "conv3"},
    "dil_conv": {"op.3": "conv1"},
    "skip": {"bn": "norm"},
}


def written_operation(prefix, op, params, statistics):
    kind, arrays = op.rpartition("_")[0], {}
    for place, module in enumerate(KERNELS[kind]):
        kernel, name = np.asarray(params[f"conv{place}"]["kernel"]), f"{prefix}.{module}.weight"
        depthwise = kernel.ndim == 3
        arrays[name] = np.moveaxis(kernel, -1, 0)[:, None] if depthwise else kernel.T.swapaxes(2, 3)
    if kind == "conv":
        arrays[f"{prefix}.bias"] = params["conv0"]["bias"]
    for slot, (module, layer) in enumerate(NORMS.get(kind, {}).items()):
        width = len(params[layer]["scale"])
        arrays |= {
            f"{prefix}.{module}.weight": params[layer]["scale"],
            f"{prefix}.{module}.bias": params[layer]["offset"],
            f"{prefix}.{module}.running_mean": statistics[slot, 0, :width],
            f"{prefix}.{module}.running_var": statistics[slot, 1, :width],
        }
    return {name.replace("..", "."): array for name, array in arrays.items()}


def written(network, variables):
    params, statistics = variables["params"], variables["batch_stats"]
    arrays = {"classifier.weight": params["kernel"].T, "classifier.bias": params["bias"]}
    blocks = {"stem": ("stem",)}
    for cell in range(network.config.cells):
        for i in (0, 1):
            blocks[f"cells.{cell}.preprocess_ops.{i}"] = (f"cell{cell}", f"preprocess{i}")
    for name, path in blocks.items():
        own, stats = params, statistics
        for part in path:
            own, stats = own[part], stats[part]
        ((op, own),) = own.items()
        arrays |= written_operation(name, op, own, stats[f"{op}/stats"])
    for cell in range(network.config.cells):
        reduction = cell in network.config.reductions
        rows = {}
        for place, (source, op) in enumerate(network.architecture[reduction]):
            target, op = 2 + place // 2, PRIMITIVES[op]
            identity = op == "skip_connect" and not (reduction and source < 2)
            if identity or op in ("none", "avg_pool_3x3", "max_pool_3x3"):
                continue
            row = rows.setdefault(op, {}).setdefault((source, target), len(rows[op]))
            own = jax.tree.map(lambda p, row=row: p[row], params[f"cell{cell}"][op])
            edge = sum(range(2, target)) + source
            stats = statistics[f"cell{cell}"]["stats"][edge, PRIMITIVES.index(op)]
            name = f"cells.{cell}.edge_mod.f_{source}_t_{target}-{op}-0"
            arrays |= written_operation(name, op, own, stats)
    return arrays


def test_what_is_written_of_the_variables_is_what_was_read(model):
    network, variables = from_aw_nas(model.arrays, genotype=model.genotype)
    again = written(network, variables)
    for name, array in model.arrays.items():
        np.testing.assert_array_equal(again.pop(name), array, err_msg=name)
    # BatchNorms without scale and offset got these:
    for name, array in again.items():
        np.testing.assert_array_equal(array, float(name.endswith("weight")), err_msg=name)
    assert bool(again) != model.affine


# Files


def test_a_file_brings_its_genotype_and_notes(plain, tmp_path):
    notes = {"__genotype__": plain.genotype, "__x__": plain.images, "__logits__": plain.logits}
    counts = {"stem.op.1.num_batches_tracked": np.int64(7)}
    file = tmp_path / "model.npz"
    np.savez(file, **plain.arrays, **notes, **counts)
    network, variables = from_aw_nas(file)
    expected, expected_variables = from_aw_nas(plain.arrays, genotype=plain.genotype)
    assert network == from_aw_nas(str(file))[0] == expected
    jax.tree.map(np.testing.assert_array_equal, variables, expected_variables)
    other = plain.genotype.replace("skip_connect", "none", 1)
    assert from_aw_nas(file, genotype=other)[0] == from_aw_nas(plain.arrays, genotype=other)[0]


@pytest.mark.parametrize("prefix", ["module.", "model.module."])
def test_names_may_have_a_prefix(plain, prefix):
    arrays = {prefix + name: array.astype(np.float64) for name, array in plain.arrays.items()}
    arrays[f"{prefix}cells.0.preprocess_ops.0.op.2.num_batches_tracked"] = np.int64(7)
    network, variables = from_aw_nas(arrays, genotype=plain.genotype)
    expected, expected_variables = from_aw_nas(plain.arrays, genotype=plain.genotype)
    assert network == expected
    jax.tree.map(np.testing.assert_array_equal, variables, expected_variables)
    del arrays[f"{prefix}cells.1.preprocess_ops.0.op.1.weight"]
    refused(f"{prefix}cells.1.preprocess_ops.0.op.1.weight is missing", arrays, plain.genotype)


def test_genotypes_as_aw_nas_prints_them(plain):
    printed = f"CNNGenotype({plain.genotype}, normal_0_concat=[2], reduce_1_concat=[2])"
    expected, _ = from_aw_nas(plain.arrays, genotype=plain.genotype)
    assert from_aw_nas(plain.arrays, genotype=printed)[0] == expected


def test_images_may_be_grey(plain):
    grey = plain.arrays | {"stem.op.0.weight": plain.arrays["stem.op.0.weight"][:, :1]}
    _, variables = from_aw_nas(grey, genotype=plain.genotype)
    assert variables["params"]["stem"]["conv_bn_3x3"]["conv0"]["kernel"].shape == (3, 3, 1, 6)


# Mistakes


def refused(message, file, genotype=None):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        from_aw_nas(file, genotype=genotype)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module", params=["skip_connect", "relu_conv_bn_3x3", "sep_conv_3x3"])
def strided(request):
    return Model(
        REDUCTION, REDUCTION, preprocess=("sep_conv_3x3", request.param), cells=2, reductions=(0,)
    )


def test_any_array_that_is_missing_is_named(strided):
    for name in strided.arrays:
        others = {n: array for n, array in strided.arrays.items() if n != name}
        refused(f"aw_nas model: {name} is missing; the", others, strided.genotype)


def test_any_array_of_another_shape_is_named_with_both(strided):
    for name, array in strided.arrays.items():
        for wrong in (array[:-1], array[None]):
            message = refused(name, strided.arrays | {name: wrong}, strided.genotype)
            assert str(wrong.shape) in message
            kernel = "preprocess_ops.0.op.1.weight" in name and "is [O, I, k, k]" in message
            assert str(array.shape) in message or kernel or "one of them is wrong" in message


def test_any_array_that_is_left_over_is_named(plain):
    for name in (
        "cells.0.edge_mod.f_0_t_2-conv_1x1-1.weight",  # equal connections with own parameters
        "cells.0.edge_mod.f_1_t_2-skip_connect-0.bn.weight",
        "cells.1.preprocess_ops.0.convs.0.weight",
        "auxiliary_net.classifier.weight",
        "stem.op.0.bias",
        "other",
    ):
        refused(
            f"aw_nas model: {name} is left over; the",
            plain.arrays | {name: np.zeros(2)},
            plain.genotype,
        )
    more = {"other": np.zeros(2), "others": np.zeros(2)}
    refused("other and 1 more are left over; the network of", plain.arrays | more, plain.genotype)


def test_a_genotype_of_other_edges_is_refused(plain):
    other = plain.genotype.replace("('conv_1x1', 0, 2)", "('conv_1x1', 1, 2)")
    refused("cells.0.edge_mod.f_1_t_2-conv_1x1-0.weight is missing", plain.arrays, other)
    fewer = plain.genotype.replace("conv_1x1", "none")
    refused("f_0_t_2-conv_1x1-0.weight and 5 more are left over", plain.arrays, fewer)
    refused("unknown operation 'conv_3x3'", plain.arrays, plain.genotype.replace("1x1", "3x3"))
    refused("a genotype reads", plain.arrays, "")


def test_nodes_that_are_joined_in_another_order_are_refused(strided):
    joined = f"{strided.genotype}, normal_0_concat=[3, 2]"
    refused("normal_0_concat is [3, 2]; cells of ours join", strided.arrays, joined)


def test_a_genotype_is_needed(plain):
    refused("has no note __genotype__; pass its genotype as genotype=", plain.arrays)
    assert from_aw_nas(plain.arrays | {"__genotype__": plain.genotype.encode()})
    for note in (np.zeros(3), np.array(["a", "b"])):
        arrays = plain.arrays | {"__genotype__": note}
        refused("its note __genotype__ is no text", arrays)
        from_aw_nas(arrays, genotype=plain.genotype)


def resized(arrays, channels_of_stem=6, k=1):
    """With another stem, or other kernels in all preprocessing."""
    arrays = dict(arrays)
    for name, array in arrays.items():
        if name.startswith("stem"):
            arrays[name] = np.zeros((channels_of_stem, *array.shape[1:]), np.float32)
        elif "preprocess" in name and array.ndim == 4:
            arrays[name] = np.zeros((*array.shape[:2], k, k), np.float32)
    return arrays


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels_of_stem": 7}, "stem has 7 channels; ours have 3 times those of a cell"),
        ({"channels_of_stem": 9}, "cells.0 has 2 channels, and there are 3 before it; cells of"),
        ({"k": 5}, "cells.0.preprocess_ops.1 is relu_conv_bn_5x5; ours are relu_conv_bn_1x1, r"),
    ],
)
def test_networks_that_are_none_of_ours(plain, changes, message):
    refused(message, resized(plain.arrays, **changes), plain.genotype)


def test_factorized_reductions_stand_where_the_stride_is_2(plain):
    modules = {"op.1.weight": "convs.0.weight", "op.2.": "bn."}
    arrays = {}
    for name, array in plain.arrays.items():
        for old, new in modules.items() if "preprocess" in name else ():
            name = name.replace(old, new)
        arrays[name] = array
    refused("cells.0.preprocess_ops.1 is skip_connect; ours are relu", arrays, plain.genotype)


def test_arrays_that_are_no_numbers(plain):
    for dtype in (np.int32, "U3", object):
        wrong = {"classifier.bias": np.zeros(3).astype(dtype)}
        refused("classifier.bias is of type", plain.arrays | wrong, plain.genotype)


def zipped(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"\x80\x02}q\x00.")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no npz of arrays: File is not a zip file; write one with numpy.savez("),
        (b"normal=[]", "is no npz of arrays: File is not a zip file"),
        (zipped("archive/data.pkl"), "is no npz of arrays: it has 'archive/data.pkl'; write one"),
        (zipped("stem.npy"), "is no npz of arrays: it has 'stem'"),
    ],
)
def test_files_that_are_no_npz(tmp_path, content, message):
    file = tmp_path / "model.pth"
    file.write_bytes(content)
    refused(f"aw_nas model {str(file)!r} {message}", file)


def test_damaged_files(plain, tmp_path):
    file = tmp_path / "model.npz"
    np.savez(file, **plain.arrays)
    whole = file.read_bytes()
    at = len(whole) // 3
    for damaged in (whole[:at], whole[:at] + bytes(64) + whole[at + 64 :]):
        file.write_bytes(damaged)
        refused("is no npz of arrays", file, plain.genotype)
    np.savez(file, **{"stem.op.0.weight": np.array([{}])})
    refused("is no npz of arrays: Object arrays cannot be loaded", file, plain.genotype)
    refused("cannot read it: No such file or directory", "/nowhere/model.npz")
    refused("cannot read it: Is a directory", tmp_path)
