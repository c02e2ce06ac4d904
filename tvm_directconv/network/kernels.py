"""Kernels of a network to object files, those that were compiled before from a cache on disk."""

import functools
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import cache, compute, exponential, lowering, versions
from ..compute import symbol_of
from ..hardware import architecture
from ..hardware.device import Device
from ..lowering.marks import UNCHECKED
from ..lowering.pipeline import PIPELINE
from ..toolchain import object_code
from .operators import KERNEL, ConvAttributes
from .rewriter import compiling


def compile_kernels(
    kernels: dict[str, Any],
    device: Device,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[str, bytes]]:
    """Compile scheduled functions.

    A kernel's entry in the cache is named after the hash of its schedule and of all else that its
    code depends on. Processes can share the cache.

    Parameters
    ----------
    kernels : dict
        Scheduled functions by name.
    device : Device
        For which processor.
    threads : int
        Of the target.
    progress : callable, optional
        Told how many kernels are compiled, and how many there are.

    Returns
    -------
    dict
        For each name, the symbol of the function, without ``__tvm_ffi_``, and its object code.
    """
    folder = cache.folder("kernels")
    circumstances = _circumstances(device, threads)
    made = {}
    for number, (name, function) in enumerate(kernels.items()):
        if progress:
            progress(number, len(kernels))
        symbol = f"{_readable(name, function)}_{_digest(function, circumstances)}"
        path = folder / f"{symbol}.o"
        code = cache.load(path)
        if code is None:
            code = _compile(function, symbol, device, threads)
            cache.store(path, code)
        made[name] = symbol, code
    return made


def _readable(name: str, function: Any) -> str:
    """Return what stands before the hash, for those who look at symbols."""
    if KERNEL in function.attrs:
        attributes = ConvAttributes.from_json(function.attrs[KERNEL])
        return symbol_of(attributes.workload, attributes.epilogue)
    return re.sub(r"\d+(?=_|$)", "", name)[:48]


def _circumstances(device: Device, threads: int) -> str:
    """Return what the code of all kernels depends on, besides their schedules."""
    target = json.dumps(device.target_options(threads), sort_keys=True)
    pins = json.dumps(versions.pins(), sort_keys=True)
    return "\0".join([target, versions.__version__, pins, *_sources()])


@functools.cache
def _sources() -> list[str]:
    """Return the code that makes code of schedules."""
    passes = sorted(Path(lowering.__path__[0]).glob("*.py"))
    modules = architecture, exponential, compute
    files = [*passes, *(Path(module.__file__ or "") for module in modules)]
    return [path.read_text("utf-8") for path in files]


def _digest(function: Any, circumstances: str) -> str:
    recipe = "\0".join([function.script(show_meta=True), circumstances])
    return hashlib.sha256(recipe.encode()).hexdigest()[:16]


def _compile(function: Any, symbol: str, device: Device, threads: int) -> bytes:
    from tvm import IRModule, tirx

    target = device.target(threads)
    # Called by :file:`network.c` alone, which makes the arguments.
    found = {"global_symbol": symbol, "target": target, UNCHECKED: True}
    function = function.with_attr(found)
    with compiling(f"the step {symbol}"):
        module = tirx.build(IRModule({symbol: function}), target, pipeline=PIPELINE)
    return object_code(module)
