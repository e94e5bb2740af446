"""Depthwise convolutions of a model, computed as `ftnas_jax.nn.conv` computes our own.

XLA runs them and their gradients slowly on CPU, and a network of them, as MobileNet-V2, with them.
The sums are the same up to rounding. Forward-mode differentiation, `jax.jvp`, is not to be had of
this form. Off CPU, and where stride, padding or layout are others, XLA's convolution stays.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ftnas_jax.graph.graph import Node
from ftnas_jax.nn.conv import depthwise_conv2d, on_cpu

_NHWC, _HWIO = (0, 3, 1, 2), (3, 2, 0, 1)


def is_fast_depthwise(node: Node) -> bool:
    """Whether `run_depthwise` computes what a node says, and faster."""
    if node.name != "conv_general_dilated" or not on_cpu():
        return False
    x, kernel = (value.aval for value in node.inputs)
    numbers = node.params["dimension_numbers"]
    if (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec) != (_NHWC, _HWIO, _NHWC):
        return False
    if x.dtype != jnp.float32 or kernel.dtype != jnp.float32:
        return False
    channels, size = x.shape[-1], kernel.shape[0]
    if kernel.shape != (size, size, 1, channels) or size % 2 == 0:
        return False
    return _is_centred(node.params, size, channels)


def _is_centred(params: dict[str, Any], size: int, channels: int) -> bool:
    """Whether stride, dilation and padding are those of `depthwise_conv2d`."""
    strides, dilations = params["window_strides"], params["rhs_dilation"]
    pad = dilations[0] * (size - 1) // 2
    return (
        params["feature_group_count"] == channels
        and params["batch_group_count"] == 1
        and tuple(params["lhs_dilation"]) == (1, 1)
        and strides[0] == strides[1]
        and dilations[0] == dilations[1]
        and tuple(map(tuple, params["padding"])) == ((pad, pad),) * 2
    )


def run_depthwise(node: Node, values: Sequence[Any]) -> list[Any]:
    """The output of a node of which `is_fast_depthwise` is true."""
    x, kernel = values
    stride, dilation = node.params["window_strides"][0], node.params["rhs_dilation"][0]
    return [depthwise_conv2d(x, kernel[:, :, 0], stride=stride, dilation=dilation)]
