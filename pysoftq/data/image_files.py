"""Reading one image file into pixels, whatever kind of image it holds.

Pixels are uint8 (H, W, 3); grey images with more than 8 bits become float32 on the same scale,
0 to 255, so that nothing of their precision is lost. Grey images have three equal channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[Any]  # uint8 or float32 (H, W, 3)

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # modes of Pillow with more than 8 bits


@dataclass(frozen=True)
class Picture:
    """The pixels of a file, and what of the file is not in them."""

    pixels: Pixels
    remarks: tuple[str, ...]


def read_image(path: str, image_size: int | None = None) -> Picture:
    """Decode a file, upright as its EXIF orientation says; ``image_size`` resizes to that square.

    Raises ValueError naming the file, whatever is wrong with it.
    """
    try:
        with Image.open(path) as image:
            remarks = list(_remarks(image))
            ImageOps.exif_transpose(image, in_place=True)
            deep = image.mode in _DEEP
            plain, transparent = (Image.fromarray(_grey(image)), False) if deep else _rgb(image)
            if transparent:
                remarks.append("transparent pixels, laid on white")
            if image_size is not None:
                plain = plain.resize((image_size, image_size), Image.Resampling.BILINEAR)
            pixels = np.asarray(plain)
    except Exception as error:  # Pillow raises errors of many kinds for broken files
        raise ValueError(f"{path} cannot be read as an image: {_reason(error)}") from error
    return Picture(np.stack([pixels] * 3, axis=-1) if deep else pixels, tuple(remarks))


def _remarks(image: Image.Image) -> Iterator[str]:
    """What Pillow leaves out of a file that has just been opened."""
    if getattr(image, "n_frames", 1) > 1:
        yield "several frames, the first of which is taken"
    # How the values lie in the file; Pillow has no mode for colours of 16 bits.
    if image.mode not in _DEEP and any(
        ";16" in str(tile[3]) for tile in getattr(image, "tile", ())
    ):
        yield "16 bits for each colour, the upper 8 of which are taken"


def _rgb(image: Image.Image) -> tuple[Image.Image, bool]:
    """Eight bits for each of three channels, and whether transparent pixels were made white."""
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    transparent = bool(np.asarray(layer.getchannel("A")).min() < 255)
    return Image.alpha_composite(white, layer).convert("RGB"), transparent


def _grey(image: Image.Image) -> NDArray[np.float32]:
    """Grey values (H, W) of more than 8 bits, from 0 to 255."""
    values: NDArray[np.float32] = np.asarray(image).astype(np.float32)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # NaN too
            raise ValueError(
                f"its floating point values are from {low:g} to {high:g}, expected 0 (black) to 1 "
                "(white)"
            )
        values *= np.float32(255)
        return values
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, (16,))[0]
    if bits > 16 or tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] != _UNSIGNED:
        raise ValueError(
            f"it has signed integers, or of {bits} bits, for which no value is white; convert it "
            "to unsigned integers of 8 or 16 bits"
        )
    values *= np.float32(255 / (2**bits - 1))
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        np.subtract(255, values, out=values)
    return values


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is broken, or of an unknown format"
    if isinstance(error, OSError) and error.strerror:  # without the path, which comes before
        return error.strerror
    return str(error) or type(error).__name__
