"""Rules for resizing.

Along each axis, an output is a weighted sum of some inputs. Which they are, and with what weights,
depends on sizes only: it is computed here, as ONNX defines it. TVM's own operator is used where it
does the same, as it works on blocks of channels.
"""

import math
from typing import Any

import numpy as np

from ..interpolation import INJECTIVE, TRANSFORMS, interpolated, pixels
from ..rewriter import constant, shape_of, value_of
from .convert import converter
from .graph import Graph
from .nodes import CONVERTERS, Node, Refusal, rule

BEFORE_11 = "floor, or ceil where an axis shrinks"
"""The ``nearest_mode`` of opset 10, whose text leaves it open: what its tests and runtimes do."""

_TVM_TRANSFORMS = ("half_pixel", "align_corners", "asymmetric")


@rule("Resize")
def resize(graph: Graph, node: Node) -> str | None:
    """Write it as gathers and sums, one axis after the other, or keep what TVM gets right."""
    x = node.inputs[0]
    shape = graph.shape(x)
    settings = Settings(graph, node, shape)
    if transform := settings.tvms():
        # TVM takes scales from the sizes.
        node.inputs = [x, "", "", graph.constant(settings.sizes, np.int64)]
        node.attributes = {"mode": settings.mode, "coordinate_transformation_mode": transform}
        if settings.mode == "nearest":
            node.attributes["nearest_mode"] = "floor"
        return None
    if settings.is_interpolation() and graph.dtype(x) == np.float32:
        scales = [graph.constant(settings.scales, np.float32)]
        sizes = ["", graph.constant(settings.sizes, np.int64)]
        node.inputs = [x, "", *(sizes if settings.by_sizes else scales)]
        node.attributes = {
            "mode": "linear",
            "coordinate_transformation_mode": settings.transform,
        }
        return None
    y, outside = x, np.zeros((), bool)
    for axis, size in enumerate(settings.sizes):
        if settings.is_identity(axis):
            continue
        indices, weights, beyond = settings.taps(axis)
        y = _weighted(graph, y, axis, indices, weights)
        outside = outside | beyond.reshape(size, *[1] * (len(shape) - axis - 1))
    if outside.any():
        value = graph.constant(settings.extrapolation, graph.dtype(x))
        mask = np.broadcast_to(outside, [1, *outside.shape][-len(shape) :])
        y = graph.emit("Where", graph.constant(mask), value, y)
    return y


_tvms = CONVERTERS["Resize"]


@converter("Resize")
def resized(builder: Any, inputs: Any, attributes: Any, parameters: Any) -> Any:
    """Interpolate where scales are not those of sizes, which TVM takes, or it has no such form."""
    mode, transform = (
        attributes[name].decode() for name in ("mode", "coordinate_transformation_mode")
    )
    scales, sizes = map(_values, (inputs[2], inputs[3]))
    if not scales.size and (mode != "linear" or transform in _TVM_TRANSFORMS):
        return _tvms(builder, inputs, attributes, parameters)
    tables: list[Any] = []
    for axis in (2, 3):
        length = shape_of(inputs[0])[axis]
        if scales.size:
            size, scale = _size(length, scales[axis]), scales[axis]
        else:
            size, scale = int(sizes[axis]), np.float32(sizes[axis]) / np.float32(length)
        tables += pixels(length, size, scale, transform)
    return builder.emit_te(
        interpolated, inputs[0], *map(constant, tables), primfunc_attrs=INJECTIVE
    )


def _values(given: Any) -> np.ndarray:
    """Return the values of an input that is known, none if it is left out."""
    values = None if given is None else value_of(given)
    return np.zeros(0) if values is None else values


def _size(length: int, scale: Any) -> int:
    """Return the size of an axis that is scaled; as float32, which scales are."""
    return math.floor(np.float32(length) * np.float32(scale))


def _weighted(graph: Graph, x: str, axis: int, indices: np.ndarray, weights: np.ndarray) -> str:
    """Return the sums of the elements at indices along an axis, of which each has a weight."""
    if indices.shape[1] == 1 and (weights == 1).all():
        return str(graph.emit("Gather", x, graph.constant(indices[:, 0], np.int64), axis=axis))
    dtype = graph.dtype(x)
    if dtype.kind != "f":
        raise Refusal(f"interpolation of {dtype} is not supported: expected floats")
    after = [1] * (len(graph.shape(x)) - axis - 1)
    gathered = graph.emit("Gather", x, graph.constant(indices, np.int64), axis=axis)
    factors = graph.constant(weights.reshape(*weights.shape, *after), dtype)
    scaled = graph.emit("Mul", gathered, factors)
    axes = graph.constant([axis + 1], np.int64)
    return str(graph.emit("ReduceSum", scaled, axes, keepdims=0))


class Settings:
    """What a node says of all axes.

    Attributes
    ----------
    sizes : list of int
        Of the result.
    scales : list of float
        By which positions are divided; 1 where an axis stays as it is.
    by_sizes : bool
        Whether the node gives sizes, which scales are of.
    """

    def __init__(self, graph: Graph, node: Node, shape: tuple[int, ...]) -> None:
        self.mode = node.get("mode")
        self.transform = node.get("coordinate_transformation_mode")
        self.nearest = node.get("nearest_mode")
        self.antialias = bool(node.get("antialias"))
        self.exclude_outside = bool(node.get("exclude_outside"))
        self.cubic = node.get("cubic_coeff_a")
        self.extrapolation = node.get("extrapolation_value")
        self.shape = shape
        rank = len(shape)
        axes = [axis % rank for axis in node.get("axes") or range(rank)]
        self.sizes, self.scales = list(shape), [1.0] * rank
        self.roi = [(0.0, 1.0)] * rank
        self.by_sizes = False
        if scales := self._given(graph, node, 2):
            for axis, scale in zip(axes, scales, strict=True):
                self.sizes[axis] = _size(shape[axis], scale)
                self.scales[axis] = float(scale)
        else:
            self._set_sizes(node, axes, [int(size) for size in self._given(graph, node, 3)])
        if self.transform == "tf_crop_and_resize":
            roi = self._given(graph, node, 1)
            for axis, first, last in zip(axes, roi, roi[len(axes) :], strict=False):
                self.roi[axis] = float(first), float(last)
        if min(self.sizes) < 1:
            raise Refusal(f"its result has shape {tuple(self.sizes)}: expected sizes from 1")

    @staticmethod
    def _given(graph: Graph, node: Node, index: int) -> list[Any]:
        name = node.input(index)
        return graph.value(name).tolist() if name else []

    def _set_sizes(self, node: Node, axes: list[int], sizes: list[int]) -> None:
        policy = node.get("keep_aspect_ratio_policy")
        if policy in (None, "stretch"):
            self.by_sizes = True
            for axis, size in zip(axes, sizes, strict=True):
                self.sizes[axis], self.scales[axis] = size, size / self.shape[axis]
            return
        ratios = [size / self.shape[axis] for axis, size in zip(axes, sizes, strict=True)]
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        for axis in axes:
            self.sizes[axis] = math.floor(ratio * self.shape[axis] + 0.5)
            self.scales[axis] = ratio

    def is_identity(self, axis: int) -> bool:
        """Return whether an axis stays as it is."""
        return (
            self.scales[axis] == 1
            and self.sizes[axis] == self.shape[axis]
            and self.roi[axis] == (0.0, 1.0)
        )

    def is_interpolation(self) -> bool:
        """Return whether images are interpolated, with the sizes or scales that are given."""
        return (
            len(self.shape) == 4
            and self.is_identity(0)
            and self.is_identity(1)
            and self.mode == "linear"
            and self.transform in TRANSFORMS
            and not self.exclude_outside
            and not (self.antialias and min(self.scales) < 1)
            and (
                self.by_sizes
                or all(_size(self.shape[a], self.scales[a]) == self.sizes[a] for a in (2, 3))
            )
        )

    def tvms(self) -> str:
        """Return the transform with which TVM's operator does the same, empty if none does."""
        if len(self.shape) != 4 or not self.is_identity(0) or not self.is_identity(1):
            return ""
        sizes = self.sizes[2:]
        exact = all(self.scales[axis] * self.shape[axis] == self.sizes[axis] for axis in (2, 3))
        if not exact:
            return ""
        if self.mode == "nearest":
            floors = (np.arange(self.sizes[a]) * self.shape[a] // self.sizes[a] for a in (2, 3))
            found = (self.taps(axis)[0][:, 0] for axis in (2, 3))
            return "asymmetric" if all(map(np.array_equal, floors, found)) else ""
        if self.mode != "linear" or self.exclude_outside:
            return ""
        if self.antialias and min(self.scales) < 1:
            return ""
        if self.transform == "pytorch_half_pixel" and min(sizes) > 1:
            return "half_pixel"
        return self.transform if self.transform in _TVM_TRANSFORMS else ""

    def taps(self, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which elements along an axis make the outputs.

        Returns
        -------
        indices, weights : numpy.ndarray
            A row for each output.
        outside : numpy.ndarray
            Outputs whose place is outside of the input, and which get the value for that.
        """
        length, scale = self.shape[axis], self.scales[axis]
        places = self._places(axis)
        outside = np.zeros(len(places), bool)
        if self.transform == "tf_crop_and_resize":
            outside = (places < 0) | (places > length - 1)
        if self.mode == "nearest":
            at = self._rounded(places, scale)
            return np.clip(at, 0, length - 1)[:, None].astype(int), np.ones((len(at), 1)), outside
        stretch = max(1.0, 1 / scale) if self.antialias else 1.0
        reach = stretch * (1 if self.mode == "linear" else 2)
        kernel = _triangle if self.mode == "linear" else self._bicubic
        rows = []
        for place in places:
            at = np.arange(math.floor(place - reach), math.ceil(place + reach) + 1)
            weights = kernel((at - place) / stretch)
            at, weights = at[weights != 0], weights[weights != 0]
            if self.exclude_outside:
                weights = np.where((at >= 0) & (at < length), weights, 0)
            if self.exclude_outside or self.antialias:
                weights = weights / (weights.sum() or 1)
            row = np.zeros(length)
            np.add.at(row, np.clip(at, 0, length - 1), weights)
            rows.append(row)
        most = max(1, *(int(np.count_nonzero(row)) for row in rows))
        # Of a row with fewer, the last one stands there again, with weight 0.
        indices = np.zeros((len(rows), most), int)
        weights = np.zeros((len(rows), most))
        for number, row in enumerate(rows):
            found = np.flatnonzero(row)
            if not found.size:  # Outside, where there is a value for it.
                continue
            indices[number] = [*found, *[found[-1]] * (most - len(found))]
            weights[number, : len(found)] = row[found]
        return indices, weights, outside

    def _places(self, axis: int) -> np.ndarray:
        """Return the places of outputs along an axis of the input."""
        length, size, scale = self.shape[axis], self.sizes[axis], self.scales[axis]
        at = np.arange(size)
        match self.transform:
            case "half_pixel":
                return (at + 0.5) / scale - 0.5
            case "half_pixel_symmetric":
                center = length / 2 * (1 - size / (scale * length))
                return center + (at + 0.5) / scale - 0.5
            case "pytorch_half_pixel":
                return (at + 0.5) / scale - 0.5 if size > 1 else np.zeros(1)
            case "align_corners":
                return at * (length - 1) / (length * scale - 1) if size > 1 else np.zeros(1)
            case "asymmetric":
                return at / scale
            case "tf_half_pixel_for_nn":
                return (at + 0.5) / scale
            case "tf_crop_and_resize":
                first, last = self.roi[axis]
                if size == 1:
                    return np.array([(first + last) * (length - 1) / 2])
                step = (last - first) * (length - 1) / (length * scale - 1)
                return first * (length - 1) + at * step
            case _:
                raise Refusal(f"coordinate_transformation_mode {self.transform!r} is unknown")

    def _rounded(self, places: np.ndarray, scale: float) -> np.ndarray:
        match self.nearest:
            case mode if mode == BEFORE_11:
                # As float32, in which whole places are not missed by the error of the scale.
                places = places.astype(np.float32)
                return np.ceil(places) if scale < 1 else np.floor(places)
            case "round_prefer_floor":
                return np.ceil(places - 0.5)
            case "round_prefer_ceil":
                return np.floor(places + 0.5)
            case "floor":
                return np.floor(places)
            case "ceil":
                return np.ceil(places)
            case _:
                raise Refusal(f"nearest_mode {self.nearest!r} is unknown")

    def _bicubic(self, x: np.ndarray) -> np.ndarray:
        a, x = self.cubic, np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(x))
