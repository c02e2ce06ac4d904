"""The stage in front of TVM's importer: what becomes of a graph, and that it computes the same."""

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_models import (
    Graph,
    after,
    assert_equal,
    assert_like_onnxruntime,
    by_onnxruntime,
    calls,
    compiled,
    random_inputs,
    saved,
)
from tvm import relax

from tvm_directconv.errors import ModelError
from tvm_directconv.network.check import relative_error
from tvm_directconv.network.compile import compile_network
from tvm_directconv.network.network import load_network
from tvm_directconv.network.onnx_graph import nodes, stage, upgrading
from tvm_directconv.network.onnx_graph.nodes import FORM
from tvm_directconv.network.onnx_import import import_onnx
from tvm_directconv.network.pipeline import passes


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model as the rules make it, as ONNX again."""
    made = stage.Graph(model, {})
    used = {name for node in made.nodes for name in node.inputs} | set(made.outputs)
    constants = [
        numpy_helper.from_array(np.array(value), name)
        for name, value in made.known.items()
        if name in used
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in made.outputs]
    nodes = [node.to_proto() for node in made.nodes]
    return helper.make_model(
        helper.make_graph(nodes, "rewritten", list(model.graph.input), outputs, constants),
        opset_imports=[helper.make_opsetid("", FORM)],
    )


def typed(g: Graph, outputs: list[str], **options: Any) -> onnx.ModelProto:
    """Return a model with outputs of which ONNX does not infer the shapes."""
    model = g.model(*outputs, domains=["none"], **options)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    made = stage.Graph(model, {})
    for value, name in zip(model.graph.output, made.outputs, strict=True):
        value.type.CopyFrom(made.types[name])
    return model


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in rewritten(model).graph.node]


def refusal(model: onnx.ModelProto, folder: Path, **options: Any) -> str:
    path = saved(model, folder)
    with pytest.raises(ModelError) as caught:
        compile_network(path, path.with_suffix(".so"), **options)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 600
    return said


# --- Resize -----------------------------------------------------------------------------------

FORMS = {
    "scales": [1, 1, 2, 3],
    "fractional scales": [1, 1, 1.3, 0.6],
    "small scales": [1, 1, 0.5, 0.4],
    "sizes": [1, 2, 7, 3],
    "sizes of half": [1, 2, 2, 10],
}


def resize(form: str, opset: int = 19, roi: Any = None, **attributes: Any) -> onnx.ModelProto:
    g = Graph(x=(1, 2, 4, 5))
    values = FORMS[form]
    given = g.constant(values, dtype=np.int64 if "sizes" in form else np.float32)
    operands = ["x", "" if roi is None else g.constant(roi)]
    operands += ["", given] if "sizes" in form else [given]
    return g.model(g.node("Resize", *operands, **attributes), opset=opset)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "transform",
    ["half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric", "tf_crop_and_resize"],
)
def test_resizing_is_what_onnx_says(form: str, transform: str) -> None:
    """Of the rewritten graph; that what it consists of is computed right, other tests tell."""
    x = np.random.default_rng(1).standard_normal((1, 2, 4, 5)).astype(np.float32)
    variants: list[dict[str, Any]] = [{"mode": "linear"}, {"mode": "cubic", "cubic_coeff_a": -0.5}]
    variants += [
        variant | more
        for variant, more in product(variants, ({"antialias": 1}, {"exclude_outside": 1}))
    ]
    variants += [
        {"mode": "nearest", "nearest_mode": nearest}
        for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ]
    roi = [0, 0, 0.1, -0.2, 1, 1, 0.9, 1.3] if transform.startswith("tf") else None
    for variant in variants:
        model = resize(
            form,
            roi=roi,
            coordinate_transformation_mode=transform,
            extrapolation_value=7.5,
            **variant,
        )
        (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
        (found,) = ReferenceEvaluator(rewritten(model)).run(None, {"x": x})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=str(variant))


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("axes", [[2, 3], [3, 1]], ids=str)
def test_resizing_keeps_proportions_of_some_axes(policy: str, axes: list[int]) -> None:
    g = Graph(x=(1, 2, 4, 5))
    sizes = g.constant([9, 6], dtype=np.int64)
    y = g.node("Resize", "x", "", "", sizes, mode="linear", axes=axes)
    g.nodes[-1].attribute.append(helper.make_attribute("keep_aspect_ratio_policy", policy))
    model = g.model(y, opset=19)
    x = np.random.default_rng(1).standard_normal((1, 2, 4, 5)).astype(np.float32)
    expected, found = (
        ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (model, rewritten(model))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_region_of_a_resize_has_places_outside_of_the_image(tmp_path: Path) -> None:
    roi = [0, 0, 0.25, -0.5, 1, 1, 0.75, 1.5]
    model = resize(
        "sizes", roi=roi, coordinate_transformation_mode="tf_crop_and_resize", mode="linear"
    )
    network = compiled(model, tmp_path)
    (x,) = random_inputs(network.manifest.inputs)
    assert_equal(network.run(x), by_onnxruntime(model, [x]), exact=False)


@pytest.mark.parametrize("variant", ["antialias", "cubic", "fractional", "three axes", "batch"])
def test_resizing_is_computed(tmp_path: Path, variant: str) -> None:
    match variant:
        case "antialias":
            model = resize("small scales", mode="linear", antialias=1)
        case "cubic":
            model = resize("sizes", mode="cubic")
        case "fractional":
            model = resize("fractional scales", mode="linear")
        case "three axes":
            g = Graph(x=(1, 2, 3, 4, 5))
            scales = g.constant([1, 1, 2, 1.5, 2])
            model = g.model(g.node("Resize", "x", "", scales, mode="linear"))
        case _:
            g = Graph(x=(2, 3))
            model = g.model(g.node("Resize", "x", "", g.constant([2.0, 1.7]), mode="nearest"))
    assert_like_onnxruntime(model, tmp_path, exact=False)


@pytest.mark.parametrize(
    "attributes",
    [
        {"mode": "nearest"},
        {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
        {
            "mode": "nearest",
            "nearest_mode": "floor",
            "coordinate_transformation_mode": "asymmetric",
        },
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        {"mode": "linear", "antialias": 1},
    ],
    ids=str,
)
def test_what_tvm_resizes_in_blocks_is_left_to_it(attributes: dict[str, Any]) -> None:
    g = Graph(x=(1, 2, 4, 5))
    model = g.model(g.node("Resize", "x", "", g.constant([1, 1, 2, 2]), **attributes), opset=18)
    assert kinds(model) == ["Resize"]


@pytest.mark.parametrize(
    ("kind", "opset"), [("Upsample", 7), ("Upsample", 9), ("Resize", 10), ("Resize", 11)]
)
def test_old_ways_to_resize(tmp_path: Path, kind: str, opset: int) -> None:
    outputs = []
    g = Graph(x=(1, 2, 3, 4))
    for mode in ("nearest", "linear"):
        for scales in ([1, 1, 2, 3], [1, 1, 1.5, 2], [1, 1, 0.7, 1.4]):
            if kind == "Upsample" and min(scales) < 1:
                continue
            if opset == 7:
                outputs.append(g.node(kind, "x", mode=mode, scales=[float(s) for s in scales]))
                continue
            between = [g.constant(np.zeros(0))] if opset == 11 else []
            outputs.append(g.node(kind, "x", *between, g.constant(scales), mode=mode))
    assert_like_onnxruntime(g.model(*outputs, opset=opset), tmp_path, exact=False)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        (4, 0.6, [0, 2]),
        (5, 0.6, [0, 2, 4]),
        (21, 0.7, [0, 2, 3, 5, 6, 8, 9, 10, 12, 13, 15, 16, 18, 19]),
    ],
)
def test_the_nearest_of_opset_10(
    tmp_path: Path, size: int, scale: float, expected: list[int]
) -> None:
    g = Graph(x=(1, 1, 1, size))
    y = g.node("Resize", "x", g.constant([1, 1, 1, scale]), mode="nearest")
    compile_network(saved(g.model(y, opset=10), tmp_path), tmp_path / "a.so")
    found = load_network(tmp_path / "a.so").run(np.arange(size, dtype=np.float32)[None, None, None])
    assert found.ravel().tolist() == expected


def test_scales_that_are_computed_when_it_runs(tmp_path: Path) -> None:
    g = Graph(x=(1, 2, 4, 5), s=(4,))
    said = refusal(g.model(g.node("Resize", "x", "", "s")), tmp_path)
    assert "Resize (resize0)" in said and "'s'" in said and "constant" in said


# --- Windows ----------------------------------------------------------------------------------


POOLS: list[dict[str, Any]] = [
    {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "VALID"},
    {"ceil_mode": 1},
    {"ceil_mode": 1, "pads": [1, 0, 1, 1]},
    {"pads": [1, 1, 0, 1]},
    {"dilations": [2, 1], "pads": [1, 1, 1, 0]},
]


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool", "AveragePool with padding", "LpPool"])
def test_pools(tmp_path: Path, kind: str) -> None:
    g = Graph(x=(1, 2, 11, 12))
    more = {"count_include_pad": 1} if "with" in kind else {}
    outputs = []
    for attributes in POOLS:
        if kind == "LpPool" and "auto_pad" in attributes:
            continue
        for kernel, strides in (([3, 3], [2, 2]), ([2, 3], [3, 1])):
            outputs.append(
                g.node(
                    kind.split()[0],
                    "x",
                    kernel_shape=kernel,
                    strides=strides,
                    **attributes,
                    **more,
                )
            )
    model = g.model(*outputs, opset=19)
    assert_like_onnxruntime(model, tmp_path, exact=kind == "MaxPool")


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("rank", [1, 3])
def test_pools_of_signals_and_volumes(tmp_path: Path, kind: str, rank: int) -> None:
    g = Graph(x=(1, 2, *[7, 5, 6][:rank]))
    outputs = [
        g.node(kind, "x", kernel_shape=[3] * rank, strides=[2] * rank, **attributes)
        for attributes in ({"auto_pad": "SAME_LOWER"}, {"ceil_mode": 1}, {"pads": [1] * 2 * rank})
    ]
    assert_like_onnxruntime(g.model(*outputs), tmp_path, exact=False)


def test_places_of_maxima(tmp_path: Path) -> None:
    g = Graph(x=(2, 2, 5, 7), s=(1, 2, 9))
    outputs = [
        *g.node("MaxPool", "x", outputs=2, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
        *g.node("MaxPool", "x", outputs=2, kernel_shape=[2, 2], storage_order=1),
        *g.node("MaxPool", "x", outputs=2, kernel_shape=[2, 2], dilations=[2, 3]),
        *g.node("MaxPool", "s", outputs=2, kernel_shape=[3], auto_pad="SAME_LOWER"),
    ]
    assert_like_onnxruntime(g.model(*outputs), tmp_path)


def test_outputs_that_nobody_reads_are_left_out(tmp_path: Path) -> None:
    g = Graph(x=(1, 4, 6, 6))
    y, _ = g.node("MaxPool", "x", outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    y, _ = g.node("Dropout", y, outputs=2)
    scale = g.integers(3)
    y, _, _ = g.node("LayerNormalization", y, scale, outputs=3)
    model = g.model(y)
    assert kinds(model) == ["MaxPool", "LayerNormalization"]
    assert_like_onnxruntime(model, tmp_path, exact=False)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_padding_of_convolutions(tmp_path: Path, kind: str, rank: int) -> None:
    g = Graph(x=(1, 4, *[7, 6, 5][:rank]))
    weight = g.integers(4, 4, *[3, 4, 2][:rank])
    bias = g.integers(4)
    outputs = [
        g.node(kind, "x", weight, bias, strides=[2] * rank, **attributes)
        for attributes in (
            {"auto_pad": "SAME_UPPER"},
            {"auto_pad": "SAME_LOWER", "kernel_shape": [3, 4, 2][:rank]},
            {"auto_pad": "VALID"},
            {"pads": [1, 0, 1, 0, 2, 1][: 2 * rank]},
        )
    ]
    assert_like_onnxruntime(g.model(*outputs), tmp_path)


@pytest.mark.parametrize(
    "attributes",
    [
        {"output_shape": [10, 8]},
        {"output_shape": [11, 9], "auto_pad": "SAME_UPPER"},
        {"output_shape": [10, 9], "auto_pad": "SAME_LOWER"},
        {"output_padding": [2, 1]},
        {"output_padding": [2, 1], "pads": [1, 1, 1, 1]},
        {"output_padding": [1, 0], "pads": [0, 1, 2, 1], "dilations": [2, 1]},
        {"output_shape": [8, 7]},
        {"group": 2, "output_padding": [1, 1]},
    ],
    ids=str,
)
def test_sizes_of_transposed_convolutions(tmp_path: Path, attributes: dict[str, Any]) -> None:
    g = Graph(x=(1, 4, 3, 4))
    weight = g.integers(4, 2, 3, 2)
    bias = g.integers(2 * attributes.get("group", 1))
    y = g.node("ConvTranspose", "x", weight, bias, strides=[3, 2], **attributes)
    assert_like_onnxruntime(g.model(y), tmp_path)


def test_a_kernel_larger_than_its_padded_input(tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 2, 2))
    bad = [
        g.conv("x", 4, 3, 3, 3),
        g.conv("x", 4, 3, 2, 2, dilations=[1, 3], pads=[0, 0, 0, 1]),
        g.node("MaxPool", "x", kernel_shape=[3, 3]),
        g.node("AveragePool", "x", kernel_shape=[2, 4], pads=[0, 1, 0, 0]),
        g.node("ConvTranspose", "x", g.integers(3, 4, 2, 2), pads=[2, 2, 1, 1]),
    ]
    model = g.model(*bad, domains=["none"])
    said = refusal(model, tmp_path)
    for text in (
        "Conv (conv0): its kernel is larger than its padded input: 3x3 and 2x2",
        "Conv (conv1): its kernel is larger than its padded input: 2x4 and 2x3",
        "MaxPool (maxpool2): its kernel is larger than its padded input: 3x3 and 2x2",
        "AveragePool (averagepool3): its kernel is larger than its padded input: 2x4 and 2x3",
        "ConvTranspose (convtranspose4): its padding leaves nothing of its output",
    ):
        assert text in said


# --- Reading and writing at indices -----------------------------------------------------------


def with_indices(g: Graph, name: str, shape: tuple[int, ...]) -> str:
    g.inputs[name] = helper.make_tensor_value_info(name, TensorProto.INT64, shape)
    return name


def test_constant_indices(tmp_path: Path) -> None:
    g = Graph(x=(2, 6, 4))
    i = np.int64
    rows = g.constant(np.arange(8).reshape(2, 4) % 6 - 3, dtype=i)
    updates = g.integers(2, 4)
    outputs = [
        g.node("Gather", "x", g.constant(0, dtype=i), axis=1),
        g.node("Gather", "x", g.constant([-1, 2], dtype=np.int32), axis=-1),
        g.node("Gather", "x", g.constant([[0, -2], [5, 1]], dtype=i), axis=1),
        g.node("GatherElements", "x", g.constant([[[5, -6, 0, 1]]], dtype=i), axis=1),
        g.node("GatherND", "x", g.constant([[0, -1], [1, 2]], dtype=i)),
        g.node("GatherND", "x", g.constant([[1], [-1]], dtype=i), batch_dims=1),
        g.node("ScatterND", "x", g.constant([[0, -1], [1, 2]], dtype=i), updates),
        g.node(
            "ScatterElements", "x", g.constant([[[5, -5]]], dtype=i), g.integers(1, 1, 2), axis=1
        ),
        g.node("Transpose", g.node("Gather", g.integers(9, 3), rows)),
    ]
    assert_like_onnxruntime(g.model(*outputs), tmp_path)


def test_indices_that_are_inputs(tmp_path: Path) -> None:
    """Those that random_inputs makes are from -4 to 4."""
    g = Graph(x=(5, 4))
    ids = with_indices(g, "ids", (2, 3))
    table = g.integers(7, 8)
    embedded = g.node("Gather", table, ids)
    once = g.node("Unsqueeze", ids, g.constant([2], dtype=np.int64))
    outputs = [
        g.node("Add", embedded, g.constant(np.ones(8))),
        g.node("GatherElements", "x", ids),
        g.node("GatherND", "x", once),
        g.node("OneHot", ids, g.constant([5], dtype=np.int64), g.constant([0, 3])),
    ]
    assert_like_onnxruntime(g.model(*outputs), tmp_path)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
def test_ways_to_scatter(tmp_path: Path, reduction: str) -> None:
    g = Graph(x=(4, 3), u=(2, 3))
    rows = g.constant([[0], [-2]], dtype=np.int64)
    each = g.constant([[0, 1, 2], [-4 if reduction != "none" else 3, 3, 0]], dtype=np.int64)
    outputs = [
        g.node("ScatterND", "x", rows, "u", reduction=reduction),
        g.node("ScatterElements", "x", each, "u", reduction=reduction),
    ]
    assert_like_onnxruntime(g.model(*outputs, opset=18), tmp_path)


def test_an_index_outside_of_its_axis(tmp_path: Path) -> None:
    g = Graph(x=(2, 6, 4))
    y = g.node("Gather", "x", g.constant([3, 6], dtype=np.int64), axis=1)
    said = refusal(g.model(y), tmp_path)
    assert "Gather (gather0)" in said and "[3, 6]" in said and "6" in said


def test_computed_indices_stay_within_their_axis(tmp_path: Path) -> None:
    g = Graph(x=(2,))
    ids = with_indices(g, "ids", (3,))
    model = g.model(g.node("Gather", g.constant([1, 2, 3, 4]), ids), g.node("Relu", "x"))
    network = compiled(model, tmp_path)
    ids_far = np.array([10**12, -(10**12), 2])
    y, _ = (
        network.run(np.zeros(2, np.float32), ids_far)
        if False
        else network.run(**{"x": np.zeros(2, np.float32), "ids": ids_far})
    )
    assert y[2] == 3 and set(y[:2]) <= {1, 2, 3, 4}


# --- Normalisation ----------------------------------------------------------------------------


def test_normalization(tmp_path: Path) -> None:
    g = Graph(x=(2, 6, 4, 5))
    wide = g.integers(4, 5)
    outputs = [
        *g.node("LayerNormalization", "x", wide, g.integers(4, 5), outputs=3, axis=2),
        g.node("LayerNormalization", "x", g.integers(5), axis=-1),
        g.node("LayerNormalization", "x", g.integers(1, 5), axis=-2),
        g.node("InstanceNormalization", "x", g.integers(6), g.integers(6), epsilon=0.1),
        g.node("GroupNormalization", "x", g.integers(6), g.integers(6), num_groups=3),
        g.node("MeanVarianceNormalization", "x"),
        g.node("LRN", "x", size=3, bias=2.0),
        g.node("GlobalLpPool", "x"),
        g.node("GlobalLpPool", "x", p=3),
    ]
    assert_like_onnxruntime(typed(g, outputs, opset=21), tmp_path, exact=False)


def test_sums_of_normalized_tensors(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 4, 4))
    y = g.batch_norm(g.conv("x", 8, 8, 1, 1), 8)
    model = g.model(g.node("Relu", g.node("Add", y, g.batch_norm("x", 8))))
    assert_like_onnxruntime(model, tmp_path)


def test_groups_had_scales_of_their_own() -> None:
    """ONNX's checker refuses this version, which it has withdrawn; functions may still have it."""
    g = Graph(x=(2, 6, 4, 5))
    y = g.node("GroupNormalization", "x", g.constant([1, 2, 3]), g.integers(3), num_groups=3)
    new = Graph(x=(2, 6, 4, 5))
    scale, bias = (new.constant(numpy_helper.to_array(t).repeat(2)) for t in g.constants)
    other = new.node("GroupNormalization", "x", scale, bias, num_groups=3)
    x = np.random.default_rng(2).standard_normal((2, 6, 4, 5)).astype(np.float32)
    found, expected = (
        ReferenceEvaluator(rewritten(grown.model(result, domains=["none"], opset=opset))).run(
            None, {"x": x}
        )
        for grown, result, opset in ((g, y, 18), (new, other, 21))
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [2, 4])
def test_a_window_of_channels_of_even_size(tmp_path: Path, size: int) -> None:
    g = Graph(x=(2, 6, 4, 5))
    model = g.model(g.node("LRN", "x", size=size, alpha=0.5))
    network = compiled(model, tmp_path)
    (x,) = random_inputs(network.manifest.inputs)
    # One channel more behind than before.
    squares = np.pad(x**2, ((0, 0), ((size - 1) // 2, size // 2), (0, 0), (0, 0)))
    sums = np.lib.stride_tricks.sliding_window_view(squares, size, 1).sum(-1)
    expected = x / (1 + 0.5 / size * sums) ** 0.75
    assert_equal(network.run(x), [expected.astype(np.float32)], exact=False)


def test_a_mean_far_from_0(tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 8, 8))
    model = typed(g, [g.node("MeanVarianceNormalization", "x")])
    x = np.random.default_rng(2).standard_normal((1, 3, 8, 8)).astype(np.float32) + 1000
    exact = (x - x.mean((0, 2, 3), np.float64, keepdims=True)) / x.std(
        (0, 2, 3), np.float64, keepdims=True
    )
    np.testing.assert_allclose(compiled(model, tmp_path).run(x), exact, atol=1e-3)


# --- Padding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_padding(tmp_path: Path, mode: str) -> None:
    g = Graph(x=(1, 2, 4, 5))
    i = np.int64
    outputs = [
        g.node("Pad", "x", g.constant([0, 0, 1, 2, 0, 0, 3, 1], dtype=i), mode=mode),
        g.node("Pad", "x", g.constant([0, 1, 0, 0, 0, 0, 0, 2], dtype=i), mode=mode)
        if mode in ("constant", "edge")
        else g.node("Relu", "x"),
        g.node(
            "Pad",
            "x",
            g.constant([2, 1], dtype=i),
            g.constant(7.0) if mode == "constant" else "",
            g.constant([-1], dtype=i),
            mode=mode,
        ),
    ]
    if mode in ("constant", "edge"):
        negative = g.constant([0, 0, -1, 2, 0, 0, 1, -2], dtype=i)
        outputs.append(g.node("Pad", "x", negative, mode=mode))
    assert_like_onnxruntime(g.model(*outputs, opset=19), tmp_path)


# --- Branches and loops -----------------------------------------------------------------------


def branch(name: str, value: float, outer: str = "x", weight: float = 1) -> onnx.GraphProto:
    """Return a graph that scales what is around it; its names are those of every branch."""
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Mul", [outer, "w"], ["t"], "mul"),
        helper.make_node("Add", ["t", "c"], ["y"], "add"),
    ]
    constants = [
        numpy_helper.from_array(np.float32(weight), "w"),
        numpy_helper.from_array(np.float32(value), "c"),
    ]
    return helper.make_graph(nodes, name, [], [made], constants)


def test_a_branch_that_shapes_decide(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    rows = g.node("Gather", g.node("Shape", "x"), g.constant(0, dtype=np.int64))
    two = g.node("Equal", rows, g.constant(2, dtype=np.int64))
    one = g.node("Not", two)
    y = g.node("If", two, then_branch=branch("a", 1), else_branch=branch("b", 2))
    inner = helper.make_graph(
        [
            helper.make_node(
                "If",
                [one],
                ["y"],
                "inner",
                then_branch=branch("c", 3),
                else_branch=branch("d", 4, y, 2),
            )
        ],
        "nested",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    z = g.node("If", one, then_branch=branch("e", 5), else_branch=inner)
    model = g.model(y, z)
    assert_like_onnxruntime(model, tmp_path)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(ReferenceEvaluator(rewritten(model)).run(None, {"x": x})[1], 8)


def chosen() -> onnx.ModelProto:
    g = Graph(x=(2, 3))
    g.inputs["sr"] = helper.make_tensor_value_info("sr", TensorProto.INT64, ())
    fast = g.node("Equal", "sr", g.constant(16000, dtype=np.int64))
    return g.model(g.node("If", fast, then_branch=branch("a", 1), else_branch=branch("b", 2)))


def test_a_branch_that_an_input_decides(tmp_path: Path) -> None:
    x = np.ones((2, 3), np.float32)
    for rate, result in ((16000, 2), (8000, 3)):
        network = compiled(chosen(), tmp_path, input_values={"sr": rate})
        assert [port.name for port in network.manifest.inputs] == ["x"]
        np.testing.assert_array_equal(network.run(x), np.full((2, 3), result))
    said = refusal(chosen(), tmp_path)
    assert "If (if1)" in said and "--input-value" in said


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"rate": 1}, "there is no input 'rate': expected a value of 'x', 'sr'"),
        ({"sr": 1.5}, "the value of input 'sr' is 1.5: expected int64 of shape a scalar"),
        ({"sr": [1, 2]}, "the value of input 'sr' is [1, 2]"),
        ({"x": [1, 2]}, "the value of input 'x' is [1, 2]: expected float32 of shape 2x3"),
        ({"sr": "fast"}, "the value of input 'sr' is 'fast'"),
    ],
    ids=str,
)
def test_values_that_inputs_cannot_have(tmp_path: Path, values: Any, text: str) -> None:
    assert text in refusal(chosen(), tmp_path, input_values=values)


def test_values_are_for_onnx_files_only(tmp_path: Path) -> None:
    module = import_onnx(saved(chosen(), tmp_path), values={"sr": 16000})
    for options in ({"input_values": {"sr": 1}}, {"input_shapes": {"x": (2, 3)}}):
        with pytest.raises(ModelError, match="the module leaves none open"):
            compile_network(module, tmp_path / "a.so", **options)


def test_loops_are_written_out(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still"]),
            helper.make_node("Cast", ["number"], ["n"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["state", "n"], ["product"]),
            helper.make_node("Add", ["product", "x"], ["next"]),
            helper.make_node("ReduceSum", ["next"], ["row"], keepdims=0),
        ],
        "body",
        [
            value("number", TensorProto.INT64, ()),
            value("going", TensorProto.BOOL, ()),
            value("state", TensorProto.FLOAT, (2, 3)),
        ],
        [
            value("still", TensorProto.BOOL, ()),
            value("next", TensorProto.FLOAT, (2, 3)),
            value("row", TensorProto.FLOAT, ()),
        ],
    )
    sums = helper.make_graph(
        [
            helper.make_node("Add", ["total", "part"], ["sum"]),
            helper.make_node("Identity", ["sum"], ["copy"]),
        ],
        "sums",
        [value("total", TensorProto.FLOAT, (2,)), value("part", TensorProto.FLOAT, (2,))],
        [value("sum", TensorProto.FLOAT, (2,)), value("copy", TensorProto.FLOAT, (2,))],
    )
    g = Graph(x=(2, 3))
    count = g.constant(4, dtype=np.int64)
    outputs = g.node("Loop", count, "", "x", outputs=2, body=body)
    outputs += g.node(
        "Scan",
        g.constant([1, 2]),
        "x",
        outputs=2,
        body=sums,
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_input_directions=[1],
        scan_output_axes=[1],
    )
    assert_like_onnxruntime(typed(g, outputs), tmp_path)


def test_nodes_of_branches_are_named(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    strange = helper.make_graph(
        [helper.make_node("Unfold", ["x"], ["y"], "strange", domain="com.acme")],
        "strange",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    true = g.constant(True, dtype=bool)
    y = g.node("If", true, then_branch=strange, else_branch=branch("b", 2))
    said = refusal(g.model(y, domains=["com.acme"]), tmp_path)
    assert "com.acme.Unfold (if0/strange)" in said


# --- Types ------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", ["float16", "bfloat16"])
def test_models_of_short_types(tmp_path: Path, short: str) -> None:
    half, number = getattr(TensorProto, short.upper()), np.dtype(short)
    rng = np.random.default_rng(3)
    arrays = {
        "w": rng.standard_normal((8, 3, 3, 3)),
        "b": rng.standard_normal(8),
        "s": np.full(8, 0.5),
    }
    third = numpy_helper.from_array(np.array([0.3], number))

    def model(kind: int, number: np.dtype[Any]) -> onnx.ModelProto:
        constants = [numpy_helper.from_array(v.astype(number), k) for k, v in arrays.items()]
        nodes = [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["f"], ["h"], to=kind),
            helper.make_node("Constant", [], ["k"], value=third),
            helper.make_node("Cast", ["k"], ["l"], to=kind),
            helper.make_node("Mul", ["h", "l"], ["y"]),
            helper.make_node("ReduceMean", ["f"], ["m"], keepdims=0),
        ]
        value = helper.make_tensor_value_info
        made = helper.make_graph(
            nodes,
            "half",
            [value("x", kind, (1, 3, 6, 7))],
            [value("y", kind, (1, 8, 6, 7)), value("m", TensorProto.FLOAT, ())],
            constants,
        )
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    network = compiled(model(half, number), tmp_path)
    assert [port.dtype for port in network.manifest.inputs] == [short]
    assert [port.dtype for port in network.manifest.outputs] == [short, "float32"]
    x = rng.standard_normal((1, 3, 6, 7)).astype(number)
    # ONNX Runtime does not compute in bfloat16.
    right = by_onnxruntime(model(TensorProto.FLOAT, np.dtype("f")), [x.astype(np.float32)])
    epsilon = 2.0**-7 if short == "bfloat16" else 2.0**-10
    for found, expected in zip(network.run(x), right, strict=True):
        assert relative_error(found, expected) < 2 * epsilon


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "INT4", "STRING", "COMPLEX64"])
def test_types_that_are_not_computed_with(tmp_path: Path, kind: str) -> None:
    g = Graph(x=(2, 3))
    g.inputs["odd"] = helper.make_tensor_value_info("odd", getattr(TensorProto, kind), (2, 3))
    model = g.model(g.node("Relu", "x"), g.node("Identity", "odd"), opset=21, ir_version=10)
    said = refusal(model, tmp_path)
    assert "input 'odd' is a tensor of" in said and kind.lower() in said


def test_types_inside_that_are_not_computed_with(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    y = g.node("Cast", g.node("Cast", "x", to=TensorProto.FLOAT8E5M2), to=TensorProto.FLOAT)
    said = refusal(g.model(y, opset=19, ir_version=9), tmp_path)
    assert "Cast (cast0)" in said and "float8e5m2" in said


# --- Functions --------------------------------------------------------------------------------


def test_operators_that_are_functions_of_others(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    model = g.model(g.node("Celu", "x", alpha=2.0), opset=17)
    assert_like_onnxruntime(model, tmp_path, exact=False)


def test_functions_of_the_model(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    y = g.node("Scaled", "x", g.constant(3.0), domain="acme", bias=2.0)
    y = g.node("Scaled", y, "x", domain="acme")
    model = g.model(y, domains=["acme"])
    bias = helper.make_node("Constant", [], ["t"])
    bias.attribute.add(name="value_float", ref_attr_name="bias", type=onnx.AttributeProto.FLOAT)
    function = helper.make_function(
        "acme",
        "Scaled",
        ["a", "b"],
        ["y"],
        [
            bias,
            helper.make_node("Mul", ["a", "b"], ["x"]),
            helper.make_node("Add", ["x", "t"], ["y"]),
        ],
        [helper.make_opsetid("", 17)],
        attribute_protos=[helper.make_attribute("bias", 5.0)],
    )
    model.functions.append(function)
    model.ir_version = 8
    assert_like_onnxruntime(model, tmp_path)


# --- Old versions -----------------------------------------------------------------------------


def test_old_forms(tmp_path: Path) -> None:
    g = Graph(x=(2, 3, 4, 5))
    matrix = g.node("Reshape", "x", g.constant([6, 20], dtype=np.int64))
    outputs = [
        g.node("Clip", "x", min=-1.0, max=2.0),
        g.node("Clip", "x", max=1.0),
        g.node("Pad", "x", pads=[0, 0, 1, 2, 0, 0, 0, 1], value=3.0),
        g.node("Slice", "x", starts=[0, 1], ends=[1, -1], axes=[1, 3]),
        g.node("Slice", "x", starts=[1], ends=[9]),
        g.node("ReduceSum", "x", axes=[1, 3], keepdims=0),
        g.node("ReduceMax", "x", axes=[2]),
        g.node("Softmax", "x"),
        g.node("Softmax", "x", axis=3),
        g.node("LogSoftmax", "x", axis=2),
        g.node("Squeeze", g.node("Unsqueeze", "x", axes=[0, 3]), axes=[3]),
        g.node("Gemm", matrix, g.integers(20, 4), g.integers(4)),
        g.node("Dropout", "x", ratio=0.3),
    ]
    model = g.model(*outputs, opset=8)
    assert_like_onnxruntime(model, tmp_path, exact=False)


@pytest.mark.parametrize(
    ("shape", "axis", "like"),
    [((4, 5), 2, (4, 5)), ((3,), 1, (3, 1, 1)), ((3, 4), 1, (3, 4, 1)), ((5,), None, (5,))],
    ids=str,
)
def test_the_axis_at_which_operands_were_placed(shape: Any, axis: Any, like: Any) -> None:
    g = Graph(x=(2, 3, 4, 5))
    more = {} if axis is None else {"axis": axis}
    y = g.node("Mul", "x", g.integers(*shape), broadcast=1, **more)
    model = g.model(y, domains=["none"], opset=6)
    x = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)
    (found,) = ReferenceEvaluator(rewritten(model)).run(None, {"x": x})
    np.testing.assert_array_equal(found, x * numpy_helper.to_array(g.constants[0]).reshape(like))


def test_names_of_types_and_storage_that_is_used_again() -> None:
    g = Graph(x=(2, 3))
    y = g.node("Cast", g.node("Relu", "x", consumed_inputs=[1]), to="INT32")
    x = np.array([[1.5, -2, 3], [4, 5, -6]], np.float32)
    model = g.model(y, domains=["none"], opset=5)
    (found,) = ReferenceEvaluator(rewritten(model)).run(None, {"x": x})
    assert_equal(found, [np.maximum(x, 0).astype(np.int32)])


def test_a_version_that_is_not_brought_to_todays(tmp_path: Path) -> None:
    g = Graph(x=(1, 2, 4, 4))
    y = g.node("LpPool", "x", kernel_shape=[2, 2], p=2.0)
    model = g.model(y, domains=["none"], opset=1)
    said = refusal(model, tmp_path)
    assert "LpPool (lppool0): it is of version 1" in said and "onnx.version_converter" in said


# --- What holds for all operators -------------------------------------------------------------


def test_every_version_of_tvms_operators_is_brought_to_todays() -> None:
    """What changed in a way that schemas show has an upgrade, or is refused where a node has it."""
    refused = {
        # Of the first version of ONNX, which has no meaning for them that is written down.
        ("GlobalLpPool", 2),
        ("LpPool", 2),
        ("Split", 2),
    }
    for kind in nodes.CONVERTERS:
        versions = nodes.VERSIONS[kind]
        for old, new in pairwise(versions):
            if (kind, new) in upgrading.UPGRADES | dict.fromkeys(refused):
                continue
            schemas = [onnx.defs.get_schema(kind, version, "") for version in (old, new)]
            given = list(schemas[0].attributes)
            assert not upgrading.change_of(*schemas, given), (kind, new)


def test_an_attribute_that_tvm_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(nodes.RULES, "ConvTranspose", raising=False)
    g = Graph(x=(1, 1, 3, 3))
    y = g.node("ConvTranspose", "x", g.integers(1, 2, 3, 3), strides=[3, 2], output_shape=[10, 8])
    said = refusal(g.model(y), tmp_path)
    assert "ConvTranspose (convtranspose0)" in said and "output_shape=[10, 8]" in said


def test_an_input_that_tvm_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(nodes.CONVERTERS, "Mul", lambda b, inputs, a, p: inputs[0])
    g = Graph(x=(2, 3), y=(2, 3))
    said = refusal(g.model(g.node("Mul", "x", "y")), tmp_path)
    assert "Mul (mul0)" in said and "'y'" in said


def test_a_result_of_another_type_than_onnx_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(nodes.RULES, "MaxPool")
    g = Graph(x=(1, 2, 11, 12))
    y = g.node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")
    said = refusal(g.model(y), tmp_path)
    assert "MaxPool (maxpool0)" in said and "(1, 2, 5, 6)" in said and "(1, 2, 6, 6)" in said


def test_a_node_that_fails_in_a_pass_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = Graph(x=(2, 3))
    y = g.node("Exp", g.node("Relu", "x"))

    def passes_that_fail(*arguments: Any) -> list[Any]:
        def fail(module: Any) -> Any:
            if "R.exp" in (text := module.script()):
                raise RuntimeError(f"The schedule is wrong.\nThe IR with diagnostic is:\n{text}")
            return module

        return [fail, *passes(*arguments)]

    monkeypatch.setattr("tvm_directconv.network.pipeline.passes", passes_that_fail)
    said = refusal(g.model(g.node("Neg", y)), tmp_path)
    assert said == "Exp (exp1) cannot be compiled: RuntimeError: The schedule is wrong."


def test_results_whose_shape_depends_on_data(tmp_path: Path) -> None:
    """TVM has results of the largest size for some of them, filled up with what is no result."""
    g = Graph(x=(2, 3), boxes=(1, 6, 4), scores=(1, 3, 6))
    found = g.node("NonMaxSuppression", "boxes", "scores", g.constant(3, dtype=np.int64))
    model = g.model(g.node("NonZero", "x"), found, domains=["none"])
    said = refusal(model, tmp_path)
    for name in ("NonZero (nonzero1)", "NonMaxSuppression (nonmaxsuppression0)"):
        assert f"{name}: the shape of its result depends on data" in said


def test_constants_of_any_size_may_be_nodes(tmp_path: Path) -> None:
    g = Graph(x=(1, 16, 5, 6))
    values = np.random.default_rng(0).integers(-3, 4, (24, 16, 3, 3)).astype(np.float32)
    weight = g.node("Constant", value=numpy_helper.from_array(values))
    network = assert_like_onnxruntime(g.model(g.node("Conv", "x", weight)), tmp_path)
    assert [bool(layer.workload) for layer in network.manifest.layers].count(True) == 1


def test_operators_without_kernels_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TVM sorts on GPUs only, and no rule leaves it a node that it has to sort for."""
    sort = relax.op.sort
    monkeypatch.setitem(nodes.CONVERTERS, "Softsign", lambda _, inputs, *__: sort(inputs[0]))
    g = Graph(x=(2, 30))
    said = refusal(g.model(g.node("Softsign", g.node("Relu", "x"))), tmp_path)
    assert said.startswith("Softsign (softsign1) cannot be compiled: the network has a sort")


def test_parts(tmp_path: Path) -> None:
    g = Graph(x=(2, 7, 3))
    outputs = g.node("Split", "x", outputs=3, axis=1, num_outputs=3)
    outputs += g.node("Split", "x", g.constant([1, 6], dtype=np.int64), outputs=2, axis=-2)
    outputs.append(g.node("Split", "x", axis=2, num_outputs=1))
    assert_like_onnxruntime(g.model(*outputs, opset=18), tmp_path)
    old = Graph(x=(2, 6, 3))
    halves = old.node("Split", "x", outputs=2, axis=1)
    thirds = old.node("Split", "x", outputs=3, axis=1, split=[1, 3, 2])
    assert_like_onnxruntime(old.model(*halves, *thirds, opset=11), tmp_path)


def test_shapes_that_are_computed_from_inputs(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    shape = with_indices(g, "shape", (2,))
    model = g.model(g.node("Reshape", "x", shape), domains=["none"])
    said = refusal(model, tmp_path)
    assert "Reshape (reshape0): its input 'shape' depends on an input" in said


def test_outputs_that_are_inputs_constants_or_the_same(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    y = g.node("Relu", "x")
    same = g.node("Identity", y)
    model = g.model(
        "x", y, same, g.node("Identity", g.integers(40, 40)), g.node("ReduceSum", "x", keepdims=0)
    )
    assert_like_onnxruntime(model, tmp_path)


def test_constants_that_are_sparse(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    model = g.model(g.node("Add", "x", "x"))
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [5.0, 7.0])
    places = helper.make_tensor("places", TensorProto.INT64, [2], [1, 4])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2, 3]))
    model.graph.node[0].input[1] = "w"
    assert_like_onnxruntime(model, tmp_path)


def test_nodes_that_nobody_reads_are_no_matter(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    g.node("Mystery", "x", domain="com.acme")
    model = g.model(g.node("Relu", "x"), domains=["com.acme"])
    assert calls(after(model, tmp_path)) == {"nn.relu": 1}
