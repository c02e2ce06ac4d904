"""Which blocking a build takes: the user's, the best of the tuning logs, or the model's."""

from pathlib import Path
from typing import Any

from . import reading
from .blocking import Blocking
from .candidates import choose
from .case import Case
from .errors import BlockingError, did_you_mean, similar_file
from .kinds import printable, shown
from .logs.choice import best
from .tiling import Tiling, tiled


def resolve_blocking(
    blocking: "Blocking | dict[str, Any] | str | Path | None", case: Case
) -> tuple[Tiling, str]:
    """Return a case as it is cut into tiles, and where the block sizes came from.

    Parameters
    ----------
    blocking
        None or ``"auto"`` for the tuning logs, failing that the analytical model; ``"model"`` for
        the model alone; a :class:`Blocking` or its knobs by name; or the path of a JSON file with
        those knobs.
    case : Case
        What they are for.

    Raises
    ------
    BlockingError
        If it is none of these, or cannot be used.
    """
    if blocking is None or blocking == "auto":
        if tuned := best(case):
            found, source = tuned
            return Tiling(case, found), source
        blocking = "model"
    if blocking == "model":
        return Tiling(case, choose(case)), "model"
    source = "user"
    if isinstance(blocking, str | Path):
        # What stands in a manifest, and is printed, has to be text.
        path = str(blocking)
        source = f"file {printable(path)}"
        try:
            blocking = reading.json_object(path)
        except reading.Unreadable as error:
            near = did_you_mean(path, ("auto", "model")) or similar_file(path)
            raise BlockingError(
                f"blocking is {path!r} ({error}): expected 'auto', 'model' or a JSON file of knobs"
                + near
            ) from None
    try:
        if isinstance(blocking, dict):
            blocking = Blocking.from_dict(blocking.get("blocking", blocking))
        if not isinstance(blocking, Blocking):
            raise BlockingError(
                f"blocking is {shown(blocking)}: expected a Blocking, its knobs by name, 'auto', "
                "'model' or a file"
            )
        return tiled(blocking, case), source
    except BlockingError as error:
        raise BlockingError(f"{source}: {error}" if source != "user" else str(error)) from None
