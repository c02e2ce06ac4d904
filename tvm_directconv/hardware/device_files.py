"""Device files: their keys, what they inherit, and the devices that they describe.

The facts stand in ``schedules/devices/*.toml``, one small file per processor
core, each inheriting from a more general one; ``generic.toml`` explains the
keys.
"""

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import reading
from ..errors import DeviceError, did_you_mean
from ..instructions import CONVERSIONS, INSTRUCTIONS
from ..kinds import FLAG, Kind, is_positive, is_text, is_whole, problem, shown
from ..precision import FLOAT32, PRECISIONS
from .constants import ModelConstants
from .device import ConversionRate, Device, Rate, computing

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_ROOT = "generic"
_MOST = 65536  # of what is counted: cores, registers, lanes


def _is_flag_list(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(flag, str) and re.fullmatch(r"[+-][\w.-]+", flag) for flag in value
    )


def _is_list_of_rows(value: object, *figures: str) -> bool:
    """Return whether this is a list of names with positive figures."""
    return isinstance(value, list) and all(
        isinstance(row, dict)
        and row.keys() == {"name", *figures}
        and is_text(row["name"])
        and all(is_positive(row[figure]) for figure in figures)
        for row in value
    )


def _check_names(
    rows: list[dict[str, Any]], key: str, known: Mapping[str, object], source: str
) -> None:
    """Raise if a row of a device file is none that there is."""
    for row in rows:
        if row["name"] not in known:
            raise DeviceError(
                f"device file {source}: {key} has {shown(row['name'])}, which is none of "
                f"this package{did_you_mean(row['name'], known)}: expected some of "
                f"{', '.join(known)}"
            )


def _conversions(rows: list[dict[str, Any]], source: str) -> tuple[ConversionRate, ...]:
    """Return the conversions of a device file, after checking that there are such."""
    _check_names(rows, "conversions", CONVERSIONS, source)
    found = tuple(ConversionRate(CONVERSIONS[row["name"]], row["per_cycle"]) for row in rows)
    types = [(rate.conversion.stored.name, rate.conversion.loaded.name) for rate in found]
    if len(set(types)) < len(types):
        raise DeviceError(
            f"device file {source}: conversions are of {types}: expected each pair of types once"
        )
    return found


def _rates(rows: list[dict[str, Any]], source: str) -> tuple[Rate, ...]:
    """Return the instructions of a device file, after checking that there are such."""
    _check_names(rows, "instructions", INSTRUCTIONS, source)
    found = tuple(Rate(INSTRUCTIONS[row["name"]], row["per_cycle"], row["latency"]) for row in rows)
    kinds = {(rate.instruction.depth, rate.instruction.pixels) for rate in found}
    for precision, kind in product(PRECISIONS.values(), kinds):
        instructions = [rate.instruction for rate in computing(found, precision)]
        lanes = [each.lanes for each in instructions if (each.depth, each.pixels) == kind]
        if lanes != sorted(set(lanes), reverse=True):
            raise DeviceError(
                f"device file {source}: instructions in {precision} have {lanes} lanes: expected "
                "each number once, the widest first"
            )
    if not any(rate.instruction.precision == FLOAT32 for rate in found):
        raise DeviceError(
            f"device file {source}: no row of instructions is in float32: expected one at least, "
            "for networks compute in it"
        )
    return found


def _is_line_of_text(value: object) -> bool:
    return is_text(value) and str(value).isprintable()


_RATE = Kind("a number above 0", is_positive)
_COUNT = Kind(f"a whole number from 1 to {_MOST}", lambda v: is_whole(v, 1, _MOST))
_WHOLE = Kind(f"a whole number from 0 to {_MOST}", lambda v: is_whole(v, 0, _MOST))
_BYTES = Kind("a whole number of bytes from 0", lambda v: is_whole(v, 0, 2**63 - 1))
_LINE = Kind("a whole number of bytes from 1", lambda v: is_whole(v, 1, 2**63 - 1))
_TEXT = Kind("a non-empty string of one line", _is_line_of_text)
_NAMES = Kind("a list of strings", lambda v: isinstance(v, list) and all(map(_is_line_of_text, v)))
FLAGS = Kind("a list of features, each with + or - in front", _is_flag_list)
_CONSTANTS = {field.name: _RATE for field in fields(ModelConstants)}
_KEYS = {
    "parent": _TEXT,
    "abstract": FLAG,
    "description": _TEXT,
    "aliases": _NAMES,
    "boards": _NAMES,
    "ghz": _RATE,
    "told_by": _TEXT,
    "schedule": _TEXT,
    "triple": _TEXT,
    "mcpu": _TEXT,
    "mattr": FLAGS,
    "mfloat_abi": Kind('"hard" or "soft"', lambda v: v in ("hard", "soft")),
    "instructions": Kind(
        "a list of {name, per_cycle, latency}, widest first",
        lambda v: bool(v) and _is_list_of_rows(v, "per_cycle", "latency"),
    ),
    "conversions": Kind("a list of {name, per_cycle}", lambda v: _is_list_of_rows(v, "per_cycle")),
    "vector_registers": _COUNT,
    "spare_registers": _WHOLE,
    "loads_per_cycle": _RATE,
    "scalar_loads_per_cycle": _RATE,
    "l2_bytes_per_cycle": _RATE,
    "l3_bytes_per_cycle": _RATE,
    "l1d_bytes": _LINE,
    "l2_bytes": _BYTES,
    "l3_bytes": _BYTES,
    "model": Kind("a table of constants of the model", lambda v: isinstance(v, dict)),
    "cores": _COUNT,
    "qemu_cpu": _TEXT,
    "mca_cpu": _TEXT,
}
_NOT_INHERITED = {"abstract", "aliases", "boards", "ghz", "told_by"}
_OPTIONAL = {"mcpu", "mfloat_abi", "qemu_cpu", "mca_cpu", *_NOT_INHERITED}


class DeviceFile(NamedTuple):
    """One device file, as it stands."""

    source: str
    keys: dict[str, Any]


def _read(path: "Traversable") -> DeviceFile:
    source = str(path)
    try:
        keys = tomllib.loads(reading.text(source))
    except reading.Unreadable as error:
        raise DeviceError(
            f"device file {source}: cannot be read ({error}): expected a TOML file"
        ) from None
    except ValueError as error:
        raise DeviceError(
            f"device file {source}: not valid TOML: {error}. Correct it there"
        ) from None
    except RecursionError:
        raise DeviceError(
            f"device file {source}: not valid TOML: it is nested too deeply. Correct it there"
        ) from None
    _check(f"device file {source}", "key", keys, _KEYS)
    _check(f"device file {source}: [model]", "constant", keys.get("model", {}), _CONSTANTS)
    return DeviceFile(source, keys)


def _check(where: str, noun: str, table: dict[str, Any], known: dict[str, Kind]) -> None:
    """Raise if a table has what is not known, or values of other kinds."""
    for key in table:
        if key not in known:
            raise DeviceError(
                f"{where}: unknown {noun} {shown(key)}{did_you_mean(key, known)}: expected one of "
                f"{', '.join(known)}"
            )
    if wrong := problem(table, known, optional=tuple(known)):
        raise DeviceError(f"{where}: {wrong}")


@functools.cache
def shipped() -> dict[str, DeviceFile]:
    """Return the device files of this package by name, abstract ones included."""
    folder = files("tvm_directconv.schedules") / "devices"
    paths = sorted(folder.iterdir(), key=lambda path: path.name)
    return {
        path.name.removesuffix(".toml"): _read(path)
        for path in paths
        if path.name.endswith(".toml")
    }


def resolve(name: str, known: Mapping[str, DeviceFile]) -> Device:
    """Make the device of a file, filling in what it inherits."""
    source = known[name].source
    if known[name].keys.get("abstract"):
        raise DeviceError(
            f"device {name!r} is abstract, nothing can be built for it: expected one of "
            f"{', '.join(device_names())}"
        )
    values = dict(known[name].keys)
    chain = [name]
    while chain[-1] != _ROOT:
        last = known[chain[-1]]
        if "parent" not in last.keys:
            raise DeviceError(
                f"device file {last.source}: the key 'parent' is missing: expected the device to "
                f"inherit from, {_ROOT!r} if nothing is nearer"
            )
        parent = last.keys["parent"]
        if parent not in known:
            raise DeviceError(
                f"device file {last.source}: parent is {parent!r}, which is no device of this "
                f"package{did_you_mean(parent, shipped())}: expected one of "
                f"{', '.join(shipped())}"
            )
        if parent in chain:
            raise DeviceError(
                f"device file {last.source}: parent is {parent!r}, which closes the circle "
                f"{' -> '.join([*chain, parent])}: expected a chain that ends in {_ROOT!r}"
            )
        chain.append(parent)
        inherited = known[parent].keys.items()
        constants = known[parent].keys.get("model", {}) | values.get("model", {})
        values = {k: v for k, v in inherited if k not in _NOT_INHERITED} | values
        values["model"] = constants
    missing = [key for key in _KEYS if key not in values and key not in _OPTIONAL]
    if missing:
        raise DeviceError(
            f"device file {source}: the key {missing[0]!r} is missing and not inherited from "
            f"{' -> '.join(chain[1:])}: expected {_KEYS[missing[0]].expected}"
        )
    values["model"] = ModelConstants(**values["model"])
    values["instructions"] = _rates(values["instructions"], source)
    values["conversions"] = _conversions(values["conversions"], source)
    for key in ("mattr", "boards", "aliases"):
        values[key] = tuple(values.get(key, ()))
    known_fields = {field.name for field in fields(Device)}
    return Device(
        name=name,
        chain=tuple(chain),
        **{key: value for key, value in values.items() if key in known_fields},
    )


@functools.cache
def of_package(name: str) -> Device:
    """Return the device of a file of this package."""
    return resolve(name, shipped())


def from_file(path: Path) -> Device:
    """Return the device that a user's own file describes."""
    name = path.stem
    if name in shipped():
        raise DeviceError(
            f"device file {path}: the name {name!r} is taken by a device of this package, and "
            "tuning logs are kept by name: rename the file"
        )
    return resolve(name, {**shipped(), name: _read(path)})


def device_names() -> list[str]:
    """Return the names of the devices that can be built for."""
    return [name for name, file in shipped().items() if not file.keys.get("abstract")]


def devices() -> list[Device]:
    """Return all devices that can be built for, sorted by name.

    Returns
    -------
    list of Device
        Those of this package; users' own files are not searched.
    """
    return [of_package(name) for name in device_names()]


def named(name: str) -> Device | None:
    """Return the device that has this name or alias."""
    if name in shipped():
        return of_package(name)
    for candidate in devices():
        if name in candidate.aliases:
            return candidate
    return None
