"""What a user may write for a device: its name, a file, ``native``, a TVM target."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .. import reading
from ..errors import DeviceError, did_you_mean
from ..kinds import is_text, shown
from .architecture import ARM, architecture
from .device import Device
from .device_files import FLAGS, device_names, devices, from_file, named, of_package, shipped
from .host import native
from .target import llvm, platform_of

if TYPE_CHECKING:
    from tvm.target import Target


def device(spec: "Device | str | os.PathLike[str] | Mapping[str, object] | Target") -> Device:
    """Return the device that is meant.

    Parameters
    ----------
    spec : Device, str, path, mapping or tvm.target.Target
        A device (returned as it is); the name or an alias of one; ``native``
        for this machine; the path of a device file, ending in ``.toml``; or a
        TVM target with ``mcpu``: as an object, a dict, JSON, a tag, or in the
        string form of older TVM releases (``llvm -mcpu=cortex-a72 ...``).

    Returns
    -------
    Device

    Raises
    ------
    DeviceError
        If there is no such device, its file is malformed, or a target asks
        for something else than the device of its ``mcpu`` has.

    Examples
    --------
    >>> device("core-avx2").name
    'haswell'
    >>> device("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72 -mattr=+neon").name
    'cortex-a72'
    """
    if isinstance(spec, Device):
        return spec
    if isinstance(spec, Mapping):
        return _from_target(spec, str(dict(spec)))
    if not isinstance(spec, str | os.PathLike):
        if hasattr(spec, "export"):
            return _from_target(spec.export(), str(spec))
        raise DeviceError(
            f"device {spec!r} is of type {type(spec).__name__}: expected {_choices()}"
        )
    text = os.fspath(spec).strip()
    if text == "native":
        return native()
    if text.endswith(".toml"):
        return from_file(Path(text))
    if text.startswith("{"):
        return _from_target(_parse_json(text), text)
    if text == "llvm" or text.startswith("-") or " -" in text:
        return _from_target(_parse_options(text), text)
    found = named(text)
    if found is not None:
        return found
    from tvm.target import Target, list_tags

    if text in (list_tags() or {}):
        return _from_target(Target(text).export(), text)
    raise DeviceError(
        f"unknown device {text!r}{did_you_mean(text, _all_names())}: expected {_choices()}"
    )


def _choices() -> str:
    return (
        f"one of {', '.join(device_names())}; 'native' for this machine; a device file of your own "
        "(my-board.toml); or a TVM target with mcpu"
    )


def _all_names() -> list[str]:
    return ["native", *(name for d in devices() for name in (d.name, *d.aliases))]


def _parse_json(text: str) -> Mapping[str, object]:
    try:
        return reading.parsed_object(text)
    except reading.Unreadable as error:
        raise DeviceError(f"target {shown(text)} is not valid JSON ({error})") from None


def _parse_options(text: str) -> dict[str, object]:
    options: dict[str, object] = {}
    for position, word in enumerate(text.split()):
        key, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and equals and value:
            options[key] = value
        elif position == 0 and not word.startswith("-"):
            options["kind"] = word
        else:
            raise DeviceError(
                f"target {text!r}: cannot read {word!r}: expected options of the form -mcpu=NAME"
            )
    return options


_TARGET_KEYS = ("kind", "mcpu", "mtriple", "mattr", "mfloat-abi", "num-cores")

# What selected schedules in older TVM releases, or is added by TVM itself, and says nothing about
# the processor.
_TARGET_NOISE = re.compile(r"keys|tag|host|device|model|libs|feature\..*")


def _from_target(options: Mapping[str, object], text: str) -> Device:
    """Translate a TVM target; its mcpu, or failing that its triple, decides the device."""

    def value(key: str) -> str | None:
        found = options.get(key)
        if found is not None and not is_text(found):
            raise DeviceError(f"target {text!r}: {key} is {found!r}: expected a string")
        return None if found is None else str(found)

    kind = value("kind")
    if kind not in (None, "llvm"):
        raise DeviceError(f"target {text!r}: its kind is {kind!r}: expected 'llvm', a CPU")
    for key in options:
        if key not in _TARGET_KEYS and not _TARGET_NOISE.fullmatch(key):
            raise DeviceError(
                f"target {text!r}: cannot use {key!r}{did_you_mean(key, _TARGET_KEYS)}: expected "
                f"{', '.join(_TARGET_KEYS)}. Put what else you need into a device file"
            )
    flags = _flags(options.get("mattr", ()), text)
    found = _device_of(value("mcpu"), value("mtriple"), flags, text)
    value("mfloat-abi")
    _check_abi(options, found, text)
    if "num-cores" in options:
        try:
            cores = int(str(options["num-cores"]))
        except ValueError:
            cores = 0
        if cores < 1:
            raise DeviceError(
                f"target {text!r}: num-cores is {options['num-cores']!r}: expected a whole number "
                "from 1"
            )
        found = replace(found, cores=cores)
    return found


def _device_of(mcpu: str | None, triple: str | None, flags: list[str], text: str) -> Device:
    arch = architecture(triple) if triple else None
    if mcpu == "native":
        return native()
    if mcpu in (None, "generic"):
        if arch and arch.told_by_triple:
            telling = {f"+{file.keys.get('told_by')}": name for name, file in shipped().items()}
            names = [telling[flag] for flag in flags if flag in telling]
            return of_package(names[0] if names else arch.device)
        raise DeviceError(
            f"target {text!r} names no processor (mcpu): TVM would silently compile for the oldest "
            f"one, on x86 to SSE code without FMA. Expected {_choices()}"
        )
    assert mcpu is not None
    found = named(mcpu)
    if found is None:
        raise DeviceError(
            f"target {text!r}: no device serves mcpu {mcpu!r}{did_you_mean(mcpu, _all_names())}, "
            "and TVM silently compiles a name it does not know to code without FMA. Expected "
            f"{_choices()}"
        )
    # The 64-bit cores run 32-bit code too, and the device for that is always the same.
    if arch is ARM and found.schedule == "arm":
        return of_package(ARM.device)
    return found


def check_target(target: "Target", found: Device) -> None:
    """Raise if code for a TVM target and for a device cannot be parts of one library.

    Parameters
    ----------
    target : tvm.target.Target
        What TVM compiles for.
    found : Device
        What kernels are compiled for.

    Raises
    ------
    DeviceError
        If the target is not the device's; both are named.
    """
    options = {"mtriple": str(llvm("llvm_get_system_triple")), **target.export()}
    mcpu, text = options.get("mcpu"), str(target)
    if mcpu != found.mcpu:
        with contextlib.suppress(DeviceError):  # Another name of the same processor.
            mcpu = _from_target(options, text).mcpu
    if options["kind"] != "llvm" or mcpu != found.mcpu:
        raise DeviceError(
            f"target {text!r} is not that of device {found.name!r}, for which convolutions are "
            f"compiled: expected tvm_directconv.device({found.name!r}).target(), or another device"
        )
    _check_abi(options, found, text)


def _check_abi(options: Mapping[str, object], found: Device, text: str) -> None:
    """Raise if a target asks for another system, float ABI or features than a device has."""
    triple = options.get("mtriple")
    if triple and platform_of(str(triple)) != platform_of(found.triple):
        if architecture(str(triple)) is not architecture(found.triple):
            advice = "correct one of the two"
        else:
            advice = f"leave it out, or {_derived(found, 'triple', triple)}"
        raise DeviceError(
            f"target {text!r}: mtriple is {triple!r}, but device {found.name!r} has "
            f"{found.triple!r}: {advice}"
        )
    float_abi = options.get("mfloat-abi")
    if float_abi not in (None, found.mfloat_abi):
        raise DeviceError(
            f"target {text!r}: mfloat-abi is {float_abi!r}, but device {found.name!r} has "
            f"{found.mfloat_abi!r}: leave it out"
        )
    for flag in _flags(options.get("mattr", ()), text):
        if (flag[1:] in found.features()) != (flag[0] == "+"):
            raise DeviceError(
                f"target {text!r}: mattr asks for {flag!r}, but code for device {found.name!r} is "
                f"built {'without' if flag[0] == '+' else 'with'} it: leave it out, or "
                f"{_derived(found, 'mattr', [*found.mattr, flag])}"
            )


def _derived(base: Device, key: str, value: object) -> str:
    return f'write a device file with parent = "{base.name}" and {key} = {json.dumps(value)}'


def _flags(mattr: object, text: str) -> list[str]:
    flags = mattr.split(",") if isinstance(mattr, str) else mattr
    flags = list(flags) if isinstance(flags, Iterable) else flags
    if not FLAGS.test(flags):
        raise DeviceError(f"target {text!r}: mattr is {mattr!r}: expected {FLAGS.expected}")
    return cast(list[str], flags)
