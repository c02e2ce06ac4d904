"""Layers that stay float32 because the outputs lose too much when they are computed in 16 bits.

The network itself says so: it is compiled for this machine with some layers in 16 bits and the
others in float32, and its outputs on samples are compared with those of float32. Tensors are
rounded where they will be on the device that it is for, and sums have the same type there.

Each layer alone in 16 bits leads to an error of its own. Of the layers, the one with the largest
first, the shortest beginning is kept with which the error of all others together is within the
tolerance.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from math import inf, isfinite
from typing import Any

import numpy as np
import tvm

from .. import files
from ..denormals import checked_mode
from ..emit.library import link_network
from ..errors import ArgumentError, DeviceError, RangeError
from ..hardware.device import Device, Rate
from ..hardware.lookup import device as find_device
from ..images import Pixels
from ..instructions import HALF_SUMMING
from ..kinds import is_positive, shown
from ..layout import aligned_zeros
from ..precision import DTYPES, FLOAT16, MIXED
from ..runtime import BoundCall, load_library
from ..toolchain import find_toolchain
from .check import drawn, relative_error
from .kernels import compile_kernels
from .manifest import KeptLayer, Mixed
from .network import aligned
from .passes.convert_precision import ConvertPrecision
from .pipeline import first_passes, later_passes
from .planning import program_of
from .samples import Feeds, Given, Samples

_SEED = 0
_DRAWS = 4  # random samples, where none are given

Told = Callable[[int, int], object]


def check_tolerance(
    tolerance: Any, samples: Given | None, pixels: Pixels | None, dtype: object
) -> None:
    """Raise if an error is allowed that is none, or of what is exact; or samples are for nothing.

    Raises
    ------
    ArgumentError
    """
    if tolerance is None:
        for name, given in (("samples", samples), ("pixels", pixels)):
            if given is not None:
                raise ArgumentError(
                    f"{name} are given, but no tolerance, which they are for: expected both"
                )
        return
    if not (is_positive(tolerance) and tolerance < 1):
        raise ArgumentError(
            f"tolerance is {shown(tolerance)}: expected a number above 0 and below 1, such as 0.01 "
            "for outputs that differ from those of float32 by 1 %"
        )
    if dtype in (None, "fp32"):
        halves = [name for name in DTYPES if name != "fp32"]
        raise ArgumentError(
            f"tolerance is {tolerance:g}, but no dtype of 16 bits is given, in which something "
            f"could be lost: expected dtype {MIXED}, {', '.join(halves[:-1])} or {halves[-1]}"
        )


def mixed(
    module: tvm.IRModule,
    device: Device,
    threads: int,
    dtype: str,
    keep: Sequence[str | int],
    tolerance: float,
    samples: Given | None,
    pixels: Pixels,
    blocking: str | None = None,
    told: Told | None = None,
) -> tuple[list[int], Mixed]:
    """Find the layers that stay float32 so that the error on samples is within a tolerance.

    Parameters
    ----------
    module : tvm.IRModule
        The imported network.
    device : Device
        For which processor it will be.
    threads : int
        By how many threads it is computed.
    dtype : str
        One of :data:`tvm_directconv.precision.DTYPES` with 16 bits.
    keep : sequence of str or int
        Layers that stay float32 in any case.
    tolerance : float
        What the error may be: the root mean square of differences over that of the output.
    samples : str, Path or sequence of mapping, or None
        Inputs; random ones if None.
    pixels : Pixels
        What becomes of those of images.
    blocking : str, optional
        As for :func:`tvm_directconv.compile_network`.
    told : callable, optional
        Told how many variants of the network have run, and how many there are at most.

    Returns
    -------
    places : list of int
        Of the layers, among all convolutions.
    found : Mixed

    Raises
    ------
    ArgumentError
        If samples do not fit, there are no layers, or none is left in 16 bits.
    DeviceError
        If this machine does not compute in the type.
    """
    variants = _Variants(module, *_here(device, dtype), threads, blocking)
    layers = ConvertPrecision(variants.module, DTYPES[dtype], keep).layers
    if not layers:
        raise ArgumentError(
            f"tolerance is {tolerance:g}, but the network has no convolutions or dense layers of "
            "float32 that are not kept: expected some, or no tolerance"
        )
    feeds, about = _samples(samples, variants.ports, pixels)
    most, done = 2 + len(layers) + len(layers).bit_length(), 0

    def outputs(halved: Collection[int]) -> list[np.ndarray]:
        nonlocal done
        if told:
            told(done, most)
        done += 1
        return variants.outputs(halved, feeds)

    exact = outputs(())

    def error(halved: Collection[int]) -> float:
        """Return the error if these layers are in 16 bits."""
        try:
            return max(map(relative_error, outputs(halved), exact), default=0.0)
        except RangeError:
            return inf

    def result(kept: Sequence[int], error: float) -> Mixed:
        rows = (KeptLayer(layers[p][0], str(layers[p][1]), _finite(own[p])) for p in kept)
        return Mixed(dtype, tolerance, error, _finite(without), about, len(feeds), tuple(rows))

    own: dict[int, float] = {}
    without = error(layers)
    if without <= tolerance:
        return [], result([], without)
    own |= {place: error([place]) for place in layers}
    order = sorted(layers, key=lambda place: -own[place])
    few, enough, least = 0, len(order), 0.0
    while enough - few > 1:
        middle = (few + enough) // 2
        lost = error(order[middle:])
        if lost <= tolerance:
            enough, least = middle, lost
        else:
            few = middle
    if enough == len(order):
        last = order[-1]
        raise ArgumentError(
            f"tolerance is {tolerance:g}, with which no layer can be in {dtype}: on {about} the "
            f"error is {without:.2g} with all of them, and {own[last]:.2g} with "
            f"{layers[last][0]!r} alone, which loses least; expected a larger tolerance, or dtype "
            "fp32"
        )
    return order[:enough], result(order[:enough], least)


def _finite(error: float) -> float | None:
    return error if isfinite(error) else None


def _here(device: Device, dtype: str) -> tuple[Device, str]:
    """Return a device whose code runs here, and a type in which it rounds as another one does.

    Raises
    ------
    DeviceError
        If there is none.
    """
    if device.is_host_runnable:
        return device, dtype
    here = find_device("native")
    if DTYPES[dtype] == FLOAT16 and not here.rates(FLOAT16):
        features = here.features()
        rows = [row for row in HALF_SUMMING if features.issuperset(row.features)]
        rates = tuple(Rate(row, 1, 8) for row in rows)
        return replace(here, instructions=here.instructions + rates, conversions=()), "fp16"
    if not here.rates(DTYPES[dtype]):
        raise DeviceError(
            f"what is lost in {dtype} cannot be found here, as device {here.name!r} has no "
            "instruction for it: expected no tolerance; name the layers that are to stay float32 "
            "(--keep)"
        )
    return here, dtype


def _samples(
    samples: Given | None, ports: Sequence[Any], pixels: Pixels
) -> tuple[Samples | list[Feeds], str]:
    """Return inputs, and in words where they come from."""
    if samples is not None:
        found = Samples(samples, ports, pixels)
        return found, f"{len(found)} samples of {found.about}"
    rng = np.random.default_rng(_SEED)
    draws = [{port.name: drawn(port, rng) for port in ports} for _ in range(_DRAWS)]
    return draws, f"{_DRAWS} random samples, as none are given"


class _Variants:
    """A network on this machine, each time with other layers in 16 bits."""

    def __init__(
        self,
        module: tvm.IRModule,
        device: Device,
        dtype: str,
        threads: int,
        blocking: str | None,
    ) -> None:
        for transform in first_passes():
            module = transform(module)
        self.module = module
        self._device = device
        self._threads = threads
        self._dtype = dtype
        self._blocking = blocking
        self._toolchain = find_toolchain(device.triple)
        self._places = ConvertPrecision(module, DTYPES[dtype], ()).layers
        self.ports = self._program(()).inputs

    def _program(self, halved: Collection[int]) -> Any:
        kept = [place for place in self._places if place not in halved]
        module = self.module
        options = self._device, self._threads, self._blocking, None, self._dtype, kept
        for transform in later_passes(*options):
            module = transform(module)
        return program_of(module, self._device, checked_mode(None, self._device))

    def outputs(self, halved: Collection[int], samples: Samples | list[Feeds]) -> list[np.ndarray]:
        """Return each output on all samples, if the layers in these places are in 16 bits."""
        program = self._program(halved)
        objects = compile_kernels(program.kernels, self._device, self._threads)
        target = self._device.target_options(self._threads)
        with files.scratch() as folder:
            library = folder / "network.so"
            link_network(program, objects, library, self._toolchain)
            module = load_library(library, self._device.name, target, forever=False)
        inputs, outputs = (list(map(aligned, side)) for side in (program.inputs, program.outputs))
        arena = aligned_zeros((program.arena_bytes // 4,))
        call = BoundCall(module["main"], (*inputs, *outputs, arena), self._threads)
        found = []
        for feeds in samples:
            for port, array in zip(program.inputs, inputs, strict=True):
                array[...] = feeds[port.name]
            call()
            found.append([output.copy() for output in outputs])
        return [np.stack(arrays) for arrays in zip(*found, strict=True)]
