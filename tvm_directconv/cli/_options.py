"""Options that several subcommands share."""

import argparse
import ast
import contextlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..epilogue import ACTIVATIONS, REQUANTIZED, Epilogue
from ..errors import ArgumentError, LogError, WorkloadError
from ..images import Pixels
from ..kinds import THREADS
from ..logs.folders import use_logs
from ..specs import workloads
from ..workload import ConvWorkload

_BOOLS = {"true": "True", "false": "False"}

TOLERANCE = 1e-4
"""Largest error that rounding explains, in units of :func:`tvm_directconv.max_error`."""

SPECS = (
    "a network (vgg16), layers of one (vgg16:conv3_*), the convolutions of a model (model.onnx, "
    "model.pt2) or some of them, counted from 0 (model.onnx:3), a descriptor "
    "(ic256ih56oc256oh56kh3ph1), or a file with one of these on each line (@FILE)"
)


def add_specs(parser: argparse.ArgumentParser, more: str = "", default: str | None = None) -> None:
    """Add ``SPEC``, ``--input-shape`` and ``--input-value``; see :func:`workloads_of`.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        To which they are added.
    more : str
        Said of specs in the help.
    default : str, optional
        What is taken if none is given, in words; at least one has to be given if this is not.
    """
    parser.add_argument(
        "spec",
        nargs="+" if default is None else "*",
        metavar="SPEC",
        help="; ".join(filter(None, (SPECS, more, default and f"default: {default}"))),
    )
    add_inputs(parser)


def workloads_of(args: argparse.Namespace, default: Sequence[str] = ()) -> list[ConvWorkload]:
    """Return the convolutions that ``SPEC`` and what is said of inputs ask for, if anything is.

    Parameters
    ----------
    args : argparse.Namespace
        What was given.
    default : sequence of str
        Specs if none is given.
    """
    specs = args.spec or list(default)
    if not specs and not args.input_shape and not args.input_value:
        return []
    return workloads(specs, **inputs_of(args))


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add ``--input-shape`` and ``--input-value``; see :func:`inputs_of`."""
    parser.add_argument(
        "--input-shape",
        type=_input_shape,
        action="append",
        default=[],
        metavar="NAME:SIZES",
        help="size of an input that a model leaves open, such as x:1,3,224,224; repeatedly for "
        "several inputs",
    )
    parser.add_argument(
        "--input-value",
        type=_input_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="number, or several separated by commas, that an input of a model always is, such as "
        "sr=16000: it becomes a constant, which may choose a branch; repeatedly for several inputs",
    )


def inputs_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what is said of a model's inputs, as functions take it.

    Raises
    ------
    ArgumentError
        If something is said twice.
    """
    for option in ("input_shape", "input_value"):
        names = [name for name, _ in getattr(args, option)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ArgumentError(
                f"--{option.replace('_', '-')} is given {names.count(twice[0])} times for input "
                f"{twice[0]!r}: expected once"
            )
    return {"input_shapes": dict(args.input_shape), "input_values": dict(args.input_value)}


def _input_value(text: str) -> tuple[str, Any]:
    name, _, given = text.rpartition("=")
    try:
        values = [ast.literal_eval(_BOOLS.get(part.lower(), part)) for part in given.split(",")]
    except (ValueError, SyntaxError):
        values = []
    if not name or not values or not all(isinstance(v, int | float) for v in values):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no value of an input: expected its name and numbers, such as sr=16000"
        )
    return name, values if len(values) > 1 else values[0]


def _input_shape(text: str) -> tuple[str, list[int]]:
    name, separator, sizes = text.rpartition(":")
    parts = sizes.split(",")
    if not (separator and name and all(part.isdecimal() and int(part) for part in parts)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size of an input: expected its name and whole numbers from 1, such as "
            "x:1,3,224,224"
        )
    return name, [int(part) for part in parts]


def add_pixels(parser: argparse._ActionsContainer) -> None:
    """Add ``--mean``, ``--std`` and ``--bgr``; see :func:`pixels_of`."""
    parser.add_argument(
        "--mean",
        type=_numbers,
        metavar="R,G,B",
        help="of an image whose pixels are 0 to 1, subtracted; default: 0,0,0",
    )
    parser.add_argument(
        "--std", type=_divisors, metavar="R,G,B", help="divides that; default: 1,1,1"
    )
    parser.add_argument("--bgr", action="store_true", help="the network's first channel is blue")


def pixels_of(args: argparse.Namespace) -> Pixels:
    """Return what becomes of the pixels of images."""
    return Pixels(args.mean, args.std, args.bgr)


def _numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in (1, 3) or not all(map(math.isfinite, found)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one number for each of three channels, or one for all"
        )
    return found


def _divisors(text: str) -> list[float]:
    found = _numbers(text)
    if min(found) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} divides pixels: expected numbers above 0")
    return found


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, and ``--target`` as TVM's users call it."""
    parser.add_argument(
        "--device",
        "--target",
        default="native",
        metavar="DEVICE",
        help="name, 'native' for this machine, a device file (my-board.toml), or a TVM target "
        "with mcpu; default: native",
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads``."""
    parser.add_argument(
        "--threads", type=threads, default=1, metavar="N", help="threads that compute; default: 1"
    )


def add_input_layout(parser: argparse.ArgumentParser) -> None:
    """Add ``--input-layout``."""
    parser.add_argument(
        "--input-layout",
        metavar="LAYOUT",
        help="NCHW, NHWC or NCHW<block>c; default: NCHW for images, blocks between layers",
    )


def add_epilogue(parser: argparse.ArgumentParser) -> None:
    """Add what becomes of outputs."""
    parser.add_argument(
        "--epilogue",
        type=_epilogue,
        metavar="PARTS",
        help="what becomes of outputs before they are stored: bias, residual and an activation, "
        f"such as bias,relu or bias,leaky_relu=0.1; activations: {', '.join(ACTIVATIONS)}; of "
        "whole numbers, also zero_point, and requantize=TYPE with one of "
        f"{', '.join(REQUANTIZED)}",
    )


def add_blocking(parser: argparse.ArgumentParser) -> None:
    """Add ``--blocking``."""
    parser.add_argument(
        "--blocking",
        default="auto",
        metavar="SOURCE",
        help="where block sizes come from: model (the analytical model), auto (tuning logs, "
        "failing that the model), or a JSON file of them; default: auto",
    )


def add_logs(parser: argparse.ArgumentParser) -> None:
    """Add ``--logs``; see :func:`logs_of`."""
    parser.add_argument(
        "--logs",
        metavar="DIR",
        help="folder of tuning logs to use; default: $TVM_DIRECTCONV_LOGS, failing that the "
        "user's and those of this package",
    )


def logs_of(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Return a context in which tuning logs are read from where ``--logs`` says.

    Raises
    ------
    LogError
        If there is no such folder.
    """
    if args.logs is None:
        return contextlib.nullcontext()
    if not Path(args.logs).is_dir():
        raise LogError(f"there is no folder {args.logs!r}: expected one with tuning logs")
    return use_logs(args.logs)


def positive(text: str) -> int:
    """Return a whole number from 1, as argparse wants it."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def network_dtype(text: str) -> str:
    """Return a number type that networks are compared in, as argparse wants it."""
    from ..bench.rivals.base import NETWORK_DTYPES

    if text not in NETWORK_DTYPES:
        raise argparse.ArgumentTypeError(
            f"networks are not compared in {text!r}: expected one of {', '.join(NETWORK_DTYPES)}"
        )
    return text


def threads(text: str) -> int:
    """Return a number of threads, as argparse wants it."""
    if not (text.isdecimal() and len(text) < 20 and THREADS.test(int(text))):
        raise argparse.ArgumentTypeError(f"{text!r} is not {THREADS.expected}")
    return int(text)


def rate(text: str) -> float:
    """Return a number above 0, as argparse wants it."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return found


def whole(text: str) -> int:
    """Return a whole number from 0, as argparse wants it."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


_UNITS = {"h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0, "": 1.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?\s*(?:h|min|m|s)\s*)+|\d+(?:\.\d+)?")


def duration(text: str) -> float:
    """Return seconds above 0, as argparse wants them: of ``90s``, ``5m``, ``1h30m`` or ``90``."""
    seconds = pause(text)
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: expected more than 0")
    return seconds


def pause(text: str) -> float:
    """Return seconds from 0; see :func:`duration`."""
    seconds = float("inf")
    if _DURATION.fullmatch(text.strip()):
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*(h|min|m|s|)", text)
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds == float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time: expected a number of seconds, or one with its unit such as 90s, "
            "5m or 1h30m"
        )
    return seconds


def _epilogue(text: str) -> Epilogue:
    try:
        return Epilogue.parse(text)
    except WorkloadError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
