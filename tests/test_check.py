"""Every compile checks itself: libraries beside ONNX Runtime, right ones and broken ones."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FOREIGN, Command
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_models import Graph, saved

import tvm_directconv as dc
from tvm_directconv import memory
from tvm_directconv.errors import LibraryError, ModelError, ToolchainError
from tvm_directconv.layout import ChannelLayout, WeightLayout
from tvm_directconv.network import check as checks
from tvm_directconv.network import planning
from tvm_directconv.network.check import Unavailable, relative_error
from tvm_directconv.network.compile import compile_network, import_model
from tvm_directconv.network.manifest import NetworkManifest
from tvm_directconv.network.network import load_network
from tvm_directconv.network.passes import fuse_convolutions


def everything() -> ModelProto:
    """Make a network with what passes change: batch normalisation, groups, residuals, layouts."""
    g = Graph(x=(1, 3, 11, 12))
    y = g.node("Relu", g.batch_norm(g.conv("x", 24, 3, 3, 3, pads=[1] * 4), 24))
    z = g.conv(y, 24, 6, 3, 3, pads=[1, 0, 1, 2], group=4, bias=True)
    y = g.node("Relu", g.node("Add", g.conv(y, 24, 24, 1, 1), z))
    y = g.node("Concat", y, g.node("Tanh", z), axis=1)
    y = g.node("GlobalAveragePool", g.conv(y, 20, 48, 3, 3, bias=True))
    return g.model(g.node("Gemm", g.node("Flatten", y), g.integers(20, 10), g.integers(10)))


OUTPUT = everything().graph.output[0].name


def compile_here(model: ModelProto, folder: Path, **options: Any) -> NetworkManifest:
    return compile_network(saved(model, folder), folder / "a.so", blocking="model", **options)


# --- Right libraries --------------------------------------------------------------------------


def test_what_came_out_is_in_the_manifest(tmp_path: Path) -> None:
    manifest = compile_here(everything(), tmp_path)
    check = manifest.check
    assert check.by.startswith("onnxruntime ") and check.output == manifest.outputs[0].name
    assert 0 < check.error < check.tolerance / 4 and check.tolerance < 1e-5
    assert check.note == ""
    assert load_network(tmp_path / "a.so").manifest == manifest
    assert json.loads((tmp_path / "a.so.json").read_text())["check"]["error"] == check.error
    assert {path.name for path in tmp_path.iterdir()} == {"model0.onnx", "a.so", "a.so.json"}


def test_what_takes_too_much_memory_is_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(compile_here(everything(), tmp_path).memory().values())
    monkeypatch.setattr(memory, "free", lambda: needed)  # Inputs and outputs are there twice.
    (tmp_path / "b").mkdir()
    check = compile_here(everything(), tmp_path / "b").check
    assert not check.by and "bytes of memory, of which" in check.note
    with pytest.raises(ModelError, match=r"cannot be checked: that takes .* are free"):
        compile_here(everything(), tmp_path / "b", check=True)
    monkeypatch.setattr(memory, "free", lambda: 2 * needed)
    assert compile_here(everything(), tmp_path / "b", check=True).check.by


def test_many_threads_are_checked_but_not_measured(run: Command, tmp_path: Path) -> None:
    manifest = compile_here(everything(), tmp_path, threads=100, check=True)
    assert manifest.check.by and not manifest.check.note
    status, _, err = run("profile", str(tmp_path / "a.so"))
    assert status == 2 and "threads is 100, but this process may use" in err


def test_the_command_line_says_what_came_out(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(everything(), tmp_path)
    words = ("compile", "model0.onnx", "-o", "a.so")
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    assert "check: error " in out and "beside onnxruntime" in out and "tolerance" in out
    assert "check: not checked: it was not asked for" in run(*words, "--no-check")[1]
    foreign = run(*words, "--device", FOREIGN)
    assert foreign[0] == 0 and "check: not checked: it is for" in foreign[1]
    assert "--check (check=True) runs it in an emulator" in foreign[1]
    status, out, _ = run(*words, "--device", FOREIGN, "--check")
    assert status == 0 and "check: error " in out
    status, _, err = run("compile", "ic16ih9oc16oh9kh3ph1", "-o", "b.so", "--no-check")
    assert status == 2 and "--no-check is given: expected a model" in err


def test_folders_with_c_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(everything(), tmp_path)
    manifest = compile_network(path, tmp_path / "net", emit="c")
    assert manifest.check.by and (tmp_path / "net" / "Makefile").exists()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "ziglang", None)
    manifest = compile_network(path, tmp_path / "other", emit="c")
    assert "no C compiler" in manifest.check.note and (tmp_path / "other" / "Makefile").exists()
    with pytest.raises(ToolchainError, match="no C compiler"):
        compile_network(path, tmp_path / "third", emit="c", check=True)
    assert not (tmp_path / "third").exists()


def of_types() -> ModelProto:
    """Make a model with inputs and outputs of several types, one of no dimensions."""
    kinds = {"i": TensorProto.INT64, "u": TensorProto.UINT8, "b": TensorProto.BOOL}
    kinds |= {"s": TensorProto.FLOAT, "d": TensorProto.DOUBLE}
    inputs = [
        helper.make_tensor_value_info(name, kind, [] if name == "s" else [2, 5])
        for name, kind in kinds.items()
    ]
    nodes = [
        helper.make_node("Cast", ["i"], ["fi"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["u"], ["fu"], to=TensorProto.FLOAT),
        helper.make_node("Where", ["b", "fi", "fu"], ["w"]),
        helper.make_node("Mul", ["w", "s"], ["y"]),
        helper.make_node("Greater", ["fi", "fu"], ["g"]),
        helper.make_node("Add", ["i", "i"], ["ii"]),
        helper.make_node("Neg", ["d"], ["dd"]),
        helper.make_node("Sqrt", ["s"], ["root"]),
        helper.make_node("Cast", ["w"], ["wi"], to=TensorProto.INT64),
        helper.make_node("Cast", ["d"], ["di"], to=TensorProto.INT64),
        helper.make_node("Cast", ["i"], ["id"], to=TensorProto.DOUBLE),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5]),
        helper.make_tensor_value_info("g", TensorProto.BOOL, [2, 5]),
        helper.make_tensor_value_info("ii", TensorProto.INT64, [2, 5]),
        helper.make_tensor_value_info("dd", TensorProto.DOUBLE, [2, 5]),
        helper.make_tensor_value_info("root", TensorProto.FLOAT, []),
        helper.make_tensor_value_info("wi", TensorProto.INT64, [2, 5]),
        helper.make_tensor_value_info("di", TensorProto.INT64, [2, 5]),
        helper.make_tensor_value_info("id", TensorProto.DOUBLE, [2, 5]),
    ]
    graph = helper.make_graph(nodes, "types", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("device", ["native", FOREIGN, "armv7"])
def test_inputs_and_outputs_of_other_types(tmp_path: Path, device: str) -> None:
    check = compile_here(of_types(), tmp_path, device=device, check=True).check
    assert check.by and check.error <= check.tolerance and check.note == ""


def test_what_is_undefined_for_some_numbers_gets_others(tmp_path: Path) -> None:
    g = Graph(x=(1, 4, 9, 9))
    y = g.node("Add", g.node("Log", "x"), g.node("Sqrt", "x"))
    assert compile_here(g.model(g.conv(y, 8, 4, 3, 3)), tmp_path).check.note == ""


def test_what_is_not_finite_is_compared_in_place(tmp_path: Path) -> None:
    g = Graph(x=(1, 64))
    outputs = [g.node("Log", g.node("Neg", g.node("Abs", "x"))), g.node("Exp", "x")]
    outputs.append(g.node("Div", "x", g.constant(np.zeros(64))))
    check = compile_here(g.model(*outputs), tmp_path).check
    assert check.by and check.note == "some of the outputs are not finite"


def test_a_comparison_that_sees_nothing_says_so(tmp_path: Path) -> None:
    g = Graph(x=(1, 4, 9, 9))
    zeros = g.constant(np.zeros((8, 4, 3, 3)))
    check = compile_here(g.model(g.node("Conv", "x", zeros)), tmp_path).check
    assert "one and the same number throughout" in check.note


def test_indices_of_maxima_that_tie(tmp_path: Path) -> None:
    """All channels are nearly the same: which is the largest, rounding decides."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((1, 8, 3, 3)) * (1 + 1e-6 * rng.standard_normal((24, 8, 3, 3)))
    g = Graph(x=(1, 8, 24, 24))
    y = g.node("Conv", "x", g.constant(weights))
    check = compile_here(g.model(g.node("ArgMax", y, axis=1)), tmp_path).check
    assert check.by and "rounding moves the reference itself by" in check.note


def test_networks_that_amplify_rounding_are_no_mistakes(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 9, 9))
    y = g.conv(g.node("Tanh", "x"), 8, 8, 3, 3)
    check = compile_here(g.model(g.node("Sin", g.node("Mul", y, g.constant(1e7)))), tmp_path).check
    assert check.tolerance > 0.1
    assert "rounding moves the reference itself by" in check.note and "says little" in check.note


# --- Wrong libraries --------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def without_bias(patch: Patch) -> None:
    patch.setattr(fuse_convolutions, "channelwise", lambda v, shape, axis: np.zeros(shape[axis]))


def with_another_activation(patch: Patch) -> None:
    read = fuse_convolutions._Chain.epilogue

    def broken(chain: Any) -> Any:
        epilogue = read(chain)
        return replace(epilogue, activation="relu6") if epilogue.activation == "relu" else epilogue

    patch.setattr(fuse_convolutions._Chain, "epilogue", broken)


def with_padding_swapped(patch: Patch) -> None:
    read = fuse_convolutions.workload_of

    def broken(call: Any) -> Any:
        workload = read(call)
        top, left, bottom, right = workload.padding
        return replace(workload, padding=(bottom, right, top, left))

    patch.setattr(fuse_convolutions, "workload_of", broken)


def with_kernels_upside_down(patch: Patch) -> None:
    pack = WeightLayout.pack
    patch.setattr(WeightLayout, "pack", lambda self, weight: pack(self, weight[:, :, ::-1].copy()))


def with_channels_of_biases_swapped(patch: Patch) -> None:
    pack = ChannelLayout.pack
    patch.setattr(ChannelLayout, "pack", lambda self, values: pack(self, values[::-1].copy()))


def with_tensors_that_overlap(patch: Patch) -> None:
    share = planning._share

    def broken(values: Any) -> int:
        end = share(values)
        for value in values:
            value.placed = 0
        return end

    patch.setattr(planning, "_share", broken)


BREAKS: dict[str, Callable[[Patch], None]] = {
    "a bias is lost": without_bias,
    "an activation is another one": with_another_activation,
    "weights are laid out wrongly": with_kernels_upside_down,
    "biases are laid out wrongly": with_channels_of_biases_swapped,
    "padding is on the other side": with_padding_swapped,
    "intermediates overlap": with_tensors_that_overlap,
}


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model and a library that is right."""
    folder = tmp_path_factory.mktemp("right")
    compile_here(everything(), folder)
    return folder


@pytest.mark.parametrize("mistake", BREAKS)
def test_a_broken_compiler_is_caught(
    mistake: str, right: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in right.iterdir():
        shutil.copy(path, tmp_path)
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    BREAKS[mistake](monkeypatch)
    with pytest.raises(LibraryError) as caught:
        compile_network(tmp_path / "model0.onnx", tmp_path / "a.so", blocking="model")
    said = str(caught.value)
    assert f"its output {OUTPUT!r} has an error of" in said
    assert "expected up to" in said and "--no-check (check=False) keeps the library" in said
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_a_broken_folder_with_c_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(everything(), tmp_path)
    with_tensors_that_overlap(monkeypatch)
    with pytest.raises(LibraryError, match="the library is wrong, and is not kept"):
        compile_network(path, tmp_path / "new", blocking="model", emit="c")
    assert list(tmp_path.iterdir()) == [path]
    compile_network(path, tmp_path / "new", blocking="model", emit="c", check=False)
    assert (tmp_path / "new" / "Makefile").exists()


def test_a_library_that_crashes_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = planning._share
    monkeypatch.setattr(planning, "_share", lambda values: share(values) // 2 // 64 * 64)
    with pytest.raises(LibraryError, match=r"cannot be run, and is not kept: .*killed by SIGSEGV"):
        compile_here(everything(), tmp_path)
    assert not (tmp_path / "a.so").exists()


def test_outputs_of_other_shapes_and_types_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = checks._OnnxReference.runner

    def broken(*arguments: Any) -> Any:
        run = runner(*arguments)
        return lambda inputs: [array.astype(np.float64) for array in run(inputs)]

    monkeypatch.setattr(checks._OnnxReference, "runner", broken)
    with pytest.raises(LibraryError, match="returns float64 of shape"):
        compile_here(everything(), tmp_path)


def test_the_standard_decides_where_the_runtime_does_not_follow_it(tmp_path: Path) -> None:
    g = Graph(x=(1, 2, 28, 3))
    sizes = g.constant([1, 2, 8, 3], dtype=np.int64)
    how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    y = g.node("Resize", "x", "", "", sizes, mode="nearest", **how)
    check = compile_here(g.model(y), tmp_path).check
    # ONNX Runtime finds row 6, 2 / (8 / 28) with rounding, where the standard has 7.
    assert check.by == checks.STANDARD and check.error == 0
    assert "onnxruntime" in check.note and "differs" in check.note


# --- What there is nothing to compare with ----------------------------------------------------


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check = compile_here(everything(), tmp_path).check
    assert str(check).startswith("not checked: onnxruntime cannot be imported")
    assert "pip install onnxruntime" in check.note
    with pytest.raises(ModelError, match="cannot be checked: onnxruntime cannot be imported"):
        compile_here(everything(), tmp_path, check=True)


def test_relax_modules(tmp_path: Path) -> None:
    module = import_model(saved(everything(), tmp_path), None)
    check = compile_network(module, tmp_path / "a.so", blocking="model").check
    assert "nothing to compare a Relax module with" in check.note
    with pytest.raises(ModelError, match="without --check"):
        compile_network(module, tmp_path / "b.so", blocking="model", check=True)
    assert not (tmp_path / "b.so").exists()


def test_a_reference_that_refuses_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("NOT_IMPLEMENTED : no kernel\nfor Conv(22)")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    check = compile_here(everything(), tmp_path).check
    assert "cannot run the model: NOT_IMPLEMENTED : no kernel for Conv(22)" in check.note


def test_a_reference_whose_results_differ_from_run_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    runner = checks._OnnxReference.runner

    def random(*arguments: Any) -> Any:
        run = runner(*arguments)
        return lambda inputs: [array + rng.random(array.shape, "f4") for array in run(inputs)]

    monkeypatch.setattr(checks._OnnxReference, "runner", random)
    check = compile_here(everything(), tmp_path).check
    assert "returns other numbers at each run" in check.note


def test_machines_without_an_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(everything(), tmp_path)
    here = dc.device("native")
    monkeypatch.setattr(checks, "host_lacks", lambda target: "it lacks avx9")
    check = compile_network(path, tmp_path / "a.so", here, blocking="model").check
    assert "it lacks avx9" in check.note and "emulator" not in check.note
    with pytest.raises(ModelError, match=r"cannot be checked: .*it lacks avx9"):
        compile_network(path, tmp_path / "b.so", here, blocking="model", check=True)


# --- Errors -----------------------------------------------------------------------------------


def test_errors_see_one_wrong_number_in_a_million() -> None:
    right = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    wrong = right.copy()
    wrong[77] += 1
    assert relative_error(right, right) == 0
    assert 0.9e-3 < relative_error(wrong, right) < 1.1e-3
    assert relative_error(right * np.float32(1 + 1e-6), right) < 2e-6


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([1.0, np.nan], [1.0, 2.0]),
        ([1.0, 2.0], [1.0, np.nan]),
        ([1.0, np.inf], [1.0, -np.inf]),
        ([1.0, np.inf], [1.0, 2.0]),
        ([1.0], [1.0, 1.0]),
    ],
)
def test_errors_without_bound(found: list[float], expected: list[float]) -> None:
    assert relative_error(np.array(found), np.array(expected)) == np.inf


def test_errors_of_numbers_that_are_not_finite_and_of_none() -> None:
    odd = np.array([np.nan, np.inf, -np.inf, 3.0])
    assert relative_error(odd, odd) == 0
    assert relative_error(np.array([0.5, 0]), np.array([0.0, 0])) == 0.5
    assert relative_error(np.array([True, False]), np.array([True, True])) > 0.1
    assert relative_error(np.zeros((0, 3)), np.zeros((0, 3))) == 0


def test_weights_are_moved_and_sizes_are_not(tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 4, 4))
    g.conv("x", 5, 3, 1, 1)
    y = g.node("Resize", "t0", "", g.constant([1, 1, 2, 2], "scales"), mode="nearest")
    path = saved(g.model(y), tmp_path)
    moved = ModelProto.FromString(checks._moved_onnx(path, np.random.default_rng(0)))
    weights, scales = map(numpy_helper.to_array, moved.graph.initializer)
    assert (scales == [1, 1, 2, 2]).all()
    original = np.round(weights)
    assert 0 < np.abs(weights / original - 1).max() < 1e-5
    assert Unavailable.__doc__


def test_inputs_that_are_constants_in_the_library(tmp_path: Path) -> None:
    g = Graph(x=(1, 4, 9, 9), scale=(1, 1))
    path = saved(g.model(g.node("Mul", g.conv("x", 8, 4, 3, 3), "scale")), tmp_path)
    values = {"scale": 3}
    assert compile_network(path, tmp_path / "a.so", input_values=values).check.by
