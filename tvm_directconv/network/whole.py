"""Operators on quantised tensors that are no convolutions, in whole numbers.

Results are those of ONNX Runtime on x86, to the bit: of its QLinearAdd, QLinearMul,
QLinearGlobalAveragePool, QLinearAveragePool and QLinearSoftmax. Functions of single numbers are
tables.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from tvm import te, tirx, topi

from ..epilogue import Epilogue
from ..precision import NUMBER_TYPES
from ..quantization import OF_SUMS, ROUNDING_BITS, Quantization
from ..rounding import limited, products_added, rounded
from .quantized import Meaning


@dataclass(frozen=True)
class Whole:
    """What a ``directconv.whole`` computes.

    Attributes
    ----------
    function : str
        One of :data:`FUNCTIONS`.
    dtype : str
        Type of operands and result.
    scales, zero_points : tuple
        Of the operands, then of the result.
    activation : str
        What sums are held to; see :data:`~tvm_directconv.epilogue.ACTIVATIONS`.
    window : mapping
        Of pools; see :func:`window_of`.
    axis : int
        Along which a softmax is computed.
    fused : bool
        Whether the processor has a multiply-add that rounds once.
    """

    function: str
    dtype: str
    scales: tuple[float, ...] = ()
    zero_points: tuple[int, ...] = ()
    activation: str = "none"
    window: dict[str, Any] = field(default_factory=dict)
    axis: int = 0
    fused: bool = True

    @classmethod
    def of(cls, function: str, meanings: list[Meaning], **others: Any) -> "Whole":
        """Return that of operands and a result that stand for something."""
        return cls(
            function,
            str(meanings[-1].zero_point.dtype),
            tuple(float(meaning.scale.item()) for meaning in meanings),
            tuple(int(meaning.zero_point.item()) for meaning in meanings),
            **others,
        )

    def to_json(self) -> str:
        """Return a text that :meth:`from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Whole":
        """Read what :meth:`to_json` wrote."""
        return cls(**json.loads(text))

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest number of the type."""
        return _limits_of(self.dtype)

    def computed(self, *operands: Any) -> Any:
        """Return the result of tensors of TE."""
        return FUNCTIONS[self.function](self, *operands)


def _limits_of(dtype: str) -> tuple[int, int]:
    number = NUMBER_TYPES[dtype]
    assert number.least is not None
    return number.least, number.largest_exact


def _single(value: Any) -> Any:
    return tirx.const(float(np.float32(value)), "float32")


def _broadcast(operands: tuple[Any, ...], element: Callable[..., Any]) -> Any:
    """Return what is computed of elements at the same place, of tensors of one rank."""
    shapes = [[int(size) for size in operand.shape] for operand in operands]
    shape = [max(sizes) for sizes in zip(*shapes, strict=True)]

    def computed(*at: Any) -> Any:
        return element(
            *(
                operand(*(0 if size == 1 else place for size, place in zip(own, at, strict=True)))
                for operand, own in zip(operands, shapes, strict=True)
            )
        )

    return te.compute(shape, computed, name="whole")


def _saturated(whole: Whole, value: Any) -> Any:
    """Return a float, which counts from 0, as one of the type."""
    least, most = whole.limits
    bits = rounded(limited(value, _single(least), _single(most)))
    return (bits - ROUNDING_BITS).astype(whole.dtype)


def _add(whole: Whole, *operands: Any) -> Any:
    (a, b, y), zeros = whole.scales, whole.zero_points
    meaning = Quantization(
        output_scale=a,
        output_zero_point=zeros[0],
        residual_scale=b,
        residual_zero_point=zeros[1],
        sum_scale=y,
        sum_zero_point=zeros[2],
    )
    epilogue = Epilogue(residual=True, activation=whole.activation, requantize=whole.dtype)
    numbers = meaning.output_range(NUMBER_TYPES[whole.dtype], epilogue)[-OF_SUMS:]
    of_a, of_b, shift, least, most = map(_single, numbers)

    def element(one: Any, other: Any) -> Any:
        products = (other, of_b), (one, of_a)
        total = products_added(shift, products, whole.fused)
        return (rounded(limited(total, least, most)) - ROUNDING_BITS).astype(whole.dtype)

    return _broadcast(operands, element)


def _multiply(whole: Whole, *operands: Any) -> Any:
    (a, b, y), zeros = map(np.float32, whole.scales), whole.zero_points
    scale = _single(a * b / y)
    least, most = whole.limits

    def element(one: Any, other: Any) -> Any:
        product = (one.astype("int32") - zeros[0]) * (other.astype("int32") - zeros[1])
        value = product.astype("float32") * scale
        # Limits stand between product and sum.
        value = limited(value, _single(least - zeros[2] - 1), _single(most - zeros[2] + 1))
        return _saturated(whole, value + _single(zeros[2]))

    return _broadcast(operands, element)


def _mean(whole: Whole, x: Any) -> Any:
    """Average all pixels of each channel."""
    n, c, height, width, *block = (int(size) for size in x.shape)
    (of_x, of_y), (x_zero, y_zero) = map(np.float32, whole.scales), whole.zero_points
    count = height * width
    scale = _single(of_x / (of_y * np.float32(count)))
    least, most = whole.limits
    row, column = te.reduce_axis((0, height), "row"), te.reduce_axis((0, width), "column")
    shape = n, c, 1, 1, *block
    total = te.compute(
        shape,
        lambda n, c, _h, _w, *lane: te.sum(
            x(n, c, row, column, *lane).astype("int32"), axis=[row, column]
        ),
        name="total",
    )

    def element(*at: Any) -> Any:
        value = (total(*at) - x_zero * count).astype("float32") * scale
        value = limited(value, _single(least - y_zero), _single(most - y_zero))
        return (rounded(value) + (y_zero - ROUNDING_BITS)).astype(whole.dtype)

    return te.compute(shape, element, name="whole")


def window_of(attrs: Any, layout: str) -> dict[str, Any]:
    """Return the attributes of a pool, in a layout, with the names that TVM has for them."""
    found = {
        name: [int(size) for size in getattr(attrs, name)]
        for name in ("pool_size", "strides", "padding", "dilation")
    }
    flags = {name: bool(getattr(attrs, name)) for name in ("ceil_mode", "count_include_pad")}
    return {**found, **flags, "layout": layout}


def pooled(x: Any, kind: str, window: Mapping[str, Any]) -> Any:
    """Return a pool, ``avg`` or ``max``, of windows as :func:`window_of` has them."""
    return topi.nn.pool2d(
        x,
        kernel=window["pool_size"],
        stride=window["strides"],
        dilation=window["dilation"],
        padding=window["padding"],
        pool_type=kind,
        ceil_mode=window["ceil_mode"],
        layout=window["layout"],
        count_include_pad=window["count_include_pad"],
    )


def _average(whole: Whole, x: Any) -> Any:
    """Average windows, in float32 and in the order of ONNX Runtime."""
    (of_x, of_y), (x_zero, y_zero) = map(np.float32, whole.scales), whole.zero_points
    least, most = (_single(of_x * np.float32(limit - x_zero)) for limit in whole.limits)

    def real(*at: Any) -> Any:
        value = (x(*at).astype("int32") - x_zero).astype("float32") * _single(of_x)
        return limited(value, least, most)  # Between product and sum.

    found = pooled(te.compute(x.shape, real, name="real"), "avg", whole.window)
    return te.compute(
        found.shape,
        lambda *at: _saturated(whole, found(*at) / _single(of_y) + _single(y_zero)),
        name="whole",
    )


def powers(scale: float, count: int) -> np.ndarray:
    """Return e^(scale k) for k from -255 to 0, all times a number.

    It is the largest of which so many could be added up in float32, but for 2^7: that of ONNX
    Runtime, whose table is rounded like this one.
    """
    most = np.log(np.float64(np.finfo(np.float32).max / np.float32(count)))
    shift = max(0.0, most - 5) / np.float64(np.float32(scale))
    return np.exp((np.arange(-255.0, 1) + shift) * np.float64(np.float32(scale))).astype(np.float32)


def _softmax(whole: Whole, x: Any, table: Any) -> Any:
    """Divide powers of e by their sum, in float32 and in the order of ONNX Runtime.

    The table has those of differences from the largest number; see :func:`powers`.
    """
    axis, shape = whole.axis, [int(size) for size in x.shape]
    single = [1 if place == axis else size for place, size in enumerate(shape)]
    _, zero_point = whole.zero_points
    steps = _single(np.floor(np.float32(1) / np.float32(whole.scales[1])))
    _, most = whole.limits

    def number(at: Any, place: Any) -> Any:
        return x(*at[:axis], place, *at[axis + 1 :]).astype("int32")

    def first(at: Any) -> Any:
        return (*at[:axis], 0, *at[axis + 1 :])

    along = te.reduce_axis((0, shape[axis]), "along")
    largest = te.compute(single, lambda *at: te.max(number(at, along), axis=along), name="largest")

    def power(at: Any, place: Any) -> Any:
        return table[number(at, place) - largest(*first(at)) + (table.shape[0] - 1)]

    again = te.reduce_axis((0, shape[axis]), "again")
    total = te.compute(single, lambda *at: te.sum(power(at, again), axis=again), name="total")

    def element(*at: Any) -> Any:
        value = power(at, at[axis]) * steps / total(*first(at))
        bits = rounded(limited(value, _single(0), _single(most - zero_point)))
        return (bits + (zero_point - ROUNDING_BITS)).astype(whole.dtype)

    return te.compute(shape, element, name="whole")


def _look_up(whole: Whole, x: Any, table: Any) -> Any:
    """Look numbers up in a table, which begins with that of the least number."""
    least, _ = whole.limits
    return te.compute(x.shape, lambda *at: table[x(*at).astype("int32") - least], name="whole")


def quantize(x: Any, scale: Any, zero_point: Any, axis: int, dtype: str) -> Any:
    """Return a tensor quantised to a type of 8 or 16 bits.

    Parameters
    ----------
    x : te.Tensor
        Floats; they are rounded to the type of the scale.
    scale, zero_point : te.Tensor or number
        Of the whole tensor, or for each place along an axis.
    axis : int
    dtype : str
    """
    info = np.iinfo(dtype)

    def element(*at: Any) -> Any:
        zero, by = (_at_axis(part, at, axis) for part in (zero_point, scale))
        zero = zero.astype("int32")
        low, high = (tirx.const(int(limit), "int32") - zero for limit in (info.min, info.max))
        value = x(*at).astype(str(by.ty.dtype)).astype("float32") / by.astype("float32")
        low, high = low.astype("float32"), high.astype("float32")
        # As by ONNX Runtime, what is no number becomes the least one.
        value = tirx.Select(value > low, value, low)
        value = tirx.Select(value < high, value, high)
        return (rounded(value) + (zero - ROUNDING_BITS)).astype(dtype)

    return te.compute(x.shape, element, name="quantize")


def dequantize(x: Any, scale: Any, zero_point: Any, axis: int) -> Any:
    """Return what whole numbers stand for, float32.

    Parameters
    ----------
    x : te.Tensor
        Whole numbers.
    scale, zero_point, axis
        As of :func:`quantize`.
    """

    def element(*at: Any) -> Any:
        zero, by = (_at_axis(part, at, axis) for part in (zero_point, scale))
        centered = (x(*at).astype("int32") - zero.astype("int32")).astype("float32")
        return (centered * by.astype("float32")).astype(str(by.ty.dtype)).astype("float32")

    return te.compute(x.shape, element, name="dequantize")


def _at_axis(part: Any, at: tuple[Any, ...], axis: int) -> Any:
    """Return the scale or zero point of an element."""
    if not isinstance(part, te.Tensor):
        return part
    single = all(int(size) == 1 for size in part.shape)
    return part(*([0] * len(part.shape) if single else [at[axis]]))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": _add,
    "multiply": _multiply,
    "mean": _mean,
    "average_pool": _average,
    "look_up": _look_up,
    "softmax": _softmax,
}
"""What is computed, by name, of a :class:`Whole` and tensors of TE."""

ELEMENTWISE = ("add", "multiply")
"""Those that look at one element of each tensor."""
