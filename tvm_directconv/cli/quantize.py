"""``tvm-directconv quantize``."""

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..images import IMAGES
from ..network.noise import QuantizationReport
from ..network.quantize import METHODS, PERCENTILE, TYPES, quantize_network
from ._options import add_inputs, add_pixels, inputs_of, pixels_of, rate
from ._output import add_format, as_json, render, time_of
from ._progress import bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("model", metavar="MODEL", help="an ONNX file in float32")
    parser.add_argument(
        "--calibrate",
        required=True,
        metavar="SAMPLES",
        help="what ranges of tensors are found with: a .npz file with inputs by name, a .npy file, "
        "or a folder of such files or images, sorted by name; arrays have the shape of their "
        "input, with any number of samples instead of its first size",
    )
    parser.add_argument(
        "--check",
        metavar="SAMPLES",
        help="what the models are compared on; default: the samples of --calibrate",
    )
    parser.add_argument(
        "--types",
        choices=TYPES,
        default=TYPES[0],
        help="of activations and weights: u8s8 is fastest on x86, s8s8 on ARM; "
        f"default: {TYPES[0]}",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default=METHODS[0],
        help="how ranges are found: minmax takes all numbers into them, percentile so many percent "
        f"of these, entropy cuts where histograms lose least; default: {METHODS[0]}",
    )
    parser.add_argument(
        "--percentile",
        type=rate,
        metavar="P",
        help=f"percent of numbers that --method percentile takes; default: {PERCENTILE}",
    )
    parser.add_argument(
        "--per-channel",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether weights have a scale for each output channel; default: they have",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="NODE",
        help="name of a node that stays in float32; repeatedly for several nodes",
    )
    add_inputs(parser)
    group = parser.add_argument_group(
        "images",
        f"Images ({', '.join(IMAGES)}) are resized to an input of shape 1x3xHxW or 1xHxWx3.",
    )
    add_pixels(group)
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="ONNX file to write, ending in .onnx"
    )
    add_format(parser, ("table", "json"))


def run(args: argparse.Namespace) -> int:
    """Quantise a model and say what that has done to it."""
    begin = time.perf_counter()
    with bar() as show:
        report = quantize_network(
            args.model,
            args.output,
            args.calibrate,
            check=args.check,
            types=args.types,
            method=args.method,
            percentile=args.percentile,
            per_channel=args.per_channel,
            exclude=args.exclude,
            pixels=pixels_of(args),
            progress=show,
            **inputs_of(args),
        )
    seconds = time.perf_counter() - begin
    size = Path(args.output).stat().st_size
    if args.format == "json":
        found = {"output": args.output, "bytes": size, "seconds": seconds, **asdict(report)}
        print(as_json(found))
        return 0
    if not args.quiet:
        print(
            f"{args.output}: {size:,} bytes in {time_of(seconds)}, {len(report.layers)} layers in "
            f"8 bits, calibrated with {report.calibrated} samples and compared on {report.checked}"
        )
        if report.kept:
            print(f"layers in float32: {', '.join(map(repr, report.kept))}")
        print()
    print(render(_outputs(report), "table"))
    print()
    print(render(_layers(report), "table"))
    return 0


def _outputs(report: QuantizationReport) -> list[dict[str, Any]]:
    return [
        {
            "output": output.name,
            "signal to noise (dB)": _decibels(output.snr),
            "agreement": "" if output.agreement is None else f"{output.agreement:.1%}",
        }
        for output in report.outputs
    ]


def _layers(report: QuantizationReport) -> list[dict[str, Any]]:
    return [
        {
            "layer, worst first": layer.name,
            "operator": layer.operator,
            "own signal to noise (dB)": _decibels(layer.own_snr),
            "with that of its inputs": _decibels(layer.snr),
        }
        for layer in report.layers
    ]


def _decibels(snr: float | None) -> str:
    return "" if snr is None else f"{snr:.1f}"
