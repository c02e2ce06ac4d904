"""The command line: one thin module per subcommand.

Subcommands are imported when they are used, so that those that need no TVM do not wait for it.
"""

import argparse
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any, TextIO

from .. import versions
from ..cache import CacheWarning
from ..errors import DirectConvError, LogWarning, ModelWarning, did_you_mean
from ..kinds import one_line
from ._output import be_quiet
from ._parser import Parser, add_verbosity, leaves

_PROGRAM = "tvm-directconv"
_WARNINGS = (LogWarning, CacheWarning, ModelWarning)
_COMMANDS = {
    "devices": "list the processors that code can be compiled for",
    "layers": "list the convolutions of networks, or what a spec stands for",
    "explain": "say which blocking the analytical model chooses, and why",
    "quantize": "make a model of 8-bit integers of one in float32, with samples",
    "compile": "compile convolutions, or a model, to shared libraries",
    "run": "run a compiled convolution and check its output, or run a compiled network",
    "profile": "time every step of a compiled network",
    "bench": "measure convolutions on this machine",
    "report": "measure against other libraries and write a report with plots",
    "tune": "search for faster block sizes and log every measurement",
    "logs": "show, merge, prune, check and export tuning logs",
    "doctor": "check what is installed, and say how to get what is missing",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; the process's own if not given.

    Returns
    -------
    int
        Exit status: 0 for success, 1 for a result that is not as it should be, 2 for an error.

    Raises
    ------
    SystemExit
        After ``--help`` and ``--version``, and with status 2 for arguments that cannot be parsed.
    """
    _open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # Names of files can be any bytes.
    arguments = argparse.Namespace(verbose=False)
    interrupts: list[int] = []
    try:
        try:
            with _noted(interrupts):
                arguments = _parse(sys.argv[1:] if argv is None else argv)
                be_quiet(arguments.quiet)
                with _short_warnings(arguments.quiet):
                    return _run(arguments)
        finally:
            sys.stdout.flush()  # Here, where a closed pipe or a full disk can still be handled.
    except BrokenPipeError:
        _drop(sys.stdout)  # Whoever read it has seen enough.
        return 141
    except Exception as error:
        if interrupts:
            return 130  # Whatever a library has made of it.
        if not isinstance(error, DirectConvError | OSError | MemoryError):
            raise
        if arguments.verbose:
            traceback.print_exc()
        said = one_line(str(error)) or "there is not enough memory"
        _end(sys.stderr, f"{_PROGRAM}: error: {said}\n")
        _end(sys.stdout)
        return 2
    except KeyboardInterrupt:
        return 130


@contextmanager
def _noted(interrupts: list[int]) -> Iterator[None]:
    """Append what Ctrl-C sends to a list, besides raising KeyboardInterrupt."""

    def note(number: int, _frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield  # Who calls this has ways of their own.
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(stream: TextIO, text: str = "") -> None:
    """Write the last text to a stream, which may be on a disk that is full."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        _drop(stream)


def _drop(stream: TextIO) -> None:
    """Have nothing left to write: Python would flush once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_streams() -> None:
    """Open what was closed by who started this: else the next file would be taken for it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


@contextmanager
def _short_warnings(quiet: bool) -> Iterator[None]:
    """Print warnings of this package as errors are printed, without a line of code."""
    with warnings.catch_warnings():
        for category in _WARNINGS:
            warnings.simplefilter("ignore" if quiet else "always", category)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if issubclass(category, _WARNINGS):
                print(f"{_PROGRAM}: warning: {one_line(str(message))}", file=sys.stderr)
            else:
                usual(message, category, *rest)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _run(arguments: argparse.Namespace) -> int:
    try:
        status: int = arguments.run(arguments)
    except ImportError:
        versions.check()  # Knows more to say, if it is TVM that is missing.
        raise
    return status


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog=_PROGRAM,
        description="Direct convolutions without memory overhead, compiled by Apache TVM.",
    )
    parser.add_argument("--version", action="version", version=f"{_PROGRAM} {_versions()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    # Before the subcommand there are only flags, so it is the first word that is none.
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        if name == chosen:
            module = import_module(f"{__name__}.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
            for leaf in leaves(command):
                add_verbosity(leaf)
    if chosen is not None and chosen not in _COMMANDS:
        hint = did_you_mean(chosen, _COMMANDS)
        parser.error(f"unknown command {chosen!r}{hint}: expected one of {', '.join(_COMMANDS)}")
    return parser.parse_args(words)


def _versions() -> str:
    """Return this package's version, and of what its code is made."""
    found = (f"{name} {versions.installed(name) or 'missing'}" for name in versions.pins())
    return f"{versions.__version__} ({', '.join(found)})"
