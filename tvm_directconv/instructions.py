"""Instructions that multiply and add: one row for each, of which all else follows.

A row says what is multiplied, into how many sums at once, and how pixels reach it. Layouts, the
compute, schedules, the model, the burst and logs take it from here; how fast a core runs it stands
in the core's device file.
"""

from dataclasses import dataclass

from .precision import FLOAT16, FLOAT32, Precision

BROADCAST = "broadcast"
"""The pixel is in all lanes of the operand: a load puts it there, or the instruction itself, from a
register for one number."""

MEMORY = "memory"
"""The instruction reads the pixel from memory into all lanes."""

LANE = "lane"
"""Pixels of several channels are loaded as one vector; the instruction takes one lane of it."""

VECTOR = "vector"
"""Lanes have pixels of their own, as they belong to different groups. All instructions can."""


@dataclass(frozen=True)
class Instruction:
    """An instruction that multiplies a pixel with weights and adds the products to sums.

    Attributes
    ----------
    name : str
        As device files and people call it: mnemonic, and registers or memory operand.
    features : tuple of str
        What LLVM calls the features that a processor needs for it.
    precision : Precision
        The number types of pixels, weights and sums.
    lanes : int
        Outputs in a register of sums, the paper's N_vec.
    pixel_operands : tuple of str
        How a pixel may reach it: :data:`BROADCAST`, :data:`MEMORY`, :data:`LANE`.
    lane_registers : int
        How many registers it can take a lane of.
    fused : bool
        False: a multiplication and an addition, which round twice and count as one instruction.
    """

    name: str
    features: tuple[str, ...]
    precision: Precision
    lanes: int
    pixel_operands: tuple[str, ...] = (BROADCAST,)
    lane_registers: int = 32
    fused: bool = True

    def __str__(self) -> str:
        return self.name


_EVEX = BROADCAST, MEMORY

INSTRUCTIONS = {
    row.name: row
    for row in (
        # With EVEX encodings, a float in memory may be an operand: dword [mem]{1to16}.
        Instruction("vfmadd231ps zmm/m32bcst", ("avx512f",), FLOAT32, 16, _EVEX),
        Instruction("vfmadd231ps ymm/m32bcst", ("avx512vl",), FLOAT32, 8, _EVEX),
        Instruction("vfmadd231ps xmm/m32bcst", ("avx512vl",), FLOAT32, 4, _EVEX),
        Instruction("vfmadd231ps ymm", ("avx2", "fma"), FLOAT32, 8),
        Instruction("vfmadd231ps xmm", ("avx2", "fma"), FLOAT32, 4),
        Instruction("mulps+addps xmm", ("sse2",), FLOAT32, 4, fused=False),
        # Loads that put 16 bits into all lanes go through the port of shuffles: only those that are
        # a part of the multiply-add are free.
        Instruction("vfmadd231ph zmm/m16bcst", ("avx512fp16",), FLOAT16, 32, (MEMORY,)),
        Instruction("vfmadd231ph ymm/m16bcst", ("avx512fp16",), FLOAT16, 16, (MEMORY,)),
        Instruction("vfmadd231ph xmm/m16bcst", ("avx512fp16",), FLOAT16, 8, (MEMORY,)),
        Instruction(
            "fmla v.8h", ("neon", "fullfp16"), FLOAT16, 8, (BROADCAST, LANE), lane_registers=16
        ),
        # fmla v0.4s, v1.4s, v2.s[0]
        Instruction("fmla v.4s", ("neon",), FLOAT32, 4, (BROADCAST, LANE)),
        # vfma has no form with a lane; only vmla, which rounds twice, has one.
        Instruction("vfma.f32 q", ("neon", "vfp4"), FLOAT32, 4),
        # A vector and a number in a floating-point register, from there into all lanes. The name is
        # the same for all vectors: how wide they are is up to the processor.
        Instruction("vfmacc.vf vlen128", ("v", "zvl128b"), FLOAT32, 4),
        Instruction("vfmacc.vf vlen256", ("v", "zvl256b"), FLOAT32, 8),
    )
}
"""By name."""
