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
MICROSOFT = "com.microsoft"
HALF, BRAIN = TensorProto.FLOAT16, TensorProto.BFLOAT16


def numbers(*shape: int, spread: float = 2) -> np.ndarray:
    values = np.random.default_rng(3).standard_normal(shape or SHAPE)
    return (values * spread).astype(np.float32)


def short(g: Graph, values: Any, kind: int) -> str:
    """Add a constant of numbers of 16 bits."""
    return g.constant(values, dtype=helper.tensor_dtype_to_np_dtype(kind))


def round_trip(kind: int, zero: int, dtype: Any, scale: Any, **given: Any) -> onnx.ModelProto:
    """Return a model that quantises what is converted to a type, and dequantises it again."""
    g = Graph(x=SHAPE)
    meaning = short(g, scale, kind), g.constant(np.full(np.shape(scale), zero), dtype=dtype)
    x = g.node("Cast", "x", to=kind) if kind != TensorProto.FLOAT else "x"
    q = g.node("QuantizeLinear", x, *meaning, **given)
    y = g.node("Cast", g.node("DequantizeLinear", q, *meaning, **given), to=TensorProto.FLOAT)
    return g.model(q, y, opset=21, ir_version=10)


TYPES = [(np.uint8, 120), (np.int8, -3), (np.uint16, 30000), (np.int16, -7)]


@pytest.mark.parametrize(("dtype", "zero"), TYPES)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, HALF])
def test_numbers_are_rounded_as_onnxruntime_rounds_them(
    kind: int, dtype: type, zero: int, tmp_path: Path
) -> None:
    unit = 0.02 if np.iinfo(dtype).bits == 8 else 0.0007
    for scale in (unit, unit * np.linspace(0.4, 1.6, SHAPE[1])):
        model = round_trip(kind, zero, dtype, scale, axis=1)
        x = numbers(spread=8)
        assert_equal(compiled(model, tmp_path).run(x), by_onnxruntime(model, [x]))


def test_numbers_are_rounded_to_bfloat16(tmp_path: Path) -> None:
    brain = helper.tensor_dtype_to_np_dtype(BRAIN)
    x, scale = numbers(), np.float32(brain.type(0.02))
    q = np.clip(np.rint(x.astype(brain).astype(np.float32) / scale) + 120, 0, 255)
    y = ((q - 120).astype(np.float32) * scale).astype(brain).astype(np.float32)
    found = compiled(round_trip(BRAIN, 120, np.uint8, 0.02), tmp_path).run(x)
    assert_equal(found, [q.astype(np.uint8), y])


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


@pytest.mark.parametrize(("dtype", "zero"), TYPES)
@pytest.mark.parametrize("axis", [None, 1, 2])
def test_operators_of_the_other_domain(
    axis: int | None, dtype: type, zero: int, tmp_path: Path
) -> None:
    g = Graph(x=SHAPE)
    scale = 0.02 if axis is None else np.linspace(0.01, 0.03, SHAPE[axis])
    meaning = g.constant(scale), g.constant(np.full(np.shape(scale), zero), dtype=dtype)
    given = {"axis": axis} if axis == 2 else {}  # 1 is what it is if nothing is said.
    q = g.node("QuantizeLinear", "x", *meaning, domain=MICROSOFT, **given)
    y = g.node("DequantizeLinear", q, *meaning, domain=MICROSOFT, **given)
    model = g.model(y, domains=[MICROSOFT])
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


CHOSEN: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "Expand": ([[2, 8, 7, 9]], {}),
    "Gather": ([[0, 2, 1, 1]], {"axis": 1}),
    "GatherElements": ([np.ones((1, 8, 7, 9))], {"axis": 2}),
    "GatherND": ([[[0, 1], [0, 3]]], {}),
    "GlobalMaxPool": ([], {}),
    "ReduceMax": ([], {"axes": [1], "keepdims": 1}),
    "ReduceMin": ([], {"axes": [2, 3], "keepdims": 0}),
    "Slice": ([[-1], [-1000], [3], [-1]], {}),
    "Tile": ([[1, 1, 2, 3]], {}),
}
PADS = [0, 0, 1, 2, 0, 0, 2, 1]


def between(kind: str, *operands: Any, **given: Any) -> onnx.ModelProto:
    """Return a model with an operator between two tensors that are quantised alike."""
    g = Quantized(QDQ, np.uint8, 1, 3, 9, 11)
    constants = [
        g.constant(each, dtype=np.float32 if np.ndim(each) == 0 else np.int64) for each in operands
    ]
    return g.made(g.kept(kind, g.conv(g.image(), 8, 3, 3, 3), *constants, **given))


@pytest.mark.parametrize("kind", CHOSEN)
def test_what_chooses_numbers_chooses_whole_ones(kind: str, tmp_path: Path) -> None:
    operands, given = CHOSEN[kind]
    _assert_whole(between(kind, *operands, **given), tmp_path)


@pytest.mark.parametrize("operands", [["reflect"], ["edge"], ["wrap"], ["constant", 0.313]])
def test_pads_are_whole_numbers(operands: list[Any], tmp_path: Path) -> None:
    mode, *value = operands
    _assert_whole(between("Pad", PADS, *value, mode=mode), tmp_path)


@pytest.mark.parametrize("kind", ["Max", "Min", "Where"])
def test_what_chooses_between_two_tensors_chooses_whole_numbers(kind: str, tmp_path: Path) -> None:
    g = Quantized(QDQ, np.uint8, 1, 3, 9, 11)
    x, y = (g.conv(g.image(), 8, 3, 3, 3) for _ in range(2))
    y = Tensor(y.name, x.scale, x.zero)
    mask = [g.constant(np.arange(9) % 2, dtype=bool)] if kind == "Where" else []
    chosen = g.node(kind, *mask, g.real(x), g.real(y))
    model = g.made(Tensor(g.node("QuantizeLinear", chosen, x.scale, x.zero), x.scale, x.zero))
    _assert_whole(model, tmp_path)


def _assert_whole(model: onnx.ModelProto, folder: Path) -> None:
    network = compiled(model, folder)
    assert network.manifest.conversions == 0
    x = numbers(1, 3, 9, 11, spread=1)
    assert_equal(network.run(x), by_onnxruntime(model, [x], optimized=True))


RESIZED: list[dict[str, Any]] = [
    {"scales": [1, 1, 2, 2]},
    {"scales": [1, 1, 1.7, 0.6]},
    {"scales": [1, 1, 1, 3], "coordinate_transformation_mode": "asymmetric"},
    {"scales": [1, 1, 2.4, 2], "coordinate_transformation_mode": "align_corners"},
    {"sizes": [1, 8, 15, 1], "coordinate_transformation_mode": "pytorch_half_pixel"},
]


@pytest.mark.parametrize("given", RESIZED, ids=str)
def test_interpolated_numbers_are_those_of_onnxruntime(
    given: dict[str, Any], tmp_path: Path
) -> None:
    g = Quantized(QDQ, np.uint8, 1, 3, 9, 11)
    more = dict(given)
    scales, sizes = more.pop("scales", None), more.pop("sizes", None)
    to = [g.constant(scales)] if scales else ["", g.constant(sizes, dtype=np.int64)]
    x = g.conv(g.image(), 8, 3, 3, 3)
    model = g.made(g.kept("Resize", x, "", *to, mode="linear", **more))
    image = numbers(1, 3, 9, 11, spread=1)
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
