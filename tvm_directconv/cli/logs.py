"""``tvm-directconv logs``."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ..case import Case
from ..hardware.device import Device
from ..hardware.lookup import device as find_device
from ..layout import ActivationLayout
from ..logs import log_file, upkeep
from ..logs.choice import ranked
from ..logs.folders import folders, log_path
from ..logs.record import Record
from ..workload import ConvWorkload
from ._options import (
    add_device,
    add_input_layout,
    add_logs,
    add_specs,
    logs_of,
    positive,
    threads,
    workloads_of,
)
from ._output import Row, add_format, render, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    commands = parser.add_subparsers(metavar="SUBCOMMAND", required=True)

    def add(name: str, act: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        summary = (act.__doc__ or "").split(".")[0].split(";")[0]
        command = commands.add_parser(
            name,
            help=summary[0].lower() + summary[1:],
            description=f"{summary}.",
            allow_abbrev=False,
        )
        command.set_defaults(act=act)
        return command

    show = add("show", _show)
    add_specs(show, default="everything")
    show.add_argument(
        "--device", metavar="DEVICE", help="only records of this device; default: of all"
    )
    add_logs(show)
    show.add_argument("--all", action="store_true", help="failures, too")
    add_format(show)

    best = add("best", _best)
    add_specs(best, default="what is in the logs")
    add_device(best)
    best.add_argument(
        "--threads",
        type=threads,
        metavar="N",
        help="threads that compute; default: as many as in the logs, 1 if there are none",
    )
    add_input_layout(best)
    add_logs(best)
    add_format(best)

    merge = add("merge", _merge)
    merge.add_argument("input", nargs="+", metavar="IN", help="log to read")
    merge.add_argument("-o", "--output", required=True, metavar="OUT", help="log to write")
    merge.add_argument("--force", action="store_true", help="replace OUT if it exists")

    prune = add("prune", _prune)
    prune.add_argument("file", metavar="FILE", help="log")
    prune.add_argument(
        "--keep",
        type=positive,
        default=5,
        metavar="N",
        help="blockings to keep of each convolution, device, number of threads, layout and "
        "processor, besides those that tuning chose; default: 5",
    )

    validate = add("validate", _validate)
    validate.add_argument("file", nargs="+", metavar="FILE", help="log")

    export = add("export", _export)
    export.add_argument("file", metavar="FILE", help="log")
    export.add_argument(
        "--device",
        metavar="DEVICE",
        help="only records of this device; needed if its file is your own",
    )
    export.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="DIR",
        help="folder for the database, made if need be",
    )


def run(args: argparse.Namespace) -> int:
    """Run the subcommand of the subcommand."""
    status: int = args.act(args)
    return status


# --- show, best ---------------------------------------------------------------------------------


def _show(args: argparse.Namespace) -> int:
    """List what was measured, the best of each convolution first."""
    wanted = {str(workload) for workload in workloads_of(args)}
    device = find_device(args.device).name if args.device else None
    cases: dict[tuple[object, ...], list[Record]] = {}
    source: dict[int, str] = {}
    with logs_of(args):
        for path in _files():
            for record in log_file.read(path):
                if device not in (None, record.device):
                    continue
                if wanted and str(record.workload) not in wanted:
                    continue
                if record.status == "ok" or args.all:
                    case = (record.device, record.workload, record.threads, record.input_layout)
                    cases.setdefault(case, []).append(record)
                    source[id(record)] = str(path)
        found = [record for records in cases.values() for record in ranked(records)]
        _write_rows([_row(r, source[id(r)]) for r in found], [_short_row(r) for r in found], args)
    return 0


def _files() -> list[Path]:
    # The last folder's first, so that of equal records the user's own come first.
    return [path for folder in reversed(folders()) for path in sorted(folder.glob("*.jsonl"))]


def _write_rows(rows: list[Row], people: list[Row], args: argparse.Namespace) -> None:
    if rows:
        write(render(rows, args.format, people))
        return
    if args.format == "json":
        write("[]")
    where = ", ".join(map(str, folders()))
    print(f"nothing found in the tuning logs in {where}", file=sys.stderr)


def _row(r: Record, path: str) -> Row:
    return {
        "network": r.workload.network,
        "layer": r.workload.layer,
        "workload": str(r.workload),
        "device": r.device,
        "threads": r.threads,
        "input_layout": r.input_layout,
        "blocking": str(r.blocking),
        "status": r.status,
        "message": r.message,
        "seconds_p20": r.seconds_p20,
        "seconds_p50": r.seconds_p50,
        "seconds_p80": r.seconds_p80,
        "of_peak": r.of_peak,
        "over_model": r.over_model,
        "repeats": r.repeats,
        "disturbed": r.disturbed,
        "chosen": r.chosen,
        "measured_by": r.measured_by,
        "cpu": r.cpu,
        "cpu_name": r.cpu_name,
        "cpu_device": r.cpu_device,
        "date": r.date,
        "seed": r.seed,
        "versions": [f"{name} {version}" for name, version in r.versions.items()],
        "log": path,
    }


def _short_row(r: Record) -> Row:
    return {
        "layer": r.workload.name or str(r.workload),
        "device": r.device,
        "threads": r.threads,
        "input": r.input_layout,
        "C_ob x W_ob, order": r.blocking.brief,
        "status": r.status,
        "of peak": "" if r.of_peak is None else f"{r.of_peak:.1%}",
        "over model": "" if r.over_model is None else f"{r.over_model:.2f}",
        "disturbed": r.disturbed or "no",
        "chosen": r.chosen,
        "measured by": r.measured_by,
        "CPU": r.cpu,
        "date": r.date[:10],
    }


def _best(args: argparse.Namespace) -> int:
    """Say which blockings a build uses, and why."""
    device = find_device(args.device)
    layout = ActivationLayout(args.input_layout) if args.input_layout else None
    with logs_of(args):
        known: dict[ConvWorkload, set[int]] = {}
        for folder in folders():
            for record in log_file.read(log_path(device.name, folder)):
                if record.device == device.name and record.status == "ok":
                    known.setdefault(record.workload, set()).add(record.threads)
        asked = workloads_of(args) or list(known)
        by_descriptor = {str(workload): threads for workload, threads in known.items()}
        rows, people = [], []
        for workload in asked:
            threads = {args.threads} if args.threads else by_descriptor.get(str(workload), {1})
            for number in sorted(threads):
                row, short = _chosen(workload, device, number, layout)
                rows.append(row)
                people.append(short)
        _write_rows(rows, people, args)
    return 0


def _chosen(
    workload: ConvWorkload, device: Device, threads: int, layout: ActivationLayout | None
) -> tuple[Row, Row]:
    from ..resolution import resolve_blocking

    case = Case.of(workload, device, threads, layout)
    tiling, source = resolve_blocking("auto", case)
    row = {
        "network": workload.network,
        "layer": workload.layer,
        "workload": str(workload),
        "device": device.name,
        "threads": threads,
        "input_layout": str(case.input_layout),
        "blocking": str(tiling.blocking),
        "blocking_source": source,
    }
    short = {
        "layer": workload.name or str(workload),
        "device": device.name,
        "threads": threads,
        "C_ob x W_ob, order": tiling.blocking.brief,
        "source": source,
    }
    return row, short


# --- merge, prune, validate, export -------------------------------------------------------------


def _merge(args: argparse.Namespace) -> int:
    """Write one log with the lines of several; equal ones once."""
    written, found = upkeep.merge(args.input, args.output, args.force)
    print(f"{args.output}: {written} records, {found - written} given repeatedly")
    return 0


def _prune(args: argparse.Namespace) -> int:
    """Leave only the best records in a log."""
    left, before = upkeep.prune(args.file, args.keep)
    print(f"{args.file}: {left} of {before} lines left")
    return 0


def _validate(args: argparse.Namespace) -> int:
    """Check every line of logs; status 1 if one is bad."""
    found = {path: log_file.lines(path) for path in args.file}
    for path, all_lines in found.items():
        bad = [line for line in all_lines if line.record is None]
        for line in bad:
            print(f"{path}:{line.number}: {line.problem}")
        print(f"{path}: {len(all_lines) - len(bad)} good lines, {len(bad)} bad ones")
    return int(any(line.record is None for lines in found.values() for line in lines))


def _export(args: argparse.Namespace) -> int:
    """Write the best records as a database of MetaSchedule."""
    from ..tuning.database import export

    device = find_device(args.device) if args.device else None
    count = export(args.file, args.output, device)
    print(f"{args.output}: {count} records")
    return 0
