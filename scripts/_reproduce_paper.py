"""What scripts/reproduce_paper runs: a report on the paper's layers, and its main figures."""

import argparse
import os
import sys
from pathlib import Path
from statistics import geometric_mean

from tvm_directconv import DirectConvError, workloads
from tvm_directconv.bench.report import environment
from tvm_directconv.bench.report.figures import Results, mean
from tvm_directconv.bench.report.measuring import ENVIRONMENT, ROWS
from tvm_directconv.bench.report.rows import IM2COL, OURS, layer_subject, read
from tvm_directconv.cli import main as command
from tvm_directconv.cli._options import positive, threads
from tvm_directconv.cli._output import Row, render

_NOT = "not measured"
LAYERS = ("alexnet", "vgg16", "googlenet:conv*", "googlenet:*_3x3")

# Geometric means and minima are read off the bars of its figures.
PAPER: tuple[Row, ...] = (
    {
        "": "paper: Intel i7-4770K, MKL",
        "cores": 4,
        "of peak": "87.5%",
        "over im2col + SGEMM": "1.76 (0.98 to 3.54)",
        "speed per core": "0.92 (at least 0.74)",
        "im2col + SGEMM's": "0.57",
    },
    {
        "": "paper: AMD FX-8350, OpenBLAS",
        "cores": 4,
        "of peak": "58.2%",
        "over im2col + SGEMM": "1.86 (1.05 to 4.00)",
        "speed per core": "0.93 (at least 0.70)",
        "im2col + SGEMM's": "0.56",
    },
    {
        "": "paper: ARM Cortex-A57, OpenBLAS",
        "cores": 2,
        "of peak": "88.9%",
        "over im2col + SGEMM": "1.37 (1.04 to 2.20)",
        "speed per core": "0.96",
        "im2col + SGEMM's": "0.79",
    },
)


def usable_cores() -> int:
    """Return on how many cores this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def here(results: Results, name: str, cores: int) -> Row:
    """Return this machine's row of the table."""
    ours = results.measured(OURS, cores)
    speedups = [f.over_im2col for f in ours if f.over_im2col]
    own, theirs = (results.per_core(who, cores).values() for who in (OURS, IM2COL))
    several = cores > 1
    of_peak = mean(ours, lambda f: f.of_peak)
    return {
        "": f"here: {name}, OpenBLAS",
        "cores": cores,
        "of peak": f"{of_peak:.1%}" if of_peak else _NOT,
        "over im2col + SGEMM": _with_ends(speedups) if speedups else _NOT,
        "speed per core": f"{geometric_mean(own):.2f} (at least {min(own):.2f})"
        if own and several
        else _NOT,
        "im2col + SGEMM's": f"{geometric_mean(theirs):.2f}" if theirs and several else _NOT,
    }


def _with_ends(values: list[float]) -> str:
    return f"{geometric_mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> int:
    cores = usable_cores()
    parser = argparse.ArgumentParser(
        prog="scripts/reproduce_paper",
        description="Measure the paper's 26 layers against im2col + OpenBLAS and other libraries, "
        "and print the paper's main figures beside those of this machine: geometric means over the "
        "layers. A second call goes on where the first one was stopped.",
    )
    parser.add_argument(
        "-o", "--output", default="paper", metavar="FOLDER", help="of the report; default: paper"
    )
    parser.add_argument(
        "--threads",
        type=threads,
        default=cores,
        metavar="N",
        help=f"measured beside one thread; default: all cores, here {cores}",
    )
    parser.add_argument(
        "--contestant",
        action="append",
        metavar="NAME",
        help="who takes part beside ours; as for tvm-directconv report",
    )
    parser.add_argument(
        "--repeat", type=positive, default=10, metavar="R", help="measurements; default: 10"
    )
    parser.add_argument(
        "--render-only", action="store_true", help="measure nothing, report what is in the folder"
    )
    args = parser.parse_args()
    words = ["report", "-o", args.output]
    if args.render_only:
        words.append("--render-only")
    else:
        words += [*LAYERS, "--threads", f"1,{args.threads}", "--repeat", str(args.repeat)]
        for name in args.contestant or ():
            words += ["--contestant", name]
    status = command(words)
    if status == 2:
        return status
    folder = Path(args.output)
    paper = set(map(layer_subject, workloads(LAYERS)))
    results = Results(row for row in read(folder / ROWS) if row.about in paper)
    if not results.threads:
        raise DirectConvError(
            f"{args.output!r} has none of the paper's layers: expected a folder that this script "
            "has measured into"
        )
    where = environment.read(folder / ENVIRONMENT)
    assert where  # The report was written.
    most = max(results.threads) if args.render_only else args.threads
    print(render([*PAPER, here(results, where["cpu_name"], most)], "table"))
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DirectConvError as error:
        sys.exit(f"scripts/reproduce_paper: error: {error}")
