"""Quantised networks: whole numbers from the first quantisation to the last, as ONNX Runtime's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_models import assert_equal, compiled, saved
from quantized_models import MODELS, OPERATORS, QDQ, Quantized, by_onnxruntime

import tvm_directconv as dc
from tvm_directconv.deploy.emulated import emulated
from tvm_directconv.errors import LibraryError, ModelError
from tvm_directconv.quantization import Quantization

SHAPE = (1, 3, 23, 19)


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


# ONNX Runtime computes signed numbers between quantisations as floats on x86.
FORMS = [(QDQ, np.uint8), (OPERATORS, np.int8)]


@pytest.mark.parametrize(("form", "dtype"), FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_all_numbers_are_those_of_onnxruntime(
    name: str, form: str, dtype: type, tmp_path: Path
) -> None:
    g = Quantized(form, dtype, *SHAPE)
    model = g.made(*MODELS[name](g))
    network = compiled(model, tmp_path)
    assert_equal(network.run(image()), by_onnxruntime(model, x=image()))
    assert not network.manifest.unscheduled
    layers = [layer.workload for layer in network.manifest.layers if layer.workload]
    assert len(layers) == sum(node.op_type in CONVOLUTIONS for node in model.graph.node)
    assert all(layer.startswith(np.dtype(dtype).name) for layer in layers)


CONVOLUTIONS = ("Conv", "QLinearConv", "Gemm", "QGemm")


def as_computed(
    model: onnx.ModelProto, device: str, folder: Path, threads: int = 1
) -> tuple[np.ndarray, ...]:
    """Return the outputs of a library for a device, which is emulated if it is another one."""
    library = folder / "network.so"
    manifest = dc.compile_network(
        saved(model, folder), library, device, threads=threads, check=False
    )
    shapes = [port.shape for port in manifest.outputs]
    types = [port.dtype for port in manifest.outputs]
    outputs, _, _ = emulated(
        library,
        manifest,
        "main",
        [image()],
        shapes,
        output_types=types,
        guard="end",
        scratch_bytes=manifest.arena_bytes,
    )
    return tuple(outputs)


# Products in words of four or eight, in 16 and in 32 bits; with and without fused multiply-adds.
ELSEWHERE = [
    ("x86-64-v2", "residual", np.uint8, QDQ),
    ("haswell", "inception", np.uint8, QDQ),
    ("cortex-a53", "residual", np.int8, OPERATORS),
    ("cortex-a72", "squeeze", np.uint8, QDQ),
    ("cortex-a76", "inception", np.int8, OPERATORS),
    ("neoverse-n2", "residual", np.uint8, QDQ),
    ("armv7", "narrow", np.uint8, QDQ),
    ("armv7", "inception", np.uint8, QDQ),
    ("rv64gcv", "moved", np.uint8, QDQ),
]


@pytest.mark.parametrize(("device", "name", "dtype", "form"), ELSEWHERE)
def test_bits_are_the_same_on_all_processors(
    device: str, name: str, dtype: type, form: str, tmp_path: Path
) -> None:
    g = Quantized(form, dtype, *SHAPE)
    model = g.made(*MODELS[name](g))
    threads = 2 if device in ("haswell", "cortex-a72") else 1
    assert_equal(as_computed(model, device, tmp_path, threads), by_onnxruntime(model, x=image()))


def between(g: Quantized, *weight: int, bias: str = "") -> str:
    """Return a convolution of the image, in floats between quantisations."""
    kernel = g.node("DequantizeLinear", *g.weight(*weight), axis=0)
    return str(g.node("Conv", g.real(g.image()), kernel, *filter(None, [bias])))


def test_what_is_no_number_becomes_the_least(tmp_path: Path) -> None:
    g = Quantized(QDQ, np.uint8, *SHAPE)
    roots = g.quantized(g.node("Sqrt", between(g, 16, 3, 3, 3)))
    table = g.quantized(g.node("Sqrt", g.real(g.conv(g.image(), 8, 3, 3, 3))))
    model = g.made(roots, table)
    expected = by_onnxruntime(model, x=image())
    assert all((array == 0).mean() > 0.3 for array in expected)
    assert_equal(compiled(model, tmp_path).run(image()), expected)


def test_biases_of_floats_are_counted_in_units_of_sums(tmp_path: Path) -> None:
    g = Quantized(QDQ, np.uint8, *SHAPE)
    y = g.quantized(between(g, 16, 3, 3, 3, bias=g.constant(g.rng.normal(0, 0.3, 16))))
    model = g.made(y)
    network = compiled(model, tmp_path, check=True)
    assert sum("uint8" in layer.workload for layer in network.manifest.layers) == 1
    difference = network.run(image()).astype(int) - by_onnxruntime(model, x=image())[0]
    assert np.abs(difference).max() <= 1 and np.count_nonzero(difference) < 0.01 * difference.size


def requantised(g: Quantized) -> onnx.ModelProto:
    """Return a model in which a quantisation follows another one between two convolutions."""
    twice = g.quantized(g.real(g.conv(g.image(), 16, 3, 3, 3)), 2)
    return g.made(g.conv(twice, 8, 16, 1, 1))


def test_either_mode_of_onnxruntime_may_be_right(tmp_path: Path) -> None:
    model = requantised(Quantized(QDQ, np.uint8, *SHAPE))
    (plain,), (fast,) = (by_onnxruntime(model, image(), optimized) for optimized in (False, True))
    assert np.count_nonzero(plain != fast) > plain.size / 10
    check = dc.compile_network(saved(model, tmp_path), tmp_path / "a.so").check
    assert check.by.endswith("without optimizations") and "itself differs from" in check.note
    assert_equal(dc.load_network(tmp_path / "a.so").run(image()), [plain])


@pytest.mark.parametrize("made", [lambda g: g.made(*MODELS["residual"](g)), requantised])
def test_a_wrong_zero_point_is_noticed(
    made: Callable[[Quantized], onnx.ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(made(Quantized(QDQ, np.uint8, *SHAPE)), tmp_path)
    right = Quantization.output_range

    def wrong(self: Quantization, *arguments: Any) -> np.ndarray:
        return right(replace(self, output_zero_point=self.output_zero_point + 1), *arguments)

    monkeypatch.setattr(Quantization, "output_range", wrong)
    with pytest.raises(LibraryError, match="the library is wrong"):
        dc.compile_network(path, tmp_path / "wrong.so")


def test_weights_that_an_instruction_does_not_multiply_are_refused(tmp_path: Path) -> None:
    g = Quantized(QDQ, np.uint8, *SHAPE)
    weight = g.constant(np.full((16, 3, 3, 3), -128), dtype=np.int8)
    kernel = g.node("DequantizeLinear", weight, g.constant(0.002), g.constant(0, dtype=np.int8))
    model = g.made(g.quantized(g.node("Conv", g.real(g.image()), kernel), 3))
    assert_equal(compiled(model, tmp_path).run(image()), by_onnxruntime(model, x=image()))
    with pytest.raises(ModelError, match=r"conv3 cannot .* cortex-a72: the weight has -128"):
        dc.compile_network(saved(model, tmp_path), tmp_path / "a.so", "cortex-a72")


def test_weights_with_a_zero_point_are_whole_numbers_if_they_fit(tmp_path: Path) -> None:
    for zero, types in ((128, ["uint8"]), (117, [""])):
        g = Quantized(QDQ, np.uint8, *SHAPE)
        weight = g.constant(g.rng.integers(0, 255, (16, 3, 3, 3), endpoint=True), dtype=np.uint8)
        point = g.constant(zero, dtype=np.uint8)
        kernel = g.node("DequantizeLinear", weight, g.constant(0.002), point)
        model = g.made(g.quantized(g.node("Conv", g.real(g.image()), kernel)))
        network = compiled(model, tmp_path)
        assert_equal(network.run(image()), by_onnxruntime(model, x=image()))
        layers = [layer.workload for layer in network.manifest.layers if layer.workload]
        assert [layer.partition("_")[0] if "_" in layer else "" for layer in layers] == types


def floats(g: Quantized) -> list[str]:
    """Return floats that are computed of quantised tensors in many ways."""
    x = g.real(g.conv(g.image(), 16, 3, 3, 3))
    wide = g.node("Resize", x, "", g.constant([1, 1, 1.3, 1.7]), mode="linear")
    cubic = g.node("Resize", x, "", g.constant([1, 1, 1.5, 1]), mode="cubic")
    swish = g.node("Mul", wide, g.node("Sigmoid", wide))
    rows = g.node("Transpose", x, perm=[0, 1, 3, 2])
    product = g.node("MatMul", x, rows)
    weights = [g.constant(g.rng.normal(size=17)) for _ in range(2)]
    normal = g.node("LayerNormalization", x, *weights)
    channels = [g.constant(g.rng.normal(size=16)) for _ in range(2)]
    instance = g.node("InstanceNormalization", x, *channels)
    mean = g.node("ReduceMean", x, axes=[1, 2, 3])
    return [swish, cubic, g.node("Softmax", product), normal, instance, mean]


@pytest.mark.parametrize("device", ["x86-64-v2", "armv7"])
def test_floats_between_quantisations_have_the_same_bits(device: str, tmp_path: Path) -> None:
    g = Quantized(QDQ, np.uint8, *SHAPE)
    outputs = floats(g)
    model = g.made(*outputs, g.quantized(outputs[0]))
    network = compiled(model, tmp_path)
    assert_equal(as_computed(model, device, tmp_path), network.run(image()))
