"""Rivals: their processes and turns, and that those which are here compute what they should."""

import hashlib
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import exact_case
from fake_rivals import Converter, Fake

from tvm_directconv import ConvWorkload, random_tensors, workloads
from tvm_directconv.bench import models
from tvm_directconv.bench.rivals import rounds, serve, turns
from tvm_directconv.bench.rivals.base import Contestant, Failed, NotHere, Prepared
from tvm_directconv.bench.rivals.contestants import LAYER_CONTESTANTS, NETWORK_CONTESTANTS
from tvm_directconv.bench.rivals.litert import LiteRt
from tvm_directconv.bench.rivals.ncnn import Ncnn
from tvm_directconv.bench.rivals.onednn import OneDnn
from tvm_directconv.bench.rivals.onnxruntime import OnnxRuntime, layer_model
from tvm_directconv.bench.rivals.openblas import Im2colSgemm, Sgemm
from tvm_directconv.bench.rivals.ours import Ours
from tvm_directconv.bench.rivals.rounds import compare_layers, network_results
from tvm_directconv.bench.rivals.serve import Server, threads_share_a_core
from tvm_directconv.bench.rivals.turns import Process
from tvm_directconv.bench.rivals.tvm import Untuned
from tvm_directconv.errors import DeviceError, WorkloadError
from tvm_directconv.hardware.lookup import device
from tvm_directconv.layout import aligned_zeros

SMALL = ConvWorkload.parse("ic3ih5oc4kh3ph1")
OTHER = ConvWorkload.parse("ic4ih5oc4kh3ph1")
KEYS = (
    "subject",
    "network",
    "layer",
    "workload",
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
    "max_error",
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
        "threads": 2,
        "contestant": "fake",
        "library": f"NumPy {np.__version__}",
        "status": "ok",
        "reason": None,
        "algorithm": "FFT",
        "includes": "Everything.",
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


def test_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = ConvWorkload.parse("ic3ih224oc8oh56kh4sh4")
    _, weight = random_tensors(workload, seed=0)
    monkeypatch.setattr(models, "model", lambda name: layer_model(workload, weight))
    contestants = [Ours(name="mine", blocking="model"), OnnxRuntime(), Converter(), Fake()]
    results = network_results("small", contestants, [1, 2], 2)
    rows = [result.row("small") for result in results]
    assert [row["threads"] for row in rows] == [1] * 4 + [2] * 4
    mine, onnxruntime, converter, fake = rows[4:]
    assert [row["status"] for row in rows[:4]] == [row["status"] for row in rows[4:]]
    for row, compiles in ((mine, True), (onnxruntime, False), (converter, True)):
        assert tuple(row) == KEYS
        assert row["subject"] == "network" and row["network"] == "small"
        assert row["layer"] is row["workload"] is None
        assert row["includes"].startswith("The whole network")
        assert row["status"] == "ok" and len(row["seconds"]) == len(row["peak_gflops"]) == 2
        assert row["max_error"] < 1e-5 and row["extra_bytes"] >= 0
        assert (row["compile_seconds"] is not None) == compiles
    for result in results[:3]:
        assert result.peak_bytes and result.resident_bytes
        assert result.peak_bytes >= result.resident_bytes > 0
    assert (fake["status"], fake["reason"]) == ("unsupported", "fake computes no networks")


# --- Who there is ------------------------------------------------------------------------------


def test_names_are_told_apart_and_everybody_says_what_time_includes() -> None:
    for contestants in (LAYER_CONTESTANTS, NETWORK_CONTESTANTS):
        names = [contestant.name for contestant in contestants]
        assert names[0] == "ours" and len({*names}) == len(names)
        for contestant in contestants:
            assert contestant.includes.endswith(".")
            assert contestant.algorithm in ("direct", "im2col", "Winograd", "FFT", "its own choice")
    layers = {contestant.name for contestant in LAYER_CONTESTANTS}
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
