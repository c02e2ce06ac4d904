"""The choice among records: which are trusted, which is best, which one a build goes by."""

import functools
import math
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from ..blocking import Blocking
from ..candidates import choose
from ..case import Case
from ..hardware.architecture import ARCHITECTURES
from ..hardware.device import Device
from ..hardware.device_files import devices
from ..hardware.host import host_cpu
from ..model import estimate
from ..tiling import Tiling, reasons_against
from ..workload import ConvWorkload
from .folders import folders, log_path, warn_missing
from .log_file import family, load
from .record import MODELLED, Record, canonical, parse_date

# What was measured for another case is taken if the model, too, finds little against it.
_NEAR_THE_MODEL = 1.05
# LLVM's names for instruction sets, where other devices name a core.
_NO_CORE = re.compile(r"x86-64(-v\d)?")
_OF_ARCHITECTURES = {each.device for each in ARCHITECTURES}


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
    no_core = device.name in _OF_ARCHITECTURES or _NO_CORE.fullmatch(device.mcpu or "")
    return device.name in shipped and bool(no_core)


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


def best(case: Case) -> tuple[Blocking, str] | None:
    """Find the best blocking that the logs know.

    Records count that are trusted (:func:`is_trusted`) and whose blocking can be used: of the
    convolution itself, failing that with other threads, failing that with another batch or image
    size. What is only near must also be near the best in the eyes of the model. What was measured
    always comes before the cycle model; a tuner's choice before what it tried on its way, and the
    user's own before that of this package.

    Parameters
    ----------
    case : Case
        What is computed; the workload's name does not matter.

    Returns
    -------
    tuple of Blocking and str, or None
        The blocking, and which log it is from and why. None if the model's choice is better, or
        nothing else is known.
    """
    case = replace(case, workload=canonical(case.workload))
    device = case.device
    found: list[_Found] = []
    where = folders()
    if len(where) == 1 and not where[0].is_dir():  # One that somebody named.
        warn_missing(where[0])
    for number, folder in enumerate(where):
        path = log_path(device.name, folder)
        for record in reversed(load(path).families.get(family(case.workload, device.name), ())):
            if record.status == "ok" and record.input_layout == str(case.input_layout):
                near = _nearness(record, case)
                if near and is_trusted(record, device):
                    found.append(_Found(record, path.name, number == 0, *near))
    limit = math.inf
    for candidate in sorted(found, key=_order):
        blocking = candidate.record.blocking
        if reasons_against(blocking, case):
            continue
        if candidate.near:
            if limit == math.inf:
                limit = _NEAR_THE_MODEL * estimate(Tiling(case, choose(case))).cycles
            if estimate(Tiling(case, blocking)).cycles > limit:
                continue
        over_model = candidate.record.over_model
        if not candidate.record.chosen and over_model is not None and over_model < 1:
            return None  # This is the best of what was tried, and the model's choice is better.
        return blocking, _source(candidate)
    return None


def _nearness(record: Record, wanted: Case) -> tuple[int, float] | None:
    if record.workload == wanted.workload:
        distance = abs(math.log2(record.threads / wanted.threads))
        return (1 if distance else 0), distance
    if record.threads != wanted.threads:
        return None
    return 2, abs(math.log2(_pixels(record.workload) / _pixels(wanted.workload)))


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
        -parse_date(r.date).timestamp() if r.chosen else 0,
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
