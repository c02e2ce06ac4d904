"""The tuner: asks a search for points, has them built and measured, and logs every one of them."""

import itertools
import math
import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import files, versions
from ..bench.compare import Comparison, Failure
from ..bench.disturbance import disturbance
from ..blocking import Blocking
from ..case import Case, check_threads
from ..convolution import build
from ..errors import BlockingError, LogError, TuningError, path_of, said_by
from ..hardware.device import Device
from ..hardware.lookup import device as find_device
from ..kinds import is_positive
from ..logs import log_file
from ..logs.folders import log_path
from ..logs.record import MODELLED, Record, here
from ..specs import workloads
from ..toolchain import find_toolchain
from ..workload import ConvWorkload
from .layer import ROUND, Layer, cost
from .outcome import Outcome
from .runners import Runner
from .search import check_strategy, search
from .space import Space
from .worker import Worker

_REPEATS = 10
_CONFIRMING_REPEATS = 24
_CONFIRMATION = _CONFIRMING_REPEATS / _REPEATS  # How much longer than a trial it takes.
_CONFIRMED = 3  # The best so many are measured once more, against the model's choice.
_BUILD_SECONDS = 60.0
_NOTHING_GAINED = 1.005  # Less than this in a round is noise.
# What went wrong for reasons of its own, not the candidate's, is worth another try.
_PASSING = ("rpc_lost", "timeout")
_ATTEMPTS = 3
_NO_TIME = Failure("timeout", "the time is over")  # For a candidate that nobody has judged.
_UNKNOWN = "unknown"  # Boards over RPC tell their processor when they first measure.


@dataclass(frozen=True)
class Budget:
    """How long to search.

    Parameters
    ----------
    trials : int
        For each layer on average; layers that can gain more get more.
    seconds : float, optional
        For everything; no limit if not given. Some of it is kept for the decisions in the end.
    patience : int
        A layer is finished when so many trials have gained nothing.
    """

    trials: int = 64
    seconds: float | None = None
    patience: int = 64


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
        Of the log; see :func:`tvm_directconv.logs.folders.folders`.
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
        self._begin = time.monotonic()
        versions.check()
        check_strategy(strategy)
        workloads = list(workloads)
        unique: dict[str, ConvWorkload] = {}
        for workload in workloads:
            unique.setdefault(str(workload), workload)
        if not unique:
            raise TuningError("there is nothing to tune: expected at least one convolution")
        log_file.check_appendable(device.name, folder)
        if runner.suffix == ".so":
            find_toolchain(device.triple)
        self.log = log_path(device.name, folder)
        self.device, self.threads, self.seed = device, threads, seed
        self.budget = budget or Budget()
        self.strategy = strategy
        self.layers = [Layer(Space(Case.of(w, device, threads))) for w in unique.values()]
        self._runner, self._folder = runner, folder
        self._report = on_trial or (lambda _: None)
        self._resume()

    @property
    def seconds(self) -> float:
        """Seconds since the tuner began to be made."""
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
            Each with the record that was chosen, or with its problem; with neither if there was
            no time left for it.

        Raises
        ------
        TuningError
            If nothing at all could be measured, for other reasons than the time.
        """
        with (
            files.scratch() as scratch,
            _Builders(
                self.device, self.threads, scratch, self._runner.suffix, self._left
            ) as builders,
        ):
            while layer := self._next():
                self._round(layer, builders)
            for layer in self.layers:
                self._decide(layer, builders)
        for layer in self.layers:
            layer.over = True
        problems = [f"{layer.name}: {layer.problem}" for layer in self.layers if layer.problem]
        if len(problems) == len(self.layers):
            raise TuningError("nothing could be measured: " + "; ".join(problems))
        return self.layers

    def _resume(self) -> None:
        """Take over what the log knows from this machine."""
        records = log_file.read(self.log)
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
            and record.input_layout == layer.space.case.input_layout.name
            and record.measured_by == self._runner.measured_by
            and self._cpu() in (record.cpu, _UNKNOWN)
            and record.status not in _PASSING
            and (record.status != "ok" or None not in (record.over_model, record.seconds_p50))
        )

    def _cpu(self) -> str | None:
        if self._runner.measured_by == MODELLED:
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

    def _left(self) -> float:
        """Return how many seconds there are left."""
        return math.inf if self.budget.seconds is None else self.budget.seconds - self.seconds

    def _late(self) -> bool:
        """Return whether what is left after another trial has to be kept for decisions."""
        if self.budget.seconds is None:
            return False
        undecided = [layer for layer in self.layers if layer.best is not None and not layer.chosen]
        trial = max((layer.trial_seconds for layer in self.layers), default=0.0)
        return self._left() <= trial + sum(map(_decision_seconds, undecided))

    def _round(self, layer: Layer, builders: "_Builders") -> None:
        """Try the next points of a layer."""
        if layer.search is None:
            layer.search = search(self.strategy, layer.space, self.seed)
            self._tell(layer, layer.records)
        # Small budgets are for all layers, too.
        count = min(ROUND, self.budget.trials)
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
            if failure is _NO_TIME:
                return
            if not failure and not has_run:
                outcome = self._runner.measure(layer.libraries[point], None, 1)
                if isinstance(outcome, Failure) and outcome.kind not in _PASSING:
                    failure = outcome
            if failure is None:
                return
            record = self._failed(layer, point, failure)
            log_file.append(record, self._folder)
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
            layer.search.tell(known, [cost(layer.records[point]) for point in known])

    def _try(self, layer: Layer, points: list[int], builders: "_Builders") -> None:
        """Build points, measure them against the best, and log what came of each."""
        for point, failure in builders.build(layer, points):
            if failure and failure is not _NO_TIME:
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
        begin = time.monotonic()
        if rival is None:
            outcome = self._runner.measure(layer.libraries[point], None, _REPEATS)
            over_rival = 1.0
        else:
            outcome = self._compare(layer, point, rival)
            over_rival = layer.records[rival].over_model or 1.0
        layer.trial_seconds = max(layer.trial_seconds, time.monotonic() - begin)
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
        if layer.chosen or layer.problem or layer.best is None:
            return
        if self._left() < _CONFIRMATION * layer.trial_seconds:
            return  # Another time: the trials are in the log.
        ranked = sorted(layer.records, key=lambda point: cost(layer.records[point]))
        rivals = [point for point in ranked if cost(layer.records[point]) < 1][:_CONFIRMED]
        failed = dict(builders.build(layer, [0, *rivals]))
        if failed[0] is _NO_TIME:
            return
        first = self._failed(layer, 0, failed[0]) if failed[0] else self._confirm(layer, 0)
        if first.status != "ok":
            layer.problem = f"{first.status}: {first.message}"
            return
        layer.chosen = first
        for _, record in self._measured(
            [point for point in rivals if not failed[point]],
            lambda point: self._confirm(layer, point) if self._left() > 0 else None,
        ):
            if record.chosen and cost(record) < cost(layer.chosen):
                layer.chosen = record
            log_file.append(replace(record, chosen=False), self._folder)
        log_file.append(layer.chosen, self._folder)
        self._report(self)

    def _log(self, layer: Layer, point: int, record: Record) -> None:
        log_file.append(record, self._folder)
        layer.add(point, record)
        layer.trials += 1
        layer.failures += record.status != "ok"
        layer.history.append(layer.gain)
        layer.tried.append(record.over_model)
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
            input_layout=layer.space.case.input_layout.name,
            blocking=layer.space.points[point],
            measured_by=runner.measured_by,
            seed=self.seed,
            **{**here(), **where, **measured},
        )


def _decision_seconds(layer: Layer) -> float:
    """Return about how long it will take to confirm the best of a layer."""
    better = sum(cost(record) < 1 for record in layer.records.values())
    return (1 + min(_CONFIRMED, better)) * _CONFIRMATION * layer.trial_seconds


class _Builders:
    """Compiles points, as many at once as there are processors."""

    def __init__(
        self,
        device: Device,
        threads: int,
        scratch: Path,
        suffix: str,
        seconds_left: Callable[[], float],
    ) -> None:
        self._seconds_left = seconds_left
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
            left = self._seconds_left()
            if left <= 0:
                return _NO_TIME
            failure = worker.call(
                min(_BUILD_SECONDS, left),
                _export,
                layer.space.case,
                layer.space.points[point],
                path,
            )
        finally:
            self._idle.put(worker)
        if failure and failure.kind == "timeout" and left < _BUILD_SECONDS:
            return _NO_TIME
        if failure is None:
            layer.libraries[point] = path
        return failure


def tune(
    spec: str | Path | ConvWorkload | Sequence[str | Path | ConvWorkload],
    device: Device | str = "native",
    *,
    threads: int = 1,
    trials: int = 64,
    seconds: float | None = None,
    patience: int = 64,
    strategy: str = "evolutionary",
    seed: int = 0,
    logs: str | os.PathLike[str] | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    runner: Runner | None = None,
    on_trial: "Callable[[Tuner], None] | None" = None,
) -> Outcome:
    """Search for faster block sizes, and log every measurement.

    What is found is used by every later :func:`tvm_directconv.build` and ``compile_network``.

    Parameters
    ----------
    spec : str, Path, ConvWorkload, or list or tuple of these
        What is convolved; see :func:`tvm_directconv.workloads`. A model stands for all its
        convolutions.
    device : Device or str
        For what.
    threads : int
        By how many threads it is computed.
    trials : int
        Block sizes to try for a layer, on average: layers that can gain more get more. What is in
        the log already counts.
    seconds : float, optional
        How long it may take in all; no limit if not given.
    patience : int
        A layer is finished when so many trials have gained nothing.
    strategy : str
        ``evolutionary``, ``random`` or ``exhaustive``.
    seed : int
        Of the search.
    logs : str or path, optional
        Folder of the log; if not given that of :func:`tvm_directconv.use_logs`, the environment
        variable ``TVM_DIRECTCONV_LOGS``, or the user's own.
    input_shapes : mapping, optional
        Sizes of inputs that models leave open, by name.
    runner : Runner, optional
        Where candidates are measured, which the caller closes; this machine if not given.
    on_trial : callable, optional
        Called with the :class:`Tuner` after each trial and each decision.

    Returns
    -------
    Outcome
        What was chosen for each layer, and what it has gained; as text, a summary.

    Raises
    ------
    TuningError
        If there is nothing to tune, the strategy or a limit is malformed, or nothing could be
        measured.
    BlockingError, ArgumentError
        If there cannot be so many threads, or this machine has fewer cores.
    WorkloadError, ModelError, DeviceError
        If there is no such convolution, model or device, or its code does not run here.
    LogError
        If the log cannot be written.
    """
    from .runners.local import LocalRunner

    check_threads(threads)
    if logs is not None:
        path_of(logs, "the folder of logs", LogError)
    for name, value in (("trials", trials), ("patience", patience)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise TuningError(f"{name} is {value!r}: expected a whole number from 1")
    if seconds is not None and not is_positive(seconds):
        raise TuningError(f"seconds is {seconds!r}: expected a number above 0")
    begin = time.monotonic()
    target = find_device(device)
    asked = workloads(spec, input_shapes)
    own = LocalRunner.checked(target, threads) if runner is None else None
    where = own or runner
    assert where
    try:
        left = None if seconds is None else seconds - (time.monotonic() - begin)
        tuner = Tuner(
            asked,
            target,
            where,
            threads=threads,
            budget=Budget(trials, left, patience),
            strategy=strategy,
            seed=seed,
            folder=logs,
            on_trial=on_trial,
        )
        return Outcome(tuner.run(), tuner.log)
    finally:
        if own:
            own.close()


def _export(case: Case, blocking: Blocking, path: Path) -> Failure | None:
    try:
        layout = case.input_layout.name
        build(case.workload, case.device, case.threads, blocking, layout).export(path)
    except BlockingError as error:
        return Failure("rejected", str(error))
    except Exception as error:
        return Failure("compile_error", said_by(error))
    return None
