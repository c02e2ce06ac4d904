"""The exponential function of float32 in vectors, as an expression that every processor computes.

The C library's `expf`, which LLVM calls otherwise, takes one number at a time. The way is that of
Cephes: x = n ln 2 + f with a whole number n and |f| <= ln 2 / 2, and e^x = 2^n e^f, of which e^f is
a polynomial and 2^n is put together from bits.
"""

from math import e, log2
from typing import Any

# ln 2 in two parts. The first has 9 bits, so its products with n are exact, without FMA, too.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4

# e^f = 1 + f + f^2 (p0 f^5 + p1 f^4 + ...), to within 2^-24: expf.c of Cephes.
_POLYNOMIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)

# 1.5 x 2^23. Added to a small number, it rounds that to a whole one and has this in its last bits.
_ROUND = 12582912.0

# 2^127 e^f would overflow before the result does, and 2^128 is none, so 2 e^f is multiplied by
# 2^(n-1), whose biased exponent n + 126 has to be from 0, which stands for zero, to 254.
_BIAS, _MANTISSA_BITS = 126, 23
_LOWEST, _HIGHEST = -87.6, 89.0  # n = -126 and 128


def exp(x: Any) -> Any:
    """Return e^x, within 3e-7 of it in relative terms.

    Not a number stays so. Above the range of float32 the result is infinite; below 2^-125.5 it is
    0.

    Parameters
    ----------
    x : tvm.tirx.PrimExpr
        One number, float32. Vectors are made of the result.
    """
    from tvm import tirx

    def number(value: float) -> Any:
        return tirx.const(value, "float32")

    limited, shifted, n, f = (
        tirx.Var(name, "float32") for name in ("limited", "shifted", "n", "f")
    )
    polynomial = number(2 * _POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        polynomial = polynomial * f + number(2 * coefficient)
    twice = polynomial * (f * f) + (f * number(2) + number(2))
    # The bits of 1.5 x 2^23 itself are moved out.
    exponent = tirx.reinterpret("int32", shifted) + tirx.const(_BIAS, "int32")
    power = tirx.reinterpret("float32", exponent << tirx.const(_MANTISSA_BITS, "int32"))
    # Minima and maxima of what is not a number are that: lowering.floats.propagate_nans.
    bindings = [
        (limited, tirx.Max(number(_LOWEST), tirx.Min(number(_HIGHEST), x))),
        (shifted, limited * number(log2(e)) + number(_ROUND)),
        (n, shifted - number(_ROUND)),
        (f, limited - n * number(_LN2_HIGH) - n * number(_LN2_LOW)),
    ]
    result = twice * power
    for variable, value in reversed(bindings):
        result = tirx.Let(variable, value, result)
    return result


def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + e^-x); parameters as of :func:`exp`."""
    return 1.0 / (1.0 + exp(-x))
