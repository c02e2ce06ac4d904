"""Instructions that multiply words: several input channels of a pixel with their weights."""

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad
from tvm.tirx import BufferStore, PrimFunc

from ..compute import INPUT_NAME
from ..instructions import Instruction
from ..precision import Precision
from .marks import INSTRUCTION
from .statements import tir_pass


def attributes(instruction: Instruction, precision: Precision) -> dict[str, Any]:
    """Return the attributes of a function in which an instruction multiplies words."""
    if instruction.depth == 1:
        return {}
    return {
        INSTRUCTION: {
            "intrinsic": instruction.intrinsic,
            "elements": f"{precision.weight}x{instruction.lanes * instruction.depth}",
            "weights_first": instruction.weights_first,
            "flips": instruction.shift(precision) != 0,
        }
    }


_HIGHEST_BITS = 0x80808080 - 2**32  # of four bytes


@tir_pass
def multiply_words(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Turn ``sum + x * w`` of words into the instruction that multiplies their channels.

    Up to here products of words stand for it, which all passes treat as those of numbers.
    """
    if not func.attrs or INSTRUCTION not in func.attrs:
        return func
    marked = func.attrs[INSTRUCTION]
    name, elements = str(marked["intrinsic"]), str(marked["elements"])

    def multiplied(store: BufferStore) -> Any:
        total = store.value
        if not (isinstance(total, tirx.Add) and isinstance(total.b, tirx.Mul)):
            return store
        operands = [tirx.reinterpret(elements, side) for side in (total.b.a, total.b.b)]
        if marked["weights_first"]:
            operands.reverse()
        value = tirx.call_llvm_pure_intrin(str(total.ty.dtype), name, total.a, *operands)
        return BufferStore(store.buffer, value, store.indices)

    return func.with_body(tvm_ffi.structural_map(func.body, (BufferStore, multiplied)))


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
        return load ^ tirx.const(_HIGHEST_BITS, load.ty.dtype)

    return func.with_body(tvm_ffi.structural_map(func.body, (TensorLoad, flipped)))
