"""What passes do with statements and expressions again and again."""

from typing import Any, NamedTuple

import tvm_ffi
from tvm import tirx
from tvm.ir.expr import StringImm, TensorLoad, Var
from tvm.tirx import (
    AttrStmt,
    BufferStore,
    For,
    ForKind,
    PrimFunc,
    SeqStmt,
)

from ..compute import WEIGHT_NAME
from ..hardware.architecture import Architecture, architecture
from .marks import INSTRUCTION


def tir_pass(function: Any) -> Any:
    """Make a pass of TVM of a function that changes functions."""
    return tirx.transform.prim_func_pass(function, opt_level=0, name=function.__name__)


def with_body(
    loop: For, body: Any, kind: ForKind | None = None, done: str = "", extent: Any = None
) -> For:
    """Return a loop with another body, kind or extent, without the annotation that is done with."""
    return For(
        loop.loop_var,
        loop.min,
        loop.extent if extent is None else extent,
        loop.kind if kind is None else kind,
        body,
        loop.thread_binding,
        {key: value for key, value in loop.annotations.items() if key != done},
        loop.step,
    )


def flat(statement: Any) -> list[Any]:
    """Return the statements of a sequence, and of those in it."""
    if isinstance(statement, SeqStmt):
        return [part for inner in statement.seq for part in flat(inner)]
    return [statement]


def sequence(statements: list[Any]) -> Any:
    """Return statements one after the other; TVM takes no sequence of one."""
    return statements[0] if len(statements) == 1 else SeqStmt(statements)


def replaced(code: Any, variable: Var, value: Any) -> Any:
    """Return an expression or statement with a value in place of a variable."""
    return tvm_ffi.structural_map(code, (Var, lambda v: value if v.same_as(variable) else v))


def whole(register: Any) -> list[Any]:
    """Return the indices of all that is in a register."""
    lanes = int(register.shape[0])
    return [tirx.Ramp(0, 1, lanes) if lanes > 1 else 0]


class Product(NamedTuple):
    """``sum = sum + x * w``: one or more words or numbers, as they are in memory."""

    total: Any
    x: Any
    w: Any


def product_of(statement: Any) -> Product | None:
    """Return what a statement adds to a sum, None if it is no product with weights."""
    total = statement.value if isinstance(statement, BufferStore) else None
    if not (isinstance(total, tirx.Add) and isinstance(total.b, tirx.Mul)):
        return None
    w = _unconverted(total.b.b)
    if not (isinstance(w, TensorLoad) and w.source.name == WEIGHT_NAME):
        return None
    return Product(total.a, _unconverted(total.b.a), w)


def _unconverted(value: Any) -> Any:
    if isinstance(value, tirx.Broadcast):
        return tirx.Broadcast(_unconverted(value.value), value.lanes)
    return value.value if isinstance(value, tirx.Cast) else value


def importing(code: str, body: Any) -> AttrStmt:
    """Return a statement with the LLVM functions that it calls."""
    return AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", StringImm(code), body)


def instruction_of(func: PrimFunc) -> Any:
    """Return the function's :data:`.marks.INSTRUCTION`, None if it calls none by its name."""
    return func.attrs[INSTRUCTION] if func.attrs and INSTRUCTION in func.attrs else None


def architecture_of(func: PrimFunc) -> Architecture:
    """Return what a function is for."""
    found = architecture(str(func.attrs["target"].attrs["mtriple"]))
    assert found is not None
    return found


def uses(expression: Any, variable: Var) -> bool:
    """Return whether a variable is in an expression."""
    found = []
    tvm_ffi.structural_walk(
        expression, (Var, lambda v: found.append(v) if v.same_as(variable) else None)
    )
    return bool(found)


def conjuncts(condition: Any) -> list[Any]:
    """Return the conditions that all hold where one does."""
    if isinstance(condition, tirx.And):
        return conjuncts(condition.a) + conjuncts(condition.b)
    return [condition]
