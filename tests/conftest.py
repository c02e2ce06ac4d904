"""What several test files share: layers, exact data, running libraries and the command line."""

import functools
import json
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_directconv import (
    Blocking,
    CompiledConv,
    ConvWorkload,
    Device,
    build,
    conv2d_reference,
    device,
    devices,
    epilogue_reference,
    manifest,
    networks,
    random_tensors,
    workloads,
)
from tvm_directconv.candidates import choose
from tvm_directconv.case import Case
from tvm_directconv.cli import main
from tvm_directconv.conv_manifest import ConvManifest
from tvm_directconv.deploy.runner import RunReport, run_library
from tvm_directconv.layout import aligned_zeros
from tvm_directconv.toolchain import find_toolchain

# Equal layers of several networks are one.
LAYERS = list(dict.fromkeys(w for name in networks() for w in workloads(name)))
DEVICES = [d.name for d in devices()]
# One whose code does not run here.
FOREIGN = "cortex-a72" if device("native").triple.startswith("x86") else "x86-64-v2"
# Subcommands, in the order in which they are listed.
COMMANDS = (
    "devices",
    "layers",
    "explain",
    "quantize",
    "compile",
    "run",
    "profile",
    "bench",
    "report",
    "tune",
    "logs",
    "doctor",
)

Result = tuple[int, str, str]
Command = Callable[..., Result]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="all layers in test_bounds.py, test_c_folder.py"
    )
    parser.addoption(
        "--mutations",
        type=int,
        default=100,
        metavar="N",
        help="versions of each kind of file, damaged in each way, in test_damaged_files.py",
    )


@pytest.fixture(scope="session")
def mutations(pytestconfig: pytest.Config) -> int:
    """Return how many versions of a damaged file are tried."""
    return int(pytestconfig.getoption("mutations"))


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests apart from the user's cache, and from all tuning logs but their own.

    What one worker has compiled, the others find.
    """
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(run / "cache"))
        patch.setenv("TVM_DIRECTCONV_LOGS", str(tmp_path_factory.mktemp("logs")))
        yield


@functools.cache
def chosen(workload: ConvWorkload, device_name: str) -> Blocking:
    """Return the model's choice for one thread, each case once per process."""
    return choose(Case.of(workload, device(device_name)))


@functools.cache
def compiled(workload: ConvWorkload, device_name: str, threads: int = 1) -> CompiledConv:
    """Build with the model's blocking, each case once per process."""
    return build(workload, device_name, threads)


def covering(
    layers: Iterable[ConvWorkload], features: Callable[[ConvWorkload], set[Hashable]]
) -> list[ConvWorkload]:
    """Choose few layers that together have every feature that any of them has."""
    remaining = list(layers)
    missing = set().union(*map(features, remaining))
    chosen = []
    while missing:
        # Of equally good ones, the cheapest.
        best = max(remaining, key=lambda w: (len(features(w) & missing), -w.flops))
        chosen.append(best)
        missing -= features(best)
    return chosen


def exact_case(workload: ConvWorkload) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return input, weights and output of whole numbers, of which float32 holds every sum."""
    x, weight = random_tensors(workload, seed=7, integers=True)
    return x, weight, conv2d_reference(x, weight, workload).astype(np.float32)


def packed_case(conv: CompiledConv) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return packed operands by name, as the code takes them, and the output to the last bit.

    Filled-up channels included. The epilogue is one that computes whole numbers of whole numbers.
    """
    x, weight, expected = exact_case(conv.workload)
    rng = np.random.default_rng(7)
    epilogue = conv.manifest.epilogue
    plain = {
        "bias": rng.integers(-64, 64, conv.workload.out_channels).astype(np.float32),
        "residual": rng.integers(-64, 64, expected.shape).astype(np.float32),
    }
    expected = epilogue_reference(expected, epilogue, **plain).astype(np.float32)
    operands = {"x": conv.pack_input(x), "weight": conv.pack_weight(weight)}
    for operand in epilogue.operands:
        operands[operand.name] = conv.pack_operand(operand.name, plain[operand.name])
    return operands, conv.manifest.output_layout.pack(expected)


def assert_exact(conv: CompiledConv) -> None:
    """Run a convolution here and compare every bit of its output."""
    operands, expected = packed_case(conv)
    out = aligned_zeros(conv.manifest.output_shape)
    out.fill(np.nan)
    conv.run(out=out, **operands)
    np.testing.assert_array_equal(out, expected)


def run_exact(
    conv: CompiledConv,
    target: Device,
    folder: Path,
    threads: int = 1,
    guard: str = "end",
    align: int = 64,
) -> RunReport:
    """Do the same with the C runner, emulated where the device is a foreign one."""
    operands, expected = packed_case(conv)
    report = run_library(
        conv.export(folder / "conv.so"),
        conv.manifest.symbol,
        list(operands.values()),
        [conv.manifest.output_shape],
        find_toolchain(target.triple, target.qemu_cpu),
        threads=threads,
        guard=guard,
        align=align,
    )
    np.testing.assert_array_equal(report.outputs[0], expected)
    return report


def change_manifest(path: Path, **changes: Any) -> None:
    """Change a manifest as if it had been written so: its own digest is right."""
    found = json.loads(path.read_text())
    path.write_text(json.dumps(manifest.completed({**found, **changes}, found["sha256"])))


def described(found: ConvManifest, library: Path) -> Path:
    """Write a manifest beside a library that it was not made for; return the library."""
    text = json.dumps(found.to_dict(library.read_bytes()), indent=2)
    library.with_name(f"{library.name}.json").write_text(text)
    return library


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Device:
    """Return this machine as if it had the 32 registers of AVX-512; LLVM spills the rest.

    So code with the tiles of AVX-512 runs wherever the tests do.
    """
    path = tmp_path_factory.mktemp("devices") / "wide.toml"
    path.write_text(
        f"""
        parent = "{device("native").name}"
        vector_registers = 32
        """
    )
    return device(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the command line in this process: its status, output, errors."""

    def command(*words: str) -> Result:
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else -1
        out, err = capsys.readouterr()
        return status, out, err

    return command


def output_of(conv: CompiledConv, folder: Path, *arrays: np.ndarray) -> np.ndarray:
    """Return the plain output for packed arrays, computed here or in an emulator.

    Nothing is allocated meanwhile, and nothing touched behind the arrays.
    """
    m, target = conv.manifest, device(conv.manifest.device)
    report = run_library(
        conv.export(folder / "conv.so"),
        m.symbol,
        list(arrays),
        [m.output_shape],
        find_toolchain(target.triple, target.qemu_cpu),
        threads=m.threads,
        guard="end",
        output_types=[m.output_type.name],
    )
    assert report.allocated_bytes == 0
    return conv.unpack_output(report.outputs[0])
