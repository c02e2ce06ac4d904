"""MNN."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ... import files
from ...workload import ConvWorkload
from .base import Contestant, Prepared, run_converter
from .onnxruntime import layer_model


@dataclass(frozen=True, kw_only=True)
class Mnn(Contestant):
    """MNN in float32."""

    name: str = "MNN"
    includes: str = (
        "From plain to plain, its output allocated anew: input and output are reordered in each "
        "call where it convolves in blocks."
    )
    colour: str = "#000000"
    marker: str = "*"

    title: ClassVar = "MNN"
    packages: ClassVar = {"MNN": "", "onnx": ", which writes ONNX files,"}

    def load_library(self) -> None:
        importlib.import_module("MNN.nn")

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        import onnx

        with files.scratch() as folder:
            path = folder / "layer.onnx"
            onnx.save(layer_model(workload, weight), path)
            return _prepared(self.convert(path, threads), threads, x, "y")

    def convert(self, onnx: Path, threads: int) -> Path:
        path = onnx.with_suffix(".mnn")
        # Not by MNN.tools: to import that installs packages with pip, and calls a server.
        program = "import sys, _tools; _tools.mnnconvert(sys.argv)"
        files = ["--modelFile", str(onnx), "--MNNModel", str(path)]
        run_converter([sys.executable, "-c", program, "-f", "ONNX", *files])
        return path

    def prepare_network(self, path: Path, threads: int, x: np.ndarray) -> Prepared:
        return _prepared(path, threads, x, "logits")


def _prepared(path: Path, threads: int, x: np.ndarray, output: str) -> Prepared:
    from MNN import expr, nn

    settings = {"backend": "CPU", "precision": "high", "numThread": threads}
    runtime = nn.create_runtime_manager((settings,))
    network = nn.load_module_from_file(str(path), ["x"], [output], runtime_manager=runtime)
    image = expr.const(x, list(x.shape), expr.NCHW)
    results = [image]

    def call(_kept: object = (runtime, x)) -> None:
        results[0] = network.forward(image)
        results[0].read()  # Nothing is computed before.

    return Prepared(call=call, output=lambda: results[0].read())
