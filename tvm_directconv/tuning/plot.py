"""How fast tuning got where it got: every trial, and the best so far."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from .. import files
from ..errors import TuningError
from .layer import Layer

_SUFFIXES = (".svg", ".png", ".pdf")


def check(path: str | Path) -> None:
    """Raise if nothing can be drawn there: better before tuning than after it.

    Raises
    ------
    TuningError
        With the reason.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise TuningError(
            f"cannot draw {str(path)!r}: expected a name ending in {', '.join(_SUFFIXES)}"
        )
    if not path.parent.is_dir():
        raise TuningError(f"cannot draw {str(path)!r}: the folder does not exist, make it first")
    if find_spec("matplotlib") is None:
        raise TuningError(
            "drawing needs matplotlib, which is not installed: pip install 'tvm-directconv[plot]'"
        )


def draw(layers: Sequence[Layer], path: str | Path) -> None:
    """Draw a line for each layer, and a mark for each of its trials.

    Parameters
    ----------
    layers : sequence of Layer
        After tuning. The last point of a line is what was confirmed in the end, which is lower
        where noise had made the best look better than it is.
    path : str or Path
        Where to; :func:`check` says what is possible.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    slowest = min((over for layer in layers for over in layer.tried if over), default=1.0)
    for layer in layers:
        if layer.history:
            (line,) = axes.step(
                range(1, len(layer.history) + 1), layer.history, where="post", label=layer.name
            )
            axes.plot(len(layer.history), layer.gain, "o", color=line.get_color())
            for marker, failed in ((".", False), ("x", True)):
                trials = [
                    (number, over or slowest)
                    for number, over in enumerate(layer.tried, start=1)
                    if (over is None) == failed
                ]
                axes.scatter(
                    [number for number, _ in trials],
                    [over for _, over in trials],
                    s=14,
                    marker=marker,
                    color=line.get_color(),
                    alpha=0.6,
                )
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("trials")
    axes.set_ylabel(
        "speed over the model's choice\n(small dots: trials, crosses: failed, large dot: confirmed)"
    )
    axes.legend(fontsize="small", ncols=1 + len(layers) // 16)
    with files.explained(path, TuningError), files.draft_of(path) as draft:
        figure.savefig(draft)
