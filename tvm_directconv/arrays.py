"""Arrays from files, of shapes that are known: nothing is read before a file's own shape fits."""

import io
import math
import zipfile
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from . import reading
from .errors import ArgumentError

_HEADER = 2**14
"""Bytes that tell shape and type of an array; NumPy reads no longer ones either."""
_KINDS = "biuf"  # booleans and numbers, as NumPy calls them


class Expected(NamedTuple):
    """An array that a file should hold.

    Attributes
    ----------
    name : str
        In .npz files.
    shape : tuple of int
    about : str
        For messages.
    """

    name: str
    shape: tuple[int, ...]
    about: str


def read_arrays(path: str, expected: Sequence[Expected]) -> list[np.ndarray]:
    """Return arrays from a .npy file, which holds one, or from a .npz file, by name.

    Parameters
    ----------
    path : str
        The file.
    expected : sequence of Expected
        What is wanted of it, in this order.

    Raises
    ------
    ArgumentError
        If it cannot be read, is damaged, or holds arrays of other shapes.
    """
    what = "; ".join(entry.about for entry in expected)
    try:
        with reading.open_regular(path) as file:
            is_one = file.read(2) != b"PK"
            file.seek(0)
            if is_one:
                if len(expected) != 1:
                    raise ArgumentError(f"{path!r} is one array: expected a .npz file with {what}")
                return [_read(path, file, expected[0])]
            with zipfile.ZipFile(file) as members:
                names = [name.removesuffix(".npy") for name in members.namelist()]
                for entry in expected:
                    if entry.name not in names:
                        raise ArgumentError(
                            f"{path!r} has {', '.join(names) or 'nothing'}: expected "
                            f"{entry.name!r} as well"
                        )
                found = []
                for entry in expected:
                    with members.open(f"{entry.name}.npy") as member:
                        found.append(_read(path, member, entry))
                return found
    except ArgumentError:
        raise
    except reading.Unreadable as error:
        reason: object = error
    except Exception as error:  # What zipfile, zlib and NumPy raise for damaged files has no list.
        reason = str(error).partition("\n")[0] or type(error).__name__
    raise ArgumentError(f"cannot read array file {path!r} ({reason}): expected .npy or .npz")


def _read(path: str, file: IO[bytes], expected: Expected) -> np.ndarray:
    begin = file.read(_HEADER)
    header = io.BytesIO(begin)
    version = np.lib.format.read_magic(header)
    read_header: Any = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"version {version} of the format is not known")
    shape, by_columns, dtype = read_header(header)
    if dtype.kind not in _KINDS:
        raise ArgumentError(f"{path!r} has an array of {dtype}: expected numbers, {expected.about}")
    if shape != expected.shape:
        raise ArgumentError(f"{path!r} has an array of shape {shape}: expected {expected.about}")
    data = begin[header.tell() :]
    wanted = dtype.itemsize * math.prod(shape)
    # One byte more: at the end of a member of a .npz file, its checksum is compared.
    data += file.read(max(0, wanted - len(data)) + 1)
    if len(data) != wanted:
        raise ValueError(f"it holds more or fewer than the {wanted} bytes of its shape")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")
