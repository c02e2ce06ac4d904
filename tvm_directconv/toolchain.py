"""C compilers and emulators: what links a kernel, and what runs it.

TVM's LLVM writes object files for every supported processor by itself; only a
linker is missing, and for foreign processors an emulator to run the result.
The two are separate needs: linking works without the emulator. This module
does not import TVM, so it also serves a machine that has none.
"""

import importlib.util
import mmap
import os
import platform
import re
import resource
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_directconv import files
from tvm_directconv.errors import LibraryError, ToolchainError
from tvm_directconv.hardware.architecture import ARCHITECTURES, Architecture

__all__ = [
    "ElfInfo",
    "Toolchain",
    "elf_info",
    "find_toolchain",
    "link_module",
    "link_shared",
    "object_code",
    "run_cc",
]


@dataclass(frozen=True)
class Toolchain:
    """A C compiler for one kind of machine, and the way to run its programs.

    Attributes
    ----------
    triple : str
        Debian's, such as ``aarch64-linux-gnu``.
    cc : tuple of str
        Command that compiles C and links, to which arguments are appended.
    emulator : tuple of str
        Command that runs a program of this machine, to which the program and
        its arguments are appended. Empty when the host runs it itself. It may
        name an emulator that is not installed: :meth:`command` checks.
    description : str
        One line for people.
    """

    triple: str
    cc: tuple[str, ...]
    emulator: tuple[str, ...]
    description: str

    @property
    def machine(self) -> str:
        """The machine as :class:`ElfInfo` names it, such as ``aarch64``."""
        return self.triple.split("-")[0]

    def command(self, *program: str) -> list[str]:
        """Return the command line that runs a program of this machine.

        Parameters
        ----------
        *program : str
            The program and its arguments.

        Returns
        -------
        list of str
            The same, behind the emulator where one is needed.

        Raises
        ------
        ToolchainError
            If the emulator or the C library it needs is not installed.
        """
        if self.emulator:
            port = _port(self.triple)
            if shutil.which(self.emulator[0]) is None:
                raise ToolchainError(
                    f"cannot run {self.triple} programs here: {self.emulator[0]} was not found. "
                    f"Install it, on Debian with: apt install qemu-user {port.libc_package}"
                )
            for flag, value in zip(self.emulator, self.emulator[1:], strict=False):
                if flag == "-L" and not os.path.isdir(value):
                    raise ToolchainError(
                        f"cannot run {self.triple} programs here: their C library was expected "
                        f"in {value}. Install it, on Debian with: apt install {port.libc_package}"
                    )
        return [*self.emulator, *program]


def find_toolchain(triple: str, qemu_cpu: str | None = None) -> Toolchain:
    """Find a C compiler for a machine, and the emulator if it is a foreign one.

    Parameters
    ----------
    triple : str
        Target triple of Linux with glibc, with hard float on ARMv7, in any
        common spelling, or the bare architecture.
    qemu_cpu : str, optional
        CPU that the emulator imitates, e.g. ``cortex-a72``: an instruction
        that it lacks then ends the program. Not used where the host runs the
        binaries itself.

    Returns
    -------
    Toolchain
        The system's compiler for the host, Debian's cross compiler for
        another machine, and ``ziglang`` where neither is installed.

    Raises
    ------
    ToolchainError
        If the triple is not supported or no compiler is installed.
    """
    port = _port(triple)
    native = _is_host(port)
    names = ("cc", "gcc", "clang") if native else (f"{port.triple}-gcc",)
    found = next(filter(None, map(shutil.which, names)), None)
    cc: tuple[str, ...]
    if found is not None:
        cc = (found,)
        compiler = found
    elif importlib.util.find_spec("ziglang") is not None:
        # glibc 2.17 is AArch64's oldest: what is linked for it loads on all that is newer.
        cc = (sys.executable, "-m", "ziglang", "cc", "-target", f"{port.triple}.2.17")
        compiler = "ziglang"
    else:
        package = "gcc" if native else port.cc_package
        raise ToolchainError(
            f"no C compiler for {port.triple}: looked for {', '.join(names)} on PATH and for the "
            f"Python package ziglang. Install one, on Debian with: apt install {package}, "
            "or anywhere with: pip install ziglang"
        )
    if native:
        return Toolchain(port.triple, cc, (), f"{port.triple}: {compiler}, run natively")
    candidates = (port.emulator, f"{port.emulator}-static")
    emulator = (
        next(filter(None, map(shutil.which, candidates)), port.emulator),
        "-L",
        f"/usr/{port.triple}",
        *(("-cpu", qemu_cpu) if qemu_cpu else ()),
    )
    description = f"{port.triple}: {compiler}, run by {' '.join(emulator)}"
    return Toolchain(port.triple, cc, emulator, description)


def target_port(triple: str) -> str:
    """Return how a triple is spelled here: ``aarch64-linux-gnu`` for ``arm64``, and so on.

    Raises
    ------
    ToolchainError
        If it is not supported.
    """
    return _port(triple).triple


def run_cc(
    arguments: Sequence[str],
    output: str | Path,
    toolchain: Toolchain,
    check: Callable[[Path], None] | None = None,
    folder: Path | None = None,
) -> None:
    """Run the compiler and put its one output file in place atomically.

    Whoever looks at `output` meanwhile sees the old file or the new one, never
    a half-written one; after an error the old one is still there.

    Parameters
    ----------
    arguments : sequence of str
        Compiler arguments without ``-o``.
    output : str or Path
        File to create or replace.
    toolchain : Toolchain
        The compiler.
    check : callable, optional
        Is given the file before it is put in place, and raises if it should not be.
    folder : Path, optional
        What relative paths begin from; by default as for this process.

    Raises
    ------
    ToolchainError
        If the compiler fails, with what it printed, or `output` cannot be
        written.
    """
    output = Path(output)
    try:
        with files.draft_of(output) as draft:
            process = subprocess.run(
                [*toolchain.cc, *arguments, "-o", str(draft)],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                cwd=folder,
                # What it leaves when it is killed goes with the draft.
                env={**os.environ, "TMPDIR": str(draft.parent)},
            )
            if process.returncode != 0:
                raise ToolchainError(
                    f"{shlex.join(toolchain.cc)} failed to make {files.destination(output)} for "
                    f"{toolchain.triple} (status {process.returncode}). It was run as\n"
                    f"  {shlex.join(process.args)}\nand said\n{process.stderr.strip()}"
                )
            if check:
                check(draft)
    except OSError as error:
        raise ToolchainError(
            f"cannot make {files.destination(output)} with {toolchain.cc[0]}: {error}"
        ) from error


def link_shared(
    objects: Sequence[str | Path],
    output: str | Path,
    toolchain: Toolchain,
    folder: Path | None = None,
) -> None:
    """Link object files into a shared library, put in place atomically.

    Parameters
    ----------
    objects : sequence of str or Path
        Object files of the toolchain's machine; C files, and flags to compile them with, as well.
    output : str or Path
        Library to create or replace.
    toolchain : Toolchain
        The linker.
    folder : Path, optional
        What relative paths begin from; by default as for this process.

    Raises
    ------
    ToolchainError
        If linking fails, with what the linker printed; if a symbol remains that no library has.
    """
    # A network may call logf and the like: a library that does must load libm by itself, and one
    # that does not should not ask for it.
    arguments = ["-shared", *map(str, objects), "-Wl,--as-needed", "-lm"]
    run_cc(arguments, output, toolchain, lambda draft: _check_resolved(draft, output), folder)


def _check_resolved(library: Path, output: str | Path) -> None:
    """Raise if a library could not be loaded for want of a symbol.

    The linker cannot be asked to: it does not know those that TVM's runtime and the C runtime have.
    """
    missing = [
        symbol for symbol in elf_info(library).unresolved if not symbol.startswith(_OF_RUNTIMES)
    ]
    if missing:
        raise ToolchainError(
            f"cannot make {files.destination(output)}: no object file and no library of the system "
            f"defines {', '.join(missing[:5])}"
            + (f" and {len(missing) - 5} more" if missing[5:] else "")
            + ". Expected object files that call each other, the C library and TVM's runtime only"
        )


def link_relocatable(
    objects: Sequence[str | Path],
    output: str | Path,
    toolchain: Toolchain,
    folder: Path | None = None,
) -> None:
    """Link object files into a larger one; parameters and errors as of :func:`link_shared`."""
    run_cc(["-r", "-nostdlib", *map(str, objects)], output, toolchain, folder=folder)


def link_module(module: Any, output: str | Path, toolchain: Toolchain) -> None:
    """Link what TVM has compiled into a shared library; as :func:`link_shared` otherwise.

    Parameters
    ----------
    module : tvm.runtime.Module
        Compiled for the toolchain's machine.
    output : str or Path
        Library to create or replace.
    toolchain : Toolchain
        The linker.

    Raises
    ------
    ToolchainError
        If linking fails, with what the linker printed.
    """
    with files.explained(output, ToolchainError), files.scratch(Path(output).parent) as folder:
        object_file = folder / "module.o"
        object_file.write_bytes(object_code(module))
        link_shared([object_file], output, toolchain)


def object_code(module: Any) -> bytes:
    """Return the object file of what TVM has compiled.

    LLVM ends the process if it cannot write a file. Here it writes to memory, which does not fill
    up as disks do. A limit on the size of files holds for that as well, so under such a limit
    another process does it.

    Parameters
    ----------
    module : tvm.runtime.Module

    Raises
    ------
    ToolchainError
        If the limit is too low.
    """
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY:
        with open(os.memfd_create("object"), "rb") as memory:
            module.write_to_file(f"/proc/self/fd/{memory.fileno()}", "o")
            return memory.read()
    process = subprocess.run(
        [sys.executable, "-c", _WRITE_OBJECT],
        input=module.inspect_source("ll").encode(),
        capture_output=True,
    )
    if process.returncode != 0:
        last = process.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ToolchainError(
            f"cannot make an object file ({last or f'status {process.returncode}'}): files may "
            f"have {limit} bytes here; raise that limit, ulimit -f"
        )
    return process.stdout


_WRITE_OBJECT = """
import os, sys, tvm, tvm_ffi
load = tvm_ffi.get_global_func("ffi.Module.load_from_file.ll")
memory = open(os.memfd_create("object"), "rb")
load("/proc/self/fd/0", "ll").write_to_file(f"/proc/self/fd/{memory.fileno()}", "o")
sys.stdout.buffer.write(memory.read())
"""


def _port(triple: str) -> Architecture:
    for port in ARCHITECTURES:
        if re.fullmatch(port.triples, triple):
            return port
    raise ToolchainError(
        f"unsupported target triple {triple!r}: expected one of "
        f"{', '.join(port.triple for port in ARCHITECTURES)} (32-bit ARM only with hard float). "
        "For another system, link the object file with that system's own tools."
    )


def _is_host(port: Architecture) -> bool:
    machine = platform.machine()
    if machine == "aarch64" and sys.maxsize < 2**32:
        # A 32-bit system on a 64-bit kernel, common on small boards: its cc makes 32-bit code.
        machine = "armv7l"
    return platform.system() == "Linux" and re.fullmatch(port.triples, machine) is not None


@dataclass(frozen=True)
class ElfInfo:
    """What an object file or a shared library says about itself.

    Attributes
    ----------
    machine : str
        Such as ``aarch64``; for one that is not known here the number that ELF
        has for it, as ``e_machine 258``.
    bits : int
        32 or 64.
    undefined : tuple of str
        Symbols that another file must define, sorted. Weak ones, which may
        stay undefined, are left out.
    unresolved : tuple of str
        Those of them that no library defined when this one was linked.
    defined : tuple of str
        Symbols that other files can use, sorted.
    """

    machine: str
    bits: int
    undefined: tuple[str, ...]
    unresolved: tuple[str, ...]
    defined: tuple[str, ...]


_MACHINES = {each.elf: each.name for each in ARCHITECTURES}
_RELOCATABLE, _SHARED = 1, 3
_SYMTAB, _DYNSYM, _VERSIONS = 2, 11, 0x6FFFFFFF
_LOCAL, _WEAK = 0, 2
_OF_RUNTIMES = ("TVMBackend", "TVMFFI")
"""How the names begin of what TVM's runtime, or the C runtime in its place, defines."""


@dataclass(frozen=True)
class _ElfClass:
    """Layouts of the structures that differ between 32 and 64 bits."""

    bits: int
    header: struct.Struct
    section: struct.Struct
    symbol: struct.Struct
    info_index: int
    """Where st_info is in a symbol; st_shndx is two fields further, st_name always first."""


_CLASSES = {
    1: _ElfClass(
        32,
        struct.Struct("<HHIIIIIHHHHHH"),
        struct.Struct("<10I"),
        struct.Struct("<IIIBBH"),
        3,
    ),
    2: _ElfClass(
        64,
        struct.Struct("<HHIQQQIHHHHHH"),
        struct.Struct("<IIQQQQIIQQ"),
        struct.Struct("<IBBHQQ"),
        1,
    ),
}


def elf_info(path: str | Path) -> ElfInfo:
    """Read machine and symbols of a little-endian ELF file.

    A shared library is read by its dynamic symbols, the ones that count when
    it is loaded, and an object file by its symbol table.

    Parameters
    ----------
    path : str or Path
        A shared library or an object file.

    Returns
    -------
    ElfInfo
        Its machine and its symbols.

    Raises
    ------
    LibraryError
        If the file cannot be read, is no such file, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            # A network has its weights in the library: most of it is not looked at.
            empty = os.fstat(file.fileno()).st_size == 0
            data = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise LibraryError(f"cannot read library {path}: {error}") from error
    try:
        return _parse_elf(data)
    except _Malformed as error:
        raise LibraryError(
            f"{path} {error}; expected a Linux shared library (.so) or object file (.o). "
            "If it should be one, export it again."
        ) from None


class _Malformed(Exception):
    """What is wrong with the file, as the end of a sentence that begins with its name."""


def _parse_elf(data: bytes | mmap.mmap) -> ElfInfo:
    if data[:4] != b"\x7fELF":
        raise _Malformed("is not an ELF file")
    ident = _bytes_at(data, 0, 16)
    if ident[4] not in _CLASSES or ident[5] != 1:
        raise _Malformed("is not a little-endian 32- or 64-bit ELF file")
    elf = _CLASSES[ident[4]]
    kind, machine, _, _, _, offset, _, _, _, _, entry_size, count, _ = elf.header.unpack(
        _bytes_at(data, 16, elf.header.size)
    )
    if kind not in (_RELOCATABLE, _SHARED):
        raise _Malformed("is an ELF file but neither a shared library nor an object file")
    if entry_size != elf.section.size:
        raise _Malformed("is damaged or stripped: it has no table of sections")
    table = _bytes_at(data, offset, count * elf.section.size)
    sections = list(elf.section.iter_unpack(table))
    wanted = _DYNSYM if kind == _SHARED else _SYMTAB
    undefined: set[str] = set()
    defined: set[str] = set()
    for section in sections:
        if section[1] == wanted:
            break
    else:
        raise _Malformed("is damaged or stripped: it has no table of symbols")
    _, _, _, _, offset, size, strings_index, _, _, entry_size = section
    if entry_size != elf.symbol.size or size % entry_size or strings_index >= len(sections):
        raise _Malformed("is damaged: its table of symbols is malformed")
    _, _, _, _, strings_offset, strings_size, *_ = sections[strings_index]
    strings = _bytes_at(data, strings_offset, strings_size)
    # Where a symbol's version is from; up to 1 if it has none. All symbols of glibc have one.
    versions: tuple[int, ...] = (0,) * (size // entry_size)
    for section in sections:
        if section[1] == _VERSIONS:
            count = section[5] // 2
            versions = struct.unpack(f"<{count}H", _bytes_at(data, section[4], 2 * count))
    if len(versions) != size // entry_size:
        raise _Malformed("is damaged: its symbols and their versions differ in number")
    unresolved: set[str] = set()
    symbols = elf.symbol.iter_unpack(_bytes_at(data, offset, size))
    for symbol, version in zip(symbols, versions, strict=True):
        binding = symbol[elf.info_index] >> 4
        is_defined = symbol[elf.info_index + 2] != 0
        if binding == _LOCAL or (binding == _WEAK and not is_defined):
            continue
        end = strings.find(b"\0", symbol[0])
        if end < 0:
            raise _Malformed("is damaged: the name of a symbol lies outside its table of names")
        name = strings[symbol[0] : end].decode("utf-8", "replace")
        (defined if is_defined else undefined).add(name)
        if not is_defined and version & 0x7FFF <= 1:
            unresolved.add(name)
    return ElfInfo(
        _MACHINES.get(machine, f"e_machine {machine}"),
        elf.bits,
        tuple(sorted(undefined)),
        tuple(sorted(unresolved)),
        tuple(sorted(defined)),
    )


def _bytes_at(data: bytes | mmap.mmap, offset: int, size: int) -> bytes:
    """Slice, but fail where a slice would silently come out shorter."""
    if offset + size > len(data):
        raise _Malformed(
            f"is truncated or damaged: it refers to byte {offset + size} of {len(data)}"
        )
    return data[offset : offset + size]
