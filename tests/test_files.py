"""Files that are written whole or not at all."""

import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tvm_directconv import files
from tvm_directconv.errors import LibraryError

LIMIT = 2**12


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file become longer, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    files.write(tmp_path / "text", "ä\n")
    files.write(tmp_path / "bytes", b"\0\xff")
    assert content(tmp_path) == {"text": "ä\n".encode(), "bytes": b"\0\xff"}


@pytest.mark.usefixtures("small_files")
def test_what_does_not_fit_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for name in ("old", "new"):
        with pytest.raises(OSError, match="File too large"):
            files.write(tmp_path / name, bytes(LIMIT + 1))
    assert content(tmp_path) == {"old": b"old"}


def test_several_files_are_replaced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: int) -> None:
        if os.readlink(f"/proc/self/fd/{file}").endswith("second"):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    for name in ("first", "second"):
        (tmp_path / name).write_text("old")
    with pytest.raises(OSError, match="Input/output"), files.scratch(tmp_path) as scratch:
        drafts = {scratch / name: tmp_path / name for name in ("first", "second")}
        for draft in drafts:
            draft.write_text("new")
        files.place(drafts)
    assert content(tmp_path) == {"first": b"old", "second": b"old"}


def test_modes_are_those_of_other_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "new", "")
        (tmp_path / "old").touch()
        (tmp_path / "old").chmod(0o604)
        files.write(tmp_path / "old", "")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"new": 0o640, "old": 0o604}


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    files.write(tmp_path / "link", "1")
    files.write(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "there") == {"file": b"2"}


def test_devices_and_pipes_are_written_to(tmp_path: Path) -> None:
    files.write("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(OSError, match="No space left"):
        files.write("/dev/full", "x")
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    files.check_writable(tmp_path / "pipe")
    files.write(tmp_path / "pipe", "through")
    assert reader.communicate()[0] == b"through"


def test_errors_name_the_file_and_the_reason(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "file", tmp_path):
        with (
            pytest.raises(LibraryError, match=rf"cannot write '{path}' \(.*\): expected a file in"),
            files.explained(path, LibraryError),
        ):
            files.write(path, "")
    with (
        files.scratch(tmp_path) as scratch,
        pytest.raises(LibraryError, match=rf"cannot write '{tmp_path}/x' \(No space left"),
        files.explained(scratch / "x", LibraryError),
    ):
        files.write("/dev/full", "x")
    with pytest.raises(OSError, match="No such file"):
        files.check_writable(tmp_path / "nowhere" / "file")
    with pytest.raises(OSError, match="Is a directory"):
        files.check_writable(tmp_path)
    files.check_writable(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_what_killed_processes_leave_is_removed(tmp_path: Path) -> None:
    code = (
        "import sys, time, tvm_directconv.files as files\n"
        "with files.scratch(sys.argv[1]) as folder:\n"
        "    (folder / 'inner').mkdir()\n"
        "    print(flush=True)\n"
        "    time.sleep(100)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        (theirs,) = tmp_path.iterdir()
        (tmp_path / ".tvm_directconv-file").touch()
        (tmp_path / ".tvm_directconv-link").symlink_to(theirs)
        with files.scratch(tmp_path):
            assert theirs.exists()
        process.send_signal(signal.SIGKILL)
    with files.scratch(tmp_path) as mine:
        assert {path.name for path in tmp_path.iterdir()} == {
            mine.name,
            ".tvm_directconv-file",
            ".tvm_directconv-link",
        }


def test_a_forked_process_leaves_the_folder_alone(tmp_path: Path) -> None:
    child = 0
    with files.scratch(tmp_path) as folder:
        child = os.fork()
        if child:
            assert os.waitpid(child, 0)[1] == 0
            assert folder.exists()
    if not child:
        os._exit(0)


def test_new_folders_go_if_they_stay_empty(tmp_path: Path) -> None:
    with files.new_folder(tmp_path / "a" / "b"):
        pass
    with pytest.raises(KeyError), files.new_folder(tmp_path / "a" / "c" / "d"):
        raise KeyError
    with pytest.raises(KeyError), files.new_folder(tmp_path / "a"):
        raise KeyError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


@pytest.mark.usefixtures("small_files")
def test_no_part_of_a_line_is_appended(tmp_path: Path) -> None:
    with open(tmp_path / "log", "ab", buffering=0) as file:
        files.append(file.fileno(), b"first\n")
        with pytest.raises(OSError, match="the disk is full"):
            files.append(file.fileno(), bytes(LIMIT))
        files.append(file.fileno(), b"second\n")
    assert (tmp_path / "log").read_text() == "first\nsecond\n"
