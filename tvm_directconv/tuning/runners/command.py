"""Candidates on a board without Python: the C runner, started there by any command."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import ceil, prod
from pathlib import Path
from statistics import median
from typing import Any

from ... import files
from ...bench.compare import Comparison, Failure, compare
from ...conv_manifest import ConvManifest
from ...deploy.runner import (
    RunFailure,
    build_runner,
    last_line,
    read_report,
    runner_arguments,
    tensor_argument,
)
from ...errors import ToolchainError
from ...hardware.device import Device
from ...hardware.host import cpu_of
from ...manifest import manifest_path
from ...toolchain import find_toolchain
from . import TIME_LIMIT
from .problem import differing, problem

# Every run costs a connection, so one has several batches, but fewer if calls are slow.
_BATCHES = 5
_BATCH = 5e-3  # seconds, at least
_RUN = 1.0  # seconds, if one call takes no longer

_PLACEHOLDER = re.compile(r"(?<!\$)\{(\w*)\}")


class CommandRunner:
    """Measures wherever a command can start a program: on a board over ssh, or in an emulator.

    Nothing is needed there but the C library. The runner, libraries and arrays lie in one
    temporary folder, whose path is the same here and there.

    Parameters
    ----------
    device : Device
        What candidates are compiled for.
    command : str
        Starts a program there: ``ssh pi@board {runner}``, or ``qemu-aarch64 -cpu cortex-a72 -L
        /usr/aarch64-linux-gnu {runner}``. ``{runner}`` becomes the runner with its arguments. The
        text is split into words as a shell does it, but no shell runs it: for pipes and the like
        write ``sh -c '...'``. Nothing may ask for a password.
    copy : str, optional
        Brings the folder there: ``rsync -a --delete {folder}/ pi@board:{folder}/``. It is run
        before a run whenever files have changed. If not given, the folder has to be shared, as it
        is with an emulator.
    time_limit : float
        Seconds for each run of either command.

    Raises
    ------
    ToolchainError
        If a template cannot be used, or the runner cannot be compiled for the device or does not
        start: it is tried once, and tells what processor it runs on.
    """

    measured_by = "runner"
    suffix = ".so"
    slots = 1

    def __init__(
        self,
        device: Device,
        command: str,
        copy: str | None = None,
        time_limit: float = TIME_LIMIT,
    ) -> None:
        self._command = _words(command, "runner")
        self._copy = None if copy is None else _words(copy, "folder")
        self._time_limit = time_limit
        # For each library that has run and was right: calls in a batch, batches in a run.
        self._batches: dict[Path, tuple[int, int]] = {}
        program = build_runner(find_toolchain(device.triple))
        self._scratch = contextlib.ExitStack()
        self._folder = self._scratch.enter_context(files.scratch())
        try:
            if shlex.quote(str(self._folder)) != str(self._folder):
                raise ToolchainError(
                    f"the temporary folder is {str(self._folder)!r}, which a shell on the way to a "
                    "board may change: set TMPDIR to a folder of letters and digits"
                )
            self._program = Path(shutil.copy(program, self._folder / "runner"))
            self._changed = True
            try:
                cpu_info = self._run(["--cpu"], ["cpuinfo"])["cpuinfo"]
            except RunFailure as failure:
                raise ToolchainError(
                    f"{command!r} does not start the runner: {failure}. Try this command with "
                    "another program in place of {runner}"
                ) from None
        except BaseException:
            self.close()
            raise
        found = cpu_of(cpu_info, device.triple.split("-")[0])
        self.cpu: str | None = found.id
        self.cpu_name: str | None = found.name
        self.cpu_device: str | None = device.name

    def measure(
        self, candidate: Path, incumbent: Path | None, repeats: int, thorough: bool = False
    ) -> Comparison | Failure:
        """Check a candidate's result, then compare it with the incumbent, one run each by turns.

        The time of a run is the median of its batches. There is no burst of multiply-adds. Every
        run is checked, so what goes wrong only now and then may still be found.
        """
        placed = self._place(candidate)
        rival = self._place(incumbent) if incumbent else None
        self._keep(placed, rival)

        def rival_seconds() -> float:
            assert rival
            try:
                return self._seconds(rival)
            except RunFailure as failure:
                # It has run before, so this is no fault of either library.
                raise RunFailure("rpc_lost", f"the incumbent no longer runs: {failure}") from None

        try:
            return compare(
                lambda: self._seconds(placed),
                rival_seconds if rival else None,
                None,
                placed.manifest.workload.flops,
                repeats,
                thorough=thorough,
            )
        except RunFailure as failure:
            return Failure(failure.kind, str(failure))

    def close(self) -> None:
        """Remove the folder here. The copy on a board stays."""
        self._scratch.close()

    def _place(self, library: Path) -> "_Placed":
        """Put a library and its arrays into the folder, unless they are there."""
        code = library.read_bytes()
        m = ConvManifest.read(manifest_path(library), code)
        # Vectors say what of blocks of operands is filled up, and what of the output.
        names = [
            f"{m.input_layout}.input",
            f"{m.weight_layout}.weight",
            *(f"{m.blocking.lanes}.{name}" for name in m.operands()),
            f"{m.output_layout}-{m.blocking.lanes}.output",
        ]
        placed = _Placed(
            self._folder / f"{sha256(code).hexdigest()[:16]}.so",
            tuple(self._folder / f"{m.workload}-{name}" for name in names),
            m,
        )
        if not placed.library.exists():
            placed.library.write_bytes(code)
            self._changed = True
        if not all(path.exists() for path in placed.arrays):
            for path, array in zip(placed.arrays, problem(m.workload).packed(m), strict=True):
                if not path.exists():
                    array.tofile(path)
            self._changed = True
        return placed

    def _keep(self, *wanted: "_Placed | None") -> None:
        """Remove what belongs to other libraries."""
        kept = {self._program}
        kept.update(path for p in wanted if p for path in (p.library, *p.arrays))
        for path in set(self._folder.iterdir()) - kept:
            path.unlink()
            self._batches.pop(path, None)

    def _seconds(self, placed: "_Placed") -> float:
        """Run a library and return the seconds of one call."""
        if placed.library not in self._batches:
            (seconds,) = self._run_library(placed, repeat=1)
            number = max(1, round(_BATCH / max(seconds, 1e-7)))
            batches = min(_BATCHES, max(1, round(_RUN / (number * seconds + 1e-7))))
            self._batches[placed.library] = number, batches
        number, batches = self._batches[placed.library]
        return median(self._run_library(placed, repeat=batches, warmup=1, number=number))

    def _run_library(self, placed: "_Placed", **options: int) -> list[float]:
        m = placed.manifest
        operands = m.operands().values()
        shapes = m.input_shape, m.weight_shape, *(each.shape for each in operands), m.output_shape
        numbers = *(each.number for each in operands), m.output_type
        types = map(str, (m.precision.pixel, m.precision.weight, *numbers))
        roles = *("in" for _ in placed.arrays[1:]), "expect"
        report = self._run(
            runner_arguments(
                placed.library,
                m.symbol,
                list(map(tensor_argument, roles, placed.arrays, shapes, types)),
                threads=m.threads,
                # Where ending the command does not end what it has started on the board.
                limit=ceil(self._time_limit),
                **options,
            ),
            ["different", "seconds"],
        )
        if report["different"]:
            raise RunFailure("wrong_result", differing(report["different"], prod(m.output_shape)))
        return list(report["seconds"])

    def _run(self, arguments: list[str], needed: list[str]) -> dict[str, Any]:
        """Run the runner, after copying what it takes; return a report with all that is needed."""
        if self._changed and self._copy:
            try:
                status, _, stderr = self._call(self._filled(self._copy, []))
            except RunFailure as failure:
                raise RunFailure("rpc_lost", f"cannot copy: {failure}") from None
            if status:
                raise RunFailure("rpc_lost", f"cannot copy: {last_line(status, stderr)}")
        self._changed = False
        runner = [str(self._program), *arguments]
        return read_report(*self._call(self._filled(self._command, runner)), needed)

    def _filled(self, words: Sequence[str], runner: list[str]) -> list[str]:
        """Return a command with its placeholders replaced."""
        values = {"runner": shlex.join(runner), "folder": str(self._folder)}
        filled = []
        for word in words:
            if word == "{runner}":
                filled += runner
            else:  # Within a word it is for a shell.
                filled.append(_PLACEHOLDER.sub(lambda match: values[match[1]], word))
        return filled

    def _call(self, words: list[str]) -> tuple[int, str, str]:
        """Run a command, and return its status and what it printed."""
        # Files, since a pipe stays open while anything has it: ssh may leave a process behind.
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            try:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,
                )
            except OSError as error:
                raise RunFailure("rpc_lost", f"cannot start {words[0]}: {error.strerror}") from None
            try:
                status = process.wait(self._time_limit)
            except BaseException as error:  # Ctrl-C as well: it does not reach the command.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    message = f"no result within {self._time_limit:g} s"
                    raise RunFailure("timeout", message) from None
                raise
            printed = []
            for file in (stdout, stderr):
                file.seek(0)
                printed.append(file.read().decode("utf-8", "replace"))
            return status, printed[0], printed[1]


@dataclass(frozen=True)
class _Placed:
    """A library and its arrays in the folder: input, weights, operands, expected output."""

    library: Path
    arrays: tuple[Path, ...]
    manifest: ConvManifest


def _words(template: str, needed: str) -> list[str]:
    """Split a command into words and check its placeholders."""
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise ToolchainError(
            f"cannot split the command {template!r} into words ({error}): quote it as for a shell"
        ) from None
    known = ("runner", "folder") if needed == "runner" else ("folder",)
    found = [name for word in words for name in _PLACEHOLDER.findall(word)]
    for name in found:
        if name not in known:
            raise ToolchainError(
                f"the command {template!r} has an unknown placeholder {{{name}}}: expected "
                f"{' or '.join(f'{{{k}}}' for k in known)}"
            )
    if needed not in found:
        raise ToolchainError(
            f"the command {template!r} has no {{{needed}}}: put it where the "
            + ("program to run belongs" if needed == "runner" else "folder to copy belongs")
        )
    return words
