"""Unscheduled and scheduled functions of a case."""

from pathlib import Path
from typing import Any

from .compute import conv2d
from .errors import ScheduleError, said_by
from .lowering.marks import SHAPES
from .registry import find_schedule
from .tiling import Tiling


def unscheduled(tiling: Tiling) -> Any:
    """Return the function of a convolution before it is scheduled, in a tvm.IRModule."""
    from tvm import IRModule

    case, blocking = tiling.case, tiling.blocking
    func = conv2d(
        case.workload,
        case.input_layout,
        blocking.weight_layout(),
        case.epilogue,
        tiling.view.output_shape,
    )
    # See lowering/registers.py: loads must not be merged across steps.
    func = func.with_attr(
        {
            "global_symbol": case.symbol,
            "tirx.noalias": False,
            "target": case.device.target(case.threads),
        }
    )
    if blocking.flat_rows:
        pixels = list(blocking.output_layout().shape(case.workload.output_shape))
        flat = [operand.name for operand in case.epilogue.operands if not operand.by_channel]
        flat.append(func.params[-1].name)
        shapes = [pixels if p.name in flat else [*map(int, p.shape)] for p in func.params]
        func = func.with_attr(SHAPES, shapes)
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
