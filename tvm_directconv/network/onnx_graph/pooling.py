"""Rules for pools."""

from math import prod

import numpy as np

from .graph import Graph
from .nodes import Node, Refusal, rule
from .windows import Windows, windows_of


@rule("MaxPool")
def max_pool(graph: Graph, node: Node) -> list[str] | None:
    """Make the padding explicit; find the places of maxima if somebody reads them."""
    windows = windows_of(graph, node, list(node.get("kernel_shape")))
    column_major = node.attributes.pop("storage_order", 0)
    _rewrite(node, windows)
    if not node.output(1):
        return None
    y = graph.emit("MaxPool", node.inputs[0], **node.attributes)
    return [y, _places_of_maxima(graph, node.inputs[0], windows, bool(column_major))]


def _rewrite(node: Node, windows: Windows) -> None:
    """Give a pool all that it does in attributes without ``auto_pad`` and ``ceil_mode``."""
    node.attributes.pop("ceil_mode", None)
    node.attributes |= {
        "kernel_shape": windows.kernel,
        "strides": windows.strides,
        "dilations": windows.dilations,
        "pads": windows.pads(),
    }


def _places_of_maxima(graph: Graph, x: str, windows: Windows, column_major: bool) -> str:
    """Return where in the whole tensor, as ONNX counts, the maximum of each window is."""
    batch, channels, *image = graph.shape(x)
    elements = prod(image)
    order = np.arange(elements).reshape(image, order="F" if column_major else "C")
    # Of all windows, the elements, of which those in the padding are replaced by one that is not.
    rows, numbers = [], []
    for output in np.ndindex(*windows.outputs):
        places = [windows.places(axis)[at] for axis, at in enumerate(output)]
        inside = [p[(p >= 0) & (p < size)] for p, size in zip(places, image, strict=True)]
        grid = np.array(np.meshgrid(*inside, indexing="ij")).reshape(len(image), -1)
        if not grid.size:
            raise Refusal("one of its windows lies in the padding")
        fill = [grid[:, :1]] * (prod(windows.kernel) - grid.shape[1])
        grid = np.concatenate([grid, *fill], axis=1)
        rows.append(np.ravel_multi_index(tuple(grid), tuple(image)))
        numbers.append(order[tuple(grid)])
    flat = graph.emit("Reshape", x, graph.constant([batch, channels, elements], np.int64))
    elements_of_windows = graph.emit("Gather", flat, graph.constant(rows, np.int64), axis=2)
    best = graph.emit("ArgMax", elements_of_windows, axis=3, keepdims=0)
    firsts = np.arange(len(rows), dtype=np.int64) * prod(windows.kernel)
    which = graph.emit("Add", best, graph.constant(firsts))
    place = graph.emit("Gather", graph.constant(np.ravel(numbers), np.int64), which, axis=0)
    images = np.arange(batch * channels, dtype=np.int64).reshape(batch, channels, 1) * elements
    found = graph.emit("Add", place, graph.constant(images))
    sizes = graph.constant([batch, channels, *windows.outputs], np.int64)
    return str(graph.emit("Reshape", found, sizes))


@rule("AveragePool")
def average_pool(graph: Graph, node: Node) -> str | None:
    """Make the padding explicit; elements beyond it, where windows reach further, do not count."""
    padded = bool(node.get("count_include_pad"))
    windows = windows_of(graph, node, list(node.get("kernel_shape")))
    within = windows.pads() == [*windows.before, *windows.after]
    node.attributes.pop("count_include_pad", None)
    _rewrite(node, windows)
    if not padded or within:
        node.attributes["count_include_pad"] = int(padded)
        return None
    counts = np.ones(1)
    for axis, size in enumerate(windows.image):
        places = windows.places(axis)
        count = (places < size + windows.after[axis]).sum(1)
        counts = np.multiply.outer(counts, count)
    mean = graph.emit("AveragePool", node.inputs[0], count_include_pad=1, **node.attributes)
    factors = prod(windows.kernel) / counts.reshape(1, 1, *windows.outputs)
    return str(graph.emit("Mul", mean, graph.constant(factors, graph.dtype(mean))))


@rule("LpPool")
def lp_pool(graph: Graph, node: Node) -> str:
    """Sum powers of windows: the mean of all elements, padding included, times their number."""
    windows = windows_of(graph, node, list(node.get("kernel_shape")))
    power = node.attributes.pop("p", 2)
    _rewrite(node, windows)
    dtype = graph.dtype(node.inputs[0])
    powers = _power(graph, graph.emit("Abs", node.inputs[0]), power)
    mean = graph.emit("AveragePool", powers, count_include_pad=1, **node.attributes)
    total = graph.emit("Mul", mean, graph.constant(prod(windows.kernel), dtype))
    return _power(graph, total, 1 / power)


@rule("GlobalLpPool")
def global_lp_pool(graph: Graph, node: Node) -> str:
    """Sum powers of images."""
    x, power = node.inputs[0], node.get("p")
    powers = _power(graph, graph.emit("Abs", x), power)
    axes = graph.constant(np.arange(2, len(graph.shape(x))), np.int64)
    return _power(graph, graph.emit("ReduceSum", powers, axes), 1 / power)


def _power(graph: Graph, x: str, exponent: float) -> str:
    if exponent == 1:
        return x
    if exponent == 2:
        return str(graph.emit("Mul", x, x))
    if exponent == 0.5:
        return str(graph.emit("Sqrt", x))
    return str(graph.emit("Pow", x, graph.constant(exponent, graph.dtype(x))))
