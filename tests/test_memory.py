"""How much memory there is."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tvm_directconv import memory
from tvm_directconv.bench.report import environment


def test_it_is_some_and_less_than_there_is() -> None:
    assert 2**20 < memory.free() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_limits_count() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32));"
        "from tvm_directconv import memory; print(memory.free())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 2**32


def test_copies_take_no_more_than_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    ones = np.ones
    monkeypatch.setattr(memory, "free", lambda: 2**20)
    monkeypatch.setattr(environment.np, "ones", lambda n: sizes.append(8 * n) or ones(n))
    assert environment.copy_speed(4) > 0
    assert sizes == [2**16] * 4
