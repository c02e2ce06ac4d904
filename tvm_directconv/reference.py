"""The oracle: convolution in plain NumPy and float64, and how to compare with it.

It shares no code with the kernels it judges, and pads by copying, which they do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .epilogue import Epilogue
from .errors import ArgumentError
from .precision import NUMBER_TYPES
from .quantization import Quantization
from .workload import ConvWorkload


def conv2d_reference(x: np.ndarray, weight: np.ndarray, workload: ConvWorkload) -> np.ndarray:
    """Convolve in float64.

    As in deep learning, the kernel is not flipped (a cross-correlation)::

        out[n, o, y, x] = sum over i, r, s of
            weight[o, i, r, s] * padded[n, first(o) + i, y * stride_h + r * dilation_h,
                                                         x * stride_w + s * dilation_w]

    where first(o) is the first input channel of the group that o belongs to.

    Parameters
    ----------
    x : numpy.ndarray
        Input, NCHW, of shape `workload.input_shape` and any real type.
    weight : numpy.ndarray
        Weights, OIHW, of shape `workload.weight_shape` and any real type.
    workload : ConvWorkload
        The convolution.

    Returns
    -------
    numpy.ndarray
        Output, NCHW, of shape `workload.output_shape`, float64.

    Raises
    ------
    ArgumentError
        If an array does not have the shape the workload says, or is not of real numbers.
    """
    x = _checked("x", x, workload.input_shape, "NCHW")
    weight = _checked("weight", weight, workload.weight_shape, "OIHW")

    w = workload
    top, left, bottom, right = w.padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    group_in, group_out = w.in_channels // w.groups, w.out_channels // w.groups
    positions = w.out_height * w.out_width
    (stride_h, stride_w), (dilation_h, dilation_w) = w.stride, w.dilation

    out = np.zeros((w.batch, w.groups, group_out, positions))
    for row in range(w.kernel[0]):
        for column in range(w.kernel[1]):
            top_row, left_column = row * dilation_h, column * dilation_w
            # The input elements that meet this kernel element, one for each output position.
            seen = padded[
                :,
                :,
                top_row : top_row + (w.out_height - 1) * stride_h + 1 : stride_h,
                left_column : left_column + (w.out_width - 1) * stride_w + 1 : stride_w,
            ].reshape(w.batch, w.groups, group_in, positions)
            taps = weight[:, :, row, column].reshape(w.groups, group_out, group_in)
            out += taps @ seen
    return out.reshape(w.output_shape)


_ACTIVATIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "none": lambda y, _: y,
    "relu": lambda y, _: np.maximum(y, 0),
    "relu6": lambda y, _: np.clip(y, 0, 6),
    "leaky_relu": lambda y, slope: np.where(y > 0, y, slope * y),
    "hard_swish": lambda y, _: y * np.clip(y + 3, 0, 6) / 6,
    "hard_sigmoid": lambda y, _: np.clip(y / 6 + 0.5, 0, 1),
    "silu": lambda y, _: y / (1 + np.exp(-y)),
    "sigmoid": lambda y, _: 1 / (1 + np.exp(-y)),
}


_OPERANDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "bias": lambda y, bias: y + bias[:, np.newaxis, np.newaxis],
    "residual": lambda y, residual: y + residual,
}


_LIMITS = {"none": (-np.inf, np.inf), "relu": (0, np.inf), "relu6": (0, 6)}


def epilogue_reference(
    sums: np.ndarray,
    epilogue: Epilogue,
    quantization: Quantization | None = None,
    **operands: np.ndarray,
) -> np.ndarray:
    """Apply an epilogue, in float64 unless it rounds.

    Parameters
    ----------
    sums : numpy.ndarray
        What :func:`conv2d_reference` returns, of pixels less their zero point.
    epilogue : Epilogue
        What is applied.
    quantization : Quantization, optional
        What whole numbers stand for, if outputs are requantised.
    **operands : numpy.ndarray
        Those of the epilogue: ``bias``, a number for each output channel; ``residual``, of the
        shape of `sums`.

    Returns
    -------
    numpy.ndarray
        NCHW, float64 or the type that outputs are requantised to.
    """
    finished = sums.astype(np.float64)
    meaning = quantization or Quantization()
    if epilogue.rounded:
        return _requantized(finished, epilogue, meaning, operands)
    if epilogue.bias:
        finished = _OPERANDS["bias"](finished, operands["bias"])
    if epilogue.scaled:
        finished *= meaning.multipliers(sums.shape[1]).astype(np.float64)[:, np.newaxis, np.newaxis]
    if epilogue.residual:
        finished = _OPERANDS["residual"](finished, operands["residual"])
    with np.errstate(over="ignore"):  # Where e^x is infinite, 1/e^x is 0.
        return _ACTIVATIONS[epilogue.activation](finished, epilogue.slope)


def _requantized(
    sums: np.ndarray,
    epilogue: Epilogue,
    quantization: Quantization,
    operands: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Compute QLinearConv as in ONNX Runtime, in float32, and with a residual its QLinearAdd."""
    q, f32 = quantization, np.float32
    info = np.iinfo(epilogue.requantize)
    whole = sums.astype(np.int64)
    if epilogue.bias:
        whole = _OPERANDS["bias"](whole, operands["bias"].astype(np.int64))

    def limited(values: np.ndarray, scale: float, zero: int) -> np.ndarray:
        low, high = _LIMITS[epilogue.activation]
        return np.clip(
            values, f32(low) / f32(scale) + f32(zero), f32(high) / f32(scale) + f32(zero)
        )

    def saturated(values: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(values), info.min, info.max).astype(epilogue.requantize)

    scale = q.multipliers(sums.shape[1])[:, np.newaxis, np.newaxis]
    scaled = whole.astype(np.int32).astype(f32) * scale
    if not epilogue.residual:
        scaled = limited(scaled, q.output_scale, 0)
    found = saturated(np.rint(scaled).astype(np.float64) + q.output_zero_point)
    if not epilogue.residual:
        return found
    own = f32(q.output_scale) / f32(q.sum_scale), q.output_zero_point, found
    other = f32(q.residual_scale) / f32(q.sum_scale), q.residual_zero_point, operands["residual"]
    (first, first_zero, one), (second, second_zero, two) = (
        (other, own) if epilogue.residual_first else (own, other)
    )

    def multiply_added(values: np.ndarray, factor: np.floating, added: Any) -> np.ndarray:
        # float64 has room for the product, and for the sum unless the scales are absurdly apart.
        return (values.astype(np.float64) * factor + added).astype(f32)

    zeros = multiply_added(np.array(first_zero), first, second * f32(second_zero))
    shifted = multiply_added(two, second, f32(q.sum_zero_point) - zeros)
    return saturated(limited(multiply_added(one, first, shifted), q.sum_scale, q.sum_zero_point))


def max_error(actual: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute difference, in units of the largest absolute reference value.

    Parameters
    ----------
    actual : numpy.ndarray
        What was computed.
    reference : numpy.ndarray
        What is right, of the same shape; finite.

    Returns
    -------
    float
        Infinite if `actual` holds a NaN or an infinity. If `reference` is zero everywhere there
        is no unit, and the result is the largest absolute value of `actual`.

    Raises
    ------
    ArgumentError
        If the shapes differ or are empty, or `reference` is not finite.
    """
    reference = _checked("reference", reference, np.shape(reference), "any")
    actual = _checked("actual", actual, reference.shape, "that of reference")
    if not reference.size or not np.isfinite(reference).all():
        raise ArgumentError(
            f"reference of shape {reference.shape} must hold numbers, and finite ones only; "
            "compute it from finite tensors"
        )
    if not np.isfinite(actual).all():
        return math.inf
    return float(np.abs(actual - reference).max() / (np.abs(reference).max() or 1.0))


def random_tensors(
    workload: ConvWorkload, seed: int, integers: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Make an input and weights, the same ones each time for a workload and seed.

    Parameters
    ----------
    workload : ConvWorkload
        The convolution.
    seed : int
        Seed of the random numbers, 0 or more.
    integers : bool
        Draw integers so small that the types of sums and outputs hold every one exactly, whatever
        the order of the additions: results must then equal the reference bit for bit. Otherwise the
        numbers are uniform between -1 and 1. Whole numbers are drawn from all of their types.

    Returns
    -------
    x, weight : numpy.ndarray
        Input (NCHW) and weights (OIHW), of the types that the workload has.

    Raises
    ------
    ArgumentError
        If the seed is negative.
    """
    if seed < 0:
        raise ArgumentError(f"seed is {seed}; expected an integer of 0 or more")
    rng = np.random.default_rng(seed)
    shapes, types = (workload.input_shape, workload.weight_shape), workload.precision
    reduction = math.prod(workload.weight_shape[1:])
    if types.whole:
        # All numbers but -128, which is no symmetrically quantised weight, unless sums of so many
        # products would overflow.
        most = min(127, math.isqrt(types.sum.largest_exact // (2 * reduction))) or 1
        drawn = []
        for shape, number in zip(shapes, (types.pixel, types.weight), strict=True):
            info = np.iinfo(number.name)
            low, high = max(-most, info.min), min(2 * most + 1, info.max)
            drawn.append(rng.integers(low, high, shape, endpoint=True).astype(number.name))
        return drawn[0], drawn[1]
    if not integers:
        x, weight = (
            (2 * rng.random(shape, dtype=np.float32) - 1).astype(number.name)
            for shape, number in zip(shapes, (types.pixel, types.weight), strict=True)
        )
        return x, weight

    # With values up to `largest`, sums of products are at most reduction * largest**2. The cap
    # leaves room for what follows the convolution (bias, residual) while reductions are short.
    exact = min(types.sum.largest_exact, types.output.largest_exact)
    largest = min(8, math.isqrt(exact // reduction)) or 1
    x, weight = (
        rng.integers(-largest, largest, shape, dtype=np.int8, endpoint=True).astype(number.name)
        for shape, number in zip(shapes, (types.pixel, types.weight), strict=True)
    )
    # Of longer sums, only so many products are not zero.
    if reduction > exact // 2:
        weight[rng.random(weight.shape) >= exact / reduction / 4] = 0
    return x, weight


def random_operands(workload: ConvWorkload, epilogue: Epilogue, seed: int) -> dict[str, np.ndarray]:
    """Make plain operands of an epilogue, small whole numbers of the types that it reads."""
    rng = np.random.default_rng(seed)
    types, found = workload.precision, {}
    for operand in epilogue.asked:
        number = types.sum if operand.by_channel else epilogue.output(types)
        shape = (workload.out_channels,) if operand.by_channel else workload.output_shape
        found[operand.name] = rng.integers(-8, 8, shape, endpoint=True).astype(number.name)
    return found


def _checked(name: str, value: np.ndarray, shape: tuple[int, ...], layout: str) -> np.ndarray:
    """Return `value` as float64 if it has this shape and holds real numbers."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" and array.dtype.name not in NUMBER_TYPES:
        raise ArgumentError(f"{name} has dtype {array.dtype}; expected real numbers")
    if array.shape != shape:
        raise ArgumentError(f"{name} has shape {array.shape}; expected {shape} ({layout})")
    return array.astype(np.float64)
