"""Operators beyond ONNX's own tests: what these do not try, compiled and run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_models import (
    Graph,
    assert_equal,
    assert_like_onnxruntime,
    by_onnxruntime,
    compiled,
    saved,
)

from tvm_directconv.errors import ModelError
from tvm_directconv.network.compile import compile_network


def run(g: Graph, folder: Path, *outputs: str, opset: int = 17, **inputs: Any) -> list[np.ndarray]:
    """Compile a model with inputs of these types, and return its outputs."""
    found = compiled(typed(g, *outputs, opset=opset, **inputs), folder).run(**inputs)
    return list(found) if isinstance(found, tuple) else [found]


def typed(g: Graph, *outputs: str, opset: int = 17, **inputs: Any) -> Any:
    for name, array in inputs.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        g.inputs[name] = helper.make_tensor_value_info(name, kind, array.shape)
    return g.model(*outputs, opset=opset)


def like_onnxruntime(g: Graph, folder: Path, *outputs: str, **inputs: Any) -> Any:
    model = typed(g, *outputs, **inputs)
    network = compiled(model, folder)
    assert_equal(network.run(**inputs), by_onnxruntime(model, list(inputs.values())), exact=False)
    return network


def refused(g: Graph, folder: Path, *outputs: str, **inputs: Any) -> str:
    path = saved(typed(g, *outputs, **inputs), folder)
    with pytest.raises(ModelError) as caught:
        compile_network(path, path.with_suffix(".so"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- Recurrent layers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "gates", "options"),
    [
        ("RNN", 1, {"direction": "bidirectional", "activations": ["Relu", "Tanh"]}),
        ("GRU", 3, {"direction": "reverse", "clip": 0.5}),
        ("GRU", 3, {"direction": "forward", "linear_before_reset": 1}),
        ("LSTM", 4, {"direction": "bidirectional", "clip": 0.7}),
        ("LSTM", 4, {"activations": ["HardSigmoid", "Softsign", "Relu"]}),
    ],
    ids=str,
)
def test_recurrent_layers(tmp_path: Path, kind: str, gates: int, options: dict[str, Any]) -> None:
    directions = 2 if options.get("direction") == "bidirectional" else 1
    size = 5
    g = Graph()
    operands = ["x"]
    operands.append(g.constant(normal(directions, gates * size, 3, seed=1)))
    operands.append(g.constant(normal(directions, gates * size, size, seed=2)))
    operands.append(g.constant(normal(directions, 2 * gates * size, seed=3)))
    operands += ["lengths", "h"]
    inputs = {
        "x": normal(4, 2, 3),
        "lengths": np.array([2, 4], np.int32),
        "h": normal(directions, 2, size, seed=4),
    }
    if kind == "LSTM":
        operands += ["c", g.constant(normal(directions, 3 * size, seed=5))]
        inputs["c"] = normal(directions, 2, size, seed=6)
    outputs = g.node(
        kind, *operands, outputs=3 if kind == "LSTM" else 2, hidden_size=size, **options
    )
    like_onnxruntime(g, tmp_path, *outputs, **inputs)


def test_constant_inputs_of_recurrent_layers_are_not_left_to_a_reference(tmp_path: Path) -> None:
    g = Graph()
    operands = [
        g.constant(normal(*s, seed=n)) for n, s in enumerate([(3, 2, 3), (1, 4, 3), (1, 4, 4)])
    ]
    y, _ = g.node(
        "RNN", *operands, "", g.constant([1, 3], dtype=np.int32), outputs=2, hidden_size=4
    )
    g.node("Abs", "z")
    (_, found) = run(g, tmp_path, g.nodes[-1].output[0], y, z=normal(2))
    assert found.shape == (3, 1, 2, 4)
    assert (found[1:, :, 0] == 0).all() and (found[:, :, 1] != 0).all()


# --- Element by element -----------------------------------------------------------------------


def test_a_clip_beyond_all_activations_is_none_of_them(tmp_path: Path) -> None:
    for limit in (100.0, 255.0, 65535.0, 1e30):
        g = Graph()
        y = g.node("Clip", "x", g.constant(0), g.constant(limit))
        x = np.array([-1, 50, 254, 256, 1e5, 3e38], np.float32)
        (found,) = run(g, tmp_path, y, x=x)
        np.testing.assert_array_equal(found, np.clip(x, 0, np.float32(limit)))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_activations_of_other_types(tmp_path: Path, dtype: Any) -> None:
    g = Graph()
    y = g.node("Add", g.node("Max", "x", g.constant(0, dtype=dtype)), g.constant(1, dtype=dtype))
    x = np.arange(-20, 20).astype(dtype)
    (found,) = run(g, tmp_path, y, x=x)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.maximum(x, 0) + 1)


@pytest.mark.parametrize("kind", ["ReduceMax", "ReduceMin"])
def test_the_extreme_of_infinities(tmp_path: Path, kind: str) -> None:
    g = Graph()
    y = g.node(kind, "x", axes=[1])
    x = np.full((3, 4), -np.inf if kind == "ReduceMax" else np.inf, np.float32)
    x[1, 2] = np.finfo(np.float32).min
    (found,) = run(g, tmp_path, y, x=x)
    np.testing.assert_array_equal(found, getattr(np, kind[6:].lower())(x, 1, keepdims=True))


@pytest.mark.parametrize("kind", ["Softplus", "Mish"])
def test_small_values_keep_their_digits(tmp_path: Path, kind: str) -> None:
    g = Graph()
    y = g.node(kind, "x")
    x = np.array([-80, -20, -15, -7, -1, 0, 1, 7, 20, 90], np.float32)
    (found,) = run(g, tmp_path, y, opset=18, x=x)
    expected = np.log1p(np.exp(x.astype(np.float64)))
    if kind == "Mish":
        expected = x * np.tanh(expected)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_remainders_have_the_sign_of_the_divisor(tmp_path: Path) -> None:
    x, d = (a.ravel() for a in np.meshgrid([-7.5, -2, -0.0, 2, 7.5], [-np.inf, -3, 3, np.inf]))
    g = Graph()
    (found,) = run(g, tmp_path, g.node("Mod", "x", "d"), x=x, d=d)
    np.testing.assert_array_equal(found, np.mod(x, d))
    for dtype in (np.int8, np.int64):
        g = Graph()
        a, b = np.array([-7, -7, 7, 7], dtype), np.array([3, -3, 3, -3], dtype)
        (found,) = run(g, tmp_path, g.node("Mod", "a", "b"), a=a, b=b)
        np.testing.assert_array_equal(found, np.mod(a, b))


def test_powers_of_whole_numbers(tmp_path: Path) -> None:
    x, e = np.array([-3, -1, 0, 2, 3, 5], np.int64), np.array([3, 63, 0, 40, 39, 70], np.int64)
    g = Graph()
    outputs = [g.node("Pow", "x", "e"), g.node("Pow", "x", g.constant(3, dtype=np.int64))]
    found = run(g, tmp_path, *outputs, x=x, e=e)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found[0], x**e)
    np.testing.assert_array_equal(found[1], x**3)


def test_shifts_beyond_the_type(tmp_path: Path) -> None:
    x = np.array([-5, 5, -5, 5, 1], np.int32)
    by = np.array([40, 40, -1, 31, 3], np.int32)
    g = Graph()
    outputs = [g.node("BitShift", "x", "by", direction=d) for d in ("LEFT", "RIGHT")]
    left, right = run(g, tmp_path, *outputs, opset=28, x=x, by=by)
    np.testing.assert_array_equal(left, [0, 0, 0, -(2**31), 8])
    np.testing.assert_array_equal(right, [-1, 0, -1, 0, 0])


@pytest.mark.parametrize("mode", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_regions_of_scaled_images(tmp_path: Path, mode: str, ratio: int) -> None:
    g = Graph(x=(1, 3, 9, 10))
    regions = g.constant([[3.0, 5.0, 30.0, 28.0], [0.0, 0.0, 15.0, 36.0]])
    y = g.node(
        "RoiAlign",
        "x",
        regions,
        g.constant([0, 0], dtype=np.int64),
        coordinate_transformation_mode=mode,
        sampling_ratio=ratio,
        spatial_scale=0.25,
        output_height=3,
        output_width=2,
    )
    assert_like_onnxruntime(g.model(y), tmp_path, exact=False)


# --- Along an axis ----------------------------------------------------------------------------


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumulated_sums(tmp_path: Path, exclusive: int, reverse: int) -> None:
    g = Graph()
    axis = g.constant(-2, dtype=np.int64)
    y = g.node("CumSum", "x", axis, exclusive=exclusive, reverse=reverse)
    x = np.arange(30).reshape(2, 5, 3) - 11
    (found,) = run(g, tmp_path, y, x=x)
    turned = x[:, ::-1] if reverse else x
    expected = np.cumsum(turned, 1) - (turned if exclusive else 0)
    np.testing.assert_array_equal(found, expected[:, ::-1] if reverse else expected)


@pytest.mark.parametrize("largest", [0, 1])
def test_the_first_of_equal_elements_comes_first(tmp_path: Path, largest: int) -> None:
    g = Graph()
    k = g.constant([4], dtype=np.int64)
    outputs = g.node("TopK", "x", k, outputs=2, axis=0, largest=largest, sorted=0)
    x = np.array([[1, 3], [3, -np.inf], [3, np.nan], [np.inf, 3], [1, 0]], np.float32)
    values, indices = run(g, tmp_path, *outputs, x=x)
    order = np.where(np.isnan(x), 1e30, np.nan_to_num(x, posinf=1e20, neginf=-1e20))
    expected = np.argsort(-order if largest else order, 0, kind="stable")[:4]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x, expected, 0))


# --- Quantised --------------------------------------------------------------------------------


def test_convolutions_between_quantisations_are_direct(tmp_path: Path) -> None:
    g = Graph()
    scale, zero = g.constant(0.05), g.constant(3, dtype=np.uint8)
    x = g.node("DequantizeLinear", g.node("QuantizeLinear", "x", scale, zero), scale, zero)
    weight = np.random.default_rng(0).integers(-9, 9, (16, 16, 3, 3))  # Not as small as shapes.
    scales = g.constant(np.linspace(0.01, 0.02, 16))
    zeros = g.constant(np.zeros(16), dtype=np.int8)
    w = g.node("DequantizeLinear", g.constant(weight, dtype=np.int8), scales, zeros, axis=0)
    y = g.node(
        "QuantizeLinear", g.node("Conv", x, w), g.constant(0.2), g.constant(9, dtype=np.int8)
    )
    network = like_onnxruntime(g, tmp_path, y, x=3 * normal(1, 16, 6, 7))
    assert [bool(layer.workload) for layer in network.manifest.layers].count(True) == 1


def test_sums_of_integers_are_exact_or_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, (1, 8, 5, 5), np.uint8, endpoint=True)
    weight = np.random.default_rng(1).integers(0, 255, (4, 8, 3, 3), np.uint8, endpoint=True)
    zeros = [np.uint8(200), np.uint8(130)]
    g = Graph()
    operands = [g.constant(array, dtype=np.uint8) for array in (weight, *zeros)]
    like_onnxruntime(g, tmp_path, g.node("ConvInteger", "x", *operands), x=x)
    g = Graph()
    wide = g.constant(np.full((1, 40, 3, 3), 255), dtype=np.uint8)
    many = np.full((1, 40, 5, 5), 255, np.uint8)
    assert "exactly" in refused(g, tmp_path, g.node("ConvInteger", "x", wide), x=many)


# --- What is refused --------------------------------------------------------------------------


def test_outputs_without_elements(tmp_path: Path) -> None:
    g = Graph()
    ends = (g.constant([n], dtype=np.int64) for n in (2, 2, 1))
    said = refused(g, tmp_path, g.node("Slice", "x", *ends), x=normal(3, 4))
    assert "(3, 0)" in said and "no elements" in said


def test_parts_without_elements_vanish(tmp_path: Path) -> None:
    g = Graph()
    sizes = g.constant([0, 3, 1], dtype=np.int64)
    first, middle, _ = g.node("Split", "x", sizes, outputs=3, axis=1)
    y = g.node("Add", middle, g.node("ReduceSum", first, g.constant([1], dtype=np.int64)))
    x = normal(3, 4)
    (found,) = run(g, tmp_path, y, x=x)
    np.testing.assert_array_equal(found, x[:, :3])


def test_subgraphs_are_of_the_version_that_they_are_written_in(tmp_path: Path) -> None:
    def value(name: str, kind: int, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    nodes = [
        helper.make_node("Unsqueeze", ["carried"], ["wide"], axes=[0]),
        helper.make_node("Squeeze", ["wide"], ["same"], axes=[0]),
        helper.make_node("Add", ["same", "same"], ["next"]),
        helper.make_node("Identity", ["going"], ["still"]),
    ]
    body = helper.make_graph(
        nodes,
        "body",
        [
            value("number", TensorProto.INT64),
            value("going", TensorProto.BOOL),
            value("carried", TensorProto.FLOAT, 3),
        ],
        [value("still", TensorProto.BOOL), value("next", TensorProto.FLOAT, 3)],
    )
    g = Graph()
    y = g.node("Loop", g.constant(3, dtype=np.int64), "", "x", body=body)
    x = normal(3)
    model = typed(g, y, opset=11, x=x)
    model.graph.output[0].CopyFrom(value(y, TensorProto.FLOAT, 3))
    np.testing.assert_array_equal(compiled(model, tmp_path).run(x), 8 * x)
