"""Tuning logs: what is written is read again, whatever happens, and the best of it is used."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from hypothesis import given
from hypothesis import strategies as st

import tvm_directconv as dc
from tvm_directconv.candidates import candidates, choose
from tvm_directconv.case import Case, default_input_layout
from tvm_directconv.errors import LogError, LogWarning
from tvm_directconv.hardware.host import HostCpu, cpu_of, host_cpu
from tvm_directconv.layout import ActivationLayout
from tvm_directconv.logs import choice, log_file, upkeep
from tvm_directconv.logs import record as records
from tvm_directconv.logs.folders import folders, log_path
from tvm_directconv.logs.record import Record
from tvm_directconv.model import estimate
from tvm_directconv.scheduling import scheduled
from tvm_directconv.tiling import Tiling, reasons_against

LAYER = dc.ConvWorkload.parse('ic16ih14oc32oh14kh3ph1n"toy:conv"')
LARGER = dc.ConvWorkload.parse("mb2ic16ih20oc32oh20kh3ph1")
DEVICE = dc.device("cortex-a72")
LAYOUT = default_input_layout(LAYER, DEVICE)
MODEL = choose(Case.of(LAYER, DEVICE))
OTHER = [b for b in candidates(Case.of(LAYER, DEVICE, input_layout=LAYOUT)) if b != MODEL]


def cycles(blocking: dc.Blocking) -> float:
    return estimate(Tiling(Case.of(LAYER, DEVICE), blocking)).cycles


# Those that are taken where only a similar case has been measured.
LIKED = [b for b in OTHER if cycles(b) < 1.04 * cycles(MODEL)]


def record(number: int = 0, **changes: Any) -> Record:
    """Return a good record; the number makes it differ from others."""
    facts: dict[str, Any] = {
        "workload": LAYER,
        "device": DEVICE.name,
        "threads": 1,
        "input_layout": str(LAYOUT),
        "blocking": OTHER[number],
        "status": "ok",
        "seconds_p20": 0.001,
        "seconds_p50": 0.002,
        "seconds_p80": 0.003,
        "of_peak": 0.8,
        "over_model": 1.1,
        "repeats": 5,
        "chosen": False,
        "measured_by": "rpc",
        "cpu": "0x41 0xd08",
        "cpu_name": "Raspberry Pi 4 Model B",
        "cpu_device": DEVICE.name,
        "date": "2026-11-22T13:00:00Z",
        "seed": 0,
        "versions": {"tvm-directconv": "0.1.0", "apache-tvm": "0.27.0.post1", "llvm": "22"},
    }
    if changes.get("status", "ok") != "ok":
        facts |= dict.fromkeys(("seconds_p20", "seconds_p50", "seconds_p80"))
        facts |= {"of_peak": None, "over_model": None, "repeats": 0}
    if changes.get("measured_by") == records.MODELLED:
        facts |= dict.fromkeys(("seconds_p20", "seconds_p50", "seconds_p80", "cpu", "cpu_name"))
    return Record(**{**facts, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Use the logs of an empty folder."""
    with dc.use_logs(tmp_path / "logs"):
        yield tmp_path / "logs"


def written(*records: Record) -> Path:
    return [log_file.append(r) for r in records][-1]


def line(**changes: Any) -> str:
    """Return a line with some values replaced; None as a type takes a key away."""
    values = {**json.loads(record().to_line()), **changes}
    return json.dumps({k: v for k, v in values.items() if v is not type})


# --- Records ----------------------------------------------------------------------------------

numbers = st.floats(min_value=1e-9, max_value=1e9)


@given(
    number=st.integers(0, len(OTHER) - 1),
    threads=st.integers(1, 128),
    seconds=st.lists(numbers, min_size=3, max_size=3),
    ratios=st.tuples(*[st.none() | numbers] * 2),
    message=st.none() | st.text(st.characters(codec="utf-8")).filter(str.strip),
    chosen=st.booleans(),
    seed=st.integers(),
)
def test_a_record_is_read_as_it_was_written(
    number: int,
    threads: int,
    seconds: list[float],
    ratios: tuple[float | None, float | None],
    message: str | None,
    chosen: bool,
    seed: int,
) -> None:
    p20, p50, p80 = sorted(seconds)
    r = record(number, threads=threads, seconds_p20=p20, seconds_p50=p50, seconds_p80=p80)
    r = replace(r, of_peak=ratios[0], over_model=ratios[1], message=message, chosen=chosen)
    r = replace(r, seed=seed)
    text = r.to_line()
    assert "\n" not in text
    again = Record.from_line(text)
    assert again == r and again.workload.name == "toy:conv" and again.to_line() == text


def test_the_name_does_not_matter_and_padding_that_is_never_read_neither() -> None:
    assert record(workload=replace(LAYER, name="")) == record()
    odd = dc.ConvWorkload(
        in_channels=16, in_height=14, in_width=14, out_channels=32, kernel=3, stride=2, padding=1
    )
    cut = replace(odd, padding=(1, 1, 0, 0))
    assert odd != cut and odd.descriptor == cut.descriptor
    r = record(workload=cut)
    assert Record.from_line(r.to_line()) == r == record(workload=odd)


def test_unknown_keys_are_left_out() -> None:
    assert Record.from_line(line(colour="red")) == record()


BAD = {
    "no JSON": ("{", "not JSON"),
    "cut off": (record().to_line()[:-9], "not JSON"),
    "nesting": ("[" * 100_000, "not JSON"),
    "NaN": (record().to_line().replace("0.8", "NaN"), "NaN is no number"),
    "Infinity": (record().to_line().replace("0.8", "Infinity"), "Infinity is no number"),
    "too large": (record().to_line().replace("0.8", "1e999"), "of_peak is inf"),
    "huge": (line(of_peak=10**400), "of_peak is 1000"),
    "list": ("[1]", "expected an object"),
    "no key": (line(seed=type), "seed missing"),
    "format text": (line(format="1"), "format is '1'"),
    "format true": (line(format=True), "format is True"),
    "newer": (line(format=2), "newer version wrote it, upgrade"),
    "no workload": (line(workload=None), "workload is None"),
    "impossible": (line(workload="ic16ih2oc16kh5"), "there is no output"),
    "name": (line(name=""), "name is ''"),
    "name with quote": (line(name='a"b'), "name is"),
    "device": (line(device=7), "device is 7"),
    "device path": (line(device="../x"), "device is '../x'"),
    "threads": (line(threads=0), "threads is 0: expected a whole number from 1"),
    "threads true": (line(threads=True), "threads is True"),
    "threads huge": (line(threads=10**400), "threads is 1000"),
    "layout": (line(input_layout="CHW"), "input_layout is 'CHW'"),
    "knobs": (line(blocking=[1]), "blocking is [1]"),
    "unknown knob": (line(blocking={"lanes": 4, "bogus": 1}), "unknown knob 'bogus'"),
    "wrong knob": (line(blocking={"lanes": 4.5}), "lanes is 4.5"),
    "few knobs": (line(blocking={"lanes": 4}), "lacks oc_vectors"),
    "status": (line(status="fine"), "status is 'fine': expected one of ok, rejected"),
    "status list": (line(status=[]), "status is []"),
    "message": (line(message=1), "message is 1"),
    "surrogate": (line(message="\ud800"), "message is"),
    "seconds": (line(seconds_p20=-1), "seconds_p20 is -1"),
    "no seconds": (line(seconds_p50=None), "expected all three"),
    "order": (line(seconds_p20=1), "expected all three, in this order"),
    "failure with seconds": (line(status="crash"), "status is 'crash': expected no seconds"),
    "chosen": (line(chosen=1), "chosen is 1"),
    "repeats": (line(repeats=-1), "repeats is -1"),
    "measured by": (line(measured_by="me"), "measured_by is 'me'"),
    "no cpu": (line(cpu=None), "cpu is None and measured_by is 'rpc'"),
    "cpu modelled": (line(measured_by="llvm-mca"), "null for llvm-mca only"),
    "cpu device": (line(cpu_device=None), "cpu_device is None"),
    "date": (line(date="2026-11-22"), "date is '2026-11-22'"),
    "no such date": (line(date="2026-11-31T00:00:00Z"), "date is"),
    "short date": (line(date="2026-1-2T00:00:00Z"), "date is"),
    "versions": (line(versions={"llvm": 22}), "versions is"),
    "not UTF-8": (b'{"format": "\xff"}', "not JSON"),
}


@pytest.mark.parametrize("mistake", BAD)
def test_bad_lines_are_left_out_and_named(mistake: str, tmp_path: Path) -> None:
    text, reason = BAD[mistake]
    raw = text if isinstance(text, bytes) else text.encode()
    path = tmp_path / "x.jsonl"
    good = record().to_line().encode()
    path.write_bytes(b"\n".join([good, b"", raw, record(1).to_line().encode(), b""]))
    with pytest.warns(LogWarning, match=re.escape(reason)) as found:
        assert log_file.read(path) == [record(), record(1)]
    (warning,) = found
    assert str(warning.message).startswith(f"{path}:3: ")


def test_no_log_and_an_empty_log_hold_nothing(tmp_path: Path) -> None:
    assert log_file.read(tmp_path / "none.jsonl") == []
    (tmp_path / "empty.jsonl").touch()
    assert log_file.read(tmp_path / "empty.jsonl") == []


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").mkdir()
    with pytest.warns(LogWarning, match="Is a directory"):
        assert log_file.read(tmp_path / "x.jsonl") == []


def test_a_log_is_read_again_only_when_it_has_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[object] = []
    content = log_file._content
    monkeypatch.setattr(log_file, "_content", lambda path: reads.append(path) or content(path))
    path = written(record())
    for _ in range(3):
        assert log_file.read(path) == [record()]
    assert len(reads) == 1
    written(record(1))
    assert log_file.read(path) == [record(), record(1)]
    path.unlink()
    assert log_file.read(path) == []


# --- Writing ----------------------------------------------------------------------------------


def test_a_log_that_was_cut_off_goes_on(folder: Path) -> None:
    path = written(record(), record(1))
    path.write_bytes(path.read_bytes()[:-30])
    written(record(2))
    with pytest.warns(LogWarning, match=r":2: .* not JSON"):
        assert log_file.read(path) == [record(), record(2)]


def test_logs_are_joined_with_cat(tmp_path: Path) -> None:
    a, b = (log_file.append(record(n), tmp_path / str(n)) for n in range(2))
    (tmp_path / "c").write_bytes(subprocess.check_output(["cat", a, b]))
    assert log_file.read(tmp_path / "c") == [record(), record(1)]


WRITER = """
import sys
from tvm_directconv.logs.log_file import append
from tvm_directconv.logs.record import Record
r = Record.from_line(sys.argv[1])
from dataclasses import replace
for seed in range(int(sys.argv[3]), int(sys.argv[4])):
    append(replace(r, seed=seed), sys.argv[2])
    print(seed, flush=True)
"""


def writer(folder: Path, begin: int, end: int) -> subprocess.Popen[str]:
    words = [record().to_line(), str(folder), str(begin), str(end)]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *words], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_writer_loses_nothing_that_it_had_written(tmp_path: Path) -> None:
    rng, reported = random.Random(0), set()
    for begin in range(0, 5_000_000, 1_000_000):
        process = writer(tmp_path, begin, begin + 1_000_000)
        assert process.stdout
        reported.add(int(process.stdout.readline()))
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        reported |= {int(text) for text in process.stdout.read().splitlines()}
        process.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LogWarning)  # One line may be cut off each time.
        found = [r.seed for r in log_file.read(tmp_path / "cortex-a72.jsonl")]
    assert len(reported) > 5 and reported <= set(found)
    assert len(found) == len(set(found))


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    processes = [writer(tmp_path, begin, begin + 200) for begin in (0, 1000)]
    assert [process.wait() for process in processes if process.communicate()] == [0, 0]
    found = [r.seed for r in log_file.read(tmp_path / "cortex-a72.jsonl")]
    assert sorted(found) == [*range(200), *range(1000, 1200)]


def test_pruning_meanwhile_loses_nothing(tmp_path: Path) -> None:
    """What waits for the lock while the file is replaced must not write into the old one."""
    log_file.append(record(chosen=True, seed=-1), tmp_path)
    path, done = tmp_path / "cortex-a72.jsonl", threading.Event()

    def write() -> None:
        for seed in range(200):
            log_file.append(record(chosen=True, seed=seed), tmp_path)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        upkeep.prune(path)
    thread.join()
    assert [r.seed for r in log_file.read(path)] == [*range(-1, 200)]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for act in (
        lambda: log_file.append(record(), tmp_path / "file"),
        lambda: log_file.check_appendable("cortex-a72", tmp_path / "file"),
    ):
        with pytest.raises(LogError, match=r"cannot write .*file/cortex-a72.jsonl.* --logs DIR"):
            act()


@pytest.mark.parametrize("exists", [False, True])
def test_a_read_only_disk(folder: Path, exists: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if exists:
        written(record())
    usual = os.open

    def read_only(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(30, "Read-only file system", path)
        return usual(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(LogError, match="Read-only file system"):
        log_file.check_appendable("cortex-a72")
    with pytest.raises(LogError, match="Read-only file system"):
        log_file.append(record())


def test_a_full_disk_leaves_no_part_of_a_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, usual = written(record()), os.write
    monkeypatch.setattr(os, "write", lambda file, data: usual(file, data[:50]))
    with pytest.raises(LogError, match="the disk is full"):
        log_file.append(record(1))
    assert path.read_text() == record().to_line() + "\n"


def test_a_check_leaves_nothing_behind(folder: Path) -> None:
    log_file.check_appendable("cortex-a72")
    assert list(folder.iterdir()) == []
    path = written(record())
    log_file.check_appendable("cortex-a72")
    assert log_file.read(path) == [record()]


# --- Folders ----------------------------------------------------------------------------------


def test_where_logs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_DIRECTCONV_LOGS", str(tmp_path / "variable"))
    assert folders() == [tmp_path / "variable"]
    with dc.use_logs(tmp_path / "outer"):
        with dc.use_logs(str(tmp_path / "inner")):
            assert folders() == [tmp_path / "inner"]
        assert folders() == [tmp_path / "outer"]
    monkeypatch.setenv("TVM_DIRECTCONV_LOGS", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    own, shipped = folders()
    assert own == tmp_path / "tvm_directconv" / "tuning_logs"
    assert (shipped / "__init__.py").is_file()
    assert log_path("znver4") == own / "znver4.jsonl"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folders()[0] == tmp_path / ".local/share/tvm_directconv/tuning_logs"


def test_a_folder_that_is_none() -> None:
    for wrong in (None, "", 7):
        with pytest.raises(LogError, match="expected a path"), dc.use_logs(wrong):  # type: ignore[arg-type]
            pass


def test_the_users_own_choice_comes_before_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, shipped = tmp_path / "own", tmp_path / "shipped"
    monkeypatch.setattr(choice, "folders", lambda: [own, shipped])
    late = record(0, chosen=True, date="2027-01-01T00:00:00Z")
    log_file.append(late, shipped)
    assert best() == OTHER[0]
    log_file.append(record(1, over_model=9.0), own)
    assert best() == OTHER[0]  # Not a choice.
    log_file.append(record(2, chosen=True), own)
    assert best() == OTHER[2]
    log_file.append(late, own)
    assert best() == OTHER[0]


# --- The best ---------------------------------------------------------------------------------


def best(
    workload: dc.ConvWorkload = LAYER, device: dc.Device = DEVICE, threads: int = 1
) -> dc.Blocking | None:
    found = choice.best(Case.of(workload, device, threads))
    return found[0] if found else None


MCA = {"measured_by": "llvm-mca"}
RANKS: dict[str, list[dict[str, Any]]] = {
    "the faster": [{"over_model": 1.3}, {"over_model": 1.2}],
    "the nearer to the peak": [{"of_peak": 0.9}, {"of_peak": 0.7}],
    "one with a comparison": [{"over_model": 1.01}, {"over_model": None, "of_peak": 2.0}],
    "the chosen": [{"chosen": True, "over_model": 1.1}, {"over_model": 1.2}],
    "the last chosen": [
        {"chosen": True, "over_model": 1.1, "date": "2026-11-23T00:00:00Z"},
        {"chosen": True, "over_model": 1.2, "date": "2026-11-22T23:59:59Z"},
    ],
    "the measured": [{"over_model": 1.01}, {"over_model": 2.0, "chosen": True, **MCA}],
    "the measured with other threads": [{"threads": 2}, {"chosen": True, **MCA}],
    "a cycle model": [{"over_model": 1.01, **MCA}, {"status": "crash"}],
    "other threads": [{"threads": 2}, {"workload": LARGER, "chosen": True}],
    "nearer threads": [{"threads": 2, "over_model": 1.1}, {"threads": 4, "over_model": 1.2}],
    "chosen, with other threads": [{"threads": 4, "chosen": True}, {"threads": 2}],
    "exact": [{}, {"threads": 2, "chosen": True}],
}


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("turned", [False, True])
def test_which_is_the_best(rank: str, turned: bool, folder: Path) -> None:
    both = [
        record(blocking=b, **changes) for b, changes in zip(LIKED[:2], RANKS[rank], strict=True)
    ]
    written(*(reversed(both) if turned else both))
    assert best() == LIKED[0]
    measured = [r for r in both if r.workload == LAYER and r.threads == 1]
    if len(measured) == 2:
        assert choice.ranked(reversed(both))[0] == choice.ranked(both)[0] == both[0]


def test_of_equals_the_last_one_counts(folder: Path) -> None:
    written(record(0, chosen=True), record(1, chosen=True))
    assert best() == OTHER[1]
    written(record(0, chosen=True))
    assert best() == OTHER[0]


def test_what_is_slower_than_the_model_never_wins_unless_chosen(folder: Path) -> None:
    written(record(over_model=0.99), record(1, over_model=0.98))
    assert best() is None
    written(record(blocking=LIKED[0], threads=2, over_model=1.5, chosen=True))
    assert best() is None  # Measured for this very case: the model's choice is better.
    written(record(3, over_model=0.97, chosen=True))
    assert best() == OTHER[3]


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "wrong_result", "chosen": False},
        {"device": "cortex-a53"},
        {"input_layout": "NCHW"},
        {"workload": dc.ConvWorkload.parse("ic16ih14oc32oh7kh3ph1sh2")},
        {"workload": dc.ConvWorkload.parse("ic16ih14oc64oh14kh3ph1")},
        {"workload": LARGER, "threads": 2},
        {"blocking": replace(MODEL, ow_tile=13)},
        {"blocking": replace(MODEL, lanes=16)},
    ],
    ids=str,
)
def test_what_does_not_fit_is_not_taken(changes: dict[str, Any], folder: Path) -> None:
    path = written(record(**{"blocking": LIKED[0], "chosen": True, **changes}))
    path.rename(folder / "cortex-a72.jsonl")
    assert best() is None


def test_near_ones_must_please_the_model(folder: Path) -> None:
    poor = max(OTHER, key=cycles)
    assert cycles(poor) > 1.05 * cycles(MODEL)
    written(record(blocking=poor, threads=2, chosen=True))
    written(record(blocking=poor, workload=LARGER, chosen=True))
    assert best() is None
    written(record(blocking=poor, chosen=True))
    assert best() == poor


def test_the_nearest_size(folder: Path) -> None:
    far = dc.ConvWorkload.parse("mb8ic16ih60oc32oh60kh3ph1")
    written(record(blocking=MODEL, workload=LARGER), record(workload=far, over_model=2.0))
    assert choice.best(Case.of(LAYER, DEVICE)) == (
        MODEL,
        "log cortex-a72.jsonl: nearest, measured for mb2ic16ih20oc32oh20kh3ph1, 2026-11-22, "
        "not confirmed",
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chosen": True}, "exact, measured 2026-11-22, 1.10x the model"),
        ({}, "exact, measured 2026-11-22, 1.10x the model, not confirmed"),
        ({"chosen": True, "threads": 2}, "nearest, measured with 2 threads, 2026-11-22"),
        ({"chosen": True, **MCA}, "exact, llvm-mca 2026-11-22, 1.10x the model"),
        ({"chosen": True, "over_model": None}, "exact, measured 2026-11-22"),
    ],
)
def test_the_source_says_why(changes: dict[str, Any], said: str, folder: Path) -> None:
    written(record(blocking=MODEL, **changes))
    assert choice.best(Case.of(LAYER, DEVICE)) == (MODEL, f"log cortex-a72.jsonl: {said}")


V3 = dc.device("x86-64-v3")
ZNVER4 = dc.device("znver4")


@pytest.mark.parametrize(
    ("device", "cpu", "cpu_device", "runs_here", "trusted"),
    [
        (DEVICE, "0x41 0xd08", "cortex-a72", False, True),
        (DEVICE, "0x41 0xd0b", "cortex-a76", False, False),
        (DEVICE, host_cpu().id, "cortex-a76", False, True),
        # A core is a core, wherever it was measured.
        (ZNVER4, "AuthenticAMD 25/97", "znver4", True, True),
        (ZNVER4, "GenuineIntel 6/143", "sapphirerapids", True, False),
        # An instruction set is not.
        (V3, "GenuineIntel 6/60", "x86-64-v3", True, False),
        (V3, "GenuineIntel 6/60", "x86-64-v3", False, True),
        (V3, host_cpu().id, "x86-64-v3", True, True),
        (dc.device("aarch64"), "0x41 0xd03", "aarch64", True, False),
        (dc.device("armv7"), "0x41 0xc07", "armv7", True, False),
        (dc.device("armv7"), "0x41 0xc07", "armv7", False, True),
        # A user's file describes one board.
        (replace(V3, name="my-board"), "GenuineIntel 6/60", "my-board", True, True),
    ],
)
def test_who_is_trusted(
    device: dc.Device,
    cpu: str,
    cpu_device: str,
    runs_here: bool,
    trusted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choice, "_runs_here", lambda device: runs_here)
    r = record(device=device.name, cpu=cpu, cpu_device=cpu_device)
    assert choice.is_trusted(r, device) == trusted
    assert choice.is_trusted(record(device=device.name, cpu_device=device.name, **MCA), device)


def test_what_is_not_trusted_is_not_taken(folder: Path) -> None:
    written(record(cpu="0x41 0xd0b", cpu_device="cortex-a76", chosen=True))
    assert best() is None


def test_instruction_sets_are_told_from_cores() -> None:
    found = {d.name for d in dc.devices() if choice._names_no_core(d)}
    assert found == {"x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64", "armv7", "rv64gcv"}


AMD = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 97
model name\t: AMD Ryzen 9 7950X

"""
PI = """processor\t: 0
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd08

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""


@pytest.mark.parametrize(
    ("text", "cpu"),
    [
        (AMD + AMD, HostCpu("AuthenticAMD 25/97", "AMD Ryzen 9 7950X")),
        (PI, HostCpu("0x41 0xd08", "Raspberry Pi 4 Model B Rev 1.4")),
        (
            PI + "\n" + PI.replace("0xd08", "0xd03"),
            HostCpu("0x41 0xd03+0x41 0xd08", "Raspberry Pi 4 Model B Rev 1.4"),
        ),
        ("CPU implementer: 0x41\nCPU part: 0xd0c\n", HostCpu("0x41 0xd0c", "0x41 0xd0c")),
        (
            "hart: 0\nuarch: spacemit,x60\nmvendorid: 0x710\nmarchid: 0x8000000058000001\n",
            HostCpu("0x710 0x8000000058000001", "spacemit,x60"),
        ),
        ("", HostCpu("riscv64", "riscv64")),
    ],
)
def test_processors_are_told_apart(text: str, cpu: HostCpu) -> None:
    assert cpu_of(text, "riscv64") == cpu


def test_what_is_said_about_this_machine() -> None:
    here = records.here()
    r = record(**here)
    assert (r.cpu, r.cpu_device) == (host_cpu().id, dc.device("native").name)
    assert set(r.versions) == {"tvm-directconv", "apache-tvm", "llvm"}
    assert records.now() >= r.date


# --- Building ---------------------------------------------------------------------------------


def test_a_build_goes_by_the_logs(folder: Path, tmp_path: Path) -> None:
    written(record(chosen=True))
    source = "log cortex-a72.jsonl: exact, measured 2026-11-22, 1.10x the model"
    for asked in (None, "auto"):
        conv = dc.build(LAYER, DEVICE, blocking=asked)
        assert (conv.blocking, conv.manifest.blocking_source) == (OTHER[0], source)
    manifest = json.loads(Path(f"{conv.export(tmp_path / 'a.so')}.json").read_text())
    assert manifest["blocking_source"] == source
    conv = dc.build(LAYER, DEVICE, blocking="model")
    assert (conv.blocking, conv.manifest.blocking_source) == (MODEL, "model")
    text = dc.explain(LAYER, DEVICE)
    assert text.endswith(f"which build takes instead ({source}):\n  {OTHER[0]}")
    written(record(blocking=MODEL, chosen=True))
    assert dc.explain(LAYER, DEVICE).endswith(f"Tuning confirms this choice ({source}).")


# --- The command line -------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Command) -> Command:
    """Run the command line in a folder with some logs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TVM_DIRECTCONV_LOGS", str(tmp_path / "logs"))
    for r in (record(1, over_model=1.05), record(2, chosen=True), record(3, status="timeout")):
        log_file.append(r, tmp_path / "logs")
    (tmp_path / "spoilt.jsonl").write_text(f"{line()}\n{{\n{line(format=9)}\n{line(seed=1)}\n")
    return run


LOG = "logs/cortex-a72.jsonl"


def test_show(run: Command) -> None:
    status, out, err = run("logs", "show", "--format", "json")
    assert (status, err) == (0, "")
    rows = json.loads(out)
    assert [row["blocking"] for row in rows] == [str(OTHER[2]), str(OTHER[1])]
    assert rows[0]["log"].endswith(LOG) and rows[0]["layer"] == "conv"
    _, out, _ = run("logs", "show", "--all", "--format", "json")
    assert [row["status"] for row in json.loads(out)] == ["ok", "ok", "timeout"]
    for form in ("table", "csv", "markdown"):
        status, out, _ = run("logs", "show", str(LAYER), "--device", "cortex-a72", "--format", form)
        assert status == 0 and out.count("0x41 0xd08") == 2
    for words in (["vgg16"], ["--device", "haswell"]):
        status, out, err = run("logs", "show", *words, "--format", "json")
        assert (status, out) == (0, "[]\n") and "nothing found" in err
    assert run("logs", "show", "vgg16")[1] == ""


def test_best(run: Command) -> None:
    log_file.append(record(4, threads=2, chosen=True), "logs")
    words = ["--device", "cortex-a72", "--format", "json"]
    status, out, err = run("logs", "best", *words)
    assert (status, err) == (0, "")
    rows = json.loads(out)
    assert [(row["threads"], row["blocking"]) for row in rows] == [
        (1, str(OTHER[2])),
        (2, str(OTHER[4])),
    ]
    assert rows[0]["blocking_source"].startswith("log cortex-a72.jsonl: exact")
    _, out, _ = run("logs", "best", str(LARGER), "alexnet:conv2", "--threads", "3", *words)
    assert [(row["threads"], row["blocking_source"]) for row in json.loads(out)] == [
        (3, "model"),
        (3, "model"),
    ]


def test_compile_and_explain_take_a_folder_of_logs(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TVM_DIRECTCONV_LOGS")
    words = [str(LAYER), "--device", "cortex-a72", "--logs", "logs"]
    assert "Tuning found another" in run("explain", *words)[1]
    assert "blocking (log cortex-a72.jsonl: exact" in run("compile", *words, "-o", "a.so")[1]
    assert "blocking (model)" in run("compile", *words, "--blocking", "model", "-o", "a.so")[1]


def test_bench_takes_a_folder_of_logs(run: Command) -> None:
    here = dc.device("native")
    layout = default_input_layout(LAYER, here)
    model = choose(Case.of(LAYER, here))
    other = next(b for b in candidates(Case.of(LAYER, here, input_layout=layout)) if b != model)
    facts = {"device": here.name, "input_layout": str(layout), "blocking": other, "chosen": True}
    log_file.append(record(**facts, **records.here() | {"date": "2026-11-22T13:00:00Z"}), "mine")
    words = ["bench", str(LAYER), "--repeat", "1", "--format", "json"]
    (row,) = json.loads(run(*words, "--logs", "mine")[1])
    assert row["blocking"] == str(other) and row["blocking_source"].startswith("log ")
    (row,) = json.loads(run(*words)[1])
    assert row["blocking_source"] == "model"


def test_merge(run: Command, tmp_path: Path) -> None:
    status, out, err = run("logs", "merge", LOG, "spoilt.jsonl", LOG, "-o", "all.jsonl")
    assert (status, out) == (0, "all.jsonl: 6 records, 3 given repeatedly\n")
    assert re.fullmatch(r"tvm-directconv: warning: spoilt.jsonl:2: .* not JSON.*\n", err)
    text = Path("all.jsonl").read_text()
    # The line of a newer version is nothing to this one, but it is to the newer one.
    assert text == Path(LOG).read_text() + f"{line()}\n{line(format=9)}\n{line(seed=1)}\n"
    assert run("logs", "merge", LOG, "-o", "all.jsonl")[0] == 2
    assert Path("all.jsonl").read_text() == text
    run("logs", "merge", LOG, "all.jsonl", "-o", LOG, "--force")
    assert Path(LOG).read_text() == text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.jsonl", "logs", "spoilt.jsonl"]


def test_merge_that_fails_changes_nothing(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path(LOG).read_bytes()

    def replaced(old: object, new: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replaced)
    status, _, err = run("logs", "merge", "spoilt.jsonl", "-o", LOG, "--force")
    assert status == 2 and "No space left" in err
    assert Path(LOG).read_bytes() == before
    assert [path.name for path in Path("logs").iterdir()] == ["cortex-a72.jsonl"]


def test_prune(run: Command) -> None:
    keep = [
        record(1, over_model=1.5),
        record(2, over_model=1.4),
        record(5, chosen=True),
        *(record(n, chosen=True, over_model=0.9) for n in range(20, 23)),
        record(6, cpu="0x41 0xd0b"),
        record(7, threads=2),
        record(8, **MCA),
    ]
    drop = [
        record(3, over_model=1.2),
        record(1, over_model=1.4),
        record(4, status="rejected"),
    ]
    Path("p.jsonl").write_text("".join(f"{r.to_line()}\n" for r in [*drop, *keep, *keep]))
    os.chmod("p.jsonl", 0o640)
    status, out, _ = run("logs", "prune", "p.jsonl", "--keep", "2")
    assert (status, out) == (0, "p.jsonl: 9 of 21 lines left\n")
    assert log_file.read("p.jsonl") == keep
    assert os.stat("p.jsonl").st_mode & 0o777 == 0o640
    _, _, err = run("logs", "prune", "spoilt.jsonl")
    assert "spoilt.jsonl:2: " in err
    assert Path("spoilt.jsonl").read_text() == f"{line(format=9)}\n{line(seed=1)}\n"


def test_validate(run: Command) -> None:
    assert run("logs", "validate", LOG) == (0, f"{LOG}: 3 good lines, 0 bad ones\n", "")
    status, out, err = run("logs", "validate", "spoilt.jsonl", LOG)
    assert (status, err) == (1, "")
    assert re.search(r"^spoilt.jsonl:2: not JSON", out, re.M)
    assert re.search(r"^spoilt.jsonl:3: format is 9", out, re.M)
    assert "spoilt.jsonl: 2 good lines, 2 bad ones\n" in out and f"{LOG}: 3 good" in out


def test_export(run: Command) -> None:
    from tvm import ir, s_tir
    from tvm.s_tir.meta_schedule.database import JSONDatabase

    flat = dc.ConvWorkload.parse("ic40ih13oc24oh13kh1")
    chosen = choose(Case.of(flat, DEVICE, 2))
    assert Tiling(Case.of(flat, DEVICE, 2), chosen).view != flat
    layout = default_input_layout(flat, DEVICE)
    tried = record(workload=flat, blocking=chosen, threads=2, input_layout=str(layout))
    log_file.append(tried, "logs")
    assert run("logs", "export", LOG, "-o", "db") == (0, "db: 2 records\n", "")
    found = JSONDatabase(work_dir="db").get_all_tuning_records()
    expected = [
        scheduled(Tiling(Case.of(LAYER, DEVICE, 1, LAYOUT), OTHER[2])),
        scheduled(Tiling(Case.of(flat, DEVICE, 2, ActivationLayout(str(layout))), chosen)),
    ]
    for tuned, right in zip(found, expected, strict=True):
        assert [float(s) for s in tuned.run_secs] == pytest.approx([0.002])
        assert str(tuned.target.attrs["mcpu"]) == "cortex-a72"
        again = s_tir.Schedule(tuned.workload.mod)
        tuned.trace.apply_to_schedule(again, remove_postproc=False)
        ir.assert_structural_equal(again.mod, right.mod)
    status, _, err = run("logs", "export", LOG, "-o", "db")
    assert status == 2 and "has a database_workload.json already" in err


def test_export_to_a_full_disk(run: Command) -> None:
    """TVM writes it, and does not look whether it could."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        status, _, err = run("logs", "export", LOG, "-o", "db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2 and "cannot write into 'db' (only a part could be written" in err
    assert not Path("db").exists()


def test_export_of_a_device_of_ones_own(run: Command) -> None:
    Path("my-board.toml").write_text('parent = "cortex-a72"\n')
    log_file.append(record(device="my-board", cpu_device="my-board"), "logs")
    status, _, err = run("logs", "export", "logs/my-board.jsonl", "-o", "db")
    assert status == 2 and "give its file with --device FILE" in err
    words = ["logs/my-board.jsonl", "--device", "my-board.toml", "-o", "db"]
    assert run("logs", "export", *words)[:2] == (0, "db: 1 records\n")


def test_export_does_without_what_is_slow_to_import(tmp_path: Path) -> None:
    path = log_file.append(record(), tmp_path)
    code = (
        "import sys; from tvm_directconv.tuning.database import export\n"
        "assert export(sys.argv[1], sys.argv[2]) == 1\n"
        "sys.exit('tvm.s_tir.tensor_intrin' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "db")]
    assert subprocess.run(command).returncode == 0


ERRORS = {
    "no subcommand": ([], "SUBCOMMAND"),
    "wrong subcommand": (["shw"], "invalid choice: 'shw'"),
    "show: no folder": (["show", "--logs", "none"], "there is no folder 'none'"),
    "show: device": (["show", "--device", "x"], "unknown device 'x'"),
    "show: layer": (["show", "vgg16:x"], "no layer of vgg16 matches 'x'"),
    "best: threads": (["best", "--threads", "0"], "'0' is not a whole number from 1"),
    "best: layout": (["best", str(LAYER), "--input-layout", "X"], "layout is 'X'"),
    "best: file": (["best", "--logs", "spoilt.jsonl"], "there is no folder 'spoilt.jsonl'"),
    "merge: nothing": (["merge", "-o", "a"], "IN"),
    "merge: no output": (["merge", LOG], "-o/--output"),
    "merge: missing": (["merge", LOG, "none", "-o", "a"], "cannot read tuning log 'none'"),
    "merge: exists": (["merge", LOG, "-o", "spoilt.jsonl"], "'spoilt.jsonl' exists"),
    "merge: input": (["merge", LOG, "-o", LOG], "--force"),
    "merge: folder": (["merge", LOG, "-o", "logs", "--force"], "Is a directory"),
    "merge: no such folder": (["merge", LOG, "-o", "x/y"], "No such file or directory"),
    "prune: missing": (["prune", "none"], "there is no tuning log 'none'"),
    "prune: folder": (["prune", "logs"], "there is no tuning log 'logs'"),
    "prune: keep": (["prune", LOG, "--keep", "-1"], "'-1' is not a whole number from 1"),
    "validate: missing": (["validate", "none"], "cannot read tuning log 'none'"),
    "validate: folder": (["validate", "logs"], "Is a directory"),
    "export: missing": (["export", "none", "-o", "db"], "cannot read tuning log 'none'"),
    "export: nothing": (
        ["export", LOG, "--device", "haswell", "-o", "db"],
        "nothing to export in 'logs/cortex-a72.jsonl': expected measured records of device",
    ),
    "export: file": (["export", LOG, "-o", "spoilt.jsonl"], "cannot write into 'spoilt.jsonl'"),
}


@pytest.mark.parametrize("mistake", ERRORS)
def test_mistakes_end_with_an_error(run: Command, mistake: str) -> None:
    words, message = ERRORS[mistake]
    before = sorted((p, p.is_file() and p.read_bytes()) for p in Path().rglob("*"))
    status, out, err = run("logs", *words)
    assert (status, out) == (2, "")
    assert re.match(r"tvm-directconv( logs( \w+)?)?: error: ", err.strip().splitlines()[-1])
    assert message in err and "Traceback" not in err
    assert sorted((p, p.is_file() and p.read_bytes()) for p in Path().rglob("*")) == before


# --- The package's own ------------------------------------------------------------------------


def test_the_packages_logs_are_good() -> None:
    folder = Path(__file__).parents[1] / "tuning_logs"
    for path in folder.glob("*.jsonl"):
        device = dc.device(path.stem)
        for found in log_file.lines(path):
            r = found.record
            assert r, f"{path}:{found.number}: {found.problem}"
            assert r.device == device.name, f"{path}:{found.number}"
            layout = ActivationLayout(r.input_layout)
            if r.status == "ok":
                assert not reasons_against(
                    r.blocking, Case.of(r.workload, device, input_layout=layout)
                )


def test_lines_say_what_was_disturbed_and_old_ones_need_not() -> None:
    assert "disturbed" not in record().to_line()
    assert Record.from_line(record().to_line()).disturbed is None
    noisy = replace(record(), disturbed="bursts reach 30% of what the clock allows")
    assert Record.from_line(noisy.to_line()) == noisy
    with pytest.raises(LogError, match=r"disturbed is True: expected"):
        replace(record(), disturbed=True)


def test_a_folder_that_is_missing_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = dc.ConvWorkload.parse("ic8ih7oc16oh7kh3ph1")
    with dc.use_logs(tmp_path / "none"):
        with pytest.warns(LogWarning, match="there is no folder '.*none' of tuning logs"):
            dc.build(layer)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dc.build(layer)
    monkeypatch.setenv("TVM_DIRECTCONV_LOGS", str(tmp_path / "nowhere"))
    with pytest.warns(LogWarning, match="there is no folder '.*nowhere' of tuning logs"):
        dc.build(layer)
