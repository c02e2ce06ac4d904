"""``tvm-directconv tune``."""

import argparse
import shlex
import time
from collections.abc import Sequence
from contextlib import closing

from ..errors import TuningError
from ..hardware.device import Device
from ..hardware.lookup import device as find_device
from ..tuning.layer import Layer
from ..tuning.outcome import Outcome
from ..tuning.runners import TIME_LIMIT, Runner
from ..tuning.search import STRATEGIES
from ..tuning.tune import Budget, Tuner
from ._options import (
    add_device,
    add_logs,
    add_specs,
    add_threads,
    duration,
    pause,
    positive,
    whole,
    workloads_of,
)
from ._output import Row, add_format, check_writable, for_people, note, render, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    add_specs(parser, "those that take longest and occur most get the most trials")
    add_device(parser)
    add_threads(parser)
    add_logs(parser)
    where = parser.add_argument_group("where candidates run; default: on this machine")
    where.add_argument(
        "--rpc-tracker",
        metavar="HOST:PORT",
        help="on boards over TVM's RPC; default with --rpc-key: $TVM_TRACKER_HOST and "
        "$TVM_TRACKER_PORT",
    )
    where.add_argument(
        "--rpc-key",
        metavar="KEY",
        help="key of these boards; all of them measure at once; default with --rpc-tracker: "
        "$TVM_TRACKER_KEY",
    )
    where.add_argument(
        "--runner",
        metavar="COMMAND",
        help="on a board without Python, by a command that starts the C runner there, such as "
        "'ssh pi@board {runner}'",
    )
    where.add_argument(
        "--copy",
        metavar="COMMAND",
        help="what brings the runner's folder to the board, such as "
        "'rsync -a --delete {folder}/ pi@board:{folder}/'; default: nothing, it is shared",
    )
    where.add_argument(
        "--llvm-mca",
        action="store_true",
        help="nowhere: llvm-mca counts the cycles of the compiled loops",
    )
    where.add_argument(
        "--timeout",
        type=duration,
        metavar="TIME",
        help=f"for one step of a candidate, such as 90s or 5m; default: {TIME_LIMIT:g}s",
    )
    where.add_argument(
        "--cool-down",
        type=pause,
        metavar="TIME",
        help="rest before each timing, with RPC, such as 0.5s; default: 0",
    )
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
        "--time",
        type=duration,
        metavar="TIME",
        help="how long it may take in all, such as 90s, 5m or 1h30m; numbers are seconds; "
        "default: no limit",
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
        "--seed", type=whole, default=0, metavar="N", help="of the search; default: 0"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the best against the trials (.svg, .png or .pdf)"
    )
    add_format(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="write there instead of printing")


def run(args: argparse.Namespace) -> int:
    """Tune convolutions; every measurement is in the log when it is shown."""
    from ._progress import Progress

    begin = time.monotonic()
    device = find_device(args.device)
    asked = workloads_of(args)
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
            budget=Budget(
                args.trials, args.time and args.time - (time.monotonic() - begin), args.patience
            ),
            strategy=args.strategy,
            seed=args.seed,
            folder=args.logs,
            on_trial=progress.show,
        )
        outcome = Outcome(tuner.run(), tuner.log)
    layers = outcome.layers
    if args.plot:
        plot.draw(layers, args.plot)
    text = render(_rows(layers), args.format, [_short_row(layer) for layer in layers])
    if for_people(args.format):
        bullet = "- " if args.format == "markdown" else ""
        text += "\n\n" + "\n".join(bullet + line.strip() for line in outcome.lines())
    write(text, args.output)
    note(f"log: {tuner.log}")
    words = [layers[0].name]
    for name, sizes in args.input_shape:
        words += ["--input-shape", f"{name}:{','.join(map(str, sizes))}"]
    words += ["--device", args.device] if args.device != "native" else []
    words += ["--logs", args.logs] if args.logs else []
    spec = shlex.join(words)
    note(f"look up: tvm-directconv logs show {spec} --all")
    note(f"         tvm-directconv explain {spec}")
    return 1 if any(layer.problem for layer in layers) else 0


def _short_row(layer: Layer) -> Row:
    """Return what has become of a layer, for people."""
    chosen = layer.chosen
    return {
        "layer": layer.name,
        "count": layer.workload.count,
        "trials": layer.trials + layer.resumed,
        "failed": sum(known.status != "ok" for known in layer.records.values()),
        "ms before": "" if layer.before is None else f"{layer.before * 1e3:.4g}",
        "ms after": "" if layer.after is None else f"{layer.after * 1e3:.4g}",
        "of peak": f"{chosen.of_peak:.1%}" if chosen and chosen.of_peak else "",
        "over the model": f"{layer.gain:.3f}" if chosen else "",
        "C_ob x W_ob, order": chosen.blocking.brief if chosen else "",
        "from": ("the model" if layer.stayed else "tuning") if chosen else "",
        "disturbed": layer.disturbed or ("no" if layer.record else ""),
        "state": layer.state,
    }


def _runner(args: argparse.Namespace, device: Device) -> Runner:
    rpc = {"--rpc-tracker": args.rpc_tracker, "--rpc-key": args.rpc_key}
    asked = {
        "--rpc-tracker or --rpc-key": any(rpc.values()),
        "--runner": args.runner,
        "--llvm-mca": args.llvm_mca,
    }
    ways = [option for option, given in asked.items() if given]
    if len(ways) > 1:
        raise TuningError(f"{' and '.join(ways)} are given: expected one place to measure")
    if args.copy and not args.runner:
        raise TuningError(f"--copy is {args.copy!r}, but there is no --runner: expected both")
    if args.cool_down and not any(rpc.values()):
        raise TuningError("--cool-down is for boards over RPC: expected --rpc-tracker as well")
    limit = args.timeout or TIME_LIMIT
    if any(rpc.values()):
        from ..tuning.runners.rpc import RpcRunner, find_tracker

        tracker = find_tracker(args.rpc_tracker, args.rpc_key)
        cool_down = args.cool_down or 0.0
        return RpcRunner(device, args.threads, tracker, timeout=limit, cool_down=cool_down)
    if args.runner:
        from ..tuning.runners.command import CommandRunner

        return CommandRunner(device, args.runner, args.copy, limit)
    if args.llvm_mca:
        from ..tuning.runners.mca import McaRunner

        return McaRunner(device)
    from ..tuning.runners.local import LocalRunner

    return LocalRunner.checked(device, args.threads, limit)


def _rows(layers: Sequence[Layer]) -> list[dict[str, object]]:
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
                "count": layer.workload.count,
                "seconds_before": layer.before,
                "seconds_after": layer.after,
                "stayed": layer.stayed,
                "disturbed": layer.disturbed,
                "state": layer.state,
                "blocking": str(record.blocking) if record else None,
                "problem": layer.problem,
            }
        )
    return rows
