"""``tvm-directconv compile``."""

import argparse
import re
import time
from contextlib import ExitStack
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from .. import files
from ..convolution import SUFFIXES, build
from ..denormals import MODES
from ..errors import LibraryError, ModelError
from ..images import IMAGES
from ..network.manifest import Mixed, NetworkManifest
from ..precision import DTYPES, MIXED
from ..specs import is_model
from ..workload import ConvWorkload
from ._options import (
    add_blocking,
    add_device,
    add_epilogue,
    add_input_layout,
    add_logs,
    add_pixels,
    add_specs,
    add_threads,
    inputs_of,
    logs_of,
    pixels_of,
    rate,
    workloads_of,
)
from ._output import add_format, as_json, render, status_line, time_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    add_specs(parser, "one model without numbers is compiled as a network")
    add_device(parser)
    add_threads(parser)
    add_blocking(parser)
    add_logs(parser)
    add_input_layout(parser)
    add_epilogue(parser)
    parser.add_argument(
        "--denormals",
        choices=MODES,
        help="numbers below 2^-126, for which processors can take a hundred times as long: flush "
        "has them count as zeros, keep computes with them; default: flush where the processor can",
    )
    parser.add_argument(
        "--dtype",
        choices=(*DTYPES, MIXED),
        help="what a model's convolutions and dense layers of float32 are computed in, and tensors "
        "between them are stored in. bf16: bfloat16, sums in float32; fp16: float16, sums in "
        "float32; fp16acc16: float16, sums in float16; mixed: the fastest of these on the device; "
        "default: as the model has its weights",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="LAYER",
        help="one of these that stays float32: the name of its ONNX node, its place as 'layers' "
        "counts (3, or model.onnx:3), or its descriptor; repeatedly for several",
    )
    parser.add_argument(
        "--tolerance",
        type=rate,
        metavar="ERROR",
        help="with a dtype of 16 bits: as many of these stay float32 as it takes for outputs to "
        "differ from those in float32 by no more than this, such as 0.01 (root mean square, "
        "relative to the output)",
    )
    parser.add_argument(
        "--samples",
        metavar="SAMPLES",
        help="inputs that the error is found on: a .npz file with inputs by name, a .npy file, or "
        f"a folder of such files or images ({', '.join(IMAGES)}); default: random ones",
    )
    add_pixels(parser.add_argument_group("images among samples"))
    parser.add_argument(
        "--schedule", metavar="FILE", help="Python file with a schedule of your own"
    )
    parser.add_argument(
        "--emit",
        choices=("library", "c"),
        default="library",
        help="c: a folder with objects, weights, a header, a small C runtime, a Makefile and an "
        "example, to be built where it is used; default: library",
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        help="run a model's library once on random input beside onnxruntime, and fail if it is "
        "wrong; default: where onnxruntime is installed and the code runs here; --check does it in "
        "an emulator, too",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="for a model a file ending in .so; "
        "for one convolution a file ending in .so (library), .o (object) or .s (assembly); "
        "otherwise a folder, made if need be, in which each gets a library of its name; "
        "with --emit c always a folder, after whose name the C function is called",
    )
    add_format(parser, ("table", "json"))


def run(args: argparse.Namespace) -> int:
    """Compile and export; every library has its manifest beside it."""
    with logs_of(args):
        made = [_compile_model(args)] if any(map(is_model, args.spec)) else _compile(args)
    if args.format == "json":
        print(as_json(made))
    return 0


def _tell(args: argparse.Namespace, text: str) -> None:
    if args.format == "table" and not args.quiet:
        print(text, flush=True)


def _compile_model(args: argparse.Namespace) -> dict[str, Any]:
    """Compile a network; return what JSON says of it."""
    if len(args.spec) > 1:
        raise ModelError(
            f"{len(args.spec)} specs are given, {', '.join(args.spec)}: expected one model, which "
            "makes one library"
        )
    for option in ("epilogue", "schedule", "input_layout"):
        if getattr(args, option):
            raise ModelError(
                f"--{option.replace('_', '-')} is {str(getattr(args, option))!r}: expected none, "
                "the model says what follows its convolutions, and passes choose layouts"
            )
    from ..network.compile import compile_network

    begin = time.perf_counter()
    pixels = pixels_of(args)
    try:
        manifest = compile_network(
            args.spec[0],
            args.output,
            args.device,
            args.threads,
            blocking=args.blocking,
            progress=lambda done, total: status_line(f"compiling kernel {done + 1}/{total}"),
            emit=args.emit,
            check=args.check,
            denormals=args.denormals,
            dtype=args.dtype,
            keep=args.keep,
            tolerance=args.tolerance,
            samples=args.samples,
            pixels=pixels if pixels.given else None,
            measuring=lambda done, most: status_line(
                f"finding what is lost in 16 bits, run {done + 1} of at most {most}"
            ),
            **inputs_of(args),
        )
    finally:
        status_line("")
    seconds = time.perf_counter() - begin
    size = _size(Path(args.output))
    _tell(
        args,
        f"{args.output}: {size:,} bytes in {time_of(seconds)}, for "
        f"{manifest.device}, {len(manifest.layers)} steps with {_convolutions(manifest)}, "
        f"{manifest.reorders} reorders, {manifest.conversions} conversions of types",
    )
    rows = [{"memory": name, "bytes": f"{size:,}"} for name, size in manifest.memory().items()]
    rows += [
        {"memory": "without sharing, the arena", "bytes": f"{manifest.unshared_bytes:,}"},
        {"memory": "what im2col would add", "bytes": f"{manifest.im2col_bytes:,}"},
    ]
    _tell(args, render(rows, "table"))
    if manifest.mixed.dtype:
        _tell(args, f"{args.dtype}: {manifest.mixed}")
        if manifest.mixed.kept:
            _tell(args, render(_kept(manifest.mixed), "table"))
    _tell(args, f"check: {manifest.check}")
    return {
        "output": args.output,
        "bytes": size,
        "seconds": seconds,
        "memory": manifest.memory(),
        **asdict(manifest),
    }


def _kept(mixed: Mixed) -> list[dict[str, Any]]:
    """Return the layers that stay float32."""
    return [
        {
            "stays float32": layer.layer,
            "workload": layer.workload,
            "error if it alone does not": (
                "not finite" if layer.error is None else f"{layer.error:.2g}"
            ),
        }
        for layer in mixed.kept
    ]


def _convolutions(manifest: NetworkManifest) -> str:
    """Return how many convolutions there are, and of which types if not all are of floats."""
    found = manifest.types
    text = f"{sum(count for count, _ in found.values())} convolutions"
    if set(found) <= {"float32"}:
        return text
    whole = sum(work for _, work in found.values()) or 1
    shares = (f"{count} in {t}: {work / whole:.1%}" for t, (count, work) in found.items())
    return f"{text} ({'; '.join(shares)} of their multiply-adds)"


def _compile(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Compile convolutions; return what JSON says of each."""
    if args.check is not None:
        raise ModelError(
            f"--{'' if args.check else 'no-'}check is given: expected a model to compile; 'run' "
            "compares a single convolution with its reference"
        )
    for option in ("dtype", "keep", "tolerance", "samples", *pixels_of(args).given):
        if getattr(args, option):
            raise ModelError(
                f"--{option} is given: expected a model to compile; the descriptor of a single "
                "convolution begins with its number type, such as bfloat16_ic256ih56oc256oh56kh3ph1"
            )
    made = []
    asked = workloads_of(args)
    output = Path(args.output)
    paths = (_folders if args.emit == "c" else _paths)(asked, output)
    with ExitStack() as stack:
        if paths != [output]:
            _make(output, stack)
        for workload, path in zip(asked, paths, strict=True):
            conv = build(
                workload,
                args.device,
                threads=args.threads,
                blocking=args.blocking,
                input_layout=args.input_layout,
                schedule=args.schedule,
                epilogue=args.epilogue,
                denormals=args.denormals,
            )
            if args.emit == "c":
                conv.export_c(path)
            else:
                conv.export(path)
            m, size, seconds = conv.manifest, _size(path), conv.compile_seconds or 0.0
            _tell(
                args,
                f"{path}: {size:,} bytes in {time_of(seconds)}, {workload} for {m.device}, "
                f"blocking ({m.blocking_source}) {m.blocking}",
            )
            made.append(
                {
                    "output": str(path),
                    "bytes": size,
                    "seconds": seconds,
                    "workload": str(workload),
                    "name": workload.name,
                    "device": m.device,
                    "threads": m.threads,
                    "blocking": m.blocking.to_dict(),
                    "blocking_source": m.blocking_source,
                    "symbol": m.symbol,
                    "epilogue": m.epilogue.descriptor,
                }
            )
    return made


def _make(folder: Path, stack: ExitStack) -> None:
    """Make a folder, which goes again if there is an error before anything is in it."""
    try:
        stack.enter_context(files.new_folder(folder))
    except OSError as error:
        raise LibraryError(
            f"cannot make folder {str(folder)!r} ({error.strerror}): expected a folder, "
            "or a name that is free"
        ) from None


def _paths(asked: list[ConvWorkload], output: Path) -> list[Path]:
    """Return where each convolution goes."""
    is_file = output.suffix in SUFFIXES
    if is_file and len(asked) > 1:
        raise LibraryError(
            f"output is {str(output)!r}, but there are {len(asked)} convolutions: expected a folder"
        )
    if len(asked) == 1 and not output.is_dir():
        if not is_file:
            raise LibraryError(
                f"output is {str(output)!r}: expected a name ending in .so, .o or .s, or a folder "
                "that exists"
            )
        # What export() would say too, but only after compiling.
        if not output.parent.is_dir():
            raise LibraryError(
                f"output is {str(output)!r}, but there is no folder {str(output.parent)!r}: "
                "expected one that exists, make it first"
            )
        return [output]
    return _named(asked, output, ".so")


def _folders(asked: list[ConvWorkload], output: Path) -> list[Path]:
    """Return the folder with C of each convolution."""
    from ..emit.c_folder import check_folder

    if len(asked) == 1:
        check_folder(output)
        return [output]
    return _named(asked, output, "")


def _named(asked: list[ConvWorkload], output: Path, suffix: str) -> list[Path]:
    """Return a path in a folder for each convolution."""
    paths: list[Path] = []
    for workload in asked:
        stem = re.sub(r"[^\w.-]", "_", workload.name) or str(workload)
        # Files of shapes may give different convolutions the same name.
        stems = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
        paths.append(
            next(path for path in (output / f"{s}{suffix}" for s in stems) if path not in paths)
        )
    return paths


def _size(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
