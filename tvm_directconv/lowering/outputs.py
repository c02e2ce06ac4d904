"""What is done to sums before they are stored, in fewer instructions."""

from typing import Any

import tvm_ffi
from tvm import sym, tirx
from tvm.ir.expr import TensorLoad
from tvm.tirx import BufferStore, IntImm, PrimFunc, SeqStmt

from ..epilogue import BIAS
from ..precision import NUMBER_TYPES
from .groups import of_lane
from .statements import flat, tir_pass

_MOST_BYTES = 16  # of outputs that are stored at once


@tir_pass
def begin_with_bias(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Let sums of whole numbers, which are the same in any order, begin with the bias."""
    zeros: dict[Any, int] = {}
    biases: dict[Any, list[Any]] = {}

    def is_zero(store: BufferStore) -> bool:
        value = store.value
        return isinstance(value, tirx.Broadcast) and (
            isinstance(value.value, IntImm) and int(value.value) == 0
        )

    def bias(total: tirx.Add) -> Any:
        """Return the bias, where it is added to a sum."""
        loads = isinstance(total.a, TensorLoad) and isinstance(total.b, TensorLoad)
        return total.b if loads and total.b.source.name == BIAS.name else None

    def note(store: BufferStore) -> None:
        if is_zero(store):
            zeros[store.buffer] = zeros.get(store.buffer, 0) + 1

    def note_bias(total: tirx.Add) -> None:
        found = bias(total)
        if found is not None:
            biases.setdefault(total.a.source, []).append(found)

    tvm_ffi.structural_walk(func.body, [(BufferStore, note), (tirx.Add, note_bias)])
    first = {
        register: found[0]
        for register, found in biases.items()
        if len(found) == zeros.get(register) == 1
    }
    if not first:
        return func

    def begun(store: BufferStore) -> BufferStore:
        if store.buffer not in first or not is_zero(store):
            return store
        return BufferStore(store.buffer, first[store.buffer], store.indices)

    def added(total: tirx.Add) -> Any:
        return total.a if bias(total) is not None and total.a.source in first else total

    body = tvm_ffi.structural_map(func.body, (tirx.Add, added))
    return func.with_body(tvm_ffi.structural_map(body, (BufferStore, begun)))


@tir_pass
def store_together(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Store outputs of neighbouring vectors at once, where they are narrower than sums.

    Vectors of four sums would be four stores of 4 bytes in place of one, each narrowed by itself.
    """
    analyzer = sym.Analyzer()
    output = func.params[-1].name

    def is_narrowed(statement: Any) -> bool:
        if not isinstance(statement, BufferStore) or statement.buffer.name != output:
            return False
        value = statement.value
        if not (isinstance(value, tirx.Cast) and value.ty.dtype.lanes > 1):
            return False
        number = NUMBER_TYPES.get(str(statement.buffer.dtype))
        return number is not None and number.least is not None and number.bytes == 1

    def joined(stores: list[BufferStore]) -> list[Any]:
        """Return stores of as many vectors as lie side by side, up to a power of two."""
        lanes = stores[0].value.ty.dtype.lanes
        base = of_lane(stores[0].indices[0], 0)
        apart: dict[int, BufferStore] = {}
        others: list[Any] = []
        for store in stores:
            distance = analyzer.simplify(of_lane(store.indices[0], 0) - base)
            if isinstance(distance, IntImm) and store.value.ty.dtype.lanes == lanes:
                apart[int(distance)] = store
            else:
                others.append(store)
        done: list[Any] = []
        left = sorted(apart)
        while left:
            begin, number = left[0], 1
            while 2 * number * lanes <= _MOST_BYTES and all(
                begin + lanes * vector in apart for vector in range(number, 2 * number)
            ):
                number *= 2
            places = [begin + lanes * vector for vector in range(number)]
            left = [place for place in left if place not in places]
            done.append(_as_one([apart[place] for place in places]))
        return done + others

    def visited(sequence: SeqStmt) -> SeqStmt:
        done: list[Any] = []
        run: list[BufferStore] = []
        for statement in [*flat(sequence), None]:
            if statement is not None and is_narrowed(statement):
                run.append(statement)
                continue
            done += joined(run) if run else []
            run = []
            if statement is not None:
                done.append(statement)
        return SeqStmt(done) if len(done) > 1 else done[0]

    return func.with_body(tvm_ffi.structural_map(func.body, (SeqStmt, visited)))


def _as_one(stores: list[BufferStore]) -> BufferStore:
    if len(stores) == 1:
        return stores[0]
    first = stores[0]
    lanes = first.value.ty.dtype.lanes * len(stores)
    parts = [store.value.value for store in stores]
    added = None
    if all(isinstance(part, tirx.Add) for part in parts):
        added, *others = (part.b for part in parts)
        if isinstance(added, tirx.Broadcast) and all(
            tvm_ffi.structural_equal(added, other) for other in others
        ):
            parts = [part.a for part in parts]
        else:
            added = None
    while len(parts) > 1:
        parts = [_lower_halves(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
    number = str(first.buffer.dtype)
    value = tirx.Cast(f"{number}x{lanes}", parts[0])
    if added is not None:  # The lower bits of a sum are the sum of these.
        value = value + tirx.Broadcast(tirx.Cast(number, added.value), lanes)
    return BufferStore(first.buffer, value, [tirx.Ramp(of_lane(first.indices[0], 0), 1, lanes)])


def _lower_halves(one: Any, other: Any) -> Any:
    """Return the lower halves of the bits of each whole number of two vectors."""
    lanes, bits = one.ty.dtype.lanes, one.ty.dtype.bits // 2
    halves = [tirx.reinterpret(f"int{bits}x{2 * lanes}", side) for side in (one, other)]
    return tirx.Shuffle(halves, list(range(0, 4 * lanes, 2)))
