"""From a scheduled convolution to code: TVM's lowering with passes of our own.

TVM's own pipeline would put the register tile into a workspace, compute products with padding,
and let LLVM reorder the inner loop until the accumulators no longer fit the registers. The
passes here keep what the schedule decided. Schedules talk to them with loop annotations:

=====================  ======================================================================
``directconv.tile``    on the loop over register tiles: how many tiles at its beginning and at
                       its end see padding or are narrower than the others, and how many columns
                       the last tile takes over from the one before, ``[left, right, moved]``
``directconv.column``  on the loop over the columns of a tile
``directconv.tail``    on the loop over tasks: where its last tiles of output channels have fewer
                       vectors than the others. ``[run, tiles, narrow, vectors]``: the tile changes
                       after every `run` tasks, and of `tiles`, the last `narrow` have so many
``directconv.vector``  on the loop over the vectors of such a tile
``directconv.tap``     on the loop over kernel columns: unrolled in those border tiles, so that
                       which products are with padding is known when compiling
``directconv.next``    on the loop over register tiles and on loops within a tile: the weights that
                       the next round of all tiles needs are fetched meanwhile, in one of these
                       loops. ``[vectors, distance, length, tasks]``: they are so many stretches of
                       `length` elements, `distance` apart, and tasks in succession share them
``directconv.pixels``  on a loop within a tile: pixels of the next tile are fetched in it.
                       Its value is a list: elements so far beyond what the first product of each
                       column reads
``directconv.step``    on a loop of which each round is one step: one input channel, one kernel
                       position, all products of the tile. Its value says how many sums, spread
                       over the tile, LLVM must finish before the next step; 0 for all
``directconv.lanes``   on an unrolled loop of steps: where these read neighbouring elements of the
                       input, so many are loaded as one vector, of which each step uses a lane
``directconv.base``    on an unrolled loop of steps: what these read of the input is addressed from
                       one register on
=====================  ======================================================================
"""

from collections.abc import Callable
from math import gcd, isnan
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, sym, tirx
from tvm.ir.expr import Call, StringImm, TensorLoad, Var
from tvm.tirx import (
    AllocBuffer,
    AttrStmt,
    BufferStore,
    DeclBuffer,
    Evaluate,
    For,
    ForKind,
    IfThenElse,
    IntImm,
    PrimFunc,
    SeqStmt,
    compilation_pipeline,
)

from . import errors, exponential
from .compute import BLOCK_NAME, INPUT_NAME, WEIGHT_NAME
from .denormals import FLUSH, KEEP

errors.go_through_tvm()

TILE = "directconv.tile"
COLUMN = "directconv.column"
TAIL = "directconv.tail"
VECTOR = "directconv.vector"
TAP = "directconv.tap"
NEXT = "directconv.next"
PIXELS = "directconv.pixels"
STEP = "directconv.step"
LANES = "directconv.lanes"
BASE = "directconv.base"
SHAPES = "directconv.shapes"
"""Function attribute: shapes of the parameters as callers see them, where they differ."""

DENORMALS = "directconv.denormals"
"""Function attribute: one of :data:`.denormals.MODES`, the first if there is none."""

PIPELINE = "directconv"
"""Name of the pipeline in ``tvm.compile(..., tir_pipeline=...)``."""

_MARK = "directconv_step"  # Stands before each step until the tile's registers are known.
_LANES_MARK = "directconv_lanes"  # Stands before steps whose input may be loaded as vectors.
_BASE_MARK = "directconv_base"  # Stands before steps whose input is read from one address on.

# No instruction comes of this function either. For LLVM it may change the memory and its argument:
# no load moves from one step into another, and no step begins before that sum is done. Without
# it, LLVM merges the loads of neighbouring kernel columns, hoists those of later steps and puts
# off FMAs; more values live at once than there are registers, and sums are spilled.
# It can only reach memory that may alias, which is why functions must not carry tirx.noalias.
# On x86 it may change %rbp as well, so that no step loads from there on. Processors seem to take
# such loads for the stack's: a line of a stream from the second-level cache took up to 10 % longer
# than by way of any other register (measured with AVX-512), and tiles of 64 x 6, fed by one, 7 %.
_PIN_NAME = "directconv_pin"
_PIN = """
define <{n} x float> @directconv_pin(<{n} x float> %a) {{
  %b = call <{n} x float> asm sideeffect "", "{constraints}"(<{n} x float> %a)
  ret <{n} x float> %b
}}
"""

# Into the second-level cache. Past the end of the weights there is nothing to fetch, and that does
# no harm: a prefetch never faults, and without `inbounds` the address may be any.
_PREFETCH = """
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define void @directconv_prefetch(ptr %base, i64 %element) alwaysinline {
  %address = getelementptr float, ptr %base, i64 %element
  call void @llvm.prefetch.p0(ptr %address, i32 0, i32 2, i32 1)
  ret void
}
"""
# The same address, but LLVM does not see of what it was made.
_BASE = """
define ptr @directconv_base(ptr %a) alwaysinline {
  %b = call ptr asm "", "=r,0"(ptr %a)
  ret ptr %b
}
"""
# The same number, but LLVM does not see which.
_OPAQUE = """
define i{bits} @directconv_opaque{bits}(i{bits} %a) alwaysinline {{
  %b = call i{bits} asm "", "=r,0"(i{bits} %a) nounwind willreturn memory(none)
  ret i{bits} %b
}}
"""
# Denormals are zeros from the first function on until the second one gets what the first returned.
# Memory may change, so that no load moves out from between the two, and no store.
_DENORMALS = """
define i{bits} @directconv_flush() alwaysinline {{
{flush}
}}
define void @directconv_restore(i{bits} %a) alwaysinline {{
{restore}
}}
"""
# MXCSR: flush to zero, denormals are zeros.
_DENORMALS_X86 = _DENORMALS.format(
    bits=32,
    flush="""
  %p = alloca i32
  call void asm sideeffect "stmxcsr $0", "=*m,~{memory}"(ptr elementtype(i32) %p)
  %a = load i32, ptr %p
  %b = or i32 %a, 32832
  store i32 %b, ptr %p
  call void asm sideeffect "ldmxcsr $0", "*m,~{memory}"(ptr elementtype(i32) %p)
  ret i32 %a""",
    restore="""
  %p = alloca i32
  store i32 %a, ptr %p
  call void asm sideeffect "ldmxcsr $0", "*m,~{memory}"(ptr elementtype(i32) %p)
  ret void""",
)
# FPCR, in ARMv7 FPSCR: flush to zero, which is for operands, too.
_DENORMALS_ARM = """
  %a = call i{bits} asm sideeffect "{get}", "=r,~{{memory}}"()
  %b = or i{bits} %a, 16777216
  call void asm sideeffect "{put}", "r,~{{memory}}"(i{bits} %b)
  ret i{bits} %a"""
_RESTORE_ARM = """
  call void asm sideeffect "{put}", "r,~{{memory}}"(i{bits} %a)
  ret void"""
_FLOAT = 2  # DLPack's number for floating point
_LINE = 16  # elements of a cache line
# Lines that may be fetched at once: caches have 10 to 24 on their way, and then let others wait.
_AT_ONCE = 16


def _pass(function: Any) -> Any:
    return tirx.transform.prim_func_pass(function, opt_level=0, name=function.__name__)


def _with_body(
    loop: For, body: Any, kind: ForKind | None = None, done: str = "", extent: Any = None
) -> For:
    """Return a loop with another body, kind or extent, without the annotation that is done with."""
    return For(
        loop.loop_var,
        loop.min,
        loop.extent if extent is None else extent,
        loop.kind if kind is None else kind,
        body,
        loop.thread_binding,
        {key: value for key, value in loop.annotations.items() if key != done},
        loop.step,
    )


def _sequence(statements: list[Any]) -> Any:
    """Return statements one after the other; TVM takes no sequence of one."""
    return statements[0] if len(statements) == 1 else SeqStmt(statements)


def _replaced(code: Any, variable: Var, value: Any) -> Any:
    """Return an expression or statement with a value in place of a variable."""
    return tvm_ffi.structural_map(code, (Var, lambda v: value if v.same_as(variable) else v))


def _importing(code: str, body: Any) -> AttrStmt:
    """Return a statement with the LLVM functions that it calls."""
    return AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", StringImm(code), body)


def _marked(statement: Any, name: str) -> int | None:
    """Return the value of a mark, None if the statement is no mark of that name."""
    call = statement.value if isinstance(statement, Evaluate) else None
    if not (isinstance(call, Call) and call.op.name == "tirx.call_extern"):
        return None
    return int(call.args[1]) if call.args[0].value == name else None


def _is_x86(func: PrimFunc) -> bool:
    return str(func.attrs["target"].attrs["mtriple"]).startswith("x86_64")


def _is_number(expression: Any) -> bool:
    """Return whether this is a constant, the same in all lanes, and not NaN."""
    if isinstance(expression, tirx.Broadcast):
        expression = expression.value
    return isinstance(expression, tirx.FloatImm) and not isnan(expression.value)


def _is_pin(call: Call) -> bool:
    return call.op.name == "tirx.call_extern" and call.args[0].value == _PIN_NAME


def _uses(expression: Any, variable: Var) -> bool:
    found = []
    tvm_ffi.structural_walk(
        expression, (Var, lambda v: found.append(v) if v.same_as(variable) else None)
    )
    return bool(found)


def _conjuncts(condition: Any) -> list[Any]:
    if isinstance(condition, tirx.And):
        return _conjuncts(condition.a) + _conjuncts(condition.b)
    return [condition]


@_pass
def finish_in_place(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Let sums that an epilogue finishes be in the output from the beginning.

    The two have the same shape, and every sum becomes the output of the same place, so the tensor
    between convolution and epilogue need not exist.
    """
    if not isinstance(func.body, s_tir.SBlockRealize):
        return func
    root = func.body.block
    sums = next((buffer for buffer in root.alloc_buffers if buffer.name == BLOCK_NAME), None)
    if sums is None:
        return func
    others = [buffer for buffer in root.alloc_buffers if not buffer.same_as(sums)]
    body = _replaced(root.body, sums, func.params[-1])
    block = s_tir.SBlock(
        root.iter_vars, root.reads, root.writes, root.name_hint, body, root.init, others
    )
    return func.with_body(s_tir.SBlockRealize(func.body.iter_values, func.body.predicate, block))


@_pass
def simplify(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Simplify as TVM does, but not for columns 0 to 2 where those of the last tile are others.

    It turns ``3 * tap + 3 * tile + column < 12`` into ``tap + tile < 4``. That is wrong for a last
    tile that takes over columns (:func:`peel_borders`).
    """
    columns: dict[Var, Var] = {}

    def taking_over(loop: For) -> For:
        if TILE not in loop.annotations or int(loop.annotations[TILE][2]) == 0:
            return loop
        return _with_body(loop, tvm_ffi.structural_map(loop.body, (For, hidden)))

    def hidden(loop: For) -> For:
        if COLUMN not in loop.annotations:
            return loop
        column = loop.loop_var
        columns[column] = Var(column.name, column.ty.dtype)
        return _with_body(loop, _replaced(loop.body, column, columns[column]))

    body = tvm_ffi.structural_map(func.body, (For, taking_over))
    module = s_tir.transform.StmtSimplify()(tvm.IRModule({"main": func.with_body(body)}))
    body = module["main"].body
    for column, free in columns.items():
        body = _replaced(body, free, column)
    return func.with_body(body)


@_pass
def present_shapes(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Give the parameters the shapes that callers see; the body reads them flat by now."""
    if not func.attrs or SHAPES not in func.attrs:
        return func
    seen = [
        tirx.decl_buffer([int(extent) for extent in shape], "float32", name=param.name)
        for param, shape in zip(func.params, func.attrs[SHAPES], strict=True)
    ]
    body = func.body
    for old, new in zip(func.params, seen, strict=True):
        body = _replaced(body, old, new)
    return PrimFunc(seen, body, func.ret_type, func.attrs).without_attr(SHAPES)


@_pass
def expand_exponentials(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Compute exponentials from arithmetic, which vectors are made of.

    LLVM would call the C library for each lane.
    """
    formulas = {"tirx.exp": exponential.exp, "tirx.sigmoid": exponential.sigmoid}

    def expanded(call: Call) -> Any:
        formula = formulas.get(getattr(call.op, "name", ""))
        return formula(call.args[0]) if formula and call.ty.dtype == "float32" else call

    return func.with_body(tvm_ffi.structural_map(func.body, (Call, expanded)))


@_pass
def part_tails(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Give tasks with fewer vectors of output channels code of their own.

    Without, all tasks would ask before each vector of a tile whether it exists.
    """

    def parted(loop: For) -> Any:
        if TAIL not in loop.annotations:
            return loop
        run, tiles, narrow, few = (int(number) for number in loop.annotations[TAIL])
        tile = tirx.floormod(tirx.floordiv(loop.loop_var, run), tiles)
        vectors: list[For] = []
        tvm_ffi.structural_walk(
            loop, (For, lambda f: vectors.append(f) if VECTOR in f.annotations else None)
        )

        def existing(statement: IfThenElse) -> Any:
            parts = _conjuncts(statement.condition)
            others = [part for part in parts if not any(_uses(part, f.loop_var) for f in vectors)]
            if not others:
                return statement.then_case
            return IfThenElse(tirx.all(*others), statement.then_case, statement.else_case)

        def fewer(inner: For) -> For:
            if VECTOR not in inner.annotations:
                return inner
            vector = inner.loop_var
            # Each narrow tile before leaves some of the vectors that the others would have had. Of
            # one there is none before, but TVM does not see it.
            left = (int(inner.extent) - few) * (tile - (tiles - narrow))
            body = inner.body if narrow == 1 else _replaced(inner.body, vector, vector - left)
            return _with_body(inner, body, extent=tirx.const(few, vector.ty.dtype))

        whole = tvm_ffi.structural_map(loop.body, (IfThenElse, existing))
        tail = tvm_ffi.structural_map(whole, (For, fewer))
        return _with_body(loop, IfThenElse(tile >= tiles - narrow, tail, whole), done=TAIL)

    return func.with_body(tvm_ffi.structural_map(func.body, (For, parted)))


@_pass
def skip_padding(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Turn ``sum += (inside ? x : 0) * w`` into ``if inside: sum += x * w``, tested early.

    Each part of the condition moves out of all loops that it does not depend on: rows of the
    kernel that lie in the padding cost one branch each.
    """

    def guarded(store: BufferStore) -> Any:
        total = store.value
        if not (isinstance(total, tirx.Add) and isinstance(total.b, tirx.Mul)):
            return store
        read = total.b.a
        if not (isinstance(read, Call) and read.op.name == "prim.if_then_else"):
            return store
        inside, value, otherwise = read.args
        if not (isinstance(otherwise, tirx.FloatImm) and otherwise.value == 0):
            return store
        product = BufferStore(store.buffer, total.a + value * total.b.b, store.indices)
        return IfThenElse(inside, product, None)

    def merged(outer: IfThenElse) -> IfThenElse:
        # A narrower last tile has a condition of its own around the one for padding.
        inner = outer.then_case
        if outer.else_case is not None or not isinstance(inner, IfThenElse) or inner.else_case:
            return outer
        return IfThenElse(tirx.all(outer.condition, inner.condition), inner.then_case, None)

    def hoisted(loop: For) -> Any:
        test = loop.body
        if not (isinstance(test, IfThenElse) and test.else_case is None):
            return loop
        parts = _conjuncts(test.condition)
        inner = [part for part in parts if _uses(part, loop.loop_var)]
        outer = [part for part in parts if not _uses(part, loop.loop_var)]
        if not outer:
            return loop
        body = IfThenElse(tirx.all(*inner), test.then_case, None) if inner else test.then_case
        return IfThenElse(tirx.all(*outer), _with_body(loop, body), None)

    body = tvm_ffi.structural_map(
        func.body, [(BufferStore, guarded), (IfThenElse, merged), (For, hoisted)]
    )
    return func.with_body(body)


def _fetched(load: TensorLoad, element: Any) -> Evaluate:
    """Return what fetches the line of an element of the array that is loaded from."""
    base = tirx.address_of(tirx.BufferLoad(load.source, [tirx.const(0, "int32")]))
    element = tirx.Cast("int64", sym.Analyzer().simplify(element))
    return Evaluate(tirx.call_extern("void", "directconv_prefetch", base, element))


def _with_fetches(
    func: PrimFunc,
    mark: str,
    name: str,
    fetches: Callable[[list[For], For, TensorLoad], list[Any]],
) -> PrimFunc:
    """Return a function that fetches what loads from an array will need.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
        The function.
    mark : str
        Annotation of the loops in which to fetch: the outermost of them for which there is
        something to fetch.
    name : str
        Of the array.
    fetches : callable
        Returns statements for the begin of a round of a loop. It gets the loops outside, that loop,
        and the first load within.
    """

    def unmarked(body: Any) -> Any:
        return tvm_ffi.structural_map(body, (For, lambda f: _with_body(f, f.body, done=mark)))

    def visited(statement: Any, outer: list[For]) -> Any:
        if isinstance(statement, SeqStmt):
            return SeqStmt([visited(part, outer) for part in statement.seq])
        if isinstance(statement, AttrStmt):
            return AttrStmt(
                statement.node,
                statement.attr_key,
                statement.value,
                visited(statement.body, outer),
            )
        if isinstance(statement, IfThenElse):
            other = statement.else_case
            return IfThenElse(
                statement.condition,
                visited(statement.then_case, outer),
                None if other is None else visited(other, outer),
            )
        if not isinstance(statement, For):
            return statement
        found = []
        if mark in statement.annotations:
            loads: list[TensorLoad] = []
            tvm_ffi.structural_walk(
                statement,
                (TensorLoad, lambda e: loads.append(e) if e.source.name == name else None),
            )
            if not loads:  # Sums are set to zero in tiles, too.
                return unmarked(statement)
            found = fetches(outer, statement, loads[0])
        if not found:
            return _with_body(statement, visited(statement.body, [*outer, statement]), done=mark)
        body = _sequence([*found, unmarked(statement.body)])
        return _importing(_PREFETCH, _with_body(statement, body, done=mark))

    return func.with_body(visited(func.body, []))


@_pass
def prefetch_weights(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Fetch, with each tile, a part of the weights that the tiles after all of these need.

    Tiles read the same weights again and again, then all at once others, which come from far away
    the first time: where images are small, that is a good part of the time. A tile's part is
    fetched when it begins if that is not too much at once, else piece by piece within the tile.
    """

    def fetches(outer: list[For], loop: For, load: TensorLoad) -> list[Any]:
        vectors, distance, length, tasks = (int(value) for value in loop.annotations[NEXT])
        (index,) = load.indices
        nest = [*outer, loop]
        inside = [TILE in other.annotations for other in nest].index(True) + 1
        outside, within = nest[:inside], nest[inside:]
        again = [other for other in outside if not _uses(index, other.loop_var)] + within
        # Tasks, or blocks of input channels within them; neither if all weights are these.
        position = [other for other in outside if _uses(index, other.loop_var)]
        if not position:
            return []
        task, block = position[0], position[-1]
        turn: Any = tirx.const(0, "int32")
        if task is not block:
            moved = block.loop_var + 1
            following = [
                (block.loop_var, moved % block.extent),
                (task.loop_var, task.loop_var + moved // block.extent),
            ]
        else:
            following = [(task.loop_var, (task.loop_var // tasks + 1) * tasks)]
            turn = task.loop_var % tasks
        turns = tasks
        for other in again:
            turn = turn * other.extent + other.loop_var
            turns *= int(other.extent)

        def moved_on(variable: Var) -> Any:
            for known, value in following:
                if variable.same_as(known):
                    return value
            return tirx.const(0, variable.ty.dtype)  # A loop within the tile.

        start = tvm_ffi.structural_map(index, (Var, moved_on))
        lines = -(-length // _LINE)
        share = -(-lines // turns)
        if vectors * share > _AT_ONCE:
            return []
        found = [
            _fetched(load, start + vector * distance + (turn * share + line) * _LINE)
            for vector in range(vectors)
            for line in range(share)
        ]
        if 2 * share * turns <= 3 * lines:  # Weights after the next ones do no harm.
            return found
        return [IfThenElse(turn * share < lines, _sequence(found), None)]

    return _with_fetches(func, NEXT, WEIGHT_NAME, fetches)


@_pass
def prefetch_pixels(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Fetch, with each tile, the pixels that the next one is the first to read.

    Of large images they come from far away. The processor itself notices a row that is read pixel
    by pixel, but a tile goes through a few pixels of many rows and channels.
    """
    analyzer = sym.Analyzer()

    def fetches(outer: list[For], loop: For, load: TensorLoad) -> list[Any]:
        beyond = [int(elements) for elements in loop.annotations[PIXELS]]
        (index,) = load.indices
        nest = [*outer, loop]
        place = [TILE in other.annotations for other in nest].index(True)
        tile, around = nest[place], nest[max(0, place - 1)]
        following: Any = tile.loop_var + 1
        rounds = tile.extent if place else following + 1
        columns: list[For] = []
        tvm_ffi.structural_walk(
            loop.body, (For, lambda f: columns.append(f) if COLUMN in f.annotations else None)
        )

        def first_read(column: int) -> Any:
            def moved_on(variable: Var) -> Any:
                if variable.same_as(tile.loop_var):
                    return following % rounds
                if variable.same_as(around.loop_var):
                    return variable + following // rounds
                if any(variable.same_as(other.loop_var) for other in nest):
                    return variable
                inside = column if variable.same_as(columns[0].loop_var) else 0
                return tirx.const(inside, variable.ty.dtype)

            return tvm_ffi.structural_map(index, (Var, moved_on))

        lines = [first_read(0)]
        for column in range(1, int(columns[0].extent)):
            element = first_read(column)
            distance = analyzer.simplify(element - lines[-1])
            if not isinstance(distance, IntImm):
                return []  # Each would need an address of its own, and sums need the registers.
            if int(distance) >= _LINE:
                lines.append(element)
        return [_fetched(load, line + elements) for line in lines for elements in beyond]

    return _with_fetches(func, PIXELS, INPUT_NAME, fetches)


@_pass
def mark_steps(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Put a mark before each step, which stays there when loops are unrolled."""

    def mark(name: str, value: Any) -> Evaluate:
        return Evaluate(tirx.call_extern("int32", name, value))

    def marked(loop: For) -> Any:
        found: Any = loop
        if STEP in loop.annotations:
            body = SeqStmt([mark(_MARK, loop.annotations[STEP]), loop.body])
            found = _with_body(found, body, done=STEP)
        for annotation, name in ((LANES, _LANES_MARK), (BASE, _BASE_MARK)):
            if annotation in loop.annotations:
                steps = _with_body(found, found.body, done=annotation)
                found = SeqStmt([mark(name, loop.annotations[annotation]), steps])
        return found

    return func.with_body(tvm_ffi.structural_map(func.body, (For, marked)))


@_pass
def peel_borders(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Give each border tile code of its own, with constant indices, and the others a loop."""

    def unrolled_tap(loop: For) -> For:
        if TAP not in loop.annotations:
            return loop
        return _with_body(loop, loop.body, ForKind.UNROLLED, done=TAP)

    def marked(body: Any) -> AttrStmt:
        return AttrStmt(tirx.const(0, "int32"), TILE, tirx.const(1, "int32"), body)

    def peeled(loop: For) -> Any:
        if TILE not in loop.annotations:
            return loop
        left, right, moved = (int(count) for count in loop.annotations[TILE])
        tiles = int(loop.extent)
        if left + right >= tiles:
            left, right = tiles, 0

        def border(index: int) -> AttrStmt:
            number = tirx.const(index, loop.loop_var.ty.dtype)
            body = _replaced(loop.body, loop.loop_var, number)
            body = tvm_ffi.structural_map(body, (For, unrolled_tap))

            def shared(columns: For) -> For:
                if COLUMN not in columns.annotations:
                    return columns
                column, inside = columns.loop_var, columns.body
                if index == tiles - 2:
                    inside = IfThenElse(column < columns.extent - moved, inside, None)
                elif index == tiles - 1:
                    inside = _replaced(inside, column, column - moved)
                return _with_body(columns, inside)

            return marked(tvm_ffi.structural_map(body, (For, shared)) if moved else body)

        parts: list[Any] = [border(index) for index in range(left)]
        if left + right < tiles:
            first, count = tirx.const(left, "int32"), tirx.const(tiles - left - right, "int32")
            parts.append(For(loop.loop_var, first, count, loop.kind, marked(loop.body)))
        parts += [border(index) for index in range(tiles - right, tiles)]
        return _sequence(parts)

    return func.with_body(tvm_ffi.structural_map(func.body, (For, peeled)))


@_pass
def stay_in_rows(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Turn ``(14 * n + 3) // 28`` into ``(14 * n) // 28``, and remainders likewise.

    Where tiles lie within a row of the image, their pixels then are at constant distances. Else
    each has an address of its own, of which LLVM makes vectors, and sums leave their registers.
    TVM itself sees it if `n` is one loop, but not if it is rows and tiles.
    """
    analyzer = sym.Analyzer()

    def divided(division: Any) -> Any:
        number, row = division.a, division.b
        if not (isinstance(number, tirx.Add) and isinstance(row, IntImm)):
            return division
        first, more = number.a, number.b
        if not isinstance(more, IntImm):
            return division
        known = analyzer.modular_set(first)
        step = gcd(int(known.coeff), int(row))
        if not 0 <= int(more) < step - int(known.base) % step:
            return division
        if isinstance(division, tirx.FloorDiv):
            return tirx.floordiv(first, row)
        return tirx.floormod(first, row) + more

    entries = [(kind, divided) for kind in (tirx.FloorDiv, tirx.FloorMod)]
    return func.with_body(tvm_ffi.structural_map(func.body, entries))


@_pass
def promote_accumulators(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Keep the outputs of a tile in one register each, from their first product to their last.

    Within a tile, every vector of outputs gets a buffer of its own size, which LLVM turns into a
    register. Sums that other products went into before are loaded first (the paper's loop order);
    all are stored at the end. Marks between steps become :data:`_PIN`.
    """
    widths: set[int] = set()

    def promoted(tile: AttrStmt) -> Any:
        if tile.attr_key != TILE:
            return tile
        # For each vector of outputs: where it is stored, and its register.
        sums: dict[Any, tuple[BufferStore, Any]] = {}
        begun = []

        def key(buffer: Any, indices: Any) -> Any:
            return tvm_ffi.StructuralKey(tvm_ffi.convert([buffer, *indices]))

        def note(store: BufferStore) -> None:
            place = key(store.buffer, store.indices)
            if place in sums:
                return
            lanes = store.value.ty.dtype.lanes
            widths.add(lanes)
            register = tirx.decl_buffer((lanes,), "float32", name=f"sum{len(sums)}")
            sums[place] = store, register
            earlier = []
            tvm_ffi.structural_walk(
                store.value,
                (
                    TensorLoad,
                    lambda e: earlier.append(e) if e.source.same_as(store.buffer) else None,
                ),
            )
            if earlier:
                begun.append(place)

        tvm_ffi.structural_walk(tile.body, (BufferStore, note), order="pre")

        def check(load: TensorLoad) -> None:
            if any(load.source.same_as(output.buffer) for output, _ in sums.values()):
                # An epilogue would read what is not stored yet.
                assert key(load.source, load.indices) in sums, "a tile reads no sum of its own"

        tvm_ffi.structural_walk(tile.body, (TensorLoad, check))

        def read(register: Any) -> Any:
            return tirx.BufferLoad(register, whole(register))

        def load(expression: TensorLoad) -> Any:
            found = sums.get(key(expression.source, expression.indices))
            return read(found[1]) if found else expression

        def store(statement: BufferStore) -> BufferStore:
            found = sums.get(key(statement.buffer, statement.indices))
            if not found:
                return statement
            return BufferStore(found[1], statement.value, whole(found[1]))

        def pin(statement: Evaluate) -> Any:
            wanted = _marked(statement, _MARK)
            if wanted is None:
                return statement
            registers = [register for _, register in sums.values()]
            if wanted:
                apart = max(1, len(registers) // (wanted + 1))
                registers = registers[apart::apart] or registers
            return _sequence([pinned(register) for register in registers] or [Evaluate(0)])

        def pinned(register: Any) -> BufferStore:
            kind = f"float32x{int(register.shape[0])}"
            same = tirx.call_extern(kind, _PIN_NAME, read(register))
            return BufferStore(register, same, whole(register))

        body = tvm_ffi.structural_map(
            tile.body, [(TensorLoad, load), (BufferStore, store), (Evaluate, pin)]
        )
        before: list[Any] = [AllocBuffer(register) for _, register in sums.values()]
        for place in begun:
            output, register = sums[place]
            value = tirx.BufferLoad(output.buffer, output.indices)
            before.append(BufferStore(register, value, whole(register)))
        after = [
            BufferStore(output.buffer, read(register), output.indices)
            for output, register in sums.values()
        ]
        # Nothing is summed up where all products are with padding.
        return _sequence([*before, body, *after])

    def whole(register: Any) -> list[Any]:
        lanes = int(register.shape[0])
        return [tirx.Ramp(0, 1, lanes) if lanes > 1 else 0]

    body = tvm_ffi.structural_map(func.body, (AttrStmt, promoted))
    constraints = "=v,0,~{memory},~{rbp}" if _is_x86(func) else "=w,0,~{memory}"
    for lanes in widths:
        body = _importing(_PIN.format(n=lanes, constraints=constraints), body)
    return func.with_body(body)


def _after_marks(
    func: PrimFunc, name: str, changed: Callable[[list[Any], int], list[Any]]
) -> PrimFunc:
    """Return a function with other statements after each mark of a name.

    `changed` gets the mark's value and the statements from there to the next mark, to a loop, which
    has marks of its own, or to the end of the sequence.
    """

    def flat(statement: Any) -> list[Any]:
        if isinstance(statement, SeqStmt):
            return [part for inner in statement.seq for part in flat(inner)]
        return [statement]

    def visited(sequence: SeqStmt) -> SeqStmt:
        statements = flat(sequence)
        marks = [i for i, part in enumerate(statements) if _marked(part, name) is not None]
        if not marks:
            return sequence
        done = statements[: marks[0]]
        for mark, following in zip(marks, [*marks[1:], len(statements)], strict=True):
            value = _marked(statements[mark], name) or 0
            after = statements[mark + 1 : following]
            end = next((i for i, part in enumerate(after) if isinstance(part, For)), len(after))
            done += [Evaluate(0), *changed(after[:end], value), *after[end:]]
        return SeqStmt(done)

    def unused(statement: Evaluate) -> Evaluate:
        return Evaluate(0) if _marked(statement, name) is not None else statement

    body = tvm_ffi.structural_map(func.body, (SeqStmt, visited))
    return func.with_body(tvm_ffi.structural_map(body, (Evaluate, unused)))


class _Places:
    """Where elements of the input are, each as a distance from one of a few indices."""

    def __init__(self) -> None:
        self.bases: list[Any] = []
        self._analyzer = sym.Analyzer()

    def of(self, load: TensorLoad) -> tuple[int, int] | None:
        """Return the number of an index, and the distance from it; None if another is loaded."""
        if load.source.name != INPUT_NAME or load.ty.dtype.lanes > 1:
            return None
        (index,) = load.indices
        for number, base in enumerate(self.bases):
            distance = self._analyzer.simplify(index - base)
            if isinstance(distance, IntImm):
                return number, int(distance)
        self.bases.append(index)
        return len(self.bases) - 1, 0


@_pass
def load_lanes(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Load neighbouring elements of the input as one vector, where steps in a row use one each.

    That is for processors whose multiply-adds take a lane of a register for every lane: of four
    channels, a pixel then is one load in place of four.
    """

    def unconditional(statement: Any) -> bool:
        """Return whether this is a store that loads all that is in it, whatever holds."""
        conditions: list[Call] = []
        tvm_ffi.structural_walk(
            statement,
            (Call, lambda e: conditions.append(e) if e.op.name == "prim.if_then_else" else None),
        )
        return isinstance(statement, BufferStore) and not conditions

    def in_vectors(statements: list[Any], lanes: int) -> list[Any]:
        places = _Places()
        loads: dict[tuple[int, int], TensorLoad] = {}

        def note(load: TensorLoad) -> None:
            if found := places.of(load):
                loads.setdefault(found, load)

        for part in filter(unconditional, statements):
            tvm_ffi.structural_walk(part, (TensorLoad, note))
        vectors: list[Any] = []
        lane_of: dict[tuple[int, int], Any] = {}
        for number, distance in sorted(loads):
            row = [(number, distance + lane) for lane in range(lanes)]
            if row[0] in lane_of or any(element not in loads for element in row):
                continue
            first = loads[row[0]]
            register = tirx.decl_buffer((lanes,), "float32", name=f"lanes{len(vectors) // 2}")
            value = tirx.BufferLoad(first.source, [tirx.Ramp(first.indices[0], 1, lanes)])
            vectors += [
                AllocBuffer(register),
                BufferStore(register, value, [tirx.Ramp(0, 1, lanes)]),
            ]
            for lane, element in enumerate(row):
                lane_of[element] = tirx.BufferLoad(register, [lane])
        if not vectors:
            return statements

        def replaced(load: TensorLoad) -> Any:
            found = places.of(load)
            return lane_of.get(found, load) if found else load

        changed = [
            tvm_ffi.structural_map(part, (TensorLoad, replaced)) if unconditional(part) else part
            for part in statements
        ]
        # After the pins of the first step: before, vectors would be there together with those of
        # the steps that end here, and sums be spilled.
        begin = next(i for i, part in enumerate(statements) if not part.same_as(changed[i]))
        return [*changed[:begin], *vectors, *changed[begin:]]

    return _after_marks(func, _LANES_MARK, in_vectors)


@_pass
def read_from_one_base(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Keep the address from which steps read the input in one register.

    LLVM would rather have the array's address in one and the index in another, which saves an
    addition. But where the load is part of a multiply-add, processors split such an instruction in
    two: a tile of one vector, which is all of these, was 8 % slower.
    """

    def from_base(statements: list[Any], _value: int) -> list[Any]:
        places = _Places()
        sources: list[Any] = []

        def note(load: TensorLoad) -> None:
            if places.of(load):
                sources.append(load.source)

        for part in statements:
            tvm_ffi.structural_walk(part, (TensorLoad, note))
        if len(places.bases) != 1:
            return statements
        first = tirx.address_of(tirx.BufferLoad(sources[0], places.bases))
        base = tirx.decl_buffer(sources[0].shape, "float32", name="base")

        def replaced(load: TensorLoad) -> Any:
            found = places.of(load)
            return tirx.BufferLoad(base, [found[1]]) if found else load

        changed = [
            DeclBuffer(base, data=tirx.call_extern(first.ty, "directconv_base", first)),
            *(tvm_ffi.structural_map(part, (TensorLoad, replaced)) for part in statements),
        ]
        return [_importing(_BASE, SeqStmt(changed))]

    return _after_marks(func, _BASE_MARK, from_base)


@_pass
def propagate_nans(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Let maxima and minima of what is not a number be that, as in NumPy.

    TVM's codegen makes ``a > b ? a : b`` of a maximum, which is `b` if one of the two is not a
    number. On x86 that is one instruction: of a constant and a variable, it takes nothing but to
    have the variable second; of two variables, it takes both orders. ARM's own maximum is right,
    but LLVM knows none of float64 on ARMv7.
    """
    own = not _is_x86(func)

    def propagating(node: Any) -> Any:
        dtype = node.ty.dtype
        if dtype.type_code != _FLOAT:
            return node
        kind, a, b = type(node), node.a, node.b
        if own and dtype.bits == 32:
            name = "llvm.maximum" if kind is tirx.Max else "llvm.minimum"
            return tirx.call_llvm_pure_intrin(str(dtype), name, a, b)
        if _is_number(a):
            return node
        if _is_number(b):
            return kind(b, a)
        # Each order returns its second operand then: where they differ, one of the two has all bits
        # of the exponent, and of the fraction some.
        first, second = Var("first", str(dtype)), Var("second", str(dtype))
        bits = str(dtype).replace("float", "int")
        orders = kind(first, second), kind(second, first)
        either = [tirx.reinterpret(bits, order) for order in orders]
        joined = tirx.reinterpret(str(dtype), tirx.bitwise_or(*either))
        return tirx.Let(first, a, tirx.Let(second, b, joined))

    entries = [(kind, propagating) for kind in (tirx.Max, tirx.Min)]
    return func.with_body(tvm_ffi.structural_map(func.body, entries))


@_pass
def hide_masks(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Compute remainders by powers of two so that LLVM takes them for any numbers.

    It makes a mask of `n % 4`, and of the mask a counter of two bits that must not overflow. Where
    the index around it must not overflow either, LLVM 20 to 22 takes the first condition to follow
    from the second (``SCEVWrapPredicate::implies`` does not look at the widths), never tests it,
    and makes vectors of elements that lie beside the input.
    ``scripts/reproduce_llvm_remainders.py`` shows it without this package.

    Convolutions stay as they are: LLVM makes no vectors of loops with pins in them.
    """
    masks: dict[tuple[int, int], Var] = {}
    pins: list[Call] = []
    tvm_ffi.structural_walk(func.body, (Call, lambda e: pins.append(e) if _is_pin(e) else None))
    if pins:
        return func

    def masked(remainder: Any) -> Any:
        divisor, dtype = remainder.b, remainder.ty.dtype
        if isinstance(divisor, tirx.Broadcast):
            divisor = divisor.value
        if not isinstance(divisor, IntImm) or int(divisor) & (int(divisor) - 1) or divisor <= 1:
            return remainder
        key = int(divisor), dtype.bits
        if key not in masks:
            masks[key] = Var(f"mask{int(divisor) - 1}", f"int{dtype.bits}")
        mask: Any = masks[key]
        return remainder.a & (tirx.Broadcast(mask, dtype.lanes) if dtype.lanes > 1 else mask)

    body = tvm_ffi.structural_map(func.body, (tirx.FloorMod, masked))
    bindings = [
        tirx.Bind(
            mask,
            tirx.call_extern(
                f"int{bits}", f"directconv_opaque{bits}", tirx.const(divisor - 1, f"int{bits}")
            ),
        )
        for (divisor, bits), mask in masks.items()
    ]
    body = _sequence([*bindings, body])
    for bits in {bits for _, bits in masks}:
        body = _importing(_OPAQUE.format(bits=bits), body)
    return func.with_body(body)


def _denormal_code(triple: str) -> tuple[int, str]:
    """Return the bits of the floating-point state, and functions that change and restore it."""
    arch = triple.partition("-")[0]
    if arch == "x86_64":
        return 32, _DENORMALS_X86
    if arch == "aarch64":
        words = {"bits": 64, "get": "mrs $0, fpcr", "put": "msr fpcr, $0"}
    else:
        words = {"bits": 32, "get": "vmrs $0, fpscr", "put": "vmsr fpscr, $0"}
    flush, restore = _DENORMALS_ARM.format(**words), _RESTORE_ARM.format(**words)
    return int(str(words["bits"])), _DENORMALS.format(
        bits=words["bits"], flush=flush, restore=restore
    )


@_pass
def flush_denormals(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Let denormals count as zeros while a function runs, in all of its threads.

    A processor can take a hundred times as long for one. What the state was before comes back when
    the function, or a thread's part of it, ends; between, nothing can fail.
    """
    if func.attrs.get(DENORMALS, FLUSH) == KEEP:
        return func
    bits, code = _denormal_code(str(func.attrs["target"].attrs["mtriple"]))

    def guarded(statement: Any) -> SeqStmt:
        before = Var("before", f"int{bits}")
        return SeqStmt(
            [
                tirx.Bind(before, tirx.call_extern(f"int{bits}", "directconv_flush")),
                statement,
                Evaluate(tirx.call_extern("void", "directconv_restore", before)),
            ]
        )

    def visited(statement: Any) -> Any:
        if not _is_parallel(statement):
            return guarded(statement)
        if isinstance(statement, SeqStmt):
            declarations = tirx.Bind, AllocBuffer, DeclBuffer
            return SeqStmt(
                [
                    part if isinstance(part, declarations) else visited(part)
                    for part in statement.seq
                ]
            )
        if isinstance(statement, AttrStmt):
            body = visited(statement.body)
            return AttrStmt(statement.node, statement.attr_key, statement.value, body)
        if isinstance(statement, IfThenElse):
            other = statement.else_case
            return IfThenElse(
                statement.condition,
                visited(statement.then_case),
                None if other is None else visited(other),
            )
        assert isinstance(statement, For)
        if statement.kind != ForKind.PARALLEL:
            return _with_body(statement, visited(statement.body))
        # Each thread runs all that is within this mark: the loop is what its threads share out.
        return AttrStmt(
            tirx.const(0, "int32"),
            "pragma_parallel_launch_point",
            tirx.const(1, "int32"),
            guarded(statement),
        )

    return func.with_body(_importing(code, visited(func.body)))


def _is_parallel(statement: Any) -> bool:
    """Return whether there is a parallel loop in a statement."""
    found: list[For] = []
    tvm_ffi.structural_walk(
        statement, (For, lambda f: found.append(f) if f.kind == ForKind.PARALLEL else None)
    )
    return bool(found)


def _lowered() -> list[Any]:
    """Passes from a schedule to loops over flat buffers with the tile in registers."""
    return [
        finish_in_place,
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        simplify,
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        present_shapes,
        expand_exponentials,
        part_tails,
        skip_padding,
        prefetch_weights,
        prefetch_pixels,
        mark_steps,
        peel_borders,
        tirx.transform.ConvertSSA(),
        tirx.transform.StmtSimplify(),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        stay_in_rows,
        promote_accumulators,
        load_lanes,
        read_from_one_base,
        propagate_nans,
        hide_masks,
        tirx.transform.RemoveNoOp(),
        flush_denormals,
    ]


def lower(func: PrimFunc) -> PrimFunc:
    """Return the loops that are compiled: what `build` does before LLVM.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
        A scheduled convolution, with its target as an attribute.

    Returns
    -------
    tvm.tirx.PrimFunc
        The same function, lowered.
    """
    module = tvm.IRModule({"conv": func})
    return tvm.ir.transform.Sequential(_lowered())(module)["conv"]


def allocated_bytes(func: PrimFunc) -> int:
    """Return the bytes of the largest single allocation in a lowered function, 0 if none.

    Accumulators are allocations of one vector each; anything larger would be memory.
    """
    sizes = [0]

    def note(alloc: AllocBuffer) -> None:
        size = 4
        for extent in alloc.buffer.shape:
            size *= int(extent)
        sizes.append(size)

    tvm_ffi.structural_walk(func.body, (AllocBuffer, note))
    return max(sizes)


def _pipeline() -> tuple[Any, Any, Any]:
    passes = [
        *_lowered(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
    ]
    return (
        tvm.ir.transform.Sequential(passes),
        compilation_pipeline.finalize_host_passes,
        compilation_pipeline.finalize_device_passes,
    )


compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)
