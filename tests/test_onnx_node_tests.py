"""The tests that ONNX has for its operators, as networks of one operator."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_models import compiled, saved

from tvm_directconv.errors import ModelError
from tvm_directconv.network.network import compile_network

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ONNX computes its expectations as it collects them.
    from onnx.backend.test.case.node import collect_testcases

    CASES = {case.name: case for case in collect_testcases(None)}

KINDS = (
    "averagepool",
    "basic_conv",
    "basic_deform_conv",
    "batchnorm",
    "clip",
    "concat",
    "conv",
    "deform_conv",
    "gemm",
    "globalaveragepool",
    "globalmaxpool",
    "hardsigmoid",
    "hardswish",
    "leakyrelu",
    "lrn",
    "matmul",
    "maxpool",
    "relu",
    "sigmoid",
    "softmax",
)
NAMES = [
    name for name in CASES if re.match(rf"test_({'|'.join(KINDS)})(_|integer|transpose|$)", name)
]
# Of these, all inputs but the first are weights.
WEIGHTED = re.compile("test_(basic_)?(conv|gemm|matmul)")

_QUANTIZED = "quantized, which there is no converter for in TVM"
_TRAINING = "training: statistics of the batch are outputs, too"
_DEFORMED = "offsets are inputs; there is no converter for it in TVM"
INAPPLICABLE = {
    "test_basic_deform_conv_with_padding": _DEFORMED,
    "test_basic_deform_conv_without_padding": _DEFORMED,
    "test_batchnorm_epsilon_training_mode": _TRAINING,
    "test_batchnorm_example_training_mode": _TRAINING,
    "test_convinteger_with_padding": _QUANTIZED,
    "test_convinteger_without_padding": _QUANTIZED,
    "test_deform_conv_with_mask_bias": _DEFORMED,
    "test_deform_conv_with_multiple_offset_groups": _DEFORMED,
}


def arrays(values: Any) -> list[np.ndarray]:
    return [
        numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else np.asarray(v)
        for v in values
    ]


def model_and_data(name: str) -> tuple[onnx.ModelProto, list[np.ndarray], list[np.ndarray]]:
    """Return a case's model, inputs and outputs; what are weights are constants."""
    case = CASES[name]
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    ((given, wanted),) = case.data_sets
    inputs, outputs = arrays(given), arrays(wanted)
    if WEIGHTED.match(name):
        graph = model.graph
        for value, array in list(zip(graph.input, inputs, strict=True))[1:]:
            graph.initializer.append(numpy_helper.from_array(array, value.name))
        del graph.input[1:]
        inputs = inputs[:1]
    return model, inputs, outputs


def test_the_cases_are_those_that_were_looked_at() -> None:
    assert INAPPLICABLE.keys() <= set(NAMES)
    assert sum("conv" in name for name in NAMES) >= 23
    assert len(NAMES) >= 150


@pytest.mark.parametrize("name", [name for name in NAMES if name not in INAPPLICABLE])
def test_operators_compute_what_onnx_says(tmp_path: Path, name: str) -> None:
    model, inputs, outputs = model_and_data(name)
    network = compiled(model, tmp_path)
    found = network.run(*inputs)
    found = found if isinstance(found, tuple) else (found,)
    for one, expected in zip(found, outputs, strict=True):
        assert (one.shape, one.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(one, expected, CASES[name].rtol, CASES[name].atol)


@pytest.mark.parametrize("name", INAPPLICABLE)
def test_what_cannot_apply_is_refused(tmp_path: Path, name: str) -> None:
    model, _, _ = model_and_data(name)
    path = saved(model, tmp_path)
    with pytest.raises(ModelError):
        compile_network(path, tmp_path / "a.so")
