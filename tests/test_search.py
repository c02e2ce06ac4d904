"""Searches: nothing is asked for twice, the same seed asks for the same, and evolution finds."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import astuple
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from tvm_directconv import Blocking, ConvWorkload, device
from tvm_directconv.case import Case
from tvm_directconv.tuning.search import FAILED, STRATEGIES, Evolution, Search, search
from tvm_directconv.tuning.space import Space

# Few points and many, with and without a kernel, an image, and a stride.
WORKLOADS = {
    "3x3": "ic256ih56oc256oh56kh3ph1",
    "1x1": "ic480ih14oc64oh14kh1",
    "5x5": "ic24ih14oc64oh14kh5ph2",
    "image": "ic3ih224oc64oh112kh7sh2ph3",
}


@cache
def space_of(name: str, bad_start: bool = False) -> Space:
    workload, target = ConvWorkload.parse(WORKLOADS[name]), device("haswell")
    start = Blocking(8, 1, 1, math.gcd(workload.in_channels, 8), 1) if bad_start else None
    return Space(Case.of(workload, target), start=start)


@cache
def small_space() -> Space:
    return Space(Case.of(ConvWorkload.parse("ic8ih5oc24oh5kh3ph1"), device("haswell")))


def costs_of(space: Space, seed: int) -> np.ndarray:
    """Return costs that grow smoothly with the distance of each knob from some optimum."""
    rng = np.random.default_rng(seed)
    knobs = np.array(
        [
            [math.log2(1 + (len(k) if isinstance(k, str) else k)) for k in astuple(point)]
            for point in space.points
        ]
    )
    spread = np.ptp(knobs, axis=0)
    knobs = (knobs - knobs.min(axis=0)) / np.where(spread > 0, spread, 1)
    optimum = knobs[rng.integers(len(space))]
    weights = rng.uniform(0, 0.5, len(optimum))
    found: np.ndarray = np.exp((knobs - optimum) ** 2 @ weights)
    return found


def run(searched: Search, costs: np.ndarray, trials: int, noise: float = 0.0) -> list[int]:
    """Search in rounds of 16, as the tuner does, and return the points in order."""
    rng = np.random.default_rng(1)
    points: list[int] = []
    while len(points) < trials:
        asked = searched.ask(min(16, trials - len(points)))
        if not asked:
            break
        points += asked
        searched.tell(asked, [costs[p] * math.exp(rng.normal(0, noise)) for p in asked])
    return points


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_point_once_and_the_first_one_first(strategy: str) -> None:
    space = small_space()
    assert 20 < len(space) < 100
    points = run(search(strategy, space, seed=3), costs_of(space, 0), 1000)
    assert points[0] == 0
    assert sorted(points) == [*range(len(space))]
    if strategy == "exhaustive":
        assert points == sorted(points)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_asking_for_more_than_there_is(strategy: str) -> None:
    space = small_space()
    searched = search(strategy, space, seed=0)
    assert searched.ask(0) == []
    assert len(searched.ask(5)) == 5
    rest = searched.ask(1000)
    assert len(set(rest)) == len(rest) == len(space) - 5
    assert searched.ask(1) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_known_is_not_asked_for(strategy: str) -> None:
    space = small_space()
    searched = search(strategy, space, seed=0)
    known = [0, *range(3, len(space), 2)]
    searched.tell(known, [1.0 + point for point in known])
    rest = run(searched, costs_of(space, 0), 1000)
    assert sorted([*known, *rest]) == [*range(len(space))]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_failures(strategy: str) -> None:
    space = space_of("image")
    costs = costs_of(space, 0)
    fails = np.random.default_rng(0).random(len(space)) < 0.4
    for failing in (np.where(fails, FAILED, costs), np.full(len(space), FAILED)):
        points = run(search(strategy, space, seed=0), failing, 32)
        assert len(set(points)) == len(points) == 32


def test_nothing_is_told() -> None:
    searched = Evolution(small_space(), seed=0)
    searched.tell([], [])
    assert len(searched.ask(4)) == 4


REPRODUCED = """
import json, random, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import test_search
np.random.seed(int(sys.argv[2]))
space = test_search.space_of("5x5")
costs = test_search.costs_of(space, 0)
searches = [test_search.search("evolutionary", space, seed) for seed in (0, 0, 1)]
found = [test_search.run(searched, costs, 32, noise=0.01) for searched in searches]
json.dump([found, "tvm.s_tir.tensor_intrin" in sys.modules], sys.stdout)
"""


def test_evolution_is_reproducible_and_starts_quickly(request: pytest.FixtureRequest) -> None:
    folder = str(request.path.parent)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", REPRODUCED, folder, number],
            env={"PYTHONHASHSEED": number},
            stdout=subprocess.PIPE,
        )
        for number in ("1", "2")
    ]
    one, other = (json.loads(process.communicate()[0]) for process in processes)
    assert one == other
    (first, again, different), slow_import = one
    assert first == again != different
    # TVM's tensor intrinsics take 20 seconds to import.
    assert slow_import is False


def test_random_is_reproducible() -> None:
    space = space_of("5x5")
    first, again, other = (search("random", space, seed).ask(1000) for seed in (0, 0, 1))
    assert first == again != other


def test_the_model_says_where_to_begin() -> None:
    space = space_of("3x3")
    guided, blind = (
        [point for seed in range(4) for point in Evolution(space, seed, guided=word).ask(16)]
        for word in (True, False)
    )
    assert np.mean(space.cycles[guided]) < np.mean(space.cycles[blind])
    # It is not the only one that is asked.
    assert len(set(guided)) > 20


def test_what_is_left_comes_in_the_order_of_its_expected_cost() -> None:
    space = space_of("5x5")
    costs = costs_of(space, 0)
    searched = Evolution(space, seed=0)
    known = space.sample(60, seed=0)
    searched.tell(known, costs[known])
    # As if evolution found nothing new.
    searched._context = SimpleNamespace(generate_measure_candidates=lambda: None)
    left = searched.ask(1000)
    assert len(left) >= len(space) - 60
    assert costs[left[1:11]].mean() < 0.8 * costs[left].mean() < costs[left[-10:]].mean()


@pytest.mark.parametrize("bad_start", [False, True], ids=["model", "bad"])
def test_evolution_finds_the_best(bad_start: bool) -> None:
    found = []
    for seed, name in enumerate(WORKLOADS):
        space = space_of(name, bad_start)
        costs = costs_of(space, seed)
        points = run(Evolution(space, seed, guided=not bad_start), costs, 64, noise=0.01)
        found.append(costs[points].min() / costs.min())
    # One search in thirty or so does not get there; which one, changes with the model.
    assert sum(ratio < 1.02 for ratio in found) >= len(found) - 1
    assert np.median(found) < 1.005


def test_evolution_is_better_than_chance() -> None:
    # Where the space is large and trials are few.
    space = space_of("3x3")
    blind, guided, drawn = [], [], []
    for seed in range(6):
        costs = costs_of(space, 10 + seed)
        for searched, results in (
            (Evolution(space, seed, guided=False), blind),
            (search("evolutionary", space, seed), guided),
            (search("random", space, seed), drawn),
        ):
            points = run(searched, costs, 48, noise=0.01)
            results.append(costs[points].min() / costs.min())
    assert np.mean(blind) - 1 < 0.5 * (np.mean(drawn) - 1)
    # These costs have nothing to do with the model, which then misleads one search in ten or so.
    assert np.median(guided) - 1 < 0.5 * (np.median(drawn) - 1)


def test_an_interrupt_waits_for_the_cost_model(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Evolution(small_space(), seed=0)
    finished = []

    def learn(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # Python looks for signals here.
        finished.append(True)

    points = search.ask(2)
    monkeypatch.setattr(search._glue, "learn", learn)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            search.tell(points, [1.0, 2.0])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert finished
