"""Denormals, numbers so small that a processor can take a hundred times as long for one.

Of float32, these are the ones below 2^-126. They come from dead or pruned channels and from folded
batch normalisations, and nothing can be told from them: while compiled code runs, they count as
zeros, and constants have none. The state that decides it belongs to the thread, so code sets it
where it begins and restores it where it ends: ``flush_denormals`` in
:mod:`tvm_directconv.lowering.floats`.
"""

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from .errors import ArgumentError
from .hardware.architecture import AARCH64, ARM, X86_64, Architecture, architecture
from .kinds import Kind

if TYPE_CHECKING:
    from .hardware.device import Device

FLUSH, KEEP = "flush", "keep"

_FLUSHED = tuple(map(np.dtype, ("float32", "float64", "bfloat16")))

MODES = (FLUSH, KEEP)
"""What becomes of denormals: they count as zeros, or are computed with as IEEE 754 has it."""


MODE = Kind(" or ".join(map(repr, MODES)), lambda value: value in MODES)
"""What stands for them in manifests."""


# For LLVM: denormals are zeros from the first function on until the second one gets what the first
# returned. Memory may change, so that no load moves out from between the two, and no store.
_DENORMALS = """
define i{bits} @directconv_flush() alwaysinline {{
{flush}
}}
define void @directconv_restore(i{bits} %a) alwaysinline {{
{restore}
}}
"""
# MXCSR: flush to zero, denormals are zeros.
_DENORMALS_X86 = _DENORMALS.format(
    bits=32,
    flush="""
  %p = alloca i32
  call void asm sideeffect "stmxcsr $0", "=*m,~{memory}"(ptr elementtype(i32) %p)
  %a = load i32, ptr %p
  %b = or i32 %a, 32832
  store i32 %b, ptr %p
  call void asm sideeffect "ldmxcsr $0", "*m,~{memory}"(ptr elementtype(i32) %p)
  ret i32 %a""",
    restore="""
  %p = alloca i32
  store i32 %a, ptr %p
  call void asm sideeffect "ldmxcsr $0", "*m,~{memory}"(ptr elementtype(i32) %p)
  ret void""",
)
# FPCR, in ARMv7 FPSCR: flush to zero, which is for operands, too.
_DENORMALS_ARM = """
  %a = call i{bits} asm sideeffect "{get}", "=r,~{{memory}}"()
  %b = or i{bits} %a, 16777216
  call void asm sideeffect "{put}", "r,~{{memory}}"(i{bits} %b)
  ret i{bits} %a"""
_RESTORE_ARM = """
  call void asm sideeffect "{put}", "r,~{{memory}}"(i{bits} %a)
  ret void"""


def _arm_code(bits: int, get: str, put: str) -> tuple[int, str]:
    words = {"bits": bits, "get": get, "put": put}
    flush, restore = _DENORMALS_ARM.format(**words), _RESTORE_ARM.format(**words)
    return bits, _DENORMALS.format(bits=bits, flush=flush, restore=restore)


STATES: dict[Architecture | None, tuple[int, str]] = {
    X86_64: (32, _DENORMALS_X86),
    AARCH64: _arm_code(64, "mrs $0, fpcr", "msr fpcr, $0"),
    ARM: _arm_code(32, "vmrs $0, fpscr", "vmsr fpscr, $0"),
}
"""The bits of the floating-point state, and functions that change and restore it.

Architectures that are missing here have no such state: they always compute with denormals."""


def checked_mode(mode: object, device: "Device") -> str:
    """Return the one of :data:`MODES` that code for a device is compiled in.

    Parameters
    ----------
    mode : str or None
        What is asked for; if not given, denormals are flushed where the processor can.
    device : Device
        The processor.

    Raises
    ------
    ArgumentError
        If it is no mode, or one that the processor does not have.
    """
    flushes = architecture(device.triple) in STATES
    if mode is None:
        return FLUSH if flushes else KEEP
    if not MODE.test(mode):
        raise ArgumentError(f"denormals is {mode!r}: expected {MODE.expected}")
    if mode == FLUSH and not flushes:
        raise ArgumentError(
            f"denormals is {mode!r}, but processors like {device.name} always compute with them: "
            f"expected {KEEP!r}, or nothing"
        )
    return str(mode)


def flushed(array: np.ndarray, mode: str = FLUSH) -> np.ndarray:
    """Return an array with zeros of the same sign in place of denormals; itself if it has none.

    Parameters
    ----------
    array : numpy.ndarray
        Of any type. Of float16 nothing is flushed: these numbers are not small in float32; those
        of bfloat16 are.
    mode : str
        One of :data:`MODES`; with ``keep``, the array itself is returned.
    """
    if mode == KEEP or array.dtype not in _FLUSHED:
        return array
    with np.errstate(invalid="ignore"):  # That NaN is not small is right.
        small = np.abs(array) < ml_dtypes.finfo(array.dtype).tiny
    if not array[small].any():
        return array
    return np.where(small, np.copysign(array.dtype.type(0), array), array)
