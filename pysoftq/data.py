"""Image data sets held in the device's memory, cut into batches that depend only on their numbers.

Pixels stay uint8; a batch is gathered, moved and normalised on the device. The order of the images
and their random shifts and flips are pure functions of (seed, epoch, batch), the same on every
device: a resumed run needs no generator state. The host draws them for a whole epoch and sends
them in one piece, so that no batch waits for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pysoftq.config import DATASETS, TEXTS, CompressConfig
from pysoftq.huggingface import FolderTokenizer, is_folder_model
from pysoftq.imagefolder import read_image_folder
from pysoftq.tasks import CLASSIFICATION, Data, Task
from pysoftq.text import read_text

# The usual normalisation of colour photographs (ImageNet's), for pixels in [0, 1].
PHOTO_MEAN = (0.485, 0.456, 0.406)
PHOTO_STD = (0.229, 0.224, 0.225)

EVALUATION_BATCH = 500
DIGITS_SHIFT = 2  # pixels, at most, that an image of digits:shifted is moved by


@dataclass(frozen=True)
class Images:
    """One half of a data set: pixels (N, H, W, C) uint8 and labels (N,) int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def to(self, device: torch.device) -> Images:
        """The same images on ``device``."""
        return Images(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Training and test images, with the normalisation and augmentation that suit them.

    ``mean`` and ``std`` are for pixels in [0, 1], one value for each channel; ``shift`` is the
    largest random shift in pixels, in both directions; ``flip`` allows mirror images.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: int
    flip: bool

    @property
    def task(self) -> Task:
        """Images are classified."""
        return CLASSIFICATION

    @property
    def model_shape(self) -> dict[str, Any]:
        """Classes and channels, as a network for these images has them."""
        return {"num_classes": len(self.classes), "in_channels": self.in_channels}

    def metadata(self) -> dict[str, Any]:
        """What images a network takes, and their normalisation; an input is without the batch."""
        height, width, channels = self.train.pixels.shape[1:]
        return {
            "input": {"shape": [channels, height, width], "dtype": "float32"},
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.train.pixels.shape[3]

    def to(self, device: torch.device) -> Dataset:
        """The same data set with its tensors on ``device``."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def fingerprint(self) -> str:
        """SHA-256 of every pixel, label and the normalisation."""
        digest = hashlib.sha256(repr((self.classes, self.mean, self.std)).encode())
        for images in (self.train, self.test):
            digest.update(repr(tuple(images.pixels.shape)).encode())
            digest.update(images.pixels.cpu().contiguous().numpy().data)
            digest.update(images.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def normalize(self, pixels: Tensor) -> Tensor:
        """Float32 images (B, C, H, W), in channels-last memory, from pixels (B, H, W, C).

        oneDNN convolves channels-last images about twice as fast on a CPU.
        """
        factor, offset = self._scales
        return pixels.float().mul_(factor).sub_(offset).permute(0, 3, 1, 2)

    @cached_property
    def _scales(self) -> tuple[Tensor, Tensor]:
        """1 / (255 std) and mean / std of each channel, on the device of the pixels."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        device = self.train.pixels.device
        return (1 / (255 * std)).to(device), (mean / std).to(device)

    def batches(
        self, seed: int, epoch: int, batch_size: int, *, start: int = 0, augment: bool = True
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled training batches of one epoch from batch number ``start`` on.

        Yields images (B, C, H, W) float32 and labels (B,). The last batch may be smaller.
        """
        count, device = len(self.train), self.train.labels.device
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(count)).to(device)
        moves = self._moves(seed, epoch, batch_size).to(device) if augment else None
        for first in range(start * batch_size, count, batch_size):
            batch = slice(first, first + batch_size)
            pixels = self.train.pixels.index_select(0, order[batch])
            if moves is not None:
                pixels = shift_and_flip(pixels, moves[batch], self.shift)
            yield self.normalize(pixels), self.train.labels.index_select(0, order[batch])

    def _moves(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        """Random moves (N, 3) of the images of an epoch, in its order, drawn batch by batch."""
        count = len(self.train)
        drawn = []
        for batch in range(batch_count(count, batch_size)):
            # One added, so that no batch shares its stream with the order of an epoch.
            rng = np.random.default_rng((seed, epoch, batch + 1))
            size = min(batch_size, count - batch * batch_size)
            drawn.append(draw_moves(rng, size, self.shift, self.flip))
        return torch.from_numpy(np.concatenate(drawn))

    def ordered(self, images: Images) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in their stored order, in batches, without augmentation."""
        for start in range(0, len(images), EVALUATION_BATCH):
            stop = start + EVALUATION_BATCH
            yield self.normalize(images.pixels[start:stop]), images.labels[start:stop]


def batch_count(images: int, batch_size: int) -> int:
    """Number of batches in an epoch, a smaller last one included."""
    return -(-images // batch_size)


def draw_moves(rng: np.random.Generator, count: int, shift: int, flip: bool) -> NDArray[np.int64]:
    """Random moves (count, 3) of as many images, as ``shift_and_flip`` takes them."""
    moves = np.zeros((count, 3), dtype=np.int64)
    if flip:
        moves[:, 2] = rng.integers(0, 2, size=count)
    if shift:
        moves[:, :2] = rng.integers(0, 2 * shift + 1, size=(2, count)).T
    return moves


def shift_and_flip(pixels: Tensor, moves: Tensor, shift: int) -> Tensor:
    """Cut each image (B, H, W, C), padded with ``shift`` black pixels, back to its size.

    ``moves`` (B, 3) int64, on the same device, holds the row and the column at which the cut
    begins, from 0 to 2 ``shift``, and whether it is mirrored, 0 or 1.
    """
    _, height, width, _ = pixels.shape
    device = pixels.device
    top, left, mirrored = moves[:, :, None].unbind(1)
    column = torch.arange(width, device=device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.where(mirrored > 0, width - 1 - column, column)
    if shift:
        pixels = F.pad(pixels, (0, 0, shift, shift, shift, shift))
    image = torch.arange(len(pixels), device=device)
    return pixels[image[:, None, None], rows[:, :, None], columns[:, None, :]]


def read_data(config: CompressConfig) -> Data:
    """The data that the options of a run ask for: text for ``pydoc`` and ``text:FILE``.

    Raises as ``load_dataset`` and ``read_text`` do.
    """
    if config.dataset.partition(":")[0] in TEXTS:
        model = config.model
        tokenizer = FolderTokenizer(model) if is_folder_model(model) else None
        return read_text(config.dataset, config.context, tokenizer)
    return load_dataset(
        config.dataset,
        seed=config.seed if config.split_seed is None else config.split_seed,
        data_root=config.data_root,
        download=config.download,
        image_size=config.image_size,
        mean=config.mean,
        std=config.std,
    )


def read_pretraining_data(config: CompressConfig) -> Data | None:
    """The data to pretrain on, None where they are those of the run; raises as ``read_data``."""
    name = config.pretrain_dataset
    if name is None or name == config.dataset:
        return None
    return read_data(config.model_copy(update={"dataset": name}))


def load_dataset(
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
    them, each moved at random. ``seed`` fixes the split of the digits and how they are moved;
    ``data_root`` and ``download`` concern torchvision's sets; ``image_size`` resizes the images of
    a folder; ``mean`` and ``std`` (one value, or one for each channel, pixels in [0, 1]) replace
    the data set's own normalisation.

    Raises ValueError for an unknown name or unsuitable images, OSError for missing files,
    RuntimeError where torchvision is needed and missing.
    """
    kind, _, folder = name.partition(":")
    if kind == "digits":
        data = _digits(seed, folder)
    elif kind in ("cifar10", "cifar100") and not folder:
        data = _cifar(kind, Path(data_root), download)
    elif kind == "imagefolder" and folder:
        data = _image_folder(name, Path(folder), image_size)
    else:
        raise ValueError(f"unknown data set {name!r}; wanted one of {', '.join(DATASETS)}")
    if mean is None and std is None:
        return data
    mean = _per_channel("mean", mean if mean is not None else data.mean, data.in_channels)
    std = _per_channel("std", std if std is not None else data.std, data.in_channels)
    return replace(data, mean=mean, std=std)


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
        raise ValueError(f"unknown data set 'digits:{part}'; wanted two digits A-B, A below B")
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
    halves = [source(root=str(root), train=train, download=download) for train in (True, False)]
    train, test = (
        Images(torch.from_numpy(np.asarray(half.data)), torch.tensor(half.targets))
        for half in halves
    )
    return Dataset(
        kind, train, test, tuple(halves[0].classes), PHOTO_MEAN, PHOTO_STD, shift=4, flip=True
    )


def _image_folder(name: str, folder: Path, image_size: int | None) -> Dataset:
    train_pixels, train_labels, classes = read_image_folder(folder / "train", image_size)
    test_pixels, test_labels, test_classes = read_image_folder(folder / "test", image_size)
    if classes != test_classes:
        differing = sorted(set(classes) ^ set(test_classes))
        raise ValueError(f"{folder}: train/ and test/ differ in the classes {', '.join(differing)}")
    if train_pixels.shape[1:] != test_pixels.shape[1:]:
        raise ValueError(
            f"{folder}: images of train/ are {_size(train_pixels)}, of test/ {_size(test_pixels)}; "
            "give an image size"
        )
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


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[2]}×{pixels.shape[1]}"
