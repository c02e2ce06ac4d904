"""Groups that vectors of output channels do not fit: each lane has a pixel of its own."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_exact, run_exact

from tvm_directconv import (
    Blocking,
    ConvWorkload,
    build,
    conv2d_reference,
    device,
    random_tensors,
)
from tvm_directconv.assembly import innermost_loops
from tvm_directconv.candidates import candidates, choose
from tvm_directconv.case import Case
from tvm_directconv.errors import BlockingError
from tvm_directconv.lowering.pipeline import lower
from tvm_directconv.scheduling import scheduled
from tvm_directconv.tiling import Tiling

# ResNeXt, ShuffleNet with groups of odd numbers of channels, RegNet, several outputs for an input;
# in small images.
LAYERS = [
    "g32ic128ih9oc128oh9kh3ph1",
    "g32ic256ih9oc256oh5kh3sh2ph1",
    "g3ic60ih6oc60oh6kh1",
    "g4ic68ih5oc68oh5kh1",
    "g4ic20ih5oc68oh5kh1",
    "g8ic96ih5oc360oh5kh1",
    "g6ic144ih7oc144oh7kh3ph1",
    "g8ic48ih7oc48oh7kh3ph1",
    "g16ic16ih9oc48oh9kh3ph1",
    "g32ic32ih9oc64oh9kh3ph1",
]


def lowered(descriptor: str, name: str, **knobs: object) -> str:
    case = Case.of(descriptor, name)
    blocking = Blocking(**knobs) if knobs else choose(case)
    return str(lower(scheduled(Tiling(case, blocking)).mod[case.symbol]).script())


@pytest.mark.parametrize("descriptor", LAYERS)
def test_layers_are_exact(descriptor: str) -> None:
    assert_exact(build(descriptor))


# The last one has one word in each group, and is no depthwise convolution.
@pytest.mark.parametrize("descriptor", [*LAYERS[::2], "g16ic64ih9oc16oh9kh3ph1"])
def test_layers_of_whole_numbers_are_exact(descriptor: str) -> None:
    workload = ConvWorkload.parse(f"uint8_{descriptor}")
    x, weight = random_tensors(workload, 0)
    found = build(workload)(x, weight)
    np.testing.assert_array_equal(found, conv2d_reference(x, weight, workload))


@pytest.mark.parametrize("name", ["cortex-a72", "armv7", "rv64gcv"])
@pytest.mark.parametrize("descriptor", LAYERS[2::3])
def test_layers_are_exact_elsewhere(descriptor: str, name: str, tmp_path: Path) -> None:
    report = run_exact(build(descriptor, name), device(name), tmp_path)
    assert report.allocated_bytes == 0


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NCHW8c", "NCHW16c"])
def test_layouts_are_exact(layout: str) -> None:
    for descriptor in ("g6ic36ih5oc36oh5kh3ph1", "g5ic20ih5oc60oh5kh1"):
        assert_exact(build(descriptor, input_layout=layout))


# Words, and numbers that are widened as they are loaded.
WHOLE = ["uint8_g32ic128ih9oc128oh9kh3ph1", "int8_g8ic48ih7oc48oh7kh3ph1"]


@pytest.mark.parametrize("name", ["haswell", "znver4", "cortex-a72"])
@pytest.mark.parametrize("descriptor", LAYERS + WHOLE)
def test_no_lane_computes_an_address(descriptor: str, name: str) -> None:
    code = lowered(descriptor, name)
    # Vectors of indices are of neighbours, or there is one.
    loads = re.findall(r"\b(?:x_\d|base\w*)\[(.*?)\]", code)
    assert loads and not [index for index in loads if "T.Broadcast" in index]


def test_what_lies_side_by_side_is_permuted_in_a_register() -> None:
    code = lowered("g32ic128ih9oc128oh9kh3ph1", "znver4")
    assert "[3, 3, 3, 3, 7, 7, 7, 7, 11, 11, 11, 11, 15, 15, 15, 15]" in code
    text = build("g32ic128ih9oc128oh9kh3ph1", "znver4").assembly()
    # Straight from memory, and one for three multiply-adds, as a row of the kernel shares them.
    assert len(re.findall(r"vpermilps\t\$\d+, -?\d*\(.*%zmm", text)) > 20
    assert "vinsertps" not in text


def test_what_lies_apart_is_blended() -> None:
    tile = {"lanes": 8, "oc_vectors": 3, "ow_tile": 2, "ic_block": 16, "ic_unroll": 4}
    code = lowered("g2ic96ih5oc24oh5kh1", "haswell", **tile)
    assert "[0, 1, 2, 3, 12, 13, 14, 15]" in code
    text = build("g2ic96ih5oc24oh5kh1", "haswell", blocking=Blocking(**tile)).assembly()
    assert "vblendps" in text and "vpermt2ps" not in text


def test_each_begin_in_a_group_has_code_of_its_own() -> None:
    def kinds(descriptor: str, oc_vectors: int, name: str = "znver4", lanes: int = 16) -> list[int]:
        case = Case.of(descriptor, name)
        return list(Tiling(case, Blocking(lanes, oc_vectors, 1, 1, 1)).tile_kinds)

    # Tiles of whole groups.
    assert kinds("g32ic128ih9oc128oh9kh3ph1", 1) == [0] * 8
    assert kinds("g8ic384ih5oc96oh5kh1", 3) == [0, 0]
    # One group each, a group and the first third of the next one, ...
    assert kinds("g8ic192ih5oc192oh5kh1", 1) == [0, 1, 0] * 4
    # Channels of the second group lie in two blocks.
    assert kinds("g3ic60ih5oc60oh5kh1", 2) == [0, 1]
    # What only fills the last vector of a depthwise convolution goes on.
    assert kinds("g20ic20ih5oc20oh5kh3ph1", 1, "haswell", 8) == [0, 0, 0]


def test_vectors_may_be_narrower_than_blocks() -> None:
    # Of 16 lanes each vector spans two groups, of 8 one in three.
    case = Case.of("g8ic384ih28oc96oh28kh1", "znver4")
    chosen = choose(case)
    assert (chosen.lanes, chosen.oc_block) == (8, 16)
    assert Tiling(case, chosen).output_layout.block == 16
    # Blocks of whole numbers are of vectors of any width.
    words = choose(Case.of("uint8_g8ic384ih28oc96oh28kh1", "znver4"))
    assert (words.lanes, words.oc_block) == (8, 0)
    assert all(b.oc_block == 0 for b in candidates(Case.of("ic64ih9oc64oh9kh3ph1", "znver4")))
    # Depthwise, there is nothing to gain.
    assert all(b.oc_block == 0 for b in candidates(Case.of("g64ic64ih9oc64oh9kh3ph1", "znver4")))
    for block, reason in ((12, "expected a multiple of 8"), (16, "leave a part of the last block")):
        with pytest.raises(BlockingError, match=f"oc_block is {block}: .*{reason}"):
            build("ic8ih5oc24oh5kh1", "znver4", blocking=Blocking(8, 1, 5, 8, 8, oc_block=block))


@pytest.mark.parametrize("name", ["haswell", "znver4", "sapphirerapids", "cortex-a72"])
@pytest.mark.parametrize("descriptor", ["g32ic128ih56oc128oh56kh3ph1", "g8ic384ih28oc96oh28kh1"])
def test_sums_stay_in_registers(descriptor: str, name: str) -> None:
    target = device(name)
    loops = innermost_loops(build(descriptor, name).assembly(), target.triple)
    assert loops and not any(loop.spills for loop in loops)


@pytest.mark.parametrize("name", ["x86-64-v2", "haswell", "znver4", "cortex-a53", "cortex-a76"])
def test_groups_of_all_sizes_have_a_tile(name: str) -> None:
    for inputs, outputs, kernel in product((1, 3, 8, 12, 28), (1, 2, 3, 6, 12), (1, 3)):
        case = Case.of(f"uint8_g5ic{5 * inputs}ih9oc{5 * outputs}kh{kernel}", name)
        assert next(candidates(case), None)


@pytest.mark.parametrize(
    ("descriptor", "name"),
    [
        ("uint8_g32ic128ih28oc128oh28kh3ph1", "haswell"),
        ("uint8_g8ic96ih14oc96oh14kh3ph1", "znver4"),
        ("uint8_g4ic24ih14oc24oh14kh1", "cortex-a76"),
    ],
)
def test_sums_of_whole_numbers_stay_in_registers(descriptor: str, name: str) -> None:
    loops = innermost_loops(build(descriptor, name).assembly(), device(name).triple)
    assert loops and not any(loop.spills for loop in loops)


def test_infinite_pixels_reach_no_other_group() -> None:
    workload = ConvWorkload.parse("g8ic32ih4oc32oh4kh1")
    conv = build(workload)
    x, weight = (
        np.ones(workload.input_shape, np.float32),
        np.ones(workload.weight_shape, np.float32),
    )
    x[:, 4:8] = np.inf
    y = conv(x, weight)
    assert np.isinf(y[:, 4:8]).all() and (np.delete(y, range(4, 8), axis=1) == 4).all()


def test_loads_and_blends_are_counted() -> None:
    case = Case.of("g2ic96ih5oc24oh5kh1", "haswell")
    tiling = Tiling(case, Blocking(8, 3, 5, 16, 4))
    # Two pixels, one of them once more for the blend of both.
    assert tiling.pixel_loads(5) == (0, 15) and tiling.pixel_moves(5) == 5
    # A row of three columns of the kernel reads 7 pixels for 5 outputs, a vector each.
    case = Case.of("g32ic128ih9oc128oh9kh3ph1", "znver4")
    tiling = Tiling(case, Blocking(16, 1, 5, 4, 4, kw_unroll=True))
    assert tiling.pixel_loads(5) == (7 / 3, 0) and tiling.pixel_moves(5) == 0
    wider = replace(tiling.blocking, lanes=8)
    assert Tiling(case, wider).groups_in_tile == 2
