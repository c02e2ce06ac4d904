"""Boards over RPC: servers on this machine, some of which are killed or frozen."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import described

from tvm_directconv import ConvWorkload, device
from tvm_directconv.bench.compare import Comparison, Failure
from tvm_directconv.conv_manifest import ConvManifest
from tvm_directconv.convolution import CompiledConv, build
from tvm_directconv.errors import LibraryError, RpcError
from tvm_directconv.hardware.host import host_cpu
from tvm_directconv.logs import log_file
from tvm_directconv.toolchain import find_toolchain, run_cc
from tvm_directconv.tuning.runners import rpc
from tvm_directconv.tuning.runners.rpc import RpcRunner, Server, Tracker, find_tracker
from tvm_directconv.tuning.tune import Budget, Tuner

# As many channels as rows and columns: NCHW and NHWC have the same shape.
WORKLOAD = ConvWorkload.parse("ic8ih8oc16oh8kh3ph1")
NATIVE = device("native")

# Forks trackers and servers: what ``python -m tvm.exec.rpc_tracker`` and ``rpc_server`` do, with
# TVM imported once. Each is the leader of a group, with the processes that it starts.
NURSERY = """
import json, os, signal, sys
from tvm.rpc.server import PopenRPCServerState as Server
from tvm.rpc.tracker import PopenTrackerServerState as Tracker

for line in sys.stdin:
    log, port, tracker, key = json.loads(line)
    if pid := os.fork():
        print(pid, flush=True)
        continue
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if key:
        address = ("127.0.0.1", tracker) if tracker else None
        Server("127.0.0.1", port, port + 1, tracker_addr=address, key=key)
    else:
        Tracker("127.0.0.1", port, port + 1)
    signal.pause()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


class Process(NamedTuple):
    """A tracker or a server, with the processes that it starts."""

    group: int
    port: int
    log: Path

    def signal(self, number: int) -> None:
        os.killpg(self.group, number)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)

    def count(self, text: str) -> int:
        return self.log.read_text().count(text)


class Farm:
    """A tracker, and boards that come and go."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[Process] = []
        self._nursery = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        tracker = self._start()
        self.port = tracker.port
        until(lambda: tracker.count("bind to"))

    def _start(self, tracker: int = 0, key: str = "") -> Process:
        assert self._nursery.stdin and self._nursery.stdout
        port, log = free_port(), self._folder / f"{len(self._processes)}.log"
        log.touch()
        print(json.dumps([str(log), port, tracker, key]), file=self._nursery.stdin, flush=True)
        process = Process(int(self._nursery.stdout.readline()), port, log)
        self._processes.append(process)
        return process

    def boards(self, key: str, count: int) -> list[Process]:
        """Start boards, and wait until the tracker knows them."""
        before = self.known(key)
        servers = [self._start(self.port, key) for _ in range(count)]
        until(lambda: self.known(key) == before + count)
        return servers

    def known(self, key: str) -> int:
        try:
            return self.tracker(key).count()
        except RpcError:
            return 0

    def lonely(self, key: str) -> Process:
        """Start a board that no tracker knows."""
        server = self._start(0, key)
        until(lambda: server.count("bind to"))
        return server

    def tracker(self, key: str) -> Tracker:
        return Tracker("127.0.0.1", self.port, key)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        self._nursery.communicate()  # Ends with its standard input.


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    farm = Farm(tmp_path_factory.mktemp("farm"))
    try:
        yield farm
    finally:
        farm.close()


@pytest.fixture(scope="module")
def conv() -> CompiledConv:
    return build(WORKLOAD, NATIVE, input_layout="NCHW")


@pytest.fixture
def library(conv: CompiledConv, tmp_path: Path) -> Path:
    return conv.export(tmp_path / "good.so")


def library_in_c(manifest: ConvManifest, body: str, path: Path) -> Path:
    """Write a library with a function that does whatever it likes."""
    source = path.with_suffix(".c")
    source.write_text(
        "int pause(void);\n"
        f"int __tvm_ffi_{manifest.symbol}(void *s, const void *a, int n, void *r) {{ {body} }}\n"
    )
    toolchain = find_toolchain(NATIVE.triple)
    run_cc(["-shared", "-fPIC", str(source)], path, toolchain)
    return described(manifest, path)


def copies(library: Path, count: int) -> list[Path]:
    made = []
    for number in range(count):
        copy = library.with_name(f"copy{number}.so")
        shutil.copy(library, copy)
        shutil.copy(f"{library}.json", f"{copy}.json")
        made.append(copy)
    return made


# --- Measuring ----------------------------------------------------------------------------------


def test_measures(farm: Farm, conv: CompiledConv, library: Path, tmp_path: Path) -> None:
    (board,) = farm.boards("one", 1)
    runner = RpcRunner(NATIVE, 1, farm.tracker("one"))
    try:
        assert (runner.slots, runner.measured_by, runner.suffix) == (1, "rpc", ".so")
        alone = runner.measure(library, None, 4)
        assert isinstance(alone, Comparison)
        assert len(alone.seconds) == len(alone.of_peak) == 4 and alone.over_incumbent == ()
        assert all(0 < s < 0.01 for s in alone.seconds)
        assert all(0 < p < 100 for p in alone.of_peak)
        assert (runner.cpu, runner.cpu_name) == host_cpu()
        assert runner.cpu_device == NATIVE.name

        # It is the same code, so the ratio shows whether both are timed alike. A machine that is
        # shared may slow down either by much.
        loads = board.count("load_module")
        (other,) = copies(library, 1)
        result = runner.measure(other, library, 9, thorough=True)
        assert isinstance(result, Comparison)
        assert len(result.over_incumbent) == 9 and 0.1 < result.ratio < 10
        assert board.count("load_module") == loads, "it had been uploaded"

        # The incumbent stays on the board, whatever is compared with it.
        rival = build(WORKLOAD, NATIVE, input_layout="NHWC").export(tmp_path / "nhwc.so")
        assert isinstance(runner.measure(rival, library, 2), Comparison)
        assert board.count("load_module") == loads + 1

        # Whole numbers are checked as well, and compared with a burst of their own.
        whole = build("int8_ic16ih6oc33oh6kh3ph1", NATIVE).export(tmp_path / "whole.so")
        result = runner.measure(whole, None, 2)
        assert isinstance(result, Comparison) and len(result.of_peak) == 2, result
        assert board.count("load_module") == loads + 3
        assert board.count("connected from") == 1, "all in one session"
    finally:
        runner.close()
    # The board is free again for others.
    until(lambda: farm.tracker("one").request() is not None)


def test_two_boards_at_once(farm: Farm, library: Path) -> None:
    boards = farm.boards("two", 2)
    runner = RpcRunner(NATIVE, 2, farm.tracker("two"))
    try:
        assert runner.slots == 2
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda c: runner.measure(c, library, 2), copies(library, 6)))
        assert all(isinstance(r, Comparison) for r in results), results
        assert [board.count("connected from") for board in boards] == [1, 1]
        assert [board.count("load_module") for board in boards] == [3, 3]
    finally:
        runner.close()


def test_wrong_results(farm: Farm, conv: CompiledConv, library: Path, tmp_path: Path) -> None:
    # Neither the other layout nor the other function is refused: only the output tells.
    lying = replace(conv.manifest, input_layout=type(conv.manifest.input_layout)("NHWC"))
    shutil.copy(library, tmp_path / "lying.so")
    idle = library_in_c(conv.manifest, "return 0;", tmp_path / "idle.so")
    refusing = tmp_path / "refusing.so"
    shutil.copy(library, refusing)
    described(replace(conv.manifest, workload=ConvWorkload.parse("ic8ih9oc16kh3ph1")), refusing)
    hanging = library_in_c(conv.manifest, "for (;;) pause();", tmp_path / "hanging.so")

    server = farm.lonely("me")
    runner = RpcRunner(NATIVE, 1, Server("127.0.0.1", server.port, "me"), timeout=6, wait=0)
    try:
        assert isinstance(runner.measure(library, None, 1), Comparison)
        # The right output still lies there when the idle one runs.
        for wrong in (idle, described(lying, tmp_path / "lying.so")):
            result = runner.measure(wrong, library, 1)
            assert isinstance(result, Failure) and result.kind == "wrong_result", result
            assert re.search(r"board 127\.0\.0\.1:\d+: \d+ of 1024 outputs differ", result.message)
        result = runner.measure(refusing, None, 1)
        assert isinstance(result, Failure) and result.kind == "crash", result
        assert "expect" in result.message.lower(), result
        with pytest.raises(LibraryError, match="does not exist"):
            runner.measure(library_without_manifest(tmp_path), None, 1)
        assert isinstance(runner.measure(library, None, 1), Comparison)
        assert server.count("connected from") == 2, "only the last failure cost the session"
        begin = time.monotonic()
        result = runner.measure(hanging, library, 1)
        assert 6 < time.monotonic() - begin < 25
        assert isinstance(result, Failure) and result.kind == "timeout", result
        assert re.search(r"board .* gave no answer within 6 s", result.message)
    finally:
        runner.close()


def library_without_manifest(folder: Path) -> Path:
    path = folder / "bare.so"
    path.write_bytes(b"")
    return path


def test_boards_of_another_kind(farm: Farm, library: Path) -> None:
    farm.boards("other", 1)
    runner = RpcRunner(NATIVE, 1, farm.tracker("other"), wait=0)
    try:
        runner._equipment.cpuinfo.write_bytes(b"for another machine")
        result = runner.measure(library, None, 1)
    finally:
        runner.close()
    assert isinstance(result, Failure) and result.kind == "rpc_lost", result
    message = f"it does not load code for {NATIVE.name}: expected boards of that kind under the key"
    assert message in result.message


def test_old_sessions_are_replaced(
    farm: Farm, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Servers end sessions at some age; ours must not be at work then.
    monkeypatch.setattr(rpc, "_SESSION_SECONDS", 0.0)
    (board,) = farm.boards("old", 1)
    runner = RpcRunner(NATIVE, 1, farm.tracker("old"))
    try:
        for _ in range(2):
            assert isinstance(runner.measure(library, None, 1), Comparison)
        assert board.count("connected from") == 2
    finally:
        runner.close()


# --- Losing boards ------------------------------------------------------------------------------


def test_boards_die_freeze_and_come_back(farm: Farm, library: Path) -> None:
    boards = farm.boards("four", 4)
    # Who finds no board waits for those of the others, however long that takes.
    runner = RpcRunner(NATIVE, 1, farm.tracker("four"), timeout=6, wait=0, cool_down=0.03)
    results: list[Comparison | Failure] = []
    done = threading.Semaphore(0)

    def measure(candidate: Path) -> None:
        results.append(runner.measure(candidate, library, 5, thorough=True))
        done.release()

    try:
        begin = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            for candidate in copies(library, 24):
                pool.submit(measure, candidate)
            for _ in range(5):
                assert done.acquire(timeout=60)
            until(lambda: all(board.count("connected from") for board in boards))
            boards[0].kill()
            boards[1].signal(signal.SIGSTOP)
        assert time.monotonic() - begin < 60
        assert len(results) == 24
        kinds = Counter(r.kind for r in results if isinstance(r, Failure))
        assert kinds == {"rpc_lost": 1, "timeout": 1}, results
        assert [b.count("connected from") for b in boards[2:]] == [1, 1]

        # Without the others, the one that was frozen is all there is.
        for board in boards[2:]:
            board.kill()
        lost = [runner.measure(library, None, 1) for _ in boards[2:]]
        assert [r.kind for r in lost if isinstance(r, Failure)] == ["rpc_lost"] * 2, lost
        boards[1].signal(signal.SIGCONT)
        until(lambda: isinstance(runner.measure(library, None, 1), Comparison))
    finally:
        runner.close()


def test_a_run_survives_the_loss_of_boards(farm: Farm, tmp_path: Path) -> None:
    boards = farm.boards("run", 4)
    reported = 0

    def lose_two(tuner: Tuner) -> None:
        nonlocal reported
        reported = sum(layer.trials for layer in tuner.layers)
        if reported == 5:
            boards[0].kill()
            boards[1].signal(signal.SIGSTOP)

    runner = RpcRunner(NATIVE, 1, farm.tracker("run"), timeout=6, cool_down=0.03)
    try:
        tuner = Tuner(
            [ConvWorkload.parse("ic16ih12oc32oh12kh3ph1")],
            NATIVE,
            runner,
            budget=Budget(trials=32),
            strategy="random",
            folder=tmp_path,
            on_trial=lose_two,
        )
        (layer,) = tuner.run()
    finally:
        runner.close()
    records = log_file.read(tuner.log)
    kinds = Counter(record.status for record in records)
    # A board that was not in use costs nothing.
    assert kinds.pop("ok") >= 31 and kinds <= Counter({"rpc_lost": 1, "timeout": 1}), kinds
    assert len({record.blocking for record in records}) == reported == layer.trials == 32
    assert layer.failures == kinds.total() > 0
    assert {(record.measured_by, record.cpu) for record in records} == {("rpc", host_cpu().id)}
    assert all(record.of_peak for record in records if record.status == "ok")
    assert [record for record in records if record.chosen] == [layer.chosen] == records[-1:]


def test_all_boards_gone(farm: Farm, library: Path) -> None:
    (board,) = farm.boards("gone", 1)
    runner = RpcRunner(NATIVE, 1, farm.tracker("gone"), timeout=10, wait=1)
    try:
        assert isinstance(runner.measure(library, None, 1), Comparison)
        board.kill()
        result = runner.measure(library, None, 1)
        assert isinstance(result, Failure) and result.kind == "rpc_lost", result
        begin = time.monotonic()
        result = runner.measure(library, None, 1)
        assert time.monotonic() - begin < 10
        assert isinstance(result, Failure) and result.kind == "rpc_lost", result
        assert re.search(
            r"no board is left: none was free within 1 s; the tracker at 127.0.0.1:\d+ knows no "
            r"board with key 'gone': .* Start a server on each board",
            result.message,
        )
        farm.boards("gone", 1)
        assert isinstance(runner.measure(library, None, 1), Comparison)
    finally:
        runner.close()
    assert runner.measure(library, None, 1) == Failure("rpc_lost", "the runner was closed")


def test_rests_and_closes(farm: Farm, library: Path) -> None:
    farm.boards("hot", 1)
    runner = RpcRunner(NATIVE, 1, farm.tracker("hot"), cool_down=0.2)
    runner.measure(library, None, 1)
    begin = time.monotonic()
    runner.measure(library, library, 3)
    assert time.monotonic() - begin > 3 * 3 * 0.2
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(runner.measure, library, library, 1000, True)
        until(lambda: runner._busy)
        begin = time.monotonic()
        runner.close()
        assert future.result() == Failure("rpc_lost", "the runner was closed")
    assert time.monotonic() - begin < 30, "it need not make all repeats"


def test_a_key_that_has_changed_is_asked_for_again(farm: Farm, library: Path) -> None:
    """As where importing takes longer than a server waits: the key that was given is stale."""
    farm.boards("late", 1)
    given = []

    class Late(Tracker):
        def request(self) -> rpc._Place | None:
            place = given[0] if given else super().request()
            given.append(place)
            if place and len(given) == 1:
                return place._replace(key="late:0.123")
            return place

    runner = RpcRunner(NATIVE, 1, Late("127.0.0.1", farm.port, "late"), timeout=30, wait=0.1)
    try:
        assert isinstance(runner.measure(library, None, 1), Comparison)
    finally:
        runner.close()
    assert len(given) == 2


def test_advice_binds_to_where_the_tracker_is() -> None:
    """A range of ports that ends where it is to begin is no help."""
    here = Tracker("localhost", 9250, "pi")
    assert here.command.endswith("rpc_tracker --host 127.0.0.1 --port 9250 --port-end 9251")
    assert (
        "--host 192.168.0.10 --port 9190 --port-end 9191"
        in Tracker("192.168.0.10", 9190, "pi").command
    )
    assert "--host ::1 " in Tracker("::1", 9190, "pi").command


# --- What is asked for --------------------------------------------------------------------------


def test_trackers_are_found() -> None:
    environment = {"TVM_TRACKER_HOST": "pi", "TVM_TRACKER_PORT": "1234", "TVM_TRACKER_KEY": "k"}
    assert find_tracker(environment=environment) == Tracker("pi", 1234, "k")
    assert find_tracker("me:99", "mine", environment) == Tracker("me", 99, "mine")
    assert find_tracker("me", None, environment) == Tracker("me", 9190, "k")
    assert find_tracker("[::1]:99", "k", {}) == Tracker("::1", 99, "k")
    assert find_tracker(None, "k", {"TVM_TRACKER_HOST": "pi"}) == Tracker("pi", 9190, "k")


@pytest.mark.parametrize("port", ["x", "0", "65536", "", "-1", "9190 "])
def test_bad_ports(port: str) -> None:
    with pytest.raises(RpcError, match=rf"^the tracker is 'pi:{port}': expected HOST:PORT"):
        find_tracker(f"pi:{port}", "k", {})
    if port:
        with pytest.raises(RpcError, match=rf"^TVM_TRACKER_HOST with .* is 'pi:{port}': expected"):
            find_tracker(environment={"TVM_TRACKER_HOST": "pi", "TVM_TRACKER_PORT": port})


def test_what_is_missing_is_named() -> None:
    with pytest.raises(RpcError, match="no tracker is given: expected --rpc-tracker HOST:PORT"):
        find_tracker(None, "k", {})
    with pytest.raises(RpcError, match="no key of the boards is given: expected --rpc-key KEY"):
        find_tracker("pi:9190", None, {})


def test_unreachable_trackers(farm: Farm) -> None:
    port = free_port()
    with pytest.raises(RpcError, match=f"127.0.0.1:{port} does not answer .*: expected HOST:PORT"):
        RpcRunner(NATIVE, 1, Tracker("127.0.0.1", port, "k"))
    board = farm.lonely("alone")
    with pytest.raises(RpcError, match=f"127.0.0.1:{board.port} does not answer"):
        RpcRunner(NATIVE, 1, Tracker("127.0.0.1", board.port, "k"))


def test_unknown_keys(farm: Farm) -> None:
    farm.boards("pi", 1)
    with pytest.raises(
        RpcError, match=r"knows no board with key 'pie': it knows .*\bpi\b.*--key pie"
    ):
        RpcRunner(NATIVE, 1, farm.tracker("pie"))
