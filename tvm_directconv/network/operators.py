"""Relax operators of our own, between the passes that make them and the kernels they become.

==========================  =====================================================================
``directconv.conv2d``       x, weight, then the operands of the epilogue. Attributes:
                            ``workload`` (descriptor), ``epilogue`` (as :meth:`Epilogue.parse`
                            reads it), and once the layout is decided ``blocking`` (JSON) and
                            ``input_layout``. Before that, tensors are plain: NCHW and OIHW, and
                            what whole numbers stand for is the attribute ``quantization``
``directconv.activation``   x; ``name`` is one of :data:`~tvm_directconv.epilogue.ACTIVATIONS`
``directconv.reorder``      x, between NCHW and blocks of ``block`` channels; ``to_blocks`` says
                            which way, ``channels`` how many there are
``directconv.whole``        quantised tensors; ``whole`` (JSON) is what is computed of them
``directconv.channels``     tensors in blocks; channels of these, :class:`Piece` by piece.
                            Attributes: ``pieces`` (JSON), ``channels``
==========================  =====================================================================

Importing this module registers them with TVM.
"""

import json
from dataclasses import asdict, astuple, dataclass, field
from math import prod
from typing import Any

import numpy as np
from tvm import relax, te, tirx, topi
from tvm.ir import Op, _ffi_api
from tvm.ir.expr import Call

from ..blocking import Blocking
from ..epilogue import ACTIVATIONS, Epilogue
from ..layout import ActivationLayout
from ..quantization import Quantization
from ..workload import ConvWorkload
from .interpolation import INJECTIVE, TRANSFORMS, interpolated, pixels
from .rewriter import constant, dtype_of, shape_of, value_of
from .whole import Whole, dequantize, pooled, quantize, window_of

CONV2D = "directconv.conv2d"
ACTIVATION = "directconv.activation"
REORDER = "directconv.reorder"
CHANNELS = "directconv.channels"
WHOLE = "directconv.whole"

KERNEL = "directconv.kernel"
"""Attribute of the functions that convolve: the attributes of their operator, as JSON."""

ELEMENTWISE = {
    ACTIVATION,
    "relax.abs",
    "relax.add",
    "relax.astype",
    "relax.ceil",
    "relax.clip",
    "relax.dequantize",
    "relax.divide",
    "relax.erf",
    "relax.exp",
    "relax.floor",
    "relax.log",
    "relax.maximum",
    "relax.minimum",
    "relax.multiply",
    "relax.negative",
    "relax.nn.gelu",
    "relax.nn.leakyrelu",
    "relax.nn.relu",
    "relax.nn.relu6",
    "relax.nn.silu",
    "relax.power",
    "relax.quantize",
    "relax.rsqrt",
    "relax.sigmoid",
    "relax.sqrt",
    "relax.square",
    "relax.subtract",
    "relax.tanh",
}
"""Operators that look at one element of each operand, or at one number for each channel."""

_OPAQUE = 8  # TVM's OpPatternKind: nothing is fused with it.


@dataclass(frozen=True)
class ConvAttributes:
    """Attributes of a ``directconv.conv2d``, read.

    Attributes
    ----------
    workload : ConvWorkload
    epilogue : Epilogue
    blocking : Blocking or None
        None as long as the layout is not decided.
    blocking_source : str
        Where the blocking came from.
    input_layout : ActivationLayout
    quantization : Quantization or None
        What whole numbers stand for; None of others, and once the layout is decided, as operands
        have it then.
    """

    workload: ConvWorkload
    epilogue: Epilogue
    blocking: Blocking | None = None
    blocking_source: str = ""
    input_layout: ActivationLayout = field(default_factory=lambda: ActivationLayout("NCHW"))
    quantization: Quantization | None = None

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output, in its layout."""
        plain = self.workload.output_shape
        return self.blocking.output_layout(self.workload).shape(plain) if self.blocking else plain

    @property
    def output_type(self) -> str:
        """Type of the output's elements."""
        return self.epilogue.output(self.workload.precision).name

    def to_json(self) -> str:
        """Return a text that :meth:`from_json` reads."""
        meaning = self.quantization and asdict(self.quantization)
        if meaning:
            meaning["weight_scale"] = np.asarray(meaning["weight_scale"], np.float64).tolist()
        return json.dumps(
            {
                "workload": str(self.workload),
                "epilogue": self.epilogue.descriptor,
                "blocking": self.blocking and self.blocking.to_dict(),
                "blocking_source": self.blocking_source,
                "input_layout": str(self.input_layout),
                "quantization": meaning,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "ConvAttributes":
        """Read what :meth:`to_json` wrote."""
        found = json.loads(text)
        return cls(
            ConvWorkload.parse(found["workload"]),
            Epilogue.parse(found["epilogue"]),
            Blocking.from_dict(found["blocking"]) if found["blocking"] else None,
            found["blocking_source"],
            ActivationLayout(found["input_layout"]),
            Quantization(**found["quantization"]) if found["quantization"] else None,
        )


@dataclass(frozen=True)
class Piece:
    """Some channels of a tensor: from `first` on `count` ones, as a channel shuffle orders them.

    Attributes
    ----------
    source : int
        Which operand it is.
    first, count : int
        Which channels.
    groups : int
        Of the shuffle; 1 leaves them in their order.
    """

    source: int
    first: int
    count: int
    groups: int = 1

    def channel(self, index: Any) -> Any:
        """Return which channel of its operand one of the piece is."""
        each = self.count // self.groups
        return self.first + index % self.groups * each + index // self.groups


def conv2d(attributes: ConvAttributes, *operands: Any, span: Any = None) -> Any:
    """Return a call of ``directconv.conv2d``; its span says which node of a model it is."""
    return Call(CONV2D, list(operands), attrs={"conv": attributes.to_json()}, span=span)


def conv_attributes(call: Any) -> ConvAttributes:
    """Return the attributes of a ``directconv.conv2d``."""
    return ConvAttributes.from_json(call.attrs["conv"])


def activation(x: Any, name: str, slope: float = 0.0) -> Any:
    """Return a call of ``directconv.activation``."""
    return Call(ACTIVATION, [x], attrs={"name": name, "slope": slope})


def whole(attributes: Whole, *operands: Any) -> Any:
    """Return a call of ``directconv.whole``."""
    return Call(WHOLE, list(operands), attrs={"whole": attributes.to_json()})


def whole_attributes(call: Any) -> Whole:
    """Return the attributes of a ``directconv.whole``."""
    return Whole.from_json(call.attrs["whole"])


def to_blocks(x: Any, block: int) -> Any:
    """Return the reorder from NCHW to blocks of channels."""
    return Call(REORDER, [x], attrs={"to_blocks": True, "block": block, "channels": shape_of(x)[1]})


def to_plain(x: Any, channels: int) -> Any:
    """Return the reorder from blocks to NCHW, without what only fills up the last block."""
    attributes = {"to_blocks": False, "block": shape_of(x)[-1], "channels": channels}
    return Call(REORDER, [x], attrs=attributes)


def channels(operands: list[Any], pieces: list[Piece]) -> Any:
    """Return channels of tensors in blocks, piece after piece, in the same blocks."""
    count = sum(piece.count for piece in pieces)
    text = json.dumps([astuple(piece) for piece in pieces])
    return Call(CHANNELS, operands, attrs={"pieces": text, "channels": count})


def _register(name: str, description: str, infer: Any, legalize: Any) -> None:
    if name not in Op.list_op_names():
        _ffi_api.RegisterOp(name, description)
    operator = Op.get(name)
    operator.set_attr("FInferType", infer)
    operator.set_attr("FPurity", True)
    operator.set_attr("FLegalize", legalize)


def _conv2d_type(call: Any, _builder: Any) -> Any:
    attributes = conv_attributes(call)
    return relax.TensorType(attributes.output_shape, attributes.output_type)


def _placeholders(call: Any) -> list[Any]:
    return [
        te.placeholder(shape_of(x), dtype_of(x), f"operand{number}")
        for number, x in enumerate(call.args)
    ]


def _whole_type(call: Any, _builder: Any) -> Any:
    attributes = whole_attributes(call)
    shape = attributes.computed(*_placeholders(call)).shape
    return relax.TensorType([int(size) for size in shape], attributes.dtype)


def _whole_kernel(builder: Any, call: Any) -> Any:
    attributes = whole_attributes(call)
    name = f"quantized_{attributes.function}"
    return builder.call_te(attributes.computed, *call.args, primfunc_name_hint=name)


def _of_meaning(call: Any) -> tuple[list[Any], int]:
    """Return scale and zero point of a call, as numbers where they are known, and the axis."""
    parts = [
        tirx.const(value.item(), str(value.dtype))
        if (value := value_of(argument)) is not None and value.size == 1
        else argument
        for argument in call.args[1:]
    ]
    return parts, int(call.attrs.axis)


def _quantize_kernel(builder: Any, call: Any) -> Any:
    """Return what quantises with our own arithmetic, which is the same everywhere."""
    parts, axis = _of_meaning(call)
    dtype = str(call.attrs.out_dtype)
    return builder.call_te(
        quantize, call.args[0], *parts, axis, dtype, primfunc_name_hint="quantize"
    )


def _dequantize_kernel(builder: Any, call: Any) -> Any:
    parts, axis = _of_meaning(call)
    return builder.call_te(dequantize, call.args[0], *parts, axis, primfunc_name_hint="dequantize")


def _conv2d_kernel(builder: Any, call: Any) -> Any:
    """Return the call of a function that has nothing but parameters, until it is scheduled."""
    attributes = conv_attributes(call)
    if attributes.blocking is None:
        raise ValueError(f"the layout of {attributes.workload} is not decided yet")
    zero = tirx.const(0, attributes.output_type)
    result = te.compute(attributes.output_shape, lambda *_: zero, name="conv2d")
    kernel = te.create_prim_func([*_placeholders(call), result]).with_attr(
        {KERNEL: attributes.to_json(), "op_pattern": _OPAQUE}
    )
    function = builder.add_func(kernel.without_attr("global_symbol"), "conv2d")
    return relax.call_tir(function, list(call.args), call.ty)


def _activation_kernel(builder: Any, call: Any) -> Any:
    activation = ACTIVATIONS[str(call.attrs["name"])]
    slope = float(call.attrs["slope"])

    def applied(x: Any) -> Any:
        return te.compute(x.shape, lambda *at: activation.apply(x(*at), slope), name="activation")

    return builder.call_te(applied, call.args[0], primfunc_name_hint=str(call.attrs["name"]))


def _reordered_shape(call: Any) -> tuple[int, ...]:
    shape, channels = shape_of(call.args[0]), int(call.attrs["channels"])
    if call.attrs["to_blocks"]:
        blocked = ActivationLayout.blocked(int(call.attrs["block"]))
        return blocked.shape((shape[0], channels, shape[2], shape[3]))
    return shape[0], channels, *shape[2:4]


def _reorder_kernel(builder: Any, call: Any) -> Any:
    block, channels = int(call.attrs["block"]), int(call.attrs["channels"])

    def blocked(x: Any) -> Any:
        def read(n: Any, c: Any, h: Any, w: Any, lane: Any) -> Any:
            channel = c * block + lane
            value = x[n, tirx.min(channel, channels - 1), h, w]
            # A Select would read in any case, and of a channel that TVM no longer limits: it knows
            # that it is below `channels` there.
            full = channels % block == 0
            zero = tirx.const(0, dtype_of(call.args[0]))
            return value if full else tirx.if_then_else(channel < channels, value, zero)

        return te.compute(_reordered_shape(call), read, name="to_blocks")

    def plain(x: Any) -> Any:
        return te.compute(
            _reordered_shape(call),
            lambda n, c, h, w: x[n, c // block, h, w, c % block],
            name="to_plain",
        )

    function = blocked if call.attrs["to_blocks"] else plain
    return builder.call_te(function, call.args[0], primfunc_name_hint=function.__name__)


def _channels_shape(call: Any) -> tuple[int, ...]:
    n, _, height, width, block = shape_of(call.args[0])
    return n, -(-int(call.attrs["channels"]) // block), height, width, block


def _channels_kernel(builder: Any, call: Any) -> Any:
    pieces = [Piece(*fields) for fields in json.loads(call.attrs["pieces"])]
    last = int(call.attrs["channels"]) - 1

    def gathered(*operands: Any) -> Any:
        def read(n: Any, c: Any, h: Any, w: Any, lane: Any) -> Any:
            block = int(operands[0].shape[-1])
            channel = tirx.min(c * block + lane, last)  # What fills the last block may be anything.
            value, end = None, last + 1
            for piece in reversed(pieces):
                begin = end - piece.count
                # Only one of them is right for a channel; the others must not read elsewhere.
                within = tirx.max(tirx.min(channel - begin, piece.count - 1), 0)
                found = piece.channel(within)
                own = operands[piece.source][n, found // block, h, w, found % block]
                value = own if value is None else tirx.if_then_else(channel < end, own, value)
                end = begin
            return value

        return te.compute(_channels_shape(call), read, name="channels")

    return builder.call_te(gathered, *call.args, primfunc_name_hint="channels")


_SHORT = ("float16", "bfloat16")


def _in_single(builder: Any, call: Any, function: Any, name: str) -> Any:
    """Return the call of a kernel that computes in float32, and rounds its result once."""
    dtype = dtype_of(call.args[0])

    def computed(x: Any) -> Any:
        if dtype not in _SHORT:
            return function(x)
        return topi.cast(function(topi.cast(x, "float32")), dtype)

    return builder.call_te(computed, call.args[0], primfunc_name_hint=name)


def _pool_kernel(builder: Any, call: Any) -> Any:
    name = str(call.op.name).removeprefix("relax.nn.")
    window = window_of(call.attrs, str(call.attrs.layout))

    def pool(x: Any) -> Any:
        return pooled(x, name.partition("_")[0], window)

    return _in_single(builder, call, pool, name)


def _mean_kernel(builder: Any, call: Any) -> Any:
    shape, axes = shape_of(call.args[0]), call.attrs.axis
    over = range(len(shape)) if axes is None else [int(axis) for axis in axes]
    count = prod(shape[axis] for axis in over)

    def mean(x: Any) -> Any:
        return topi.divide(topi.sum(x, axes, call.attrs.keepdims), count)

    return _in_single(builder, call, mean, "mean")


def _extreme_kernel(builder: Any, call: Any) -> Any:
    name = str(call.op.name).removeprefix("relax.")
    axes, keepdims = call.attrs.axis, call.attrs.keepdims

    def extreme(x: Any) -> Any:
        return getattr(topi, name)(x, axes, keepdims)

    return _in_single(builder, call, extreme, name)


def _resize_kernel(builder: Any, call: Any) -> Any:
    """Return what interpolates as ONNX Runtime does; else TVM's kernel."""
    x, attrs = call.args[0], call.attrs
    planes = str(attrs.layout).startswith("NCHW") and dtype_of(x) == dtype_of(call) == "float32"
    transform = str(attrs.coordinate_transformation_mode)
    if attrs.method != "linear" or not planes or transform not in TRANSFORMS:
        return Op.get("relax.image.resize2d").get_attr("FLegalize")(builder, call)
    tables = [
        table
        for length, size in zip(shape_of(x)[2:4], shape_of(call)[2:4], strict=True)
        for table in pixels(length, size, np.float32(size) / np.float32(length), transform)
    ]
    return builder.call_te(
        interpolated,
        x,
        *map(constant, tables),
        primfunc_name_hint="resize2d",
        primfunc_attrs=INJECTIVE,
    )


REDUCED = {
    "relax.max": _extreme_kernel,
    "relax.min": _extreme_kernel,
    "relax.nn.avg_pool2d": _pool_kernel,
    "relax.nn.max_pool2d": _pool_kernel,
    "relax.mean": _mean_kernel,
}
"""TVM's operators that reduce, and their kernels: of numbers of two bytes, in float32."""

LEGALIZED = {
    "relax.quantize": _quantize_kernel,
    "relax.dequantize": _dequantize_kernel,
    "relax.image.resize2d": _resize_kernel,
    **REDUCED,
}
"""TVM's operators that become other kernels than TVM's."""

_register(CONV2D, "Direct convolution with an epilogue.", _conv2d_type, _conv2d_kernel)
_register(WHOLE, "Function of quantised tensors.", _whole_type, _whole_kernel)
_register(
    ACTIVATION,
    "Function of each element.",
    lambda call, _: relax.TensorType(shape_of(call.args[0]), dtype_of(call.args[0])),
    _activation_kernel,
)
_register(
    REORDER,
    "Channels into blocks, or out of them.",
    lambda call, _: relax.TensorType(_reordered_shape(call), dtype_of(call.args[0])),
    _reorder_kernel,
)
_register(
    CHANNELS,
    "Channels of tensors in blocks, in another order.",
    lambda call, _: relax.TensorType(_channels_shape(call), dtype_of(call.args[0])),
    _channels_kernel,
)
