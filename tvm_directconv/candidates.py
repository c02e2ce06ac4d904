"""The blockings that the model compares, and the one that it chooses."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache, lru_cache
from math import ceil, gcd
from operator import itemgetter

from .blocking import IC_OUTSIDE, Blocking
from .case import Case
from .hardware.device import Rate
from .instructions import MEMORY, PAIR
from .model import at_hand, estimate, least_cycles
from .tiling import (
    MATRIX_TILES,
    Tiling,
    can_flatten,
    contiguous_channels,
    divides_blocks,
    flat_in_matrices,
    registers,
    steps_are_rows,
    usable_registers,
)
from .workload import ConvWorkload

# Straight-line code longer than this no longer pays. In border tiles it is all columns of the
# kernel that so many steps are of.
_STRAIGHT_FMAS = 128
# The same with the kernel's columns, which cost no branch then. Beyond about 400, LLVM begins to
# move FMAs between steps and to spill.
_STRAIGHT_ROW_FMAS = 256
# Wider tiles than so many vectors read more streams of weights than prefetchers follow, and nobody
# ships them. Of narrow groups, the weights of more stay in the first-level cache.
_MOST_VECTORS, _MOST_GROUPED_VECTORS = 4, 10
# Pairs of pixels take the vector units some time, too, which more vectors share.
_MOST_PAIRED_VECTORS = 6
# Sums in a depthwise tile: these fill the pipelines. More would save few loads of weights, and
# where LLVM loads pixels far ahead, strided rows begin to spill at 11. Words of rows are shared by
# more columns in wider tiles.
_MOST_DEPTHWISE_SUMS, _MOST_SUMS_OF_ROWS = 10, 16


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


def candidates(case: Case) -> Iterator[Blocking]:
    """Generate the blockings that the model compares, all of them usable."""
    for tile in _tiles(case):
        yield from _orders(tile)


def _tiles(case: Case) -> Iterator[Tiling]:
    """Generate the tiles that the model compares, each in one of the orders that they come in."""
    channels = case.words.group_in
    block = case.word_layout.block
    contiguous = gcd(channels, block) if block else channels
    if contiguous < 4 and channels <= 32:
        contiguous = channels
    if case.peak.instruction.pixels > 1:
        yield from _in_matrices(case, case.peak)
        return
    for rate in case.rates:
        if rate.lanes == case.lanes or (rate.lanes < case.lanes and _may_be_narrower(case, rate)):
            yield from _in_vectors(case, rate, contiguous)


def _orders(tile: Tiling) -> Iterator[Blocking]:
    """Generate the orders in which a tile may be computed."""
    case = tile.case
    if tile.matrix:
        for rows_outside in (False, True):
            yield replace(tile.blocking, rows_outside=rows_outside)
        return
    channels, contiguous = case.words.group_in, tile.blocking.ic_block
    # Blocks for the paper's order; one block of all channels is the other order.
    blocks = [
        n
        for n in _divisors(channels)
        if case.precision.stores_sums
        and n % contiguous == 0
        and n <= 256
        and n < channels
        and divides_blocks(n, case.word_layout.block)
    ]
    for oh_block in _oh_blocks(tile.view, tile.channel_tiles.tiles, case.threads):
        for rows_outside in (False, True):
            base = replace(tile.blocking, oh_block=oh_block, rows_outside=rows_outside)
            yield base
            for ic_block in blocks:
                yield replace(base, ic_block=ic_block, loop_order=IC_OUTSIDE)


def _in_matrices(case: Case, rate: Rate) -> Iterator[Tiling]:
    """Generate the tiles in matrix registers."""
    block, vectors = case.word_layout.block, ceil(case.workload.out_channels / rate.lanes)
    assert block is not None
    for flat_rows in (0, 1) if flat_in_matrices(case) else (0,):
        tile = Blocking(
            rate.lanes,
            1,
            1,
            block,
            block,
            kw_unroll=True,
            flat_rows=flat_rows,
            oc_block=case.oc_block(rate.lanes),
        )
        view = Tiling(case, tile).view
        for pixels in _pixels_of_matrices(view, rate.instruction.pixels):
            for matrices, oc_vectors in MATRIX_TILES:
                sizes = replace(tile, oc_vectors=oc_vectors, ow_tile=matrices * pixels)
                wanted = Tiling(case, sizes)
                if oc_vectors <= vectors and wanted.matrices_of_pixels >= matrices:
                    yield wanted


def _pixels_of_matrices(view: ConvWorkload, most: int) -> list[int]:
    """Return how many pixels matrices may have: parts of a row, or several rows, as even as can be.

    With fewer pixels an instruction takes as long as with all.
    """
    width, height = view.out_width, view.out_height
    if width > most:
        return [ceil(width / ceil(width / most))]
    rows = min(height, most // width)
    return [width * ceil(height / ceil(height / rows))]


def _may_be_narrower(case: Case, rate: Rate) -> bool:
    """Return whether vectors narrower than blocks of outputs may pay: they span fewer groups."""
    workload = case.words
    if workload.groups == 1 or workload.depthwise or workload.group_out % case.lanes == 0:
        return False
    if case.precision.block:  # Blocks are of whole vectors of any width.
        return True
    whole = ceil(workload.out_channels / rate.lanes) * rate.lanes % case.lanes == 0
    return whole and workload.group_in > 1


def _in_vectors(case: Case, rate: Rate, contiguous: int) -> Iterator[Tiling]:
    """Generate the tiles in vectors of one width."""
    workload, input_layout = case.words, case.word_layout
    lanes, channels = rate.lanes, workload.group_in
    vectors = ceil(workload.out_channels / lanes)
    inner = contiguous_channels(contiguous, input_layout.block)
    paired = PAIR in rate.instruction.pixel_operands
    most = _MOST_PAIRED_VECTORS if paired else _MOST_VECTORS
    widths: Iterable[int] = range(1, min(vectors, most) + 1)
    if workload.groups > 1:
        widths = _widths_in_groups(case, rate)
    if rate.instruction.pixel_operands == (MEMORY,):
        widths = [n for n in widths if n == 1]
    rows = steps_are_rows(workload, lanes) and not workload.depthwise
    most_sums = _MOST_SUMS_OF_ROWS if case.rows > 1 else _MOST_DEPTHWISE_SUMS
    for oc_vectors in widths:
        for ow_tile in range(1, usable_registers(case)):
            needed = registers(oc_vectors, ow_tile, workload, rate.instruction, case.rows)
            if needed > usable_registers(case):
                break
            if workload.depthwise and oc_vectors * ow_tile > most_sums:
                break
            limit = max(1, _STRAIGHT_FMAS // (oc_vectors * ow_tile))
            if rows and input_layout.name != "NCHW":
                limit = inner  # Which elements of a vector are read must be known.
            ic_unroll = max(d for d in _divisors(inner) if d <= limit)
            straight = ic_unroll * oc_vectors * ow_tile * workload.kernel[1]
            tile = Blocking(
                lanes,
                oc_vectors,
                ow_tile,
                contiguous,
                ic_unroll,
                kw_unroll=rows
                or case.rows > 1
                or (ic_unroll == channels and straight <= _STRAIGHT_ROW_FMAS),
                oc_block=case.oc_block(lanes),
            )
            for flat_rows in _flat_rows(workload, ow_tile):
                flat = Tiling(case, replace(tile, flat_rows=flat_rows))
                view = flat.view
                if ow_tile > view.out_width:
                    continue
                tiles = ceil(view.out_width / ow_tile)
                if ow_tile > ceil(view.out_width / tiles):
                    continue  # As many tiles of less width leave less for the last one to lack.
                yield flat


def _widths_in_groups(case: Case, rate: Rate) -> list[int]:
    """Return how many vectors of output channels tiles may have where there are groups."""
    workload, usable, lanes = case.words, usable_registers(case), rate.lanes
    if workload.group_out % lanes == 0:
        return [n for n in _divisors(workload.group_out // lanes) if n <= _MOST_VECTORS]
    vectors = ceil(workload.out_channels / lanes)
    if case.rows > 1:
        # Vectors of one block of pixels are loaded, and interleaved, as one.
        inside = (case.word_layout.block or lanes) // lanes
        return [
            n for n in _divisors(vectors) if n <= _MOST_VECTORS and gcd(n, inside) in (n, inside)
        ]
    widths = [
        n
        for n in _divisors(vectors)
        if registers(n, 1, workload, rate.instruction, case.rows) <= usable
    ]
    # Of groups that end in another tile, pixels are read for a part of their channels only.
    whole = [n for n in widths if n == vectors or n * lanes % workload.group_out == 0]
    most = _MOST_GROUPED_VECTORS if workload.group_out > lanes else _MOST_VECTORS
    return [n for n in whole if n <= most] or [n for n in widths if n <= _MOST_VECTORS]


@lru_cache(maxsize=1024)
def choose(case: Case) -> Blocking:
    """Return the blocking with the fewest cycles in the model."""
    found = []
    for place, tile in enumerate(_tiles(case)):
        counted = None if tile.matrix else at_hand(tile)
        least = least_cycles(tile, counted) if counted else 0.0
        found.append((least, place, tile, counted))
    # The most promising first, until nothing that is left can be better.
    found.sort(key=itemgetter(0, 1))
    best: tuple[float, int, int, Blocking] | None = None
    for least, place, tile, counted in found:
        if best and least > best[0]:
            break
        for order, blocking in enumerate(_orders(tile)):
            cycles = estimate(Tiling(case, blocking), counted=counted).cycles
            # Of equals, the first: candidates come with the plainer one first.
            if best is None or (cycles, place, order) < best[:3]:
                best = cycles, place, order, blocking
    assert best
    return best[3]
