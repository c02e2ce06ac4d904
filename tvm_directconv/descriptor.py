"""Descriptors: the grammar in which one line says what is convolved, that of oneDNN's benchdnn.

Here are texts and plain values; what these mean together is checked by
:class:`~tvm_directconv.workload.ConvWorkload`.
"""

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from .errors import WorkloadError, did_you_mean
from .precision import FLOAT32, PRECISIONS

MAX_ELEMENTS = 2**31 - 1  # kernels index every tensor with 32-bit integers

# The keys of descriptors; a benchdnn descriptor says "dh0" for no dilation.
_KEYS = ("g", "mb", "ic", "oc", *(key + axis for key in "iokspd" for axis in "hw"))
_KEYS_3D = ("id", "od", "kd", "sd", "pd", "dd")
_MAY_BE_ZERO = ("ph", "pw", "dh", "dw")
# Not in benchdnn: it has the type as an option of its own.
_NUMBER_TYPE = re.compile("([A-Za-z][A-Za-z0-9]*)_")
_TOKEN = re.compile("([A-Za-z]*)([0-9]*)")
_NAME = re.compile(r'n"([^"*]+)(?:\*([0-9]+)"|"(?:\*([0-9]+))?)')
# How one begins: with a key and its value, mistyped perhaps, or with what should be a number type.
_BEGIN = re.compile(
    f"_*[A-Za-z]{{1,2}}[0-9]|{_NUMBER_TYPE.pattern}_*(?:{'|'.join((*_KEYS, *_KEYS_3D))})[0-9]"
)
EXAMPLE = "ic256ih56oc256oh56kh3ph1"
"""A descriptor, for messages."""


@dataclass(frozen=True)
class Descriptor:
    """What a descriptor says.

    Attributes
    ----------
    dtype : str
        Name of the precision.
    sizes : dict
        By key, those filled in that the text leaves out, but for ``oh`` and ``ow``.
    padding : tuple of int
        At the top, left, bottom and right.
    name : str
        Empty if there is none.
    count : int
    """

    dtype: str
    sizes: dict[str, int]
    padding: tuple[int, int, int, int]
    name: str
    count: int


def looks_like_descriptor(text: str) -> bool:
    """Return whether a text begins as descriptors do, right ones and mistyped ones."""
    return bool(_BEGIN.match(text))


# ---- writing


def printed(dtype: str, sizes: Mapping[str, int]) -> str:
    """Return the canonical descriptor.

    Parameters
    ----------
    dtype : str
        Name of the precision.
    sizes : mapping
        The value of every key.
    """

    def pair(key: str, default: int | None = None) -> str:
        height, width = sizes[f"{key}h"], sizes[f"{key}w"]
        if height == width == default:
            return ""
        return f"{key}h{height}" + (f"{key}w{width}" if width != height else "")

    # benchdnn halves these, towards zero, where the padding is left out.
    deduced_from = (
        (sizes[f"o{axis}"] - 1) * sizes[f"s{axis}"] + _extent(sizes, axis) - sizes[f"i{axis}"]
        for axis in "hw"
    )
    padding_default = 0 if all(-1 <= total <= 1 for total in deduced_from) else None
    return "".join(
        [
            f"{dtype}_" if dtype != FLOAT32.name else "",
            f"g{sizes['g']}" if sizes["g"] != 1 else "",
            f"mb{sizes['mb']}" if sizes["mb"] != 1 else "",
            f"ic{sizes['ic']}",
            pair("i"),
            f"oc{sizes['oc']}",
            pair("o"),
            pair("k"),
            pair("s", 1),
            pair("p", padding_default),
            pair("d", 0),
        ]
    )


def with_name(descriptor: str, name: str, count: int) -> str:
    """Return a descriptor with name and count, as files of shapes have it."""
    if not name:
        return descriptor
    return f'{descriptor}n"{name}{f"*{count}" if count != 1 else ""}"'


# ---- reading


def parsed(text: str) -> Descriptor:
    """Read a descriptor.

    Raises
    ------
    WorkloadError
        If the text is none, or gives an output size that is impossible.
    """
    dtype, position = _number_type(text)
    values, name, count = _tokens(text, position)
    missing = [key for key in ("ic", "oc") if key not in values]
    missing += [f"{k}h" for k in "ik" if f"{k}h" not in values and f"{k}w" not in values]
    if missing:
        raise WorkloadError(
            f"missing {', '.join(repr(key) for key in missing)}; ic, ih, oc and kh are needed, "
            f"as in {EXAMPLE!r}"
        )
    for k in "iokspd":
        for key, twin in ((f"{k}h", f"{k}w"), (f"{k}w", f"{k}h")):
            if key in values:
                values.setdefault(twin, values[key])
    left_out = {"g": 1, "mb": 1, "sh": 1, "sw": 1, "dh": 0, "dw": 0}
    sizes = left_out | values
    top, bottom = _padding(sizes, "h")
    left, right = _padding(sizes, "w")
    padding = top, left, bottom, right
    return Descriptor(dtype, sizes | {"ph": top, "pw": left}, padding, name, count)


def _number_type(text: str) -> tuple[str, int]:
    """Return the precision that a descriptor begins with, and where its keys begin."""
    match = _NUMBER_TYPE.match(text)
    if match is None:
        return FLOAT32.name, 0
    name = match[1]
    if name in PRECISIONS:
        return name, match.end()
    letters = _TOKEN.match(name)[1]  # type: ignore[index]  # it begins with a letter
    if letters[0] == "n" or any(letters.startswith(key) for key in (*_KEYS, *_KEYS_3D)):
        return FLOAT32.name, 0  # An underscore between keys.
    raise WorkloadError(
        f"unknown {name!r} at character 1; number types are {', '.join(PRECISIONS)}, keys are "
        f"{', '.join(_KEYS)}, n"
        + (did_you_mean(name, PRECISIONS) or did_you_mean(letters, _KEYS, 3))
    )


def _tokens(text: str, position: int) -> tuple[dict[str, int], str, int]:
    """Split a descriptor into its keys' values, its name ("") and its count (1)."""
    values: dict[str, int] = {}
    while position < len(text):
        if text[position] == "_":
            position += 1
            continue
        if text[position] == "n":
            return values, *_name(text, position)
        token = _TOKEN.match(text, position)
        assert token is not None  # the pattern matches the empty string too
        key, digits = token.groups()
        where = f"at character {position + 1}"
        if not key:
            raise WorkloadError(
                f"unexpected {text[position:]!r} {where}; expected a key such as 'ic' and its "
                "value (several descriptors are separated by commas)"
            )
        if key in _KEYS_3D:
            raise WorkloadError(
                f"{key!r} {where} belongs to 3-D convolutions; only 2-D convolutions exist here"
            )
        if key not in _KEYS:
            _refuse(key, key + digits, where)
        if not digits:
            raise WorkloadError(
                f"key {key!r} {where} has no value but {text[token.end() :]!r}; write {key}N with "
                "a decimal number N"
            )
        if key in values:
            raise WorkloadError(f"key {key!r} {where} is given twice; remove one")
        values[key] = _number(key, digits, minimum=0 if key in _MAY_BE_ZERO else 1)
        position = token.end()
    return values, "", 1


def _refuse(key: str, token: str, where: str) -> NoReturn:
    """Say what is wrong with a key that is none."""
    if token in PRECISIONS:
        raise WorkloadError(
            f"the number type {token!r} {where} is out of place; a descriptor begins with it, and "
            f"an underscore follows: {token}_{EXAMPLE}"
        )
    bare = next((known for known in _KEYS if key.startswith(known)), None)
    if bare:  # as in "icih56": the next key, or a letter, stands where digits should
        raise WorkloadError(f"key {bare!r} {where} has no value; write {bare}N")
    raise WorkloadError(
        f"unknown key {key!r} {where}; keys are {', '.join(_KEYS)}, n" + did_you_mean(key, _KEYS, 3)
    )


def _number(key: str, digits: str, minimum: int) -> int:
    # The length first: Python refuses to convert thousands of digits with an error of its own.
    if len(digits.lstrip("0")) > 10:
        raise WorkloadError(f"{key} is {digits}; expected at most {MAX_ELEMENTS}")
    return whole(key, int(digits), minimum)


def _name(text: str, position: int) -> tuple[str, int]:
    match = _NAME.fullmatch(text, position)
    if match is None:
        raise WorkloadError(
            f"the name {text[position:]!r} at character {position + 1} is malformed; a "
            'descriptor ends with n"name" or n"name*count"'
        )
    return match[1], _number("count", match[2] or match[3] or "1", minimum=1)


def _extent(sizes: Mapping[str, int], axis: str) -> int:
    """Return how much of the input one output spans along an axis, "h" or "w"."""
    return (sizes[f"k{axis}"] - 1) * (sizes[f"d{axis}"] + 1) + 1


def _padding(sizes: Mapping[str, int], axis: str) -> tuple[int, int]:
    """Return the padding before and after one axis, "h" or "w"."""
    size, stride, extent = sizes[f"i{axis}"], sizes[f"s{axis}"], _extent(sizes, axis)
    before, out = sizes.get(f"p{axis}"), sizes.get(f"o{axis}")
    if out is None:
        before = before or 0
        return before, before

    # Padding on either side is at most extent - 1, which bounds the output size.
    least = max(1, (size + (before or 0) - extent) // stride + 1)
    most = (size + (extent - 1 if before is None else before) - 1) // stride + 1
    if not least <= out <= most:
        given = "" if before is None else f" and p{axis}{before}"
        expected = f"o{axis}{least}" + (f" to o{axis}{most}" if most != least else "")
        raise WorkloadError(
            f"o{axis}{out} is impossible: i{axis}{size} with a dilated kernel of {extent}, "
            f"s{axis}{stride}{given} can give {expected}; correct o{axis} or leave it out"
        )
    both = (out - 1) * stride + extent - size  # negative where the stride leaves input unread
    if before is None:
        before = max(0, both // 2)
    symmetric_out = (size + 2 * before - extent) // stride + 1
    return before, before if symmetric_out == out else max(0, both - before)


# ---- values


def whole(key: str, value: object, minimum: int) -> int:
    """Return a value as an int; bools and floats, even whole ones, are mistakes.

    Raises
    ------
    WorkloadError
        If it is none, or out of bounds.
    """
    expected = "a positive integer" if minimum else "an integer of 0 or more"
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # its TypeError is the check
    except TypeError:
        raise WorkloadError(f"{key} is {value!r}; expected {expected}") from None
    if isinstance(value, bool) or number < minimum:
        raise WorkloadError(f"{key} is {value!r}; expected {expected}")
    if number > MAX_ELEMENTS:
        raise WorkloadError(f"{key} is {number}; expected at most {MAX_ELEMENTS}")
    return number
