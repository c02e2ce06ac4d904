"""Compiled code in this process: libraries that are loaded, functions that are called."""

import shlex
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from . import files, pool, reading
from .errors import LibraryError, similar_file
from .hardware.target import host_lacks


def library_bytes(path: Path) -> bytes:
    """Return what is in a library of a single convolution.

    Raises
    ------
    LibraryError
        If it cannot be read.
    """
    try:
        return reading.content(path, 2**30)
    except reading.Unreadable as error:
        raise LibraryError(
            f"cannot read library {str(path)!r} ({error}){similar_file(path)}: expected a .so that "
            "'tvm-directconv compile' wrote"
        ) from None


def load_library(path: Path, device: str, target: dict[str, Any], forever: bool = True) -> Any:
    """Load the code of a shared library, even if one of the same name was loaded before.

    The dynamic linker would take that one for it. It goes by names first, so there is a new name
    each time; files that are the same are recognised nevertheless, and loaded once.

    Parameters
    ----------
    path : Path
    device : str
        Name of what it was compiled for.
    target : dict
        The same for TVM.
    forever : bool
        Whether the code stays when nobody has a use for it any more.

    Raises
    ------
    LibraryError
        If this machine cannot run it.
    """
    if reason := host_lacks(target):
        raise LibraryError(
            f"cannot load {str(path)!r}, built for {device}: {reason}. Run it there, or here with: "
            f"tvm-directconv run --emulate {shlex.quote(str(path))}"
        )
    import tvm.runtime  # noqa: F401  Libraries get their parallel loops from it when they are loaded.
    import tvm_ffi

    with files.scratch() as folder:
        # A name of plain characters: TVM takes no others.
        link = folder / "library.so"
        link.symlink_to(path.resolve())
        try:
            return tvm_ffi.load_module(link, forever)  # TVM's own would follow the link.
        except Exception as error:  # Of what kind, depends on what the dynamic linker meets.
            said = str(error).replace(str(link), path.name).strip().splitlines()
            raise LibraryError(
                f"cannot load {str(path)!r} ({said[-1] if said else type(error).__name__}): "
                "expected a whole library that 'tvm-directconv compile' wrote; copy it again, or "
                "compile it again"
            ) from None


def _tensor(array: np.ndarray) -> Any:
    """Return an array as TVM takes it, in the same memory."""
    import tvm.runtime  # noqa: F401  Its tensors can be seen as another type.
    import tvm_ffi

    if array.dtype.kind in "biuf":
        return tvm_ffi.from_dlpack(array)
    # NumPy passes on none of the types that others add to it.
    bits = tvm_ffi.from_dlpack(array.view(f"uint{8 * array.itemsize}"))
    return bits._create_view(array.shape, array.dtype.name)


class BoundCall:
    """A convolution together with its arrays: calling it computes `out` from the others.

    With several threads, calls are made one at a time, whichever threads of Python they are from.
    Calls that share memory besides, as those of a network share its arena, share a lock.
    """

    def __init__(
        self,
        function: Any,
        arrays: tuple[np.ndarray, ...],
        threads: int,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.out = arrays[-1]
        self.threads = threads
        self._function = function
        self._tensors = tuple(map(_tensor, arrays))
        self._lock = lock or nullcontext()

    def __call__(self) -> None:
        """Compute the output."""
        self.timed()

    def timed(self, number: int = 1) -> float:
        """Compute the output so often, and return the seconds of once."""

        def seconds() -> float:
            begin = time.perf_counter()
            for _ in range(number):
                self._compute()
            return (time.perf_counter() - begin) / number

        # The lock before: whoever has it may wait for what that thread does.
        with self._lock:
            return pool.run(self.threads, seconds)

    def _compute(self) -> None:
        try:
            self._function(*self._tensors)
        except Exception as error:  # Compiled code says in many ways what it refuses.
            raise LibraryError(
                f"the compiled code refuses arrays that its manifest describes ({error}): "
                "expected a library and its manifest as they were written; compile it again"
            ) from error
