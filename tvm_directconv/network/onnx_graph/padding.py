"""Rules for padding."""

from typing import Any

import numpy as np
from tvm import relax

from ..rewriter import value_of
from .convert import converter
from .graph import Graph
from .nodes import CONVERTERS, Node, Refusal, rule

_of_any_type = CONVERTERS["Pad"]


@converter("Pad")
def padded(builder: Any, inputs: Any, attributes: Any, parameters: Any) -> Any:
    """Pad floats by the operator that passes over the network know."""
    x = inputs[0]
    if str(x.ty.dtype) != "float32":
        return _of_any_type(builder, inputs, attributes, parameters)
    pads, value = value_of(inputs[1]), value_of(inputs[2])
    assert pads is not None and value is not None
    width = pads.reshape(2, -1).T.ravel().tolist()
    return relax.op.nn.pad(x, width, "constant", float(value.item()))


@rule("Pad")
def pad(graph: Graph, node: Node) -> str | None:
    """Cut off where pads are negative, and take from the input what is not constant."""
    x, shape = node.inputs[0], graph.shape(node.inputs[0])
    rank, mode = len(shape), node.get("mode")
    given = graph.value(node.input(1)).ravel().tolist()
    axes = graph.value(node.input(3)).tolist() if node.input(3) else list(range(rank))
    if len(given) != 2 * len(axes) or not all(-rank <= axis < rank for axis in axes):
        raise Refusal(f"its pads are {given} on axes {axes}: expected two for each of {rank} axes")
    pads = np.zeros((2, rank), int)
    pads[:, [axis % rank for axis in axes]] = np.reshape(given, (2, -1))
    sizes = np.array(shape) + pads.sum(0)
    if sizes.min(initial=1) < 1:
        raise Refusal(f"its result has shape {tuple(sizes)}: expected sizes from 1")
    if not pads.any():
        return x
    if mode == "constant" and pads.min() >= 0:
        value = graph.value(node.input(2)) if node.input(2) else np.zeros((), graph.dtype(x))
        node.inputs = [x, graph.constant(pads.ravel(), np.int64), graph.constant(value)]
        node.attributes = {}
        return None
    if mode == "constant":
        starts = graph.constant(np.maximum(-pads[0], 0), np.int64)
        ends = graph.constant(np.array(shape) + np.minimum(pads[1], 0), np.int64)
        x = graph.emit("Slice", x, starts, ends)
        more = graph.constant(np.maximum(pads, 0).ravel(), np.int64)
        return str(graph.emit("Pad", x, more, node.input(2)))
    for axis, (before, after) in enumerate(pads.T):
        if before or after:
            indices = _indices(shape[axis], int(before), int(after), mode)
            x = graph.emit("Gather", x, graph.constant(indices, np.int64), axis=axis)
    return x


def _indices(size: int, before: int, after: int, mode: str) -> np.ndarray:
    """Return which elements of an axis are where in the padded one."""
    at = np.arange(-before, size + after)
    match mode:
        case "edge":
            return np.clip(at, 0, size - 1)
        case "wrap":
            return at % size
        case "reflect":
            period = max(1, 2 * (size - 1))
            at = at % period
            return np.minimum(at, period - at) if size > 1 else np.zeros_like(at)
        case _:
            raise Refusal(f"its mode {mode!r} is unknown")
