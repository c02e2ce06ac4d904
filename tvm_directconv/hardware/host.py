"""This machine: its processor, cores and caches, and the device that stands for it."""

import functools
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ArgumentError, DeviceError
from .architecture import ARM, architecture, titles
from .device import Device
from .device_files import named, of_package, shipped
from .target import host_features, llvm

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CPU_INFO = Path("/proc/cpuinfo")
# Its lines that identify a core, one row for each architecture, and those that name it.
_IDENTITIES = {
    ("vendor_id", "cpu family", "model"): "{} {}/{}",
    ("CPU implementer", "CPU part"): "{} {}",
    ("mvendorid", "marchid"): "{} {}",
}
_NAMES = ("model name", "Model", "Hardware", "uarch")


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
    triple = str(llvm("llvm_get_system_triple"))
    cpu = str(llvm("llvm_get_system_cpu"))
    here = architecture(triple)
    if here is None:
        raise DeviceError(f"this machine's triple is {triple!r}: expected {titles()}")
    file = shipped().get(cpu)
    # LLVM calls processors that it does not know "generic". The 64-bit cores run 32-bit code too,
    # and the device for that is always the same.
    unnamed = here is ARM or (file is not None and file.keys.get("abstract"))
    match = None if unnamed else named(cpu)
    for name, file in shipped().items():
        if file.keys.get("told_by") in host_features():
            match = of_package(name)
    for name in match.chain if match else of_package(here.device).chain:
        if shipped()[name].keys.get("abstract"):
            continue
        found = of_package(name)
        if "linux" not in triple:
            # Device files speak of Linux; elsewhere object files and ABI differ.
            found = replace(found, triple=triple)
        if found.is_host_runnable:
            return replace(found, ghz=None, cores=_usable_cores(), **_cache_sizes())
    raise DeviceError(
        f"this machine's processor ({cpu}, {triple}) is older than any device: expected at least "
        "SSE4.2 on x86-64, NEON and VFPv4 on ARM, or V on RISC-V"
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
        model) on x86, ``0x41 0xd08`` (implementer and part) on ARM, ``0x710 0x8000000058000001``
        (mvendorid and marchid) on RISC-V, several of these joined by ``+`` where cores differ.
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
        for keys, identity in _IDENTITIES.items():
            if facts.keys() >= set(keys):
                found[identity.format(*(facts[key] for key in keys))] = None
        names += [facts[key] for key in _NAMES if facts.get(key)]
    if not found:
        return HostCpu(machine, name or machine)
    identity = "+".join(sorted(found))
    return HostCpu(identity, names[0] if names else identity)
