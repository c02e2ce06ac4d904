"""The passes from an imported network to kernels, as ``relax.get_pipeline("tvm_directconv")``."""

from collections.abc import Collection
from typing import Any

import tvm
from tvm import relax

from ..case import check_threads
from ..denormals import checked_mode
from ..emit.program import Program
from ..errors import BlockingError, did_you_mean
from ..hardware.device import Device
from ..hardware.lookup import check_target
from ..hardware.lookup import device as find_device
from ..toolchain import find_toolchain
from ..workload import ConvWorkload
from .kernels import compile_kernels
from .operators import CONV2D, LEGALIZED, conv_attributes
from .passes.blocked_layout import blocked_layout
from .passes.convert_precision import convert_precision
from .passes.count_work import CountWork
from .passes.dequantize_late import DequantizeLate
from .passes.fold_batch_norm import FoldBatchNorm
from .passes.fuse_convolutions import FuseConvolutions
from .passes.note_scales import NoteScales
from .passes.recognize_activations import RecognizeActivations
from .passes.rows_as_images import RowsAsImages
from .passes.schedule_kernels import schedule_kernels
from .passes.simplify import Simplify
from .passes.whole_operators import WholeOperators
from .planning import program_of
from .rewriter import MAIN, Rewriter, op_name, prepared
from .vm import vm_module

NAME = "tvm_directconv"


def first_passes() -> list[Any]:
    """Return those after which a network's convolutions are what will be compiled."""
    return [
        Simplify,
        NoteScales,
        DequantizeLate,
        RowsAsImages,
        RecognizeActivations,
        FoldBatchNorm,
        FuseConvolutions,
        WholeOperators,
        CountWork,
    ]


def passes(
    device: Device | str = "native",
    threads: int = 1,
    blocking: str | None = None,
    denormals: str | None = None,
    dtype: str | None = None,
    keep: Collection[str | int] = (),
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
    denormals : str, optional
        ``flush`` or ``keep``; see :mod:`tvm_directconv.denormals`.
    dtype : str, optional
        One of :data:`tvm_directconv.precision.DTYPES`, in which convolutions of float32 are
        computed, or ``mixed`` for the fastest of 16 bits; if not given, what the model's weights
        are stored in, failing that float32.
    keep : collection of str or int
        Those that are not: the name of the model's node, the place among :func:`convolutions`, from
        0 on, or the descriptor of the workload.

    Raises
    ------
    BlockingError
        If threads or blocking cannot be used.
    ArgumentError
        If `denormals` is none of the two that the device has, or there is no such `dtype`, or
        nothing that it is for.
    DeviceError
        If the device has no instruction for it.
    """
    return [*first_passes(), *later_passes(device, threads, blocking, denormals, dtype, keep)]


def later_passes(
    device: Device | str,
    threads: int,
    blocking: str | None,
    denormals: str | None,
    dtype: str | None,
    keep: Collection[str | int],
) -> list[Any]:
    """Return those of :func:`passes` that depend on the processor and the number types."""
    check_threads(threads)
    if blocking not in (None, "auto", "model"):
        raise BlockingError(
            f"blocking is {str(blocking)!r}: expected 'auto' or 'model', as a network has many "
            f"convolutions{did_you_mean(str(blocking), ['auto', 'model'])}"
        )
    target_device = find_device(device)
    mode = checked_mode(denormals, target_device)
    return [
        convert_precision(target_device, dtype, keep),
        blocked_layout(target_device, threads, blocking, mode),
        relax.transform.LegalizeOps(LEGALIZED, skip_ops=["relax.concat", "relax.reshape"]),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        schedule_kernels(target_device, threads, mode),
    ]


def planned(
    module: tvm.IRModule,
    device: Device,
    threads: int = 1,
    blocking: str | None = None,
    denormals: str | None = None,
    dtype: str | None = None,
    keep: Collection[str | int] = (),
) -> Program:
    """Return the program of an imported network; parameters as for :func:`passes`."""
    for transform in passes(device, threads, blocking, denormals, dtype, keep):
        module = transform(module)
    return program_of(module, device, checked_mode(denormals, device))


def convolutions(module: Any) -> list[ConvWorkload]:
    """Return the convolutions of an imported network, in the order in which they are computed.

    Parameters
    ----------
    module : tvm.IRModule
        The network.
    """
    for transform in first_passes():
        module = transform(module)
    return [
        conv_attributes(value).workload
        for _, value in Rewriter(module).bindings
        if op_name(value) == CONV2D
    ]


@relax.register_pipeline(NAME)
def pipeline(
    device: Device | str | None = None,
    threads: int = 1,
    blocking: str | None = None,
    denormals: str | None = None,
    dtype: str | None = None,
    keep: Collection[str | int] = (),
) -> Any:
    """Return the pass from a network to what :func:`tvm.relax.build` has only to link.

    It runs all :func:`passes`, plans memory as :func:`tvm_directconv.compile_network` does, and
    compiles the kernels.

    Parameters
    ----------
    device : Device or str, optional
        For which processor; if not given, for that of the current target, failing that for this
        machine's.
    threads, blocking, denormals, dtype, keep
        As for :func:`passes`.
    """

    def transform(module: tvm.IRModule, _context: Any) -> tvm.IRModule:
        target = tvm.target.Target.current()
        found = find_device(device or target or "native")
        if target is not None:
            check_target(target, found)
        toolchain = find_toolchain(found.triple)
        module = prepared(module)
        program = planned(module, found, threads, blocking, denormals, dtype, keep)
        objects = compile_kernels(program.kernels, found, threads)
        return vm_module(program, objects, toolchain, found.target(threads), module[MAIN])

    return tvm.transform.module_pass(transform, opt_level=0, name=NAME)
