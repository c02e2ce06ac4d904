"""Instructions that multiply words: several input channels of a pixel with their weights."""

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad
from tvm.tirx import BufferStore, PrimFunc

from ..compute import INPUT_NAME, WEIGHT_NAME
from ..hardware.architecture import AARCH64, ARM, Architecture
from ..precision import NUMBER_TYPES
from .marks import INSTRUCTION
from .statements import architecture_of, importing, tir_pass

# Of numbers of 8 bits in the lower and the higher halves of 16, numbers of 16 bits.
_MADDWD = """
declare <{n} x i32> @llvm.x86.{intrinsic}(<{n2} x i16>, <{n2} x i16>)
define <{n} x i32> @directconv_maddwd(<{n} x i32> %s, <{n4} x i8> %x8, <{n4} x i8> %w8)
    alwaysinline {{
  %x = bitcast <{n4} x i8> %x8 to <{n2} x i16>
  %w = bitcast <{n4} x i8> %w8 to <{n2} x i16>
  %xl = shl <{n2} x i16> %x, splat (i16 8)
  %wl = shl <{n2} x i16> %w, splat (i16 8)
  %x0 = {shr} <{n2} x i16> %xl, splat (i16 8)
  %w0 = ashr <{n2} x i16> %wl, splat (i16 8)
  %x1 = {shr} <{n2} x i16> %x, splat (i16 8)
  %w1 = ashr <{n2} x i16> %w, splat (i16 8)
  %p0 = call <{n} x i32> {madd}(<{n2} x i16> %x0, <{n2} x i16> %w0)
  %p1 = call <{n} x i32> {madd}(<{n2} x i16> %x1, <{n2} x i16> %w1)
  %p = add <{n} x i32> %p0, %p1
  %r = add <{n} x i32> %s, %p
  ret <{n} x i32> %r
}}
"""
_MADD_OF_LANES = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}
_SMULL = """
declare <8 x i16> @llvm.{mull}(<8 x i8>, <8 x i8>)
declare <4 x i32> @llvm.{add}
define <4 x i32> @directconv_smull(<4 x i32> %s, <16 x i8> %x8, <16 x i8> %w) alwaysinline {{
  %x = bitcast <16 x i8> %x8 to <8 x i16>
  %x0 = shufflevector <8 x i16> %x, <8 x i16> poison,
      <4 x i32> <i32 0, i32 2, i32 4, i32 6>
  %x1 = shufflevector <8 x i16> %x, <8 x i16> poison,
      <4 x i32> <i32 1, i32 3, i32 5, i32 7>
  %xl = bitcast <4 x i16> %x0 to <8 x i8>
  %xh = bitcast <4 x i16> %x1 to <8 x i8>
  %wl = shufflevector <16 x i8> %w, <16 x i8> poison,
      <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 4, i32 5, i32 6, i32 7>
  %wh = shufflevector <16 x i8> %w, <16 x i8> poison,
      <8 x i32> <i32 8, i32 9, i32 10, i32 11, i32 12, i32 13, i32 14, i32 15>
{products}
{pairs}
  ret <4 x i32> %r
}}
"""
_SMULLS = """
  %pl = call <8 x i16> @llvm.{mull}(<8 x i8> %wl, <8 x i8> %xl)
  %ph = call <8 x i16> @llvm.{mull}(<8 x i8> %wh, <8 x i8> %xh)
  %p = add <8 x i16> %pl, %ph
"""
_SMULLS_AGAIN = """
  %pl = call <8 x i16> asm sideeffect "{first}", "=w,w,w"(<8 x i8> %wl, <8 x i8> %xl)
  %p = call <8 x i16> asm sideeffect "{other}", "=w,0,w,w"(
      <8 x i16> %pl, <8 x i8> %wh, <8 x i8> %xh)
"""
_SADALP = """
  %q = call <4 x i32> @llvm.aarch64.neon.saddlp.v4i32.v8i16(<8 x i16> %p)
  %r = add <4 x i32> %s, %q
"""
_VPADAL = "  %r = call <4 x i32> @llvm.arm.neon.vpadals.v4i32.v8i16(<4 x i32> %s, <8 x i16> %p)"
_FUNCTIONS = {"directconv_maddwd": _MADDWD, "directconv_smull": _SMULL}
_NEON = {
    AARCH64: {
        "mull": "aarch64.neon.smull.v8i16",
        "first": "smull $0.8h, $1.8b, $2.8b",
        "other": "smlal $0.8h, $2.8b, $3.8b",
        "pairs": _SADALP,
        "add": "aarch64.neon.saddlp.v4i32.v8i16(<8 x i16>)",
    },
    ARM: {
        "mull": "arm.neon.vmulls.v8i16",
        "first": "vmull.s8 ${0:q}, ${1:P}, ${2:P}",
        "other": "vmlal.s8 ${0:q}, ${2:P}, ${3:P}",
        "pairs": _VPADAL,
        "add": "arm.neon.vpadals.v4i32.v8i16(<4 x i32>, <8 x i16>)",
    },
}


def _code(known: Architecture, name: str, lanes: int, signed: bool, again: bool) -> str:
    """Return a function in LLVM's language. `again`: what it multiplies may be the same each time.

    LLVM would then multiply once. It does not see what inline assembly computes.
    """
    values: dict[str, Any] = {"n": lanes, "n2": 2 * lanes, "n4": 4 * lanes}
    values["shr"] = "ashr" if signed else "lshr"
    if lanes in _MADD_OF_LANES:
        values["intrinsic"] = _MADD_OF_LANES[lanes]
        values["madd"] = f"@llvm.x86.{values['intrinsic']}"
        if again and lanes == 4:
            values["madd"] = 'asm sideeffect "pmaddwd $2, $0", "=x,0,x"'
        elif again:
            values["madd"] = 'asm sideeffect "vpmaddwd $2, $1, $0", "=v,v,v"'
    if known in _NEON:
        values |= _NEON[known]
        values["products"] = (_SMULLS_AGAIN if again else _SMULLS).format(**values)
    return _FUNCTIONS[name].format(**values)


_HIGHEST_BITS = 0x80808080  # of four bytes


@tir_pass
def multiply_words(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Turn ``sum + x * w`` of words into the instruction that multiplies their channels.

    Up to here products of words stand for it, which all passes treat as those of numbers.
    """
    if not func.attrs or INSTRUCTION not in func.attrs:
        return func
    marked = func.attrs[INSTRUCTION]
    name, elements = str(marked["function"]), str(marked["elements"])
    signed, again = "u" not in str(marked["pixels"]), bool(marked["again"])
    call = tirx.call_extern if name in _FUNCTIONS else tirx.call_llvm_pure_intrin
    sums: set[int] = set()

    def multiplied(store: BufferStore) -> Any:
        total = store.value
        if not (isinstance(total, tirx.Add) and isinstance(total.b, tirx.Mul)):
            return store
        operands = [tirx.reinterpret(elements, side) for side in (total.b.a, total.b.b)]
        if marked["weights_first"]:
            operands.reverse()
        value = call(str(total.ty.dtype), name, total.a, *operands)
        sums.add(total.ty.dtype.lanes)
        return BufferStore(store.buffer, value, store.indices)

    def check(product: tirx.Mul) -> None:
        # As a number, a word would be multiplied wrongly.
        for side in (product.a, product.b):
            words = isinstance(side, TensorLoad) and side.source.name == WEIGHT_NAME
            assert not words, f"a product of words is in no sum: {product}"

    body = tvm_ffi.structural_map(func.body, (BufferStore, multiplied))
    tvm_ffi.structural_walk(body, (tirx.Mul, check))
    if name in _FUNCTIONS:
        for lanes in sums:
            body = importing(_code(architecture_of(func), name, lanes, signed, again), body)
    return func.with_body(body)


@tir_pass
def flip_signs(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Add 128 to pixels of 8 bits, or take it away, where the instruction takes the other type.

    Either way it is the highest bit that changes.
    """
    if not func.attrs or INSTRUCTION not in func.attrs or not func.attrs[INSTRUCTION]["flips"]:
        return func

    def flipped(load: TensorLoad) -> Any:
        if load.source.name != INPUT_NAME:
            return load
        number = NUMBER_TYPES[str(load.source.dtype)]
        bits = _HIGHEST_BITS & (1 << 8 * number.bytes) - 1
        if number.least:
            bits -= 1 << 8 * number.bytes
        return load ^ tirx.const(bits, load.ty.dtype)

    def computed(store: BufferStore) -> BufferStore:
        # Not where addresses are taken, which are of no store.
        value = tvm_ffi.structural_map(store.value, (TensorLoad, flipped))
        return BufferStore(store.buffer, value, store.indices)

    return func.with_body(tvm_ffi.structural_map(func.body, (BufferStore, computed)))
