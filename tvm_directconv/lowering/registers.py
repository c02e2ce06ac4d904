"""The sums of a tile stay in registers, and LLVM keeps the order of the steps."""

from collections.abc import Callable
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir.expr import Call, TensorLoad
from tvm.tirx import (
    AllocBuffer,
    AttrStmt,
    BufferStore,
    Evaluate,
    For,
    PrimFunc,
    SeqStmt,
)

from ..precision import NUMBER_TYPES
from .marks import COLUMN, LANE_OPERAND, MEMORY_OPERAND, ROWS, STEP, TILE
from .pairs import crosswise
from .statements import (
    architecture_of,
    flat,
    importing,
    instruction_of,
    sequence,
    tir_pass,
    whole,
    with_body,
)

_MARK = "directconv_step"  # Stands before each step until the tile's registers are known.
# Stands before what is of a column, whose number is its value.
_COLUMN_MARK = "directconv_column"
# Stand before steps whose input may be loaded as vectors, and is read from one address on.
LANE_OPERAND_MARK = "directconv_lane_operand"
MEMORY_OPERAND_MARK = "directconv_memory_operand"
# Stands before steps whose words are to be made of rows.
ROWS_MARK = "directconv_rows"

# No instruction comes of this function either. For LLVM it may change the memory and its argument:
# no load moves from one step into another, and no step begins before that sum is done. Without
# it, LLVM merges the loads of neighbouring kernel columns, hoists those of later steps and puts
# off FMAs; more values live at once than there are registers, and sums are spilled.
# It can only reach memory that may alias, which is why functions must not carry tirx.noalias.
# On x86 it may change %rbp as well, so that no step loads from there on. Processors seem to take
# such loads for the stack's: a line of a stream from the second-level cache took up to 10 % longer
# than by way of any other register (measured with AVX-512), and tiles of 64 x 6, fed by one, 7 %.
_PIN_NAME = "directconv_pin"


def _marked(statement: Any, name: str) -> int | None:
    """Return the value of a mark, None if the statement is no mark of that name."""
    call = statement.value if isinstance(statement, Evaluate) else None
    if not (isinstance(call, Call) and call.op.name == "tirx.call_extern"):
        return None
    return int(call.args[1]) if call.args[0].value == name else None


def is_pin(call: Call) -> bool:
    """Return whether a call is one that LLVM does not see through."""
    return call.op.name == "tirx.call_extern" and call.args[0].value == _PIN_NAME


@tir_pass
def mark_steps(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Put a mark before each step, which stays there when loops are unrolled."""

    def mark(name: str, value: Any) -> Evaluate:
        return Evaluate(tirx.call_extern("int32", name, value))

    marked_as = instruction_of(func)
    paired = marked_as is not None and marked_as["pairs"]

    def marked(loop: For) -> Any:
        found: Any = loop
        if COLUMN in loop.annotations and paired:
            found = with_body(loop, SeqStmt([mark(_COLUMN_MARK, loop.loop_var), loop.body]))
        if STEP in loop.annotations:
            body = SeqStmt([mark(_MARK, loop.annotations[STEP]), loop.body])
            found = with_body(found, body, done=STEP)
        marks = {
            LANE_OPERAND: LANE_OPERAND_MARK,
            MEMORY_OPERAND: MEMORY_OPERAND_MARK,
            ROWS: ROWS_MARK,
        }
        for annotation, name in marks.items():
            if annotation in loop.annotations:
                steps = with_body(found, found.body, done=annotation)
                found = SeqStmt([mark(name, loop.annotations[annotation]), steps])
        return found

    return func.with_body(tvm_ffi.structural_map(func.body, (For, marked)))


def pinned(register: Any) -> BufferStore:
    """Return what LLVM moves no load beyond, and nothing that the register is made of."""
    kind = f"{register.dtype}x{int(register.shape[0])}"
    same = tirx.call_extern(kind, _PIN_NAME, tirx.BufferLoad(register, whole(register)))
    return BufferStore(register, same, whole(register))


@tir_pass
def promote_accumulators(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Keep the outputs of a tile in one register each, from their first product to their last.

    Within a tile, every vector of outputs gets a buffer of its own size, which LLVM turns into a
    register. Sums that other products went into before are loaded first (the paper's loop order);
    all are stored at the end, unless an epilogue stores outputs of another type, made of them.
    Marks between steps become calls of :data:`_PIN_NAME`.
    """
    output = func.params[-1]
    kinds: set[tuple[int, str]] = set()

    def promoted(tile: AttrStmt) -> Any:
        if tile.attr_key != TILE:
            return tile
        # For each vector of outputs: where it is stored, and its register.
        sums: dict[Any, tuple[BufferStore, Any]] = {}
        begun = []
        # The registers of each column, those of its first channels first, where it matters.
        columns: dict[int, list[Any]] = {}
        column: int | None = None

        def key(buffer: Any, indices: Any) -> Any:
            return tvm_ffi.StructuralKey(tvm_ffi.convert([buffer, *indices]))

        # Those that are no output are the only ones to be promoted.
        stored: list[Any] = []
        tvm_ffi.structural_walk(tile.body, (BufferStore, lambda s: stored.append(s.buffer)))
        apart = [buffer for buffer in stored if buffer.name != output.name]

        def note(store: BufferStore) -> None:
            if apart and store.buffer.name == output.name:
                return
            place = key(store.buffer, store.indices)
            if place in sums:
                return
            lanes = store.value.ty.dtype.lanes
            kinds.add((lanes, str(store.buffer.dtype)))
            register = tirx.decl_buffer((lanes,), store.buffer.dtype, name=f"sum{len(sums)}")
            sums[place] = store, register
            if column is not None:
                columns.setdefault(column, []).append(register)
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

        def note_column(statement: Evaluate) -> None:
            nonlocal column
            number = _marked(statement, _COLUMN_MARK)
            column = column if number is None else number

        entries = [(BufferStore, note), (Evaluate, note_column)]
        tvm_ffi.structural_walk(tile.body, entries, order="pre")

        summed: list[Any] = []
        for first, _ in sums.values():
            if not any(first.buffer.same_as(buffer) for buffer in summed):
                summed.append(first.buffer)

        def is_sum(load: TensorLoad) -> bool:
            source = load.source
            return any(source.same_as(buffer) for buffer in summed)

        def check(load: TensorLoad) -> None:
            if is_sum(load):
                # An epilogue would read what is not stored yet.
                assert key(load.source, load.indices) in sums, "a tile reads no sum of its own"

        tvm_ffi.structural_walk(tile.body, (TensorLoad, check))

        def read(register: Any) -> Any:
            return tirx.BufferLoad(register, whole(register))

        def load(expression: TensorLoad) -> Any:
            if not is_sum(expression):
                return expression
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
                return statement if _marked(statement, _COLUMN_MARK) is None else Evaluate(0)
            registers = [register for _, register in sums.values()]
            if wanted:
                apart = max(1, len(registers) // (wanted + 1))
                registers = registers[apart::apart] or registers
            return sequence([pinned(register) for register in registers] or [Evaluate(0)])

        body = tvm_ffi.structural_map(
            tile.body, [(TensorLoad, load), (BufferStore, store), (Evaluate, pin)]
        )
        before: list[Any] = [AllocBuffer(register) for _, register in sums.values()]
        for place in begun:
            first, register = sums[place]
            value = tirx.BufferLoad(first.buffer, first.indices)
            before.append(BufferStore(register, value, whole(register)))
        after = [
            BufferStore(first.buffer, read(register), first.indices)
            for first, register in sums.values()
            if not apart
        ]
        if columns:
            in_order = [registers for _, registers in sorted(columns.items())]
            return crosswise(sequence([*before, body, *after]), in_order, instruction_of(func))
        # Nothing is summed up where all products are with padding.
        return sequence([*before, body, *after])

    body = tvm_ffi.structural_map(func.body, (AttrStmt, promoted))
    pin_code = architecture_of(func).pin
    for lanes, dtype in kinds:
        number = NUMBER_TYPES[dtype]
        suffix = f"{number.llvm[0]}{8 * number.bytes}"
        body = importing(pin_code.format(n=lanes, type=number.llvm, suffix=suffix), body)
    return func.with_body(body)


def after_marks(
    func: PrimFunc, name: str, changed: Callable[[list[Any], int], list[Any]]
) -> PrimFunc:
    """Return a function with other statements after each mark of a name.

    `changed` gets the mark's value and the statements from there to the next mark, to a loop, which
    has marks of its own, or to the end of the sequence.
    """

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

    marks: list[Any] = []
    tvm_ffi.structural_walk(
        func.body, (Evaluate, lambda e: None if _marked(e, name) is None else marks.append(e))
    )
    if not marks:
        return func
    body = tvm_ffi.structural_map(func.body, (SeqStmt, visited))
    return func.with_body(tvm_ffi.structural_map(body, (Evaluate, unused)))
