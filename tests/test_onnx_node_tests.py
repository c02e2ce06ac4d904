"""The tests that ONNX has for its operators: docs/operators.md is what becomes of them."""

import os
import re
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_node_cases import CRASHED, REFUSED, RIGHT, TABLE, WRONG, Case, cases, outcomes, rows

PARTS = 16


def test_the_table_counts_its_rows() -> None:
    lines = TABLE.read_text("utf-8").splitlines()
    counts = {}
    listed: Counter[str] = Counter()
    for line in lines:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 2 and cells[1].isdigit():
            counts[cells[0]] = int(cells[1])
        if len(cells) == 4 and cells[0].startswith("`"):
            listed[cells[1]] += len(cells[3].split())
    assert counts == {heading: listed[heading] for heading in counts}
    assert counts["wrong"] == counts["crashed"] == 0
    assert sum(counts.values()) >= 1800 and counts["right"] >= 1000


@pytest.mark.parametrize("part", range(PARTS))
def test_the_table_is_what_is_found(part: int) -> None:
    operators = sorted({case.operator for case in cases().values()})[part::PARTS]
    given = [case for case in cases().values() if case.operator in operators]
    found = dict(outcomes(given))
    assert found.keys() == {case.name for case in given}
    failed = {name: o.reason for name, o in found.items() if o.kind in (WRONG, CRASHED)}
    assert not failed
    text = TABLE.read_text("utf-8")
    if f"that ONNX {onnx.__version__} has" not in text:
        return  # Another version has other tests.
    of_part = re.compile(rf"\| `({'|'.join(map(re.escape, operators))})` \|")
    assert rows(found) == [line for line in text.splitlines() if of_part.match(line)]


# --- What runs them ---------------------------------------------------------------------------


class Killer:
    """An input that ends the process which reads it."""

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        os._exit(3)


class Sleeper:
    """An input that nobody gets."""

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        time.sleep(600)
        raise AssertionError


def found(*given: Case, seconds: float = 60.0) -> dict[str, tuple[str, str]]:
    return {name: (o.kind, o.reason) for name, o in outcomes(given, seconds)}


def test_wrong_values_shapes_and_types_are_noticed() -> None:
    case = cases()["abs"]
    (y,) = case.outputs
    bent = y.copy()
    bent.flat[3] += 0.01
    told = found(
        case,
        replace(case, name="value", outputs=[bent]),
        replace(case, name="nan", outputs=[np.where(y == y.max(), np.nan, y).astype(y.dtype)]),
        replace(case, name="shape", outputs=[y.reshape(-1)]),
        replace(case, name="type", outputs=[y.astype(np.float64)]),
        replace(case, name="count", outputs=[y, y]),
    )
    assert told.pop("abs") == (RIGHT, "")
    assert {kind for kind, _ in told.values()} == {WRONG} and len(told) == 5
    assert "1 / 60" in told["value"][1] and "float64" in told["type"][1]


def test_a_crash_and_a_hang_cost_one_case() -> None:
    first, last = cases()["abs"], cases()["neg"]
    killer = replace(first, name="killer", inputs=[Killer()])
    sleeper = replace(first, name="sleeper", inputs=[Sleeper()])
    assert found(first, killer, sleeper, last, seconds=10) == {
        "abs": (RIGHT, ""),
        "killer": (CRASHED, "ends the process"),
        "sleeper": (CRASHED, "hangs"),
        "neg": (RIGHT, ""),
    }


def test_refusals_name_the_node() -> None:
    ((kind, reason),) = found(cases()["ai_onnx_ml_binarizer"]).values()
    assert kind == REFUSED and "ai.onnx.ml.Binarizer (#0)" in reason
