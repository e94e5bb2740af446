"""Convolutions of a model, computed as `ftnas_jax.nn.conv` computes those of our own networks.

On CPU XLA runs depthwise convolutions and their gradients some ten times slower than they can be
run, gradients of dense kernels up to four times, those of 1x1 convolutions, which are products
here, three to six times, dense convolutions of few channels two to six times, and all gradients of
convolutions in loops fifty times. Results are the same up to rounding, except that a pixel which is
not finite spoils more of its row (`ftnas_jax.nn.narrow`). Of dense convolutions wider than 1x1 and
of depthwise ones forward-mode differentiation, `jax.jvp`, is not to be had. Off CPU, and where
stride, padding or layout are others, XLA's convolution stays.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ftnas_jax.graph.graph import Node
from ftnas_jax.nn.conv import conv2d, depthwise_conv2d, on_cpu

_NHWC, _HWIO = (0, 3, 1, 2), (3, 2, 0, 1)


def is_ours(node: Node) -> bool:
    """Whether `run_convolution` computes what a node says."""
    if node.name != "conv_general_dilated" or not on_cpu():
        return False
    x, kernel = (value.aval for value in node.inputs)
    numbers = node.params["dimension_numbers"]
    if (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec) != (_NHWC, _HWIO, _NHWC):
        return False
    size = kernel.shape[0]
    return (
        x.dtype == kernel.dtype == jnp.float32
        and kernel.shape[1] == size
        and size % 2 == 1
        and _is_centred(node.params, size)
        and (_is_dense(node) or _is_depthwise(node))
    )


def _is_centred(params: dict[str, Any], size: int) -> bool:
    """Whether stride, dilation and padding are those of `ftnas_jax.nn.conv`."""
    strides, dilations = params["window_strides"], params["rhs_dilation"]
    pad = dilations[0] * (size - 1) // 2
    return (
        strides[0] == strides[1]
        and dilations[0] == dilations[1]
        and tuple(params["lhs_dilation"]) == (1, 1)
        and tuple(map(tuple, params["padding"])) == ((pad, pad),) * 2
        and params["batch_group_count"] == 1
    )


def _is_dense(node: Node) -> bool:
    return node.params["feature_group_count"] == 1 and node.params["rhs_dilation"][0] == 1


def _is_depthwise(node: Node) -> bool:
    """Every channel has one kernel of its own."""
    channels, outputs = node.inputs[0].shape[-1], node.inputs[1].shape[-1]
    return node.params["feature_group_count"] == channels == outputs


def run_convolution(node: Node, values: Sequence[Any]) -> list[Any]:
    """The output of a node of which `is_ours` is true."""
    x, kernel = values
    stride, dilation = node.params["window_strides"][0], node.params["rhs_dilation"][0]
    if _is_dense(node):
        return [conv2d(x, kernel, stride=stride)]
    return [depthwise_conv2d(x, kernel[:, :, 0], stride=stride, dilation=dilation)]
