"""What a rival is: a library that computes convolutions, and how it is asked to."""

import importlib
import importlib.metadata
import importlib.util
import math
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...errors import DirectConvError
from ...quantization import Quantization
from ...workload import ConvWorkload

DIRECT = "direct"
IM2COL = "im2col"
WINOGRAD = "Winograd"
FFT = "FFT"
OWN_CHOICE = "its own choice"
ALL_PRODUCTS = (DIRECT, IM2COL)
"""Algorithms with as many multiplications as a convolution has, but for those with padding."""
ALGORITHMS = (*ALL_PRODUCTS, WINOGRAD, FFT, OWN_CHOICE)

NETWORK_SHAPE = (1, 3, 224, 224)
"""Of a network's input: one image."""
NETWORK_DTYPES = ("float32", "bf16", "int8")
"""Number types that networks are compared in."""
DEFAULTS = "defaults"
"""Instead of one of these: what a library takes by itself, given the network in float32."""

_SAID = 300  # characters


class NotHere(DirectConvError):
    """Why a contestant cannot take part on this machine."""


class Unsupported(DirectConvError):
    """Why a contestant does not compute a certain convolution or network."""


class Failed(DirectConvError):
    """What went wrong in a contestant."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A layer or network that is ready to be computed again and again.

    Attributes
    ----------
    call : callable
        Computes it once. All that can be done ahead of time is done.
    output : callable
        Returns what the last call computed: of a layer NCHW. Not timed.
    algorithm, implementation : str, optional
        What the library took, where that differs from case to case, and what it says of it.
    extra_bytes : int, optional
        Memory beside input, weights and output, where the library or the code says how much.
    compile_seconds : float, optional
        What it took to make the code.
    blocking, blocking_source : str, optional
        Block sizes and where they are from.
    flops : int, optional
        Operations of one call, of what is not the subject itself.
    allowed : callable, optional
        Returns the GFLOP/s that the clock allows at the moment, of the burst.
    feed : callable, optional
        Has a network read another image. If there is none, it reads the array that it was given,
        whatever that holds.
    precision : callable, optional
        Returns the number types that a network multiplies in, as the library says.
    """

    call: Callable[[], object]
    output: Callable[[], np.ndarray]
    algorithm: str | None = None
    implementation: str | None = None
    extra_bytes: int | None = None
    compile_seconds: float | None = None
    blocking: str | None = None
    blocking_source: str | None = None
    flops: int | None = None
    allowed: Callable[[], float] | None = None
    feed: Callable[[np.ndarray], object] | None = None
    precision: Callable[[], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a contestant makes a network of.

    Attributes
    ----------
    dtype : str
        What to compute it in: one of :data:`NETWORK_DTYPES`, or :data:`DEFAULTS`.
    onnx : str
        An ONNX file of it, in a folder where nobody else writes: for int8 it is quantised, in the
        QDQ format, else in float32.
    float32 : str
        The ONNX file in float32, there too, for those that quantise by themselves.
    samples : str
        A .npy file of images, which they find the ranges of tensors with.
    """

    dtype: str
    onnx: str
    float32: str
    samples: str


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A library in one well-defined form.

    A process of its own is told the class and the fields of a contestant, and makes it again.
    Instances hold nothing else.

    Attributes
    ----------
    name : str
        In rows and tables.
    algorithm : str
        Class of what it computes with, one of :data:`ALGORITHMS`. :data:`OWN_CHOICE` if it takes
        Winograd's algorithm or FFT where it pays, whether it says so or not.
    includes : str
        One sentence: what is within the time of a layer and what is not.
    colour, marker : str
        What stands for it in all plots, as Matplotlib has them; no two have the same colour. If
        there is none, plots choose one.
    defaults : bool
        Whether it computes networks as users run the library: it is given the model in float32 and
        chooses number type and algorithm by itself. Else it computes in the type that is asked for.
    title : str
        Name of the library.
    packages, network_packages : mapping of str to str
        Modules that it needs, the library itself first, and what for; for networks additionally.
    install : str
        Command that installs it.
    precisions : sequence of str
        Those that it computes single layers in.
    network_dtypes : sequence of str
        Those of :data:`NETWORK_DTYPES` that it computes networks in.
    """

    name: str
    algorithm: str = OWN_CHOICE
    includes: str = ""
    colour: str = ""
    marker: str = ""
    defaults: bool = False

    title: ClassVar[str]
    packages: ClassVar[Mapping[str, str]] = {}
    network_packages: ClassVar[Mapping[str, str]] = {}
    install: ClassVar[str] = "pip install 'tvm-directconv[rivals]'"
    precisions: ClassVar[Sequence[str]] = ("float32",)
    network_dtypes: ClassVar[Sequence[str]] = ("float32",)

    def check(self, network: bool) -> None:
        """Look whether what it needs is here, without loading it.

        Raises
        ------
        NotHere
            If not.
        """
        packages = {**self.packages, **(self.network_packages if network else {})}
        for module, purpose in packages.items():
            if not importlib.util.find_spec(module):
                raise NotHere(
                    f"Python package {module}{purpose} is not installed; try: {self.install}"
                )

    def environment(self, threads: int) -> dict[str, str | None]:
        """Return variables for its process; those that are None are taken away."""
        return {}

    def load_library(self) -> None:
        """Load all code, so that memory is counted from there."""
        importlib.import_module(next(iter(self.packages)))

    def library(self) -> str:
        """Return name and version of the loaded library."""
        return f"{self.title} {importlib.metadata.version(next(iter(self.packages)))}"

    def unsupported(self, workload: ConvWorkload) -> str | None:
        """Return why it does not compute a convolution, or None."""
        return None

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        """Prepare a convolution of an input and weights, both plain.

        Weights, and where the library has a layout of its own the input, are brought into it here.
        What is returned keeps the arrays if it reads them.
        """
        raise Unsupported(f"{self.name} computes no single layers")

    def check_dtype(self, dtype: str) -> None:
        """Look whether it computes networks in a number type.

        Raises
        ------
        Unsupported
            If not.
        """
        if dtype not in (*self.network_dtypes, DEFAULTS):
            raise Unsupported(
                f"{self.name} computes no networks in {dtype}: expected "
                f"{' or '.join(self.network_dtypes)}"
            )

    def convert(self, source: Source, threads: int) -> Path:
        """Return the file that the library loads, made of a source and put beside it."""
        return Path(source.onnx)

    def prepare_network(self, path: Path, threads: int, x: np.ndarray, dtype: str) -> Prepared:
        """Load a network that :meth:`convert` returned, for an input in float32.

        Parameters
        ----------
        path : Path
        threads : int
        x : numpy.ndarray
        dtype : str
            As in :class:`Source`.
        """
        raise Unsupported(f"{self.name} computes no networks")


def types_of(names: Iterable[str]) -> str:
    """Return number types that convolutions and dense layers have, with their counts if several."""
    counts = Counter(names)
    if len(counts) < 2:
        return "".join(counts)
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())


QUANTIZED = ("uint8", "int8")
"""Precisions of layers whose outputs are of the same type as their pixels."""


def quantization_of(workload: ConvWorkload) -> Quantization:
    """Return what numbers of a quantised layer stand for: the same for all contestants.

    Pixels and weights are drawn from all that their types have, with scales of 1 and no zero
    points, and sums of so many products then are outputs from one end of their type to the other.
    """
    products = math.prod(workload.weight_shape[1:])
    return Quantization(output_scale=float(np.float32(147 * 74 / 60 * math.sqrt(products))))


def only_plain(
    workload: ConvWorkload,
    *,
    batch: bool = True,
    groups: bool = True,
    dilation: bool = True,
    unequal_padding: bool = True,
) -> str | None:
    """Return the reason why a convolution has something that is not allowed to it, or None."""
    top, left, bottom, right = workload.padding
    found = {
        f"a batch of {workload.batch}; expected 1": not batch and workload.batch > 1,
        f"{workload.groups} groups; expected 1": not groups and workload.groups > 1,
        f"dilation {workload.dilation}; expected none": not dilation
        and workload.dilation != (1, 1),
        f"padding {workload.padding} (top, left, bottom, right); expected the same on both sides": (
            not unequal_padding and (top, left) != (bottom, right)
        ),
    }
    return next((reason for reason, holds in found.items() if holds), None)


def run_converter(command: list[str]) -> None:
    """Run a program.

    Raises
    ------
    Failed
        If it fails, with the end of what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise Failed(f"{end_of(done.stderr or done.stdout)} (status {done.returncode})")


def end_of(text: str) -> str:
    """Return the end of what a program said, where the reason usually is."""
    words = " ".join(text.split())
    return f"... {words[-_SAID:]}" if len(words) > _SAID else words or "it said nothing"
