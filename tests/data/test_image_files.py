"""Image files of every kind: values keep their order and scale, or the file is refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pysoftq.data.image_files import read_image

RAMP = (np.arange(64).reshape(8, 8) * 1000).astype(np.uint16)
SCALED = RAMP.astype(np.float64) * 255 / 65535


def grey(path: Path) -> NDArray[Any]:
    """One of the three equal channels."""
    pixels = read_image(str(path)).pixels
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def pgm(path: Path, values: NDArray[np.uint16], white: int) -> None:
    path.write_bytes(b"P5 8 8 %d\n" % white + values.astype(">u2").tobytes())


def colour_png_of_16_bits(path: Path) -> None:
    """Three equal channels, as Pillow cannot write them."""
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in RAMP)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)


DEEP: dict[str, Callable[[Path], Any]] = {
    "16.png": lambda path: Image.fromarray(RAMP).save(path),
    "16.tif": lambda path: Image.fromarray(RAMP).save(path),
    "big-endian.tif": lambda path: Image.fromarray(RAMP.astype(">u2")).save(path),
    "16.pgm": lambda path: pgm(path, RAMP, 65535),
    "float.tif": lambda path: Image.fromarray((RAMP / 65535).astype(np.float32)).save(path),
    "white-is-zero.tif": lambda path: Image.fromarray(65535 - RAMP).save(path, tiffinfo={262: 0}),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_keep_their_precision(tmp_path: Path, name: str) -> None:
    DEEP[name](tmp_path / name)
    found = grey(tmp_path / name)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, SCALED, rtol=1e-5, atol=1e-4)
    assert len(np.unique(found)) == 64


def test_white_of_a_file_that_says_so(tmp_path: Path) -> None:
    pgm(tmp_path / "10.pgm", RAMP // 64, 1023)
    np.testing.assert_allclose(grey(tmp_path / "10.pgm"), (RAMP // 64) * (255 / 1023), atol=0.01)


@pytest.mark.parametrize(
    ("values", "tags", "told"),
    [
        (RAMP.astype(np.int32), {}, "integers, or of 32 bits"),
        (RAMP.astype(np.int32), {339: 1}, "integers, or of 32 bits"),
        (RAMP.astype(np.float32), {}, "floating point values are from 0 to 63000, expected 0"),
        (np.full((8, 8), np.nan, np.float32), {}, "from nan to nan"),
    ],
)
def test_values_without_a_scale_are_refused(
    tmp_path: Path, values: NDArray[Any], tags: dict[int, int], told: str
) -> None:
    Image.fromarray(values).save(tmp_path / "x.tif", tiffinfo=tags)
    with pytest.raises(ValueError, match=rf"x\.tif cannot be read as an image: .*{told}"):
        read_image(str(tmp_path / "x.tif"))


@pytest.mark.parametrize(
    ("image", "suffix", "wanted"),
    [
        (Image.fromarray(RAMP > 30000), ".png", [0, 255]),
        (Image.new("CMYK", (8, 8), (0, 0, 0, 255)), ".jpg", [0]),
        (Image.new("CMYK", (8, 8), (0, 0, 0, 0)), ".tif", [255]),
        (Image.new("YCbCr", (8, 8), (200, 128, 128)), ".jpg", [200]),
        (Image.new("RGBA", (8, 8), (9, 9, 9, 255)), ".png", [9]),
    ],
)
def test_other_kinds_become_rgb(
    tmp_path: Path, image: Image.Image, suffix: str, wanted: list[int]
) -> None:
    image.save(tmp_path / f"x{suffix}")
    found = read_image(str(tmp_path / f"x{suffix}"))
    assert found.pixels.dtype == np.uint8
    assert np.unique(found.pixels).tolist() == wanted
    assert not found.remarks


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), {}),
        (Image.new("LA", (8, 8), (0, 0)), {}),
        (Image.new("L", (8, 8), 3).convert("P"), {"transparency": bytes(256)}),
        (Image.new("RGB", (8, 8), (1, 2, 3)), {"transparency": (1, 2, 3)}),
    ],
)
def test_transparency_is_laid_on_white_and_told(
    tmp_path: Path, image: Image.Image, options: dict[str, Any]
) -> None:
    image.save(tmp_path / "x.png", **options)
    found = read_image(str(tmp_path / "x.png"))
    assert (found.pixels == 255).all()
    assert found.remarks == ("transparent pixels, laid on white",)


def test_colours_of_16_bits_keep_the_upper_8_and_that_is_told(tmp_path: Path) -> None:
    colour_png_of_16_bits(tmp_path / "x.png")
    found = read_image(str(tmp_path / "x.png"))
    assert np.array_equal(found.pixels[..., 1], RAMP >> 8)
    assert found.remarks == ("16 bits for each colour, the upper 8 of which are taken",)


@pytest.mark.parametrize("name", ["x.gif", "x.tif", "x.webp"])
def test_first_of_several_frames_is_taken_and_that_is_told(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("black", "white")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    found = read_image(str(tmp_path / name))
    assert (found.pixels == 0).all()
    assert found.remarks == ("several frames, the first of which is taken",)


@pytest.mark.parametrize("deep", [False, True])
def test_images_are_upright(tmp_path: Path, deep: bool) -> None:
    values = RAMP[:4] if deep else (RAMP[:4] >> 8).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise
    Image.fromarray(values).save(tmp_path / "x.png", exif=exif)
    found = grey(tmp_path / "x.png").astype(float)
    assert found.shape == (8, 4)
    assert (np.diff(found, axis=0) >= 0).all()
    assert (np.diff(found, axis=1) <= 0).all()


@pytest.mark.parametrize("name", ["16.png", "float.tif"])
def test_deep_images_are_resized(tmp_path: Path, name: str) -> None:
    DEEP[name](tmp_path / name)
    pixels = read_image(str(tmp_path / name), 4).pixels
    assert pixels.shape == (4, 4, 3)
    assert pixels.mean() == pytest.approx(SCALED.mean(), rel=1e-3)


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def broken_chunk() -> bytes:
    png = encoded(Image.fromarray(RAMP), "PNG")
    place = png.find(b"IDAT") - 4
    return png[:place] + b"\0\0\0\5" + png[place + 4 :]


BROKEN = {
    "empty.png": (lambda: b"", "it is broken, or of an unknown format"),
    "text.jpg": (lambda: b"hello", "it is broken, or of an unknown format"),
    "chunk.png": (broken_chunk, "broken PNG file"),
    "short.png": (lambda: encoded(Image.fromarray(RAMP), "PNG")[:80], "truncated"),
    "short.tif": (lambda: encoded(Image.fromarray(RAMP), "TIFF")[:150], "truncated"),
    "bomb.png": (lambda: encoded(Image.new("1", (20000, 20000)), "PNG"), "exceeds limit"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_whatever_is_wrong_with_a_file_it_is_named(tmp_path: Path, name: str) -> None:
    content, told = BROKEN[name]
    (tmp_path / name).write_bytes(content())
    with pytest.raises(ValueError, match=rf"{name} cannot be read as an image: .*{told}"):
        read_image(str(tmp_path / name))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "x"), MemoryError()])
def test_errors_of_the_system_name_the_file_once(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(path: str) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(
        ValueError, match=r"^a/x\.png cannot be read as an image: (Per|Mem)"
    ) as found:
        read_image("a/x.png")
    assert str(found.value).count("x.png") == 1
