"""The tuner: what it measures, logs, resumes and decides; and the command."""

import contextlib
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import FOREIGN, described

import tvm_directconv as dc
from tvm_directconv.bench.compare import Comparison, Failure
from tvm_directconv.candidates import choose
from tvm_directconv.case import Case
from tvm_directconv.cli import main
from tvm_directconv.cli._options import duration
from tvm_directconv.conv_manifest import ConvManifest
from tvm_directconv.convolution import build
from tvm_directconv.errors import LogError, TuningError
from tvm_directconv.layout import ActivationLayout
from tvm_directconv.logs import log_file
from tvm_directconv.logs.record import Record, here
from tvm_directconv.toolchain import find_toolchain, run_cc
from tvm_directconv.tuning import plot, tune
from tvm_directconv.tuning.layer import Layer
from tvm_directconv.tuning.outcome import Outcome
from tvm_directconv.tuning.runners.local import LocalRunner
from tvm_directconv.tuning.space import Space
from tvm_directconv.tuning.tune import Budget, Tuner

NATIVE = dc.device("native")
LAYER = dc.ConvWorkload.parse('ic16ih12oc64oh12kh3ph1n"toy:first"')
OTHER = dc.ConvWorkload.parse('ic32ih10oc32oh10kh3ph1n"toy:second"')
TINY = "ic8ih6oc16oh6kh3ph1"
PROCESSOR = "0x41 0xd08"

Speeds = Callable[[str, int], float]


class FakeBuilders:
    """Stands for the compiler: libraries are names, with some that cannot be compiled."""

    broken: ClassVar[dict[int, Failure]] = {}

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> "FakeBuilders":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def build(self, layer: Layer, points: Iterable[int]) -> Iterator[tuple[int, Failure | None]]:
        for point in dict.fromkeys(points):
            failure = self.broken.get(point)
            if failure is None and point not in layer.libraries:
                layer.libraries[point] = Path(layer.name, str(point))
            yield point, failure


@dataclass
class FakeRunner:
    """Measures nothing: points have the seconds that a test gives them."""

    seconds: Speeds = lambda name, point: 1 + point / 1000
    failures: dict[int, list[Failure]] = field(default_factory=dict)
    noise: Callable[[], float] = lambda: 1.0
    peak: float | None = None
    slots: int = 1
    measured_by: str = "rpc"
    suffix: str = ".fake"
    cpu: str | None = PROCESSOR
    cpu_name: str | None = "A board"
    cpu_device: str | None = None
    calls: list[tuple[str, int, int | None, str]] = field(default_factory=list)
    before: Callable[[int], None] = lambda point: None

    def measure(
        self, candidate: Path, incumbent: Path | None, repeats: int, thorough: bool = False
    ) -> Comparison | Failure:
        name, point = str(candidate.parent), int(candidate.name)
        rival = None if incumbent is None else int(incumbent.name)
        kind = "check" if repeats == 1 else "again" if thorough else "trial"
        if repeats == tune._CONFIRMING_REPEATS:
            kind = "confirmation"
        self.calls.append((name, point, rival, kind))
        self.before(point)
        if self.failures.get(point):
            return self.failures[point].pop(0)
        own = self.seconds(name, point)
        over = () if rival is None else (self.seconds(name, rival) / own,) * repeats
        return Comparison(
            (own,) * repeats,
            tuple(ratio * self.noise() for ratio in over),
            () if self.peak is None else (self.peak / own,) * repeats,
        )

    def close(self) -> None:
        pass

    @property
    def trials(self) -> Counter[tuple[str, int]]:
        """How often each point was tried."""
        return Counter((name, point) for name, point, _, kind in self.calls if kind == "trial")


@pytest.fixture(autouse=True)
def _no_compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile nothing, except where a test asks for it."""
    if "compiling" not in request.fixturenames:
        monkeypatch.setattr(tune, "_Builders", FakeBuilders)
        monkeypatch.setattr(FakeBuilders, "broken", {})


@pytest.fixture
def compiling() -> None:
    """Let the tuner compile for real."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def tuner(runner: FakeRunner, folder: Path, *layers: dc.ConvWorkload, **options: Any) -> Tuner:
    options.setdefault("strategy", "random")
    options.setdefault("budget", Budget(trials=32))
    return Tuner(layers or [LAYER], NATIVE, runner, folder=folder, **options)


def log_of(folder: Path) -> list[Record]:
    return log_file.read(folder / f"{NATIVE.name}.jsonl")


def best_of(space: Space) -> Speeds:
    """Return speeds with one optimum that is neither the first point nor the last."""
    best = len(space) // 3
    return lambda name, point: 1 + abs(point - best) / len(space)


# --- Records ------------------------------------------------------------------------------------


def test_every_trial_is_in_the_log_when_it_is_reported(folder: Path) -> None:
    seen = []

    def report(tuner: Tuner) -> None:
        seen.append((tuner.layers[0].trials, len(log_of(folder))))

    runner = FakeRunner(peak=0.5)
    (layer,) = tuner(runner, folder, on_trial=report).run()
    assert [lines for _, lines in seen[:-1]] == [trials for trials, _ in seen[:-1]]
    assert [trials for trials, _ in seen] == [*range(1, 33), 32]
    assert len(layer.history) == layer.trials == 32 and layer.failures == 0
    records = log_of(folder)[:32]
    assert {r.blocking for r in records} == {layer.space.points[p] for p in layer.records}
    first = records[0]
    assert first.blocking == layer.space.points[0]
    assert (first.workload, first.device, first.threads) == (LAYER, NATIVE.name, 1)
    assert (first.status, first.repeats, first.chosen) == ("ok", 10, False)
    assert (first.seconds_p20, first.seconds_p50, first.seconds_p80) == (1, 1, 1)
    assert (first.of_peak, first.over_model) == (0.5, 1)
    assert (first.measured_by, first.cpu, first.cpu_name) == ("rpc", PROCESSOR, "A board")
    assert first.cpu_device == NATIVE.name
    assert all(r.over_model == pytest.approx(1 / r.seconds_p50) for r in records if r.seconds_p50)


def test_failures_of_every_kind_are_logged_and_the_rest_is_tuned(folder: Path) -> None:
    FakeBuilders.broken = {
        3: Failure("rejected", "too large"),
        5: Failure("compile_error", "LLVM said no"),
        6: Failure("timeout", "no result within 60 s"),
    }
    at_run = {7: "wrong_result", 8: "crash", 9: "rpc_lost", 10: "timeout"}
    runner = FakeRunner(
        lambda name, point: 0.5 if point == 11 else 1.0,
        failures={point: [Failure(kind, f"{kind} here")] for point, kind in at_run.items()},
    )
    (layer,) = tuner(runner, folder, strategy="exhaustive", budget=Budget(trials=16)).run()
    assert (layer.trials, layer.failures) == (16, 7)
    known = {layer.space.number_of(r.blocking): r for r in log_of(folder)[:16]}
    assert {point: r.status for point, r in known.items() if r.status != "ok"} == at_run | {
        3: "rejected",
        5: "compile_error",
        6: "timeout",
    }
    assert known[5].message == "LLVM said no" and known[8].message == "crash here"
    assert known[8].seconds_p50 is None and known[8].cpu == PROCESSOR
    assert layer.chosen and layer.chosen.blocking == layer.space.points[11]
    assert layer.history[-1] == 2


def test_what_is_chosen_was_confirmed_against_the_models_choice(folder: Path) -> None:
    space = Space(Case.of(LAYER, NATIVE))
    runner = FakeRunner(best_of(space))
    budget = Budget(trials=len(space), patience=len(space))
    (layer,) = tuner(runner, folder, budget=budget).run()
    assert layer.trials == len(space) and layer.exhausted is False
    assert set(runner.trials.values()) == {1}
    best = len(space) // 3
    confirmed = [(point, rival) for _, point, rival, kind in runner.calls if kind == "confirmation"]
    assert confirmed[:2] == [(0, None), (best, 0)]
    assert {rival for _, rival in confirmed[1:]} == {0}
    assert {point for point, _ in confirmed} == {best, *(p for p, _ in confirmed)}
    assert len(confirmed) == 4
    *tried, chosen = log_of(folder)
    assert chosen.chosen and not any(r.chosen for r in tried)
    assert chosen == layer.chosen and chosen.blocking == space.points[best]
    assert chosen.over_model == pytest.approx(1 + best / len(space)) == layer.gain
    assert chosen.repeats == tune._CONFIRMING_REPEATS


def test_the_models_choice_stays_if_nothing_is_surely_faster(folder: Path) -> None:
    random_ratio = random.Random(0)
    runner = FakeRunner(lambda name, point: 1.0, noise=lambda: random_ratio.gauss(1, 0.05))
    (layer,) = tuner(runner, folder).run()
    assert layer.best != 0  # Noise made others look faster.
    assert layer.chosen and layer.chosen.chosen
    assert layer.chosen.blocking == layer.space.points[0] and layer.gain == 1
    assert log_of(folder)[-1] == layer.chosen


def test_a_rival_that_fails_when_it_is_confirmed_is_not_chosen(folder: Path) -> None:
    runner = FakeRunner(lambda name, point: {4: 0.5, 7: 0.6}.get(point, 1.0))

    def spoil(point: int) -> None:
        if point == 4 and runner.calls[-1][3] == "confirmation":
            runner.failures[4] = [Failure("crash", "at last")]

    runner.before = spoil
    (layer,) = tuner(runner, folder, strategy="exhaustive", budget=Budget(trials=16)).run()
    assert layer.chosen and layer.chosen.blocking == layer.space.points[7]
    assert Counter(r.status for r in log_of(folder)) == {"ok": 18, "crash": 1}


def test_what_seems_faster_is_measured_again(folder: Path) -> None:
    # Point 9 is faster by luck, once.
    ratios = {4: 1.5, 9: 2.0}
    runner = FakeRunner(lambda name, point: 1 / ratios.get(point, 1.0))

    def sober(point: int) -> None:
        if runner.calls[-1][1:] == (9, 4, "again"):
            ratios[9] = 0.8

    runner.before = sober
    (layer,) = tuner(runner, folder, strategy="exhaustive", budget=Budget(trials=16)).run()
    assert [call[1:3] for call in runner.calls if call[3] == "again"] == [(4, 0), (9, 4)]
    # Nothing was compared with it, and its record is of the second time.
    assert layer.best == 4 and {call[2] for call in runner.calls} == {None, 0, 4}
    assert layer.records[9].over_model == pytest.approx(0.8)
    assert (layer.trials, layer.failures, len(log_of(folder))) == (16, 0, 18)


def test_a_trial_begins_when_the_one_before_is_logged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = log_file.append

    def slowly(record: Record, to: Path) -> None:
        time.sleep(0.01)  # Long enough for the next trial to begin too early.
        append(record, to)

    monkeypatch.setattr(log_file, "append", slowly)
    begun: list[int] = []
    # Each is faster than all before: what is measured next has to be compared with it.
    runner = FakeRunner(lambda name, point: 1 / (1 + begun.index(point)), before=begun.append)
    tuner(runner, folder, strategy="exhaustive", budget=Budget(trials=8)).run()
    order = list(dict.fromkeys(begun))
    rivals = {call[1]: call[2] for call in runner.calls if call[3] == "trial"}
    assert len(order) == 8 and [rivals[point] for point in order] == [None, *order[:-1]]


def test_several_candidates_are_measured_at_once(folder: Path) -> None:
    at_once, most = Counter[str](), [0]
    lock = threading.Lock()
    # Each waits for two others: with fewer at once, none would go on.
    together = threading.Barrier(3)

    def before(point: int) -> None:
        with lock:
            at_once["now"] += 1
            most[0] = max(most[0], at_once["now"])
        if 0 < point <= 15:
            together.wait(60)
        with lock:
            at_once["now"] -= 1

    runner = FakeRunner(slots=3, before=before)
    (layer,) = tuner(runner, folder, strategy="exhaustive", budget=Budget(trials=16)).run()
    assert layer.trials == 16 and most[0] == 3
    assert len(log_of(folder)) == 17


# --- Budgets ------------------------------------------------------------------------------------


def test_trials_are_shared_and_go_where_more_can_be_gained(folder: Path) -> None:
    # The second layer takes ten times as long, and both reach the same part of the peak.
    def seconds(name: str, point: int) -> float:
        return (10 if name == OTHER.name else 1) * (1 + point / 1000)

    runner = FakeRunner(seconds, peak=0.5)
    first, second = tuner(runner, folder, LAYER, OTHER, budget=Budget(48, patience=999)).run()
    assert first.trials + second.trials == 96
    assert second.trials > 1.5 * first.trials > 0


def test_every_layer_gets_its_turn(folder: Path) -> None:
    # Less than a round for each.
    layers = tuner(FakeRunner(), folder, LAYER, OTHER, budget=Budget(5)).run()
    assert [layer.trials for layer in layers] == [5, 5]
    # The log has more of the first than both need.
    other = folder / "other"
    tuner(FakeRunner(), other, budget=Budget(32)).run()
    first, second = tuner(FakeRunner(), other, LAYER, OTHER, budget=Budget(8)).run()
    assert (first.resumed, first.trials) == (32, 0)
    assert second.trials == 8 and second.chosen


@pytest.mark.parametrize("trials", [1, 2, 17])
def test_no_more_trials_than_the_budget_has(folder: Path, trials: int) -> None:
    runner = FakeRunner()
    (layer,) = tuner(runner, folder, budget=Budget(trials)).run()
    assert layer.trials == sum(runner.trials.values()) == trials
    assert layer.chosen


def test_patience(folder: Path) -> None:
    # The first point is the best, so everything is in vain.
    runner = FakeRunner()
    (layer,) = tuner(runner, folder, budget=Budget(trials=200, patience=32)).run()
    assert layer.exhausted and layer.trials == 32
    # A point that is found late starts the count again.
    space = Space(Case.of(LAYER, NATIVE))
    runner = FakeRunner(lambda name, point: 0.5 if point == 20 else 1.0)
    budget = Budget(trials=len(space), patience=32)
    (layer,) = tuner(runner, folder / "2", strategy="exhaustive", budget=budget).run()
    assert layer.exhausted and layer.trials == 64


def test_a_space_can_be_exhausted(folder: Path) -> None:
    small = dc.ConvWorkload.parse("ic1ih1oc1oh1kh1")
    (layer,) = tuner(FakeRunner(), folder, small, budget=Budget(500, patience=999)).run()
    assert layer.exhausted and layer.trials == len(layer.space) < 500


def test_time_is_limited(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(tune.time, "monotonic", lambda: now[0])

    def pass_time(point: int) -> None:
        now[0] += 1

    runner = FakeRunner(before=pass_time)
    made = tuner(runner, folder, budget=Budget(200, seconds=20))
    assert made.seconds_left is None
    (layer,) = made.run()
    # What is left after these is for the decision.
    assert sum(runner.trials.values()) == layer.trials == 17
    assert layer.chosen and len(log_of(folder)) > 17
    assert 17 < now[0] <= 20


def test_time_that_suffices_for_some_layers_only(folder: Path) -> None:
    now = [0.0]
    runner = FakeRunner()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune.time, "monotonic", lambda: now[0])
        runner.before = lambda point: now.__setitem__(0, now[0] + 100)
        first, second = tuner(runner, folder, LAYER, OTHER, budget=Budget(32, seconds=50)).run()
        assert (first.state, first.trials, first.chosen) == ("not decided", 1, None)
        assert (second.state, second.trials, second.problem) == ("not begun", 0, None)
        # The same command goes on.
        runner.before = lambda point: now.__setitem__(0, now[0] + 1)
        again, second = tuner(runner, folder, LAYER, OTHER, budget=Budget(4, seconds=99)).run()
    assert again.state == second.state == "decided" and again.resumed == 1


def test_time_is_kept_while_candidates_are_compiled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(tune.time, "monotonic", lambda: now[0])
    left = []

    class SlowBuilders(FakeBuilders):
        def __init__(self, *options: Any) -> None:
            self.seconds_left = options[-1]

        def build(
            self, layer: Layer, points: Iterable[int]
        ) -> Iterator[tuple[int, Failure | None]]:
            for point in points:
                left.append(self.seconds_left())
                if left[-1] <= 0:
                    yield point, tune._NO_TIME
                else:
                    now[0] += 3
                    layer.libraries[point] = Path(layer.name, str(point))
                    yield point, None

    monkeypatch.setattr(tune, "_Builders", SlowBuilders)
    (layer,) = tuner(FakeRunner(), folder, budget=Budget(32, seconds=20)).run()
    # Of those that there was no time for, nobody says that they are bad.
    assert layer.failures == 0 and layer.state == "not decided"
    assert {r.status for r in log_of(folder)} == {"ok"} and now[0] <= 22


def test_compiling_ends_with_the_time(compiling: None, tmp_path: Path) -> None:
    seconds = [9.0]
    layer = Layer(Space(Case.of(LAYER, NATIVE)))
    with tune._Builders(NATIVE, 1, tmp_path, ".so", lambda: seconds[0]) as builders:
        for worker in builders._all:
            worker.call = lambda limit, *_: Failure("timeout", f"{limit:g}")  # type: ignore
        assert list(builders.build(layer, [0])) == [(0, tune._NO_TIME)]
        seconds[0] = math.inf
        assert list(builders.build(layer, [0])) == [(0, Failure("timeout", "60"))]
        seconds[0] = 0.0
        assert list(builders.build(layer, [0])) == [(0, tune._NO_TIME)]


def test_no_time_at_all_is_no_failure(folder: Path) -> None:
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune.time, "monotonic", lambda: now[0])
        made = tuner(FakeRunner(), folder, budget=Budget(32, seconds=5))
        now[0] = 10
        (layer,) = made.run()
    assert (layer.state, layer.problem) == ("not begun", None)


# --- What was gained ----------------------------------------------------------------------------


def test_outcomes_add_up_networks(folder: Path) -> None:
    twice = replace(LAYER, count=2)
    # The first layer is 1.25 times as fast at its best, for the second the model's choice stays.
    speeds: Speeds = lambda name, point: (  # noqa: E731
        (1.25 if point == 0 else 1.0) if "first" in name else 2.0 + (point > 0)
    )
    runner = FakeRunner(speeds, failures={5: [Failure("crash", "killed\nby SIGILL")]})
    made = tuner(runner, folder, twice, OTHER, budget=Budget(8), strategy="exhaustive")
    outcome = Outcome(made.run(), made.log)
    (gain,) = outcome.gains
    assert (gain.network, gain.counted, gain.stayed) == ("toy", 2, 1)
    assert (gain.before, gain.after) == (2 * 1.25 + 2, 2 * 1.0 + 2)
    assert gain.mean == pytest.approx(math.sqrt(1.25))
    said = str(outcome).splitlines()
    assert said[0] == (
        "toy: 4500 ms before, 4000 ms after, geometric mean 1.118 times as fast, over 2 of 2 "
        "different layers; the model's choice stayed for 1"
    )
    assert said[1] == "the model's choice stayed: toy:second"
    assert said[2:4] == ["trials that failed: 1", "  1 x crash: killed by SIGILL"]
    assert said[-1] == f"log: {made.log}"


def test_what_was_disturbed_is_left_out_of_gains(folder: Path) -> None:
    rng = random.Random(0)
    runner = FakeRunner(lambda name, point: 1.0 if "first" in name else rng.choice((1.0, 9.0)))

    def noisy(candidate: Path, *rest: Any, **more: Any) -> Comparison | Failure:
        found = FakeRunner.measure(runner, candidate, *rest, **more)
        if isinstance(found, Comparison) and "second" in str(candidate):
            return replace(found, of_clock=(0.3,) * len(found.seconds))
        return found

    runner.measure = noisy  # type: ignore[method-assign, assignment]
    made = tuner(runner, folder, LAYER, OTHER, budget=Budget(4))
    outcome = Outcome(made.run(), made.log)
    (gain,) = outcome.gains
    assert (gain.counted, gain.disturbed, gain.before) == (1, 1, 1.0)
    assert "(without 1 disturbed)" in str(outcome) and "left out of means: 1 of 2" in str(outcome)
    records = log_of(folder)
    reason = "bursts reach 30% of what the clock allows"
    assert {r.disturbed for r in records if r.workload == OTHER} == {reason}
    assert {r.disturbed for r in records if r.workload == LAYER} == {None}


def test_the_plot_has_every_trial(folder: Path, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    failures = {3: [Failure("crash", "killed")], 4: [Failure("crash", "killed")]}
    layers = tuner(FakeRunner(failures=failures), folder, strategy="exhaustive").run()
    (layer,) = layers
    assert len(layer.tried) == layer.trials and layer.tried.count(None) == 2
    with pytest.MonkeyPatch.context() as patch:
        drawn: list[Figure] = []
        draw = Figure.savefig

        def keep(self: Figure, *words: Any, **options: Any) -> None:
            drawn.append(self)
            draw(self, *words, **options)

        patch.setattr(Figure, "savefig", keep)
        plot.draw(layers, tmp_path / "x.svg")
    marks = [len(each.get_offsets()) for each in drawn[0].axes[0].collections]
    assert marks == [layer.trials - 2, 2]


# --- In Python ----------------------------------------------------------------------------------


def test_tune_is_a_function_that_is_loaded_when_it_is_used() -> None:
    code = (
        "import sys, tvm_directconv as dc; assert 'tvm_directconv.tuning' not in sys.modules; "
        "dc.tune; assert 'tvm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'tuna'"):
        _ = dc.tuna


def test_tune_returns_what_it_has_found(folder: Path) -> None:
    seen: list[int] = []
    outcome = dc.tune(
        [LAYER, "ic8ih6oc16oh6kh3ph1"],
        trials=4,
        strategy="random",
        logs=folder,
        runner=FakeRunner(),
        on_trial=lambda made: seen.append(made.layers[0].trials),
    )
    assert [layer.state for layer in outcome.layers] == ["decided"] * 2
    assert seen and outcome.log.parent == folder and "4" in str(outcome)
    with dc.use_logs(folder):
        assert {r.workload for r in log_of(folder)} == {layer.workload for layer in outcome.layers}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials is 0: expected a whole number from 1"),
        ({"threads": True}, "threads is True"),
        ({"patience": 1.5}, "patience is 1.5"),
        ({"seconds": 0}, "seconds is 0: expected a number above 0"),
        ({"seconds": "5m"}, "seconds is '5m'"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"strategy": "genetic"}, "genetic"),
        ({"device": FOREIGN}, f"cannot measure code for {FOREIGN} here"),
        ({"spec": "vgg17"}, "vgg17"),
        ({"input_shapes": {"x": (1, 3)}}, "size of input 'x' is given, but no model"),
    ],
)
def test_bad_calls_of_tune(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(dc.DirectConvError, match=message):
        dc.tune(**{"spec": LAYER, "logs": folder, **options})
    assert not folder.exists()


def test_equal_layers_are_tuned_once(folder: Path) -> None:
    again = replace(LAYER, name="toy:again")
    runner = FakeRunner()
    layers = tuner(runner, folder, LAYER, OTHER, again, budget=Budget(16)).run()
    assert [layer.name for layer in layers] == ["toy:first", "toy:second"]
    assert sum(layer.trials for layer in layers) == 32


# --- Resuming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["random", "exhaustive", "evolutionary"])
def test_nothing_is_measured_twice(folder: Path, strategy: str) -> None:
    space = Space(Case.of(LAYER, NATIVE))

    def run(trials: int) -> tuple[FakeRunner, Layer]:
        runner = FakeRunner(best_of(space))
        made = tuner(runner, folder, strategy=strategy, budget=Budget(trials, patience=999))
        return runner, made.run()[0]

    before, first = run(20)
    after, second = run(52)
    assert (second.resumed, second.trials) == (20, 32)
    assert not before.trials.keys() & after.trials.keys()
    assert set(after.trials.values()) == {1}
    # What was best before is what new points are compared with from the first on.
    _, point, _, kind = after.calls[0]
    assert (point, kind) == (first.best, "check")
    assert after.calls[1][2] == first.best
    assert second.gain >= first.gain
    # The budget is spent: what was decided stays, nothing is measured or logged.
    lines = len(log_of(folder))
    nothing, third = run(52)
    assert not nothing.calls and third.trials == 0 and third.resumed == 52
    assert third.chosen == second.chosen and len(log_of(folder)) == lines


def test_an_interrupted_run_is_finished_by_the_next(folder: Path) -> None:
    class Stop(Exception):
        pass

    def stop(tuner: Tuner) -> None:
        if tuner.layers[0].trials == 13:
            raise Stop

    with pytest.raises(Stop):
        tuner(FakeRunner(), folder, on_trial=stop).run()
    assert len(log_of(folder)) == 13
    runner = FakeRunner()
    (layer,) = tuner(runner, folder).run()
    assert (layer.resumed, layer.trials) == (13, 19)
    assert layer.chosen == log_of(folder)[-1]


def test_what_was_found_after_a_decision_is_decided_about(folder: Path) -> None:
    class Stop(Exception):
        pass

    def stop(tuner: Tuner) -> None:
        if tuner.layers[0].trials == 16:
            raise Stop

    seconds: Speeds = lambda name, point: 0.5 if point == 20 else 1.0  # noqa: E731
    options: dict[str, Any] = {"strategy": "exhaustive"}
    tuner(FakeRunner(seconds), folder, budget=Budget(16), **options).run()
    with pytest.raises(Stop):
        tuner(FakeRunner(seconds), folder, budget=Budget(32), on_trial=stop, **options).run()
    (layer,) = tuner(FakeRunner(seconds), folder, budget=Budget(32), **options).run()
    assert (layer.resumed, layer.trials) == (32, 0)
    assert layer.chosen and layer.chosen.blocking == layer.space.points[20]


def test_what_was_lost_by_chance_is_tried_again(folder: Path) -> None:
    kinds = {3: "rpc_lost", 4: "timeout", 5: "crash", 6: "wrong_result"}
    failures = {point: [Failure(kind, "by chance")] for point, kind in kinds.items()}
    options: dict[str, Any] = {"strategy": "exhaustive", "budget": Budget(trials=16)}
    tuner(FakeRunner(failures=failures), folder, **options).run()
    runner = FakeRunner()
    (layer,) = tuner(runner, folder, **options).run()
    assert (layer.resumed, layer.trials) == (14, 2)
    assert runner.trials.keys() == {(LAYER.name, 3), (LAYER.name, 4)}


@pytest.mark.parametrize(
    "changes",
    [
        {"cpu": "0x41 0xd03"},
        {"measured_by": "local"},
        {"threads": 2},
        {"input_layout": "NHWC"},
        {"workload": OTHER},
        {"over_model": None},
    ],
    ids=str,
)
def test_records_of_other_cases_are_not_taken_over(folder: Path, changes: dict[str, Any]) -> None:
    tuner(FakeRunner(), folder).run()
    own = log_of(folder)
    other = folder.parent / "other"
    for record in own:
        log_file.append(replace(record, **changes), other)
    assert tuner(FakeRunner(), other).layers[0].resumed == 0
    # The same without the change: it is the change that matters.
    assert tuner(FakeRunner(), folder).layers[0].resumed == 32


def test_what_was_compared_with_another_choice_of_the_model_is_not_taken_over(
    folder: Path,
) -> None:
    tuner(FakeRunner(), folder, strategy="exhaustive").run()
    other = folder.parent / "other"
    for record in log_of(folder):
        if record.blocking != Space(Case.of(LAYER, NATIVE)).points[0]:
            log_file.append(record, other)
    (layer,) = tuner(FakeRunner(), other, strategy="exhaustive").run()
    assert (layer.resumed, layer.trials) == (0, 32)
    assert layer.chosen


def test_the_latest_record_of_a_point_counts(folder: Path) -> None:
    # Point 9 looked best by noise, and was found slower when it was confirmed.
    runner = FakeRunner(lambda name, point: {4: 0.8, 9: 0.7}.get(point, 1.0))

    def sober(point: int) -> None:
        if runner.calls[-1][3] == "confirmation":
            runner.seconds = lambda name, point: {4: 0.8, 9: 0.95}.get(point, 1.0)

    runner.before = sober
    (layer,) = tuner(runner, folder, strategy="exhaustive", budget=Budget(trials=16)).run()
    assert layer.best == 9 and layer.chosen and layer.chosen.blocking == layer.space.points[4]
    (again,) = tuner(FakeRunner(), folder).layers
    assert again.best == 4


def test_the_best_of_the_log_that_can_no_longer_be_compiled(folder: Path) -> None:
    seconds: Speeds = lambda name, point: {4: 0.8, 9: 0.7}.get(point, 1.0)  # noqa: E731
    options: dict[str, Any] = {"strategy": "exhaustive"}
    tuner(FakeRunner(seconds), folder, budget=Budget(trials=16), **options).run()
    FakeBuilders.broken = {9: Failure("compile_error", "no more")}
    runner = FakeRunner(seconds)
    (layer,) = tuner(runner, folder, budget=Budget(trials=32), **options).run()
    assert layer.chosen and layer.chosen.blocking == layer.space.points[4]
    assert {rival for _, _, rival, kind in runner.calls if kind == "trial"} == {4}
    assert layer.records[9].status == "compile_error"


def test_of_what_a_compiler_says_the_end_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case.of("ic8ih8oc8kh3", "haswell")

    def failing(*_: Any) -> None:
        raise RuntimeError("a stack of calls\nand the reason\n")

    monkeypatch.setattr(tune, "build", failing)
    failure = tune._export(case, choose(case), tmp_path / "a.so")
    assert failure == Failure("compile_error", "RuntimeError: and the reason")


def test_the_best_of_the_log_that_no_longer_runs(folder: Path) -> None:
    seconds: Speeds = lambda name, point: {4: 0.8, 9: 0.7}.get(point, 1.0)  # noqa: E731
    options: dict[str, Any] = {"strategy": "exhaustive"}
    tuner(FakeRunner(seconds), folder, budget=Budget(trials=16), **options).run()
    runner = FakeRunner(seconds, failures={9: [Failure("crash", "killed by SIGSEGV")]})
    (layer,) = tuner(runner, folder, budget=Budget(trials=32), **options).run()
    assert [(point, kind) for _, point, _, kind in runner.calls[:2]] == [(9, "check"), (4, "check")]
    assert {rival for _, _, rival, kind in runner.calls if kind == "trial"} == {4}
    assert (layer.records[9].status, layer.failures) == ("crash", 0)
    assert layer.chosen and layer.chosen.blocking == layer.space.points[4]


def test_everything_of_the_log_fails_now(folder: Path) -> None:
    tuner(FakeRunner(), folder, strategy="exhaustive", budget=Budget(trials=4)).run()
    FakeBuilders.broken = dict.fromkeys(range(9), Failure("compile_error", "no more"))
    with pytest.raises(TuningError, match="toy:first: compile_error: no more"):
        tuner(FakeRunner(), folder, strategy="exhaustive", budget=Budget(trials=16)).run()


# --- Errors -------------------------------------------------------------------------------------


def test_nothing_can_be_measured(folder: Path) -> None:
    runner = FakeRunner(failures={0: [Failure("wrong_result", "99 of 99 outputs differ")]})
    with pytest.raises(TuningError, match=r"nothing could be measured: toy:first: wrong_result: 9"):
        tuner(runner, folder).run()
    assert [r.status for r in log_of(folder)] == ["wrong_result"]


def test_the_first_point_gets_several_attempts(folder: Path) -> None:
    lost = Failure("rpc_lost", "the board is gone")
    (layer,) = tuner(FakeRunner(failures={0: [lost, lost]}), folder).run()
    assert layer.chosen and layer.failures == 2
    with pytest.raises(TuningError, match="rpc_lost: the board is gone"):
        tuner(FakeRunner(failures={0: [lost] * 9}), folder / "2").run()
    assert len(log_of(folder / "2")) == 3


def test_one_layer_fails_and_the_others_are_tuned(folder: Path) -> None:
    FakeBuilders.broken = {}

    class Picky(FakeRunner):
        def measure(self, candidate: Path, *rest: Any, **more: Any) -> Comparison | Failure:
            if str(candidate.parent) == LAYER.name:
                return Failure("crash", "killed by SIGILL")
            return super().measure(candidate, *rest, **more)

    first, second = tuner(Picky(), folder, LAYER, OTHER).run()
    assert first.problem == "crash: killed by SIGILL" and first.chosen is None
    assert second.chosen and second.problem is None
    # It does not go on with a layer that cannot be measured: the other gets its trials.
    assert (first.trials, second.trials) == (1, 63)


def test_a_log_that_cannot_be_written_is_found_out_before_any_trial(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    runner = FakeRunner()
    with pytest.raises(LogError, match="expected a folder that you may write to"):
        tuner(runner, tmp_path / "file")
    assert not runner.calls


def test_wrong_calls(folder: Path) -> None:
    with pytest.raises(TuningError, match=r"strategy is 'genetic': expected one of evolutionary, "):
        tuner(FakeRunner(), folder, strategy="genetic")
    with pytest.raises(TuningError, match="nothing to tune: expected at least one"):
        Tuner([], NATIVE, FakeRunner(), folder=folder)
    assert not folder.exists()


# --- With compiler and processor ----------------------------------------------------------------


def with_code(good: Path, body: str) -> Path:
    """Write a library that pretends to be a good one and does whatever it likes."""
    manifest = ConvManifest.read(Path(f"{good}.json"), good.read_bytes())
    source, path = good.with_name("bad.c"), good.with_name("bad.so")
    source.write_text(
        f"int __tvm_ffi_{manifest.symbol}(void *s, const void *a, int n, void *r) {{ {body} }}\n"
    )
    run_cc(["-shared", "-fPIC", str(source)], path, find_toolchain(NATIVE.triple))
    described(manifest, path)
    return path


@pytest.fixture(scope="module")
def local() -> Iterator[LocalRunner]:
    with contextlib.closing(LocalRunner(NATIVE, 1, time_limit=60)) as runner:
        yield runner


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return build(TINY, NATIVE).export(tmp_path / "good.so")


def test_measures_here(local: LocalRunner, library: Path) -> None:
    alone = local.measure(library, None, 3)
    assert isinstance(alone, Comparison)
    assert len(alone.seconds) == len(alone.of_peak) == 3 and alone.over_incumbent == ()
    compared = local.measure(library, library, 5, thorough=True)
    assert isinstance(compared, Comparison)
    assert len(compared.over_incumbent) == 5 and all(map(math.isfinite, compared.of_peak))
    assert local.cpu == here()["cpu"]


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        # Leaves the output as it was.
        ("return 0;", "wrong_result", r"576 of 576 outputs differ from the reference"),
        ("__builtin_trap();", "crash", r"killed by SIGILL|killed by SIGTRAP"),
        ("*(volatile int *)8 = 1; return 0;", "crash", r"killed by SIGSEGV"),
        (
            "extern void TVMFFIErrorSetRaisedFromCStr(const char *, const char *);"
            'TVMFFIErrorSetRaisedFromCStr("ValueError", "not aligned"); return -1;',
            "crash",
            r"^the compiled code refuses .*\(not aligned\)",
        ),
    ],
    ids=["idle", "trap", "segv", "refuses"],
)
def test_bad_candidates(
    local: LocalRunner, library: Path, body: str, kind: str, message: str
) -> None:
    found = local.measure(with_code(library, body), library, 3)
    assert isinstance(found, Failure) and found.kind == kind
    assert re.search(message, found.message)
    assert isinstance(local.measure(library, library, 3), Comparison)


# Pixels of int8 are shifted here, for which a bias makes up. With 16 lanes or 8, the last block has
# vectors that nothing is stored to.
WHOLE = "ic16ih6oc33oh6kh3ph1"


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_layers_of_whole_numbers(local: LocalRunner, dtype: str, tmp_path: Path) -> None:
    for name in ("native", "x86-64-v2") if NATIVE.triple.startswith("x86") else ("native",):
        good = build(f"{dtype}_{WHOLE}", name).export(tmp_path / f"{name}.so")
        found = local.measure(good, None, 2)
        assert isinstance(found, Comparison), found
        assert len(found.of_peak) == 2 and min(found.of_peak) > 0
    # Only what is stored is counted: 33 channels, and those that fill up their vector.
    m = ConvManifest.read(Path(f"{good}.json"), good.read_bytes())
    outputs = 36 * -(-33 // m.blocking.lanes) * m.blocking.lanes
    idle = local.measure(with_code(good, "return 0;"), None, 2)
    assert isinstance(idle, Failure) and idle.kind == "wrong_result"
    differing = int(idle.message.split()[0])
    assert outputs - 9 < differing <= outputs


def test_a_candidate_that_hangs(library: Path) -> None:
    with contextlib.closing(LocalRunner(NATIVE, 1, time_limit=60)) as runner:
        assert isinstance(runner.measure(library, None, 3), Comparison)
    with contextlib.closing(LocalRunner(NATIVE, 1, time_limit=5)) as runner:
        found = runner.measure(with_code(library, "for (;;) ;"), None, 3)
    assert found == Failure("timeout", "no result within 5 s")


def test_a_result_in_another_layout_is_wrong(local: LocalRunner, tmp_path: Path) -> None:
    # As many channels as rows and columns: the other layout has the same shape.
    workload = dc.ConvWorkload.parse("ic8ih8oc16oh8kh3ph1")
    good = build(workload, NATIVE, input_layout="NCHW").export(tmp_path / "good.so")
    swapped = tmp_path / "swapped.so"
    swapped.write_bytes(good.read_bytes())
    manifest = ConvManifest.read(Path(f"{good}.json"), good.read_bytes())
    manifest = replace(manifest, input_layout=ActivationLayout("NHWC"))
    described(manifest, swapped)
    found = local.measure(swapped, good, 3)
    assert isinstance(found, Failure) and found.kind == "wrong_result"
    assert isinstance(local.measure(good, None, 3), Comparison)


# --- The command --------------------------------------------------------------------------------


def command(folder: Path, *more: str, layer: str = TINY) -> list[str]:
    return ["tune", layer, "--logs", str(folder), *more]


def test_tune_and_use_what_was_found(
    folder: Path, tmp_path: Path, compiling: None, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "x.svg"
    arguments = ["--trials", "6", "--plot", str(plot), "--format", "json"]
    assert main(command(folder, *arguments)) == 0
    out, err = capsys.readouterr()
    (row,) = json.loads(out)
    assert (row["workload"], row["trials"], row["resumed"]) == (TINY, 6, 0)
    assert row["failures"] == 0 and row["problem"] is None
    assert row["seconds_p50"] > 0 and row["of_peak"] > 0 and row["over_model"] >= 1
    assert "<svg" in plot.read_text()
    log = folder / f"{NATIVE.name}.jsonl"
    assert f"log: {log}" in err and re.search(r"\[[\d.]+ s\] layer .*, trials 6, .*decided", err)
    records = log_file.read(log)
    assert [r.chosen for r in records].index(True) == len(records) - 1 >= 6
    assert {r.measured_by for r in records} == {"local"} and len({r.seed for r in records}) == 1
    assert str(records[-1].blocking) == row["blocking"]

    library = tmp_path / "tuned.so"
    assert main(["compile", TINY, "--logs", str(folder), "-o", str(library)]) == 0
    manifest = json.loads(Path(f"{library}.json").read_text())
    assert manifest["blocking_source"].startswith(f"log {log.name}: exact, measured")
    assert manifest["blocking"] == records[-1].blocking.to_dict()
    with dc.use_logs(folder):
        conv = dc.build(TINY, NATIVE)
    assert conv.blocking == records[-1].blocking
    capsys.readouterr()

    # All is known: nothing is compiled or measured again.
    content = log.read_bytes()
    assert main(command(folder, "--trials", "6")) == 0
    assert log.read_bytes() == content
    out, err = capsys.readouterr()
    assert "decided" in out and "layers of no network: " in out
    # What is printed can be called.
    hints = [words.split() for words in re.findall("tvm-directconv (.*)", err)]
    assert [hint[0] for hint in hints] == ["logs", "explain"]
    for hint, known in zip(hints, (records[-1].blocking.brief, log.name), strict=True):
        assert main(hint) == 0
        assert known in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5min", 300), ("1h30m", 5400), ("1.5h", 5400), ("2m 10s", 130)],
)
def test_times_have_units(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trails", "6"], ["did you mean '--trials'"]),
        (["--strategy", "genetic"], ["invalid choice: 'genetic'", "evolutionary"]),
        (["--trials", "0"], ["--trials", "'0' is not a whole number from 1"]),
        (["--trials", "many"], ["--trials", "'many' is not a whole number from 1"]),
        (["--time", "-3"], ["--time"]),
        (["--time", "0s"], ["--time", "'0s' is no time: expected more than 0"]),
        (["--time", "5 parsecs"], ["--time", "such as 90s, 5m or 1h30m"]),
        (["--time", "5m3"], ["--time", "'5m3' is no time"]),
        (["--time", "nan"], ["--time", "'nan' is no time"]),
        (["--timeout", "0"], ["--timeout", "expected more than 0"]),
        (["--cool-down", "-1"], ["--cool-down"]),
        (["--patience", "0"], ["--patience", "'0' is not a whole number from 1"]),
        (["--seed", "-1"], ["--seed"]),
        (["--threads", "0"], ["--threads"]),
        (["--format", "yaml"], ["--format", "'yaml'"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_wrong_arguments(
    folder: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command(folder, *arguments))
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words) and "Traceback" not in err
    assert not folder.exists()


@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        (TINY, ["--plot", "x.bmp"], r"cannot draw 'x.bmp': expected a name ending in \.svg, "),
        (TINY, ["--plot", "no/x.svg"], r"cannot draw 'no/x.svg': the folder does not exist"),
        (TINY, ["-o", "no/x.json"], r"cannot write 'no/x.json' \(No such file"),
        (TINY, ["--device", "cortex-a27"], r"unknown device 'cortex-a27' \(did you mean"),
        (
            TINY,
            ["--device", FOREIGN],
            rf"cannot measure code for {FOREIGN} here: .*Tune on the device, or .*--rpc-tracker",
        ),
        (TINY, ["--logs", "file"], r"cannot write tuning log 'file/.*expected a folder"),
        ("vgg16:conv9", [], r"no layer of vgg16 matches 'conv9'"),
        ("vgg17", [], r"vgg17.*vgg16"),
    ],
    ids=["bmp", "plot folder", "output", "device", "foreign", "log", "layer", "network"],
)
def test_what_cannot_be_tuned(
    folder: Path,
    tmp_path: Path,
    layer: str,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(command(folder, *arguments, layer=layer)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("tvm-directconv: error: ") and err.count("\n") == 1
    assert re.search(message, err)
    assert not folder.exists()


# --- Killed -------------------------------------------------------------------------------------

# A line for every trial.
KILLED = """
import signal, sys
from tvm_directconv.cli import _progress, main
# Whatever starts the tests in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
_progress._EVERY = 1
sys.exit(main(sys.argv[1:]))
"""


def processes_of(folder: Path) -> set[int]:
    """Return the processes that have something to do with a folder, by their environment."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and str(folder).encode() in (entry / "environ").read_bytes():
                found.add(int(entry.name))
    return found


def test_kill(folder: Path) -> None:
    rng = random.Random()
    log = folder / f"{NATIVE.name}.jsonl"
    budget = ("--trials", "20", "--strategy", "random")
    arguments = [sys.executable, "-c", KILLED, *command(folder, *budget, layer=LAYER.descriptor)]
    environment = {**os.environ, "TVM_DIRECTCONV_TEST": str(folder)}
    reported = 0
    # The last time with all of its group; workers have groups of their own.
    for enough, group in ((1, False), (rng.randrange(3, 8), False), (rng.randrange(8, 15), True)):
        with subprocess.Popen(
            arguments, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        ) as process:
            assert process.stderr
            for line in process.stderr:
                if match := re.search(r", trials (\d+),", line):
                    reported = int(match[1])
                    if reported >= enough:
                        break
            # Those that compile, and the one that measures.
            assert len(processes_of(folder)) >= 3
            time.sleep(rng.random() / 5)
            if group:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        assert process.returncode == -signal.SIGKILL
        records = [line.record for line in log_file.lines(log)]
        tried = {record.blocking for record in records if record}
        assert len(tried) >= reported >= enough
        # At most the last line, which was being written.
        assert None not in records[:-1]
        # Workers notice, also those that are measuring or compiling.
        end = time.monotonic() + 60
        while processes_of(folder):
            assert time.monotonic() < end, "workers are left over"
            time.sleep(0.1)
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    records = log_file.read(log)
    assert records[-1].chosen and not any(record.chosen for record in records[:-1])
    # Nothing was measured twice, but for the confirmation.
    trials = [r.blocking for r in records[:-1] if r.repeats != tune._CONFIRMING_REPEATS]
    assert len(trials) == len(set(trials)) == 20


def test_interrupt(folder: Path) -> None:
    environment = {**os.environ, "TVM_DIRECTCONV_TEST": str(folder)}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *command(folder, layer=LAYER.descriptor)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if "trials 5," in line:
                break
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert len(log_file.read(folder / f"{NATIVE.name}.jsonl")) >= 5
    end = time.monotonic() + 60
    while processes_of(folder):
        assert time.monotonic() < end, "workers are left over"
        time.sleep(0.1)
