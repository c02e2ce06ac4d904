"""Nodes of ONNX graphs, what ONNX says of their operators, and which rules there are for them."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import defs, helper

FORM = defs.onnx_opset_version()
"""The version of ONNX's operators that nodes have after their upgrade, and that rules see."""

VERSIONS: dict[str, list[int]] = defaultdict(list)
"""The versions in which each of ONNX's operators changed, in order."""

for _schema in defs.get_all_schemas_with_history():
    if _schema.domain == "":
        VERSIONS[_schema.name].append(_schema.since_version)
for _versions in VERSIONS.values():
    _versions.sort()

Rule = Callable[[Any, "Node"], str | Sequence[str] | None]
"""Takes a graph and a node; returns the names of the tensors that the outputs are, None to keep it.

A rule may change the node that it keeps. It is asked again for what it emits, so it has to keep
what it emits of its own kind.
"""

RULES: dict[str, Rule] = {}
"""Rules by the type of the operator, as nodes have it."""


CONVERTERS: dict[str, Any] = {}
"""What makes Relax of an operator, by its type; see ``convert``."""


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators."""

    def register(function: Rule) -> Rule:
        for kind in kinds:
            assert kind not in RULES, kind
            RULES[kind] = function
        return function

    return register


class Refusal(Exception):
    """Why a node cannot be compiled: what is raised in rules."""


@dataclass
class Node:
    """An operator in the graph.

    Attributes
    ----------
    kind : str
        Type of the operator, after its domain and a dot if that is not ONNX's own.
    inputs, outputs : list of str
        Names of tensors, empty where one is left out.
    attributes : dict
        Those that are given: numbers, strings, lists of these, or protocol buffers.
    name : str
        What messages call it.
    version : int
        Of the set of operators that it is meant by.
    written : int
        The same of its subgraphs, which are not brought to today's version with it.
    scope : mapping
        For subgraphs among the attributes: what names around them are in the graph.
    short : list of int
        For each input, and then for the results, the element type of 16 bits that the model has it
        in, 0 if that is another one or not known.
    """

    kind: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    name: str
    version: int = FORM
    written: int = FORM
    scope: Mapping[str, str] = field(default_factory=dict)
    short: list[int] = field(default_factory=lambda: [0])

    def input(self, index: int) -> str:
        """Return the name of an input, empty if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def output(self, index: int) -> str:
        """Return the name of an output, empty if nobody reads it."""
        return self.outputs[index] if index < len(self.outputs) else ""

    def get(self, name: str) -> Any:
        """Return an attribute, or its default; None if it has none."""
        return self.attributes.get(name, default_of(self.kind, self.version, name))

    def to_proto(self) -> onnx.NodeProto:
        """Return the node as ONNX writes it."""
        domain, _, kind = self.kind.rpartition(".")
        given = {name: value for name, value in self.attributes.items() if value is not None}
        return helper.make_node(
            kind, self.inputs, self.outputs, self.name, domain=domain or None, **given
        )


def schema_of(kind: str, version: int) -> Any:
    """Return the schema of one of ONNX's own operators, None if there is none."""
    try:
        return defs.get_schema(kind, version, "")
    except defs.SchemaError:
        return None


def default_of(kind: str, version: int, attribute: str) -> Any:
    """Return the default of an operator's attribute, None if it has none."""
    schema = schema_of(kind, version)
    found = schema.attributes.get(attribute) if schema else None
    return attribute_of(found.default_value) if found and found.default_value.name else None


def attribute_of(proto: onnx.AttributeProto) -> Any:
    """Return the value of an attribute, text as text."""
    value = helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if proto.type == onnx.AttributeProto.STRINGS:
        return [text.decode("utf-8", "replace") for text in value]
    if proto.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return list(value)
    return value
