"""What whole numbers of a network stand for, as ``relax.quantize`` and ``relax.dequantize`` say."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir.expr import Var

from ..epilogue import ROUNDED
from .rewriter import Rewriter, constant, op_name, shape_of, value_of

DEQUANTIZE, QUANTIZE = "relax.dequantize", "relax.quantize"


@dataclass(frozen=True, eq=False)
class Meaning:
    """What numbers q stand for: ``scale * (q - zero_point)``.

    Attributes
    ----------
    scale, zero_point : numpy.ndarray
        A number, or one for each place along the axis: float32 and the numbers' own type.
    axis : int
        The axis that they are along; it says nothing where they are numbers.
    number : str
        The type that real numbers are rounded to, before they are quantised and when they are
        dequantised; the type of the scale in Relax.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int
    number: str = "float32"

    @property
    def by_tensor(self) -> bool:
        """Whether it is the same for all elements."""
        return self.scale.size == self.zero_point.size == 1

    @property
    def of_bytes(self) -> bool:
        """Whether numbers of 8 bits stand for whole tensors, as kernels make and read them."""
        return self.by_tensor and str(self.zero_point.dtype) in ROUNDED

    def is_that_of(self, other: "Meaning") -> bool:
        """Return whether both are of whole tensors, and the same."""
        return (
            self.by_tensor
            and other.by_tensor
            and self.scale.item() == other.scale.item()
            and self.zero_point.item() == other.zero_point.item()
            and self.zero_point.dtype == other.zero_point.dtype
        )

    def along(self, axis: int) -> "Meaning":
        """Return the same along another axis."""
        return replace(self, axis=axis)

    def broadcast(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scale and zero point in shapes that are broadcast to tensors of a rank."""
        if self.by_tensor:
            return self.scale.reshape(()), self.zero_point.reshape(())
        sizes = [1] * rank
        sizes[self.axis] = -1
        return tuple(  # type: ignore[return-value]
            part.reshape(sizes) if part.size > 1 else part.reshape(())
            for part in (self.scale, self.zero_point)
        )

    def centered(self, numbers: np.ndarray) -> np.ndarray:
        """Return what is left of numbers without their zero point, int64."""
        _, zero_point = self.broadcast(numbers.ndim)
        return numbers.astype(np.int64) - zero_point.astype(np.int64)

    def real(self, numbers: np.ndarray) -> np.ndarray:
        """Return the numbers that they stand for, float32."""
        scale, zero_point = self.broadcast(numbers.ndim)
        centered = numbers.astype(np.int32) - zero_point.astype(np.int32)
        return self._rounded(centered.astype(np.float32) * scale)

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        return values.astype(self.number).astype(np.float32)

    def quantized(self, values: np.ndarray) -> np.ndarray:
        """Return the numbers that stand for what is next to values, of whole tensors.

        What is no number becomes the least one.
        """
        scale, zero_point = self.scale.item(), self.zero_point.item()
        info = np.iinfo(self.zero_point.dtype)
        found = np.rint(self._rounded(values) / np.float32(scale)) + zero_point
        found = np.nan_to_num(found, nan=info.min, posinf=np.inf, neginf=-np.inf)
        return np.clip(found, info.min, info.max).astype(info.dtype)

    def quantize(self, x: Any) -> Any:
        """Return the call that makes what stands for numbers of these."""
        return relax.op.quantize(
            x,
            constant(self.scale.astype(self.number)),
            constant(self.zero_point),
            self.axis,
            str(self.zero_point.dtype),
        )

    def dequantize(self, x: Any) -> Any:
        """Return the call that makes numbers of what stands for them."""
        scale = constant(self.scale.astype(self.number))
        return relax.op.dequantize(x, scale, constant(self.zero_point), self.axis, "float32")


def wrong_scale(scale: np.ndarray, divides: bool) -> str:
    """Return what is wrong with scales, empty if nothing is.

    Parameters
    ----------
    scale : numpy.ndarray
    divides : bool
        Whether numbers are divided by them, which quantises these.
    """
    scale, expected = scale.astype(np.float32), "finite numbers"
    wrong = ~np.isfinite(scale)
    if divides:
        least = np.finfo(np.float32).tiny
        wrong |= np.abs(scale) < least
        expected = f"finite numbers of at least {least:.3g} in size"
    return f"is {scale[wrong].flat[0]:g}: expected {expected}" if wrong.any() else ""


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor of whole numbers, and what they stand for.

    Attributes
    ----------
    numbers : Expr
        A variable or a constant.
    meaning : Meaning
    """

    numbers: Any
    meaning: Meaning

    @property
    def value(self) -> np.ndarray | None:
        """The numbers, None if they are not known."""
        return value_of(self.numbers)


def dequantized(call: Any) -> Quantized | None:
    """Return what a call dequantises; None of another one, and where scales are computed."""
    if op_name(call) != DEQUANTIZE or str(call.attrs.out_dtype) != "float32":
        return None
    meaning = meaning_of(call)
    return Quantized(call.args[0], meaning) if meaning else None


def dequantized_by(expression: Any, definitions: Mapping[Any, Any]) -> Quantized | None:
    """Return what a variable with one of these definitions dequantises, if it does."""
    if not isinstance(expression, Var) or expression not in definitions:
        return None
    return dequantized(definitions[expression])


def meaning_of(call: Any) -> Meaning | None:
    """Return what the numbers that a call makes or takes stand for.

    None if that is computed, or scales are not positive, which turn the order of numbers round.
    """
    scale, zero_point = map(value_of, call.args[1:])
    if scale is None or zero_point is None or not (np.isfinite(scale) & (scale > 0)).all():
        return None
    axis = int(call.attrs.axis) % max(len(shape_of(call.args[0])), 1)
    return Meaning(scale.astype(np.float32), zero_point, axis, scale.dtype.name)


def is_quantized(module: Any) -> bool:
    """Return whether anything of a network is quantised."""
    return any(op_name(value) == QUANTIZE for _, value in Rewriter(module).bindings)
