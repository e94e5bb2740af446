"""The controller of §4.3: a recurrent policy π(a; θ) over architectures, trained by REINFORCE.

One LSTM per cell type, as in Pham et al., "Efficient Neural Architecture Search via Parameter
Sharing" (2018). It makes four decisions for each node: two input nodes, then two operations, one
for each input. Its input is what it chose before, at first zeros:

    h, c    = LSTM(x, (h, c))
    node:     logit_j = w · tanh(W_e e_j + W_h h) / T    over the nodes j that exist so far
    operation: logit  = W_o h / T
    x       = e_j of the chosen node, or the embedding of the chosen operation

Sizes: `K` architectures, `C` = 2(B-2) connections of a cell, `N` = B-1 nodes that can be an input,
`H` hidden units. Parameters of the two LSTMs are stacked along a first axis of 2 (cell type).

The paper leaves open the temperature T, the initialisation, where the baseline starts and whether
the entropy is summed or averaged over decisions. The defaults here are its published code's: T = 5,
uniform in ±0.1, at the first reward, summed.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from ftnas_jax.space import CELL_TYPES, FAN_IN, INPUT_NODES, Space

Params = Any
"""θ: arrays with a first axis of 2 (cell type)."""

Carry = tuple[tuple[jax.Array, jax.Array], jax.Array]
"""What one decision hands to the next: the LSTM's (c, h) and its next input x, each [H]."""

Choose = Callable[[jax.Array, Any], jax.Array]
"""Takes a decision's logits and its own data (noise, or the choice given), returns an index."""

_DECISIONS = 2 * FAN_IN
"""Decisions for one node: its input nodes, then their operations."""


@dataclasses.dataclass(frozen=True)
class ControllerConfig:
    """How the controller looks and learns. The defaults are §5.1's unless said otherwise.

    Attributes:
        hidden: H, units of each LSTM, of each embedding and of the attention.
        temperature: T > 0 divides every logit; 1 is a plain softmax (published code: 5).
        init_scale: parameters start uniform in ±init_scale (published code: 0.1).
        learning_rate: of Adam, a number or an optax schedule over updates.
        baseline_decay: momentum of the moving average of rewards, in [0, 1].
        entropy_weight: coefficient of the entropy, summed over all decisions; at least 0.
        gradient_clip: largest global norm of a gradient, None for no limit.
    """

    hidden: int = 100
    temperature: float = 5.0
    init_scale: float = 0.1
    learning_rate: float | optax.Schedule = 1e-3
    baseline_decay: float = 0.99
    entropy_weight: float = 0.01
    gradient_clip: float | None = None

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"controller.hidden is {self.hidden}; it must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"controller.temperature is {self.temperature}; it must be above 0")
        if not callable(self.learning_rate) and not self.learning_rate > 0:
            raise ValueError(
                f"controller.learning_rate is {self.learning_rate}; it must be above 0"
            )
        if not 0 <= self.baseline_decay <= 1:
            raise ValueError(f"controller.baseline_decay is {self.baseline_decay}, not in [0, 1]")
        if not self.entropy_weight >= 0:
            raise ValueError(f"controller.entropy_weight is {self.entropy_weight}, below 0")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(
                f"controller.gradient_clip is {self.gradient_clip}; it must be above 0, or None"
            )

    def optimizer(self) -> optax.GradientTransformation:
        """Adam, behind a limit of the global norm where one is set."""
        adam = optax.adam(self.learning_rate)
        if self.gradient_clip is None:
            return adam
        return optax.chain(optax.clip_by_global_norm(self.gradient_clip), adam)


class Sample(NamedTuple):
    """An architecture as the policy sees it.

    Attributes:
        architecture: int32 [2, C, 2], the array form of `space`.
        log_prob: float32 scalar, log π(a; θ), the sum over the decisions of both cells.
        entropy: float32 scalar in nats: the exact entropy of each decision given those before it,
            summed along this architecture's path. Its mean over π is the entropy of π.
    """

    architecture: jax.Array
    log_prob: jax.Array
    entropy: jax.Array


class ControllerState(NamedTuple):
    """What a search carries and checkpoints: arrays only.

    Attributes:
        params: θ, float32, each with a first axis of 2 (cell type).
        opt_state: of `ControllerConfig.optimizer`.
        baseline: b, float32 scalar; without meaning before the first update.
        updates: int32 scalar, updates made so far.
    """

    params: Params
    opt_state: optax.OptState
    baseline: jax.Array
    updates: jax.Array


@dataclasses.dataclass(frozen=True)
class Controller:
    """Pure functions around the policy over `space`. Hashable, so it can be a static argument.

    Every method can be traced: jit, scan and vmap as you like.
    """

    space: Space
    config: ControllerConfig = ControllerConfig()

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters, uniform in ±init_scale, different for each cell type.

        206 400 of them for the paper's space. The published code has 800 more: a second bias of
        each LSTM, which only ever acts in its sum with the first. Consumes `key`.
        """
        block = self._block()
        target, choices = jnp.int32(INPUT_NODES), jnp.zeros(_DECISIONS, jnp.int32)
        shapes = jax.eval_shape(
            lambda key: block.init(key, block.start(), target, choices, _as_given), key
        )
        empty = jax.tree.map(lambda p: jnp.zeros((len(CELL_TYPES), *p.shape), p.dtype), shapes)
        flat, unravel = ravel_pytree(empty)
        # One draw for all: a draw for each shape takes seconds to compile.
        scale = self.config.init_scale
        return unravel(jax.random.uniform(key, flat.shape, flat.dtype, -scale, scale))

    def sample(self, params: Params, key: jax.Array) -> Sample:
        """Draw a ~ π(a; θ) (lines 7 and 15 of Algorithm 1). Consumes `key`.

        For many at once: `jax.vmap(controller.sample, (None, 0))(params, keys)`.
        """
        widest = max(self.space.nodes - 1, len(self.space.primitives))
        shape = (len(CELL_TYPES), self.space.inner_nodes, _DECISIONS, widest)
        # The same numbers as a draw of this shape, in a tenth of its time to compile.
        noise = jax.random.gumbel(key, (math.prod(shape),)).reshape(shape)
        return self._walk(params, noise, _perturbed_argmax)

    def score(self, params: Params, architecture: ArrayLike) -> Sample:
        """log π(a; θ) and the path's entropy for a given a, int32 [2, C, 2]; differentiable in θ.

        Equal to what `sample` returned with that architecture. A connection from a node that does
        not exist yet has probability 0, log_prob -inf; indices are not checked further.
        """
        return self._walk(params, _to_decisions(jnp.asarray(architecture)), _as_given)

    def init_state(self, key: jax.Array) -> ControllerState:
        """The state before the first update. Consumes `key`."""
        params = self.init(key)
        opt_state = self.config.optimizer().init(params)
        return ControllerState(params, opt_state, jnp.float32(0), jnp.int32(0))

    def reinforce_update(
        self, state: ControllerState, architectures: ArrayLike, rewards: ArrayLike
    ) -> tuple[ControllerState, dict[str, jax.Array]]:
        """Ascend E[R] by one step of line 20 of Algorithm 1, with Adam and an entropy bonus.

        loss = mean over samples of -(R - b) log π(a; θ) - entropy_weight · entropy(a; θ)

        The entropy's gradient takes the sampled path as given, as published code does. `b` is used
        before it moves: b ← decay · b + (1 - decay) · R; at the first update b is R itself (the
        paper does not say where b starts), so with one sample that update follows the entropy
        alone. Several samples share one step and one b, R there being their mean.

        Args:
            state: with parameters θ that drew the architectures; REINFORCE is on-policy.
            architectures: int32 [2, C, 2], or [K, 2, C, 2] for several.
            rewards: R of each (Eq. 12), float scalar, or [K].

        Returns:
            The next state, and float32 scalars, means over the samples: loss, reward, advantage,
            log_prob, entropy, baseline (the one used) and grad_norm (before the limit).

        Raises:
            ValueError: the number of rewards is not the number of architectures.
        """
        architectures = jnp.asarray(architectures)
        rewards = jnp.asarray(rewards, jnp.float32)
        if architectures.shape[:-3] != rewards.shape or rewards.ndim > 1:
            raise ValueError(
                "an update takes one reward for each architecture; the architectures have shape "
                f"{architectures.shape}, the rewards {rewards.shape}"
            )
        architectures = architectures.reshape(-1, *architectures.shape[-3:])
        rewards = rewards.reshape(-1)
        mean_reward = jnp.mean(rewards)
        baseline = jnp.where(state.updates == 0, mean_reward, state.baseline)
        advantages = rewards - baseline

        grad_fn = jax.value_and_grad(self._loss, has_aux=True)
        (loss, scores), grads = grad_fn(state.params, architectures, advantages)
        # optax's Adam raises a float to an integer power, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            steps, opt_state = self.config.optimizer().update(grads, state.opt_state, state.params)

        decay = self.config.baseline_decay
        next_state = ControllerState(
            params=optax.apply_updates(state.params, steps),
            opt_state=opt_state,
            baseline=decay * baseline + (1 - decay) * mean_reward,
            updates=state.updates + 1,
        )
        metrics = {
            "loss": loss,
            "reward": mean_reward,
            "advantage": jnp.mean(advantages),
            "baseline": baseline,
            "log_prob": jnp.mean(scores.log_prob),
            "entropy": jnp.mean(scores.entropy),
            "grad_norm": optax.tree.norm(grads),
        }
        return next_state, metrics

    def _loss(self, params, architectures, advantages) -> tuple[jax.Array, Sample]:
        scores = jax.vmap(self.score, (None, 0))(params, architectures)
        objective = scores.log_prob * advantages + self.config.entropy_weight * scores.entropy
        return -jnp.mean(objective), scores

    def _block(self) -> "NodeBlock":
        return NodeBlock(
            input_nodes=self.space.nodes - 1,
            operations=len(self.space.primitives),
            hidden=self.config.hidden,
            temperature=self.config.temperature,
        )

    def _walk(self, params: Params, xs: jax.Array, choose: Choose) -> Sample:
        """Make every decision, with `xs` [2, B-2, 4] one item for each, as `choose` takes it."""
        block = self._block()
        targets = jnp.arange(INPUT_NODES, self.space.nodes)

        def one_cell(params, xs):
            def one_node(carry, node) -> Any:
                return block.apply(params, carry, *node, choose)

            return jax.lax.scan(one_node, block.start(), (targets, xs))[1]

        choices, log_probs, entropies = jax.vmap(one_cell)(params, xs)
        return Sample(_to_connections(choices), jnp.sum(log_probs), jnp.sum(entropies))


class NodeBlock(nn.Module):
    """The decisions of one LSTM for one node of a cell; the same parameters serve every node.

    `Controller.init` draws all parameters alike, so the initializers here only say their shapes.
    """

    input_nodes: int
    operations: int
    hidden: int
    temperature: float

    def start(self) -> Carry:
        """Zeros: the carry before the first node."""
        zeros = jnp.zeros(self.hidden)
        return (zeros, zeros), zeros

    @nn.compact
    def __call__(self, carry: Carry, target: jax.Array, xs: jax.Array, choose: Choose):
        """Decide the inputs of node `target`, then their operations.

        Args:
            carry: from the node before.
            target: int32 scalar; nodes below it can be inputs.
            xs: [4], one item for each decision, given to `choose`.
            choose: makes a decision from logits (-inf where not allowed) and its item of `xs`.

        Returns:
            The next carry, and for each decision [4]: choice int32, its log-probability float32,
            the decision's entropy float32.
        """

        def dense(features, name):
            return nn.Dense(features, use_bias=False, name=name)

        def embedding(count, name):
            return self.param(name, nn.initializers.zeros, (count, self.hidden))

        lstm = nn.OptimizedLSTMCell(self.hidden, name="lstm")
        nodes = embedding(self.input_nodes, "node_embedding")
        ops = embedding(self.operations, "op_embedding")
        keys = dense(self.hidden, "attend_node")(nodes)  # [N, H]
        query = dense(self.hidden, "attend_hidden")
        attention = dense(1, "attention")
        op_logits = dense(self.operations, "op_logits")
        exists = jnp.arange(self.input_nodes) < target

        def node_logits(h):
            logits = attention(jnp.tanh(keys + query(h)[None, :]))[:, 0]
            return jnp.where(exists, logits, -jnp.inf)

        lstm_carry, x = carry
        decisions = []
        for place in range(_DECISIONS):
            logits_of, embedded = (node_logits, nodes) if place < FAN_IN else (op_logits, ops)
            lstm_carry, h = lstm(lstm_carry, x)
            logits = logits_of(h) / self.temperature
            choice = choose(logits, xs[place]).astype(jnp.int32)
            x = embedded[choice]
            decisions.append((choice, *_log_prob_and_entropy(logits, choice)))
        choices, log_probs, entropies = (jnp.stack(d) for d in zip(*decisions, strict=True))
        return (lstm_carry, x), (choices, log_probs, entropies)


def _as_given(logits: jax.Array, choice: jax.Array) -> jax.Array:
    return choice


def _perturbed_argmax(logits: jax.Array, noise: jax.Array) -> jax.Array:
    """A draw from softmax(logits), by the Gumbel-max trick."""
    return jnp.argmax(logits + noise[: logits.size])


def _log_prob_and_entropy(logits: jax.Array, choice: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of a categorical whose impossible outcomes have logit -inf; both have finite gradients."""
    log_probs = jax.nn.log_softmax(logits)
    # 0 · -inf would be nan, in the entropy and in its gradient.
    finite = jnp.where(jnp.isneginf(logits), 0.0, log_probs)
    return log_probs[choice], -jnp.sum(jnp.exp(log_probs) * finite)


def _to_connections(choices: jax.Array) -> jax.Array:
    """[2, B-2, 4] in the order of decisions (node, node, op, op) → array form [2, C, 2]."""
    cells, nodes, _ = choices.shape
    pairs = choices.reshape(cells, nodes, 2, FAN_IN).swapaxes(2, 3)
    return pairs.reshape(cells, nodes * FAN_IN, 2)


def _to_decisions(architecture: jax.Array) -> jax.Array:
    """The inverse of `_to_connections`."""
    cells, connections, _ = architecture.shape
    pairs = architecture.reshape(cells, connections // FAN_IN, FAN_IN, 2).swapaxes(2, 3)
    return pairs.reshape(cells, connections // FAN_IN, _DECISIONS)
