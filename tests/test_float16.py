"""Convolutions in half precision: exact where sums are, no wider than they must be, by lane."""

import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import tvm_directconv as dc
from tvm_directconv.assembly import innermost_loops
from tvm_directconv.bench.rivals.base import Unsupported
from tvm_directconv.bench.rivals.contestants import LAYER_CONTESTANTS
from tvm_directconv.bench.rivals.ours import Ours
from tvm_directconv.bench.rivals.serve import Server
from tvm_directconv.candidates import choose
from tvm_directconv.case import Case
from tvm_directconv.deploy.runner import RunReport, run_library
from tvm_directconv.errors import DeviceError, WorkloadError
from tvm_directconv.instructions import BROADCAST, LANE, MEMORY
from tvm_directconv.reference import epilogue_reference
from tvm_directconv.tiling import Tiling
from tvm_directconv.toolchain import find_toolchain
from tvm_directconv.tuning.runners.mca import loops_of_peak

ODD = (
    "float16_ic64ih13oc72oh13kh3ph1",
    "float16_ic40ih15oc33kh1sh2",
    "float16_ic3ih33oc20kh5sh2ph1",
    "float16_g24ic24ih17oc24oh17kh3ph1",
    "float16_g4ic32ih9oc48oh9kh3ph1",
    "float16_ic24ih27oc17kh3dh1ph2",
    "float16_ic256ih7oc112oh7kh3ph1",  # More products than half precision can count.
)


def emulated(conv: dc.CompiledConv, folder: Path, *arrays: np.ndarray) -> RunReport:
    m, target = conv.manifest, dc.device(conv.manifest.device)
    return run_library(
        conv.export(folder / "conv.so"),
        m.symbol,
        list(arrays),
        [m.output_shape],
        find_toolchain(target.triple, target.qemu_cpu),
        output_types=["float16"],
    )


@pytest.mark.parametrize("layout", [None, "NHWC"])
@pytest.mark.parametrize("text", ODD)
def test_whole_numbers_are_exact(text: str, layout: str | None, tmp_path: Path) -> None:
    workload = dc.ConvWorkload.parse(text)
    conv = dc.build(workload, "cortex-a76", threads=2, input_layout=layout)
    x, weight = dc.random_tensors(workload, 0, integers=True)
    assert x.dtype == weight.dtype == np.float16
    report = emulated(conv, tmp_path, conv.pack_input(x), conv.pack_weight(weight))
    expected = dc.conv2d_reference(x, weight, workload)
    assert 2 < np.abs(expected).max() <= 2048
    np.testing.assert_array_equal(conv.unpack_output(report.outputs[0]), expected)
    assert report.allocated_bytes == 0


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_epilogues_compute_in_single_precision(activation: str, tmp_path: Path) -> None:
    workload = dc.ConvWorkload.parse(ODD[0])
    epilogue = dc.Epilogue(bias=True, residual=True, activation=activation)
    conv = dc.build(workload, "cortex-a76", epilogue=epilogue)
    x, weight = dc.random_tensors(workload, 1, integers=True)
    rng = np.random.default_rng(0)
    operands = {
        "bias": rng.uniform(-3, 3, workload.out_channels).astype(np.float16),
        "residual": rng.uniform(-3, 3, workload.output_shape).astype(np.float16),
    }
    packed = [conv.pack_operand(name, array) for name, array in operands.items()]
    report = emulated(conv, tmp_path, conv.pack_input(x), conv.pack_weight(weight), *packed)
    found = conv.unpack_output(report.outputs[0]).astype(np.float64)
    sums = dc.conv2d_reference(x, weight, workload)
    expected = epilogue_reference(sums, epilogue, **operands)
    # The last rounding, to half precision, is the only one to speak of.
    np.testing.assert_allclose(found, expected, rtol=2**-11 + 1e-6, atol=2**-24)


def test_errors_are_those_of_sums_in_half_precision(tmp_path: Path) -> None:
    workload = dc.ConvWorkload.parse("float16_ic64ih13oc24oh13kh3ph1")
    conv = dc.build(workload, "cortex-a76")
    x, weight = dc.random_tensors(workload, 0)
    report = emulated(conv, tmp_path, conv.pack_input(x), conv.pack_weight(weight))
    found = conv.unpack_output(report.outputs[0]).astype(np.float64)
    # Each of the additions rounds by up to half of the last place of what was added up so far.
    products = dc.conv2d_reference(np.abs(x), np.abs(weight), workload)
    bound = 2**-11 * products * 64 * 9
    errors = np.abs(found - dc.conv2d_reference(x, weight, workload))
    assert (errors <= bound).all() and 0 < errors.max() < 0.02 * products.max()


@pytest.mark.parametrize("name", ["cortex-a76", "neoverse-n1", "apple-m1"])
def test_pixels_are_lanes_and_nothing_spills(name: str) -> None:
    for layer in [*dc.workloads("resnet50")[1:40:8], *dc.workloads("vgg16")[1:9:4]]:
        half = replace(layer, dtype="float16")
        conv = dc.build(half, name, blocking="model")
        text = conv.assembly()
        tiling = Tiling(Case.of(half, name), conv.blocking)
        assert tiling.pixel_operand == LANE, layer
        assert re.search(r"fmla\s+v\d+\.8h, v\d+\.8h, v\d+\.h\[\d\]", text)
        assert not re.search(r"fmla\s+v\d+\.4s", text)
        loops = innermost_loops(text, dc.device(name).triple)
        assert loops and not any(loop.spills for loop in loops)
        if dc.device(name).mca_cpu:
            assert loops_of_peak(text, tiling) > 0.97


def test_x86_reads_pixels_from_memory() -> None:
    half = dc.ConvWorkload.parse("float16_ic256ih14oc256oh14kh3ph1")
    conv = dc.build(half, "sapphirerapids", blocking="model")
    assert conv.blocking.lanes == 32 and conv.blocking.oc_vectors == 1
    assert Tiling(Case.of(half, "sapphirerapids"), conv.blocking).pixel_operand == MEMORY
    text = conv.assembly()
    assert re.search(r"vfmadd231ph\s.*\{1to32\}", text) and "vpbroadcastw" not in text
    loops = innermost_loops(text, "x86_64-linux-gnu")
    assert loops and not any(loop.spills for loop in loops)


def test_wide_tiles_find_no_registers_for_lanes() -> None:
    case = Case.of(ODD[0], "cortex-a76")
    few = replace(choose(case), oc_vectors=2, ow_tile=8)
    assert Tiling(case, few).pixel_operand == LANE
    assert Tiling(case, replace(few, oc_vectors=1, ow_tile=9)).pixel_operand == BROADCAST


@pytest.mark.parametrize("name", ["x86-64-v4", "cortex-a72", "armv7"])
def test_processors_without_it_are_told(name: str) -> None:
    with pytest.raises(DeviceError, match=f"'{name}' has no instruction for float16: expected a"):
        dc.build(ODD[0], name)


def test_layers_of_networks_in_half_precision() -> None:
    found = dc.workloads("float16_vgg16:conv3_*")
    assert [(w.name, w.dtype) for w in found] == [
        (w.name, "float16") for w in dc.workloads("vgg16:conv3_*")
    ]
    assert dc.workloads(str(found[0])) == found[:1]
    with pytest.raises(WorkloadError, match="unknown network 'vgg61'"):
        dc.workloads("float16_vgg61")


def test_other_libraries_are_not_compared() -> None:
    for rival in LAYER_CONTESTANTS:
        if not isinstance(rival, Ours):
            message = re.escape(f"{rival.name} computes no layers in float16")
            with pytest.raises(Unsupported, match=message):
                Server(rival, 1).layer("", asdict(dc.ConvWorkload.parse(ODD[0])), again=False)
