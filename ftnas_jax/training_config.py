"""Everything that determines the final training of a network but the network and the data."""

import dataclasses
import itertools
from typing import Literal

from ftnas_jax.faults import FaultModel
from ftnas_jax.nn.hardware import Hardware


@dataclasses.dataclass(frozen=True)
class RateTrials:
    """The paper's rule for the rate of faults to train with (§5.2).

    Rates are tried in turn, the largest first. One is kept if the clean accuracy on test images is
    above `least_accuracy` when its trial ends; the last one is kept in any case. A trial is the
    beginning of a whole training at its rate, which goes on if the rate is kept: only steps of
    rates that are given up are lost. When the paper gives a rate up it does not say.

    Attributes:
        tried: rates in (0, 1], decreasing.
        epochs: how long a trial is.
        least_accuracy: in [0, 1).

    Raises:
        ValueError: a field is out of its range.
    """

    tried: tuple[float, ...]
    epochs: int = 10
    least_accuracy: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, "tried", tuple(self.tried))
        decreasing = all(low < high for high, low in itertools.pairwise((*self.tried, 0.0)))
        if not self.tried or not decreasing or self.tried[0] > 1:
            raise ValueError(f"rates.tried is {self.tried}; rates decrease, within (0, 1]")
        if not isinstance(self.epochs, int) or self.epochs < 1:
            raise ValueError(f"rates.epochs is {self.epochs!r}; it is at least 1")
        if not 0 <= self.least_accuracy < 1:
            raise ValueError(f"rates.least_accuracy is {self.least_accuracy}; it lies in [0, 1)")

    @property
    def last(self) -> int:
        """Number of the last trial, counted from 0."""
        return len(self.tried) - 1


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
        norm_passes: which passes BatchNorm's running statistics average: the `clean` ones, as long
            as there are any, or `both`. While training every pass is normalized by its own batch.
        fraction_lengths: by which those of features are found in a faulty pass: by its own `batch`,
            faults included, as in the paper's published code, or by a `clean` pass of the same
            images, which costs one forward pass more in a step. A device has them fixed.
        rates: by which rule the rate of the one fault model is chosen; None for that of `hardware`.
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
    norm_passes: Literal["clean", "both"] = "clean"
    fraction_lengths: Literal["batch", "clean"] = "batch"
    rates: RateTrials | None = None
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
        self._check_choice("norm_passes", ("clean", "both"))
        self._check_choice("fraction_lengths", ("batch", "clean"))
        if self.fraction_lengths == "clean" and self.hardware.features is None:
            raise ValueError(
                "fraction_lengths is clean, but features are in float32: they have none"
            )
        self._check_curriculum()
        self._check_rates()

    def _check_choice(self, field: str, choices: tuple[str, ...]) -> None:
        if getattr(self, field) not in choices:
            raise ValueError(
                f"{field} is {getattr(self, field)!r}; choose from {', '.join(choices)}"
            )

    def _check_curriculum(self) -> None:
        epochs = self.curriculum_epochs
        if not isinstance(epochs, int) or not 0 <= epochs <= self.epochs:
            raise ValueError(f"curriculum_epochs is {epochs!r}; it lies in [0, epochs]")
        if epochs and self.alpha_l == 0:
            raise ValueError("curriculum_epochs: with an alpha_l of 0 no step has faults")
        if epochs:
            self._check_rate_is_free("curriculum_epochs")

    def _check_rates(self) -> None:
        if self.rates is None:
            return
        if self.alpha_l == 0 or len(self.hardware.faults) != 1:
            raise ValueError("rates: only a training under one fault model can try its rates")
        if self.rates.epochs > self.epochs:
            raise ValueError(f"rates.epochs is {self.rates.epochs}; epochs is {self.epochs}")
        if self.curriculum_epochs >= self.rates.epochs:
            raise ValueError(
                f"rates.epochs is {self.rates.epochs}; a trial outlasts curriculum_epochs, "
                f"{self.curriculum_epochs}, so that its rate is judged where it is met in full"
            )
        self._check_rate_is_free("rates")

    def _check_rate_is_free(self, field: str) -> None:
        for model in self.hardware.faults:
            try:
                model.at_rate(model.rate)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from error

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
        return (epoch + 1) % self.test_every == 0 or epoch + 1 == self.epochs or self.judges(epoch)

    @property
    def trial_epochs(self) -> int:
        """Epochs of a trial; 0 where no rates are tried."""
        return 0 if self.rates is None else self.rates.epochs

    def judges(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, is the last of a trial of its rate."""
        return epoch + 1 == self.trial_epochs

    def faults_of(self, trial: int) -> tuple[FaultModel, ...]:
        """The faults of a trial, counted from 0; of `hardware` where no rates are tried."""
        if self.rates is None:
            return self.hardware.faults
        return (self.hardware.faults[0].at_rate(self.rates.tried[trial]),)
