"""Quantised networks: whole numbers from the first quantisation to the last, as ONNX Runtime's."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import assert_equal, compiled, saved
from quantized_models import MODELS, OPERATORS, QDQ, Quantized, by_onnxruntime

import tvm_directconv as dc
from tvm_directconv.deploy.emulated import emulated

SHAPE = (1, 3, 23, 19)


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


# ONNX Runtime computes signed numbers between quantisations as floats on x86.
FORMS = [(QDQ, np.uint8), (OPERATORS, np.uint8), (OPERATORS, np.int8)]


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
