"""Block sizes: what can be used, where borders are, and what the model chooses."""

from dataclasses import replace
from functools import partial
from math import ceil

import pytest
from conftest import DEVICES, LAYERS
from hypothesis import example, given
from hypothesis import strategies as st

from tvm_directconv import Blocking, ConvWorkload, device
from tvm_directconv import blocking as model
from tvm_directconv.errors import BlockingError
from tvm_directconv.layout import ActivationLayout

sizes = st.integers(1, 40)


@given(
    width=sizes,
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

    columns = model.tile_columns(workload, ow_tile)
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
        patch.setattr(model, "_MOST_BORDER_TILES", tiles)
        at_left, at_right = model.border_tiles.__wrapped__(workload, ow_tile)
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
    found = Blocking(8, oc_vectors, ow_tile=1, ic_block=8, ic_unroll=8).oc_tiles(workload)
    assert found[: len(tiles)] == tiles
    count, narrow, vectors = found
    assert (count - narrow) * oc_vectors + narrow * vectors == ceil(channels / 8)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("name", DEVICES)
def test_the_model_chooses_what_can_be_used(name: str, threads: int) -> None:
    target = device(name)
    for layer in LAYERS[threads - 1 :: 3 * threads]:
        layout = model.default_input_layout(layer, target)
        chosen = model.choose(layer, target, threads)
        assert model.reasons_against(chosen, layer, target, layout) == []
        cost = model.estimate(chosen, layer, target, threads)
        assert 0 < cost.of_peak < layer.flops / layer.useful_flops
        assert 0.5 < cost.balance <= 1


@pytest.mark.parametrize("layer", LAYERS[::7], ids=str)
def test_all_candidates_can_be_used(layer: ConvWorkload) -> None:
    target = device("cortex-a72")
    layout = model.default_input_layout(layer, target)
    for candidate in model.candidates(layer, target, layout, threads=3):
        assert model.reasons_against(candidate, layer, target, layout) == []


@pytest.mark.parametrize("name", ["haswell", "znver4", "cortex-a72"])
def test_any_number_of_channels_can_be_built_for(name: str) -> None:
    target = device(name)
    # 36 = 4 x 9 channels lie in blocks of 8, of which neither 12 nor 36 is a multiple.
    for channels in (1, 5, 17, 36, 42, 66, 100, 127, 150, 286):
        layer = ConvWorkload(
            in_channels=channels,
            in_height=9,
            in_width=9,
            out_channels=channels,
            kernel=(3, 3),
            padding=(1, 1, 1, 1),
        )
        layout = model.default_input_layout(layer, target)
        for candidate in model.candidates(layer, target, layout):
            assert model.reasons_against(candidate, layer, target, layout) == []
        assert model.reasons_against(model.choose(layer, target), layer, target, layout) == []


def test_paper_inequalities_decide_between_tiles() -> None:
    target, layer = device("znver4"), ConvWorkload.parse("ic256ih56oc256oh56kh3ph1")
    chosen = model.choose(layer, target)
    # 4 cycles of latency at one FMA per cycle: a tile of one sum keeps the unit idle for most.
    slow = replace(chosen, oc_vectors=1, ow_tile=1)
    assert (
        model.estimate(slow, layer, target).cycles
        > 3 * model.estimate(chosen, layer, target).cycles
    )
    # One column more than the registers hold.
    wide = replace(chosen, ow_tile=chosen.ow_tile + 1)
    layout = model.default_input_layout(layer, target)
    assert any("registers" in r for r in model.reasons_against(wide, layer, target, layout))


@pytest.mark.parametrize(
    ("channels", "name", "block"),
    [
        (64, "znver4", 16),
        # Two vectors of 16 lanes take two cycles there, three of 8 one and a half ...
        (24, "znver4", 8),
        # ... but one and one and a half here.
        (24, "skylake-avx512", 16),
        (208, "znver4", 16),
        (24, "haswell", 8),
        (20, "haswell", 8),
        (24, "cortex-a72", 4),
        (17, "armv7", 4),
    ],
)
def test_channel_blocks(channels: int, name: str, block: int) -> None:
    assert model.channel_block(channels, device(name)) == block


def test_images_are_read_plain_and_activations_blocked() -> None:
    first, second = ConvWorkload.parse("ic3ih8oc8kh3"), ConvWorkload.parse("ic8ih8oc8kh3")
    assert str(model.default_input_layout(first, device("znver4"))) == "NCHW"
    assert str(model.default_input_layout(second, device("znver4"))) == "NCHW8c"
    assert str(model.default_input_layout(second, device("cortex-a53"))) == "NCHW4c"


def test_knobs_by_name() -> None:
    blocking = model.choose(ConvWorkload.parse("ic8ih8oc8kh3"), device("armv7"))
    assert Blocking.from_dict(blocking.to_dict()) == blocking
    with pytest.raises(BlockingError, match="lacks lanes"):
        Blocking.from_dict({})


def test_pixels_of_1x1_kernels_are_counted_in_other_rows() -> None:
    workload = ConvWorkload.parse("ic8ih6iw10oc8kh1")
    blocking = Blocking(4, 1, 5, 4, 4, flat_rows=3)
    view = blocking.view(workload)
    assert (view.in_height, view.in_width) == (3, 20)
    strided = ConvWorkload.parse("ic8ih11iw19oc8kh1sh2sw2")
    assert blocking.view(strided) == view
    layout = ActivationLayout("NCHW4c")
    assert model.reasons_against(blocking, workload, device("cortex-a72"), layout) == []
    padded = ConvWorkload.parse("ic8ih6oc8kh3ph1")
    assert model.reasons_against(blocking, padded, device("cortex-a72"), layout)


def test_tiles_have_few_streams_of_weights() -> None:
    # 13 vectors of 16 lanes, 2, and twice 9 in groups, which leave none over.
    for channels, groups, most in ((208, 1, 4), (32, 1, 2), (288, 2, 3)):
        workload = ConvWorkload.parse(f"g{groups}ic96ih14oc{channels}oh14kh3ph1")
        spec = device("skylake-avx512")
        layout = model.default_input_layout(workload, spec)
        found = {b.oc_vectors for b in model.candidates(workload, spec, layout)}
        assert max(found) == most


@pytest.mark.parametrize("rows_outside", [False, True])
def test_the_last_tile_of_channels_takes_what_its_vectors_take(rows_outside: bool) -> None:
    def of(vectors: int, tile: int, threads: int = 1) -> model.Estimate:
        workload = ConvWorkload.parse(f"ic16ih14oc{16 * vectors}oh14kh3ph1")
        blocking = Blocking(16, tile, 14, 16, 8, oh_block=7, rows_outside=rows_outside)
        return model.estimate(blocking, workload, device("sapphirerapids"), threads)

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


def cycles(workload: ConvWorkload, blocking: Blocking, **figures: float) -> float:
    return model.estimate(blocking, workload, replace(device("sapphirerapids"), **figures)).cycles


def test_far_weights_cost_more_where_tiles_read_near_ones_again() -> None:
    # 9 MB of weights for each row. With all input channels in a tile, it reads 590 KB of them.
    workload = ConvWorkload.parse("ic512ih7oc512oh7kh3ph1")
    inside = Blocking(16, 2, 7, 16, 16, rows_outside=True)
    outside = replace(inside, loop_order=model.IC_OUTSIDE)
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
    assert blocking.view(small) == blocking.view(large)
    near = {"l1d_bytes": 1 << 30}
    assert cycles(small, blocking, **near) == cycles(large, blocking, **near)
    assert cycles(small, blocking) < cycles(large, blocking)


def test_what_tasks_read_first_comes_from_afar() -> None:
    # 9 MB of weights, of which each task reads its own 590 KB: all of them, once.
    workload = ConvWorkload.parse("ic512ih14oc512oh14kh3ph1")
    whole = Blocking(16, 2, 14, 16, 8, oh_block=14)
    far = {"l3_bytes": 1 << 28, "l3_bytes_per_cycle": 0.1}
    near = {"l3_bytes": 1 << 28, "l3_bytes_per_cycle": 48}
    weights = workload.weight_bytes + workload.input_bytes
    slower = cycles(workload, whole, **far) - cycles(workload, whole, **near)
    assert slower > 8 * weights  # of 10 cycles a byte; some are hidden
    # Several tasks that share them read them from afar but once.
    parts = replace(whole, oh_block=2)
    again = cycles(workload, parts, **far) - cycles(workload, parts, **near)
    assert again < 1.1 * slower


def slower_from_afar(workload: ConvWorkload, blocking: Blocking) -> float:
    """Return how many cycles it takes if each byte of the third level takes a tenth of one more."""
    slow, fast = (
        cycles(workload, blocking, l3_bytes=1 << 28, l3_bytes_per_cycle=rate) for rate in (8, 40)
    )
    return slow - fast


def test_sums_stored_between_blocks_wait_for_their_lines() -> None:
    workload = ConvWorkload.parse("ic128ih28oc512oh28kh1")
    inside = Blocking(16, 2, 14, 16, 4, rows_outside=True)
    outside = replace(inside, ic_block=32, loop_order=model.IC_OUTSIDE)
    waited = slower_from_afar(workload, outside) - slower_from_afar(workload, inside)
    assert waited == pytest.approx(0.7 * 0.1 * workload.output_bytes, rel=0.1)


def test_strided_pixels_counted_in_other_rows_wait() -> None:
    workload = ConvWorkload.parse("ic256ih56oc512oh28kh1sh2")
    rows = Blocking(16, 2, 14, 16, 4, oh_block=7, rows_outside=True)
    flat = replace(rows, oh_block=2, flat_rows=8)
    waited = slower_from_afar(workload, flat) - slower_from_afar(workload, rows)
    # Half the rows of the image are read, with all their pixels.
    assert waited == pytest.approx(0.1 * workload.input_bytes / 2, rel=0.1)


def test_weights_wait_for_each_other_only_if_some_come_from_afar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All is in the second-level cache, and twice as much as that is.
    near, far = (ConvWorkload.parse(f"ic512ih14oc{n}oh14kh1") for n in (64, 1024))
    blocking = Blocking(16, 2, 14, 16, 8, flat_rows=1)
    before = [cycles(workload, blocking) for workload in (near, far)]
    monkeypatch.setattr(model, "_CONTENTION", 100.0)
    after = [cycles(workload, blocking) for workload in (near, far)]
    assert after[0] == before[0]
    assert after[1] > 2 * before[1]
