"""Rules for branches and loops: a network is one straight line, so what is known decides."""

import numpy as np
import onnx

from .graph import Graph
from .nodes import Node, Refusal, rule

_MOST = 512
"""Rounds of the longest loop that is written out."""


@rule("If")
def branch(graph: Graph, node: Node) -> list[str]:
    """Take the branch that is known to be taken."""
    condition = node.inputs[0]
    if condition not in graph.known:
        raise Refusal(
            f"its condition {condition!r} depends on an input: expected one that is known when "
            "compiling; if a scalar input decides, give its value, as in --input-value NAME=1"
        )
    taken = "then_branch" if graph.known[condition].all() else "else_branch"
    return graph.inline(node.attributes[taken], [], node.scope)


@rule("Loop")
def loop(graph: Graph, node: Node) -> list[str]:
    """Write all rounds one after the other, if their number is known."""
    count, condition, *carried = [*node.inputs, "", ""][: max(2, len(node.inputs))]
    rounds = int(graph.value(count).item()) if count else None
    going = bool(graph.value(condition).all()) if condition else True
    body = node.attributes["body"]
    stacked: list[list[str]] = [[] for _ in range(len(body.output) - 1 - len(carried))]
    done = 0
    while going and (rounds is None or done < rounds):
        _check(done)
        number = graph.constant(done, np.int64)
        going_on = graph.constant(True)
        going_on, *results = graph.inline(body, [number, going_on, *carried], node.scope)
        # For a body that passes its condition on.
        going = bool(graph.value(going_on).all())
        carried, made = results[: len(carried)], results[len(carried) :]
        for stack, name in zip(stacked, made, strict=True):
            stack.append(name)
        done += 1
    return [*carried, *(_stacked(graph, names, 0) for names in stacked)]


@rule("Scan")
def scan(graph: Graph, node: Node) -> list[str]:
    """Write all rounds one after the other."""
    body: onnx.GraphProto = node.attributes["body"]
    scanned = node.attributes["num_scan_inputs"]
    split = len(node.inputs) - scanned
    states, inputs = node.inputs[:split], node.inputs[split:]
    outputs = len(body.output) - split

    def settings(name: str, count: int) -> list[int]:
        return node.attributes.get(name) or [0] * count

    axes = settings("scan_input_axes", scanned)
    backwards = settings("scan_input_directions", scanned)
    stacked: list[list[str]] = [[] for _ in range(outputs)]
    (rounds,) = {graph.shape(x)[axis] for x, axis in zip(inputs, axes, strict=True)}
    for number in range(rounds):
        _check(number)
        parts = []
        for x, axis, back in zip(inputs, axes, backwards, strict=True):
            at = graph.constant(rounds - 1 - number if back else number, np.int64)
            parts.append(graph.emit("Gather", x, at, axis=axis))
        results = graph.inline(body, [*states, *parts], node.scope)
        states = results[:split]
        for stack, name in zip(stacked, results[split:], strict=True):
            stack.append(name)
    made = []
    output_axes = settings("scan_output_axes", outputs)
    for names, axis, back in zip(
        stacked, output_axes, settings("scan_output_directions", outputs), strict=True
    ):
        made.append(_stacked(graph, names[::-1] if back else names, axis))
    return [*states, *made]


def _check(number: int) -> None:
    if number == _MOST:
        raise Refusal(f"it has more than {_MOST} rounds, which would all be written out")


def _stacked(graph: Graph, names: list[str], axis: int) -> str:
    """Return tensors as one, along a new axis."""
    if not names:
        raise Refusal("it has no rounds: one of its results is empty")
    rank = len(graph.shape(names[0])) + 1
    at = graph.constant([axis % rank], np.int64)
    parts = [graph.emit("Unsqueeze", name, at) for name in names]
    return str(graph.emit("Concat", *parts, axis=axis % rank))
