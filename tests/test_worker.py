"""The worker: results come back, and whatever happens to the process costs one call."""

import contextlib
import json
import operator
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tvm_directconv import Blocking
from tvm_directconv.bench.compare import Failure
from tvm_directconv.errors import BlockingError
from tvm_directconv.tuning.worker import Worker
from tvm_directconv.workload import ConvWorkload

# Functions are called by name in a process that knows nothing of this file: those of the standard
# library, and of the package.
LIMIT = 60.0

# Sleeps and keeps everything open, in the group of whoever starts it.
SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Worker]:
    """Return a worker that starts once; tests leave it usable."""
    with contextlib.closing(Worker()) as worker:
        yield worker


def alive(process: int) -> bool:
    """Return whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_results(shared: Worker) -> None:
    assert shared.call(LIMIT, operator.add, 2, 3) == 5
    process = shared.call(LIMIT, os.getpid)
    assert process != os.getpid() and process == shared.call(LIMIT, os.getpid)
    assert shared.call(LIMIT, ConvWorkload.parse, "ic8ih6oc8kh3") == ConvWorkload.parse(
        "ic8ih6oc8kh3"
    )


def test_a_failure_as_a_result(shared: Worker) -> None:
    assert shared.call(LIMIT, Failure, "rejected", "no") == Failure("rejected", "no")


def test_exceptions_propagate(shared: Worker) -> None:
    process = shared.call(LIMIT, os.getpid)
    with pytest.raises(ZeroDivisionError):
        shared.call(LIMIT, operator.truediv, 1, 0)
    with pytest.raises(BlockingError, match="unknown knob 'nonsense'"):
        shared.call(LIMIT, Blocking.from_dict, {"nonsense": 1})
    assert shared.call(LIMIT, os.getpid) == process


def test_big_messages(shared: Worker) -> None:
    # Far more than a pipe holds, both ways.
    data = os.urandom(20_000_000)
    assert shared.call(LIMIT, operator.add, data, b"more") == data + b"more"


def test_what_is_printed_and_read_does_not_get_between(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with contextlib.closing(Worker()) as worker:  # Started while output is captured.
        assert worker.call(LIMIT, exec, "print('Hello', flush=True)") is None
        assert worker.call(LIMIT, os.system, "echo world; cat") == 0
        assert worker.call(LIMIT, os.write, 1, b"!\n") == 2
        assert worker.call(LIMIT, eval, "__import__('sys').stdin.read()") == ""
        assert worker.call(LIMIT, operator.add, 1, 1) == 2
    out, err = capfd.readouterr()
    assert out == "" and err == "Hello\nworld\n!\n"


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (signal.raise_signal, (signal.SIGSEGV,), r"killed by SIGSEGV \(Segmentation fault\)"),
        (os.abort, (), r"killed by SIGABRT"),
        (signal.raise_signal, (signal.SIGILL,), r"killed by SIGILL"),
        (os._exit, (0,), r"the process ended with status 0"),
        (os._exit, (7,), r"the process ended with status 7"),
        (sys.exit, (3,), r"the process ended with status 3"),
    ],
    ids=["segv", "abort", "ill", "exit0", "exit7", "sys.exit"],
)
def test_crashes(
    shared: Worker, function: Callable[..., object], arguments: tuple[object, ...], message: str
) -> None:
    found = shared.call(LIMIT, function, *arguments)
    assert isinstance(found, Failure) and found.kind == "crash"
    assert re.match(message, found.message)
    # As if nothing had happened.
    assert shared.call(LIMIT, operator.add, 2, 3) == 5


def test_time_limit(shared: Worker) -> None:
    process = shared.call(LIMIT, os.getpid)
    begin = time.monotonic()
    assert shared.call(0.3, time.sleep, 600) == Failure("timeout", "no result within 0.3 s")
    assert time.monotonic() - begin < 30 and not alive(process)
    assert shared.call(LIMIT, operator.add, 2, 3) == 5


def test_an_answer_that_begins_and_never_ends(shared: Worker) -> None:
    code = "import os\nfor i in range(3, 9):\n try: os.write(i, b'x')\n except OSError: pass\n"
    found = shared.call(1.0, exec, f"{code}import time; time.sleep(600)")
    assert found == Failure("timeout", "no result within 1 s")
    assert shared.call(LIMIT, operator.add, 2, 3) == 5


def test_what_cannot_be_sent(shared: Worker) -> None:
    with pytest.raises(Exception, match="pickle"):
        shared.call(LIMIT, lambda: 1)
    # Cannot come back; the process ends over it.
    found = shared.call(LIMIT, eval, "lambda: 1")
    assert isinstance(found, Failure) and found.kind == "crash"
    assert shared.call(LIMIT, operator.add, 2, 3) == 5


@pytest.mark.parametrize("end", ["close", "crash", "timeout"])
def test_its_children_end_with_it(end: str) -> None:
    with contextlib.closing(Worker()) as worker:
        start = f"__import__('subprocess').Popen({SLEEPER!r}).pid"
        child = worker.call(LIMIT, eval, start)
        assert isinstance(child, int) and alive(child)
        if end == "close":
            worker.close()
        elif end == "crash":
            worker.call(LIMIT, os._exit, 1)
        else:
            worker.call(0.1, time.sleep, 600)
        until(lambda: not alive(child))


def test_it_can_be_closed_twice_and_used_again() -> None:
    worker = Worker()
    worker.close()
    assert worker.call(LIMIT, operator.add, 2, 3) == 5
    worker.close()
    worker.close()
    assert worker.call(LIMIT, operator.add, 2, 3) == 5
    worker.close()


def test_a_call_that_is_interrupted_leaves_no_answer_behind(shared: Worker) -> None:
    # Another thread of this process would be no test: Ctrl-C comes to the one that waits.
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        shared.call(LIMIT, os.getpid)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            shared.call(LIMIT, time.sleep, 1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert shared.call(LIMIT, operator.add, 2, 3) == 5


MASTER = f"""
import json, sys, threading, time
from tvm_directconv.tuning.worker import Worker
idle, busy = Worker(), Worker()
processes = [w.call(60, eval, "__import__('os').getpid()") for w in (idle, busy)]
processes.append(busy.call(60, eval, "__import__('subprocess').Popen({SLEEPER!r}).pid"))
threading.Thread(target=busy.call, args=(600, time.sleep, 600), daemon=True).start()
time.sleep(0.5)
print(json.dumps(processes), flush=True)
if sys.argv[1] == "wait":
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ["killed", "ended"])
def test_it_ends_with_the_process_that_started_it(end: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MASTER, "wait" if end == "killed" else "end"],
        stdout=subprocess.PIPE,
        text=True,
    ) as master:
        assert master.stdout
        workers = json.loads(master.stdout.readline())
        assert len(workers) == 3
        if end == "killed":
            assert all(map(alive, workers))
            master.kill()
    until(lambda: not any(map(alive, workers)))


def test_no_answer_is_taken_for_another(shared: Worker) -> None:
    for number in range(200):
        assert shared.call(LIMIT, operator.mul, number, 2) == number * 2
