"""Convolutions stored in 16 bits and summed in single precision: loads convert, or dot products."""

import json
import re
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import output_of

import tvm_directconv as dc
from tvm_directconv.assembly import innermost_loops
from tvm_directconv.bench.compare import Comparison
from tvm_directconv.candidates import choose
from tvm_directconv.case import Case
from tvm_directconv.errors import ArgumentError, BlockingError, DeviceError
from tvm_directconv.model import estimate
from tvm_directconv.reference import epilogue_reference
from tvm_directconv.tiling import Tiling
from tvm_directconv.tuning.runners.command import CommandRunner

# Lanes and columns that do not divide, images in plain layouts, depthwise, groups, dilation.
ODD = (
    "ic64ih13oc72oh13kh3ph1",
    "ic40ih15oc33kh1sh2",
    "ic3ih33oc20kh5sh2ph1",
    "g24ic24ih17oc24oh17kh3ph1",
    "g4ic32ih9oc48oh9kh3ph1",
    "ic24ih27oc17kh3dh1ph2",
    "ic48ih7oc112oh7kh3ph1",
)
STORED = ("float16acc32", "bfloat16")
EMULATED = ("cortex-a53", "cortex-a72", "armv7")
EVERYWHERE = [
    *(("native", STORED[0], text) for text in ODD),
    *(("native", STORED[1], text) for text in ODD[::3]),
    *((name, stored, ODD[0]) for name in ("x86-64-v3", "armv7") for stored in STORED),
    *((name, STORED[0], text) for name, text in zip(EMULATED, ODD[1:4], strict=True)),
    ("cortex-a72", STORED[1], ODD[2]),
    *(("neoverse-n2", STORED[0], text) for text in ODD[2:6]),
]


def workload_of(stored: str, text: str) -> dc.ConvWorkload:
    return replace(dc.ConvWorkload.parse(text), dtype=stored)


def computed(conv: dc.CompiledConv, folder: Path, x: np.ndarray, weight: np.ndarray, **operands):  # type: ignore[no-untyped-def]
    """Return the output for plain arrays, of this machine or of an emulator."""
    packed = conv.pack_operands(weight, **operands).values()
    return output_of(conv, folder, conv.pack_input(x), conv.pack_weight(weight), *packed)


def whole_numbers(workload: dc.ConvWorkload) -> tuple[np.ndarray, np.ndarray]:
    """Return an input and weights of which single precision holds every sum, 16 bits not."""
    rng = np.random.default_rng(3)
    x = rng.integers(-64, 65, workload.input_shape).astype(workload.precision.pixel.name)
    return x, rng.integers(-8, 9, workload.weight_shape).astype(x.dtype)


@pytest.mark.parametrize(("name", "stored", "text"), EVERYWHERE)
def test_only_the_output_is_rounded(name: str, stored: str, text: str, tmp_path: Path) -> None:
    workload = workload_of(stored, text)
    conv = dc.build(workload, name, threads=2)
    x, weight = whole_numbers(workload)
    exact = dc.conv2d_reference(x, weight, workload)
    expected = exact.astype(x.dtype)  # to nearest even
    assert (expected != exact).any() and np.isfinite(expected).all()
    np.testing.assert_array_equal(computed(conv, tmp_path, x, weight), expected)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ["native", "cortex-a72"])
def test_images_in_plain_layouts(name: str, layout: str, tmp_path: Path) -> None:
    workload = workload_of(STORED[0], ODD[0])
    conv = dc.build(workload, name, input_layout=layout)
    x, weight = dc.random_tensors(workload, 0, integers=True)
    expected = dc.conv2d_reference(x, weight, workload)
    np.testing.assert_array_equal(computed(conv, tmp_path, x, weight), expected)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(
    ("name", "denormals"),
    [
        *((name, "flush") for name in ("native", "cortex-a72", "armv7", "neoverse-n2")),
        *((name, "keep") for name in ("native", "neoverse-n2")),
    ],
)
def test_all_numbers_are_converted_right(
    name: str, denormals: str, stored: str, tmp_path: Path
) -> None:
    workload = workload_of(stored, "g16ic16ih64oc16kh1")
    conv = dc.build(workload, name, denormals=denormals)
    number = np.dtype(workload.precision.pixel.name)
    x = np.arange(2**16).astype(np.uint16).view(number).reshape(workload.input_shape)
    weight = np.ones(workload.weight_shape, number)
    # Whole numbers beside it in bfloat16, down to denormal halves, and up to infinity.
    for factor in (1 + 2**-7, 2**-10, 4):
        weight[...] = factor
        with np.errstate(all="ignore"):
            inputs = x.astype(np.float32)
            exact = inputs * np.float32(factor)
            if denormals == "flush":  # Those of single precision.
                exact[(np.abs(exact) < 2**-126) | (np.abs(inputs) < 2**-126)] = 0
            expected = exact.astype(number).astype(np.float32)
        # NaN at the same places, and 0 is equal to -0.
        found = computed(conv, tmp_path, x, weight).astype(np.float32)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "stored", "bits"),
    [
        ("native", "float16acc32", 11),
        ("native", "bfloat16", 8),
        ("cortex-a72", "bfloat16", 8),
        ("neoverse-n2", "bfloat16", 8),
        ("neoverse-n2", "float16acc32", 11),
    ],
)
def test_errors_are_those_of_the_rounding_at_the_end(
    name: str, stored: str, bits: int, tmp_path: Path
) -> None:
    workload = workload_of(stored, ODD[6])
    conv = dc.build(workload, name)
    x, weight = dc.random_tensors(workload, 0)
    exact = dc.conv2d_reference(x, weight, workload)
    errors = np.abs(computed(conv, tmp_path, x, weight).astype(np.float64) - exact)
    products = dc.conv2d_reference(np.abs(x), np.abs(weight), workload)
    # Half of the last place of the output, and of single precision of each sum on the way; all of
    # it where these are rounded to odd numbers.
    each = 2**-23 if conv.manifest.instruction.name.startswith("bfdot") else 2**-24
    bound = 2.0**-bits * np.abs(exact) + 2**-25 + each * 48 * 9 * products
    assert (errors <= bound).all() and 2.0**-bits < errors.max() / 2**3 < 2.0 ** (3 - bits)


@pytest.mark.parametrize(
    ("name", "stored"), [("native", STORED[0]), ("native", STORED[1]), ("armv7", STORED[0])]
)
def test_epilogues_are_computed_before_rounding(name: str, stored: str, tmp_path: Path) -> None:
    workload = workload_of(stored, ODD[0])
    epilogue = dc.Epilogue(bias=True, residual=True, activation="relu")
    conv = dc.build(workload, name, epilogue=epilogue)
    x, weight = whole_numbers(workload)
    rng = np.random.default_rng(0)
    operands = {
        "bias": rng.integers(-(2**16), 2**16, workload.out_channels).astype(np.float32) / 16,
        "residual": rng.integers(-64, 64, workload.output_shape).astype(x.dtype),
    }
    sums = dc.conv2d_reference(x, weight, workload)
    expected = epilogue_reference(sums, epilogue, **operands).astype(x.dtype)
    found = computed(conv, tmp_path, x, weight, **operands)
    np.testing.assert_array_equal(found, expected)


CONVERTED = {
    "float16acc32": {"x86": "vcvtph2ps", "cortex": "fcvtl", "armv7": r"vcvt\.f32\.f16"},
    "bfloat16": {"x86": "vpslld", "cortex": "shll", "armv7": r"vsh(l|ll)\."},
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", ["cortex-a72", "cortex-a76", "armv7", "x86-64-v3", "x86-64-v4"])
def test_each_load_is_converted_once(name: str, stored: str) -> None:
    workload = workload_of(stored, "ic64ih8iw60oc240oh8ow60kh1")
    conv = dc.build(workload, name, blocking="model")
    b = conv.blocking
    loops = innermost_loops(conv.assembly(), dc.device(name).triple)
    assert loops and not any(loop.spills for loop in loops)
    longest = max(loops, key=lambda loop: loop.fmas)
    (pattern,) = (text for kind, text in CONVERTED[stored].items() if name.startswith(kind))
    conversions = sum(bool(re.match(pattern, line)) for line in longest.body)
    steps = longest.fmas / b.oc_vectors / b.ow_tile
    tiling = Tiling(Case.of(workload, name), b)
    pixels = sum(tiling.pixel_loads(b.ow_tile))
    assert conversions == steps * (b.oc_vectors + pixels)
    assert pixels == b.ow_tile / (4 if name.startswith("cortex") else 1)
    # Neither number by number, nor by functions that TVM adds for processors that cannot.
    one_by_one = r"\bfcvt\s|\bvcvt[bt]\b|(bl|callq?)\s+__(extend|trunc|gnu)"
    assert not re.search(one_by_one, conv.assembly())


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", ["cortex-a53", "armv7", "haswell", "znver4"])
def test_nothing_spills(name: str, stored: str) -> None:
    texts = (
        ODD[3],
        "g64ic64ih112oc64oh56kh3sh2ph1",
        "ic192ih28oc16oh28kh1",
        "ic64ih28oc96oh28kh3ph1",
    )
    for text in texts:
        conv = dc.build(workload_of(stored, text), name, blocking="model")
        loops = innermost_loops(conv.assembly(), dc.device(name).triple)
        assert loops and not any(loop.spills for loop in loops), text


def test_the_model_counts_conversions() -> None:
    single = Case.of("ic64ih56oc64oh56kh3ph1", "cortex-a72")
    halves = replace(single, workload=replace(single.workload, dtype="float16acc32"))
    b = replace(choose(halves), oc_vectors=2, ow_tile=8)
    tiling = Tiling(halves, b)
    assert single.conversion is None and Tiling(single, b).conversion_cycles(8) == 0
    # Of eight columns, two vectors of pixels for a step, and two of weights.
    assert tiling.conversion_cycles(8) == pytest.approx(4 / 0.67)
    more = estimate(tiling).cycles / estimate(Tiling(single, b)).cycles
    assert 1.2 < more < 1 + 4 / 0.67 / 16
    text = dc.explain(halves.workload, "cortex-a72")
    assert "what is loaded is converted from float16 by fcvtl v.4s: " in text


def test_outputs_that_do_not_keep_sums() -> None:
    case = Case.of(workload_of(STORED[0], ODD[0]), "cortex-a72")
    outside = replace(choose(case), ic_block=16, loop_order="ic_outside")
    with pytest.raises(BlockingError, match="sums of float16acc32 are not stored before they"):
        dc.build(case.workload, "cortex-a72", blocking=outside)
    text = dc.explain(case.workload, "cortex-a72")
    assert "no other order is possible: sums of float16acc32 are not" in text


def test_what_is_tuned_is_for_its_precision_alone(tmp_path: Path) -> None:
    halves, single = "float16acc32_ic32ih8oc64kh1", "ic32ih8oc64kh1"
    outcome = dc.tune(halves, trials=3, logs=tmp_path)
    (layer,) = outcome.layers
    assert layer.chosen is not None
    (log,) = tmp_path.glob("*.jsonl")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert {record["workload"] for record in records} == {str(dc.ConvWorkload.parse(halves))}
    assert "ok" in {record["status"] for record in records}
    with dc.use_logs(tmp_path):
        assert dc.build(halves).manifest.blocking_source.startswith("log ")
        assert dc.build(single).manifest.blocking_source == "model"


@pytest.mark.parametrize("text", [f"{stored}_{ODD[0]}" for stored in ("bfloat16", "float16")])
def test_candidates_are_compared_in_an_emulator(text: str, tmp_path: Path) -> None:
    conv = dc.build(text, "cortex-a76")
    command = "qemu-aarch64 -cpu cortex-a76 -L /usr/aarch64-linux-gnu {runner}"
    runner = CommandRunner(dc.device("cortex-a76"), command)
    try:
        found = runner.measure(conv.export(tmp_path / "conv.so"), None, 1)
        assert isinstance(found, Comparison)
    finally:
        runner.close()


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("name", ["x86-64-v2", "rv64gcv"])
def test_processors_that_cannot_convert(name: str, stored: str) -> None:
    with pytest.raises(DeviceError, match=f"'{name}' has no instruction for {stored}: expected a"):
        dc.build(workload_of(stored, ODD[0]), name)


def test_arrays_that_numpy_does_not_know() -> None:
    workload = workload_of("bfloat16", ODD[0])
    conv = dc.build(workload, "native")
    x, weight = dc.random_tensors(workload, 0, integers=True)
    y = conv(x, weight)
    assert x.dtype == weight.dtype == y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y, dc.conv2d_reference(x, weight, workload))
    with pytest.raises(ArgumentError, match="dtype float32: expected bfloat16"):
        conv(x.astype(np.float32), weight)
