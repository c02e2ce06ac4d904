"""Images as inputs of networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import reading
from .errors import ArgumentError
from .kinds import shown

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")
"""What the names of images end in."""

_CHANNELS = 3


def is_image(path: str | Path) -> bool:
    """Return whether a file is an image by its name."""
    return Path(path).suffix.lower() in IMAGES


@dataclass(frozen=True)
class Pixels:
    """What becomes of pixels, which are 0 to 1 at first.

    Attributes
    ----------
    mean, std : number or sequence of number, optional
        One for all channels, or one for each of red, green and blue: the mean is subtracted, then
        that is divided by the standard deviation. 0 and 1 if not given.
    bgr : bool
        Whether the first channel is blue.

    Raises
    ------
    ArgumentError
        If they are no such numbers.
    """

    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    bgr: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            given = getattr(self, name)
            try:
                found = np.asarray(1.0 if given is None else given, np.float64)
            except (TypeError, ValueError):
                found = np.array([])
            right = found.shape in ((), (1,), (_CHANNELS,)) and np.isfinite(found).all()
            if not right or (name == "std" and found.min() <= 0):
                what = "finite numbers" if name == "mean" else "numbers above 0"
                raise ArgumentError(
                    f"{name} is {shown(given)}: expected {what}, one for all channels or one for "
                    "each of three"
                )

    @property
    def given(self) -> tuple[str, ...]:
        """Names of those that are not as they are by default."""
        found = {"mean": self.mean is not None, "std": self.std is not None, "bgr": self.bgr}
        return tuple(name for name, given in found.items() if given)


def takes_images(shape: Sequence[int]) -> bool:
    """Return whether an input of this shape is one image: 1x3xHxW or 1xHxWx3."""
    return len(shape) == 4 and shape[0] == 1 and _CHANNELS in (shape[1], shape[3])


def read_image(path: str | Path, shape: Sequence[int], pixels: Pixels) -> np.ndarray:
    """Return an image as an input, float32, resized to its height and width.

    Parameters
    ----------
    path : str or Path
    shape : sequence of int
        For which :func:`takes_images`.
    pixels : Pixels

    Raises
    ------
    ArgumentError
        If it cannot be read, or pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ArgumentError(
            "reading images needs the Python package pillow: pip install 'tvm-directconv[image]'"
        ) from None
    first = shape[1] == _CHANNELS
    height, width = shape[2:] if first else shape[1:3]
    try:
        with reading.open_regular(path) as file, Image.open(file) as image:
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    except Exception as error:  # What Pillow raises for damaged images has no list.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ArgumentError(
            f"cannot read image {str(path)!r} ({reason}): expected one of {', '.join(IMAGES)}"
        ) from None
    values = np.asarray(resized, np.float32) / 255
    mean = np.asarray(0 if pixels.mean is None else pixels.mean, np.float32)
    std = np.asarray(1 if pixels.std is None else pixels.std, np.float32)
    normal = (values - mean) / std
    normal = normal[..., ::-1] if pixels.bgr else normal
    found: Any = normal.transpose(2, 0, 1) if first else normal
    return np.ascontiguousarray(found[np.newaxis])
