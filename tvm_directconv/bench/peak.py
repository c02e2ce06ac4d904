"""The FMA peak: a burst of multiply-adds that touches nothing but registers."""

import time
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DeviceError
from ..hardware.device import Device, Rate
from ..hardware.host import check_cores
from ..layout import aligned_zeros
from ..lowering.marks import TILE, of_instruction
from ..lowering.pipeline import PIPELINE
from ..precision import FLOAT32, Precision
from ..runtime import BoundCall
from ..toolchain import find_toolchain, link_module

# Additions and bitwise operations by turns, which no compiler can join: each waits one cycle for
# the one before, on every processor.
_LINKS = 16
_CLOCK_ROUNDS = 1000  # About 10 us: seldom interrupted, and the fastest of some never.
_CLOCK_TRIES = 3
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
    precision : Precision
        The number types of its multiply-adds.

    Attributes
    ----------
    symbol : str
        Name of its function, which takes the :meth:`arrays`.
    flops : int
        Operations of one call.
    flops_per_cycle : float
        The most that all threads can do in one cycle.
    module : tvm.runtime.Module
        The code.
    """

    symbol = "burst"

    def __init__(self, device: Device, threads: int, precision: Precision = FLOAT32) -> None:
        from tvm import IRModule, tirx

        rate = device.peak(precision)
        if rate.instruction.pixels > 1:
            function, self._tensors, products = _burst_of_matrices(rate, threads)
        else:
            function, self._tensors, products = _burst_of_vectors(rate, device, threads)
        target = device.target(threads)
        module = IRModule({self.symbol: function.with_attr("target", target)})
        self.module: Any = tirx.build(module, target, pipeline=PIPELINE)
        self.flops = 2 * threads * products
        self.flops_per_cycle = threads * rate.flops_per_cycle
        self._triple = device.triple

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return new arguments of the function: operands, and where the sums go."""
        operands, sums = (aligned_zeros((size,), dtype) for size, dtype in self._tensors)
        operands[...] = 0.5  # 0 of whole numbers
        return operands, sums

    def export(self, path: Path) -> None:
        """Write a shared library.

        Raises
        ------
        ToolchainError
            If there is no linker for the device.
        """
        link_module(self.module, path, find_toolchain(self._triple))


_Tensors = tuple[tuple[int, str], tuple[int, str]]
"""Elements of the operands and of the sums, and their types."""


def _burst_of_vectors(rate: Rate, device: Device, threads: int) -> tuple[Any, _Tensors, int]:
    """Return the function, its tensors, and how many products a thread computes."""
    from tvm.script import tirx as T

    lanes, rounds = rate.lanes, _ROUNDS
    # Twice what the pipelines need (the paper's inequality 1), as registers allow: two of
    # them hold the operands.
    instruction, precision = rate.instruction, rate.instruction.precision
    registers = device.vector_registers - 3 - instruction.temporaries
    sums = max(min(registers, ceil(2 * rate.per_cycle * rate.latency)), 4)
    called = bool(instruction.intrinsic)
    if precision.whole and not called:
        raise DeviceError(
            f"no burst of {instruction} can be measured: expected another number type, or a "
            "device that multiplies several channels at once"
        )
    total = precision.sum.name
    operand = total if instruction.depth > 1 else precision.pixel.name

    def added(sums: Any, one: Any, other: Any) -> Any:
        # What is not called would be computed once for all rounds.
        if called:
            return sums + one.astype(total) * other.astype(total)
        return sums * one + other

    length = sums * lanes  # Of a thread's sums.

    @T.prim_func(s_tir=True)
    def burst(
        weight: T.Buffer((2 * lanes,), operand),  # type: ignore[valid-type]
        y: T.Buffer((threads * length,), total),  # type: ignore[valid-type]
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": "burst"})
        for thread in T.parallel(threads):
            with T.attr(0, TILE, 1):
                for i in T.unroll(sums):
                    for j in T.vectorized(lanes):
                        y[thread * length + i * lanes + j] = weight[j].astype(total)
                for _ in range(rounds):
                    for i in T.unroll(sums):
                        for j in T.vectorized(lanes):
                            y[thread * length + i * lanes + j] = added(
                                y[thread * length + i * lanes + j], weight[j], weight[lanes + j]
                            )

    function = burst.with_attr(of_instruction(instruction, precision, again=True))
    tensors = (2 * lanes, operand), (threads * length, total)
    return function, tensors, sums * lanes * instruction.depth * rounds


def _burst_of_matrices(rate: Rate, threads: int) -> tuple[Any, _Tensors, int]:
    """Return the same for matrix registers: by turns, all sums that a tile has at most."""
    from ..lowering.matrices import products_again

    instruction = rate.instruction
    total, of_sums = instruction.precision.sum.name, instruction.pixels * instruction.lanes
    # Each takes as many cycles as there are pixels.
    sums, rounds = 4, _ROUNDS // instruction.pixels
    tensors = (2 * of_sums, total), (threads * sums * of_sums, total)
    function = products_again(instruction.intrinsic, total, sums, rounds, threads)
    return function, tensors, sums * of_sums * instruction.words * instruction.depth * rounds


class Clock:
    """The clock of the core at hand: a chain of operations that wait for each other.

    It uses next to nothing of a core, so another thread there does not slow it down. Counters of
    cycles would tell the same, but virtual machines and users without rights have none.

    Parameters
    ----------
    device : Device
        One whose code runs on this machine.
    """

    def __init__(self, device: Device) -> None:
        import tvm_ffi
        from tvm import IRModule, tirx
        from tvm.script import tirx as T

        links, rounds = _LINKS, _CLOCK_ROUNDS

        @T.prim_func(s_tir=True)
        def clock(x: T.Buffer((3,), "int64")):  # type: ignore[valid-type]
            T.func_attr({"tirx.noalias": True, "global_symbol": "clock"})
            for _ in range(rounds):
                for _ in T.unroll(links // 2):
                    x[0] = T.bitwise_xor(x[0] + x[1], x[2])

        function = clock.with_attr("target", device.target(1))
        module = tirx.build(IRModule({"clock": function}), device.target(1), pipeline=PIPELINE)
        self._function: Any = module["clock"]
        self._x = tvm_ffi.from_dlpack(np.array([1, 3, 5], np.int64))
        self()

    def __call__(self) -> float:
        """Return it in GHz."""
        seconds = []
        for _ in range(_CLOCK_TRIES):
            begin = time.perf_counter()
            self._function(self._x)
            seconds.append(time.perf_counter() - begin)
        return _LINKS * _CLOCK_ROUNDS / min(seconds) / 1e9


class Burst:
    """The burst on this machine.

    Parameters
    ----------
    device : Device
        One whose code runs on this machine.
    threads : int
        Threads that run it at once.
    precision : Precision
        The number types of its multiply-adds.

    Attributes
    ----------
    assembly : str
        The code.
    flops : int
        Operations of one call.

    Raises
    ------
    ArgumentError
        If there are fewer cores than threads.
    """

    def __init__(self, device: Device, threads: int, precision: Precision = FLOAT32) -> None:
        check_cores(threads)
        code = BurstCode(device, threads, precision)
        self.assembly: str = code.module.inspect_source("asm")
        self._call = BoundCall(code.module[code.symbol], code.arrays(), threads)
        self.flops = code.flops
        self._flops_per_cycle = code.flops_per_cycle
        self._clock = Clock(device)
        self()

    def allowed(self) -> float:
        """Return the GFLOP/s that the clock allows at this moment."""
        return self._flops_per_cycle * self._clock()

    def __call__(self) -> float:
        """Run it once and return its speed in GFLOP/s."""
        return self.flops / self._call.timed() / 1e9
