"""Arrays from files: nothing is read before a file's own shape fits what is expected."""

import contextlib
import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from . import reading
from .errors import ArgumentError

_HEADER = 2**14
"""Bytes that tell shape and type of an array; NumPy reads no longer ones either."""
_PART = 2**20
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
    with _explained(path), reading.open_regular(path) as file:
        if not _is_archive(file):
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


def headers(path: str) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shapes and types of the arrays in a .npz file by name, or of a .npy file by "".

    Raises
    ------
    ArgumentError
        If it cannot be read, or is damaged as far as that is read.
    """
    with _explained(path), reading.open_regular(path) as file:
        if not _is_archive(file):
            return {"": _Header.of(path, file).described}
        with zipfile.ZipFile(file) as members:
            found = {}
            for name in members.namelist():
                with members.open(name) as member:
                    found[name.removesuffix(".npy")] = _Header.of(path, member).described
            return found


def pieces(path: str, name: str, size: int) -> Iterator[np.ndarray]:
    """Yield the numbers of an array, so many at a time, without holding all of them in memory.

    Parameters
    ----------
    path : str
        A .npy or .npz file.
    name : str
        As :func:`headers` has it.
    size : int
        A divisor of the array's.

    Raises
    ------
    ArgumentError
        If the file cannot be read, or is damaged.
    """
    with _explained(path), reading.open_regular(path) as file, contextlib.ExitStack() as stack:
        member: IO[bytes] = file
        if _is_archive(file):
            member = stack.enter_context(zipfile.ZipFile(file)).open(f"{name}.npy")
        header = _Header.of(path, member)
        if header.by_columns:  # Neighbours in the file are none in the array.
            yield from header.array(member).reshape(-1, size)
            return
        for _ in range(math.prod(header.shape) // size):
            yield np.frombuffer(header.take(member, size), header.dtype)
        header.end(member)


@contextlib.contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn whatever is raised while a file is read into an ArgumentError."""
    try:
        yield
        return
    except ArgumentError:
        raise
    except reading.Unreadable as error:
        reason: object = error
    except Exception as error:  # What zipfile, zlib and NumPy raise for damaged files has no list.
        reason = str(error).partition("\n")[0] or type(error).__name__
    raise ArgumentError(f"cannot read array file {path!r} ({reason}): expected .npy or .npz")


def _is_archive(file: io.BufferedReader) -> bool:
    found = file.read(2) == b"PK"
    file.seek(0)
    return found


class _Header:
    """What stands at the beginning of an array, and the bytes that were read with it."""

    def __init__(
        self, shape: tuple[int, ...], by_columns: bool, dtype: np.dtype[Any], begin: bytes
    ) -> None:
        self.shape, self.by_columns, self.dtype = shape, by_columns, dtype
        self._begin = begin

    @classmethod
    def of(cls, path: str, file: IO[bytes], about: str = "") -> "_Header":
        """Read it from a file of this name."""
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
            wanted = ", ".join(filter(None, ("numbers", about)))
            raise ArgumentError(f"{path!r} has an array of {dtype}: expected {wanted}")
        return cls(shape, by_columns, dtype, begin[header.tell() :])

    @property
    def described(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """The array's shape and type."""
        return self.shape, self.dtype

    def take(self, file: IO[bytes], size: int) -> bytes:
        """Read the next numbers of the array."""
        wanted = size * self.dtype.itemsize
        data, self._begin = bytearray(self._begin[:wanted]), self._begin[wanted:]
        # By parts: what a header says need not be there.
        while part := file.read(min(wanted - len(data), _PART)):
            data += part
        if len(data) != wanted:
            raise self._wrong()
        return bytes(data)

    def end(self, file: IO[bytes]) -> None:
        """Read the end: at that of a member of a .npz file, its checksum is compared."""
        if self._begin or file.read(1):
            raise self._wrong()

    def array(self, file: IO[bytes]) -> np.ndarray:
        """Read all of the array."""
        data = self.take(file, math.prod(self.shape))
        self.end(file)
        order: Any = "F" if self.by_columns else "C"
        return np.frombuffer(data, self.dtype).reshape(self.shape, order=order)

    def _wrong(self) -> ValueError:
        wanted = self.dtype.itemsize * math.prod(self.shape)
        return ValueError(f"it holds more or fewer than the {wanted} bytes of its shape")


def _read(path: str, file: IO[bytes], expected: Expected) -> np.ndarray:
    header = _Header.of(path, file, expected.about)
    if header.shape != expected.shape:
        raise ArgumentError(
            f"{path!r} has an array of shape {header.shape}: expected {expected.about}"
        )
    return header.array(file)
