"""A compiled network: loading and running it."""

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .. import versions
from ..emit.program import Port
from ..errors import ArgumentError, LibraryError, absence, path_of
from ..layout import ALIGNMENT, aligned_zeros
from ..runtime import BoundCall, load_library
from .manifest import NetworkManifest


class _Turns:
    """A lock that is free in a forked process, where the thread that held it does not exist.

    It is reentrant: a signal handler may run the network between two calls of the same thread.
    """

    _all: ClassVar["weakref.WeakSet[_Turns]"] = weakref.WeakSet()

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._all.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @classmethod
    def free(cls) -> None:
        """Free all of them; called in the child after a fork."""
        for turns in cls._all:
            turns._lock = threading.RLock()


os.register_at_fork(after_in_child=_Turns.free)


class Network:
    """A compiled network, loaded. :func:`load_network` makes it.

    It has one arena, whose size is in the manifest. Threads may share it: :meth:`run`,
    :meth:`profile` and the calls that :meth:`bind` makes take turns, each waits until the arena is
    free. What is to run at the same time is loaded several times, each with an arena of its own;
    the code and the weights are in memory once.

    Attributes
    ----------
    manifest : NetworkManifest
    """

    def __init__(self, manifest: NetworkManifest, module: Any) -> None:
        self.manifest = manifest
        self._main = module["main"]
        self._profile = module["profile"]
        self._arena = aligned_zeros((manifest.arena_bytes // 4,))
        self._turns = _Turns()

    def __repr__(self) -> str:
        m = self.manifest
        ports = [", ".join(map(str, side)) for side in (m.inputs, m.outputs)]
        return f"<Network {ports[0]} -> {ports[1]}, for {m.device}, {m.threads} thread(s)>"

    def run(self, *inputs: np.ndarray, **named: np.ndarray) -> Any:
        """Compute the outputs.

        Parameters
        ----------
        *inputs : numpy.ndarray
            In the model's order, of the shapes and types in the manifest.
        **named : numpy.ndarray
            Instead: by name.

        Returns
        -------
        numpy.ndarray or tuple of numpy.ndarray
            The output; a tuple if there are several.

        Raises
        ------
        ArgumentError
            If an input is missing, unknown, or of another shape or type.
        """
        call, outputs = self.bind(*inputs, **named)
        call()
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def bind(self, *inputs: np.ndarray, **named: np.ndarray) -> tuple[BoundCall, list[np.ndarray]]:
        """Check inputs as :meth:`run` does; return the call, and the arrays it writes.

        They are the same arrays at each call: threads that call it need bound calls of their own.
        """
        arrays, outputs = self._arrays(inputs, named)
        return self._call(self._main, *arrays, *outputs, self._arena), outputs

    def _call(self, function: Any, *operands: np.ndarray) -> BoundCall:
        return BoundCall(function, operands, self.manifest.threads, self._turns)

    def profile(self, *inputs: np.ndarray, repeat: int = 10, **named: np.ndarray) -> np.ndarray:
        """Run and time every step.

        Parameters
        ----------
        *inputs, **named : numpy.ndarray
            As for :meth:`run`.
        repeat : int
            Runs.

        Returns
        -------
        numpy.ndarray
            Seconds, of shape (repeat, steps), float64.
        """
        steps = len(self.manifest.layers)
        arrays, outputs = self._arrays(inputs, named)
        seconds = np.zeros((repeat, steps))
        for run in range(repeat):
            self._call(self._profile, *arrays, *outputs, self._arena, seconds[run])()
        return seconds

    def _arrays(
        self, inputs: Sequence[np.ndarray], named: Mapping[str, np.ndarray]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return inputs as kernels read them, and new arrays for outputs."""
        ordered = zip(self.manifest.inputs, self._ordered(inputs, named), strict=True)
        arrays = [_usable(port, array) for port, array in ordered]
        return arrays, [aligned(port) for port in self.manifest.outputs]

    def _ordered(
        self, inputs: Sequence[np.ndarray], named: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        ports = self.manifest.inputs
        expected = "; ".join(map(str, ports))
        if inputs and named:
            raise ArgumentError("inputs are given by place and by name: expected one of the two")
        if named:
            if wrong := set(named) ^ {port.name for port in ports}:
                raise ArgumentError(
                    f"input {min(wrong)!r} is "
                    f"{'unknown' if min(wrong) in named else 'missing'}: expected {expected}"
                )
            return [named[port.name] for port in ports]
        if len(inputs) != len(ports):
            raise ArgumentError(f"there are {len(inputs)} inputs: expected {expected}")
        return list(inputs)


def aligned(port: Port) -> np.ndarray:
    """Return a new array for an input or output."""
    words = aligned_zeros((-(-port.nbytes // 4),))
    return words.view(np.uint8)[: port.nbytes].view(port.dtype).reshape(port.shape)


def _usable(port: Port, array: np.ndarray) -> np.ndarray:
    """Return an input as a kernel can read it: the array itself, or a copy of it."""
    if not isinstance(array, np.ndarray):
        raise ArgumentError(
            f"input {port.name!r} is a {type(array).__name__}: expected a numpy.ndarray"
        )
    if array.shape != port.shape or array.dtype != port.dtype:
        raise ArgumentError(
            f"input {port.name!r} is {array.dtype} of shape {array.shape}: expected {port.dtype} "
            f"of shape {port.shape}, as the network was compiled"
        )
    flags = array.flags
    if flags.c_contiguous and flags.writeable and array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = aligned(port)
    copy[...] = array
    return copy


def load_network(path: str | Path) -> Network:
    """Load a compiled network.

    Parameters
    ----------
    path : str or Path
        A library that :func:`compile_network` wrote, its manifest beside it.

    Returns
    -------
    Network

    Raises
    ------
    LibraryError
        If library or manifest are missing, damaged, stale, or for another machine.
    """
    versions.check()
    from ..toolchain import elf_info

    path = path_of(path, "the library", LibraryError)
    if not os.path.isfile(path):
        raise LibraryError(
            f"library {str(path)!r} {absence(path)}: expected one that compiling a model wrote"
        )
    manifest = NetworkManifest.read(path)
    if "__tvm_ffi_main" not in elf_info(path).defined:
        raise LibraryError(f"library {str(path)!r} has no function main: compile the model again")
    return Network(manifest, load_library(path, manifest.device, manifest.target))
