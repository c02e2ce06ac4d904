"""What is not a number stays so, and infinities are what they are: as in NumPy."""

from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from onnx_models import Graph, saved

from tvm_directconv import ConvWorkload, Epilogue, build, compile_network, device, random_tensors
from tvm_directconv.deploy.runner import run_library
from tvm_directconv.epilogue import ACTIVATIONS
from tvm_directconv.reference import epilogue_reference
from tvm_directconv.toolchain import find_toolchain

# One of each kind of vectors: those that run here, and others in emulators.
TARGETS = [
    name
    for name in ("x86-64-v2", "x86-64-v3", "x86-64-v4", "cortex-a72", "armv7", "rv64gcv")
    if device(name).is_host_runnable or find_toolchain(device(name).triple).emulator
]
SPECIAL = np.array([np.nan, np.inf, -np.inf, -0.0, 3e38, -3e38], np.float32)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def specials(shape: tuple[int, ...], share: float = 0.1) -> np.ndarray:
    """Return whole numbers and, here and there, what is none."""
    rng = np.random.default_rng(5)
    x = rng.integers(-4, 4, shape, endpoint=True).astype(np.float32)
    chosen = rng.random(shape) < share
    x[chosen] = rng.choice(SPECIAL, int(chosen.sum()))
    return x


@pytest.mark.parametrize("name", TARGETS)
def test_activations(name: str, tmp_path: Path) -> None:
    # Each output is one input: what is no number does not spread. Both borders, and a narrow tile.
    layer = ConvWorkload.parse("ic32ih9oc32oh9kh1")
    _, weight = random_tensors(layer, seed=1)
    weight[...] = np.eye(32, dtype=np.float32)[:, :, np.newaxis, np.newaxis]
    x = np.where(np.arange(32)[:, np.newaxis, np.newaxis] == 7, specials(layer.input_shape), 1)
    x = x.astype(np.float32)
    x[0, 7, 0, :6] = SPECIAL
    toolchain = find_toolchain(device(name).triple, device(name).qemu_cpu)
    sums = np.einsum("oi,nihw->nohw", np.eye(32), x, dtype=np.float64)
    for activation, row in ACTIVATIONS.items():
        slope = 0.25 if row.has_slope else 0.0
        epilogue = Epilogue(bias=True, activation=activation, slope=slope)
        conv = build(layer, name, blocking="model", epilogue=epilogue)
        operands = [conv.pack_input(x), conv.pack_weight(weight)]
        operands.append(conv.pack_operand("bias", np.zeros(32, np.float32)))
        library = conv.export(tmp_path / f"{activation}.so")
        shape = conv.manifest.output_shape
        report = run_library(library, conv.manifest.symbol, operands, [shape], toolchain)
        found = conv.unpack_output(report.outputs[0])
        expected = epilogue_reference(sums, epilogue, bias=np.zeros(32))
        assert np.isnan(expected).any()
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), activation)
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=activation)


def windows(x: np.ndarray, size: int, stride: int, pad: int) -> np.ndarray:
    """Return the maxima of windows."""
    padded = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)], constant_values=-np.inf)
    found = sliding_window_view(padded, (size, size), axis=(2, 3))
    return found[:, :, ::stride, ::stride].max(axis=(4, 5))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("blocked", [False, True], ids=["plain", "blocked"])
@pytest.mark.parametrize("name", TARGETS)
def test_networks(name: str, blocked: bool, tmp_path: Path) -> None:
    shape = (1, 32, 9, 32)
    g = Graph(x=shape)
    x = "x"
    if blocked:  # Maxima of its outputs are taken in its layout.
        weight = g.constant(np.eye(32).reshape(32, 32, 1, 1))
        x = g.node("Conv", x, weight)
    given = specials(shape, share=0.002 if blocked else 0.05)
    given[0, :, 6:, 29:] = -np.inf if not blocked else 1
    low, high = g.constant(-1.5), g.constant(2.5)
    cases = [
        (g.node("Relu", x), lambda x: np.maximum(x, 0)),
        (g.node("Clip", x, low, high), lambda x: np.clip(x, -1.5, 2.5)),
        (
            g.node("ThresholdedRelu", x, alpha=0.5),
            lambda x: np.where(x <= 0.5, np.float32(0), x),
        ),
        (g.node("Min", x, high), lambda x: np.minimum(x, 2.5)),
        (g.node("Max", x, g.node("Neg", x)), lambda x: np.maximum(x, -x)),
        (
            g.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
            lambda x: windows(x, 3, 2, 1),
        ),
        (g.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), lambda x: windows(x, 2, 2, 0)),
        (g.node("GlobalMaxPool", x), lambda x: x.max(axis=(2, 3), keepdims=True)),
        (g.node("ReduceMax", x, axes=[3]), lambda x: x.max(axis=3, keepdims=True)),
        (g.node("ReduceMin", x, axes=[1]), lambda x: x.min(axis=1, keepdims=True)),
        (g.node("Softmax", x, axis=-1), softmax),
        (g.node("Sigmoid", x), lambda x: 1 / (1 + np.exp(-x.astype(np.float64)))),
    ]
    path = saved(g.model(*(output for output, _ in cases)), tmp_path)
    library = path.with_suffix(".so")
    manifest = compile_network(path, library, name)
    shapes = [*(port.shape for port in manifest.outputs), (manifest.arena_bytes // 4,)]
    toolchain = find_toolchain(device(name).triple, device(name).qemu_cpu)
    outputs = run_library(library, "main", [given], shapes, toolchain).outputs
    sums = given
    if blocked:
        sums = np.einsum("oi,nihw->nohw", np.eye(32), given, dtype=np.float64).astype(np.float32)
    assert 0.002 < np.isnan(sums).mean() < 0.5
    for (output, function), found in zip(cases, outputs, strict=False):
        expected = function(sums)
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), output)
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=output)
