"""Reading files that may be anything: missing, huge, damaged, no file at all, hostile."""

import io
import json
import os
import stat
from typing import Any

from .kinds import shown

LARGEST = 2**26
"""Bytes that a file which people may write is read up to."""


class Unreadable(ValueError):
    """Why a file cannot be read, as it stands in brackets behind its name."""


def reason(error: Exception) -> str:
    """Return why something cannot be read or written, in the words of the system if it says so."""
    return getattr(error, "strerror", None) or str(error)


def open_regular(path: "str | os.PathLike[str]") -> io.BufferedReader:
    """Open a file for reading, unless it is a folder, a pipe or a device, which may never end.

    Raises
    ------
    Unreadable
        If it cannot be opened, or is no regular file.
    """
    try:
        # A pipe that nobody writes to would keep the process waiting here.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Unreadable(error.strerror) from None
    except ValueError as error:  # What no path can have.
        raise Unreadable(str(error)) from None
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        raise Unreadable("Is a directory" if stat.S_ISDIR(mode) else "it is a pipe or a device")
    return open(number, "rb")


def content(path: "str | os.PathLike[str]", most: int = LARGEST) -> bytes:
    """Return what is in a file.

    Raises
    ------
    Unreadable
        If it cannot be read, is no regular file, or holds more bytes than `most`.
    """
    with open_regular(path) as file:
        return content_of(file, most)


def content_of(file: io.BufferedReader, most: int = LARGEST) -> bytes:
    """Return what is in an open file; as :func:`content`."""
    try:
        size = os.fstat(file.fileno()).st_size
        found = file.read(most + 1) if size <= most else b""
    except OSError as error:
        raise Unreadable(reason(error)) from None
    if max(size, len(found)) > most:
        raise Unreadable(f"it holds more than {most} bytes")
    return found


def text(path: "str | os.PathLike[str]") -> str:
    """Return what is in a text file, without the mark that some editors put at its beginning.

    Raises
    ------
    Unreadable
        As :func:`content`, or if it is not UTF-8.
    """
    try:
        return content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"{error.reason} at byte {error.start}"
        raise Unreadable(f"it is not UTF-8 text: {place}") from None


def json_object(path: "str | os.PathLike[str]") -> dict[str, Any]:
    """Return the object that a file of JSON holds.

    Raises
    ------
    Unreadable
        As :func:`text`, or if it holds anything else.
    """
    return parsed_object(text(path))


def parsed_object(source: str | bytes) -> dict[str, Any]:
    """Return an object of JSON: without NaN and Infinity, which JSON does not have.

    Raises
    ------
    Unreadable
        If it is none, or is nested too deeply.
    """
    try:
        found = json.loads(source, parse_constant=_no_constant)
    except RecursionError:
        raise Unreadable("not JSON: it is nested too deeply") from None
    except ValueError as error:
        raise Unreadable(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Unreadable(f"it is {shown(found, 40)}: expected an object of JSON")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
