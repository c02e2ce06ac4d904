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

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from math import ceil, gcd
from typing import Any

from .device import Device
from .errors import BlockingError
from .layout import ActivationLayout, WeightLayout
from .workload import ConvWorkload

IC_INSIDE = "ic_inside"
IC_OUTSIDE = "ic_outside"
_ORDERS = (IC_INSIDE, IC_OUTSIDE)

# Straight-line code longer than this no longer pays: 256 FMAs are some 2 KiB of instructions,
# and beyond about 400 LLVM begins to move FMAs between steps and to spill.
_STRAIGHT_FMAS = 256
# Border tiles get code of their own; with more than this many, they share a loop with branches.
_MOST_BORDER_TILES = 4


@dataclass(frozen=True)
class Blocking:
    """The block sizes of one convolution.

    Parameters
    ----------
    lanes : int
        fp32 lanes of the vectors computed with, the paper's N_vec; also the channel block of
        the output.
    oc_vectors : int
        Vectors of output channels in the register tile: C_o,b = oc_vectors x lanes.
    ow_tile : int
        Output columns in the register tile, W_o,b.
    ic_block : int
        Input channels that are summed up before the next kernel position, C_i,b.
    ic_unroll : int
        Input channels in straight-line code.
    loop_order : str
        ``ic_outside``: blocks of input channels outside the image's rows and columns, as in the
        paper, sums stored between blocks. ``ic_inside``: all input channels while the sums stay
        in registers.
    kw_unroll : bool
        Whether kernel columns are straight-line code, too.
    oh_block : int
        Output rows in one task, that is between changes of thread; divides the rows.
    flat_rows : int
        For 1x1 kernels without stride and padding, in how many rows the image's pixels are
        counted; 0 leaves the image as it is.
    """

    lanes: int
    oc_vectors: int
    ow_tile: int
    ic_block: int
    ic_unroll: int
    loop_order: str = IC_INSIDE
    kw_unroll: bool = False
    oh_block: int = 1
    flat_rows: int = 0

    @classmethod
    def from_dict(cls, knobs: dict[str, Any]) -> "Blocking":
        """Make a blocking of knobs by name.

        Raises
        ------
        BlockingError
            If a knob is unknown, missing, or of the wrong type.
        """
        known = {field.name: field for field in fields(cls)}
        for name, value in knobs.items():
            if name not in known:
                raise BlockingError(
                    f"blocking has an unknown knob {name!r}: expected {', '.join(known)}"
                )
            kind = known[name].type
            if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
                raise BlockingError(f"blocking: {name} is {value!r}: expected a whole number")
            if kind is bool and not isinstance(value, bool):
                raise BlockingError(f"blocking: {name} is {value!r}: expected true or false")
            if kind is str and value not in _ORDERS:
                raise BlockingError(
                    f"blocking: {name} is {value!r}: expected one of {', '.join(_ORDERS)}"
                )
        missing = [n for n in ("lanes", "oc_vectors", "ow_tile", "ic_block") if n not in knobs]
        if missing:
            raise BlockingError(f"blocking lacks {', '.join(missing)}")
        return cls(**{"ic_unroll": 1, **knobs})

    def to_dict(self) -> dict[str, Any]:
        """Return the knobs by name."""
        return asdict(self)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.to_dict().items())

    def view(self, workload: ConvWorkload) -> ConvWorkload:
        """Return the workload as this blocking sees it: pixels of 1x1 kernels in other rows."""
        if not self.flat_rows:
            return workload
        pixels = workload.in_height * workload.in_width
        return replace(
            workload, in_height=self.flat_rows, in_width=pixels // self.flat_rows
        )

    def weight_layout(self) -> WeightLayout:
        """Return the layout of weights for this blocking."""
        return WeightLayout(self.ic_block, self.lanes)

    def output_layout(self) -> ActivationLayout:
        """Return the layout of the output of this blocking."""
        return ActivationLayout.blocked(self.lanes)


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
    """Return whether rows mean nothing: every output pixel reads just its own input pixel."""
    return (
        workload.kernel == (1, 1) and workload.stride == (1, 1) and not any(workload.padding)
    )


def border_tiles(workload: ConvWorkload, ow_tile: int) -> tuple[int, int]:
    """Return how many tiles of a row need code of their own, at its left and at its right end.

    These are the tiles that read padding, and the last one if it is narrower. A tile between
    them reads no padding.
    """
    left_padding = workload.padding[1]
    stride, taps = workload.stride[1], (workload.kernel[1] - 1) * workload.dilation[1]
    columns = workload.out_width
    tiles = ceil(columns / ow_tile)
    left = min(tiles, ceil(ceil(left_padding / stride) / ow_tile))
    # The first column whose last tap reads beyond the input.
    beyond = max(0, (workload.in_width - 1 - taps + left_padding) // stride + 1)
    right = max(0, tiles - beyond // ow_tile) if beyond < columns else 0
    if columns % ow_tile:
        right = max(right, 1)
    if left + right > 2 * _MOST_BORDER_TILES:
        left, right = min(left, _MOST_BORDER_TILES), min(right, _MOST_BORDER_TILES)
    return left, right


def neighbours(ic_block: int, input_block: int | None) -> int:
    """Return how many channels of a block lie side by side in the input.

    Straight-line code goes over these: their addresses differ by constants.
    """
    return input_block if input_block and ic_block % input_block == 0 else ic_block


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
    if vectors % b.oc_vectors:
        reasons.append(
            f"oc_vectors is {b.oc_vectors}: does not divide the {vectors} vectors of "
            f"{workload.out_channels} output channels"
        )
    if workload.in_channels % b.ic_block:
        reasons.append(
            f"ic_block is {b.ic_block}: does not divide {workload.in_channels} input channels"
        )
    block = input_layout.block
    if block and b.ic_block % block and block % b.ic_block and b.ic_block != workload.in_channels:
        reasons.append(
            f"ic_block is {b.ic_block}: neither a part nor a multiple of the input's blocks of "
            f"{block} channels"
        )
    together = neighbours(b.ic_block, block)
    if together % b.ic_unroll:
        reasons.append(f"ic_unroll is {b.ic_unroll}: does not divide {together} channels")
    if b.flat_rows:
        pixels = workload.in_height * workload.in_width
        if not can_flatten(workload):
            reasons.append("flat_rows is set: only 1x1 kernels without stride and padding can")
        elif b.flat_rows < 0 or pixels % b.flat_rows:
            reasons.append(f"flat_rows is {b.flat_rows}: does not divide {pixels} pixels")
    if not reasons:
        view = b.view(workload)
        if b.ow_tile > view.out_width:
            reasons.append(f"ow_tile is {b.ow_tile}: a row has only {view.out_width} columns")
        if view.out_height % b.oh_block:
            reasons.append(f"oh_block is {b.oh_block}: does not divide {view.out_height} rows")
    needed = registers(b.oc_vectors, b.ow_tile)
    if needed > device.vector_registers:
        reasons.append(
            f"{b.ow_tile} x {b.oc_vectors} sums with their operands need {needed} registers: "
            f"{device.name} has {device.vector_registers}"
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


def registers(oc_vectors: int, ow_tile: int) -> int:
    """Return the vector registers a tile needs.

    Its sums; of weights and pixels the fewer, which stay through a step; and one through which
    the others pass.
    """
    return oc_vectors * ow_tile + min(oc_vectors, ow_tile) + 1


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

    Returns
    -------
    Estimate
    """
    b, view = blocking, blocking.view(workload)
    rate = next(v.fma_per_cycle for v in device.vectors if v.lanes == b.lanes)
    taps = view.kernel[0] * view.kernel[1]
    outside = b.loop_order == IC_OUTSIDE
    sums_over = b.ic_block if outside else view.in_channels
    steps = sums_over * taps
    visits = view.in_channels // sums_over

    # Does what a tile reads again and again stay in the first-level cache? Weights of the tile,
    # and the rows of the input that lie under the kernel.
    weight_bytes = steps * b.oc_vectors * b.lanes * 4
    row_bytes = sums_over * view.kernel[0] * view.in_width * 4
    from_l2 = 0.0
    if weight_bytes + row_bytes > device.l1d_bytes:
        # Whatever is larger goes through the cache and pushes itself out.
        from_l2 = b.oc_vectors * b.lanes * 4

    def tile_cycles(columns: int) -> float:
        fmas = columns * b.oc_vectors
        fma = fmas / rate
        load = (columns + b.oc_vectors) / device.loads_per_cycle
        latency = device.fma_latency
        second_level = (from_l2 + columns * 4 if from_l2 else 0) / device.l2_bytes_per_cycle
        # The longest of the four decides; the others never overlap with it completely.
        parts = sorted((fma, load, latency, second_level))
        step = parts[-1] + 0.03 * (parts[-2] + parts[-3])
        # Once per visit of the tile: sums are set or loaded, stored, and addresses computed.
        around = fmas / device.loads_per_cycle * (2 if outside else 1) + 12
        return steps * step + around

    full, rest = divmod(view.out_width, b.ow_tile)
    row = full * tile_cycles(b.ow_tile) + (tile_cycles(rest) if rest else 0)
    oc_tiles = ceil(view.out_channels / b.lanes) // b.oc_vectors
    tasks = view.batch * oc_tiles * (view.out_height // b.oh_block)
    share = ceil(tasks / threads) * threads
    balance = tasks / share
    cycles = row * visits * view.out_height * oc_tiles * view.batch / threads / balance
    ideal = workload.flops / device.peak_flops_per_cycle / threads
    return Estimate(cycles, ideal, balance)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _flat_rows(workload: ConvWorkload, ow_tile: int, threads: int) -> int:
    """Return in how many rows to count pixels: enough for the threads, else as few as possible."""
    if not can_flatten(workload):
        return 0
    pixels = workload.in_height * workload.in_width
    rows = [
        r for r in _divisors(pixels) if pixels // r >= ow_tile and (pixels // r) % ow_tile == 0
    ] or [r for r in _divisors(pixels) if pixels // r >= 8 * ow_tile] or [1]
    enough = [r for r in rows if r >= 4 * threads] if threads > 1 else []
    return enough[0] if enough else rows[-1] if threads > 1 else rows[0]


def candidates(
    workload: ConvWorkload,
    device: Device,
    input_layout: ActivationLayout,
    threads: int = 1,
) -> Iterator[Blocking]:
    """Generate the blockings that the model compares, all of them usable."""
    lanes = channel_block(workload.out_channels, device)
    vectors = ceil(workload.out_channels / lanes)
    channels = workload.in_channels
    together = gcd(channels, input_layout.block) if input_layout.block else channels
    if together < 4 and channels <= 32:
        together = channels
    # Blocks for the paper's order; one block of all channels is the other order.
    blocks = [n for n in _divisors(channels) if n % together == 0 and n <= 256]
    for oc_vectors in _divisors(vectors):
        for ow_tile in range(1, device.vector_registers):
            if registers(oc_vectors, ow_tile) > device.vector_registers:
                break
            flat_rows = _flat_rows(workload, ow_tile, threads)
            limit = max(1, _STRAIGHT_FMAS // (oc_vectors * ow_tile))
            inner = neighbours(together, input_layout.block)
            ic_unroll = max(d for d in _divisors(inner) if d <= limit)
            base = Blocking(
                lanes, oc_vectors, ow_tile, together, ic_unroll, flat_rows=flat_rows
            )
            view = base.view(workload)
            if ow_tile > view.out_width:
                break
            straight = ic_unroll * oc_vectors * ow_tile * workload.kernel[1]
            base = replace(
                base, kw_unroll=ic_unroll == channels and straight <= _STRAIGHT_FMAS
            )
            yield base
            for ic_block in blocks:
                if ic_block < channels:
                    oh_block = _oh_block(view, vectors // oc_vectors, threads)
                    yield replace(
                        base, ic_block=ic_block, loop_order=IC_OUTSIDE, oh_block=oh_block
                    )


def _oh_block(view: ConvWorkload, oc_tiles: int, threads: int) -> int:
    """Return as many rows for a task as leave the threads evenly busy."""
    def balance(rows: int) -> float:
        tasks = view.batch * oc_tiles * (view.out_height // rows)
        return tasks / (ceil(tasks / threads) * threads)

    return max(_divisors(view.out_height), key=lambda rows: (round(balance(rows), 2), rows))


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
    return min(
        candidates(workload, device, layout, threads),
        key=lambda b: estimate(b, workload, device, threads).cycles,
    )
