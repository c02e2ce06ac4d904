"""Weights and pixels that are fetched before they are needed."""

from collections.abc import Callable
from typing import Any

import tvm_ffi
from tvm import sym, tirx
from tvm.ir.expr import TensorLoad, Var
from tvm.tirx import (
    AttrStmt,
    Evaluate,
    For,
    IfThenElse,
    IntImm,
    PrimFunc,
    SeqStmt,
)

from ..compute import INPUT_NAME, WEIGHT_NAME
from .marks import COLUMN, PREFETCH_PIXELS, PREFETCH_WEIGHTS, TILE
from .statements import importing, sequence, tir_pass, uses, with_body

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
_LINE = 64  # bytes
# Lines that may be fetched at once: caches have 10 to 24 on their way, and then let others wait.
_AT_ONCE = 16


def _fetched(load: TensorLoad, element: Any) -> Evaluate:
    """Return what fetches the line of an element of the array that is loaded from."""
    base = tirx.address_of(tirx.BufferLoad(load.source, [tirx.const(0, "int32")]))
    floats = tirx.floordiv(element * _size(load), 4)
    element = tirx.Cast("int64", sym.Analyzer().simplify(floats))
    return Evaluate(tirx.call_extern("void", "directconv_prefetch", base, element))


def _size(load: TensorLoad) -> int:
    """Return the bytes of an element."""
    return int(load.ty.dtype.bits) // 8


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
        return tvm_ffi.structural_map(body, (For, lambda f: with_body(f, f.body, done=mark)))

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
            return with_body(statement, visited(statement.body, [*outer, statement]), done=mark)
        body = sequence([*found, unmarked(statement.body)])
        return importing(_PREFETCH, with_body(statement, body, done=mark))

    return func.with_body(visited(func.body, []))


@tir_pass
def prefetch_weights(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Fetch, with each tile, a part of the weights that the tiles after all of these need.

    Tiles read the same weights again and again, then all at once others, which come from far away
    the first time: where images are small, that is a good part of the time. A tile's part is
    fetched when it begins if that is not too much at once, else piece by piece within the tile.
    """

    def fetches(outer: list[For], loop: For, load: TensorLoad) -> list[Any]:
        vectors, distance, length, tasks = (
            int(value) for value in loop.annotations[PREFETCH_WEIGHTS]
        )
        (index,) = load.indices
        nest = [*outer, loop]
        inside = [TILE in other.annotations for other in nest].index(True) + 1
        outside, within = nest[:inside], nest[inside:]
        again = [other for other in outside if not uses(index, other.loop_var)] + within
        # Tasks, or blocks of input channels within them; neither if all weights are these.
        position = [other for other in outside if uses(index, other.loop_var)]
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
        in_line = _LINE // _size(load)
        lines = -(-length // in_line)
        share = -(-lines // turns)
        if vectors * share > _AT_ONCE:
            return []
        found = [
            _fetched(load, start + vector * distance + (turn * share + line) * in_line)
            for vector in range(vectors)
            for line in range(share)
        ]
        if 2 * share * turns <= 3 * lines:  # Weights after the next ones do no harm.
            return found
        return [IfThenElse(turn * share < lines, sequence(found), None)]

    return _with_fetches(func, PREFETCH_WEIGHTS, WEIGHT_NAME, fetches)


@tir_pass
def prefetch_pixels(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Fetch, with each tile, the pixels that the next one is the first to read.

    Of large images they come from far away. The processor itself notices a row that is read pixel
    by pixel, but a tile goes through a few pixels of many rows and channels.
    """
    analyzer = sym.Analyzer()

    def fetches(outer: list[For], loop: For, load: TensorLoad) -> list[Any]:
        beyond = [int(elements) for elements in loop.annotations[PREFETCH_PIXELS]]
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
            if int(distance) >= _LINE // _size(load):
                lines.append(element)
        return [_fetched(load, line + elements) for line in lines for elements in beyond]

    return _with_fetches(func, PREFETCH_PIXELS, INPUT_NAME, fetches)
