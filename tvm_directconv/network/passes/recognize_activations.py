"""Names for activations that exporters write out as arithmetic."""

from typing import Any

import numpy as np

from ...epilogue import ACTIVATIONS, Epilogue
from ...reference import epilogue_reference
from ..elementwise import evaluated, is_known
from ..operators import activation
from ..rewriter import Rewriter, dtype_of, rewriting, shape_of, value_of, variables_in

# More operators than any activation is written in.
_MOST = 8
# On both sides of every bend that an activation has, and far out: others have their bends there.
_FAR = np.geomspace(10, 1e37, 73)
_PROBES = np.concatenate([np.linspace(-8, 8, 129), _FAR, -_FAR])
# Exporters write 1/6 in float32, or with seven digits. The epsilons that others add to a tensor are
# larger than this.
_TOLERANCE = 1e-6


@rewriting("directconv.RecognizeActivations")
class RecognizeActivations(Rewriter):
    """Replace arithmetic that computes an activation by that activation.

    There are many ways to write hard-swish. So expressions of one tensor and of single numbers are
    evaluated at many points and compared with the activations: what computes the same is the same.
    """

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._found: dict[Any, tuple[Any, str, float]] = {}
        self._order = {variable: number for number, (variable, _) in enumerate(self.bindings)}
        inner: set[Any] = set()
        for variable, _ in reversed(self.bindings):  # The largest expressions first.
            if variable not in inner and (found := self._recognized(variable)):
                source, name, slope, covered = found
                self._found[variable] = source, name, slope
                inner |= covered

    def rewrite(self, variable: Any, value: Any) -> Any:
        """See :meth:`Rewriter.rewrite`."""
        if variable not in self._found:
            return value
        source, name, slope = self._found[variable]
        return activation(self.copied(source), name, slope)

    def _operands(self, variable: Any) -> list[Any] | None:
        """Return the variables that an element-wise definition reads; None if it is another."""
        call = self.definitions.get(variable)
        if call is None:
            return None
        if not is_known(call) or dtype_of(variable) != "float32":
            return None
        for argument in call.args:
            array = value_of(argument)
            if array is not None and array.size != 1:
                return None
            if array is None and shape_of(argument) != shape_of(variable):
                return None
        return variables_in(call)

    def _recognized(self, output: Any) -> tuple[Any, str, float, set[Any]] | None:
        """Return (input, activation, slope, variables that go) of the largest expression."""
        best = None
        covered: set[Any] = {output}
        sources = self._operands(output)
        while sources is not None and len(covered) <= _MOST:
            distinct = set(sources)
            alone = all(reader in covered for v in covered - {output} for reader in self.readers[v])
            if len(distinct) == 1 and alone:
                (source,) = distinct
                if matched := _matching(evaluated(output, {source: _PROBES}, self.definitions)):
                    best = (source, *matched, covered - {output})
            # The last one to be computed may itself be part of the expression.
            last = max(distinct, key=lambda v: self._order.get(v, -1), default=None)
            more = self._operands(last) if last is not None else None
            if more is None:
                break
            covered = covered | {last}
            sources = [v for v in sources if v is not last and v != last] + more
        return best


def _matching(values: np.ndarray) -> tuple[str, float] | None:
    """Return the activation with these values at the probes, and its slope."""
    if np.array_equal(values, _PROBES):
        return None
    for name, row in ACTIVATIONS.items():
        slope = _slope(name, values) if row.has_slope else 0.0
        if np.isfinite(slope) and np.allclose(
            values, _computed(name, slope), rtol=_TOLERANCE, atol=_TOLERANCE / 10
        ):
            return name, slope
    return None


def _slope(name: str, values: np.ndarray) -> float:
    """Return the slope with which an activation has its value at -1, if its values are linear."""
    at = _PROBES == -1.0
    flat, steep = (_computed(name, slope)[at][0] for slope in (0.0, 1.0))
    return float((values[at][0] - flat) / (steep - flat))


def _computed(name: str, slope: float) -> np.ndarray:
    with np.errstate(over="ignore"):  # Far out, e^x is infinite.
        return epilogue_reference(_PROBES, Epilogue(activation=name, slope=slope))
