"""How fast the memory itself is: STREAM's loops over arrays far larger than any cache.

In place, where a loop writes to what it has just read: no array is fetched only to be overwritten,
so the bytes counted are the bytes moved. ``copy`` counts a read and a write, as STREAM does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

BYTES = {"copy": 8, "scale in place": 8, "triad in place": 12}  # of each float32 element


def stream(size: int, device: str) -> dict[str, Callable[[], object]]:
    """The loops over float32 arrays of ``size`` elements, on PyTorch's threads."""
    a, b = (torch.ones(size, device=device) for _ in range(2))
    return {
        "copy": lambda: b.copy_(a),
        "scale in place": lambda: a.mul_(-1.0),
        "triad in place": lambda: a.add_(b, alpha=1e-3),
    }
