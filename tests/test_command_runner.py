"""Candidates behind a command: emulators, a make-believe ssh, and all that can go wrong there."""

import json
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import numpy as np
import pytest
from conftest import compiled
from test_runner import compile_c

from tvm_directconv import Blocking, CompiledConv, ConvWorkload, build, conv_manifest, device
from tvm_directconv.bench.compare import Comparison, Failure
from tvm_directconv.case import Case, channel_block
from tvm_directconv.cli import main
from tvm_directconv.conv_manifest import ConvManifest
from tvm_directconv.errors import ToolchainError
from tvm_directconv.hardware.host import host_cpu
from tvm_directconv.layout import ActivationLayout
from tvm_directconv.manifest import manifest_path
from tvm_directconv.toolchain import find_toolchain
from tvm_directconv.tuning.runners.command import CommandRunner
from tvm_directconv.tuning.space import Space

# Its output channels fill only a part of their last block where vectors have 8 lanes or more.
LAYER = ConvWorkload.parse("ic32ih7oc20oh7kh3ph1")
OUTPUTS = 7 * 7 * ActivationLayout.blocked(channel_block(20, device("native"))).channels(20)
A72 = "qemu-aarch64 -cpu cortex-a72 -L /usr/aarch64-linux-gnu {runner}"
A76 = "qemu-aarch64 -cpu cortex-a76 -L /usr/aarch64-linux-gnu {runner}"
A15 = "qemu-arm -cpu cortex-a15 -L /usr/arm-linux-gnueabihf {runner}"

Make = Callable[..., CommandRunner]


@pytest.fixture
def make() -> Iterator[Make]:
    """Return a function that makes runners, which are closed after the test."""
    made = []

    def runner(name: str, command: str, **options: object) -> CommandRunner:
        made.append(CommandRunner(device(name), command, **options))
        return made[-1]

    yield runner
    for each in made:
        each.close()


def other_tile(conv: CompiledConv) -> CompiledConv:
    """Compile the same for another tile, with weights in blocks of another size."""
    knobs = {**conv.blocking.to_dict(), "ow_tile": 2, "ic_block": 32, "ic_unroll": 1}
    return build(LAYER, conv.manifest.device, 1, Blocking.from_dict(knobs))


def test_in_emulators_and_natively(make: Make, tmp_path: Path) -> None:
    for name, command in (("cortex-a72", A72), ("armv7", A15), ("native", "{runner}")):
        conv = compiled(LAYER, name)
        first = conv.export(tmp_path / "first.so")
        second = other_tile(conv).export(tmp_path / "second.so")
        runner = make(name, command)
        # These emulators show the processor below them.
        assert (runner.cpu, runner.cpu_name) == host_cpu()
        assert runner.cpu_device == device(name).name
        alone = runner.measure(first, None, 2)
        assert isinstance(alone, Comparison), alone
        assert len(alone.seconds) == 2
        assert (alone.over_incumbent, alone.of_peak) == ((), ())
        both = runner.measure(second, first, 3, thorough=True)
        assert isinstance(both, Comparison), both
        assert all(0 < seconds < 10 for seconds in both.seconds)
        assert len(both.over_incumbent) == 3
        assert all(0.01 < ratio < 100 for ratio in both.over_incumbent)


@pytest.mark.parametrize(
    ("name", "command", "dtype"), [("cortex-a76", A76, "uint8"), ("native", "{runner}", "int8")]
)
def test_layers_of_whole_numbers(
    make: Make,
    name: str,
    command: str,
    dtype: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On ARM and x86, these pixels are shifted, for which a bias makes up.
    case = Case.of(f"{dtype}_{LAYER}", name)
    first, second = (
        build(case.workload, name, blocking=b).export(tmp_path / f"{b.ow_tile}.so")
        for b in (Space(case).points[0], Space(case).points[-1])
    )
    both = make(name, command).measure(second, first, 2, thorough=True)
    assert isinstance(both, Comparison), both
    assert len(both.over_incumbent) == 2
    monkeypatch.setattr(conv_manifest, "corrected_bias", lambda *_: np.zeros((20, 3, 3), np.int32))
    wrong = make(name, command).measure(second, None, 2)
    assert isinstance(wrong, Failure) and wrong.kind == "wrong_result"
    # The last block has vectors that nothing is stored to, if it has more of them.
    assert re.match(r"9[5-8]\d of \d+ outputs differ", wrong.message), wrong.message


# Whole numbers, and floats: what is found is for these alone.
@pytest.mark.parametrize(
    ("name", "command", "layer"),
    [("cortex-a76", A76, f"uint8_{LAYER}"), ("armv7", A15, str(LAYER))],
)
def test_tune_in_an_emulator_and_compile_with_what_was_found(
    name: str, command: str, layer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [layer, "--device", name, "--logs", str(tmp_path)]
    found = ["--trials", "4", "--strategy", "random", "--format", "json"]
    assert main(["tune", *where, *found, "--runner", command]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["trials"], row["failures"], row["problem"]) == (4, 0, None)
    library = tmp_path / "tuned.so"
    assert main(["compile", *where, "-o", str(library)]) == 0
    manifest = ConvManifest.read(manifest_path(library), library.read_bytes())
    assert str(manifest.blocking) == row["blocking"]
    assert manifest.blocking_source.startswith(f"log {name}.jsonl: exact, measured")


def test_several_threads(make: Make, tmp_path: Path) -> None:
    parallel = compiled(LAYER, "native", 2).export(tmp_path / "parallel.so")
    script = f'echo "$*" >> {tmp_path}/log; exec "$@"'
    runner = make("native", f"sh -c {shlex.quote(script)} x {{runner}}")
    assert isinstance(runner.measure(parallel, None, 1), Comparison)
    lines = (tmp_path / "log").read_text().splitlines()[1:]
    assert len(lines) == 2
    assert all(" --threads 2 " in line for line in lines)
    # Batches of a known kernel: enough calls to be timed, a warm-up, several of them.
    assert " --repeat 1 " in lines[0] and " --warmup 1 " in lines[1]


class Board:
    """Programs that stand for ssh and rsync, and a folder that stands for a board's files."""

    def __init__(self, folder: Path) -> None:
        self.here, self.there = folder / "here", folder / "there"
        self.down = folder / "down"
        self.log = folder / "log"
        self.here.mkdir()
        self.there.mkdir()
        self.log.touch()
        move = f"sed 's#{self.here}#{self.there}#g'"
        check = f"[ -e {self.down} ] && echo >&2 welcome && echo >&2 no route to host && exit 255"
        # Like ssh: a banner, and a shell that splits the words once more.
        self._write(folder / "ssh", f'{check}\necho welcome; exec sh -c "$(echo "$*" | {move})"')
        self._write(folder / "scp", f'{check}\necho . >> {self.log}; cp -rp "$1" "{self.there}"')
        self.command = f"{folder}/ssh {{runner}}"
        self.copy = f"{folder}/scp {{folder}}"

    @staticmethod
    def _write(path: Path, script: str) -> None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    @property
    def copies(self) -> int:
        return len(self.log.read_text().split())


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    board = Board(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(board.here))
    return board


def test_files_are_copied_when_they_change(make: Make, board: Board, tmp_path: Path) -> None:
    conv = compiled(LAYER, "native")
    first = conv.export(tmp_path / "first.so")
    second = other_tile(conv).export(tmp_path / "second.so")
    runner = make("native", board.command, copy=board.copy)
    assert board.copies == 1  # the runner itself
    for candidate, incumbent, copies in (
        (first, None, 2),
        (first, None, 2),
        (second, first, 3),
        (first, second, 3),
        (second, None, 3),
        (first, None, 4),  # had been removed
    ):
        result = runner.measure(candidate, incumbent, 1)
        assert isinstance(result, Comparison), result
        assert board.copies == copies
        (folder,) = board.here.iterdir()
        # The runner, libraries, one input and output, and weights as each library wants them.
        assert len(list(folder.iterdir())) == (7 if incumbent else 5)
    runner.close()
    assert not list(board.here.iterdir())


def test_without_copying_nothing_is_there(board: Board) -> None:
    with pytest.raises(ToolchainError, match=r"does not start the runner: .*/runner.* not found"):
        CommandRunner(device("native"), board.command)
    assert not list(board.here.iterdir())


def test_a_board_that_goes_away(make: Make, board: Board, tmp_path: Path) -> None:
    library = compiled(LAYER, "native").export(tmp_path / "conv.so")
    runner = make("native", board.command, copy=board.copy)
    board.down.touch()
    lost = runner.measure(library, None, 1)
    assert lost == Failure("rpc_lost", "cannot copy: no route to host")
    board.down.unlink()
    assert isinstance(runner.measure(library, None, 1), Comparison)
    board.down.touch()
    assert runner.measure(library, None, 1) == Failure("rpc_lost", "no route to host")
    with pytest.raises(ToolchainError, match=r"ssh .* does not start the runner: .*no route"):
        CommandRunner(device("native"), board.command, board.copy)


def test_words_for_another_shell(make: Make, tmp_path: Path) -> None:
    library = compiled(LAYER, "native").export(tmp_path / "conv.so")
    runner = make("native", 'sh -c "cd {folder} && HERE=${HOME} exec {runner}"')
    assert isinstance(runner.measure(library, None, 1), Comparison)


def test_a_folder_that_shells_would_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my files").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "my files"))
    with pytest.raises(ToolchainError, match=r"my files/.*: set TMPDIR to a folder"):
        CommandRunner(device("native"), "{runner}")
    assert not list((tmp_path / "my files").iterdir())


@pytest.mark.parametrize(
    ("command", "copy", "message"),
    [
        ("ssh board", None, r"'ssh board' has no \{runner\}: put it where the program"),
        ("", None, r"has no \{runner\}"),
        ("ssh {board} {runner}", None, r"unknown placeholder \{board\}: expected \{runner\} or"),
        ("{} {runner}", None, r"unknown placeholder \{\}"),
        ("sh -c '{runner}", None, r"cannot split .* \(No closing quotation\): quote it"),
        ("{runner}", "rsync here there", r"'rsync here there' has no \{folder\}: put it where"),
        ("{runner}", "{runner} {folder}", r"unknown placeholder \{runner\}: expected \{folder\}$"),
        ("qemu-nothing {runner}", None, r"runner: cannot start qemu-nothing: No such file"),
        ("false {runner}", None, r"runner: exit status 1 without a message. Try this command"),
        ("{runner}", "false {folder}", r"cannot copy: exit status 1 without a message"),
        ("sh -c 'echo one; echo two >&2; exit 255' {runner}", None, r"the runner: two\. Try"),
        ("qemu-aarch64 -cpu cortex-a999 {runner}", None, r"cortex-a999.*Try this command"),
    ],
)
def test_commands_that_do_not_work(
    command: str, copy: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ToolchainError, match=message):
        CommandRunner(device("native"), command, copy)
    assert not list(tmp_path.glob(".tvm_directconv-*"))


# --- Libraries that fail


def broken(folder: Path, body: str, name: str = "native") -> Path:
    """Export a convolution and put other code into its library."""
    conv = compiled(LAYER, name)
    path = conv.export(folder / "broken.so")
    toolchain = find_toolchain(device(name).triple)
    code = f"int __tvm_ffi_{conv.manifest.symbol}(void *self, const void *args) {{ {body} }}"
    manifest = path.with_name(path.name + ".json")
    compile_c(code, folder, toolchain).replace(path)
    text = conv.manifest.to_dict(path.read_bytes())
    manifest.write_text(json.dumps(text))
    return path


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("return 0;", "wrong_result", f"{OUTPUTS} of {OUTPUTS} outputs differ from the reference"),
        ("return -1;", "crash", "the kernel failed without a message"),
        ("return *(volatile int *)0;", "crash", "killed by SIGSEGV"),
        ("__builtin_trap();", "crash", "lacks an instruction"),
        ("for (;;) {}", "timeout", ""),
    ],
)
def test_libraries_that_fail(
    make: Make, board: Board, tmp_path: Path, body: str, kind: str, message: str
) -> None:
    library = broken(tmp_path, body)
    good = compiled(LAYER, "native").export(tmp_path / "good.so")
    # Whatever ends the program, this ssh does not tell.
    hiding = board.command.replace("{runner}", "'{runner} || exit 255'")
    for command in (board.command, hiding) if kind == "crash" else (board.command,):
        runner = make("native", command, copy=board.copy, time_limit=2)
        if command == board.command:
            assert isinstance(runner.measure(good, None, 1), Comparison)
        failure = runner.measure(library, None, 1)
        assert isinstance(failure, Failure)
        assert failure.kind == kind
        assert message in failure.message


@pytest.mark.parametrize("name", ["cortex-a72", "armv7"])
def test_a_crash_in_an_emulator(make: Make, tmp_path: Path, name: str) -> None:
    library = broken(tmp_path, "return *(volatile int *)0;", name)
    runner = make(name, {"cortex-a72": A72, "armv7": A15}[name])
    failure = runner.measure(library, None, 1)
    assert isinstance(failure, Failure)
    assert failure.kind == "crash"
    assert "SIGSEGV" in failure.message


def test_an_incumbent_that_fails_is_no_fault_of_the_candidate(make: Make, tmp_path: Path) -> None:
    library = broken(tmp_path, "return 0;")
    good = compiled(LAYER, "native").export(tmp_path / "good.so")
    failure = make("native", "{runner}").measure(good, library, 1)
    assert isinstance(failure, Failure)
    assert failure.kind == "rpc_lost"
    assert failure.message.startswith(f"the incumbent no longer runs: {OUTPUTS} of")


def test_the_results_of_timed_runs_are_checked_too(make: Make, tmp_path: Path) -> None:
    conv = compiled(LAYER, "native")
    size = 4 * prod(conv.manifest.output_shape)
    # Before the second run, all that is expected becomes zero.
    spoil = "case $* in *--warmup*) truncate -s 0 {folder}/*.output; "
    spoil += f'truncate -s {size} {{folder}}/*.output ;; esac; exec "$@"'
    runner = make("native", f"sh -c {shlex.quote(spoil)} x {{runner}}")
    failure = runner.measure(conv.export(tmp_path / "good.so"), None, 1)
    assert isinstance(failure, Failure)
    assert failure.kind == "wrong_result"


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_everything_is_ended_after_the_time_limit(make: Make, tmp_path: Path) -> None:
    good = compiled(LAYER, "native").export(tmp_path / "good.so")
    script = f"case $2 in --cpu) exec $1 $2;; esac; sleep 60 & echo $! > {tmp_path}/pid; wait"
    runner = make("native", f"sh -c {shlex.quote(script)} x {{runner}}", time_limit=2)
    begin = time.monotonic()
    assert runner.measure(good, None, 1) == Failure("timeout", "no result within 2 s")
    assert time.monotonic() - begin < 10
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not is_running(pid):
            break
        time.sleep(0.1)
    assert not is_running(pid)


def test_a_copy_that_hangs(make: Make, tmp_path: Path) -> None:
    hang = f"sh -c '[ ! -e {tmp_path}/hang ] || sleep 60' {{folder}}"
    runner = make("native", "{runner}", copy=hang, time_limit=1)
    (tmp_path / "hang").touch()
    good = compiled(LAYER, "native").export(tmp_path / "good.so")
    failure = runner.measure(good, None, 1)
    assert failure == Failure("rpc_lost", "cannot copy: no result within 1 s")


def test_a_process_that_is_left_behind_does_not_matter(make: Make, tmp_path: Path) -> None:
    # As ssh does it to share connections: it keeps the output open.
    script = f'setsid sleep 30 & echo $! > {tmp_path}/pid; exec "$@"'
    begin = time.monotonic()
    make("native", f"sh -c {shlex.quote(script)} x {{runner}}")
    assert time.monotonic() - begin < 10
    os.kill(int((tmp_path / "pid").read_text()), 15)
