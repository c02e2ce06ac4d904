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
    """

    name: str
    bytes: int

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
    """

    name: str
    pixel: NumberType
    weight: NumberType
    sum: NumberType
    output: NumberType

    def __str__(self) -> str:
        return self.name


_FLOAT32 = NumberType("float32", 4)
FLOAT32 = Precision("float32", _FLOAT32, _FLOAT32, _FLOAT32, _FLOAT32)
PRECISIONS = {precision.name: precision for precision in (FLOAT32,)}
"""By name."""
