"""A network as a function of Relax's virtual machine.

The machine allocates the arena and the outputs, and calls the function that is in every network's
library: nothing is planned, lowered or compiled a second time.
"""

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax.op import vm as machine

from .. import files
from ..emit.library import link_object
from ..emit.program import Port, Program, arena_of
from ..toolchain import Toolchain
from .rewriter import MAIN

_NETWORK = "directconv_network"
# It does nothing. Libraries are exported for the machine that TVM itself has compiled code for,
# and without any for this one.
_MARK = "directconv_target"


def vm_module(
    program: Program,
    objects: Mapping[str, tuple[str, bytes]],
    toolchain: Toolchain,
    target: tvm.target.Target,
    function: Any,
) -> tvm.IRModule:
    """Return a module that :func:`tvm.relax.build` has only to link.

    Parameters
    ----------
    program : Program
        What is computed.
    objects : mapping
        Symbols and object code of the kernels, by name.
    toolchain : Toolchain
        Compiler for their machine.
    target : tvm.target.Target
        The same for TVM.
    function : tvm.relax.Function
        What the program was made of: the machine's has its type and the names of its parameters.

    Raises
    ------
    ToolchainError
        If compiling or linking fails.
    """
    module = _caller(program, function)
    module[_MARK] = tirx.PrimFunc([], tirx.Evaluate(0)).with_attr("target", target)
    for transform in (
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ):
        module = transform(module)
    with files.scratch() as scratch:
        file = scratch / "network.o"
        link_object(program, objects, file, toolchain, _NETWORK)
        network = tvm.runtime.load_static_library(str(file), [_NETWORK])
    return module.with_attr("external_mods", [network])


def _caller(program: Program, function: Any) -> tvm.IRModule:
    """Return the function that makes memory for a network and calls it."""
    builder = relax.BlockBuilder()
    inputs = [relax.Var(parameter.name, parameter.ty) for parameter in function.params]

    def tensor(port: Port) -> relax.Expr:
        # A storage lives as long as tensors in it: results must not keep the arena.
        size = relax.ShapeExpr([port.nbytes])
        storage = builder.emit(machine.alloc_storage(size, 0, "uint8"))
        shape = relax.ShapeExpr(port.shape)
        return builder.emit(machine.alloc_tensor(storage, 0, shape, port.dtype))

    with builder.function(MAIN, inputs, pure=False):
        outputs = [tensor(port) for port in program.outputs]
        operands = [*inputs, *outputs, tensor(arena_of(program))]
        call = relax.Call(relax.ExternFunc(_NETWORK), operands, ty_args=[relax.TupleType([])])
        builder.emit(call)
        several = isinstance(function.ret_ty, relax.TupleType)
        builder.emit_func_output(relax.Tuple(outputs) if several else outputs[0])
    return builder.finalize()
