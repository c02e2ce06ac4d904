"""Every figure of a report that follows from raw rows: here and nowhere else.

Ratios are of neighbouring times: made repeat by repeat, then their median is taken. What slows the
machine down for a while slows both down, and the ratio stays.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from statistics import geometric_mean, median
from typing import Any

import numpy as np

from ...workload import ConvWorkload
from ..disturbance import disturbance
from ..rivals.base import ALL_PRODUCTS, OWN_CHOICE
from ..rivals.contestants import CHOOSING, KNOWN
from ..rivals.ours import TUNED
from .rows import GEMM, IM2COL, OURS, Row, Subject

AHEAD = 1.03
"""How many times as fast as ours a rival has to be, to be listed as ahead."""

_WINOGRAD_TILE = 4  # outputs, in each direction


@dataclass(frozen=True)
class Figures:
    """What follows from a row, and from those that were measured in turns with it.

    Attributes
    ----------
    row : Row
    seconds_p20, seconds_p50, seconds_p80 : float, optional
        Percentiles over the repeats; None, as everything below, if it was not measured.
    gflops : float, optional
        Nominal operations of a layer over `seconds_p50`, in 10^9 per second.
    peak_gflops_p50 : float, optional
        Median of the bursts beside it.
    of_peak : float, optional
        Median of the layer's nominal speed over that of the burst beside each repeat.
    of_limit, of_limit_p20, of_limit_p80 : float, optional
        The same, without products with padding, which need not be computed; and percentiles.
    over_ours, over_ours_p20, over_ours_p80 : float, optional
        Percentiles of its time over ours: above 1, ours is faster.
    over_im2col, over_im2col_p20, over_im2col_p80 : float, optional
        Percentiles of the time of im2col + OpenBLAS over its own: how many times as fast it is.
    of_clock : float, optional
        Median of the burst's speed over what the clock allows.
    disturbed : str, optional
        Why it cannot be believed, or ours beside it; None if there is nothing against it.
    """

    row: Row
    seconds_p20: float | None = None
    seconds_p50: float | None = None
    seconds_p80: float | None = None
    gflops: float | None = None
    peak_gflops_p50: float | None = None
    of_peak: float | None = None
    of_limit: float | None = None
    of_limit_p20: float | None = None
    of_limit_p80: float | None = None
    over_ours: float | None = None
    over_ours_p20: float | None = None
    over_ours_p80: float | None = None
    over_im2col: float | None = None
    over_im2col_p20: float | None = None
    over_im2col_p80: float | None = None
    of_clock: float | None = None
    disturbed: str | None = None

    @property
    def about(self) -> Subject:
        """What was measured."""
        return self.row.about

    @property
    def all_products(self) -> bool:
        """Whether it computes all products that are not with padding, so that there is a limit.

        Where a row does not say how, it is believed of contestants that are known to.
        """
        algorithm, contestant = self.row.algorithm, self.row.contestant
        known = contestant in KNOWN and contestant not in CHOOSING
        return algorithm in ALL_PRODUCTS or (algorithm == OWN_CHOICE and known)

    @property
    def is_rival(self) -> bool:
        """Whether it computes the whole convolution with all its products, and is not ours."""
        return self.all_products and self.row.contestant not in (OURS, TUNED, GEMM)


def figures(rows: Iterable[Row]) -> list[Figures]:
    """Derive the figures of the last row for each subject, number of threads and contestant."""
    comparisons: dict[tuple[Subject, int, str], dict[str, Row]] = {}
    for row in rows:
        together = comparisons.setdefault((row.about, row.threads, row.date), {})
        together[row.contestant] = row
    last: dict[tuple[Subject, int, str], Figures] = {}
    for (subject, threads, _), together in comparisons.items():
        for contestant, row in together.items():
            last[subject, threads, contestant] = _derived(row, together)
    return list(last.values())


def _derived(row: Row, together: dict[str, Row]) -> Figures:
    if not row.seconds:
        return Figures(row)
    seconds = np.array(row.seconds)
    found: dict[str, Any] = {
        f"seconds_p{p}": float(np.percentile(seconds, p)) for p in (20, 50, 80)
    }
    found["peak_gflops_p50"] = median(row.peak_gflops)
    if row.clock_gflops:
        found["of_clock"] = float(np.median(np.divide(row.peak_gflops, row.clock_gflops)))
    if row.subject == "layer":
        workload = row.about.convolution
        speeds = workload.flops / 1e9 / seconds / np.array(row.peak_gflops)
        found["gflops"] = workload.flops / found["seconds_p50"] / 1e9
        found["of_peak"] = float(np.median(speeds))
        for key, p in (("of_limit", 50), ("of_limit_p20", 20), ("of_limit_p80", 80)):
            useful = workload.useful_flops / workload.flops
            found[key] = float(np.percentile(speeds, p)) * useful
    if ours := _seconds(together, OURS):
        for key, p in (("over_ours", 50), ("over_ours_p20", 20), ("over_ours_p80", 80)):
            found[key] = float(np.percentile(seconds / np.array(ours), p))
    if im2col := _seconds(together, IM2COL):
        for key, p in (("over_im2col", 50), ("over_im2col_p20", 20), ("over_im2col_p80", 80)):
            found[key] = float(np.percentile(np.array(im2col) / seconds, p))
    reason = _disturbance(row)
    if not reason and row.contestant != OURS and OURS in together:
        reason = _disturbance(together[OURS])
        reason = reason and f"ours beside it: {reason}"
    return Figures(row, **found, disturbed=reason)


def _disturbance(row: Row) -> str | None:
    if not row.seconds:
        return None
    peaks = np.array(row.peak_gflops)
    speeds = 1 / np.array(row.seconds) / peaks
    limit = None
    if row.subject == "layer" and Figures(row).all_products:
        limit = float(np.median(speeds)) * row.about.convolution.useful_flops / 1e9
    of_clock = peaks / np.array(row.clock_gflops) if row.clock_gflops else ()
    return disturbance(list(speeds), list(of_clock), limit)


def _seconds(together: dict[str, Row], contestant: str) -> tuple[float, ...]:
    row = together.get(contestant)
    return row.seconds if row else ()


class Results:
    """All figures of a report, and what they say together.

    Parameters
    ----------
    rows : iterable of Row

    Attributes
    ----------
    rows : tuple of Row
        In the order in which they were measured.
    figures : tuple of Figures
    threads : list of int
        Numbers of threads, ascending.
    contestants : list of str
        Those that there are rows of, in the order of tables.
    layers, networks : list of Subject
        In the order in which they were measured.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = tuple(rows)
        self.figures = tuple(figures(self.rows))
        self.threads = sorted({f.row.threads for f in self.figures})
        names = dict.fromkeys(f.row.contestant for f in self.figures)
        self.contestants = [name for name in KNOWN if name in names]
        self.contestants += [name for name in names if name not in KNOWN]
        subjects = dict.fromkeys(f.about for f in self.figures)
        self.layers = [s for s in subjects if s.kind == "layer"]
        self.networks = [s for s in subjects if s.kind == "network"]
        self._found = {(f.about, f.row.threads, f.row.contestant): f for f in self.figures}

    @property
    def families(self) -> list[str]:
        """Networks that the layers are of; "" for layers of none."""
        return list(dict.fromkeys(s.network for s in self.layers))

    def of(self, subject: Subject, threads: int, contestant: str) -> Figures | None:
        """Return the figures of a contestant, None if there is no row."""
        return self._found.get((subject, threads, contestant))

    def by(self, contestant: str) -> list[Figures]:
        """Return the figures of a contestant in layers and networks, failures too."""
        return [f for f in self.figures if f.row.contestant == contestant]

    def distinct(self, network: str | None = None) -> list[Subject]:
        """Return different convolutions, each under the first of its names.

        Parameters
        ----------
        network : str, optional
            Of this one only.
        """
        chosen = (s for s in self.layers if network in (None, s.network))
        different: dict[ConvWorkload, Subject] = {}
        for subject in chosen:
            different.setdefault(subject.convolution, subject)
        return list(different.values())

    def measured(
        self, contestant: str, threads: int, layers: Sequence[Subject] | None = None
    ) -> list[Figures]:
        """Return the figures of layers that a contestant computed and that are right.

        Of :meth:`distinct` layers if none are given.
        """
        layers = self.distinct() if layers is None else layers
        found = (self.of(s, threads, contestant) for s in layers)
        return [f for f in found if f and f.seconds_p50]

    def sound(
        self, contestant: str, threads: int, layers: Sequence[Subject] | None = None
    ) -> list[Figures]:
        """Return those of :meth:`measured` that means are taken over: not disturbed ones."""
        return [f for f in self.measured(contestant, threads, layers) if not f.disturbed]

    def best_rival(self, subject: Subject, threads: int) -> Figures | None:
        """Return the figures of the rival that takes the least of our time on a layer.

        Of those that compute all products (:attr:`Figures.is_rival`). None if there is none.
        """
        found = (self.of(subject, threads, name) for name in self.contestants)
        rivals = [f for f in found if f and f.is_rival and f.over_ours and not f.disturbed]
        return min(rivals, key=lambda f: f.over_ours or 0, default=None)

    def best_rivals(self, threads: int, layers: Sequence[Subject] | None = None) -> list[Figures]:
        """Return the figures of the best rival on each layer that has one."""
        layers = self.distinct() if layers is None else layers
        return [f for s in layers if (f := self.best_rival(s, threads))]

    def ahead(self, threads: int) -> list[Figures]:
        """Return the rivals' figures that are clearly better than ours, the furthest first."""
        distinct = set(self.distinct())
        found = [
            f
            for f in self.figures
            if f.row.threads == threads
            and f.about in distinct
            and f.is_rival
            and f.over_ours
            and f.over_ours * AHEAD < 1
            and not f.disturbed
        ]
        return sorted(found, key=lambda f: f.over_ours or 0)

    def per_core(self, contestant: str, threads: int) -> dict[Subject, float]:
        """Return the speed per core on several threads over that on one, by layer.

        Of different layers that were measured on both: the median of the time on one thread over
        `threads` times that on `threads`. If they were not measured in turns, there are no
        neighbouring times: it is the ratio of the medians.
        """
        found = {}
        for subject in self.distinct():
            one, many = (self.of(subject, n, contestant) for n in (1, threads))
            disturbed = (one and one.disturbed) or (many and many.disturbed)
            if one and many and one.seconds_p50 and many.seconds_p50 and not disturbed:
                ratio = one.seconds_p50 / many.seconds_p50
                if one.row.date == many.row.date:
                    ratio = float(np.median(np.divide(one.row.seconds, many.row.seconds)))
                found[subject] = ratio / threads
        return found


def mean(found: Sequence[Figures], key: Callable[[Figures], float | None]) -> float | None:
    """Return the geometric mean of a figure, None if there is nothing to take it of."""
    values = [value for f in found if (value := key(f))]
    return geometric_mean(values) if values else None


def own_bytes(workload: ConvWorkload) -> int:
    """Return the bytes of a layer's arrays: what has to be read and written at least."""
    return workload.input_bytes + workload.weight_bytes + workload.output_bytes


def intensity(workload: ConvWorkload) -> float:
    """Return operations, without products with padding, for each byte of :func:`own_bytes`."""
    return workload.useful_flops / own_bytes(workload)


def winograd_bytes(workload: ConvWorkload) -> int | None:
    """Return the bytes of Winograd's F(4x4, 3x3) buffers for the whole layer.

    With T = N x ceil(H_o / 4) x ceil(W_o / 4) tiles of outputs, each of which needs 6x6 inputs,
    36 floats stand for every tile and input channel (transformed inputs), tile and output channel
    (products), and pair of channels (transformed weights): 4 bytes x 36 x (T C_i + T C_o +
    C_o C_i / groups). As :attr:`ConvWorkload.im2col_bytes`, it is what the algorithm needs if the
    layer is not cut into parts. None for layers that it does not compute: other kernels than 3x3,
    strides, dilation.
    """
    if workload.kernel != (3, 3) or workload.stride != (1, 1) or workload.dilation != (1, 1):
        return None
    size = _WINOGRAD_TILE
    tiles = workload.batch * ceil(workload.out_height / size) * ceil(workload.out_width / size)
    values = tiles * (workload.in_channels + workload.out_channels)
    values += prod(workload.weight_shape[:2])
    return 4 * (size + 2) ** 2 * values
