"""Instructions executed in the emulator: of known code, and of compiled layers."""

import itertools
from dataclasses import replace
from math import gcd
from pathlib import Path

import pytest
from conftest import LAYERS, chosen, compiled

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
    "fmul v0.4s, v1.4s, v2.4s": "vector",
    "fmul v0.4s, v1.4s, v2.s[1]": "vector",
    "fadd v0.4s, v1.4s, v2.4s": "vector",
    "fmax v0.4s, v1.4s, v2.4s": "vector",
    "fmla s0, s1, v2.s[1]": "vector",
    "fmadd s0, s1, s2, s3": "vector",
    "mla v0.4s, v1.4s, v2.4s": "vector",
    "mla v0.4s, v1.4s, v2.s[1]": "vector",
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
ROUNDS = 5
# A library with one function that does each of them as often.
CODE = """
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
OTHERS = {"integer": 6 + ROUNDS, "branch": 1 + ROUNDS}


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    return find_toolchain("aarch64", "cortex-a72")


def test_each_kind_is_counted(toolchain: Toolchain, tmp_path: Path) -> None:
    source = tmp_path / "kernel.s"
    for kind, group in itertools.groupby(INSTRUCTIONS, INSTRUCTIONS.__getitem__):
        few = [*group]
        source.write_text(CODE.format(rounds=ROUNDS, instructions="\n".join(few)))
        run_cc(["-shared", str(source)], tmp_path / "kernel.so", toolchain)
        expected = dict.fromkeys(Executed.__dataclass_fields__, 0) | OTHERS
        expected[kind] += len(few) * ROUNDS
        found = count_instructions(tmp_path / "kernel.so", "kernel", [], toolchain)
        assert found == Executed(**expected), few


def test_parts() -> None:
    counts = Executed(60, 20, 10, 5, 1, 2, 1, 1)
    assert (counts.of_arithmetic, counts.of_all) == (0.75, 0.6)


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
