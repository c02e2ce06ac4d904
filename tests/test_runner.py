"""Running exported kernels with the C runner, natively and emulated."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import s_tir, te

from tvm_directconv.deploy import runner as runner_module
from tvm_directconv.deploy.runner import (
    RunFailure,
    RunReport,
    build_runner,
    read_report,
    run_library,
    runner_arguments,
    tensor_argument,
)
from tvm_directconv.errors import ArgumentError, LibraryError, ToolchainError
from tvm_directconv.toolchain import Toolchain, elf_info, find_toolchain, link_shared, run_cc

ROWS, COLUMNS = 60, 32
SHAPE = (ROWS, COLUMNS)

TARGETS: dict[str, dict[str, Any]] = {
    "x86_64": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v2"},
    "aarch64": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"},
    "arm": {
        "kind": "llvm",
        "mtriple": "armv7l-linux-gnueabihf",
        "mattr": ["+neon", "+vfp4", "+hwdiv-arm"],
        "mfloat-abi": "hard",
        "num-cores": 4,
    },
}
QEMU_CPUS = {"x86_64": None, "aarch64": "cortex-a72", "arm": "cortex-a15"}


def scaled(name: str, *, parallel: bool) -> tvm.tirx.PrimFunc:
    """Return a kernel of one loop nest, ``b = 3 a + 1``."""
    a = te.placeholder(SHAPE, name="a")
    b = te.compute(SHAPE, lambda i, j: a[i, j] * 3 + 1, name="b")
    schedule = s_tir.Schedule(te.create_prim_func([a, b]).with_attr("global_symbol", name))
    rows, columns = schedule.get_loops(schedule.get_sblock("b"))
    schedule.vectorize(columns)
    if parallel:
        schedule.parallel(rows)
    return schedule.mod["main"]


def mirrored(name: str) -> tvm.tirx.PrimFunc:
    """Return a kernel with a large intermediate result, ``b = c + c[::-1]``, ``c = 3 a + 1``."""
    a = te.placeholder(SHAPE, name="a")
    c = te.compute(SHAPE, lambda i, j: a[i, j] * 3 + 1, name="c")
    b = te.compute(SHAPE, lambda i, j: c[ROWS - 1 - i, j] + c[i, j], name="b")
    return te.create_prim_func([a, b]).with_attr("global_symbol", name)


@dataclass(frozen=True)
class Machine:
    """A library of the three kernels, and the toolchain that runs it."""

    name: str
    toolchain: Toolchain
    library: Path

    def run(self, symbol: str, array: np.ndarray, **options: int) -> RunReport:
        return run_library(self.library, symbol, [array], [SHAPE], self.toolchain, **options)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Machine]:
    """Return a function that compiles the kernels for a machine, once."""
    folder = tmp_path_factory.mktemp("libraries")
    functions = {
        "serial": scaled("serial", parallel=False),
        "parallel": scaled("parallel", parallel=True),
        "workspace": mirrored("workspace"),
    }
    made: dict[str, Machine] = {}

    def make(name: str) -> Machine:
        if name not in made:
            toolchain = find_toolchain(TARGETS[name]["mtriple"], QEMU_CPUS[name])
            target = tvm.target.Target(TARGETS[name])
            executable = tvm.compile(tvm.IRModule(functions), target=target)
            executable.mod.write_to_file(str(folder / f"{name}.o"))
            link_shared([folder / f"{name}.o"], folder / f"{name}.so", toolchain)
            made[name] = Machine(name, toolchain, folder / f"{name}.so")
        return made[name]

    return make


@pytest.fixture(params=TARGETS)
def machine(request: pytest.FixtureRequest, machines: Callable[[str], Machine]) -> Machine:
    return machines(request.param)


@pytest.fixture(scope="session")
def array() -> np.ndarray:
    # Small integers: every result is exact, so equality is the right test.
    values = np.random.default_rng(3).integers(-100, 100, SHAPE)
    return values.astype(np.float32)


def test_a_kernel_computes_the_same_everywhere(machine: Machine, array: np.ndarray) -> None:
    report = machine.run("serial", array)
    assert len(report.outputs) == 1
    assert report.outputs[0].dtype == np.float32
    np.testing.assert_array_equal(report.outputs[0], array * 3 + 1)
    assert (report.allocations, report.allocated_bytes) == (0, 0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_parallel_loops(machine: Machine, array: np.ndarray, threads: int) -> None:
    report = machine.run("parallel", array, threads=threads, repeat=3, number=20)
    np.testing.assert_array_equal(report.outputs[0], array * 3 + 1)
    assert report.allocations == 0


def test_workspaces_are_counted_once_per_call(machine: Machine, array: np.ndarray) -> None:
    report = machine.run("workspace", array, warmup=2, repeat=2, number=3)
    np.testing.assert_array_equal(report.outputs[0], array[::-1] * 3 + array * 3 + 2)
    assert report.allocations == 1
    assert report.allocated_bytes == array.nbytes


def test_the_symbols_tell_of_workspaces_too(machine: Machine) -> None:
    info = elf_info(machine.library)
    assert "TVMFFIErrorSetRaisedFromCStrParts" in info.undefined
    assert {"__tvm_ffi_serial", "__TVMBackendAllocWorkspace"} <= set(info.defined)


def test_timing(machine: Machine, array: np.ndarray) -> None:
    report = machine.run("serial", array, repeat=4, warmup=1, number=2)
    assert len(report.seconds) == 4
    assert all(0 < seconds < 10 for seconds in report.seconds)


def test_wrong_shapes_are_explained_by_the_kernel(machine: Machine) -> None:
    with pytest.raises(LibraryError, match=r"(?s)\[\(32, 60\), .*Mismatched.*\[60, 32\]"):
        machine.run("serial", np.zeros((COLUMNS, ROWS), np.float32))
    with pytest.raises(LibraryError, match=r"TypeError: Expected 2 arguments"):
        run_library(machine.library, "serial", [], [SHAPE], machine.toolchain)


def test_an_unknown_kernel(machine: Machine, array: np.ndarray) -> None:
    with pytest.raises(LibraryError, match=r"no kernel convolve in the library.*undefined symbol"):
        machine.run("convolve", array)


def test_impossible_counts(machine: Machine, array: np.ndarray) -> None:
    with pytest.raises(LibraryError, match=r"--repeat 0: expected a whole number from 1"):
        machine.run("serial", array, repeat=0)


def test_only_types_that_c_has(machines: Callable[[str], Machine]) -> None:
    with pytest.raises(ArgumentError, match=r"input 0 of kernel serial is complex64, expected one"):
        machines("x86_64").run("serial", np.zeros(SHAPE, np.complex64))


def test_strided_inputs_are_packed(machines: Callable[[str], Machine], array: np.ndarray) -> None:
    wide = np.repeat(array, 2, axis=1)[:, ::2]
    assert not wide.flags.c_contiguous
    report = machines("x86_64").run("serial", wide)
    np.testing.assert_array_equal(report.outputs[0], array * 3 + 1)


@pytest.mark.parametrize(("library", "host"), [("aarch64", "x86_64"), ("x86_64", "arm")])
def test_a_library_for_another_machine(
    library: str, host: str, machines: Callable[[str], Machine], array: np.ndarray
) -> None:
    with pytest.raises(LibraryError, match=f"is for {library}, but the toolchain is for {host}"):
        run_library(machines(library).library, "serial", [array], [SHAPE], machines(host).toolchain)


def test_a_missing_and_a_damaged_library(
    machines: Callable[[str], Machine], array: np.ndarray, tmp_path: Path
) -> None:
    whole = machines("x86_64")
    for content in (None, b"not a library", whole.library.read_bytes()[:2000]):
        library = tmp_path / "library.so"
        if content is not None:
            library.write_bytes(content)
        with pytest.raises(LibraryError, match=str(library)):
            run_library(library, "serial", [array], [SHAPE], whole.toolchain)


def test_an_instruction_the_cpu_lacks(
    machines: Callable[[str], Machine], array: np.ndarray
) -> None:
    old = find_toolchain("armv7l", "cortex-a9")  # cannot divide, which a parallel loop does
    run_library(machines("arm").library, "serial", [array], [SHAPE], old)
    with pytest.raises(LibraryError, match="CPU lacks an instruction of this library"):
        run_library(machines("arm").library, "parallel", [array], [SHAPE], old)


def test_an_emulator_that_fails(machines: Callable[[str], Machine], array: np.ndarray) -> None:
    wrong = find_toolchain("armv7l", "cortex-a999")
    with pytest.raises(LibraryError, match="cortex-a999"):
        run_library(machines("arm").library, "serial", [array], [SHAPE], wrong)


def compile_c(code: str, folder: Path, toolchain: Toolchain) -> Path:
    """Build a library by hand, for what TVM's kernels do not do."""
    source = folder / "kernel.c"
    source.write_text(code)
    include = str(Path(runner_module.__file__).parent)
    run_cc(["-shared", "-fPIC", "-O1", "-I", include, str(source)], folder / "kernel.so", toolchain)
    return folder / "kernel.so"


KERNEL = "int __tvm_ffi_kernel(void *self, const void *args, int count, void *result) "


def test_a_crash_is_named(machine: Machine, tmp_path: Path) -> None:
    code = KERNEL + "{ volatile int *nothing = 0; return *nothing; }"
    library = compile_c(code, tmp_path, machine.toolchain)
    with pytest.raises(LibraryError, match="killed by SIGSEGV"):
        run_library(library, "kernel", [], [], machine.toolchain)


def test_every_kind_of_allocation_is_counted(machine: Machine, tmp_path: Path) -> None:
    code = (
        """
        #define _GNU_SOURCE
        #include <malloc.h>
        #include <stdlib.h>
        #include <sys/mman.h>
        """
        + KERNEL
        + """{
            void *p[7];
            p[0] = malloc(1000);
            p[1] = calloc(10, 200);
            p[2] = realloc(NULL, 4000);
            p[3] = aligned_alloc(64, 8000 / 64 * 64);
            if (posix_memalign(&p[4], 64, 16000)) return -1;
            p[5] = memalign(64, 32000);
            p[0] = realloc(p[0], 64000);
            for (int i = 0; i < 6; i++) {
                if (!p[i]) return -1;
                *(volatile char *)p[i] = 1;
                free(p[i]);
            }
            p[6] = mmap(NULL, 131072, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            return p[6] == MAP_FAILED || munmap(p[6], 131072);
        }"""
    )
    library = compile_c(code, tmp_path, machine.toolchain)
    report = run_library(library, "kernel", [], [], machine.toolchain, warmup=1, repeat=2)
    assert report.allocations == 8
    assert report.allocated_bytes == 1000 + 2000 + 4000 + 8000 + 16000 + 32000 + 64000 + 131072


def test_memory_taken_behind_the_c_library_shows_as_growth(
    machine: Machine, tmp_path: Path
) -> None:
    code = (
        """
        #define _GNU_SOURCE
        #include <sys/mman.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        #ifdef SYS_mmap2
        #define SYS_mmap SYS_mmap2
        #endif
        enum { SIZE = 32 << 20 };
        """
        + KERNEL
        + """{
            char *p = (char *)syscall(SYS_mmap, 0, SIZE, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            for (long i = 0; i < SIZE; i += 4096) p[i] = 1;
            return munmap(p, SIZE);
        }"""
    )
    library = compile_c(code, tmp_path, machine.toolchain)
    report = run_library(library, "kernel", [], [], machine.toolchain)
    assert report.allocations == 0
    assert 0.9 * 2**25 < report.rss_growth_bytes < 1.5 * 2**25


@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize("size", [2**16, 200_000])
def test_memory_that_is_given_back_shows_as_growth(
    machines: Callable[[str], Machine], tmp_path: Path, size: int, warmup: int
) -> None:
    # Below and above what the C library asks the system for separately. Not in emulators, which
    # keep it.
    code = f"""
        #include <stdlib.h>
        {KERNEL} {{
            volatile char *p = malloc({size});
            for (int i = 0; i < {size}; i++) p[i] = 1;
            free((void *)p);
            return 0;
        }}"""
    toolchain = machines("x86_64").toolchain
    library = compile_c(code, tmp_path, toolchain)
    for _ in range(10):
        report = run_library(library, "kernel", [], [], toolchain, warmup=warmup, number=3)
        assert abs(report.rss_growth_bytes - size) <= 2**14


@pytest.mark.parametrize("threads", [1, 3])
def test_a_kernel_that_allocates_nothing_hardly_grows(
    machine: Machine, array: np.ndarray, threads: int
) -> None:
    # In an emulator the first call counts, too: of the emulator, which translates the code.
    warmup = 1 if machine.toolchain.emulator else 0
    report = machine.run("parallel", array, threads=threads, warmup=warmup, number=3)
    assert report.rss_growth_bytes <= 2**14


def test_stacks_count_as_growth(machine: Machine, tmp_path: Path) -> None:
    code = (
        KERNEL
        + "{ volatile char a[262144]; for (int i = 0; i < 262144; i++) a[i] = 0; return *a; }"
    )
    library = compile_c(code, tmp_path, machine.toolchain)
    report = run_library(library, "kernel", [], [], machine.toolchain)
    assert report.rss_growth_bytes > 200_000


def test_an_unwritten_output_is_nan(machine: Machine, tmp_path: Path) -> None:
    library = compile_c(KERNEL + "{ return 0; }", tmp_path, machine.toolchain)
    report = run_library(library, "kernel", [], [(2, 3), (4,)], machine.toolchain)
    assert [output.shape for output in report.outputs] == [(2, 3), (4,)]
    assert all(np.isnan(output).all() for output in report.outputs)


def run_runner(machine: Machine, *arguments: str) -> dict[str, Any]:
    """Run the runner by hand and return its report."""
    command = machine.toolchain.command(str(build_runner(machine.toolchain)), *arguments)
    result = subprocess.run(command, capture_output=True, text=True)
    return read_report(result.returncode, result.stdout, result.stderr)


def test_outputs_are_compared_with_a_file(
    machine: Machine, array: np.ndarray, tmp_path: Path
) -> None:
    array.tofile(tmp_path / "a")
    expected = array * 3 + 1
    tensors = [
        tensor_argument("in", tmp_path / "a", SHAPE),
        tensor_argument("expect", tmp_path / "b", SHAPE),
    ]

    def different() -> int:
        expected.tofile(tmp_path / "b")
        arguments = runner_arguments(machine.library, "serial", tensors)
        return int(run_runner(machine, *arguments)["different"])

    assert different() == 0
    expected[0, 0] = np.nextafter(expected[0, 0], np.float32(np.inf))
    expected[-1, -1] = np.inf
    assert different() == 2
    expected[3, 3] = np.nan
    assert different() == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("dtype", "written", "others"),
    [
        ("float16", [1, 0, -0.0, np.nan], [1, -0.0, 0, 2]),
        ("float64", [1, 0, -0.0, np.nan], [1, -0.0, 0, 2]),
        ("int8", [1, 0, -5, 7], [1, 0, -5, 6]),
        ("uint16", [1, 0, 0x8000, 7], [1, 0, 0x8000, 6]),
    ],
)
def test_outputs_of_all_types_are_compared(
    dtype: str, written: list[float], others: list[float], machine: Machine, tmp_path: Path
) -> None:
    library = compile_c(COPY, tmp_path, machine.toolchain)
    np.array(written, dtype).tofile(tmp_path / "a")
    for expected, different in ((others, 1), (written, int(dtype.startswith("float")))):
        np.array(expected, dtype).tofile(tmp_path / "b")
        tensors = [tensor_argument(r, tmp_path / n, (4,), dtype) for r, n in ROLES.items()]
        report = run_runner(machine, *runner_arguments(library, "kernel", tensors))
        assert report["different"] == different


def test_an_unwritten_output_differs_even_from_nan(machine: Machine, tmp_path: Path) -> None:
    library = compile_c(KERNEL + "{ return 0; }", tmp_path, machine.toolchain)
    np.full(6, np.nan, np.float32).tofile(tmp_path / "b")
    tensors = [tensor_argument("expect", tmp_path / "b", (2, 3))]
    assert run_runner(machine, *runner_arguments(library, "kernel", tensors))["different"] == 6


ROLES = {"in": "a", "expect": "b"}
COPY = (
    """
    #include <string.h>
    #include "packed.h"
    """
    + KERNEL.replace("const void *args", "const Any *args")
    + """{
        const DLTensor *x = args[0].value.pointer, *y = args[1].value.pointer;
        memcpy(y->data, x->data, x->shape[0] * x->type_bits / 8);
        return 0;
    }"""
)
SUMS = (
    """
    #include "packed.h"
    """
    + KERNEL.replace("const void *args", "const Any *args")
    + """{
        const DLTensor *x = args[0].value.pointer, *y = args[1].value.pointer;
        const float *from = x->data;
        float *to = y->data;
        to[0] = to[1] = 0;
        for (int64_t i = 0; i < x->shape[0]; i++) to[0] += from[i], to[1] += from[i] * from[i];
        return 0;
    }"""
)


def test_the_runner_fills_tensors_by_itself(machine: Machine, tmp_path: Path) -> None:
    """Neither zeros, which some processors multiply faster, nor the same number everywhere."""
    library = compile_c(SUMS, tmp_path, machine.toolchain)
    found = []
    for _ in range(2):
        tensors = ["random:10000", tensor_argument("out", tmp_path / "y", (2,)), "scratch:9"]
        run_runner(machine, *runner_arguments(library, "kernel", tensors))
        found.append(np.fromfile(tmp_path / "y", np.float32))
    np.testing.assert_array_equal(*found)
    mean, square = found[0] / 10000
    assert -0.7 < mean < -0.3 and 19 < square < 24  # Of -8 to 7: -0.5 and 21.5.


def test_threads_on_cores_of_their_own(
    machines: Callable[[str], Machine], array: np.ndarray, tmp_path: Path
) -> None:
    machine = machines("x86_64")
    array.tofile(tmp_path / "a")
    tensors = [
        tensor_argument("in", tmp_path / "a", SHAPE),
        tensor_argument("out", tmp_path / "b", SHAPE),
    ]
    cores = len(os.sched_getaffinity(0))
    arguments = runner_arguments(machine.library, "parallel", tensors, threads=cores)
    run_runner(machine, *arguments[:2], "--pin", *arguments[2:])
    np.testing.assert_array_equal(np.fromfile(tmp_path / "b", np.float32), 3 * array.ravel() + 1)
    arguments = runner_arguments(machine.library, "parallel", tensors, threads=cores + 1)
    with pytest.raises(RunFailure, match=f"cannot pin {cores + 1} threads to cores of their own"):
        run_runner(machine, *arguments[:2], "--pin", *arguments[2:])


def test_the_runner_gives_up_after_its_limit(machine: Machine, tmp_path: Path) -> None:
    library = compile_c(KERNEL + "{ for (;;) {} }", tmp_path, machine.toolchain)
    with pytest.raises(RunFailure, match="reached its time limit") as caught:
        run_runner(machine, *runner_arguments(library, "kernel", [], limit=1))
    assert caught.value.kind == "timeout"


def test_the_runner_tells_the_processor(machines: Callable[[str], Machine]) -> None:
    text = run_runner(machines("x86_64"), "--cpu")["cpuinfo"]
    first = [line.split()[:2] for line in Path("/proc/cpuinfo").read_text().splitlines()[:3]]
    assert [line.split()[:2] for line in text.splitlines()[:3]] == first


@pytest.mark.parametrize(
    ("status", "stdout", "stderr", "kind", "message"),
    [
        (1, 'welcome\n{"status": -1, "error": "no"}\n', "", "crash", "^no$"),
        (255, '{"status": -1, "signal": 11}\n', "closed", "crash", "killed by SIGSEGV"),
        (1, '{"status": -1, "signal":  7}\n', "", "crash", "killed by SIGBUS"),
        (1, '{"status": -1, "signal":  4}\n', "", "crash", "CPU lacks an instruction"),
        (1, '{"status": -1, "signal": 14}\n', "", "timeout", "time limit"),
        (-9, "", "", "crash", "killed by SIGKILL"),
        (137, "", "Killed", "crash", "killed by SIGKILL"),
        (-4, "", "", "crash", "CPU lacks an instruction"),
        (255, "", "a\nb\n", "rpc_lost", "^b$"),
        (127, "", "sh: runner: not found", "rpc_lost", "not found"),
        (1, "welcome", "", "rpc_lost", "^exit status 1 without a message$"),
        (0, "", "", "rpc_lost", "^exit status 0 without a message$"),
        (0, "{}}", "", "rpc_lost", "without a message"),
        (0, "[1]", "", "rpc_lost", "without a message"),
        (2, '{"status": 0}', "disk full", "rpc_lost", "disk full"),
    ],
)
def test_how_runs_end(status: int, stdout: str, stderr: str, kind: str, message: str) -> None:
    with pytest.raises(RunFailure, match=message) as caught:
        read_report(status, stdout, stderr)
    assert caught.value.kind == kind


def test_a_report_may_follow_other_text() -> None:
    assert read_report(0, 'welcome\n{"status": 0}\n', "noise") == {"status": 0}


def test_a_failure_without_a_message(machine: Machine, tmp_path: Path) -> None:
    library = compile_c(KERNEL + "{ return -1; }", tmp_path, machine.toolchain)
    with pytest.raises(LibraryError, match="failed without a message"):
        run_library(library, "kernel", [], [], machine.toolchain)


def test_parallel_failures_and_nested_loops(machine: Machine, tmp_path: Path) -> None:
    code = """
        #include <stddef.h>
        struct env { void *sync; int tasks; };
        typedef int (*body)(int, struct env *, void *);
        void TVMFFIErrorSetRaisedFromCStrParts(const char *, const char **, int);
        int (*__TVMBackendParallelLaunch)(body, void *, int) __attribute__((weak));
        static int inner(int task, struct env *env, void *data) {
            if (task != 0 || env->tasks != 1) return 0;
            __atomic_fetch_add((int *)data, 1, __ATOMIC_SEQ_CST);
            return 0;
        }
        static int outer(int task, struct env *env, void *data) {
            return env->tasks == 3 ? __TVMBackendParallelLaunch(inner, data, 0) : 0;
        }
        static int fail(int task, struct env *env, void *data) {
            const char *parts[] = {"a \\"quoted\\"\\n", NULL, "message"};
            if (task == 2) TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 3);
            return task == 2 ? -1 : 0;
        }
        int __tvm_ffi_nested(void *self, const void *args, int count, void *result) {
            int ran = 0;
            return __TVMBackendParallelLaunch(outer, &ran, 0) || ran != 3;
        }
        int __tvm_ffi_failing(void *self, const void *args, int count, void *result) {
            return __TVMBackendParallelLaunch(fail, NULL, 0);
        }
    """
    library = compile_c(code, tmp_path, machine.toolchain)
    run_library(library, "nested", [], [], machine.toolchain, threads=3, repeat=20)
    with pytest.raises(LibraryError, match='ValueError: a "quoted" message'):
        run_library(library, "failing", [], [], machine.toolchain, threads=3)


def test_threads_of_another_pool(machine: Machine, tmp_path: Path) -> None:
    code = """
        struct env { void *sync; int tasks; };
        typedef int (*body)(int, struct env *, void *);
        int (*__TVMBackendParallelLaunch)(body, void *, int) __attribute__((weak));
        static int task(int number, struct env *env, void *data) { return env->tasks - 1; }
        int TVMBackendParallelLaunch(body run, void *data, int requested) {
            struct env env = {0, 42};
            return run(0, &env, data);
        }
    """
    code += KERNEL + "{ return __TVMBackendParallelLaunch(task, 0, 0) == 41 ? 0 : -1; }"
    library = str(compile_c(code, tmp_path, machine.toolchain))
    program = str(build_runner(machine.toolchain))
    for options, status in (([], 1), (["--pool", library], 0)):
        command = machine.toolchain.command(program, library, "kernel", *options)
        assert subprocess.run(command, capture_output=True).returncode == status


def test_a_library_that_needs_tvms_runtime(machine: Machine, tmp_path: Path) -> None:
    code = "void *__TVMFFIFunctionCall __attribute__((weak));" + KERNEL + "{ return 0; }"
    library = compile_c(code, tmp_path, machine.toolchain)
    with pytest.raises(LibraryError, match="calls TVMFFIFunctionCall, which only TVM's runtime"):
        run_library(library, "kernel", [], [], machine.toolchain)


@pytest.mark.parametrize("standard", ["c99", "c11"])
def test_the_runner_compiles_without_warnings(
    machine: Machine, standard: str, tmp_path: Path
) -> None:
    folder = Path(runner_module.__file__).parent
    sources = [str(folder / "runner.c"), str(folder / "directconv.c")]
    flags = [f"-std={standard}", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-rdynamic"]
    run_cc([*sources, *flags, "-ldl"], tmp_path / "runner", machine.toolchain)


def test_bad_command_lines(machine: Machine, array: np.ndarray, tmp_path: Path) -> None:
    program = str(build_runner(machine.toolchain))
    library = str(machine.library)
    array.tofile(tmp_path / "a")
    good = f"in:{tmp_path}/a:60,32"
    cases = {
        (): "usage: runner LIBRARY SYMBOL",
        (library,): "usage: runner LIBRARY SYMBOL",
        ("nowhere.so", "serial"): "cannot open library nowhere.so: No such file",
        (good[3:-6], "serial"): "cannot load library",
        (library, "s" * 600): "too long",
        (library, "serial", "--fast"): "unknown option --fast",
        (library, "serial", "--repeat"): "--repeat (nothing): expected a whole number",
        (library, "serial", "--number", "2x"): "--number 2x: expected a whole number",
        (library, "serial", "--limit", "0"): "--limit 0: expected a whole number from 1",
        (library, "serial", "--pool"): "--pool (nothing): expected TVM's runtime library",
        (library, "serial", "--pool", library): "expected TVM's runtime library",
        (library, "serial", "--pool", "./nowhere.so"): "expected TVM's runtime library",
        (library, "serial", "--warmup", "-1"): "--warmup -1: expected a whole number from 0",
        (library, "serial", "--threads", "9" * 30): "expected a whole number from 1 to",
        (library, "serial", "a:60,32"): "expected in:FILE:SHAPE, out:FILE:SHAPE, expect",
        (library, "serial", "in:60,32"): "expected in:FILE:SHAPE, out:FILE:SHAPE, expect",
        (library, "serial", "in::60,32"): "expected in:FILE:SHAPE, out:FILE:SHAPE, expect",
        (library, "serial", f"in:{tmp_path}/a:"): "expected a shape",
        (library, "serial", f"in:{tmp_path}/a:60,"): "expected a shape",
        (library, "serial", f"in:{tmp_path}/a:60,-32"): "expected a shape",
        (library, "serial", f"in:{tmp_path}/a:0,32"): "expected a shape",
        (library, "serial", f"in:{tmp_path}/a:60x32"): "expected a shape",
        (library, "serial", "out:o:1,1,1,1,1,1,1,1,1"): "expected a shape",
        (library, "serial", f"out:o:{2**40},{2**40}"): "fits into memory",
        (library, "serial", f"out:o:{2**64}"): "fits into memory",
        (library, "serial", "in:nowhere:60,32"): "cannot open input nowhere: No such file",
        (library, "serial", f"in:{tmp_path}/a:60,33"): "holds less than the 7920 bytes",
        (library, "serial", f"in:{tmp_path}/a:60,31"): "holds more than the 7440 bytes",
        (library, "serial", f"in:{tmp_path}:60,31"): "holds less than",
        (library, "serial", "expect:nowhere:60,32"): "cannot open input nowhere: No such file",
        (library, "serial", f"expect:{tmp_path}/a:60,33"): "holds less than the 7920 bytes",
        (library, "serial", f"in:{tmp_path}/a:float,60"): "or before it a type like float32",
        (library, "serial", f"in:{tmp_path}/a:int64,"): "expected a shape",
        (library, "serial", f"in:{tmp_path}/a:int64,60,32"): "holds less than the 15360 bytes",
        (library, "serial", f"in:{tmp_path}/a:int16,60,32"): "holds more than the 3840 bytes",
        (library, "serial", "random:bool,60"): "no other type is filled",
        (library, "serial", "random:a:60,32"): "random:SHAPE or scratch:SHAPE",
        (library, "serial", "scratch:"): "expected a shape",
        (library, "serial", "--guard"): "--guard (nothing): expected begin or end",
        (library, "serial", "--guard", "both"): "--guard both: expected begin or end",
        (library, "serial", "--align", "2"): "--align 2: expected a whole number from 4",
        (library, "serial", "--threads", "1025"): "cannot start 1025 threads: expected 1 to 1024",
        (library, "serial", *["out:o:1"] * 257): "more than 256 tensors",
        (library, "serial", good, "out:/nonexistent/o:60,32"): "cannot write output /nonexistent/o",
    }
    for arguments, message in cases.items():
        result = subprocess.run(
            machine.toolchain.command(program, *arguments), capture_output=True, text=True
        )
        assert (result.returncode, result.stdout) == (2, ""), arguments
        assert message in result.stderr, arguments
        assert result.stderr.startswith("runner: ")


def test_the_runner_is_built_once(
    machines: Callable[[str], Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    toolchain = machines("x86_64").toolchain
    with ThreadPoolExecutor(3) as pool:
        (path,) = set(pool.map(build_runner, [toolchain] * 3))
    assert path.parent == tmp_path / "tvm_directconv"
    assert list(path.parent.iterdir()) == [path]
    before = path.stat().st_mtime_ns
    assert build_runner(toolchain) == path
    assert path.stat().st_mtime_ns == before
    assert build_runner(machines("aarch64").toolchain) != path


def test_a_cache_that_cannot_be_written(
    machines: Callable[[str], Machine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ToolchainError, match="Set XDG_CACHE_HOME"):
        build_runner(machines("x86_64").toolchain)


def test_running_does_not_import_tvm() -> None:
    code = "import sys, tvm_directconv.deploy.runner; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
