"""Activations in blocks of channels, from the first convolution to the last."""

from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir.expr import Call, Var

from ...case import Case, default_input_layout
from ...conv_manifest import ConvManifest
from ...epilogue import BIAS
from ...errors import ArgumentError, ModelError
from ...hardware.device import Device
from ...layout import ActivationLayout
from ...precision import FLOAT32
from ...quantization import Quantization
from ...resolution import resolve_blocking
from ..operators import (
    CONV2D,
    ELEMENTWISE,
    REORDER,
    WHOLE,
    ConvAttributes,
    Piece,
    channels,
    conv2d,
    conv_attributes,
    to_blocks,
    to_plain,
    whole,
    whole_attributes,
)
from ..quantized import DEQUANTIZE, QUANTIZE
from ..rewriter import (
    MAIN,
    REORDERS,
    Rewriter,
    constant,
    node_of,
    op_name,
    rewriting,
    shape_of,
    value_of,
    variables_in,
)
from ..whole import ELEMENTWISE as WHOLE_ELEMENTWISE

_POOLS = {
    "relax.nn.max_pool2d": relax.op.nn.max_pool2d,
    "relax.nn.avg_pool2d": relax.op.nn.avg_pool2d,
}


def blocked_layout(device: Device, threads: int, blocking: str | None, denormals: str) -> Any:
    """Return the pass that chooses layouts and block sizes for a device.

    Parameters
    ----------
    device : Device
        For which processor.
    threads : int
        By how many threads the network is computed.
    blocking : str, optional
        Where block sizes come from; see :func:`tvm_directconv.resolution.resolve_blocking`.
    denormals : str
        What becomes of them, which not every instruction can; see :mod:`tvm_directconv.denormals`.
    """

    return rewriting("directconv.BlockedLayout", device, threads, blocking, denormals)(
        BlockedLayout
    )


class BlockedLayout(Rewriter):
    """Give every tensor the layout that its readers want, and reorder where they disagree.

    A tensor has up to two forms, plain and in blocks, made when they are first asked for, and once.
    Convolutions make and want blocks. What looks at single elements or at single channels takes
    whatever its operands are in; all else is plain, as are the network's inputs and outputs.
    """

    def __init__(
        self,
        module: tvm.IRModule,
        device: Device,
        threads: int,
        blocking: str | None,
        denormals: str,
    ) -> None:
        super().__init__(module)
        self._device = device
        self._threads = threads
        self._blocking = blocking
        self._denormals = denormals
        # From variables of the original to their forms, by block; None is the plain form.
        self._forms: dict[Any, dict[int | None, Any]] = {}

    def run(self) -> tvm.IRModule:
        """Return the module with the network rewritten; an attribute counts the reorders."""
        module = super().run()
        count = sum(op_name(value) == REORDER for _, value in Rewriter(module).bindings)
        module[MAIN] = module[MAIN].with_attr(REORDERS, count)
        return module

    def copied(self, expression: Any) -> Any:
        """Return an expression of plain tensors."""
        return (
            self._in(expression, None)
            if isinstance(expression, Var)
            else super().copied(expression)
        )

    def visit(self, variable: Any, value: Any) -> Any:
        """See :meth:`Rewriter.visit`."""
        block: int | None = None
        if op_name(value) == WHOLE:
            fused = self._device.peak(FLOAT32).instruction.fused
            value = whole(replace(whole_attributes(value), fused=fused), *value.args)
        if op_name(value) == CONV2D:
            found, block = self._conv2d(value)
        elif (in_blocks := self._in_blocks(variable, value)) is not None:
            found, block = in_blocks
        else:
            found = self.copied(value)
        self._forms[variable] = {block: self.emit(found, like=variable)}
        return None

    def _in_blocks(self, variable: Any, call: Any) -> tuple[Any, int] | None:
        """Return a call as it is on blocks, and their size; None if it has to be plain."""
        if not isinstance(variable.ty, relax.TensorType) or len(shape_of(variable)) != 4:
            return None
        name = op_name(call)
        if name == "relax.reshape":
            return self._shuffle(call)
        block = self._block_of(call)
        if block is None:
            return None
        if name in ELEMENTWISE:
            found = self._elementwise(variable, call, block)
        elif name in _POOLS:
            found = self._pool(call, block)
        elif name == WHOLE:
            found = self._whole(variable, call, block)
        else:
            rules = {
                "relax.mean": self._mean,
                "relax.concat": self._concat,
                "relax.image.resize2d": self._resize,
                "relax.strided_slice": self._slice,
            }
            found = rules[name](call, block) if name in rules else None
        return None if found is None else (found, block)

    def _block_of(self, call: Any) -> int | None:
        """Return the block that an operand is in, None if all are plain."""
        for operand in variables_in(call):
            for block in self._forms.get(operand, {}):
                if block is not None:
                    return block
        return None

    def _in(self, variable: Any, block: int | None) -> Any:
        """Return a variable's form in blocks, or the plain one."""
        forms = self._forms.setdefault(variable, {})
        if not forms:
            forms[None] = super().copied(variable)  # A parameter.
        if block not in forms:
            if block is not None:
                forms[block] = self._blocked(self._in(variable, None), block)
            else:
                forms[None] = self._plain(next(iter(forms.values())), shape_of(variable)[1])
        return forms[block]

    def _blocked(self, x: Any, block: int) -> Any:
        n, channels, height, width = shape_of(x)
        if height * width == 1 and channels % block == 0:
            return self.emit(relax.op.reshape(x, (n, channels // block, 1, 1, block)))
        return self.emit(to_blocks(x, block))

    def _plain(self, x: Any, channels: int) -> Any:
        n, blocks, height, width, block = shape_of(x)
        if height * width == 1 and channels == blocks * block:
            return self.emit(relax.op.reshape(x, (n, channels, 1, 1)))
        return self.emit(to_plain(x, channels))

    def _conv2d(self, call: Any) -> tuple[Any, int]:
        attributes = conv_attributes(call)
        workload, epilogue, layout = (
            attributes.workload,
            attributes.epilogue,
            attributes.input_layout,
        )
        x, weight, *others = call.args
        if layout.name == "NCHW":
            forms = self._forms.get(x, {})
            block = next((block for block in forms if block is not None), None)
            layout = (
                ActivationLayout.blocked(block)
                if block is not None
                else default_input_layout(workload, self._device)
            )
        case = Case.of(workload, self._device, self._threads, layout, epilogue, self._denormals)
        manifest = ConvManifest.of(*resolve_blocking(self._blocking, case))
        weights, block = _constant(weight), manifest.output_layout.block
        assert block is not None
        try:
            manifest.check_weight(weights)
        except ArgumentError as error:
            raise ModelError(
                f"{node_of(call) or workload} cannot be compiled for {self._device.name}: {error}. "
                "Quantise with symmetric weights, as tvm-directconv quantize does"
            ) from None
        given = dict(zip((operand.name for operand in epilogue.asked), others, strict=True))
        bias = _constant(given[BIAS.name]) if BIAS.name in given else None
        meaning = attributes.quantization or Quantization()
        constants = manifest.by_channel(weights, meaning, bias)
        operands = [self._in(x, layout.block), constant(manifest.weight_layout.pack(weights))]
        for name, packing in manifest.operands().items():
            operands.append(
                constant(packing.layout.pack(constants[name]))
                if name in constants
                else self._in(given[name], block)
            )
        decided = ConvAttributes(
            workload, manifest.epilogue, manifest.blocking, manifest.blocking_source, layout
        )
        return conv2d(decided, *operands), block

    def _elementwise(self, variable: Any, call: Any, block: int) -> Any:
        shape = shape_of(variable)
        changed, kept = list(call.args), []
        if op_name(call) in (QUANTIZE, DEQUANTIZE):
            changed, kept = changed[:1], changed[1:]
            if not all(
                (value := value_of(number)) is not None and value.size == 1 for number in kept
            ):
                return None
        operands = self._operands(changed, shape, block)
        return operands and Call(call.op, [*operands, *kept], attrs=call.attrs)

    def _operands(self, given: Any, shape: tuple[int, ...], block: int) -> list[Any] | None:
        """Return the operands of an element-wise operator in blocks; None if one cannot be."""
        operands = [self._operand(operand, shape, block) for operand in given]
        return None if any(operand is None for operand in operands) else operands

    def _operand(self, operand: Any, shape: tuple[int, ...], block: int) -> Any:
        """Return an operand of an element-wise operator in blocks; None if it cannot be."""
        if not isinstance(operand.ty, relax.TensorType):
            return operand
        own = (1,) * (4 - len(shape_of(operand))) + shape_of(operand)
        values = value_of(operand)
        if values is not None and values.size == 1:
            return constant(values.reshape(1, 1, 1, 1, 1))
        if own[1] == shape[1]:
            if values is not None:
                return constant(ActivationLayout.blocked(block).pack(values.reshape(own)))
            return self._in(operand, block) if len(shape_of(operand)) == 4 else None
        if own[1] != 1:
            return None
        # The same for all channels.
        by_pixel = (own[0], 1, own[2], own[3], 1)
        if values is not None:
            return constant(values.reshape(by_pixel))
        return self.emit(relax.op.reshape(self._in(operand, None), by_pixel))

    def _whole(self, variable: Any, call: Any, block: int) -> Any:
        attributes = whole_attributes(call)
        if attributes.function in WHOLE_ELEMENTWISE:
            operands = self._operands(call.args, shape_of(variable), block)
            return operands and whole(attributes, *operands)
        if attributes.function == "softmax":
            return None
        if attributes.window:
            window = {**attributes.window, "layout": f"NCHW{block}c"}
            attributes = replace(attributes, window=window)
        x, *tables = call.args
        return whole(attributes, self._in(x, block), *tables)

    def _pool(self, call: Any, block: int) -> Any:
        attrs = call.attrs
        if attrs.layout != "NCHW":
            return None
        return _POOLS[op_name(call)](
            self._in(call.args[0], block),
            attrs.pool_size,
            attrs.strides,
            attrs.padding,
            attrs.dilation,
            attrs.ceil_mode,
            attrs.count_include_pad,
            f"NCHW{block}c",
        )

    def _mean(self, call: Any, block: int) -> Any:
        axes = call.attrs.axis
        if axes is None or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
            return None
        return relax.op.mean(self._in(call.args[0], block), axis=[2, 3], keepdims=True)

    def _concat(self, call: Any, block: int) -> Any:
        """Parts of whole blocks lie one after the other; planning puts them there at once."""
        parts = list(call.args[0].fields)
        if int(call.attrs.axis) % 4 != 1 or not all(isinstance(part, Var) for part in parts):
            return None
        operands = [self._in(part, block) for part in parts]
        counts = [shape_of(part)[1] for part in parts]
        if any(count % block for count in counts[:-1]):
            return channels(operands, [Piece(n, 0, count) for n, count in enumerate(counts)])
        return relax.op.concat(operands, axis=1)

    def _slice(self, call: Any, block: int) -> Any:
        """Some channels of a tensor."""
        x, *arguments = call.args
        axes, begins, ends, *steps = (
            [int(number.value) for number in argument.fields] for argument in arguments
        )
        if axes != [1] or (steps and steps[0] != [1]) or len(shape_of(x)) != 4:
            return None
        available = shape_of(x)[1]
        begin, end, _ = slice(begins[0], ends[0]).indices(available)
        return channels([self._in(x, block)], [Piece(0, begin, end - begin)])

    def _shuffle(self, call: Any) -> tuple[Any, int] | None:
        """A channel shuffle: reshape to groups, put these inside their channels, reshape back."""
        inside: Any = self.definitions.get(call.args[0])
        if op_name(inside) != "relax.permute_dims":
            return None
        outside: Any = self.definitions.get(inside.args[0])
        axes = inside.attrs.axes
        if axes is None or [int(axis) for axis in axes] != [0, 2, 1, 3, 4]:
            return None
        if op_name(outside) != "relax.reshape":
            return None
        x = outside.args[0]
        if len(shape_of(x)) != 4 or shape_of(x) != tuple(int(n) for n in call.args[1].values):
            return None
        block = self._block_of(outside)
        if block is None:
            return None
        groups = shape_of(inside.args[0])[1]
        shuffled = channels([self._in(x, block)], [Piece(0, 0, shape_of(x)[1], groups)])
        return shuffled, block

    def _resize(self, call: Any, block: int) -> Any:
        x, size = call.args
        attrs = call.attrs
        if attrs.layout != "NCHW":
            return None
        return relax.op.image.resize2d(
            self._in(x, block),
            size,
            roi=tuple(float(edge) for edge in attrs.roi),
            layout=f"NCHW{block}c",
            method=attrs.method,
            coordinate_transformation_mode=attrs.coordinate_transformation_mode,
            rounding_method=attrs.rounding_method,
            cubic_alpha=attrs.cubic_alpha,
            cubic_exclude=attrs.cubic_exclude,
            extrapolation_value=attrs.extrapolation_value,
            out_dtype=attrs.out_dtype,
        )


def _constant(expression: Any) -> np.ndarray:
    array = value_of(expression)
    assert array is not None
    return array
