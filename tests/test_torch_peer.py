"""The PyTorch peer does what our network does: each is an oracle for the other.

Statistical tests have p-values; with their fixed seeds they pass, and each of them would fail
correct code with another seed once in a million times.
"""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

torch = pytest.importorskip("torch")

from benchmarks import torch_hardware  # noqa: E402
from benchmarks.kernels import Kernel, _at_once  # noqa: E402
from benchmarks.torch_controller import Policy, Reinforce, Sample  # noqa: E402
from benchmarks.torch_hardware import Pass, failing_positions  # noqa: E402
from benchmarks.torch_operations import Convolution, operation  # noqa: E402
from benchmarks.torch_peer import TorchKernels, TorchSearch  # noqa: E402
from ftnas_jax.controller import Controller  # noqa: E402
from ftnas_jax.faults import BitBias, MiBB, StuckAt  # noqa: E402
from ftnas_jax.fixed_point import FixedPoint  # noqa: E402
from ftnas_jax.nn.fault_table import FaultTable  # noqa: E402
from ftnas_jax.nn.hardware import Draw, Hardware  # noqa: E402
from ftnas_jax.search_config import SearchConfig  # noqa: E402
from ftnas_jax.space import PRIMITIVES, Architecture, Space, edge_index, target_node  # noqa: E402
from ftnas_jax.supernet import PREPROCESS, Network, NetworkConfig  # noqa: E402

torch.set_num_threads(1)  # tests run side by side

ALPHA = 1e-6
SPACE = Space(nodes=4)
FLOAT = Hardware(weights=None, features=None)
MEAN, STD = np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.25, 0.3], np.float32)


def _covering_architectures():
    """Three architectures that together have every operation in either cell; those of the
    reduction cell at stride 2, and one of them at stride 1, too."""
    rng = np.random.default_rng(0)
    array = np.zeros((3, 2, SPACE.connections, 2), np.int32)
    for cell in range(2):
        ops = np.append(rng.permutation(len(PRIMITIVES)), PRIMITIVES.index("dil_conv_3x3"))
        array[:, cell, :, 1] = ops.reshape(3, -1)
        for connection in range(SPACE.connections):
            sources = 2 if cell == 1 else target_node(connection)
            array[:, cell, connection, 0] = rng.integers(sources, size=3)
    array[2, 1, -1, 0] = 2
    return tuple(Architecture.from_array(a) for a in array)


COVERING = _covering_architectures()


def config(hardware, space=SPACE, **network):
    settings = {"num_classes": 5, "channels": 4, "cells": 3, "reductions": (1,), "dropout": 0.0}
    return SearchConfig(
        space=space, network=NetworkConfig(**(settings | network)), hardware=hardware
    )


def ours(config):
    return Network(config.network, config.space, config.hardware)


def images(batch=4):
    return np.random.default_rng(0).normal(size=(batch, 8, 8, 3)).astype(np.float32)


def random_parameters(config):
    """Parameters of ours, without running the initializers."""
    first = config.space.first()
    shapes = jax.eval_shape(lambda k: ours(config).init(k, images(), first), jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), shapes["params"]
    )


def peer(config, params=None):
    search = TorchSearch(config, MEAN, STD)
    search.load(random_parameters(config) if params is None else params)
    return search


# Against our network


@functools.partial(jax.jit, static_argnames=("network", "architecture"))
def value_and_gradients(network, params, x, labels, architecture):
    def loss(params):
        logits = network.apply({"params": params}, x, architecture)
        log_probs = jax.nn.log_softmax(logits)
        return -jnp.mean(jnp.take_along_axis(log_probs, labels[:, None], axis=1)), logits

    gradients, logits = jax.grad(loss, has_aux=True)(params)
    return logits, gradients


SHORT = {"cells": 2, "reductions": (0,)}  # in half the time to compile
WIDE = SHORT | {"preprocess": "relu_conv_bn_3x3", "preprocess_stride2": "relu_conv_bn_3x3"}


@pytest.mark.parametrize(
    ("architecture", "network"),
    [
        (COVERING[0], {}),
        (COVERING[1], WIDE | {"affine": True, "pool_norm": False}),
        (COVERING[2], SHORT | {"preprocess": "sep_conv_3x3", "affine": True}),
    ],
    ids=["plain", "wide", "separable"],
)
def test_logits_and_gradients_are_ours(architecture, network):
    settings = config(FLOAT, **network)
    params, labels = random_parameters(settings), np.arange(4) % 3
    expected, expected_gradients = value_and_gradients(
        ours(settings), params, images(), labels, architecture
    )
    search = peer(settings, params)
    logits = search.logits(images(), architecture, False)
    np.testing.assert_allclose(logits.detach(), expected, atol=2e-5 * np.abs(expected).max())
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
    assert_same_gradients(search.gradients(), expected_gradients)


def assert_same_gradients(got, expected):
    """To float32 rounding: of a parameter's own gradient and of the sums that make it up.

    Some gradients are 0 but for rounding, such as an offset's in front of a BatchNorm.
    """
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
    ):
        tolerance = 2e-5 * np.abs(b).max() + 5e-6 * largest
        np.testing.assert_allclose(a, b, atol=tolerance, err_msg=jax.tree_util.keystr(path))


def test_logits_at_8_bits_are_ours_clean_and_stuck():
    """Also with all weights stuck at the bound of their sign, which leaves nothing to chance.

    Sums in another order differ in their last bits, which is about 1e-5 of a step, so of some
    30,000 values in a pass now and then one lies near enough to a tie to get another code. What
    follows it differs by a part of the noise that 8 bits make anyway. So: never more than that
    noise, and nothing but float32 rounding in three passes of four.
    """
    hardware = Hardware(
        FixedPoint(8, "sign_magnitude"), FixedPoint(8), (StuckAt(0.0, 1.0, layers="!classifier"),)
    )
    settings = config(hardware, **SHORT)
    params = random_parameters(settings)

    @jax.jit
    def ours_at_8_bits(architecture, faulty):
        draw = Draw(jax.random.key(0), faulty)
        return ours(settings).apply({"params": params}, images(), architecture, draw)

    search, exact = peer(settings, params), peer(config(FLOAT, **SHORT), params)
    equal = []
    for seed in range(10):
        architecture = SPACE.random(jax.random.key(seed))
        noise = _deviation(
            exact.logits(images(), architecture, False), ours_at_8_bits(architecture, False)
        )
        for faulty in (False, True):
            expected = ours_at_8_bits(architecture, faulty)
            deviation = _deviation(search.logits(images(), architecture, faulty), expected)
            assert deviation < noise
            equal.append(deviation < 1e-5 * np.abs(expected).max())
    assert np.mean(equal) >= 0.75


def _deviation(logits, expected) -> float:
    return float(np.sqrt(np.mean((logits.detach().numpy() - np.asarray(expected)) ** 2)))


# Faults


@pytest.mark.parametrize("rate", [0.0, 1e-4, 0.03, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("turns", ["one", "many"])
def test_positions_fail_at_their_rate(monkeypatch, rate, turns):
    if turns == "many":  # as where the gaps drawn first do not reach the end
        ends = torch_hardware._failure_ends
        monkeypatch.setattr(
            torch_hardware, "_failure_ends", lambda count, *args: ends(max(1, count // 50), *args)
        )
    size = 50_000
    positions = failing_positions(size, rate, torch.Generator().manual_seed(0)).numpy()
    assert np.all(np.diff(positions) > 0)
    assert positions.size == 0 or (positions[0] >= 0 and positions[-1] < size)
    assert scipy.stats.binomtest(len(positions), size, rate).pvalue > ALPHA
    halves = int(np.sum(positions < size // 2))
    assert not len(positions) or scipy.stats.binomtest(halves, len(positions)).pvalue > ALPHA


def test_mibb_hits_features_at_its_rate_with_all_biases_alike():
    model, macs = MiBB(1e-4), 500
    run = faulty_pass(model)
    f = channels_last(np.zeros((16, 8, 32, 32), np.float32))
    f[0, 0, 0, 0] = 127 / 64  # fixes the step at 1/64
    codes = 64 * run.write_(f, macs).flatten()[1:].numpy()
    hits = codes[codes != 0]
    rate = 1 - (1 - 1e-4) ** macs
    assert scipy.stats.binomtest(len(hits), len(codes), rate).pvalue > ALPHA
    counts = collections.Counter(hits.tolist())
    biases = [sign * 2.0**place for place in range(8) for sign in (1, -1)]
    biases = [min(bias, 127.0) for bias in biases]  # saturation
    assert set(counts) == set(biases)
    assert scipy.stats.chisquare([counts[bias] for bias in biases]).pvalue > ALPHA


def test_features_saturate():
    f = torch.full((2, 2), 127 / 64)
    faulty = faulty_pass(MiBB(1.0)).write_(f, 1)
    assert torch.all((faulty <= 127 / 64) & (faulty >= -1 / 64))


def test_weights_stick_at_their_rates():
    model = StuckAt(0.067, 0.013)
    run = faulty_pass(model)
    rng = np.random.default_rng(0)
    codes = rng.choice([-5, 0, 3], size=(40, 40, 5, 5)).astype(np.float32)
    codes[0, 0, 0, 0] = 127  # fixes the step at 1/64
    kernels = [channels_last(codes / 64), channels_last(codes / 32)]
    run.hold(kernels, [])
    for kernel, step in zip(kernels, (64, 32), strict=True):
        held = step * run.held[kernel].numpy()
        for original, bound in ((-5, -127), (3, 127)):
            here = held[codes == original]
            assert set(here) == {original, 0, bound}
            for value, rate in ((0, model.p0), (bound, model.p1)):
                hits = int(np.sum(here == value))
                assert scipy.stats.binomtest(hits, len(here), rate).pvalue > ALPHA
        assert set(held[codes == 0]) == {0, 127}


def test_sound_weights_and_clean_passes_have_no_faults():
    kernel = torch.linspace(-1, 1, 127)[:, None]
    for faulty, kernels, sound in ((True, [], [kernel]), (False, [kernel], [])):
        run = faulty_pass(StuckAt(0.5, 0.5))
        run.faulty = faulty
        run.hold(kernels, sound)
        assert torch.all((run.held[kernel] - kernel).abs() <= 1 / 128)


def channels_last(array):
    return torch.tensor(array).contiguous(memory_format=torch.channels_last)


def faulty_pass(*models):
    hardware = Hardware(FixedPoint(8, "sign_magnitude"), FixedPoint(8), models)
    return Pass(hardware, True, torch.Generator().manual_seed(0))


# Sites


@dataclasses.dataclass(frozen=True)
class Recorder(MiBB):
    """Hits nothing and notes M_l of every site."""

    seen: list = dataclasses.field(default_factory=list, compare=False)

    def probability(self, place, fmt=None):
        self.seen.append(place.macs)
        return 0.0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", [*PRIMITIVES, *PREPROCESS, "conv_bn_3x3"])
def test_sites_of_an_operation_are_ours(name, stride):
    channels, out_channels = (4, 4) if name in PRIMITIVES else (6, 4)
    recorder = Recorder()
    table = FaultTable(Hardware(), ((name, stride),), channels, out_channels, ((name,),))
    module = operation(name, channels, out_channels, stride=stride, affine=False, pool_norm=True)
    if module is None:
        assert (table.macs, table.kernels) == ([[]], [0])
        return
    convolutions = [m for m in module.modules() if isinstance(m, Convolution)]
    run = faulty_pass(recorder)
    run.hold([conv.kernel for conv in convolutions], [])
    x = channels_last(np.ones((2, channels, 8, 8), np.float32))
    assert module(x, run).shape == (2, out_channels, 8 // stride, 8 // stride)
    assert recorder.seen == table.macs[0]
    assert sum(conv.kernel.numel() for conv in convolutions) == table.kernels[0]


def test_sites_of_a_network_are_ours():
    recorder = Recorder()
    search = peer(config(Hardware(faults=(recorder,)), preprocess="sep_conv_3x3"))
    search.logits(images(), COVERING[0], True)

    def sites(name, channels, out_channels, stride=1):
        table = FaultTable(Hardware(), ((name, stride),), channels, out_channels, ((name,),))
        return table.macs[0]

    expected = sites("conv_bn_3x3", 3, 12)
    inputs = [(12, 12, 4, False, 1), (12, 8, 8, True, 1), (8, 16, 8, False, 2)]
    for older, newer, channels, reduction, stride in inputs:
        name = "sep_conv_3x3" if stride == 1 else "skip_connect"
        expected += sites(name, older, channels, stride) + sites("sep_conv_3x3", newer, channels)
        for source, op in COVERING[0][reduction]:
            at = 2 if reduction and source < 2 else 1
            expected += sites(PRIMITIVES[op], channels, channels, at)
    assert collections.Counter(recorder.seen) == collections.Counter(expected)


# Steps


def test_a_weight_step_is_sgd_on_what_was_sampled():
    """Clipped gradient plus decay, on the parameters that had a gradient, all others untouched."""
    settings = dataclasses.replace(
        config(FLOAT), alpha_l=0.0, crop_padding=0, flip=False, gradient_clip=0.01
    )
    search = peer(settings)
    pixels = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(4)
    before = {name: p.detach().clone() for name, p in search.network.named_parameters()}
    logits = search.logits((pixels / 255 - MEAN) / STD, COVERING[0], False)
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
    gradients = {name: p.grad for name, p in search.network.named_parameters()}
    norm = torch.sqrt(sum(g.square().sum() for g in gradients.values() if g is not None))
    assert norm > 0.01
    search.weight_step(pixels, labels, COVERING[0])
    used = 0
    for name, p in search.network.named_parameters():
        step = 0.0
        if gradients[name] is not None:
            step = 0.05 * (gradients[name] * 0.01 / norm + 1e-4 * before[name])
            used += 1
        torch.testing.assert_close(p.detach(), before[name] - step, atol=1e-6, rtol=1e-4)
    assert used < len(before) / 2


@pytest.mark.parametrize("model", [MiBB(1e-3), StuckAt(layers="!classifier")])
def test_steps_run_with_faults(model):
    settings = config(Hardware(FixedPoint(8, "sign_magnitude"), FixedPoint(8), (model,)))
    search = peer(settings)
    pixels = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    before = [p.detach().clone() for p in search.policy.parameters()]
    search.weight_step(pixels, np.arange(4), COVERING[1].to_array())
    edges = search.network.cell0.edges
    for place, (source, op) in enumerate(COVERING[1].normal):
        module = edges[edge_index(source, target_node(place))]
        if PRIMITIVES[op] in module:
            assert all(p.grad is not None for p in module[PRIMITIVES[op]].parameters())
    for _ in range(2):  # at the first, the baseline is the reward itself
        search.controller_step(pixels, np.arange(4))
    after = list(search.policy.parameters())
    assert all(torch.any(a != b) for a, b in zip(after, before, strict=True))


def test_crops_move_and_mirror_the_normalized_image():
    settings = dataclasses.replace(config(FLOAT), crop_padding=2)
    pixels = np.random.default_rng(2).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    x = peer(settings)._augment(pixels).permute(0, 2, 3, 1).numpy()
    padded = np.pad((pixels / 255 - MEAN) / STD, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for image, source in zip(x, padded, strict=True):
        crops = [source[i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
        crops += [crop[:, ::-1] for crop in crops]
        assert min(np.abs(image - crop).max() for crop in crops) < 1e-4


def test_the_controller_is_ours():
    """Scores of architectures, and parameters after three updates."""
    space = Space(nodes=4)
    controller = Controller(space)
    state = jax.jit(controller.init_state)(jax.random.key(0))
    score, update = jax.jit(controller.score), jax.jit(controller.reinforce_update)
    policy = Policy(space, controller.config)
    policy.load(state.params)
    reinforce = Reinforce(policy)
    for architecture, reward in zip(COVERING, (0.3, 0.7, 0.0), strict=True):
        sample = policy(architecture)
        scored = score(state.params, architecture.to_array())
        np.testing.assert_allclose(sample.log_prob.item(), scored.log_prob, rtol=1e-5)
        np.testing.assert_allclose(sample.entropy.item(), scored.entropy, rtol=1e-5)
        reinforce.update(sample, reward)
        state, _ = update(state, architecture.to_array(), reward)
    loaded = Policy(space, controller.config)
    loaded.load(state.params)
    for p, expected in zip(policy.parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(p, expected, atol=2e-5, rtol=0)


def test_sampled_architectures_are_of_the_space():
    search = TorchSearch(config(FLOAT), MEAN, STD)
    samples: list[Sample] = [search.policy() for _ in range(20)]
    for sample in samples:
        SPACE.check(sample.architecture)
    assert len({sample.architecture for sample in samples}) == 20


# Errors


def test_what_the_peer_does_not_have():
    with pytest.raises(ValueError, match="batch mode"):
        TorchSearch(config(FLOAT, batch_norm="running"), MEAN, STD)
    for unknown in (BitBias(), StuckAt(), MiBB(per="chip"), MiBB(layers="stem")):
        with pytest.raises(ValueError, match=r"the PyTorch peer has only mibb, and stuck_at with"):
            TorchSearch(config(Hardware(faults=unknown)), MEAN, STD)
    run = faulty_pass()
    with pytest.raises(FloatingPointError):
        run.write_(torch.full((2, 2), float("nan")))


@pytest.mark.parametrize(
    "kernel",
    [
        Kernel("depthwise", 3, 8, 6),
        Kernel("depthwise", 5, 8, 6, 2, 2),
        Kernel("depthwise", 3, 8, 6, 2, 1),
        Kernel("dense", 1, 8, 6),
        Kernel("dense", 5, 8, 6, 2),
    ],
    ids=str,
)
def test_the_peers_kernels_compute_what_ours_do(kernel):
    x, k, g = kernel.arrays()
    expected = [_at_once(kernel)(*pair) for pair in zip(x, [k] * len(x), g, strict=True)]
    y, dx, _ = expected[0]
    peer = TorchKernels()
    peer.prepare(kernel, "")
    peer.run("")
    own_dx = peer._xs[0].grad.permute(0, 2, 3, 1)
    np.testing.assert_allclose(own_dx, dx, rtol=1e-4, atol=1e-4)
    own_y = peer._run(peer._xs[0], peer._kernel).detach().permute(0, 2, 3, 1)
    np.testing.assert_allclose(own_y, y, rtol=1e-4, atol=1e-4)
    peer._kernel.grad = None
    for a, b in zip(peer._xs, peer._gs, strict=True):
        peer._run(a, peer._kernel).backward(b)
    own_dk = peer._kernel.grad.numpy()
    own_dk = np.moveaxis(own_dk, (0, 1), (-1, -2)).reshape(k.shape)
    np.testing.assert_allclose(own_dk, sum(dk for _, _, dk in expected), rtol=1e-3, atol=1e-2)
