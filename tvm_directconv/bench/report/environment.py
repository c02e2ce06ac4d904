"""Where a report was measured: the processor, the system, versions, how fast memory is."""

import json
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ... import files, memory, reading
from ...errors import ReportError
from ...hardware.host import native
from ...kinds import (
    COUNT,
    NAMES,
    TEXT,
    THREADS,
    Kind,
    Table,
    is_number,
    is_text,
    is_whole,
    or_null,
    printable,
    problem,
    shown,
)
from ...logs import record
from .rows import SUBJECTS

FORMAT = 1
# What all rows of a folder must have in common: figures of other machines do not compare.
_COMMON = ("cpu", "device", "versions")
_NUMBERS = Kind(
    "numbers by name", lambda v: isinstance(v, dict) and all(map(is_number, v.values()))
)
_KINDS: Table = {
    "format": Kind(f"the number {FORMAT}", lambda v: is_whole(v, FORMAT, FORMAT)),
    "cpu": or_null(TEXT),
    "device": TEXT,
    "versions": Kind(
        "versions by name",
        lambda v: isinstance(v, dict) and all(map(is_text, [*v.keys(), *v.values()])),
    ),
    "cpu_name": or_null(TEXT),
    "cores": or_null(COUNT),
    "caches": _NUMBERS,
    "system": TEXT,
    "python": TEXT,
    "copy_gb_per_s": Kind(
        "speeds by numbers of threads",
        lambda v: _NUMBERS.test(v) and all(re.fullmatch("[1-9][0-9]{0,4}", key) for key in v),
    ),
    "runs": [
        {
            "date": TEXT,
            "threads": [THREADS],
            "repeats": COUNT,
            "cpus": [COUNT],
            "absent": dict.fromkeys(SUBJECTS, NAMES),
        }
    ],
}

_COPY_BYTES = 2**27  # of each array: far more than the caches of one core
_COPIES = 5


def read(path: Path) -> dict[str, Any] | None:
    """Return the environment that a file describes; None if there is no such file.

    Raises
    ------
    ReportError
        If it is none.
    """
    if not os.path.lexists(path):
        return None
    try:
        found = reading.json_object(path)
    except reading.Unreadable as error:
        raise ReportError(
            f"cannot read {str(path)!r} ({error}): expected the environment that the folder's rows "
            "were measured in; give a new folder"
        ) from None
    if wrong := problem(found, _KINDS):
        raise ReportError(
            f"{str(path)!r} is no environment ({wrong}): expected what a report of format "
            f"{FORMAT} writes; give a new folder"
        )
    return found


def here() -> dict[str, Any]:
    """Return the environment of this process, without runs."""
    machine = native()
    about = record.here()
    return {
        "format": FORMAT,
        "cpu": about["cpu"],
        "cpu_name": about["cpu_name"],
        "device": machine.name,
        "versions": about["versions"],
        "cores": os.cpu_count(),
        "caches": {level: getattr(machine, f"{level}_bytes") for level in ("l1d", "l2", "l3")},
        "system": f"{platform.system()} {platform.release()}, {_distribution()}",
        "python": platform.python_version(),
        "copy_gb_per_s": {},
        "runs": [],
    }


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.machine()


def check(path: Path) -> None:
    """Raise if a folder's rows were measured in another environment than this.

    Parameters
    ----------
    path : Path
        The file that describes the folder's environment; there may be none.

    Raises
    ------
    ReportError
        With what differs.
    """
    found, now = read(path), here()
    for key in _COMMON if found else ():
        if found and found[key] != now[key]:
            raise ReportError(
                f"{str(path.parent)!r} has rows of {key} {_said(found[key])}, here it is "
                f"{_said(now[key])}: expected the same, give a new folder"
            )


def absent(path: Path) -> dict[str, set[str]]:
    """Return, for layers and networks, all reasons why contestants were not installed.

    Parameters
    ----------
    path : Path
        As in :func:`check`.
    """
    found = read(path)
    runs = found["runs"] if found else []
    return {subject: {r for run in runs for r in run["absent"][subject]} for subject in SUBJECTS}


def begin(
    path: Path, threads: Sequence[int], repeats: int, reasons: Mapping[str, Sequence[str]]
) -> None:
    """Note in a folder that measuring begins.

    Parameters
    ----------
    path : Path
        As in :func:`check`, which does not raise.
    threads : sequence of int
        How many will compute; how fast so many copy memory is measured if it is not known.
    repeats : int
        How often each contestant is timed.
    reasons : mapping of str to sequence of str
        For layers and networks, why contestants are not installed.

    Raises
    ------
    ReportError
        If it cannot be written.
    """
    found = read(path) or here()
    for number in threads:
        if str(number) not in found["copy_gb_per_s"]:
            found["copy_gb_per_s"][str(number)] = copy_speed(number)
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    found["runs"].append(
        {
            "date": record.now(),
            "threads": list(threads),
            "repeats": repeats,
            "cpus": cpus,
            "absent": dict(reasons),
        }
    )
    with files.explained(path, ReportError):
        files.write(path, json.dumps(found, indent=2) + "\n")


def _said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{printable(name)} {printable(said)[:40]}" for name, said in value.items()
        )
    return shown(value)


def copy_speed(threads: int) -> float:
    """Return at how many 10^9 bytes per second threads read and write memory, copying.

    Each copies an array of its own that caches do not hold; the best of some copies counts.
    """
    # Of what is free, the half: machines with many cores need not have as much for each.
    size = max(64, min(_COPY_BYTES, memory.free() // (4 * threads))) // 8
    arrays = [(np.ones(size), np.zeros(size)) for _ in range(threads)]
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_COPIES):
            start = time.perf_counter()
            # NumPy lets other threads run while it copies.
            list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), arrays))
            seconds.append(time.perf_counter() - start)
    return 2 * threads * size * 8 / min(seconds) / 1e9
