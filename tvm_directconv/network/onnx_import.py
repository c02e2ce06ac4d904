"""ONNX files in, Relax out, with input sizes fixed and what depends on no input computed.

TVM's importer is made for what is left when shapes are known; exporters leave the arithmetic of
shapes in the graph. So that is done first, on the graph without its large weights.
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError

Shapes = Mapping[str, Sequence[int]]
"""Input sizes, by the names of the inputs."""

# Elements of the largest constant that may be part of the arithmetic of shapes, and is folded.
_SMALL = 1024
_ROUNDS = 20


def import_onnx(path: str | Path, shapes: Shapes | None = None) -> Any:
    """Read an ONNX file.

    Parameters
    ----------
    path : str or Path
        The file. What it keeps in files of its own is read, too.
    shapes : mapping, optional
        Sizes of inputs that the file leaves open.

    Returns
    -------
    tvm.IRModule
        With one function, ``main``; weights are constants in it.

    Raises
    ------
    ModelError
        If the file is missing, corrupt or incomplete, an input has no size, or operators are not
        supported: all of them are named.
    """
    try:
        import onnx
    except ImportError:
        raise ModelError(
            "reading ONNX files needs the Python package onnx: pip install 'tvm-directconv[onnx]'"
        ) from None
    model = _read(Path(path), onnx)
    return from_onnx_model(model, shapes)


def from_onnx_model(model: Any, shapes: Shapes | None = None) -> Any:
    """Import an ``onnx.ModelProto``; see :func:`import_onnx`."""
    from tvm.relax.frontend.onnx import from_onnx

    from .rewriter import INPUT_NAMES, MAIN, OUTPUT_NAMES

    _fix_inputs(model, shapes or {})
    _refuse_unsupported(model)
    _fold_shapes(model)
    _binary_sums(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of names that are no identifiers.
        try:
            module = from_onnx(model)
        except Exception as error:  # Whatever a converter of TVM's does not expect.
            raise ModelError(
                f"TVM cannot import the model: {type(error).__name__}: {error}"
            ) from error
    names = {
        INPUT_NAMES: [value.name for value in _inputs(model)],
        OUTPUT_NAMES: [value.name for value in model.graph.output],
    }
    module[MAIN] = module[MAIN].with_attrs(names)
    return module


def _read(path: Path, onnx: Any) -> Any:
    if not path.is_file():
        raise ModelError(f"model {str(path)!r} does not exist: expected an ONNX file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own kinds of errors differ between its versions.
        raise ModelError(
            f"model {str(path)!r} is corrupt or no ONNX file ({type(error).__name__}: {error})"
        ) from None
    if not model.graph.node:
        raise ModelError(
            f"model {str(path)!r} has no operators: expected an ONNX file of a network"
        )
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise ModelError(
            f"model {str(path)!r} keeps weights in files beside it, of which one cannot be read "
            f"({error}): copy it to where the model is"
        ) from None
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ModelError(f"model {str(path)!r} is not valid: {error}") from None
    return model


def _inputs(model: Any) -> list[Any]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _fix_inputs(model: Any, shapes: Shapes) -> None:
    """Write the sizes of inputs into the model.

    Raises
    ------
    ModelError
        If one is missing or contradicts the model, or there is no such input.
    """
    inputs = {value.name: value for value in _inputs(model)}
    if unknown := [name for name in shapes if name not in inputs]:
        raise ModelError(
            f"there is no input {unknown[0]!r}: expected a size of {', '.join(map(repr, inputs))}"
        )
    open_inputs = []
    for name, value in inputs.items():
        declared = value.type.tensor_type.shape.dim
        described = [
            dim.dim_value if dim.dim_value > 0 else dim.dim_param or "?" for dim in declared
        ]
        wanted = list(shapes.get(name, []))
        if name not in shapes:
            if any(not isinstance(size, int) for size in described):
                open_inputs.append((name, described))
            continue
        fits = len(wanted) == len(described) and all(
            not isinstance(size, int) or size == given
            for size, given in zip(described, wanted, strict=True)
        )
        if not fits or any(size < 1 for size in wanted):
            raise ModelError(
                f"size of input {name!r} is {_sizes(wanted)}: expected {_sizes(described)}"
            )
        for dim, size in zip(declared, wanted, strict=True):
            dim.dim_value = size
    if open_inputs:
        listed = "; ".join(f"{name!r} is {_sizes(described)}" for name, described in open_inputs)
        example = ",".join(str(s) if isinstance(s, int) else "N" for s in open_inputs[0][1])
        raise ModelError(
            f"the model leaves sizes of inputs open: {listed}. Memory is planned when compiling: "
            f"give them, as in --input-shape {open_inputs[0][0]}:{example}"
        )


def _sizes(sizes: Sequence[Any]) -> str:
    return "x".join(map(str, sizes)) or "a scalar"


def _refuse_unsupported(model: Any) -> None:
    from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map

    known = set(_get_convert_map()) | {"Constant"}
    missing = defaultdict(list)
    for number, node in enumerate(model.graph.node):
        domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
        variant = _unsupported_variant(node)
        if domain or node.op_type not in known or variant:
            missing[domain + node.op_type + variant].append(node.name or f"#{number}")
    if missing:
        listed = "; ".join(f"{kind} ({', '.join(names)})" for kind, names in missing.items())
        raise ModelError(f"the model has operators that are not supported: {listed}")


def _unsupported_variant(node: Any) -> str:
    """Return what is said of a node of which TVM's importer takes no notice, empty for others."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "BatchNormalization" and "training_mode" in attributes:
        return " in training mode" if attributes["training_mode"].i else ""
    if node.op_type == "ConvTranspose" and "output_shape" in attributes:
        return " with output_shape"
    return ""


def _fold_shapes(model: Any) -> None:
    """Compute what depends on no input, as long as it is small, and the shapes of all tensors."""
    import onnx
    from onnx import helper, numpy_helper

    graph = model.graph
    # Inference copies the model: large weights are only declared to it.
    weights = [tensor for tensor in graph.initializer if np.prod(tensor.dims) > _SMALL]
    small = [tensor for tensor in graph.initializer if np.prod(tensor.dims) <= _SMALL]
    declared_inputs = list(graph.input)
    names = {value.name for value in graph.input}
    declared = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in weights
        if tensor.name not in names
    ]
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in small}
    del graph.initializer[:]
    graph.initializer.extend(small)
    graph.input.extend(declared)
    for _ in range(_ROUNDS):
        del graph.value_info[:]
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        shapes = {
            value.name: _known_shape(value) for value in [*inferred.value_info, *inferred.input]
        }
        kept, folded = [], False
        for node in graph.node:
            result = _folded(node, known, shapes, model.opset_import)
            if result is None:
                kept.append(node)
                continue
            folded = True
            known.update(result)
        del graph.node[:]
        graph.node.extend(kept)
        if not folded:
            break
        del graph.initializer[:]
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name) for name, value in known.items()
        )
    graph.initializer.extend(weights)
    del graph.input[:]
    graph.input.extend(declared_inputs)
    graph.value_info.extend(inferred.value_info)


def _known_shape(value: Any) -> list[int] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    return sizes if all(size >= 0 for size in sizes) else None


def _folded(
    node: Any,
    known: dict[str, np.ndarray],
    shapes: dict[str, list[int] | None],
    opsets: Sequence[Any],
) -> dict[str, np.ndarray] | None:
    """Return the outputs of a node that depend on no input, None if they do or are large."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    if node.op_type == "Shape":
        shape = shapes.get(node.input[0])
        if shape is None and node.input[0] in known:
            shape = list(known[node.input[0]].shape)
        if shape is None:
            return None
        first = next((a.i for a in node.attribute if a.name == "start"), 0)
        last = next((a.i for a in node.attribute if a.name == "end"), len(shape))
        return {node.output[0]: np.array(shape[first:last], np.int64)}
    if any(name and name not in known for name in node.input) or node.op_type.startswith("Random"):
        return None
    if node.op_type == "ConstantOfShape" and np.prod(known[node.input[0]]) > _SMALL:
        return None
    inputs = {name: known[name] for name in node.input if name}
    alone = helper.make_model(
        helper.make_graph(
            [node],
            "alone",
            [helper.make_tensor_value_info(name, _type(v), v.shape) for name, v in inputs.items()],
            [helper.make_empty_tensor_value_info(name) for name in node.output if name],
        ),
        opset_imports=opsets,
    )
    try:
        outputs = ReferenceEvaluator(alone).run(None, inputs)
    except Exception:  # Operators that onnx knows no reference of are left to TVM.
        return None
    if any(np.size(output) > _SMALL for output in outputs):
        return None
    return dict(zip(filter(None, node.output), map(np.asarray, outputs), strict=True))


def _type(array: np.ndarray) -> int:
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(array.dtype)


def _binary_sums(model: Any) -> None:
    """Write sums of several tensors as additions of two; TVM would stack all of them first."""
    from onnx import helper

    nodes = []
    for node in model.graph.node:
        if node.op_type != "Sum" or len(node.input) < 2:
            nodes.append(node)
            continue
        total = node.input[0]
        for number, name in enumerate(node.input[1:], 2):
            last = number == len(node.input)
            output = node.output[0] if last else f"{node.output[0]}_of_{number}"
            nodes.append(helper.make_node("Add", [total, name], [output], node.name))
            total = output
    del model.graph.node[:]
    model.graph.node.extend(nodes)
