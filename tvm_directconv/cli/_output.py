"""Rows of results as a table, JSON, CSV or Markdown."""

import argparse
import csv
import io
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from .. import files
from ..errors import DirectConvError
from ..kinds import printable

Row = Mapping[str, object]

_FORMATS = ("table", "json", "csv", "markdown")
_NUMBER = re.compile(r"[-+.\de,]*%?")
_NARROWEST = 12
_UNLIMITED = 1_000_000


def add_format(parser: argparse.ArgumentParser, forms: Sequence[str] = _FORMATS) -> None:
    """Add ``--format``, the first of these by default."""
    parser.add_argument("--format", choices=forms, default=forms[0], help=f"default: {forms[0]}")


def for_people(form: str) -> bool:
    """Return whether people read this format, rather than programs."""
    return form in ("table", "markdown")


def render(rows: Sequence[Row], form: str, people: Sequence[Row] | None = None) -> str:
    """Return rows as text.

    Parameters
    ----------
    rows : sequence of mapping
        At least one; all with the same keys.
    form : str
        ``table``, ``json``, ``csv`` or ``markdown``.
    people : sequence of mapping, optional
        The same for people's eyes: these are the rows of tables and Markdown, with their keys as
        headings. `rows` if not given.

    Returns
    -------
    str
        Without a newline at its end.
    """
    if form == "json":
        return json.dumps(rows, indent=2, allow_nan=False)
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([_plain(value) for value in row.values()] for row in rows)
        return text.getvalue().rstrip("\n")
    shown = rows if people is None else people
    headings = list(shown[0])
    cells = [[_cell(value) for value in row.values()] for row in shown]
    # Numbers stand below each other.
    right = [all(map(_NUMBER.fullmatch, column)) for column in zip(*cells, strict=True)]
    return (_markdown if form == "markdown" else _table)(headings, cells, right)


class Lines:
    """A table whose lines are printed as they come, so that widths have to be known ahead.

    Parameters
    ----------
    widths : mapping of str to int
        Least widths of columns by their headings, negative where cells stand to the left. Other
        columns are as wide as their heading, and a cell that is wider takes what it needs.
    """

    def __init__(self, widths: Mapping[str, int]) -> None:
        self._widths = widths

    def head(self, row: Row) -> str:
        """Return the headings of rows with these keys."""
        return self.line({heading: heading for heading in row})

    def line(self, row: Row) -> str:
        """Return a line of the table."""
        cells = []
        for heading, value in row.items():
            width = self._widths.get(heading, len(heading))
            side = "<" if width < 0 else ">"
            cells.append(f"{_cell(value):{side}{max(abs(width), len(heading))}}")
        return "  ".join(cells).rstrip()


def as_json(values: object) -> str:
    """Return values as JSON has them; there is null for numbers that it does not have."""
    return json.dumps(_finite(values), indent=2, allow_nan=False)


def _finite(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def write(text: str, output: str | None = None) -> None:
    """Write text and a newline to a file, or print it.

    Raises
    ------
    DirectConvError
        If the file cannot be written.
    """
    if output is None:
        print(text)
    else:
        with files.explained(output, DirectConvError):
            files.write(output, text + "\n")


def save(output: str, write_to: Callable[[IO[bytes]], object]) -> None:
    """Write a file by what writes to an open one, such as numpy.save, whatever its name ends in.

    Raises
    ------
    DirectConvError
        If the file cannot be written.
    """
    with (
        files.explained(output, DirectConvError),
        files.draft_of(output) as draft,
        open(draft, "wb") as file,
    ):
        write_to(file)


_quiet = False


def be_quiet(quiet: bool) -> None:
    """Decide whether :func:`note` and :func:`status_line` print anything; by default they do."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Return whether only results and errors are printed."""
    return _quiet


def note(text: str) -> None:
    """Tell on stderr what is no result."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


def status_line(text: str) -> None:
    """Rewrite the line that tells on a terminal what is going on; nothing to remove it."""
    # By hand: rich would redraw it in a thread, beside what may be a measurement.
    if sys.stderr.isatty() and not _quiet:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def time_of(seconds: float) -> str:
    """Return a time as people write it: ``2 min 10 s``, ``4.2 s``, ``18.6 ms``."""
    if seconds < 59.95:
        for size, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if seconds >= size * 0.9995:
                return f"{seconds / size:.3g} {unit}"
        return f"{seconds / 1e-9:.3g} ns" if seconds else "0 s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else rest, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def check_writable(output: str) -> None:
    """Raise if a file cannot be written: better before a long measurement than after it.

    Raises
    ------
    DirectConvError
        With the reason.
    """
    with files.explained(output, DirectConvError):
        files.check_writable(output)


def _plain(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else printable(str(_plain(value)))


def _markdown(headings: list[str], cells: list[list[str]], right: list[bool]) -> str:
    rules = ["---:" if number else "---" for number in right]
    lines = [headings, rules, *([cell.replace("|", r"\|") for cell in row] for row in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _table(headings: list[str], cells: list[list[str]], right: list[bool]) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    on_terminal = sys.stdout.isatty()
    table = Table(box=SIMPLE_HEAD if on_terminal else None, show_edge=False, pad_edge=False)
    for heading, number in zip(headings, right, strict=True):
        # Folding loses nothing, where rich's default would put an ellipsis.
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    text = io.StringIO()
    # Columns that a narrow terminal has no room for would be cut off: better that it wraps lines.
    least = _NARROWEST * len(headings)
    width = max(shutil.get_terminal_size().columns, least) if on_terminal else _UNLIMITED
    Console(
        file=text, width=width, markup=False, emoji=False, highlight=False, color_system=None
    ).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
