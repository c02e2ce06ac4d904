"""Direct convolutions without memory overhead, compiled by Apache TVM.

None of the modules imports TVM before something is compiled or run: it takes seconds, and much of
the package (workloads, devices, the model, the reference) does without.
"""

from typing import TYPE_CHECKING, Any

from .blocking import Blocking
from .convolution import CompiledConv, build, load
from .epilogue import Epilogue
from .errors import DirectConvError, ModelWarning
from .explanation import explain
from .hardware.device import Device
from .hardware.device_files import devices
from .hardware.lookup import device
from .images import Pixels
from .logs.folders import use_logs
from .network.compile import compile_network
from .network.network import Network, load_network
from .network.quantize import quantize_network
from .quantization import Quantization
from .reference import (
    conv2d_reference,
    epilogue_reference,
    max_error,
    random_tensors,
)
from .specs import networks, workloads
from .versions import __version__
from .workload import ConvWorkload

if TYPE_CHECKING:
    from .tuning.tune import tune

__all__ = [
    "Blocking",
    "CompiledConv",
    "ConvWorkload",
    "Device",
    "DirectConvError",
    "Epilogue",
    "ModelWarning",
    "Network",
    "Pixels",
    "Quantization",
    "__version__",
    "build",
    "compile_network",
    "conv2d_reference",
    "device",
    "devices",
    "epilogue_reference",
    "explain",
    "load",
    "load_network",
    "max_error",
    "networks",
    "quantize_network",
    "random_tensors",
    "tune",
    "use_logs",
    "workloads",
]


def __getattr__(name: str) -> Any:
    if name == "tune":  # The tuner is large, and most programs do without.
        from .tuning.tune import tune

        return tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
