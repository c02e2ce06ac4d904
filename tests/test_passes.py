"""Each pass on networks made for it: what is left of them, and that they compute the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_models import (
    Graph,
    after,
    assert_equal,
    assert_like_onnxruntime,
    by_onnxruntime,
    calls,
    compiled,
    random_inputs,
)

from tvm_directconv import ConvWorkload, device, reference
from tvm_directconv.case import channel_block
from tvm_directconv.epilogue import ACTIVATIONS, Activation
from tvm_directconv.network.network import Network
from tvm_directconv.network.operators import ACTIVATION, REORDER
from tvm_directconv.network.passes.blocked_layout import blocked_layout
from tvm_directconv.network.passes.fold_batch_norm import FoldBatchNorm, channelwise
from tvm_directconv.network.passes.fuse_convolutions import FuseConvolutions
from tvm_directconv.network.passes.recognize_activations import RecognizeActivations
from tvm_directconv.network.passes.rows_as_images import RowsAsImages
from tvm_directconv.network.passes.simplify import Simplify
from tvm_directconv.network.rewriter import Rewriter, op_name

NATIVE = device("native")
BLOCK = channel_block(64, NATIVE)
FUSED = (Simplify, FoldBatchNorm, RecognizeActivations, FuseConvolutions)


def convolutions(network: Network) -> list[tuple[ConvWorkload, str]]:
    """Return workload and epilogue of every convolution, in order."""
    layers = network.manifest.layers
    return [(ConvWorkload.parse(x.workload), x.epilogue) for x in layers if x.workload]


def epilogues(network: Network) -> list[str]:
    """Return what each convolution does besides, in order; nothing if it just convolves."""
    return [epilogue.removesuffix("none").strip(",") for _, epilogue in convolutions(network)]


def activations(module: Any) -> list[tuple[str, float]]:
    """Return name and slope of the activations of a network that passes have seen."""
    found = [value for _, value in Rewriter(module).bindings if op_name(value) == ACTIVATION]
    return [(str(call.attrs["name"]), float(call.attrs["slope"])) for call in found]


# --- Simplify ---------------------------------------------------------------------------------


def test_dropout_goes(tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 4, 5))
    y = g.node("Relu", g.node("Dropout", g.node("Neg", "x")))
    model = g.model(y)
    assert calls(after(model, tmp_path, Simplify)) == {"negative": 1, "nn.relu": 1}
    assert_like_onnxruntime(model, tmp_path)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5), (1, 3, 2, 3, 4)], ids=str)
def test_batch_norm_multiplies_and_adds(tmp_path: Path, shape: tuple[int, ...]) -> None:
    g = Graph(x=shape)
    model = g.model(g.batch_norm("x", 3))
    assert calls(after(model, tmp_path, Simplify)) == {"multiply": 1, "add": 1}
    assert_like_onnxruntime(model, tmp_path)


def test_batch_norm_keeps_its_epsilon(tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 4, 5))
    scale, shift, mean = (g.integers(3) for _ in range(3))
    variance = g.constant([0.0, 0.25, 2.0])
    y = g.node("BatchNormalization", "x", scale, shift, mean, variance, epsilon=0.25)
    assert_like_onnxruntime(g.model(y), tmp_path, exact=False)


@pytest.mark.parametrize(
    ("limits", "opset"), [((-1, 2), 17), ((-1, None), 17), ((None, 2), 17), ((-1, 2), 6)], ids=str
)
def test_clip_is_maximum_and_minimum(
    tmp_path: Path, limits: tuple[float | None, float | None], opset: int
) -> None:
    g = Graph(x=(2, 3, 4))
    low, high = limits
    if opset == 6:
        y = g.node("Clip", "x", min=float(low or 0), max=float(high or 0))
    else:
        y = g.node("Clip", "x", *("" if v is None else g.constant(v) for v in limits))
    model = g.model(y, opset=opset)
    left = calls(after(model, tmp_path, Simplify))
    assert left.keys() <= {"maximum", "minimum"}
    assert_like_onnxruntime(model, tmp_path)


def test_the_upper_limit_of_clip_wins(tmp_path: Path) -> None:
    g = Graph(x=(2, 3, 4))
    assert_like_onnxruntime(g.model(g.node("Clip", "x", g.constant(2), g.constant(-1))), tmp_path)


@pytest.mark.parametrize(
    ("power", "left"),
    [
        (2, {"multiply": 1}),
        (0.5, {"sqrt": 1}),
        (0.75, {"sqrt": 2, "multiply": 1}),
        (3, {"power": 1}),
    ],
)
def test_powers(tmp_path: Path, power: float, left: dict[str, int]) -> None:
    g = Graph(x=(2, 3, 4))
    y = g.node("Pow", g.node("Abs", "x"), g.constant(power))
    model = g.model(y)
    assert calls(after(model, tmp_path, Simplify)) == {"abs": 1, **left}
    assert_like_onnxruntime(model, tmp_path, exact=False)


def test_powers_of_other_shapes_stay(tmp_path: Path) -> None:
    g = Graph(x=(2, 1))
    model = g.model(g.node("Pow", "x", g.constant([[2.0, 2.0, 2.0]])))
    assert_like_onnxruntime(model, tmp_path)
    g = Graph(x=(2, 1))
    assert_like_onnxruntime(g.model(g.node("Pow", "x", g.constant([[[2.0]]]))), tmp_path)


@pytest.mark.parametrize("attributes", [{}, {"strides": [2], "pads": [2, 1], "dilations": [2]}])
@pytest.mark.parametrize("group", [1, 4])
def test_conv1d_is_a_convolution_of_one_row(
    tmp_path: Path, attributes: dict[str, Any], group: int
) -> None:
    g = Graph(x=(1, 8, 11))
    y = g.conv("x", 12, 8 // group, 3, bias=True, group=group, **attributes)
    network = assert_like_onnxruntime(g.model(g.node("Relu", y)), tmp_path)
    assert epilogues(network) == ["bias,relu"]


def test_convolutions_that_are_no_workloads_are_left_to_tvm(tmp_path: Path) -> None:
    """Padding beyond the kernel makes outputs of nothing but padding."""
    g = Graph(x=(1, 8, 5, 6))
    y = g.conv("x", 12, 8, 1, 1, bias=True, pads=[1, 1, 1, 1])
    network = assert_like_onnxruntime(g.model(g.node("Relu", y)), tmp_path)
    assert not convolutions(network)


@pytest.mark.parametrize("channels", [(8, 5), (16, 16), (3, 2)], ids=str)
@pytest.mark.parametrize("kernel", [(2, 2), (2, 3), (1, 1)], ids=str)
def test_transposed_convolutions_without_overlap_are_convolutions(
    tmp_path: Path, channels: tuple[int, int], kernel: tuple[int, int]
) -> None:
    g = Graph(x=(1, channels[0], 4, 5))
    weights = [g.integers(*channels, *kernel), g.integers(channels[1])]
    y = g.node("ConvTranspose", "x", *weights, strides=kernel)
    network = assert_like_onnxruntime(g.model(y), tmp_path)
    ((workload, _),) = convolutions(network)
    assert workload.out_channels == channels[1] * kernel[0] * kernel[1]


def test_rows_that_only_an_output_has_are_no_overlap(tmp_path: Path) -> None:
    g = Graph(x=(1, 4, 4, 5))
    weight = g.integers(4, 6, 3, 3)
    y = g.node("ConvTranspose", "x", weight, strides=[3, 3], output_padding=[1, 1])
    network = assert_like_onnxruntime(g.model(y), tmp_path)
    ((workload, _),) = convolutions(network)
    assert workload.out_channels == 6 * 3 * 3


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [1, 1]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"strides": [3, 3], "dilations": [2, 2]},
        {"strides": [3, 3], "group": 2},
        {"strides": [3, 3], "pads": [1, 0, 0, 2]},
    ],
    ids=str,
)
def test_other_transposed_convolutions_stay(tmp_path: Path, attributes: dict[str, Any]) -> None:
    g = Graph(x=(1, 4, 4, 5))
    y = g.node(
        "ConvTranspose", "x", g.integers(4, 6 // attributes.get("group", 1), 3, 3), **attributes
    )
    network = assert_like_onnxruntime(g.model(y), tmp_path)
    assert not convolutions(network)


def test_what_depends_on_no_input_is_computed(tmp_path: Path) -> None:
    g = Graph(x=(1, 40, 3, 3))
    # More elements than the importer folds.
    weight = g.node("Transpose", g.integers(3, 3, 40, 16), perm=[3, 2, 0, 1])
    weight = g.node("Mul", weight, g.constant(2))
    weight = g.node("Reshape", weight, g.constant([16, 40, 3, 3], dtype=np.int64))
    model = g.model(g.node("Conv", "x", weight))
    assert calls(after(model, tmp_path, Simplify)) == {"nn.conv2d": 1}
    assert_like_onnxruntime(model, tmp_path)


def test_divisions_and_subtractions_are_multiplications_and_additions(tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 4, 5))
    y = g.node("Sub", g.node("Div", "x", g.constant([[[2.0]], [[4.0]], [[8.0]]])), g.constant(3))
    model = g.model(y)
    assert calls(after(model, tmp_path, Simplify)) == {"multiply": 1, "add": 1}
    assert_like_onnxruntime(model, tmp_path)


def test_what_constants_are_divided_by_or_subtract_stays(tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 4, 5))
    positive = g.node("Add", g.node("Abs", "x"), g.constant(1))
    y = g.node("Sub", g.constant(3), g.node("Div", g.constant(2), positive))
    assert_like_onnxruntime(g.model(y), tmp_path, exact=False)


def test_changes_of_rank_are_one_operator(tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 4, 5))
    y = g.node("Neg", g.node("Flatten", "x"))
    y = g.node("Abs", g.node("Unsqueeze", y, g.constant([0], dtype=np.int64)))
    y = g.node("Neg", g.node("Squeeze", y, g.constant([1], dtype=np.int64)))
    y = g.node("Reshape", y, g.constant([1, 60], dtype=np.int64))
    model = g.model(y)
    assert calls(after(model, tmp_path, Simplify)) == {"negative": 2, "abs": 1, "reshape": 3}
    assert_like_onnxruntime(model, tmp_path)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [1], [3], [0, 1, 2, 3]], ids=str)
def test_means(tmp_path: Path, axes: list[int], keepdims: int) -> None:
    g = Graph(x=(1, 16, 4, 4))
    y = g.node("ReduceMean", g.conv("x", 16, 16, 1, 1), axes=axes, keepdims=keepdims)
    assert_like_onnxruntime(g.model(y), tmp_path)


def test_types_that_are_the_same_are_not_cast(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    y = g.node("Cast", g.node("Neg", "x"), to=1)
    model = g.model(g.node("Cast", y, to=7), opset=17)
    assert calls(after(model, tmp_path, Simplify))["astype"] == 1
    assert_like_onnxruntime(model, tmp_path)


# --- RowsAsImages -----------------------------------------------------------------------------


def test_conv1d_is_fused_with_what_follows(tmp_path: Path) -> None:
    g = Graph(x=(1, 16, 11))
    y = g.node("Relu", g.batch_norm(g.conv("x", 16, 16, 3, bias=True, pads=[1, 1]), 16))
    y = g.node("Add", y, g.conv(y, 16, 16, 1, bias=True))
    model = g.model(g.conv(g.node("Relu", y), 16, 16, 3))
    network = assert_like_onnxruntime(model, tmp_path)
    assert epilogues(network) == ["bias,relu", "bias,residual,relu", ""]
    assert network.manifest.reorders == 2  # Of the network's input and its output.
    left = after(model, tmp_path, Simplify, RowsAsImages)
    assert calls(left)["reshape"] == 2


def test_images_that_are_taken_for_signals_in_between(tmp_path: Path) -> None:
    g = Graph(x=(1, 16, 1, 11))
    rows = g.constant([2], dtype=np.int64)
    y = g.node("Squeeze", g.conv("x", 16, 16, 1, 3), rows)
    y = g.node("Unsqueeze", g.node("Relu", g.node("Add", y, g.integers(16, 1))), rows)
    model = g.model(g.conv(y, 16, 16, 1, 3))
    assert epilogues(assert_like_onnxruntime(model, tmp_path)) == ["bias,relu", ""]
    assert "reshape" not in calls(after(model, tmp_path, Simplify, RowsAsImages))


@pytest.mark.parametrize(
    "shape", [(), (1,), (9,), (12, 1), (12, 9), (1, 9), (1, 12, 1), (2, 12, 9), (2, 1, 1)], ids=str
)
@pytest.mark.parametrize("given", [False, True], ids=["constant", "tensor"])
def test_what_is_broadcast_to_signals(tmp_path: Path, shape: tuple[int, ...], given: bool) -> None:
    g = Graph(x=(1, 8, 11), **({"y": shape} if given else {}))
    y = "y" if given else g.integers(*shape)
    y = g.node("Sub", y, g.node("Mul", g.conv("x", 12, 8, 3), y))
    assert_like_onnxruntime(g.model(y), tmp_path)


def test_signals_that_others_read_are_still_there(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 11), y=(3, 2, 8, 11))
    conv = g.conv("x", 8, 8, 3, pads=[1, 1])
    y = g.node("Relu", conv)
    model = g.model(conv, y, g.node("Add", y, "y"), g.node("Softmax", y, axis=2))
    assert_like_onnxruntime(model, tmp_path, exact=False)


def test_element_wise_operators_elsewhere_stay(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 11))
    model = g.model(g.node("Add", g.node("Relu", "x"), g.integers(8, 1)))
    assert calls(after(model, tmp_path, Simplify, RowsAsImages)) == {"nn.relu": 1, "add": 1}


# --- FoldBatchNorm ----------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 2, 12])
@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_is_part_of_the_convolution(tmp_path: Path, bias: bool, group: int) -> None:
    g = Graph(x=(1, 12, 5, 6))
    y = g.batch_norm(g.conv("x", 24, 12 // group, 3, 3, bias=bias, group=group), 24)
    model = g.model(y)
    assert calls(after(model, tmp_path, Simplify, FoldBatchNorm)) == {"nn.conv2d": 1, "add": 1}
    network = assert_like_onnxruntime(model, tmp_path)
    assert epilogues(network) == ["bias"] and len(network.manifest.layers) <= 3


def test_whatever_scales_channels_is_part_of_the_convolution(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    y = g.batch_norm(g.conv("x", 12, 8, 3, 3, bias=True), 12)
    y = g.node("Mul", g.integers(12, 1, 1), y)  # Both orders of operands, all shapes of constants.
    y = g.node("Add", y, g.integers(1, 12, 1, 1))
    y = g.node("Sub", g.node("Mul", y, g.constant([2])), g.constant(5))
    y = g.node("Add", g.constant([[3]]), g.node("Div", y, g.constant(2)))
    model = g.model(y)
    assert calls(after(model, tmp_path, Simplify, FoldBatchNorm)) == {"nn.conv2d": 1, "add": 1}
    assert epilogues(assert_like_onnxruntime(model, tmp_path)) == ["bias"]


def test_a_shift_of_zero_is_no_bias(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    y = g.node("Mul", g.conv("x", 12, 8, 3, 3), g.integers(12, 1, 1))
    assert epilogues(assert_like_onnxruntime(g.model(y), tmp_path)) == [""]


@pytest.mark.parametrize("shape", [(5, 6), (1, 6), (12, 5, 6), (1, 12, 5, 1)], ids=str)
def test_what_scales_pixels_is_no_part_of_it(tmp_path: Path, shape: tuple[int, ...]) -> None:
    g = Graph(x=(1, 8, 5, 6))
    y = g.node(
        "Add", g.node("Mul", g.conv("x", 12, 8, 1, 1), g.integers(*shape)), g.integers(*shape)
    )
    model = g.model(y)
    left = calls(after(model, tmp_path, Simplify, FoldBatchNorm))
    assert left == {"nn.conv2d": 1, "multiply": 1, "add": 1}
    assert_like_onnxruntime(model, tmp_path)


def test_what_is_read_twice_is_not_folded(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    conv = g.conv("x", 12, 8, 3, 3)
    y = g.node("Neg", g.batch_norm(conv, 12))
    model = g.model(y, g.node("Abs", conv))
    left = calls(after(model, tmp_path, Simplify, FoldBatchNorm))
    assert left["multiply"] == left["add"] == 1
    assert_like_onnxruntime(model, tmp_path)
    g = Graph(x=(1, 8, 5, 6))
    conv = g.conv("x", 12, 8, 3, 3)
    assert_like_onnxruntime(g.model(g.batch_norm(conv, 12), conv), tmp_path)


def test_what_is_read_twice_in_the_middle_is_folded_up_to_there(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    middle = g.node("Mul", g.conv("x", 12, 8, 3, 3), g.integers(12, 1, 1))
    model = g.model(g.node("Add", middle, g.integers(12, 1, 1)), g.node("Abs", middle))
    left = calls(after(model, tmp_path, Simplify, FoldBatchNorm))
    assert left == {"nn.conv2d": 1, "add": 1, "abs": 1}
    assert_like_onnxruntime(model, tmp_path)


@pytest.mark.parametrize("kind", ["Add", "Mul"])
def test_one_channel_that_becomes_many(tmp_path: Path, kind: str) -> None:
    g = Graph(x=(1, 8, 5, 6))
    y = g.node(kind, g.conv("x", 1, 8, 3, 3, bias=True), g.integers(1, 12, 1, 1))
    assert_like_onnxruntime(g.model(g.node("Relu", y)), tmp_path)


@pytest.mark.parametrize("kind", ["Add", "Mul"])
def test_one_image_that_becomes_many(tmp_path: Path, kind: str) -> None:
    g = Graph(x=(1, 8, 5, 6))
    y = g.node(kind, g.conv("x", 12, 8, 3, 3, bias=True), g.integers(2, 12, 1, 1))
    assert_like_onnxruntime(g.model(g.node("Relu", y)), tmp_path)


def test_constants_of_higher_rank(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    y = g.node("Mul", g.conv("x", 12, 8, 3, 3), g.integers(1, 1, 12, 1, 1))
    assert_like_onnxruntime(g.model(g.node("Relu", y)), tmp_path)


def test_channelwise_constants() -> None:
    shape = (2, 12, 5, 6)
    by_channel = np.arange(12.0)
    for fits in [(12, 1, 1), (1, 12, 1, 1)]:
        found = channelwise(by_channel.reshape(fits), shape)
        assert found is not None
        np.testing.assert_array_equal(found, by_channel)
    for single in [(), (1,), (1, 1, 1, 1)]:
        found = channelwise(np.full(single, 5.0), shape)
        assert found is not None
        np.testing.assert_array_equal(found, np.full(12, 5.0))
    for wrong in [(6,), (5, 1), (12, 5, 1), (2, 1, 1, 1), (2, 12, 1, 1), (1, 1, 12, 1, 1)]:
        assert channelwise(np.ones(wrong), shape) is None
    assert channelwise(np.ones(6), shape, axis=-1) is not None
    assert channelwise(np.ones((12, 1, 1)), shape, axis=-1) is None


# --- RecognizeActivations ---------------------------------------------------------------------

Written = Callable[[Graph, str], str]


def _c(g: Graph, value: float) -> str:
    return g.constant(value)


def _clip(g: Graph, x: str, low: float, high: float) -> str:
    return g.node("Clip", x, _c(g, low), _c(g, high))


def _relu6(g: Graph, x: str) -> str:
    return _clip(g, x, 0, 6)


def _plus3(g: Graph, x: str) -> str:
    return g.node("Add", x, _c(g, 3))


# Each way to write an activation; (name, slope) is what it is.
WAYS: dict[str, tuple[str, float, Written]] = {
    "relu as maximum": ("relu", 0, lambda g, x: g.node("Max", x, _c(g, 0))),
    "relu as maximum, other order": ("relu", 0, lambda g, x: g.node("Max", _c(g, 0), x)),
    "relu as clip": ("relu", 0, lambda g, x: g.node("Clip", x, _c(g, 0))),
    "relu as leaky relu": ("relu", 0, lambda g, x: g.node("LeakyRelu", x, alpha=0.0)),
    "relu6 as clip": ("relu6", 0, _relu6),
    "relu6 as minimum of relu": (
        "relu6",
        0,
        lambda g, x: g.node("Min", g.node("Relu", x), _c(g, 6)),
    ),
    "relu6 as minimum and maximum": (
        "relu6",
        0,
        lambda g, x: g.node("Max", g.node("Min", _c(g, 6), x), _c(g, 0)),
    ),
    "leaky relu": ("leaky_relu", 0.1, lambda g, x: g.node("LeakyRelu", x, alpha=0.1)),
    "steep leaky relu": ("leaky_relu", 2, lambda g, x: g.node("LeakyRelu", x, alpha=2.0)),
    "leaky relu as maximum": (
        "leaky_relu",
        0.25,
        lambda g, x: g.node("Max", x, g.node("Mul", x, _c(g, 0.25))),
    ),
    "leaky relu as sum": (
        "leaky_relu",
        0.25,
        lambda g, x: g.node(
            "Add", g.node("Relu", x), g.node("Mul", g.node("Min", x, _c(g, 0)), _c(g, 0.25))
        ),
    ),
    "silu": ("silu", 0, lambda g, x: g.node("Mul", x, g.node("Sigmoid", x))),
    "silu with an exponential": (
        "silu",
        0,
        lambda g, x: g.node("Div", x, g.node("Add", _c(g, 1), g.node("Exp", g.node("Neg", x)))),
    ),
    "silu, other order": ("silu", 0, lambda g, x: g.node("Mul", g.node("Sigmoid", x), x)),
    "hard-sigmoid": (
        "hard_sigmoid",
        0,
        lambda g, x: g.node("Div", _relu6(g, _plus3(g, x)), _c(g, 6)),
    ),
    "hard-sigmoid times sixth": (
        "hard_sigmoid",
        0,
        lambda g, x: g.node("Mul", _relu6(g, _plus3(g, x)), _c(g, 1 / 6)),
    ),
    "hard-sigmoid, operator": (
        "hard_sigmoid",
        0,
        lambda g, x: g.node("HardSigmoid", x, alpha=1 / 6, beta=0.5),
    ),
    "hard-sigmoid as clip": (
        "hard_sigmoid",
        0,
        lambda g, x: _clip(g, g.node("Add", g.node("Div", x, _c(g, 6)), _c(g, 0.5)), 0, 1),
    ),
    "hard-swish, operator": ("hard_swish", 0, lambda g, x: g.node("HardSwish", x)),
    "hard-swish times division": (
        "hard_swish",
        0,
        lambda g, x: g.node("Mul", x, g.node("Div", _relu6(g, _plus3(g, x)), _c(g, 6))),
    ),
    "hard-swish divided at the end": (
        "hard_swish",
        0,
        lambda g, x: g.node("Div", g.node("Mul", x, _relu6(g, _plus3(g, x))), _c(g, 6)),
    ),
    "hard-swish divided at the beginning": (
        "hard_swish",
        0,
        lambda g, x: g.node("Mul", g.node("Div", x, _c(g, 6)), _relu6(g, _plus3(g, x))),
    ),
    "hard-swish times hard-sigmoid": (
        "hard_swish",
        0,
        lambda g, x: g.node("Mul", g.node("HardSigmoid", x, alpha=1 / 6, beta=0.5), x),
    ),
    "hard-swish times seven digits": (
        "hard_swish",
        0,
        lambda g, x: g.node(
            "Mul", _c(g, 0.1666667), g.node("Mul", _relu6(g, g.node("Add", _c(g, 3), x)), x)
        ),
    ),
    "hard-swish with relu and minimum": (
        "hard_swish",
        0,
        lambda g, x: g.node(
            "Mul",
            x,
            g.node("Div", g.node("Min", g.node("Relu", _plus3(g, x)), _c(g, 6)), _c(g, 6)),
        ),
    ),
}


def test_a_new_activation_is_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row here and one in the oracle is all that fusion needs."""
    row = Activation(lambda x, slope: x, has_slope=True)
    monkeypatch.setitem(ACTIVATIONS, "elu", row)
    monkeypatch.setitem(
        reference._ACTIVATIONS, "elu", lambda y, slope: np.where(y > 0, y, slope * np.expm1(y))
    )
    g = Graph(x=(1, 8, 4, 5))
    conv = g.conv("x", 12, 8, 1, 1)
    model = g.model(g.node("Elu", conv, alpha=0.5))
    module = after(model, tmp_path, Simplify, RecognizeActivations)
    ((found, slope),) = activations(module)
    assert (found, slope) == ("elu", pytest.approx(0.5))


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_write_an_activation(tmp_path: Path, way: str) -> None:
    name, slope, write = WAYS[way]
    g = Graph(x=(1, 8, 4, 5))
    model = g.model(write(g, g.conv("x", 12, 8, 1, 1)))
    module = after(model, tmp_path, Simplify, RecognizeActivations)
    assert calls(module) == {"nn.conv2d": 1, ACTIVATION: 1}
    ((found, parameter),) = activations(module)
    assert (found, parameter) == (name, pytest.approx(slope))
    network = assert_like_onnxruntime(model, tmp_path, exact=False)
    (epilogue,) = epilogues(network)
    assert epilogue.startswith(name)


# What looks like an activation at a glance, and is none.
OTHERS: dict[str, Written] = {
    "identity and a little": lambda g, x: g.node("Add", x, _c(g, 1e-5)),
    "twice": lambda g, x: g.node("Mul", x, _c(g, 2)),
    "relu6 of 5": lambda g, x: _clip(g, x, 0, 5),
    "relu6 of 5.999": lambda g, x: _clip(g, x, 0, 5.999),
    "hard-sigmoid of ONNX": lambda g, x: g.node("HardSigmoid", x),
    "hard-swish of 4": lambda g, x: g.node(
        "Mul", x, g.node("Div", _relu6(g, g.node("Add", x, _c(g, 4))), _c(g, 6))
    ),
    "softsign": lambda g, x: g.node(
        "Div", x, g.node("Add", _c(g, 1), g.node("Max", x, g.node("Mul", x, _c(g, -1))))
    ),
    "minimum with 0": lambda g, x: g.node("Min", x, _c(g, 0)),
    "maximum with 0.001": lambda g, x: g.node("Max", x, _c(g, 0.001)),
    "swish of 1.702": lambda g, x: g.node(
        "Mul", x, g.node("Sigmoid", g.node("Mul", x, _c(g, 1.702)))
    ),
    "leaky relu that goes up again": lambda g, x: g.node("LeakyRelu", x, alpha=-0.5),
    "absolute value": lambda g, x: g.node("Max", x, g.node("Mul", x, _c(g, -1))),
    "leaky relu of 1": lambda g, x: g.node("LeakyRelu", x, alpha=1.0),
    "zero": lambda g, x: g.node("Mul", x, _c(g, 0)),
    "a constant by channel": lambda g, x: g.node("Max", x, g.integers(12, 1, 1)),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_no_activation(tmp_path: Path, other: str) -> None:
    g = Graph(x=(1, 8, 4, 5))
    # Not directly behind the convolution, which multiplications and additions are folded into.
    model = g.model(OTHERS[other](g, g.node("Neg", g.conv("x", 12, 8, 1, 1))))
    assert_like_onnxruntime(model, tmp_path, exact=False)
    if other not in LEAKY:  # A part of it may be one.
        module = after(model, tmp_path, Simplify, RecognizeActivations)
        called = [op_name(value) for _, value in Rewriter(module).bindings]
        assert list(filter(None, called))[-1] != ACTIVATION


# Leaky relus of strange slopes: they may have that name or not.
LEAKY = ("leaky relu that goes up again", "absolute value", "leaky relu of 1")


def test_intermediates_that_are_read_elsewhere_stay(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 4, 5))
    conv = g.conv("x", 12, 8, 1, 1)
    clipped = _relu6(g, _plus3(g, conv))
    y = g.node("Mul", conv, g.node("Div", clipped, g.constant(6)))
    model = g.model(y, g.node("Neg", clipped))
    module = after(model, tmp_path, Simplify, RecognizeActivations)
    assert "hard_swish" not in {name for name, _ in activations(module)}
    assert_like_onnxruntime(model, tmp_path, exact=False)


def test_results_of_activations_may_be_read_often(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 4, 5))
    conv = g.conv("x", 12, 8, 1, 1)
    y = g.node("Mul", conv, g.node("Sigmoid", conv))
    model = g.model(y, g.node("Neg", y), g.node("Ceil", conv))
    module = after(model, tmp_path, Simplify, RecognizeActivations)
    assert activations(module) == [("silu", 0.0)]
    assert_like_onnxruntime(model, tmp_path, exact=False)


def test_activations_of_different_tensors_are_apart(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 4, 5))
    a, b = g.conv("x", 12, 8, 1, 1), g.conv("x", 12, 8, 1, 1)
    y = g.node("Mul", a, g.node("Sigmoid", b))
    model = g.model(y, g.node("Mul", b, g.node("Sigmoid", a)))
    module = after(model, tmp_path, Simplify, RecognizeActivations)
    assert "silu" not in {name for name, _ in activations(module)}
    assert_like_onnxruntime(model, tmp_path, exact=False)


def test_an_activation_of_an_activation(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 4, 5))
    y = g.conv("x", 12, 8, 1, 1)
    for _ in range(2):
        y = g.node("Mul", y, g.node("Div", _relu6(g, _plus3(g, y)), g.constant(6)))
    model = g.model(y)
    module = after(model, tmp_path, Simplify, RecognizeActivations)
    assert activations(module) == [("hard_swish", 0.0)] * 2
    assert_like_onnxruntime(model, tmp_path, exact=False)


def test_broadcasts_are_no_part_of_an_activation(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 4, 5), s=(1, 1, 1, 1))
    y = g.node("Mul", g.node("Sigmoid", "s"), g.conv("x", 12, 8, 1, 1))
    z = g.node("Mul", g.node("Sigmoid", "s"), "s")
    assert_like_onnxruntime(g.model(y, z), tmp_path, exact=False)


# --- FuseConvolutions -------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_bias_residual_and_activation(tmp_path: Path, first: bool, bias: bool, relu: bool) -> None:
    g = Graph(x=(1, 8, 5, 6), r=(1, 12, 5, 6))
    conv = g.conv("x", 12, 8, 3, 3, bias=bias, pads=[1, 1, 1, 1])
    y = g.node("Add", *((conv, "r") if first else ("r", conv)))
    network = assert_like_onnxruntime(g.model(g.node("Relu", y) if relu else y), tmp_path)
    parts = ["bias"] * bias + ["residual"] + ["relu"] * relu
    assert epilogues(network) == [",".join(parts)]


@pytest.mark.parametrize("first", [True, False])
def test_a_residual_that_is_a_convolution(tmp_path: Path, first: bool) -> None:
    g = Graph(x=(1, 8, 5, 6))
    one = g.conv("x", 12, 8, 3, 3, bias=True, pads=[1, 1, 1, 1])
    two = g.conv("x", 12, 8, 1, 1, bias=True)
    y = g.node("Relu", g.node("Add", *((one, two) if first else (two, one))))
    network = assert_like_onnxruntime(g.model(y), tmp_path)
    assert epilogues(network) == ["bias", "bias,residual,relu"]


def test_a_residual_that_is_not_ready_when_the_convolution_is(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    one = g.conv("x", 12, 8, 1, 1)
    other = g.node("Exp", g.conv(g.node("Neg", "x"), 12, 8, 1, 1))
    y = g.node("Relu", g.node("Add", one, g.node("Tanh", other)))
    network = assert_like_onnxruntime(g.model(y), tmp_path, exact=False)
    assert "residual,relu" in epilogues(network)


def test_a_chain_of_residuals(tmp_path: Path) -> None:
    g = Graph(x=(1, 12, 5, 6))
    y = "x"
    for _ in range(3):
        y = g.node("Relu", g.node("Add", y, g.conv(y, 12, 12, 1, 1, bias=True)))
    network = assert_like_onnxruntime(g.model(y), tmp_path)
    assert epilogues(network) == ["bias,residual,relu"] * 3


def test_a_residual_of_the_convolutions_own_input(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    y = g.conv("x", 12, 8, 1, 1)
    y = g.node("Add", g.conv(y, 12, 12, 3, 3, pads=[1, 1, 1, 1]), y)
    assert epilogues(assert_like_onnxruntime(g.model(y), tmp_path)) == ["", "residual"]


def test_what_is_added_to_itself(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    conv = g.conv("x", 12, 8, 3, 3)
    assert_like_onnxruntime(g.model(g.node("Relu", g.node("Add", conv, conv))), tmp_path)
    g = Graph(x=(1, 8, 5, 6))
    conv = g.conv("x", 12, 8, 3, 3)
    assert_like_onnxruntime(g.model(g.node("Add", conv, conv)), tmp_path)


def test_two_residuals_and_two_biases(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6), r=(1, 12, 5, 6), s=(1, 12, 5, 6))
    y = g.node("Add", g.node("Add", g.conv("x", 12, 8, 1, 1, bias=True), "r"), "s")
    y = g.node("Relu", g.node("Add", y, g.integers(12, 1, 1)))
    network = assert_like_onnxruntime(g.model(y), tmp_path)
    assert epilogues(network) == ["bias,residual"]


def test_a_bias_behind_a_residual(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6), r=(1, 12, 5, 6))
    y = g.node("Add", g.node("Add", g.conv("x", 12, 8, 1, 1), "r"), g.integers(12, 1, 1))
    assert_like_onnxruntime(g.model(g.node("Relu", y)), tmp_path)


def test_a_convolution_that_is_read_twice(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    conv = g.conv("x", 12, 8, 3, 3, bias=True)
    network = assert_like_onnxruntime(
        g.model(g.node("Relu", conv), g.node("Neg", conv), conv), tmp_path
    )
    assert epilogues(network) == ["bias"]


@pytest.mark.parametrize(
    "shape", [(1, 12, 1, 1), (1, 1, 5, 6), (1, 12, 5, 1), (1, 1, 1, 1)], ids=str
)
def test_tensors_of_other_shapes_are_no_residual(tmp_path: Path, shape: tuple[int, ...]) -> None:
    g = Graph(x=(1, 8, 5, 6), r=shape)
    y = g.node("Relu", g.node("Add", g.conv("x", 12, 8, 1, 1), "r"))
    assert epilogues(assert_like_onnxruntime(g.model(y), tmp_path)) == [""]


def test_a_residual_that_makes_the_result_larger(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 1, 1), r=(1, 12, 5, 6))
    y = g.node("Relu", g.node("Add", g.conv("x", 12, 8, 1, 1), "r"))
    assert_like_onnxruntime(g.model(y), tmp_path)
    g = Graph(x=(1, 8, 5, 6))
    y = g.node("Add", g.conv("x", 12, 8, 1, 1), g.integers(2, 12, 5, 6))
    assert_like_onnxruntime(g.model(y), tmp_path)


def test_a_constant_residual(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    y = g.node("Add", g.conv("x", 12, 8, 1, 1), g.integers(1, 12, 5, 6))
    assert_like_onnxruntime(g.model(g.node("Relu", y)), tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "attributes"),
    [
        ("Relu", "relu", {}),
        ("Sigmoid", "sigmoid", {}),
        ("HardSwish", "hard_swish", {}),
        ("LeakyRelu", "leaky_relu=0.1", {"alpha": 0.1}),
    ],
)
def test_operators_that_are_activations(
    tmp_path: Path, kind: str, name: str, attributes: dict[str, float]
) -> None:
    g = Graph(x=(1, 8, 5, 6))
    y = g.node(kind, g.conv("x", 12, 8, 1, 1, bias=True), **attributes)
    network = assert_like_onnxruntime(g.model(y), tmp_path, exact=False)
    (epilogue,) = epilogues(network)
    assert epilogue.startswith(f"bias,{name}")


def test_only_one_activation_is_part_of_it(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    y = g.node("Relu", g.node("Sigmoid", g.conv("x", 12, 8, 1, 1)))
    network = assert_like_onnxruntime(g.model(y), tmp_path, exact=False)
    assert epilogues(network) == ["sigmoid"]


@pytest.mark.parametrize("rows", [(1,), (5,), (2, 3), (2, 1, 3), ()], ids=str)
@pytest.mark.parametrize("outputs", [10, 16])
def test_products_with_matrices(tmp_path: Path, rows: tuple[int, ...], outputs: int) -> None:
    g = Graph(x=(*rows, 24))
    y = g.node("MatMul", "x", g.integers(24, outputs))
    y = g.node("Relu", g.node("Add", y, g.integers(outputs)))
    network = assert_like_onnxruntime(g.model(y), tmp_path)
    assert epilogues(network) == ["bias,relu"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("rows", [1, 3])
def test_dense_layers(tmp_path: Path, rows: int, transposed: int) -> None:
    g = Graph(x=(rows, 24))
    shape = (10, 24) if transposed else (24, 10)
    y = g.node("Gemm", "x", g.integers(*shape), g.integers(10), transB=transposed)
    network = assert_like_onnxruntime(g.model(g.node("Relu", y)), tmp_path)
    assert epilogues(network) == ["bias,relu"]


@pytest.mark.parametrize("shape", [(3, 10), (3, 1), (1, 10), (1,), ()], ids=str)
def test_what_is_added_to_dense_layers(tmp_path: Path, shape: tuple[int, ...]) -> None:
    g = Graph(x=(3, 24))
    y = g.node("Gemm", "x", g.integers(24, 10), g.integers(*shape), alpha=2.0, beta=0.5)
    assert_like_onnxruntime(g.model(g.node("Relu", y)), tmp_path)


def test_two_dense_layers_added(tmp_path: Path) -> None:
    g = Graph(x=(3, 24))
    y = g.node("Add", *(g.node("MatMul", "x", g.integers(24, 10)) for _ in range(2)))
    assert_like_onnxruntime(g.model(g.node("Relu", y)), tmp_path)


@pytest.mark.parametrize("first", [True, False])
def test_products_of_two_tensors_are_no_convolutions(tmp_path: Path, first: bool) -> None:
    g = Graph(x=(1, 5, 6), y=(1, 6, 5))
    product = g.node("MatMul", "x", "y")
    constant = g.integers(5, 5) if first else g.integers(1, 5, 5)
    y = g.node("MatMul", *((constant, product) if first else (product, constant)))
    assert not convolutions(assert_like_onnxruntime(g.model(y), tmp_path))


def test_weights_that_are_inputs_are_no_convolution_of_ours(tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 5, 6), w=(4, 3, 3, 3))
    assert not convolutions(assert_like_onnxruntime(g.model(g.node("Conv", "x", "w")), tmp_path))


# --- groups -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "outputs", "group"),
    [
        (24, 24, 3),
        (12, 12, 3),
        (24, 36, 6),
        (10, 15, 5),
        (136, 136, 4),
        (16, 16, 16),  # Depthwise.
        (6, 6, 6),
        (6, 12, 6),  # Two outputs for each input.
        (32, 64, 1),
    ],
)
@pytest.mark.parametrize("kernel", [1, 3])
def test_groups_are_exact(
    tmp_path: Path, channels: int, outputs: int, group: int, kernel: int
) -> None:
    g = Graph(x=(1, channels, 4, 5))
    weight = (outputs, channels // group, kernel, kernel)
    y = g.conv("x", *weight, bias=True, group=group, pads=[kernel // 2] * 4)
    network = assert_like_onnxruntime(g.model(g.node("Relu", y)), tmp_path)
    ((workload, _),) = convolutions(network)
    assert workload.groups == group


# --- blocked_layout ---------------------------------------------------------------------------


def reorders(network: Network) -> int:
    return network.manifest.reorders


def test_a_chain_of_convolutions_is_never_reordered(tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 12, 12))
    y = g.node("Relu", g.conv("x", 2 * BLOCK, 3, 3, 3, bias=True))
    y = g.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = g.node("Tanh", g.conv(y, BLOCK, 2 * BLOCK, 1, 1))
    y = g.node("AveragePool", y, kernel_shape=[2, 2])
    y = g.node("GlobalAveragePool", g.conv(y, 2 * BLOCK, BLOCK, 1, 1))
    y = g.node("Gemm", g.node("Flatten", y), g.integers(2 * BLOCK, BLOCK), g.integers(BLOCK))
    model = g.model(y)
    network = assert_like_onnxruntime(model, tmp_path, exact=False)
    assert reorders(network) == 0
    module = after(model, tmp_path, *FUSED, blocked_layout(NATIVE, 1, "model", "flush"))
    assert calls(module)[REORDER] == 0


def test_results_are_reordered_once(tmp_path: Path) -> None:
    g = Graph(x=(1, BLOCK, 5, 6))
    conv = g.conv("x", BLOCK, BLOCK, 1, 1)
    model = g.model(conv, g.node("Softmax", conv, axis=1), g.node("Transpose", conv))
    network = assert_like_onnxruntime(model, tmp_path, exact=False)
    assert reorders(network) == 2  # The input into blocks, the result out of them.
    module = after(model, tmp_path, *FUSED, blocked_layout(NATIVE, 1, "model", "flush"))
    assert calls(module)[REORDER] == 2


@pytest.mark.parametrize("channels", [24, 12, 3, 1, 5])
def test_channels_that_do_not_fill_blocks(tmp_path: Path, channels: int) -> None:
    g = Graph(x=(1, 8, 6, 6))
    y = g.conv("x", channels, 8, 1, 1, bias=True)
    y = g.node("Add", g.node("Relu", y), g.node("Neg", y))
    y = g.node("MaxPool", y, kernel_shape=[2, 2])
    y = g.conv(y, channels, 1, 3, 3, group=channels, bias=True)
    y = g.node("Mul", y, g.node("GlobalAveragePool", y))
    y = g.conv(y, 7, channels, 1, 1)
    assert_like_onnxruntime(g.model(y), tmp_path, exact=False)


@pytest.mark.parametrize("kind", ["Div", "Log", "Reciprocal", "Pow"])
def test_what_only_fills_blocks_up_never_counts(tmp_path: Path, kind: str) -> None:
    """Functions of zero need not be numbers, and zero times infinity is none."""
    g = Graph(x=(1, 8, 6, 6))
    y = g.node("Abs", g.conv("x", 3, 8, 1, 1, bias=True))
    y = g.node("Add", y, g.constant(1))
    z = g.node("Add", g.node("Abs", g.conv("x", 3, 8, 1, 1)), g.constant(2))
    y = {
        "Div": lambda: g.node("Div", z, y),
        "Log": lambda: g.node("Log", y),
        "Reciprocal": lambda: g.node("Reciprocal", y),
        "Pow": lambda: g.node("Pow", y, g.constant(-1)),
    }[kind]()
    for _ in range(2):
        y = g.conv(y, 3, 3, 3, 3, pads=[1, 1, 1, 1], bias=True)
    assert_like_onnxruntime(g.model(y), tmp_path, exact=False)


def test_a_division_without_padding_between(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 6, 6), z=(1, 3, 6, 6))
    y = g.conv("x", 3, 8, 1, 1, bias=True)
    y = g.node("Div", y, g.node("Add", g.node("Abs", y), g.node("Abs", g.integers(1, 3, 6, 6))))
    y = g.conv(y, 5, 3, 1, 1)
    assert_like_onnxruntime(g.model(g.node("GlobalAveragePool", y), y, "z"), tmp_path, exact=False)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((2, 1), 0),
        ((1, 1, 3), 0),
        ((1, 0.5), 0),  # Only the last one may be filled up.
        ((0.5, 1), 0),  # Gathered, but in blocks.
        ((0.5, 0.5, 1), 0),
    ],
    ids=str,
)
def test_concatenations(tmp_path: Path, parts: tuple[float, ...], expected: int) -> None:
    channels = [int(part * BLOCK) for part in parts]
    # All in the same blocks, whatever the number of channels is best in.
    if len({channel_block(c, NATIVE) for c in (*channels, BLOCK, sum(channels))}) > 1:
        expected = -1
    g = Graph(x=(1, 3, 5, 6))
    y = g.node("Concat", *(g.conv("x", c, 3, 1, 1, bias=True) for c in channels), axis=1)
    y = g.node("GlobalAveragePool", g.conv(y, BLOCK, sum(channels), 1, 1))
    network = assert_like_onnxruntime(g.model(y), tmp_path, exact=False)
    if expected >= 0:
        assert (reorders(network) > 0) == (expected > 0)


@pytest.mark.parametrize("channels", [BLOCK, 12, 58])
@pytest.mark.parametrize("groups", [2, 4])
def test_shuffles_and_parts_of_channels_stay_in_blocks(
    tmp_path: Path, channels: int, groups: int
) -> None:
    """What ShuffleNet is made of; 58 channels are half of one of its layers."""
    g = Graph(x=(1, 3, 5, 6))
    y = g.conv("x", 2 * channels, 3, 1, 1, bias=True)
    left, right = g.node("Split", y, axis=1, outputs=2)
    y = g.node("Concat", left, g.node("Relu", right), axis=1)
    each = 2 * channels // groups
    y = g.node("Reshape", y, g.constant([1, groups, each, 5, 6], dtype=np.int64))
    y = g.node("Transpose", y, perm=[0, 2, 1, 3, 4])
    y = g.node("Reshape", y, g.constant([1, 2 * channels, 5, 6], dtype=np.int64))
    y = g.node("GlobalAveragePool", g.conv(y, BLOCK, 2 * channels, 1, 1))
    network = assert_like_onnxruntime(g.model(y), tmp_path, exact=False)
    assert reorders(network) == 0


@pytest.mark.parametrize("axis", [0, 2, 3, -3, -1])
def test_concatenations_of_other_axes(tmp_path: Path, axis: int) -> None:
    g = Graph(x=(1, 3, 5, 6))
    y = g.node("Concat", *(g.conv("x", 16, 3, 1, 1) for _ in range(2)), axis=axis)
    assert_like_onnxruntime(g.model(g.node("Relu", y)), tmp_path)


@pytest.mark.parametrize("channels", [2 * BLOCK, 12])
def test_concatenations_with_what_is_no_result_of_a_convolution(
    tmp_path: Path, channels: int
) -> None:
    g = Graph(x=(1, channels, 5, 6))
    conv = g.conv("x", channels, channels, 1, 1)
    parts = [conv, "x", g.integers(1, 8, 5, 6), conv, g.node("Neg", conv)]
    y = g.conv(g.node("Concat", *parts, axis=1), 8, 4 * channels + 8, 1, 1)
    assert_like_onnxruntime(g.model(y), tmp_path)


@pytest.mark.parametrize("channels", [BLOCK, 2 * BLOCK, 12, 24])
def test_squeeze_and_excitation(tmp_path: Path, channels: int) -> None:
    g = Graph(x=(1, 8, 6, 6))
    y = g.node("Relu", g.conv("x", channels, 8, 3, 3, bias=True))
    s = g.node("Relu", g.conv(g.node("GlobalAveragePool", y), 4, channels, 1, 1, bias=True))
    s = g.node("HardSigmoid", g.conv(s, channels, 4, 1, 1, bias=True), alpha=1 / 6)
    y = g.node("GlobalAveragePool", g.conv(g.node("Mul", y, s), BLOCK, channels, 1, 1))
    network = assert_like_onnxruntime(g.model(y), tmp_path, exact=False)
    if channels % BLOCK == 0:
        # Where the image is one pixel, blocks are where they would be anyway, but for few channels.
        assert reorders(network) <= 2


@pytest.mark.parametrize(
    "shape",
    [(1, 12, 6, 6), (1, 12, 1, 1), (1, 1, 6, 6), (1, 1, 1, 1), (12, 1, 1), (6,), (6, 1), ()],
    ids=str,
)
@pytest.mark.parametrize("constant", [True, False])
def test_broadcasts_to_blocks(tmp_path: Path, shape: tuple[int, ...], constant: bool) -> None:
    g = Graph(x=(1, 8, 6, 6), **({} if constant else {"s": shape}))
    y = g.node("Neg", g.conv("x", 12, 8, 1, 1))
    s = g.integers(*shape) if constant else "s"
    y = g.node("Sub", g.node("Mul", s, y), s)
    assert_like_onnxruntime(g.model(g.conv(y, 5, 12, 1, 1)), tmp_path)


def test_one_channel_is_broadcast_to_blocks(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 6, 6))
    mask, y = (g.node("Neg", g.conv("x", c, 8, 1, 1)) for c in (1, 12))
    model = g.model(g.node("Mul", mask, y), g.node("Mul", y, mask))
    assert_like_onnxruntime(model, tmp_path)


def test_a_broadcast_of_pixels_in_blocks(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 6, 6), z=(1, 12, 6, 6))
    s = g.node("Neg", g.conv(g.node("GlobalMaxPool", "x"), 12, 8, 1, 1))
    assert_like_onnxruntime(g.model(g.node("Mul", s, "z"), g.node("Add", "z", s)), tmp_path)


@pytest.mark.parametrize("channels", [2 * BLOCK, 12])
@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 3]}),
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ("AveragePool", {"kernel_shape": [2, 4], "strides": [2, 1], "pads": [0, 1, 1, 2]}),
        ("AveragePool", {"kernel_shape": [2, 2], "pads": [1] * 4, "count_include_pad": 1}),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("GlobalAveragePool", {}),
        ("GlobalMaxPool", {}),
        ("LRN", {"size": 5, "alpha": 0.5}),
        ("Softmax", {"axis": 1}),
        ("Softmax", {"axis": 3}),
        ("InstanceNormalization", {}),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(v),
)
def test_operators_behind_a_convolution(
    tmp_path: Path, kind: str, attributes: dict[str, Any], channels: int
) -> None:
    g = Graph(x=(1, 4, 8, 8))
    more = [g.integers(channels), g.integers(channels)] if kind.startswith("Inst") else []
    y = g.node(kind, g.conv("x", channels, 4, 1, 1), *more, **attributes)
    y = g.conv(y, 5, channels, 1, 1)
    assert_like_onnxruntime(g.model(y), tmp_path, exact=kind == "MaxPool")


@pytest.mark.parametrize("channels", [2 * BLOCK, 12])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resizes_behind_a_convolution(tmp_path: Path, mode: str, channels: int) -> None:
    g = Graph(x=(1, 4, 4, 5))
    transform = "asymmetric" if mode == "nearest" else "half_pixel"
    y = g.node(
        "Resize",
        g.conv("x", channels, 4, 1, 1),
        "",
        g.constant([1, 1, 2, 3]),
        mode=mode,
        coordinate_transformation_mode=transform,
        **({"nearest_mode": "floor"} if mode == "nearest" else {}),
    )
    network = assert_like_onnxruntime(g.model(g.conv(y, 5, channels, 1, 1)), tmp_path, exact=False)
    assert [c.in_height for c, _ in convolutions(network)] == [4, 8]


@pytest.mark.parametrize("channels", [16, 12])
def test_shuffles_and_slices_of_channels(tmp_path: Path, channels: int) -> None:
    g = Graph(x=(1, 4, 4, 5))
    y = g.conv("x", channels, 4, 1, 1)
    y = g.node("Reshape", y, g.constant([1, 2, channels // 2, 4, 5], dtype=np.int64))
    y = g.node("Transpose", y, perm=[0, 2, 1, 3, 4])
    y = g.node("Reshape", y, g.constant([1, channels, 4, 5], dtype=np.int64))
    a, b = g.node("Split", y, outputs=2, axis=1)
    y = g.node("Concat", g.conv(a, channels // 2, channels // 2, 1, 1), b, axis=1)
    start, end, axis = (g.constant([v], dtype=np.int64) for v in (1, channels - 1, 1))
    y = g.node("Slice", y, start, end, axis)
    assert_like_onnxruntime(g.model(g.node("Relu", y)), tmp_path)


def test_pads_behind_a_convolution(tmp_path: Path) -> None:
    g = Graph(x=(1, 4, 4, 5))
    pads = g.constant([0, 0, 1, 2, 0, 0, 3, 1], dtype=np.int64)
    y = g.node("Pad", g.conv("x", 16, 4, 1, 1), pads, g.constant(2))
    assert_like_onnxruntime(g.model(g.conv(y, 8, 16, 3, 3)), tmp_path)


def test_batches(tmp_path: Path) -> None:
    g = Graph(x=(3, 4, 5, 6), r=(3, 12, 5, 6), s=(1, 12, 1, 1))
    y = g.node("Relu", g.node("Add", g.conv("x", 12, 4, 3, 3, pads=[1] * 4, bias=True), "r"))
    y = g.node("Mul", y, "s")
    y = g.node("Concat", y, g.conv(y, 8, 12, 1, 1), axis=1)
    y = g.node("Gemm", g.node("Flatten", y), g.integers(600, 10), g.integers(10))
    assert_like_onnxruntime(g.model(y), tmp_path)


def test_small_and_large_weights_are_those_of_the_model(tmp_path: Path) -> None:
    """A float's bits are not rounded on the way through the passes."""
    rng = np.random.default_rng(0)
    g = Graph(x=(1, 4, 5, 6))
    weight = rng.standard_normal((8, 4, 1, 1)).astype(np.float32)
    model = g.model(g.node("Conv", "x", g.constant(weight)))
    network = compiled(model, tmp_path)
    x = np.zeros((1, 4, 5, 6), np.float32)
    for channel in range(4):
        x[...] = 0
        x[:, channel] = 1
        expected = np.broadcast_to(weight[:, channel].reshape(1, 8, 1, 1), (1, 8, 5, 6))
        np.testing.assert_array_equal(network.run(x), expected)


def test_other_data_gives_other_results(tmp_path: Path) -> None:
    g = Graph(x=(1, 4, 5, 6))
    model = g.model(g.conv("x", 8, 4, 3, 3))
    network = compiled(model, tmp_path)
    for seed in (1, 2, 1):
        inputs = random_inputs(network.manifest.inputs, seed)
        assert_equal(network.run(*inputs), by_onnxruntime(model, inputs))
