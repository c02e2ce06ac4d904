"""What scripts/compare_networks runs: networks in turns with other libraries."""

import argparse
import importlib.metadata
import sys
from dataclasses import replace
from statistics import geometric_mean
from typing import Any

import numpy as np

from tvm_directconv import DirectConvError
from tvm_directconv.bench.models import MODELS
from tvm_directconv.bench.report.page import agreement_of, error_of
from tvm_directconv.bench.rivals.base import NETWORK_DTYPES, Contestant
from tvm_directconv.bench.rivals.contestants import NETWORK_CONTESTANTS
from tvm_directconv.bench.rivals.ours import Ours
from tvm_directconv.bench.rivals.rounds import (
    NETWORK_TOLERANCE,
    UNRELATED,
    Result,
    network_results,
)
from tvm_directconv.cli._options import add_blocking, add_threads, network_dtype, positive
from tvm_directconv.cli._output import Row, add_format, for_people, render

BARS = ", ".join(f"{bar:g} ({dtype})" for dtype, bar in NETWORK_TOLERANCE.items())
NETWORKS = ["alexnet", "vgg16", "googlenet", "resnet50", "mobilenetv1", "mobilenetv2"]


def compared(
    network: str, contestants: list[Contestant], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return a row for each contestant, ours first."""
    results = network_results(
        network, contestants, [args.threads], args.repeat, args.dtype, say=say
    )
    return [row(network, args.dtype, result, results[0].seconds) for result in results]


def row(network: str, dtype: str, result: Result, ours: list[float]) -> dict[str, Any]:
    """Return what JSON has of a contestant; `ours` are the times that it is compared with."""
    contestant, found = result.contestant, result.row(network, dtype)
    here = result.status in ("ok", "wrong")
    seconds = result.seconds or None
    return {
        "network": network,
        "dtype": dtype,
        "contestant": contestant.name,
        "version": importlib.metadata.version(next(iter(contestant.packages))) if here else None,
        "threads": result.threads,
        **_percentiles("seconds", seconds),
        **_percentiles("over_ours", np.divide(seconds, ours) if seconds and ours else None),
        **{key: found[key] for key in ("precision", "max_error", "rms_error", "agreement")},
        "wrong": result.status == "wrong" if here else None,
        "peak_bytes": result.peak_bytes if here else None,
        "resident_bytes": result.resident_bytes if here else None,
        "not_here": None if here else result.reason,
    }


def _percentiles(key: str, values: Any) -> dict[str, float | None]:
    return {
        f"{key}_p{p}": None if values is None else float(np.percentile(values, p))
        for p in (20, 50, 80)
    }


def for_eyes(row: dict[str, Any]) -> Row:
    """Return a row of JSON as one of a table."""
    over = row["over_ours_p50"]
    return {
        "network": row["network"],
        "type": row["dtype"],
        "contestant": f"{row['contestant']} {row['version']}",
        "computed in": row["precision"] or "",
        "ms": f"{row['seconds_p50'] * 1e3:.2f}" if row["seconds_p50"] else "",
        "over ours": f"{over:.3f}" if over else "",
        "p20 to p80": f"{row['over_ours_p20']:.3f} to {row['over_ours_p80']:.3f}" if over else "",
        "error": (error_of(row["rms_error"]) or "inf") + " WRONG" * row["wrong"],
        "agreement": agreement_of(row["agreement"]),
        "peak MB": f"{row['peak_bytes'] / 1e6:.1f}",
        "resident MB": f"{row['resident_bytes'] / 1e6:.1f}",
    }


def summaries(rows: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Say how much longer each contestant takes, ours first, and who is not here."""
    lines = []
    for name in names:
        own = [row for row in rows if row["contestant"] == name]
        over = {
            r["network"]: r["over_ours_p50"] for r in own if r["over_ours_p50"] and not r["wrong"]
        }
        if over and name != names[0]:
            least, most = min(over, key=over.__getitem__), max(over, key=over.__getitem__)
            lines.append(
                f"{name} takes {geometric_mean(over.values()):.3f} times as long as "
                f"ours (geometric mean of {len(over)}), from {over[least]:.3f} ({least}) to "
                f"{over[most]:.3f} ({most})"
            )
        reasons: dict[str, list[str]] = {}
        for row in own:
            if row["not_here"]:
                reasons.setdefault(row["not_here"], []).append(row["network"])
        lines += [
            f"{name} is not here ({', '.join(networks)}): {reason}"
            for reason, networks in reasons.items()
        ]
    return lines


def say(text: str) -> None:
    """Tell people how far it is, on stderr."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/compare_networks",
        description="Time whole networks with random weights, of one image, in turns with other "
        "libraries: in a number type, and, as 'defaults', as users run a library, which is given "
        "the network in float32 and chooses by itself. 'over ours' is the median, over the "
        "repeats, of a library's time over ours: above 1, ours is faster. 'error' is against "
        "float32, the root mean square over that of the outputs, and 'agreement' for how many "
        f"images the largest output is the same. WRONG is an error above {BARS}, or above "
        f"{UNRELATED:g} in what outputs differ from image to image. Memory is what a process "
        "takes for loading a network and running it three times, after the library's code is "
        "loaded: at its peak, and in the end.",
    )
    parser.add_argument(
        "network",
        nargs="*",
        metavar="NETWORK",
        help=f"of {', '.join(MODELS)}; default: {' '.join(NETWORKS)}",
    )
    parser.add_argument(
        "--dtype",
        type=network_dtype,
        default=NETWORK_DTYPES[0],
        metavar="TYPE",
        help=f"number type of ours and of all without 'defaults': {', '.join(NETWORK_DTYPES)}; "
        f"default: {NETWORK_DTYPES[0]}",
    )
    add_threads(parser)
    add_blocking(parser)
    parser.add_argument(
        "--repeat", type=positive, default=15, metavar="R", help="measurements; default: 15"
    )
    add_format(parser)
    args = parser.parse_args()
    networks = args.network or NETWORKS
    if unknown := [name for name in networks if name not in MODELS]:
        parser.error(f"there is no network {unknown[0]!r}: expected some of {', '.join(MODELS)}")
    contestants = [
        replace(each, blocking=args.blocking) if isinstance(each, Ours) else each
        for each in NETWORK_CONTESTANTS
    ]
    rows = [row for network in networks for row in compared(network, contestants, args)]
    names = [contestant.name for contestant in contestants]
    here = [row for row in rows if not row["not_here"]]
    text = render(rows, args.format, [for_eyes(row) for row in here])
    if for_people(args.format):
        bullet = "- " if args.format == "markdown" else ""
        text += "\n\n" + "\n".join(bullet + line for line in summaries(rows, names))
    print(text)
    ours = [row for row in rows if row["contestant"] == names[0]]
    return 1 if any(row["wrong"] or row["not_here"] for row in ours) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DirectConvError as error:
        sys.exit(f"scripts/compare_networks: error: {error}")
