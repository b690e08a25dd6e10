"""How fast the memory itself is: STREAM's loops over arrays far larger than any cache.

The triad adds in place: no array is fetched only to be overwritten, so the bytes counted are the
bytes moved, and PyTorch's loop is as fast as one written by hand. ``copy`` counts a read and a
write, as STREAM does, though PyTorch's fetches what it overwrites.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BYTES = {"copy": 8, "triad": 12, "read": 4}  # of each float32 element
STREAM = ("copy", "triad")


def stream(size: int, device: str) -> dict[str, Callable[[], Tensor]]:
    """The loops over float32 arrays of ``size`` elements, on PyTorch's threads."""
    a, b = (torch.ones(size, device=device) for _ in range(2))
    return {
        "copy": lambda: b.copy_(a),
        "triad": lambda: a.add_(b, alpha=1e-3),
        "read": a.sum,  # not STREAM's, but two thirds of a force step's traffic
    }
