"""How steps load the input: several channels at once, and from one address on."""

from itertools import compress
from math import gcd
from typing import Any

import tvm_ffi
from tvm import sym, tirx
from tvm.ir.expr import Call, TensorLoad
from tvm.tirx import (
    AllocBuffer,
    BufferStore,
    DeclBuffer,
    IntImm,
    PrimFunc,
    SeqStmt,
)

from ..compute import INPUT_NAME
from .registers import LANE_OPERAND_MARK, MEMORY_OPERAND_MARK, after_marks
from .statements import importing, tir_pass

LANES_NAME = "lanes"
"""Begins the names of registers with several pixels."""

# The same address, but LLVM does not see of what it was made.
_BASE = """
define ptr @directconv_base(ptr %a) alwaysinline {
  %b = call ptr asm "", "=r,0"(ptr %a)
  ret ptr %b
}
"""


@tir_pass
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


class _Places:
    """Where elements of the input are, each as a distance from one of a few indices."""

    def __init__(self) -> None:
        self.bases: list[Any] = []
        self._known: dict[Any, tuple[int, int]] = {}
        self._analyzer = sym.Analyzer()

    def of(self, load: TensorLoad) -> tuple[int, int] | None:
        """Return the number of an index, and the distance from it; None if another is loaded."""
        if load.source.name != INPUT_NAME or load.ty.dtype.lanes > 1:
            return None
        (index,) = load.indices
        # Each is read for several vectors of outputs.
        key = tvm_ffi.StructuralKey(index)
        if key not in self._known:
            self._known[key] = self._found(index)
        return self._known[key]

    def _found(self, index: Any) -> tuple[int, int]:
        for number, base in enumerate(self.bases):
            distance = self._analyzer.simplify(index - base)
            if isinstance(distance, IntImm):
                return number, int(distance)
        self.bases.append(index)
        return len(self.bases) - 1, 0


@tir_pass
def load_lanes(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Load neighbouring elements of the input as one vector, where steps in a row use one each.

    That is for processors whose multiply-adds take a lane of a register for every lane: of four
    channels, a pixel then is one load in place of four. It is one conversion, too, if they are
    multiplied in another type.
    """

    def unconditional(statement: Any) -> bool:
        """Return whether this is a store that loads all that is in it, whatever holds."""
        if not isinstance(statement, BufferStore):
            return False
        conditions: list[Call] = []
        tvm_ffi.structural_walk(
            statement,
            (Call, lambda e: conditions.append(e) if e.op.name == "prim.if_then_else" else None),
        )
        return not conditions

    def in_vectors(statements: list[Any], lanes: int) -> list[Any]:
        places = _Places()
        loads: dict[tuple[int, int], TensorLoad] = {}
        converted: list[str] = []  # to these types, all the same

        def note(load: TensorLoad) -> None:
            if found := places.of(load):
                loads.setdefault(found, load)

        def note_conversion(cast: tirx.Cast) -> None:
            if isinstance(cast.value, TensorLoad) and places.of(cast.value):
                converted.append(str(cast.ty.dtype))

        at_once = [unconditional(part) for part in statements]
        for part in compress(statements, at_once):
            tvm_ffi.structural_walk(part, [(TensorLoad, note), (tirx.Cast, note_conversion)])
        vectors: list[Any] = []
        lane_of: dict[tuple[int, int], Any] = {}
        for number, distance in sorted(loads):
            row = [(number, distance + lane) for lane in range(lanes)]
            if row[0] in lane_of or any(element not in loads for element in row):
                continue
            first = loads[row[0]]
            dtype = converted[0] if converted else first.source.dtype
            register = tirx.decl_buffer((lanes,), dtype, name=f"{LANES_NAME}{len(vectors) // 2}")
            value = tirx.BufferLoad(first.source, [tirx.Ramp(first.indices[0], 1, lanes)])
            value = value.astype(f"{dtype}x{lanes}")
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

        def done(cast: tirx.Cast) -> Any:
            return cast.value if cast.value.ty.dtype == cast.ty.dtype else cast

        entries = [(TensorLoad, replaced), (tirx.Cast, done)]
        changed = [
            tvm_ffi.structural_map(part, entries) if loaded else part
            for part, loaded in zip(statements, at_once, strict=True)
        ]
        # After the pins of the first step: before, vectors would be there together with those of
        # the steps that end here, and sums be spilled.
        begin = next(i for i, part in enumerate(statements) if not part.same_as(changed[i]))
        return [*changed[:begin], *vectors, *changed[begin:]]

    return after_marks(func, LANE_OPERAND_MARK, in_vectors)


@tir_pass
def read_from_bases(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Keep the address from which steps read the input in one register, or one for each group.

    LLVM would rather have the array's address in one and the index in another, which saves an
    addition. But where the load is part of a multiply-add, processors split such an instruction in
    two: a tile of one vector, which is all of these, was 8 % slower. And where channels of groups
    cross blocks, LLVM computes an index of its own for each column.
    """

    def from_bases(statements: list[Any], most: int) -> list[Any]:
        places = _Places()
        sources: list[Any] = []

        def note(load: TensorLoad) -> None:
            if places.of(load):
                sources.append(load.source)

        for part in statements:
            tvm_ffi.structural_walk(part, (TensorLoad, note))
        if not 1 <= len(places.bases) <= most:
            return statements
        bases = [
            tirx.decl_buffer(sources[0].shape, sources[0].dtype, name="base") for _ in places.bases
        ]
        declared = []
        for base, index in zip(bases, places.bases, strict=True):
            first = tirx.address_of(tirx.BufferLoad(sources[0], [index]))
            data = tirx.call_extern(first.ty, "directconv_base", first)
            declared.append(DeclBuffer(base, data=data))

        def replaced(load: TensorLoad) -> Any:
            found = places.of(load)
            return tirx.BufferLoad(bases[found[0]], [found[1]]) if found else load

        changed = [tvm_ffi.structural_map(part, (TensorLoad, replaced)) for part in statements]
        return [importing(_BASE, SeqStmt([*declared, *changed]))]

    return after_marks(func, MEMORY_OPERAND_MARK, from_bases)
