"""Vectors are as wide as the schedule has them, and the processor as the device has it."""

import re
from typing import Any

import tvm
from tvm import tirx
from tvm.target import Target
from tvm.tirx import Evaluate, PrimFunc, SeqStmt

from ..hardware.target import llvm
from .statements import architecture_of, importing, tir_pass


@tir_pass
def vectorize(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Make vectors of the loops that the schedule marks, each of as many lanes as its loop has.

    For processors whose vectors have no size of their own, as those of RISC-V, TVM makes loops over
    vectors of whatever size is found when they run. No such vector can stay in a register through
    a tile. So TVM is not told here which processor it is.
    """
    target = func.attrs["target"]
    module = tvm.IRModule({"main": func.with_attr("target", Target({"kind": "llvm"}))})
    return tirx.transform.VectorizeLoop(True)(module)["main"].with_attr("target", target)


@tir_pass
def check_vectors(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """End the program where the processor's vectors are narrower than those the code is made for.

    Elsewhere it would end at the first instruction that the processor does not have. RISC-V's
    instructions are the same for all widths: they would leave out the last lanes.
    """
    code = architecture_of(func).vector_check
    if not code:
        return func
    features = map(str, llvm("llvm_get_cpu_features", func.attrs["target"]))
    bits = max(int(found[1]) for name in features if (found := re.fullmatch(r"zvl(\d+)b", name)))
    check = Evaluate(tirx.call_extern("void", "directconv_check_vectors"))
    return func.with_body(importing(code.format(bytes=bits // 8), SeqStmt([check, func.body])))
