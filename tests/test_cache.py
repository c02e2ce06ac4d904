"""The cache: private, and nothing damaged or planted is taken from it."""

import os
import random
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx_models import Graph, assert_like_onnxruntime

from tvm_directconv import cache
from tvm_directconv.deploy.runner import build_runner
from tvm_directconv.errors import ToolchainError
from tvm_directconv.hardware.host import native
from tvm_directconv.toolchain import find_toolchain

KERNEL = b"\x7fELF, and what follows"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache._warn_once.cache_clear()
    yield tmp_path / "cache" / "tvm_directconv"
    cache._warn_once.cache_clear()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_private(home: Path) -> None:
    before = os.umask(0)
    try:
        entry = cache.folder("kernels") / "a.o"
        cache.store(entry, KERNEL)
    finally:
        os.umask(before)
    assert [mode_of(path) for path in (home, entry.parent, entry)] == [0o700, 0o700, 0o600]
    home.chmod(0o755)
    assert cache.folder() == home
    assert mode_of(home) == 0o700


@pytest.mark.parametrize(("part", "mode"), [("", 0o777), ("", 0o770), ("kernels", 0o702)])
def test_what_others_may_write_to_is_not_used(home: Path, part: str, mode: int) -> None:
    planted = cache.folder("kernels") / "a.o"
    cache.store(planted, KERNEL)
    (home / part).chmod(mode)
    with pytest.warns(cache.CacheWarning, match=rf"not used: others may write to it .*{mode:o}"):
        folder = cache.folder("kernels")
    assert home not in folder.parents
    assert cache.load(folder / "a.o") is None
    cache.store(folder / "b.o", KERNEL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.folder("kernels") == folder
    assert cache.load(folder / "b.o") == KERNEL
    assert mode_of(folder.parent) == 0o700


def test_what_belongs_to_others_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = cache.folder("kernels") / "a.o"
    cache.store(entry, KERNEL)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert cache.load(entry) is None
    with pytest.warns(cache.CacheWarning, match=rf"not used: it belongs to user {me}"):
        cache._distrust(home)
        monkeypatch.setattr(cache, "_of_process", lambda process: home.parent)
        cache.folder()


def test_a_relative_path_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    with pytest.warns(cache.CacheWarning, match="XDG_CACHE_HOME is 'here': expected an absolute"):
        assert cache.folder() == tmp_path / "home" / ".cache" / "tvm_directconv"
    assert not (tmp_path / "here").exists()


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ToolchainError, match=r"no place for a cache: .* Set XDG_CACHE_HOME"):
        cache.folder()


def test_every_flipped_bit_is_noticed(home: Path) -> None:
    entry = cache.folder() / "a.o"
    cache.store(entry, KERNEL)
    whole = entry.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        entry.write_bytes(damaged)
        assert cache.load(entry) is None
    for length in range(len(whole)):
        entry.write_bytes(whole[:length])
        assert cache.load(entry) is None
    entry.write_bytes(whole + b"\0")
    assert cache.load(entry) is None
    entry.write_bytes(whole)
    assert cache.load(entry) == KERNEL


def test_what_is_no_file_of_ours_is_replaced(home: Path, tmp_path: Path) -> None:
    entry, other = cache.folder() / "a.o", cache.folder() / "b.o"
    cache.store(other, KERNEL)

    def pipe() -> None:
        os.mkfifo(entry)

    def folder() -> None:
        entry.mkdir()
        (entry / "file").touch()

    def link() -> None:
        (tmp_path / "elsewhere").write_bytes(entry.read_bytes())
        entry.unlink()
        entry.symlink_to(tmp_path / "elsewhere")

    def foreign() -> None:
        entry.write_bytes(other.read_bytes())

    def open_to_others() -> None:
        entry.chmod(0o620)

    assert cache.load(entry) is None
    for spoil in (pipe, folder, link, foreign, open_to_others):
        if spoil in (pipe, folder):
            entry.unlink(missing_ok=True)
        spoil()
        assert cache.load(entry) is None, spoil
        cache.store(entry, KERNEL)
        assert cache.load(entry) == KERNEL, spoil
        assert mode_of(entry) == 0o600
    assert (tmp_path / "elsewhere").exists()
    assert {path.name for path in home.iterdir()} == {"a.o", "b.o"}


def test_damaged_kernels_are_compiled_again(home: Path, tmp_path: Path) -> None:
    g = Graph(x=(1, 3, 8, 8))
    y = g.conv("x", 5, 3, 3, 3, pads=[1] * 4)
    model = g.model(g.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]))
    assert_like_onnxruntime(model, tmp_path, blocking="model")
    entries = sorted((home / "kernels").iterdir())
    assert len(entries) > 1
    good = {path: path.read_bytes() for path in entries}
    chance = random.Random(5)
    for number, path in enumerate(entries):
        flipped = bytearray(good[path])
        flipped[chance.randrange(len(flipped))] ^= 16
        spoilt = bytes(flipped), b"", good[path][:-40], good[entries[number - 1]]
        path.write_bytes(spoilt[number % len(spoilt)])
    assert_like_onnxruntime(model, tmp_path, blocking="model")
    assert {path: path.read_bytes() for path in (home / "kernels").iterdir()} == good


def test_a_damaged_program_is_built_again(home: Path) -> None:
    toolchain = find_toolchain(native().triple)
    program = build_runner(toolchain)
    good = program.read_bytes()
    program.write_bytes(good[:-1] + b"\0")
    assert build_runner(toolchain) == program
    assert program.read_bytes()[:-32] == good[:-32]
    assert cache.load(program) is not None
