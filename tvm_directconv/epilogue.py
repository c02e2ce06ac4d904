"""The epilogue: what is done to an output before it is stored, operands first, then an activation.

Each operand and each activation is one row here, of which everything else follows: parameters of
the compiled function, arrays that a caller packs, what networks fuse, what people write. Only the
oracle, :mod:`.reference`, has them once more, in NumPy.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any

from .errors import WorkloadError, did_you_mean
from .kinds import FLAG, Kind, is_whole, problem, shown
from .precision import NUMBER_TYPES, NumberType, Precision


@dataclass(frozen=True)
class Operand:
    """What an epilogue puts to the sums, such as a bias.

    Attributes
    ----------
    name : str
        Of the flag of :class:`Epilogue`, and of the compiled function's parameter.
    by_channel : bool
        True: one number for each output channel. False: a tensor of the output's shape and layout.
    apply : callable
        Of the TIR expressions of an output and of the operand's element, that of the result.
    """

    name: str
    by_channel: bool
    apply: Callable[[Any, Any], Any] = operator.add


BIAS = Operand("bias", by_channel=True)
OPERANDS = (BIAS, Operand("residual", by_channel=False))
"""In the order in which they are applied, and are parameters of the function."""

SCALE, RANGE = "scale", "range"
"""Further parameters where outputs are requantised: a multiplier for each output channel, and what
:meth:`~tvm_directconv.quantization.Quantization.output_range` returns."""

SCALES = NUMBER_TYPES["float32"]
"""The type of both."""

ROUNDED = ("uint8", "int8")
REQUANTIZED = (*ROUNDED, "float32")
"""The types that sums of whole numbers may be scaled to, and those that they are rounded to."""


def _constant(value: float, x: Any) -> Any:
    """Return a number of the type of an expression."""
    from tvm import tirx

    return tirx.const(value, x.ty.dtype)


def _clipped(x: Any, low: float, high: float) -> Any:
    from tvm import tirx

    return tirx.max(tirx.min(x, _constant(high, x)), _constant(low, x))


def _relu(x: Any, _: float) -> Any:
    from tvm import tirx

    return tirx.max(x, _constant(0.0, x))


def _leaky_relu(x: Any, slope: float) -> Any:
    from tvm import tirx

    return tirx.Select(x > 0.0, x, x * _constant(slope, x))


def _hard_sigmoid(x: Any, _: float) -> Any:
    return _clipped(x * (1 / 6) + 0.5, 0.0, 1.0)


def _sigmoid(x: Any, _: float) -> Any:
    from tvm import tirx

    return 1.0 / (1.0 + tirx.exp(-x))


@dataclass(frozen=True)
class Activation:
    """A function that an output may go through at last.

    Attributes
    ----------
    apply : callable
        Of a TIR expression and the slope, the expression of the result.
    has_slope : bool
        Whether it takes a slope.
    relax : str, optional
        The operator of Relax that is the same, if there is one.
    limits : (float, float), optional
        Between which it holds numbers, if it does nothing else.
    """

    apply: Callable[[Any, float], Any]
    has_slope: bool = False
    relax: str | None = None
    limits: tuple[float, float] | None = None


ACTIVATIONS: dict[str, Activation] = {
    "none": Activation(lambda x, _: x, limits=(-inf, inf)),
    "relu": Activation(_relu, relax="relax.nn.relu", limits=(0, inf)),
    "relu6": Activation(lambda x, _: _clipped(x, 0.0, 6.0), relax="relax.nn.relu6", limits=(0, 6)),
    "leaky_relu": Activation(_leaky_relu, has_slope=True),
    "hard_swish": Activation(lambda x, _: x * _hard_sigmoid(x, 0.0)),
    "hard_sigmoid": Activation(_hard_sigmoid),
    "silu": Activation(lambda x, _: x * _sigmoid(x, 0.0), relax="relax.nn.silu"),
    "sigmoid": Activation(_sigmoid, relax="relax.sigmoid"),
}
"""By name."""


def _is_slope(activation: str, text: str) -> bool:
    """Return whether `text` is the slope of an activation: a number, or nothing if it has none."""
    if not ACTIVATIONS[activation].has_slope:
        return not text
    try:
        return isfinite(float(text))
    except ValueError:
        return False


_FIRST = "residual_first"
_REQUANTIZE = " or ".join(f"requantize={name}" for name in ROUNDED)
_KINDS = {
    **{operand.name: FLAG for operand in OPERANDS},
    "residual_first": FLAG,
    "activation": Kind("a name", lambda v: isinstance(v, str)),
    "zero_point": FLAG,
    "requantize": Kind(
        f"one of {', '.join(REQUANTIZED)}, or none", lambda v: v in ("", *REQUANTIZED)
    ),
    "slope": Kind("a number", lambda v: isinstance(v, float) or is_whole(v, -(2**53), 2**53)),
}


@dataclass(frozen=True)
class Epilogue:
    """What becomes of an output before it is stored, while it still is in a register.

    Parameters
    ----------
    bias : bool
        Whether a number for each output channel is added.
    residual : bool
        Whether another tensor, of the output's shape and layout, is added.
    residual_first : bool
        Whether the residual is the first operand of that addition, which decides what is rounded
        first where outputs are rounded to whole numbers.
    activation : str
        One of :data:`ACTIVATIONS`, applied last.
    slope : float
        Of ``leaky_relu``, for what is negative.
    zero_point : bool
        Whether pixels count from a number other than 0, of which padding consists. The bias then
        makes up for it, and is another one where the kernel reaches into the padding.
    requantize : str
        The type that sums of whole numbers are scaled to: ``uint8`` or ``int8``, which they are
        rounded to, or ``float32``, the numbers that they stand for; empty if they are stored as
        they are.

    Raises
    ------
    WorkloadError
        If there is no such activation, or it has no slope.
    """

    bias: bool = False
    residual: bool = False
    activation: str = "none"
    slope: float = 0.0
    zero_point: bool = False
    requantize: str = ""
    residual_first: bool = False

    def __post_init__(self) -> None:
        if wrong := problem(vars(self), _KINDS):
            raise WorkloadError(f"epilogue: {wrong}")
        if self.activation not in ACTIVATIONS:
            raise WorkloadError(
                f"activation is {shown(self.activation)}: expected one of {', '.join(ACTIVATIONS)}"
                f"{did_you_mean(self.activation, ACTIVATIONS)}"
            )
        sloped = ACTIVATIONS[self.activation].has_slope
        if (self.slope and not sloped) or not isfinite(self.slope):
            having = ", ".join(name for name, row in ACTIVATIONS.items() if row.has_slope)
            raise WorkloadError(
                f"slope is {self.slope}, of {self.activation}: expected a number, and 0 for all "
                f"activations but {having}"
            )

        if self.residual_first and not (self.residual and self.rounded):
            raise WorkloadError(
                f"residual_first is given: expected it with a residual and {_REQUANTIZE} only, as "
                "the order of an addition makes no difference elsewhere"
            )

    def check(self, precision: Precision) -> None:
        """Raise if outputs of a precision cannot be finished so.

        Raises
        ------
        WorkloadError
            With what cannot be.
        """
        if (self.zero_point or self.requantize) and not precision.whole:
            raise WorkloadError(
                f"epilogue {self.descriptor!r} is for whole numbers: expected no zero_point and no "
                f"requantize for {precision}"
            )
        whole = precision.whole and not self.scaled
        if whole and not ACTIVATIONS[self.activation].limits:
            having = [name for name, row in ACTIVATIONS.items() if row.limits]
            raise WorkloadError(
                f"activation is {self.activation}: expected one of {', '.join(having)} for "
                f"{precision}, or requantize=float32"
            )

    def output(self, precision: Precision) -> NumberType:
        """Return the type of outputs."""
        return NUMBER_TYPES[self.requantize] if self.requantize else precision.output

    @classmethod
    def parse(cls, text: str) -> "Epilogue":
        """Read ``bias,residual,relu``, any of these, or ``leaky_relu=0.1`` as activation.

        Of whole numbers, ``zero_point`` and ``requantize=uint8`` as well.

        Raises
        ------
        WorkloadError
            If a part is none of these, or given repeatedly.
        """
        found: dict[str, Any] = {}
        names = [operand.name for operand in OPERANDS]
        for part in text.split(","):
            name, _, slope = part.strip().partition("=")
            if name == _FIRST and not slope and "residual" not in found:
                found |= {"residual": True, _FIRST: True}
            elif name in (*names, "zero_point") and not slope and name not in found:
                found[name] = True
            elif name == "requantize" and slope in REQUANTIZED and name not in found:
                found[name] = slope
            elif name in ACTIVATIONS and "activation" not in found and _is_slope(name, slope):
                found |= {"activation": name, "slope": float(slope or 0)}
            else:
                raise WorkloadError(
                    f"epilogue is {text!r}, with {part.strip()!r}: expected {', '.join(names)} and "
                    f"one of {', '.join(ACTIVATIONS)}, each at most once, such as bias,relu; "
                    "leaky_relu with its slope, leaky_relu=0.1; of whole numbers zero_point and "
                    f"requantize={' or requantize='.join(REQUANTIZED)}"
                    f"{did_you_mean(name, [*names, *ACTIVATIONS, 'zero_point', 'requantize'])}"
                )
        return cls(**found)

    @property
    def rounded(self) -> bool:
        """Whether outputs are rounded to whole numbers of fewer bits than sums have."""
        return self.requantize in ROUNDED

    @property
    def scaled(self) -> bool:
        """Whether outputs are the numbers that sums of whole ones stand for."""
        return bool(self.requantize) and not self.rounded

    @property
    def asked(self) -> tuple[Operand, ...]:
        """The operands that it is asked for."""
        return tuple(operand for operand in OPERANDS if getattr(self, operand.name))

    @property
    def operands(self) -> tuple[Operand, ...]:
        """Its operands, in the order of the function's parameters."""
        # The bias is what makes up for the zero point, too.
        return (replace(self, bias=True) if self.zero_point else self).asked

    def _parts(self) -> list[str]:
        """Return what :meth:`parse` calls its operands."""
        names = [operand.name for operand in self.asked]
        if self.residual_first:
            names[names.index("residual")] = _FIRST
        return names + ["zero_point"] * self.zero_point

    @property
    def descriptor(self) -> str:
        """What :meth:`parse` makes the same epilogue of; ``none`` if there is nothing to do."""
        parts = self._parts()
        slope = f"={self.slope!r}" if ACTIVATIONS[self.activation].has_slope else ""
        last = [f"requantize={self.requantize}"] if self.requantize else []
        return ",".join([*parts, self.activation + slope, *last])

    def __bool__(self) -> bool:
        return self != Epilogue()

    def __str__(self) -> str:
        """Parts of a function's name: ``bias_residual_relu``."""
        signs = str.maketrans({".": "p", "-": "m", "+": None})
        slope = f"{self.slope:g}".translate(signs) if self.slope else ""
        parts = self._parts()
        if self.activation != "none":
            parts.append(self.activation + slope)
        if self.requantize:
            parts.append(self.requantize)
        return "_".join(parts)
