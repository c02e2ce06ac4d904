"""Instructions executed in the emulator: of known code, and of compiled layers."""

import platform
import subprocess
from collections.abc import Hashable
from dataclasses import asdict, replace
from math import gcd
from pathlib import Path

import pytest
from conftest import LAYERS, chosen, compiled, covering

from tvm_directconv import CompiledConv, ConvWorkload, build, device
from tvm_directconv.deploy import counter
from tvm_directconv.deploy.counter import Executed, count_instructions
from tvm_directconv.errors import LibraryError, ToolchainError
from tvm_directconv.toolchain import Toolchain, find_toolchain, run_cc

# Each with how it is counted: forms that kernels have, and others whose codes are close to these.
INSTRUCTIONS = {
    "fmla v0.4s, v1.4s, v2.4s": "fma",
    "fmla v0.2s, v1.2s, v2.s[3]": "fma",
    "fmla v16.4s, v31.4s, v17.s[1]": "fma",
    "fmls v0.4s, v1.4s, v2.4s": "fma",
    "fmls v0.4s, v1.4s, v2.s[2]": "fma",
    "fmla v0.2d, v1.2d, v2.d[1]": "fma",
    "fmla v0.8h, v1.8h, v2.8h": "fma",
    "fmla v16.8h, v31.8h, v15.h[7]": "fma",
    "fmla v0.4h, v1.4h, v2.h[1]": "fma",
    "fmls v0.8h, v1.8h, v2.8h": "fma",
    "fmls v0.8h, v1.8h, v2.h[3]": "fma",
    "sdot v0.4s, v1.16b, v2.16b": "dot",
    "sdot v0.4s, v1.16b, v2.4b[3]": "dot",
    "udot v0.2s, v1.8b, v2.8b": "dot",
    "udot v16.4s, v31.16b, v15.4b[1]": "dot",
    "mla v0.8h, v1.8h, v2.8h": "multiply",
    "mla v0.8h, v1.8h, v2.h[1]": "multiply",
    "mls v0.4s, v1.4s, v2.s[3]": "multiply",
    "mul v0.16b, v1.16b, v2.16b": "multiply",
    "mul v0.4h, v1.4h, v2.h[7]": "multiply",
    "smlal v0.4s, v1.4h, v2.h[1]": "multiply",
    "smlal2 v0.8h, v1.16b, v2.16b": "multiply",
    "smull v0.8h, v1.8b, v2.8b": "multiply",
    "umull2 v0.4s, v1.8h, v2.h[2]": "multiply",
    "umlal v0.2d, v1.2s, v2.2s": "multiply",
    "sqdmulh v0.4s, v1.4s, v2.4s": "multiply",
    "sqrdmulh v0.8h, v1.8h, v2.h[1]": "multiply",
    "sqrdmlah v0.4s, v1.4s, v2.4s": "multiply",
    "mla v0.4s, v1.4s, v2.4s": "multiply",
    "mla v0.4s, v1.4s, v2.s[1]": "multiply",
    "fmul v0.8h, v1.8h, v2.8h": "floating",
    "fmul v0.8h, v1.8h, v2.h[3]": "floating",
    "fadd v0.8h, v1.8h, v2.8h": "floating",
    "fsqrt v0.8h, v1.8h": "floating",
    "fcvtl v0.4s, v1.4h": "floating",
    "fcvtn v0.4h, v1.4s": "floating",
    "fcvtns v0.4s, v1.4s": "floating",
    "scvtf v0.4s, v1.4s": "floating",
    "frintn v0.4s, v1.4s": "floating",
    "fabs v0.4s, v1.4s": "floating",
    "fcmlt v0.4s, v1.4s, #0.0": "floating",
    "fcmgt v0.4s, v1.4s, v2.4s": "floating",
    "fmul v0.4s, v1.4s, v2.4s": "floating",
    "fmul v0.4s, v1.4s, v2.s[1]": "floating",
    "fmulx v0.4s, v1.4s, v2.s[1]": "floating",
    "fadd v0.4s, v1.4s, v2.4s": "floating",
    "faddp v0.4s, v1.4s, v2.4s": "floating",
    "fmax v0.4s, v1.4s, v2.4s": "floating",
    "fmla h0, h1, v2.h[1]": "vector",
    "fmla s0, s1, v2.s[1]": "vector",
    "fmadd s0, s1, s2, s3": "vector",
    "fcvtzs w9, s0": "vector",
    "add v0.4s, v1.4s, v2.4s": "vector",
    "smax v0.16b, v1.16b, v2.16b": "vector",
    "sadalp v0.4s, v1.8h": "vector",
    "saddl v0.4s, v1.4h, v2.4h": "vector",
    "saddw2 v0.8h, v1.8h, v2.16b": "vector",
    "sqxtn v0.8b, v1.8h": "vector",
    "xtn2 v0.16b, v1.8h": "vector",
    "sshll v0.8h, v1.8b, #0": "vector",
    "srshl v0.4s, v1.4s, v2.4s": "vector",
    "addv s0, v1.4s": "vector",
    "eor v0.16b, v1.16b, v2.16b": "vector",
    "zip1 v0.4s, v1.4s, v2.4s": "vector",
    "ext v0.16b, v1.16b, v2.16b, #4": "vector",
    "tbl v0.16b, { v1.16b }, v2.16b": "vector",
    "movi v0.2d, #0": "vector",
    "dup v0.4s, v1.s[2]": "vector",
    "dup v0.4s, w9": "vector",
    "mov v0.16b, v1.16b": "vector",
    "fmov s0, w9": "vector",
    "ldr q0, [sp]": "load",
    "ldr s0, [sp, #16]": "load",
    "ldur q0, [sp, #1]": "load",
    "ldr s0, [sp, x12, lsl #2]": "load",
    "ldr q0, [x10], #0": "load",
    "ldp q0, q1, [sp, #32]": "load",
    "ldp x9, x11, [sp]": "load",
    "ldr w9, [sp, #4]": "load",
    "ldrsw x9, [sp, #4]": "load",
    "ldrsh w9, [sp, #4]": "load",
    "ldrb w9, [sp, #4]": "load",
    "ldr s0, kernel": "load",
    "ldrsw x9, kernel": "load",
    "ld1 { v0.4s, v1.4s }, [x10]": "load",
    "ld1 { v0.s }[2], [x10]": "load",
    "ld1r { v0.4s }, [x10]": "load",
    "ld1 { v0.16b - v3.16b }, [x10]": "load",
    "ld1 { v0.8b - v2.8b }, [x10]": "load",
    "ld4 { v0.4s - v3.4s }, [x10]": "load",
    "ld2 { v0.8b, v1.8b }, [x10], #16": "load",
    "ldp s0, s1, [sp, #32]": "load",
    "ldp d0, d1, [sp, #32]": "load",
    "ldnp q0, q1, [sp, #32]": "load",
    "str q0, [sp]": "store",
    "stur s0, [sp, #1]": "store",
    "str q0, [sp, x12]": "store",
    "stp q0, q1, [sp, #32]": "store",
    "stp x9, xzr, [sp]": "store",
    "str w9, [sp, #4]": "store",
    "st1 { v0.4s }, [x10]": "store",
    "prfm pldl2keep, [sp, #64]": "prefetch",
    "prfm pldl2keep, [sp, x12]": "prefetch",
    "prfum pldl2keep, [sp, #1]": "prefetch",
    "prfm pldl1keep, kernel": "prefetch",
    "add x9, x9, #64": "integer",
    "add x9, x9, x12, lsl #2": "integer",
    "madd x9, x12, x12, x9": "integer",
    "mov w9, #3": "integer",
    "lsl x9, x9, #2": "integer",
    "csel x9, x9, x12, eq": "integer",
    "adrp x9, kernel": "integer",
    "cbnz xzr, kernel": "branch",
    "nop": "branch",
}
MOVED = {"load": "loaded", "store": "stored"}
# How many times up to 16 bytes are moved, by those that do it not just once.
TRANSFERS = {
    "ldp q0, q1, [sp, #32]": 2,
    "ldnp q0, q1, [sp, #32]": 2,
    "stp q0, q1, [sp, #32]": 2,
    "ld1 { v0.4s, v1.4s }, [x10]": 2,
    "ld1 { v0.16b - v3.16b }, [x10]": 4,
    "ld1 { v0.8b - v2.8b }, [x10]": 2,
    "ld4 { v0.4s - v3.4s }, [x10]": 4,
}
ROUNDS = 5
# A library with one function, which does them so many times.
CODE = """
    .arch armv8.2-a+fp16+dotprod
    .globl __tvm_ffi_kernel
    .type __tvm_ffi_kernel, %function
__tvm_ffi_kernel:
kernel:
    sub sp, sp, #128
    mov x10, sp
    mov x12, #0
    mov x13, #{rounds}
again:
    {instructions}
    subs x13, x13, #1
    b.ne again
    add sp, sp, #128
    mov w0, #0
    ret
"""


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    return find_toolchain("aarch64", "cortex-a76")


@pytest.mark.parametrize("kind", list(dict.fromkeys(INSTRUCTIONS.values())))
def test_each_kind_is_counted(kind: str, toolchain: Toolchain, tmp_path: Path) -> None:
    def counts(name: str, instructions: list[str], rounds: int) -> dict[str, int]:
        source, library = tmp_path / f"{name}.s", tmp_path / f"{name}.so"
        source.write_text(CODE.format(rounds=rounds, instructions="\n".join(instructions)))
        run_cc(["-shared", str(source)], library, toolchain)
        executed = asdict(count_instructions(library, "kernel", [], toolchain))
        assert executed.pop("caches") == ()
        return executed

    # What runs before and after the function, when libraries are loaded and left, counts as well.
    empty = counts("empty", [], ROUNDS)
    few = [text for text, found in INSTRUCTIONS.items() if found == kind]
    found = counts("few", few, ROUNDS)
    expected = {**empty, kind: empty[kind] + len(few) * ROUNDS}
    if kind in MOVED:
        transfers = sum(TRANSFERS.get(text, 1) for text in few)
        expected[MOVED[kind]] += transfers * ROUNDS
    assert found == expected
    assert Executed(**{**empty, "caches": ()}).total < 200
    more = counts("more", few, ROUNDS + 1)
    once = {"integer": 1, "branch": 1}
    once[kind] = once.get(kind, 0) + len(few)
    if kind in MOVED:
        once[MOVED[kind]] = transfers
    assert {name: more[name] - found[name] for name in more} == {n: once.get(n, 0) for n in more}


def test_parts() -> None:
    counts = Executed(60, 4, 5, 6, 5, 10, 5, 1, 2, 1, 1, 20, 5)
    assert (counts.total, counts.of_arithmetic, counts.of_all) == (100, 0.75, 0.6)


# --- A program between its marks, and caches


PROGRAM = """
    .globl _start
_start:
    adrp x10, memory
    add x10, x10, :lo12:memory
    ldr x9, [x10]
    hint #100
    b begin
begin:
    {instructions}
    hint #101
    b end
end:
    str x9, [x10]
    mov x0, #0
    mov x8, #93
    svc #0
    .bss
    .balign 4096
memory:
    .skip 65536
"""
LINE = 64


def load(address: int) -> list[str]:
    return [f"mov x9, #{address}", "ldr x9, [x10, x9]"]


def store(address: int) -> list[str]:
    return [f"mov x9, #{address}", "str x9, [x10, x9]"]


def lines(first: int, count: int) -> list[int]:
    return [LINE * (first + i) for i in range(count)]


def run_marked(
    instructions: list[str], toolchain: Toolchain, folder: Path, **options: str
) -> Executed:
    source, program, counts = (folder / name for name in ("program.s", "program", "counts"))
    source.write_text(PROGRAM.format(instructions="\n".join(instructions)))
    run_cc(["-nostdlib", "-static", str(source)], program, toolchain)
    counted = counter.counting(toolchain, counts, **options)
    done = subprocess.run(counted.command(str(program)), capture_output=True, text=True)
    return counter.read_counts(counts, counted, done.returncode, done.stderr)


# 16 lines in 8 sets, and 64 lines in 16 sets.
CACHES = "1024/2:4096/4"


@pytest.mark.parametrize(
    ("accesses", "missed", "written"),
    [
        ([load(a) for a in lines(0, 16) * 3], (16, 16), (0, 0)),
        # One after the other, each has gone when it is needed again.
        ([load(a) for a in lines(0, 32) * 2], (64, 32), (0, 0)),
        ([load(a) for a in lines(0, 80) * 2], (160, 160), (0, 0)),
        # Three lines that are in one set of the first level, where there is place for two.
        ([load(a) for a in [0, 8 * LINE, 16 * LINE] * 4], (12, 3), (0, 0)),
        # The line that was used longest ago goes, not the one that came first.
        ([load(a) for a in [0, 8 * LINE, 0, 16 * LINE, 0]], (3, 3), (0, 0)),
        ([store(a) for a in lines(0, 16) * 2], (16, 16), (0, 0)),
        ([store(a) for a in lines(0, 32)], (32, 32), (16, 0)),
        # What is written goes back through both levels, once.
        ([*map(store, lines(0, 32)), *map(load, lines(32, 128))], (160, 160), (32, 32)),
        # Only what was written does, and is read again after that.
        ([*map(store, lines(0, 1)), *map(load, lines(1, 128)), load(0)], (130, 130), (1, 1)),
        ([["ldur q0, [x10, #56]"]], (2, 2), (0, 0)),
        ([["prfm pldl1keep, [x10]"]], (0, 0), (0, 0)),
    ],
)
def test_caches(
    accesses: list[list[str]],
    missed: tuple[int, ...],
    written: tuple[int, ...],
    toolchain: Toolchain,
    tmp_path: Path,
) -> None:
    instructions = [each for access in accesses for each in access]
    executed = run_marked(instructions, toolchain, tmp_path, caches=CACHES)
    assert tuple(level.missed for level in executed.caches) == missed
    assert tuple(level.written for level in executed.caches) == written
    # Nothing before and after the marks counts, but for the last one itself and perhaps its branch.
    assert executed.total - len(instructions) in (1, 2)


def test_without_caches(toolchain: Toolchain, tmp_path: Path) -> None:
    executed = run_marked([*load(0), *store(64), "nop"], toolchain, tmp_path)
    assert executed.caches == ()
    assert (executed.integer, executed.load, executed.store, executed.branch) == (2, 1, 1, 3)


@pytest.mark.parametrize("caches", ["32768", "32768/0", "100/2", "32768/2;1/1", "64/1:" * 5, "x/2"])
def test_caches_that_cannot_be(caches: str, toolchain: Toolchain, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="expected up to four times BYTES/WAYS"):
        run_marked(["nop"], toolchain, tmp_path, caches=caches)


# --- Compiled layers


def counted(conv: CompiledConv, folder: Path) -> Executed:
    m = conv.manifest
    target = device(m.device)
    return count_instructions(
        conv.export(folder / "conv.so"),
        m.symbol,
        [m.input_shape, m.weight_shape, m.output_shape],
        find_toolchain(target.triple, target.qemu_cpu),
    )


@pytest.mark.parametrize("layer", ["ic8ih9oc8oh9kh3ph1", "ic8ih9oc8oh4kh3sh2"])
def test_every_product_but_those_with_padding_is_one_multiply_add(
    layer: str, tmp_path: Path
) -> None:
    workload = ConvWorkload.parse(layer)
    conv = compiled(workload, "cortex-a72")
    counts = counted(conv, tmp_path)
    lanes = device("cortex-a72").lanes
    # The first product of a sum may be a multiplication, as nothing is there to add it to.
    first = workload.out_channels * workload.out_height * workload.out_width // lanes
    products = workload.useful_flops // 2 // lanes
    assert products - first <= counts.fma <= products
    assert counts.fma + counts.vector >= products
    # The same ones each time.
    assert counted(conv, tmp_path) == counts


# Of all instructions, without and with blocks of channels, of which four are one load.
LEAST = (0.6, 0.65)
# One at each border, and others between them: more would run the same loops.
ROWS = 8


def few_rows(layer: ConvWorkload, name: str) -> CompiledConv:
    """Build a layer in fewer rows and one tile of output channels: its loops stay."""
    b = chosen(layer, name)
    if layer.out_height > 14:  # Smaller ones are done at once, all rows of the kernel included.
        outside = layer.padding[0] + layer.padding[2]
        height = (ROWS - 1) * layer.stride[0] + layer.dilated_kernel[0] - outside
        layer = replace(layer, in_height=height)
    layer = replace(layer, out_channels=b.oc_vectors * b.lanes)
    return build(layer, name, blocking=replace(b, oh_block=gcd(b.oh_block, layer.out_height)))


def features(name: str, layer: ConvWorkload) -> set[Hashable]:
    b = chosen(layer, name)
    return {("tile", b.brief, b.kw_unroll), ("image", layer.out_width, layer.stride)}


@pytest.mark.parametrize("name", ["cortex-a72", "neoverse-n1"])
def test_most_of_3x3_layers_is_multiply_adds(name: str, tmp_path: Path) -> None:
    layers = [layer for layer in LAYERS if layer.kernel == (3, 3) and layer.groups == 1]
    little = {}
    for layer in covering(layers, lambda layer: features(name, layer)):
        counts = counted(few_rows(layer, name), tmp_path)
        if counts.of_arithmetic < 0.95 or counts.of_all < LEAST[layer.in_channels > 4]:
            little[layer.name] = f"{counts.of_arithmetic:.3f}, {counts.of_all:.3f}: {counts}"
    assert not little


# --- What cannot be counted


def test_a_kernel_that_refuses_its_arguments(tmp_path: Path) -> None:
    conv = compiled(ConvWorkload.parse("ic8ih9oc8oh9kh3ph1"), "cortex-a72")
    library = conv.export(tmp_path / "conv.so")
    toolchain = find_toolchain("aarch64", "cortex-a72")
    with pytest.raises(LibraryError, match=r"shapes \[\(1, 2\)\], failed: .*Expected 3 arguments"):
        count_instructions(library, conv.manifest.symbol, [(1, 2)], toolchain)


@pytest.mark.parametrize("triple", ["arm-linux-gnueabihf", "x86_64-linux-gnu"])
def test_other_machines(triple: str) -> None:
    with pytest.raises(ToolchainError, match="expected a toolchain for aarch64"):
        count_instructions("conv.so", "conv", [], find_toolchain(triple))


def test_an_emulator_without_plugins(toolchain: Toolchain, tmp_path: Path) -> None:
    emulator = tmp_path / "qemu-aarch64"
    emulator.write_text("#!/bin/sh\necho \"qemu: unknown option 'plugin'\" >&2\nexit 1\n")
    emulator.chmod(0o755)
    old = replace(toolchain, emulator=(str(emulator),))
    with pytest.raises(ToolchainError, match="unknown option 'plugin'"):
        count_instructions("conv.so", "conv", [], old)


def test_a_library_that_is_not_seen(toolchain: Toolchain, tmp_path: Path) -> None:
    (tmp_path / "a\nb").mkdir()
    source, library = tmp_path / "kernel.s", tmp_path / "a\nb" / "kernel.so"
    source.write_text(CODE.format(rounds=1, instructions="nop"))
    run_cc(["-shared", str(source)], library, toolchain)
    with pytest.raises(ToolchainError, match=r"no instruction of (.|\n)* was seen"):
        count_instructions(library, "kernel", [], toolchain)


@pytest.mark.parametrize("standard", ["c99", "c11"])
def test_the_plugin_compiles_without_warnings(standard: str, tmp_path: Path) -> None:
    source = Path(counter.__file__).with_name("counter.c")
    flags = [f"-std={standard}", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    run_cc([str(source), *flags], tmp_path / "counter.so", find_toolchain(platform.machine()))
