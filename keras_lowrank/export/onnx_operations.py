"""Handlers for operations that tf2onnx does not convert."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np


def _erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """`1 - erf(x)`."""
    x = node.input[0]
    _replace(context, node, "Sub", [_one(context, x), _node(context, "Erf", [x])])


def _expm1(context: Any, node: Any, name: str, args: Any) -> None:
    """`exp(x) - 1`."""
    x = node.input[0]
    _replace(context, node, "Sub", [_node(context, "Exp", [x]), _one(context, x)])


def _log1p(context: Any, node: Any, name: str, args: Any) -> None:
    """`log(1 + x)`."""
    x = node.input[0]
    _replace(context, node, "Log", [_node(context, "Add", [_one(context, x), x])])


def _conv3d(context: Any, node: Any, name: str, args: Any) -> None:
    """A convolution with groups, which tf2onnx only reads in two dimensions."""
    channels = context.get_shape(node.input[0])[
        1 if node.attr["data_format"].s[1:2] == b"C" else -1
    ]
    inputs = context.get_shape(node.input[1])[-2]
    module = importlib.import_module("tf2onnx.onnx_opset.nn")
    module.ConvOp.any_version(context.opset, context, node)
    node.set_attr("group", channels // inputs)


HANDLERS: dict[str, tuple[Callable[..., None], list[str]]] = {
    name: (handler, [])
    for name, handler in {
        "Erfc": _erfc,
        "Expm1": _expm1,
        "Log1p": _log1p,
        "Conv3D": _conv3d,
    }.items()
}


def _replace(context: Any, node: Any, kind: str, inputs: list[str]) -> None:
    """Replaces a node with another operation that has one output."""
    shapes, dtypes, outputs = [node.output_shapes[0]], [node.output_dtypes[0]], list(node.output)
    context.remove_node(node.name)
    context.make_node(kind, inputs, outputs=outputs, shapes=shapes, dtypes=dtypes)


def _node(context: Any, kind: str, inputs: list[str]) -> str:
    return context.make_node(kind, inputs).output[0]


def _one(context: Any, like: str) -> str:
    numpy_type = importlib.import_module("tf2onnx.utils").map_onnx_to_numpy_type
    value = np.ones((), numpy_type(context.get_dtype(like)))
    return context.make_const(f"one_{like}", value).output[0]
