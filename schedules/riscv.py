"""Schedule for RISC-V with vectors (RVV 1.0) of a fixed width.

A step multiplies one input channel at one kernel position into all sums of the tile:

    for each vector of output channels    load weights             (oc_vectors loads)
    for each output column                load one pixel           (ow_tile loads)
        for each vector                   vfmacc.vf                (both times: FMAs)

The pixel is in a floating-point register, from where the multiply-add takes it into all lanes: it
needs no vector register. Registers: 14 x 2 sums + 2 weights + 2 of 32, or 9 x 3 + 3 + 2. Where it
is the last one that needs a weight, LLVM takes the multiply-add that leaves the sum in the weight's
register, and needs one more to begin with.
"""

from typing import Any

from tvm_directconv.tiling import Tiling

from .common import direct


def schedule(sch: Any, tiling: Tiling) -> None:
    """Schedule a convolution for a RISC-V processor; parameters as in :mod:`.x86`."""
    # Between steps, LLVM sets the width of vectors again, in one instruction. Marks of all sums are
    # side by side there.
    direct(sch, tiling, finished=0)
