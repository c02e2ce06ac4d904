"""Networks in 16 bits of which some layers stay float32: which, why, and what is lost."""

import json
from collections.abc import Collection
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Command
from onnx import TensorProto, numpy_helper
from onnx_models import Graph, by_onnxruntime, saved
from PIL import Image
from quantized_models import MODELS, QDQ, Quantized

import tvm_directconv as dc
from tvm_directconv.deploy.emulated import emulated
from tvm_directconv.errors import ArgumentError, DeviceError
from tvm_directconv.network.compile import import_model
from tvm_directconv.network.manifest import KeptLayer, Mixed, NetworkManifest
from tvm_directconv.network.mixed import _here, _Variants
from tvm_directconv.network.passes.convert_precision import checked_dtype

TYPES = {"bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16}
LAYERS = range(4)


def network(halved: Collection[int] = (), dtype: str = "bf16", large: float = 1) -> onnx.ModelProto:
    """Make a chain of layers, with the rounding of those in 16 bits written into it."""
    g = Graph(x=(1, 8, 6, 5))
    rng = np.random.default_rng(5)

    def rounded(x: str, layers: Collection[int]) -> str:
        if not set(layers) & set(halved):
            return x
        small = g.node("Cast", x, to=TYPES[dtype])
        return str(g.node("Cast", small, to=TensorProto.FLOAT))

    x = rounded("x", [0])
    for layer, spread in zip(LAYERS, (1.0, 1e-3, 2.0, 0.5), strict=True):
        # What all weights have in common is nearly taken away by the bias: the less is left, the
        # more is lost where they are rounded.
        weight = rng.standard_normal((8, 8, 1, 1)) * spread + 1
        operands = [g.constant(weight * (large if layer == 2 else 1)), g.constant(np.full(8, -1.0))]
        operands[0] = rounded(operands[0], [layer])
        x = g.node("Relu", g.node("Conv", x, *operands))
        g.nodes[-2].name = f"layer{layer}"
        x = rounded(x, [layer, layer + 1])
    return g.model(x)


def draws(count: int = 3, seed: int = 2) -> list[dict[str, np.ndarray]]:
    """Return samples."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.random((1, 8, 6, 5)).astype(np.float32)} for _ in range(count)]


def by_reference(halved: Collection[int], dtype: str) -> float:
    """Return the error if these layers are in 16 bits, as ONNX Runtime has it."""
    exact, found = (
        np.stack([by_onnxruntime(network(layers, dtype), [s["x"]])[0] for s in draws()])
        for layers in ((), halved)
    )
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def mixed(model: onnx.ModelProto, folder: Path, **options: Any) -> Mixed:
    """Compile a model, and return what is lost."""
    options = {"dtype": "bf16", "samples": draws(), "check": False, **options}
    return dc.compile_network(saved(model, folder), folder / "n.so", **options).mixed


# --- The type -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("znver4", "bf16"),
        ("sapphirerapids", "bf16"),
        ("neoverse-n2", "bf16"),
        ("cortex-a76", "fp16acc16"),
        ("apple-m1", "fp16acc16"),
    ],
)
def test_mixed_is_the_fastest_type(device: str, dtype: str) -> None:
    assert checked_dtype("mixed", dc.device(device)) == dtype


@pytest.mark.parametrize(
    ("device", "instead"),
    [
        ("cortex-a72", "bf16 or fp16, which halve memory, fp32"),
        ("haswell", "bf16 or fp16, which halve memory, fp32"),
        ("x86-64-v2", "fp32"),
    ],
)
def test_devices_without_a_fast_type(device: str, instead: str) -> None:
    with pytest.raises(DeviceError, match=rf"\(bf16\) or float16 \(fp16\).*: expected {instead}"):
        checked_dtype("mixed", dc.device(device))


def test_a_network_in_the_fastest_type(tmp_path: Path) -> None:
    m = dc.compile_network(
        saved(network(), tmp_path), tmp_path / "n.so", "cortex-a76", dtype="mixed", check=False
    )
    assert set(m.types) == {"float16"}
    assert m.mixed == Mixed()


# --- Which layers -------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "count"), [("bf16", 1), ("fp16", 2)])
def test_the_layers_that_lose_most_are_kept(dtype: str, count: int, tmp_path: Path) -> None:
    own = {layer: by_reference([layer], dtype) for layer in LAYERS}
    order = sorted(LAYERS, key=lambda layer: -own[layer])
    errors = [by_reference(order[kept:], dtype) for kept in range(len(order) + 1)]
    assert all(more > less for more, less in pairwise(errors))
    tolerance = errors[count] * 1.01
    found = mixed(network(), tmp_path, dtype=dtype, tolerance=tolerance)
    assert [layer.layer for layer in found.kept] == [f"layer{n}" for n in order[:count]]
    assert found.error == pytest.approx(errors[count], rel=1e-3)
    assert found.error_without == pytest.approx(errors[0], rel=1e-3)
    alone = [layer.error for layer in found.kept]
    assert alone == pytest.approx([own[n] for n in order[:count]], rel=1e-3)
    assert (found.dtype, found.tolerance, found.count) == (dtype, tolerance, 3)
    assert found.samples == "3 samples of the list of 3"

    # The library is what was measured.
    built = dc.load_network(tmp_path / "n.so")
    assert built.manifest.mixed == found
    types = [layer.workload for layer in built.manifest.layers if layer.workload]
    single = {n for n, text in zip(LAYERS, types, strict=True) if text.startswith("ic")}
    assert single == {*order[:count]}
    exact = np.stack([by_onnxruntime(network(), [s["x"]])[0] for s in draws()])
    lost = np.stack([built.run(**s) for s in draws()]) - exact
    assert np.linalg.norm(lost) / np.linalg.norm(exact) == pytest.approx(found.error, rel=1e-3)


@pytest.mark.parametrize("by_name", [True, False])
def test_layers_kept_in_any_case_are_not_found_again(by_name: bool, tmp_path: Path) -> None:
    worst = max(LAYERS, key=lambda layer: by_reference([layer], "bf16"))
    rest = by_reference({*LAYERS} - {worst}, "bf16")
    keep = [f"layer{worst}" if by_name else worst]
    found = mixed(network(), tmp_path, tolerance=rest * 1.01, keep=keep)
    assert not found.kept
    assert found.error == found.error_without == pytest.approx(rest, rel=1e-3)


def test_numbers_that_become_infinite_are_kept(tmp_path: Path) -> None:
    # So are the sums of the next one.
    found = mixed(network(large=1e5), tmp_path, dtype="fp16", tolerance=0.5)
    assert found.error_without is None
    layers = (KeptLayer(f"layer{n}", "ic8ih6iw5oc8oh6ow5kh1", None) for n in (2, 3))
    assert found.kept == tuple(layers)
    manifest = NetworkManifest.read(tmp_path / "n.so")
    assert manifest.mixed == found
    assert "not finite without 2 layers" in str(found)
    assert "Infinity" not in (tmp_path / "n.so.json").read_text()


def test_no_layer_can_be_in_16_bits(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"no layer can be in bf16.*larger tolerance, or dtype"):
        mixed(network(), tmp_path, tolerance=1e-7)
    assert not (tmp_path / "n.so").exists()


def test_random_samples_and_modules(tmp_path: Path) -> None:
    module = import_model(saved(network(), tmp_path))
    told: list[tuple[int, int]] = []
    m = dc.compile_network(
        module,
        tmp_path / "m.so",
        dtype="bf16",
        tolerance=0.9,
        measuring=lambda done, most: told.append((done, most)),
    )
    assert m.mixed.samples == "4 random samples, as none are given"
    assert 1e-4 < m.mixed.error < 0.9
    assert told == [(0, 9), (1, 9)]


def test_inputs_of_other_types(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 6, 5))
    x = g.node("Cast", "x", to=TensorProto.FLOAT)
    model = g.model(g.node("Conv", x, g.constant(np.full((4, 8, 1, 1), 1 / 3))))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    for dtype in ("bfloat16", "float32"):
        samples = [{"x": s["x"].astype(dtype)} for s in draws()]
        found = mixed(model, tmp_path, dtype="fp16", tolerance=0.5, samples=samples)
        assert 1e-5 < found.error < 1e-3


# --- Sums of halves -----------------------------------------------------------------------------


def test_sums_of_halves_are_rounded_as_on_the_device(tmp_path: Path) -> None:
    g = Graph(x=(1, 96, 5, 4))
    y = g.conv("x", 16, 96, 3, 3, bias=True, pads=[1] * 4)
    model = g.model(g.node("Relu", g.conv(y, 10, 16, 1, 1)))
    path = saved(model, tmp_path)
    x = np.random.default_rng(1).integers(0, 9, (1, 96, 5, 4)).astype(np.float32)
    manifest = dc.compile_network(
        path, tmp_path / "n.so", "cortex-a76", dtype="fp16acc16", check=False
    )
    on_device, _, _ = emulated(
        tmp_path / "n.so",
        manifest,
        "main",
        [x],
        [port.shape for port in manifest.outputs],
        output_types=["float32"],
        scratch_bytes=manifest.arena_bytes,
    )
    here, dtype = _here(dc.device("cortex-a76"), "fp16acc16")
    variants = _Variants(import_model(path), here, dtype, 1, None)
    assert dtype == "fp16"
    (exact,), (found,) = (variants.outputs(halved, [{"x": x}]) for halved in ((), (0, 1)))
    np.testing.assert_array_equal(exact[0], by_onnxruntime(model, [x])[0])
    np.testing.assert_array_equal(found[0], on_device[0])
    # More is lost than where sums are stored only.
    stored = _Variants(variants.module, dc.device("native"), "fp16", 1, None)
    (once,) = stored.outputs((0, 1), [{"x": x}])
    assert np.abs(found - exact).max() > 2 * np.abs(once - exact).max()


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0, -0.1, float("nan"), inf, 1, "0.1", True])
def test_tolerances_that_there_are_not(tolerance: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"tolerance is .*: expected a number above 0 and below"
    ):
        mixed(network(), tmp_path, tolerance=tolerance)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": None}, "no dtype of 16 bits is given.*expected dtype mixed, bf16, fp16 or"),
        ({"dtype": "fp32"}, "no dtype of 16 bits"),
        ({"tolerance": None}, "samples are given, but no tolerance"),
        ({"tolerance": None, "samples": None, "pixels": dc.Pixels(mean=0.5)}, "pixels are given"),
        ({"samples": []}, "the list of 0 has 0 samples of x"),
        ({"samples": [{"y": np.zeros((1, 8, 6, 5))}]}, "sample 0 has 'y': expected 'x' as well"),
        ({"samples": [{"x": np.zeros((1, 8, 6, 6))}]}, "of shape 1x8x6x6: expected 1x8x6x5"),
        ({"samples": [{"x": np.zeros((1, 8, 6, 5), int)}]}, "of type int64"),
        ({"samples": [{"x": np.full((1, 8, 6, 5), np.nan)}]}, "has NaN"),
        ({"samples": "nothing.npz"}, "samples 'nothing.npz' does not exist"),
        ({"keep": ["layer9"]}, "no convolution 'layer9'"),
        ({"keep": [4]}, "no convolution 4 "),
        ({"keep": [True]}, "expected a list of names"),
        ({"keep": range(4)}, "no convolutions or dense layers of float32 that are not kept"),
    ],
)
def test_what_does_not_fit(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=said):
        mixed(network(), tmp_path, **{"tolerance": 0.01, **options})


def test_networks_that_have_nothing_to_convert(tmp_path: Path) -> None:
    g = Graph(x=(1, 8))
    without = g.model(g.node("Relu", "x"))
    q = Quantized(QDQ, np.uint8, 1, 3, 23, 19)
    quantized = q.made(*MODELS["residual"](q))
    for model in (without, quantized):
        for options in ({}, {"tolerance": 0.1}):
            with pytest.raises(ArgumentError, match="dtype is bf16, but the network has no conv"):
                mixed(model, tmp_path, samples=None, **options)


def test_what_this_machine_cannot_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "tvm_directconv.network.mixed.find_device", lambda _: dc.device("x86-64-v2")
    )
    with pytest.raises(DeviceError, match=r"what is lost in bf16 cannot be found here.*--keep"):
        mixed(network(), tmp_path, device="neoverse-n2", tolerance=0.1)


# --- The command line ---------------------------------------------------------------------------


def test_the_command_says_what_is_kept_and_why(run: Command, tmp_path: Path) -> None:
    path = saved(network(), tmp_path)
    np.savez(tmp_path / "s.npz", x=np.stack([s["x"] for s in draws()]))
    tolerance = 0.9 * by_reference(LAYERS, "bf16")
    words = ["compile", str(path), "-o", str(tmp_path / "n.so"), "--no-check", "--dtype", "bf16"]
    words += ["--tolerance", f"{tolerance}", "--samples", str(tmp_path / "s.npz")]
    status, said, _ = run(*words)
    assert status == 0
    kept = dc.load_network(tmp_path / "n.so").manifest.mixed.kept
    assert len(kept) == 1
    assert "bf16: error 0." in said and "without 1 layer that stays float32" in said
    assert "stays float32" in said and f"{kept[0].layer}" in said and f"{kept[0].error:.2g}" in said
    status, said, _ = run(*words, "--keep", kept[0].layer, "--format", "json")
    found = json.loads(said)[0]["mixed"]
    assert not found["kept"] and 0 < found["error"] == found["error_without"] < tolerance


def test_images_are_samples(run: Command, tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 6, 5))
    weight = numpy_helper.from_array(np.full((4, 3, 1, 1), 1 / 3, np.float32), "w")
    g.constants.append(weight)
    path = saved(g.model(g.node("Conv", "x", "w")), tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.new("RGB", (9, 7), (50 + number, 90, 20)).save(tmp_path / f"images/{number}.png")
    words = ["compile", str(path), "-o", str(tmp_path / "n.so"), "--dtype", "bf16", "--no-check"]
    samples = ["--samples", str(tmp_path / "images"), "--mean", "0.4"]
    status, said, _ = run(*words, "--tolerance", "0.5", *samples)
    assert status == 0 and "on 2 samples of 2 files in" in said
    status, _, said = run(*words, *samples)
    assert status == 2 and "no tolerance, which they are for" in said
    for option in (["--tolerance", "0.1"], ["--samples", "s.npz"], ["--mean", "0.5"]):
        status, _, said = run("compile", "ic8oc8ih4kh1", "-o", str(tmp_path / "c.so"), *option)
        assert status == 2 and f"{option[0]} is given: expected a model" in said
