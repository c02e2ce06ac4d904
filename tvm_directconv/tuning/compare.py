"""Comparisons of two kernels that can be believed on a noisy machine.

The same kernel can run at half its speed for minutes while strangers use the machine, so seconds
of two runs say little about two kernels. Run in turns, they are slowed down alike, and the ratio
of neighbouring times stays. It is repeated until the ratio is clear.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

Timer = Callable[[], float]
"""Runs something and returns the seconds of one call."""

# A candidate that is slower in nearly every repeat needs no further ones: after a few if it is so
# by more than noise, after some more if it is so at all.
_CLEARLY_SLOWER = {3: 0.97, 5: 1.0}


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
    """

    seconds: tuple[float, ...]
    over_incumbent: tuple[float, ...] = ()
    of_peak: tuple[float, ...] = ()

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
        A status of :class:`tvm_directconv.logs.Record` other than ``ok``.
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
) -> Comparison:
    """Time a candidate in turns with the incumbent and the burst.

    Parameters
    ----------
    candidate : Timer
        What is measured.
    incumbent : Timer or None
        What it is compared with; None to measure `candidate` alone.
    peak : callable or None
        Runs a burst of multiply-adds and returns its GFLOP/s.
    flops : int
        Operations of one call of `candidate`.
    repeats : int
        The most repeats.
    thorough : bool
        Whether to make all repeats even of a candidate that is clearly slower.

    Returns
    -------
    Comparison
    """
    seconds: list[float] = []
    over: list[float] = []
    of_peak: list[float] = []
    for repeat in range(repeats):
        if incumbent and repeat % 2:
            rival = incumbent()
            seconds.append(candidate())
        else:
            seconds.append(candidate())
            rival = incumbent() if incumbent else 0.0
        if incumbent:
            over.append(rival / seconds[-1])
        if peak:
            of_peak.append(flops / seconds[-1] / 1e9 / peak())
        if over and not thorough and _is_hopeless(over):
            break
    return Comparison(tuple(seconds), tuple(over), tuple(of_peak))


def _is_hopeless(over: list[float]) -> bool:
    limit = max((r for least, r in _CLEARLY_SLOWER.items() if len(over) >= least), default=0.0)
    return float(np.percentile(over, 80)) < limit
