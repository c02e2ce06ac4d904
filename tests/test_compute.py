"""The algorithm on random workloads in random blockings: every result equals the reference."""

from dataclasses import fields, replace
from math import ceil

import numpy as np
import pytest
from conftest import assert_exact
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st

from tvm_directconv import (
    Blocking,
    ConvWorkload,
    Device,
    build,
    conv2d_reference,
    device,
    epilogue_reference,
    max_error,
    random_tensors,
)
from tvm_directconv.blocking import IC_INSIDE, IC_OUTSIDE
from tvm_directconv.case import Case
from tvm_directconv.epilogue import ACTIVATIONS, Epilogue
from tvm_directconv.errors import ArgumentError, WorkloadError
from tvm_directconv.hardware.device import Rate
from tvm_directconv.layout import ActivationLayout
from tvm_directconv.lowering.statements import architecture_of
from tvm_directconv.tiling import can_flatten, contiguous_channels, reasons_against, registers

SIZES = [1, 2, 3, 5, 7, 8, 9, 13, 14, 17, 19, 27]
# Some channel counts are typical, others are divided by nothing.
CHANNELS = st.one_of(st.sampled_from([3, 8, 16, 24, 32, 48, 64, 112, 208]), st.integers(1, 70))
LAYOUTS = ["NCHW", "NHWC", "NCHW3c", "NCHW4c", "NCHW8c", "NCHW16c"]
MOST_FLOPS = 30e6
MOST_STRAIGHT = 400  # multiply-adds: LLVM takes long over more


def divisors(number: int, most: int | None = None) -> list[int]:
    return [d for d in range(1, min(number, most or number) + 1) if number % d == 0]


@st.composite
def random_workload(draw: st.DrawFn) -> ConvWorkload:
    """Draw any workload that is small enough to be compiled and checked in a moment."""
    axes = []
    pixelwise = draw(st.sampled_from([False, False, False, True]))
    for _ in "hw":
        kernel = 1 if pixelwise else draw(st.sampled_from([1, 2, 3, 3, 4, 5, 6, 7]))
        dilation = draw(st.sampled_from([1, 1, 2, 3]))
        stride = draw(st.sampled_from([1, 1, 2, 3]))
        extent = (kernel - 1) * dilation + 1
        before, after = draw(
            st.one_of(
                st.just((0, 0)),
                st.just((extent // 2, extent // 2)),
                st.tuples(st.integers(0, extent - 1), st.integers(0, extent - 1)),
            )
        )
        size = draw(st.sampled_from([s for s in [*SIZES, 28] if s + before + after >= extent]))
        axes.append((size, kernel, stride, dilation, before, after))
    (ih, kh, sh, dh, top, bottom), (iw, kw, sw, dw, left, right) = axes
    in_channels, out_channels, groups = draw(
        st.one_of(
            st.tuples(CHANNELS, CHANNELS, st.just(1)),
            CHANNELS.map(lambda n: (n, n, n)),  # depthwise
            st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(2, 5)).map(
                lambda sizes: (sizes[0] * sizes[2], sizes[1] * sizes[2], sizes[2])
            ),
            # Groups that vectors do not fit.
            st.tuples(st.integers(1, 9), st.integers(1, 25), st.integers(2, 12)).map(
                lambda sizes: (sizes[0] * sizes[2], sizes[1] * sizes[2], sizes[2])
            ),
        )
    )
    workload = ConvWorkload(
        batch=draw(st.sampled_from([1, 1, 2, 3])),
        in_channels=in_channels,
        in_height=ih,
        in_width=iw,
        out_channels=out_channels,
        groups=groups,
        kernel=(kh, kw),
        stride=(sh, sw),
        padding=(top, left, bottom, right),
        dilation=(dh, dw),
    )
    assume(workload.flops <= MOST_FLOPS)
    return workload


@st.composite
def random_blocking(
    draw: st.DrawFn, workload: ConvWorkload, target: Device, layout: ActivationLayout
) -> Blocking:
    """Draw any blocking that can be used, knobs that are yes or no included."""

    def chosen(values: list[int]) -> int:
        # Large ones first: what is drawn without a preference is mostly small.
        return draw(st.sampled_from(values[::-1]))

    rate = draw(st.sampled_from(target.rates()))
    lanes = rate.lanes
    flat_rows = 0
    if can_flatten(workload) and draw(st.booleans()):
        flat_rows = chosen(divisors(workload.out_height * workload.out_width))
    pixels = workload.out_height * workload.out_width
    tiles = range(1, (pixels // flat_rows if flat_rows else workload.out_width) + 1)
    vectors = ceil(workload.out_channels / lanes)
    oc_vectors = chosen([*range(1, min(vectors, 8) + 1)])
    # Vectors may be narrower than blocks that they fill.
    block = chosen([n * lanes for n in (1, 2, 4) if vectors % n == 0][::-1])
    room, row = target.vector_registers, rate.instruction
    ow_tile = chosen([n for n in tiles if registers(oc_vectors, n, workload, row) <= room])
    ic_block = chosen(divisors(workload.group_in))
    most = max(1, MOST_STRAIGHT // (oc_vectors * ow_tile * workload.kernel[1]))
    knobs = {
        "lanes": lanes,
        "oc_vectors": oc_vectors,
        "ow_tile": ow_tile,
        "ic_block": ic_block,
        "ic_unroll": chosen(divisors(contiguous_channels(ic_block, layout.block), most)),
        "loop_order": draw(st.sampled_from([IC_INSIDE, IC_OUTSIDE])),
        "oh_block": chosen(divisors(flat_rows or workload.out_height)),
        "flat_rows": flat_rows,
        "oc_block": 0 if block == lanes else block,
    }
    yes_or_no = [field.name for field in fields(Blocking) if field.type is bool]
    blocking = Blocking(**knobs, **{name: draw(st.booleans()) for name in yes_or_no})
    assume(not reasons_against(blocking, Case.of(workload, target, input_layout=layout)))
    return blocking


@st.composite
def random_epilogue(draw: st.DrawFn) -> Epilogue:
    """Draw any epilogue that computes whole numbers of whole numbers."""
    activation = draw(st.sampled_from(["none", "relu", "relu6", "leaky_relu"]))
    slope = 2.0 if activation == "leaky_relu" else 0.0
    return Epilogue(draw(st.booleans()), draw(st.booleans()), activation, slope)


def check_random(target: Device, chunk: int, count: int) -> None:
    done = set()

    @seed(chunk)
    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        workload = data.draw(random_workload(), "workload")
        layout = data.draw(st.sampled_from(LAYOUTS), "layout")
        blocking = data.draw(random_blocking(workload, target, ActivationLayout(layout)))
        threads = data.draw(st.sampled_from([1, 2]), "threads")
        epilogue = data.draw(st.one_of(st.none(), random_epilogue()), "epilogue")
        case = workload, threads, blocking, layout, None, epilogue
        assume(case not in done)  # Some are drawn twice.
        assert_exact(build(workload, target, *case[1:]))
        done.add(case)

    check()
    # What does not fit, or was drawn before, is not counted: others are drawn in its place.
    assert len(done) == count


# In chunks, so that several processes can share the work.
@pytest.mark.parametrize("chunk", range(6))
def test_random_blockings(chunk: int) -> None:
    check_random(device("native"), chunk, 45)


@pytest.mark.parametrize("chunk", range(6, 8))
def test_random_blockings_for_many_registers(chunk: int, wide: Device) -> None:
    check_random(wide, chunk, 30)


@pytest.mark.parametrize("chunk", range(8, 10))
def test_random_blockings_for_wide_vectors(
    chunk: int, wide: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a vector wider than its registers LLVM makes two, but not where a pin names the register.
    # That is too slow to be of use, so devices are checked; here it shows that AVX-512's blocks
    # of channels are computed correctly, wherever the tests run.
    monkeypatch.setattr("tvm_directconv.schedules.common.STEP", "not.pinned")
    monkeypatch.setattr(
        "tvm_directconv.lowering.groups.architecture_of",
        lambda func: replace(architecture_of(func), splat=""),
    )
    twice = tuple(
        Rate(replace(rate.instruction, lanes=2 * rate.lanes), rate.per_cycle / 2, rate.latency)
        for rate in wide.rates()
    )
    check_random(replace(wide, instructions=twice), chunk, 30)


SMALL = {"in_channels": 3, "out_channels": 5}


@pytest.mark.parametrize("order", [IC_INSIDE, IC_OUTSIDE])
@pytest.mark.parametrize(
    ("workload", "ow_tile"),
    [
        pytest.param(
            ConvWorkload(in_height=1, in_width=1, kernel=2, dilation=2, padding=1, **SMALL),
            1,
            id="every product is with padding",
        ),
        pytest.param(
            ConvWorkload(
                in_height=5, in_width=40, kernel=(3, 7), dilation=3, padding=(3, 18), **SMALL
            ),
            1,
            id="more border tiles than get code of their own",
        ),
        pytest.param(
            ConvWorkload(in_height=3, in_width=2, kernel=7, padding=6, **SMALL),
            3,
            id="padding wider than the input",
        ),
        pytest.param(
            ConvWorkload(in_height=9, in_width=9, kernel=1, stride=3, **SMALL),
            2,
            id="input that no output reads",
        ),
        pytest.param(
            ConvWorkload(
                in_height=3, in_width=7, kernel=3, dilation=(1, 3), padding=(0, 5, 0, 4), **SMALL
            ),
            3,
            id="taps as far apart as a tile is wide, whose last one takes over columns",
        ),
        pytest.param(
            ConvWorkload(
                in_height=3,
                in_width=16,
                kernel=3,
                stride=2,
                dilation=8,
                padding=(8, 8, 8, 10),
                **SMALL,
            ),
            4,
            id="taps as far apart as what a tile reads, whose last one takes over columns",
        ),
    ],
)
def test_corner_cases(workload: ConvWorkload, ow_tile: int, order: str) -> None:
    target = device("native")
    for ic_block, kw_unroll in [(1, False), (3, True)]:
        blocking = Blocking(
            lanes=target.rates()[-1].lanes,
            oc_vectors=1,
            ow_tile=ow_tile,
            ic_block=ic_block,
            ic_unroll=ic_block,
            loop_order=order,
            kw_unroll=kw_unroll,
        )
        assert_exact(build(workload, target, 1, blocking, "NCHW"))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("order", [IC_INSIDE, IC_OUTSIDE])
def test_activations(name: str, order: str) -> None:
    workload = ConvWorkload.parse("ic16ih7oc24oh7kh3ph1")
    lanes = device("native").rates()[-1].lanes
    blocking = Blocking(lanes, 1, 4, 8, 4, loop_order=order)
    epilogue = Epilogue(bias=True, activation=name, slope=0.1 if name == "leaky_relu" else 0.0)
    conv = build(workload, blocking=blocking, epilogue=epilogue)
    x, weight = random_tensors(workload, seed=0)
    bias = np.linspace(-5, 5, 24, dtype=np.float32)
    sums = conv2d_reference(x, weight, workload)
    shifted = sums + bias[:, np.newaxis, np.newaxis]
    assert shifted.min() < -3 and shifted.max() > 6  # Every branch is taken.
    assert (
        max_error(conv(x, weight, bias=bias), epilogue_reference(sums, epilogue, bias=bias)) < 1e-6
    )


def test_epilogues_are_parsed() -> None:
    assert Epilogue.parse("bias") == Epilogue(bias=True)
    assert Epilogue.parse("bias, residual,silu") == Epilogue(True, True, "silu")
    assert Epilogue.parse("leaky_relu=0.25") == Epilogue(activation="leaky_relu", slope=0.25)


@pytest.mark.parametrize(
    "text",
    ["", "rleu", "bias,bias", "bias=1", "relu,relu6", "relu=1", "leaky_relu", "leaky_relu=inf"],
)
def test_wrong_descriptions_of_epilogues(text: str) -> None:
    with pytest.raises(WorkloadError, match=f"epilogue is '{text}', with '.*': expected bias, res"):
        Epilogue.parse(text)


def test_wrong_epilogues() -> None:
    with pytest.raises(WorkloadError, match="activation is 'rleu': expected one of none, relu, "):
        Epilogue(activation="rleu")
    for slope, activation in ((0.1, "relu"), (float("nan"), "leaky_relu")):
        with pytest.raises(WorkloadError, match=f"slope is {slope}, of {activation}: expected a n"):
            Epilogue(activation=activation, slope=slope)
    assert str(Epilogue(activation="leaky_relu", slope=-1e30)) == "leaky_relum1e30"
    workload = ConvWorkload.parse("ic16ih7oc24oh7kh3ph1")
    x, weight = random_tensors(workload, seed=0)
    bias, residual = np.zeros(24, np.float32), np.zeros(workload.output_shape, np.float32)
    plain = build(workload)
    with pytest.raises(ArgumentError, match="a bias is given: expected none, the convolution was"):
        plain(x, weight, bias=bias)
    both = build(workload, epilogue=Epilogue(bias=True, residual=True))
    with pytest.raises(ArgumentError, match="there is no residual: expected one, the convolution"):
        both(x, weight, bias=bias)
    with pytest.raises(ArgumentError, match=r"the bias has shape \(23,\): expected \(24,\)"):
        both(x, weight, bias=bias[1:], residual=residual)
    packed = both.pack_operand("residual", residual)
    operands = both.pack_input(x), both.pack_weight(weight)
    with pytest.raises(ArgumentError, match="the output overlaps an input array"):
        both.run(*operands, packed, bias=both.pack_operand("bias", bias), residual=packed)
