"""Padding and tiles that are narrower than the others get code of their own."""

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir.expr import Call, Var
from tvm.tirx import (
    AttrStmt,
    BufferStore,
    For,
    ForKind,
    IfThenElse,
    PrimFunc,
)

from .marks import COLUMN, TAIL, TAP, TILE, VECTOR
from .statements import conjuncts, replaced, sequence, tir_pass, uses, with_body


@tir_pass
def simplify(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Simplify as TVM does, but not for columns 0 to 2 where those of the last tile are others.

    It turns ``3 * tap + 3 * tile + column < 12`` into ``tap + tile < 4``. That is wrong for a last
    tile that takes over columns (:func:`peel_borders`).
    """
    columns: dict[Var, Var] = {}

    def taking_over(loop: For) -> For:
        if TILE not in loop.annotations or int(loop.annotations[TILE][2]) == 0:
            return loop
        return with_body(loop, tvm_ffi.structural_map(loop.body, (For, hidden)))

    def hidden(loop: For) -> For:
        if COLUMN not in loop.annotations:
            return loop
        column = loop.loop_var
        columns[column] = Var(column.name, column.ty.dtype)
        return with_body(loop, replaced(loop.body, column, columns[column]))

    body = tvm_ffi.structural_map(func.body, (For, taking_over))
    module = s_tir.transform.StmtSimplify()(tvm.IRModule({"main": func.with_body(body)}))
    body = module["main"].body
    for column, free in columns.items():
        body = replaced(body, free, column)
    return func.with_body(body)


@tir_pass
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
            parts = conjuncts(statement.condition)
            others = [part for part in parts if not any(uses(part, f.loop_var) for f in vectors)]
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
            body = inner.body if narrow == 1 else replaced(inner.body, vector, vector - left)
            return with_body(inner, body, extent=tirx.const(few, vector.ty.dtype))

        whole = tvm_ffi.structural_map(loop.body, (IfThenElse, existing))
        tail = tvm_ffi.structural_map(whole, (For, fewer))
        return with_body(loop, IfThenElse(tile >= tiles - narrow, tail, whole), done=TAIL)

    return func.with_body(tvm_ffi.structural_map(func.body, (For, parted)))


@tir_pass
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
        if not (isinstance(otherwise, tirx.FloatImm | tirx.IntImm) and otherwise.value == 0):
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
        parts = conjuncts(test.condition)
        inner = [part for part in parts if uses(part, loop.loop_var)]
        outer = [part for part in parts if not uses(part, loop.loop_var)]
        if not outer:
            return loop
        body = IfThenElse(tirx.all(*inner), test.then_case, None) if inner else test.then_case
        return IfThenElse(tirx.all(*outer), with_body(loop, body), None)

    body = tvm_ffi.structural_map(
        func.body, [(BufferStore, guarded), (IfThenElse, merged), (For, hoisted)]
    )
    return func.with_body(body)


@tir_pass
def peel_borders(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Give each border tile code of its own, with constant indices, and the others a loop."""

    def unrolled_tap(loop: For) -> For:
        if TAP not in loop.annotations:
            return loop
        return with_body(loop, loop.body, ForKind.UNROLLED, done=TAP)

    def marked(body: Any) -> AttrStmt:
        return AttrStmt(tirx.const(0, "int32"), TILE, tirx.const(1, "int32"), body)

    def peeled(loop: For) -> Any:
        if TILE not in loop.annotations:
            return loop
        left, right, rebalanced = (int(count) for count in loop.annotations[TILE])
        tiles = int(loop.extent)
        if left + right >= tiles:
            left, right = tiles, 0

        def border(index: int) -> AttrStmt:
            number = tirx.const(index, loop.loop_var.ty.dtype)
            body = replaced(loop.body, loop.loop_var, number)
            body = tvm_ffi.structural_map(body, (For, unrolled_tap))

            def shared(columns: For) -> For:
                if COLUMN not in columns.annotations:
                    return columns
                column, inside = columns.loop_var, columns.body
                if index == tiles - 2:
                    inside = IfThenElse(column < columns.extent - rebalanced, inside, None)
                elif index == tiles - 1:
                    inside = replaced(inside, column, column - rebalanced)
                return with_body(columns, inside)

            return marked(tvm_ffi.structural_map(body, (For, shared)) if rebalanced else body)

        parts: list[Any] = [border(index) for index in range(left)]
        if left + right < tiles:
            first, count = tirx.const(left, "int32"), tirx.const(tiles - left - right, "int32")
            parts.append(For(loop.loop_var, first, count, loop.kind, marked(loop.body)))
        parts += [border(index) for index in range(tiles - right, tiles)]
        return sequence(parts)

    return func.with_body(tvm_ffi.structural_map(func.body, (For, peeled)))
