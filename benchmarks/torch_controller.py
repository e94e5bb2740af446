"""The controller of `ftnas_jax.controller` in PyTorch eager: LSTMs, REINFORCE, Adam.

The LSTMs of the two cell types go through their decisions together, as batched products.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ftnas_jax.controller import ControllerConfig
from ftnas_jax.space import CELL_TYPES, FAN_IN, INPUT_NODES, Architecture, Space

_GATES = "ifgo"


class Sample(NamedTuple):
    """An architecture, its log-probability and the entropy along its path (tensors, scalar)."""

    architecture: Architecture
    log_prob: Tensor
    entropy: Tensor


class Policy(nn.Module):
    """π(a; θ); the first axis of every parameter is the cell type."""

    def __init__(self, space: Space, config: ControllerConfig):
        super().__init__()
        self.space, self.config = space, config
        hidden, operations = config.hidden, len(space.primitives)
        shapes = {
            "node_embedding": (space.nodes - 1, hidden),
            "op_embedding": (operations, hidden),
            "attend_node": (hidden, hidden),
            "attend_hidden": (hidden, hidden),
            "attention": (hidden, 1),
            "op_logits": (hidden, operations),
            "lstm_input": (hidden, 4 * hidden),
            "lstm_hidden": (hidden, 4 * hidden),
            "lstm_bias": (1, 4 * hidden),
        }
        for name, shape in shapes.items():
            start = torch.empty(len(CELL_TYPES), *shape)
            start.uniform_(-config.init_scale, config.init_scale)
            self.register_parameter(name, nn.Parameter(start))

    @torch.no_grad()
    def load(self, params) -> None:
        """Copy the parameters of `ftnas_jax.controller.Controller` in."""
        tree = params["params"]
        self.node_embedding.copy_(_tensor(tree["node_embedding"]))
        self.op_embedding.copy_(_tensor(tree["op_embedding"]))
        for name in ("attend_node", "attend_hidden", "attention", "op_logits"):
            getattr(self, name).copy_(_tensor(tree[name]["kernel"]))
        lstm = tree["lstm"]
        gates = [[_tensor(lstm[kind + gate]["kernel"]) for gate in _GATES] for kind in "ih"]
        self.lstm_input.copy_(torch.cat(gates[0], -1))
        self.lstm_hidden.copy_(torch.cat(gates[1], -1))
        bias = [_tensor(lstm["h" + gate]["bias"]) for gate in _GATES]
        self.lstm_bias.copy_(torch.cat(bias, -1)[:, None])

    def forward(self, given: Architecture | None = None) -> Sample:
        """Draw an architecture from torch's global generator, or score the one given."""
        keys = torch.bmm(self.node_embedding, self.attend_node)
        x = h = c = torch.zeros(len(CELL_TYPES), 1, self.config.hidden)
        fixed = None if given is None else torch.from_numpy(given.to_array()).long()
        choices, log_probs, entropies = [], [], []
        for place in range(2 * self.space.connections):
            node, decision = divmod(place, 2 * FAN_IN)
            operation, slot = divmod(decision, FAN_IN)
            h, c = self._lstm(x, h, c)
            exists = INPUT_NODES + node
            logits = self._op_logits(h) if operation else self._node_logits(h, keys[:, :exists])
            log_p = torch.log_softmax(logits / self.config.temperature, -1)
            p = log_p.exp()
            if fixed is None:
                choice = torch.multinomial(p.detach(), 1)[:, 0]
            else:
                choice = fixed[:, FAN_IN * node + slot, operation]
            table = self.op_embedding if operation else self.node_embedding
            rows = torch.arange(len(CELL_TYPES))
            x = table[rows, choice][:, None]
            choices.append(choice)
            log_probs.append(log_p[rows, choice])
            entropies.append(-(p * log_p).sum(-1))
        drawn = given or self._architecture(torch.stack(choices, 1))
        return Sample(drawn, torch.stack(log_probs).sum(), torch.stack(entropies).sum())

    def _lstm(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = torch.baddbmm(self.lstm_bias, x, self.lstm_input)
        i, f, g, o = torch.baddbmm(gates, h, self.lstm_hidden).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def _node_logits(self, h: Tensor, keys: Tensor) -> Tensor:
        hidden = torch.tanh(keys + torch.bmm(h, self.attend_hidden))
        return torch.bmm(hidden, self.attention)[..., 0]

    def _op_logits(self, h: Tensor) -> Tensor:
        return torch.bmm(h, self.op_logits)[:, 0]

    def _architecture(self, choices: Tensor) -> Architecture:
        """From decisions [2, (node, node, op, op) · nodes]."""
        by_node = choices.view(len(CELL_TYPES), -1, 2, FAN_IN).transpose(2, 3)
        return Architecture.from_array(by_node.reshape(len(CELL_TYPES), -1, 2).numpy())


class Reinforce:
    """Ascends the expected reward of a policy with Adam and a moving baseline."""

    def __init__(self, policy: Policy):
        self.policy, self.config = policy, policy.config
        self.optimizer = torch.optim.Adam(
            policy.parameters(), lr=self.config.learning_rate, foreach=True
        )
        self.baseline: float | None = None

    def update(self, sample: Sample, reward: float) -> None:
        """One step for one sample, whose graph is used up."""
        baseline = reward if self.baseline is None else self.baseline
        objective = (reward - baseline) * sample.log_prob
        objective = objective + self.config.entropy_weight * sample.entropy
        self.optimizer.zero_grad(set_to_none=True)
        (-objective).backward()
        if self.config.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        decay = self.config.baseline_decay
        self.baseline = decay * baseline + (1 - decay) * reward


def _tensor(array) -> Tensor:
    return torch.tensor(np.asarray(array))
