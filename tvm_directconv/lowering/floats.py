"""Floating-point numbers: exponentials, NaN, denormals, and what LLVM makes of remainders."""

from math import isnan
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import Call, TensorLoad, Var
from tvm.tirx import (
    AllocBuffer,
    AttrStmt,
    DeclBuffer,
    Evaluate,
    For,
    ForKind,
    IfThenElse,
    IntImm,
    PrimFunc,
    SeqStmt,
)

from .. import exponential
from ..denormals import FLUSH, KEEP, STATES
from ..epilogue import RANGE
from .marks import ALIKE, DENORMALS
from .registers import is_pin
from .statements import architecture_of, importing, sequence, tir_pass, with_body

# The same number, but LLVM does not see which.
_OPAQUE = """
define i{bits} @directconv_opaque{bits}(i{bits} %a) alwaysinline {{
  %b = call i{bits} asm "", "=r,0"(i{bits} %a) nounwind willreturn memory(none)
  ret i{bits} %b
}}
"""
_FLOAT = 2  # DLPack's number for floating point


def _is_number(expression: Any) -> bool:
    """Return whether this is a constant, the same in all lanes, and not NaN."""
    if isinstance(expression, tirx.Broadcast):
        expression = expression.value
    return isinstance(expression, tirx.FloatImm) and not isnan(expression.value)


def _is_limit(expression: Any) -> bool:
    """Return whether this is one of the numbers that quantised outputs are held to."""
    if isinstance(expression, tirx.Broadcast):
        expression = expression.value
    return isinstance(expression, TensorLoad) and expression.source.name == RANGE


_ARITHMETIC = (
    *(tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min),
    *(tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE),
)


@tir_pass
def compute_in_single(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Compute with bfloat16 in float32, where anything but a conversion does.

    TVM's pass for it makes single elements of what loads in vectors, as convolutions have them:
    these convert what they load, and are left alone.
    """
    found: list[Any] = []

    def note(operand: Any) -> None:
        if str(getattr(operand.ty, "dtype", "")).startswith("bfloat16"):  # Pointers have none.
            found.append(operand)

    kinds = [(kind, lambda e: note(e.a)) for kind in _ARITHMETIC]
    tvm_ffi.structural_walk(func.body, [(Call, note), (tirx.Select, note), *kinds])
    if not found:
        return func
    return tirx.transform.BF16ComputeLegalize()(tvm.IRModule({"main": func}))["main"]


@tir_pass
def expand_exponentials(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Compute exponentials from arithmetic, which vectors are made of.

    LLVM would call the C library for each lane.
    """
    formulas = {"tirx.exp": exponential.exp, "tirx.sigmoid": exponential.sigmoid}

    def expanded(call: Call) -> Any:
        formula = formulas.get(getattr(call.op, "name", ""))
        return formula(call.args[0]) if formula and call.ty.dtype == "float32" else call

    return func.with_body(tvm_ffi.structural_map(func.body, (Call, expanded)))


@tir_pass
def round_products(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Round products before they are added, on all processors, in functions marked :data:`ALIKE`.

    TVM lets LLVM fuse the two where the processor can; it does not see what is behind a fence.
    """
    if ALIKE not in func.attrs:
        return func
    sums: list[Any] = []
    tvm_ffi.structural_walk(func.body, [(kind, sums.append) for kind in (tirx.Add, tirx.Sub)])
    if not any(node.ty.dtype.type_code == _FLOAT for node in sums):
        return func

    def fenced(value: Any) -> Any:
        if not isinstance(value, tirx.Mul) or value.ty.dtype.type_code != _FLOAT:
            return value
        return tirx.call_llvm_pure_intrin(str(value.ty.dtype), "llvm.arithmetic.fence", value)

    def chosen(call: Call) -> Any:
        if getattr(call.op, "name", "") != "prim.if_then_else":
            return call
        return tirx.if_then_else(call.args[0], *map(fenced, call.args[1:]))

    entries = [
        *((kind, lambda e: type(e)(fenced(e.a), fenced(e.b))) for kind in (tirx.Add, tirx.Sub)),
        (tirx.Let, lambda e: tirx.Let(e.var, fenced(e.value), e.body)),
        (tirx.Bind, lambda e: tirx.Bind(e.var, fenced(e.value))),
        (tirx.Broadcast, lambda e: tirx.Broadcast(fenced(e.value), e.lanes)),
        (
            tirx.Select,
            lambda e: tirx.Select(e.condition, fenced(e.true_value), fenced(e.false_value)),
        ),
        (Call, chosen),
        # What is read again may be in a register.
        (tirx.BufferStore, lambda e: tirx.BufferStore(e.buffer, fenced(e.value), e.indices)),
    ]
    return func.with_body(tvm_ffi.structural_map(func.body, entries))


@tir_pass
def propagate_nans(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Let maxima and minima of what is not a number be that, as in NumPy.

    TVM's codegen makes ``a > b ? a : b`` of a maximum, which is `b` if one of the two is not a
    number. On x86 that is one instruction: of a constant and a variable, it takes nothing but to
    have the variable second; of two variables, it takes both orders. ARM's own maximum is right,
    but LLVM knows none of float64 on ARMv7. RISC-V's own is the number if one of the two is none.
    """
    own = architecture_of(func).propagates_nans

    def propagating(node: Any) -> Any:
        dtype = node.ty.dtype
        if dtype.type_code != _FLOAT:
            return node
        kind, a, b = type(node), node.a, node.b
        if own and dtype.bits == 32:
            name = "llvm.maximum" if kind is tirx.Max else "llvm.minimum"
            return tirx.call_llvm_pure_intrin(str(dtype), name, a, b)
        # What whole numbers are held to is one, too, and so are they: it may stay in memory.
        if _is_number(a) or _is_limit(b):
            return node
        if _is_number(b):
            return kind(b, a)
        # Each order returns its second operand then: where they differ, one of the two has all bits
        # of the exponent, and of the fraction some.
        first, second = Var("first", str(dtype)), Var("second", str(dtype))
        bits = str(dtype).replace("float", "int")
        orders = kind(first, second), kind(second, first)
        either = [tirx.reinterpret(bits, order) for order in orders]
        joined = tirx.reinterpret(str(dtype), tirx.bitwise_or(*either))
        return tirx.Let(first, a, tirx.Let(second, b, joined))

    entries = [(kind, propagating) for kind in (tirx.Max, tirx.Min)]
    return func.with_body(tvm_ffi.structural_map(func.body, entries))


@tir_pass
def convert_numbers(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Convert between single precision and narrower numbers where LLVM does not do it in vectors.

    Of bfloat16, which is the upper half of float32, it would call functions of a library to round;
    of vectors of halves on ARMv7, it converts one number after the other.
    """
    halves = architecture_of(func).halves
    called: list[Any] = []

    def widened(number: str, value: Any, lanes: int) -> Any:
        """Return float32 of numbers, of one that is for all lanes if these are more."""
        bits = tirx.reinterpret(_as(value, "uint16"), value)
        one = bits.ty.dtype.lanes < lanes
        if number == "bfloat16":
            # Shifted out, what is below does not matter: the number once more takes one load.
            if one:
                wide = tirx.reinterpret(f"uint32x{lanes}", tirx.Broadcast(bits, 2 * lanes))
            else:
                wide = bits.astype(_as(value, "uint32"))
            return tirx.reinterpret(_lanes("float32", lanes), wide << _like(16, wide))
        called.append(value)
        vector = tirx.Broadcast(bits, lanes) if one else bits
        return tirx.call_extern("float32x4", "directconv_widened", vector)

    def narrowed(number: str, value: Any) -> Any:
        if number == "bfloat16":
            bits = tirx.reinterpret(_as(value, "uint32"), value)
            sign_apart, infinity = _like(0x7FFFFFFF, bits), _like(0x7F800000, bits)
            even = (bits >> _like(16, bits)) & _like(1, bits)
            rounded = bits + _like(0x7FFF, bits) + even
            # Rounding could make an infinity of NaN. The first bit keeps it quiet.
            nan = bits | _like(0x400000, bits)
            bits = tirx.Select((bits & sign_apart) > infinity, nan, rounded)
            upper = (bits >> _like(16, bits)).astype(_as(value, "uint16"))
        else:
            called.append(value)
            upper = tirx.call_extern("uint16x4", "directconv_narrowed", value)
        return tirx.reinterpret(_as(value, number), upper)

    def is_ours(number: str, lanes: int) -> bool:
        return number == "bfloat16" or (number == "float16" and lanes == 4 and bool(halves))

    def converted(cast: tirx.Cast) -> Any:
        value, lanes = cast.value, cast.ty.dtype.lanes
        source, target = (str(e.ty.dtype).split("x")[0] for e in (value, cast))
        if target == "float32" and is_ours(source, lanes):
            return widened(source, value, lanes)
        if source == "float32" and is_ours(target, lanes):
            return narrowed(target, value)
        return cast

    # Before the conversions in them.
    def spread(broadcast: tirx.Broadcast) -> Any:
        cast, lanes = broadcast.value, broadcast.ty.dtype.lanes
        if not isinstance(cast, tirx.Cast) or str(cast.ty.dtype) != "float32":
            return broadcast
        source = str(cast.value.ty.dtype)
        return widened(source, cast.value, lanes) if is_ours(source, lanes) else broadcast

    body = tvm_ffi.structural_map(func.body, (tirx.Broadcast, spread))
    body = tvm_ffi.structural_map(body, (tirx.Cast, converted))
    return func.with_body(importing(halves, body) if called else body)


def _lanes(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _as(value: Any, dtype: str) -> str:
    """Return a type with as many lanes as a value has."""
    return _lanes(dtype, value.ty.dtype.lanes)


def _like(number: int, value: Any) -> Any:
    """Return a constant of the type of a value."""
    return tirx.const(number, str(value.ty.dtype))


@tir_pass
def hide_masks(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Compute remainders by powers of two so that LLVM takes them for any numbers.

    It makes a mask of `n % 4`, and of the mask a counter of two bits that must not overflow. Where
    the index around it must not overflow either, LLVM 20 to 22 takes the first condition to follow
    from the second (``SCEVWrapPredicate::implies`` does not look at the widths), never tests it,
    and makes vectors of elements that lie beside the input.
    ``scripts/reproduce_llvm_remainders.py`` shows it without this package.

    Convolutions stay as they are: LLVM makes no vectors of loops with pins in them.
    """
    masks: dict[tuple[int, int], Var] = {}
    pins: list[Call] = []
    tvm_ffi.structural_walk(func.body, (Call, lambda e: pins.append(e) if is_pin(e) else None))
    if pins:
        return func

    def masked(remainder: Any) -> Any:
        divisor, dtype = remainder.b, remainder.ty.dtype
        if isinstance(divisor, tirx.Broadcast):
            divisor = divisor.value
        if not isinstance(divisor, IntImm) or int(divisor) & (int(divisor) - 1) or divisor <= 1:
            return remainder
        key = int(divisor), dtype.bits
        if key not in masks:
            masks[key] = Var(f"mask{int(divisor) - 1}", f"int{dtype.bits}")
        mask: Any = masks[key]
        return remainder.a & (tirx.Broadcast(mask, dtype.lanes) if dtype.lanes > 1 else mask)

    body = tvm_ffi.structural_map(func.body, (tirx.FloorMod, masked))
    bindings = [
        tirx.Bind(
            mask,
            tirx.call_extern(
                f"int{bits}", f"directconv_opaque{bits}", tirx.const(divisor - 1, f"int{bits}")
            ),
        )
        for (divisor, bits), mask in masks.items()
    ]
    body = sequence([*bindings, body])
    for bits in {bits for _, bits in masks}:
        body = importing(_OPAQUE.format(bits=bits), body)
    return func.with_body(body)


@tir_pass
def flush_denormals(func: PrimFunc, _mod: Any, _ctx: Any) -> PrimFunc:
    """Let denormals count as zeros while a function runs, in all of its threads.

    A processor can take a hundred times as long for one. What the state was before comes back when
    the function, or a thread's part of it, ends; between, nothing can fail.
    """
    state = STATES.get(architecture_of(func))
    if state is None or func.attrs.get(DENORMALS, FLUSH) == KEEP:
        return func
    bits, code = state

    def guarded(statement: Any) -> SeqStmt:
        before = Var("before", f"int{bits}")
        return SeqStmt(
            [
                tirx.Bind(before, tirx.call_extern(f"int{bits}", "directconv_flush")),
                statement,
                Evaluate(tirx.call_extern("void", "directconv_restore", before)),
            ]
        )

    def visited(statement: Any) -> Any:
        if not _is_parallel(statement):
            return guarded(statement)
        if isinstance(statement, SeqStmt):
            declarations = tirx.Bind, AllocBuffer, DeclBuffer
            return SeqStmt(
                [
                    part if isinstance(part, declarations) else visited(part)
                    for part in statement.seq
                ]
            )
        if isinstance(statement, AttrStmt):
            body = visited(statement.body)
            return AttrStmt(statement.node, statement.attr_key, statement.value, body)
        if isinstance(statement, IfThenElse):
            other = statement.else_case
            return IfThenElse(
                statement.condition,
                visited(statement.then_case),
                None if other is None else visited(other),
            )
        assert isinstance(statement, For)
        if statement.kind != ForKind.PARALLEL:
            return with_body(statement, visited(statement.body))
        # Each thread runs all that is within this mark: the loop is what its threads share out.
        return AttrStmt(
            tirx.const(0, "int32"),
            "pragma_parallel_launch_point",
            tirx.const(1, "int32"),
            guarded(statement),
        )

    return func.with_body(importing(code, visited(func.body)))


def _is_parallel(statement: Any) -> bool:
    """Return whether there is a parallel loop in a statement."""
    found: list[For] = []
    tvm_ffi.structural_walk(
        statement, (For, lambda f: found.append(f) if f.kind == ForKind.PARALLEL else None)
    )
    return bool(found)
