"""The sizes of the networks of a front: as an option, and for a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

from pysoftq.errors import ConfigError
from pysoftq.options import parse_size

COUNTS = range(2, 33)
EPOCHS = 5  # of codebook training for each rung; the first guess at what keeps its accuracy
# Of the coupled weights in float32, on top of the smallest file: 5.1 and 0.6 bits per weight. A
# larger file is hardly more accurate, a smaller one loses several points.
LARGEST, SMALLEST = 0.16, 0.02


def parse_front(given: Any) -> int | tuple[int, ...]:
    """A number of rungs, or the sizes of all, from large to small.

    Raises:
        ValueError: it is neither, or two sizes are equal.
    """
    if isinstance(given, str):
        given = int(given) if given.strip().isdecimal() else given.split(",")
    if isinstance(given, int) and not isinstance(given, bool):
        if given not in COUNTS:
            raise ValueError(f"expected {COUNTS[0]} to {COUNTS[-1]} networks, or their sizes")
        return given
    if not isinstance(given, (list, tuple)):
        raise ValueError("expected a number of networks, or sizes such as 60kB,40kB,20kB")  # noqa: TRY004 - of pydantic
    sizes = sorted((_size(one) for one in given), reverse=True)
    if len(sizes) not in COUNTS:
        raise ValueError(f"expected {COUNTS[0]} to {COUNTS[-1]} sizes")
    if twice := [size for size in sizes if sizes.count(size) > 1]:
        raise ValueError(f"{twice[0]:,} bytes are given twice")
    return tuple(sizes)


def _size(given: Any) -> int:
    size = parse_size(given)
    if not isinstance(size, int) or size <= 0:
        raise ValueError("expected sizes above 0 such as 60kB, 1.5MB or 60KiB")
    return size


FrontSizes = Annotated[int | tuple[int, ...], BeforeValidator(parse_front)]


def front_epochs(given: Mapping[str, Any]) -> dict[str, Any]:
    """The epochs of codebook training that a front among these options brings in."""
    try:
        front = parse_front(given["front"])
    except (KeyError, ValueError):  # the latter is reported with the other options
        return {}
    return {"codebook_epochs": EPOCHS * (front if isinstance(front, int) else len(front))}


def front_sizes(front: int | tuple[int, ...], smallest: int, weights: int) -> tuple[int, ...]:
    """The sizes of all files, from large to small.

    Where only their number is given, what they add to the smallest file is spaced geometrically.

    Args:
        front: their number, or the sizes.
        smallest: bytes of the file with one value for each layer.
        weights: that are coupled.

    Raises:
        ConfigError: the weights are too few for so many sizes.
    """
    if not isinstance(front, int):
        return front
    ratio = (SMALLEST / LARGEST) ** (1 / (front - 1))
    sizes = tuple(smallest + round(4 * weights * LARGEST * ratio**n) for n in range(front))
    if len({*sizes, smallest}) <= front:
        raise ConfigError(
            f"option 'front': {weights:,} coupled weights are too few for {front} sizes"
        )
    return sizes


def check_sizes(sizes: Sequence[int], bytes_float32: int, smallest: int, why: str) -> None:
    """Refuse sizes that no file can have.

    Args:
        sizes: of the files.
        bytes_float32: of the network.
        smallest: bytes of the file with one value for each layer.
        why: what takes these.

    Raises:
        ConfigError: a size is below the smallest file, or not below the network in float32.
    """
    for size in sizes:
        if size < smallest:
            raise ConfigError(f"option 'front': {size:,} bytes cannot be reached: {why}")
        check_compresses("front", size, bytes_float32)


def check_compresses(option: str, size: int, bytes_float32: int) -> None:
    """Raise ConfigError for a size that is not below that of the network in float32."""
    if size >= bytes_float32:
        raise ConfigError(
            f"option {option!r}: {size:,} bytes are no compression: the network takes "
            f"{bytes_float32:,} bytes in float32"
        )
