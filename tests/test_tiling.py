"""How a convolution is cut into tiles."""

from dataclasses import replace
from math import ceil

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tvm_directconv import Blocking, ConvWorkload, tiling
from tvm_directconv.case import Case
from tvm_directconv.layout import ActivationLayout
from tvm_directconv.tiling import Tiling, reasons_against


@given(
    width=st.integers(1, 40),
    taps=st.integers(1, 7),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    ow_tile=st.integers(1, 16),
)
# Tiles of 3, 2 and 3 columns: the stride skips the padding, for which the last one got one more.
@example(width=16, taps=2, stride=2, dilation=1, padding=(0, 1), ow_tile=3)
def test_tiles_between_the_borders_are_whole_and_read_no_padding(
    width: int, taps: int, stride: int, dilation: int, padding: tuple[int, int], ow_tile: int
) -> None:
    reach = (taps - 1) * dilation
    left, right = (min(p, reach) for p in padding)
    if width + left + right <= reach:
        width = reach + 1
    workload = ConvWorkload(
        in_channels=4,
        in_height=1,
        in_width=width,
        out_channels=4,
        kernel=(1, taps),
        stride=(1, stride),
        padding=(0, left, 0, right),
        dilation=(1, dilation),
    )
    tiles = ceil(workload.out_width / ow_tile)

    columns = tiling._row(workload, ow_tile).tiles
    assert [c for tile in columns for c in tile] == list(range(workload.out_width))
    assert len(columns) == tiles
    # What is left for the last two is shared evenly; all others are whole.
    assert {len(tile) for tile in columns[:-2]} <= {ow_tile}
    if len(columns) > 1 and workload.out_width % ow_tile:
        more = len(columns[-2]) - len(columns[-1])
        assert more in ((0, -1) if workload.padding[3] else (0, 1))

    def is_plain(tile: int) -> bool:
        reads = [c * stride - left + t * dilation for c in columns[tile] for t in range(taps)]
        return len(columns[tile]) == ow_tile and all(0 <= r < width for r in reads)

    with pytest.MonkeyPatch.context() as patch:
        # However many they are.
        patch.setattr(tiling, "_MOST_BORDER_TILES", tiles)
        *_, at_left, at_right = tiling._row.__wrapped__(workload, ow_tile)
    if at_left + at_right < tiles:
        between = range(at_left, tiles - at_right)
        assert all(map(is_plain, between))
        # And not one more than must be.
        assert not at_left or not is_plain(at_left - 1)
        assert not at_right or not is_plain(tiles - at_right)
    # A narrower last tile always has code of its own: its condition is not tested when running.
    assert not workload.out_width % ow_tile or at_right or at_left >= tiles


@pytest.mark.parametrize(
    ("channels", "oc_vectors", "tiles"),
    [
        (24, 3, (1, 0)),
        (128, 3, (6, 2, 2)),  # 3 + 3 + 3 + 3 + 2 + 2 vectors
        (33, 4, (2, 1, 1)),  # One vector less would leave no whole tile.
        (40, 3, (2, 1, 2)),
        (56, 2, (4, 1, 1)),
        (104, 4, (4, 3, 3)),
        (112, 4, (4, 2, 3)),
    ],
)
def test_what_channels_lack_is_shared_by_the_last_tiles(
    channels: int, oc_vectors: int, tiles: tuple[int, ...]
) -> None:
    workload = ConvWorkload.parse(f"ic8ih1oc{channels}oh1kh1")
    blocking = Blocking(8, oc_vectors, ow_tile=1, ic_block=8, ic_unroll=8)
    found = Tiling(Case.of(workload, "haswell"), blocking).channel_tiles
    assert found[: len(tiles)] == tiles
    count, narrow, vectors = found
    assert (count - narrow) * oc_vectors + narrow * vectors == ceil(channels / 8)


def test_pixels_of_1x1_kernels_are_counted_in_other_rows() -> None:
    workload = ConvWorkload.parse("ic8ih6iw10oc8kh1")
    blocking = Blocking(4, 1, 5, 4, 4, flat_rows=3)
    layout = ActivationLayout("NCHW4c")
    case = Case.of(workload, "cortex-a72", input_layout=layout)
    view = Tiling(case, blocking).view
    assert (view.in_height, view.in_width) == (3, 20)
    strided = ConvWorkload.parse("ic8ih11iw19oc8kh1sh2sw2")
    assert Tiling(replace(case, workload=strided), blocking).view == view
    assert reasons_against(blocking, case) == []
    padded = ConvWorkload.parse("ic8ih6oc8kh3ph1")
    assert reasons_against(blocking, replace(case, workload=padded))


def test_loads_of_pixels_are_counted_as_scheduled() -> None:
    def loads(device_name: str, layout: str, stride: int = 1, **knobs: int) -> tuple[float, float]:
        workload = ConvWorkload.parse(f"ic16ih29oc32kh1sh{stride}")
        case = Case.of(workload, device_name, input_layout=layout)
        lanes = case.rates[0].lanes
        tile = {"oc_vectors": 2, "ow_tile": 5, "ic_block": 16, "ic_unroll": 4, **knobs}
        return Tiling(case, Blocking(lanes, **tile)).pixel_loads(5)

    # Into all lanes, or by the instruction itself: a float each.
    assert loads("haswell", "NCHW8c") == loads("znver4", "NCHW16c", oc_vectors=1) == (0, 5)
    # From a lane: four channels of a pixel, or four pixels of a channel, are one load.
    assert loads("cortex-a72", "NCHW4c") == loads("cortex-a72", "NHWC") == (5 / 4, 0)
    assert loads("cortex-a72", "NCHW") == (1, 1)
    # Alone where they are apart, too few in straight-line code, or sums need the registers.
    assert loads("cortex-a72", "NCHW", stride=2) == (0, 5)
    assert loads("cortex-a72", "NCHW4c", ic_unroll=2) == (0, 5)
    assert loads("cortex-a72", "NCHW4c", ow_tile=10) == (0, 5)
    # As vectors where lanes belong to different groups.
    depthwise = Case.of("g32ic32ih15oc32oh15kh3ph1", "haswell")
    assert Tiling(depthwise, Blocking(8, 1, 5, 1, 1)).pixel_loads(5) == (5, 0)
