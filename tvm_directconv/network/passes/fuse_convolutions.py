"""Convolutions and dense layers together with what follows them, as one operator."""

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from ...epilogue import ACTIVATIONS, Epilogue
from ...errors import WorkloadError
from ...layout import ActivationLayout
from ...precision import FLOAT32
from ...quantization import Quantization
from ...workload import ConvWorkload
from ..operators import ACTIVATION, ConvAttributes, conv2d
from ..quantized import (
    DEQUANTIZE,
    QUANTIZE,
    Meaning,
    Quantized,
    dequantized,
    dequantized_by,
    meaning_of,
)
from ..rewriter import Rewriter, constant, dtype_of, op_name, rewriting, shape_of, value_of
from .dequantize_late import weights_of
from .fold_batch_norm import channelwise

# Activations that have an operator of their own; the others come as directconv.activation.
_ACTIVATIONS = {row.relax: name for name, row in ACTIVATIONS.items() if row.relax}
_INT32 = 2.0**31


@dataclass
class _Chain:
    """A convolution and what its kernel does besides, up to the variable `end`.

    Attributes
    ----------
    start, end : Var
    weight : numpy.ndarray
        As the convolution or the product has it; less its zero point.
    x : Quantized, optional
        The input, if it is of whole numbers.
    weight_scale : numpy.ndarray
        Of these, a number for each output channel or for all.
    bias : numpy.ndarray, optional
        In units of the sums.
    residual : Expr, optional
        What is added, after requantising if outputs are whole numbers.
    residual_first : bool
        Whether it is the first operand of that addition.
    output, residual_meaning, total : Meaning, optional
        What outputs stand for; what the residual does, and outputs with it added.
    activation, slope :
        See :class:`~tvm_directconv.epilogue.Epilogue`.
    inner : set
        Variables that are no more.
    """

    start: Any
    end: Any
    weight: np.ndarray
    x: Quantized | None = None
    weight_scale: np.ndarray | None = None
    bias: np.ndarray | None = None
    residual: Any = None
    residual_first: bool = False
    output: Meaning | None = None
    residual_meaning: Meaning | None = None
    total: Meaning | None = None
    activation: str = "none"
    slope: float = 0.0
    inner: set[Any] = field(default_factory=set)

    def epilogue(self) -> Epilogue:
        """Return what the kernel does with its sums."""
        requantize = ""
        if self.x:
            requantize = str(self.output.zero_point.dtype) if self.output else "float32"
        return Epilogue(
            bias=self.bias is not None,
            residual=self.residual is not None,
            residual_first=self.residual_first,
            activation=self.activation,
            slope=self.slope,
            zero_point=bool(self.x and self.x.meaning.zero_point.any()),
            requantize=requantize,
        )

    def quantization(self) -> Quantization | None:
        """Return what whole numbers stand for."""
        if not self.x:
            return None
        found: dict[str, Any] = {"weight_scale": self.weight_scale}
        of = {
            "input": self.x.meaning,
            "output": self.output,
            "residual": self.residual_meaning,
            "sum": self.total,
        }
        for name, meaning in of.items():
            if meaning:
                found[f"{name}_scale"] = float(meaning.scale.item())
                found[f"{name}_zero_point"] = int(meaning.zero_point.item())
        return Quantization(**found)

    def take(self, following: Any) -> None:
        """Let the chain end with the next variable."""
        self.inner.add(self.end)
        self.end = following


@rewriting("directconv.FuseConvolutions")
class FuseConvolutions(Rewriter):
    """Make ``directconv.conv2d`` of convolutions, with bias, residual and activation in them.

    Products with a constant matrix are convolutions, too: each row of the other factor is a pixel
    of an image of one row, and the kernel is 1x1. Where both factors are dequantised, whole numbers
    are multiplied, and what is quantised after it is the epilogue's part.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._chains: dict[Any, _Chain] = {}
        self._inner: set[Any] = set()
        # From the last to the first: of two convolutions that are added, the later one is where
        # the other's output is ready.
        for variable, call in reversed(self.bindings):
            chain = self._started(variable, call)
            if chain is not None:
                self._follow(chain, axis=1 if op_name(call) == _CONV2D else -1)
                self._chains[chain.end] = chain
                self._inner |= chain.inner

    def _dequantized(self, expression: Any) -> Quantized | None:
        return dequantized_by(expression, self.definitions)

    def _started(self, variable: Any, call: Any) -> _Chain | None:
        """Return the beginning of a chain, None if a call is no convolution of ours."""
        if op_name(call) == _CONV2D:
            if call.attrs.data_layout != "NCHW" or call.attrs.kernel_layout != "OIHW":
                return None
            try:
                workload_of(call)
            except WorkloadError:
                return None  # Such as one with more padding than its kernel: TVM has a kernel.
        elif op_name(call) != _MATMUL or len(shape_of(call.args[1])) != 2:
            return None
        if dtype_of(variable) != "float32":
            return None
        weight = value_of(call.args[1])
        if weight is not None:
            return _Chain(variable, variable, weight)
        x, kernel = map(self._dequantized, call.args)
        # Others have become floats; see DequantizeLate.
        if x is None or kernel is None or kernel.value is None:
            return None
        found = weights_of(kernel)
        assert found is not None
        scale = kernel.meaning.scale
        channels = 0 if op_name(call) == _CONV2D else 1
        if scale.size > 1 and kernel.meaning.axis != channels:
            return None
        return _Chain(variable, variable, found, x, scale if scale.size > 1 else scale.reshape(()))

    def _next(self, variable: Any) -> Any:
        """Return the one that reads a variable, if it is one and of no other chain."""
        readers = self.readers[variable]
        following = readers[0] if len(readers) == 1 else None
        if following is None or following in self._inner or following in self._chains:
            return None
        fits = isinstance(following.ty, relax.TensorType)
        return following if fits and shape_of(following) == shape_of(variable) else None

    def _follow(self, chain: _Chain, axis: int) -> None:
        """Take into a chain what its kernel can do."""
        while (following := self._next(chain.end)) is not None:
            call = self.definitions[following]
            name = op_name(call)
            if name == "relax.add":
                if not self._added(chain, _other(call, chain.end), axis):
                    break
            elif name in _ACTIVATIONS or name == ACTIVATION:
                chain.activation = _ACTIVATIONS.get(name) or str(call.attrs["name"])
                chain.slope = float(call.attrs["slope"]) if name == ACTIVATION else 0.0
            else:
                break
            chain.take(following)
            if chain.activation != "none":
                break
        if chain.x and chain.residual is None and ACTIVATIONS[chain.activation].limits:
            self._requantize(chain, axis)

    def _added(self, chain: _Chain, other: Any, axis: int) -> bool:
        """Take a bias or a residual into a chain; return whether it is one."""
        shape = shape_of(chain.end)
        if chain.residual is not None:
            return False
        values, whole = value_of(other), self._dequantized(other)
        if values is None and whole and whole.value is not None:
            values = whole.value
        if values is None:
            if axis != 1 or shape_of(other) != shape:
                return False
            chain.residual = other
            return True
        by_channel = channelwise(values, shape, axis)
        if by_channel is None or chain.bias is not None:
            return False
        if chain.x is None:
            chain.bias = by_channel.astype(np.float32)
            return True
        assert chain.weight_scale is not None
        unit = np.float32(chain.x.meaning.scale) * np.float32(chain.weight_scale)
        if whole:
            scale, zero = (
                part if part.ndim == 0 else part.reshape(-1)
                for part in whole.meaning.broadcast(values.ndim)
            )
            if np.array_equal(np.broadcast_to(scale, unit.shape), unit) and not zero.any():
                chain.bias = by_channel.astype(np.int32)
                return True
            by_channel = (by_channel - zero.astype(np.float64)) * scale
        counted = np.rint(by_channel.astype(np.float64) / unit)
        if not (np.abs(counted) < _INT32).all():
            return False
        chain.bias = counted.astype(np.int32)
        return True

    def _requantize(self, chain: _Chain, axis: int) -> None:
        """Take into a chain what quantises its outputs, and a residual that is added then."""
        following = self._next(chain.end)
        call = self.definitions.get(following)
        meaning = meaning_of(call) if op_name(call) == QUANTIZE else None
        if meaning is None or not meaning.of_bytes:
            return
        chain.output = meaning
        chain.take(following)
        if chain.activation != "none":
            return
        following = self._next(chain.end)
        if following is not None and self._is_relu(following, chain.end, meaning):
            chain.activation = "relu"
            chain.take(following)
        elif axis == 1:
            self._add_requantized(chain, meaning)

    def _is_relu(self, variable: Any, x: Any, meaning: Meaning) -> bool:
        """Return whether numbers are held to what stands for 0."""
        call = self.definitions[variable]
        if op_name(call) != "relax.maximum":
            return False
        limit = value_of(_other(call, x))
        return limit is not None and limit.size == 1 and limit.item() == meaning.zero_point.item()

    def _add_requantized(self, chain: _Chain, meaning: Meaning) -> None:
        """Take into a chain a residual that is added to outputs, which are requantised then.

        It is taken as a whole or not at all: dequantised outputs, the sum, an activation, and what
        quantises it.
        """
        following: list[Any] = []
        found = self._next(chain.end)
        while found is not None and len(following) < 4:
            following.append(found)
            found = self._next(found)
        names = [op_name(self.definitions[variable]) for variable in following]
        activation = _ACTIVATIONS.get(names[2], "none") if len(names) == 4 else "none"
        if activation == "none":
            del following[3:]
        if names[:2] != [DEQUANTIZE, "relax.add"] or names[len(following) - 1] != QUANTIZE:
            return
        first, addition, *_, last = (self.definitions[variable] for variable in following)
        own, total = dequantized(first), meaning_of(last)
        other = _other(addition, following[0])
        residual, residual_is_first = self._dequantized(other), other.same_as(addition.args[0])
        if own is None or residual is None or residual.value is not None or total is None:
            return
        kinds = {m.zero_point.dtype for m in (meaning, residual.meaning, total)}
        if (
            own.meaning.is_that_of(meaning)
            and residual.meaning.of_bytes
            and total.of_bytes
            and len(kinds) == 1
            and shape_of(residual.numbers) == shape_of(chain.end)
            and ACTIVATIONS[activation].limits
        ):
            chain.residual, chain.residual_meaning = residual.numbers, residual.meaning
            chain.residual_first = residual_is_first
            chain.activation, chain.total = activation, total
            for variable in following:
                chain.take(variable)

    def visit(self, variable: Any, value: Any) -> Any:
        """See :meth:`Rewriter.visit`."""
        if variable in self._inner:
            return None
        chain = self._chains.get(variable)
        if chain is None:
            return self.copied(value)
        start = self.definitions[chain.start]
        return (
            self._convolved(chain, start)
            if op_name(start) == _CONV2D
            else self._dense(chain, start)
        )

    def _input(self, chain: _Chain, call: Any) -> Any:
        return self.copied(chain.x.numbers if chain.x else call.args[0])

    def _operands(self, chain: _Chain) -> list[Any]:
        operands = []
        if chain.bias is not None:
            operands.append(constant(chain.bias))
        if chain.residual is not None:
            operands.append(self.copied(chain.residual))
        return operands

    def _convolved(self, chain: _Chain, call: Any) -> Any:
        workload = replace(workload_of(call), dtype=_precision(chain))
        attributes = ConvAttributes(workload, chain.epilogue(), quantization=chain.quantization())
        weight = constant(chain.weight)
        operands = [self._input(chain, call), weight, *self._operands(chain)]
        return conv2d(attributes, *operands, span=call.span)

    def _dense(self, chain: _Chain, call: Any) -> Any:
        x, matrix = call.args
        *leading, in_channels = shape_of(x)
        rows = prod(leading)
        out_channels = shape_of(matrix)[1]
        workload = ConvWorkload(
            in_channels=in_channels,
            out_channels=out_channels,
            in_height=1,
            in_width=rows,
            kernel=(1, 1),
            dtype=_precision(chain),
        )
        pixels = self.emit(relax.op.reshape(self._input(chain, call), (1, 1, rows, in_channels)))
        layout = ActivationLayout("NHWC")
        if chain.x and in_channels % _WORD:
            # There are words of channels in blocks only, which are filled up.
            pixels = self.emit(relax.op.permute_dims(pixels, (0, 3, 1, 2)))
            layout = ActivationLayout("NCHW")
        attributes = ConvAttributes(
            workload,
            chain.epilogue(),
            input_layout=layout,
            quantization=chain.quantization(),
        )
        weights = constant(chain.weight.T.reshape(out_channels, in_channels, 1, 1))
        operands = [pixels, weights, *self._operands(chain)]
        result = conv2d(attributes, *operands, span=call.span)
        if rows > 1:
            result = relax.op.permute_dims(self.emit(result), (0, 2, 3, 1))
        return relax.op.reshape(self.emit(result), (*leading, out_channels))


_CONV2D, _MATMUL = "relax.nn.conv2d", "relax.matmul"
_WORD = 4  # numbers of 8 bits


def _precision(chain: _Chain) -> str:
    return dtype_of(chain.x.numbers) if chain.x else FLOAT32.name


def _other(call: Any, variable: Any) -> Any:
    """Return the other one of two operands; the same one if it is both."""
    one, other = call.args
    return other if one.same_as(variable) or one == variable else one


def workload_of(call: Any) -> ConvWorkload:
    """Return what a ``relax.nn.conv2d`` convolves."""
    x, weight = call.args
    n, c, h, w = shape_of(x)
    o, _, kernel_rows, kernel_columns = shape_of(weight)
    attrs = call.attrs
    top, left, bottom, right = (int(size) for size in attrs.padding)
    return ConvWorkload(
        batch=n,
        in_channels=c,
        out_channels=o,
        in_height=h,
        in_width=w,
        kernel=(kernel_rows, kernel_columns),
        stride=(int(attrs.strides[0]), int(attrs.strides[1])),
        dilation=(int(attrs.dilation[0]), int(attrs.dilation[1])),
        padding=(top, left, bottom, right),
        groups=int(attrs.groups),
    )
