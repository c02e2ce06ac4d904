"""This package, and the FMA burst that all are measured against."""

import importlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...convolution import CompiledConv, build
from ...epilogue import Epilogue
from ...hardware.lookup import device
from ...layout import aligned_zeros
from ...precision import PRECISIONS
from ...workload import ConvWorkload
from .base import DIRECT, NETWORK_DTYPES, QUANTIZED, Contestant, Prepared, Source, quantization_of

# What `compile` calls them; quantised models are computed in the types that they have.
_DTYPES = {"float32": "fp32", "bf16": "bf16"}

TUNED = "ours, tuned"
"""The name with block sizes of tuning logs."""


@dataclass(frozen=True, kw_only=True)
class Ours(Contestant):
    """This package.

    Attributes
    ----------
    blocking : str
        Where block sizes come from; see :func:`tvm_directconv.build`.
    """

    name: str = "ours"
    algorithm: str = DIRECT
    includes: str = (
        "The convolution alone: input and output stay in the blocked layout that layers pass on "
        "to each other (an image of 3 channels is plain), and nothing is reordered."
    )
    colour: str = "#d7191c"
    marker: str = "o"
    blocking: str = "model"

    title: ClassVar = "tvm-directconv"
    packages: ClassVar = {"tvm_directconv": ""}
    precisions: ClassVar = tuple(PRECISIONS)
    network_dtypes: ClassVar = NETWORK_DTYPES

    def load_library(self) -> None:
        importlib.import_module("tvm")

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        conv, extra = _built(workload, threads, self.blocking)
        meaning = quantization_of(workload) if conv.manifest.epilogue.rounded else None
        operands = conv.pack_operands(weight, meaning)
        out = aligned_zeros(conv.manifest.output_shape, conv.manifest.output_type.name)
        return Prepared(
            call=conv.bind(conv.pack_input(x), conv.pack_weight(weight), out, **operands),
            output=lambda: conv.unpack_output(out),
            extra_bytes=extra,
            compile_seconds=conv.compile_seconds,
            blocking=str(conv.blocking),
            blocking_source=conv.manifest.blocking_source,
        )

    def convert(self, source: Source, threads: int) -> Path:
        from ...network.compile import compile_network

        library = Path(source.onnx).with_suffix(".so")
        compile_network(
            source.onnx,
            library,
            threads=threads,
            blocking=self.blocking,
            check=False,
            dtype=_DTYPES.get(source.dtype),
        )
        return library

    def prepare_network(self, path: Path, threads: int, x: np.ndarray, dtype: str) -> Prepared:
        from ...network.network import load_network

        network = load_network(path)
        call, outputs = network.bind(x)
        return Prepared(
            call=call,
            output=lambda: outputs[0],
            precision=lambda: ", ".join(network.manifest.types),
        )


@lru_cache(maxsize=1)  # For other places in memory.
def _built(workload: ConvWorkload, threads: int, blocking: str) -> tuple[CompiledConv, int]:
    from ..measure import extra_bytes

    requantize = workload.dtype if workload.dtype in QUANTIZED else ""
    epilogue = Epilogue(requantize=requantize)
    conv = build(workload, "native", threads, blocking, epilogue=epilogue)
    m = conv.manifest
    packed = [
        aligned_zeros(m.input_shape, m.precision.pixel.name),
        aligned_zeros(m.weight_shape, m.precision.weight.name),
        *(aligned_zeros(each.shape, each.number.name) for each in m.operands().values()),
    ]
    return conv, extra_bytes(conv, device("native"), packed)


@dataclass(frozen=True, kw_only=True)
class Peak(Contestant):
    """The burst of :mod:`tvm_directconv.bench.peak`: its subject is no matter.

    Attributes
    ----------
    precision : str
        Of its multiply-adds.
    """

    name: str = "peak"
    algorithm: str = "multiply-adds between registers"
    precision: str = "float32"

    title: ClassVar = "tvm-directconv"
    packages: ClassVar = {"tvm_directconv": ""}

    def load_library(self) -> None:
        importlib.import_module("tvm")

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        burst = _burst(threads, self.precision)
        return Prepared(
            call=burst,
            output=lambda: np.zeros(1, np.float32),
            flops=burst.flops,
            allowed=burst.allowed,
        )


@lru_cache(maxsize=1)
def _burst(threads: int, precision: str) -> Any:
    from ..peak import Burst

    return Burst(device("native"), threads, PRECISIONS[precision])
