"""Steps and memory: no tensor lies where another one still is needed."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx_models import Graph, assert_like_onnxruntime, compiled, planned, random_inputs
from tvm import relax

from tvm_directconv import device
from tvm_directconv.blocking import channel_block
from tvm_directconv.layout import ALIGNMENT
from tvm_directconv.network.program import ARENA, COPY, WEIGHTS, Program, Tensor, packed
from tvm_directconv.network.rewriter import Rewriter, op_name

BLOCK = channel_block(64, device("native"))

# --- An independent look at programs ------------------------------------------------------------


@dataclass(eq=False)
class Atom:
    """A tensor of the network: where steps say that it is, and when they touch it."""

    places: set[tuple[str, int, int]] = field(default_factory=set)
    touched: list[int] = field(default_factory=list)
    inside: "Atom | None" = None


def places(tensor: Tensor) -> tuple[str, int, int]:
    """Return memory, first byte and the byte after the last one."""
    size = np.dtype(tensor.dtype).itemsize
    elements = prod(tensor.shape)
    if tensor.stride:
        elements = (tensor.shape[0] - 1) * tensor.stride + tensor.shape[1]
    return tensor.memory, tensor.offset, tensor.offset + elements * size


def written(program: Program) -> Iterator[tuple[int, Tensor]]:
    """Return (step, tensor) of everything that steps write."""
    for number, step in enumerate(program.steps):
        if step.kernel == COPY:
            yield number, step.operands[1]
            continue
        function = program.kernels[step.kernel]
        for operand, write in zip(step.operands, _writes(function), strict=True):
            if write:
                yield number, operand


def _writes(function: Any) -> list[bool]:
    """Return for each parameter of a kernel whether the kernel stores to it."""
    from tvm.tirx.stmt_functor import post_order_visit

    stored: list[Any] = []

    def visit(node: Any) -> None:
        if type(node).__name__ == "BufferStore":
            stored.append(node.buffer)
        elif type(node).__name__ == "SBlock":
            # A match of buffers or an alias would hide a store.
            assert not node.match_buffers

    post_order_visit(function.body, visit)
    buffers = [function.buffer_map.get(p, p) for p in function.params]
    return [any(buffer.same_as(other) for other in stored) for buffer in buffers]


def lifetimes(module: Any, program: Program) -> list[Atom]:
    """Follow the network's calls along the steps; return its tensors.

    Only the order of steps and their operands' places are taken from the program.
    """
    reader = Rewriter(module)
    values: dict[Any, Any] = {}
    atoms: list[Atom] = []
    step = 0

    def made() -> Atom:
        atoms.append(Atom())
        return atoms[-1]

    def atoms_of(expression: Any) -> list[Any]:
        if isinstance(expression, relax.Tuple):
            return [a for part in expression.fields for a in atoms_of(part)]
        if isinstance(expression, relax.TupleGetItem):
            return [values[expression.tuple_value][expression.index]]
        return values.get(expression, [None]) if _is_variable(expression) else [None]

    def touch(atom: Atom | None, tensor: Tensor) -> None:
        if atom is not None:
            atom.places.add(places(tensor))
            atom.touched.append(step)

    for parameter in reader.function.params:
        values[parameter] = [None]
    for variable, value in reader.bindings:
        name = op_name(value)
        if name == "relax.call_tir":
            arguments = atoms_of(value.args[1])
            count = len(variable.ty.fields) if isinstance(variable.ty, relax.TupleType) else 1
            values[variable] = [made() for _ in range(count)]
            operands = program.steps[step].operands
            assert program.steps[step].kernel == value.args[0].name_hint
            known = [*arguments, *values[variable]]
            known += [made() for _ in operands[len(known) :]]  # Scratch.
            for atom, tensor in zip(known, operands, strict=True):
                touch(atom, tensor)
            step += 1
        elif name == "relax.concat":
            whole = made()
            values[variable] = [whole]
            copies = 0
            while step < len(program.steps) and program.steps[step].kernel == COPY:
                if copies == len(value.args[0].fields):
                    break
                source, target = program.steps[step].operands
                for atom in atoms_of(value.args[0]):
                    if atom is not None and places(source) in atom.places:
                        atom.touched.append(step)
                touch(whole, target)
                copies += 1
                step += 1
            if copies < len(value.args[0].fields):
                for atom in atoms_of(value.args[0]):
                    if atom is not None and atom.inside is None:
                        atom.inside = whole
        elif name == "relax.reshape":
            values[variable] = atoms_of(value.args[0])
        else:
            values[variable] = atoms_of(value)
    for rest in program.steps[step:]:  # Results that could not be computed in place.
        assert rest.kernel == COPY
        source = places(rest.operands[0])
        for atom in atoms:
            if source in atom.places:
                atom.touched.append(step)
        step += 1
    for atom in atoms:  # Who reads a whole reads its parts.
        whole = atom.inside
        while whole is not None:
            atom.touched += whole.touched
            whole.touched += atom.touched
            whole = whole.inside
    return atoms


def _is_variable(expression: Any) -> bool:
    from tvm.ir.expr import Var

    return isinstance(expression, Var)


def related(one: Atom, other: Atom) -> bool:
    """Return whether one tensor is a slice of the other."""
    for inner, outer in ((one, other), (other, one)):
        while inner is not None:
            if inner is outer:
                return True
            inner = inner.inside  # type: ignore[assignment]
    return False


def clashes(atoms: list[Atom]) -> list[tuple[Any, Any]]:
    """Return places of tensors that are needed at the same time and share bytes."""
    found = []
    for number, one in enumerate(atoms):
        for other in atoms[:number]:
            if not one.touched or not other.touched or related(one, other):
                continue
            if min(one.touched) > max(other.touched) or min(other.touched) > max(one.touched):
                continue
            for memory, begin, end in one.places:
                for where, first, last in other.places:
                    if memory == where and begin < last and first < end:
                        found.append(((memory, begin, end), (where, first, last)))
    return found


def assert_sound(module: Any, program: Program) -> None:
    atoms = lifetimes(module, program)
    assert atoms and not clashes(atoms)
    for _, tensor in written(program):
        assert tensor.memory == ARENA or tensor.memory.startswith("output")
    sizes = {ARENA: program.arena_bytes, WEIGHTS: program.weight_bytes}
    sizes |= {f"input{n}": port.nbytes for n, port in enumerate(program.inputs)}
    sizes |= {f"output{n}": port.nbytes for n, port in enumerate(program.outputs)}
    for step in program.steps:
        for tensor in step.operands:
            memory, begin, end = places(tensor)
            assert 0 <= begin <= end <= sizes[memory]
    assert program.arena_bytes % ALIGNMENT == 0
    # Every result is written, to its last byte.
    for number, port in enumerate(program.outputs):
        covered = {places(t)[1:] for _, t in written(program) if t.memory == f"output{number}"}
        end = 0
        for first, last in sorted(covered):
            assert first <= end
            end = max(end, last)
        assert end == port.nbytes


# --- Networks ---------------------------------------------------------------------------------


def residuals(batch: int = 1) -> Any:
    g = Graph(x=(batch, 3, 12, 12))
    y = g.node("Relu", g.conv("x", 16, 3, 3, 3, bias=True, pads=[1] * 4))
    for _ in range(3):
        z = g.node("Relu", g.conv(y, 8, 16, 1, 1, bias=True))
        z = g.node("Relu", g.conv(z, 8, 8, 3, 3, pads=[1] * 4, group=8))
        y = g.node("Relu", g.node("Add", g.conv(z, 16, 8, 1, 1), y))
    return g.model(g.node("Gemm", g.node("Flatten", y), g.integers(16 * 144, 10), g.integers(10)))


def inception(batch: int = 1) -> Any:
    g = Graph(x=(batch, 3, 9, 9))
    y = g.conv("x", 2 * BLOCK, 3, 1, 1)
    for _ in range(2):
        pooled = g.node("MaxPool", y, kernel_shape=[3, 3], pads=[1] * 4)
        parts = [
            g.node("Relu", g.conv(y, BLOCK, 2 * BLOCK, 1, 1)),
            g.conv(g.conv(y, BLOCK, 2 * BLOCK, 1, 1), BLOCK, BLOCK, 3, 3, pads=[1] * 4),
            g.conv(pooled, BLOCK, 2 * BLOCK, 1, 1),
        ]
        y = g.conv(g.node("Concat", *parts, axis=1), 2 * BLOCK, 3 * BLOCK, 1, 1)
    return g.model(y)


def dense(batch: int = 1) -> Any:
    """Make a network whose concatenations are parts of larger ones."""
    g = Graph(x=(batch, BLOCK, 5, 5))
    y = g.conv("x", BLOCK, BLOCK, 1, 1)
    for number in range(1, 5):
        z = g.conv(g.node("Relu", y), BLOCK, number * BLOCK, 1, 1)
        y = g.node("Concat", y, z, axis=1)
    return g.model(y, g.node("Neg", y))


def scratch(batch: int = 1) -> Any:
    g = Graph(x=(batch, 8, 7, 9))
    y = g.node("Softmax", g.conv("x", 300, 8, 1, 1), axis=1)
    y = g.node("LRN", g.node("Relu", y), size=5)
    return g.model(g.node("Softmax", g.node("Reshape", y, g.constant([batch, -1], dtype=np.int64))))


def odd(batch: int = 1) -> Any:
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
    assert_like_onnxruntime(model, tmp_path, exact=name in ("inception", "dense", "residuals"))


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


def test_the_checks_notice_what_shares_bytes(tmp_path: Path) -> None:
    module, program = planned(residuals(), tmp_path)

    def moved(tensor: Tensor) -> Tensor:
        return replace(tensor, offset=0) if tensor.memory == ARENA else tensor

    steps = [replace(s, operands=tuple(map(moved, s.operands))) for s in program.steps]
    assert clashes(lifetimes(module, replace(program, steps=steps)))
    with pytest.raises(AssertionError):
        assert_sound(module, replace(program, steps=steps))
    with pytest.raises(AssertionError):
        assert_sound(module, replace(program, arena_bytes=program.arena_bytes - ALIGNMENT))


@pytest.mark.parametrize("name", ["residuals", "inception", "scratch"])
def test_the_arena_is_smaller_than_all_tensors(tmp_path: Path, name: str) -> None:
    module, program = planned(NETWORKS[name](), tmp_path)
    assert 0 < program.arena_bytes < program.unshared_bytes
    # As small as it can be: what one step touches has to be there at the same time.
    least = 0
    for step in program.steps:
        sizes = {places(t) for t in step.operands if t.memory == ARENA}
        least = max(least, sum(-(-(end - begin) // ALIGNMENT) * ALIGNMENT for _, begin, end in sizes))
    assert least <= program.arena_bytes
    atoms = lifetimes(module, program)
    alive = [
        {p for a in atoms if a.inside is None and min(a.touched) <= n <= max(a.touched) for p in a.places}
        for n in range(len(program.steps))
    ]
    most = max(sum(e - b for m, b, e in now if m == ARENA) for now in alive)
    assert program.arena_bytes <= 1.5 * most


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


def test_equal_weights_are_there_once(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 5))
    weight = g.integers(8, 8, 1, 1)
    y = "x"
    for _ in range(3):
        y = g.node("Conv", y, weight)
    module, program = planned(g.model(y), tmp_path)
    assert [array.size for array in program.weights] == [64]
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


def results(kind: str) -> Any:
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
            n + "",
        ][:2],
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
    module, program = planned(model, tmp_path)
    if any(step.kernel != COPY for step in program.steps):
        assert_sound(module, program)


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
