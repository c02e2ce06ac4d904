"""Candidates on boards, over TVM's RPC: uploaded, checked and timed there.

Libraries are linked on this machine, so a board needs TVM's runtime and its RPC server, and no
compiler. A tracker knows the boards; those with the same key are taken to be alike.

TVM's client waits in C++ for a board that answers no more, where nothing in Python can interrupt
it. So each board is talked to by a process of its own (:class:`~..worker.Worker`), which is ended
when a step takes too long. It costs that trial; the next one is done on another board, or on the
same one when the tracker offers it again.
"""

import contextlib
import functools
import hashlib
import ipaddress
import json
import os
import re
import shlex
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from ... import deploy, files
from ...bench.compare import Comparison, Failure, compare
from ...bench.peak import BurstCode
from ...conv_manifest import ConvManifest
from ...errors import DeviceError, DirectConvError, RpcError, said_by
from ...hardware.device import Device
from ...hardware.host import cpu_of
from ...manifest import manifest_path
from ...precision import Precision
from ...toolchain import find_toolchain, run_cc
from ...workload import ConvWorkload
from ..worker import Worker
from . import TIME_LIMIT
from .problem import problem, unwritten, wrong

_P = ParamSpec("_P")
_T = TypeVar("_T")

_TRACKER_PORT = 9190  # as TVM's trackers choose it
_SERVER = 9090  # as TVM's servers choose it
_TRACKER_SECONDS = 10.0  # for one answer of a tracker, which does nothing but answer
_START_SECONDS = 120.0  # for importing TVM in a process here, on a busy machine
_KEY_SECONDS = 12.0  # until a server has told its tracker a new key, and some
_POLL_SECONDS = 0.5  # between questions for a free board
# After these, servers end a session by themselves. It frees a board whose client has vanished
# without a word; ours are replaced when half of it is over.
_SESSION_SECONDS = 3600.0
_SHORTEST = 5e-3  # seconds: calls are timed in groups that take at least this long
_CPUINFO_BYTES = 1 << 16


class _Place(NamedTuple):
    """Where a board's server listens, and the key that it lets in."""

    host: str
    port: int
    key: str


@dataclass(frozen=True)
class Tracker:
    """The boards that a tracker knows under one key.

    Attributes
    ----------
    host : str
    port : int
    key : str
        What the servers on the boards were started with (``--key``).
    """

    host: str
    port: int
    key: str

    def __str__(self) -> str:
        return f"the tracker at {self.host}:{self.port}"

    @property
    def command(self) -> str:
        """Return what starts it."""
        # Without --port-end it takes another port if this one is in use, and none from 9199 on.
        return (
            f"python -m tvm.exec.rpc_tracker --host {self._loopback or self.host} "
            f"--port {self.port} --port-end {self.port + 1}"
        )

    @property
    def _loopback(self) -> str:
        """Return the address of this machine that only itself reaches, if the tracker is there."""
        if self.host == "localhost":
            return "127.0.0.1"
        try:
            return self.host if ipaddress.ip_address(self.host).is_loopback else ""
        except ValueError:
            return ""

    def count(self) -> int:
        """Return the number of boards, free or not.

        Raises
        ------
        RpcError
            If the tracker does not answer, or knows no such board.
        """
        try:
            with self._connect() as connection:
                servers = self._summary(connection)["server_info"]
        except (OSError, ValueError, struct.error) as error:
            raise RpcError(
                f"{self} does not answer ({error}): expected HOST:PORT of a running tracker. Start "
                f"one with: {self.command}"
            ) from None
        keys = [server["key"].removeprefix("server:") for server in servers]
        if self.key not in keys:
            others = f"it knows {', '.join(sorted(set(keys)))}" if keys else "it knows no boards"
            raise RpcError(
                f"{self} knows no board with key {self.key!r}: {others}. Start a server on each "
                f"board, through ssh, as whoever reaches one can run code on it: ssh -L {_SERVER}:"
                f"127.0.0.1:{_SERVER} -R {self.port}:{self.host}:{self.port} BOARD python -m "
                f"tvm.exec.rpc_server --host 127.0.0.1 --port {_SERVER} --port-end {_SERVER + 1} "
                f"--tracker 127.0.0.1:{self.port} --key {shlex.quote(self.key)}"
            )
        return keys.count(self.key)

    def request(self) -> _Place | None:
        """Return a board that nobody uses, which is then ours, or None if there is none.

        Raises
        ------
        OSError
            If the tracker does not answer.
        """
        from tvm.rpc.base import TrackerCode

        with self._connect() as connection:
            # A request without a free board would wait for one.
            if not self._summary(connection)["queue_info"].get(self.key, {}).get("free"):
                return None
            try:
                host, port, key = _ask(connection, [TrackerCode.REQUEST, self.key, "", 1])
            except TimeoutError:  # Somebody else was faster.
                return None
        return _Place(host, port, key)

    def _connect(self) -> socket.socket:
        from tvm.rpc.base import RPC_TRACKER_MAGIC, recvall

        magic = struct.pack("<i", RPC_TRACKER_MAGIC)
        connection = socket.create_connection((self.host, self.port), _TRACKER_SECONDS)
        try:
            connection.sendall(magic)
            if recvall(connection, len(magic)) != magic:
                raise OSError("what listens there is no tracker")
        except BaseException:
            connection.close()
            raise
        return connection

    def _summary(self, connection: socket.socket) -> Any:
        from tvm.rpc.base import TrackerCode

        return _ask(connection, [TrackerCode.SUMMARY])


def _ask(connection: socket.socket, message: list[Any]) -> Any:
    from tvm.rpc.base import TrackerCode, recvjson, sendjson

    sendjson(connection, message)
    status, answer = recvjson(connection)
    if status != TrackerCode.SUCCESS:
        raise OSError(f"it answers {json.dumps(answer)}")
    return answer


@dataclass(frozen=True)
class Server:
    """One board, without a tracker.

    Attributes
    ----------
    host : str
    port : int
    key : str
        What the server was started with, if it was (``--key``).
    """

    host: str
    port: int
    key: str = ""

    def __str__(self) -> str:
        return f"the server at {self.host}:{self.port}"

    def count(self) -> int:
        """Return 1."""
        return 1

    def request(self) -> _Place:
        """Return where it is. Whether it is free shows when it is called."""
        return _Place(self.host, self.port, self.key)


def find_tracker(
    address: str | None = None,
    key: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Tracker:
    """Return the tracker that was asked for, or that TVM's environment variables name.

    Parameters
    ----------
    address : str, optional
        ``HOST:PORT`` or ``HOST``; if not given, ``TVM_TRACKER_HOST`` and ``TVM_TRACKER_PORT``.
    key : str, optional
        Key of the boards; if not given, ``TVM_TRACKER_KEY``.
    environment : Mapping
        Where the variables are.

    Returns
    -------
    Tracker
        It has not been talked to yet.

    Raises
    ------
    RpcError
        If one of these is missing or malformed.
    """
    source = "the tracker"
    if address is None:
        source = "TVM_TRACKER_HOST with TVM_TRACKER_PORT"
        host = environment.get("TVM_TRACKER_HOST")
        if not host:
            raise RpcError(
                "no tracker is given: expected --rpc-tracker HOST:PORT, or TVM_TRACKER_HOST and "
                "TVM_TRACKER_PORT in the environment"
            )
        port = environment.get("TVM_TRACKER_PORT")
        address = f"{host}:{port}" if port else host
    # An IPv6 address stands in brackets.
    match = re.fullmatch(r"(?:\[(.+)\]|([^:\[\]\s]+))(?::(\d{1,5}))?", address)
    number = int(match[3] or _TRACKER_PORT) if match else 0
    if match is None or not 0 < number < 65536:
        raise RpcError(
            f"{source} is {address!r}: expected HOST:PORT with a port from 1 to 65535, such as "
            f"192.168.0.10:{_TRACKER_PORT}"
        )
    key = environment.get("TVM_TRACKER_KEY") if key is None else key
    if not key:
        raise RpcError(
            "no key of the boards is given: expected --rpc-key KEY, or TVM_TRACKER_KEY in the "
            "environment; it is what their servers were started with"
        )
    return Tracker(match[1] or match[2], number, key)


class RpcRunner:
    """Measures on boards.

    Parameters
    ----------
    device : Device
        What the boards are.
    threads : int
        By how many threads candidates compute, and the burst.
    boards : Tracker or Server
        Where the boards are; see :func:`find_tracker`.
    timeout : float
        Seconds that a board may take for one step: to load and check a candidate, or for one
        timing. After these it is given up, until the tracker offers it again.
    wait : float
        Seconds that a measurement waits for a board when none is left.
    cool_down : float
        Seconds to rest before each timing, for boards that lower their frequency when hot.

    Attributes
    ----------
    cpu, cpu_name : str or None
        Of the first board that measured; boards with the same key are taken to be alike.

    Raises
    ------
    RpcError
        If the tracker does not answer, or knows no such board.
    ToolchainError
        If there is no C compiler for the device.
    """

    measured_by = "rpc"
    suffix = ".so"

    def __init__(
        self,
        device: Device,
        threads: int,
        boards: Tracker | Server,
        *,
        timeout: float = TIME_LIMIT,
        wait: float = 60.0,
        cool_down: float = 0.0,
    ) -> None:
        self.slots = boards.count()
        self.cpu: str | None = None
        self.cpu_name: str | None = None
        self.cpu_device: str | None = device.name
        self._device, self._boards = device, boards
        self._timeout, self._wait, self._cool_down = timeout, wait, cool_down
        self._scratch = contextlib.ExitStack()
        folder = self._scratch.enter_context(files.scratch())
        self._equipment = _equipment(device, threads, folder)
        self._bursts = _Bursts(device, threads, folder)
        self._closed = threading.Event()
        # Guards what follows, and is notified when a board becomes idle or is given up.
        self._changed = threading.Condition()
        self._idle: list[_Board] = []
        self._busy = 0  # boards that measure
        self._connecting = 0  # threads that look for another board

    def measure(
        self, candidate: Path, incumbent: Path | None, repeats: int, thorough: bool = False
    ) -> Comparison | Failure:
        """Check a candidate's result, then compare it with the incumbent and the burst."""
        try:
            board = self._take()
        except _Lost as lost:
            return lost.failure
        usable = False
        try:
            result = self._compare(board, candidate, incumbent, repeats, thorough)
            usable = True
        except _Lost as lost:
            result = lost.failure
        except _BoardError as error:
            result = Failure("crash", f"{board}: {error}")
            usable = True
        finally:
            self._give_back(board, usable)
        return result

    def close(self) -> None:
        """End all sessions, and their processes, after the steps that they are at."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._busy and not self._connecting)
            for board in self._idle:
                board.close()
            self._idle.clear()
        self._scratch.close()

    def _compare(
        self,
        board: "_Board",
        candidate: Path,
        incumbent: Path | None,
        repeats: int,
        thorough: bool,
    ) -> Comparison | Failure:
        message, workload = board.call(_check, candidate, incumbent)
        if message:
            return Failure("wrong_result", f"{board}: {message}")

        def timer(timed: Path | _Burst) -> Callable[[], float]:
            def seconds() -> float:
                if self._closed.wait(self._cool_down):
                    raise _Lost("rpc_lost", "the runner was closed")
                return board.call(_seconds, timed)

            return seconds

        burst = self._bursts.of(workload.precision)

        def peak() -> float:
            assert burst
            return burst.flops / timer(burst)() / 1e9

        return compare(
            timer(candidate),
            timer(incumbent) if incumbent else None,
            peak if burst else None,
            workload.flops,
            repeats,
            thorough=thorough,
        )

    def _take(self) -> "_Board":
        """Return an idle board, or another one, or the next that becomes idle."""
        end = time.monotonic() + self._wait
        silent = 0
        why = ""
        while True:
            with self._changed:
                if self._closed.is_set():
                    raise _Lost("rpc_lost", "the runner was closed")
                if self._idle:
                    self._busy += 1
                    return self._idle.pop()
                may_connect = self._busy + self._connecting < self.slots
                self._connecting += may_connect
            if may_connect:
                board = None
                try:
                    board = self._connect()
                except OSError:
                    pass  # The tracker may be back by the next time.
                except (_Lost, _BoardError) as error:
                    why = f"the last one failed: {error}"
                    # That took its time, in which others may have come. Boards that answer no
                    # more are offered once each.
                    silent += 1
                    if silent < self.slots:
                        end = time.monotonic() + self._wait
                finally:
                    with self._changed:
                        self._connecting -= 1
                        self._busy += board is not None
                        self._changed.notify_all()
                if board:
                    return board
            with self._changed:
                if self._busy:
                    # The others' steps are limited, so these boards become idle, or are given up.
                    end = max(end, time.monotonic() + self._wait)
                elif time.monotonic() > end:
                    break
                self._changed.wait_for(
                    lambda: self._idle or self._closed.is_set(), timeout=_POLL_SECONDS
                )
        if not why:
            try:
                why = f"{self._boards.count()} are in use by others"
            except RpcError as error:
                why = str(error)
        raise _Lost("rpc_lost", f"no board is left: none was free within {self._wait:g} s; {why}")

    def _connect(self) -> "_Board | None":
        place = self._boards.request()
        if place is None:
            return None
        board = _Board(place, self._equipment, self._timeout, self._boards.request)
        if self.cpu is None:
            self.cpu, self.cpu_name = cpu_of(board.cpuinfo, self._device.triple.split("-")[0])
        return board

    def _give_back(self, board: "_Board", usable: bool) -> None:
        usable = usable and board.age < _SESSION_SECONDS / 2
        if not usable:
            board.close()
        with self._changed:
            self._busy -= 1
            if usable:
                self._idle.append(board)
            self._changed.notify_all()


# --- What is uploaded to every board --------------------------------------------------------------


@dataclass(frozen=True)
class _Equipment:
    """What sessions begin with."""

    device: str
    threads: int
    cpuinfo: Path


@dataclass(frozen=True)
class _Burst:
    """The library of a burst, and how to call it."""

    library: Path
    symbol: str
    arrays: tuple[np.ndarray, ...] = field(repr=False)
    flops: int


class _Bursts:
    """The bursts of a device, each compiled when it is first asked for."""

    def __init__(self, device: Device, threads: int, folder: Path) -> None:
        self._device, self._threads, self._folder = device, threads, folder
        self._lock = threading.Lock()
        self._found: dict[Precision, _Burst | None] = {}

    def of(self, precision: Precision) -> _Burst | None:
        """Return that of a precision; None if there is none of its instruction."""
        with self._lock:
            if precision not in self._found:
                self._found[precision] = self._compiled(precision)
            return self._found[precision]

    def _compiled(self, precision: Precision) -> _Burst | None:
        try:
            code = BurstCode(self._device, self._threads, precision)
        except DeviceError:
            return None
        library = self._folder / f"burst-{precision}.so"
        code.export(library)
        return _Burst(library, code.symbol, code.arrays(), code.flops)


def _equipment(device: Device, threads: int, folder: Path) -> _Equipment:
    cpuinfo = folder / "cpuinfo.so"
    source = Path(deploy.__file__).with_name("cpuinfo.c")
    flags = ["-std=c99", "-O2", "-shared", "-fPIC"]
    run_cc([*flags, str(source)], cpuinfo, find_toolchain(device.triple))
    return _Equipment(device.name, threads, cpuinfo)


# --- A board, seen from here ----------------------------------------------------------------------


class _Lost(Exception):
    """A board cannot be used any more."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


class _BoardError(Exception):
    """Something failed on a board that is still there."""


class _Board:
    """A session, in a process of its own."""

    def __init__(
        self,
        place: _Place,
        equipment: _Equipment,
        timeout: float,
        request: Callable[[], _Place | None],
    ) -> None:
        self._place, self._timeout = place, timeout
        self._begin = time.monotonic()
        self._worker = Worker()
        try:
            # This is no fault of the board, so it has a limit of its own.
            self._call(_START_SECONDS, _import)
            self.cpuinfo: str = self._connected(equipment, request)
        except BaseException:
            self.close()
            raise

    def _connected(self, equipment: _Equipment, request: Callable[[], _Place | None]) -> str:
        """Connect, and return the board's processor."""
        try:
            return self.call(_connect, self._place, equipment)
        except _Lost as lost:
            # A server takes a new key if nobody comes within seconds, and a busy machine needs
            # longer to import TVM. Now that this is done, the new one will be in time.
            end = time.monotonic() + _KEY_SECONDS
            while lost.failure.kind != "timeout" and time.monotonic() < end:
                if place := request():
                    self._place = place
                    return self.call(_connect, place, equipment)
                time.sleep(_POLL_SECONDS)
            raise

    def __str__(self) -> str:
        return f"board {self._place.host}:{self._place.port}"

    @property
    def age(self) -> float:
        """Seconds since the session began."""
        return time.monotonic() - self._begin

    def call(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call one of the functions below in the process."""
        return self._call(self._timeout, function, *args)

    def _call(self, seconds: float, function: Callable[..., _T], *args: Any) -> _T:
        try:
            result = self._worker.call(seconds, function, *args)
        except ConnectionError as error:
            raise _Lost("rpc_lost", f"{self} was lost: {error}") from None
        if not isinstance(result, Failure):
            return result
        if result.kind == "timeout":
            raise _Lost("timeout", f"{self} gave no answer within {seconds:g} s")
        # The process here ended: TVM's client does so at times when a connection is lost.
        raise _Lost("rpc_lost", f"{self} was lost: {result.message}")

    def close(self) -> None:
        """End the session, by ending the process."""
        self._worker.close()


# --- The process that talks to a board ------------------------------------------------------------


@dataclass
class _Loaded:
    """A library on the board."""

    data: bytes
    manifest: ConvManifest
    module: Any
    arrays: tuple[Any, ...]
    seconds: Callable[[], float] | None = None


class _Session:
    """One session, and what has been uploaded in it."""

    def __init__(self, place: _Place, equipment: _Equipment) -> None:
        from tvm import rpc

        self._remote = rpc.connect(*place, session_timeout=_SESSION_SECONDS)
        self._cpu = self._remote.cpu()
        self._remote.get_function("runtime.config_threadpool")(1, equipment.threads)
        self._workload = ""
        self._arrays: dict[tuple[str, str], Any] = {}
        self._loaded: dict[Path, _Loaded] = {}
        self._bursts: dict[Path, Callable[[], float]] = {}
        try:
            self._cpuinfo = self._load(equipment.cpuinfo.read_bytes())
        except Exception as error:
            if not self.is_alive():
                raise
            raise _BoardError(
                f"it does not load code for {equipment.device}: expected boards of that kind under "
                f"the key {place.key.split(':')[0]!r} ({error})"
            ) from None

    def is_alive(self) -> bool:
        try:
            self._remote.get_function("runtime.config_threadpool")
        except Exception:
            return False
        return True

    def cpuinfo(self) -> str:
        text = self._tensor(np.zeros(_CPUINFO_BYTES, np.uint8))
        self._cpuinfo["cpuinfo"](text)
        # Cut off within a paragraph, if it is longer: that one then lacks some facts.
        return text.numpy().tobytes().rstrip(b"\0").decode("utf-8", "replace")

    def check(self, candidate: Path, incumbent: Path | None) -> tuple[str | None, ConvWorkload]:
        """Load both, and return what is wrong with the candidate's output, and what it computes."""
        known = list(self._loaded.values())
        # What is good stays from one candidate to the next; a board has little memory for others.
        self._loaded = {}
        for path in filter(None, (candidate, incumbent)):
            self._loaded[path] = self._library(path, known)
            known.append(self._loaded[path])
        loaded = self._loaded[candidate]
        out = loaded.arrays[-1]
        # What an earlier candidate has left there would be right.
        out.copyfrom(unwritten(np.empty(out.shape, out.dtype)))
        loaded.module[loaded.manifest.symbol](*loaded.arrays)
        expected = problem(loaded.manifest.workload).packed(loaded.manifest)[-1]
        return wrong(out.numpy(), expected), loaded.manifest.workload

    def burst(self, burst: _Burst) -> float:
        """Return the seconds of a burst."""
        if burst.library not in self._bursts:
            module = self._load(burst.library.read_bytes())
            arrays = [self._tensor(array) for array in burst.arrays]
            self._bursts[burst.library] = self._timer(module, burst.symbol, arrays, 1)
        return self._bursts[burst.library]()

    def seconds(self, library: Path) -> float:
        loaded = self._loaded[library]
        if loaded.seconds is None:
            arguments = loaded.module, loaded.manifest.symbol, loaded.arrays
            once = self._timer(*arguments, 1)()
            number = max(1, ceil(_SHORTEST / max(once, 1e-7)))
            loaded.seconds = self._timer(*arguments, number)
        return loaded.seconds()

    def _library(self, path: Path, known: list[_Loaded]) -> _Loaded:
        data = path.read_bytes()
        manifest = ConvManifest.read(manifest_path(path), data)
        for loaded in known:
            if (loaded.data, loaded.manifest) == (data, manifest):
                return loaded
        workload = str(manifest.workload)
        if workload != self._workload:
            self._workload = workload
            self._arrays.clear()
        layouts = {
            "input": manifest.input_layout,
            "weight": manifest.weight_layout,
            # Vectors say what of their blocks is filled up.
            **dict.fromkeys(manifest.operands(), manifest.blocking.lanes),
            "output": manifest.output_layout,
        }
        packed = problem(manifest.workload).packed(manifest)
        arrays = tuple(
            self._array(role, str(layout), array)
            for (role, layout), array in zip(layouts.items(), packed, strict=True)
        )
        return _Loaded(data, manifest, self._load(data), arrays)

    def _array(self, role: str, layout: str, array: np.ndarray) -> Any:
        if (role, layout) not in self._arrays:
            self._arrays[role, layout] = self._tensor(array)
        return self._arrays[role, layout]

    def _tensor(self, array: np.ndarray) -> Any:
        from tvm.runtime import tensor

        return tensor(array, self._cpu)

    def _load(self, library: bytes) -> Any:
        # The loader takes two files of one name for one library, even if the first is gone.
        name = f"{hashlib.sha256(library).hexdigest()}.so"
        self._remote.upload(bytearray(library), name)
        module = self._remote.load_module(name)
        # It stays loaded. Boards often keep such files in memory.
        self._remote.remove(name)
        return module

    def _timer(self, module: Any, symbol: str, arrays: Any, number: int) -> Callable[[], float]:
        evaluator = module.time_evaluator(symbol, self._cpu, number=number)
        return lambda: float(evaluator(*arrays).results[0])


_session: _Session | None = None


def _reported(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make exceptions of TVM say whether the board is still there."""

    @functools.wraps(function)
    def reported(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except (DirectConvError, OSError, _BoardError):
            raise
        except Exception as error:
            message = said_by(error)
            if _session is None or not _session.is_alive():
                raise ConnectionError(message) from None
            raise _BoardError(message) from None

    return reported


def _import() -> None:
    import tvm.rpc  # noqa: F401


@_reported
def _connect(place: _Place, equipment: _Equipment) -> str:
    global _session
    _session = _Session(place, equipment)
    return _session.cpuinfo()


@_reported
def _check(candidate: Path, incumbent: Path | None) -> tuple[str | None, ConvWorkload]:
    assert _session is not None
    return _session.check(candidate, incumbent)


@_reported
def _seconds(timed: Path | _Burst) -> float:
    """Return the seconds of one call of a library that was checked, or of the burst."""
    assert _session is not None
    return _session.burst(timed) if isinstance(timed, _Burst) else _session.seconds(timed)
