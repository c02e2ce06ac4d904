"""Devices: the facts about a processor that blocks, schedules and targets are made from."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..errors import DeviceError
from ..instructions import Conversion, Instruction
from ..precision import FLOAT32, Precision
from .constants import ModelConstants
from .target import host_lacks, llvm_features, llvm_options

if TYPE_CHECKING:
    from tvm.target import Target


@dataclass(frozen=True)
class Rate:
    """How fast one core runs an instruction.

    Attributes
    ----------
    instruction : Instruction
        Which.
    per_cycle : float
        How many one core starts per cycle.
    latency : float
        Cycles from one to the next one that adds to the same register.
    """

    instruction: Instruction
    per_cycle: float
    latency: float

    @property
    def lanes(self) -> int:
        """Outputs in a register of sums."""
        return self.instruction.lanes

    @property
    def flops_per_cycle(self) -> float:
        """Operations per cycle: multiplications and additions in each lane."""
        products = self.lanes * self.instruction.depth
        return 2 * products * self.instruction.pixels * self.instruction.words * self.per_cycle


def computing(rates: Iterable[Rate], precision: Precision) -> tuple[Rate, ...]:
    """Return those of instructions that compute in a precision.

    Of two that do the same, the one that takes pixels as they are is meant.
    """
    found = [rate for rate in rates if rate.instruction.computes(precision)]
    as_they_are = [rate for rate in found if not rate.instruction.shifts(precision)]

    def does(rate: Rate) -> tuple[int, int, int]:
        return rate.lanes, rate.instruction.depth, rate.instruction.pixels

    known = {does(rate) for rate in as_they_are}
    return tuple(rate for rate in found if rate in as_they_are or does(rate) not in known)


def fastest(rates: Iterable[Rate]) -> Rate:
    """Return the instruction with most operations per cycle, the widest of equals."""
    return max(rates, key=lambda rate: (rate.flops_per_cycle, rate.lanes))


@dataclass(frozen=True)
class ConversionRate:
    """How fast one core runs a conversion.

    Attributes
    ----------
    conversion : Conversion
        Which.
    per_cycle : float
        How many one core starts per cycle.
    """

    conversion: Conversion
    per_cycle: float


@dataclass(frozen=True)
class Device:
    """A processor core, and the board or chip it usually sits in.

    Attributes
    ----------
    name : str
        Name of the device file; tuning logs are kept under it.
    chain : tuple of str
        The device and those it falls back on, from itself to ``generic``.
    description : str
        One line for people.
    schedule : str
        Module of ``schedules/`` that serves this instruction set.
    triple : str
        LLVM target triple (TVM's ``mtriple``).
    mattr : tuple of str
        LLVM feature flags, such as ``+neon``.
    instructions : tuple of Rate
        Those that multiply and add, the ones of a precision widest first.
    conversions : tuple of ConversionRate
        Those of what is loaded.
    vector_registers : int
        Architectural vector registers.
    spare_registers : int
        How many of them the compiler needs beyond those a register tile is counted for, to load
        operands ahead of their use.
    loads_per_cycle : float
        Loads of the widest vector that one core starts per cycle.
    scalar_loads_per_cycle : float
        Loads of one float, be it into one lane or into all.
    l2_bytes_per_cycle : float
        Bytes that stream from the second-level cache into one core per cycle.
    l3_bytes_per_cycle : float
        The same from the third level.
    l1d_bytes, l2_bytes, l3_bytes : int
        Cache that one core may count on when all work: the size of a private
        cache, or its share of a shared one. 0 where the level does not exist.
    model : ModelConstants
        Constants of the analytical model.
    cores : int
        Cores of the usual board or chip; of this machine for its own device.
    mcpu, mfloat_abi : str, optional
        LLVM's processor name and float ABI, where they must be given.
    qemu_cpu : str, optional
        Processor for ``qemu-<arch> -cpu`` that has this instruction set.
    mca_cpu : str, optional
        Processor for ``llvm-mca -mcpu`` whose cycle model is right.
    boards : tuple of str
        Where the core is found.
    ghz : float, optional
        Nominal clock of the first board; None where nobody tells.
    aliases : tuple of str
        Other names of the device.
    """

    name: str
    chain: tuple[str, ...]
    description: str
    schedule: str
    triple: str
    mattr: tuple[str, ...]
    instructions: tuple[Rate, ...]
    conversions: tuple[ConversionRate, ...]
    vector_registers: int
    spare_registers: int
    loads_per_cycle: float
    scalar_loads_per_cycle: float
    l2_bytes_per_cycle: float
    l3_bytes_per_cycle: float
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int
    model: ModelConstants
    cores: int
    mcpu: str | None = None
    mfloat_abi: str | None = None
    qemu_cpu: str | None = None
    mca_cpu: str | None = None
    boards: tuple[str, ...] = ()
    ghz: float | None = None
    aliases: tuple[str, ...] = ()

    def rates(self, precision: Precision = FLOAT32) -> tuple[Rate, ...]:
        """Return the instructions that compute in a precision, those of a depth widest first.

        Those that take numbers as they are stored are before those that they are converted for.
        """
        as_stored = computing(self.instructions, precision)
        if precision.converted_to is None or not self.conversion(precision):
            return as_stored
        return as_stored + computing(self.instructions, precision.converted_to)

    def conversion(self, precision: Precision) -> ConversionRate | None:
        """Return what can convert pixels and weights as they are loaded, None if nothing does."""
        if precision.converted_to is None:
            return None
        types = precision.pixel, precision.converted_to.pixel
        found = (
            rate
            for rate in self.conversions
            if (rate.conversion.stored, rate.conversion.loaded) == types
        )
        return next(found, None)

    def peak(self, precision: Precision = FLOAT32) -> Rate:
        """Return the instruction with most operations per cycle, the widest of equals."""
        return fastest(self.rates(precision))

    def block(self, precision: Precision) -> int | None:
        """Return the most channels in a block of activations; None where these are the lanes.

        Where there are matrix registers, as many as a row of one takes.
        """
        rows = [
            rate.instruction.words * rate.instruction.depth
            for rate in self.rates(precision)
            if rate.instruction.words > 1
        ]
        return max(rows, default=precision.block)

    @cached_property
    def lanes(self) -> int:
        """float32 lanes of the widest vector."""
        return self.rates()[0].lanes

    @property
    def is_host_runnable(self) -> bool:
        """Whether the processor and system that run this program can run the device's code."""
        return host_lacks(self._options(1)) is None

    def target(self, cores: int | None = None) -> "Target":
        """Return the TVM target of this device; parameters as in :meth:`target_options`."""
        from tvm.target import Target

        return Target(self.target_options(cores))

    def target_options(self, cores: int | None = None) -> dict[str, object]:
        """Return what the TVM target of this device is made of.

        Parameters
        ----------
        cores : int, optional
            Cores that parallel code and tuning may use; the device's own
            number if not given.

        Returns
        -------
        dict
            Options of an ``llvm`` target, as JSON has them.

        Raises
        ------
        DeviceError
            If `cores` is not positive, or if LLVM does not know the device's
            ``triple``, ``mcpu`` or ``mattr``. TVM itself only logs that and
            compiles for a lesser processor.
        """
        if cores is not None and cores < 1:
            raise DeviceError(f"cores is {cores}: expected at least 1")
        self.features()  # Raises what LLVM does not know.
        return self._options(cores or self.cores)

    def features(self) -> frozenset[str]:
        """Return the features, such as ``avx2``, that LLVM takes the device to have.

        Raises
        ------
        DeviceError
            As :meth:`target_options`.
        """
        try:
            found = llvm_features(self.triple, self.mcpu, self.mattr, self.mfloat_abi)
        except DeviceError as error:
            raise DeviceError(f"device {self.name!r}: {error}") from None
        rows: list[tuple[str, Instruction | Conversion]]
        rows = [("instructions", rate.instruction) for rate in self.instructions]
        rows += [("conversions", rate.conversion) for rate in self.conversions]
        for key, row in rows:
            if lacking := [name for name in row.features if name not in found]:
                raise DeviceError(
                    f"device {self.name!r}: {key} has {row.name!r}, but "
                    f"{self.mcpu or self.triple} has no {', '.join(lacking)}: correct "
                    f"{key}, or name an mcpu that has them"
                )
        return found

    def _options(self, cores: int) -> dict[str, object]:
        return llvm_options(self.triple, cores, self.mcpu, self.mattr, self.mfloat_abi)
