"""What scripts/check_arm runs: llvm-mca over inner loops, and counts of executed instructions."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import tvm_directconv as dc
from tvm_directconv.case import Case
from tvm_directconv.deploy.counter import count_instructions
from tvm_directconv.tiling import Tiling
from tvm_directconv.toolchain import find_toolchain
from tvm_directconv.tuning.runners.mca import loops_of_peak


def main(names: list[str]) -> None:
    """Print a row for each layer of the five networks without groups, and the bars they are for."""
    layers = list(dict.fromkeys(w for name in dc.networks() for w in dc.workloads(name)))
    layers = [w for w in layers if w.groups == 1]
    for name in names:
        device = dc.device(name)
        print(f"\n| {name} | C_ob x W_ob, order | loops | FMAs of arithmetic | of all |")
        print("| --- | --- | ---: | ---: | ---: |")
        flops, time = 0, 0.0
        least: list[tuple[float, float]] = []
        for layer in layers:
            conv = dc.build(layer, device, blocking="model")
            tiling = Tiling(Case.of(layer, device), conv.blocking)
            reached = loops_of_peak(conv.assembly(), tiling)
            flops += layer.useful_flops
            time += layer.useful_flops / reached
            parts = "|"
            if layer.kernel == (3, 3):
                least.append(counted(conv, device))
                parts = " | ".join(f"{part:.1%}" for part in least[-1])
            print(f"| {layer.name} | {conv.blocking.brief} | {reached:.1%} | {parts} |", flush=True)
        arithmetic, instructions = map(min, zip(*least, strict=True))
        print(
            f"\n{name}: the loops of {len(layers)} layers, weighted by their FLOPs, reach "
            f"{flops / time:.1%} of the FMA peak; of {len(least)} layers of 3x3, FMAs are at least "
            f"{arithmetic:.1%} of the vector arithmetic and {instructions:.1%} of all instructions"
        )


def counted(conv: dc.CompiledConv, device: dc.Device) -> tuple[float, float]:
    """Return the parts that multiply-adds are of the vector arithmetic and of all instructions."""
    m = conv.manifest
    with TemporaryDirectory() as folder:
        counts = count_instructions(
            conv.export(Path(folder, "conv.so")),
            m.symbol,
            [m.input_shape, m.weight_shape, m.output_shape],
            find_toolchain(device.triple, device.qemu_cpu),
        )
    return counts.of_arithmetic, counts.of_all


main(sys.argv[1:] or ["cortex-a72", "neoverse-n1"])
