"""Everything that determines the final training of a network but the network and the data."""

import dataclasses
import itertools

from ftnas_jax.nn.hardware import Hardware


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained. Defaults are §5.1's, and the published code's where it is silent.

    Attributes:
        hardware: number formats and faults.
        seed: of every random choice, 0 to 2^32 - 1.
        epochs: passes over the training images.
        batch_size: images in a step.
        learning_rate: of SGD, before the first drop.
        drops: where the learning rate is divided by 10, as fractions of all epochs, increasing; the
            paper's are epochs 40 and 80 of 100.
        momentum: of SGD.
        weight_decay: added to gradients after clipping, of all parameters.
        gradient_clip: largest global norm of the gradient.
        alpha_l: weight of the faulty loss (Eq. 13); 0 trains without faults.
        curriculum_epochs: over how many of the first epochs the rates of faults grow linearly, step
            by step, from none to those of `hardware`; 0 for the whole rates from the first step.
        crop_padding: largest shift of the random crop, 0 for none.
        flip: whether images are mirrored at random.
        test_every: epochs from one measurement on the test images to the next; there is always
            one behind the last epoch.

    Raises:
        ValueError: a field is out of its range, or the hardware has no faults, or none with a rate,
            where the training needs them.
    """

    hardware: Hardware
    seed: int = 0
    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 0.1
    drops: tuple[float, ...] = (0.4, 0.8)
    momentum: float = 0.9
    weight_decay: float = 4e-5
    gradient_clip: float = 5.0
    alpha_l: float = 0.5
    curriculum_epochs: int = 0
    crop_padding: int = 4
    flip: bool = True
    test_every: int = 1

    def __post_init__(self):
        object.__setattr__(self, "drops", tuple(self.drops))
        for name in ("epochs", "batch_size", "test_every"):
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
        if not all(0 < a < b for a, b in itertools.pairwise((*self.drops, 1.0))):
            raise ValueError(f"drops is {self.drops}; they increase between 0 and 1")
        if not 0 <= self.alpha_l <= 1:
            raise ValueError(f"alpha_l is {self.alpha_l}; it lies in [0, 1]")
        if self.alpha_l > 0 and not self.hardware.faults:
            raise ValueError(f"alpha_l is {self.alpha_l}, but there are no faults; it must be 0")
        self._check_curriculum()

    def _check_curriculum(self) -> None:
        epochs = self.curriculum_epochs
        if not isinstance(epochs, int) or not 0 <= epochs <= self.epochs:
            raise ValueError(f"curriculum_epochs is {epochs!r}; it lies in [0, epochs]")
        if epochs and self.alpha_l == 0:
            raise ValueError("curriculum_epochs: with an alpha_l of 0 no step has faults")
        for model in self.hardware.faults if epochs else ():
            try:
                model.at_rate(model.rate)
            except ValueError as error:
                raise ValueError(f"curriculum_epochs: {error}") from error

    @property
    def passes(self) -> tuple[tuple[bool, float], ...]:
        """(faulty, weight in Eq. 13) of the passes of a step."""
        weights = ((False, 1 - self.alpha_l), (True, self.alpha_l))
        return tuple((faulty, weight) for faulty, weight in weights if weight > 0)

    @property
    def test_passes(self) -> tuple[tuple[bool, float], ...]:
        """The same of a measurement: both, unless there are no faults."""
        return ((False, 1.0), (True, 1.0)) if self.hardware.faults else ((False, 1.0),)

    def drop_epochs(self) -> tuple[int, ...]:
        """The epochs, counted from 0, that begin with a learning rate divided by 10."""
        return tuple(round(drop * self.epochs) for drop in self.drops)

    def is_tested(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, ends with a measurement on the test images."""
        return (epoch + 1) % self.test_every == 0 or epoch + 1 == self.epochs
