"""Schedule for ARM: NEON on AArch64, NEON with VFPv4 on ARMv7.

A step multiplies one input channel at one kernel position into all sums of the tile. On AArch64
four channels of a pixel are loaded as one vector (``ldr q``), which serves four steps, each from a
lane (``fmla v.4s, v.4s, v.s[2]``). Channels that are not side by side are loaded alone (``ldr s``),
and so are those of tiles so wide that a vector of each pixel finds no register. On ARMv7 each is
loaded into all lanes (``vld1.32 {d[], d[]}``). Registers: 8 x 2 sums + 8 pixels + 2 weights of 32
(AArch64), 4 x 2 + 1 + 2 of 16 (ARMv7).

These cores have small and slow second-level caches, so the paper's loop order, which keeps a
block of weights in the first level, matters more here than on x86; the model decides it.
"""

from typing import Any

from tvm_directconv.tiling import Tiling

from .common import direct


def schedule(sch: Any, tiling: Tiling) -> None:
    """Schedule a convolution for an ARM processor; parameters as in :mod:`.x86`."""
    # LLVM's models of in-order cores put off whatever is not finished by force.
    direct(sch, tiling, finished=0)
