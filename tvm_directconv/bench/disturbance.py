"""Which measurements cannot be believed, and why: what else the machine did has reached into them.

A layer and the burst beside it are slowed down alike by a neighbour that stays, and their ratio
holds. One that comes and goes hits the one or the other, and the ratio is nonsense.
"""

from collections.abc import Sequence
from statistics import median

import numpy as np

LEAST_OF_CLOCK = 0.8
"""Least part of what the clock allows that an undisturbed burst reaches."""
LEAST_ON_CORE = 0.9
"""Least part of the time in which an undisturbed thread has a core."""
MOST_OF_LIMIT = 1.05
"""What is further above its limit than this was measured beside bursts that were slowed down."""
MOST_SPREAD = 0.25
"""Most of the distance from p20 to p80, over the median."""


def disturbance(
    speeds: Sequence[float],
    of_clock: Sequence[float] = (),
    of_limit: float | None = None,
    on_core: Sequence[float] = (),
) -> str | None:
    """Say why a measurement cannot be believed.

    Parameters
    ----------
    speeds : sequence of float
        For each repeat, the speed over that of the burst beside it, in any unit.
    of_clock : sequence of float
        For each repeat, the speed of the burst over what the clock of that moment allows; empty
        where the clock is not known.
    of_limit : float, optional
        The speed over its limit; None if there is none.
    on_core : sequence of float
        For each repeat, the part of the time in which it was computed; others had the core in the
        rest. Empty where that is not known.

    Returns
    -------
    str or None
        The reasons, None if there is nothing against it.
    """
    reasons = []
    if len(of_clock) and (reached := median(of_clock)) < LEAST_OF_CLOCK:
        reasons.append(f"bursts reach {reached:.0%} of what the clock allows")
    if len(on_core) and (had := median(on_core)) < LEAST_ON_CORE:
        reasons.append(f"it had a core for {had:.0%} of the time")
    if of_limit is not None and of_limit > MOST_OF_LIMIT:
        reasons.append(f"{of_limit:.0%} of the limit")
    if len(speeds):
        low, middle, high = (float(np.percentile(speeds, p)) for p in (20, 50, 80))
        if (spread := (high - low) / middle) > MOST_SPREAD:
            reasons.append(f"p20 to p80 is {spread:.0%} of the median")
    return "; ".join(reasons) or None


def left_out(disturbed: int, total: int, again: str = "take more repeats (--repeat)") -> str:
    """Say how many measurements are not part of a mean, and what to do about it.

    Parameters
    ----------
    disturbed : int
        How many; from 1.
    total : int
        Of how many.
    again : str
        How to measure better, besides on a quiet machine.
    """
    return (
        f"disturbed, and left out of means: {disturbed} of {total}. Other programs ran at the same "
        "time: close them, pin the process to cores that nobody else uses (taskset -c 0), or "
        f"{again}"
    )
