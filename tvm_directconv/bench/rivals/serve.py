"""The process of one contestant: it does what it reads, one JSON object a line, and answers so.

Started by :class:`tvm_directconv.bench.rivals.turns.Process`.
"""

import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np

from ... import pool
from ...errors import said_by
from ...layout import aligned_zeros
from ...runtime import BoundCall
from ...workload import ConvWorkload
from .base import Contestant, Failed, NotHere, Prepared, Source, Unsupported

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux.
_SHORTEST = 2e-3  # seconds that a group of calls takes at least
_CALLED = ("call", "output", "allowed", "feed", "precision")  # What of it is not told.
_LONG = 0.5  # seconds from which a call needs no other one before it
# A process that was stopped computes so long before it is timed: with one thread, for caches and
# clock. Linux may let two threads go on on one core, where they wait for each other. It parts most
# of them within 10 ms; some stay together for long, and are given up.
_WARM_UP_ALONE, _WARM_UP_TOGETHER, _WARM_UP_AT_MOST = 2e-3, 10e-3, 0.1  # seconds
_RUNS_FOR_MEMORY = 3
# All code that a first layer loads is loaded by this one, and not counted as memory of a layer.
_WARM_UP = ConvWorkload(
    in_channels=16, in_height=8, in_width=8, out_channels=16, kernel=(3, 3), padding=(1, 1, 1, 1)
)


class Server:
    """Answers commands."""

    def __init__(self, contestant: Contestant, threads: int) -> None:
        self.contestant = contestant
        self.threads = threads
        self.kept: list[Prepared] = []
        self.number = 1

    def hello(self, layers: bool) -> dict[str, Any]:
        """Load the library, and say which."""
        try:
            self.contestant.load_library()
        except (ImportError, OSError) as error:
            raise NotHere(said_by(error)) from error
        library = self.contestant.library()
        if layers:
            # What fails here fails with layers, too, and is told there.
            with contextlib.suppress(Exception):
                self.warm_up()
        self.release()
        return {"library": library}

    def warm_up(self) -> dict[str, Any]:
        """Prepare some layer; all that the burst needs."""
        memory = _Memory()
        prepared = self.contestant.prepare_layer(
            _WARM_UP,
            self.threads,
            np.zeros(_WARM_UP.weight_shape, np.float32),
            aligned_zeros(_WARM_UP.input_shape),
        )
        return self._take(prepared, memory)

    def convert(self, source: dict[str, str]) -> dict[str, Any]:
        """Make the file that the library loads."""
        self.contestant.check_dtype(source["dtype"])
        begin = time.perf_counter()
        path = self.contestant.convert(Source(**source), self.threads)
        return {"path": str(path), "seconds": time.perf_counter() - begin}

    def layer(self, folder: str, workload: dict[str, Any], again: bool) -> dict[str, Any]:
        """Prepare a layer.

        What was prepared before is kept: this one is in other places in memory. That is all that
        `again` is for.
        """
        convolution = ConvWorkload(**workload)
        if convolution.dtype not in self.contestant.precisions:
            raise Unsupported(f"{self.contestant.name} computes no layers in {convolution.dtype}")
        if reason := self.contestant.unsupported(convolution):
            raise Unsupported(reason)
        place = Path(folder)
        memory = _Memory()
        prepared = self.contestant.prepare_layer(
            convolution, self.threads, np.load(place / "weight.npy"), _input(place)
        )
        if again:
            prepared.call()
            self.kept.append(prepared)
            return {}
        found = self._take(prepared, memory)
        np.save(place / "output.npy", prepared.output())
        return found

    def network(self, folder: str, path: str, dtype: str) -> dict[str, Any]:
        """Load a network, for the first of some images; the output is of all of them."""
        self.contestant.check_dtype(dtype)
        place = Path(folder)
        images = np.load(place / "x.npy")
        x = _aligned(images[:1])
        memory = _Memory()
        prepared = self.contestant.prepare_network(Path(path), self.threads, x, dtype)
        found = self._take(prepared, memory)
        feed = prepared.feed or functools.partial(np.copyto, x)
        outputs = []
        for image in reversed(images):  # At last it has the first one again.
            feed(image[np.newaxis])
            prepared.call()
            outputs.append(np.array(prepared.output()))
        np.save(place / "output.npy", np.stack(outputs[::-1]))
        if prepared.precision:
            found["precision"] = prepared.precision()
        return found

    def _take(self, prepared: Prepared, memory: "_Memory") -> dict[str, Any]:
        """Keep what is prepared, and tell of it."""
        prepared.call()  # What is done in the first call only belongs to preparing.
        loading = memory.peak()
        memory.clear()
        seconds: list[float] = []
        while len(seconds) < _RUNS_FOR_MEMORY and sum(seconds) < _LONG:
            seconds.append(_timed(prepared.call))
        running, resident = memory.peak(), memory.now()
        self.number = max(1, round(_SHORTEST / max(min(seconds), 1e-7)))
        self.kept.append(prepared)
        told = [field.name for field in fields(Prepared) if field.name not in _CALLED]
        return {
            **{key: getattr(prepared, key) for key in told},
            "peak_bytes": max(loading, running, resident),
            "running_bytes": max(running, resident),
            "resident_bytes": resident,
        }

    def run(self) -> dict[str, Any]:
        """Compute what was prepared last, for a while, then often enough to be timed."""
        call = self.kept[-1].call
        # All at once: to hand a call over to that thread is not the kernel's time.
        threads = call.threads if isinstance(call, BoundCall) else 1
        found = {"seconds": pool.run(threads, lambda: self._seconds(call))}
        if allowed := self.kept[-1].allowed:
            found["allowed"] = allowed()
        return found

    def _seconds(self, call: Callable[[], object]) -> float:
        least, most = _WARM_UP_ALONE, _WARM_UP_ALONE
        if self.threads > 1:
            least, most = _WARM_UP_TOGETHER, _WARM_UP_AT_MOST
        spent = _timed(call)
        if spent > _LONG:
            return spent
        while spent < least or (spent < most and threads_share_a_core()):
            spent += _timed(call)
        begin = time.perf_counter()
        for _ in range(self.number):
            call()
        return (time.perf_counter() - begin) / self.number

    def release(self) -> dict[str, Any]:
        """Forget all that was prepared."""
        self.kept.clear()
        return {}


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def threads_share_a_core() -> bool:
    """Return whether two threads of this process want to run on one core, as Linux tells."""
    cores = []
    for thread in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # It may have ended.
            state, *rest = thread.read_text().rpartition(")")[2].split()
            if state == "R":
                cores.append(rest[35])
    return len(set(cores)) < len(cores)


class _Memory:
    """How much more memory this process takes than in the beginning."""

    def __init__(self) -> None:
        self._tidy()
        self._before = _status("VmRSS")
        self.clear()

    def clear(self) -> None:
        """Count peaks from now on."""
        self._tidy()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        return _status("VmHWM") - self._before

    def now(self) -> int:
        return _status("VmRSS") - self._before

    @staticmethod
    def _tidy() -> None:
        gc.collect()
        with contextlib.suppress(AttributeError):  # Not every C library has it.
            ctypes.CDLL(None).malloc_trim(0)


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


def _input(place: Path) -> np.ndarray:
    return _aligned(np.load(place / "x.npy"))


def _aligned(array: np.ndarray) -> np.ndarray:
    copy = aligned_zeros(array.shape, array.dtype)
    copy[...] = array
    return copy


def contestant_of(spec: dict[str, Any]) -> Contestant:
    """Make a contestant of its module, class and fields."""
    kind = getattr(importlib.import_module(spec["module"]), spec["class"])
    return cast(Contestant, kind(**spec["fields"]))


def _answer(server: Server, command: dict[str, Any]) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], getattr(server, command.pop("do"))(**command))
    except (NotHere, Unsupported, Failed) as error:
        return {"error": type(error).__name__, "reason": str(error)}
    except Exception as error:  # Whatever a library raises.
        return {"error": "Failed", "reason": said_by(error)}


def main() -> None:
    """Serve until there is nothing more to read."""
    # A stopped process would not see that nobody tells it anything any more.
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Libraries print what they like.
    spec, threads = json.loads(sys.argv[1]), int(sys.argv[2])
    server = Server(contestant_of(spec), threads)
    for line in sys.stdin:
        print(json.dumps(_answer(server, json.loads(line))), file=channel, flush=True)


if __name__ == "__main__":
    main()
