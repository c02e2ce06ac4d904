"""What connects a space to MetaSchedule. Imports TVM, which takes a second."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import IRModule, runtime
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule import _ffi_api
from tvm.s_tir.meta_schedule.cost_model import XGBModel
from tvm.s_tir.meta_schedule.cost_model.xgb_model import XGBConfig
from tvm.s_tir.meta_schedule.database import MemoryDatabase, TuningRecord
from tvm.s_tir.meta_schedule.feature_extractor import PyFeatureExtractor
from tvm.s_tir.meta_schedule.logging import get_logging_func
from tvm.s_tir.meta_schedule.mutator import PyMutator
from tvm.s_tir.meta_schedule.runner import RunnerResult
from tvm.s_tir.meta_schedule.search_strategy import EvolutionarySearch, MeasureCandidate
from tvm.s_tir.meta_schedule.space_generator import ScheduleFn
from tvm.s_tir.meta_schedule.tune_context import TuneContext
from tvm.s_tir.schedule import Trace
from tvm.script import tirx as T
from tvm.target import Target

from .space import Space

_KNOB = "directconv.point"


def module(space: Space) -> IRModule:
    """Return the function that stands for a space. Only its one block matters."""

    @T.prim_func(s_tir=True)
    def point(x: T.Buffer((1,), "float32")):  # type: ignore[valid-type]
        with T.sblock("point"):
            i = T.axis.spatial(1, 0)
            x[i] = T.float32(0)

    return IRModule({"main": point.with_attr("directconv.workload", str(space.case.workload))})


def target(space: Space) -> Target:
    """Return the target of a space."""
    return space.case.device.target(space.case.threads)


def point_of(trace: Trace) -> int:
    """Return the point that a trace has decided for."""
    return int(trace.get_decision(_decision(trace)))


def _decision(trace: Trace) -> Any:
    return next(inst for inst in trace.insts if inst.kind.name == "SampleCategorical")


def candidate(mod: IRModule, space: Space, point: int) -> MeasureCandidate:
    """Return the candidate that stands for a point."""
    schedule = Schedule(mod)
    _decide(schedule, np.full(len(space), 1 / len(space)), point)
    return MeasureCandidate(schedule, [])


def _decide(schedule: Schedule, weights: np.ndarray, point: int | None) -> None:
    numbers = [*range(len(weights))]
    knob = schedule.sample_categorical(numbers, [*map(float, weights)], decision=point)
    schedule.annotate(schedule.get_sblock("point"), _KNOB, knob)


def space_generator(space: Space, weights: np.ndarray, rng: np.random.Generator) -> ScheduleFn:
    """Return the generator whose one decision is the number of a point."""

    def design(schedule: Schedule) -> Schedule:
        _decide(schedule, weights, None)
        return schedule

    return ScheduleFn(
        design, sch_rules=[], postprocs=[], mutator_probs={_Neighbour(space, rng): 1.0}
    )


@derived_object
class _Neighbour(PyMutator):  # type: ignore[misc]
    """Moves a trace to a neighbouring point."""

    def __init__(self, space: Space, rng: np.random.Generator) -> None:
        super().__init__()
        self.space, self.rng = space, rng

    def _initialize_with_tune_context(self, context: TuneContext) -> None:
        pass

    def apply(self, trace: Trace, _: Any) -> Trace | None:
        point = self.space.neighbour(point_of(trace), self.rng)
        if point is None:
            return None
        return trace.with_decision(_decision(trace), point, remove_postproc=True)

    def clone(self) -> "_Neighbour":
        return _Neighbour(self.space, self.rng)


def cost_model(space: Space) -> XGBModel:
    """Return XGBoost's model over the features of a space."""
    return XGBModel(
        extractor=_Features(space),
        # Small sets of data: shallow trees, or each point gets a leaf of its own.
        config=XGBConfig(max_depth=4, nthread=1, seed=1),
        num_warmup_samples=1,
        early_stopping_rounds=20,
        verbose_eval=0,
        adaptive_training=False,
    )


@derived_object
class _Features(PyFeatureExtractor):  # type: ignore[misc]
    """The features of points instead of those of loops."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.rows = space.features()

    def extract_from(
        self, context: TuneContext, candidates: list[MeasureCandidate]
    ) -> list[runtime.Tensor]:
        points = [point_of(candidate.sch.trace) for candidate in candidates]
        return [runtime.tensor(self.rows[point : point + 1]) for point in points]


def expected(model: XGBModel, rows: np.ndarray) -> np.ndarray:
    """Return what a trained model expects of points with these features; more is better."""
    scores: np.ndarray = model._predict(xs=[row[np.newaxis] for row in rows])
    return scores


def context(
    mod: IRModule, target: Target, space: ScheduleFn, strategy: EvolutionarySearch, seed: int
) -> TuneContext:
    """Return a tuning context, made in milliseconds.

    The class's own constructor imports every tensor intrinsic there is, which takes 20 seconds;
    none of them is needed here.
    """
    made = TuneContext.__new__(TuneContext)
    log = get_logging_func(logging.getLogger("tvm.s_tir.meta_schedule"))
    made.__init_handle_by_constructor__(
        # Its seeds begin with 1.
        _ffi_api.TuneContext,
        mod,
        target,
        space,
        strategy,
        "space",
        1,
        seed % (2**31 - 2) + 1,
        log,
    )
    _ffi_api.TuneContextInitialize(made)
    return made


def learn(
    tuning: TuneContext,
    model: XGBModel,
    database: MemoryDatabase,
    workload: Any,
    target: Target,
    candidates: list[MeasureCandidate],
    costs: Sequence[float],
) -> None:
    """Add what candidates cost to the cost model and to the database that parents are from."""
    results = [RunnerResult([float(cost)], None) for cost in costs]
    for measured, result in zip(candidates, results, strict=True):
        database.commit_tuning_record(
            TuningRecord(measured.sch.trace, workload, result.run_secs, target, [])
        )
    model.update(tuning, candidates, results)
