"""Quantised models of float ones: ranges of tensors on samples, then ONNX Runtime's quantiser.

The result is in the QDQ format: each quantised tensor passes QuantizeLinear and DequantizeLinear,
and operators between these are computed in whole numbers by who recognises them.
"""

import contextlib
import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import files
from ..emit.program import Port
from ..errors import ArgumentError, ModelError, ModelWarning, did_you_mean, path_of, said_by
from ..images import Pixels
from ..kinds import is_number, shown
from .noise import QuantizationReport, compared
from .onnx_import import Shapes, Values, as_defined, inputs_of, read_onnx
from .onnx_session import serialized, session, with_outputs
from .samples import Given, Samples

METHODS = ("minmax", "entropy", "percentile")
"""How ranges are found, the default first."""

TYPES = ("u8s8", "s8s8")
"""Types of activations and weights, the default first."""

PERCENTILE = 99.999
"""How much of a tensor's numbers is in its range, by default."""

_OPSET = 13
"""The first version of ONNX in which scales can be per channel."""

# Bins of histograms, which are on both sides of zero, and levels that entropy compares them with:
# as many bins as levels, which is ONNX Runtime's default, leave only one range to choose.
_BINS = {"entropy": 512, "percentile": 2048}
_LEVELS = 256

Progress = Callable[[str, int, int], object]


class _Ranges(NamedTuple):
    """How ranges are found."""

    method: str
    percentile: float


def quantize_network(
    model: str | Path,
    output: str | Path,
    samples: Given,
    *,
    check: Given | None = None,
    types: str = TYPES[0],
    method: str = METHODS[0],
    percentile: float | None = None,
    per_channel: bool = True,
    exclude: Sequence[str] = (),
    input_shapes: Shapes | None = None,
    input_values: Values | None = None,
    pixels: Pixels | None = None,
    progress: Progress | None = None,
) -> QuantizationReport:
    """Make a model of 8-bit integers of an ONNX file in float32.

    Parameters
    ----------
    model : str or Path
        The ONNX file. Versions before 13 are converted to that.
    output : str or Path
        The ONNX file to write, in the QDQ format; its name ends in ``.onnx``.
    samples : str, Path or sequence of mapping
        What ranges of tensors are found with: a folder of ``.npy``, ``.npz`` or image files, such a
        file, or arrays by the names of inputs. An array has the shape of its input, with any number
        of samples instead of the first size or in front of it; a single one may be without the
        first size. Images are resized to the input's.
    check : str, Path or sequence of mapping, optional
        Samples that the two models are compared on; those above if not given.
    types : str
        ``u8s8``: activations are uint8 and weights int8; ``s8s8``: both are int8.
    method : str
        ``minmax``: a range has all numbers that the samples lead to; ``percentile``: it has so many
        percent of them; ``entropy``: it is the one whose histogram, in 256 levels, loses least.
    percentile : float, optional
        For ``percentile``; 99.999 if not given.
    per_channel : bool
        Whether weights have a scale for each output channel, or one for all of them.
    exclude : sequence of str
        Names of nodes that stay in float32; of those without a name of their own, their outputs'.
    input_shapes : mapping, optional
        Sizes of inputs by name, for those that the model leaves open. The result has them fixed.
    input_values : mapping, optional
        Values of inputs by name, which are constants then.
    pixels : Pixels, optional
        What becomes of the pixels of images, which are 0 to 1 at first.
    progress : callable, optional
        Told what is done, how often it is done, and how often it will be.

    Returns
    -------
    QuantizationReport
        How far the models are apart.

    Warns
    -----
    ModelWarning
        Of what the quantiser has to say.

    Raises
    ------
    ModelError
        If the model cannot be read, has numbers of 8 or 16 bits already, or nothing in it can be
        quantised, or the output cannot be written.
    ArgumentError
        If samples do not fit the model, or something else is none of what is expected.
    """
    target = _checked_output(output, model)
    if types not in TYPES:
        raise ArgumentError(f"types is {shown(types)}: expected {' or '.join(TYPES)}")
    ranges = _checked_ranges(method, percentile)
    _import_quantization()
    original, known = read_onnx(_onnx_file(model), input_shapes, input_values)
    _refuse_quantized(original, model)
    with as_defined(model):
        _fix_values(original, known)
        ports = _ports(original)
    calibrated = Samples(samples, ports, pixels or Pixels())
    checked = calibrated if check is None else Samples(check, ports, pixels or Pixels())
    _name_nodes(original)
    excluded = _Excluded(original, exclude)
    told = progress or (lambda *_: None)
    with files.scratch() as folder:
        prepared = _prepared(original, folder)
    data, lost = _calibrated(prepared, calibrated, ranges, told)
    with _heard(), _infinite(lost):
        quantized = _quantized(prepared, data, types, per_channel, excluded.names_in(prepared))
    with _by_onnxruntime("compare the models"):
        report = compared(
            original,
            prepared,
            quantized,
            checked,
            len(calibrated),
            lambda *n: told("comparing", *n),
        )
    if not report.layers:
        raise ModelError(
            f"nothing in model {str(model)!r} was quantised: expected convolutions or products "
            "with constant weights in float32, of which not all are excluded"
        )
    with files.explained(target, ModelError):
        files.write(target, quantized.SerializeToString(deterministic=True))
    return report


# --- What is given ----------------------------------------------------------------------------


def _checked_output(output: Any, model: Any) -> Path:
    target = path_of(output, "the output", ModelError)
    if target.suffix != ".onnx":
        raise ModelError(
            f"cannot write a quantised model to {str(target)!r}: expected a name ending in .onnx"
        )
    if os.path.realpath(target) == os.path.realpath(path_of(model, "the model", ModelError)):
        raise ModelError(
            f"the output is the model itself, {str(target)!r}: expected another name, the model is "
            "needed to compare with"
        )
    with files.explained(target, ModelError):
        files.check_writable(target)
    return target


def _onnx_file(model: str | Path) -> Path:
    path = Path(model)
    if path.suffix == ".pt2":
        raise ModelError(
            f"model {str(path)!r} is one of PyTorch: expected an ONNX file, which "
            "torch.onnx.export writes"
        )
    return path


def _checked_ranges(method: str, percentile: float | None) -> _Ranges:
    if method not in METHODS:
        raise ArgumentError(
            f"method is {shown(method)}: expected {', '.join(METHODS[:-1])} or {METHODS[-1]}"
        )
    if percentile is None:
        return _Ranges(method, PERCENTILE)
    if method != "percentile":
        raise ArgumentError(
            f"percentile is {shown(percentile)}, but the method is {method}: expected none, or the "
            "method percentile"
        )
    if not is_number(percentile) or not 50 < percentile <= 100:
        raise ArgumentError(
            f"percentile is {shown(percentile)}: expected a number above 50, up to 100"
        )
    return _Ranges(method, float(percentile))


def _import_quantization() -> Any:
    try:
        import onnxruntime.quantization
    except ImportError as error:
        raise ModelError(
            f"quantising needs the Python packages onnx and onnxruntime ({error}): pip install "
            "'tvm-directconv[quantize]'"
        ) from None
    return onnxruntime.quantization


def _refuse_quantized(model: Any, path: Any) -> None:
    for node in _nodes(model.graph):
        kind = node.op_type
        if "Quantize" in kind or "Integer" in kind or kind.startswith(("QLinear", "QGemm")):
            raise ModelError(
                f"model {str(path)!r} is quantised already, its node "
                f"{(node.name or node.output[0])!r} is {kind}: expected one in float32"
            )


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph, and of the graphs in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _fix_values(model: Any, known: Mapping[str, np.ndarray]) -> None:
    """Leave only those inputs that are none of its constants."""
    from onnx import numpy_helper

    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in known.items())
    left = inputs_of(model)
    del model.graph.input[:]
    model.graph.input.extend(left)
    model.ir_version = max(model.ir_version, 4)  # Before, all constants were inputs, too.


def _ports(model: Any) -> list[Port]:
    import onnx
    from onnx import helper

    ports = []
    for value in model.graph.input:
        tensor = value.type.tensor_type
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        if value.type.WhichOneof("value") != "tensor_type" or kind in ("undefined", "string"):
            raise ModelError(f"input {value.name!r} is no tensor of numbers: expected only such")
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        ports.append(Port(value.name, tuple(dim.dim_value for dim in tensor.shape.dim), dtype))
    if not ports:
        raise ModelError("the model has no inputs: expected one that depends on something")
    return ports


# --- Nodes by their names ---------------------------------------------------------------------


def _name_nodes(model: Any) -> None:
    """Give each node a name that no other has: its own, or that of its first output."""
    names = [node.name for node in model.graph.node]
    taken = {name for name in names if name and names.count(name) == 1}
    for node in model.graph.node:
        if node.name in taken:
            continue
        name = next(filter(None, node.output), node.op_type)
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)


class _Excluded:
    """Nodes that are to stay in float32, which other nodes may become part of."""

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ArgumentError(f"exclude is {shown(names)}: expected a list of names of nodes")
        known = {node.name: node for node in model.graph.node}
        for name in names:
            if name not in known:
                raise ArgumentError(
                    f"there is no node {name!r}{did_you_mean(name, known)}: expected the name of "
                    "one, or of the output of one without a name of its own"
                )
        self._nodes = [known[name] for name in names]
        self._readers: dict[str, list[Any]] = {}
        self._tensors = {value.name for value in model.graph.input}
        for node in model.graph.node:
            self._tensors.update(node.output)
            for tensor in node.input:
                self._readers.setdefault(tensor, []).append(node)

    def names_in(self, prepared: Any) -> list[str]:
        """Return the names of the nodes that they are, or are part of, in the model prepared."""
        made = {name: node for node in prepared.graph.node for name in node.output}
        tensors: set[str] = set()
        waiting, seen = list(self._nodes), set()
        while waiting:
            node = waiting.pop()
            seen.add(node.name)
            here = {name for name in node.output if name in made}
            tensors |= here
            if not here:  # What it computes is not there any more: then who reads it has it in it.
                readers = [r for name in node.output for r in self._readers.get(name, [])]
                waiting += [reader for reader in readers if reader.name not in seen]
        found = set()
        while tensors:  # With what leads there by tensors that are new.
            node = made[tensors.pop()]
            found.add(node.name)
            tensors |= {name for name in node.input if name in made and name not in self._tensors}
        return sorted(found)


# --- Preparing --------------------------------------------------------------------------------


def _prepared(original: Any, folder: Path) -> Any:
    """Return a model with batch norms in convolutions, constants folded, and types of tensors."""
    import onnx

    model = type(original)()
    model.CopyFrom(original)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), _OPSET)
    if opset < _OPSET:
        try:
            model = onnx.version_converter.convert_version(model, _OPSET)
        except Exception as error:  # Of whatever kind.
            raise ModelError(
                f"the model is of version {opset} of ONNX's operators, and cannot be converted to "
                f"{_OPSET}, which quantising needs ({said_by(error)}): export it again with "
                f"opset {_OPSET} or later"
            ) from None
    path = folder / "prepared.onnx"
    with _by_onnxruntime("run the model"):
        session(serialized(model), simplified=path)
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)), data_prop=True)
    _name_nodes(model)
    made = {name for node in model.graph.node for name in node.output}
    known = [value for value in model.graph.value_info if value.name in made]
    del model.graph.value_info[:]  # Some may be of tensors that are gone.
    model.graph.value_info.extend(known)
    coarse = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    types |= {name: value.elem_type for name, value in _tensors(model).items()}
    for name, found in types.items():
        if found in coarse:
            raise ModelError(
                f"tensor {name!r} of the model is {onnx.TensorProto.DataType.Name(found).lower()}: "
                "expected a model in float32, from which scales of integers are found"
            )
    return model


def _tensors(model: Any) -> dict[str, Any]:
    """Return the types of tensors that are no constants."""
    graph = model.graph
    return {v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info, *graph.output)}


@contextlib.contextmanager
def _by_onnxruntime(what: str) -> Iterator[None]:
    """Turn what ONNX Runtime raises into a ModelError."""
    import onnxruntime

    try:
        yield
    except (ModelError, ArgumentError, OSError, MemoryError):
        raise
    except Exception as error:  # They have no base of their own.
        raise ModelError(
            f"onnxruntime {onnxruntime.__version__} cannot {what} ({said_by(error)}): expected a "
            "model that it runs"
        ) from error


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Have what the quantiser logs as warnings, each once."""
    said: dict[str, None] = {}

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said[record.getMessage()] = None

    handler = Handler(logging.WARNING)
    # It logs by the root logger, which gets a handler that prints if it has none.
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        for message in said:
            warnings.warn(message, ModelWarning, stacklevel=4)


# --- Calibrating ------------------------------------------------------------------------------


def _calibrated(
    prepared: Any, samples: Samples, ranges: _Ranges, told: Progress
) -> tuple[Any, list[str]]:
    """Return the ranges of tensors of floats, as the quantiser takes them, and those without one.

    ONNX Runtime's calibrators keep all tensors of all samples; here only one sample's are there.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, TensorsData
    from onnxruntime.quantization.calibrate import HistogramCollector

    floats = onnx.TensorProto.FLOAT
    names = {name for name, tensor in _tensors(prepared).items() if tensor.elem_type == floats}
    computed = sorted(names - {value.name for value in prepared.graph.input})
    with _by_onnxruntime("run the model"):
        run = session(serialized(with_outputs(prepared, computed)))
    passes = 1 if ranges.method == "minmax" else 2
    done = 0

    def tensors() -> Iterator[dict[str, np.ndarray]]:
        nonlocal done
        for feeds in samples:
            told("calibrating", done, passes * len(samples))
            done += 1
            with _by_onnxruntime("run the model on a sample"):
                found = dict(zip(computed, run.run(computed, feeds), strict=True))
            yield {name: array for name, array in (found | feeds).items() if name in names}

    extremes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for found in tensors():
        for name, array in found.items():
            if not array.size:
                array = np.zeros(1, np.float32)
            low, high = extremes.get(name, (array.min(), array.max()))
            extremes[name] = np.array(min(low, array.min())), np.array(max(high, array.max()))
    lost = [name for name, limits in extremes.items() if not np.isfinite(limits).all()]
    names -= set(lost)
    extremes = {name: extremes[name] for name in sorted(names)}
    if ranges.method == "minmax":
        return TensorsData(CalibrationMethod.MinMax, extremes), lost
    bins = _BINS[ranges.method]
    collector = HistogramCollector(ranges.method, False, bins, _LEVELS, ranges.percentile, "same")
    # With the extremes first, bins are those of the whole range, however the samples are sorted.
    with _silent():
        collector.collect({name: np.stack(limits) for name, limits in extremes.items()})
    for found in tensors():
        with _silent():
            collector.collect(found)
    with _silent():
        histograms = collector.compute_collection_result()
    return TensorsData(CalibrationMethod[ranges.method.capitalize()], histograms), lost


@contextlib.contextmanager
def _infinite(tensors: Sequence[str]) -> Iterator[None]:
    """Have errors say which tensors have no range, as the quantiser may miss it."""
    try:
        yield
    except ModelError as error:
        if not tensors:
            raise
        shown_tensors = ", ".join(map(repr, tensors[:3])) + ", ..." * (len(tensors) > 3)
        raise ModelError(
            f"the model has NaN or infinities on the samples, in {shown_tensors}: expected finite "
            "numbers in all that is quantised; exclude the nodes that compute and read these "
            f"({error})"
        ) from error


def _silent() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which nothing is printed: collectors do so."""
    return contextlib.redirect_stdout(io.StringIO())


# --- Quantising -------------------------------------------------------------------------------


def _quantized(
    prepared: Any, data: Any, types: str, per_channel: bool, excluded: Collection[str]
) -> Any:
    """Return the quantised model."""
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    model = type(prepared)()
    model.CopyFrom(prepared)
    kept = {*excluded, *_unsafe_limits(prepared)}
    # The quantiser has a scale for each channel of a group only, and mistakes it for one of each.
    by_tensor = [
        node.input[1]
        for node in model.graph.node
        if node.op_type == "ConvTranspose"
        and any(a.name == "group" and a.i > 1 for a in node.attribute)
    ]
    overrides = {name: [{"quant_type": QuantType.QInt8, "symmetric": True}] for name in by_tensor}
    activations = QuantType.QUInt8 if types == "u8s8" else QuantType.QInt8
    # Normalizations are computed in float32 whatever they are given.
    kinds = {kind for kind in (*QDQRegistry, *QLinearOpsRegistry) if "Normalization" not in kind}
    with _by_onnxruntime("quantise the model"):
        quantizer = QDQQuantizer(
            model,
            per_channel,
            False,
            QuantType.QInt8,
            activations,
            data,
            [],
            sorted(kept),
            sorted(kinds),
            {"TensorQuantOverrides": overrides},
        )
        found = quantizer.quantize_model()
        quantizer.model.topological_sort()
    _check_scales(found)
    _tidy(found, prepared)
    try:
        onnx.checker.check_model(found, full_check=True)
    except Exception as error:
        raise ModelError(
            f"the quantised model is not valid ({said_by(error)}): exclude the node that it names"
        ) from None
    return found


def _unsafe_limits(model: Any) -> list[str]:
    """Return the nodes that limit numbers to what has no zero in it, or is not known.

    The quantiser leaves limits out where they follow a convolution, as integers have some, too.
    But the range of integers always has zero in it.
    """
    from onnx import numpy_helper

    constants = {t.name: t for t in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type != "Clip":
            continue
        signs = ((name, sign) for name, sign in zip(node.input[1:], (1, -1), strict=False) if name)
        safe = (
            name in constants and (sign * numpy_helper.to_array(constants[name]) <= 0).all()
            for name, sign in signs
        )
        if not all(safe):
            found.append(node.name)
    return found


def _check_scales(model: Any) -> None:
    from onnx import numpy_helper

    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if not np.isfinite(numpy_helper.to_array(constants[node.input[1]])).all():
            raise ModelError(
                f"the scale of tensor {node.input[0]!r} is not finite: expected finite weights; "
                "exclude the nodes that read it"
            )


def _tidy(model: Any, prepared: Any) -> None:
    """Have the model as it would be without traces of how it was made."""
    used = {node.domain for node in _nodes(model.graph)} | {"", "ai.onnx"}
    opsets = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    del model.metadata_props[:]
    model.metadata_props.extend(prepared.metadata_props)
    # Their order comes from tables that Python and ONNX Runtime order by chance.
    first: dict[str, int] = {}
    for node in _nodes(model.graph):
        for name in node.input:
            first.setdefault(name, len(first))
    constants = sorted(model.graph.initializer, key=lambda t: (first.get(t.name, math.inf), t.name))
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
