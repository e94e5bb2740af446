import functools
import itertools
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from ftnas_jax.controller import Controller, ControllerConfig, ControllerState
from ftnas_jax.space import PRIMITIVES, Architecture, Space

FALSE_ALARM = 1e-6

# A policy far from uniform, on spaces small enough to list.
SHARP = ControllerConfig(hidden=8, temperature=0.5, init_scale=1.5)
TINY = Controller(Space(3, PRIMITIVES[:2]), SHARP)
TINY_SPACES = [
    Space(3, PRIMITIVES[:2]),
    Space(3, PRIMITIVES[:3]),
    Space(4, PRIMITIVES[:1]),  # node 3 has an input that node 2 has not
]


init = jax.jit(Controller.init, static_argnums=0)
score = jax.jit(Controller.score, static_argnums=0)
score_many = jax.jit(
    lambda controller, params, architectures: jax.vmap(controller.score, (None, 0))(
        params, architectures
    ),
    static_argnums=0,
)
init_state = jax.jit(Controller.init_state, static_argnums=0)
update = jax.jit(Controller.reinforce_update, static_argnums=0)


def every_architecture(space: Space) -> np.ndarray:
    """int32 [size, 2, C, 2]."""
    connections = [
        itertools.product(range(2 + c // 2), range(len(space.primitives)))
        for c in range(space.connections)
    ]
    cells = list(itertools.product(*connections))
    return np.asarray(list(itertools.product(cells, repeat=2)), np.int32)


def score_all(controller: Controller, params):
    """float64 log-probabilities and entropies of the whole space, in its order."""
    architectures = every_architecture(controller.space)
    scores = score_many(controller, params, architectures)
    return np.asarray(scores.log_prob, np.float64), np.asarray(scores.entropy, np.float64)


@functools.partial(jax.jit, static_argnums=(0, 3))
def sample_many(controller: Controller, params, seed: int, count: int):
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.vmap(controller.sample, (None, 0))(params, keys)


# The policy, against an oracle written from the equations


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def oracle(controller: Controller, params, architecture) -> tuple[float, float]:
    """log π(a) and the path's entropy in float64, one decision after the other."""
    log_prob = entropy = 0.0
    for cell in range(2):
        p = jax.tree.map(lambda a, cell=cell: np.asarray(a[cell], np.float64), params)["params"]
        kernel = {name: p["lstm"][name]["kernel"] for name in p["lstm"]}
        bias = {gate: p["lstm"]["h" + gate]["bias"] for gate in "ifgo"}
        h = c = x = np.zeros(controller.config.hidden)
        for node in range(2, controller.space.nodes):
            (in_a, op_a), (in_b, op_b) = architecture[cell][2 * (node - 2) : 2 * (node - 1)]
            for kind, choice in [("node", in_a), ("node", in_b), ("op", op_a), ("op", op_b)]:
                pre = {g: x @ kernel["i" + g] + h @ kernel["h" + g] + bias[g] for g in "ifgo"}
                c = sigmoid(pre["f"]) * c + sigmoid(pre["i"]) * np.tanh(pre["g"])
                h = sigmoid(pre["o"]) * np.tanh(c)
                if kind == "node":
                    logits = np.array(
                        [
                            np.tanh(
                                p["node_embedding"][j] @ p["attend_node"]["kernel"]
                                + h @ p["attend_hidden"]["kernel"]
                            )
                            @ p["attention"]["kernel"][:, 0]
                            for j in range(node)
                        ]
                    )
                else:
                    logits = h @ p["op_logits"]["kernel"]
                probs = np.exp(logits / controller.config.temperature)
                probs /= probs.sum()
                log_prob += np.log(probs[choice])
                entropy -= np.sum(probs * np.log(probs))
                x = p[f"{kind}_embedding"][choice]
    return log_prob, entropy


@pytest.mark.parametrize(
    "controller",
    [Controller(Space()), Controller(Space(5, PRIMITIVES[4:]), SHARP)],
    ids=["paper", "sharp"],
)
def test_log_prob_and_entropy_equal_the_oracle(controller):
    params = init(controller, jax.random.key(0))
    samples = sample_many(controller, params, seed=1, count=5)
    for i in range(5):
        log_prob, entropy = oracle(controller, params, np.asarray(samples.architecture[i]))
        np.testing.assert_allclose(samples.log_prob[i], log_prob, rtol=2e-6)
        np.testing.assert_allclose(samples.entropy[i], entropy, rtol=2e-6)


@pytest.mark.parametrize("space", TINY_SPACES)
def test_probabilities_of_all_architectures_sum_to_one(space):
    controller = Controller(space, SHARP)
    log_probs, _ = score_all(controller, init(controller, jax.random.key(0)))
    assert len(log_probs) == space.size()
    assert np.ptp(log_probs) > 3  # or the test would say little
    assert np.exp(log_probs).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("space", TINY_SPACES)
def test_mean_path_entropy_is_the_entropy_of_the_policy(space):
    controller = Controller(space, SHARP)
    log_probs, entropies = score_all(controller, init(controller, jax.random.key(0)))
    probs = np.exp(log_probs)
    assert probs @ entropies == pytest.approx(-(probs @ log_probs), rel=1e-5)


def test_samples_have_the_exact_frequencies():
    """A chi-square over all 256 architectures, rare ones pooled; false alarm 1e-6."""
    params = init(TINY, jax.random.key(0))
    count = 50_000
    codes_of = lambda arrays: np.asarray(arrays).reshape(len(arrays), -1) @ (1 << np.arange(8))  # noqa: E731
    sampled = codes_of(sample_many(TINY, params, seed=1, count=count).architecture)
    probs = np.zeros(256)
    probs[codes_of(every_architecture(TINY.space))] = np.exp(score_all(TINY, params)[0])

    observed, expected = np.bincount(sampled, minlength=256), count * probs
    rare = expected < 10
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    expected *= count / expected.sum()  # float32 rounding
    assert len(expected) > 30
    assert stats.chisquare(observed, expected).pvalue > FALSE_ALARM


@pytest.mark.parametrize(
    ("space", "config"),
    [
        (Space(), ControllerConfig()),
        (Space(3, ("none",)), SHARP),
        (Space(7, PRIMITIVES[:4]), SHARP),
    ],
    ids=["paper", "smallest", "7 nodes"],
)
def test_samples_are_valid_and_score_as_sampled(space, config):
    controller = Controller(space, config)
    params = init(controller, jax.random.key(0))
    samples = sample_many(controller, params, seed=1, count=200)
    chex.assert_shape(samples.architecture, (200, 2, space.connections, 2))
    assert samples.architecture.dtype == jnp.int32
    for array in np.asarray(samples.architecture):
        space.check(Architecture.from_array(array))
    scores = score_many(controller, params, samples.architecture)
    chex.assert_trees_all_close(scores, samples, rtol=1e-5, atol=1e-5)


def test_a_node_that_does_not_exist_yet_has_probability_zero():
    architecture = every_architecture(TINY.space)[0]
    architecture[0, 0, 0] = 1
    params = init(TINY, jax.random.key(0))
    assert np.isfinite(score(TINY, params, architecture).log_prob)
    wider = Controller(Space(4, PRIMITIVES[:2]), SHARP)
    architecture = np.zeros((2, 4, 2), np.int32)
    architecture[1, 1, 0] = 2  # node 2 from node 2
    assert score(wider, init(wider, jax.random.key(0)), architecture).log_prob == -np.inf


def test_gradients_are_finite():
    """Also where a decision is certain, so that probabilities underflow to 0."""
    controller = Controller(Space(5, PRIMITIVES[:3]), SHARP)
    params = init(controller, jax.random.key(0))

    @jax.jit
    def gradient(params, architecture):
        def objective(params):
            scored = controller.score(params, architecture)
            return scored.log_prob + scored.entropy

        return jax.grad(objective)(params)

    for scale in (1.0, 1e3):
        scaled = jax.tree.map(lambda a, scale=scale: a * scale, params)
        architecture = sample_many(controller, scaled, seed=1, count=1).architecture[0]
        chex.assert_tree_all_finite(gradient(scaled, architecture))


def test_keys_decide():
    params = init(TINY, jax.random.key(0))
    chex.assert_trees_all_equal(params, init(TINY, jax.random.key(0)))
    first, again, other = (sample_many(TINY, params, seed, 50) for seed in (1, 1, 2))
    chex.assert_trees_all_equal(first, again)
    assert np.any(first.architecture != other.architecture)


def test_parameters():
    """As many as the docstring says, uniform in ±0.1, and not the same for both cells."""
    params = init(Controller(Space()), jax.random.key(0))
    flat = np.concatenate([np.ravel(a) for a in jax.tree.leaves(params)])
    assert flat.size == 206_400
    # A Kolmogorov-Smirnov test, false alarm 1e-6.
    assert stats.kstest(flat, stats.uniform(-0.1, 0.2).cdf).pvalue > FALSE_ALARM
    for leaf in jax.tree.leaves(params):
        assert np.all(np.asarray(leaf[0]) != np.asarray(leaf[1]))


# The update


def fixed_baseline(controller: Controller, baseline: float) -> ControllerState:
    """As `init_state`, but past the first update, which would set the baseline."""
    state = init_state(controller, jax.random.key(0))
    return state._replace(baseline=jnp.float32(baseline), updates=jnp.int32(1))


def gradient_of(state: ControllerState):
    """The loss's gradient, read from Adam's first moment after its first update: 0.1 g."""
    return jax.tree.map(lambda m: m / 0.1, optax.tree.get(state.opt_state, "mu"))


def test_expected_update_is_the_gradient_of_expected_reward():
    """Σ_a π(a) · update(a) over the whole space, against ∇ Σ_a π(a) R(a) by autodiff.

    One update of all architectures has weight 1/n on each; n π(a) goes into the advantage, and the
    entropy bonus is the plain mean over them.
    """
    architectures = jnp.asarray(every_architecture(TINY.space))
    rewards = jax.random.uniform(jax.random.key(1), (len(architectures),))
    baseline = 0.4
    state = fixed_baseline(TINY, baseline)

    def objective(params):
        scores = jax.vmap(TINY.score, (None, 0))(params, architectures)
        expected_reward = jnp.sum(jnp.exp(scores.log_prob) * rewards)
        return expected_reward + TINY.config.entropy_weight * jnp.mean(scores.entropy)

    weights = len(architectures) * jnp.exp(score_many(TINY, state.params, architectures).log_prob)
    after, _ = update(TINY, state, architectures, baseline + weights * (rewards - baseline))
    exact = jax.jit(jax.grad(objective))(state.params)
    assert optax.tree.norm(exact) > 0.01
    chex.assert_trees_all_close(
        jax.tree.map(jnp.negative, gradient_of(after)), exact, rtol=1e-4, atol=2e-6
    )


def test_without_advantage_the_update_raises_the_entropy():
    state = fixed_baseline(TINY, 0.5)
    architectures = jnp.asarray(every_architecture(TINY.space))
    after, metrics = update(TINY, state, architectures, jnp.full(len(architectures), 0.5))
    assert metrics["advantage"] == 0
    entropies = [score_all(TINY, params)[1].mean() for params in (state.params, after.params)]
    assert entropies[1] > entropies[0]


def test_baseline_starts_at_the_first_reward_and_is_used_before_it_moves():
    state = init_state(TINY, jax.random.key(0))
    architecture = jnp.asarray(every_architecture(TINY.space)[7])
    baseline = 0.3
    for i, reward in enumerate([0.3, 0.9, 0.1]):
        state, metrics = update(TINY, state, architecture, reward)
        assert metrics["baseline"] == pytest.approx(baseline)
        assert metrics["advantage"] == pytest.approx(reward - baseline, abs=1e-6)
        baseline = 0.99 * baseline + 0.01 * reward
        assert state.baseline == pytest.approx(baseline)
        assert state.updates == i + 1


def test_several_samples_share_one_step_and_one_baseline():
    architectures = jnp.asarray(every_architecture(TINY.space)[[3, 90, 200]])
    rewards = jnp.asarray([0.2, 0.9, 0.4])
    state = init_state(TINY, jax.random.key(0))
    after, metrics = update(TINY, state, architectures, rewards)
    assert metrics["baseline"] == pytest.approx(0.5)
    assert after.updates == 1

    after, metrics = update(TINY, fixed_baseline(TINY, 0.6), architectures, rewards)
    assert metrics["advantage"] == pytest.approx(-0.1, abs=1e-6)
    assert after.baseline == pytest.approx(0.99 * 0.6 + 0.01 * 0.5)
    alone = [
        gradient_of(update(TINY, fixed_baseline(TINY, 0.6), a, r)[0])
        for a, r in zip(architectures, rewards, strict=True)
    ]
    mean = jax.tree.map(lambda *g: sum(g) / len(g), *alone)
    chex.assert_trees_all_close(gradient_of(after), mean, atol=1e-6)


def test_loss_is_the_sum_over_decisions():
    architecture = jnp.asarray(every_architecture(TINY.space)[7])
    state = fixed_baseline(TINY, 0.25)
    scored = score(TINY, state.params, architecture)
    _, metrics = update(TINY, state, architecture, 1.0)
    expected = -scored.log_prob * 0.75 - 0.01 * scored.entropy
    assert metrics["loss"] == pytest.approx(float(expected), rel=1e-6)
    assert metrics["log_prob"] == pytest.approx(float(scored.log_prob))
    assert metrics["entropy"] == pytest.approx(float(scored.entropy))


def test_optimizer_options():
    """A limit of the gradient's global norm, and a schedule in place of a learning rate."""
    config = ControllerConfig(
        hidden=8, init_scale=1.5, gradient_clip=0.01, learning_rate=optax.constant_schedule(0.0)
    )
    controller = Controller(TINY.space, config)
    state = fixed_baseline(controller, 0.0)
    architecture = jnp.asarray(every_architecture(TINY.space)[7])
    after, metrics = update(controller, state, architecture, 1.0)
    assert metrics["grad_norm"] > 0.1
    assert optax.tree.norm(gradient_of(after)) == pytest.approx(0.01, rel=1e-4)
    chex.assert_trees_all_equal(after.params, state.params)


def test_one_program_serves_every_architecture_and_reward():
    """And the state is a fixed set of arrays, so a checkpoint and a scan can carry it."""

    def search_step(state, key, reward):
        sample = TINY.sample(state.params, key)
        return TINY.reinforce_update(state, sample.architecture, reward)[0]

    step = jax.jit(chex.assert_max_traces(search_step, n=1))
    state = first = init_state(TINY, jax.random.key(0))
    for i in range(4):
        state = step(state, jax.random.key(i + 1), jnp.float32(i))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(first))
    chex.assert_trees_all_equal_shapes_and_dtypes(first, state)


def test_finds_the_best_of_the_papers_space():
    """The paper's hyperparameters, one sample an update, 2000 updates, 9.5e24 architectures.

    The reward is the fraction of the 16 connections whose input and operation are both those
    wanted in their cell. Criterion, on 1000 samples at the end: the wanted choice has at least 80 %
    in each of the 32 decisions, and the one best architecture is the most frequent.
    """
    controller = Controller(Space())
    normal, reduction = (1, PRIMITIVES.index("sep_conv_3x3")), (0, PRIMITIVES.index("conv_1x1"))
    best = jnp.asarray([[normal] * 8, [reduction] * 8])

    def search_step(state, key):
        architecture = controller.sample(state.params, key).architecture
        reward = jnp.mean(jnp.all(architecture == best, axis=-1))
        state, metrics = controller.reinforce_update(state, architecture, reward)
        return state, metrics["reward"]

    keys = jax.random.split(jax.random.key(1), 2000)
    state = init_state(controller, jax.random.key(0))
    state, rewards = jax.jit(lambda s, k: jax.lax.scan(search_step, s, k))(state, keys)
    assert jnp.mean(rewards[:50]) < 0.1

    found = np.asarray(sample_many(controller, state.params, seed=2, count=1000).architecture)
    assert np.min(np.mean(found == np.asarray(best), axis=0)) >= 0.8
    most_frequent, _ = Counter(a.tobytes() for a in found).most_common(1)[0]
    assert most_frequent == np.asarray(best, np.int32).tobytes()


# Errors


@pytest.mark.parametrize(
    ("architectures", "rewards"), [((2, 2, 2), (1,)), ((3, 2, 2, 2), ()), ((3, 2, 2, 2), (2,))]
)
def test_an_update_takes_one_reward_for_each_architecture(architectures, rewards):
    with pytest.raises(ValueError, match="one reward for each architecture"):
        TINY.reinforce_update(
            init_state(TINY, jax.random.key(0)),
            jnp.zeros(architectures, jnp.int32),
            jnp.zeros(rewards),
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden", 0),
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("baseline_decay", 1.1),
        ("entropy_weight", -0.1),
        ("gradient_clip", 0.0),
    ],
)
def test_config_names_the_field_that_is_wrong(field, value):
    with pytest.raises(ValueError, match=f"controller.{field} is"):
        ControllerConfig(**{field: value})
