"""The annotations with which schedules talk to the passes."""

from typing import Any

from ..instructions import PAIR, Instruction
from ..precision import Precision

TILE = "directconv.tile"
"""On the loop over register tiles: ``[left, right, rebalanced]``. So many tiles at its beginning
and at its end read padding or are narrower than the others, and the last tile takes over so many
columns from the one before."""

COLUMN = "directconv.column"
"""On the loop over the columns of a tile."""

TAIL = "directconv.tail"
"""On the loop over tasks, where its last tiles of output channels have fewer vectors than the
others: ``[run, tiles, narrower, vectors]``. The tile changes after every `run` tasks, and the last
`narrower` of `tiles` have `vectors`."""

VECTOR = "directconv.vector"
"""On the loop over the vectors of such a tile."""

GROUPS = "directconv.groups"
"""On the loop over tasks, where the output channels of a tile belong to several groups: ``[run,
kind, kind, ...]``. The tile changes after every `run` tasks; for each, `kind` is the first tile
whose lanes read the input at the same distances. Within, a statement whose value is zero in the
first task of its kind."""

TAP = "directconv.tap"
"""On the loop over kernel columns: unrolled in border tiles, so that which products are with
padding is known when compiling."""

STEP = "directconv.step"
"""On a loop whose rounds are steps: one input channel, one kernel position, all products of the
tile. Its value says how many sums, spread over the tile, LLVM must finish before the next step; 0
for all."""

LANE_OPERAND = "directconv.lane_operand"
"""On an unrolled loop of steps: where these read neighbouring elements of the input, as many as the
value says are loaded as one vector, and each step uses a lane of it."""

MEMORY_OPERAND = "directconv.memory_operand"
"""On an unrolled loop of steps: what these read of the input is addressed from one register on, or
from as many as the value says at most."""

ROWS = "directconv.rows"
"""On an unrolled loop of steps: they multiply words of rows of the kernel, whose pixels have to be
interleaved; see :mod:`.lowering.rows`. Its value is how many places of words have weights."""

PREFETCH_WEIGHTS = "directconv.prefetch_weights"
"""On the loop over register tiles and on loops within a tile: the weights that the next round of
all tiles needs are fetched meanwhile, in one of these loops. ``[vectors, distance, length,
tasks]``: these are `vectors` stretches of `length` elements, `distance` apart, which `tasks` tasks
in succession share."""

PREFETCH_PIXELS = "directconv.prefetch_pixels"
"""On a loop within a tile: pixels of the next tile are fetched in it. Its value is a list of
elements: how far beyond what the first product of each column reads."""

MATRICES = "directconv.matrices"
"""On the block that multiplies and adds, if that is done in matrix registers: ``matrices`` of
pixels and ``vectors`` of output channels in a tile, ``rows`` and ``columns`` of the pixels in a
matrix, the instruction that is to ``multiply``, ``threads``, and ``rows_outside`` as in a
blocking."""

INSTRUCTION = "directconv.instruction"
"""Function attribute: what multiplies words, or numbers of another type than sums, in the terms of
:func:`.words.multiply_words`."""

BLOCK = "directconv.block"
"""Function attribute: the channel block of outputs, where that of vectors is smaller."""

TYPES, SHAPES = "directconv.types", "directconv.shapes"
"""Function attributes: types and shapes of the parameters as callers see them."""

DENORMALS = "directconv.denormals"
"""Function attribute: one of :data:`.denormals.MODES`, the first if there is none."""

ALIKE = "directconv.alike"
"""Function attribute: floats have the same bits on all processors. Products are rounded before they
are added, and how many parts a sum has does not depend on vectors."""

UNCHECKED = "directconv.unchecked"
"""Function attribute: callers are known to give the right arguments, which are not looked at."""


def of_instruction(
    instruction: Instruction, precision: Precision, again: bool = False
) -> dict[str, Any]:
    """Return the attributes of a function in which an instruction is called by its name.

    `again` says that it multiplies the same again and again.
    """
    if not instruction.intrinsic or instruction.pixels > 1:
        return {}
    return {
        INSTRUCTION: {
            "function": instruction.intrinsic,
            "element": precision.weight.llvm,
            "element_bytes": precision.weight.bytes,
            "pixels": precision.pixel.name,
            "weights_first": instruction.weights_first,
            "by_lane": instruction.by_lane,
            "pairs": PAIR in instruction.pixel_operands,
            "flips": instruction.shifts(precision),
            "again": again,
        }
    }
