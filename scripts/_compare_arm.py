"""What scripts/compare_arm runs: networks counted in an emulator, beside other libraries."""

import argparse
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from _count_arm import Compiled

import tvm_directconv as dc
from tvm_directconv import DirectConvError, cache, files
from tvm_directconv.bench.models import MODELS, images, model
from tvm_directconv.bench.rivals.base import (
    DEFAULTS,
    Contestant,
    Failed,
    NotHere,
    Source,
    Unsupported,
    end_of,
)
from tvm_directconv.bench.rivals.litert import LiteRt
from tvm_directconv.bench.rivals.mnn import Mnn
from tvm_directconv.bench.rivals.ncnn import Ncnn
from tvm_directconv.bench.rivals.onnxruntime import OnnxRuntime
from tvm_directconv.bench.rivals.openvino import OpenVino
from tvm_directconv.cli._output import Row, add_format, for_people, note, render
from tvm_directconv.deploy import counter
from tvm_directconv.deploy.counter import Cached, Executed, counting, read_counts
from tvm_directconv.errors import ToolchainError, did_you_mean
from tvm_directconv.toolchain import Toolchain, find_toolchain, link_shared

PROGRAM = "scripts/compare_arm"
NETWORKS = ("squeezenet", "mobilenetv1", "resnet18", "googlenet", "resnet50")
GUEST = Path(__file__).with_name("_count_arm.py")
LINE_BYTES = 64
SAMPLES = 4
"""Images that ranges of tensors are found with."""
SECONDS = 3600
"""The longest that a count may take."""


# --- Cores and boards -------------------------------------------------------------------------


@dataclass(frozen=True)
class Core:
    """A core in the board that is forecast.

    Attributes
    ----------
    board : str
    caches : str
        Bytes and ways of each level, as the plugin takes them: all of a shared one.
    bytes_per_second : float
        Of memory, read and written, for one core that copies.
    cycles : callable
        The fewest in which the ports of the core can do what was counted.
    part, features : str
        What Linux says of the processor.
    types : sequence of str
        Number types that it has instructions for.
    """

    board: str
    caches: str
    bytes_per_second: float
    cycles: Callable[[Executed], float]
    part: str
    features: str
    types: Sequence[str]


def _a72_cycles(e: Executed) -> float:
    """By Arm's optimization guide of the Cortex-A72: three micro-operations are issued a cycle.

    Vectors of floats take both 64-bit pipes, whole numbers multiply on one of them; there is one
    pipe for loads and one for stores.
    """
    micro = e.total + e.loaded - e.load + e.stored - e.store
    products = e.dot + e.multiply
    arithmetic = e.fma + e.floating + max(products, (products + e.vector) / 2)
    return max(micro / 3, arithmetic, e.loaded + e.prefetch, e.stored)


def _a76_cycles(e: Executed) -> float:
    """By Arm's optimization guide of the Cortex-A76: four a cycle.

    There are two 128-bit pipes, one of which multiplies whole numbers, both for dot products, and
    two pipes for loads and stores.
    """
    micro = e.total + e.loaded - e.load + e.stored - e.store
    moved = e.loaded + e.prefetch + e.stored
    return max(micro / 4, e.arithmetic / 2, e.multiply, moved / 2)


CORES = {
    "cortex-a72": Core(
        "Raspberry Pi 4",
        "32768/2:1048576/16",
        4.5e9,
        _a72_cycles,
        "0xd08",
        "fp asimd evtstrm crc32 cpuid",
        ("float32", "int8"),
    ),
    "cortex-a76": Core(
        "Raspberry Pi 5",
        "65536/4:524288/8:2097152/16",
        10e9,
        _a76_cycles,
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc "
        "dcpop asimddp",
        ("float32", "fp16", "int8"),
    ),
}
"""By device."""

TYPES = tuple(dict.fromkeys(name for core in CORES.values() for name in core.types))

PUBLISHED = {
    ("cortex-a72", "float32"): (73.35, 123.76, 190.80, 235.38, 533.15),
    ("cortex-a72", "int8"): (69.17, 84.66, 157.92, 209.63, 423.72),
    ("cortex-a76", "fp16"): (11.77, 20.24, 29.54, 48.62, 89.04),
    ("cortex-a76", "int8"): (11.67, 14.38, 36.30, 49.07, 80.00),
}
"""Milliseconds of ncnn with one thread, the least, for :data:`NETWORKS`: benchmark/README.md in its
repository, of July 2026. SqueezeNet has images of 227x227 there."""
PUBLISHER = "ncnn"


# --- Contestants ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A contestant in a number type.

    Attributes
    ----------
    contestant : Contestant
    dtype : str
        What it is asked for: one of :data:`NETWORK_DTYPES`, or :data:`DEFAULTS`; of ours what
        :func:`tvm_directconv.compile_network` is told, if anything.
    not_here : str, optional
        Why it cannot take part.
    """

    contestant: Contestant
    dtype: str
    not_here: str | None = None


ENTRIES: Mapping[str, Sequence[Entry]] = {
    "float32": (
        Entry(Compiled(), ""),
        Entry(OnnxRuntime(), "float32"),
        Entry(OpenVino(), "float32"),
        Entry(LiteRt(), "float32"),
        Entry(Ncnn(name="ncnn, no Winograd", winograd=False), "float32"),
        Entry(Ncnn(), "float32"),
        Entry(Mnn(), "float32"),
    ),
    "fp16": (
        Entry(Compiled(), "fp16acc16"),
        Entry(OnnxRuntime(), "float32"),  # Of a model whose weights are halves.
        Entry(OpenVino(), DEFAULTS),
        Entry(
            LiteRt(),
            "",
            "LiteRT computes in half precision if an option of its C interface says so, which its "
            "Python package does not have",
        ),
        Entry(Ncnn(), DEFAULTS),
        Entry(Mnn(), "fp16"),
    ),
    "int8": (
        Entry(Compiled(), ""),
        Entry(OnnxRuntime(), "int8"),
        Entry(
            OpenVino(),
            "int8",
            "it executes hundreds of instructions for each vector of products of such models, "
            "which would take hours to count",
        ),
        Entry(LiteRt(), "int8"),
        Entry(Ncnn(), "int8"),
        Entry(Mnn(), "int8"),
    ),
}
"""By number type, ours first. Libraries choose half precision by themselves on such processors,
but for MNN."""

RIVALS = tuple(
    dict.fromkeys(
        entry.contestant.name
        for entries in ENTRIES.values()
        for entry in entries
        if not isinstance(entry.contestant, Compiled)
    )
)

WHEELS: Mapping[type, Sequence[str]] = {
    OnnxRuntime: ("onnxruntime", "flatbuffers", "packaging", "protobuf"),
    OpenVino: ("openvino",),
    LiteRt: ("ai-edge-litert", "flatbuffers"),
    Ncnn: ("ncnn",),
    Mnn: ("MNN",),
}
"""What each is, for the emulated Python."""

CONVERTERS: Mapping[type, Sequence[str]] = {
    LiteRt: ("onnx2tf>=2", "sng4onnx", "ai-edge-litert", "flatbuffers"),
    Ncnn: ("pnnx",),
    Mnn: ("MNN",),
}
"""What makes its files of ONNX files, for this machine."""


# --- What is downloaded -----------------------------------------------------------------------


def made(path: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder, which is made whole or not at all unless it is there."""
    if not path.exists():
        with (
            files.explained(path, ToolchainError, into=True),
            files.scratch(path.parent) as scratch,
        ):
            draft = scratch / path.name
            draft.mkdir()
            make(draft)
            try:
                draft.rename(path)
            except OSError:
                if not path.exists():  # Else another process has made it meanwhile.
                    raise
    return path


def call(command: Sequence[str], error: type[DirectConvError], purpose: str) -> None:
    """Run a program that downloads something or unpacks it.

    Raises
    ------
    DirectConvError
        If it fails, with the end of what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise error(
            f"{purpose} has failed: {end_of(done.stderr or done.stdout)}. Expected a connection, "
            "and space on the disk; run it again then"
        )


@lru_cache
def system() -> Path:
    """Return a folder with Debian's Python for arm64 and its libraries."""
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise ToolchainError(
                f"the emulated Python is downloaded with {program}, which was not found: expected "
                "Debian 12 or a later one"
            )
    return made(cache.folder("arm") / "system", _download_system)


def _download_system(draft: Path) -> None:
    """apt-get downloads and checks it, with lists and an architecture of its own."""
    note("downloading an arm64 Python with apt-get, 25 MB")
    with files.scratch() as scratch:
        for name in ("state/lists/partial", "cache/archives/partial"):
            (scratch / name).mkdir(parents=True)
        (scratch / "status").touch()
        options = {
            "APT::Architecture": "arm64",
            "APT::Architectures::": "arm64",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Dir::State": scratch / "state",
            "Dir::State::status": scratch / "status",
            "Dir::Cache": scratch / "cache",
        }
        apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
        wanted = ["python3-minimal", "libpython3-stdlib", "libstdc++6", "libgomp1"]
        download = [*apt, "install", "-y", "--download-only", "--no-install-recommends", *wanted]
        for command in ([*apt, "update"], download):
            call(command, ToolchainError, "downloading an arm64 Python with apt-get")
        for package in sorted((scratch / "cache" / "archives").glob("*.deb")):
            call(["dpkg-deb", "-x", str(package), str(draft)], ToolchainError, "unpacking")


def python_version() -> str:
    """Return that of the emulated Python, such as 3.11."""
    return (system() / "usr" / "bin" / "python3").readlink().name.removeprefix("python")


def wheels(packages: Sequence[str]) -> Path:
    """Return a folder with Python packages for the emulated Python."""
    version = python_version()
    name = f"{packages[0]}-{version}"

    def download(draft: Path) -> None:
        note(f"downloading {', '.join(packages)} for arm64 with pip")
        # The C library is Debian 12's or later.
        platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, 37)]
        pip(packages, draft, "--only-binary=:all:", f"--python-version={version}", *platforms)

    return made(cache.folder("arm") / name, download)


def pip(packages: Sequence[str], folder: Path, *options: str) -> None:
    """Install packages into a folder, and nothing that they ask for.

    Raises
    ------
    NotHere
        If one of them cannot be had.
    """
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"]
    words = [*install, "--disable-pip-version-check", *options, "--target", str(folder), *packages]
    call(words, NotHere, f"installing {', '.join(packages)} with pip")


def use_converters(kind: type) -> None:
    """Have modules found that convert networks for a kind of contestants."""
    if kind not in CONVERTERS:
        return
    packages = CONVERTERS[kind]

    def download(draft: Path) -> None:
        note(f"downloading {', '.join(packages)} with pip")
        # onnx2tf asks for a later Python than it needs.
        pip(packages, draft, "--ignore-requires-python")

    folder = str(made(cache.folder("arm") / f"converter-{kind.__name__}", download))
    if folder not in sys.path:
        sys.path.append(folder)
        # Converters are run in processes of their own.
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [os.environ.get("PYTHONPATH"), folder])
        )


def root_of(device: str, kind: type) -> Path:
    """Return what the emulated processor sees as its file system, beside that of this machine.

    Libraries choose their code by what Linux says of the processor.
    """
    core = CORES[device]
    with_cpus = kind is not OpenVino  # It asks the system, not the files, where it may run.

    def write(draft: Path) -> None:
        for entry in system().iterdir():
            (draft / entry.name).symlink_to(entry)
        if not (draft / "lib").exists():
            (draft / "lib").symlink_to(system() / "usr" / "lib")
        cpus = draft / "sys" / "devices" / "system" / "cpu"
        (draft / "proc").mkdir()
        (draft / "proc" / "cpuinfo").write_text(
            f"processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: {core.features}\n"
            f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
            f"CPU part\t: {core.part}\nCPU revision\t: 3\n\n"
        )
        if with_cpus:
            cpus.mkdir(parents=True)
            for name in ("possible", "present", "online"):
                (cpus / name).write_text("0\n")

    return made(cache.folder("arm") / f"{device}{'' if with_cpus else '-bare'}", write)


# --- Networks in the files of each ------------------------------------------------------------


class Network:
    """A network with random weights, and images.

    Parameters
    ----------
    name : str
        Of :data:`tvm_directconv.bench.models.MODELS`.
    folder : Path
        For its files.
    """

    def __init__(self, name: str, folder: Path) -> None:
        import onnx
        import onnxruntime

        self.name, self.folder = name, folder
        self.float32, self.samples, self.input = (
            folder / file for file in ("float32.onnx", "samples.npy", "x.npy")
        )
        onnx.save(model(name), self.float32)
        found = images(SAMPLES + 1)
        x = found[SAMPLES // 2]  # Of medium contrast, so that its numbers are in these ranges.
        np.save(self.samples, np.delete(found, SAMPLES // 2, axis=0))
        np.save(self.input, x[np.newaxis])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            str(self.float32), options, providers=["CPUExecutionProvider"]
        )
        (self.reference,) = session.run(None, {"x": x[np.newaxis]})

    @cached_property
    def int8(self) -> Path:
        """The model that onnxruntime's quantiser makes of it."""
        path = self.folder / "int8.onnx"
        samples = [{"x": image[np.newaxis]} for image in np.load(self.samples)]
        # ARM's instructions multiply numbers that both have signs.
        dc.quantize_network(self.float32, path, samples, check=samples[:1], types="s8s8")
        return path

    @cached_property
    def fp16(self) -> Path:
        """The model in half precision, with inputs and outputs as they were."""
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        path = self.folder / "fp16.onnx"
        onnx.save(convert_float_to_float16(onnx.load(self.float32), keep_io_types=True), path)
        return path

    def onnx(self, dtype: str) -> Path:
        """Return its model of a number type."""
        found: Path = getattr(self, dtype)
        return found


def compiled(network: Network, device: str, dtype: str, entry: Entry) -> tuple[Path, Contestant]:
    """Return a library of ours, and who calls it."""
    folder = network.folder / f"{device}-{dtype}" / "model"
    onnx = network.int8 if dtype == "int8" else network.float32
    manifest = dc.compile_network(
        onnx, folder, device, emit="c", check=False, dtype=entry.dtype or None
    )
    library = folder.with_suffix(".so")
    sources = ["model.c", "model_weights.c", "runtime/directconv.c", "runtime/network.c"]
    flags = ["-std=c99", "-O2", "-fPIC", "-pthread", "-iquote", ".", "-iquote", "runtime"]
    kernels = sorted((folder / "kernels").glob("*.o"))
    link_shared([*flags, *sources, *kernels], library, toolchain(device), folder)
    return library, Compiled(arena_bytes=manifest.arena_bytes)


def converted(network: Network, dtype: str, entry: Entry) -> Path:
    """Return the file that a rival loads, which is kept."""
    kind = type(entry.contestant)
    given = {network.onnx(dtype), network.float32}
    use_converters(kind)
    wanted = digest(
        *(path.read_bytes() for path in sorted({*given, network.samples})),
        source_of(kind),
        json.dumps([CONVERTERS.get(kind, ()), entry.dtype]),
    )

    def convert(draft: Path) -> None:
        for path in given:
            os.link(path, draft / path.name)
        source = Source(
            dtype=entry.dtype,
            onnx=str(draft / network.onnx(dtype).name),
            float32=str(draft / network.float32.name),
            samples=str(network.samples),
        )
        path = entry.contestant.convert(source, 1)
        (draft / "path").write_text(str(path.relative_to(draft)))

    name = f"{network.name}-{kind.__name__}-{dtype}-{wanted[:16]}"
    folder = made(cache.folder("arm-networks") / name, convert)
    return folder / (folder / "path").read_text()


def digest(*parts: str | bytes) -> str:
    """Return the SHA-256 of texts and bytes."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()


def source_of(kind: type) -> str:
    """Return the text of the module of a class."""
    return Path(inspect.getfile(kind)).read_text(encoding="utf-8")


# --- Counts -----------------------------------------------------------------------------------


def toolchain(device: str) -> Toolchain:
    """Return compiler and emulator for a device."""
    found = dc.device(device)
    return find_toolchain(found.triple, found.qemu_cpu)


@dataclass(frozen=True)
class Counted:
    """What one run of a network is.

    Attributes
    ----------
    library : str
        Name and version of who computes.
    executed : Executed
    output : numpy.ndarray
    """

    library: str
    executed: Executed
    output: np.ndarray


def counted(path: Path, device: str, contestant: Contestant, dtype: str, x: Path) -> Counted:
    """Return the counts of a network's run, which are kept."""
    kind = type(contestant)
    packages = [wheels(("numpy", "ml_dtypes"))]
    if kind in WHEELS:
        packages.append(wheels(WHEELS[kind]))
    kept = [path, *filter(Path.exists, [path.with_suffix(".bin")]), x]
    recipe = digest(
        *(each.read_bytes() for each in [*kept, counter._SOURCE, GUEST]),
        source_of(kind),
        json.dumps([device, CORES[device].caches, asdict(contestant), dtype]),
        *(entry.name for folder in packages for entry in sorted(folder.glob("*.dist-info"))),
    )
    folder = made(
        cache.folder("arm-counts") / recipe[:32],
        lambda draft: _count(draft, path, device, contestant, dtype, x, packages),
    )
    found = json.loads((folder / "counts.json").read_text())
    levels = tuple(Cached(**level) for level in found["executed"].pop("caches"))
    executed = Executed(**found["executed"], caches=levels)
    return Counted(found["library"], executed, np.load(folder / "y.npy"))


def _count(
    draft: Path,
    path: Path,
    device: str,
    contestant: Contestant,
    dtype: str,
    x: Path,
    packages: Sequence[Path],
) -> None:
    kind = type(contestant)
    root = root_of(device, kind)
    qemu = toolchain(device).emulator[0]
    emulator = (qemu, "-L", str(root), "-cpu", str(dc.device(device).qemu_cpu))
    plain = Toolchain("aarch64-linux-gnu", (), emulator, " ".join(emulator))
    counts = draft / "counts"
    counting_one = counting(plain, counts, caches=CORES[device].caches)
    job = {
        "module": kind.__module__,
        "class": kind.__qualname__,
        "fields": asdict(contestant),
        "path": str(path),
        "dtype": dtype,
        "input": str(x),
        "output": str(draft / "y.npy"),
    }
    program = [str(root / "usr" / "bin" / "python3"), str(GUEST), json.dumps(job)]
    variables = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": os.pathsep.join(map(str, [GUEST.parents[1], *packages])),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        **{key: value for key, value in contestant.environment(1).items() if value is not None},
    }
    try:
        done = subprocess.run(
            counting_one.command(*program),
            capture_output=True,
            text=True,
            errors="replace",
            env=variables,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"it has not ended within {SECONDS} s") from None
    if done.returncode or not (draft / "y.npy").exists():
        raise Failed(f"{end_of(done.stderr or done.stdout)} (status {done.returncode})")
    executed = read_counts(counts, counting_one, done.returncode, done.stderr)
    library = json.loads(done.stdout.splitlines()[-1])["library"]
    (draft / "counts.json").write_text(
        json.dumps({"library": library, "executed": asdict(executed)})
    )


# --- Rows -------------------------------------------------------------------------------------


def compared(
    network: Network, device: str, dtype: str, rivals: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row for each contestant, ours first."""
    found: list[dict[str, Any]] = []
    for entry in ENTRIES[dtype]:
        name = entry.contestant.name
        ours = isinstance(entry.contestant, Compiled)
        if not ours and name not in rivals:
            continue
        note(f"{network.name}, {device}, {dtype}: {name}")
        try:
            if entry.not_here:
                raise NotHere(entry.not_here)
            if ours:
                path, contestant = compiled(network, device, dtype, entry)
            else:
                path, contestant = converted(network, dtype, entry), entry.contestant
            what = counted(path, device, contestant, entry.dtype, network.input)
        except (NotHere, Unsupported, Failed) as error:
            if ours:
                raise
            found.append(row(network, device, dtype, name, None, str(error), None))
            continue
        found.append(row(network, device, dtype, name, what, None, found[0] if found else None))
    return found


def row(
    network: Network,
    device: str,
    dtype: str,
    name: str,
    found: Counted | None,
    reason: str | None,
    ours: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return what JSON has of a contestant; `ours` is the row that it is compared with."""
    core = CORES[device]
    published = None
    if name == PUBLISHER and network.name in NETWORKS and (device, dtype) in PUBLISHED:
        published = PUBLISHED[device, dtype][NETWORKS.index(network.name)]
    values: dict[str, Any] = {
        "network": network.name,
        "device": device,
        "board": core.board,
        "dtype": dtype,
        "contestant": name,
    }
    keys = (
        "library",
        "instructions",
        "instructions_over_ours",
        *(f"{key}_instructions" for key in Executed.__annotations__ if key != "caches"),
        "cycles",
        "cycles_over_ours",
        "l1_missed",
        "l2_missed",
        "memory_read_bytes",
        "memory_written_bytes",
        "forecast_ms",
        "published_ms",
        "forecast_error",
        "max_error",
        "same_class",
        "not_here",
    )
    values |= dict.fromkeys(keys)
    values |= {"not_here": reason, "published_ms": published}
    if found is None:
        return values
    executed, output = found.executed, found.output.reshape(network.reference.shape)
    last = executed.caches[-1]
    cycles = core.cycles(executed)
    moved = LINE_BYTES * last.missed, LINE_BYTES * last.written
    forecast = forecast_ms(device, cycles, sum(moved))
    finite = bool(np.isfinite(output).all())
    values |= {
        "library": found.library,
        "instructions": executed.total,
        "instructions_over_ours": executed.total / ours["instructions"] if ours else 1.0,
        **{f"{k}_instructions": v for k, v in asdict(executed).items() if k != "caches"},
        "cycles": round(cycles),
        "cycles_over_ours": cycles / ours["cycles"] if ours else 1.0,
        "l1_missed": executed.caches[0].missed,
        "l2_missed": executed.caches[1].missed,
        "memory_read_bytes": moved[0],
        "memory_written_bytes": moved[1],
        "forecast_ms": forecast,
        "forecast_error": forecast / published - 1 if published else None,
        "max_error": dc.max_error(output, network.reference) if finite else None,
        "same_class": finite and int(output.argmax()) == int(network.reference.argmax()),
    }
    return values


def forecast_ms(device: str, cycles: float, moved: float) -> float:
    """Return how long one thread takes if neither instructions nor memory wait for the other."""
    core, ghz = CORES[device], dc.device(device).ghz
    assert ghz
    return 1e3 * (cycles / (ghz * 1e9) + moved / core.bytes_per_second)


def for_eyes(row: Mapping[str, Any]) -> Row:
    """Return a row of JSON as one of a table."""
    millions = {key: row[key] / 1e6 for key in row if key.endswith(("_instructions", "_missed"))}
    products = millions["dot_instructions"] + millions["multiply_instructions"]
    published, error = row["published_ms"], row["max_error"]
    return {
        "network": row["network"],
        "core": row["device"],
        "type": row["dtype"],
        "contestant": row["library"] if row["contestant"] in row["library"] else row["contestant"],
        "instructions M": f"{row['instructions'] / 1e6:.1f}",
        "over ours": f"{row['instructions_over_ours']:.2f}",
        "FMAs M": f"{millions['fma_instructions']:.1f}",
        "whole products M": f"{products:.1f}",
        "cycles M": f"{row['cycles'] / 1e6:.1f}",
        "cycles over ours": f"{row['cycles_over_ours']:.2f}",
        "read MB": f"{row['memory_read_bytes'] / 1e6:.1f}",
        "written MB": f"{row['memory_written_bytes'] / 1e6:.1f}",
        "forecast ms": f"{row['forecast_ms']:.1f}",
        "published ms": f"{published:.1f} ({row['forecast_error']:+.0%})" if published else "",
        "max error": "inf" if error is None else f"{error:.1e}",
        "same class": "yes" if row["same_class"] else "no",
    }


def summaries(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how far forecasts are from published times, and who and what is not here."""
    lines = []
    for device, core in CORES.items():
        own = [row for row in rows if row["device"] == device and row["forecast_error"] is not None]
        if own:
            errors = [row["forecast_error"] for row in own]
            lines.append(
                f"{core.board}: forecasts of {PUBLISHER} are {min(errors):+.0%} to "
                f"{max(errors):+.0%} off what it publishes ({len(errors)} rows), "
                f"{np.mean(np.abs(errors)):.0%} in the mean"
            )
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["not_here"]:
            where = f"{row['network']} {row['device']} {row['dtype']}"
            reasons.setdefault((row["contestant"], row["not_here"]), []).append(where)
    lines += [
        f"{name} is not here ({', '.join(where)}): {reason}"
        for (name, reason), where in reasons.items()
    ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Count what networks with random weights execute on ARM cores, for one image "
        "in one thread, beside other libraries, in an emulator. Cycles are the fewest in which the "
        "core's ports can do it; memory is what a model of its caches reads and writes; a forecast "
        "is both after each other. The error is relative to the float32 network.",
    )
    parser.add_argument(
        "network",
        nargs="*",
        metavar="NETWORK",
        help=f"of {', '.join(MODELS)}; default: {' '.join(NETWORKS)}",
    )
    for option, known in (("device", tuple(CORES)), ("dtype", TYPES), ("rival", RIVALS)):
        parser.add_argument(
            f"--{option}",
            action="append",
            choices=known,
            metavar=option.upper(),
            help=f"of {'; '.join(known)}; repeatedly for several; default: all",
        )
    add_format(parser)
    args = parser.parse_args()
    networks = args.network or NETWORKS
    for name in networks:
        if name not in MODELS:
            parser.error(
                f"there is no network {name!r}: expected some of {', '.join(MODELS)}"
                f"{did_you_mean(name, MODELS)}"
            )
    asked = [(device, dtype) for device in args.device or CORES for dtype in args.dtype or TYPES]
    wanted = [(device, dtype) for device, dtype in asked if dtype in CORES[device].types]
    if not wanted:
        parser.error(
            f"{' and '.join(args.device)} cannot compute in {' or '.join(args.dtype)}: expected "
            + "; ".join(f"{name} with {', '.join(core.types)}" for name, core in CORES.items())
        )
    rows: list[dict[str, Any]] = []
    for name in networks:
        with files.scratch() as folder:
            network = Network(name, folder)
            for device, dtype in wanted:
                rows += compared(network, device, dtype, args.rival or RIVALS)
    text = render(rows, args.format, [for_eyes(row) for row in rows if not row["not_here"]])
    if for_people(args.format):
        bullet = "- " if args.format == "markdown" else ""
        lines = summaries(rows)
        lines += [f"{d} cannot compute in {t}" for d, t in asked if (d, t) not in wanted]
        text += "\n\n" + "\n".join(bullet + line for line in lines)
    print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DirectConvError as error:
        sys.exit(f"{PROGRAM}: error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{PROGRAM}: interrupted; what was counted is kept")
