"""The CUDA core; `pysoftq.interaction.backends.cuda` converts its arguments.

Addresses are of device memory, as integers; a stream is its handle, 0 the default stream.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class Place:
    """A device, a stream on it, and memory there that lives as long as the work at the place."""

    def __init__(self, device: int, stream: int, allocate: Callable[[int], int]) -> None: ...

class Control:
    """What differs from step to step; a graph that is replayed counts `step` on by itself."""

    def __init__(self, scale: float, fraction: float, seed: int, step: int) -> None: ...

class Coupling:
    """The segments of layers. `addresses` are (weights, gradient, takes part) of each layer."""

    def __init__(
        self,
        layers: Sequence[tuple[str, int, int, int, int]],
        rows: NDArray[np.int64],
        scales: NDArray[np.float64],
        how: tuple[bool, bool],
        phased: bool,
        place: Place,
    ) -> None:
        """Of segments in the order of their layers.

        Args:
            layers: (scalar, index, and the block of the layer that this process holds: position of
                the first weight, columns, positions from one row to the next).
            rows: (R, 7) layer, begin, size, position, total, bins, and 0, 1 for a segment that
                other processes hold more of, or 2 if another one counts the same weights.
            scales: (R, 2) width, strength.
            how: whether the potential is by cuFFT, of whole layers, and whether it is the log one.
            phased: whether steps take the phases of pieces.
            place: for this object's memory.
        """

    def set(self, control: Control, stream: int) -> None: ...
    def add_force(
        self, addresses: Sequence[tuple[int, int, bool]], control: Control, stream: int
    ) -> None:
        """A step recorded in a CUDA graph leaves out the control: its replays use the device's."""

    def energies(
        self, addresses: Sequence[tuple[int, int, bool]], place: Place
    ) -> tuple[list[tuple[int, str]], NDArray[Any]]:
        """[(row, reason)] of those refused, and the energies of the rows if there are none."""

    def capturing(self, stream: int) -> bool:
        """Whether work on the stream is recorded into a CUDA graph."""

    def check(self, stream: int) -> list[tuple[int, str]]:
        """[(row, reason)] of the first step refused since the last call."""

    @property
    def exchanged(self) -> int:
        """Number of counts of the shared rows."""

    def extremes(
        self, addresses: Sequence[tuple[int, int, bool]], layers: int, rows: int, stream: int
    ) -> None:
        """Write (L, 2) and (S, 2) float64; the first are zero before."""

    def counts(
        self,
        addresses: Sequence[tuple[int, int, bool]],
        extremes: tuple[int, int],
        counts: int,
        control: Control,
        stream: int,
    ) -> None:
        """Add to the counts, int32, given the addresses of the extremes of all processes."""

    def add_shared_force(
        self,
        addresses: Sequence[tuple[int, int, bool]],
        counts: int,
        control: Control,
        stream: int,
    ) -> None: ...
    def piece_energies(
        self, addresses: Sequence[tuple[int, int, bool]], counts: int, place: Place
    ) -> NDArray[Any]: ...

architectures: str  # compiled for, in CMake's words

def device_count() -> int:
    """Number of devices; RuntimeError says why there are none."""

def partition(sizes: Sequence[int], blocks: int) -> list[tuple[int, int, int]]: ...
def rows_at_once(rows: int, bins: int) -> int: ...
def density(
    theta: int,
    size: int,
    scalar: str,
    bins: int,
    fraction: float,
    seed: int,
    counts: int,
    place: Place,
) -> tuple[float, float, float]: ...
def pair_energy(
    theta: int, size: int, scalar: str, width: float, direct: bool, place: Place
) -> float: ...
def pair_force(
    theta: int, size: int, scalar: str, width: float, direct: bool, force: int, place: Place
) -> None: ...
def potential(
    counts: int, bins: int, spacing: float, width: float, fft: bool, out: int, place: Place
) -> None: ...
def mean_field_energy(
    counts: int, bins: int, spacing: float, width: float, place: Place
) -> float: ...
