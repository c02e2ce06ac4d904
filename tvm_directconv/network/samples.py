"""Inputs of a model to calibrate with, from folders, files or arrays, one batch at a time."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import headers, pieces
from ..emit.program import Port
from ..errors import ArgumentError, absence, did_you_mean
from ..images import IMAGES, Pixels, is_image, read_image, takes_images
from ..kinds import shown

Feeds = dict[str, np.ndarray]
"""The inputs of one run, by name."""

Given = str | os.PathLike[str] | Sequence[Mapping[str, Any]]
"""A folder, a file, or inputs by name."""

_ARRAYS = (".npy", ".npz")
_SUFFIXES = (*_ARRAYS, *IMAGES)


@dataclass(frozen=True)
class _Rows:
    """Where arrays of one input come from, without the axis of the batch: a file or an array."""

    port: Port
    about: str
    source: Any
    name: str
    count: int

    def __iter__(self) -> Iterator[np.ndarray]:
        size = math.prod(self.port.shape[1:])
        if isinstance(self.source, np.ndarray):
            found: Any = self.source.reshape(-1, size)
        else:
            found = pieces(self.source, self.name, size)
        for number, row in enumerate(found):
            with np.errstate(over="ignore"):  # Found below.
                values = np.asarray(row, self.port.dtype)
            lost = row.dtype.kind in "iu" and not np.array_equal(row, values)
            if lost or not np.isfinite(values).all():
                raise ArgumentError(
                    f"row {number} of input {self.port.name!r} in {self.about} has NaN, infinities "
                    f"or numbers beyond {self.port.dtype}: expected finite numbers of that type"
                )
            yield values


@dataclass(frozen=True)
class _Image:
    """An image file, which is one row of the only input."""

    port: Port
    path: str
    pixels: Pixels
    count: int = 1

    def __iter__(self) -> Iterator[np.ndarray]:
        yield read_image(self.path, (1, *self.port.shape[1:]), self.pixels)


class Samples:
    """Batches of inputs, which are read anew whenever they are iterated over.

    Parameters
    ----------
    given : str, path or sequence of mapping
        A folder of .npy, .npz or image files, such a file, or arrays by the names of inputs. Arrays
        have the shape of the input; may have more samples along its first axis, or along one more
        in front; or are a single sample without the axis of the batch.
    ports : sequence of Port
        The inputs of the model.
    pixels : Pixels
        What becomes of those of images.

    Raises
    ------
    ArgumentError
        If something is missing, or does not fit the inputs.
    """

    def __init__(self, given: Given, ports: Sequence[Port], pixels: Pixels) -> None:
        self._ports = ports
        self._rows: dict[str, list[_Rows | _Image]] = {port.name: [] for port in ports}
        self.about, self._paths, arrays = _found(given)
        """In words, where they come from."""
        for path in self._paths:
            self._add_image(path, pixels) if is_image(path) else self._add_file(path)
        for number, named in enumerate(arrays):
            self._add_arrays(f"sample {number}", named)
        if pixels.given and not any(map(is_image, self._paths)):
            raise ArgumentError(
                f"{pixels.given[0]} is given, but there is no image in {self.about}: expected none"
            )
        port = ports[0]
        total = sum(rows.count for rows in self._rows[port.name])
        if not total or total % _batch(port):
            raise ArgumentError(
                f"{self.about} has {total} samples of {port}: expected some, a multiple of its "
                f"first size {_batch(port)}"
            )
        self._count = total // _batch(port)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Feeds]:
        sources = {name: chain.from_iterable(rows) for name, rows in self._rows.items()}
        for _ in range(self._count):
            yield {
                port.name: np.stack([*islice(sources[port.name], _batch(port))]).reshape(port.shape)
                for port in self._ports
            }

    def _add_image(self, path: str, pixels: Pixels) -> None:
        port = self._ports[0]
        fits = takes_images((1, *port.shape[1:])) and port.dtype == "float32"
        if len(self._ports) > 1 or not fits:
            raise ArgumentError(
                f"{path!r} is an image, but the inputs of the model are "
                f"{'; '.join(map(str, self._ports))}: expected one input, float32 of shape 1x3xHxW "
                "or 1xHxWx3; arrays of others can be given as .npy or .npz"
            )
        self._rows[port.name].append(_Image(port, path, pixels))

    def _add_file(self, path: str) -> None:
        found = headers(path)
        if "" in found:
            if len(self._ports) > 1:
                raise ArgumentError(
                    f"{path!r} is one array: expected a .npz file with "
                    f"{'; '.join(map(str, self._ports))}"
                )
            found[self._ports[0].name] = found.pop("")
            self._add(repr(path), found, dict.fromkeys(found, (path, "")))
        else:
            self._add(repr(path), found, {name: (path, name) for name in found})

    def _add_arrays(self, about: str, named: Any) -> None:
        if not isinstance(named, Mapping):
            raise ArgumentError(
                f"{about} is {shown(named)}: expected a mapping from names of inputs to arrays"
            )
        try:
            arrays = {name: np.asarray(array) for name, array in named.items()}
        except ValueError as error:  # Lists of different lengths in a list.
            raise ArgumentError(f"{about} is no array ({error}): expected arrays") from None
        self._add(
            about,
            {name: (array.shape, array.dtype) for name, array in arrays.items()},
            {name: (array, "") for name, array in arrays.items()},
        )

    def _add(
        self,
        about: str,
        found: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
        sources: Mapping[str, tuple[Any, str]],
    ) -> None:
        counts = {}
        for port in self._ports:
            if port.name not in found:
                raise ArgumentError(
                    f"{about} has {', '.join(map(repr, found)) or 'nothing'}: expected "
                    f"{port.name!r} as well{did_you_mean(port.name, found)}, which is {port}"
                )
            shape, dtype = found[port.name]
            # Whole numbers may be pixels that are still to be scaled: then ranges would be wrong.
            if _sort(dtype) != _sort(np.dtype(port.dtype)):
                raise ArgumentError(
                    f"{about} has {port.name!r} of type {dtype}: expected {port}, as the model "
                    "gets it in use"
                )
            counts[port.name] = _count(about, shape, port)
            self._rows[port.name].append(_Rows(port, about, *sources[port.name], counts[port.name]))
        first = self._ports[0]
        for port in self._ports:
            if counts[port.name] * _batch(first) != counts[first.name] * _batch(port):
                raise ArgumentError(
                    f"{about} has {counts[first.name] // _batch(first)} samples of {first.name!r}, "
                    f"but {counts[port.name] // _batch(port)} of {port.name!r}: expected as many"
                )


def _found(given: Given) -> tuple[str, list[str], Sequence[Any]]:
    """Return a description of what is given, files and arrays."""
    if not isinstance(given, str | os.PathLike):
        if isinstance(given, Mapping) or not isinstance(given, Sequence):
            raise ArgumentError(
                f"samples are of type {type(given).__name__}: expected a folder, a file, or a list "
                "of mappings from names of inputs to arrays"
            )
        return f"the list of {len(given)}", [], given
    path = Path(given)
    if path.is_dir():
        try:
            names = sorted(entry.name for entry in path.iterdir())
        except OSError as error:
            raise ArgumentError(
                f"cannot read folder {str(path)!r} ({error.strerror}): expected one with samples"
            ) from None
        found = [str(path / name) for name in names if _is_sample(path / name)]
        if not found:
            raise ArgumentError(
                f"folder {str(path)!r} has no samples in it: expected files ending in "
                f"{', '.join(_SUFFIXES)}"
            )
        left = sum(not name.startswith(".") for name in names) - len(found)
        rest = f", without {left} of other kinds" if left else ""
        return f"{len(found)} files in {str(path)!r}{rest}", found, ()
    if not path.is_file():
        raise ArgumentError(
            f"samples {str(path)!r} {absence(path)}: expected a folder, or a file ending in "
            f"{', '.join(_SUFFIXES)}"
        )
    if not _is_sample(path):
        raise ArgumentError(
            f"{str(path)!r} is no file of samples: expected one ending in {', '.join(_SUFFIXES)}"
        )
    return repr(str(path)), [str(path)], ()


def _is_sample(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in _SUFFIXES and path.is_file()


def _sort(dtype: np.dtype[Any]) -> str:
    """Return whether elements are truth values, whole numbers or others, as NumPy has it."""
    return {"u": "i", "V": "f" if dtype.name == "bfloat16" else "V"}.get(dtype.kind, dtype.kind)


def _batch(port: Port) -> int:
    return port.shape[0] if port.shape else 1


def _count(about: str, shape: tuple[int, ...], port: Port) -> int:
    """Return how many rows an array has."""
    row = port.shape[1:]
    axes = len(shape) - len(row)
    front = shape[: max(axes, 0)]
    fits = front in ((), shape[:1], (*shape[:1], _batch(port)))
    if axes >= 0 and shape[axes:] == row and fits:
        return math.prod(front)
    wanted = "x".join(map(str, port.shape)) or "()"
    raise ArgumentError(
        f"{about} has {port.name!r} of shape {'x'.join(map(str, shape)) or '()'}: expected "
        f"{wanted}, with any number of samples instead of the first size or in front of it"
    )
