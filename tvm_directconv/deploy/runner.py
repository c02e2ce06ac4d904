"""Run a kernel of an exported library in a process of its own.

The process is ``runner.c`` with the C runtime ``directconv.c``, built for the
library's machine: no Python and no TVM is in it, what the kernel allocates is
counted, and a kernel that crashes takes nothing else down.
"""

import hashlib
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvm_directconv import cache, files, reading
from tvm_directconv.errors import ArgumentError, LibraryError, ToolchainError
from tvm_directconv.kinds import COUNT, TEXT, Kind, is_number, problem
from tvm_directconv.toolchain import Toolchain, elf_info, run_cc

__all__ = [
    "RunFailure",
    "RunReport",
    "build_cached",
    "build_runner",
    "last_line",
    "read_report",
    "run_library",
    "runner_arguments",
    "tensor_argument",
]

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("runner.c", "directconv.c"))
_HEADERS = tuple(Path(__file__).with_name(name) for name in ("directconv.h", "packed.h"))
_INTEGERS = tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
_TYPES = ("float32", "float64", "float16", "bfloat16", "bool", *_INTEGERS)
_FLAGS = ("-std=c99", "-O2", "-rdynamic", "-pthread", "-ldl")
_MEASURED = ("seconds", "outside", "allocations", "allocated_bytes", "rss_growth_bytes")


@dataclass(frozen=True, eq=False)
class RunReport:
    """What came out of running a kernel.

    Attributes
    ----------
    outputs : list of numpy.ndarray
        The outputs. An element that the kernel did not write is NaN; all its bits are 1.
    seconds : list of float
        The time of one call, once for each repetition.
    allocations : int
        Memory requests that the kernel made during its first call.
    allocated_bytes : int
        Their sum, workspaces included.
    rss_growth_bytes : int
        Growth of the peak of resident memory over the first timed batch of
        calls: it sees what counting requests cannot. In an emulator it
        includes the translation of code that has not run before, unless
        there is a `warmup`.
    """

    outputs: list[np.ndarray]
    seconds: list[float]
    allocations: int
    allocated_bytes: int
    rss_growth_bytes: int


class RunFailure(LibraryError):
    """A run gave no result, or a wrong one.

    Parameters
    ----------
    kind : str
        ``crash``, ``timeout``, ``wrong_result`` or ``rpc_lost``, as
        :data:`tvm_directconv.logs.record.STATUSES` has them.
    reason : str
        What happened.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def build_runner(toolchain: Toolchain) -> Path:
    """Build the runner program, unless it is in the cache already.

    The cache is :func:`tvm_directconv.cache.folder`. Several
    processes may do this at once.

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
    return build_cached("runner", _SOURCES, _HEADERS, _FLAGS, toolchain)


def build_cached(
    name: str,
    sources: Sequence[Path],
    headers: Sequence[Path],
    flags: Sequence[str],
    toolchain: Toolchain,
) -> Path:
    """Build a program or library of C files, unless it is in the cache already.

    Parameters
    ----------
    name : str
        What its file name begins with.
    sources, headers : sequence of Path
        The C files, and what they include.
    flags : sequence of str
        For the compiler.
    toolchain : Toolchain
        Compiler for the machine that it is for.

    Returns
    -------
    Path
        The file, of which there is one for each recipe.

    Raises
    ------
    ToolchainError
        As for :func:`build_runner`.
    """
    texts = [path.read_text(encoding="utf-8") for path in (*sources, *headers)]
    recipe = "\0".join([*texts, *toolchain.cc, *flags])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    output = cache.folder() / f"{name}-{toolchain.machine}-{digest}"
    if cache.load(output) is None:
        with files.explained(output, ToolchainError), files.scratch(output.parent) as scratch:
            draft = scratch / name
            run_cc([*map(str, sources), *flags], draft, toolchain)
            cache.store(output, draft.read_bytes(), mode=0o700)
    return output


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
    guard: str | None = None,
    align: int = 64,
    output_types: Sequence[str] | None = None,
    scratch_bytes: int = 0,
    limit: int | None = None,
) -> RunReport:
    """Run one kernel of an exported library, emulated if it is a foreign one.

    Parameters
    ----------
    library : str or Path
        Shared library that TVM exported.
    symbol : str
        Name of the kernel, its ``global_symbol``.
    inputs : sequence of numpy.ndarray
        The first arguments of the kernel.
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
    guard : str, optional
        ``begin`` or ``end``: arrays lie at that end of the memory that may be touched.
    align : int, optional
        Bytes that their beginnings are multiples of, with `guard`: with fewer, arrays whose size is
        no multiple of 64 lie closer to the end.
    output_types : sequence of str, optional
        Types of those that are written; float32 if not given.
    scratch_bytes : int, optional
        Size of a last argument that is written and of no interest; there is none if it is 0.
    limit : int, optional
        Seconds after which it is ended.

    Returns
    -------
    RunReport
        Outputs, times and memory use.

    Raises
    ------
    ArgumentError
        If an input or output has a type that the runner does not know.
    LibraryError
        If the library is damaged or for another machine, has no such kernel,
        refuses the shapes, or crashes; with `guard`, if it touches what is beside an array.
    ToolchainError
        If the runner cannot be built or the emulator is missing.
    """
    types = output_types or ["float32"] * len(output_shapes)
    for what, dtype in [
        *((f"input {index}", array.dtype.name) for index, array in enumerate(inputs)),
        *((f"output {index}", dtype) for index, dtype in enumerate(types)),
    ]:
        if dtype not in _TYPES:
            raise ArgumentError(
                f"{what} of kernel {symbol} is {dtype}, expected one of {', '.join(_TYPES)}: the C "
                "runner knows no other types"
            )
    machine = elf_info(library).machine
    if machine != toolchain.machine:
        raise LibraryError(
            f"{library} is for {machine}, but the toolchain is for {toolchain.machine}: "
            "pass the toolchain of the target that the library was compiled for"
        )
    runner = build_runner(toolchain)
    with files.scratch() as scratch:
        tensors = []
        for index, array in enumerate(inputs):
            file = scratch / f"in{index}"
            with files.explained(file, ToolchainError):
                array.tofile(file)
            tensors.append(tensor_argument("in", file, array.shape, array.dtype.name))
        written = [scratch / f"out{index}" for index in range(len(output_shapes))]
        tensors += [
            tensor_argument("out", file, shape, dtype)
            for file, shape, dtype in zip(written, output_shapes, types, strict=True)
        ]
        if scratch_bytes:
            tensors.append(f"scratch:{scratch_bytes // 4}")
        options: dict[str, int | str]
        options = {"repeat": repeat, "warmup": warmup, "number": number, "threads": threads}
        if guard:
            options |= {"guard": guard, "align": align}
        if limit:
            options["limit"] = limit
        arguments = runner_arguments(library, symbol, tensors, **options)
        process = subprocess.run(
            toolchain.command(str(runner), *arguments),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            said = process.returncode, process.stdout, process.stderr
            report = read_report(*said, needed=_MEASURED)
        except RunFailure as failure:
            shapes = [*(array.shape for array in inputs), *output_shapes]
            raise LibraryError(
                f"kernel {symbol} of {library}, called with shapes {shapes}, failed: {failure}"
            ) from None
        if report["outside"]:
            raise LibraryError(
                f"kernel {symbol} of {library} wrote {report['outside']} bytes beside its arrays"
            )
        outputs = [
            np.fromfile(file, dtype).reshape(shape)
            for file, shape, dtype in zip(written, output_shapes, types, strict=True)
        ]
    return RunReport(
        outputs,
        report["seconds"],
        report["allocations"],
        report["allocated_bytes"],
        report["rss_growth_bytes"],
    )


def tensor_argument(role: str, file: Path, shape: tuple[int, ...], dtype: str = "float32") -> str:
    """Return how the runner is told about one argument of a kernel.

    Parameters
    ----------
    role : str
        ``in``, ``out``, or ``expect`` for an output that is compared with the
        file, to the last bit.
    file : Path
        Raw values.
    shape : tuple of int
        Their shape.
    dtype : str
        Their type.

    Returns
    -------
    str
        One argument.
    """
    plain = dtype == "float32" and len(shape) > 0
    return f"{role}:{file}:{','.join(map(str, shape if plain else (dtype, *shape)))}"


def runner_arguments(
    library: str | Path, symbol: str, tensors: Sequence[str], **options: int | str
) -> list[str]:
    """Return the runner's arguments.

    Parameters
    ----------
    library, symbol
        As for :func:`run_library`.
    tensors : sequence of str
        One :func:`tensor_argument` for each argument of the kernel.
    **options : int or str
        ``repeat``, ``warmup``, ``number``, ``threads``, ``guard``, ``align``,
        and ``limit``: after so many seconds the runner gives up.

    Returns
    -------
    list of str
        What follows the runner's name.
    """
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [str(library), symbol, *flags, *tensors]


_KINDS = {
    "seconds": Kind(
        "a list of seconds", lambda v: isinstance(v, list) and v != [] and all(map(is_number, v))
    ),
    "different": COUNT,
    "outside": COUNT,
    "allocations": COUNT,
    "allocated_bytes": COUNT,
    "rss_growth_bytes": COUNT,
    "error": TEXT,
    "signal": COUNT,
    "cpuinfo": Kind("a text", lambda v: isinstance(v, str)),
}


def read_report(
    status: int, stdout: str, stderr: str, needed: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what the runner printed.

    Parameters
    ----------
    status : int
        Exit status of the runner, or of what it was run by.
    stdout, stderr : str
        What they printed. The report is the last line.
    needed : sequence of str
        What it has to say if the kernel succeeds.

    Returns
    -------
    dict
        The report, described at the top of ``runner.c``.

    Raises
    ------
    RunFailure
        If there is no result: ``crash`` or ``timeout`` if that is the
        kernel's doing, ``rpc_lost`` if the kernel did not even run.
    """
    report = _last_object(stdout)
    # What is on the way to a board may print and lose anything.
    if report is not None and (wrong := problem(report, _KINDS, optional=tuple(_KINDS))):
        raise RunFailure("rpc_lost", f"the last line that was printed is no report: {wrong}")
    if status == 0 and report is not None:
        if missing := [key for key in needed if key not in report]:
            raise RunFailure("rpc_lost", f"the report has no {', '.join(missing)}")
        return report
    if report is not None and "error" in report:
        raise RunFailure("crash", report["error"])
    killed = report.get("signal") if report is not None else None
    if killed is None:
        killed = -status if status < 0 else status - 128  # as shells report it
    if killed == signal.SIGALRM:
        raise RunFailure("timeout", "the runner reached its time limit")
    if killed == signal.SIGILL:
        raise RunFailure(
            "crash",
            "the emulated or host CPU lacks an instruction of this library: compile it for that "
            "CPU, or run it on the one it was compiled for",
        )
    if killed in set(signal.Signals):
        name = signal.Signals(killed).name
        raise RunFailure("crash", f"killed by {name} ({signal.strsignal(killed)})")
    # Bad arguments, or what runs the runner has itself failed.
    raise RunFailure("rpc_lost", last_line(status, stderr))


def last_line(status: int, stderr: str) -> str:
    """Return why a program failed: the last line that it printed, which tells most."""
    lines = stderr.strip().splitlines()
    return lines[-1].strip() if lines else f"exit status {status} without a message"


def _last_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object in the last line; before it, a login may have printed something."""
    lines = text.strip().splitlines()
    try:
        return reading.parsed_object(lines[-1]) if lines else None
    except reading.Unreadable:
        return None
