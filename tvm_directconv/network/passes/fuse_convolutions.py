"""Convolutions and dense layers together with what follows them, as one operator."""

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from tvm import relax

from ...epilogue import ACTIVATIONS, Epilogue
from ...errors import WorkloadError
from ...layout import ActivationLayout
from ...workload import ConvWorkload
from ..operators import ACTIVATION, ConvAttributes, conv2d
from ..rewriter import Rewriter, constant, dtype_of, op_name, rewriting, shape_of, value_of
from .fold_batch_norm import channelwise

# Activations that have an operator of their own; the others come as directconv.activation.
_ACTIVATIONS = {row.relax: name for name, row in ACTIVATIONS.items() if row.relax}


@dataclass
class _Chain:
    """A convolution and what its kernel does besides, up to the variable `end`."""

    start: Any
    end: Any
    bias: np.ndarray | None = None
    residual: Any = None
    activation: str = "none"
    slope: float = 0.0
    inner: set[Any] = field(default_factory=set)

    def epilogue(self) -> Epilogue:
        """Return what the kernel does with its sums."""
        return Epilogue(
            bias=self.bias is not None,
            residual=self.residual is not None,
            activation=self.activation,
            slope=self.slope,
        )


@rewriting("directconv.FuseConvolutions")
class FuseConvolutions(Rewriter):
    """Make ``directconv.conv2d`` of convolutions, with bias, residual and activation in them.

    Products with a constant matrix are convolutions, too: each row of the other factor is a pixel
    of an image of one row, and the kernel is 1x1.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._chains: dict[Any, _Chain] = {}
        self._inner: set[Any] = set()
        # From the last to the first: of two convolutions that are added, the later one is where
        # the other's output is ready.
        for variable, call in reversed(self.bindings):
            if _is_conv2d(call) or _is_dense(call):
                chain = self._chain(variable, axis=1 if _is_conv2d(call) else -1)
                self._chains[chain.end] = chain
                self._inner |= chain.inner

    def _chain(self, start: Any, axis: int) -> _Chain:
        chain = _Chain(start, start)
        shape = shape_of(start)
        while True:
            readers = self.readers[chain.end]
            following = readers[0] if len(readers) == 1 else None
            if following is None or following in self._inner or following in self._chains:
                return chain
            if not isinstance(following.ty, relax.TensorType) or shape_of(following) != shape:
                return chain
            call = self.definitions[following]
            name = op_name(call)
            if name == "relax.add":
                (other,) = [arg for arg in call.args if arg is not chain.end and arg != chain.end]
                values = value_of(other)
                by_channel = None if values is None else channelwise(values, shape, axis)
                if by_channel is not None and chain.bias is None and chain.residual is None:
                    chain.bias = by_channel
                elif (
                    values is None
                    and axis == 1
                    and chain.residual is None
                    and shape_of(other) == shape
                ):
                    chain.residual = other
                else:
                    return chain
            elif name in _ACTIVATIONS or name == ACTIVATION:
                chain.activation = _ACTIVATIONS.get(name) or str(call.attrs["name"])
                chain.slope = float(call.attrs["slope"]) if name == ACTIVATION else 0.0
            else:
                return chain
            chain.inner.add(chain.end)
            chain.end = following
            if chain.activation != "none":
                return chain

    def visit(self, variable: Any, value: Any) -> Any:
        """See :meth:`Rewriter.visit`."""
        if variable in self._inner:
            return None
        chain = self._chains.get(variable)
        if chain is None:
            return self.copied(value)
        start = self.definitions[chain.start]
        return self._convolved(chain, start) if _is_conv2d(start) else self._dense(chain, start)

    def _operands(self, chain: _Chain) -> list[Any]:
        operands = []
        if chain.bias is not None:
            operands.append(constant(chain.bias.astype(np.float32)))
        if chain.residual is not None:
            operands.append(self.copied(chain.residual))
        return operands

    def _convolved(self, chain: _Chain, call: Any) -> Any:
        attributes = ConvAttributes(workload_of(call), chain.epilogue())
        x, weight = call.args
        return conv2d(attributes, self.copied(x), weight, *self._operands(chain))

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
        )
        weight = value_of(matrix)
        assert weight is not None
        attributes = ConvAttributes(
            workload, chain.epilogue(), input_layout=ActivationLayout("NHWC")
        )
        pixels = self.emit(relax.op.reshape(self.copied(x), (1, 1, rows, in_channels)))
        weights = constant(weight.T.reshape(out_channels, in_channels, 1, 1))
        result = conv2d(attributes, pixels, weights, *self._operands(chain))
        if rows > 1:
            result = relax.op.permute_dims(self.emit(result), (0, 2, 3, 1))
        return relax.op.reshape(self.emit(result), (*leading, out_channels))


def _is_conv2d(call: Any) -> bool:
    if (
        op_name(call) != "relax.nn.conv2d"
        or value_of(call.args[1]) is None
        or call.attrs.data_layout != "NCHW"
        or call.attrs.kernel_layout != "OIHW"
        or dtype_of(call.args[0]) != "float32"
    ):
        return False
    try:
        workload_of(call)
    except WorkloadError:
        return False  # Such as one with more padding than its kernel is large: TVM has a kernel.
    return True


def _is_dense(call: Any) -> bool:
    return (
        op_name(call) == "relax.matmul"
        and value_of(call.args[1]) is not None
        and len(shape_of(call.args[1])) == 2
        and dtype_of(call.args[0]) == "float32"
    )


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
