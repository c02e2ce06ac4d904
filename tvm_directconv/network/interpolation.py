"""Linear interpolation of images as ONNX Runtime computes it, to the bit if products are rounded.

Which pixels make an output depends on sizes only: tables have them and their weights.
"""

from typing import Any

import numpy as np
from tvm import te

TRANSFORMS = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
"""From places of outputs to places of the input, by ONNX's names."""


INJECTIVE = {"op_pattern": 2}
"""Attribute of the function: what is before it and after it may become a part of it.

TVM does not take that of a function that reads where a table says."""


def pixels(length: int, size: int, scale: np.float32, transform: str) -> list[np.ndarray]:
    """Return two tables for an axis, int32 and float32: the two pixels of each output, and weights.

    Parameters
    ----------
    length, size : int
        Of the axis, before and after.
    scale : numpy.float32
        About `size` / `length`.
    transform : str
        One of :data:`TRANSFORMS`.
    """
    at, half = np.arange(size, dtype=np.float32), np.float32(0.5)
    match transform:
        case _ if scale == 1:
            places = at
        case "asymmetric":
            places = at / scale
        case "align_corners" | "pytorch_half_pixel" if size == 1:
            places = at
        case "align_corners":
            # ONNX means the size before it is rounded down, where ONNX Runtime takes it after that.
            reached = np.float32(length) * scale
            if np.isclose(reached, size, rtol=1e-6):
                reached = np.float32(size)
            places = at * np.float32(length - 1) / (reached - np.float32(1))
        case _:
            places = (at + half) / scale - half
    places = np.clip(places, 0, np.float32(length - 1))
    first = places.astype(np.int32)
    second = np.minimum(first + 1, length - 1)
    weights = np.abs(np.stack([places - second, places - first]).astype(np.float32))
    weights[:, first == second] = half
    return [np.stack([first, second]).astype(np.int32), weights]


def interpolated(x: Any, rows: Any, by_row: Any, columns: Any, by_column: Any) -> Any:
    """Return an image of another size.

    Parameters
    ----------
    x : te.Tensor
        NCHW or NCHW[x]c, float32.
    rows, by_row, columns, by_column : te.Tensor
        See :func:`pixels`.
    """

    def element(n: Any, c: Any, h: Any, w: Any, *lane: Any) -> Any:
        def part(row: int, column: int) -> Any:
            weight = by_column[column, w] * by_row[row, h]
            return weight * x(n, c, rows[row, h], columns[column, w], *lane)

        return part(0, 0) + part(0, 1) + part(1, 0) + part(1, 1)

    shape = [*x.shape[:2], rows.shape[1], columns.shape[1], *x.shape[4:]]
    return te.compute(shape, element, name="interpolated")
