"""Networks by their names: which there are, their options, and how each mistake is told."""

import json
import re

import flax.linen as nn
import jax
import pytest

from examples.small_cnn import SmallCNN
from ftnas_jax.models import MODELS, MobileNetV2, ResNet18, by_name
from ftnas_jax.published import W_FTT_NET
from ftnas_jax.space import Space
from ftnas_jax.supernet import Network

CELL = "[('conv_1x1', 0, 2), ('none', 1, 2), ('sep_conv_3x3', 2, 3), ('none', 0, 3)]"
GENOTYPE = f"normal={CELL},\n reduction={CELL}"

INSTANCE = ResNet18(num_classes=7)


def makes_a_module(num_classes: int, depth: int, name_of_it="x", wide: bool = False):
    assert (depth, name_of_it, wide) == (3, "y", True)
    return MobileNetV2(num_classes=num_classes)


def makes_a_number(num_classes):
    return num_classes


def takes_anything(**options):
    assert options == {"a": 1, "b": "text"}
    return INSTANCE


def test_names_with_options():
    assert by_name("resnet18", 10) == ResNet18()
    assert by_name("resnet18:width=0.25", 100) == ResNet18(num_classes=100, width=0.25)
    assert by_name(" mobilenet_v2 : width = 2 ", 10) == MobileNetV2(width=2.0)
    assert by_name("resnet18:width=0.25", 10, width=0.5) == ResNet18(width=0.5)
    for name in MODELS:
        assert isinstance(by_name(name, 3), nn.Module)


def test_w_ftt_net():
    network = by_name("w_ftt_net:channels=8", 100)
    assert isinstance(network, Network)
    config = network.config
    assert (config.num_classes, config.channels, config.cells) == (100, 8, 8)
    assert (config.preprocess, config.preprocess_stride2) == ("relu_conv_bn_3x3",) * 2
    assert (config.affine, config.pool_norm, config.batch_norm) == (True, False, "running")
    assert config.dropout == 0
    assert network.architecture == Space().parse(W_FTT_NET)
    assert network == by_name("w_ftt_net", 100, channels=8)


@pytest.mark.parametrize("style", ["text", "json"])
def test_genotypes_of_files(tmp_path, style):
    file = tmp_path / "genotype.json"
    best = {"best": {"genotype": GENOTYPE}, "top": []}
    file.write_text(json.dumps(best) if style == "json" else f"# found\n{GENOTYPE}\n")
    options = "channels=4,cells=3,reductions=1|2,preprocess=sep_conv_3x3"
    network = by_name(f"genotype:{file},{options}", 10)
    assert isinstance(network, Network)
    assert network.architecture == network.space.parse(GENOTYPE)
    assert network.space.nodes == 4
    config = network.config
    assert (config.channels, config.cells, config.reductions) == (4, 3, (1, 2))
    assert (config.preprocess, config.preprocess_stride2) == ("sep_conv_3x3", "skip_connect")
    own = {"channels": 4, "cells": 3, "reductions": (1, 2), "preprocess": "sep_conv_3x3"}
    assert network == by_name(GENOTYPE, 10, **own)


def test_a_searchs_preprocessing_comes_with_its_genotype(tmp_path):
    file = tmp_path / "genotype.json"
    every = "relu_conv_bn_3x3"
    own = {"preprocess": every, "preprocess_stride2": every}
    file.write_text(json.dumps({"best": {"genotype": GENOTYPE}, "network": own}))
    found = by_name(f"genotype:{file},channels=4", 10)
    assert found == by_name(GENOTYPE, 10, channels=4, **own)
    given = by_name(f"genotype:{file},channels=4,preprocess=sep_conv_3x3", 10)
    assert given == by_name(GENOTYPE, 10, channels=4, **(own | {"preprocess": "sep_conv_3x3"}))
    file.write_text(json.dumps({"best": {"genotype": GENOTYPE}, "network": {"preprocess": every}}))
    with pytest.raises(ValueError, match=r"neither genotype text nor a search's genotype\.json"):
        by_name(f"genotype:{file}", 10)


def test_modules_of_ones_own():
    assert by_name("examples.small_cnn:SmallCNN", 10) == SmallCNN()
    path = "ftnas_jax.models.resnet:ResNet18,width=0.1"
    assert by_name(path, 10) == ResNet18(width=0.1)
    assert by_name(f"{__name__}:INSTANCE", 10) is INSTANCE
    options = "depth=3,name_of_it=y,wide=True"
    assert by_name(f"{__name__}:makes_a_module,{options}", 4) == MobileNetV2(num_classes=4)
    assert by_name(f"{__name__}:takes_anything,a=1,b=text", 4) is INSTANCE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "unknown network 'resnet81'; did you mean resnet18?"),
        ("wftt_net:channels=3", "unknown network 'wftt_net'; did you mean w_ftt_net?"),
        ("q", "unknown network 'q'; choose from resnet18, vgg16, mobilenet_v2, w_ftt_net, geno"),
        ("", "unknown network ''; choose from"),
        ("resnet18:widht=2", "resnet18: there is no option 'widht'; its options are width"),
        ("resnet18:2", "resnet18: cannot read '2'; its options are width"),
        ("resnet18:num_classes=2", "resnet18: there is no option 'num_classes'"),
        ("resnet18:name=x", "resnet18: there is no option 'name'"),
        ("resnet18:width=2,width=3", "resnet18: width is given twice"),
        ("resnet18:width=big", "resnet18: width is 'big'; it takes a value like 1.0"),
        ("resnet18:width=-1", "width is -1.0; it multiplies channels and lies above 0"),
        ("resnet18:width=nan", "width is nan; it multiplies channels and lies above 0"),
        ("w_ftt_net:channels=2.5", "w_ftt_net: channels is '2.5'; it takes a value like 20"),
        ("w_ftt_net:channels=0", "network.channels is 0; it is a whole number of at least 1"),
        ("genotype:/nowhere/g.txt", "genotype: cannot read '/nowhere/g.txt': No such file or di"),
        ("genotype:", "genotype: cannot read ''"),
        (GENOTYPE.replace("none", "some"), "unknown operation 'some'; choose from"),
        (f"normal={CELL}", "a genotype reads"),
        ("no_such_module:Net", "network no_such_module:Net: No module named 'no_such_module'"),
        ("examples.small_cnn:Net", "network examples.small_cnn:Net: examples.small_cnn has no 'N"),
        ("examples.small_cnn:P0", "network examples.small_cnn:P0 is no linen module, no class of"),
        ("examples.small_cnn:SmallCNN,width=2", "there is no option 'width'; it has no options"),
        (f"{__name__}:makes_a_module", f"{__name__}:makes_a_module: missing a required argument"),
        (f"{__name__}:makes_a_number", f"{__name__}:makes_a_number gives a int, which is no Flax"),
    ],
)
def test_a_mistake_is_told_in_one_line(name, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        by_name(name, 10)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_genotype(tmp_path):
    file = tmp_path / "g.json"
    file.write_text("{}")
    with pytest.raises(ValueError, match="neither genotype text nor a search"):
        by_name(f"genotype:{file}", 10)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="it is not UTF-8 text"):
        by_name(f"genotype:{file}", 10)


def test_a_file_that_cannot_be_imported_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_nets.py").write_text("import jax\nNet = jax.numpyy.zeros\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"network broken_nets:Net: .*'numpyy'") as error:
        by_name("broken_nets:Net", 10)
    assert "\n" not in str(error.value)


def test_what_is_named_can_be_called():
    """With images alone, and with train, as shapes."""
    images = jax.ShapeDtypeStruct((2, 32, 32, 1), "float32")
    small = by_name(GENOTYPE, 3, cells=1, reductions=(0,), channels=2)
    for model in (small, *(by_name(name, 3) for name in ("resnet18", "vgg16", "mobilenet_v2"))):

        def both(images, model=model):
            variables = model.init(jax.random.key(0), images)
            trained = model.apply(variables, images, train=True, mutable=["batch_stats"])
            return model.apply(variables, images), *trained, variables["batch_stats"]

        logits, training, updated, statistics = jax.eval_shape(both, images)
        assert logits.shape == training.shape == (2, 3)
        assert jax.tree.structure(updated["batch_stats"]) == jax.tree.structure(statistics)
