"""Workload, device and blocking in, a compiled convolution out; export and load it."""

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import blocking as blocks
from . import files, reading, versions
from . import manifest as manifests
from .blocking import Blocking
from .compute import Epilogue, symbol_of
from .denormals import FLUSH, MODE, checked_mode, flushed
from .errors import (
    ArgumentError,
    BlockingError,
    DirectConvError,
    LibraryError,
    ScheduleError,
    WorkloadError,
    absence,
    did_you_mean,
    path_of,
    said_by,
    similar_file,
)
from .hardware.device import Device
from .hardware.lookup import device as find_device
from .hardware.target import host_lacks
from .kinds import TEXT, THREADS, Kind, Table, printable, shown
from .layout import (
    ActivationLayout,
    WeightLayout,
    aligned_zeros,
    checked_packed,
    checked_plain,
    pack_channels,
)
from .logs import choice
from .manifest import manifest_path
from .registry import find_schedule
from .runtime import BoundCall, library_bytes, load_library
from .toolchain import elf_info, find_toolchain, link_module, object_code
from .workload import ConvWorkload

SUFFIXES = (".so", ".o", ".s")
"""What can be exported: a shared library, an object file, the assembly."""

_TENSOR: Table = {
    "layout": TEXT,
    "shape": Kind("a list of whole numbers", lambda v: isinstance(v, list)),
}
_KINDS: Table = {
    "workload": TEXT,
    "name": Kind("a string", lambda v: isinstance(v, str)),
    "device": TEXT,
    "threads": THREADS,
    "blocking": {},
    "blocking_source": TEXT,
    "symbol": TEXT,
    "input": _TENSOR,
    "weight": _TENSOR,
    "output": _TENSOR,
    "epilogue": {},
    "denormals": MODE,
}


@dataclass(frozen=True)
class Manifest:
    """Everything about a compiled convolution that its code does not tell.

    It is written beside an exported library, as JSON, and is all that is needed to run it.

    Attributes
    ----------
    workload : ConvWorkload
    device : str
        Name of the device it was compiled for.
    target : dict
        TVM target.
    threads : int
        Threads the blocking was chosen for; the code is serial if 1.
    blocking : Blocking
    blocking_source : str
        Where the blocking came from: ``model``, ``user``, ``log haswell.jsonl: exact, ...``
    symbol : str
        Name of the function; in the library's symbol table ``__tvm_ffi_`` stands before it.
    input_layout : ActivationLayout
    epilogue : Epilogue
        What becomes of the outputs before they are stored; of nothing by default.
    denormals : str
        ``flush`` if they count as zeros, ``keep`` if not.
    """

    workload: ConvWorkload
    device: str
    target: dict[str, Any]
    threads: int
    blocking: Blocking
    blocking_source: str
    symbol: str
    input_layout: ActivationLayout
    epilogue: Epilogue = field(default_factory=Epilogue)
    denormals: str = FLUSH

    @property
    def weight_layout(self) -> WeightLayout:
        """Layout of the weights."""
        return self.blocking.weight_layout()

    @property
    def output_layout(self) -> ActivationLayout:
        """Layout of the output."""
        return self.blocking.output_layout()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input in its layout."""
        return self.input_layout.shape(self.workload.input_shape)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weights in their layout."""
        return self.weight_layout.shape(self.workload.weight_shape)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output in its layout."""
        return self.output_layout.shape(self.workload.output_shape)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Shape of the bias: blocks of output channels, channels in a block."""
        return (self.output_shape[1], self.output_shape[-1])

    def to_dict(self, library: bytes) -> dict[str, Any]:
        """Return what is written beside the library with these bytes."""
        return manifests.completed(self._values(), hashlib.sha256(library).hexdigest())

    def _values(self) -> dict[str, Any]:
        return {
            "workload": str(self.workload),
            "name": self.workload.name,
            "device": self.device,
            "target": self.target,
            "threads": self.threads,
            "blocking": self.blocking.to_dict(),
            "blocking_source": self.blocking_source,
            "symbol": self.symbol,
            "input": {"layout": str(self.input_layout), "shape": [*self.input_shape]},
            "weight": {"layout": str(self.weight_layout), "shape": [*self.weight_shape]},
            "output": {"layout": str(self.output_layout), "shape": [*self.output_shape]},
            "epilogue": asdict(self.epilogue),
            "denormals": self.denormals,
        }

    @classmethod
    def read(cls, path: Path, library: bytes) -> "Manifest":
        """Read the manifest of the library with these bytes.

        Raises
        ------
        LibraryError
            If it is missing, malformed, or was written for another library.
        """
        digest = hashlib.sha256(library).hexdigest()
        found = manifests.read(path, digest, manifests.CONVOLUTION, _KINDS)
        try:
            manifest = cls(
                workload=replace(ConvWorkload.parse(found["workload"]), name=found["name"]),
                device=found["device"],
                target=found["target"],
                threads=found["threads"],
                blocking=Blocking.from_dict(found["blocking"]),
                blocking_source=found["blocking_source"],
                symbol=found["symbol"],
                input_layout=ActivationLayout(found["input"]["layout"]),
                epilogue=Epilogue(**found["epilogue"]),
                denormals=found["denormals"],
            )
        except (DirectConvError, TypeError) as error:
            raise LibraryError(
                f"{path} is no manifest of a compiled convolution ({error}): export it again"
            ) from None
        for key, value in manifest._values().items():
            if value != found[key]:
                raise LibraryError(
                    f"{path} is no manifest of a compiled convolution ({key} is "
                    f"{shown(found[key])}, of what else it says follows {shown(value)}): export "
                    "it again"
                )
        return manifest


class CompiledConv:
    """A convolution that is compiled, in memory or loaded from a library.

    Attributes
    ----------
    manifest : Manifest
        What was compiled, how, and for what.
    compile_seconds : float or None
        Wall time of scheduling and compiling; None if loaded.
    """

    def __init__(
        self,
        manifest: Manifest,
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
            If it is no float32 array of the workload's shape.
        """
        return self.manifest.input_layout.pack(
            checked_plain("the input", x, self.workload.input_shape, "NCHW")
        )

    def pack_weight(self, weight: np.ndarray) -> np.ndarray:
        """Copy plain OIHW weights into the layout of :meth:`run`, without denormals.

        Raises
        ------
        ArgumentError
            If they are no float32 array of the workload's shape.
        """
        checked_plain("the weight", weight, self.workload.weight_shape, "OIHW")
        return self.manifest.weight_layout.pack(flushed(weight, self.manifest.denormals))

    def pack_bias(self, bias: np.ndarray) -> np.ndarray:
        """Copy a bias, one number for each output channel, as :meth:`pack_weight` does.

        Raises
        ------
        ArgumentError
            If it is no float32 array of that length.
        """
        channels = self.workload.out_channels
        checked_plain("the bias", bias, (channels,), "a number for each output channel")
        return pack_channels(flushed(bias, self.manifest.denormals), self.manifest.bias_shape[-1])

    def pack_residual(self, residual: np.ndarray) -> np.ndarray:
        """Copy a plain NCHW tensor of the output's shape into the layout of :meth:`run`.

        Raises
        ------
        ArgumentError
            If it is no float32 array of that shape.
        """
        return self.manifest.output_layout.pack(
            checked_plain("the residual", residual, self.workload.output_shape, "NCHW")
        )

    def unpack_output(self, y: np.ndarray) -> np.ndarray:
        """Copy an output of :meth:`run` into a plain NCHW array.

        Raises
        ------
        ArgumentError
            If it is no float32 array of the output's packed shape.
        """
        m = self.manifest
        checked_plain("the output", y, m.output_shape, str(m.output_layout))
        return m.output_layout.unpack(y, self.workload.out_channels)

    def run(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        out: np.ndarray | None = None,
        *,
        bias: np.ndarray | None = None,
        residual: np.ndarray | None = None,
    ) -> np.ndarray:
        """Convolve packed arrays. Nothing is copied or allocated but `out`.

        Parameters
        ----------
        x, weight : numpy.ndarray
            Input and weights as :meth:`pack_input` and :meth:`pack_weight` return them.
        out : numpy.ndarray, optional
            Receives the output; a new array if not given.
        bias, residual : numpy.ndarray, optional
            As :meth:`pack_bias` and :meth:`pack_residual` return them; given if the epilogue has
            them.

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
            out = aligned_zeros(self.manifest.output_shape)
        call = self.bind(x, weight, out, bias=bias, residual=residual)
        call()
        return call.out

    def bind(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        out: np.ndarray,
        *,
        bias: np.ndarray | None = None,
        residual: np.ndarray | None = None,
    ) -> "BoundCall":
        """Check arrays as :meth:`run` does and return the call itself, to be made repeatedly."""
        m = self.manifest
        self._check_operands(bias=bias, residual=residual)
        checked = [
            checked_packed("the input", x, m.input_shape, str(m.input_layout)),
            checked_packed("the weight", weight, m.weight_shape, str(m.weight_layout)),
        ]
        if bias is not None:
            blocks_of = "blocks of output channels"
            checked.append(checked_packed("the bias", bias, m.bias_shape, blocks_of))
        if residual is not None:
            layout = str(m.output_layout)
            checked.append(checked_packed("the residual", residual, m.output_shape, layout))
        checked_packed("the output", out, m.output_shape, str(m.output_layout))
        for other in checked:
            if np.may_share_memory(out, other):
                raise ArgumentError(
                    "the output overlaps an input array: expected memory of its own"
                )
        return BoundCall(self._runnable(), (*checked, out), m.threads)

    def _check_operands(self, **given: np.ndarray | None) -> None:
        for name, array in given.items():
            if getattr(self.manifest.epilogue, name) and array is None:
                raise ArgumentError(
                    f"there is no {name}: expected one, the convolution was built with it"
                )
            if array is not None and not getattr(self.manifest.epilogue, name):
                raise ArgumentError(
                    f"a {name} is given: expected none, the convolution was built without it"
                )

    def __call__(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        *,
        bias: np.ndarray | None = None,
        residual: np.ndarray | None = None,
    ) -> np.ndarray:
        """Convolve plain arrays: NCHW and OIHW in, NCHW out. Packs and unpacks.

        Raises
        ------
        ArgumentError
            If an array has the wrong dtype or shape.
        LibraryError
            If this machine cannot run the code.
        """
        packed = self.run(
            self.pack_input(x),
            self.pack_weight(weight),
            bias=None if bias is None else self.pack_bias(bias),
            residual=None if residual is None else self.pack_residual(residual),
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
            packed arrays, with bias and residual before ``y`` if the epilogue has them.

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
        inputs = {
            "x": (m.input_shape, m.input_layout),
            "weight": (m.weight_shape, m.weight_layout),
        }
        if m.epilogue.bias:
            inputs["bias"] = m.bias_shape, "blocks of output channels"
        if m.epilogue.residual:
            inputs["residual"] = m.output_shape, m.output_layout
        outputs = {"y": (m.output_shape, m.output_layout)}
        operands = [
            Tensor(f"{side}{number}", 0, shape, "float32")
            for side, ports in (("input", inputs), ("output", outputs))
            for number, (shape, _) in enumerate(ports.values())
        ]
        program = Program(
            inputs=[Port(name, shape, "float32") for name, (shape, _) in inputs.items()],
            outputs=[Port(name, shape, "float32") for name, (shape, _) in outputs.items()],
            steps=[Step(m.symbol, tuple(operands))],
        )
        notes = {name: str(layout) for name, (_, layout) in {**inputs, **outputs}.items()}
        objects = {m.symbol: (m.symbol, object_code(self._module))}
        write_folder(folder, program, objects, m.device, m.target, m.threads, notes)
        return folder

    def assembly(self) -> str:
        """Return the assembly of the code. Not for loaded libraries."""
        return self._module.inspect_source("asm")


def unscheduled(
    workload: ConvWorkload,
    device: Device,
    blocking: Blocking,
    threads: int,
    input_layout: ActivationLayout,
    epilogue: Epilogue | None = None,
) -> Any:
    """Return the function of a convolution before it is scheduled, in a tvm.IRModule.

    Parameters
    ----------
    workload, device, blocking, threads, input_layout
        As in :func:`build`, all given.
    epilogue : Epilogue, optional
        What becomes of the outputs before they are stored.
    """
    from tvm import IRModule

    from . import compute
    from .lowering.marks import SHAPES

    weight_layout, counted = blocking.weight_layout(), blocking.view(workload).output_shape
    func = compute.conv2d(workload, input_layout, weight_layout, epilogue, counted)
    symbol = symbol_of(workload, epilogue)
    # See lowering/registers.py: loads must not be merged across steps.
    func = func.with_attr(
        {
            "global_symbol": symbol,
            "tirx.noalias": False,
            "target": device.target(threads),
        }
    )
    if blocking.flat_rows:
        pixels = list(blocking.output_layout().shape(workload.output_shape))
        flat = ("residual", func.params[-1].name)
        shapes = [pixels if p.name in flat else [*map(int, p.shape)] for p in func.params]
        func = func.with_attr(SHAPES, shapes)
    return IRModule({symbol: func})


def scheduled(
    workload: ConvWorkload,
    device: Device,
    blocking: Blocking,
    threads: int,
    input_layout: ActivationLayout,
    schedule: str | Path | None = None,
    epilogue: Epilogue | None = None,
) -> Any:
    """Return the scheduled function of a convolution, before lowering.

    Parameters
    ----------
    workload, device, blocking, threads, input_layout
        As in :func:`build`, all given.
    schedule : str or Path, optional
        A user's schedule file.
    epilogue : Epilogue, optional
        What becomes of the outputs before they are stored.

    Returns
    -------
    tvm.s_tir.Schedule
        With one function, named :func:`symbol_of` workload and epilogue.

    Raises
    ------
    ScheduleError
        If the schedule refuses the workload or fails.
    """
    from tvm import s_tir

    apply = find_schedule(device, schedule)
    view = blocking.view(workload)
    sch = s_tir.Schedule(unscheduled(workload, device, blocking, threads, input_layout, epilogue))
    sch.work_on(symbol_of(workload, epilogue))
    try:
        refusal = apply(sch, view, device, blocking, threads)
    except Exception as error:
        if schedule is None:
            raise
        raise ScheduleError(
            f"schedule file {str(schedule)!r} failed on {workload}: {said_by(error)}"
        ) from error
    if refusal is not None:
        raise ScheduleError(f"schedule refuses {workload} on {device.name}: {refusal}")
    return sch


def resolve_blocking(
    blocking: "Blocking | dict[str, Any] | str | Path | None",
    workload: ConvWorkload,
    device: Device,
    threads: int,
    input_layout: ActivationLayout,
) -> tuple[Blocking, str]:
    """Return the blocking to use and where it came from.

    Parameters
    ----------
    blocking
        None or ``"auto"`` for the tuning logs, failing that the analytical model; ``"model"`` for
        the model alone; a :class:`Blocking` or its knobs by name; or the path of a JSON file with
        those knobs.

    Raises
    ------
    BlockingError
        If it is none of these, or cannot be used.
    """
    if blocking is None or blocking == "auto":
        if tuned := choice.best(workload, device, threads, input_layout):
            return tuned
        blocking = "model"
    if blocking == "model":
        return blocks.choose(workload, device, threads, input_layout), "model"
    source = "user"
    if isinstance(blocking, str | Path):
        # What stands in a manifest, and is printed, has to be text.
        path = str(blocking)
        source = f"file {printable(path)}"
        try:
            blocking = reading.json_object(path)
        except reading.Unreadable as error:
            near = did_you_mean(path, ("auto", "model")) or similar_file(path)
            raise BlockingError(
                f"blocking is {path!r} ({error}): expected 'auto', 'model' or a JSON file of knobs"
                + near
            ) from None
    try:
        if isinstance(blocking, dict):
            blocking = Blocking.from_dict(blocking.get("blocking", blocking))
        if not isinstance(blocking, Blocking):
            raise BlockingError(
                f"blocking is {shown(blocking)}: expected a Blocking, its knobs by name, 'auto', "
                "'model' or a file"
            )
        blocks.check(blocking, workload, device, input_layout)
    except BlockingError as error:
        raise BlockingError(f"{source}: {error}" if source != "user" else str(error)) from None
    return blocking, source


def build(
    workload: ConvWorkload | str,
    device: Device | str = "native",
    threads: int = 1,
    blocking: Blocking | dict[str, Any] | str | Path | None = None,
    input_layout: str | None = None,
    schedule: str | Path | None = None,
    epilogue: Epilogue | None = None,
    denormals: str = FLUSH,
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
        model's. See :func:`resolve_blocking`.
    input_layout : str, optional
        Layout of the input: ``NCHW``, ``NHWC`` or ``NCHW<block>c``. If not given, plain NCHW for
        images of up to 3 channels, else blocks as other layers' outputs have them.
    schedule : str or Path, optional
        A Python file with a schedule to use instead of the device's.
    epilogue : Epilogue, optional
        Bias, residual and activation, applied before an output is stored.
    denormals : str
        ``flush``: numbers below 2^-126 count as zeros, as processors can take a hundred times as
        long for them; ``keep``: they are computed with.

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
        If `denormals` is none of the two, or `epilogue` none.
    """
    versions.check()
    checked_mode(denormals)
    from tvm import IRModule, tirx

    from .lowering.marks import DENORMALS
    from .lowering.pipeline import PIPELINE

    if isinstance(workload, str):
        workload = ConvWorkload.parse(workload)
    if not isinstance(workload, ConvWorkload):
        raise WorkloadError(
            f"workload is {shown(workload)}: expected a ConvWorkload or its descriptor"
        )
    if epilogue is not None and not isinstance(epilogue, Epilogue):
        raise ArgumentError(
            f"epilogue is {shown(epilogue)}: expected an Epilogue, as Epilogue.parse('bias,relu')"
        )
    blocks.check_threads(threads)
    target_device = find_device(device)
    layout = (
        ActivationLayout(input_layout)
        if input_layout
        else blocks.default_input_layout(workload, target_device)
    )
    chosen, source = resolve_blocking(blocking, workload, target_device, threads, layout)
    begin = time.perf_counter()
    sch = scheduled(workload, target_device, chosen, threads, layout, schedule, epilogue)
    symbol = symbol_of(workload, epilogue)
    function = sch.mod[symbol].with_attr(DENORMALS, denormals)
    target = target_device.target(threads)
    try:
        module = tirx.build(IRModule({symbol: function}), target, pipeline=PIPELINE)
    except Exception as error:
        if schedule is None:
            raise
        raise ScheduleError(
            f"what schedule file {str(schedule)!r} makes of {workload} cannot be compiled: "
            f"{said_by(error)}"
        ) from error
    seconds = time.perf_counter() - begin
    manifest = Manifest(
        workload=workload,
        device=target_device.name,
        target=target_device.target_options(threads),
        threads=threads,
        blocking=chosen,
        blocking_source=source,
        symbol=symbol,
        input_layout=layout,
        epilogue=epilogue or Epilogue(),
        denormals=denormals,
    )
    return CompiledConv(manifest, module, seconds)


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
    manifest = Manifest.read(manifest_path(path), library_bytes(path))
    wanted = f"__tvm_ffi_{manifest.symbol}"
    if wanted not in info.defined:
        raise LibraryError(
            f"library {str(path)!r} does not define {shown(wanted)}: export it again"
        )
    return CompiledConv(manifest, load_library(path, manifest.device, manifest.target))
