"""What scripts/check_arm runs: llvm-mca over inner loops, and counts of executed instructions."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import tvm_directconv as dc
from tvm_directconv.assembly import innermost_loops, mca_cycles, whole_function
from tvm_directconv.case import Case
from tvm_directconv.deploy.counter import Executed, count_instructions
from tvm_directconv.precision import FLOAT32, PRECISIONS
from tvm_directconv.tiling import Tiling
from tvm_directconv.toolchain import find_toolchain
from tvm_directconv.tuning.runners.mca import loops_of_peak


def main() -> None:
    """Print a row for each layer of the five networks, and what they come to, for each device."""
    parser = argparse.ArgumentParser(prog="scripts/check_arm")
    parser.add_argument("device", nargs="*", default=["cortex-a72", "neoverse-n1"])
    parser.add_argument(
        "--precision",
        action="append",
        choices=PRECISIONS,
        help="number types, repeatedly for several beside each other; default: float32",
    )
    arguments = parser.parse_args()
    for name in arguments.device:
        check(dc.device(name), arguments.precision or [FLOAT32.name])


@dataclass
class Total:
    """What the layers of one precision come to."""

    reached: list[tuple[dc.ConvWorkload, float]] = field(default_factory=list)
    depthwise: list[tuple[dc.ConvWorkload, float]] = field(default_factory=list)
    spills: int = 0
    counts: list[tuple[dc.ConvWorkload, Executed]] = field(default_factory=list)

    def __str__(self) -> str:
        lowest = min(self.reached, key=lambda layer: layer[1])
        lines = [
            f"the loops of {len(self.reached)} layers, weighted by their FLOPs, reach "
            f"{weighted(self.reached):.1%} of the peak; the lowest is {lowest[0].name} with "
            f"{lowest[1]:.1%}; the largest loops of {len(self.depthwise)} depthwise layers "
            f"{weighted(self.depthwise):.1%}; {self.spills} spills"
        ]
        if self.counts:
            arithmetic = min(counts.of_arithmetic for _, counts in self.counts)
            instructions = min(counts.of_all for _, counts in self.counts)
            lines.append(
                f"of {len(self.counts)} layers of 3x3, multiply-adds are at least {arithmetic:.1%} "
                f"of the vector arithmetic and {instructions:.1%} of all instructions"
            )
        return "; ".join(lines)


def weighted(layers: Sequence[tuple[dc.ConvWorkload, float]]) -> float:
    """Return the part of the peak that layers reach together, by their operations."""
    flops = sum(layer.useful_flops for layer, _ in layers)
    return flops / sum(layer.useful_flops / reached for layer, reached in layers)


def check(device: dc.Device, precisions: Sequence[str]) -> None:
    """Print the table of a device."""
    columns = ["C_ob x W_ob, order", "loops", "instructions a product", "FMAs of arithmetic"]
    cells = " | ".join(f"{name}: {column}" for name in precisions for column in columns)
    print(f"\n| {device.name} | {cells} |")
    print("| --- |" + " --- | ---: | ---: | ---: |" * len(precisions))
    totals = {name: Total() for name in precisions}
    for layer in dict.fromkeys(w for name in dc.networks() for w in dc.workloads(name)):
        found = (row(replace(layer, dtype=name), device, totals[name]) for name in precisions)
        print(f"| {layer.name} | {' | '.join(found)} |", flush=True)
    print("".join(f"\n{device.name}, {name}: {total}" for name, total in totals.items()))


def row(layer: dc.ConvWorkload, device: dc.Device, total: Total) -> str:
    """Return the cells of a layer, after adding to the total what is in them."""
    assert device.mca_cpu, f"llvm-mca has no usable model of {device.name}"
    conv = dc.build(layer, device, blocking="model")
    tiling = Tiling(Case.of(layer, device), conv.blocking)
    text = conv.assembly()
    loops = innermost_loops(text, device.triple)
    total.spills += sum(loop.spills for loop in loops) + whole_function(text, device.triple).spills
    if layer.depthwise:
        largest = max(loops, key=lambda loop: loop.fmas)
        cycles = mca_cycles(largest, device.triple, device.mca_cpu)
        reached = largest.fmas / tiling.rate.per_cycle / cycles
        total.depthwise.append((layer, reached))
    else:
        reached = loops_of_peak(text, tiling)
        total.reached.append((layer, reached))
    counts = ["", ""]
    if layer.kernel == (3, 3):
        executed = counted(conv, device)
        if layer.groups == 1:
            total.counts.append((layer, executed))
        counts = [f"{2 * executed.total / layer.useful_flops:.3f}", f"{executed.of_arithmetic:.1%}"]
    return " | ".join([conv.blocking.brief, f"{reached:.1%}", *counts])


def counted(conv: dc.CompiledConv, device: dc.Device) -> Executed:
    """Return what a convolution executes."""
    m = conv.manifest
    types = m.precision.pixel, m.precision.weight, m.precision.output
    with TemporaryDirectory() as folder:
        return count_instructions(
            conv.export(Path(folder, "conv.so")),
            m.symbol,
            [m.input_shape, m.weight_shape, m.output_shape],
            find_toolchain(device.triple, device.qemu_cpu),
            [number.name for number in types],
        )


main()
