"""Tensors: sums are where outputs will be, and parameters have the shapes that callers see."""

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir.expr import TensorLoad
from tvm.tirx import (
    AssertStmt,
    BufferStore,
    DeclBuffer,
    Evaluate,
    PrimFunc,
    SeqStmt,
)

from ..compute import BLOCK_NAME, INPUT_NAME, WEIGHT_NAME
from .borders import part_tails
from .marks import BLOCK, SHAPES, TYPES, UNCHECKED
from .statements import replaced, sequence, tir_pass


@tir_pass
def finish_in_place(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Let sums that an epilogue finishes be in the output from the beginning.

    The two have the same shape, and every sum becomes the output of the same place, so the tensor
    between convolution and epilogue need not exist. Where outputs are of another type than sums, it
    is never more than a name for registers: see :func:`.registers.promote_accumulators`.
    """
    if not isinstance(func.body, s_tir.SBlockRealize):
        return func
    root = func.body.block
    sums = next((buffer for buffer in root.alloc_buffers if buffer.name == BLOCK_NAME), None)
    if sums is None:
        return func
    others = [buffer for buffer in root.alloc_buffers if not buffer.same_as(sums)]
    output = func.params[-1]
    if sums.dtype == output.dtype:
        body = replaced(root.body, sums, output)
    else:
        body = SeqStmt([DeclBuffer(sums, data=output.data), root.body])
    block = s_tir.SBlock(
        root.iter_vars, root.reads, root.writes, root.name_hint, body, root.init, others
    )
    return func.with_body(s_tir.SBlockRealize(func.body.iter_values, func.body.predicate, block))


@tir_pass
def block_outputs(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Put outputs into blocks of several vectors, and read what has their layout from such.

    Tiles of fewer vectors than the others are parted before: their vectors count from elsewhere,
    and which block one is in would be decided too early.
    """
    if not func.attrs or BLOCK not in func.attrs:
        return func
    parted = tvm.ir.transform.Sequential([part_tails, tirx.transform.ConvertSSA()])
    func = parted(tvm.IRModule({"main": func}))["main"]
    block = int(func.attrs[BLOCK])
    shape = [*map(int, func.params[-1].shape)]
    params, body = list(func.params), func.body
    for place, old in enumerate(func.params):
        if old.name in (INPUT_NAME, WEIGHT_NAME) or [*map(int, old.shape)] != shape:
            continue
        vectors, lanes = shape[1], shape[-1]
        blocked = [shape[0], -(-vectors * lanes // block), *shape[2:-1], block]
        params[place] = new = tirx.decl_buffer(blocked, old.dtype, name=old.name)

        def indices(at: Any, vectors: int = block // lanes, lanes: int = lanes) -> list[Any]:
            vector, lane = at[1], at[-1]
            inner = vector % vectors * lanes + lane
            return [at[0], vector // vectors, *at[2:-1], inner]

        def load(found: TensorLoad, old: Any = old, new: Any = new) -> Any:
            if not found.source.same_as(old):
                return found
            return tirx.BufferLoad(new, indices(found.indices))

        def store(found: BufferStore, old: Any = old, new: Any = new) -> Any:
            if not found.buffer.same_as(old):
                return found
            return BufferStore(new, found.value, indices(found.indices))

        body = tvm_ffi.structural_map(body, [(TensorLoad, load), (BufferStore, store)])
        body = replaced(body, old, new)  # Where its address is taken.
    return PrimFunc(params, body, func.ret_type, func.attrs).without_attr(BLOCK)


@tir_pass
def present_shapes(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Give the parameters the types and shapes that callers see; the body reads them flat by now.

    A parameter of another type is read through a buffer of words at the same place.
    """
    if not func.attrs or SHAPES not in func.attrs:
        return func
    types, shapes = func.attrs[TYPES], func.attrs[SHAPES]
    seen = [
        tirx.decl_buffer([int(extent) for extent in shape], str(dtype), name=param.name)
        for param, dtype, shape in zip(func.params, types, shapes, strict=True)
    ]
    body = func.body
    words: list[Any] = []
    for old, new in zip(func.params, seen, strict=True):
        if old.dtype == new.dtype:
            body = replaced(body, old, new)
        else:
            words.append(DeclBuffer(old, data=new.data))
    found = PrimFunc(seen, sequence([*words, body]), func.ret_type, func.attrs)
    return found.without_attr(SHAPES).without_attr(TYPES)


@tir_pass
def trust_arguments(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Leave out what TVM asks of arguments, where it is known.

    For each argument that is more code than a small kernel's own.
    """
    if not func.attrs or UNCHECKED not in func.attrs:
        return func

    def trusted(check: AssertStmt) -> Any:
        return Evaluate(0) if check.error_kind.value in ("TypeError", "ValueError") else check

    return func.with_body(tvm_ffi.structural_map(func.body, (AssertStmt, trusted)))
