"""What scripts/compare_arm runs in an emulated Python: one network, once, between marks.

It is told whom to run, with what, by JSON, and prints which library that was.
"""

import contextlib
import ctypes
import importlib
import json
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tvm_directconv.bench.rivals.base import DIRECT, Contestant, Failed, Prepared
from tvm_directconv.layout import aligned_zeros
from tvm_directconv.versions import __version__


@dataclass(frozen=True, kw_only=True)
class Compiled(Contestant):
    """This package, as C that is linked to a library.

    Attributes
    ----------
    arena_bytes : int
        Memory that its function needs.
    """

    name: str = "ours"
    algorithm: str = DIRECT
    arena_bytes: int = 0

    title: ClassVar = "tvm-directconv"

    def load_library(self) -> None:
        pass

    def library(self) -> str:
        return f"{self.title} {__version__}"

    def prepare_network(self, path: Path, threads: int, x: np.ndarray, dtype: str) -> Prepared:
        library = ctypes.CDLL(str(path))
        weights = ctypes.c_ubyte.in_dll(library, "model_weights")
        library.directconv_error.restype = ctypes.c_char_p
        arena = aligned_zeros((self.arena_bytes,), "uint8")
        out = aligned_zeros((1, 1000))
        places = [x.ctypes.data, out.ctypes.data, ctypes.addressof(weights), arena.ctypes.data]
        arguments = [*map(ctypes.c_void_p, places), ctypes.c_size_t(self.arena_bytes)]

        def call(_kept: object = (x, arena)) -> None:
            if library.model_run(*arguments):
                raise Failed(library.directconv_error().decode())

        return Prepared(call=call, output=lambda: out)


def contestant_of(spec: dict[str, Any]) -> Contestant:
    """Make a contestant of its module, class and fields."""
    kind = getattr(importlib.import_module(spec["module"]), spec["class"])
    made: Contestant = kind(**spec["fields"])
    return made


@contextlib.contextmanager
def counted() -> Iterator[None]:
    """Have what is done meanwhile counted, by the instructions that it begins and ends with."""
    ret = 0xD65F03C0
    begin, end = (0xD503201F | number << 5 for number in (100, 101))
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    with mmap.mmap(-1, mmap.PAGESIZE, prot=protection) as code:
        code.write(struct.pack("<4I", begin, ret, end, ret))
        place = ctypes.c_char.from_buffer(code)
        functions = [ctypes.CFUNCTYPE(None)(ctypes.addressof(place) + at) for at in (0, 8)]
        functions[0]()
        yield
        functions[1]()
        del place  # Or the memory could not be given back.


def main() -> None:
    job = json.loads(sys.argv[1])
    contestant = contestant_of(job)
    contestant.load_library()
    loaded = np.load(job["input"])
    x = aligned_zeros(loaded.shape, loaded.dtype)
    x[...] = loaded
    prepared = contestant.prepare_network(Path(job["path"]), 1, x, job["dtype"])
    prepared.call()  # Some plan in the first call, or bring weights into their layouts.
    with counted():
        prepared.call()
    np.save(job["output"], np.asarray(prepared.output()))
    print(json.dumps({"library": contestant.library()}), flush=True)
    os._exit(0)  # Some libraries crash as they are left.


if __name__ == "__main__":
    main()
