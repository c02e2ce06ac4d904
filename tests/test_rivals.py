"""Rivals: their processes and turns, and that those which are here compute what they should."""

import hashlib
import itertools
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import exact_case
from fake_rivals import Converter, Fake, FakeNetwork, OnlyFloats

from tvm_directconv import ConvWorkload, conv2d_reference, random_tensors, workloads
from tvm_directconv.bench import models
from tvm_directconv.bench.rivals import litert, mnn, ncnn, openvino, rounds, serve, turns
from tvm_directconv.bench.rivals.base import (
    Contestant,
    Failed,
    NotHere,
    Prepared,
    Source,
    Unsupported,
    types_of,
)
from tvm_directconv.bench.rivals.contestants import LAYER_CONTESTANTS, NETWORK_CONTESTANTS
from tvm_directconv.bench.rivals.litert import LiteRt
from tvm_directconv.bench.rivals.mnn import Mnn
from tvm_directconv.bench.rivals.ncnn import Ncnn
from tvm_directconv.bench.rivals.onednn import OneDnn
from tvm_directconv.bench.rivals.onnxruntime import OnnxRuntime, layer_model
from tvm_directconv.bench.rivals.openblas import Im2colSgemm, Sgemm
from tvm_directconv.bench.rivals.ours import Ours
from tvm_directconv.bench.rivals.rounds import compare_layers, compare_networks, network_results
from tvm_directconv.bench.rivals.serve import Server, threads_share_a_core
from tvm_directconv.bench.rivals.turns import Process
from tvm_directconv.bench.rivals.tvm import Untuned
from tvm_directconv.errors import ArgumentError, DeviceError, WorkloadError
from tvm_directconv.hardware.lookup import device
from tvm_directconv.layout import aligned_zeros

SMALL = ConvWorkload.parse("ic3ih5oc4kh3ph1")
OTHER = ConvWorkload.parse("ic4ih5oc4kh3ph1")
KEYS = (
    "subject",
    "network",
    "layer",
    "workload",
    "dtype",
    "threads",
    "contestant",
    "library",
    "implementation",
    "status",
    "reason",
    "algorithm",
    "includes",
    "seconds",
    "peak_gflops",
    "clock_gflops",
    "extra_bytes",
    "precision",
    "max_error",
    "rms_error",
    "agreement",
    "compile_seconds",
    "blocking",
    "blocking_source",
)


@pytest.fixture(autouse=True)
def _fakes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes of contestants import this folder's modules."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_a_contestant_that_does_everything_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNWANTED", "here")
    layer = workloads("vgg16:conv1_1")[0]
    small = ConvWorkload.parse(f'{SMALL}n"{layer.name}"')
    said: list[str] = []
    (row,) = compare_layers([small], [Fake(algorithm="FFT")], [2], 5, say=said.append)
    assert tuple(row) == KEYS
    implementation = json.loads(row.pop("implementation"))
    assert implementation == {
        **dict.fromkeys(turns.THREAD_VARIABLES, "2"),
        "UNWANTED": None,
        "WANTED": "2",
        "threads": 2,
    }
    seconds, peaks = row.pop("seconds"), row.pop("peak_gflops")
    clocks = row.pop("clock_gflops")
    assert len(seconds) == len(peaks) == len(clocks) == 5 and all(each > 1 for each in clocks)
    assert all(2e-3 <= each < 1 for each in seconds) and all(each > 0.1 for each in peaks)
    assert row.pop("max_error") < 1e-6 and row.pop("extra_bytes") < 2**22
    assert row == {
        "subject": "layer",
        "network": "vgg16",
        "layer": "conv1_1",
        "workload": str(SMALL),
        "dtype": "float32",
        "threads": 2,
        "contestant": "fake",
        "library": f"NumPy {np.__version__}",
        "status": "ok",
        "reason": None,
        "algorithm": "FFT",
        "includes": "Everything.",
        "precision": None,
        "rms_error": None,
        "agreement": None,
        "compile_seconds": 0.5,
        "blocking": "blocks",
        "blocking_source": "nowhere",
    }
    assert said[0] == "vgg16:conv1_1 (1 of 1): fake, 2 thread(s)"


TROUBLE = {
    "be missing": ("not_here", "it is missing"),
    "not load": ("not_here", "ImportError: no such library"),
    "refuse": ("unsupported", "too odd"),
    "raise": ("failed", "it is broken"),
    "raise anything": ("failed", "ZeroDivisionError: by zero"),
    "crash": ("failed", "an illegal instruction (status -4)"),
    "crash later": ("failed", "it said nothing (status -4)"),
    "hang": ("failed", "'layer' took longer than 5 s, and was ended"),
    "hang later": ("failed", "'run' took longer than 3 s, and was ended"),
    "be wrong": ("wrong", "the largest error is "),
    "be nothing": ("wrong", "the largest error is inf; expected at most 0.01"),
    "be short": ("wrong", "the output has 75 values; expected 100"),
}


def test_trouble_of_one_is_no_trouble_of_others() -> None:
    """All at once, in two layers; what goes wrong goes wrong in the first of them."""
    fakes = [Fake(name=does, does=does, channels=SMALL.in_channels) for does in TROUBLE]
    contestants = [*fakes, Fake(name="well")]
    rows = compare_layers([SMALL, OTHER], contestants, [1], 2, prepare_seconds=5, run_seconds=3)
    first = {row["contestant"]: row for row in itertools.islice(rows, len(contestants))}
    second = {row["contestant"]: row for row in rows}
    assert list(first) == list(second) == [*TROUBLE, "well"]
    for does, (status, reason) in TROUBLE.items():
        row = first[does]
        assert row["status"] == status
        assert row["reason"].startswith(reason)
        assert row["seconds"] == row["peak_gflops"] == []
        lasting = status == "not_here" or does == "refuse"
        assert second[does]["status"] == (status if lasting else "ok"), second[does]
        assert (row["library"] is None) == (status == "not_here")
    assert first["be wrong"]["max_error"] > 1e-2 and first["be nothing"]["max_error"] is None
    for row in (first["well"], second["well"], second["crash"], second["hang later"]):
        assert row["status"] == "ok" and len(row["seconds"]) == 2


def test_memory_beside_the_arrays_is_counted() -> None:
    none, some = compare_layers(
        [SMALL], [Fake(name="none"), Fake(name="some", does="take memory")], [1], 1
    )
    assert 47 < (some["extra_bytes"] - none["extra_bytes"]) / 2**20 < 50


def test_they_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_PLACES", 1)
    log = tmp_path / "log"
    fakes = [Fake(name=name, log=str(log)) for name in "abc"]
    rows = [*compare_layers([SMALL], fakes, [1, 2], 4)]
    assert [(row["contestant"], row["threads"]) for row in rows] == [
        (name, threads) for threads in (1, 2) for name in "abc"
    ]
    assert {len(row["seconds"]) for row in rows} == {4}
    # A call to warm up and one that is timed.
    found = [(name, len([*group])) for name, group in itertools.groupby(log.read_text().split())]
    assert " ".join(name for name, _ in found[-24:]) == (
        "a1 b1 c1 a2 b2 c2 b1 c1 a1 b2 c2 a2 c1 a1 b1 c2 a2 b2 a1 b1 c1 a2 b2 c2"
    )
    assert {count for _, count in found[-24:]} == {2}


def test_places_in_memory_are_taken_in_turns(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for row in compare_layers([SMALL], [Fake(log=str(log))], [1, 2], 6):
        assert len(row["seconds"]) == 6
        # Three calls more for memory before all and in the first of four places; each round is two.
        calls = log.read_text().split().count(f"fake{row['threads']}")
        assert calls == (1 + 3) + (4 + 3) + 6 * 2


def state(pid: int) -> str:
    """Return T for a stopped process, and nothing for one that is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def eventually(check: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_who_is_not_asked_is_stopped() -> None:
    process = Process(Fake(), 1)
    try:
        assert eventually(lambda: state(process.pid) == "T")
        with pytest.raises(Failed, match=r"^FileNotFoundError: .*'/nowhere/weight.npy'$"):
            process.ask("layer", 60, folder="/nowhere", workload=fields(SMALL), again=True)
        assert eventually(lambda: state(process.pid) == "T")
    finally:
        process.close()
    assert not state(process.pid)


def fields(workload: ConvWorkload) -> dict[str, object]:
    names = ("in_channels", "in_height", "in_width", "out_channels", "kernel", "padding")
    return {name: getattr(workload, name) for name in names}


def test_who_was_stopped_warms_up() -> None:
    def seconds(threads: int) -> float:
        begun: list[float] = []
        server = Server(Ours(), threads)
        prepared = Prepared(
            call=lambda: begun.append(time.perf_counter()), output=lambda: np.zeros(1)
        )
        server.kept.append(prepared)
        server.run()
        return begun[-1] - begun[0]

    assert seconds(1) > 2e-3
    assert seconds(2) > 10e-3


def test_threads_that_share_a_core_are_seen() -> None:
    cores, done = os.sched_getaffinity(0), threading.Event()
    work = bytes(1 << 20)  # hashed without Python's lock

    def compute() -> None:
        while not done.is_set():
            hashlib.sha256(work)

    busy = threading.Thread(target=compute)
    busy.start()
    try:
        for first, second, shared in ((0, 0, True), (0, 1, False), (1, 1, True)):
            os.sched_setaffinity(0, {sorted(cores)[first]})
            os.sched_setaffinity(busy.native_id or 0, {sorted(cores)[second]})
            assert eventually(lambda expected=shared: threads_share_a_core() == expected)
    finally:
        done.set()
        busy.join()
        os.sched_setaffinity(0, cores)


def test_threads_that_share_a_core_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def calls(rounds_together: int) -> int:
        told = iter([*[True] * rounds_together, False])
        monkeypatch.setattr(serve, "threads_share_a_core", lambda: next(told))
        begun: list[float] = []

        def call() -> None:
            begun.append(time.perf_counter())
            time.sleep(15e-3)

        server = Server(Ours(), 2)
        server.kept.append(Prepared(call=call, output=lambda: np.zeros(1)))
        server.run()
        return len(begun)

    # A call to warm up, those until they are parted, and one that is timed.
    assert calls(0) == 1 + 1
    assert calls(3) == 1 + 3 + 1
    # Some stay together.
    assert calls(1000) == 7 + 1


def test_processes_end_with_the_one_that_started_them() -> None:
    code = (
        "import os, signal\n"
        "from fake_rivals import Fake\n"
        "from tvm_directconv.bench.rivals.turns import Process\n"
        "print(Process(Fake(), 1).pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert eventually(lambda: state(int(done.stdout)) in ("", "Z"))


def test_packages_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "check", Contestant.check)
    monkeypatch.setattr(Fake, "packages", {"numpy": "", "no_such_package": ", for tests,"})
    with pytest.raises(NotHere, match=r"^Python package no_such_package, for tests, is not inst"):
        Fake().check(network=False)
    monkeypatch.setattr(Fake, "packages", {"numpy": ""})
    monkeypatch.setattr(Fake, "network_packages", {"no_such_package": ""})
    Fake().check(network=False)
    with pytest.raises(NotHere, match=r"try: pip install 'tvm-directconv\[rivals\]'$"):
        Fake().check(network=True)


def test_onednn_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm_directconv.bench.rivals import onednn

    monkeypatch.setattr(onednn, "_PACKAGE", "no-such-package")
    with pytest.raises(NotHere, match="ONEDNN_LIBRARY"):
        OneDnn().check(network=False)
    monkeypatch.setenv("ONEDNN_LIBRARY", "/some/libdnnl.so.3")
    OneDnn().check(network=False)


# --- What they compute -------------------------------------------------------------------------

LAYERS = [
    ConvWorkload.parse(text)
    for text in (
        "ic3ih9iw11oc5kh3ph1",
        "ic16ih8oc32kh3ph1sh2",  # Padding is read at the top only.
        "ic5ih11iw7oc4kh5sh3ph2",
        "ic6ih7oc9kh2kw4ph1pw2sw2",
        "ic8ih9oc4kh3dh1ph2",
        "ic32ih6oc48kh1",
        "ic32ih7oc16kh1sh2",
        "g16ic16ih9oc16kh3ph1",
        "mb2g2ic6ih8oc4kh3ph1",
    )
]
HERE: list[Contestant] = [
    Im2colSgemm(),
    Sgemm(),
    OnnxRuntime(),
    LiteRt(),
    Ncnn(name="ncnn, no Winograd", winograd=False),
    Untuned(),
]
if sys.platform == "linux" and platform.machine() == "x86_64":
    HERE += [OneDnn(), OneDnn(name="oneDNN, nChw16c", blocked=True)]


@pytest.mark.parametrize("contestant", HERE, ids=lambda contestant: contestant.name)
def test_they_compute_the_right_thing(contestant: Contestant) -> None:
    contestant.check(network=False)
    contestant.load_library()
    title, *version = contestant.library().split()
    assert title and any(part[0].isdigit() for part in version)
    computed = 0
    for workload in LAYERS:
        if reason := contestant.unsupported(workload):
            assert "expected" in reason
            continue
        x, weight, expected = exact_case(workload)
        prepared = contestant.prepare_layer(workload, 2, weight.copy(), aligned(x))
        for _ in range(2):
            prepared.call()
        np.testing.assert_array_equal(prepared.output(), expected, str(workload))
        computed += 1
    assert computed >= 7


def aligned(array: np.ndarray) -> np.ndarray:
    copy = aligned_zeros(array.shape)
    copy[...] = array
    return copy


def test_layers_of_ours_and_of_im2col() -> None:
    workload = ConvWorkload.parse("ic16ih9oc32kh3ph1")
    rows = compare_layers([workload], [Ours(), Im2colSgemm(), OnnxRuntime()], [1], 2)
    ours, im2col, onnxruntime = rows
    assert [row["status"] for row in (ours, im2col, onnxruntime)] == ["ok"] * 3
    assert ours["extra_bytes"] == 0 and im2col["extra_bytes"] == workload.im2col_bytes
    assert ours["blocking_source"] == "model" and ours["compile_seconds"] > 0
    assert im2col["library"].startswith("OpenBLAS 0.") and im2col["implementation"]
    assert onnxruntime["algorithm"] in ("direct", "im2col")
    assert "Conv" in onnxruntime["implementation"]


def test_quantised_layers() -> None:
    workloads = [
        ConvWorkload.parse(f"uint8_{text}") for text in ("ic16ih9oc32kh3ph1", "ic24ih9oc8kh1")
    ]
    contestants = [Ours(), OnnxRuntime(), Im2colSgemm()]
    if sys.platform == "linux" and platform.machine() == "x86_64":
        contestants.append(OneDnn())
    if device("native").peak(workloads[0].precision).instruction.depth == 1:
        with pytest.raises(DeviceError, match=r"no burst of .* can be measured"):
            list(compare_layers(workloads, contestants, [1], 2))
        return
    rows = list(compare_layers(workloads, contestants, [1], 2))
    for row in rows:
        if row["contestant"] == "im2col + OpenBLAS":
            assert row["status"] == "unsupported"
            assert row["reason"] == "im2col + OpenBLAS computes no layers in uint8"
        else:
            assert row["status"] == "ok" and row["max_error"] < 1 / 100
    assert [row["extra_bytes"] for row in rows if row["contestant"] == "ours"] == [0, 0]
    mixed = [workloads[0], ConvWorkload.parse("ic16ih9oc32kh3ph1")]
    with pytest.raises(WorkloadError, match="in float32 and uint8: expected one number type"):
        list(compare_layers(mixed, contestants, [1], 2))


def test_openblas_chooses_its_kernels_itself() -> None:
    variables = Im2colSgemm().environment(2)
    assert variables["OPENBLAS_CORETYPE"] is None and variables["OPENBLAS_L2_SIZE"] is None


def test_a_matrix_product_is_not_copied() -> None:
    workload = ConvWorkload.parse("ic8ih5oc4kh1")
    x, weight = random_tensors(workload, seed=0)
    prepared = Im2colSgemm().prepare_layer(workload, 1, weight, aligned(x))
    assert prepared.extra_bytes == workload.im2col_bytes == 0


def small_network() -> Any:
    workload = ConvWorkload.parse("ic3ih224oc8oh56kh4sh4")
    return layer_model(workload, random_tensors(workload, seed=0)[1])


def test_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "model", lambda name: small_network())
    contestants = [Ours(name="mine", blocking="model"), OnnxRuntime(), Converter(), Fake()]
    results = network_results("small", contestants, [1, 2], 2)
    rows = [result.row("small", "float32") for result in results]
    assert [row["threads"] for row in rows] == [1] * 4 + [2] * 4
    mine, onnxruntime, converter, fake = rows[4:]
    assert [row["status"] for row in rows[:4]] == [row["status"] for row in rows[4:]]
    for row, compiles in ((mine, True), (onnxruntime, False), (converter, True)):
        assert tuple(row) == KEYS
        assert row["subject"] == "network" and row["network"] == "small"
        assert row["layer"] is row["workload"] is None
        assert row["includes"].startswith("The whole network")
        assert row["status"] == "ok" and len(row["seconds"]) == len(row["peak_gflops"]) == 2
        assert row["max_error"] < 1e-5 and row["rms_error"] < 1e-6 and row["agreement"] == 1
        assert row["dtype"] == row["precision"] == "float32" and row["extra_bytes"] >= 0
        assert (row["compile_seconds"] is not None) == compiles
    for result in results[:3]:
        assert result.peak_bytes and result.resident_bytes
        assert result.peak_bytes >= result.resident_bytes > 0
    assert (fake["status"], fake["reason"]) == ("unsupported", "fake computes no networks")


def test_networks_of_integers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All are compared with the network in float32, those with defaults are given that."""
    monkeypatch.setattr(models, "model", lambda name: small_network())
    log = tmp_path / "log"
    contestants = [
        Ours(blocking="model"),
        OnnxRuntime(),
        Converter(),
        FakeNetwork(name="asked", log=str(log), does="copy"),
        FakeNetwork(name="by itself", log=str(log), does="say nothing", defaults=True),
        FakeNetwork(name="all the same", does="be the same"),
        OnlyFloats(),
    ]
    rows = [*compare_networks(["small"], contestants, [1], 2, "int8")]
    found = {row["contestant"]: row for row in rows}
    assert {row["dtype"] for row in rows} == {"int8"}
    ours, onnxruntime, asked, by_itself = (
        found[name] for name in ("ours", "onnxruntime", "asked", "by itself")
    )
    assert (ours["precision"], onnxruntime["precision"]) == ("uint8", "int8")
    for row in (ours, onnxruntime, asked, found["converter"]):
        assert row["status"] == "ok" and 1e-3 < row["rms_error"] < 0.1
        assert row["rms_error"] == pytest.approx(onnxruntime["rms_error"], rel=0.05)
    assert by_itself["status"] == "ok" and by_itself["rms_error"] < 1e-6
    assert by_itself["precision"] == "float32" and by_itself["agreement"] == 1
    assert found["all the same"]["status"] == "wrong"
    reason = "only floats computes no networks in int8: expected float32"
    assert (found["only floats"]["status"], found["only floats"]["reason"]) == (
        "unsupported",
        reason,
    )
    shape = [rounds.IMAGES, 3, 224, 224]
    assert [json.loads(line) for line in log.read_text().splitlines()] == [
        ["asked", "int8", True, False, shape, "float32"],
        ["by itself", "defaults", False, False, shape, "float32"],
    ]


def test_ours_in_half_the_bits(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    path.write_bytes(small_network().SerializeToString())
    x = aligned(models.images(1))
    expected = rounds._right_outputs(path, x)
    errors = {}
    for dtype in ("float32", "bf16"):
        source = Source(dtype=dtype, onnx=str(path), float32=str(path), samples="")
        ours = Ours(blocking="model")
        prepared = ours.prepare_network(ours.convert(source, 1), 1, x, dtype)
        prepared.call()
        result = rounds.Result(ours, 1, found={"precision": (prepared.precision or str)()})
        rounds._check_network(result, prepared.output().reshape(1, -1), expected, np.inf)
        errors[result.precision] = result.rms_error or 0
    assert errors["float32"] < 1e-6 and 1e-4 < errors["bfloat16"] < 1e-2


def test_types_that_are_not_compared_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"'fp8' are asked for: expected one of float32, bf16,"):
        network_results("small", [], [1], 1, "fp8")
    with pytest.raises(Unsupported, match="onnxruntime computes no networks in bf16: expected flo"):
        OnnxRuntime().check_dtype("bf16")
    OnnxRuntime(defaults=True).check_dtype("defaults")


@pytest.mark.parametrize(
    ("dtype", "error", "status"),
    [
        ("float32", 0.9e-4, "ok"),
        ("float32", 1.1e-4, "wrong"),
        ("bf16", 0.045, "ok"),
        ("bf16", 0.055, "wrong"),
        ("defaults", 0.045, "ok"),
        ("defaults", 0.055, "wrong"),
        ("int8", 0.29, "ok"),
        ("int8", 0.31, "wrong"),
    ],
)
def test_what_is_wrong_depends_on_the_type(dtype: str, error: float, status: str) -> None:
    expected = np.array([[2.0, 0.0], [0.0, 2.0]])
    outputs = expected + error * np.sqrt(2) * np.array([[1, -1], [1, 1]])
    result = rounds.Result(Fake(), 1)
    rounds._check_network(result, outputs, expected, rounds.NETWORK_TOLERANCE[dtype])
    assert result.rms_error == pytest.approx(error) and result.status == status
    assert result.agreement == 1
    rounds._check_network(result, outputs[::-1], expected, rounds.NETWORK_TOLERANCE[dtype])
    assert result.agreement == 0 and result.status == "wrong"


@pytest.mark.parametrize(
    ("of_differences", "status"), [(1.2, "wrong"), (0.75, "wrong"), (0.65, "ok"), (0.0, "ok")]
)
def test_who_does_not_look_at_images_is_wrong(of_differences: float, status: str) -> None:
    """However little the outputs differ; and what all of them are off does not matter."""
    expected = np.array([[1.01, 0.99], [0.99, 1.01]])
    outputs = 1.05 + (expected - 1) * (1 - of_differences)
    result = rounds.Result(Fake(), 1)
    rounds._check_network(result, outputs, expected, rounds.NETWORK_TOLERANCE["int8"])
    assert result.status == status and (result.rms_error or 0) < 0.06
    if status == "wrong":
        assert result.reason == (
            f"the error of what outputs differ from image to image is {of_differences:.2g}; "
            "expected at most 0.7"
        )


def test_outputs_of_nothing_are_wrong(tmp_path: Path) -> None:
    result = rounds.Result(Fake(), 1, found={"extra_bytes": None, "running_bytes": 100})
    expected = np.array([[1.0, 2.0], [2.0, 1.0]])
    rounds._check_network(result, expected * [1, np.nan], expected, 0.2)
    row = result.row("small", "int8")
    assert (row["status"], row["reason"]) == ("wrong", "the error is inf; expected at most 0.2")
    assert row["rms_error"] is row["max_error"] is row["precision"] is None
    np.save(tmp_path / "output.npy", expected[:, 1:])
    result = rounds.Result(Fake(), 1, found={"extra_bytes": None, "running_bytes": 100})
    assert rounds._output(result, tmp_path, expected.shape, 60) is None
    assert (result.reason, result.extra_bytes) == ("the output has 2 values; expected 4", 40)


def test_the_right_outputs_are_those_of_onnx(tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    model = small_network()
    path = tmp_path / "small.onnx"
    path.write_bytes(model.SerializeToString())
    images = models.images(2)
    expected = [ReferenceEvaluator(model).run(None, {"x": x[np.newaxis]})[0] for x in images]
    found = rounds._right_outputs(path, images)
    assert found.shape == (2, 8 * 56 * 56)
    np.testing.assert_allclose(found, np.stack(expected).reshape(2, -1), atol=1e-5)


# --- How they are told, with stand-ins for what need not be installed ---------------------------


NCNN = {
    "Convolution": ("0=6 1=3 4=1 5=1 6=216", (6, 4, 3, 3), 6, (6, 5, 5)),
    "ConvolutionDepthWise": ("0=4 1=3 4=1 5=1 6=36 7=4", (4, 1, 3, 3), 4, (4, 5, 5)),
    "InnerProduct": ("0=3 1=1 2=300", (3, 100), 3, (3,)),
}


@pytest.mark.parametrize("kind", NCNN)
@pytest.mark.parametrize("winograd", [True, False])
def test_ncnn_in_integers(kind: str, winograd: bool, tmp_path: Path) -> None:
    """What is multiplied is rounded: weights to whole numbers, as 127 is the largest of each."""
    settings, shape, outputs, result_shape = NCNN[kind]
    rng = np.random.default_rng(0)
    x = rng.integers(-126, 127, (2, 4, 5, 5)).astype(np.float32)
    x[:, 0, 0, 0] = 127
    whole = rng.integers(-126, 127, shape).astype(np.float32)
    whole.reshape(outputs, -1)[:, 0] = 127
    noise = np.where(abs(whole) == 127, 0, rng.uniform(-0.4, 0.4, shape)).astype(np.float32)
    bias = rng.integers(-9, 9, outputs).astype(np.float32)
    path = tmp_path / "small.ncnn.param"
    path.write_text(f"7767517\n2 2\nInput in0 0 1 in0\n{kind} layer 1 1 in0 out0 {settings}\n")
    weights = (np.zeros(1, np.int32), (whole + noise).astype(np.float32), bias)
    path.with_suffix(".bin").write_bytes(b"".join(array.tobytes() for array in weights))
    contestant = Ncnn(winograd=winograd)
    ranges = contestant._ranges(path, 1, x)
    assert ranges == {"in0": 127}
    found = contestant.prepare_network(ncnn._quantized(path, ranges), 1, x[:1], "int8")
    assert found.feed
    for image in (x[0], x[1]):
        found.feed(image[np.newaxis])
        found.call()
        if kind == "InnerProduct":
            expected = whole @ image.ravel()
        else:
            groups = 4 if kind == "ConvolutionDepthWise" else 1
            workload = ConvWorkload.parse(f"g{groups}ic4ih5oc{outputs}kh3ph1")
            expected = conv2d_reference(image[np.newaxis], whole, workload)[0]
        expected = expected + bias.reshape(-1, *[1] * (len(result_shape) - 1))
        np.testing.assert_allclose(found.output(), expected, rtol=2e-6, atol=1e-2)


def test_ncnns_layers_that_are_not_known_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.ncnn.param"
    path.write_text("7767517\n2 2\nInput in0 0 1 in0\nLSTM layer 1 1 in0 out0 0=3\n")
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(Unsupported, match="ncnn's layer LSTM is not known here: expected a net"):
        ncnn._quantized(path, {})
    path.write_text(path.read_text().replace("LSTM", "ReLU"))
    path.with_suffix(".bin").write_bytes(b"1234")
    with pytest.raises(Failed, match="has 4 bytes; expected 0"):
        ncnn._quantized(path, {})


@pytest.fixture
def source(tmp_path: Path) -> Source:
    np.save(tmp_path / "samples.npy", models.images(2, size=6))
    for name in ("net.onnx", "net.int8.onnx"):
        (tmp_path / name).write_text(name)
    return Source(
        dtype="int8",
        onnx=str(tmp_path / "net.int8.onnx"),
        float32=str(tmp_path / "net.onnx"),
        samples=str(tmp_path / "samples.npy"),
    )


def test_litert_quantises_per_channel_where_it_can(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []
    broken = ["per-channel"]

    def run(command: list[str]) -> None:
        told.append(command[3:])
        copy, folder, *words = map(Path, command[3:])
        assert copy.read_text() == "net.onnx"
        for kind in ("float32", "integer_quant"):
            if not words or words[1].name not in broken:
                (folder / f"net_{kind}.tflite").touch()
        if words:  # What it makes beside that fails at last.
            raise Failed("it cannot")

    monkeypatch.setattr(litert, "run_converter", run)
    assert LiteRt().convert(replace(source, dtype="defaults"), 1).name == "net_float32.tflite"
    assert len(told[0]) == 2
    path = LiteRt().convert(source, 1)
    assert (path.name, path.parent.suffix) == ("net_integer_quant.tflite", ".per-tensor")
    assert [words[3] for words in told[1:]] == ["per-channel", "per-tensor"]
    samples = np.load(told[1][2])
    np.testing.assert_array_equal(samples.transpose(0, 3, 1, 2), np.load(source.samples))
    broken.append("per-tensor")
    for folder in Path(source.onnx).parent.glob("net.integer_quant.*"):
        shutil.rmtree(folder)
    with pytest.raises(Failed, match="it cannot"):
        LiteRt().convert(source, 1)


def test_mnn_quantises_with_the_samples(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []
    monkeypatch.setattr(mnn, "run_converter", lambda command: told.append(command[2:]))
    path = Mnn().convert(source, 1)
    (first, *_, model), (second, *files) = told
    assert "_tools.mnnconvert(" in first and "_tools.mnnquant(" in second
    assert [*map(str, (model, path))] == files[:2] and path.name == "net.int8.mnn"
    config = json.loads(Path(files[2]).read_text())
    assert (config["input_type"], config["used_sample_num"]) == ("sequence", 2)
    for number, image in enumerate(np.load(source.samples)):
        place = Path(config["path"]) / str(number)
        assert json.loads((place / "input.json").read_text())["inputs"] == [
            {"name": "x", "shape": [1, 3, 6, 6]}
        ]
        np.testing.assert_allclose(np.loadtxt(place / "x.txt"), image.ravel(), rtol=1e-6)
    told.clear()
    assert Mnn().convert(replace(source, dtype="bf16"), 1) == Path(model) and len(told) == 1


def test_openvino_is_told_what_to_compute_in(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    stand_in = SimpleNamespace(compile_model=lambda model, where, settings: told.append(settings))
    monkeypatch.setitem(sys.modules, "openvino", stand_in)
    for dtype in ("float32", "bf16", "int8", "defaults"):
        openvino._compiled("model", 1, dtype)
    hints = [settings.get("INFERENCE_PRECISION_HINT") for settings in told]
    assert hints == ["f32", "bf16", None, None]


def test_types_are_counted_where_there_are_several() -> None:
    assert types_of([]) == "" and types_of(["u8", "u8"]) == "u8"
    assert types_of(["f32", "u8", "u8"]) == "u8 (2), f32 (1)"


# --- Who there is ------------------------------------------------------------------------------


def test_names_are_told_apart_and_everybody_says_what_time_includes() -> None:
    for contestants in (LAYER_CONTESTANTS, NETWORK_CONTESTANTS):
        names = [contestant.name for contestant in contestants]
        assert names[0] == "ours" and len({*names}) == len(names)
        for contestant in contestants:
            assert contestant.includes.endswith(".")
            assert contestant.algorithm in ("direct", "im2col", "Winograd", "FFT", "its own choice")
    layers = {contestant.name for contestant in LAYER_CONTESTANTS}
    networks = {each.name: each for each in NETWORK_CONTESTANTS}
    by_itself = {name: each for name, each in networks.items() if each.defaults}
    assert {name.removesuffix(", defaults") for name in by_itself} == {
        *("onnxruntime", "OpenVINO", "PyTorch", "XNNPACK", "ncnn", "MNN")
    }
    for name, each in by_itself.items():
        other = networks[name.removesuffix(", defaults")]
        assert type(each) is type(other) and not other.defaults
    # All types are those of ours, and each rival has one of them at least.
    assert set(networks["ours"].network_dtypes) == {"float32", "bf16", "int8"}
    for each in networks.values():
        assert "float32" in each.network_dtypes
        assert set(each.network_dtypes) <= set(networks["ours"].network_dtypes)
    assert {"im2col + OpenBLAS", "OpenBLAS SGEMM alone", "oneDNN", "OpenVINO", "NNPACK"} <= layers


def test_what_a_library_does_not_compute_has_a_reason() -> None:
    odd = ConvWorkload(
        batch=2,
        in_channels=4,
        in_height=8,
        in_width=8,
        out_channels=4,
        kernel=(3, 3),
        groups=2,
        dilation=(2, 2),
        padding=(1, 1, 2, 2),
    )
    by_name = {contestant.name: contestant for contestant in LAYER_CONTESTANTS}
    assert by_name["ncnn"].unsupported(odd) == "a batch of 2; expected 1"
    assert by_name["XNNPACK"].unsupported(odd) == "2 groups; expected 1"
    padding = by_name["PyTorch, channels last"].unsupported(odd)
    assert padding and padding.startswith("padding (1, 1, 2, 2) (top, left, bottom, right)")
    assert by_name["ours"].unsupported(odd) is None
