"""What `explain` predicts of several convolutions and of models: time, memory, and how sure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from onnx_models import Graph, saved

from tvm_directconv import ConvWorkload, compile_network, device, use_logs, workloads
from tvm_directconv.candidates import candidates, choose
from tvm_directconv.case import Case, default_input_layout
from tvm_directconv.errors import BlockingError
from tvm_directconv.logs.log_file import append
from tvm_directconv.logs.record import Record
from tvm_directconv.model import estimate
from tvm_directconv.prediction import Experience, experience, plan, predict
from tvm_directconv.tiling import Tiling

SMALL, OTHER = "ic16ih9oc16oh9kh3ph1", "ic8ih4oc8oh4kh1"


def record(made_for: str, of_peak: float | None, **changes: Any) -> Record:
    """Make the record of a layer that was measured."""
    workload = ConvWorkload.parse(SMALL)
    values: dict[str, Any] = {
        "workload": workload,
        "device": made_for,
        "threads": 1,
        "input_layout": str(default_input_layout(workload, device(made_for))),
        "blocking": choose(Case.of(workload, device(made_for))),
        "status": "ok",
        "seconds_p20": 1e-4,
        "seconds_p50": 1e-4,
        "seconds_p80": 1e-4,
        "of_peak": of_peak,
        "over_model": 1.0,
        "repeats": 3,
        "chosen": True,
        "measured_by": "local",
        "cpu": "x 1/2",
        "cpu_name": "x",
        "cpu_device": made_for,
        "date": "2026-11-22T13:00:00Z",
        "seed": 0,
        "versions": {"tvm-directconv": "0.1.0", "apache-tvm": "0.27.0.post1", "llvm": "22"},
    }
    return Record(**values | changes)


def case(name: str) -> tuple[ConvWorkload, Any]:
    return ConvWorkload.parse(SMALL), device(name)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    g = Graph(x=(1, 3, 13, 12))
    y = g.node("Relu", g.conv("x", 24, 3, 3, 3, pads=[1] * 4))
    for _ in range(2):  # Two equal ones.
        y = g.conv(y, 24, 24, 3, 3, pads=[1] * 4)
    return saved(g.model(g.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])), tmp_path)


def test_cycles_are_the_models() -> None:
    found = predict(workloads([SMALL, OTHER]), "cortex-a72", threads=2)
    for prediction in found:
        workload, target = prediction.workload, device("cortex-a72")
        chosen = choose(Case.of(workload, target, 2))
        cost = estimate(Tiling(Case.of(workload, target, 2), chosen))
        assert (prediction.blocking, prediction.blocking_source) == (chosen, "model")
        assert (prediction.cycles, prediction.of_peak) == (cost.cycles, cost.of_peak)
        assert prediction.milliseconds(2.0) == cost.cycles / 2e6
    assert [prediction.im2col_bytes for prediction in found] == [4 * 16 * 9 * 81, 0]


def test_bytes_are_those_of_packed_arrays() -> None:
    (found,) = predict([ConvWorkload.parse("ic3ih6oc5oh6kh3ph1")], "cortex-a72")
    assert found.weight_bytes == 4 * 3 * 9 * 8  # Five channels fill two vectors of four.
    assert found.activation_bytes == 4 * (3 + 8) * 36


def test_what_logs_know_better_is_predicted(tmp_path: Path) -> None:
    workload, target = case("cortex-a72")
    layout = default_input_layout(workload, target)
    liked = choose(Case.of(workload, target))
    other = next(b for b in candidates(Case.of(workload, target, 1, layout)) if b != liked)
    append(record("cortex-a72", None, blocking=other, over_model=1.2), tmp_path)
    with use_logs(tmp_path):
        (found,) = predict(workloads(SMALL), "cortex-a72")
    assert found.blocking == other and found.blocking_source.startswith("log cortex-a72.jsonl")


def test_threads_that_are_no_number_are_refused() -> None:
    with pytest.raises(BlockingError, match="threads is 0"):
        predict([], "cortex-a72", 0)


def test_a_model_is_planned_as_it_is_compiled(model: Path) -> None:
    found = plan(model, "native", threads=2)
    manifest = compile_network(model, model.with_suffix(".so"), threads=2)
    assert (found.memory, found.im2col_bytes) == (manifest.memory(), manifest.im2col_bytes)
    assert manifest.im2col_bytes == 4 * 24 * 9 * 13 * 12
    assert found.others["max_pool2d"] == 1
    convolutions = sum(bool(layer.workload) for layer in manifest.layers)
    assert sum(found.others.values()) + convolutions == len(manifest.layers)


def test_experience_is_measured_over_predicted_time(tmp_path: Path) -> None:
    target = device("haswell")
    counted = estimate(Tiling(Case.of(SMALL, target), choose(Case.of(SMALL, target))))
    with use_logs(tmp_path):
        assert experience(target) is None
        # A layer that reaches twice the part of the peak takes half of the time.
        append(record("haswell", min(1.0, counted.of_peak) / 2), tmp_path)
        ratio = counted.of_peak / (min(1.0, counted.of_peak) / 2)
        expected = Experience(("haswell",), 1, *[pytest.approx(ratio)] * 3)
        assert experience(target) == expected
        assert experience(device("cortex-a72")) == expected  # There is nothing nearer.
        for changes in ({"chosen": False}, {"measured_by": "llvm-mca", "cpu": None}):
            append(record("haswell", 0.01, **changes), tmp_path)
        assert experience(target) == expected


# --- The command --------------------------------------------------------------------------------


def everything(run: Command, *words: str) -> dict[str, Any]:
    status, out, err = run("explain", *words, "--format", "json")
    assert (status, err) == (0, "")
    return json.loads(out)


def test_a_model_is_predicted(run: Command, model: Path) -> None:
    found = everything(run, str(model), "--device", "cortex-a72")
    ghz = device("cortex-a72").ghz
    assert (found["device"], found["threads"], found["ghz"]) == ("cortex-a72", 1, ghz)
    assert [row["count"] for row in found["layers"]] == [1, 2]
    times = [row["count"] * row["milliseconds"] for row in found["layers"]]
    assert found["total"]["milliseconds"] == pytest.approx(sum(times))
    assert [row["share"] for row in found["layers"]] == pytest.approx(np.array(times) / sum(times))
    assert found["models"][str(model)]["memory"] == plan(model, "cortex-a72").memory
    assert found["total"]["convolutions"] == 3

    status, out, _ = run("explain", str(model), "--device", "cortex-a72")
    assert status == 0
    assert f"{ghz} GHz (nominal, Raspberry Pi 4)" in out
    assert f"Predicted: {found['total']['milliseconds']:.4g} ms for 3 convolutions" in out
    assert f"Memory of {model}: weights" in out and "1 x max_pool2d" in out
    assert all(words in out for words in found["left_out"])


def test_the_clock_can_be_given(run: Command) -> None:
    words = (SMALL, OTHER, "--device", "cortex-a72")
    slow, fast = (everything(run, *words, "--ghz", ghz) for ghz in ("0.5", "2"))
    assert slow["total"]["milliseconds"] == pytest.approx(4 * fast["total"]["milliseconds"])
    assert slow["clock"] == "as given"
    single = run("explain", SMALL, "--device", "cortex-a72", "--ghz", "0.5")[1]
    assert f"{slow['layers'][0]['milliseconds']:.4g} ms at 0.5 GHz" in single


def test_without_a_clock_there_are_cycles(run: Command) -> None:
    words = (SMALL, OTHER, "--device", "x86-64-v3")
    found = everything(run, *words)
    assert found["ghz"] is found["total"]["milliseconds"] is None
    out = run("explain", *words)[1]
    assert "give one with --ghz" in out and "Mcycles" in out and " ms " not in out


def test_the_clock_of_this_machine_is_measured(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvm_directconv.bench.peak.Clock.__call__", lambda clock: 3.25)
    found = everything(run, SMALL, OTHER)
    assert found["ghz"] == 3.25 and found["clock"].startswith("measured")


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "fast"])
def test_clocks_that_are_none_are_refused(run: Command, text: str) -> None:
    status, _, err = run("explain", SMALL, f"--ghz={text}")
    assert status == 2 and f"{text!r} is not a number above 0" in err


def test_it_is_said_how_far_off_the_model_is(run: Command, tmp_path: Path) -> None:
    words = ("explain", SMALL, OTHER, "--device", "haswell", "--logs", str(tmp_path))
    assert "nothing was measured yet" in run(*words)[1]
    append(record("x86-64-v3", 0.5), tmp_path)
    assert "1 layers measured on x86-64-v3 (none on haswell)" in run(*words)[1]
