"""Kinds of values in files that people may have changed: devices, logs, manifests, reports."""

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

_SURROGATE = re.compile("[\ud800-\udfff]")
_LONG_WORD = re.compile(r"(\S{400})\S{400,}(\S{200})")


class Kind(NamedTuple):
    """What a value must be.

    Attributes
    ----------
    expected : str
        In words, for messages.
    test : callable
        Returns whether a value is of this kind.
    """

    expected: str
    test: Callable[[Any], bool]


def or_null(kind: Kind) -> Kind:
    """Return the kind of values that may be missing."""
    return Kind(f"{kind.expected}, or null", lambda v: v is None or kind.test(v))


def is_text(value: object) -> bool:
    """Return whether a value is text that can be printed and written."""
    # Half a surrogate pair can stand in JSON, but can neither be printed nor written.
    return isinstance(value, str) and bool(value.strip()) and not _SURROGATE.search(value)


def is_whole(value: object, least: float, most: float = math.inf) -> bool:
    """Return whether a value is a whole number within bounds."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object) -> bool:
    """Return whether a value is a number from 0 that a float can hold."""
    # Whole numbers can be too large for a float.
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 <= value <= sys.float_info.max
    )


def is_positive(value: object) -> bool:
    """Return whether a value is a number above 0 that a float can hold."""
    return is_number(value) and value != 0


TEXT = Kind("a non-empty string", is_text)
NAMES = Kind("a list of strings", lambda v: isinstance(v, list) and all(map(is_text, v)))
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
COUNT = Kind("a whole number from 0", lambda v: is_whole(v, 0, 2**63 - 1))
MAX_THREADS = 1024
"""The most that compute one network, as the C runtime has it: Linux's sets hold as many cores."""
THREADS = Kind(f"a whole number from 1 to {MAX_THREADS}", lambda v: is_whole(v, 1, MAX_THREADS))
DIGEST = Kind(
    "64 hexadecimal digits", lambda v: isinstance(v, str) and bool(re.fullmatch("[0-9a-f]{64}", v))
)

Table = Mapping[str, "Kind | Table | Sequence[Kind | Table]"]
"""What an object holds: kinds by key; there may be objects in it, and lists of what is alike."""


def problem(values: object, table: Table, optional: tuple[str, ...] = ()) -> str | None:
    """Return what is wrong with values by key, None if nothing is. Other keys do not matter.

    Parameters
    ----------
    values : object
        What should be a mapping.
    table : mapping
        What it has to be.
    optional : tuple of str
        Keys that may be missing, of the table and of those in it.
    """
    return _problem(values, table, optional, "")


def _problem(value: object, kind: object, optional: tuple[str, ...], name: str) -> str | None:
    if isinstance(kind, Kind):
        return None if kind.test(value) else f"{name} is {shown(value)}: expected {kind.expected}"
    if isinstance(kind, list):
        if not isinstance(value, list | tuple):
            return f"{name} is {shown(value)}: expected a list"
        found = (_problem(v, kind[0], optional, f"{name}[{n}]") for n, v in enumerate(value))
        return next(filter(None, found), None)
    if not isinstance(value, Mapping):
        return f"{name or 'it'} is {shown(value)}: expected an object with keys"
    for key, inner in kind.items():  # type: ignore[attr-defined]
        path = f"{name}.{key}" if name else key
        if key not in value:
            if key not in optional:
                return f"{path} is missing: expected every key"
        elif wrong := _problem(value[key], inner, optional, path):
            return wrong
    return None


def shown(value: object, most: int = 100) -> str:
    """Return a value as it stands in a message: on one line that is not too long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python does not print numbers of thousands of digits.
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def printable(text: str) -> str:
    r"""Return text with escapes for what cannot be printed, or would begin a new line: ``\n``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Return text as one line that can be printed, without the middle of words without an end."""
    lines = filter(None, map(str.strip, text.splitlines()))
    return _LONG_WORD.sub(r"\1 ... \2", printable(" ".join(lines)))
