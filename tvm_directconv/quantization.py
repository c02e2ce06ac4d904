"""Quantised convolutions: whole numbers that stand for real ones, and what it takes to stay exact.

A number q stands for ``scale * (q - zero_point)``. Sums of products of such numbers are exact; what
zero points add to them, and the scale and zero point of the output, is the epilogue's part. Results
are those of ONNX's QLinearConv, to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .epilogue import ACTIVATIONS, Epilogue
from .errors import ArgumentError
from .kinds import is_whole, shown
from .precision import NumberType
from .workload import ConvWorkload

ROUNDING = 12582912.0
"""1.5 x 2^23. In float32, numbers beside it are whole: to add it rounds a small number, half to
even, and leaves it in the last bits."""

ROUNDING_BITS = 0x4B400000
"""The bits of :data:`ROUNDING`."""


class BorderClass(NamedTuple):
    """Rows, or columns, of the output that read the same rows of the kernel from the input.

    Attributes
    ----------
    first : int
        The first of them; they are neighbours.
    taps : tuple of int
        The rows of the kernel that do not lie in the padding.
    """

    first: int
    taps: tuple[int, ...]


@cache
def border_classes(workload: ConvWorkload, axis: int) -> tuple[BorderClass, ...]:
    """Return the classes of the output's rows (axis 0) or columns (1), in their order."""
    size = (workload.in_height, workload.in_width)[axis]
    outputs = workload.output_shape[2 + axis]
    stride, dilation = workload.stride[axis], workload.dilation[axis]
    before, taps = workload.padding[axis], range(workload.kernel[axis])
    found: list[BorderClass] = []
    for output in range(outputs):
        begin = output * stride - before
        inside = tuple(tap for tap in taps if 0 <= begin + tap * dilation < size)
        if not found or found[-1].taps != inside:
            found.append(BorderClass(output, inside))
    return tuple(found)


def border_counts(workload: ConvWorkload, epilogue: Epilogue) -> tuple[int, ...]:
    """Return how many classes of rows and of columns there is a bias for, nothing if one is all."""
    if not epilogue.zero_point:
        return ()
    counts = tuple(len(border_classes(workload, axis)) for axis in (0, 1))
    return counts if max(counts) > 1 else ()


@dataclass(frozen=True)
class Quantization:
    """What the numbers of a convolution stand for.

    Parameters
    ----------
    input_scale : float
        Distance of the numbers that pixels stand for.
    input_zero_point : int
        The pixel that stands for 0; padding consists of these.
    weight_scale : float or sequence of float
        The same of weights, or of those of each output channel. Their zero point is 0.
    output_scale : float
        The same of outputs.
    output_zero_point : int
        The output that stands for 0.
    residual_scale, residual_zero_point : float, int
        The same of a residual, which is of the outputs' type.
    sum_scale, sum_zero_point : float, int
        The same of outputs with a residual added. They are requantised to `output_scale` before,
        and to these after the addition, as by ONNX Runtime's QLinearAdd.

    Raises
    ------
    ArgumentError
        If a scale is not positive, or a zero point not whole.
    """

    input_scale: float = 1.0
    input_zero_point: int = 0
    weight_scale: float | Sequence[float] | np.ndarray = 1.0
    output_scale: float = 1.0
    output_zero_point: int = 0
    residual_scale: float = 1.0
    residual_zero_point: int = 0
    sum_scale: float = 1.0
    sum_zero_point: int = 0

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self) if each.name.endswith("scale")):
            value = np.asarray(getattr(self, name))
            if value.dtype.kind not in "fiu" or not (np.isfinite(value) & (value > 0)).all():
                raise ArgumentError(
                    f"{name} is {shown(getattr(self, name))}: expected positive numbers"
                )
        for name in (each.name for each in fields(self) if each.name.endswith("zero_point")):
            if not is_whole(getattr(self, name), -(2**31), 2**31 - 1):
                raise ArgumentError(
                    f"{name} is {shown(getattr(self, name))}: expected a whole number"
                )

    @classmethod
    def of_outputs(
        cls,
        sums: np.ndarray,
        number: NumberType,
        input_scale: float = 1.0,
        input_zero_point: int = 0,
        weight_scale: float = 1.0,
    ) -> "Quantization":
        """Return one in which outputs use all of their type's range.

        Parameters
        ----------
        sums : numpy.ndarray
            What is requantised.
        number : NumberType
            The type of outputs.
        input_scale, input_zero_point, weight_scale
            As they are.
        """
        assert number.least is not None
        half = (number.largest_exact - number.least) // 2
        largest = max(1.0, float(np.abs(sums).max()))
        scale = float(np.float32(input_scale * weight_scale * largest / half))
        zero_point = number.least + half + 1
        return cls(input_scale, input_zero_point, weight_scale, scale, zero_point)

    def multipliers(self, channels: int) -> np.ndarray:
        """Return what sums are multiplied by, float32, for each output channel.

        It is rounded as ONNX Runtime rounds it.

        Raises
        ------
        ArgumentError
            If there are scales of weights for another number of channels.
        """
        weight = np.asarray(self.weight_scale, np.float32)
        if weight.ndim and weight.shape != (channels,):
            raise ArgumentError(
                f"weight_scale has shape {weight.shape}: expected a number, or {channels}, one for "
                "each output channel"
            )
        found = np.float32(self.input_scale) * weight / np.float32(self.output_scale)
        return np.array(np.broadcast_to(found, (channels,)))

    def output_range(self, number: NumberType, epilogue: Epilogue) -> np.ndarray:
        """Return what outputs are held to and counted from, as kernels read it.

        Parameters
        ----------
        number : NumberType
            The type of outputs.
        epilogue : Epilogue
            How they are finished.

        Returns
        -------
        numpy.ndarray
            float32: the least and the greatest, both less the zero point; and the bits of the zero
            point less :data:`ROUNDING_BITS`. With a residual, :data:`OF_SUMS` more: what outputs
            and residual are multiplied by, what is added to both, and the least and the greatest
            sum.

        Raises
        ------
        ArgumentError
            If a zero point is not of the type.
        """
        zero = checked_zero_point("output_zero_point", self.output_zero_point, number)
        activation = "none" if epilogue.residual else epilogue.activation
        least, most = _limits(number, zero, self.output_scale, activation)
        numbers = [least, most, _as_float(zero - ROUNDING_BITS)]
        if epilogue.residual:
            residual = checked_zero_point("residual_zero_point", self.residual_zero_point, number)
            final = checked_zero_point("sum_zero_point", self.sum_zero_point, number)
            of_output = np.float32(self.output_scale) / np.float32(self.sum_scale)
            of_residual = np.float32(self.residual_scale) / np.float32(self.sum_scale)
            zeros = [(of_output, zero), (of_residual, residual)]
            first, second = reversed(zeros) if epilogue.residual_first else zeros
            # Rounded as ONNX Runtime's compiler does: the first product is not.
            product = np.float64(first[0]) * first[1]
            shift = np.float32(product + second[0] * np.float32(second[1]))
            limits = _limits(number, final, self.sum_scale, epilogue.activation)
            numbers += [of_output, of_residual, np.float32(final) - shift]
            numbers += [limit + np.float32(final) for limit in limits]
        return np.array(numbers, np.float32)


OF_SUMS = 5
"""Numbers more that kernels read if there is a residual."""


def _limits(
    number: NumberType, zero: int, scale: float, activation: str
) -> tuple[np.float32, np.float32]:
    """Return the least and the greatest output, both less the zero point."""
    assert number.least is not None
    low, high = ACTIVATIONS[activation].limits or (-np.inf, np.inf)
    one = np.float32(scale)
    least = max(np.float32(number.least - zero), np.float32(low) / one)
    most = min(np.float32(number.largest_exact - zero), np.float32(high) / one)
    return np.float32(least), np.float32(most)


def checked_zero_point(name: str, value: int, number: NumberType) -> int:
    """Return a zero point after checking that it is a number of its type.

    Raises
    ------
    ArgumentError
        If it is not.
    """
    assert number.least is not None
    if not number.least <= value <= number.largest_exact:
        raise ArgumentError(
            f"{name} is {value}: expected one of {number}, from {number.least} to "
            f"{number.largest_exact}"
        )
    return value


def _as_float(bits: int) -> Any:
    return np.array(bits, np.int32).view(np.float32)[()]


def corrected_bias(
    workload: ConvWorkload,
    epilogue: Epilogue,
    weight: np.ndarray,
    bias: np.ndarray | None,
    zero_point: int,
) -> np.ndarray:
    """Return what is added to sums of products with pixels that count from a zero point.

    Padding stands for 0 and is left out of the sums, so it depends on which rows and columns of the
    kernel lie in it.

    Parameters
    ----------
    workload : ConvWorkload
        The convolution.
    epilogue : Epilogue
        Its epilogue.
    weight : numpy.ndarray
        Plain weights, OIHW.
    bias : numpy.ndarray, optional
        int32, a number for each output channel; zeros if not given.
    zero_point : int
        The pixel that stands for 0.

    Returns
    -------
    numpy.ndarray
        int32, for each output channel; where :func:`border_counts` are several, for each class of
        rows and of columns.
    """
    of_taps = weight.sum(axis=1, dtype=np.int64)
    inside = [
        np.array([[tap in c.taps for tap in range(workload.kernel[axis])] for c in classes])
        for axis, classes in ((axis, border_classes(workload, axis)) for axis in (0, 1))
    ]
    sums = np.einsum("ohw,rh,cw->orc", of_taps, *(part.astype(np.int64) for part in inside))
    found = -zero_point * sums
    if bias is not None:
        found += bias.astype(np.int64)[:, np.newaxis, np.newaxis]
    counts = border_counts(workload, epilogue)
    # Sums are right to 32 bits, whatever the order.
    return found.astype(np.int32).reshape(workload.out_channels, *counts)
