"""The project's own networks as models on hardware: what fails of them, and at which rate."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ftnas_jax as ft
from ftnas_jax.costs import layer_costs

FALSE_ALARM = 1e-6
SPACE = ft.Space(4, ("skip_connect", "max_pool_3x3", "conv_1x1", "sep_conv_3x3"))
CONFIG = ft.NetworkConfig(channels=4, cells=2, reductions=(1,), dropout=0.0)
CELLS = SPACE.parse(
    "normal=[('max_pool_3x3', 0, 2), ('conv_1x1', 1, 2), ('sep_conv_3x3', 2, 3), "
    "('sep_conv_3x3', 2, 3)], reduction=[('skip_connect', 0, 2), ('sep_conv_3x3', 1, 2), "
    "('max_pool_3x3', 1, 3), ('skip_connect', 2, 3)]"
)
FAULTS = ft.faults.parse(
    "stuck_at:p0=0.1,p1=0.1,layers=!classifier+mibb:p_m=1e-2+bit_flip:rate=0.01,site=activations"
)
IMAGE = (8, 8, 3)
DRAW = ft.Draw(jax.random.key(2))


@pytest.fixture(scope="module")
def chip():
    return ft.on_hardware(ft.Network(CONFIG, SPACE, ft.Hardware()), ft.Hardware(faults=FAULTS))


@pytest.fixture(scope="module")
def args(chip):
    images = jax.random.normal(jax.random.key(0), (4, *IMAGE))
    init = jax.jit(chip.model.init, static_argnums=2)
    return init(jax.random.key(1), images, CELLS), images, CELLS


def compiled(function):
    """`function(variables, images, draw)` of the cells, in one program."""
    return jax.jit(lambda variables, images, draw: function(variables, images, CELLS, draw=draw))


@pytest.fixture(scope="module")
def logits(chip, args):
    return compiled(chip.apply)(*args[:2], DRAW)


def test_apply_is_that_of_the_network_on_this_hardware(chip, args, logits):
    network = chip.model.clone(hardware=chip.hardware)
    np.testing.assert_array_equal(logits, compiled(network.apply)(*args[:2], DRAW))


def test_hardware_without_faults_is_that_of_the_network(chip, args):
    clean = chip.with_hardware(ft.Hardware(faults=()))
    got, expected = (compiled(model.apply)(*args[:2], DRAW) for model in (clean, chip.model))
    np.testing.assert_array_equal(got, expected)


def test_the_sites_are_the_layers_that_cost_something(chip, args):
    """M_l and number of features as `ftnas_jax.costs` counts them."""
    tensors = chip.sites(*args).tensors
    expected = {}
    for cost in layer_costs(CONFIG, SPACE, CELLS, IMAGE)[:-1]:
        path, _, layer = cost.name.rpartition("/")
        # The two halves of a factorized reduction are one layer.
        place = "0" if _is_halves(cost.name) else layer.removeprefix("conv")
        macs, features = expected.get(f"{path}/{place}", (cost.macs_per_feature, 0))
        expected[f"{path}/{place}"] = macs, features + cost.features
    # Of two equal connections the costs count both, and either has a tensor of its own.
    twins = {f"cell0/edge2-3/sep_conv_3x3/{place}" for place in range(4)}
    expected |= {
        name: (macs, count // 2) for name, (macs, count) in expected.items() if name in twins
    }
    expected |= {f"{name}#2": expected[name] for name in twins}
    computed = {
        t.name: (t.macs, int(np.prod(t.shape[1:]))) for t in tensors if t.kind == "features"
    }
    assert computed == expected
    stored = [t.name for t in tensors if t.kind == "stored"]
    assert stored[0] == "input"
    assert {f"cell{c}/node{n}" for c in (0, 1) for n in (2, 3)} | {"pool"} <= set(stored)
    assert len({t.name for t in tensors}) == len(tensors)


def _is_halves(name):
    return name.startswith("cell1/edge0-2/skip_connect")


def test_what_is_observed_is_what_the_network_computes(chip, args, logits):
    """Held tensors follow from what is computed, its length and its maps."""

    def keep(tensor, held):
        codes = ft.faults.apply_maps(
            jnp.clip(jnp.round(held.x * 2.0 ** held.length.astype(jnp.float32)), -128, 127).astype(
                jnp.int32
            ),
            chip.hardware.models(tensor.kind),
            held.maps,
            chip.hardware.format(tensor.kind),
        )
        return codes.astype(jnp.float32) * 2.0 ** -held.length.astype(jnp.float32), held.held

    observed = compiled(functools.partial(chip.observed, keep))
    outputs, seen = observed(*args[:2], DRAW)
    np.testing.assert_array_equal(outputs, logits)
    for name, (expected, held) in seen.items():
        np.testing.assert_array_equal(held, expected, err_msg=name)


def test_the_rates_asked_for_are_those_injected(chip, args):
    """Binomial test of every tensor and model, false alarms at 1e-6 each."""
    table = ft.exposure(chip, *args, key=jax.random.key(3), maps=4)
    assert {row.tensor for row in table.rows} | {"input"} == {
        t.name for t in chip.sites(*args).tensors
    }
    for row in table.rows:
        assert stats.binomtest(row.hits, row.drawn, row.asked).pvalue > FALSE_ALARM, row
        logic = row.faults.startswith("mibb")
        assert row.asked == pytest.approx(1 - 0.99**row.macs if logic else row.asked)
        if row.layer == "classifier":
            assert (row.asked, row.hits) == (0, 0)
    pooled = [row.faults for row in table.rows if "max_pool" in row.tensor]
    assert all(faults.startswith("bit_flip") for faults in pooled)


def test_what_is_not_there_is_refused(chip, args, tmp_path):
    file = tmp_path / "chip.csv"
    file.write_text("layer,position,stuck_at\ncell0/edge0-2/sep_conv_3x3,0,max\n")
    for faults, message in (
        (
            ft.faults.MiBB(layers="!stemm"),
            "mibb: no layer that it acts on is called 'stemm'; did you mean stem?",
        ),
        (
            ft.faults.DefectMap(str(file)),
            "defect_map: no layer that it acts on is called 'cell0/edge0-2/sep_conv",
        ),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011, the text is compared below
            chip.with_hardware(ft.Hardware(faults=faults)).apply(*args)
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="call the supernet with an Architecture"):
        ft.exposure(chip, *args[:2], args[2].to_array(), key=jax.random.key(0))


def test_a_defect_map_sticks_its_cells(chip, args, tmp_path):
    file = tmp_path / "chip.csv"
    file.write_text("layer,position,stuck_at\nstem,5,max\nstem,7,0\n")
    own = chip.with_hardware(ft.Hardware(faults=ft.faults.DefectMap(str(file))))

    def see(chip):
        keep = functools.partial(chip.observed, lambda tensor, held: (held.x, held.held))
        return compiled(keep)(*args[:2], DRAW)[1]["stem/conv0/kernel"]

    w, held = (np.asarray(a).ravel() for a in see(own))
    step = np.min(np.abs(held[held != 0]))
    sound = ft.Hardware(own.hardware.weights)
    quantized = see(chip.with_hardware(sound))[1]
    changed = np.flatnonzero(held != np.ravel(quantized))
    assert set(changed) <= {5, 7}
    assert held[7] == 0
    assert abs(held[5]) >= np.abs(w).max() - step
    assert dataclasses.replace(own.hardware, faults=()) == sound


BATCHES = tuple(scale * jax.random.normal(jax.random.key(7), (4, *IMAGE)) for scale in (0.5, 2.0))


@pytest.fixture(scope="module")
def frozen(chip, args):
    sound = chip.with_hardware(ft.Hardware())
    calls = [(args[0], images, CELLS) for images in BATCHES]
    return ft.calibrate(sound, calls).with_hardware(chip.hardware)


def seen_by(chip, variables, images, draw=ft.CLEAN):
    """(as computed, as held, fraction length, maps) of every tensor."""

    def run(variables, images):
        return chip.observed(lambda _, held: tuple(held[:4]), variables, images, CELLS, draw=draw)[
            1
        ]

    return jax.jit(run)(variables, images)


def codes_of(x, length):
    return np.round(np.asarray(x, np.float64) * 2.0 ** int(length))


def test_frozen_lengths_are_the_largest_for_which_no_batch_overflows(chip, args, frozen):
    seen = [seen_by(chip, args[0], images) for images in BATCHES]
    features = {t.name for t in chip.sites(*args).tensors if t.kind != "weights"}
    assert frozen.lengths.keys() == features
    assert any("#2" in name for name in features)
    for name, length in frozen.lengths.items():
        own = np.concatenate([np.ravel(one[name][0]) for one in seen])
        for finer, fits in ((0, True), (1, False)):
            codes = codes_of(own, length + finer)
            assert (codes.min() >= -128 and codes.max() <= 127) == fits, name


def test_features_are_held_by_their_frozen_lengths(args, frozen):
    """Images larger than any of the calibration saturate, and faults change nobody's length."""
    models = frozen.hardware.models("features")
    seen, saturated = seen_by(frozen, args[0], 4 * BATCHES[1], DRAW), 0
    for name, length in frozen.lengths.items():
        x, held, used, maps = seen[name]
        assert int(used) == int(length)
        codes = codes_of(x, length)
        saturated += np.sum((codes < -128) | (codes > 127))
        faulty = jnp.asarray(np.clip(codes, -128, 127).astype(np.int32))
        faulty = ft.faults.apply_maps(faulty, models, maps, ft.FixedPoint(8))
        np.testing.assert_array_equal(held, np.asarray(faulty) * 2.0 ** -int(length), err_msg=name)
    assert saturated


def test_lengths_that_are_those_of_the_batch_change_nothing(chip, args):
    """Neither outputs nor gradients: what is frozen by a batch is what the batch itself has."""
    variables, images = args[0], BATCHES[0]
    sound = chip.with_hardware(ft.Hardware())
    own = ft.calibrate(sound, [(variables, images, CELLS)])

    def loss(chip):
        run = functools.partial(chip.apply, images=images, architecture=CELLS)
        return jax.jit(jax.value_and_grad(lambda variables: jnp.sum(jnp.sin(run(variables)))))

    jax.tree.map(np.testing.assert_array_equal, loss(own)(variables), loss(sound)(variables))


def test_lengths_that_cannot_be_frozen_are_refused(chip, args, frozen):
    def trace(chip, architecture):
        jax.eval_shape(lambda variables: chip.apply(variables, args[1], architecture), args[0])

    wrong = ft.on_hardware(chip.model, ft.Hardware(), lengths={"typo": jnp.int32(3)})
    with pytest.raises(ValueError, match=r"a fraction length of 'typo', which is no feature"):
        trace(wrong, CELLS)
    with pytest.raises(ValueError, match=r"^to freeze fraction lengths, call the supernet with an"):
        trace(frozen, CELLS.to_array())
    with pytest.raises(ValueError, match=r"calibrate again$"):
        frozen.with_hardware(ft.Hardware(features=ft.FixedPoint(4)))
