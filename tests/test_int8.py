"""Convolutions of whole numbers of 8 bits: exact, and requantised as ONNX Runtime does."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import output_of
from onnx_quantized import qlinear_conv

import tvm_directconv as dc
from tvm_directconv.assembly import innermost_loops
from tvm_directconv.bench.peak import Burst, BurstCode
from tvm_directconv.candidates import choose
from tvm_directconv.case import Case
from tvm_directconv.errors import ArgumentError, BlockingError, WorkloadError
from tvm_directconv.layout import WeightLayout
from tvm_directconv.precision import PRECISIONS
from tvm_directconv.quantization import border_classes
from tvm_directconv.tiling import Tiling

HERE = ["native", "x86-64-v2", "haswell"]
ELSEWHERE = ["neoverse-n2", "armv7", "rv64gcv"]
ODD = (
    "uint8_ic64ih14oc64oh14kh3ph1",
    "uint8_ic24ih13oc33oh13kh3ph1",  # Neither words nor vectors are full.
    "int8_ic3ih27oc16oh13kh5sh2ph1",
    "uint8_ic18ih15oc8kh1sh2",
    "int8_g24ic24ih9oc24oh9kh3ph1",
    "uint8_g4ic32ih9oc48oh9kh3ph1",
    "uint8_g2ic12ih9oc10oh9kh3ph1",  # Groups of no whole words.
    "int8_g2ic32ih5iw19oc2kh1sh2",  # Lanes of different groups.
    "int8_ic32ih27oc17kh3dh3ph4",
    "uint8_mb2ic20ih6oc7oh6kh7ph3",  # Every row reads padding.
)


def a_quantization(workload: dc.ConvWorkload, output: str, seed: int) -> dc.Quantization:
    """Return scales by channel with which outputs use all of their range, and zero points."""
    rng = np.random.default_rng(seed)
    products = np.prod(workload.weight_shape[1:])
    zero_points = [
        int(rng.integers(np.iinfo(t).min, np.iinfo(t).max)) for t in (workload.dtype, output)
    ]
    scales = rng.uniform(0.001, 0.01, workload.out_channels).astype(np.float32)
    spread = 0.02 * 0.005 * np.sqrt(products) * 73 * 73 / 50
    return dc.Quantization(
        0.02,
        zero_points[0],
        scales,
        float(np.float32(spread)),
        zero_points[1],
        residual_scale=float(np.float32(0.7 * spread)),
        residual_zero_point=zero_points[0],
        sum_scale=float(np.float32(1.3 * spread)),
        sum_zero_point=zero_points[1],
    )


def random_operands_of(workload: dc.ConvWorkload, epilogue: dc.Epilogue) -> dict[str, np.ndarray]:
    """Return plain operands that are as large as sums and outputs may be."""
    rng, info = np.random.default_rng(1), np.iinfo(epilogue.requantize)
    operands = {"bias": rng.integers(-5000, 5000, workload.out_channels).astype(np.int32)}
    if epilogue.residual:
        operands["residual"] = rng.integers(
            info.min, info.max, workload.output_shape, info.dtype, endpoint=True
        )
    return operands


# Emulated ones take turns, but for those whose code is like no other's.
CASES = [(text, name) for text in ODD for name in [*HERE, "cortex-a53", "cortex-a76"]]
CASES += [(text, ELSEWHERE[number % len(ELSEWHERE)]) for number, text in enumerate(ODD)]
CASES += [(text, "armv7") for text in ODD[::2]]


@pytest.mark.parametrize(("text", "device"), dict.fromkeys(CASES))
def test_requantised_as_by_onnxruntime(text: str, device: str, tmp_path: Path) -> None:
    workload = dc.ConvWorkload.parse(text)
    output = workload.dtype  # ONNX Runtime has no other pairs of these.
    residual = text.endswith("ph1")
    epilogue = dc.Epilogue(bias=True, residual=residual, zero_point=True, requantize=output)
    conv = dc.build(workload, device, epilogue=epilogue)
    x, weight = dc.random_tensors(workload, 0)
    operands = random_operands_of(workload, epilogue)
    meaning = a_quantization(workload, output, 2)
    packed = conv.pack_operands(weight, meaning, **operands)
    found = output_of(
        conv, tmp_path, conv.pack_input(x), conv.pack_weight(weight), *packed.values()
    )
    assert len(np.unique(found)) > min(100, found.size // 8)
    sums = dc.conv2d_reference(x.astype(np.int64) - meaning.input_zero_point, weight, workload)
    np.testing.assert_array_equal(found, dc.epilogue_reference(sums, epilogue, meaning, **operands))
    expected = qlinear_conv(workload, x, weight, meaning, **operands)
    np.testing.assert_array_equal(found, expected)


RESIDUALS = [(name, False) for name in ("native", "x86-64-v2", "cortex-a53", "armv7", "rv64gcv")]
RESIDUALS += [(name, True) for name in ("native", "x86-64-v2", "cortex-a76")]


@pytest.mark.parametrize(("device", "first"), RESIDUALS)
def test_residuals_are_added_as_by_onnxruntime(device: str, first: bool, tmp_path: Path) -> None:
    # With these, any other order or rounding of the four products differs in some output.
    scale, residual_scale = float(np.float32(0.05554089)), float(np.float32(0.032667097))
    meaning = dc.Quantization(
        scale, 102, 1.0, scale, 102, residual_scale, 33, float(np.float32(0.08233367)), 121
    )
    workload = dc.ConvWorkload.parse("uint8_ic1ih256oc1oh256kh1")
    named = "residual_first" if first else "residual"
    epilogue = dc.Epilogue.parse(f"{named},zero_point,requantize=uint8")
    conv = dc.build(workload, device, epilogue=epilogue)
    x, residual = (
        np.ascontiguousarray(numbers, np.uint8)[np.newaxis, np.newaxis]
        for numbers in np.mgrid[:256, :256]
    )
    weight = np.ones(workload.weight_shape, np.int8)
    packed = conv.pack_operands(weight, meaning, residual=residual)
    found = output_of(
        conv, tmp_path, conv.pack_input(x), conv.pack_weight(weight), *packed.values()
    )
    expected = qlinear_conv(workload, x, weight, meaning, None, residual, first)
    np.testing.assert_array_equal(found, expected)
    sums = dc.conv2d_reference(x.astype(np.int64) - 102, weight, workload)
    wanted = dc.epilogue_reference(sums, epilogue, meaning, residual=residual)
    np.testing.assert_array_equal(wanted, expected)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NCHW8c", "NCHW4c", "NCHW6c"])
@pytest.mark.parametrize("text", ["uint8_ic24ih13oc33oh13kh3ph1", "uint8_ic3ih13oc20kh3"])
def test_sums_are_exact_in_all_layouts(text: str, layout: str) -> None:
    workload = dc.ConvWorkload.parse(text)
    conv = dc.build(workload, "native", threads=2, input_layout=layout)
    x, weight = dc.random_tensors(workload, 0)
    weight.ravel()[::5] = -128
    assert x.max() == 255
    found = conv(x, weight)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, dc.conv2d_reference(x, weight, workload))


def test_without_a_zero_point_there_is_one_bias_for_all_rows() -> None:
    workload = dc.ConvWorkload.parse("uint8_ic16ih9oc16oh9kh3ph1")
    for text, shape in (("bias,relu", (1, 16)), ("zero_point", (1, 3, 3, 16))):
        conv = dc.build(workload, "x86-64-v4", epilogue=dc.Epilogue.parse(text))
        assert conv.manifest.operands()["bias"].shape == shape
    x, weight = dc.random_tensors(workload, 0)
    meaning = dc.Quantization(input_zero_point=7)
    expected = dc.conv2d_reference(x.astype(int) - 7, weight, workload)
    np.testing.assert_array_equal(conv(x, weight, meaning), expected)
    assert conv(x, weight).dtype == np.int32


def test_activations_are_limits() -> None:
    workload = dc.ConvWorkload.parse("uint8_ic16ih9oc16oh9kh3ph1")
    x, weight = dc.random_tensors(workload, 0)
    sums = dc.conv2d_reference(x, weight, workload)
    meaning = dc.Quantization(0.01, 0, 0.02, 0.05, 30)
    found = {}
    for activation in ("none", "relu", "relu6"):
        epilogue = dc.Epilogue(activation=activation, requantize="uint8")
        conv = dc.build(workload, "native", epilogue=epilogue)
        found[activation] = conv(x, weight, meaning)
        expected = dc.epilogue_reference(sums, epilogue, meaning)
        np.testing.assert_array_equal(found[activation], expected)
    assert found["none"].min() == 0 and found["relu"].min() == 30
    assert found["relu6"].max() == 150 and found["relu"].max() == 255


def test_narrower_tiles_begin_within_a_block() -> None:
    workload = dc.ConvWorkload.parse("uint8_ic16ih6oc40oh6kh3ph1")
    blocking = dict(lanes=4, oc_vectors=4, ow_tile=2, ic_block=4)
    conv = dc.build(workload, "x86-64-v2", blocking=blocking, input_layout="NCHW")
    assert conv.manifest.output_layout.block == 16  # Tiles have 4, 3 and 3 vectors.
    x, weight = dc.random_tensors(workload, 0)
    np.testing.assert_array_equal(conv(x, weight), dc.conv2d_reference(x, weight, workload))


def test_sums_of_16_bits_have_room_for_all_weights_but_one(tmp_path: Path) -> None:
    workload = dc.ConvWorkload.parse("int8_ic16ih5oc16kh3")
    conv = dc.build(workload, "cortex-a53")
    assert str(conv.manifest.weight_layout).endswith("2i4o2i")
    x, weight = (np.full(s, -128, np.int8) for s in (workload.input_shape, workload.weight_shape))
    with pytest.raises(ArgumentError, match="the weight has -128: expected -127 or more, of which"):
        conv.pack_weight(weight)
    weight[:] = -127
    found = output_of(conv, tmp_path, conv.pack_input(x), conv.pack_weight(weight))
    np.testing.assert_array_equal(found, np.full(found.shape, 128 * 127 * 16 * 9))
    # Two of these and their sum would be 2^15 in 16 bits; pairs of 32 bits have room for it.
    plain = dc.build(workload, "haswell")
    assert (plain(x, x[0, :1, :3, :3] * np.ones_like(weight)) == 2**14 * 16 * 9).all()


def test_ties_go_to_even_numbers() -> None:
    workload = dc.ConvWorkload.parse("int8_ic4ih4oc16kh1")
    conv = dc.build(workload, "native", epilogue=dc.Epilogue(requantize="int8"))
    x = np.zeros(workload.input_shape, np.int8)
    x[0, 0] = np.arange(-8, 8).reshape(4, 4)
    weight = np.zeros(workload.weight_shape, np.int8)
    weight[:, 0] = 1
    found = conv(x, weight, dc.Quantization(output_scale=2.0))
    np.testing.assert_array_equal(found[0, 0].ravel(), np.rint(np.arange(-8, 8) / 2))


def test_borders_have_as_many_classes_as_sets_of_taps() -> None:
    far = dc.ConvWorkload.parse("uint8_ic16ih33oc16oh33kh3ph24dh23")
    assert [(c.first, c.taps) for c in border_classes(far, 0)] == [
        (0, (1, 2)),
        (9, (1,)),
        (24, (0, 1)),
    ]
    small = dc.ConvWorkload.parse("uint8_ic16ih2oc16oh2kh5ph2")
    assert [c.taps for c in border_classes(small, 1)] == [(2, 3), (1, 2)]


_MULTIPLIES = {
    "cortex-a76": r"sdot\s+v\d+\.4s, .*\.4b\[\d\]",
    "neoverse-n1": r"sdot\s+v\d+\.4s, .*\.4b\[\d\]",
    "apple-m1": r"sdot\s+v\d+\.4s",
    "neoverse-n2": r"usmmla\s+v\d+\.4s",
    "neoverse-v1": r"usmmla\s+v\d+\.4s",
    "icelake-server": r"vpdpbusd\s.*zmm",
    "alderlake": r"\{vex\}\s+vpdpbusd\s.*ymm",
    "arrowlake": r"\{vex\}\s+vpdpbusd\s.*ymm",
    "skylake-avx512": r"vpmaddwd\s.*zmm",
    "haswell": r"vpmaddwd\s.*ymm",
    "x86-64-v2": r"pmaddwd\s.*xmm",
    "cortex-a72": r"smlal2?\s+v\d+\.8h",
    "cortex-a53": r"smlal2?\s+v\d+\.8h",
    "armv7": r"vmlal\.s8\s+q",
}


@pytest.mark.parametrize("device", _MULTIPLIES)
def test_several_channels_at_once_and_nothing_spills(device: str) -> None:
    epilogue = dc.Epilogue(bias=True, requantize="uint8")
    mnemonic = _MULTIPLIES[device]
    for text in ("ic64ih56oc64oh56kh3ph1", "ic256ih14oc1024oh14kh1", "ic512ih7oc512oh7kh3ph1"):
        conv = dc.build(f"uint8_{text}", device, blocking="model", epilogue=epilogue)
        code = conv.assembly()
        depth = 8 if "mmla" in mnemonic else 4
        assert re.search(mnemonic, code) and conv.manifest.instruction.depth == depth
        assert not re.search(r"\bfmla\b|vfmadd", code)
        loops = innermost_loops(code, dc.device(device).triple)
        assert loops and not [loop for loop in loops if loop.spills]


@pytest.mark.parametrize(
    ("device", "move", "most"), [("cortex-a72", r"tbl\b", 1), ("armv7", r"vdup\.16\b", 2)]
)
def test_pixels_are_loaded_as_vectors_where_products_are_added_in_16_bits(
    device: str, move: str, most: int
) -> None:
    code = dc.build("int8_ic64ih28oc64oh28kh1", device, blocking="model").assembly()
    loops = innermost_loops(code, dc.device(device).triple)
    loop = max(loops, key=lambda loop: sum("mull" in line for line in loop.body))
    counts = {
        kind: sum(bool(re.match(kind, line)) for line in loop.body)
        for kind in (r"v?s?mull", r"v?s?mlal", r"sadalp|vpadal", move)
    }
    products, again, sums, moved = counts.values()
    assert products == again == sums > 0
    # Of four vectors of output channels, each pixel is permuted once, and not in other ways.
    assert moved == most * products // 4
    assert not [line for line in loop.body if re.match(r"ext|uzp|zip|vmov|dup", line)]


PAIRS = (
    ("int8_ic64ih7oc72oh7kh3ph1", None),  # Of seven columns, one is alone; narrower tiles.
    ("uint8_ic24ih13oc20oh13kh3ph1", "NHWC"),
    ("int8_ic8ih9oc33oh9kh5ph2", None),  # Blocks of one word.
    ("uint8_g2ic48ih9oc24oh4kh3sh2", None),
    ("int8_ic32ih3oc24oh4kh2ph1", None),  # In no column of the kernel all pixels are inside.
    ("uint8_ic16ih60oc16oh60kh7ph3", None),
    ("int8_ic40ih1oc16oh1kh1", "NCHW8c"),
)


@pytest.mark.parametrize(("text", "layout"), PAIRS)
def test_pairs_of_pixels_are_exact(text: str, layout: str | None, tmp_path: Path) -> None:
    workload = dc.ConvWorkload.parse(text)
    conv = dc.build(workload, "neoverse-n2", input_layout=layout, blocking="model")
    assert "mmla" in conv.manifest.instruction.name
    x, weight = dc.random_tensors(workload, 0)
    weight.ravel()[::5] = -128
    found = output_of(conv, tmp_path, conv.pack_input(x), conv.pack_weight(weight))
    np.testing.assert_array_equal(found, dc.conv2d_reference(x, weight, workload))


def test_pairs_that_are_not_whole_or_lie_apart_spill_nothing() -> None:
    # Seven columns, rows of 14 in tiles of 4, 4, 3 and 3, and strides.
    texts = "ic32ih14oc64oh14kh5ph2", "ic96ih14oc208oh14kh3ph1", "ic256ih56oc512oh28kh1sh2"
    for text in texts:
        conv = dc.build(f"int8_{text}", "neoverse-n2", blocking="model")
        loops = innermost_loops(conv.assembly(), dc.device("neoverse-n2").triple)
        assert loops and not any(loop.spills for loop in loops)


def test_what_pairs_of_pixels_need() -> None:
    case = Case.of("int8_ic64ih56oc256oh56kh1", "neoverse-n2")
    tiling = Tiling(case, choose(case))
    # Sums, four pixels, two pairs of these, and two vectors of weights on their way.
    assert (tiling.blocking.brief, tiling.registers) == ("24 x 4, ic_inside", 24 + 4 + 2 + 2)
    assert tiling.pixel_loads(4) == (2, 0) and tiling.pixel_moves(4) == 2
    assert tiling.weight_loads(4) == 6 * 2 and tiling.pixel_moves(3) == 2
    # Images, groups that are no whole words, and vectors of several groups.
    for text, depth in (("ic3ih9oc16kh3", 4), ("g2ic24ih9oc16kh3", 4), ("g4ic64ih9oc24kh3", 4)):
        assert Case.of(f"int8_{text}", "neoverse-n2").depth == depth


def test_what_words_need() -> None:
    for layout, depth in (("NHWC", 4), ("NCHW16c", 4), ("NCHW", 1)):
        case = Case.of("uint8_ic24ih9oc16kh3", "cortex-a76", input_layout=layout)
        assert case.depth == depth
    assert Case.of("uint8_ic18ih9oc16kh3", "cortex-a76", input_layout="NHWC").depth == 1
    assert Case.of("uint8_g6ic36ih9oc36kh3", "cortex-a76").depth == 1
    assert Case.of("uint8_ic24ih9oc16kh3", "cortex-a76", input_layout="NCHW6c").depth == 1
    with pytest.raises(
        BlockingError, match="sums of uint8 are not stored before they are complete"
    ):
        dc.build(
            "uint8_ic64ih9oc16kh3",
            "cortex-a72",
            blocking={
                "lanes": 4,
                "oc_vectors": 2,
                "ow_tile": 3,
                "ic_block": 16,
                "loop_order": "ic_outside",
            },
        )


@pytest.mark.parametrize(
    ("text", "epilogue", "message"),
    [
        ("ic16ih9oc16kh3", "zero_point", "is for whole numbers: expected no zero_point"),
        ("float16_ic16ih9oc16kh3", "requantize=int8", "expected no zero_point and no requantize"),
        ("uint8_ic16ih9oc16kh3", "sigmoid", "expected one of none, relu, relu6 for uint8"),
    ],
)
def test_epilogues_of_the_wrong_numbers(text: str, epilogue: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        dc.build(text, "cortex-a76", epilogue=dc.Epilogue.parse(epilogue))


def test_quantizations_that_cannot_be() -> None:
    workload = dc.ConvWorkload.parse("uint8_ic16ih9oc16kh3")
    x, weight = dc.random_tensors(workload, 0)
    conv = dc.build(workload, "haswell", epilogue=dc.Epilogue(requantize="uint8"))
    for meaning, message in (
        (dc.Quantization(input_zero_point=3), "built without a zero_point in its epilogue"),
        (dc.Quantization(input_zero_point=256), "input_zero_point is 256: expected one of uint8"),
        (dc.Quantization(output_zero_point=-1), "output_zero_point is -1: expected one of uint8"),
        (dc.Quantization(weight_scale=np.ones(3)), r"weight_scale has shape \(3,\)"),
    ):
        with pytest.raises(ArgumentError, match=message):
            conv(x, weight, meaning)
    for wrong in (0.0, -1.0, float("nan"), "1"):
        with pytest.raises(ArgumentError, match=r"output_scale is .*: expected positive numbers"):
            dc.Quantization(output_scale=wrong)
    plain = dc.build("ic16ih9oc16kh3", "haswell")
    with pytest.raises(ArgumentError, match="a quantization is given: expected none for float32"):
        plain.pack_operands(weight, dc.Quantization())


@pytest.mark.parametrize(
    ("device", "parts"),
    [
        ("haswell", ["vpmaddwd"] * 2 + ["vpaddd"] * 2),
        ("skylake-avx512", ["vpmaddwd"] * 2 + ["vpaddd"] * 2),
        ("x86-64-v2", ["movdqa", "pmaddwd"] * 2 + ["paddd"] * 2),
        ("cortex-a72", ["smull", "smlal", "sadalp"]),
        ("armv7", ["vmull.s8", "vmlal.s8", "vpadal.s16"]),
        ("cortex-a76", ["sdot"]),
        ("znver4", ["vpdpbusd"]),
    ],
)
def test_bursts_repeat_all_parts_of_an_instruction(device: str, parts: list[str]) -> None:
    target = dc.device(device)
    for precision in (PRECISIONS["uint8"], PRECISIONS["int8"]):
        code = BurstCode(target, 1, precision)
        assembly = code.module.inspect_source("asm")
        (loop,) = innermost_loops(assembly, target.triple)
        found = Counter(line.split()[0] for line in loop.body)
        (sums,) = {found.pop(name) / parts.count(name) for name in set(parts)}
        assert sums >= 4 and code.flops % (8 * target.peak(precision).lanes * sums) == 0
        assert found.total() <= 2 and not loop.spills  # It counts, and jumps.
    if target.is_host_runnable:
        assert Burst(target, 1, PRECISIONS["int8"])() > 1


# Words of rows of the kernel: the last one lacks some, or all pixels of some lie in the padding.
DEPTHWISE = (
    "uint8_g40ic40ih9iw17oc40kh3ph1",
    "int8_g16ic16ih15oc16kh5sh2ph2",
    "int8_g40ic40ih13iw17oc40kh3kw5dh2ph2",
    "uint8_mb2g20ic20ih6oc20oh6kh7ph3",
    "uint8_g4ic4ih9oc4kh4sh3ph2",
    "int8_g16ic16ih3oc16kh2",
    # Some places of words, or all, are in the padding for every output.
    "uint8_g8ic8ih2iw15oc8kh3sh2ph1",
    "int8_g16ic16ih1iw9oc16kh5ph2",
)


@pytest.mark.parametrize(
    ("text", "device"),
    [
        *((text, "native") for text in DEPTHWISE),
        *((text, "cortex-a76") for text in DEPTHWISE[:3]),
        (DEPTHWISE[3], "neoverse-n2"),
    ],
)
def test_depthwise_convolutions_multiply_words_of_rows(
    text: str, device: str, tmp_path: Path
) -> None:
    workload = dc.ConvWorkload.parse(text)
    case = Case.of(workload, device)
    epilogue = dc.Epilogue(bias=True, zero_point=True, requantize=workload.dtype)
    conv = dc.build(workload, device, epilogue=epilogue)
    depth = conv.manifest.instruction.depth
    assert (case.depth, case.rows) == (1, depth)
    x, weight = dc.random_tensors(workload, 0)
    bias = np.arange(workload.out_channels, dtype=np.int32)
    meaning = a_quantization(workload, workload.dtype, 2)
    packed = conv.pack_operands(weight, meaning, bias=bias)
    found = output_of(
        conv, tmp_path, conv.pack_input(x), conv.pack_weight(weight), *packed.values()
    )
    expected = qlinear_conv(workload, x, weight, meaning, bias=bias)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 30


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NCHW8c", "NCHW4c"])
def test_rows_are_interleaved_in_all_layouts(layout: str) -> None:
    workload = dc.ConvWorkload.parse("int8_g24ic24ih9oc24oh9kh3ph1")
    # Vectors that cross blocks of channels, and one that is alone.
    lanes = 4 if layout == "NCHW4c" else 8
    for oc_vectors in (1, 3):
        blocking = dict(lanes=lanes, oc_vectors=oc_vectors, ow_tile=3, ic_block=1, kw_unroll=True)
        conv = dc.build(workload, "native", blocking=blocking, input_layout=layout)
        x, weight = dc.random_tensors(workload, 0)
        np.testing.assert_array_equal(conv(x, weight), dc.conv2d_reference(x, weight, workload))


@pytest.mark.parametrize("device", ["cortex-a76", "znver4"])
def test_words_of_rows_do_not_spill(device: str) -> None:
    triple = dc.device(device).triple
    for text in ("int8_g64ic64ih112oc64oh56kh3sh2ph1", "int8_g120ic120ih28oc120kh5ph2"):
        conv = dc.build(text, device, blocking="model")
        loops = innermost_loops(conv.assembly(), triple)
        assert loops and not [loop for loop in loops if loop.spills]


def test_words_of_rows_need_columns_side_by_side() -> None:
    blocking = {"lanes": 4, "oc_vectors": 4, "ow_tile": 3, "ic_block": 1}
    with pytest.raises(BlockingError, match="kw_unroll is off: words of rows are made for all"):
        dc.build("uint8_g16ic16ih9oc16kh3", "cortex-a76", blocking=blocking)
    for shape in ("g16ic16ih9oc16kh1kw3", "g16ic16ih40oc16kh11", "g8ic8ih9oc16kh3"):
        assert Case.of(f"uint8_{shape}", "cortex-a76").rates[0].instruction.depth == 1
    assert Case.of("uint8_g16ic16ih9oc16kh3", "cortex-a76", input_layout="NCHW").rows == 1
    # Instructions of several parts multiply one pixel.
    assert Case.of("uint8_g16ic16ih9oc16kh3", "x86-64-v4").rows == 1


def test_weights_in_words_of_rows() -> None:
    layout = WeightLayout(1, 4, 4, of_rows=True)
    plain = np.arange(6 * 5 * 3, dtype=np.int8).reshape(6, 1, 5, 3)
    packed = layout.pack(plain)
    assert (str(layout), packed.shape) == ("OIHW1i4o4h", (2, 1, 2, 3, 1, 4, 4))
    assert packed[1, 0, 0, 2, 0, 1].tolist() == plain[5, 0, :4, 2].tolist()
    assert packed[0, 0, 1, 1, 0, 3].tolist() == [plain[3, 0, 4, 1], 0, 0, 0]
    assert not packed[1, :, :, :, :, 2:].any()
    halves = WeightLayout(1, 4, 4, 2, of_rows=True)
    assert str(halves) == "OIHW1i2h4o2h"
    assert halves.pack(plain)[0, 0, 0, 0].ravel()[:4].tolist() == [0, 3, 15, 18]


def test_epilogues_take_few_instructions() -> None:
    epilogue = dc.Epilogue(bias=True, requantize="uint8")
    conv = dc.build("uint8_ic16ih20oc32oh20kh1", "cortex-a76", blocking="model", epilogue=epilogue)
    code = conv.assembly()
    # 16 outputs at once, which begin as the bias; alone, four are stored from a part of a register.
    assert re.search(r"uzp1\s+v\d+\.16b", code) and re.search(r"\sst[rpu]+\s+q", code)
    assert not re.search(r"\sstr\s+s\d", code)
    assert len(re.findall(r"\smovi\s+v\d+\.2d, #0", code)) < conv.blocking.ow_tile
    narrow = dc.build("uint8_ic16ih20oc4oh20kh1", "cortex-a76", blocking="model", epilogue=epilogue)
    assert re.search(r"\sstr\s+s\d", narrow.assembly())
