"""A case: one convolution as it is compiled, on one device, by so many threads, in one layout.

Whatever is chosen, scheduled, tuned, logged or explained is so for a case. Here its parts are
checked and given their defaults, once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import ceil

from .compute import symbol_of
from .denormals import FLUSH, KEEP, checked_mode
from .epilogue import Epilogue
from .errors import ArgumentError, BlockingError, DeviceError, WorkloadError
from .hardware.device import ConversionRate, Device, Rate, fastest
from .hardware.lookup import device as find_device
from .instructions import PAIR, Instruction
from .kinds import THREADS, shown
from .layout import ActivationLayout
from .precision import FLOAT32, PRECISIONS, Precision
from .workload import ConvWorkload

# Of kernels with more, the products of words of rows are too much straight-line code.
_MOST_TAPS = 100


@dataclass(frozen=True)
class Case:
    """What block sizes are chosen for; see :meth:`of`, which checks its parts.

    Attributes
    ----------
    workload : ConvWorkload
        What is convolved.
    device : Device
        On what.
    threads : int
        By how many.
    input_layout : ActivationLayout
        Layout of the input.
    epilogue : Epilogue
        What becomes of outputs before they are stored. Block sizes do not depend on it.
    denormals : str
        Whether they count as zeros, one of :data:`.denormals.MODES`.
    """

    workload: ConvWorkload
    device: Device
    threads: int
    input_layout: ActivationLayout
    epilogue: Epilogue
    denormals: str = FLUSH

    @classmethod
    def of(
        cls,
        workload: ConvWorkload | str,
        device: Device | str = "native",
        threads: int = 1,
        input_layout: ActivationLayout | str | None = None,
        epilogue: Epilogue | None = None,
        denormals: str | None = None,
    ) -> "Case":
        """Return a case of what users write.

        Parameters
        ----------
        workload : ConvWorkload or str
            What is convolved, or its descriptor.
        device : Device or str
            On what; see :func:`tvm_directconv.device`.
        threads : int
            By how many.
        input_layout : ActivationLayout or str, optional
            Layout of the input; :func:`default_input_layout` if not given.
        epilogue : Epilogue, optional
            What becomes of outputs before they are stored; nothing if not given.
        denormals : str, optional
            Whether they count as zeros; they do if not given, where the device can.

        Raises
        ------
        WorkloadError
            If the workload is none, or its descriptor is malformed.
        DeviceError
            If there is no such device.
        BlockingError
            If threads or layout cannot be used.
        ArgumentError
            If the epilogue is none, or `denormals` none of the modes that the device has.
        """
        if isinstance(workload, str):
            workload = ConvWorkload.parse(workload)
        if not isinstance(workload, ConvWorkload):
            raise WorkloadError(
                f"workload is {shown(workload)}: expected a ConvWorkload or its descriptor"
            )
        if epilogue is not None and not isinstance(epilogue, Epilogue):
            raise ArgumentError(
                f"epilogue is {shown(epilogue)}: expected an Epilogue, as "
                "Epilogue.parse('bias,relu')"
            )
        check_threads(threads)
        found = find_device(device)
        if not found.rates(workload.precision):
            having = [name for name, other in PRECISIONS.items() if found.rates(other)]
            raise DeviceError(
                f"device {found.name!r} has no instruction for {workload.precision}: expected a "
                f"convolution in {' or '.join(having)}, or a device that has one"
            )
        if not input_layout:
            input_layout = default_input_layout(workload, found)
        elif not isinstance(input_layout, ActivationLayout):
            input_layout = ActivationLayout(input_layout)
        epilogue = epilogue or Epilogue()
        epilogue.check(workload.precision)
        mode = checked_mode(denormals, found)
        case = cls(workload, found, threads, input_layout, epilogue, mode)
        if not case.rates:
            depth = min(rate.instruction.depth for rate in found.rates(workload.precision))
            raise BlockingError(
                f"{case} reads {input_layout} in words of {depth} channels: expected a multiple of "
                f"{depth} input channels in each group, in NHWC or blocks of channels"
            )
        if case.rates[0].instruction.shifts(workload.precision):
            return replace(case, epilogue=replace(epilogue, zero_point=True))
        return case

    def __str__(self) -> str:
        return f"{self.workload} on {self.device.name}"

    @property
    def symbol(self) -> str:
        """Name of the function that computes it."""
        return symbol_of(self.workload, self.epilogue)

    @cached_property
    def rates(self) -> tuple[Rate, ...]:
        """The instructions that may compute it, widest first, all of one depth.

        Either all of them take numbers as they are stored, or these are converted for all. Of
        several such kinds it is the fastest; of equals, one without conversions.
        """
        precision = self.precision
        usable = [
            rate
            for rate in self.device.rates(precision)
            if self._in_words(rate.instruction)
            # Blocks of outputs are whole vectors.
            and self._block_of(rate.lanes) % rate.lanes == 0
            and not (rate.instruction.flushes and self.denormals == KEEP)
            and not (PAIR in rate.instruction.pixel_operands and self._mixes_groups(rate.lanes))
            and self._filled(rate.instruction)
        ]
        kinds: dict[tuple[int, bool, int], list[Rate]] = {}
        for rate in usable:
            instruction = rate.instruction
            kind = instruction.depth, instruction.computes(precision), instruction.pixels
            kinds.setdefault(kind, []).append(rate)

        def speed(kind: Iterable[Rate]) -> tuple[float, bool]:
            rate = fastest(kind)
            filled = self._filled(rate.instruction)
            return filled * rate.flops_per_cycle, rate.instruction.words == 1

        return tuple(max(kinds.values(), key=speed, default=()))

    def _block_of(self, lanes: int) -> int:
        """Return the channel block of outputs that are computed in such vectors."""
        most = self.device.block(self.precision)
        return self.precision.channel_block(self.workload.out_channels, lanes, most)

    def oc_block(self, lanes: int) -> int:
        """Return what block sizes say of the output's block, where vectors have so many lanes.

        Layers pass on to each other the same blocks, whatever the vectors of each.
        """
        block = channel_block(self.workload.out_channels, self.device, self.precision)
        as_lanes_say = self.precision.channel_block(self.workload.out_channels, lanes)
        return 0 if block == as_lanes_say else block

    def _filled(self, instruction: Instruction) -> float:
        """Return which part of a matrix register a block of channels fills; of vectors, all."""
        if instruction.words == 1:
            return 1
        block = self.input_layout.block if self.workload.groups == 1 else None
        return min(1, (block or 0) / instruction.depth / instruction.words)

    def _mixes_groups(self, lanes: int) -> bool:
        """Return whether lanes of a vector belong to different groups."""
        return self.workload.groups > 1 and self.workload.group_out % lanes != 0

    def _in_words(self, instruction: Instruction) -> bool:
        """Return whether pixels can be words for an instruction.

        Those of channels of a group that lie side by side; of depthwise convolutions, of pixels
        below each other, where those of as many channels as it has lanes lie side by side.
        """
        depth, block = instruction.depth, self.input_layout.block
        if depth > 1 and self.workload.depthwise:
            rows, columns = self.workload.kernel
            if not instruction.of_rows or rows == 1 or rows * columns > _MOST_TAPS:
                return False
            # All that is stored of a blocked layout.
            channels = block or self.workload.in_channels
            return self.input_layout.name != "NCHW" and channels % instruction.lanes == 0
        whole = self.workload.group_in % depth == 0
        if depth == 1 or self.input_layout.name == "NHWC":
            return whole
        # What fills up the last word is multiplied with zeros.
        blocks = block is not None and block % depth == 0
        return blocks and (whole or self.workload.groups == 1)

    @cached_property
    def conversion(self) -> ConversionRate | None:
        """What converts pixels and weights as they are loaded; None where nothing has to."""
        if self.rates[0].instruction.computes(self.precision):
            return None
        return self.device.conversion(self.precision)

    @cached_property
    def peak(self) -> Rate:
        """The fastest of them."""
        return fastest(self.rates)

    @cached_property
    def lanes(self) -> int:
        """The lanes of vectors that compute all output channels in the fewest cycles."""
        return _fastest(self.workload.out_channels, self.rates).lanes

    @property
    def depth(self) -> int:
        """Input channels in a word: those that an instruction multiplies for each lane."""
        return 1 if self.workload.depthwise else self.rates[0].instruction.depth

    @property
    def rows(self) -> int:
        """Rows of the kernel in a word: of depthwise convolutions, in place of channels."""
        return self.rates[0].instruction.depth // self.depth

    @cached_property
    def words(self) -> ConvWorkload:
        """The workload with words in place of input channels. All blocking is about these."""
        return self.workload.in_words(self.depth)

    @cached_property
    def word_layout(self) -> ActivationLayout:
        """The layout of the input, which is one of words, too."""
        return self.input_layout.in_words(self.depth)

    @cached_property
    def input_block(self) -> int:
        """The channel block that inputs have between layers; see :func:`channel_block`."""
        return channel_block(self.workload.in_channels, self.device, self.precision)

    @property
    def precision(self) -> Precision:
        """The number types that it computes with."""
        return self.workload.precision


def check_threads(threads: object) -> None:
    """Raise if something is no number of threads.

    Raises
    ------
    BlockingError
        With what it is.
    """
    if not THREADS.test(threads):
        raise BlockingError(f"threads is {shown(threads)}: expected {THREADS.expected}")


@cache
def channel_block(channels: int, device: Device, precision: Precision = FLOAT32) -> int:
    """Return the channel block in which activations of a device are kept.

    It depends on nothing but the channels and the device, so that one layer's output is the next
    one's input: the lanes that compute all channels in the fewest cycles, or as the precision has
    it.
    """
    lanes = _fastest(channels, device.rates(precision)).lanes
    return precision.channel_block(channels, lanes, device.block(precision))


def _fastest(channels: int, rates: Iterable[Rate]) -> Rate:
    """Return what computes so many channels in the fewest cycles, the wider of two that are equal.

    24 channels take two vectors of 16 lanes or three of 8, and where 8 lanes go twice as often per
    cycle, three are faster.
    """
    return min(rates, key=lambda rate: (ceil(channels / rate.lanes) / rate.per_cycle, -rate.lanes))


def default_input_layout(workload: ConvWorkload, device: Device) -> ActivationLayout:
    """Return the layout of the input: plain for images, blocked between layers."""
    precision = workload.precision
    if precision.block is None and workload.in_channels < min(
        rate.lanes for rate in device.rates(precision)
    ):
        return ActivationLayout("NCHW")
    return ActivationLayout.blocked(channel_block(workload.in_channels, device, precision))
