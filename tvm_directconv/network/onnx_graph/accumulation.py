"""Operators along an axis that add, multiply, sort or move elements."""

from typing import Any

import numpy as np
from onnx import helper
from tvm import relax, te, tirx

from ..rewriter import shape_of, value_of
from .convert import converter
from .graph import Graph
from .nodes import Node, Refusal, rule
from .upgrading import upgrade_to


def _cumulated(operator: Any, neutral: int) -> Any:
    """Return a converter; TVM has no kernel of these for CPUs."""

    def convert(builder: Any, inputs: Any, attributes: Any, _: Any) -> Any:
        known = value_of(inputs[1])
        if known is None:
            raise ValueError("its axis is computed from inputs: expected a constant")
        axis = int(known.item()) % len(shape_of(inputs[0]))
        last = 0 if attributes.get("exclusive", 0) else 1
        back = attributes.get("reverse", 0)

        def cumulated(x: Any) -> Any:
            over = te.reduce_axis((0, x.shape[axis]), "over")

            def element(*at: Any) -> Any:
                first, second = (at[axis], over) if back else (over, at[axis])
                read = x(*at[:axis], over, *at[axis + 1 :])
                none = tirx.const(neutral, x.dtype)
                return operator(tirx.Select(first < second + last, read, none), axis=over)

            return te.compute(x.shape, element, name="cumulated")

        return builder.emit_te(cumulated, inputs[0])

    return convert


converter("CumSum")(_cumulated(te.sum, 0))
converter("CumProd")(
    _cumulated(te.comm_reducer(lambda x, y: x * y, lambda dtype: tirx.const(1, dtype)), 1)
)


def _ranks(x: Any, axis: int, largest: bool) -> Any:
    """Return how many elements of its axis come before each: of equal ones, those that are first.

    What is no number counts as greater than all others.
    """
    over = te.reduce_axis((0, x.shape[axis]), "over")

    def greater(first: Any, second: Any) -> Any:
        if "float" not in str(x.dtype):
            return first > second
        none = tirx.all(tirx.isnan(first), tirx.Not(tirx.isnan(second)))
        return tirx.any(first > second, none)

    def rank(*at: Any) -> Any:
        own, other = x(*at), x(*at[:axis], over, *at[axis + 1 :])
        above, below = greater(other, own), greater(own, other)
        if not largest:
            above, below = below, above
        before = tirx.any(above, tirx.all(tirx.Not(below), over < at[axis]))
        return te.sum(tirx.Select(before, tirx.const(1, "int64"), tirx.const(0, "int64")), over)

    return te.compute(x.shape, rank, name="ranks")


@converter("TopK")
def _top(builder: Any, inputs: Any, attributes: Any, _: Any) -> Any:
    """Rank the elements, as TVM has no kernel that sorts for CPUs; results are sorted always."""
    x, count = inputs[0], value_of(inputs[1])
    if count is None:
        raise ValueError("its number k is computed from inputs: expected a constant")
    shape = list(shape_of(x))
    axis = attributes.get("axis", -1) % len(shape)
    attributes.get("sorted")
    size, shape[axis] = shape[axis], int(count.item())
    if not 1 <= shape[axis] <= size:
        raise ValueError(f"its number k is {shape[axis]}: expected 1 to {size}")

    def places(x: Any) -> Any:
        ranks = _ranks(x, axis, bool(attributes.get("largest", 1)))
        over = te.reduce_axis((0, size), "at")

        def place(*at: Any) -> Any:
            here = ranks(*at[:axis], over, *at[axis + 1 :]) == at[axis]
            return te.sum(tirx.Select(here, tirx.Cast("int64", over), tirx.const(0, "int64")), over)

        return te.compute(shape, place, name="places")

    indices = builder.emit_te(places, x)
    return relax.Tuple([builder.emit(relax.op.gather_elements(x, indices, axis)), indices])


@rule("Unsqueeze", "Squeeze")
def ranks(graph: Graph, node: Node) -> str | None:
    """Write axes as a list, where they are a single number."""
    if node.input(1) and graph.value(node.inputs[1]).ndim == 0:
        node.inputs[1] = graph.constant(graph.value(node.inputs[1]).reshape(1))
    return None


@rule("Tile")
def tile(graph: Graph, node: Node) -> str:
    """Repeat along new axes, and take these together: no remainders are computed."""
    x, shape = node.inputs[0], graph.shape(node.inputs[0])
    repeats = graph.value(node.inputs[1]).tolist()
    pairs = list(zip(repeats, shape, strict=True))
    apart = graph.constant([part for _, size in pairs for part in (1, size)], np.int64)
    together = graph.constant([part for pair in pairs for part in pair], np.int64)
    repeated = graph.emit("Expand", graph.emit("Reshape", x, apart), together)
    sizes = [count * size for count, size in pairs]
    return str(graph.emit("Reshape", repeated, graph.constant(sizes, np.int64)))


@rule("SpaceToDepth")
def space_to_depth(graph: Graph, node: Node) -> str | None:
    """Write it as a transposition where channels come first."""
    if node.get("mode") != "CRD":
        node.attributes.pop("mode", None)
        return None
    x, block = node.inputs[0], node.attributes["blocksize"]
    n, c, h, w = graph.shape(x)
    cut = [n, c, h // block, block, w // block, block]
    x = graph.emit("Reshape", x, graph.constant(cut, np.int64))
    x = graph.emit("Transpose", x, perm=[0, 1, 3, 5, 2, 4])
    sizes = [n, c * block * block, h // block, w // block]
    return str(graph.emit("Reshape", x, graph.constant(sizes, np.int64)))


@rule("Split")
def split(graph: Graph, node: Node) -> list[str]:
    """Cut parts out one by one; some may be empty."""
    x = node.inputs[0]
    axis = node.get("axis") % len(graph.shape(x))
    size = graph.shape(x)[axis]
    if node.input(1):
        sizes = graph.value(node.input(1)).tolist()
    else:
        count = node.get("num_outputs") or len(node.outputs)
        each = -(-size // count)
        sizes = [max(0, min(each, size - each * number)) for number in range(count)]
    if sum(sizes) != size or len(sizes) != len(node.outputs):
        raise Refusal(f"its parts are {sizes}: expected {len(node.outputs)}, {size} in all")
    ends = np.cumsum(sizes)
    at = graph.constant([axis], np.int64)
    return [
        str(graph.emit("Slice", x, *(graph.constant([place], np.int64) for place in span), at))
        if name
        else ""
        for name, *span in zip(node.outputs, ends - sizes, ends, strict=True)
    ]


@rule("ReverseSequence")
def reverse(graph: Graph, node: Node) -> str:
    """Read each sequence of the batch from its end, and what is behind it as it is."""
    x, lengths = node.inputs
    shape = graph.shape(x)
    time, batch = node.get("time_axis"), node.get("batch_axis")

    def placed(axis: int) -> list[int]:
        return [shape[axis] if at == axis else 1 for at in range(len(shape))]

    at = graph.constant(np.arange(shape[time]).reshape(placed(time)), np.int64)
    end = graph.emit("Cast", lengths, to=helper.np_dtype_to_tensor_dtype(np.dtype(np.int64)))
    end = graph.emit("Reshape", end, graph.constant(placed(batch), np.int64))
    mirrored = graph.emit("Sub", graph.emit("Sub", end, at), graph.constant(1, np.int64))
    indices = graph.emit("Where", graph.emit("Less", at, end), mirrored, at)
    indices = graph.emit("Expand", indices, graph.constant(shape, np.int64))
    return str(graph.emit("GatherElements", x, indices, axis=time))


@rule("TensorScatter")
def scatter(graph: Graph, node: Node) -> str:
    """Write along an axis from a place that each sequence of the batch has."""
    cache, update = node.inputs[:2]
    shape, own = graph.shape(cache), graph.shape(update)
    axis = node.get("axis") % len(shape)
    sizes = [own[axis] if at == axis else 1 for at in range(len(shape))]
    at = graph.constant(np.arange(own[axis]).reshape(sizes), np.int64)
    if node.input(2):
        first = [shape[0], *[1] * (len(shape) - 1)]
        places = graph.emit("Reshape", node.inputs[2], graph.constant(first, np.int64))
        at = graph.emit("Add", at, places)
    if node.get("mode") == "circular":
        at = graph.emit("Mod", at, graph.constant(shape[axis], np.int64))
    indices = graph.emit("Expand", at, graph.constant(own, np.int64))
    return str(graph.emit("ScatterElements", cache, indices, update, axis=axis))


@rule("MaxUnpool")
def unpool(graph: Graph, node: Node) -> str:
    """Write maxima to where they were, in a tensor of zeros."""
    x, indices = node.inputs[:2]
    shape, kernel = graph.shape(x), node.attributes["kernel_shape"]
    pads = np.reshape(node.attributes.get("pads") or [0] * 2 * len(kernel), (2, -1)).sum(0)
    strides = node.attributes.get("strides") or [1] * len(kernel)
    spatial = zip(shape[2:], kernel, strides, pads, strict=True)
    sizes = [*shape[:2], *((n - 1) * step - pad + k for n, k, step, pad in spatial)]
    zeros = graph.constant(np.zeros(np.prod(sizes), graph.dtype(x)))
    flat = graph.constant([-1], np.int64)
    given = [graph.emit("Reshape", name, flat) for name in (indices, x)]
    y = graph.emit("ScatterElements", zeros, *given, axis=0)
    y = graph.emit("Reshape", y, graph.constant(sizes, np.int64))
    if not node.input(2):
        return str(y)
    more = graph.value(node.input(2)) - sizes
    if (more < 0).any():
        raise Refusal(f"its output_shape is smaller than {sizes}")
    pads = np.concatenate([np.zeros_like(more), more])
    return str(graph.emit("Pad", y, graph.constant(pads, np.int64)))


@rule("Col2Im")
def columns_to_image(graph: Graph, node: Node) -> str:
    """Write it as a transposed convolution, in which each element of a kernel is a channel."""
    x = node.inputs[0]
    image, block = (graph.value(name).tolist() for name in node.inputs[1:])
    rank = len(block)
    strides, dilations = (
        node.attributes.get(name) or [1] * rank for name in ("strides", "dilations")
    )
    pads = node.attributes.get("pads") or [0] * 2 * rank
    batch, columns, _ = graph.shape(x)
    taps = int(np.prod(block))
    spans = [size + sum(pads[axis::rank]) for axis, size in enumerate(image)]
    places = [
        (span - step * (k - 1) - 1) // stride + 1
        for span, k, stride, step in zip(spans, block, strides, dilations, strict=True)
    ]
    sizes = [batch, columns, *places]
    weight = np.eye(taps, dtype=graph.dtype(x)).reshape(taps, 1, *block)
    extra = [
        span - (place - 1) * stride - step * (k - 1) - 1
        for span, place, k, stride, step in zip(
            spans, places, block, strides, dilations, strict=True
        )
    ]
    return str(
        graph.emit(
            "ConvTranspose",
            graph.emit("Reshape", x, graph.constant(sizes, np.int64)),
            graph.constant(np.tile(weight, (columns // taps, *[1] * (rank + 1)))),
            group=columns // taps,
            strides=strides,
            dilations=dilations,
            pads=pads,
            output_padding=extra,
        )
    )


@upgrade_to(20, "DFT")
def _dft_20(graph: Graph, node: Node) -> None:
    """The axis was an attribute."""
    axis = graph.constant(node.attributes.pop("axis", 1), np.int64)
    node.inputs = [node.inputs[0], node.input(1), axis]
