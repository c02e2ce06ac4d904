"""The folders that logs are read from, and the one that is written.

There are two: the user's own, which is written, and the one of this package, which is read as
well. :func:`use_logs`, or the environment variable ``TVM_DIRECTCONV_LOGS``, puts one folder in the
place of both.
"""

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from importlib import resources
from pathlib import Path

from ..errors import LogError, LogWarning

VARIABLE = "TVM_DIRECTCONV_LOGS"
_in_use: ContextVar[Path | None] = ContextVar("tvm_directconv_logs", default=None)


@contextlib.contextmanager
def use_logs(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Read and write the tuning logs of one folder only, within a ``with`` statement.

    Parameters
    ----------
    folder : str or path
        Where logs are, or will be written.

    Examples
    --------
    >>> with use_logs("board/logs"):
    ...     pass  # build(...), tune(...)
    """
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise LogError(f"the folder of tuning logs is {folder!r}: expected a path")
    token = _in_use.set(Path(folder).absolute())
    try:
        yield
    finally:
        _in_use.reset(token)


def folders() -> list[Path]:
    """Return the folders that logs are read from; the first is the one that is written."""
    explicit = _in_use.get()
    if explicit is None and os.environ.get(VARIABLE):
        explicit = Path(os.environ[VARIABLE])
    if explicit is not None:
        return [explicit]
    home = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification has relative paths ignored.
    data = Path(home) if os.path.isabs(home) else Path("~/.local/share").expanduser()
    shipped = Path(str(resources.files("tvm_directconv.tuning_logs")))
    return [data / "tvm_directconv" / "tuning_logs", shipped]


def log_path(device: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """Return where the log of a device is, by default in the folder that is written."""
    return (folders()[0] if folder is None else Path(folder)) / f"{device}.jsonl"


@functools.cache
def warn_missing(folder: Path) -> None:
    """Warn of a folder that was asked for, once: a network asks for it a hundred times."""
    warnings.warn(
        f"there is no folder {str(folder)!r} of tuning logs, of use_logs or {VARIABLE}: going on "
        "without it",
        LogWarning,
        stacklevel=4,
    )
