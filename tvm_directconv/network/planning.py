"""From Relax to a program: the steps in order, and a place in memory for every tensor.

There is no interpreter and no allocator: every tensor has its place before the first run. Tensors
that do not live at the same time share places in one arena.
"""

import json
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir.expr import GlobalVar

from ..denormals import FLUSH, flushed
from ..emit.program import (
    ARENA,
    COPY,
    WEIGHTS,
    Port,
    Program,
    Step,
    Tensor,
    Unscheduled,
    packed,
)
from ..errors import ModelError
from ..hardware.device import Device
from ..layout import ALIGNMENT
from .operators import KERNEL, ConvAttributes
from .rewriter import (
    INPUT_NAMES,
    MAIN,
    OUTPUT_NAMES,
    REORDERS,
    SCALES,
    WORK,
    Rewriter,
    check_straight,
    dtype_of,
    op_name,
    shape_of,
    value_of,
)


@dataclass(eq=False)
class _Value:
    """A tensor that is computed, or a part of one."""

    shape: tuple[int, ...]
    dtype: str
    memory: str = ARENA
    parent: "_Value | None" = None
    offset: int = 0
    first: int = -1
    last: int = -1
    placed: int = 0

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def root(self) -> tuple["_Value", int]:
        """Return the tensor that this one lies in, and where in it, in bytes."""
        value, offset = self, 0
        while value.parent is not None:
            value, offset = value.parent, offset + value.offset
        return value, offset


@dataclass
class _Planner:
    """Collects steps and values; places are known only at the end."""

    steps: list[tuple[str, list[tuple[_Value, tuple[int, ...], int]]]] = field(default_factory=list)
    values: list[_Value] = field(default_factory=list)

    def value(self, shape: tuple[int, ...], dtype: str, memory: str = ARENA) -> _Value:
        made = _Value(shape, dtype, memory)
        self.values.append(made)
        return made

    def view(self, parent: _Value, shape: tuple[int, ...], offset: int = 0) -> _Value:
        return _Value(shape, parent.dtype, parent=parent, offset=offset)

    def step(self, kernel: str, operands: list[_Value]) -> None:
        self.steps.append((kernel, [(value, value.shape, 0) for value in operands]))

    def copy(self, source: _Value, target: _Value, rows: int, stride: int) -> None:
        """Copy `rows` rows of `source` to where `target` begins, `stride` elements apart."""
        shape = (rows, prod(source.shape) // rows)
        self.steps.append((COPY, [(source, shape, 0), (target, shape, stride)]))


class _Reader(Rewriter):
    """Reads the calls of a network of kernels."""

    def __init__(self, module: Any, alignment: int) -> None:
        super().__init__(module)
        self._module = module
        self._alignment = alignment
        self.plan = _Planner()
        self.kernels: dict[str, Any] = {}
        self.weights: list[np.ndarray] = []
        self._values: dict[Any, Any] = {}

    def program(self) -> Program:
        inputs = []
        attrs = self.function.attrs
        names = [str(name) for name in attrs[INPUT_NAMES]] if INPUT_NAMES in attrs else []
        scales = json.loads(attrs[SCALES])
        for number, parameter in enumerate(self.function.params):
            shape, dtype = shape_of(parameter), dtype_of(parameter)
            self._values[parameter] = self.plan.value(shape, dtype, f"input{number}")
            name, meaning = names[number] if names else str(parameter.name), scales["inputs"]
            inputs.append(Port(name, shape, dtype, *(meaning[number] or ())))
        for variable, value in self.bindings:
            self._values[variable] = self._read(variable, value)
        results = self._operand(self.function.body.body)
        results = results if isinstance(results, list) else [results]
        names = [str(name) for name in attrs[OUTPUT_NAMES]] if OUTPUT_NAMES in attrs else []
        outputs = [
            Port(
                names[number] if names else f"output{number}",
                value.shape,
                value.dtype,
                *(scales["outputs"][number] or ()),
            )
            for number, value in enumerate(results)
        ]
        for number, value in enumerate(results):
            self._deliver(value, f"output{number}")
        return self._placed(inputs, outputs)

    def _operand(self, expression: Any) -> Any:
        """Return the value of an expression, a list for a tuple."""
        if isinstance(expression, relax.Tuple):
            return [self._operand(item) for item in expression.fields]
        if isinstance(expression, relax.TupleGetItem):
            return self._operand(expression.tuple_value)[expression.index]
        array = value_of(expression)
        if array is None:
            return self._values[expression]
        for number, known in enumerate(self.weights):
            if known.dtype == array.dtype and np.array_equal(known, array):
                return self._weight(number)
        self.weights.append(array)
        return self._weight(len(self.weights) - 1)

    def _weight(self, number: int) -> _Value:
        array = self.weights[number]
        return _Value(array.shape, str(array.dtype), memory=f"{WEIGHTS}{number}")

    def _read(self, variable: Any, expression: Any) -> Any:
        name = op_name(expression)
        if name == "relax.call_tir":
            return self._kernel(variable, expression)
        if name == "relax.reshape":
            return self.plan.view(self._operand(expression.args[0]), shape_of(variable))
        if name == "relax.concat":
            return self._concat(variable, expression)
        if name:
            raise ModelError(
                f"the network has a {name.removeprefix('relax.')}, which there is no kernel for: "
                "expected operators that TVM can legalize"
            )
        check_straight(expression)
        return self._operand(expression)

    def _kernel(self, variable: Any, call: Any) -> Any:
        function, arguments = call.args[:2]
        assert isinstance(function, GlobalVar)
        name = str(function.name_hint)
        self.kernels[name] = self._module[function]
        types = variable.ty.fields if isinstance(variable.ty, relax.TupleType) else [variable.ty]
        results = [self.plan.value(tuple(int(n) for n in ty.shape), str(ty.dtype)) for ty in types]
        operands = [*self._operand(arguments), *results]
        scratch = [
            self.plan.value(tuple(int(n) for n in buffer.shape), str(buffer.dtype))
            for buffer in self.kernels[name].params[len(operands) :]
        ]
        self.plan.step(name, [*operands, *scratch])
        return results if isinstance(variable.ty, relax.TupleType) else results[0]

    def _concat(self, variable: Any, call: Any) -> _Value:
        """Let parts be computed where they will lie, and copy those for which that cannot be."""
        parts = self._operand(call.args[0])
        shape, axis = shape_of(variable), int(call.attrs.axis)
        axis %= len(shape)
        whole = self.plan.value(shape, dtype_of(variable))
        rows, size = prod(shape[:axis]), np.dtype(whole.dtype).itemsize
        begin = 0
        for part in parts:
            root, _ = part.root()
            if (
                rows == 1
                and root.memory == ARENA
                and root.nbytes == part.nbytes
                and root is not whole
                and begin * size % self._alignment == 0
            ):
                root.parent, root.offset = whole, begin * size
                self.plan.values.remove(root)
            else:
                target = self.plan.view(whole, part.shape, begin * size)
                self.plan.copy(part, target, rows, prod(shape[axis:]))
            begin += prod(part.shape[axis:])
        return whole

    def _deliver(self, value: _Value, memory: str) -> None:
        """Let a result be computed where the caller wants it, or copy it there."""
        root, _ = value.root()
        if root.memory == ARENA and root.nbytes == value.nbytes:
            root.memory = memory
        else:
            self.plan.copy(value, self.plan.value(value.shape, value.dtype, memory), 1, 0)

    def _placed(self, inputs: Any, outputs: Any) -> Program:
        plan = self.plan
        for number, (_, operands) in enumerate(plan.steps):
            for value, _, _ in operands:
                root, _ = value.root()
                root.first = number if root.first < 0 else root.first
                root.last = number
        sharing = [v for v in plan.values if v.memory == ARENA and v.first >= 0]
        arena_bytes = _share(sharing)
        weight_offsets, _ = packed([array.nbytes for array in self.weights])

        def tensor(value: _Value, shape: tuple[int, ...], stride: int) -> Tensor:
            root, offset = value.root()
            memory = root.memory
            if memory.startswith(WEIGHTS):
                memory, offset = WEIGHTS, offset + weight_offsets[int(memory[len(WEIGHTS) :])]
            return Tensor(memory, offset + root.placed, shape, value.dtype, stride)

        work = json.loads(self.function.attrs[WORK])
        steps = [
            Step(kernel, tuple(tensor(*operand) for operand in operands))
            for kernel, operands in plan.steps
        ]
        return Program(
            inputs,
            outputs,
            steps,
            self.kernels,
            self.weights,
            arena_bytes,
            packed([value.nbytes for value in sharing])[1],
            int(self.function.attrs[REORDERS]) if REORDERS in self.function.attrs else 0,
            work["conversions"],
            work["multiply_adds"],
            tuple(Unscheduled(**entry) for entry in work["unscheduled"]),
        )


def _share(values: list[_Value]) -> int:
    """Give places in one arena, the largest first, each in the best gap; return its size."""
    placed: list[_Value] = []
    end = ALIGNMENT  # So that there always is an arena to pass on.
    for value in sorted(values, key=lambda v: -v.nbytes):
        size = -(-value.nbytes // ALIGNMENT) * ALIGNMENT
        beside = sorted(
            (other for other in placed if other.first <= value.last and value.first <= other.last),
            key=lambda v: v.placed,
        )
        best, gap, cursor = None, 0, 0
        for other in beside:
            room = other.placed - cursor
            if room >= size and (best is None or room < gap):
                best, gap = cursor, room
            cursor = max(cursor, other.placed + -(-other.nbytes // ALIGNMENT) * ALIGNMENT)
        value.placed = cursor if best is None else best
        placed.append(value)
        end = max(end, value.placed + size)
    return end


def program_of(module: Any, device: Device, denormals: str = FLUSH) -> Program:
    """Return the program of a network of scheduled kernels.

    Parameters
    ----------
    module : tvm.IRModule
        What the pipeline of :mod:`tvm_directconv.network.pipeline` returns.
    device : Device
        What it was scheduled for.
    denormals : str
        What becomes of those among its constants; see :mod:`tvm_directconv.denormals`.
    """
    assert MAIN in {variable.name_hint for variable in module.functions}
    # Kernels read and write whole vectors, where these begin.
    vector = 4 * device.lanes
    program = _Reader(module, vector).program()
    return replace(program, weights=[flushed(array, denormals) for array in program.weights])


def conv_attributes_of(kernel: Any) -> ConvAttributes | None:
    """Return what a kernel convolves and how, None if it is no convolution."""
    return ConvAttributes.from_json(kernel.attrs[KERNEL]) if KERNEL in kernel.attrs else None
