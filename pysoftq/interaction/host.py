"""Computing on the CPU, whatever device torch makes its tensors on by default; parts of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@contextmanager
def on_host() -> Iterator[None]:
    """Let torch make tensors on the CPU here, as if there were no `torch.set_default_device`.

    Also a decorator. Tables that describe a layer are small and read by Python, so they belong on
    the CPU; what belongs to the weights is made on their device explicitly.
    """
    import torch  # files are read and inspected without it

    if torch.get_default_device().type == "cpu":
        yield
    else:
        with torch.device("cpu"):
            yield


def joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts one after the other, on the device of the first, also if they are on several."""
    import torch

    return torch.cat([part.to(parts[0].device) for part in parts])


def new_memory(size: int, dtype: torch.dtype) -> Tensor:
    """A tensor of one dimension on the CPU, not initialized.

    NumPy asks the system for huge pages, and torch does not: a fault for each 4 KiB takes longer
    than to fill them.
    """
    import torch

    kind = "c16" if dtype.itemsize == 16 else f"i{dtype.itemsize}"  # no integers have 16 bytes
    return torch.from_numpy(np.empty(size, dtype=kind)).view(dtype)
