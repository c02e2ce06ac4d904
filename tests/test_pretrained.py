"""Pretrained networks on a picture of a text: they read it as ONNX Runtime does."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageDraw, ImageFont

import tvm_directconv as dc

# Not imported: its OpenCV wants libraries of a graphical system.
PACKAGE = find_spec("rapidocr_onnxruntime")
assert PACKAGE is not None and PACKAGE.origin is not None
MODELS = Path(PACKAGE.origin).parent / "models"
TEXT = "Direct convolution"

onnxruntime.set_default_logger_severity(3)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Return a line of text."""
    image = Image.new("RGB", (420, 64), (245, 240, 230))
    font = ImageFont.load_default(42)
    ImageDraw.Draw(image).text((12, 4), TEXT, (20, 20, 40), font=font)
    return image


def pixels(image: Image.Image, height: int, width: int) -> np.ndarray:
    """Return the input of these networks."""
    resized = np.asarray(image.resize((width, height)), np.float32) / 127.5 - 1
    return np.ascontiguousarray(resized.transpose(2, 0, 1)[np.newaxis])


def both(name: str, x: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return our output and ONNX Runtime's."""
    path = next(MODELS.glob(f"*{name}*.onnx"))
    dc.compile_network(
        path, folder / "net.so", input_shapes={"x": x.shape}, blocking="model", check=False
    )
    session = onnxruntime.InferenceSession(path)
    (expected,) = session.run(None, {"x": x})
    return dc.load_network(folder / "net.so").run(x), expected


@pytest.mark.parametrize(("name", "size"), [("cls", (48, 192)), ("det", (64, 416))])
def test_networks_agree(
    picture: Image.Image, name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    found, expected = both(name, pixels(picture, *size), tmp_path)
    assert dc.max_error(found, expected) < 1e-4
    assert expected.max() > 0.5  # There is a text.


def read(scores: np.ndarray) -> str:
    """Return the text that is found."""
    path = next(MODELS.glob("*rec*.onnx"))
    meta = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    letters = ["", *meta["character"].splitlines(), " "]
    best = scores[0].argmax(axis=1)
    once = [letters[b] for n, b in enumerate(best) if b and (n == 0 or best[n - 1] != b)]
    return "".join(once).strip()


def test_the_text_is_read(picture: Image.Image, tmp_path: Path) -> None:
    found, expected = both("rec", pixels(picture, 48, 315), tmp_path)
    assert dc.max_error(found, expected) < 1e-4
    assert read(found) == TEXT


def test_the_text_is_read_in_8_bits(picture: Image.Image, tmp_path: Path) -> None:
    x, path = pixels(picture, 48, 315), tmp_path / "int8.onnx"
    report = dc.quantize_network(
        next(MODELS.glob("*rec*.onnx")), path, [{"x": x}], input_shapes={"x": x.shape}
    )
    (found,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    assert read(found) == TEXT
    assert report.outputs[0].agreement is not None and report.outputs[0].agreement > 0.9
