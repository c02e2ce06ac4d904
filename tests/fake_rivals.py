"""Contestants for tests of the machinery: each does, or does wrong, what its field says.

Processes of contestants import this, so it imports nothing that takes long.
"""

import json
import os
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from tvm_directconv import ConvWorkload, conv2d_reference
from tvm_directconv.bench.rivals.base import (
    NETWORK_DTYPES,
    Contestant,
    Failed,
    NotHere,
    Prepared,
    Source,
)
from tvm_directconv.bench.rivals.onnxruntime import OnnxRuntime
from tvm_directconv.bench.rivals.turns import THREAD_VARIABLES


@dataclass(frozen=True, kw_only=True)
class Fake(Contestant):
    """A contestant that computes with the reference.

    Attributes
    ----------
    does : str
        What it does beside that.
    channels : int
        Input channels of the layers that it does it with; 0 for all.
    log : str
        A file that gets name and number of threads for each call, if not empty.
    """

    name: str = "fake"
    includes: str = "Everything."
    does: str = ""
    channels: int = 0
    log: str = ""

    title: ClassVar = "NumPy"
    packages: ClassVar = {"numpy": ""}

    def check(self, network: bool) -> None:
        if self.does == "be missing":
            raise NotHere("it is missing")

    def environment(self, threads: int) -> dict[str, str | None]:
        return {"UNWANTED": None, "WANTED": str(threads)}

    def load_library(self) -> None:
        if self.does == "not load":
            raise ImportError("no such library")

    def unsupported(self, workload: ConvWorkload) -> str | None:
        return "too odd" if self.does == "refuse" else None

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        out = conv2d_reference(x, weight, workload).astype(np.float32)
        does = self.does if self.channels in (0, workload.in_channels) else ""
        if does == "crash":
            print("an illegal instruction", flush=True)  # Which stdout is does not matter.
            os.kill(os.getpid(), signal.SIGILL)
        if does == "hang":
            time.sleep(1000)
        if does == "raise":
            raise Failed("it is broken")
        if does == "raise anything":
            raise ZeroDivisionError("at some length:\nby zero")
        if does == "be wrong":
            out[0, 0, 0, 0] += 1
        if does == "be nothing":
            out[0, 0, 0, 0] = np.nan
        if does == "be short":
            out = out[:, 1:]
        taken = np.ones(0)
        calls = 0

        def call() -> None:
            nonlocal calls, taken
            calls += 1
            if does == "crash later" and calls > 4:
                os.kill(os.getpid(), signal.SIGILL)
            if does == "hang later" and calls > 4:
                time.sleep(1000)
            if does == "take memory":
                taken = np.ones(6 * 2**20)  # So much that it is returned when it is freed.
                taken = np.ones(0)
            if self.log:
                with Path(self.log).open("a") as log:
                    print(f"{self.name}{threads}", file=log)
            time.sleep(12e-3)  # Longer than warming up, so that calls can be counted.

        told = {name: os.environ.get(name) for name in (*THREAD_VARIABLES, "UNWANTED", "WANTED")}
        return Prepared(
            call=call,
            output=lambda: out,
            implementation=json.dumps({**told, "threads": threads}),
            compile_seconds=0.5,
            blocking="blocks",
            blocking_source="nowhere",
        )


@dataclass(frozen=True, kw_only=True)
class FakeNetwork(OnnxRuntime):
    """A contestant for networks that does something to what ONNX Runtime computes.

    Attributes
    ----------
    does : str
    log : str
        A file that gets what it was given, if not empty.
    """

    name: str = "fake network"
    does: str = ""
    log: str = ""

    network_dtypes: ClassVar = NETWORK_DTYPES

    def convert(self, source: Source, threads: int) -> Path:
        if self.log:
            # In all forms of a network inputs, and what is written of them, are the same.
            quantized = [
                b"QuantizeLinear" in Path(p).read_bytes() for p in (source.onnx, source.float32)
            ]
            samples = np.load(source.samples)
            told = [self.name, source.dtype, *quantized, samples.shape, str(samples.dtype)]
            with Path(self.log).open("a") as log:
                print(json.dumps(told), file=log)
        return Path(source.onnx)

    def prepare_network(self, path: Path, threads: int, x: np.ndarray, dtype: str) -> Prepared:
        given = x.copy()
        prepared = super().prepare_network(path, threads, x, dtype)
        if self.does == "say nothing":
            prepared = replace(prepared, precision=None)
        if self.does == "copy":
            # As some libraries do, it keeps an image of its own.
            own = x.copy()
            mine = super().prepare_network(path, threads, own, dtype)
            prepared = replace(mine, feed=lambda image: np.copyto(own, image))

        def output() -> np.ndarray:
            found = prepared.output()
            if self.does == "be the same":
                np.copyto(x, given)
                prepared.call()
                return prepared.output()
            return found

        return replace(prepared, output=output)


@dataclass(frozen=True, kw_only=True)
class OnlyFloats(OnnxRuntime):
    """A contestant that computes networks in one type, and converts them."""

    name: str = "only floats"

    network_dtypes: ClassVar = ("float32",)

    def convert(self, source: Source, threads: int) -> Path:
        raise ZeroDivisionError("it was asked to")


@dataclass(frozen=True, kw_only=True)
class Converter(OnnxRuntime):
    """A contestant whose file of a network must not be there before."""

    name: str = "converter"

    def convert(self, source: Source, threads: int) -> Path:
        folder = Path(source.onnx).with_suffix(".converted")
        folder.mkdir()
        return Path(shutil.copy(source.onnx, folder))
