"""ncnn, with Winograd's algorithm and without."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ... import files
from ...hardware.lookup import device
from ...workload import ConvWorkload
from .base import NETWORK_SHAPE, Contestant, Failed, Prepared, only_plain, run_converter

_LAYER = """7767517
2 2
Input input 0 1 x
Convolution{depthwise} conv 1 1 x y {settings}
"""
_FLOAT32 = 0  # A flag before weights.


@dataclass(frozen=True, kw_only=True)
class Ncnn(Contestant):
    """ncnn in float32.

    Attributes
    ----------
    winograd : bool
        Whether Winograd's algorithm is allowed.
    """

    name: str = "ncnn"
    includes: str = (
        "The convolution alone, its output allocated anew: input and output have the layout that "
        "layers pass on to each other, and nothing is reordered."
    )
    colour: str = "#8c564b"
    marker: str = "d"
    winograd: bool = True

    title: ClassVar = "ncnn"
    packages: ClassVar = {"ncnn": ""}
    network_packages: ClassVar = {"pnnx": ", which converts ONNX files for it,"}

    def unsupported(self, workload: ConvWorkload) -> str | None:
        return only_plain(workload, batch=False)

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        import ncnn

        w = workload
        top, left, bottom, right = w.padding
        settings = {
            0: w.out_channels,
            **{1: w.kernel[1], 11: w.kernel[0], 2: w.dilation[1], 12: w.dilation[0]},
            **{3: w.stride[1], 13: w.stride[0], 4: left, 14: top, 15: right, 16: bottom},
            **{5: 0, 6: weight.size},  # No bias.
        }
        if w.groups > 1:
            settings[7] = w.groups
        text = _LAYER.format(
            depthwise="DepthWise" if w.groups > 1 else "",
            settings=" ".join(f"{key}={value}" for key, value in settings.items()),
        )
        with files.scratch() as folder:
            path = folder / "layer.param"
            path.write_text(text)
            path.with_suffix(".bin").write_bytes(np.int32(_FLOAT32).tobytes() + weight.tobytes())
            network = self._load(path, threads)
        options = network.opt
        packed = ncnn.Mat()
        ncnn.convert_packing(ncnn.Mat(x[0]).clone(), packed, _elements(w.in_channels), options)
        results: list[Any] = [None]

        def call() -> None:
            extractor = network.create_extractor()
            extractor.input("x", packed)
            _, results[0] = extractor.extract("y", 1)  # As it is, packed.

        def output() -> np.ndarray:
            plain = ncnn.Mat()
            ncnn.convert_packing(results[0], plain, 1, options)
            return np.array(plain)[np.newaxis]

        return Prepared(call=call, output=output)

    def convert(self, onnx: Path, threads: int) -> Path:
        path = onnx.with_suffix(".ncnn.param")
        if not path.exists():  # With and without Winograd it is the same.
            # The program only: its Python package imports PyTorch.
            spec = importlib.util.find_spec("pnnx")
            assert spec and spec.origin
            shape = f"inputshape=[{','.join(map(str, NETWORK_SHAPE))}]"
            run_converter([str(Path(spec.origin).with_name("pnnx")), str(onnx), shape, "fp16=0"])
        return path

    def prepare_network(self, path: Path, threads: int, x: np.ndarray) -> Prepared:
        import ncnn

        network = self._load(path, threads)
        image = ncnn.Mat(x[0]).clone()
        results: list[Any] = [None]

        def call() -> None:
            extractor = network.create_extractor()
            extractor.input("in0", image)
            _, results[0] = extractor.extract("out0")

        return Prepared(call=call, output=lambda: np.array(results[0]))

    def _load(self, path: Path, threads: int) -> Any:
        import ncnn

        network = ncnn.Net()
        options = network.opt
        options.num_threads = threads
        options.use_winograd_convolution = self.winograd
        for half in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(options, f"use_{half}", False)
        files = (path, path.with_suffix(".bin"))
        for load, file in zip((network.load_param, network.load_model), files, strict=True):
            if load(str(file)):
                raise Failed(f"ncnn cannot load {file.name}")
        return network


def _elements(channels: int) -> int:
    """Return of how many channels ncnn makes blocks, by its own rule."""
    lanes = device("native").lanes
    return next(size for size in (16, 8, 4, 1) if size <= lanes and channels % size == 0)
