"""The architectures that code is made for: one row each, for whoever has to tell them apart."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """What is known about an architecture.

    Attributes
    ----------
    name : str
        As ELF files and Python have it.
    title : str
        As people write it.
    spellings : str
        How the first part of a triple says it; a regular expression.
    elf : int
        Its number in ELF files.
    triple : str
        Debian's triple for it, which the names of its compilers begin with.
    triples : str
        Triples and names of machines that programs are linked for; a regular expression.
    emulator : str
        The program of QEMU that runs such programs.
    cc_package, libc_package : str
        Debian's packages of the cross compiler, and of the C library that emulated programs load.
    device : str
        The device of processors that none is named after.
    told_by_triple : bool
        Whether a target without a processor means that device.
    computes : str
        Features that LLVM uses in numeric code without being asked; a regular expression.
    propagates_nans : bool
        Whether an instruction takes the maximum of two float32, and is not a number if one of them
        is not.
    pin : str
        The function of LLVM through which sums go between steps, ``{n}`` numbers of ``{type}`` at
        once, which is ``{suffix}`` in names; see :mod:`tvm_directconv.lowering.registers`.
    halves : str
        Functions of LLVM that convert vectors of four numbers between halves, as whole numbers of
        16 bits, and single precision; empty where LLVM's own conversions are of vectors.
    splat : str
        The function of LLVM, called ``{name}``, that puts a number into ``{n}`` lanes so that LLVM
        does not see that all are the same: of two such vectors it would make permutations, which
        take tables, rather than blends. Empty where it does not.
    vector_check : str
        The function of LLVM that ends the program on a processor whose vectors have fewer than
        ``{bytes}``; empty where such a processor does not have the instructions.
    """

    name: str
    title: str
    spellings: str
    elf: int
    triple: str
    triples: str
    emulator: str
    cc_package: str
    libc_package: str
    device: str
    told_by_triple: bool
    computes: str
    propagates_nans: bool
    pin: str
    halves: str = ""
    vector_check: str = ""
    splat: str = ""


# LLVM knows the size of a register.
_PIN = """
define <{n} x {type}> @directconv_pin(<{n} x {type}> %a) {{
  %b = call <{n} x {type}> asm sideeffect "", "CONSTRAINTS"(<{n} x {type}> %a)
  ret <{n} x {type}> %b
}}
"""
# It does not, and takes no vectors of fixed size for operands of assembly.
_PIN_SCALABLE = """
define <{n} x {type}> @directconv_pin(<{n} x {type}> %a) {{
  %r = call <vscale x 2 x {type}> @llvm.vector.insert.nxv2{suffix}.v{n}{suffix}(
      <vscale x 2 x {type}> poison, <{n} x {type}> %a, i64 0)
  %s = call <vscale x 2 x {type}> asm sideeffect "", "CONSTRAINTS"(<vscale x 2 x {type}> %r)
  %b = call <{n} x {type}> @llvm.vector.extract.v{n}{suffix}.nxv2{suffix}(
      <vscale x 2 x {type}> %s, i64 0)
  ret <{n} x {type}> %b
}}
declare <vscale x 2 x {type}> @llvm.vector.insert.nxv2{suffix}.v{n}{suffix}(
    <vscale x 2 x {type}>, <{n} x {type}>, i64)
declare <{n} x {type}> @llvm.vector.extract.v{n}{suffix}.nxv2{suffix}(<vscale x 2 x {type}>, i64)
"""
_HALVES_ARM = """
define <4 x float> @directconv_widened(<4 x i16> %a) alwaysinline {
  %b = call <4 x float> @llvm.arm.neon.vcvthf2fp(<4 x i16> %a)
  ret <4 x float> %b
}
define <4 x i16> @directconv_narrowed(<4 x float> %a) alwaysinline {
  %b = call <4 x i16> @llvm.arm.neon.vcvtfp2hf(<4 x float> %a)
  ret <4 x i16> %b
}
declare <4 x float> @llvm.arm.neon.vcvthf2fp(<4 x i16>)
declare <4 x i16> @llvm.arm.neon.vcvtfp2hf(<4 x float>)
"""
_SPLAT = """
define <{n} x {type}> @{name}({type} %a) alwaysinline {{
  %i = insertelement <{n} x {type}> poison, {type} %a, i32 0
  %s = shufflevector <{n} x {type}> %i, <{n} x {type}> poison, <{n} x i32> zeroinitializer
  %b = call <{n} x {type}> asm "", "=v,0"(<{n} x {type}> %s)
  ret <{n} x {type}> %b
}}
"""
_CHECK_VLENB = """
define void @directconv_check_vectors() alwaysinline {{
  %bytes = call i64 asm "csrr $0, vlenb", "=r"()
  %fewer = icmp ult i64 %bytes, {bytes}
  br i1 %fewer, label %stop, label %go
stop:
  call void @llvm.trap()
  unreachable
go:
  ret void
}}
declare void @llvm.trap()
"""

X86_64 = Architecture(
    name="x86_64",
    title="x86-64",
    spellings="x86_64h?|amd64",
    elf=62,
    triple="x86_64-linux-gnu",
    triples=r"(x86_64|amd64)((-\w+)?-linux(-gnu)?)?",
    emulator="qemu-x86_64",
    cc_package="gcc-x86-64-linux-gnu",
    libc_package="libc6-amd64-cross",
    device="x86-64-v4",
    told_by_triple=False,  # Most have FMA, and TVM would do without.
    computes=r"s?sse\d?[.\da]*|avx\w*[.\d]*|fma4?|f16c|bmi2?|lzcnt|popcnt|movbe|gfni|amx-\w+",
    propagates_nans=False,
    pin=_PIN.replace("CONSTRAINTS", "=v,0,~{{memory}},~{{rbp}}"),
    splat=_SPLAT,
)
AARCH64 = Architecture(
    name="aarch64",
    title="AArch64",
    spellings="aarch64|arm64",
    elf=183,
    triple="aarch64-linux-gnu",
    triples=r"(aarch64|arm64)((-\w+)?-linux(-gnu)?)?",
    emulator="qemu-aarch64",
    cc_package="gcc-aarch64-linux-gnu",
    libc_package="libc6-arm64-cross",
    device="aarch64",
    told_by_triple=True,
    computes="neon|lse|sve2?|fullfp16|fp16fml|dotprod|i8mm|bf16",
    propagates_nans=True,
    pin=_PIN.replace("CONSTRAINTS", "=w,0,~{{memory}}"),
)
ARM = Architecture(
    name="arm",
    title="ARMv7",
    spellings=r"arm|armhf|(arm|thumb)v[78]\w*",  # Armv6 and older have no NEON.
    elf=40,
    triple="arm-linux-gnueabihf",
    triples=r"(arm|armv7\w*|armv8l)((-\w+)?-linux-(gnu)?eabihf)?",
    emulator="qemu-arm",
    cc_package="gcc-arm-linux-gnueabihf",
    libc_package="libc6-armhf-cross",
    device="armv7",
    told_by_triple=True,
    computes="neon|vfp4|hwdiv-arm",
    propagates_nans=True,
    pin=_PIN.replace("CONSTRAINTS", "=w,0,~{{memory}}"),
    halves=_HALVES_ARM,
)
RISCV64 = Architecture(
    name="riscv64",
    title="RV64",
    spellings="riscv64",
    elf=243,
    triple="riscv64-linux-gnu",
    triples=r"riscv64((-\w+)?-linux(-gnu)?)?",
    emulator="qemu-riscv64",
    cc_package="gcc-riscv64-linux-gnu",
    libc_package="libc6-riscv64-cross",
    device="rv64gcv",
    told_by_triple=True,
    computes=r"[mafdcv]|zb[abcs]",  # Linux does not tell how wide vectors are.
    propagates_nans=False,
    pin=_PIN_SCALABLE.replace("CONSTRAINTS", "=^vr,0,~{{memory}}"),
    vector_check=_CHECK_VLENB,
)
ARCHITECTURES = (X86_64, AARCH64, ARM, RISCV64)


def architecture(triple: str) -> Architecture | None:
    """Return the architecture of a triple, None if it is none of these."""
    first = triple.split("-")[0].lower()
    found = (each for each in ARCHITECTURES if re.fullmatch(each.spellings, first))
    return next(found, None)


def titles() -> str:
    """Return what the architectures are called, as an error lists what it expected."""
    *others, last = (each.title for each in ARCHITECTURES)
    return f"{', '.join(others)} or {last}"
