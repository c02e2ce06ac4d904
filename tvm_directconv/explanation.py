"""Why the model chooses a blocking: its inequalities and its count, with the numbers put in.

Everything is computed from the device file and the workload; nothing is compiled or measured.
"""

from collections.abc import Callable
from dataclasses import replace
from math import ceil, inf, prod

from .blocking import IC_OUTSIDE, Blocking
from .candidates import candidates, choose
from .case import Case
from .hardware.device import Device
from .instructions import MATRIX_REGISTERS
from .logs.choice import best
from .model import estimate
from .precision import NumberType
from .tiling import Tiling, reasons_against, usable_registers
from .workload import ConvWorkload

_ALTERNATIVES = 3
# Machines on which a thing costs nothing. How many cycles the model counts less for such a machine
# is what the thing costs here.
_FREE: dict[str, Callable[[Device], Device]] = {
    "loads and stores": lambda device: replace(
        device, loads_per_cycle=inf, scalar_loads_per_cycle=inf
    ),
    "waiting for earlier multiply-adds": lambda device: replace(
        device, instructions=tuple(replace(rate, latency=0.0) for rate in device.instructions)
    ),
    "bytes from beyond the first-level cache": lambda device: replace(
        device, l2_bytes_per_cycle=inf, l3_bytes_per_cycle=inf
    ),
}


def _losses(tiling: Tiling) -> dict[str, float]:
    """Return the cycles that each thing costs; what overlaps is counted twice or not at all."""
    case, cost = tiling.case, estimate(tiling)
    found = {}
    for what, free in _FREE.items():
        better = replace(case, device=free(case.device))
        found[what] = cost.cycles - estimate(Tiling(better, tiling.blocking)).cycles
    if tiling.matrix:
        empty = 1 - tiling.matrix.pixels / tiling.rate.instruction.pixels
        found["rows of matrices without a pixel"] = cost.cycles * empty
        found["outputs that are computed twice"] = cost.cycles * (1 - _once(tiling))
    else:
        used = case.workload.out_channels / _computed_channels(tiling)
        found["lanes without an output channel"] = cost.cycles * (1 - used)
    found["threads that wait for the others"] = cost.cycles * (1 - cost.balance)
    return found


def explain(
    workload: ConvWorkload | str,
    device: Device | str,
    threads: int = 1,
    input_layout: str | None = None,
    ghz: float | None = None,
) -> str:
    """Say which blocking the analytical model chooses, and why.

    Parameters
    ----------
    workload : ConvWorkload or str
        What is convolved, or its descriptor.
    device : Device or str
        On what; see :func:`tvm_directconv.device`.
    threads : int
        By how many.
    input_layout : str, optional
        Layout of the input, as in :func:`tvm_directconv.build`.
    ghz : float, optional
        Clock that makes time of cycles; the device's nominal one if not given. Where that is not
        known either, there are cycles only.

    Returns
    -------
    str
        Paragraphs of plain text: the paper's inequalities, registers, the tiles of a row, loop
        order, caches, tasks, the predicted percentage of the peak, the next best candidates, and
        the layouts with the memory they save; last, what tuning logs say, if they know better.

    Raises
    ------
    WorkloadError
        If the workload is malformed.
    BlockingError
        If threads or layout cannot be used.
    DeviceError
        If there is no such device.

    Examples
    --------
    >>> print(explain("ic64ih56oc64oh56kh3ph1", "cortex-a72").splitlines()[0])
    ic64ih56oc64oh56kh3ph1 on cortex-a72, 1 thread
    """
    case = Case.of(workload, device, threads, input_layout)
    chosen = Tiling(case, choose(case))
    ranked = sorted(
        (Tiling(case, candidate) for candidate in candidates(case)),
        key=lambda tiling: estimate(tiling).cycles,
    )
    paragraphs = [
        _heading(chosen),
        *([_matrices(chosen)] if chosen.matrix else [_tile(chosen), _row(chosen)]),
        _loop_order(chosen, ranked),
        _caches(chosen),
        _tasks(chosen),
        _prediction(chosen, ghz or case.device.ghz),
        _alternatives(chosen, ranked),
        _memory(chosen),
    ]
    if tuned := best(case):
        paragraphs.append(_tuned(chosen, *tuned))
    return "\n\n".join("\n  ".join(lines) for lines in paragraphs)


def _heading(chosen: Tiling) -> list[str]:
    case = chosen.case
    w, d = case.workload, case.device
    name = f"{w.name}: {w}" if w.name else str(w)
    return [
        f"{name} on {d.name}, {_count(case.threads, 'thread')}",
        f"{w.flops / 1e9:.4g} GFLOP; {d.description} (at most "
        f"{case.peak.flops_per_cycle:g} FLOP per cycle and core)",
        f"blocking: {chosen.blocking}",
    ]


def _tuned(chosen: Tiling, blocking: Blocking, source: str) -> list[str]:
    if blocking == chosen.blocking:
        return [f"Tuning confirms this choice ({source})."]
    return [f"Tuning found another blocking, which build takes instead ({source}):", str(blocking)]


def _computed_channels(tiling: Tiling) -> int:
    """Return the output channels that are computed, those that only fill a vector included."""
    return -(-tiling.case.workload.out_channels // tiling.blocking.lanes) * tiling.blocking.lanes


def _in_flight_needed(tiling: Tiling) -> float:
    rate = tiling.rate
    return rate.lanes * rate.per_cycle * rate.latency


def _tile(chosen: Tiling) -> list[str]:
    case, b, rate = chosen.case, chosen.blocking, chosen.rate
    d = case.device
    channels = b.oc_vectors * b.lanes
    in_flight = channels * b.ow_tile
    needed = _in_flight_needed(chosen)
    room = d.vector_registers * b.lanes
    sums, used = b.oc_vectors * b.ow_tile, chosen.registers
    full = (
        "the pipelines stay full"
        if in_flight >= needed
        else (f"the pipelines are filled to {in_flight / needed:.0%} only")
    )
    lines = [
        f"Register tile: C_ob x W_ob = {channels} x {b.ow_tile} outputs, E = {in_flight} sums in "
        "flight",
        f"N_vec = {b.lanes} lanes, N_fma = {rate.per_cycle:g} per cycle"
        f"{'' if rate.instruction.fused else ' (pairs of multiply and add)'}, "
        f"L_fma = {rate.latency:g} cycles, N_reg = {d.vector_registers} registers",
        f"1. E >= N_vec N_fma L_fma: {in_flight} >= {b.lanes} x {rate.per_cycle:g} x "
        f"{rate.latency:g} = {needed:g} {_holds(in_flight >= needed)}: {full}",
        f"2. E <= N_reg N_vec: {in_flight} <= {d.vector_registers} x {b.lanes} = {room} "
        f"{_holds(in_flight <= room)}",
        f"3. C_ob is a multiple of N_vec: {channels} = {b.oc_vectors} x {b.lanes} holds",
        f"registers: {used} needed ({sums} for sums, {used - sums} for weights and pixels), "
        f"{usable_registers(case)} of {d.vector_registers} for tiles",
    ]
    if case.conversion:
        converting, whole = chosen.conversion_cycles(b.ow_tile), sums / rate.per_cycle
        lines.append(
            f"what is loaded is converted from {case.precision.pixel} by "
            f"{case.conversion.conversion}: {converting:.3g} cycles beside {whole:.3g} of "
            "multiply-adds"
        )
    wider = replace(b, ow_tile=b.ow_tile + 1)
    if against := reasons_against(wider, case):
        lines.append(f"one column more is impossible: {'; '.join(against)}")
    computed = _computed_channels(chosen)
    if idle := computed - case.workload.out_channels:
        lines.append(
            f"of {computed} lanes {idle} compute zeros: there are only "
            f"{_count(case.workload.out_channels, 'output channel')}"
        )
    if b.oc_block:
        why = "as matrices take them" if case.precision.block else "fewer of them span groups"
        lines.append(f"vectors of {b.lanes} lanes in blocks of {b.oc_block} output channels: {why}")
    elif b.lanes < case.rates[0].lanes:
        lines.append(
            f"vectors of {b.lanes} rather than {case.rates[0].lanes} lanes: they compute "
            f"{case.workload.out_channels} channels in fewer cycles"
        )
    return lines


def _once(tiling: Tiling) -> float:
    """Return which part of the outputs that matrices compute is no output of another one, too."""
    b, view = tiling.blocking, tiling.view
    vectors = ceil(view.out_channels / b.lanes)
    outputs = view.batch * vectors * view.out_height * view.out_width
    return outputs / (tiling.tasks * b.oc_vectors * b.ow_tile)


def _matrices(chosen: Tiling) -> list[str]:
    b, rate, matrix, view = chosen.blocking, chosen.rate, chosen.matrix, chosen.view
    assert matrix is not None
    sums = matrix.matrices * b.oc_vectors
    taken = sums / rate.per_cycle
    left = min(b.oc_vectors, MATRIX_REGISTERS - sums - matrix.matrices)
    lines = [
        f"Register tile: {_count(matrix.matrices, 'matrix', 'matrices')} of {matrix.pixels} pixels "
        f"x {b.oc_vectors} of {b.lanes} output channels",
        f"{rate.instruction} multiplies {matrix.pixels} pixels, {rate.instruction.pixels} at most, "
        f"x {b.ic_block} words of {chosen.case.depth} input channels with weights of {b.lanes} "
        f"output channels, once in {1 / rate.per_cycle:g} cycles",
        f"{_count(sums, 'product')} in turn take {taken:g} cycles, and each sum waits "
        f"{rate.latency:g} for the one before: "
        + (
            "the unit stays busy"
            if taken >= rate.latency
            else f"busy to {taken / rate.latency:.0%}"
        ),
        f"registers: {sums} for sums, {matrix.matrices} for pixels, {left} for weights, of "
        f"{MATRIX_REGISTERS}",
        f"a matrix is {matrix.columns} pixels of a row of {view.out_width}"
        if matrix.rows == 1
        else f"a matrix is {matrix.rows} rows of {matrix.columns} pixels",
    ]
    once = _once(chosen)
    if once < 1:
        lines.append(
            f"where a tile is left over, it begins earlier: {1 - once:.1%} are computed twice"
        )
    if any(view.padding):
        lines.append(
            f"a matrix with padding in it is put together on the stack, in "
            f"{b.ow_tile * b.ic_block * 4:,} bytes"
        )
    return lines


def _row(chosen: Tiling) -> list[str]:
    case, b, view, row = chosen.case, chosen.blocking, chosen.view, chosen.row
    widths = list(map(len, row.tiles))
    narrow = [width for width in widths if width < b.ow_tile]
    lines = [
        f"Row of {view.out_width} columns: {_count(len(widths) - len(narrow), 'tile')} of "
        + str(b.ow_tile)
        + (f" and one of {' and one of '.join(map(str, narrow))}" if narrow else ", none left over")
    ]
    if b.flat_rows:
        lines.append(
            f"a 1x1 kernel reads one pixel for each output, so {view.out_height} rows of "
            f"{view.out_width} pixels stand for {case.workload.out_height} of "
            f"{case.workload.out_width}"
        )
    if narrow:
        in_flight = b.oc_vectors * b.lanes * min(narrow)
        needed = _in_flight_needed(chosen)
        lines.append(
            f"the narrowest tile has {in_flight} sums in flight, "
            + ("enough" if in_flight >= needed else f"{in_flight / needed:.0%} of the {needed:g}")
            + f"; it computes {min(narrow) / view.out_width:.0%} of the row"
        )
    _, padded_left, _, padded_right = view.padding
    if row.left or row.right:
        padded = padded_left or padded_right
        why = [f"padding of {padded_left} and {padded_right}"] if padded else []
        why += ["the narrower tile" + "s" * (len(narrow) > 1)] if narrow else []
        lines.append(
            f"border tiles with code of their own: {row.left} at the left, {row.right} at the "
            f"right ({', '.join(why)})"
        )
    else:
        lines.append("no border tiles: no tile reads padding or is narrower")
    return lines


def _loop_order(chosen: Tiling, ranked: list[Tiling]) -> list[str]:
    b, workload = chosen.blocking, chosen.case.workload
    channels = workload.group_in
    lines = [f"Loop order: {b.loop_order}"]
    if workload.groups > 1:
        lines.append(
            f"{_count(workload.groups, 'group')} of {_count(channels, 'input channel')}; the "
            f"outputs of a tile belong to {_count(chosen.groups_in_tile, 'group')}"
        )
    if b.loop_order == IC_OUTSIDE:
        lines.append(
            f"the paper's order: {b.ic_block} of {channels} input channels for all rows of a task, "
            f"then the next; sums are loaded and stored {channels // b.ic_block} times"
        )
    else:
        lines.append(
            f"all {channels} input channels while the sums stay in registers; they are stored once"
        )
    taps, depth = workload.kernel[1] if b.kw_unroll else 1, chosen.case.depth
    if depth > 1:
        lines.append(f"{chosen.rate.instruction} multiplies words of {depth} input channels")
    if chosen.matrix:
        return lines
    if chosen.case.rows > 1:
        lines.append(
            f"{chosen.rate.instruction} multiplies words of {chosen.case.rows} rows of the kernel"
        )
    lines.append(
        f"straight-line code: {_count(chosen.straight_channels * depth, 'input channel')}"
        + (f" at {_count(taps, 'kernel column')}" if b.kw_unroll else "")
        + f", {chosen.straight_fmas} FMAs"
    )
    other = next((c for c in ranked if c.blocking.loop_order != b.loop_order), None)
    if not chosen.case.precision.stores_sums:
        lines.append(
            f"no other order is possible: sums of {chosen.case.precision} are not stored before "
            "they are complete"
        )
    elif other is None:
        lines.append(f"no other order is possible: {channels} input channels are one block")
    else:
        lines.append(
            f"the best in the other order, {other.blocking.brief}, {_compared(other, chosen)}"
        )
    return lines


def _caches(chosen: Tiling) -> list[str]:
    d, b, view = chosen.case.device, chosen.blocking, chosen.view
    rows, columns = view.kernel
    tile, depth = b.oc_vectors * b.lanes, chosen.case.depth
    channels = chosen.channels_at_once * depth
    levels = {"L1": d.l1d_bytes, "L2": d.l2_bytes, "L3": d.l3_bytes}
    types = chosen.case.precision

    def footprint(what: str, number: NumberType, *factors: int) -> str:
        size = number.bytes * prod(factors)
        level = next((name for name, room in levels.items() if size <= room), None)
        fits = f"fits {level}" if level else "larger than the caches"
        return f"{what}: {' x '.join(map(str, factors))} {number}, {_size(size)}, {fits}"

    sizes = ", ".join(f"{name} {_size(room) if room else 'none'}" for name, room in levels.items())
    return [
        f"Caches of one core when all work: {sizes}",
        footprint("weights of a visit to a tile", types.weight, channels, rows, columns, tile),
        footprint(
            "input rows under the kernel",
            types.pixel,
            channels * chosen.groups_in_tile,
            min(rows, view.in_height),
            view.in_width,
        ),
        footprint("outputs of a task", types.output, b.oh_block, view.out_width, tile),
        footprint("weights", types.weight, view.group_in * depth, rows, columns, view.out_channels),
        footprint("input", types.pixel, view.in_channels * depth, view.in_height, view.in_width),
    ]


def _narrower(tiles: int, channels: int) -> list[str]:
    if tiles < 2:
        return [f"the last channel tile is {channels} channels wide"] * tiles
    return [f"the last {tiles} channel tiles are {channels} channels wide"]


def _tasks(chosen: Tiling) -> list[str]:
    case, b, blocks, tasks = chosen.case, chosen.blocking, chosen.row_blocks, chosen.tasks
    tiles, narrow, vectors = chosen.channel_tiles
    of_rows = f"{_count(blocks, 'block')} of {_count(b.oh_block, 'row')}"
    if chosen.matrix:
        narrow, of_rows = 0, f"{_count(blocks, 'tile')} of {b.ow_tile} pixels"
    lines = [
        f"Tasks: batch {chosen.view.batch} x {_count(tiles, 'channel tile')} x {of_rows} = {tasks}",
        *_narrower(narrow, vectors * b.lanes),
        "in this order: "
        + (
            "all channels of the same rows, which stay in the cache, then the next rows"
            if b.rows_outside
            else "all rows of the same channels, whose weights stay in the cache, then the next"
        ),
    ]
    if case.threads == 1:
        lines.append("one thread computes all of them: the code is serial")
    else:
        lines.append(
            f"{case.threads} threads compute at most {ceil(tasks / case.threads)} each: "
            f"{estimate(chosen).balance:.1%} balanced"
        )
    if case.threads > case.device.cores:
        lines.append(
            f"{case.device.name} has {_count(case.device.cores, 'core')}: more threads share them, "
            "which the model does not count"
        )
    return lines


def _prediction(chosen: Tiling, ghz: float | None) -> list[str]:
    cost = estimate(chosen)
    time = f"; {cost.cycles / ghz / 1e6:.4g} ms at {ghz:.3g} GHz" if ghz else ""
    lines = [
        f"Predicted: {cost.of_peak:.1%} of the peak ({cost.cycles:.4g} cycles, {cost.ideal:.4g} "
        f"for the FMAs alone{time})"
    ]
    for what, cycles in sorted(_losses(chosen).items(), key=lambda item: -item[1]):
        if cycles > 0.001 * cost.cycles:
            lines.append(f"{cycles / cost.cycles:.1%} of the cycles go to {what}")
    return lines


def _alternatives(chosen: Tiling, ranked: list[Tiling]) -> list[str]:
    def tile(tiling: Tiling) -> tuple[int, int, int]:
        b = tiling.blocking
        return b.lanes, b.oc_vectors, b.ow_tile

    best: dict[tuple[int, int, int], Tiling] = {}
    for candidate in ranked:
        best.setdefault(tile(candidate), candidate)
    best.pop(tile(chosen), None)
    if not best:
        return ["Next best register tiles: there is no other"]
    return ["Next best register tiles, each with the best of the other block sizes"] + [
        f"{other.blocking.brief}: {_compared(other, chosen)}"
        for other in list(best.values())[:_ALTERNATIVES]
    ]


def _compared(other: Tiling, chosen: Tiling) -> str:
    """Say how much slower a blocking is than the chosen one, and why."""
    base = estimate(chosen).cycles
    slower = estimate(other).cycles - base
    if slower < 0.0005 * base:
        return "is as fast in the model"
    here, there = _losses(chosen), _losses(other)
    what, most = max(((what, there[what] - here[what]) for what in there), key=lambda item: item[1])
    # Where no single thing makes up for much of the difference, none is to blame.
    if most < 0.25 * slower:
        what = "more work around the multiply-adds"
    least = min(map(len, other.row.tiles))
    narrow = ""
    if least < other.blocking.ow_tile and not other.matrix:
        narrow = f"; its narrowest tile has {_count(least, 'column')}"
    return f"takes {slower / base:.1%} more cycles, mostly for {what}{narrow}"


def _memory(chosen: Tiling) -> list[str]:
    w, layout = chosen.case.workload, chosen.case.input_layout
    weights, outputs = chosen.weight_layout, chosen.output_layout
    types = chosen.case.precision
    tensors = [
        ("input", types.pixel, layout, layout.shape(w.input_shape)),
        ("weight", types.weight, weights, weights.shape(w.weight_shape)),
        ("output", types.output, outputs, outputs.shape(w.output_shape)),
    ]
    plain = w.input_bytes + w.weight_bytes + w.output_bytes
    packed = sum(number.bytes * prod(shape) for _, number, _, shape in tensors)
    filling = packed - plain
    return [
        "Memory",
        *(
            f"{what}: {layout}, {' x '.join(map(str, shape))}, {number.bytes * prod(shape):,} bytes"
            for what, number, layout, shape in tensors
        ),
        "together as many bytes as the plain layouts"
        if not filling
        else f"together {filling:,} bytes more than the plain layouts: channels that fill blocks",
        f"im2col would take another {w.im2col_bytes:,} bytes ({w.im2col_bytes / plain:.0%} of "
        "these); direct convolution takes none"
        + (" (for such a 1x1 kernel the input is the matrix)" if w.is_matrix_product else ""),
    ]


def _holds(condition: bool) -> str:
    return "holds" if condition else "DOES NOT HOLD"


def _count(number: int, what: str, several: str = "") -> str:
    return f"{number} {what if number == 1 else several or what + 's'}"


def _size(size: int) -> str:
    return f"{size / 2**20:.4g} MiB" if size >= 2**20 else f"{size / 2**10:.4g} KiB"
