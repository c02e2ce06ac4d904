"""A convolution cut into register tiles and tasks: what follows of a case and its block sizes.

Schedules, the model, the tuner and explanations read it here, so that all mean the same tiles.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import numpy as np

from .blocking import IC_INSIDE, IC_OUTSIDE, ORDERS, Blocking
from .case import Case
from .compute import most_first_channel
from .errors import BlockingError
from .hardware.device import Rate
from .instructions import BROADCAST, LANE, MATRIX, MEMORY, PAIR, VECTOR, Instruction
from .layout import ActivationLayout, WeightLayout
from .workload import ConvWorkload

# Border tiles get code of their own; with more than this many, they share a loop with branches.
_MOST_BORDER_TILES = 4
# Kinds of tiles times places in the kernel.
_MOST_CODE = 100
# Channels whose pixels are loaded at once to be interleaved.
_INTERLEAVED = 16
MATRIX_TILES = (2, 2), (1, 4), (1, 2), (2, 1), (1, 1)
"""Matrices of pixels and of output channels in a tile: with a matrix of sums for each pair, and one
register at least for what passes by, the eight of them suffice."""
# Registers for what is converted ahead of its use, where LLVM spills sums without. The second
# number is of depthwise convolutions, where a step is a row of the kernel.
_CONVERTING = 2, 4
# The same for whole numbers, which are widened in two steps, where lanes have pixels of their own.
_WIDENING = 5


class ChannelTiles(NamedTuple):
    """The tiles of output channels; the narrower ones are the last.

    Attributes
    ----------
    tiles : int
        All of them.
    narrower : int
        How many of these are narrower.
    vectors : int
        Vectors of a narrower one.
    """

    tiles: int
    narrower: int
    vectors: int


class Row(NamedTuple):
    """The tiles of a row of the output.

    Attributes
    ----------
    tiles : tuple of range
        The columns of each.
    rebalanced : int
        How many columns the last tile takes over from the one before. Alone, what is left over may
        be too narrow to keep the FMA units busy: the two share evenly. If the last one reads
        padding, it has fewer products to each of its sums, and gets one more.
    left, right : int
        How many tiles need code of their own, at each end: those that read padding, and the last
        ones if they are narrower. A tile between them reads no padding.
    """

    tiles: tuple[range, ...]
    rebalanced: int
    left: int
    right: int


class Matrix(NamedTuple):
    """Pixels in matrix registers.

    Attributes
    ----------
    matrices : int
        Matrices of pixels in the register tile.
    rows, columns : int
        Rows and columns of the image whose pixels are in one of them.
    """

    matrices: int
    rows: int
    columns: int

    @property
    def pixels(self) -> int:
        """Pixels in a matrix."""
        return self.rows * self.columns


class OwnPixels(NamedTuple):
    """How a column of pixels gets into vectors, lanes of which belong to different groups.

    Attributes
    ----------
    vectors, floats : float
        Loads of vectors, and of one float into all lanes.
    moves : float
        What joins several of these.
    """

    vectors: float
    floats: float
    moves: float


@dataclass(frozen=True)
class Tiling:
    """A case as a blocking cuts it.

    Parameters
    ----------
    case : Case
        What is computed.
    blocking : Blocking
        One that :func:`reasons_against` has nothing against.
    """

    case: Case
    blocking: Blocking

    @cached_property
    def view(self) -> ConvWorkload:
        """The workload as the blocking sees it: in words, pixels of 1x1 kernels in other rows.

        Of a strided one, it has just the input that is read.
        """
        rows = self.blocking.flat_rows
        return _counted_in_rows(self.case.words, rows) if rows else self.case.words

    @cached_property
    def rate(self) -> Rate:
        """The instruction that it computes with, and how fast the device runs it."""
        return next(rate for rate in self.case.rates if rate.lanes == self.blocking.lanes)

    @cached_property
    def matrix(self) -> Matrix | None:
        """The pixels in matrix registers, if there are any.

        The fewest matrices that have all columns of the tile; of images whose rows are shorter,
        several rows.
        """
        if self.rate.instruction.pixels == 1:
            return None
        b, width = self.blocking, self.view.out_width
        matrices = ceil(b.ow_tile / self.rate.instruction.pixels)
        pixels = b.ow_tile // matrices
        return Matrix(matrices, max(1, pixels // width), min(pixels, width))

    @property
    def matrices_of_pixels(self) -> int:
        """Matrices of pixels that there are in an image, those that overlap others included."""
        assert self.matrix is not None
        rows = ceil(self.view.out_height / self.matrix.rows)
        return rows * ceil(self.view.out_width / self.matrix.columns)

    @property
    def channels_at_once(self) -> int:
        """The input channels that are summed up before a tile's sums are stored."""
        b = self.blocking
        return b.ic_block if b.loop_order == IC_OUTSIDE else self.view.group_in

    @property
    def sums_are_stored(self) -> bool:
        """Whether sums leave the registers before they are complete."""
        return self.channels_at_once < self.view.group_in

    @cached_property
    def channel_tiles(self) -> ChannelTiles:
        """The tiles of output channels.

        What is left over would be too few sums to fill the FMA pipelines, so several tiles do with
        one vector less, if there are as many.
        """
        b = self.blocking
        vectors = ceil(self.view.out_channels / b.lanes)
        tiles = ceil(vectors / b.oc_vectors)
        lacking = tiles * b.oc_vectors - vectors
        if lacking < tiles:
            return ChannelTiles(tiles, lacking, b.oc_vectors - 1)
        return ChannelTiles(tiles, 1, vectors % b.oc_vectors)

    @property
    def narrower(self) -> "Tiling":
        """The same with all tiles as narrow as the last tiles of output channels."""
        narrow = replace(self.blocking, oc_vectors=self.channel_tiles.vectors)
        return Tiling(self.case, narrow)

    @cached_property
    def row(self) -> Row:
        """The tiles of a row."""
        return _row(self.view, self.blocking.ow_tile)

    @property
    def row_blocks(self) -> int:
        """Blocks of rows, each the rows of one task; in matrix registers, tiles of pixels."""
        if self.matrix:
            return ceil(self.matrices_of_pixels / self.matrix.matrices)
        return self.view.out_height // self.blocking.oh_block

    @property
    def tasks(self) -> int:
        """Tasks: each is one tile of output channels in one block of rows of one image."""
        return self.view.batch * self.channel_tiles.tiles * self.row_blocks

    @property
    def contiguous_channels(self) -> int:
        """How many channels of a block lie side by side in the input.

        Straight-line code goes over these: their addresses differ by constants.
        """
        return contiguous_channels(self.blocking.ic_block, self.case.word_layout.block)

    @property
    def straight_channels(self) -> int:
        """The input channels in straight-line code: where two rounds were left, both."""
        b, contiguous = self.blocking, self.contiguous_channels
        rounds = b.ic_block // contiguous, contiguous // b.ic_unroll
        return b.ic_unroll * 2 ** sum(map(unrolls, rounds))

    @property
    def straight_fmas(self) -> int:
        """The multiply-adds in straight-line code."""
        b = self.blocking
        taps = self.view.kernel[1] if b.kw_unroll else 1
        rows = self.word_rows if self.case.rows > 1 else 1
        return b.oc_vectors * b.ow_tile * self.straight_channels * taps * rows

    @property
    def groups_of_tiles(self) -> tuple[tuple[range, ...], ...]:
        """The groups that the output channels of each vector belong to, for each tile."""
        b = self.blocking
        return _groups_of_tiles(self.case.words, b.oc_vectors, b.lanes)

    @cached_property
    def groups_in_tile(self) -> int:
        """How many groups the output channels of a register tile belong to, at most.

        If there are several, lanes have input channels of their own, and pixels are vectors.
        """
        if self.case.words.groups == 1:
            return 1
        return max(vectors[-1].stop - vectors[0].start for vectors in self.groups_of_tiles)

    @property
    def tile_kinds(self) -> tuple[int, ...]:
        """For each tile of output channels, the first one whose lanes read at the same distances.

        Tiles of whole groups are of one kind; others begin at different places in their groups.
        """
        b = self.blocking
        return _tile_kinds(self.case.words, self.case.word_layout, b.lanes, b.oc_vectors)

    @property
    def has_code_of_kinds(self) -> bool:
        """Whether each kind of tiles has code of its own.

        Of many, the code would take minutes to compile; and floating-point numbers that are
        converted as they are loaded are not permuted. Lanes then load their pixels one by one.
        """
        types = self.case.precision
        if types.pixel != types.sum and not types.whole:
            return False
        rows, columns = self.view.kernel
        return len(set(self.tile_kinds)) * rows * columns <= _MOST_CODE

    @property
    def word_rows(self) -> int:
        """The rows of the kernel, or of words where several are in a word."""
        return ceil(self.view.kernel[0] / self.case.rows)

    @property
    def steps_are_rows(self) -> bool:
        """Whether a step is a row of the kernel rather than a place in it.

        Where groups are narrower than vectors, no two vectors share pixels, but neighbouring
        columns do.
        """
        return steps_are_rows(self.case.words, self.blocking.lanes)

    @property
    def weight_layout(self) -> WeightLayout:
        """The layout of the weights."""
        return self.blocking.weight_layout(self.rate.instruction, self.case.workload.depthwise)

    @property
    def output_layout(self) -> ActivationLayout:
        """The layout of the output."""
        return self.blocking.output_layout(self.case.workload)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return self.view.weight_bytes * self.case.depth

    @property
    def input_bytes(self) -> int:
        """Bytes of the input that is read."""
        return self.view.input_bytes * self.case.depth

    @property
    def registers(self) -> int:
        """The vector registers that a tile needs."""
        b = self.blocking
        rows, instruction = self.case.rows, self.rate.instruction
        return registers(b.oc_vectors, b.ow_tile, self.case.words, instruction, rows)

    @cached_property
    def pixel_operand(self) -> str:
        """How a pixel reaches the instruction; see :mod:`tvm_directconv.instructions`.

        From memory in tiles of one vector, where each pixel is used once and needs no conversion;
        from a lane where sums, pixels and weights of a step all find registers.
        """
        b, operands = self.blocking, self.rate.instruction.pixel_operands
        if self.matrix:
            return MATRIX
        if PAIR in operands:
            return PAIR
        if self.groups_in_tile > 1:
            return VECTOR
        if MEMORY in operands and b.oc_vectors == 1 and not self.case.conversion:
            return MEMORY
        # One register stays free, as 12 x 7 on AArch64 needs it, and one more for conversions.
        needed = b.oc_vectors * b.ow_tile + b.ow_tile + b.oc_vectors + bool(self.case.conversion)
        needed += self.rate.instruction.registers_between(self.case.precision)
        # Where lanes are of some registers only, pixels may take half of these.
        of_lanes = self.rate.instruction.lane_registers
        few = of_lanes == self.case.device.vector_registers or b.ow_tile <= of_lanes // 2
        if LANE in operands and few and needed < self.case.device.vector_registers:
            return LANE
        return BROADCAST

    @property
    def lanes_at_once(self) -> int:
        """How many lanes a vector of pixels has: those of sums, or a block's if these are fewer."""
        block = self.case.word_layout.block
        # A register has as many pixels or words as there are lanes, half as many of 8 bytes.
        lanes = self.blocking.lanes // 2 if self.pixel_operand == PAIR else self.blocking.lanes
        return block if block and 1 < block < lanes and lanes % block == 0 else lanes

    def pixel_loads(self, columns: int) -> tuple[float, float]:
        """Return the loads of pixels in a step of so many columns: of vectors, and of floats.

        From a lane, one load of a vector serves as many steps as it has lanes, or as many columns
        where neighbouring columns rather than channels lie side by side in the input.
        """
        if self.case.rows > 1:
            rows = min(self.view.kernel[0], self.case.rows)
            vectors = ceil(self.blocking.oc_vectors * self.blocking.lanes / _INTERLEAVED)
            return self._operands(columns) * rows * vectors, 0
        lanes, layout = self.lanes_at_once, self.case.word_layout
        if self.pixel_operand == VECTOR:
            loads = self._own_pixels
            each = self._operands(columns)
            return each * loads.vectors, each * loads.floats
        if self.pixel_operand in (LANE, PAIR):
            if layout.name == "NCHW":
                vectors = columns // lanes if self.view.stride[1] == 1 else 0
                return vectors, columns - vectors * lanes
            if self.blocking.ic_unroll % lanes == 0:
                return columns / lanes, 0
        return 0, columns

    def weight_loads(self, columns: int) -> int:
        """Return the loads of weights in a step of so many columns.

        Words of rows are done with one after the other: each column loads the weights again. Words
        may be larger than sums.
        """
        types = self.case.precision
        size = self.case.depth * types.weight.bytes
        each = max(1, size // types.sum.bytes)
        return self.blocking.oc_vectors * each * (columns if self.case.rows > 1 else 1)

    def conversion_cycles(self, columns: int) -> float:
        """Return how long a step of so many columns converts what it loads, each load once."""
        conversion = self.case.conversion
        if conversion is None:
            return 0.0
        return (self.blocking.oc_vectors + sum(self.pixel_loads(columns))) / conversion.per_cycle

    def pixel_moves(self, columns: int) -> float:
        """Return how often loads are joined or permuted in a step of so many columns."""
        if self.case.rows > 1:
            # To pairs, and these to words. What is shifted is so before.
            shifted = self.rate.instruction.shifts(self.case.precision)
            words = 2 * self.blocking.oc_vectors * self._operands(columns)
            return words + shifted * self.pixel_loads(columns)[0]
        if self.pixel_operand == PAIR:
            return ceil(columns / 2)
        if self.pixel_operand != VECTOR:
            return columns * self.rate.instruction.moves
        return self._operands(columns) * self._own_pixels.moves

    def _operands(self, columns: int) -> float:
        """Return how many pixels of a vector are made in a step of so many columns.

        Neighbouring outputs share some in a row of the kernel; of depthwise ones, only words are
        counted.
        """
        workload = self.case.words
        apart = workload.depthwise and self.case.rows == 1
        if not self.steps_are_rows or apart or workload.dilation[1] > 1:
            return columns
        taps, stride = workload.kernel[1], workload.stride[1]
        return min(columns, ((columns - 1) * stride + taps) / taps)

    @cached_property
    def _own_pixels(self) -> OwnPixels:
        """What the pixels of a column of a tile take on average, where lanes have their own."""
        b, block = self.blocking, self.case.word_layout.block
        return _own_pixels(self.case.words, b.oc_vectors, b.lanes, block)


# The model asks the same of a workload for each of a thousand blockings.
@cache
def _counted_in_rows(workload: ConvWorkload, rows: int) -> ConvWorkload:
    columns = workload.out_height * workload.out_width // rows
    return replace(workload, in_height=rows, in_width=columns, stride=(1, 1))


@cache
def _row(view: ConvWorkload, ow_tile: int) -> Row:
    width, stride, padding = view.out_width, view.stride[1], view.padding[1]
    rest = width % ow_tile
    padded = view.padding[3] > 0
    rebalanced = (ow_tile - rest + padded) // 2 if rest and width > ow_tile else 0
    firsts = list(range(0, width, ow_tile))
    firsts[-1] -= rebalanced
    tiles = tuple(range(*pair) for pair in pairwise([*firsts, width]))

    taps = (view.kernel[1] - 1) * view.dilation[1]
    left = sum(tile[0] * stride < padding for tile in tiles)
    special = [
        len(tile) < ow_tile or tile[-1] * stride - padding + taps >= view.in_width for tile in tiles
    ]
    # Where the last but one is narrower, the last may be whole and read no padding.
    right = len(tiles) - special.index(True) if any(special) else 0
    if left + right > 2 * _MOST_BORDER_TILES:
        left, right = min(left, _MOST_BORDER_TILES), min(right, _MOST_BORDER_TILES)
    return Row(tiles, rebalanced, left, right)


@cache
def taps_inside(view: ConvWorkload, axis: int, outputs: range) -> list[int]:
    """Return for each row (axis 0) or column (1) of the kernel how many outputs read input."""
    size = (view.in_height, view.in_width)[axis]
    stride, dilation, before = view.stride[axis], view.dilation[axis], view.padding[axis]
    return [
        sum(0 <= out * stride + tap * dilation - before < size for out in outputs)
        for tap in range(view.kernel[axis])
    ]


def contiguous_channels(ic_block: int, input_block: int | None) -> int:
    """Return how many channels of a block lie side by side in an input in such blocks."""
    return input_block if input_block and ic_block % input_block == 0 else ic_block


def unrolls(rounds: int) -> bool:
    """Return whether a loop over input channels is unrolled, beyond what `ic_unroll` says.

    LLVM makes a loop with a flag of two rounds, which begins each of them late.
    """
    return rounds == 2


def can_flatten(workload: ConvWorkload) -> bool:
    """Return whether rows mean nothing: every output pixel reads just one input pixel."""
    return workload.kernel == (1, 1) and not any(workload.padding)


def flat_in_matrices(case: Case) -> bool:
    """Return whether the pixels of all rows may be counted as of one: they are evenly apart."""
    return can_flatten(case.workload) and case.workload.stride == (1, 1)


@cache
def _groups_of_tiles(
    workload: ConvWorkload, oc_vectors: int, lanes: int
) -> tuple[tuple[range, ...], ...]:
    def group(output: int) -> int:
        return min(output // workload.group_out, workload.groups - 1)

    vectors = [
        range(group(first), group(first + lanes - 1) + 1)
        for first in range(0, workload.out_channels, lanes)
    ]
    return tuple(
        tuple(vectors[first : first + oc_vectors]) for first in range(0, len(vectors), oc_vectors)
    )


@cache
def _own_pixels(
    workload: ConvWorkload, oc_vectors: int, lanes: int, block: int | None
) -> OwnPixels:
    if workload.depthwise:
        return OwnPixels(oc_vectors, 0, 0)
    tiles = _groups_of_tiles(workload, oc_vectors, lanes)
    vectors = floats = moves = 0
    for tile in tiles:
        alone = set()
        for groups in tile:
            # Channels that lie side by side are loaded as vectors.
            parts = ceil(len(groups) * workload.group_in / min(lanes, block or 1))
            if len(groups) > 1 and parts < len(groups):
                vectors += parts
                # One vector is permuted beside the multiply-adds, on most processors.
                moves += parts - 1
            else:
                alone |= set(groups)
                moves += len(groups) - 1
                floats += len(groups) - 1
        floats += len(alone)
    return OwnPixels(*(total / len(tiles) for total in (vectors, floats, moves)))


@cache
def _tile_kinds(
    workload: ConvWorkload, layout: ActivationLayout, lanes: int, oc_vectors: int
) -> tuple[int, ...]:
    """Compare where the lanes of tiles read, one pixel being all that there is."""
    stored = ceil(workload.out_channels / lanes) * lanes
    firsts = np.arange(stored) // workload.group_out * workload.group_in
    most = most_first_channel(workload, layout, stored)
    if most is not None:
        firsts = np.minimum(firsts, most)
    inputs = firsts.reshape(-1, oc_vectors * lanes, 1) + np.arange(workload.group_in)
    if block := layout.block:  # Blocks are farther apart than any channels.
        inputs = inputs // block * (workload.in_channels * block) + inputs % block
    distances = inputs - inputs[:, :1]
    kinds: dict[bytes, int] = {}
    return tuple(kinds.setdefault(each.tobytes(), at) for at, each in enumerate(distances))


def steps_are_rows(workload: ConvWorkload, lanes: int) -> bool:
    """Return whether steps are rows of the kernel; see :attr:`Tiling.steps_are_rows`."""
    return workload.groups > 1 and workload.group_out < lanes and workload.kernel[1] > 1


def registers(
    oc_vectors: int,
    ow_tile: int,
    workload: ConvWorkload,
    instruction: Instruction,
    rows: int = 1,
) -> int:
    """Return the vector registers a tile of a workload in words, of so many rows, needs.

    Its sums; of weights and pixels the fewer, which stay through a step; and one through which
    the others pass. Those that are used only once each pass too fast for one register, and if they
    are converted before, as many are on their way as there are sums. Where steps are rows of the
    kernel, the weights of a row stay, and the pixels that neighbouring outputs share; of wide
    kernels, LLVM reads some of them again.
    """
    if PAIR in instruction.pixel_operands:
        # Words of all pixels, and of each pair; two of weights, of which half is used at once. Of
        # pixels that lie apart, one more is loaded ahead.
        columns = ceil(ow_tile / 2)
        return 2 * oc_vectors * columns + ow_tile + columns + 2 + (workload.stride[1] > 1)
    sums, lanes = oc_vectors * ow_tile, instruction.lanes
    if rows > 1:
        # Words, what they are made of, and weights.
        return sums + 2 * oc_vectors + 2
    weights, between = (
        instruction.weight_registers,
        instruction.registers_between(workload.precision),
    )
    if steps_are_rows(workload, lanes):
        # Permutations across a register take tables, and several of them for a pixel.
        tables = 0 if workload.depthwise or workload.group_out % 4 == 0 else 3 + oc_vectors
        if instruction.depth > 1 and 4 % workload.group_in:
            tables = max(3 + oc_vectors, oc_vectors * workload.group_in)
        needed = sums + 2 * (min(workload.kernel[1], 3) + weights)
        # Tables are constants: for a tile of one sum they are read again.
        return needed + (tables + ceil(between / 2) if sums > 1 else min(tables, 4))
    if workload.groups > 1 and workload.group_out % lanes:
        # Pixels of two groups and both blended, of several columns at once.
        if workload.precision.whole and instruction.depth == 1:
            between += _WIDENING
        if oc_vectors > ow_tile:
            return sums + 2 * ow_tile + weights + 1 + between
        return sums + ceil(ow_tile / 2) + oc_vectors * weights + 5 + between
    stay = min(oc_vectors, ow_tile)
    pass_by = 2 if stay == 1 else 1
    if stay == 1 and not instruction.computes(workload.precision):
        pass_by = max(oc_vectors, ow_tile)
    return sums + stay * weights + pass_by + between


def usable_registers(case: Case) -> int:
    """Return the vector registers that a tile of a case may need."""
    spare = case.device.spare_registers
    if PAIR in case.rates[0].instruction.pixel_operands:
        spare = 0  # All that LLVM loads ahead is counted.
    if case.conversion:
        spare = max(spare, _CONVERTING[case.workload.depthwise])
    return case.device.vector_registers - spare


def divides_blocks(ic_block: int, input_block: int | None) -> bool:
    """Return whether a block of channels is a part or a multiple of the input's blocks."""
    return not input_block or ic_block % input_block == 0 or input_block % ic_block == 0


def reasons_against(blocking: Blocking, case: Case) -> list[str]:
    """Return why a blocking cannot be used, each reason with its numbers; empty if it can."""
    b, workload, device = blocking, case.words, case.device
    reasons = []
    widths = [rate.lanes for rate in case.rates]
    if b.lanes not in widths:
        reasons.append(f"lanes is {b.lanes}: {device.name} has vectors of {widths} lanes")
    for name in ("oc_vectors", "ow_tile", "ic_block", "ic_unroll", "oh_block"):
        if getattr(b, name) < 1:
            reasons.append(f"{name} is {getattr(b, name)}: expected at least 1")
    if b.loop_order not in ORDERS:
        reasons.append(f"loop_order is {b.loop_order!r}: expected one of {', '.join(ORDERS)}")
    elif b.loop_order == IC_OUTSIDE and not case.precision.stores_sums:
        reasons.append(
            f"loop_order is {IC_OUTSIDE}: sums of {case.precision} are not stored before they are "
            f"complete, expected {IC_INSIDE}"
        )
    if b.oc_block:
        reasons += _reasons_against_block(b, case)
    if case.rows > 1 and not b.kw_unroll:
        reasons.append("kw_unroll is off: words of rows are made for all columns of the kernel")
    if reasons:
        return reasons
    if case.peak.instruction.pixels > 1:
        return _reasons_against_matrices(b, case)
    tiling = Tiling(case, blocking)
    vectors = ceil(workload.out_channels / b.lanes)
    if b.oc_vectors > vectors:
        reasons.append(
            f"oc_vectors is {b.oc_vectors}: {workload.out_channels} output channels are only "
            f"{vectors} vectors"
        )
    elif workload.groups > 1 and vectors % b.oc_vectors:
        reasons.append(
            f"oc_vectors is {b.oc_vectors}: does not divide the {vectors} vectors of "
            f"{workload.out_channels} output channels in groups"
        )
    if workload.group_in % b.ic_block:
        reasons.append(
            f"ic_block is {b.ic_block}: does not divide {workload.group_in} input channels"
            + (" of a group" if workload.groups > 1 else "")
        )
    block = case.word_layout.block
    if not divides_blocks(b.ic_block, block) and b.ic_block != workload.group_in:
        reasons.append(
            f"ic_block is {b.ic_block}: neither a part nor a multiple of the input's blocks of "
            f"{block} channels"
        )
    contiguous = tiling.contiguous_channels
    if contiguous % b.ic_unroll:
        reasons.append(f"ic_unroll is {b.ic_unroll}: does not divide {contiguous} channels")
    if b.flat_rows:
        pixels = workload.out_height * workload.out_width
        if not can_flatten(workload):
            reasons.append("flat_rows is set: only 1x1 kernels without padding can")
        elif b.flat_rows < 0 or pixels % b.flat_rows:
            reasons.append(f"flat_rows is {b.flat_rows}: does not divide {pixels} pixels")
    if not reasons:
        view = tiling.view
        if b.ow_tile > view.out_width:
            reasons.append(f"ow_tile is {b.ow_tile}: a row has only {view.out_width} columns")
        if view.out_height % b.oh_block:
            reasons.append(f"oh_block is {b.oh_block}: does not divide {view.out_height} rows")
    needed, usable = tiling.registers, usable_registers(case)
    if needed > usable:
        reasons.append(
            f"{b.ow_tile} x {b.oc_vectors} sums with their operands need {needed} registers: "
            f"{device.name} has {device.vector_registers}, {usable} of them for tiles"
        )
    return reasons


def _reasons_against_matrices(blocking: Blocking, case: Case) -> list[str]:
    """Return why matrix registers cannot be used so."""
    b, most, reasons = blocking, case.peak.instruction.pixels, []
    block = case.word_layout.block
    if b.ic_block != block:
        reasons.append(f"ic_block is {b.ic_block}: expected {block}, as the input's blocks")
    if b.loop_order != IC_INSIDE:
        reasons.append(f"loop_order is {b.loop_order}: expected {IC_INSIDE} in matrix registers")
    if b.oh_block != 1:
        reasons.append(f"oh_block is {b.oh_block}: expected 1 in matrix registers")
    if b.flat_rows and (b.flat_rows != 1 or not flat_in_matrices(case)):
        reasons.append(
            f"flat_rows is {b.flat_rows}: expected 0, or 1 for 1x1 kernels of stride 1, not padded"
        )
    matrices = ceil(b.ow_tile / most)
    vectors = ceil(case.workload.out_channels / b.lanes)
    if (matrices, b.oc_vectors) not in MATRIX_TILES or b.oc_vectors > vectors:
        reasons.append(
            f"ow_tile is {b.ow_tile} and oc_vectors {b.oc_vectors}: expected at most {most} "
            f"columns beside 1, 2 or 4 of {vectors} vectors, or twice as many beside 1 or 2"
        )
    if b.ow_tile % matrices:
        reasons.append(f"ow_tile is {b.ow_tile}: expected {matrices} matrices of as many columns")
    if reasons:
        return reasons
    tiling = Tiling(case, b)
    width, height, pixels = tiling.view.out_width, tiling.view.out_height, b.ow_tile // matrices
    if pixels > width and (pixels % width or pixels // width > height):
        reasons.append(
            f"ow_tile is {b.ow_tile}: {pixels} pixels in a matrix are neither a part of a row of "
            f"{width} nor some of the {height} rows"
        )
    elif tiling.matrices_of_pixels < matrices:
        reasons.append(
            f"ow_tile is {b.ow_tile}: more than the {width * height} pixels of the image"
        )
    return reasons


def _reasons_against_block(blocking: Blocking, case: Case) -> list[str]:
    block, lanes, channels = blocking.oc_block, blocking.lanes, case.workload.out_channels
    if block < 0 or block % lanes:
        return [f"oc_block is {block}: expected a multiple of {lanes} lanes"]
    if case.precision.block:
        wanted = case.oc_block(lanes)
        return [] if block == wanted else [f"oc_block is {block}: expected {wanted}"]
    if ceil(channels / lanes) * lanes % block:
        return [
            f"oc_block is {block}: vectors of {lanes} lanes leave a part of the last block of "
            f"{channels} output channels"
        ]
    return []


def tiled(blocking: Blocking, case: Case) -> Tiling:
    """Return a case as a blocking cuts it.

    Raises
    ------
    BlockingError
        If the blocking cannot be used, with every reason there is.
    """
    if reasons := reasons_against(blocking, case):
        raise BlockingError(f"this blocking cannot be used for {case}: " + "; ".join(reasons))
    return Tiling(case, blocking)
