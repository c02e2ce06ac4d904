"""Files that are written whole or not at all.

What is unfinished lies in a scratch folder on the file system of its destination, to be renamed
into place. A process keeps its scratch folders locked. Those that nobody has locked are of
processes that were killed; they go when the next one is made in the same place.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import DirectConvError, ToolchainError

_PREFIX = ".tvm_directconv-"


@contextlib.contextmanager
def scratch(parent: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Make a folder for what is unfinished, and remove it in the end.

    Parameters
    ----------
    parent : str or path, optional
        The folder it is in: that of the destination, for :func:`place`. If not given, the one for
        temporary files.

    Raises
    ------
    OSError
        If it cannot be made in `parent`.
    ToolchainError
        If there is no folder for temporary files.
    """
    if parent is not None:
        folder, lock = _locked_folder(Path(parent))
    else:
        try:
            folder, lock = _locked_folder(Path(tempfile.gettempdir()))
        except OSError as error:
            raise ToolchainError(
                f"no folder for temporary files can be written ({error.strerror}): set TMPDIR to "
                "one that you may write to, with space left"
            ) from None
    process = os.getpid()
    try:
        yield folder
    finally:
        # A process that was forked meanwhile comes by here, too.
        if os.getpid() == process:
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(where: Path) -> tuple[Path, int]:
    _remove_abandoned(where)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=where))
        # Before it is locked, another process may take it for an abandoned one.
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            with contextlib.suppress(OSError):  # Some file systems have no locks.
                fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.exists(folder):
                return folder, lock
            os.close(lock)


def _remove_abandoned(where: Path) -> None:
    with os.scandir(where) as entries:
        found = [entry.path for entry in entries if entry.name.startswith(_PREFIX)]
    for path in found:
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def destination(path: str | os.PathLike[str]) -> Path:
    """Return what a file in a :func:`scratch` is to become, for messages; others stay."""
    draft = Path(path)
    is_draft = draft.parent.name.startswith(_PREFIX)
    return draft.parent.parent / draft.name if is_draft else draft


def place(drafts: Mapping[Path, Path]) -> None:
    """Put finished files in their places, all of them or none.

    They are on the disk before any is renamed. What is replaced keeps its mode. Links are followed,
    and what is no regular file, such as ``/dev/null``, is written to.

    Parameters
    ----------
    drafts : mapping
        Destinations by file; each file in a :func:`scratch` of its destination's folder.

    Raises
    ------
    OSError
        If it cannot be done.
    """
    renames = []
    for draft, given in drafts.items():
        path = Path(os.path.realpath(given))
        if path.exists() and not path.is_file():
            with open(draft, "rb") as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
            continue
        if path.exists():
            draft.chmod(stat.S_IMODE(path.stat().st_mode))
        _sync(draft)
        renames.append((draft, path))
    for draft, path in renames:
        os.replace(draft, path)
    for folder in {path.parent for _, path in renames}:
        _sync_folder(folder)


def replace(draft: Path, path: Path) -> None:
    """Put one finished file in the place of whatever file is there, with its own mode."""
    _sync(draft)
    os.replace(draft, path)
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # Not every file system can.
        _sync(path)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


@contextlib.contextmanager
def draft_of(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to instead of another one, which gets the content in the end.

    Parameters
    ----------
    path : str or path
        The destination. It stays as it is if there is an exception.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    target = Path(os.path.realpath(path))
    is_device = target.exists() and not target.is_file()
    # Nothing is made beside a device or a pipe.
    with scratch(None if is_device else target.parent) as folder:
        draft = folder / target.name
        yield draft
        place({draft: target})


def write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file whole: text in UTF-8, or bytes; as :func:`draft_of` otherwise."""
    with draft_of(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def append(file: int, content: bytes) -> None:
    """Append to an open file, and to what is on the disk: everything or nothing.

    Parameters
    ----------
    file : int
        Descriptor of a file that is opened for appending, and that nobody else writes to.
    content : bytes

    Raises
    ------
    OSError
        If it cannot be written.
    """
    size = os.fstat(file).st_size
    try:
        if os.write(file, content) != len(content):
            raise OSError(errno.ENOSPC, "only a part could be written, the disk is full")
        os.fsync(file)
    except BaseException:
        os.ftruncate(file, size)
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Make a folder and those it is in, unless they exist; after an exception they are gone."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # Others may have put something into it.
                folder.rmdir()
        raise


@contextlib.contextmanager
def explained(
    path: str | os.PathLike[str], error: type[DirectConvError], into: bool = False
) -> Iterator[None]:
    """Turn what the system says while a file is written into an error of this package.

    Parameters
    ----------
    path : str or path
        What is written, for the message.
    error : type
        The error's class.
    into : bool
        Whether it is a folder that several files are written into.
    """
    try:
        yield
    except OSError as found:
        name = os.fspath(destination(path))
        wanted = "a folder that" if into else "a file in a folder that exists and that"
        raise error(
            f"cannot write {'into ' if into else ''}{name!r} "
            f"({found.strerror or found}): expected {wanted} you may write to, with space left"
        ) from None


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise if a file cannot be written: better before a long measurement than after it.

    Raises
    ------
    OSError
        With the reason.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if target.exists() and not target.is_file():
        # Not opened: a pipe would end for its reader as soon as it is closed.
        if not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    else:
        with scratch(target.parent) as folder:
            (folder / target.name).touch()
