"""What scripts/compare_pools runs: parallel loops on our threads and on TVM's, in turns.

Each measurement is a process of its own, the C runner: threads of one pool never wait beside those
of another, and arrays lie elsewhere in memory each time. All pools run the same library.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np

from tvm_directconv import ConvWorkload, DirectConvError, build
from tvm_directconv.cli._options import add_specs, positive, threads, workloads_of
from tvm_directconv.cli._output import Row, add_format, for_people, render
from tvm_directconv.deploy import runner
from tvm_directconv.hardware.host import native
from tvm_directconv.toolchain import find_toolchain, run_cc

LAYERS = [
    "alexnet:conv4",
    "googlenet:conv2_red",
    "googlenet:4a_5x5r",
    "googlenet:4e_3x3",
    "googlenet:5a_5x5r",
    "vgg16:conv1_2",
    "vgg16:conv5_1",
    "resnet50:l4b1_1x1a",
    "mobilenetv1:dw7",
    "mobilenetv1:pw7",
]
SHARES = (0, 10)  # microseconds that an artificial loop keeps each thread busy
GAPS = (0, 20, 500, 3000)  # microseconds between loops: from none to longer than our workers wait
FLOPS_PER_SECOND = 5e10  # about, to decide how many calls make a measurement

ALONE = "alone"
POOLS = ("ours", "pinned", "tvm")  # The first is what the others are compared with.


@dataclass(frozen=True)
class Case:
    """What all pools run.

    Attributes
    ----------
    name : str
        In tables.
    call : list of str
        A parallel library, its function and the arguments, as the runner takes them.
    seconds : float
        About how long the call takes.
    busy : float
        How long it takes at least, whatever the pool; this is subtracted.
    alone : list of str, optional
        The call of the same function, compiled for one thread.
    """

    name: str
    call: list[str]
    seconds: float
    busy: float = 0.0
    alone: list[str] | None = None


def loop(share: int, gap: int, folder: Path) -> Case:
    """Return an artificial loop, so many microseconds after the one before."""
    library = folder / f"loop-{share}-{gap}.so"
    source, headers = Path(__file__).with_name("_compare_pools.c"), Path(runner.__file__).parent
    settings = [f"-DSHARE={share}", f"-DGAP={gap}", f"-I{headers}"]
    flags = ["-std=c99", "-O2", "-shared", "-fPIC"]
    run_cc([str(source), *flags, *settings], library, find_toolchain(native().triple))
    name = (f"loop of {share} us" if share else "empty loop") + (f", {gap} us apart" if gap else "")
    busy = 1e-6 * (share + gap)
    return Case(name, [str(library), "loop"], busy + 1e-6, busy)


def layer(workload: ConvWorkload, threads: int, folder: Path) -> Case:
    """Return a convolution."""
    calls = []
    for number in (threads, 1):
        conv = build(workload, threads=number)
        library = conv.export(folder / f"{workload}-{number}.so")
        m = conv.manifest
        shapes = [
            ("random", m.input_shape),
            ("random", m.weight_shape),
            ("scratch", m.output_shape),
        ]
        tensors = [f"{role}:{','.join(map(str, shape))}" for role, shape in shapes]
        calls.append([str(library), m.symbol, *tensors])
    seconds = workload.flops / FLOPS_PER_SECOND
    return Case(workload.name or str(workload), calls[0], seconds, alone=calls[1])


def measure(case: Case, contestant: str, threads: int, seconds: float) -> float:
    """Return the seconds of one call on a pool, or of the code for one thread."""
    import tvm.libinfo
    import tvm_ffi.libinfo

    options = {
        ALONE: [],
        "ours": ["--threads", str(threads)],
        "pinned": ["--threads", str(threads), "--pin"],
        "tvm": ["--pool", tvm.libinfo.find_libtvm_runtime()],
    }
    # TVM's runtime needs the other library, and does not find it by itself.
    ffi = Path(tvm_ffi.libinfo.find_libtvm_ffi()).parent
    environment = {"LD_LIBRARY_PATH": str(ffi), "TVM_NUM_THREADS": str(threads)}
    call = case.alone if contestant == ALONE else case.call
    assert call
    number = max(1, round(seconds / case.seconds))
    counts = ["--warmup", str(-(-number // 4)), "--number", str(number)]
    done = subprocess.run(
        [
            runner.build_runner(find_toolchain(native().triple)),
            *call,
            *options[contestant],
            *counts,
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    report = runner.read_report(done.returncode, done.stdout, done.stderr)
    return report["seconds"][0] - case.busy


def compared(case: Case, threads: int, repeats: int, seconds: float) -> dict[str, Any]:
    """Return a row, of medians."""
    names = [*([ALONE] if case.alone else []), *POOLS]
    found: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(measure(case, name, threads, seconds))
    row: dict[str, Any] = {"work": case.name, "threads": threads}
    for name in (ALONE, *POOLS):
        row[f"{name}_seconds"] = float(np.median(found[name])) if name in found else None
    for name in POOLS:
        parts = np.divide(found[ALONE], found[name]) / threads if case.alone else None
        row[f"{name}_efficiency"] = None if parts is None else float(np.median(parts))
    for name in POOLS[1:]:
        over = np.divide(found[name], found[POOLS[0]])
        for p in (20, 50, 80):
            row[f"{name}_over_ours_p{p}"] = float(np.percentile(over, p))
    return row


def for_eyes(row: dict[str, Any]) -> Row:
    """Return a row of JSON as one of a table."""

    def shown(form: str, key: str, factor: float = 1.0) -> str:
        return "" if row[key] is None else format(row[key] * factor, form)

    return {
        "work": row["work"],
        "one thread us": shown(".1f", "alone_seconds", 1e6),
        "ours us": shown(".2f", "ours_seconds", 1e6),
        "pinned us": shown(".2f", "pinned_seconds", 1e6),
        "TVM us": shown(".2f", "tvm_seconds", 1e6),
        "efficiency": shown(".1%", "ours_efficiency"),
        "pinned": shown(".1%", "pinned_efficiency"),
        "TVM": shown(".1%", "tvm_efficiency"),
        "TVM over ours": shown(".2f", "tvm_over_ours_p50"),
        "p20 to p80": f"{row['tvm_over_ours_p20']:.2f} to {row['tvm_over_ours_p80']:.2f}",
    }


def main() -> int:
    processors = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        prog="scripts/compare_pools",
        description="Run parallel loops on the threads of the C runtime, placed anywhere and "
        "pinned, and on TVM's. Of artificial loops, what is printed is the time beyond their "
        "work. The efficiency of a convolution is the time of code for one thread over the time of "
        "all threads together. 'over ours' is the median, over the repeats, of a time over that of "
        "our threads placed anywhere: above 1, these are faster.",
    )
    add_specs(parser, default=" ".join(LAYERS))
    parser.add_argument(
        "--threads",
        type=threads,
        default=processors,
        metavar="N",
        help=f"threads that compute; default: as many as processors ({processors})",
    )
    parser.add_argument(
        "--repeat", type=positive, default=15, metavar="R", help="measurements; default: 15"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.3,
        metavar="S",
        help="of one measurement; in much less than 0.3, the default, it is how soon Linux gives "
        "the threads of a new process a core each",
    )
    add_format(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = [loop(share, gap, Path(folder)) for share in SHARES for gap in GAPS]
        for workload in workloads_of(args, LAYERS):
            cases.append(layer(workload, args.threads, Path(folder)))
        rows = []
        for case in cases:
            print(case.name, file=sys.stderr, flush=True)
            rows.append(compared(case, args.threads, args.repeat, args.seconds))
    print(render(rows, args.format, [for_eyes(row) for row in rows]))
    if for_people(args.format):
        over = [row["tvm_over_ours_p50"] for row in rows if row["alone_seconds"]]
        print(f"\nLayers take {geometric_mean(over):.3f} times as long with TVM's threads")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DirectConvError as error:
        sys.exit(f"scripts/compare_pools: error: {error}")
