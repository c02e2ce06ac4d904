"""Compiled networks: loading, running, wrong calls, other processors, and random networks."""

import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto
from onnx_models import (
    Graph,
    assert_equal,
    assert_like_onnxruntime,
    by_onnxruntime,
    compiled,
    random_inputs,
    saved,
)

import tvm_directconv as dc
from tvm_directconv.deploy.runner import run_library
from tvm_directconv.errors import ArgumentError, DeviceError, LibraryError, ModelError
from tvm_directconv.hardware.target import host_lacks
from tvm_directconv.layout import aligned_zeros
from tvm_directconv.network.compile import compile_network, network_workloads
from tvm_directconv.network.network import Network, load_network
from tvm_directconv.toolchain import elf_info, find_toolchain


def model(batch: int = 1) -> ModelProto:
    """Make a network with everything in it: two inputs, two outputs, whole numbers only."""
    g = Graph(x=(batch, 3, 11, 12), r=(batch, 24, 11, 12))
    y = g.node("Relu", g.batch_norm(g.conv("x", 24, 3, 3, 3, bias=True, pads=[1] * 4), 24))
    z = g.conv(y, 24, 1, 3, 3, pads=[1] * 4, group=24)
    y = g.node("Relu", g.node("Add", g.conv(y, 24, 24, 1, 1), "r"))
    y = g.node("Concat", g.node("MaxPool", y, kernel_shape=[3, 3], pads=[1] * 4), z, axis=1)
    y = g.node("MaxPool", g.conv(y, 12, 48, 1, 1), kernel_shape=[2, 2], strides=[2, 2])
    y = g.conv(y, 16, 12, 3, 3, strides=[2, 2])
    y = g.node("GlobalMaxPool", y)
    flat = g.node("Flatten", y)
    return g.model(g.node("Gemm", flat, g.integers(16, 10), g.integers(10)), y)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("network")


@pytest.fixture(scope="module")
def network(folder: Path) -> Network:
    return compiled(model(), folder)


def library(folder: Path) -> Path:
    return folder / "model0.so"


# --- Running ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_networks_are_exact(tmp_path: Path, threads: int, batch: int) -> None:
    found = assert_like_onnxruntime(model(batch), tmp_path, threads=threads)
    assert found.manifest.threads == threads


def test_large_general_kernels_with_threads(tmp_path: Path) -> None:
    g = Graph(x=(2, 16, 40, 41))
    y = g.node("MaxPool", g.node("Neg", "x"), kernel_shape=[3, 3], strides=[2, 2])
    y = g.node("Softmax", g.node("Concat", y, g.node("Tanh", y), axis=1), axis=1)
    y = g.node("LRN", y, size=5)
    outputs = [y, g.node("ReduceMean", "x", axes=[2, 3]), g.node("Transpose", "x")]
    assert_like_onnxruntime(g.model(*outputs), tmp_path, exact=False, threads=2)


def test_inputs_by_place_and_by_name(network: Network) -> None:
    x, r = random_inputs(network.manifest.inputs)
    expected = by_onnxruntime(model(), [x, r])
    assert_equal(network.run(x, r), expected)
    assert_equal(network.run(r=r, x=x), expected)


def test_inputs_need_not_be_aligned_or_contiguous(network: Network) -> None:
    x, r = random_inputs(network.manifest.inputs)
    expected = network.run(x, r)
    moved = np.zeros(x.size + 1, np.float32)[1:].reshape(x.shape)
    moved[...] = x
    frozen = x.copy()
    frozen.setflags(write=False)
    sliced = np.asarray(np.repeat(x, 2, axis=3))[..., ::2]
    for variant in (moved, frozen, sliced, np.asfortranarray(x)):
        assert_equal(network.run(variant, r), expected)


def test_runs_leave_inputs_and_earlier_outputs_alone(network: Network) -> None:
    x, r = random_inputs(network.manifest.inputs)
    before = x.copy(), r.copy()
    first = network.run(x, r)
    kept = [output.copy() for output in first]
    network.run(-x, r)
    assert_equal((x, r), before)
    assert_equal(first, kept)


def test_a_bound_call_computes_from_what_the_arrays_hold_then(network: Network) -> None:
    arrays = random_inputs(network.manifest.inputs)
    x = aligned_zeros(arrays[0].shape)
    x[...] = arrays[0]
    call, outputs = network.bind(x, arrays[1])
    call()
    assert_equal(tuple(outputs), by_onnxruntime(model(), [x, arrays[1]]))
    x *= 2
    call()
    assert_equal(tuple(outputs), by_onnxruntime(model(), [x, arrays[1]]))


def test_threads_of_the_caller_with_an_arena_each(network: Network, folder: Path) -> None:
    networks = [load_network(library(folder)) for _ in range(3)]
    inputs = [random_inputs(network.manifest.inputs, seed) for seed in range(3)]
    expected = [by_onnxruntime(model(), arrays) for arrays in inputs]
    wrong: list[int] = []
    barrier = threading.Barrier(3)

    def work(number: int) -> None:
        barrier.wait()
        for _ in range(30):
            found = networks[number].run(*inputs[number])
            if not all(map(np.array_equal, found, expected[number])):
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_threads_that_share_a_network_take_turns(
    network: Network, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = load_network(library(folder))
    inputs = random_inputs(network.manifest.inputs)
    inside, most = [], []

    def computing(*operands: Any) -> None:
        inside.append(operands)
        most.append(len(inside))
        time.sleep(0.002)
        inside.pop()

    monkeypatch.setattr(shared, "_main", computing)
    monkeypatch.setattr(shared, "_profile", computing)
    bound = shared.bind(*inputs)[0]
    uses = [bound, lambda: shared.run(*inputs), lambda: shared.profile(*inputs, repeat=2)]
    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(use) for use in uses * 4]:
            done.result()
    assert most == [1] * 16


def test_a_network_can_be_run_within_its_own_run(network: Network) -> None:
    inputs = random_inputs(network.manifest.inputs)
    with network._turns:  # As a signal handler may.
        assert_equal(network.run(*inputs), by_onnxruntime(model(), inputs))


def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not(network: Network) -> None:
    inputs = random_inputs(network.manifest.inputs)
    holding, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with network._turns:
            holding.set()
            leave.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # Ends a child that waits.
        network.run(*inputs)
        os._exit(0)
    leave.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0


def test_profiles_time_every_step(network: Network) -> None:
    inputs = random_inputs(network.manifest.inputs)
    seconds = network.profile(*inputs, repeat=3)
    assert seconds.shape == (3, len(network.manifest.layers))
    assert (seconds > 0).all() and seconds.sum() < 1


def test_the_manifest_describes_the_network(network: Network, folder: Path) -> None:
    found = json.loads(Path(f"{library(folder)}.json").read_text())
    assert (found["kind"], found["device"]) == ("network", dc.device("native").name)
    assert [port["name"] for port in found["inputs"]] == ["x", "r"]
    assert [tuple(port["shape"]) for port in found["outputs"]] == [(1, 10), (1, 16, 1, 1)]
    convolutions = [layer for layer in found["layers"] if layer["workload"]]
    assert len(convolutions) == 6
    assert all(layer["blocking"] and layer["blocking_source"] for layer in convolutions)
    memory = network.manifest.memory()
    assert memory["workspace"] == 0 and memory["inputs"] == 4 * (3 + 24) * 11 * 12
    assert memory["weights"] >= 4 * (24 * 27 + 24 * 9 + 24 * 24 + 48 * 12 + 12 * 16 * 9 + 160)
    assert library(folder).stat().st_size > memory["weights"]
    # The 3x3 convolution of 3 channels, or the depthwise one of 24.
    assert found["im2col_bytes"] == 4 * 24 * 9 * 11 * 12
    assert repr(network).startswith("<Network x: float32 of shape 1x3x11x12, r: ")


def test_the_workloads_of_a_model(tmp_path: Path) -> None:
    g = Graph(x=(1, 8, 9, 9))
    y = g.conv("x", 8, 8, 3, 3, pads=[1] * 4)
    y = g.node("Relu", g.conv(g.node("Relu", y), 8, 8, 3, 3, pads=[1] * 4))
    path = saved(g.model(g.conv(y, 16, 8, 1, 1)), tmp_path)
    found = network_workloads(path)
    assert [w.name for w in found] == [f"{path}:{number}" for number in range(3)]
    assert found[0] == found[1] and found[2].out_channels == 16
    merged = dc.workloads(path)
    assert [(w.name, w.count) for w in merged] == [(f"{path}:0", 2), (f"{path}:2", 1)]


def test_layers_of_a_model_are_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    g = Graph(x=(1, 8, None, 9))
    y = g.node("Relu", g.conv("x", 8, 8, 3, 3, pads=[1] * 4))
    y = g.conv(g.node("Relu", g.conv(y, 8, 8, 3, 3, pads=[1] * 4)), 16, 8, 1, 1)
    shutil.move(saved(g.model(g.conv(y, 8, 16, 1, 1)), tmp_path), "v2.onnx")

    def names(spec: Any) -> list[str]:
        return [w.name for w in dc.workloads(spec, input_shapes={"x": (1, 8, 7, 9)})]

    assert [w.in_height for w in dc.workloads("v2.onnx:3", {"x": (1, 8, 7, 9)})] == [7]
    assert names("v2.onnx") == names("v2.onnx:*") == ["v2.onnx:0", "v2.onnx:2", "v2.onnx:3"]
    assert names(Path("v2.onnx")) == names("v2.onnx")
    # Under its own number, though it is the same convolution as the first.
    assert names("v2.onnx:1") == ["v2.onnx:1"]
    assert names("v2.onnx:[13],alexnet:conv1") == ["v2.onnx:1", "v2.onnx:3", "alexnet:conv1"]
    Path("mine.txt").write_text("v2.onnx:3  # the last\nic3ih8oc4kh3\n")
    assert names("@mine.txt") == ["v2.onnx:3", ""]
    # What names cannot hold, wildcards find again; as they do wherever the name says more.
    for odd in ("a,b.onnx", "c:d.onnx", 'e"#*.onnx', " [f],.onnx", "g\n.onnx", "dir.onnx:1/h.onnx"):
        Path(odd).parent.mkdir(exist_ok=True)
        shutil.copy("v2.onnx", odd)
        (name,) = names(f"{odd}:3")
        assert names(name) == [name]
    assert names("?2.onnx:3") == ["v2.onnx:3"]


def test_wrong_layers_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    g = Graph(x=(1, 8, 9, 9))
    shutil.move(saved(g.model(g.conv("x", 8, 8, 3, 3)), tmp_path), "one.onnx")
    g = Graph(x=(1, 8, 9, 9))
    shutil.move(saved(g.model(g.node("Relu", "x")), tmp_path), "none.onnx")
    for spec, message in {
        "one.onnx:1": "no layer of one.onnx matches '1'; use a layer's name, 0 to 0, a pattern",
        "one.onnx:": "no layer of one.onnx matches ''",
        "none.onnx": "there are no convolutions in none.onnx",
        "none.onnx:0": "there are no convolutions in none.onnx",
        "two.onnx:0": "model 'two.onnx' does not exist",
        "two*.onnx": "model 'two*.onnx' does not exist",
        "two\0.onnx": "does not exist",
    }.items():
        with pytest.raises(dc.DirectConvError, match=re.escape(message)):
            dc.workloads(spec)
    with pytest.raises(ModelError, match="size of input 'y' is given, but no model: expected a fi"):
        dc.workloads("alexnet", input_shapes={"y": (1, 3)})
    with pytest.raises(ModelError, match="there is no input 'y': expected a size of 'x'"):
        dc.workloads("one.onnx", input_shapes={"y": (1, 3)})


# --- What a library is ------------------------------------------------------------------------


def test_nothing_is_allocated(network: Network, folder: Path) -> None:
    manifest = network.manifest
    inputs = random_inputs(manifest.inputs)
    shapes = [*(port.shape for port in manifest.outputs), (manifest.arena_bytes // 4,)]
    toolchain = find_toolchain(dc.device("native").triple)
    report = run_library(library(folder), "main", inputs, shapes, toolchain, repeat=3)
    assert (report.allocations, report.allocated_bytes) == (0, 0)
    assert_equal(tuple(report.outputs[:-1]), by_onnxruntime(model(), inputs))


def test_large_intermediates_are_in_the_arena(tmp_path: Path) -> None:
    g = Graph(x=(1, 300, 9, 9))
    y = g.node("LRN", g.node("Softmax", "x", axis=1), size=5)
    found = assert_like_onnxruntime(g.model(y), tmp_path, exact=False)
    manifest = found.manifest
    inputs = random_inputs(manifest.inputs)
    shapes = [manifest.outputs[0].shape, (manifest.arena_bytes // 4,)]
    toolchain = find_toolchain(dc.device("native").triple)
    report = run_library(tmp_path / "model0.so", "main", inputs, shapes, toolchain)
    assert report.allocations == 0


def test_a_library_asks_for_little(network: Network, folder: Path) -> None:
    needed = {name.split("@")[0] for name in elf_info(library(folder)).undefined}
    allowed = {"TVMFFIErrorSetRaisedFromCStrParts", "clock_gettime"}
    allowed |= {"memset", "memcpy", "memmove", "expf", "tanhf", "powf", "logf", "erff", "sqrtf"}
    weak = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__cxa_finalize"}
    assert needed - weak - {"__gmon_start__", "__stack_chk_fail"} <= allowed
    assert "TVMFFIErrorSetRaisedFromCStrParts" in needed


def runtime_symbols(path: Path) -> set[str]:
    """Return what a library has of TVM's runtime, or wants of it."""
    info = elf_info(path)
    return {name for name in (*info.undefined, *info.defined) if "TVMBackend" in name}


def test_only_libraries_with_threads_know_of_threads(
    network: Network, folder: Path, tmp_path: Path
) -> None:
    assert not runtime_symbols(library(folder))
    compile_network(saved(model(), tmp_path), tmp_path / "a.so", threads=2)
    assert runtime_symbols(tmp_path / "a.so") == {"__TVMBackendParallelLaunch"}


def test_only_two_functions_are_visible(folder: Path, network: Network) -> None:
    defined = {name for name in elf_info(library(folder)).defined if not name.startswith("_")}
    found = {name for name in elf_info(library(folder)).defined if "tvm_ffi" in name}
    assert {"__tvm_ffi_main", "__tvm_ffi_profile"} <= found and not defined


# --- Wrong calls ------------------------------------------------------------------------------

X = (1, 3, 11, 12)
R = (1, 24, 11, 12)


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


WRONG: dict[str, tuple[Callable[[Network], Any], str]] = {
    "too few": (lambda n: n.run(zeros(*X)), "there are 1 inputs: expected x: float32 of shape"),
    "too many": (lambda n: n.run(zeros(*X), zeros(*R), zeros(1)), "there are 3 inputs"),
    "none": (lambda n: n.run(), "there are 0 inputs"),
    "unknown name": (lambda n: n.run(x=zeros(*X), r=zeros(*R), q=zeros(1)), "'q' is unknown"),
    "missing name": (lambda n: n.run(x=zeros(*X)), "'r' is missing: expected x: float32"),
    "both": (lambda n: n.run(zeros(*X), r=zeros(*R)), "by place and by name"),
    "shape": (lambda n: n.run(zeros(1, 3, 11, 13), zeros(*R)), "shape (1, 3, 11, 13): expected"),
    "rank": (lambda n: n.run(zeros(3, 11, 12), zeros(*R)), "'x' is float32 of shape (3, 11, 12)"),
    "doubles": (lambda n: n.run(zeros(*X, dtype=float), zeros(*R)), "'x' is float64 of shape"),
    "no array": (lambda n: n.run([1, 2], zeros(*R)), "'x' is a list: expected a numpy.ndarray"),
    "swapped": (lambda n: n.run(zeros(*R), zeros(*X)), "'x' is float32 of shape (1, 24, 11, 12)"),
    "profiled, too few": (lambda n: n.profile(zeros(*X)), "expected x: float32"),
    "profiled, shape": (lambda n: n.profile(zeros(1), zeros(*R)), "'x' is float32 of shape (1,)"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_calls(network: Network, mistake: str) -> None:
    call, message = WRONG[mistake]
    with pytest.raises(ArgumentError) as caught:
        call(network)
    assert message in str(caught.value)


def test_the_library_itself_refuses_wrong_arguments(network: Network) -> None:
    import tvm_ffi

    def tensors(*arrays: np.ndarray) -> list[Any]:
        return [tvm_ffi.from_dlpack(array) for array in arrays]

    def aligned(*shape: int) -> np.ndarray:
        return aligned_zeros(shape)

    arena = network.manifest.arena_bytes // 4
    good = [aligned(*X), aligned(*R), aligned(1, 10), aligned(1, 16, 1, 1), aligned(arena)]
    network._main(*tensors(*good))
    with pytest.raises(ValueError, match=r"wrong number of arguments: expected x, r, .*arena"):
        network._main(*tensors(*good[:-1]))
    with pytest.raises(ValueError, match=r"wrong number of arguments: .* and seconds"):
        network._profile(*tensors(*good))
    for number, said in enumerate(["input0 x", "input1 r", "output0", "output1", "arena"]):
        for bad in (
            aligned(3),
            good[number].astype(np.float64),
            aligned(*good[number].shape[:-1], good[number].shape[-1] + 1),
            aligned(good[number].size + 1)[1:].reshape(good[number].shape),
        ):
            wrong = [*good]
            wrong[number] = bad
            with pytest.raises(ValueError, match=f"{said}.*aligned to 64 bytes"):
                network._main(*tensors(*wrong))
    for seconds in (np.zeros(3), np.zeros(len(network.manifest.layers), np.float32)):
        with pytest.raises(ValueError, match="seconds of the steps"):
            network._profile(*tensors(*good, seconds))


# --- Wrong files ------------------------------------------------------------------------------


@pytest.fixture
def copies(tmp_path: Path, network: Network, folder: Path) -> Path:
    """Return a library that may be spoilt."""
    for ending in (".so", ".so.json"):
        shutil.copy(library(folder).with_suffix(ending), tmp_path / f"a{ending}")
    return tmp_path / "a.so"


def load_error(path: Path) -> str:
    with pytest.raises(LibraryError) as caught:
        load_network(path)
    return str(caught.value)


def test_a_missing_library(tmp_path: Path) -> None:
    assert "does not exist" in load_error(tmp_path / "none.so")


def test_a_missing_manifest(copies: Path) -> None:
    Path(f"{copies}.json").unlink()
    said = load_error(copies)
    assert "a.so.json" in said and "manifest" in said


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"kind": "network"}'])
def test_a_manifest_that_is_none(copies: Path, content: str) -> None:
    Path(f"{copies}.json").write_text(content)
    assert "a.so.json" in load_error(copies)


@pytest.mark.parametrize("key", ["inputs", "layers", "arena_bytes", "device", "target", "threads"])
@pytest.mark.parametrize("value", [None, "nonsense", 5.5, [7]])
def test_a_manifest_with_nonsense_in_it(copies: Path, key: str, value: Any) -> None:
    path = Path(f"{copies}.json")
    found = json.loads(path.read_text())
    if key in ("device", "arena_bytes", "threads") and value in ("nonsense", 5.5):
        value = {}
    path.write_text(json.dumps({**found, key: value}))
    assert "a.so.json" in load_error(copies)


def test_a_manifest_of_another_format(copies: Path) -> None:
    path = Path(f"{copies}.json")
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    assert "has format 99: expected 1" in load_error(copies)


def test_a_stale_manifest(copies: Path, tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 4, 4))
    compile_network(saved(g.model(g.node("Relu", "x")), tmp_path), tmp_path / "b.so")
    shutil.copy(tmp_path / "b.so.json", f"{copies}.json")
    said = load_error(copies)
    assert "another library" in said and "compile the model again" in said


def test_a_corrupt_library(copies: Path) -> None:
    content = copies.read_bytes()
    copies.write_bytes(content[: len(content) // 2])
    assert "stale" in load_error(copies)


def test_single_convolutions_and_networks_are_loaded_differently(
    copies: Path, tmp_path: Path
) -> None:
    path = dc.build("ic16ih9oc16oh9kh3ph1").export(tmp_path / "conv.so")
    assert "a compiled convolution: expected that of a network; this one is loaded by tvm_dir" in (
        load_error(path)
    )
    with pytest.raises(LibraryError) as caught:
        dc.load(copies)
    said = str(caught.value)
    assert "a.so.json" in said and "network" in said and "load_network" in said


@pytest.mark.parametrize("name", ["a.dll", "a", "a.so.1", "a.o"])
def test_networks_have_one_ending(tmp_path: Path, name: str) -> None:
    with pytest.raises(LibraryError, match="expected a name ending in"):
        compile_network(saved(model(), tmp_path), tmp_path / name)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="folder does not exist"):
        compile_network(saved(model(), tmp_path), tmp_path / "none" / "a.so")


def test_an_unknown_device(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cortex-a27"):
        compile_network(saved(model(), tmp_path), tmp_path / "a.so", "cortex-a27")


# --- Other processors -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cortex-a72", "cortex-a53", "armv7", "x86-64-v4", "x86-64-v2"])
def test_networks_for_other_processors(tmp_path: Path, name: str) -> None:
    target = dc.device(name)
    path = saved(model(), tmp_path)
    manifest = compile_network(path, tmp_path / "a.so", name)
    assert manifest.device == name
    toolchain = find_toolchain(target.triple, target.qemu_cpu)
    assert elf_info(tmp_path / "a.so").machine == toolchain.machine
    if toolchain.machine != find_toolchain(dc.device("native").triple).machine:
        assert "built for" in load_error(tmp_path / "a.so")
    elif host_lacks(manifest.target):
        return
    inputs = random_inputs(manifest.inputs)
    shapes = [*(port.shape for port in manifest.outputs), (manifest.arena_bytes // 4,)]
    report = run_library(tmp_path / "a.so", "main", inputs, shapes, toolchain)
    assert_equal(tuple(report.outputs[:-1]), by_onnxruntime(model(), inputs))
    assert report.allocations == 0


# --- Random networks --------------------------------------------------------------------------

CHANNELS = (1, 3, 5, 8, 12, 16, 24)


@st.composite
def networks(draw: Any) -> ModelProto:
    """Draw a small network of convolutions. Its numbers are whole as long as they can be."""
    batch = draw(st.sampled_from([1, 1, 1, 2]))
    size = draw(st.integers(5, 9)), draw(st.integers(5, 9))
    channels = draw(st.sampled_from(CHANNELS))
    g = Graph(x=(batch, channels, *size))
    # Tensors so far: name, channels, size.
    known = [("x", channels, size)]
    for _ in range(draw(st.integers(2, 6))):
        x, c, (h, w) = draw(st.sampled_from(known[-3:]))
        kind = draw(st.sampled_from(["conv", "conv", "conv", "pool", "concat", "add", "act", "se"]))
        if kind == "conv":
            kernel = draw(st.sampled_from([k for k in (1, 3, 5) if k <= min(h, w)]))
            pad = draw(st.integers(0, kernel // 2))
            stride = draw(st.sampled_from([1, 1, 2]))
            groups = draw(st.sampled_from([1, 1, c] + [n for n in (2, 3, 4) if c % n == 0]))
            out = draw(st.sampled_from([n for n in CHANNELS if n % groups == 0] or [c]))
            attributes = {"pads": [pad] * 4, "strides": [stride] * 2, "group": groups}
            # Small weights, or numbers grow beyond what float32 holds.
            weight = g.integers(out, c // groups, kernel, kernel, most=1)
            bias = [g.integers(out)] if draw(st.booleans()) else []
            y = g.node("Conv", x, weight, *bias, **attributes)
            h, w = (1 + (n + 2 * pad - kernel) // stride for n in (h, w))
            if draw(st.booleans()):
                y = g.batch_norm(y, out)
            c = out
        elif kind == "pool":
            if min(h, w) < 2:
                continue
            pooled = draw(st.sampled_from(["MaxPool", "AveragePool"]))
            stride = draw(st.integers(1, 2))
            y = g.node(pooled, x, kernel_shape=[2, 2], strides=[stride] * 2)
            h, w = (1 + (n - 2) // stride for n in (h, w))
        elif kind in ("concat", "add"):
            others = [n for n in known if n[2] == (h, w) and (kind == "concat" or n[1] == c)]
            other = draw(st.sampled_from(others))
            if kind == "add":
                y = g.node("Add", *((x, other[0]) if draw(st.booleans()) else (other[0], x)))
            else:
                y = g.node("Concat", x, other[0], axis=1)
                c += other[1]
        elif kind == "act":
            y = g.node(draw(st.sampled_from(["Relu", "LeakyRelu", "HardSwish", "Neg", "Tanh"])), x)
        else:
            s = g.node("GlobalAveragePool", x)
            y = g.node("Mul", x, g.node("HardSigmoid", g.conv(s, c, c, 1, 1), alpha=1 / 6))
        known.append((y, c, (h, w)))
    y, c, (h, w) = known[-1]
    outputs = [y] if y != "x" else [g.node("Relu", "x")]
    if draw(st.booleans()):
        pooled = g.node("Flatten", g.node("GlobalAveragePool", y))
        outputs.append(g.node("Gemm", pooled, g.integers(c, 10), g.integers(10)))
    if draw(st.booleans()):
        outputs.append(g.node("Neg", draw(st.sampled_from(known))[0]))
    return g.model(*outputs)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(networks(), st.sampled_from([1, 1, 2]))
def test_random_networks(drawn: ModelProto, threads: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert_like_onnxruntime(drawn, Path(folder), exact=False, threads=threads)
