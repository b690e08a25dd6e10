"""Computing on the CPU, whatever device torch makes its tensors on by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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
