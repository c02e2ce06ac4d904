"""The passes between a schedule and LLVM, seen in the code that they lead to."""

import re
from collections.abc import Iterator
from dataclasses import replace
from math import ceil, gcd
from pathlib import Path
from typing import Any

import pytest
import tvm_ffi
from conftest import run_exact
from tvm import sym, tirx
from tvm.ir.expr import TensorLoad, Var
from tvm.script import tirx as T
from tvm.tirx import AttrStmt, BufferStore, Evaluate, For, IfThenElse, IntImm, SeqStmt

from tvm_directconv import Blocking, ConvWorkload, Device, build, device
from tvm_directconv.assembly import innermost_loops, whole_function
from tvm_directconv.blocking import IC_INSIDE, IC_OUTSIDE
from tvm_directconv.candidates import choose
from tvm_directconv.case import Case
from tvm_directconv.compute import symbol_of
from tvm_directconv.instructions import LANE
from tvm_directconv.layout import ActivationLayout
from tvm_directconv.lowering.pipeline import allocated_bytes, lower
from tvm_directconv.scheduling import scheduled
from tvm_directconv.tiling import Tiling

NAMES = ["x86-64-v3", "cortex-a72", "armv7"]


def tile(name: str, **knobs: object) -> Blocking:
    lanes = device(name).lanes
    return Blocking.from_dict({"lanes": lanes, "oc_vectors": 1, "ow_tile": 4, **knobs})


def conv(name: str, **fields: object) -> ConvWorkload:
    lanes = device(name).lanes
    sizes = {"in_channels": lanes, "in_height": 1, "in_width": 8, "out_channels": lanes}
    return ConvWorkload(**{**sizes, "kernel": 1, **fields})


def lowered(
    on: str | Device, workload: ConvWorkload, blocking: Blocking, layout: str
) -> tirx.PrimFunc:
    sch = scheduled(Tiling(Case.of(workload, device(on), 1, ActivationLayout(layout)), blocking))
    return lower(sch.mod[symbol_of(workload)])


def products(name: str, workload: ConvWorkload, blocking: Blocking) -> int:
    """Count the products in the code; LLVM may repeat some."""
    text = str(lowered(name, workload, blocking, f"NCHW{device(name).lanes}c"))
    return len(re.findall(r"^\s*(sum\w*)\[.*?\] = \1\[.*?\] \+ ", text, re.MULTILINE))


@pytest.mark.parametrize("name", NAMES)
def test_products_with_padding_are_not_computed(name: str) -> None:
    # One row in two tiles, both at a border, and all channels in straight-line code.
    lanes = device(name).lanes
    workload = conv(name, kernel=(1, 3), padding=(0, 1))
    blocking = tile(name, ic_block=lanes, ic_unroll=lanes)
    assert products(name, workload, blocking) == lanes * (8 * 3 - 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("inputs", ["half a block", "two blocks"])
def test_two_rounds_are_no_loop(name: str, inputs: str) -> None:
    lanes = device(name).lanes
    channels, unrolled = (lanes, lanes // 2) if inputs == "half a block" else (2 * lanes, lanes)
    workload = conv(name, in_channels=channels)
    blocking = tile(name, ic_block=channels, ic_unroll=unrolled)
    assert products(name, workload, blocking) == 4 * channels


@pytest.mark.parametrize("name", NAMES)
def test_tiles_between_the_borders_share_their_code(name: str) -> None:
    workload = conv(name, in_width=25, kernel=(1, 3), padding=(0, 1))
    blocking = tile(name, ic_block=device(name).lanes)
    # The first of four columns, those between in a loop over the taps, and five are left for two.
    assert products(name, workload, blocking) == (4 * 3 - 1) + 4 + 2 * 3 + (3 * 3 - 1)


@pytest.mark.parametrize("order", [IC_INSIDE, IC_OUTSIDE])
@pytest.mark.parametrize("name", NAMES)
def test_padding_is_not_tested_in_innermost_loops(name: str, order: str) -> None:
    # Rows and columns with padding, and a narrower last tile, which has a condition of its own.
    workload = conv(name, in_channels=64, in_height=9, in_width=15, kernel=3, padding=1)
    blocking = tile(name, ic_block=32, ic_unroll=4, loop_order=order)
    conv_ = build(workload, name, blocking=blocking, input_layout="NCHW4c")
    loops = innermost_loops(conv_.assembly(), device(name).triple)
    assert len(loops) >= 3
    for loop in loops:
        assert len(re.findall(r"^\t(?:j\w+|b\.?\w\w|[ct]bn?z) ", str(loop), re.MULTILINE)) == 1


@pytest.mark.parametrize("order", [IC_INSIDE, IC_OUTSIDE])
@pytest.mark.parametrize("rows_outside", [False, True])
@pytest.mark.parametrize("vectors", [5, 7])
@pytest.mark.parametrize("name", NAMES)
def test_narrower_last_tiles_of_channels_have_code_of_their_own(
    name: str, vectors: int, rows_outside: bool, order: str
) -> None:
    lanes = device(name).lanes
    workload = conv(name, in_channels=128, in_height=4, out_channels=vectors * lanes)
    knobs = {"ic_block": 64, "oh_block": 2, "rows_outside": rows_outside, "loop_order": order}
    blocking = tile(name, oc_vectors=3, ow_tile=2, **knobs)
    # Tiles of two columns in a loop, of three vectors and of two.
    assert products(name, workload, blocking) == 2 * 3 + 2 * 2
    conv_ = build(workload, name, blocking=blocking, input_layout="NCHW4c")
    loops = innermost_loops(conv_.assembly(), device(name).triple)
    # LLVM puts several steps of these short ones into one round.
    found = {loop.fmas for loop in loops}
    assert {fmas // gcd(*found) for fmas in found} == {3, 2}
    for loop in loops:
        assert loop.spills == 0
        assert len(re.findall(r"^\t(?:j\w+|b\.?\w\w|[ct]bn?z) ", str(loop), re.MULTILINE)) == 1


@pytest.mark.parametrize("order", [IC_INSIDE, IC_OUTSIDE])
@pytest.mark.parametrize("name", NAMES)
def test_every_sum_has_one_register(name: str, order: str) -> None:
    lanes = device(name).lanes
    workload = conv(name, in_channels=32, in_width=11, out_channels=2 * lanes)
    blocking = tile(name, oc_vectors=2, ic_block=4, loop_order=order)
    function = lowered(name, workload, blocking, "NCHW4c")
    assert allocated_bytes(function) == 4 * lanes
    # Eight for whole tiles and six for the last; in the paper's order, zeros are stored before.
    parts = 1 if order == IC_INSIDE else 2
    assert str(function).count("T.alloc_buffer") == parts * (2 * 4 + 2 * 3)


def test_allocations_are_measured() -> None:
    @T.prim_func(s_tir=True)
    def none(x: T.Buffer((4,), "float32")):
        x[0] = x[1]

    assert allocated_bytes(none) == 0
    small, large = (tirx.decl_buffer((n, 8), "float32") for n in (2, 3))
    body = tirx.SeqStmt([tirx.AllocBuffer(small), tirx.AllocBuffer(large), none.body])
    assert allocated_bytes(none.with_body(body)) == 4 * 3 * 8


@pytest.mark.parametrize("name", NAMES)
def test_pins_cost_no_instruction(name: str) -> None:
    workload = conv(name, in_width=32, in_channels=128)
    blocking = tile(name, ic_block=4, ic_unroll=4)
    conv_ = build(workload, name, blocking=blocking, input_layout="NCHW4c")
    assert "directconv_pin" not in conv_.assembly()
    (loop,) = innermost_loops(conv_.assembly(), device(name).triple)
    target = device(name)
    # Per step: the products, a load of weights, and one of each pixel or of four channels of it.
    # The loop adds a few.
    instruction = target.peak().instruction
    pairs = 1 if instruction.fused else 2
    most = 4 * (1 + (1 if LANE in instruction.pixel_operands else 4) + pairs * 4)
    assert loop.fmas == 16 and loop.spills == 0
    assert loop.instructions < 1.5 * most


def vectors_of_input(name: str, workload: ConvWorkload, blocking: Blocking, layout: str) -> int:
    """Count the vectors that the steps of a tile use lane by lane."""
    text = str(lowered(name, workload, blocking, layout))
    return len(re.findall(r"^\s*lanes\w* = T.alloc_buffer", text, re.MULTILINE))


@pytest.mark.parametrize("order", [IC_INSIDE, IC_OUTSIDE])
def test_channels_of_a_pixel_are_one_load(order: str) -> None:
    workload = conv("cortex-a72", in_channels=16, in_width=32)
    blocking = tile("cortex-a72", ic_block=4, ic_unroll=4, loop_order=order)
    assert vectors_of_input("cortex-a72", workload, blocking, "NCHW4c") == 4
    built = build(workload, "cortex-a72", blocking=blocking, input_layout="NCHW4c")
    loops = innermost_loops(built.assembly(), device("cortex-a72").triple)
    for loop in loops:
        assert loop.fmas % 16 == 0 and loop.spills == 0
        assert not re.search(r"\sldu?r\s+s|\sld1r", str(loop))
        assert set(re.findall(r"\.s\[\d\]", str(loop))) == {f".s[{i}]" for i in range(4)}
    assert loops
    # With fewer in straight-line code, or apart in memory, each is loaded alone.
    fewer = replace(blocking, ic_unroll=2)
    assert vectors_of_input("cortex-a72", workload, fewer, "NCHW4c") == 0
    strided = replace(workload, stride=(1, 2))
    assert vectors_of_input("cortex-a72", strided, blocking, "NCHW") == 0


@pytest.mark.parametrize("name", ["cortex-a53", "neoverse-n1"])
@pytest.mark.parametrize(("vectors", "columns"), [(1, 15), (2, 9), (3, 7), (4, 5)])
def test_vectors_of_input_have_registers(name: str, vectors: int, columns: int) -> None:
    lanes, width = device(name).lanes, 3 * columns
    workload = conv(name, in_width=width, out_channels=vectors * lanes, kernel=3, padding=1)
    workload = replace(workload, in_channels=16, in_height=9)
    blocking = tile(name, oc_vectors=vectors, ow_tile=columns, ic_block=4, ic_unroll=4)
    text = build(workload, name, blocking=blocking).assembly()
    assert whole_function(text, device(name).triple).spills == 0
    assert vectors_of_input(name, workload, blocking, "NCHW4c") > 0
    # With a column more, there are registers for each pixel of one channel alone.
    wider = replace(blocking, ow_tile=columns + 1)
    assert vectors_of_input(name, workload, wider, "NCHW4c") == 0


@pytest.mark.parametrize("name", ["armv7", "x86-64-v3"])
def test_vectors_of_input_are_for_processors_that_multiply_by_a_lane(name: str) -> None:
    assert vectors_of_input(name, conv(name), tile(name, ic_block=4, ic_unroll=4), "NCHW4c") == 0


@pytest.mark.parametrize("kernel", [1, 3])
def test_loads_within_multiply_adds_use_one_register(kernel: int) -> None:
    name = "x86-64-v4"
    workload = conv(name, in_height=13, in_width=26, kernel=kernel, padding=kernel // 2)
    blocking = tile(name, ow_tile=13, ic_block=16, ic_unroll=16)
    built = build(workload, name, blocking=blocking)
    loads = re.findall(r"vfmadd\w+\s+(\S*\(.*?\))\{1to16\}", built.assembly())
    assert loads and not [load for load in loads if "," in load]
    assert "directconv_base" not in built.assembly()
    # Pixels that several multiply-adds use are loaded alone, from wherever LLVM likes.
    two = replace(workload, out_channels=32)
    assert "directconv_base" in str(lowered(name, workload, blocking, "NCHW16c"))
    wider = replace(blocking, oc_vectors=2)
    assert "directconv_base" not in str(lowered(name, two, wider, "NCHW16c"))


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("unrolled", [False, True])
def test_a_base_is_of_the_loop_that_it_is_used_in(columns: int, unrolled: bool) -> None:
    # More border tiles than get code of their own: the others are a loop, and read padding as well.
    name = "x86-64-v4"
    fields = {"in_channels": 3, "padding": (0, 18, 0, 15), "dilation": (1, 12)}
    for width in (8, 9, 10):
        workload = conv(name, in_width=width, kernel=(1, 3), **fields)
        blocking = tile(name, ow_tile=columns, ic_block=3, ic_unroll=3, kw_unroll=unrolled)
        function = lowered(name, workload, blocking, "NCHW")
        assert "directconv_base" in str(function)
        assert not tirx.analysis.undefined_vars(function.body, function.params)


def test_what_stands_under_a_condition_is_not_loaded_without_it(tmp_path: Path) -> None:
    # More border tiles than get code of their own: they share a loop, which tests each column.
    workload = conv("cortex-a72", in_width=20, kernel=(1, 21), padding=(0, 10))
    blocking = tile("cortex-a72", ow_tile=2, ic_block=4, ic_unroll=4)
    built = build(workload, "cortex-a72", blocking=blocking)
    for guard in ("begin", "end"):
        run_exact(built, device("cortex-a72"), tmp_path, guard=guard)


@pytest.mark.parametrize("rows", [1, 2, 13])
def test_callers_see_the_image_as_it_is(rows: int) -> None:
    workload = conv("x86-64-v3", in_height=13, in_width=26)
    blocking = tile("x86-64-v3", ic_block=8, ow_tile=13, flat_rows=rows)
    built = build(workload, "x86-64-v3", blocking=blocking)
    assert built.manifest.input_shape == (1, 1, 13, 26, 8)
    assert built.manifest.output_shape == (1, ceil(8 / 8), 13, 26, 8)
    # The function itself checks these shapes.
    text = built.assembly()
    assert re.search(r"cmp\w* \$26\b|cmp\w*\t\$26\b", text) and re.search(r"cmp\w*\t\$13\b", text)


def test_tiles_within_a_row_have_one_address() -> None:
    # 7 rows of 28 columns as 2 of 98: 14 columns are half a row of the image, 10 cross its end.
    workload = conv("skylake-avx512", in_height=14, in_width=56, stride=2)
    for columns, alone in ((14, True), (10, False)):
        blocking = tile("skylake-avx512", ic_block=16, ow_tile=columns, oh_block=2, flat_rows=2)
        text = str(lowered("skylake-avx512", workload, blocking, "NCHW16c"))
        assert (len(set(re.findall(r"x_1\[([^/]*) // 28", text))) == 1) == alone


def events(function: Any, name: str) -> Iterator[tuple[str, int]]:
    """Run the loops of a lowered function: an array's lines as they are read and fetched."""

    def value(expression: Any, known: dict[Any, int]) -> int:
        placed = tvm_ffi.structural_map(
            expression, (Var, lambda v: IntImm(v.ty.dtype, known[v.name]))
        )
        return int(sym.Analyzer().simplify(placed))

    def run(statement: Any, known: dict[Any, int]) -> Iterator[tuple[str, int]]:
        if isinstance(statement, For):
            first = value(statement.min, known)
            for index in range(first, first + value(statement.extent, known)):
                yield from run(statement.body, {**known, statement.loop_var.name: index})
        elif isinstance(statement, SeqStmt):
            for part in statement.seq:
                yield from run(part, known)
        elif isinstance(statement, IfThenElse):
            case = statement.then_case if value(statement.condition, known) else statement.else_case
            if case is not None:
                yield from run(case, known)
        elif isinstance(statement, AttrStmt):
            yield from run(statement.body, known)
        elif isinstance(statement, Evaluate) and "directconv_prefetch" in str(statement):
            _, address, element = statement.value.args
            if address.args[0].source.name == name:
                yield "fetch", value(element, known) // 16
        elif isinstance(statement, BufferStore):
            read: list[Any] = []
            tvm_ffi.structural_walk(
                statement.value,
                (TensorLoad, lambda e: read.append(e) if e.source.name == name else None),
            )
            for load in read:
                (index,) = load.indices
                yield "read", value(getattr(index, "base", index), known) // 16

    return run(function.body, {})


def first_readings(function: Any, name: str) -> tuple[list[int], list[int]]:
    """Return an array's lines as they are first read, and those that were not fetched before."""
    fetched: set[int] = set()
    seen: list[int] = []
    late = []
    for kind, line in events(function, name):
        if kind == "fetch":
            fetched.add(line)
        elif line not in seen:
            seen.append(line)
            if line not in fetched:
                late.append(line)
    return seen, late


@pytest.mark.parametrize(
    "knobs",
    [
        {"ic_block": 8},
        {"ic_block": 8, "oh_block": 2},
        {"ic_block": 8, "oh_block": 2, "rows_outside": True},
        {"ic_block": 8, "oh_block": 4, "loop_order": IC_OUTSIDE},
        {"ic_block": 8, "oh_block": 2, "loop_order": IC_OUTSIDE, "rows_outside": True},
        {"ic_block": 8, "oh_block": 2, "oc_vectors": 4},
        {"ic_block": 8, "oh_block": 2, "oc_vectors": 4, "rows_outside": True},
        {"ic_block": 8, "oh_block": 4, "oc_vectors": 4, "loop_order": IC_OUTSIDE},
    ],
    ids=str,
)
def test_weights_are_fetched_before_they_are_read(knobs: dict[str, Any]) -> None:
    workload = conv("haswell", in_channels=16, in_height=4, in_width=6, out_channels=48, kernel=1)
    blocking = tile("haswell", **{"oc_vectors": 2, "ow_tile": 3, "ic_unroll": 8, **knobs})
    seen, late = first_readings(lowered("haswell", workload, blocking, "NCHW8c"), "weight")
    assert len(seen) == 48 * 16 // 16
    # Only those that the first tiles read.
    channels = 8 if "loop_order" in knobs else 16
    assert sorted(late) == sorted(seen[: blocking.oc_vectors * channels * 8 // 16])


def test_weights_are_fetched_where_that_takes_time() -> None:
    small = conv("haswell", in_channels=64, in_height=14, in_width=14, out_channels=64, kernel=1)
    for workload, fetches in ((small, True), (replace(small, in_height=280), False)):
        text = str(
            lowered("haswell", workload, choose(Case.of(workload, device("haswell"))), "NCHW8c")
        )
        assert ("T.address_of(weight" in text) == fetches


@pytest.mark.parametrize("order", [IC_INSIDE, IC_OUTSIDE])
def test_weights_beyond_the_cache_are_fetched_within_tiles(order: str) -> None:
    # Rows of one tile, and far more than 16 lines of weights to a tile.
    workload = conv("haswell", in_height=3, in_width=3, in_channels=32, kernel=3, padding=1)
    workload = replace(workload, out_channels=24)
    blocking = tile("haswell", ow_tile=3, ic_block=16, ic_unroll=8, oh_block=3, loop_order=order)
    at_first = 9 * (16 if order == IC_OUTSIDE else 32) // 2
    for l2_bytes, late_lines in ((1024, at_first), (1 << 20, 3 * 9 * 32 // 2)):
        spec = replace(device("haswell"), l2_bytes=l2_bytes)
        _, late = first_readings(lowered(spec, workload, blocking, "NCHW8c"), "weight")
        assert len(late) == late_lines


@pytest.mark.parametrize(
    ("fields", "knobs"),
    [
        ({"kernel": 3, "padding": 1}, {}),
        ({"kernel": 3, "padding": 1, "stride": 2}, {}),
        ({"kernel": 5}, {}),
        ({}, {"flat_rows": 4}),
        ({}, {"loop_order": IC_OUTSIDE}),
    ],
    ids=str,
)
def test_pixels_are_fetched_before_they_are_read(fields: Any, knobs: Any) -> None:
    workload = conv("haswell", in_channels=16, in_height=6, in_width=12, **fields)
    columns = 3 if workload.out_width % 3 == 0 else 2
    knobs = {"ic_block": 8, "ic_unroll": 8, "oh_block": workload.out_height, **knobs}
    small = replace(device("haswell"), l2_bytes=1024)
    function = lowered(small, workload, tile("haswell", ow_tile=columns, **knobs), "NCHW8c")
    seen, late = first_readings(function, "x")
    assert late and len(late) < len(seen)
    for line in late:
        row, pixel = line // 6 % 6, line % 6 * 2  # Six lines of two pixels in a row.
        # What the first output row reads, and where a kernel begins that ends in the next row.
        assert row < workload.kernel[0] - workload.padding[0] or pixel < workload.kernel[1] - 1


def test_pixels_are_fetched_where_they_do_not_stay_in_the_cache() -> None:
    large = conv("haswell", in_channels=64, in_height=40, in_width=40, out_channels=8, kernel=3)
    for workload, fetches in ((large, True), (replace(large, in_height=6), False)):
        text = str(lowered("haswell", workload, tile("haswell", ic_block=8), "NCHW8c"))
        assert ("T.address_of(x" in text) == fetches
