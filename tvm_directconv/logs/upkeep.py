"""The upkeep of logs: several made one, and all but the best records taken out."""

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .. import files
from ..blocking import Blocking
from ..errors import LogError
from .choice import ranked
from .log_file import Line, explained, lines, lines_of, locked, warn_of
from .record import Record


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
    with explained(path), contextlib.ExitStack() as stack:
        if path.exists():
            stack.enter_context(locked(path))
        good: list[Line] = []
        for name in inputs:
            # A file that is locked here can be read, but not locked once more.
            if path.exists() and Path(os.path.realpath(name)) == path:
                found = lines_of(path.read_bytes())
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
    with explained(target), locked(target):
        found = lines_of(target.read_bytes())
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


def _replace(path: Path, found: Iterable[bytes]) -> None:
    """Put a new log in the place of an old one, all at once."""
    files.write(path, b"".join(text + b"\n" for text in found))
