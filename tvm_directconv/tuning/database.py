"""Tuning logs as databases of MetaSchedule, for TVM's own tools."""

import errno
import json
import os
from pathlib import Path

from .. import files, versions
from ..case import Case
from ..errors import DeviceError, LogError
from ..hardware.device import Device
from ..hardware.lookup import device as find_device
from ..logs.choice import ranked
from ..logs.log_file import lines, warn_of
from ..logs.record import Record
from ..scheduling import scheduled, unscheduled
from ..tiling import Tiling, reasons_against

_DATABASE = ("database_workload.json", "database_tuning_record.json")


def export(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    device: Device | str | None = None,
) -> int:
    """Write the best records of a log as a database of MetaSchedule.

    Of every case (convolution, device, threads, layout) it holds the best measured record: the
    function that is scheduled, the trace of its schedule, the target, and the median seconds. The
    function has the layouts that the blocking asks for.

    Parameters
    ----------
    path : str or path
        The log.
    folder : str or path
        Where to write ``database_workload.json`` and ``database_tuning_record.json``, for
        ``JSONDatabase(work_dir=...)``; made if need be.
    device : Device or str, optional
        The device of the records, needed if its file is not one of this package.

    Returns
    -------
    int
        How many records were written.

    Raises
    ------
    LogError
        If the log cannot be read or has nothing to export, its device is not known, or the folder
        has a database already or cannot be written.
    """
    versions.check()
    from tvm.s_tir.meta_schedule.database import JSONDatabase, TuningRecord

    found = lines(path)
    warn_of(Path(path), (line for line in found if line.record is None))
    known = None if device is None else find_device(device)
    cases: dict[tuple[object, ...], list[Record]] = {}
    for r in (line.record for line in found if line.record):
        # The cycle model knows no seconds, and a database ranks by these.
        if r.seconds_p50 is not None and (known is None or r.device == known.name):
            case = (r.workload, r.device, r.threads, r.input_layout)
            cases.setdefault(case, []).append(r)
    todo = []
    for records in cases.values():
        on = known or _known_device(records[0].device)
        first = records[0]
        wanted = Case.of(first.workload, on, first.threads, first.input_layout)
        usable = (r for r in ranked(records) if not reasons_against(r.blocking, wanted))
        if record := next(usable, None):
            todo.append((record, Tiling(wanted, record.blocking)))
    if not todo:
        raise LogError(
            f"nothing to export in {os.fspath(path)!r}: expected measured records"
            + (f" of device {known.name!r}" if known else "")
        )
    for name in _DATABASE:
        if (Path(folder) / name).exists():
            raise LogError(
                f"{os.fspath(folder)!r} has a {name} already: expected a folder without a "
                "database; name another one"
            )
    with (
        files.explained(folder, LogError, into=True),
        files.new_folder(Path(folder)),
        files.scratch(folder) as scratch,
    ):
        database = JSONDatabase(work_dir=str(scratch))
        for record, tiling in todo:
            workload = database.commit_workload(unscheduled(tiling))
            trace, seconds = scheduled(tiling).trace, [record.seconds_p50]
            target = tiling.case.device.target(record.threads)
            database.commit_tuning_record(TuningRecord(trace, workload, seconds, target))
        written = {scratch / name: Path(folder, name) for name in _DATABASE}
        # TVM does not look whether it could write.
        workloads, tuned = (path.read_bytes().split(b"\n")[:-1] for path in written)
        used = {json.loads(line)[0] for line in tuned}
        if len(tuned) != len(todo) or len(workloads) != len(used):
            raise OSError(errno.ENOSPC, "only a part could be written, the disk is full")
        files.place(written)
    return len(todo)


def _known_device(name: str) -> Device:
    try:
        return find_device(name)
    except DeviceError:
        raise LogError(
            f"device {name!r} of these records is none of this package: give its file with "
            "--device FILE"
        ) from None
