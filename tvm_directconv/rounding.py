"""Numbers to whole ones in TIR: the arithmetic of requantisation, which is exact on all processors.

No result may depend on whether a product and a sum are rounded once or twice, which compilers
decide. So something always stands between the two, or they are one operation here.
"""

from collections.abc import Iterable
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


def products_added(total: Any, products: Iterable[tuple[Any, Any]], fused: bool) -> Any:
    """Return a sum with products added one after the other, each addition rounded once.

    Parameters
    ----------
    total : Expr
        float32.
    products : iterable of (Expr, Expr)
        Pairs of a whole number of 8 bits, of any type, and a factor, float32.
    fused : bool
        Whether the processor has a multiply-add that rounds once.
    """
    from tvm import tirx

    for whole, factor in products:
        if fused:
            value = whole.astype(SCALES.name)
            total = tirx.call_llvm_pure_intrin(SCALES.name, "llvm.fma", value, factor, total)
        else:  # Here, both product and sum are exact.
            value, by, wide = (each.astype("float64") for each in (whole, factor, total))
            total = (wide + value * by).astype(SCALES.name)
    return total
