"""TVM and LLVM 22 read beside an array where an index has remainders by two numbers.

It needs Apache TVM and NumPy only, and a processor to run it. Exit status 1 if an element is wrong.

LLVM's part is ``llvm_remainders.ll``. There `h % 4` becomes a vector of neighbouring elements, as
if it were `h`, and nothing tests the condition under which that is so.
"""

import sys

import numpy as np
import tvm
from tvm import IRModule, te, tirx

ROWS, COLUMNS = 30, 64


def wrong_elements(options: dict[str, str]) -> int:
    """Return how many elements of ``y[c, h] = x[c % 3 + h % 4]`` are wrong."""
    x = te.placeholder((6,), name="x")
    y = te.compute((ROWS, COLUMNS), lambda c, h: x[c % 3 + h % 4], name="y")
    target = tvm.target.Target({"kind": "llvm", **options})
    function = te.create_prim_func([x, y]).with_attr({"global_symbol": "f", "target": target})
    compiled = tirx.build(IRModule({"f": function}), target)
    given = np.arange(6, dtype=np.float32)
    found = tvm.runtime.tensor(np.zeros((ROWS, COLUMNS), np.float32))
    compiled["f"](tvm.runtime.tensor(given), found)
    c, h = np.indices((ROWS, COLUMNS))
    return int((found.numpy() != given[c % 3 + h % 4]).sum())


def main() -> int:
    """Try a processor: this one's architecture, or an mcpu of it."""
    count = wrong_elements({"mcpu": sys.argv[1]} if sys.argv[1:] else {})
    print(f"{count} of {ROWS * COLUMNS} elements are wrong")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
