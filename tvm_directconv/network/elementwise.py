"""Element-wise operators in NumPy: what expressions of one tensor and of numbers compute."""

from collections.abc import Callable, Mapping
from math import erf
from typing import Any

import numpy as np

from ..epilogue import Epilogue
from ..reference import epilogue_reference
from .operators import ACTIVATION
from .rewriter import op_name, value_of


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


_erf = np.vectorize(erf, otypes=[np.float64])

FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "relax.abs": np.abs,
    "relax.add": np.add,
    "relax.divide": np.divide,
    "relax.erf": _erf,
    "relax.exp": np.exp,
    "relax.maximum": np.maximum,
    "relax.minimum": np.minimum,
    "relax.multiply": np.multiply,
    "relax.negative": np.negative,
    "relax.nn.relu": lambda x: np.maximum(x, 0),
    "relax.nn.relu6": lambda x: np.clip(x, 0, 6),
    "relax.nn.gelu": lambda x: x * (0.5 + 0.5 * _erf(x / np.sqrt(2.0))),
    "relax.nn.silu": lambda x: x * _logistic(x),
    "relax.sigmoid": _logistic,
    "relax.sqrt": np.sqrt,
    "relax.subtract": np.subtract,
    "relax.tanh": np.tanh,
}
"""Those that have nothing but operands, by the names of Relax."""


def is_known(call: Any) -> bool:
    """Return whether :func:`evaluated` knows an operator."""
    return op_name(call) in (*FUNCTIONS, ACTIVATION, "relax.nn.leakyrelu")


def evaluated(
    output: Any, known: Mapping[Any, np.ndarray], definitions: Mapping[Any, Any]
) -> np.ndarray:
    """Return the values of an expression, where those of some variables are known.

    Parameters
    ----------
    output : Expr
        A variable or a constant of one element.
    known : mapping
        Values of variables.
    definitions : mapping
        Of the variables between; see :func:`is_known`.
    """
    if output in known:
        return known[output]
    array = value_of(output)
    if array is not None:
        (dtype,) = {values.dtype for values in known.values()}
        return np.asarray(array, dtype).reshape(())
    call = definitions[output]
    operands = [evaluated(argument, known, definitions) for argument in call.args]
    with np.errstate(all="ignore"):  # 1/x has no value at 0, and e^x is infinite far out.
        if op_name(call) == "relax.nn.leakyrelu":
            return np.where(operands[0] > 0, operands[0], operands[0] * call.attrs.alpha)
        if op_name(call) == ACTIVATION:
            epilogue = Epilogue(
                activation=str(call.attrs["name"]), slope=float(call.attrs["slope"])
            )
            return epilogue_reference(operands[0], epilogue).astype(operands[0].dtype)
        return FUNCTIONS[op_name(call)](*operands)
