"""Cross-compiles the paper's layers, emulates them and compares with the reference.

Run by ``scripts/demo_board``. Every layer is compiled at its full size. Emulation is hundreds of
times slower than a processor: layers above a limit are compiled only, unless all are asked for.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tvm_directconv import (
    CompiledConv,
    ConvWorkload,
    Device,
    DirectConvError,
    build,
    conv2d_reference,
    device,
    max_error,
    random_tensors,
    workloads,
)
from tvm_directconv.assembly import innermost_loops, mca_cycles, whole_function
from tvm_directconv.cli._options import TOLERANCE
from tvm_directconv.cli._output import Row, render
from tvm_directconv.deploy.runner import build_runner, run_library
from tvm_directconv.toolchain import elf_info, find_toolchain

NETWORKS = ["alexnet", "vgg16", "googlenet"]
FOLDER = Path(__file__).resolve().parents[1] / "build"
LIMIT = 0.3  # GFLOP: emulators compute some 0.05 of them in a second
WORKSPACE = "__TVMBackendAllocWorkspace"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/demo_board",
        description="Cross-compile the convolutions of AlexNet, VGG-16 and GoogLeNet, run them in "
        "an emulator, and compare them with the reference.",
    )
    parser.add_argument(
        "device", nargs="?", default="cortex-a72", help="name or device file; default: cortex-a72"
    )
    parser.add_argument(
        "--all", action="store_true", help=f"emulate layers of more than {LIMIT} GFLOP, too"
    )
    args = parser.parse_args()
    target = device(args.device)
    layers = [w for w in workloads(NETWORKS) if w.groups == 1]
    folder = FOLDER / target.name
    folder.mkdir(parents=True, exist_ok=True)
    toolchain = find_toolchain(target.triple, target.qemu_cpu)
    shutil.copy(build_runner(toolchain), folder / "runner")
    how = " ".join(toolchain.emulator) or "this machine itself"
    say(f"{len(layers)} layers for {target.name} ({target.description}), run by {how}")

    rows: list[dict[str, object]] = []
    with ThreadPoolExecutor(os.cpu_count()) as emulators:
        runs: list[tuple[dict[str, object], Future[tuple[float, int]]]] = []
        for number, layer in enumerate(layers, start=1):
            conv = build(layer, target)
            library = conv.export(folder / f"{layer.name.replace(':', '_')}.so")
            rows.append(compiled(conv, library, target))
            asked = args.all or layer.flops <= LIMIT * 1e9
            say(f"{number}/{len(layers)} {layer.name}: compiled" + ("" if asked else " only"))
            if asked:
                runs.append((rows[-1], emulators.submit(emulated, conv, library, target)))
        for number, (row, run) in enumerate(runs, start=1):
            row["max error"], row["extra bytes"] = run.result()
            say(f"{number}/{len(runs)} {row['layer']}: emulated")

    print(render(rows, "table"))
    print()
    print(summary(rows, target))
    print(f"Libraries, manifests and the C runner are in {folder}")
    good = all(float(str(row["max error"])) <= TOLERANCE for row, _ in runs)
    frugal = not any(row["extra bytes"] or row["workspace"] for row in rows)
    return 0 if good and frugal else 1


def compiled(conv: CompiledConv, library: Path, target: Device) -> dict[str, object]:
    """Return the row of a layer that is not emulated yet."""
    b, text = conv.blocking, conv.assembly()
    loops = innermost_loops(text, target.triple) or [whole_function(text, target.triple)]
    largest = max(loops, key=lambda loop: loop.fmas)
    row: dict[str, object] = {
        "layer": conv.workload.name,
        "GFLOP": f"{conv.workload.flops / 1e9:.3f}",
        "C_ob x W_ob, order": f"{b.oc_vectors * b.lanes} x {b.ow_tile}, {b.loop_order}",
        "bytes of .so": library.stat().st_size,
        "workspace": WORKSPACE in elf_info(library).defined,
        "spills": sum(loop.spills for loop in loops),
    }
    if target.mca_cpu:
        rate = next(each.per_cycle for each in target.rates() if each.lanes == b.lanes)
        cycles = mca_cycles(largest, target.triple, target.mca_cpu)
        row["llvm-mca"] = f"{largest.fmas / rate / cycles:.1%}"
    return {**row, "max error": None, "extra bytes": None}


def emulated(conv: CompiledConv, library: Path, target: Device) -> tuple[float, int]:
    """Run a layer on whole numbers; return its error and the bytes that it allocated."""
    workload: ConvWorkload = conv.workload
    # float32 holds every sum of these, so the error of right code is 0.
    x, weight = random_tensors(workload, seed=0, integers=True)
    report = run_library(
        library,
        conv.manifest.symbol,
        [conv.pack_input(x), conv.pack_weight(weight)],
        [conv.manifest.output_shape],
        find_toolchain(target.triple, target.qemu_cpu),
    )
    y = conv.unpack_output(report.outputs[0])
    return max_error(y, conv2d_reference(x, weight, workload)), report.allocated_bytes


def summary(rows: Sequence[Row], target: Device) -> str:
    """Say what the table shows."""
    ran = [row for row in rows if row["max error"] is not None]
    lines = [f"{len(rows)} layers compiled, {len(ran)} of them emulated"]
    if len(ran) < len(rows):
        lines[0] += f"; those of more than {LIMIT} GFLOP only with --all"
    spilling = [str(row["layer"]) for row in rows if row["spills"]]
    lines.append(f"Spills in inner loops: {', '.join(spilling) or 'none'}")
    if target.mca_cpu:
        lines.append(
            "llvm-mca: the part of the FMA peak that the largest inner loop reaches in LLVM's model"
            f" of {target.mca_cpu}: an upper bound, as every load hits the first-level cache"
        )
    return "\n".join(lines)


def say(text: str) -> None:
    """Tell people how far it is, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DirectConvError as error:
        sys.exit(f"scripts/demo_board: error: {error}")
