"""Matrix registers (AMX), executed by an emulator of their own where processors have none."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from onnx_models import assert_equal, saved
from quantized_models import MODELS, QDQ, Quantized, by_onnxruntime
from test_int8 import a_quantization, random_operands_of
from tvm import tirx

import tvm_directconv as dc
from tvm_directconv.assembly import innermost_loops
from tvm_directconv.bench.peak import BurstCode
from tvm_directconv.candidates import candidates, choose
from tvm_directconv.case import Case
from tvm_directconv.deploy.runner import RunReport, run_library
from tvm_directconv.errors import BlockingError, LibraryError
from tvm_directconv.hardware.target import host_features
from tvm_directconv.lowering.marks import UNCHECKED
from tvm_directconv.lowering.pipeline import PIPELINE
from tvm_directconv.network.kernels import compile_kernels
from tvm_directconv.precision import PRECISIONS
from tvm_directconv.reference import random_operands
from tvm_directconv.scheduling import scheduled
from tvm_directconv.tiling import Tiling
from tvm_directconv.toolchain import Toolchain, find_toolchain
from tvm_directconv.tuning.runners.problem import Problem

DEVICE = "sapphirerapids"
SOURCE = Path(__file__).with_name("amx_emulator.c")
ODD = (
    "uint8_ic64ih14oc64oh14kh3ph1",
    "int8_ic64ih7oc64oh7kh3ph1",  # Several rows in a matrix.
    "uint8_ic112ih13oc208oh13kh3ph1",
    "uint8_ic24ih17oc40oh9kh3sh2ph1",
    "int8_mb2ic64ih7oc33oh4kh1sh2",  # Pixels that are not evenly apart, and no padding.
    "uint8_ic130ih14oc256oh14kh1",
    "int8_ic16ih27oc24oh27kh5ph2",
    "uint8_ic48ih20iw19oc17oh20ow19kh3ph2dh1",
    "uint8_ic32ih1oc32oh1kh1",
    "bfloat16_ic64ih14oc64oh14kh3ph1",
    "bfloat16_ic48ih13oc80oh13kh3ph1",  # Rows that are half as long.
    "bfloat16_mb2ic130ih7oc48oh4kh1sh2",
)
"""Layers; of each kind of matrix, of whole and of left over ones."""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Toolchain:
    """Return what runs programs for Sapphire Rapids on this processor."""
    toolchain = find_toolchain(dc.device(DEVICE).triple)
    if "amx-tile" in host_features():
        return toolchain
    library = tmp_path_factory.mktemp("emulator") / "amx_emulator.so"
    options = ["-O2", "-shared", "-fPIC", "-ftls-model=initial-exec", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*toolchain.cc, *options, str(SOURCE), "-o", str(library), "-ldl"], check=True)
    return replace(toolchain, emulator=("env", f"LD_PRELOAD={library}"))


@pytest.fixture
def emulated(emulator: Toolchain) -> Callable[..., RunReport]:
    """Return what runs a convolution for Sapphire Rapids on this processor."""

    def run(conv: dc.CompiledConv, folder: Path, *arrays: np.ndarray, **more: object) -> RunReport:
        m = conv.manifest
        settings = ["AMX_EMULATOR_REFUSES=1"] if more.pop("refuses", False) else []
        return run_library(
            conv.export(folder / "conv.so"),
            m.symbol,
            list(arrays),
            [m.output_shape],
            replace(emulator, emulator=(*emulator.emulator, *settings)),
            output_types=[m.output_type.name],
            threads=m.threads,
            **more,
        )

    return run


# Else they are compiled and not run: the emulator has the matrices only.
RUNS = {"avx512f", "avx512bw", "avx512vl"} <= host_features()


@pytest.mark.parametrize("text", ODD)
def test_sums_are_exact(text: str, emulated: Callable[..., RunReport], tmp_path: Path) -> None:
    conv = dc.build(text, DEVICE, threads=1 + ODD.index(text) % 3)
    assert conv.manifest.instruction.pixels == 16
    x, weight = dc.random_tensors(conv.workload, 0, integers=True)
    if conv.manifest.precision.whole:
        weight.ravel()[::5] = -128
    arrays = conv.pack_input(x), conv.pack_weight(weight)
    if RUNS:
        guard = ("begin", "end", None)[ODD.index(text) % 3]
        report = emulated(conv, tmp_path, *arrays, guard=guard)
        assert report.allocated_bytes == 0
        # As the tuner compares it: packed, with what is not written.
        expected = dc.conv2d_reference(x, weight, conv.workload).astype(np.int32)
        packed = Problem(x, weight, expected).packed(conv.manifest)[-1]
        np.testing.assert_array_equal(report.outputs[0], packed)


@pytest.mark.parametrize("text", [text for text in ODD if "int8" in text])
def test_requantised(text: str, emulated: Callable[..., RunReport], tmp_path: Path) -> None:
    workload = dc.ConvWorkload.parse(text)
    residual = text.endswith("ph1")
    epilogue = dc.Epilogue(True, residual, "relu", zero_point=True, requantize=workload.dtype)
    conv = dc.build(workload, DEVICE, threads=1 + ODD.index(text) % 2, epilogue=epilogue)
    x, weight = dc.random_tensors(workload, 0)
    operands = random_operands_of(workload, epilogue)
    meaning = a_quantization(workload, workload.dtype, 2)
    packed = conv.pack_operands(weight, meaning, **operands)
    arrays = conv.pack_input(x), conv.pack_weight(weight), *packed.values()
    if RUNS:
        report = emulated(conv, tmp_path, *arrays, guard="end")
        assert report.allocated_bytes == 0
        found = conv.unpack_output(report.outputs[0])
        assert len(np.unique(found)) > min(50, found.size // 8)
        sums = dc.conv2d_reference(x.astype(np.int64) - meaning.input_zero_point, weight, workload)
        expected = dc.epilogue_reference(sums, epilogue, meaning, **operands)
        np.testing.assert_array_equal(found, expected)


def test_epilogue_of_bfloat16(emulated: Callable[..., RunReport], tmp_path: Path) -> None:
    epilogue = dc.Epilogue.parse("bias,residual,relu")
    conv = dc.build("bfloat16_ic64ih9oc32oh9kh3ph1", DEVICE, epilogue=epilogue, threads=2)
    x, weight = dc.random_tensors(conv.workload, 0, integers=True)
    operands = random_operands(conv.workload, epilogue, 1)
    packed = conv.pack_operands(weight, **operands)
    if RUNS:
        report = emulated(
            conv, tmp_path, conv.pack_input(x), conv.pack_weight(weight), *packed.values()
        )
        sums = dc.conv2d_reference(x, weight, conv.workload)
        expected = dc.epilogue_reference(sums, epilogue, **operands)
        found = conv.unpack_output(report.outputs[0])
        np.testing.assert_array_equal(found, expected.astype(found.dtype))


@pytest.mark.parametrize("text", ["uint8_ic80ih11oc72oh11kh3ph1", "uint8_ic80ih11oc72oh11kh1"])
def test_all_tiles(text: str, emulated: Callable[..., RunReport], tmp_path: Path) -> None:
    case = Case.of(text, DEVICE)
    x, weight = dc.random_tensors(case.workload, 0)
    expected = dc.conv2d_reference(x, weight, case.workload)
    tiles = {(b.ow_tile, b.oc_vectors): b for b in candidates(case)}
    assert len(tiles) >= 5
    for blocking in tiles.values():
        conv = dc.build(text, DEVICE, blocking=blocking)
        arrays = conv.pack_input(x), conv.pack_weight(weight)
        if RUNS:
            found = conv.unpack_output(emulated(conv, tmp_path, *arrays).outputs[0])
            np.testing.assert_array_equal(found, expected)


def test_a_system_that_gives_no_permission(
    emulated: Callable[..., RunReport], tmp_path: Path
) -> None:
    conv = dc.build("uint8_ic64ih7oc64oh7kh3ph1", DEVICE)
    x, weight = dc.random_tensors(conv.workload, 0)
    arrays = conv.pack_input(x), conv.pack_weight(weight)
    if RUNS and "amx-tile" not in host_features():
        with pytest.raises(LibraryError, match="does not let this program use matrix registers"):
            emulated(conv, tmp_path, *arrays, refuses=True)


@pytest.mark.parametrize("name", ["residual", "inception"])
def test_networks(name: str, emulator: Toolchain, tmp_path: Path) -> None:
    g = Quantized(QDQ, np.uint8, 1, 3, 23, 19)
    model = g.made(*MODELS[name](g))
    library = tmp_path / "network.so"
    m = dc.compile_network(saved(model, tmp_path), library, DEVICE, threads=2, check=False)
    assert b"use matrix registers" in library.read_bytes()
    if RUNS:
        x = np.random.default_rng(0).standard_normal(m.inputs[0].shape).astype(np.float32)
        report = run_library(
            library,
            "main",
            [x],
            [port.shape for port in m.outputs],
            emulator,
            output_types=[port.dtype for port in m.outputs],
            threads=m.threads,
            guard="end",
            scratch_bytes=m.arena_bytes,
        )
        assert report.allocated_bytes == 0
        assert_equal(tuple(report.outputs), by_onnxruntime(model, x=x))


def test_kernels_of_networks_ask_for_permission_but_look_at_no_arguments() -> None:
    case = Case.of("uint8_ic64ih7oc64oh7kh3ph1", DEVICE)
    kernel = scheduled(Tiling(case, choose(case))).mod[case.symbol]
    target = case.device.target(1)
    lengths = []
    for attributes in ({}, {UNCHECKED: True}):
        function = kernel.with_attr({"target": target, **attributes})
        module = tirx.build(tvm.IRModule({case.symbol: function}), target, pipeline=PIPELINE)
        code = module.inspect_source("ll")
        assert "does not let this program use matrix registers" in code
        assert ("Mismatched type on argument" in code) is not bool(attributes)
        lengths.append(len(code))
    assert lengths[1] < 0.8 * lengths[0]
    # That is how kernels of networks are compiled.
    ((_, code),) = compile_kernels({"conv": kernel}, case.device, 1).values()
    assert b"this program use matrix registers" in code and b"on argument" not in code


@pytest.mark.parametrize(("text", "multiply"), [(ODD[0], "tdpbusd"), (ODD[1], "tdpbssd")])
def test_each_task_configures_and_releases(text: str, multiply: str, tmp_path: Path) -> None:
    epilogue = dc.Epilogue.parse(f"bias,requantize={dc.ConvWorkload.parse(text).dtype}")
    conv = dc.build(text, DEVICE, threads=2, epilogue=epilogue)
    code = conv.export(tmp_path / "conv.s").read_text()
    counts = {
        name: len(re.findall(rf"^\s+{name}\b", code, re.MULTILINE))
        for name in ("ldtilecfg", "tilerelease", "tilezero", multiply, "vpdp\\w+")
    }
    assert counts == {**counts, "ldtilecfg": 1, "tilerelease": 1, "tilezero": 4, "vpdp\\w+": 0}
    assert counts[multiply] >= 9 * 4
    assert "AllocWorkspace" not in code


@pytest.mark.parametrize("name", ["uint8", "bfloat16"])
def test_a_burst_is_nothing_but_products(name: str) -> None:
    burst = BurstCode(dc.device(DEVICE), 2, PRECISIONS[name])
    loops = innermost_loops(burst.module.inspect_source("asm"), dc.device(DEVICE).triple)
    (loop,) = loops
    assert loop.fmas % 4 == 0 and loop.instructions <= loop.fmas + 3
    # Of each product, 16 x 16 sums of 16 words.
    assert burst.flops_per_cycle == 2 * 2 * 16 * 16 * {"uint8": 4, "bfloat16": 2}[name]


def test_blocks_are_rows_of_matrices() -> None:
    for text, *blocks in (
        ("uint8_ic64ih9oc24kh3", 64, 32),
        ("uint8_g64ic64ih9oc64oh9kh3ph1", 64, 64),
        ("bfloat16_ic64ih9oc96kh3", 32, 32),
        # Of three vectors. What only fills a block may be NaN, and so zero times it.
        ("bfloat16_ic64ih9oc48kh3", 32, 16),
        ("bfloat16_g64ic64ih9oc64oh9kh3ph1", 32, 32),
    ):
        m = dc.build(text, DEVICE).manifest
        assert [m.input_layout.block, m.output_layout.block] == blocks
    # Of three channels, rows would be empty.
    m = dc.build("uint8_ic3ih9oc64oh9kh3ph1", DEVICE).manifest
    assert (m.instruction.name, m.output_layout.block) == ("vpdpbusd zmm", 64)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"ow_tile": 48}, "ow_tile is 48 and oc_vectors 2: expected at most 16 columns beside"),
        ({"ow_tile": 28, "oc_vectors": 4}, "ow_tile is 28 and oc_vectors 4"),
        ({"ow_tile": 27}, "ow_tile is 27: expected 2 matrices of as many columns"),
        ({"ow_tile": 10}, "10 pixels in a matrix are neither a part of a row of 7"),
        ({"ic_block": 8}, "ic_block is 8: expected 16"),
        ({"flat_rows": 1}, "flat_rows is 1: expected 0"),
        ({"oh_block": 7}, "oh_block is 7: expected 1"),
        ({"oc_block": 16}, "oc_block is 16: expected 64"),
    ],
)
def test_blockings_that_matrices_cannot_have(knobs: dict[str, int], message: str) -> None:
    text = "uint8_ic64ih7oc64oh7kh3ph1"
    good = {"lanes": 16, "oc_vectors": 2, "ow_tile": 14, "ic_block": 16, "oc_block": 64}
    dc.build(text, DEVICE, blocking=good)
    with pytest.raises(BlockingError, match=re.escape(message)):
        dc.build(text, DEVICE, blocking=good | knobs)
