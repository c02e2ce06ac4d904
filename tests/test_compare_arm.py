"""scripts/compare_arm: what it makes of counts, what it keeps, and what it refuses."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tvm_directconv import cache
from tvm_directconv.bench.rivals.base import Contestant, Failed, NotHere, Source
from tvm_directconv.cli._output import render
from tvm_directconv.deploy.counter import Cached, Executed
from tvm_directconv.errors import ToolchainError

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "_compare_arm.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("compare_arm", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_arm"] = module
    sys.path.insert(0, str(SCRIPT.parent))
    spec.loader.exec_module(module)
    sys.path.remove(str(SCRIPT.parent))
    yield module
    del sys.modules["compare_arm"]


def executed(**counts: int) -> Executed:
    names = [name for name in Executed.__annotations__ if name != "caches"]
    none = dict.fromkeys(names, 0)
    levels = (Cached(40_000, 10_000), Cached(30_000, 5_000), Cached(20_000, 4_000))
    return Executed(**{**none, **counts}, caches=levels)


# --- Cycles and milliseconds


@pytest.mark.parametrize(
    ("device", "counts", "cycles"),
    [
        # Each of these waits for one kind of port.
        ("cortex-a72", {"fma": 300}, 300),
        ("cortex-a76", {"fma": 300}, 150),
        ("cortex-a72", {"fma": 100, "floating": 50}, 150),
        ("cortex-a72", {"multiply": 100, "vector": 20}, 100),
        ("cortex-a72", {"multiply": 100, "vector": 200}, 150),
        ("cortex-a72", {"fma": 10, "multiply": 100, "vector": 200}, 160),
        ("cortex-a76", {"multiply": 100, "vector": 20}, 100),
        ("cortex-a76", {"dot": 100, "vector": 20}, 60),
        # One instruction may load several registers.
        ("cortex-a72", {"load": 100, "loaded": 400}, 400),
        ("cortex-a76", {"load": 100, "loaded": 400}, 200),
        ("cortex-a72", {"load": 100, "loaded": 100, "prefetch": 30}, 130),
        ("cortex-a72", {"store": 100, "stored": 200}, 200),
        ("cortex-a76", {"load": 10, "loaded": 10, "store": 100, "stored": 200}, 105),
        ("cortex-a72", {"integer": 290, "branch": 10}, 100),
        ("cortex-a76", {"integer": 290, "branch": 10}, 75),
    ],
)
def test_cycles(script: ModuleType, device: str, counts: dict[str, int], cycles: float) -> None:
    assert script.CORES[device].cycles(executed(**counts)) == cycles


def test_a_forecast_is_cycles_and_memory(script: ModuleType) -> None:
    assert script.forecast_ms("cortex-a72", 1.8e6, 0) == pytest.approx(1)
    assert script.forecast_ms("cortex-a72", 1.8e6, 9e6) == pytest.approx(3)
    assert script.forecast_ms("cortex-a76", 2.4e6, 20e6) == pytest.approx(3)


def test_published_times_are_of_all_networks(script: ModuleType) -> None:
    for (device, dtype), times in script.PUBLISHED.items():
        assert dtype in script.CORES[device].types
        assert len(times) == len(script.NETWORKS)


# --- Rows


@pytest.fixture
def network(script: ModuleType, tmp_path: Path) -> Any:
    reference = np.linspace(-1, 1, 1000, dtype=np.float32)[np.newaxis]
    return SimpleNamespace(name="squeezenet", input=tmp_path / "x.npy", reference=reference)


def compared(
    script: ModuleType, network: Any, monkeypatch: pytest.MonkeyPatch, rivals: list[str]
) -> list[dict[str, Any]]:
    """Compare with counts that are made up: ncnn's are half of ours, and MNN is not here."""

    def counted(_path: Path, _device: str, contestant: Contestant, *_: object) -> Any:
        if contestant.name == "MNN":
            raise NotHere("no such package")
        if contestant.name == "XNNPACK":
            raise Failed("it crashes")
        ours = isinstance(contestant, script.Compiled)
        output = network.reference + (0 if ours else np.float32(0.25))
        counts = {"fma": 2_000_000 if ours else 1_000_000, "integer": 100}
        return script.Counted(f"{contestant.name} 1.0", executed(**counts), output)

    monkeypatch.setattr(script, "compiled", lambda *_: (Path("ours.so"), script.Compiled()))
    monkeypatch.setattr(script, "converted", lambda *_: Path("rival"))
    monkeypatch.setattr(script, "counted", counted)
    found: list[dict[str, Any]] = script.compared(network, "cortex-a72", "float32", rivals)
    return found


def test_rows(script: ModuleType, network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, ncnn = compared(script, network, monkeypatch, ["ncnn"])
    assert (ours["contestant"], ours["instructions"], ours["cycles"]) == (
        "ours",
        2_000_100,
        2_000_000,
    )
    assert (ours["instructions_over_ours"], ours["cycles_over_ours"]) == (1, 1)
    assert (ours["max_error"], ours["same_class"], ours["published_ms"]) == (0, True, None)
    assert ncnn["instructions_over_ours"] == pytest.approx(1_000_100 / 2_000_100)
    assert (ncnn["cycles_over_ours"], ncnn["fma_instructions"]) == (0.5, 1_000_000)
    assert (ncnn["l1_missed"], ncnn["l2_missed"]) == (40_000, 30_000)
    # Of the last level, in lines.
    assert (ncnn["memory_read_bytes"], ncnn["memory_written_bytes"]) == (1_280_000, 256_000)
    milliseconds = 1e3 * (1e6 / 1.8e9 + 1_536_000 / 4.5e9)
    assert ncnn["forecast_ms"] == pytest.approx(milliseconds)
    assert (ncnn["published_ms"], ncnn["max_error"]) == (73.35, pytest.approx(0.25))
    assert ncnn["forecast_error"] == pytest.approx(milliseconds / 73.35 - 1)


def test_nobody_is_left_out_without_a_reason(
    script: ModuleType, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = compared(script, network, monkeypatch, list(script.RIVALS))
    assert [row["contestant"] for row in rows] == ["ours", *script.RIVALS]
    missing = {row["contestant"]: row["not_here"] for row in rows if row["not_here"]}
    assert missing == {"XNNPACK": "it crashes", "MNN": "no such package"}
    assert all((row["instructions"] is None) == bool(row["not_here"]) for row in rows)
    assert len({tuple(row) for row in rows}) == 1
    lines = script.summaries(rows)
    assert "MNN is not here (squeezenet cortex-a72 float32): no such package" in lines
    assert lines[0].startswith("Raspberry Pi 4: forecasts of ncnn are -")
    assert json.loads(render(rows, "json")) == rows


def test_the_table(script: ModuleType, network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = compared(script, network, monkeypatch, ["ncnn"])
    text = render(rows, "markdown", [script.for_eyes(row) for row in rows])
    ours, ncnn = ([c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()[2:])
    assert ours[:6] == ["squeezenet", "cortex-a72", "float32", "ours 1.0", "2.0", "1.00"]
    assert ncnn[-3:] == ["73.3 (-99%)", "2.5e-01", "yes"]


def test_wrong_outputs_are_seen(script: ModuleType, network: Any) -> None:
    for output, shown in (
        (network.reference[:, ::-1], "2.0e+00"),
        (network.reference * np.inf, "inf"),
    ):
        found = script.Counted("ncnn 1.0", executed(fma=1), output)
        row = script.row(network, "cortex-a72", "int8", "ncnn", found, None, None)
        assert not row["same_class"]
        assert script.for_eyes(row)["max error"] == shown


def test_ours_has_to_be_here(
    script: ModuleType, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise Failed("it crashes")

    monkeypatch.setattr(script, "compiled", crash)
    with pytest.raises(Failed, match="it crashes"):
        script.compared(network, "cortex-a72", "float32", [])


# --- What is kept


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_what_fails_is_not_kept(script: ModuleType, own_cache: Path) -> None:
    path = cache.folder("arm") / "folder"

    def fail(draft: Path) -> None:
        (draft / "half").touch()
        raise NotHere("the network is gone")

    with pytest.raises(NotHere, match="the network is gone"):
        script.made(path, fail)
    assert [*path.parent.iterdir()] == []
    assert script.made(path, lambda draft: (draft / "whole").touch()) == path
    assert script.made(path, fail) == path
    assert [each.name for each in path.iterdir()] == ["whole"]


@dataclass(frozen=True, kw_only=True)
class Rival(Contestant):
    """It writes down what it is given."""

    name: str = "rival"

    def convert(self, source: Source, threads: int) -> Path:
        path = Path(source.onnx).with_suffix(".rival")
        path.write_bytes(Path(source.onnx).read_bytes() + Path(source.samples).read_bytes())
        runs.append(source.dtype)
        return path


runs: list[str] = []


def test_converted_networks_are_kept(script: ModuleType, own_cache: Path) -> None:
    files = {name: own_cache / name for name in ("float32.onnx", "int8.onnx", "samples.npy")}
    for name, file in files.items():
        file.write_text(name)
    float32, int8, samples = files.values()
    network = SimpleNamespace(
        name="squeezenet", float32=float32, samples=samples, onnx=lambda _: int8
    )
    runs.clear()
    path = script.converted(network, "int8", script.Entry(Rival(), "int8"))
    assert path.read_text() == "int8.onnxsamples.npy"
    assert script.converted(network, "int8", script.Entry(Rival(), "int8")) == path
    assert runs == ["int8"]
    int8.write_text("other weights")
    assert script.converted(network, "int8", script.Entry(Rival(), "int8")) != path
    assert runs == ["int8", "int8"]


# --- What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["squeezenett"], "there is no network 'squeezenett': .*squeezenet"),
        (["--device", "cortex-a53"], r"--device: invalid choice: 'cortex-a53' \(choose from"),
        (["--dtype", "float16"], "--dtype: invalid choice: 'float16'.*fp16"),
        (["--rival", "ncn"], "--rival: invalid choice: 'ncn'.*ncnn"),
        (
            ["--device", "cortex-a72", "--dtype", "fp16"],
            "cortex-a72 cannot compute in fp16: expected cortex-a72 with float32, int8; "
            "cortex-a76 with float32, fp16, int8",
        ),
    ],
)
def test_typos(
    options: list[str],
    message: str,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare_arm", *options])
    with pytest.raises(SystemExit):
        script.main()
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(message, said), said


def test_a_system_without_apt(
    script: ModuleType, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.system.cache_clear()
    monkeypatch.setattr(script.shutil, "which", lambda _: None)
    with pytest.raises(ToolchainError, match="downloaded with apt-get, which was not found"):
        script.system()


def test_a_package_that_cannot_be_had(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        NotHere, match=r"with pip has failed: .*No matching .*Expected a connection"
    ):
        script.pip(["numpy"], tmp_path, "--no-index", "--isolated", "--find-links=/nowhere")


def test_the_script_loads_by_itself() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], check=True, capture_output=True, text=True
    )
    assert "--rival" in done.stdout
