"""What ``run`` does with compiled networks."""

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .. import arrays, reading
from ..deploy.emulated import emulated
from ..emit.program import Port
from ..epilogue import OPERANDS
from ..errors import ArgumentError
from ..kinds import printable
from ..manifest import NETWORK, manifest_path, sort_of
from ..network.manifest import NetworkManifest
from ..network.network import Network, load_network
from ..reference import max_error
from ._options import TOLERANCE
from ._output import as_json, check_writable, render, save, time_of

_CALLS = 5
_TOP = 5
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``run`` that are for networks only."""
    group = parser.add_argument_group(
        "networks",
        "--input is a .npy file, a .npz file with inputs by name, or an image "
        f"({', '.join(_IMAGES)}), which is resized to the network's input; default: random. "
        "--output is written as .npz, with outputs by name, if it ends so, else as .npy.",
    )
    group.add_argument(
        "--expect", metavar="FILE", help=".npy or .npz file with outputs to compare with"
    )
    group.add_argument(
        "--mean",
        type=_numbers,
        metavar="R,G,B",
        help="of an image whose pixels are 0 to 1, subtracted; default: 0,0,0",
    )
    group.add_argument(
        "--std", type=_divisors, metavar="R,G,B", help="divides that; default: 1,1,1"
    )
    group.add_argument("--bgr", action="store_true", help="the network's first channel is blue")


def _numbers(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in (1, 3) or not np.isfinite(found).all():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one number for each of three channels, or one for all"
        )
    return found


def _divisors(text: str) -> list[float]:
    found = _numbers(text)
    if min(found) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} divides pixels: expected numbers above 0")
    return found


def is_network(library: Path) -> bool:
    """Return whether a library's manifest is a network's."""
    try:
        return sort_of(reading.json_object(manifest_path(library))) == NETWORK
    except reading.Unreadable:
        return False  # What is wrong with it, loading will say.


def refuse_network_arguments(args: argparse.Namespace) -> None:
    """Refuse arguments of networks where the library is a single convolution.

    Raises
    ------
    ArgumentError
        If there are some.
    """
    for name in ("expect", "mean", "std", "bgr"):
        if getattr(args, name):
            raise ArgumentError(
                f"--{name} is given, but {args.library!r} is a single convolution: expected a "
                "library that 'tvm-directconv compile' made of a model"
            )


def run_network(library: Path, args: argparse.Namespace) -> int:
    """Run a network; compare with what is expected, status 1 if that differs."""
    for name in ("weight", *(operand.name for operand in OPERANDS)):
        if getattr(args, name):
            raise ArgumentError(
                f"--{name} is given, but {args.library!r} is a network: expected none, weights are "
                "part of it"
            )
    network = None if args.emulate else load_network(library)
    manifest = network.manifest if network else NetworkManifest.read(library)
    inputs = _inputs(manifest, args)
    expected = read_arrays(args.expect, manifest.outputs) if args.expect else None
    if args.output:
        _check_output(args.output, manifest)
    called = _called(network, inputs) if network else _emulated(library, manifest, inputs)
    outputs, seconds, how = called
    if args.output:
        _write(args.output, manifest, outputs)
    error = None
    if expected is not None:
        error = max(max_error(found, right) for found, right in zip(outputs, expected, strict=True))
    right = error is None or error <= TOLERANCE
    if args.format == "json":
        found = {
            "library": args.library,
            "device": manifest.device,
            "threads": manifest.threads,
            "outputs": [
                _summary(port, out) for port, out in zip(manifest.outputs, outputs, strict=True)
            ],
            **outcome(error, seconds, how),
        }
        print(as_json(found))
        return 0 if right else 1
    print(f"{library} for {printable(manifest.device)}, {manifest.threads} thread(s)")
    for port, output in zip(manifest.outputs, outputs, strict=True):
        print(f"{port}, {output.min():g} to {output.max():g}" if output.size else f"{port}")
        if best := _best(output):
            print(render(best, "table"))
    print(f"seconds {seconds:.4g} ({time_of(seconds)}, {how})")
    if error is not None:
        print(f"max_error {error:g}" + ("" if right else f", expected up to {TOLERANCE}"))
    return 0 if right else 1


def outcome(error: float | None, seconds: float, how: str) -> dict[str, Any]:
    """Return what JSON says at the end of a run."""
    return {"max_error": error, "tolerance": TOLERANCE, "seconds": seconds, "measured": how}


def _best(output: np.ndarray) -> list[dict[str, Any]]:
    """Return the largest numbers of an output that is a list of scores."""
    if output.ndim != 2 or len(output) != 1 or output.size <= _TOP:
        return []
    best = np.argsort(-output[0])[:_TOP]
    return [{"index": int(i), "value": float(output[0, i])} for i in best]


def _summary(port: Port, output: np.ndarray) -> dict[str, Any]:
    return {
        "name": port.name,
        "shape": list(port.shape),
        "dtype": port.dtype,
        "min": float(output.min()) if output.size else None,
        "max": float(output.max()) if output.size else None,
        "largest": _best(output),
    }


def _called(network: Network, inputs: list[np.ndarray]) -> tuple[list[np.ndarray], float, str]:
    call, outputs = network.bind(*inputs)
    return outputs, median(call.timed() for _ in range(_CALLS)), f"median of {_CALLS} calls"


def _emulated(
    library: Path, manifest: NetworkManifest, inputs: list[np.ndarray]
) -> tuple[list[np.ndarray], float, str]:
    for port, array in zip(manifest.inputs, inputs, strict=True):
        if array.dtype != port.dtype:
            raise ArgumentError(f"input {port.name!r} is {array.dtype}: expected {port}")
    return emulated(
        library,
        manifest,
        "main",
        inputs,
        [port.shape for port in manifest.outputs],
        output_types=[port.dtype for port in manifest.outputs],
        scratch_bytes=manifest.arena_bytes,
    )


def _inputs(manifest: NetworkManifest, args: argparse.Namespace) -> list[np.ndarray]:
    if args.input and Path(args.input).suffix.lower() in _IMAGES:
        return [_image(manifest, args)]
    for name in ("mean", "std", "bgr"):
        if getattr(args, name):
            raise ArgumentError(
                f"--{name} is given, but --input is {args.input!r}: expected an image "
                f"({', '.join(_IMAGES)})"
            )
    if args.input:
        return read_arrays(args.input, manifest.inputs)
    rng = np.random.default_rng(args.seed)
    return [rng.standard_normal(port.shape).astype(port.dtype) for port in manifest.inputs]


def _image(manifest: NetworkManifest, args: argparse.Namespace) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise ArgumentError(
            "reading images needs the Python package pillow: pip install 'tvm-directconv[image]'"
        ) from None
    port = manifest.inputs[0]
    if len(manifest.inputs) > 1 or len(port.shape) != 4 or port.shape[:2] != (1, 3):
        raise ArgumentError(
            f"--input is the image {args.input!r}, but the network's inputs are "
            f"{'; '.join(map(str, manifest.inputs))}: expected one of shape 1x3xHxW"
        )
    try:
        with reading.open_regular(args.input) as file, Image.open(file) as image:
            resized = image.convert("RGB").resize(port.shape[:1:-1], Image.Resampling.BILINEAR)
    except Exception as error:  # What Pillow raises for damaged images has no list.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ArgumentError(
            f"cannot read image {args.input!r} ({reason}): expected one of {', '.join(_IMAGES)}"
        ) from None
    pixels = np.asarray(resized, np.float32).transpose(2, 0, 1)[np.newaxis] / 255
    mean, std = (
        np.array(numbers, np.float32).reshape(1, -1, 1, 1)
        for numbers in (args.mean or [0.0], args.std or [1.0])
    )
    normal = (pixels - mean) / std
    return np.ascontiguousarray(normal[:, ::-1] if args.bgr else normal)


def read_arrays(path: str, ports: tuple[Port, ...]) -> list[np.ndarray]:
    """Return arrays from a file, in the order of the inputs or outputs that they are for."""
    return arrays.read_arrays(path, [arrays.Expected(p.name, p.shape, str(p)) for p in ports])


def _check_output(path: str, manifest: NetworkManifest) -> None:
    if len(manifest.outputs) > 1 and not path.endswith(".npz"):
        raise ArgumentError(
            f"output is {path!r}, but there are {len(manifest.outputs)} outputs: expected a name "
            "ending in .npz"
        )
    check_writable(path)


def _write(path: str, manifest: NetworkManifest, outputs: list[np.ndarray]) -> None:
    named: dict[str, Any] = {
        port.name: output for port, output in zip(manifest.outputs, outputs, strict=True)
    }
    if path.endswith(".npz"):
        save(path, lambda file: np.savez(file, **named))
    else:
        save(path, lambda file: np.save(file, outputs[0]))
