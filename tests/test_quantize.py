"""Quantised models of float ones: scales, samples, the report, and what is refused."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Command
from onnx import TensorProto, helper, numpy_helper
from onnx_models import Graph, by_onnxruntime, saved
from PIL import Image

import tvm_directconv as dc
from tvm_directconv.emit.program import Port
from tvm_directconv.errors import ArgumentError, ModelError
from tvm_directconv.network.noise import QuantizationReport
from tvm_directconv.network.samples import Samples

Arrays = dict[str, np.ndarray]


def network() -> onnx.ModelProto:
    """Make a network of a convolution, a residual and a dense layer."""
    g = Graph(x=(1, 4, 6, 7))
    y = g.node("Relu", g.conv("x", 8, 4, 3, 3, bias=True, pads=[1] * 4))
    y = g.node("Add", y, g.conv(y, 8, 8, 1, 1))
    y = g.node("Flatten", g.node("GlobalAveragePool", y))
    return g.model(g.node("Gemm", y, g.integers(5, 8), g.integers(5), transB=1))


def draws(model: onnx.ModelProto, count: int = 4, seed: int = 3) -> list[Arrays]:
    """Return random samples."""
    rng = np.random.default_rng(seed)
    return [
        {
            value.name: rng.standard_normal(
                [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            ).astype(np.float32)
            for value in model.graph.input
        }
        for _ in range(count)
    ]


class Made:
    """A model that was quantised."""

    def __init__(self, model: onnx.ModelProto, folder: Path, samples: Any, **options: Any) -> None:
        path = saved(model, folder)
        self.path = path.with_suffix(".int8.onnx")
        self.report: QuantizationReport = dc.quantize_network(path, self.path, samples, **options)
        self.model = onnx.load(str(self.path))
        onnx.checker.check_model(self.model, full_check=True)
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}
        self.makers = {name: node for node in self.model.graph.node for name in node.output}

    @property
    def kinds(self) -> list[str]:
        """Operators in the order of the model, without those that quantise."""
        return [n.op_type for n in self.model.graph.node if "Linear" not in n.op_type]

    def node(self, name: str) -> onnx.NodeProto:
        """Return a node."""
        return next(node for node in self.model.graph.node if node.name == name)

    def scale(self, tensor: str) -> tuple[np.ndarray, np.ndarray]:
        """Return scale and zero point of a tensor, of which this is the name as floats again."""
        _, scale, zero = self.makers[tensor].input
        return self.constants[scale], self.constants[zero]

    def weight(self, tensor: str) -> np.ndarray:
        """Return a constant as the integers stand for it."""
        node = self.makers[tensor]
        scale, zero = self.scale(tensor)
        whole = self.constants[node.input[0]]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if scale.ndim:
            scale = scale.reshape([-1 if at == axis else 1 for at in range(whole.ndim)])
        assert not zero.any()
        return whole * scale

    def __call__(self, feeds: Arrays, *tensors: str) -> list[np.ndarray]:
        """Run it, and return tensors."""
        return run(self.model, feeds, *tensors)


def run(model: onnx.ModelProto, feeds: Arrays, *tensors: str) -> list[np.ndarray]:
    """Return outputs of ONNX Runtime, or these tensors."""
    more = onnx.ModelProto()
    more.CopyFrom(model)
    if tensors:
        del more.graph.output[:]
        more.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return by_onnxruntime(more, [feeds[value.name] for value in model.graph.input])


def decibels(exact: list[np.ndarray], found: list[np.ndarray]) -> float:
    signal, other = np.concatenate(exact).astype(float), np.concatenate(found).astype(float)
    return float(10 * np.log10((signal**2).sum() / ((signal - other) ** 2).sum()))


# --- Scales -----------------------------------------------------------------------------------


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("types", ["u8s8", "s8s8"])
def test_scales_are_those_of_the_samples(tmp_path: Path, types: str, per_channel: bool) -> None:
    model = network()
    samples = draws(model)
    made = Made(model, tmp_path, samples, types=types, per_channel=per_channel)
    assert made.kinds == ["Conv", "Conv", "Add", "GlobalAveragePool", "Flatten", "Gemm"]
    first = -128 if types == "s8s8" else 0
    # By the input of the node that reads it: the input, a convolution's with its ReLU, and another.
    for node, tensor in (("conv0", "x"), ("conv2", "t1"), ("globalaveragepool4", "t3")):
        arrays = [s["x"] if tensor == "x" else run(model, s, tensor)[0] for s in samples]
        low = min(0.0, *(array.min() for array in arrays))
        high = max(0.0, *(array.max() for array in arrays))
        scale, zero = made.scale(made.node(node).input[0])
        assert scale.dtype == np.float32
        np.testing.assert_allclose(scale, (high - low) / 255, rtol=1e-6)
        assert zero.dtype == (np.int8 if types == "s8s8" else np.uint8)
        assert zero == np.rint(first - low / ((high - low) / 255))
    for node in ("conv0", "conv2", "gemm6"):
        weight = made.node(node).input[1]
        name = weight.removesuffix("_DequantizeLinear_Output")
        plain = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)
        most = np.abs(plain)
        most = most.reshape(len(plain), -1).max(1) if per_channel else most.max()
        np.testing.assert_allclose(made.scale(weight)[0], most / 127, rtol=1e-6)
        np.testing.assert_allclose(made.weight(weight), plain, atol=most.max() / 250)


def test_methods_leave_outliers_out(tmp_path: Path) -> None:
    model = network()
    samples = draws(model, 8)
    samples[5]["x"][0, 0, 0, 0] = 40
    scales = {}
    for method, options in (
        ("minmax", {}),
        ("percentile", {"percentile": 98}),
        ("entropy", {}),
    ):
        made = Made(model, tmp_path, samples, method=method, **options)
        scales[method] = made.scale(made.node("conv0").input[0])[0]
        # The order of samples makes no difference.
        other = Made(model, tmp_path, samples[::-1], method=method, **options)
        assert other.path.read_bytes() == made.path.read_bytes()
    x = np.concatenate([s["x"].ravel() for s in samples])
    low, high = np.percentile(x, [1, 99])
    bin_width = 2 * 40 / 2048
    assert scales["percentile"] == pytest.approx((high - low) / 255, abs=2 * bin_width / 255)
    assert scales["minmax"] == pytest.approx((40 - x.min()) / 255)
    assert scales["percentile"] < scales["entropy"] < scales["minmax"]


def test_a_file_is_the_same_in_each_process(tmp_path: Path) -> None:
    saved(network(), tmp_path)
    np.savez(tmp_path / "s.npz", x=np.concatenate([s["x"] for s in draws(network())]))
    code = "import tvm_directconv as dc; dc.quantize_network('model0.onnx', 'o.onnx', 's.npz')"
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
        found.add((tmp_path / "o.onnx").read_bytes())
    assert len(found) == 1


# --- The model --------------------------------------------------------------------------------


def test_batch_norms_become_part_of_convolutions(tmp_path: Path) -> None:
    g = Graph(x=(1, 4, 6, 6))
    y = g.node("Relu", g.batch_norm(g.conv("x", 8, 4, 3, 3), 8))
    model = g.model(y)
    made = Made(model, tmp_path, draws(model))
    assert made.kinds == ["Conv"]
    assert made.report.outputs[0].snr > 30
    for name in ("conv0", "batchnormalization1"):
        with pytest.raises(ModelError, match=r"^nothing in model '.*' was quantised: expected"):
            Made(model, tmp_path, draws(model), exclude=[name])


def test_other_normalizations_stay(tmp_path: Path) -> None:
    """Nothing is said of them."""
    g = Graph(x=(1, 4, 6, 6))
    y = g.node("MaxPool", g.conv("x", 4, 4, 1, 1), kernel_shape=[2, 2])
    model = g.model(g.conv(g.batch_norm(y, 4), 8, 4, 1, 1))
    made = Made(model, tmp_path, draws(model))
    assert len(made.report.layers) == 2
    (node,) = (n for n in made.model.graph.node if n.op_type == "BatchNormalization")
    assert all(made.constants[name].dtype == np.float32 for name in node.input[1:])


def test_excluded_nodes_stay(tmp_path: Path) -> None:
    model = network()
    samples = draws(model)
    made = Made(model, tmp_path, samples, exclude=["conv2", "gemm6"])
    assert made.report.kept == ("conv2", "gemm6")
    assert [layer.name for layer in made.report.layers] == ["conv0"]
    for name in ("conv2", "gemm6"):
        assert made.constants[made.node(name).input[1]].dtype == np.float32
    # Without a name, or with one that others have, a node is called by its output.
    for node in model.graph.node:
        node.name = "same" if node.op_type == "Conv" else ""
    made = Made(model, tmp_path, samples, exclude=["t2"])
    assert made.report.kept == ("t2",)


def test_what_a_node_is_part_of_is_excluded(tmp_path: Path) -> None:
    """Of three dimensions, ONNX Runtime makes the product a Gemm between two Reshapes."""
    g = Graph(x=(2, 3, 8))
    y = g.node("Add", g.node("MatMul", "x", g.integers(8, 6)), g.integers(6))
    model = g.model(g.node("MatMul", y, g.integers(6, 4)))
    made = Made(model, tmp_path, draws(model))
    assert len(made.report.layers) == 2 and not made.report.kept
    made = Made(model, tmp_path, draws(model), exclude=["matmul0"])
    assert len(made.report.layers) == 1 and len(made.report.kept) == 1


@pytest.mark.parametrize(("low", "high", "gone"), [(-1, 2, True), (1, 6, False), (-4, -1, False)])
def test_limits_without_zero_stay(tmp_path: Path, low: int, high: int, gone: bool) -> None:
    g = Graph(x=(1, 4, 6, 6))
    y = g.node("Clip", g.conv("x", 8, 4, 3, 3), g.constant(low), g.constant(high))
    model = g.model(g.conv(y, 3, 8, 1, 1))
    made = Made(model, tmp_path, draws(model))
    assert made.kinds == (["Conv", "Conv"] if gone else ["Conv", "Clip", "Conv"])
    assert made.report.outputs[0].snr > 25


def test_old_models_are_converted(tmp_path: Path) -> None:
    """Before, constants were inputs, too."""
    g = Graph(x=(1, 4, 6, 6))
    y = g.node("Relu", g.batch_norm(g.conv("x", 8, 4, 3, 3), 8))
    model = g.model(g.node("Upsample", y, g.constant([1, 1, 2, 2])), opset=9, ir_version=3)
    for t in g.constants:
        described = helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        model.graph.input.append(described)
    path = saved(model, tmp_path)
    del model.graph.input[1:]
    report = dc.quantize_network(path, tmp_path / "o.onnx", draws(model))
    found = onnx.load(str(tmp_path / "o.onnx"))
    assert [(o.domain, o.version) for o in found.opset_import] == [("", 13)]
    assert [value.name for value in found.graph.input] == ["x"]
    assert report.outputs[0].snr > 30


def test_transposed_convolutions_of_groups(tmp_path: Path) -> None:
    g = Graph(x=(1, 4, 5, 5))
    y = g.node("ConvTranspose", "x", g.integers(4, 3, 2, 2), g.integers(6), group=2, strides=[2, 2])
    model = g.model(y)
    assert Made(model, tmp_path, draws(model)).report.layers[0].snr > 30


def test_weights_in_other_files(tmp_path: Path) -> None:
    model = network()
    made = Made(model, tmp_path, draws(model))
    (tmp_path / "more").mkdir()
    path = tmp_path / "more/model.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="weights", size_threshold=0)
    dc.quantize_network(path, tmp_path / "o.onnx", draws(model))
    assert (tmp_path / "o.onnx").read_bytes() == made.path.read_bytes()


def test_inputs_that_are_open_or_known(tmp_path: Path) -> None:
    g = Graph(x=("n", 4, 6, 6), factor=(1,))
    model = g.model(g.node("Mul", g.conv("x", 8, 4, 3, 3), "factor"))
    samples = [{"x": np.ones((4, 4, 6, 6))}, {"x": np.zeros((4, 6, 6))}, {"x": np.zeros((4, 6, 6))}]
    sizes: dict[str, Any] = {"input_shapes": {"x": (2, 4, 6, 6)}, "input_values": {"factor": 2}}
    made = Made(model, tmp_path, samples, **sizes)
    assert made.report.calibrated == 3
    (value,) = made.model.graph.input
    assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == [2, 4, 6, 6]
    with pytest.raises(ModelError, match=r"'x' is nx4x6x6.*--input-shape"):
        Made(model, tmp_path, samples)
    with pytest.raises(ArgumentError, match=r"^the list of 1 has 1 samples of x: float32 of shape"):
        Made(model, tmp_path, samples[1:2], **sizes)


# --- The report -------------------------------------------------------------------------------


def test_the_report_says_what_the_models_compute(tmp_path: Path) -> None:
    model = network()
    checked = draws(model, 6, seed=8)
    made = Made(model, tmp_path, draws(model), check=checked)
    report = made.report
    assert (report.calibrated, report.checked, report.kept) == (4, 6, ())
    exact = [by_onnxruntime(model, [s["x"]])[0] for s in checked]
    found = [made(s)[0] for s in checked]
    (output,) = report.outputs
    assert output.name == model.graph.output[0].name
    assert output.snr == pytest.approx(decibels(exact, found), abs=1e-6)
    same = [(a.argmax() == b.argmax()) for a, b in zip(exact, found, strict=True)]
    assert output.agreement == np.mean(same)
    layers = {layer.name: layer for layer in report.layers}
    assert [*layers] == sorted(layers, key=lambda name: layers[name].own_snr)
    assert {n: x.operator for n, x in layers.items()} == {
        "conv0": "Conv",
        "conv2": "Conv",
        "gemm6": "Gemm",
    }
    # The first has its ReLU in it. Others read what is as floats again.
    for name, tensor in (("conv0", "t1"), ("conv2", "t2")):
        assert layers[name].output == tensor
        exact = [run(model, s, tensor)[0] for s in checked]
        again = next(
            n.output[0] for n in made.model.graph.node if n.name == f"{tensor}_DequantizeLinear"
        )
        found = [made(s, again)[0] for s in checked]
        assert layers[name].snr == pytest.approx(decibels(exact, found), abs=1e-6)


def test_noise_of_a_layer_alone(tmp_path: Path) -> None:
    """As NumPy computes it, of the float model's inputs and the scales in the file."""
    model = network()
    samples = draws(model)
    made = Made(model, tmp_path, samples)

    def rounded(array: np.ndarray, tensor: str) -> np.ndarray:
        scale, zero = (np.float64(n) for n in made.scale(tensor))
        return (np.clip(np.rint(array / scale) + zero, 0, 255) - zero) * scale

    node = made.node("conv2")
    exact, found = [], []
    for sample in samples:
        x, y = run(model, sample, "t1", "t2")
        weight = made.weight(node.input[1])[:, :, 0, 0]
        sums = np.einsum("oi,nihw->nohw", weight, rounded(x, node.input[0]))
        exact.append(y)
        found.append(rounded(sums, "t2_DequantizeLinear_Output"))
    (layer,) = (layer for layer in made.report.layers if layer.name == "conv2")
    assert layer.own_snr == pytest.approx(decibels(exact, found), abs=0.02)
    assert layer.own_snr > layer.snr + 1


def test_outputs_of_all_kinds(tmp_path: Path) -> None:
    g = Graph(x=(2, 4, 18, 18))
    y = g.node("Relu", g.conv("x", 6, 4, 3, 3))
    outputs = [
        y,  # scores of each pixel
        g.node("ReduceMax", y, keepdims=0),  # a number
        g.node("ArgMax", y, axis=1),  # whole numbers
        g.node("NonZero", y),  # as many as there are
        g.node("Reshape", y, g.constant([2, 256, 6], dtype=np.int64)),  # classes last
    ]
    model = g.model(*outputs)
    samples = draws(model)
    made = Made(model, tmp_path, samples)
    found = {output.name: output for output in made.report.outputs}
    assert [*found] == outputs
    pairs = [(by_onnxruntime(model, [s["x"]]), made(s)) for s in samples]

    def share(number: int, axis: int | None = None) -> float:
        same = [
            a[number] == b[number]
            if axis is None
            else a[number].argmax(axis) == b[number].argmax(axis)
            for a, b in pairs
        ]
        return float(np.mean(same))

    assert found[outputs[0]].agreement == share(0, 1) < 1
    assert found[outputs[4]].agreement == share(4, 2) < 1
    assert found[outputs[1]].agreement is None and found[outputs[1]].snr > 30
    assert (found[outputs[2]].snr, found[outputs[2]].agreement) == (None, share(2))
    assert found[outputs[3]].agreement < 1


def test_products_of_two_tensors(tmp_path: Path) -> None:
    g = Graph(x=(2, 4, 8), y=(2, 8, 3))
    model = g.model(g.node("MatMul", g.node("MatMul", "x", g.integers(8, 8)), "y"))
    report = Made(model, tmp_path, draws(model)).report
    assert {layer.name for layer in report.layers} == {"matmul0", "matmul1"}
    by_name = {layer.name: layer for layer in report.layers}
    assert by_name["matmul0"].own_snr == pytest.approx(by_name["matmul0"].snr)
    assert by_name["matmul1"].own_snr > by_name["matmul1"].snr


# --- Samples ----------------------------------------------------------------------------------


def test_samples_in_all_forms(tmp_path: Path) -> None:
    model = network()
    samples = draws(model)
    expected = Made(model, tmp_path, samples).path.read_bytes()
    x = np.concatenate([s["x"] for s in samples])
    for name, arrays in {
        "batch": {"x": x},
        "more": {"x": x[:, np.newaxis], "other": np.zeros(3)},
        "double": {"x": x.astype(float)},
        "by_columns": {"x": np.asfortranarray(x)},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        made = Made(model, tmp_path, tmp_path / f"{name}.npz")
        assert made.path.read_bytes() == expected, name
    np.savez_compressed(tmp_path / "packed.npz", x=x)
    folder = tmp_path / "folder"
    folder.mkdir()
    np.save(folder / "a.npy", x[0])
    np.save(folder / "b.npy", x[1:3])
    np.savez(folder / "c.npz", x=x[3:])
    (folder / "notes.txt").write_text("nothing")
    (folder / ".hidden.npy").write_text("nothing")
    for given in (folder, str(folder), tmp_path / "packed.npz"):
        assert Made(model, tmp_path, given).path.read_bytes() == expected


def test_large_files_are_not_held_in_memory(tmp_path: Path) -> None:
    np.savez(tmp_path / "large.npz", x=np.ones((64, 250_000), np.float32))
    tracemalloc.start()
    try:
        ports = [Port("x", (1, 250_000), "float32")]
        samples = Samples(tmp_path / "large.npz", ports, dc.Pixels())
        assert len(samples) == sum(float(s["x"].mean()) == 1 for s in samples) == 64
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 1e6 < peak < 10e6


def test_inputs_of_several_kinds(tmp_path: Path) -> None:
    ports = [
        Port("x", (2, 3), "float32"),
        Port("n", (), "int32"),
        Port("m", (1, 2), "bool"),
    ]
    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    n, m = np.arange(4, dtype=np.uint8), np.array([[0, 1]] * 4, bool)
    np.savez(tmp_path / "a.npz", x=x, n=n, m=m)
    for given in (tmp_path / "a.npz", [{"x": x, "n": n, "m": m}]):
        samples = [*Samples(given, ports, dc.Pixels())]
        assert len(samples) == 4
        for number, sample in enumerate(samples):
            np.testing.assert_array_equal(sample["x"], x[2 * number : 2 * number + 2])
            assert sample["n"] == number and sample["n"].dtype == np.int32
            assert sample["m"].tolist() == [[False, True]]
    with pytest.raises(ArgumentError, match="has 4 samples of 'x', but 3 of 'n': expected as many"):
        Samples([{"x": x, "n": n[:3], "m": m}], ports, dc.Pixels())
    with pytest.raises(
        ArgumentError, match="row 1 of input 'n' in sample 0 has NaN, infinities or"
    ):
        [*Samples([{"x": x, "n": np.full(4, 2**40) * [0, 1, 1, 1], "m": m}], ports, dc.Pixels())]


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "NHWC"])
def test_images(tmp_path: Path, last: bool) -> None:
    rng = np.random.default_rng(5)
    pictures = rng.integers(0, 256, (3, 6, 7, 3), np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    port = Port("x", (1, 6, 7, 3) if last else (1, 3, 6, 7), "float32")
    pixels = dc.Pixels(mean=[0.5, 0.25, 0], std=2, bgr=True)
    found = [s["x"][0] for s in Samples(tmp_path, [port], pixels)]
    expected = (pictures / 255 - [0.5, 0.25, 0])[..., ::-1] / 2
    expected = expected if last else expected.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    pairs = Port("x", (3, *port.shape[1:]), "float32")
    (sample,) = Samples(tmp_path, [pairs], pixels)
    np.testing.assert_array_equal(sample["x"], found)


# --- The command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantize")
    models = {"net": network()}
    made = Made(models["net"], folder, draws(models["net"]))
    models["int"] = made.model
    g = Graph(a=(1, 3, 4), b=(2, 3, 4))
    models["two"] = g.model(g.node("Add", "a", "b"))
    g = Graph(x=(1, 4, 6, 7))
    models["relu"] = g.model(g.node("Relu", "x"))
    g = Graph(x=(1, 4, 6, 7))
    models["strange"] = g.model(g.node("Mystery", "x", domain="com.acme"), domains=["com.acme"])
    g = Graph(x=(1, 4, 6, 7))
    half = g.node("Cast", "x", to=TensorProto.FLOAT16)
    half = g.node("Conv", half, g.constant(np.ones((4, 4, 1, 1)), dtype=np.float16))
    models["half"] = g.model(g.node("Cast", half, to=TensorProto.FLOAT))
    g = Graph(x=(1, 4, 6, 7))
    models["log"] = g.model(g.conv(g.node("Log", g.node("Relu", "x")), 4, 4, 1, 1))
    g = Graph()
    models["none"] = g.model(g.node("Neg", g.constant([1, 2])))
    for name, model in models.items():
        onnx.save(model, str(folder / f"{name}.onnx"))
    x = np.concatenate([s["x"] for s in draws(models["net"])])
    np.savez(folder / "s.npz", x=x)
    np.savez(folder / "X.npz", X=x)
    np.savez(folder / "empty.npz", x=x[:0])
    np.savez(folder / "bytes.npz", x=x.astype(np.uint8))
    np.savez(folder / "text.npz", x=np.array(["a"]))
    np.savez(folder / "both.npz", a=np.zeros((2, 3, 4)), b=np.zeros((2, 3, 4)))
    np.save(folder / "shape.npy", x[..., :5])
    np.save(folder / "flat.npy", x.ravel())
    broken = x.copy()
    broken[2, 0, 0, 0] = np.nan
    np.save(folder / "nan.npy", broken)
    np.save(folder / "huge.npy", x.astype(float) * 1e60)
    (folder / "bad.npz").write_text("nothing")
    np.save(folder / "cut.npy", x)
    (folder / "cut.npy").write_bytes((folder / "cut.npy").read_bytes()[:-4])
    (folder / "notes.txt").write_text("nothing")
    for name in ("bare", "pictures", "mixed"):
        (folder / name).mkdir()
    (folder / "bare/notes.txt").write_text("nothing")
    (folder / "mixed/bad.npz").write_text("nothing")
    Image.fromarray(np.zeros((6, 7, 3), np.uint8)).save(folder / "pictures/a.png")
    return folder


@pytest.fixture
def here(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Command) -> Command:
    """Run the command line in a folder with these files."""
    for path in shared.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return run


COMMAND = ("quantize", "net.onnx", "--calibrate", "s.npz", "-o", "o.onnx")


def test_the_command_prints_what_it_reports(here: Command) -> None:
    status, out, err = here(*COMMAND, "--exclude", "conv2", "--check", "none.npz")
    assert (status, out) == (2, "") and "does not exist" in err
    status, out, err = here(*COMMAND, "--exclude", "conv2")
    assert (status, err) == (0, "")
    found = dc.quantize_network("net.onnx", "p.onnx", "s.npz", exclude=["conv2"])
    assert Path("o.onnx").read_bytes() == Path("p.onnx").read_bytes()
    first, second, *_ = out.splitlines()
    assert first.startswith(f"o.onnx: {Path('o.onnx').stat().st_size:,} bytes in ")
    assert first.endswith(", 2 layers in 8 bits, calibrated with 4 samples and compared on 4")
    assert second == "layers in float32: 'conv2'"
    for layer in found.layers:
        assert [layer.name, layer.operator, f"{layer.own_snr:.1f}", f"{layer.snr:.1f}"] in [
            line.split() for line in out.splitlines()
        ]
    (output,) = found.outputs
    assert output.snr is not None and output.agreement is not None
    words = [output.name, f"{output.snr:.1f}", f"{output.agreement:.1%}"]
    assert words in [line.split() for line in out.splitlines()]
    _, quiet, _ = here(*COMMAND, "--exclude", "conv2", "-q")
    assert out.split("\n\n", 1)[1] == quiet
    status, out, _ = here(*COMMAND, "--exclude", "conv2", "--format", "json")
    row = json.loads(out)
    assert [*row] == [
        "output",
        "bytes",
        "seconds",
        "calibrated",
        "checked",
        "outputs",
        "layers",
        "kept",
    ]
    assert row["layers"][0]["own_snr"] == found.layers[0].own_snr
    assert row["kept"] == ["conv2"]


def test_options_of_the_command(here: Command) -> None:
    words = ("--types", "s8s8", "--method", "percentile", "--percentile", "99", "--no-per-channel")
    assert here(*COMMAND, *words, "--check", "s.npz")[0] == 0
    dc.quantize_network(
        "net.onnx",
        "p.onnx",
        "s.npz",
        types="s8s8",
        method="percentile",
        percentile=99,
        per_channel=False,
    )
    assert Path("o.onnx").read_bytes() == Path("p.onnx").read_bytes()
    g = Graph(image=("n", 3, 6, 7))
    onnx.save(g.model(g.conv("image", 4, 3, 1, 1)), "open.onnx")
    words = ("--input-shape", "image:1,3,6,7", "--mean", "0.5", "--std", "1,2,3", "--bgr")
    command = ("quantize", "open.onnx", "--calibrate", "pictures", "-o", "o.onnx")
    status, _, err = here(*command, *words)
    assert (status, err) == (0, "")
    (scale,) = (
        numpy_helper.to_array(t)
        for t in onnx.load("o.onnx").graph.initializer
        if t.name == "image_scale"
    )
    assert scale == pytest.approx(0.5 / 255)  # Black less 0.5, over 1 to 3.


ERRORS: dict[str, tuple[list[str], str]] = {
    "no model": (["nte.onnx"], "model 'nte.onnx' does not exist (did you mean 'net.onnx'?)"),
    "no onnx": (["bad.npz"], "model 'bad.npz' is corrupt or no ONNX file"),
    "of PyTorch": (["a.pt2"], "'a.pt2' is one of PyTorch: expected an ONNX file"),
    "quantised": (["int.onnx"], "model 'int.onnx' is quantised already, its node 'x_Quan"),
    "nothing": (["relu.onnx"], "nothing in model 'relu.onnx' was quantised: expected convolutions"),
    "strange": (["strange.onnx"], "cannot run the model (Fail: "),
    "half": (["half.onnx"], "tensor 'c0' of the model is float16: expected a model in float32"),
    "no input": (["none.onnx"], "the model has no inputs: expected one that depends"),
    "no range": (["log.onnx"], "NaN or infinities on the samples, in 't1', 't2': expected"),
    "itself": (["-o", "net.onnx"], "the output is the model itself, 'net.onnx': expected another"),
    "as a link": (["-o", "link.onnx"], "the output is the model itself, 'link.onnx'"),
    "no ending": (["-o", "o"], "a quantised model to 'o': expected a name ending in .onnx"),
    "no folder": (["-o", "no/o.onnx"], "cannot write 'no/o.onnx' (No such file or directory): exp"),
    "no samples": (["--calibrate", "ss.npz"], "'ss.npz' does not exist (did you mean 's.npz'?)"),
    "strange samples": (
        ["--calibrate", "notes.txt"],
        "'notes.txt' is no file of samples: expected",
    ),
    "bare": (["--calibrate", "bare"], "folder 'bare' has no samples in it: expected files ending"),
    "mixed": (["--calibrate", "mixed"], "cannot read array file 'mixed/bad.npz' (EOF"),
    "empty": (
        ["--calibrate", "empty.npz"],
        "'empty.npz' has 0 samples of x: float32 of shape 1x4x",
    ),
    "name": (["--calibrate", "X.npz"], "'X.npz' has 'X': expected 'x' as well (did you mean 'X'?)"),
    "bytes": (["--calibrate", "bytes.npz"], "has 'x' of type uint8: expected x: float32 of shape"),
    "text": (["--calibrate", "text.npz"], "'text.npz' has an array of <U1: expected numbers"),
    "shape": (["--calibrate", "shape.npy"], "has 'x' of shape 4x4x6x5: expected 1x4x6x7, with any"),
    "rank": (["--calibrate", "flat.npy"], "has 'x' of shape 672: expected 1x4x6x7, with any"),
    "nan": (["--calibrate", "nan.npy"], "row 2 of input 'x' in 'nan.npy' has NaN, infinities or"),
    "checked": (["--check", "nan.npy"], "row 2 of input 'x' in 'nan.npy' has NaN, infinities or"),
    "huge": (["--calibrate", "huge.npy"], "in 'huge.npy' has NaN, infinities or numbers beyond fl"),
    "cut": (["--calibrate", "cut.npy"], "cannot read array file 'cut.npy' (it holds more or f"),
    "picture": (["--calibrate", "pictures"], "'pictures/a.png' is an image, but the inputs of the"),
    "one array": (
        ["two.onnx", "--calibrate", "nan.npy"],
        "'nan.npy' is one array: expected a .npz",
    ),
    "one of two": (
        ["two.onnx", "--calibrate", "both.npz"],
        "has 2 samples of 'a', but 1 of 'b': e",
    ),
    "mean": (["--mean", "1"], "mean is given, but there is no image in 's.npz': expected none"),
    "node": (["--exclude", "conv1"], "there is no node 'conv1' (did you mean 'conv"),
    "all": (["--exclude", "conv0", "--exclude", "conv2", "--exclude", "gemm6"], "not all are excl"),
    "method": (["--method", "minmx"], "(did you mean 'minmax'?)"),
    "types": (["--types", "u8u8"], "invalid choice: 'u8u8'"),
    "percentile": (
        ["--percentile", "99"],
        "percentile is 99.0, but the method is minmax: expected",
    ),
    "low percentile": (
        ["--method", "percentile", "--percentile", "9"],
        "9.0: expected a number abo",
    ),
    "flag": (["--calibrat", "s.npz"], "unrecognized arguments: --calibrat (did you mean '--calibr"),
    "input": (["--input-shape", "y:1,2"], "there is no input 'y': expected a size of 'x'"),
    "size": (["--input-shape", "x:2,4,6,8"], "size of input 'x' is 2x4x6x8: expected 1x4x6x7"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(here: Command, name: str) -> None:
    """Nothing is written then, and what was there stays."""
    words, message = ERRORS[name]
    Path("link.onnx").symlink_to("net.onnx")
    Path("o.onnx").write_text("before")
    before = {path.name for path in Path.cwd().iterdir()}
    model = [] if words[0].startswith("-") else [words.pop(0)]
    given = list(COMMAND)
    if model:
        given[1] = model[0]
    status, out, err = here(*given, *words)
    assert (status, out) == (2, "")
    assert message in err and (err.count("\n") == 1 or err.startswith("usage:"))
    assert Path("o.onnx").read_text() == "before"
    assert {path.name for path in Path.cwd().iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": {"x": [1]}}, "samples are of type dict: expected a folder, a file, or a list"),
        ({"samples": 3}, "samples are of type int: expected a folder"),
        ({"samples": [3]}, "sample 0 is 3: expected a mapping from names of inputs to arrays"),
        ({"samples": [{"x": [[1], [2, 3]]}]}, "sample 0 is no array"),
        ({"samples": []}, "the list of 0 has 0 samples of x: float32 of shape 1x4x6x7: expected"),
        ({"types": "s8u8"}, "types is 's8u8': expected u8s8 or s8s8"),
        ({"method": "best"}, "method is 'best': expected minmax, entropy or percentile"),
        ({"method": "percentile", "percentile": "99"}, "percentile is '99': expected a number abo"),
        ({"exclude": "conv0"}, "exclude is 'conv0': expected a list of names of nodes"),
        ({"output": 3}, "the output is of type int: expected a path"),
    ],
)
def test_errors_of_the_function(
    shared: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    given = {"output": tmp_path / "o.onnx", "samples": shared / "s.npz", **options}
    with pytest.raises(dc.DirectConvError) as error:
        dc.quantize_network(shared / "net.onnx", **given)
    assert str(error.value).startswith(message)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": "a"}, "mean is 'a': expected finite numbers, one for all channels or one for"),
        ({"mean": [1, 2]}, r"mean is [1, 2]: expected"),
        ({"std": 0}, "std is 0: expected numbers above 0, one"),
        ({"std": [1, 2, np.inf]}, "std is [1, 2, inf]: expected numbers above 0"),
    ],
)
def test_pixels_are_numbers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as error:
        dc.Pixels(**options)
    assert str(error.value).startswith(message)


def test_without_onnxruntime(here: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    status, _, err = here(*COMMAND)
    assert status == 2
    assert "quantising needs the Python packages onnx and onnxruntime" in err
    assert "pip install 'tvm-directconv[quantize]'" in err


def test_what_the_quantiser_logs_is_a_warning(tmp_path: Path) -> None:
    g = Graph(x=(1, 4), b=(1, 3))
    model = g.model(g.node("Gemm", "x", g.integers(4, 3), "b"))
    with pytest.warns(dc.ModelWarning, match="Bias of Gemm node 'gemm0' is not constant"):
        Made(model, tmp_path, draws(model))


def test_progress_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What others print meanwhile is not, but what is printed there is."""
    model = network()
    told: list[tuple[str, int, int]] = []

    def tell(*words: Any) -> None:
        told.append(words)
        print(*words)

    Made(model, tmp_path, draws(model, 3), method="entropy", check=draws(model, 2), progress=tell)
    calibrating = [("calibrating", number, 6) for number in range(6)]
    assert told == [*calibrating, ("comparing", 0, 2), ("comparing", 1, 2)]
    out, err = capsys.readouterr()
    assert out.splitlines() == [" ".join(map(str, words)) for words in told] and err == ""


def test_progress_on_a_terminal(here: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    status, out, err = here(*COMMAND, "--format", "json")
    assert status == 0 and "comparing" in err
    assert json.loads(out)["checked"] == 4
    status, _, err = here(*COMMAND, "-q")
    assert (status, err) == (0, "")
