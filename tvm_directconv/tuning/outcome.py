"""What tuning has gained: of each network, and what became of its layers and trials."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean

from ..bench.disturbance import left_out
from .layer import Layer

_MOST_FAILURES = 5  # kinds of them that are said
_MOST_LETTERS = 120  # of a message


@dataclass(frozen=True)
class Gain:
    """What tuning has gained for layers together, each as often as it occurs.

    Attributes
    ----------
    network : str
        Whose they are, "" for layers of none.
    before, after : float
        Seconds of one run with the model's block sizes, and with those that were chosen. Of layers
        that were decided and not disturbed; 0 if there are none.
    mean : float or None
        Geometric mean of the speed over that of the model's choice, over different layers.
    counted : int
        Different layers that these figures are of.
    stayed : int
        Those of them for which the model's choice stayed.
    disturbed : int
        Layers that were left out since their measurement was disturbed.
    undecided : int
        Layers that were left out since there was no time for them, or they could not be measured.
    """

    network: str
    before: float
    after: float
    mean: float | None
    counted: int
    stayed: int
    disturbed: int
    undecided: int


@dataclass(frozen=True)
class Outcome:
    """What :func:`tvm_directconv.tune` returns.

    Attributes
    ----------
    layers : list of Layer
        What was tuned, each with the record that was chosen; None if there was none.
    log : Path
        Where all measurements are.
    """

    layers: Sequence[Layer]
    log: Path

    @property
    def gains(self) -> list[Gain]:
        """What was gained, by network."""
        networks: dict[str, list[Layer]] = {}
        for layer in self.layers:
            networks.setdefault(layer.workload.network, []).append(layer)
        return [_gain(network, layers) for network, layers in networks.items()]

    def lines(self) -> list[str]:
        """Say it in words."""
        said = [_in_words(gain) for gain in self.gains]
        stayed = [layer.name for layer in self.layers if layer.stayed]
        if stayed:
            said.append(f"the model's choice stayed: {', '.join(stayed)}")
        for state in ("not begun", "not decided"):
            if names := [layer.name for layer in self.layers if layer.state == state]:
                said.append(f"{state}, as the time was over: {', '.join(names)}")
        said += _failures(self.layers)
        decided = [layer for layer in self.layers if layer.chosen]
        if disturbed := sum(layer.disturbed is not None for layer in decided):
            again = "measure what was chosen once more ('tvm-directconv bench --against model')"
            said.append(left_out(disturbed, len(decided), again))
        return said

    def __str__(self) -> str:
        return "\n".join([*self.lines(), f"log: {self.log}"])


def _gain(network: str, layers: Sequence[Layer]) -> Gain:
    decided = [layer for layer in layers if layer.chosen]
    counted = [layer for layer in decided if not layer.disturbed]
    return Gain(
        network=network,
        before=sum(layer.before or 0 for layer in counted),
        after=sum(layer.after or 0 for layer in counted),
        mean=geometric_mean(layer.gain for layer in counted) if counted else None,
        counted=len(counted),
        stayed=sum(layer.stayed for layer in counted),
        disturbed=len(decided) - len(counted),
        undecided=len(layers) - len(decided),
    )


def _in_words(gain: Gain) -> str:
    total = gain.counted + gain.disturbed + gain.undecided
    left = [
        f"{number} {why}"
        for number, why in ((gain.disturbed, "disturbed"), (gain.undecided, "undecided"))
        if number
    ]
    beside = f" (without {' and '.join(left)})" if left else ""
    name = gain.network or "layers of no network"
    if gain.mean is None:
        return f"{name}: no gain is known{beside}"
    times = ""
    if gain.before:
        times = f"{gain.before * 1e3:.4g} ms before, {gain.after * 1e3:.4g} ms after, "
    return (
        f"{name}: {times}geometric mean {gain.mean:.3f} times as fast, over {gain.counted} of "
        f"{total} different layer{'s' if total > 1 else ''}{beside}; the model's choice stayed for "
        f"{gain.stayed}"
    )


def _failures(layers: Sequence[Layer]) -> list[str]:
    """Say how many trials came to nothing, and why."""
    kinds: Counter[str] = Counter()
    for layer in layers:
        for record in layer.records.values():
            if record.status != "ok":
                message = " ".join((record.message or "").split())
                kinds[f"{record.status}: {message}"[:_MOST_LETTERS]] += 1
    if not kinds:
        return []
    said = [f"trials that failed: {kinds.total()}"]
    said += [f"  {number} x {kind}" for kind, number in kinds.most_common(_MOST_FAILURES)]
    if len(kinds) > _MOST_FAILURES:
        said.append("  and others: 'tvm-directconv logs show SPEC --all' has them")
    return said
