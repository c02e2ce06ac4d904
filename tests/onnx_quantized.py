"""Quantised layers as ONNX Runtime computes them, for tests and random layers."""

from typing import Any

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

import tvm_directconv as dc


def qlinear_conv(
    workload: dc.ConvWorkload,
    x: np.ndarray,
    weight: np.ndarray,
    meaning: dc.Quantization,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    residual_first: bool = False,
) -> np.ndarray:
    """Return the output of QLinearConv, and with a residual that of QLinearAdd after it."""
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    scales = np.asarray(meaning.weight_scale, np.float32)
    constants: dict[str, Any] = {
        "x_scale": np.float32(meaning.input_scale),
        "x_zero": np.array(meaning.input_zero_point, x.dtype),
        "weight": weight,
        "weight_scale": scales,
        "weight_zero": np.zeros(scales.shape, np.int8),
        "y_scale": np.float32(meaning.output_scale),
        "y_zero": np.array(meaning.output_zero_point, x.dtype),
    }
    if bias is not None:
        constants["bias"] = bias
    operands = ["x", *constants]
    values = {"x": x}
    more = []
    if residual is not None:
        values["residual"] = residual
        added = {
            "residual_scale": np.float32(meaning.residual_scale),
            "residual_zero": np.array(meaning.residual_zero_point, x.dtype),
            "sum_scale": np.float32(meaning.sum_scale),
            "sum_zero": np.array(meaning.sum_zero_point, x.dtype),
        }
        pairs = [["y", "y_scale", "y_zero"], ["residual", "residual_scale", "residual_zero"]]
        one, other = reversed(pairs) if residual_first else pairs
        parts = [*one, *other, "sum_scale", "sum_zero"]
        more = [helper.make_node("QLinearAdd", parts, ["sum"], domain="com.microsoft")]
        constants |= added
    node = helper.make_node(
        "QLinearConv",
        operands,
        ["y"],
        pads=list(workload.padding),
        strides=list(workload.stride),
        dilations=list(workload.dilation),
        group=workload.groups,
    )
    described = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node, *more],
        "graph",
        [described(name, element, value.shape) for name, value in values.items()],
        [described("sum" if more else "y", element, workload.output_shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, values)[0])
