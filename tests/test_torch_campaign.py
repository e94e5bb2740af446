"""The PyTorch ResNet-18 of the campaign benchmark computes what our model on hardware does.

Statistical tests have p-values; with their fixed seeds they pass, and each of them would fail
correct code with another seed once in a million times. Where the faults of features fall, and with
which values, is tested in `test_torch_peer`.
"""

import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest
import scipy.stats

torch = pytest.importorskip("torch")

import ftnas_jax as ft  # noqa: E402
from benchmarks.campaigns import Work  # noqa: E402
from benchmarks.torch_hardware import Pass  # noqa: E402
from benchmarks.torch_resnet import TorchChips, TorchResNet18  # noqa: E402
from ftnas_jax.faults import BitBias, MiBB, StuckAt  # noqa: E402

torch.set_num_threads(1)  # tests run side by side

ALPHA = 1e-6
TINY = Work("mibb:p_m=0", width=1 / 16, images=4, batch=4, side=16)


def peer_logits(hardware, variables, faulty=True):
    network, run = TorchResNet18(variables, hardware), faulty_pass(hardware, faulty)
    images = network.quantized(TINY.test_set()[0])
    return network.logits(images, network.hold(run), run).numpy()


def faulty_pass(hardware, faulty=True):
    return Pass(hardware, faulty, torch.Generator().manual_seed(0))


def our_logits(hardware):
    """(variables, whether faults act) → logits, compiled."""
    chip = ft.on_hardware(TINY.model(), hardware)

    @functools.partial(jax.jit, static_argnames="faulty")
    def run(variables, faulty):
        draw = ft.Draw(jax.random.key(0), faulty)
        return chip.apply(variables, TINY.test_set()[0], draw=draw)

    return run


@pytest.mark.parametrize(
    ("model", "passes"),
    [(MiBB(), (False,)), (StuckAt(0.0, 1.0), (False, True))],
    ids=["mibb", "stuck_at"],
)
def test_logits_are_ours_clean_and_stuck(model, passes):
    """Also with all weights stuck at the bound of their sign, which leaves nothing to chance.

    Sums in another order differ in their last bits, so of some 30,000 features in a pass now and
    then one lies near enough to a tie to get another code; see `test_torch_peer`. So: never more
    than the noise of 8 bits, and nothing but float32 rounding in three passes of four.
    """
    hardware = ft.Hardware(faults=model)
    on_hardware = our_logits(hardware)
    equal = []
    for seed in range(8):
        variables = TINY.variables(seed)
        exact = np.asarray(TINY.model().apply(variables, TINY.test_set()[0]))
        noise = deviation(exact, on_hardware(variables, False))
        for faulty in passes:
            expected = np.asarray(on_hardware(variables, faulty))
            found = deviation(peer_logits(hardware, variables, faulty), expected)
            assert found < noise
            equal.append(found < 1e-5 * np.abs(expected).max())
    assert np.mean(equal) >= 0.75


def deviation(logits, expected) -> float:
    return float(np.sqrt(np.mean((logits - np.asarray(expected)) ** 2)))


def test_without_weights_the_bias_is_left():
    variables = TINY.variables()
    logits = peer_logits(ft.Hardware(faults=StuckAt(1.0, 0.0)), variables)
    bias = variables["params"]["classifier"]["bias"]
    np.testing.assert_array_equal(logits, np.broadcast_to(bias, logits.shape))


def test_weights_of_every_layer_stick_at_their_rates():
    hardware = ft.Hardware(faults=StuckAt(0.067, 0.013))
    network = TorchResNet18(dataclasses.replace(TINY, width=0.25).variables(), hardware)
    network._factors.fill_(1)  # leaves codes
    sound = network.hold(faulty_pass(hardware, False))
    chip = network.hold(faulty_pass(hardware))
    assert len(chip) == 21
    for path, codes in sound.items():
        nonzero, small = codes != 0, codes.abs() < 127
        lost, grown = (chip[path] == 0) & nonzero, (chip[path].abs() == 127) & small
        for hits, may, rate in ((lost, nonzero, 0.067), (grown, small, 0.013)):
            count, size = hits.sum().item(), may.sum().item()
            assert scipy.stats.binomtest(count, size, rate).pvalue > ALPHA
        assert torch.all((chip[path] == codes) | lost | grown)
        assert torch.all(chip[path] * codes >= 0)


def test_each_chip_has_faults_of_its_own():
    hardware = ft.Hardware(faults=StuckAt())
    network, run = TorchResNet18(TINY.variables(), hardware), faulty_pass(hardware)
    first, second = (network.hold(run)["stem"] for _ in range(2))
    assert torch.any(first != second)


@dataclasses.dataclass(frozen=True)
class Recorder(MiBB):
    """Hits nothing and notes M_l of every site."""

    seen: list = dataclasses.field(default_factory=list, compare=False)

    def probability(self, place, fmt=None):
        self.seen.append(place.macs)
        return 0.0


def test_sites_are_ours():
    variables, images = TINY.variables(), TINY.test_set()[0]
    recorder = Recorder()
    peer_logits(ft.Hardware(faults=recorder), variables)
    chip = ft.on_hardware(TINY.model(), ft.Hardware(faults=MiBB()))
    kinds = ("computed", "features")
    expected = [t.macs for t in chip.sites(variables, images).tensors if t.kind in kinds]
    assert collections.Counter(recorder.seen) == collections.Counter(expected)


def test_features_of_a_chip_fail():
    variables = TINY.variables()
    clean, faulty = (peer_logits(ft.Hardware(faults=MiBB(p)), variables) for p in (0.0, 1e-3))
    assert np.all(np.any(clean != faulty, axis=1))  # of every image


@pytest.mark.parametrize("faults", ["stuck_at:p0=0.067,p1=0.013", "mibb:p_m=0.0001"])
def test_chips_are_timed(faults):
    side = TorchChips(dataclasses.replace(TINY, faults=faults, batch=2))
    torch.set_num_threads(1)
    assert side.turn(3) > 0
    assert len(side.correct()) == 3
    assert all(0 <= correct <= TINY.images for correct in side.correct())


def test_what_the_peer_does_not_have():
    for unknown in (BitBias(), StuckAt(cells="pair"), MiBB(per="chip"), MiBB(layers="stem")):
        with pytest.raises(ValueError, match="has only mibb and stuck_at, both everywhere"):
            TorchResNet18(TINY.variables(), ft.Hardware(faults=unknown))
    with pytest.raises(ValueError, match="in fixed point only"):
        TorchResNet18(TINY.variables(), ft.Hardware(weights=None))
