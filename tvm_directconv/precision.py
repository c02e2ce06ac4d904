"""Precisions: which number types pixels, weights and sums of a convolution have."""

from dataclasses import dataclass

import ml_dtypes  # noqa: F401  NumPy has bfloat16 from it.


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
    least : int, optional
        The least of those of a type that has whole numbers only.
    """

    name: str
    bytes: int
    llvm: str
    largest_exact: int
    least: int | None = None

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
    block : int, optional
        Most channels in a block of activations; where not given, the lanes of the instruction.
    converted_to : Precision, optional
        The precision that pixels and weights are converted to as they are loaded, where no
        instruction multiplies them as they are stored faster. None: all do.
    """

    name: str
    pixel: NumberType
    weight: NumberType
    sum: NumberType
    output: NumberType
    epilogue: NumberType
    block: int | None = None
    converted_to: "Precision | None" = None

    def __str__(self) -> str:
        return self.name

    @property
    def whole(self) -> bool:
        """Whether sums are whole numbers."""
        return self.sum.least is not None

    @property
    def stores_sums(self) -> bool:
        """Whether sums may be stored where outputs will be, before they are complete."""
        return self.sum == self.output and self.block is None

    def channel_block(self, channels: int, lanes: int, most: int | None = None) -> int:
        """Return how many channels are in a block of outputs that are computed in such vectors.

        Blocks of fewer channels than `most`, which is :attr:`block` if not given, are the smallest
        power of two that has all of them, from 4 on. What only fills a block is multiplied with
        zeros: where it may be no number, blocks are of vectors that are all computed.
        """
        block = most or self.block
        if block is None:
            return lanes
        if not self.whole:
            while block > lanes and -(-channels // lanes) * lanes % block:
                block //= 2
            return max(block, lanes)
        while block >= 2 * max(channels, 4):
            block //= 2
        return block


_FLOAT32 = NumberType("float32", 4, "float", 2**24)
_FLOAT16 = NumberType("float16", 2, "half", 2**11)
_INT32 = NumberType("int32", 4, "i32", 2**31 - 1, least=-(2**31))
_INT8 = NumberType("int8", 1, "i8", 2**7 - 1, least=-(2**7))
_UINT8 = NumberType("uint8", 1, "i8", 2**8 - 1, least=0)
_BFLOAT16 = NumberType("bfloat16", 2, "bfloat", 2**8)
NUMBER_TYPES = {
    number.name: number for number in (_FLOAT32, _FLOAT16, _BFLOAT16, _INT32, _INT8, _UINT8)
}
"""By name."""

FLOAT32 = Precision("float32", _FLOAT32, _FLOAT32, _FLOAT32, _FLOAT32, _FLOAT32)
# Sums are in half precision, too: that is what the instruction adds up in.
FLOAT16 = Precision("float16", _FLOAT16, _FLOAT16, _FLOAT16, _FLOAT16, _FLOAT32)
FLOAT16ACC32 = Precision(
    "float16acc32", _FLOAT16, _FLOAT16, _FLOAT32, _FLOAT16, _FLOAT32, converted_to=FLOAT32
)
BFLOAT16 = Precision(
    "bfloat16", _BFLOAT16, _BFLOAT16, _FLOAT32, _BFLOAT16, _FLOAT32, converted_to=FLOAT32
)
# Weights have signs, as those of quantised networks do. 16 channels are a vector of pixels on ARM,
# and of sums with AVX-512.
UINT8 = Precision("uint8", _UINT8, _INT8, _INT32, _INT32, _INT32, block=16)
INT8 = Precision("int8", _INT8, _INT8, _INT32, _INT32, _INT32, block=16)
PRECISIONS = {
    precision.name: precision
    for precision in (FLOAT32, FLOAT16, FLOAT16ACC32, BFLOAT16, UINT8, INT8)
}
"""By name."""

DTYPES = {"bf16": BFLOAT16, "fp16": FLOAT16ACC32, "fp16acc16": FLOAT16, "fp32": FLOAT32}
"""What networks of floating-point numbers can be computed in, as people write it.

A model whose weights are of a type is computed, if nothing else is said, in the first that stores
it."""

MIXED = "mixed"
"""The one of these with 16 bits that a processor computes in fastest, as people write it."""
