"""The comparison of whole networks says what was found; what is measured stands elsewhere."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tvm_directconv.bench.rivals.contestants import NETWORK_CONTESTANTS
from tvm_directconv.bench.rivals.rounds import Result

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "_compare_networks.py"
Script = Callable[..., tuple[int, str, str]]


def result(contestant: Any, **values: Any) -> Result:
    """Return what was found of a contestant: in int8, or of others what they took."""
    found = {"peak_bytes": 5_000_000, "resident_bytes": 4_000_000, "precision": "u8"}
    made = Result(contestant, 1, found=found, max_error=0.05, rms_error=0.0225, agreement=0.875)
    for name, value in ({"seconds": [2e-3, 4e-3]} | values).items():
        setattr(made, name, value)
    return made


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Script:
    """Return what runs the script, where nothing is measured but something was found."""
    asked: list[tuple[str, str]] = []

    def stand_in(
        network: str, contestants: Any, threads: Any, repeats: int, dtype: str, say: Any
    ) -> list[Result]:
        asked.append((network, dtype))
        by_name = {each.name: each for each in contestants}
        assert [*by_name] == [each.name for each in NETWORK_CONTESTANTS]
        wrong = result(by_name["onnxruntime"], rms_error=float("inf"), agreement=0.0)
        wrong.fail("wrong", "the error is inf; expected at most 0.3")
        missing = result(by_name["PyTorch"], rms_error=None, agreement=None, max_error=None)
        missing.fail("unsupported", f"PyTorch computes no networks in {dtype}")
        exact = {"found": {"peak_bytes": 1, "resident_bytes": 1}, "rms_error": 2.5e-7}
        return [
            result(by_name["ours"], seconds=[1e-3, 1e-3]),
            wrong,
            missing,
            result(by_name["onnxruntime, defaults"], agreement=1.0, **exact),
        ]

    def run(*words: str) -> tuple[int, str, str]:
        loaded = runpy.run_path(str(SCRIPT))
        monkeypatch.setitem(loaded["main"].__globals__, "network_results", stand_in)
        monkeypatch.setattr(sys, "argv", ["compare_networks", *words])
        try:
            status = loaded["main"]()
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err

    run.asked = asked  # type: ignore[attr-defined]
    return run


def test_accuracy_stands_beside_time(script: Script) -> None:
    status, out, _ = script("squeezenet", "--dtype", "int8", "--format", "json")
    ours, wrong, missing, by_itself = json.loads(out)
    assert status == 0 and script.asked == [("squeezenet", "int8")]  # type: ignore[attr-defined]
    assert {row["dtype"] for row in (ours, wrong, missing, by_itself)} == {"int8"}
    assert (ours["precision"], ours["rms_error"], ours["agreement"]) == ("u8", 0.0225, 0.875)
    assert (wrong["wrong"], wrong["rms_error"], wrong["seconds_p50"]) == (True, None, None)
    assert missing["not_here"] == "PyTorch computes no networks in int8"
    assert missing["wrong"] is missing["peak_bytes"] is None
    # So small an error says that it was not computed in what is compared.
    assert (by_itself["precision"], by_itself["over_ours_p50"]) == ("float32", pytest.approx(3))
    assert by_itself["contestant"] == "onnxruntime, defaults"


def test_tables_name_types_and_what_is_wrong(script: Script) -> None:
    status, out, _ = script("squeezenet", "--format", "markdown", "--dtype", "bf16")
    assert status == 0
    table, said = out.split("\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    columns = ("network", "type", "contestant", "computed in", "error", "agreement")
    places = [rows[0].index(column) for column in columns]
    found = [[row[place] for place in places] for row in rows[2:]]
    version = found[1][2].split()[-1]
    assert found[0][1::2] == ["bf16", "u8", "7 of 8"]
    assert found[1] == ["squeezenet", "bf16", f"onnxruntime {version}", "u8", "inf WRONG", "0 of 8"]
    assert found[2][2:] == [f"onnxruntime, defaults {version}", "float32", "2.5e-07", "8 of 8"]
    assert "- PyTorch is not here (squeezenet): PyTorch computes no networks in bf16" in said
    assert "- onnxruntime, defaults takes 3.000 times as long as ours" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "int9"], "networks are not compared in 'int9': expected one of float32, "),
        (["--dtype", "fp16"], "'fp16': expected one of float32, bf16, int8"),
        (["--dtype", "int8,bf16"], "in 'int8,bf16'"),
        (["--dtype"], "expected one argument"),
        (["lenet", "--dtype", "int8"], "there is no network 'lenet': expected some of alexnet, "),
    ],
)
def test_mistakes_are_named(script: Script, words: list[str], message: str) -> None:
    status, out, err = script(*words)
    assert (status, out) == (2, "") and message in err.splitlines()[-1]
    assert script.asked == []  # type: ignore[attr-defined]


def test_float32_is_the_default(script: Script) -> None:
    assert script("alexnet", "squeezenet")[0] == 0
    assert script.asked == [  # type: ignore[attr-defined]
        ("alexnet", "float32"),
        ("squeezenet", "float32"),
    ]
