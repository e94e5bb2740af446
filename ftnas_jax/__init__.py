"""Which neural network survives faulty hardware, and how to find a better one, in JAX.

import ftnas_jax as ft

hardware = ft.Hardware(faults=ft.faults.parse("stuck_at:p0=0.067,p1=0.013"))
chip = ft.on_hardware(model, hardware)  # any Flax model, or a function of parameters
logits = chip.apply(variables, images, draw=ft.Draw(key))

space = ft.Space()
hardware = ft.Hardware(faults=(ft.faults.MiBB(p_m=1e-4),))
net = ft.Network(ft.NetworkConfig(channels=8), space, hardware)
"""

import importlib
from typing import Any

from ftnas_jax import faults, models
from ftnas_jax.campaigns.campaign import Run, campaign, compare
from ftnas_jax.campaigns.outcome import Report
from ftnas_jax.campaigns.sensitivity import sensitivity
from ftnas_jax.campaigns.single import single_faults
from ftnas_jax.campaigns.subject import as_subject
from ftnas_jax.controller import Controller, ControllerConfig
from ftnas_jax.costs import Costs, costs_at, count_costs
from ftnas_jax.fixed_point import FixedPoint
from ftnas_jax.graph.calibration import (
    Accuracies,
    accuracies,
    calibrate,
    load_lengths,
    save_lengths,
)
from ftnas_jax.graph.exposure import Exposure, exposure
from ftnas_jax.graph.hold import hold
from ftnas_jax.graph.model import on_hardware
from ftnas_jax.graph.recalibration import recalibrate
from ftnas_jax.nn.hardware import CLEAN, Draw, Hardware
from ftnas_jax.search import Search, SearchData, SearchState
from ftnas_jax.search_config import SearchConfig
from ftnas_jax.space import PRIMITIVES, Architecture, Space
from ftnas_jax.supernet import Network, NetworkConfig

__all__ = [
    "CLEAN",
    "PRIMITIVES",
    "Accuracies",
    "Architecture",
    "Controller",
    "ControllerConfig",
    "Costs",
    "Draw",
    "Exposure",
    "FixedPoint",
    "Hardware",
    "Network",
    "NetworkConfig",
    "Report",
    "Run",
    "Search",
    "SearchConfig",
    "SearchData",
    "SearchState",
    "Space",
    "accuracies",
    "as_subject",
    "calibrate",
    "campaign",
    "compare",
    "costs_at",
    "count_costs",
    "exposure",
    "faults",
    "hold",
    "load_lengths",
    "models",
    "on_hardware",
    "recalibrate",
    "save_lengths",
    "sensitivity",
    "single_faults",
]


def __getattr__(name: str) -> Any:
    """`plots` when it is asked for: who draws nothing does not wait for matplotlib."""
    if name == "plots":
        return importlib.import_module("ftnas_jax.plots")
    raise AttributeError(f"module 'ftnas_jax' has no attribute {name!r}")
