"""How the examples of an epoch are cut into batches."""

from __future__ import annotations


def batch_count(examples: int, batch_size: int) -> int:
    """Number of batches in an epoch, a smaller last one included.

    A single example that would be left is joined to the batch before it: batch normalisation
    cannot be trained on one example.
    """
    lone = batch_size > 1 and examples > batch_size and examples % batch_size == 1
    return -(-examples // batch_size) - lone


def batch_slices(examples: int, batch_size: int, start: int = 0) -> list[slice]:
    """The places of each batch in the order of an epoch, from batch number ``start`` on."""
    count = batch_count(examples, batch_size)
    ends = [batch_size * number for number in range(1, count)] + [examples] * (count > 0)
    return [slice(batch_size * number, ends[number]) for number in range(start, count)]
