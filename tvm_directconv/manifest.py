"""Manifests: what stands beside a library, checked before anything in it is used."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import reading, versions
from .errors import LibraryError, similar_file
from .kinds import DIGEST, NAMES, THREADS, Kind, Table, printable, problem, shown

FORMAT = 1

_NAME = Kind(
    "a name as LLVM has them",
    lambda v: isinstance(v, str) and bool(re.fullmatch("[\\w.-]{1,99}", v)),
)
TARGET: Table = {
    "kind": Kind("'llvm'", lambda v: v == "llvm"),
    "mtriple": _NAME,
    "mcpu": _NAME,
    "mattr": NAMES,
    "mfloat-abi": _NAME,
    "num-cores": THREADS,
}
"""What a TVM target in a manifest is made of."""
_OPTIONAL = ("mcpu", "mattr", "mfloat-abi", "num-cores")
_SEAL = "manifest_sha256"


class Sort(NamedTuple):
    """What manifests are of, in the words of messages."""

    what: str
    loader: str
    again: str


CONVOLUTION = Sort("a compiled convolution", "tvm_directconv.load", "export it again")
NETWORK = Sort("a network", "tvm_directconv.load_network", "compile the model again")
NETWORK_KIND = "network"
"""What the manifest of a network says it is of; that of a convolution says nothing."""


def manifest_path(library: Path) -> Path:
    """Return where the manifest of an exported file is."""
    return Path(f"{library}.json")  # Of whatever path: some have no last name.


def sort_of(found: Mapping[str, Any]) -> Sort:
    """Return what a manifest is of."""
    return NETWORK if found.get("kind") == NETWORK_KIND else CONVOLUTION


def digest_of(library: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a library's file.

    Raises
    ------
    LibraryError
        If it cannot be read.
    """
    try:
        # In pieces: a network has its weights in the library.
        with reading.open_regular(library) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, reading.Unreadable) as error:
        reason = getattr(error, "strerror", None) or error
        raise LibraryError(
            f"cannot read library {os.fspath(library)!r} ({reason}){similar_file(library)}: "
            "expected a .so that 'tvm-directconv compile' wrote"
        ) from None


def completed(values: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """Return a manifest with what all of them say.

    Parameters
    ----------
    values : mapping
        What it says.
    digest : str
        :func:`digest_of` the library.
    """
    about = {"tvm-directconv": versions.__version__, **versions.pins()}
    whole = {"format": FORMAT, **values, "versions": about, "sha256": digest}
    return {**whole, _SEAL: _seal(whole)}


def read(path: Path, digest: str, sort: Sort, table: Table) -> dict[str, Any]:
    """Return what a manifest says.

    Parameters
    ----------
    path : Path
        The manifest.
    digest : str
        :func:`digest_of` the library beside it.
    sort : Sort
        What it should be of.
    table : mapping
        What it should say, besides what all of them do.

    Raises
    ------
    LibraryError
        If it is missing, malformed, of another sort or format, was changed since it was written,
        or was written for another library.
    """
    name = printable(str(path))
    if not os.path.lexists(path):
        raise LibraryError(
            f"{name} does not exist: expected the manifest that is written beside a library; copy "
            f"both, or {sort.again}"
        )
    try:
        found = reading.json_object(path)
    except reading.Unreadable as error:
        raise LibraryError(
            f"{name} is no manifest of {sort.what} ({error}): copy it again, or {sort.again}"
        ) from None
    other = sort_of(found)
    if found.get("sha256") is not None and other != sort:
        raise LibraryError(
            f"{name} is the manifest of {other.what}: expected that of {sort.what}; this one is "
            f"loaded by {other.loader}"
        )
    if found.get("format") != FORMAT:
        raise LibraryError(
            f"{name} has format {shown(found.get('format'))}: expected {FORMAT}; {sort.again} "
            "with this version of tvm-directconv"
        )
    complete = {"target": TARGET, **table, "sha256": DIGEST, _SEAL: DIGEST}
    wrong = problem(found, complete, optional=_OPTIONAL)
    if wrong is None and (unknown := found["target"].keys() - TARGET.keys()):
        wrong = f"target has {shown(min(unknown))}: expected {', '.join(TARGET)}"
    if wrong is None and found[_SEAL] != _seal(found):
        wrong = "it was changed after it was written, see " + _SEAL
    if wrong:
        raise LibraryError(f"{name} is no manifest of {sort.what} ({wrong}): {sort.again}")
    if found["sha256"] != digest:
        raise LibraryError(
            f"{name} was written for another library than the one beside it (their SHA-256 "
            f"differ): one of the two is stale; {sort.again}, or copy both"
        )
    return found


def _seal(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a manifest says, whatever its white space."""
    said = {key: value for key, value in values.items() if key != _SEAL}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
