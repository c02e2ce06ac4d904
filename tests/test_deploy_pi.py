"""Networks on a board: in an emulator, and with a program in the place of ssh that emulates one."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from conftest import Result
from onnx_models import Graph

import tvm_directconv as dc
from tvm_directconv.errors import DeviceError
from tvm_directconv.toolchain import elf_info, find_toolchain

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "_deploy_pi.py"
PI4 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""
PI2 = """processor\t: 0
model name\t: ARMv7 Processor rev 5 (v7l)
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm
CPU implementer\t: 0x41
CPU part\t: 0xc07

Model\t\t: Raspberry Pi 2 Model B Rev 1.1
"""
# Runs commands here, where programs of the folder they are in are emulated ones.
SSH = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do echo "$1" >>"$BOARD/options"; shift; done
echo "$1" >>"$BOARD/addresses"
[ ! -e "$BOARD/off" ] || { echo "ssh: connect to host $1 port 22: No route to host" >&2; exit 255; }
uname() { cat "$BOARD/uname"; }
getconf() { cat "$BOARD/$1"; }
cat() {
    [[ $1 != output* || ! -e $BOARD/broken ]] || printf AAAA | dd conv=notrunc status=none of="$1"
    command cat "$@"
}
export -f uname getconf cat
command=${2//\\/proc\\/cpuinfo/$BOARD\\/cpuinfo}
command=${command//.\\/tiny/$EMULATOR .\\/tiny}
command=${command/#sh -c/bash -c}
mkdir -p "$BOARD/home" && cd "$BOARD/home" || exit
eval "$command"
"""

Deploy = Callable[..., Result]


@pytest.fixture(scope="session")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_pi", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deploy")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    g = Graph(x=("N", 3, 9, 11))
    y = g.node("Relu", g.conv("x", 24, 3, 3, 3, bias=True, pads=[1] * 4))
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    onnx.save(g.model(g.node("GlobalAveragePool", y), y), str(path))
    return path


@pytest.fixture
def deploy(
    script: ModuleType,
    builds: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Deploy:
    """Return a function that calls the script: its status, output, errors."""
    monkeypatch.setattr(script, "FOLDER", builds)

    def call(*words: str) -> Result:
        status = script.main([*words, str(tiny), "--input-shape", "x:1,3,9,11"])
        return status, *capsys.readouterr()

    return call


def rows(out: str) -> dict[str, list[str]]:
    """Return the columns of what was printed for each program."""
    table = out.split("\n\n")[-1].splitlines()
    return {line.split()[0]: line.split()[1:] for line in table if line.startswith("tiny")}


# --- In an emulator ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "machine"), [("cortex-a72", "aarch64"), ("armv7", "arm")])
def test_a_network_is_emulated(deploy: Deploy, builds: Path, name: str, machine: str) -> None:
    status, out, err = deploy("--emulate", "--device", name)
    assert status == 0
    assert "qemu" in err and f"device {name}" in err
    assert "random weights" not in err and "Copying" not in err
    folder = builds / name / "tiny"
    found = rows(out)
    assert list(found) == ["tiny", "tiny_mapped"]
    for program, (_, threads, size, arena, weights, error) in found.items():
        assert threads == "2" and float(error) < 1e-6
        data = (folder / program).read_bytes()
        assert size == f"{len(data):,}"
        assert b".symtab" not in data and b"tiny_run" not in data  # It is stripped.
        assert weights == f"{(folder / 'tiny.weights').stat().st_size - 64:,}"
        assert re.search(rf"TINY_ARENA_BYTES {arena.replace(',', '')}$", header(folder), re.M)
    # One has the weights inside, the other one has not.
    weights_inside = (folder / "tiny.weights").read_bytes()
    assert weights_inside in (folder / "tiny").read_bytes()
    assert weights_inside not in (folder / "tiny_mapped").read_bytes()
    assert {elf_info(file).machine for file in folder.glob("kernels/*.o")} == {machine}
    assert "emulated ms" in out and "mean nothing" in out


def header(folder: Path) -> str:
    return (folder / "tiny.h").read_text()


def test_the_largest_outputs_are_shown(deploy: Deploy, tiny: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(5).standard_normal((1, 3, 9, 11)).astype(np.float32)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    status, out, _ = deploy("--emulate", "--input", str(tmp_path / "x.npy"), "--threads", "1")
    assert status == 0 and {row[1] for row in rows(out).values()} == {"1"}
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tiny))
    expected = session.run(None, {"x": x})[0].ravel()
    first = out.split("\n\n")[0].splitlines()
    assert "float32 of shape 1x24x1x1" in first[0]
    shown = [line.split() for line in first[2:]]
    assert [int(line[0]) for line in shown] == list(np.argsort(-expected)[:5])
    for index, here, there in shown:
        assert float(here) == float(there) == pytest.approx(expected[int(index)], rel=1e-3)


def test_there_is_a_model_for_who_has_none(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "FOLDER", tmp_path / "not" / "yet")
    made = onnx.load(str(script.random_model()))
    assert sum(node.op_type == "Conv" for node in made.graph.node) == 26  # SqueezeNet's


def test_inputs_of_another_type_are_refused(
    deploy: Deploy, script: ModuleType, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 9, 11)))
    with pytest.raises(script.DeployError, match="float64: expected x: float32 of shape 1x3x9x11"):
        deploy("--emulate", "--input", str(tmp_path / "x.npy"))


# --- On a board -------------------------------------------------------------------------------


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with what the board says, until something else is written there."""
    folder = tmp_path / "board"
    folder.mkdir()
    (folder / "ssh").write_text(SSH)
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("BOARD", str(folder))
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    become(folder, monkeypatch, "cortex-a72", "aarch64", "64", PI4)
    return folder


def become(
    board: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    machine: str,
    bits: str,
    cpu_info: str,
    libc: str = "glibc 2.99",
) -> None:
    target = dc.device(name)
    emulator = find_toolchain(target.triple, target.qemu_cpu).emulator
    monkeypatch.setenv("EMULATOR", " ".join(emulator))
    answers = {
        "uname": machine,
        "LONG_BIT": bits,
        "GNU_LIBC_VERSION": libc,
        "cpuinfo": cpu_info,
    }
    for file, answer in answers.items():
        (board / file).write_text(f"{answer}\n")


def test_a_network_runs_on_a_raspberry_pi_4(deploy: Deploy, board: Path, builds: Path) -> None:
    status, out, err = deploy("pi@board")
    assert status == 0
    assert "Raspberry Pi 4 Model B Rev 1.4, aarch64, system of 64 bits): device cortex-a72" in err
    found = rows(out)
    assert list(found) == ["tiny", "tiny_mapped"]
    assert {row[1] for row in found.values()} == {"4"}  # as many as it has cores
    assert "emulated" not in out and "mean nothing" not in out
    home = board / "home" / "directconv-tiny"
    sent = ["input0", "output0", "output1", "tiny", "tiny.weights", "tiny_mapped"]
    assert sorted(file.name for file in home.iterdir()) == sent
    built = builds / "cortex-a72" / "tiny"
    assert (home / "tiny").read_bytes() == (built / "tiny").read_bytes()
    assert b".interp\0" in (home / "tiny_mapped").read_bytes()  # Its C library is the board's.
    assert set((board / "addresses").read_text().split()) == {"pi@board"}
    options = (board / "options").read_text()
    assert "-oBatchMode=yes" in options and "-oConnectTimeout=10" in options


def test_a_64_bit_kernel_may_have_a_32_bit_system(
    deploy: Deploy, board: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its C library is older than any with which this is built.
    become(board, monkeypatch, "armv7", "aarch64", "32", PI4, libc="glibc 2.3.6")
    status, out, err = deploy("pi@board", "--folder", "a 'b' $c", "--threads", "3")
    assert status == 0
    assert "device armv7" in err and "linking ours in" in err
    assert {row[1] for row in rows(out).values()} == {"3"}
    program = (board / "home" / "a 'b' $c" / "tiny_mapped").read_bytes()
    assert b".interp\0" not in program


def test_wrong_results_are_noticed(deploy: Deploy, board: Path) -> None:
    (board / "broken").touch()
    status, out, err = deploy("pi@board")
    assert status == 1
    assert "error: wrong results: expected errors of at most 0.0001" in err
    assert {float(row[-1]) > 1e-4 for row in rows(out).values()} == {True}


def test_unreachable_boards(deploy: Deploy, board: Path, script: ModuleType) -> None:
    (board / "off").touch()
    expected = r"cannot reach pi@board \(.*No route to host\).*'ssh pi@board true'.*ssh-copy-id"
    with pytest.raises(script.DeployError, match=expected):
        deploy("pi@board")
    (board / "ssh").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(board))
        with pytest.raises(script.DeployError, match=r"cannot start ssh \(No such file"):
            deploy("pi@board")


@pytest.mark.parametrize(
    ("machine", "bits", "cpu_info"),
    [
        ("x86_64", "64", "vendor_id\t: AuthenticAMD\nmodel name\t: AMD Ryzen 9\n"),
        ("armv6l", "32", "Model\t: Raspberry Pi Zero W Rev 1.1\nFeatures\t: half thumb vfp\n"),
        ("armv7l", "32", PI2.replace("vfpv4 ", "")),
        ("arm64", "", ""),
        ("", "", ""),
    ],
)
def test_other_machines_are_refused(
    deploy: Deploy,
    board: Path,
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    bits: str,
    cpu_info: str,
) -> None:
    become(board, monkeypatch, "armv7", machine, bits, cpu_info)
    expected = rf"pi@board \(.*{machine}, system of {bits} bits\) is not supported: expected Linux"
    with pytest.raises(script.DeployError, match=expected):
        deploy("pi@board")


def test_devices_of_other_machines_are_refused(
    deploy: Deploy, board: Path, script: ModuleType
) -> None:
    expected = "--device is 'armv7', for armv7l.*programs for aarch64.*which gives 'cortex-a72'"
    with pytest.raises(script.DeployError, match=expected):
        deploy("pi@board", "--device", "armv7")
    with pytest.raises(DeviceError, match="cortex-a27"):
        deploy("pi@board", "--device", "cortex-a27")


def test_devices_of_processors(
    board: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(machine: str, bits: str, cpu_info: str) -> str:
        become(board, monkeypatch, "armv7", machine, bits, cpu_info)
        return str(script.Board("pi@board", "there").device().name)

    assert found("armv7l", "32", PI2) == "armv7"
    assert found("armv8l", "32", PI2) == "armv7"
    assert found("aarch64", "64", PI4.replace("0xd08", "0xd03")) == "cortex-a53"
    assert found("aarch64", "64", PI4.replace("0xd08", "0xd0b")) == "cortex-a76"
    # One that is unknown, and a chip with cores of two kinds.
    assert found("aarch64", "64", PI4.replace("0xd08", "0xfff")) == "aarch64"
    assert found("aarch64", "64", f"{PI4}\n{PI4.replace('0xd08', '0xd03')}") == "aarch64"
    for name in script.PROCESSORS.values():
        assert dc.device(name).triple == "aarch64-linux-gnu"


def test_programs_that_fail_are_told_of(script: ModuleType) -> None:
    assert "status 132: illegal instruction" in str(script.failed("./tiny", 132, ""))
    assert "status -4: illegal instruction" in str(script.failed("./tiny", -4, ""))
    assert str(script.failed("./tiny", 2, "tiny: no")) == "./tiny failed with status 2: tiny: no"


# --- The command line -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--emulat"], "unrecognized arguments: --emulat"),
        (["pi@board", "--treads", "2"], "unrecognized arguments: --treads"),
        (["pi@board", "--threads", "0"], "'0' is not a whole number from 1"),
        ([], "no board: expected its address"),
        (["model.onnx"], "no board: expected its address"),
        (["--emulate", "model.pt2"], "'model.pt2' is too much: expected at most one model"),
        (["--emulate", "pi@board", "model.onnx"], "'pi@board' is too much"),
        (["pi@board", "a.onnx", "b.onnx"], "'b.onnx' is too much"),
        (["--emulate", "--folder", "there"], "--folder is one on a board: expected none"),
    ],
)
def test_wrong_command_lines(
    script: ModuleType, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        script.main(words)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: scripts/deploy_pi ADDRESS") and said in err


def test_options_may_stand_anywhere(script: ModuleType) -> None:
    for words in (
        ["pi@board", "--threads", "2", "m.onnx"],
        ["--threads", "2", "pi@board", "m.onnx"],
    ):
        args = script.arguments(words)
        assert (args.address, args.model, args.threads) == ("pi@board", Path("m.onnx"), 2)
    assert script.arguments(["--emulate"]).model is None


def test_errors_are_one_line(board: Path) -> None:
    (board / "off").touch()
    done = subprocess.run([sys.executable, SCRIPT, "pi@board"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("scripts/deploy_pi: error: cannot reach pi@board")
    assert done.stderr.count("\n") == 1
