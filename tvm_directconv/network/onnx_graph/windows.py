"""What convolutions and pools have in common: windows that slide over padded images."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import Graph
from .nodes import Node, Refusal


@dataclass
class Windows:
    """Windows over the axes of an image, one entry for each axis.

    Attributes
    ----------
    image, kernel, strides, dilations, before, after : list of int
        Sizes of the image and of a window, steps, and padding.
    outputs : list of int
        How many windows there are.
    """

    image: list[int]
    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]
    outputs: list[int]

    @property
    def rank(self) -> int:
        """How many axes there are."""
        return len(self.image)

    @property
    def extents(self) -> list[int]:
        """How much of an axis a window spans."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def pads(self) -> list[int]:
        """Return the padding as ONNX writes it, more at the ends where windows reach further."""
        reach = [
            (outputs - 1) * stride + extent - size - before
            for outputs, stride, extent, size, before in zip(
                self.outputs, self.strides, self.extents, self.image, self.before, strict=True
            )
        ]
        return [*self.before, *map(max, self.after, reach)]

    def places(self, axis: int) -> np.ndarray:
        """Return where the elements of each window are, a row for each; some are in the padding."""
        starts = np.arange(self.outputs[axis]) * self.strides[axis] - self.before[axis]
        return starts[:, None] + np.arange(self.kernel[axis]) * self.dilations[axis]


def windows_of(graph: Graph, node: Node, kernel: list[int]) -> Windows:
    """Return the windows of a convolution or pool; its padding is made explicit.

    Raises
    ------
    Refusal
        If a window is larger than the padded image.
    """
    image = list(graph.shape(node.inputs[0])[2:])
    rank = len(image)
    if rank not in (1, 2, 3):
        raise Refusal(f"its input has {rank} axes after the channels: expected 1 to 3")
    strides = _given(node, "strides", [1] * rank)
    dilations = _given(node, "dilations", [1] * rank)
    pads = _given(node, "pads", [0] * 2 * rank)
    automatic = node.attributes.pop("auto_pad", "NOTSET")
    given = node.attributes.pop("kernel_shape", None)
    if given is not None and list(given) != kernel:
        raise Refusal(f"kernel_shape is {given}, but its weights are of {kernel}")
    for name, values in (("strides", strides), ("dilations", dilations), ("kernel", kernel)):
        if len(values) != rank or min(values) < 1:
            raise Refusal(f"{name} are {values}: expected {rank} numbers from 1")
    if len(pads) != 2 * rank or min(pads) < 0:
        raise Refusal(f"pads are {pads}: expected {2 * rank} numbers from 0")
    windows = Windows(image, kernel, strides, dilations, pads[:rank], pads[rank:], [])
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        windows.outputs = [-(-n // s) for n, s in zip(image, strides, strict=True)]
        for axis, extent in enumerate(windows.extents):
            total = (windows.outputs[axis] - 1) * strides[axis] + extent - image[axis]
            less, more = max(total, 0) // 2, (max(total, 0) + 1) // 2
            before, after = (less, more) if automatic == "SAME_UPPER" else (more, less)
            windows.before[axis], windows.after[axis] = before, after
        return windows
    if automatic == "VALID":
        windows.before, windows.after = [0] * rank, [0] * rank
    elif automatic != "NOTSET":
        raise Refusal(f"auto_pad {automatic!r} is unknown")
    padded = [sum(n) for n in zip(image, windows.before, windows.after, strict=True)]
    rounded = automatic == "NOTSET" and bool(node.get("ceil_mode"))
    for axis, (size, extent) in enumerate(zip(padded, windows.extents, strict=True)):
        stride = strides[axis]
        count = (size - extent) // stride + 1
        if rounded and (size - extent) % stride:
            # A window that begins behind the image is none.
            count += count * stride < image[axis] + windows.before[axis]
        if count < 1:
            raise Refusal(
                f"its kernel is larger than its padded input: {_by(windows.extents)} and "
                f"{_by(padded)}"
            )
        windows.outputs.append(count)
    return windows


def _given(node: Node, name: str, default: list[int]) -> list[int]:
    value = node.attributes.get(name)
    return list(value) if value else default


def _by(sizes: Any) -> str:
    return "x".join(map(str, sizes))
