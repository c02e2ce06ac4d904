"""Direct convolutions without memory overhead, compiled by Apache TVM.

The names below are loaded when first used: importing TVM takes seconds, and much of the package
(workloads, devices, reference) does without.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("tvm-directconv")

_HOMES = {
    "ConvWorkload": "workload",
    "networks": "workload",
    "workloads": "workload",
    "Device": "device",
    "device": "device",
    "devices": "device",
    "Blocking": "blocking",
    "explain": "explain",
    "CompiledConv": "build",
    "build": "build",
    "load": "build",
    "conv2d_reference": "reference",
    "max_error": "reference",
    "random_tensors": "reference",
    "DirectConvError": "errors",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    # From now on the name means this, also where a module of the package has the same name:
    # importing a submodule sets the attribute to the module.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
