"""How the examples of an epoch are cut into batches, and a batch between processes."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True)
class Part:
    """What one of several processes takes of a batch.

    Attributes:
        place: the examples, in the order of the epoch.
        weight: of a mean over these examples in the mean over the batch; those of all processes
            add up to 1.
        least: how many examples the process with the fewest takes.
        copies: how many processes take these examples: of a batch with fewer examples than
            processes, each takes all.
        counted: whether these examples count; of copies, those of the first process do.
    """

    place: slice
    weight: float
    least: int
    copies: int
    counted: bool


@dataclass(frozen=True)
class Share:
    """One of several processes that divide each batch; the default takes all of it."""

    rank: int = 0
    of: int = 1

    def part(self, batch: slice) -> Part:
        """The part of a batch that this process takes: as many examples as others, or one more."""
        size = batch.stop - batch.start
        if size < self.of:
            return Part(batch, 1 / self.of, size, self.of, self.rank == 0)
        begin, end = (batch.start + size * rank // self.of for rank in (self.rank, self.rank + 1))
        return Part(slice(begin, end), (end - begin) / size, size // self.of, 1, counted=True)


WHOLE = Share()
