"""Count the instructions that a kernel executes in an emulator, by kind.

The emulator is qemu with ``counter.c`` as its plugin, which knows the instructions of AArch64. Only
those of the library are counted, neither the runner's nor the C library's, and they are the same
ones each time: unlike emulated times, the counts say something about hardware.
"""

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

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

__all__ = ["Executed", "count_instructions"]

_SOURCE = Path(__file__).with_name("counter.c")
_FLAGS = ("-std=c99", "-O2", "-fPIC", "-shared")


@dataclass(frozen=True)
class Executed:
    """How many instructions of each kind were executed.

    Attributes
    ----------
    fma : int
        Multiply-adds of vectors.
    vector : int
        All others that compute with floating-point and vector registers or move between them:
        also those that set sums to zero, and conversions.
    load, store : int
        Of registers of any kind; a pair is one.
    prefetch : int
        Memory that is fetched ahead.
    integer : int
        What computes with general-purpose registers, for counters and addresses.
    branch : int
        Taken or not.
    other : int
        Of extensions that the plugin does not know.
    """

    fma: int
    vector: int
    load: int
    store: int
    prefetch: int
    integer: int
    branch: int
    other: int

    @property
    def total(self) -> int:
        """All instructions."""
        return sum(astuple(self))

    @property
    def of_arithmetic(self) -> float:
        """Multiply-adds as a part of all instructions that compute with vectors."""
        return self.fma / (self.fma + self.vector)

    @property
    def of_all(self) -> float:
        """Multiply-adds as a part of all instructions."""
        return self.fma / self.total


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
    if toolchain.machine != "aarch64" or not toolchain.emulator:
        raise ToolchainError(
            f"cannot count instructions with {toolchain.description}: expected a toolchain for "
            "aarch64 that runs programs in an emulator"
        )
    host = find_toolchain(platform.machine())
    plugin = build_cached("counter.so", [_SOURCE], [], _FLAGS, host)
    runner = build_runner(toolchain)
    library = Path(library).resolve()
    with files.scratch() as scratch:
        counts = scratch / "counts"
        options = {"": plugin, "library=": library, "counts=": counts}
        # A comma within a value is written twice.
        words = [f"{key}{str(value).replace(',', ',,')}" for key, value in options.items()]
        counting = replace(toolchain, emulator=(*toolchain.emulator, "-plugin", ",".join(words)))
        types = dtypes or ["float32"] * len(shapes)
        tensors = [
            f"scratch:{dtype},{','.join(map(str, shape))}"
            for dtype, shape in zip(types, shapes, strict=True)
        ]
        process = subprocess.run(
            counting.command(str(runner), *runner_arguments(library, symbol, tensors)),
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
        if not counts.exists():
            raise ToolchainError(
                f"{toolchain.emulator[0]} does not load the plugin {plugin}: "
                f"{last_line(process.returncode, process.stderr)}. Expected an emulator that takes "
                "-plugin with version 1 of its interface, such as that of Debian 12: "
                "apt install qemu-user"
            )
        try:
            executed = Executed(**reading.json_object(counts))
        except (reading.Unreadable, TypeError) as error:
            raise ToolchainError(
                f"the plugin {plugin} has not counted to the end ({error}): run it again"
            ) from None
    if not executed.fma + executed.integer:
        raise ToolchainError(
            f"no instruction of {library} was seen: the plugin looks for this path in "
            "/proc/self/maps. Use a path of plain characters"
        )
    return executed
