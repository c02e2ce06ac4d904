"""Schedule for x86: SSE4.2, AVX2 with FMA, AVX-512.

A step multiplies one input channel at one kernel position into all sums of the tile:

    for each vector of output channels    load weights             (oc_vectors loads)
    for each output column                broadcast one pixel      (ow_tile loads)
        for each vector                   fused multiply-add       (both times: FMAs)

With AVX-512 the broadcast of a pixel that is used once is part of the multiply-add. The sums,
the smaller of the two operand sets and one more register have to fit the register file:
14 x 2 + 2 + 1 of 32 registers (AVX-512), 6 x 2 + 2 + 1 of 16 (AVX2).
"""

from typing import Any

from tvm_directconv.compute import BLOCK_NAME
from tvm_directconv.lowering.marks import MATRICES
from tvm_directconv.tiling import Tiling

from .common import direct


def schedule(sch: Any, tiling: Tiling) -> None:
    """Schedule a convolution for an x86 processor.

    Parameters
    ----------
    sch : tvm.s_tir.Schedule
        Schedule of the function of :func:`tvm_directconv.compute.conv2d`, changed in place.
    tiling : Tiling
        The case that the function computes, as its block sizes cut it.
    """
    if tiling.matrix:
        in_matrices(sch, tiling)
        return
    # With every sum, LLVM finds fewer orders that fit the registers; with one, it puts off FMAs of
    # the others until operands spill. At the quarters of the tile it does neither.
    # Of an instruction of several parts it would put off the last ones of all others, and
    # conversions come with operands of their own: there, all sums are finished.
    several = tiling.rate.instruction.temporaries or tiling.case.conversion
    direct(sch, tiling, finished=0 if several else 3)


def in_matrices(sch: Any, tiling: Tiling) -> None:
    """Have a convolution computed in matrix registers; parameters as in :func:`schedule`.

    No loop is left as it is: what lowering writes in their place follows of the tile.
    """
    assert tiling.matrix is not None
    sch.annotate(
        sch.get_sblock(BLOCK_NAME),
        MATRICES,
        {
            "matrices": tiling.matrix.matrices,
            "vectors": tiling.blocking.oc_vectors,
            "rows": tiling.matrix.rows,
            "columns": tiling.matrix.columns,
            "multiply": tiling.rate.instruction.intrinsic,
            "threads": tiling.case.threads,
            "rows_outside": tiling.blocking.rows_outside,
        },
    )
