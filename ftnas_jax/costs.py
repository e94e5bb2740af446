"""What a model costs, and how far each of its layers is exposed to faults of logic.

    costs = count_costs(model, variables, images)       # shapes of arrays do as well
    print(costs)                                        # a line for each layer, then totals
    costs_at(ft.models.by_name("resnet18", 10), (32, 32, 3)).flops

The paper's FLOPs are two for each multiply-accumulate of convolutions and linear layers, for one
image; all else (BatchNorm, pooling, sums) counts as nothing. A layer that runs twice counts twice,
its parameters once.

Nothing is computed. The layers of the project's own networks follow from an architecture, in a
moment; any other model is traced, and its layers are those that `on_hardware` finds.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from ftnas_jax.faults import MiBB, Place
from ftnas_jax.graph.model import count_images, on_hardware
from ftnas_jax.graph.plan import Tensor
from ftnas_jax.graph.run import by_image
from ftnas_jax.graph.sites import text_table
from ftnas_jax.nn.hardware import Hardware
from ftnas_jax.nn.primitives import parameter_shapes
from ftnas_jax.space import INPUT_NODES, Architecture, Space, target_node
from ftnas_jax.supernet import STEM_WIDTH, Network, NetworkConfig

_BARE = Hardware(weights=None, features=None)
_COMPUTED = ("features", "computed")


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One run of a layer.

    Attributes:
        name: path of the layer, as in `stage1_block0/conv0`; of the project's own networks with the
            convolution behind it, as in `cell0/edge3-5/sep_conv_3x3/conv0`.
        kind: `computed`, or `features` where the buffer stores them as they are; `returned` where
            they leave the model: these stay in the accumulators and never fail.
        shape: of its features for one image, behind the turns of loops.
        kernel: number of its weights; 0 for a product of features, and where a layer runs again.
        macs_per_feature: M_l of Eqs. 7 and 8.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    kernel: int
    macs_per_feature: int

    @property
    def features(self) -> int:
        """Numbers that it puts out for one image."""
        return math.prod(self.shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.features * self.macs_per_feature

    def error_rate(self, p_m: float) -> float:
        """Of a feature under MiBB, 1 - (1 - p_m)^M_l; 0 of what is returned."""
        if self.kind == "returned":
            return 0.0
        return float(MiBB(p_m).probability(Place(self.name, self.macs_per_feature)))


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of a model for one image.

    Attributes:
        parameters: all of them, biases and those of BatchNorm included; no running statistics.
        layers: in the order in which they run.
        p_m: error rate of one multiply-accumulate, for the error rates of features.

    Raises:
        ValueError: p_m is no probability.
    """

    parameters: int
    layers: tuple[LayerCost, ...]
    p_m: float = 1e-4

    def __post_init__(self):
        MiBB(self.p_m)  # refuses what is no probability

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return count_macs(self.layers)

    @property
    def flops(self) -> int:
        """Two for each multiply-accumulate."""
        return 2 * self.macs

    @property
    def features(self) -> int:
        """Numbers that layers put out."""
        return sum(layer.features for layer in self.layers)

    @property
    def faulty_features(self) -> float:
        """How many of them fail under MiBB at `p_m`, on average."""
        return sum(layer.features * layer.error_rate(self.p_m) for layer in self.layers)

    def __str__(self) -> str:
        head = ("layer", "kind", "shape", "kernel", "MACs", "M_l", f"rate at p_m={self.p_m:g}")
        rows = [_cells(layer, self.p_m) for layer in self.layers]
        return (
            f"{text_table([head, *rows])}\n"
            f"{self.parameters:,} parameters, {self.macs:,} MACs, {self.flops:,} FLOPs, "
            f"{self.features:,} features, {self.faulty_features:,.1f} of them faulty"
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as plain lists and numbers."""
        totals = ("parameters", "macs", "flops", "features", "p_m", "faulty_features")
        layers = [
            dataclasses.asdict(layer)
            | {"shape": list(layer.shape), "features": layer.features, "macs": layer.macs}
            | {"error_rate": layer.error_rate(self.p_m)}
            for layer in self.layers
        ]
        return {name: getattr(self, name) for name in totals} | {"layers": layers}


def _cells(layer: LayerCost, p_m: float) -> tuple[str, ...]:
    shape = "x".join(map(str, layer.shape))
    rate = "never" if layer.kind == "returned" else f"{layer.error_rate(p_m):.3g}"
    numbers = (str(n) if n else "" for n in (layer.kernel, layer.macs, layer.macs_per_feature))
    return layer.name, layer.kind, shape, *numbers, rate


def count_macs(layers: tuple[LayerCost, ...] | list[LayerCost]) -> int:
    """Multiply-accumulates of a network for one image; the paper's FLOPs are twice as many."""
    return sum(layer.macs for layer in layers)


def count_costs(
    model: Any, *args: Any, images: int | str = 0, p_m: float = 1e-4, **kwargs: Any
) -> Costs:
    """The costs of a call of a model.

    Args:
        model: a Flax linen or nnx module, or a function `(parameters, *arguments)`; of a supernet
            the call takes an `Architecture`.
        *args: of the call, the variables or parameters of a linen module or function first; in
            place of arrays `jax.ShapeDtypeStruct`s do as well.
        images: which argument holds the images, as for `on_hardware`.
        p_m: error rate of one multiply-accumulate, for the error rates of features.
        **kwargs: of the call.

    Raises:
        ValueError: the model has no layer, or one in a branch, of which it is not known whether it
            runs.
    """
    model, args = _with_parameters(model, args)
    if isinstance(model, Network):
        layers = _network_layers(model, *args, **kwargs)
    else:
        layers = _traced_layers(model, args, kwargs, images)
    parameters = args[0].get("params", {}) if isinstance(model, nn.Module) else args[0]
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters))
    return Costs(total, tuple(layers), p_m)


def costs_at(module: nn.Module, image: tuple[int, ...], *, p_m: float = 1e-4) -> Costs:
    """The costs of a linen module that is called with float32 images, as in evaluation.

    `train=False` is given to a module that takes `train`.

    Args:
        module: the module.
        image: shape of one image, as (height, width, channels).
        p_m: error rate of one multiply-accumulate, for the error rates of features.

    Raises:
        ValueError: in one line, where it cannot be called so.
    """
    # Of two images, so that what is of each image is told from what is of all.
    images = jax.ShapeDtypeStruct((2, *image), jnp.float32)
    takes = inspect.signature(type(module).__call__).parameters
    mode: dict[str, Any] = {"train": False} if "train" in takes else {}
    try:
        variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, **mode), images)
    except Exception as error:  # whatever a user's own module raises
        if isinstance(error, ValueError) and "\n" not in str(error):
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0]
        size = "x".join(map(str, image))
        name = type(module).__name__
        raise ValueError(f"{name} cannot be called with images of {size}: {why}") from error
    return count_costs(module, variables, images, p_m=p_m, **mode)


# The project's own networks


class _Grid(NamedTuple):
    """Features between layers."""

    height: int
    width: int
    channels: int

    def after(self, channels: int, stride: int) -> "_Grid":
        return _Grid(self.height // stride, self.width // stride, channels)


def layer_costs(
    config: NetworkConfig, space: Space, architecture: Architecture, image: tuple[int, int, int]
) -> list[LayerCost]:
    """The costs of every layer that `architecture` runs, from the stem to the classifier.

    Args:
        config: shape of the network.
        space: of the architecture.
        architecture: its connections.
        image: height, width and channels.

    Raises:
        ValueError: the architecture is not of the space, or the image cannot be halved as often as
            the network asks for.
    """
    space.check(architecture)
    config.check_image(*image[:2])
    start = _Grid(*image)
    stem = start.after(STEM_WIDTH * config.channels, 1)
    layers = list(_operation("stem", "conv_bn_3x3", start, stem.channels, 1))
    older, newer, channels = stem, stem, config.channels
    for number in range(config.cells):
        reduction = number in config.reductions
        channels *= 2 if reduction else 1
        for i, x in enumerate((older, newer)):
            stride = x.height // newer.height
            name = config.preprocess if stride == 1 else config.preprocess_stride2
            layers += _operation(f"cell{number}/preprocess{i}", name, x, channels, stride)
        inner = newer.after(channels, 2 if reduction else 1)
        layers += _cell(f"cell{number}", space, architecture[reduction], newer, inner)
        older, newer = newer, inner.after(space.inner_nodes * channels, 1)
    classes, macs = config.num_classes, newer.channels
    return [*layers, LayerCost("classifier", "returned", (classes,), macs * classes, macs)]


def _cell(prefix: str, space: Space, cell, newer: _Grid, inner: _Grid) -> Iterator[LayerCost]:
    inputs = newer.after(inner.channels, 1)  # behind the preprocessing
    known: set[str] = set()
    for place, (source, op) in enumerate(cell):
        start = inputs if source < INPUT_NODES else inner
        name = space.primitives[op]
        label = f"{prefix}/edge{source}-{target_node(place)}/{name}"
        for layer in _operation(label, name, start, inner.channels, start.height // inner.height):
            yield dataclasses.replace(layer, kernel=0) if label in known else layer
        known.add(label)


def _operation(
    label: str, name: str, start: _Grid, channels: int, stride: int
) -> Iterator[LayerCost]:
    out = start.after(channels, stride)
    shapes = parameter_shapes(name, start.channels, channels, stride=stride, affine=False)
    for layer, fields in shapes.items():
        kernel = fields["kernel"]
        macs = math.prod(kernel[:-1] if len(kernel) == 4 else kernel[:2])
        shape = (out.height, out.width, kernel[-1])
        yield LayerCost(f"{label}/{layer}", "features", shape, math.prod(kernel), macs)


def _network_layers(network: Network, variables, images, architecture=None, *_, **__):
    """The layers of a call of a network, by its arguments."""
    chosen = network.architecture if architecture is None else architecture
    if not isinstance(chosen, Architecture):
        raise ValueError("to count its costs, call the supernet with an Architecture")
    del variables
    return layer_costs(network.config, network.space, chosen, images.shape[1:])


# Any other model


class _Reading(NamedTuple):
    """A linen module or a function of which all outputs are read: no layer is the last one.

    What is only returned is written nowhere, and so would not be among the tensors.
    """

    model: Any

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        return jax.tree.map(_read, self.model.apply(*args, **kwargs))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return jax.tree.map(_read, self.model(*args, **kwargs))


def _read(x: Any) -> Any:
    return jnp.tanh(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def _with_parameters(model: Any, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """An nnx module as a function of its parameters, with these before its arguments."""
    if not isinstance(model, nnx.Module):
        return model, args
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)

    def function(parameters, *args, **kwargs):
        # Copies, that a module may update its state while it is traced.
        return nnx.merge(graph, parameters, rest, copy=True)(*args, **kwargs)

    return function, (parameters, *args)


class _Seen(NamedTuple):
    """A tensor, and the turns of the loops around it."""

    tensor: Tensor
    turns: tuple[int, ...]


def _tensors(chip: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[_Seen]:
    """Every tensor of a call, in the order in which they are computed."""
    found: dict[str, Tensor] = {}

    def note(tensor: Tensor, held) -> Any:
        found[tensor.name] = tensor
        return held.x

    seen = _shapes(lambda args, kwargs: chip.observed(note, *args, **kwargs)[1], args, kwargs)
    turns = {name: len(seen[name].shape) - len(t.shape) for name, t in found.items()}
    return [_Seen(t, seen[name].shape[: turns[name]]) for name, t in found.items()]


def _shapes(function: Callable[..., Any], *args: Any) -> Any:
    """`jax.eval_shape`, with all arguments that are no arrays known while tracing."""
    leaves, structure = jax.tree.flatten(args)
    places = [place for place, leaf in enumerate(leaves) if hasattr(leaf, "shape")]

    def run(arrays):
        whole = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            whole[place] = array
        return function(*jax.tree.unflatten(structure, whole))

    return jax.eval_shape(run, [leaves[place] for place in places])


def _traced_layers(model: Any, args, kwargs, images: int | str) -> Iterator[LayerCost]:
    """The layers that a linen module or a function runs, as it is traced."""
    count = count_images(images, args[1:], kwargs) or 1
    chip = on_hardware(model, _BARE, ignore="*", images=images)
    written = {tensor.name for tensor in chip.sites(*args, **kwargs).tensors}
    seen = _tensors(dataclasses.replace(chip, model=_Reading(model)), args, kwargs)
    kernels = _kernels(seen)
    for tensor, turns in seen:
        if tensor.kind in _COMPUTED:
            shape = (*turns, *by_image(tensor.shape, count)[1:])
            kind = tensor.kind if tensor.name in written else "returned"
            name, own = tensor.name.partition("#")[0], kernels.get(tensor.name, 0)
            yield LayerCost(name, kind, shape, own, tensor.macs)


def _kernels(seen: list[_Seen]) -> dict[str, int]:
    """Number of weights of a layer, by its path: that of the first features that it computes."""
    kernels: dict[str, int] = {}
    for tensor, turns in seen:
        if tensor.kind == "weights" and "#" not in tensor.name:  # else the same again
            differ = [n for loop, n in enumerate(turns) if loop not in tensor.repeated]
            size = math.prod((*differ, *tensor.shape))
            kernels[tensor.path] = kernels.get(tensor.path, 0) + size
    return kernels
