"""How the layers of a model are shared out to the blocks of a GPU."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import emulated_cuda
import pytest
from hypothesis import given
from hypothesis import strategies as st

LEAST = 4096  # weights of a share
COST = 2**14  # of a share, in weights
MULTIPROCESSORS = 132

Share = tuple[int, int, int]  # unit, begin, end


def partition(sizes: Sequence[int], blocks: int) -> list[Share]:
    return emulated_cuda.backend()._cuda.partition(sizes, blocks)


def end_of(shares: Sequence[Share], blocks: int, cost: int) -> int:
    """When the last share ends, in weights, if the next one begins where one has ended."""
    ends = [0] * blocks
    for _, begin, end in shares:
        heapq.heapreplace(ends, ends[0] + end - begin + cost)
    return max(ends)


def one_wave(sizes: Sequence[int], blocks: int) -> int:
    """The smallest length of shares of which there are at most so many, or one per layer."""
    low, high = LEAST, max(LEAST, *sizes, LEAST)
    while low < high:
        middle = (low + high) // 2
        if sum(-(-size // middle) for size in sizes) <= blocks:
            high = middle
        else:
            low = middle + 1
    return low


def resnet50() -> list[int]:
    sizes, inside = [64 * 3 * 49], 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(depth):
            sizes += [inside * width, width * width * 9, width * 4 * width]
            if block == 0:
                sizes.append(inside * 4 * width)
            inside = 4 * width
    return [*sizes, 2048 * 1000]


def transformer(width: int, *others: int) -> list[int]:
    return [*others, *[3 * width**2, width**2, 4 * width**2, 4 * width**2] * 12]


NETWORKS = {
    "ResNet-50": resnet50(),
    "GPT-2": transformer(768, 50257 * 768),
    "ViT-B": transformer(768, 768 * 3 * 16**2, 1000 * 768),
}


@given(st.lists(st.integers(0, 10**9), max_size=40), st.integers(1, 300))
def test_every_weight_is_in_one_share(sizes: list[int], blocks: int) -> None:
    shares = partition(sizes, blocks)
    place = [(layer, begin) for layer, begin, _ in shares]
    assert place == sorted(place)
    for layer, size in enumerate(sizes):
        mine = [(begin, end) for owner, begin, end in shares if owner == layer]
        bounds = [0, *(end for _, end in mine)]
        assert bounds[-1] == size  # all of it,
        assert [begin for begin, _ in mine] == bounds[:-1]  # without gaps,
        assert all(begin < end for begin, end in mine)
        assert all(begin % 16 == 0 for begin, _ in mine)  # and as aligned as the layer


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=40), st.integers(1, 300))
def test_one_wave_is_as_short_as_can_be(sizes: list[int], blocks: int) -> None:
    shares = partition(sizes, blocks)
    longest = max((end - begin for _, begin, end in shares), default=0)
    length = one_wave(sizes, blocks)
    assert longest < length + 16
    if len(shares) > max(blocks, len(sizes)):
        # More waves than one, where they end sooner.
        assert end_of(shares, blocks, COST) < length + COST + 16


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("resident", [1, 2])  # blocks of a multiprocessor
def test_the_blocks_end_together(network: str, resident: int) -> None:
    sizes, blocks = NETWORKS[network], resident * MULTIPROCESSORS
    shares = partition(sizes, blocks)
    assert len(shares) <= 4 * blocks
    assert end_of(shares, blocks, 0) * blocks / sum(sizes) < 1.15


def test_many_small_layers_do_not_leave_the_large_one_in_one_piece() -> None:
    sizes = [100] * MULTIPROCESSORS + [10**7]
    shares = partition(sizes, MULTIPROCESSORS)
    assert end_of(shares, MULTIPROCESSORS, COST) < 10**7 / 50
