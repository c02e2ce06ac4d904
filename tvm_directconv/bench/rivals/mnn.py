"""MNN."""

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ... import files
from ...workload import ConvWorkload
from .base import NETWORK_DTYPES, Contestant, Prepared, Source, run_converter
from .onnxruntime import layer_model

# What it calls them. It computes in float32 where it has no code for what it is told.
_PRECISIONS = {"float32": "high", "bf16": "low_bf16", "fp16": "low"}


@dataclass(frozen=True, kw_only=True)
class Mnn(Contestant):
    """MNN."""

    name: str = "MNN"
    includes: str = (
        "From plain to plain, its output allocated anew: input and output are reordered in each "
        "call where it convolves in blocks."
    )
    colour: str = "#000000"
    marker: str = "*"

    title: ClassVar = "MNN"
    packages: ClassVar = {"MNN": "", "onnx": ", which writes ONNX files,"}
    network_dtypes: ClassVar = NETWORK_DTYPES

    def load_library(self) -> None:
        importlib.import_module("MNN.nn")

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        import onnx

        with files.scratch() as folder:
            path = folder / "layer.onnx"
            onnx.save(layer_model(workload, weight), path)
            return _prepared(_converted(path), threads, x, "y", "float32")

    def convert(self, source: Source, threads: int) -> Path:
        path = _converted(Path(source.float32))
        return _quantized(path, source) if source.dtype == "int8" else path

    def prepare_network(self, path: Path, threads: int, x: np.ndarray, dtype: str) -> Prepared:
        return _prepared(path, threads, x, "logits", dtype)


def _converted(onnx: Path) -> Path:
    path = onnx.with_suffix(".mnn")
    _run_tool("mnnconvert", "-f", "ONNX", "--modelFile", str(onnx), "--MNNModel", str(path))
    return path


def _quantized(path: Path, source: Source) -> Path:
    """Return what MNN's own quantiser makes of a network."""
    result, config = path.with_suffix(".int8.mnn"), path.with_suffix(".json")
    folder = path.with_suffix(".samples")
    samples = np.load(source.samples)
    for number, image in enumerate(samples):
        place = folder / str(number)
        place.mkdir(parents=True)
        np.savetxt(place / "x.txt", image.ravel(), "%.8g")
        ports = {"inputs": [{"name": "x", "shape": [1, *image.shape]}], "outputs": ["logits"]}
        (place / "input.json").write_text(json.dumps(ports))
    settings = {
        "input_type": "sequence",
        "path": f"{folder}/",
        "used_sample_num": len(samples),
        "batch_size": 1,
        "quant_bits": 8,
        "feature_quantize_method": "ADMM",  # Of its ways the one for few samples.
        "weight_quantize_method": "MAX_ABS",
    }
    config.write_text(json.dumps(settings))
    _run_tool("mnnquant", str(path), str(result), str(config))
    return result


def _run_tool(name: str, *words: str) -> None:
    # Not by MNN.tools: to import that installs packages with pip, and calls a server.
    program = f"import sys, _tools; _tools.{name}(sys.argv)"
    run_converter([sys.executable, "-c", program, *words])


def _prepared(path: Path, threads: int, x: np.ndarray, output: str, dtype: str) -> Prepared:
    from MNN import expr, nn

    settings = {"backend": "CPU", "numThread": threads}
    if dtype in _PRECISIONS:
        settings["precision"] = _PRECISIONS[dtype]
    runtime = nn.create_runtime_manager((settings,))
    network = nn.load_module_from_file(str(path), ["x"], [output], runtime_manager=runtime)
    image = expr.const(x, list(x.shape), expr.NCHW)
    results = [image]

    def call(_kept: object = (runtime, x)) -> None:
        results[0] = network.forward(image)
        results[0].read()  # Nothing is computed before.

    return Prepared(call=call, output=lambda: results[0].read(), feed=image.write)
