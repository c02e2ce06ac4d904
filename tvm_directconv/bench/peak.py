"""The FMA peak: a burst of multiply-adds that touches nothing but registers."""

import time
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from ..device import Device
from ..layout import aligned_zeros
from ..lowering import PIPELINE, TILE
from ..toolchain import find_toolchain, link_module

# Some milliseconds at most: as long as what it stands beside, so that noise hits both alike.
_ROUNDS = 400_000


class BurstCode:
    """Multiply-adds on all threads, with the widest vector of a device and independent sums.

    This is the code, which may be for another machine; :class:`Burst` runs it here.

    Parameters
    ----------
    device : Device
        For which it is compiled.
    threads : int
        Threads that run it at once.

    Attributes
    ----------
    symbol : str
        Name of its function, which takes the :meth:`arrays`.
    flops : int
        Operations of one call.
    module : tvm.runtime.Module
        The code.
    """

    symbol = "burst"

    def __init__(self, device: Device, threads: int) -> None:
        from tvm import IRModule, tirx
        from tvm.script import tirx as T

        vector = max(device.vectors, key=lambda v: (v.lanes * v.fma_per_cycle, v.lanes))
        lanes = vector.lanes
        # Twice what the pipelines need (the paper's inequality 1), as registers allow: two of
        # them hold the operands.
        sums = min(device.vector_registers - 3, ceil(2 * vector.fma_per_cycle * device.fma_latency))
        sums = max(sums, 4)
        rounds = _ROUNDS

        @T.prim_func(s_tir=True)
        def burst(
            x: T.Buffer((2 * lanes,), "float32"),  # type: ignore[valid-type]
            y: T.Buffer((threads * sums * lanes,), "float32"),  # type: ignore[valid-type]
        ):
            T.func_attr({"tirx.noalias": True, "global_symbol": "burst"})
            for thread in T.parallel(threads):
                with T.attr(0, TILE, 1):
                    for i in T.unroll(sums):
                        for j in T.vectorized(lanes):
                            y[thread * sums * lanes + i * lanes + j] = x[j]
                    for _ in range(rounds):
                        for i in T.unroll(sums):
                            for j in T.vectorized(lanes):
                                y[thread * sums * lanes + i * lanes + j] = (
                                    y[thread * sums * lanes + i * lanes + j] * x[j] + x[lanes + j]
                                )

        function = burst.with_attr("target", device.target(threads))
        self.module: Any = tirx.build(
            IRModule({self.symbol: function}), device.target(threads), pipeline=PIPELINE
        )
        self.flops = 2 * threads * sums * lanes * rounds
        self._triple = device.triple
        self._sizes = (2 * lanes, threads * sums * lanes)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return new arguments of the function: operands, and where the sums go."""
        operands, sums = (aligned_zeros((size,)) for size in self._sizes)
        operands[...] = np.float32(0.5)
        return operands, sums

    def export(self, path: Path) -> None:
        """Write a shared library.

        Raises
        ------
        ToolchainError
            If there is no linker for the device.
        """
        link_module(self.module, path, find_toolchain(self._triple))


class Burst:
    """The burst on this machine.

    Parameters
    ----------
    device : Device
        One whose code runs on this machine.
    threads : int
        Threads that run it at once.

    Attributes
    ----------
    assembly : str
        The code.
    flops : int
        Operations of one call.
    """

    def __init__(self, device: Device, threads: int) -> None:
        import tvm_ffi

        code = BurstCode(device, threads)
        self.assembly: str = code.module.inspect_source("asm")
        self._function: Any = code.module[code.symbol]
        self._arrays = tuple(tvm_ffi.from_dlpack(array) for array in code.arrays())
        self.flops = code.flops
        self()

    def __call__(self) -> float:
        """Run it once and return its speed in GFLOP/s."""
        begin = time.perf_counter()
        self._function(*self._arrays)
        return self.flops / (time.perf_counter() - begin) / 1e9
