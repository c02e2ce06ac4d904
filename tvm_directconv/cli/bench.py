"""``tvm-directconv bench``."""

import argparse
import sys
from collections.abc import Callable
from statistics import geometric_mean, median
from typing import Any

from .. import versions
from ..bench.disturbance import left_out
from ..convolution import build
from ..errors import DeviceError, LibraryError
from ..hardware.device import Device
from ..hardware.lookup import device as find_device
from ..hardware.target import host_lacks
from ..precision import Precision
from ..workload import ConvWorkload
from ._options import (
    TOLERANCE,
    add_blocking,
    add_device,
    add_epilogue,
    add_logs,
    add_specs,
    add_threads,
    logs_of,
    positive,
    workloads_of,
)
from ._output import (
    Lines,
    Row,
    add_format,
    check_writable,
    for_people,
    render,
    status_line,
    write,
)

_PAPER = ["alexnet", "vgg16", "googlenet"]
_WIDEST_BLOCKING = len("64 x 14, ic_outside")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    add_specs(parser, default=" ".join(_PAPER))
    add_device(parser)
    add_threads(parser)
    add_blocking(parser)
    add_logs(parser)
    add_epilogue(parser)
    parser.add_argument(
        "--against",
        metavar="SOURCE",
        help="compare with other block sizes, of the same sources as --blocking, measured in turns",
    )
    parser.add_argument(
        "--repeat", type=positive, default=10, metavar="R", help="measurements; default: 10"
    )
    add_format(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="write there instead of printing")


def run(args: argparse.Namespace) -> int:
    """Compile, check and time convolutions; stop at the first that is wrong."""
    versions.check()
    device = find_device(args.device)
    if reason := host_lacks(device.target_options(args.threads)):
        raise DeviceError(
            f"cannot measure code for {device.name} here: {reason}. Measure on the device, or try "
            "the code with 'tvm-directconv compile' and 'tvm-directconv run --emulate'"
        )
    asked = workloads_of(args, _PAPER)
    logs = logs_of(args)
    if args.output:
        check_writable(args.output)
    # Who reads it from a pipe need not wait for the last row.
    streams = args.format == "table" and args.output is None and not sys.stdout.isatty()
    table = Lines(_widths(asked))

    def done(number: int, cells: Row) -> None:
        if streams:
            print("\n".join([*([] if number > 1 else [table.head(cells)]), table.line(cells)]))
            sys.stdout.flush()

    try:
        with logs:
            rows, people = _measured(asked, device, args, done)
    finally:
        status_line("")
    text = "" if streams else render(rows, args.format, people)
    if for_people(args.format):
        bullet = "- " if args.format == "markdown" else ""
        text += "\n" * (1 if streams else 2) + "\n".join(bullet + x for x in _summaries(rows))
    write(text, args.output)
    return 0


def _widths(asked: list[ConvWorkload]) -> dict[str, int]:
    """Return how wide columns are, where that is not as wide as their heading."""
    return {
        "layer": -max(len(workload.name or str(workload)) for workload in asked),
        "C_ob x W_ob, order": -_WIDEST_BLOCKING,
        "disturbed": -1,
    }


def _measured(
    asked: list[ConvWorkload],
    device: Device,
    args: argparse.Namespace,
    done: Callable[[int, Row], None],
) -> tuple[list[dict[str, Any]], list[Row]]:
    from ..bench.measure import measure
    from ..bench.peak import Burst

    bursts: dict[Precision, Burst] = {}
    rows: list[dict[str, Any]] = []
    people: list[Row] = []
    for number, workload in enumerate(asked, start=1):
        name = workload.name or str(workload)
        status_line(f"{number}/{len(asked)} {name}")
        conv, rival = (
            build(
                workload,
                device,
                threads=args.threads,
                blocking=source,
                epilogue=args.epilogue,
            )
            if source
            else None
            for source in (args.blocking, args.against)
        )
        assert conv
        precision = workload.precision
        if precision not in bursts:
            bursts[precision] = Burst(device, args.threads, precision)
        row = measure(conv, device, args.repeat, bursts[precision], rival)
        if not row["max_error"] <= TOLERANCE:
            raise LibraryError(
                f"{name} is computed wrongly with blocking {conv.blocking}"
                f"{f' or {rival.blocking}' if rival else ''}: max_error is "
                f"{row['max_error']:g}, expected up to {TOLERANCE}"
            )
        rows.append(row)
        people.append(
            {
                "layer": name,
                "GFLOP/s": f"{row['gflops']:.1f}",
                "of peak": f"{row['of_peak']:.1%}",
                "of limit": f"{row['of_limit']:.1%}",
                **({f"over {args.against}": f"{row['over_rival']:.3f}"} if rival else {}),
                "extra bytes": row["extra_bytes"],
                "max error": f"{row['max_error']:.1e}",
                "compile s": f"{row['compile_seconds']:.2f}",
                "C_ob x W_ob, order": conv.blocking.brief,
                "disturbed": row["disturbed"] or "no",
            }
        )
        status_line("")
        done(number, people[-1])
    return rows, people


def _summaries(rows: list[dict[str, Any]]) -> list[str]:
    networks: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        networks.setdefault(row["network"] or "no network", []).append(row)
    lines = [_summary(network, members) for network, members in networks.items()]
    disturbed = sum(bool(row["disturbed"]) for row in rows)
    return [*lines, left_out(disturbed, len(rows))] if disturbed else lines


def _summary(network: str, rows: list[dict[str, Any]]) -> str:
    """Return what layers are together, without those that were disturbed."""
    sound = [row for row in rows if not row["disturbed"]]
    compile_seconds = median(row["compile_seconds"] for row in rows)
    layers = f"{len(rows)} different layer{'s' if len(rows) > 1 else ''}"
    if len(sound) < len(rows):
        layers += f", {len(rows) - len(sound)} of them disturbed"
    facts = ["no mean"]
    if sound:
        worst = min(sound, key=lambda row: row["of_limit"])
        of_peak, of_limit = (
            geometric_mean(row[key] for row in sound) for key in ("of_peak", "of_limit")
        )
        facts = [
            f"geometric mean {of_peak:.1%} of peak",
            f"{of_limit:.1%} of limit",
            f"minimum {worst['of_limit']:.1%} of limit ({worst['layer'] or worst['workload']})",
        ]
        if sound[0]["rival"]:
            over = geometric_mean(row["over_rival"] for row in sound)
            least = min(row["over_rival"] for row in sound)
            facts.append(f"{over:.3f} times as fast as its rival, at least {least:.3f}")
    facts += [f"{compile_seconds:.2f} s to compile (median)", layers]
    return f"{network}: {', '.join(facts)}"
