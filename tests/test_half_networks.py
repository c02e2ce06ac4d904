"""Networks of float32 in numbers of two bytes: rounded where they are stored, and only there."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Command
from onnx import TensorProto, helper, numpy_helper
from onnx_models import Graph, by_onnxruntime, compiled, random_inputs, saved

import tvm_directconv as dc
from tvm_directconv.errors import ArgumentError, DeviceError, ModelError
from tvm_directconv.network.compile import import_model
from tvm_directconv.network.pipeline import planned
from tvm_directconv.workload import ConvWorkload

TYPES = {"bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16}
NAMES = {"bf16": "bfloat16", "fp16": "float16acc32"}


def network(stored: int | None = None) -> onnx.ModelProto:
    """Make a network whose sums float32 holds, with what is rounded to a type written into it."""
    g = Graph(x=(1, 3, 12, 12))

    def rounded(x: str) -> str:
        if stored is None:
            return x
        return str(g.node("Cast", g.node("Cast", x, to=stored), to=TensorProto.FLOAT))

    def numbers(*values: int) -> str:
        return g.constant(values, dtype=np.int64)

    normed = g.batch_norm(g.conv("x", 24, 3, 3, 3, pads=[1] * 4), 24)
    first = rounded(g.node("Relu", normed))
    deep = rounded(g.conv(first, 24, 1, 3, 3, pads=[1] * 4, group=24, most=1))
    joined = rounded(g.node("Add", g.conv(first, 24, 24, 1, 1, bias=True, most=1), deep))
    small = g.node("MaxPool", joined, kernel_shape=[2, 2], strides=[2, 2])
    mean = g.node("AveragePool", g.node("Neg", joined), kernel_shape=[2, 2], strides=[2, 2])
    both = g.node("Concat", small, rounded(mean), axis=1)
    # One kernel, whose intermediate results are not stored.
    scaled = rounded(g.node("Add", g.node("Mul", both, g.constant(0.375)), g.constant(1.25)))
    some = g.node("Slice", scaled, numbers(4), numbers(44), numbers(1))
    last = rounded(g.conv(some, 16, 40, 1, 1, most=1))
    # No convolution reads what follows.
    largest = g.node("ReduceMax", last, axes=[1], keepdims=1)
    return g.model(g.node("Add", last, largest), small)


def workloads_in(manifest: Any) -> list[str]:
    """Return the descriptors of a network's convolutions."""
    return [layer.workload for layer in manifest.layers if layer.workload]


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_stored_is_rounded_once(tmp_path: Path, dtype: str) -> None:
    single = compiled(network(), tmp_path).manifest
    found = compiled(network(), tmp_path, dtype=dtype)
    inputs = random_inputs(found.manifest.inputs)
    expected = by_onnxruntime(network(TYPES[dtype]), inputs)
    assert any(
        (one != other).any()
        for one, other in zip(expected, by_onnxruntime(network(), inputs), strict=True)
    )
    for one, other in zip(found.run(*inputs), expected, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)

    m = found.manifest
    assert all(text.startswith(f"{NAMES[dtype]}_") for text in workloads_in(m))
    assert m.arena_bytes == single.arena_bytes // 2
    assert m.weight_bytes < 0.6 * single.weight_bytes
    assert m.reorders == single.reorders
    # Numbers are converted by kernels of their own at the input only.
    assert len(m.layers) == len(single.layers) + 1


def test_sums_are_in_float16_where_that_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="fp16acc16: expected bf16 or fp16 or fp32"):
        compiled(network(), tmp_path, device="cortex-a72", dtype="fp16acc16")
    m = dc.compile_network(
        saved(network(), tmp_path), tmp_path / "n.so", "cortex-a76", dtype="fp16acc16", check=True
    )
    assert all(text.startswith("float16_") for text in workloads_in(m))
    assert m.check.by and m.check.error > 1e-5


@pytest.mark.parametrize(("device", "dtype"), [("cortex-a76", "fp16"), ("neoverse-n2", "bf16")])
def test_boards(tmp_path: Path, device: str, dtype: str) -> None:
    m = dc.compile_network(
        saved(network(), tmp_path), tmp_path / "n.so", device, dtype=dtype, check=True
    )
    assert m.check.by and m.check.error > 1e-5


def test_c_folders_have_the_same_kernels(tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    m = dc.compile_network(path, tmp_path / "net", emit="c", dtype="bf16", check=False)
    header = (tmp_path / "net/net.h").read_text()
    assert f"{m.arena_bytes}" in header
    library = compiled(network(), tmp_path, dtype="bf16").manifest
    assert [layer.kernel for layer in m.layers] == [layer.kernel for layer in library.layers]
    assert m.weight_bytes == library.weight_bytes


# --- Layers that are kept -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["conv0", "0", "{path}:0", "ic3ih12oc24oh12kh3ph1", "bfloat16_ic3ih12oc24oh12kh3ph1", 0]
)
def test_a_layer_that_is_kept(tmp_path: Path, name: str | int) -> None:
    path = saved(network(), tmp_path)
    kept = name.format(path=path) if isinstance(name, str) else name
    m = dc.compile_network(path, tmp_path / "n.so", dtype="bf16", keep=[kept], check=False)
    types = [ConvWorkload.parse(text).dtype for text in workloads_in(m)]
    assert types == ["float32", "bfloat16", "bfloat16", "bfloat16"]


def test_all_layers_kept_are_float32(tmp_path: Path) -> None:
    kept = compiled(network(), tmp_path, dtype="fp16", keep=range(4))
    inputs = random_inputs(kept.manifest.inputs)
    for one, other in zip(kept.run(*inputs), by_onnxruntime(network(), inputs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_dense_layers_have_names_too(tmp_path: Path) -> None:
    g = Graph(x=(2, 8))
    y = g.node("Gemm", g.node("Gemm", "x", g.integers(8, 16)), g.integers(16, 4))
    m = compiled(g.model(y), tmp_path, dtype="bf16", keep=["gemm1"]).manifest
    assert [ConvWorkload.parse(text).dtype for text in workloads_in(m)] == ["bfloat16", "float32"]


def test_what_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"no convolution 'conv_0'.*conv0.*did you mean 'conv0'"
    ):
        compiled(network(), tmp_path, dtype="bf16", keep=["conv_0"])
    with pytest.raises(ArgumentError, match="conv0 is to be kept in float32, as everything is"):
        compiled(network(), tmp_path, keep=["conv0"])
    with pytest.raises(ArgumentError, match="keep is 'conv0': expected a list"):
        compiled(network(), tmp_path, dtype="bf16", keep="conv0")


# --- What cannot be done ------------------------------------------------------------------------


def test_weights_that_float16_has_no_numbers_for(tmp_path: Path) -> None:
    g = Graph(x=(1, 4, 5, 5))
    weight = np.ones((4, 4, 1, 1))
    weight[2, 1] = -1e5
    model = g.model(g.node("Conv", "x", g.constant(weight)))
    with pytest.raises(ModelError, match=r"weight of conv0 has -100000, .*float16: .*--keep"):
        compiled(model, tmp_path, dtype="fp16")
    compiled(model, tmp_path, dtype="fp16", keep=["conv0"])
    compiled(model, tmp_path, dtype="bf16")


def test_dtypes_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"dtype is 'bf_16': .*did you mean 'bf16'"):
        compiled(network(), tmp_path, dtype="bf_16")
    with pytest.raises(DeviceError, match=r"'x86-64-v2' has no instruction .*expected fp32"):
        compiled(network(), tmp_path, device="x86-64-v2", dtype="bf16")


def test_instructions_that_flush_are_not_taken_where_denormals_are_kept(tmp_path: Path) -> None:
    module, on = import_model(saved(network(), tmp_path)), dc.device("znver4")

    def depths(denormals: str) -> set[int]:
        program = planned(module, on, denormals=denormals, dtype="bf16", blocking="model")
        weights = [array.ndim for array in program.weights if array.dtype == "bfloat16"]
        return set(weights)

    assert max(depths("flush")) == 7  # Words of two channels.
    assert depths("keep") == {6}


# --- Models of other types ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_models_are_computed_as_they_are_stored(tmp_path: Path, dtype: str) -> None:
    model = network()
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(
                helper.tensor_dtype_to_np_dtype(TYPES[dtype])
            )
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = TYPES[dtype]
    del model.graph.value_info[:]
    found = compiled(model, tmp_path)
    assert all(text.startswith(f"{NAMES[dtype]}_") for text in workloads_in(found.manifest))
    assert {port.dtype for port in found.manifest.outputs} == {NAMES[dtype].removesuffix("acc32")}
    (x,) = random_inputs(found.manifest.inputs)
    expected = by_onnxruntime(network(TYPES[dtype]), [x.astype(np.float32)])
    for one, other in zip(found.run(x), expected, strict=True):
        np.testing.assert_array_equal(one, other.astype(one.dtype))
    single = compiled(model, tmp_path, dtype="fp32").manifest
    assert not any("float16" in text for text in workloads_in(single))


# --- The command line ---------------------------------------------------------------------------


def test_compile_takes_a_dtype(run: Command, tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    words = ["compile", str(path), "-o", str(tmp_path / "n.so"), "--no-check"]
    assert run(*words, "--dtype", "bf16", "--keep", "conv0", "--keep", "1")[0] == 0
    types = [ConvWorkload.parse(t).dtype for t in workloads_in(dc.load_network(words[3]).manifest)]
    assert types == ["float32", "float32", "bfloat16", "bfloat16"]
    status, _, said = run(*words, "--dtype", "bf16", "--keep", "conv99")
    assert status == 2 and "no convolution 'conv99'" in said
    status, _, said = run(
        "compile", "ic8oc8ih4kh1", "-o", str(tmp_path / "c.so"), "--dtype", "bf16"
    )
    assert status == 2 and "--dtype is given: expected a model" in said
