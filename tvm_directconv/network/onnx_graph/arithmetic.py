"""Rules for element-wise operators, for those that only pass tensors on, and for shapes."""

from functools import reduce
from typing import Any

import numpy as np
from tvm import relax

from .convert import converter
from .graph import Graph
from .nodes import Node, Refusal, rule


@rule("Identity")
def identity(graph: Graph, node: Node) -> str:
    """Name one tensor twice."""
    return node.inputs[0]


@rule("Constant")
def constant(graph: Graph, node: Node) -> None:
    """Refuse what onnx cannot compute."""
    raise Refusal(f"its value is none of a tensor: {', '.join(node.attributes)}")


@rule("Shape")
def shape(graph: Graph, node: Node) -> str:
    """Compute a shape, as all are known."""
    sizes = graph.shape(node.inputs[0])
    return graph.constant(sizes[node.get("start") : node.get("end")], np.int64)


@rule("Size")
def size(graph: Graph, node: Node) -> str:
    """Compute the number of elements."""
    return graph.constant(np.prod(graph.shape(node.inputs[0]), dtype=np.int64))


@rule("Sum")
def binary_sums(graph: Graph, node: Node) -> str:
    """Write sums of several tensors as additions of two; TVM would stack all of them first."""
    total = node.inputs[0]
    for name in node.inputs[1:]:
        total = graph.emit("Add", total, name)
    return total


@rule("Mean")
def binary_mean(graph: Graph, node: Node) -> str:
    """Write the mean as a sum of two after the other, and a division."""
    if len(node.inputs) == 1:
        return node.inputs[0]
    count = graph.constant(len(node.inputs), graph.dtype(node.inputs[0]))
    return str(graph.emit("Div", graph.emit("Sum", *node.inputs), count))


def _of_two(operator: Any) -> Any:
    def convert(builder: Any, inputs: Any, attributes: Any, _: Any) -> Any:
        return reduce(lambda x, y: builder.normalize(operator(x, y)), inputs)

    return convert


# TVM would stack all of them first.
converter("Max")(_of_two(relax.op.maximum))
converter("Min")(_of_two(relax.op.minimum))
