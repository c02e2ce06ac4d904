"""Compiled convolutions: built of a case, exported, loaded and run."""

import json
import os
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import files, versions
from .blocking import Blocking
from .case import Case
from .conv_manifest import ConvManifest
from .denormals import flushed
from .epilogue import BIAS, OPERANDS, Epilogue
from .errors import (
    ArgumentError,
    LibraryError,
    ScheduleError,
    absence,
    did_you_mean,
    path_of,
    said_by,
)
from .hardware.device import Device
from .hardware.target import host_lacks
from .kinds import shown
from .layout import aligned_zeros, checked_packed, checked_plain
from .manifest import manifest_path
from .quantization import Quantization, checked_zero_point
from .resolution import resolve_blocking
from .runtime import BoundCall, library_bytes, load_library
from .scheduling import scheduled
from .toolchain import elf_info, find_toolchain, link_module, object_code
from .workload import ConvWorkload

SUFFIXES = (".so", ".o", ".s")
"""What can be exported: a shared library, an object file, the assembly."""


class CompiledConv:
    """A convolution that is compiled, in memory or loaded from a library.

    Attributes
    ----------
    manifest : ConvManifest
        What was compiled, how, and for what.
    compile_seconds : float or None
        Wall time of scheduling and compiling; None if loaded.
    """

    def __init__(
        self,
        manifest: ConvManifest,
        module: Any,
        compile_seconds: float | None = None,
    ) -> None:
        self.manifest = manifest
        self.compile_seconds = compile_seconds
        self._module = module
        self._function: Any = None

    @property
    def workload(self) -> ConvWorkload:
        """What is convolved."""
        return self.manifest.workload

    @property
    def blocking(self) -> Blocking:
        """The block sizes."""
        return self.manifest.blocking

    def __repr__(self) -> str:
        m = self.manifest
        return f"<CompiledConv {m.workload} for {m.device}, {m.threads} thread(s), {m.blocking}>"

    def pack_input(self, x: np.ndarray) -> np.ndarray:
        """Copy a plain NCHW input into the layout of :meth:`run`.

        Raises
        ------
        ArgumentError
            If it is no array of the workload's type and shape.
        """
        m = self.manifest
        checked_plain("the input", x, m.precision.pixel, self.workload.input_shape, "NCHW")
        return m.input_layout.pack(x)

    def pack_weight(self, weight: np.ndarray) -> np.ndarray:
        """Copy plain OIHW weights into the layout of :meth:`run`, without denormals.

        Raises
        ------
        ArgumentError
            If they are no array of the workload's type and shape.
        """
        m = self.manifest
        shape = self.workload.weight_shape
        checked_plain("the weight", weight, m.precision.weight, shape, "OIHW")
        m.check_weight(weight)
        return m.weight_layout.pack(flushed(weight, m.denormals))

    def pack_operand(self, name: str, array: np.ndarray) -> np.ndarray:
        """Copy an operand of the epilogue into the layout of :meth:`run`.

        Parameters
        ----------
        name : str
            Such as ``bias``: one number for each output channel, copied without denormals; or
            ``residual``: a plain NCHW tensor of the output's shape.
        array : numpy.ndarray
            The operand.

        Raises
        ------
        ArgumentError
            If there is no such operand, or it is no array of its type and shape.
        """
        m = self.manifest
        found = m.operands().get(name)
        if found is None:
            raise ArgumentError(_no_operand(name, m.operands()))
        if len(found.plain) == 4:
            meaning = "NCHW"
        else:
            array, meaning = flushed(array, m.denormals), "a number for each output channel"
        return found.layout.pack(
            checked_plain(f"the {name}", array, found.number, found.plain, meaning)
        )

    def pack_operands(
        self,
        weight: np.ndarray,
        quantization: Quantization | None = None,
        **operands: np.ndarray | None,
    ) -> dict[str, np.ndarray]:
        """Copy all operands of the epilogue into the layouts of :meth:`run`.

        Parameters
        ----------
        weight : numpy.ndarray
            Plain weights, of which depends what makes up for a zero point.
        quantization : Quantization, optional
            What whole numbers stand for. If not given, scales are 1 and zero points 0.
        **operands : numpy.ndarray
            Plain ones by name, as :meth:`pack_operand` takes them: those that the epilogue was
            asked for.

        Returns
        -------
        dict
            Packed operands by name.

        Raises
        ------
        ArgumentError
            If an operand is missing or of another type or shape, a zero point is not of its type,
            or the convolution was not built for it.
        """
        m = self.manifest
        if quantization is not None and not m.precision.whole:
            raise ArgumentError(f"a quantization is given: expected none for {m.precision}")
        plain = _given(operands, [operand.name for operand in m.epilogue.asked])
        meaning = quantization or Quantization()
        zero_point = meaning.input_zero_point
        if m.precision.pixel.least is not None:
            checked_zero_point("input_zero_point", zero_point, m.precision.pixel)
        if zero_point and not m.epilogue.zero_point:
            raise ArgumentError(
                f"input_zero_point is {zero_point}: expected 0, the convolution was built without "
                "a zero_point in its epilogue"
            )
        bias = plain.get(BIAS.name)
        if bias is not None and m.epilogue.zero_point:
            channels, each = (self.workload.out_channels,), "a number for each output channel"
            checked_plain("the bias", bias, m.precision.sum, channels, each)
        plain |= m.by_channel(weight, meaning, bias)
        return {name: self.pack_operand(name, plain[name]) for name in m.operands()}

    def unpack_output(self, y: np.ndarray) -> np.ndarray:
        """Copy an output of :meth:`run` into a plain NCHW array.

        Raises
        ------
        ArgumentError
            If it is no array of the output's type and packed shape.
        """
        m = self.manifest
        checked_plain("the output", y, m.output_type, m.output_shape, str(m.output_layout))
        return m.output_layout.unpack(y, self.workload.out_channels)

    def run(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        out: np.ndarray | None = None,
        **operands: np.ndarray | None,
    ) -> np.ndarray:
        """Convolve packed arrays. Nothing is copied or allocated but `out`.

        Parameters
        ----------
        x, weight : numpy.ndarray
            Input and weights as :meth:`pack_input` and :meth:`pack_weight` return them.
        out : numpy.ndarray, optional
            Receives the output; a new array if not given.
        **operands : numpy.ndarray
            Those of the epilogue by name, such as ``bias``, as :meth:`pack_operand` returns them.

        Returns
        -------
        numpy.ndarray
            The output, in blocks of channels; see :meth:`unpack_output`.

        Raises
        ------
        ArgumentError
            If an array has the wrong dtype, shape, strides or alignment, cannot be written, is
            missing, or is not asked for.
        LibraryError
            If this machine cannot run the code.
        """
        if out is None:
            m = self.manifest
            out = aligned_zeros(m.output_shape, m.output_type.name)
        call = self.bind(x, weight, out, **operands)
        call()
        return call.out

    def bind(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        out: np.ndarray,
        **operands: np.ndarray | None,
    ) -> BoundCall:
        """Check arrays as :meth:`run` does and return the call itself, to be made repeatedly."""
        m = self.manifest
        p = m.precision
        operands_of = m.operands()
        given = _given(operands, operands_of)
        checked = [
            checked_packed("the input", x, p.pixel, m.input_shape, str(m.input_layout)),
            checked_packed("the weight", weight, p.weight, m.weight_shape, str(m.weight_layout)),
        ]
        for name, found in operands_of.items():
            array, layout = given[name], str(found.layout)
            checked.append(checked_packed(f"the {name}", array, found.number, found.shape, layout))
        checked_packed("the output", out, m.output_type, m.output_shape, str(m.output_layout))
        for other in checked:
            if np.may_share_memory(out, other):
                raise ArgumentError(
                    "the output overlaps an input array: expected memory of its own"
                )
        return BoundCall(self._runnable(), (*checked, out), m.threads)

    def __call__(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        quantization: Quantization | None = None,
        **operands: np.ndarray | None,
    ) -> np.ndarray:
        """Convolve plain arrays: NCHW and OIHW in, NCHW out. Packs and unpacks.

        Parameters are those of :meth:`pack_operands`, and the input.

        Raises
        ------
        ArgumentError
            If an array has the wrong dtype or shape, or see :meth:`pack_operands`.
        LibraryError
            If this machine cannot run the code.
        """
        packed = self.run(
            self.pack_input(x),
            self.pack_weight(weight),
            **self.pack_operands(weight, quantization, **operands),
        )
        return self.unpack_output(packed)

    def _runnable(self) -> Any:
        if self._function is None:
            m = self.manifest
            reason = host_lacks(m.target)
            if reason:
                raise LibraryError(
                    f"cannot run code for {m.device} here: {reason}. Export it and run it on the "
                    "device, or build for device 'native'"
                )
            self._function = self._module[m.symbol]
        return self._function

    def export(self, path: str | Path) -> Path:
        """Write a shared library, an object file or the assembly, and the manifest beside it.

        Parameters
        ----------
        path : str or Path
            Ends in ``.so``, ``.o`` or ``.s``. The manifest is named the same with ``.json``
            appended.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        LibraryError
            If the name has another ending, the folder does not exist, or nothing can be written.
            What was there before is still there then.
        ToolchainError
            If there is no linker for the device, or it fails.
        """
        path = path_of(path, "what is exported to", LibraryError)
        if path.suffix not in SUFFIXES:
            raise LibraryError(
                f"cannot export to {str(path)!r}: expected a name ending in .so, .o or .s"
            )
        if not os.path.isdir(path.parent):
            raise LibraryError(f"cannot export to {str(path)!r}: the folder does not exist")
        beside = manifest_path(path)
        with files.explained(path, LibraryError), files.scratch(path.parent) as scratch:
            code, text = scratch / path.name, scratch / beside.name
            if path.suffix == ".s":
                code.write_text(self.assembly(), encoding="utf-8")
            elif path.suffix == ".o":
                code.write_bytes(object_code(self._module))
            else:
                link_module(self._module, code, find_toolchain(self.manifest.target["mtriple"]))
            found = json.dumps(self.manifest.to_dict(code.read_bytes()), indent=2) + "\n"
            text.write_text(found, encoding="utf-8")
            files.place({code: path, text: beside})
        return path

    def export_c(self, folder: str | Path) -> Path:
        """Write a folder in which ``make`` builds a C library and an example that uses it.

        Parameters
        ----------
        folder : str or Path
            Made if need be. The C function is named after it: ``<name>_run(x, weight, y)`` on
            packed arrays, with the epilogue's operands before ``y``.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        LibraryError
            If it cannot be written.
        """
        from .emit.c_folder import write_folder
        from .emit.program import Port, Program, Step, Tensor

        folder = path_of(folder, "the folder", LibraryError)
        m = self.manifest
        types = m.precision
        inputs = [
            Port("x", m.input_shape, types.pixel.name),
            Port("weight", m.weight_shape, types.weight.name),
        ]
        notes = {"x": str(m.input_layout), "weight": str(m.weight_layout)}
        for name, found in m.operands().items():
            inputs.append(Port(name, found.shape, found.number.name))
            notes[name] = str(found.layout)
        outputs = [Port("y", m.output_shape, m.output_type.name)]
        notes["y"] = str(m.output_layout)
        operands = [
            Tensor(f"{side}{place}", 0, port.shape, port.dtype)
            for side, ports in (("input", inputs), ("output", outputs))
            for place, port in enumerate(ports)
        ]
        program = Program(inputs, outputs, [Step(m.symbol, tuple(operands))])
        objects = {m.symbol: (m.symbol, object_code(self._module))}
        write_folder(folder, program, objects, m.device, m.target, m.threads, notes)
        return folder

    def assembly(self) -> str:
        """Return the assembly of the code. Not for loaded libraries."""
        return self._module.inspect_source("asm")


def _no_operand(name: str, known: Iterable[str]) -> str:
    names = [operand.name for operand in OPERANDS]
    if name in names:
        return f"a {name} is given: expected none, the convolution was built without it"
    names = list(dict.fromkeys([*names, *known]))
    return (
        f"{shown(name)} is no operand of an epilogue{did_you_mean(name, names)}: expected one of "
        f"{', '.join(names)}"
    )


def _given(
    operands: Mapping[str, np.ndarray | None], wanted: Collection[str]
) -> dict[str, np.ndarray]:
    """Return the operands that are given, after checking that just the wanted ones are."""
    given = {name: array for name, array in operands.items() if array is not None}
    for name in wanted:
        if name not in given:
            raise ArgumentError(
                f"there is no {name}: expected one, the convolution was built with it"
            )
    for name in given:
        if name not in wanted:
            raise ArgumentError(_no_operand(name, wanted))
    return given


def build(
    workload: ConvWorkload | str,
    device: Device | str = "native",
    threads: int = 1,
    blocking: Blocking | dict[str, Any] | str | Path | None = None,
    input_layout: str | None = None,
    schedule: str | Path | None = None,
    epilogue: Epilogue | None = None,
    denormals: str | None = None,
) -> CompiledConv:
    """Compile a convolution.

    Parameters
    ----------
    workload : ConvWorkload or str
        What is convolved, or its descriptor.
    device : Device or str
        For what; see :func:`tvm_directconv.device`.
    threads : int
        By how many threads; 1 gives serial code.
    blocking : Blocking, dict, str or Path, optional
        Block sizes; if not given, the best of the tuning logs, failing that the analytical
        model's. See :func:`tvm_directconv.resolution.resolve_blocking`.
    input_layout : str, optional
        Layout of the input: ``NCHW``, ``NHWC`` or ``NCHW<block>c``. If not given, plain NCHW for
        images of up to 3 channels, else blocks as other layers' outputs have them.
    schedule : str or Path, optional
        A Python file with a schedule to use instead of the device's.
    epilogue : Epilogue, optional
        Bias, residual and activation, applied before an output is stored.
    denormals : str, optional
        ``flush``: numbers below 2^-126 count as zeros, as processors can take a hundred times as
        long for them; ``keep``: they are computed with. If not given, they are flushed where the
        processor can; RISC-V's cannot.

    Returns
    -------
    CompiledConv

    Raises
    ------
    WorkloadError
        If the descriptor is malformed.
    BlockingError
        If the blocking or layout cannot be used.
    DeviceError, ScheduleError
        If device or schedule cannot be used.
    ArgumentError
        If `denormals` is none of the two that the device has, or `epilogue` none.
    """
    versions.check()
    from tvm import IRModule, tirx

    from .lowering.marks import DENORMALS
    from .lowering.pipeline import PIPELINE

    case = Case.of(workload, device, threads, input_layout, epilogue, denormals)
    tiling, source = resolve_blocking(blocking, case)
    begin = time.perf_counter()
    function = scheduled(tiling, schedule).mod[case.symbol].with_attr(DENORMALS, case.denormals)
    target = case.device.target(threads)
    try:
        module = tirx.build(IRModule({case.symbol: function}), target, pipeline=PIPELINE)
    except Exception as error:
        if schedule is None:
            raise
        raise ScheduleError(
            f"what schedule file {str(schedule)!r} makes of {case.workload} cannot be compiled: "
            f"{said_by(error)}"
        ) from error
    seconds = time.perf_counter() - begin
    return CompiledConv(ConvManifest.of(tiling, source), module, seconds)


def load(path: str | Path) -> CompiledConv:
    """Load an exported shared library.

    Parameters
    ----------
    path : str or Path
        A library written by :meth:`CompiledConv.export`, its manifest beside it.

    Returns
    -------
    CompiledConv

    Raises
    ------
    LibraryError
        If the file is missing, corrupt, for another machine, or not the manifest's.
    """
    versions.check()
    path = path_of(path, "the library", LibraryError)
    if not os.path.isfile(path):
        raise LibraryError(
            f"library {str(path)!r} {absence(path)}: expected a .so that "
            "'tvm-directconv compile' or export() wrote"
        )
    if path.suffix != ".so":
        raise LibraryError(
            f"cannot load {str(path)!r}: expected a shared library (.so); object files are for "
            "linking"
        )
    info = elf_info(path)
    manifest = ConvManifest.read(manifest_path(path), library_bytes(path))
    wanted = f"__tvm_ffi_{manifest.symbol}"
    if wanted not in info.defined:
        raise LibraryError(
            f"library {str(path)!r} does not define {shown(wanted)}: export it again"
        )
    return CompiledConv(manifest, load_library(path, manifest.device, manifest.target))
