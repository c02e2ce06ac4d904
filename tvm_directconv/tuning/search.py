"""Which points of a space are measured next: MetaSchedule's evolution, chance, or all in order."""

import functools
import logging
import signal
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import FrameType
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np

from ..errors import TuningError
from .space import Space

_P = ParamSpec("_P")
_T = TypeVar("_T")

FAILED = 1e10
"""The cost of a point that could not be measured, as MetaSchedule has it."""


def _interrupted_later(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Put off Ctrl-C to the end of a function.

    TVM is C++ that calls back into Python, where an interrupt would become a RuntimeError.
    """

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            return function(*args, **kwargs)
        received: list[tuple[int, FrameType | None]] = []
        signal.signal(signal.SIGINT, lambda *event: received.append(event))
        try:
            return function(*args, **kwargs)
        finally:
            signal.signal(signal.SIGINT, before)
            if received:
                before(*received[0])

    return wrapped


class Search(Protocol):
    """Asks for points and is told their costs."""

    def ask(self, count: int) -> list[int]:
        """Return up to `count` points that have not been asked for, fewer at the end."""

    def tell(self, points: Sequence[int], costs: Sequence[float]) -> None:
        """Learn what points cost, in any unit that stays the same; :data:`FAILED` if they fail."""


class InOrder:
    """All points, one after the other: as the model ranks them, or shuffled.

    Parameters
    ----------
    space : Space
        What is searched.
    seed : int, optional
        Shuffles all but the first point.
    """

    def __init__(self, space: Space, seed: int | None = None) -> None:
        rest = np.arange(1, len(space))
        if seed is not None:
            rest = np.random.default_rng(seed).permutation(rest)
        self._left = [0, *map(int, rest)]

    def ask(self, count: int) -> list[int]:
        """Return the next points."""
        asked, self._left = self._left[:count], self._left[count:]
        return asked

    def tell(self, points: Sequence[int], costs: Sequence[float]) -> None:
        """Forget what does not matter here, but do not ask for these points again."""
        told = set(points)
        self._left = [point for point in self._left if point not in told]


class Evolution:
    """MetaSchedule's evolutionary search with its XGBoost cost model.

    For MetaSchedule, a design is one decision: the number of a point of our space, drawn with the
    probability that the analytical model gives it. Our mutator moves it to a neighbour, which
    differs in one knob, and our features, the knobs and what the model counts, are what XGBoost
    learns from. A point is scheduled only when it is built, so a generation of a hundred of them
    takes milliseconds.

    Parameters
    ----------
    space : Space
        What is searched.
    seed : int
        The same seed and the same costs lead to the same points.
    guided : bool
        Whether the analytical model says where to begin; chance if not.
    """

    # Small generations: spaces have some hundred points, and trials are few.
    _POPULATION = 96
    _GENERATIONS = 3
    _FROM_MEASURED = 0.4  # Most of what is left to gain lies around what was good.
    _BY_CHANCE = 0.1

    def __init__(self, space: Space, seed: int, guided: bool = True) -> None:
        from tvm.s_tir.meta_schedule.database import MemoryDatabase
        from tvm.s_tir.meta_schedule.search_strategy import EvolutionarySearch

        from . import _metaschedule as glue

        self._glue = glue
        self._space = space
        self._rng = np.random.default_rng(seed)
        self._known: set[int] = set()
        logging.getLogger("tvm.s_tir.meta_schedule").setLevel(logging.ERROR)
        weights = space.likelihood() if guided else np.full(len(space), 1 / len(space))
        # XGBoost knows nothing yet; it would draw scores from NumPy's global generator.
        drawn = self._rng.choice(len(space), len(space), replace=False, p=weights)
        self._queue = [int(point) for point in drawn]
        self._module = glue.module(space)
        self._model, self._rows = glue.cost_model(space), space.features()
        self._database = MemoryDatabase()
        self._workload = self._database.commit_workload(self._module)
        self._target = glue.target(space)
        self._context = glue.context(
            self._module,
            self._target,
            glue.space_generator(space, weights, self._rng),
            EvolutionarySearch(
                population_size=self._POPULATION,
                init_measured_ratio=self._FROM_MEASURED,
                init_min_unmeasured=self._POPULATION // 4,
                genetic_num_iters=self._GENERATIONS,
                eps_greedy=self._BY_CHANCE,
            ),
            seed,
        )
        self._context.pre_tuning(
            max_trials=2**30,  # Whoever asks knows when to stop.
            num_trials_per_iter=16,
            database=self._database,
            cost_model=self._model,
        )

    @_interrupted_later
    def ask(self, count: int) -> list[int]:
        """Return the first point, then such as the model likes, later what the evolution picks."""
        asked: list[int] = []
        if count and 0 not in self._known:
            self._known.add(0)
            asked.append(0)
        while len(asked) < count and len(self._known) < len(self._space):
            if not self._queue:
                self._queue = self._generation()
            point = self._queue.pop(0)
            if point not in self._known:
                self._known.add(point)
                asked.append(point)
        return asked

    @_interrupted_later
    def tell(self, points: Sequence[int], costs: Sequence[float]) -> None:
        """Train the cost model and add to what the next generation descends from."""
        if not points:
            return
        self._known.update(points)
        # What was asked for before is out of date.
        self._queue = []
        self._glue.learn(
            self._context,
            self._model,
            self._database,
            self._workload,
            self._target,
            [self._glue.candidate(self._module, self._space, point) for point in points],
            list(costs),
        )

    def _generation(self) -> list[int]:
        candidates: Any = self._context.generate_measure_candidates()
        picked = [self._glue.point_of(c.sch.trace) for c in candidates or ()]
        if new := [point for point in picked if point not in self._known]:
            return new
        # The evolution circles around what is known: then what XGBoost expects most of.
        left = [point for point in range(len(self._space)) if point not in self._known]
        expected = self._glue.expected(self._model, self._rows[left])
        return [left[number] for number in np.argsort(-expected, kind="stable")]


STRATEGIES = ("evolutionary", "random", "exhaustive")


def check_strategy(strategy: str) -> None:
    """Raise if there is no such strategy, or something it needs is not installed.

    Raises
    ------
    TuningError
        With what to do.
    """
    if strategy not in STRATEGIES:
        raise TuningError(f"strategy is {strategy!r}: expected one of {', '.join(STRATEGIES)}")
    if strategy == "evolutionary":
        for package in ("xgboost", "cloudpickle", "psutil"):
            if find_spec(package) is None:
                raise TuningError(
                    f"the evolutionary search needs {package}, which is not installed: "
                    "pip install 'tvm-directconv[tune]', or take another strategy"
                )


def search(strategy: str, space: Space, seed: int) -> Search:
    """Return a search by its name, one of :data:`STRATEGIES`."""
    if strategy == "evolutionary":
        return Evolution(space, seed)
    return InOrder(space, seed if strategy == "random" else None)
