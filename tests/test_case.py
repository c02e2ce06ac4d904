"""Cases: their parts checked, and their defaults."""

from typing import Any

import pytest

from tvm_directconv import ConvWorkload, device
from tvm_directconv.case import Case, channel_block, default_input_layout
from tvm_directconv.epilogue import Epilogue
from tvm_directconv.errors import ArgumentError, BlockingError, DeviceError, WorkloadError
from tvm_directconv.precision import FLOAT32


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
    assert channel_block(channels, device(name)) == block


def test_images_are_read_plain_and_activations_blocked() -> None:
    first, second = ConvWorkload.parse("ic3ih8oc8kh3"), ConvWorkload.parse("ic8ih8oc8kh3")
    assert str(default_input_layout(first, device("znver4"))) == "NCHW"
    assert str(default_input_layout(second, device("znver4"))) == "NCHW8c"
    assert str(default_input_layout(second, device("cortex-a53"))) == "NCHW4c"


def test_a_case_is_checked_and_has_defaults() -> None:
    case = Case.of("ic16ih8oc8kh3", "cortex-a72")
    assert case == Case.of(ConvWorkload.parse("ic16ih8oc8kh3"), device("cortex-a72"), 1, "NCHW4c")
    assert case.threads == 1 and not case.epilogue and case.precision is FLOAT32
    assert [rate.lanes for rate in case.rates] == [4] and case.peak in case.rates
    named = Case.of("ic16ih8oc8kh3", "haswell", epilogue=Epilogue.parse("bias,relu"))
    assert named.symbol == "directconv_ic16ih8oc8oh6kh3_bias_relu"


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"workload": 3}, WorkloadError, "workload is 3: expected a ConvWorkload"),
        ({"workload": "ic16"}, WorkloadError, "missing 'ih', 'kh'|missing 'oc'"),
        ({"device": "haswel"}, DeviceError, "did you mean 'haswell'"),
        ({"threads": 0}, BlockingError, "threads is 0"),
        ({"input_layout": "NHCW"}, BlockingError, "layout is 'NHCW'"),
        ({"epilogue": "bias"}, ArgumentError, "epilogue is 'bias': expected an Epilogue"),
    ],
)
def test_what_is_no_case(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    parts = {"workload": "ic16ih8oc8kh3", "device": "haswell"}
    with pytest.raises(error, match=message):
        Case.of(**{**parts, **wrong})
