"""The assembly reader, and what it says about compiled layers: sums stay in registers."""

import functools
import re
import shutil
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import LAYERS, chosen
from tvm import tirx

from tvm_directconv import Blocking, ConvWorkload, build, device, workloads
from tvm_directconv.assembly import Loop, innermost_loops, mca_cycles, whole_function
from tvm_directconv.case import Case
from tvm_directconv.errors import ToolchainError
from tvm_directconv.lowering.pipeline import PIPELINE
from tvm_directconv.scheduling import scheduled
from tvm_directconv.tiling import Tiling, reasons_against
from tvm_directconv.tuning.runners.mca import loops_of_peak

X86_64, AARCH64, ARM = "x86_64-linux-gnu", "aarch64-linux-gnu", "armv7l-linux-gnueabihf"
RISCV64 = "riscv64-linux-gnu"

# --- The reader, on assembly whose numbers are known


def test_nested_loops() -> None:
    text = """
    conv:                           # @conv
        pushq %rbp
        vmovaps %ymm8, 64(%rsp)     # of the caller
    .LBB0_1:
        vmovaps %ymm0, 32(%rsp)
    .LBB0_2:
    .Ltmp3:
        #APP
        #NO_APP
        vbroadcastss (%rsi), %ymm1
        vfmadd231ps (%rdx), %ymm1, %ymm0
        vfmadd231ps 8(%rsp), %ymm1, %ymm2
        incq %rcx
        cmpq $64, %rcx
        jne .LBB0_2
        vmovaps 32(%rsp), %ymm0
        decq %rdi
        jne .LBB0_1
        vmovaps 64(%rsp), %ymm8
        retq
    """
    (loop,) = innermost_loops(text, X86_64)
    assert (loop.label, loop.fmas, loop.spills, loop.instructions) == (".LBB0_2", 2, 1, 6)
    assert loop.body[0] == "vbroadcastss (%rsi), %ymm1"
    whole = whole_function(text, X86_64)
    # The inner loop, and what is between two rounds of it; not what saves the caller's register.
    assert (whole.fmas, whole.spills, whole.instructions) == (2, 3, 10)


def test_loops_whose_parts_are_apart_in_the_text() -> None:
    text = """
    conv:
        jmp .LBB0_2
    .LBB0_4:
        fmla v0.4s, v1.4s, v2.s[0]
        b .LBB0_3
    .LBB0_2:
        tbz w8, #0, .LBB0_4
    .LBB0_3:
        subs x0, x0, #1
        b.ne .LBB0_2
        ret
    .LBB0_5:
        fmla v3.4s, v1.4s, v2.s[0]
        b .LBB0_6
    .LBB0_6:
        b .LBB0_7
    .LBB0_7:
        ret
    """
    (loop,) = innermost_loops(text.replace("jmp", "b"), AARCH64)
    assert loop.body == (
        "fmla v0.4s, v1.4s, v2.s[0]",
        "b .LBB0_3",
        "tbz w8, #0, .LBB0_4",
        "subs x0, x0, #1",
        "b.ne .LBB0_2",
    )


def test_loops_without_fmas_are_left_out() -> None:
    loop = "f:\n.LBB0_1:\n{}\n subs r0, r0, #1\n bne .LBB0_1\n bx lr\n"
    assert innermost_loops(loop.format("vadd.i32 q0, q1, q2"), ARM) == []
    assert innermost_loops(loop.format("vadd.f32 q0, q1, q2"), ARM) == []
    assert len(innermost_loops(loop.format("vfma.f32 q0, q1, q2"), ARM)) == 1
    assert whole_function("f:\n bx lr\n", ARM) == Loop("", (), 0, 0)


def test_without_fused_instructions_pairs_are_counted() -> None:
    text = "f:\n.LBB0_1:\n mulps %xmm1, %xmm2\n addps %xmm2, %xmm0\n mulps %xmm1, %xmm3\n"
    (loop,) = innermost_loops(text + "jne .LBB0_1\n retq\n", X86_64)
    assert loop.fmas == 1


def spills_of(triple: str, *body: str, before: tuple[str, ...] = ()) -> int:
    """Count the spills of a loop with some instructions more than an FMA."""
    fma, jump = {
        X86_64: ("vfmadd231ps %ymm0, %ymm1, %ymm2", "jne"),
        AARCH64: ("fmla v0.4s, v1.4s, v2.4s", "b.ne"),
        ARM: ("vfma.f32 q0, q1, q2", "bne"),
        RISCV64: ("vfmacc.vf v9, fa5, v3", "bne t1, t2,"),
    }[triple]
    lines = ["f:", *before, ".LBB0_1:", fma, *body]
    (loop,) = innermost_loops("\n".join([*lines, f"{jump} .LBB0_1"]), triple)
    return loop.spills


@pytest.mark.parametrize(
    ("triple", "instruction", "spills"),
    [
        (X86_64, "vmovaps %zmm1, 128(%rsp)", 1),
        (X86_64, "vmovups -32(%rsp), %ymm1", 1),
        (X86_64, "movaps (%rsp), %xmm1", 1),
        (X86_64, "vmovaps (%rsp,%rcx), %ymm1", 1),
        (X86_64, "vbroadcastss 12(%rsp), %ymm1", 1),
        (X86_64, "vfmadd231ps 64(%rsp){1to16}, %zmm1, %zmm2", 1),
        (X86_64, "vmovaps 128(%rsi), %ymm1", 0),
        (X86_64, "vmovaps .LCPI0_0(%rip), %ymm1", 0),
        (X86_64, "vmovaps -32(%rbp), %ymm1", 0),
        (X86_64, "movq 8(%rsp), %rax", 0),
        (X86_64, "vmovaps %ymm1, %ymm2", 0),
        (AARCH64, "str q3, [sp, #16]", 1),
        (AARCH64, "stp q3, q4, [sp, #32]", 1),
        (AARCH64, "ldp d9, d8, [sp, #32]", 1),
        (AARCH64, "ldur s14, [sp, #-4]", 1),
        (AARCH64, "ld1r { v15.4s }, [sp]", 1),
        (AARCH64, "ldr q3, [x5, #16]", 0),
        (AARCH64, "ld1r { v15.4s }, [x5], #4", 0),
        (AARCH64, "ldp x3, x4, [sp, #32]", 0),
        (AARCH64, "ldr w8, [sp]", 0),
        (ARM, "vstr d8, [sp, #8]", 1),
        (ARM, "vld1.64 {d0, d1}, [sp:128]", 1),
        (ARM, "vldmia sp, {d0, d1}", 1),
        (ARM, "vld1.64 {d0, d1}, [r4:128]!", 0),
        (ARM, "vld1.32 {d8[], d9[]}, [r5:32]!", 0),
        (ARM, "vldmia r3, {d14, d15}", 0),
        (ARM, "ldr r4, [sp, #8]", 0),
        (RISCV64, "vs1r.v v8, (sp)", 1),
        (RISCV64, "vl4re32.v v8, (sp)", 1),
        (RISCV64, "vse32.v v8, (sp)", 1),
        (RISCV64, "vle64.v v8, (sp), v0.t", 1),
        (RISCV64, "flw fa5, 12(sp)", 1),
        (RISCV64, "fsd fs0, 8(sp)", 1),
        (RISCV64, "vle32.v v8, (a0)", 0),
        (RISCV64, "vl1r.v v8, (a0)", 0),
        (RISCV64, "flw fa5, 12(a0)", 0),
        (RISCV64, "ld a0, 8(sp)", 0),
        (RISCV64, "vsetivli zero, 4, e32, m1, ta, ma", 0),
        (RISCV64, "vmv1r.v v8, v9", 0),
    ],
)
def test_what_is_a_spill(triple: str, instruction: str, spills: int) -> None:
    assert spills_of(triple, instruction) == spills


@pytest.mark.parametrize(
    ("triple", "lines", "spills"),
    [
        (ARM, ["add r4, sp, #1040", "vstmia r4, {d16, d17}"], 1),
        (ARM, ["add r4, sp, #16", "add r4, r4, #64", "vld1.64 {d0, d1}, [r4:128]"], 1),
        (ARM, ["add r4, sp, #16", "vst1.64 {d0, d1}, [r4:128]!", "vldmia r4, {d0, d1}"], 2),
        (ARM, ["mov r11, sp", "sub r5, r11, #64", "vldr s0, [r5]"], 1),
        (ARM, ["add r4, sp, #16", "ldr r4, [sp]", "vldmia r4, {d0, d1}"], 0),
        (ARM, ["add r4, sp, #16", "add r4, r0, r1", "vldmia r4, {d0, d1}"], 0),
        (ARM, ["add r4, sp, #16", "ldm r0, {r3, r4}", "vldmia r4, {d0, d1}"], 0),
        (ARM, ["add r0, sp, #16", "bl memset", "vldmia r0, {d0, d1}"], 0),
        (ARM, ["add r4, sp, #16", "bl memset", "vldmia r4, {d0, d1}"], 1),
        (AARCH64, ["add x8, sp, #4096", "str q0, [x8, #16]"], 1),
        (AARCH64, ["mov x29, sp", "ldur q0, [x29, #-16]"], 1),
        (AARCH64, ["add x8, sp, #16", "ldp x8, x9, [x0]", "str q0, [x8]"], 0),
        (AARCH64, ["add x8, sp, #16", "mov w8, #3", "str q0, [x8]"], 0),
        (AARCH64, ["add x8, x8, #16", "str q0, [x8]"], 0),
        (RISCV64, ["addi a0, sp, 16", "vs1r.v v8, (a0)"], 1),
        (RISCV64, ["csrr a1, vlenb", "add a1, sp, a1", "addi a1, a1, 32", "vl1r.v v8, (a1)"], 1),
        (RISCV64, ["sh2add a1, a2, sp", "flw fa5, 0(a1)"], 1),
        (RISCV64, ["addi a0, sp, 16", "ld a0, 0(sp)", "vl1r.v v8, (a0)"], 0),
        (RISCV64, ["addi a0, sp, 16", "li a0, 4", "vl1r.v v8, (a0)"], 0),
        (RISCV64, ["addi a0, sp, 16", "sd a0, 8(a1)", "vl1r.v v8, (a0)"], 1),
        (RISCV64, ["addi a0, sp, 16", "call memset", "vl1r.v v8, (a0)"], 0),
        (RISCV64, ["addi s1, sp, 16", "call memset", "vl1r.v v8, (s1)"], 1),
        (X86_64, ["movq %rsp, %rbp", "vmovaps %ymm0, -64(%rbp)"], 1),
        (X86_64, ["leaq 64(%rsp), %r9", "addq $32, %r9", "vmovaps (%r9), %ymm0"], 1),
        (X86_64, ["leaq 64(%rsp), %rax", "xorl %eax, %eax", "vmovaps (%rax), %ymm0"], 0),
        (X86_64, ["leaq 64(%rsp), %rax", "movq 8(%rsp), %rax", "vmovaps (%rax), %ymm0"], 0),
        (X86_64, ["leaq 64(%rsp), %rax", "callq f", "vmovaps (%rax), %ymm0"], 0),
    ],
)
def test_addresses_in_the_stack_are_followed(triple: str, lines: list[str], spills: int) -> None:
    assert spills_of(triple, *lines) == spills
    # The same where the address is computed before the loop.
    assert spills_of(triple, lines[-1], before=tuple(lines[:-1])) == min(spills, 1)


@pytest.mark.parametrize(
    ("lines", "spills"),
    [
        (["ldr d3, [sp, #8]", "add v4.2s, v5.2s, v3.2s"], 0),
        (["ldp d4, d3, [sp]", "add v6.2s, v5.2s, v3.2s", "mls v4.2s, v6.2s, v5.2s"], 0),
        (["ldr d3, [sp, #8]", "fadd v4.2s, v5.2s, v3.2s", "add v4.2s, v5.2s, v3.2s"], 1),
        (["ldr d3, [sp, #8]", "str d3, [x1]"], 1),
        (["ldp d4, d3, [sp]", "add v6.2s, v5.2s, v3.2s"], 1),
        (["ldp d4, d3, [sp]", "add v6.2s, v5.2s, v3.2s", "fmla v7.4s, v5.4s, v4.s[0]"], 1),
        (["ldr q3, [sp]", "add v4.4s, v5.4s, v3.4s"], 1),
        (["str d3, [sp, #8]", "add v4.2s, v5.2s, v3.2s"], 1),
    ],
)
def test_pairs_of_addresses_are_no_spills(lines: list[str], spills: int) -> None:
    assert spills_of(AARCH64, *lines) == spills


def test_an_address_must_be_in_the_stack_whatever_ran_before() -> None:
    text = "f:\n add r4, sp, #8\n cmp r0, #0\n beq .LBB0_1\n mov r4, r1\n.LBB0_1:\n"
    text += " vfma.f32 q0, q1, q2\n vldmia r4, {d0, d1}\n bne .LBB0_1\n bx lr\n"
    (loop,) = innermost_loops(text, ARM)
    assert loop.spills == 0


@pytest.mark.parametrize("triple", ["loongarch64-linux-gnu", ""])
def test_other_machines_are_refused(triple: str) -> None:
    with pytest.raises(ToolchainError, match=r"expected a triple of x86-64, .* or RV64"):
        innermost_loops("", triple)


# --- Cycles


FMLA = tuple(f"fmla v{i}.4s, v30.4s, v31.s[0]" for i in range(16))


@pytest.mark.parametrize(
    ("cpu", "cycles"), [("cortex-a57", 16), ("cortex-a72", 16), ("neoverse-n1", 8)]
)
def test_cycles_are_those_of_the_processor(cpu: str, cycles: float) -> None:
    loop = Loop("", (*FMLA, "subs x0, x0, #1", "b.ne .LBB0_1"), 16, 0)
    assert mca_cycles(loop, AARCH64, cpu) == pytest.approx(cycles, rel=0.02)


def test_a_chain_of_sums_takes_its_latency() -> None:
    loop = Loop("", FMLA[:1] * 4, 4, 0)
    assert mca_cycles(loop, AARCH64, "cortex-a57") == pytest.approx(4 * 4, rel=0.02)
    assert mca_cycles(loop, AARCH64, "neoverse-n1") == pytest.approx(4 * 4, rel=0.02)


def test_every_version_of_llvm_mca_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two multiply-adds, two loads and an addition per cycle: more than a narrow core starts.
    fives = zip(FMLA[::2], FMLA[1::2], range(16, 24), strict=True)
    body = [
        line
        for one, other, i in fives
        for line in (one, f"ldr q{i}, [x0]", other, f"ldr s{i}, [x1]", f"add x{i - 12}, x{i}, #4")
    ]
    names = [name for name in ("llvm-mca-22", "llvm-mca-19", "llvm-mca") if shutil.which(name)]
    for name in names:
        monkeypatch.setattr("tvm_directconv.assembly._MCA", (name, *names))
        cycles = mca_cycles(Loop("", tuple(body), 16, 0), AARCH64, "neoverse-n1")
        assert cycles == pytest.approx(8, rel=0.02)


@pytest.mark.parametrize("version", [None, "LLVM version 14.0.6", "nonsense"])
def test_a_missing_or_old_llvm_mca(
    version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if version:
        program = tmp_path / "llvm-mca"
        program.write_text(f"#!/bin/sh\necho '{version}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="apt install llvm-19"):
        mca_cycles(Loop("", FMLA, 16, 0), AARCH64, "cortex-a72")


@pytest.mark.parametrize(
    ("body", "cpu"), [(("vfmadd231ps %ymm0",), "cortex-a72"), (FMLA, "cortex-a999")]
)
def test_what_llvm_mca_cannot_read(body: tuple[str, ...], cpu: str) -> None:
    with pytest.raises(ToolchainError, match=f"-mcpu={cpu} .*cannot count the cycles"):
        mca_cycles(Loop("", body, 1, 0), AARCH64, cpu)


# --- Compiled layers


@functools.cache
def assembly(name: str, layer: ConvWorkload) -> str:
    """Compile a layer with the model's blocking, each case once per process."""
    return build(layer, name, blocking=chosen(layer, name)).assembly()


@functools.cache
def code(name: str, layer: ConvWorkload) -> tuple[list[Loop], Loop]:
    """Return the innermost loops and the whole function, each case once per process."""
    text = assembly(name, layer)
    triple = device(name).triple
    return innermost_loops(text, triple), whole_function(text, triple)


def what_decides(name: str, layer: ConvWorkload) -> Hashable:
    """Return all that the code of tiles depends on; other sizes are only the ends of loops."""
    b = chosen(layer, name)
    tiling = Tiling(Case.of(layer, name), b)
    return (
        replace(b, oh_block=1, flat_rows=0, rows_outside=False),
        layer.kernel,
        layer.stride,
        layer.padding,
        tiling.case.input_layout,
        layer.in_channels > b.ic_block,
        # Rows are apart by as much as an instruction can add to an address, or by more.
        tiling.view.in_width,
        tiling.row[2:],
    )


# In parts, so that several processes can share the work. No part has the code of another.
PARTS = 3


def layers_by_code(name: str, part: int) -> list[list[ConvWorkload]]:
    """Return the layers of a part that share the code of a tile, for each such code."""
    kinds: dict[Hashable, list[ConvWorkload]] = {}
    for layer in LAYERS:
        # Of what decides, that for which no blocking has to be chosen.
        kind = layer.kernel, layer.stride, layer.padding, layer.in_width
        kinds.setdefault(kind, []).append(layer)
    found: dict[Hashable, list[ConvWorkload]] = {}
    for layers in list(kinds.values())[part::PARTS]:
        for layer in layers:
            found.setdefault(what_decides(name, layer), []).append(layer)
    return list(found.values())


@pytest.mark.parametrize("part", range(PARTS))
# Nine layers in ten have the same tiles on the Cortex-A57 as on the A72.
@pytest.mark.parametrize("name", ["cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1", "armv7"])
def test_no_layer_spills_or_waits(name: str, part: int) -> None:
    spilling, slow, flops, time = {}, {}, 0, 0.0
    for layers in layers_by_code(name, part):
        layer, b = layers[-1], chosen(layers[-1], name)
        loops, whole = code(name, layer)
        assert whole.fmas >= max(loop.fmas for loop in loops)
        spills = sum(loop.spills for loop in loops), whole.spills
        if any(spills):
            spilling[layer.name] = f"{spills} spills: {b}"
        # Depthwise convolutions load as many vectors of pixels as they multiply.
        if name not in ("cortex-a72", "neoverse-n1") or layer.groups > 1:
            continue
        reached = loops_of_peak(assembly(name, layer), Tiling(Case.of(layer, name), b))
        if reached < 0.93:
            slow[layer.name] = f"{reached:.3f} of the peak: {b}"
        flops += sum(w.useful_flops for w in layers)
        time += sum(w.useful_flops for w in layers) / reached
    assert not spilling and not slow
    assert not time or flops / time > 0.99


@pytest.mark.parametrize("name", ["rv64gcv", "spacemit-x60"])
def test_inner_loops_of_riscv(name: str) -> None:
    layers = ["vgg16:conv3_2", "googlenet:5a_3x3", "alexnet:conv1", "resnet50:l4b0_down"]
    for layer in workloads([*layers, "mobilenetv1:dw3"]):
        loops, _ = code(name, layer)
        assert not any(loop.spills for loop in loops), layer
        longest = max(loops, key=lambda loop: loop.fmas)
        assert longest.fmas >= 6
        # The width of vectors is set once for each step.
        widths = sum(line.startswith("vset") for line in longest.body)
        assert 6 * widths <= longest.fmas, layer
    # All but two registers: without order among the steps, LLVM would spill.
    tile = Blocking(device(name).lanes, 2, 14, 4, 4)
    text = build("ic64ih56oc960oh56kh3ph1", name, blocking=tile).assembly()
    assert not any(loop.spills for loop in innermost_loops(text, device(name).triple))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["haswell", "sapphirerapids"])
def test_no_step_loads_by_the_frame_pointer(name: str, threads: int) -> None:
    # Which registers LLVM takes is chance: these layers had it in loops with one thread or two.
    for layer in workloads(["googlenet:3b_1x1", "googlenet:4a_pool", "googlenet:4b_3x3"]):
        text = build(layer, name, threads=threads, blocking="model").assembly()
        assert "vfmadd231ps" in text
        assert not re.search(r"^\tv.*\(%rbp", text, re.MULTILINE)


def test_loops_that_wait_are_below_the_peak() -> None:
    # One sum for all products takes the latency of each: a quarter, and more where rounds overlap.
    layer = ConvWorkload.parse("ic16ih8iw8oc4oh8ow8kh1")
    b = Blocking(4, 1, 1, 4, 4)
    text = build(layer, "neoverse-n1", blocking=b).assembly()
    tiling = Tiling(Case.of(layer, "neoverse-n1"), b)
    assert 0.2 < loops_of_peak(text, tiling) < 0.4
    # Loops of another tile are none of it.
    with pytest.raises(ToolchainError, match=r"no inner loop of ic16.* expected one of 8 pro"):
        loops_of_peak(text, replace(tiling, blocking=replace(b, ow_tile=8)))


@pytest.mark.parametrize(
    "name", ["x86-64-v2", "x86-64-v3", "znver4", "cortex-a72", "armv7", "rv64gcv"]
)
def test_a_tile_of_too_many_registers_spills(name: str) -> None:
    target = device(name)
    layer = ConvWorkload.parse("ic64ih8iw64oc64oh8ow64kh1")
    case = Case.of(layer, target)
    tile = {"oc_vectors": 2, "ow_tile": target.vector_registers // 2 + 4, "flat_rows": 8}
    b = replace(chosen(layer, name), **tile)
    assert reasons_against(b, case)
    module = scheduled(Tiling(case, b)).mod
    text = tirx.build(module, target.target(1), pipeline=PIPELINE).inspect_source("asm")
    assert any(loop.spills >= 8 for loop in innermost_loops(text, target.triple))
    assert whole_function(text, target.triple).spills >= 8
