"""A trained network under test: its model on hardware, as one pure function of arrays."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ftnas_jax.faults import FaultModel
from ftnas_jax.graph.model import NNXOnHardware, on_hardware
from ftnas_jax.graph.recalibration import RECALIBRATED, check_recalibration, recalibrate
from ftnas_jax.graph.sites import Sites
from ftnas_jax.nn.hardware import Draw, Hardware

NO_CLASS = -1
"""The class of an image of which a logit is NaN."""

_NORM_IMAGES = "norm_images"
"""The collection of images by which every chip takes statistics of BatchNorm anew, float32
[N, ...]; see `ftnas_jax.graph.recalibration`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A network and its variables.

    Attributes:
        name: in tables and pictures.
        chip: from `on_hardware`; which faults its hardware has does not matter.
        variables: arrays of the model, weights among them; of an nnx module its state. Images by
            which every chip takes statistics of BatchNorm anew are a collection beside the model's.
        arguments: of a call of the model, behind the images.
        keywords: of a call of the model.
    """

    name: str
    chip: Any
    variables: Any
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def hardware(self) -> Hardware:
        """Number formats, and faults that a campaign replaces by its own."""
        return self.chip.hardware

    @property
    def norm_images(self) -> int:
        """By how many images every chip takes statistics of BatchNorm anew; 0 for none."""
        images = self._apart(self.variables)[1]
        return 0 if images is None else len(images)

    def _apart(self, variables: Any) -> tuple[Any, Any]:
        """The model's variables, and the images by which a chip is recalibrated, or None."""
        if not isinstance(self.chip, RECALIBRATED) or _NORM_IMAGES not in variables:
            return variables, None
        own = {name: value for name, value in variables.items() if name != _NORM_IMAGES}
        return own, variables[_NORM_IMAGES]

    def on(self, faults: tuple[FaultModel, ...]) -> Any:
        """The chip with these faults, whose rates may be traced."""
        own = dataclasses.replace(self.hardware, faults=faults)
        return self.chip.with_hardware(own)

    def sites(self, images: Any, faults: tuple[FaultModel, ...]) -> Sites:
        """What may fail in a call with images, or with arrays of their shape."""
        chip = self.on(faults)
        given = () if isinstance(chip, NNXOnHardware) else (self._apart(self.variables)[0],)
        return chip.sites(*given, images, *self.arguments, **self.keywords)

    def classes(
        self, variables: Any, faults: tuple[FaultModel, ...], images: jax.Array, draw: Draw
    ) -> jax.Array:
        """The class with the largest logit for images [B, ...], int32 [B].

        `NO_CLASS` where a logit is NaN: that is never right, and another class than without faults.

        Raises:
            ValueError: the model does not return logits [B, classes].
        """
        chip = self.on(faults)
        variables, norm_images = self._apart(variables)
        if norm_images is not None:
            args = (variables, norm_images, *self.arguments)
            variables = recalibrate(chip, *args, draw=draw, **self.keywords)
        args = (variables, images, *self.arguments)
        if isinstance(chip, NNXOnHardware):
            model = nnx.merge(nnx.graphdef(self.chip.model), variables)
            chip, args = dataclasses.replace(chip, model=model), args[1:]
        outputs = chip.observed(None, *args, draw=draw, **self.keywords)[0]
        # An nnx model's state comes with what it returns.
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        if logits.ndim != 2 or len(logits) != len(images):
            raise ValueError(
                f"{self.name} returns {logits.shape} for {len(images)} images; a campaign takes a "
                "model that returns logits [images, classes]"
            )
        classes = logits.argmax(-1).astype("int32")
        # argmax takes the first NaN for the largest, which would make a class of it.
        return jnp.where(jnp.isnan(logits).any(-1), jnp.int32(NO_CLASS), classes)

    def on_chip(self, variables: Any, shared: Any, fault: jax.Array, images, first) -> jax.Array:
        """A `ftnas_jax.campaigns.trials.Predict` on the chip of a number.

        `shared` is (faults, data of the campaign's key, whether faults act).
        """
        faults, key, faulty = shared
        chip = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), fault[0])
        return self.classes(variables, faults, images, Draw(chip, faulty, first))

    def sha256(self) -> str:
        """A digest of all that its predictions depend on, but for its code."""
        called = jax.tree.map(_told, (self.arguments, dict(self.keywords)))
        own = (self.hardware.weights, self.hardware.features, *called)
        digest = hashlib.sha256(repr(own).encode())
        lengths = getattr(self.chip, "lengths", {})
        digest.update(repr(jax.tree.map(lambda a: np.asarray(a).tolist(), dict(lengths))).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables):
            leaf = np.ascontiguousarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
            digest.update(leaf.tobytes())
        return digest.hexdigest()


def _told(leaf: Any) -> Any:
    """An argument by which its text tells it from all others: that of an array leaves some out."""
    if not hasattr(leaf, "dtype"):
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.ascontiguousarray(leaf)
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def as_subject(
    model: Any,
    variables: Any,
    hardware: Hardware,
    *,
    name: str = "network",
    arguments: tuple[Any, ...] = (),
    keywords: Mapping[str, Any] | None = None,
    norm_images: np.ndarray | None = None,
) -> Subject:
    """A subject from a model, or from one that is on hardware already.

    Args:
        model: what `on_hardware` takes, or returned; the latter keeps its own number formats and
            frozen fraction lengths.
        variables: of a linen module or a function; None for an nnx module, which has its own.
        hardware: number formats for a model that is not yet on hardware.
        name: in tables and pictures.
        arguments: of a call, behind the images.
        keywords: of a call.
        norm_images: by which every chip takes statistics of BatchNorm anew, or None; of a linen
            module only.

    Raises:
        ValueError: there are no variables, or some for an nnx module; or the model cannot be
            recalibrated by these images.
    """
    chip = model if hasattr(model, "with_hardware") else on_hardware(model, hardware)
    module = isinstance(chip, NNXOnHardware)
    if module != (variables is None):
        raise ValueError(
            f"{name}: an nnx module has its own variables, give None"
            if module
            else f"{name}: a model that is no nnx module needs its variables"
        )
    state = nnx.state(chip.model) if module else variables
    known = jax.tree.map(np.asarray, jax.device_get(state))
    if norm_images is not None:
        known = _with_norm_images(name, chip, known, norm_images, arguments, keywords or {})
    return Subject(name, chip, known, arguments, dict(keywords or {}))


def _with_norm_images(name: str, chip, variables, norm_images, arguments, keywords) -> Any:
    """The variables with these images among them: of a program they are arguments, too."""
    norm_images = np.asarray(norm_images, np.float32)
    check_recalibration(name, chip, variables, norm_images, *arguments, **keywords)
    return {**variables, _NORM_IMAGES: norm_images}
