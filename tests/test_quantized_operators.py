"""Operators that quantise and dequantise, one by one, and what stands between them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import Graph, assert_equal, by_onnxruntime, compiled, saved
from quantized_models import OPERATORS, QDQ, Quantized, Tensor

import tvm_directconv as dc
from tvm_directconv.errors import ModelError

SHAPE = (6, 5, 13)
IMAGE = (1, 3, 9, 11)
MICROSOFT = "com.microsoft"
HALF, BRAIN = TensorProto.FLOAT16, TensorProto.BFLOAT16


def numbers(*shape: int, spread: float = 2) -> np.ndarray:
    values = np.random.default_rng(3).standard_normal(shape or SHAPE)
    return (values * spread).astype(np.float32)


def short(g: Graph, values: Any, kind: int) -> str:
    """Add a constant of numbers of 16 bits."""
    return g.constant(values, dtype=helper.tensor_dtype_to_np_dtype(kind))


TYPES = [(np.uint8, 120), (np.int8, -3), (np.uint16, 30000), (np.int16, -7)]


def scale_of(dtype: Any, axis: int | None) -> Any:
    """Return a scale for a tensor, or those along an axis."""
    unit = 0.02 if np.iinfo(dtype).bits == 8 else 0.0007
    return unit if axis is None else unit * np.linspace(0.4, 1.6, SHAPE[axis])


def round_trip(
    g: Graph, kind: int, zero: int, dtype: Any, along: int | None, **given: Any
) -> list[str]:
    """Quantise what is converted to a type, and dequantise it again."""
    scale = scale_of(dtype, along)
    meaning = short(g, scale, kind), g.constant(np.full(np.shape(scale), zero), dtype=dtype)
    x = g.node("Cast", "x", to=kind) if kind != TensorProto.FLOAT else "x"
    q = g.node("QuantizeLinear", x, *meaning, **given)
    y = g.node("DequantizeLinear", q, *meaning, **given)
    return [q, g.node("Cast", y, to=TensorProto.FLOAT) if kind != TensorProto.FLOAT else y]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, HALF])
def test_numbers_are_rounded_as_onnxruntime_rounds_them(kind: int, tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    outputs = []
    for (dtype, zero), axis in zip(TYPES, (None, 1, None, 1), strict=True):
        outputs += round_trip(g, kind, zero, dtype, axis)
    model = g.model(*outputs, opset=21, ir_version=10)
    # Half of them lie in the middle between two that whole ones stand for.
    x = np.random.default_rng(3).integers(-9999, 9999, SHAPE) * np.float32(0.0007 / 2)
    x = x.astype(np.float32)
    assert_equal(compiled(model, tmp_path).run(x), by_onnxruntime(model, [x]))


def test_numbers_are_rounded_to_bfloat16(tmp_path: Path) -> None:
    brain = helper.tensor_dtype_to_np_dtype(BRAIN)
    x, scale = numbers(), np.float32(brain.type(0.02))
    q = np.clip(np.rint(x.astype(brain).astype(np.float32) / scale) + 120, 0, 255)
    y = ((q - 120).astype(np.float32) * scale).astype(brain).astype(np.float32)
    g = Graph(x=SHAPE)
    model = g.model(*round_trip(g, BRAIN, 120, np.uint8, None), opset=21, ir_version=10)
    assert_equal(compiled(model, tmp_path).run(x), [q.astype(np.uint8), y])


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (HALF, {}),  # The scale says in what to divide.
        (TensorProto.FLOAT, {"precision": HALF}),
        (TensorProto.FLOAT, {"precision": TensorProto.FLOAT}),
    ],
)
def test_what_numbers_are_divided_in(kind: int, given: dict[str, int], tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    zero = g.constant(120, dtype=np.uint8)
    q = g.node("QuantizeLinear", "x", short(g, 0.02, kind), zero, **given)
    y = g.node("DequantizeLinear", q, g.constant(0.02), zero, output_dtype=HALF)
    model = g.model(q, g.node("Cast", y, to=TensorProto.FLOAT), opset=23, ir_version=11)
    x = numbers()
    assert_equal(compiled(model, tmp_path).run(x), by_onnxruntime(model, [x]))


def test_convolutions_of_halves_are_of_whole_numbers(tmp_path: Path) -> None:
    g = Quantized(QDQ, np.uint8, 1, 3, 11, 9)
    zero = g.constant(120, dtype=np.uint8)
    scale = short(g, 0.02, HALF)
    q = g.node("QuantizeLinear", g.node("Cast", "x", to=HALF), scale, zero)
    x = g.node("Cast", g.node("DequantizeLinear", q, scale, zero), to=TensorProto.FLOAT)
    kernel = g.node("DequantizeLinear", *g.weight(8, 3, 3, 3), axis=0)
    model = g.made(g.quantized(g.node("Conv", x, kernel)))
    model.opset_import[0].version = 19
    network = compiled(model, tmp_path)
    assert sum("uint8" in layer.workload for layer in network.manifest.layers) == 1


def test_operators_of_the_other_domain(tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    outputs = []
    for dtype, zero in TYPES[:1] + TYPES[3:]:
        for axis in (None, 1, 2):
            given = {"axis": axis} if axis == 2 else {}  # 1 is what it is if nothing is said.
            pair = round_trip(g, TensorProto.FLOAT, zero, dtype, axis, domain=MICROSOFT, **given)
            outputs += pair[1:]
    model = g.model(*outputs, domains=[MICROSOFT])
    model.ir_version = 8
    x = numbers()
    assert_equal(compiled(model, tmp_path).run(x), by_onnxruntime(model, [x]))


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf, -np.inf, 2.0**-130])
def test_scales_that_mean_nothing_are_refused(scale: float, tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    given = g.constant([0.02, 0.02, scale, 0.02, 0.02], "odd")
    path = saved(g.model(g.node("QuantizeLinear", "x", given)), tmp_path)
    message = rf"QuantizeLinear \(quantizelinear0\): its scale 'odd' is {scale:g}: expected finite"
    with pytest.raises(ModelError, match=message):
        dc.compile_network(path, tmp_path / "a.so", check=False)


def test_dead_channels_and_negative_scales_are_no_fault(tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    q = g.node("QuantizeLinear", "x", g.constant(-0.02), g.constant(9, dtype=np.int8))
    zeros = g.constant(np.zeros(5), dtype=np.int8)
    model = g.model(g.node("DequantizeLinear", q, g.constant([0.1, 0, -0.1, 1, 2]), zeros))
    x = numbers()
    assert_equal(compiled(model, tmp_path).run(x), by_onnxruntime(model, [x]))


def test_scales_that_are_computed_are_those_of_onnxruntime(tmp_path: Path) -> None:
    g = Graph(x=SHAPE)
    model = g.model(*g.node("DynamicQuantizeLinear", "x", outputs=3))
    network = compiled(model, tmp_path)
    for x in (numbers(), numbers() * 0, np.abs(numbers()) + 1):
        assert_equal(network.run(x), by_onnxruntime(model, [x]))


def test_quotients_by_constants_are_exact_before_they_are_rounded(tmp_path: Path) -> None:
    g = Graph(x=(1, 4, 500))
    quotient = g.node("Div", "x", g.constant(49))
    model = g.model(
        g.node("Floor", quotient), g.node("Cast", g.node("Div", "x", g.constant(41)), to=6)
    )
    x = np.arange(2000, dtype=np.float32).reshape(1, 4, 500)
    assert_equal(compiled(model, tmp_path).run(x), by_onnxruntime(model, [x]))


CHOSEN: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Expand", [[2, 8, 7, 9]], {}),
    ("Gather", [[0, 2, 1, 1]], {"axis": 1}),
    ("GatherElements", [np.ones((1, 8, 7, 9))], {"axis": 2}),
    ("GatherND", [[[0, 1], [0, 3]]], {}),
    ("GlobalMaxPool", [], {}),
    ("Pad", [[0, 0, 1, 2, 0, 0, 2, 1]], {"mode": "reflect"}),
    ("Pad", [[0, 0, 1, 2, 0, 0, 2, 1]], {"mode": "edge"}),
    ("Pad", [[0, 0, 1, 2, 0, 0, 2, 1], 0.313], {"mode": "constant"}),
    ("ReduceMax", [], {"axes": [1], "keepdims": 1}),
    ("ReduceMin", [], {"axes": [2, 3], "keepdims": 0}),
    ("Slice", [[-1], [-1000], [3], [-1]], {}),
    ("Tile", [[1, 1, 2, 3]], {}),
]


def test_what_chooses_numbers_chooses_whole_ones(tmp_path: Path) -> None:
    g = Quantized(QDQ, np.uint8, *IMAGE)
    x = g.conv(g.image(), 8, 3, 3, 3)
    outputs = []
    for kind, operands, given in CHOSEN:
        constants = [
            g.constant(each, dtype=np.float32 if np.ndim(each) == 0 else np.int64)
            for each in operands
        ]
        outputs.append(g.kept(kind, x, *constants, **given))
    _assert_whole(g.made(*outputs), tmp_path)


def test_what_chooses_between_two_tensors_chooses_whole_numbers(tmp_path: Path) -> None:
    g = Quantized(QDQ, np.uint8, *IMAGE)
    x, y = (g.conv(g.image(), 8, 3, 3, 3) for _ in range(2))
    y = Tensor(y.name, x.scale, x.zero)
    outputs = []
    for kind in ("Max", "Min", "Where"):
        mask = [g.constant(np.arange(9) % 2, dtype=bool)] if kind == "Where" else []
        chosen = g.node(kind, *mask, g.real(x), g.real(y))
        outputs.append(Tensor(g.node("QuantizeLinear", chosen, x.scale, x.zero), x.scale, x.zero))
    _assert_whole(g.made(*outputs), tmp_path)


def _assert_whole(model: onnx.ModelProto, folder: Path) -> None:
    network = compiled(model, folder)
    assert network.manifest.conversions == 0
    x = numbers(*IMAGE, spread=1)
    assert_equal(network.run(x), by_onnxruntime(model, [x], optimized=True))


RESIZED: list[dict[str, Any]] = [
    {"scales": [1, 1, 2, 2]},
    {"scales": [1, 1, 1.7, 0.6]},
    {"scales": [1, 1, 1, 3], "coordinate_transformation_mode": "asymmetric"},
    {"scales": [1, 1, 3, 2], "coordinate_transformation_mode": "align_corners"},
    {"sizes": [1, 8, 15, 1], "coordinate_transformation_mode": "pytorch_half_pixel"},
]


def test_interpolated_numbers_are_those_of_onnxruntime(tmp_path: Path) -> None:
    g = Quantized(QDQ, np.uint8, *IMAGE)
    x = g.conv(g.image(), 8, 3, 3, 3)
    outputs = []
    for given in RESIZED:
        more = dict(given)
        scales, sizes = more.pop("scales", None), more.pop("sizes", None)
        to = [g.constant(scales)] if scales else ["", g.constant(sizes, dtype=np.int64)]
        outputs.append(g.kept("Resize", x, "", *to, mode="linear", **more))
    model = g.made(*outputs)
    image = numbers(*IMAGE, spread=1)
    expected = by_onnxruntime(model, [image], optimized=True)
    assert_equal(compiled(model, tmp_path).run(image), expected)


@pytest.mark.parametrize("form", [QDQ, OPERATORS])
def test_softmax_is_that_of_onnxruntime(form: str, tmp_path: Path) -> None:
    for axis, unit, zero in ((1, 1 / 256, 0), (-1, 0.0047, 17)):
        g = Quantized(form, np.uint8, 3, 30, 7)
        x = g.image()
        scale, point = g.constant(unit), g.constant(zero, dtype=np.uint8)
        if form == QDQ:
            y = g.node("QuantizeLinear", g.node("Softmax", g.real(x), axis=axis), scale, point)
        else:
            given = {"axis": axis, "opset": 13, "domain": MICROSOFT}
            y = g.node("QLinearSoftmax", *x.names, scale, point, **given)
        model = g.made(Tensor(y, scale, point))
        values = numbers(3, 30, 7)
        expected = by_onnxruntime(model, [values], optimized=True)
        assert_equal(compiled(model, tmp_path).run(values), expected)
