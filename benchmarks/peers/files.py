"""Files of clustered weights by NumPy, zstandard and torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class Numpy:
    """Files of distinct values and packed indices, by NumPy."""

    @staticmethod
    def save(theta: Tensor, path: Path) -> None:
        """np.unique, np.packbits, np.savez."""
        values, index = np.unique(theta.numpy(), return_inverse=True)
        shifts = np.arange(max(int(values.size - 1).bit_length(), 1))
        bits = (index.reshape(-1, 1) >> shifts & 1).astype(np.uint8)
        with path.open("wb") as file:
            np.savez(file, values=values, bits=np.packbits(bits, axis=0), shape=theta.shape)

    @staticmethod
    def load(path: Path) -> Tensor:
        """np.unpackbits, take."""
        with np.load(path) as file:
            values, packed, shape = file["values"], file["bits"], file["shape"]
        bits = np.unpackbits(packed, axis=0)[: int(np.prod(shape))]
        index = (bits.astype(np.int32) << np.arange(bits.shape[1])).sum(1)
        return torch.from_numpy(values[index].reshape(shape))


class Zstandard:
    """Files of distinct values and compressed indices."""

    @staticmethod
    def save(theta: Tensor, path: Path) -> None:
        """np.unique, zstandard at its default level."""
        import zstandard

        values, index = np.unique(theta.numpy(), return_inverse=True)
        narrow = index.astype(np.min_scalar_type(values.size - 1))
        with path.open("wb") as file:
            np.save(file, values)
            np.save(file, np.array(theta.shape))
            file.write(zstandard.compress(narrow.tobytes()))

    @staticmethod
    def load(path: Path) -> Tensor:
        """Decompress, take."""
        import zstandard

        with path.open("rb") as file:
            values, shape = np.load(file), np.load(file)
            data = zstandard.decompress(file.read())
        index = np.frombuffer(data, np.min_scalar_type(values.size - 1))
        return torch.from_numpy(values[index].reshape(shape))


class Torch:
    """Files of all weights."""

    @staticmethod
    def save(theta: Tensor, path: Path) -> None:
        """torch.save."""
        torch.save(theta, path)

    @staticmethod
    def load(path: Path) -> Tensor:
        """torch.load."""
        found: Tensor = torch.load(path)
        return found


FILES: dict[str, type[Numpy | Zstandard | Torch]] = {
    "NumPy": Numpy,
    "zstandard": Zstandard,
    "torch.save": Torch,
}
