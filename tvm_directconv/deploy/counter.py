"""Count the instructions that programs execute in an emulator, by kind.

The emulator is qemu with ``counter.c`` as its plugin, which knows the instructions of AArch64. Of a
kernel only those of its library are counted, neither the runner's nor the C library's, and they are
the same ones each time: unlike emulated times, the counts say something about hardware.
"""

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tvm_directconv import files, reading
from tvm_directconv.deploy.runner import (
    RunFailure,
    build_cached,
    build_runner,
    last_line,
    read_report,
    runner_arguments,
)
from tvm_directconv.errors import LibraryError, ToolchainError
from tvm_directconv.toolchain import Toolchain, find_toolchain

__all__ = ["Cached", "Executed", "count_instructions", "counting", "read_counts"]

_SOURCE = Path(__file__).with_name("counter.c")
_FLAGS = ("-std=c99", "-O2", "-fPIC", "-shared")


@dataclass(frozen=True)
class Cached:
    """What a level of caches did.

    Attributes
    ----------
    missed : int
        Lines that it did not have.
    written : int
        Changed lines that went back to the next level or memory.
    """

    missed: int
    written: int


@dataclass(frozen=True)
class Executed:
    """How many instructions of each kind were executed.

    Attributes
    ----------
    fma : int
        Multiply-adds of vectors of floats.
    dot : int
        Those of whole numbers or bfloat16 that add several products to a sum.
    multiply : int
        All others that multiply vectors of whole numbers.
    floating : int
        All others that compute with vectors of floats, conversions too.
    vector : int
        All others that compute with floating-point and vector registers or move between them:
        also those that set sums to zero.
    load, store : int
        Of registers of any kind; several at once are one.
    prefetch : int
        Memory that is fetched ahead.
    integer : int
        What computes with general-purpose registers, for counters and addresses.
    branch : int
        Taken or not.
    other : int
        Of extensions that the plugin does not know.
    loaded, stored : int
        Transfers of up to 16 bytes that loads and stores consist of.
    caches : tuple of Cached
        What caches would do, the first level first; empty unless they were asked for.
    """

    fma: int
    dot: int
    multiply: int
    floating: int
    vector: int
    load: int
    store: int
    prefetch: int
    integer: int
    branch: int
    other: int
    loaded: int
    stored: int
    caches: tuple[Cached, ...] = ()

    @property
    def arithmetic(self) -> int:
        """All that compute with vectors or move them."""
        return self.fma + self.dot + self.multiply + self.floating + self.vector

    @property
    def total(self) -> int:
        """All instructions."""
        memory = self.load + self.store + self.prefetch
        return self.arithmetic + memory + self.integer + self.branch + self.other

    @property
    def of_arithmetic(self) -> float:
        """Multiply-adds of floats as a part of all instructions that compute with vectors."""
        return self.fma / self.arithmetic

    @property
    def of_all(self) -> float:
        """Multiply-adds of floats as a part of all instructions."""
        return self.fma / self.total


def counting(toolchain: Toolchain, counts: Path, **options: object) -> Toolchain:
    """Return a toolchain whose emulator counts.

    Parameters
    ----------
    toolchain : Toolchain
        Compiler and emulator for AArch64.
    counts : Path
        File that the counts are in afterwards: see :func:`read_counts`.
    **options
        Others of the plugin, which ``counter.c`` explains: ``library``, ``caches``.

    Raises
    ------
    ToolchainError
        If there is no such emulator, or the plugin cannot be built.
    """
    if toolchain.machine != "aarch64" or not toolchain.emulator:
        raise ToolchainError(
            f"cannot count instructions with {toolchain.description}: expected a toolchain for "
            "aarch64 that runs programs in an emulator"
        )
    host = find_toolchain(platform.machine())
    plugin = build_cached("counter.so", [_SOURCE], [], _FLAGS, host)
    # A comma within a value is written twice.
    words = [
        word.replace(",", ",,")
        for word in (str(plugin), *(f"{k}={v}" for k, v in {"counts": counts, **options}.items()))
    ]
    return replace(toolchain, emulator=(*toolchain.emulator, "-plugin", ",".join(words)))


def read_counts(counts: Path, toolchain: Toolchain, status: int, said: str) -> Executed:
    """Return what a program has executed.

    Parameters
    ----------
    counts : Path
        The file that :func:`counting` was told.
    toolchain : Toolchain
        What it returned.
    status : int
        The program's.
    said : str
        What it printed on stderr.

    Raises
    ------
    ToolchainError
        If the file is missing or not complete.
    """
    if not counts.exists():
        raise ToolchainError(
            f"{toolchain.emulator[0]} does not load the plugin {toolchain.emulator[-1]}: "
            f"{last_line(status, said)}. Expected an emulator that takes "
            "-plugin with version 1 of its interface, such as that of Debian 12: "
            "apt install qemu-user"
        )
    try:
        found: dict[str, Any] = reading.json_object(counts)
        levels = tuple(Cached(**level) for level in found.pop("caches"))
        return Executed(**found, caches=levels)
    except (reading.Unreadable, TypeError, KeyError) as error:
        raise ToolchainError(
            f"{toolchain.emulator[-1]} has not counted to the end ({error}): run it again"
        ) from None


def count_instructions(
    library: str | Path,
    symbol: str,
    shapes: Sequence[tuple[int, ...]],
    toolchain: Toolchain,
    dtypes: Sequence[str] = (),
) -> Executed:
    """Run one kernel of an exported library once, and count its instructions.

    Its checks of the arguments count as well. What it computes is not looked at.

    Parameters
    ----------
    library : str or Path
        Shared library for AArch64.
    symbol : str
        Name of the kernel, its ``global_symbol``; a serial one: threads would disturb each other's
        counts.
    shapes : sequence of tuple of int
        Shapes of all arguments. What is in them is not set.
    toolchain : Toolchain
        Compiler and emulator of the library's machine.
    dtypes : sequence of str
        Their types; all are float32 if not given.

    Returns
    -------
    Executed
        The counts.

    Raises
    ------
    LibraryError
        If the kernel refuses the shapes, or crashes.
    ToolchainError
        If there is no such emulator, or the plugin or the runner cannot be built.
    """
    runner = build_runner(toolchain)
    library = Path(library).resolve()
    with files.scratch() as scratch:
        counts = scratch / "counts"
        counted = counting(toolchain, counts, library=library)
        types = dtypes or ["float32"] * len(shapes)
        tensors = [
            f"scratch:{dtype},{','.join(map(str, shape))}"
            for dtype, shape in zip(types, shapes, strict=True)
        ]
        process = subprocess.run(
            counted.command(str(runner), *runner_arguments(library, symbol, tensors)),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            read_report(process.returncode, process.stdout, process.stderr)
        except RunFailure as failure:
            if counts.exists():
                raise LibraryError(
                    f"kernel {symbol} of {library}, called with shapes {[*shapes]}, failed: "
                    f"{failure}"
                ) from None
        executed = read_counts(counts, counted, process.returncode, process.stderr)
    if not executed.fma + executed.integer:
        raise ToolchainError(
            f"no instruction of {library} was seen: the plugin looks for this path in "
            "/proc/self/maps. Use a path of plain characters"
        )
    return executed
