"""Run a library in a process of its own, emulated if need be: a convolution or a network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import DeviceError
from ..hardware.lookup import device as find_device
from ..toolchain import Toolchain, find_toolchain
from .runner import run_library


class Compiled(Protocol):
    """What a manifest says of how a library was compiled."""

    @property
    def device(self) -> str: ...
    @property
    def target(self) -> dict[str, Any]: ...
    @property
    def threads(self) -> int: ...


def toolchain_of(manifest: Compiled) -> Toolchain:
    """Return what builds and runs programs for a library's device."""
    try:
        qemu_cpu = find_device(manifest.device).qemu_cpu
    except DeviceError:
        qemu_cpu = None  # A device file of the user's own: only its name is in the manifest.
    return find_toolchain(manifest.target["mtriple"], qemu_cpu)


def emulated(
    library: Path,
    manifest: Compiled,
    symbol: str,
    inputs: Sequence[np.ndarray],
    output_shapes: Sequence[tuple[int, ...]],
    **options: Any,
) -> tuple[list[np.ndarray], float, str]:
    """Run a library once by the C runner, under qemu if it is for another processor.

    Parameters
    ----------
    library : Path
    manifest : Manifest or NetworkManifest
        The library's.
    symbol : str
        Which of its functions.
    inputs : sequence of numpy.ndarray
    output_shapes : sequence of tuple of int
    **options
        Of :func:`run_library`.

    Returns
    -------
    outputs : list of numpy.ndarray
    seconds : float
    how : str
        What stands behind the seconds when they are printed.
    """
    toolchain = toolchain_of(manifest)
    report = run_library(
        library, symbol, inputs, output_shapes, toolchain, threads=manifest.threads, **options
    )
    how = f"one call by {' '.join(toolchain.emulator)}" if toolchain.emulator else "one call"
    return report.outputs, report.seconds[0], how
