"""What can be made again, kept on disk: compiled kernels and programs.

An entry ends with a digest of itself and its name, which is checked each time. What is damaged, or
what others may have written, is as good as missing.
"""

import atexit
import contextlib
import hashlib
import os
import shutil
import stat
import warnings
from functools import lru_cache
from pathlib import Path

from . import files
from .errors import ToolchainError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_DIGEST = 32


class CacheWarning(UserWarning):
    """The cache is not used, and why."""


def folder(name: str = "") -> Path:
    """Return a folder for entries, and make it.

    Parameters
    ----------
    name : str, optional
        A folder in that of this package, which is ``$XDG_CACHE_HOME/tvm_directconv``, or
        ``~/.cache/tvm_directconv``.

    Returns
    -------
    Path
        That folder. One that lasts as long as this process, with a :class:`CacheWarning`, if others
        than this user may write to it: entries are code.

    Raises
    ------
    ToolchainError
        If it cannot be made.
    """
    top = _home() / "tvm_directconv"
    path = top / name
    try:
        top.mkdir(0o700, parents=True, exist_ok=True)
        path.mkdir(0o700, exist_ok=True)
        reasons = {each: _distrust(each) for each in (top, path)}
    except OSError as error:
        raise ToolchainError(
            f"cannot create the cache directory {path}: {error}. "
            "Set XDG_CACHE_HOME to a directory that can be written"
        ) from error
    for each, reason in reasons.items():
        if reason:
            _warn_once(
                f"the cache {each} is not used: {reason}, and what is in it is run. Remove it, "
                "or set XDG_CACHE_HOME to a directory of your own"
            )
            path = _of_process(os.getpid()) / name
            path.mkdir(exist_ok=True)
    return path


def _home() -> Path:
    """Return where caches of programs are, as the XDG base directories say."""
    found = os.environ.get("XDG_CACHE_HOME")
    if found and os.path.isabs(found):
        return Path(found)
    try:
        home = Path.home() / ".cache"
    except RuntimeError as error:
        raise ToolchainError(
            f"there is no place for a cache: {error}. Set XDG_CACHE_HOME to a directory that can "
            "be written"
        ) from None
    if found:
        _warn_once(
            f"XDG_CACHE_HOME is {found!r}: expected an absolute path; the cache is in {home}"
        )
    return home


def _distrust(path: Path) -> str | None:
    """Return why a folder is not used, having closed it to others if it is."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}"
    if status.st_mode & _OTHERS_WRITE:
        return f"others may write to it (its mode is {stat.S_IMODE(status.st_mode):o})"
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o700)
    return None


@lru_cache
def _of_process(process: int) -> Path:
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(files.scratch())


@lru_cache
def _warn_once(text: str) -> None:
    warnings.warn(text, CacheWarning, stacklevel=4)


def load(path: Path) -> bytes | None:
    """Return an entry, None if there is none that can be trusted."""
    try:
        # A pipe must not block, and a link may lead anywhere.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(number, "rb") as file:
            status = os.fstat(number)
            if (
                not stat.S_ISREG(status.st_mode)
                or status.st_uid != os.geteuid()
                or status.st_mode & _OTHERS_WRITE
            ):
                return None
            found = file.read()
    except OSError:
        return None
    content = found[:-_DIGEST]
    return content if found[-_DIGEST:] == _digest(path, content) else None


def store(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write an entry, in place of what is there.

    What has a digest behind it is still an object file, a library or a program.

    Raises
    ------
    ToolchainError
        If it cannot be written.
    """
    with files.explained(path, ToolchainError), files.scratch(path.parent) as scratch:
        draft = scratch / path.name
        draft.write_bytes(content + _digest(path, content))
        draft.chmod(mode)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        files.replace(draft, path)


def _digest(path: Path, content: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + b"\0" + content).digest()
