"""Rules for normalisation."""

import numpy as np

from .graph import Graph
from .nodes import Node, Refusal, rule


@rule("BatchNormalization")
def batch_normalization(graph: Graph, node: Node) -> None:
    """Refuse statistics of a batch."""
    if node.get("training_mode") or len(node.outputs) > 1:
        raise Refusal("it is in training mode: export the model for inference")
    node.attributes.pop("momentum", None)


@rule("Dropout")
def dropout(graph: Graph, node: Node) -> list[str]:
    """Pass the input on, all of it."""
    if node.input(2) and graph.value(node.input(2)).any():
        ratio = graph.value(node.input(1)) if node.input(1) else 0.5
        if ratio != 0:
            raise Refusal("it is in training mode: export the model for inference")
    x = node.inputs[0]
    return [x, graph.constant(np.ones(graph.shape(x), bool))] if node.output(1) else [x]


def _moments(graph: Graph, x: str, axes: list[int]) -> tuple[str, str, str]:
    """Return the mean along axes, what is left without it, and the mean of its square."""
    along = graph.constant(axes, np.int64)
    mean = graph.emit("ReduceMean", x, along)
    centered = graph.emit("Sub", x, mean)
    variance = graph.emit("ReduceMean", graph.emit("Mul", centered, centered), along)
    return mean, centered, variance


@rule("LayerNormalization")
def layer_normalization(graph: Graph, node: Node) -> list[str] | None:
    """Write it in single steps where TVM's operator does not have all of it."""
    x, scale, bias = node.inputs[0], node.inputs[1], node.input(2)
    shape = graph.shape(x)
    axis = node.get("axis") % len(shape)
    node.attributes.pop("stash_type", None)  # All is computed as the input is, or in float32.
    plain = all(graph.shape(name) == shape[axis:] for name in (scale, bias) if name)
    if plain and not node.output(1) and not node.output(2) and graph.dtype(x) == np.float32:
        return None
    mean, centered, variance = _moments(graph, x, list(range(axis, len(shape))))
    epsilon = graph.constant(node.get("epsilon"), graph.dtype(x))
    deviation = graph.emit("Sqrt", graph.emit("Add", variance, epsilon))
    inverse = graph.emit("Reciprocal", deviation)
    y = graph.emit("Mul", graph.emit("Mul", centered, inverse), scale)
    if bias:
        y = graph.emit("Add", y, bias)
    statistics = [mean, inverse]
    for index, name in enumerate(statistics):
        if (wanted := node.output(index + 1)) and graph.dtype(name) != graph.dtype(wanted):
            kind = graph.types[wanted].tensor_type.elem_type
            statistics[index] = graph.emit("Cast", name, to=kind)
    return [y, *statistics]


@rule("MeanVarianceNormalization")
def mean_variance_normalization(graph: Graph, node: Node) -> str:
    """Write it in single steps: TVM's way loses all digits where the mean is large."""
    x = node.inputs[0]
    rank = len(graph.shape(x))
    _, centered, variance = _moments(graph, x, [axis % rank for axis in node.get("axes")])
    deviation = graph.emit("Sqrt", variance)
    epsilon = graph.constant(1e-9, graph.dtype(x))
    return str(graph.emit("Div", centered, graph.emit("Add", deviation, epsilon)))


@rule("LRN")
def local_response_normalization(graph: Graph, node: Node) -> str | None:
    """Write it in single steps where TVM has another window, or no operator."""
    x, size = node.inputs[0], node.get("size")
    rank = len(graph.shape(x))
    if size % 2 and rank in (3, 4) and graph.dtype(x) == np.float32:
        return None
    before, after = (size - 1) // 2, size // 2
    pads = np.zeros((2, rank), np.int64)
    pads[:, 1] = before, after
    padded = graph.emit("Pad", graph.emit("Mul", x, x), graph.constant(pads.ravel()))
    channels = graph.shape(x)[1]
    ones = graph.constant([1], np.int64)
    total = ""
    for first in range(size):
        bounds = (graph.constant([at], np.int64) for at in (first, first + channels))
        part = graph.emit("Slice", padded, *bounds, ones)
        total = graph.emit("Add", total, part) if total else part
    alpha, bias, beta = (
        graph.constant(value, graph.dtype(x))
        for value in (node.get("alpha") / size, node.get("bias"), node.get("beta"))
    )
    scaled = graph.emit("Add", graph.emit("Mul", total, alpha), bias)
    return str(graph.emit("Div", x, graph.emit("Pow", scaled, beta)))
