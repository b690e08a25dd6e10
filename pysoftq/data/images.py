"""Image data sets held in the device's memory, cut into batches that depend only on their numbers.

Pixels of 8 bits stay uint8; a batch is gathered, moved and normalised on the device. The order of
the images and their random shifts and flips are pure functions of (seed, epoch, batch), the same on
every device and in any number of processes: a resumed run needs no generator state. The host draws
them for a whole epoch and sends them in one piece, so that no batch waits for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pysoftq.data.batching import WHOLE, Share, batch_slices
from pysoftq.data.tasks import CLASSIFICATION, Task

EVALUATION_BATCH = 128  # what larger ones compute leaves the caches of a CPU
# Of the training images by default: about so many, but no less and no more than these shares.
_ENOUGH, _LEAST_SHARE, _MOST_SHARE = 500, 0.1, 0.25
# Copies of held-out images, at most, and how many images there are to be with them.
_COPIES, _MANY = 8, 5000
_HELD_OUT = 2**32 - 1  # in the place of an epoch, so that the draw shares its stream with none


@dataclass(frozen=True)
class Images:
    """One half of a data set: pixels (N, H, W, C) and labels (N,) int64.

    Pixels are uint8, or float32 on the same scale, 0 to 255.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def to(self, device: torch.device) -> Images:
        """The same images on ``device``."""
        return Images(self.pixels.to(device), self.labels.to(device))

    def chosen(self, mask: NDArray[np.bool_]) -> Images:
        """The images where the mask (N,) is set, in the same order."""
        places = torch.from_numpy(np.flatnonzero(mask)).to(self.labels.device)
        return Images(self.pixels.index_select(0, places), self.labels.index_select(0, places))


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

    def hold_out(self, share: float | None, seed: int) -> tuple[Dataset, Images]:
        """The data without a share of the training images of each class, and that share.

        By default a tenth; of fewer than 5,000 images more, up to a quarter, so that one image
        weighs less. A class keeps at least one image, and gives at least one where it has two.

        Raises:
            ValueError: no class has two images.
        """
        if share is None:
            share = min(max(_LEAST_SHARE, _ENOUGH / len(self.train)), _MOST_SHARE)
        labels = self.train.labels.cpu().numpy()
        rng = np.random.default_rng((seed, _HELD_OUT))
        held = np.zeros(len(labels), dtype=bool)
        for label in np.unique(labels):
            places = rng.permutation(np.flatnonzero(labels == label))
            count = min(max(round(share * len(places)), 1), len(places) - 1)
            held[places[:count]] = True
        if not held.any():
            raise ValueError(f"{self.name}: no class has two training images")
        return replace(self, train=self.train.chosen(~held)), self.train.chosen(held)

    def remarks(self) -> list[str]:
        """Nothing: all images are used."""
        return []

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
        # A copy: pixels that are float32 already are those of the data set.
        scaled = pixels.to(torch.float32, copy=True).mul_(factor)
        return scaled.sub_(offset).permute(0, 3, 1, 2)

    @cached_property
    def _scales(self) -> tuple[Tensor, Tensor]:
        """1 / (255 std) and mean / std of each channel, on the device of the pixels."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        device = self.train.pixels.device
        return (1 / (255 * std)).to(device), (mean / std).to(device)

    def batches(
        self,
        seed: int,
        epoch: int,
        batch_size: int,
        *,
        start: int = 0,
        augment: bool = True,
        share: Share = WHOLE,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled training batches of one epoch from batch number ``start`` on.

        Yields images (B, C, H, W) float32 and labels (B,), the ``share`` of each of `batch_slices`.
        """
        count, device = len(self.train), self.train.labels.device
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(count)).to(device)
        moves = self._moves(seed, epoch, batch_size).to(device) if augment else None
        for batch in batch_slices(count, batch_size, start):
            place = share.part(batch).place
            pixels = self.train.pixels.index_select(0, order[place])
            if moves is not None:
                pixels = shift_and_flip(pixels, moves[place], self.shift)
            yield self.normalize(pixels), self.train.labels.index_select(0, order[place])

    def _moves(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        """Random moves (N, 3) of the images of an epoch, in its order, drawn batch by batch."""
        drawn = []
        # From 1 on, so that no batch shares its stream with the order of an epoch.
        for number, batch in enumerate(batch_slices(len(self.train), batch_size), 1):
            rng = np.random.default_rng((seed, epoch, number))
            drawn.append(draw_moves(rng, batch.stop - batch.start, self.shift, self.flip))
        return torch.from_numpy(np.concatenate(drawn))

    def ordered(
        self, images: Images, batch_size: int = EVALUATION_BATCH
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in their stored order, in batches, without augmentation."""
        for start in range(0, len(images), batch_size):
            stop = start + batch_size
            yield self.normalize(images.pixels[start:stop]), images.labels[start:stop]

    def varied(self, images: Images) -> Iterator[tuple[Tensor, Tensor]]:
        """The same, followed by copies that are shifted and mirrored at random, as in training.

        Of fewer than 5,000 images there are up to eight copies, always the same ones. Averaging
        over them makes the comparison of two networks less noisy.
        """
        yield from self.ordered(images)
        missing = -(-_MANY // max(len(images), 1)) - 1
        for copy in range(min(missing, _COPIES) if self.shift or self.flip else 0):
            rng = np.random.default_rng((copy, _HELD_OUT, 1))
            drawn = draw_moves(rng, len(images), self.shift, self.flip)
            moves = torch.from_numpy(drawn).to(images.labels.device)
            for start in range(0, len(images), EVALUATION_BATCH):
                part = slice(start, start + EVALUATION_BATCH)
                pixels = shift_and_flip(images.pixels[part], moves[part], self.shift)
                yield self.normalize(pixels), images.labels[part]


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
