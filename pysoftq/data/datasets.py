"""Image data sets by name: embedded, of torchvision, or from a folder."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pysoftq.data.image_files import Pixels
from pysoftq.data.image_folder import LAYOUT, read_image_folder
from pysoftq.data.images import Dataset, Images, draw_moves, shift_and_flip
from pysoftq.data.names import DATASETS
from pysoftq.errors import abridged
from pysoftq.paths import user_path

# The usual normalisation of colour photographs (ImageNet's), for pixels in [0, 1].
PHOTO_MEAN = (0.485, 0.456, 0.406)

PHOTO_STD = (0.229, 0.224, 0.225)

# Names of the folder of test images, the first that is there.
TEST_FOLDERS = ("test", "val", "valid", "validation")

DIGITS_SHIFT = 2  # pixels, at most, that an image of digits:shifted is moved by


def load_dataset(  # noqa: PLR0913 - each option of the data
    name: str,
    *,
    seed: int = 0,
    data_root: str | Path = "data",
    download: bool = True,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Dataset:
    """Load ``digits``, ``cifar10``, ``cifar100`` or ``imagefolder:DIR`` into memory.

    ``digits:A-B`` are the digits from A to B, still of ten classes; ``digits:shifted`` are all of
    them, each moved at random. A folder has train/ and test/ (or val/, valid/, validation/), each
    with one sub-folder for each class. ``seed`` fixes the split of the digits and how they are
    moved; ``data_root`` and ``download`` concern torchvision's sets; ``image_size`` resizes the
    images of a folder; ``mean`` and ``std`` (one value, or one for each channel, pixels in [0, 1])
    replace the data set's own normalisation.

    Warns of files that are left out or lose something. Raises ValueError for an unknown name or
    unsuitable images, OSError for missing files, RuntimeError where torchvision is needed and
    missing.
    """
    kind, _, folder = name.partition(":")
    if kind == "digits":
        data = _digits(seed, folder)
    elif kind in ("cifar10", "cifar100") and not folder:
        data = _cifar(kind, user_path(data_root), download)
    elif kind == "imagefolder" and folder:
        data = _image_folder(name, user_path(folder), image_size)
    else:
        raise ValueError(f"unknown data set {name!r}; expected one of {', '.join(DATASETS)}")
    if mean is None and std is None:
        _warn_of_contrast(data)
        return data
    mean = _per_channel("mean", mean if mean is not None else data.mean, data.in_channels)
    std = _per_channel("std", std if std is not None else data.std, data.in_channels)
    return replace(data, mean=mean, std=std)


def _warn_of_contrast(data: Dataset) -> None:
    """Instruments often fill a small part of their 16 bits."""
    pixels = data.train.pixels
    if pixels.dtype != torch.float32:
        return
    mean, std = float(pixels.mean()) / 255, float(pixels.std()) / 255
    if std < min(PHOTO_STD) / 4:
        warnings.warn(
            f"{data.name}: the images have mean {mean:.3g} and standard deviation {std:.3g} of the "
            f"full range, and are normalised as photographs, of {PHOTO_MEAN[0]} and "
            f"{PHOTO_STD[0]}: give `mean` and `std`",
            stacklevel=3,
        )


def _per_channel(what: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) == 1:
        values = values * channels
    if len(values) != channels:
        raise ValueError(f"{what} has {len(values)} values, the images have {channels} channels")
    return values


def _digits(seed: int, part: str) -> Dataset:
    """The 1,797 digits of scikit-learn (8×8, one channel): a fifth of each class for the test."""
    first, last = _digits_of(part)
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # Values run from 0 to 16; 15 steps for each keep them exact in a byte.
    pixels = torch.from_numpy((15 * digits.images).astype(np.uint8))[..., None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, random_state=seed, stratify=digits.target
    )
    train, test = (
        half[(labels[half].numpy() >= first) & (labels[half].numpy() <= last)]
        for half in (train, test)
    )
    if part == "shifted":
        moves = draw_moves(np.random.default_rng((seed, 0)), len(pixels), DIGITS_SHIFT, flip=False)
        pixels = shift_and_flip(pixels, torch.from_numpy(moves), DIGITS_SHIFT)
    scaled = pixels[train].double() / 255
    return Dataset(
        name=f"digits:{part}" if part else "digits",
        train=Images(pixels[train], labels[train]),
        test=Images(pixels[test], labels[test]),
        classes=tuple(str(name) for name in digits.target_names),
        mean=(round(float(scaled.mean()), 4),),
        std=(round(float(scaled.std()), 4),),
        shift=1,
        flip=False,
    )


def _digits_of(part: str) -> tuple[int, int]:
    """The first and the last digit of ``A-B``, else all of them."""
    if part in ("", "shifted"):
        return 0, 9
    first, dash, last = part.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal() and int(first) < int(last) <= 9):
        raise ValueError(f"unknown data set 'digits:{part}'; expected two digits A-B, A below B")
    return int(first), int(last)


def _cifar(kind: str, root: Path, download: bool) -> Dataset:
    try:
        from torchvision import datasets
    except ImportError:
        raise RuntimeError(
            f"the data set {kind} is read by torchvision, which is missing: "
            "run pip install torchvision"
        ) from None
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]
    try:
        halves = [source(root=str(root), train=train, download=download) for train in (True, False)]
    except (OSError, RuntimeError) as error:  # nothing there, damaged, no network
        raise OSError(f"{kind} cannot be read from the folder {root}: {error}") from error
    train, test = (
        Images(torch.from_numpy(np.asarray(half.data)), torch.tensor(half.targets))
        for half in halves
    )
    return Dataset(
        kind, train, test, tuple(halves[0].classes), PHOTO_MEAN, PHOTO_STD, shift=4, flip=True
    )


def _image_folder(name: str, folder: Path, image_size: int | None) -> Dataset:
    halves = _halves(folder)
    train_pixels, train_labels, classes = read_image_folder(halves[0], image_size)
    test_pixels, test_labels, test_classes = read_image_folder(halves[1], image_size)
    train, test = (f"{half.name}/" for half in halves)
    if classes != test_classes:
        differing = abridged(sorted(set(classes) ^ set(test_classes)))
        raise ValueError(f"{folder}: {train} and {test} differ in the classes {differing}")
    if len(classes) < 2:
        raise ValueError(f"{folder} has one class, {classes[0]}: there is nothing to tell apart")
    if train_pixels.shape[1:] != test_pixels.shape[1:]:
        raise ValueError(
            f"{folder}: images of {train} are {_size(train_pixels)}, of {test} "
            f"{_size(test_pixels)}; give an image size"
        )
    if train_pixels.dtype != test_pixels.dtype:
        raise ValueError(f"{folder}: images of {train} and {test} differ in their bits per value")
    return Dataset(
        name=name,
        train=Images(torch.from_numpy(train_pixels), torch.from_numpy(train_labels)),
        test=Images(torch.from_numpy(test_pixels), torch.from_numpy(test_labels)),
        classes=classes,
        mean=PHOTO_MEAN,
        std=PHOTO_STD,
        # An eighth of the side: 4 pixels for 32×32, as is usual for CIFAR.
        shift=max(1, train_pixels.shape[1] // 8),
        flip=True,
    )


def _halves(folder: Path) -> tuple[Path, Path]:
    """The folders of training and of test images.

    Raises FileNotFoundError where one is missing, ValueError where several may be the test's.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no image folder {folder}")
    found = [name for name in TEST_FOLDERS if (folder / name).is_dir()]
    if not found or not (folder / "train").is_dir():
        missing = "train/" if found else "test/"
        held = abridged(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FileNotFoundError(f"{folder} has no {missing}: {LAYOUT}; it holds {held}")
    test, *unused = found
    if unused and test != "test":
        raise ValueError(f"{folder} has {'/, '.join(found)}/: call the one to test on test/")
    if unused:
        warnings.warn(
            f"{folder}: {'/, '.join(unused)}/ is not used: accuracies are those on test/",
            stacklevel=4,
        )
    return folder / "train", folder / test


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[2]}×{pixels.shape[1]}"
