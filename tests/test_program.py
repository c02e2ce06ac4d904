"""Steps and memory: whoever reads a tensor finds it where it was put."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper
from onnx_models import Graph, assert_like_onnxruntime, compiled, planned, random_inputs
from tvm import relax

from tvm_directconv import device
from tvm_directconv.case import channel_block
from tvm_directconv.emit.program import ARENA, COPY, WEIGHTS, Program, Tensor, packed
from tvm_directconv.layout import ALIGNMENT
from tvm_directconv.network.rewriter import Rewriter, op_name, shape_of, value_of

BLOCK = channel_block(64, device("native"))

# --- An independent look at programs ----------------------------------------------------------


def extent(tensor: Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor and the byte after its last one."""
    elements = prod(tensor.shape)
    if tensor.stride:
        elements = (tensor.shape[0] - 1) * tensor.stride + tensor.shape[1]
    return tensor.offset, tensor.offset + elements * np.dtype(tensor.dtype).itemsize


class Memory:
    """Follows where every byte of a network is, without computing anything.

    Every byte that a kernel writes gets a number. What a kernel reads has to be the bytes that the
    network's own calls say, whatever places the program gives them.
    """

    def __init__(self, module: Any, program: Program) -> None:
        self.program = program
        self.network = Rewriter(module)
        sizes = {ARENA: program.arena_bytes, WEIGHTS: program.weight_bytes}
        sizes |= {f"input{n}": port.nbytes for n, port in enumerate(program.inputs)}
        sizes |= {f"output{n}": port.nbytes for n, port in enumerate(program.outputs)}
        self.bytes = {name: np.full(size, -1) for name, size in sizes.items()}
        self.values: dict[Any, Any] = {}
        self.numbers = 0
        self.step = 0
        self.problems: list[str] = []

    def new(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return numbers for the bytes of a new tensor; the last axis is that of an element."""
        size = np.dtype(dtype).itemsize
        count = prod(shape) * size
        self.numbers += count
        return np.arange(self.numbers - count, self.numbers).reshape(*shape, size)

    def place(self, tensor: Tensor) -> np.ndarray:
        """Return what lies in a tensor's place, row by row."""
        begin, end = extent(tensor)
        memory = self.bytes[tensor.memory]
        if not 0 <= begin <= end <= len(memory):
            self.problems.append(f"step {self.step}: {tensor} is beyond its memory")
            return np.full(prod(tensor.shape) * np.dtype(tensor.dtype).itemsize, -2)
        if not tensor.stride:
            return memory[begin:end]
        size = np.dtype(tensor.dtype).itemsize
        rows, row = tensor.shape[0], tensor.shape[1] * size
        strides = (tensor.stride * size * memory.itemsize, memory.itemsize)
        return np.lib.stride_tricks.as_strided(memory[begin:end], (rows, row), strides)

    def copies(self) -> None:
        """Do what steps do that are no kernels."""
        steps = self.program.steps
        while self.step < len(steps) and steps[self.step].kernel == COPY:
            source, target = steps[self.step].operands
            self.apart([source, target], written=1)
            place = self.place(target)
            place[...] = self.place(source).copy().reshape(place.shape)
            self.step += 1

    def apart(self, operands: list[Tensor], written: int) -> None:
        """Note if one of the last operands, which are written, overlaps another one."""
        for number in range(len(operands) - written, len(operands)):
            tensor = operands[number]
            if tensor.memory != ARENA and not tensor.memory.startswith("output"):
                self.problems.append(f"step {self.step} writes to {tensor}")
            for other in operands[:number]:
                (begin, end), (first, last) = extent(tensor), extent(other)
                if tensor.memory == other.memory and begin < last and first < end:
                    self.problems.append(f"step {self.step}: {tensor} overlaps {other}")

    def read(self, expression: Any) -> Any:
        """Return the numbers of the bytes that make up a value; a list for a tuple."""
        if isinstance(expression, relax.Tuple):
            return [self.read(part) for part in expression.fields]
        if isinstance(expression, relax.TupleGetItem):
            return self.read(expression.tuple_value)[expression.index]
        return (
            self.constant(expression)
            if value_of(expression) is not None
            else self.values[expression]
        )

    def constant(self, expression: Any) -> np.ndarray:
        """Return the numbers of a constant's bytes: those of the first weights that equal it."""
        array = value_of(expression)
        offsets, _ = packed([weight.nbytes for weight in self.program.weights])
        for weight, offset in zip(self.program.weights, offsets, strict=True):
            same = weight.shape == array.shape and weight.dtype == array.dtype
            if same and np.array_equal(weight, array, equal_nan=weight.dtype.kind == "f"):
                found = self.bytes[WEIGHTS][offset : offset + array.nbytes]
                return found.reshape(*array.shape, array.itemsize)
        raise AssertionError("a constant is not among the weights")

    def follow(self) -> list[str]:
        """Return everything that is wrong."""
        for name in self.bytes:
            if name == WEIGHTS or name.startswith("input"):
                self.bytes[name][...] = self.new((len(self.bytes[name]),), "uint8").reshape(-1)
        for number, parameter in enumerate(self.network.function.params):
            size = np.dtype(self.program.inputs[number].dtype).itemsize
            given = self.bytes[f"input{number}"].reshape(*shape_of(parameter), size)
            self.values[parameter] = given.copy()
        for variable, value in self.network.bindings:
            self.values[variable] = self.bound(variable, value)
        self.copies()
        results = self.read(self.network.function.body.body)
        for number, result in enumerate(results if isinstance(results, list) else [results]):
            if not np.array_equal(self.bytes[f"output{number}"], result.reshape(-1)):
                self.problems.append(f"output {number} is wrong")
        if self.step != len(self.program.steps):
            self.problems.append("there are more steps than calls")
        return self.problems

    def bound(self, variable: Any, value: Any) -> Any:
        name = op_name(value)
        if name == "relax.reshape":
            before = self.read(value.args[0])
            return before.reshape(*shape_of(variable), before.shape[-1])
        if name == "relax.concat":
            parts, axis = self.read(value.args[0]), int(value.attrs.axis)
            return np.concatenate(parts, axis if axis >= 0 else axis - 1)
        if name != "relax.call_tir":
            return self.read(value)
        self.copies()
        step = self.program.steps[self.step]
        operands, inputs = list(step.operands), self.read(value.args[1])
        several = isinstance(variable.ty, relax.TupleType)
        types = list(variable.ty.fields) if several else [variable.ty]
        if step.kernel != value.args[0].name_hint:
            self.problems.append(f"step {self.step} is {step.kernel}")
        self.apart(operands, len(operands) - len(inputs))
        for tensor, expected in zip(operands, inputs, strict=False):
            if not np.array_equal(self.place(tensor), expected.reshape(-1)):
                self.problems.append(f"step {self.step} reads something else in {tensor}")
        written = operands[len(inputs) :]
        made = [self.new(tensor.shape, tensor.dtype) for tensor in written]
        for tensor, numbers in zip(written, made, strict=True):
            place = self.place(tensor)
            place[...] = numbers.reshape(place.shape)
        results = made[: len(types)]  # Then scratch.
        self.step += 1
        return results if several else results[0]


def assert_sound(module: Any, program: Program) -> None:
    assert Memory(module, program).follow() == []
    assert program.arena_bytes % ALIGNMENT == 0
    for step in program.steps:
        for tensor in step.operands:
            assert tensor.offset % np.dtype(tensor.dtype).itemsize == 0


# --- Networks ---------------------------------------------------------------------------------


def residuals(batch: int = 1) -> ModelProto:
    g = Graph(x=(batch, 3, 12, 12))
    y = g.node("Relu", g.conv("x", 16, 3, 3, 3, bias=True, pads=[1] * 4))
    for _ in range(3):
        z = g.node("Relu", g.conv(y, 8, 16, 1, 1, bias=True))
        z = g.node("Relu", g.conv(z, 8, 1, 3, 3, pads=[1] * 4, group=8))
        y = g.node("Relu", g.node("Add", g.conv(z, 16, 8, 1, 1), y))
    return g.model(g.node("Gemm", g.node("Flatten", y), g.integers(16 * 144, 10), g.integers(10)))


def inception(batch: int = 1) -> ModelProto:
    g = Graph(x=(batch, 3, 9, 9))
    conv = partial(g.conv, most=1)  # Or sums become too large for float32.
    y = conv("x", 2 * BLOCK, 3, 1, 1)
    for _ in range(2):
        pooled = g.node("MaxPool", y, kernel_shape=[3, 3], pads=[1] * 4)
        parts = [
            g.node("Relu", conv(y, BLOCK, 2 * BLOCK, 1, 1)),
            conv(conv(y, BLOCK, 2 * BLOCK, 1, 1), BLOCK, BLOCK, 3, 3, pads=[1] * 4),
            conv(pooled, BLOCK, 2 * BLOCK, 1, 1),
        ]
        y = conv(g.node("Concat", *parts, axis=1), 2 * BLOCK, 3 * BLOCK, 1, 1)
    return g.model(y)


def dense(batch: int = 1) -> ModelProto:
    """Make a network whose concatenations are parts of larger ones."""
    g = Graph(x=(batch, BLOCK, 5, 5))
    y = g.conv("x", BLOCK, BLOCK, 1, 1)
    for number in range(1, 5):
        z = g.conv(g.node("Relu", y), BLOCK, number * BLOCK, 1, 1)
        y = g.node("Concat", y, z, axis=1)
    return g.model(y, g.node("Neg", y))


def scratch(batch: int = 1) -> ModelProto:
    g = Graph(x=(batch, 8, 7, 9))
    y = g.node("Softmax", g.conv("x", 300, 8, 1, 1), axis=1)
    y = g.node("LRN", g.node("Relu", y), size=5)
    y = g.node("ReduceMax", y, axes=[2], keepdims=0)
    return g.model(g.node("Softmax", y, axis=2))


def odd(batch: int = 1) -> ModelProto:
    g = Graph(x=(batch, 5, 7, 6), z=(batch, 5, 7, 6))
    a = g.conv("x", 12, 5, 1, 1)
    b = g.node("Neg", g.node("Tanh", "z"))
    y = g.node("Concat", a, b, a, "x", g.integers(batch, 4, 7, 6), axis=1)
    y = g.node("Concat", y, g.node("Abs", y), axis=2)
    return g.model(y, g.node("GlobalMaxPool", y), a, g.node("Flatten", b))


NETWORKS = {f.__name__: f for f in (residuals, inception, dense, scratch, odd)}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_tensors_that_are_needed_do_not_share_bytes(tmp_path: Path, name: str, batch: int) -> None:
    model = NETWORKS[name](batch)
    assert_sound(*planned(model, tmp_path))
    assert_like_onnxruntime(model, tmp_path, exact=name in ("inception", "dense"))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_an_arena_holds_before_means_nothing(tmp_path: Path, name: str) -> None:
    network = compiled(NETWORKS[name](), tmp_path)
    inputs = random_inputs(network.manifest.inputs)
    results = []
    for garbage in (0, np.nan, -7):
        network._arena.fill(garbage)
        found = network.run(*inputs)
        results.append(found if isinstance(found, tuple) else (found,))
    for one in results[1:]:
        for first, other in zip(results[0], one, strict=True):
            np.testing.assert_array_equal(first, other)


def test_the_checks_notice_what_is_wrong(tmp_path: Path) -> None:
    module, program = planned(residuals(), tmp_path)

    def problems(change: Callable[[int, Tensor], Tensor]) -> list[str]:
        steps = [
            replace(step, operands=tuple(change(number, tensor) for tensor in step.operands))
            for number, step in enumerate(program.steps)
        ]
        return Memory(module, replace(program, steps=steps)).follow()

    def at(offset: int) -> Callable[[int, Tensor], Tensor]:
        return lambda _, t: replace(t, offset=offset) if t.memory == ARENA else t

    assert problems(lambda _, tensor: tensor) == []
    assert any("overlaps" in problem for problem in problems(at(0)))
    assert any("beyond" in problem for problem in problems(at(program.arena_bytes - 4)))
    for number, step in enumerate(program.steps[1:], 1):  # Each step's first operand moved.
        moved = step.operands[0]
        if moved.memory == ARENA:
            other = replace(moved, offset=0 if moved.offset else ALIGNMENT)
            found = problems(lambda n, t, m=moved, o=other, k=number: o if n == k and t == m else t)
            assert any("reads something else" in problem for problem in found)
    assert problems(lambda _, t: replace(t, memory="input0") if t.memory == ARENA else t)
    fewer = replace(program, steps=program.steps[:-1])
    with pytest.raises((AssertionError, IndexError)):
        assert_sound(module, fewer)


@pytest.mark.parametrize("name", ["residuals", "inception", "scratch"])
def test_the_arena_is_smaller_than_all_tensors(tmp_path: Path, name: str) -> None:
    _, program = planned(NETWORKS[name](), tmp_path)
    assert 0 < program.arena_bytes < program.unshared_bytes
    # What one step touches is there at the same time; these networks need little more.
    least = 0
    for step in program.steps:
        places = {extent(tensor) for tensor in step.operands if tensor.memory == ARENA}
        least = max(least, packed([end - begin for begin, end in places])[1])
    assert least <= program.arena_bytes <= 2 * least


def test_parts_are_computed_where_they_will_lie(tmp_path: Path) -> None:
    _, program = planned(inception(), tmp_path)
    assert COPY not in {step.kernel for step in program.steps}
    _, program = planned(inception(batch=2), tmp_path)
    copies = [step for step in program.steps if step.kernel == COPY]
    assert len(copies) == 6
    for step in copies:
        source, target = step.operands
        assert source.shape == target.shape == (2, prod(source.shape) // 2)
        assert target.stride == 3 * source.shape[1]


def test_parts_of_two_concatenations_are_copied_once(tmp_path: Path) -> None:
    g = Graph(x=(1, BLOCK, 5, 5))
    a, b, c = (g.conv("x", BLOCK, BLOCK, 1, 1) for _ in range(3))
    model = g.model(g.node("Concat", a, b, axis=1), g.node("Concat", c, a, axis=1))
    module, program = planned(model, tmp_path)
    assert_sound(module, program)
    assert sum(step.kernel == COPY for step in program.steps) == 1
    assert_like_onnxruntime(model, tmp_path)


def test_a_part_that_is_there_twice(tmp_path: Path) -> None:
    g = Graph(x=(1, BLOCK, 5, 5))
    a = g.conv("x", BLOCK, BLOCK, 1, 1)
    model = g.model(g.node("Concat", a, a, a, axis=1))
    module, program = planned(model, tmp_path)
    assert_sound(module, program)
    assert sum(step.kernel == COPY for step in program.steps) == 2
    assert_like_onnxruntime(model, tmp_path)


@pytest.mark.parametrize("shape", [(4, 3, 5), (3, 1, 1), (7, 9, 9), (1, 5, 5)], ids=str)
def test_parts_that_begin_anywhere(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Vectors of a kernel may want an alignment that a slice does not have."""
    g = Graph(x=(1, *shape))
    parts = [g.node(kind, "x") for kind in ("Neg", "Abs", "Relu", "Ceil")]
    y = g.node("Concat", *parts, axis=1)
    model = g.model(y, g.node("Softmax", g.node("Concat", *parts[1:], y, axis=1), axis=1))
    assert_sound(*planned(model, tmp_path))
    assert_like_onnxruntime(model, tmp_path, exact=False)


def test_equal_weights_are_there_once(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 5))
    weight = g.integers(8, 8, 1, 1)
    y = "x"
    for _ in range(3):
        y = g.node("Conv", y, weight)
    module, program = planned(g.model(y), tmp_path)
    assert [array.size for array in program.weights] == [8 * channel_block(8, device("native"))]
    assert_sound(module, program)
    assert_like_onnxruntime(g.model(y), tmp_path)


def test_things_are_packed_at_aligned_offsets() -> None:
    assert packed([]) == ([], 0)
    assert packed([1, ALIGNMENT, 0, ALIGNMENT + 1, 5]) == (
        [0, ALIGNMENT, 2 * ALIGNMENT, 2 * ALIGNMENT, 4 * ALIGNMENT],
        5 * ALIGNMENT,
    )


# --- Results ----------------------------------------------------------------------------------


def identity(g: Graph, name: str) -> str:
    return g.node("Identity", name)


def results(kind: str) -> ModelProto:
    g = Graph(x=(1, 4, 3, 5))
    y = g.conv("x", 8, 4, 1, 1)
    n = g.node("Neg", "x")
    outputs = {
        "an input": lambda: [identity(g, "x")],
        "an input and more": lambda: [identity(g, "x"), y, identity(g, "x")],
        "a constant": lambda: [identity(g, g.integers(2, 3)), n],
        "a large constant": lambda: [identity(g, g.integers(50, 30)), n],
        "only a constant": lambda: [identity(g, g.integers(50, 30))],
        "a view": lambda: [g.node("Flatten", n)],
        "a view and the same": lambda: [g.node("Flatten", n), n, g.node("Abs", n)],
        "a view of an input": lambda: [g.node("Flatten", "x")],
        "the same twice": lambda: [n, identity(g, n), identity(g, n)],
        "a convolution twice": lambda: [y, identity(g, y)],
        "a concatenation and its parts": lambda: [
            y,
            g.node("Concat", y, g.conv("x", 8, 4, 1, 1), axis=1),
            n,
        ],
        "a plain concatenation and its parts": lambda: [
            n,
            g.node("Concat", n, g.node("Abs", "x"), n, axis=1),
        ],
        "read afterwards": lambda: [n, g.node("Abs", g.node("Relu", n))],
        "one input of two": lambda: [g.node("Neg", "x")],
        "whole numbers": lambda: [g.node("Cast", n, to=7), g.node("Shape", "x")],
        "truth": lambda: [g.node("Greater", n, g.constant(0)), n],
        "a number": lambda: [g.node("ReduceMax", "x", keepdims=0)],
        "a mean of a view": lambda: [g.node("ReduceMean", g.node("Flatten", y), axes=[1])],
    }[kind]()
    if kind == "one input of two":
        g.inputs["unused"] = helper.make_tensor_value_info("unused", 1, (2, 2))
    return g.model(*outputs)


RESULTS = (
    "an input",
    "an input and more",
    "a constant",
    "a large constant",
    "only a constant",
    "a view",
    "a view and the same",
    "a view of an input",
    "the same twice",
    "a convolution twice",
    "a concatenation and its parts",
    "a plain concatenation and its parts",
    "read afterwards",
    "one input of two",
    "whole numbers",
    "truth",
    "a number",
    "a mean of a view",
)


@pytest.mark.parametrize("kind", RESULTS)
def test_results_that_are_something_else(tmp_path: Path, kind: str) -> None:
    model = results(kind)
    assert_like_onnxruntime(model, tmp_path, exact="mean" not in kind)
    assert_sound(*planned(model, tmp_path))


def test_results_are_not_copied_without_need(tmp_path: Path) -> None:
    for kind, copies in {
        "a view": 0,
        "read afterwards": 0,
        "an input": 1,
        "a view and the same": 1,
        "the same twice": 2,
    }.items():
        _, program = planned(results(kind), tmp_path)
        assert Counter(step.kernel for step in program.steps)[COPY] == copies, kind
