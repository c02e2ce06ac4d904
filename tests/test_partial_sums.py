"""Long sums over neighbouring elements are sums of parts: exact, accurate, and without memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_models import Graph, assert_like_onnxruntime, compiled, planned

from tvm_directconv import device
from tvm_directconv.deploy.runner import run_library
from tvm_directconv.toolchain import find_toolchain

Build = Callable[[Graph, str], str]


def reduce(kind: str, *axes: int, **attributes: Any) -> Build:
    return lambda g, x: g.node(kind, x, axes=list(axes), **attributes)


def total(*axes: int) -> Build:
    return lambda g, x: g.node("ReduceSum", x, g.constant(axes, dtype=np.int64))


SIZES = [1, 7, 13, 16, 17, 31, 33, 63, 100, 1000, 18900]


@pytest.mark.parametrize("size", SIZES)
def test_sums_and_extremes_are_exact(size: int, tmp_path: Path) -> None:
    g = Graph(x=(2, 3, size))
    outputs = [total(2)(g, "x"), reduce("ReduceMax", 2, keepdims=0)(g, "x")]
    assert_like_onnxruntime(g.model(*outputs, reduce("ReduceMin", 2)(g, "x")), tmp_path)


SHAPES: dict[str, tuple[tuple[int, ...], Build]] = {
    "pixels": ((2, 3, 7, 7), total(2, 3)),
    "pixels, odd": ((1, 5, 11, 13), reduce("ReduceMax", 2, 3)),
    "pixels, all": ((1, 5, 11, 13), total(1, 2, 3)),
    "everything": ((3, 5, 7, 11), total(0, 1, 2, 3)),
    "pool": ((2, 24, 9, 9), lambda g, x: g.node("GlobalMaxPool", g.node("Neg", x))),
    "channels": ((2, 70, 5, 5), total(1)),
    "rows": ((2, 3, 70, 5), total(2)),
    "not neighbours": ((3, 40, 2, 40), total(1, 3)),
    "window": ((1, 2, 40, 40), lambda g, x: g.node("MaxPool", x, kernel_shape=[20, 20])),
    "of products": ((4, 77), lambda g, x: total(1)(g, g.node("Mul", x, x))),
    "of products with a row": ((4, 77), lambda g, x: total(1)(g, g.node("Mul", x, g.integers(77)))),
    "of products with columns": (
        (2, 9, 11),
        lambda g, x: total(1, 2)(g, g.node("Mul", x, g.integers(11))),
    ),
    "then more": ((4, 77), lambda g, x: g.node("Mul", x, total(1)(g, x))),
    "twice": ((40, 77), lambda g, x: total(0, 1)(g, total(1)(g, x))),
    "a product of matrices": (
        (9, 40),
        lambda g, x: g.node("MatMul", x, g.node("Transpose", x, perm=[1, 0])),
    ),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", SHAPES)
def test_shapes(case: str, threads: int, tmp_path: Path) -> None:
    shape, build = SHAPES[case]
    g = Graph(x=shape)
    assert_like_onnxruntime(g.model(build(g, "x")), tmp_path, threads=threads)


def test_large_with_threads(tmp_path: Path) -> None:
    g = Graph(x=(40, 3, 1000))
    y = g.node("Sub", "x", reduce("ReduceMax", 2)(g, "x"))
    assert_like_onnxruntime(g.model(y), tmp_path, threads=2)


# What is most prone to rounding: sums that grow far beyond what is added.
ERRORS: dict[str, tuple[Build, Callable[[np.ndarray], np.ndarray]]] = {
    "Softmax": (
        lambda g, x: g.node("Softmax", x, axis=-1),
        lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    ),
    "ReduceMean": (reduce("ReduceMean", 1), lambda x: x.mean(-1, keepdims=True)),
    "ReduceL2": (reduce("ReduceL2", 1), lambda x: np.linalg.norm(x, axis=-1, keepdims=True)),
}


@pytest.mark.parametrize("size", [1000, 18900, 20000])
@pytest.mark.parametrize("kind", ERRORS)
def test_errors_do_not_pile_up(kind: str, size: int, tmp_path: Path) -> None:
    build, reference = ERRORS[kind]
    g = Graph(x=(2, size))
    network = compiled(g.model(build(g, "x")), tmp_path)
    # All are nearly the same, so that rounding is, too, for long.
    x = np.random.default_rng(0).uniform(0.7, 0.7001, (2, size)).astype(np.float32)
    expected = reference(x.astype(np.float64))
    assert np.abs(network.run(x) / expected - 1).max() < 1e-6 * (1 + size / 5000)


def test_no_memory_is_asked_for(tmp_path: Path) -> None:
    g = Graph(x=(3, 18900))
    sums = [total(1)(g, "x"), reduce("ReduceMax", 1)(g, "x")]
    network = compiled(g.model(g.node("Softmax", "x"), *sums), tmp_path)
    manifest = network.manifest
    shapes = [*(port.shape for port in manifest.outputs), (manifest.arena_bytes // 4,)]
    toolchain = find_toolchain(device("native").triple)
    x = np.zeros((3, 18900), np.float32)
    report = run_library(tmp_path / "model0.so", "main", [x], shapes, toolchain)
    assert report.allocations == 0
    assert manifest.memory()["workspace"] == 0


def in_parts(build: Build, *shape: int, name: str = "native", folder: Path) -> bool:
    g = Graph(x=shape)
    module, _ = planned(g.model(build(g, "x")), folder, name)
    return "_parts" in str(module)


@pytest.mark.parametrize("name", ["x86-64-v2", "x86-64-v3", "x86-64-v4", "cortex-a72", "armv7"])
def test_what_is_summed_up_in_parts(name: str, tmp_path: Path) -> None:
    lanes = device(name).lanes
    for build, shape, expected in [
        (total(1), (3, 2 * lanes), True),
        (total(1), (3, 2 * lanes - 1), False),
        (total(2, 3), (1, 2, 7, 7), True),
        (reduce("ReduceMin", 1), (3, 1000), True),
        # Its neighbours are vectors already.
        (total(1), (1, 1000, 7, 7), False),
        # Its pixels are not neighbours in blocks of channels.
        (lambda g, x: g.node("GlobalAveragePool", g.conv(x, 16, 3, 1, 1)), (1, 3, 9, 9), False),
    ]:
        assert in_parts(build, *shape, name=name, folder=tmp_path) == expected, shape
