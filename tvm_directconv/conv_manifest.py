"""The manifest of a compiled convolution: everything about it that its code does not tell."""

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import manifest as manifests
from .blocking import Blocking
from .denormals import FLUSH, MODE
from .epilogue import BIAS, RANGE, SCALE, SCALES, Epilogue
from .errors import ArgumentError, DirectConvError, LibraryError
from .instructions import INSTRUCTIONS, Instruction
from .kinds import TEXT, THREADS, Kind, Table, shown
from .layout import ActivationLayout, ChannelLayout, Packing, VectorLayout, WeightLayout
from .precision import NumberType, Precision
from .quantization import OF_SUMS, Quantization, border_counts, corrected_bias
from .tiling import Tiling
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

    @classmethod
    def of(cls, tiling: Tiling, source: str) -> "ConvManifest":
        """Return that of a case in block sizes, which came from `source`."""
        case = tiling.case
        return cls(
            workload=case.workload,
            device=case.device.name,
            target=case.device.target_options(case.threads),
            threads=case.threads,
            blocking=tiling.blocking,
            instruction=tiling.rate.instruction,
            blocking_source=source,
            symbol=case.symbol,
            input_layout=case.input_layout,
            epilogue=case.epilogue,
            denormals=case.denormals,
        )

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
        if epilogue.rounded:
            numbers = 3 + OF_SUMS * epilogue.residual
            found[RANGE] = Packing(SCALES, VectorLayout(), (numbers,))
        return found

    def by_channel(
        self, weight: np.ndarray, meaning: Quantization, bias: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """Return what the epilogue reads, but for tensors, as plain arrays by name.

        Parameters
        ----------
        weight : numpy.ndarray
            Plain weights, OIHW.
        meaning : Quantization
            What whole numbers stand for.
        bias : numpy.ndarray, optional
            A number for each output channel, if the epilogue was asked for it.
        """
        found = {} if bias is None else {BIAS.name: bias}
        if self.epilogue.zero_point:
            zero_point = meaning.input_zero_point + self.instruction.shift(self.precision)
            found[BIAS.name] = corrected_bias(
                self.workload, self.epilogue, weight, bias, zero_point
            )
        if self.epilogue.requantize:
            found[SCALE] = meaning.multipliers(self.workload.out_channels)
        if self.epilogue.rounded:
            found[RANGE] = meaning.output_range(self.output_type, self.epilogue)
        return found

    def check_weight(self, weight: np.ndarray) -> None:
        """Raise if the instruction does not multiply these weights exactly.

        Raises
        ------
        ArgumentError
            With the weight that it does not.
        """
        least = self.instruction.least_weight
        if self.precision.weight.least is not None and weight.size and weight.min() < least:
            raise ArgumentError(
                f"the weight has {weight.min()}: expected {least} or more, of which "
                f"{self.instruction} adds up products in 16 bits"
            )

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
