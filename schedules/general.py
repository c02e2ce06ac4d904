"""Schedule for everything in a network that is no convolution: pools, sums, reorders, softmax.

None of it computes much. What counts is that memory is gone through once: element-wise operators
are inlined into their readers, reductions are computed where they are read, rows are vectors.
"""

from math import copysign, inf, prod
from typing import Any

import numpy as np
import tvm_ffi
from tvm.ir.expr import Call
from tvm.s_tir.schedule import ScheduleError

from tvm_directconv.lowering.marks import ALIKE

from .partial_sums import sum_in_parts

# Elements of the largest intermediate that is kept on the stack, in the cache's first lines.
_SMALL = 128
# Of sums that are the same on all processors: elements of the longest vectors.
_PARTS = 16
# Elements that are worth the start of a parallel loop, some microseconds.
_PARALLEL = 1 << 14


def schedule_general(func: Any, lanes: int, threads: int) -> Any:
    """Schedule a function that is no convolution.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
        Unscheduled; its last block writes the result.
    lanes : int
        Elements of a vector.
    threads : int
        1 for a serial function.

    Returns
    -------
    tvm.tirx.PrimFunc
        Scheduled. Intermediates that are too large for the stack are further parameters, after
        the result.
    """
    from tvm import IRModule, s_tir

    sch = s_tir.Schedule(IRModule({"main": func}))
    alone = func.body.block.name_hint != "root"
    if alone or any(not sch.get(block).writes for block in _blocks(sch)):
        return _opaque(func, threads)
    _inline(sch)
    whole = sch.mod["main"]
    in_parts = sum_in_parts(whole, _PARTS if ALIKE in func.attrs else lanes)
    sch = s_tir.Schedule(IRModule({"main": _from_infinity(in_parts)}))
    blocks = _blocks(sch)
    *earlier, last = blocks
    outer = _spatial(sch, last)
    if in_parts.same_as(whole):
        outer = outer[:-1]  # The innermost loop is for vectors; else the parts are vectors, too.
    if len(sch.get_output_blocks("root")) > 1:
        outer = []  # Several results: each for itself.
    elif earlier:
        shape = _written_shape(sch, last)
        outer = outer[: min(_common(_written_shape(sch, block), shape) for block in earlier)]
    if outer:
        for block in reversed(earlier):
            sch.compute_at(block, outer[-1])
    sums = {block: _vectorize(sch, block, outer[-1] if outer else None, lanes) for block in blocks}
    elements = prod(_written_shape(sch, last))
    if threads > 1 and outer and elements >= _PARALLEL:
        sch.parallel(sch.fuse(*outer))
    for block, first in sums.items():
        if first is not None:
            sch.decompose_reduction(block, first)
    return _with_scratch(sch.mod["main"], len(outer))


def _opaque(func: Any, threads: int) -> Any:
    """Return a function that TVM has written as loops already, which tell nothing of what they do.

    They may be parallel, which serial functions cannot have.
    """
    from tvm import tirx

    def serial(loop: Any) -> Any:
        if threads > 1 or loop.kind != tirx.ForKind.PARALLEL:
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    body = tvm_ffi.structural_map(func.body, (tirx.For, serial))
    return _with_scratch(func.with_body(body), 0)


def _from_infinity(func: Any) -> Any:
    """Let maxima begin with minus infinity, minima with infinity, and padding likewise.

    TVM has them, and searches for their places, begin with the least or the greatest finite number,
    which is in the result then where all elements are infinite.
    """
    from tvm import s_tir, tirx

    def infinite(number: Any) -> Any:
        dtype = str(number.ty.dtype)
        if dtype not in ("float32", "float64") or abs(number.value) < np.finfo(dtype).max:
            return number
        return tirx.const(copysign(inf, number.value), dtype)

    def begun(block: Any) -> Any:
        if block.init is None:
            return block
        body = block.body
        if isinstance(getattr(body, "value", None), tirx.Max | tirx.Min):
            finite = block.init.value

            def padded(call: Any) -> Any:
                *others, last = call.args
                # Other numbers, the largest finite one of the other sign among them, are data.
                if getattr(call.op, "name", "") != "prim.if_then_else" or not (
                    isinstance(last, tirx.FloatImm) and last.value == finite.value
                ):
                    return call
                return tirx.if_then_else(*others, infinite(last))

            if isinstance(finite, tirx.FloatImm):
                body = tvm_ffi.structural_map(body, (Call, padded))
        return s_tir.SBlock(
            block.iter_vars,
            block.reads,
            block.writes,
            block.name_hint,
            body,
            tvm_ffi.structural_map(block.init, (tirx.FloatImm, infinite)),
            block.alloc_buffers,
            block.match_buffers,
            block.annotations,
        )

    return func.with_body(tvm_ffi.structural_map(func.body, (s_tir.SBlock, begun)))


def _with_scratch(func: Any, depth: int) -> Any:
    """Make parameters of intermediates that are too large for the stack.

    Within `depth` loops over outputs, only a part of an intermediate exists at a time. As a
    parameter it exists as a whole: threads do not meet, and memory planning sees it.
    """
    from tvm import s_tir, tirx

    root = func.body.block
    large = [
        buffer
        for buffer in root.alloc_buffers
        if prod(int(extent) for extent in buffer.shape[depth:]) > _SMALL
    ]
    small = [
        buffer for buffer in root.alloc_buffers if not any(buffer.same_as(other) for other in large)
    ]
    block = s_tir.SBlock(
        root.iter_vars, root.reads, root.writes, root.name_hint, root.body, root.init, small
    )
    body = s_tir.SBlockRealize(func.body.iter_values, func.body.predicate, block)
    return tirx.PrimFunc([*func.params, *large], body, func.ret_type, func.attrs)


def _blocks(sch: Any) -> list[Any]:
    """Return the blocks, in the order in which they are computed."""
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def _iterations(sch: Any, block: Any) -> list[int]:
    return [int(var.iter_type) for var in sch.get(block).iter_vars]


def _is_reduction(sch: Any, block: Any) -> bool:
    return sch.get(block).init is not None or any(kind != 0 for kind in _iterations(sch, block))


def _inline(sch: Any) -> None:
    """Compute intermediates that one reader has where it reads them."""
    for block in _blocks(sch):
        if _is_reduction(sch, block) or len(sch.get_consumers(block)) != 1:
            continue
        try:
            sch.compute_inline(block)
        except ScheduleError:
            continue  # It is written in parts, or is the result.


def _written_shape(sch: Any, block: Any) -> tuple[int, ...]:
    return tuple(int(extent) for extent in sch.get(block).writes[0].source.shape)


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Return how many leading extents two shapes share."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def _spatial(sch: Any, block: Any) -> list[Any]:
    """Return a block's own loops over outputs, outermost first."""
    kinds = _iterations(sch, block)
    own = sch.get_loops(block)[-len(kinds) :]
    if not own:  # A single number.
        return []
    return [loop for loop, found in zip(own, kinds, strict=True) if found == 0]


def _vectorize(sch: Any, block: Any, shared: Any, lanes: int) -> Any:
    """Make vectors of a block's innermost outputs, and sum up in the order that permits it.

    Returns the outermost loop of a sum, None if it is none.
    """
    loops = sch.get_loops(block)
    if shared is not None:
        places = [sch.get(loop).same_as(sch.get(shared)) for loop in loops]
        loops = loops[places.index(True) + 1 :]
    kinds = _iterations(sch, block)
    if not loops or len(loops) > len(kinds):
        return None
    kinds = kinds[len(kinds) - len(loops) :]
    over = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 0]
    summed = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != 0]
    first = summed[0] if summed else None
    if summed and over:
        sch.reorder(*over[:-1], *summed, over[-1])
    if over:
        *_, innermost = over
        extent = int(sch.get(innermost).extent)
        if extent % lanes == 0 or extent in (2, 4, 8, 16):
            *_, vector = sch.split(innermost, [None, min(lanes, extent)])
            sch.vectorize(vector)
    return first
