"""Contestants in processes of their own, which run in turns.

So the memory of one can be told from that of others, no library changes threads or affinities of
another one, and what crashes takes nothing along. One process runs at a time, and all others are
stopped: threads of some libraries, ours too, wait busily for more work long after a run.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

from ... import files
from ...errors import DirectConvError
from . import base
from .base import Contestant, Failed, end_of

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
START_SECONDS = 300.0
"""The longest that loading a library may take."""
PREPARE_SECONDS = 900.0
"""The longest that preparing a layer or network may take, unless told otherwise."""
RUN_SECONDS = 120.0
"""The longest that a group of calls may take, unless told otherwise."""


class Ended(DirectConvError):
    """Why the process of a contestant is no more."""


class Process:
    """A contestant in a process of its own, stopped whenever it is not asked something.

    Parameters
    ----------
    contestant : Contestant
        Who runs there.
    threads : int
        Threads that it may compute with.
    layers : bool
        Whether it is for layers.

    Attributes
    ----------
    library : str
        What was loaded.
    pid : int
        Of the process.

    Raises
    ------
    NotHere
        If the library cannot be loaded.
    Ended
        If the process ends while it loads it.
    """

    def __init__(self, contestant: Contestant, threads: int, layers: bool = True) -> None:
        spec = {
            "module": type(contestant).__module__,
            "class": type(contestant).__qualname__,
            "fields": asdict(contestant),
        }
        variables = {
            **os.environ,
            **dict.fromkeys(THREAD_VARIABLES, str(threads)),
            **contestant.environment(threads),
        }
        self._scratch = contextlib.ExitStack()
        self._log = self._scratch.enter_context(files.scratch()) / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.serve", json.dumps(spec), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env={key: value for key, value in variables.items() if value is not None},
            )
        self.pid = self._process.pid
        try:
            self.library: str = self.ask("hello", START_SECONDS, layers=layers)["library"]
        except BaseException:
            self.close()
            raise

    def ask(self, command: str, seconds: float, **arguments: Any) -> dict[str, Any]:
        """Have it do something; it is stopped before and afterwards.

        Parameters
        ----------
        command : str
            A method of :class:`tvm_directconv.bench.rivals.serve.Server`.
        seconds : float
            The longest that it may take.
        **arguments
            Of that method.

        Returns
        -------
        dict
            What the method returns.

        Raises
        ------
        NotHere, Unsupported, Failed
            What it says.
        Ended
            If it ends, or takes too long and is ended.
        """
        assert self._process.stdin
        line = json.dumps({"do": command, **arguments}) + "\n"
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # To read tells why it has ended.
            self._process.stdin.write(line.encode())
        answer = json.loads(self._read(command, seconds))
        self._process.send_signal(signal.SIGSTOP)
        if "error" in answer:
            raise getattr(base, answer["error"])(end_of(answer["reason"]))
        return dict(answer)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._scratch.close()

    def _read(self, command: str, seconds: float) -> bytes:
        assert self._process.stdout
        line = b""
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    self._process.kill()
                    raise Ended(f"{command!r} took longer than {seconds:g} s, and was ended")
                part = self._process.stdout.read(65536)
                if not part:
                    raise Ended(self._why())
                line += part
        return line

    def _why(self) -> str:
        status = self._process.wait()
        return f"{end_of(self._log.read_text(errors='replace'))} (status {status})"


class Seat:
    """The place of a contestant: a process when it is needed, a new one when it has ended.

    Parameters
    ----------
    contestant : Contestant
        Who sits there.
    threads : int
        Threads that it may compute with.
    layers : bool
        Whether it is for layers.

    Attributes
    ----------
    contestant, threads
        As given.
    library : str or None
        What was loaded, if anything was.
    """

    def __init__(self, contestant: Contestant, threads: int, layers: bool = True) -> None:
        self.contestant = contestant
        self.threads = threads
        self.library: str | None = None
        self._layers = layers
        self._process: Process | None = None

    def ask(self, command: str, seconds: float, **arguments: Any) -> dict[str, Any]:
        """Ask its process, as :meth:`Process.ask` does.

        Raises
        ------
        NotHere, Unsupported, Failed
            What it says; Failed also if the process ends.
        """
        try:
            if not self._process:
                self.contestant.check(network=not self._layers)
                self._process = Process(self.contestant, self.threads, self._layers)
                self.library = self._process.library
            return self._process.ask(command, seconds, **arguments)
        except Ended as error:
            self.close()
            raise Failed(str(error)) from error

    def release(self, seconds: float) -> None:
        """Have its process, if there is one, forget all that was prepared."""
        if self._process:
            with contextlib.suppress(DirectConvError):  # The next subject tells.
                self.ask("release", seconds)

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process:
            self._process.close()
            self._process = None
