"""Finds the schedule for a device, or a user's own file."""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import ScheduleError, absence, path_of, said_by
from .hardware.device import Device
from .hardware.device_files import shipped

_PARAMETERS = ("sch", "tiling")


def find_schedule(device: Device, path: str | Path | None = None) -> Callable[..., Any]:
    """Return the function that schedules convolutions.

    Parameters
    ----------
    device : Device
        Its ``schedule`` names a module of ``schedules/``.
    path : str or Path, optional
        A Python file to use instead. It defines ``schedule(sch, tiling)``, which changes the
        ``tvm.s_tir.Schedule`` in place, as those in ``schedules/`` do, and may return a string: the
        reason why it does not serve this case.

    Returns
    -------
    callable

    Raises
    ------
    ScheduleError
        If there is no such module or file, it cannot be imported, or has no such function.
    """
    if path is None:
        name = f"tvm_directconv.schedules.{device.schedule}"
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            names = {
                file.keys["schedule"] for file in shipped().values() if "schedule" in file.keys
            }
            raise ScheduleError(
                f"device {device.name!r} asks for schedule {device.schedule!r}: there is no "
                f"module of that name in schedules/; expected one of {', '.join(sorted(names))}"
            ) from error
        return module.schedule
    file = path_of(path, "the schedule file", ScheduleError)
    if not file.is_file():
        raise ScheduleError(f"schedule file {str(file)!r} {absence(file)}: expected a Python file")
    module = ModuleType(file.stem)
    module.__file__ = str(file)
    try:
        # Not imported: that would leave compiled code in the user's folder.
        exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
    except Exception as error:  # Whatever a user's file may do wrong.
        raise ScheduleError(
            f"schedule file {str(file)!r} cannot be imported: {said_by(error)}"
        ) from error
    function = getattr(module, "schedule", None)
    if not callable(function):
        raise ScheduleError(
            f"schedule file {str(file)!r} has no function 'schedule': expected "
            f"schedule({', '.join(_PARAMETERS)})"
        )
    if len(inspect.signature(function).parameters) != len(_PARAMETERS):
        raise ScheduleError(
            f"schedule file {str(file)!r}: schedule{inspect.signature(function)} has the wrong "
            f"parameters: expected schedule({', '.join(_PARAMETERS)})"
        )
    return function


def general_schedule() -> Callable[..., Any]:
    """Return the function that schedules what is no convolution, ``schedules/general.py``."""
    module = import_module("tvm_directconv.schedules.general")
    return module.schedule_general
