"""No kernel touches a byte beside its arrays: they lie between pages that cannot be touched.

By default some layers and some random convolutions; all layers of the five networks and 300 random
ones with ``scripts/test tests/test_bounds.py --thorough``, which takes a quarter of an hour.
"""

from collections.abc import Hashable
from pathlib import Path

import numpy as np
import pytest
from conftest import LAYERS, covering, run_exact

import tvm_directconv as dc
from tvm_directconv import ConvWorkload, Epilogue
from tvm_directconv.deploy.runner import run_library
from tvm_directconv.errors import LibraryError, WorkloadError
from tvm_directconv.toolchain import find_toolchain, run_cc

RUN = ("native", "cortex-a72", "armv7")
RANDOM, RANDOM_THOROUGH = 16, 300
MOST_FLOPS = 20e6


def features(workload: ConvWorkload) -> set[Hashable]:
    """Return what makes a layer different where bytes are touched."""
    if workload.flops > 60e6:
        return set()
    return {
        ("kernel", workload.kernel, workload.stride, workload.padding != (0, 0, 0, 0)),
        ("channels", workload.in_channels % 8, workload.out_channels % 16),
        ("groups", workload.groups > 1),
        ("width", workload.out_width),
    }


def random_case(number: int) -> tuple[ConvWorkload, Epilogue, int]:
    """Make any convolution that is small enough to be emulated in a moment."""
    rng = np.random.default_rng(number)

    def any_of(*values: int) -> int:
        return int(rng.choice(values))

    while True:
        kernel = any_of(1, 1, 2, 3, 3, 4, 5, 7), any_of(1, 1, 2, 3, 3, 4, 5, 7)
        groups = any_of(1, 1, 1, 2, 3, 8)
        in_channels, out_channels = any_of(1, 3, 4, 7, 8, 13, 24, 32, 48), any_of(1, 5, 8, 13, 40)
        if rng.random() < 0.25:  # depthwise
            groups, out_channels = in_channels, in_channels
        elif groups > 1:
            in_channels, out_channels = in_channels * groups, out_channels * groups
        try:
            workload = ConvWorkload(
                batch=any_of(1, 1, 1, 2),
                in_channels=in_channels,
                in_height=int(rng.integers(1, 31)),
                in_width=int(rng.integers(1, 31)),
                out_channels=out_channels,
                kernel=kernel,
                stride=(any_of(1, 1, 2, 3), any_of(1, 1, 2, 3)),
                padding=tuple(int(rng.integers(0, kernel[side % 2])) for side in range(4)),
                dilation=(any_of(1, 1, 2), any_of(1, 1, 2)),
                groups=groups,
            )
        except WorkloadError:
            continue
        if workload.flops <= MOST_FLOPS:
            epilogue = Epilogue(
                bias=bool(rng.random() < 0.3),
                residual=bool(rng.random() < 0.3),
                activation="relu" if rng.random() < 0.3 else "none",
            )
            return workload, epilogue, any_of(1, 1, 3)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    thorough = metafunc.config.getoption("--thorough")
    if "layer" in metafunc.fixturenames:
        layers = LAYERS if thorough else covering(LAYERS, features)
        metafunc.parametrize("layer", layers, ids=lambda layer: layer.name)
    if "number" in metafunc.fixturenames:
        metafunc.parametrize("number", range(RANDOM_THOROUGH if thorough else RANDOM))


def assert_inside(
    workload: ConvWorkload, device: str, folder: Path, epilogue: Epilogue, threads: int
) -> None:
    """Run in both places, and compare every bit of the output."""
    conv = dc.build(workload, device, threads, epilogue=epilogue)
    for place in ("begin", "end"):
        # No load needs more alignment, and the closer to the end the better.
        align = 4 * conv.blocking.lanes
        report = run_exact(conv, dc.device(device), folder, threads, guard=place, align=align)
        assert report.allocations == 0


@pytest.mark.parametrize("device", RUN)
def test_layers(layer: ConvWorkload, device: str, tmp_path: Path) -> None:
    assert_inside(layer, device, tmp_path, Epilogue(), 1)


@pytest.mark.parametrize("device", RUN)
def test_random_convolutions(number: int, device: str, tmp_path: Path) -> None:
    workload, epilogue, threads = random_case(number)
    assert_inside(workload, device, tmp_path, epilogue, threads)


@pytest.mark.parametrize("place", ["begin", "end"])
@pytest.mark.parametrize("access", ["read", "write"])
@pytest.mark.parametrize("device", RUN)
def test_a_byte_beside_an_array_is_noticed(
    device: str, access: str, place: str, tmp_path: Path
) -> None:
    """The first byte before it, or behind it."""
    code = f"""
        #include "packed.h"
        int __tvm_ffi_kernel(void *self, const Any *args, int32_t count, Any *result) {{
            volatile char *data = ((DLTensor *)args[0].value.pointer)->data;
            long at = {-1 if place == "begin" else 4 * 64};
            {"(void)data[at]" if access == "read" else "data[at] = 1"};
            return 0;
        }}"""
    (tmp_path / "kernel.c").write_text(code)
    target = dc.device(device)
    toolchain = find_toolchain(target.triple, target.qemu_cpu)
    flags = ["-shared", "-fPIC", "-I", str(Path(dc.__file__).parent / "deploy")]
    run_cc([*flags, str(tmp_path / "kernel.c")], tmp_path / "kernel.so", toolchain)
    array = np.zeros(64, np.float32)
    run_library(tmp_path / "kernel.so", "kernel", [array], [], toolchain)
    with pytest.raises(LibraryError, match="killed by SIGSEGV"):
        run_library(tmp_path / "kernel.so", "kernel", [array], [], toolchain, guard=place)
    if access == "write" and place == "end":  # Where alignment keeps an array from the last byte.
        array = np.zeros(63, np.float32)
        code = code.replace(str(4 * 64), str(4 * 63))
        (tmp_path / "kernel.c").write_text(code)
        run_cc([*flags, str(tmp_path / "kernel.c")], tmp_path / "kernel.so", toolchain)
        with pytest.raises(LibraryError, match="wrote 1 bytes beside its arrays"):
            run_library(tmp_path / "kernel.so", "kernel", [array], [], toolchain, guard=place)


def test_random_convolutions_are_of_every_kind() -> None:
    cases = [random_case(number) for number in range(RANDOM_THOROUGH)]
    kinds = {str(workload) + str(epilogue) for workload, epilogue, _ in cases}
    assert len(kinds) == RANDOM_THOROUGH
    for few in (RANDOM, RANDOM_THOROUGH):
        some = [workload for workload, _, _ in cases[:few]]
        assert any(w.groups > 1 for w in some) and any(max(w.stride) > 1 for w in some)
        assert any(max(w.dilation) > 1 for w in some) and any(max(w.padding) for w in some)
