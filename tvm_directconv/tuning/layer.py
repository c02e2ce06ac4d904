"""A layer that is being tuned: what is known of it, and what it might still gain."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from ..logs.record import Record
from ..workload import ConvWorkload
from .search import FAILED, Search
from .space import Space

ROUND = 16
"""Points that are asked for, built and measured before the search learns."""

_LEAST_LEFT = 0.02  # of a layer's time: padding lets some pass the peak, and still gain.


@dataclass
class Layer:
    """One convolution that is being tuned.

    Attributes
    ----------
    space : Space
        What is searched, and for which case.
    records : dict of int to Record
        What is known of the space's points, from the log and from trials.
    resumed : int
        How many of them were in the log already.
    trials : int
        Points tried since.
    failures : int
        Those of `trials` that came to nothing.
    best : int or None
        The fastest point so far.
    history : list of float
        Speed of the best over the model's choice, after each trial.
    tried : list of float or None
        Speed of each trial over the model's choice; None if it came to nothing.
    chosen : Record or None
        What the tuner decided for in the end.
    problem : str or None
        Why the layer could not be tuned.
    over : bool
        Whether the tuner has ended.
    """

    space: Space
    records: dict[int, Record] = field(default_factory=dict)
    resumed: int = 0
    trials: int = 0
    failures: int = 0
    best: int | None = None
    history: list[float] = field(default_factory=list)
    tried: list[float | None] = field(default_factory=list)
    chosen: Record | None = None
    problem: str | None = None
    over: bool = False
    # What the tuner needs to go on.
    search: Search | None = None
    libraries: dict[int, Path] = field(default_factory=dict)
    since_gain: int = 0
    exhausted: bool = False
    trial_seconds: float = 0.0  # The longest trial, by the clock on the wall.

    @property
    def workload(self) -> ConvWorkload:
        """What is convolved."""
        return self.space.case.workload

    @property
    def name(self) -> str:
        """What people call it."""
        return self.workload.name or str(self.workload)

    @property
    def record(self) -> Record | None:
        """The best that is known: what was chosen, before that the fastest."""
        return self.chosen or (None if self.best is None else self.records[self.best])

    @property
    def gain(self) -> float:
        """Speed of the best over that of the model's choice; 1 before anything is known."""
        return (self.record.over_model or 1.0) if self.record else 1.0

    @property
    def stayed(self) -> bool:
        """Whether it was decided for the model's choice."""
        return self.chosen is not None and self.chosen.blocking == self.space.points[0]

    @property
    def after(self) -> float | None:
        """Seconds in a run of the network with what was chosen; None if that is not known."""
        seconds = self.chosen.seconds_p50 if self.chosen else None
        return None if seconds is None else seconds * self.workload.count

    @property
    def before(self) -> float | None:
        """The same with the model's choice, by the ratio that was measured in turns."""
        return None if self.after is None else self.after * self.gain

    @property
    def disturbed(self) -> str | None:
        """Why the measurement of the best cannot be believed."""
        return self.record.disturbed if self.record else None

    @property
    def state(self) -> str:
        """How far it is, in words."""
        if self.problem:
            return f"failed: {self.problem}"
        if self.chosen:
            return "decided"
        if self.over:
            return "not decided" if self.records else "not begun"
        if self.search is None:
            return "waiting"
        return "nothing left to gain" if self.exhausted else "searching"

    @property
    def potential(self) -> float:
        """Seconds of a whole network that further trials might save; shrinks in vain."""
        if self.search is None or self.best is None:
            return math.inf
        record = self.records[self.best]
        assert record.seconds_p50
        # Where the peak is not known, half of it: as good as any other for all layers.
        left = max(_LEAST_LEFT, 1 - (record.of_peak or 0.5))
        return self.workload.count * record.seconds_p50 * left / (1 + self.since_gain / ROUND)

    def add(self, point: int, record: Record) -> None:
        """Take in what is known of a point; the latest counts."""
        self.records[point] = record
        good = [number for number, known in self.records.items() if known.status == "ok"]
        self.best = min(good, key=lambda number: cost(self.records[number]), default=None)


def cost(record: Record) -> float:
    """Return the seconds of a record in units of the model's choice."""
    return 1 / record.over_model if record.over_model else FAILED
