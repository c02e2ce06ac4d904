"""Block sizes: what they are, which are possible, and which the analytical model chooses.

The model is the paper's (section 3), with E = C_o,b x W_o,b outputs in flight:

1.  E >= N_vec N_fma L_fma: enough independent sums to fill the pipelines of the FMA units;
2.  E <= N_reg N_vec: all of them in registers;
3.  C_o,b is a multiple of N_vec,

and what the paper leaves out: weights and pixels need registers too, a step also issues loads,
the last tile of a row may be narrower, weights that do not fit the first-level cache have to come
from the second for every tile, sums that leave the registers between blocks of C_i cost loads and
stores, and tasks must share out evenly. :func:`choose` counts the cycles of every candidate.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from math import ceil, gcd
from typing import Any

from .errors import BlockingError, did_you_mean
from .hardware.device import Device
from .kinds import FLAG, THREADS, Kind, is_whole, problem, shown
from .layout import ActivationLayout, WeightLayout
from .workload import MAX_ELEMENTS, ConvWorkload

IC_INSIDE = "ic_inside"
IC_OUTSIDE = "ic_outside"
_ORDERS = (IC_INSIDE, IC_OUTSIDE)

# Straight-line code longer than this no longer pays. Tiles of 3 vectors and kernels of several
# columns were 5 % faster with 4 steps than with 8, with AVX-512; with AVX2, 8 steps of 12 FMAs are
# 1 % faster than 4. In border tiles it is all columns of the kernel that so many steps are of.
_STRAIGHT_FMAS = 128
# The same with the kernel's columns, which cost no branch then. Beyond about 400, LLVM begins to
# move FMAs between steps and to spill.
_STRAIGHT_ROW_FMAS = 256
# Constants of the cost model, fitted to some thousand blockings measured with AVX2 and AVX-512.
_LOADS_REACHED = 0.65
_EMBEDDED_LOADS_REACHED = 0.93  # Where each is a part of a multiply-add, as in tiles of one vector.
# Loads that hide behind FMAs still take power, and slots that another hyperthread of the core
# wants. Beside one, loops of 64 x 6 kept 0.90 of the burst's speed, 48 x 9 0.87, 32 x 14 0.78.
_PER_LOAD = 0.12
_LATENCY_SLACK = 1.2  # Just enough sums to fill the pipelines is not enough for a steady flow.
_STORED_SUMS = 1.03  # Sums that leave the registers have been slower than counted.
_FIRST_STORED = 0.7  # of the time that lines of the output come from afar, before sums are complete
_MEMORY_SLOWER = 2.0  # than the third-level cache
_CONTENTION = 1.5
_STREAMS = 16
_CACHE_WAY = 4096  # bytes: of most first-level caches, which are indexed within a page
_ROUND_DISTANCE = 256  # bytes: a few cache lines
_PER_VISIT = 12  # cycles
_NARROW_LOADS_REACHED = 0.5  # Narrow last tiles have fewer sums to hide their loads behind.
_NOT_HIDDEN = 0.1  # of the shorter of two things done at once
# Sums in a depthwise tile: these fill the pipelines. More would save few loads of weights, and
# where LLVM loads pixels far ahead, strided rows begin to spill at 11.
_MOST_DEPTHWISE_SUMS = 10
# With more pixels, the weights' way from memory is less than one in a hundred cycles.
_FEW_PIXELS = 1200
# Border tiles get code of their own; with more than this many, they share a loop with branches.
_MOST_BORDER_TILES = 4

_SIZE = Kind("a whole number from 1", lambda v: is_whole(v, 1, MAX_ELEMENTS))
_KINDS = {
    "lanes": _SIZE,
    "oc_vectors": _SIZE,
    "ow_tile": _SIZE,
    "ic_block": _SIZE,
    "ic_unroll": _SIZE,
    "loop_order": Kind(f"one of {', '.join(_ORDERS)}", lambda v: v in _ORDERS),
    "kw_unroll": FLAG,
    "oh_block": _SIZE,
    "rows_outside": FLAG,
    "flat_rows": Kind("a whole number from 0", lambda v: is_whole(v, 0, MAX_ELEMENTS)),
}

_NEEDED = ("lanes", "oc_vectors", "ow_tile", "ic_block")


@dataclass(frozen=True)
class Blocking:
    """The block sizes of one convolution.

    Parameters
    ----------
    lanes : int
        fp32 lanes of the vectors computed with, the paper's N_vec; also the channel block of
        the output.
    oc_vectors : int
        Vectors of output channels in the register tile: C_o,b = oc_vectors x lanes. Where that does
        not divide them, the last tiles are narrower; where there are groups, it must.
    ow_tile : int
        Output columns in the register tile, W_o,b.
    ic_block : int
        Input channels that are summed up before the next kernel position, C_i,b.
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

    def view(self, workload: ConvWorkload) -> ConvWorkload:
        """Return the workload as this blocking sees it: pixels of 1x1 kernels in other rows.

        Of a strided one, it has just the input that is read.
        """
        return _counted_in_rows(workload, self.flat_rows) if self.flat_rows else workload

    def channels_at_once(self, workload: ConvWorkload) -> int:
        """Return the input channels that are summed up before a tile's sums are stored."""
        return self.ic_block if self.loop_order == IC_OUTSIDE else workload.group_in

    def oc_tiles(self, workload: ConvWorkload) -> tuple[int, int, int]:
        """Return the tiles of output channels: how many, how many narrower ones, their vectors.

        The narrower ones are the last. What is left over would be too few sums to fill the FMA
        pipelines, so several tiles do with one vector less, if there are as many.
        """
        vectors = ceil(workload.out_channels / self.lanes)
        tiles = ceil(vectors / self.oc_vectors)
        lacking = tiles * self.oc_vectors - vectors
        if lacking < tiles:
            return tiles, lacking, self.oc_vectors - 1
        return tiles, 1, vectors % self.oc_vectors

    def weight_layout(self) -> WeightLayout:
        """Return the layout of weights for this blocking."""
        return WeightLayout(self.ic_block, self.lanes)

    def output_layout(self) -> ActivationLayout:
        """Return the layout of the output of this blocking."""
        return ActivationLayout.blocked(self.lanes)


# The model asks the same of a workload for each of a thousand blockings.
@cache
def _counted_in_rows(workload: ConvWorkload, rows: int) -> ConvWorkload:
    columns = workload.out_height * workload.out_width // rows
    return replace(workload, in_height=rows, in_width=columns, stride=(1, 1))


@cache
def channel_block(channels: int, device: Device) -> int:
    """Return the channel block in which activations of a device are kept.

    It is the vector width that computes all channels in the fewest cycles, the wider of two that
    are equal: 24 channels take two vectors of 16 lanes or three of 8, and where 8 lanes go twice
    as often per cycle, three are faster. It depends on nothing but the channels and the device,
    so that one layer's output is the next one's input.
    """
    return min(
        device.vectors,
        key=lambda v: (ceil(channels / v.lanes) / v.fma_per_cycle, -v.lanes),
    ).lanes


def default_input_layout(workload: ConvWorkload, device: Device) -> ActivationLayout:
    """Return the layout of the input: plain for images, blocked between layers."""
    if workload.in_channels < min(v.lanes for v in device.vectors):
        return ActivationLayout("NCHW")
    return ActivationLayout.blocked(channel_block(workload.in_channels, device))


def can_flatten(workload: ConvWorkload) -> bool:
    """Return whether rows mean nothing: every output pixel reads just one input pixel."""
    return workload.kernel == (1, 1) and not any(workload.padding)


def moved_columns(workload: ConvWorkload, ow_tile: int) -> int:
    """Return how many columns the last tile of a row takes over from the one before.

    Alone, what is left over may be too narrow to keep the FMA units busy: the two share evenly. If
    the last one reads padding, it has fewer products to each of its sums, and gets one more.
    """
    columns = workload.out_width
    rest = columns % ow_tile
    padded = workload.padding[3] > 0
    return (ow_tile - rest + padded) // 2 if rest and columns > ow_tile else 0


def tile_columns(workload: ConvWorkload, ow_tile: int) -> list[range]:
    """Return the columns of each tile of a row."""
    firsts = list(range(0, workload.out_width, ow_tile))
    if moved := moved_columns(workload, ow_tile):
        firsts[-1] -= moved
    return [range(*pair) for pair in pairwise([*firsts, workload.out_width])]


@cache
def border_tiles(workload: ConvWorkload, ow_tile: int) -> tuple[int, int]:
    """Return how many tiles of a row need code of their own, at its left and at its right end.

    These are the tiles that read padding, and the last ones if they are narrower. A tile between
    them reads no padding.
    """
    stride, padding = workload.stride[1], workload.padding[1]
    taps = (workload.kernel[1] - 1) * workload.dilation[1]
    tiles = tile_columns(workload, ow_tile)
    left = sum(tile[0] * stride < padding for tile in tiles)
    special = [
        len(tile) < ow_tile or tile[-1] * stride - padding + taps >= workload.in_width
        for tile in tiles
    ]
    # Where the last but one is narrower, the last may be whole and read no padding.
    right = len(tiles) - special.index(True) if any(special) else 0
    if left + right > 2 * _MOST_BORDER_TILES:
        left, right = min(left, _MOST_BORDER_TILES), min(right, _MOST_BORDER_TILES)
    return left, right


def neighbours(ic_block: int, input_block: int | None) -> int:
    """Return how many channels of a block lie side by side in the input.

    Straight-line code goes over these: their addresses differ by constants.
    """
    return input_block if input_block and ic_block % input_block == 0 else ic_block


def straight_channels(blocking: Blocking, input_block: int | None) -> int:
    """Return how many input channels are straight-line code: where two rounds were left, both."""
    together = neighbours(blocking.ic_block, input_block)
    rounds = blocking.ic_block // together, together // blocking.ic_unroll
    return blocking.ic_unroll * 2 ** sum(map(unrolls, rounds))


def straight_fmas(blocking: Blocking, workload: ConvWorkload, input_block: int | None) -> int:
    """Return the multiply-adds in a blocking's straight-line code."""
    taps = workload.kernel[1] if blocking.kw_unroll else 1
    return blocking.oc_vectors * blocking.ow_tile * straight_channels(blocking, input_block) * taps


def unrolls(rounds: int) -> bool:
    """Return whether a loop over input channels is unrolled, beyond what `ic_unroll` says.

    LLVM makes a loop with a flag of two rounds: with AVX2, each began 4 of its 48 cycles late.
    """
    return rounds == 2


def _goes_with(ic_block: int, input_block: int | None) -> bool:
    """Return whether a block of channels is a part or a multiple of the input's blocks."""
    return not input_block or ic_block % input_block == 0 or input_block % ic_block == 0


def weights_take_time(workload: ConvWorkload) -> bool:
    """Return whether to fetch weights from memory takes a good part of a convolution's time.

    A vector of them is multiplied with every pixel of the output, and comes from memory in the time
    of some twelve multiply-adds: six cycles, where the second-level cache gives a vector in one, of
    two multiply-adds each.
    """
    return workload.out_height * workload.out_width <= _FEW_PIXELS


def reasons_against(
    blocking: Blocking, workload: ConvWorkload, device: Device, input_layout: ActivationLayout
) -> list[str]:
    """Return why a blocking cannot be used, each reason with its numbers; empty if it can."""
    b = blocking
    reasons = []
    widths = [v.lanes for v in device.vectors]
    if b.lanes not in widths:
        reasons.append(f"lanes is {b.lanes}: {device.name} has vectors of {widths} lanes")
    for name in ("oc_vectors", "ow_tile", "ic_block", "ic_unroll", "oh_block"):
        if getattr(b, name) < 1:
            reasons.append(f"{name} is {getattr(b, name)}: expected at least 1")
    if b.loop_order not in _ORDERS:
        reasons.append(f"loop_order is {b.loop_order!r}: expected one of {', '.join(_ORDERS)}")
    if reasons:
        return reasons
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
    block = input_layout.block
    if not _goes_with(b.ic_block, block) and b.ic_block != workload.group_in:
        reasons.append(
            f"ic_block is {b.ic_block}: neither a part nor a multiple of the input's blocks of "
            f"{block} channels"
        )
    together = neighbours(b.ic_block, block)
    if together % b.ic_unroll:
        reasons.append(f"ic_unroll is {b.ic_unroll}: does not divide {together} channels")
    if b.flat_rows:
        pixels = workload.out_height * workload.out_width
        if not can_flatten(workload):
            reasons.append("flat_rows is set: only 1x1 kernels without padding can")
        elif b.flat_rows < 0 or pixels % b.flat_rows:
            reasons.append(f"flat_rows is {b.flat_rows}: does not divide {pixels} pixels")
    if not reasons:
        view = b.view(workload)
        if b.ow_tile > view.out_width:
            reasons.append(f"ow_tile is {b.ow_tile}: a row has only {view.out_width} columns")
        if view.out_height % b.oh_block:
            reasons.append(f"oh_block is {b.oh_block}: does not divide {view.out_height} rows")
    needed, usable = registers(b.oc_vectors, b.ow_tile, workload), usable_registers(device)
    if needed > usable:
        reasons.append(
            f"{b.ow_tile} x {b.oc_vectors} sums with their operands need {needed} registers: "
            f"{device.name} has {device.vector_registers}, {usable} of them for tiles"
        )
    return reasons


def check(
    blocking: Blocking, workload: ConvWorkload, device: Device, input_layout: ActivationLayout
) -> None:
    """Raise if a blocking cannot be used.

    Raises
    ------
    BlockingError
        With every reason there is.
    """
    if reasons := reasons_against(blocking, workload, device, input_layout):
        raise BlockingError(
            f"this blocking cannot be used for {workload} on {device.name}: " + "; ".join(reasons)
        )


def registers(oc_vectors: int, ow_tile: int, workload: ConvWorkload) -> int:
    """Return the vector registers a tile needs.

    Its sums; of weights and pixels the fewer, which stay through a step; and one through which
    the others pass. Those that are used only once each pass too fast for one register. Depthwise,
    the weights of a row of the kernel stay, and the pixels that neighbouring outputs share; of wide
    kernels, LLVM reads some of them again.
    """
    if workload.depthwise:
        return oc_vectors * ow_tile + 2 * min(workload.kernel[1], 3) + 2
    stay = min(oc_vectors, ow_tile)
    return oc_vectors * ow_tile + stay + (2 if stay == 1 else 1)


def usable_registers(device: Device) -> int:
    """Return the vector registers that a tile of a device may need."""
    return device.vector_registers - device.spare_registers


@dataclass(frozen=True)
class Estimate:
    """What the model counts for a blocking, in cycles of one thread.

    Attributes
    ----------
    cycles : float
        All of it.
    ideal : float
        The FMAs alone, at their peak rate, without lanes or columns that are wasted.
    balance : float
        Average over largest share of the threads' tasks; 1 is even.
    """

    cycles: float
    ideal: float
    balance: float

    @property
    def of_peak(self) -> float:
        """Predicted part of the FMA peak, counting products with padding as the peak does."""
        return self.ideal / self.cycles


def estimate(
    blocking: Blocking,
    workload: ConvWorkload,
    device: Device,
    threads: int = 1,
    code: Callable[[tuple[int, ...]], float | None] | None = None,
) -> Estimate:
    """Count the cycles of a convolution.

    Parameters
    ----------
    blocking : Blocking
        One that :func:`reasons_against` has nothing against.
    workload : ConvWorkload
        What is convolved.
    device : Device
        On what.
    threads : int
        By how many.
    code : callable, optional
        Knows better than the model what a tile's compiled code takes, all data at hand. Of how
        many columns of the tile read input at each column of the kernel, it returns the cycles of
        one input channel at one row of the kernel; None where it knows no better.

    Returns
    -------
    Estimate
    """
    b, view = blocking, blocking.view(workload)
    stored = _STORED_SUMS if b.loop_order == IC_OUTSIDE else 1
    oc_tiles, narrow, vectors = b.oc_tiles(view)
    of_whole = stored * _task_cycles(b, workload, device, oc_tiles, code)
    of_narrow = 0.0
    if narrow:
        other = replace(b, oc_vectors=vectors)
        of_narrow = stored * _task_cycles(other, workload, device, oc_tiles, None)
    blocks = view.out_height // b.oh_block
    run = 1 if b.rows_outside else blocks  # of tasks, before the next tile's turn
    whole = run * (oc_tiles - narrow)  # tasks, before those of the narrower tiles

    def of_first(tasks: int) -> float:
        turns, left = divmod(tasks, run * oc_tiles)
        wholes = turns * whole + min(left, whole)
        return wholes * of_whole + (tasks - wholes) * of_narrow

    tasks = view.batch * oc_tiles * blocks
    largest = of_first(ceil(tasks / threads))
    ideal = workload.flops / device.peak_flops_per_cycle / threads
    return Estimate(largest, ideal, of_first(tasks) / threads / largest)


def _task_cycles(
    b: Blocking,
    workload: ConvWorkload,
    device: Device,
    oc_tiles: int,
    code: Callable[[tuple[int, ...]], float | None] | None,
) -> float:
    """Return the cycles of one task, of which there is one for every so many rows and channels."""
    view = b.view(workload)
    rows, columns = view.kernel
    depth, channels = view.group_in, b.channels_at_once(view)
    groups = groups_in_tile(b, view)
    vectors_bytes = b.oc_vectors * b.lanes * 4

    # Bytes that are read again and again, by the next tile of the row, the next row and the next
    # task. How many others lie between two readings decides about the cache they come from.
    tile_weights = channels * rows * columns * vectors_bytes
    pixel = 4 * groups
    tile_input = channels * rows * (b.ow_tile * view.stride[1] + columns - 1) * pixel
    row_input = channels * rows * view.in_width * pixel
    if b.flat_rows:
        # Pixels between those that are read come along as far as the second-level cache, into
        # which processors fetch lines in pairs.
        pixel *= workload.stride[1]
    vectors = ceil(view.out_channels / b.lanes)
    task_weights = depth * rows * columns * vectors_bytes
    all_weights = depth * rows * columns * vectors * b.lanes * 4
    task_rows = min(view.in_height, (b.oh_block - 1) * view.stride[0] + rows)
    task_input = task_rows * view.in_width * depth * pixel
    task_outputs = b.oh_block * view.out_width * vectors_bytes
    # A tile of whole groups shares its input with no other: it is read again by the next rows only.
    own_input = view.groups > 1 and b.oc_vectors * b.lanes >= view.group_out
    # What a task is the first to read comes from farther away than what one before it read.
    image = view.in_height * view.in_width * depth * pixel
    outputs = view.out_height * view.out_width * vectors * b.lanes * 4
    images = oc_tiles if own_input else 1
    everything = all_weights + image * images + outputs
    if b.rows_outside:
        between_weights = all_weights
        between_input = (task_input + task_weights) * images
    else:
        between_weights = task_weights + task_input
        between_input = task_input + task_weights if own_input else image
    first_weights = b.oh_block / view.out_height
    first_input = min(1.0, b.oh_block * view.stride[0] / task_rows) * images / oc_tiles
    from_afar = _per_byte(everything, device)
    next_weights = _mixed(first_weights, from_afar, _per_byte(between_weights, device))
    next_input = _mixed(first_input, from_afar, _per_byte(between_input, device))
    if channels > _STREAMS * channel_block(view.in_channels, device):
        # Every block of channels is a stream of its own, and prefetchers follow only so many.
        next_input *= 2
    # Each vector's weights are a stream. Where channels are round numbers, so are the distances of
    # the streams: they compete for the same places, whatever else is free.
    places = tile_weights
    if depth * rows * columns * b.lanes * 4 % _ROUND_DISTANCE == 0:
        places = b.oc_vectors * ceil(tile_weights / b.oc_vectors / _CACHE_WAY) * _CACHE_WAY
    weights_again = tile_weights * _per_byte(places + tile_input, device)
    input_again = tile_input * _per_byte(row_input + tile_weights, device)
    sums_again = 0.0
    if channels < depth:  # Loaded and stored.
        sums_again = 2 * _per_byte(task_outputs, device)

    # Rows of the kernel that lie in the padding are skipped, columns in border tiles as well.
    rows_met = sum(taps_inside(view, 0, range(view.out_height))) / view.out_height

    def tile_cycles(columns: range) -> float:
        width = len(columns)
        fmas = width * b.oc_vectors
        memory = weights_again + input_again * width / b.ow_tile
        memory += fmas * b.lanes * 4 * sums_again
        # Once per visit: sums are set or loaded, stored, and addresses computed.
        around = fmas / device.loads_per_cycle * (2 if channels < depth else 1)
        met = taps_inside(view, 1, columns)
        loads_reached = _LOADS_REACHED if width == b.ow_tile else _NARROW_LOADS_REACHED
        step_cycles = code(tuple(met)) if code else None
        if step_cycles is None:
            step_cycles = sum(
                _step_cycles(b, reached, device, loads_reached, groups > 1) for reached in met
            )
        return _together(channels * rows_met * step_cycles + around + _PER_VISIT, memory)

    tiles = tile_columns(view, b.ow_tile)
    left, right = border_tiles(view, b.ow_tile)
    right = min(right, len(tiles) - left)
    row = sum(map(tile_cycles, [*tiles[:left], *tiles[len(tiles) - right :]]))
    if inner := tiles[left : len(tiles) - right]:
        row += len(inner) * tile_cycles(inner[0])
    visits = depth // channels * b.oh_block
    far = task_weights * next_weights
    # Some of what comes from afar has not been seen to hide behind anything: lines of the output
    # where sums are stored between blocks, which the first of them waits for, and the pixels of
    # strided images that are counted in other rows.
    waited = 0.0
    if channels < depth:
        waited += _FIRST_STORED * from_afar * task_outputs
    if b.flat_rows and workload.stride != (1, 1):
        waited += from_afar * task_input * first_input
    # Weights on their way from afar, and those that every tile has from the second-level cache
    # again, wait for each other.
    if from_afar > 1 / device.l2_bytes_per_cycle:
        waited += _CONTENTION * min(far, visits * len(tiles) * weights_again)
    return _together(row * visits, far + task_input * next_input) + waited


@cache
def taps_inside(view: ConvWorkload, axis: int, outputs: range) -> list[int]:
    """Return for each row (axis 0) or column (1) of the kernel how many outputs read input."""
    size = (view.in_height, view.in_width)[axis]
    stride, dilation, before = view.stride[axis], view.dilation[axis], view.padding[axis]
    return [
        sum(0 <= out * stride + tap * dilation - before < size for out in outputs)
        for tap in range(view.kernel[axis])
    ]


def groups_in_tile(b: Blocking, workload: ConvWorkload) -> int:
    """Return how many groups the output channels of a register tile belong to.

    If there are several, lanes have input channels of their own, and pixels are vectors.
    """
    return min(workload.groups, ceil(b.oc_vectors * b.lanes / workload.group_out))


def _step_cycles(
    b: Blocking, width: int, device: Device, loads_reached: float, pixels_are_vectors: bool
) -> float:
    """Return the cycles of one step of a tile of `width` columns, all data at hand."""
    if not width:
        return 0.0
    rate = next(v.fma_per_cycle for v in device.vectors if v.lanes == b.lanes)
    fma = width * b.oc_vectors / rate
    # Loads go at their full rate only on paper: those that miss the cache are repeated.
    load = width / device.scalar_loads_per_cycle + b.oc_vectors / device.loads_per_cycle
    if pixels_are_vectors:
        load = (width + 1) * b.oc_vectors / device.loads_per_cycle
    elif device.memory_operand_broadcast and b.oc_vectors == 1:
        loads_reached = _EMBEDDED_LOADS_REACHED
    load /= loads_reached
    return max(fma, load, device.fma_latency * _LATENCY_SLACK) + load * _PER_LOAD


def _per_byte(between: float, device: Device) -> float:
    """Return the cycles for a byte that is read again after `between` others."""
    # A part of each cache is taken by what else passes through it.
    if between <= 0.75 * device.l1d_bytes:
        return 0.0
    if between <= 0.75 * device.l2_bytes:
        return 1 / device.l2_bytes_per_cycle
    if between <= 0.75 * device.l3_bytes:
        return 1 / device.l3_bytes_per_cycle
    return _MEMORY_SLOWER / device.l3_bytes_per_cycle


def _mixed(part: float, first: float, other: float) -> float:
    """Return what is in between: a part of the first, the rest of the other."""
    return part * first + (1 - part) * other


def _together(one: float, other: float) -> float:
    """Return the cycles of two things done at once."""
    return max(one, other) + _NOT_HIDDEN * min(one, other)


@cache
def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _flat_rows(workload: ConvWorkload, ow_tile: int) -> list[int]:
    """Return in how many rows to count the pixels of an image: a few sensible numbers."""
    if not can_flatten(workload):
        return [0]
    pixels = workload.out_height * workload.out_width
    even = [r for r in _divisors(pixels) if pixels // r % ow_tile == 0]
    rows = even or [r for r in _divisors(pixels) if pixels // r >= 4 * ow_tile] or [1]
    # From one row for all to some 50 pixels a row: what tasks and caches may ask for.
    flat = {min(rows, key=lambda r: abs(r - near)) for near in (1, 8, pixels // 50)}
    # With a stride, each column of a tile needs an address of its own, which takes registers.
    return sorted(flat if workload.stride == (1, 1) else {0, *flat})


def _oh_blocks(view: ConvWorkload, oc_tiles: int, threads: int) -> list[int]:
    """Return row blocks that leave the threads evenly busy: one row, a few, and all."""

    def balance(rows: int) -> float:
        tasks = view.batch * oc_tiles * (view.out_height // rows)
        return tasks / (ceil(tasks / threads) * threads)

    best = max(balance(rows) for rows in _divisors(view.out_height))
    even = [r for r in _divisors(view.out_height) if balance(r) > best - 0.02]
    wanted = [1, 4, 8, even[-1]]
    if view.kernel[0] > 1:
        wanted.append(16)  # Blocks share rows of input with their neighbours: fewer, if they fit.
    return sorted({min(even, key=lambda r: abs(r - near)) for near in wanted})


def candidates(
    workload: ConvWorkload,
    device: Device,
    input_layout: ActivationLayout,
    threads: int = 1,
) -> Iterator[Blocking]:
    """Generate the blockings that the model compares, all of them usable."""
    lanes = channel_block(workload.out_channels, device)
    vectors = ceil(workload.out_channels / lanes)
    channels = workload.group_in
    together = gcd(channels, input_layout.block) if input_layout.block else channels
    if together < 4 and channels <= 32:
        together = channels
    # Blocks for the paper's order; one block of all channels is the other order.
    blocks = [
        n
        for n in _divisors(channels)
        if n % together == 0 and n <= 256 and n < channels and _goes_with(n, input_layout.block)
    ]
    inner = neighbours(together, input_layout.block)
    # Wider tiles than 4 vectors read more streams of weights than prefetchers follow, and nobody
    # ships them. Where groups are whole vectors, a tile stays within one.
    widths: Iterable[int] = range(1, min(vectors, 4) + 1)
    if workload.groups > 1:
        within = vectors if workload.group_out % lanes else workload.group_out // lanes
        widths = [n for n in _divisors(within) if n <= 4]
    for oc_vectors in widths:
        for ow_tile in range(1, usable_registers(device)):
            if registers(oc_vectors, ow_tile, workload) > usable_registers(device):
                break
            if workload.depthwise and oc_vectors * ow_tile > _MOST_DEPTHWISE_SUMS:
                break
            limit = max(1, _STRAIGHT_FMAS // (oc_vectors * ow_tile))
            ic_unroll = max(d for d in _divisors(inner) if d <= limit)
            straight = ic_unroll * oc_vectors * ow_tile * workload.kernel[1]
            tile = Blocking(
                lanes,
                oc_vectors,
                ow_tile,
                together,
                ic_unroll,
                kw_unroll=ic_unroll == channels and straight <= _STRAIGHT_ROW_FMAS,
            )
            for flat_rows in _flat_rows(workload, ow_tile):
                view = replace(tile, flat_rows=flat_rows).view(workload)
                if ow_tile > view.out_width:
                    continue
                tiles = ceil(view.out_width / ow_tile)
                if ow_tile > ceil(view.out_width / tiles):
                    continue  # As many tiles of less width leave less for the last one to lack.
                for oh_block in _oh_blocks(view, tile.oc_tiles(view)[0], threads):
                    for rows_outside in (False, True):
                        base = replace(
                            tile, flat_rows=flat_rows, oh_block=oh_block, rows_outside=rows_outside
                        )
                        yield base
                        for ic_block in blocks:
                            yield replace(base, ic_block=ic_block, loop_order=IC_OUTSIDE)


def check_threads(threads: object) -> None:
    """Raise if something is no number of threads.

    Raises
    ------
    BlockingError
        With what it is.
    """
    if not THREADS.test(threads):
        raise BlockingError(f"threads is {shown(threads)}: expected {THREADS.expected}")


def choose(
    workload: ConvWorkload,
    device: Device,
    threads: int = 1,
    input_layout: ActivationLayout | None = None,
) -> Blocking:
    """Return the blocking with the fewest cycles in the model.

    Parameters
    ----------
    workload : ConvWorkload
        What is convolved.
    device : Device
        On what.
    threads : int
        By how many.
    input_layout : ActivationLayout, optional
        Of :func:`default_input_layout` if not given.

    Returns
    -------
    Blocking
    """
    layout = input_layout or default_input_layout(workload, device)
    # Of equals, min() takes the first: candidates come with the plainer one first.
    return min(
        candidates(workload, device, layout, threads),
        key=lambda b: estimate(b, workload, device, threads).cycles,
    )
