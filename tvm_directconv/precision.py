"""Precisions: which number types pixels, weights and sums of a convolution have."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NumberType:
    """A type of numbers in memory.

    Attributes
    ----------
    name : str
        As NumPy and TVM have it.
    bytes : int
        Size of a number.
    llvm : str
        As LLVM has it.
    largest_exact : int
        Every whole number up to this size is one of this type.
    """

    name: str
    bytes: int
    llvm: str
    largest_exact: int

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Precision:
    """The number types of a convolution.

    Attributes
    ----------
    name : str
        What descriptors, logs and manifests call it.
    pixel, weight, sum, output : NumberType
        Of what is multiplied, of what products are added up in, and of what is stored.
    epilogue : NumberType
        What the epilogue computes in.
    """

    name: str
    pixel: NumberType
    weight: NumberType
    sum: NumberType
    output: NumberType
    epilogue: NumberType

    def __str__(self) -> str:
        return self.name


_FLOAT32 = NumberType("float32", 4, "float", 2**24)
_FLOAT16 = NumberType("float16", 2, "half", 2**11)
NUMBER_TYPES = {number.name: number for number in (_FLOAT32, _FLOAT16)}
"""By name."""

FLOAT32 = Precision("float32", _FLOAT32, _FLOAT32, _FLOAT32, _FLOAT32, _FLOAT32)
# Sums are in half precision, too: that is what the instruction adds up in.
FLOAT16 = Precision("float16", _FLOAT16, _FLOAT16, _FLOAT16, _FLOAT16, _FLOAT32)
PRECISIONS = {precision.name: precision for precision in (FLOAT32, FLOAT16)}
"""By name."""
