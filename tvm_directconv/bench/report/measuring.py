"""Measuring what a report's folder lacks."""

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from ...errors import ReportError
from ...workload import ConvWorkload
from . import environment
from .rows import OURS, Row, Subject, appending, layer_subject, network_subject, now, read

ROWS = "rows.jsonl"
ENVIRONMENT = "environment.json"

RawRow = Mapping[str, Any]
"""A :class:`Row` by its keys, without ``date``."""


class Measurer(Protocol):
    """What measures, in turns, all contestants on one subject after the other."""

    def contestants(self) -> Sequence[str]:
        """Return the names of all contestants that there may be."""
        ...

    def absent(self) -> Mapping[str, str]:
        """Return the contestants that cannot take part here, and why."""
        ...

    def compare_layers(
        self,
        workloads: Sequence[ConvWorkload],
        contestants: Sequence[str],
        threads: int,
        repeats: int,
        *,
        say: Callable[[str], None],
    ) -> Iterator[RawRow]:
        """Yield a row for each convolution and contestant, absent ones too.

        All rows of a convolution come before the first one of the next. `say` is told what is
        being done.
        """
        ...

    def compare_networks(
        self,
        networks: Sequence[str],
        contestants: Sequence[str],
        threads: int,
        repeats: int,
        *,
        say: Callable[[str], None],
    ) -> Iterator[RawRow]:
        """Do the same with whole networks."""
        ...


def rivals(trials: int) -> Measurer:
    """Return what measures: the one place where reports and contestants meet.

    Parameters
    ----------
    trials : int
        Budget of contestants that are tuned, for each layer.
    """
    try:
        return cast(Measurer, import_module("..rivals", __package__).measurer(trials))
    except ModuleNotFoundError:
        raise ReportError(
            "tvm_directconv.bench.rivals is missing: expected it for measuring; write the report "
            "of rows that are there already with --render-only"
        ) from None


@dataclass(frozen=True)
class Asked:
    """What a report shall hold.

    Parameters
    ----------
    workloads : sequence of ConvWorkload
        Layers.
    networks : sequence of str
        Whole networks.
    threads : sequence of int
        Numbers of threads.
    repeats : int
        How often each contestant is timed.
    contestants : sequence of str
        Ours is among them.
    """

    workloads: Sequence[ConvWorkload]
    networks: Sequence[str]
    threads: Sequence[int]
    repeats: int
    contestants: Sequence[str]


@dataclass(frozen=True)
class Part:
    """What is to be measured with one number of threads.

    Attributes
    ----------
    threads : int
    workloads : list of ConvWorkload
    networks : list of str
    """

    threads: int
    workloads: list[ConvWorkload]
    networks: list[str]


def chosen(measurer: Measurer, patterns: Sequence[str]) -> list[str]:
    """Return the contestants whose names match one of some patterns, and always ours.

    Raises
    ------
    ReportError
        If a pattern matches none.
    """
    known = measurer.contestants()
    found = {OURS}
    for pattern in patterns:
        matches = [name for name in known if fnmatch.fnmatch(name.lower(), pattern.lower())]
        if not matches:
            raise ReportError(
                f"no contestant is called {pattern!r}: expected one of "
                f"{', '.join(map(repr, known))}, or a pattern with * and ?"
            )
        found.update(matches)
    return [name for name in known if name in found]


def missing(rows: Sequence[Row], asked: Asked, absent: Mapping[str, str]) -> list[Part]:
    """Return what has to be measured yet.

    A subject is complete when there is a row of every contestant. What was absent when it was
    measured, and is here now, is missing.
    """
    have = {
        (row.about, row.threads, row.contestant)
        for row in rows
        if row.status != "not_here" or row.contestant in absent
    }

    def lacks(subject: Subject, threads: int) -> bool:
        return any((subject, threads, name) not in have for name in asked.contestants)

    return [
        Part(
            threads,
            [w for w in asked.workloads if lacks(layer_subject(w), threads)],
            [name for name in asked.networks if lacks(network_subject(name), threads)],
        )
        for threads in asked.threads
    ]


def measure(
    folder: Path,
    asked: Asked,
    measurer: Measurer,
    done: Callable[[int, int, str], None] = lambda number, total, text: None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Measure what a folder lacks; every row is on the disk before the next one is measured.

    Parameters
    ----------
    folder : Path
        Made if need be.
    asked : Asked
        What it shall hold.
    measurer : Measurer
    done : callable
        Is told the number of the subject that rows are coming of, of how many, and its name.
    say : callable
        Is told what is being done.

    Raises
    ------
    ReportError
        If the folder's rows are damaged, were measured in another environment, or cannot be
        written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(
            f"cannot make folder {str(folder)!r} ({error.strerror}): expected a folder, or a name "
            "that is free"
        ) from None
    environment.check(folder / ENVIRONMENT)
    with appending(folder / ROWS) as append:
        rows = read(folder / ROWS)
        if rows and not (folder / ENVIRONMENT).exists():
            raise ReportError(
                f"{str(folder)!r} has rows but no {ENVIRONMENT}: nobody knows where they were "
                "measured, give a new folder"
            )
        parts = missing(rows, asked, measurer.absent())
        total = sum(len(part.workloads) + len(part.networks) for part in parts)
        if not total:
            return
        environment.begin(folder / ENVIRONMENT, asked.threads, asked.repeats)
        libraries = {row.contestant: row.library for row in rows if row.library}
        number, date, subject = 0, now(), None
        for part in parts:
            for raw in _measured(part, asked, measurer, say):
                row = Row.from_dict({**raw, "date": date})
                if (row.about, row.threads) != subject:
                    number, date, subject = number + 1, now(), (row.about, row.threads)
                    row = replace(row, date=date)
                    done(number, total, f"{row.about.name}, {row.threads} thread(s)")
                _check_library(row, libraries, folder)
                append(row)


def _measured(
    part: Part, asked: Asked, measurer: Measurer, say: Callable[[str], None]
) -> Iterator[RawRow]:
    how = (asked.contestants, part.threads, asked.repeats)
    if part.workloads:
        yield from measurer.compare_layers(part.workloads, *how, say=say)
    if part.networks:
        yield from measurer.compare_networks(part.networks, *how, say=say)


def _check_library(row: Row, libraries: dict[str, str], folder: Path) -> None:
    if not row.library:
        return
    before = libraries.setdefault(row.contestant, row.library)
    if before != row.library:
        raise ReportError(
            f"{str(folder)!r} has rows of {row.contestant} with {before}, here it is "
            f"{row.library}: expected the same, give a new folder"
        )
