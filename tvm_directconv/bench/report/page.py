"""The report for people: one content, as Markdown and as a page of HTML that needs nothing else."""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np

from ... import files
from ...errors import ReportError
from ..disturbance import left_out
from ..rivals.contestants import CHOOSING
from ..rivals.ours import TUNED
from ..rivals.rounds import IMAGES, NETWORK_TOLERANCE, UNRELATED
from . import environment
from .figures import AHEAD, Figures, Results, mean
from .measuring import ENVIRONMENT, ROWS
from .plots import Plot, overview, plots
from .rows import OURS, Row, Subject, read

_NOTES = (
    "All ratios are medians, over the repeats, of times that were measured in turns, next to each "
    "other: what slows the machine down for a while slows both down.",
    "Of peak: nominal operations, products with padding included, over the time and over the speed "
    "of a burst of multiply-adds on as many threads beside it. Of limit: the same without products "
    "with padding, which need not be computed, so 100 % is the end. Winograd's algorithm and FFT "
    "need fewer products, so that this is no limit for them.",
    "Over ours: a contestant's time over ours. Above 1, ours is faster.",
    "Means are geometric, over different layers. Lines on dots and bars go from p20 to p80.",
    "Disturbed: the bursts beside it were much slower than the clock allows, it is above its "
    "limit, or its repeats differ too much. What was disturbed, or stands beside ours that was, is "
    "not part of means.",
)
_NETWORKS = (
    "Type: what ours computes in, and others unless they are called 'defaults', which choose by "
    "themselves as for their users. Computed in: what convolutions and dense layers were, where a "
    "library or its error tells. Error: against float32, the root mean square over that of the "
    f"outputs, of {IMAGES} images. Agreement: of how many of them the largest output is the same. "
    "Wrong, and not in the table, is what has an error above "
    + ", ".join(f"{bar:g} ({dtype})" for dtype, bar in NETWORK_TOLERANCE.items())
    + f", or above {UNRELATED:g} in what outputs differ from image to image."
)
_AGAIN = "What is in the folder is not measured again: give a new one."


@dataclass(frozen=True)
class _Heading:
    level: int
    text: str


@dataclass(frozen=True)
class _Text:
    text: str


@dataclass(frozen=True)
class _List:
    items: Sequence[str]


@dataclass(frozen=True)
class _Table:
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class _Drawing:
    name: str
    plot: Plot


_Block = _Heading | _Text | _List | _Table | _Drawing


def write(folder: Path) -> Results:
    """Write report.md, report.html, rows.csv and the plots of a folder with rows.

    Parameters
    ----------
    folder : Path
        With rows and their environment.

    Returns
    -------
    Results
        What was written.

    Raises
    ------
    ReportError
        If there are no rows, something there is damaged, or nothing can be written.
    """
    rows = read(folder / ROWS)
    where = environment.read(folder / ENVIRONMENT)
    if not rows or where is None:
        raise ReportError(
            f"{str(folder)!r} has no {ENVIRONMENT if rows else ROWS}: expected a folder that "
            "'tvm-directconv report' has measured into"
        )
    results = Results(rows)
    drawn = plots(results, where)
    content = _content(results, where, drawn)
    texts = {
        "report.md": _markdown(content),
        "report.html": _html(content),
        "rows.csv": table(results),
        **{f"{name}.svg": plot.svg for name, plot in drawn.items()},
    }
    with files.explained(folder, ReportError, into=True), files.scratch(folder) as scratch:
        for name, text in texts.items():
            (scratch / name).write_text(text, encoding="utf-8")
        files.place({scratch / name: folder / name for name in texts})
    return results


def table(results: Results) -> str:
    """Return all figures as CSV, raw ones first; lists become several numbers in one cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    raw = [f.name for f in fields(Row)]
    derived = [f.name for f in fields(Figures) if f.name != "row"]
    writer.writerow([*raw, *derived])
    for found in results.figures:
        values = asdict(found.row) | {name: getattr(found, name) for name in derived}
        writer.writerow([_plain(values[name]) for name in (*raw, *derived)])
    return text.getvalue()


def _plain(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


# --- What a report says -------------------------------------------------------------------------


def _content(results: Results, where: Mapping[str, Any], drawn: Mapping[str, Plot]) -> list[_Block]:
    def of_section(section: str, title: str) -> list[_Block]:
        found = [_Drawing(name, plot) for name, plot in drawn.items() if plot.section == section]
        return [_Heading(2, title), *found] if found else []

    content: list[_Block] = [_Heading(1, "Direct convolutions, measured")]
    content += [_Text(_answer(results, where))]
    content += [_Drawing(name, plot) for name, plot in drawn.items() if plot.section == "answer"]
    content.append(_List(_NOTES))
    if results.layers:
        content.append(_Heading(2, "Summary"))
        for threads in results.threads:
            content += _summary(results, threads)
        content += _per_core(results)
    content += _contestants(results)
    content += of_section("paper", "The paper's experiments")
    content += of_section("limit", "How far from the limit")
    content += of_section("memory", "Memory")
    content += of_section("tuning", "The model's choice and tuned block sizes")
    content += of_section("compiling", "Getting ready")
    content += _networks(results)
    for threads in results.threads:
        content += _layers(results, threads)
    content += [_Heading(2, "Environment"), _environment(results, where)]
    return content


def _answer(results: Results, where: Mapping[str, Any]) -> str:
    """Return in a sentence what everything else says in detail."""
    threads = results.threads[0]
    parts = []
    if ours := results.sound(OURS, threads):
        layers = f"{len(ours)} different layer{'s' if len(ours) > 1 else ''}"
        parts.append(
            f"our layers reach {_percent(mean(ours, lambda f: f.of_limit))} of the limit that the "
            f"processor sets (mean of {layers})"
        )
    for kind in ("layer", "network"):
        bars = [bar for bar in overview(results, kind) if bar.threads == threads]
        for dtype in dict.fromkeys(bar.dtype for bar in bars):
            fastest = min((b for b in bars if b.dtype == dtype), key=lambda bar: bar.middle)
            kinds = f"{kind}s" + (f" in {dtype}" if dtype != "float32" else "")
            parts.append(
                f"for {kinds}, {fastest.contestant} is the fastest of the other libraries and "
                f"takes {fastest.middle:.2f} times our time"
            )
    if not parts:
        return "Nothing was measured that can be believed."
    return f"On {where['cpu_name']} with {_threads(threads)}, {'; '.join(parts)}."


def _environment(results: Results, where: Mapping[str, Any]) -> _Table:
    peaks = [
        (
            f"FMA peak, {_threads(n)}",
            _spread(
                [p for row in results.rows if row.threads == n for p in row.peak_gflops],
                lambda p: f"{p:.1f}",
            )
            + " GFLOP/s (median, p20 to p80)",
        )
        for n in results.threads
    ]
    copied = [
        (f"copying memory, {_threads(int(n))}", f"{speed:.1f} GB/s read and written")
        for n, speed in where["copy_gb_per_s"].items()
    ]
    caches = [
        f"{level.upper()} {size / 1024:.0f} KiB" for level, size in where["caches"].items() if size
    ]
    repeats = sorted({len(row.seconds) for row in results.rows if row.seconds})
    dates = sorted(row.date[:10] for row in results.rows)
    pinned = {
        f"{_threads(*run['threads'])}: cores {', '.join(map(str, run['cpus']))}": None
        for run in where["runs"]
        if run["cpus"]
    }
    libraries = dict.fromkeys(
        name for c in results.contestants for f in results.by(c) if (name := f.row.library)
    )
    facts = [
        ("processor", f"{where['cpu_name']} ({where['cpu']})"),
        ("device", where["device"]),
        ("cores", str(where["cores"])),
        ("caches for one core", ", ".join(caches)),
        *peaks,
        *copied,
        ("system", where["system"]),
        (
            "versions",
            ", ".join(
                [f"Python {where['python']}"]
                + [f"{name} {version}" for name, version in where["versions"].items()]
            ),
        ),
        ("libraries", ", ".join(libraries)),
        ("threads", ", ".join(map(str, results.threads))),
        ("repeats", ", ".join(map(str, repeats))),
        ("could run on", "; ".join(pinned)),
        ("date", " to ".join(dict.fromkeys((dates[0], dates[-1])))),
    ]
    return _Table(("environment", ""), [fact for fact in facts if fact[1]])


def _scopes(results: Results) -> dict[str, list[Subject]]:
    """Return by heading the layers that means are taken over."""
    scopes = {network or "other layers": results.distinct(network) for network in results.families}
    everything = results.distinct()
    if len(scopes) > 1:
        scopes["all"] = everything
    plain = _plain_layers(results)
    if len(plain) not in (0, len(everything)):
        scopes["all without groups"] = plain
    return scopes


def _plain_layers(results: Results) -> list[Subject]:
    """Return the different layers without groups: im2col makes little sense for others."""
    return [s for s in results.distinct() if s.convolution.groups == 1]


def _summary(results: Results, threads: int) -> list[_Block]:
    names = [name for name in results.contestants if results.measured(name, threads)]
    if not names:
        return []
    scopes = _scopes(results)
    speeds = [
        [
            _of_library(results, name),
            *(
                _mean_speed(results.sound(name, threads, layers), len(layers))
                for layers in scopes.values()
            ),
        ]
        for name in names
    ]
    over = [
        [
            name,
            *(
                _number(mean(results.sound(name, threads, layers), lambda f: f.over_ours))
                for layers in scopes.values()
            ),
        ]
        for name in names
        if name != OURS
    ]
    best = [results.best_rivals(threads, layers) for layers in scopes.values()]
    if any(best):
        name = "the best rival on each layer"
        both = zip(best, scopes.values(), strict=True)
        speeds.append([name, *(_mean_speed(found, len(layers)) for found, layers in both)])
        over.append([name, *(_number(mean(found, lambda f: f.over_ours)) for found in best)])
    content: list[_Block] = [
        _Heading(3, _threads(threads)),
        _Text(
            "Nominal GFLOP/s, and part of the limit. In brackets: of how many layers, if not of "
            "all. The best rival is the one that takes the least time of those that compute the "
            "whole convolution by all its products: without "
            f"{', '.join(CHOOSING)}, which take Winograd's algorithm or FFT where it pays, but "
            "for layers on which they say that they do not."
        ),
        _Table(("", *scopes), speeds),
    ]
    if any(any(cells[1:]) for cells in over):
        content += [
            _Text("Times as long as ours, of the layers that both compute:"),
            _Table(("over ours", *scopes), over),
        ]
    if lines := _in_words(results, threads):
        content.append(_List(lines))
    everything = [f for name in names for f in results.measured(name, threads)]
    if disturbed := sum(bool(f.disturbed) for f in everything):
        content.append(_Text(f"{left_out(disturbed, len(everything))}. {_AGAIN}"))
    if any(best):
        content += _ahead(results, threads)
    return content


def _in_words(results: Results, threads: int) -> list[str]:
    lines = []
    ours = results.sound(OURS, threads, _plain_layers(results))
    if ours:
        least = min(ours, key=lambda f: f.of_limit or 0)
        lines.append(
            f"Ours reaches {_percent(mean(ours, lambda f: f.of_limit))} of the limit "
            f"({_percent(mean(ours, lambda f: f.of_peak))} of the peak) over {len(ours)} different "
            f"layers without groups, at least {_percent(least.of_limit)} ({least.about.name})."
        )
    speedups = [f for f in ours if f.over_im2col]
    if speedups:
        low, high = (choose(speedups, key=lambda f: f.over_im2col or 0) for choose in (min, max))
        lines.append(
            f"Speedup over im2col + SGEMM (OpenBLAS): "
            f"{_number(mean(speedups, lambda f: f.over_im2col))}, from "
            f"{_number(low.over_im2col)} ({low.about.name}) to {_number(high.over_im2col)} "
            f"({high.about.name}), over {len(speedups)} layers."
        )
    return lines


def _ahead(results: Results, threads: int) -> list[_Block]:
    said = f"Rivals that are ahead of ours by more than {AHEAD - 1:.0%}"
    rows = [
        (f.about.name, _of_library(results, f.row.contestant), _number(f.over_ours), _range(f))
        for f in results.ahead(threads)
    ]
    if not rows:
        return [_Text(f"{said}: none on any layer.")]
    return [_Text(f"{said}:"), _Table(("layer", "rival", "over ours", "p20 to p80"), rows)]


def _per_core(results: Results) -> list[_Block]:
    rows = []
    for threads in results.threads:
        for contestant in results.contestants if threads > 1 else ():
            found = results.per_core(contestant, threads)
            if found:
                least = min(found, key=found.__getitem__)
                rows.append(
                    (
                        contestant,
                        str(threads),
                        _number(geometric_mean(found.values())),
                        f"{found[least]:.2f} ({least.name})",
                        str(len(found)),
                    )
                )
    if not rows:
        return []
    return [
        _Heading(3, "Speed per core"),
        _Text(
            "Time on one thread over n times the time on n threads. Where these were not measured "
            "in turns with each other, it is the ratio of their medians."
        ),
        _Table(("", "threads", "geometric mean", "minimum", "layers"), rows),
    ]


def _contestants(results: Results) -> list[_Block]:
    here, reasons = [], []
    for name in results.contestants:
        found = results.by(name)
        measured = [f for f in found if f.seconds_p50]
        rows = [f.row for f in measured]
        if rows:
            extra = [row.extra_bytes for row in rows if row.extra_bytes is not None]
            here.append(
                (
                    name,
                    _several(row.library for row in rows),
                    _several(row.algorithm for row in rows),
                    _several(row.includes for row in rows),
                    _bytes(max(extra)) if extra else "not known",
                    _several(row.implementation for row in rows),
                )
            )
        without: dict[tuple[str, str], list[str]] = {}
        for each in found:
            if each.row.status != "ok":
                key = (each.row.status, each.row.reason or "")
                where = f"{each.about.name} ({_threads(each.row.threads)})"
                without.setdefault(key, []).append(where)
        for (status, reason), places in without.items():
            everywhere = len(places) == len(found)
            reasons.append(
                (
                    name,
                    status.replace("_", " "),
                    "everywhere" if everywhere else _several(places),
                    reason,
                )
            )
    content: list[_Block] = [
        _Heading(2, "Contestants"),
        _Table(
            (
                "",
                "library",
                "algorithm",
                "the time is of",
                "extra memory, at most",
                "implementation",
            ),
            here,
        ),
    ]
    if reasons:
        content += [
            _Text("Not measured:"),
            _Table(("", "status", "where", "reason"), reasons),
        ]
    return content


def _networks(results: Results) -> list[_Block]:
    rows = []
    for subject in results.networks:
        for threads in results.threads:
            for contestant in results.contestants:
                found = results.of(subject, threads, contestant)
                if found and found.seconds_p50:
                    rows.append(
                        (
                            subject.network,
                            subject.dtype,
                            str(threads),
                            contestant,
                            found.row.precision or "",
                            _milliseconds(found),
                            _number(found.over_ours),
                            _range(found),
                            error_of(found.row.rms_error),
                            agreement_of(found.row.agreement),
                            _bytes(found.row.extra_bytes),
                            found.disturbed or "no",
                        )
                    )
    if not rows:
        return []
    headings = (
        "network",
        "type",
        "threads",
        "",
        "computed in",
        "ms",
        "over ours",
        "p20 to p80",
        "error",
        "agreement",
        "extra memory",
        "disturbed",
    )
    return [_Heading(2, "Whole networks"), _Text(_NETWORKS), _Table(headings, rows)]


def _layers(results: Results, threads: int) -> list[_Block]:
    rows = []
    for subject in results.layers:
        ours = results.of(subject, threads, OURS)
        if ours is None or not ours.seconds_p50:
            continue
        tuned = results.of(subject, threads, TUNED)
        rival = results.best_rival(subject, threads)
        rows.append(
            (
                subject.name,
                _milliseconds(ours),
                f"{ours.gflops:.1f}",
                _percent(ours.of_peak),
                _percent(ours.of_limit),
                _number(ours.over_im2col),
                rival.row.contestant if rival else "",
                _number(rival.over_ours) if rival else "",
                _range(rival) if rival else "",
                _number(1 / tuned.over_ours) if tuned and tuned.over_ours else "",
                "" if ours.row.extra_bytes is None else str(ours.row.extra_bytes),
                ours.row.blocking or "",
                ours.disturbed or "no",
            )
        )
    headings = (
        "layer",
        "ms",
        "GFLOP/s",
        "of peak",
        "of limit",
        "over im2col",
        "best rival",
        "its time over ours",
        "p20 to p80",
        "tuned over model",
        "extra bytes",
        "blocking",
        "disturbed",
    )
    if not rows:
        return []
    return [_Heading(2, f"Layers, {_threads(threads)}"), _Table(headings, rows)]


# --- How it says it -----------------------------------------------------------------------------


def _threads(*numbers: int) -> str:
    return f"{', '.join(map(str, numbers))} thread{'s' if numbers != (1,) else ''}"


def _of_library(results: Results, contestant: str) -> str:
    """Return a contestant's name with the version of its library."""
    libraries = {f.row.library for f in results.by(contestant) if f.row.library}
    if contestant in (OURS, TUNED) or len(libraries) != 1:
        return contestant
    (library,) = libraries
    return library if library.startswith(f"{contestant} ") else f"{contestant} ({library})"


def _mean_speed(found: Sequence[Figures], wanted: int) -> str:
    speed = mean(found, lambda f: f.gflops)
    if speed is None:
        return ""
    text = f"{speed:.1f}"
    if all(f.all_products for f in found):
        text += f" ({_percent(mean(found, lambda f: f.of_limit))})"
    return text if len(found) == wanted else f"{text} [{len(found)} of {wanted}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def error_of(value: float | None) -> str:
    """Return an error for people, "" for none."""
    return "" if value is None else f"{value:.1e}"


def agreement_of(value: float | None) -> str:
    """Return an agreement for people, "" for none."""
    return "" if value is None else f"{value * IMAGES:.0f} of {IMAGES}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _milliseconds(found: Figures) -> str:
    return f"{(found.seconds_p50 or 0) * 1e3:.3f}"


def _range(found: Figures) -> str:
    if found.over_ours is None:
        return ""
    return f"{found.over_ours_p20:.3f} to {found.over_ours_p80:.3f}"


def _spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    if not values:
        return "not measured"
    low, high = (float(np.percentile(values, p)) for p in (20, 80))
    return f"{shown(median(values))}, {shown(low)} to {shown(high)}"


def _bytes(count: int | None) -> str:
    if count is None:
        return ""
    for unit, size in (("MB", 10**6), ("KB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes" if count else "0"


_MOST = 4  # of several things in one cell


def _several(values: Any) -> str:
    different = list(dict.fromkeys(filter(None, values)))
    more = len(different) - _MOST
    return "; ".join(different[:_MOST]) + (f"; {more} more" if more > 0 else "")


# --- Markdown -----------------------------------------------------------------------------------

_NUMBER = re.compile(r"[-+.\de,]*%?")


def _is_number(column: Sequence[str]) -> bool:
    return all(map(_NUMBER.fullmatch, column))


def _markdown(content: Sequence[_Block]) -> str:
    return "\n\n".join(map(_markdown_block, content)) + "\n"


def _markdown_block(block: _Block) -> str:
    match block:
        case _Heading(level, text):
            return f"{'#' * level} {text}"
        case _List(items):
            return "\n".join(f"- {_marked(item)}" for item in items)
        case _Drawing(name, plot):
            return (
                f"**{_marked(plot.title)}.** {_marked(plot.caption)}\n\n![{plot.title}]({name}.svg)"
            )
        case _Table(headings, rows):
            columns = zip(*rows, strict=True)
            rules = ["---:" if _is_number(column) else "---" for column in columns]
            lines = [headings, rules, *([_marked(cell) for cell in row] for row in rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case _Text(text):
            return _marked(text)


def _marked(text: str) -> str:
    """Return text in which nothing is taken for Markdown, on one line."""
    return re.sub(r"([\\`*|<\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


# --- HTML ---------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --line: #d0d0d0; --soft: #f4f4f4; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #262626; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; margin: 0.5rem 0 1rem; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { background: var(--soft); text-align: left; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1rem 0 2rem; }
figcaption { margin-bottom: 0.5rem; }
figure > div { background: white; border-radius: 6px; overflow-x: auto; }
figure svg { display: block; margin: 0 auto; max-width: 100%; height: auto; }
"""


def _html(content: Sequence[_Block]) -> str:
    title = next(block.text for block in content if isinstance(block, _Heading))
    body = "\n".join(map(_html_block, content))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1" />\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _html_block(block: _Block) -> str:
    match block:
        case _Heading(level, text):
            return f"<h{level}>{escape(text)}</h{level}>"
        case _List(items):
            return f"<ul>\n{''.join(f'<li>{escape(item)}</li>' for item in items)}\n</ul>"
        case _Drawing(name, plot):
            return (
                f"<figure>\n<figcaption><strong>{escape(plot.title)}.</strong> "
                f"{escape(plot.caption)}</figcaption>\n<div>{_inline(name, plot)}</div>\n</figure>"
            )
        case _Table(headings, rows):
            classes = [
                ' class="number"' if _is_number(column) else ""
                for column in zip(*rows, strict=True)
            ]
            lines = [
                "".join(
                    f"<{tag}{kind}>{escape(cell)}</{tag}>"
                    for kind, cell in zip(classes, row, strict=True)
                )
                for tag, row in [("th", headings), *(("td", row) for row in rows)]
            ]
            cells = "\n".join(f"<tr>{line}</tr>" for line in lines)
            return f'<div class="wide"><table>\n{cells}\n</table></div>'
        case _Text(text):
            return f"<p>{escape(text)}</p>"


def _inline(name: str, plot: Plot) -> str:
    """Return a drawing as an element of a page that has others: with ids of its own."""
    svg = plot.svg[plot.svg.index("<svg") :].strip()
    svg = svg.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "").replace(
        "xlink:href", "href"
    )
    svg = re.sub(r'( id="|url\(#| href="#)', rf"\1{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(plot.title)}" ', 1)
