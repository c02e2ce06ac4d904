"""Unscheduled and scheduled functions of a case."""

from pathlib import Path
from typing import Any

from .compute import INPUT_NAME, WEIGHT_NAME, conv2d
from .errors import ScheduleError, said_by
from .lowering.marks import BLOCK, SHAPES, TYPES, of_instruction
from .precision import FLOAT32
from .registry import find_schedule
from .tiling import Tiling


def unscheduled(tiling: Tiling) -> Any:
    """Return the function of a convolution before it is scheduled, in a tvm.IRModule."""
    from tvm import IRModule

    case, blocking = tiling.case, tiling.blocking
    func = conv2d(
        case.workload,
        case.input_layout,
        tiling.weight_layout,
        case.epilogue,
        tiling.view.output_shape,
        case.device.peak(FLOAT32).instruction.fused,
    )
    # See lowering/registers.py: loads must not be merged across steps.
    func = func.with_attr(
        {
            "global_symbol": case.symbol,
            "tirx.noalias": False,
            "target": case.device.target(case.threads),
        }
    )
    instruction, precision = tiling.rate.instruction, case.precision
    func = func.with_attr(of_instruction(instruction, precision))
    output = tiling.output_layout
    if output.block != blocking.lanes:
        func = func.with_attr(BLOCK, output.block)
    if blocking.flat_rows or instruction.depth > 1:
        pixels = output.shape(case.workload.output_shape)
        types = {INPUT_NAME: precision.pixel.name, WEIGHT_NAME: precision.weight.name}
        shapes = {
            INPUT_NAME: case.input_layout.shape(case.workload.input_shape),
            WEIGHT_NAME: tiling.weight_layout.shape(case.workload.weight_shape),
            func.params[-1].name: pixels,
            **{o.name: pixels for o in case.epilogue.operands if not o.by_channel},
        }
        func = func.with_attr(
            {
                TYPES: [types.get(p.name, str(p.dtype)) for p in func.params],
                SHAPES: [list(shapes.get(p.name, map(int, p.shape))) for p in func.params],
            }
        )
    return IRModule({case.symbol: func})


def scheduled(tiling: Tiling, schedule: str | Path | None = None) -> Any:
    """Return the scheduled function of a convolution, before lowering.

    Parameters
    ----------
    tiling : Tiling
        A case as a blocking cuts it.
    schedule : str or Path, optional
        A user's schedule file.

    Returns
    -------
    tvm.s_tir.Schedule
        With one function, which has the case's symbol.

    Raises
    ------
    ScheduleError
        If the schedule refuses the workload or fails.
    """
    from tvm import s_tir

    case = tiling.case
    apply = find_schedule(case.device, schedule)
    sch = s_tir.Schedule(unscheduled(tiling))
    sch.work_on(case.symbol)
    try:
        refusal = apply(sch, tiling)
    except Exception as error:
        if schedule is None:
            raise
        raise ScheduleError(
            f"schedule file {str(schedule)!r} failed on {case.workload}: {said_by(error)}"
        ) from error
    if refusal is not None:
        raise ScheduleError(f"schedule refuses {case}: {refusal}")
    return sch
