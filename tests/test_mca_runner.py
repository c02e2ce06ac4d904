"""Scores of llvm-mca: of known loops, of compiled layers, and what cannot be scored."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import chosen, compiled
from tvm import tirx

from tvm_directconv import Blocking, CompiledConv, ConvWorkload, build, device
from tvm_directconv.assembly import innermost_loops, mca_cycles
from tvm_directconv.bench.compare import Comparison, Failure
from tvm_directconv.case import Case, default_input_layout
from tvm_directconv.errors import DeviceError, LibraryError, ToolchainError
from tvm_directconv.lowering.pipeline import PIPELINE
from tvm_directconv.model import estimate
from tvm_directconv.scheduling import scheduled
from tvm_directconv.tiling import Tiling, reasons_against
from tvm_directconv.tuning.runners import mca
from tvm_directconv.tuning.runners.mca import McaRunner

PLAIN = ConvWorkload.parse("ic64ih8iw64oc64oh8ow64kh1")
PADDED = ConvWorkload.parse("ic32ih14oc32oh14kh3ph1")


def exported(conv: CompiledConv, folder: Path, name: str = "conv.s") -> Path:
    return conv.export(folder / name)


@pytest.mark.parametrize("name", ["cortex-a72", "neoverse-n1", "haswell", "skylake-avx512"])
def test_a_score_is_the_loops_and_what_the_model_counts_around_them(
    name: str, tmp_path: Path
) -> None:
    target = device(name)
    conv = compiled(PLAIN, name)
    b = conv.blocking
    assert PLAIN.out_width % b.ow_tile == 0 or b.flat_rows
    tiling = Tiling(Case.of(PLAIN, target), b)
    (loop, *narrow) = innermost_loops(conv.assembly(), target.triple)
    assert bool(narrow) == bool(tiling.view.out_width % b.ow_tile)
    # One input channel of a full tile takes as long as its share of a round.
    step = mca_cycles(loop, target.triple, str(target.mca_cpu))
    step *= b.ow_tile * b.oc_vectors / loop.fmas
    asked = []

    def code(met: tuple[int, ...]) -> float | None:
        asked.append(met)
        return step if met == (b.ow_tile,) else None

    runner = McaRunner(target)
    found = runner.cycles(exported(conv, tmp_path))
    if not narrow:
        assert found == pytest.approx(estimate(tiling, code).cycles, rel=0.01)
        assert set(asked) == {(b.ow_tile,)}
    # Everything else is some percent here.
    ideal = PLAIN.flops / target.peak().flops_per_cycle
    assert ideal < found < 1.35 * ideal
    assert runner.measure(tmp_path / "conv.s", None, 5) == Comparison((found / 1e9,))
    assert (runner.cpu, runner.cpu_name, runner.cpu_device) == (None, None, name)


@pytest.mark.parametrize("name", ["cortex-a76", "znver4"])
def test_products_of_words_are_scored(name: str, tmp_path: Path) -> None:
    target = device(name)
    for dtype in ("uint8", "int8"):
        conv = build(f"{dtype}_{PLAIN}", name)
        tiling = Tiling(Case.of(conv.workload, target), conv.blocking)
        assert 0.4 < mca.loops_of_peak(conv.assembly(), tiling) <= 1
        found = McaRunner(target).measure(exported(conv, tmp_path), None, 5)
        assert isinstance(found, Comparison)


@pytest.mark.parametrize(
    ("name", "instruction"),
    [("haswell", "vpmadd"), ("cortex-a72", "smull"), ("sapphirerapids", "tdp")],
)
def test_instructions_of_several_parts_are_not_scored(
    name: str, instruction: str, tmp_path: Path
) -> None:
    conv = build(f"uint8_{PLAIN}", name)
    found = McaRunner(device(name)).measure(exported(conv, tmp_path), None, 5)
    assert isinstance(found, Failure) and found.kind == "rejected"
    assert found.message.startswith(f"llvm-mca does not score convolutions by {instruction}")


# Tiles at the left and the right that read padding; rows that end with a narrower tile; columns of
# the kernel as loops, as straight-line code, and as straight-line code in border tiles alone.
TILES = [
    {"oc_vectors": 2, "ow_tile": 7},
    {"oc_vectors": 2, "ow_tile": 4},
    {"oc_vectors": 4, "ow_tile": 5},
    {"oc_vectors": 1, "ow_tile": 3, "ic_block": 4, "loop_order": "ic_outside"},
    {"oc_vectors": 2, "ow_tile": 5, "ic_block": 4, "loop_order": "ic_outside"},
    {"oc_vectors": 2, "ow_tile": 4, "ic_block": 8, "loop_order": "ic_outside"},
]
# There, sums change registers within a round.
X86_TILES = [{"oc_vectors": 1, "ow_tile": 7, "ic_unroll": 8}]


@pytest.mark.parametrize(
    ("name", "knobs"),
    [*(("cortex-a72", knobs) for knobs in TILES), *(("haswell", knobs) for knobs in X86_TILES)],
    ids=str,
)
def test_every_tile_has_its_loop(
    name: str, knobs: dict[str, int | str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are right if the cycles of each loop are right, so let llvm-mca count FMAs."""
    target = device(name)
    b = Blocking.from_dict({**chosen(PADDED, name).to_dict(), "ic_unroll": 4, **knobs})
    path = exported(build(PADDED, target, blocking=b), tmp_path)
    module = "tvm_directconv.tuning.runners.mca"
    counted = []

    def products(met: tuple[int, ...]) -> float:
        counted.append(met)
        return sum(met) * b.oc_vectors

    expected = estimate(Tiling(Case.of(PADDED, target), b), products).cycles
    assert len(set(counted)) > 1
    # The model alone would count something else.
    assert abs(estimate(Tiling(Case.of(PADDED, target), b)).cycles / expected - 1) > 0.01
    monkeypatch.setattr(f"{module}.mca_cycles", lambda loop, *_: float(loop.fmas))
    assert McaRunner(target).cycles(path) == pytest.approx(expected, rel=1e-9)


def test_threads_share_the_cycles(tmp_path: Path) -> None:
    runner = McaRunner(device("cortex-a72"))
    one = runner.cycles(exported(compiled(PLAIN, "cortex-a72"), tmp_path))
    two = runner.cycles(exported(compiled(PLAIN, "cortex-a72", 2), tmp_path))
    assert one / two == pytest.approx(2, rel=0.1)


def test_a_candidate_is_compared_with_the_incumbent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = device("cortex-a72")
    good = exported(compiled(PLAIN, "cortex-a72"), tmp_path, "good.s")
    narrow = replace(chosen(PLAIN, "cortex-a72"), oc_vectors=1, ow_tile=1)
    slow = exported(build(PLAIN, target, blocking=narrow), tmp_path, "slow.s")
    runner = McaRunner(target)
    slower = runner.measure(slow, good, 7, thorough=True)
    assert isinstance(slower, Comparison)
    assert slower.ratio < 0.8
    assert len(slower.seconds) == len(slower.over_incumbent) == 1
    # Nothing is computed a second time.
    monkeypatch.setattr("tvm_directconv.tuning.runners.mca.mca_cycles", None)
    faster = runner.measure(good, slow, 1)
    assert isinstance(faster, Comparison)
    assert faster.ratio == pytest.approx(1 / slower.ratio)
    assert faster.seconds[0] == pytest.approx(slower.seconds[0] * slower.ratio)


def test_depthwise_convolutions_are_not_scored(tmp_path: Path) -> None:
    layer = ConvWorkload.parse("g16ic16ih14oc16oh14kh3ph1")
    path = exported(compiled(layer, "cortex-a72"), tmp_path)
    found = McaRunner(device("cortex-a72")).measure(path, None, 1)
    assert found == Failure("rejected", "llvm-mca does not score depthwise convolutions")


def test_spills_cost(tmp_path: Path) -> None:
    """A tile of more sums than registers, which only LLVM's spills make slow."""
    target = device("cortex-a72")
    layout = default_input_layout(PLAIN, target)
    b = replace(chosen(PLAIN, "cortex-a72"), oc_vectors=4, ow_tile=8, flat_rows=8)
    assert reasons_against(b, Case.of(PLAIN, target, input_layout=layout))
    module = scheduled(Tiling(Case.of(PLAIN, target, 1, layout), b)).mod
    spilling = CompiledConv(
        replace(compiled(PLAIN, "cortex-a72").manifest, blocking=b),
        tirx.build(module, target.target(1), pipeline=PIPELINE),
    )
    found = McaRunner(target).cycles(exported(spilling, tmp_path))
    assert found > 1.1 * estimate(Tiling(Case.of(PLAIN, target), b)).cycles


def test_loops_of_as_many_products_are_told_apart(tmp_path: Path) -> None:
    """12 products in two sums wait for each other, in three they do not."""
    target = device("cortex-a72")
    # Three columns meet one of the kernel in each round. Of the last two in a row, one meets two
    # columns of the kernel and the other one, all of them in straight-line code.
    layer = ConvWorkload(
        in_channels=16,
        in_height=28,
        in_width=26,
        out_channels=32,
        kernel=(5, 8),  # Of fewer columns LLVM makes straight-line code everywhere.
        padding=(2, 2, 2, 7),
    )
    b = Blocking(lanes=4, oc_vectors=1, ow_tile=3, ic_block=4, ic_unroll=4, oh_block=28)
    conv = build(layer, target, blocking=b)
    loops = mca._timed_loops(conv.assembly(), target)
    cycles = {loop.sums: loop.cycles for loop in loops if loop.fmas == 12}
    assert cycles.keys() == {2, 3}
    assert cycles[2] > 1.9 * cycles[3]
    assert mca._row_cycles(loops, b, (2, 1, 0, 0)) == cycles[2] / 4
    assert mca._row_cycles(loops, b, (3, 3, 3, 3)) == pytest.approx(cycles[3], rel=1e-3)
    # The slow ones are few.
    found = McaRunner(target).cycles(exported(conv, tmp_path))
    assert found < 1.05 * estimate(Tiling(Case.of(layer, target), b)).cycles


# --- What cannot be scored


@pytest.mark.parametrize("name", ["cortex-a53", "armv7"])
def test_devices_that_llvm_mca_does_not_know(name: str) -> None:
    with pytest.raises(DeviceError, match=f"'{name}' has no mca_cpu: .*Measure on the board"):
        McaRunner(device(name))


def test_without_llvm_mca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="apt install llvm-19"):
        McaRunner(device("cortex-a72"))


def test_assembly_that_llvm_mca_cannot_read(tmp_path: Path) -> None:
    conv = compiled(PLAIN, "cortex-a72")
    path = exported(conv, tmp_path)
    text = path.read_text().replace("\tfmla\tv", "\tfmla\tv99", 3)
    path.write_text(text)
    with pytest.raises(LibraryError, match="another library"):
        McaRunner(device("cortex-a72")).measure(path, None, 1)
    manifest = path.with_name("conv.s.json")
    manifest.write_text(json.dumps(conv.manifest.to_dict(path.read_bytes())))
    failure = McaRunner(device("cortex-a72")).measure(path, None, 1)
    assert isinstance(failure, Failure)
    assert failure.kind == "compile_error"
    assert "cannot count the cycles of a loop" in failure.message


def test_code_without_loops_is_counted_by_the_model(tmp_path: Path) -> None:
    layer = ConvWorkload.parse("ic4ih1iw4oc4oh1ow4kh1")
    conv = compiled(layer, "cortex-a72")
    assert not innermost_loops(conv.assembly(), device("cortex-a72").triple)
    found = McaRunner(device("cortex-a72")).cycles(exported(conv, tmp_path))
    assert found == estimate(Tiling(Case.of(layer, device("cortex-a72")), conv.blocking)).cycles
