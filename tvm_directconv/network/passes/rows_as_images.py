"""Signals, tensors of one row of pixels, as images of one row."""

from typing import Any

from tvm import relax
from tvm.ir.expr import Call

from ..operators import ELEMENTWISE
from ..rewriter import Rewriter, constant, op_name, rewriting, shape_of, value_of


@rewriting("directconv.RowsAsImages")
class RowsAsImages(Rewriter):
    """Compute what is element-wise on images of one row where there are such images.

    A convolution of signals, NCW, is one of images of one row by now, between two reshapes. What
    stands after the second one, a bias or an activation, is moved before it, and reshapes that
    meet cancel. So convolutions and what follows them are next to each other again.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        # From signals of the copy to the same as images.
        self._images: dict[Any, Any] = {}

    def rewrite(self, variable: Any, value: Any) -> Any:
        """See :meth:`Rewriter.rewrite`."""
        if op_name(value) == "relax.reshape":
            return self._reshaped(variable, value.args[0])
        if (
            op_name(value) not in ELEMENTWISE
            or len(shape_of(variable)) != 3
            or not any(argument in self._images for argument in value.args)
        ):
            return value
        operands = [self._image(argument) for argument in value.args]
        image = self.emit(Call(value.op, operands, attrs=value.attrs))
        return self._signal(variable, image)

    def _reshaped(self, variable: Any, x: Any) -> Any:
        before, after = shape_of(x), shape_of(variable)
        if after == _image_shape(before):
            return self._image(x)
        if before == _image_shape(after):
            return self._signal(variable, x)
        return relax.op.reshape(x, after)

    def _signal(self, variable: Any, image: Any) -> Any:
        """Return an image as a signal; it is gone in the end if only images are asked for."""
        signal = self.emit(relax.op.reshape(image, shape_of(variable)), like=variable)
        self._images[signal] = image
        return signal

    def _image(self, operand: Any) -> Any:
        """Return an operand, whose axes are the last ones of a signal, for images."""
        if operand in self._images:
            return self._images[operand]
        shape = _image_shape(shape_of(operand))
        if shape == shape_of(operand):
            return operand
        values = value_of(operand)
        if values is not None:
            return constant(values.reshape(shape))
        self._images[operand] = self.emit(relax.op.reshape(operand, shape))
        return self._images[operand]


def _image_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a signal, or of what is broadcast to one, as that of an image."""
    return shape if len(shape) < 2 else (*shape[:-1], 1, shape[-1])
