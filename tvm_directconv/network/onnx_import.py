"""ONNX files in, Relax out, with the sizes of inputs fixed."""

import contextlib
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError, absence, said_by
from ..kinds import is_whole, shown

Shapes = Mapping[str, Sequence[int]]
"""Input sizes, by the names of the inputs."""

Values = Mapping[str, Any]
"""Values of inputs, which are constants then, by the names of the inputs."""


def import_onnx(
    path: str | Path, shapes: Shapes | None = None, values: Values | None = None
) -> Any:
    """Read an ONNX file.

    Parameters
    ----------
    path : str or Path
        The file. What it keeps in files of its own is read, too.
    shapes : mapping, optional
        Sizes of inputs that the file leaves open.
    values : mapping, optional
        Values of inputs that are to be constants.

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
    model, graph = _graph(path, shapes, values)
    from .onnx_graph.stage import to_relax
    from .rewriter import INPUT_NAMES, MAIN, OUTPUT_NAMES, STORED

    module = to_relax(graph)
    names = {INPUT_NAMES: graph.inputs, OUTPUT_NAMES: [value.name for value in model.graph.output]}
    module[MAIN] = module[MAIN].with_attrs({**names, STORED: graph.stored})
    return module


def onnx_failure(
    path: str | Path,
    shapes: Shapes | None,
    values: Values | None,
    attempt: Callable[[Any], Any],
    error: Exception,
) -> ModelError:
    """Return the error for a file of which the module fails in a pass, with the node's name.

    Parameters
    ----------
    path, shapes, values
        As for :func:`import_onnx`, which has read it.
    attempt : callable
        What fails with the module.
    error : Exception
        What was raised.
    """
    from .onnx_graph.stage import failure

    return failure(_graph(path, shapes, values)[1], attempt, error)


def _graph(path: str | Path, shapes: Shapes | None, values: Values | None) -> tuple[Any, Any]:
    """Return a file's model, and its graph as it is converted."""
    model, known = read_onnx(path, shapes, values)
    from .onnx_graph.stage import Graph

    with as_defined(path):
        return model, Graph(model, known)


def read_onnx(
    path: str | Path, shapes: Shapes | None = None, values: Values | None = None
) -> tuple[Any, dict[str, np.ndarray]]:
    """Return the model of a file, with its weights and the sizes of inputs, and known inputs.

    Parameters
    ----------
    path, shapes, values
        As for :func:`import_onnx`.

    Returns
    -------
    model : onnx.ModelProto
    known : dict of str to numpy.ndarray
        The inputs of which `values` are given, in their types and shapes.

    Raises
    ------
    ModelError
        As :func:`import_onnx` does, whatever the operators are.
    """
    try:
        import onnx
    except ImportError:
        raise ModelError(
            "reading ONNX files needs the Python package onnx: pip install 'tvm-directconv[onnx]'"
        ) from None
    model = _read(Path(path), onnx)
    with as_defined(path):
        known = _input_values(model, values or {})
        _fix_inputs(model, shapes or {}, known)
    return model, known


@contextlib.contextmanager
def as_defined(path: str | Path) -> Iterator[None]:
    """Turn what is raised of damages that nobody checks into a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # Of any kind.
        raise ModelError(
            f"model {str(path)!r} is not as ONNX defines it ({said_by(error)})"
        ) from error


def inputs_of(model: Any) -> list[Any]:
    """Return the inputs of a model that are no constants, as it describes them."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _read(path: Path, onnx: Any) -> Any:
    if not path.is_file():
        raise ModelError(f"model {str(path)!r} {absence(path)}: expected an ONNX file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own kinds of errors differ between its versions.
        raise ModelError(
            f"model {str(path)!r} is corrupt or no ONNX file ({said_by(error)})"
        ) from None
    if not model.graph.node:
        raise ModelError(
            f"model {str(path)!r} has no operators: expected an ONNX file of a network"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of entries that onnx does not know.
            onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise ModelError(
            f"model {str(path)!r} keeps weights in files beside it, of which one cannot be read "
            f"({error}): copy it to where the model is"
        ) from None
    try:
        onnx.checker.check_model(_checkable(model, path))
    except Exception as error:  # Most often a ValidationError; some names are no text.
        raise ModelError(f"model {str(path)!r} is not valid: {error}") from None
    return model


def _checkable(model: Any, path: Path) -> Any:
    """Return what ONNX's checker is to be given: the file, or the model if shapes are missing.

    The checker insists on them. But models are often cut by naming another output, and neither
    ONNX Runtime nor the import reads what is declared of outputs; shapes of inputs can be given.
    Here they become scalars.
    """
    if all(map(_has_shape, [*inputs_of(model), *model.graph.output])):
        return str(path)
    checkable = type(model)()
    checkable.CopyFrom(model)
    for value in [*inputs_of(checkable), *checkable.graph.output]:
        if not _has_shape(value):
            tensor = value.type.tensor_type
            tensor.shape.SetInParent()
            tensor.elem_type = tensor.elem_type or 1
    return checkable


def _has_shape(value: Any) -> bool:
    kind = value.type.WhichOneof("value")
    return bool(kind and (kind != "tensor_type" or value.type.tensor_type.HasField("shape")))


def input_values_of(path: Path, values: Values) -> dict[str, np.ndarray]:
    """Return the values that inputs of a file are given, in the type and shape of each."""
    import onnx

    return _input_values(onnx.load(str(path), load_external_data=False), values) if values else {}


def _input_values(model: Any, values: Values) -> dict[str, np.ndarray]:
    """Return the values that inputs are given, in the type and shape of each.

    Raises
    ------
    ModelError
        If there is no such input, or the value does not fit it.
    """
    from onnx import helper

    inputs = {value.name: value for value in inputs_of(model)}
    known = {}
    for name, given in values.items():
        _check_known(name, inputs, "value")
        tensor = inputs[name].type.tensor_type
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        sizes = [dim.dim_value if dim.dim_value > 0 else 0 for dim in tensor.shape.dim]
        try:
            value = np.asarray(given)
        except ValueError:  # Lists of different lengths in a list.
            value = np.asarray(None)
        if value.size == 1 and 0 not in sizes:
            value = np.broadcast_to(value.reshape(()), sizes)
        numbers = value.dtype.kind in "biuf"
        cast = value.astype(dtype) if numbers else value
        fits = (
            numbers
            and value.ndim == len(sizes)
            and all(size in (0, found) for size, found in zip(sizes, value.shape, strict=True))
        )
        if not fits or not np.array_equal(cast, value):
            raise ModelError(
                f"the value of input {name!r} is {shown(given)}: expected {dtype} of shape "
                f"{_sizes(_described(inputs[name]))}"
            )
        known[name] = cast
    return known


def _check_known(name: str, inputs: Mapping[str, Any], what: str) -> None:
    if name not in inputs:
        raise ModelError(
            f"there is no input {name!r}: expected a {what} of {', '.join(map(repr, inputs))}"
        )


def _described(value: Any) -> list[int | str]:
    """Return the sizes of an input, with names or ``?`` where they are open."""
    if not _has_shape(value):
        return ["..."]
    return [
        dim.dim_value if dim.dim_value > 0 else dim.dim_param or "?"
        for dim in value.type.tensor_type.shape.dim
    ]


def _fix_inputs(model: Any, shapes: Shapes, known: Mapping[str, Any]) -> None:
    """Write the sizes of inputs into the model, but for those whose values are known.

    Raises
    ------
    ModelError
        If one is missing or contradicts the model, or there is no such input.
    """
    inputs = {value.name: value for value in inputs_of(model) if value.name not in known}
    for name in shapes:
        _check_known(name, inputs, "size")
    open_inputs = []
    for name, value in inputs.items():
        declared = value.type.tensor_type.shape.dim
        described = _described(value)
        wanted = _checked_sizes(name, shapes.get(name, []))
        if name not in shapes:
            if any(not isinstance(size, int) for size in described):
                open_inputs.append((name, described))
            continue
        if not _has_shape(value):
            described = ["?"] * len(wanted)
            value.type.tensor_type.shape.SetInParent()
            for _ in wanted:
                declared.add()
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
        name, described = open_inputs[0]
        usual = [1, 3, 224, 224] if described == ["..."] else [1, *[224] * (len(described) - 1)]
        sizes = described if len(described) == len(usual) else usual
        example = ",".join(
            str(s) if isinstance(s, int) else str(u) for s, u in zip(sizes, usual, strict=True)
        )
        raise ModelError(
            f"the model leaves sizes of inputs open: {listed}. All sizes are fixed beforehand: "
            f"give them, as in --input-shape {shlex.quote(f'{name}:{example}')}"
        )


def _checked_sizes(name: str, given: Any) -> list[int]:
    """Return the sizes that an input is given, which may be of NumPy's types."""
    items = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    sizes: list[Any] = [int(size) if isinstance(size, np.integer) else size for size in items]
    if not all(is_whole(size, -(2**40), 2**40) for size in sizes):
        raise ModelError(
            f"size of input {name!r} is {shown(given)}: expected whole numbers from 1, such as "
            "[1, 3, 224, 224]"
        )
    return sizes


def _sizes(sizes: Sequence[Any]) -> str:
    return "x".join(map(str, sizes)) or "a scalar"
