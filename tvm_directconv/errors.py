"""Errors a user can meet, one class for each thing that can be wrong.

Every message names the offending value, what was expected and what to do.
All of them derive from :class:`DirectConvError`, which the command line turns
into ``error: ...`` and exit status 2.
"""


class DirectConvError(Exception):
    """Base of every error this package raises on purpose."""


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


class ModelWarning(UserWarning):
    """A model is compiled, but parts of it to slow code."""


class ReportError(DirectConvError, RuntimeError):
    """A report's folder cannot be used, or there is nothing to report."""
