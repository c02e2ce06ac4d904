"""Denormals, numbers so small that a processor can take a hundred times as long for one.

Of float32, these are the ones below 2^-126. They come from dead or pruned channels and from folded
batch normalisations, and nothing can be told from them: while compiled code runs, they count as
zeros, and constants have none. The state that decides it belongs to the thread, so code sets it
where it begins and restores it where it ends: ``flush_denormals`` in
:mod:`tvm_directconv.lowering.floats`.
"""

import numpy as np

from .errors import ArgumentError
from .kinds import Kind

FLUSH, KEEP = "flush", "keep"

MODES = (FLUSH, KEEP)
"""What becomes of denormals: they count as zeros, or are computed with as IEEE 754 has it."""


MODE = Kind(" or ".join(map(repr, MODES)), lambda value: value in MODES)
"""What stands for them in manifests."""


def checked_mode(mode: object) -> str:
    """Return one of :data:`MODES`.

    Raises
    ------
    ArgumentError
        If it is none.
    """
    if not MODE.test(mode):
        raise ArgumentError(f"denormals is {mode!r}: expected {MODE.expected}")
    return str(mode)


def flushed(array: np.ndarray, mode: str = FLUSH) -> np.ndarray:
    """Return an array with zeros of the same sign in place of denormals; itself if it has none.

    Parameters
    ----------
    array : numpy.ndarray
        Of any type. Of float16 nothing is flushed: these numbers are not small in float32.
    mode : str
        One of :data:`MODES`; with ``keep``, the array itself is returned.
    """
    if mode == KEEP or array.dtype not in (np.float32, np.float64):
        return array
    small = np.abs(array) < np.finfo(array.dtype).tiny
    if not array[small].any():
        return array
    return np.where(small, np.copysign(array.dtype.type(0), array), array)
