"""The analytical model: how many cycles a convolution takes in given block sizes.

The model is the paper's (section 3), with E = C_o,b x W_o,b outputs in flight:

1.  E >= N_vec N_fma L_fma: enough independent sums to fill the pipelines of the FMA units;
2.  E <= N_reg N_vec: all of them in registers;
3.  C_o,b is a multiple of N_vec,

and what the paper leaves out: weights and pixels need registers too, a step also issues loads,
the last tile of a row may be narrower, weights that do not fit the first-level cache have to come
from the second for every tile, sums that leave the registers between blocks of C_i cost loads and
stores, and tasks must share out evenly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from .blocking import IC_OUTSIDE
from .case import channel_block
from .hardware.constants import ModelConstants
from .hardware.device import Device
from .instructions import MEMORY, VECTOR
from .tiling import Tiling, taps_inside

StepCycles = Callable[[tuple[int, ...]], float | None]
"""Of how many columns of a tile read input at each column of the kernel, the cycles of one input
channel at one row of the kernel, all data at hand; None where it knows no better than the model."""


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


def estimate(tiling: Tiling, step_cycles: StepCycles | None = None) -> Estimate:
    """Count the cycles of a convolution.

    Parameters
    ----------
    tiling : Tiling
        A case as a blocking cuts it.
    step_cycles : callable, optional
        Knows better than the model what a tile's compiled code takes; see :data:`StepCycles`.

    Returns
    -------
    Estimate
    """
    case, b, constants = tiling.case, tiling.blocking, tiling.case.device.model
    tiles = tiling.channel_tiles
    stored = constants.stored_sums if b.loop_order == IC_OUTSIDE else 1
    of_whole = stored * _task_cycles(tiling, tiles.tiles, step_cycles)
    of_narrower = 0.0
    if tiles.narrower:
        of_narrower = stored * _task_cycles(tiling.narrower, tiles.tiles, None)
    run = 1 if b.rows_outside else tiling.row_blocks  # of tasks, before the next tile's turn
    whole = run * (tiles.tiles - tiles.narrower)  # tasks, before those of the narrower tiles

    def of_first(tasks: int) -> float:
        turns, left = divmod(tasks, run * tiles.tiles)
        wholes = turns * whole + min(left, whole)
        return wholes * of_whole + (tasks - wholes) * of_narrower

    largest = of_first(ceil(tiling.tasks / case.threads))
    ideal = case.workload.flops / case.peak.flops_per_cycle / case.threads
    return Estimate(largest, ideal, of_first(tiling.tasks) / case.threads / largest)


def _task_cycles(tiling: Tiling, oc_tiles: int, step_cycles: StepCycles | None) -> float:
    """Return the cycles of one task, where there are `oc_tiles` tiles of output channels."""
    case, b, view = tiling.case, tiling.blocking, tiling.view
    device, precision, constants = case.device, case.precision, case.device.model
    rows, columns = view.kernel
    depth, channels = view.group_in, tiling.channels_at_once
    vector_bytes = b.lanes * precision.weight.bytes  # of weights
    tile_bytes = b.oc_vectors * vector_bytes
    sums_bytes = b.oc_vectors * b.lanes * precision.sum.bytes

    # Bytes that are read again and again, by the next tile of the row, the next row and the next
    # task. How many others lie between two readings decides about the cache they come from.
    tile_weights = channels * rows * columns * tile_bytes
    pixel = precision.pixel.bytes * tiling.groups_in_tile
    tile_input = channels * rows * (b.ow_tile * view.stride[1] + columns - 1) * pixel
    row_input = channels * rows * view.in_width * pixel
    if b.flat_rows:
        # Pixels between those that are read come along as far as the second-level cache, into
        # which processors fetch lines in pairs.
        pixel *= case.workload.stride[1]
    vectors = ceil(view.out_channels / b.lanes)
    task_weights = depth * rows * columns * tile_bytes
    all_weights = depth * rows * columns * vectors * vector_bytes
    task_rows = min(view.in_height, (b.oh_block - 1) * view.stride[0] + rows)
    task_input = task_rows * view.in_width * depth * pixel
    task_outputs = b.oh_block * view.out_width * sums_bytes
    # A tile of whole groups shares its input with no other: it is read again by the next rows only.
    own_input = view.groups > 1 and b.oc_vectors * b.lanes >= view.group_out
    # What a task is the first to read comes from farther away than what one before it read.
    image = view.in_height * view.in_width * depth * pixel
    outputs = view.out_height * view.out_width * vectors * b.lanes * precision.sum.bytes
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
    cold = _per_byte(everything, device)
    next_weights = _mixed(first_weights, cold, _per_byte(between_weights, device))
    next_input = _mixed(first_input, cold, _per_byte(between_input, device))
    if channels > constants.streams * channel_block(view.in_channels, device, precision):
        # Every block of channels is a stream of its own, and prefetchers follow only so many.
        next_input *= 2
    # Each vector's weights are a stream. Where channels are round numbers, so are the distances of
    # the streams: they compete for the same places, whatever else is free.
    places = tile_weights
    if depth * rows * columns * vector_bytes % constants.round_distance_bytes == 0:
        way = constants.cache_way_bytes
        places = b.oc_vectors * ceil(tile_weights / b.oc_vectors / way) * way
    weights_again = tile_weights * _per_byte(places + tile_input, device)
    input_again = tile_input * _per_byte(row_input + tile_weights, device)
    sums_again = 0.0
    if tiling.sums_are_stored:  # and loaded
        sums_again = 2 * _per_byte(task_outputs, device)

    # Rows of the kernel that lie in the padding are skipped, columns in border tiles as well.
    rows_inside = sum(taps_inside(view, 0, range(view.out_height))) / view.out_height

    def tile_cycles(columns: range) -> float:
        width = len(columns)
        fmas = width * b.oc_vectors
        memory = weights_again + input_again * width / b.ow_tile
        memory += fmas * b.lanes * precision.sum.bytes * sums_again
        # Once per visit: sums are set or loaded, stored, and addresses computed.
        overhead = fmas / device.loads_per_cycle * (2 if tiling.sums_are_stored else 1)
        overhead += constants.visit_cycles
        inside = taps_inside(view, 1, columns)
        taken = step_cycles(tuple(inside)) if step_cycles else None
        if taken is None:
            whole = width == b.ow_tile
            taken = sum(_step_cycles(tiling, taps, whole) for taps in inside)
        return _together(channels * rows_inside * taken + overhead, memory, constants)

    tiles, _, left, right = tiling.row
    right = min(right, len(tiles) - left)
    row = sum(map(tile_cycles, tiles[:left] + tiles[len(tiles) - right :]))
    if inner := tiles[left : len(tiles) - right]:
        row += len(inner) * tile_cycles(inner[0])
    visits = depth // channels * b.oh_block
    cold_weights = task_weights * next_weights
    # Some cold traffic is not seen to hide behind anything: lines of the output
    # where sums are stored between blocks, which the first of them waits for, and the pixels of
    # strided images that are counted in other rows.
    waited = 0.0
    if tiling.sums_are_stored:
        waited += constants.first_stored * cold * task_outputs
    if b.flat_rows and case.workload.stride != (1, 1):
        waited += cold * task_input * first_input
    # Cold weights, and those that every tile reads from the second-level cache again, wait for
    # each other.
    if cold > 1 / device.l2_bytes_per_cycle:
        waited += constants.contention * min(cold_weights, visits * len(tiles) * weights_again)
    return _together(row * visits, cold_weights + task_input * next_input, constants) + waited


def _step_cycles(tiling: Tiling, width: int, whole: bool) -> float:
    """Return the cycles of a step of `width` columns, all data at hand.

    `whole` says whether the tile is as wide as the others.
    """
    if not width:
        return 0.0
    b, device, constants = tiling.blocking, tiling.case.device, tiling.case.device.model
    fma = width * b.oc_vectors / tiling.rate.per_cycle
    sustained = constants.loads_sustained if whole else constants.narrow_loads_sustained
    load = width / device.scalar_loads_per_cycle + b.oc_vectors / device.loads_per_cycle
    if tiling.pixel_operand == VECTOR:
        load = (width + 1) * b.oc_vectors / device.loads_per_cycle
    elif tiling.pixel_operand == MEMORY:
        sustained = constants.operand_loads_sustained
    load /= sustained
    return (
        max(fma, load, tiling.rate.latency * constants.latency_slack) + load * constants.load_cost
    )


def _mixed(part: float, first: float, other: float) -> float:
    """Return what is in between: a part of the first, the rest of the other."""
    return part * first + (1 - part) * other


def _per_byte(between: float, device: Device) -> float:
    """Return the cycles for a byte that is read again after `between` others."""
    filled = device.model.cache_filled
    if between <= filled * device.l1d_bytes:
        return 0.0
    if between <= filled * device.l2_bytes:
        return 1 / device.l2_bytes_per_cycle
    if between <= filled * device.l3_bytes:
        return 1 / device.l3_bytes_per_cycle
    return device.model.memory_slower / device.l3_bytes_per_cycle


def _together(one: float, other: float, constants: ModelConstants) -> float:
    """Return the cycles of two things done at once."""
    return max(one, other) + constants.not_hidden * min(one, other)
