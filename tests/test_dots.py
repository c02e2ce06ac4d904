"""Instructions that multiply 16 bits to sums in single precision: dot products, fmlal."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import output_of

import tvm_directconv as dc
from tvm_directconv.assembly import innermost_loops
from tvm_directconv.case import Case
from tvm_directconv.hardware.device import fastest
from tvm_directconv.tiling import Tiling

# Channels and groups that are no whole words, or lanes; images in words; strides beyond the kernel.
LAYERS = (
    ("ic64ih13oc72oh13kh3ph1", None),
    ("ic33ih9oc17oh9kh3ph1", None),
    ("ic3ih17oc20kh5sh2ph1", "NCHW4c"),
    ("ic26ih9oc33kh1sh3", "NHWC"),
    ("g4ic24ih9oc40oh9kh3ph1", None),
    ("g3ic9ih9oc12oh9kh3ph1", None),
    ("ic24ih13oc112kh3dh1ph2", "NCHW2c"),
    ("ic48ih6oc40oh6kh3ph1", "NCHW"),
)


@pytest.mark.parametrize("name", ["native", "neoverse-n2"])
@pytest.mark.parametrize(("text", "layout"), LAYERS)
def test_sums_of_whole_numbers_are_exact(
    text: str, layout: str | None, name: str, tmp_path: Path
) -> None:
    conv = dc.build(f"bfloat16_{text}", name, input_layout=layout)
    x, weight = dc.random_tensors(conv.workload, 0, integers=True)
    expected = dc.conv2d_reference(x, weight, conv.workload).astype(x.dtype)
    np.testing.assert_array_equal(
        output_of(conv, tmp_path, conv.pack_input(x), conv.pack_weight(weight)), expected
    )


@pytest.mark.parametrize("denormals", ["flush", "keep"])
@pytest.mark.parametrize("name", ["native", "neoverse-n2"])
def test_all_numbers_are_multiplied_right(name: str, denormals: str, tmp_path: Path) -> None:
    workload = dc.ConvWorkload.parse("bfloat16_ic16ih64oc16kh1")
    conv = dc.build(workload, name, denormals=denormals)
    assert not (denormals == "keep" and conv.manifest.instruction.flushes)
    number = np.dtype(workload.precision.pixel.name)
    x = np.arange(2**16).astype(np.uint16).view(number).reshape(workload.input_shape)
    weight = np.zeros(workload.weight_shape, number)
    for factor in (1 + 2**-7, 2**-10, 4):
        np.einsum("ooyx->oyx", weight)[...] = factor
        with np.errstate(all="ignore"):
            inputs = x.astype(np.float32)
            exact = inputs * np.float32(factor)
            if denormals == "flush":
                exact[(np.abs(exact) < 2**-126) | (np.abs(inputs) < 2**-126)] = 0
            exact[:, :, ~np.isfinite(inputs).all((0, 1))] = np.nan  # zero times infinity
            expected = exact.astype(number).astype(np.float32)
        found = output_of(conv, tmp_path, conv.pack_input(x), conv.pack_weight(weight)).astype(
            np.float32
        )
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["apple-m1", "neoverse-n2", "neoverse-v1"])
def test_halves_are_multiplied_to_sums_in_single_precision(name: str) -> None:
    for text in ("ic64ih56oc256oh56kh1", "g64ic64ih28oc64oh28kh3ph1"):
        conv = dc.build(f"float16acc32_{text}", name, blocking="model")
        loops = innermost_loops(conv.assembly(), dc.device(name).triple)
        assert loops and not any(loop.spills for loop in loops)
        body = max(loops, key=lambda loop: loop.fmas).body
        lane = r"v\d+\.4h" if "g64" in text else r"v\d+\.h\[[0-3]\]"
        found = [line for line in body if re.match(rf"fmlal v\d+\.4s, v\d+\.4h, {lane}", line)]
        assert found and not [line for line in body if re.match("fml[as] |fcvt|dup|ld1r", line)]
    # Others convert.
    assert Case.of(conv.workload, "neoverse-n1").conversion


DOTS = {
    "znver4": r"vdpbf16ps\s.*%zmm",
    "znver5": r"vdpbf16ps\s.*%zmm",
    "neoverse-n2": r"bfdot\s+v\d+\.4s, v\d+\.8h, v\d+\.2h\[[01]\]",
    "neoverse-v1": r"bfdot\s+v\d+\.4s, v\d+\.8h, v\d+\.2h\[[01]\]",
}


@pytest.mark.parametrize("name", DOTS)
def test_dot_products_take_pixels_as_they_are_loaded(name: str) -> None:
    conv = dc.build("bfloat16_ic64ih56oc256oh56kh1", name, blocking="model")
    loops = innermost_loops(conv.assembly(), dc.device(name).triple)
    assert loops and not any(loop.spills for loop in loops)
    longest = max(loops, key=lambda loop: loop.fmas)
    assert sum(bool(re.match(DOTS[name], line)) for line in longest.body) == longest.fmas
    b, tiling = conv.blocking, Tiling(Case.of(conv.workload, name), conv.blocking)
    steps = longest.fmas / b.oc_vectors / b.ow_tile
    vectors, words = tiling.pixel_loads(b.ow_tile)
    # Not from one register to another, and as often as the model counts.
    loads = [line for line in longest.body if re.match(r"dup|vp?broadcast|ld[pu]?r?\s+[dq]", line)]
    registers = sum(2 if line.startswith("ldp") else 1 for line in loads)
    weights = 0 if name.startswith("znver") else b.oc_vectors
    assert registers == steps * (vectors + words + weights)


def test_a_tile_of_one_vector_reads_pixels_from_memory() -> None:
    tile = {"lanes": 16, "oc_vectors": 1, "ow_tile": 14, "ic_block": 8, "ic_unroll": 4}
    conv = dc.build("bfloat16_ic64ih14oc64oh14kh3ph1", "znver4", blocking=tile)
    found = re.findall(r"vdpbf16ps\s+(\S*)", conv.assembly())
    assert len(found) > 50 and all("{1to16}" in first for first in found)


def test_the_rates_decide_whether_numbers_are_converted() -> None:
    text = "bfloat16_ic64ih14oc64oh14kh3ph1"
    chosen = {}
    for name in ("znver4", "sapphirerapids", "neoverse-n2", "neoverse-n1"):
        case = Case.of(text, name)
        chosen[name] = case.peak.instruction.name, case.depth, bool(case.conversion)
    assert chosen == {
        "znver4": ("vdpbf16ps zmm/m32bcst", 2, False),
        "sapphirerapids": ("tdpbf16ps tmm", 2, False),
        "neoverse-n2": ("bfdot v.4s", 2, False),
        "neoverse-n1": ("fmla v.4s", 1, True),
    }
    server = dc.device("sapphirerapids")
    vectors = [rate for rate in server.instructions if rate.instruction.pixels == 1]
    case = Case.of(text, replace(server, instructions=tuple(vectors)))
    assert (case.peak.instruction.name, case.depth) == ("vfmadd231ps zmm/m32bcst", 1)
    twice = [
        replace(rate, per_cycle=1) if rate.instruction.name.startswith("vdp") else rate
        for rate in vectors
    ]
    # Of equals, the one that has nothing to convert.
    assert Case.of(text, replace(server, instructions=tuple(twice))).depth == 2
    # Plain images, and groups of odd numbers, have no words.
    for other, layout in (
        ("bfloat16_ic4ih9oc8kh3", "NCHW"),
        ("bfloat16_g3ic9ih9oc12kh3", "NCHW8c"),
    ):
        case = Case.of(other, "znver4", input_layout=layout)
        assert case.depth == 1 and case.conversion and fastest(case.rates).lanes == 16
