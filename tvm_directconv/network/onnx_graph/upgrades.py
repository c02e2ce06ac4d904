"""What a new version of an operator changed beyond allowing more, one entry for each."""

from typing import Any

import numpy as np
from onnx import defs, helper

from .graph import Graph
from .nodes import FORM, VERSIONS, Node, Refusal
from .resize import BEFORE_11
from .upgrading import Upgrade, upgrade_to

# --- Attributes that became inputs ---------------------------------------------------------------


def _attributes_to_inputs(*names: tuple[str, Any]) -> Upgrade:
    """Return an upgrade for attributes that become inputs, after those that there are.

    Parameters
    ----------
    *names : tuple
        In the order of the inputs, the name of the attribute, and the type of its elements; None
        for that of the first input.
    """

    def change(graph: Graph, node: Node) -> None:
        for name, dtype in names:
            value = node.attributes.pop(name, None)
            node.inputs.append(
                "" if value is None else graph.constant(value, dtype or graph.dtype(node.inputs[0]))
            )
        while not node.inputs[-1]:
            node.inputs.pop()

    return change


_AXES = (("axes", np.int64),)
_CHANGES: tuple[tuple[Any, ...], ...] = (
    (5, "Reshape", ("shape", np.int64)),
    (9, "Upsample", ("scales", np.float32)),
    (10, "Slice", ("starts", np.int64), ("ends", np.int64), *_AXES),
    (11, "Clip", ("min", None), ("max", None)),
    (11, "Pad", ("pads", np.int64), ("value", None)),
    (12, "Dropout", ("ratio", np.float32)),
    (13, "ReduceSum", *_AXES),
    (13, "Split", ("split", np.int64)),
    (13, "Squeeze", *_AXES),
    (13, "Unsqueeze", *_AXES),
    *(
        (18, f"Reduce{kind}", *_AXES)
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    ),
)
for _change in _CHANGES:
    upgrade_to(_change[0], _change[1])(_attributes_to_inputs(*_change[2:]))


@upgrade_to(10, "TopK")
def _k(graph: Graph, node: Node) -> None:
    node.inputs.append(graph.constant([node.attributes.pop("k")], np.int64))


# --- Attributes that are gone --------------------------------------------------------------------

# Before version 6 a node could say which inputs its outputs may overwrite.
for _kind in [kind for kind, versions in VERSIONS.items() if 6 in versions and 1 in versions]:
    if "consumed_inputs" in defs.get_schema(_kind, 1, "").attributes:

        @upgrade_to(6, _kind)
        def _consumed_inputs(graph: Graph, node: Node) -> None:
            node.attributes.pop("consumed_inputs", None)


@upgrade_to(7, "Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")
def _broadcast_7(graph: Graph, node: Node) -> None:
    """The second input was placed at an axis of the first; today their last axes are the same."""
    axis = node.attributes.pop("axis", None)
    if not node.attributes.pop("broadcast", 0) or axis is None:
        return
    first, second = (graph.shape(name) for name in node.inputs)
    missing = len(first) - len(second) - axis % len(first)
    if missing > 0:
        axes = graph.constant(np.arange(len(second), len(second) + missing), np.int64)
        node.inputs[1] = graph.emit("Unsqueeze", node.inputs[1], axes)


@upgrade_to(7, "Gemm")
def _gemm_7(graph: Graph, node: Node) -> None:
    node.attributes.pop("broadcast", None)


@upgrade_to(7, "BatchNormalization", "Dropout")
def _is_test(graph: Graph, node: Node) -> None:
    """What has no outputs for training is meant for inference, as it is today."""
    if not node.attributes.pop("is_test", 0) and len(node.outputs) > 1:
        raise Refusal("it is in training mode: export the model for inference")


@upgrade_to(9, "BatchNormalization")
def _spatial(graph: Graph, node: Node) -> None:
    if node.attributes.pop("spatial", 1) != 1:
        raise Refusal("statistics of each pixel (spatial=0) are not supported")


@upgrade_to(14, "BatchNormalization")
def _training_mode(graph: Graph, node: Node) -> None:
    if len(node.outputs) > 1:
        raise Refusal("it is in training mode: export the model for inference")


# --- Operators with another meaning --------------------------------------------------------------


@upgrade_to(6, "Cast")
def _cast_6(graph: Graph, node: Node) -> None:
    """The type was a name."""
    name = str(node.attributes["to"]).upper()
    node.attributes["to"] = helper.TensorProto.DataType.Value(name)


@upgrade_to(21, "GroupNormalization")
def _group_normalization_21(graph: Graph, node: Node) -> None:
    """Scale and bias were those of groups; today they are those of channels."""
    channels = graph.shape(node.inputs[0])[1]
    for index in (1, 2):
        groups = graph.shape(node.inputs[index])[0]
        repeated = graph.constant(np.repeat(np.arange(groups), channels // groups))
        node.inputs[index] = graph.emit("Gather", node.inputs[index], repeated)


@upgrade_to(13, "Hardmax", "LogSoftmax", "Softmax")
def _softmax_13(graph: Graph, node: Node) -> None:
    """The axis was where a matrix begins: all from there on are normalised together."""
    shape = graph.shape(node.inputs[0])
    axis = node.attributes["axis"] % max(1, len(shape))
    if len(shape) - axis <= 1 or shape[axis:].count(1) == len(shape) - axis - 1:
        sizes = [size != 1 for size in shape[axis:]]
        node.attributes["axis"] = axis + (sizes.index(True) if any(sizes) else 0)
        return
    flat = graph.emit("Flatten", node.inputs[0], axis=axis)
    y = graph.emit(node.kind, flat, axis=1)
    node.kind, node.attributes = "Reshape", {}
    node.inputs, node.version = [y, graph.constant(shape, np.int64)], FORM


@upgrade_to(2, "Pad")
def _pad_2(graph: Graph, node: Node) -> None:
    node.attributes["pads"] = node.attributes.pop("paddings")


@upgrade_to(18, "Split")
def _split_18(graph: Graph, node: Node) -> None:
    if not node.input(1):
        node.attributes["num_outputs"] = len(node.outputs)


@upgrade_to(6, "Tile")
def _tile_6(graph: Graph, node: Node) -> None:
    repeats = np.ones(len(graph.shape(node.inputs[0])), np.int64)
    tiles, axis = (graph.value(name).item() for name in node.inputs[1:])
    repeats[int(axis)] = int(tiles)
    node.inputs[1:] = [graph.constant(repeats)]


@upgrade_to(7, "Upsample")
def _upsample_7(graph: Graph, node: Node) -> None:
    scales = [node.attributes.pop(f"{side}_scale") for side in ("height", "width")]
    node.attributes["scales"] = [1.0, 1.0, *scales]


@upgrade_to(10, "Upsample")
def _upsample_10(graph: Graph, node: Node) -> None:
    node.kind = "Resize"


@upgrade_to(11, "Resize")
def _resize_11(graph: Graph, node: Node) -> None:
    node.inputs.insert(1, "")
    node.attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": BEFORE_11}


@upgrade_to(11, "Scatter")
def _scatter_11(graph: Graph, node: Node) -> None:
    node.kind = "ScatterElements"


@upgrade_to(20, "GridSample")
def _grid_sample_20(graph: Graph, node: Node) -> None:
    names = {"bilinear": "linear", "bicubic": "cubic"}
    node.attributes["mode"] = names.get(node.attributes["mode"], node.attributes["mode"])
