"""What is called wrongly gets an error that names the value, what was expected and what to do."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FOREIGN, change_manifest
from onnx import ModelProto
from onnx_models import Graph, saved

import tvm_directconv as dc
from tvm_directconv.conv_manifest import ConvManifest
from tvm_directconv.errors import (
    ArgumentError,
    BlockingError,
    DeviceError,
    DirectConvError,
    LibraryError,
    ModelError,
    ScheduleError,
    ToolchainError,
    WorkloadError,
)
from tvm_directconv.layout import ALIGNMENT, aligned_zeros

SMALL = "ic8ih7oc16oh7kh3ph1"


@pytest.fixture(scope="module")
def conv() -> dc.CompiledConv:
    return dc.build(SMALL)


@pytest.fixture(scope="module")
def arrays(conv: dc.CompiledConv) -> tuple[np.ndarray, np.ndarray]:
    x, weight = dc.random_tensors(conv.workload, seed=1)
    return conv.pack_input(x), conv.pack_weight(weight)


def shifted(array: np.ndarray) -> np.ndarray:
    """Copy an array to four bytes behind an aligned address."""
    room = aligned_zeros((array.size + ALIGNMENT // 4,)).ravel()[1 : 1 + array.size]
    room[...] = array.ravel()
    return room.reshape(array.shape)


def frozen(array: np.ndarray) -> np.ndarray:
    copy = aligned_zeros(array.shape)
    copy.flags.writeable = False
    return copy


# --- Descriptions: what is wrong, in a fragment of the message

BUILDS: list[tuple[dict[str, Any], type[DirectConvError], str]] = [
    ({"workload": "ic8ih7oc16kx3"}, WorkloadError, "kx"),
    ({"workload": "ic8ih7oc16"}, WorkloadError, "kh"),
    ({"workload": "ic0ih7oc16kh3"}, WorkloadError, "ic"),
    ({"workload": "ic8ih2oc16kh3"}, WorkloadError, "kernel"),
    ({"workload": "id8ic8ih7oc16kh3"}, WorkloadError, "2-D"),
    ({"workload": SMALL, "device": "cortex-a27"}, DeviceError, "cortex-a27"),
    ({"workload": SMALL, "device": "llvm"}, DeviceError, "SSE"),
    ({"workload": SMALL, "device": "llvm -mcpu=znver44"}, DeviceError, "znver44"),
    ({"workload": SMALL, "device": "generic"}, DeviceError, "abstract"),
    ({"workload": SMALL, "device": "none.toml"}, DeviceError, "none.toml"),
    ({"workload": SMALL, "threads": 0}, BlockingError, "threads is 0"),
    (
        {"workload": SMALL, "threads": 10**20},
        BlockingError,
        "expected a whole number from 1 to 1024",
    ),
    ({"workload": SMALL, "threads": True}, BlockingError, "threads is True"),
    ({"workload": SMALL, "input_layout": "CHWN"}, BlockingError, "'CHWN'"),
    ({"workload": SMALL, "input_layout": 3}, BlockingError, "layout is 3"),
    ({"workload": None}, WorkloadError, "workload is None: expected a ConvWorkload"),
    ({"workload": SMALL, "epilogue": "relu"}, ArgumentError, "epilogue is 'relu'"),
    ({"workload": SMALL, "schedule": 3}, ScheduleError, "the schedule file is of type int"),
    ({"workload": SMALL, "input_layout": "NCHW0c"}, BlockingError, "'NCHW0c'"),
    ({"workload": SMALL, "blocking": "modell"}, BlockingError, "'modell'"),
    ({"workload": SMALL, "blocking": 7}, BlockingError, "blocking is 7"),
    ({"workload": SMALL, "blocking": {"lanes": 4}}, BlockingError, "lacks oc_vectors"),
    ({"workload": SMALL, "blocking": {"lane": 4}}, BlockingError, "unknown knob 'lane'"),
    ({"workload": SMALL, "schedule": "none.py"}, ScheduleError, "none.py"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BUILDS, ids=lambda v: str(v)[:50])
def test_wrong_builds(call: dict[str, Any], kind: type[DirectConvError], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        dc.build(**call)


def blocked(**knobs: Any) -> dict[str, Any]:
    lanes = dc.device("native").rates()[-1].lanes
    good = {"lanes": lanes, "oc_vectors": 1, "ow_tile": 7, "ic_block": 4, "ic_unroll": 4}
    return {**good, **knobs}


BLOCKINGS = [
    ({"lanes": 5}, "lanes is 5"),
    ({"oc_vectors": 5}, "16 output channels are only 4 vectors"),
    ({"ow_tile": 9}, "a row has only 7 columns"),
    ({"ow_tile": 0}, "ow_tile is 0"),
    ({"ic_block": 3}, "does not divide 8 input channels"),
    ({"ic_unroll": 3}, "ic_unroll is 3"),
    ({"oh_block": 2}, "does not divide 7 rows"),
    ({"flat_rows": 7}, "only 1x1 kernels"),
    ({"oc_vectors": 4, "ow_tile": 7}, "registers"),
    ({"loop_order": "inside"}, "'inside'"),
    ({"kw_unroll": 1}, "expected true or false"),
    ({"ow_tile": 2.0}, "expected a whole number"),
]


def test_groups_leave_no_vector_over() -> None:
    with pytest.raises(BlockingError, match="oc_vectors is 3: does not divide the 4 vectors of 16"):
        dc.build("g2" + SMALL, "x86-64-v2", blocking=blocked(lanes=4, oc_vectors=3))


@pytest.mark.parametrize(("knobs", "message"), BLOCKINGS, ids=lambda v: str(v)[:40])
def test_wrong_blockings(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(BlockingError, match=re.escape(message)):
        dc.build(SMALL, "x86-64-v2", blocking=blocked(**{"lanes": 4, **knobs}))


def test_blocking_files(tmp_path: Path) -> None:
    path = tmp_path / "blocking.json"
    path.write_text("{")
    with pytest.raises(BlockingError, match="not JSON"):
        dc.build(SMALL, blocking=path)


# --- Arrays

RUNS: list[tuple[str, Callable[[np.ndarray, np.ndarray], tuple[Any, ...]], str]] = [
    ("shape", lambda x, w: (aligned_zeros((1, 1, 7, 7, 3)), w), "has shape (1, 1, 7, 7, 3)"),
    ("plain", lambda x, w: (np.zeros((1, 8, 7, 7), np.float32), w), "has shape (1, 8, 7, 7)"),
    ("dtype", lambda x, w: (x.astype(np.float64), w), "dtype float64: expected float32"),
    ("byte order", lambda x, w: (x.astype(">f4"), w), "dtype >f4: expected float32"),
    ("list", lambda x, w: (x.tolist(), w), "is a list: expected a numpy.ndarray"),
    ("swapped", lambda x, w: (w, x), "has shape"),
    ("strides", lambda x, w: (np.asfortranarray(x), w), "is not contiguous"),
    ("misaligned", lambda x, w: (shifted(x), w), "expected a multiple of 64 bytes"),
    ("misaligned weight", lambda x, w: (x, shifted(w)), "the weight begins at address"),
    ("read-only", lambda x, w: (frozen(x), w), "is read-only"),
]


@pytest.mark.parametrize(
    ("make", "message"), [(m, t) for _, m, t in RUNS], ids=[n for n, *_ in RUNS]
)
def test_wrong_arrays(
    make: Callable[[np.ndarray, np.ndarray], tuple[Any, ...]],
    message: str,
    conv: dc.CompiledConv,
    arrays: tuple[np.ndarray, np.ndarray],
) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        conv.run(*make(*arrays))


def test_wrong_outputs(conv: dc.CompiledConv, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    shape = conv.manifest.output_shape
    with pytest.raises(ArgumentError, match="the output has shape"):
        conv.run(*arrays, out=aligned_zeros((*shape[:-1], 1)))
    same = dc.build("ic8ih7oc8oh7kh1")  # Input and output are equally large.
    x, weight = dc.random_tensors(same.workload, seed=1)
    packed = same.pack_input(x)
    with pytest.raises(ArgumentError, match="overlaps"):
        same.run(packed, same.pack_weight(weight), out=packed)


def test_wrong_plain_arrays(conv: dc.CompiledConv) -> None:
    x, weight = dc.random_tensors(conv.workload, seed=1)
    with pytest.raises(ArgumentError, match=re.escape("expected (1, 8, 7, 7) (NCHW)")):
        conv(x[:, :4], weight)
    with pytest.raises(ArgumentError, match=re.escape("expected (16, 8, 3, 3) (OIHW)")):
        conv(x, weight.transpose(1, 0, 2, 3))
    with pytest.raises(ArgumentError, match="the output has shape"):
        conv.unpack_output(x)


# --- Libraries


@pytest.fixture
def library(conv: dc.CompiledConv, tmp_path: Path) -> Path:
    return conv.export(tmp_path / "conv.so")


def edited(library: Path, **changes: Any) -> None:
    change_manifest(Path(f"{library}.json"), **changes)


SPOILED: list[tuple[str, Callable[[Path], Any], str]] = [
    ("missing", lambda so: so.unlink(), "does not exist"),
    ("truncated", lambda so: so.write_bytes(so.read_bytes()[:100]), "conv.so"),
    ("not a library", lambda so: so.write_text("conv"), "ELF"),
    ("replaced", lambda so: so.write_bytes(so.read_bytes() + b"\0"), "stale"),
    ("no manifest", lambda so: Path(f"{so}.json").unlink(), "manifest"),
    ("empty manifest", lambda so: Path(f"{so}.json").write_text(""), "no manifest"),
    ("list for a manifest", lambda so: Path(f"{so}.json").write_text("[]"), "no manifest"),
    ("newer format", lambda so: edited(so, format=99), "format 99"),
    ("no target", lambda so: edited(so, target={}), "target.kind is missing"),
    ("other symbol", lambda so: edited(so, symbol="other"), "does not define"),
    ("other knobs", lambda so: edited(so, blocking={"lanes": 4}), "lacks"),
]


@pytest.mark.parametrize(
    ("spoil", "message"), [(s, m) for _, s, m in SPOILED], ids=[n for n, *_ in SPOILED]
)
def test_spoiled_libraries(spoil: Callable[[Path], Any], message: str, library: Path) -> None:
    spoil(library)
    with pytest.raises(LibraryError, match=re.escape(message)):
        dc.load(library)


def test_foreign_libraries(tmp_path: Path) -> None:
    conv = dc.build(SMALL, FOREIGN)
    with pytest.raises(LibraryError, match=f"cannot run code for {FOREIGN} here"):
        conv(*dc.random_tensors(conv.workload, seed=1))
    if FOREIGN == "x86-64-v2":
        return
    library = conv.export(tmp_path / "conv.so")
    with pytest.raises(LibraryError, match=f"built for {FOREIGN}"):
        dc.load(library)


def test_exports(conv: dc.CompiledConv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in {
        "conv.dll": "expected a name ending in .so, .o or .s",
        "none/conv.so": "the folder does not exist",
    }.items():
        with pytest.raises(LibraryError, match=message):
            conv.export(tmp_path / name)
    with pytest.raises(LibraryError, match="expected a shared library"):
        dc.load(conv.export(tmp_path / "conv.o"))
    monkeypatch.setenv("PATH", str(tmp_path))
    foreign = dc.build(SMALL, FOREIGN)
    with pytest.raises(ToolchainError, match="apt install"):
        foreign.export(tmp_path / "conv.so")
    assert not (tmp_path / "conv.so").exists()


@pytest.mark.parametrize("path", [None, 3, b"conv.so"])
def test_what_is_no_path(path: Any, conv: dc.CompiledConv) -> None:
    kind = type(path).__name__
    for call in (dc.load, dc.load_network, conv.export, conv.export_c):
        with pytest.raises(LibraryError, match=f"is of type {kind}: expected a path"):
            call(path)


# --- Networks

NETWORKS: list[tuple[dict[str, Any], type[DirectConvError], str]] = [
    ({"model": ModelProto()}, ModelError, "is of type ModelProto: expected the path of an ONNX"),
    ({"model": ModelProto()}, ModelError, "save it first: onnx.save(model, 'model.onnx')"),
    ({"model": b"bytes"}, ModelError, "the model is of type bytes"),
    ({"model": None}, ModelError, "the model is of type NoneType"),
    ({"output": None}, LibraryError, "the output is of type NoneType: expected a path"),
    ({"threads": 1025}, BlockingError, "threads is 1025: expected a whole number from 1 to 1024"),
    ({"check": "maybe"}, ArgumentError, "check is 'maybe': expected True, False or None"),
    ({"check": 0}, ArgumentError, "check is 0"),
    ({}, ModelError, "--input-shape x:1,3,224,10"),
    ({"input_shapes": {"x": 3}}, ModelError, "size of input 'x' is 3: expected Nx3xHx10"),
    ({"input_shapes": {"x": [1, 3, 9.5, 10]}}, ModelError, "is [1, 3, 9.5, 10]: expected whole"),
    ({"input_shapes": {"x": [1, 3, True, 10]}}, ModelError, "is [1, 3, True, 10]: expected whole"),
    ({"input_shapes": {"x": [1, 3, 10**30, 10]}}, ModelError, ", 10]: expected whole numbers"),
    ({"input_shapes": {"x": "1,3,9,10"}}, ModelError, "size of input 'x' is '1,3,9,10'"),
    ({"input_shapes": {"x": None}}, ModelError, "size of input 'x' is None"),
    ({"input_shapes": [1, 3, 9, 10]}, ModelError, "expected them by the inputs' names"),
    ({"input_values": 3}, ModelError, "the values of inputs are 3"),
    ({"input_values": {"x": [[1], [2, 3]]}}, ModelError, "the value of input 'x' is [[1], [2, 3]]"),
]


@pytest.mark.parametrize(("call", "kind", "message"), NETWORKS, ids=lambda v: str(v)[:40])
def test_wrong_networks(
    call: dict[str, Any], kind: type[DirectConvError], message: str, tmp_path: Path
) -> None:
    g = Graph(x=["N", 3, "H", 10])
    path = saved(g.model(g.conv("x", 8, 3, 3, 3)), tmp_path)
    with pytest.raises(kind, match=re.escape(message)):
        dc.compile_network(**{"model": path, "output": tmp_path / "a.so", **call})
    assert list(tmp_path.iterdir()) == [path]


def test_sizes_of_numpy_are_whole_numbers(tmp_path: Path) -> None:
    g = Graph(x=["N", 3, "H", 10])
    path = saved(g.model(g.conv("x", 8, 3, 3, 3)), tmp_path)
    (found,) = dc.workloads(str(path), input_shapes={"x": np.array([1, 3, 9, 10])})
    assert (found.in_height, found.in_width) == (9, 10)


# --- Schedule files

SCHEDULES = [
    ("def schedule(sch:\n", "cannot be imported: SyntaxError"),
    ("import nothing_of_this_name\n", "ModuleNotFoundError"),
    ("apply = None\n", "has no function 'schedule'"),
    ("def schedule(sch):\n    pass\n", "wrong parameters"),
    ("def schedule(s, t):\n    return 'odd sizes'\n", "odd sizes"),
    ("def schedule(s, t):\n    s.get_sblock('none')\n", "failed on"),
    (
        "def schedule(s, t):\n"
        "    s.bind(s.get_loops(s.get_child_blocks(s.get_sblock('root'))[0])[0], 'threadIdx.x')\n",
        "cannot be compiled",
    ),
]


@pytest.mark.parametrize(("text", "message"), SCHEDULES)
def test_wrong_schedule_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ScheduleError, match=re.escape(message)):
        dc.build(SMALL, schedule=path)


def test_manifests_say_what_was_built(library: Path, conv: dc.CompiledConv) -> None:
    found = ConvManifest.read(Path(f"{library}.json"), library.read_bytes())
    assert found == conv.manifest
