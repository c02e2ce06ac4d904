"""Networks without this package: by the example in C++, and by TVM alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from onnx_models import Graph, assert_equal, random_inputs, saved
from test_runner import compile_c

import tvm_directconv as dc
from tvm_directconv.deploy import runner
from tvm_directconv.toolchain import elf_info, find_toolchain

SOURCE = Path(runner.__file__).parent / "tvm_example.cc"
FILES = ["x.bin", "r.bin", "y.bin", "best.bin"]


def build(folder: Path, change: Callable[[str], str] = str) -> Path:
    """Build the example with the command in its comment, or with a variant of it."""
    found = re.search(r"^ \*   site=.*\n(?: \*   .*\n)+", SOURCE.read_text(), re.M)
    assert found
    command = change(found[0].replace("\n *", "\n").removeprefix(" *"))
    shutil.copy(SOURCE, folder)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    subprocess.run(["bash", "-euc", command], check=True, cwd=folder, env=environment)
    return folder / "tvm_example"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="module")
def without_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without_runtime")
    return build(folder, lambda command: command.replace(" -ltvm_runtime", ""))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Return, for one thread and for two, a folder with a network, its inputs and outputs.

    It has two inputs and two outputs, one of which is not of floats.
    """
    g = Graph(x=(1, 3, 23, 25), r=(1, 24, 23, 25))
    y = g.node("Relu", g.conv("x", 24, 3, 3, 3, bias=True, pads=[1] * 4))
    y = g.node("Relu", g.node("Add", g.conv(y, 24, 24, 1, 1), "r"))
    best = g.node("ArgMax", y, axis=1)
    model = g.model(y, best)
    folders = {}
    for threads in (1, 2):
        folder = tmp_path_factory.mktemp(f"threads{threads}")
        dc.compile_network(saved(model, folder), folder / "net.so", threads=threads, check=False)
        parallel = "__TVMBackendParallelLaunch" in elf_info(folder / "net.so").defined
        assert parallel == (threads == 2)
        inputs = random_inputs(dc.load_network(folder / "net.so").manifest.inputs)
        for name, array in zip(FILES, inputs, strict=False):
            array.tofile(folder / name)
        folders[threads] = folder
    return folders


def run(example: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([example, *words], cwd=folder, capture_output=True, text=True)


def expected(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the inputs in a folder, and what becomes of them."""
    network = dc.load_network(folder / "net.so")
    ports = network.manifest.inputs
    inputs = [
        np.fromfile(folder / name, p.dtype).reshape(p.shape)
        for name, p in zip(FILES, ports, strict=False)
    ]
    outputs = network.run(*inputs)
    assert all(len(np.unique(output)) > 5 for output in outputs)
    assert {output.dtype.kind for output in outputs} == {"f", "i"}
    return inputs, list(outputs)


# --- Running ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_the_example_computes_the_same(
    example: Path, folders: dict[int, Path], threads: int
) -> None:
    folder = folders[threads]
    _, outputs = expected(folder)
    for name in FILES[2:]:
        (folder / name).unlink(missing_ok=True)
    done = run(example, folder, "net.so", *FILES)
    assert (done.returncode, done.stdout) == (0, "")
    found = [
        np.fromfile(folder / name, output.dtype).reshape(output.shape)
        for name, output in zip(FILES[2:], outputs, strict=True)
    ]
    assert_equal(tuple(found), outputs)


THREADS_STARTED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>
typedef void *Body(void *);
int pthread_create(pthread_t *thread, const pthread_attr_t *how, Body *body, void *data) {
    int (*real)(pthread_t *, const pthread_attr_t *, Body *, void *);
    *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    return write(1, "+", 1) == 1 ? real(thread, how, body, data) : -1;
}
"""


@pytest.mark.parametrize(
    ("threads", "wanted", "computing"), [(1, None, 1), (2, None, 2), (2, "3", 3), (2, "1", 1)]
)
def test_as_many_threads_compute_as_were_compiled_for(
    example: Path,
    folders: dict[int, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    wanted: str | None,
    computing: int,
) -> None:
    toolchain = find_toolchain(dc.device("native").triple)
    monkeypatch.setenv("LD_PRELOAD", str(compile_c(THREADS_STARTED, tmp_path, toolchain)))
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
    if wanted:
        monkeypatch.setenv("TVM_NUM_THREADS", wanted)
    done = run(example, folders[threads], "net.so", *FILES)
    assert (done.returncode, done.stdout) == (0, "+" * (computing - 1))


@pytest.mark.parametrize("threads", [1, 2])
def test_tvm_alone_computes_the_same(folders: dict[int, Path], threads: int) -> None:
    folder = folders[threads]
    inputs, outputs = expected(folder)
    arena = json.loads((folder / "net.so.json").read_text())["arena_bytes"]
    found = [tvm.runtime.empty(output.shape, str(output.dtype)) for output in outputs]
    main = tvm.runtime.load_module(str(folder / "net.so"))["main"]
    main(*map(tvm.runtime.tensor, inputs), *found, tvm.runtime.empty((arena // 4,), "float32"))
    assert_equal(tuple(tensor.numpy() for tensor in found), outputs)


def test_only_threads_need_tvms_runtime(without_runtime: Path, folders: dict[int, Path]) -> None:
    assert run(without_runtime, folders[1], "net.so", *FILES).returncode == 0
    done = run(without_runtime, folders[2], "net.so", *FILES)
    assert done.returncode == 1
    assert "net.so: " in done.stderr and "runtime.NumThreads" in done.stderr


# --- Wrong calls ------------------------------------------------------------------------------


@pytest.fixture
def copy(folders: dict[int, Path], tmp_path: Path) -> Path:
    """Return a folder that may be spoilt."""
    for name in ("net.so", "net.so.json", *FILES[:2]):
        shutil.copy(folders[1] / name, tmp_path)
    return tmp_path


def failure(example: Path, folder: Path, *words: str) -> str:
    """Return what the example says when something fails; a signal would be another status."""
    done = run(example, folder, *(words or ("net.so", *FILES)))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("tvm_example: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_the_networks_own_message_is_shown(example: Path, copy: Path) -> None:
    manifest = json.loads((copy / "net.so.json").read_text())
    manifest["inputs"][0]["shape"][3] += 1
    (copy / "net.so.json").write_text(json.dumps(manifest))
    np.zeros(manifest["inputs"][0]["shape"], np.float32).tofile(copy / "x.bin")
    said = failure(example, copy)
    assert (
        "net.so: ValueError: an argument of the network cannot be used: expected input0 x" in said
    )
    assert not (copy / "y.bin").exists()


def test_missing_and_corrupt_libraries(example: Path, copy: Path) -> None:
    (copy / "net.so").write_bytes(b"no library")
    assert "net.so" in failure(example, copy)
    (copy / "net.so").unlink()
    said = failure(example, copy)
    assert "net.so: cannot open shared object file: No such file" in said
    assert "none.so.json: expected the manifest" in failure(example, copy, "none.so", *FILES)


def test_libraries_that_are_not_networks(example: Path, copy: Path) -> None:
    dc.build("ic16ih9oc16oh9kh3ph1").export(copy / "conv.so")
    assert "conv.so.json is of another kind or format" in failure(example, copy, "conv.so", *FILES)
    text = (copy / "net.so.json").read_text()
    (copy / "net.so.json").write_text(text.replace('"format": 1', '"format": 99'))
    assert "net.so.json is of another kind or format" in failure(example, copy)
    for other in ("", "{", "[]", '{"kind": 3}'):
        (copy / "net.so.json").write_text(other)
        assert "net.so" in failure(example, copy)
    (copy / "net.so.json").write_text(text)
    subprocess.run(["g++", "-shared", "-x", "c", "/dev/null", "-o", copy / "net.so"], check=True)
    assert "no function main: expected a network" in failure(example, copy)


def test_wrong_files(example: Path, copy: Path) -> None:
    assert "cannot open none.bin" in failure(example, copy, "net.so", "none.bin", *FILES[1:])
    unwritable = failure(example, copy, "net.so", *FILES[:3], "none/best.bin")
    assert "cannot write the output none/best.bin" in unwritable
    bytes_of_x = 4 * 3 * 23 * 25
    for size in (0, bytes_of_x - 4, bytes_of_x + 1):
        (copy / "x.bin").write_bytes(bytes(size))
        said = f"x.bin has {size} bytes: expected an input of {bytes_of_x} bytes"
        assert said in failure(example, copy)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: tvm_example LIBRARY INPUT... OUTPUT...\n"),
        (["net.so"], "there are 0 files: expected 2 input(s) and 2 output(s)\n"),
        (["net.so", *FILES[1:]], "there are 3 files: expected 2 input(s) and 2 output(s)\n"),
        (["net.so", *FILES, "z.bin"], "there are 5 files: expected 2 input(s) and 2 output(s)\n"),
    ],
)
def test_wrong_command_lines(
    example: Path, folders: dict[int, Path], words: list[str], said: str
) -> None:
    done = run(example, folders[1], *words)
    assert done.returncode == 2 and done.stderr.endswith(said)
