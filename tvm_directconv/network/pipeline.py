"""The passes from an imported network to kernels, as ``relax.get_pipeline("tvm_directconv")``."""

from typing import Any

import tvm
from tvm import relax

from ..device import Device
from ..device import device as find_device
from ..workload import ConvWorkload
from .operators import CONV2D, conv_attributes
from .passes.blocked_layout import blocked_layout
from .passes.fold_batch_norm import FoldBatchNorm
from .passes.fuse_convolutions import FuseConvolutions
from .passes.merge_groups import merge_groups
from .passes.recognize_activations import RecognizeActivations
from .passes.rows_as_images import RowsAsImages
from .passes.schedule_kernels import schedule_kernels
from .passes.simplify import Simplify
from .rewriter import Rewriter, compiling, op_name

NAME = "tvm_directconv"


def _first_passes(device: Device) -> list[Any]:
    """Return those after which a network's convolutions are what will be compiled."""
    return [
        Simplify,
        RowsAsImages,
        RecognizeActivations,
        FoldBatchNorm,
        FuseConvolutions,
        merge_groups(device),
    ]


def passes(
    device: Device | str = "native", threads: int = 1, blocking: str | None = None
) -> list[Any]:
    """Return the passes, in order.

    Parameters
    ----------
    device : Device or str
        For which processor.
    threads : int
        By how many threads the network is computed.
    blocking : str, optional
        ``model`` for the analytical model's block sizes; if not given, those of tuning logs where
        there are any.
    """
    target_device = find_device(device)
    return [
        *_first_passes(target_device),
        blocked_layout(target_device, threads, blocking),
        relax.transform.LegalizeOps(skip_ops=["relax.concat", "relax.reshape"]),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        schedule_kernels(target_device, threads),
    ]


def lowered(module: Any, device: Device, threads: int, blocking: str | None) -> Any:
    """Return a network after all :func:`passes`.

    Raises
    ------
    ModelError
        If one of them cannot compile it.
    """
    for transform in passes(device, threads, blocking):
        with compiling(f"the network (pass {transform.info.name})"):
            module = transform(module)
    return module


def convolutions(module: Any, device: Device) -> list[ConvWorkload]:
    """Return the convolutions of an imported network, in the order in which they are computed.

    Parameters
    ----------
    module : tvm.IRModule
        The network.
    device : Device
        What they will be compiled for.
    """
    for transform in _first_passes(device):
        module = transform(module)
    return [
        conv_attributes(value).workload
        for _, value in Rewriter(module).bindings
        if op_name(value) == CONV2D
    ]


@relax.register_pipeline(NAME)
def pipeline(**options: Any) -> Any:
    """Return all :func:`passes` as one."""
    return tvm.transform.Sequential(passes(**options), name=NAME)
