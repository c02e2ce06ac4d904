"""Lanes of a vector that belong to different groups get their pixels without gathering them.

Vectors of output channels that span groups read an element of the input for each of their lanes.
The distances between these are known when compiling, once the tiles that begin at the same place in
their groups have code of their own. Of elements that lie side by side, a vector is loaded and
permuted; others are each loaded into all lanes, and blended.
"""

import operator
from collections.abc import Callable
from math import gcd
from typing import Any

import tvm_ffi
from tvm import sym, tirx
from tvm.ir.expr import TensorLoad, Var
from tvm.tirx import AttrStmt, For, IfThenElse, IntImm, PrimFunc

from ..compute import INPUT_NAME
from ..precision import NUMBER_TYPES
from .marks import GROUPS
from .statements import architecture_of, importing, replaced, tir_pass, with_body

# With more elements that lie apart, each of them is loaded into its lanes.
_MOST_BLENDED = 4


@tir_pass
def part_kinds(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Give tiles of output channels that begin elsewhere in their groups code of their own."""

    def parted(loop: For) -> Any:
        if GROUPS not in loop.annotations:
            return loop
        run, *kinds = (int(number) for number in loop.annotations[GROUPS])
        task = loop.loop_var
        tile = tirx.floormod(tirx.floordiv(task, run), len(kinds))

        def of_kind(kind: int) -> AttrStmt:
            return AttrStmt(tirx.const(0, "int32"), GROUPS, task - kind * run, loop.body)

        last, *others = sorted(set(kinds), reverse=True)
        body: Any = of_kind(last)
        for kind in others:
            tiles = [tile == at for at, other in enumerate(kinds) if other == kind]
            body = IfThenElse(tirx.any(*tiles), of_kind(kind), body)
        return with_body(loop, body, done=GROUPS)

    return func.with_body(tvm_ffi.structural_map(func.body, (For, parted)))


_OPERATORS: dict[Any, Callable[[Any, Any], Any]] = {
    tirx.Add: operator.add,
    tirx.Sub: operator.sub,
    tirx.Mul: operator.mul,
    tirx.FloorDiv: tirx.floordiv,
    tirx.FloorMod: tirx.floormod,
    tirx.Min: tirx.min,
    tirx.Max: tirx.max,
}


def of_lane(index: Any, lane: int) -> Any:
    """Return what a vector of indices is in one lane."""
    if index.ty.dtype.lanes == 1:
        return index
    if isinstance(index, tirx.Ramp):
        return index.base + index.stride * lane
    if isinstance(index, tirx.Broadcast):
        return index.value
    return _OPERATORS[type(index)](of_lane(index.a, lane), of_lane(index.b, lane))


@tir_pass
def load_own_pixels(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Load the pixels of lanes that belong to different groups, as said above."""
    analyzer = sym.Analyzer()
    splat_code = architecture_of(func).splat
    splats: set[tuple[int, str]] = set()

    def divided(division: Any) -> Any:
        number, block = division.a, division.b
        if not (isinstance(number, tirx.Add) and isinstance(number.b, IntImm)):
            return division
        if not isinstance(block, IntImm):
            return division
        known = analyzer.modular_set(number.a)
        step, more = gcd(int(known.coeff), int(block)), int(number.b)
        steps = (int(known.base) % step + more) // step * step
        if steps == more:
            return division
        if isinstance(division, tirx.FloorDiv):
            return tirx.floordiv(number.a + steps, block)
        return tirx.floormod(number.a + steps, block) + (more - steps)

    def in_block(index: Any) -> Any:
        """Return an index at a constant distance from those of neighbouring channels.

        No block begins between two multiples of what indices are multiples of:
        ``(4 * n + 13) // 16`` is ``(4 * n + 12) // 16``.
        """
        entries = [(kind, divided) for kind in (tirx.FloorDiv, tirx.FloorMod)]
        return analyzer.simplify(tvm_ffi.structural_map(index, entries))

    def in_tile(tile: AttrStmt) -> Any:
        if tile.attr_key != GROUPS:
            return tile
        tasks: list[Var] = []
        tvm_ffi.structural_walk(tile.value, (Var, tasks.append))
        first = {
            task: -analyzer.simplify(replaced(tile.value, task, tirx.const(0, "int32")))
            for task in tasks
        }
        done: dict[Any, Any] = {}

        def loaded(load: TensorLoad) -> Any:
            index = load.indices[0]
            lanes = index.ty.dtype.lanes
            if load.source.name != INPUT_NAME or isinstance(index, tirx.Ramp):
                return load
            key = tvm_ffi.StructuralKey(index)
            if key not in done:
                if lanes == 1:
                    done[key] = tirx.BufferLoad(load.source, [in_block(index)])
                    return done[key]
                # As it is in the first task of this kind.
                there = index
                for task, value in first.items():
                    there = replaced(there, task, value)
                begin = of_lane(there, 0)
                distances = [
                    analyzer.simplify(of_lane(there, lane) - begin) for lane in range(lanes)
                ]
                done[key] = vector_of(load.source, index, distances)
            return done[key]

        return tvm_ffi.structural_map(tile.body, (TensorLoad, loaded))

    def parted(distances: list[Any], begin: int, width: int) -> tuple[Any, list[tuple[Any, int]]]:
        """Return the parts of the input, of `width` elements each, that elements are in.

        They are for each part a lane that reads an element, by the element's place in the part; and
        for each lane its part and the place.
        """
        parts: dict[Any, dict[int, int]] = {}
        part_of: list[tuple[Any, int]] = []
        for lane, distance in enumerate(distances):
            part, within = tvm_ffi.StructuralKey(distance), 0
            if isinstance(distance, IntImm):
                part, within = divmod(begin + int(distance), width)
            parts.setdefault(part, {}).setdefault(within, lane)
            part_of.append((part, within))
        return parts, part_of

    def vector_of(source: Any, index: Any, distances: list[Any]) -> Any:
        """Return a vector of the elements at some places, distances being those from the first."""
        lanes = len(distances)

        def place(lane: int) -> Any:
            return in_block(analyzer.simplify(of_lane(index, lane)))

        origin = place(0)
        known = analyzer.modular_set(origin)
        begin, width = int(known.base), gcd(int(known.coeff), lanes, int(source.shape[0]))
        parts, part_of = parted(distances, begin, width)
        if len(parts) > _MOST_BLENDED and all(len(inside) == 1 for inside in parts.values()):
            order = list(parts)
            elements = [
                tirx.BufferLoad(source, [place(lane)])
                for inside in parts.values()
                for lane in inside.values()
            ]
            # TVM has no permutation with more lanes than its operands.
            elements += elements[:1] * (lanes - len(elements))
            return tirx.Shuffle(elements, [order.index(part) for part, _ in part_of])

        in_place = list(range(lanes))
        vector: Any = None
        chosen = in_place
        for part, inside in parts.items():
            if len(inside) == 1:
                (lane,) = inside.values()
                element = tirx.BufferLoad(source, [place(lane)])
                value = tirx.Broadcast(element, lanes)
                # Assembly takes whole registers only.
                whole = lanes * NUMBER_TYPES[str(source.dtype)].bytes >= 16
                if vector is not None and splat_code and whole:
                    splats.add((lanes, str(source.dtype)))
                    value = tirx.call_extern(f"{source.dtype}x{lanes}", _splat(lanes), element)
                positions = in_place
            else:
                first = analyzer.simplify(origin + (part * width - begin))
                value = tirx.BufferLoad(source, [tirx.Ramp(first, 1, width)])
                if width < lanes:
                    value = tirx.Shuffle([value] * (lanes // width), in_place)
                positions = [within for _, within in part_of]
            if vector is None:
                vector, chosen = value, positions
            else:
                before = vector.ty.dtype.lanes
                mixed = [
                    before + positions[lane] if part_of[lane][0] == part else chosen[lane]
                    for lane in range(lanes)
                ]
                vector, chosen = tirx.Shuffle([vector, value], mixed), in_place
        return vector if chosen == in_place else tirx.Shuffle([vector], chosen)

    body = tvm_ffi.structural_map(func.body, (AttrStmt, in_tile))
    for lanes, dtype in splats:
        code = splat_code.format(name=_splat(lanes), n=lanes, type=NUMBER_TYPES[dtype].llvm)
        body = importing(code, body)
    return func.with_body(body)


def _splat(lanes: int) -> str:
    return f"directconv_splat{lanes}"
