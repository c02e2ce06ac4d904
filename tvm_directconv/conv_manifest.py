"""The manifest of a compiled convolution: everything about it that its code does not tell."""

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import manifest as manifests
from .blocking import Blocking
from .denormals import FLUSH, MODE
from .epilogue import BIAS, RANGE, SCALE, SCALES, Epilogue
from .errors import DirectConvError, LibraryError
from .instructions import INSTRUCTIONS, Instruction
from .kinds import TEXT, THREADS, Kind, Table, shown
from .layout import ActivationLayout, ChannelLayout, Packing, VectorLayout, WeightLayout
from .precision import NumberType, Precision
from .quantization import OF_SUMS, border_counts
from .workload import ConvWorkload

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
    "instruction": Kind(f"one of {', '.join(INSTRUCTIONS)}", lambda v: v in INSTRUCTIONS),
    "blocking_source": TEXT,
    "symbol": TEXT,
    "input": _TENSOR,
    "weight": _TENSOR,
    "output": _TENSOR,
    "epilogue": {},
    "denormals": MODE,
}


@dataclass(frozen=True)
class ConvManifest:
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
    instruction : Instruction
        What multiplies and adds.
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
    instruction: Instruction
    blocking_source: str
    symbol: str
    input_layout: ActivationLayout
    epilogue: Epilogue = field(default_factory=Epilogue)
    denormals: str = FLUSH

    @property
    def precision(self) -> Precision:
        """The number types of its tensors."""
        return self.workload.precision

    @property
    def weight_layout(self) -> WeightLayout:
        """Layout of the weights."""
        return self.blocking.weight_layout(self.instruction, self.workload.depthwise)

    @property
    def output_layout(self) -> ActivationLayout:
        """Layout of the output."""
        return self.blocking.output_layout(self.workload)

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
    def output_type(self) -> NumberType:
        """The number type of the output."""
        return self.epilogue.output(self.precision)

    def operands(self) -> dict[str, Packing]:
        """Return the arrays that the epilogue reads, by name, in the order of parameters."""
        epilogue, by_channel = self.epilogue, ChannelLayout(self.blocking.lanes)
        channels, number = self.workload.out_channels, self.precision.sum
        found = {}
        for operand in epilogue.operands:
            if not operand.by_channel:
                plain = self.workload.output_shape
                found[operand.name] = Packing(self.output_type, self.output_layout, plain)
                continue
            borders = border_counts(self.workload, epilogue) if operand == BIAS else ()
            found[operand.name] = Packing(number, by_channel, (channels, *borders))
        if epilogue.requantize:
            found[SCALE] = Packing(SCALES, by_channel, (channels,))
            numbers = 3 + OF_SUMS * epilogue.residual
            found[RANGE] = Packing(SCALES, VectorLayout(), (numbers,))
        return found

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
            "instruction": self.instruction.name,
            "symbol": self.symbol,
            "input": {"layout": str(self.input_layout), "shape": [*self.input_shape]},
            "weight": {"layout": str(self.weight_layout), "shape": [*self.weight_shape]},
            "output": {"layout": str(self.output_layout), "shape": [*self.output_shape]},
            "epilogue": asdict(self.epilogue),
            "denormals": self.denormals,
        }

    @classmethod
    def read(cls, path: Path, library: bytes) -> "ConvManifest":
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
                instruction=INSTRUCTIONS[found["instruction"]],
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
