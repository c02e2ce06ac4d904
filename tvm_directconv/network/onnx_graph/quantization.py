"""Rules for quantised operators: whole numbers as floats, which hold them exactly.

What is constant is computed here, so that a convolution of dequantised weights has constant ones.
"""

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from .graph import Graph
from .nodes import Node, Refusal, rule

_EXACT = 2**24
"""Whole numbers up to this one are exact in single precision."""


def _along(graph: Graph, name: str, x: str, node: Node) -> str:
    """Return scales or zero points in the shape that is broadcast to that of `x`."""
    shape, own = graph.shape(x), graph.shape(name)
    if own in ((), (1,)):
        return _reshaped(graph, name, [])
    axis, block = node.get("axis"), node.get("block_size")
    rank = len(shape)
    axis = 0 if rank == 1 and axis == 1 else axis % rank
    if block:
        repeated = graph.constant(np.arange(shape[axis]) // block, np.int64)
        return str(graph.emit("Gather", name, repeated, axis=axis))
    if len(own) != 1:
        raise Refusal(f"its scale has shape {own}: expected one number, or one for each channel")
    return _reshaped(graph, name, [-1 if at == axis else 1 for at in range(rank)])


def _reshaped(graph: Graph, name: str, sizes: list[int]) -> str:
    if name in graph.known:
        return graph.constant(graph.known[name].reshape(sizes))
    return str(graph.emit("Reshape", name, graph.constant(sizes, np.int64)))


def _cast(graph: Graph, name: str, dtype: Any) -> str:
    """Return a tensor in another type; constants of any size are computed."""
    if graph.dtype(name) == dtype:
        return name
    if name in graph.known:
        return graph.constant(graph.known[name].astype(dtype))
    return str(graph.emit("Cast", name, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))


def _centered(graph: Graph, x: str, zero: str, dtype: Any) -> str:
    """Return what is left of whole numbers without their zero point, in another type."""
    x = _cast(graph, x, dtype)
    if not zero or (zero in graph.known and not graph.known[zero].any()):
        return x
    zero = _cast(graph, zero, dtype)
    if x in graph.known and zero in graph.known:
        return graph.constant(graph.known[x] - graph.known[zero])
    return str(graph.emit("Sub", x, zero))


def _saturated(graph: Graph, x: str, zero: str, kind: np.dtype[Any]) -> str:
    """Return numbers rounded and moved by a zero point, in a type of integers."""
    y = graph.emit("Round", x)
    if zero:
        y = graph.emit("Add", y, _cast(graph, zero, graph.dtype(y)))
    limits = np.iinfo(kind)
    low, high = (graph.constant(limit, graph.dtype(y)) for limit in (limits.min, limits.max))
    return _cast(graph, str(graph.emit("Clip", y, low, high)), kind)


@rule("QuantizeLinear")
def quantize(graph: Graph, node: Node) -> str:
    """Divide, round, move and limit."""
    x, scale, zero = node.inputs[0], node.inputs[1], node.input(2)
    wanted = node.get("output_dtype") or TensorProto.UINT8
    kind = graph.dtype(zero) if zero else np.dtype(helper.tensor_dtype_to_np_dtype(wanted))
    if kind not in (np.int8, np.uint8, np.int16, np.uint16):
        raise Refusal(f"its result is of type {kind}: expected integers of 8 or 16 bits")
    dtype = graph.dtype(scale) if graph.dtype(x).kind != "f" else graph.dtype(x)
    if node.get("precision"):
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(node.get("precision")))
    parts = _cast(graph, x, dtype), _cast(graph, _along(graph, scale, x, node), dtype)
    return _saturated(
        graph, graph.emit("Div", *parts), _along(graph, zero, x, node) if zero else "", kind
    )


@rule("DequantizeLinear")
def dequantize(graph: Graph, node: Node) -> str:
    """Move and multiply."""
    x, scale, zero = node.inputs[0], node.inputs[1], node.input(2)
    dtype = graph.dtype(scale)
    centered = _centered(graph, x, _along(graph, zero, x, node) if zero else "", dtype)
    scale = _along(graph, scale, x, node)
    if centered in graph.known and scale in graph.known:
        y = graph.constant(graph.known[centered] * graph.known[scale])
    else:
        y = str(graph.emit("Mul", centered, scale))
    wanted = node.get("output_dtype")
    return _cast(graph, y, helper.tensor_dtype_to_np_dtype(wanted)) if wanted else y


@rule("DynamicQuantizeLinear")
def dynamic_quantize(graph: Graph, node: Node) -> list[str]:
    """Quantise by the largest and the smallest element."""
    (x,) = node.inputs
    zero, most = (graph.constant(value, graph.dtype(x)) for value in (0, 255))
    high = graph.emit("Max", graph.emit("ReduceMax", x, keepdims=0), zero)
    low = graph.emit("Min", graph.emit("ReduceMin", x, keepdims=0), zero)
    scale = graph.emit("Div", graph.emit("Sub", high, low), most)
    place = graph.emit("Sub", zero, graph.emit("Div", low, scale))
    point = _saturated(graph, place, "", np.dtype(np.uint8))
    return [_saturated(graph, graph.emit("Div", x, scale), point, np.dtype(np.uint8)), scale, point]


def _per_channel(graph: Graph, name: str, rank: int) -> str:
    """Return what belongs to output channels in the shape of weights, or to all of them."""
    if not name or graph.shape(name) in ((), (1,)):
        return _reshaped(graph, name, []) if name else ""
    return _reshaped(graph, name, [-1, *[1] * (rank - 1)])


@rule("QLinearConv")
def quantized_convolution(graph: Graph, node: Node) -> str:
    """Convolve whole numbers as floats, then scale and quantise the sums."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.inputs[:8]
    rank = len(graph.shape(w))
    bias = node.input(8)
    given = [_centered(graph, x, _reshaped(graph, x_zero, []), np.float32)]
    given.append(_centered(graph, w, _per_channel(graph, w_zero, rank), np.float32))
    if bias:
        given.append(_cast(graph, bias, np.float32))
    sums = graph.emit("Conv", *given, **node.attributes)
    scales = graph.emit("Mul", x_scale, w_scale)
    if graph.shape(scales) not in ((), (1,)):
        scales = _reshaped(graph, scales, [1, -1, *[1] * (rank - 2)])
    factor = graph.emit("Div", scales, y_scale)
    return _saturated(graph, graph.emit("Mul", sums, factor), y_zero, graph.dtype(y_zero))


@rule("QLinearMatMul")
def quantized_product(graph: Graph, node: Node) -> str:
    """Multiply whole numbers as floats, then scale and quantise the sums."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.inputs
    _one_number(graph, a_zero, b_zero, a_scale, b_scale)
    dtype = graph.dtype(a_scale)
    sums = graph.emit(
        "MatMul", *(_centered(graph, x, z, np.float32) for x, z in ((a, a_zero), (b, b_zero)))
    )
    factor = graph.emit("Div", graph.emit("Mul", a_scale, b_scale), y_scale)
    return _saturated(
        graph, graph.emit("Mul", _cast(graph, sums, dtype), factor), y_zero, graph.dtype(y_zero)
    )


def _one_number(graph: Graph, *names: str) -> None:
    """Refuse what belongs to rows or columns."""
    for name in names:
        if graph.shape(name) not in ((), (1,)):
            raise Refusal(f"its input {name!r} has shape {graph.shape(name)}: expected one number")


@rule("ConvInteger")
def integer_convolution(graph: Graph, node: Node) -> str:
    """Convolve whole numbers as floats, where these hold all sums exactly."""
    x, w = node.inputs[:2]
    weight = _centered(
        graph, w, _per_channel(graph, node.input(3), len(graph.shape(w))), np.float32
    )
    zero = _reshaped(graph, node.input(2), []) if node.input(2) else ""
    most = 255 * np.prod(graph.shape(w)[1:])
    if weight in graph.known:
        most = np.abs(graph.known[weight]).reshape(graph.shape(w)[0], -1).sum(1).max(initial=0)
    if most * 255 >= _EXACT:
        raise Refusal("its sums may be larger than single precision holds exactly")
    given = _centered(graph, x, zero, np.float32), weight
    return _cast(graph, graph.emit("Conv", *given, **node.attributes), np.int32)
