"""Operators that read or write at indices: what is negative counts from the end.

TVM's converters ask for the extent of an axis when the network runs; here it is known. Indices that
are computed when it runs are kept within the axis, as nobody may read or write beside a tensor.
"""

from typing import Any

import numpy as np
from tvm import relax

from ..rewriter import constant, dtype_of, shape_of, value_of
from .convert import converter
from .graph import Graph
from .nodes import Node, rule


def _normalized(builder: Any, indices: Any, extents: Any) -> Any:
    """Return indices from 0 to below extents, an array that is broadcast to their shape."""
    extents = np.asarray(extents)
    known = value_of(indices)
    if known is not None:
        known = known.astype(np.int64)
        if ((known < -extents) | (known >= extents)).any():
            raise ValueError(f"index {known.tolist()} is outside of an axis of {extents.tolist()}")
        return constant(np.where(known < 0, known + extents, known))
    dtype = dtype_of(indices)
    if dtype not in ("int32", "int64"):
        dtype, indices = "int64", relax.op.astype(indices, "int64")
    zero, size, last = (constant(np.asarray(v, dtype)) for v in (0, extents, extents - 1))
    counted = relax.op.where(relax.op.less(indices, zero), relax.op.add(indices, size), indices)
    return builder.normalize(relax.op.minimum(relax.op.maximum(counted, zero), last))


@converter("Gather")
def _gather(builder: Any, inputs: Any, attributes: Any, _: Any) -> Any:
    x, indices = inputs
    axis = attributes.get("axis", 0)
    return relax.op.take(x, _normalized(builder, indices, shape_of(x)[axis]), axis, "clip")


@converter("GatherElements")
def _gather_elements(builder: Any, inputs: Any, attributes: Any, _: Any) -> Any:
    x, indices = inputs
    axis = attributes.get("axis", 0) % len(shape_of(x))
    return relax.op.gather_elements(x, _normalized(builder, indices, shape_of(x)[axis]), axis)


@converter("GatherND")
def _gather_nd(builder: Any, inputs: Any, attributes: Any, _: Any) -> Any:
    x, indices = inputs
    first = attributes.get("batch_dims", 0)
    extents = shape_of(x)[first : first + shape_of(indices)[-1]]
    return relax.op.gather_nd(x, _normalized(builder, indices, extents), first)


def _reduction(attributes: Any) -> str:
    reduction = attributes.get("reduction", b"none").decode()
    return "update" if reduction == "none" else str(reduction)


@converter("ScatterElements")
def _scatter_elements(builder: Any, inputs: Any, attributes: Any, _: Any) -> Any:
    x, indices, updates = inputs
    axis = attributes.get("axis", 0) % len(shape_of(x))
    indices = _normalized(builder, indices, shape_of(x)[axis])
    return relax.op.scatter_elements(x, indices, updates, axis, _reduction(attributes))


@converter("ScatterND")
def _scatter_nd(builder: Any, inputs: Any, attributes: Any, _: Any) -> Any:
    x, indices, updates = inputs
    indices = _normalized(builder, indices, shape_of(x)[: shape_of(indices)[-1]])
    return relax.op.scatter_nd(x, indices, updates, _reduction(attributes))


@rule("OneHot")
def one_hot(graph: Graph, node: Node) -> str:
    """Compare indices with all numbers below the depth."""
    indices, depth, values = node.inputs
    count = int(graph.value(depth).item())
    rank = len(graph.shape(indices)) + 1
    axis = node.get("axis") % rank
    dtype = graph.dtype(indices)
    numbers = np.arange(count, dtype=dtype).reshape(-1, *[1] * (rank - axis - 1))
    index = graph.emit("Unsqueeze", indices, graph.constant([axis], np.int64))
    equal = graph.emit("Equal", index, graph.constant(numbers))
    if dtype.kind != "u":
        # Those that count from the end.
        other = graph.emit("Equal", index, graph.constant(numbers - count))
        equal = graph.emit("Or", equal, other)
    off, on = (graph.emit("Gather", values, graph.constant(at, np.int64), axis=0) for at in (0, 1))
    return str(graph.emit("Where", equal, on, off))
