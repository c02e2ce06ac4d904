"""Measuring what a report's folder lacks."""

import fnmatch
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ...errors import ReportError
from ...hardware.host import check_cores
from ...workload import ConvWorkload
from ..rivals import rounds
from ..rivals.base import NETWORK_DTYPES, NotHere
from ..rivals.contestants import LAYER_CONTESTANTS, NETWORK_CONTESTANTS
from ..rivals.tvm import Tuned
from . import environment
from .rows import OURS, SUBJECTS, Row, Subject, appending, layer_subject, network_subject, now, read

ROWS = "rows.jsonl"
ENVIRONMENT = "environment.json"
SLOW = Tuned.name
"""The contestant that takes minutes for a layer."""

RawRow = Mapping[str, Any]
"""A :class:`Row` by its keys, without ``date``."""


class Measurer(Protocol):
    """What measures, in turns, all contestants on one subject after the other.

    Numbers of threads take turns, too.
    """

    def contestants(self, subject: str) -> Mapping[str, str | None]:
        """Return the names of all contestants for layers or networks, ours among them.

        With the reason for those that are not installed here.
        """
        ...

    def compare_layers(
        self,
        workloads: Sequence[ConvWorkload],
        contestants: Sequence[str],
        threads: Sequence[int],
        repeats: int,
        *,
        say: Callable[[str], None],
    ) -> Iterator[RawRow]:
        """Yield a row for each convolution, number of threads and contestant, absent ones too.

        All rows of a convolution come before the first one of the next. `say` is told what is
        being done.
        """
        ...

    def compare_networks(
        self,
        networks: Sequence[str],
        contestants: Sequence[str],
        threads: Sequence[int],
        repeats: int,
        dtype: str,
        *,
        say: Callable[[str], None],
    ) -> Iterator[RawRow]:
        """Do the same with whole networks, in a number type."""
        ...


class _Rivals:
    """The contestants of :mod:`tvm_directconv.bench.rivals`."""

    def __init__(self, trials: int) -> None:
        layers = (
            replace(each, trials=trials) if isinstance(each, Tuned) else each
            for each in LAYER_CONTESTANTS
        )
        self._known: dict[str, dict[str, Any]] = {
            "layer": {each.name: each for each in layers},
            "network": {each.name: each for each in NETWORK_CONTESTANTS},
        }

    def contestants(self, subject: str) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for name, each in self._known[subject].items():
            try:
                each.check(network=subject == "network")
                found[name] = None
            except NotHere as error:
                found[name] = str(error)
        return found

    def compare_layers(
        self, workloads: Sequence[ConvWorkload], contestants: Sequence[str], *how: Any, **say: Any
    ) -> Iterator[RawRow]:
        chosen = [self._known["layer"][name] for name in contestants]
        yield from rounds.compare_layers(workloads, chosen, *how, **say)

    def compare_networks(
        self, networks: Sequence[str], contestants: Sequence[str], *how: Any, **say: Any
    ) -> Iterator[RawRow]:
        chosen = [self._known["network"][name] for name in contestants]
        yield from rounds.compare_networks(networks, chosen, *how, **say)


def rivals(trials: int) -> Measurer:
    """Return what measures the contestants of this package.

    Parameters
    ----------
    trials : int
        Budget of TVM's tuner, for each layer.
    """
    return _Rivals(trials)


@dataclass(frozen=True)
class Asked:
    """What a report shall hold.

    Parameters
    ----------
    workloads : sequence of ConvWorkload
        Layers.
    networks : sequence of str
        Whole networks.
    dtypes : sequence of str
        Number types that these are compared in.
    threads : sequence of int
        Numbers of threads, which take turns.
    repeats : int
        How often each contestant is timed.
    contestants : mapping of str to sequence of str
        Those for layers and for networks, by these words as :class:`Row` has them.
    """

    workloads: Sequence[ConvWorkload]
    networks: Sequence[str]
    threads: Sequence[int]
    repeats: int
    contestants: Mapping[str, Sequence[str]]
    dtypes: Sequence[str] = NETWORK_DTYPES[:1]


@dataclass(frozen=True)
class Part:
    """What is to be measured with the same numbers of threads.

    Attributes
    ----------
    threads : tuple of int
    workloads : list of ConvWorkload
    networks : list of Subject
    """

    threads: tuple[int, ...]
    workloads: list[ConvWorkload]
    networks: list[Subject]


def chosen(measurer: Measurer, patterns: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the contestants whose names match one of some patterns, and always ours.

    Parameters
    ----------
    measurer : Measurer
    patterns : sequence of str
        Capitals are as good as small letters. If there are none: all but :data:`SLOW`.

    Returns
    -------
    dict of str to list of str
        As in :class:`Asked`.

    Raises
    ------
    ReportError
        If a pattern matches none.
    """
    known = {subject: list(measurer.contestants(subject)) for subject in SUBJECTS}
    names = list(dict.fromkeys(name for each in known.values() for name in each))
    found = {OURS} if patterns else {name for name in names if name != SLOW}
    for pattern in patterns:
        matches = [name for name in names if fnmatch.fnmatch(name.lower(), pattern.lower())]
        if not matches:
            raise ReportError(
                f"no contestant is called {pattern!r}: expected one of "
                f"{', '.join(map(repr, names))}, or a pattern with * and ?"
            )
        found.update(matches)
    return {subject: [name for name in each if name in found] for subject, each in known.items()}


def missing(rows: Sequence[Row], asked: Asked, absent: Mapping[str, Collection[str]]) -> list[Part]:
    """Return what has to be measured yet.

    A subject is complete with a number of threads when there is a row of every contestant. What was
    not installed when it was measured, and is installed now, is missing.

    Parameters
    ----------
    rows : sequence of Row
        What there is.
    asked : Asked
        What there shall be.
    absent : mapping of str to collection of str
        For layers and networks, reasons why contestants were not installed that hold no more.
    """
    have = {
        (row.about, row.threads, row.contestant)
        for row in rows
        if row.status != "not_here" or row.reason not in absent[row.subject]
    }

    def lacked(subject: Subject) -> tuple[int, ...]:
        contestants = asked.contestants[subject.kind]
        return tuple(
            threads
            for threads in asked.threads
            if any((subject, threads, name) not in have for name in contestants)
        )

    networks = [network_subject(n, dtype) for dtype in asked.dtypes for n in asked.networks]
    subjects = [*networks, *map(layer_subject, asked.workloads)]
    return [
        Part(
            threads,
            [w for w in asked.workloads if lacked(layer_subject(w)) == threads],
            [subject for subject in networks if lacked(subject) == threads],
        )
        for threads in dict.fromkeys(map(lacked, subjects))
        if threads
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
        Is told the number of the subject that rows are coming of, of how many, and its name and
        numbers of threads.
    say : callable
        Is told what is being done.

    Raises
    ------
    ArgumentError
        If there are fewer cores than threads.
    ReportError
        If the folder's rows are damaged, were measured in another environment, or cannot be
        written.
    """
    check_cores(max(asked.threads))
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
        reasons = {
            subject: list(dict.fromkeys(filter(None, measurer.contestants(subject).values())))
            for subject in SUBJECTS
        }
        before = environment.absent(folder / ENVIRONMENT)
        mended = {subject: before[subject] - set(reasons[subject]) for subject in SUBJECTS}
        parts = missing(rows, asked, mended)
        total = sum(len(part.workloads) + len(part.networks) for part in parts)
        if not total:
            return
        environment.begin(folder / ENVIRONMENT, asked.threads, asked.repeats, reasons)
        libraries = {row.contestant: row.library for row in rows if row.library}
        number, date, subject = 0, now(), None
        for part in parts:
            for raw in _measured(part, asked, measurer, say):
                row = Row.from_dict({**raw, "date": date})
                if row.about != subject:
                    number, date, subject = number + 1, now(), row.about
                    row = replace(row, date=date)
                    threads = " and ".join(map(str, part.threads))
                    done(number, total, f"{subject.name}, {threads} thread(s)")
                _check_library(row, libraries, folder)
                append(row)


def _measured(
    part: Part, asked: Asked, measurer: Measurer, say: Callable[[str], None]
) -> Iterator[RawRow]:
    how = (part.threads, asked.repeats)
    layers, networks = (asked.contestants[subject] for subject in SUBJECTS)
    # Networks first, as they may lack what layers do not need.
    for dtype in dict.fromkeys(subject.dtype for subject in part.networks):
        names = [subject.network for subject in part.networks if subject.dtype == dtype]
        yield from measurer.compare_networks(names, networks, *how, dtype, say=say)
    if part.workloads:
        yield from measurer.compare_layers(part.workloads, layers, *how, say=say)


def _check_library(row: Row, libraries: dict[str, str], folder: Path) -> None:
    if not row.library:
        return
    before = libraries.setdefault(row.contestant, row.library)
    if before != row.library:
        raise ReportError(
            f"{str(folder)!r} has rows of {row.contestant} with {before}, here it is "
            f"{row.library}: expected the same, give a new folder"
        )
