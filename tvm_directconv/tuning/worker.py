"""A process that does what may crash or hang, and is replaced when it does.

Candidates are compiled by LLVM and run as machine code: either may take a process down with it.
The standard library's pools lose all their work then; here it costs the one call.
"""

import contextlib
import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar

from ..bench.compare import Failure

_T = TypeVar("_T")
_LENGTH = struct.Struct("<Q")


class Worker:
    """Calls functions in another process, one at a time.

    The process is started when it is first needed. It is no fork, so it holds no threads or locks
    of ours, and no ``multiprocessing`` child, so the user's script needs no guard around its main
    part.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; the next call does not have to wait for it."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Ctrl-C is for the tuner, which then ends its workers.
                start_new_session=True,
            )

    def call(self, seconds: float, function: Callable[..., _T], *args: Any) -> _T | Failure:
        """Call a function of this package in the process.

        Parameters
        ----------
        seconds : float
            After these the process is ended.
        function : callable
            Importable by name.
        *args
            Can be pickled, as its result.

        Returns
        -------
        object or Failure
            The result; a failure of kind ``timeout`` or ``crash`` if there is none.

        Raises
        ------
        Exception
            What the function raised.
        """
        self.start()
        assert self._process and self._process.stdin and self._process.stdout
        try:
            _send(self._process.stdin, (function, args))
            raised, result = pickle.loads(_receive(self._process.stdout, seconds))
        except TimeoutError:
            self.close()
            return Failure("timeout", f"no result within {seconds:g} s")
        except (EOFError, BrokenPipeError):
            return Failure("crash", self._how_it_ended())
        except BaseException:
            # Interrupted: an answer may still come, and must not be taken for the next one.
            self.close()
            raise
        if raised:
            raise result
        return result

    def close(self) -> None:
        """End the process and everything it has started."""
        if self._process is not None:
            process, self._process = self._process, None
            _kill(process)

    def _how_it_ended(self) -> str:
        assert self._process is not None
        process, self._process = self._process, None
        try:
            status = process.wait(5)
        except subprocess.TimeoutExpired:  # It has closed its output without ending.
            _kill(process)
            return "the process closed its output"
        _kill(process)
        if status >= 0:
            return f"the process ended with status {status}"
        return f"killed by {signal.Signals(-status).name} ({signal.strsignal(-status)})"


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


def _send(pipe: IO[bytes], message: object) -> None:
    data = pickle.dumps(message)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes], seconds: float | None = None) -> bytes:
    end = None if seconds is None else time.monotonic() + seconds
    (length,) = _LENGTH.unpack(_read(pipe, _LENGTH.size, end))
    return _read(pipe, length, end)


def _read(pipe: IO[bytes], count: int, end: float | None) -> bytes:
    data = bytearray()
    while len(data) < count:
        left = None if end is None else max(0.0, end - time.monotonic())
        if not select.select([pipe], [], [], left)[0]:
            raise TimeoutError
        part = os.read(pipe.fileno(), count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def serve() -> None:
    """Answer calls until standard input ends. This is what the process runs."""
    calls, answers = os.fdopen(os.dup(0), "rb", 0), os.fdopen(os.dup(1), "wb")
    # Whatever a library reads or prints must not get between calls and answers.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        with contextlib.suppress(EOFError):
            while True:
                waiting.put(_receive(calls))
        # Whoever asks is gone, perhaps killed; a call that goes on would be for nobody.
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        function, args = pickle.loads(waiting.get())
        try:
            answer = (False, function(*args))
        except Exception as error:
            answer = (True, error)
        _send(answers, answer)
