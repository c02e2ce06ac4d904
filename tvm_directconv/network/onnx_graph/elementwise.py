"""Rules for functions of single elements that TVM computes otherwise, or loses digits of."""

from typing import Any

import numpy as np
from onnx import TensorProto, helper
from tvm import relax, te, tirx

from ..rewriter import constant, dtype_of
from .convert import converter
from .graph import Graph
from .nodes import CONVERTERS, Node, Refusal, rule

# TVM has other operators of these names, or misses parts of them; ONNX's own functions are used.
for _kind in ("Attention", "RMSNormalization", "AffineGrid"):
    CONVERTERS.pop(_kind, None)


def _bits(dtype: Any) -> int:
    return int(np.iinfo(dtype).bits)


@converter("BitShift")
def _shift(builder: Any, inputs: Any, attributes: Any, _: Any) -> Any:
    """Shift all bits out where the distance is beyond the type; C leaves open what is then."""
    x, by = inputs
    dtype = np.dtype(dtype_of(x))
    zero, last = (constant(np.asarray(value, dtype)) for value in (0, _bits(dtype) - 1))
    beyond = relax.op.greater(by, last)
    if dtype.kind == "i":
        beyond = relax.op.logical_or(beyond, relax.op.less(by, zero))
    within = relax.op.where(beyond, last, by)
    if attributes["direction"] == b"RIGHT":
        y = relax.op.right_shift(x, within)
        if dtype.kind == "i":  # What is left is the sign.
            return y
    else:
        y = relax.op.left_shift(x, within)
    return relax.op.where(beyond, zero, y)


@rule("IsInf")
def is_infinite(graph: Graph, node: Node) -> str | None:
    """Compare with one infinity where only that one counts."""
    x = node.inputs[0]
    positive, negative = (node.get(f"detect_{sign}") for sign in ("positive", "negative"))
    if positive and negative:
        node.attributes = {}
        return None
    if not positive and not negative:
        return graph.constant(np.zeros(graph.shape(x), bool))
    infinity = graph.constant(np.inf if positive else -np.inf, graph.dtype(x))
    return str(graph.emit("Equal", x, infinity))


@rule("Mod")
def modulo(graph: Graph, node: Node) -> str | None:
    """Make the sign that of the divisor: TVM divides first, which is wrong for infinite ones."""
    x, divisor = node.inputs
    dtype = graph.dtype(x)
    if node.get("fmod") or dtype.kind != "f":
        return None
    rest = graph.emit("Mod", x, divisor, fmod=1)
    zero = graph.constant(0, dtype)
    # A rest of 0 is neither above nor below.
    low, high = graph.emit("Less", rest, zero), graph.emit("Greater", rest, zero)
    below, above = graph.emit("Less", divisor, zero), graph.emit("Greater", divisor, zero)
    other = graph.emit("Or", graph.emit("And", low, above), graph.emit("And", high, below))
    return str(graph.emit("Where", other, graph.emit("Add", rest, divisor), rest))


@rule("Pow")
def power(graph: Graph, node: Node) -> str | None:
    """Take powers of whole numbers by products; otherwise in one type."""
    x, exponent = node.inputs
    kinds = graph.dtype(x), graph.dtype(exponent)
    if kinds[0].kind in "iu" and kinds[1].kind in "iu":
        return _whole_power(graph, x, exponent)
    if kinds[0] == kinds[1]:
        return None
    if kinds[0].kind == "f":
        wanted = helper.np_dtype_to_tensor_dtype(kinds[0])
        return str(graph.emit("Pow", x, graph.emit("Cast", exponent, to=wanted)))
    wide = [graph.emit("Cast", name, to=TensorProto.DOUBLE) for name in (x, exponent)]
    wanted = helper.np_dtype_to_tensor_dtype(kinds[0])
    return str(graph.emit("Cast", graph.emit("Pow", *wide), to=wanted))


def _whole_power(graph: Graph, x: str, exponent: str) -> str:
    """Square and multiply, bit by bit of the exponent; products wrap around as those of C do."""
    dtype = graph.dtype(x)
    known = graph.known.get(exponent)
    if known is not None and (known < 0).any():
        raise Refusal("a whole number has a negative exponent")
    bits = _bits(graph.dtype(exponent)) - (graph.dtype(exponent).kind == "i")
    if known is not None:
        bits = int(known.max(initial=0)).bit_length()
    result, one = graph.constant(1, dtype), graph.constant(1, dtype)
    zero = graph.constant(0, graph.dtype(exponent))
    for bit in range(bits):
        mask = graph.constant(1 << bit, graph.dtype(exponent))
        if known is not None:
            chosen = graph.constant(known >> bit & 1 > 0)
        else:
            chosen = graph.emit("Greater", graph.emit("BitwiseAnd", exponent, mask), zero)
        result = graph.emit("Mul", result, graph.emit("Where", chosen, x, one))
        if bit + 1 < bits:
            x = graph.emit("Mul", x, x)
    if bits == 0:
        shape = np.broadcast_shapes(graph.shape(x), graph.shape(exponent))
        return graph.constant(np.ones(shape, dtype))
    return str(result)


@rule("Mish")
def mish(graph: Graph, node: Node) -> str:
    """Write tanh(log(1 + e^x)) as a quotient: the logarithm loses digits where e^x is small."""
    (x,) = node.inputs
    dtype = graph.dtype(x)
    two = graph.constant(2, dtype)
    # Beyond this the quotient is 1.
    grown = graph.emit("Exp", graph.emit("Min", x, graph.constant(20, dtype)))
    above = graph.emit("Mul", grown, graph.emit("Add", grown, two))
    return str(graph.emit("Mul", x, graph.emit("Div", above, graph.emit("Add", above, two))))


@rule("Softplus")
def softplus(graph: Graph, node: Node) -> str:
    """Write log(1 + u) so that no digits of a small u are lost."""
    (x,) = node.inputs
    dtype = graph.dtype(x)
    zero, one = graph.constant(0, dtype), graph.constant(1, dtype)
    small = graph.emit("Exp", graph.emit("Neg", graph.emit("Abs", x)))
    sum_ = graph.emit("Add", one, small)
    # What the sum has lost of u, the logarithm of the sum has lost, too.
    kept = graph.emit("Sub", sum_, one)
    exact = graph.emit("Equal", kept, zero)
    divisor = graph.emit("Where", exact, one, kept)
    log = graph.emit("Mul", graph.emit("Log", sum_), graph.emit("Div", small, divisor))
    log = graph.emit("Where", exact, small, log)
    return str(graph.emit("Add", graph.emit("Max", x, zero), log))


@rule("ReduceMax", "ReduceMin")
def extreme(graph: Graph, node: Node) -> str | None:
    """Take bools as numbers."""
    if graph.dtype(node.inputs[0]).kind != "b":
        return None
    numbers = graph.emit("Cast", node.inputs[0], to=TensorProto.UINT8)
    result = graph.emit(node.kind, numbers, *node.inputs[1:], **node.attributes)
    return str(graph.emit("Cast", result, to=TensorProto.BOOL))


@rule("EyeLike")
def eye(graph: Graph, node: Node) -> str:
    """Compute it: only the shape matters."""
    x = node.inputs[0]
    wanted = node.attributes.get("dtype")
    dtype = helper.tensor_dtype_to_np_dtype(wanted) if wanted else graph.dtype(x)
    rows, columns = graph.shape(x)
    return graph.constant(np.eye(rows, columns, node.get("k")), dtype)


@rule("LpNormalization")
def normalization(graph: Graph, node: Node) -> str:
    """Divide by the norm; what has none is 0."""
    x = node.inputs[0]
    if (p := node.get("p")) not in (1, 2):
        raise Refusal(f"p is {p}: expected 1 or 2")
    norm = graph.emit(f"ReduceL{p}", x, graph.constant([node.get("axis")], np.int64), keepdims=1)
    zero = graph.constant(0, graph.dtype(x))
    return str(
        graph.emit("Where", graph.emit("Equal", norm, zero), zero, graph.emit("Div", x, norm))
    )


@converter("BitCast")
def _bit_cast(builder: Any, inputs: Any, attributes: Any, _: Any) -> Any:
    dtype = str(helper.tensor_dtype_to_np_dtype(attributes["to"]))
    if "bool" in (dtype, dtype_of(inputs[0])):  # TVM takes one for a bit.
        return relax.op.astype(inputs[0], dtype)

    def cast(x: Any) -> Any:
        return te.compute(x.shape, lambda *at: tirx.reinterpret(dtype, x(*at)), name="bit_cast")

    return builder.emit_te(cast, inputs[0])


@rule("RoiAlign")
def roi_align(graph: Graph, node: Node) -> None:
    """Scale regions before TVM moves them by half a pixel; refuse what it computes otherwise."""
    if node.get("mode") == "max":
        raise Refusal("mode='max' is not supported: TVM takes the maximum of other samples")
    scale = node.get("spatial_scale")
    if node.get("coordinate_transformation_mode") == "half_pixel" and scale != 1:
        x, regions, batch = node.inputs
        factor = graph.constant(scale, graph.dtype(regions))
        node.inputs = [x, graph.emit("Mul", regions, factor), batch]
        node.attributes["spatial_scale"] = 1.0


@rule("ThresholdedRelu")
def thresholded_relu(graph: Graph, node: Node) -> str:
    """Choose between the two: TVM multiplies by 0 or 1, which makes NaN of infinities."""
    x = node.inputs[0]
    alpha, zero = (graph.constant(value, graph.dtype(x)) for value in (node.get("alpha"), 0))
    return str(graph.emit("Where", graph.emit("LessOrEqual", x, alpha), zero, x))


@rule("NonMaxSuppression")
def non_maximum_suppression(graph: Graph, node: Node) -> None:
    """Refuse it."""
    raise Refusal("the shape of its result depends on data: leave it to what reads the outputs")
