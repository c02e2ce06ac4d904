"""How passes see a network: one function of tensors of known sizes, its calls one after another."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Op, SourceName, Span
from tvm.ir.expr import Call, GenericConst, Var
from tvm.tirx import IntImm

from .. import errors
from ..errors import ModelError, said_by

MAIN = "main"
"""Name of the function that is the network."""

INPUT_NAMES, OUTPUT_NAMES = "directconv.inputs", "directconv.outputs"
"""Attributes of that function: what the model calls its inputs and outputs."""

STORED = "directconv.stored"
"""Attribute of that function: the type that the model has its weights in, if that is known."""

errors.go_through_tvm()

WORK = "directconv.work"
"""Attribute of that function: what it multiplies and adds; see ``passes/count_work.py``."""

QUANTIZED = "directconv.quantized"
"""Attribute of networks that quantise anything, before that becomes a part of other operators."""

SCALES = "directconv.scales"
"""Attribute of that function: what inputs and outputs stand for; see ``passes/note_scales.py``."""

REORDERS = "directconv.reorders"
"""Attribute of that function: how many operations only change layouts."""


def op_name(expression: Any) -> str:
    """Return the name of the operator that is called, empty if it is no call of one."""
    if isinstance(expression, Call) and isinstance(expression.op, Op):
        return str(expression.op.name)
    return ""


def named(call: Any, name: str) -> Any:
    """Return a call that knows which node of a model it comes from."""
    span = Span(SourceName(name), 0, 0, 0, 0)
    return Call(call.op, call.args, attrs=call.attrs, ty_args=call.ty_args, span=span)


def node_of(call: Any) -> str:
    """Return the name of the model's node that a call comes from, empty if it is not known."""
    return str(call.span.source_name.name) if call.span else ""


def shape_of(expression: Any) -> tuple[int, ...]:
    """Return the shape of a tensor."""
    return tuple(int(extent) for extent in expression.ty.shape)


def dtype_of(expression: Any) -> str:
    """Return the element type of a tensor."""
    return str(expression.ty.dtype)


def value_of(expression: Any) -> np.ndarray | None:
    """Return the value of a constant tensor, None of anything else."""
    return expression.value.numpy() if isinstance(expression, GenericConst) else None


def constant(array: np.ndarray) -> Any:
    """Return an array as a constant of its own type."""
    return relax.const(np.asarray(array, order="C"), str(array.dtype))


@contextlib.contextmanager
def compiling(what: str) -> Iterator[None]:
    """Say what cannot be compiled, in a line, where TVM says so in many."""
    try:
        yield
    except Exception as error:  # Whatever a pass of TVM's does not expect.
        if isinstance(error, errors.DirectConvError):
            raise
        raise ModelError(f"{what} cannot be compiled by TVM ({said_by(error)})") from error


def variables_in(expression: Any) -> list[Any]:
    """Return the variables that an expression reads, each as often as it reads it."""
    if isinstance(expression, Var):
        return [expression]
    if isinstance(expression, relax.Tuple):
        return [v for field in expression.fields for v in variables_in(field)]
    if isinstance(expression, relax.TupleGetItem):
        return variables_in(expression.tuple_value)
    if isinstance(expression, Call):
        return [v for argument in expression.args for v in variables_in(argument)]
    return []


def prepared(module: tvm.IRModule) -> tvm.IRModule:
    """Return a network without what it does not use, its private functions inlined, checked.

    Raises
    ------
    ModelError
        If it is no straight line of operators on tensors of known shapes.
    """
    module = relax.transform.InlinePrivateFunctions()(module)
    public = sorted(
        str(variable.name_hint)
        for variable, function in module.functions.items()
        if isinstance(function, relax.Function) and "global_symbol" in function.attrs
    )
    if public != [MAIN]:
        raise ModelError(
            f"the module's public Relax functions are {', '.join(public) or 'none'}: expected "
            f"{MAIN} alone, the network; rename it, make private what it calls, and leave out "
            f"others (relax.transform.DeadCodeElimination(['{MAIN}']))"
        )
    module = relax.transform.DeadCodeElimination([MAIN])(module)
    check_static(module)
    return module


def check_static(module: tvm.IRModule) -> None:
    """Raise if a network is no straight line of tensors of known shapes.

    Raises
    ------
    ModelError
        With what it is instead.
    """
    function = module[MAIN]
    for parameter in function.params:
        if not _is_static_tensor(parameter.ty):
            raise ModelError(
                f"the input {parameter.name} of the network has the type {parameter.ty}: expected "
                "a tensor of fixed shape, as memory is planned when compiling; export the model "
                "with fixed sizes, or bind them (relax.transform.BindSymbolicVars)"
            )
    for block in function.body.blocks:
        for binding in block.bindings:
            value = binding.value
            check_straight(value)
            if not is_static(binding.var.ty):
                raise ModelError(
                    f"the result of {op_name(value) or value} has the type "
                    f"{binding.var.ty}, which depends on data: expected tensors of shapes that are "
                    "known when compiling"
                )
    results = function.ret_ty.fields if isinstance(function.ret_ty, relax.TupleType) else [None]
    if not results or any(isinstance(result, relax.TupleType) for result in results):
        raise ModelError(
            f"the network returns {function.ret_ty}: expected a tensor, or a tuple of tensors"
        )


def check_straight(value: Any) -> None:
    """Raise if what a variable is bound to is a branch, or calls what is no operator.

    Raises
    ------
    ModelError
        With what it is.
    """
    if isinstance(value, relax.If):
        raise ModelError(
            "the network has a branch (If): expected a straight line of operators; take the branch "
            "that is meant when exporting the model"
        )
    if isinstance(value, Call) and not op_name(value):
        raise ModelError(
            f"the network calls {value.op}: expected operators only, or private functions of them"
        )


def types_of(module: tvm.IRModule) -> set[str]:
    """Return the types of elements in a network."""
    function = module[MAIN]
    variables = [
        *function.params,
        *(b.var for block in function.body.blocks for b in block.bindings),
    ]
    return {str(part.dtype) for variable in variables for part in _tensor_types(variable.ty)}


def coarsest(types: Collection[str]) -> str:
    """Return the coarsest type of floating-point numbers among some, float32 if none is."""
    return next((name for name in ("bfloat16", "float16") if name in types), "float32")


def _tensor_types(kind: Any) -> list[Any]:
    if isinstance(kind, relax.TupleType):
        return [part for field in kind.fields for part in _tensor_types(field)]
    return [kind]


def noted(module: tvm.IRModule, name: str, text: str) -> tvm.IRModule:
    """Return a module whose network has an attribute."""
    functions = dict(module.functions.items())
    functions[module.get_global_var(MAIN)] = module[MAIN].with_attr(name, text)
    return tvm.IRModule(functions)


def is_static(kind: Any) -> bool:
    """Return whether a type is that of a tensor of known shape, or a tuple of such."""
    if isinstance(kind, relax.TupleType):
        return all(map(is_static, kind.fields))
    return _is_static_tensor(kind)


def _is_static_tensor(kind: Any) -> bool:
    if not isinstance(kind, relax.TensorType) or not isinstance(kind.shape, relax.ShapeExpr):
        return False
    return all(isinstance(extent, IntImm) for extent in kind.shape.values)


class Rewriter:
    """Copies a network call by call; subclasses say what becomes of each.

    Attributes
    ----------
    builder : tvm.relax.BlockBuilder
        Where the copy grows.
    bindings : list of (Var, Expr)
        Of the original.
    definitions : dict
        From variables of the original to what they are bound to there.
    readers : dict
        From variables of the original to those whose definitions read them, each as often as it
        does; None stands for the function's result.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        self._module = module
        self.function = module[MAIN]
        self.bindings: list[tuple[Any, Any]] = [
            (binding.var, binding.value)
            for block in self.function.body.blocks
            for binding in block.bindings
        ]
        self.definitions = dict(self.bindings)
        self.readers: dict[Any, list[Any]] = defaultdict(list)
        for variable, value in self.bindings:
            for read in variables_in(value):
                self.readers[read].append(variable)
        for read in variables_in(self.function.body.body):
            self.readers[read].append(None)
        self.builder = relax.BlockBuilder(module)
        self._copies: dict[Any, Any] = {}

    def visit(self, variable: Any, value: Any) -> Any:
        """Return what takes the place of a definition, which still has the original's variables."""
        return self.rewrite(variable, self.copied(value))

    def rewrite(self, variable: Any, value: Any) -> Any:
        """Return what takes the place of a definition, None if nothing needs to.

        Unless it is overridden, calls of ``relax.nn.conv2d`` are given to ``on_nn_conv2d``, and so
        on; what there is no such method for stays.

        Parameters
        ----------
        variable : Var
            Of the original.
        value : Expr
            Its definition, with the variables of the copy in it.
        """
        name = op_name(value).removeprefix("relax.").replace(".", "_")
        rule = getattr(self, f"on_{name}", None)
        return rule(variable, value) if name and rule else value

    def copied(self, expression: Any) -> Any:
        """Return an expression with variables of the copy for those of the original."""
        if isinstance(expression, Var):
            return self._copies.get(expression, expression)
        if isinstance(expression, relax.Tuple):
            return relax.Tuple([self.copied(field) for field in expression.fields])
        if isinstance(expression, relax.TupleGetItem):
            source = self.copied(expression.tuple_value)
            if isinstance(source, relax.Tuple):
                return source.fields[expression.index]
            return relax.TupleGetItem(source, expression.index)
        if isinstance(expression, Call):
            arguments = [self.copied(argument) for argument in expression.args]
            return Call(
                expression.op,
                arguments,
                attrs=expression.attrs,
                ty_args=expression.ty_args,
                span=expression.span,
            )
        return expression

    def emit(self, expression: Any, like: Any = None) -> Any:
        """Bind an expression to a new variable, unless it needs none."""
        if isinstance(expression, Var | GenericConst | relax.Tuple):
            return expression
        return self.builder.emit(expression, name_hint=like.name if like is not None else "")

    def run(self) -> tvm.IRModule:
        """Return the module with the network rewritten."""
        rewritten = "directconv_rewritten"
        with self.builder.function(rewritten, list(self.function.params)):
            with self.builder.dataflow():
                for variable, value in self.bindings:
                    found = self.visit(variable, value)
                    if found is not None:
                        self._copies[variable] = self.emit(found, like=variable)
                output = self.builder.emit_output(self.copied(self.function.body.body))
            self.builder.emit_func_output(output)
        grown = self.builder.finalize()
        functions = {
            v: f for v, f in grown.functions.items() if v.name_hint not in (MAIN, rewritten)
        }
        main = grown[rewritten].with_attrs(dict(self.function.attrs or {}))
        functions[self._module.get_global_var(MAIN)] = main.with_attr("global_symbol", MAIN)
        return relax.transform.DeadCodeElimination([MAIN])(tvm.IRModule(functions))


def rewriting(name: str, *arguments: Any) -> Callable[[type[Rewriter]], Any]:
    """Make a Relax pass of a rewriter, which gets these arguments after the module."""

    def made(rewriter: type[Rewriter]) -> Any:
        def transform(module: tvm.IRModule, _context: Any) -> tvm.IRModule:
            return rewriter(module, *arguments).run()

        return tvm.transform.module_pass(transform, opt_level=0, name=name)

    return made
