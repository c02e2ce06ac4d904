"""Processes that fork after they have computed with several threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from onnx_models import Graph, saved

from tvm_directconv.network.compile import compile_network

# TVM takes what it is told for the machine's cores: there are two, so that there is a pool.
COMMON = """
import multiprocessing, os, sys, threading, time
import numpy as np
cores = (sorted(os.sched_getaffinity(0)) * 2)[:2]
os.sched_getaffinity = lambda process: cores
import tvm_directconv as dc

workload = dc.ConvWorkload.parse("ic32ih24oc64kh3ph1")
x, weight = dc.random_tensors(workload, 0, integers=True)
conv = dc.build(workload, threads=2, blocking="model")
serial = dc.build(workload, threads=1, blocking="model")
network = dc.load_network(sys.argv[1])
images = [np.ones(port.shape, port.dtype) for port in network.manifest.inputs]

def tasks():
    return len(os.listdir("/proc/self/task"))

def right(_=None):
    found = conv(x, weight), serial(x, weight), network.run(*images)
    return all(map(np.array_equal, found, expected))

def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found == [True]

def forked(function, end):
    child = os.fork()
    if not child:
        end(0 if function() else 7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

expected = serial(x, weight), serial(x, weight), None
"""

AFTER_CALLS = """
expected = conv(x, weight), serial(x, weight), network.run(*images)
assert np.array_equal(*expected[:2]) and in_thread(right)
assert tasks() > 2
time.sleep(1)  # The pool's threads fall asleep.
assert forked(right, os._exit)
assert forked(right, sys.exit)
assert forked(lambda: True, sys.exit)
assert forked(lambda: in_thread(right) and right(), sys.exit)
assert forked(lambda: right() and tasks() > 2, sys.exit)
assert forked(lambda: forked(right, sys.exit) and right() and forked(right, sys.exit), sys.exit)
assert in_thread(lambda: forked(right, os._exit))
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(right, range(4)) == [True] * 4
assert right()
"""

BEFORE_CALLS = """
def same():
    return np.array_equal(conv(x, weight), serial(x, weight)) and network.run(*images) is not None

assert forked(same, sys.exit)
assert same()
assert forked(same, sys.exit)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fork")
    g = Graph(x=(1, 32, 24, 24))
    model = saved(g.model(g.node("Relu", g.conv("x", 64, 32, 3, 3, pads=[1] * 4))), folder)
    compile_network(model, folder / "n.so", threads=2, blocking="model")
    return folder / "n.so"


@pytest.mark.parametrize("script", [AFTER_CALLS, BEFORE_CALLS], ids=["after calls", "before calls"])
def test_children_compute_and_end(library: Path, script: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", COMMON + script, str(library)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            _, error = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            pytest.fail(f"a process hangs: {process.communicate()[1]}")
    assert process.returncode == 0, error
