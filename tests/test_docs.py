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
import tomllib
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
from tvm_directconv.versions import pins

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES)
}
SCRIPTS = (
    "scripts/demo",
    "scripts/demo_board",
    "scripts/deploy_pi",
    "scripts/docs",
    "scripts/tune_x86",
    "scripts/tune_board",
    "scripts/check_arm",
    "scripts/check_search",
    "scripts/fingerprint",
    "scripts/fit_model",
    "scripts/compare_arm",
    "scripts/compare_networks",
    "scripts/compare_pools",
    "scripts/compare_types",
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
    ["pip", "install", ".[compare]"],
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


# --- Following the documents -------------------------------------------------------------------


@dataclass
class Followed:
    """What is there when somebody has done all that a document says."""

    folder: Path
    names: dict[str, Any]
    printed: str
    done: set[str]


class Reader:
    """Does what documents say from top to end: README first, each page in a folder like README's.

    So a page may need what README makes, and nothing of another page. Commands that README has are
    not repeated.
    """

    def __init__(self, make_folder: Callable[[str], Path]) -> None:
        self._make_folder = make_folder
        self._followed: dict[str, Followed] = {}

    def follow(self, name: str) -> Followed:
        """Follow a document, the first time that it is asked for."""
        if name not in self._followed:
            self._followed[name] = self._follow(name)
        return self._followed[name]

    def _follow(self, name: str) -> Followed:
        folder = self._make_folder(Path(name).stem)
        done: set[str] = set()
        if name == "README.md":
            # Commands on files of the repository are written for its root.
            (folder / "tvm_directconv").symlink_to(ROOT / "tvm_directconv")
        else:
            readme = self.follow("README.md")
            done = set(readme.done)
            shutil.copytree(
                readme.folder, folder, symlinks=True, copy_function=os.link, dirs_exist_ok=True
            )
        names: dict[str, Any] = {}
        printed = io.StringIO()
        with contextlib.chdir(folder):
            for block in blocks(DOCUMENTS[name]):
                if block.file:
                    Path(block.file).write_text(block.code)
                elif block.language == "python":
                    with contextlib.redirect_stdout(printed):
                        exec(block.code, names)
                elif block.language == "text":
                    pass
                elif re.search(r"\$\(|>", block.code):
                    shell(block.code)
                else:
                    assert block.language == "sh"
                    for words in shell_lines(f"```sh\n{block.code}```"):
                        if shlex.join(words) not in done:
                            follow(words)
                        done.add(shlex.join(words))
        return Followed(folder, names, printed.getvalue(), done)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(tmp_path_factory.mktemp)


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
    elif words[0] in ("aarch64-linux-gnu-gcc", "cc", "make", "./app", "qemu-aarch64"):
        subprocess.run(words, check=True)
    else:
        # Those that take hours, whatever they are told.
        of_hours = words[0] in (
            "scripts/compare_arm",
            "scripts/compare_networks",
            "scripts/test",
        )
        assert of_hours or words[:3] in NOT_FOLLOWED, words


def test_the_readme_can_be_followed(reader: Reader) -> None:
    """Examples in Python check their results themselves, and `run` and `bench` do, too."""
    followed = reader.follow("README.md")
    assert "Predicted: " in followed.printed
    assert isinstance(followed.names["conv"], dc.CompiledConv)


@pytest.mark.parametrize(
    "name", [name for name in DOCUMENTS if blocks(DOCUMENTS[name]) and name != "README.md"]
)
def test_the_document_can_be_followed(name: str, reader: Reader) -> None:
    assert reader.follow(name).done


def test_explain_prints_what_the_document_shows(reader: Reader) -> None:
    shown = [b.code for b in blocks(DOCUMENTS["docs/devices.md"]) if b.language == "text"]
    file = reader.follow("docs/devices.md").folder / "slow-loads.toml"
    for device, code in zip(("cortex-a72", str(file)), shown, strict=True):
        printed = command("explain", "googlenet:3a_1x1", "--device", device).splitlines()
        assert set(code.splitlines()) <= set(printed)


@pytest.mark.parametrize("language", ["c", "cpp"])
def test_the_examples_compute_the_same(language: str, reader: Reader) -> None:
    followed = reader.follow("docs/embedding.md")
    scores = followed.names["scores"]
    found = np.fromfile(followed.folder / f"scores-{language}.bin", scores.dtype)
    np.testing.assert_array_equal(found.reshape(scores.shape), scores)


def test_the_runner_is_called_as_printed(reader: Reader) -> None:
    followed = reader.follow("docs/boards.md")
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


# --- Tables ------------------------------------------------------------------------------------


def rows_under(name: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading of a document."""
    section = f"\n{DOCUMENTS[name]}".split(f"\n{heading}\n")[1]
    rows = re.search(r"^\| ---.*\n((?:\|.*\n)+)", section, re.M)
    assert rows
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in rows[1].splitlines()]


def code_under(name: str, heading: str, column: int = 0) -> list[str]:
    """Return the pieces of code in a column of the first table under a heading."""
    rows = rows_under(name, heading)
    return [code for row in rows for code in re.findall(r"`([^`]+)`", row[column])]


def test_the_manifests_keys_are_explained(reader: Reader) -> None:
    manifest = json.loads((reader.follow("README.md").folder / "conv.so.json").read_text())
    assert code_under("docs/convolutions.md", "## Manifests") == [*manifest]


def test_the_keys_and_columns_of_networks_are_explained(reader: Reader) -> None:
    library = reader.follow("README.md").folder / "squeezenet.so"
    manifest = json.loads(library.with_name("squeezenet.so.json").read_text())
    keys = code_under("docs/networks.md", "## The library and its manifest")
    assert sorted(keys) == sorted(manifest)
    row, *_ = json.loads(command("profile", str(library), "--repeat", "1", "--format", "json"))
    assert code_under("docs/networks.md", "## Profiling") == [*row]


def test_the_columns_of_bench_are_explained() -> None:
    words = ("bench", "ic16ih9oc16oh9kh3ph1", "--repeat", "1", "--against", "model")
    (row,) = json.loads(command(*words, "--format", "json"))
    heading = "## What `bench` prints"
    assert code_under("docs/benchmarking.md", heading) == [*row]
    table = command(*words, "--format", "markdown").splitlines()
    told = [cells[1] for cells in rows_under("docs/benchmarking.md", heading)]
    assert list(filter(None, told)) == [cell.strip() for cell in table[0].strip("|").split("|")]


def test_the_keys_of_reports_are_explained() -> None:
    explained = code_under("docs/benchmarking.md", "## What rows hold")
    assert explained == page.table(Results([])).strip().split(",")


def test_every_device_in_the_table_of_boards_is_one() -> None:
    for name in code_under("docs/boards.md", "# Boards", column=1):
        assert any("Raspberry Pi" in board for board in dc.device(name).boards)


def test_all_devices_are_listed() -> None:
    rows = [[f"`{d.name}`", d.description, ", ".join(d.boards)] for d in dc.devices()]
    assert rows_under("docs/devices.md", "## Devices") == rows


def test_all_extras_are_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = code_under("docs/install.md", "## With pip")
    assert sorted(listed) == sorted(project["optional-dependencies"])


def test_exact_versions_are_those_that_are_installed() -> None:
    table = DOCUMENTS["docs/compatibility.md"]
    named = dict(re.findall(r"^\| `(.*)` \| exactly (\S+) ", table, re.M))
    assert named == pins()


# --- The documentation as a whole --------------------------------------------------------------


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    """Links and their anchors, and what docstrings name, are among what Sphinx warns of."""
    words = (sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going")
    built = subprocess.run(
        [*words, "-c", ROOT / "docs", ROOT, tmp_path], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr


def test_the_index_lists_every_page() -> None:
    linked = re.findall(r"\]\((\w[\w-]*\.md)\)", DOCUMENTS["docs/index.md"])
    assert sorted(linked) == [path.name for path in PAGES if path.name != "index.md"]


def test_the_api_has_every_public_name() -> None:
    described = re.findall(r"^\.\. auto\w+:: (\w+)$", DOCUMENTS["docs/api.md"], re.M)
    assert sorted(described) == sorted({*dc.__all__} - {"__version__"})


# --- What the documents name -------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_exist(name: str, reader: Reader) -> None:
    path = re.compile(r"\.?[\w-]+(/[\w.-]*)+|[\w-]+(\.\w+)?\.(py|toml|md|c|txt|so|json|bin)")
    named = {word for code in inline_code(DOCUMENTS[name]) for word in code.split()}
    named = {word for word in named if path.fullmatch(word)}
    assert len(named) > 10 or name != "CONTRIBUTING.md"
    missing = {word for word in named if not (ROOT / word).exists()}
    # Written by the example on the board, by reports and by scripts; TVM's; made up.
    missing -= {"y.bin", "report.md", "environment.json", "build/docs", "libtvm_ffi.so"}
    missing -= {"libtvm_runtime.so", "model.onnx", "my_layers.txt"}
    if missing:
        folder = reader.follow(name).folder
        assert all(
            (folder / word).exists() or (folder / "squeezenet" / word).exists() for word in missing
        ), missing


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_members_exist(name: str) -> None:
    classes = (dc.Blocking, dc.ConvWorkload, dc.CompiledConv, dc.Device)
    members = {f"{c.__name__}.{m}" for c in classes for m in [*vars(c), *c.__annotations__]}
    pattern = rf"\b(?:{'|'.join(c.__name__ for c in classes)})\.\w+"
    assert set(re.findall(pattern, DOCUMENTS[name])) <= members


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))


@pytest.fixture(scope="module")
def known_flags() -> dict[str, set[str]]:
    """Return the flags of each command."""
    return {sub: flags(command(sub, "--help")) for sub in COMMANDS}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_flags_exist(name: str, known_flags: dict[str, set[str]]) -> None:
    scripts = (ROOT / "scripts/_demo_board.py", ROOT / "tests/conftest.py")
    everywhere = set().union(
        *known_flags.values(),
        *(flags(path.read_text()) for path in scripts),
        {"--port-end", "--key"},  # of TVM's RPC
    )
    for code in inline_code(DOCUMENTS[name]):
        of_command = re.match(r"tvm-directconv (\w+)", code)
        assert flags(code) <= (known_flags[of_command[1]] if of_command else everywhere), code


def test_named_commands_exist() -> None:
    text = "\n".join(DOCUMENTS.values())
    lines = [" ".join(words) for words in shell_lines(text)]
    named = [
        found[1]
        for code in [*inline_code(text), *lines]
        if (found := re.match(r"tvm-directconv (\w+)", code))
    ]
    assert set(named) == set(COMMANDS)


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
CROSS = f"{BOARD} gcc-riscv64-linux-gnu libc6-dev-riscv64-cross g++ llvm-19 cmake"


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
