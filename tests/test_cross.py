"""Compiled here, run in an emulator: foreign layers give the same bits as the reference."""

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import LAYERS, covering, run_exact

from tvm_directconv import ConvWorkload, build, device
from tvm_directconv.blocking import IC_INSIDE, IC_OUTSIDE
from tvm_directconv.candidates import choose
from tvm_directconv.case import Case
from tvm_directconv.errors import LibraryError


def shrunk(layer: ConvWorkload) -> ConvWorkload:
    """Return a layer of the same shape in few rows and channels: emulation is slow.

    Its columns stay, and with them tiles and borders; so do the remainders of its channels.
    """

    def fewer(channels: int, most: int) -> int:
        return channels if channels <= most else most + channels % 16

    rows = layer.dilated_kernel[0] + 3 * layer.stride[0]
    # All rows are needed where the pixels of an image are counted as one row.
    height = layer.in_height if layer.in_height <= 14 else min(layer.in_height, rows)
    most = 16 if layer.in_width > 100 else 32
    channels = {
        "in_channels": fewer(layer.in_channels, 32),
        "out_channels": fewer(layer.out_channels, most),
    }
    if layer.depthwise:
        channels = dict.fromkeys([*channels, "groups"], fewer(layer.in_channels, most))
    return replace(layer, in_height=height, **channels)


def features(layer: ConvWorkload) -> set[Hashable]:
    shape = layer.kernel, layer.stride, layer.padding, layer.dilation
    return {
        (shape, layer.out_width),
        ("in", layer.in_channels % 16, layer.in_channels < 16),
        ("out", layer.out_channels % 16),
        ("depthwise", layer.depthwise, layer.stride),
    }


CASES = covering(dict.fromkeys(map(shrunk, LAYERS)), features)


def test_the_cases_have_every_shape() -> None:
    def shapes(layers: list[ConvWorkload]) -> set[Hashable]:
        return {(w.kernel, w.stride, w.padding, w.dilation, w.in_width) for w in layers}

    assert shapes(CASES) == shapes(LAYERS)


# RISC-V's code is made like ARM's, but for its instructions: some layers show that these are right.
RUNS = [
    *((layer, name) for layer in CASES for name in ("cortex-a53", "cortex-a72", "armv7")),
    *((layer, "rv64gcv") for layer in CASES[::6]),
    *((layer, "spacemit-x60") for layer in CASES[3::9]),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("layer", "name"), RUNS, ids=[f"{layer.name}-{name}" for layer, name in RUNS]
)
def test_emulated_layers_are_exact(
    layer: ConvWorkload, name: str, threads: int, tmp_path: Path
) -> None:
    target = device(name)
    b = choose(Case.of(layer, target, threads))
    if threads > 1:
        # Layers of so few channels seldom get the paper's order: here it has its turn, too.
        b = replace(b, loop_order=IC_INSIDE if b.loop_order == IC_OUTSIDE else IC_OUTSIDE)
    report = run_exact(build(layer, target, threads, b), target, tmp_path, threads)
    assert report.allocated_bytes == 0


@pytest.mark.parametrize(
    ("name", "bits", "runs"),
    [("rv64gcv", 128, True), ("rv64gcv", 512, True), ("spacemit-x60", 128, False)],
)
def test_riscv_with_vectors_of_other_widths(
    name: str, bits: int, runs: bool, tmp_path: Path
) -> None:
    """Wider ones will do. Narrower ones would leave out lanes, and nobody would notice."""
    layer = ConvWorkload.parse("ic20ih5oc24oh5kh3ph1")
    target = replace(device(name), qemu_cpu=f"rv64,v=true,vlen={bits},vext_spec=v1.0")
    conv = build(layer, name)
    if runs:
        run_exact(conv, target, tmp_path)
    else:
        with pytest.raises(LibraryError, match="lacks an instruction of this library"):
            run_exact(conv, target, tmp_path)
