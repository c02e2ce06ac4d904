"""Schedules for all kernels: convolutions by the device's, everything else by the general one."""

from functools import lru_cache
from typing import Any

import tvm
from tvm.tirx import PrimFunc

from ...case import Case
from ...hardware.device import Device
from ...lowering.marks import ALIKE, DENORMALS
from ...registry import general_schedule
from ...scheduling import scheduled
from ...tiling import Tiling
from ..operators import KERNEL, ConvAttributes
from ..rewriter import MAIN, QUANTIZED


def schedule_kernels(device: Device, threads: int, denormals: str) -> Any:
    """Return the pass that schedules every kernel of a module.

    Parameters
    ----------
    device : Device
        For which processor.
    threads : int
        1 for serial kernels.
    denormals : str
        What becomes of them; see :mod:`tvm_directconv.denormals`.
    """
    schedule_general = general_schedule()
    lanes = device.lanes

    def transform(module: tvm.IRModule, _context: Any) -> tvm.IRModule:
        functions = {}
        alike = {ALIKE: True} if QUANTIZED in module[MAIN].attrs else {}
        for variable, function in module.functions.items():
            if isinstance(function, PrimFunc) and KERNEL in function.attrs:
                text = str(function.attrs[KERNEL])
                function = _convolution(text, device, threads, denormals)
            elif isinstance(function, PrimFunc):
                function = schedule_general(function.with_attr(alike), lanes, threads)
            if isinstance(function, PrimFunc):
                function = function.with_attr(DENORMALS, denormals)
            functions[variable] = function
        return tvm.IRModule(functions)

    return tvm.transform.module_pass(transform, opt_level=0, name="directconv.ScheduleKernels")


@lru_cache(maxsize=1024)  # Of a network that is compiled again with some layers in another type.
def _convolution(text: str, device: Device, threads: int, denormals: str) -> Any:
    attributes = ConvAttributes.from_json(text)
    assert attributes.blocking is not None
    case = Case(
        attributes.workload,
        device,
        threads,
        attributes.input_layout,
        attributes.epilogue,
        denormals,
    )
    (result,) = scheduled(Tiling(case, attributes.blocking)).mod.functions.values()
    return result.with_attr(KERNEL, text).without_attr("global_symbol").without_attr("target")
