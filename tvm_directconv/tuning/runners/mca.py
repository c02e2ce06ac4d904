"""Candidates in llvm-mca: block sizes for a board that is not at hand."""

import re
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean

from ...assembly import Loop, find_mca, innermost_loops, mca_cycles
from ...bench.compare import Comparison, Failure
from ...blocking import Blocking
from ...case import Case
from ...conv_manifest import ConvManifest
from ...errors import DeviceError, ToolchainError
from ...hardware.device import Device
from ...manifest import manifest_path
from ...model import estimate
from ...tiling import Tiling, taps_inside

_HERTZ = 1e9  # Device files have no clock.


class McaRunner:
    """Scores the assembly of candidates with llvm-mca, without running them.

    The score is the model's count of cycles for the whole convolution, with llvm-mca's cycles of
    the compiled loops in place of what the model takes the multiply-adds and their loads for. How
    often each loop runs, the model knows: loops of full tiles, of narrower ones and of those that
    skip padding differ in their multiply-adds. Spills are loads and stores in these loops, and
    count as such. What caches, sums and addresses cost remains the model's; so does code that LLVM
    has unrolled altogether, which is no loop.

    Depthwise convolutions are not scored: their rows and neighbouring tiles share loops in too many
    ways to tell how often each part runs. Nor is what takes several
    instructions for one product, or multiplies matrices.

    Nothing runs, so results are not checked, and every repeat would be the same: there is one.
    Seconds are cycles at 1 GHz.

    Parameters
    ----------
    device : Device
        What candidates are compiled for.

    Raises
    ------
    DeviceError
        If llvm-mca has no usable model of the device.
    ToolchainError
        If llvm-mca is not installed.
    """

    measured_by = "llvm-mca"
    suffix = ".s"
    slots = 1

    def __init__(self, device: Device) -> None:
        if device.mca_cpu is None:
            raise DeviceError(
                f"device {device.name!r} has no mca_cpu: llvm-mca has no usable model of it. "
                "Measure on the board, or use the model's block sizes"
            )
        find_mca()
        self._device = device
        self.cpu: str | None = None
        self.cpu_name: str | None = None
        self.cpu_device: str | None = device.name

    def measure(
        self, candidate: Path, incumbent: Path | None, repeats: int, thorough: bool = False
    ) -> Comparison | Failure:
        """Compare the scores of a candidate and the incumbent, both exported as assembly."""
        manifest = ConvManifest.read(manifest_path(candidate), candidate.read_bytes())
        if manifest.workload.depthwise:
            return Failure("rejected", "llvm-mca does not score depthwise convolutions")
        row = manifest.instruction
        if row.temporaries or row.pixels > 1 or (manifest.precision.whole and row.depth == 1):
            return Failure("rejected", f"llvm-mca does not score convolutions by {row}")
        try:
            seconds = self.cycles(candidate) / _HERTZ
            if incumbent is None:
                return Comparison((seconds,))
            return Comparison((seconds,), (self.cycles(incumbent) / _HERTZ / seconds,))
        except ToolchainError as error:
            return Failure("compile_error", str(error))

    def cycles(self, path: Path) -> float:
        """Return the cycles of a whole convolution.

        Parameters
        ----------
        path : Path
            Assembly, its manifest beside it.

        Returns
        -------
        float
            Of the thread that takes longest.

        Raises
        ------
        LibraryError
            If the manifest is missing, or another one.
        ToolchainError
            If llvm-mca cannot read a loop.
        """
        text = path.read_bytes()
        manifest = ConvManifest.read(manifest_path(path), text)
        loops = _timed_loops(text.decode(), self._device)
        b = manifest.blocking
        case = Case.of(manifest.workload, self._device, manifest.threads, manifest.input_layout)
        return estimate(Tiling(case, b), partial(_row_cycles, loops, b)).cycles

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


def loops_of_peak(text: str, tiling: Tiling) -> float:
    """Return the part of the FMA peak at which the inner loops of a row of tiles run.

    These are the loops of all its tiles, each as often as it runs: of full tiles, of narrower ones
    and of those at the borders, whose products with padding are skipped and not counted.

    Parameters
    ----------
    text : str
        Assembly of the convolution.
    tiling : Tiling
        What it computes, not depthwise, and in which block sizes; for a device with an `mca_cpu`.

    Returns
    -------
    float
        At most 1.

    Raises
    ------
    ToolchainError
        If a tile has no loop of its own, or llvm-mca cannot read it.
    """
    case, blocking = tiling.case, tiling.blocking
    loops = _timed_loops(text, case.device)
    products, cycles = 0, 0.0
    for tile in tiling.row.tiles:
        taps = tuple(taps_inside(tiling.view, 1, tile))
        taken = _row_cycles(loops, blocking, taps)
        if taken is None:
            raise ToolchainError(
                f"no inner loop of {case} has the products of a tile of {len(tile)} columns with "
                f"{blocking}: expected one of {sum(taps)} products"
            )
        products += sum(taps)
        cycles += taken
    return products * blocking.oc_vectors / (tiling.rate.per_cycle * cycles)


@dataclass(frozen=True)
class _Timed:
    """Loops of as many instructions, multiply-adds, sums and spills, and the cycles of a round."""

    fmas: int
    sums: int
    spills: int
    cycles: float


# The register that a multiply-add adds to: the first one of AArch64, the last one of x86.
_SUM = re.compile(
    r"(?:fml[as]|[us]{1,2}dot)\s+v(\d+)|(?:vfn?m(?:add|sub)\d+p[sh]|vpdpbusd)\s.*%[xyz]mm(\d+)$"
)


# The incumbent comes again and again.
@lru_cache(maxsize=8)
def _timed_loops(text: str, device: Device) -> list[_Timed]:
    """Return what llvm-mca says about the innermost loops, those that are alike only once."""
    assert device.mca_cpu
    # Where padding is skipped, columns of the kernel have loops of their own that differ in
    # addresses only.
    different: dict[tuple[int, int, int, int], Loop] = {}
    for loop in innermost_loops(text, device.triple):
        sums = {match[match.lastindex or 0] for line in loop.body if (match := _SUM.match(line))}
        different.setdefault((loop.fmas, len(sums), loop.spills, loop.instructions), loop)
    return [
        _Timed(fmas, sums, spills, mca_cycles(loop, device.triple, device.mca_cpu))
        for (fmas, sums, spills, _), loop in different.items()
    ]


def _row_cycles(loops: list[_Timed], b: Blocking, inside: tuple[int, ...]) -> float | None:
    """Return the cycles of one input channel at one row of the kernel, None if no loop fits.

    `inside` is how many columns of the tile read input at each column of the kernel.
    """
    # On x86, sums may change registers: then there seem to be more of them.
    for exactly in (True, False):
        taps = [_cycles(loops, b, columns, columns, exactly) for columns in inside if columns]
        if None not in taps:
            return sum(cycles for cycles in taps if cycles is not None)
        # Columns of the kernel share a round if they are straight-line code.
        at_once = _cycles(loops, b, sum(inside), max(inside), exactly)
        if at_once is not None:
            return at_once
    return None


def _cycles(
    loops: list[_Timed], b: Blocking, products: int, columns: int, exactly: bool
) -> float | None:
    """Return the cycles of so many products, all of one input channel, in so many columns."""
    fmas, sums = products * b.oc_vectors * b.ic_unroll, columns * b.oc_vectors
    # LLVM may have unrolled the loop some more. Sums that are spilled share registers.
    fitting = [
        (loop.fmas, abs(loop.sums - sums), loop.cycles)
        for loop in loops
        if loop.fmas % fmas == 0
        and (loop.sums == sums or loop.spills or (loop.sums > sums and not exactly))
    ]
    if not fitting:
        return None
    best = min(fitting)[:2]
    cycles = fmean(cycles for *kind, cycles in fitting if tuple(kind) == best)
    return cycles * fmas / best[0] / b.ic_unroll
