"""The tuner: asks a search for points, has them built and measured, and logs every one of them."""

import itertools
import math
import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import files, logs, versions
from ..bench.compare import Comparison, Failure
from ..bench.disturbance import disturbance
from ..blocking import Blocking
from ..build import build
from ..device import Device
from ..errors import BlockingError, TuningError
from ..logs import Record
from ..toolchain import find_toolchain
from ..workload import ConvWorkload
from .runners import Runner
from .search import FAILED, Search, check_strategy, search
from .space import Space
from .worker import Worker

_ROUND = 16  # Points that are asked for, built and measured before the search learns.
_REPEATS = 10
_CONFIRMING_REPEATS = 24
_CONFIRMED = 3  # The best so many are measured once more, against the model's choice.
_BUILD_SECONDS = 60.0
_NOTHING_GAINED = 1.005  # Less than this in a round is noise.
# What went wrong for reasons of its own, not the candidate's, is worth another try.
_PASSING = ("rpc_lost", "timeout")
_ATTEMPTS = 3
_LEAST_LEFT = 0.02  # of a layer's time: padding lets some pass the peak, and still gain.
_UNKNOWN = "unknown"  # Boards over RPC tell their processor when they first measure.


@dataclass(frozen=True)
class Budget:
    """How long to search.

    Parameters
    ----------
    trials : int
        For each layer on average; layers that can gain more get more.
    seconds : float, optional
        For everything; no limit if not given. What has begun is finished.
    patience : int
        A layer is finished when so many trials have gained nothing.
    """

    trials: int = 64
    seconds: float | None = None
    patience: int = 64


@dataclass
class Layer:
    """One convolution that is being tuned.

    Attributes
    ----------
    workload : ConvWorkload
        What is convolved.
    space : Space
        What is searched.
    records : dict of int to Record
        What is known of the space's points, from the log and from trials.
    resumed : int
        How many of them were in the log already.
    trials : int
        Points tried since.
    failures : int
        Those of `trials` that came to nothing.
    best : int or None
        The fastest point so far.
    history : list of float
        Speed of the best over the model's choice, after each trial.
    chosen : Record or None
        What the tuner decided for in the end.
    problem : str or None
        Why the layer could not be tuned.
    """

    workload: ConvWorkload
    space: Space
    records: dict[int, Record] = field(default_factory=dict)
    resumed: int = 0
    trials: int = 0
    failures: int = 0
    best: int | None = None
    history: list[float] = field(default_factory=list)
    chosen: Record | None = None
    problem: str | None = None
    # What the tuner needs to go on.
    search: Search | None = None
    libraries: dict[int, Path] = field(default_factory=dict)
    since_gain: int = 0
    exhausted: bool = False

    @property
    def name(self) -> str:
        """What people call it."""
        return self.workload.name or str(self.workload)

    @property
    def record(self) -> Record | None:
        """The best that is known: what was chosen, before that the fastest."""
        return self.chosen or (None if self.best is None else self.records[self.best])

    @property
    def gain(self) -> float:
        """Speed of the best over that of the model's choice; 1 before anything is known."""
        return (self.record.over_model or 1.0) if self.record else 1.0

    @property
    def potential(self) -> float:
        """Seconds of a whole network that further trials might save; shrinks in vain."""
        if self.search is None or self.best is None:
            return math.inf
        record = self.records[self.best]
        assert record.seconds_p50
        # Where the peak is not known, half of it: as good as any other for all layers.
        left = max(_LEAST_LEFT, 1 - (record.of_peak or 0.5))
        return self.workload.count * record.seconds_p50 * left / (1 + self.since_gain / _ROUND)

    def add(self, point: int, record: Record) -> None:
        """Take in what is known of a point; the latest counts."""
        self.records[point] = record
        good = [number for number, known in self.records.items() if known.status == "ok"]
        self.best = min(good, key=lambda number: _cost(self.records[number]), default=None)


class Tuner:
    """Tunes convolutions for one device.

    Parameters
    ----------
    workloads : iterable of ConvWorkload
        What is tuned; equal ones once.
    device : Device
        For what.
    runner : Runner
        Where candidates are measured. The caller closes it.
    threads : int
        By how many threads candidates compute.
    budget : Budget
        How long.
    strategy : str
        One of :data:`tvm_directconv.tuning.search.STRATEGIES`.
    seed : int
        Of the search.
    folder : str or path, optional
        Of the log; see :func:`tvm_directconv.logs.folders`.
    on_trial : callable, optional
        Called with the tuner after each trial and each decision.

    Attributes
    ----------
    layers : list of Layer
        In the order of `workloads`.
    log : Path
        Where records go.

    Raises
    ------
    TuningError
        If there is nothing to tune, or the strategy is unknown.
    LogError
        If the log cannot be written.
    ToolchainError
        If there is no linker for the device.
    """

    def __init__(
        self,
        workloads: Iterable[ConvWorkload],
        device: Device,
        runner: Runner,
        *,
        threads: int = 1,
        budget: Budget | None = None,
        strategy: str = "evolutionary",
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
        on_trial: "Callable[[Tuner], None] | None" = None,
    ) -> None:
        versions.check()
        check_strategy(strategy)
        unique: dict[str, ConvWorkload] = {}
        for workload in workloads:
            unique.setdefault(str(workload), workload)
        if not unique:
            raise TuningError("there is nothing to tune: expected at least one convolution")
        logs.check_appendable(device.name, folder)
        if runner.suffix == ".so":
            find_toolchain(device.triple)
        self.log = logs.log_path(device.name, folder)
        self.device, self.threads, self.seed = device, threads, seed
        self.budget = budget or Budget()
        self.strategy = strategy
        self.layers = [Layer(w, Space(w, device, threads)) for w in unique.values()]
        self._runner, self._folder = runner, folder
        self._report = on_trial or (lambda _: None)
        self._begin = time.monotonic()
        self._resume()

    @property
    def seconds(self) -> float:
        """Seconds since the tuner was made."""
        return time.monotonic() - self._begin

    @property
    def trials_left(self) -> int:
        """Trials that the budget has left. What was in the log counts as done."""
        done = sum(layer.trials + layer.resumed for layer in self.layers)
        return max(0, self.budget.trials * len(self.layers) - done)

    @property
    def seconds_left(self) -> float | None:
        """About how long it will still take; None before that can be known."""
        trials = sum(layer.trials for layer in self.layers)
        if not trials:
            return None
        untried = sum(len(layer.space) - len(layer.records) for layer in self.layers)
        left = min(self.trials_left, untried) * self.seconds / trials
        if self.budget.seconds is not None:
            left = min(left, max(0.0, self.budget.seconds - self.seconds))
        return left

    def run(self) -> list[Layer]:
        """Tune all layers.

        Returns
        -------
        list of Layer
            Each with the record that was chosen, or with its problem.

        Raises
        ------
        TuningError
            If nothing at all could be measured.
        """
        with (
            files.scratch() as scratch,
            _Builders(self.device, self.threads, scratch, self._runner.suffix) as builders,
        ):
            while layer := self._next():
                self._round(layer, builders)
            for layer in self.layers:
                self._decide(layer, builders)
        problems = [f"{layer.name}: {layer.problem}" for layer in self.layers if layer.problem]
        if len(problems) == len(self.layers):
            raise TuningError("nothing could be measured: " + "; ".join(problems))
        return self.layers

    def _resume(self) -> None:
        """Take over what the log knows from this machine."""
        records = logs.read(self.log)
        for layer in self.layers:
            for record in records:
                point = layer.space.number_of(record.blocking)
                if point is not None and self._is_known(record, layer):
                    if record.chosen or point not in layer.records:
                        # What was found after a decision has not been decided about.
                        layer.chosen = record if record.chosen else None
                    layer.add(point, record)
            if 0 not in layer.records or layer.records[0].status != "ok":
                # The others were compared with what was the model's choice at that time.
                layer.records, layer.best, layer.chosen = {}, None, None
            layer.resumed = len(layer.records)

    def _is_known(self, record: Record, layer: Layer) -> bool:
        """Return whether a record tells what a trial would tell."""
        return (
            str(record.workload) == str(layer.workload)
            and record.threads == self.threads
            and record.input_layout == layer.space.input_layout.name
            and record.measured_by == self._runner.measured_by
            and self._cpu() in (record.cpu, _UNKNOWN)
            and record.status not in _PASSING
            and (record.status != "ok" or None not in (record.over_model, record.seconds_p50))
        )

    def _cpu(self) -> str | None:
        if self._runner.measured_by == logs.MODELLED:
            return None
        return self._runner.cpu or _UNKNOWN

    def _next(self) -> Layer | None:
        """Return the layer that gets the next trials: each one first, then who may gain most."""
        if self._late():
            return None
        waiting = [layer for layer in self.layers if not layer.problem and not layer.exhausted]
        if not self.trials_left:
            # Even if the log has more of the others than they need.
            waiting = [layer for layer in waiting if not layer.records]
        return max(waiting, key=lambda layer: layer.potential, default=None)

    def _late(self) -> bool:
        return self.budget.seconds is not None and self.seconds > self.budget.seconds

    def _round(self, layer: Layer, builders: "_Builders") -> None:
        """Try the next points of a layer."""
        if layer.search is None:
            layer.search = search(self.strategy, layer.space, self.seed)
            self._tell(layer, layer.records)
        # Small budgets are for all layers, too.
        count = min(_ROUND, self.budget.trials)
        points = layer.search.ask(min(count, self.trials_left) if layer.records else count)
        if not points:
            layer.exhausted = True
            return
        layer.chosen = None
        self._ready(layer, builders)
        if layer.best is None:
            # Everything is compared with the model's choice, so nothing can be done without.
            self._first(layer, builders)
            if layer.problem:
                return
        before = layer.gain
        self._try(layer, [point for point in points if point not in layer.records], builders)
        self._tell(layer, points)
        gained = layer.gain / before > _NOTHING_GAINED
        layer.since_gain = 0 if gained else layer.since_gain + len(points)
        layer.exhausted = layer.since_gain >= self.budget.patience

    def _ready(self, layer: Layer, builders: "_Builders") -> None:
        """Have the best built. What was the best in the log may not compile or run any more."""
        while layer.best is not None:
            has_run = layer.best in layer.libraries
            ((point, failure),) = builders.build(layer, [layer.best])
            if not failure and not has_run:
                outcome = self._runner.measure(layer.libraries[point], None, 1)
                if isinstance(outcome, Failure) and outcome.kind not in _PASSING:
                    failure = outcome
            if failure is None:
                return
            record = self._failed(layer, point, failure)
            logs.append(record, self._folder)
            layer.add(point, record)

    def _first(self, layer: Layer, builders: "_Builders") -> None:
        for _ in range(_ATTEMPTS):
            self._try(layer, [0], builders)
            record = layer.records.get(0)
            if record is None or record.status == "ok":
                return
            problem = f"{record.status}: {record.message}"
            if record.status not in _PASSING:
                break
        layer.problem = problem
        self._report(self)

    def _tell(self, layer: Layer, points: Iterable[int]) -> None:
        known = [point for point in points if point in layer.records]
        if known:
            assert layer.search
            layer.search.tell(known, [_cost(layer.records[point]) for point in known])

    def _try(self, layer: Layer, points: list[int], builders: "_Builders") -> None:
        """Build points, measure them against the best, and log what came of each."""
        for point, failure in builders.build(layer, points):
            if failure:
                self._log(layer, point, self._failed(layer, point, failure))
        built = [point for point in points if point in layer.libraries]
        for point, record in self._measured(built, lambda point: self._measure(layer, point)):
            self._log(layer, point, record)

    def _measured(
        self, points: Iterable[int], measure: Callable[[int], Record | None]
    ) -> Iterator[tuple[int, Record]]:
        """Measure points on as much hardware as there is; generate them as they are done."""
        pool = ThreadPoolExecutor(self._runner.slots)
        waiting = iter(points)
        running: dict[Future[Record | None], int] = {}
        try:
            while True:
                # None begins before the caller has seen those that are done: one of them may be
                # what it is to be compared with.
                for point in itertools.islice(waiting, self._runner.slots - len(running)):
                    running[pool.submit(measure, point)] = point
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    point = running.pop(future)
                    if record := future.result():
                        yield point, record
        finally:
            # After an interrupt, what has not begun need not.
            pool.shutdown(wait=False, cancel_futures=True)

    def _measure(self, layer: Layer, point: int) -> Record | None:
        """Measure a point against the best; None if there is no time left."""
        if self._late():
            return None
        rival = layer.best
        if rival is None:
            outcome = self._runner.measure(layer.libraries[point], None, _REPEATS)
            over_rival = 1.0
        else:
            outcome = self._compare(layer, point, rival)
            over_rival = layer.records[rival].over_model or 1.0
        if isinstance(outcome, Failure):
            return self._failed(layer, point, outcome)
        ratio = outcome.ratio if outcome.over_incumbent else 1.0
        return self._ok(layer, point, outcome, ratio * over_rival)

    def _compare(self, layer: Layer, point: int, rival: int) -> Comparison | Failure:
        libraries = layer.libraries[point], layer.libraries[rival]
        outcome = self._runner.measure(*libraries, _REPEATS)
        if isinstance(outcome, Failure) or outcome.ratio <= 1:
            return outcome
        # Others will be compared with it. Of many, some are faster by luck; seldom twice.
        again = self._runner.measure(*libraries, _REPEATS, thorough=True)
        return again if isinstance(again, Failure) or again.ratio < outcome.ratio else outcome

    def _confirm(self, layer: Layer, point: int) -> Record:
        """Measure a point against the model's choice, or that alone, often enough to be sure."""
        against = layer.libraries[0] if point else None
        outcome = self._runner.measure(
            layer.libraries[point], against, _CONFIRMING_REPEATS, thorough=True
        )
        if isinstance(outcome, Failure):
            return self._failed(layer, point, outcome)
        if not point:
            return replace(self._ok(layer, point, outcome, 1.0), chosen=True)
        # Of two that are equal, one wins four fifths of 24 repeats once in a thousand times.
        surely_faster = float(np.percentile(outcome.over_incumbent, 20)) > 1
        return replace(self._ok(layer, point, outcome, outcome.ratio), chosen=surely_faster)

    def _decide(self, layer: Layer, builders: "_Builders") -> None:
        """Choose between the best points and the model's choice, and log that."""
        if layer.chosen or layer.problem:
            return
        if layer.best is None:
            layer.problem = "there was no time left for it"
            return
        ranked = sorted(layer.records, key=lambda point: _cost(layer.records[point]))
        rivals = [point for point in ranked if _cost(layer.records[point]) < 1][:_CONFIRMED]
        failed = dict(builders.build(layer, [0, *rivals]))
        first = self._failed(layer, 0, failed[0]) if failed[0] else self._confirm(layer, 0)
        if first.status != "ok":
            layer.problem = f"{first.status}: {first.message}"
            return
        layer.chosen = first
        for _, record in self._measured(
            [point for point in rivals if not failed[point]],
            lambda point: self._confirm(layer, point),
        ):
            if record.chosen and _cost(record) < _cost(layer.chosen):
                layer.chosen = record
            logs.append(replace(record, chosen=False), self._folder)
        logs.append(layer.chosen, self._folder)
        self._report(self)

    def _log(self, layer: Layer, point: int, record: Record) -> None:
        logs.append(record, self._folder)
        layer.add(point, record)
        layer.trials += 1
        layer.failures += record.status != "ok"
        layer.history.append(layer.gain)
        self._report(self)

    def _ok(self, layer: Layer, point: int, outcome: Comparison, over_model: float) -> Record:
        p20, p50, p80 = (float(np.percentile(outcome.seconds, p)) for p in (20, 50, 80))
        of_peak = float(np.median(outcome.of_peak)) if outcome.of_peak else None
        return self._record(
            layer,
            point,
            status="ok",
            seconds_p20=p20,
            seconds_p50=p50,
            seconds_p80=p80,
            of_peak=of_peak,
            over_model=over_model,
            repeats=len(outcome.seconds),
            disturbed=disturbance(
                # Where no burst ran, the times themselves have to be steady.
                outcome.of_peak or tuple(1 / seconds for seconds in outcome.seconds),
                outcome.of_clock,
                of_peak and of_peak * layer.workload.useful_flops / layer.workload.flops,
                outcome.on_core,
            ),
        )

    def _failed(self, layer: Layer, point: int, failure: Failure) -> Record:
        return self._record(layer, point, status=failure.kind, message=failure.message)

    def _record(self, layer: Layer, point: int, **measured: Any) -> Record:
        runner = self._runner
        where = {
            "cpu": self._cpu(),
            "cpu_name": runner.cpu_name,
            "cpu_device": runner.cpu_device or self.device.name,
        }
        return Record(
            workload=layer.workload,
            device=self.device.name,
            threads=self.threads,
            input_layout=layer.space.input_layout.name,
            blocking=layer.space.points[point],
            measured_by=runner.measured_by,
            seed=self.seed,
            **{**logs.here(), **where, **measured},
        )


def _cost(record: Record) -> float:
    """Return the seconds of a record in units of the model's choice."""
    return 1 / record.over_model if record.over_model else FAILED


class _Builders:
    """Compiles points, as many at once as there are processors."""

    def __init__(self, device: Device, threads: int, scratch: Path, suffix: str) -> None:
        self._device, self._threads, self._scratch, self._suffix = device, threads, scratch, suffix
        count = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(count)
        self._all = [Worker() for _ in range(count)]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._all:
            worker.start()
            self._idle.put(worker)

    def __enter__(self) -> "_Builders":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in self._all:
            worker.close()

    def build(self, layer: Layer, points: Iterable[int]) -> Iterator[tuple[int, Failure | None]]:
        """Have points of a layer built that are not yet; generate what came of each."""
        futures: dict[Future[Failure | None], int] = {}
        for point in dict.fromkeys(points):
            if point in layer.libraries:
                yield point, None
            else:
                futures[self._pool.submit(self._build, layer, point)] = point
        for future in as_completed(futures):
            yield futures[future], future.result()

    def _build(self, layer: Layer, point: int) -> Failure | None:
        path = self._scratch / f"{layer.workload}-{point}{self._suffix}"
        worker = self._idle.get()
        try:
            failure = worker.call(
                _BUILD_SECONDS,
                _export,
                layer.workload,
                self._device,
                self._threads,
                layer.space.points[point],
                layer.space.input_layout.name,
                path,
            )
        finally:
            self._idle.put(worker)
        if failure is None:
            layer.libraries[point] = path
        return failure


def _export(
    workload: ConvWorkload,
    device: Device,
    threads: int,
    blocking: Blocking,
    input_layout: str,
    path: Path,
) -> Failure | None:
    try:
        build(workload, device, threads, blocking, input_layout).export(path)
    except BlockingError as error:
        return Failure("rejected", str(error))
    except Exception as error:
        return Failure("compile_error", f"{type(error).__name__}: {error}")
    return None
