"""Any model on faulty hardware, without a change to it.

    chip = ft.on_hardware(model, ft.Hardware(faults=ft.faults.parse("stuck_at:p0=0.067,p1=0.013")))
    logits = chip.apply(variables, images, draw=ft.Draw(key))            # Flax linen
    logits = chip(images, draw=ft.Draw(key))                             # Flax nnx
    logits = chip(parameters, images, draw=ft.Draw(key))                 # a function, any framework

The model is traced, its layers are found among what JAX computes, and it is run again with weights
and features as the hardware holds them; see `ftnas_jax.graph.analysis` for what is found where.
Jit, vmap and grad work through it; jit it, or it is traced at every call. Recomputation by remat
is given up: values are the same, memory is not saved. Images lie along the first dimension of data:
of features that have them along another, the faults of an image depend on the batch it is in.
"""

import dataclasses
import functools
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Self, get_args

import flax.linen as nn
import jax
import numpy as np
from flax import nnx

from ftnas_jax.faults import Site, check_layers
from ftnas_jax.graph.analysis import CONSTANT, DATA, PARAMETER, Planner
from ftnas_jax.graph.graph import Graph, trace
from ftnas_jax.graph.lengths import Lengths, check_format, check_names
from ftnas_jax.graph.network import NetworkOnHardware
from ftnas_jax.graph.plan import Plan, Tensor
from ftnas_jax.graph.run import Observe, Observed, Run
from ftnas_jax.graph.sites import Sites
from ftnas_jax.nn.hardware import CLEAN, SITES, Draw, Hardware
from ftnas_jax.supernet import Network


class Call(NamedTuple):
    """A call of a model as one of a pure function.

    Attributes:
        function: (variables, *arguments) → outputs.
        variables: a tree of arrays, weights among them.
        names: path of a leaf of the variables → its path as a parameter, empty for all else.
    """

    function: Callable[..., Any]
    variables: Any
    names: Callable[[str], str]


@dataclasses.dataclass(frozen=True)
class _OnHardware:
    """A model on hardware.

    Attributes:
        model: as it was given.
        hardware: number formats and faults.
        ignore: patterns of paths, joined by `|`, of parameters that stay in float32 though they
            multiply features element by element.
        images: which argument holds the images, along its first dimension: its place behind the
            parameters, or its name.
        lengths: frozen fraction lengths of features, by the tensor's name; those that are not
            there follow the features at hand.
    """

    model: Any
    hardware: Hardware
    ignore: str = ""
    images: int | str = 0
    lengths: Lengths = dataclasses.field(default_factory=dict, hash=False)

    def _pure(self, args: tuple[Any, ...]) -> tuple[Call, tuple[Any, ...]]:
        """The call with these positional arguments, and those that are no variables."""
        raise NotImplementedError

    def observed(
        self, observe: Observe | None, *args: Any, draw: Draw = CLEAN, **kwargs: Any
    ) -> tuple[Any, Observed]:
        """What a pure call returns, and what `observe` makes of every tensor, by its name."""
        call, rest = self._pure(args)
        planned = self._planned(call, rest, kwargs)
        batch = count_images(self.images, rest, kwargs)
        run = Run(self.hardware, batch, self.lengths, observe)
        inputs = [*jax.tree.leaves(call.variables), *planned.data]
        outputs, seen = run.graph(planned.graph, planned.plan, inputs, draw)
        return jax.tree.unflatten(planned.outputs, outputs), seen

    def with_hardware(self, hardware: Hardware) -> Self:
        """The same model, with the same frozen fraction lengths, on other hardware.

        Raises:
            ValueError: the lengths were frozen for another format of features.
        """
        check_format(self.lengths, self.hardware.features, hardware.features)
        return dataclasses.replace(self, hardware=hardware)

    def sites(self, *args: Any, **kwargs: Any) -> Sites:
        """What may fail in a call with these arguments, or arguments of their shapes."""
        call, rest = self._pure(args)
        planned = self._planned(call, rest, kwargs)
        return Sites(planned.tensors, planned.floats, planned.fixed)

    def _planned(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "_Planned":
        data, rebuild = _split((args, kwargs))
        leaves, structure = jax.tree.flatten(call.variables)

        def function(leaves, data):
            args, kwargs = rebuild(data)
            return call.function(jax.tree.unflatten(structure, leaves), *args, **kwargs)

        graph, outputs = trace(function, leaves, data)
        paths = jax.tree_util.tree_leaves_with_path(call.variables)
        names = [call.names(path_name(path)) for path, _ in paths]
        origins = [PARAMETER if name else CONSTANT for name in names] + [DATA] * len(data)
        planner = Planner(lambda name: matches(name, self.ignore))
        plan = planner.plan(graph, origins, names + [""] * len(data))
        tensors = sorted(plan.all_tensors(), key=planner.place)
        _check(self.hardware, tensors)
        check_names(self.lengths, (t.name for t in tensors if t.kind != "weights"))
        floats = tuple(name for name in names if name and name not in planner.used)
        fixed = tuple(dict.fromkeys(planner.fixed))
        return _Planned(graph, plan, tuple(tensors), floats, fixed, outputs, data)


class _Planned(NamedTuple):
    graph: Graph
    plan: Plan
    tensors: tuple[Tensor, ...]
    floats: tuple[str, ...]
    fixed: tuple[str, ...]
    outputs: Any
    data: list[Any]


@dataclasses.dataclass(frozen=True)
class FunctionOnHardware(_OnHardware):
    """A function `(parameters, *arguments)` on hardware; see `on_hardware`."""

    def __call__(self, parameters: Any, *args: Any, draw: Draw = CLEAN, **kwargs: Any) -> Any:
        """What the function returns on this hardware.

        Args:
            parameters: a tree of arrays, weights among them.
            *args: of the function. Arrays are data, all else is known while tracing.
            draw: faults of this pass; its key is consumed. By default there are none.
            **kwargs: of the function, like `args`.
        """
        return self.observed(None, parameters, *args, draw=draw, **kwargs)[0]

    def _pure(self, args):
        return Call(self.model, args[0], lambda name: name), args[1:]


@dataclasses.dataclass(frozen=True)
class LinenOnHardware(_OnHardware):
    """A Flax linen module on hardware; its weights are in the collection `params`."""

    def apply(self, variables: Any, *args: Any, draw: Draw = CLEAN, **kwargs: Any) -> Any:
        """As the module's own `apply`; `draw` says which faults this pass has."""
        return self.observed(None, variables, *args, draw=draw, **kwargs)[0]

    def _pure(self, args):
        def names(path: str) -> str:
            return path.removeprefix("params/") if path.startswith("params/") else ""

        return Call(self.model.apply, args[0], names), args[1:]


@dataclasses.dataclass(frozen=True)
class NNXOnHardware(_OnHardware):
    """A Flax nnx module on hardware; its weights are its `nnx.Param`s."""

    def __call__(self, *args: Any, draw: Draw = CLEAN, **kwargs: Any) -> Any:
        """As the module's own call, its state updated; `draw` says which faults this pass has."""
        (outputs, state), _ = self.observed(None, *args, draw=draw, **kwargs)
        before = jax.tree.leaves(nnx.split(self.model, nnx.Param, ...)[2])
        # Flax lets nobody update a module within vmap or jit, not even by what it has already.
        if any(new is not old for new, old in zip(jax.tree.leaves(state), before, strict=True)):
            nnx.update(self.model, state)
        return outputs

    def _pure(self, args):
        graph, parameters, rest = nnx.split(self.model, nnx.Param, ...)

        def function(variables, *args, **kwargs):
            module = nnx.merge(graph, *variables)
            outputs = module(*args, **kwargs)
            return outputs, nnx.split(module, nnx.Param, ...)[2]

        def names(path: str) -> str:
            first, _, name = path.partition("/")
            return name if first == "0" else ""

        return Call(function, (parameters, rest), names), args


def on_hardware(
    model: Any,
    hardware: Hardware,
    *,
    ignore: str = "",
    images: int | str = 0,
    lengths: Lengths | None = None,
) -> Any:
    """A model on hardware.

    Args:
        model: a Flax linen module, an nnx module, or a function `(parameters, *arguments)`. A
            `ftnas_jax.Network` computes on this hardware itself, and has no `ignore`.
        hardware: number formats and faults.
        ignore: patterns of paths, joined by `|`, of parameters that stay in float32 though they
            multiply features element by element.
        images: which argument holds the images, along its first dimension: its place behind the
            parameters, or its name. Faults that are drawn by image go by it.
        lengths: frozen fraction lengths of features; see `ftnas_jax.graph.calibration`.

    Returns:
        For a linen module an object with its `apply`, else one that is called as the model is; each
        takes a `draw` more, and can list its `sites`.

    Raises:
        TypeError: the model is none of these.
        ValueError: a `Network` is given `ignore`.
    """
    if isinstance(model, Network):
        if ignore:
            raise ValueError("a Network computes on hardware itself: it takes no ignore")
        return NetworkOnHardware(model, hardware, dict(lengths or {}))
    if isinstance(model, nn.Module):
        kind = LinenOnHardware
    elif isinstance(model, nnx.Module):
        kind = NNXOnHardware
    elif callable(model):
        kind = FunctionOnHardware
    else:
        raise TypeError(
            f"{type(model).__name__} is no model: give a Flax module or a function of parameters"
        )
    return kind(model, hardware, ignore, images, dict(lengths or {}))


def count_images(images: int | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Number of images in a call, None where the argument that holds them is no array.

    Raises:
        ValueError: there is no such argument, or it holds one image where others hold several.
    """
    places = dict(enumerate(args)) | kwargs
    if images not in places:
        raise ValueError(
            f"the call has no argument {images!r} with images in it; name the one that has, as in "
            "on_hardware(model, hardware, images='x')"
        )
    counts = [leaf.shape[0] for leaf in _arrays(places[images]) if leaf.ndim]
    others = [leaf.shape for leaf in _arrays((args, kwargs)) if leaf.ndim > 1 and leaf.shape[0] > 1]
    if counts and counts[0] == 1 and others:
        raise ValueError(
            f"argument {images!r} holds one image, and another is of shape {others[0]}; say which "
            "one holds the images, as in on_hardware(model, hardware, images=1)"
        )
    return counts[0] if counts else None


def _check(hardware: Hardware, tensors: list[Tensor]) -> None:
    """Raise ValueError where there is no layer, or faults name one that is not there."""
    if not any(tensor.kind == "weights" for tensor in tensors):
        raise ValueError(
            "no layer was found: no parameter is multiplied with an argument of the model by a "
            "convolution or a dot_general; pass parameters first, and images as an argument"
        )
    faulty = [tensor for tensor in tensors if tensor.faulty]
    paths = {s: [t.path for t in faulty if s in SITES[t.kind]] for s in get_args(Site)}
    check_layers(hardware.faults, paths)


def path_name(path: tuple[Any, ...]) -> str:
    """A path in a tree as text, as in `encoder/conv_0/kernel`; a tree may be one array alone.

    Boxes around arrays, as nnx and `nn.with_partitioning` have them, are no part of it.
    """
    if getattr(path[-1] if path else None, "name", "") == "value":
        path = path[:-1]
    parts = (getattr(p, "key", getattr(p, "name", getattr(p, "idx", p))) for p in path)
    return "/".join(str(part) for part in parts) or "weight"


def matches(name: str, patterns: str) -> bool:
    """Whether a path fits one of some patterns, joined by `|`; none of them where that is empty."""
    return any(fnmatchcase(name, p.strip()) for p in patterns.split("|") if p.strip())


def _arrays(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if _is_array(leaf)]


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))


def jitted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled for the arrays among its arguments; all else is known while tracing."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(known, arrays):
        structure, leaves = known
        own = iter(arrays)
        whole = [next(own) if leaf is _is_array else leaf for leaf in leaves]
        return function(*jax.tree.unflatten(structure, whole))

    def call(*args):
        leaves, structure = jax.tree.flatten(args)
        known = tuple(_is_array if _is_array(leaf) else leaf for leaf in leaves)
        return run((structure, known), [leaf for leaf in leaves if _is_array(leaf)])

    return call


def _split(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The arrays of a tree, and how to put arrays back among what else it holds."""
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]

    def rebuild(arrays: list[Any]) -> Any:
        whole = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            whole[place] = array
        return jax.tree.unflatten(structure, whole)

    return [leaves[i] for i in places], rebuild
