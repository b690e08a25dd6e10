"""Segments: the parts of a weight tensor that interact with themselves alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

_FORM = re.compile(r"layer|channel|group:[1-9][0-9]{0,17}")


def check_granularity(text: str) -> str:
    """Return the granularity, or raise ValueError unless it is one.

    "layer" makes a tensor one segment, "channel" each of its slices along dimension 0, and
    "group:N" each N consecutive weights within such a slice, of which the last may be fewer.
    """
    if not isinstance(text, str) or not _FORM.fullmatch(text):
        raise ValueError(
            "granularity must be 'layer', 'channel' or 'group:N' with N weights, 1 or more "
            f"(such as 'group:128'), not {text!r}"
        )
    return text


def segment_bounds(shape: Sequence[int], granularity: str) -> Tensor:
    """Where the segments of a tensor begin and end in its flattened weights, int64 (G+1,).

    Segment g is `flat[bounds[g]:bounds[g + 1]]` of `flat = theta.reshape(-1)`. No segment is
    empty, unless all of the tensor is: then there is one for "layer" and none otherwise.

    Args:
        shape: of the tensor; one without dimensions counts as a slice of one weight.
        granularity: see `check_granularity`.

    Raises:
        ValueError: the granularity is none.
    """
    check_granularity(granularity)
    slices, length = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    size = slices * length
    if granularity == "layer":
        return torch.tensor([0, size])
    if size == 0:
        return torch.zeros(1, dtype=torch.int64)
    group = length if granularity == "channel" else int(granularity.removeprefix("group:"))
    starts = torch.arange(0, slices * length, length)[:, None] + torch.arange(0, length, group)
    return torch.cat([starts.reshape(-1), torch.tensor([size])])
