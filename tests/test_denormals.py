"""Denormals count as zeros while code runs, on all its threads, and for nobody else."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import Command
from onnx_models import Graph, compiled, saved

from tvm_directconv import (
    CompiledConv,
    ConvWorkload,
    DirectConvError,
    Epilogue,
    build,
    compile_network,
    device,
    load,
    load_network,
)
from tvm_directconv.denormals import FLUSH, KEEP, flushed
from tvm_directconv.deploy import runner
from tvm_directconv.deploy.runner import run_library
from tvm_directconv.errors import ArgumentError, LibraryError
from tvm_directconv.manifest import manifest_path
from tvm_directconv.toolchain import find_toolchain, run_cc

DEPLOY = Path(runner.__file__).parent
TARGETS = [
    name
    for name in ("x86-64-v2", "x86-64-v3", "x86-64-v4", "cortex-a72", "armv7")
    if device(name).is_host_runnable or find_toolchain(device(name).triple).emulator
]
SMALL = np.float32(1e-40)
LARGE = np.float32(2.0**60)  # Their product is an ordinary number.
# Two output channels to each thread at least; the last tile is narrower than the others.
LAYER = ConvWorkload.parse("ic20ih9oc64oh9kh3ph1")


def computed(conv: CompiledConv, folder: Path, threads: int = 1) -> np.ndarray:
    """Return the outputs where all inputs are denormals and all weights are large."""
    x = np.full(LAYER.input_shape, SMALL, np.float32)
    weight = np.full(LAYER.weight_shape, LARGE, np.float32)
    spec = device(conv.manifest.device)
    report = run_library(
        conv.export(folder / "conv.so"),
        conv.manifest.symbol,
        [conv.pack_input(x), conv.pack_weight(weight)],
        [conv.manifest.output_shape],
        find_toolchain(spec.triple, spec.qemu_cpu),
        threads=threads,
    )
    return conv.unpack_output(report.outputs[0])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", TARGETS)
def test_they_count_as_zeros(name: str, threads: int, tmp_path: Path) -> None:
    assert (computed(build(LAYER, name, threads), tmp_path, threads) == 0).all()


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "armv7"])
def test_they_can_be_kept(name: str, tmp_path: Path) -> None:
    """Not by the vectors of ARMv7, which know nothing else."""
    assert (computed(build(LAYER, name, denormals=KEEP), tmp_path) > 0).all()


def test_riscv_always_keeps_them(tmp_path: Path) -> None:
    """It has no state that decides, so what would be expected to flush them is refused."""
    conv = build(LAYER, "rv64gcv")
    assert conv.manifest.denormals == KEEP
    assert conv.pack_weight(np.full(LAYER.weight_shape, SMALL, np.float32)).all()
    assert (computed(conv, tmp_path) > 0).all()
    g = Graph(x=(1, 3, 5, 5))
    model = saved(g.model(g.node("Relu", "x")), tmp_path)
    found = compile_network(model, tmp_path / "a.so", "rv64gcv", check=False)
    assert found.denormals == KEEP
    calls = (
        lambda: build(LAYER, "rv64gcv", denormals=FLUSH),
        lambda: compile_network(model, tmp_path / "a.so", "rv64gcv", denormals=FLUSH),
    )
    for call in calls:
        with pytest.raises(ArgumentError, match=r"is 'flush', but .* like rv64gcv .*'keep'"):
            call()


def test_the_state_of_threads_is_restored(tmp_path: Path) -> None:
    """The same threads compute with and without denormals by turns, and so does the caller."""
    x = np.full(LAYER.input_shape, SMALL, np.float32)
    weight = np.full(LAYER.weight_shape, LARGE, np.float32)
    for _ in range(3):
        for mode in (FLUSH, KEEP):
            found = build(LAYER, threads=2, denormals=mode)(x, weight)
            assert ((found > 0) == (mode == KEEP)).all()
            assert SMALL * np.float32(1) == SMALL


# The state is seen in what a product is: with the compiler's own, 1e-40, or zero.
CALLER = r"""
#include <fenv.h>
#include <stdio.h>

#include "packed.h"

extern Kernel __tvm_ffi_@SYMBOL@;

static float x[@X@] __attribute__((aligned(64))), weight[@WEIGHT@] __attribute__((aligned(64))),
    y[@Y@] __attribute__((aligned(64)));
static int64_t shape_x[] = {@SHAPE_X@}, shape_weight[] = {@SHAPE_WEIGHT@}, shape_y[] = {@SHAPE_Y@};

static int is_kept(void) {
    volatile float small = 1e-40f, one = 1;
    volatile float product = small * one;
    return product != 0;
}

int main(void) {
    DLTensor tensors[] = {
        {x, DEVICE_CPU, 0, sizeof shape_x / 8, TYPE_FLOAT, 32, 1, shape_x, 0, 0},
        {weight, DEVICE_CPU, 0, sizeof shape_weight / 8, TYPE_FLOAT, 32, 1, shape_weight, 0, 0},
        {y, DEVICE_CPU, 0, sizeof shape_y / 8, TYPE_FLOAT, 32, 1, shape_y, 0, 0},
    };
    Any args[3], result = {0, 0, {0}};
    int kept = 0, zeros = 1, failed = 0;
    for (int i = 0; i < 3; i++) args[i] = (Any){INDEX_DLTENSOR, 0, {.pointer = &tensors[i]}};
    for (int i = 0; i < @X@; i++) x[i] = 1e-40f;
    for (int i = 0; i < @WEIGHT@; i++) weight[i] = 1e18f;
    fesetround(FE_UPWARD);
    kept += is_kept();
    failed += __tvm_ffi_@SYMBOL@(0, args, 3, &result) != 0;
    kept += is_kept();
    for (int i = 0; i < @Y@; i++) zeros = zeros && y[i] == 0;
    failed += __tvm_ffi_@SYMBOL@(0, args, 2, &result) != 0;
    kept += is_kept();
    tensors[0].shape = shape_y;
    failed += __tvm_ffi_@SYMBOL@(0, args, 3, &result) != 0;
    kept += is_kept();
    printf("%d %d %d %d\n", kept, zeros, failed, fegetround() == FE_UPWARD);
    return 0;
}
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["native", "cortex-a72", "armv7"])
def test_a_c_program_finds_its_state_again(name: str, threads: int, tmp_path: Path) -> None:
    """After errors, too. It is not Python that changes the state, but the code itself."""
    conv = build(LAYER, name, threads)
    m = conv.manifest
    code = CALLER.replace("@SYMBOL@", m.symbol)
    for word, shape in (("X", m.input_shape), ("WEIGHT", m.weight_shape), ("Y", m.output_shape)):
        code = code.replace(f"@{word}@", str(int(np.prod(shape))))
        code = code.replace(f"@SHAPE_{word}@", ", ".join(map(str, shape)))
    (tmp_path / "main.c").write_text(code)
    toolchain = find_toolchain(device(name).triple, device(name).qemu_cpu)
    sources = [tmp_path / "main.c", conv.export(tmp_path / "conv.o"), DEPLOY / "directconv.c"]
    flags = [f"-I{DEPLOY}", "-std=gnu99", "-O1", "-pthread", "-lm"]
    run_cc([*map(str, sources), *flags], tmp_path / "main", toolchain)
    command = [*toolchain.emulator, str(tmp_path / "main")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["4", "1", "2", "1"]


def test_constants_have_none() -> None:
    tiny = np.finfo(np.float32).tiny
    given = np.array([SMALL, -SMALL, tiny, -tiny, 0, -0.0, np.nan, np.inf, 1], np.float32)
    found = flushed(given)
    np.testing.assert_array_equal(found, [0, 0, tiny, -tiny, 0, 0, np.nan, np.inf, 1])
    np.testing.assert_array_equal(np.signbit(found[:6]), [False, True] * 3)
    assert flushed(given, KEEP) is given
    ordinary = given[2:]
    assert flushed(ordinary) is ordinary
    half = np.array([6e-8], np.float16)  # Half of the smallest ordinary one.
    assert flushed(half) is half
    assert flushed(np.array([1e-310, 1e-300])).tolist() == [0, 1e-300]
    assert flushed(np.arange(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("mode", [FLUSH, KEEP])
def test_packing_flushes_weights_and_bias(mode: str) -> None:
    conv = build(LAYER, epilogue=Epilogue(bias=True), denormals=mode)
    weight = np.full(LAYER.weight_shape, SMALL, np.float32)
    given = weight.copy()
    assert conv.pack_weight(weight).any() == (mode == KEEP)
    assert conv.pack_operand("bias", np.full(64, SMALL, np.float32)).any() == (mode == KEEP)
    np.testing.assert_array_equal(weight, given)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", [FLUSH, KEEP])
def test_networks(mode: str, threads: int, tmp_path: Path) -> None:
    """Constants, inputs, and what one kernel passes on to the next."""
    shape = (1, 20, 40, 41)
    g = Graph(x=shape)
    large = g.constant(LARGE)
    constants = g.node("Mul", g.node("Abs", "x"), g.constant(np.full(shape[1:], SMALL * 2)))
    weight = g.constant(np.full((24, 20, 1, 1), SMALL))
    convolved = g.node("Conv", "x", weight)
    passed_on = g.node(
        "Mul",
        g.node(
            "MaxPool",
            g.node("Conv", "x", g.constant(np.full((24, 20, 1, 1), 2.0**-70))),
            kernel_shape=[2, 2],
        ),
        g.constant(2.0**-70),
    )
    pooled = g.node("Mul", g.node("MaxPool", passed_on, kernel_shape=[3, 3]), large)
    inputs = g.node("Mul", g.node("Mul", "x", g.constant(2.0**-140)), large)
    network = compiled(
        g.model(constants, convolved, pooled, inputs), tmp_path, threads=threads, denormals=mode
    )
    x = np.full(shape, LARGE, np.float32)
    x_small = np.full(shape, 1, np.float32)
    for found in network.run(x)[:2]:
        assert ((found > 0) == (mode == KEEP)).all()
    for found in network.run(x_small)[2:]:
        assert ((found > 0) == (mode == KEEP)).all()
    assert SMALL * np.float32(1) == SMALL


def test_the_manifest_says_it(run: Command, tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 5, 5))
    model = saved(g.model(g.node("Relu", "x")), tmp_path)
    for mode, options in ((FLUSH, ()), (KEEP, ("--denormals", "keep"))):
        for spec, reader in ((str(model), load_network), (str(LAYER), load)):
            library = tmp_path / "a.so"
            status, _, err = run("compile", spec, "-o", str(library), *options)
            assert status == 0, err
            assert reader(library).manifest.denormals == mode
            path = manifest_path(library)
            found = json.loads(path.read_text())
            path.write_text(json.dumps({**found, "denormals": "sometimes"}))
            with pytest.raises(LibraryError, match="denormals is 'sometimes': expected 'flush' or"):
                reader(library)


def test_other_modes_are_refused(tmp_path: Path) -> None:
    calls = (
        lambda: build(LAYER, denormals="zero"),
        lambda: compile_network("model.onnx", tmp_path / "a.so", denormals="zero"),
    )
    for call in calls:
        with pytest.raises(ArgumentError, match="denormals is 'zero': expected 'flush' or 'keep'"):
            call()
    assert issubclass(ArgumentError, DirectConvError)
