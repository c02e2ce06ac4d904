"""A program: kernels in order, on places in memory that are known before the first run.

It is what C sources, folders and libraries are made of, and knows nothing of the model or the
convolution that it comes from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..kinds import printable
from ..layout import ALIGNMENT

ARENA, WEIGHTS = "arena", "weights"
COPY = "copy"
"""Name of the step that copies rows; it is no kernel of TVM's."""


@dataclass(frozen=True)
class Port:
    """An input or output of a network.

    Attributes
    ----------
    name : str
        As the model has it.
    shape : tuple of int
    dtype : str
        As NumPy has it.
    scale : float or None
        Of quantised numbers q, which stand for ``scale * (q - zero_point)``; None if they stand for
        themselves, or if it is not the same for all of them.
    zero_point : int
        The number that stands for 0.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int = 0

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """Return the numbers that stand for what is next to values, half to even.

        Values beyond the range of the type become its least or greatest number; NaN, the least.

        Raises
        ------
        ArgumentError
            If there is no scale.
        """
        scale, limits = self._scale(), np.iinfo(self.dtype)
        least, most = (np.float32(n - self.zero_point) for n in (limits.min, limits.max))
        with np.errstate(over="ignore", invalid="ignore"):
            found = np.asarray(values, np.float32) / scale
        found = np.fmin(np.fmax(found, least), most)
        return (np.rint(found).astype(np.int32) + self.zero_point).astype(self.dtype)

    def dequantize(self, numbers: np.ndarray) -> np.ndarray:
        """Return what numbers stand for, float32.

        Raises
        ------
        ArgumentError
            If there is no scale.
        """
        scale = self._scale()
        return (np.asarray(numbers, np.int32) - self.zero_point).astype(np.float32) * scale

    def _scale(self) -> np.float32:
        if self.scale is None or self.dtype not in ("int8", "uint8"):
            raise ArgumentError(
                f"{self} has no scale: expected an input or output of a quantised network, whose "
                "numbers have one scale and one zero point"
            )
        return np.float32(self.scale)

    def __str__(self) -> str:
        """For messages: ``x: float32 of shape 1x3x224x224``."""
        shape = "x".join(map(str, self.shape)) or "()"
        return f"{printable(self.name)}: {self.dtype} of shape {shape}"


def memory_of(network: Any) -> dict[str, int]:
    """Return where every byte of a run of a manifest's or a program's network is, in bytes."""
    return {
        "weights": network.weight_bytes,
        "arena": network.arena_bytes,
        "inputs": sum(port.nbytes for port in network.inputs),
        "outputs": sum(port.nbytes for port in network.outputs),
        "workspace": 0,  # There is no such thing: kernels get their scratch in the arena.
    }


@dataclass(frozen=True)
class Unscheduled:
    """Convolutions or products of a model that are not ours: general code computes them.

    Attributes
    ----------
    operator : str
        As Relax calls it.
    shapes : str
        Of its operands.
    reason : str
        Why it is not ours.
    count : int
        How many there are that are alike.
    multiply_adds : int
        Of all of these.
    """

    operator: str
    shapes: str
    reason: str
    count: int
    multiply_adds: int

    def __str__(self) -> str:
        """For messages: ``conv3d 1x16x9x9x9 by 32x16x3x3x3 (it has three dimensions)``."""
        times = f"{self.count} times " if self.count > 1 else ""
        return f"{times}{self.operator} {self.shapes} ({self.reason})"


@dataclass(frozen=True)
class Tensor:
    """An operand: a place in memory and how it is read.

    Attributes
    ----------
    memory : str
        ``arena``, ``weights``, or ``input0``, ``output0`` and so on.
    offset : int
        Bytes from its beginning.
    shape : tuple of int
    dtype : str
        As NumPy has it.
    stride : int
        Elements from one row to the next, for copies; 0 if rows follow each other.
    """

    memory: str
    offset: int
    shape: tuple[int, ...]
    dtype: str
    stride: int = 0


@dataclass(frozen=True)
class Step:
    """A kernel and its operands, inputs first."""

    kernel: str
    operands: tuple[Tensor, ...]


@dataclass(frozen=True)
class Program:
    """A network as a list of steps.

    Attributes
    ----------
    inputs, outputs : list of Port
    steps : list of Step
    kernels : dict
        From names to scheduled functions.
    weights : list of numpy.ndarray
        Constants, at the offsets that :func:`packed` gives them.
    arena_bytes : int
        Size of the arena.
    unshared_bytes : int
        What it would be if no two tensors shared a place.
    reorders : int
        Operations that only change layouts, within kernels or on their own.
    conversions : int
        Those between floats and quantised numbers, but for inputs and outputs.
    multiply_adds : int
        Of all convolutions and products.
    unscheduled : tuple of Unscheduled
        Those that are not ours.
    """

    inputs: list[Port]
    outputs: list[Port]
    steps: list[Step]
    kernels: dict[str, Any] = field(default_factory=dict)
    weights: list[np.ndarray] = field(default_factory=list)
    arena_bytes: int = 0
    unshared_bytes: int = 0
    reorders: int = 0
    conversions: int = 0
    multiply_adds: int = 0
    unscheduled: tuple[Unscheduled, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Size of all constants."""
        return packed([array.nbytes for array in self.weights])[1]

    def memory(self) -> dict[str, int]:
        """Return where every byte of a run is, as the network's manifest does."""
        return memory_of(self)


def arena_of(program: Program) -> Port:
    """Return the argument that is the arena."""
    return Port(ARENA, (program.arena_bytes // 4,), "float32")


def packed(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return aligned offsets of things that lie one after another, and the size of all."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end
