"""Records: what was measured of one blocking, as a value and as a line of JSON."""

import functools
import json
import math
import re
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

from .. import reading, versions
from ..blocking import Blocking
from ..errors import BlockingError, LogError, WorkloadError
from ..hardware.host import host_cpu, native
from ..kinds import TEXT, THREADS, Kind, is_positive, is_text, is_whole, or_null, problem, shown
from ..layout import ActivationLayout
from ..workload import ConvWorkload

FORMAT = 1
STATUSES = ("ok", "rejected", "compile_error", "timeout", "wrong_result", "crash", "rpc_lost")
MODELLED = "llvm-mca"
MEASURED_BY = ("local", "rpc", "runner", MODELLED)
_DATE = "%Y-%m-%dT%H:%M:%SZ"
# Keys that older versions did not write; what stands for them is null.
_LATER = ("disturbed",)


def _is_date(value: object) -> bool:
    try:
        return isinstance(value, str) and parse_date(value).strftime(_DATE) == value
    except ValueError:
        return False


def parse_date(text: str) -> datetime:
    """Return the date of a record."""
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
        known = replace(canonical(self.workload), name=self.workload.name)
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
            raise NewerError(
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


class NewerError(LogError):
    """A record that a newer version wrote."""


_parsed = functools.cache(ConvWorkload.parse)


@functools.cache
def canonical(workload: ConvWorkload) -> ConvWorkload:
    """Return a convolution as it is read from its descriptor."""
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
