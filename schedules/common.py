"""The operators that the schedules of all instruction sets are composed of."""

from dataclasses import dataclass
from typing import Any

from tvm_directconv.blocking import IC_OUTSIDE
from tvm_directconv.compute import BLOCK_NAME
from tvm_directconv.hardware.device import Device
from tvm_directconv.instructions import VECTOR as OWN_PIXELS
from tvm_directconv.lowering.marks import (
    COLUMN,
    GROUPS,
    LANE_OPERAND,
    MEMORY_OPERAND,
    PREFETCH_PIXELS,
    PREFETCH_WEIGHTS,
    ROWS,
    STEP,
    TAIL,
    TAP,
    TILE,
    VECTOR,
)
from tvm_directconv.tiling import LANE, MEMORY, PAIR, Tiling, unrolls

# With more pixels, the weights' way from memory is less than one in a hundred cycles.
_FEW_PIXELS = 1200
# Registers for addresses of pixels: some must be left for weights and loops.
_MOST_BASES = 8


@dataclass
class Loops:
    """The loops of a convolution after :func:`split_and_order`, outermost first."""

    task: Any
    oh: Any
    tile: Any
    ic: Any
    kh: Any
    kw: Any
    ic_blocks: Any
    ic_steps: Any
    step: Any
    column: Any
    vector: Any
    lane: Any


def split_and_order(sch: Any, tiling: Tiling) -> Loops:
    """Cut the loops into register tiles and blocks, and put them into the blocking's order.

    Parameters
    ----------
    sch : tvm.s_tir.Schedule
        Schedule of :func:`tvm_directconv.compute.conv2d`, changed in place.
    tiling : Tiling
        The case that the function computes, as its block sizes cut it.
    """
    blocking = tiling.blocking
    block = sch.get_sblock(BLOCK_NAME)
    batch, oc, oh, ow, lane, ic, kh, kw, ici = sch.get_loops(block)
    oc, vector = sch.split(oc, [None, blocking.oc_vectors])
    rows, oh = sch.split(oh, [None, blocking.oh_block])
    tile, column = sch.split(ow, [None, blocking.ow_tile])
    rounds = tiling.contiguous_channels // blocking.ic_unroll
    ic_blocks, ic_steps, step = sch.split(ici, [None, rounds, blocking.ic_unroll])
    # Of weights and pixels, the fewer stay in registers through a step, the others pass by.
    inner = [column, vector] if blocking.oc_vectors <= blocking.ow_tile else [vector, column]
    taps = [kw]
    if tiling.steps_are_rows:
        # Pixels are vectors, which neighbouring columns share: each goes to all of these at once.
        taps, inner = [], [vector, column, kw]
    tasks = [batch, rows, oc] if blocking.rows_outside else [batch, oc, rows]
    within = [ic, oh, tile] if blocking.loop_order == IC_OUTSIDE else [oh, tile, ic]
    sch.reorder(*tasks, *within, kh, *taps, ic_blocks, ic_steps, step, *inner, lane)
    task = sch.fuse(*tasks)
    run = 1 if blocking.rows_outside else tiling.row_blocks
    if tiling.channel_tiles.narrower:
        sch.annotate(task, TAIL, [run, *tiling.channel_tiles])
        sch.annotate(vector, VECTOR, 1)
    if tiling.pixel_operand == OWN_PIXELS and tiling.has_code_of_kinds:
        sch.annotate(task, GROUPS, [run, *tiling.tile_kinds])
    row = tiling.row
    sch.annotate(tile, TILE, [row.left, row.right, row.rebalanced])
    sch.annotate(column, COLUMN, 1)
    return Loops(task, oh, tile, ic, kh, kw, ic_blocks, ic_steps, step, column, vector, lane)


def unroll_tile(sch: Any, tiling: Tiling, loops: Loops, finished: int) -> None:
    """Unroll the register tile and `ic_unroll` steps, and make vectors of the lanes.

    If that leaves two rounds of a loop over input channels, they are unrolled as well.

    `finished` is how many sums of a step LLVM must finish before the next one, 0 for all.
    """
    workload = tiling.view
    sch.annotate(loops.kh if workload.depthwise else loops.step, STEP, finished)
    for loop in (loops.step, loops.column, loops.vector):
        sch.unroll(loop)
    sch.vectorize(loops.lane)
    for loop in (loops.ic_blocks, loops.ic_steps):
        if unrolls(int(sch.get(loop).extent)):
            sch.unroll(loop)
    if tiling.case.rows > 1:
        sch.annotate(loops.kh, ROWS, min(workload.kernel[0], tiling.case.rows))
        sch.unroll(loops.kh)
    if tiling.blocking.kw_unroll:
        sch.unroll(loops.kw)
    elif workload.padding[1] or workload.padding[3]:
        sch.annotate(loops.kw, TAP, 1)


def _stays(size: int, device: Device) -> bool:
    """Return whether an array stays in the second-level cache, half of which others need."""
    return size <= device.l2_bytes // 2


def load_pixels(sch: Any, tiling: Tiling, loops: Loops) -> None:
    """Have pixels loaded as the multiply-adds read them; see :attr:`Tiling.pixel_operand`."""
    if tiling.pixel_operand in (LANE, PAIR):
        sch.annotate(loops.step, LANE_OPERAND, tiling.lanes_at_once)
    if tiling.pixel_operand == MEMORY:
        sch.annotate(loops.step, MEMORY_OPERAND, 1)
    if tiling.pixel_operand == OWN_PIXELS:
        # Each vector may begin in a group of its own, and end in the next one.
        most = tiling.blocking.oc_vectors + tiling.groups_in_tile - 1
        sch.annotate(loops.step, MEMORY_OPERAND, min(most, _MOST_BASES))


def fetch_weights(sch: Any, tiling: Tiling, loops: Loops) -> None:
    """Have the weights of the next task, or block of input channels, fetched before they are due.

    Not where they take no time beside all that is done with them; and within tiles only where they
    do not stay in the second-level cache, as there it costs more than it brings otherwise.

    A vector of weights is multiplied with every pixel of the output, and comes from memory in the
    time of some twelve multiply-adds: six cycles, where the second-level cache gives a vector in
    one, of two multiply-adds each. So with many pixels it takes no time to speak of.
    """
    blocking, workload = tiling.blocking, tiling.view
    if workload.depthwise or workload.out_height * workload.out_width > _FEW_PIXELS:
        return
    channels = tiling.channels_at_once
    vector = workload.kernel[0] * workload.kernel[1] * blocking.lanes  # of one input channel
    again = tiling.row_blocks if channels == workload.group_in and not blocking.rows_outside else 1
    distance = vector * workload.group_in
    fetching = [loops.tile]
    if not _stays(tiling.weight_bytes, tiling.case.device):
        if blocking.loop_order != IC_OUTSIDE:
            fetching.append(loops.ic)
        # Not within rows of the kernel, which are straight-line code in border tiles.
        fetching.append(loops.kh if workload.kernel[0] > 1 else loops.ic_blocks)
    for loop in fetching:
        sch.annotate(
            loop, PREFETCH_WEIGHTS, [blocking.oc_vectors, distance, vector * channels, again]
        )


def fetch_pixels(sch: Any, tiling: Tiling, loops: Loops) -> None:
    """Have pixels fetched before they are due, where not all of them stay in the cache.

    In the paper's order a block of weights stays in the first level while the image passes by; with
    kernels of several rows, that is for images that are small.
    """
    block, workload = tiling.case.word_layout.block, tiling.view
    if not block or workload.depthwise or _stays(tiling.input_bytes, tiling.case.device):
        return
    if tiling.blocking.loop_order != IC_OUTSIDE:
        loop = loops.ic
    elif workload.kernel == (1, 1):
        loop = loops.ic_blocks
    else:
        return
    # The next tile is the first to read the last rows of the kernel, from its last columns on.
    rows, columns = workload.kernel
    pixels = [
        (rows - 1 - row) * workload.dilation[0] * workload.in_width
        + (columns - 1 - column) * workload.dilation[1]
        for row in range(min(workload.stride[0], rows))
        for column in range(min(workload.stride[1], columns))
    ]
    sch.annotate(loop, PREFETCH_PIXELS, [pixel * block for pixel in pixels])


def start_sums(sch: Any, loops: Loops) -> None:
    """Set the sums to zero before the first block of input channels."""
    sch.decompose_reduction(sch.get_sblock(BLOCK_NAME), loops.ic)


def finish_outputs(sch: Any, tiling: Tiling, loops: Loops) -> None:
    """Apply the epilogue, if there is one: in registers, or where all input channels are added.

    In the paper's order the sums leave the registers between blocks of input channels, so they are
    finished when a task is done with the last one, in the cache.
    """
    consumers = sch.get_consumers(sch.get_sblock(BLOCK_NAME))
    if not consumers:
        return
    (block,) = consumers
    at = loops.task if tiling.blocking.loop_order == IC_OUTSIDE else loops.tile
    sch.reverse_compute_at(block, at)
    own = sch.get_loops(block)
    own = own[[sch.get(loop).same_as(sch.get(at)) for loop in own].index(True) + 1 :]
    sch.vectorize(own[-1])
    if VECTOR in sch.get(loops.vector).annotations:
        sch.annotate(own[0], VECTOR, 1)
    if at is loops.tile:
        if tiling.blocking.ow_tile > 1:
            sch.annotate(own[-2], COLUMN, 1)
        for loop in own[:-1]:
            sch.unroll(loop)


def parallel_tasks(sch: Any, tiling: Tiling, loops: Loops) -> None:
    """Share out batch x output channels x rows among threads.

    All three are one fused loop, of which each thread gets a contiguous part: neighbouring tasks
    read the same weights, and the parts differ by one task at most.
    """
    if tiling.case.threads > 1:
        sch.parallel(loops.task)


def direct(sch: Any, tiling: Tiling, finished: int) -> None:
    """Apply a whole blocking: what the schedules of all instruction sets have in common.

    `finished` is as for :func:`unroll_tile`.
    """
    loops = split_and_order(sch, tiling)
    unroll_tile(sch, tiling, loops, finished)
    load_pixels(sch, tiling, loops)
    fetch_weights(sch, tiling, loops)
    fetch_pixels(sch, tiling, loops)
    finish_outputs(sch, tiling, loops)
    parallel_tasks(sch, tiling, loops)
    start_sums(sch, loops)
