"""A model's graph, walked through once from its inputs to its outputs.

All sizes are known, so at each node everything is known that can be: the type of each tensor, and
the values of those that depend on no input. A node is upgraded to today's version of its operator,
computed if all its inputs are known, and otherwise given to the rule for its operator. What a rule
adds takes the same way.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf, prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ...descriptor import MAX_ELEMENTS
from ...errors import ModelError, said_by
from .nodes import (
    CONVERTERS,
    RULES,
    VERSIONS,
    Node,
    Refusal,
    attribute_of,
    default_of,
    schema_of,
)
from .upgrading import upgrade

_SMALL = 1024
"""Elements of the largest constant that may be part of the arithmetic of shapes, and is computed.

Larger results are left to TVM."""

_RANDOM = defs.OpSchema.NodeDeterminism.NonDeterministic
_SHORT, _SINGLE = (TensorProto.FLOAT16, TensorProto.BFLOAT16), TensorProto.FLOAT
_COMPUTED = {
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.BOOL,
    TensorProto.INT8,
    TensorProto.INT16,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.UINT8,
    TensorProto.UINT16,
    TensorProto.UINT32,
    TensorProto.UINT64,
}
"""Element types of tensors inside of a network; numbers of 16 bits become single precision."""


class Graph:
    """A graph that grows as a model is walked through.

    Parameters
    ----------
    model : onnx.ModelProto
        Its inputs have known sizes.
    values : mapping
        Values of inputs, which are then constants.

    Attributes
    ----------
    known : dict
        Values of the tensors that depend on no input, by name.
    types : dict
        ``onnx.TypeProto`` of each tensor, by name.
    nodes : list of Node
        What is left to compute, in order.
    inputs, outputs : list of str
        Tensors that are the network's inputs and outputs, in the model's order.
    stored : str
        The type of floating-point numbers that most elements of its constants have.

    Raises
    ------
    ModelError
        If nodes cannot be compiled: all of them are named, with the reasons.
    """

    def __init__(self, model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> None:
        graph = model.graph
        self.known: dict[str, np.ndarray] = {}
        self.types: dict[str, onnx.TypeProto] = {}
        self.nodes: list[Node] = []
        self._functions = {f"{f.domain}.{f.name}": f for f in model.functions}
        self._names = set(_names(graph))
        self._aliases: dict[str, str] = {}
        self._at: Node | None = None
        # Tensors that the model has in 16 bits, and the types of their elements.
        self._short: dict[str, int] = {}
        # Tensors of which nothing is known, as nodes before them are refused.
        self._unknown: set[str] = set()
        # By the type of the operator and the reason, the names of refused nodes.
        self._refused: dict[tuple[str, str], list[str]] = defaultdict(list)

        for name, value in values.items():
            self.set_known(name, value)
        for tensor in [*graph.initializer, *map(_dense, graph.sparse_initializer)]:
            self._note_short(tensor.name, tensor.data_type)
            if tensor.name not in values:
                self.set_known(tensor.name, _array(tensor))
        self.stored = _most_stored(model)
        self.inputs = [value.name for value in graph.input if value.name not in self.known]
        for value in graph.input:
            if value.name not in self.known:
                self._add_input(value)
        versions = {opset.domain: opset.version for opset in model.opset_import}
        self._walk(graph, {name: name for name in self._names}, versions)
        if self._refused:
            raise ModelError(_message(self._refused))
        self.outputs = [self._output(value) for value in graph.output]

    # --- What rules ask -----------------------------------------------------------------------

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Raises
        ------
        Refusal
            If it is not known.
        """
        found = shape_in(self.types.get(name))
        if found is None:
            raise Refusal(f"the shape of its input {name!r} depends on data")
        return found

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the element type of a tensor."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.types[name].tensor_type.elem_type))

    def value(self, name: str) -> np.ndarray:
        """Return the value of a tensor that has to be known.

        Raises
        ------
        Refusal
            If it depends on an input of the network.
        """
        if name not in self.known:
            raise Refusal(
                f"its input {name!r} depends on an input of the model: expected a constant; if it "
                "is a number that is given, compile for it, as with --input-value NAME=1"
            )
        return self.known[name]

    # --- What rules do ------------------------------------------------------------------------

    def set_known(self, name: str, value: np.ndarray) -> None:
        """Declare the value of a tensor."""
        self.known[name] = value
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.types[name] = helper.make_tensor_type_proto(kind, value.shape)

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Add a constant; return its name."""
        name = self._fresh("constant")
        self.set_known(name, np.asarray(value, dtype))
        return name

    def rounded(self, name: str, kind: int) -> str:
        """Return a tensor of single precision, rounded to an element type of 16 bits."""
        if name in self.known:
            short = self.known[name].astype(helper.tensor_dtype_to_np_dtype(kind))
            return self.constant(short.astype(np.float32))
        return str(self.emit("Cast", self._shortened(name, kind), to=_SINGLE))

    def emit(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node in today's version; return the name of its output, a list if several.

        Attributes that are None are left out.
        """
        name = self._at.name if self._at else ""
        given = {key: value for key, value in attributes.items() if value is not None}
        made = [self._fresh(kind.lower()) for _ in range(outputs)]
        self._visit(Node(kind, list(inputs), list(made), given, name))
        results = [self._resolved(result) for result in made]
        return results[0] if outputs == 1 else results

    def inline(
        self, graph: onnx.GraphProto, arguments: Sequence[str], scope: Mapping[str, str]
    ) -> list[str]:
        """Add all nodes of a subgraph.

        Parameters
        ----------
        graph : onnx.GraphProto
            An attribute of a node.
        arguments : sequence of str
            Names of the tensors that are its inputs.
        scope : mapping
            The node's.

        Returns
        -------
        list of str
            Names of the tensors that are its outputs.
        """
        assert self._at is not None
        inner = dict(scope)
        inner |= dict(zip((value.name for value in graph.input), arguments, strict=True))
        for tensor in [*graph.initializer, *map(_dense, graph.sparse_initializer)]:
            inner[tensor.name] = self.constant(_array(tensor))
            self._note_short(inner[tensor.name], tensor.data_type)
        self._walk(graph, inner, {"": self._at.written}, f"{self._at.name}/")
        return [self._resolved(inner[value.name]) for value in graph.output]

    # --- The walk -----------------------------------------------------------------------------

    def _walk(
        self,
        graph: Any,
        scope: dict[str, str],
        versions: Mapping[str, int],
        prefix: str | None = None,
    ) -> None:
        """Visit the nodes of a graph, subgraph or function; their outputs are added to the scope.

        Parameters
        ----------
        graph : onnx.GraphProto or onnx.FunctionProto
            What has the nodes.
        scope : dict
            From names in it to tensors.
        versions : mapping
            Of operators, by domain.
        prefix : str, optional
            Stands before the names of nodes in subgraphs. In functions nodes are called as the
            node that is the call.
        """
        caller = self._at
        used = _read(graph)
        for number, proto in enumerate(graph.node):
            if not any(name in used for name in proto.output):
                continue
            name = proto.name or f"#{number}"
            if caller is not None:
                name = caller.name if prefix is None else f"{prefix}{name}"
            attributes = {}
            for attribute in proto.attribute:
                if not attribute.ref_attr_name:
                    attributes[attribute.name] = _in_single(attribute.name, attribute_of(attribute))
                elif caller and (value := caller.get(attribute.ref_attr_name)) is not None:
                    attributes[attribute.name] = value
            inputs = [self._resolved(scope.get(tensor, tensor)) for tensor in proto.input]
            outputs = [tensor if tensor in used else "" for tensor in proto.output]
            for index, tensor in enumerate(outputs):
                if tensor and caller is not None:
                    outputs[index] = scope[tensor] = self._fresh(tensor)
            domain = "" if proto.domain in ("", "ai.onnx") else proto.domain
            kind = f"{domain}.{proto.op_type}" if domain else proto.op_type
            version = versions.get(domain, 1)
            short = [self._short.get(scope.get(tensor, tensor), 0) for tensor in proto.input]
            short.append(_short_result(proto, short))
            for tensor in outputs:
                self._note_short(tensor, short[-1])
            self._visit(
                Node(kind, inputs, outputs, attributes, name, version, version, scope, short)
            )

    def _visit(self, node: Node) -> None:
        """Take a node on its way; see the module."""
        around, self._at = self._at, node
        kind = node.kind
        try:
            if any(name in self._unknown for name in node.inputs):
                # A node before this one is refused. All that are missing are to be named.
                if not self._is_supported(node):
                    raise Refusal
                self._unknown.update(node.outputs)
            else:
                self._rewrite(node)
        except Exception as error:  # Of any kind, where a node is not as ONNX defines it.
            if around is not None and around.name == node.name:
                raise  # It is the other one that the model has.
            known = isinstance(error, Refusal)
            reason = str(error) if known else f"it cannot be converted ({said_by(error)})"
            self._refused[kind, reason].append(node.name)
            self._unknown.update(node.outputs)
        finally:
            self._at = around

    def _rewrite(self, node: Node) -> None:
        if node.kind in self._functions:
            self._alias(node, self._call(node, self._functions[node.kind]))
            return
        upgrade(self, node)
        _leave_out_unused(node)
        schema = schema_of(node.kind, node.version)
        for index in range(min(schema.min_output, len(node.outputs)) if schema else 0):
            # It is always there, whether anybody reads it or not.
            node.outputs[index] = node.outputs[index] or self._fresh("unread")
        wanted, problem = self._inferred(node)
        for kind in wanted.values():
            if too_large := _too_large(kind):
                raise Refusal(f"its result {too_large}")
        if self._computed(node, wanted):
            return
        self.types |= wanted
        if node.kind not in _WINDOWS and self._is_empty(node):
            return
        for index in _DECIDING.get(node.kind, ()):
            if name := node.input(index):
                self.value(name)
        if node.kind in RULES:
            results = RULES[node.kind](self, node)
            if results is not None:
                self._alias(node, results)
                self._check(node, wanted)
                return
            wanted, problem = self._inferred(node)
            self.types |= wanted
        if not self._is_supported(node):
            function = self._function_of(node)
            if function is None:
                raise Refusal
            self._alias(node, self._call(node, function))
            return
        if problem:
            raise Refusal(problem)
        for name in filter(None, node.outputs):
            kind = self.types.get(name)
            if kind is None or kind.WhichOneof("value") != "tensor_type":
                continue  # What TVM makes of it is looked at.
            if shape_in(kind) is None:
                raise Refusal(
                    "the shape of its result depends on data: expected one that is known when "
                    "compiling"
                )
            if (element := kind.tensor_type.elem_type) not in _COMPUTED:
                raise Refusal(f"its result is of type {_type_name(element)}")
        for name in filter(None, node.inputs):
            element = self.types[name].tensor_type.elem_type if name in self.types else _SINGLE
            if element and element not in (*_COMPUTED, *_SHORT):
                raise Refusal(f"its input is of type {_type_name(element)}")
        self.nodes.append(node)

    def _inferred(self, node: Node) -> tuple[dict[str, onnx.TypeProto], str]:
        """Return the types of a node's outputs as far as ONNX infers them, and what it says."""
        schema = schema_of(node.kind, node.version)
        if schema is None:
            return {}, ""
        if node.kind in _LIKE_THEIR_INPUT:
            return {node.outputs[0]: self.types[node.inputs[0]]}, ""
        types = {name: self.types[name] for name in node.inputs if name in self.types}
        if _has_graph(node):
            types |= {new: self.types[old] for new, old in node.scope.items() if old in self.types}
        values = {
            name: numpy_helper.from_array(np.ascontiguousarray(self.known[name]), name)
            for name in node.inputs
            if name in self.known and self.known[name].size <= _SMALL
        }
        # ONNX's inference does not know all of the defaults that ONNX has.
        defaults = {name: default_of(node.kind, node.version, name) for name in schema.attributes}
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema,
                replace(node, attributes=defaults | node.attributes).to_proto(),
                types,
                values,
                opset_imports=[helper.make_opsetid("", node.version)],
            )
        except Exception as error:  # Of several kinds: an operator is used wrongly.
            return {}, str(error).replace("\n", " ")[:300]
        return {name: kind for name, kind in found.items() if kind.WhichOneof("value")}, ""

    def _computed(self, node: Node, types: Mapping[str, onnx.TypeProto]) -> bool:
        """Compute the outputs of a node that depends on no input; return whether it was done."""
        schema = schema_of(node.kind, node.version)
        random = (
            schema is None or schema.node_determinism == schema.NodeDeterminism.NonDeterministic
        )
        if random or node.kind in _NEVER_COMPUTED or _has_graph(node):
            return False
        if any(name and name not in self.known for name in node.inputs):
            return False
        # Constants are there already, whatever their size.
        most = inf if node.kind == "Constant" else _SMALL
        shapes = [shape_in(types.get(name)) for name in filter(None, node.outputs)]
        if any(shape is not None and prod(shape) > most for shape in shapes):
            return False
        inputs = {name: self.known[name] for name in node.inputs if name}
        alone = helper.make_model(
            helper.make_graph(
                [node.to_proto()],
                "alone",
                [helper.make_value_info(name, self.types[name]) for name in inputs],
                [helper.make_empty_tensor_value_info(name) for name in node.outputs if name],
            ),
            opset_imports=[helper.make_opsetid("", node.version)],
        )
        try:
            outputs = ReferenceEvaluator(alone).run(None, inputs)
        except Exception:  # Operators that onnx knows no reference of are left to TVM.
            return False
        if any(not isinstance(value, np.ndarray | np.generic) for value in outputs):
            return False
        if any(np.size(value) > most for value in outputs):
            return False
        for name, value in zip(filter(None, node.outputs), outputs, strict=True):
            self.set_known(name, np.asarray(value))
        return True

    def _is_empty(self, node: Node) -> bool:
        """Return whether all results have no elements, and are known by that."""
        shapes = {name: shape_in(self.types.get(name)) for name in filter(None, node.outputs)}
        if any(shape is None or 0 not in shape for shape in shapes.values()):
            return False
        for name, shape in shapes.items():
            assert shape is not None
            self.set_known(name, np.zeros(shape, self.dtype(name)))
        return True

    def _is_supported(self, node: Node) -> bool:
        return node.kind in RULES or node.kind in CONVERTERS or node.kind in self._functions

    def _function_of(self, node: Node) -> onnx.FunctionProto | None:
        """Return the function that ONNX defines an operator by, None if there is none."""
        schema = schema_of(node.kind, node.version)
        if schema is not None and schema.has_function:
            return schema.function_body
        if schema is not None and schema.has_context_dependent_function:
            types = [self.types[name].SerializeToString() for name in node.inputs if name]
            text = schema.get_context_dependent_function(node.to_proto().SerializeToString(), types)
            return onnx.FunctionProto.FromString(text) if text else None
        return None

    def _call(self, node: Node, function: onnx.FunctionProto) -> list[str]:
        """Add all nodes of a function that a node calls; return the names of the results."""
        for attribute in function.attribute_proto:
            node.attributes.setdefault(attribute.name, attribute_of(attribute))
        missing = [""] * (len(function.input) - len(node.inputs))
        scope = dict(zip(function.input, [*node.inputs, *missing], strict=True))
        versions = {opset.domain: opset.version for opset in function.opset_import}
        self._walk(function, scope, versions)
        # What is not computed is not read.
        return [self._resolved(scope.get(name, name)) for name in function.output]

    def _alias(self, node: Node, results: str | Sequence[str]) -> None:
        results = [results] if isinstance(results, str) else results
        for name, result in zip(node.outputs, results, strict=False):
            if name and name != result:
                self._aliases[name] = result

    def _check(self, node: Node, wanted: Mapping[str, onnx.TypeProto]) -> None:
        """Refuse a node of which a rule has made something else than ONNX says."""
        for name, kind in wanted.items():
            found = self._resolved(name)
            if found in self._unknown:  # A node that the rule has added is refused.
                continue
            result = self.types[found] if name else kind
            if (shape := shape_in(kind)) is None:
                continue
            types = result.tensor_type.elem_type, kind.tensor_type.elem_type
            if shape_in(result) != shape or types[0] != types[1]:
                raise Refusal(
                    f"its result has shape {shape_in(result)} and type {_type_name(types[0])}, but "
                    f"ONNX infers {shape} and {_type_name(types[1])}"
                )

    def _resolved(self, name: str) -> str:
        while name in self._aliases:
            name = self._aliases[name]
        return name

    def _fresh(self, base: str) -> str:
        name, number = base, 0
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name

    # --- Inputs and outputs -------------------------------------------------------------------

    def _add_input(self, value: onnx.ValueInfoProto) -> None:
        self.types[value.name] = value.type
        self._note_short(value.name, value.type.tensor_type.elem_type)
        if too_large := _too_large(value.type):
            raise ModelError(f"input {value.name!r} {too_large}")
        kind = value.type.tensor_type.elem_type
        if kind in _SHORT:
            self._aliases[value.name] = self.emit("Cast", value.name, to=_SINGLE)
        elif kind not in _COMPUTED:
            raise ModelError(
                f"input {value.name!r} is {_of_type(value.type)}: expected a tensor of floats of "
                "16, 32 or 64 bits, of integers of 8 to 64 bits, or of bools; convert the model"
            )

    def _output(self, value: onnx.ValueInfoProto) -> str:
        name = self._resolved(value.name)
        kind = self.types.get(name, value.type)
        if not kind.HasField("tensor_type") or kind.tensor_type.elem_type not in _COMPUTED:
            raise ModelError(f"output {value.name!r} is {_of_type(kind)}, which no network has")
        if 0 in (shape_in(kind) or ()):
            raise ModelError(
                f"output {value.name!r} has shape {shape_in(kind)}: it has no elements"
            )
        declared = value.type.tensor_type.elem_type
        if declared not in _SHORT:
            return name
        return self._shortened(name, declared, value.name)

    # --- Numbers of 16 bits -------------------------------------------------------------------

    def _shortened(self, name: str, kind: int, said: str = "") -> str:
        """Return a tensor of 16 bits, which nothing but a conversion or an output may read."""
        short = self._fresh(name)
        self.types[short] = helper.make_tensor_type_proto(kind, self.shape(name))
        said = said or (self._at.name if self._at else "")
        self.nodes.append(Node("Cast", [name], [short], {"to": kind}, said))
        return short

    def _note_short(self, name: str, kind: int) -> None:
        if name and kind in _SHORT:
            self._short[name] = kind


_DECIDING: dict[str, tuple[int, ...]] = {
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "MaxUnpool": (2,),
    "OneHot": (1,),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    **{kind: (1,) for kind in VERSIONS if kind.startswith("Reduce")},
}
"""Inputs of operators that decide of what shape results are, or what is done at all."""

_LIKE_THEIR_INPUT = ("GroupNormalization", "MeanVarianceNormalization")
"""Operators of which ONNX infers nothing; their results are of the type of the first input."""

_NEVER_COMPUTED = (
    "AveragePool",
    "DequantizeLinear",
    "GRU",
    "LRN",
    "LSTM",
    "MaxPool",
    "RNN",
    "Resize",
    "Upsample",
)
"""Operators of which onnx's own reference is wrong in places, or that say what numbers stand for.

The results of rules are used."""


_WINDOWS = ("AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool")
"""Operators whose results are empty only where a window is larger than its input: an error."""


def shape_in(kind: onnx.TypeProto | None) -> tuple[int, ...] | None:
    """Return the shape in a type, None if it is no tensor's or not known."""
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    sizes = [
        dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.tensor_type.shape.dim
    ]
    return tuple(sizes) if all(size >= 0 for size in sizes) else None


def _too_large(kind: onnx.TypeProto) -> str:
    """Return what is said of a tensor that no kernel can index; nothing of others."""
    elements = prod(shape_in(kind) or ())
    return f"has {elements} elements: expected up to {MAX_ELEMENTS}" * (elements > MAX_ELEMENTS)


def _type_name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()


def _of_type(kind: onnx.TypeProto) -> str:
    which = kind.WhichOneof("value")
    if which != "tensor_type":
        return f"a {str(which).removesuffix('_type')}"
    return f"a tensor of {_type_name(kind.tensor_type.elem_type)}"


def _message(refused: Mapping[tuple[str, str], Sequence[str]]) -> str:
    """Return what is said of nodes, which stand under the operator's type and a reason."""
    listed: dict[bool, list[str]] = {False: [], True: []}
    for (kind, reason), names in refused.items():
        what = f"{kind} ({', '.join(names)})"
        listed[bool(reason)].append(f"{what}: {reason}" if reason else what)
    missing = f"the model has operators that are not supported: {'; '.join(listed[False])}"
    wrong = f"the model has nodes that cannot be compiled: {'; '.join(listed[True])}"
    return ". ".join(text for text, kind in ((missing, False), (wrong, True)) if listed[kind])


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    try:
        value = numpy_helper.to_array(tensor)
    except Exception as error:  # Of any kind, where it is damaged.
        raise ModelError(f"the constant {tensor.name!r} is damaged ({said_by(error)})") from error
    return value.astype(np.float32) if tensor.data_type in _SHORT else value


def _most_stored(model: onnx.ModelProto) -> str:
    """Return the type of floating-point numbers that most elements of constants have."""
    tensors = [*model.graph.initializer]
    for node in model.graph.node:
        tensors += [a.t for a in node.attribute if node.op_type == "Constant" and a.HasField("t")]
    elements = Counter({kind: 0 for kind in (_SINGLE, *_SHORT)})
    for tensor in tensors:
        if tensor.data_type in elements:
            elements[tensor.data_type] += prod(tensor.dims)
    ((kind, _),) = elements.most_common(1)  # The first one of equals.
    return str(helper.tensor_dtype_to_np_dtype(kind))


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """Return a sparse tensor with its zeros."""
    values = _array(sparse.values)
    shape = tuple(sparse.dims)
    places = numpy_helper.to_array(sparse.indices)
    dense = np.zeros(shape, values.dtype)
    dense[tuple(places.T) if places.ndim == 2 else np.unravel_index(places, shape)] = values
    return numpy_helper.from_array(dense, sparse.values.name)


def _in_single(name: str, value: Any) -> Any:
    """Return an attribute with single precision in place of 16 bits."""
    if isinstance(value, TensorProto) and value.data_type in _SHORT:
        return numpy_helper.from_array(_array(value), value.name)
    return _SINGLE if name in ("to", "dtype", "output_dtype") and value in _SHORT else value


def _short_result(proto: onnx.NodeProto, short: list[int]) -> int:
    """Return the element type of 16 bits of a node's results, 0 if they have another one.

    Results are of the type of operands where nothing else is said.
    """
    given = {attribute.name: attribute for attribute in proto.attribute}
    said = next((given[name].i for name in ("to", "output_dtype") if name in given), 0)
    if not said and "value" in given and given["value"].HasField("t"):
        said = given["value"].t.data_type
    if said or proto.op_type in ("CastLike", "DequantizeLinear"):
        found = said or (short[1] if len(short) > 1 else 0)
    else:
        found = next(filter(None, short), 0)
    return found if found in _SHORT else 0


def _has_graph(node: Node) -> bool:
    return any(isinstance(value, onnx.GraphProto) for value in node.attributes.values())


def _leave_out_unused(node: Node) -> None:
    """Cut off outputs at the end that nobody reads, where the operator allows it."""
    schema = schema_of(node.kind, node.version)
    if schema is None:
        return
    while len(node.outputs) > max(1, schema.min_output) and not node.outputs[-1]:
        if schema.outputs[-1].option == defs.OpSchema.FormalParameterOption.Variadic:
            return
        node.outputs.pop()


def _names(graph: onnx.GraphProto) -> Iterable[str]:
    """Return the names of all tensors of a graph, those of subgraphs included."""
    yield from (value.name for value in [*graph.input, *graph.initializer, *graph.output])
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from node.output
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _names(inner)


def _read(graph: Any) -> set[str]:
    """Return the names of the tensors that the outputs of a graph or function depend on."""
    read = {getattr(value, "name", value) for value in graph.output}
    for node in reversed(graph.node):
        if any(name in read for name in node.output):
            read.update(_inputs(node))
    return read


def _inputs(node: onnx.NodeProto) -> Iterable[str]:
    """Return the names of what a node reads; its subgraphs may read what is around them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from _inputs(inner)
