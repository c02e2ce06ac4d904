"""A folder in which ``make`` builds a C library of a program, and an example that uses it."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import files
from ..errors import LibraryError
from ..toolchain import target_port
from ..versions import __version__
from .c_source import (
    DEPLOY,
    WEIGHTS_HEADER,
    packed_functions,
    shortened,
    tables,
    weights_source,
    write_weights,
)
from .program import Port, Program

RUNTIME = ("directconv.h", "directconv.c", "network.h", "network.c", "packed.h")
"""Files of the C runtime."""

_C_TYPES = {"float32": "float", "float64": "double", "bool": "uint8_t"}
_C_TYPES |= dict.fromkeys(("float16", "bfloat16"), "uint16_t")
"""C's names of types, where they are not ``int8_t`` and so on."""
# What a folder's files and functions cannot be named after: other files in it, what make and CMake
# are told to do, and the runtime. All other names in C have a beginning or an end of their own.
_RESERVED = {
    *(file.partition(".")[0] for file in RUNTIME),
    *("main", "runtime", "kernels", "makefile", "all", "mapped", "shared", "clean"),
    *("test", "install", "package", "package_source", "help", "preinstall", "edit_cache"),
    *("rebuild_cache", "list_install_components", "zero_check", "run_tests", "all_build"),
}
_LONGEST = 100  # characters of an identifier: files are named after it
_MENTIONED = 1000  # characters of names in a string: compilers need not take more than 4095


@dataclass(frozen=True)
class Argument:
    """An input or output as the C function has it.

    Attributes
    ----------
    name : str
        Identifier, the end of others.
    port : Port
    note : str
        About its layout, for people.
    is_output : bool
    """

    name: str
    port: Port
    note: str
    is_output: bool

    @property
    def variable(self) -> str:
        """Name in C code, which is none of C's words, of its library's functions and macros."""
        return f"{'output' if self.is_output else 'input'}_{self.name}"

    @property
    def c_type(self) -> str:
        """Type of its elements."""
        return _C_TYPES.get(self.port.dtype, f"{self.port.dtype}_t")

    @property
    def elements(self) -> int:
        """How many there are."""
        return self.port.nbytes // np.dtype(self.port.dtype).itemsize

    @property
    def is_quantized(self) -> bool:
        """Whether it is known what its numbers stand for."""
        return self.port.scale is not None

    @property
    def contents(self) -> str:
        """What a file with its values has to hold."""
        shape = " x ".join(map(str, self.port.shape)) or "1"
        return f"{self.elements} of {self.port.dtype}, {shape}, {self.port.nbytes} bytes"


def identifier(name: str) -> str:
    """Return a name as C can have it in others: ``resnet50-v1`` is ``resnet50_v1``."""
    return re.sub(r"\W", "_", name, flags=re.ASCII).strip("_")[:_LONGEST] or "unnamed"


def name_of(folder: Path) -> str:
    """Return what the C function of a folder, and files in it, are named after."""
    found = identifier(Path(os.path.realpath(folder)).name)
    if found[0].isdigit():
        found = f"n{found}"
    return f"{found}_" if found.lower() in _RESERVED else found


def arguments_of(program: Program, notes: Mapping[str, str] | None = None) -> list[Argument]:
    """Return the arguments of a program's C function: inputs, then outputs."""
    made: list[Argument] = []
    for is_output, ports in ((False, program.inputs), (True, program.outputs)):
        for port in ports:
            name = identifier(port.name)
            while name.upper() in {argument.name.upper() for argument in made}:  # As in macros.
                name += "_"
            note = (notes or {}).get(port.name, "dimensions in the model's order")
            made.append(Argument(name, port, note, is_output))
    return made


def _prototype(name: str, program: Program, arguments: Sequence[Argument]) -> str:
    parameters = [f"{'' if a.is_output else 'const '}{a.c_type} *{a.variable}" for a in arguments]
    if program.weights:
        parameters.append("const void *weights")
    if program.arena_bytes:
        parameters += ["void *arena", "size_t arena_bytes"]
    lines, indent = [f"int {name}_run("], " " * len(f"int {name}_run(")
    for number, parameter in enumerate(parameters):
        text = parameter + ("," if number + 1 < len(parameters) else ")")
        if number and len(lines[-1]) + 1 + len(text) > 100:
            lines.append(indent + text)
        else:
            lines[-1] += (" " if number else "") + text
    return "\n".join(lines)


def _call(name: str, program: Program, arguments: Sequence[Argument], weights: str) -> str:
    words = [argument.variable for argument in arguments]
    if program.weights:
        words.append(weights)
    if program.arena_bytes:
        words += ["arena", "sizeof arena"]
    return f"{name}_run({', '.join(words)})"


def _buffers(program: Program, arguments: Sequence[Argument], prefix: str) -> list[str]:
    lines = [
        f"static DIRECTCONV_ALIGNED {a.c_type} {a.variable}[{prefix}_{a.name.upper()}_ELEMENTS];"
        for a in arguments
    ]
    if program.arena_bytes:
        lines.append(f"static DIRECTCONV_ALIGNED unsigned char arena[{prefix}_ARENA_BYTES];")
    return lines


def header(
    name: str, program: Program, arguments: Sequence[Argument], device: str, threads: int
) -> str:
    """Return the header of a program's C function."""
    prefix = name.upper()
    weights_bytes = WEIGHTS_HEADER + program.weight_bytes
    usage = [
        *_buffers(program, arguments, prefix),
        "",
        *([f"directconv_start({threads}, DIRECTCONV_ANYWHERE);"] if threads > 1 else []),
        f"if ({_call(name, program, arguments, f'{name}_weights')} != DIRECTCONV_OK)",
        '    fprintf(stderr, "%s\\n", directconv_error());',
    ]
    about = [
        f"{name}: compiled by tvm-directconv {__version__} for {_comment(device)}, "
        f"{threads} thread{'s' if threads > 1 else ''}. Generated.",
        "",
        *(f"    {line}".rstrip() for line in usage),
        "",
        "Nothing is allocated, and nothing is kept from one run to the next: threads may run it at",
        "the same time, on outputs and arenas of their own. Pointers are to memory that is aligned",
        "to 64 bytes and does not overlap.",
    ]
    lines = ["/* " + about[0], *(f" * {line}".rstrip() for line in about[1:]), " */"]
    lines += [
        f"#ifndef DIRECTCONV_{prefix}_H",
        f"#define DIRECTCONV_{prefix}_H",
        "",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        '#include "directconv.h"',
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
    ]
    for a in arguments:
        shape = " x ".join(map(str, a.port.shape)) or "a single value"
        lines += [
            f"/* {'Output' if a.is_output else 'Input'} {_comment(a.port.name)}: {a.port.dtype}, "
            f"{shape}; {_comment(a.note)}. */",
            f"#define {prefix}_{a.name.upper()}_ELEMENTS {a.elements}",
            *(_quantization(name, a) if a.is_quantized else []),
            "",
        ]
    if program.arena_bytes:
        lines += [
            "/* Memory for intermediates, which the caller provides. */",
            f"#define {prefix}_ARENA_BYTES {program.arena_bytes}",
            "",
        ]
    if program.weights:
        lines += [
            f"/* The weights: {name}_weights is linked in where it is used; or map the file",
            f" * {name}.weights with directconv_map. */",
            f"#define {prefix}_WEIGHTS_BYTES {weights_bytes}",
            f"extern const unsigned char {name}_weights[];",
            "",
        ]
    lines += [
        "/* Compute the outputs. Returns DIRECTCONV_OK or another number of directconv.h. */",
        f"{_prototype(name, program, arguments)};",
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        "#endif",
        "",
    ]
    return "\n".join(lines)


def _quantization(name: str, argument: Argument) -> list[str]:
    """Return what a header says of quantised numbers, and what makes them of others."""
    port, c_type = argument.port, argument.c_type
    prefix = f"{name.upper()}_{argument.name.upper()}"
    limits = np.iinfo(port.dtype)
    meaning = f"{prefix}_SCALE, {prefix}_ZERO_POINT"
    lines = [
        "/* A number q stands for scale * (q - zero point). */",
        f"#define {prefix}_SCALE {port.scale:.9e}f",
        f"#define {prefix}_ZERO_POINT ({port.zero_point})",
    ]
    if argument.is_output:
        return [
            *lines,
            f"static inline float {name}_dequantize_{argument.name}({c_type} number) {{",
            f"    return directconv_dequantize(number, {meaning});",
            "}",
        ]
    return [
        *lines,
        f"static inline {c_type} {name}_quantize_{argument.name}(float value) {{",
        f"    return ({c_type})directconv_quantize(",
        f"        value, {meaning}, {limits.min}, {limits.max});",
        "}",
    ]


def _source(
    name: str,
    program: Program,
    arguments: Sequence[Argument],
    symbols: Mapping[str, str],
    weights_id: str,
) -> str:
    operands = ", ".join(f"(void *){a.variable}" for a in arguments)
    return "\n".join(
        [
            f"/* {name}: generated by tvm-directconv. */",
            f'#include "{name}.h"',
            '#include "network.h"',
            "",
            tables(name, program, symbols, weights_id),
            f"{_prototype(name, program, arguments)} {{",
            f"    void *const arguments[] = {{{operands}}};",
            "    return directconv_run(&network, arguments, "
            f"{'weights' if program.weights else 'NULL'}, "
            f"{'arena, arena_bytes' if program.arena_bytes else 'NULL, 0'});",
            "}",
            "",
            "#ifdef DIRECTCONV_TVM",
            packed_functions(name, program),
            "#endif",
            "",
        ]
    )


def _example(
    name: str, program: Program, arguments: Sequence[Argument], threads: int
) -> dict[str, str]:
    """Return what stands for the placeholders of ``deploy/folder/main.c``."""
    inputs = [a for a in arguments if not a.is_output]
    outputs = [a for a in arguments if a.is_output]
    buffers = _buffers(program, arguments, name.upper())
    read = [
        f"    read_{a.name}(argv[{n}]);"
        if a.is_quantized
        else f"    read_input(argv[{n}], {a.variable}, sizeof {a.variable}, "
        f'"{np.dtype(a.port.dtype).str}",\n               "{a.contents}");'
        for n, a in enumerate(inputs, start=1)
    ]
    weights = ""
    if program.weights:
        weights = "WEIGHTS"
        buffers += [
            "",
            "#ifdef MAPPED_WEIGHTS",
            "static directconv_weights mapped;",
            "#define WEIGHTS mapped.data",
            "#else",
            f"#define WEIGHTS {name}_weights",
            "#endif",
        ]
        read += [
            "#ifdef MAPPED_WEIGHTS",
            f'    if (directconv_map(&mapped, "{name}.weights") != DIRECTCONV_OK)',
            '        stop("weights", directconv_error());',
            "#ifdef CHECK_WEIGHTS",
            "    if (directconv_check_weights(&mapped) != DIRECTCONV_OK)",
            '        stop("weights", directconv_error());',
            "#endif",
            "#endif",
        ]
    results = []
    for n, a in enumerate(outputs, start=1 + len(inputs)):
        results += [
            f"    if (argc > {n}) write_output(argv[{n}], {a.variable}, sizeof {a.variable});",
            f'    print_largest_{a.c_type}("{a.name}", {a.variable}, {name.upper()}_'
            f"{a.name.upper()}_ELEMENTS, {_meaning(name, a)});",
        ]
    printer, reader = (
        (DEPLOY / "folder" / f"{part}.c").read_text(encoding="utf-8")
        for part in ("printer", "quantized")
    )
    readers = [_filled(reader, {"name": name, **_reading(a)}) for a in inputs if a.is_quantized]
    types = sorted({a.c_type for a in outputs})
    words = [f"{a.name}.in" for a in inputs] + [f"[{a.name}.out]" for a in outputs]
    return {
        "usage": shortened(" ".join([name, *words]), _MENTIONED),
        "buffers": "\n".join(buffers),
        "printers": "\n".join(printer.replace("@type@", c_type) for c_type in types),
        "float": np.dtype(np.float32).str,
        "readers": "\n".join(readers),
        "read": "\n".join(read),
        "inputs": str(len(inputs)),
        "outputs": str(len(outputs)),
        "threads": str(threads),
        "call": _call(name, program, arguments, weights),
        "results": "\n".join(results),
    }


def _meaning(name: str, argument: Argument) -> str:
    """Return scale and zero point of an output, in C."""
    if not argument.is_quantized:
        return "0, 0"
    prefix = f"{name.upper()}_{argument.name.upper()}"
    return f"{prefix}_SCALE, {prefix}_ZERO_POINT"


def _reading(argument: Argument) -> dict[str, str]:
    """Return what stands for the placeholders of ``deploy/folder/quantized.c``."""
    return {
        "input": argument.name,
        "variable": argument.variable,
        "elements": str(argument.elements),
        "type": np.dtype(argument.port.dtype).str,
        "float": np.dtype(np.float32).str,
        "contents": f"{argument.contents}, or of float32, {4 * argument.elements} bytes",
    }


def check_folder(folder: Path) -> None:
    """Check that :func:`write_folder` can write there, before something long is done.

    Raises
    ------
    LibraryError
        If it is a file, looks like one, or its name gives no identifier.
    """
    if os.path.isfile(folder) or folder.suffix in (".so", ".o", ".s", ".a", ".c", ".h"):
        raise LibraryError(
            f"cannot write C to {str(folder)!r}: expected a folder, or a name that is free, as "
            "there are several files"
        )
    if not re.search(r"[^\W_]", Path(os.path.realpath(folder)).name):
        raise LibraryError(
            f"cannot write C to {str(folder)!r}: expected a folder with letters in its name, after "
            "which the function is called"
        )


def write_folder(
    folder: Path,
    program: Program,
    objects: Mapping[str, tuple[str, bytes]],
    device: str,
    target: Mapping[str, Any],
    threads: int,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a folder in which ``make`` builds a C library and an example that uses it.

    Parameters
    ----------
    folder : Path
        Made if need be. Files of the same names in it are replaced. Its name, as an
        :func:`identifier`, is that of the C function, and of files.
    program : Program
    objects : mapping
        Symbols and object code of the kernels, by name.
    device : str
        Name of the device that they are for.
    target : mapping
        TVM target.
    threads : int
    notes : mapping, optional
        What is to be said about the layouts of inputs and outputs, by name.

    Raises
    ------
    LibraryError
        If the folder cannot be written.
    """
    check_folder(folder)
    name = name_of(folder)
    triple = target_port(target["mtriple"])
    arguments = arguments_of(program, notes)
    inputs_quantized = any(a.is_quantized for a in arguments if not a.is_output)
    parts = {"weights": bool(program.weights), "quantized": inputs_quantized}
    kernels = {f"{symbol}.o": code for symbol, code in objects.values()}
    values = {
        "name": name,
        "NAME": name.upper(),
        "triple": triple,
        "arch": triple.split("-")[0],
        "kernels": "\n  ".join(f"kernels/{kernel}" for kernel in kernels),
        **_example(name, program, arguments, threads),
    }
    with (
        files.explained(folder, LibraryError, into=True),
        files.new_folder(folder / "runtime"),
        files.new_folder(folder / "kernels"),
        files.scratch(folder) as draft,
    ):
        for part in ("runtime", "kernels"):
            (draft / part).mkdir()
        for file in RUNTIME:
            shutil.copyfile(DEPLOY / file, draft / "runtime" / file)
        for kernel, code in kernels.items():
            (draft / "kernels" / kernel).write_bytes(code)
        weights_id = "00" * 32
        if program.weights:
            weights_id = write_weights(program.weights, draft / f"{name}.weights")
            _write(draft / f"{name}_weights.c", weights_source(name, f"{name}.weights"))
        symbols = {kernel: symbol for kernel, (symbol, _) in objects.items()}
        _write(draft / f"{name}.h", header(name, program, arguments, device, threads))
        _write(draft / f"{name}.c", _source(name, program, arguments, symbols, weights_id))
        for file in ("main.c", "Makefile", "CMakeLists.txt"):
            template = (DEPLOY / "folder" / file).read_text(encoding="utf-8")
            _write(draft / file, _filled(template, values, parts))
        written = [path for path in draft.rglob("*") if path.is_file()]
        found = {path: folder / path.relative_to(draft) for path in written}
        files.place(found)
        for old in {*(folder / "kernels").glob("*.o")} - {*found.values()}:
            old.unlink()


def _filled(
    template: str, values: Mapping[str, str], parts: Mapping[str, bool] | None = None
) -> str:
    """Return a template with values in its places, and those of its parts that there are."""
    text = re.sub(
        r"@if (\w+)@\n(.*?)@end@\n",
        lambda match: match[2] if (parts or {})[match[1]] else "",
        template,
        flags=re.DOTALL,
    )
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], text)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _comment(name: str) -> str:
    """Return a name as it can stand in a comment, where compilers warn of more than its end."""
    text = "".join(c if c.isprintable() else "?" for c in shortened(name, _LONGEST))
    return re.sub(r"(?<=[*/?])(?=[*/?])", " ", text).rstrip("\\")
