"""Comparisons: what they find under noise that hits both kernels, and when they stop."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from tvm_directconv.bench.compare import compare, compare_in_places


class Machine:
    """Runs kernels that take as long as they are said to, times a slowdown that changes.

    Parameters
    ----------
    slowdown : iterator of float
        One for each repeat: for a pair of neighbours, and the burst beside them.
    width : int
        How many neighbours share a slowdown.
    """

    def __init__(self, slowdown: Iterator[float], width: int) -> None:
        self.calls: list[str] = []
        self._factors = (factor for factor in slowdown for _ in range(width))

    def timer(self, name: str, seconds: float):  # type: ignore[no-untyped-def]
        def run() -> float:
            self.calls.append(name)
            return seconds * next(self._factors)

        return run

    def burst(self, gflops: float):  # type: ignore[no-untyped-def]
        def run() -> float:
            self.calls.append("peak")
            return gflops / next(self._factors)

        return run


def quiet() -> Machine:
    return Machine(itertools.repeat(1.0), 1)


@pytest.mark.parametrize("truth", [0.8, 0.99, 1.0, 1.03, 2.0])
def test_ratio_under_a_slowdown_that_both_share(truth: float) -> None:
    rng = np.random.default_rng(0)
    # From one repeat to the next the machine may be four times as slow.
    machine = Machine(iter(lambda: float(rng.uniform(1, 4)), None), 3)
    found = compare(
        machine.timer("new", 1e-3),
        machine.timer("old", truth * 1e-3),
        machine.burst(50),
        flops=40_000_000,
        repeats=12,
        thorough=True,
    )
    assert len(found.seconds) == len(found.over_incumbent) == len(found.of_peak) == 12
    assert found.over_incumbent == pytest.approx([truth] * 12)
    assert found.ratio == pytest.approx(truth)
    # Seconds alone say nothing here.
    assert max(found.seconds) > 2 * min(found.seconds)


def test_outliers_do_not_change_the_ratio() -> None:
    factors = itertools.cycle([1.0, 1, 1, 1, 9, 1, 1, 1, 1, 30, 1, 1])
    machine = Machine(factors, 1)
    found = compare(machine.timer("new", 1), machine.timer("old", 1.1), None, 1, 11, thorough=True)
    assert found.ratio == pytest.approx(1.1)
    assert max(found.over_incumbent) > 5 and min(found.over_incumbent) < 0.2


@pytest.mark.parametrize(
    ("speed", "repeats"), [(0.5, 3), (0.96, 3), (0.98, 5), (1.0, 10), (1.5, 10)]
)
def test_clearly_slower_candidates_are_given_up(speed: float, repeats: int) -> None:
    machine = quiet()
    found = compare(machine.timer("new", 1 / speed), machine.timer("old", 1), None, 1, 10)
    assert len(found.seconds) == len(found.over_incumbent) == repeats
    thorough = compare(
        machine.timer("new", 1 / speed), machine.timer("old", 1), None, 1, 10, thorough=True
    )
    assert len(thorough.seconds) == 10


def test_a_candidate_that_is_sometimes_faster_is_not_given_up() -> None:
    # Two of three repeats are slowed down by something that the incumbent does not meet.
    seconds = itertools.cycle([0.9, 1.2, 1.2])
    found = compare(lambda: next(seconds), lambda: 1.0, None, 1, 9)
    assert len(found.seconds) == 9


def test_who_runs_first_alternates() -> None:
    machine = quiet()
    compare(machine.timer("new", 1), machine.timer("old", 1), machine.burst(1), 1, 4)
    assert machine.calls == ["peak"] + ["new", "old", "peak", "old", "new", "peak"] * 2


def test_without_incumbent() -> None:
    machine = quiet()
    found = compare(machine.timer("new", 2), None, machine.burst(1), 10**9, 3)
    assert machine.calls == ["peak"] + ["new", "peak"] * 3
    assert found.seconds == (2, 2, 2) and found.over_incumbent == ()
    assert found.of_peak == (0.5, 0.5, 0.5)


def test_bursts_before_and_after_count_alike() -> None:
    peaks = iter([1.0, 3.0, 5.0])
    found = compare(lambda: 1.0, None, lambda: next(peaks), 10**9, 2)
    assert found.of_peak == (0.5, 0.25)


def test_every_place_counts_and_both_take_turns() -> None:
    # The first place alone would say that the candidate is slower.
    seconds = iter([0.5, 1.2, 1.1, 1.3])
    calls: list[str] = []

    def place(name: str, seconds: Iterator[float]):  # type: ignore[no-untyped-def]
        calls.append(f"new {name}")
        own = next(seconds)
        return lambda: calls.append(name) or own

    found = compare_in_places(
        lambda: place("a", itertools.repeat(1.0)), lambda: place("b", seconds), None, 1, 10
    )
    assert " ".join(calls).split(" new ") == [
        *("new a", "b a b b a a b", "b", "a b a a b b a", "a", "b a b b a", "b", "a b a a b"),
    ]
    assert len(found.seconds) == len(found.over_incumbent) == 10
    assert found.ratio == pytest.approx(1.15)


def test_fewer_repeats_than_places() -> None:
    timer = lambda: lambda: 1.0  # noqa: E731
    found = compare_in_places(timer, None, lambda: 2.0, 10**9, 3)
    assert found.seconds == (1.0,) * 3 and found.of_peak == (0.5,) * 3
    assert found.over_incumbent == ()


def test_without_burst() -> None:
    machine = quiet()
    found = compare(machine.timer("new", 2), machine.timer("old", 1), None, 1, 2)
    assert machine.calls == ["new", "old", "old", "new"]
    assert found.over_incumbent == (0.5, 0.5) and found.of_peak == ()
