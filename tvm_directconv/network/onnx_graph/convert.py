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
from tvm.ir.expr import Call, GenericConst, Var
from tvm.relax.frontend.onnx import onnx_frontend as frontend

from ...errors import ModelError, said_by
from ..rewriter import (
    MAIN,
    Rewriter,
    check_static,
    constant,
    dtype_of,
    is_static,
    named,
    shape_of,
    variables_in,
)
from .graph import Graph, shape_in
from .nodes import CONVERTERS, FORM, Node, default_of, schema_of

Converter = Callable[[relax.BlockBuilder, Any, Any, Any], Any]
"""Takes a builder, inputs, attributes and parameters as TVM's converters do; returns the result."""

# TVM's, in the version of today's operators; our own come after them.
CONVERTERS |= {
    kind: converter.get_converter(FORM)
    for kind, converter in frontend._get_convert_map().items()
    if schema_of(kind, FORM) is not None and not schema_of(kind, FORM).deprecated
}

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


def to_relax(graph: Graph) -> Any:
    """Return a graph as a module, with one function, ``main``.

    Raises
    ------
    ModelError
        If a node cannot be converted, or its result has no fixed shape; it is named.
    """
    module = _module(graph, graph.nodes, graph.inputs, graph.outputs)
    try:
        check_static(relax.transform.DeadCodeElimination([MAIN])(module))
    except ModelError as error:
        raise failure(graph, check_static, error) from None
    return module


def failure(graph: Graph, attempt: Callable[[Any], Any], error: Exception) -> ModelError:
    """Return the error for a graph of which the module fails somewhere, with the node's name.

    Parameters
    ----------
    graph : Graph
        It has been converted.
    attempt : callable
        What fails with the module. It is tried with that of each node alone.
    error : Exception
        What was raised.
    """
    tried = set()
    for node in graph.nodes:
        # Nodes of the same kind on tensors of the same types fail likewise.
        types = [graph.types[name].SerializeToString() for name in node.inputs if name]
        key = (node.kind, str(node.attributes), *types)
        if key in tried:
            continue
        tried.add(key)
        inputs = dict.fromkeys(name for name in node.inputs if name and name not in graph.known)
        module = _module(graph, [node], list(inputs), [name for name in node.outputs if name])
        try:
            attempt(module)
        except Exception as found:  # The same as before, of any kind.
            return ModelError(f"{node.kind} ({node.name}) cannot be compiled: {said_by(found)}")
    return ModelError(f"the model cannot be compiled: {said_by(error)}")


def _module(graph: Graph, nodes: list[Node], inputs: list[str], outputs: list[str]) -> Any:
    builder = relax.BlockBuilder()
    importer = frontend.ONNXGraphImporter({}, "float32")
    values: dict[str, Any] = {}
    origins: dict[Any, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of names that are no identifiers.
        for name in inputs:
            kind = relax.TensorType(graph.shape(name), str(graph.dtype(name)))
            values[name] = relax.Var(importer._sanitize_name(name), kind)

    def value(name: str) -> Any:
        if name and name not in values:
            if name not in graph.known:
                raise ModelError(f"the model is incomplete: no node computes {name!r}")
            values[name] = constant(graph.known[name])
        return values[name] if name else None

    failed: BaseException | None = None
    with builder.function(MAIN, params=[values[name] for name in inputs]):
        with builder.dataflow():
            results: list[Any] = []
            try:
                for node in nodes:
                    made = _converted(graph, node, list(map(value, node.inputs)), builder, importer)
                    values |= dict(zip(node.outputs, made, strict=False))
                    _note(builder, origins, made, node.name)
                results = list(map(value, outputs))
            except BaseException as error:  # A builder wants its function to be ended.
                failed = error
            result = builder.emit_output(results[0] if len(results) == 1 else relax.Tuple(results))
        builder.emit_func_output(result)
    if failed:
        raise failed
    return _Named(builder.get(), origins).run()


def _note(builder: Any, origins: dict[Any, str], results: list[Any], name: str) -> None:
    """Note of all variables that a node has made, from its results on, that they are its own."""
    found = variables_in(relax.Tuple(results))
    while found:
        variable = found.pop()
        value = builder.lookup_binding(variable)
        if value is not None and variable not in origins:
            origins[variable] = name
            found += variables_in(value)


class _Named(Rewriter):
    """Let calls know which node they come from."""

    def __init__(self, module: Any, origins: dict[Any, str]) -> None:
        super().__init__(module)
        self._origins = origins

    def rewrite(self, variable: Any, value: Any) -> Any:
        """See :meth:`Rewriter.rewrite`."""
        if isinstance(value, Call) and variable in self._origins:
            return named(value, self._origins[variable])
        return value


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
            f"{node.kind} ({node.name}) cannot be imported by TVM: {said_by(error)}"
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
    return result if isinstance(result, Var | GenericConst) else builder.emit(result)


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
