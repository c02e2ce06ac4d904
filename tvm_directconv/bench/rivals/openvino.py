"""OpenVINO."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...layout import aligned_zeros
from ...workload import ConvWorkload
from .base import DIRECT, NETWORK_DTYPES, QUANTIZED, Contestant, Prepared, types_of
from .onnxruntime import layer_model

# What it calls them. Quantised models say by themselves what is computed in integers.
_HINTS = {"float32": "f32", "bf16": "bf16"}
_PRODUCTS = ("Convolution", "FullyConnected", "MatMul")


@dataclass(frozen=True, kw_only=True)
class OpenVino(Contestant):
    """OpenVINO's CPU plug-in. By itself it computes float32 in bfloat16 where it can."""

    name: str = "OpenVINO"
    algorithm: str = DIRECT
    includes: str = (
        "From plain to plain: where it convolves in a layout of its own, input and output are "
        "reordered in each call."
    )
    colour: str = "#6a3d9a"
    marker: str = "<"

    title: ClassVar = "OpenVINO"
    packages: ClassVar = {"openvino": "", "onnx": ", which writes ONNX files,"}
    precisions: ClassVar = ("float32", *QUANTIZED)
    network_dtypes: ClassVar = NETWORK_DTYPES

    def load_library(self) -> None:
        import openvino

        openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")  # Loads the code for processors.

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        import openvino

        model = openvino.Core().read_model(layer_model(workload, weight).SerializeToString())
        compiled = _compiled(model, threads, "float32")
        request = compiled.create_infer_request()
        out = aligned_zeros(workload.output_shape, x.dtype)
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
        request.set_output_tensor(openvino.Tensor(out, shared_memory=True))
        steps = _steps(compiled)

        def call(_kept: object = x) -> None:
            request.infer()

        return Prepared(
            call=call,
            output=lambda: out,
            implementation=", ".join(
                f"{step['layerType']} {step['primitiveType']}"
                for step in steps
                if step["layerType"] in ("Convolution", "Reorder")
            ),
        )

    def prepare_network(self, path: Path, threads: int, x: np.ndarray, dtype: str) -> Prepared:
        import openvino

        compiled = _compiled(path, threads, dtype)
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

        def call(_kept: object = x) -> None:
            request.infer()

        return Prepared(
            call=call,
            output=lambda: request.get_output_tensor().data,
            precision=lambda: types_of(
                step["runtimePrecision"]
                for step in _steps(compiled)
                if step["layerType"] in _PRODUCTS
            ),
        )


def _compiled(model: Any, threads: int, dtype: str) -> Any:
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if dtype in _HINTS:
        settings["INFERENCE_PRECISION_HINT"] = _HINTS[dtype]
    return openvino.compile_model(model, "CPU", settings)


def _steps(compiled: Any) -> list[dict[str, str]]:
    """Return what is said of each step that is executed."""
    nodes = compiled.get_runtime_model().get_ops()
    return [{key: said.value for key, said in node.get_rt_info().items()} for node in nodes]
