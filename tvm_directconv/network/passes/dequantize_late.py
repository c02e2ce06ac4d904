"""Operators that only move numbers, or choose among them, on whole numbers."""

from math import prod
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir.expr import Call, Var

from ..quantized import QUANTIZE, Meaning, Quantized, dequantized, meaning_of
from ..rewriter import Rewriter, constant, dtype_of, op_name, rewriting, shape_of, value_of

_PRODUCTS = ("relax.nn.conv2d", "relax.matmul")
# What chooses among numbers, or moves them, whatever these are.
_CHOOSING = (
    "relax.broadcast_to",
    "relax.flip",
    "relax.gather_elements",
    "relax.gather_nd",
    "relax.max",
    "relax.min",
    "relax.nn.max_pool2d",
    "relax.strided_slice",
    "relax.take",
    "relax.tile",
)
_MOVING = ("relax.reshape", "relax.permute_dims")
# The same for two tensors; the others' places.
_BETWEEN = {"relax.maximum": (0, 1), "relax.minimum": (0, 1), "relax.where": (1, 2)}
_PAD = "relax.nn.pad"
# Operators of two tensors that there are in whole numbers, and of sums with biases.
_OF_TWO = ("relax.add", "relax.multiply")


def moves(call: Any) -> bool:
    """Return whether an operator only moves the numbers of its first operand."""
    return op_name(call) in _MOVING


def chooses(call: Any) -> bool:
    """Return whether an operator only chooses among the numbers of its first operand."""
    return op_name(call) in _CHOOSING or (
        op_name(call) == "relax.image.resize2d" and call.attrs.method == "nearest_neighbor"
    )


@rewriting("directconv.DequantizeLate")
class DequantizeLate(Rewriter):
    """Move dequantisation behind operators that give the same on whole numbers.

    What is quantised as it was before is left as it was, and quantisation moves before such
    operators where nothing else reads their results. Constants are dequantised here, but for
    weights and biases of products of quantised tensors.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        # From variables of the copy.
        self._known: dict[Any, Quantized] = {}
        self._sums: set[Any] = set()
        # To variables of the original.
        self._origins: dict[Any, Any] = {}

    def rewrite(self, variable: Any, value: Any) -> Any:
        """See :meth:`Rewriter.rewrite`."""
        bound = self._rewritten(variable, value)
        if isinstance(bound, Var):
            self._origins.setdefault(bound, variable)
        return bound

    def _rewritten(self, variable: Any, value: Any) -> Any:
        found = self._moved(variable, value)
        if isinstance(found, Quantized):
            bound = self.emit(found.meaning.dequantize(found.numbers), like=variable)
            self._known[bound] = found
            return bound
        if not isinstance(found, Call):
            return self.emit(found, like=variable)
        kept = self._kept(found)
        arguments = [
            argument if place in kept else self._folded(argument)
            for place, argument in enumerate(found.args)
        ]
        bound = self.emit(called(found, arguments), like=variable)
        if kept:
            self._sums.add(bound)
        return bound

    def _of(self, expression: Any) -> Quantized | None:
        """Return what a variable of the copy is made of, if it is dequantised."""
        return self._known.get(expression) if isinstance(expression, Var) else None

    def _moved(self, variable: Any, call: Any) -> Any:
        """Return a call, what takes its place, or what is dequantised in its place."""
        name = op_name(call)
        if found := dequantized(call):
            return found
        if not isinstance(call, Call):
            return call
        if name == QUANTIZE:
            return self._requantized(call)
        if name == "relax.concat" and isinstance(call.args[0], relax.Tuple):
            return self._concatenated(call)
        if name in _BETWEEN:
            return self._chosen_between(call, _BETWEEN[name])
        source = self._of(call.args[0]) if call.args else None
        if source is None:
            return call
        if moves(call):
            return self._placed(variable, call, source)
        if not source.meaning.by_tensor:
            return call
        if name == "relax.nn.relu":
            zero = constant(np.asarray(source.meaning.zero_point.reshape(())))
            limited = self.emit(relax.op.maximum(source.numbers, zero))
            return Quantized(limited, source.meaning)
        if chooses(call):
            chosen = called(call, [source.numbers, *call.args[1:]])
            return Quantized(self.emit(chosen), source.meaning)
        if name == _PAD and (padding := _padding(call, source.meaning, exact=True)):
            padded = relax.op.nn.pad(source.numbers, *padding)
            return Quantized(self.emit(padded), source.meaning)
        return call

    def _chosen_between(self, call: Any, places: tuple[int, ...]) -> Any:
        """Return what is chosen of tensors that stand for the same."""
        parts = [self._of(call.args[place]) for place in places]
        first = parts[0]
        if first is None or not all(
            part and part.meaning.is_that_of(first.meaning) for part in parts
        ):
            return call
        arguments = list(call.args)
        for place, part in zip(places, parts, strict=True):
            arguments[place] = part.numbers if part else None
        return Quantized(self.emit(called(call, arguments)), first.meaning)

    def _requantized(self, call: Any) -> Any:
        source, meaning = self._of(call.args[0]), meaning_of(call)
        if source is not None:
            same = meaning and source.meaning.is_that_of(meaning)
            return source.numbers if same else call
        if meaning is None or not meaning.of_bytes:
            return call
        return self._quantized_before(call.args[0], meaning)

    def _quantized_before(self, x: Any, meaning: Meaning) -> Any:
        """Return a quantised tensor, which is moved, chosen or put together after that."""
        made = self.builder.lookup_binding(x) if isinstance(x, Var) else None
        name = op_name(made)
        if made is not None and self._alone(x) and all(map(_is_no_constant, made.args[:1])):
            if name == "relax.concat" and isinstance(made.args[0], relax.Tuple):
                parts = [self._again(part, meaning) for part in made.args[0].fields]
                return relax.op.concat(parts, int(made.attrs.axis))
            if moves(made) or chooses(made):
                return called(made, [self._again(made.args[0], meaning), *made.args[1:]])
            if name == _PAD and (padding := _padding(made, meaning)):
                return relax.op.nn.pad(self._again(made.args[0], meaning), *padding)
        return meaning.quantize(x)

    def _alone(self, x: Any) -> bool:
        """Return whether nothing but what is visited reads a variable."""
        origin = self._origins.get(x)
        return origin is not None and len(self.readers[origin]) == 1

    def _again(self, x: Any, meaning: Meaning) -> Any:
        """Return a tensor of the copy quantised."""
        source = self._of(x)
        if source is not None and source.meaning.is_that_of(meaning):
            return source.numbers
        return self.emit(self._quantized_before(x, meaning))

    def _concatenated(self, call: Any) -> Any:
        parts = [self._of(part) for part in call.args[0].fields]
        first = parts[0]
        if first is None or not all(
            part and part.meaning.is_that_of(first.meaning) for part in parts
        ):
            return call
        whole = relax.op.concat([part.numbers for part in parts if part], int(call.attrs.axis))
        return Quantized(self.emit(whole), first.meaning)

    def _placed(self, variable: Any, call: Any, source: Quantized) -> Any:
        """Return numbers in other places."""
        before, after = shape_of(source.numbers), shape_of(variable)
        meaning, axis = source.meaning, source.meaning.axis
        moving = op_name(call) == "relax.permute_dims"
        order = list(reversed(range(len(before))))
        if moving and call.attrs.axes is not None:
            order = [int(place) for place in call.attrs.axes]
        if not meaning.by_tensor:
            places = [order.index(axis)] if moving else _places(before, axis, after)
            if not places:
                return call
            meaning = meaning.along(places[0])
        values = source.value
        if values is None:
            moved = called(call, [source.numbers, *call.args[1:]])
            return Quantized(self.emit(moved), meaning)
        values = values.transpose(order) if moving else values.reshape(after)
        return Quantized(constant(values), meaning)

    def _kept(self, call: Any) -> list[int]:
        """Return which constants among the arguments of a call stay whole numbers.

        Those that a convolution in whole numbers, or a sum of one, is made of.
        """
        name = op_name(call)
        if name in _PRODUCTS:
            x, weight = map(self._of, call.args)
            whole = x and x.meaning.by_tensor and dtype_of(x.numbers) in ("int8", "uint8")
            if whole and weight and weight.value is not None and weights_of(weight) is not None:
                return [1]
        elif name in _OF_TWO:
            operands = [self._of(argument) for argument in call.args]
            constants = [place for place, x in enumerate(operands) if x and x.value is not None]
            whole = any(x and x.value is None and x.meaning.by_tensor for x in operands)
            if whole or any(map(self._is_sum, call.args)):
                return constants
        return []

    def _is_sum(self, expression: Any) -> bool:
        return isinstance(expression, Var) and expression in self._sums

    def _folded(self, argument: Any) -> Any:
        if isinstance(argument, relax.Tuple):
            return relax.Tuple([self._folded(field) for field in argument.fields])
        found = self._of(argument)
        if found is None or found.value is None:
            return argument
        return constant(found.meaning.real(found.value))


def called(call: Any, arguments: list[Any]) -> Any:
    """Return a call of other arguments."""
    return Call(call.op, arguments, attrs=call.attrs, ty_args=call.ty_args, span=call.span)


def _is_no_constant(expression: Any) -> bool:
    return value_of(expression) is None


def _padding(
    call: Any, meaning: Meaning, exact: bool = False
) -> tuple[list[int], str, float] | None:
    """Return how to pad whole numbers as a call pads what they stand for.

    None if it pads with the tensor's own, or `exact` is asked for and no number stands for what it
    pads with.
    """
    if str(call.attrs.pad_mode) != "constant":
        return None
    value = np.asarray(call.attrs.pad_value, np.float32)
    number = meaning.quantized(value)
    if exact and meaning.real(number) != value:
        return None
    return [int(each) for each in call.attrs.pad_width], "constant", float(number)


def weights_of(weight: Quantized) -> np.ndarray | None:
    """Return weights less their zero point; None if they are no numbers of 8 bits."""
    assert weight.value is not None
    centered = weight.meaning.centered(weight.value)
    limits = np.iinfo(np.int8)
    if centered.size and not limits.min <= centered.min() <= centered.max() <= limits.max:
        return None
    return centered.astype(np.int8)


def _places(before: tuple[int, ...], axis: int, after: tuple[int, ...]) -> list[int]:
    """Return the axes of a shape that an axis becomes when another one is reshaped to it."""
    size, outer = before[axis], prod(before[:axis])
    return [
        place for place, found in enumerate(after) if found == size and prod(after[:place]) == outer
    ]
