"""Raw rows of a report: what was measured of one contestant, and nothing that follows from it.

They are lines of JSON in one file, appended as they come, so a crash costs one line at most.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ... import files, reading
from ...errors import ReportError, WorkloadError
from ...kinds import TEXT, Kind, is_number, is_positive, is_whole, or_null, problem, shown
from ...workload import ConvWorkload
from ..rivals.base import ALGORITHMS, NETWORK_DTYPES
from ..rivals.openblas import Im2colSgemm, Sgemm
from ..rivals.ours import Ours

# Those that others are compared with.
OURS, IM2COL, GEMM = Ours.name, Im2colSgemm.name, Sgemm.name

_LARGEST = 2**30  # bytes
_FLOAT32 = "float32"
SUBJECTS = ("layer", "network")
STATUSES = ("ok", "not_here", "unsupported", "failed", "wrong")


def _is_measured(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(is_positive, value))


def _is_date(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


_NUMBER = Kind("a number from 0", is_number)
_MEASURED = Kind("a list of numbers above 0, one for each repeat", _is_measured)
_KINDS = {
    "date": Kind("a date with its time zone such as 2026-11-22T13:00:00.5+00:00", _is_date),
    "subject": Kind(f"one of {', '.join(SUBJECTS)}", lambda v: v in SUBJECTS),
    "network": or_null(TEXT),
    "layer": or_null(TEXT),
    "workload": or_null(TEXT),
    "dtype": TEXT,
    "threads": Kind("a whole number from 1", lambda v: is_whole(v, 1)),
    "contestant": TEXT,
    "library": or_null(TEXT),
    "implementation": or_null(TEXT),
    "status": Kind(f"one of {', '.join(STATUSES)}", lambda v: v in STATUSES),
    "reason": or_null(TEXT),
    "algorithm": Kind(f"one of {', '.join(ALGORITHMS)}", lambda v: v in ALGORITHMS),
    "includes": TEXT,
    "seconds": _MEASURED,
    "peak_gflops": _MEASURED,
    "clock_gflops": _MEASURED,
    "extra_bytes": or_null(Kind("a whole number from 0", lambda v: is_whole(v, 0))),
    "precision": or_null(TEXT),
    "max_error": or_null(_NUMBER),
    "rms_error": or_null(_NUMBER),
    "agreement": or_null(Kind("a number from 0 to 1", lambda v: is_number(v) and v <= 1)),
    "compile_seconds": or_null(_NUMBER),
    "blocking": or_null(TEXT),
    "blocking_source": or_null(TEXT),
}


class Subject(NamedTuple):
    """What is measured: a layer or a whole network.

    Attributes
    ----------
    kind : str
        One of :data:`SUBJECTS`.
    network, layer : str
        Names, "" where there is none.
    workload : str
        Descriptor of a layer, "" for a network.
    dtype : str
        Number type: of a layer that of its workload, of a network that it is compared in.
    """

    kind: str
    network: str
    layer: str
    workload: str
    dtype: str

    @property
    def name(self) -> str:
        """Name for people."""
        if self.kind == "network":
            return self.network + (f" in {self.dtype}" if self.dtype != _FLOAT32 else "")
        return ":".join(filter(None, (self.network, self.layer))) or self.workload

    @property
    def convolution(self) -> ConvWorkload:
        """What a layer convolves."""
        return _parsed(self.workload)


@cache
def _parsed(text: str) -> ConvWorkload:
    return ConvWorkload.parse(text)


def layer_subject(workload: ConvWorkload) -> Subject:
    """Return the subject that a convolution is."""
    return Subject("layer", workload.network, workload.layer, str(workload), workload.dtype)


def network_subject(name: str, dtype: str = _FLOAT32) -> Subject:
    """Return the subject that a whole network is, compared in a number type."""
    return Subject("network", name, "", "", dtype)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was measured of one subject, by one contestant, on so many threads.

    Parameters
    ----------
    date : str
        When the contestants' comparison on this subject began. Rows that share it, of whatever
        number of threads, were measured in turns, so their repeats stand beside each other.
    subject : str
        ``layer`` or ``network``.
    network, layer, workload : str, optional
        Names, and the layer's descriptor.
    threads : int
        How many computed.
    contestant : str
        Such as those of :mod:`..rivals.contestants`.
    library, implementation : str, optional
        Name and version of the library; which of its kernels it took.
    status : str
        One of :data:`STATUSES`.
    reason : str, optional
        Why it is not ``ok``.
    algorithm : str
        One of :data:`ALGORITHMS`.
    includes : str
        What the time is of.
    seconds : tuple of float
        Of one call, for each repeat; empty if it is not ``ok``.
    peak_gflops : tuple of float
        Speed of the burst of multiply-adds, on as many threads, beside each repeat.
    clock_gflops : tuple of float
        What the clock allows then; empty in rows of older versions.
    dtype : str
        Number type: that of a layer's workload, or what contestants compute a network in unless
        they choose by themselves; in rows of older versions of networks float32.
    precision : str, optional
        What the products of a network were computed in.
    rms_error : float, optional
        Root mean square of the differences from the right outputs of a network, over theirs.
    agreement : float, optional
        Part of the images of which its largest output is at the same place.
    extra_bytes : int, optional
        Memory beyond input, weights and output.
    max_error : float, optional
        Largest difference from the right result, in units of its largest value; of networks from
        the one in float32, whatever they are compared in.
    compile_seconds : float, optional
        To get ready for the first call.
    blocking, blocking_source : str, optional
        Block sizes of ours, and where they come from.

    Raises
    ------
    ReportError
        If a value has the wrong type, is impossible, or does not go with the others.
    """

    date: str
    subject: str
    network: str | None
    layer: str | None
    workload: str | None
    threads: int
    contestant: str
    library: str | None
    implementation: str | None
    status: str
    reason: str | None
    algorithm: str
    includes: str
    seconds: tuple[float, ...]
    peak_gflops: tuple[float, ...]
    extra_bytes: int | None
    max_error: float | None
    compile_seconds: float | None
    blocking: str | None
    blocking_source: str | None
    clock_gflops: tuple[float, ...] = ()
    dtype: str = ""
    precision: str | None = None
    rms_error: float | None = None
    agreement: float | None = None

    def __post_init__(self) -> None:
        if self.dtype == "":  # the way past `frozen`
            object.__setattr__(self, "dtype", self._own_dtype())
        if wrong := problem(vars(self), _KINDS):
            raise ReportError(wrong)
        for name in ("seconds", "peak_gflops", "clock_gflops"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.subject == "network":
            if self.network is None or self.layer or self.workload:
                raise ReportError(
                    f"subject is 'network', network {self.network!r}, layer {self.layer!r}, "
                    f"workload {self.workload!r}: expected a network's name alone"
                )
            if self.dtype not in NETWORK_DTYPES:
                raise ReportError(
                    f"dtype is {shown(self.dtype)}: expected one of {', '.join(NETWORK_DTYPES)}"
                )
        else:
            try:
                dtype = _parsed(self.workload or "").dtype
            except WorkloadError as error:
                raise ReportError(f"workload is {shown(self.workload)}: {error}") from None
            if self.dtype != dtype:
                raise ReportError(
                    f"dtype is {shown(self.dtype)}: expected {dtype}, which the workload has"
                )
        if len(self.peak_gflops) != len(self.seconds):
            raise ReportError(
                f"there are {len(self.seconds)} seconds and {len(self.peak_gflops)} peak_gflops: "
                "expected one of each for every repeat"
            )
        if len(self.clock_gflops) not in (0, len(self.seconds)):
            raise ReportError(
                f"there are {len(self.seconds)} seconds and {len(self.clock_gflops)} clock_gflops: "
                "expected one of each for every repeat, or none of the latter"
            )
        if (self.status == "ok") != bool(self.seconds):
            raise ReportError(
                f"status is {self.status!r} with {len(self.seconds)} seconds: expected some if it "
                "is 'ok', and none if not"
            )
        if self.status != "ok" and self.reason is None:
            raise ReportError(f"status is {self.status!r} and reason is null: expected a reason")

    @property
    def about(self) -> Subject:
        """What was measured."""
        return Subject(
            self.subject, self.network or "", self.layer or "", self.workload or "", self.dtype
        )

    def _own_dtype(self) -> str:
        """Return the number type of a row that says none."""
        if self.subject == "network":
            return _FLOAT32
        try:
            return _parsed(self.workload or "").dtype
        except (WorkloadError, TypeError):  # Found below.
            return _FLOAT32

    def to_line(self) -> str:
        """Return the row as it stands in the file, without a newline."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Row":
        """Make a row of values by name. Keys that are not known are left out.

        Raises
        ------
        ReportError
            If it is no row.
        """
        needed = [f.name for f in fields(cls) if f.default is MISSING]
        if missing := [name for name in needed if name not in values]:
            raise ReportError(f"{', '.join(missing)} missing: expected every key of a row")
        found = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        for name in ("network", "layer"):
            found[name] = found[name] or None  # Layers that have no name have an empty one.
        return cls(**found)

    @classmethod
    def from_line(cls, line: str | bytes) -> "Row":
        """Read a line of the file.

        Raises
        ------
        ReportError
            If it is no row.
        """
        try:
            return cls.from_dict(reading.parsed_object(line))
        except reading.Unreadable as error:
            raise ReportError(str(error)) from None


def now() -> str:
    """Return the date for rows: no two comparisons have the same."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def read(path: Path) -> list[Row]:
    """Return the rows of a file, in its order; none if there is no such file.

    What stands behind the last newline was cut off while it was written, and is left out.

    Raises
    ------
    ReportError
        If the file cannot be read or is damaged elsewhere; with the line's number.
    """
    if not os.path.lexists(path):
        return []
    try:
        content = reading.content(path, _LARGEST)
    except reading.Unreadable as error:
        raise ReportError(f"cannot read {str(path)!r} ({error}): expected a file of rows") from None
    rows: list[Row] = []
    repeats: dict[tuple[object, ...], int] = {}
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        if not line.strip():
            continue
        try:
            row = Row.from_line(line)
            _check_repeats(row, repeats)
        except ReportError as error:
            raise ReportError(
                f"{path}:{number}: {error}; remove the line to measure it again"
            ) from None
        rows.append(row)
    return rows


def _check_repeats(row: Row, repeats: dict[tuple[object, ...], int]) -> None:
    """Raise if a row has not as many repeats as those that it was measured in turns with."""
    if not row.seconds:
        return
    others = repeats.setdefault((row.about, row.date), len(row.seconds))
    if others != len(row.seconds):
        raise ReportError(
            f"{row.contestant} has {len(row.seconds)} repeats, others of the same comparison "
            f"{others}: expected as many"
        )


@contextmanager
def appending(path: Path) -> Iterator[Callable[[Row], None]]:
    """Open a file for appending, and keep other processes from doing so.

    Parameters
    ----------
    path : Path
        The file. Made if need be; a line that was cut off is removed.

    Yields
    ------
    callable
        Writes a row, unless :func:`read` would refuse it. When it returns, the row is on the disk.

    Raises
    ------
    ReportError
        If it cannot be written, or another process has it open.
    """
    try:
        file = open(path, "a+b", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise _not_written(path, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReportError(
                f"{str(path)!r} is being written by another process: expected one report at a "
                "time, wait for it or give a new folder"
            ) from None
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)

        repeats: dict[tuple[object, ...], int] = {}

        def append(row: Row) -> None:
            _check_repeats(row, repeats)
            try:
                files.append(file.fileno(), row.to_line().encode() + b"\n")
            except OSError as error:
                raise _not_written(path, error) from None

        yield append


def _not_written(path: Path, error: OSError) -> ReportError:
    return ReportError(
        f"cannot write {str(path)!r} ({error.strerror}): expected a folder that you may write to, "
        "with space left"
    )
