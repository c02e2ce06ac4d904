"""ncnn, with Winograd's algorithm and without, and networks of 8-bit integers for it."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ... import files
from ...hardware.lookup import device
from ...workload import ConvWorkload
from .base import (
    DEFAULTS,
    NETWORK_DTYPES,
    NETWORK_SHAPE,
    Contestant,
    Failed,
    Prepared,
    Source,
    Unsupported,
    only_plain,
    run_converter,
)

_LAYER = """7767517
2 2
Input input 0 1 x
Convolution{depthwise} conv 1 1 x y {settings}
"""
# Flags before weights.
_FLOAT32, _INT8 = 0, 0x000D4B38
_LARGEST = 127  # of 8-bit integers, whose zero is zero
# Layers with weights, and parameters of theirs: how many weights, and whether there is a bias.
_WEIGHTS = {
    "Convolution": ("6", "5"),
    "ConvolutionDepthWise": ("6", "5"),
    "InnerProduct": ("2", "1"),
}
# What others have no numbers for in the file of weights.
_WITHOUT = {"Input", "Split", "Concat", "Pooling", "BinaryOp", "ReLU", "Clip", "HardSwish"}
_WITHOUT |= {"HardSigmoid", "Reshape", "Permute", "ShuffleChannel", "Slice", "Flatten", "Dropout"}
_HALVES = ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage")


@dataclass(frozen=True, kw_only=True)
class Ncnn(Contestant):
    """ncnn.

    Attributes
    ----------
    winograd : bool
        Whether Winograd's algorithm is allowed.
    """

    name: str = "ncnn"
    includes: str = (
        "The convolution alone, its output allocated anew: input and output have the layout that "
        "layers pass on to each other, and nothing is reordered."
    )
    colour: str = "#8c564b"
    marker: str = "d"
    winograd: bool = True

    title: ClassVar = "ncnn"
    packages: ClassVar = {"ncnn": ""}
    network_packages: ClassVar = {"pnnx": ", which converts ONNX files for it,"}
    network_dtypes: ClassVar = NETWORK_DTYPES

    def unsupported(self, workload: ConvWorkload) -> str | None:
        return only_plain(workload, batch=False)

    def prepare_layer(
        self, workload: ConvWorkload, threads: int, weight: np.ndarray, x: np.ndarray
    ) -> Prepared:
        import ncnn

        w = workload
        top, left, bottom, right = w.padding
        settings = {
            0: w.out_channels,
            **{1: w.kernel[1], 11: w.kernel[0], 2: w.dilation[1], 12: w.dilation[0]},
            **{3: w.stride[1], 13: w.stride[0], 4: left, 14: top, 15: right, 16: bottom},
            **{5: 0, 6: weight.size},  # No bias.
        }
        if w.groups > 1:
            settings[7] = w.groups
        text = _LAYER.format(
            depthwise="DepthWise" if w.groups > 1 else "",
            settings=" ".join(f"{key}={value}" for key, value in settings.items()),
        )
        with files.scratch() as folder:
            path = folder / "layer.param"
            path.write_text(text)
            path.with_suffix(".bin").write_bytes(np.int32(_FLOAT32).tobytes() + weight.tobytes())
            network = self._load(path, threads, "float32")
        options = network.opt
        packed = ncnn.Mat()
        ncnn.convert_packing(ncnn.Mat(x[0]).clone(), packed, _elements(w.in_channels), options)
        results: list[Any] = [None]

        def call() -> None:
            extractor = network.create_extractor()
            extractor.input("x", packed)
            _, results[0] = extractor.extract("y", 1)  # As it is, packed.

        def output() -> np.ndarray:
            plain = ncnn.Mat()
            ncnn.convert_packing(results[0], plain, 1, options)
            return np.array(plain)[np.newaxis]

        return Prepared(call=call, output=output)

    def convert(self, source: Source, threads: int) -> Path:
        # The program only: its Python package imports PyTorch.
        spec = importlib.util.find_spec("pnnx")
        assert spec and spec.origin
        program = str(Path(spec.origin).with_name("pnnx"))
        shape = f"inputshape=[{','.join(map(str, NETWORK_SHAPE))}]"
        run_converter([program, source.float32, shape, "fp16=0"])
        path = Path(source.float32).with_suffix(".ncnn.param")
        if source.dtype != "int8":
            return path
        return _quantized(path, self._ranges(path, threads, np.load(source.samples)))

    def prepare_network(self, path: Path, threads: int, x: np.ndarray, dtype: str) -> Prepared:
        import ncnn

        network = self._load(path, threads, dtype)
        images, results = [ncnn.Mat(x[0]).clone()], [None]

        def call() -> None:
            extractor = network.create_extractor()
            extractor.input("in0", images[0])
            _, results[0] = extractor.extract("out0")

        def feed(image: np.ndarray) -> None:
            images[0] = ncnn.Mat(image[0]).clone()

        return Prepared(call=call, output=lambda: np.array(results[0]), feed=feed)

    def _ranges(self, path: Path, threads: int, samples: np.ndarray) -> dict[str, float]:
        """Return the largest numbers, without signs, of all that layers with weights read."""
        import ncnn

        network = self._load(path, threads, "float32")
        names = {layer.inputs[0] for layer in _layers(path) if layer.kind in _WEIGHTS}
        found = dict.fromkeys(sorted(names), 0.0)
        for image in samples:
            extractor = network.create_extractor()
            extractor.set_light_mode(False)
            extractor.input("in0", ncnn.Mat(image).clone())
            for name in found:
                _, blob = extractor.extract(name)
                found[name] = max(found[name], float(np.abs(np.array(blob)).max()))
        return found

    def _load(self, path: Path, threads: int, dtype: str) -> Any:
        import ncnn

        network = ncnn.Net()
        options = network.opt
        options.num_threads = threads
        options.use_winograd_convolution = self.winograd
        if dtype not in (DEFAULTS, "int8"):
            for half in _HALVES:
                setattr(options, f"use_{half}", (half, dtype) == ("bf16_storage", "bf16"))
        files = (path, path.with_suffix(".bin"))
        for load, file in zip((network.load_param, network.load_model), files, strict=True):
            if load(str(file)):
                raise Failed(f"ncnn cannot load {file.name}")
        return network


def _elements(channels: int) -> int:
    """Return of how many channels ncnn makes blocks, by its own rule."""
    lanes = device("native").lanes
    return next(size for size in (16, 8, 4, 1) if size <= lanes and channels % size == 0)


# --- Networks of 8-bit integers -----------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """A line of a .param file."""

    line: str

    @property
    def kind(self) -> str:
        return self.line.split()[0]

    @property
    def inputs(self) -> list[str]:
        count = int(self.line.split()[2])
        return self.line.split()[4 : 4 + count]

    @property
    def parameters(self) -> dict[str, str]:
        inputs, outputs = map(int, self.line.split()[2:4])
        found = (word.split("=", 1) for word in self.line.split()[4 + inputs + outputs :])
        return {key: value for key, value in found}


def _layers(path: Path) -> Iterator[_Layer]:
    # Before them are a number that tells the format, and how many there are.
    return (_Layer(line) for line in path.read_text().splitlines()[2:] if line.strip())


def _quantized(path: Path, ranges: dict[str, float]) -> Path:
    """Write a network with weights of 8 bits and the scales of what they are multiplied with.

    ncnn's own program for that is in no Python package. Weights have a scale for each output
    channel, or for each group; both are symmetric, as ncnn wants them.

    Raises
    ------
    Unsupported
        If it has layers whose weights are not known here.
    """
    head = path.read_text().splitlines()[:2]
    floats = path.with_suffix(".bin").read_bytes()
    lines, parts, place = [], [], 0

    def take(count: int) -> np.ndarray:
        nonlocal place
        place += 4 * count
        return np.frombuffer(floats[place - 4 * count : place], np.float32)

    for layer in _layers(path):
        lines.append(layer.line)
        if layer.kind not in _WEIGHTS:
            if layer.kind not in _WITHOUT:
                raise Unsupported(
                    f"ncnn's layer {layer.kind} is not known here: expected a network of "
                    f"{', '.join(sorted({*_WEIGHTS, *_WITHOUT}))}"
                )
            continue
        parameters = layer.parameters
        count, bias = (int(parameters.get(key, 0)) for key in _WEIGHTS[layer.kind])
        outputs = int(parameters["0"])
        groups = int(parameters.get("7", 1)) if layer.kind == "ConvolutionDepthWise" else 0
        if take(1).tobytes() != np.int32(_FLOAT32).tobytes():
            raise Failed(f"the weights of ncnn's layer {layer.line.split()[1]} are not in float32")
        weights = take(count).reshape(groups or outputs, -1)
        scales = _LARGEST / np.maximum(np.abs(weights).max(1), np.float32(1e-30))
        whole = np.rint(weights * scales[:, np.newaxis]).astype(np.int8).tobytes()
        parts += [np.int32(_INT8).tobytes(), whole, bytes(-len(whole) % 4)]
        parts.append(take(outputs if bias else 0).tobytes())
        scale = np.float32(_LARGEST / max(ranges[layer.inputs[0]], 1e-30))
        parts += [scales.astype(np.float32).tobytes(), scale.tobytes()]
        lines[-1] += " 8=1"  # Scales follow.
    if place != len(floats):
        raise Failed(f"{path.with_suffix('.bin').name} has {len(floats)} bytes; expected {place}")
    result = path.with_name(f"int8.{path.name}")
    result.write_text("\n".join([*head, *lines, ""]))
    result.with_suffix(".bin").write_bytes(b"".join(parts))
    return result
