"""A graph to Relax, node by node, by TVM's converters; what they make of it is checked.

TVM's converters pass over attributes and inputs that they do not know, and some give results of
another shape or type. Here such a node is an error that names it.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from onnx import helper
from tvm import relax
from tvm.ir import is_prim_expr
from tvm.relax.frontend.onnx import onnx_frontend as frontend

from ...errors import ModelError
from ..rewriter import INPUT_NAMES, MAIN, OUTPUT_NAMES, constant, dtype_of, is_static, shape_of
from .graph import FORM, Graph, Node, default_of, schema_of, shape_in

Converter = Callable[[relax.BlockBuilder, Any, Any, Any], Any]
"""Takes a builder, inputs, attributes and parameters as TVM's converters do; returns the result."""

CONVERTERS: dict[str, Converter] = {
    kind: converter.get_converter(FORM)
    for kind, converter in frontend._get_convert_map().items()
    if schema_of(kind, FORM) is not None and not schema_of(kind, FORM).deprecated
}
"""By the type of the operator: TVM's, in the version of today's operators, and our own."""

HARMLESS = {
    ("Conv", "kernel_shape"),  # It is that of the weights.
    ("ConvTranspose", "kernel_shape"),
    ("Dropout", "seed"),
}
"""Attributes that say what is known without them, or do not matter in inference."""


def converter(*kinds: str) -> Callable[[Converter], Converter]:
    """Register a converter for operators that TVM's does not get right in any form."""

    def register(function: Converter) -> Converter:
        CONVERTERS.update(dict.fromkeys(kinds, function))
        return function

    return register


def to_relax(graph: Graph, input_names: list[str], output_names: list[str]) -> Any:
    """Return a graph as a module.

    Parameters
    ----------
    graph : Graph
        What is converted.
    input_names, output_names : list of str
        What the model calls its inputs and outputs.

    Raises
    ------
    ModelError
        If a node cannot be converted; it is named.
    """
    builder = relax.BlockBuilder()
    importer = frontend.ONNXGraphImporter({}, "float32")
    values: dict[str, Any] = {}
    parameters = []
    for name in graph.inputs:
        kind = relax.TensorType(graph.shape(name), str(graph.dtype(name)))
        values[name] = relax.Var(importer._sanitize_name(name), kind)
        parameters.append(values[name])

    def value(name: str) -> Any:
        if name and name not in values:
            values[name] = constant(graph.known[name])
        return values[name] if name else None

    failed = None
    with builder.function(MAIN, params=parameters):
        with builder.dataflow():
            outputs = []
            try:
                for node in graph.nodes:
                    inputs = [value(name) for name in node.inputs]
                    results = _converted(graph, node, inputs, builder, importer)
                    values |= dict(zip(node.outputs, results, strict=False))
                outputs = [value(name) for name in graph.outputs]
            except ModelError as error:  # A builder wants its function to be ended.
                failed = error
            result = builder.emit_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
        builder.emit_func_output(result)
    if failed:
        raise failed
    module = builder.get()
    module[MAIN] = module[MAIN].with_attrs({INPUT_NAMES: input_names, OUTPUT_NAMES: output_names})
    return module


def _converted(
    graph: Graph, node: Node, inputs: list[Any], builder: Any, importer: Any
) -> list[Any]:
    """Return the results of a node."""
    given = _Inputs(inputs)
    attributes = _Attributes(importer._parse_attr(node.to_proto().attribute))
    attributes["tvm_custom"] = {"name": node.name, "num_outputs": len(node.outputs)}
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = CONVERTERS[node.kind](builder, given, attributes, [{}, {}])
            results = [_tensor(builder, result) for result in _results(builder, made)]
    except Exception as error:  # Whatever a converter of TVM's does not expect.
        raise ModelError(
            f"{node.kind} ({node.name}) cannot be imported by TVM: {_first_line(error)}"
        ) from error
    for name, value in node.attributes.items():
        unread = name not in attributes.read and (node.kind, name) not in HARMLESS
        if unread and value is not None and value != default_of(node.kind, FORM, name):
            raise ModelError(
                f"{node.kind} ({node.name}) is not supported with {name}={value!r}: TVM takes no "
                "notice of it"
            )
    for index, tensor in enumerate(node.inputs):
        if tensor and index not in given.read:
            raise ModelError(
                f"{node.kind} ({node.name}) is not supported with its input {tensor!r}: TVM takes "
                "no notice of it"
            )
    if len(results) < len(node.outputs):
        raise ModelError(
            f"{node.kind} ({node.name}) is not supported with {len(node.outputs)} outputs: TVM has "
            f"{len(results)}"
        )
    for name, result in zip(node.outputs, results, strict=False):
        if name:
            _check(graph, node, name, result)
    return results


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__


def _results(builder: Any, made: Any) -> list[Any]:
    """Return the fields of a tuple, or what else was made as the only one."""
    if isinstance(made, relax.Tuple):
        return list(made)
    if isinstance(made, relax.Expr):
        made = builder.normalize(made)
        if isinstance(made.ty, relax.TupleType):
            made = builder.emit(made)
            return [builder.emit(relax.TupleGetItem(made, i)) for i in range(len(made.ty.fields))]
    return [made]


def _tensor(builder: Any, result: Any) -> Any:
    """Return a result, with shapes and numbers as the tensors that they are in ONNX."""
    if isinstance(result, relax.ShapeExpr):
        return constant(np.array([int(size) for size in result.values], np.int64))
    result = builder.normalize(result)
    if is_prim_expr(result):
        return constant(np.array(result.value, str(result.dtype)))
    return result


def _check(graph: Graph, node: Node, name: str, result: Any) -> None:
    """Refuse a result of another type than ONNX's."""
    if not is_static(result.ty):
        raise ModelError(
            f"the shape of the result of {node.kind} ({node.name}) depends on data: expected "
            "tensors of shapes that are known when compiling"
        )
    wanted = graph.types.get(name)
    shape = shape_in(wanted)
    if wanted is None or shape is None or not isinstance(result.ty, relax.TensorType):
        return
    dtype = str(helper.tensor_dtype_to_np_dtype(wanted.tensor_type.elem_type))
    if shape_of(result) != shape or dtype_of(result) != dtype:
        raise ModelError(
            f"{node.kind} ({node.name}) is not supported in this form: TVM makes "
            f"{dtype_of(result)} of shape {shape_of(result)} of it, ONNX {dtype} of shape {shape}"
        )


class _Attributes(dict[str, Any]):
    """Attributes that know which of them were read."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return super().__contains__(name)


class _Inputs(list[Any]):
    """Inputs that know which of them were read; those beyond the last are None."""

    def __init__(self, values: list[Any]) -> None:
        super().__init__(values)
        self.read: set[int] = set()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            self.read.update(range(len(self))[index])
            return super().__getitem__(index)
        self.read.add(index % len(self) if index < 0 else index)
        return super().__getitem__(index) if index < len(self) else None

    def __iter__(self) -> Iterator[Any]:
        self.read.update(range(len(self)))
        return super().__iter__()

    def __add__(self, other: Any) -> Any:
        return [*self, *other]
