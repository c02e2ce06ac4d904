"""A disk that is full: an error, nothing half-written, nothing left behind, nothing lost."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx_models import Graph, compiled, saved

import tvm_directconv as dc
from tvm_directconv.cli import main
from tvm_directconv.errors import DirectConvError
from tvm_directconv.network.compile import compile_network
from tvm_directconv.toolchain import object_code

LAYER = "ic8ih6oc8kh3ph1"


@pytest.fixture(scope="module")
def conv() -> dc.CompiledConv:
    return dc.build(LAYER, blocking="model")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    g = Graph(x=(1, 3, 8, 8))
    return saved(g.model(g.conv("x", 5, 3, 3, 3)), tmp_path_factory.mktemp("model"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def no_space(file: int) -> None:
    """Fail as ``os.fsync`` does: many disks notice then only."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def everything(folder: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


WRITERS: dict[str, Callable[[dc.CompiledConv, Path], object]] = {
    "library": lambda conv, model: conv.export("out.so"),
    "object": lambda conv, model: conv.export("out.o"),
    "assembly": lambda conv, model: conv.export("out.s"),
    "C": lambda conv, model: conv.export_c("new/c"),
    "network": lambda conv, model: compile_network(model, "out.so", blocking="model"),
    "network, C": lambda conv, model: compile_network(model, "new/c", blocking="model", emit="c"),
    "quantised model": lambda conv, model: dc.quantize_network(
        model, "out.onnx", [{"x": np.ones((3, 8, 8))}]
    ),
    "text": lambda conv, model: _cli("bench", LAYER, "--repeat", "1", "-o", "out.csv"),
}


def _cli(*words: str) -> None:
    assert main(words) == 2
    raise DirectConvError("cannot write, as the command has said")


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_changes(
    writer: str,
    conv: dc.CompiledConv,
    model: Path,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    for name in ("out.so", "out.so.json", "out.o", "out.s", "out.csv", "out.onnx"):
        (here / name).write_text("old")
    before = everything(here)
    with pytest.raises(DirectConvError, match=r"cannot (write|make)"):
        WRITERS[writer](conv, model)
    assert everything(here) == before


def test_a_folder_of_c_that_is_there_stays(
    conv: dc.CompiledConv, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv.export_c("net")
    (here / "net" / "mine").touch()
    before = everything(here)
    other = dc.build("ic8ih6oc8kh1", blocking="model")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(DirectConvError, match=r"cannot write into 'net' \(No space left"):
            other.export_c("net")
    assert everything(here) == before
    other.export_c("net")
    assert len(list((here / "net" / "kernels").iterdir())) == 1
    assert (here / "net" / "mine").exists()


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_llvm_does_not_end_the_process(
    conv: dc.CompiledConv, here: Path, limited: Callable[[int], None]
) -> None:
    code = object_code(conv._module)
    limited(4096)
    with pytest.raises(DirectConvError, match=r"File too large.*4096 bytes here.*ulimit -f"):
        conv.export("out.o")
    assert not everything(here)
    limited(len(code))
    assert object_code(conv._module) == code


def test_arrays(here: Path, limited: Callable[[int], None]) -> None:
    g = Graph(x=(1, 3, 32, 32))
    compiled(g.model(g.conv("x", 8, 3, 1, 1)), here)
    (library,) = here.glob("*.so")
    for name in ("y.npy", "y.npz", "y.other"):
        (here / name).write_text("old")
    before = everything(here)
    limited(8192)
    for name in ("y.npy", "y.npz", "y.other", "new.npy"):
        assert main(["run", str(library), "--output", name]) == 2
    assert everything(here) == before


@pytest.mark.parametrize("buffered", [True, False])
def test_standard_streams(buffered: bool) -> None:
    program = [sys.executable, *([] if buffered else ["-u"]), "-m", "tvm_directconv"]
    with open("/dev/full", "w") as full:
        for words in (["devices"], ["layers", "vgg16", "--format", "json"]):
            process = subprocess.run(
                [*program, *words], stdout=full, stderr=subprocess.PIPE, text=True
            )
            assert process.returncode == 2
            assert process.stderr == "tvm-directconv: error: [Errno 28] No space left on device\n"
        assert subprocess.run([*program, "layers", "none"], stderr=full).returncode == 2
    closed = 'exec "$@" <&- >&- 2>&-'
    for words, status in ((["devices"], 0), (["layers", "none"], 2)):
        process = subprocess.run(["sh", "-c", closed, "sh", *program, *words], text=True)
        assert process.returncode == status
