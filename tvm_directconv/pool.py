"""The thread that parallel code is called from, and TVM's pool of threads for it.

TVM has a pool for each thread that calls parallel code. Such a thread must not fork: in the child,
the others of its pool are missing; calls wait for them, and so does the end of the process. So this
package has one thread that calls for all others, one call at a time, and never forks. A child of a
fork gets a new one.
"""

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")


class _Job:
    def __init__(self, threads: int, function: Callable[[], Any]) -> None:
        self.threads = threads
        self.function = function
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def do(self) -> None:
        try:
            size_pool(self.threads)
            self.result = self.function()
        except BaseException as error:
            self.error = error
        self.done.release()


class _Caller:
    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name=__name__, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while True:
            self.jobs.get().do()


_sizes = threading.local()
_lock = threading.RLock()  # A signal handler may come by at any time.
_caller: _Caller | None = None


def _forget() -> None:
    """Have what a new process needs, in whatever state it was when the other one forked."""
    global _lock, _caller
    _lock, _caller = threading.RLock(), None


os.register_at_fork(after_in_child=_forget)


def run(threads: int, function: Callable[[], _T]) -> _T:
    """Call a function where parallel code finds a pool of so many threads.

    Parameters
    ----------
    threads : int
        With 1, there is no need for a pool: the function is called right here.
    function : callable
        What is to be called, without arguments. It may call this, which costs nothing then.

    Returns
    -------
    object
        Its result.
    """
    if threads == 1:
        return function()
    global _caller
    with _lock:
        if _caller is None:
            _caller = _Caller()
        caller = _caller
    if threading.current_thread() is caller.thread:
        size_pool(threads)
        return function()
    job = _Job(threads, function)
    caller.jobs.put(job)
    try:
        job.done.acquire()
    except BaseException:
        job.done.acquire()  # Whoever interrupts this shall not see arrays change afterwards.
        raise
    if job.error is not None:
        raise job.error
    result: _T = job.result
    return result


def size_pool(threads: int) -> None:
    """Have TVM compute with so many threads what this thread calls.

    A function takes whatever size the pool has. How large it can get is settled by the cores that
    are named when it is made: by default half of them.
    """
    if threads != getattr(_sizes, "threads", 0):
        import tvm_ffi

        # -3 lets threads share the cores, where other modes bind the caller to one of them.
        cores = map(str, sorted(os.sched_getaffinity(0)))
        tvm_ffi.get_global_func("runtime.config_threadpool")(-3, threads, list(cores))
        _sizes.threads = threads
