"""``tvm-directconv run``."""

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np

from ..build import BoundCall, CompiledConv, Manifest, load
from ..device import device as find_device
from ..device import host_lacks
from ..errors import ArgumentError, DeviceError, LibraryError
from ..reference import conv2d_reference, epilogue_reference, max_error, random_tensors
from ._network import (
    add_network_arguments,
    is_network,
    refuse_network_arguments,
    run_network,
)
from ._options import TOLERANCE, whole
from ._output import check_writable

_CALLS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument(
        "library", metavar="LIBRARY", help="a .so that compile wrote, its manifest beside it"
    )
    shapes = {
        "input": "NCHW",
        "weight": "OIHW",
        "bias": "a number for each output channel",
        "residual": "NCHW",
    }
    for name, layout in shapes.items():
        parser.add_argument(
            f"--{name}",
            metavar="FILE",
            help=f".npy file with the {name}, float32, {layout}; default: random small integers"
            + ("; for a network see below" if name == "input" else ""),
        )
    parser.add_argument("--output", metavar="FILE", help=".npy file to write the output to, NCHW")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--emulate",
        action="store_true",
        help="use the C runner, under qemu if the library is for another processor",
    )
    add_network_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run a library, compare with the reference; status 1 if they differ."""
    library = Path(args.library)
    if is_network(library):
        return run_network(library, args)
    conv = _for_packing(library) if args.emulate else _loaded(library)
    refuse_network_arguments(args)
    workload = conv.workload
    x, weight = random_tensors(workload, args.seed, integers=True)
    if args.input:
        x = _read(args.input)
    if args.weight:
        weight = _read(args.weight)
    plain = _operands(conv, args)
    if args.output:
        check_writable(args.output)
    packed = conv.pack_input(x), conv.pack_weight(weight)
    pack = {"bias": conv.pack_bias, "residual": conv.pack_residual}
    operands = {name: pack[name](array) for name, array in plain.items()}
    if args.emulate:
        out, seconds, how = _emulated(library, conv.manifest, [*packed, *operands.values()])
    else:
        out = conv.run(*packed, **operands)
        call = conv.bind(*packed, out, **operands)
        seconds, how = median(_timed(call) for _ in range(_CALLS)), f"median of {_CALLS} calls"
    y = conv.unpack_output(out)
    sums = conv2d_reference(x, weight, workload)
    error = max_error(y, epilogue_reference(sums, conv.manifest.epilogue, **plain))
    if args.output:
        with open(args.output, "wb") as file:  # numpy.save would change other endings than .npy.
            np.save(file, y)
    print(f"{workload} for {conv.manifest.device}, {conv.manifest.threads} thread(s)")
    print(f"max_error {error:g}" + ("" if error <= TOLERANCE else f", expected up to {TOLERANCE}"))
    print(f"seconds {seconds:.4g} ({how})")
    return 0 if error <= TOLERANCE else 1


def _operands(conv: CompiledConv, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return bias and residual, plain, if the library wants them: given ones or random ones."""
    rng = np.random.default_rng(args.seed)
    epilogue, workload = conv.manifest.epilogue, conv.workload
    found = {}
    for name, shape in (("bias", (workload.out_channels,)), ("residual", workload.output_shape)):
        path = getattr(args, name)
        if path and not getattr(epilogue, name):
            raise ArgumentError(
                f"--{name} is {path!r}: expected none, the library was compiled without a {name}"
            )
        if getattr(epilogue, name):
            drawn = rng.integers(-8, 8, shape, endpoint=True).astype(np.float32)
            found[name] = _read(path) if path else drawn
    return found


def _timed(call: BoundCall) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _manifest(library: Path) -> Manifest:
    try:
        data = library.read_bytes()
    except OSError as error:
        raise LibraryError(
            f"cannot read library {str(library)!r} ({error.strerror}): expected a .so that "
            "'tvm-directconv compile' wrote"
        ) from None
    return Manifest.read(Path(f"{library}.json"), data)


def _loaded(library: Path) -> CompiledConv:
    manifest = _manifest(library)
    if reason := host_lacks(manifest.target):
        raise LibraryError(
            f"cannot run {str(library)!r}, built for {manifest.device}: {reason}. Run it there, or "
            "here with --emulate"
        )
    return load(library)


def _for_packing(library: Path) -> CompiledConv:
    """Return a convolution that knows its layouts but has no code."""
    return CompiledConv(_manifest(library), module=None)


def _read(path: str) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArgumentError(
            f"cannot read array file {path!r} ({error}): expected a .npy file of float32"
        ) from None
    return array


def _emulated(
    library: Path, manifest: Manifest, packed: list[np.ndarray]
) -> tuple[np.ndarray, float, str]:
    from ..deploy.runner import run_library
    from ..toolchain import find_toolchain

    try:
        qemu_cpu = find_device(manifest.device).qemu_cpu
    except DeviceError:
        qemu_cpu = None  # A device file of the user's own: only its name is in the manifest.
    toolchain = find_toolchain(manifest.target["mtriple"], qemu_cpu)
    report = run_library(
        library,
        manifest.symbol,
        packed,
        [manifest.output_shape],
        toolchain,
        threads=manifest.threads,
    )
    how = f"one call by {' '.join(toolchain.emulator)}" if toolchain.emulator else "one call"
    return report.outputs[0], report.seconds[0], how
