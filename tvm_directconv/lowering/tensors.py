"""Tensors: sums are where outputs will be, and parameters have the shapes that callers see."""

from typing import Any

from tvm import s_tir, tirx
from tvm.tirx import (
    PrimFunc,
)

from ..compute import BLOCK_NAME
from .marks import SHAPES
from .statements import replaced, tir_pass


@tir_pass
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
    body = replaced(root.body, sums, func.params[-1])
    block = s_tir.SBlock(
        root.iter_vars, root.reads, root.writes, root.name_hint, body, root.init, others
    )
    return func.with_body(s_tir.SBlockRealize(func.body.iter_values, func.body.predicate, block))


@tir_pass
def present_shapes(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Give the parameters the shapes that callers see; the body reads them flat by now."""
    if not func.attrs or SHAPES not in func.attrs:
        return func
    seen = [
        tirx.decl_buffer([int(extent) for extent in shape], param.dtype, name=param.name)
        for param, shape in zip(func.params, func.attrs[SHAPES], strict=True)
    ]
    body = func.body
    for old, new in zip(func.params, seen, strict=True):
        body = replaced(body, old, new)
    return PrimFunc(seen, body, func.ret_type, func.attrs).without_attr(SHAPES)
