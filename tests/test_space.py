"""The space of block sizes: what is in it, in which order, and why the rest is not."""

from collections.abc import Iterable
from dataclasses import astuple, fields, replace
from math import ceil

import numpy as np
import pytest
from conftest import DEVICES, LAYERS, chosen, covering
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_directconv import Blocking, ConvWorkload, device
from tvm_directconv.blocking import IC_INSIDE, IC_OUTSIDE
from tvm_directconv.candidates import choose
from tvm_directconv.case import Case, channel_block
from tvm_directconv.errors import BlockingError
from tvm_directconv.layout import ActivationLayout
from tvm_directconv.model import estimate
from tvm_directconv.tiling import Tiling, reasons_against, registers, usable_registers
from tvm_directconv.tuning.space import Space

LAYER = ConvWorkload.parse("ic64ih28oc64oh28kh3ph1")
POINTWISE = ConvWorkload.parse("ic96ih14oc64oh14kh1")
KNOBS = [knob.name for knob in fields(Blocking)]


def check(space: Space) -> None:
    """Check what holds for every space."""
    case = space.case
    workload = case.workload
    assert len(space) == len(space.points) == len(set(space.points)) == len(space.cycles) >= 1
    lanes = channel_block(workload.out_channels, case.device)
    for number, point in enumerate(space.points):
        assert reasons_against(point, case) == []
        assert point.lanes == lanes
        # Straight-line code has a limit.
        taps = workload.kernel[1] if point.kw_unroll else 1
        straight = Tiling(case, point).straight_channels
        assert point.oc_vectors * point.ow_tile * straight * taps <= 512
        assert space.number_of(point) == number
    # Nothing is measured twice: what differs in no more than its name is left out.
    codes = {replace(p, ic_unroll=Tiling(case, p).straight_channels) for p in space.points}
    assert len(codes) == len(space)
    assert np.isfinite(space.cycles).all() and (space.cycles > 0).all()
    # The model's choice comes first; behind it, the model's ranks.
    assert space.points[0] == choose(case)
    assert (np.diff(space.cycles) >= 0).all()
    assert space.cycles[-1] <= 1.5 * space.cycles[0]
    for rejected in space.rejected:
        kind, numbers = rejected.reason.split(": ", 1)
        assert kind in ("too large a tile", "slow on paper", "too many points")
        assert any(map(str.isdigit, numbers))
        assert space.number_of(rejected.blocking) is None
    assert sum(space.reasons().values()) == len(space.rejected)
    features = space.features()
    assert features.dtype == np.float32 and features.shape[0] == len(space)
    assert features.shape[1] > len(KNOBS) and np.isfinite(features).all()
    weights = space.likelihood()
    assert weights.shape == (len(space),) and weights.sum() == pytest.approx(1)
    assert (weights > 0).all() and weights[0] == weights.max()


@st.composite
def workloads(draw: st.DrawFn) -> ConvWorkload:
    """Draw convolutions of odd sizes: strides beyond the kernel, wide padding, few channels."""
    channels = st.one_of(st.integers(1, 20), st.sampled_from([24, 32, 48, 100, 127, 128, 256]))
    taps = st.integers(1, 5)
    kernel = draw(st.tuples(taps, taps))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    padding = draw(st.tuples(*(st.integers(0, reach[axis % 2]) for axis in range(4))))
    rows, columns = (
        draw(st.integers(max(1, reach[axis] + 1 - padding[axis] - padding[axis + 2]), 40))
        for axis in range(2)
    )
    return ConvWorkload(
        batch=draw(st.integers(1, 3)),
        in_channels=draw(channels),
        in_height=rows,
        in_width=columns,
        out_channels=draw(channels),
        kernel=kernel,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding=padding,
        dilation=dilation,
    )


@settings(max_examples=25, deadline=None)
@given(workload=workloads(), name=st.sampled_from(DEVICES), threads=st.integers(1, 4))
def test_spaces_of_any_convolution(workload: ConvWorkload, name: str, threads: int) -> None:
    space = Space(Case.of(workload, device(name), threads))
    check(space)
    rng = np.random.default_rng(0)
    for number in space.sample(3, seed=1):
        check_neighbour(space, number, rng)


def of_many_kinds(layer: ConvWorkload) -> set[object]:
    return {
        ("kernel", layer.kernel),
        ("stride", layer.stride),
        ("few channels", layer.in_channels < 4),
        ("width", ceil(layer.out_width / 14)),
    }


@pytest.mark.parametrize("name", ["armv7", "cortex-a72", "x86-64-v2", "haswell", "znver4"])
def test_spaces_of_layers(name: str) -> None:
    for layer in covering(LAYERS, of_many_kinds):
        space = Space(Case.of(layer, device(name)))
        check(space)
        assert space.points[0] == chosen(layer, name)


@pytest.mark.parametrize("part", range(2))
def test_every_layer_of_the_networks_has_something_to_search(part: int) -> None:
    target = device("native")
    for layer in LAYERS[part::2]:
        assert len(Space(Case.of(layer, target))) > 10


def test_both_orders_and_what_the_model_does_not_count_are_searched() -> None:
    space = Space(Case.of(LAYER, device("haswell")))
    assert {point.loop_order for point in space.points} == {IC_INSIDE, IC_OUTSIDE}
    assert {point.kw_unroll for point in space.points} == {False, True}
    # Four of blocks of eight would be the code of eight.
    assert {point.ic_unroll for point in space.points} == {1, 2, 8}
    assert len({(p.oc_vectors, p.ow_tile) for p in space.points}) >= 4
    assert {point.kw_unroll for point in Space(Case.of(POINTWISE, device("haswell"))).points} == {
        False
    }


def test_a_small_space() -> None:
    space = Space(Case.of(ConvWorkload.parse("ic1ih1oc1oh1kh1"), device("armv7")))
    check(space)
    assert len(space) < 5
    assert space.sample(100, 0) and len(space.sample(100, 0)) == len(space)


def test_a_space_has_a_limit() -> None:
    space = Space(Case.of(ConvWorkload.parse("ic96ih28oc128oh28kh3ph1"), device("cortex-a72")))
    assert len(space) == 512
    assert space.reasons()["too many points"] > 0
    check(space)


def test_reasons() -> None:
    space = Space(Case.of(LAYER, device("haswell")))
    reasons = {rejected.reason.split(":")[0]: rejected for rejected in space.rejected}
    slow, large = reasons["slow on paper"], reasons["too large a tile"]
    times = float(slow.reason.split(": ")[1].split()[0])
    cycles = estimate(Tiling(space.case, slow.blocking)).cycles
    assert times == pytest.approx(cycles / space.cycles[0], abs=0.01) and times > 1.5
    tile = large.blocking
    row = space.case.peak.instruction
    needed = registers(tile.oc_vectors, tile.ow_tile, LAYER, row)
    assert needed > usable_registers(space.case)
    assert "registers" in large.reason
    assert repr(space) == (
        f"<Space of {len(space)} points, {len(space.rejected)} rejected, {LAYER}>"
    )


def test_equal_spaces() -> None:
    one, other = (Space(Case.of(LAYER, device("cortex-a72"), 2)) for _ in range(2))
    assert one.points == other.points and one.rejected == other.rejected
    np.testing.assert_array_equal(one.features(), other.features())
    # Tasks must share out evenly, so the number of threads matters.
    single, five = (Space(Case.of(POINTWISE, device("cortex-a72"), threads)) for threads in (1, 5))
    assert single.points != five.points


def test_samples() -> None:
    space = Space(Case.of(LAYER, device("haswell")))
    drawn = space.sample(32, seed=5)
    assert drawn == space.sample(32, seed=5) != space.sample(32, seed=6)
    assert len(set(drawn)) == 32 and all(0 <= number < len(space) for number in drawn)
    assert sorted(space.sample(10**6, seed=5)) == [*range(len(space))]
    assert space.sample(16, seed=5) == drawn[:16]


# --- Neighbours ---------------------------------------------------------------------------------


def differing(one: Blocking, other: Blocking) -> set[str]:
    return {knob for knob, a, b in zip(KNOBS, astuple(one), astuple(other), strict=True) if a != b}


def check_neighbour(space: Space, number: int, rng: np.random.Generator) -> str | None:
    """Draw a neighbour and return the knob that was drawn, None if there is no other value."""

    class Drawn:
        """Tells which knob was drawn."""

        knob: int

        def integers(self, count: int) -> int:
            self.knob = int(rng.integers(count))
            return self.knob

        choice = rng.choice

    drawn = Drawn()
    neighbour = space.neighbour(number, drawn)  # type: ignore[arg-type]
    knob = KNOBS[drawn.knob]
    point = space.points[number]
    changes = [differing(point, other) for other in space.points]
    others = [len(change) for change in changes if knob in change]
    if neighbour is None:
        assert not others
        return None
    assert knob in changes[neighbour]
    assert len(changes[neighbour]) == min(others)
    return knob


@pytest.mark.parametrize("workload", [LAYER, POINTWISE], ids=str)
def test_neighbours(workload: ConvWorkload) -> None:
    space, rng = Space(Case.of(workload, device("haswell"))), np.random.default_rng(0)
    found = {check_neighbour(space, number, rng) for number in space.sample(60, seed=0)}
    assert None in found  # All points have the same lanes.
    assert {"ic_unroll", "ow_tile", "oc_vectors", "loop_order", "oh_block"} <= found
    # Everything can be reached from the first point.
    reached, frontier = {0}, [0]
    while frontier:
        frontier = [*new_of(space, frontier, rng) - reached]
        reached.update(frontier)
    assert len(reached) > 0.9 * len(space)


def new_of(space: Space, points: Iterable[int], rng: np.random.Generator) -> set[int]:
    drawn = (space.neighbour(point, rng) for point in points for _ in range(30))
    return {number for number in drawn if number is not None}


# --- Where the search starts --------------------------------------------------------------------


def test_a_start_of_ones_own() -> None:
    target = device("haswell")
    usual = Space(Case.of(LAYER, target))
    bad = Blocking(8, 1, 1, 8, 1)
    assert usual.number_of(bad) is None
    space = Space(Case.of(LAYER, target), start=bad)
    assert space.points == (bad, *usual.points)[: len(space)]
    counted = estimate(Tiling(usual.case, bad)).cycles
    assert space.cycles[0] == counted > 2 * space.cycles[1]
    assert space.likelihood()[0] == space.likelihood().min() > 0
    assert np.isfinite(space.features()).all()
    # One that is in the space already is moved to its front.
    start = usual.points[20]
    moved = Space(Case.of(LAYER, target), start=start)
    assert moved.points[0] == start and set(moved.points) == set(usual.points)
    assert moved.number_of(usual.points[0]) == 1


def test_a_start_is_kept_in_a_full_space() -> None:
    workload, target = ConvWorkload.parse("ic96ih28oc128oh28kh3ph1"), device("cortex-a72")
    bad = Blocking(4, 1, 1, 4, 1)
    space = Space(Case.of(workload, target), start=bad)
    assert len(space) == 512 and space.points[0] == bad


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (Blocking(16, 1, 1, 8, 1), "lanes is 16"),
        (Blocking(8, 9, 1, 8, 1), "only 8 vectors"),
        (Blocking(8, 4, 14, 8, 1), "registers"),
        (Blocking(8, 1, 1, 8, 0), "ic_unroll is 0"),
    ],
)
def test_an_impossible_start(start: Blocking, reason: str) -> None:
    with pytest.raises(BlockingError, match=reason):
        Space(Case.of(LAYER, device("haswell")), start=start)


def test_other_layouts() -> None:
    target = device("haswell")
    plain = Space(Case.of(LAYER, target, input_layout=ActivationLayout("NHWC")))
    check(plain)
    assert str(plain.case.input_layout) == "NHWC"
    # Their channels need not stay in blocks of the input's.
    assert {p.ic_block for p in plain.points} != {
        p.ic_block for p in Space(Case.of(LAYER, target)).points
    }
