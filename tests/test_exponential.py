"""e^x as arithmetic: its error, its special cases, and that no C library is called for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DEVICES
from onnx_models import Graph, compiled
from tvm import IRModule, te, tirx

from tvm_directconv import ConvWorkload, Epilogue, build, device
from tvm_directconv.deploy.runner import run_library
from tvm_directconv.lowering.pipeline import PIPELINE
from tvm_directconv.schedules.general import schedule_general
from tvm_directconv.toolchain import elf_info, find_toolchain, link_module

# Of each kind of vector one; the others are cross-compiled.
RUN_HERE = ["native", "x86-64-v2", "cortex-a72", "armv7"]
LARGEST = np.log(np.finfo(np.float32).max)
SMALLEST = -125.5 * np.log(2)


def library(name: str, function: Callable[[Any], Any], size: int, folder: Path) -> Path:
    """Compile a function of each element of a vector; its symbol is ``f``."""
    target = device(name)
    x = te.placeholder((size,), name="x")
    y = te.compute(x.shape, lambda *at: function(x(*at)), name="y")
    scheduled = schedule_general(te.create_prim_func([x, y]), target.lanes, 1)
    kernel = scheduled.with_attr({"global_symbol": "f", "target": target.target(1)})
    module = tirx.build(IRModule({"f": kernel}), target.target(1), pipeline=PIPELINE)
    link_module(module, folder / "f.so", find_toolchain(target.triple))
    return folder / "f.so"


def computed(name: str, function: Callable[[Any], Any], x: np.ndarray, folder: Path) -> np.ndarray:
    """Return a function of each element, in float64, computed by the code for a device."""
    target = device(name)
    path = library(name, function, x.size, folder)
    toolchain = find_toolchain(target.triple, target.qemu_cpu)
    (y,) = run_library(path, "f", [x], [x.shape], toolchain).outputs
    return y.astype(np.float64)


def samples(low: float, high: float) -> np.ndarray:
    """Return numbers that lie close."""
    return np.linspace(low, high, 1 << 17, dtype=np.float32)


@pytest.mark.parametrize("name", RUN_HERE)
def test_the_error_is_small(name: str, tmp_path: Path) -> None:
    x = samples(-100, 100)
    inside = (x > SMALLEST) & (x < LARGEST)
    found = computed(name, tirx.exp, x, tmp_path)
    expected = np.exp(x[inside].astype(np.float64))
    assert np.abs(found[inside] / expected - 1).max() < 3e-7
    assert (found[x > LARGEST] == np.inf).all() and (found[x < SMALLEST - 1e-4] == 0).all()


@pytest.mark.parametrize("name", RUN_HERE)
def test_special_cases(name: str, tmp_path: Path) -> None:
    x = np.array([0, -0.0, np.inf, -np.inf, 3e38, -3e38, 1e-40, -89], np.float32)
    found = computed(name, tirx.exp, x, tmp_path)
    np.testing.assert_array_equal(found, [1, 1, np.inf, 0, np.inf, 0, 1, 0])
    assert np.isnan(computed(name, tirx.exp, np.full(8, np.nan, np.float32), tmp_path)).all()


@pytest.mark.parametrize("name", RUN_HERE)
def test_sigmoid(name: str, tmp_path: Path) -> None:
    x = samples(-85, 100)
    expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    assert np.abs(computed(name, tirx.sigmoid, x, tmp_path) / expected - 1).max() < 5e-7
    ends = np.array([np.inf, -np.inf, 3e38, -3e38], np.float32)
    np.testing.assert_array_equal(computed(name, tirx.sigmoid, ends, tmp_path), [1, 0, 1, 0])


@pytest.mark.parametrize("name", DEVICES)
def test_no_library_computes_exponentials(name: str, tmp_path: Path) -> None:
    for function in (tirx.exp, tirx.sigmoid):
        assert "expf" not in elf_info(library(name, function, 64, tmp_path)).undefined
    # It would be found.
    assert "logf" in elf_info(library(name, tirx.log, 64, tmp_path)).undefined


@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_epilogues_call_nothing(activation: str, tmp_path: Path) -> None:
    layer = ConvWorkload.parse("ic16ih13oc24oh13kh3ph1")
    conv = build(layer, epilogue=Epilogue(bias=True, activation=activation))
    assert "expf" not in elf_info(conv.export(tmp_path / "conv.so")).undefined


def test_networks_call_nothing(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 5, 5))
    y = g.node("Sigmoid", g.conv("x", 8, 8, 1, 1))
    found = compiled(g.model(g.node("Softmax", y), g.node("Exp", y)), tmp_path)
    assert found.manifest.layers
    assert "expf" not in elf_info(tmp_path / "model0.so").undefined
