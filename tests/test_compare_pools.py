"""The comparison of thread pools runs; what it measures is not looked at."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "_compare_pools.py"
LAYER = "ic16ih9oc16oh9kh3ph1"


def compare(*options: str) -> str:
    words = [sys.executable, str(SCRIPT), LAYER, "--repeat", "1", "--seconds", "0.01", *options]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def test_rows() -> None:
    *loops, layer = json.loads(compare("--format", "json"))
    assert [row["work"] for row in (loops[0], loops[-1])] == [
        "empty loop",
        "loop of 10 us, 3000 us apart",
    ]
    assert layer["work"] == LAYER
    for row in (*loops, layer):
        assert all(row[f"{pool}_seconds"] > 0 for pool in ("ours", "pinned", "tvm"))
        assert row["tvm_over_ours_p50"] > 0
        assert (row["alone_seconds"] is None) == (row is not layer)
    assert layer["ours_efficiency"] > 0


def test_columns() -> None:
    table = compare("--format", "markdown").splitlines()
    assert [cell.strip() for cell in table[0].split("|")[1:-1]] == [
        "work",
        "one thread us",
        "ours us",
        "pinned us",
        "TVM us",
        "efficiency",
        "pinned",
        "TVM",
        "TVM over ours",
        "p20 to p80",
    ]
    assert table[-1].endswith(" times as long with TVM's threads")
