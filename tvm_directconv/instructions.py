"""Instructions that multiply and add: one row for each, of which all else follows.

A row says what is multiplied, into how many sums at once, and how pixels reach it. Layouts, the
compute, schedules, the model, the burst and logs take it from here; how fast a core runs it stands
in the core's device file. So do instructions that convert what is loaded, where numbers are stored
in another type than is multiplied.
"""

from dataclasses import dataclass
from typing import Any

from .precision import (
    BFLOAT16,
    FLOAT16,
    FLOAT16ACC32,
    FLOAT32,
    INT8,
    UINT8,
    NumberType,
    Precision,
)

BROADCAST = "broadcast"
"""The pixel is in all lanes of the operand: a load puts it there, or the instruction itself, from a
register for one number."""

MEMORY = "memory"
"""The instruction reads the pixel from memory into all lanes."""

LANE = "lane"
"""Pixels of several channels are loaded as one vector; the instruction takes one lane of it."""

VECTOR = "vector"
"""Lanes have pixels of their own, as they belong to different groups. Those of pairs cannot."""

PAIR = "pair"
"""Words of two pixels are in one register, one after the other."""

MADDWD, SMULL, FMLAL, HALF_SUMS = "maddwd", "smull", "fmlal", "half sums"
"""Functions of :mod:`tvm_directconv.lowering.words`, of several instructions."""


MATRIX = "matrix"
"""Words of several pixels are the rows of a matrix register; see :mod:`.lowering.matrices`."""

MATRIX_REGISTERS = 8
"""Registers for matrices, of sums, pixels and weights."""


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
        How a pixel may reach it: :data:`BROADCAST`, :data:`MEMORY`, :data:`LANE`, :data:`PAIR`.
    lane_registers : int
        How many registers it can take a lane of.
    fused : bool
        False: a multiplication and an addition, which round twice and count as one instruction.
    depth : int
        Neighbouring input channels that it multiplies and adds up for each lane. They are a word of
        the pixel; words take the place of channels in the loops.
    neighbours : int
        How many of these lie side by side in the weights, the next ones of the other lanes after
        them; all of them if 0.
    intrinsic : str
        The function that multiplies words, or other numbers than sums are: of sums and two vectors
        of what is multiplied. One of LLVM's, or of :mod:`tvm_directconv.lowering.words`.
    weights_first : bool
        Whether the first of these vectors is that of the weights.
    by_lane : str
        The instruction with a lane, in assembly, of ``{sums}``, ``{weights}``, ``{pixels}`` and
        ``{lane}``, where LLVM does not make it of the function.
    also : Precision, optional
        Another precision that it computes in.
    flips : bool
        Whether the pixels of that one are of the other sign than those that it takes, and it gets
        them plus 128 or less 128.
    least_weight : int
        The least weight that it is right for, if not all are.
    weight_registers : int
        How many registers the weights of a vector take.
    temporaries : int
        How many registers it needs between its parts.
    moves : float
        What a pixel takes, once it is loaded, to reach the operand; as a part of the instruction.
    of_rows : bool
        Whether it multiplies words of rows of the kernel, too, which depthwise convolutions have in
        place of input channels. Instructions of several parts would take these words apart again.
    pixels, words : int
        How many pixels it multiplies at once, and words of each of them, at most. If there are
        several, registers are matrices.
    flushes : bool
        Whether denormals are zeros for it, whatever the state of the processor.
    """

    name: str
    features: tuple[str, ...]
    precision: Precision
    lanes: int
    pixel_operands: tuple[str, ...] = (BROADCAST,)
    lane_registers: int = 32
    fused: bool = True
    depth: int = 1
    neighbours: int = 0
    intrinsic: str = ""
    weights_first: bool = False
    by_lane: str = ""
    also: Precision | None = None
    flips: bool = False
    least_weight: int = -128
    weight_registers: int = 1
    temporaries: int = 0
    moves: float = 0
    pixels: int = 1
    words: int = 1
    of_rows: bool = False
    flushes: bool = False

    def __str__(self) -> str:
        return self.name

    def computes(self, precision: Precision) -> bool:
        """Return whether it computes in a precision, of numbers as they are stored."""
        return precision in (self.precision, self.also)

    def shifts(self, precision: Precision) -> bool:
        """Return whether pixels of a precision are not of the type that it multiplies."""
        return self.flips and precision != self.precision

    def registers_between(self, precision: Precision) -> int:
        """Return how many registers it needs beside sums, weights and pixels."""
        return self.temporaries + self.shifts(precision)

    def shift(self, precision: Precision) -> int:
        """Return what is added to pixels of a precision to be of the type that it multiplies."""
        if not self.shifts(precision):
            return 0
        least, wanted = precision.pixel.least, self.precision.pixel.least
        assert least is not None and wanted is not None
        return wanted - least


_EVEX = BROADCAST, MEMORY


def _vpdpbusd(registers: str, features: tuple[str, ...], bits: int) -> Instruction:
    return Instruction(
        f"vpdpbusd {registers}",
        features,
        UINT8,
        bits // 32,
        depth=4,
        intrinsic=f"llvm.x86.avx512.vpdpbusd.{bits}",
        also=INT8,
        flips=True,
        of_rows=True,
    )


def _vpdpbssd(registers: str, bits: int) -> Instruction:
    return Instruction(
        f"vpdpbssd {registers}",
        ("avxvnniint8",),
        INT8,
        bits // 32,
        depth=4,
        intrinsic=f"llvm.x86.avx2.vpdpbssd.{bits}",
    )


def _vdpbf16ps(registers: str, features: tuple[str, ...], bits: int) -> Instruction:
    return Instruction(
        f"vdpbf16ps {registers}/m32bcst",
        features,
        BFLOAT16,
        bits // 32,
        _EVEX,
        depth=2,
        intrinsic=f"llvm.x86.avx512bf16.dpbf16ps.{bits}",
        weights_first=True,  # LLVM folds the second into it.
        flushes=True,
    )


def _vpmaddwd(name: str, features: tuple[str, ...], bits: int) -> Instruction:
    return Instruction(
        name,
        features,
        UINT8,
        bits // 32,
        depth=4,
        intrinsic=MADDWD,
        also=INT8,
        fused=False,
        weight_registers=2,
        temporaries=5 if bits < 512 else 12,
    )


def _tdp(name: str, feature: str, precision: Precision) -> Instruction:
    return Instruction(
        f"{name} tmm",
        ("amx-tile", feature),
        precision,
        16,
        (MATRIX,),
        depth=4 // precision.pixel.bytes,
        intrinsic=name,
        pixels=16,
        words=16,
        flushes=not precision.whole,
    )


def _dot(name: str, feature: str, precision: Precision, types: str, **more: Any) -> Instruction:
    """Return a dot product of AArch64, which adds four bytes' products to each sum."""
    return Instruction(
        f"{name} v.4s",
        ("neon", feature),
        precision,
        4,
        (BROADCAST, LANE),
        depth=4 // precision.pixel.bytes,
        intrinsic=f"llvm.aarch64.neon.{name}.{types}",
        **more,
    )


def _mmla(name: str, precision: Precision) -> Instruction:
    return Instruction(
        f"{name} v.4s",
        ("neon", "i8mm"),
        precision,
        4,
        (PAIR,),
        depth=8,
        intrinsic=f"llvm.aarch64.neon.{name}.v4i32.v16i8",
    )


def _smull(name: str, features: tuple[str, ...], temporaries: int, moves: int) -> Instruction:
    return Instruction(
        name,
        features,
        INT8,
        4,
        (BROADCAST, LANE),
        depth=4,
        neighbours=2,
        intrinsic=SMULL,
        weights_first=True,
        also=UINT8,
        flips=True,
        least_weight=-127,
        temporaries=temporaries,
        moves=moves / 3,
    )


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
        # Products of halves to sums in single precision, rounded once.
        Instruction(
            "fmlal v.4s",
            ("neon", "fp16fml"),
            FLOAT16ACC32,
            4,
            (BROADCAST, LANE),
            lane_registers=16,
            intrinsic=FMLAL,
        ),
        # fmla v0.4s, v1.4s, v2.s[0]
        Instruction("fmla v.4s", ("neon",), FLOAT32, 4, (BROADCAST, LANE)),
        # vfma has no form with a lane; only vmla, which rounds twice, has one.
        Instruction("vfma.f32 q", ("neon", "vfp4"), FLOAT32, 4),
        # Four products of unsigned pixels and signed weights to each sum. Only the latter may be in
        # memory.
        _vpdpbusd("zmm", ("avx512vnni",), 512),
        _vpdpbusd("ymm", ("avx512vnni", "avx512vl"), 256),
        _vpdpbusd("xmm", ("avx512vnni", "avx512vl"), 128),
        _vpdpbusd("{vex} ymm", ("avxvnni",), 256),
        _vpdpbusd("{vex} xmm", ("avxvnni",), 128),
        # The same of pixels with signs.
        _vpdpbssd("ymm", 256),
        _vpdpbssd("xmm", 128),
        # One product of numbers of 32 bits, which are loaded as 8: LLVM knows that 16 have room for
        # them.
        Instruction("vpmaddwd zmm", ("avx512bw",), UINT8, 16, also=INT8, fused=False),
        Instruction("vpmaddwd ymm", ("avx2",), UINT8, 8, also=INT8, fused=False),
        Instruction("pmaddwd xmm", ("sse4.1",), UINT8, 4, also=INT8, fused=False),
        Instruction("smlal v.4s", ("neon",), INT8, 4, also=UINT8),
        Instruction("vmlal.s16 q", ("neon", "vfp4"), INT8, 4, also=UINT8),
        Instruction("vmacc.vv vlen128", ("v", "zvl128b"), INT8, 4, also=UINT8),
        Instruction("vmacc.vv vlen256", ("v", "zvl256b"), INT8, 8, also=UINT8),
        _dot(
            "sdot",
            "dotprod",
            INT8,
            "v4i32.v16i8",
            weights_first=True,
            also=UINT8,
            flips=True,
            of_rows=True,
        ),
        # Pixels without a sign, of a lane, as well.
        _dot("usdot", "i8mm", UINT8, "v4i32.v16i8", of_rows=True),
        # Eight products to each sum, which are of two pixels and two channels.
        _mmla("smmla", INT8),
        _mmla("usmmla", UINT8),
        # Two products of bfloat16 to each sum, which is rounded twice; of bfdot, to odd numbers.
        _vdpbf16ps("zmm", ("avx512bf16",), 512),
        _vdpbf16ps("ymm", ("avx512bf16", "avx512vl"), 256),
        _vdpbf16ps("xmm", ("avx512bf16", "avx512vl"), 128),
        _dot(
            "bfdot",
            "bf16",
            BFLOAT16,
            "v4f32.v8bf16",
            weights_first=True,
            flushes=True,
            by_lane="bfdot {sums}.4s, {weights}.8h, {pixels}.2h[{lane}]",
        ),
        # Two products of 16 bits each, twice: of the first and third channel, and of the others.
        _vpmaddwd("vpmaddwd zmm, words", ("avx512bw",), 512),
        _vpmaddwd("vpmaddwd ymm, words", ("avx2",), 256),
        _vpmaddwd("pmaddwd xmm, words", ("sse4.1",), 128),
        # Products of the first two channels, to which those of the others are added: 16 bits have
        # room for both unless all four numbers are -128. Then pairs of these are added up. Pixels
        # are permuted by one table for each lane, or put into both halves of a register.
        _smull("smull+sadalp v.4s", ("neon",), temporaries=13, moves=1),
        _smull("vmull.s8+vpadal q", ("neon", "vfp4"), temporaries=3, moves=2),
        # 16 pixels of 16 words each, with weights of 16 output channels.
        _tdp("tdpbusd", "amx-int8", UINT8),
        _tdp("tdpbssd", "amx-int8", INT8),
        _tdp("tdpbf16ps", "amx-bf16", BFLOAT16),
        # A vector and a number in a floating-point register, from there into all lanes. The name is
        # the same for all vectors: how wide they are is up to the processor.
        Instruction("vfmacc.vf vlen128", ("v", "zvl128b"), FLOAT32, 4),
        Instruction("vfmacc.vf vlen256", ("v", "zvl256b"), FLOAT32, 8),
    )
}
"""By name."""

HALF_SUMMING = tuple(
    Instruction(f"sums of halves in {lanes}", (feature,), FLOAT16ACC32, lanes, intrinsic=HALF_SUMS)
    for lanes, feature in ((16, "avx512f"), (8, "f16c"), (4, "f16c"), (4, "neon"))
)
"""Products added up in float32, each sum rounded to a half: as instructions of halves do it, where
there are none. No device has them, they only show what is lost elsewhere."""


@dataclass(frozen=True)
class Conversion:
    """An instruction, or a pair of them, that converts a vector of numbers to a wider type.

    Attributes
    ----------
    name : str
        As device files and people call it.
    features : tuple of str
        What LLVM calls the features that a processor needs for it.
    stored, loaded : NumberType
        The type of the numbers in memory, and the one that is multiplied.
    """

    name: str
    features: tuple[str, ...]
    stored: NumberType
    loaded: NumberType

    def __str__(self) -> str:
        return self.name


_HALVES = FLOAT16ACC32.pixel, FLOAT32.pixel
_BFLOATS = BFLOAT16.pixel, FLOAT32.pixel  # The upper halves of float32: a shift.

CONVERSIONS = {
    row.name: row
    for row in (
        Conversion("vcvtph2ps", ("f16c",), *_HALVES),
        Conversion("fcvtl v.4s", ("neon",), *_HALVES),
        Conversion("vcvt.f32.f16 q", ("neon", "fp16"), *_HALVES),
        Conversion("vpmovzxwd+vpslld", ("avx2",), *_BFLOATS),
        Conversion("shll v.4s", ("neon",), *_BFLOATS),
        Conversion("vshll.i16 q", ("neon",), *_BFLOATS),
    )
}
"""By name."""
