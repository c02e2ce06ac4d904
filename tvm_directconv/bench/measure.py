"""Measurements that can be believed on a noisy machine, and the rows they are reported in."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from .. import files
from ..convolution import CompiledConv
from ..hardware.device import Device
from ..layout import aligned_zeros
from ..precision import FLOAT32
from ..quantization import Quantization
from ..reference import (
    conv2d_reference,
    epilogue_reference,
    max_error,
    random_operands,
    random_tensors,
)
from ..runtime import BoundCall
from ..toolchain import find_toolchain
from .compare import Timer, compare_in_places
from .disturbance import disturbance
from .peak import Burst

_SHORTEST = 1e-3  # seconds: calls are timed in groups that take at least this long


def measure(
    conv: CompiledConv,
    device: Device,
    repeat: int,
    burst: Burst,
    rival: CompiledConv | None = None,
) -> dict[str, Any]:
    """Check a convolution, then time it between bursts of multiply-adds.

    Each repeat is burst, kernel, burst: what slows the machine down for a while slows down both,
    and the ratio stays.

    Parameters
    ----------
    conv : CompiledConv
        For this machine.
    device : Device
        What `conv` was built for.
    repeat : int
        Repeats; medians and percentiles are over these.
    burst : Burst
        For as many threads as `conv`.
    rival : CompiledConv, optional
        The same convolution in other block sizes, timed in turns with `conv`. Its result is
        checked as well.

    Returns
    -------
    dict
        One row; keys as docs/benchmarking.md explains them. Times in seconds, sizes in bytes.
    """
    workload = conv.workload
    # Half precision is exact on whole numbers only.
    x, weight = random_tensors(workload, seed=0, integers=workload.precision is not FLOAT32)
    sums, meaning = conv2d_reference(x, weight, workload), None
    epilogue, plain = conv.manifest.epilogue, random_operands(workload, conv.manifest.epilogue, 0)
    if epilogue.rounded:
        meaning = Quantization.of_outputs(sums, conv.manifest.output_type)
    expected = epilogue_reference(sums, epilogue, meaning, **plain)
    errors = []

    def timer(each: CompiledConv) -> Timer:
        out = aligned_zeros(each.manifest.output_shape, each.manifest.output_type.name)
        call = each.bind(out=out, **packed(each))
        call()
        errors.append(max_error(each.unpack_output(out), expected))
        return grouped(call)

    def packed(each: CompiledConv) -> dict[str, np.ndarray]:
        return {
            "x": each.pack_input(x),
            "weight": each.pack_weight(weight),
            **each.pack_operands(weight, meaning, **plain),
        }

    found = compare_in_places(
        partial(timer, conv),
        partial(timer, rival) if rival else None,
        burst,
        workload.flops,
        repeat,
        burst.allowed,
    )
    of_peak = float(np.median(found.of_peak))
    of_limit = of_peak * workload.useful_flops / workload.flops
    p20, p50, p80 = (float(np.percentile(found.seconds, p)) for p in (20, 50, 80))
    speeds = workload.flops / 1e9 / np.array(found.seconds)
    return {
        "network": workload.network,
        "layer": workload.layer,
        "workload": str(workload),
        "device": conv.manifest.device,
        "threads": conv.manifest.threads,
        "seconds_p20": p20,
        "seconds_p50": p50,
        "seconds_p80": p80,
        "gflops": workload.flops / p50 / 1e9,
        "peak_gflops": float(np.median(speeds / found.of_peak)),
        "of_clock": float(np.median(found.of_clock)),
        "of_peak": of_peak,
        "of_limit": of_limit,
        "over_rival": found.ratio if rival else None,
        "extra_bytes": extra_bytes(conv, device, packed(conv).values()),
        # Comparisons with NaN are false, so max() would lose it.
        "max_error": float(np.max(errors)),
        "compile_seconds": conv.compile_seconds,
        "blocking": str(conv.blocking),
        "blocking_source": conv.manifest.blocking_source,
        "rival": str(rival.blocking) if rival else None,
        "disturbed": disturbance(found.of_peak, found.of_clock, of_limit, found.on_core),
    }


def grouped(call: BoundCall) -> Callable[[], float]:
    """Return what makes a call often enough to be timed, and returns the seconds of one."""
    return partial(call.timed, max(1, round(_SHORTEST / max(call.timed(), 1e-7))))


def extra_bytes(conv: CompiledConv, device: Device, packed: Iterable[np.ndarray]) -> int:
    """Return the bytes that are allocated while the kernel runs.

    The exported library is run once by the C runner, which counts all calls of malloc and its
    kin, mmap, and the workspace functions of TVM's interface.
    """
    from ..deploy.runner import run_library

    toolchain = find_toolchain(device.triple, device.qemu_cpu)
    with files.scratch() as folder:
        library = conv.export(folder / "conv.so")
        report = run_library(
            library,
            conv.manifest.symbol,
            list(packed),
            [conv.manifest.output_shape],
            toolchain,
            threads=conv.manifest.threads,
            output_types=[conv.manifest.output_type.name],
        )
    return report.allocated_bytes
