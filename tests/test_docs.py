"""The documents and the scripts: what a reader is told to do can be done."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COMMANDS

import tvm_directconv as dc
from tvm_directconv.bench.report import page
from tvm_directconv.bench.report.figures import Results
from tvm_directconv.cli import _parse, main
from tvm_directconv.logs.folders import folders
from tvm_directconv.toolchain import find_toolchain

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}
README = DOCUMENTS["README.md"]
SCRIPTS = (
    "scripts/demo",
    "scripts/demo_board",
    "scripts/deploy_pi",
    "scripts/tune_x86",
    "scripts/tune_board",
    "scripts/check_arm",
    "scripts/check_search",
    "scripts/compare_networks",
    "scripts/compare_pools",
    "scripts/reproduce_paper",
    "scripts/test",
    ".ci/run",
)
# Too slow, or not for a test to do.
NOT_FOLLOWED = (
    ["scripts/demo"],
    ["scripts/deploy_pi", "--emulate"],
    ["scripts/deploy_pi", "pi@raspberrypi.local"],
    ["scripts/tune_x86"],
    ["scripts/reproduce_paper"],
    ["scripts/test"],
    ["pip", "install", "."],
    ["python", "-m", "tvm.exec.rpc_tracker"],
    ["python", "-m", "tvm.exec.rpc_server"],
    ["ssh", "-L", "9090:127.0.0.1:9090"],
)


@dataclass(frozen=True)
class Block:
    """Code between fences."""

    language: str
    code: str

    @property
    def file(self) -> str | None:
        """The name of the file that it shows, which stands in its first line."""
        first = re.match(r"(?:#|/\*) ([\w-]+\.(py|toml|c))\b", self.code)
        return first[1] if first else None


def blocks(text: str) -> list[Block]:
    return [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)]


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def shell_lines(text: str) -> list[list[str]]:
    code = [b.code.replace("\\\n", " ") for b in blocks(text) if b.language == "sh"]
    lines = [line for text in code for line in text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def command(*words: str) -> str:
    """Run the command line in this process; return what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
    assert status == 0, words
    return out.getvalue()


# --- Following the README ----------------------------------------------------------------------


@dataclass
class Followed:
    """What is there when somebody has done all that the README says."""

    folder: Path
    names: dict[str, Any]
    printed: str


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    """Do what the README says, from its top to its end."""
    folder = tmp_path_factory.mktemp("readme")
    # Commands on files of the repository are written for its root.
    (folder / "tvm_directconv").symlink_to(ROOT / "tvm_directconv")
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.chdir(folder):
        for block in blocks(README):
            if block.file:
                Path(block.file).write_text(block.code)
            elif block.language == "python":
                with contextlib.redirect_stdout(printed):
                    exec(block.code, names)
            elif re.search(r"\$\(|>", block.code):
                shell(block.code)
            else:
                assert block.language == "sh"
                for words in shell_lines(f"```sh\n{block.code}```"):
                    follow(words)
    return Followed(folder, names, printed.getvalue())


def shell(code: str) -> None:
    """Run what needs a shell, with this environment's commands."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-euc", code], check=True, env={**os.environ, "PATH": path})


def follow(words: list[str]) -> None:
    if words[:2] == ["tvm-directconv", "tune"]:
        _parse(words[1:])
        if words[2].startswith("ic"):  # A network takes minutes, and boards are not here.
            command(*words[1:], "--trials", "2")
            (log,) = folders()[0].iterdir()
            for copy in ("mine.jsonl", "yours.jsonl"):
                shutil.copy(log, copy)
    elif words[:2] == ["tvm-directconv", "report"]:
        _parse(words[1:])  # It takes hours.
    elif words[0] == "tvm-directconv":
        command(*words[1:])
    elif words[0] in ("aarch64-linux-gnu-gcc", "cc", "make", "./app"):
        subprocess.run(words, check=True)
    else:
        assert words[:3] in NOT_FOLLOWED


def test_the_readme_can_be_followed(followed: Followed) -> None:
    """Examples in Python check their results themselves, and `run` and `bench` do, too."""
    assert "Predicted: " in followed.printed
    assert isinstance(followed.names["conv"], dc.CompiledConv)


@pytest.mark.parametrize("language", ["c", "cpp"])
def test_the_examples_compute_the_same(language: str, followed: Followed) -> None:
    scores = followed.names["scores"]
    found = np.fromfile(followed.folder / f"scores-{language}.bin", scores.dtype)
    np.testing.assert_array_equal(found.reshape(scores.shape), scores)


def test_the_runner_is_called_as_printed(followed: Followed) -> None:
    names, folder = followed.names, followed.folder
    target = dc.device("cortex-a72")
    toolchain = find_toolchain(target.triple, target.qemu_cpu)
    words = shlex.split(followed.printed.splitlines()[-1])
    assert words[0] == "./runner"
    result = subprocess.run(toolchain.command(*words), cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["allocated_bytes"] == 0
    y = np.fromfile(folder / "y.bin", np.float32).reshape(names["m"].output_shape)
    pi = names["pi"]
    expected = dc.conv2d_reference(names["x"], names["weight"], pi.workload)
    assert dc.max_error(pi.unpack_output(y), expected) < 1e-4


def table_under(heading: str) -> list[list[list[str]]]:
    """Return the pieces of code in each cell of the first table under a heading of the README."""
    section = README.split(f"\n{heading}\n")[1]
    rows = re.search(r"^\| ---.*\n((?:\|.*\n)+)", section, re.M)
    assert rows
    return [
        [re.findall(r"`([^`]+)`", cell) for cell in line.strip("| ").split(" | ")]
        for line in rows[1].splitlines()
    ]


def test_the_manifests_keys_are_explained(followed: Followed) -> None:
    manifest = json.loads((followed.folder / "conv.so.json").read_text())
    explained = [key for row in table_under("## Libraries") for key in row[0]]
    assert explained == [*manifest]


def test_the_keys_and_columns_of_networks_are_explained(followed: Followed) -> None:
    library = followed.folder / "squeezenet.so"
    manifest = json.loads((followed.folder / "squeezenet.so.json").read_text())
    section = README.split("\n## Networks\n")[1].split("\n## ")[0]
    keys, columns = (
        [word for line in table.splitlines() for word in re.findall(r"`(\w+)`", line.split("|")[1])]
        for table in re.findall(r"^\| ---.*\n((?:\|.*\n)+)", section, re.M)
    )
    assert sorted(keys) == sorted(manifest)
    row, *_ = json.loads(command("profile", str(library), "--repeat", "1", "--format", "json"))
    assert columns == [*row]


def test_the_columns_of_bench_are_explained() -> None:
    words = ("bench", "ic16ih9oc16oh9kh3ph1", "--repeat", "1", "--against", "model")
    (row,) = json.loads(command(*words, "--format", "json"))
    explained = [key for row in table_under("### What `bench` prints") for key in row[0]]
    assert explained == [*row]
    table = command(*words, "--format", "markdown").splitlines()
    headings = [cell.strip() for cell in table[0].split("|")]
    section = README.split("### What `bench` prints")[1].split("## ")[0]
    told = [cells[2].strip() for line in section.splitlines() if len(cells := line.split("|")) > 3]
    assert [heading for heading in told[2:] if heading] == headings[1:-1]


def test_the_keys_of_reports_are_explained() -> None:
    explained = [key for row in table_under("### What rows hold") for key in row[0]]
    assert explained == page.table(Results([])).strip().split(",")


# --- What the documents name -------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_exist(name: str, followed: Followed) -> None:
    path = re.compile(r"\.?[\w-]+(/[\w.-]*)+|[\w-]+(\.\w+)?\.(py|toml|md|c|txt|so|json|bin)")
    named = {word for code in inline_code(DOCUMENTS[name]) for word in code.split()}
    named = {word for word in named if path.fullmatch(word)}
    assert len(named) > 10
    places = (ROOT, followed.folder, followed.folder / "squeezenet")
    missing = [word for word in named if not any((place / word).exists() for place in places)]
    # Written by the example on the board, and by a report; TVM's.
    written = {"y.bin", "report.md", "environment.json"}
    assert set(missing) <= {*written, "libtvm_ffi.so", "libtvm_runtime.so"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_members_exist(name: str) -> None:
    classes = (dc.Blocking, dc.ConvWorkload, dc.CompiledConv, dc.Device)
    members = {f"{c.__name__}.{m}" for c in classes for m in [*vars(c), *c.__annotations__]}
    pattern = rf"\b(?:{'|'.join(c.__name__ for c in classes)})\.\w+"
    assert set(re.findall(pattern, DOCUMENTS[name])) <= members


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_flags_exist(name: str) -> None:
    known = {sub: flags(command(sub, "--help")) for sub in COMMANDS}
    scripts = (ROOT / "scripts/_demo_board.py", ROOT / "tests/conftest.py")
    everywhere = set().union(*known.values(), *(flags(path.read_text()) for path in scripts))
    for code in inline_code(DOCUMENTS[name]):
        of_command = re.match(r"tvm-directconv (\w+)", code)
        assert flags(code) <= (known[of_command[1]] if of_command else everywhere), code


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_commands_exist(name: str) -> None:
    lines = [" ".join(words) for words in shell_lines(DOCUMENTS[name])]
    named = [
        found[1]
        for code in [*inline_code(DOCUMENTS[name]), *lines]
        if (found := re.match(r"tvm-directconv (\w+)", code))
    ]
    assert named and set(named) <= set(COMMANDS)


def test_every_device_in_the_table_of_boards_is_one() -> None:
    for row in table_under("## Raspberry Pi"):
        (name,) = row[1]
        assert any("Raspberry Pi" in board for board in dc.device(name).boards)


# --- The scripts -------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [*SCRIPTS, "scripts/_environment"])
def test_scripts_are_well_formed(script: str) -> None:
    assert subprocess.run(["bash", "-n", ROOT / script]).returncode == 0
    if script in SCRIPTS:
        assert os.access(ROOT / script, os.X_OK)
        text = (ROOT / script).read_text()
        assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text


@pytest.fixture
def bare(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a script of a copy on a machine where next to nothing is."""
    copy, tools = tmp_path / "copy", tmp_path / "tools"
    for folder in ("scripts", ".ci"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    tools.mkdir()
    for tool in ("bash", "cat", "dirname", "env", "sed", "uname", "xargs", "echo"):
        (tools / tool).symlink_to(shutil.which(tool) or "missing")

    def run(script: str, **programs: str) -> subprocess.CompletedProcess[str]:
        for name, code in programs.items():
            (tools / name.replace("_", "-")).write_text(f"#!/usr/bin/env bash\n{code}\n")
            (tools / name.replace("_", "-")).chmod(0o755)
        return subprocess.run(
            [copy / script], cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True
        )

    return run


# Also where the script would find the system's by its full path.
PYTHON = "exit 0"
BOARD = (
    "gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-arm-linux-gnueabihf libc6-dev-armhf-cross "
    "qemu-user make"
)
CROSS = f"{BOARD} g++ llvm-19 cmake"


@pytest.mark.parametrize(
    ("script", "packages"),
    [
        ("scripts/demo", "gcc libc6-dev"),
        ("scripts/deploy_pi", f"gcc libc6-dev {BOARD}"),
        ("scripts/demo_board", f"gcc libc6-dev {CROSS}"),
        ("scripts/test", f"gcc libc6-dev {CROSS}"),
        (".ci/run", f"gcc libc6-dev {CROSS}"),
    ],
)
def test_scripts_say_what_is_missing(bare: Callable[..., Any], script: str, packages: str) -> None:
    """Neither root, nor sudo, nor apt-get."""
    done = bare(script, id="echo 1000", python3=PYTHON)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(f"--no-install-recommends {packages}")


@pytest.mark.parametrize("user", ["0", "1000"])
def test_scripts_install_what_is_missing(
    bare: Callable[..., Any], tmp_path: Path, user: str
) -> None:
    log = tmp_path / "log"
    # As soon as apt-get has run, there is a compiler.
    apt_get = f"""
        echo apt-get "$@" >>{log}
        printf '#!/usr/bin/env bash\\ncat >/dev/null\\n' >{tmp_path}/tools/cc
        {shutil.which("chmod")} +x {tmp_path}/tools/cc
    """
    programs = {"apt_get": apt_get}
    if user != "0":
        programs["sudo"] = f'echo -n "sudo " >>{log}; exec "$@"'
    # The virtual environment is one that only writes down what it is asked for.
    python = f"""
        echo python "$@" >>{log}
        if [ "$2" = venv ]; then
            {shutil.which("mkdir")} -p "$4/bin"
            {shutil.which("cp")} "$0" "$4/bin/python"
            printf '#!/usr/bin/env bash\\necho measured "$@"\\n' >"$4/bin/tvm-directconv"
            {shutil.which("chmod")} +x "$4/bin/tvm-directconv"
        fi
    """
    done = bare("scripts/demo", id=f"echo {user}", python3=python, **programs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("measured bench ")
    lines = [line for line in log.read_text().splitlines() if " -c " not in line]
    sudo = "" if user == "0" else "sudo "
    assert lines[0] == f"{sudo}apt-get update -qq"
    assert lines[1].startswith(f"{sudo}apt-get install ") and lines[1].endswith(" gcc libc6-dev")
    (installed,) = [line for line in lines[2:] if "pip install" in line]
    assert installed.endswith("/copy")  # The package alone: measuring needs no extra.
    assert "MB on the disk" in done.stderr and "minute" in done.stderr

    # What is there is left alone, until pyproject.toml changes.
    log.unlink()
    assert bare("scripts/demo").returncode == 0
    assert "install" not in log.read_text()
    with open(tmp_path / "copy/pyproject.toml", "a") as file:
        file.write("# changed\n")
    assert bare("scripts/demo").returncode == 0
    assert log.read_text().count("pip install") == 1
    assert "apt-get" not in log.read_text() and "venv --clear" not in log.read_text()
