"""``tvm-directconv explain``."""

import argparse

from ..explain import explain
from ..workload import workloads
from ._options import SPECS, add_device, add_input_layout, add_threads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("spec", nargs="+", metavar="SPEC", help=SPECS)
    add_device(parser)
    add_threads(parser)
    add_input_layout(parser)


def run(args: argparse.Namespace) -> int:
    """Print why the model chooses the blockings it does."""
    for number, workload in enumerate(workloads(args.spec)):
        if number:
            print("\n" + "-" * 80 + "\n")
        print(explain(workload, args.device, args.threads, args.input_layout))
    return 0
