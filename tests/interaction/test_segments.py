"""Segments of a tensor: which weights belong together."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pysoftq.interaction.arrays import check_granularity
from pysoftq.interaction.segments import segment_bounds, segment_count


@pytest.mark.parametrize("text", ["layer", "channel", "group:1", "group:128"])
def test_granularities_are_taken_as_they_are(text: str) -> None:
    assert check_granularity(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "Layer", "row", "group", "group:", "group:0", "group:-1", "group:+1", "group:08"),
        *("group:1.5", "group:128 ", "channel\n", "group:" + "9" * 19, None, 128),
    ],
)
def test_anything_else_is_refused_with_what_is_wanted(text: object) -> None:
    with pytest.raises(ValueError, match=r"'layer', 'channel' or 'group:N'.*got "):
        check_granularity(text)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="granularity"):
        segment_bounds((2, 3), text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "granularity", "bounds"),
    [
        ((2, 3, 2), "layer", [0, 12]),
        ((2, 3, 2), "channel", [0, 6, 12]),
        ((2, 3, 2), "group:4", [0, 4, 6, 10, 12]),
        ((2, 6), "group:3", [0, 3, 6, 9, 12]),
        ((2, 6), "group:100", [0, 6, 12]),
        ((3,), "channel", [0, 1, 2, 3]),
        ((), "channel", [0, 1]),
        ((), "layer", [0, 1]),
        ((0, 4), "layer", [0, 0]),
        ((0, 4), "channel", [0]),
        ((4, 0), "group:2", [0]),
    ],
)
def test_bounds(shape: tuple[int, ...], granularity: str, bounds: list[int]) -> None:
    found = segment_bounds(shape, granularity)
    assert found.dtype == torch.int64
    assert found.tolist() == bounds
    assert segment_count(shape, granularity) == len(bounds) - 1


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 60))
def test_groups_are_what_splitting_each_slice_gives(shape: list[int], group: int) -> None:
    positions = torch.arange(math.prod(shape)).reshape(shape)
    bounds = segment_bounds(shape, f"group:{group}").tolist()
    found = [list(range(a, b)) for a, b in pairwise(bounds)]
    wanted = [part.tolist() for row in positions for part in row.reshape(-1).split(group)]
    assert found == wanted
    assert segment_count(shape, f"group:{group}") == len(wanted)


def test_counting_segments_takes_no_memory() -> None:
    assert segment_count((2**60, 2**60), "group:2") == 2**119
