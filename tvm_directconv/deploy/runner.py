"""Run a kernel of an exported library in a process of its own.

The process is ``runner.c``, built for the library's machine: no Python and no
TVM is in it, what the kernel allocates is counted, and a kernel that crashes
takes nothing else down.
"""

import hashlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvm_directconv.errors import ArgumentError, LibraryError, ToolchainError
from tvm_directconv.toolchain import Toolchain, elf_info, run_cc

__all__ = ["RunReport", "build_runner", "run_library"]

_SOURCE = Path(__file__).with_name("runner.c")
_FLAGS = ("-std=c99", "-O2", "-rdynamic", "-pthread", "-ldl")


@dataclass(frozen=True, eq=False)
class RunReport:
    """What came out of running a kernel.

    Attributes
    ----------
    outputs : list of numpy.ndarray
        The float32 outputs. An element that the kernel did not write is NaN.
    seconds : list of float
        The time of one call, once for each repetition.
    allocations : int
        Memory requests that the kernel made during its first call.
    allocated_bytes : int
        Their sum, workspaces included.
    rss_growth_bytes : int
        Growth of the peak of resident memory over the first batch of calls:
        coarse, but it sees what counting requests cannot.
    """

    outputs: list[np.ndarray]
    seconds: list[float]
    allocations: int
    allocated_bytes: int
    rss_growth_bytes: int


def build_runner(toolchain: Toolchain) -> Path:
    """Build the runner program, unless it is in the cache already.

    The cache is ``$XDG_CACHE_HOME/tvm_directconv``, or
    ``~/.cache/tvm_directconv``. Several processes may do this at once.

    Parameters
    ----------
    toolchain : Toolchain
        Compiler for the machine that the runner is for.

    Returns
    -------
    Path
        The program. It needs nothing but the C library, so it can be copied
        to a board.

    Raises
    ------
    ToolchainError
        If compiling fails or the cache cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tvm_directconv"
    recipe = "\0".join([_SOURCE.read_text(encoding="utf-8"), *toolchain.cc, *_FLAGS])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    runner = cache / f"runner-{toolchain.machine}-{digest}"
    if not runner.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ToolchainError(
                f"cannot create the cache directory {cache}: {error}. "
                "Set XDG_CACHE_HOME to a directory that can be written"
            ) from error
        run_cc([str(_SOURCE), *_FLAGS], runner, toolchain)
    return runner


def run_library(
    library: str | Path,
    symbol: str,
    inputs: Sequence[np.ndarray],
    output_shapes: Sequence[tuple[int, ...]],
    toolchain: Toolchain,
    *,
    repeat: int = 1,
    warmup: int = 0,
    number: int = 1,
    threads: int = 1,
) -> RunReport:
    """Run one kernel of an exported library, emulated if it is a foreign one.

    Parameters
    ----------
    library : str or Path
        Shared library that TVM exported.
    symbol : str
        Name of the kernel, its ``global_symbol``.
    inputs : sequence of numpy.ndarray
        The first arguments of the kernel, float32.
    output_shapes : sequence of tuple of int
        Shapes of the remaining arguments, which the kernel writes.
    toolchain : Toolchain
        Compiler and emulator of the library's machine.
    repeat : int, optional
        Number of measurements.
    warmup : int, optional
        Number of untimed calls before them.
    number : int, optional
        Number of calls that make up one measurement.
    threads : int, optional
        Threads that parallel loops are divided among.

    Returns
    -------
    RunReport
        Outputs, times and memory use.

    Raises
    ------
    ArgumentError
        If an input is not a float32 array.
    LibraryError
        If the library is damaged or for another machine, has no such kernel,
        refuses the shapes, or crashes.
    ToolchainError
        If the runner cannot be built or the emulator is missing.
    """
    for index, array in enumerate(inputs):
        if array.dtype != np.float32:
            raise ArgumentError(
                f"input {index} of kernel {symbol} is {array.dtype}, expected float32: "
                "convert it with astype(numpy.float32)"
            )
    machine = elf_info(library).machine
    if machine != toolchain.machine:
        raise LibraryError(
            f"{library} is for {machine}, but the toolchain is for {toolchain.machine}: "
            "pass the toolchain of the target that the library was compiled for"
        )
    runner = build_runner(toolchain)
    with tempfile.TemporaryDirectory(prefix="tvm_directconv-") as scratch:
        tensors = []
        for index, array in enumerate(inputs):
            file = Path(scratch, f"in{index}")
            array.tofile(file)
            tensors.append(_tensor("in", file, array.shape))
        files = [Path(scratch, f"out{index}") for index in range(len(output_shapes))]
        tensors += [
            _tensor("out", file, shape) for file, shape in zip(files, output_shapes, strict=True)
        ]
        options = {"repeat": repeat, "warmup": warmup, "number": number, "threads": threads}
        command = toolchain.command(
            str(runner),
            str(library),
            symbol,
            *(text for name, value in options.items() for text in (f"--{name}", str(value))),
            *tensors,
        )
        process = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        shapes = [*(array.shape for array in inputs), *output_shapes]
        report = _report(process, f"kernel {symbol} of {library}, called with shapes {shapes},")
        outputs = [
            np.fromfile(file, np.float32).reshape(shape)
            for file, shape in zip(files, output_shapes, strict=True)
        ]
    return RunReport(
        outputs,
        report["seconds"],
        report["allocations"],
        report["allocated_bytes"],
        report["rss_growth_bytes"],
    )


def _tensor(role: str, file: Path, shape: tuple[int, ...]) -> str:
    return f"{role}:{file}:{','.join(map(str, shape))}"


def _report(process: subprocess.CompletedProcess[str], kernel: str) -> dict[str, Any]:
    """Read what the runner printed, or raise what went wrong."""
    status = process.returncode
    if status == 0:
        report: dict[str, Any] = json.loads(process.stdout)
        return report
    if status == -signal.SIGILL:
        reason = (
            "the emulated or host CPU lacks an instruction of this library: compile it for that "
            "CPU, or run it on the one it was compiled for"
        )
    elif status < 0:
        reason = f"killed by {signal.Signals(-status).name} ({signal.strsignal(-status)})"
    elif status == 1 and process.stdout:
        reason = json.loads(process.stdout)["error"]
    else:  # bad arguments, or the emulator itself failed
        reason = process.stderr.strip() or f"the runner exited with status {status}"
    raise LibraryError(f"{kernel} failed: {reason}")
