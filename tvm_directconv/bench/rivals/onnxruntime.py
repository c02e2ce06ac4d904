"""ONNX Runtime, and the ONNX files of single layers, which others read, too."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ... import files
from ...layout import aligned_zeros
from ...workload import ConvWorkload
from .base import DIRECT, IM2COL, QUANTIZED, Contestant, Prepared, quantization_of, types_of

_PRODUCTS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class OnnxRuntime(Contestant):
    """ONNX Runtime's own kernels (MLAS) on one node."""

    name: str = "onnxruntime"
    algorithm: str = DIRECT
    includes: str = (
        "From plain to plain: where it convolves in a blocked layout, input and output are "
        "reordered in each call."
    )
    colour: str = "#17becf"
    marker: str = "v"

    title: ClassVar = "onnxruntime"
    packages: ClassVar = {"onnxruntime": "", "onnx": ", which writes ONNX files,"}
    precisions: ClassVar = ("float32", *QUANTIZED)
    network_dtypes: ClassVar = ("float32", "int8")

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        with files.scratch() as folder:
            optimized = folder / "optimized.onnx"
            session = _session(
                layer_model(workload, weight).SerializeToString(), threads, optimized
            )
            nodes = _nodes(optimized)
        out = aligned_zeros(workload.output_shape, x.dtype)
        return Prepared(
            call=_bound(session, x, out),
            output=lambda: out,
            # Without a layout of its own, MLAS makes matrix products of convolutions.
            algorithm=DIRECT if any("nchwc" in node.domain for node in nodes) else IM2COL,
            implementation=", ".join(f"{n.domain}.{n.op_type}".strip(".") for n in nodes),
        )

    def prepare_network(self, path: Path, threads: int, x: np.ndarray, dtype: str) -> Prepared:
        # Its options as they are: all optimizations are among them.
        session = _session(str(path), threads)
        out = aligned_zeros(tuple(session.get_outputs()[0].shape))

        def precision() -> str:
            with files.scratch() as folder:
                optimized = folder / "optimized.onnx"
                _session(str(path), threads, optimized)
                kinds = [node.op_type for node in _nodes(optimized)]
            products = [k for k in kinds if any(name in k for name in _PRODUCTS)]
            # "QLinearConv" or "QGemm" beside "Conv" or "FusedGemm".
            return types_of("int8" if k.startswith("Q") else "float32" for k in products)

        return Prepared(call=_bound(session, x, out), output=lambda: out, precision=precision)


def _session(model: str | bytes, threads: int, optimized: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _bound(session: Any, x: np.ndarray, out: np.ndarray) -> Any:
    """Return a call that reads and writes these arrays, without copies."""
    binding = session.io_binding()
    for bind, (value,), array in (
        (binding.bind_input, session.get_inputs(), x),
        (binding.bind_output, session.get_outputs(), out),
    ):
        bind(value.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def call(_kept: tuple[np.ndarray, np.ndarray] = (x, out)) -> None:
        session.run_with_iobinding(binding)

    return call


def _nodes(path: Path) -> list[Any]:
    """Return all operators that are run."""
    import onnx

    return list(onnx.load(path).graph.node)


def layer_model(workload: ConvWorkload, weight: np.ndarray) -> Any:
    """Return an ONNX model of one convolution, from ``x`` to ``y``.

    If it is quantised, it is between DequantizeLinear and QuantizeLinear.
    """
    from onnx import TensorProto, helper, numpy_helper

    constants: dict[str, Any] = {"weight": weight}
    before, after, operands, result = [], [], ["x", "weight"], "y"
    element = TensorProto.FLOAT
    if workload.dtype in QUANTIZED:
        element = helper.np_dtype_to_tensor_dtype(np.dtype(workload.dtype))
        meaning = quantization_of(workload)
        constants |= {
            "one": np.float32(1),
            "pixel_zero": np.zeros((), workload.dtype),
            "weight_zero": np.zeros((), weight.dtype),
            "scale": np.float32(meaning.output_scale),
        }
        before = [
            helper.make_node("DequantizeLinear", ["x", "one", "pixel_zero"], ["pixels"]),
            helper.make_node("DequantizeLinear", ["weight", "one", "weight_zero"], ["weights"]),
        ]
        operands, result = ["pixels", "weights"], "sums"
        after = [helper.make_node("QuantizeLinear", ["sums", "scale", "pixel_zero"], ["y"])]
    node = helper.make_node(
        "Conv",
        operands,
        [result],
        "conv",
        kernel_shape=workload.kernel,
        strides=workload.stride,
        pads=workload.padding,
        dilations=workload.dilation,
        group=workload.groups,
    )
    graph = helper.make_graph(
        [*before, node, *after],
        "layer",
        [helper.make_tensor_value_info("x", element, workload.input_shape)],
        [helper.make_tensor_value_info("y", element, workload.output_shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
