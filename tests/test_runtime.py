"""The C runtime: ``runtime_test.c`` compiled in several ways, natively and emulated."""

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tvm_directconv.emit.c_folder import RUNTIME
from tvm_directconv.emit.c_source import DEPLOY
from tvm_directconv.kinds import MAX_THREADS
from tvm_directconv.toolchain import elf_info, find_toolchain, run_cc

TEST = Path(__file__).with_name("runtime_test.c")
STRICT = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror"]
FEW = "-DDIRECTCONV_MAX_THREADS=64"  # All that there can be are started, in emulators, too.
# What the test puts between directconv.c and the system.
REPLACED = {
    "pthread_create": "test_create",
    "pthread_setaffinity_np": "test_place",
    "sched_getaffinity": "test_allowed",
}
# For one of the builds: threads pause between any two steps of theirs that others can see.
PAUSES = {
    "pthread_cond_wait": "test_wait",
    "__atomic_load_n(p, o)": "(test_pause(), __atomic_load_n(p, o))",
    "__atomic_store_n(p, v, o)": "(test_pause(), __atomic_store_n(p, v, o))",
    "__atomic_exchange_n(p, v, o)": "(test_pause(), __atomic_exchange_n(p, v, o))",
    "__atomic_add_fetch(p, v, o)": "(test_pause(), __atomic_add_fetch(p, v, o))",
    "__atomic_sub_fetch(p, v, o)": "(test_pause(), __atomic_sub_fetch(p, v, o))",
}
OPTIONS = {"TSAN_OPTIONS": "halt_on_error=1:die_after_fork=0"}


@dataclass(frozen=True)
class Build:
    """A way to compile the test."""

    flags: tuple[str, ...] = ()
    machine: str = platform.machine()
    loops: int = 200
    """In a row, for each number of threads."""
    threads: bool = True
    pauses: bool = False


BUILDS = {
    "plain": Build(),
    # Without a time in which threads wait awake, each loop puts all of them to sleep.
    "sleepy": Build(("-DDIRECTCONV_SPIN_MICROSECONDS=0",), loops=2000),
    "pausing": Build(("-DDIRECTCONV_SPIN_MICROSECONDS=0",), pauses=True),
    "address": Build(("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")),
    "thread": Build(("-g", "-fsanitize=thread", "-DCHILDREN_START_NOTHING")),
    "no-threads": Build(("-DDIRECTCONV_NO_THREADS",), threads=False),
    "aarch64": Build(("-DCHILDREN_START_NOTHING",), "aarch64", loops=50),
    "armv7l": Build(("-DCHILDREN_START_NOTHING",), "armv7l", loops=50),
}


def compile_runtime(build: Build, folder: Path, replaced: Mapping[str, str]) -> Path:
    """Compile ``directconv.c``; return the object."""
    flags = [*STRICT, FEW, *build.flags, *(["-pthread"] if build.threads else [])]
    flags += [f"-D{name}={other}" for name, other in replaced.items()]
    if build.pauses:
        (folder / "pauses.h").write_text("void test_pause(void);\n")
        flags += ["-include", str(folder / "pauses.h")]
        flags += [f"-D{name}={other}" for name, other in PAUSES.items()]
    source = str(DEPLOY / "directconv.c")
    object_file = folder / "directconv.o"
    described = '-DDIRECTCONV_CORES="cores"'
    run_cc([*flags, described, "-c", source], object_file, find_toolchain(build.machine))
    return object_file


@pytest.mark.parametrize("name", BUILDS)
def test_the_runtime(name: str, tmp_path: Path) -> None:
    build = BUILDS[name]
    toolchain = find_toolchain(build.machine)
    flags = [*STRICT, FEW, *build.flags, *(["-pthread"] if build.threads else [])]
    flags += [f"-I{DEPLOY}", f"-DLOOPS={build.loops}"]
    runtime = compile_runtime(build, tmp_path, REPLACED if build.threads else {})
    sources = map(str, [TEST, DEPLOY / "network.c", runtime])
    run_cc([*flags, *sources], tmp_path / "test", toolchain)
    command = toolchain.command(str(tmp_path / "test"))
    if any("sanitize" in flag for flag in build.flags):
        # Where Linux puts memory at more random places than these sanitizers know, they refuse.
        fixed = ["setarch", platform.machine(), "-R"]
        if subprocess.run([*fixed, "true"], stderr=subprocess.DEVNULL).returncode == 0:
            command = [*fixed, *command]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **OPTIONS}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["plain", "no-threads"])
def test_threads_can_be_left_out(name: str, tmp_path: Path) -> None:
    undefined = elf_info(compile_runtime(BUILDS[name], tmp_path, {})).undefined
    of_threads = {symbol for symbol in undefined if symbol.startswith(("pthread_", "sched_"))}
    assert bool(of_threads) == BUILDS[name].threads
    assert "open" in undefined


def test_threads_have_one_limit() -> None:
    text = (DEPLOY / "directconv.h").read_text()
    assert f"#define DIRECTCONV_MAX_THREADS {MAX_THREADS}\n" in text


def test_the_runtime_is_small(tmp_path: Path) -> None:
    toolchain = find_toolchain("aarch64")
    ask = [*toolchain.cc, "-print-prog-name=strip"]
    strip = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    assert shutil.which(strip)
    size = 0
    for source in ("directconv.c", "network.c"):
        object_file = tmp_path / f"{source}.o"
        run_cc([*STRICT, "-c", str(DEPLOY / source)], object_file, toolchain)
        subprocess.run([strip, "--strip-unneeded", object_file], check=True)
        size += object_file.stat().st_size
    assert 4096 < size < 32 * 1024
    lines = sum(len((DEPLOY / file).read_text().splitlines()) for file in RUNTIME)
    assert lines < 1050
