"""What a device will take for convolutions, by the analytical model: time and memory.

Nothing is compiled or measured. How far the model is off is what tuning logs tell of layers that
were measured.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from .blocking import Blocking
from .case import Case, check_threads
from .hardware.device import Device
from .hardware.device_files import devices
from .hardware.lookup import device as find_device
from .logs import log_file
from .logs.folders import folders, log_path
from .logs.record import MODELLED, Record
from .model import estimate
from .resolution import resolve_blocking
from .tiling import Tiling
from .workload import ConvWorkload

LEFT_OUT = (
    "steps that are no convolutions, and time between steps",
    "memory beyond the caches, whose rate is only guessed from that of the caches",
    "clocks that change with heat and load, and other programs",
)
"""What predictions say nothing of."""


@dataclass(frozen=True)
class Prediction:
    """What one call of a convolution is predicted to take.

    Attributes
    ----------
    workload : ConvWorkload
    blocking : Blocking
        What :func:`tvm_directconv.build` takes.
    blocking_source : str
        Where it is from.
    cycles : float
        Of the thread that has most to do.
    of_peak : float
        Part of the FMA peak of all threads.
    weight_bytes, activation_bytes : int
        Weights; input and output. As they are packed.
    """

    workload: ConvWorkload
    blocking: Blocking
    blocking_source: str
    cycles: float
    of_peak: float
    weight_bytes: int
    activation_bytes: int

    @property
    def im2col_bytes(self) -> int:
        """Size of the matrix that im2col would make; 0 where the input is that matrix."""
        return self.workload.im2col_bytes

    def milliseconds(self, ghz: float) -> float:
        """Return the time at a clock."""
        return self.cycles / ghz / 1e6


def predict(
    workloads: Iterable[ConvWorkload],
    device: Device | str,
    threads: int = 1,
    input_layout: str | None = None,
) -> list[Prediction]:
    """Predict what convolutions take.

    Parameters
    ----------
    workloads : iterable of ConvWorkload
        What is convolved.
    device : Device or str
        On what; see :func:`tvm_directconv.device`.
    threads : int
        By how many.
    input_layout : str, optional
        Layout of the input, as in :func:`tvm_directconv.build`.

    Returns
    -------
    list of Prediction
        One for each.

    Raises
    ------
    BlockingError, DeviceError
        If threads or layout cannot be used, or there is no such device.
    """
    check_threads(threads)
    found = find_device(device)
    return [_predicted(Case.of(each, found, threads, input_layout)) for each in workloads]


def _predicted(case: Case) -> Prediction:
    tiling, source = resolve_blocking(None, case)
    blocking, workload, cost = tiling.blocking, case.workload, estimate(tiling)
    types = case.precision
    weights = prod(tiling.weight_layout.shape(workload.weight_shape))
    pixels = prod(case.input_layout.shape(workload.input_shape))
    outputs = prod(tiling.output_layout.shape(workload.output_shape))
    return Prediction(
        workload,
        blocking,
        source,
        cost.cycles,
        cost.of_peak,
        types.weight.bytes * weights,
        types.pixel.bytes * pixels + types.output.bytes * outputs,
    )


@dataclass(frozen=True)
class Experience:
    """How long layers took that the model had predicted.

    Attributes
    ----------
    devices : tuple of str
        What their code was for.
    layers : int
        How many there were.
    p10, p50, p90 : float
        Percentiles of measured over predicted time, at the clock of the FMA burst beside.
    """

    devices: tuple[str, ...]
    layers: int
    p10: float
    p50: float
    p90: float


def experience(device: Device) -> Experience | None:
    """Return how the model did in the logs: on a device, failing that on all others.

    Parameters
    ----------
    device : Device
        For whose code measurements are wanted.

    Returns
    -------
    Experience or None
        None if nothing was measured.
    """
    for candidates in ([device], devices()):
        ratios = {candidate.name: _ratios(candidate) for candidate in candidates}
        found = [ratio for some in ratios.values() for ratio in some]
        if found:
            p10, p50, p90 = (float(value) for value in np.percentile(found, [10, 50, 90]))
            measured = tuple(name for name, some in ratios.items() if some)
            return Experience(measured, len(found), p10, p50, p90)
    return None


def _ratios(device: Device) -> list[float]:
    """Return measured over predicted times of what tuning chose in the end."""
    return [
        estimate(_tiling(record, device)).of_peak / record.of_peak
        for folder in folders()
        if (path := log_path(device.name, folder)).is_file()
        for record in log_file.read(path)
        if record.chosen and record.of_peak and record.measured_by != MODELLED
    ]


# --- Models -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Where the bytes of a model are, and what it does besides convolving.

    Attributes
    ----------
    memory : dict
        Bytes by place, as :meth:`tvm_directconv.network.network.NetworkManifest.memory` has them.
    im2col_bytes : int
        What the largest im2col buffer would take besides.
    others : dict
        How often each kernel that is no convolution is called, by name.
    """

    memory: dict[str, int]
    im2col_bytes: int
    others: dict[str, int]


def plan(
    model: str | Path,
    device: Device | str,
    threads: int = 1,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> Plan:
    """Plan a model as :func:`tvm_directconv.compile_network` does, without compiling kernels.

    Parameters
    ----------
    model, device, threads, input_shapes
        As there.

    Returns
    -------
    Plan

    Raises
    ------
    ModelError, DeviceError, BlockingError
        As there.
    """
    from .network.compile import import_model
    from .network.pipeline import planned
    from .network.planning import conv_attributes_of

    program = planned(import_model(model, input_shapes), find_device(device), threads)
    buffers, others = [0], Counter[str]()
    for step in program.steps:
        attributes = step.kernel in program.kernels and conv_attributes_of(
            program.kernels[step.kernel]
        )
        if attributes:
            workload = attributes.workload
            buffers.append(workload.im2col_bytes)
        else:
            others[re.sub(r"\d+$", "", step.kernel)] += 1
    return Plan(program.memory(), max(buffers), dict(others))


def _tiling(record: Record, device: Device) -> Tiling:
    case = Case.of(record.workload, device, record.threads, record.input_layout)
    return Tiling(case, record.blocking)
