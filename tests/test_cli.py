"""The command line: every subcommand, every format, every way to get it wrong."""

import argparse
import contextlib
import csv
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COMMANDS, FOREIGN, Command, change_manifest
from onnx_models import Graph, saved

import tvm_directconv as dc
from tvm_directconv import versions
from tvm_directconv.bench import measure as measure_module
from tvm_directconv.cli import _output, bench, layers, main
from tvm_directconv.cli import doctor as doctor_module
from tvm_directconv.lowering import registers

SMALL = "ic16ih9oc16oh9kh3ph1"
OTHER = 'ic3ih12oc8oh6kh3sh2n"toy:first layer"'
KNOBS = {"lanes": 4, "oc_vectors": 1, "ow_tile": 3, "ic_block": 4}
# What TVM is installed is asked for in every report of a fault.
VERSION = (
    f"tvm-directconv {dc.__version__} (apache-tvm {versions.pins()['apache-tvm']}, "
    f"apache-tvm-ffi {versions.pins()['apache-tvm-ffi']})\n"
)
FORMATS = ("table", "json", "csv", "markdown")
ROW_KEYS = {
    "network",
    "layer",
    "workload",
    "device",
    "threads",
    "seconds_p20",
    "seconds_p50",
    "seconds_p80",
    "gflops",
    "peak_gflops",
    "of_clock",
    "of_peak",
    "disturbed",
    "of_limit",
    "over_rival",
    "extra_bytes",
    "max_error",
    "compile_seconds",
    "blocking",
    "blocking_source",
    "rival",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a library for this machine and one for another."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert main(["compile", SMALL, "-o", str(folder / "here.so")]) == 0
        command = ["compile", SMALL, "--device", FOREIGN, "-o", str(folder / "foreign.so")]
        assert main(command) == 0
        yield folder


@pytest.fixture
def folder(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with copies of the libraries, good ones and spoilt ones."""
    for name in ("here", "foreign"):
        for ending in (".so", ".so.json"):
            shutil.copy(shared / f"{name}{ending}", tmp_path)
    library, manifest = (tmp_path / "here.so").read_bytes(), (tmp_path / "here.so.json").read_text()
    for name in ("orphan", "corrupt", "other-format", "stale"):
        (tmp_path / f"{name}.so").write_bytes(library)
    (tmp_path / "corrupt.so.json").write_text(manifest[:100])
    (tmp_path / "other-format.so.json").write_text(manifest.replace('"format": 1', '"format": 99'))
    (tmp_path / "stale.so.json").write_text((tmp_path / "foreign.so.json").read_text())
    (tmp_path / "no.json").write_text("{")
    (tmp_path / "few.json").write_text(json.dumps({"lanes": 4}))
    (tmp_path / "unknown.json").write_text(json.dumps({**KNOBS, "bogus": 1}))
    (tmp_path / "impossible.json").write_text(json.dumps({**KNOBS, "ow_tile": 99}))
    (tmp_path / "good.json").write_text(json.dumps(KNOBS))
    (tmp_path / "bad.npy").write_text("nothing")
    np.save(tmp_path / "double.npy", np.zeros((1, 16, 9, 9)))
    np.save(tmp_path / "shape.npy", np.zeros((1, 16, 9, 8), np.float32))
    (tmp_path / "schedule.py").write_text("def schedule(sch): pass\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, run: Command) -> Command:
    """Run the command line in that folder."""
    return run


def process(*words: str, code: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    start = ["-c", code] if code else ["-m", "tvm_directconv"]
    return subprocess.run(
        [sys.executable, *start, *words], capture_output=True, encoding="utf-8", **options
    )


def parsed(text: str, form: str) -> list[dict[str, Any]]:
    """Read rows back from what a command printed. Tables without empty cells only."""
    if form == "json":
        rows = json.loads(text)
        assert isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        return rows
    if form == "csv":
        return list(csv.DictReader(io.StringIO(text)))
    lines = text.split("\n\n")[0].splitlines()
    if form == "markdown":
        assert re.fullmatch(r"\|( -{3}:? \|)+", lines[1])
        cells = [re.split(r" (?<!\\)\| ", line.strip("| ") + " ") for line in lines]
        del cells[1]
    else:
        cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    return [dict(zip(map(str.strip, cells[0]), map(str.strip, c), strict=True)) for c in cells[1:]]


# --- The frame --------------------------------------------------------------------------------


def test_help_lists_every_command(run: Command) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert re.findall(r"^    (\w+) ", out, re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(run: Command, command: str) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0 and out.startswith(f"usage: tvm-directconv {command}")


def test_version(run: Command) -> None:
    assert run("--version") == (0, VERSION, "")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["compile", "--help"],
        ["bench", "--help"],
        ["run", "--help"],
        ["devices"],
        ["devices", "cortex-a72"],
        ["layers"],
        ["explain", SMALL, "--device", "haswell"],
        ["logs", "show", "--format", "json"],
    ],
    ids=" ".join,
)
def test_what_needs_no_tvm_does_not_import_it(words: list[str]) -> None:
    code = (
        "import sys; from tvm_directconv.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.exit('tvm' in sys.modules)"
    )
    assert process(*words, code=code).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["devices"], "cortex-a72"),
        (["layers", "alexnet"], "conv5"),
        (["explain", SMALL], "Predicted: "),
        (["compile", SMALL, "-o", "new.so"], "new.so: "),
        (["run", "here.so"], "max_error 0\n"),
        (["bench", SMALL, "--repeat", "1"], "no network: "),
        (["logs", "best", SMALL], "model"),
        (["doctor"], "apache-tvm-ffi"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_each_command_runs_as_a_process(folder: Path, words: list[str], said: str) -> None:
    done = process(*words, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout


def test_the_installed_command_is_the_same() -> None:
    command = Path(sys.executable).with_name("tvm-directconv")
    done = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert done.stdout == VERSION


def test_an_interrupt_is_quiet(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(layers, "run", interrupted)
    assert run("layers") == (130, "", "")


def test_an_interrupt_is_one_whatever_becomes_of_it(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(args: argparse.Namespace) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError from None
        return 0

    monkeypatch.setattr(layers, "run", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run("layers") == (130, "", "")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("function", ["build", "compile_network"])
def test_interrupts_come_through_tvm(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registers, "_marked", interrupted)  # In passes, which TVM calls.
    g = Graph(x=(1, 3, 8, 9))
    call = {
        "build": lambda: dc.build(SMALL),
        "compile_network": lambda: dc.compile_network(
            saved(g.model(g.conv("x", 8, 3, 3, 3)), tmp_path), tmp_path / "a.so"
        ),
    }
    with pytest.raises(KeyboardInterrupt):
        call[function]()
    assert not (tmp_path / "a.so").exists()


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "tvm_directconv", "layers"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


# --- Errors -----------------------------------------------------------------------------------

ERRORS = {
    # What argparse finds
    "wrong command": (["benhc"], "unknown command 'benhc' (did you mean 'bench'?)"),
    "no such command": (["xyz"], "unknown command 'xyz': expected one of devices, layers"),
    "no command": ([], "COMMAND"),
    "wrong flag": (
        ["bench", "--repeats", "3"],
        "unrecognized arguments: --repeats (did you mean '--repeat'?); see tvm-directconv bench --",
    ),
    "abbreviated flag": (["bench", "--rep", "3"], "unrecognized arguments: --rep"),
    # Rather than that --output is missing.
    "wrong flag for a required one": (["compile", SMALL, "--ouput=a.so"], "mean '--output'?"),
    "wrong flag of a subcommand": (["logs", "best", SMALL, "--devise", "x"], "mean '--device'?"),
    "wrong flag before the command": (["--verison"], "did you mean '--version'?"),
    "flag like nothing": (["layers", "--xyz"], "unrecognized arguments: --xyz; see"),
    "wrong format": (["layers", "--format", "xml"], "invalid choice: 'xml'"),
    "nearly a format": (["layers", "--format", "jsn"], "(did you mean 'json'?)"),
    "nearly a subcommand": (["logs", "shw"], "(did you mean 'show'?)"),
    "nearly a strategy": (["tune", SMALL, "--strategy", "radom"], "(did you mean 'random'?)"),
    "quiet and verbose": (["layers", "-q", "-v"], "not allowed with argument"),
    "no threads": (["explain", SMALL, "--threads", "0"], "'0' is not a whole number from 1"),
    "threads without end": (
        ["compile", SMALL, "-o", "a.so", "--threads", "9" * 5000],
        "is not a whole number from 1 to 1024",
    ),
    "threads waiting": (["bench", SMALL, "--threads", "1024"], "threads is 1024, but this process"),
    "threads tuned": (["tune", SMALL, "--threads", "1024"], "threads is 1024, but this process"),
    "threads reported": (
        ["report", SMALL, "--threads", "1,1024", "-o", "a", "--contestant", "onnxruntime"],
        "threads is 1024, but this process",
    ),
    "no output": (["compile", SMALL], "-o/--output"),
    "seed is no number": (["run", "here.so", "--seed", "x"], "'x' is not a whole number from 0"),
    # What the package finds
    "unknown device": (["devices", "cortex-a27"], "did you mean 'cortex-a7'"),
    "missing device file": (["explain", SMALL, "--device", "my.toml"], "my.toml: cannot be read"),
    "nearly a layout": (["explain", SMALL, "--input-layout", "NCWH"], "did you mean 'NCHW'?"),
    "nearly an activation": (
        ["compile", SMALL, "--epilogue", "bias,rleu", "-o", "a.so"],
        "did you mean 'relu'?",
    ),
    "nearly a source": (["compile", SMALL, "--blocking", "modl", "-o", "a.so"], "mean 'model'?"),
    "nearly a file of knobs": (["compile", SMALL, "--blocking", "god.json", "-o", "a.so"], "'good"),
    "nearly a library": (["run", "hre.so"], "did you mean 'here.so'?"),
    "nearly a library, emulated": (["run", "hre.so", "--emulate"], "did you mean 'here.so'?"),
    "nearly a schedule": (
        ["compile", SMALL, "--schedule", "shedule.py", "-o", "a.so"],
        "did you mean 'schedule.py'?",
    ),
    "unknown network": (["layers", "vgg19"], "unknown network 'vgg19'"),
    "unknown layer": (["explain", "vgg16:conv9"], "no layer of vgg16 matches 'conv9'"),
    "bad descriptor": (["explain", "ic8ih8"], "missing 'oc'"),
    "missing shapes": (["layers", "@nothing.txt"], "cannot read the shapes file 'nothing.txt'"),
    "bad layout": (["explain", SMALL, "--input-layout", "CHW"], "layout is 'CHW'"),
    "missing blocking": (["compile", SMALL, "--blocking", "x.json", "-o", "a.so"], "'x.json'"),
    "blocking no JSON": (["bench", SMALL, "--blocking", "no.json"], "'no.json' (not JSON: "),
    "epilogue unknown": (
        ["compile", SMALL, "--epilogue", "bais", "-o", "a.so"],
        "with 'bais': exp",
    ),
    "bias of none": (["run", "here.so", "--bias", "none.npy"], "compiled without a bias"),
    "rival missing": (["bench", SMALL, "--against", "modle"], "'modle'"),
    "blocking unknown": (["bench", SMALL, "--blocking", "unknown.json"], "unknown knob 'bogus'"),
    "blocking incomplete": (
        ["bench", SMALL, "--blocking", "few.json"],
        "file few.json: blocking lacks oc_vectors, ow_tile, ic_block: expected lanes, ",
    ),
    "blocking impossible": (
        ["compile", SMALL, "--blocking", "impossible.json", "-o", "a.so"],
        "ow_tile is 99: a row has only 9 columns",
    ),
    "missing schedule": (
        ["compile", SMALL, "--schedule", "none.py", "-o", "a.so"],
        "schedule file 'none.py' does not exist",
    ),
    "wrong schedule": (
        ["compile", SMALL, "--schedule", "schedule.py", "-o", "a.so"],
        "schedule(sch) has the wrong parameters",
    ),
    "missing logs": (["compile", SMALL, "--logs", "none", "-o", "a.so"], "no folder 'none'"),
    "missing logs benched": (["bench", SMALL, "--logs", "none", "-o", "a"], "no folder 'none'"),
    "missing logs explained": (["explain", SMALL, "--logs", "none"], "no folder 'none'"),
    "missing folder": (["compile", SMALL, "-o", "none/a.so"], "there is no folder 'none'"),
    "wrong ending": (["compile", SMALL, "-o", "a.dll"], "expected a name ending in .so, .o or .s"),
    "one file for many": (["compile", "alexnet", "-o", "a.so"], "there are 5 convolutions"),
    "folder is a file": (["compile", "alexnet", "-o", "no.json"], "cannot make folder 'no.json'"),
    "missing library": (["run", "none.so"], "library 'none.so' does not exist: expected"),
    "missing library, emulated": (["run", "none.so", "--emulate"], "read library 'none.so'"),
    "missing manifest": (["run", "orphan.so"], "orphan.so.json does not exist"),
    "corrupt manifest": (["run", "corrupt.so"], "is no manifest of a compiled convolution"),
    "other manifest format": (["run", "other-format.so"], "has format 99: expected 1"),
    "stale manifest": (["run", "stale.so"], "was written for another library"),
    "corrupt, emulated": (["run", "corrupt.so", "--emulate"], "is no manifest"),
    "foreign library": (
        ["run", "foreign.so"],
        "or here with: tvm-directconv run --emulate foreign.so",
    ),
    "negative seed": (["run", "here.so", "--seed", "-1"], "'-1' is not a whole number from 0"),
    "missing input": (["run", "here.so", "--input", "none.npy"], "cannot read array file"),
    "input no array": (["run", "here.so", "--weight", "bad.npy"], "cannot read array file"),
    "input of doubles": (["run", "here.so", "--input", "double.npy"], "dtype float64"),
    "input of other shape": (["run", "here.so", "--input", "shape.npy"], "shape (1, 16, 9, 8)"),
    "output not writable": (["run", "here.so", "--output", "x/y.npy"], "cannot write 'x/y.npy'"),
    "bench elsewhere": (
        ["bench", SMALL, "--device", FOREIGN],
        f"cannot measure code for {FOREIGN} here",
    ),
    "bench names emulation": (["bench", SMALL, "--target", FOREIGN], "run --emulate"),
    "bench not writable": (["bench", SMALL, "-o", "none/b.csv"], "cannot write 'none/b.csv'"),
}


@pytest.mark.parametrize("mistake", ERRORS)
def test_mistakes_end_with_an_error(run: Command, folder: Path, mistake: str) -> None:
    words, message = ERRORS[mistake]
    before = sorted(folder.iterdir())
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert re.match(r"tvm-directconv( \w+)*: error: ", last) and message in err
    assert "Traceback" not in err
    assert sorted(folder.iterdir()) == before


def test_without_tvm_it_says_how_to_get_it() -> None:
    code = (
        "import sys; sys.modules['tvm'] = None\n"
        "from tvm_directconv import versions; from tvm_directconv.cli import main\n"
        "versions.installed = lambda name: None\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    for words in (["devices", "--native"], ["explain", SMALL], ["compile", SMALL, "-o", "/x.so"]):
        done = process(*words, code=code)
        assert done.returncode == 2 and "Run: pip install apache-tvm==" in done.stderr
        assert "Traceback" not in done.stderr


# --- devices, layers, explain -----------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_devices_lists_all(run: Command, form: str) -> None:
    status, out, err = run("devices", "--format", form)
    assert (status, err) == (0, "")
    names = [device.name for device in dc.devices()]
    if form == "table":  # Some have no board, so columns cannot be told apart by spaces.
        assert [line.split()[0] for line in out.splitlines()] == ["name", *names]
        for device in dc.devices():
            assert device.description in out and ", ".join(device.chain[1:]) in out
    else:
        rows = parsed(out, form)
        assert [row["name"] for row in rows] == names
        assert "here" not in rows[0]


def test_devices_marks_the_native_one_when_asked(run: Command) -> None:
    _, out, _ = run("devices", "--native", "--format", "json")
    here = [row["name"] for row in json.loads(out) if row["here"]]
    assert here == [dc.device("native").name]
    _, out, _ = run("devices", "--native")
    assert [line.split()[0] for line in out.splitlines() if line.endswith(" here")] == [
        "name",
        *here,
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_devices_shows_everything_about_named_ones(run: Command, folder: Path, form: str) -> None:
    (folder / "my-board.toml").write_text('parent = "cortex-a72"\ncores = 6\n')
    names = ["my-board.toml", "core-avx2", "llvm -mcpu=cortex-a53 -mtriple=aarch64-linux-gnu"]
    status, out, _ = run("devices", *names, "--format", form)
    assert status == 0
    if form in ("json", "csv"):
        rows = parsed(out, form)
        assert [row["name"] for row in rows] == ["my-board", "haswell", "cortex-a53"]
        assert [int(row["cores"]) for row in rows] == [6, 4, 4]
        assert [int(float(row["peak_flops_per_cycle"])) for row in rows] == [8, 32, 8]
    else:
        assert len(out.strip().split("\n\n")) == 3
        assert re.search(r"\bcores\b[ |]+6\b", out) and "fmla v.4s: 1 per cycle, latency 3" in out


def test_layers_of_all_networks_is_the_default(run: Command) -> None:
    status, out, _ = run("layers", "--format", "json")
    assert status == 0
    rows = json.loads(out)
    assert list(dict.fromkeys(row["network"] for row in rows)) == dc.networks()
    found = [dc.ConvWorkload.parse(row["descriptor"]) for row in rows]
    assert found == dc.workloads(dc.networks())


@pytest.mark.parametrize("form", FORMATS)
def test_layers_can_be_read_back(run: Command, form: str) -> None:
    _, out, err = run("layers", "alexnet", "vgg16:conv3_*", "--format", form)
    assert err == ""
    rows, found = parsed(out, form), dc.workloads(["alexnet", "vgg16:conv3_*"])
    assert [row["descriptor"] for row in rows] == [w.descriptor for w in found]
    for row, workload in zip(rows, found, strict=True):
        if form in ("json", "csv"):
            assert (row["network"], row["layer"]) == (workload.network, workload.layer)
        else:
            assert row["layer"] == workload.name
        assert int(row["count"]) == workload.count
        sizes = {
            "gflop": workload.flops / 1e9,
            "input_mb": workload.input_bytes / 1e6,
            "weight_mb": workload.weight_bytes / 1e6,
            "output_mb": workload.output_bytes / 1e6,
            "im2col_mb": workload.im2col_bytes / 1e6,
        }
        for key, value in sizes.items():
            assert float(row[key]) == pytest.approx(value, rel=1e-3)


def test_explain_prints_what_the_function_returns(run: Command) -> None:
    words = ("--device", "cortex-a72", "--threads", "4", "--input-layout", "NHWC")
    texts = [dc.explain(w, "cortex-a72", 4, "NHWC") for w in dc.workloads([SMALL, OTHER])]
    assert run("explain", SMALL, *words) == (0, f"{texts[0]}\n", "")
    status, out, _ = run("explain", SMALL, OTHER, *words, "-v")
    assert status == 0
    summary, *reasons = (text.strip() for text in out.split("-" * 80))
    assert reasons == texts
    assert run("explain", SMALL, OTHER, *words)[1].strip() == summary


# --- compile, run -----------------------------------------------------------------------------


def test_compile_writes_one_file(run: Command) -> None:
    for name in ("a.so", "a.o"):
        status, out, err = run("compile", SMALL, "--target", "cortex-a72", "-o", name)
        assert (status, err) == (0, "")
        manifest = json.loads(Path(f"{name}.json").read_text())
        assert (manifest["device"], manifest["workload"]) == ("cortex-a72", SMALL)
        size = int(re.match(rf"{name}: ([\d,]+) bytes", out)[1].replace(",", ""))  # type: ignore[index]
        assert size == Path(name).stat().st_size
        knobs = dc.Blocking.from_dict(manifest["blocking"])
        assert out.endswith(f"blocking (model) {knobs}\n")


def test_compile_fills_a_folder(run: Command) -> None:
    same_name = 'ic8ih8oc8oh6kh3n"toy:first?layer"'
    status, out, _ = run("compile", SMALL, OTHER, same_name, "-o", "made/for/it")
    assert status == 0
    written = [line.split(": ")[0] for line in out.splitlines()]
    names = [f"{SMALL}.so", "toy_first_layer.so", "toy_first_layer-2.so"]
    assert written == [f"made/for/it/{name}" for name in names]
    for path, workload in zip(written, dc.workloads([SMALL, OTHER, same_name]), strict=True):
        assert dc.load(path).workload == workload
    assert run("compile", SMALL, "-o", "made")[1].startswith(f"made/{SMALL}.so: ")


def test_compile_takes_every_choice(run: Command, folder: Path) -> None:
    (folder / "own.py").write_text(
        "from tvm_directconv.schedules.common import direct\n"
        "def schedule(sch, tiling):\n"
        "    direct(sch, tiling, finished=0)\n"
    )
    words = ["--device", FOREIGN, "--threads", "2", "--blocking", "good.json"]
    words += ["--input-layout", "NHWC", "--schedule", "own.py", "-o", "a.so"]
    status, out, _ = run("compile", SMALL, *words)
    assert status == 0 and "blocking (file good.json) lanes=4 oc_vectors=1 ow_tile=3" in out
    manifest = json.loads(Path("a.so.json").read_text())
    assert (manifest["threads"], manifest["input"]["layout"]) == (2, "NHWC")
    assert run("run", "a.so", "--emulate")[1].splitlines()[1] == "max_error 0"


def test_blocking_auto_is_the_models_without_logs(run: Command) -> None:
    _, automatic, _ = run("compile", SMALL, "--blocking", "auto", "-o", "a.so")
    _, model, _ = run("compile", SMALL, "--blocking", "model", "-o", "a.so")
    assert "blocking (model)" in automatic
    assert automatic.split("blocking")[1:] == model.split("blocking")[1:]


@pytest.mark.parametrize(
    "words", [["here.so"], ["here.so", "--emulate"], ["foreign.so", "--emulate"]]
)
def test_run_is_exact_on_integers(run: Command, words: list[str]) -> None:
    status, out, err = run("run", *words, "--seed", "3")
    assert (status, err) == (0, "")
    assert SMALL in out and "max_error 0\n" in out
    assert float(re.search(r"^seconds ([\d.e-]+) \(", out, re.MULTILINE)[1]) > 0  # type: ignore[index]
    assert ("qemu-" in out) == (words[0] == "foreign.so")
    assert ("-cpu" in out) == (words[0] == "foreign.so" and FOREIGN == "cortex-a72")


def test_run_emulates_boards_of_which_it_has_no_file_any_more(run: Command) -> None:
    Path("board.toml").write_text(f'parent = "{FOREIGN}"\n')
    assert run("compile", SMALL, "--device", "board.toml", "-o", "a.so")[0] == 0
    Path("board.toml").unlink()
    status, out, err = run("run", "a.so", "--emulate")
    assert (status, err) == (0, "")
    assert "for board, " in out and "max_error 0\n" in out
    assert "qemu-" in out and "-cpu" not in out


@pytest.mark.parametrize("words", [["here.so"], ["foreign.so", "--emulate"]])
def test_run_takes_and_gives_arrays(run: Command, words: list[str]) -> None:
    workload = dc.ConvWorkload.parse(SMALL)
    x, weight = dc.random_tensors(workload, seed=7)
    np.save("x.npy", x)
    np.save("w.npy", weight)
    arrays = ["--input", "x.npy", "--weight", "w.npy", "--output", "y.out"]
    status, out, _ = run("run", *words, *arrays)
    assert status == 0
    y = np.load("y.out")
    assert y.dtype == np.float32
    error = dc.max_error(y, dc.conv2d_reference(x, weight, workload))
    assert float(re.search("max_error (.*)", out)[1]) == pytest.approx(error, rel=1e-4)  # type: ignore[index]
    assert 0 < error < 1e-5


@pytest.mark.parametrize("name", ["native", FOREIGN])
def test_run_with_an_epilogue(run: Command, name: str) -> None:
    parts = "bias,residual,relu6"
    words = ["compile", SMALL, "--device", name, "--epilogue", parts, "-o", "finished.so"]
    assert run(*words)[0] == 0
    emulate = [] if name == "native" else ["--emulate"]
    status, out, _ = run("run", "finished.so", *emulate)
    assert status == 0 and "max_error 0\n" in out
    np.save("bias.npy", np.full(dc.ConvWorkload.parse(SMALL).out_channels, 3, np.float32))
    assert run("run", "finished.so", *emulate, "--bias", "bias.npy")[0] == 0
    # A library that computes something else: the manifest claims another activation.
    manifest = Path("finished.so.json")
    epilogue = json.loads(manifest.read_text())["epilogue"]
    change_manifest(manifest, epilogue={**epilogue, "activation": "relu"})
    status, out, _ = run("run", "finished.so", *emulate, "--bias", "bias.npy")
    assert status == 1 and "expected up to 0.0001" in out


ODD_NAMES = [b"a\xffb", b"a\nb", b"-x", b"@x", b"a:b,c;d", b"%s '$x\" #", "größe".encode()]


@pytest.mark.parametrize("name", [os.fsdecode(name) for name in ODD_NAMES], ids=repr)
def test_libraries_of_any_name(run: Command, folder: Path, name: str) -> None:
    assert run("compile", SMALL, "--blocking", "model", f"--output={name}.so")[0] == 0
    for emulate in ([], ["--emulate"]):
        assert run("run", f"./{name}.so", *emulate)[0] == 0
    Path(f"{name}.so.json").write_text("{")
    status, _, err = run("run", f"./{name}.so")
    assert status == 2 and err.count("\n") == 1


def test_names_that_cannot_be_printed_are_escaped(folder: Path) -> None:
    name = os.fsdecode(b"a\xff.so")
    for ending in ("", ".json"):
        shutil.copy(f"here.so{ending}", f"{name}{ending}")
    words = [sys.executable, "-m", "tvm_directconv", "run", name]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_that_are_too_long(run: Command, folder: Path) -> None:
    long = "n" * 300
    for words in (
        ("compile", SMALL, "-o", f"{long}.so"),
        ("compile", SMALL, "-o", f"{long}/a.so"),
        ("compile", SMALL, "--emit", "c", "-o", long),
        ("compile", SMALL, "--blocking", f"{long}.json", "-o", "a.so"),
        ("compile", SMALL, "--schedule", f"{long}.py", "-o", "a.so"),
        ("compile", f"{long}.onnx", "-o", "a.so"),
        ("run", f"{long}.so"),
        ("run", "here.so", "--input", long),
        ("profile", f"{long}.so"),
        ("explain", SMALL, "--device", f"{long}.toml"),
        ("layers", f"@{long}"),
        ("logs", "merge", long, "-o", "merged"),
        ("bench", SMALL, "--output", long),
    ):
        status, _, err = run(*words)
        assert status == 2 and err.count("\n") == 1 and long in err, words


@pytest.mark.parametrize("sort", ["folder", "pipe", "device", "dangling link", "loop", "empty"])
def test_what_is_no_file(run: Command, folder: Path, sort: str) -> None:
    for name in ("a", "a.so", "a.so.json", "a.toml", "a.json", "a.txt", "a.npy"):
        path = Path(name)
        make = {
            "folder": path.mkdir,
            "pipe": lambda path=path: os.mkfifo(path),
            "device": lambda path=path: path.symlink_to("/dev/zero"),
            "dangling link": lambda path=path: path.symlink_to("nowhere"),
            "loop": lambda path=path: path.symlink_to(path),
            "empty": path.touch,
        }
        make[sort]()
    shutil.copy("here.so", "b.so")
    Path("a.so.json").rename("b.so.json")
    for words in (
        ("run", "a.so"),
        ("run", "b.so"),
        ("run", "b.so", "--emulate"),
        ("run", "here.so", "--input", "a.npy"),
        ("compile", SMALL, "--blocking", "a.json", "-o", "c.so"),
        ("explain", SMALL, "--device", "a.toml"),
        ("layers", "@a.txt"),
        ("logs", "validate", "a"),
        ("logs", "prune", "a"),
        ("logs", "merge", "a", "-o", "merged"),
    ):
        status, _, err = run(*words)
        if (sort, words[0]) == ("empty", "logs"):
            continue  # There may be no records.
        assert status == 2 and err.count("\n") == 1, (words, err)


def test_run_fails_if_the_result_is_wrong(run: Command, folder: Path) -> None:
    # A library that computes something else: the manifest claims another padding.
    lie = str(dc.ConvWorkload.parse(SMALL.replace("oh9kh3ph1", "oh9kh3ph0")))
    change_manifest(folder / "here.so.json", workload=lie)
    status, out, _ = run("run", "here.so")
    assert status == 1 and "expected up to 0.0001" in out


# --- bench ------------------------------------------------------------------------------------


def test_bench_rows_say_everything(run: Command) -> None:
    status, out, err = run("bench", SMALL, OTHER, "--repeat", "2", "--format", "json")
    assert (status, err) == (0, "")
    rows = json.loads(out)
    assert [row["layer"] for row in rows] == ["", "first layer"]
    assert [row["network"] for row in rows] == ["", "toy"]
    for row, workload in zip(rows, dc.workloads([SMALL, OTHER]), strict=True):
        assert row.keys() == ROW_KEYS
        assert row["workload"] == str(workload)
        assert row["extra_bytes"] == 0
        assert 0 < row["seconds_p20"] <= row["seconds_p50"] <= row["seconds_p80"]
        assert row["gflops"] == pytest.approx(workload.flops / row["seconds_p50"] / 1e9)
        padded = workload.useful_flops / workload.flops
        assert row["of_limit"] == pytest.approx(row["of_peak"] * padded)
        assert row["of_peak"] > 0 and row["peak_gflops"] > 0 and row["compile_seconds"] > 0
        assert row["max_error"] < 1e-5
        assert (row["device"], row["threads"]) == (dc.device("native").name, 1)
        assert (row["blocking_source"], row["blocking"][:6]) == ("model", "lanes=")
        assert row["over_rival"] is None and row["rival"] is None


def test_bench_compares(run: Command) -> None:
    knobs = dc.build(SMALL).blocking.to_dict()
    slow = {**knobs, "oc_vectors": 1, "ow_tile": 1, "ic_unroll": 1, "kw_unroll": False}
    Path("slow.json").write_text(json.dumps(slow))
    status, out, _ = run("bench", SMALL, "--against", "slow.json", "--format", "json")
    (row,) = json.loads(out)
    assert status == 0 and "oc_vectors=1 ow_tile=1 " in row["rival"] != row["blocking"]
    assert row["over_rival"] > 1.1
    _, out, _ = run("bench", SMALL, "--against", "slow.json", "--repeat", "3")
    assert "  over slow.json  " in out


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Measure nothing: rows are made of these."""
    facts = {"of_peak": 0.5, "of_limit": 0.25, "max_error": 1e-7, "disturbed": None}

    def measure(conv: dc.CompiledConv, *_: object) -> dict[str, Any]:
        row: dict[str, Any] = dict.fromkeys(sorted(ROW_KEYS), 1)
        w = conv.workload
        return {**row, "network": w.network, "layer": w.layer, "workload": str(w), **facts}

    monkeypatch.setattr(measure_module, "measure", measure)
    return facts


@pytest.mark.parametrize("form", FORMATS)
def test_bench_output_can_be_read_back(run: Command, measured: dict, form: str) -> None:
    words = ("bench", OTHER, SMALL, "--format", form)
    _, out, err = run(*words)
    assert err == ""
    rows = parsed(out, form)
    if form in ("json", "csv"):
        assert [row["layer"] for row in rows] == ["first layer", ""]
        assert rows[0].keys() == ROW_KEYS
    else:
        assert [row["layer"] for row in rows] == ["toy:first layer", SMALL]
        assert [row["of peak"] for row in rows] == ["50.0%"] * 2
        assert [row["of limit"] for row in rows] == ["25.0%"] * 2
        assert out.count("mean 50.0% of peak, 25.0% of limit, minimum 25.0% of limit") == 2
    assert run(*words, "-o", "rows.out") == (0, "", "")
    written = Path("rows.out").read_text()
    assert written == out or (form == "table" and parsed(written, form) == rows)


def test_bench_sums_up_each_network() -> None:
    rows = [
        {"network": "a", "layer": "x", "workload": "", "of_peak": 0.4, "compile_seconds": 1.0},
        {"network": "b", "layer": "y", "workload": "", "of_peak": 0.7, "compile_seconds": 5.0},
        {"network": "a", "layer": "z", "workload": "", "of_peak": 0.9, "compile_seconds": 2.0},
    ]
    for row, over in zip(rows, (1.0, None, 4.0), strict=True):
        limit = 0.6 if row["layer"] == "x" else 0.4
        row |= {"of_limit": limit, "over_rival": over, "rival": over and "lanes=8"}
        row["disturbed"] = None
    assert bench._summaries(rows) == [
        "a: geometric mean 60.0% of peak, 49.0% of limit, minimum 40.0% of limit (z), 2.000 times "
        "as fast as its rival, at least 1.000, 1.50 s to compile (median), 2 different layers",
        "b: geometric mean 70.0% of peak, 40.0% of limit, minimum 40.0% of limit (y), 5.00 s to "
        "compile (median), 1 different layer",
    ]


def test_rows_come_as_they_are_measured(
    run: Command, measured: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    pretend = measure_module.measure

    def measure(*words: Any) -> dict[str, Any]:
        seen.append(sys.stdout.getvalue())  # type: ignore[attr-defined]
        return pretend(*words)

    monkeypatch.setattr(measure_module, "measure", measure)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["bench", OTHER, SMALL, "alexnet:conv3"]) == 0
    lines = out.getvalue().splitlines()
    assert [text.splitlines() for text in seen] == [[], lines[:2], lines[:3]]
    assert len(lines[3]) == len(lines[2]) and lines[4] == ""
    # A terminal has a table that fits it, in the end.
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    seen.clear()
    with contextlib.redirect_stdout(terminal):
        assert main(["bench", OTHER, SMALL]) == 0
    assert seen == ["", ""] and terminal.getvalue()


def test_what_was_disturbed_is_marked_and_left_out(run: Command, measured: dict) -> None:
    status, out, _ = run("bench", OTHER, SMALL)
    assert status == 0 and [row["disturbed"] for row in parsed(out, "table")] == ["no", "no"]
    measured["disturbed"] = "364% of the limit"
    status, out, _ = run("bench", OTHER, SMALL)
    assert status == 0
    assert [row["disturbed"] for row in parsed(out, "table")] == ["364% of the limit"] * 2
    assert "toy: no mean, 1.00 s to compile (median), 1 different layer, 1 of them dist" in out
    assert "left out of means: 2 of 2" in out and "taskset" in out
    facts = {"network": "a", "compile_seconds": 1.0, "rival": None, "workload": ""}
    rows: list[dict[str, Any]] = [
        facts | {"layer": "x", "of_peak": 0.4, "of_limit": 0.5, "disturbed": None},
        facts | {"layer": "y", "of_peak": 3.4, "of_limit": 3.4, "disturbed": "340% of the limit"},
    ]
    mean, advice = bench._summaries(rows)
    assert "mean 40.0% of peak, 50.0% of limit, minimum 50.0% of limit (x)" in mean
    assert "2 different layers, 1 of them disturbed" in mean and "1 of 2" in advice


def test_bench_stops_at_a_wrong_result(run: Command, measured: dict) -> None:
    for error in (2e-4, float("nan"), float("inf")):
        measured["max_error"] = error
        status, out, err = run("bench", SMALL)
        assert (status, out) == (2, "")
        assert f"{SMALL} is computed wrongly with blocking lanes=" in err


def test_bench_shows_progress_on_a_terminal_only(
    run: Command, measured: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, out, err = run("bench", SMALL, OTHER, "--format", "json")
    assert f"1/2 {SMALL}" in err and "2/2 toy:first layer" in err
    assert len(json.loads(out)) == 2


# --- doctor -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_doctor_finds_everything(run: Command, form: str) -> None:
    status, out, err = run("doctor", "--format", form)
    assert (status, err) == (0, "")
    if form != "table":  # It has empty cells.
        rows = {row["check"]: row for row in parsed(out, form)}
        for check in ("Python", "apache-tvm", "apache-tvm-ffi", "numpy", "rich", "LLVM in TVM"):
            assert rows[check]["status"] == "ok"
        assert rows["apache-tvm"]["found"] == versions.pins()["apache-tvm"]
        assert dc.device("native").name in rows["device of this machine"]["found"]


def doctor(run: Command) -> tuple[int, dict[str, dict[str, Any]]]:
    status, out, err = run("doctor", "--format", "json")
    assert err == ""
    return status, {row["check"]: row for row in json.loads(out)}


def test_doctor_says_what_optional_packages_are_for(
    run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_module, "find_spec", lambda name: None)
    _, rows = doctor(run)
    for name, extra in {
        "onnx, for ONNX files": "onnx",
        "onnxruntime, for checks": "compare",
        "torch, for .pt2 files": "torch",
        "pillow, for images": "image",
        "matplotlib, for plots": "plot",
        "xgboost, for tuning": "tune",
    }.items():
        assert (rows[name]["status"], rows[name]["required"]) == ("missing", False)
        assert rows[name]["advice"] == f"pip install 'tvm-directconv[{extra}]'"


@pytest.mark.parametrize("found", ["0.26.0", None])
def test_doctor_survives_another_tvm(
    run: Command, monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    real = versions.installed
    monkeypatch.setattr(versions, "installed", lambda n: found if n == "apache-tvm" else real(n))
    status, rows = doctor(run)
    assert status == 1
    assert rows["apache-tvm"]["status"] == ("wrong" if found else "missing")
    assert (
        rows["apache-tvm"]["advice"] == f"pip install apache-tvm=={versions.pins()['apache-tvm']}"
    )
    assert rows["apache-tvm-ffi"]["status"] == "ok"
    assert rows["LLVM in TVM"]["status"] == rows["device of this machine"]["status"] == "missing"


def test_doctor_does_not_load_a_tvm_of_another_version() -> None:
    code = (
        "import sys; from tvm_directconv import versions; from tvm_directconv.cli import main\n"
        "versions.installed = lambda name: '0.1.15'\n"
        "assert main(['doctor']) == 1; sys.exit('tvm' in sys.modules)"
    )
    assert process(code=code).returncode == 0


def test_doctor_survives_a_tvm_that_cannot_be_imported() -> None:
    code = (
        "import sys; sys.modules['tvm'] = None; from tvm_directconv.cli import main\n"
        "sys.exit(main(['doctor', '--format', 'json']))"
    )
    done = process(code=code)
    assert (done.returncode, done.stderr) == (1, "")
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    assert rows["apache-tvm"]["status"] == "ok"
    assert rows["LLVM in TVM"]["status"] == "missing"
    assert "ModuleNotFoundError" in rows["LLVM in TVM"]["found"]


@pytest.mark.parametrize("columns", [120, 80, 60, 20])
def test_doctor_keeps_to_the_terminal(
    run: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    dc.device("native")
    (folder / "bin").mkdir()
    monkeypatch.setenv("PATH", str(folder / "bin"))
    monkeypatch.setenv("COLUMNS", str(columns))
    out = run("doctor")[1]
    # A command that is longer than a line is not broken.
    long = [line for line in out.splitlines() if len(line) > max(columns, 40)]
    assert all(line.strip().startswith("apt install ") for line in long)
    # What is to be pasted is on one line, and all is there.
    assert "apt install gcc-aarch64-linux-gnu" in out
    flat = " ".join(out.split())
    for row in json.loads(run("doctor", "--format", "json")[1]):
        for text in row.values() if columns >= 60 else [row["advice"]]:
            assert str(text) in flat or isinstance(text, bool)


def test_doctor_prints_without_rich(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    real = versions.installed
    monkeypatch.setattr(versions, "installed", lambda n: None if n == "rich" else real(n))
    monkeypatch.setitem(sys.modules, "rich", None)
    status, out, _ = run("doctor")
    assert status == 1
    assert re.search("^missing  rich$", out, re.MULTILINE)
    assert "What to do\nrich: pip install rich\n" in out


def test_doctor_tells_required_tools_from_others(
    run: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dc.device("native")  # TVM imports lazily, with what is taken away below.
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler
    (folder / "bin").mkdir()
    monkeypatch.setenv("PATH", str(folder / "bin"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, rows = doctor(run)
    assert status == 1
    assert rows["C compiler of this machine"]["status"] == "missing"
    assert "apt install gcc" in rows["C compiler of this machine"]["advice"]

    (folder / "bin" / "cc").symlink_to(compiler)
    status, rows = doctor(run)
    assert status == 0
    for name in ("cross compiler for AArch64", "emulator for ARMv7", "llvm-mca (cycle model)"):
        assert rows[name]["status"] == "missing" and rows[name]["advice"]
        assert rows[name]["required"] is False


# --- Saying less and more -----------------------------------------------------------------------


def test_quiet_commands_print_results_only(run: Command) -> None:
    assert run("compile", SMALL, "-q", "-o", "a.so") == (0, "", "")
    assert Path("a.so").is_file()
    status, out, err = run("run", "a.so", "-q")
    assert status == 0 and "max_error 0" in out and err == ""
    status, _, err = run("run", "none.so", "-q")
    assert status == 2 and "does not exist" in err
    Path("logs").mkdir()
    Path("logs/haswell.jsonl").write_text("damaged\n")
    words = ("explain", SMALL, "--device", "haswell", "--logs", "logs")
    assert "warning: " in run(*words)[2]
    assert run(*words, "--quiet")[2] == ""
    assert "nothing found" in run("logs", "show", SMALL, "--logs", "logs", "--device", "znver4")[2]


def test_verbose_errors_say_where_they_come_from(run: Command) -> None:
    status, _, err = run("explain", "vgg61")
    assert status == 2 and "Traceback" not in err
    status, _, verbose = run("explain", "vgg61", "-v")
    assert status == 2 and verbose.startswith("Traceback") and verbose.endswith(err)


def test_what_does_not_fit_into_memory(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise MemoryError(*said)

    monkeypatch.setattr(layers, "run", fail)
    for said in ((), ("Unable to allocate 8 TiB",)):
        wanted = said[0] if said else "there is not enough memory"
        assert run("layers", "vgg16") == (2, "", f"tvm-directconv: error: {wanted}\n")


def test_names_do_not_reach_the_terminal_as_they_are(run: Command) -> None:
    assert run("compile", SMALL, "-o", "a.so")[0] == 0
    change_manifest(Path("a.so.json"), device="\x1b[2J")
    assert r"for \x1b[2J, 1 thread" in run("run", "a.so")[1]
    row = {"name": "a\nb\u202e"}
    assert _output.render([row], "markdown").splitlines()[-1] == r"| a\nb\u202e |"


def test_compile_and_run_have_json(run: Command) -> None:
    status, out, err = run("compile", SMALL, OTHER, "-o", "all", "--format", "json")
    assert (status, err) == (0, "")
    one, other = json.loads(out)
    assert (one["output"], one["workload"]) == (f"all/{SMALL}.so", SMALL)
    assert one["bytes"] == Path(one["output"]).stat().st_size and one["seconds"] > 0
    assert dc.Blocking.from_dict(one["blocking"]) == dc.load(one["output"]).blocking
    assert other["name"] == "toy:first layer"
    status, out, _ = run("run", one["output"], "--format", "json")
    found = json.loads(out)
    assert status == 0 and (found["workload"], found["max_error"]) == (SMALL, 0)
    assert found["seconds"] > 0 and found["threads"] == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (2.5e-9, "2.5 ns"),
        (0.0000123, "12.3 µs"),
        (0.018567, "18.6 ms"),
        (0.99996, "1 s"),
        (4.2, "4.2 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min"),
        (130, "2 min 10 s"),
        (3599.6, "1 h"),
        (3900, "1 h 5 min"),
        (90061, "25 h 1 min"),
    ],
)
def test_times_are_as_people_write_them(seconds: float, text: str) -> None:
    assert _output.time_of(seconds) == text


def test_json_has_null_for_what_is_no_number() -> None:
    values = {"a": [float("nan"), 1.5], "b": (float("inf"), {"c": -float("inf")})}
    assert json.loads(_output.as_json(values)) == {"a": [None, 1.5], "b": [None, {"c": None}]}


# --- Output -----------------------------------------------------------------------------------


def test_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{f"column {n}": chr(ord("a") + n) * (40 + n) for n in range(20)}]
    for terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setenv("COLUMNS", "30")
        text = _output.render(rows, "table")
        for value in rows[0].values():
            assert text.count(value[0]) >= len(value)
            assert (value in text) != terminal
        assert "…" not in text


def test_cells_are_written_as_they_are() -> None:
    row = {"a": "x|y [bold]", "b": None, "c": True, "d": [1, 2], "e": 1 / 3, "f": 'q"\n,'}
    assert (
        _output.render([row], "markdown")
        .splitlines()[2]
        .startswith(r"| x\|y [bold] |  | yes | 1, 2 | 0.3333 |")
    )
    assert "x|y [bold]" in _output.render([row], "table")
    assert json.loads(_output.render([row], "json")) == [row]
    (back,) = csv.DictReader(io.StringIO(_output.render([row], "csv")))
    assert back["f"] == 'q"\n,' and float(back["e"]) == 1 / 3 and back["d"] == "1, 2"
