"""Reading a folder of images, one sub-folder for each class, into one array."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pysoftq.data.image_files import Pixels, read_image
from pysoftq.errors import abridged

SUFFIXES = (
    *(".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
LAYOUT = (
    "expected train/CLASS/IMAGE and test/CLASS/IMAGE, such as train/cat/1.png and test/cat/2.png; "
    "val/ may stand for test/"
)


@dataclass
class Listing:
    """The images below a folder, in the order of classes and names.

    Attributes:
        classes: names of the sub-folders, sorted.
        files: paths of the images.
        labels: number of the class of each.
        others: files that are no images by their names, or lie in no class; hidden ones aside.
    """

    classes: tuple[str, ...]
    files: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def read_image_folder(
    folder: Path, image_size: int | None = None
) -> tuple[Pixels, NDArray[np.int64], tuple[str, ...]]:
    """Decode ``folder/<class>/<image>`` into pixels (N, H, W, 3), labels (N,) and class names.

    With ``image_size`` every image is resized to that square; without it all must have one size.
    Pixels are those of `read_image`, all of one depth. Warns of files that are left out, and of
    what is lost of others.

    Raises as `list_images`, and ValueError for an image that cannot be read and for sizes or
    depths that differ (the message names the file).
    """
    listing = list_images(folder)
    files = listing.files
    first = read_image(files[0], image_size).pixels
    pixels = np.empty((len(files), *first.shape), dtype=first.dtype)

    def fill(index: int) -> tuple[str, ...]:
        picture = read_image(files[index], image_size)
        _refuse_other_form(files[index], picture.pixels, files[0], first)
        pixels[index] = picture.pixels
        return picture.remarks

    # Pillow decodes without the GIL. Its own warnings do not say which file they are about.
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")
        remarks = list(pool.map(fill, range(len(files)), chunksize=256))
    _warn(folder, listing.others, "left out, not images of a class by their names")
    for remark in sorted({remark for found in remarks for remark in found}):
        which = [file for file, found in zip(files, remarks, strict=True) if remark in found]
        _warn(folder, which, f"images with {remark}")
    return pixels, np.asarray(listing.labels, dtype=np.int64), listing.classes


def list_images(folder: Path) -> Listing:
    """Find ``folder/<class>/<image>``, also in folders inside of a class; nothing is opened.

    Classes and files are sorted by name; hidden ones (``.name``) are left out.

    Raises FileNotFoundError for a missing folder, OSError for one that cannot be listed,
    ValueError for one without classes and for a class without images.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no image folder {folder}")
    entries = sorted(_visible(entry.name for entry in folder.iterdir()))
    classes = [name for name in entries if (folder / name).is_dir()]
    loose = [str(folder / name) for name in entries if name not in classes]
    if not classes:
        held = f"; it holds {abridged(entries)}" if entries else ""
        raise ValueError(f"{folder} holds no class folders: {LAYOUT}{held}")
    listing = Listing(tuple(classes), others=loose)
    for label, name in enumerate(classes):
        before = len(listing.files)
        for path in _files(folder / name):
            is_image = path.lower().endswith(SUFFIXES)
            (listing.files if is_image else listing.others).append(path)
        if not (count := len(listing.files) - before):
            raise ValueError(
                f"{folder / name} holds no images: every class needs one that ends in "
                f"{', '.join(SUFFIXES)}"
            )
        listing.labels += [label] * count
    return listing


def _files(top: Path) -> Iterator[str]:
    """All visible files below a folder, each folder's own first; a circle of links ends."""

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for root, folders, names in os.walk(top, onerror=fail, followlinks=True):
        folders[:] = sorted(_visible(folders))
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (f"{root}{os.sep}{name}" for name in sorted(_visible(names)))


def _visible(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.startswith(".")]


def _refuse_other_form(path: str, image: Pixels, first_path: str, first: Pixels) -> None:
    if image.shape != first.shape:
        raise ValueError(
            f"{path} is {_size(image)}, but {first_path} is {_size(first)}: "
            "all images need one size, or give an image size"
        )
    if image.dtype != first.dtype:
        raise ValueError(
            f"{path} has {_depth(image)} for each value, but {first_path} has {_depth(first)}: "
            "convert the ones to the depth of the others"
        )


def _warn(folder: Path, paths: list[str], what: str) -> None:
    if paths:
        names = abridged([os.path.relpath(path, folder) for path in paths])
        warnings.warn(f"{folder}: {what}: {names}", stacklevel=3)


def _size(image: Pixels) -> str:
    return f"{image.shape[1]}×{image.shape[0]}"


def _depth(image: Pixels) -> str:
    return "8 bits" if image.dtype == np.uint8 else "more than 8 bits"
