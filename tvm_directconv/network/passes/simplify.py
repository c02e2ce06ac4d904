"""Graph clean-up: what exporters and importers leave, in the forms that later passes know."""

from math import prod
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir.expr import GenericConst, Var
from tvm.tirx import FloatImm
from tvm_ffi import structural_walk

from ..operators import ELEMENTWISE
from ..rewriter import (
    Rewriter,
    constant,
    dtype_of,
    named,
    node_of,
    op_name,
    rewriting,
    shape_of,
    value_of,
)

_op = relax.op

# What is computed when compiling if all operands are constant. Shape and type of the result, where
# an operator is about these, are known.
_COMPUTED: dict[str, Any] = {
    "relax.astype": lambda shape, attrs, x: x,
    "relax.reshape": lambda shape, attrs, x: x.reshape(shape),
    "relax.broadcast_to": lambda shape, attrs, x: np.broadcast_to(x, shape),
    "relax.expand_dims": lambda shape, attrs, x: x.reshape(shape),
    "relax.squeeze": lambda shape, attrs, x: x.reshape(shape),
    "relax.permute_dims": lambda shape, attrs, x: np.transpose(x, _axes(attrs)),
    "relax.add": lambda shape, attrs, a, b: a + b,
    "relax.subtract": lambda shape, attrs, a, b: a - b,
    "relax.multiply": lambda shape, attrs, a, b: a * b,
    "relax.divide": lambda shape, attrs, a, b: a / b,
    "relax.sqrt": lambda shape, attrs, x: np.sqrt(x),
    "relax.isnan": lambda shape, attrs, x: np.isnan(x),
    "relax.where": lambda shape, attrs, c, a, b: np.where(c, a, b),
}

_ROUNDING = ("relax.ceil", "relax.floor", "relax.round", "relax.trunc")
_PASSING = ("relax.permute_dims", "relax.reshape", "relax.where")


def _axes(attrs: Any) -> list[int] | None:
    return None if attrs.axes is None else [int(axis) for axis in attrs.axes]


def _per_channel(values: np.ndarray, rank: int) -> Any:
    """Return a number for each channel as it is multiplied with or added to a tensor NC..."""
    return constant(values.astype(np.float32).reshape(1, -1, *[1] * (rank - 2)))


@rewriting("directconv.Simplify")
class Simplify(Rewriter):
    """Compute constants, leave out what does nothing, and write the rest in few operators.

    Dropout goes; batch normalisation becomes a multiplication and an addition; clip becomes
    maximum and minimum, changes of rank become reshape, divisions by and subtractions of constants
    become multiplications and additions, powers that have one become products and roots.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._concats: dict[tuple[int, tuple[Any, ...]], Any] = {}

    def rewrite(self, variable: Any, value: Any) -> Any:
        """See :meth:`Rewriter.rewrite`."""
        name = op_name(value)
        if name in _COMPUTED and not (name == "relax.divide" and "int" in dtype_of(variable)):
            given = [
                argument for argument in value.args if not isinstance(argument, relax.ShapeExpr)
            ]
            if all(isinstance(argument, GenericConst) for argument in given):
                arrays = [value_of(argument) for argument in given]
                computed = _COMPUTED[name](shape_of(variable), value.attrs, *arrays)
                return constant(np.asarray(computed, dtype_of(variable)))
        return super().rewrite(variable, value)

    def on_nn_dropout(self, _variable: Any, call: Any) -> Any:
        return relax.Tuple([call.args[0], call.args[0]])

    def on_nn_batch_norm(self, _variable: Any, call: Any) -> Any:
        x, *given = call.args
        arrays = [value_of(argument) for argument in given]
        known = all(array is not None for array in arrays) and dtype_of(x) == "float32"
        if not known or call.attrs.training or call.attrs.axis != 1:
            return call
        gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in arrays)
        if not call.attrs.scale:
            gamma = np.ones_like(gamma)
        if not call.attrs.center:
            beta = np.zeros_like(beta)
        scale = gamma / np.sqrt(variance + call.attrs.epsilon)
        rank = len(shape_of(x))
        scaled = self.emit(_op.multiply(x, _per_channel(scale, rank)))
        moved = self.emit(_op.add(scaled, _per_channel(beta - mean * scale, rank)))
        return relax.Tuple([moved, *given[2:]])

    def on_reshape(self, variable: Any, call: Any) -> Any:
        shape = shape_of(variable)
        return call.args[0] if shape == shape_of(call.args[0]) else _op.reshape(call.args[0], shape)

    on_expand_dims = on_squeeze = on_flatten = on_reshape

    def on_broadcast_to(self, variable: Any, call: Any) -> Any:
        return call.args[0] if shape_of(variable) == shape_of(call.args[0]) else call

    def on_astype(self, variable: Any, call: Any) -> Any:
        return call.args[0] if dtype_of(variable) == dtype_of(call.args[0]) else call

    def on_divide(self, variable: Any, call: Any) -> Any:
        divisor = value_of(call.args[1])
        if divisor is None or dtype_of(variable) != "float32" or not np.all(divisor):
            return call
        if prod(shape_of(variable)) == 1:
            return call  # It is not worth another result.
        if self._is_rounded(variable):
            return call  # What is a little less than a whole number is another one then.
        return _op.multiply(call.args[0], constant(np.float32(1) / divisor))

    def _is_rounded(self, variable: Any) -> bool:
        """Return whether numbers are rounded, after other operators on single ones or at once."""
        left, seen = [variable], {variable}
        while left:
            for reader in self.readers[left.pop()]:
                call = self.definitions.get(reader)
                name = op_name(call)
                if name in _ROUNDING or (name == "relax.astype" and dtype_of(reader) != "float32"):
                    return True
                if reader not in seen and (name in ELEMENTWISE or name in _PASSING):
                    seen.add(reader)
                    left.append(reader)
        return False

    def on_subtract(self, variable: Any, call: Any) -> Any:
        subtracted = value_of(call.args[1])
        if subtracted is None or dtype_of(variable) != "float32":
            return call
        return _op.add(call.args[0], constant(-subtracted))

    def on_clip(self, variable: Any, call: Any) -> Any:
        x, *limits = call.args
        low, high = (constant(np.asarray(_number(limit), dtype_of(variable))) for limit in limits)
        return _op.minimum(self.emit(_op.maximum(x, low)), high)

    def on_power(self, variable: Any, call: Any) -> Any:
        exponent = value_of(call.args[1])
        if exponent is None or exponent.size != 1 or shape_of(variable) != shape_of(call.args[0]):
            return call
        x, power = call.args[0], float(exponent.reshape(()))
        if power == 2:
            return _op.multiply(x, x)
        if power == 0.5:
            return _op.sqrt(x)
        if power == 0.75:  # Of local response normalisation.
            root = self.emit(_op.sqrt(x))
            return _op.multiply(root, self.emit(_op.sqrt(root)))
        return call

    def on_mean(self, variable: Any, call: Any) -> Any:
        """Where pixels are averaged, their axes stay; so the mean is still a tensor of channels."""
        (x,), axes = call.args, call.attrs.axis
        if call.attrs.keepdims or axes is None or len(shape_of(x)) != 4:
            return call
        kept = self.emit(_op.mean(x, axis=[int(axis) for axis in axes], keepdims=True))
        return _op.reshape(kept, shape_of(variable))

    def on_concat(self, variable: Any, call: Any) -> Any:
        """What begins like an earlier concatenation, begins with it: then it can lie in it."""
        if not isinstance(call.args[0], relax.Tuple):
            return call
        parts, axis = tuple(call.args[0].fields), int(call.attrs.axis)
        if all(isinstance(part, Var) for part in parts):
            for count in range(len(parts) - 1, 1, -1):
                earlier = self._concats.get((axis, parts[:count]))
                if earlier is not None:
                    call = _op.concat([earlier, *parts[count:]], axis)
                    break
            whole = self.emit(call, like=variable)
            self._concats[axis, parts] = whole
            return whole
        return call

    def on_split(self, variable: Any, call: Any) -> Any:
        """Parts are taken one by one, each where it is read."""
        x, axis = call.args[0], int(call.attrs.axis)
        begin, parts = 0, []
        for part in variable.ty.fields:
            end = begin + int(part.shape[axis])
            parts.append(self.emit(_op.strided_slice(x, [axis], [begin], [end])))
            begin = end
        return relax.Tuple(parts)

    def on_nn_conv2d_transpose(self, variable: Any, call: Any) -> Any:
        """Where kernels do not overlap, each input pixel makes its own outputs: a 1x1 convolution.

        Its output channels are those of the transposed one times the positions in the kernel.
        """
        attrs, weight = call.attrs, value_of(call.args[1])
        n, _, height, width = shape_of(call.args[0])
        _, channels, *output = shape_of(variable)
        if (
            weight is None
            or attrs.groups != 1
            or weight.shape[2:] != tuple(int(step) for step in attrs.strides)
            or any(int(size) for size in [*attrs.padding, *attrs.output_padding])
            or any(int(step) != 1 for step in attrs.dilation)
        ):
            return call
        rows, columns = weight.shape[2:]
        each = weight.transpose(1, 2, 3, 0).reshape(-1, weight.shape[0], 1, 1)
        convolved = _op.nn.conv2d(call.args[0], constant(each))
        made = self.emit(named(convolved, node_of(call)))
        split = self.emit(_op.reshape(made, (n, channels, rows, columns, height, width)))
        placed = self.emit(_op.permute_dims(split, (0, 1, 4, 2, 5, 3)))
        return _op.reshape(placed, (n, channels, *output))

    def on_call_tir(self, variable: Any, call: Any) -> Any:
        """TVM's importer has kernels of its own for ONNX's Clip; they are not opaque to us."""
        function, arguments = call.args[:2]
        for name, operator in (("maximum", _op.maximum), ("minimum", _op.minimum)):
            if not function.name_hint.startswith(name):
                continue
            if len(arguments.fields) == 2:
                return operator(*arguments.fields)
            numbers = _numbers_in(self.builder.get()[function])
            if len(numbers) == 1:
                limit = np.array(numbers[0], dtype_of(variable))
                return operator(*arguments.fields, constant(limit))
        return call

    def _of_several(self, call: Any, operator: Any) -> Any:
        """TVM's importer stacks tensors to find the greatest and the least of their elements."""
        stacked = self.builder.lookup_binding(call.args[0])
        if stacked is None or op_name(stacked) != "relax.stack":
            return call
        if [int(axis) for axis in call.attrs.axis or []] != [0] or call.attrs.keepdims:
            return call
        if int(stacked.attrs.axis) != 0 or not isinstance(stacked.args[0], relax.Tuple):
            return call
        total, *others = stacked.args[0].fields
        for part in others:
            total = self.emit(operator(_single(total), _single(part)))
        return total

    def on_max(self, _variable: Any, call: Any) -> Any:
        """See :meth:`_of_several`."""
        return self._of_several(call, _op.maximum)

    def on_min(self, _variable: Any, call: Any) -> Any:
        """See :meth:`_of_several`."""
        return self._of_several(call, _op.minimum)

    def on_nn_conv1d(self, variable: Any, call: Any) -> Any:
        """A convolution along one axis is one of images of one row."""
        attrs = call.attrs
        if attrs.data_layout != "NCW" or attrs.kernel_layout != "OIW":
            return call
        operands = []
        for operand in call.args:
            n, c, w = shape_of(operand)
            array = value_of(operand)
            operands.append(
                self.emit(_op.reshape(operand, (n, c, 1, w)))
                if array is None
                else constant(array.reshape(n, c, 1, w))
            )
        left, right = (int(p) for p in attrs.padding)
        rows = _op.nn.conv2d(
            *operands,
            strides=(1, int(attrs.strides[0])),
            padding=(0, left, 0, right),
            dilation=(1, int(attrs.dilation[0])),
            groups=attrs.groups,
        )
        return _op.reshape(self.emit(named(rows, node_of(call))), shape_of(variable))


def _single(expression: Any) -> Any:
    """Return a constant that is the same everywhere as one number."""
    array = value_of(expression)
    if array is None or array.size == 0 or (array != array.flat[0]).any():
        return expression
    return constant(array.reshape(-1)[:1].reshape(()))


def _numbers_in(function: Any) -> list[float]:
    """Return the constants in a kernel."""
    numbers: list[float] = []
    structural_walk(function.body, (FloatImm, lambda number: numbers.append(number.value)))
    return numbers


def _number(expression: Any) -> float:
    value = expression.value
    return float(value.numpy()) if hasattr(value, "numpy") else float(value)
