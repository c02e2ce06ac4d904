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
from ..images import IMAGES, Pixels, is_image, read_image, takes_images
from ..kinds import printable
from ..manifest import NETWORK, manifest_path, sort_of
from ..network.check import drawn
from ..network.manifest import NetworkManifest
from ..network.network import Network, load_network
from ..reference import max_error
from ._options import TOLERANCE, add_pixels, pixels_of
from ._output import as_json, check_writable, render, save, time_of

_CALLS = 5
_TOP = 5


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``run`` that are for networks only."""
    group = parser.add_argument_group(
        "networks",
        "--input is a .npy file, a .npz file with inputs by name, or an image "
        f"({', '.join(IMAGES)}), which is resized to the network's input; default: random. "
        "--output is written as .npz, with outputs by name, if it ends so, else as .npy.",
    )
    group.add_argument(
        "--expect", metavar="FILE", help=".npy or .npz file with outputs to compare with"
    )
    add_pixels(group)


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
    pixels = pixels_of(args)
    if args.input and is_image(args.input):
        return [_image(manifest, args.input, pixels)]
    if pixels.given:
        raise ArgumentError(
            f"--{pixels.given[0]} is given, but --input is {args.input!r}: expected an image "
            f"({', '.join(IMAGES)})"
        )
    if args.input:
        return read_arrays(args.input, manifest.inputs)
    rng = np.random.default_rng(args.seed)
    return [drawn(port, rng) for port in manifest.inputs]


def _image(manifest: NetworkManifest, path: str, pixels: Pixels) -> np.ndarray:
    port = manifest.inputs[0]
    if len(manifest.inputs) > 1 or not takes_images(port.shape):
        raise ArgumentError(
            f"--input is the image {path!r}, but the network's inputs are "
            f"{'; '.join(map(str, manifest.inputs))}: expected one of shape 1x3xHxW or 1xHxWx3"
        )
    image = read_image(path, port.shape, pixels)
    return image if port.scale is None else port.quantize(image)


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
