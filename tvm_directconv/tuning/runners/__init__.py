"""Where candidates run: on this machine, on boards over RPC or a command, or in llvm-mca.

A runner knows nothing of the search. It gets libraries, checks their results and compares them
with the incumbent, and returns a failure where it cannot: a candidate that crashes, hangs or
computes nonsense must never cost more than its own trial.
"""

from pathlib import Path
from typing import Protocol

from ...bench.compare import Comparison, Failure

TIME_LIMIT = 120.0
"""Seconds for one step of a candidate: slow boards need some for a large layer."""


class Runner(Protocol):
    """Measures candidates.

    Attributes
    ----------
    measured_by : str
        ``local``, ``rpc``, ``runner`` or ``llvm-mca``, as it stands in the log.
    suffix : str
        What is to be exported for it: ``.so``, or ``.s`` for the assembly.
    slots : int
        How many candidates may be measured at once, each on hardware of its own.
    cpu, cpu_name, cpu_device : str or None
        What measures, as it stands in the log; see :class:`tvm_directconv.logs.record.Record`.
        Known when the first measurement is.
    """

    measured_by: str
    suffix: str
    slots: int
    cpu: str | None
    cpu_name: str | None
    cpu_device: str | None

    def measure(
        self, candidate: Path, incumbent: Path | None, repeats: int, thorough: bool = False
    ) -> Comparison | Failure:
        """Check a candidate's result, then compare it with the incumbent.

        Parameters
        ----------
        candidate, incumbent : Path
            Exported files, each with its manifest beside it (``NAME.json``), both of the same
            workload. The manifest says how arrays are packed. No incumbent for the first.
        repeats : int
            The most repeats; clearly slower candidates get fewer.
        thorough : bool
            Whether to make all of them.

        Returns
        -------
        Comparison or Failure
        """

    def close(self) -> None:
        """Let go of processes, sessions and files."""
