"""Reports: figures from rows, resuming, and pages that say what the rows do."""

import csv
import io
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import Command
from report_rows import ABSENT, ALL, FOR_NETWORKS, UNKNOWN, Pretender

from tvm_directconv import ConvWorkload, workloads
from tvm_directconv.bench.report import environment, measuring, page, plots, rows
from tvm_directconv.bench.report.figures import Results, figures, intensity, winograd_bytes
from tvm_directconv.bench.report.measuring import Asked
from tvm_directconv.bench.report.rows import GEMM, IM2COL, OURS, Row
from tvm_directconv.bench.rivals.contestants import KNOWN
from tvm_directconv.bench.rivals.ours import TUNED
from tvm_directconv.errors import ReportError

ROOT = Path(__file__).resolve().parents[1]
# 4608 operations: 4 x 4 x 4 outputs, each of 4 x 3 x 3 products. 3200 without padding: of 3 rows
# of the kernel 2 count at the upper and lower end, so 10 of 12, and so many columns.
SMALL = "ic4ih4oc4oh4kh3ph1"
DATE = "2026-11-22T13:00:00+00:00"
WHOLE = {"subject": "network", "layer": None, "workload": None}


def row(contestant: str = OURS, seconds: Sequence[float] = (1e-6,), **values: Any) -> Row:
    """Return a row of the small layer, with a peak of 5 GFLOP/s."""
    base: dict[str, Any] = {
        "date": DATE,
        "subject": "layer",
        "network": "net",
        "layer": "small",
        "workload": SMALL,
        "threads": 1,
        "contestant": contestant,
        "library": None,
        "implementation": None,
        "status": "ok",
        "reason": None,
        "algorithm": "direct",
        "includes": "the convolution",
        "seconds": seconds,
        "peak_gflops": [5.0] * len(seconds),
        "extra_bytes": 0,
        "max_error": 0.0,
        "compile_seconds": None,
        "blocking": None,
        "blocking_source": None,
    }
    return Row(**(base | values))


# --- Figures ------------------------------------------------------------------------------------


def test_figures_are_medians_of_ratios() -> None:
    """Ratios of the medians would be 0.9, 1.5 and 0.667."""
    ours, rival, im2col = figures(
        [
            row(seconds=[1e-6, 2e-6, 4e-6], peak_gflops=[9.216, 2.56, 2.304]),
            row("oneDNN", [3e-6, 2.2e-6, 4e-6]),
            row(IM2COL, [3e-6, 2e-6, 2e-6], algorithm="im2col"),
        ]
    )
    assert (ours.seconds_p20, ours.seconds_p50) == (pytest.approx(1.4e-6), 2e-6)
    assert ours.seconds_p80 == pytest.approx(3.2e-6)
    assert ours.gflops == pytest.approx(2.304)
    assert ours.peak_gflops_p50 == 2.56
    assert ours.of_peak == pytest.approx(0.5)
    assert ours.of_limit == pytest.approx(0.5 * 3200 / 4608)
    assert ours.over_ours == 1
    assert rival.over_ours == pytest.approx(1.1)
    assert rival.over_ours_p20 == pytest.approx(1.04)
    assert rival.over_ours_p80 == pytest.approx(2.24)
    assert ours.over_im2col == pytest.approx(1)
    assert rival.over_im2col == pytest.approx(0.909, abs=1e-3)
    assert im2col.over_im2col == 1


def test_what_was_not_measured_has_no_figures() -> None:
    gone = row("oneDNN", [], status="not_here", reason="not installed")
    (found,) = figures([gone])
    assert found.seconds_p50 is found.of_peak is found.over_ours is None
    whole = {"subject": "network", "layer": None, "workload": None}
    (network,) = figures([row(**whole)])
    assert network.seconds_p50 and network.gflops is network.of_limit is None
    (alone,) = figures([row("oneDNN")])
    assert alone.over_ours is alone.over_im2col is None


def test_the_last_comparison_counts_and_ratios_stay_within_one() -> None:
    later = "2026-11-23T13:00:00+00:00"
    found = Results(
        [
            row(seconds=[1e-6]),
            row("oneDNN", [2e-6]),
            row("MNN", [3e-6]),
            row(seconds=[4e-6], date=later),
            row("oneDNN", [6e-6], date=later),
        ]
    )
    (layer,) = found.layers
    figures = {name: found.of(layer, 1, name) for name in found.contestants}
    assert [*figures] == [OURS, "oneDNN", "MNN"]
    over = {name: f and f.over_ours for name, f in figures.items()}
    assert over == {OURS: 1, "oneDNN": pytest.approx(1.5), "MNN": pytest.approx(3)}
    assert found.measured(OURS, 1)[0].seconds_p50 == 4e-6


def test_means_are_over_different_layers() -> None:
    other = {"workload": "ic8ih4oc4kh3ph1", "layer": "other"}
    found = Results(
        [
            row(seconds=[1e-6]),
            row(seconds=[16e-6], layer="again"),  # the same convolution
            row(seconds=[4e-6], **other),
            row(seconds=[16e-6], network="net2"),
        ]
    )
    names = [f.about.name for f in found.measured(OURS, 1)]
    assert names == ["net:small", "net:other"]
    assert [f.about.name for f in found.measured(OURS, 1, found.distinct("net2"))] == ["net2:small"]
    assert found.families == ["net", "net2"]
    lines = page._in_words(found, 1)
    # 4.608 of 5, and 9.216 / 4 of 5: their geometric mean is 0.6517.
    assert (
        "(65.2% of the peak) over 2 different layers without groups, at least 32.0% (net:other)"
        in lines[0]
    )


def test_rivals_are_those_that_compute_all_products() -> None:
    found = Results(
        [
            row(seconds=[1.0e-6]),
            row(TUNED, [0.5e-6]),
            row(GEMM, [0.6e-6], algorithm="im2col"),
            row("MNN", [0.4e-6], algorithm="Winograd"),
            row("NNPACK", [0.4e-6], algorithm="FFT"),
            row("oneDNN", [0.98e-6]),
            row("ncnn", [0.7e-6], algorithm="its own choice"),
            row("OpenVINO", [0.9e-6], algorithm="its own choice"),
            row("one of former times", [0.7e-6], algorithm="its own choice"),
            row(IM2COL, [2e-6], algorithm="im2col"),
        ]
    )
    (best,) = found.best_rivals(1)
    assert best.row.contestant == "OpenVINO"
    # oneDNN is ahead, but by no more than 3 %.
    assert [f.row.contestant for f in found.ahead(1)] == ["OpenVINO"]
    assert found.ahead(2) == found.best_rivals(2) == []
    # Of ncnn it is known that it would take Winograd's algorithm here, unless it says otherwise.
    found = Results([row(), row("ncnn", [0.7e-6], algorithm="im2col")])
    assert [f.row.contestant for f in found.best_rivals(1)] == ["ncnn"]


def test_speed_per_core() -> None:
    found = Results(
        [
            row(seconds=[4e-6, 5e-6, 10e-6], peak_gflops=[5, 4, 2]),
            row(seconds=[2e-6, 5e-6, 4e-6], threads=2, peak_gflops=[10, 4, 5]),
            row(seconds=[1e-6], threads=2, workload="ic8ih4oc4kh3ph1", layer="only with two"),
        ]
    )
    # The ratio of the medians would be 0.625.
    assert [*found.per_core(OURS, 2).values()] == [pytest.approx(1)]
    assert found.per_core("oneDNN", 2) == {}
    # What was not measured in turns has no neighbours.
    later = row(
        seconds=[4e-6, 1e-6, 5e-6],
        peak_gflops=[5, 20, 4],
        threads=2,
        date="2026-11-23T13:00:00+00:00",
    )
    assert [*Results([*found.rows, later]).per_core(OURS, 2).values()] == [pytest.approx(0.625)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 2 x 2 tiles, 36 floats for each of 4 x (4 + 8) + 4 x 8 values.
        ("ic4ih7oc8kh3ph1", 4 * 36 * 80),
        ("mb3ic4ih7oc8kh3ph1", 4 * 36 * (12 * 12 + 32)),
        ("g4ic4ih7oc4kh3ph1", 4 * 36 * (4 * 8 + 4)),
        ("ic4ih7oc8kh3ph1sh2", None),
        ("ic4ih7oc8kh1", None),
        ("ic4ih9oc8kh3dh1", None),
    ],
)
def test_bytes_of_winograd(text: str, expected: int | None) -> None:
    assert winograd_bytes(ConvWorkload.parse(text)) == expected


def test_intensity_is_of_what_has_to_be_computed_and_moved() -> None:
    assert intensity(ConvWorkload.parse(SMALL)) == 3200 / (4 * (64 + 144 + 64))


# --- Rows ---------------------------------------------------------------------------------------


def test_a_row_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = [row(), row("oneDNN", [2e-6], library="oneDNN 3.9", extra_bytes=None)]
    with rows.appending(tmp_path / "rows.jsonl") as append:
        for each in written:
            append(each)
            # It is there before the next one comes.
            assert rows.read(tmp_path / "rows.jsonl")[-1] == each
        with pytest.raises(ReportError, match="MNN has 2 repeats, others of the same comparison 1"):
            append(row("MNN", [1e-6, 2e-6]))
    assert rows.read(tmp_path / "rows.jsonl") == written
    assert rows.read(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("whole", [True, False])
def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path, whole: bool) -> None:
    path = tmp_path / "rows.jsonl"
    line = row().to_line()
    path.write_text(f"{line}\n{line if whole else line[:50]}")
    assert rows.read(path) == [row()]
    with rows.appending(path) as append:
        append(row("oneDNN"))
    assert rows.read(path) == [row(), row("oneDNN")]


BAD_VALUES = {
    "date": ("yesterday", "date is 'yesterday': expected a date with its time zone"),
    "subject": ("tensor", "subject is 'tensor': expected one of layer, network"),
    "workload": ("ic4", "workload is 'ic4': "),
    "network": (7, "network is 7: expected a non-empty string, or null"),
    "threads": (0, "threads is 0: expected a whole number from 1"),
    "contestant": ("", "contestant is '': expected a non-empty string"),
    "status": ("lost", "status is 'lost': expected one of ok, not_here, "),
    "algorithm": ("magic", "algorithm is 'magic': expected one of direct, im2col, "),
    "includes": (None, "includes is None: expected a non-empty string"),
    "seconds": ([0.0], "seconds is [0.0]: expected a list of numbers above 0"),
    "peak_gflops": ([1, 2], "1 seconds and 2 peak_gflops: expected one of each"),
    "dtype": ("int8", "dtype is 'int8': expected float32, which the workload has"),
    "precision": ("", "precision is '': expected a non-empty string, or null"),
    "rms_error": (-0.5, "rms_error is -0.5: expected a number from 0, or null"),
    "agreement": (1.5, "agreement is 1.5: expected a number from 0 to 1, or null"),
    "extra_bytes": (-1, "extra_bytes is -1: expected a whole number from 0, or null"),
    "max_error": ("0", "max_error is '0': expected a number from 0, or null"),
    "compile_seconds": (True, "compile_seconds is True: expected a number from 0, or null"),
}


@pytest.mark.parametrize("key", BAD_VALUES)
def test_bad_values_are_refused(key: str) -> None:
    value, message = BAD_VALUES[key]
    with pytest.raises(ReportError, match=re.escape(message)):
        row(**{key: value})


def test_values_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ReportError, match="status is 'ok' with 0 seconds: expected some"):
        row(seconds=[])
    with pytest.raises(ReportError, match="status is 'failed' with 1 seconds"):
        row(status="failed", reason="crash")
    with pytest.raises(ReportError, match="status is 'failed' and reason is null"):
        row(seconds=[], status="failed")
    with pytest.raises(ReportError, match="expected a network's name alone"):
        row(subject="network")
    with pytest.raises(ReportError, match="dtype is 'fp8': expected one of float32, bf16, int8"):
        row(**WHOLE, dtype="fp8")


DAMAGE = {
    "not JSON": ("{", ":2: not JSON: "),
    "no number": (row().to_line().replace("5.0", "NaN"), ":2: not JSON: NaN is no number"),
    "no row": ("[1]", ":2: it is [1]: expected an object"),
    "a key lacks": ('{"date": "x"}', ":2: subject, network, layer, "),
    "impossible": (row().to_line().replace('"ok"', '"okay"'), ":2: status is 'okay'"),
    "other repeats": (
        row("oneDNN", [1e-6, 2e-6]).to_line(),
        ":2: oneDNN has 2 repeats, others of the same comparison 1: expected as many",
    ),
    "other repeats on two threads": (
        row(seconds=[1e-6, 2e-6], threads=2).to_line(),
        ":2: ours has 2 repeats, others of the same comparison 1: expected as many",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_with_the_line(tmp_path: Path, damage: str) -> None:
    line, message = DAMAGE[damage]
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{row().to_line()}\n{line}\n{row().to_line()}\n")
    with pytest.raises(ReportError, match=re.escape(message)) as caught:
        rows.read(path)
    assert str(caught.value).endswith("remove the line to measure it again")


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with (
        rows.appending(path),
        pytest.raises(ReportError, match="is being written by another process"),
        rows.appending(path),
    ):
        pass
    with rows.appending(path):  # free again
        pass


# --- Measuring ----------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not spend time on measuring memory."""
    monkeypatch.setattr(environment, "copy_speed", lambda threads: 12.5 * threads)


def asked(
    specs: Sequence[str] = ("alexnet:conv[12]",),
    threads: Sequence[int] = (1,),
    contestants: Sequence[str] = ALL,
    **others: Any,
) -> Asked:
    values: dict[str, Any] = {
        "workloads": workloads(list(specs)) if specs else [],
        "networks": [],
        "threads": threads,
        "repeats": 3,
        "contestants": {"layer": contestants, "network": FOR_NETWORKS},
    }
    return Asked(**(values | others))


def test_only_what_lacks_is_measured(tmp_path: Path, quick: None) -> None:
    measurer = Pretender()
    measuring.measure(tmp_path / "new", asked(), measurer)
    first = [("alexnet:conv1", (1,), ALL), ("alexnet:conv2", (1,), ALL)]
    assert measurer.asked == first
    told: list[tuple[int, int, str]] = []
    more = asked(["alexnet:conv[123]"], [1, 2], networks=["squeezenet"])
    said: list[str] = []
    measuring.measure(tmp_path / "new", more, measurer, lambda *now: told.append(now), said.append)
    assert said[0].endswith(": ours")
    assert [(name, threads) for name, threads, _ in measurer.asked[2:]] == [
        ("squeezenet", (1, 2)),
        ("alexnet:conv3", (1, 2)),
        ("alexnet:conv1", (2,)),
        ("alexnet:conv2", (2,)),
    ]
    assert told == [
        (1, 4, "squeezenet, 1 and 2 thread(s)"),
        (2, 4, "alexnet:conv3, 1 and 2 thread(s)"),
        (3, 4, "alexnet:conv1, 2 thread(s)"),
        (4, 4, "alexnet:conv2, 2 thread(s)"),
    ]
    measuring.measure(tmp_path / "new", more, measurer)
    assert len(measurer.asked) == 6
    # What was measured in turns has one date, whatever the number of threads.
    dates: dict[str, set[str]] = {}
    for each in rows.read(tmp_path / "new" / "rows.jsonl"):
        dates.setdefault(each.about.name, set()).add(each.date)
    assert {name: len(found) for name, found in dates.items()} == {
        "alexnet:conv1": 2,
        "alexnet:conv2": 2,
        "squeezenet": 1,
        "alexnet:conv3": 1,
    }
    assert len(set().union(*dates.values())) == 6
    runs = json.loads((tmp_path / "new" / "environment.json").read_text())["runs"]
    assert [run["threads"] for run in runs] == [[1], [1, 2]]


@pytest.mark.parametrize(
    ("threads", "left"),
    [
        ([1], [("alexnet:conv2", (1,))]),
        ([1, 2], [("alexnet:conv1", (2,)), ("alexnet:conv2", (1, 2))]),
    ],
)
def test_an_interrupted_subject_is_measured_again(
    tmp_path: Path, quick: None, threads: list[int], left: list[tuple[str, tuple[int, ...]]]
) -> None:
    class Interrupted(Pretender):
        def compare_layers(self, *words: Any, **options: Any) -> Iterator[dict[str, Any]]:
            for number, raw in enumerate(super().compare_layers(*words, **options)):
                if number == len(ALL) + 4:
                    raise KeyboardInterrupt
                yield raw

    with pytest.raises(KeyboardInterrupt):
        measuring.measure(tmp_path, asked(threads=threads), Interrupted())
    path = tmp_path / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert len(rows.read(path)) == len(ALL) + 3
    measurer = Pretender(seed=1)
    measuring.measure(tmp_path, asked(threads=threads), measurer)
    assert measurer.asked == [(*each, ALL) for each in left]
    found = Results(rows.read(path))
    assert len(found.figures) == 2 * len(ALL) * len(threads)
    # Of those that were measured again, none is of the first attempt.
    for name, again in left:
        of_it = [f.row for f in found.figures if f.about.name == name]
        assert len({each.date for each in of_it if each.threads in again}) == 1


def test_what_was_absent_is_measured_once_it_is_here(tmp_path: Path, quick: None) -> None:
    measurer = Pretender()
    measuring.measure(tmp_path, asked(), measurer)
    measurer.install("XNNPACK")
    measuring.measure(tmp_path, asked(contestants=(OURS, "oneDNN")), measurer)
    assert len(measurer.asked) == 2
    measuring.measure(tmp_path, asked(), measurer)
    assert len(measurer.asked) == 4
    measuring.measure(tmp_path, asked(), measurer)  # NNPACK is not asked again and again.
    assert len(measurer.asked) == 4
    assert len(Results(rows.read(tmp_path / "rows.jsonl")).measured("XNNPACK", 1)) == 2


def test_networks_are_measured_in_each_type(tmp_path: Path, quick: None) -> None:
    measurer = Pretender()
    first = asked([], networks=["squeezenet"], dtypes=["float32"])
    measuring.measure(tmp_path, first, measurer)
    told: list[str] = []
    more = asked([], [1, 2], networks=["squeezenet", "alexnet"], dtypes=["float32", "int8"])
    measuring.measure(tmp_path, more, measurer, lambda number, total, text: told.append(text))
    assert [(name, threads) for name, threads, _ in measurer.asked[1:]] == [
        ("squeezenet", (2,)),
        *((name, (1, 2)) for name in ("alexnet", "squeezenet in int8", "alexnet in int8")),
    ]
    assert told[2] == "squeezenet in int8, 1 and 2 thread(s)"
    measuring.measure(tmp_path, more, measurer)
    assert len(measurer.asked) == 5
    found = Results(rows.read(tmp_path / "rows.jsonl"))
    assert [subject.name for subject in found.networks] == [
        *("squeezenet", "alexnet", "squeezenet in int8", "alexnet in int8")
    ]
    # Ratios are of one type, and so are means.
    for each in found.figures:
        beside = found.of(each.about, each.row.threads, OURS)
        assert beside and beside.row.dtype == each.row.dtype and each.over_ours
    bars = [bar for bar in plots.overview(found, "network") if bar.threads == 1]
    rivals = FOR_NETWORKS[1:]
    assert sorted((b.dtype, b.contestant) for b in bars) == sorted(
        (dtype, name) for dtype in ("float32", "int8") for name in rivals
    )
    one = next(b for b in bars if (b.dtype, b.contestant) == ("int8", "PyTorch"))
    over = [f.over_ours or 0 for f in found.by("PyTorch") if f.row.threads == 1]
    assert one.middle == pytest.approx((over[2] * over[3]) ** 0.5) and over[0] != over[2]
    text = "".join(t.get_text() for t in plots._draw_overview(found).axes[0].get_yticklabels())
    assert "PyTorch, int8" in text and "PyTorch, 2 threads, float32" in text


def test_pages_have_accuracy_and_types_beside_times(tmp_path: Path, quick: None) -> None:
    everything = asked([], networks=["squeezenet"], dtypes=["bf16", "int8"])
    measuring.measure(tmp_path, everything, Pretender())
    page.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    table = text.split("## Whole networks")[1].split("\n\n")[2].splitlines()
    assert table[0].startswith("| network | type | threads |  | computed in | ms | over ours |")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    found = {(line[1], line[3]): (line[4], line[8], line[9]) for line in cells}
    assert len(found) == len(cells) == 2 * len(FOR_NETWORKS)
    assert found["int8", OURS] == ("int8", "2.2e-02", "7 of 8")
    assert found["bf16", OURS] == ("bf16", "3.2e-03", "7 of 8")
    for dtype in ("bf16", "int8"):  # Who chooses by itself does so beside every type.
        assert found[dtype, "OpenVINO, defaults"] == ("bf16", "3.2e-03", "7 of 8")
    assert "error above 0.0001 (float32), 0.05 (bf16), 0.3 (int8), 0.05 (defaults)" in text
    answer = text.split("\n\n")[1]
    assert "for networks in bf16, " in answer and "for networks in int8, " in answer
    with (tmp_path / "rows.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {line["dtype"] for line in lines} == {"bf16", "int8"}


def test_more_contestants_are_measured_beside_ours(tmp_path: Path, quick: None) -> None:
    measurer = Pretender()
    measuring.measure(tmp_path, asked(contestants=(OURS, "oneDNN")), measurer)
    measuring.measure(tmp_path, asked(contestants=(OURS, "MNN")), measurer)
    assert measurer.asked[2:] == [(f"alexnet:conv{n}", (1,), (OURS, "MNN")) for n in (1, 2)]
    found = Results(rows.read(tmp_path / "rows.jsonl"))
    assert all(f.over_ours for f in found.figures)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cpu", "Other 1/2", "has rows of cpu 'Other 1/2', here it is"),
        ("device", "board", "has rows of device 'board', here it is"),
        ("versions", {"tvm-directconv": "0.0.1"}, "rows of versions tvm-directconv 0.0.1, here"),
        ("cores", None, None),
    ],
)
def test_rows_of_another_environment_are_refused(
    tmp_path: Path, quick: None, key: str, value: Any, message: str | None
) -> None:
    measurer = Pretender()
    measuring.measure(tmp_path, asked(), measurer)
    path = tmp_path / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    if message is None:
        measuring.measure(tmp_path, asked(), measurer)
        return
    with pytest.raises(ReportError, match=f"{re.escape(message)}.*give a new folder"):
        measuring.measure(tmp_path, asked(["vgg16:conv1_1"]), measurer)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_rows_of_another_library_are_refused(tmp_path: Path, quick: None) -> None:
    measurer = Pretender()
    measuring.measure(tmp_path, asked(), measurer)
    measurer.libraries["oneDNN"] = "oneDNN 4.0"
    with pytest.raises(ReportError, match=r"oneDNN with oneDNN 3\.9, here it is oneDNN 4\.0: exp"):
        measuring.measure(tmp_path, asked(["vgg16:conv1_1"]), measurer)
    assert all(row.library != "oneDNN 4.0" for row in rows.read(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has rows but no environment.json: nobody knows where they were measured"),
        ("{", "cannot read"),
        ("[]", "expected an object of JSON"),
        ('{"format": 1}', "is no environment (cpu is missing"),
    ],
)
def test_a_folder_without_its_environment_is_refused(
    tmp_path: Path, quick: None, text: str | None, message: str
) -> None:
    measuring.measure(tmp_path, asked(), Pretender())
    path = tmp_path / "environment.json"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(ReportError, match=re.escape(message)):
        measuring.measure(tmp_path, asked(["vgg16:conv1_1"]), Pretender())


def test_another_format_of_the_environment_is_refused(tmp_path: Path, quick: None) -> None:
    measuring.measure(tmp_path, asked(), Pretender())
    path = tmp_path / "environment.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(
        ReportError, match=r"format is 2: expected the number 1\): .* a report of format 1"
    ):
        page.write(tmp_path)


def test_memory_is_copied_at_some_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_COPY_BYTES", 2**20)
    assert 0.01 < environment.copy_speed(2) < 10_000


# --- Pages --------------------------------------------------------------------------------------

LAYERS = ["alexnet:conv[1-3]", "mobilenetv1:dw1", "mobilenetv1:pw1", SMALL]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a report on two numbers of threads."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "copy_speed", lambda threads: 12.5 * threads)
        measuring.measure(folder, asked(LAYERS, [1, 2], networks=["squeezenet"]), Pretender())
    page.write(folder)
    return folder


def test_pages_name_every_contestant_and_why_some_are_missing(written: Path) -> None:
    html = "".join(ElementTree.fromstring((written / "report.html").read_text()).itertext())
    for text in ((written / "report.md").read_text(), html):
        assert all(name in text for name in (*ALL, *FOR_NETWORKS))
        assert all(reason in text for reason in (ABSENT | UNKNOWN).values())
        assert "oneDNN 3.9" in text and "jit:avx512" in text
        peaks = re.findall(r"FMA peak, (\d) threads?\W*([\d.]+), [\d.]+ to [\d.]+ GFLOP/s", text)
        assert [(n, round(float(peak) / 100)) for n, peak in peaks] == [("1", 1), ("2", 2)]
        assert "12.5 GB/s" in text and "25.0 GB/s" in text
        for subject in ("alexnet:conv3", "mobilenetv1:dw1", SMALL, "squeezenet"):
            assert subject in text


def test_pages_say_what_the_figures_are(written: Path) -> None:
    found = Results(rows.read(written / "rows.jsonl"))
    text = (written / "report.md").read_text()
    subject = found.layers[1]
    ours = found.of(subject, 2, OURS)
    rival = found.best_rival(subject, 2)
    assert ours and rival and ours.of_limit and rival.over_ours
    layers = text.split("## Layers, 2 threads")[1]
    line = next(line for line in layers.splitlines() if "alexnet:conv2" in line)
    for figure in (f"{ours.of_limit:.1%}", f"{rival.over_ours:.3f}", rival.row.contestant):
        assert f"| {figure} |" in line
    # MobileNet's depthwise layer is one that im2col does not compute.
    assert "[1 of 2]" in text.replace("\\", "")
    assert "| all without groups |" in text and "over 5 different layers without groups" in text
    assert "## Whole networks" in text and "### Speed per core" in text


def test_markdown_has_tables_and_drawings_that_are_there(written: Path) -> None:
    text = (written / "report.md").read_text()
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert sorted(named) == sorted(file.name for file in written.glob("*.svg"))
    for block in text.split("\n\n"):
        if block.startswith("|"):
            columns = {len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(columns) == 1


def test_the_page_needs_nothing_else(written: Path) -> None:
    text = (written / "report.html").read_text()
    assert text.startswith("<!DOCTYPE html>")
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert addresses == {"http://www.w3.org/2000/svg"}
    page = ElementTree.fromstring(text)
    names = {element.tag.rpartition("}")[2] for element in page.iter()}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object", "image"})
    assert not re.search(r"@import|url\((?!#)", text)
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) > 100
    # Every mark and clipping path that a drawing refers to is its own.
    hrefs = {e.get("href") for e in page.iter() if e.get("href")}
    referred = {name.removeprefix("#") for name in hrefs if name}
    referred |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert referred and referred <= set(ids)
    assert len(list(page.iter("figure"))) == len(list(written.glob("*.svg")))
    assert "prefers-color-scheme: dark" in text


def test_every_plot_is_drawn(written: Path) -> None:
    names = {file.stem for file in written.glob("*.svg")}
    families = ("alexnet", "mobilenetv1", "others")
    assert names == {
        "overview",
        "per-core",
        "compiling",
        *(f"memory-{family}" for family in families),
        *(
            f"{kind}-{threads}"
            for kind in ("fig1-alexnet", "roofline", "tuned")
            for threads in (1, 2)
        ),
        *(
            f"{kind}-{family}-{threads}"
            for kind in ("speedup", "limit")
            for family in families
            for threads in (1, 2)
        ),
    }
    for file in written.glob("*.svg"):
        svg = ElementTree.fromstring(file.read_text())
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        text = "".join(svg.itertext())
        if file.stem.startswith(("speedup", "limit")):
            assert "oneDNN" in text and "NNPACK" not in text
        if file.stem.startswith("limit"):
            assert "100%" in text and "110%" not in text


def test_the_same_rows_give_the_same_files(written: Path, tmp_path: Path) -> None:
    for name in ("rows.jsonl", "environment.json"):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    # Reports are drawn where nothing of what was measured is installed.
    packages = {name for each in KNOWN.values() for name in each.packages} - {"tvm_directconv"}
    assert {"tvm", "ncnn", "torch"} <= packages
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({sorted(packages)})); "
        "from tvm_directconv.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "report", "-o", str(tmp_path), "--render-only"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f.name for f in written.iterdir())
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (written / file.name).read_bytes(), file.name


def test_the_csv_has_raw_and_derived_figures(written: Path) -> None:
    found = Results(rows.read(written / "rows.jsonl"))
    lines = list(csv.DictReader(io.StringIO((written / "rows.csv").read_text())))
    assert len(lines) == len(found.figures)
    for line, expected in zip(lines, found.figures, strict=True):
        assert line["contestant"] == expected.row.contestant
        assert [*map(float, line["seconds"].split())] == [*expected.row.seconds]
        assert line["of_limit"] == ("" if expected.of_limit is None else str(expected.of_limit))


def test_names_are_never_taken_for_markup(tmp_path: Path, quick: None) -> None:
    reason = "a|b <i> & *c* _d_ [e](http://f)\nnext `line`"
    with rows.appending(tmp_path / "rows.jsonl") as append:
        append(row(network="my/net", layer="<b>"))
        append(row("else & co", [], network="my/net", layer="<b>", status="failed", reason=reason))
        append(row("yet another", [2e-6], network="my/net", layer="<b>"))
    environment.begin(tmp_path / "environment.json", [1], 1, {"layer": [], "network": []})
    page.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert r"a\|b \<i> & \*c\* \_d\_ \[e\](http://f) next \`line\`" in text
    html = ElementTree.fromstring((tmp_path / "report.html").read_text())
    said = "".join(html.itertext())
    assert reason in said and "else & co" in said and not list(html.iter("i"))
    assert (tmp_path / "limit-my_2Fnet-1.svg").exists()


# --- Plots --------------------------------------------------------------------------------------


def test_contestants_can_be_told_apart() -> None:
    assert all(each.colour and each.marker for each in KNOWN.values())
    colours = [each.colour for each in KNOWN.values()]
    assert len({*colours, *plots._OTHERS}) == len(colours) + len(plots._OTHERS)


def test_contestants_without_a_colour_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN, "new", replace(KNOWN["oneDNN"], name="new", colour=""))
    found = Results([row("former"), row("new"), row(), row("oneDNN")])
    assert found.contestants == [OURS, "oneDNN", "new", "former"]
    styles = [plots._style(found, name) for name in found.contestants]
    assert styles[:2] == [(KNOWN[name].colour, KNOWN[name].marker) for name in (OURS, "oneDNN")]
    assert styles[2:] == [(plots._OTHERS[0], "8"), (plots._OTHERS[1], "8")]


def test_what_has_no_limit_is_not_measured_by_it(tmp_path: Path, quick: None) -> None:
    measuring.measure(tmp_path, asked(["alexnet:conv[23]"]), Pretender())
    found = Results(rows.read(tmp_path / "rows.jsonl"))
    (axes,) = plots._draw_limit(found, found.layers, 1).axes
    marks = {each.get_label(): len(each.get_offsets()) for each in axes.collections}
    assert (marks["ncnn"], marks["MNN"], marks["ncnn, no Winograd"], marks[OURS]) == (1, 1, 2, 2)


def test_what_is_beyond_the_limit_stands_beyond_its_end() -> None:
    found = Results([row(), row("oneDNN", [0.5e-6])])  # 3.2 and 6.4 of 5 GFLOP/s
    (axes,) = plots._draw_limit(found, found.layers, 1).axes
    marks = {each.get_label(): each.get_offsets()[0][0] for each in axes.collections}
    assert marks == {OURS: pytest.approx(0.64), "oneDNN": pytest.approx(1.015)}
    assert axes.get_xlim() == (0, 1)


def test_what_is_far_slower_stands_at_the_edge() -> None:
    found = Results([row(), row(IM2COL, [2e-6]), row("TVM, untuned", [80e-6])])
    (axes,) = plots._draw_speedup(found, found.layers, 1).axes
    marks = {each.get_label(): each.get_offsets()[0][0] for each in axes.collections}
    assert (marks[OURS], marks[IM2COL], marks["TVM, untuned"]) == (2, 1, 0.25)
    assert axes.get_xlim()[0] > 0.2


def test_labels_do_not_overlap(tmp_path: Path, quick: None) -> None:
    measuring.measure(tmp_path, asked(["googlenet"], repeats=1), Pretender())
    found = Results(rows.read(tmp_path / "rows.jsonl"))
    (layers,) = (found.distinct(name) for name in found.families)
    assert len(layers) == 49
    for draw in (plots._draw_speedup, plots._draw_limit):
        figure = draw(found, layers, 1)
        figure.draw_without_rendering()
        (axes,) = figure.axes
        labels = [text.get_window_extent() for text in axes.get_yticklabels()]
        left, right = sorted(axes.get_xlim())
        ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        labels += [text.get_window_extent() for x, text in ticks if left <= x <= right]
        labels += [text.get_window_extent() for text in figure.legends[0].get_texts()]
        assert len(labels) > 60
        for number, one in enumerate(labels):
            assert one.x0 >= 0 and one.y1 <= figure.bbox.y1
            assert not any(one.overlaps(other) for other in labels[:number])


def _spreads(axes: Any) -> list[tuple[float, float]]:
    """Return the ends of all lines from p20 to p80, from left to right or from below."""
    from matplotlib.collections import LineCollection

    ends = []
    for each in axes.collections:
        if isinstance(each, LineCollection):
            for (x0, y0), (x1, y1) in each.get_segments():
                ends.append((x0, x1) if y0 == y1 else (y0, y1))
    return ends


def test_dots_and_bars_show_their_spread() -> None:
    both = {"peak_gflops": [10.0] * 3, "network": "alexnet"}
    found = Results(
        [
            row(seconds=[1e-6, 1.1e-6, 0.9e-6], **both),
            row("oneDNN", [1.2e-6, 1.25e-6, 1.3e-6], **both),
            row(IM2COL, [2e-6, 2.1e-6, 1.9e-6], algorithm="im2col", **both),
        ]
    )
    ours, rival, im2col = found.figures
    (axes,) = plots._draw_limit(found, found.layers, 1).axes
    assert _spreads(axes) == [
        pytest.approx((f.of_limit_p20, f.of_limit_p80)) for f in (ours, im2col, rival)
    ]
    (axes,) = plots._draw_speedup(found, found.layers, 1).axes
    assert (ours.over_im2col_p20, ours.over_im2col_p80) in _spreads(axes)
    (axes,) = plots._draw_fig1(found, found.layers, 1).axes
    assert _spreads(axes)[-1] == (ours.over_im2col_p20, ours.over_im2col_p80)
    assert ours.over_im2col_p20 < ours.over_im2col < ours.over_im2col_p80
    bars = plots.overview(found)
    assert [(bar.contestant, bar.threads) for bar in bars] == [(IM2COL, 1), ("oneDNN", 1)]
    (axes,) = plots._draw_overview(found).axes
    assert _spreads(axes) == [(bar.low, bar.high) for bar in bars]


def test_pages_begin_with_the_answer_and_end_with_the_environment(written: Path) -> None:
    blocks = (written / "report.md").read_text().split("\n\n")
    assert blocks[0] == "# Direct convolutions, measured"
    found = Results(rows.read(written / "rows.jsonl"))
    ours = found.sound(OURS, 1)
    fastest = min((b for b in plots.overview(found) if b.threads == 1), key=lambda b: b.middle)
    assert f"(mean of {len(ours)} different layers)" in blocks[1]
    assert f"{fastest.contestant} is the fastest of the other libraries and takes " in blocks[1]
    assert f"{fastest.middle:.2f} times our time" in blocks[1]
    assert blocks[3].endswith("(overview.svg)")
    assert blocks[-2] == "## Environment" and blocks[-1].startswith("| environment |")


# --- What was disturbed -------------------------------------------------------------------------


def test_what_was_disturbed_is_no_part_of_means() -> None:
    quiet = row(seconds=[1e-6] * 3, clock_gflops=[5.1] * 3)
    other = {"workload": "ic8ih4oc4kh3ph1", "layer": "other"}
    slow_bursts = row(seconds=[1e-6] * 3, clock_gflops=[50.0] * 3, **other)
    found = Results([quiet, slow_bursts, row("oneDNN", [2e-6] * 3, **other)])
    first, second, rival = found.figures
    assert first.disturbed is None and first.of_clock == pytest.approx(5 / 5.1)
    assert second.disturbed == "bursts reach 10% of what the clock allows; 128% of the limit"
    assert rival.disturbed == f"ours beside it: {second.disturbed}"
    assert [f.about.layer for f in found.measured(OURS, 1)] == ["small", "other"]
    assert [f.about.layer for f in found.sound(OURS, 1)] == ["small"]
    assert found.best_rivals(1) == found.ahead(1) == []
    assert "over 1 different layers" in page._in_words(found, 1)[0]
    text = page._markdown(page._summary(found, 1))
    assert "| ours | 4.6 (64.0%) \\[1 of 2\\] |" in text
    assert "left out of means: 2 of 3" in text and "give a new one" in text


def test_each_disturbance_of_a_row() -> None:
    (wide,) = figures([row(seconds=[1e-6, 2e-6, 4e-6])])
    assert wide.disturbed and "p20 to p80 is" in wide.disturbed
    # Bursts that are as much slower tell that it was the machine.
    (steady,) = figures([row(seconds=[1e-6, 2e-6, 4e-6], peak_gflops=[4, 2, 1])])
    assert steady.disturbed is None
    # What computes fewer products has no limit.
    beyond = row("MNN", [0.1e-6], algorithm="Winograd")
    assert [f.disturbed for f in figures([beyond])] == [None]
    (direct,) = figures([row("oneDNN", [0.1e-6])])
    assert direct.disturbed == "640% of the limit"
    whole = {"subject": "network", "layer": None, "workload": None}
    (network,) = figures([row(seconds=[1.0, 2.0, 4.0], **whole)])
    assert network.disturbed and network.of_limit is None


def test_rows_of_older_versions_know_no_types() -> None:
    later = ("dtype", "precision", "rms_error", "agreement")
    for workload, dtype in ((SMALL, "float32"), (f"uint8_{SMALL}", "uint8")):
        new = row(workload=workload)
        old = {key: value for key, value in json.loads(new.to_line()).items() if key not in later}
        assert Row.from_line(json.dumps(old)) == new and new.dtype == dtype
    network = row(**WHOLE)
    old = {key: value for key, value in json.loads(network.to_line()).items() if key not in later}
    assert Row.from_line(json.dumps(old)) == network
    assert network.about == rows.network_subject("net") and network.dtype == "float32"
    assert network.precision is network.rms_error is network.agreement is None
    # They are no rows of other types.
    (part,) = measuring.missing(
        [network],
        Asked([], ["net"], [1], 1, {"layer": [], "network": [OURS]}, ["float32", "int8"]),
        {"layer": (), "network": ()},
    )
    assert part.networks == [rows.network_subject("net", "int8")]


def test_rows_of_older_versions_know_no_clock() -> None:
    old = json.loads(row().to_line())
    del old["clock_gflops"]
    assert Row.from_line(json.dumps(old)) == row()
    with pytest.raises(ReportError, match="1 seconds and 2 clock_gflops: expected one of each"):
        row(clock_gflops=[1.0, 2.0])


# --- The command --------------------------------------------------------------------------------


@pytest.fixture
def pretender(monkeypatch: pytest.MonkeyPatch, quick: None) -> Pretender:
    measurer = Pretender()
    monkeypatch.setattr(measuring, "rivals", lambda trials: measurer)
    return measurer


def test_the_command_measures_and_writes(
    run: Command, pretender: Pretender, tmp_path: Path
) -> None:
    folder = tmp_path / "a" / "folder"
    words = ("report", SMALL, "-o", str(folder), "--threads", "2,1,2", "--repeat", "2")
    status, out, err = run(*words, "--contestant", "onednn", "--contestant", "ncnn*")
    assert status == 0
    assert out == f"{folder}/report.md, {folder}/report.html: 8 rows\n"
    assert err == f"1/1 {SMALL}, 1 and 2 thread(s)\n"  # All that were asked for are here.
    names = (OURS, "oneDNN", "ncnn, no Winograd", "ncnn")
    assert pretender.asked == [(SMALL, (1, 2), names)]
    assert {"report.md", "report.html", "rows.csv", "rows.jsonl", "environment.json"} <= {
        file.name for file in folder.iterdir()
    }
    # Once more: nothing is left to measure, and the report is written again.
    (folder / "report.md").unlink()
    status, out, err = run(*words, "--contestant", "ncnn*")
    assert (status, err) == (0, "") and (folder / "report.md").exists()


def test_the_command_says_who_is_missing(
    run: Command, pretender: Pretender, tmp_path: Path
) -> None:
    ((name, reason),) = ABSENT.items()
    _, _, err = run("report", SMALL, "-o", str(tmp_path), "--repeat", "1")
    assert err.splitlines()[0] == f"without {name}: {reason}"
    _, _, err = run("report", "-o", str(tmp_path), "--render-only")
    assert f"without {name}: {reason}" in err.splitlines()


def test_networks_alone_need_no_layers(run: Command, pretender: Pretender, tmp_path: Path) -> None:
    folder = str(tmp_path / "new")
    status, _, _ = run("report", "-o", folder, "--networks", "alexnet,squeezenet", "--repeat", "1")
    assert status == 0
    assert pretender.asked == [(name, (1,), FOR_NETWORKS) for name in ("alexnet", "squeezenet")]


def test_networks_in_types_of_the_command(
    run: Command, pretender: Pretender, tmp_path: Path
) -> None:
    words = ("report", "-o", str(tmp_path / "new"), "--networks", "alexnet", "--repeat", "1")
    assert run(*words, "--dtype", "int8,bf16,int8", "--contestant", "openvino*")[0] == 0
    names = (OURS, "OpenVINO, defaults")
    assert pretender.asked == [(f"alexnet in {dtype}", (1,), names) for dtype in ("int8", "bf16")]


def test_a_report_on_a_wrong_result_of_ours_fails(
    run: Command, pretender: Pretender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest: Callable[..., dict[str, Any]] = pretender._row

    def wrong(name: str, *words: Any, **subject: Any) -> dict[str, Any]:
        raw = honest(name, *words, **subject)
        if name != OURS:
            return raw
        return {**raw, "status": "wrong", "reason": "off", "seconds": [], "peak_gflops": []}

    monkeypatch.setattr(pretender, "_row", wrong)
    words = ("report", SMALL, "-o", str(tmp_path), "--contestant", "oneDNN")
    assert run(*words)[0] == 1
    assert "| ours | wrong | everywhere | off |" in (tmp_path / "report.md").read_text()


def test_the_contestants_are_those_of_the_package(run: Command, tmp_path: Path) -> None:
    known = measuring.rivals(trials=3)
    names = {subject: [*known.contestants(subject)] for subject in rows.SUBJECTS}
    assert {*names["layer"], *names["network"]} == {*KNOWN}
    assert all(OURS in each for each in names.values()) and measuring.SLOW in names["layer"]
    words = ("report", SMALL, "-o", str(tmp_path), "--repeat", "2")
    assert run(*words, "--contestant", "onnxruntime")[0] == 0
    found = Results(rows.read(tmp_path / "rows.jsonl"))
    assert [f.row.contestant for f in found.figures] == [OURS, "onnxruntime"]
    for figure in found.figures:
        assert figure.about.workload == SMALL and figure.over_ours and figure.of_limit
    assert found.figures[0].row.extra_bytes == 0


MISTAKES = {
    "no folder": (["report"], "-o/--output"),
    "threads": (["report", "-o", "new", "--threads", "1,x"], "'x' is not a whole number from 1"),
    "network": (["report", "-o", "new", "--networks", "lenet"], "there is no network 'lenet'"),
    "a model": (["report", "-o", "new", "--networks", "a.onnx"], "where it is given as SPEC"),
    "contestant": (
        ["report", SMALL, "-o", "new", "--contestant", "cudnn"],
        "no contestant is called 'cudnn': expected one of 'ours', ",
    ),
    "layer": (["report", "vgg19", "-o", "new"], "unknown network 'vgg19'"),
    "a file": (["report", SMALL, "-o", "file"], "cannot make folder 'file'"),
    "nothing there": (["report", "-o", "new", "--render-only"], "'new' has no rows.jsonl"),
    "rows alone": (["report", "-o", "rows", "--render-only"], "'rows' has no environment.json"),
    "type": (
        ["report", "-o", "new", "--networks", "alexnet", "--dtype", "int8,bf61"],
        "networks are not compared in 'bf61': expected one of float32, bf16",
    ),
    "no type": (["report", "-o", "new", "--networks", "alexnet", "--dtype", ""], "compared in ''"),
    "type of layers": (
        ["report", SMALL, "-o", "new", "--dtype", "int8"],
        "--dtype int8 is given without --networks: expected networks, the descriptor of a layer",
    ),
    "render a type": (
        ["report", "-o", "new", "--dtype", "int8", "--render-only"],
        "--render-only measures nothing: expected no SPEC",
    ),
    "render a spec": (
        ["report", SMALL, "-o", "new", "--render-only"],
        "--render-only measures nothing: expected no SPEC",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_an_error(
    run: Command,
    pretender: Pretender,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: str,
) -> None:
    words, message = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("rows").mkdir()
    Path("rows/rows.jsonl").write_text(row().to_line() + "\n")
    status, out, err = run(*words)
    assert (status, out) == (2, "") and message in err
    assert re.match(r"tvm-directconv( \w+)?: error: ", err.strip().splitlines()[-1])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "rows"]


def test_without_matplotlib_it_says_how_to_get_it(
    run: Command, pretender: Pretender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    status, _, err = run("report", SMALL, "-o", str(tmp_path / "new"))
    assert status == 2 and "pip install 'tvm-directconv[plot]'" in err
    assert pretender.asked == [] and not (tmp_path / "new").exists()
    assert find_spec("matplotlib")


def test_folders_that_cannot_be_written_are_named(tmp_path: Path, quick: None) -> None:
    measuring.measure(tmp_path, asked([SMALL], contestants=[OURS]), Pretender())
    (tmp_path / "report.md").mkdir()
    with pytest.raises(ReportError, match="cannot write into"):
        page.write(tmp_path)
    (tmp_path / "report.md").rmdir()
    (tmp_path / "rows.jsonl").unlink()
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(ReportError, match=r"cannot read .*expected a file of rows"):
        page.write(tmp_path)
    with pytest.raises(ReportError, match=r"cannot write .*rows\.jsonl"):
        measuring.measure(tmp_path, asked(), Pretender())


# --- The paper's ----------------------------------------------------------------------------------


def test_the_papers_figures_stand_beside_these(
    tmp_path: Path, pretender: Pretender, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "_reproduce_paper.py"))
    layers = workloads(list(script["LAYERS"]))
    counts = {name: sum(w.network == name for w in layers) for name in ("alexnet", "vgg16")}
    assert (len(layers), counts) == (26, {"alexnet": 5, "vgg16": 9})
    monkeypatch.setitem(script["main"].__globals__, "LAYERS", ("alexnet:conv[12]",))
    words = ["reproduce_paper", "-o", str(tmp_path), "--threads", "2", "--repeat", "2"]
    monkeypatch.setattr(sys, "argv", words)
    assert script["main"]() == 0
    names = {name for *_, contestants in pretender.asked for name in contestants}
    assert names == {*ALL} - {"TVM, tuned"}
    found = Results(rows.read(tmp_path / "rows.jsonl"))
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "here: " in line)
    speedups = [f.over_im2col or 0 for f in found.measured(OURS, 2)]
    assert f"({min(speedups):.2f} to {max(speedups):.2f})" in line
    assert f"(at least {min(found.per_core(OURS, 2).values()):.2f})" in line
