"""Devices: the facts about a processor that blocks, schedules and targets are made from."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DeviceError
from .target import host_lacks, llvm_features, llvm_options

if TYPE_CHECKING:
    from tvm.target import Target


@dataclass(frozen=True)
class Vector:
    """One usable vector width.

    Attributes
    ----------
    lanes : int
        fp32 values per vector.
    fma_per_cycle : float
        FMA instructions of this width that one core starts per cycle.
    """

    lanes: int
    fma_per_cycle: float


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
    fma : bool
        False where the core has no fused multiply-add; one multiply and one
        add then count as one FMA everywhere here.
    vectors : tuple of Vector
        Usable widths, widest first.
    vector_registers : int
        Architectural vector registers.
    spare_registers : int
        How many of them the compiler needs beyond those a register tile is counted for, to load
        operands ahead of their use.
    fma_latency : float
        Cycles from one FMA to the next one that adds to the same register.
    loads_per_cycle : float
        Loads of the widest vector that one core starts per cycle.
    scalar_loads_per_cycle : float
        Loads of one float, be it into one lane or into all.
    l2_bytes_per_cycle : float
        Bytes that stream from the second-level cache into one core per cycle.
    l3_bytes_per_cycle : float
        The same from the third level.
    memory_operand_broadcast : bool
        An FMA can read one float from memory and use it in every lane.
    lane_operand : bool
        An FMA can use one lane of a register in every lane.
    l1d_bytes, l2_bytes, l3_bytes : int
        Cache that one core may count on when all work: the size of a private
        cache, or its share of a shared one. 0 where the level does not exist.
    cache_line_bytes : int
        Size of a cache line.
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
    fma: bool
    vectors: tuple[Vector, ...]
    vector_registers: int
    spare_registers: int
    fma_latency: float
    loads_per_cycle: float
    scalar_loads_per_cycle: float
    l2_bytes_per_cycle: float
    l3_bytes_per_cycle: float
    memory_operand_broadcast: bool
    lane_operand: bool
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int
    cache_line_bytes: int
    cores: int
    mcpu: str | None = None
    mfloat_abi: str | None = None
    qemu_cpu: str | None = None
    mca_cpu: str | None = None
    boards: tuple[str, ...] = ()
    ghz: float | None = None
    aliases: tuple[str, ...] = ()

    @property
    def lanes(self) -> int:
        """fp32 lanes of the widest vector."""
        return self.vectors[0].lanes

    @property
    def peak_flops_per_cycle(self) -> float:
        """Most fp32 operations one core does per cycle; an FMA counts as two."""
        return max(2 * vector.lanes * vector.fma_per_cycle for vector in self.vectors)

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
            return llvm_features(self.triple, self.mcpu, self.mattr, self.mfloat_abi, self.lanes)
        except DeviceError as error:
            raise DeviceError(f"device {self.name!r}: {error}") from None

    def _options(self, cores: int) -> dict[str, object]:
        return llvm_options(self.triple, cores, self.mcpu, self.mattr, self.mfloat_abi)
