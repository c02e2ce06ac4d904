"""PyTorch: oneDNN as it calls it, and NNPACK."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...workload import ConvWorkload
from .base import DEFAULTS, DIRECT, OWN_CHOICE, Contestant, NotHere, Prepared, only_plain


@dataclass(frozen=True, kw_only=True)
class PyTorch(Contestant):
    """PyTorch's prepacked convolution by oneDNN, as its compiler calls it, channels last."""

    name: str = "PyTorch, channels last"
    algorithm: str = DIRECT
    includes: str = (
        "The convolution alone, its output allocated anew: input and output have the channels "
        "last, the weights a layout of oneDNN's choice, and nothing is reordered."
    )
    colour: str = "#e377c2"
    marker: str = ">"

    title: ClassVar = "PyTorch"
    packages: ClassVar = {"torch": ""}
    network_packages: ClassVar = {"onnx2torch": ", which reads ONNX files for it,"}
    network_dtypes: ClassVar = ("float32", "bf16")

    def library(self) -> str:
        import torch

        parts = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
        with_onednn = f" with oneDNN {parts[1]}" if parts else ""
        return f"PyTorch {torch.__version__}{with_onednn}"

    def unsupported(self, workload: ConvWorkload) -> str | None:
        return only_plain(workload, unequal_padding=False)

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        import torch

        torch.set_num_threads(threads)
        window = [list(pair) for pair in (workload.padding[:2], workload.stride, workload.dilation)]
        settings = (*window, workload.groups)
        with torch.inference_mode():
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                torch.from_numpy(weight), *settings, list(workload.input_shape)
            )
            source = torch.from_numpy(x).to(memory_format=torch.channels_last)
        results = [source]
        convolve = torch.ops.mkldnn._convolution_pointwise.default

        def call() -> None:
            with torch.inference_mode():
                results[0] = convolve(source, packed, None, *settings, "none", [], "")

        return Prepared(call=call, output=lambda: results[0].numpy())

    def prepare_network(self, path: Path, threads: int, x: np.ndarray, dtype: str) -> Prepared:
        """Load a network: by default as it is, else traced, with its weights prepared."""
        import torch
        from onnx2torch import convert

        torch.set_num_threads(threads)
        source = torch.from_numpy(x)
        network = convert(str(path)).eval()
        if dtype != DEFAULTS:
            half = torch.autocast(
                "cpu", torch.bfloat16, enabled=dtype == "bf16", cache_enabled=False
            )
            with torch.inference_mode(), half:
                network = torch.jit.freeze(torch.jit.trace(network, torch.zeros(x.shape)))
                network = torch.jit.optimize_for_inference(network)
        results = [source]

        def call() -> None:
            with torch.inference_mode():
                results[0] = network(source)

        return Prepared(
            call=call,
            output=lambda: results[0].float().numpy(),
            # The last layer's is that of all.
            precision=lambda: str(results[0].dtype).removeprefix("torch."),
        )


@dataclass(frozen=True, kw_only=True)
class Nnpack(PyTorch):
    """NNPACK as PyTorch calls it: it chooses between FFT, Winograd and matrix products."""

    name: str = "NNPACK"
    algorithm: str = OWN_CHOICE
    includes: str = (
        "From plain to plain; the weights are transformed in each call, as PyTorch does not keep "
        "what NNPACK makes of them, and the output is allocated anew."
    )
    colour: str = "#bcbd22"
    marker: str = "h"

    network_packages: ClassVar = {}

    def load_library(self) -> None:
        import torch

        if not torch._nnpack_available():
            raise NotHere("this PyTorch has no NNPACK, or NNPACK does not know this processor")

    def library(self) -> str:
        import torch

        return f"NNPACK in PyTorch {torch.__version__}"

    def unsupported(self, workload: ConvWorkload) -> str | None:
        return only_plain(workload, groups=False, dilation=False, unequal_padding=False)

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        import torch

        torch.set_num_threads(threads)
        source, weights = torch.from_numpy(x), torch.from_numpy(weight)
        settings = list(workload.padding[:2]), list(workload.stride)
        results = [source]

        def call() -> None:
            with torch.inference_mode():
                results[0] = torch._nnpack_spatial_convolution(source, weights, None, *settings)

        return Prepared(call=call, output=lambda: results[0].numpy())

    def prepare_network(self, path: Path, threads: int, x: np.ndarray, dtype: str) -> Prepared:
        return Contestant.prepare_network(self, path, threads, x, dtype)
