"""Batch normalisation, and whatever else scales channels, as part of the weights."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir.expr import Call

from ..rewriter import Rewriter, constant, rewriting, shape_of, value_of


@dataclass(frozen=True)
class _Scalable:
    """A convolution of constant weights and what was added to it, with no other reader."""

    call: Any
    weight: np.ndarray
    shift: np.ndarray


@rewriting("directconv.FoldBatchNorm")
class FoldBatchNorm(Rewriter):
    """Fold multiplications and additions by channel into a convolution's weights and bias.

    Batch normalisation is one of each by now: ``s (W * x + b) + t`` is ``(s W) * x + (s b + t)``.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._scalable: dict[Any, _Scalable] = {}

    def on_nn_conv2d(self, variable: Any, call: Any) -> Any:
        """A convolution that others may be folded into."""
        weight = value_of(call.args[1])
        if (
            weight is not None
            and call.attrs.data_layout == "NCHW"
            and call.attrs.kernel_layout == "OIHW"
        ):
            self._note(variable, _Scalable(call, weight, np.zeros(len(weight))))
        return call

    def on_multiply(self, variable: Any, call: Any) -> Any:
        """Scale the weights instead."""
        found = self._folding(variable)
        if found is None:
            return call
        conv, scale = found
        weight = conv.weight * scale.reshape(-1, 1, 1, 1)
        return self._folded(variable, _Scalable(conv.call, weight, conv.shift * scale))

    def on_add(self, variable: Any, call: Any) -> Any:
        """Add to what is added already."""
        found = self._folding(variable)
        if found is None:
            return call
        conv, shift = found
        return self._folded(variable, _Scalable(conv.call, conv.weight, conv.shift + shift))

    def _note(self, variable: Any, conv: _Scalable) -> None:
        if len(self.readers[variable]) == 1:
            self._scalable[variable] = conv

    def _folding(self, variable: Any) -> tuple[_Scalable, np.ndarray] | None:
        """Return the convolution that a definition scales or shifts, and by how much."""
        for operand, other in _both_ways(self.definitions[variable].args):
            if operand not in self._scalable or shape_of(operand) != shape_of(variable):
                continue
            if (values := value_of(other)) is not None:
                by_channel = channelwise(values, shape_of(variable))
                if by_channel is not None:
                    return self._scalable[operand], by_channel.astype(np.float64)
        return None

    def _folded(self, variable: Any, conv: _Scalable) -> Any:
        self._note(variable, conv)
        x = conv.call.args[0]
        weight = constant(conv.weight.astype(np.float32))
        convolved = Call(conv.call.op, [x, weight], attrs=conv.call.attrs, span=conv.call.span)
        if not conv.shift.any():
            return convolved
        shift = constant(conv.shift.astype(np.float32).reshape(1, -1, 1, 1))
        return relax.op.add(self.emit(convolved), shift)


def _both_ways(operands: Any) -> list[tuple[Any, Any]]:
    first, second = operands
    return [(first, second), (second, first)]


def channelwise(values: np.ndarray, shape: tuple[int, ...], axis: int = 1) -> np.ndarray | None:
    """Return a constant as one number for each channel of a tensor; None if it is more than that.

    Parameters
    ----------
    values : numpy.ndarray
        The constant, of a shape that NumPy broadcasts to `shape`.
    shape : tuple of int
        Shape of the tensor.
    axis : int
        Which axis the channels are.
    """
    full = (1,) * (len(shape) - values.ndim) + values.shape
    if len(full) != len(shape):
        return None
    if any(extent != 1 for position, extent in enumerate(full) if position != axis % len(shape)):
        return None
    return np.broadcast_to(values.reshape(-1), (shape[axis],))
