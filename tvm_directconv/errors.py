"""Errors a user can meet, one class for each thing that can be wrong.

Every message names the offending value, what was expected and what to do.
All of them derive from :class:`DirectConvError`, which the command line turns
into ``error: ...`` and exit status 2.
"""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from .kinds import one_line

_IR = re.compile(r"The IR with diagnostic is:.*?(?=Error message:|\Z)", re.DOTALL)


def path_of(path: object, what: str, error: "type[DirectConvError]") -> Path:
    """Return what a caller gives as a path; raise an error of that kind if it is none."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise error(f"{what} is of type {type(path).__name__}: expected a path")
    return Path(path)


def did_you_mean(word: str, known: Iterable[str], most: int = 1, like: float = 0.6) -> str:
    """Return what to put behind a name that is unknown: the nearest of those that are known.

    Parameters
    ----------
    word : str
        What was written.
    known : iterable of str
        What might have been meant.
    most : int
        How many of these to name.
    like : float
        How much alike they are, of 1 for equal ones.

    Returns
    -------
    str
        Empty if none is near.
    """
    if word.isdecimal():
        return ""  # Numbers that look alike have nothing in common.
    names = {name.lower(): name for name in reversed([*known])}
    near = [repr(names[key]) for key in difflib.get_close_matches(word.lower(), names, most, like)]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def similar_file(path: "str | os.PathLike[str]") -> str:
    """Return the same for a file that does not exist: the nearest of its kind in its folder."""
    wanted = Path(path)
    try:
        if wanted.exists():
            return ""
        names = [other.name for other in wanted.parent.iterdir()]
        alike = {name for name in names if Path(name).suffix == wanted.suffix}
        # An ending may be mistyped, too, but then nothing else.
        alike |= {name for name in names if Path(name).stem == wanted.stem}
        return did_you_mean(wanted.name, sorted(alike), like=0.8)  # Equal endings say little.
    except (OSError, ValueError):  # ValueError: of what no path can have.
        return ""


def absence(path: "str | os.PathLike[str]") -> str:
    """Return why something cannot be read as a file, of which there is none at a path."""
    return "is no file" if os.path.exists(path) else f"does not exist{similar_file(path)}"


class DirectConvError(Exception):
    """Base of every error this package raises on purpose.

    What it says is one line that can be printed, whatever the names and the words of others in it.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


def said_by(error: BaseException) -> str:
    """Return what is said of an error of others, of TVM most of all, on one line.

    It is the last of its lines, as code may be before it, but for the IR that TVM may add.
    """
    lines = _IR.sub("", str(error)).splitlines()
    if isinstance(error, DirectConvError) and lines:
        return lines[0]
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"{type(error).__name__}: {last[:300]}" if last else type(error).__name__


class WorkloadError(DirectConvError, ValueError):
    """A convolution is described wrongly, or its sizes are impossible."""


class DeviceError(DirectConvError, ValueError):
    """A device, target string or device file is unknown or malformed."""


class BlockingError(DirectConvError, ValueError):
    """A blocking does not fit the workload or the device."""


class ScheduleError(DirectConvError, ValueError):
    """A schedule file cannot be used, or refuses the workload."""


class ArgumentError(DirectConvError, ValueError):
    """An array has the wrong shape, dtype, layout, alignment or strides."""


class LibraryError(DirectConvError, RuntimeError):
    """A compiled library or its manifest cannot be used."""


class ToolchainError(DirectConvError, RuntimeError):
    """A compiler, linker or emulator is missing or failed."""


class RpcError(DirectConvError, RuntimeError):
    """An RPC tracker or the boards it should know cannot be reached."""


class LogError(DirectConvError, RuntimeError):
    """A tuning log cannot be read or written, or a record in it is malformed."""


class TuningError(DirectConvError, RuntimeError):
    """There is nothing to tune, or nothing could be measured."""


class ModelError(DirectConvError, ValueError):
    """A model file cannot be read, or has something that cannot be compiled."""


class RangeError(ModelError):
    """A weight or bias that is infinite in the type that it is to be converted to."""


class LogWarning(UserWarning):
    """Something in a tuning log cannot be used and is left out."""


class ModelWarning(UserWarning):
    """A model is compiled, but parts of it to slow code; or quantised, but not as it should be."""


class ReportError(DirectConvError, RuntimeError):
    """A report's folder cannot be used, or there is nothing to report."""


def go_through_tvm() -> None:
    """Have what is raised in a pass come out of TVM as what it was: our errors, and Ctrl-C.

    Errors are known by their whole names: TVM has a ScheduleError, too.
    """
    import tvm_ffi

    for error in globals().values():
        if isinstance(error, type) and issubclass(error, DirectConvError):
            tvm_ffi.register_error(f"{error.__module__}.{error.__name__}", error)
    tvm_ffi.register_error("KeyboardInterrupt", KeyboardInterrupt)
