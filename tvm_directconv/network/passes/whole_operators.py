"""Operators between dequantisation and quantisation that are no convolutions, in whole numbers."""

from typing import Any

import numpy as np
from tvm import relax
from tvm.ir.expr import Var

from ...epilogue import ACTIVATIONS
from ..elementwise import evaluated, is_known
from ..operators import whole
from ..quantized import QUANTIZE, Meaning, Quantized, dequantized, dequantized_by, meaning_of
from ..rewriter import Rewriter, constant, op_name, rewriting, shape_of, value_of
from ..whole import Whole, powers, window_of

_LIMITS = {row.relax: name for name, row in ACTIVATIONS.items() if row.relax and row.limits}
# More operators than a function of one number is written in.
_MOST = 16


@rewriting("directconv.WholeOperators")
class WholeOperators(Rewriter):
    """Compute sums, products, averages and functions of single numbers in whole ones.

    What else is read as floats is dequantised by its reader, and constants here.
    """

    def visit(self, variable: Any, value: Any) -> Any:
        """See :meth:`Rewriter.visit`."""
        found = dequantized(value)
        if found is not None and found.value is not None:
            return constant(found.meaning.real(found.value))
        if op_name(value) == QUANTIZE:
            meaning = meaning_of(value)
            if meaning is not None and meaning.of_bytes:
                computed = self._computed(value.args[0], meaning)
                if computed is not None:
                    return computed
        return self.copied(value)

    def _of(self, expression: Any, meaning: Meaning) -> Quantized | None:
        """Return what an expression dequantises, of the same type as the result."""
        found = dequantized_by(expression, self.definitions)
        if found is None or not found.meaning.of_bytes:
            return None
        return found if found.meaning.zero_point.dtype == meaning.zero_point.dtype else None

    def _computed(self, variable: Any, meaning: Meaning) -> Any:
        """Return the call that computes what is quantised, None if it is no such operator."""
        if not isinstance(variable, Var) or variable not in self.definitions:
            return None
        if (found := self._function(variable, meaning)) is not None:
            return found
        call = self.definitions[variable]
        activation = "none"
        if op_name(call) in _LIMITS and isinstance(call.args[0], Var):
            activation = _LIMITS[op_name(call)]
            call = self.definitions.get(call.args[0])
        name = op_name(call)
        if name == "relax.add" or (name == "relax.multiply" and activation == "none"):
            return self._of_two(call, meaning, activation)
        operand = self._of(call.args[0], meaning) if name and activation == "none" else None
        if operand is None:
            return None
        if name == "relax.mean" and _of_pixels(call):
            attributes = Whole.of("mean", [operand.meaning, meaning])
        elif name == "relax.nn.avg_pool2d" and call.attrs.layout == "NCHW":
            attributes = Whole.of(
                "average_pool", [operand.meaning, meaning], window=window_of(call.attrs, "NCHW")
            )
        elif name == "relax.nn.softmax" and meaning.zero_point.dtype == np.uint8:
            # ONNX Runtime computes that of int8 in floats.
            shape = shape_of(call)
            axis = int(call.attrs.axis) % len(shape)
            attributes = Whole.of("softmax", [operand.meaning, meaning], axis=axis)
            table = powers(operand.meaning.scale.item(), shape[axis])
            return whole(attributes, self.copied(operand.numbers), constant(table))
        else:
            return None
        return whole(attributes, self.copied(operand.numbers))

    def _of_two(self, call: Any, meaning: Meaning, activation: str) -> Any:
        operands = [self._of(argument, meaning) for argument in call.args]
        numbers = []
        rank = len(shape_of(call))
        for operand in operands:
            if operand is None:
                return None
            own = shape_of(operand.numbers)
            padded = (1,) * (rank - len(own)) + own
            if operand.value is not None:
                numbers.append(constant(operand.value.reshape(padded)))
            elif padded == own:
                numbers.append(self.copied(operand.numbers))
            else:
                numbers.append(self.emit(relax.op.reshape(self.copied(operand.numbers), padded)))
        function = op_name(call).removeprefix("relax.")
        meanings = [*(operand.meaning for operand in operands if operand), meaning]
        return whole(Whole.of(function, meanings, activation=activation), *numbers)

    def _function(self, variable: Any, meaning: Meaning) -> Any:
        """Return the table look-up that a function of one quantised tensor is."""
        between: list[Any] = []
        found: set[Any] = set()
        left = [variable]
        while left and len(between) <= _MOST:
            each = left.pop()
            values = value_of(each)
            if values is not None and values.size == 1:
                continue
            if not isinstance(each, Var) or shape_of(each) != shape_of(variable):
                return None
            if self._of(each, meaning) is not None:
                found.add(each)
            elif each in self.definitions and is_known(self.definitions[each]):
                between.append(each)
                left.extend(self.definitions[each].args)
            else:
                return None
        if len(found) != 1 or left or not between:
            return None
        (source,) = found
        operand = self._of(source, meaning)
        assert operand is not None
        info = np.iinfo(meaning.zero_point.dtype)
        numbers = np.arange(info.min, info.max + 1).astype(info.dtype)
        known = {source: operand.meaning.real(numbers)}
        table = meaning.quantized(evaluated(variable, known, self.definitions))
        attributes = Whole("look_up", str(info.dtype))
        return whole(attributes, self.copied(operand.numbers), constant(table))


def _of_pixels(call: Any) -> bool:
    """Return whether a mean is that of all pixels of a channel."""
    axes = call.attrs.axis
    return (
        len(shape_of(call.args[0])) == 4
        and axes is not None
        and sorted(int(axis) % 4 for axis in axes) == [2, 3]
        and bool(call.attrs.keepdims)
    )
