"""What scripts/deploy_pi runs: a network on a Raspberry Pi from plain C, or in an emulator.

What goes to the board are two programs, which need nothing but a C library there: one with the
weights inside, and one that maps them from a file.
"""

import argparse
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tvm_directconv import Device, DirectConvError, compile_network, device, max_error
from tvm_directconv.bench.models import model
from tvm_directconv.cli._network import read_arrays
from tvm_directconv.cli._options import TOLERANCE, add_inputs, inputs_of, threads
from tvm_directconv.cli._output import render, status_line
from tvm_directconv.emit.program import Port
from tvm_directconv.hardware.host import cpu_of
from tvm_directconv.network.check import drawn
from tvm_directconv.network.manifest import NetworkManifest
from tvm_directconv.toolchain import find_toolchain, target_port

PROGRAM = "scripts/deploy_pi"
USAGE = f"""\
{PROGRAM} ADDRESS [MODEL.onnx] [options]
       {PROGRAM} --emulate [MODEL.onnx] [options]"""
FOLDER = Path(__file__).resolve().parents[1] / "build" / "deploy"
NETWORK = "squeezenet"
TOP = 5
EMULATED_DEVICE, EMULATED_THREADS = "cortex-a72", 2
# Never a question that nobody answers, and no waiting for a board that has gone.
SSH = ["ssh", "-oBatchMode=yes", "-oConnectTimeout=10", "-oServerAliveInterval=15"]
# As cpu_of() names processors. All other ones of 64 bits are served by the device "aarch64".
PROCESSORS = {
    "0x41 0xd03": "cortex-a53",
    "0x41 0xd05": "cortex-a55",
    "0x41 0xd07": "cortex-a57",
    "0x41 0xd08": "cortex-a72",
    "0x41 0xd09": "cortex-a73",
    "0x41 0xd0a": "cortex-a75",
    "0x41 0xd0b": "cortex-a76",
    "0x41 0xd0c": "neoverse-n1",
    "0x41 0xd0d": "cortex-a77",
    "0x41 0xd41": "cortex-a78",
    "0x41 0xd44": "cortex-x1",
}
# What code for the device "armv7" uses, in Linux' words.
ARMV7_FEATURES = {"neon", "vfpv4", "idiva"}
# They are meant for programs of this machine.
NOT_FOR_MAKE = {"CC", "AR", "CROSS_COMPILE", "CFLAGS", "CPPFLAGS", "LDFLAGS", "MAKEFLAGS"}


class DeployError(DirectConvError):
    """The board, the build or the run has failed."""


class Variant(NamedTuple):
    """A program, and what came of it."""

    program: str
    size: int
    milliseconds: float
    outputs: list[np.ndarray]


class Board:
    """A computer that ssh reaches.

    Parameters
    ----------
    address : str
        As ssh takes it.
    folder : str
        Where files go there; relative to the home directory.
    """

    def __init__(self, address: str, folder: str) -> None:
        self.address, self.folder = address, folder
        said = self._call(
            "uname -m; getconf LONG_BIT; getconf GNU_LIBC_VERSION || echo; cat /proc/cpuinfo || :"
        ).decode("utf-8", "replace")
        self.machine, self.bits, libc, cpu_info = [*said.split("\n", 3), "", "", ""][:4]
        self.cpu = cpu_of(cpu_info, self.machine)
        features = re.search(r"^Features\s*:(.*)", cpu_info, re.M)
        self._features = set(features[1].split()) if features else set()
        glibc = re.fullmatch(r"glibc 2\.(\d+).*", libc)
        # Where there is another C library, programs have to bring their own.
        self.glibc = int(glibc[1]) if glibc else 0

    def __str__(self) -> str:
        """For messages."""
        return f"{self.address} ({self.cpu.name}, {self.machine}, system of {self.bits} bits)"

    def device(self) -> Device:
        """Return the device of this package that the board is."""
        if self.machine == "aarch64" and self.bits == "64":
            return device(PROCESSORS.get(self.cpu.id, "aarch64"))
        # Every 64-bit core has what the 32-bit system on it needs, whatever the kernel lists.
        capable = self.machine == "aarch64" or (
            self.machine in ("armv7l", "armv8l") and self._features >= ARMV7_FEATURES
        )
        if capable and self.bits == "32":
            return device("armv7")
        raise DeployError(
            f"{self} is not supported: expected Linux on a 64-bit ARM processor, or on a 32-bit "
            "one with NEON and VFPv4, such as a Raspberry Pi from model 2 on"
        )

    def send(self, files: Sequence[Path]) -> None:
        """Copy files into the folder there."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for file in files:
                archive.add(file, file.name)
        folder = shlex.quote(self.folder)
        self._call(f"mkdir -p {folder} && cd {folder} && tar xf -", packed.getvalue())

    def run(self, program: str, inputs: list[str], outputs: list[str]) -> tuple[str, bytes]:
        """Run a program there; return what it printed, and all outputs, one after the other."""
        inside = f"cd {shlex.quote(self.folder)} && "
        # An old output must not pass for a new one.
        words = " ".join([*inputs, *outputs])
        said = self._call(f"{inside}rm -f {' '.join(outputs)} && ./{program} {words}")
        return said.decode("utf-8", "replace"), self._call(f"{inside}cat {' '.join(outputs)}")

    def _call(self, command: str, given: bytes = b"") -> bytes:
        # Whatever the login shell there is.
        words = [*SSH, self.address, f"sh -c {shlex.quote(command)}"]
        try:
            done = subprocess.run(words, input=given, capture_output=True)
        except OSError as error:
            raise DeployError(
                f"cannot start ssh ({error.strerror}): install it, on Debian with: apt install "
                "openssh-client"
            ) from None
        said = done.stderr.decode("utf-8", "replace").strip()
        if done.returncode == 255:
            raise DeployError(
                f"cannot reach {self.address} ({said}): expected that 'ssh {self.address} true' "
                "works and asks for nothing, try that. If it asks for a password, "
                f"'ssh-copy-id {self.address}' brings your key there"
            )
        if done.returncode:
            raise failed(f"{command!r} on {self.address}", done.returncode, said)
        return done.stdout


class Emulator:
    """This machine, with programs in qemu if they are for another one.

    Parameters
    ----------
    target : Device
    folder : Path
        Where files are.
    """

    def __init__(self, target: Device, folder: Path) -> None:
        self.folder = folder
        # It is found missing before anything long is done.
        self.command = find_toolchain(target.triple, target.qemu_cpu).command()

    def __str__(self) -> str:
        """For messages."""
        return " ".join(self.command) or "this machine itself"

    def run(self, program: str, inputs: list[str], outputs: list[str]) -> tuple[str, bytes]:
        """Do what the board does."""
        for name in outputs:
            (self.folder / name).unlink(missing_ok=True)
        words = [*self.command, f"./{program}", *inputs, *outputs]
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise failed(shlex.join(words), done.returncode, done.stderr.strip())
        return done.stdout, b"".join((self.folder / name).read_bytes() for name in outputs)


def failed(what: str, status: int, said: str) -> DeployError:
    """Return the error for a command that failed."""
    # Of a shell, or of this process' own child.
    if status in (128 + signal.SIGILL, -signal.SIGILL):
        said = "illegal instruction, so the processor is older than the device: check --device"
    return DeployError(f"{what} failed with status {status}: {said or 'it said nothing'}")


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=USAGE,
        description="Run a network on a Raspberry Pi from plain C, and compare with ONNX Runtime.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="ADDRESS, MODEL.onnx",
        help="the board as ssh takes it (pi@raspberrypi.local), and a model; "
        f"default: {NETWORK} with random weights",
    )
    parser.add_argument("--emulate", action="store_true", help="in qemu, without a board")
    parser.add_argument(
        "--device",
        help=f"name or device file; default: the board's, emulated {EMULATED_DEVICE}",
    )
    parser.add_argument(
        "--threads",
        type=threads,
        metavar="N",
        help="threads that compute; default: one for each core of the device, "
        f"emulated {EMULATED_THREADS}",
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help=".npy file, or .npz with several inputs by name; default: random",
    )
    add_inputs(parser)
    parser.add_argument(
        "--folder",
        metavar="REMOTE",
        help="folder on the board; default: directconv-NAME in the home directory",
    )
    # Options may stand between the address and the model.
    args = parser.parse_intermixed_args(words)
    names = list(args.words)
    args.address = None
    if args.emulate:
        if args.folder:
            parser.error("--folder is one on a board: expected none with --emulate")
    elif not names or names[0].endswith(".onnx"):
        parser.error("no board: expected its address, such as pi@raspberrypi.local, or --emulate")
    else:
        args.address = names.pop(0)
    wrong = [name for number, name in enumerate(names) if number or not name.endswith(".onnx")]
    if wrong:
        parser.error(f"{wrong[0]!r} is too much: expected at most one model, ending in .onnx")
    args.model = Path(names[0]) if names else None
    return args


def main(words: Sequence[str]) -> int:
    """Do all of it; return 1 if the outputs are wrong."""
    args = arguments(words)
    name = args.model.stem if args.model else NETWORK
    board = Board(args.address, args.folder or f"directconv-{safe(name)}") if args.address else None
    if board:
        found = board.device()
        target = device(args.device) if args.device else found
        if target_port(target.triple) != target_port(found.triple):
            raise DeployError(
                f"--device is {args.device!r}, for {target.triple}, but {board} runs programs for "
                f"{found.triple}: leave --device out, which gives {found.name!r}"
            )
        say(f"Board: {board}: device {target.name}")
    else:
        target = device(args.device or EMULATED_DEVICE)
    folder = FOLDER / target.name / safe(name)
    where = board or Emulator(target, folder)
    if not board:
        say(f"No board: {where}, device {target.name}")

    path = args.model or random_model()
    say(f"Model: {path}" + ("" if args.model else ", random weights"))

    threads = args.threads or (target.cores if board else EMULATED_THREADS)
    say(f"Compiling for {target.name}, {threads} thread(s), into {folder}")
    manifest = compiled(path, folder, target, threads, inputs_of(args))
    inputs = values(manifest.inputs, args.input)

    programs = build(folder, "" if board else "-DRUNS=1", board.glibc if board else None)
    given = [f"input{number}" for number in range(len(inputs))]
    for file, array in zip(given, inputs, strict=True):
        array.tofile(folder / file)
    if board:
        sent = [*(folder / file for file in (*programs, *given)), *folder.glob("*.weights")]
        say(f"Copying {sum(file.stat().st_size for file in sent):,} bytes to {board.folder} there")
        board.send(sent)

    variants = [run(where, folder / program, given, manifest) for program in programs]

    say("Comparing with ONNX Runtime")
    expected = reference(path, inputs)
    errors = [compare(variant.outputs, expected) for variant in variants]
    emulated = isinstance(where, Emulator) and bool(where.command)
    report(manifest, variants, expected, errors, emulated)
    if max(errors) > TOLERANCE:
        say(f"{PROGRAM}: error: wrong results: expected errors of at most {TOLERANCE}")
        return 1
    return 0


def safe(name: str) -> str:
    """Return a name that shells, make and C can have."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def random_model() -> Path:
    """Write the model that is taken if none is given."""
    import onnx

    path = FOLDER / f"{NETWORK}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model(NETWORK), str(path))
    return path


def compiled(
    path: Path, folder: Path, target: Device, threads: int, inputs: dict[str, Any]
) -> NetworkManifest:
    """Write the folder with C."""
    try:
        return compile_network(
            path,
            folder,
            target,
            threads,
            progress=lambda done, total: status_line(f"compiling kernel {done + 1}/{total}"),
            emit="c",
            check=False,  # It is compared on the board.
            **inputs,
        )
    finally:
        status_line("")


def values(ports: Sequence[Port], path: str | None) -> list[np.ndarray]:
    """Return the inputs: from a file, or random ones."""
    if path is None:
        rng = np.random.default_rng(0)
        return [drawn(port, rng) for port in ports]
    arrays = read_arrays(path, tuple(ports))
    for port, array in zip(ports, arrays, strict=True):
        if array.dtype != port.dtype:
            raise DeployError(f"{path!r} has an array of {array.dtype}: expected {port}")
    return arrays


def build(folder: Path, flags: str, glibc: int | None) -> list[str]:
    """Build the programs, for a C library that is at least this old; return their names."""
    (header,) = folder.glob("*.h")
    goals = {"all": header.stem}
    if list(folder.glob("*.weights")):
        goals["mapped"] = f"{header.stem}_mapped"
    say(f"Building {' and '.join(goals.values())} with make")
    make(folder, *goals, f"CPPFLAGS={flags}", "LDFLAGS=-s")
    # A program asks for the versions of symbols that it was linked with. This one has no weights in
    # it, which could look like that by chance.
    smallest = folder / list(goals.values())[-1]
    needed = max(map(int, re.findall(rb"GLIBC_2\.(\d+)", smallest.read_bytes())), default=0)
    if glibc is not None and glibc < needed:
        say("The board's C library is older than this, or another one: linking ours in")
        make(folder, *goals, f"CPPFLAGS={flags}", "LDFLAGS=-s -static")
    return list(goals.values())


def make(folder: Path, *words: str) -> None:
    """Run make, from scratch: it does not see that flags have changed."""
    environment = {name: value for name, value in os.environ.items() if name not in NOT_FOR_MAKE}
    try:
        done = subprocess.run(
            ["make", "clean", *words], cwd=folder, env=environment, capture_output=True, text=True
        )
    except OSError as error:
        raise DeployError(
            f"cannot start make ({error.strerror}): install it, on Debian with: apt install make"
        ) from None
    if done.returncode:
        raise failed(f"make in {folder}", done.returncode, done.stderr.strip())


def run(
    where: Board | Emulator, program: Path, inputs: list[str], manifest: NetworkManifest
) -> Variant:
    """Run a program where it belongs."""
    say(f"Running {program.name}")
    names = [f"output{number}" for number in range(len(manifest.outputs))]
    said, data = where.run(program.name, inputs, names)
    time = re.search(r"^milliseconds ([\d.]+)", said, re.M)
    expected = sum(port.nbytes for port in manifest.outputs)
    if not time or len(data) != expected:
        raise DeployError(
            f"{program.name} gave {len(data)} bytes of output: expected {expected}, and its time. "
            f"It said: {said.strip()}"
        )
    outputs = []
    for port in manifest.outputs:
        array = np.frombuffer(data[: port.nbytes], port.dtype)
        outputs.append(array.reshape(port.shape))
        data = data[port.nbytes :]
    return Variant(program.name, program.stat().st_size, float(time[1]), outputs)


def reference(path: Path, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return what ONNX Runtime computes."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # errors
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    found: list[np.ndarray] = session.run(None, dict(zip(names, inputs, strict=True)))
    return found


def compare(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the largest error of all outputs."""
    pairs = zip(outputs, expected, strict=True)
    return max(max_error(one.astype(np.float64), other) for one, other in pairs)


def report(
    manifest: NetworkManifest,
    variants: Sequence[Variant],
    expected: Sequence[np.ndarray],
    errors: Sequence[float],
    emulated: bool,
) -> None:
    """Print the largest outputs, times and sizes."""
    for number, port in enumerate(manifest.outputs):
        here, there = expected[number].ravel(), variants[0].outputs[number].ravel()
        best = np.argsort(-there.astype(np.float64), kind="stable")[:TOP]
        print(f"Largest of {port}")
        rows = [
            {"index": int(i), "value": float(there[i]), "ONNX Runtime": float(here[i])}
            for i in best
        ]
        print(render(rows, "table"), end="\n\n")
    time = "emulated ms" if emulated else "ms"
    rows = [
        {
            "program": variant.program,
            time: f"{variant.milliseconds:.3f}",
            "threads": manifest.threads,
            "bytes, stripped": f"{variant.size:,}",
            "arena": f"{manifest.arena_bytes:,}",
            "weights": f"{manifest.weight_bytes:,}",
            "max error": error,
        }
        for variant, error in zip(variants, errors, strict=True)
    ]
    print(render(rows, "table"))
    if emulated:
        print("Emulated times mean nothing: they say how fast qemu is, not how fast a board is.")


def say(text: str) -> None:
    """Tell people what is being done, on stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except DirectConvError as error:
        sys.exit(f"{PROGRAM}: error: {error}")
