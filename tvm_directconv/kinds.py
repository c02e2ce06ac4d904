"""Kinds of values in files that people may have changed: devices, tuning logs, rows of reports."""

import math
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple


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
    return isinstance(value, str) and bool(value) and not re.search("[\ud800-\udfff]", value)


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
