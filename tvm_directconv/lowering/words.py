"""Instructions that multiply words: several input channels of a pixel with their weights."""

from collections.abc import Iterable
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir.expr import Call, TensorLoad
from tvm.tirx import BufferStore, PrimFunc

from ..compute import INPUT_NAME, WEIGHT_NAME
from ..hardware.architecture import AARCH64, ARM, Architecture
from ..instructions import FMLAL, HALF_SUMS, MADDWD, SMULL
from ..precision import NUMBER_TYPES
from .loads import LANES_NAME
from .statements import (
    architecture_of,
    importing,
    instruction_of,
    product_of,
    tir_pass,
    whole,
)

# Of numbers of 8 bits in the lower and the higher halves of 16, numbers of 16 bits.
_MADDWD = """
declare <{n} x i32> @llvm.x86.{intrinsic}(<{n2} x i16>, <{n2} x i16>)
define <{n} x i32> @{name}(<{n} x i32> %s, <{n} x i32> %xs, <{n} x i32> %ws) alwaysinline {{
  %x = bitcast <{n} x i32> %xs to <{n2} x i16>
  %w = bitcast <{n} x i32> %ws to <{n2} x i16>
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
define <4 x i32> @{name}(<4 x i32> %s, <4 x i32> %ws, <{m} x i32> %xs) alwaysinline {{
  %h = bitcast <{m} x i32> %xs to <{m2} x i16>
{fours}
  %w = bitcast <4 x i32> %ws to <16 x i8>
  %wl = shufflevector <16 x i8> %w, <16 x i8> poison, <8 x i32> <{low}>
  %wh = shufflevector <16 x i8> %w, <16 x i8> poison, <8 x i32> <{high}>
{products}
{pairs}
  ret <4 x i32> %r
}}
"""
# Both pairs of a word, each four times. LLVM does not see that it is two things: it would take them
# apart, and the halves of the weights with them, which the second multiplication takes as they are.
_FOURS = """
  %f = shufflevector <{m2} x i16> %h, <{m2} x i16> poison, <8 x i32> <{lower}, {upper}>
  %fb = bitcast <8 x i16> %f to <16 x i8>
  %x = call <16 x i8> asm "", "=w,0"(<16 x i8> %fb) memory(none)
  %xl = shufflevector <16 x i8> %x, <16 x i8> poison, <8 x i32> <{low}>
  %xh = shufflevector <16 x i8> %x, <16 x i8> poison, <8 x i32> <{high}>
"""
_FOURS_APART = """
  %f = shufflevector <{m2} x i16> %h, <{m2} x i16> poison, <4 x i32> <{lower}>
  %g = shufflevector <{m2} x i16> %h, <{m2} x i16> poison, <4 x i32> <{upper}>
  %xl = bitcast <4 x i16> %f to <8 x i8>
  %xh = bitcast <4 x i16> %g to <8 x i8>
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
# What LLVM has as a function: TVM has not all types of numbers that these multiply.
_INTRINSIC = """
declare <{n} x {sum}> @{function}(<{n} x {sum}>, <{all} x {element}>, <{all} x {element}>)
define <{n} x {sum}> @{name}(<{n} x {sum}> %s, <{n} x {sum}> %as, <{n} x {sum}> %bs) alwaysinline {{
  %a = bitcast <{n} x {sum}> %as to <{all} x {element}>
  %b = bitcast <{n} x {sum}> %bs to <{all} x {element}>
  %r = call <{n} x {sum}> @{function}(
      <{n} x {sum}> %s, <{all} x {element}> %a, <{all} x {element}> %b)
  ret <{n} x {sum}> %r
}}
"""
# Of the first half of a register; LLVM does not look at the other one.
_FMLAL = """
declare <4 x float> @llvm.aarch64.neon.fmlal.v4f32.v8f16(<4 x float>, <8 x half>, <8 x half>)
define <4 x float> @{name}(<4 x float> %s, <4 x half> %xs, <4 x half> %ws) alwaysinline {{
  %x = shufflevector <4 x half> %xs, <4 x half> poison,
      <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 0, i32 1, i32 2, i32 3>
  %w = shufflevector <4 x half> %ws, <4 x half> poison,
      <8 x i32> <i32 0, i32 1, i32 2, i32 3, i32 poison, i32 poison, i32 poison, i32 poison>
  %r = call <4 x float> @llvm.aarch64.neon.fmlal.v4f32.v8f16(
      <4 x float> %s, <8 x half> %w, <8 x half> %x)
  ret <4 x float> %r
}}
"""
# Products of halves are exact in single precision.
_HALF_SUMS = """
define <{n} x float> @{name}(<{n} x float> %s, <{n} x half> %xs, <{n} x half> %ws) alwaysinline {{
  %x = fpext <{n} x half> %xs to <{n} x float>
  %w = fpext <{n} x half> %ws to <{n} x float>
  %p = fmul <{n} x float> %x, %w
  %q = fadd <{n} x float> %s, %p
  %h = fptrunc <{n} x float> %q to <{n} x half>
  %r = fpext <{n} x half> %h to <{n} x float>
  ret <{n} x float> %r
}}
"""
_WORDS = "directconv_words"  # Begins the names of such functions; the lanes follow.
_FUNCTIONS = {MADDWD: _MADDWD, SMULL: _SMULL, FMLAL: _FMLAL, HALF_SUMS: _HALF_SUMS}
_NEON = {
    AARCH64: {
        "fours": _FOURS,
        "mull": "aarch64.neon.smull.v8i16",
        "first": "smull $0.8h, $1.8b, $2.8b",
        "other": "smlal $0.8h, $2.8b, $3.8b",
        "pairs": _SADALP,
        "add": "aarch64.neon.saddlp.v4i32.v8i16(<8 x i16>)",
    },
    ARM: {
        "fours": _FOURS_APART,
        "mull": "arm.neon.vmulls.v8i16",
        "first": "vmull.s8 ${0:q}, ${1:P}, ${2:P}",
        "other": "vmlal.s8 ${0:q}, ${2:P}, ${3:P}",
        "pairs": _VPADAL,
        "add": "arm.neon.vpadals.v4i32.v8i16(<4 x i32>, <8 x i16>)",
    },
}


def _code(
    known: Architecture,
    marked: Any,
    name: str,
    lanes: int,
    total: str,
    lane: int | None = None,
    pixels: int | None = None,
) -> str:
    """Return a function that multiplies words of one lane or more and adds the products to sums.

    Where a `lane` is given, all words of pixels are the one in that lane, of a register with so
    many `pixels`, by default one for each sum. Where words may be the same again and again, LLVM
    would multiply once: it does not see what inline assembly computes.
    """
    function, element = str(marked["function"]), str(marked["element"])
    values: dict[str, Any] = {"name": name, "function": function, "n": lanes, "n2": 2 * lanes}
    # As many as there are in a register.
    count = lanes * NUMBER_TYPES[total].bytes // int(marked["element_bytes"])
    values |= {"all": count, "element": element}
    values |= {"sum": NUMBER_TYPES[total].llvm}
    values["shr"] = "lshr" if "u" in str(marked["pixels"]) else "ashr"
    if lanes in _MADD_OF_LANES:
        values["intrinsic"] = _MADD_OF_LANES[lanes]
        values["madd"] = f"@llvm.x86.{values['intrinsic']}"
        if marked["again"] and lanes == 4:
            values["madd"] = 'asm sideeffect "pmaddwd $2, $0", "=x,0,x"'
        elif marked["again"]:
            values["madd"] = 'asm sideeffect "vpmaddwd $2, $1, $0", "=v,v,v"'
    if known in _NEON:
        values |= _NEON[known]
        values |= {"m": pixels or lanes, "m2": 2 * (pixels or lanes)}
        words = range(4) if lane is None else [lane] * 4
        values |= {
            "lower": _indices(2 * word for word in words),
            "upper": _indices(2 * word + 1 for word in words),
        }
        values |= {"low": _indices(range(8)), "high": _indices(range(8, 16))}
        fours = _FOURS_APART if lane is None else str(values["fours"])
        values["fours"] = fours.format(**values)
        values["products"] = (_SMULLS_AGAIN if marked["again"] else _SMULLS).format(**values)
    if pixels and marked["by_lane"]:
        lanes_of = [n if n < pixels else "poison" for n in range(lanes)]
        values |= {"m": pixels, "first": _indices(lanes_of)}
        values["code"] = str(marked["by_lane"]).format(
            sums="$0", weights="$2", pixels="$3", lane=lane
        )
        return _BY_LANE.format(**values)
    return _FUNCTIONS.get(function, _INTRINSIC).format(**values)


def _indices(numbers: Iterable[object]) -> str:
    return ", ".join(f"i32 {number}" for number in numbers)


# Pixels are in the first lanes of a register, at least. LLVM sees what is read and written.
_BY_LANE = """
define <{n} x {sum}> @{name}(<{n} x {sum}> %s, <{n} x {sum}> %w, <{m} x {sum}> %p) alwaysinline {{
  %x = shufflevector <{m} x {sum}> %p, <{m} x {sum}> poison, <{n} x i32> <{first}>
  %r = call <{n} x {sum}> asm "{code}", "=w,0,w,w"(
      <{n} x {sum}> %s, <{n} x {sum}> %w, <{n} x {sum}> %x)
  ret <{n} x {sum}> %r
}}
"""


@tir_pass
def multiply_lanes(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Let the instruction take a lane of the pixels that are loaded as a vector.

    That is for instructions which LLVM makes of a number in all lanes only, put there before.
    """
    marked = instruction_of(func)
    if marked is None or not (marked["by_lane"] or marked["function"] == SMULL):
        return func
    known = architecture_of(func)
    called: dict[str, str] = {}

    def by_lane(call: Call) -> Any:
        if not (_is_words(call) and isinstance(call.args[-1], tirx.Broadcast)):
            return call
        *others, splat = call.args[1:]
        load = splat.value
        if not isinstance(load, TensorLoad) or not load.source.name.startswith(LANES_NAME):
            return call
        (lane,), (pixels,) = load.indices, load.source.shape
        name = f"directconv_lane{lane}"
        kind, total = splat.ty.dtype, str(load.source.dtype)
        called[name] = _code(known, marked, name, kind.lanes, total, int(lane), int(pixels))
        register = tirx.BufferLoad(load.source, whole(load.source))
        return tirx.call_extern(str(call.ty.dtype), name, *others, register)

    body = tvm_ffi.structural_map(func.body, (Call, by_lane))
    for code in called.values():
        body = importing(code, body)
    return func.with_body(body)


def _is_words(call: Call) -> bool:
    return call.op.name == "tirx.call_extern" and call.args[0].value.startswith(_WORDS)


_HIGHEST_BITS = 0x80808080  # of four bytes


@tir_pass
def multiply_words(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Turn ``sum + x * w`` of words into the instruction that multiplies their channels.

    Up to here products of words stand for it, which all passes treat as those of numbers.
    """
    marked = instruction_of(func)
    if marked is None:
        return func
    called: dict[str, tuple[int, str, int | None]] = {}

    def multiplied(store: BufferStore) -> Any:
        product = product_of(store)
        if product is None:
            return store
        operands = [product.x, product.w]
        if marked["weights_first"]:
            operands.reverse()
        kind = store.value.ty.dtype
        same = isinstance(product.x, tirx.Broadcast)
        name = f"{_WORDS}{kind.lanes}{'_same' * same}"
        called[name] = kind.lanes, str(store.buffer.dtype), 0 if same else None
        value = tirx.call_extern(str(kind), name, product.total, *operands)
        return BufferStore(store.buffer, value, store.indices)

    def check(product: tirx.Mul) -> None:
        # As a number, a word would be multiplied wrongly.
        for side in (product.a, product.b):
            words = isinstance(side, TensorLoad) and side.source.name == WEIGHT_NAME
            assert not words, f"a product of words is in no sum: {product}"

    body = tvm_ffi.structural_map(func.body, (BufferStore, multiplied))
    tvm_ffi.structural_walk(body, (tirx.Mul, check))
    for name, of_lanes in called.items():
        body = importing(_code(architecture_of(func), marked, name, *of_lanes), body)
    return func.with_body(body)


@tir_pass
def flip_signs(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Add 128 to pixels of 8 bits, or take it away, where the instruction takes the other type.

    Either way it is the highest bit that changes.
    """
    marked = instruction_of(func)
    if marked is None or not marked["flips"]:
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
