"""``tvm-directconv run``."""

import argparse
from pathlib import Path
from statistics import median

import numpy as np

from ..arrays import Expected, read_arrays
from ..conv_manifest import ConvManifest
from ..convolution import CompiledConv, load
from ..deploy.emulated import emulated
from ..epilogue import OPERANDS, Epilogue
from ..errors import ArgumentError
from ..kinds import printable
from ..manifest import manifest_path
from ..precision import NUMBER_TYPES, NumberType
from ..quantization import Quantization
from ..reference import (
    conv2d_reference,
    epilogue_reference,
    max_error,
    random_operands,
    random_tensors,
)
from ..runtime import library_bytes
from ._network import (
    add_network_arguments,
    is_network,
    outcome,
    refuse_network_arguments,
    run_network,
)
from ._options import TOLERANCE, whole
from ._output import add_format, as_json, check_writable, save, time_of

_CALLS = 5
_QUANTIZATION = {
    "input_scale": 1.0,
    "input_zero_point": 0,
    "weight_scale": 1.0,
    "output_scale": None,
    "output_zero_point": 0,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument(
        "library", metavar="LIBRARY", help="a .so that compile wrote, its manifest beside it"
    )
    shapes = {"input": "NCHW", "weight": "OIHW"}
    for operand in OPERANDS:
        by_channel = "a number for each output channel"
        shapes[operand.name] = by_channel if operand.by_channel else "NCHW"
    for name, layout in shapes.items():
        parser.add_argument(
            f"--{name}",
            metavar="FILE",
            help=f".npy file with the {name}, {layout}, of the type that the library has; default: "
            "random whole numbers" + ("; for a network see below" if name == "input" else ""),
        )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file to write the output to, NCHW: .npy whatever it is called",
    )
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--emulate",
        action="store_true",
        help="use the C runner, under qemu if the library is for another processor",
    )
    for name, default in _QUANTIZATION.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int if default == 0 else float,
            default=default,
            metavar="N",
            help="of whole numbers q, which stand for scale x (q - zero point); default: "
            + ("so that outputs use all of their range" if default is None else str(default)),
        )
    add_format(parser, ("table", "json"))
    add_network_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run a library, compare with the reference; status 1 if they differ."""
    library = Path(args.library)
    if is_network(library):
        return run_network(library, args)
    conv = _for_packing(library) if args.emulate else load(library)
    refuse_network_arguments(args)
    workload = conv.workload
    x, weight = random_tensors(workload, args.seed, integers=True)
    if args.input:
        x = _read(args.input, "input", workload.precision.pixel, workload.input_shape)
    if args.weight:
        weight = _read(args.weight, "weight", workload.precision.weight, workload.weight_shape)
    plain = _operands(conv, args)
    m = conv.manifest
    sums = conv2d_reference(_counted(x, args.input_zero_point), weight, workload)
    meaning = _quantization(conv, args, sums, plain)
    if args.output:
        check_writable(args.output)
    packed = conv.pack_input(x), conv.pack_weight(weight)
    operands = conv.pack_operands(weight, meaning, **plain)
    if args.emulate:
        arrays = [*packed, *operands.values()]
        (out,), seconds, how = emulated(
            library, m, m.symbol, arrays, [m.output_shape], output_types=[m.output_type.name]
        )
    else:
        out = conv.run(*packed, **operands)
        call = conv.bind(*packed, out, **operands)
        seconds, how = median(call.timed() for _ in range(_CALLS)), f"median of {_CALLS} calls"
    y = conv.unpack_output(out)
    error = max_error(y, epilogue_reference(sums, m.epilogue, meaning, **plain))
    if args.output:
        save(args.output, lambda file: np.save(file, y))
    right = error <= TOLERANCE
    if args.format == "json":
        found = {
            "library": args.library,
            "workload": str(workload),
            "device": conv.manifest.device,
            "threads": conv.manifest.threads,
            **outcome(error, seconds, how),
        }
        print(as_json(found))
        return 0 if right else 1
    print(f"{workload} for {printable(conv.manifest.device)}, {conv.manifest.threads} thread(s)")
    print(f"max_error {error:g}" + ("" if right else f", expected up to {TOLERANCE}"))
    print(f"seconds {seconds:.4g} ({time_of(seconds)}, {how})")
    return 0 if right else 1


def _operands(conv: CompiledConv, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return the epilogue's operands, plain: given ones or random ones."""
    found = random_operands(conv.workload, conv.manifest.epilogue, args.seed)
    for operand in OPERANDS:
        name, path = operand.name, getattr(args, operand.name)
        if path and name not in found:
            raise ArgumentError(
                f"--{name} is {path!r}: expected none, the library was compiled without a {name}"
            )
        if path:
            number = NUMBER_TYPES[found[name].dtype.name]
            found[name] = _read(path, name, number, found[name].shape)
    return found


def _counted(x: np.ndarray, zero_point: int) -> np.ndarray:
    """Return pixels less the zero point."""
    return x.astype(np.int64) - zero_point if zero_point else x


def _quantization(
    conv: CompiledConv, args: argparse.Namespace, sums: np.ndarray, plain: dict[str, np.ndarray]
) -> Quantization | None:
    """Return what whole numbers stand for; outputs use all their range if nothing is given."""
    given = {name: getattr(args, name) for name in _QUANTIZATION}
    m = conv.manifest
    if not m.precision.whole:
        for name, value in given.items():
            if value != _QUANTIZATION[name]:
                raise ArgumentError(
                    f"--{name.replace('_', '-')} is {value}: expected none, the library computes "
                    f"in {m.precision}"
                )
        return None
    if not m.epilogue.requantize:
        return Quantization(input_zero_point=args.input_zero_point)
    if m.epilogue.scaled and given["output_scale"] is None:
        given["output_scale"] = 1.0  # Outputs are the numbers themselves.
    if given["output_scale"] is None:
        biased = epilogue_reference(sums, Epilogue(m.epilogue.bias), None, **plain)
        del given["output_scale"], given["output_zero_point"]
        return Quantization.of_outputs(biased, m.output_type, **given)
    return Quantization(**given)


def _for_packing(library: Path) -> CompiledConv:
    """Return a convolution that knows its layouts but has no code."""
    return CompiledConv(
        ConvManifest.read(manifest_path(library), library_bytes(library)), module=None
    )


def _read(path: str, name: str, number: NumberType, shape: tuple[int, ...]) -> np.ndarray:
    about = f"the {name}, {number} of shape {'x'.join(map(str, shape))}"
    return read_arrays(path, [Expected(name, shape, about)])[0]
