"""Devices: what is known about a processor, and the TVM target made of it.

The facts stand in ``schedules/devices/*.toml``, one small file per processor
core, each inheriting from a more general one; ``generic.toml`` explains the
keys. :func:`device` turns whatever a user may write into a :class:`Device`.
"""

import contextlib
import functools
import json
import os
import platform
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tvm_directconv import reading
from tvm_directconv.architecture import AARCH64, ARM, X86_64, architecture
from tvm_directconv.errors import ArgumentError, DeviceError, did_you_mean
from tvm_directconv.kinds import (
    FLAG,
    Kind,
    is_positive,
    is_text,
    is_whole,
    problem,
    shown,
)

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from tvm.target import Target

__all__ = ["Device", "HostCpu", "Vector", "cpu_of", "device", "devices", "host_cpu", "native"]

_ROOT = "generic"
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Vector:
    """One usable vector width.

    Attributes
    ----------
    lanes : int
        fp32 values per vector.
    fma_per_cycle : float
        FMA instructions of this width that one core starts per cycle.
    """

    lanes: int
    fma_per_cycle: float


@dataclass(frozen=True)
class Device:
    """A processor core, and the board or chip it usually sits in.

    Attributes
    ----------
    name : str
        Name of the device file; tuning logs are kept under it.
    chain : tuple of str
        The device and those it falls back on, from itself to ``generic``.
    description : str
        One line for people.
    schedule : str
        Module of ``schedules/`` that serves this instruction set.
    triple : str
        LLVM target triple (TVM's ``mtriple``).
    mattr : tuple of str
        LLVM feature flags, such as ``+neon``.
    fma : bool
        False where the core has no fused multiply-add; one multiply and one
        add then count as one FMA everywhere here.
    vectors : tuple of Vector
        Usable widths, widest first.
    vector_registers : int
        Architectural vector registers.
    spare_registers : int
        How many of them the compiler needs beyond those a register tile is counted for, to load
        operands ahead of their use.
    fma_latency : float
        Cycles from one FMA to the next one that adds to the same register.
    loads_per_cycle : float
        Loads of the widest vector that one core starts per cycle.
    scalar_loads_per_cycle : float
        Loads of one float, be it into one lane or into all.
    l2_bytes_per_cycle : float
        Bytes that stream from the second-level cache into one core per cycle.
    l3_bytes_per_cycle : float
        The same from the third level.
    memory_operand_broadcast : bool
        An FMA can read one float from memory and use it in every lane.
    lane_operand : bool
        An FMA can use one lane of a register in every lane.
    l1d_bytes, l2_bytes, l3_bytes : int
        Cache that one core may count on when all work: the size of a private
        cache, or its share of a shared one. 0 where the level does not exist.
    cache_line_bytes : int
        Size of a cache line.
    cores : int
        Cores of the usual board or chip; of this machine for :func:`native`.
    mcpu, mfloat_abi : str, optional
        LLVM's processor name and float ABI, where they must be given.
    qemu_cpu : str, optional
        Processor for ``qemu-<arch> -cpu`` that has this instruction set.
    mca_cpu : str, optional
        Processor for ``llvm-mca -mcpu`` whose cycle model is right.
    boards : tuple of str
        Where the core is found.
    ghz : float, optional
        Nominal clock of the first board; None where nobody tells.
    aliases : tuple of str
        Other names of the device.
    """

    name: str
    chain: tuple[str, ...]
    description: str
    schedule: str
    triple: str
    mattr: tuple[str, ...]
    fma: bool
    vectors: tuple[Vector, ...]
    vector_registers: int
    spare_registers: int
    fma_latency: float
    loads_per_cycle: float
    scalar_loads_per_cycle: float
    l2_bytes_per_cycle: float
    l3_bytes_per_cycle: float
    memory_operand_broadcast: bool
    lane_operand: bool
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int
    cache_line_bytes: int
    cores: int
    mcpu: str | None = None
    mfloat_abi: str | None = None
    qemu_cpu: str | None = None
    mca_cpu: str | None = None
    boards: tuple[str, ...] = ()
    ghz: float | None = None
    aliases: tuple[str, ...] = ()

    @property
    def lanes(self) -> int:
        """fp32 lanes of the widest vector."""
        return self.vectors[0].lanes

    @property
    def peak_flops_per_cycle(self) -> float:
        """Most fp32 operations one core does per cycle; an FMA counts as two."""
        return max(2 * vector.lanes * vector.fma_per_cycle for vector in self.vectors)

    @property
    def is_host_runnable(self) -> bool:
        """Whether the processor and system that run this program can run the device's code."""
        return host_lacks(_options(self, 1)) is None

    def target(self, cores: int | None = None) -> "Target":
        """Return the TVM target of this device; parameters as in :meth:`target_options`."""
        from tvm.target import Target

        return Target(self.target_options(cores))

    def target_options(self, cores: int | None = None) -> dict[str, object]:
        """Return what the TVM target of this device is made of.

        Parameters
        ----------
        cores : int, optional
            Cores that parallel code and tuning may use; the device's own
            number if not given.

        Returns
        -------
        dict
            Options of an ``llvm`` target, as JSON has them.

        Raises
        ------
        DeviceError
            If `cores` is not positive, or if LLVM does not know the device's
            ``triple``, ``mcpu`` or ``mattr``. TVM itself only logs that and
            compiles for a lesser processor.
        """
        if cores is not None and cores < 1:
            raise DeviceError(f"cores is {cores}: expected at least 1")
        _features(self)  # Raises what LLVM does not know.
        return _options(self, cores or self.cores)


def host_lacks(options: Mapping[str, object]) -> str | None:
    """Return why this machine cannot run code for a TVM target.

    Parameters
    ----------
    options : Mapping
        As :meth:`Device.target_options` returns them.

    Returns
    -------
    str or None
        What is missing; None if the code runs here.
    """
    from tvm.target import Target

    here, there = str(_llvm("llvm_get_system_triple")), str(options["mtriple"])
    if _platform(there) != _platform(here):
        return f"the code is for {there}, this machine is {_plain(here)}"
    host = _host_features()
    needed = map(str, _llvm("llvm_get_cpu_features", Target(dict(options))))
    # LLVM knows nothing about some systems: there the triple has to do.
    missing = sorted(f for f in needed if _COMPUTES.fullmatch(f) and f not in host) if host else []
    return f"this machine's processor has no {', '.join(missing)}" if missing else None


# Features that LLVM uses in numeric code without being asked. The others of a processor (pku,
# wbnoinvd, spe, ...) are often hidden by virtual machines and no reason to refuse to run.
_COMPUTES = re.compile(
    r"s?sse\d?[.\da]*|avx\w*[.\d]*|fma4?|f16c|bmi2?|lzcnt|popcnt|movbe|gfni|neon|lse|sve2?|vfp4|hwdiv-arm"
)


# fp32 lanes of the widest register that comes with a feature, widest first.
_LEGAL_LANES = (("avx512f", 16), ("avx", 8), ("sse2", 4), ("neon", 4))


def _llvm(name: str, *args: object) -> Any:
    # Importing TVM takes a second or two, and reading device files needs none of it.
    from tvm.target import codegen

    return getattr(codegen, name)(*args)


@functools.cache
def _host_features() -> frozenset[str]:
    import tvm.target  # noqa: F401  Registers the function.
    from tvm_ffi import get_global_func

    found = get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return frozenset(str(name) for name, present in found.items() if present)


def _options(spec: Device, cores: int, mattr: Iterable[str] | None = None) -> dict[str, object]:
    triple = _with_vendor(spec.triple)
    options: dict[str, object] = {"kind": "llvm", "mtriple": triple, "num-cores": cores}
    if spec.mcpu:
        options["mcpu"] = spec.mcpu
    if flags := list(spec.mattr if mattr is None else mattr):
        options["mattr"] = flags
    if spec.mfloat_abi:
        options["mfloat-abi"] = spec.mfloat_abi
    return options


@functools.cache
def _features(spec: Device) -> frozenset[str]:
    """Return what LLVM takes the device to have, after checking that it knows what it is told."""
    if architecture(spec.triple) is None:
        raise DeviceError(
            f"device {spec.name!r}: triple is {spec.triple!r}: expected one of an x86-64, AArch64 "
            "or ARMv7 system, such as 'aarch64-linux-gnu'"
        )
    if spec.mcpu and not _llvm("llvm_is_valid_cpu", spec.mcpu, spec.triple):
        known = [str(cpu) for cpu in _llvm("llvm_get_cpu_archlist", _bare(spec.triple))]
        raise DeviceError(
            f"device {spec.name!r}: LLVM knows no mcpu {spec.mcpu!r} for {spec.triple!r}"
            f"{did_you_mean(spec.mcpu, known)}"
        )
    from tvm.target import Target

    features = frozenset(map(str, _llvm("llvm_get_cpu_features", Target(_options(spec, 1)))))
    legal = next((lanes for feature, lanes in _LEGAL_LANES if feature in features), 0)
    if spec.lanes > legal:
        raise DeviceError(
            f"device {spec.name!r}: vectors has {spec.lanes} lanes, but {spec.mcpu or spec.triple} "
            f"has registers of {legal}: correct vectors, or name an mcpu that has them"
        )
    for flag in spec.mattr:
        # LLVM ignores unknown features, so whether one exists shows only when it is switched on.
        probe = Target(_options(spec, 1, [f"+{flag[1:]}"]))
        if flag[1:] not in map(str, _llvm("llvm_get_cpu_features", probe)):
            raise DeviceError(
                f"device {spec.name!r}: mattr has {flag!r}, a feature that LLVM does not know for "
                f"{spec.triple!r}: correct or remove it"
            )
    return features


def _with_vendor(triple: str) -> str:
    """Return a triple as LLVM reads it: architecture, vendor, system and ABI.

    Of ``armv7l-linux-gnueabihf`` it would take "linux" for the vendor, and the ABI for the system:
    then its calls of the C library's conversions pass numbers where these do not look for them.
    """
    arch, *others = triple.split("-")
    return "-".join([arch, "unknown", *others]) if others[:1] == ["linux"] else triple


def _bare(triple: str) -> "Target":
    from tvm.target import Target

    return Target({"kind": "llvm", "mtriple": triple})


def _platform(triple: str) -> tuple[str, str, str]:
    """Return what decides whether code runs: architecture, system and ABI, without the vendor."""
    parts = triple.lower().split("-")
    known = architecture(triple)
    return known.name if known else parts[0], "linux" if "linux" in parts else "", parts[-1]


def _plain(triple: str) -> str:
    """Return a triple without the vendor, who may be that of a compiler."""
    return "-".join(filter(None, _platform(triple)))


# --- Device files -------------------------------------------------------------------------------

_MOST = 65536  # of what is counted: cores, registers, lanes


def _is_flag_list(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(flag, str) and re.fullmatch(r"[+-][\w.-]+", flag) for flag in value
    )


def _is_vector_list(value: object) -> bool:
    if not (isinstance(value, list) and value and all(isinstance(v, dict) for v in value)):
        return False
    if not all(
        v.keys() == {"lanes", "fma_per_cycle"}
        and is_whole(v["lanes"], 1, _MOST)
        and is_positive(v["fma_per_cycle"])
        for v in value
    ):
        return False
    lanes = [v["lanes"] for v in value]
    return lanes == sorted(set(lanes), reverse=True)


def _is_line_of_text(value: object) -> bool:
    return is_text(value) and str(value).isprintable()


_RATE = Kind("a number above 0", is_positive)
_COUNT = Kind(f"a whole number from 1 to {_MOST}", lambda v: is_whole(v, 1, _MOST))
_WHOLE = Kind(f"a whole number from 0 to {_MOST}", lambda v: is_whole(v, 0, _MOST))
_BYTES = Kind("a whole number of bytes from 0", lambda v: is_whole(v, 0, 2**63 - 1))
_LINE = Kind("a whole number of bytes from 1", lambda v: is_whole(v, 1, 2**63 - 1))
_TEXT = Kind("a non-empty string of one line", _is_line_of_text)
_NAMES = Kind("a list of strings", lambda v: isinstance(v, list) and all(map(_is_line_of_text, v)))
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
    "mattr": Kind("a list of features, each with + or - in front", _is_flag_list),
    "mfloat_abi": Kind('"hard" or "soft"', lambda v: v in ("hard", "soft")),
    "fma": FLAG,
    "vectors": Kind("a list of {lanes, fma_per_cycle}, widest first", _is_vector_list),
    "vector_registers": _COUNT,
    "spare_registers": _WHOLE,
    "fma_latency": _RATE,
    "loads_per_cycle": _RATE,
    "scalar_loads_per_cycle": _RATE,
    "l2_bytes_per_cycle": _RATE,
    "l3_bytes_per_cycle": _RATE,
    "memory_operand_broadcast": FLAG,
    "lane_operand": FLAG,
    "l1d_bytes": _LINE,
    "l2_bytes": _BYTES,
    "l3_bytes": _BYTES,
    "cache_line_bytes": _LINE,
    "cores": _COUNT,
    "qemu_cpu": _TEXT,
    "mca_cpu": _TEXT,
}
_NOT_INHERITED = {"abstract", "aliases", "boards", "ghz", "told_by"}
_OPTIONAL = {"mcpu", "mfloat_abi", "qemu_cpu", "mca_cpu", *_NOT_INHERITED}


class _File(NamedTuple):
    """One device file, as it stands."""

    source: str
    keys: dict[str, Any]


def _read(path: "Traversable") -> _File:
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
    for key in keys:
        if key not in _KEYS:
            raise DeviceError(
                f"device file {source}: unknown key {key!r}{did_you_mean(key, _KEYS)}: expected "
                f"one of {', '.join(_KEYS)}"
            )
    if wrong := problem(keys, _KEYS, optional=tuple(_KEYS)):
        raise DeviceError(f"device file {source}: {wrong}")
    return _File(source, keys)


@functools.cache
def _shipped() -> dict[str, _File]:
    folder = files("tvm_directconv.schedules") / "devices"
    paths = sorted(folder.iterdir(), key=lambda path: path.name)
    return {
        path.name.removesuffix(".toml"): _read(path)
        for path in paths
        if path.name.endswith(".toml")
    }


def _build(name: str, known: Mapping[str, _File]) -> Device:
    """Make the device of a file, filling in what it inherits."""
    source = known[name].source
    if known[name].keys.get("abstract"):
        raise DeviceError(
            f"device {name!r} is abstract, nothing can be built for it: expected one of "
            f"{', '.join(_names())}"
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
                f"package{did_you_mean(parent, _shipped())}: expected one of "
                f"{', '.join(_shipped())}"
            )
        if parent in chain:
            raise DeviceError(
                f"device file {last.source}: parent is {parent!r}, which closes the circle "
                f"{' -> '.join([*chain, parent])}: expected a chain that ends in {_ROOT!r}"
            )
        chain.append(parent)
        inherited = known[parent].keys.items()
        values = {k: v for k, v in inherited if k not in _NOT_INHERITED} | values
    missing = [key for key in _KEYS if key not in values and key not in _OPTIONAL]
    if missing:
        raise DeviceError(
            f"device file {source}: the key {missing[0]!r} is missing and not inherited from "
            f"{' -> '.join(chain[1:])}: expected {_KEYS[missing[0]].expected}"
        )
    values["vectors"] = tuple(Vector(**vector) for vector in values["vectors"])
    for key in ("mattr", "boards", "aliases"):
        values[key] = tuple(values.get(key, ()))
    known_fields = {field.name for field in fields(Device)}
    return Device(
        name=name,
        chain=tuple(chain),
        **{key: value for key, value in values.items() if key in known_fields},
    )


def _from_file(path: Path) -> Device:
    name = path.stem
    if name in _shipped():
        raise DeviceError(
            f"device file {path}: the name {name!r} is taken by a device of this package, and "
            "tuning logs are kept by name: rename the file"
        )
    return _build(name, {**_shipped(), name: _read(path)})


# --- What a user may write ----------------------------------------------------------------------


def _names() -> list[str]:
    return [name for name, file in _shipped().items() if not file.keys.get("abstract")]


def devices() -> list[Device]:
    """Return all devices that can be built for, sorted by name.

    Returns
    -------
    list of Device
        Those of this package; users' own files are not searched.
    """
    return [_build(name, _shipped()) for name in _names()]


def _named(name: str) -> Device | None:
    """Return the device that has this name or alias."""
    if name in _shipped():
        return _build(name, _shipped())
    for candidate in devices():
        if name in candidate.aliases:
            return candidate
    return None


def _choices() -> str:
    return (
        f"one of {', '.join(_names())}; 'native' for this machine; a device file of your own "
        "(my-board.toml); or a TVM target with mcpu"
    )


def _all_names() -> list[str]:
    return ["native", *(name for d in devices() for name in (d.name, *d.aliases))]


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
        return _from_file(Path(text))
    if text.startswith("{"):
        return _from_target(_parse_json(text), text)
    if text == "llvm" or text.startswith("-") or " -" in text:
        return _from_target(_parse_options(text), text)
    found = _named(text)
    if found is not None:
        return found
    from tvm.target import Target, list_tags

    if text in (list_tags() or {}):
        return _from_target(Target(text).export(), text)
    raise DeviceError(
        f"unknown device {text!r}{did_you_mean(text, _all_names())}: expected {_choices()}"
    )


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
    found = _device_of(value("mcpu"), value("mtriple"), text)
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


def _check_abi(options: Mapping[str, object], found: Device, text: str) -> None:
    """Raise if a target asks for another system, float ABI or features than a device has."""
    triple = options.get("mtriple")
    if triple and _platform(str(triple)) != _platform(found.triple):
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
        if (flag[1:] in _features(found)) != (flag[0] == "+"):
            raise DeviceError(
                f"target {text!r}: mattr asks for {flag!r}, but code for device {found.name!r} is "
                f"built {'without' if flag[0] == '+' else 'with'} it: leave it out, or "
                f"{_derived(found, 'mattr', [*found.mattr, flag])}"
            )


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
    options = {"mtriple": str(_llvm("llvm_get_system_triple")), **target.export()}
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


def _derived(base: Device, key: str, value: object) -> str:
    return f'write a device file with parent = "{base.name}" and {key} = {json.dumps(value)}'


def _flags(mattr: object, text: str) -> list[str]:
    flags = mattr.split(",") if isinstance(mattr, str) else mattr
    flags = list(flags) if isinstance(flags, Iterable) else flags
    if not _is_flag_list(flags):
        raise DeviceError(
            f"target {text!r}: mattr is {mattr!r}: expected {_KEYS['mattr'].expected}"
        )
    return cast(list[str], flags)


def _device_of(mcpu: str | None, triple: str | None, text: str) -> Device:
    arch = architecture(triple) if triple else None
    if mcpu == "native":
        return native()
    if mcpu in (None, "generic"):
        # Every Armv8-A processor has NEON and FMA, so there the triple says enough.
        if arch is AARCH64:
            return _build("aarch64", _shipped())
        if arch is ARM:
            return _build("armv7", _shipped())
        raise DeviceError(
            f"target {text!r} names no processor (mcpu): TVM would silently compile for the oldest "
            f"one, on x86 to SSE code without FMA. Expected {_choices()}"
        )
    assert mcpu is not None
    found = _named(mcpu)
    if found is None:
        raise DeviceError(
            f"target {text!r}: no device serves mcpu {mcpu!r}{did_you_mean(mcpu, _all_names())}, "
            "and TVM silently compiles a name it does not know to code without FMA. Expected "
            f"{_choices()}"
        )
    # The 64-bit cores run 32-bit code too, and the device for that is always the same.
    if arch is ARM and found.schedule == "arm":
        return _build("armv7", _shipped())
    return found


def native() -> Device:
    """Return the device of this machine.

    The processor is matched by LLVM's name for it, which is a guess where a
    virtual machine hides the model; a feature that only one device has knows
    better. If the system hides features, too, the first device of the
    fallback chain that runs here is taken. Cache sizes and cores are then
    this machine's, and its clock is not known; the name stays that of the
    core, so that tuning logs of equal cores can be shared.

    Returns
    -------
    Device

    Raises
    ------
    DeviceError
        If no device fits.
    """
    triple = str(_llvm("llvm_get_system_triple"))
    cpu = str(_llvm("llvm_get_system_cpu"))
    here = architecture(triple)
    if here is None:
        raise DeviceError(f"this machine's triple is {triple!r}: expected x86-64 or ARM")
    nearest = {X86_64: "x86-64-v4", AARCH64: "aarch64", ARM: "armv7"}[here]
    match = _named(cpu) if nearest != "armv7" else None
    for name, file in _shipped().items():
        if file.keys.get("told_by") in _host_features():
            match = _build(name, _shipped())
    for name in match.chain if match else _build(nearest, _shipped()).chain:
        if _shipped()[name].keys.get("abstract"):
            continue
        found = _build(name, _shipped())
        if "linux" not in triple:
            # Device files speak of Linux; elsewhere object files and ABI differ.
            found = replace(found, triple=triple)
        if found.is_host_runnable:
            return replace(found, ghz=None, cores=_usable_cores(), **_cache_sizes())
    raise DeviceError(
        f"this machine's processor ({cpu}, {triple}) is older than any device: expected at least "
        "SSE4.2 on x86-64, or NEON and VFPv4 on ARM"
    )


def check_cores(threads: int) -> None:
    """Raise if so many threads would only wait for each other here, where they are to be timed.

    Raises
    ------
    ArgumentError
        With how many cores there are.
    """
    if threads > (cores := _usable_cores()):
        raise ArgumentError(
            f"threads is {threads}, but this process may use {cores} core(s): expected no more, as "
            "threads that wait for a core cannot be measured"
        )


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cache_sizes() -> dict[str, Any]:
    """Return the cache fields of this machine that Linux tells, see :class:`Device`."""
    sizes: dict[str, Any] = {}
    threads_per_core = 1
    try:
        for index in sorted(_CACHES.glob("index*")):
            level = (index / "level").read_text().strip()
            if (index / "type").read_text().strip() == "Instruction":
                continue
            size = int((index / "size").read_text().strip().removesuffix("K")) * 1024
            threads = _count((index / "shared_cpu_list").read_text())
            if level == "1":
                threads_per_core = threads
                sizes["cache_line_bytes"] = int((index / "coherency_line_size").read_text())
            key = {"1": "l1d_bytes", "2": "l2_bytes", "3": "l3_bytes"}.get(level)
            if key:
                sizes[key] = size // max(1, threads // threads_per_core)
    except (OSError, ValueError):
        return {}
    return sizes


def _count(cpus: str) -> int:
    """Count the processors in a list such as ``0-3,8``."""
    ends = [part.split("-") for part in cpus.strip().split(",")]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ends)


class HostCpu(NamedTuple):
    """The processor of this machine.

    Attributes
    ----------
    id : str
        The same on all machines with this processor: ``AuthenticAMD 25/17`` (vendor, family and
        model) on x86, ``0x41 0xd08`` (implementer and part) on ARM, several of these joined by
        ``+`` where cores differ.
    name : str
        What the vendor calls it, as far as the system knows; the `id` if it does not.
    """

    id: str
    name: str


@functools.cache
def host_cpu() -> HostCpu:
    """Return what identifies the processor of this machine. Needs no TVM.

    Measurements are compared by it: the device of :func:`native` may stand for many processors.
    """
    try:
        text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return cpu_of(text, platform.machine(), platform.processor())


def cpu_of(text: str, machine: str, name: str = "") -> HostCpu:
    """Return the processor that Linux describes in ``/proc/cpuinfo``.

    Parameters
    ----------
    text : str
        Content of the file; empty if there is none.
    machine : str
        Architecture, which is all that is known of it if the file says nothing of use.
    name : str
        What else people call it then.

    Returns
    -------
    HostCpu
    """
    found: dict[str, None] = {}
    names: list[str] = []
    # A paragraph for each core; that of an ARM board itself may follow.
    for paragraph in text.split("\n\n"):
        pairs = (line.partition(":") for line in paragraph.splitlines())
        facts = {key.strip(): value.strip() for key, _, value in pairs}
        if {"vendor_id", "cpu family", "model"} <= facts.keys():
            found[f"{facts['vendor_id']} {facts['cpu family']}/{facts['model']}"] = None
        elif {"CPU implementer", "CPU part"} <= facts.keys():
            found[f"{facts['CPU implementer']} {facts['CPU part']}"] = None
        names += [facts[key] for key in ("model name", "Model", "Hardware") if facts.get(key)]
    if not found:
        return HostCpu(machine, name or machine)
    identity = "+".join(sorted(found))
    return HostCpu(identity, names[0] if names else identity)
