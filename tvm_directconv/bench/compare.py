"""Comparisons of two kernels that can be believed on a noisy machine.

The same kernel can run at half its speed for minutes while strangers use the machine, so seconds
of two runs say little about two kernels. Run in turns, they are slowed down alike, and the ratio
of neighbouring times stays. It is repeated until the ratio is clear.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from statistics import median

import numpy as np

Timer = Callable[[], float]
"""Runs something and returns the seconds of one call."""

# A candidate that is slower in nearly every repeat needs no further ones: after a few if it is so
# by more than noise, after some more if it is so at all.
_CLEARLY_SLOWER = {3: 0.97, 5: 1.0}
# Places in memory that arrays are measured in: an even number, as they take turns there, too.
_PLACES = 4


@dataclass(frozen=True)
class Comparison:
    """What was measured of a candidate, one number for each repeat.

    Attributes
    ----------
    seconds : tuple of float
        Of one call.
    over_incumbent : tuple of float
        Seconds of the incumbent over those of the candidate: above 1, the candidate is faster.
        Empty if there was no incumbent.
    of_peak : tuple of float
        Speed over that of the multiply-add burst beside it; empty if no burst was run.
    of_clock : tuple of float
        Speed of that burst over what the clock allows; empty if nobody asked the clock.
    on_core : tuple of float
        Part of the time in which the thread that measures had a core; empty likewise.
    """

    seconds: tuple[float, ...]
    over_incumbent: tuple[float, ...] = ()
    of_peak: tuple[float, ...] = ()
    of_clock: tuple[float, ...] = ()
    on_core: tuple[float, ...] = ()

    @property
    def ratio(self) -> float:
        """Median of `over_incumbent`."""
        return median(self.over_incumbent)


@dataclass(frozen=True)
class Failure:
    """A candidate that could not be measured.

    Attributes
    ----------
    kind : str
        A status of :class:`tvm_directconv.logs.record.Record` other than ``ok``.
    message : str
        What happened.
    """

    kind: str
    message: str


def compare(
    candidate: Timer,
    incumbent: Timer | None,
    peak: Callable[[], float] | None,
    flops: int,
    repeats: int,
    *,
    thorough: bool = False,
    incumbent_first: bool = False,
    allowed: Callable[[], float] | None = None,
) -> Comparison:
    """Time a candidate in turns with the incumbent and the burst.

    Parameters
    ----------
    candidate : Timer
        What is measured.
    incumbent : Timer or None
        What it is compared with; None to measure `candidate` alone.
    peak : callable or None
        Runs a burst of multiply-adds and returns its GFLOP/s. There is one before and one after
        each repeat; their mean counts.
    flops : int
        Operations of one call of `candidate`.
    repeats : int
        The most repeats.
    thorough : bool
        Whether to make all repeats even of a candidate that is clearly slower.
    incumbent_first : bool
        Whether the incumbent runs first in the first repeat. They take turns in that: what runs
        last in one repeat runs first in the next, and finds its data in the cache.
    allowed : callable, optional
        Returns the GFLOP/s that the clock allows, and is asked after each burst. Only for what
        runs in this thread and those that it waits for.

    Returns
    -------
    Comparison
    """
    seconds: list[float] = []
    over: list[float] = []
    of_peak: list[float] = []
    of_clock: list[float] = []
    before = peak() if peak else 0.0
    allowed_before = allowed() if allowed else 0.0
    on_core: list[float] = []

    def timed() -> float:
        begin, begin_on_core = time.perf_counter(), time.thread_time()
        found = candidate()
        if allowed:
            spent = time.perf_counter() - begin
            on_core.append(min(1.0, (time.thread_time() - begin_on_core) / max(spent, 1e-9)))
        return found

    for repeat in range(repeats):
        if incumbent and (repeat + incumbent_first) % 2:
            rival = incumbent()
            seconds.append(timed())
        else:
            seconds.append(timed())
            rival = incumbent() if incumbent else 0.0
        if incumbent:
            over.append(rival / seconds[-1])
        if peak:
            after = peak()
            of_peak.append(flops / seconds[-1] / 1e9 / ((before + after) / 2))
            if allowed:
                allowed_after = allowed()
                # An interrupted chain tells too little.
                of_clock.append((before + after) / 2 / max(allowed_before, allowed_after))
                allowed_before = allowed_after
            before = after
        if over and not thorough and _is_hopeless(over):
            break
    return Comparison(tuple(seconds), tuple(over), tuple(of_peak), tuple(of_clock), tuple(on_core))


def compare_in_places(
    candidate: Callable[[], Timer],
    incumbent: Callable[[], Timer] | None,
    peak: Callable[[], float] | None,
    flops: int,
    repeats: int,
    allowed: Callable[[], float] | None = None,
) -> Comparison:
    """Compare with the arrays in several places of memory.

    Which pages an array gets is chance, and so is which of them compete for the same places of the
    second-level cache: the same code differs by some percent from one allocation to the next. A
    comparison on one set of arrays can be repeated as often as one likes and still be wrong.

    Parameters
    ----------
    candidate, incumbent : callable
        Return a timer with arrays of its own. All are kept to the end, or the next ones would get
        the pages of the last ones. What is allocated first is slower by some percent now and then,
        so candidate and incumbent take turns in that.
    peak, flops
        As in :func:`compare`.
    repeats : int
        In all places together; all are made.
    allowed
        As in :func:`compare`.

    Returns
    -------
    Comparison
    """
    kept: list[tuple[Timer, Timer | None]] = []
    parts = []
    for number in range(min(_PLACES, repeats)):
        rival = incumbent() if incumbent and number % 2 else None
        timer = candidate()
        if incumbent and not rival:
            rival = incumbent()
        kept.append((timer, rival))
        share = len(range(number, repeats, _PLACES))
        parts.append(
            compare(
                timer,
                rival,
                peak,
                flops,
                share,
                thorough=True,
                incumbent_first=number % 2 == 1,
                allowed=allowed,
            )
        )
    return Comparison(
        *(
            tuple(figure for part in parts for figure in getattr(part, field.name))
            for field in fields(Comparison)
        )
    )


def _is_hopeless(over: list[float]) -> bool:
    limit = max((r for least, r in _CLEARLY_SLOWER.items() if len(over) >= least), default=0.0)
    return float(np.percentile(over, 80)) < limit
