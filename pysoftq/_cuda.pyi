"""The CUDA core; `pysoftq.interaction.backends.cuda` converts its arguments.

Addresses are of device memory, as integers; a stream is its handle, 0 the default stream.
"""

from collections.abc import Callable, Sequence

class Place:
    """A device, a stream on it, and memory there that lives as long as the work at the place."""

    def __init__(self, device: int, stream: int, allocate: Callable[[int], int]) -> None: ...

class Control:
    """What differs from step to step; a graph that is replayed counts `step` on by itself."""

    def __init__(self, scale: float, fraction: float, seed: int, step: int) -> None: ...

class Coupling:
    def __init__(
        self,
        layers: Sequence[tuple[int, str, float, float, int]],
        bins: int,
        fft: bool,
        place: Place,
    ) -> None:
        """Each layer is (size, scalar, width, strength, index)."""

    def set(self, control: Control, stream: int) -> None: ...
    def add_force(
        self, addresses: Sequence[tuple[int, int]], control: Control, stream: int
    ) -> None:
        """Each layer's addresses are (theta, gradient); theta 0 skips it.

        A step recorded in a CUDA graph leaves out the control: its replays use the device's.
        """

    def capturing(self, stream: int) -> bool:
        """Whether work on the stream is recorded into a CUDA graph."""

    def check(self, stream: int) -> list[tuple[int, str]]:
        """[(layer, reason)] of the first step refused since the last call."""

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
