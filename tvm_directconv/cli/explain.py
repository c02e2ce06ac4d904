"""``tvm-directconv explain``."""

import argparse

from ..explain import explain
from ._options import (
    add_device,
    add_input_layout,
    add_logs,
    add_specs,
    add_threads,
    logs_of,
    workloads_of,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    add_specs(parser)
    add_device(parser)
    add_threads(parser)
    add_input_layout(parser)
    add_logs(parser)


def run(args: argparse.Namespace) -> int:
    """Print why the model chooses the blockings it does."""
    with logs_of(args):
        for number, workload in enumerate(workloads_of(args, args.device)):
            if number:
                print("\n" + "-" * 80 + "\n")
            print(explain(workload, args.device, args.threads, args.input_layout))
    return 0
