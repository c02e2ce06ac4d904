"""Tuning logs: what was measured, one line of JSON each, and what of it a build goes by.

The log of a device is the file ``<folder>/<device>.jsonl``. Lines stand for themselves, so that
logs can be joined with ``cat``; they are only ever appended, under a lock, so that several tuners
can write at once and a crash costs one line at most.

There are two folders: the user's own, which is written, and the one of this package, which is read
as well. :func:`use_logs`, or the environment variable ``TVM_DIRECTCONV_LOGS``, puts one folder in
the place of both.
"""

import contextlib
import fcntl
import functools
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from . import blocking as blocks
from . import files, reading, versions
from .blocking import Blocking
from .errors import BlockingError, LogError, WorkloadError
from .hardware.device import Device
from .hardware.device_files import devices
from .hardware.host import host_cpu, native
from .kinds import TEXT, THREADS, Kind, is_positive, is_text, is_whole, or_null, problem, shown
from .layout import ActivationLayout
from .workload import ConvWorkload

__all__ = [
    "FORMAT",
    "MEASURED_BY",
    "MODELLED",
    "STATUSES",
    "Line",
    "LogWarning",
    "Record",
    "append",
    "best",
    "check_appendable",
    "folders",
    "here",
    "is_trusted",
    "lines",
    "log_path",
    "merge",
    "now",
    "prune",
    "ranked",
    "read",
    "use_logs",
]

FORMAT = 1
STATUSES = ("ok", "rejected", "compile_error", "timeout", "wrong_result", "crash", "rpc_lost")
MODELLED = "llvm-mca"
MEASURED_BY = ("local", "rpc", "runner", MODELLED)

_LARGEST = 2**32  # bytes
_VARIABLE = "TVM_DIRECTCONV_LOGS"
_DATE = "%Y-%m-%dT%H:%M:%SZ"
# What was measured for another case is taken if the model, too, finds little against it.
_NEAR_THE_MODEL = 1.05
# Keys that older versions did not write; what stands for them is null.
_LATER = ("disturbed",)
# LLVM's names for instruction sets, where other devices name a core.
_NO_CORE = re.compile(r"generic|x86-64(-v\d)?")


class LogWarning(UserWarning):
    """Something in a tuning log cannot be used and is left out."""


# --- Records ------------------------------------------------------------------------------------


def _is_date(value: object) -> bool:
    try:
        return isinstance(value, str) and _parse_date(value).strftime(_DATE) == value
    except ValueError:
        return False


def _parse_date(text: str) -> datetime:
    return datetime.strptime(text, _DATE)


def _is_layout(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(ActivationLayout(value))
    except BlockingError:
        return False


_SECONDS = or_null(Kind("seconds above 0", is_positive))
_RATIO = or_null(Kind("a number above 0", is_positive))
_KINDS = {
    "format": Kind(f"the number {FORMAT}", lambda v: is_whole(v, FORMAT, FORMAT)),
    "workload": Kind("a convolution", lambda v: isinstance(v, ConvWorkload)),
    # It is the name of a file as well.
    "device": Kind(
        "a device's name", lambda v: is_text(v) and v.isprintable() and not re.search(r"^\.|/", v)
    ),
    "threads": THREADS,
    "input_layout": Kind("NCHW, NHWC or NCHW<block>c", _is_layout),
    "blocking": Kind("block sizes", lambda v: isinstance(v, Blocking)),
    "status": Kind(f"one of {', '.join(STATUSES)}", lambda v: v in STATUSES),
    "message": or_null(TEXT),
    "seconds_p20": _SECONDS,
    "seconds_p50": _SECONDS,
    "seconds_p80": _SECONDS,
    "of_peak": _RATIO,
    "over_model": _RATIO,
    "repeats": Kind("a whole number from 0", lambda v: is_whole(v, 0)),
    "disturbed": or_null(TEXT),
    "chosen": Kind("true or false", lambda v: isinstance(v, bool)),
    "measured_by": Kind(f"one of {', '.join(MEASURED_BY)}", lambda v: v in MEASURED_BY),
    "cpu": or_null(TEXT),
    "cpu_name": or_null(TEXT),
    "cpu_device": TEXT,
    "date": Kind("a date such as 2026-11-22T13:00:00Z, in UTC", _is_date),
    "seed": Kind("a whole number", lambda v: is_whole(v, -math.inf)),
    "versions": Kind(
        "versions by name",
        lambda v: isinstance(v, dict) and all(map(is_text, [*v.keys(), *v.values()])),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """One blocking that was tried for one convolution, and what came of it.

    Parameters
    ----------
    workload : ConvWorkload
        What was convolved. Its name says in which network, and is not compared.
    device : str
        Name of the device it was compiled for.
    threads : int
        How many computed.
    input_layout : str
        Layout of the input, such as ``NCHW8c``.
    blocking : Blocking
        What was tried.
    status : str
        One of :data:`STATUSES`: ``ok``, or what went wrong.
    message : str, optional
        More about what went wrong.
    seconds_p20, seconds_p50, seconds_p80 : float, optional
        Percentiles of the time of one call. None if it failed, or if nothing ran.
    of_peak : float, optional
        Part of the FMA peak; None if it failed, or where the peak cannot be measured.
    over_model : float, optional
        Seconds of the model's blocking over those of this one, measured in one run by turns.
    repeats : int
        How many measurements the percentiles are over.
    disturbed : str, optional
        Why the measurement cannot be believed, see :mod:`tvm_directconv.bench.disturbance`; None if
        there is nothing against it.
    chosen : bool
        Whether the tuner decided for this blocking in the end, after it had run it once more
        against that of the model.
    measured_by : str
        One of :data:`MEASURED_BY`; :data:`MODELLED` stands for a cycle model instead.
    cpu : str, optional
        Processor that it was measured on, see :func:`tvm_directconv.hardware.host.host_cpu`; None
        if it was not measured.
    cpu_name : str, optional
        What the vendor calls this processor.
    cpu_device : str
        Name of the device that ``native`` stands for on the machine it was measured on; for remote
        machines and the cycle model that of `device`.
    date : str
        In UTC, such as ``2026-11-22T13:00:00Z``; see :func:`now`.
    seed : int
        What the tuner's choices started from.
    versions : dict of str to str
        Of what made the code.
    format : int
        Version of this form.

    Raises
    ------
    LogError
        If a value has the wrong type, is impossible, or does not go with the others.
    """

    workload: ConvWorkload
    device: str
    threads: int
    input_layout: str
    blocking: Blocking
    status: str
    message: str | None = None
    seconds_p20: float | None = None
    seconds_p50: float | None = None
    seconds_p80: float | None = None
    of_peak: float | None = None
    over_model: float | None = None
    repeats: int = 0
    disturbed: str | None = None
    chosen: bool = False
    measured_by: str
    cpu: str | None
    cpu_name: str | None
    cpu_device: str
    date: str
    seed: int
    versions: dict[str, str] = field(hash=False)
    format: int = FORMAT

    def __post_init__(self) -> None:
        if wrong := problem(vars(self), _KINDS):
            raise LogError(wrong)
        # As it will be read again: the descriptor leaves out padding that no output reads.
        known = replace(_canonical(self.workload), name=self.workload.name)
        object.__setattr__(self, "workload", known)  # the way past `frozen`
        if (self.cpu is None) != (self.measured_by == MODELLED):
            raise LogError(
                f"cpu is {self.cpu!r} and measured_by is {self.measured_by!r}: expected the "
                f"processor that was measured, null for {MODELLED} only"
            )
        seconds = (self.seconds_p20, self.seconds_p50, self.seconds_p80)
        given = [s for s in seconds if s is not None]
        if self.status != "ok":
            if self.chosen or given or self.of_peak is not None or self.over_model is not None:
                raise LogError(
                    f"status is {self.status!r}: expected no seconds, of_peak and over_model, and "
                    "that it is not chosen"
                )
        elif given != sorted(given) or len(given) not in (
            (0, 3) if self.measured_by == MODELLED else (3,)
        ):
            raise LogError(
                f"seconds_p20, seconds_p50, seconds_p80 are {seconds}: expected all three, in this "
                "order"
            )

    def to_line(self) -> str:
        """Return the record as it stands in a log, without a newline."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        del values["format"], values["workload"]
        for key in _LATER:
            if values[key] is None:
                del values[key]
        values["blocking"] = self.blocking.to_dict()
        head = {
            "format": FORMAT,
            "workload": str(self.workload),
            "name": self.workload.name or None,
        }
        return json.dumps({**head, **values}, allow_nan=False)

    @classmethod
    def from_line(cls, line: str | bytes) -> "Record":
        """Read a line of a log. Keys that are not known are left out.

        Raises
        ------
        LogError
            If it is no record.
        """
        try:
            found = reading.parsed_object(line)
        except reading.Unreadable as error:
            raise LogError(str(error)) from None
        if is_whole(found.get("format"), FORMAT + 1):
            raise _NewerError(
                f"format is {found['format']}, this version of tvm-directconv knows {FORMAT}: a "
                "newer version wrote it, upgrade to read it"
            )
        missing = [key for key in (*_KINDS, "name") if key not in found and key not in _LATER]
        if missing:
            raise LogError(f"{', '.join(missing)} missing: expected every key of a record")
        values: dict[str, Any] = {key: found.get(key) for key in _KINDS}
        text, name, knobs = found["workload"], found["name"], found["blocking"]
        if not isinstance(text, str):
            raise LogError(f"workload is {shown(text)}: expected a descriptor")
        if name is not None and not is_text(name):
            raise LogError(f"name is {shown(name)}: expected a non-empty string, or null")
        try:
            values["workload"] = replace(_parsed(text), name=name or "", count=1)
            values["blocking"] = Blocking.from_dict(knobs)
        except (WorkloadError, BlockingError) as error:
            raise LogError(str(error)) from None
        return cls(**values)


class _NewerError(LogError):
    """A record that a newer version wrote."""


_parsed = functools.cache(ConvWorkload.parse)


@functools.cache
def _canonical(workload: ConvWorkload) -> ConvWorkload:
    return ConvWorkload.parse(workload.descriptor)


def now() -> str:
    """Return the date for a record."""
    return datetime.now(UTC).strftime(_DATE)


def here() -> dict[str, Any]:
    """Return what a record says about a measurement that is made now on this machine.

    Returns
    -------
    dict
        ``cpu``, ``cpu_name``, ``cpu_device``, ``date`` and ``versions`` of a :class:`Record`.
    """
    from tvm.target.codegen import llvm_version_major

    packages = {name: versions.installed(name) for name in ("tvm-directconv", "apache-tvm")}
    return {
        "cpu": host_cpu().id,
        "cpu_name": host_cpu().name,
        "cpu_device": native().name,
        "date": now(),
        "versions": {
            **{name: found for name, found in packages.items() if found},
            "llvm": str(llvm_version_major()),
        },
    }


# --- Folders ------------------------------------------------------------------------------------

_in_use: ContextVar[Path | None] = ContextVar("tvm_directconv_logs", default=None)


@contextlib.contextmanager
def use_logs(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Read and write the tuning logs of one folder only, within a ``with`` statement.

    Parameters
    ----------
    folder : str or path
        Where logs are, or will be written.

    Examples
    --------
    >>> with use_logs("board/logs"):
    ...     pass  # build(...), tune(...)
    """
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise LogError(f"the folder of tuning logs is {folder!r}: expected a path")
    token = _in_use.set(Path(folder).absolute())
    try:
        yield
    finally:
        _in_use.reset(token)


def folders() -> list[Path]:
    """Return the folders that logs are read from; the first is the one that is written."""
    explicit = _in_use.get()
    if explicit is None and os.environ.get(_VARIABLE):
        explicit = Path(os.environ[_VARIABLE])
    if explicit is not None:
        return [explicit]
    home = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification has relative paths ignored.
    data = Path(home) if os.path.isabs(home) else Path("~/.local/share").expanduser()
    shipped = Path(str(resources.files("tvm_directconv.tuning_logs")))
    return [data / "tvm_directconv" / "tuning_logs", shipped]


@functools.cache
def _warn_missing(folder: Path) -> None:
    """Warn of a folder that was asked for, once: a network asks for it a hundred times."""
    warnings.warn(
        f"there is no folder {str(folder)!r} of tuning logs, of use_logs or {_VARIABLE}: going on "
        "without it",
        LogWarning,
        stacklevel=4,
    )


def log_path(device: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Return where the log of a device is, by default in the folder that is written."""
    return (folders()[0] if folder is None else Path(folder)) / f"{device}.jsonl"


# --- Reading ------------------------------------------------------------------------------------


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
        return _lines(_content(path)[0])
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
    return list(_load(Path(path)).records)


def _content(path: str | os.PathLike[str]) -> tuple[bytes, tuple[int, ...]]:
    """Return what is in a file, and what changes when it does."""
    with reading.open_regular(path) as file:
        # So as not to meet a line that is half written. Some file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        return reading.content_of(file, _LARGEST), _stamp(os.fstat(file.fileno()))


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _lines(content: bytes) -> list[Line]:
    return [
        _line(number, text)
        for number, text in enumerate(content.split(b"\n"), start=1)
        if text.strip()
    ]


def _line(number: int, text: bytes) -> Line:
    try:
        return Line(number, text, Record.from_line(text))
    except _NewerError as error:
        return Line(number, text, problem=str(error), newer=True)
    except LogError as error:
        return Line(number, text, problem=str(error))


def warn_of(path: Path, bad: Iterable[Line]) -> None:
    """Warn of lines of a log that are left out."""
    for line in bad:
        warnings.warn(
            f"{path}:{line.number}: this line is left out: {line.problem}", LogWarning, stacklevel=3
        )


class _Log(NamedTuple):
    """A log in memory."""

    stamp: tuple[int, ...]
    records: tuple[Record, ...]
    families: dict[tuple[object, ...], list[Record]]


_NO_LOG = _Log((), (), {})
# Building a network asks the same files a hundred times.
_loaded: dict[Path, _Log] = {}


def _load(path: Path) -> _Log:
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
    found = _lines(content)
    warn_of(path, (line for line in found if line.record is None))
    records = tuple(line.record for line in found if line.record)
    families: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        families.setdefault(_family(record.workload, record.device), []).append(record)
    _loaded[path] = _Log(stamp, records, families)
    return _loaded[path]


def _family(workload: ConvWorkload, device: str) -> tuple[object, ...]:
    """Return what convolutions have in common that differ in batch and image size at most."""
    w = workload
    channels = (w.in_channels, w.out_channels, w.groups)
    return device, channels, w.kernel, w.stride, w.padding, w.dilation


# --- Writing ------------------------------------------------------------------------------------


def append(record: Record, folder: str | os.PathLike[str] | None = None) -> Path:
    """Append a record to the log of its device. When this returns, it is on the disk.

    Parameters
    ----------
    record : Record
        What to write.
    folder : str or path, optional
        Where to; by default the first of :func:`folders`. Made if need be.

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
        _explained(path),
        files.new_folder(path.parent),
        _locked(path, os.O_CREAT) as file,
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
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with _locked(path):
                pass
        else:
            files.check_writable(path)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LogError(
            f"cannot write tuning log {str(path)!r} ({error.strerror}): expected a folder that you "
            f"may write to, with space left; name another one with --logs DIR, use_logs(DIR) or "
            f"{_VARIABLE}=DIR"
        ) from None


@contextlib.contextmanager
def _locked(path: Path, flags: int = 0) -> Iterator[int]:
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


def _replace(path: Path, found: Iterable[bytes]) -> None:
    """Put a new log in the place of an old one, all at once."""
    files.write(path, b"".join(text + b"\n" for text in found))


def merge(
    inputs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], force: bool = False
) -> tuple[int, int]:
    """Write one log with the lines of several: in their order, those that are equal once.

    Lines of newer versions are kept. Lines that cannot be read are left out with a
    :class:`LogWarning` that names them.

    Parameters
    ----------
    inputs : sequence of str or path
        Logs to read.
    output : str or path
        Log to write.
    force : bool
        Whether it may replace a file, be it one of `inputs`.

    Returns
    -------
    tuple of int
        How many lines were written, and how many good ones were read.

    Raises
    ------
    LogError
        If `output` exists and `force` is not set, or a file cannot be read or written.
    """
    path = Path(os.path.realpath(output))
    if path.exists() and not force:
        raise LogError(
            f"{os.fspath(output)!r} exists: expected a name that is free; remove it, or replace it "
            "with --force (force=True)"
        )
    with _explained(path), contextlib.ExitStack() as stack:
        if path.exists():
            stack.enter_context(_locked(path))
        good: list[Line] = []
        for name in inputs:
            # A file that is locked here can be read, but not locked once more.
            if path.exists() and Path(os.path.realpath(name)) == path:
                found = _lines(path.read_bytes())
            else:
                found = lines(name)
            warn_of(Path(name), (line for line in found if not (line.record or line.newer)))
            good += [line for line in found if line.record or line.newer]
        different = dict.fromkeys(line.text.strip() for line in good)
        _replace(path, different)
    return len(different), len(good)


def prune(path: str | os.PathLike[str], keep: int = 5) -> tuple[int, int]:
    """Leave the best records in a log: those chosen, and of the others a few of each case.

    A case is a convolution with a device, threads, a layout and a processor that was measured, or
    the cycle model. Failures go. Lines of newer versions stay, lines that cannot be read go with
    a :class:`LogWarning` that names them. Tuners may append meanwhile.

    Parameters
    ----------
    path : str or path
        The log.
    keep : int
        How many different blockings of each case to keep besides those chosen.

    Returns
    -------
    tuple of int
        How many lines are left, and how many there were.

    Raises
    ------
    LogError
        If there is no such file, or it cannot be read or written.
    """
    target = Path(os.path.realpath(path))
    if not target.is_file():
        raise LogError(f"there is no tuning log {os.fspath(path)!r}: expected a file of records")
    with _explained(target), _locked(target):
        found = _lines(target.read_bytes())
        warn_of(Path(path), (line for line in found if not (line.record or line.newer)))
        cases: dict[tuple[object, ...], list[Record]] = {}
        for r in dict.fromkeys(line.record for line in found):
            if r and r.status == "ok":
                case = (r.workload, r.device, r.threads, r.input_layout, r.cpu)
                cases.setdefault(case, []).append(r)
        kept: set[Record | None] = set()
        for records in cases.values():
            best_of: dict[Blocking, Record] = {}
            for r in ranked(records):
                if r.chosen:
                    kept.add(r)
                else:
                    best_of.setdefault(r.blocking, r)
            kept |= {*[*best_of.values()][:keep]}
        # Equal ones once, where the last of them stands: of equals, the last one counts.
        left = {line.record or line.text: line for line in reversed(found)}
        different = [
            line.text.strip()
            for line in reversed(left.values())
            if line.newer or line.record in kept
        ]
        _replace(target, different)
    return len(different), len(found)


# --- The best -----------------------------------------------------------------------------------


def is_trusted(record: Record, device: Device) -> bool:
    """Return whether a record says something about the processor that is built for.

    It does if it comes from this processor, or from one of the kind that `device` describes. But
    if `device` describes an instruction set and not a core, and this machine has it, it is built
    for this machine, and what is best on any other one need not be so here.
    """
    if record.measured_by == MODELLED or record.cpu == host_cpu().id:
        return True
    if record.cpu_device != device.name:
        return False
    return not (_names_no_core(device) and _runs_here(device))


@functools.cache
def _names_no_core(device: Device) -> bool:
    # A user's own file was written for some board, whatever LLVM is told about its processor.
    shipped = {d.name for d in devices()}
    return device.name in shipped and bool(_NO_CORE.fullmatch(device.mcpu or "generic"))


@functools.cache
def _runs_here(device: Device) -> bool:
    return device.is_host_runnable


def ranked(records: Iterable[Record]) -> list[Record]:
    """Return records of one case, the best first; failures come last.

    What was measured comes before the cycle model. Then those that a tuner chose, the latest
    first, and the others by their speed over that of the model, then by their part of the peak. Of
    equals, the one that was written later comes first.
    """
    return sorted(reversed([*records]), key=_rank, reverse=True)


def _rank(record: Record) -> tuple[object, ...]:
    return (
        record.status == "ok",
        record.measured_by != MODELLED,
        record.chosen,
        record.date if record.chosen else "",
        record.over_model or 0.0,
        record.of_peak or 0.0,
    )


class _Found(NamedTuple):
    record: Record
    file: str
    own: bool
    """In the first of the folders, that of the user."""
    near: int
    """0 exact, 1 other threads, 2 another batch or image."""
    distance: float


def best(
    workload: ConvWorkload,
    device: Device,
    threads: int = 1,
    input_layout: ActivationLayout | None = None,
) -> tuple[Blocking, str] | None:
    """Find the best blocking that the logs know.

    Records count that are trusted (:func:`is_trusted`) and whose blocking can be used: of the
    convolution itself, failing that with other threads, failing that with another batch or image
    size. What is only near must also be near the best in the eyes of the model. What was measured
    always comes before the cycle model; a tuner's choice before what it tried on its way, and the
    user's own before that of this package.

    Parameters
    ----------
    workload : ConvWorkload
        What is convolved; its name does not matter.
    device : Device
        On what.
    threads : int
        By how many.
    input_layout : ActivationLayout, optional
        That of :func:`tvm_directconv.blocking.default_input_layout` if not given.

    Returns
    -------
    tuple of Blocking and str, or None
        The blocking, and which log it is from and why. None if the model's choice is better, or
        nothing else is known.
    """
    layout = input_layout or blocks.default_input_layout(workload, device)
    wanted = _canonical(workload)
    found: list[_Found] = []
    where = folders()
    if len(where) == 1 and not where[0].is_dir():  # One that somebody named.
        _warn_missing(where[0])
    for number, folder in enumerate(where):
        path = log_path(device.name, folder)
        for record in reversed(_load(path).families.get(_family(wanted, device.name), ())):
            if record.status == "ok" and record.input_layout == str(layout):
                near = _nearness(record, wanted, threads)
                if near and is_trusted(record, device):
                    found.append(_Found(record, path.name, number == 0, *near))
    limit = math.inf
    for candidate in sorted(found, key=_order):
        blocking = candidate.record.blocking
        if blocks.reasons_against(blocking, wanted, device, layout):
            continue
        if candidate.near:
            if limit == math.inf:
                chosen = blocks.choose(wanted, device, threads, layout)
                counted = blocks.estimate(chosen, wanted, device, threads).cycles
                limit = _NEAR_THE_MODEL * counted
            if blocks.estimate(blocking, wanted, device, threads).cycles > limit:
                continue
        over_model = candidate.record.over_model
        if not candidate.record.chosen and over_model is not None and over_model < 1:
            return None  # This is the best of what was tried, and the model's choice is better.
        return blocking, _source(candidate)
    return None


def _nearness(record: Record, wanted: ConvWorkload, threads: int) -> tuple[int, float] | None:
    if record.workload == wanted:
        distance = abs(math.log2(record.threads / threads))
        return (1 if distance else 0), distance
    if record.threads != threads:
        return None
    return 2, abs(math.log2(_pixels(record.workload) / _pixels(wanted)))


def _pixels(workload: ConvWorkload) -> int:
    return workload.batch * workload.out_height * workload.out_width


def _order(found: _Found) -> tuple[object, ...]:
    """Return what sorts the best first."""
    r = found.record
    return (
        r.measured_by == MODELLED,
        found.near,
        not r.chosen,
        found.distance,
        not found.own if r.chosen else False,
        -_parse_date(r.date).timestamp() if r.chosen else 0,
        -(r.over_model or 0),
        -(r.of_peak or 0),
    )


def _source(found: _Found) -> str:
    r = found.record
    words = ["nearest" if found.near else "exact"]
    words.append("llvm-mca" if r.measured_by == MODELLED else "measured")
    if found.near == 1:
        words[-1] += f" with {r.threads} thread{'s' if r.threads > 1 else ''},"
    elif found.near == 2:
        words[-1] += f" for {r.workload},"
    words[-1] += f" {r.date[:10]}"
    if not found.near and r.over_model is not None:
        words.append(f"{r.over_model:.2f}x the model")
    if not r.chosen:
        words.append("not confirmed")
    return f"log {found.file}: {', '.join(words)}"
