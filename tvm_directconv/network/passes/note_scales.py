"""What the quantised numbers of a network's inputs and outputs stand for."""

import json
from typing import Any

import tvm
from tvm import relax
from tvm.ir.expr import Var

from ..quantized import DEQUANTIZE, QUANTIZE, Meaning, dequantized, meaning_of
from ..rewriter import QUANTIZED, SCALES, Rewriter, noted, op_name
from .dequantize_late import chooses, moves


def _note_scales(module: tvm.IRModule, _context: Any) -> tvm.IRModule:
    network = Rewriter(module)
    inputs = [_read(network, parameter) for parameter in network.function.params]
    outputs = [_made(network, result) for result in _results(network)]
    text = json.dumps({"inputs": list(map(_pair, inputs)), "outputs": list(map(_pair, outputs))})
    if any(op_name(value) == QUANTIZE for _, value in network.bindings):
        module = noted(module, QUANTIZED, "")
    return noted(module, SCALES, text)


NoteScales = tvm.transform.module_pass(_note_scales, opt_level=0, name="directconv.NoteScales")
"""Pass that writes into an attribute of the network, as JSON, what its inputs and outputs are.

Pairs of scale and zero point, null where there is none of the whole tensor. Run it before
quantisation becomes a part of other operators. It notes whether anything is quantised, too.
"""


def _pair(meaning: Meaning | None) -> list[Any] | None:
    if meaning is None or not meaning.of_bytes:
        return None
    return [float(meaning.scale.item()), int(meaning.zero_point.item())]


def _read(network: Rewriter, variable: Any) -> Meaning | None:
    """Return what all who read a variable take its numbers for, None if they differ."""
    found: Meaning | None = None
    waiting = [variable]
    while waiting:
        read = waiting.pop()
        if not network.readers[read]:
            return None
        for reader in network.readers[read]:
            value = network.definitions.get(reader)
            if isinstance(value, Var) or _hands_on(value, read):
                waiting.append(reader)
                continue
            quantized = dequantized(value) if op_name(value) == DEQUANTIZE else None
            if quantized is None or (found and not found.is_that_of(quantized.meaning)):
                return None
            found = quantized.meaning
    return found


def _hands_on(call: Any, variable: Any) -> bool:
    """Return whether an operator moves the numbers of a variable, or chooses among them."""
    return (moves(call) or chooses(call)) and variable.same_as(call.args[0])


def _defined(network: Rewriter, expression: Any) -> Any:
    """Return the call, the parameter or the constant that an expression is."""
    while True:
        if isinstance(expression, relax.TupleGetItem):
            source = _defined(network, expression.tuple_value)
            if not isinstance(source, relax.Tuple):
                return expression
            expression = source.fields[expression.index]
        elif isinstance(expression, Var) and expression in network.definitions:
            expression = network.definitions[expression]
        else:
            return expression


def _results(network: Rewriter) -> list[Any]:
    result = _defined(network, network.function.body.body)
    if isinstance(result, relax.Tuple):
        return list(result.fields)
    kind = network.function.ret_ty
    return [result] * (len(kind.fields) if isinstance(kind, relax.TupleType) else 1)


def _made(network: Rewriter, expression: Any) -> Meaning | None:
    """Return what numbers were quantised for."""
    value = _defined(network, expression)
    while moves(value) or chooses(value):
        value = _defined(network, value.args[0])
    return meaning_of(value) if op_name(value) == QUANTIZE else None
