"""Indices with quotients and remainders of loop variables: what is read is what NumPy reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from onnx_models import Graph, assert_like_onnxruntime
from tvm import IRModule, te, tirx

from tvm_directconv import device
from tvm_directconv.deploy.runner import run_library
from tvm_directconv.layout import aligned_zeros
from tvm_directconv.lowering import pipeline
from tvm_directconv.lowering.floats import hide_masks
from tvm_directconv.lowering.pipeline import PIPELINE, lowered
from tvm_directconv.schedules.general import schedule_general
from tvm_directconv.toolchain import find_toolchain, link_module

# One of each width of vectors that runs here.
RUN_HERE = [
    name
    for name in ("x86-64-v2", "x86-64-v3", "x86-64-v4", "cortex-a72")
    if device(name).is_host_runnable
]
EMULATED = ["cortex-a72", "armv7"]


@dataclass(frozen=True)
class Term:
    """A loop variable, divided, of which the remainder is taken, multiplied."""

    loop: int
    divisor: int = 1
    modulus: int = 0
    factor: int = 1

    def value(self, at: Sequence[Any]) -> Any:
        quotient = at[self.loop] // self.divisor if self.divisor > 1 else at[self.loop]
        return (quotient % self.modulus if self.modulus else quotient) * self.factor


@dataclass(frozen=True)
class Case:
    """Elements of a vector, read at places that are sums of terms."""

    shape: tuple[int, ...]
    terms: tuple[Term, ...]

    def index(self, at: Sequence[Any]) -> Any:
        return sum((term.value(at) for term in self.terms[1:]), self.terms[0].value(at))

    def expected(self) -> np.ndarray:
        return np.broadcast_to(self.index(np.indices(self.shape)), self.shape).astype(np.float32)

    def function(self, name: str, target: Any, lanes: int) -> Any:
        x = te.placeholder((int(self.expected().max()) + 1,), name="x")
        y = te.compute(self.shape, lambda *at: x[self.index(at)], name="y")
        scheduled = schedule_general(te.create_prim_func([x, y]), lanes, 1)
        return scheduled.with_attr({"global_symbol": name, "target": target})


# What LLVM reads beside the vector, left alone.
KNOWN = [
    Case((30, 64), (Term(0, modulus=3), Term(1, modulus=4))),
    Case((30, 64), (Term(0, modulus=5), Term(1, modulus=8))),
    Case((18, 16, 5), (Term(0, modulus=3, factor=20), Term(1, modulus=4, factor=5), Term(2))),
    Case((10, 16, 5), (Term(0, modulus=5, factor=20), Term(1, modulus=4, factor=5), Term(2))),
    Case(
        (15, 24, 17),
        (Term(2, modulus=12, factor=3), Term(0, 7, 16, 16), Term(1, modulus=4, factor=3)),
    ),
    Case((7, 64), (Term(1, modulus=16), Term(1, modulus=4, factor=16), Term(0, modulus=3))),
]
SIZES = [1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 24, 30, 31, 32, 33, 64]


def drawn(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    found: list[Case] = []
    while len(found) < count:
        shape = tuple(int(n) for n in rng.choice(SIZES, rng.integers(1, 5)))
        if not 4 <= prod(shape) <= 20000:
            continue
        loops = [*rng.permutation(len(shape)), *rng.integers(0, len(shape), rng.integers(0, 3))]
        terms = [
            Term(
                int(loop),
                int(rng.choice([1, 1, 2, 3, 4, 8])),
                int(rng.choice([0, 2, 3, 4, 5, 8, 12, 16, 32])),
                int(rng.choice([1, 1, 2, 3, 4, 5, 8, 16, 20])),
            )
            for loop in loops
        ]
        found.append(Case(shape, tuple(terms)))
    return found


def compiled(cases: Sequence[Case], name: str) -> Any:
    """Compile cases for a device, as functions f0, f1, ..."""
    spec = device(name)
    target = spec.target(1)
    functions = {
        f"f{n}": case.function(f"f{n}", target, spec.lanes) for n, case in enumerate(cases)
    }
    return tirx.build(IRModule(functions), target, pipeline=PIPELINE)


def wrong(cases: Sequence[Case], run: Callable[[int, np.ndarray], np.ndarray]) -> list[Case]:
    """Return the cases of which an element is not that of NumPy."""
    found = []
    for number, case in enumerate(cases):
        expected = case.expected()
        x = aligned_zeros((int(expected.max()) + 1,))
        x[:] = np.arange(x.size)
        if not np.array_equal(run(number, x), expected):
            found.append(case)
    return found


def wrong_here(cases: Sequence[Case], name: str) -> list[Case]:
    module = compiled(cases, name)

    def run(number: int, x: np.ndarray) -> np.ndarray:
        y = aligned_zeros(cases[number].shape)
        module[f"f{number}"](tvm_ffi.from_dlpack(x), tvm_ffi.from_dlpack(y))
        return y

    return wrong(cases, run)


@pytest.mark.parametrize("name", RUN_HERE)
def test_what_is_read_is_what_numpy_reads(name: str) -> None:
    assert not wrong_here([*KNOWN, *drawn(1, 24)], name)


@pytest.mark.parametrize("name", EMULATED)
def test_on_arm(name: str, tmp_path: Path) -> None:
    cases = [*KNOWN[:3], *drawn(2, 5)]
    toolchain = find_toolchain(device(name).triple, device(name).qemu_cpu)
    path = tmp_path / "f.so"
    link_module(compiled(cases, name), path, toolchain)

    def run(number: int, x: np.ndarray) -> np.ndarray:
        (y,) = run_library(path, f"f{number}", [x], [cases[number].shape], toolchain).outputs
        return y

    assert not wrong(cases, run)


def test_llvm_still_reads_beside_the_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, LLVM is mended and the pass can go."""
    passes = lowered()
    assert hide_masks in passes
    monkeypatch.setattr(pipeline, "lowered", lambda: [p for p in passes if p is not hide_masks])
    assert wrong_here(KNOWN, RUN_HERE[-1])


@pytest.mark.parametrize("repeats", [(1, 6, 4, 1), (2, 5, 8, 3), (3, 4, 2, 16)])
def test_tile(repeats: tuple[int, ...], tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 4, 5))
    y = g.node("Tile", "x", g.constant(repeats, dtype=np.int64))
    assert_like_onnxruntime(g.model(y), tmp_path)


def test_remainders_are_those_of_floor_division() -> None:
    """Of negative numbers, too: `n % 4` is in 0 to 3."""
    x = te.placeholder((64,), "int32", name="x")
    y = te.compute((64,), lambda i: tirx.floormod(x[i], 8), name="y")
    target = device("native").target(1)
    function = schedule_general(te.create_prim_func([x, y]), device("native").lanes, 1)
    function = function.with_attr({"global_symbol": "f", "target": target})
    module = tirx.build(IRModule({"f": function}), target, pipeline=PIPELINE)
    given = np.arange(-32, 32, dtype=np.int32)
    found = tvm.runtime.tensor(np.zeros(64, np.int32))
    module["f"](tvm.runtime.tensor(given), found)
    np.testing.assert_array_equal(found.numpy(), given % 8)
