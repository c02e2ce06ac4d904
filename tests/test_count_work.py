"""What is not ours is counted, and said: convolutions and products that general code computes."""

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from onnx import ModelProto
from onnx_models import Graph, saved
from tvm import relax
from tvm.script import relax as R

from tvm_directconv.errors import ModelWarning
from tvm_directconv.network.compile import compile_network
from tvm_directconv.network.manifest import NetworkManifest
from tvm_directconv.network.network import load_network


def compile_saying(model: Any, folder: Path) -> tuple[NetworkManifest, list[str]]:
    """Compile a model; return what its manifest and what warnings say."""
    path = saved(model, folder) if isinstance(model, ModelProto) else model
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manifest = compile_network(path, folder / "a.so", blocking="model", check=False)
    assert load_network(folder / "a.so").manifest == manifest
    said = [str(w.message) for w in caught if issubclass(w.category, ModelWarning)]
    assert len(said) == bool(manifest.unscheduled)
    return manifest, said


def conv(x: tuple[int, ...], weight: tuple[int, ...], kind: str = "Conv", **attributes: Any) -> Any:
    g = Graph(x=x)
    return g.model(g.node(kind, "x", g.integers(*weight), **attributes))


def with_weights_as_input() -> ModelProto:
    g = Graph(x=(1, 8, 9, 9), w=(4, 8, 3, 3))
    return g.model(g.node("Conv", "x", "w"))


def with_computed_weights() -> ModelProto:
    g = Graph(x=(1, 8, 9, 9), w=(4, 8, 3, 3))
    return g.model(g.node("Conv", "x", g.node("Tanh", "w")))


def product(a: tuple[int, ...], b: tuple[int, ...], constant: bool) -> ModelProto:
    g = Graph(x=a) if constant else Graph(x=a, y=b)
    return g.model(g.node("MatMul", "x", g.integers(*b) if constant else "y"))


def einsum() -> ModelProto:
    g = Graph(x=(3, 4))
    return g.model(g.node("Einsum", "x", g.integers(4, 5), equation="ij,jk->ik"))


OVERLAPPING = {"strides": [2, 2], "pads": [1] * 4}
# Models of one operator that is not ours: its name in Relax, multiply-adds, why.
UNSCHEDULED = {
    "three dimensions": (
        conv((1, 4, 5, 6, 7), (3, 4, 3, 3, 3), pads=[1] * 6),
        ("conv3d", 5 * 6 * 7 * 3 * 4 * 27, "three dimensions"),
    ),
    "transposed": (
        conv((1, 8, 5, 6), (8, 4, 3, 3), "ConvTranspose", **OVERLAPPING),
        ("conv2d_transpose", 8 * 5 * 6 * 4 * 9, "of another size than the stride"),
    ),
    "transposed, in groups": (
        conv((1, 8, 5, 6), (8, 2, 2, 2), "ConvTranspose", strides=[2, 2], group=4),
        ("conv2d_transpose", 8 * 5 * 6 * 2 * 4, "groups"),
    ),
    "transposed signals": (
        conv((1, 8, 9), (8, 4, 3), "ConvTranspose", strides=[2]),
        ("conv1d_transpose", 8 * 9 * 4 * 3, "transposed"),
    ),
    "much padding": (
        conv((1, 8, 9, 9), (4, 8, 1, 1), pads=[2] * 4),
        ("conv2d", 13 * 13 * 4 * 8, "padding is (2, 2, 2, 2)"),
    ),
    "weights as input": (with_weights_as_input(), ("conv2d", 7 * 7 * 4 * 8 * 9, "no constants")),
    "computed weights": (
        with_computed_weights(),
        ("conv2d", 7 * 7 * 4 * 8 * 9, "no constants, but computed by tanh"),
    ),
    "two inputs": (product((2, 3, 4), (2, 4, 5), False), ("matmul", 2 * 60, "neither factor")),
    "no matrix": (product((2, 3, 4), (2, 4, 5), True), ("matmul", 2 * 60, "no matrix")),
    "sums of products": (einsum(), ("einsum", 60, "no schedule")),
}


@pytest.mark.parametrize("kind", UNSCHEDULED)
def test_what_is_not_ours_is_said(tmp_path: Path, kind: str) -> None:
    model, (operator, multiply_adds, reason) = UNSCHEDULED[kind]
    manifest, (said,) = compile_saying(model, tmp_path)
    (found,) = manifest.unscheduled
    assert (found.operator, found.count) == (operator, 1)
    assert found.multiply_adds == manifest.multiply_adds == multiply_adds
    assert reason in found.reason and str(found) in said
    assert manifest.unscheduled_share == 1 and said.startswith("100.0% of the model's multiply-add")


OURS = {
    "signals": (conv((1, 8, 9), (4, 8, 3), pads=[1, 1]), 9 * 4 * 8 * 3),
    "narrow groups": (conv((1, 6, 7, 7), (6, 2, 3, 3), group=3), 5 * 5 * 6 * 2 * 9),
    "transposed, apart": (
        conv((1, 8, 5, 6), (8, 4, 2, 2), "ConvTranspose", strides=[2, 2]),
        8 * 5 * 6 * 4 * 4,
    ),
    "dense": (product((3, 4), (4, 5), True), 60),
}


@pytest.mark.parametrize("kind", OURS)
def test_what_is_ours_is_counted_as_the_model_has_it(tmp_path: Path, kind: str) -> None:
    model, multiply_adds = OURS[kind]
    manifest, said = compile_saying(model, tmp_path)
    assert (manifest.multiply_adds, manifest.unscheduled, said) == (multiply_adds, (), [])


def quantised() -> ModelProto:
    """Make a network whose tensors are 8-bit integers between its operators, by QDQ."""
    g = Graph(x=(1, 3, 12, 12))
    zero, scale = g.constant(0, dtype=np.int8), g.constant(0.02)

    def rounded(x: str) -> str:
        return g.node("DequantizeLinear", g.node("QuantizeLinear", x, scale, zero), scale, zero)

    def weights(*shape: int) -> str:
        values = g.constant(np.random.default_rng(0).integers(-9, 9, shape), dtype=np.int8)
        return g.node("DequantizeLinear", values, scale, zero)

    y = g.node("Relu", g.node("Conv", rounded("x"), weights(16, 3, 3, 3), pads=[1] * 4))
    for _ in range(2):
        y = g.node("Relu", g.node("Conv", rounded(y), weights(16, 16, 3, 3), pads=[1] * 4))
    y = g.node("Flatten", g.node("GlobalAveragePool", rounded(y)))
    return g.model(g.node("Gemm", rounded(y), weights(16, 10)))


def test_quantised_networks_do_not_become_slow_in_silence(tmp_path: Path) -> None:
    manifest, said = compile_saying(quantised(), tmp_path)
    assert manifest.multiply_adds == 144 * (16 * 27 + 2 * 16 * 144) + 160
    ours = sum(layer.flops for layer in manifest.layers) // 2
    assert ours + sum(u.multiply_adds for u in manifest.unscheduled) == manifest.multiply_adds
    assert bool(said) == (ours < manifest.multiply_adds)
    assert {u.count for u in manifest.unscheduled if "16x16x12x12" in u.shapes} <= {2}


def test_a_part_that_is_not_ours(run: Command, tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 10, 10))
    y = g.node("Relu", g.conv("x", 16, 8, 3, 3))
    y = g.node("ConvTranspose", y, g.integers(16, 4, 3, 3), strides=[2, 2])
    path = saved(g.model(y), tmp_path)
    status, out, err = run("compile", str(path), "-o", str(tmp_path / "a.so"), "--no-check")
    assert status == 0 and "with 1 convolutions" in out
    assert "warning: 33.3% of the model's multiply-adds are not computed by direct conv" in err
    assert "conv2d_transpose 1x16x8x8 by 16x4x3x3 (it is transposed" in err


def test_many_kinds_are_not_all_listed(tmp_path: Path) -> None:
    g, y = Graph(x=(1, 4, 2, 9, 9)), "x"
    for before, after in pairwise((4, 3, 5, 6, 7, 8, 2)):
        y = g.node("Conv", y, g.integers(after, before, 1, 1, 1))
    manifest, (said,) = compile_saying(g.model(y), tmp_path)
    assert len(manifest.unscheduled) == 6
    assert said.count("conv3d") == 4 and "and 2 more kinds, all in the manifest" in said


def test_attention_and_other_layouts(tmp_path: Path) -> None:
    builder = relax.BlockBuilder()
    shapes = [(1, 5, 2, 8), (1, 7, 2, 8), (1, 7, 2, 6)]
    queries = [relax.Var(n, R.Tensor(s, "float32")) for n, s in zip("qkv", shapes, strict=True)]
    x = relax.Var("x", R.Tensor((1, 6, 6, 4), "float32"))
    weight = relax.const(np.ones((3, 3, 4, 5), np.float32))
    with builder.function("main", [*queries, x]):
        with builder.dataflow():
            a = builder.emit(relax.op.nn.attention(*queries))
            y = relax.op.nn.conv2d(x, weight, data_layout="NHWC", kernel_layout="HWIO")
            out = builder.emit_output(relax.Tuple([a, builder.emit(y)]))
        builder.emit_func_output(out)
    manifest, _ = compile_saying(builder.get(), tmp_path)
    found = {u.operator: (u.multiply_adds, u.reason) for u in manifest.unscheduled}
    assert found == {
        "attention": (2 * 5 * 7 * (8 + 6), "there is no schedule for it"),
        "conv2d": (4 * 4 * 5 * 4 * 9, "there is no schedule for its layout"),
    }
