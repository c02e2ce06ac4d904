"""Block sizes: the knobs of a schedule, as people and files write them."""

from dataclasses import asdict, dataclass
from typing import Any

from .descriptor import MAX_ELEMENTS
from .errors import BlockingError, did_you_mean
from .instructions import Instruction
from .kinds import FLAG, Kind, is_whole, problem, shown
from .layout import ActivationLayout, WeightLayout
from .workload import ConvWorkload

IC_INSIDE = "ic_inside"
IC_OUTSIDE = "ic_outside"
ORDERS = (IC_INSIDE, IC_OUTSIDE)

_SIZE = Kind("a whole number from 1", lambda v: is_whole(v, 1, MAX_ELEMENTS))
_KINDS = {
    "lanes": _SIZE,
    "oc_vectors": _SIZE,
    "ow_tile": _SIZE,
    "ic_block": _SIZE,
    "ic_unroll": _SIZE,
    "loop_order": Kind(f"one of {', '.join(ORDERS)}", lambda v: v in ORDERS),
    "kw_unroll": FLAG,
    "oh_block": _SIZE,
    "rows_outside": FLAG,
    "flat_rows": Kind("a whole number from 0", lambda v: is_whole(v, 0, MAX_ELEMENTS)),
    "oc_block": Kind("a whole number from 0", lambda v: is_whole(v, 0, MAX_ELEMENTS)),
}

_NEEDED = ("lanes", "oc_vectors", "ow_tile", "ic_block")


@dataclass(frozen=True)
class Blocking:
    """The block sizes of one convolution.

    Parameters
    ----------
    lanes : int
        Sums in a vector, the paper's N_vec; of floating-point numbers also the channel block of the
        output, if there is no other.
    oc_vectors : int
        Vectors of output channels in the register tile: C_o,b = oc_vectors x lanes. Where that does
        not divide them, the last tiles are narrower; where there are groups, it must.
    ow_tile : int
        Output columns in the register tile, W_o,b.
    ic_block : int
        Input channels that are summed up before the next kernel position, C_i,b. Words are counted,
        here and in `ic_unroll`, where the instruction multiplies those of several channels.
    ic_unroll : int
        Input channels in straight-line code; twice as many where two rounds would be left.
    loop_order : str
        ``ic_outside``: blocks of input channels outside the image's rows and columns, as in the
        paper, sums stored between blocks. ``ic_inside``: all input channels while the sums stay
        in registers.
    kw_unroll : bool
        Whether kernel columns are straight-line code, too.
    oh_block : int
        Output rows in one task; divides the rows. Tasks are what threads share out.
    rows_outside : bool
        Order of the tasks. False: all rows of one tile of output channels, whose weights stay in
        the cache while the image passes by. True: all output channels of the same rows, which
        stay while the weights pass by.
    flat_rows : int
        For 1x1 kernels without padding, in how many rows the output's pixels are counted; 0
        leaves them as they are.
    oc_block : int
        The channel block of the output, of several vectors; 0 leaves it to the lanes. Where groups
        are narrow, vectors may be narrower than the blocks that layers pass on to each other.
    """

    lanes: int
    oc_vectors: int
    ow_tile: int
    ic_block: int
    ic_unroll: int
    loop_order: str = IC_INSIDE
    kw_unroll: bool = False
    oh_block: int = 1
    rows_outside: bool = False
    flat_rows: int = 0
    oc_block: int = 0

    @classmethod
    def from_dict(cls, knobs: dict[str, Any]) -> "Blocking":
        """Make a blocking of knobs by name.

        Raises
        ------
        BlockingError
            If a knob is unknown, missing, or of the wrong type.
        """
        if not isinstance(knobs, dict):
            raise BlockingError(f"blocking is {shown(knobs)}: expected its knobs by name")
        for name in knobs:
            if name not in _KINDS:
                raise BlockingError(
                    f"blocking has an unknown knob {shown(name)}"
                    f"{did_you_mean(name, _KINDS)}: expected {', '.join(_KINDS)}"
                )
        if wrong := problem(knobs, _KINDS, optional=tuple(_KINDS)):
            raise BlockingError(f"blocking: {wrong}")
        if missing := [name for name in _NEEDED if name not in knobs]:
            raise BlockingError(
                f"blocking lacks {', '.join(missing)}: expected {', '.join(_NEEDED)} at least, as "
                "they stand in the manifest beside a library"
            )
        return cls(**{"ic_unroll": 1, **knobs})

    def to_dict(self) -> dict[str, Any]:
        """Return the knobs by name."""
        return asdict(self)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.to_dict().items())

    @property
    def brief(self) -> str:
        """What tells most about it: ``32 x 3, ic_inside`` is C_o,b x W_o,b and the order."""
        return f"{self.oc_vectors * self.lanes} x {self.ow_tile}, {self.loop_order}"

    def weight_layout(
        self, instruction: Instruction | None = None, of_rows: bool = False
    ) -> WeightLayout:
        """Return the layout of weights for this blocking and, if they are words, instruction.

        `of_rows` says whether words are of rows of the kernel.
        """
        if instruction is None or instruction.depth == 1:
            return WeightLayout(self.ic_block, self.lanes)
        depth, neighbours = instruction.depth, instruction.neighbours
        return WeightLayout(self.ic_block, self.lanes, depth, neighbours, of_rows)

    def output_layout(self, workload: ConvWorkload) -> ActivationLayout:
        """Return the layout of the output of a workload in this blocking."""
        block = workload.precision.channel_block(workload.out_channels, self.lanes)
        return ActivationLayout.blocked(self.oc_block or block)
