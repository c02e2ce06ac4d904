"""Candidates on this machine, in a process of their own."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from ...bench.measure import grouped
from ...bench.peak import Burst
from ...build import load
from ...device import Device, host_cpu, native
from ...layout import aligned_zeros
from ..compare import Comparison, Failure, Timer, compare
from ..worker import Worker
from . import TIME_LIMIT
from .problem import problem, wrong


class LocalRunner:
    """Measures on this machine.

    Parameters
    ----------
    device : Device
        One whose code runs here.
    threads : int
        By how many threads candidates compute, and the burst.
    time_limit : float
        Seconds for one candidate.
    """

    measured_by = "local"
    suffix = ".so"
    slots = 1

    def __init__(self, device: Device, threads: int, time_limit: float = TIME_LIMIT) -> None:
        self.cpu: str | None = host_cpu().id
        self.cpu_name: str | None = host_cpu().name
        self.cpu_device: str | None = native().name
        self._device, self._threads, self._time_limit = device, threads, time_limit
        self._worker = Worker()
        self._worker.start()

    def measure(
        self, candidate: Path, incumbent: Path | None, repeats: int, thorough: bool = False
    ) -> Comparison | Failure:
        """Check a candidate's result, then compare it with the incumbent and the burst."""
        return self._worker.call(
            self._time_limit,
            _measure,
            candidate,
            incumbent,
            repeats,
            thorough,
            self._device,
            self._threads,
        )

    def close(self) -> None:
        """End the process."""
        self._worker.close()


def _measure(
    candidate: Path,
    incumbent: Path | None,
    repeats: int,
    thorough: bool,
    device: Device,
    threads: int,
) -> Comparison | Failure:
    conv = load(candidate)
    timer = _timer(candidate)
    if isinstance(timer, Failure):
        return timer
    rival = _timer(incumbent) if incumbent else None
    assert not isinstance(rival, Failure), "an incumbent has been checked before"
    burst = _burst(device, threads)
    return compare(timer, rival, burst, conv.workload.flops, repeats, thorough=thorough)


@lru_cache(maxsize=1)
def _burst(device: Device, threads: int) -> Burst:
    return Burst(device, threads)


# The incumbent stays, and the candidates that were good are measured again.
@lru_cache(maxsize=6)
def _timer(library: Path) -> Timer | Failure:
    """Return a timer of a library, or what is wrong with its result."""
    conv = load(library)
    x, weight, expected = problem(conv.workload).packed(conv.manifest)
    out = aligned_zeros(conv.manifest.output_shape)
    out.fill(np.nan)  # What is not written must not look right.
    call = conv.bind(x, weight, out)
    try:
        call()
    except Exception as error:
        return Failure("crash", f"{type(error).__name__}: {error}")
    if reason := wrong(call.out, expected):
        return Failure("wrong_result", reason)
    return grouped(call)
