"""Single faults against a NumPy loop that flips every bit there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

import ftnas_jax as ft
from ftnas_jax.campaigns.held_weights import flip
from ftnas_jax.campaigns.single import SingleFaults, draw_distinct
from ftnas_jax.campaigns.subject import as_subject
from ftnas_jax.checkpoints import RunError

KEY = 5


def _flipped(w: np.ndarray, place: int, bit: int) -> np.ndarray:
    """w as 8-bit two's complement codes at its fraction length, one bit flipped (float64)."""
    # Largest l with no overflow: round(w 2^l) within -128..127.
    fitting = (
        n for n in range(-20, 30) if not ((w * 2.0**n < -128.5) | (w * 2.0**n >= 127.5)).any()
    )
    length = max(fitting)
    codes = np.rint(w.astype(np.float64) * 2.0**length).astype(np.int64).ravel()
    byte = np.uint8(codes[place] & 0xFF) ^ np.uint8(1 << bit)
    codes[place] = np.int64(byte.view(np.int8))
    return (codes * 2.0**-length).reshape(w.shape)


@jax.jit
def _logits(w: jax.Array) -> jax.Array:
    """Logits by features of 8 bits and these weights."""
    chip = ft.on_hardware(small.linear, ft.Hardware(weights=None))
    return chip({"w": w}, jnp.asarray(small.data()[0]))


def _classes(w: np.ndarray) -> np.ndarray:
    return np.argmax(np.asarray(_logits(w.astype(np.float32))), -1)


@pytest.fixture(scope="module")
def brute() -> np.ndarray:
    """Images whose class changes, for every weight and bit: int [weights, 8]."""
    w = small.parameters()["w"]
    held = _flipped(w, 0, 0)
    held.ravel()[0] = _flipped(_flipped(w, 0, 0), 0, 0).ravel()[0]  # flipped back: all codes sound
    sound = _classes(held)
    return np.array(
        [[(_classes(_flipped(w, i, b)) != sound).sum() for b in range(8)] for i in range(w.size)]
    )


def _table(**options):
    return ft.single_faults(
        small.linear, small.parameters(), small.data(), key=jax.random.key(KEY), **options
    )


def test_a_sample_of_everything_counts_what_a_loop_counts(brute):
    table = _table(by=("bit",), margin=1e-4)
    for bit, row in enumerate(table.rows):
        assert (row.drawn, row.stratum.population) == (48, 48)
        assert row.critical == (brute[:, bit] > 0).sum()
        assert row.share.low == row.share.estimate == row.share.high
        assert row.changed == pytest.approx(brute[:, bit].mean() / small.IMAGES)
    assert table.share.estimate == pytest.approx((brute > 0).mean())
    assert table.population == brute.size


def test_a_tolerance_lets_some_images_change(brute):
    (row,) = _table(by=(), margin=1e-4, tolerance=0.05).rows
    assert row.critical == (brute > 0.05 * small.IMAGES).sum()


def test_a_sample_has_leveugles_size_and_its_interval_holds_the_truth(brute):
    table = _table(by=("layer",), margin=0.1)
    (row,) = table.rows
    n = brute.size * 1.96**2 / 4 / (0.1**2 * (brute.size - 1) + 1.96**2 / 4)
    assert row.drawn == int(np.ceil(n))
    truth = (brute > 0).mean()
    assert row.share.low <= truth <= row.share.high
    assert table.share.low <= truth <= table.share.high


def test_more_faults_are_added_to_those_that_are_there(tmp_path):
    _table(by=("bit",), margin=0.2, workdir=tmp_path)
    first = (tmp_path / "chips.csv").read_text().splitlines()
    again = _table(by=("bit",), margin=0.2, workdir=tmp_path)
    assert (tmp_path / "chips.csv").read_text().splitlines() == first
    finer = _table(by=("bit",), margin=0.1, workdir=tmp_path)
    assert finer.rows[0].drawn > again.rows[0].drawn
    assert str(finer) == str(_table(by=("bit",), margin=0.1))


def _two(parameters: dict, images: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(jnp.dot(images, parameters["a"]))
    return jnp.dot(hidden, parameters["b"])


def test_faults_of_other_weights_are_refused_in_the_directory(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"a": (small.PIXELS, 5), "b": (5, small.CLASSES)}
    own = {name: rng.standard_normal(shape).astype("f") for name, shape in shapes.items()}
    options = {"key": jax.random.key(KEY), "by": (), "margin": 0.2, "workdir": tmp_path}
    table = ft.single_faults(_two, own, small.data(), weights="a", **options)
    assert table.population == 8 * small.PIXELS * 5
    for other in ("b", ""):
        with pytest.raises(RunError, match="population was") as caught:
            ft.single_faults(_two, own, small.data(), weights=other, **options)
        assert "\n" not in str(caught.value)
    again = ft.single_faults(_two, own, small.data(), weights="a", **options)
    assert str(again) == str(table)


def _looped(parameters: dict, images: jax.Array) -> jax.Array:
    hidden = jax.lax.scan(lambda x, w: (jnp.dot(x, w), None), images, parameters["stack"])[0]
    return jnp.dot(hidden, parameters["w"])


def test_a_stack_that_a_loop_goes_over_is_refused_and_others_are_not():
    own = small.parameters() | {"stack": np.stack([np.eye(small.PIXELS, dtype=np.float32)] * 2)}
    options = {"key": jax.random.key(KEY), "by": (), "margin": 0.2}
    with pytest.raises(ValueError, match="the hardware holds stack turn by turn") as told:
        ft.single_faults(_looped, own, small.data(), **options)
    assert "\n" not in str(told.value)
    table = ft.single_faults(_looped, own, small.data(), weights="w", **options)
    assert table.population == 8 * own["w"].size


CELLS = (
    "normal=[('conv_1x1', 0, 2), ('conv_1x1', 1, 2), ('sep_conv_3x3', 2, 3), ('conv_1x1', 0, 3)], "
    "reduction=[('skip_connect', 1, 2), ('sep_conv_3x3', 0, 2), ('conv_1x1', 2, 3), "
    "('conv_1x1', 2, 3)]"
)


@pytest.mark.parametrize("encoding", ["twos_complement", "sign_magnitude"])
def test_one_bit_of_what_cells_hold_is_flipped_and_nothing_else(encoding):
    """Kernels of all edges lie in one parameter, and have fraction lengths of their own."""
    network = ft.models.by_name(CELLS, 3, channels=2, cells=2, reductions=(1,))
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    variables = jax.jit(network.init)(jax.random.key(0), images)
    hardware = ft.Hardware(ft.FixedPoint(8, encoding))
    subject = as_subject(network, variables, hardware)
    job = SingleFaults(subject, (images, np.zeros(2, np.int32)), ("layer",), jax.random.key(1), 0.2)
    leaves = sorted({part.leaf for part in job._parts})

    @jax.jit
    def held(variables, fault):
        flipped = flip(variables, leaves, fault, hardware.weights)
        seen = subject.chip.observed(lambda tensor, held: (tensor.kind, held), flipped, images)[1]
        return {
            name: h.held
            for name, (kind, h) in seen.items()
            if kind == "weights" and "#" not in name  # equal connections have the same weights
        }

    def arrays(variables, fault):
        return {name: np.asarray(w, np.float64) for name, w in held(variables, fault).items()}

    nowhere = np.array([-1, 0, 0, 0], np.int32)
    sound, quantized = (arrays(v, nowhere) for v in (variables, job.subjects[0].variables))
    for name, w in sound.items():
        np.testing.assert_array_equal(quantized[name], w)
    assert {part.name: part.size for part in job._parts} == {n: w.size for n, w in sound.items()}
    layers = {part.layer for part in job._parts}
    assert {"classifier", "stem", "cell0/edge0-3/conv_1x1", "cell1/edge2-3/conv_1x1"} <= layers
    for stratum in job._strata:
        (fault,) = job._fault_numbers(subject, stratum, [0])
        now = arrays(job.subjects[0].variables, fault)
        (name,) = (name for name, w in sound.items() if np.any(w != now[name]))
        assert name.startswith(f"{stratum.layer}/")
        before, after = (np.rint(a[name].ravel() * 2.0 ** fault[3]) for a in (sound, now))
        (place,) = np.flatnonzero(before != after)
        assert abs(after[place] - before[place]) in _changes(before[place], fault[2], encoding)


def _changes(code: float, bit: int, encoding: str) -> tuple[float, ...]:
    """By how much a code may change where a bit of its word flips; the sign is the highest."""
    if encoding == "sign_magnitude" and bit == 7:
        return (2 * abs(code),)
    return (2.0**bit,)


def test_without_any_fault_there_is_no_table():
    with pytest.raises(ValueError, match=r"no fault of single_flip.* was drawn yet"):
        _table(by=("bit",), stop=lambda: True)


@pytest.mark.parametrize("population", [50, 2**22 + 7])
def test_draws_are_distinct_and_more_of_them_begin_alike(population):
    few, many = (draw_distinct(population, count, np.random.default_rng(0)) for count in (20, 50))
    np.testing.assert_array_equal(many[:20], few)
    assert len(set(many.tolist())) == 50
    assert 0 <= many.min() <= many.max() < population


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ("chip",)}, "by layer, by bit"),
        ({"margin": 2.0}, "margin is 2.0"),
        ({"tolerance": 1.0}, "tolerance is 1.0"),
        ({"hardware": ft.Hardware(weights=None)}, "need a fixed point format"),
        ({"weights": "v"}, "no weight has a name by weights='v'; there are w"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _table(**options)
