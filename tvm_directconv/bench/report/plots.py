"""Plots of a report, as SVG: the same figures give the same bytes."""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import geometric_mean, median
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import numpy as np

from ...errors import ReportError
from ..rivals.contestants import KNOWN
from ..rivals.ours import TUNED
from .figures import Figures, Results, intensity, own_bytes, winograd_bytes
from .rows import GEMM, IM2COL, OURS, Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# For those that say none, or are no longer known; with an octagon each.
_OTHERS = ("#00a087", "#dc0000", "#3c5488", "#f39b7f")
_WINOGRAD = "#8c564b"  # The algorithm, of no library.

_SETTINGS = {
    "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
    "figure.facecolor": "white",  # on dark pages, too
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_WIDTH = 9.0  # inches
_ROW = 0.21  # inches for each layer
_BEYOND = 1.015  # of the limit: where marks stand that are anywhere beyond it
_LEAST_SPEED = 0.25  # of im2col + SGEMM's: what is slower would squeeze all others


@dataclass(frozen=True)
class Plot:
    """A drawing.

    Attributes
    ----------
    section : str
        Where it belongs: ``answer``, ``paper``, ``limit``, ``memory``, ``tuning`` or ``compiling``.
    title : str
        What it shows, in short.
    caption : str
        How to read it.
    svg : str
        The drawing.
    """

    section: str
    title: str
    caption: str
    svg: str


def check() -> None:
    """Raise if nothing can be drawn: better before measuring than after it.

    Raises
    ------
    ReportError
        With the command that mends it.
    """
    if find_spec("matplotlib") is None:
        raise ReportError(
            "drawing needs matplotlib, which is not installed: pip install 'tvm-directconv[plot]'"
        )


def plots(results: Results, environment: Mapping[str, Any]) -> dict[str, Plot]:
    """Draw everything that there are rows for.

    Parameters
    ----------
    results : Results
    environment : mapping
        See :mod:`.environment`.

    Returns
    -------
    dict of str to Plot
        By the name of the file, without its ending.
    """
    check()
    import matplotlib.style

    drawn = {}
    for name, section, title, caption, draw in _wanted(results, environment):
        # Ids are made of the hash salt; the date is the only other thing that would change.
        style: list[str | Path | dict[str, Any]]
        style = ["default", {**_SETTINGS, "svg.hashsalt": name}]
        with matplotlib.style.context(style), warnings.catch_warnings():
            # Of numbers at the ends of floats, and letters that no font has.
            warnings.simplefilter("ignore")
            text = io.StringIO()
            metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            draw().savefig(text, format="svg", metadata=metadata)
        drawn[name] = Plot(section, title, caption, text.getvalue())
    return drawn


class _Wanted(NamedTuple):
    """A plot to draw: its name, the attributes of :class:`Plot`, and what draws it."""

    name: str
    section: str
    title: str
    caption: str
    draw: Callable[[], "Figure"]


def _wanted(results: Results, environment: Mapping[str, Any]) -> Iterator[_Wanted]:
    """Yield name, section, title and caption, and what draws it."""
    if overview(results) or overview(results, "network"):
        yield _Wanted(
            "overview",
            "answer",
            "How many times as long as ours others take",
            "Medians of ratios in turns: of layers the geometric mean, and of networks likewise. "
            "Lines go from p20 to p80 over layers or networks; to the right of 1, ours is faster.",
            partial(_draw_overview, results),
        )
    for threads in results.threads:
        yield from _of_threads(results, threads, environment)
    if most := [n for n in results.threads if n > 1 and results.per_core(OURS, n)]:
        yield _Wanted(
            "per-core",
            "paper",
            "Speed per core over threads (the paper's Fig. 5)",
            "Time on one thread over n times the time on n threads: the geometric mean over "
            "different layers, with lines from p20 to p80 of them; for ours also the layer with "
            "the least.",
            partial(_draw_per_core, results, most),
        )
    for network in results.families:
        layers = results.distinct(network)
        yield _Wanted(
            f"memory-{_file_name(network)}",
            "memory",
            f"Memory beyond input, weights and output: {network or 'other layers'}",
            "Over the bytes of these three arrays. Bars: what the whole im2col matrix, and "
            "the buffers of Winograd's F(4x4, 3x3) for the whole layer, would take by their "
            "formulas. Marks: what was measured.",
            partial(_draw_memory, results, layers),
        )
    if any(f.row.compile_seconds for f in results.figures):
        yield _Wanted(
            "compiling",
            "compiling",
            "Time to get ready",
            "Compiling, or whatever a library does with a layer ahead of its first call. A "
            "dot for each layer; a line for their median.",
            partial(_draw_compiling, results),
        )


def _of_threads(
    results: Results, threads: int, environment: Mapping[str, Any]
) -> Iterator[_Wanted]:
    said = f"{threads} thread{'s' if threads > 1 else ''}"
    for network in results.families:
        name = _file_name(network)
        layers = [s for s in results.distinct(network) if results.of(s, threads, OURS)]
        # By im2col, layers with groups are many small products: nothing to compare with.
        based = [
            s for s in layers if s.convolution.groups == 1 and _speed(results, s, threads, IM2COL)
        ]
        if network == "alexnet" and based:
            yield _Wanted(
                f"fig1-alexnet-{threads}",
                "paper",
                f"AlexNet, {said} (the paper's Fig. 1)",
                "Speed over that of im2col + SGEMM. The SGEMM alone is what would be left if "
                "im2col took no time.",
                partial(_draw_fig1, results, based, threads),
            )
        if based:
            yield _Wanted(
                f"speedup-{name}-{threads}",
                "paper",
                f"{network or 'Other layers'}, {said} (the paper's Fig. 4)",
                "Speed over that of im2col + SGEMM (OpenBLAS), medians of interleaved ratios, of "
                "layers without groups; to the right is faster. What is slower than "
                f"{_LEAST_SPEED:g} stands there.",
                partial(_draw_speedup, results, based, threads),
            )
        if layers:
            yield _Wanted(
                f"limit-{name}-{threads}",
                "limit",
                f"Part of the limit: {network or 'other layers'}, {said}",
                "Operations without products with padding, in relation to the FMA peak: 100 % "
                "is what no code with all other products can pass. Without what computes by "
                "Winograd's algorithm or FFT, for which it is no limit. What stands beyond the "
                "end was measured beside bursts that were slowed down.",
                partial(_draw_limit, results, layers, threads),
            )
    if results.measured(OURS, threads):
        yield _Wanted(
            f"roofline-{threads}",
            "limit",
            f"Roofline, {said}",
            "Operations without products with padding, for each byte of input, weights and "
            "output. The sloping roof is the speed at which memory is copied; arrays that "
            "stay in caches between calls are not bound by it.",
            partial(_draw_roofline, results, threads, environment),
        )
    if tuned := [f for f in results.measured(TUNED, threads) if f.over_ours]:
        yield _Wanted(
            f"tuned-{threads}",
            "tuning",
            f"Tuned block sizes over the model's, {said}",
            "Speed with tuned block sizes over that with the analytical model's; bars from "
            "p20 to p80 of the ratios.",
            partial(_draw_tuned, tuned),
        )


class Bar(NamedTuple):
    """A contestant's time over ours: the mean over subjects, and percentiles over them."""

    contestant: str
    threads: int
    dtype: str
    low: float
    middle: float
    high: float


def overview(results: Results, kind: str = "layer") -> list[Bar]:
    """Return what a contestant's time over ours is, for all layers or networks of a number type.

    Of those that compute whole convolutions, and of what was not disturbed.
    """
    subjects = results.distinct() if kind == "layer" else results.networks
    bars = []
    dtypes = dict.fromkeys(subject.dtype for subject in subjects)
    for dtype, contestant in product(dtypes, results.contestants):
        for threads in results.threads:
            of_type = [subject for subject in subjects if subject.dtype == dtype]
            found = results.sound(contestant, threads, of_type)
            over = [f.over_ours for f in found if f.over_ours]
            if over and contestant not in (OURS, TUNED, GEMM):
                low, high = (float(np.percentile(over, p)) for p in (20, 80))
                if len(found) == 1:  # Of one alone, it is the spread of its repeats.
                    low, high = found[0].over_ours_p20 or low, found[0].over_ours_p80 or high
                bars.append(Bar(contestant, threads, dtype, low, geometric_mean(over), high))
    return bars


def _file_name(network: str) -> str:
    """Return a part of a file's name that is different for every network."""
    return quote(network, safe="").replace("%", "_") or "others"


# --- Drawing ------------------------------------------------------------------------------------


def _style(results: Results, contestant: str) -> tuple[str, str]:
    """Return the colour and the marker of a contestant."""
    styles = {name: (each.colour, each.marker) for name, each in KNOWN.items() if each.colour}
    if contestant in styles:
        return styles[contestant]
    others = [name for name in results.contestants if name not in styles]
    return _OTHERS[others.index(contestant) % len(_OTHERS)], "8"


def _speed(results: Results, subject: Subject, threads: int, contestant: str) -> float | None:
    found = results.of(subject, threads, contestant)
    return found.over_im2col if found else None


def _figure(height: float) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _over_layers(
    subjects: Sequence[Subject], legend_rows: int, *, full_names: bool = False
) -> tuple["Figure", "Axes"]:
    """Return axes with a line for each layer, the first one at the top."""
    figure, axes = _figure(_ROW * len(subjects) + 0.25 * legend_rows + 0.8)
    names = [s.name if full_names else s.layer or s.name for s in subjects]
    axes.set_yticks(range(len(subjects)), names)
    axes.set_ylim(len(subjects) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _legend(figure: "Figure", count: int) -> None:
    figure.legend(
        loc="outside upper left", ncols=min(5, max(1, count)), frameon=False, fontsize="small"
    )


def _marks(
    axes: "Axes",
    results: Results,
    contestant: str,
    found: Sequence["_Mark"],
    *,
    clip_on: bool = True,
) -> None:
    """Draw the marks of a contestant, ours above all others, with their spreads."""
    colour, marker = _style(results, contestant)
    own = contestant == OURS
    if spread := [mark for mark in found if mark.low < mark.high]:
        axes.hlines(
            [mark.place for mark in spread],
            [mark.low for mark in spread],
            [mark.high for mark in spread],
            color=colour,
            linewidth=1.6 if own else 0.9,
            alpha=0.7,
            zorder=2.5,
            clip_on=clip_on,
        )
    axes.scatter(
        [mark.middle for mark in found],
        [mark.place for mark in found],
        s=46 if own else 26,
        c=colour,
        marker=marker,
        label=contestant,
        zorder=4 if own else 3,
        edgecolors="white",
        linewidths=0.4,
        clip_on=clip_on,
    )


class _Mark(NamedTuple):
    """A value beside a layer, with p20 and p80 of its repeats; these are equal if it has none."""

    low: float
    middle: float
    high: float
    place: int


def _by_layer(
    results: Results,
    subjects: Sequence[Subject],
    threads: int,
    value: Callable[[Figures], tuple[float, float, float] | None],
) -> dict[str, list[_Mark]]:
    """Return, for each contestant that has some, values and the places of their layers."""
    points: dict[str, list[_Mark]] = {}
    for contestant in results.contestants:
        for place, subject in enumerate(subjects):
            found = results.of(subject, threads, contestant)
            if found and (values := value(found)) is not None:
                points.setdefault(contestant, []).append(_Mark(*values, place))
    return points


def _speeds(found: Figures) -> tuple[float, float, float] | None:
    """Return the speed over im2col + SGEMM, between its p20 and p80."""
    if not found.over_im2col:
        return None
    values = found.over_im2col_p20, found.over_im2col, found.over_im2col_p80
    low, middle, high = (max(_LEAST_SPEED, value or 0) for value in values)
    return low, middle, high


def _limits(found: Figures) -> tuple[float, float, float] | None:
    """Return the part of the limit, between its p20 and p80."""
    if not found.of_limit or not found.all_products:
        return None
    values = found.of_limit_p20, found.of_limit, found.of_limit_p80
    low, middle, high = (min(_BEYOND, value or 0) for value in values)
    return low, middle, high


def _draw_overview(results: Results) -> "Figure":
    kinds = {"layers": overview(results), "networks": overview(results, "network")}
    shown = [(kind, bar) for kind, bars in kinds.items() for bar in bars]
    figure, axes = _figure(0.27 * len(shown) + 0.9)
    both = all(kinds.values())
    several = len({bar.dtype for _, bar in shown}) > 1
    for place, (_, bar) in enumerate(shown):
        axes.barh(place, bar.middle, 0.7, color=_style(results, bar.contestant)[0], alpha=0.75)
        axes.hlines(place, bar.low, bar.high, color="black", linewidth=1.2)
        end = max(bar.middle, bar.high)
        axes.annotate(
            f"{bar.middle:.2f}", (end, place), (4, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(
        range(len(shown)),
        [
            ", ".join(
                [bar.contestant]
                + ([f"{bar.threads} threads"] if bar.threads > 1 else [])
                + ([bar.dtype] if several else [])
                + ([kind] if both else [])
            )
            for kind, bar in shown
        ],
    )
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.axvline(1, color=KNOWN[OURS].colour, linewidth=2)
    axes.set_xlim(0, 1.1 * max(1.0, *(max(bar.middle, bar.high) for _, bar in shown)))
    axes.set_xlabel("time over ours (red line)")
    return figure


def _draw_fig1(results: Results, subjects: Sequence[Subject], threads: int) -> "Figure":
    figure, axes = _figure(3.6)
    shown = [name for name in (IM2COL, GEMM, OURS) if name in results.contestants]
    width = 0.8 / len(shown)
    for number, name in enumerate(shown):
        marks = [
            _Mark(*speeds, place)
            for place, subject in enumerate(subjects)
            if (found := results.of(subject, threads, name)) and (speeds := _speeds(found))
        ]
        places = [mark.place + (number - (len(shown) - 1) / 2) * width for mark in marks]
        bars = axes.bar(
            places,
            [mark.middle for mark in marks],
            width,
            color=_style(results, name)[0],
            label=name,
        )
        axes.vlines(
            places, [mark.low for mark in marks], [mark.high for mark in marks], "k", linewidth=1
        )
        axes.bar_label(bars, fmt="%.2f", fontsize="small", padding=3)
    axes.set_xticks(range(len(subjects)), [s.layer for s in subjects])
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("speed over im2col + SGEMM")
    _legend(figure, len(shown))
    return figure


def _draw_speedup(results: Results, subjects: Sequence[Subject], threads: int) -> "Figure":
    from matplotlib.ticker import FuncFormatter, NullFormatter

    points = _by_layer(results, subjects, threads, _speeds)
    figure, axes = _over_layers(subjects, -(-len(points) // 5))
    axes.axvline(1, color=_style(results, IM2COL)[0], linewidth=1)
    for contestant, found in points.items():
        _marks(axes, results, contestant, found)
    axes.set_xscale("log", base=2)
    marks = [mark for found in points.values() for mark in found]
    axes.set_xlim(
        min(0.7, 0.95 * min(mark.low for mark in marks)),
        max(2.1, 1.05 * max(mark.high for mark in marks)),
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("speed over im2col + SGEMM (logarithmic)")
    _legend(figure, len(points))
    return figure


def _draw_limit(results: Results, subjects: Sequence[Subject], threads: int) -> "Figure":
    from matplotlib.ticker import PercentFormatter

    points = _by_layer(results, subjects, threads, _limits)
    figure, axes = _over_layers(subjects, -(-len(points) // 5))
    for contestant, found in points.items():
        _marks(axes, results, contestant, found, clip_on=False)
    axes.set_xlim(0, 1)
    axes.set_xticks([i / 10 for i in range(11)])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.spines.right.set_visible(True)
    axes.set_xlabel("speed without products with padding, of the FMA peak")
    _legend(figure, len(points))
    return figure


def _draw_per_core(results: Results, several: Sequence[int]) -> "Figure":
    figure, axes = _figure(4.6)
    drawn = 0
    lowest = highest = 1.0
    for contestant in results.contestants:
        by_threads = {n: results.per_core(contestant, n).values() for n in several}
        means = {n: geometric_mean(found) for n, found in by_threads.items() if found}
        if not means:
            continue
        colour, marker = _style(results, contestant)
        own = contestant == OURS
        axes.vlines(
            list(means),
            *zip(*(np.percentile([*by_threads[n]], (20, 80)) for n in means), strict=True),
            color=colour,
            linewidth=2 if own else 1,
            alpha=0.6,
        )
        axes.plot(
            [1, *means],
            [1, *means.values()],
            color=colour,
            marker=marker,
            markersize=7 if own else 5,
            linewidth=2 if own else 1,
            label=contestant,
            zorder=4 if own else 3,
        )
        drawn += 1
        lowest, highest = min(lowest, *means.values()), max(highest, *means.values())
        if own:
            least = {n: min(found) for n, found in by_threads.items() if found}
            axes.plot(
                [1, *least],
                [1, *least.values()],
                color=colour,
                linestyle=":",
                label=f"{contestant}, least of all layers",
            )
            lowest = min(lowest, *least.values())
            drawn += 1
    axes.set_xticks([1, *several])
    axes.set_ylim(max(0.0, min(0.5, lowest - 0.05)), max(1.02, highest + 0.02))
    axes.set_xlabel("threads")
    axes.set_ylabel("speed per core over that of one thread")
    _legend(figure, drawn)
    return figure


def _draw_roofline(results: Results, threads: int, environment: Mapping[str, Any]) -> "Figure":
    import matplotlib

    figure, axes = _figure(5)
    ours = results.measured(OURS, threads)
    peak = median(f.peak_gflops_p50 or 0 for f in ours)
    places = [intensity(f.about.convolution) for f in ours]
    left, right = min(places) / 2, max(places) * 2
    copied = environment["copy_gb_per_s"].get(str(threads))
    ridge = peak / copied if copied else left
    roof = [min(left, ridge), ridge, right]
    label = f"FMA peak {peak:.1f} GFLOP/s"
    label += f", memory {copied:.1f} GB/s (copying)" if copied else "; memory was not measured"
    axes.plot(
        roof, [min(peak, (copied or peak) * x) if copied else peak for x in roof], "k-", label=label
    )
    shapes = "osDv^<>ph*"
    families = results.families
    # Other colours than those that stand for contestants.
    colours = matplotlib.colormaps["viridis"]
    for number, network in enumerate(families):
        found = [f for f in ours if f.about.network == network]
        if found:
            axes.vlines(
                [intensity(f.about.convolution) for f in found],
                [(f.of_limit_p20 or 0) * (f.peak_gflops_p50 or 0) for f in found],
                [(f.of_limit_p80 or 0) * (f.peak_gflops_p50 or 0) for f in found],
                color=colours(number / len(families)),
                linewidth=1,
                alpha=0.7,
            )
            axes.scatter(
                [intensity(f.about.convolution) for f in found],
                [(f.of_limit or 0) * (f.peak_gflops_p50 or 0) for f in found],
                s=26,
                color=colours(number / len(families)),
                marker=shapes[number % len(shapes)],
                label=network or "other layers",
                edgecolors="white",
                linewidths=0.4,
                zorder=3,
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("FLOP for each byte of input, weights and output")
    axes.set_ylabel("GFLOP/s of ours, without products with padding")
    _legend(figure, 3)
    return figure


def _draw_memory(results: Results, subjects: Sequence[Subject]) -> "Figure":
    threads = results.threads[0]

    def over_own(found: Figures) -> tuple[float, float, float] | None:
        extra = found.row.extra_bytes
        if extra is None:
            return None
        return (extra / own_bytes(found.about.convolution),) * 3  # Counted once: no spread.

    points = _by_layer(results, subjects, threads, over_own)
    figure, axes = _over_layers(subjects, -(-(len(points) + 2) // 5))
    formulas: dict[str, tuple[Callable[[Any], int | None], str]] = {
        "im2col matrix (formula)": (
            lambda w: w.im2col_bytes,
            _style(results, IM2COL)[0],
        ),
        "Winograd F(4x4, 3x3) (formula)": (winograd_bytes, _WINOGRAD),
    }
    for number, (label, (size, colour)) in enumerate(formulas.items()):
        bars = [
            (place, extra / own_bytes(s.convolution))
            for place, s in enumerate(subjects)
            if (extra := size(s.convolution)) is not None
        ]
        if bars:
            height = 0.36
            axes.barh(
                [place + (number - 0.5) * height for place, _ in bars],
                [x for _, x in bars],
                height,
                color=colour,
                alpha=0.45,
                label=label,
            )
    for contestant, found in points.items():
        _marks(axes, results, contestant, found, clip_on=False)
    axes.set_xlim(left=0)
    axes.set_xlabel("extra bytes over those of input, weights and output")
    _legend(figure, len(points) + len(formulas))
    return figure


def _draw_tuned(tuned: Sequence[Figures]) -> "Figure":
    figure, axes = _over_layers([f.about for f in tuned], 0, full_names=True)
    # Times of the tuned over ours: what is drawn is the inverse.
    speeds = [1 / (f.over_ours or 1) for f in tuned]
    ends = [(1 / (f.over_ours_p80 or 1), 1 / (f.over_ours_p20 or 1)) for f in tuned]
    places = range(len(tuned))
    axes.axvline(1, color=KNOWN[OURS].colour, linewidth=1)
    axes.hlines(places, *zip(*ends, strict=True), color=KNOWN[TUNED].colour, linewidth=1.5)
    axes.plot(speeds, places, KNOWN[TUNED].marker, color=KNOWN[TUNED].colour, markersize=4)
    axes.set_xlabel("speed of the tuned over the model's choice")
    return figure


def _draw_compiling(results: Results) -> "Figure":
    taken = {}
    for contestant in results.contestants:
        seconds = [s for f in results.by(contestant) if (s := f.row.compile_seconds)]
        if seconds:
            taken[contestant] = seconds
    figure, axes = _figure(0.4 * len(taken) + 0.8)
    for place, (contestant, seconds) in enumerate(taken.items()):
        # Spread by their order, so that equal ones are seen.
        spread = [place + 0.3 * ((number * 0.618) % 1 - 0.5) for number in range(len(seconds))]
        axes.scatter(seconds, spread, s=12, c=_style(results, contestant)[0], linewidths=0)
        axes.plot([median(seconds)] * 2, [place - 0.35, place + 0.35], "k-", linewidth=1.5)
    axes.set_xscale("log", subs=[2, 5])
    axes.set_yticks(range(len(taken)), list(taken))
    axes.set_ylim(len(taken) - 0.5, -0.5)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("seconds (logarithmic)")
    return figure
