"""Candidates on this machine, in a process of their own."""

from functools import lru_cache, partial
from pathlib import Path

from ...bench.compare import Comparison, Failure, Timer, compare, compare_in_places
from ...bench.measure import grouped
from ...bench.peak import Burst
from ...convolution import load
from ...deploy.runner import RunFailure
from ...errors import DeviceError, said_by
from ...hardware.device import Device
from ...hardware.host import check_cores, host_cpu, native
from ...hardware.target import host_lacks
from ...layout import aligned_zeros
from ...precision import Precision
from ..worker import Worker
from . import TIME_LIMIT
from .problem import problem, unwritten, wrong


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

    @classmethod
    def checked(cls, device: Device, threads: int, time_limit: float = TIME_LIMIT) -> "LocalRunner":
        """Return a runner for a device that a user has chosen.

        Raises
        ------
        ArgumentError
            If there are fewer cores than threads.
        DeviceError
            If its code does not run here.
        """
        if reason := host_lacks(device.target_options(threads)):
            raise DeviceError(
                f"cannot measure code for {device.name} here: {reason}. Tune on the device, or "
                "with --rpc-tracker, --runner or --llvm-mca"
            )
        check_cores(threads)
        return cls(device, threads, time_limit)

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
    workload = load(candidate).workload
    flops, burst = workload.flops, _burst(device, threads, workload.precision)
    allowed = burst.allowed if burst else None
    try:
        if not thorough:
            rival = _timer(incumbent) if incumbent else None
            return compare(_timer(candidate), rival, burst, flops, repeats, allowed=allowed)
        new_rival = partial(_new_timer, incumbent) if incumbent else None
        return compare_in_places(
            partial(_new_timer, candidate), new_rival, burst, flops, repeats, allowed
        )
    except RunFailure as failure:
        return Failure(failure.kind, str(failure))


@lru_cache(maxsize=1)
def _burst(device: Device, threads: int, precision: Precision) -> Burst | None:
    """Return the burst of a precision; None if there is none of its instruction."""
    try:
        return Burst(device, threads, precision)
    except DeviceError:
        return None


def _new_timer(library: Path) -> Timer:
    """Return a timer of a library, with arrays of its own; raise what is wrong with its result."""
    conv = load(library)
    x, weight, *operands, expected = problem(conv.workload).packed(conv.manifest)
    out = aligned_zeros(conv.manifest.output_shape, conv.manifest.output_type.name)
    unwritten(out)  # What is not written must not look right.
    named = zip(conv.manifest.operands(), operands, strict=True)
    call = conv.bind(x, weight, out, **dict(named))
    try:
        call()
    except Exception as error:
        raise RunFailure("crash", said_by(error)) from None
    if reason := wrong(call.out, expected):
        raise RunFailure("wrong_result", reason)
    return grouped(call)


# The incumbent stays.
_timer = lru_cache(maxsize=2)(_new_timer)
