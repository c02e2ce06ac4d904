"""What tells measurements of a busy machine from those of a quiet one: on made-up samples."""

import itertools

import pytest

from tvm_directconv.bench.compare import compare, compare_in_places
from tvm_directconv.bench.disturbance import disturbance, left_out

QUIET = [0.95, 0.93, 0.96, 0.94, 0.95]


def test_quiet_measurements_are_believed() -> None:
    assert disturbance(QUIET, [0.99] * 5, 0.95, [1.0] * 5) is None
    assert disturbance(QUIET) is None
    # A little above the limit is noise, and so is one repeat of many.
    assert disturbance([*QUIET, *QUIET, 13.0], [*[1.0] * 10, 0.1], 1.04, [*[1.0] * 10, 0.3]) is None
    # A slow layer is none that was disturbed, if it is slow every time.
    assert disturbance([0.1] * 5, [1.0] * 5, 0.1) is None


@pytest.mark.parametrize(
    "facts, reason",
    [
        (((0.9,) * 5, (0.6,) * 5), "bursts reach 60% of what the clock allows"),
        (((3.63,) * 5, (), 3.63), "363% of the limit"),
        (((0.5, 0.9, 0.9, 1.2, 0.4),), "p20 to p80 is 53% of the median"),
        (((0.33,) * 5, (1.0,) * 5, 0.33, (0.35,) * 5), "it had a core for 35% of the time"),
    ],
)
def test_each_disturbance_has_its_reason(facts: tuple, reason: str) -> None:
    assert disturbance(*facts) == reason


def test_all_reasons_are_given() -> None:
    found = disturbance((13.64, 2.0, 30.0), (0.1,) * 3, 13.64)
    assert found is not None and len(found.split("; ")) == 3


def test_advice_says_how_many() -> None:
    assert "3 of 7" in left_out(3, 7) and "--repeat" in left_out(3, 7)


def test_bursts_are_compared_with_the_faster_of_two_clocks() -> None:
    peaks = iter([100.0, 50.0, 90.0])
    allowed = iter([100.0, 10.0, 90.0])  # The chain in the middle was interrupted.
    found = compare(lambda: 1.0, None, lambda: next(peaks), 1, 2, allowed=lambda: next(allowed))
    assert found.of_clock == (75 / 100, 70 / 90)
    assert len(found.on_core) == 2


def test_without_a_clock_nothing_is_said_of_it() -> None:
    found = compare(lambda: 1.0, lambda: 2.0, lambda: 1.0, 1, 3, thorough=True)
    assert (found.of_clock, found.on_core) == ((), ())


def test_a_thread_that_has_no_core_is_noticed() -> None:
    import time

    found = compare(lambda: time.sleep(0.01) or 1.0, None, lambda: 1.0, 1, 1, allowed=lambda: 1.0)
    (part,) = found.on_core
    assert part < 0.9 and "had a core" in str(disturbance(found.of_peak, on_core=found.on_core))


def test_all_places_ask_the_clock() -> None:
    clocks = itertools.count(1)
    found = compare_in_places(
        lambda: lambda: 1.0, None, lambda: 1.0, 1, 6, lambda: float(next(clocks))
    )
    assert len(found.of_clock) == len(found.on_core) == 6
