"""Rules for quantised operators.

Where scales and zero points are constant, all of them become operators on floats between
DequantizeLinear and QuantizeLinear, which is what passes over the network know. Else, and where
these have attributes of later versions, whole numbers become floats, which hold them exactly.
"""

from typing import Any

import numpy as np
from onnx import TensorProto, helper
from tvm import relax

from ..quantized import wrong_scale
from .convert import converter
from .graph import Graph
from .nodes import FORM, Node, Refusal, rule

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


_KEPT = {
    "QuantizeLinear": (np.int8, np.uint8, np.int16, np.uint16),
    "DequantizeLinear": (np.int8, np.uint8, np.int32),
}
"""Types of whole numbers of which these operators are kept."""

_MICROSOFT = "com.microsoft."
_SHORT = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""Types that nothing is computed in: results are rounded to them."""

_KEPT_SHORT = {TensorProto.FLOAT16: np.float16}
"""Those that the scales of operators that are kept may be of; TVM has them of no others."""

_TYPES_DIFFER = 23
"""The version from which on numbers and their scales may be of different types."""


@converter(*_KEPT)
def quantized(builder: Any, inputs: Any, attributes: Any, _params: Any) -> Any:
    """Let numbers stand for others."""
    x, scale, zero = inputs[0], inputs[1], inputs[2]
    axis = attributes["axis"]
    if str(x.ty.dtype) == "float32":
        return relax.op.quantize(x, scale, zero, axis, str(zero.ty.dtype))
    attributes.get("output_dtype")
    return relax.op.dequantize(x, scale, zero, axis, "float32")


def _as_onnx(node: Node) -> None:
    """Let a node of ONNX Runtime's domain be that of ONNX, whose meaning it has."""
    if node.kind.startswith(_MICROSOFT):
        node.kind, node.version = node.kind.removeprefix(_MICROSOFT), FORM


def _check_scale(graph: Graph, node: Node) -> None:
    """Refuse constant scales that numbers cannot be multiples of."""
    name = node.inputs[1]
    if name in graph.known:
        wrong = wrong_scale(graph.known[name], node.kind == "QuantizeLinear")
        if wrong:
            raise Refusal(f"its scale {name!r} {wrong}")


def _kept(graph: Graph, node: Node, kind: Any, short: int = 0) -> bool:
    """Bring an operator on numbers of a type to the one form that passes know, if there is one.

    Its scale is of a type of 16 bits where real numbers are rounded to that.
    """
    x, scale, zero = node.inputs[0], node.inputs[1], node.input(2)
    if (
        kind not in _KEPT[node.kind]
        or scale not in graph.known
        or (zero and zero not in graph.known)
        or graph.dtype(scale) != np.float32
        or (node.kind == "QuantizeLinear" and graph.dtype(x) != np.float32)
        or node.get("block_size")
        or node.get("output_dtype") not in (None, 0, _ELEMENT[node.kind](kind))
        or len(graph.shape(scale)) > 1
    ):
        return False
    rank = len(graph.shape(x))
    axis = node.get("axis")
    axis = 0 if rank < 2 else axis % rank
    values = [graph.known[scale], graph.known[zero] if zero else np.zeros(1, kind)]
    most = max(value.size for value in values)
    if most > 1 and graph.shape(x)[axis] != most:
        raise Refusal(
            f"its scale has shape {graph.shape(scale)}: expected one number, or one for each of "
            f"the {graph.shape(x)[axis]} channels"
        )
    shaped = [value.reshape(() if most == 1 else -1) for value in values]
    if most > 1:
        shaped = [np.broadcast_to(value, (most,)) for value in shaped]
    if short:
        shaped[0] = shaped[0].astype(_KEPT_SHORT[short])
    node.inputs = [x, *(graph.constant(value) for value in shaped)]
    node.attributes = {"axis": axis}
    if node.kind == "DequantizeLinear":
        node.attributes["output_dtype"] = TensorProto.FLOAT
    return True


_ELEMENT: dict[str, Any] = {
    "QuantizeLinear": lambda kind: helper.np_dtype_to_tensor_dtype(np.dtype(kind)),
    "DequantizeLinear": lambda _: TensorProto.FLOAT,
}
"""What is the type of the result if it is not given."""


@rule("QuantizeLinear", f"{_MICROSOFT}QuantizeLinear")
def quantize(graph: Graph, node: Node) -> str | None:
    """Divide, round, move and limit."""
    _as_onnx(node)
    x, scale, zero = node.inputs[0], node.inputs[1], node.input(2)
    wanted = node.get("output_dtype") or TensorProto.UINT8
    kind = graph.dtype(zero) if zero else np.dtype(helper.tensor_dtype_to_np_dtype(wanted))
    if kind not in (np.int8, np.uint8, np.int16, np.uint16):
        raise Refusal(f"its result is of type {kind}: expected integers of 8 or 16 bits")
    _check_scale(graph, node)
    of_x, of_scale, *_ = [*node.short, 0, 0]
    if node.written < _TYPES_DIFFER:
        of_x = of_x or of_scale
    precision = node.attributes.pop("precision", 0) or (0 if of_x else of_scale)
    if precision not in (0, TensorProto.FLOAT, *_SHORT):
        raise Refusal(f"its precision is {precision}: expected that of floats of 16 or 32 bits")
    alike = of_x == of_scale and of_x in _KEPT_SHORT
    if alike and not precision and _kept(graph, node, kind, of_x):
        return None
    if precision in _SHORT:
        x, scale = (graph.rounded(name, precision) for name in (x, scale))
        quotient = graph.emit("Div", x, _along(graph, scale, x, node))
        one = graph.constant(1, np.float32)
        node.inputs = [graph.rounded(quotient, precision), one, *node.inputs[2:]]
    elif of_x:
        node.inputs[0] = graph.rounded(x, of_x)
    if _kept(graph, node, kind):
        return None
    x, scale = node.inputs[:2]
    dtype = graph.dtype(scale) if graph.dtype(x).kind != "f" else graph.dtype(x)
    parts = _cast(graph, x, dtype), _cast(graph, _along(graph, scale, x, node), dtype)
    return _saturated(
        graph, graph.emit("Div", *parts), _along(graph, zero, x, node) if zero else "", kind
    )


@rule("DequantizeLinear", f"{_MICROSOFT}DequantizeLinear")
def dequantize(graph: Graph, node: Node) -> str | None:
    """Move and multiply."""
    _as_onnx(node)
    _check_scale(graph, node)
    x, scale, zero = node.inputs[0], node.inputs[1], node.input(2)
    short, of_scale = node.short[-1], [*node.short, 0][1]
    whole, ranked = graph.dtype(x), bool(graph.shape(x))
    alike = short == of_scale and short in (0, *_KEPT_SHORT)
    if ranked and alike and _kept(graph, node, whole, short):
        return None
    if short and ranked:
        # The product is rounded once, whatever it is made of.
        alone = Node(node.kind, list(node.inputs), [], dict(node.attributes), node.name)
        if _kept(graph, alone, whole):
            return graph.rounded(graph.emit(alone.kind, *alone.inputs, **alone.attributes), short)
    dtype = graph.dtype(scale)
    centered = _centered(graph, x, _along(graph, zero, x, node) if zero else "", dtype)
    scale = _along(graph, scale, x, node)
    if centered in graph.known and scale in graph.known:
        y = graph.constant(graph.known[centered] * graph.known[scale])
    else:
        y = str(graph.emit("Mul", centered, scale))
    if short:
        return graph.rounded(y, short)
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
    # Zeros alone are multiples of anything.
    one = graph.constant(1, graph.dtype(x))
    scale = graph.emit("Where", graph.emit("Equal", high, low), one, scale)
    place = graph.emit("Sub", zero, graph.emit("Div", low, scale))
    point = _saturated(graph, place, "", np.dtype(np.uint8))
    return [_saturated(graph, graph.emit("Div", x, scale), point, np.dtype(np.uint8)), scale, point]


def _per_channel(graph: Graph, name: str, rank: int) -> str:
    """Return what belongs to output channels in the shape of weights, or to all of them."""
    if not name or graph.shape(name) in ((), (1,)):
        return _reshaped(graph, name, []) if name else ""
    return _reshaped(graph, name, [-1, *[1] * (rank - 1)])


def _between(
    graph: Graph,
    kind: str,
    operands: list[tuple[str, str, str, int]],
    result: tuple[str, str],
    **attributes: Any,
) -> str:
    """Return the result of an operator on floats that whole numbers stand for.

    Operands are each numbers, scale, zero point and axis of these; the result a scale and a zero
    point; it is left as floats if these are empty.
    """
    given = [
        graph.emit("DequantizeLinear", x, scale, *([zero] if zero else []), axis=axis)
        for x, scale, zero, axis in operands
    ]
    y = str(graph.emit(kind, *given, **attributes))
    scale, zero = result
    return str(graph.emit("QuantizeLinear", y, scale, *([zero] if zero else []))) if scale else y


def _product(graph: Graph, one: str, other: str) -> str:
    """Return the product of two scales."""
    if one in graph.known and other in graph.known:
        return graph.constant(graph.known[one] * graph.known[other])
    return str(graph.emit("Mul", one, other))


@rule("QLinearConv")
def quantized_convolution(graph: Graph, node: Node) -> str:
    """Convolve the numbers that whole ones stand for."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.inputs[:8]
    operands = [(x, x_scale, x_zero, 1), (w, w_scale, w_zero, 0)]
    if bias := node.input(8):
        operands.append((bias, _product(graph, x_scale, w_scale), "", 0))
    return _between(graph, "Conv", operands, (y_scale, y_zero), **node.attributes)


@rule("QLinearMatMul")
def quantized_product(graph: Graph, node: Node) -> str:
    """Multiply the numbers that whole ones stand for."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.inputs
    # Rows of the first factor, columns of the second.
    operands = [(a, a_scale, a_zero, -2), (b, b_scale, b_zero, -1)]
    return _between(graph, "MatMul", operands, (y_scale, y_zero))


_OF_ONE = {
    "QLinearAveragePool": "AveragePool",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearReduceMean": "ReduceMean",
    "QLinearSigmoid": "Sigmoid",
    "QLinearSoftmax": "Softmax",
}
"""ONNX Runtime's operators of one tensor, and what they are on floats."""

_NOT_OF_FLOATS = ("channels_last", "opset")
"""Attributes that only those on whole numbers have."""


@rule(*(f"com.microsoft.{kind}" for kind in _OF_ONE))
def of_one(graph: Graph, node: Node) -> str:
    """Compute with the numbers that whole ones stand for."""
    x, x_scale, x_zero, y_scale, y_zero = node.inputs[:5]
    if node.attributes.get("channels_last"):
        raise Refusal("channels_last is 1: expected 0, channels before rows and columns")
    given = {k: v for k, v in node.attributes.items() if k not in _NOT_OF_FLOATS}
    kind = _OF_ONE[node.kind.rpartition(".")[2]]
    return _between(graph, kind, [(x, x_scale, x_zero, 0)], (y_scale, y_zero), **given)


def _tensors(names: list[str]) -> list[tuple[str, str, str, int]]:
    """Return operands, which are each numbers, a scale and a zero point."""
    return [(*names[at : at + 3], 0) for at in range(0, len(names), 3)]  # type: ignore[misc]


@rule("com.microsoft.QLinearAdd", "com.microsoft.QLinearMul")
def of_two(graph: Graph, node: Node) -> str:
    """Add or multiply the numbers that whole ones stand for."""
    kind = node.kind.rpartition(".QLinear")[2]
    return _between(graph, kind, _tensors(node.inputs[:6]), (node.inputs[6], node.input(7)))


@rule("com.microsoft.QLinearConcat")
def of_several(graph: Graph, node: Node) -> str:
    """Put the numbers together that whole ones stand for."""
    y_scale, y_zero, *given = node.inputs
    return _between(graph, "Concat", _tensors(given), (y_scale, y_zero), **node.attributes)


@rule("com.microsoft.QGemm")
def quantized_dense(graph: Graph, node: Node) -> str:
    """Multiply and add the numbers that whole ones stand for."""
    a, a_scale, a_zero, b, b_scale, b_zero = node.inputs[:6]
    given = dict(node.attributes)
    transposed = given.get("transB", 0)
    operands = [(a, a_scale, a_zero, 0), (b, b_scale, b_zero, 0 if transposed else 1)]
    if bias := node.input(6):
        operands.append((bias, _product(graph, a_scale, b_scale), "", 0))
    return _between(graph, "Gemm", operands, (node.input(7), node.input(8)), **given)


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
