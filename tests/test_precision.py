"""Precisions: the number types are part of whatever a convolution is known by, and of its sizes."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tvm_directconv as dc
from tvm_directconv import convolution
from tvm_directconv.candidates import choose
from tvm_directconv.case import Case
from tvm_directconv.compute import conv2d, symbol_of
from tvm_directconv.conv_manifest import ConvManifest
from tvm_directconv.emit import c_folder
from tvm_directconv.epilogue import OPERANDS, Epilogue
from tvm_directconv.errors import ArgumentError, LibraryError, LogError, WorkloadError
from tvm_directconv.layout import ActivationLayout, ChannelLayout, WeightLayout, aligned_zeros
from tvm_directconv.logs import log_file
from tvm_directconv.logs.record import Record
from tvm_directconv.network.operators import ConvAttributes
from tvm_directconv.precision import PRECISIONS, NumberType, Precision
from tvm_directconv.prediction import predict
from tvm_directconv.runtime import BoundCall
from tvm_directconv.specs import workloads

PLAIN = "ic64ih56oc64oh56kh3ph1"
MADE = f"made_{PLAIN}"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Precision:
    """One that there is not: sizes of all four types differ."""
    pixel, weight = NumberType("int8", 1, "i8", 2**7), NumberType("float16", 2, "half", 2**11)
    total, output = NumberType("int32", 4, "i32", 2**31), NumberType("float64", 8, "double", 2**53)
    precision = Precision("made", pixel, weight, total, output, epilogue=total)
    monkeypatch.setitem(PRECISIONS, "made", precision)
    return precision


@pytest.fixture
def pair(made: Precision) -> Iterator[tuple[dc.ConvWorkload, dc.ConvWorkload]]:
    """Two convolutions that differ in the number type only."""
    yield dc.ConvWorkload.parse(PLAIN), dc.ConvWorkload.parse(MADE)


Pair = tuple[dc.ConvWorkload, dc.ConvWorkload]


def test_descriptors_begin_with_the_type(pair: Pair) -> None:
    plain, made = pair
    assert made == replace(plain, dtype="made") != plain
    assert (str(plain), str(made)) == (PLAIN, MADE)
    assert dc.ConvWorkload.parse(f"float32_{PLAIN}") == plain
    assert made.to_line() == MADE and dc.ConvWorkload.parse(f"made__g1_{PLAIN}") == made
    named = replace(made, name="a:b", count=3)
    assert named.to_line() == f'{MADE}n"a:b*3"'
    read = dc.ConvWorkload.parse(named.to_line())
    assert (read, read.name, read.count) == (made, "a:b", 3)


def test_specs_may_have_the_type(pair: Pair, tmp_path: Path) -> None:
    plain, made = pair
    assert workloads(f"{MADE},float32_{PLAIN},{PLAIN}") == [made, plain]
    file = tmp_path / "mine.txt"
    file.write_text(f'{MADE}n"first"\n{PLAIN}n"second"\n')
    assert [(w.name, w.dtype) for w in workloads(f"@{file}")] == [
        ("first", "made"),
        ("second", "float32"),
    ]


TYPES = ", ".join(PRECISIONS)
KEYS = f"number types are {TYPES}, keys are g, mb, ic"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"flot32_{PLAIN}", f"unknown 'flot32' at character 1; {KEYS}"),
        (f"flot32_{PLAIN}", "did you mean 'float32'?"),
        (f"int4_{PLAIN}", f"unknown 'int4' at character 1; {KEYS}"),
        (f"Float32_{PLAIN}", "did you mean 'float32'?"),
        (f"double_{PLAIN}", f"unknown 'double' at character 1; {KEYS}"),
        (f"f32_{PLAIN}", f"unknown 'f32' at character 1; {KEYS}"),
        ("IC3_ih8oc4kh3", "did you mean 'ic'"),
        (f"float32{PLAIN}", "out of place"),
        (f"float32_float32_{PLAIN}", "the number type 'float32' at character 9 is out of place"),
        (f"{PLAIN}_float32", "a descriptor begins with it, and an underscore follows: float32_ic"),
        (f"{PLAIN}float32_", "the number type 'float32' at character 23 is out of place"),
        ("float32_", "missing 'ic', 'oc', 'ih', 'kh'"),
        ("ic3_ihh8oc4kh3", "key 'ih' at character 5 has no value"),
        ("icih8_oc4kh3", "key 'ic' at character 1 has no value"),
        ("id3_ih8oc4kh3", "'id' at character 1 belongs to 3-D"),
    ],
)
def test_wrong_types_in_descriptors(text: str, message: str) -> None:
    with pytest.raises(WorkloadError) as error:
        dc.ConvWorkload.parse(text)
    assert message in str(error.value) and f"descriptor '{text}': " in str(error.value)
    with pytest.raises(WorkloadError):
        workloads(text)


@pytest.mark.parametrize("text", [f"flot32_{PLAIN}", f"int4_{PLAIN}", f"bfloat15__{PLAIN}"])
def test_a_spec_with_a_wrong_type_is_no_network(text: str) -> None:
    with pytest.raises(WorkloadError, match=f"number types are {TYPES}, keys are"):
        workloads(text)


def test_networks_are_no_number_types() -> None:
    with pytest.raises(WorkloadError, match=r"unknown network 'mobilenet_v1'.*mobilenetv1'\?"):
        workloads("mobilenet_v1")


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (
            "float61",
            rf"dtype is 'float61'; expected one of {TYPES} \(did you mean 'float16'",
        ),
        ("int9", f"dtype is 'int9'; expected one of {TYPES}"),
        (np.float32, r"dtype is <class 'numpy.float32'>; expected one of float32"),
        (["float32"], r"dtype is \['float32'\]; expected one of float32"),
        (None, f"dtype is None; expected one of {TYPES}$"),
    ],
)
def test_wrong_types(dtype: object, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        replace(dc.ConvWorkload.parse(PLAIN), dtype=dtype)  # type: ignore[arg-type]


def test_the_message_names_all_types(made: Precision) -> None:
    with pytest.raises(WorkloadError, match=f"expected one of {TYPES}, made"):
        replace(dc.ConvWorkload.parse(PLAIN), dtype="int9")


def test_bytes_are_those_of_the_types(pair: Pair) -> None:
    plain, made = pair
    assert made.input_bytes == plain.input_bytes // 4 == 64 * 56 * 56
    assert made.weight_bytes == plain.weight_bytes // 2 == 2 * 64 * 64 * 9
    assert made.output_bytes == plain.output_bytes * 2 == 8 * 64 * 56 * 56
    assert made.im2col_bytes == plain.im2col_bytes // 4 == 64 * 9 * 56 * 56


def test_predictions_and_explanations_count_bytes_of_the_types(pair: Pair, made: Precision) -> None:
    haswell = dc.device("haswell")
    rates = haswell.rates()
    both = [
        *rates,
        *(replace(r, instruction=replace(r.instruction, precision=made)) for r in rates),
    ]
    device = replace(haswell, instructions=tuple(both))
    plain, other = predict(pair, device)
    assert plain.weight_bytes == 2 * other.weight_bytes == 4 * 64 * 64 * 9
    assert plain.activation_bytes == 4 * (64 + 64) * 56 * 56
    assert other.activation_bytes == (1 * 64 + 8 * 64) * 56 * 56
    text = dc.explain(pair[1], device)
    assert "weights: 64 x 3 x 3 x 64 float16, 72 KiB, fits L2" in text
    assert "input: 64 x 56 x 56 int8, 196 KiB, fits L2" in text
    assert f", {8 * 64 * 56 * 56:,} bytes\n" in text
    assert "together as many bytes as the plain layouts" in text


def test_c_sources_have_the_types(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(convolution, "object_code", lambda module: b"")
    monkeypatch.setattr(c_folder, "write_folder", lambda *arguments: given.append(arguments[1]))
    dc.CompiledConv(a_manifest(pair[1]), module=None).export_c(tmp_path)
    (program,) = given
    ports = [*program.inputs, *program.outputs]
    assert [port.dtype for port in ports] == ["int8", "float16", "float64"]
    (step,) = program.steps
    assert [(t.memory, t.dtype, t.shape) for t in step.operands] == [
        (memory, port.dtype, port.shape)
        for memory, port in zip(("input0", "input1", "output0"), ports, strict=True)
    ]


def test_symbols_and_attributes_of_networks_have_the_type(pair: Pair) -> None:
    assert [symbol_of(w) for w in pair] == [f"directconv_{PLAIN}", f"directconv_{MADE}"]
    for workload in pair:
        attributes = ConvAttributes(workload, Epilogue(bias=True))
        assert ConvAttributes.from_json(attributes.to_json()) == attributes


def test_operands_of_the_function_have_their_types(pair: Pair) -> None:
    layouts = ActivationLayout("NCHW8c"), WeightLayout(8, 8)
    plain, made = (conv2d(w, *layouts, Epilogue(bias=True)).script() for w in pair)
    wanted = {"x": "int8", "weight": "float16", "bias": "int32"}
    for name, number in wanted.items():
        for script, there in ((made, True), (plain, False)):
            (line,) = (line for line in script.splitlines() if "def main(" in line)
            parameter = line.partition(f"{name}: T.Buffer(")[2].partition(": ")[0]
            assert (f'"{number}"' in parameter) == there
    assert "Cast" not in plain


def a_record(workload: dc.ConvWorkload) -> Record:
    facts = dict(threads=1, input_layout="NCHW8c", status="timeout", seed=0, versions={})
    blocking = choose(Case.of(PLAIN, "haswell"))
    here = dict(cpu="a", cpu_name="b", cpu_device="haswell", date="2026-11-22T13:00:00Z")
    facts |= here | dict(measured_by="local")
    return Record(workload=workload, device="haswell", blocking=blocking, **facts)  # type: ignore


def test_logs_keep_types_apart(pair: Pair, tmp_path: Path) -> None:
    records = [a_record(workload) for workload in pair]
    assert [json.loads(r.to_line())["workload"] for r in records] == [PLAIN, MADE]
    assert [Record.from_line(r.to_line()) for r in records] == records
    assert records[0] != records[1]
    for record in records:
        path = log_file.append(record, tmp_path)
    families = log_file.load(path).families
    keys = [log_file.family(workload, "haswell") for workload in pair]
    assert [families[key] for key in keys] == [[record] for record in records]


def test_a_log_of_a_type_that_is_not_known_is_left_out() -> None:
    line = a_record(dc.ConvWorkload.parse(PLAIN)).to_line()
    assert Record.from_line(line.replace(PLAIN, f"float32_{PLAIN}")) == Record.from_line(line)
    with pytest.raises(LogError, match="unknown 'other8' at character 1; number types are"):
        Record.from_line(line.replace(PLAIN, f"other8_{PLAIN}"))


def a_manifest(workload: dc.ConvWorkload) -> ConvManifest:
    device, blocking = dc.device("haswell"), choose(Case.of(PLAIN, "haswell"))
    facts = dict(device="haswell", target=device.target_options(1), threads=1, blocking=blocking)
    facts |= dict(instruction=device.peak().instruction)
    facts |= dict(blocking_source="model", input_layout=ActivationLayout("NCHW8c"))
    return ConvManifest(workload=workload, symbol=symbol_of(workload), **facts)  # type: ignore


def test_manifests_keep_types_apart(pair: Pair, tmp_path: Path) -> None:
    manifests = [a_manifest(workload) for workload in pair]
    written = [m.to_dict(b"code") for m in manifests]
    differing = {key for key in written[0] if written[0][key] != written[1][key]}
    assert differing == {"workload", "symbol", "manifest_sha256"}
    path = tmp_path / "conv.so.json"
    for manifest, values in zip(manifests, written, strict=True):
        path.write_text(json.dumps(values))
        assert ConvManifest.read(path, b"code") == manifest


def test_a_manifest_of_a_type_that_is_not_known(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "conv.so.json"
    path.write_text(json.dumps(a_manifest(pair[1]).to_dict(b"code")))
    monkeypatch.delitem(PRECISIONS, "made")
    with pytest.raises(LibraryError, match=r"unknown 'made' at character 1.*export it again"):
        ConvManifest.read(path, b"code")


def test_arrays_have_their_types(pair: Pair) -> None:
    epilogue = dc.Epilogue(bias=True, residual=True)
    conv = dc.CompiledConv(replace(a_manifest(pair[1]), epilogue=epilogue), module=None)
    x = np.ones(pair[1].input_shape, np.int8)
    weight = np.ones(pair[1].weight_shape, np.float16)
    assert conv.pack_input(x).dtype == np.int8
    assert conv.pack_weight(weight).dtype == np.float16
    with pytest.raises(ArgumentError, match=r"the input has dtype float32: expected int8, use "):
        conv.pack_input(x.astype(np.float32))
    with pytest.raises(ArgumentError, match=r"use the weight.astype\('float16'\)"):
        conv.pack_weight(weight.astype(np.int8))
    packings = conv.manifest.operands()
    types = {operand.name: packings[operand.name].number.name for operand in OPERANDS}
    assert types == {"bias": "int32", "residual": "float64"}
    for name, shape in (("bias", (64,)), ("residual", pair[1].output_shape)):
        assert conv.pack_operand(name, np.zeros(shape, types[name])).dtype == types[name]
        with pytest.raises(ArgumentError, match=f"expected {types[name]}"):
            conv.pack_operand(name, np.zeros(shape, np.float32))
    packed = aligned_zeros(conv.manifest.output_shape, "float64")
    assert conv.unpack_output(packed).dtype == np.float64
    with pytest.raises(ArgumentError, match="the output has dtype float32: expected float64"):
        conv.unpack_output(packed.astype(np.float32))


def test_bound_arrays_have_their_types(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    conv = dc.CompiledConv(a_manifest(pair[1]), module=None)
    monkeypatch.setattr(conv, "_runnable", lambda: None)
    m = conv.manifest
    arrays = [
        aligned_zeros(m.input_shape, "int8"),
        aligned_zeros(m.weight_shape, "float16"),
        aligned_zeros(m.output_shape, "float64"),
    ]
    assert isinstance(conv.bind(*arrays), BoundCall)
    for number, wanted in enumerate(("int8", "float16", "float64")):
        wrong = [*arrays]
        wrong[number] = aligned_zeros(arrays[number].shape)
        with pytest.raises(ArgumentError, match=f"has dtype float32: expected {wanted}, use"):
            conv.bind(*wrong)


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32", "float64"])
def test_layouts_keep_the_type(dtype: str) -> None:
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(dtype)
    for name in ("NCHW", "NHWC", "NCHW2c"):
        layout = ActivationLayout(name)
        packed = layout.pack(x)
        assert packed.dtype == dtype and packed.ctypes.data % 64 == 0
        plain = layout.unpack(packed, 3)
        assert plain.dtype == dtype
        np.testing.assert_array_equal(plain, x)
    assert WeightLayout(1, 2).pack(x).dtype == ChannelLayout(2).pack(x.ravel()).dtype == dtype
