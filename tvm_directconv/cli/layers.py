"""``tvm-directconv layers``."""

import argparse

from ..workload import ConvWorkload, networks, workloads
from ._options import SPECS
from ._output import Row, add_format, render, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("spec", nargs="*", metavar="SPEC", help=f"{SPECS}; default: all networks")
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """List the convolutions that specs stand for."""
    rows = [_row(workload) for workload in workloads(args.spec or networks())]
    write(render(rows, args.format))
    return 0


def _row(workload: ConvWorkload) -> Row:
    return {
        "network": workload.network,
        "layer": workload.layer,
        "count": workload.count,
        "descriptor": workload.descriptor,
        "gflop": workload.flops / 1e9,
        "input_mb": workload.input_bytes / 1e6,
        "weight_mb": workload.weight_bytes / 1e6,
        "output_mb": workload.output_bytes / 1e6,
        "im2col_mb": workload.im2col_bytes / 1e6,
    }
