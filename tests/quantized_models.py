"""Quantised ONNX models in both forms, and what ONNX Runtime computes of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_models
from onnx import TensorProto, helper
from onnx_models import Graph

QDQ, OPERATORS = "qdq", "operators"


@dataclass(frozen=True)
class Tensor:
    """A quantised tensor: its name, and those of its scale and zero point."""

    name: str
    scale: str
    zero: str

    @property
    def names(self) -> list[str]:
        return [self.name, self.scale, self.zero]


class Quantized(Graph):
    """A quantised model that grows node by node.

    Operators stand between DequantizeLinear and QuantizeLinear, or are those on whole numbers. The
    input is quantised, or of whole numbers itself.
    """

    def __init__(
        self, form: str, dtype: Any, *shape: int, seed: int = 1, whole: bool = False
    ) -> None:
        super().__init__(x=shape)
        self.form, self.dtype = form, np.dtype(dtype)
        self.whole = whole
        if whole:
            kind = helper.np_dtype_to_tensor_dtype(self.dtype)
            self.inputs["x"] = helper.make_tensor_value_info("x", kind, shape)
        self.rng = np.random.default_rng(seed)
        self.info = np.iinfo(self.dtype)

    def meaning(self, spread: float, zero: int | None = None) -> list[str]:
        """Add the scale and the zero point of a tensor with numbers of about this size."""
        scale = np.float32(spread * self.rng.uniform(0.9, 1.1) / 40)
        if zero is None:
            zero = int(self.rng.integers(self.info.min + 90, self.info.max - 90))
        return [self.constant(scale), self.constant(zero, dtype=self.dtype)]

    def quantized(self, x: str, spread: float = 1, zero: int | None = None) -> Tensor:
        scale, point = self.meaning(spread, zero)
        return Tensor(self.node("QuantizeLinear", x, scale, point), scale, point)

    def real(self, x: Tensor) -> str:
        return str(self.node("DequantizeLinear", *x.names))

    def image(self, zero: int | None = None) -> Tensor:
        return Tensor("x", *self.meaning(1, zero)) if self.whole else self.quantized("x", 1, zero)

    def weight(self, *shape: int, axis: int = 0) -> list[str]:
        """Add weights and what they stand for, for each channel."""
        values = self.rng.integers(-127, 127, shape, endpoint=True)
        channels = shape[axis]
        scale = self.rng.uniform(0.5, 1, channels) / np.sqrt(np.prod(shape) / channels) / 70
        return [
            self.constant(values, dtype=np.int8),
            self.constant(scale),
            self.constant(np.zeros(channels), dtype=np.int8),
        ]

    def bias(self, x: Tensor, scale: str, channels: int) -> list[str]:
        """Add a bias in units of sums, and these units."""
        found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in self.constants}
        values = self.rng.integers(-4000, 4000, channels)
        unit = (found[x.scale] * found[scale]).astype(np.float32)
        zeros = np.zeros(channels)
        return [
            self.constant(values, dtype=np.int32),
            self.constant(unit),
            self.constant(zeros, dtype=np.int32),
        ]

    def conv(
        self,
        x: Tensor,
        *shape: int,
        spread: float = 1,
        zero: int | None = None,
        relu: bool = False,
        **attributes: Any,
    ) -> Tensor:
        """Add a convolution with weights of this shape, OIHW."""
        w = self.weight(*shape)
        b = self.bias(x, w[1], shape[0])
        if self.form == QDQ:
            operands = [self.real(x), *(self.node("DequantizeLinear", *p, axis=0) for p in (w, b))]
            y = self.node("Conv", *operands, **attributes)
            return self.quantized(self.node("Relu", y) if relu else y, spread, zero)
        scale, point = self.meaning(spread, zero)
        y = self.node("QLinearConv", *x.names, *w, scale, point, b[0], **attributes)
        return Tensor(y, scale, point)

    def dense(self, x: Tensor, rows: int, columns: int, spread: float = 1) -> Tensor:
        """Add a Gemm with transposed weights and a bias."""
        w = self.weight(columns, rows)
        b = self.bias(x, w[1], columns)
        if self.form == QDQ:
            operands = [self.real(x), *(self.node("DequantizeLinear", *p, axis=0) for p in (w, b))]
            return self.quantized(self.node("Gemm", *operands, transB=1), spread)
        scale, point = self.meaning(spread)
        y = self._microsoft("QGemm", *x.names, *w, b[0], scale, point, transB=1)
        return Tensor(y, scale, point)

    def of(
        self, kind: str, *operands: Tensor, spread: float = 1, zero: int | None = None, **given: Any
    ) -> Tensor:
        """Add an operator of quantised tensors that there is in both forms."""
        if self.form == QDQ:
            return self.quantized(self.node(kind, *map(self.real, operands), **given), spread, zero)
        meaning = self.meaning(spread, zero)
        names = [name for operand in operands for name in operand.names]
        ordered = [*meaning, *names] if kind == "Concat" else [*names, *meaning]
        own = {"channels_last": 0} if "Pool" in kind else {}
        return Tensor(self._microsoft(f"QLinear{kind}", *ordered, **given, **own), *meaning)

    def kept(self, kind: str, x: Tensor, *others: str, **attributes: Any) -> Tensor:
        """Add an operator that only moves numbers, or chooses among them."""
        if self.form == QDQ:
            y = self.node(kind, self.real(x), *others, **attributes)
            return Tensor(self.node("QuantizeLinear", y, x.scale, x.zero), x.scale, x.zero)
        return Tensor(self.node(kind, x.name, *others, **attributes), x.scale, x.zero)

    def _microsoft(self, kind: str, *operands: str, **attributes: Any) -> str:
        name = self.node(kind, *operands, **attributes)
        self.nodes[-1].domain = "com.microsoft"
        return str(name)

    def made(self, *outputs: Tensor | str) -> onnx.ModelProto:
        """Return the model, whose outputs are whole numbers where they are quantised."""
        found = [
            helper.make_tensor_value_info(
                *(
                    (each.name, helper.np_dtype_to_tensor_dtype(self.dtype))
                    if isinstance(each, Tensor)
                    else (each, TensorProto.FLOAT)
                ),
                None,
            )
            for each in outputs
        ]
        graph = helper.make_graph(
            self.nodes, "test", list(self.inputs.values()), found, self.constants
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def by_onnxruntime(
    model: onnx.ModelProto, x: np.ndarray, optimized: bool = True
) -> list[np.ndarray]:
    """Return ONNX Runtime's outputs, as its users run it: in whole numbers where it can."""
    return onnx_models.by_onnxruntime(model, [x], optimized)


# --- Models -----------------------------------------------------------------------------------


def residual(g: Quantized) -> list[Tensor]:
    """Residuals on both sides of an addition, and one between two convolutions."""
    x = g.conv(g.image(), 24, 3, 3, 3, pads=[1] * 4, relu=True, zero=g.info.min)
    y = g.conv(x, 24, 24, 3, 3, pads=[1] * 4)
    x = g.of("Add", y, x, spread=2)
    y = g.conv(x, 24, 24, 1, 1)
    x = g.of("Add", x, y, spread=3)
    one = g.conv(x, 40, 24, 3, 3, pads=[1] * 4, strides=[2, 2])
    other = g.conv(x, 40, 24, 1, 1, strides=[2, 2])
    return [g.of("Add", one, other, spread=3)]


def narrow(g: Quantized) -> list[Tensor]:
    """Depthwise and grouped convolutions, of odd sizes."""
    x = g.conv(g.image(), 20, 3, 3, 3, pads=[1, 0, 2, 1], strides=[2, 2])
    x = g.conv(x, 20, 1, 3, 3, group=20, pads=[1] * 4)
    x = g.conv(x, 28, 5, 3, 3, group=4, pads=[2] * 4, dilations=[2, 2])
    return [g.conv(x, 13, 28, 1, 1)]


def inception(g: Quantized) -> list[Tensor]:
    """Branches of different scales, and pools."""
    x = g.conv(g.image(), 24, 3, 3, 3, zero=g.info.min)
    pooled = g.kept("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4)
    average = g.of(
        "AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=0, spread=0.6
    )
    branches = [g.conv(x, 12, 24, 1, 1), g.conv(pooled, 16, 24, 1, 1, spread=2), average]
    x = g.of("Concat", *branches, axis=1, spread=2)
    x = g.of("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], count_include_pad=1)
    return [g.conv(x, 8, 52, 1, 1)]


def squeeze(g: Quantized) -> list[Tensor]:
    """Squeeze and excite, and a dense layer of as many features as no word divides."""
    x = g.conv(g.image(), 27, 3, 3, 3)
    y = g.of("GlobalAveragePool", x, spread=0.5)
    y = g.conv(y, 8, 27, 1, 1, relu=True, zero=g.info.min)
    y = g.of("LeakyRelu", g.conv(y, 27, 8, 1, 1), alpha=0.1)
    x = g.of("Mul", x, y)
    x = g.of("GlobalAveragePool", x, spread=0.4)
    x = g.kept("Flatten", x)
    return [g.dense(x, 27, 10)]


def moved(g: Quantized) -> list[Tensor]:
    """What only moves numbers."""
    x = g.conv(g.image(), 16, 3, 3, 3)
    scales = g.constant([1, 1, 2, 2])
    x = g.kept(
        "Resize",
        x,
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    x = g.kept("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return [g.conv(x, 8, 16, 3, 3), g.kept("Transpose", x, perm=[0, 2, 3, 1])]


MODELS: dict[str, Callable[[Quantized], list[Tensor]]] = {
    model.__name__: model for model in (residual, narrow, inception, squeeze, moved)
}
"""What grows of an image, by name."""


def grown(g: Quantized, steps: int) -> list[Tensor]:
    """Let a random model grow by so many operators; return what nothing reads."""
    rng = g.rng
    sizes = {}  # of tensors: channels, rows, columns
    ends = {}

    def note(made: Tensor, channels: int, rows: int, columns: int, *read: Tensor) -> None:
        sizes[made] = channels, rows, columns
        ends[made] = made
        for each in read:
            ends.pop(each, None)

    _, channels, rows, columns = (d.dim_value for d in _sizes(g))
    note(g.image(), channels, rows, columns)

    def convolved(x: Tensor) -> None:
        channels, rows, columns = sizes[x]
        kernel = [
            int(rng.choice([k for k in (1, 1, 2, 3, 3, 5) if k <= n])) for n in (rows, columns)
        ]
        pads = [int(rng.integers(0, kernel[axis % 2])) for axis in range(4)]
        stride = [int(rng.choice([1, 1, 2])) for _ in range(2)]
        groups = int(rng.choice([n for n in (1, 1, 1, 2, 4, channels) if channels % n == 0]))
        out = channels if groups == channels else groups * int(rng.integers(1, 40 // groups + 2))
        relu = bool(rng.integers(2))
        y = g.conv(
            x,
            out,
            channels // groups,
            *kernel,
            group=groups,
            pads=pads,
            strides=stride,
            relu=relu,
            zero=g.info.min if relu else None,
        )
        after = [
            (n + pads[axis] + pads[axis + 2] - kernel[axis]) // stride[axis] + 1
            for axis, n in enumerate((rows, columns))
        ]
        note(y, out, *after, x)

    def combined(x: Tensor) -> None:
        alike = [y for y in sizes if sizes[y] == sizes[x]]
        y = alike[int(rng.integers(len(alike)))]
        kind = str(rng.choice(["Add", "Add", "Mul"]))
        note(g.of(kind, *rng.permutation([x, y]).tolist(), spread=2), *sizes[x], x, y)

    def joined(x: Tensor) -> None:
        alike = [y for y in sizes if sizes[y][1:] == sizes[x][1:]]
        parts = [x, *(alike[int(rng.integers(len(alike)))] for _ in range(int(rng.integers(1, 3))))]
        channels = sum(sizes[part][0] for part in parts)
        if channels <= 100:
            note(g.of("Concat", *parts, axis=1, spread=1.5), channels, *sizes[x][1:], *parts)

    def pooled(x: Tensor) -> None:
        channels, rows, columns = sizes[x]
        if min(rows, columns) < 3:
            return
        window = {
            "kernel_shape": [3, 2],
            "strides": [int(rng.integers(1, 3)), 1],
            "pads": [1, 0, 1, 1],
        }
        after = [(rows + 2 - 3) // window["strides"][0] + 1, columns]
        if rng.integers(2):
            y = g.kept("MaxPool", x, **window)
        else:
            y = g.of("AveragePool", x, **window, count_include_pad=int(rng.integers(2)), spread=0.7)
        note(y, channels, *after, x)

    def squeezed(x: Tensor) -> None:
        channels = sizes[x][0]
        y = g.of("GlobalAveragePool", x, spread=0.5)
        y = g.conv(y, channels, channels, 1, 1)
        note(g.of("Mul", x, y), *sizes[x], x)

    def passed(x: Tensor) -> None:
        note(g.of("LeakyRelu", x, alpha=float(rng.uniform(0.01, 0.5))), *sizes[x], x)

    kinds = [convolved] * 6 + [combined] * 3 + [joined, pooled, pooled, squeezed, passed]
    for _ in range(steps):
        tensors = list(sizes)[-4:]
        kinds[int(rng.integers(len(kinds)))](tensors[int(rng.integers(len(tensors)))])
    if len(ends) == 1 and next(iter(sizes)) in ends:
        convolved(next(iter(sizes)))
    return list(ends)


def _sizes(g: Quantized) -> Any:
    return g.inputs["x"].type.tensor_type.shape.dim
