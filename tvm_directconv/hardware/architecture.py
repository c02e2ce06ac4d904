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
    pin : str
        LLVM's constraints for assembly that may change memory and a vector; see
        :mod:`tvm_directconv.lowering.registers`.
    """

    name: str
    spellings: str
    elf: int
    triple: str
    triples: str
    emulator: str
    cc_package: str
    libc_package: str
    pin: str


X86_64 = Architecture(
    name="x86_64",
    spellings="x86_64h?|amd64",
    elf=62,
    triple="x86_64-linux-gnu",
    triples=r"(x86_64|amd64)((-\w+)?-linux(-gnu)?)?",
    emulator="qemu-x86_64",
    cc_package="gcc-x86-64-linux-gnu",
    libc_package="libc6-amd64-cross",
    pin="=v,0,~{memory},~{rbp}",
)
AARCH64 = Architecture(
    name="aarch64",
    spellings="aarch64|arm64",
    elf=183,
    triple="aarch64-linux-gnu",
    triples=r"(aarch64|arm64)((-\w+)?-linux(-gnu)?)?",
    emulator="qemu-aarch64",
    cc_package="gcc-aarch64-linux-gnu",
    libc_package="libc6-arm64-cross",
    pin="=w,0,~{memory}",
)
ARM = Architecture(
    name="arm",
    spellings=r"arm|armhf|(arm|thumb)v[78]\w*",  # Armv6 and older have no NEON.
    elf=40,
    triple="arm-linux-gnueabihf",
    triples=r"(arm|armv7\w*|armv8l)((-\w+)?-linux-(gnu)?eabihf)?",
    emulator="qemu-arm",
    cc_package="gcc-arm-linux-gnueabihf",
    libc_package="libc6-armhf-cross",
    pin="=w,0,~{memory}",
)
ARCHITECTURES = (X86_64, AARCH64, ARM)


def architecture(triple: str) -> Architecture | None:
    """Return the architecture of a triple, None if it is none of these."""
    first = triple.split("-")[0].lower()
    found = (each for each in ARCHITECTURES if re.fullmatch(each.spellings, first))
    return next(found, None)
