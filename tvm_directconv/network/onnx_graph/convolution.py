"""Rules for convolutions."""

import numpy as np

from .graph import Graph
from .nodes import Node, Refusal, rule
from .windows import windows_of


@rule("Conv")
def conv(graph: Graph, node: Node) -> None:
    """Make the padding explicit."""
    weight = graph.shape(node.inputs[1])
    channels, groups = graph.shape(node.inputs[0])[1], node.get("group")
    if channels != weight[1] * groups or weight[0] % groups:
        raise Refusal(
            f"its input has {channels} channels, and its weights are for {groups} groups of "
            f"{weight[1]}, and {weight[0]} outputs"
        )
    windows = windows_of(graph, node, list(weight[2:]))
    node.attributes |= {"strides": windows.strides, "dilations": windows.dilations}
    # Rows at the end that no window reaches are left where they are.
    node.attributes["pads"] = [*windows.before, *windows.after]


@rule("ConvTranspose")
def conv_transpose(graph: Graph, node: Node) -> str | None:
    """Make the padding explicit, so that nothing is added to the output.

    ``output_padding`` is padding at the end that is not there. What reaches beyond the last product
    is 0 before the bias is added.
    """
    x, weight = node.inputs[:2]
    image, kernel = graph.shape(x)[2:], graph.shape(weight)[2:]
    rank = len(image)
    strides = node.attributes.get("strides") or [1] * rank
    dilations = node.attributes.get("dilations") or [1] * rank
    pads = node.attributes.get("pads") or [0] * 2 * rank
    added = node.attributes.pop("output_padding", None) or [0] * rank
    sizes = node.attributes.pop("output_shape", None)
    automatic = node.attributes.pop("auto_pad", "NOTSET")
    given = node.attributes.pop("kernel_shape", None)
    if given is not None and list(given) != list(kernel):
        raise Refusal(f"kernel_shape is {given}, but its weights are of {list(kernel)}")
    if graph.shape(x)[1] != graph.shape(weight)[0]:
        raise Refusal(
            f"its input has {graph.shape(x)[1]} channels, and its weights are for "
            f"{graph.shape(weight)[0]}"
        )
    full = [
        (size - 1) * stride + (k - 1) * dilation + 1
        for size, stride, k, dilation in zip(image, strides, kernel, dilations, strict=True)
    ]
    if automatic == "VALID":
        pads = [0] * 2 * rank
    if sizes:
        sizes = sizes[-rank:]
    elif automatic in ("SAME_UPPER", "SAME_LOWER"):
        sizes = [size * stride for size, stride in zip(image, strides, strict=True)]
    before, after = list(pads[:rank]), list(pads[rank:])
    for axis in range(rank) if sizes else ():
        total = max(0, full[axis] + added[axis] - sizes[axis])
        before[axis] = total // 2 if automatic == "SAME_UPPER" else total - total // 2
        # Where the output is larger than all products, its end is added.
        after[axis] = full[axis] + added[axis] - sizes[axis] - before[axis]
    after = [pad - more for pad, more in zip(after, added, strict=True)]
    result = [n - b - a for n, b, a in zip(full, before, after, strict=True)]
    if min(result) < 1:
        raise Refusal(f"its padding leaves nothing of its output: {result}")
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    cut = [min(pad, most) for pad, most in zip(before, reach, strict=True)]
    end = [min(max(pad, 0), most) for pad, most in zip(after, reach, strict=True)]
    node.attributes |= {"strides": strides, "dilations": dilations, "pads": [*cut, *end]}
    if cut == before and end == after:
        return None
    y = graph.emit("ConvTranspose", x, weight, **node.attributes)
    rest = [c - b for c, b in zip(cut, before, strict=True)]
    rest_after = [e - a for e, a in zip(end, after, strict=True)]
    y = graph.emit("Pad", y, graph.constant([0, 0, *rest, 0, 0, *rest_after], np.int64))
    if bias := node.input(2):
        shape = graph.constant([1, -1, *[1] * rank], np.int64)
        y = graph.emit("Add", y, graph.emit("Reshape", bias, shape))
    return str(y)
