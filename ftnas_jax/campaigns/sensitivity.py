"""Which layer, which cell edge, which bit costs most: faults in one group at a time.

    report = ft.sensitivity(model, variables, test_set, faults="mibb:p_m=1e-4", by="layer", key=key)
    print(report)
    plots.save_figure(plots.draw_sensitivity(report), "sensitivity")

Every group meets the same chips: a layer that fails alone has the faults that it has where all
fail. What a group costs is the clean accuracy minus that of its chips. One program serves all
groups, the failing one being a number that it takes; or, where that saves more than it takes to
compile, each group of layers has a program of its own, in which what comes before the group is
computed once for several chips.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ftnas_jax.campaigns.campaign import Campaign, Run
from ftnas_jax.campaigns.outcome import Report
from ftnas_jax.campaigns.points import Faults, Point, as_models
from ftnas_jax.campaigns.settings import Settings
from ftnas_jax.campaigns.subject import Subject, as_subject
from ftnas_jax.faults import FaultModel, Only, Site
from ftnas_jax.faults.only import fits
from ftnas_jax.nn.hardware import SITES, Hardware
from ftnas_jax.processes import agree

_AT_ONCE = 8
"""Chips for which what comes before a group is computed once."""

_NOWHERE = "!*"
"""Layers of a model that finds none in a group where another one acts."""

Layers = dict[str, tuple[bool, ...]]
"""By path, in the order of computation: for each model whether it acts in the layer."""

By = Literal["layer", "edge", "block", "bit"]
BY: tuple[By, ...] = ("layer", "edge", "block", "bit")
"""A layer's whole path, what stands before its last `/`, before its first, or a bit of a code."""


def sensitivity_points(
    subject: Subject, images: Any, faults: Faults, by: Sequence[By], *, own_programs: bool = False
) -> tuple[Point, ...]:
    """A point for every group, or for every pair of a group of layers and a bit.

    Args:
        subject: the network.
        images: as it takes them; only their shape matters.
        faults: models that act together; each in the group alone.
        by: what makes a group: one of `BY`, or one of the others together with `bit`.
        own_programs: whether each group of layers has a program of its own.

    Raises:
        ValueError: `by` is something else, no layer fails, or faults have no bits of their own.
    """
    layers = _layers(subject, images, faults)
    kinds: list[By] = [kind for kind in by if kind != "bit"]
    if not set(by) <= set(BY) or len(set(by)) < len(by) or len(kinds) > 1 or not by:
        raise ValueError(
            f"by is {','.join(by)!r}; take one of {', '.join(BY)}, or bit and one of the others"
        )
    bits = list(_bits(subject, faults)) if "bit" in by else [None]
    groups: list[str | None] = [None]
    if kinds:
        groups = list(_groups([path for path, acting in layers.items() if any(acting)], kinds[0]))
    return tuple(
        _point(faults, layers, groups, place, bit, own_programs)
        for place in range(len(groups))
        for bit in bits
    )


def _layers(subject: Subject, images: Any, faults: Faults) -> Layers:
    """The layers that have what any of the models acts on."""
    sizes = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    sites: dict[str, set[Site]] = {}
    for tensor in subject.sites(sizes, faults).tensors:
        if tensor.faulty:
            sites.setdefault(tensor.path, set()).update(SITES[tensor.kind])
    return {
        path: tuple(model.site in own and model.acts_at(path) for model in faults)
        for path, own in sites.items()
        if any(model.site in own for model in faults)
    }


def _groups(paths: Sequence[str], kind: By) -> list[str]:
    """Patterns of paths, in the order of computation."""
    patterns = {
        "layer": lambda path: path,
        "edge": lambda path: f"{path.rpartition('/')[0]}/*" if "/" in path else path,
        "block": lambda path: f"{path.partition('/')[0]}/*" if "/" in path else path,
    }
    if not paths:
        raise ValueError("the faults act in no layer; there is nothing to tell apart")
    return list(dict.fromkeys(patterns[kind](path) for path in paths))


def _bits(subject: Subject, faults: Faults) -> range:
    (model,) = faults if len(faults) == 1 else (None,)
    if model is None or not hasattr(model, "bit"):
        raise ValueError("by bit: give one model whose faults are of single bits, as bit_flip")
    hardware = subject.on(faults).hardware
    fmt = hardware.format("weights" if model.site == "weights" else "features")
    assert fmt is not None  # Hardware refuses faults without codes
    # A magnitude has one bit less than a code.
    return range(fmt.bits - (model.name == "stuck_bits"))


def _point(
    faults: Faults,
    layers: Layers,
    groups: Sequence[str | None],
    place: int,
    bit: int | None,
    own: bool,
) -> Point:
    group = groups[place]
    patterns = [_within(group, layers, number) for number in range(len(faults))]
    shown = tuple(map(functools.partial(_restricted, bit=bit), faults, patterns))
    if own:
        bits = () if bit is None else (bit,)
        program = tuple(
            model.at_bit(*bits) if bits else model for model in map(_restricted, faults, patterns)
        )
    else:
        every = tuple(pattern for pattern in groups if pattern is not None)
        program = tuple(_chosen(model, every, place, bit) for model in faults)
    return Point(shown, group=group, bit=bit, program=program)


def _within(group: str | None, layers: Layers, number: int) -> str | None:
    """Patterns of the layers of a group in which the model of a number acts."""
    if group is None:
        return None
    within = {path: acting[number] for path, acting in layers.items() if fits(path, group)}
    if all(within.values()):
        return group
    return "|".join(path for path, acts in within.items() if acts) or _NOWHERE


def _restricted(model: FaultModel, layers: str | None, bit: int | None = None) -> FaultModel:
    """The model as text names it, which acts in one group alone."""
    fields: dict[str, Any] = {}
    if layers is not None:
        fields["layers"] = layers
    if bit is not None:
        fields["bits"] = str(bit)
    return dataclasses.replace(model, **fields)


def _chosen(
    model: FaultModel, patterns: tuple[str, ...], place: int, bit: int | None
) -> FaultModel:
    """The model as a program takes it that serves all groups and bits."""
    if bit is not None:
        model = model.at_bit(bit)
    if patterns:
        model = dataclasses.replace(model, only=Only(patterns, place))
    return model


def sensitivity(
    model: Any,
    variables: Any,
    test_set: tuple[Any, Any],
    *,
    faults: FaultModel | Sequence[FaultModel] | str,
    key: jax.Array,
    by: By | Sequence[By] = "layer",
    chips: int = 32,
    own_programs: bool | None = None,
    norm_images: Any = None,
    run: Run | None = None,
    batch_size: int | None = None,
    workdir: str | Path | None = None,
) -> Report:
    """What faults cost where they act in one group of layers, or in one bit, at a time.

    Args:
        model: as `ftnas_jax.campaigns.campaign.campaign` takes it.
        variables: of the model; None for an nnx module.
        test_set: images as the model takes them, float32 [N, ...], and labels int [N].
        faults: models that act together, or their text.
        key: typed key of all chips.
        by: `layer`, `edge` (of a cell), `block` or `bit`, or `bit` and one of the others.
        chips: of every group.
        own_programs: whether each group of layers is compiled on its own, so that what comes
            before it is computed once for several chips; None for what takes less time.
        norm_images: as `ftnas_jax.campaigns.campaign.campaign` takes them.
        run: how to use the machine.
        batch_size: images at a time.
        workdir: directory of the rows; a campaign in it goes on. None for nowhere.

    Returns:
        An outcome for each group, which `ftnas_jax.plots.draw_sensitivity` draws.

    Raises:
        ValueError: in one line, for what does not fit.
        RunError: the workdir holds another campaign.
    """
    models = as_models(faults)
    subject = as_subject(model, variables, Hardware(faults=models), norm_images=norm_images)
    kinds: Sequence[By] = (by,) if isinstance(by, str) else by
    with open_sensitivity(
        *(subject, test_set, models, kinds, key, Settings(chips)),
        own_programs=own_programs,
        run=run or Run(),
        batch_size=batch_size,
        workdir=workdir,
    ) as job:
        return job.run()


def open_sensitivity(
    subject: Subject,
    test_set: tuple[Any, Any],
    faults: Faults,
    by: Sequence[By],
    key: jax.Array,
    settings: Settings,
    *,
    own_programs: bool | None = None,
    run: Run,
    batch_size: int | None = None,
    workdir: str | Path | None = None,
) -> Campaign:
    """The campaign that `sensitivity` runs; arguments as there and as `Campaign` has them."""

    def campaign(own: bool) -> Campaign:
        visited = sensitivity_points(subject, test_set[0], faults, by, own_programs=own)
        at_once = dataclasses.replace(run, chunk=run.chunk or _AT_ONCE) if own else run
        options = {"batch_size": batch_size, "run": at_once, "workdir": workdir}
        return Campaign([subject], test_set, visited, key, settings, **options)

    if own_programs is not None:
        return campaign(own_programs)
    job = campaign(False)
    try:
        speed = job.speed()
    except BaseException:
        job.close()
        raise
    # What comes before a group is half of the network on average.
    saved = 0.0 if speed is None else speed.seconds_a_chip * settings.chips / 2
    if speed is None or agree(saved - speed.compile_seconds) <= 0:
        return job
    job.close()
    return campaign(True)
