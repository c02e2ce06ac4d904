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
from typing import NamedTuple

from .blocking import IC_OUTSIDE
from .hardware.constants import ModelConstants
from .hardware.device import Device
from .instructions import MEMORY, PAIR, VECTOR
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


class AtHand(NamedTuple):
    """What is counted with all data at hand, which is the same in all orders of a tile.

    Attributes
    ----------
    row, narrower : list of tuple
        The tiles of a row, and those of the narrower tiles of output channels: how many are alike,
        how wide each is, and the cycles of its products for a row of the kernel and an input
        channel.
    """

    row: list[tuple[int, int, float]]
    narrower: list[tuple[int, int, float]]


def at_hand(tiling: Tiling, step_cycles: StepCycles | None = None) -> AtHand:
    """Count what is the same in all orders of a tile; see :func:`estimate`."""
    narrower = _products(tiling.narrower, None) if tiling.channel_tiles.narrower else []
    return AtHand(_products(tiling, step_cycles), narrower)


def estimate(
    tiling: Tiling, step_cycles: StepCycles | None = None, counted: AtHand | None = None
) -> Estimate:
    """Count the cycles of a convolution.

    Parameters
    ----------
    tiling : Tiling
        A case as a blocking cuts it.
    step_cycles : callable, optional
        Knows better than the model what a tile's compiled code takes; see :data:`StepCycles`.
    counted : AtHand, optional
        What :func:`at_hand` returns for the tile, where it is known already.

    Returns
    -------
    Estimate
    """
    if tiling.matrix:
        return _in_matrices(tiling)
    counted = counted or at_hand(tiling, step_cycles)
    case, b, constants = tiling.case, tiling.blocking, tiling.case.device.model
    tiles = tiling.channel_tiles
    stored = constants.stored_sums if b.loop_order == IC_OUTSIDE else 1
    of_whole = stored * _task_cycles(tiling, tiles.tiles, counted.row)
    of_narrower = 0.0
    if tiles.narrower:
        of_narrower = stored * _task_cycles(tiling.narrower, tiles.tiles, counted.narrower)
    run = 1 if b.rows_outside else tiling.row_blocks  # of tasks, before the next tile's turn
    whole = run * (tiles.tiles - tiles.narrower)  # tasks, before those of the narrower tiles

    def of_first(tasks: int) -> float:
        turns, left = divmod(tasks, run * tiles.tiles)
        wholes = turns * whole + min(left, whole)
        return wholes * of_whole + (tasks - wholes) * of_narrower

    tasks = tiling.tasks
    largest = of_first(ceil(tasks / case.threads))
    ideal = case.workload.flops / case.peak.flops_per_cycle / case.threads
    return Estimate(largest, ideal, of_first(tasks) / case.threads / largest)


def least_cycles(tiling: Tiling, counted: AtHand) -> float:
    """Return a number of cycles that no order of a tile goes below: those with all data at hand."""
    tiles, view, case = tiling.channel_tiles, tiling.view, tiling.case
    row = of_narrower = _row_cycles(tiling, _sizes(tiling), _CACHED, counted.row)
    if tiles.narrower:
        narrower = tiling.narrower
        found = _row_cycles(narrower, _sizes(narrower), _CACHED, counted.narrower)
        of_narrower = min(row, found)
    rows = (tiles.tiles - tiles.narrower) * row + tiles.narrower * of_narrower
    cycles = view.batch * view.out_height * rows / case.threads
    # Less what rounding may make of the same sum in another order.
    return cycles * min(1.0, case.device.model.stored_sums) * (1 - 1e-9)


def _in_matrices(tiling: Tiling) -> Estimate:
    """Count the cycles of a convolution in matrix registers.

    An instruction takes as long with few pixels as with all. Matrices are loaded a row at a time.
    """
    case, b, view, device = tiling.case, tiling.blocking, tiling.view, tiling.case.device
    matrix, word = tiling.matrix, case.depth
    assert matrix is not None
    channels = tiling.channel_tiles.tiles
    rows, columns = view.kernel
    inside = float(rows)
    if matrix.rows == 1:
        inside = sum(taps_inside(view, 0, range(view.out_height))) / view.out_height
    steps = ceil(view.group_in / b.ic_block) * inside * columns
    weights = steps * b.oc_vectors * b.ic_block * b.lanes * word * case.precision.weight.bytes
    pixel = view.group_in * word * case.precision.pixel.bytes
    pixels, image = b.ow_tile * pixel, view.in_height * view.in_width * pixel
    if b.rows_outside:
        between = channels * weights + pixels, pixels + weights
    else:
        between = weights + pixels, image
    memory = weights * _per_byte(between[0], device) + pixels * _per_byte(between[1], device)
    products = matrix.matrices * b.oc_vectors
    loads = matrix.matrices * matrix.pixels + b.oc_vectors * b.ic_block
    step = max(
        products / tiling.rate.per_cycle, tiling.rate.latency, loads / device.loads_per_cycle
    )
    # Sums are stored row by row.
    computed = steps * step + products * matrix.pixels + device.model.visit_cycles
    tasks = tiling.tasks
    cycles = _together(computed, memory, device.model)
    ideal = case.workload.flops / case.peak.flops_per_cycle / case.threads
    largest = ceil(tasks / case.threads)
    return Estimate(largest * cycles, ideal, tasks / case.threads / largest)


def _task_cycles(tiling: Tiling, oc_tiles: int, products: list[tuple[int, int, float]]) -> float:
    """Return the cycles of one task, where there are `oc_tiles` tiles of output channels."""
    b, view, constants = tiling.blocking, tiling.view, tiling.case.device.model
    size = _sizes(tiling)
    traffic = _traffic(tiling, size, oc_tiles)
    visits = view.group_in // tiling.channels_at_once * b.oh_block
    computed = visits * _row_cycles(tiling, size, traffic, products)
    weights = size.task_weights * traffic.weights
    # Some cold traffic is not seen to hide behind anything: lines of the output where sums are
    # stored between blocks, which the first of them waits for, and the pixels of strided images
    # that are counted in other rows.
    waited = 0.0
    if tiling.sums_are_stored:
        waited += constants.first_stored * traffic.cold * size.task_outputs
    if b.flat_rows and tiling.case.workload.stride != (1, 1):
        waited += traffic.cold * size.task_input * traffic.first_input
    # Cold weights, and those that every tile reads from the second-level cache again, wait for
    # each other.
    if traffic.cold > 1 / tiling.case.device.l2_bytes_per_cycle:
        again = visits * len(tiling.row.tiles) * size.tile_weights * traffic.weights_again
        waited += constants.contention * min(weights, again)
    return _together(computed, weights + size.task_input * traffic.input, constants) + waited


class _Sizes(NamedTuple):
    """Bytes that a visit to a tile, a row of tiles, a task and all tasks read or write."""

    task_rows: int  # of the input, not bytes
    tile_weights: int
    tile_input: int
    row_input: int
    task_weights: int
    task_input: int
    task_outputs: int
    all_weights: int
    image: int
    outputs: int


def _sizes(tiling: Tiling) -> _Sizes:
    b, view, precision = tiling.blocking, tiling.view, tiling.case.precision
    word = tiling.case.depth
    rows, columns = view.kernel
    depth, channels = view.group_in, tiling.channels_at_once
    pixel = at_tile = word * precision.pixel.bytes * tiling.groups_in_tile
    if b.flat_rows:
        # Pixels between those that are read come along as far as the second-level cache, into
        # which processors fetch lines in pairs.
        pixel *= tiling.case.workload.stride[1]
    vectors = ceil(view.out_channels / b.lanes)
    # And input channel, or word of these.
    weights_of_vector = rows * columns * b.lanes * word * precision.weight.bytes
    outputs_of_vector = b.lanes * precision.output.bytes
    task_rows = min(view.in_height, (b.oh_block - 1) * view.stride[0] + rows)
    return _Sizes(
        task_rows=task_rows,
        tile_weights=channels * b.oc_vectors * weights_of_vector,
        tile_input=channels * rows * (b.ow_tile * view.stride[1] + columns - 1) * at_tile,
        row_input=channels * rows * view.in_width * at_tile,
        task_weights=depth * b.oc_vectors * weights_of_vector,
        task_input=task_rows * view.in_width * depth * pixel,
        task_outputs=b.oh_block * view.out_width * b.oc_vectors * outputs_of_vector,
        all_weights=depth * vectors * weights_of_vector,
        image=view.in_height * view.in_width * depth * pixel,
        outputs=view.out_height * view.out_width * vectors * outputs_of_vector,
    )


class _Traffic(NamedTuple):
    """Cycles for a byte, by what it is and when it was read before.

    Attributes
    ----------
    weights_again, input_again, sums_again : float
        Of what the tile, row or visit before read, or stored.
    weights, input : float
        Of what a task reads for the first time.
    cold : float
        Of what no task has read before.
    first_input : float
        Part of a task's input that is cold.
    """

    weights_again: float
    input_again: float
    sums_again: float
    weights: float
    input: float
    cold: float
    first_input: float


_CACHED = _Traffic(*[0.0] * len(_Traffic._fields))


def _traffic(tiling: Tiling, size: _Sizes, oc_tiles: int) -> _Traffic:
    """Return what bytes take: how many others lie between two readings decides about the cache."""
    b, view, device = tiling.blocking, tiling.view, tiling.case.device
    constants, channels = device.model, tiling.channels_at_once
    # A tile of whole groups shares its input with no other: it is read again by the next rows only.
    own_input = view.groups > 1 and b.oc_vectors * b.lanes >= view.group_out
    images = oc_tiles if own_input else 1
    if b.rows_outside:
        between_weights = size.all_weights
        between_input = (size.task_input + size.task_weights) * images
    else:
        between_weights = size.task_weights + size.task_input
        between_input = between_weights if own_input else size.image
    # What a task is the first to read comes from farther away than what one before it read.
    cold = _per_byte(size.all_weights + size.image * images + size.outputs, device)
    first_input = min(1.0, b.oh_block * view.stride[0] / size.task_rows) * images / oc_tiles
    weights = _mixed(b.oh_block / view.out_height, cold, _per_byte(between_weights, device))
    pixels = _mixed(first_input, cold, _per_byte(between_input, device))
    if channels * tiling.case.depth > constants.streams * tiling.case.input_block:
        # Every block of channels is a stream of its own, and prefetchers follow only so many.
        pixels *= 2
    # Each vector's weights are a stream. Where channels are round numbers, so are the distances of
    # the streams: they compete for the same places, whatever else is free.
    places = size.tile_weights
    if size.task_weights // b.oc_vectors % constants.round_distance_bytes == 0:
        way = constants.cache_way_bytes
        places = b.oc_vectors * ceil(size.tile_weights / b.oc_vectors / way) * way
    return _Traffic(
        weights_again=_per_byte(places + size.tile_input, device),
        input_again=_per_byte(size.row_input + size.tile_weights, device),
        # Loaded and stored.
        sums_again=2 * _per_byte(size.task_outputs, device) if tiling.sums_are_stored else 0.0,
        weights=weights,
        input=pixels,
        cold=cold,
        first_input=first_input,
    )


def _products(tiling: Tiling, step_cycles: StepCycles | None) -> list[tuple[int, int, float]]:
    """Return the tiles of a row as :class:`AtHand` has them."""
    view = tiling.view

    def cycles(columns: range) -> float:
        inside = taps_inside(view, 1, columns)
        taken = step_cycles(tuple(inside)) if step_cycles else None
        if taken is None:
            # Most columns of the kernel see as many columns of the tile.
            whole = len(columns) == tiling.blocking.ow_tile
            steps = {taps: _step_cycles(tiling, taps, whole) for taps in set(inside)}
            taken = sum(steps[taps] for taps in inside)
        return taken

    tiles, _, left, right = tiling.row
    right = min(right, len(tiles) - left)
    found = [(1, len(t), cycles(t)) for t in tiles[:left] + tiles[len(tiles) - right :]]
    if inner := tiles[left : len(tiles) - right]:
        found.append((len(inner), len(inner[0]), cycles(inner[0])))
    return found


def _row_cycles(
    tiling: Tiling, size: _Sizes, traffic: _Traffic, products: list[tuple[int, int, float]]
) -> float:
    """Return the cycles of one visit to each tile of a row, sums at hand or in the cache."""
    b, view, device = tiling.blocking, tiling.view, tiling.case.device
    sum_bytes = b.lanes * tiling.case.precision.sum.bytes
    stored, channels = tiling.sums_are_stored, tiling.channels_at_once
    weights_again = size.tile_weights * traffic.weights_again
    input_again = size.tile_input * traffic.input_again
    # Rows of the kernel that lie in the padding are skipped, columns in border tiles as well.
    rows_inside = sum(taps_inside(view, 0, range(view.out_height))) / view.out_height
    rows_inside = min(rows_inside, tiling.word_rows)  # Words are multiplied as a whole.
    cycles = 0.0
    for times, width, taken in products:
        sums = width * b.oc_vectors
        memory = weights_again + input_again * width / b.ow_tile
        memory += sums * sum_bytes * traffic.sums_again
        # Once per visit: sums are set or loaded, stored, and addresses computed.
        overhead = sums / device.loads_per_cycle * (2 if stored else 1)
        overhead += device.model.visit_cycles
        computed = channels * rows_inside * taken + overhead
        cycles += times * _together(computed, memory, device.model)
    return cycles


def _step_cycles(tiling: Tiling, width: int, whole: bool) -> float:
    """Return the cycles of a step of `width` columns, all data at hand.

    `whole` says whether the tile is as wide as the others.
    """
    if not width:
        return 0.0
    b, device, constants = tiling.blocking, tiling.case.device, tiling.case.device.model
    products = width + width % 2 if tiling.pixel_operand == PAIR else width
    fma = (products * b.oc_vectors + tiling.pixel_moves(width)) / tiling.rate.per_cycle
    fma += tiling.conversion_cycles(width)  # In the same units.
    sustained = constants.loads_sustained if whole else constants.narrow_loads_sustained
    vectors, floats = tiling.pixel_loads(width)
    # Narrower vectors are loaded at the rate of numbers, where that is higher.
    at_once = min(device.scalar_loads_per_cycle, device.loads_per_cycle * device.lanes / b.lanes)
    load = (vectors + tiling.weight_loads(width)) / max(device.loads_per_cycle, at_once)
    load += floats / device.scalar_loads_per_cycle
    shared = tiling.pixel_operand == VECTOR and not tiling.view.depthwise
    if tiling.pixel_operand == MEMORY or shared:
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
