"""The space of block sizes that is searched: the model's candidates, and variants of them.

The model tells tiles, blocks and orders apart. What it does not count, how far to unroll and how
many channels to sum up before the next kernel position, varies here around the best candidate of
each tile and order. Points that it counts as much slower than its choice are left out: it has been
wrong by some 20 % where it was compared with measurements, so a point that is twice as slow on
paper is not worth a trial.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

import numpy as np

from ..blocking import IC_INSIDE, Blocking
from ..candidates import candidates
from ..case import Case
from ..model import estimate
from ..tiling import (
    Tiling,
    contiguous_channels,
    reasons_against,
    registers,
    tiled,
    usable_registers,
)

# Slower than the model's choice by more than this on paper: not tried.
_SLOWEST = 1.5
# A generation of the search asks for some hundred points; more than this would not be looked at.
_MOST_POINTS = 512
# Straight-line multiply-adds; the model allows itself less.
_STRAIGHT_FMAS = 512


@dataclass(frozen=True)
class Rejected:
    """A point that is not tried.

    Attributes
    ----------
    blocking : Blocking
    reason : str
        Its kind, a colon, and the numbers.
    """

    blocking: Blocking
    reason: str


class Space:
    """All block sizes that are worth a trial for one case.

    Parameters
    ----------
    case : Case
        What is computed.
    start : Blocking, optional
        A point that is in the space in any case, and first; the model's choice if not given.

    Attributes
    ----------
    points : tuple of Blocking
        The first is where the search starts; the others follow as the model ranks them.
    cycles : numpy.ndarray
        What the model counts for each point.
    rejected : tuple of Rejected
        What was left out, and why.

    Raises
    ------
    BlockingError
        If `start` cannot be used.
    """

    def __init__(self, case: Case, start: Blocking | None = None) -> None:
        self.case = case
        if start is not None:
            tiled(start, case)
        counted = {
            blocking: estimate(Tiling(case, blocking)).cycles for blocking in candidates(case)
        }
        default = min(counted, key=counted.__getitem__)
        rejected = list(self._too_large())
        ranked: dict[Blocking, float] = {}
        tiles_and_orders = set()
        for blocking, cycles in sorted(counted.items(), key=lambda item: item[1]):
            slower = cycles / counted[default]
            if slower > _SLOWEST:
                reason = f"{slower:.2f} times the cycles of the best, up to {_SLOWEST} are tried"
                rejected.append(Rejected(blocking, f"slow on paper: {reason}"))
                continue
            ranked[blocking] = cycles
            key = (blocking.oc_vectors, blocking.ow_tile, blocking.loop_order)
            if key not in tiles_and_orders:
                tiles_and_orders.add(key)
                ranked |= dict.fromkeys(self._variants(blocking), cycles)
        first = start or default
        ranked[first] = estimate(Tiling(case, first)).cycles
        points = [first, *(blocking for blocking in ranked if blocking != first)]
        rejected += [
            Rejected(blocking, f"too many points: the model ranks it behind {_MOST_POINTS} others")
            for blocking in points[_MOST_POINTS:]
        ]
        self.points: tuple[Blocking, ...] = tuple(points[:_MOST_POINTS])
        self.cycles = np.array([ranked[blocking] for blocking in self.points])
        self.rejected: tuple[Rejected, ...] = tuple(rejected)
        self._numbers = {blocking: number for number, blocking in enumerate(self.points)}
        codes = [
            {value: code for code, value in enumerate(dict.fromkeys(column))}
            for column in zip(*map(astuple, self.points), strict=True)
        ]
        self._codes = np.array(
            [
                [code[value] for code, value in zip(codes, astuple(p), strict=True)]
                for p in self.points
            ]
        )

    def __len__(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        return f"<Space of {len(self)} points, {len(self.rejected)} rejected, {self.case.workload}>"

    def number_of(self, blocking: Blocking) -> int | None:
        """Return the number of a point, None if it is not in the space."""
        return self._numbers.get(blocking)

    def reasons(self) -> Counter[str]:
        """Count the rejected points by the kind of reason."""
        return Counter(rejected.reason.split(":")[0] for rejected in self.rejected)

    def likelihood(self) -> np.ndarray:
        """Return with which probability to try each point, by the model's word alone."""
        # A tenth slower on paper is tried a third as often.
        weights = np.exp(-11 * (self.cycles / self.cycles.min() - 1))
        # None so unlikely that it cannot happen; a start may be arbitrarily bad.
        weights = np.maximum(weights, 1e-3)
        return weights / weights.sum()

    def sample(self, count: int, seed: int) -> list[int]:
        """Draw different points.

        Parameters
        ----------
        count : int
            How many; all of them in random order if the space has fewer.
        seed : int
            The same seed draws the same points.

        Returns
        -------
        list of int
            Numbers of points.
        """
        order = np.random.default_rng(seed).permutation(len(self))
        return [int(number) for number in order[:count]]

    def neighbour(self, number: int, rng: np.random.Generator) -> int | None:
        """Return a point that differs in one knob, and in no more others than it has to.

        Parameters
        ----------
        number : int
            Of the point.
        rng : numpy.random.Generator
            Draws the knob, and one of the points.

        Returns
        -------
        int or None
            None if all points are the same in the knob that was drawn.
        """
        differs = self._codes != self._codes[number]
        knobs = differs.shape[1]
        knob = rng.integers(knobs)
        distance = np.where(differs[:, knob], differs.sum(axis=1), knobs + 1)
        nearest = distance.min()
        if nearest > knobs:
            return None
        return int(rng.choice(np.flatnonzero(distance == nearest)))

    def features(self) -> np.ndarray:
        """Return what a cost model may learn from, one row of float32 for each point."""
        rows = []
        for b, cycles in zip(self.points, self.cycles, strict=True):
            tiling = Tiling(self.case, b)
            view = tiling.view
            sums = b.oc_vectors * b.ow_tile
            rows.append(
                [
                    cycles / self.cycles.min(),
                    b.oc_vectors,
                    b.ow_tile,
                    sums,
                    tiling.registers,
                    (b.oc_vectors + b.ow_tile) / sums,
                    tiling.straight_fmas,
                    b.ic_unroll,
                    b.ic_block,
                    tiling.channels_at_once,
                    b.kw_unroll,
                    b.oh_block,
                    b.rows_outside,
                    b.flat_rows,
                    view.out_width,
                    view.out_width % b.ow_tile,
                    -(-view.out_width // b.ow_tile),
                ]
            )
        return np.array(rows, np.float32)

    def _too_large(self) -> Iterator[Rejected]:
        """Generate the smallest tiles that do not fit the registers."""
        workload, lanes = self.case.words, self.case.lanes
        row = next(rate.instruction for rate in self.case.rates if rate.lanes == lanes)
        usable = usable_registers(self.case)
        for oc_vectors in range(1, usable):
            ow_tile = next(
                n
                for n in range(1, 99)
                if registers(oc_vectors, n, workload, row, self.case.rows) > usable
            )
            tile = Blocking(lanes, oc_vectors, ow_tile, 1, 1)
            needed = registers(oc_vectors, ow_tile, workload, row, self.case.rows)
            yield Rejected(tile, f"too large a tile: it needs {needed} of {usable} registers")

    def _variants(self, blocking: Blocking) -> Iterator[Blocking]:
        """Generate what differs from a candidate in the knobs that the model does not count."""
        view, block = Tiling(self.case, blocking).view, self.case.word_layout.block
        codes = set()
        ic_blocks = [blocking.ic_block]
        if blocking.loop_order == IC_INSIDE:
            ic_blocks += [blocking.ic_block * 4, view.in_channels]
        for ic_block in dict.fromkeys(ic_blocks):
            inner = contiguous_channels(ic_block, block)
            # The candidate's own first: of those that are the same code, one is enough.
            for ic_unroll in dict.fromkeys((blocking.ic_unroll, 1, 2, 4, 8, inner)):
                for kw_unroll in (False, True) if view.kernel[1] > 1 else (False,):
                    variant = replace(
                        blocking, ic_block=ic_block, ic_unroll=ic_unroll, kw_unroll=kw_unroll
                    )
                    if reasons_against(variant, self.case):
                        continue
                    tiling = Tiling(self.case, variant)
                    code = ic_block, tiling.straight_channels, kw_unroll
                    if code not in codes and tiling.straight_fmas <= _STRAIGHT_FMAS:
                        codes.add(code)
                        yield variant
