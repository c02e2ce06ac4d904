"""What `explain` says agrees with the model it explains."""

import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tvm_directconv as dc
from tvm_directconv.assembly import innermost_loops
from tvm_directconv.candidates import choose
from tvm_directconv.case import Case
from tvm_directconv.errors import BlockingError, DeviceError, DirectConvError, WorkloadError
from tvm_directconv.model import estimate
from tvm_directconv.tiling import Tiling, _row, registers, usable_registers

LAYERS = ["alexnet:conv1", "vgg16:conv3_2", "googlenet:3a_5x5", "resnet50:conv1"]
DEVICES = ["haswell", "znver4", "cortex-a72", "armv7", "x86-64-v2"]
BEGINNINGS = [
    "Register tile: ",
    "Row of ",
    "Loop order: ",
    "Caches of one core",
    "Tasks: ",
    "Predicted: ",
    "Next best register tiles",
    "Memory",
]


def workload_of(spec: str) -> dc.ConvWorkload:
    (workload,) = dc.workloads(spec)
    return workload


def numbers(pattern: str, text: str) -> tuple[float, ...]:
    """Return the numbers that the groups of a pattern match, which must occur once."""
    (found,) = re.findall(pattern, text)
    return tuple(float(n.replace(",", "")) for n in ((found,) if isinstance(found, str) else found))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_numbers_are_the_models(layer: str, device: str, threads: int) -> None:
    workload, target = workload_of(layer), dc.device(device)
    text = dc.explain(workload, target, threads)
    paragraphs = text.split("\n\n")
    assert paragraphs[0].startswith(f"{layer}: {workload} on {device}, {threads} thread")
    for paragraph, beginning in zip(paragraphs[1:], BEGINNINGS, strict=True):
        assert paragraph.startswith(beginning)

    chosen = choose(Case.of(workload, target, threads))
    cost = estimate(Tiling(Case.of(workload, target, threads), chosen))
    assert f"blocking: {chosen}\n" in text
    channels = chosen.oc_vectors * chosen.lanes
    in_flight = channels * chosen.ow_tile
    assert numbers(r"C_ob x W_ob = (\d+) x (\d+) outputs, E = (\d+)", text) == (
        channels,
        chosen.ow_tile,
        in_flight,
    )
    rate = next(rate for rate in target.rates() if rate.lanes == chosen.lanes)
    needed = rate.lanes * rate.per_cycle * rate.latency
    left, n_vec, n_fma, l_fma, right = numbers(
        r"N_vec N_fma L_fma: (\d+) >= (\d+) x ([\d.]+) x (\d+) = ([\d.]+)", text
    )
    assert (left, right) == (in_flight, needed) and n_vec * n_fma * l_fma == needed
    assert ("DOES NOT HOLD" in paragraphs[1]) == (in_flight < needed)
    assert numbers(r"registers: (\d+) needed .* (\d+) of (\d+) for tiles", text) == (
        registers(chosen.oc_vectors, chosen.ow_tile, workload, rate.instruction),
        usable_registers(Case.of(workload, target)),
        target.vector_registers,
    )
    assert numbers(r"Predicted: ([\d.]+)% of the peak", text) == (
        pytest.approx(100 * cost.of_peak, abs=0.06),
    )
    assert f"Loop order: {chosen.loop_order}\n" in text
    if threads > 1:
        assert numbers(r"([\d.]+)% balanced", text) == (
            pytest.approx(100 * cost.balance, abs=0.06),
        )
    assert numbers(r"im2col would take another ([\d,]+) bytes", text) == (workload.im2col_bytes,)


def test_the_tiles_of_a_row_add_up() -> None:
    workload = dc.ConvWorkload.parse("ic16ih25oc32oh25kh5ph2")  # 25: no tile divides it.
    text = dc.explain(workload, "haswell")
    columns, tiles, width, *narrow = numbers(
        r"Row of (\d+) columns: (\d+) tiles? of (\d+) and one of (\d+) and one of (\d+)", text
    )
    assert tiles * width + sum(narrow) == columns == workload.out_width
    assert (
        numbers(r"of their own: (\d) at the left, (\d) at the right", text)
        == (_row(workload, int(width))[2:])
    )
    assert "padding of 2 and 2, the narrower tiles" in text


def test_alternatives_are_other_tiles_and_no_better() -> None:
    text = dc.explain("ic256ih56oc256oh56kh3ph1", "cortex-a72")
    chosen = numbers(r"C_ob x W_ob = (\d+) x (\d+)", text)
    lines = text.split("Next best register tiles")[1].split("\n\n")[0].splitlines()[1:]
    tiles = [numbers(r"^  (\d+) x (\d+), ic_\w+: ", line) for line in lines]
    assert len(tiles) == len(set(tiles)) == 3 and chosen not in tiles
    for line in lines:
        assert "is as fast in the model" in line or re.search(
            r"takes [\d.]+% more cycles, mostly for \w+", line
        )


def test_a_tile_too_small_for_the_pipelines_is_called_so() -> None:
    text = dc.explain("ic16ih1oc8kh1", "haswell")
    assert "1. E >= N_vec N_fma L_fma: 8 >= 8 x 2 x 5 = 80 DOES NOT HOLD" in text
    assert "filled to 10% only" in text
    assert "of the cycles go to waiting for earlier multiply-adds" in text


def test_idle_lanes_and_filled_blocks_are_named() -> None:
    text = dc.explain("ic6ih8oc3oh8kh3ph1", "cortex-a72")
    assert "of 4 lanes 1 compute zeros: there are only 3 output channels" in text
    assert "of the cycles go to lanes without an output channel" in text
    assert "bytes more than the plain layouts: channels that fill blocks" in text


def test_two_rounds_count_as_straight_line_code() -> None:
    layer, target = workload_of("googlenet:5a_5x5r"), dc.device("sapphirerapids")
    chosen = choose(Case.of(layer, target))
    assert chosen.ic_block == 2 * chosen.ic_unroll
    text = dc.explain(layer, target)
    told = numbers(r"straight-line code: (\d+) input channels, (\d+) FMAs", text)
    assert told == (16, 16 * chosen.oc_vectors * chosen.ow_tile)
    # That is what the loop of the compiled code has.
    code = dc.build(layer, target, blocking="model").assembly()
    assert told[1] in {loop.fmas for loop in innermost_loops(code, target.triple)}


def test_flattened_pixels_are_told() -> None:
    text = dc.explain("ic64ih7oc64oh7kh1", "znver4")
    chosen = choose(Case.of(dc.ConvWorkload.parse("ic64ih7oc64oh7kh1"), dc.device("znver4")))
    assert ("pixels stand for 7 of 7" in text) == (chosen.flat_rows not in (0, 7))
    assert "another 0 bytes" in text and "1x1 kernel the input is the matrix" in text


def test_the_layout_of_the_input_is_the_one_asked_for() -> None:
    workload = dc.ConvWorkload.parse("ic64ih14oc64oh14kh3ph1")
    assert "input: NCHW8c, 1 x 8 x 14 x 14 x 8," in dc.explain(workload, "haswell")
    assert "input: NHWC, 1 x 14 x 14 x 64," in dc.explain(workload, "haswell", input_layout="NHWC")


def test_more_threads_than_cores_are_remarked_on() -> None:
    assert "haswell has 4 cores: more threads share them" in dc.explain(
        "ic64ih14oc64oh14kh3ph1", "haswell", 6
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("ic8ih8", "haswell"), WorkloadError, "missing 'oc'"),
        (("ic8ih8oc8kh3", "hasswell"), DeviceError, "did you mean 'haswell'"),
        (("ic8ih8oc8kh3", "haswell", 0), BlockingError, "threads is 0: expected a whole number"),
        (("ic8ih8oc8kh3", "haswell", True), BlockingError, "threads is True"),
        (("ic8ih8oc8kh3", "haswell", 1, "CHWN"), BlockingError, "layout is 'CHWN'"),
    ],
)
def test_mistakes_are_explained(
    arguments: tuple, error: type[DirectConvError], message: str
) -> None:
    with pytest.raises(error, match=message):
        dc.explain(*arguments)


def test_tvm_is_not_imported() -> None:
    program = (
        "import sys, tvm_directconv as dc; dc.explain('ic8ih8oc8kh3', 'haswell'); "
        "sys.exit('tvm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@settings(max_examples=60, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    batch=st.integers(1, 3),
    device=st.sampled_from([d.name for d in dc.devices()]),
    threads=st.integers(1, 9),
    layout=st.sampled_from([None, "NCHW", "NHWC", "NCHW4c", "NCHW48c"]),
)
def test_anything_possible_is_explained(
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: int,
    stride: int,
    dilation: int,
    batch: int,
    device: str,
    threads: int,
    layout: str | None,
) -> None:
    workload = dc.ConvWorkload(
        batch=batch,
        in_channels=channels[0],
        in_height=size[0],
        in_width=size[1],
        out_channels=channels[1],
        kernel=kernel,
        stride=stride,
        padding=(kernel - 1) * dilation,
        dilation=dilation,
    )
    text = dc.explain(workload, device, threads, layout)
    assert [p for p in BEGINNINGS if f"\n\n{p}" in text] == BEGINNINGS
    assert text == "\n".join(line.rstrip() for line in text.splitlines())
