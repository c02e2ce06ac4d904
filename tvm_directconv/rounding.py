"""Numbers to whole ones in TIR: the arithmetic of requantisation, which is exact on all processors.

No result may depend on whether a product and a sum are rounded once or twice, which compilers
decide. So something always stands between the two, or they are one operation here.
"""

from typing import Any

from .epilogue import SCALES
from .quantization import ROUNDING


def limited(value: Any, least: Any, most: Any) -> Any:
    """Return a number, or the limit that is next to it."""
    from tvm import tirx

    return tirx.max(tirx.min(value, most), least)


def rounded(value: Any) -> Any:
    """Return the bits of a small number, rounded half to even, and ``ROUNDING_BITS`` more."""
    from tvm import tirx

    return tirx.reinterpret("int32", value + tirx.const(ROUNDING, SCALES.name))


def multiply_added(total: Any, whole: Any, factor: Any, fused: bool) -> Any:
    """Return ``total + whole * factor``, rounded once, of a whole number of 8 bits.

    Parameters
    ----------
    total, factor : Expr
        float32.
    whole : Expr
        Of any type.
    fused : bool
        Whether the processor has a multiply-add that rounds once.
    """
    from tvm import tirx

    if fused:
        value = whole.astype(SCALES.name)
        return tirx.call_llvm_pure_intrin(SCALES.name, "llvm.fma", value, factor, total)
    # Here, both product and sum are exact.
    value, factor, total = (each.astype("float64") for each in (whole, factor, total))
    return (total + value * factor).astype(SCALES.name)
