"""The manifest of a network: what its code does not tell, in JSON beside the library."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

from .. import manifest as manifests
from ..denormals import FLUSH, MODE
from ..emit.program import Port, Unscheduled, memory_of
from ..kinds import (
    COUNT,
    TEXT,
    THREADS,
    Kind,
    Table,
    is_number,
    is_positive,
    is_text,
    is_whole,
    or_null,
)
from ..manifest import manifest_path
from ..workload import ConvWorkload

_DIMENSIONS = 32  # of an array, with every version of NumPy
_ELEMENTS = 2**44  # of an array, whose size in bytes everything can still count


@dataclass(frozen=True)
class Check:
    """What a library's results are beside those of a reference, on random input.

    Attributes
    ----------
    by : str
        The reference and its version, empty if there was no check.
    output : str
        Name of the output with the largest error.
    error : float
        Root mean square of the differences, over that of the reference's output.
    tolerance : float
        What it may be.
    note : str
        Why there was no check, or what else is to be known about it.
    """

    by: str = ""
    output: str = ""
    error: float = 0.0
    tolerance: float = 0.0
    note: str = ""

    def __str__(self) -> str:
        if not self.by:
            return f"not checked: {self.note}"
        return (
            f"error {self.error:.2g} beside {self.by} on random input, tolerance "
            f"{self.tolerance:.2g}" + (f"; {self.note}" if self.note else "")
        )


@dataclass(frozen=True)
class KeptLayer:
    """A layer that stays float32 because it loses too much in 16 bits.

    Attributes
    ----------
    layer : str
        Name of the model's node, failing that its place among the convolutions.
    workload : str
        Descriptor of what it convolves.
    error : float or None
        Of the outputs, if this layer alone is in 16 bits; None if they are not finite then.
    """

    layer: str
    workload: str
    error: float | None


@dataclass(frozen=True)
class Mixed:
    """What a network in 16 bits loses on samples, and which layers stay float32 for that.

    Attributes
    ----------
    dtype : str
        The type of the others, empty if no tolerance was given.
    tolerance : float
        What the error may be.
    error : float
        Root mean square of the differences from outputs of float32, over that of these, of the
        output where it is largest.
    error_without : float or None
        What it is with none of these layers in float32; None if outputs are not finite then.
    samples : str
        What it was found with.
    count : int
        How many samples these are.
    kept : tuple of KeptLayer
        Those that stay float32, the one that loses most first.
    """

    dtype: str = ""
    tolerance: float = 0.0
    error: float = 0.0
    error_without: float | None = None
    samples: str = ""
    count: int = 0
    kept: tuple[KeptLayer, ...] = ()

    def __str__(self) -> str:
        if not self.dtype:
            return "no tolerance was given"
        text = (
            f"error {self.error:.2g} in {self.dtype} beside float32 on {self.samples}, tolerance "
            f"{self.tolerance:g}"
        )
        if not self.kept:
            return text
        without = "not finite" if self.error_without is None else f"{self.error_without:.2g}"
        count = len(self.kept)
        layers = "1 layer that stays" if count == 1 else f"{count} layers that stay"
        return f"{text}; {without} without {layers} float32"


@dataclass(frozen=True)
class Layer:
    """A step of a network.

    Attributes
    ----------
    kernel : str
        Symbol of its function, ``copy`` if it only copies.
    workload : str
        Descriptor of what it convolves, empty if it is no convolution.
    epilogue : str
        What the kernel does besides, for :meth:`tvm_directconv.Epilogue.parse`; empty likewise.
    blocking : dict or None
        Block sizes.
    blocking_source : str
        Where they came from.
    """

    kernel: str
    workload: str = ""
    epilogue: str = ""
    blocking: dict[str, Any] | None = None
    blocking_source: str = ""

    @property
    def flops(self) -> int:
        """Operations of the convolution, 0 if it is none."""
        return ConvWorkload.parse(self.workload).flops if self.workload else 0


def _is_scale(value: object) -> bool:
    return is_positive(value) and 2**-149 <= value <= 3.4028234663852886e38  # type: ignore[operator]


_DTYPES = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
_DTYPES += ["float16", "bfloat16", "float32", "float64", "bool"]
_STRING = Kind("a string", lambda v: v == "" or is_text(v))
_PORTS: list[Table] = [
    {
        "name": _STRING,
        "shape": Kind(
            "a list of whole numbers from 0, as many as arrays have dimensions",
            lambda v: (
                isinstance(v, list)
                and len(v) <= _DIMENSIONS
                and all(is_whole(extent, 0, 2**40) for extent in v)
                and prod(v) <= _ELEMENTS
            ),
        ),
        "dtype": Kind(f"one of {', '.join(_DTYPES)}", lambda v: v in _DTYPES),
        "scale": or_null(Kind("a number above 0 of float32", _is_scale)),
        "zero_point": Kind("a whole number of 8 bits", lambda v: is_whole(v, -128, 255)),
    }
]
_KINDS: Table = {
    "device": TEXT,
    "threads": THREADS,
    "inputs": _PORTS,
    "outputs": _PORTS,
    "arena_bytes": COUNT,
    "unshared_bytes": COUNT,
    "weight_bytes": COUNT,
    "im2col_bytes": COUNT,
    "reorders": COUNT,
    "conversions": COUNT,
    "denormals": MODE,
    "layers": [
        {
            "kernel": TEXT,
            "workload": _STRING,
            "epilogue": _STRING,
            "blocking": or_null(Kind("block sizes", lambda v: isinstance(v, dict))),
            "blocking_source": _STRING,
        }
    ],
    "multiply_adds": COUNT,
    "unscheduled": [
        {
            "operator": _STRING,
            "shapes": _STRING,
            "reason": _STRING,
            "count": COUNT,
            "multiply_adds": COUNT,
        }
    ],
    "check": {
        "by": _STRING,
        "output": _STRING,
        "error": Kind("a number from 0", is_number),
        "tolerance": Kind("a number from 0", is_number),
        "note": _STRING,
    },
    "mixed": {
        "dtype": _STRING,
        "tolerance": Kind("a number from 0", is_number),
        "error": Kind("a number from 0", is_number),
        "error_without": or_null(Kind("a number from 0", is_number)),
        "samples": _STRING,
        "count": COUNT,
        "kept": [
            {
                "layer": _STRING,
                "workload": _STRING,
                "error": or_null(Kind("a number from 0", is_number)),
            }
        ],
    },
}


@dataclass(frozen=True)
class NetworkManifest:
    """Everything about a compiled network that its code does not tell; JSON beside the library.

    Attributes
    ----------
    device : str
        Name of the device it was compiled for.
    target : dict
        TVM target.
    threads : int
        Threads that compute it; the code is serial if 1.
    inputs, outputs : tuple of Port
        Arguments of the library's function, in this order; then comes the arena.
    arena_bytes : int
        Memory for intermediates, which whoever runs the network provides.
    unshared_bytes : int
        What all intermediates take if no two of them share memory.
    weight_bytes : int
        Constants in the library, packed for the kernels.
    im2col_bytes : int
        What the largest im2col buffer would take: the memory that is saved.
    reorders : int
        Operations that only change layouts, within other kernels or on their own.
    conversions : int
        Tensors between operators that are made quantised numbers of floats, floats of these, or
        numbers of another scale; what convolutions do of that does not count.
    layers : tuple of Layer
        The steps, in order.
    multiply_adds : int
        Of all convolutions and products of matrices in the model.
    unscheduled : tuple of Unscheduled
        Those that general code computes, the largest first.
    check : Check
        What came out when the library was run beside another implementation of the model.
    denormals : str
        ``flush`` if they count as zeros, ``keep`` if not.
    mixed : Mixed
        Which layers stay float32 because others are to lose little, if that was asked for.
    """

    device: str
    target: dict[str, Any]
    threads: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    arena_bytes: int
    unshared_bytes: int
    weight_bytes: int
    im2col_bytes: int
    reorders: int
    conversions: int
    layers: tuple[Layer, ...]
    multiply_adds: int
    unscheduled: tuple[Unscheduled, ...]
    check: Check
    denormals: str = FLUSH
    mixed: Mixed = Mixed()

    @property
    def unscheduled_share(self) -> float:
        """How much of the multiply-adds general code does, from 0 to 1."""
        return sum(u.multiply_adds for u in self.unscheduled) / (self.multiply_adds or 1)

    @property
    def types(self) -> dict[str, tuple[int, int]]:
        """How many convolutions are computed in each type, and their multiply-adds."""
        found: dict[str, tuple[int, int]] = {}
        for layer in self.layers:
            if layer.workload:
                dtype = ConvWorkload.parse(layer.workload).precision.pixel.name
                count, multiply_adds = found.get(dtype, (0, 0))
                found[dtype] = count + 1, multiply_adds + layer.flops // 2
        return found

    def memory(self) -> dict[str, int]:
        """Return where every byte of a run is, in bytes."""
        return memory_of(self)

    def to_dict(self, digest: str) -> dict[str, Any]:
        """Return what is written beside the library with this SHA-256."""
        return manifests.completed({"kind": manifests.NETWORK_KIND, **asdict(self)}, digest)

    @classmethod
    def read(cls, library: Path) -> "NetworkManifest":
        """Read the manifest of a library.

        Raises
        ------
        LibraryError
            If library or manifest are missing or malformed, or were not written together.
        """
        path, digest = manifest_path(library), manifests.digest_of(library)
        found = manifests.read(path, digest, manifests.NETWORK, _KINDS)
        values = {field.name: found[field.name] for field in fields(cls)}
        for key in ("inputs", "outputs"):
            ports = (_known(Port, {**p, "shape": tuple(p["shape"])}) for p in found[key])
            values[key] = tuple(ports)
        values["layers"] = tuple(_known(Layer, layer) for layer in found["layers"])
        values["unscheduled"] = tuple(_known(Unscheduled, u) for u in found["unscheduled"])
        values["check"] = _known(Check, found["check"])
        kept = tuple(_known(KeptLayer, layer) for layer in found["mixed"]["kept"])
        values["mixed"] = _known(Mixed, {**found["mixed"], "kept": kept})
        return cls(**values)


def _known(kind: Any, values: Mapping[str, Any]) -> Any:
    """Return an object of what is known of it; files may hold more."""
    return kind(**{field.name: values[field.name] for field in fields(kind)})
