"""``tvm-directconv tune``."""

import argparse
import sys
from contextlib import closing

from ..device import Device, host_lacks
from ..device import device as find_device
from ..errors import DeviceError
from ..tuning.runners import Runner
from ..tuning.search import STRATEGIES
from ..tuning.tune import Budget, Layer, Tuner
from ..workload import workloads
from ._options import SPECS, add_device, add_logs, add_threads, positive
from ._output import add_format, check_writable, render, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("spec", nargs="+", metavar="SPEC", help=SPECS)
    add_device(parser)
    add_threads(parser)
    add_logs(parser)
    budget = Budget()
    parser.add_argument(
        "--trials",
        type=positive,
        default=budget.trials,
        metavar="N",
        help="block sizes to try for a layer, on average: layers that can gain more get more; "
        f"what is in the log already counts; default: {budget.trials}",
    )
    parser.add_argument(
        "--time", type=positive, metavar="SECONDS", help="stop after this; default: no limit"
    )
    parser.add_argument(
        "--patience",
        type=positive,
        default=budget.patience,
        metavar="N",
        help=f"stop with a layer after N trials in vain; default: {budget.patience}",
    )
    parser.add_argument(
        "--strategy", choices=STRATEGIES, default=STRATEGIES[0], help=f"default: {STRATEGIES[0]}"
    )
    parser.add_argument(
        "--seed", type=_whole, default=0, metavar="N", help="of the search; default: 0"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the best against the trials (.svg, .png or .pdf)"
    )
    add_format(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="write there instead of printing")


def run(args: argparse.Namespace) -> int:
    """Tune convolutions; every measurement is in the log when it is shown."""
    from ._progress import Progress, row

    device = find_device(args.device)
    asked = workloads(args.spec)
    if args.output:
        check_writable(args.output)
    if args.plot:
        from ..tuning import plot

        plot.check(args.plot)
    with closing(_runner(args, device)) as runner, Progress() as progress:
        tuner = Tuner(
            asked,
            device,
            runner,
            threads=args.threads,
            budget=Budget(args.trials, args.time, args.patience),
            strategy=args.strategy,
            seed=args.seed,
            folder=args.logs,
            on_trial=progress.show,
        )
        layers = tuner.run()
    if args.plot:
        plot.draw(layers, args.plot)
    write(render(_rows(layers), args.format, [row(layer) for layer in layers]), args.output)
    print(f"log: {tuner.log}", file=sys.stderr)
    return 1 if any(layer.problem for layer in layers) else 0


def _runner(args: argparse.Namespace, device: Device) -> Runner:
    from ..tuning.runners.local import LocalRunner

    if reason := host_lacks(device.target_options(args.threads)):
        raise DeviceError(
            f"cannot measure code for {device.name} here: {reason}. Tune on the device, or over "
            "--rpc-tracker or --runner, or with --llvm-mca"
        )
    return LocalRunner(device, args.threads)


def _rows(layers: list[Layer]) -> list[dict[str, object]]:
    rows = []
    for layer in layers:
        record = layer.chosen
        rows.append(
            {
                "network": layer.workload.network,
                "layer": layer.workload.layer,
                "workload": str(layer.workload),
                "trials": layer.trials,
                "resumed": layer.resumed,
                "failures": layer.failures,
                "seconds_p50": record.seconds_p50 if record else None,
                "of_peak": record.of_peak if record else None,
                "over_model": record.over_model if record else None,
                "blocking": str(record.blocking) if record else None,
                "problem": layer.problem,
            }
        )
    return rows


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)
