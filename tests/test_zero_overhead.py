"""No memory but the arrays: seen in the loops, in the library's symbols, and while it runs."""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import DEVICES, LAYERS, compiled, covering, run_exact

from tvm_directconv import (
    Blocking,
    CompiledConv,
    ConvWorkload,
    Epilogue,
    build,
    device,
)
from tvm_directconv.blocking import IC_INSIDE, IC_OUTSIDE
from tvm_directconv.case import Case
from tvm_directconv.lowering.pipeline import allocated_bytes, lower
from tvm_directconv.scheduling import scheduled
from tvm_directconv.tiling import Tiling
from tvm_directconv.toolchain import elf_info, find_toolchain


def kinds(layer: ConvWorkload) -> set[Hashable]:
    return {("kernel", layer.kernel), ("stride", layer.stride)}


CASES = covering(LAYERS, kinds)
# Small enough for an emulator, and still of both kinds of padding and input.
EMULATED = [ConvWorkload.parse(text) for text in ("ic32ih7oc48oh7kh3ph1", "ic3ih27oc24oh13kh5sh2")]

WORKSPACE = """
from tvm_directconv.compute import BLOCK_NAME

def schedule(sch, tiling):
    sch.cache_write(sch.get_sblock(BLOCK_NAME), 0, "global")
"""


@dataclass(frozen=True)
class Overhead:
    """What three ways of looking find."""

    largest_allocation: int
    workspace_symbols: frozenset[str]
    parallel: bool


def overhead(conv: CompiledConv, folder: Path, schedule: Path | None = None) -> Overhead:
    m = conv.manifest
    function = scheduled(
        Tiling(
            Case.of(m.workload, device(m.device), m.threads, m.input_layout, epilogue=m.epilogue),
            m.blocking,
        ),
        schedule,
    ).mod[m.symbol]
    symbols = set(elf_info(conv.export(folder / "conv.so")).defined)
    return Overhead(
        allocated_bytes(lower(function)),
        frozenset(symbols & {"__TVMBackendAllocWorkspace", "__TVMBackendFreeWorkspace"}),
        "__TVMBackendParallelLaunch" in symbols,
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", DEVICES)
def test_nothing_is_allocated(name: str, threads: int, tmp_path: Path) -> None:
    # Tasks are shared out around the same code, so one layer will do there.
    for layer in CASES if threads == 1 else CASES[:1]:
        conv = compiled(layer, name, threads)
        found = overhead(conv, tmp_path)
        assert found.largest_allocation == 4 * conv.blocking.lanes, layer
        assert not found.workspace_symbols, layer
        assert found.parallel == (threads > 1), layer


@pytest.mark.parametrize("order", [IC_INSIDE, IC_OUTSIDE])
@pytest.mark.parametrize("name", DEVICES)
def test_epilogues_allocate_nothing(name: str, order: str, tmp_path: Path) -> None:
    # On paper, an epilogue reads a tensor of sums. Rows of 13 have a narrower last tile.
    layer = ConvWorkload.parse("ic32ih13oc32oh13kh3ph1")
    blocking = Blocking(device(name).lanes, 1, 4, 8, 4, loop_order=order)
    epilogue = Epilogue(bias=True, residual=True, activation="relu6")
    conv = build(layer, name, 1, blocking, "NCHW8c", epilogue=epilogue)
    found = overhead(conv, tmp_path)
    assert found.largest_allocation == 4 * conv.blocking.lanes
    assert not found.workspace_symbols


def runs_somewhere(name: str) -> bool:
    """Return whether a device's code runs here, or is foreign and has an emulator."""
    target = device(name)
    return target.is_host_runnable or bool(find_toolchain(target.triple).emulator)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", [*filter(runs_somewhere, DEVICES)])
def test_nothing_is_requested_while_running(name: str, threads: int, tmp_path: Path) -> None:
    for layer in EMULATED:
        report = run_exact(build(layer, name, threads), device(name), tmp_path, threads)
        assert (report.allocations, report.allocated_bytes) == (0, 0)


# im2col would take 7 MiB for it, and a padded copy 1 MiB.
LARGE = ConvWorkload.parse("ic64ih56oc64oh56kh3ph1")
NOISE = 2**16  # bytes


@pytest.mark.parametrize("threads", [1, 2])
def test_resident_memory_does_not_grow(threads: int, tmp_path: Path) -> None:
    assert LARGE.im2col_bytes > 100 * NOISE
    report = run_exact(build(LARGE, threads=threads), device("native"), tmp_path, threads)
    assert report.rss_growth_bytes <= NOISE


# --- The same checks on a schedule with a workspace: they have to find it.


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    path = tmp_path / "workspace.py"
    path.write_text(WORKSPACE)
    return path


def test_a_workspace_is_found_in_loops_and_symbols(workspace: Path, tmp_path: Path) -> None:
    conv = build(LARGE, schedule=workspace)
    found = overhead(conv, tmp_path, workspace)
    assert found.largest_allocation == LARGE.output_bytes
    assert len(found.workspace_symbols) == 2


def test_a_workspace_is_found_while_running(workspace: Path, tmp_path: Path) -> None:
    conv = build(LARGE, schedule=workspace)
    report = run_exact(conv, device("native"), tmp_path)
    assert report.allocations == 1
    assert LARGE.output_bytes <= report.allocated_bytes < 1.1 * LARGE.output_bytes
    assert report.rss_growth_bytes > 0.9 * LARGE.output_bytes


def test_a_parallel_library_runs_with_one_thread(tmp_path: Path) -> None:
    conv = build(EMULATED[0], threads=2)
    assert run_exact(conv, device("native"), tmp_path, threads=1).allocations == 0
