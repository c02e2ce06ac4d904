"""``tvm-directconv layers``."""

import argparse

from ..specs import networks
from ..workload import ConvWorkload
from ._options import add_specs, workloads_of
from ._output import Row, add_format, render, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    add_specs(parser, default="all networks")
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """List the convolutions that specs stand for."""
    found = workloads_of(args, networks())
    rows = [_row(workload) for workload in found]
    people = [
        {"layer": w.name} | {key: row[key] for key in row if key not in ("network", "layer")}
        for w, row in zip(found, rows, strict=True)
    ]
    write(render(rows, args.format, people))
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
