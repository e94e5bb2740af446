"""Everything that determines a search but the data."""

import dataclasses

from ftnas_jax.controller import ControllerConfig
from ftnas_jax.nn.hardware import Hardware
from ftnas_jax.space import Space
from ftnas_jax.supernet import NetworkConfig


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Everything that determines a search but the data. Defaults are §5.1's, for MiBB.

    Attributes:
        space: architectures to choose from.
        network: shape of the supernet.
        hardware: number formats and faults.
        controller: the policy and how it learns.
        seed: of every random choice, 0 to 2^32 - 1.
        epochs: passes over the training part.
        batch_size: images in a step of either kind.
        learning_rate: of SGD, at the first epoch; follows a cosine to 0, epoch by epoch.
        momentum: of SGD.
        weight_decay: added to gradients after clipping.
        gradient_clip: largest global norm of the weights' gradient.
        alpha_l: weight of the faulty loss (Eq. 13); 0 trains without faults (FT-NAS).
        alpha_r: weight of the faulty accuracy in the reward (Eq. 12).
        crop_padding: largest shift of the random crop, 0 for none.
        flip: whether images are mirrored at random.
    """

    space: Space = dataclasses.field(default_factory=Space)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    hardware: Hardware = dataclasses.field(default_factory=Hardware)
    controller: ControllerConfig = dataclasses.field(default_factory=ControllerConfig)
    seed: int = 0
    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    gradient_clip: float = 5.0
    alpha_l: float = 0.5
    alpha_r: float = 0.5
    crop_padding: int = 4
    flip: bool = True

    def __post_init__(self):
        for name in ("alpha_l", "alpha_r"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it lies in [0, 1]")
        for name in ("epochs", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is at least 1")
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it lies in [0, 2^32)")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it lies in [0, 1)")
        if not (self.weight_decay >= 0 and self.crop_padding >= 0):
            raise ValueError("weight_decay and crop_padding cannot be negative")
