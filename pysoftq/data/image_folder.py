"""Reading a folder of images, one sub-folder for each class, into one array."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_image_folder(
    folder: Path, image_size: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Decode ``folder/<class>/<image>`` into pixels (N, H, W, 3), labels (N,) and class names.

    Classes and files are sorted by name, hidden ones (``.name``) left out. With ``image_size``
    every image is resized to that square; without it all must have one size.

    Raises FileNotFoundError for a missing folder, ValueError for a folder without images, for an
    image that cannot be read and for sizes that differ (the message names the file).
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no image folder {folder}")
    classes = tuple(
        sorted(
            entry.name
            for entry in os.scandir(folder)
            if entry.is_dir() and not entry.name.startswith(".")
        )
    )
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = sorted(
            entry.path
            for entry in os.scandir(folder / name)
            if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
        )
        if not inside:
            raise ValueError(f"{folder / name} holds no images")
        files += inside
        labels += [label] * len(inside)
    if not files:
        raise ValueError(f"{folder} holds no class folders with images")

    first = _decode(files[0], image_size)
    pixels = np.empty((len(files), *first.shape), dtype=np.uint8)

    def fill(index: int) -> None:
        image = _decode(files[index], image_size)
        if image.shape != first.shape:
            raise ValueError(
                f"{files[index]} is {_size(image)}, but {files[0]} is {_size(first)}: "
                "all images need one size, or give an image size"
            )
        pixels[index] = image

    # Pillow decodes without the GIL.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(len(files)), chunksize=256):
            pass
    return pixels, np.asarray(labels, dtype=np.int64), classes


def _decode(path: str, image_size: int | None) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
            if image_size is not None:
                rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR)
            return np.asarray(rgb)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]}×{image.shape[0]}"
