"""OpenVINO."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...layout import aligned_zeros
from ...workload import ConvWorkload
from .base import DIRECT, QUANTIZED, Contestant, Prepared
from .onnxruntime import layer_model


@dataclass(frozen=True, kw_only=True)
class OpenVino(Contestant):
    """OpenVINO's CPU plug-in, in the number types of the model."""

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

    def load_library(self) -> None:
        import openvino

        openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")  # Loads the code for processors.

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        import openvino

        model = openvino.Core().read_model(layer_model(workload, weight).SerializeToString())
        compiled = _compiled(model, threads)
        request = compiled.create_infer_request()
        out = aligned_zeros(workload.output_shape, x.dtype)
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
        request.set_output_tensor(openvino.Tensor(out, shared_memory=True))
        steps = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]

        def call(_kept: object = x) -> None:
            request.infer()

        return Prepared(
            call=call,
            output=lambda: out,
            implementation=", ".join(
                f"{step['layerType'].value} {step['primitiveType'].value}"
                for step in steps
                if step["layerType"].value in ("Convolution", "Reorder")
            ),
        )

    def prepare_network(self, path: Path, threads: int, x: np.ndarray) -> Prepared:
        import openvino

        request = _compiled(path, threads).create_infer_request()
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

        def call(_kept: object = x) -> None:
            request.infer()

        return Prepared(call=call, output=lambda: request.get_output_tensor().data)


def _compiled(model: Any, threads: int) -> Any:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return openvino.compile_model(model, "CPU", settings)
