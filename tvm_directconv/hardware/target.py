"""TVM targets: what they are made of, and what LLVM and this machine say about them.

All of it is about triples, processors and features by name, and needs no device.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DeviceError, did_you_mean
from .architecture import architecture, titles

if TYPE_CHECKING:
    from tvm.target import Target


def llvm(name: str, *args: object) -> Any:
    """Ask TVM's functions about LLVM; see ``tvm.target.codegen``."""
    # Importing TVM takes a second or two, and reading device files needs none of it.
    from tvm.target import codegen

    return getattr(codegen, name)(*args)


@functools.cache
def host_features() -> frozenset[str]:
    """Return the features of this machine's processor; empty where LLVM cannot tell."""
    import tvm.target  # noqa: F401  Registers the function.
    from tvm_ffi import get_global_func

    found = get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    return frozenset(str(name) for name, present in found.items() if present) | _told_by_linux()


# What Linux calls features of AArch64 that LLVM does not ask it for.
_CPUINFO = Path("/proc/cpuinfo")
_OF_LINUX = {
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "asimdfhm": "fp16fml",
    "i8mm": "i8mm",
    "bf16": "bf16",
}


def _told_by_linux() -> frozenset[str]:
    """Return the features of this machine that only Linux tells; none elsewhere."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    # Of processors with several kinds of cores, Linux lists what all of them have.
    names = next((line.partition(":")[2].split() for line in lines if line[:8] == "Features"), [])
    return frozenset(_OF_LINUX[name] for name in names if name in _OF_LINUX)


def host_lacks(options: Mapping[str, object]) -> str | None:
    """Return why this machine cannot run code for a TVM target.

    Parameters
    ----------
    options : Mapping
        As :func:`llvm_options` returns them.

    Returns
    -------
    str or None
        What is missing; None if the code runs here.
    """
    from tvm.target import Target

    here, there = str(llvm("llvm_get_system_triple")), str(options["mtriple"])
    if platform_of(there) != platform_of(here):
        return f"the code is for {there}, this machine is {_plain(here)}"
    host = host_features()
    needed = map(str, llvm("llvm_get_cpu_features", Target(dict(options))))
    known = architecture(there)
    # Other features of a processor (pku, wbnoinvd, spe, ...) are often hidden by virtual machines,
    # and no reason to refuse to run. About some systems LLVM knows nothing: the triple has to do.
    computes = re.compile(known.computes if known and host else "")
    missing = sorted(f for f in needed if computes.fullmatch(f) and f not in host)
    return f"this machine's processor has no {', '.join(missing)}" if missing else None


def llvm_options(
    triple: str, cores: int, mcpu: str | None, mattr: Iterable[str], mfloat_abi: str | None
) -> dict[str, object]:
    """Return what a TVM target is made of; see :class:`tvm_directconv.hardware.device.Device`."""
    options: dict[str, object] = {
        "kind": "llvm",
        "mtriple": _with_vendor(triple),
        "num-cores": cores,
    }
    if mcpu:
        options["mcpu"] = mcpu
    if flags := list(mattr):
        options["mattr"] = flags
    if mfloat_abi:
        options["mfloat-abi"] = mfloat_abi
    return options


@functools.cache
def llvm_features(
    triple: str, mcpu: str | None, mattr: tuple[str, ...], mfloat_abi: str | None
) -> frozenset[str]:
    """Return the features that LLVM takes a processor to have.

    Raises
    ------
    DeviceError
        If LLVM does not know what it is told.
    """
    if architecture(triple) is None:
        raise DeviceError(
            f"triple is {triple!r}: expected one of {titles()}, such as 'aarch64-linux-gnu'"
        )
    if mcpu and not llvm("llvm_is_valid_cpu", mcpu, triple):
        known = [str(cpu) for cpu in llvm("llvm_get_cpu_archlist", _bare(triple))]
        raise DeviceError(f"LLVM knows no mcpu {mcpu!r} for {triple!r}{did_you_mean(mcpu, known)}")
    from tvm.target import Target

    asked = Target(llvm_options(triple, 1, mcpu, mattr, mfloat_abi))
    features = frozenset(map(str, llvm("llvm_get_cpu_features", asked)))
    for flag in mattr:
        # LLVM ignores unknown features, so whether one exists shows only when it is switched on.
        probe = Target(llvm_options(triple, 1, mcpu, [f"+{flag[1:]}"], mfloat_abi))
        if flag[1:] not in map(str, llvm("llvm_get_cpu_features", probe)):
            raise DeviceError(
                f"mattr has {flag!r}, a feature that LLVM does not know for {triple!r}: "
                "correct or remove it"
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


def platform_of(triple: str) -> tuple[str, str, str]:
    """Return what decides whether code runs: architecture, system and ABI, without the vendor."""
    parts = triple.lower().split("-")
    known = architecture(triple)
    return known.name if known else parts[0], "linux" if "linux" in parts else "", parts[-1]


def _plain(triple: str) -> str:
    """Return a triple without the vendor, who may be that of a compiler."""
    return "-".join(filter(None, platform_of(triple)))
