"""Inputs and outputs of whole numbers: in C, and what they stand for."""

import ctypes
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Command
from onnx import TensorProto
from onnx_models import Graph, saved
from PIL import Image
from quantized_models import MODELS, OPERATORS, QDQ, Quantized, Tensor, by_onnxruntime
from test_c_folder import WARNINGS, Machine

import tvm_directconv as dc
from tvm_directconv.emit.program import Port
from tvm_directconv.errors import ArgumentError
from tvm_directconv.network.compile import import_model
from tvm_directconv.network.pipeline import first_passes
from tvm_directconv.network.rewriter import MAIN, SCALES, WORK

SHAPE = (1, 3, 23, 19)


def numbers(dtype: Any, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(0).integers(limits.min, limits.max, shape, dtype, endpoint=True)


def meaning(g: Graph, *names: str) -> tuple[float, int]:
    """Return the values of a scale and of a zero point."""
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in g.constants}
    scale, zero = (found[name] for name in names)
    return float(scale), int(zero)


# --- In C -------------------------------------------------------------------------------------

CASES = [
    ("native", None, "moved", np.uint8, QDQ),
    ("cortex-a76", "max", "squeeze", np.int8, OPERATORS),
    ("armv7", "cortex-a7", "narrow", np.uint8, QDQ),
]


@pytest.mark.parametrize(("device", "cpu", "name", "dtype", "form"), CASES)
def test_whole_numbers_in_and_out(
    device: str, cpu: str | None, name: str, dtype: Any, form: str, tmp_path: Path
) -> None:
    machine, folder = Machine(device, cpu), tmp_path / "net"
    g = Quantized(form, dtype, *SHAPE, whole=True)
    made = g.made(*MODELS[name](g))
    m = dc.compile_network(saved(made, tmp_path), folder, device, emit="c", check=False)
    machine.make(folder, "CPPFLAGS=-DRUNS=1", f"CFLAGS={WARNINGS} -pedantic")
    x = numbers(dtype)
    port = m.inputs[0]
    x.tofile(folder / "whole")
    np.save(folder / "whole.npy", x)
    values = port.dequantize(x)
    values.tofile(folder / "real")
    np.save(folder / "real.npy", values)
    expected = by_onnxruntime(made, x=x)
    outputs = [f"out{place}" for place in range(len(expected))]
    for file in ("whole", "whole.npy", "real", "real.npy"):
        text = machine.run(folder / "net", file, *outputs)
        for output, right in zip(outputs, expected, strict=True):
            found = np.fromfile(folder / output, dtype)
            np.testing.assert_array_equal(found.reshape(right.shape), right)
            (folder / output).unlink()
    (folder / "short").write_bytes(b"0123")
    done = subprocess.run(
        machine.toolchain.command("./net", "short"), cwd=folder, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"of {port.dtype}, 1 x 3 x 23 x 19, 1311 bytes, or of float32, 5244" in done.stderr
    at, number, *words, real = text.splitlines()[1].split()
    assert int(number) == expected[0].max() == expected[0].flat[int(at)]
    assert words == ["stands", "for"]
    assert float(real) == pytest.approx(m.outputs[0].dequantize(expected[0].max()), rel=1e-5)
    header = (folder / "net.h").read_text()
    c_type = f"{np.dtype(dtype)}_t"
    assert f"int net_run(const {c_type} *input_x, {c_type} *output_" in header
    assert f"#define NET_X_ZERO_POINT ({port.zero_point})\n" in header


VALUES = np.array(
    [0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 126.5, 127.5, 300, -300, 3e38, -3e38, 0, -0.0, 1e-45]
)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_helpers_round_as_onnxruntime_does(dtype: Any, tmp_path: Path) -> None:
    g = Quantized(QDQ, dtype, *SHAPE, whole=True)
    scale, zero = g.constant(np.float32(0.25)), g.constant(3, dtype=dtype)
    y = g.node("MaxPool", g.real(Tensor("x", scale, zero)), kernel_shape=[2, 2])
    path = saved(g.made(g.quantized(y, 2)), tmp_path)
    m = dc.compile_network(path, tmp_path / "net", emit="c", check=False)
    (source := tmp_path / "helpers.c").write_text(
        f'#include "net.h"\n'
        "int quantize(float v) { return net_quantize_x(v); }\n"
        f"float dequantize(int q) {{ return net_dequantize_{m.outputs[0].name}(q); }}\n"
    )
    library = tmp_path / "helpers.so"
    folders = ["-iquote", tmp_path / "net", "-iquote", tmp_path / "net/runtime"]
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", *folders, source, "-o", library, "-lm"])
    helpers = ctypes.CDLL(str(library))
    helpers.dequantize.restype = ctypes.c_float
    values = np.concatenate([VALUES * 0.25, VALUES, [np.inf, -np.inf]]).astype(np.float32)
    q = Graph(x=values.shape)
    scale, zero = q.constant(np.float32(0.25)), q.constant(3, dtype=dtype)
    y = q.node("QuantizeLinear", "x", scale, zero)
    (right,) = by_onnxruntime(q.model(y), x=values)
    np.testing.assert_array_equal(m.inputs[0].quantize(values), right)
    assert [helpers.quantize(ctypes.c_float(v)) for v in values] == [*right]
    assert helpers.quantize(ctypes.c_float(np.nan)) == np.iinfo(dtype).min
    assert m.inputs[0].quantize(np.array(np.nan)) == np.iinfo(dtype).min
    every = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1)
    found = np.array([helpers.dequantize(int(n)) for n in every], np.float32)
    np.testing.assert_array_equal(found, m.outputs[0].dequantize(every))


def test_what_has_no_scale_is_refused() -> None:
    for port in (Port("x", (2,), "uint8"), Port("x", (2,), "float32", 0.5, 3)):
        with pytest.raises(ArgumentError, match=r"of shape 2 has no scale: expected an input or"):
            port.quantize(np.zeros(2))


# --- What is known ----------------------------------------------------------------------------


def noted(model: onnx.ModelProto, folder: Path) -> tuple[Any, Any]:
    """Return what is said of ports, and how many conversions there are."""
    module = import_model(saved(model, folder))
    for transform in first_passes():
        module = transform(module)
    attributes = module[MAIN].attrs
    return json.loads(attributes[SCALES]), json.loads(attributes[WORK])["conversions"]


@pytest.mark.parametrize("form", [QDQ, OPERATORS])
@pytest.mark.parametrize("name", MODELS)
def test_scales_of_both_forms(name: str, form: str, tmp_path: Path) -> None:
    g = Quantized(form, np.uint8, *SHAPE, whole=True)
    outputs = MODELS[name](g)
    x = next(node for node in g.nodes if node.input[0] == "x")
    scales, _ = noted(g.made(*outputs), tmp_path)
    assert scales["inputs"] == [[*meaning(g, *x.input[1:3])]]
    assert scales["outputs"] == [[*meaning(g, y.scale, y.zero)] for y in outputs]


def test_scales_that_are_not_known(tmp_path: Path) -> None:
    def of_input(*readers: Any) -> Any:
        g = Quantized(QDQ, np.uint8, *SHAPE, whole=True)
        (scales, _) = noted(g.made(*(reader(g) for reader in readers)), tmp_path)
        return scales["inputs"][0]

    def real(scale: float, zero: int = 7) -> Any:
        return lambda g: g.node(
            "DequantizeLinear", "x", g.constant(np.float32(scale)), g.constant(zero, dtype=np.uint8)
        )

    def pooled(g: Quantized) -> Any:
        moved = g.node("Transpose", g.node("MaxPool", "x", kernel_shape=[2, 2]), perm=[0, 2, 3, 1])
        return g.node(
            "DequantizeLinear", moved, g.constant(np.float32(0.5)), g.constant(7, dtype=np.uint8)
        )

    def by_channel(g: Quantized) -> Any:
        zeros = g.constant([7, 7, 7], dtype=np.uint8)
        return g.node("DequantizeLinear", "x", g.constant([0.5, 0.5, 0.25]), zeros, axis=1)

    def cast(g: Quantized) -> Any:
        return g.node("Cast", "x", to=TensorProto.FLOAT)

    assert of_input(real(0.5)) == of_input(real(0.5), pooled) == [0.5, 7]
    for readers in ([by_channel], [cast], [cast, real(0.5)], [real(0.5), cast]):
        assert of_input(*readers) is None
    assert of_input(real(0.5), real(0.25)) is of_input(real(0.5), real(0.5, 8)) is None
    g = Quantized(QDQ, np.uint8, *SHAPE)
    assert noted(g.made(g.real(g.image())), tmp_path)[0] == {"inputs": [None], "outputs": [None]}


def test_conversions_are_counted(tmp_path: Path) -> None:
    def counted(grow: Any, whole: bool = False) -> int:
        g = Quantized(QDQ, np.uint8, *SHAPE, whole=whole)
        return int(noted(g.made(grow(g)), tmp_path)[1])

    def conv(g: Quantized) -> Tensor:
        return g.conv(g.image(), 8, 3, 3, 3)

    assert counted(conv) == counted(conv, True) == 0
    assert counted(lambda g: g.real(conv(g))) == 0

    def logarithms(g: Quantized) -> Tensor:
        return g.conv(g.quantized(g.node("LogSoftmax", g.real(conv(g)))), 8, 8, 1, 1)

    def other_scale(g: Quantized) -> Tensor:
        x = conv(g)
        return g.of("Concat", x, g.conv(x, 8, 8, 1, 1), axis=1)

    assert counted(logarithms) == 2  # There is none of whole numbers.
    assert counted(other_scale) == 2


def test_the_command_line(tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    g = Quantized(QDQ, np.uint8, 1, 3, 8, 10, whole=True)
    made = g.made(g.conv(g.image(0), 16, 3, 3, 3))
    saved(made, tmp_path)
    (path,) = tmp_path.glob("*.onnx")
    status, out, err = run("compile", str(path), "-o", "a.so")
    assert (status, err) == (0, "")
    assert "(1 in uint8: 100.0% of their multiply-adds), " in out
    assert ", 0 conversions of types" in out
    pixels = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)
    Image.fromarray(pixels).save("image.png")
    assert run("run", "a.so", "--input", "image.png", "--output", "y.npy")[0] == 0
    port = dc.load_network("a.so").manifest.inputs[0]
    x = port.quantize(pixels.transpose(2, 0, 1)[np.newaxis] / np.float32(255))
    np.testing.assert_array_equal(np.load("y.npy"), by_onnxruntime(made, x=x)[0])
    assert run("run", "a.so", "--output", "z.npy")[0] == 0  # Random numbers.
    assert np.load("z.npy").std() > 0
