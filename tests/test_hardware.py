"""Weights and features on hardware: quantized, then faulty, then saturated.

Statistical tests have a fixed seed and a false-alarm rate of 1e-6 for each assertion.
"""

import dataclasses
import functools
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ftnas_jax.faults import (
    BitFlip,
    FaultModel,
    LogNormal,
    MiBB,
    Place,
    ReciprocalNormal,
    StuckAt,
)
from ftnas_jax.fixed_point import FixedPoint, saturate
from ftnas_jax.nn import hardware as hardware_module
from ftnas_jax.nn.hardware import (
    CLEAN,
    Draw,
    Hardware,
    draw_maps,
    exposures_at,
    hold_weights,
    write_features,
)

FALSE_ALARM = 1e-6
SIGNED = FixedPoint(8, "sign_magnitude")
SHAPE = (4, 8, 8, 6)

RRAM = Hardware(weights=SIGNED, faults=(StuckAt(0.067, 0.013),))
FPGA = Hardware(faults=(MiBB(1e-3),))  # 72 MACs: 6.9 %, the dense path
RARE = Hardware(faults=(MiBB(1e-4),))  # 72 MACs: 0.7 %, the sparse path
BOTH = Hardware(weights=SIGNED, faults=(StuckAt(0.1, 0.1), MiBB(5e-3)))


@dataclasses.dataclass(frozen=True)
class AddSteps(FaultModel):
    """A fault model without chance: `steps` more on every code, saturated."""

    steps: int = 1
    site: str = dataclasses.field(default="features", kw_only=True)
    name: ClassVar[str] = "add_steps"

    def exposure(self, place):
        return np.int32(self.steps)

    def sample(self, keys, shape, fmt, exposure):
        del fmt
        return jnp.full((len(keys), *shape), exposure, jnp.int32)

    def apply(self, codes, fault_map, fmt):
        assert codes.dtype == jnp.int32
        return saturate(codes + fault_map, fmt)


@dataclasses.dataclass(frozen=True)
class Negate(FaultModel):
    """A fault model without chance, which does not commute with `AddSteps`."""

    site: ClassVar[str] = "features"
    name: ClassVar[str] = "negate"

    def exposure(self, place):
        return np.int8(1)

    def sample(self, keys, shape, fmt, exposure):
        del fmt
        return jnp.full((len(keys), *shape), exposure, jnp.int8)

    def apply(self, codes, fault_map, fmt):
        return saturate(jnp.where(fault_map == 1, -codes, codes), fmt)


def draw_of(seed=0, faulty=True):
    return Draw(jax.random.key(seed), faulty)


def features(seed=0, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def maps_of(kind, hardware, draw, shape=SHAPE, macs=72):
    return draw_maps(
        hardware, kind, draw, shape, exposures_at(hardware, kind, Place("layer", macs))
    )


def through(kind, x, hardware, draw, macs=72):
    """What the hardware holds for x at `weights` or `features`, in one pass."""
    write = hold_weights if kind == "weights" else write_features
    return write(x, hardware, maps_of(kind, hardware, draw, x.shape, macs))


def quantized(x, low=-128, high=127):
    """Codes and length of minimal overflow, for ordinary numbers; float64 holds them exactly."""
    for length in range(30, -30, -1):
        codes = np.round(np.asarray(x, np.float64) * 2.0**length)
        if low <= codes.min() and codes.max() <= high:
            return codes, length
    raise AssertionError("out of the range that this oracle searches")


CASES = [("weights", RRAM), ("features", FPGA), ("features", RARE)]
every_case = pytest.mark.parametrize(("kind", "hardware"), CASES, ids=["rram", "fpga", "fpga_rare"])


@pytest.mark.parametrize("seed", [0, 1])
def test_sound_hardware_quantizes(seed):
    x = features(seed)
    codes, length = quantized(x)
    assert maps_of("features", FPGA, CLEAN) is None
    np.testing.assert_array_equal(write_features(x, FPGA, None), codes * 2.0**-length)
    np.testing.assert_array_equal(hold_weights(x, FPGA, None), codes * 2.0**-length)
    codes, length = quantized(x, low=-127)
    np.testing.assert_array_equal(hold_weights(x, RRAM, None), codes * 2.0**-length)


@pytest.mark.parametrize("kind", ["weights", "features"])
@pytest.mark.parametrize("steps", [1, -3, 100, -300])
def test_the_order_is_compute_quantize_fault_saturate(kind, steps):
    x = features()
    codes, length = quantized(x)
    hardware = Hardware(faults=(AddSteps(steps, site=kind),))
    got = through(kind, x, hardware, draw_of())
    # The length is that of the sound tensor; what leaves the range is cut, not scaled again.
    np.testing.assert_array_equal(got, np.clip(codes + steps, -128, 127) * 2.0**-length)


def test_models_act_in_the_order_of_the_tuple():
    x = features()
    codes, length = quantized(x)
    for faults, expected in [
        ((AddSteps(100), Negate()), -np.clip(codes + 100, -128, 127)),
        ((Negate(), AddSteps(100)), np.minimum(-codes, 127) + 100),
    ]:
        got = through("features", x, Hardware(faults=faults), draw_of())
        np.testing.assert_array_equal(got, np.clip(expected, -128, 127) * 2.0**-length)


def test_models_act_on_their_own_site_only():
    hardware = Hardware(weights=SIGNED, faults=(StuckAt(1.0, 0.0), AddSteps(1)))
    assert hardware.models("weights") == (StuckAt(1.0, 0.0),)
    assert hardware.models("features") == (AddSteps(1),)
    x = features()
    assert not np.any(through("weights", x, hardware, draw_of()))
    codes, length = quantized(x)
    written = through("features", x, hardware, draw_of())
    np.testing.assert_array_equal(written, np.minimum(codes + 1, 127) * 2.0**-length)


def test_models_at_one_site_draw_on_their_own():
    """Binomial tests of two alike models, alone and together; false alarms at 1e-6 each."""
    hardware = Hardware(faults=(MiBB(0.3), MiBB(0.3)))
    first, second = map(np.asarray, maps_of("features", hardware, draw_of(), (1, 2**15), macs=1))
    for hits, rate in ((first, 0.3), (second, 0.3), (first * second, 0.09)):
        assert stats.binomtest(np.count_nonzero(hits), hits.size, rate).pvalue > FALSE_ALARM


def test_a_model_added_behind_leaves_the_maps_of_those_before():
    alone = maps_of("features", Hardware(faults=(MiBB(0.3),)), draw_of())
    both = maps_of("features", Hardware(faults=(MiBB(0.3), AddSteps(1))), draw_of())
    np.testing.assert_array_equal(alone[0], both[0])


def test_stuck_weights_are_zero_or_at_the_bound_of_their_sign():
    """Binomial tests of both kinds in 2^16 weights, false alarms at 1e-6 each."""
    w = features(shape=(2**16,))
    codes, length = quantized(w, low=-127)
    held = np.asarray(through("weights", w, RRAM, draw_of()), np.float64) * 2.0**length
    bound = np.where(codes < 0, -127, 127)
    assert np.all((held == codes) | (held == 0) | (held == bound))
    telling = (codes != 0) & (codes != bound)
    for hits, rate in ((held == 0, 0.067), (held == bound, 0.013)):
        pvalue = stats.binomtest(int(hits[telling].sum()), int(telling.sum()), rate).pvalue
        assert pvalue > FALSE_ALARM


@pytest.mark.parametrize("macs", [9, 72, 720])
def test_features_fail_at_the_rate_of_their_macs(macs):
    """Binomial test of 2^16 features, false alarms at 1e-6."""
    x = jnp.linspace(-0.4, 0.4, 2**16).at[0].set(1.0)[None]  # codes of ±26 in steps of 2^-6
    hardware = Hardware(faults=(MiBB(1e-3),))
    sound = np.asarray(through("features", x, hardware, CLEAN, macs), np.float64) * 64
    faulty = np.asarray(through("features", x, hardware, draw_of(), macs), np.float64) * 64
    moved = (faulty - sound)[0, 1:]
    p = 1 - (1 - 1e-3) ** macs
    assert stats.binomtest(np.count_nonzero(moved), moved.size, p).pvalue > FALSE_ALARM
    inside = (faulty[0, 1:] > -128) & (faulty[0, 1:] < 127)
    steps = {sign * 2**alpha for sign in (1, -1) for alpha in range(8)}
    assert set(moved[inside].tolist()) <= steps | {0}
    assert np.min(faulty) >= -128
    assert np.max(faulty) <= 127


@every_case
def test_static_and_traced_passes_agree_bit_by_bit(kind, hardware):
    x = features()
    run = jax.jit(lambda x, draw: through(kind, x, hardware, draw))
    sound = np.asarray(jax.jit(lambda x: through(kind, x, hardware, CLEAN))(x))
    faulty_run = jax.jit(lambda x, key: through(kind, x, hardware, Draw(key)))
    faulty = np.asarray(faulty_run(x, jax.random.key(3)))
    np.testing.assert_array_equal(run(x, draw_of(3, jnp.bool_(False))), sound)
    np.testing.assert_array_equal(run(x, draw_of(3, jnp.bool_(True))), faulty)
    assert np.any(sound != faulty)


@every_case
def test_a_site_that_is_not_active_is_sound(kind, hardware):
    exposures = exposures_at(hardware, kind, Place("layer", 72))

    def maps(active):
        return draw_maps(hardware, kind, draw_of(), SHAPE, exposures, active)

    run, always = jax.jit(maps), maps_of(kind, hardware, draw_of())
    for wanted, got in ((False, run(False)), (True, run(True))):
        for one, drawn in zip(got, always, strict=True):
            assert one.dtype == drawn.dtype
            np.testing.assert_array_equal(one, drawn if wanted else jnp.zeros_like(drawn))


@every_case
def test_every_chip_of_a_batch_equals_that_chip_alone(kind, hardware):
    x = features()

    def chip(key, faulty):
        return through(kind, x, hardware, Draw(key, faulty))

    faulty = jnp.array([True, False, True, True])
    keys, alone = jax.random.split(jax.random.key(0), 4), jax.jit(chip)
    each = [np.asarray(alone(k, f)) for k, f in zip(keys, faulty, strict=True)]
    assert len({row.tobytes() for row in each}) == 4
    # Where the pass itself is batched, vmap selects between a key and itself, which the check of
    # key reuse takes for a second use.
    with jax.debug_key_reuse(False):
        batch = jax.jit(jax.vmap(chip))(jax.random.split(jax.random.key(0), 4), faulty)
    np.testing.assert_array_equal(np.asarray(batch), np.stack(each))


@every_case
@pytest.mark.parametrize("traced", [False, True])
def test_the_gradient_passes_straight_through(kind, hardware, traced):
    x, cotangent = features(), features(7)
    faulty = jnp.bool_(True) if traced else True

    @jax.jit
    def value_and_gradient(x, key):
        y, vjp = jax.vjp(lambda x: through(kind, x, hardware, Draw(key, faulty)), x)
        return y, vjp(cotangent)[0]

    y, gradient = value_and_gradient(x, jax.random.key(3))
    assert np.any(y != x)
    np.testing.assert_array_equal(gradient, cotangent)


def test_hardware_without_formats_leaves_floats():
    bare, x = Hardware(weights=None, features=None), features()
    for draw in (CLEAN, draw_of(), draw_of(0, jnp.bool_(True))):
        np.testing.assert_array_equal(through("weights", x, bare, draw), x)
        np.testing.assert_array_equal(through("features", x, bare, draw), x)
    half = Hardware(weights=SIGNED, features=None, faults=(StuckAt(1.0, 0.0),))
    np.testing.assert_array_equal(through("features", x, half, draw_of()), x)
    assert not np.any(through("weights", x, half, draw_of()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": None, "faults": (StuckAt(),)}, "stuck_at: faults need weights in fixed point"),
        ({"features": None, "faults": (MiBB(),)}, "mibb: faults need features in fixed point"),
        (
            {"features": None, "faults": (StuckAt(), MiBB())},
            "mibb: faults need features in fixed point",
        ),
        (
            {"weights": FixedPoint(8), "faults": (StuckAt(),)},
            "stuck_at: crossbars hold signs apart; weights need a sign_magnitude encoding",
        ),
        (
            {"faults": (LogNormal(), StuckAt())},
            "stuck_at: after log_normal weights are no codes any more; name it before",
        ),
        (
            {"faults": (BitFlip(bits="8"),)},
            "bit_flip: bits is '8'; a code of 8 bits has 0-7",
        ),
        ({"gradients": "none"}, "gradients is 'none'; choose straight_through or masked"),
    ],
)
def test_faults_that_hardware_cannot_have_are_refused(fields, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole text is compared below
        Hardware(**fields)
    assert str(error.value) == message


def test_sound_hardware_needs_no_key_and_ignores_it():
    sound, x = Hardware(), features()
    expected = through("features", x, sound, CLEAN)
    np.testing.assert_array_equal(through("features", x, sound, draw_of()), expected)
    np.testing.assert_array_equal(through("weights", x, sound, draw_of()), expected)
    assert CLEAN.at(1, 2) == CLEAN


def test_hardware_with_fixed_rates_is_hashable():
    assert hash(BOTH) == hash(dataclasses.replace(BOTH))
    assert BOTH == dataclasses.replace(BOTH) != RRAM
    run = jax.jit(through, static_argnums=(0, 2))
    expected = through("weights", features(), RRAM, draw_of())
    np.testing.assert_array_equal(run("weights", features(), RRAM, draw_of()), expected)


def test_one_program_serves_a_sweep_of_rates_and_both_passes():
    x = features()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def share_hit(model, draw):
        hardware = Hardware(faults=(model,))
        y = through("features", x, hardware, draw)
        return (y != write_features(x, hardware, None)).mean()

    shares = [
        float(share_hit(MiBB(jnp.float32(p_m)), draw_of(0, jnp.bool_(faulty))))
        for p_m, faulty in ((0.0, True), (1e-3, True), (0.5, True), (0.5, False))
    ]
    assert shares[0] == shares[3] == 0
    assert 0 < shares[1] < shares[2]


def words(draw):
    return tuple(jax.random.key_data(draw.key).tolist())


def test_places_of_a_draw_are_named_by_integers_alone():
    first = [words(draw_of().at(place)) for place in (0, 1, 2)]
    draw = draw_of()
    last = [words(draw.at(place)) for place in (2, 1, 0)]  # from one draw, the other way round
    assert first == last[::-1]
    assert words(draw_of().at(3, 5)) == words(draw_of().at(3).at(5))
    assert words(draw_of()) == words(draw_of().at())
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 3), 5)
    assert words(draw_of().at(3, 5)) == words(Draw(expected))
    grid = {words(draw_of().at(a, b)) for a in range(6) for b in range(6)}
    assert len(grid | set(first)) == 39  # (a, b) is not (b, a), and neither is a place alone


def test_places_may_be_traced_and_the_pass_is_kept():
    traced = jax.jit(lambda draw, place: draw.at(4, place))(draw_of(), jnp.int32(9))
    assert words(traced) == words(draw_of().at(4, 9))
    assert draw_of(faulty=True).at(1).faulty is True
    assert draw_of(faulty=False).at(1).faulty is False
    assert bool(draw_of(faulty=jnp.bool_(False)).at(1).faulty) is False


@every_case
def test_places_and_keys_give_different_faults_and_the_same_ones_again(kind, hardware):
    x = features()
    run = jax.jit(lambda draw, place: through(kind, x, hardware, draw.at(place)))

    def outcome(seed, place):
        return np.asarray(run(draw_of(seed), place)).tobytes()

    assert outcome(0, 1) == outcome(0, 1)
    assert len({outcome(seed, place) for seed in (0, 1) for place in (0, 1, 2)}) == 6


@pytest.mark.parametrize(
    ("weights", "features", "operands"),
    [
        (FixedPoint(8, "sign_magnitude"), FixedPoint(8), jnp.bfloat16),
        (FixedPoint(2), FixedPoint(5), jnp.bfloat16),
        (FixedPoint(9), FixedPoint(9), jnp.bfloat16),
        (FixedPoint(10), FixedPoint(8), jnp.float32),
        (FixedPoint(8), FixedPoint(10), jnp.float32),
        (None, FixedPoint(8), jnp.float32),
        (FixedPoint(8), None, jnp.float32),
    ],
)
def test_matrix_units_take_bfloat16_where_it_holds_all_codes(
    monkeypatch, weights, features, operands
):
    assert Hardware(weights, features).operands == jnp.float32  # on this CPU
    monkeypatch.setattr(hardware_module, "on_cpu", lambda: False)
    assert Hardware(weights, features).operands == operands
    for fmt in (weights, features):
        if fmt is not None and operands == jnp.bfloat16:
            codes = np.arange(fmt.min_code, fmt.max_code + 1) * 2.0**-fmt.bits
            np.testing.assert_array_equal(np.asarray(codes.astype(operands), np.float64), codes)


def test_weights_are_held_as_the_faults_need():
    assert Hardware().weights == FixedPoint(8)
    assert Hardware(faults=BitFlip()).weights == FixedPoint(8)
    assert Hardware(faults=StuckAt()).weights == SIGNED
    assert dataclasses.replace(Hardware(), faults=(LogNormal(),)).weights == SIGNED
    own = FixedPoint(6, "sign_magnitude")
    assert Hardware(own, faults=StuckAt()).weights == own


def test_analog_weights_are_no_operands_of_bfloat16(monkeypatch):
    monkeypatch.setattr(hardware_module, "on_cpu", lambda: False)
    assert Hardware(faults=StuckAt()).operands == jnp.bfloat16
    assert Hardware(faults=(StuckAt(), ReciprocalNormal())).operands == jnp.float32


# When maps are drawn.

FEATURE_MODELS = [MiBB(1e-3), MiBB(5e-3), BitFlip(0.02, site="activations")]


def feature_maps(model, first, count, seed=0):
    hardware = Hardware(faults=model)
    draw = Draw(jax.random.key(seed), first=first)
    return np.asarray(maps_of("features", hardware, draw, (count, *SHAPE[1:]))[0])


@pytest.mark.parametrize("model", FEATURE_MODELS)
def test_the_map_of_an_image_depends_on_its_number_alone(model):
    whole = feature_maps(model, 0, 6)
    assert len({image.tobytes() for image in whole}) == 6
    for first, count in ((0, 1), (1, 2), (3, 3), (5, 1)):
        np.testing.assert_array_equal(feature_maps(model, first, count), whole[first:][:count])


@pytest.mark.parametrize("model", FEATURE_MODELS)
def test_maps_of_a_batch_and_of_a_chip_hit_all_images_alike(model):
    for per in ("batch", "chip"):
        own = dataclasses.replace(model, per=per)
        first, second = feature_maps(own, 0, 4), feature_maps(own, 4, 4)
        assert first.shape == (1, *SHAPE[1:])
        assert np.any(first)
        assert np.array_equal(first, second) == (per == "chip")
        assert not np.array_equal(feature_maps(own, 0, 4, seed=1), first)
    x = features()
    got = through("features", x, Hardware(faults=own), draw_of())
    codes, length = quantized(x)
    expected = own.apply(jnp.asarray(codes, jnp.int32), jnp.asarray(first), FixedPoint(8))
    np.testing.assert_array_equal(got, np.asarray(expected) * 2.0**-length)


@pytest.mark.parametrize("model", [StuckAt(0.1, 0.1), BitFlip(0.02)])
def test_weights_fail_once_a_chip_or_anew_for_every_batch(model):
    w = features()

    def held(per, first):
        hardware = Hardware(faults=dataclasses.replace(model, per=per))
        draw = Draw(jax.random.key(0), first=first)
        return np.asarray(through("weights", w, hardware, draw))

    np.testing.assert_array_equal(held("chip", 0), held("chip", 8))
    assert not np.array_equal(held("batch", 0), held("batch", 8))


def test_a_batch_split_over_devices_has_the_faults_of_the_whole():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("data")
    for model in (*FEATURE_MODELS, MiBB(1e-3, per="batch"), MiBB(1e-3, per="chip")):
        whole, parts = (Hardware(faults=model, batch_axis=axis) for axis in (None, "data"))

        def run(x, hardware=parts):
            return through("features", x, hardware, draw_of())

        x = features(shape=(8, *SHAPE[1:]))
        mapped = jax.shard_map(run, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
        np.testing.assert_array_equal(jax.jit(mapped)(x), run(x, whole))


# Masked gradients.


@pytest.mark.parametrize(
    ("kind", "faults"),
    [("weights", (StuckAt(0.2, 0.1), BitFlip(0.01))), ("features", (MiBB(5e-3),))],
)
def test_masked_gradients_are_zero_where_a_fault_hits(kind, faults):
    hardware = Hardware(faults=faults, gradients="masked")
    x, cotangent = features(), features(7)
    y, vjp = jax.vjp(lambda x: through(kind, x, hardware, draw_of()), x)
    straight = dataclasses.replace(hardware, gradients="straight_through")
    np.testing.assert_array_equal(y, through(kind, x, straight, draw_of()))
    hit = functools.reduce(np.logical_or, [m != 0 for m in maps_of(kind, hardware, draw_of())])
    assert 0 < hit.mean() < 1
    np.testing.assert_array_equal(vjp(cotangent)[0], np.where(hit, 0, cotangent))


def test_variation_masks_no_gradient():
    hardware = Hardware(faults=(StuckAt(0.5, 0), LogNormal(0.3)), gradients="masked")
    w = features()
    gradient = jax.grad(lambda w: through("weights", w, hardware, draw_of()).sum())(w)
    stuck = maps_of("weights", hardware, draw_of())[0]
    np.testing.assert_array_equal(gradient, np.where(stuck != 0, 0, 1))
