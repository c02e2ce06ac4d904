"""A program to a shared library: tables for ``deploy/network.c``, weights, and kernels."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import ModelError
from ..toolchain import Toolchain, link_shared
from .network import Port
from .program import ARENA, COPY, WEIGHTS, Program, packed

_SOURCE = Path(__file__).parents[1] / "deploy" / "network.c"
_FLAGS = ("-std=gnu99", "-O2", "-fPIC", "-fvisibility=hidden")
_TYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
"""DLPack's numbers for the kinds of NumPy's types."""
_CALLERS = "contiguous and aligned to 64 bytes"


def link_network(
    program: Program, objects: dict[str, tuple[str, Path]], output: Path, toolchain: Toolchain
) -> None:
    """Write a network's library.

    Parameters
    ----------
    program : Program
        What it computes.
    objects : dict
        Symbols and object files of the kernels, by name.
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
    with tempfile.TemporaryDirectory(prefix="tvm_directconv-") as scratch:
        weights, tables = Path(scratch, "weights"), Path(scratch, "tables.h")
        write_weights(program.weights, weights)
        symbols = {name: symbol for name, (symbol, _) in objects.items()}
        tables.write_text(_tables(program, symbols, weights), encoding="utf-8")
        files = dict.fromkeys(str(path) for _, path in objects.values())
        define = f'-DDIRECTCONV_TABLES="{tables}"'
        link_shared([*_FLAGS, define, _SOURCE, *files], output, toolchain)


def write_weights(weights: Sequence[np.ndarray], path: Path) -> None:
    """Write constants one after another, at the offsets of :func:`~.program.packed`."""
    offsets, end = packed([array.nbytes for array in weights])
    with open(path, "wb") as file:
        for array, offset in zip(weights, offsets, strict=True):
            file.seek(offset)
            file.write(np.ascontiguousarray(array).data)
        file.truncate(max(end, 1))


def _tables(program: Program, symbols: dict[str, str], weights: Path) -> str:
    """Return the part of the library's source that is about this network."""
    dims: dict[tuple[int, ...], int] = {}
    numbers: list[int] = []

    def kind(shape: tuple[int, ...], dtype: str) -> str:
        if shape not in dims:
            dims[shape] = len(numbers)
            numbers.extend(shape)
        element = np.dtype(dtype)
        if element.kind not in _TYPE_CODES:
            raise ModelError(f"a tensor has element type {dtype}: expected float, int or bool")
        return (
            f"{{{_TYPE_CODES[element.kind]}, {element.itemsize * 8}, {len(shape)}, {dims[shape]}}}"
        )

    arguments = [
        *((f"input{n}", entry) for n, entry in enumerate(program.inputs)),
        *((f"output{n}", entry) for n, entry in enumerate(program.outputs)),
    ]
    memories = {ARENA: "ARENA", WEIGHTS: "WEIGHTS"}
    memories |= {name: f"ARGUMENT + {n}" for n, (name, _) in enumerate(arguments)}
    operands: list[str] = []
    steps: list[str] = []
    for step in program.steps:
        steps.append(
            f"    {{{'copy_rows' if step.kernel == COPY else '__tvm_ffi_' + symbols[step.kernel]}, "
            f"{len(operands)}, {len(step.operands)}}},"
        )
        operands += [
            f"    {{{kind(tensor.shape, tensor.dtype)}, {memories[tensor.memory]}, "
            f"{tensor.offset}, {tensor.stride}}},"
            for tensor in step.operands
        ]
    parameters = [
        f'    {{{kind(port.shape, port.dtype)}, "{memory} {_quoted(str(port))}, {_CALLERS}"}},'
        for memory, port in arguments
    ]
    port = Port("arena", (program.arena_bytes // 4,), "float32")
    parameters.append(f'    {{{kind(port.shape, port.dtype)}, "{port}, {_CALLERS}"}},')
    expected = ", ".join(_quoted(port.name) for _, port in arguments)
    kernels = dict.fromkeys(symbols.values())
    most = max(len(step.operands) for step in program.steps)
    return "\n".join(
        [
            *(f"extern Kernel __tvm_ffi_{symbol};" for symbol in kernels),
            "static const int64_t dims[] = {" + ", ".join(map(str, numbers or [0])) + "};",
            "static const Operand operands[] = {",
            *operands,
            "};",
            "static const Step steps[] = {",
            *steps,
            "};",
            "static const Parameter parameters[] = {",
            *parameters,
            "};",
            f"enum {{ STEPS = {len(steps)}, PARAMETERS = {len(parameters)} }};",
            f"enum {{ MAX_OPERANDS = {most} }};",
            f'#define EXPECTED_ARGUMENTS "{expected}, arena"',
            '__asm__(".section .rodata.directconv_weights,\\"a\\",%progbits\\n"',
            '        ".balign 4096\\n"',
            '        ".hidden directconv_weights\\n"',
            '        ".global directconv_weights\\n"',
            '        "directconv_weights:\\n"',
            f'        ".incbin \\"{weights}\\"\\n"',
            '        ".previous\\n");',
            "",
        ]
    )


def _quoted(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')
