"""The log of one device: its lines as they are read, kept in memory, and appended to."""

import contextlib
import fcntl
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .. import files, reading
from ..errors import LogError, LogWarning
from ..workload import ConvWorkload
from .folders import VARIABLE, log_path
from .record import NewerError, Record

_LARGEST = 2**32  # bytes


@dataclass(frozen=True)
class Line:
    """A line of a log.

    Attributes
    ----------
    number : int
        From 1.
    text : bytes
        Without the newline.
    record : Record or None
        What it says; None if it cannot be read.
    problem : str
        Why it cannot be read.
    newer : bool
        Whether this is because a newer version wrote it.
    """

    number: int
    text: bytes
    record: Record | None = None
    problem: str = ""
    newer: bool = False


def lines(path: str | os.PathLike[str]) -> list[Line]:
    """Return every line of a log that is not blank, good ones and bad ones.

    Raises
    ------
    LogError
        If there is no such file, or it cannot be read.
    """
    try:
        return lines_of(_content(path)[0])
    except (OSError, reading.Unreadable) as error:
        raise LogError(
            f"cannot read tuning log {os.fspath(path)!r} ({reading.reason(error)}): expected a "
            "file of records, one on each line"
        ) from None


def read(path: str | os.PathLike[str]) -> list[Record]:
    """Return the records of a log, in the order of the file; none if there is no such file.

    A line that cannot be used is left out with a :class:`LogWarning` that names it, and so is a
    file that cannot be read.
    """
    return list(load(Path(path)).records)


def _content(path: str | os.PathLike[str]) -> tuple[bytes, tuple[int, ...]]:
    """Return what is in a file, and what changes when it does."""
    with reading.open_regular(path) as file:
        # So as not to meet a line that is half written. Some file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        return reading.content_of(file, _LARGEST), _stamp(os.fstat(file.fileno()))


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_size, status.st_ino


def lines_of(content: bytes) -> list[Line]:
    """Return the lines in the content of a log that are not blank."""
    return [
        _line(number, text)
        for number, text in enumerate(content.split(b"\n"), start=1)
        if text.strip()
    ]


def _line(number: int, text: bytes) -> Line:
    try:
        return Line(number, text, Record.from_line(text))
    except NewerError as error:
        return Line(number, text, problem=str(error), newer=True)
    except LogError as error:
        return Line(number, text, problem=str(error))


def warn_of(path: Path, bad: Iterable[Line]) -> None:
    """Warn of lines of a log that are left out."""
    for line in bad:
        warnings.warn(
            f"{path}:{line.number}: this line is left out: {line.problem}", LogWarning, stacklevel=3
        )


class Log(NamedTuple):
    """A log in memory."""

    stamp: tuple[int, ...]
    records: tuple[Record, ...]
    families: dict[tuple[object, ...], list[Record]]


_NO_LOG = Log((), (), {})
# Building a network asks the same files a hundred times.
_loaded: dict[Path, Log] = {}


def load(path: Path) -> Log:
    """Return a log; that in memory if the file is still the same."""
    known = _loaded.get(path, _NO_LOG)
    try:
        if known.stamp == _stamp(os.stat(path)):
            return known
        content, stamp = _content(path)
    except FileNotFoundError:
        return _NO_LOG
    except (OSError, reading.Unreadable) as error:
        warnings.warn(
            f"cannot read tuning log {str(path)!r} ({reading.reason(error)}): going on without it",
            LogWarning,
            stacklevel=3,
        )
        return _NO_LOG
    found = lines_of(content)
    warn_of(path, (line for line in found if line.record is None))
    records = tuple(line.record for line in found if line.record)
    families: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        families.setdefault(family(record.workload, record.device), []).append(record)
    _loaded[path] = Log(stamp, records, families)
    return _loaded[path]


def family(workload: ConvWorkload, device: str) -> tuple[object, ...]:
    """Return what convolutions have in common that differ in batch and image size at most."""
    w = workload
    channels = (w.in_channels, w.out_channels, w.groups)
    return device, w.dtype, channels, w.kernel, w.stride, w.padding, w.dilation


def append(record: Record, folder: str | os.PathLike[str] | None = None) -> Path:
    """Append a record to the log of its device. When this returns, it is on the disk.

    Parameters
    ----------
    record : Record
        What to write.
    folder : str or path, optional
        Where to; by default the first of :func:`.folders.folders`. Made if need be.

    Returns
    -------
    Path
        The log.

    Raises
    ------
    LogError
        If it cannot be written.
    """
    path = log_path(record.device, folder)
    line = record.to_line().encode() + b"\n"
    with (
        explained(path),
        files.new_folder(path.parent),
        locked(path, os.O_CREAT) as file,
    ):
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = b"\n" + line  # The last line was cut off by a crash.
        try:
            files.append(file, line)
        except OSError:
            if not size:
                path.unlink()  # Others who wait for it see that it is gone.
            raise
    return path


def check_appendable(device: str, folder: str | os.PathLike[str] | None = None) -> None:
    """Raise if the log of a device cannot be written: better before tuning than after it.

    Parameters
    ----------
    device : str
        Name of the device.
    folder : str or path, optional
        As for :func:`append`. Made if need be.

    Raises
    ------
    LogError
        With the reason.
    """
    path = log_path(device, folder)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with locked(path):
                pass
        else:
            files.check_writable(path)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say what to do where a log cannot be written."""
    try:
        yield
    except OSError as error:
        raise LogError(
            f"cannot write tuning log {str(path)!r} ({error.strerror}): expected a folder that you "
            f"may write to, with space left; name another one with --logs DIR, use_logs(DIR) or "
            f"{VARIABLE}=DIR"
        ) from None


@contextlib.contextmanager
def locked(path: Path, flags: int = 0) -> Iterator[int]:
    """Open a log for appending and keep all others from writing it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | flags, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, path):
                yield file
                return
        finally:
            os.close(file)


def _is_at(file: int, path: Path) -> bool:
    """Return whether this file is still there: while this process waited, it may be replaced."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
