"""What the model counts."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from tvm_directconv import Blocking, ConvWorkload, device
from tvm_directconv.blocking import IC_OUTSIDE
from tvm_directconv.candidates import choose
from tvm_directconv.case import Case, default_input_layout
from tvm_directconv.model import Estimate, estimate
from tvm_directconv.tiling import Tiling, reasons_against


def test_paper_inequalities_decide_between_tiles() -> None:
    target, layer = device("znver4"), ConvWorkload.parse("ic256ih56oc256oh56kh3ph1")
    chosen = choose(Case.of(layer, target))
    # 4 cycles of latency at one FMA per cycle: a tile of one sum keeps the unit idle for most.
    slow = replace(chosen, oc_vectors=1, ow_tile=1)
    assert (
        estimate(Tiling(Case.of(layer, target), slow)).cycles
        > 3 * estimate(Tiling(Case.of(layer, target), chosen)).cycles
    )
    # One column more than the registers hold.
    wide = replace(chosen, ow_tile=chosen.ow_tile + 1)
    layout = default_input_layout(layer, target)
    assert any(
        "registers" in r for r in reasons_against(wide, Case.of(layer, target, input_layout=layout))
    )


@pytest.mark.parametrize("rows_outside", [False, True])
def test_the_last_tile_of_channels_takes_what_its_vectors_take(rows_outside: bool) -> None:
    def of(vectors: int, tile: int, threads: int = 1) -> Estimate:
        workload = ConvWorkload.parse(f"ic16ih14oc{16 * vectors}oh14kh3ph1")
        blocking = Blocking(16, tile, 14, 16, 8, oh_block=7, rows_outside=rows_outside)
        return estimate(Tiling(Case.of(workload, device("sapphirerapids"), threads), blocking))

    about = partial(pytest.approx, rel=5e-3)  # Fewer channels leave others more of the cache.
    # Two blocks of rows; tiles of two vectors, and one of one.
    two, one = of(2, 2).cycles / 2, of(1, 1).cycles / 2
    assert one < two
    assert of(5, 2).cycles == about(4 * two + 2 * one)
    # Of six tasks, the first of three threads has two, and the fewest with one vector.
    shared = of(5, 2, threads=3)
    assert shared.cycles == about(2 * two)
    assert shared.balance == about((4 * two + 2 * one) / 3 / (2 * two))
    # The first of two threads has three: in this order of tasks one of one vector, or none.
    assert of(5, 2, threads=2).cycles == about(2 * two + (one if rows_outside else two))


def cycles(workload: ConvWorkload, blocking: Blocking, **figures: Any) -> float:
    target = replace(device("sapphirerapids"), **figures)
    return estimate(Tiling(Case.of(workload, target), blocking)).cycles


def test_far_weights_cost_more_where_tiles_read_near_ones_again() -> None:
    # 9 MB of weights for each row. With all input channels in a tile, it reads 590 KB of them.
    workload = ConvWorkload.parse("ic512ih7oc512oh7kh3ph1")
    inside = Blocking(16, 2, 7, 16, 16, rows_outside=True)
    outside = replace(inside, loop_order=IC_OUTSIDE)
    slower = {
        blocking: cycles(workload, blocking, l3_bytes=1 << 28, l3_bytes_per_cycle=30)
        / cycles(workload, blocking, l3_bytes=1 << 28, l3_bytes_per_cycle=1e9)
        for blocking in (inside, outside)
    }
    assert slower[inside] > 1.4 > 1.15 > slower[outside]


def test_pixels_that_strides_leave_out_fill_caches() -> None:
    # As many pixels are read from a small image, and from every other one of a large image.
    blocking = Blocking(16, 4, 7, 16, 8, flat_rows=1)
    small = ConvWorkload.parse("ic256ih28oc512oh28kh1")
    large = ConvWorkload.parse("ic256ih56oc512oh28kh1sh2")
    views = {Tiling(Case.of(w, "sapphirerapids"), blocking).view for w in (small, large)}
    assert len(views) == 1
    near = {"l1d_bytes": 1 << 30}
    assert cycles(small, blocking, **near) == cycles(large, blocking, **near)
    assert cycles(small, blocking) < cycles(large, blocking)


def test_what_tasks_read_first_is_cold() -> None:
    # 9 MB of weights, of which each task reads its own 590 KB: all of them, once.
    workload = ConvWorkload.parse("ic512ih14oc512oh14kh3ph1")
    whole = Blocking(16, 2, 14, 16, 8, oh_block=14)
    far = {"l3_bytes": 1 << 28, "l3_bytes_per_cycle": 0.1}
    near = {"l3_bytes": 1 << 28, "l3_bytes_per_cycle": 48}
    weights = workload.weight_bytes + workload.input_bytes
    slower = cycles(workload, whole, **far) - cycles(workload, whole, **near)
    assert slower > 8 * weights  # of 10 cycles a byte; some are hidden
    # Several tasks that share them read them cold but once.
    parts = replace(whole, oh_block=2)
    again = cycles(workload, parts, **far) - cycles(workload, parts, **near)
    assert again < 1.1 * slower


def slower_if_cold(workload: ConvWorkload, blocking: Blocking) -> float:
    """Return how many cycles it takes if each byte of the third level takes a tenth of one more."""
    slow, fast = (
        cycles(workload, blocking, l3_bytes=1 << 28, l3_bytes_per_cycle=rate) for rate in (8, 40)
    )
    return slow - fast


def test_sums_stored_between_blocks_wait_for_their_lines() -> None:
    workload = ConvWorkload.parse("ic128ih28oc512oh28kh1")
    inside = Blocking(16, 2, 14, 16, 4, rows_outside=True)
    outside = replace(inside, ic_block=32, loop_order=IC_OUTSIDE)
    waited = slower_if_cold(workload, outside) - slower_if_cold(workload, inside)
    assert waited == pytest.approx(0.7 * 0.1 * workload.output_bytes, rel=0.1)


def test_strided_pixels_counted_in_other_rows_wait() -> None:
    workload = ConvWorkload.parse("ic256ih56oc512oh28kh1sh2")
    rows = Blocking(16, 2, 14, 16, 4, oh_block=7, rows_outside=True)
    flat = replace(rows, oh_block=2, flat_rows=8)
    waited = slower_if_cold(workload, flat) - slower_if_cold(workload, rows)
    # Half the rows of the image are read, with all their pixels.
    assert waited == pytest.approx(0.1 * workload.input_bytes / 2, rel=0.1)


def test_weights_wait_for_each_other_only_if_some_are_cold() -> None:
    # All is in the second-level cache, and twice as much as that is.
    near, far = (ConvWorkload.parse(f"ic512ih14oc{n}oh14kh1") for n in (64, 1024))
    blocking = Blocking(16, 2, 14, 16, 8, flat_rows=1)
    before = [cycles(workload, blocking) for workload in (near, far)]
    slow = replace(device("sapphirerapids").model, contention=100.0)
    after = [cycles(workload, blocking, model=slow) for workload in (near, far)]
    assert after[0] == before[0]
    assert after[1] > 2 * before[1]
