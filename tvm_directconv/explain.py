"""Why the model chooses a blocking: its inequalities and its count, with the numbers put in.

Everything is computed from the device file and the workload; nothing is compiled or measured.
"""

from dataclasses import dataclass, fields, replace
from math import ceil, inf, prod
from typing import Any

from .blocking import (
    IC_OUTSIDE,
    Blocking,
    Estimate,
    border_tiles,
    candidates,
    check_threads,
    choose,
    default_input_layout,
    estimate,
    groups_in_tile,
    reasons_against,
    registers,
    straight_channels,
    straight_fmas,
    tile_columns,
    usable_registers,
)
from .hardware.device import Device, Vector
from .hardware.lookup import device as find_device
from .layout import ActivationLayout
from .logs.choice import best
from .workload import ConvWorkload

_ALTERNATIVES = 3
# What could cost nothing on a better machine. How many cycles the model counts less for that
# machine is what the thing costs here.
_FREE: dict[str, dict[str, Any]] = {
    "loads and stores": {
        field.name: inf for field in fields(Device) if field.name.endswith("loads_per_cycle")
    },
    "waiting for earlier multiply-adds": {"fma_latency": 0.0},
    "bytes from beyond the first-level cache": {
        "l2_bytes_per_cycle": inf,
        "l3_bytes_per_cycle": inf,
    },
}


@dataclass(frozen=True)
class _Case:
    workload: ConvWorkload
    device: Device
    threads: int
    layout: ActivationLayout

    def cost(self, blocking: Blocking) -> Estimate:
        return estimate(blocking, self.workload, self.device, self.threads)

    def losses(self, blocking: Blocking) -> dict[str, float]:
        """Return the cycles that each thing costs; what overlaps is counted twice or not at all."""
        cost = self.cost(blocking)
        found = {}
        for what, free in _FREE.items():
            better = replace(self, device=replace(self.device, **free))
            found[what] = cost.cycles - better.cost(blocking).cycles
        used = self.workload.out_channels / _computed_channels(self, blocking)
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
    if isinstance(workload, str):
        workload = ConvWorkload.parse(workload)
    check_threads(threads)
    found = find_device(device)
    layout = (
        ActivationLayout(input_layout) if input_layout else default_input_layout(workload, found)
    )
    case = _Case(workload, found, threads, layout)
    chosen = choose(workload, found, threads, layout)
    ranked = sorted(candidates(workload, found, layout, threads), key=lambda b: case.cost(b).cycles)
    paragraphs = [
        _heading(case, chosen),
        _tile(case, chosen),
        _row(case, chosen),
        _loop_order(case, chosen, ranked),
        _caches(case, chosen),
        _tasks(case, chosen),
        _prediction(case, chosen, ghz or found.ghz),
        _alternatives(case, chosen, ranked),
        _memory(case, chosen),
    ]
    if tuned := best(workload, found, threads, layout):
        paragraphs.append(_tuned(chosen, *tuned))
    return "\n\n".join("\n  ".join(lines) for lines in paragraphs)


def _heading(case: _Case, chosen: Blocking) -> list[str]:
    w, d = case.workload, case.device
    name = f"{w.name}: {w}" if w.name else str(w)
    return [
        f"{name} on {d.name}, {_count(case.threads, 'thread')}",
        f"{w.flops / 1e9:.4g} GFLOP; {d.description} (at most {d.peak_flops_per_cycle:g} FLOP per "
        "cycle and core)",
        f"blocking: {chosen}",
    ]


def _tuned(chosen: Blocking, blocking: Blocking, source: str) -> list[str]:
    if blocking == chosen:
        return [f"Tuning confirms this choice ({source})."]
    return [f"Tuning found another blocking, which build takes instead ({source}):", str(blocking)]


def _vector(case: _Case, chosen: Blocking) -> Vector:
    return next(v for v in case.device.vectors if v.lanes == chosen.lanes)


def _computed_channels(case: _Case, blocking: Blocking) -> int:
    """Return the output channels that are computed, those that only fill a vector included."""
    return blocking.output_layout().channels(case.workload.out_channels)


def _in_flight_needed(case: _Case, chosen: Blocking) -> float:
    vector = _vector(case, chosen)
    return vector.lanes * vector.fma_per_cycle * case.device.fma_latency


def _tile(case: _Case, chosen: Blocking) -> list[str]:
    d, b, vector = case.device, chosen, _vector(case, chosen)
    channels = b.oc_vectors * b.lanes
    in_flight = channels * b.ow_tile
    needed = _in_flight_needed(case, b)
    room = d.vector_registers * b.lanes
    sums, used = b.oc_vectors * b.ow_tile, registers(b.oc_vectors, b.ow_tile, case.workload)
    full = (
        "the pipelines stay full"
        if in_flight >= needed
        else (f"the pipelines are filled to {in_flight / needed:.0%} only")
    )
    lines = [
        f"Register tile: C_ob x W_ob = {channels} x {b.ow_tile} outputs, E = {in_flight} sums in "
        "flight",
        f"N_vec = {b.lanes} lanes, N_fma = {vector.fma_per_cycle:g} per cycle"
        f"{'' if d.fma else ' (pairs of multiply and add)'}, L_fma = {d.fma_latency:g} cycles, "
        f"N_reg = {d.vector_registers} registers",
        f"1. E >= N_vec N_fma L_fma: {in_flight} >= {b.lanes} x {vector.fma_per_cycle:g} x "
        f"{d.fma_latency:g} = {needed:g} {_holds(in_flight >= needed)}: {full}",
        f"2. E <= N_reg N_vec: {in_flight} <= {d.vector_registers} x {b.lanes} = {room} "
        f"{_holds(in_flight <= room)}",
        f"3. C_ob is a multiple of N_vec: {channels} = {b.oc_vectors} x {b.lanes} holds",
        f"registers: {used} needed ({sums} for sums, {used - sums} for weights and pixels), "
        f"{usable_registers(d)} of {d.vector_registers} for tiles",
    ]
    wider = replace(b, ow_tile=b.ow_tile + 1)
    if against := reasons_against(wider, case.workload, d, case.layout):
        lines.append(f"one column more is impossible: {'; '.join(against)}")
    computed = _computed_channels(case, b)
    if idle := computed - case.workload.out_channels:
        lines.append(
            f"of {computed} lanes {idle} compute zeros: there are only "
            f"{_count(case.workload.out_channels, 'output channel')}"
        )
    if b.lanes < d.lanes:
        lines.append(
            f"vectors of {b.lanes} rather than {d.lanes} lanes: they compute "
            f"{case.workload.out_channels} channels in fewer cycles"
        )
    return lines


def _row(case: _Case, chosen: Blocking) -> list[str]:
    b, view = chosen, chosen.view(case.workload)
    widths = [len(columns) for columns in tile_columns(view, b.ow_tile)]
    narrow = [width for width in widths if width < b.ow_tile]
    lines = [
        f"Row of {view.out_width} columns: {_count(len(widths) - len(narrow), 'tile')} of "
        + str(b.ow_tile)
        + (f" and one of {' and one of '.join(map(str, narrow))}" if narrow else ", none left over")
    ]
    if view != case.workload:
        lines.append(
            f"a 1x1 kernel reads one pixel for each output, so {view.out_height} rows of "
            f"{view.out_width} pixels stand for {case.workload.out_height} of "
            f"{case.workload.out_width}"
        )
    if narrow:
        in_flight = b.oc_vectors * b.lanes * min(narrow)
        needed = _in_flight_needed(case, b)
        lines.append(
            f"the narrowest tile has {in_flight} sums in flight, "
            + ("enough" if in_flight >= needed else f"{in_flight / needed:.0%} of the {needed:g}")
            + f"; it computes {min(narrow) / view.out_width:.0%} of the row"
        )
    left, right = border_tiles(view, b.ow_tile)
    _, padded_left, _, padded_right = view.padding
    if left or right:
        padded = padded_left or padded_right
        why = [f"padding of {padded_left} and {padded_right}"] if padded else []
        why += ["the narrower tile" + "s" * (len(narrow) > 1)] if narrow else []
        lines.append(
            f"border tiles with code of their own: {left} at the left, {right} at the right "
            f"({', '.join(why)})"
        )
    else:
        lines.append("no border tiles: no tile reads padding or is narrower")
    return lines


def _loop_order(case: _Case, chosen: Blocking, ranked: list[Blocking]) -> list[str]:
    b, channels = chosen, case.workload.group_in
    lines = [f"Loop order: {b.loop_order}"]
    if case.workload.groups > 1:
        lines.append(
            f"{_count(case.workload.groups, 'group')} of {_count(channels, 'input channel')}; the "
            f"outputs of a tile belong to {_count(groups_in_tile(b, case.workload), 'group')}"
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
    straight = straight_channels(b, case.layout.block)
    taps = case.workload.kernel[1] if b.kw_unroll else 1
    lines.append(
        f"straight-line code: {_count(straight, 'input channel')}"
        + (f" at {_count(taps, 'kernel column')}" if b.kw_unroll else "")
        + f", {straight_fmas(b, case.workload, case.layout.block)} FMAs"
    )
    other = next((c for c in ranked if c.loop_order != b.loop_order), None)
    if other is None:
        lines.append(f"no other order is possible: {channels} input channels are one block")
    else:
        lines.append(f"the best in the other order, {other.brief}, " + _compared(case, other, b))
    return lines


def _caches(case: _Case, chosen: Blocking) -> list[str]:
    d, b, view = case.device, chosen, chosen.view(case.workload)
    rows, columns = view.kernel
    tile, channels = b.oc_vectors * b.lanes, b.channels_at_once(case.workload)
    levels = {"L1": d.l1d_bytes, "L2": d.l2_bytes, "L3": d.l3_bytes}

    def footprint(what: str, *factors: int) -> str:
        size = 4 * prod(factors)
        level = next((name for name, room in levels.items() if size <= room), None)
        fits = f"fits {level}" if level else "larger than the caches"
        return f"{what}: {' x '.join(map(str, factors))} floats, {_size(size)}, {fits}"

    sizes = ", ".join(f"{name} {_size(room) if room else 'none'}" for name, room in levels.items())
    return [
        f"Caches of one core when all work: {sizes}",
        footprint("weights of a visit to a tile", channels, rows, columns, tile),
        footprint(
            "input rows under the kernel",
            channels * groups_in_tile(b, view),
            min(rows, view.in_height),
            view.in_width,
        ),
        footprint("outputs of a task", b.oh_block, view.out_width, tile),
        footprint("weights", view.group_in, rows, columns, view.out_channels),
        footprint("input", view.in_channels, view.in_height, view.in_width),
    ]


def _narrower(tiles: int, channels: int) -> list[str]:
    if tiles < 2:
        return [f"the last channel tile is {channels} channels wide"] * tiles
    return [f"the last {tiles} channel tiles are {channels} channels wide"]


def _tasks(case: _Case, chosen: Blocking) -> list[str]:
    b, view = chosen, chosen.view(case.workload)
    tiles, narrow, vectors = b.oc_tiles(view)
    blocks = view.out_height // b.oh_block
    tasks = view.batch * tiles * blocks
    lines = [
        f"Tasks: batch {view.batch} x {_count(tiles, 'channel tile')} x "
        f"{_count(blocks, 'block')} of {_count(b.oh_block, 'row')} = {tasks}",
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
            f"{case.cost(b).balance:.1%} balanced"
        )
    if case.threads > case.device.cores:
        lines.append(
            f"{case.device.name} has {_count(case.device.cores, 'core')}: more threads share them, "
            "which the model does not count"
        )
    return lines


def _prediction(case: _Case, chosen: Blocking, ghz: float | None) -> list[str]:
    cost = case.cost(chosen)
    time = f"; {cost.cycles / ghz / 1e6:.4g} ms at {ghz:.3g} GHz" if ghz else ""
    lines = [
        f"Predicted: {cost.of_peak:.1%} of the peak ({cost.cycles:.4g} cycles, {cost.ideal:.4g} "
        f"for the FMAs alone{time})"
    ]
    for what, cycles in sorted(case.losses(chosen).items(), key=lambda item: -item[1]):
        if cycles > 0.001 * cost.cycles:
            lines.append(f"{cycles / cost.cycles:.1%} of the cycles go to {what}")
    return lines


def _alternatives(case: _Case, chosen: Blocking, ranked: list[Blocking]) -> list[str]:
    best: dict[tuple[int, int, int], Blocking] = {}
    for candidate in ranked:
        best.setdefault((candidate.lanes, candidate.oc_vectors, candidate.ow_tile), candidate)
    best.pop((chosen.lanes, chosen.oc_vectors, chosen.ow_tile), None)
    if not best:
        return ["Next best register tiles: there is no other"]
    return ["Next best register tiles, each with the best of the other block sizes"] + [
        f"{other.brief}: {_compared(case, other, chosen)}"
        for other in list(best.values())[:_ALTERNATIVES]
    ]


def _compared(case: _Case, other: Blocking, chosen: Blocking) -> str:
    """Say how much slower a blocking is than the chosen one, and why."""
    base = case.cost(chosen).cycles
    slower = case.cost(other).cycles - base
    if slower < 0.0005 * base:
        return "is as fast in the model"
    here, there = case.losses(chosen), case.losses(other)
    what, most = max(((what, there[what] - here[what]) for what in there), key=lambda item: item[1])
    # Where no single thing makes up for much of the difference, none is to blame.
    if most < 0.25 * slower:
        what = "more work around the multiply-adds"
    least = min(map(len, tile_columns(other.view(case.workload), other.ow_tile)))
    narrow = f"; its narrowest tile has {_count(least, 'column')}" if least < other.ow_tile else ""
    return f"takes {slower / base:.1%} more cycles, mostly for {what}{narrow}"


def _memory(case: _Case, chosen: Blocking) -> list[str]:
    w = case.workload
    tensors = [
        ("input", case.layout, case.layout.shape(w.input_shape)),
        ("weight", chosen.weight_layout(), chosen.weight_layout().shape(w.weight_shape)),
        ("output", chosen.output_layout(), chosen.output_layout().shape(w.output_shape)),
    ]
    plain = w.input_bytes + w.weight_bytes + w.output_bytes
    packed = sum(4 * prod(shape) for _, _, shape in tensors)
    filling = packed - plain
    return [
        "Memory",
        *(
            f"{what}: {layout}, {' x '.join(map(str, shape))}, {4 * prod(shape):,} bytes"
            for what, layout, shape in tensors
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


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _size(size: int) -> str:
    return f"{size / 2**20:.4g} MiB" if size >= 2**20 else f"{size / 2**10:.4g} KiB"
