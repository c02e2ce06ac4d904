"""Matrix registers: pixels times weights, added to sums, each of these a matrix.

A register has 16 rows of 64 bytes. Of pixels, a row is the words of one pixel; of weights, one word
for each output channel; of sums, all these channels of one pixel. They are loaded and stored row by
row, any distance apart, so rows of an image are as good as matrices. Nothing masks a row: where
some pixels of a matrix are padding, it is put together on the stack.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import tvm_ffi
from tvm import sym, tirx
from tvm.ir.expr import Call, StringImm, TensorLoad, Var
from tvm.s_tir import SBlock
from tvm.tirx import (
    AssertStmt,
    BufferStore,
    DeclBuffer,
    Evaluate,
    For,
    ForKind,
    IfThenElse,
    PrimFunc,
)

from ..compute import BLOCK_NAME, FINISH_NAME, INPUT_NAME
from ..instructions import MATRIX_REGISTERS
from .marks import BLOCK, MATRICES
from .statements import conjuncts, importing, replaced, sequence, tir_pass, uses

_BYTES = 64  # of a row
# Among so many steps the outputs of the tile before are finished: their instructions find room
# beside products of matrices, which take 16 cycles each.
_STEPS_TO_FINISH = 8
_REFUSED = (
    "the system does not let this program use matrix registers (AMX): expected Linux from 5.16 on "
    "that does not withhold them; else compile for a processor without, such as icelake-server"
)
# Linux gives the registers to those only who ask for them, once in a process: arch_prctl (158),
# ARCH_REQ_XCOMP_PERM (0x1023), for XTILEDATA (18).
_CODE = """
@directconv_permitted = private global i32 0
@directconv_shapes = private unnamed_addr constant [64 x i8] c"{shapes}", align 64
declare i64 @syscall(i64, ...)
declare void @llvm.x86.ldtilecfg(ptr)
declare ptr @llvm.ptrmask.p0.i64(ptr, i64)
define i32 @directconv_permit() alwaysinline {{
begin:
  %known = load atomic i32, ptr @directconv_permitted monotonic, align 4
  %permitted = icmp ne i32 %known, 0
  br i1 %permitted, label %done, label %ask
ask:
  %answer = call i64 (i64, ...) @syscall(i64 158, i64 4131, i64 18)
  %zero = icmp eq i64 %answer, 0
  %new = zext i1 %zero to i32
  store atomic i32 %new, ptr @directconv_permitted monotonic, align 4
  br label %done
done:
  %result = phi i32 [ %known, %begin ], [ %new, %ask ]
  ret i32 %result
}}
define void @directconv_configure() alwaysinline {{
  call void @llvm.x86.ldtilecfg(ptr @directconv_shapes)
  ret void
}}
define ptr @directconv_aligned(ptr %a) alwaysinline {{
  %b = getelementptr i8, ptr %a, i64 63
  %c = call ptr @llvm.ptrmask.p0.i64(ptr %b, i64 -64)
  ret ptr %c
}}
"""


@tir_pass
def multiply_matrices(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Write the loops of a convolution that is computed in matrix registers.

    Tiles of pixels and of output channels that are left over begin earlier, and compute some of the
    outputs again: all have the same size, which the registers are configured for.
    """
    found: list[SBlock] = []
    tvm_ffi.structural_walk(func.body, (SBlock, found.append))
    blocks = {block.name_hint: block for block in found}
    conv = blocks.get(BLOCK_NAME)
    if conv is None or MATRICES not in conv.annotations:
        return func
    return _Kernel(func, conv, blocks.get(FINISH_NAME)).function()


_Tap = tuple[Any, Any, Any]
"""Block of words, row and column of the kernel."""


@dataclass(frozen=True)
class _Tile:
    """Where a tile is in the output.

    Attributes
    ----------
    batch : Expr
    vector : Expr
        Its first vector of output channels.
    places : list of (Expr, Expr)
        Row and column of the first pixel of each of its matrices.
    """

    batch: Any
    vector: Any
    places: list[tuple[Any, Any]]


class _Kernel:
    """A convolution whose function is being written.

    `conv` is the block that multiplies and adds, `finish` that of the epilogue, if there is one.
    """

    def __init__(self, func: PrimFunc, conv: SBlock, finish: SBlock | None) -> None:
        self.func, self.conv, self.finish = func, conv, finish
        marks = conv.annotations[MATRICES]
        self.matrices, self.channels = int(marks["matrices"]), int(marks["vectors"])
        self.rows, self.columns = int(marks["rows"]), int(marks["columns"])
        self.multiply, self.threads = str(marks["multiply"]), int(marks["threads"])
        self.rows_outside = bool(marks["rows_outside"])
        self.pixels = self.rows * self.columns
        extents = [int(axis.dom.extent) for axis in conv.iter_vars]
        self.batches, self.vectors, self.height, self.width, self.lanes = extents[:5]
        self.ic_blocks, self.kernel_rows, self.kernel_columns, self.words = extents[5:]
        loads: list[TensorLoad] = []
        conditions: list[Any] = []

        def note(call: Call) -> None:
            if call.op.name == "prim.if_then_else":
                conditions.append(call.args[0])

        tvm_ffi.structural_walk(conv.body.value, [(TensorLoad, loads.append), (Call, note)])
        self.sums = conv.body.buffer
        (self.input,) = (load for load in loads if load.source.name == INPUT_NAME)
        (self.weight,) = (
            load
            for load in loads
            if not load.source.same_as(self.sums) and load.source.name != INPUT_NAME
        )
        self.conditions = [part for whole in conditions for part in conjuncts(whole)]
        self.apart = self._apart()
        kept = self.matrices * self.channels * self.pixels * self.lanes
        self.scratch = tirx.decl_buffer((kept,), self.sums.dtype, name="sums")
        put_together = self.matrices * self.pixels * self.words
        self.stack = tirx.decl_buffer((put_together,), self.input.source.dtype, name="pixels")

    # Registers: sums, pixels, and what is left for weights, by turns.

    def _sum(self, m: int, v: int) -> int:
        return m * self.channels + v

    def _pixels(self, m: int) -> int:
        return self.matrices * self.channels + m

    def _weights(self, v: int) -> int:
        first = self._pixels(self.matrices)
        return first + v % (MATRIX_REGISTERS - first)

    def _shapes(self) -> list[tuple[int, int]]:
        """Return rows and bytes in a row of all registers."""
        sums = [(self.pixels, 4 * self.lanes)] * self._pixels(0)
        pixels = [(self.pixels, 4 * self.words)] * self.matrices
        weights = MATRIX_REGISTERS - len(sums) - len(pixels)
        return [*sums, *pixels, *[(self.words, 4 * self.lanes)] * weights]

    def function(self) -> PrimFunc:
        """Return the function."""
        total, tile_of = self._numbered()
        thread, number = Var("thread", "int32"), Var("number", "int32")
        begin = tirx.floordiv(thread * total, self.threads)
        end = tirx.floordiv((thread + 1) * total, self.threads)
        # Sums are finished beside the products of the next tile, and the first ones have none
        # before: what is stored in their place is overwritten.
        body = self._tile(tile_of(number), tile_of(tirx.max(number - 1, begin)))
        tiles: Any = For(number, begin, end - begin, ForKind.SERIAL, body)
        if self.finish:
            last = self._finished(tile_of(end - 1))
            tiles = IfThenElse(begin < end, sequence([tiles, *last]), None)
        task = _configuring(sequence([*self._memory(), tiles]))
        if self.threads > 1:
            work: Any = For(thread, 0, self.threads, ForKind.PARALLEL, task)
        else:
            work = replaced(task, thread, tirx.const(0, "int32"))
        return self.func.with_body(_permitted(_configured(self._shapes()), work))

    def _numbered(self) -> tuple[int, Callable[[Any], _Tile]]:
        """Return how many tiles there are, and what finds the one of a number."""
        across = -(-self.width // self.columns)
        matrices = -(-self.height // self.rows) * across
        groups, channels = -(-matrices // self.matrices), -(-self.vectors // self.channels)

        def tile_of(number: Any) -> _Tile:
            if self.rows_outside:
                rest, channel = tirx.floordiv(number, channels), tirx.floormod(number, channels)
                batch, group = tirx.floordiv(rest, groups), tirx.floormod(rest, groups)
            else:
                rest, group = tirx.floordiv(number, groups), tirx.floormod(number, groups)
                batch, channel = tirx.floordiv(rest, channels), tirx.floormod(rest, channels)
            first = _begin(group, self.matrices, matrices)
            places = [self._place(first + i, across) for i in range(self.matrices)]
            return _Tile(batch, _begin(channel, self.channels, self.vectors), places)

        return self.batches * groups * channels, tile_of

    def _place(self, matrix: Any, across: int) -> tuple[Any, Any]:
        """Return row and column of the first pixel of a matrix."""
        row = _begin(tirx.floordiv(matrix, across), self.rows, self.height)
        column = _begin(tirx.floormod(matrix, across), self.columns, self.width)
        return row, column

    def _puts_together(self) -> bool:
        """Return whether some matrices of pixels are put together on the stack."""
        return bool(self.conditions) or self.apart is None

    def _memory(self) -> list[Any]:
        """Declare what is kept on the stack, aligned: sums to be finished, and pixels."""
        found = []
        needed = {self.scratch: self.finish is not None, self.stack: self._puts_together()}
        for buffer in (buffer for buffer, wanted in needed.items() if wanted):
            words = int(buffer.shape[0]) // 2 + _BYTES // 8
            data = tirx.call_intrin("handle", "tirx.tvm_stack_alloca", "shape", words)
            aligned = tirx.call_extern(buffer.data.ty, "directconv_aligned", data)
            found.append(DeclBuffer(buffer, data=aligned))
        return found

    def _tile(self, tile: _Tile, previous: _Tile) -> Any:
        """Compute the sums of a tile, and meanwhile finish those of the previous one."""
        products = [(m, v) for m in range(self.matrices) for v in range(self.channels)]
        found = [_intrinsic("tilezero", _register(self._sum(*each))) for each in products]
        apart = 0
        if self.finish:
            taps = self.kernel_rows * self.kernel_columns
            apart = min(self.ic_blocks, ceil(_STEPS_TO_FINISH / taps))
            steps = [
                self._step(tile, (_int(block), _int(row), column))
                for block in range(apart)
                for row in range(self.kernel_rows)
                for column in range(self.kernel_columns)
            ]
            finished = [
                self._outputs(previous, *each, _int(r), _int(c))
                for each in products
                for r in range(self.rows)
                for c in range(self.columns)
            ]
            for number, step in enumerate(steps):
                first, end = (at * len(finished) // len(steps) for at in (number, number + 1))
                found += [*step, *finished[first:end]]
        if apart < self.ic_blocks:
            block, row = Var("ic", "int32"), Var("kh", "int32")
            columns = [self._step(tile, (block, row, at)) for at in range(self.kernel_columns)]
            body = sequence([part for column in columns for part in column])
            loop = For(row, 0, self.kernel_rows, ForKind.SERIAL, body)
            found.append(For(block, apart, self.ic_blocks - apart, ForKind.SERIAL, loop))
        found += [self._store(tile, *each) for each in products]
        return sequence(found)

    def _step(self, tile: _Tile, tap: _Tap) -> list[Any]:
        """Multiply and add one block of words at one place in the kernel."""
        found = []
        for v in range(self.channels):
            at = tirx.address_of(self._of_conv(self.weight, tile, 0, tap, vector=v))
            weights = _register(self._weights(v))
            found.append(_intrinsic("tileloadd64", weights, at, _long(_BYTES)))
            for m in range(self.matrices):
                parts = [] if v else self._load(tile, m, tap)
                pixels = _register(self._pixels(m))
                parts.append(_intrinsic(self.multiply, _register(self._sum(m, v)), pixels, weights))
                inside = self._inside(tile, m, tap, rows_only=True)
                if self.rows == 1 and inside:
                    parts = [IfThenElse(tirx.all(*inside), sequence(parts), None)]
                found += parts
        return found

    def _load(self, tile: _Tile, m: int, tap: _Tap) -> list[Any]:
        """Load a matrix of pixels, by way of the stack if some of them are padding."""
        register = _register(self._pixels(m))
        evenly: list[Any] = []
        if self.apart is not None:
            first = tirx.address_of(self._of_conv(self.input, tile, m, tap))
            evenly = [_intrinsic("tileloadd64", register, first, _long(4 * self.apart))]
        if not self._puts_together():
            return evenly
        r, c, k = (Var(name, "int32") for name in ("r", "c", "k"))
        begin = m * self.pixels * self.words
        value = self._of_conv(self.input, tile, m, tap, r, c, word=k)
        if self.conditions:
            inside = tirx.all(*self._inside(tile, m, tap, r, c))
            value = tirx.if_then_else(inside, value, tirx.const(0, value.ty.dtype))
        where = begin + (r * self.columns + c) * self.words + k
        copied = BufferStore(self.stack, value, [where])
        at = tirx.address_of(tirx.BufferLoad(self.stack, [begin]))
        load = _intrinsic("tileloadd64", register, at, _long(4 * self.words))
        together = [self._of_pixels(r, c, _vector(k, self.words, copied)), load]
        if not evenly:
            return together
        corners = [(0, 0), (self.rows - 1, self.columns - 1)]
        whole = [part for each in corners for part in self._inside(tile, m, tap, *each)]
        return [IfThenElse(tirx.all(*whole), sequence(evenly), sequence(together))]

    def _of_pixels(self, row: Var, column: Var, body: Any) -> For:
        inner = For(column, 0, self.columns, ForKind.SERIAL, body)
        return For(row, 0, self.rows, ForKind.SERIAL, inner)

    def _inside(
        self, tile: _Tile, m: int, tap: _Tap, r: Any = 0, c: Any = 0, rows_only: bool = False
    ) -> list[Any]:
        """Return the conditions under which a pixel is no padding, or its row is none."""
        of_columns = [self.conv.iter_vars[axis].var for axis in (3, 7)]
        return [
            self._of_conv(part, tile, m, tap, r, c)
            for part in self.conditions
            if not (rows_only and any(uses(part, variable) for variable in of_columns))
        ]

    def _apart(self) -> int | None:
        """Return how many words two neighbouring pixels of a matrix are apart, None if that varies.

        In the next row of the output, the first pixel has to follow the last one of this row.
        """
        analyzer = sym.Analyzer()
        tile = _Tile(0, 0, [(Var("row", "int32"), 0)])
        shape = [int(extent) for extent in self.input.source.shape]

        def position(row: int, column: int) -> Any:
            load = self._of_conv(self.input, tile, 0, (0, 0, 0), row, column)
            where: Any = 0
            for index, extent in zip(load.indices, shape, strict=True):
                where = where * extent + index
            return where

        def distance(one: Any, other: Any) -> Any:
            return analyzer.simplify(other - one)

        if self.columns > 1:
            apart = distance(position(0, 0), position(0, 1))
        elif self.rows > 1:
            apart = distance(position(0, 0), position(1, 0))
        else:
            return self.words
        if self.rows > 1:
            last = distance(position(0, self.columns - 1), position(1, 0))
            if not isinstance(last, tirx.IntImm) or int(last) != int(apart):
                return None
        return int(apart)

    def _store(self, tile: _Tile, m: int, v: int) -> Any:
        """Store a matrix of sums: where outputs are, or where the epilogue reads them."""
        if self.finish:
            at, apart = tirx.BufferLoad(self.scratch, [self._place_of_sum(m, v)]), self.lanes
        else:
            row, column = tile.places[m]
            at = tirx.BufferLoad(self.sums, [tile.batch, tile.vector + v, row, column, 0])
            apart = int(self.func.attrs[BLOCK]) if BLOCK in self.func.attrs else self.lanes
        register, stride = _register(self._sum(m, v)), _long(4 * apart)
        return _intrinsic("tilestored64", register, tirx.address_of(at), stride)

    def _place_of_sum(self, m: int, v: int, r: Any = 0, c: Any = 0, lane: Any = 0) -> Any:
        first = self._sum(m, v) * self.pixels
        return (first + r * self.columns + c) * self.lanes + lane

    def _finished(self, tile: _Tile) -> list[Any]:
        """Finish the outputs of a tile."""
        r, c = Var("r", "int32"), Var("c", "int32")
        return [
            self._of_pixels(r, c, self._outputs(tile, m, v, r, c))
            for m in range(self.matrices)
            for v in range(self.channels)
        ]

    def _outputs(self, tile: _Tile, m: int, v: int, r: Any, c: Any) -> Any:
        """Finish the outputs of a pixel in a matrix of sums."""
        assert self.finish is not None
        lane, (row, column) = Var("lane", "int32"), tile.places[m]
        of_sum = self._place_of_sum(m, v, r, c, lane)

        def read(load: TensorLoad) -> Any:
            mine = load.source.same_as(self.sums)
            return tirx.BufferLoad(self.scratch, [of_sum]) if mine else load

        body = tvm_ffi.structural_map(self.finish.body, (TensorLoad, read))
        axes = [axis.var for axis in self.finish.iter_vars]
        body = _with(body, axes, [tile.batch, tile.vector + v, row + r, column + c, lane])
        return _vector(lane, self.lanes, body)

    def _of_conv(
        self, code: Any, tile: _Tile, m: int, tap: _Tap, r: Any = 0, c: Any = 0, **at: Any
    ) -> Any:
        """Return an expression of the convolution for a pixel of a matrix, at a tap."""
        axes = [axis.var for axis in self.conv.iter_vars]
        row, column = tile.places[m]
        vector = tile.vector + at.get("vector", 0)
        values = [tile.batch, vector, row + r, column + c, 0, *tap, at.get("word", 0)]
        return _with(code, axes, values)


def products_again(multiply: str, total: str, sums: int, rounds: int, threads: int) -> PrimFunc:
    """Return a function that computes nothing but products of the same matrices, in all threads.

    Its parameters are a matrix of pixels and one of weights after it, and the sums of each thread.
    """
    words = 16 * _BYTES // 4
    x = tirx.decl_buffer((2 * words,), total, name="x")
    y = tirx.decl_buffer((threads * sums * words,), total, name="y")
    thread, number = Var("thread", "int32"), Var("number", "int32")

    def moved(name: str, register: int, buffer: Any, at: Any) -> Any:
        where = tirx.address_of(tirx.BufferLoad(buffer, [at * words]))
        return _intrinsic(name, _register(register), where, _long(_BYTES))

    products = [
        _intrinsic(multiply, _register(each), _register(sums), _register(sums + 1))
        for each in range(sums)
    ]
    begin = [_intrinsic("tilezero", _register(each)) for each in range(sums)]
    operands = [moved("tileloadd64", sums + each, x, each) for each in range(2)]
    loop = For(number, 0, rounds, ForKind.SERIAL, sequence(products))
    end = [moved("tilestored64", each, y, thread * sums + each) for each in range(sums)]
    code = _configured([(16, _BYTES)] * MATRIX_REGISTERS)
    task = sequence([*begin, *operands, loop, *end])
    body = _permitted(code, For(thread, 0, threads, ForKind.PARALLEL, _configuring(task)))
    func = PrimFunc([x, y], body)
    return func.with_attr({"tirx.noalias": False, "global_symbol": "burst"})


def _configured(shapes: Sequence[tuple[int, int]]) -> str:
    """Return the functions of LLVM that configure registers: rows, and bytes in each, of all."""
    data = bytearray(64)
    data[0] = 1
    for register, (rows, row_bytes) in enumerate(shapes):
        data[16 + 2 * register] = row_bytes
        data[48 + register] = rows
    return _CODE.format(shapes="".join(f"\\{value:02X}" for value in data))


def _configuring(body: Any) -> Any:
    """Return what a thread does, its registers configured meanwhile."""
    configure = Evaluate(tirx.call_extern("void", "directconv_configure"))
    return sequence([configure, body, _intrinsic("tilerelease")])


def _permitted(code: str, body: Any) -> Any:
    """Return what a function does, after it is allowed to."""
    permitted = tirx.call_extern("int32", "directconv_permit") != 0
    check = AssertStmt(permitted, StringImm("RuntimeError"), [StringImm(_REFUSED)])
    return importing(code, sequence([check, body]))


def _begin(number: Any, size: int, extent: int) -> Any:
    """Return where the tile of a number begins, so that it ends within the extent."""
    if extent % size == 0:
        return number * size
    return tirx.min(number * size, extent - size)


def _with(code: Any, variables: Sequence[Var], values: Sequence[Any]) -> Any:
    def value(variable: Var) -> Any:
        for known, new in zip(variables, values, strict=True):
            if variable.same_as(known):
                return tirx.const(new, "int32") if isinstance(new, int) else new
        return variable

    return tvm_ffi.structural_map(code, (Var, value))


def _vector(lane: Var, extent: int, body: Any) -> For:
    return For(lane, 0, extent, ForKind.VECTORIZED, body)


def _int(value: int) -> Any:
    return tirx.const(value, "int32")


def _long(value: int) -> Any:
    return tirx.const(value, "int64")


def _register(number: int) -> Any:
    return tirx.const(number, "int8")


def _intrinsic(name: str, *arguments: Any) -> Any:
    """Return the call of an instruction of matrices, as LLVM names it."""
    return Evaluate(tirx.call_llvm_intrin("int32", f"llvm.x86.{name}", *arguments))
