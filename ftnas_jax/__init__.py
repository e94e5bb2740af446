"""Fault-tolerant neural architecture search in JAX.

import ftnas_jax as ft

space = ft.Space()
hardware = ft.Hardware(faults=(ft.faults.MiBB(p_m=1e-4),))
net = ft.Network(ft.NetworkConfig(channels=8), space, hardware)
"""

from ftnas_jax import faults
from ftnas_jax.controller import Controller, ControllerConfig
from ftnas_jax.fixed_point import FixedPoint
from ftnas_jax.nn.hardware import CLEAN, Draw, Hardware
from ftnas_jax.search import Search, SearchData, SearchState
from ftnas_jax.search_config import SearchConfig
from ftnas_jax.space import PRIMITIVES, Architecture, Space
from ftnas_jax.supernet import Network, NetworkConfig

__all__ = [
    "CLEAN",
    "PRIMITIVES",
    "Architecture",
    "Controller",
    "ControllerConfig",
    "Draw",
    "FixedPoint",
    "Hardware",
    "Network",
    "NetworkConfig",
    "Search",
    "SearchConfig",
    "SearchData",
    "SearchState",
    "Space",
    "faults",
]
