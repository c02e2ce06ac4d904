"""``tvm-directconv profile``."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import LibraryError
from ..hardware.lookup import device as find_device
from ..network.check import drawn
from ..network.network import load_network
from ..precision import Precision
from ..workload import ConvWorkload
from ._network import is_network
from ._options import positive
from ._output import Row, add_format, check_writable, for_people, render, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("library", metavar="LIBRARY", help="a .so that compile made of a model")
    parser.add_argument(
        "--repeat", type=positive, default=10, metavar="R", help="measurements; default: 10"
    )
    add_format(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="write there instead of printing")


def run(args: argparse.Namespace) -> int:
    """Time the steps of a network on random input."""
    from ..bench.peak import Burst

    if Path(args.library).is_file() and not is_network(Path(args.library)):
        raise LibraryError(
            f"{args.library!r} is a single convolution: expected a library that 'tvm-directconv "
            "compile' made of a model; for convolutions there is 'tvm-directconv bench'"
        )
    if args.output:
        check_writable(args.output)
    network = load_network(args.library)
    manifest = network.manifest
    device = find_device(manifest.device)
    precisions = [
        ConvWorkload.parse(layer.workload).precision if layer.workload else None
        for layer in manifest.layers
    ]
    bursts = {
        precision: Burst(device, manifest.threads, precision)
        for precision in dict.fromkeys(precisions)
        if precision
    }
    rng = np.random.default_rng(0)
    inputs = [drawn(port, rng) for port in manifest.inputs]
    network.profile(*inputs, repeat=1)
    measured: list[np.ndarray] = []
    peaks: dict[Precision, list[float]] = {precision: [] for precision in bursts}
    for _ in range(args.repeat):
        before = [burst() for burst in bursts.values()]
        measured.append(network.profile(*inputs, repeat=1)[0])
        after = [burst() for burst in bursts.values()]
        for speeds, *both in zip(peaks.values(), before, after, strict=True):
            speeds.append(sum(both) / 2)
    seconds = np.array(measured)
    total = float(np.median(seconds.sum(axis=1)))
    rows: list[dict[str, Any]] = []
    people: list[Row] = []
    for number, (layer, precision) in enumerate(zip(manifest.layers, precisions, strict=True)):
        median = float(np.median(seconds[:, number]))
        gflops, of_peak = None, None
        if precision:
            reached = layer.flops / 1e9 / seconds[:, number]
            gflops = float(np.median(reached))
            of_peak = float(np.median(reached / peaks[precision]))
        share = median / total
        rows.append(
            {
                "step": number,
                "kernel": layer.kernel,
                "workload": layer.workload,
                "epilogue": layer.epilogue,
                "seconds_p50": median,
                "share": share,
                "gflops": gflops,
                "of_peak": of_peak,
                "blocking_source": layer.blocking_source,
            }
        )
        people.append(
            {
                "step": number,
                "layer": layer.workload or layer.kernel.rpartition("_")[0] or layer.kernel,
                "epilogue": layer.epilogue,
                "ms": f"{median * 1e3:.3f}",
                "share": f"{share:.1%}",
                "GFLOP/s": f"{gflops:.1f}" if gflops else "",
                "of peak": f"{of_peak:.1%}" if of_peak else "",
            }
        )
    text = render(rows, args.format, people)
    if for_people(args.format):
        convolved = sum(row["seconds_p50"] for row in rows if row["workload"])
        flops = sum(layer.flops for layer in manifest.layers)
        at_peak = sum(
            layer.flops / 1e9 / float(np.median(peaks[precision]))
            for layer, precision in zip(manifest.layers, precisions, strict=True)
            if precision
        )
        text += (
            f"\n\n{total * 1e3:.2f} ms a run, {convolved / total:.1%} of it in "
            f"{sum(bool(row['workload']) for row in rows)} convolutions; "
            f"{flops / total / 1e9:.1f} GFLOP/s, {at_peak / total:.1%} of the FMA peak"
        )
    write(text, args.output)
    return 0
