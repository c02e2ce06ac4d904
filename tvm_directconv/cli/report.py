"""``tvm-directconv report``."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from ..bench.rivals.base import NETWORK_DTYPES
from ..errors import ReportError
from ._options import add_specs, network_dtype, positive, threads, workloads_of
from ._output import note, status_line

_PAPER = ["alexnet", "vgg16", "googlenet"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    add_specs(parser, default=f"{' '.join(_PAPER)}, or no layers with --networks")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FOLDER",
        help="for the rows, one line of JSON each as they come, and the report; what it has "
        "already is not measured again",
    )
    parser.add_argument(
        "--networks",
        type=_names,
        default=[],
        metavar="NAME[,NAME...]",
        help="whole networks to measure as well",
    )
    parser.add_argument(
        "--dtype",
        type=_dtypes,
        metavar="TYPE[,TYPE...]",
        help=f"number types to compare networks in: {', '.join(NETWORK_DTYPES)}; default: "
        f"{NETWORK_DTYPES[0]}",
    )
    parser.add_argument(
        "--threads",
        type=_numbers,
        default=[1],
        metavar="N[,N...]",
        help="threads that compute; with several numbers everything is measured with each, in "
        "turns; default: 1",
    )
    parser.add_argument(
        "--contestant",
        action="append",
        metavar="NAME",
        help="who takes part beside ours, such as oneDNN or 'ncnn*'; repeatedly for several; "
        "default: all but 'TVM, tuned', which takes minutes for a layer",
    )
    parser.add_argument(
        "--repeat", type=positive, default=10, metavar="R", help="measurements; default: 10"
    )
    parser.add_argument(
        "--trials",
        type=positive,
        default=64,
        metavar="N",
        help="budget of 'TVM, tuned' for each layer; default: 64",
    )
    parser.add_argument(
        "--render-only",
        action="store_true",
        help="measure nothing, write the report of what the folder has",
    )


def run(args: argparse.Namespace) -> int:
    """Measure what is missing, write the report; status 1 if ours failed or was wrong somewhere."""
    from ..bench.report import page, plots
    from ..bench.report.rows import OURS

    plots.check()
    folder = Path(args.output)
    if args.render_only:
        if args.spec or args.networks or args.dtype or args.contestant or args.input_shape:
            raise ReportError(
                "--render-only measures nothing: expected no SPEC, --input-shape, --networks, "
                "--dtype or --contestant beside it, everything in the folder is reported"
            )
    elif args.dtype and not args.networks:
        raise ReportError(
            f"--dtype {','.join(args.dtype)} is given without --networks: expected networks, the "
            "descriptor of a layer begins with its number type, such as uint8_ic256ih56oc256kh1"
        )
    else:
        _measure(folder, args)
    results = page.write(folder)
    if args.render_only:
        rows = [f.row for f in results.figures if f.row.status == "not_here"]
        _say_missing({row.contestant: row.reason or "" for row in rows})
    print(f"{folder / 'report.md'}, {folder / 'report.html'}: {len(results.figures)} rows")
    return 1 if any(f.row.status in ("failed", "wrong") for f in results.by(OURS)) else 0


def _measure(folder: Path, args: argparse.Namespace) -> None:
    from .. import versions
    from ..bench.report import measuring

    versions.check()
    measurer = measuring.rivals(args.trials)
    asked = measuring.Asked(
        workloads=workloads_of(args, [] if args.networks else _PAPER),
        networks=args.networks,
        dtypes=args.dtype or NETWORK_DTYPES[:1],
        threads=args.threads,
        repeats=args.repeat,
        contestants=measuring.chosen(measurer, args.contestant or ()),
    )
    for subject, names in asked.contestants.items():
        if asked.workloads if subject == "layer" else asked.networks:
            known = measurer.contestants(subject)
            _say_missing({name: reason for name in names if (reason := known[name])})
    try:
        measuring.measure(folder, asked, measurer, _done, status_line)
    finally:
        status_line("")


def _say_missing(reasons: Mapping[str, str]) -> None:
    """Say which contestants are not here, and how to get them."""
    for name, reason in reasons.items():
        note(f"without {name}: {reason}")


def _done(number: int, total: int, text: str) -> None:
    """Say how far it is; a terminal keeps the line while the next one says what is being done."""
    status_line("")
    note(f"{number}/{total} {text}")


def _names(text: str) -> list[str]:
    from ..bench.models import MODELS

    names = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in MODELS]:
        raise argparse.ArgumentTypeError(
            f"there is no network {unknown[0]!r}: expected some of {', '.join(MODELS)}; layers of "
            "a model are measured where it is given as SPEC"
        )
    return names


def _dtypes(text: str) -> list[str]:
    return list(dict.fromkeys(map(network_dtype, text.split(","))))


def _numbers(text: str) -> list[int]:
    return sorted({threads(part) for part in text.split(",")})
