"""What scripts/compare_types runs: networks in bfloat16 and in 8 bits beside float32."""

import argparse
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

import tvm_directconv as dc
from tvm_directconv import files
from tvm_directconv.bench.models import MODELS, model
from tvm_directconv.cli._options import positive
from tvm_directconv.cli._output import Row, add_format, render
from tvm_directconv.network.check import relative_error
from tvm_directconv.network.onnx_session import session

NETWORKS = ["resnet18", "resnet50", "mobilenetv1", "mobilenetv2", "squeezenet", "googlenet"]
SIZES = {"cls": (48, 192), "det": (64, 416), "rec": (48, 315)}
# The first is what tests/test_pretrained.py reads.
LINES = [
    "Direct convolution",
    "zero-overhead layers",
    "Apache TVM 0.27",
    "The quick brown fox",
    "Raspberry Pi 5, 8 GB",
    "0123456789 + 42 %",
    "jumps over a lazy dog",
    "Memory overhead: 0",
]

Arrays = list[np.ndarray]


def given(network: str, count: int, folder: Path) -> tuple[Path, Arrays]:
    """Return a network's file, and inputs."""
    if network not in SIZES:
        path = folder / f"{network}.onnx"
        onnx.save(model(network), str(path))
        rng = np.random.default_rng(0)
        return path, [rng.standard_normal((1, 3, 224, 224), np.float32) for _ in range(count)]
    package = find_spec("rapidocr_onnxruntime")
    if package is None or package.origin is None:
        sys.exit(f"{network} is part of rapidocr-onnxruntime, which is not installed")
    (path,) = (Path(package.origin).parent / "models").glob(f"*_{network}_*.onnx")
    return path, [pixels(line, *SIZES[network]) for line in LINES]


def pixels(text: str, height: int, width: int) -> np.ndarray:
    """Return a line of text as PP-OCR takes it."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (420, 64), (245, 240, 230))
    ImageDraw.Draw(image).text((12, 4), text, (20, 20, 40), font=ImageFont.load_default(42))
    array = np.asarray(image.resize((width, height)), np.float32) / 127.5 - 1
    return np.ascontiguousarray(array.transpose(2, 0, 1)[np.newaxis])


def read(letters: list[str], scores: np.ndarray) -> str:
    """Return the text that PP-OCR's last network has found."""
    best = scores[0].argmax(axis=1)
    return "".join(letters[b] for n, b in enumerate(best) if n == 0 or best[n - 1] != b).strip()


def agreement(network: str, found: Arrays, exact: Arrays) -> float:
    """Return how often the largest number is at the same place, or a pixel is text or not."""
    if network == "det":
        return float(np.mean([(f > 0.3) == (e > 0.3) for f, e in zip(found, exact, strict=True)]))
    places = ([f.argmax(-1), e.argmax(-1)] for f, e in zip(found, exact, strict=True))
    return float(np.mean([one == other for one, other in places]))


def rows(network: str, count: int, folder: Path) -> list[Row]:
    """Return a row for each type."""
    path, inputs = given(network, count, folder)
    exact_session = session(str(path))
    name = exact_session.get_inputs()[0].name
    exact = [exact_session.run(None, {name: x})[0] for x in inputs]
    known = exact_session.get_modelmeta().custom_metadata_map.get("character", "")
    letters = ["", *known.splitlines(), " "]
    shapes = {name: inputs[0].shape}
    library, whole = folder / "network.so", folder / "int8.onnx"
    made = []
    for dtype in ("bf16", "int8"):
        if dtype == "int8":
            # The integers are those of ONNX Runtime, which need not be compiled.
            dc.quantize_network(path, whole, [{name: x} for x in inputs], input_shapes=shapes)
            run = session(str(whole)).run
            found = [run(None, {name: x})[0] for x in inputs]
        else:
            dc.compile_network(path, library, dtype=dtype, input_shapes=shapes, check=False)
            found = list(map(dc.load_network(library).run, inputs))
        lost = relative_error(np.stack(found), np.stack(exact))
        pairs = zip(found, exact, strict=True) if network == "rec" else ()
        same = [read(letters, one) == read(letters, other) for one, other in pairs]
        made.append(
            {
                "network": network,
                "type": dtype,
                "samples": len(inputs),
                "error": f"{lost:.2%}",
                "agreement": f"{agreement(network, found, exact):.1%}",
                "same text": f"{sum(same)} of {len(same)}" if same else "",
            }
        )
        print(made[-1], file=sys.stderr, flush=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/compare_types", description="What networks lose in bfloat16 and in 8 bits."
    )
    parser.add_argument(
        "network", nargs="*", metavar="NETWORK", help=f"default: {' '.join([*NETWORKS, *SIZES])}"
    )
    parser.add_argument("--samples", type=positive, default=32, help="random inputs; default: 32")
    add_format(parser, ("table", "markdown", "json"))
    args = parser.parse_args()
    for name in args.network:
        if name not in (*MODELS, *SIZES):
            parser.error(f"there is no network {name!r}: expected {', '.join([*MODELS, *SIZES])}")
    onnxruntime.set_default_logger_severity(3)
    warnings.simplefilter("ignore", dc.ModelWarning)
    found: list[Row] = []
    for network in args.network or [*NETWORKS, *SIZES]:
        with files.scratch() as folder:
            found += rows(network, args.samples, folder)
    print(render(found, args.format))


if __name__ == "__main__":
    main()
