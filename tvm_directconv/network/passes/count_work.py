"""What a network multiplies and adds, and how much of that is in operators that are not ours."""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from math import prod
from typing import Any

import tvm
from tvm.ir.expr import Call
from tvm.s_tir import SBlock
from tvm.tirx import Add, BufferStore, Mul
from tvm_ffi import structural_walk

from ...emit.program import Unscheduled
from ...errors import WorkloadError
from ..operators import CONV2D, conv_attributes
from ..quantized import DEQUANTIZE, QUANTIZE
from ..rewriter import WORK, Rewriter, dtype_of, noted, op_name, shape_of, value_of
from .fuse_convolutions import workload_of


def _count_work(module: tvm.IRModule, _context: Any) -> tvm.IRModule:
    network = Rewriter(module)
    total = conversions = 0
    found: defaultdict[tuple[str, str, str], list[int]] = defaultdict(list)
    for variable, value in network.bindings:
        name = op_name(value)
        if name == CONV2D:
            total += conv_attributes(value).workload.flops // 2
        elif name in (QUANTIZE, DEQUANTIZE):
            conversions += _is_inside(network, variable, value)
        elif name in _COUNTS and (count := _COUNTS[name](module, variable, value)):
            total += count
            found[_operator(value), _shapes(value), _reason(network, value)].append(count)
    unscheduled = [
        Unscheduled(*what, len(counts), sum(counts))
        for what, counts in sorted(found.items(), key=lambda item: -sum(item[1]))
    ]
    work = {
        "multiply_adds": total,
        "unscheduled": list(map(asdict, unscheduled)),
        "conversions": conversions,
    }
    return noted(module, WORK, json.dumps(work))


CountWork = tvm.transform.module_pass(_count_work, opt_level=0, name="directconv.CountWork")
"""Pass that writes into an attribute of the network, as JSON, what it multiplies and adds,
and how many tensors it converts between floats and quantised numbers.

Run it when the convolutions that will be ours are: it says why the others are not.
"""


def _is_inside(network: Rewriter, variable: Any, call: Any) -> bool:
    """Return whether a tensor between operators is converted: no input, and no output.

    What is dequantised to be quantised again counts once.
    """
    source = call.args[0]
    if source in network.function.params or op_name(network.definitions.get(source)) == DEQUANTIZE:
        return False
    return not all(
        reader is None or not isinstance(network.definitions[reader], Call)
        for reader in network.readers[variable]
    )


def _kernel_axis(call: Any, axis: str) -> int:
    """Return the size of an axis of a convolution's weights, by its letter."""
    return shape_of(call.args[1])[str(call.attrs.kernel_layout).index(axis)]


def _of_convolution(_module: Any, variable: Any, call: Any) -> int:
    return prod(shape_of(variable)) * prod(shape_of(call.args[1])) // _kernel_axis(call, "O")


def _of_transposed(_module: Any, _variable: Any, call: Any) -> int:
    x, weight = map(shape_of, call.args[:2])
    return prod(x) * prod(weight) // _kernel_axis(call, "I")


def _of_product(_module: Any, variable: Any, call: Any) -> int:
    return prod(shape_of(variable)) * shape_of(call.args[0])[-1]


def _of_attention(_module: Any, _variable: Any, call: Any) -> int:
    (batch, rows, heads, size), (_, others, *_), (*_, value_size) = map(shape_of, call.args[:3])
    return batch * heads * rows * others * (size + value_size)


def _of_kernel(module: Any, _variable: Any, call: Any) -> int:
    """Count what a kernel of the importer's own, such as one for Einsum, sums of products."""
    counts = []

    def look(block: Any) -> None:
        store = block.body
        if not isinstance(store, BufferStore) or not isinstance(store.value, Add):
            return
        if block.init is not None and isinstance(store.value.b, Mul):
            counts.append(prod(int(axis.dom.extent) for axis in block.iter_vars))

    structural_walk(module[call.args[0]].body, (SBlock, look))
    return sum(counts)


_COUNTS: dict[str, Callable[[Any, Any, Any], int]] = {
    **{f"relax.nn.conv{rank}d": _of_convolution for rank in (1, 2, 3)},
    **{f"relax.nn.conv{rank}d_transpose": _of_transposed for rank in (1, 2, 3)},
    "relax.matmul": _of_product,
    "relax.nn.attention": _of_attention,
    "relax.nn.attention_bias": _of_attention,
    "relax.call_tir": _of_kernel,
}


def _operator(call: Any) -> str:
    name = op_name(call)
    if name == "relax.call_tir":
        return str(call.args[0].name_hint)
    return name.removeprefix("relax.").removeprefix("nn.")


def _shapes(call: Any) -> str:
    operands = call.args[1].fields if op_name(call) == "relax.call_tir" else call.args
    return " by ".join("x".join(map(str, shape_of(operand))) or "()" for operand in operands)


def _reason(network: Rewriter, call: Any) -> str:
    """Return why an operator has not become one of ours."""
    name = _operator(call)
    if name not in _CONVOLUTIONS:
        return "there is no schedule for it"
    weight = call.args[1]
    if (dtype := dtype_of(call.args[0])) != "float32":
        return f"its type is {dtype}"
    if name == "matmul" and value_of(weight) is None and value_of(call.args[0]) is None:
        return "neither factor is a constant"
    if value_of(weight) is None:
        source = op_name(network.definitions.get(weight)).removeprefix("relax.")
        return "its weights are no constants" + (f", but computed by {source}" if source else "")
    if name == "conv2d" and str(call.attrs.data_layout) == "NCHW":
        try:
            workload_of(call)
        except WorkloadError as error:
            return str(error).partition(";")[0]
    return _CONVOLUTIONS[name]


_CONVOLUTIONS = {
    "matmul": "its weights are no matrix",
    "conv1d": "there is no schedule for its layout",
    "conv2d": "there is no schedule for its layout",
    "conv3d": "it has three dimensions",
    "conv1d_transpose": "it is transposed",
    "conv2d_transpose": "it is transposed, with groups, padding, or a kernel of another size than "
    "the stride",
    "conv3d_transpose": "it has three dimensions",
}
"""What is to be said of operators whose weights are constants of float32."""
