"""Plain and blocked layouts of activations and weights, and the arrays in them.

The paper's layouts (section 4) split channels into blocks that lie innermost, so that one vector
load reads neighbouring output channels:

=================  ==========================================================
activations        ``NCHW16c``: batch, C/16, H, W, 16. Input and output alike.
first layer        ``NCHW`` or ``NHWC``, as the image comes
weights            ``OIHW8i16o``: C_o/16, C_i/8, H_f, W_f, 8, 16
=================  ==========================================================

A channel count that the block does not divide is filled up with zeros.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import ArgumentError, BlockingError, did_you_mean
from .kinds import shown
from .precision import NumberType

ALIGNMENT = 64
"""Bytes. Kernels use aligned vector instructions, and TVM promises LLVM this much."""


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype | str = "float32") -> np.ndarray:
    """Return an array of zeros whose data begins on a boundary of :data:`ALIGNMENT`.

    Raises
    ------
    ArgumentError
        If there is not as much memory.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        raw = np.zeros(size + ALIGNMENT, np.uint8)
    except (MemoryError, ValueError):  # ValueError: more than there can be
        raise ArgumentError(
            f"an array of shape {shown(shape)} takes {size} bytes: expected as much free memory"
        ) from None
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _check(
    what: str, array: np.ndarray, number: NumberType, expected: tuple[int, ...], layout: str
) -> None:
    if not isinstance(array, np.ndarray):
        raise ArgumentError(f"{what} is a {type(array).__name__}: expected a numpy.ndarray")
    if array.dtype != np.dtype(number.name):
        raise ArgumentError(
            f"{what} has dtype {array.dtype}: expected {number}, use {what}.astype('{number}')"
        )
    if array.shape != expected:
        raise ArgumentError(f"{what} has shape {array.shape}: expected {expected} ({layout})")


@dataclass(frozen=True)
class ActivationLayout:
    """How the elements of an input or output lie in memory.

    Parameters
    ----------
    name : str
        ``NCHW``, ``NHWC``, or ``NCHW<block>c``.

    Raises
    ------
    BlockingError
        If the name is none of these.
    """

    name: str

    def __post_init__(self) -> None:
        name = str(self.name)  # Whatever a caller gives.
        if name not in ("NCHW", "NHWC") and not re.fullmatch("NCHW[1-9][0-9]{0,9}c", name):
            raise BlockingError(
                f"layout is {shown(self.name)}: expected NCHW, NHWC or NCHW<block>c such as NCHW16c"
                + did_you_mean(name, ("NCHW", "NHWC", "NCHW4c", "NCHW8c", "NCHW16c"))
            )

    @classmethod
    def blocked(cls, block: int) -> "ActivationLayout":
        """Return the layout with channels in blocks of `block`."""
        return cls(f"NCHW{block}c")

    def __str__(self) -> str:
        return self.name

    @property
    def block(self) -> int | None:
        """Channels in a block; None for the plain layouts."""
        return int(self.name[4:-1]) if self.name.endswith("c") else None

    def in_words(self, depth: int) -> "ActivationLayout":
        """Return the layout of the same array, of words of so many channels each."""
        if depth == 1 or self.block is None:
            return self
        # Blocks of one word are planes of words.
        block = self.block // depth
        return ActivationLayout.blocked(block) if block > 1 else ActivationLayout("NCHW")

    def channels(self, plain: int) -> int:
        """Return how many channels are stored of a tensor that has `plain` ones."""
        return -(-plain // self.block) * self.block if self.block else plain

    def shape(self, plain: tuple[int, int, int, int]) -> tuple[int, ...]:
        """Return the shape in this layout of a tensor with NCHW shape `plain`."""
        n, c, h, w = plain
        if self.block:
            return (n, -(-c // self.block), h, w, self.block)
        return (n, h, w, c) if self.name == "NHWC" else plain

    def pack(self, array: np.ndarray) -> np.ndarray:
        """Copy a plain NCHW array into this layout, aligned.

        Parameters
        ----------
        array : numpy.ndarray
            NCHW, any strides.

        Returns
        -------
        numpy.ndarray
            Contiguous, of the same type, in this layout; channels that only fill the last block
            are zero.
        """
        n, c, h, w = array.shape
        packed = aligned_zeros(self.shape((n, c, h, w)), array.dtype)
        if self.block is None:
            packed[...] = array.transpose(0, 2, 3, 1) if self.name == "NHWC" else array
            return packed
        for start in range(0, c, self.block):
            part = array[:, start : start + self.block]
            packed[:, start // self.block, ..., : part.shape[1]] = part.transpose(0, 2, 3, 1)
        return packed

    def unpack(self, array: np.ndarray, channels: int) -> np.ndarray:
        """Copy an array in this layout into a new plain NCHW array of `channels` channels."""
        if self.block is None:
            plain = array.transpose(0, 3, 1, 2) if self.name == "NHWC" else array
        else:
            n, blocks, h, w, block = array.shape
            plain = array.transpose(0, 1, 4, 2, 3).reshape(n, blocks * block, h, w)[:, :channels]
        return np.array(plain, order="C")


@dataclass(frozen=True)
class WeightLayout:
    """How weights lie in memory: C_o/oc_block, C_i/ic_block, H_f, W_f, ic_block, oc_block.

    Of words, which have weights of several input channels or rows of the kernel, these are
    innermost, as in ``OIHW4i16o4i``: four words of four channels.

    Parameters
    ----------
    ic_block : int
        Input channels, or words of them, in a block. What only fills the last one is zero.
    oc_block : int
        Output channels in a block: the lanes of the vectors that are computed with.
    depth : int
        Input channels, or rows of the kernel, in a word.
    neighbours : int
        How many of these lie side by side, the next ones of all output channels after them; all of
        them if 0.
    of_rows : bool
        Whether words are of rows.
    """

    ic_block: int
    oc_block: int
    depth: int = 1
    neighbours: int = 0
    of_rows: bool = False

    def __str__(self) -> str:
        inner, axis = self.neighbours or self.depth, "h" if self.of_rows else "i"
        parts = f"{self.depth // inner}{axis}" if inner < self.depth else ""
        words = f"{inner}{axis}" if self.depth > 1 else ""
        return f"OIHW{self.ic_block}i{parts}{self.oc_block}o{words}"

    def shape(self, plain: tuple[int, int, int, int]) -> tuple[int, ...]:
        """Return the shape in this layout of weights with OIHW shape `plain`."""
        o, i, h, w = plain
        if self.of_rows:
            h = -(-h // self.depth)
        else:
            i = -(-i // self.depth)
        words = (self.depth,) if self.depth > 1 else ()
        blocks = -(-o // self.oc_block), -(-i // self.ic_block)
        return (*blocks, h, w, self.ic_block, self.oc_block, *words)

    def pack(self, array: np.ndarray) -> np.ndarray:
        """Copy plain OIHW weights into this layout, aligned; what is missing is zero."""
        shape = self.shape(array.shape)
        packed = aligned_zeros(shape, array.dtype)
        inner = self.neighbours or self.depth
        words = packed.reshape(*shape[:5], self.depth // inner, self.oc_block, inner)
        # As many words of rows as there are; blocks of channels are full.
        axis, whole = (2, self.depth) if self.of_rows else (1, self.depth * self.ic_block)
        missing = [(0, -array.shape[axis] % whole * (other == axis)) for other in range(4)]
        for start in range(0, len(array), self.oc_block):
            part = np.pad(array[start : start + self.oc_block], missing)
            o, i, h, w = part.shape
            # What is in a word last.
            if self.of_rows:
                split = part.reshape(o, i, -1, self.depth, w).transpose(0, 1, 2, 4, 3)
            else:
                split = part.reshape(o, -1, self.depth, h, w).transpose(0, 1, 3, 4, 2)
            split = split.reshape(o, shape[1], self.ic_block, *shape[2:4], -1, inner)
            words[start // self.oc_block, ..., :o, :] = split.transpose(1, 3, 4, 2, 5, 0, 6)
        return packed


@dataclass(frozen=True)
class ChannelLayout:
    """How numbers by output channel lie in memory: C_o/block, block.

    Where a channel has several, as many blocks are side by side: C_o/block, ..., block.

    Parameters
    ----------
    block : int
        Channels in a block.
    """

    block: int

    def __str__(self) -> str:
        return "blocks of output channels"

    def shape(self, plain: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in this layout of as many numbers as `plain` says, channels first."""
        return (-(-plain[0] // self.block), *plain[1:], self.block)

    def pack(self, values: np.ndarray) -> np.ndarray:
        """Copy the numbers of each channel into this layout, aligned, zeros filling the last."""
        packed = aligned_zeros(self.shape(values.shape), values.dtype)
        for start in range(0, len(values), self.block):
            part = values[start : start + self.block]
            packed[start // self.block, ..., : len(part)] = np.moveaxis(part, 0, -1)
        return packed


@dataclass(frozen=True)
class VectorLayout:
    """A few numbers, one after the other."""

    def __str__(self) -> str:
        return "numbers"

    def shape(self, plain: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape, which is `plain`."""
        return plain

    def pack(self, values: np.ndarray) -> np.ndarray:
        """Copy numbers, aligned."""
        packed = aligned_zeros(values.shape, values.dtype)
        packed[...] = values
        return packed


@dataclass(frozen=True)
class Packing:
    """What becomes of an array that callers have, so that a kernel can read it.

    Attributes
    ----------
    number : NumberType
        Type of its elements.
    layout : ActivationLayout, WeightLayout, ChannelLayout or VectorLayout
        How kernels read it.
    plain : tuple of int
        Shape of what callers have.
    """

    number: NumberType
    layout: "ActivationLayout | WeightLayout | ChannelLayout | VectorLayout"
    plain: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what kernels read."""
        return self.layout.shape(self.plain)


def checked_plain(
    what: str, array: np.ndarray, number: NumberType, shape: tuple[int, ...], layout: str
) -> np.ndarray:
    """Return a plain array after checking its dtype and shape.

    Raises
    ------
    ArgumentError
        If it is no array of this type and shape.
    """
    _check(what, array, number, shape, layout)
    return array


def checked_packed(
    what: str, array: np.ndarray, number: NumberType, shape: tuple[int, ...], layout: str
) -> np.ndarray:
    """Return an array a kernel may be given as it is, after checking all a kernel relies on.

    Raises
    ------
    ArgumentError
        If dtype, shape, strides, alignment or writability are not what kernels need.
    """
    _check(what, array, number, shape, layout)
    if not array.flags.c_contiguous:
        raise ArgumentError(
            f"{what} is not contiguous (strides {array.strides}): expected C order, "
            "use the pack functions or numpy.ascontiguousarray"
        )
    if array.ctypes.data % ALIGNMENT:
        raise ArgumentError(
            f"{what} begins at address {array.ctypes.data:#x}: expected a multiple of "
            f"{ALIGNMENT} bytes, use the pack functions or layout.aligned_zeros"
        )
    if not array.flags.writeable:
        raise ArgumentError(
            f"{what} is read-only: the tensor interface cannot pass such arrays on; "
            "expected a writable one, use a copy"
        )
    return array
