"""The passes in their order, as a pipeline of TVM, and what comes out."""

from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.tirx import (
    AllocBuffer,
    PrimFunc,
    compilation_pipeline,
)

from .borders import part_tails, peel_borders, simplify, skip_padding
from .floats import (
    compute_in_single,
    convert_numbers,
    expand_exponentials,
    flush_denormals,
    hide_masks,
    propagate_nans,
    round_products,
)
from .groups import load_own_pixels, part_kinds
from .loads import load_lanes, read_from_bases, stay_in_rows
from .matrices import multiply_matrices
from .outputs import begin_with_bias, store_together
from .prefetch import prefetch_pixels, prefetch_weights
from .registers import mark_steps, promote_accumulators
from .rows import interleave_rows
from .tensors import block_outputs, finish_in_place, present_shapes, trust_arguments
from .vectors import check_vectors, vectorize
from .words import flip_signs, multiply_lanes, multiply_words

PIPELINE = "directconv"
"""Name of the pipeline in ``tvm.compile(..., tir_pipeline=...)``."""


def lowered() -> list[Any]:
    """Passes from a schedule to loops over flat buffers with the tile in registers."""
    return [
        multiply_matrices,
        finish_in_place,
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        simplify,
        s_tir.transform.LowerOpaqueBlock(),
        block_outputs,
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        compute_in_single,
        present_shapes,
        expand_exponentials,
        part_tails,
        part_kinds,
        skip_padding,
        prefetch_weights,
        prefetch_pixels,
        mark_steps,
        peel_borders,
        tirx.transform.ConvertSSA(),
        tirx.transform.StmtSimplify(),
        vectorize,
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        load_own_pixels,
        stay_in_rows,
        promote_accumulators,
        begin_with_bias,
        store_together,
        interleave_rows,
        multiply_words,
        load_lanes,
        multiply_lanes,
        flip_signs,
        read_from_bases,
        round_products,
        propagate_nans,
        convert_numbers,
        hide_masks,
        tirx.transform.RemoveNoOp(),
        flush_denormals,
    ]


def lower(func: PrimFunc) -> PrimFunc:
    """Return the loops that are compiled: what `build` does before LLVM.

    Parameters
    ----------
    func : tvm.tirx.PrimFunc
        A scheduled convolution, with its target as an attribute.

    Returns
    -------
    tvm.tirx.PrimFunc
        The same function, lowered.
    """
    module = tvm.IRModule({"conv": func})
    return tvm.ir.transform.Sequential(lowered())(module)["conv"]


def allocated_bytes(func: PrimFunc) -> int:
    """Return the bytes of the largest single allocation in a lowered function, 0 if none.

    Accumulators are allocations of one vector each; anything larger would be memory.
    """
    sizes = [0]

    def note(alloc: AllocBuffer) -> None:
        size = np.dtype(alloc.buffer.dtype).itemsize
        for extent in alloc.buffer.shape:
            size *= int(extent)
        sizes.append(size)

    tvm_ffi.structural_walk(func.body, (AllocBuffer, note))
    return max(sizes)


def _pipeline() -> tuple[Any, Any, Any]:
    passes = [
        *lowered(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
        trust_arguments,
        tirx.transform.BF16StorageLegalize(),  # TVM's code for LLVM has no such type.
        check_vectors,  # Before arguments are looked at, in vectors, too.
    ]
    return (
        tvm.ir.transform.Sequential(passes),
        compilation_pipeline.finalize_host_passes,
        compilation_pipeline.finalize_device_passes,
    )


compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)
