"""Write docs/operators.md: every test that ONNX has for its operators, and what became of it."""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from onnx_node_cases import TABLE, Case, Outcome, cases, outcomes, table  # noqa: E402


def main() -> None:
    found: dict[str, Outcome] = {}

    def run(some: Sequence[Case]) -> None:
        for name, outcome in outcomes(some):
            found[name] = outcome
            print(f"\r{len(found)} of {len(cases())}", end="", file=sys.stderr)

    workers = os.cpu_count() or 1
    given = list(cases().values())
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, [given[first::workers] for first in range(workers)]))
    print(file=sys.stderr)
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
