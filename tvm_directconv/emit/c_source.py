"""A program as C source: its tables, its weights, and the functions that TVM's runtime calls."""

import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import ModelError
from .program import ARENA, COPY, WEIGHTS, Port, Program, arena_of, packed

DEPLOY = Path(__file__).parents[1] / "deploy"
"""Where the C runtime is."""

WEIGHTS_HEADER = 64
"""Bytes before the first weights; ``WeightsHeader`` in ``deploy/packed.h``."""

_MAGIC = b"directconv\0\0\0\0\0\1"
_TYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
"""DLPack's numbers for the kinds of NumPy's types."""
_OTHER_CODES = {"bfloat16": 4}
"""The same for types that NumPy has from others."""
_MENTIONED = 400  # characters of names in a message, which has room for 512
_CALLERS = "contiguous and aligned to 64 bytes"


def write_weights(weights: Sequence[np.ndarray], path: Path) -> str:
    """Write constants behind a header, at the offsets of :func:`~.program.packed` from its end.

    Returns
    -------
    str
        Their identity, in hexadecimal digits: a network refuses weights with another one.
    """
    offsets, end = packed([array.nbytes for array in weights])
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        file.write(bytes(WEIGHTS_HEADER))
        for array, offset in zip(weights, offsets, strict=True):
            # NumPy has no buffers of types that are not its own.
            bytes_of = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            data = bytes_of.data if array.nbytes else b""
            gap = bytes(offset - (file.tell() - WEIGHTS_HEADER))
            for part in (gap, data):
                file.write(part)
                digest.update(part)
        gap = bytes(end - (file.tell() - WEIGHTS_HEADER))
        file.write(gap)
        digest.update(gap)
        file.seek(0)
        file.write(struct.pack("=16sQ32s", _MAGIC, WEIGHTS_HEADER + end, digest.digest()))
    return digest.hexdigest()


def tables(name: str, program: Program, symbols: Mapping[str, str], weights_id: str) -> str:
    """Return C source of what ``deploy/network.c`` runs: ``static const Network network``.

    Parameters
    ----------
    name : str
        An :func:`identifier`, for messages.
    program : Program
    symbols : mapping
        Symbols of the kernels, without ``__tvm_ffi_``, by name.
    weights_id : str
        What :func:`write_weights` returned.

    Raises
    ------
    ModelError
        If a tensor has an element type that there is no name for.
    """
    dims: dict[tuple[int, ...], int] = {}
    numbers: list[int] = []

    def kind(shape: tuple[int, ...], dtype: str) -> str:
        if shape not in dims:
            dims[shape] = len(numbers)
            numbers.extend(shape)
        element = np.dtype(dtype)
        code = _OTHER_CODES.get(dtype, _TYPE_CODES.get(element.kind))
        if code is None:
            raise ModelError(f"a tensor has element type {dtype}: expected float, int or bool")
        return f"{{{code}, {element.itemsize * 8}, {len(shape)}, {dims[shape]}}}"

    arguments = [
        *((f"input{n}", entry) for n, entry in enumerate(program.inputs)),
        *((f"output{n}", entry) for n, entry in enumerate(program.outputs)),
    ]
    memories = {ARENA: "ARENA", WEIGHTS: "WEIGHTS"}
    memories |= {name: f"ARGUMENT + {n}" for n, (name, _) in enumerate(arguments)}
    operands: list[str] = []
    steps: list[str] = []
    for step in program.steps:
        kernel = "directconv_copy_rows"
        if step.kernel != COPY:
            kernel = f"__tvm_ffi_{symbols[step.kernel]}"
        steps.append(f"    {{{kernel}, {len(operands)}, {len(step.operands)}}},")
        operands += [
            f"    {{{kind(tensor.shape, tensor.dtype)}, {memories[tensor.memory]}, "
            f"{tensor.offset + WEIGHTS_HEADER * (tensor.memory == WEIGHTS)}, {tensor.stride}}},"
            for tensor in step.operands
        ]
    parameters = [
        f'    {{{kind(port.shape, port.dtype)}, {port.nbytes}, "{memory} {_described(port)}, '
        f'{_CALLERS}"}},'
        for memory, port in arguments
    ]
    port = arena_of(program)
    parameters.append(
        f"    {{{kind(port.shape, port.dtype)}, {port.nbytes}, "
        f'"{port}, which is {port.nbytes} bytes, {_CALLERS}"}},'
    )
    names = ", ".join([*(port.name for _, port in arguments), "arena"])
    identity = ", ".join(f"0x{byte:02x}" for byte in bytes.fromhex(weights_id))
    return "\n".join(
        [
            *(f"extern Kernel __tvm_ffi_{symbol};" for symbol in dict.fromkeys(symbols.values())),
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
            "static const Network network = {",
            "    .dims = dims,",
            "    .operands = operands,",
            "    .steps = steps,",
            "    .parameters = parameters,",
            f'    .name = "{name}",',
            f'    .arguments = "{quoted(shortened(names, _MENTIONED))}",',
            f"    .step_count = {len(steps)},",
            f"    .inputs = {len(program.inputs)},",
            f"    .outputs = {len(program.outputs)},",
            f"    .most_operands = {max(len(step.operands) for step in program.steps)},",
            f"    .arena_bytes = {program.arena_bytes},",
            f"    .has_weights = {int(bool(program.weights))},",
            f"    .weights_bytes = {WEIGHTS_HEADER + program.weight_bytes},",
            f"    .weights_id = {{{identity}}},",
            "};",
            "",
        ]
    )


def _described(port: Port) -> str:
    """Return what a port has to be, as it stands in a string literal."""
    return quoted(str(replace(port, name=shortened(port.name, _MENTIONED))))


def weights_source(name: str, file: str, visibility: str = "global") -> str:
    """Return C source of an object that has a file of weights in it, as ``<name>_weights``.

    Parameters
    ----------
    name : str
        An :func:`identifier`.
    file : str
        Where the weights are, unless a macro says otherwise.
    visibility : str
        ``global``, or ``hidden`` from other libraries.
    """
    macro = f"{name.upper()}_WEIGHTS_FILE"
    hidden = f'        ".hidden {name}_weights\\n"\n' if visibility == "hidden" else ""
    return f"""\
/* The weights of {name}, as a part of the program that uses them: generated by tvm-directconv. */
#ifndef {macro}
#define {macro} "{quoted(file)}"
#endif
extern const unsigned char {name}_weights[];
__asm__(".section .rodata.{name}_weights,\\"a\\",%progbits\\n"
        ".balign 4096\\n"
        ".global {name}_weights\\n"
{hidden}\
        "{name}_weights:\\n"
        ".incbin \\"" {macro} "\\"\\n"
        ".previous\\n");
"""


def packed_functions(
    name: str, program: Program, functions: tuple[str, str] = ("main", "profile")
) -> str:
    """Return C source of the functions that TVM's runtime calls: to run, and to time each step.

    Parameters
    ----------
    name : str
        An :func:`identifier`.
    program : Program
    functions : tuple of str
        What they are called.
    """
    weights = f"{name}_weights" if program.weights else "0"
    lines = [f"extern const unsigned char {name}_weights[];"] if program.weights else []
    for profile, function in enumerate(functions):
        lines.append(
            '__attribute__((visibility("default"))) Kernel __tvm_ffi_' + function + ";\n"
            f"int __tvm_ffi_{function}(void *self, const Any *args, int32_t num_args, Any *result) "
            "{\n"
            "    (void)self, (void)result;\n"
            f"    return directconv_run_packed(&network, {weights}, args, num_args, {profile});\n"
            "}"
        )
    return "\n".join([*lines, ""])


def shortened(name: str, most: int) -> str:
    """Return a name, or the beginning of one that is too long."""
    return name if len(name) <= most else f"{name[: most - 4]} ..."


def quoted(name: str) -> str:
    """Return a name as it stands in a string literal, where ``??/`` may stand for a backslash."""
    printable = "".join(c if c.isprintable() else "?" for c in name)
    return re.sub(r'([\\"?])', r"\\\1", printable)
