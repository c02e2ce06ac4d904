"""What ``run --emulate`` does, with single convolutions and with networks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..build import Manifest
from ..device import device as find_device
from ..errors import DeviceError
from ..network.network import NetworkManifest


def emulated(
    library: Path,
    manifest: Manifest | NetworkManifest,
    symbol: str,
    inputs: Sequence[np.ndarray],
    output_shapes: Sequence[tuple[int, ...]],
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

    Returns
    -------
    outputs : list of numpy.ndarray
    seconds : float
    how : str
        What stands behind the seconds when they are printed.
    """
    from ..deploy.runner import run_library
    from ..toolchain import find_toolchain

    try:
        qemu_cpu = find_device(manifest.device).qemu_cpu
    except DeviceError:
        qemu_cpu = None  # A device file of the user's own: only its name is in the manifest.
    toolchain = find_toolchain(manifest.target["mtriple"], qemu_cpu)
    report = run_library(
        library, symbol, inputs, output_shapes, toolchain, threads=manifest.threads
    )
    how = f"one call by {' '.join(toolchain.emulator)}" if toolchain.emulator else "one call"
    return report.outputs, report.seconds[0], how
