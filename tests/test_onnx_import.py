"""ONNX files: what is read of them, and what is said of those that cannot be."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
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

from tvm_directconv.errors import ModelError
from tvm_directconv.network.compile import network_workloads
from tvm_directconv.network.onnx_import import import_onnx
from tvm_directconv.network.passes.simplify import Simplify


def small() -> Graph:
    return Graph(x=(1, 3, 5, 6))


def error(path: Path, shapes: Any = None) -> str:
    with pytest.raises(ModelError) as caught:
        import_onnx(path, shapes)
    return str(caught.value)


# --- Files ------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    said = error(tmp_path / "none.onnx")
    assert f"{str(tmp_path / 'none.onnx')!r} does not exist" in said and "ONNX file" in said
    assert "is no file" in error(tmp_path)


@pytest.mark.parametrize("content", [b"", b"nothing", b"\xff" * 100, b"\x00" * 64, b"{}"], ids=repr)
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    said = error(path)
    assert repr(str(path)) in said and "ONNX file" in said


def test_a_truncated_file(tmp_path: Path) -> None:
    g = small()
    path = saved(g.model(g.node("Relu", g.conv("x", 8, 3, 3, 3, bias=True))), tmp_path)
    content = path.read_bytes()
    for length in range(1, len(content), 7):
        path.write_bytes(content[:length])
        said = error(path)
        assert repr(str(path)) in said


def test_a_model_that_is_not_valid(tmp_path: Path) -> None:
    g = small()
    model = g.model(g.node("Relu", "x"))
    model.graph.node[0].input[0] = "nowhere"
    said = error(saved(model, tmp_path))
    assert "not valid" in said and "nowhere" in said


def test_names_that_are_no_text(tmp_path: Path) -> None:
    g = small()
    path = saved(g.model(g.node("Relu", "x")), tmp_path)
    path.write_bytes(path.read_bytes().replace(b"Relu", b"R\xeelu"))
    assert "not valid" in error(path)
    path.write_bytes(path.read_bytes().replace(b"R\xeelu", b"R\x1b\x0au"))
    assert "not valid" in error(path) and error(path).isprintable()


def test_nodes_that_are_not_as_onnx_defines_them(tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 8, 8))
    g.conv("x", 4, 3, 3, 3)
    model = g.model("t0")
    model.graph.initializer[0].dims[:] = [108]
    assert "Conv (conv0): " in error(saved(model, tmp_path))
    g = Graph(x=(1, 3, 8, 8))
    pads = g.constant([0, 0, 1, 1] * 2, dtype=np.int64)
    model = g.model(g.node("Pad", "x", pads, mode="reflect"))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([1, 1]), pads))
    assert "Pad (pad0): " in error(saved(model, tmp_path))


def test_damaged_constants(tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 8, 8))
    model = g.model(g.conv("x", 4, 3, 1, 1))
    model.graph.initializer[0].raw_data += b"more"
    said = error(saved(model, tmp_path))
    assert "'c0'" in said
    model.graph.initializer[0].raw_data = b"\0" * 48
    model.graph.initializer[0].data_type = 65
    assert error(saved(model, tmp_path))


@pytest.mark.parametrize("size", [2**31, 2**40, 2**62])
def test_what_nobody_can_index(tmp_path: Path, size: int) -> None:
    g = Graph(x=(1, size))
    assert f"input 'x' has {size} elements: expected" in error(
        saved(g.model(g.node("Relu", "x")), tmp_path)
    )
    g = Graph(x=(1, 1))
    model = g.model(g.node("Expand", "x", g.constant([1, size], dtype=np.int64)))
    assert f"Expand (expand0): its result has {size} elements" in error(saved(model, tmp_path))


def test_what_nobody_computes(tmp_path: Path) -> None:
    g = small()
    model = g.model(g.node("Relu", "x"))
    node = helper.make_node("Half", ["x"], ["y"], domain="mine")
    half = helper.make_function("mine", "Half", ["a"], ["b"], [], [helper.make_opsetid("", 17)])
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.append(node)
    model.functions.append(half)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.output.append(helper.make_tensor_value_info("y", 1, (1, 3, 8, 8)))
    assert "computes 'b'" in error(saved(model, tmp_path))


@pytest.mark.parametrize("read", [0, 1])
def test_outputs_that_nobody_reads(tmp_path: Path, read: int) -> None:
    g = Graph(x=(1, 3, 4, 5))
    found = g.node("TopK", "x", g.constant([2], dtype=np.int64), outputs=2, axis=-1)
    assert_like_onnxruntime(g.model(found[read]), tmp_path)


def test_a_model_without_operators(tmp_path: Path) -> None:
    model = small().model("x")
    assert "has no operators" in error(saved(model, tmp_path))


def external(folder: Path) -> Path:
    g = Graph(x=(1, 8, 5, 6))
    model = g.model(g.conv("x", 32, 8, 3, 3))
    path = folder / "external.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (folder / "w.bin").exists()
    return path


def test_weights_in_a_file_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path)
    (folder := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(folder)
    module = import_onnx(path)
    assert calls(module) == {"nn.conv2d": 1}
    monkeypatch.chdir(tmp_path)
    assert calls(import_onnx(path.name)) == {"nn.conv2d": 1}


def test_missing_weights(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "w.bin").unlink()
    said = error(path)
    assert "w.bin" in said and "copy it to where the model is" in said


def test_truncated_weights(tmp_path: Path) -> None:
    path = external(tmp_path)
    content = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(content[: len(content) // 2])
    assert str(path) in error(path)


# --- Sizes of inputs --------------------------------------------------------------------------


def open_model(*sizes: Any) -> onnx.ModelProto:
    g = Graph(image=sizes, other=(1, 8, 1, 1))
    y = g.conv("image", 8, 3, 3, 3, pads=[1] * 4)
    return g.model(g.node("Add", y, "other"))


def test_an_input_without_a_size(tmp_path: Path) -> None:
    said = error(saved(open_model("batch", 3, None, 6), tmp_path))
    assert "'image' is batchx3x?x6" in said and "--input-shape image:1,3,224,6" in said
    assert "other" not in said


def test_all_inputs_without_a_size_are_named(tmp_path: Path) -> None:
    g = Graph(a=("n", 3), b=("n", 3))
    said = error(saved(g.model(g.node("Add", "a", "b")), tmp_path))
    assert "'a' is nx3; 'b' is nx3" in said


def test_a_size_can_be_given(tmp_path: Path) -> None:
    model = open_model("batch", 3, None, 6)
    network = compiled(model, tmp_path, input_shapes={"image": (2, 3, 5, 6)})
    assert [port.shape for port in network.manifest.inputs] == [(2, 3, 5, 6), (1, 8, 1, 1)]
    assert [port.name for port in network.manifest.inputs] == ["image", "other"]
    assert network.manifest.outputs[0].shape == (2, 8, 5, 6)
    (workload,) = network_workloads(saved(model, tmp_path), input_shapes={"image": (2, 3, 5, 6)})
    assert (workload.batch, workload.in_height, workload.in_width) == (2, 5, 6)


def test_the_size_that_it_has_may_be_given(tmp_path: Path) -> None:
    path = saved(open_model(1, 3, 5, 6), tmp_path)
    assert calls(import_onnx(path, {"image": (1, 3, 5, 6)})) == calls(import_onnx(path))


@pytest.mark.parametrize(
    "wrong", [(1, 4, 5, 6), (1, 3, 5), (1, 3, 5, 6, 1), (), (0, 3, 5, 6), (-1, 3, 5, 6)], ids=str
)
def test_a_wrong_size(tmp_path: Path, wrong: tuple[int, ...]) -> None:
    said = error(saved(open_model("batch", 3, None, 6), tmp_path), {"image": wrong})
    given = "x".join(map(str, wrong)) or "a scalar"
    assert f"'image' is {given}: expected batchx3x?x6" in said


def test_the_size_of_no_input(tmp_path: Path) -> None:
    said = error(saved(open_model(1, 3, 5, 6), tmp_path), {"imgae": (1, 3, 5, 6)})
    assert "no input 'imgae'" in said and "'image', 'other'" in said


def test_an_input_of_unknown_rank(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    model = g.model(g.conv("x", 4, 8, 3, 3))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    said = error(saved(model, tmp_path))
    assert "'x' is ..." in said and "--input-shape x:1,3,224,224" in said
    said = error(saved(model, tmp_path), {"x": (1, 0, 5, 6)})
    assert "size of input 'x' is 1x0x5x6" in said
    assert_like_onnxruntime(model, tmp_path, input_shapes={"x": (1, 8, 5, 6)})


# --- Operators --------------------------------------------------------------------------------


def test_all_unsupported_operators_are_named(tmp_path: Path) -> None:
    g = small()
    y = g.node("Mystery", "x", domain="com.acme")
    y = g.node("Relu", y)
    y = g.node("Mystery", y, domain="com.acme")
    y = g.node("StringConcat", y, y)
    g.nodes[-1].ClearField("name")
    said = error(saved(g.model(y, domains=["com.acme"], opset=20), tmp_path))
    assert "com.acme.Mystery (mystery0, mystery2)" in said
    assert "StringConcat (#3)" in said
    assert "Relu" not in said


def test_operators_that_tvm_has_no_converter_for(tmp_path: Path) -> None:
    g = small()
    weight = g.constant(np.ones((4, 3, 3, 3)))
    y = g.node("DeformConv", "x", weight, weight)
    said = error(saved(g.model(y, domains=["none"], opset=19), tmp_path))
    assert "not supported: DeformConv (deformconv0)" in said or "not valid" in said


def test_statistics_of_a_batch_are_refused(tmp_path: Path) -> None:
    g = small()
    operands = [g.constant(np.ones(3)) for _ in range(4)]
    made = g.node("BatchNormalization", "x", *operands, outputs=3, training_mode=1)
    assert "BatchNormalization (batchnormalization0): it is in training mode" in error(
        saved(g.model(*made), tmp_path)
    )


def test_the_output_shape_of_transposed_convolutions_is_heeded_or_refused(tmp_path: Path) -> None:
    g = Graph(x=(1, 1, 3, 3))
    y = g.node("ConvTranspose", "x", g.integers(1, 2, 3, 3), strides=[3, 2], output_shape=[10, 8])
    model = g.model(y)
    try:
        compiled(model, tmp_path)
    except ModelError:
        return
    assert_like_onnxruntime(model, tmp_path)


# --- Arithmetic of shapes ---------------------------------------------------------------------


def test_arithmetic_of_shapes_is_computed(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    y = g.conv("x", 12, 8, 1, 1)
    shape = g.node("Shape", y)
    zero, two, three = (g.constant(v, dtype=np.int64) for v in (0, 2, 3))
    batch, rows, columns = (g.node("Gather", shape, at) for at in (zero, two, three))
    axes = g.constant([0], dtype=np.int64)
    pixels = g.node("Unsqueeze", g.node("Mul", rows, columns), axes)
    wanted = [g.node("Unsqueeze", batch, axes), g.constant([-1], dtype=np.int64), pixels]
    y = g.node("Reshape", y, g.node("Concat", *wanted, axis=0))
    model = g.model(g.node("Relu", y))
    assert calls(after(model, tmp_path, Simplify)) == {"nn.conv2d": 1, "reshape": 1, "nn.relu": 1}
    assert_like_onnxruntime(model, tmp_path)


def test_the_same_of_an_input_of_a_given_size(tmp_path: Path) -> None:
    g = Graph(x=("n", 8, "h", "w"))
    shape = g.node("Shape", "x")
    batch = g.node("Slice", shape, *(g.constant([v], dtype=np.int64) for v in (0, 1)))
    rest = g.constant([-1], dtype=np.int64)
    model = g.model(g.node("Reshape", "x", g.node("Concat", batch, rest, axis=0)))
    network = compiled(model, tmp_path, input_shapes={"x": (2, 8, 3, 4)})
    x = np.arange(192, dtype=np.float32).reshape(2, 8, 3, 4)
    np.testing.assert_array_equal(network.run(x), x.reshape(2, 96))


@pytest.mark.parametrize(
    "bounds", [{}, {"start": 1}, {"start": -2}, {"end": -1}, {"start": 1, "end": 9}], ids=str
)
def test_parts_of_shapes(tmp_path: Path, bounds: dict[str, int]) -> None:
    g = Graph(x=(2, 3, 5, 6))
    model = g.model(g.node("Relu", "x"), g.node("Shape", "x", **bounds))
    assert_like_onnxruntime(model, tmp_path)


def test_sizes_of_a_resize_that_are_computed(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    shape = g.node("Shape", "x")
    ends = (g.constant([v], dtype=np.int64) for v in (0, 2))
    channels = g.node("Slice", shape, *ends)
    sizes = g.node("Concat", channels, g.constant([10, 12], dtype=np.int64), axis=0)
    y = g.node(
        "Resize",
        "x",
        "",
        "",
        sizes,
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )
    assert_like_onnxruntime(g.model(y), tmp_path)


def test_outputs_of_which_only_the_names_are_known(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    y = g.conv("x", 4, 8, 3, 3)
    model = g.model(y, g.node("Relu", y))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.output[1].ClearField("type")
    assert_like_onnxruntime(model, tmp_path)


def test_constants_that_are_nodes(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    weight = g.node("Constant", value=numpy_helper.from_array(np.ones((4, 8, 3, 3), np.float32)))
    many = g.node("ConstantOfShape", g.constant([4, 4, 20, 20], dtype=np.int64))
    y = g.node("Conv", g.node("Conv", "x", weight), many, pads=[10] * 4)
    y = g.node("Add", y, g.node("Identity", g.node("Constant", value_float=2.0)))
    assert_like_onnxruntime(g.model(y), tmp_path)


def test_random_numbers_are_not_computed_beforehand(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    model = g.model(g.node("Add", "x", g.node("RandomUniform", shape=[2, 3])))
    with pytest.raises(ModelError, match="RandomUniform"):
        compiled(model, tmp_path)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_sums_of_many(tmp_path: Path, count: int) -> None:
    g = Graph(x=(1, 8, 5, 6), y=(1, 12, 5, 6))
    parts = ["y", *(g.conv("x", 12, 8, 1, 1) for _ in range(count - 1))]
    model = g.model(g.node("Relu", g.node("Sum", *parts)))
    assert_like_onnxruntime(model, tmp_path)
    if count > 1:
        assert calls(after(model, tmp_path))["add"] == count - 1
        assert calls(after(model, tmp_path)).keys() <= {"add", "nn.conv2d", "nn.relu"}


@pytest.mark.parametrize("kind", ["Max", "Min", "Mean"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_other_operators_of_many(tmp_path: Path, kind: str, count: int) -> None:
    g = Graph(x=(1, 3, 5, 6), y=(3, 1, 1), z=(1,))
    model = g.model(g.node("Neg", g.node(kind, *["x", "y", "z"][:count])))
    assert_like_onnxruntime(model, tmp_path, exact=kind != "Mean")


# --- Old models -------------------------------------------------------------------------------


def test_weights_among_the_inputs(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 6))
    model = g.model(g.batch_norm(g.conv("x", 12, 8, 3, 3, bias=True), 12), opset=8, ir_version=3)
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    network = compiled(model, tmp_path)
    assert [port.name for port in network.manifest.inputs] == ["x"]
    assert [layer.epilogue for layer in network.manifest.layers if layer.workload] == ["bias,none"]
    newer = g.model(g.batch_norm(g.conv("x", 12, 8, 3, 3, bias=True), 12))
    assert_like_onnxruntime(newer, tmp_path)


def old(opset: int) -> onnx.ModelProto:
    g = Graph(x=(1, 8, 6, 6))
    y = g.batch_norm(g.conv("x", 12, 8, 3, 3, bias=True, pads=[1] * 4), 12)
    y = g.node("MaxPool", g.node("Relu", y), kernel_shape=[2, 2], strides=[2, 2])
    y = g.node("Dropout", y, ratio=0.5) if opset < 12 else g.node("Dropout", y)
    y = g.node("Clip", y, min=0.0, max=6.0) if opset < 11 else g.node("Relu", y)
    y = g.node("Unsqueeze", y, axes=[0]) if opset < 13 else y
    y = g.node("Squeeze", y, axes=[0]) if opset < 13 else y
    y = g.node("Reshape", y, g.constant([1, 108], dtype=np.int64))
    y = g.node("Gemm", y, g.integers(108, 10), g.integers(10))
    return g.model(g.node("Softmax", y, axis=1), opset=opset, ir_version=3 if opset < 9 else 8)


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 15, 18, 21])
def test_opsets(tmp_path: Path, opset: int) -> None:
    model = old(opset)
    if opset < 9:
        for tensor in model.graph.initializer:
            model.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    path = saved(model, tmp_path)
    onnx.checker.check_model(str(path))
    network = compiled(model, tmp_path)
    (x,) = random_inputs(network.manifest.inputs)
    assert_equal(network.run(x), by_onnxruntime(model, [x]), exact=False)


def test_strange_names(tmp_path: Path) -> None:
    names = ['in/put:0 "quoted"', "back\\slash", "per%cent", "ümlaut", "a b"]
    g = Graph(**{name: (2, 3) for name in names})
    y = g.node("Sum", *names)
    model = g.model(y)
    model.graph.node[-1].output[0] = model.graph.output[0].name = 'out"\\'
    network = assert_like_onnxruntime(model, tmp_path)
    assert [port.name for port in network.manifest.inputs] == names
    assert network.manifest.outputs[0].name == 'out"\\'
    inputs = {name: np.full((2, 3), 2.0, np.float32) for name in names}
    np.testing.assert_array_equal(network.run(**inputs), np.full((2, 3), 10))


def test_inputs_of_other_types(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    for name, kind in {"i": 7, "b": 9, "u": 2}.items():
        g.inputs[name] = helper.make_tensor_value_info(name, kind, (2, 3))
    total = g.node("Add", g.node("Cast", "i", to=1), g.node("Cast", "u", to=1))
    model = g.model(g.node("Where", "b", total, "x"), g.node("Add", "i", "i"))
    network = compiled(model, tmp_path)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 9, (2, 3)).astype(np.float32)
    i = rng.integers(0, 9, (2, 3))
    b = rng.integers(0, 1, (2, 3), endpoint=True).astype(bool)
    u = rng.integers(0, 9, (2, 3)).astype(np.uint8)
    found, twice = network.run(x, i, b, u)
    np.testing.assert_array_equal(found, np.where(b, i + u, x))
    np.testing.assert_array_equal(twice, 2 * i)
