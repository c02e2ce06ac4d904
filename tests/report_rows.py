"""Plausible rows for tests of reports: a measurer that measures nothing."""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

from tvm_directconv import ConvWorkload
from tvm_directconv.bench.report.rows import OURS
from tvm_directconv.bench.rivals.contestants import KNOWN, LAYER_CONTESTANTS
from tvm_directconv.bench.rivals.ours import TUNED

PEAK = 100.0  # GFLOP/s of one thread
# Part of the peak on all products; on 3x3 layers, Winograd's algorithm is faster by its factor.
SPEEDS = {
    OURS: 0.97,
    TUNED: 0.975,
    "im2col + OpenBLAS": 0.72,
    "OpenBLAS SGEMM alone": 0.78,
    "oneDNN": 0.95,
    "onnxruntime": 0.88,
    "OpenVINO": 0.9,
    "PyTorch, channels last": 0.83,
    "XNNPACK": 0.77,
    "TVM, untuned": 0.3,
    "TVM, tuned": 0.8,
    "ncnn, no Winograd": 0.7,
    "ncnn": 0.75,
    "MNN": 0.8,
}
WINOGRAD = {"ncnn": 2.0, "MNN": 2.4}
IM2COL = ("im2col + OpenBLAS", "OpenBLAS SGEMM alone", "ncnn, no Winograd")
BY_ITSELF = ("OpenVINO, defaults",)
ERRORS = {"float32": 1.25e-7, "bf16": 3.25e-3, "int8": 2.25e-2}
FOR_NETWORKS = (OURS, "onnxruntime", "PyTorch", *BY_ITSELF)
ALL = tuple(name for name in KNOWN if name in {each.name for each in LAYER_CONTESTANTS})
# Not installed; and installed, but found out when it is loaded that it does not know the processor.
ABSENT = {"XNNPACK": "package ai_edge_litert is not installed"}
UNKNOWN = {"NNPACK": "NNPACK does not know this processor"}


class Pretender:
    """Yields rows of made-up times, always the same for the same seed.

    Attributes
    ----------
    asked : list of tuple
        What was measured: subject's name, numbers of threads, contestants.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._absent = dict(ABSENT)
        self.asked: list[tuple[str, tuple[int, ...], tuple[str, ...]]] = []
        self.libraries = {"oneDNN": "oneDNN 3.9"}

    def contestants(self, subject: str) -> dict[str, str | None]:
        names = ALL if subject == "layer" else FOR_NETWORKS
        return {name: self._absent.get(name) for name in names}

    def install(self, contestant: str) -> None:
        """Let a contestant be there from now on."""
        del self._absent[contestant]

    def compare_layers(
        self,
        workloads: Sequence[ConvWorkload],
        contestants: Sequence[str],
        threads: Sequence[int],
        repeats: int,
        *,
        say: Callable[[str], None],
    ) -> Iterator[dict[str, Any]]:
        for workload in workloads:
            subject = workload.name or str(workload)
            self.asked.append((subject, tuple(threads), tuple(contestants)))
            for number, name in product(threads, contestants):
                say(f"{workload}: {name}")
                yield self._row(
                    name,
                    workload,
                    number,
                    repeats,
                    subject="layer",
                    network=workload.network,
                    layer=workload.layer,
                    workload=str(workload),
                )

    def compare_networks(
        self,
        networks: Sequence[str],
        contestants: Sequence[str],
        threads: Sequence[int],
        repeats: int,
        dtype: str,
        *,
        say: Callable[[str], None],
    ) -> Iterator[dict[str, Any]]:
        for network in networks:
            name = network if dtype == "float32" else f"{network} in {dtype}"
            self.asked.append((name, tuple(threads), tuple(contestants)))
            for number, name in product(threads, contestants):
                yield self._row(
                    name,
                    None,
                    number,
                    repeats,
                    subject="network",
                    network=network,
                    layer=None,
                    workload=None,
                    dtype=dtype,
                    precision="bf16" if name in BY_ITSELF else dtype,
                    rms_error=ERRORS["bf16" if name in BY_ITSELF else dtype],
                    agreement=0.875,
                )

    def _row(
        self,
        name: str,
        convolution: ConvWorkload | None,
        threads: int,
        repeats: int,
        **subject: Any,
    ) -> dict[str, Any]:
        draw = self._random.uniform
        kernel = convolution.kernel if convolution else (3, 3)
        fast = WINOGRAD.get(name, 1.0) if kernel == (3, 3) else 1.0
        row = {
            **subject,
            "threads": threads,
            "contestant": name,
            "library": self.libraries.get(name),
            "implementation": "jit:avx512_core" if name == "oneDNN" else None,
            "status": "ok",
            "reason": None,
            "algorithm": "Winograd" if fast > 1 else "im2col" if name in IM2COL else "direct",
            "includes": "the convolution, in its own layout; weights prepared ahead",
            "seconds": [],
            "peak_gflops": [],
            "extra_bytes": 0 if name in (OURS, TUNED) else None,
            "max_error": 1e-6,
            "compile_seconds": None,
            "blocking": None,
            "blocking_source": None,
        }
        if reason := (self._absent | UNKNOWN).get(name):
            return {**row, "status": "not_here", "reason": reason, "max_error": None}
        if convolution and convolution.groups > 1 and name in IM2COL:
            return {**row, "status": "unsupported", "reason": "groups", "max_error": None}
        useful = convolution.useful_flops if convolution else 10**9
        speed = SPEEDS.get(name, 0.5) * fast * draw(0.9, 1.02) * (0.97 if threads > 1 else 1)
        peaks = [PEAK * threads * draw(0.98, 1.02) for _ in range(repeats)]
        row["peak_gflops"] = peaks
        row["seconds"] = [useful / 1e9 / peak / min(speed, fast) for peak in peaks]
        if name in (OURS, TUNED, "TVM, untuned", "TVM, tuned"):
            row["compile_seconds"] = draw(0.1, 0.6) * (40 if "tuned" in name else 1)
        if name == OURS:
            row["blocking"], row["blocking_source"] = "8x16 lanes", "model"
        if name == "im2col + OpenBLAS" and convolution:
            row["extra_bytes"] = convolution.im2col_bytes
        return row
