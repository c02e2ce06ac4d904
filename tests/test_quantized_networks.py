"""Quantised networks: whole numbers from the first quantisation to the last, as ONNX Runtime's."""

from pathlib import Path

import numpy as np
import pytest
from onnx_models import assert_equal, compiled
from quantized_models import MODELS, OPERATORS, QDQ, Quantized, by_onnxruntime

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
