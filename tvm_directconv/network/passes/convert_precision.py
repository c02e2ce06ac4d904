"""Networks of float32 in numbers of two bytes: what convolutions multiply, and what is stored."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir.expr import Var

from ...errors import ArgumentError, DeviceError, RangeError, did_you_mean
from ...hardware.device import Device
from ...kinds import shown
from ...precision import DTYPES, FLOAT32, MIXED, NumberType, Precision
from ...workload import ConvWorkload
from ..operators import CONV2D, ELEMENTWISE, REDUCED, conv2d, conv_attributes
from ..rewriter import (
    MAIN,
    STORED,
    Rewriter,
    constant,
    dtype_of,
    node_of,
    op_name,
    value_of,
    variables_in,
)
from .dequantize_late import called, chooses, moves

_ASTYPE, _CONCAT = "relax.astype", "relax.concat"
_SINGLE = FLOAT32.pixel.name
_LISTED = 4  # names in a message


def checked_dtype(dtype: object, device: Device) -> str | None:
    """Return what a device computes networks in, which is the fastest type for ``mixed``.

    Raises
    ------
    ArgumentError
        If it is none of :data:`tvm_directconv.precision.DTYPES`, nor ``mixed``, and not None.
    DeviceError
        If the device has no instruction for it.
    """
    if dtype is None:
        return None
    known = (*DTYPES, MIXED)
    if not isinstance(dtype, str) or dtype not in known:
        raise ArgumentError(
            f"dtype is {shown(dtype)}: expected one of {', '.join(known)}"
            f"{did_you_mean(str(dtype), known)}"
        )
    if dtype == MIXED:
        return _fastest(device)
    if not device.rates(DTYPES[dtype]):
        having = [name for name, other in DTYPES.items() if device.rates(other)]
        raise DeviceError(
            f"device {device.name!r} has no instruction for dtype {dtype}: expected "
            f"{' or '.join(having)}, or a device that has one"
        )
    return dtype


def _fastest(device: Device) -> str:
    """Return the fastest type of 16 bits, the first of equals."""
    rates = {
        name: device.peak(precision).flops_per_cycle
        for name, precision in DTYPES.items()
        if device.rates(precision)
    }
    found = max(rates, key=lambda name: rates[name])
    if rates[found] > rates["fp32"]:
        return found
    halving = [name for name in rates if name != "fp32"]
    instead = f"{' or '.join(halving)}, which halve memory, " if halving else ""
    raise DeviceError(
        f"device {device.name!r} has no instruction that multiplies bfloat16 (bf16) or float16 "
        f"(fp16) faster than float32, as dtype {MIXED} wants: expected {instead}fp32, or a device "
        "that has one"
    )


def precision_of(module: tvm.IRModule, device: Device, dtype: str | None) -> Precision:
    """Return what the convolutions of an imported network are computed in.

    If nothing is asked for, that is what its weights are stored in, where the device computes in
    it.
    """
    if dtype is not None:
        return DTYPES[dtype]
    attrs = module[MAIN].attrs
    stored = str(attrs[STORED]) if STORED in attrs else _SINGLE
    found = next(each for each in DTYPES.values() if each.pixel.name == stored)
    return found if device.rates(found) else FLOAT32


def convert_precision(device: Device, dtype: str | None, keep: Collection[str | int] = ()) -> Any:
    """Return the pass that computes convolutions of float32 in another precision.

    Parameters
    ----------
    device : Device
        For which processor.
    dtype : str, optional
        What is asked for, see :func:`precision_of`.
    keep : collection of str or int
        Convolutions and dense layers that stay as they are: the name of the model's node, the place
        among all of them, from 0 on, or the descriptor of the workload. Numbers are places only.

    Raises
    ------
    ArgumentError, DeviceError
        See :func:`checked_dtype`. ArgumentError as well if there is nothing to convert.
    """
    dtype = checked_dtype(dtype, device)

    def transform(module: tvm.IRModule, _context: Any) -> tvm.IRModule:
        precision = precision_of(module, device, dtype)
        if precision != FLOAT32:
            found = ConvertPrecision(module, precision, keep)
            if dtype is not None and not (found.layers or keep):
                raise ArgumentError(
                    f"dtype is {dtype}, but the network has no convolutions or dense layers of "
                    "float32 that it is for: expected some, or no dtype"
                )
            return found.run()
        if keep:
            raise ArgumentError(
                f"{', '.join(map(str, keep))} is to be kept in float32, as everything is: expected "
                f"another dtype, {' or '.join(name for name in DTYPES if name != 'fp32')}"
            )
        return module

    return tvm.transform.module_pass(transform, opt_level=0, name="directconv.ConvertPrecision")


class ConvertPrecision(Rewriter):
    """Compute convolutions in another precision, and store what lies between them in its type.

    A tensor has up to two forms, of float32 and of the type that is stored. Convolutions make and
    want the stored one. What only moves numbers, or chooses among them, takes them as they are
    stored. All else is computed in float32. Its results are rounded where a convolution depends on
    them, unless a single element-wise operator reads them, which is one kernel with it. So what
    follows the last convolutions stays float32.
    """

    def __init__(self, module: Any, precision: Precision, kept: Collection[str | int]) -> None:
        super().__init__(module)
        self._precision = precision
        self._stored = precision.pixel.name
        # From variables of the original to their forms, by type; the first is the one in memory.
        self._forms: dict[Any, dict[str, Any]] = {}
        convolutions = [variable for variable, value in self.bindings if op_name(value) == CONV2D]
        self._convolutions = convolutions
        self._converted = {v for v in convolutions if self._workload(v).precision == FLOAT32}
        self._converted -= self._named(convolutions, kept)
        # What these depend on, without another convolution between.
        self._wanted: set[Any] = set()
        for variable, value in reversed(self.bindings):
            if variable in self._converted or (
                op_name(value) != CONV2D and variable in self._wanted
            ):
                self._wanted |= {read for read in variables_in(value) if _is(read, _SINGLE)}

    @property
    def layers(self) -> dict[int, tuple[str, ConvWorkload]]:
        """Those that are converted, by their places: names of nodes, and what they are before."""
        return {
            place: (self._node(place, variable), self._workload(variable))
            for place, variable in enumerate(self._convolutions)
            if variable in self._converted
        }

    def _node(self, place: int, variable: Any) -> str:
        """Return the name of the model's node, failing that the place."""
        return node_of(self.definitions[variable]) or str(place)

    def _workload(self, variable: Any) -> ConvWorkload:
        return conv_attributes(self.definitions[variable]).workload

    def _named(self, convolutions: Sequence[Any], names: Collection[str | int]) -> set[Any]:
        """Return the convolutions that are meant by names.

        Raises
        ------
        ArgumentError
            If there is none of a name.
        """
        meant: dict[str | int, set[Any]] = defaultdict(set)
        nodes = []
        for number, variable in enumerate(convolutions):
            workload = self._workload(variable)
            converted = replace(workload, dtype=self._precision.name)
            nodes.append(self._node(number, variable))
            names_of: set[str | int] = {
                nodes[-1],
                str(workload),
                str(converted),
                str(number),
                number,
            }
            for name in names_of:
                meant[name].add(variable)
        for unknown in (name for name in names if name not in meant):
            texts = [name for name in meant if isinstance(name, str)]
            listed = ", ".join(nodes[:_LISTED]) + ", ..." * (len(nodes) > _LISTED)
            raise ArgumentError(
                f"there is no convolution {unknown!r} to be kept in float32: expected the name of "
                f"one ({listed}), its place from 0 to {len(nodes) - 1}, or its descriptor"
                f"{did_you_mean(str(unknown), texts, 3)}"
            )
        return {variable for name in names for variable in meant[name]}

    def run(self) -> tvm.IRModule:
        """See :meth:`Rewriter.run`."""
        # Before anything is built, as it may be refused.
        converted = (variable for variable in self._convolutions if variable in self._converted)
        self._rounded = {v: self._constants(self.definitions[v]) for v in converted}
        return super().run()

    def copied(self, expression: Any) -> Any:
        """Return an expression of tensors of the original's types."""
        if isinstance(expression, Var) and _is(expression, _SINGLE):
            return self._in(expression, _SINGLE)
        return super().copied(expression)

    def _in(self, expression: Any, dtype: str) -> Any:
        """Return a form of a tensor of float32."""
        values = value_of(expression)
        if values is not None:
            return constant(values.astype(dtype))
        forms = self._forms.setdefault(expression, {})
        if not forms:
            forms[_SINGLE] = super().copied(expression)
        if dtype in forms:
            return forms[dtype]
        form = self.emit(relax.op.astype(next(iter(forms.values())), dtype))
        if dtype == self._stored:
            forms[dtype] = form
        # Each reader has its own form of float32, so that it need not be stored for several.
        return form

    def _in_memory(self, expression: Any) -> str:
        """Return the type that a tensor has in memory."""
        return next(iter(self._forms.get(expression, {})), dtype_of(expression))

    def visit(self, variable: Any, value: Any) -> Any:
        """See :meth:`Rewriter.visit`."""
        if variable in self._converted:
            found, dtype = self._convolved(variable, value), self._stored
        elif op_name(value) == _ASTYPE and self._keeps(variable, value.args[0]):
            return self._cast(variable, value.args[0])
        elif not _is(variable, _SINGLE):
            return self.copied(value)
        elif (stored := self._as_stored(variable, value)) is not None:
            found, dtype = stored, self._stored
        else:
            found, dtype = self.copied(value), _SINGLE
            if variable in self._wanted and not self._is_fused(variable):
                rounded = relax.op.astype(self.emit(found, like=variable), self._stored)
                found, dtype = rounded, self._stored
        self._forms[variable] = {dtype: self.emit(found, like=variable)}
        return None

    def _is_fused(self, variable: Any) -> bool:
        """Return whether the only reader is an element-wise operator."""
        readers = self.readers[variable]
        return len(set(readers)) == 1 and op_name(self.definitions.get(readers[0])) in ELEMENTWISE

    def _keeps(self, variable: Any, x: Any) -> bool:
        """Return whether a model itself converts to or from the type that is stored."""
        return {dtype_of(variable), dtype_of(x)} == {_SINGLE, self._stored}

    def _cast(self, variable: Any, x: Any) -> Any:
        if _is(x, _SINGLE):
            return self._in(x, self._stored)
        self._forms[variable] = {self._stored: self.copied(x)}
        return None

    def _as_stored(self, variable: Any, call: Any) -> Any:
        """Return a call on numbers as they are stored; None if it is computed in float32."""
        wanted = variable in self._wanted
        if op_name(call) == _CONCAT and isinstance(call.args[0], relax.Tuple):
            parts = list(call.args[0].fields)
        elif moves(call) or chooses(call) or (op_name(call) in REDUCED and wanted):
            parts = [call.args[0]]
        else:
            return None
        if not wanted and any(self._in_memory(part) != self._stored for part in parts):
            return None
        found = [self._in(part, self._stored) for part in parts]
        if op_name(call) == _CONCAT:
            return relax.op.concat(found, int(call.attrs.axis))
        return called(call, [*found, *map(self.copied, call.args[1:])])

    def _convolved(self, variable: Any, call: Any) -> Any:
        operands = [
            self._in(given, self._stored) if rounded is None else rounded
            for given, rounded in zip(call.args, self._rounded[variable], strict=True)
        ]
        attributes = conv_attributes(call)
        workload = replace(attributes.workload, dtype=self._precision.name)
        return conv2d(replace(attributes, workload=workload), *operands, span=call.span)

    def _constants(self, call: Any) -> list[Any]:
        """Return the constants among the operands of a convolution in their types, None for others.

        Raises
        ------
        RangeError
            If one has numbers that become infinite.
        """
        precision = self._precision
        _, weight, *others = call.args
        rounded = [None, self._constant("weight", weight, precision.weight, call)]
        for operand, given in zip(conv_attributes(call).epilogue.asked, others, strict=True):
            by_channel = operand.by_channel
            rounded.append(
                self._constant(operand.name, given, precision.sum, call) if by_channel else None
            )
        return rounded

    def _constant(self, what: str, given: Any, number: NumberType, call: Any) -> Any:
        """Return a constant in another type, rounded to the nearest even."""
        values = value_of(given)
        assert values is not None
        with np.errstate(over="ignore"):
            rounded = values.astype(number.name)
        lost = np.isfinite(values) & ~np.isfinite(rounded.astype(np.float32))
        if lost.any():
            raise RangeError(
                f"the {what} of {node_of(call) or conv_attributes(call).workload} has "
                f"{values[lost][0]:g}, which is infinite in {number}: expected smaller numbers; "
                "keep this convolution in float32 (--keep), or compile for bf16"
            )
        return constant(rounded)


def _is(expression: Any, dtype: str) -> bool:
    """Return whether this is a tensor of a type."""
    return isinstance(expression.ty, relax.TensorType) and dtype_of(expression) == dtype
