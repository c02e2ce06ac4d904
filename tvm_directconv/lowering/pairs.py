"""Instructions that multiply the words of two pixels with those of two output channels at once.

Of a pair of columns and a vector of four output channels, the sums are crosswise in two registers:
both columns of the first two channels, and both of the others. No step sees a difference; before
outputs are made of them, the registers are put in order.
"""

from typing import Any, NamedTuple

import tvm_ffi
from tvm import tirx
from tvm.ir.expr import Call
from tvm.tirx import AllocBuffer, BufferStore, Evaluate, SeqStmt

from ..precision import NUMBER_TYPES
from .statements import flat, importing, product_of, replaced, sequence, whole

_CROSSED = [0, 1, 4, 5], [2, 3, 6, 7]
_CODE = """
declare <4 x {sum}> @{function}(<4 x {sum}>, <16 x {element}>, <16 x {element}>)
define <4 x {sum}> @{name}(<4 x {sum}> %s, i64 %a, i64 %b, <4 x i64> %ws) alwaysinline {{
  %p = insertelement <2 x i64> poison, i64 %a, i32 0
  %q = insertelement <2 x i64> %p, i64 %b, i32 1
  %x = bitcast <2 x i64> %q to <16 x {element}>
  %v = shufflevector <4 x i64> %ws, <4 x i64> poison, <2 x i32> <i32 {first}, i32 {second}>
  %w = bitcast <2 x i64> %v to <16 x {element}>
  %r = call <4 x {sum}> @{function}(<4 x {sum}> %s, <16 x {element}> %x, <16 x {element}> %w)
  ret <4 x {sum}> %r
}}
"""
_NAME = "directconv_pair"


class _Update(NamedTuple):
    """The word of a pixel and those of weights whose products go to a sum."""

    register: Any
    x: Any
    w: Any


def _updated(statement: Any) -> _Update | None:
    """Return what a statement multiplies, None if it is no such."""
    product = product_of(statement)
    if product is None:
        return None
    return _Update(statement.buffer, product.x.value, product.w)


def crosswise(tile: Any, columns: list[list[Any]], marked: Any) -> Any:
    """Return a tile that multiplies pairs of pixels.

    Parameters
    ----------
    tile : Stmt
        Its sums are in registers.
    columns : list
        The registers of each column of the tile, those of the same channels at the same place.
    marked : Map
        The function's :data:`.marks.INSTRUCTION`.
    """
    dtype = columns[0][0].dtype
    kind = f"{dtype}x4"
    missing: list[Any] = []
    if len(columns) % 2:
        # The last column has none beside it, but its sums are in two registers as well.
        missing = [tirx.decl_buffer((4,), dtype, name=f"beside{n}") for n in range(len(columns[0]))]
        columns = [*columns, missing]
    pairs = [
        pair
        for first, second in zip(columns[::2], columns[1::2], strict=True)
        for pair in zip(first, second, strict=True)
    ]
    pair_of = {register.name: pair for pair in pairs for register in pair}

    def alone_at_end(register: Any) -> bool:
        return any(register is each for each in missing)

    def called(call: Call) -> bool:
        return call.op.name == "tirx.call_extern" and call.args[0].value.startswith(_NAME)

    def read(register: Any) -> Any:
        return tirx.BufferLoad(register, whole(register))

    def write(register: Any, value: Any) -> BufferStore:
        return BufferStore(register, value, whole(register))

    def multiplied(pair: tuple[Any, Any], pixels: list[Any], w: Any) -> list[Any]:
        return [
            write(r, tirx.call_extern(kind, f"{_NAME}{half}", read(r), *pixels, w))
            for half, r in enumerate(pair)
        ]

    def alone(update: _Update) -> list[Any]:
        """Return the products of one pixel: of the other, the register gets nothing."""
        pair = pair_of[update.register.name]
        nothing = tirx.const(0, str(update.x.ty.dtype))
        if alone_at_end(pair[1]):
            nothing = update.x  # Nobody reads its sum, and no register has to be zero.
        second = update.register.same_as(pair[1])
        return multiplied(pair, [nothing, update.x] if second else [update.x, nothing], update.w)

    def joined(seq: SeqStmt) -> SeqStmt:
        done: list[list[Any]] = []
        waiting: dict[str, tuple[int, _Update]] = {}
        for statement in seq.seq:
            update = _updated(statement)
            if update is None:
                if not isinstance(statement, Evaluate):
                    waiting = {}
                done.append([statement])
                continue
            pair = pair_of[update.register.name]
            place, other = waiting.pop(pair[0].name, (len(done), update))
            same = tvm_ffi.structural_equal(other.w, update.w)
            if other is update or not same or other.register.same_as(update.register):
                waiting[pair[0].name] = len(done), update
                done.append(alone(update))
                continue
            first, second = (update, other) if update.register.same_as(pair[0]) else (other, update)
            done[place] = multiplied(pair, [first.x, second.x], update.w)
        return SeqStmt([statement for part in done for statement in part])

    def left(store: BufferStore) -> Any:
        update = _updated(store)
        if update:
            return sequence(alone(update))
        first, second = pair_of.get(store.buffer.name, (None, None))
        if not alone_at_end(second) or not isinstance(store.value, Call) or called(store.value):
            return store
        # What finishes a step for one sum finishes it for the one beside it, too.
        return SeqStmt([store, write(second, replaced(store.value, first, second))])

    def multiplies(statement: Any) -> bool:
        found: list[Any] = []
        tvm_ffi.structural_walk(
            statement, (BufferStore, lambda s: found.append(s) if _updated(s) else None)
        )
        return bool(found)

    parts = flat(tile)
    within = [n for n, part in enumerate(parts) if multiplies(part)]
    if not within:
        return tile

    changed = tvm_ffi.structural_map(
        sequence(parts[within[0] : within[-1] + 1]), (SeqStmt, _flattened)
    )
    changed = tvm_ffi.structural_map(changed, (SeqStmt, joined))
    changed = tvm_ffi.structural_map(changed, (BufferStore, left))

    def crossed(name: str) -> list[Any]:
        """Return what puts sums in order crosswise, or crosswise ones in order."""
        found: list[Any] = []
        for number, pair in enumerate(pairs):
            first = tirx.decl_buffer((4,), dtype, name=f"{name}{number}")
            both = [tirx.Shuffle([read(r) for r in pair], lanes) for lanes in _CROSSED]
            found += [AllocBuffer(first), write(first, both[0])]
            found += [write(pair[1], both[1]), write(pair[0], read(first))]
        return found

    # Sums need not begin as zeros.
    before, after = parts[: within[0]], parts[within[-1] + 1 :]
    begin: list[Any] = []
    for register in missing:
        zeros = tirx.Broadcast(tirx.const(0, dtype), 4)
        begin += [AllocBuffer(register), write(register, zeros)]
    changed = [*crossed("first"), *flat(changed), *crossed("last")]
    body = sequence([*begin, *before, *changed, *after])
    for half in range(2):
        code = _CODE.format(
            name=f"{_NAME}{half}",
            function=marked["function"],
            element=marked["element"],
            sum=NUMBER_TYPES[str(dtype)].llvm,
            first=2 * half,
            second=2 * half + 1,
        )
        body = importing(code, body)
    return body


def _flattened(seq: SeqStmt) -> SeqStmt:
    """Return a sequence with no other one in it."""
    return SeqStmt(flat(seq))
