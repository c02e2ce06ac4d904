"""What long commands are doing: live on a terminal; elsewhere, of a tuner, plain lines."""

import contextlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.progress import Progress as RichProgress
from rich.table import Table

from ._output import is_quiet, note, time_of

if TYPE_CHECKING:
    from ..tuning.layer import Layer
    from ..tuning.tune import Tuner

_EVERY = 16  # trials: without a terminal, a line when something happens or so many have passed.


@contextlib.contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on a terminal, nothing elsewhere.

    Yields what moves it, which is told what is done, and how much of it, and how much there is.
    """
    console = Console(stderr=True)
    hidden = is_quiet() or not console.is_terminal
    with RichProgress(console=console, transient=True, disable=hidden) as bars:
        task = bars.add_task("", total=None)

        def show(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        yield show


class Progress:
    """Shows a tuner's layers: trials, the best so far, its gain over the model, the time left.

    A context manager; :meth:`show` is what the tuner calls after each trial.
    """

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._live: Live | None = None
        self._said: dict[str, tuple[object, ...]] = {}
        if console.is_terminal and not is_quiet():
            # Redrawn when a trial has ended, not by a thread: that would run beside the next one.
            self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, tuner: "Tuner") -> None:
        """Show the state of a tuner."""
        if self._live:
            self._live.update(_table(tuner), refresh=True)
            return
        for layer in tuner.layers:
            now = (layer.trials // _EVERY, layer.chosen is not None, layer.problem)
            if (layer.trials or layer.problem) and self._said.get(layer.name) != now:
                self._said[layer.name] = now
                facts = ", ".join(f"{key} {text}" for key, text in _row(layer).items() if text)
                note(f"[{time_of(tuner.seconds)}] {facts}{_left(tuner)}")


def _row(layer: "Layer") -> dict[str, Any]:
    """Return what is known of a layer, for people."""
    record = layer.record
    seconds = record.seconds_p50 if record else None
    return {
        "layer": layer.name,
        "trials": layer.trials + layer.resumed,
        "failed": layer.failures or "",
        "best GFLOP/s": f"{layer.workload.flops / seconds / 1e9:.1f}" if seconds else "",
        "of peak": f"{record.of_peak:.1%}" if record and record.of_peak else "",
        "over the model": f"{layer.gain:.3f}" if record else "",
        "state": layer.state,
    }


def _table(tuner: "Tuner") -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.caption = f"{time_of(tuner.seconds)}{_left(tuner)}; log {tuner.log}"
    rows = [_row(layer) for layer in tuner.layers]
    for heading in rows[0]:
        words = heading in ("layer", "state")
        table.add_column(heading, justify="left" if words else "right", overflow="fold")
    for cells in rows:
        table.add_row(*map(str, cells.values()))
    return table


def _left(tuner: "Tuner") -> str:
    left = tuner.seconds_left
    return "" if left is None else f", about {time_of(left)} left"
