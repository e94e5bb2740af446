"""Models that make no sense are refused in one line."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftnas_jax.faults import (
    BitBias,
    BitFlip,
    DefectMap,
    Drift,
    LogNormal,
    MiBB,
    Only,
    ReciprocalNormal,
    StuckAt,
    StuckBits,
)

NAN, INF = float("nan"), float("inf")
A_RATE = "a rate lies in [0, 1]"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MiBB(-1e-9), f"mibb: p_m is -1e-09; {A_RATE}"),
        (lambda: MiBB(1.5), f"mibb: p_m is 1.5; {A_RATE}"),
        (lambda: MiBB(NAN), f"mibb: p_m is nan; {A_RATE}"),
        (lambda: MiBB(0.1, "cubic"), "mibb: form is 'cubic'; choose compound or linear"),
        (lambda: MiBB(per="day"), "mibb: per is 'day'; choose image, batch or chip"),
        (lambda: BitBias(-0.1), f"bit_bias: rate is -0.1; {A_RATE}"),
        (lambda: BitBias(NAN), f"bit_bias: rate is nan; {A_RATE}"),
        (lambda: BitFlip(1.01), f"bit_flip: rate is 1.01; {A_RATE}"),
        (lambda: BitFlip(NAN), f"bit_flip: rate is nan; {A_RATE}"),
        (
            lambda: BitFlip(site="features"),
            "bit_flip: site is 'features'; choose weights or activations",
        ),
        (lambda: BitFlip(bits="some"), "bit_flip: bits is 'some'; give all, or as in 7 or 0-6"),
        (lambda: BitFlip(bits=""), "bit_flip: bits is ''; give all, or as in 7 or 0-6"),
        (lambda: BitFlip(bits="-1"), "bit_flip: bits is '-1'; give all, or as in 7 or 0-6"),
        (lambda: BitFlip(bits="5-3"), "bit_flip: bits is '5-3'; give all, or as in 7 or 0-6"),
        (lambda: BitFlip(bits="1-2-3"), "bit_flip: bits is '1-2-3'; give all, or as in 7 or 0-6"),
        (lambda: StuckAt(-0.1, 0.2), f"stuck_at: p0 is -0.1; {A_RATE}"),
        (lambda: StuckAt(0.1, 2), f"stuck_at: p1 is 2; {A_RATE}"),
        (lambda: StuckAt(NAN, 0.1), f"stuck_at: p0 is nan; {A_RATE}"),
        (lambda: StuckAt(0.6, 0.5), f"stuck_at: p0 + p1 is 1.1; {A_RATE}"),
        (lambda: StuckAt(cells="three"), "stuck_at: cells is 'three'; choose one or pair"),
        (lambda: StuckBits(0.1, -0.1), f"stuck_bits: p1 is -0.1; {A_RATE}"),
        (lambda: StuckBits(0.6, 0.5), f"stuck_bits: p0 + p1 is 1.1; {A_RATE}"),
        (lambda: StuckBits(bits="-"), "stuck_bits: bits is '-'; give all, or as in 7 or 0-6"),
        (lambda: Drift(-0.1), "drift: nu is -0.1; it is at least 0"),
        (lambda: Drift(INF), "drift: nu is inf; it is at least 0"),
        (lambda: Drift(spread=-1), "drift: spread is -1; it is at least 0"),
        (lambda: Drift(spread=NAN), "drift: spread is nan; it is at least 0"),
        (lambda: Drift(time=0.5), "drift: time is 0.5; it is at least 1"),
        (lambda: Drift(time=INF), "drift: time is inf; it is at least 1"),
        (lambda: Drift(per="batch"), "drift: per is 'batch'; a chip draws its exponents once"),
        (lambda: Only((), 0), "only: groups is (); give a tuple of patterns"),
        (lambda: Only("stem", 0), "only: groups is 'stem'; give a tuple of patterns"),
        (lambda: Only(("stem", "a|"), 0), "only: groups is 'a|', with an empty pattern"),
        (lambda: Only(("a", "b"), 2), "only: selected is 2; the places of groups are 0-1"),
        (lambda: Only(("a", "b"), -1), "only: selected is -1; the places of groups are 0-1"),
        (lambda: LogNormal(-0.1), "log_normal: sigma is -0.1; it is at least 0"),
        (lambda: LogNormal(INF), "log_normal: sigma is inf; it is at least 0"),
        (lambda: ReciprocalNormal(NAN), "reciprocal_normal: sigma is nan; it is at least 0"),
        (
            lambda: ReciprocalNormal(smallest=0.0),
            "reciprocal_normal: smallest is 0.0; it lies between 0 and 1",
        ),
        (
            lambda: ReciprocalNormal(smallest=1),
            "reciprocal_normal: smallest is 1; it lies between 0 and 1",
        ),
        (
            lambda: StuckAt(accumulated=0.99),
            "stuck_at: accumulated is 0.99; M_p is at least 1",
        ),
        (lambda: BitFlip(accumulated=INF), "bit_flip: accumulated is inf; M_p is at least 1"),
        (lambda: BitFlip(accumulated=NAN), "bit_flip: accumulated is nan; M_p is at least 1"),
        (lambda: MiBB(accumulated=2), "mibb: faults drawn per image do not accumulate"),
        (
            lambda: StuckBits(per="batch", accumulated=2),
            "stuck_bits: faults drawn per batch do not accumulate",
        ),
    ],
)
def test_errors_say_what_is_wrong_in_one_line(build, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011, the whole text is compared below
        build()
    assert str(error.value) == message


def test_given_faults_have_no_rate_that_could_be_0_elsewhere(tmp_path):
    file = tmp_path / "chip.csv"
    file.write_text("layer,position,stuck_at\nstem,0,max\n")
    with pytest.raises(ValueError, match=r"^defect_map: only sets rates of 0, and it has no rate"):
        DefectMap(str(file), only=Only(("stem",), 0))


@pytest.mark.parametrize("model", [StuckAt, StuckBits])
def test_rates_that_add_up_to_one_are_accepted(model):
    @given(st.floats(0, 1))
    @settings(deadline=None)
    def check(p0):
        assert model(p0, 1 - p0).p0 == p0

    check()


def test_arrays_are_let_through():
    """Whether they are rates is not known where a program is traced."""
    assert MiBB(jnp.float32(2)).p_m == 2
    traced = jax.eval_shape(lambda p: StuckAt(p, p, accumulated=p), jnp.float32(0.9))
    assert traced.p0.shape == ()
