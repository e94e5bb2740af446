import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ftnas_jax.space import (
    INPUT_NODES,
    PRIMITIVES,
    Architecture,
    Connection,
    Space,
    edge_index,
    target_node,
)

FALSE_ALARM = 1e-6

W_FTT_NET = (
    "normal_0=[('relu_conv_bn_3x3', 0, 2), ('relu_conv_bn_5x5', 0, 2), ('conv_1x1', 1, 3), "
    "('dil_conv_3x3', 1, 3), ('sep_conv_3x3', 1, 4), ('sep_conv_3x3', 0, 4), "
    "('max_pool_3x3', 2, 5), ('relu_conv_bn_5x5', 1, 5)], "
    "reduce_1=[('skip_connect', 0, 2), ('relu_conv_bn_5x5', 1, 2), ('dil_conv_3x3', 2, 3), "
    "('sep_conv_3x3', 0, 3), ('max_pool_3x3', 1, 4), ('conv_1x1', 3, 4), "
    "('dil_conv_3x3', 4, 5), ('skip_connect', 2, 5)]"
)


@st.composite
def spaces(draw):
    """Spaces of 3 to 7 nodes with any ordered subset of the primitives."""
    primitives = draw(st.lists(st.sampled_from(PRIMITIVES), min_size=1, unique=True))
    return Space(draw(st.integers(3, 7)), tuple(primitives))


@st.composite
def spaces_and_architectures(draw):
    space = draw(spaces())
    op = st.integers(0, len(space.primitives) - 1)
    cells = [
        tuple(
            Connection(draw(st.integers(0, target_node(c) - 1)), draw(op))
            for c in range(space.connections)
        )
        for _ in range(2)
    ]
    return space, Architecture(*cells)


def is_valid(space: Space, architecture: Architecture) -> bool:
    try:
        space.check(architecture)
    except ValueError:
        return False
    return True


def assert_uniform(counts, false_alarm: float = FALSE_ALARM):
    assert stats.chisquare(np.ravel(counts)).pvalue > false_alarm


# Size


def test_size_is_the_papers():
    assert f"{Space().size():.1e}" == "9.5e+24"


@pytest.mark.parametrize(
    "space", [Space(3, PRIMITIVES[:1]), Space(3, PRIMITIVES[:2]), Space(4, PRIMITIVES[:1])]
)
def test_size_counts_the_valid_architectures(space):
    """Try every pair of lists of connections, those to nodes not yet there included."""
    ends = itertools.product(range(space.nodes), range(len(space.primitives)))
    connections = [Connection(*end) for end in ends]
    cells = list(itertools.product(connections, repeat=space.connections))
    valid = sum(is_valid(space, Architecture(*pair)) for pair in itertools.product(cells, repeat=2))
    assert valid == space.size()


@pytest.mark.parametrize("nodes", range(3, 9))
def test_edges_are_numbered_once_each(nodes):
    targets = range(INPUT_NODES, nodes)
    numbers = [edge_index(source, target) for target in targets for source in range(target)]
    assert sorted(numbers) == list(range(Space(nodes).edges))


def test_edge_index_can_be_traced():
    assert jax.jit(edge_index)(3, 5) == edge_index(3, 5)


# Text and arrays


@pytest.mark.parametrize("style", ["ftnas", "aw_nas"])
@given(case=spaces_and_architectures())
@settings(max_examples=50, deadline=None)
def test_text_round_trip(style, case):
    space, architecture = case
    assert space.parse(space.format(architecture, style)) == architecture


@given(case=spaces_and_architectures())
@settings(max_examples=50, deadline=None)
def test_array_round_trip(case):
    space, architecture = case
    array = architecture.to_array()
    assert array.dtype == np.int32
    assert array.shape == (2, space.connections, 2)
    assert Architecture.from_array(array) == architecture


def test_published_genotype_reads_and_prints_back():
    space = Space()
    architecture = space.parse(W_FTT_NET)
    assert space.format(architecture, "aw_nas") == W_FTT_NET
    assert architecture.normal[0] == Connection(0, PRIMITIVES.index("relu_conv_bn_3x3"))
    assert architecture.reduction[6] == Connection(4, PRIMITIVES.index("dil_conv_3x3"))


def test_parse_takes_cells_and_nodes_in_any_order():
    space = Space(4, ("none", "conv_1x1"))
    ordered = (
        "normal=[('none', 0, 2), ('conv_1x1', 1, 2), ('none', 2, 3), ('none', 0, 3)], "
        "reduction=[('none', 0, 2), ('none', 0, 2), ('none', 1, 3), ('conv_1x1', 1, 3)]"
    )
    shuffled = (
        'reduce_2 = [("none",0,2),("none",1,3),("none",0,2),("conv_1x1",1,3)]\n'
        'normal_0 = [("none",2,3),("none",0,2),("conv_1x1",1,2),("none",0,3)]'
    )
    assert space.parse(shuffled) == space.parse(ordered)
    assert space.format(space.parse(shuffled)) == ordered


# Errors

NORMAL = "normal=[('none', 0, 2), ('none', 0, 2)]"
REDUCTION = "reduction=[('none', 0, 2), ('none', 1, 2)]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a genotype reads .* found the cells \\[\\] in ''"),
        ("sep_conv_3x3 everywhere", "found the cells \\[\\] in 'sep_conv_3x3 everywhere'"),
        (NORMAL, "found the cells \\['normal'\\]"),
        (f"{NORMAL}, {NORMAL}", "found the cells \\['normal', 'normal'\\]"),
        (f"{NORMAL}, {REDUCTION}, {REDUCTION}", "found the cells"),
        (f"{NORMAL}, sideways=[('none', 0, 2)]", "found the cells \\['normal', 'sideways'\\]"),
        (f"normal=[('none', 0, 2)], {REDUCTION}", "normal cell: node 2 has 1 connections, not 2"),
        (f"normal=[], {REDUCTION}", "normal cell: node 2 has 0 connections, not 2"),
        (
            f"{NORMAL}, reduction=[('none', 0, 2), ('none', 0, 2), ('none', 1, 2)]",
            "reduction cell: node 2 has 3 connections, not 2",
        ),
        (
            f"normal=[('none', 0, 2), ('none', 0, 3)], {REDUCTION}",
            r"normal cell: \(none, 0, 3\) feeds node 3, .* are 2 to 2",
        ),
        (
            f"normal=[('none', 0, 2), ('none', 2, 2)], {REDUCTION}",
            "normal cell: node 2 takes its input from node 2; .* nodes 0 to 1",
        ),
        (f"normal=[('none', 0, 2), ('none', -1, 2)], {REDUCTION}", "from node -1"),
        (
            f"normal=[('none', 0, 2), ('conv_9x9', 0, 2)], {REDUCTION}",
            "unknown operation 'conv_9x9'; choose from none, conv_1x1",
        ),
        (  # a primitive, but not of this space
            f"normal=[('none', 0, 2), ('sep_conv_3x3', 0, 2)], {REDUCTION}",
            "unknown operation 'sep_conv_3x3'; choose from none, conv_1x1",
        ),
        (
            f"normal=[('none', 0, 2), ('none', 0)], {REDUCTION}",
            r"normal cell: cannot read .*'none' 0.* in the genotype",
        ),
    ],
)
def test_parse_says_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message) as error:
        Space(3, ("none", "conv_1x1")).parse(text)
    assert "\n" not in str(error.value)


def test_check_says_what_is_wrong():
    space = Space(3, ("none", "conv_1x1"))
    good = (Connection(0, 0), Connection(1, 1))
    space.check(Architecture(good, good))
    with pytest.raises(ValueError, match="reduction cell: 1 connections, but 3 nodes need 2"):
        space.check(Architecture(good, good[:1]))
    with pytest.raises(ValueError, match="normal cell: operation 2 of 2"):
        space.check(Architecture((good[0], Connection(0, 2)), good))
    with pytest.raises(ValueError, match="normal cell: operation -1 of 2"):
        space.check(Architecture((good[0], Connection(0, -1)), good))


@pytest.mark.parametrize("shape", [(8, 2), (3, 8, 2), (2, 8, 3), (1, 2, 8, 2)])
def test_arrays_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="has shape"):
        Architecture.from_array(np.zeros(shape, np.int32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nodes": 2}, "space.nodes is 2; a cell needs at least 3 nodes"),
        ({"primitives": ()}, "space.primitives is empty"),
        ({"primitives": ("none", "conv_9x9")}, "unknown operation 'conv_9x9'"),
        ({"primitives": ("none", "none")}, "names an operation twice"),
    ],
)
def test_spaces_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Space(**fields)


def test_space_is_hashable_whatever_names_its_primitives():
    assert hash(Space(6, list(PRIMITIVES))) == hash(Space())  # pyright: ignore


# Random architectures


def random_architectures(space: Space, seed: int, count: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(space.random))(keys))


@pytest.mark.parametrize("space", [Space(), Space(3, ("none",)), Space(4, PRIMITIVES[3:7])])
def test_random_architectures_are_valid(space):
    arrays = random_architectures(space, seed=1, count=300)
    assert arrays.dtype == np.int32
    for array in arrays:
        space.check(Architecture.from_array(array))


def test_random_is_uniform_over_a_small_space():
    """A chi-square over all 256 architectures; false alarm 1e-6."""
    space = Space(3, PRIMITIVES[:2])
    arrays = random_architectures(space, seed=2, count=20_000)
    codes = arrays.reshape(len(arrays), -1) @ (1 << np.arange(8))
    assert_uniform(np.bincount(codes, minlength=space.size()))


def test_random_has_uniform_marginals_over_the_papers_space():
    """A chi-square for each of the 32 decisions; false alarm 1e-6 together."""
    space = Space()
    arrays = random_architectures(space, seed=3, count=20_000)
    for cell, place in itertools.product(range(2), range(space.connections)):
        inputs, ops = arrays[:, cell, place].T
        assert_uniform(np.bincount(inputs, minlength=target_node(place)), FALSE_ALARM / 32)
        assert_uniform(np.bincount(ops, minlength=11), FALSE_ALARM / 32)


def test_lists_of_concatenated_nodes_are_read_past():
    space = Space(nodes=4)
    text = space.format(space.first(), style="aw_nas")
    assert space.parse(f"{text}, normal_0_concat=[2, 3], reduce_1_concat=[3, 2]") == space.first()
    with pytest.raises(ValueError, match=r"normal_0_concat is \[3\], but .* the nodes 2 to 3"):
        space.parse(f"{text}, normal_0_concat=[3]")


def test_text_beside_the_cells_is_refused():
    space = Space(nodes=3)
    with pytest.raises(ValueError, match="cannot read 'and more' in the genotype"):
        space.parse(space.format(space.first()) + " and more")
