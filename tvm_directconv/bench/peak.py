"""The FMA peak: a burst of multiply-adds that touches nothing but registers."""

import time
from math import ceil
from typing import Any

from ..device import Device
from ..lowering import PIPELINE, TILE

# Some milliseconds at most: as long as what it stands beside, so that noise hits both alike.
_ROUNDS = 400_000


class Burst:
    """Multiply-adds on all threads, with the widest vector of a device and independent sums.

    Parameters
    ----------
    device : Device
        One whose code runs on this machine.
    threads : int
        Threads that run it at once.
    """

    def __init__(self, device: Device, threads: int) -> None:
        import numpy as np
        import tvm_ffi
        from tvm import IRModule, tirx
        from tvm.script import tirx as T

        from ..layout import aligned_zeros

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
        module = tirx.build(
            IRModule({"burst": function}), device.target(threads), pipeline=PIPELINE
        )
        self.assembly: str = module.inspect_source("asm")
        self._function: Any = module["burst"]
        x = aligned_zeros((2 * lanes,))
        x[...] = np.float32(0.5)
        self._arrays = (
            tvm_ffi.from_dlpack(x),
            tvm_ffi.from_dlpack(aligned_zeros((threads * sums * lanes,))),
        )
        self._flops = 2 * threads * sums * lanes * rounds
        self()

    def __call__(self) -> float:
        """Run it once and return its speed in GFLOP/s."""
        begin = time.perf_counter()
        self._function(*self._arrays)
        return self._flops / (time.perf_counter() - begin) / 1e9
