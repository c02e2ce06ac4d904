"""How far a quantised model is from the float one: noise of each layer, and of the outputs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .onnx_session import serialized, session, with_outputs
from .samples import Samples

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INPUT = "_QuantizeLinear_Input"
"""What the quantiser appends to the name of an output of the model, before it is quantised."""


@dataclass(frozen=True)
class LayerNoise:
    """The noise of a quantised layer: a convolution, or a product of matrices.

    Attributes
    ----------
    name : str
        The node's.
    operator : str
    output : str
        The tensor that is compared: the layer's output as others read it.
    snr : float
        Signal to quantisation noise in decibels: squares of the float model's numbers over those of
        the differences, over all samples. Infinite where there are none.
    own_snr : float
        The same if only this layer is quantised: its inputs are those of the float model.
    """

    name: str
    operator: str
    output: str
    snr: float
    own_snr: float


@dataclass(frozen=True)
class OutputNoise:
    """The noise of an output of the model.

    Attributes
    ----------
    name : str
    snr : float or None
        As for layers; None if it has no floats.
    agreement : float or None
        In how many of all cases the largest number along the classes is at the same place: along
        the second axis, of three axes along the last, of one along that. Of what is no floats, how
        many are equal. None if there is one class.
    """

    name: str
    snr: float | None
    agreement: float | None


@dataclass(frozen=True)
class QuantizationReport:
    """What became of a model that was quantised.

    Attributes
    ----------
    calibrated : int
        Samples that ranges were found with.
    checked : int
        Samples that the models were compared on.
    outputs : tuple of OutputNoise
        Of the model, beside the one that was given.
    layers : tuple of LayerNoise
        Those that are quantised, and first the one with the most noise of its own.
    kept : tuple of str
        Names of convolutions and products of matrices that are not quantised.
    """

    calibrated: int
    checked: int
    outputs: tuple[OutputNoise, ...]
    layers: tuple[LayerNoise, ...]
    kept: tuple[str, ...]


def compared(
    original: Any,
    prepared: Any,
    quantized: Any,
    samples: Samples,
    calibrated: int,
    told: Callable[[int, int], object],
) -> QuantizationReport:
    """Run models on samples and compare them.

    Parameters
    ----------
    original : onnx.ModelProto
        The model as it was given.
    prepared : onnx.ModelProto
        The one that was quantised.
    quantized : onnx.ModelProto
    samples : Samples
    calibrated : int
        For the report.
    told : callable
        Told how many samples are done, and how many there are.
    """
    layers, alone = _layers(prepared, quantized)
    tensors = [v for v in original.graph.output if v.type.WhichOneof("value") == "tensor_type"]
    outputs = [_Output(value.name) for value in tensors]
    exact = [name for layer in layers for name in (layer.exact, *layer.inputs.values())]
    runs = {
        "original": _Run(original, []),
        "float": _Run(prepared, exact),
        "int": _Run(quantized, [layer.found for layer in layers]),
        "alone": _Run(alone, [layer.found for layer in layers]),
    }
    for number, feeds in enumerate(samples):
        told(number, len(samples))
        wanted = runs["original"](feeds)
        right = runs["float"](feeds) | feeds
        found = runs["int"](feeds)
        by_layer = runs["alone"]({n: right[t] for x in layers for n, t in x.inputs.items()})
        for layer in layers:
            layer.noise.add(found[layer.found], right[layer.exact])
            layer.own.add(by_layer[layer.found], right[layer.exact])
        for output in outputs:
            output.add(found[output.name], wanted[output.name])
    rows = [
        LayerNoise(x.node.name, x.node.op_type, x.exact, x.noise.decibels, x.own.decibels)
        for x in layers
    ]
    done = {layer.node.name for layer in layers}
    return QuantizationReport(
        calibrated,
        len(samples),
        tuple(output.result for output in outputs),
        tuple(sorted(rows, key=lambda row: row.own_snr)),
        tuple(n.name for n in prepared.graph.node if n.op_type in _LAYERS and n.name not in done),
    )


class _Run:
    """A model that returns more tensors than its outputs, by name."""

    def __init__(self, model: Any, names: list[str]) -> None:
        inputs = {value.name for value in model.graph.input}
        more = [name for name in names if name not in inputs]
        self._session = session(serialized(with_outputs(model, more))) if model.graph.node else None
        self._names = [value.name for value in model.graph.output]
        self._names += [name for name in dict.fromkeys(more) if name not in self._names]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self._session.run(self._names, feeds) if self._session else []
        return dict(zip(self._names, found, strict=True))


@dataclass
class _Noise:
    """Sums of squares."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, found: np.ndarray, exact: np.ndarray) -> None:
        numbers = exact.astype(np.float64)
        self.signal += float(np.square(numbers).sum())
        same = found.shape == exact.shape  # As of a list of boxes it need not be.
        self.noise += float(np.square(found - numbers).sum()) if same else math.inf

    @property
    def decibels(self) -> float:
        if self.noise == 0:
            return math.inf
        ratio = self.signal / self.noise
        return 10 * math.log10(ratio) if ratio else -math.inf


@dataclass
class _Output:
    """What is found of an output."""

    name: str
    _noise: _Noise = field(default_factory=_Noise)
    _floats: bool = False
    _same: int = 0
    _cases: int = 0

    def add(self, found: np.ndarray, exact: np.ndarray) -> None:
        self._floats = exact.dtype.kind == "f"
        if self._floats:
            self._noise.add(found, exact)
            axis = -1 if exact.ndim in (1, 3) else 1
            if exact.ndim == 0 or exact.shape[axis] < 2:
                return
            if found.shape == exact.shape:
                found, exact = found.argmax(axis), exact.argmax(axis)
        same = found.shape == exact.shape
        self._same += int((found == exact).sum()) if same else 0
        self._cases += exact.size

    @property
    def result(self) -> OutputNoise:
        return OutputNoise(
            self.name,
            self._noise.decibels if self._floats else None,
            self._same / self._cases if self._cases else None,
        )


# --- Layers, alone ----------------------------------------------------------------------------


@dataclass
class _Layer:
    """A quantised node.

    Attributes
    ----------
    node : onnx.NodeProto
    found : str
        Its output in the quantised model, as floats again.
    exact : str
        The same tensor in the float model.
    inputs : dict of str to str
        Tensors of the float model by the inputs of the model in which each layer is alone.
    """

    node: Any
    found: str
    exact: str
    inputs: dict[str, str]
    noise: _Noise = field(default_factory=_Noise)
    own: _Noise = field(default_factory=_Noise)


def _layers(prepared: Any, quantized: Any) -> tuple[list[_Layer], Any]:
    """Return the quantised layers, and a model that has each with the float model's inputs."""
    from onnx import TensorProto, helper

    graph = quantized.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def reader(name: str, kind: str) -> Any:
        return next((node for node in readers.get(name, ()) if node.op_type == kind), None)

    floats = {name for node in prepared.graph.node for name in node.output}
    floats |= {value.name for value in prepared.graph.input}

    def exact(name: str) -> str:
        return name if name in floats else name.removesuffix(_INPUT)

    copies: dict[str, Any] = {}

    def copy(node: Any, inputs: list[str], output: str) -> str:
        """Add a node to the model in which layers are alone, once."""
        if output not in copies:
            copies[output] = type(node)()
            copies[output].CopyFrom(node)
            copies[output].input[:], copies[output].output[:] = inputs, [output]
            copies[output].name = output
        return output

    layers = []
    for node in graph.node:
        makers_of = [makers.get(name) for name in node.input[:2]]
        if node.op_type not in _LAYERS or not all(
            maker is not None and maker.op_type == "DequantizeLinear" for maker in makers_of
        ):
            continue
        inputs: dict[str, str] = {}
        operands = []
        for name in node.input:
            maker = makers.get(name)
            if maker is None or maker.op_type != "DequantizeLinear":
                if name and name not in constants:
                    inputs[f"exact {name}"] = exact(name)
                    name = f"exact {name}"
                operands.append(name)
            elif maker.input[0] in constants:
                operands.append(copy(maker, [*maker.input], name))
            else:
                rounder = makers[maker.input[0]]
                given, *scale = rounder.input
                inputs[f"exact {given}"] = exact(given)
                whole = copy(rounder, [f"exact {given}", *scale], f"exact {maker.input[0]}")
                operands.append(copy(maker, [whole, *maker.input[1:]], f"exact {name}"))
        found = copy(node, operands, node.output[0])
        for kind in ("QuantizeLinear", "DequantizeLinear"):
            if after := reader(found, kind):
                found = copy(after, [*after.input], after.output[0])
        layers.append(_Layer(node, found, exact(node.output[0]), inputs))
    used = {name for node in copies.values() for name in node.input}
    fed = dict.fromkeys(name for layer in layers for name in layer.inputs)
    alone = type(quantized)()
    alone.CopyFrom(quantized)
    alone.graph.CopyFrom(
        helper.make_graph(
            list(copies.values()),
            "alone",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in fed],
            [],
            [tensor for name, tensor in constants.items() if name in used],
        )
    )
    return layers, alone
