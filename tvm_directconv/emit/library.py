"""A program to a shared library: tables for ``deploy/network.c``, weights, and kernels."""

from collections.abc import Callable, Mapping
from pathlib import Path

from .. import files
from ..errors import ToolchainError
from ..toolchain import Toolchain, link_relocatable, link_shared
from .c_source import DEPLOY, packed_functions, tables, weights_source, write_weights
from .program import Program

_FLAGS = ("-std=gnu99", "-O2", "-fPIC", "-fvisibility=hidden", f"-I{DEPLOY}")
_NAME = "network"


def link_network(
    program: Program,
    objects: Mapping[str, tuple[str, bytes]],
    output: Path,
    toolchain: Toolchain,
) -> None:
    """Write a network's library, with the functions ``main`` and ``profile``.

    Parameters
    ----------
    program : Program
        What it computes.
    objects : mapping
        Symbols and object code of the kernels, by name.
    output : Path
        The library.
    toolchain : Toolchain
        Compiler for its machine.

    Raises
    ------
    ToolchainError
        If compiling or linking fails.
    ModelError
        If a tensor has an element type that there is no name for.
    """
    _link(program, objects, output, toolchain, ("main", "profile"), link_shared)


def link_object(
    program: Program,
    objects: Mapping[str, tuple[str, bytes]],
    output: Path,
    toolchain: Toolchain,
    function: str,
) -> None:
    """Write the same as an object file, to be a part of another library.

    Parameters
    ----------
    program, objects, output, toolchain
        As for :func:`link_network`, which raises the same.
    function : str
        What ``main`` is called there; ``_profile`` comes behind it for the other one.
    """
    functions = function, f"{function}_profile"
    _link(program, objects, output, toolchain, functions, link_relocatable)


def _link(
    program: Program,
    objects: Mapping[str, tuple[str, bytes]],
    output: Path,
    toolchain: Toolchain,
    functions: tuple[str, str],
    link: Callable[[list[str | Path], Path, Toolchain, Path], None],
) -> None:
    with files.explained(output, ToolchainError), files.scratch(output.parent) as scratch:
        folder = scratch.resolve()
        source = folder / "network.c"
        weights_id = write_weights(program.weights, folder / "weights")
        symbols = {name: symbol for name, (symbol, _) in objects.items()}
        text = (
            '#include "network.h"\n',
            tables(_NAME, program, symbols, weights_id),
            packed_functions(_NAME, program, functions),
            weights_source(_NAME, "weights", visibility="hidden"),
        )
        source.write_text("\n".join(text), encoding="utf-8")
        kernels = {folder / f"{symbol}.o": code for symbol, code in objects.values()}
        for path, code in kernels.items():
            path.write_bytes(code)
        link([*_FLAGS, source, DEPLOY / "network.c", *kernels], output, toolchain, folder)
