"""The C++ core; the package's functions check and convert what these take."""

import enum
from typing import Any

import numpy as np
import numpy.typing as npt

class Scalar(enum.Enum):
    float32 = ...
    float64 = ...
    float16 = ...
    bfloat16 = ...

class Rate(enum.Enum):
    levels = ...
    packed = ...
    entropy = ...

class Coupling:
    def __init__(
        self,
        scalars: list[Scalar],
        indices: list[int],
        layers: list[int],
        begins: list[int],
        positions: list[int],
        sizes: list[int],
        bins: list[int],
        widths: list[float],
        strengths: list[float],
        fft: bool,
        log: bool = False,
    ) -> None: ...
    def add_force(
        self,
        thetas: list[int],
        gradients: list[int],
        scale: float,
        fraction: float,
        seed: int,
        step: int,
    ) -> list[tuple[int, str]]: ...
    def check(self, thetas: list[int], gradients: list[int]) -> list[tuple[int, str]]: ...
    def energies(
        self, thetas: list[int]
    ) -> tuple[list[tuple[int, str]], npt.NDArray[np.float64]]: ...

class Pieces:
    def __init__(
        self,
        scalars: list[Scalar],
        indices: list[int],
        blocks: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        scales: npt.NDArray[np.float64],
        fft: bool,
        log: bool = False,
    ) -> None: ...
    def ranges(
        self, thetas: list[int]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]: ...
    def counts(
        self,
        thetas: list[int],
        included: list[bool],
        ranges: npt.NDArray[np.float64],
        fraction: float,
        seed: int,
        step: int,
    ) -> npt.NDArray[np.int32]: ...
    def add_force(
        self,
        thetas: list[int],
        gradients: list[int],
        ranges: npt.NDArray[np.float64],
        counts: npt.NDArray[np.int32],
        scale: float,
        fraction: float,
    ) -> None: ...
    def energies(
        self, ranges: npt.NDArray[np.float64], counts: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float64]: ...

class Weights:
    nonfinite: int
    def __init__(self, address: int, scalar: Scalar, edges: npt.NDArray[np.int64]) -> None: ...
    def ranges(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...
    def occupied_bins(
        self, number: int, signs: bool, first: int, last: int
    ) -> tuple[
        npt.NDArray[np.int64],
        npt.NDArray[np.int32],
        npt.NDArray[np.int32],
        npt.NDArray[np.float64],
    ]: ...
    def set_ranges(self, low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]) -> None: ...
    def moments(self) -> tuple[npt.NDArray[np.int64], int]: ...
    def spreads(
        self, moments: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]: ...
    def bin_sums(
        self, number: int, signs: bool, first: int, last: int
    ) -> tuple[
        npt.NDArray[np.int64],
        npt.NDArray[np.int32],
        npt.NDArray[np.int64],
        npt.NDArray[np.int64],
        npt.NDArray[np.float64],
        npt.NDArray[np.float64],
    ]: ...
    def bin_means(
        self,
        number: int,
        sizes: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
        sums: npt.NDArray[np.int64],
        low: npt.NDArray[np.float64],
        high: npt.NDArray[np.float64],
        first: int,
    ) -> npt.NDArray[np.float64]: ...
    def look_up_bins(
        self,
        number: int,
        signs: bool,
        sizes: npt.NDArray[np.int64],
        slots: npt.NDArray[np.int32],
        table: npt.NDArray[Any],
        out: int,
    ) -> None: ...

def distinct_values(
    address: int, scalar: Scalar, edges: npt.NDArray[np.int64], most: int, total: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]] | None: ...
def code_values(
    address: int,
    scalar: Scalar,
    edges: npt.NDArray[np.int64],
    most: int,
    total: int,
    itemsize: int,
    out: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64], npt.NDArray[np.int64]] | None: ...
def build_config() -> dict[str, str]: ...
def num_threads() -> int: ...
def set_num_threads(count: int) -> None: ...
def simd_level() -> str: ...
def simd_levels() -> list[str]: ...
def set_simd_level(name: str) -> None: ...
def pair_energy(theta: npt.NDArray[np.floating], width: float, direct: bool) -> float: ...
def pair_force(
    theta: npt.NDArray[np.floating], width: float, direct: bool
) -> npt.NDArray[np.int64]: ...
def pair_occupancy(
    theta: npt.NDArray[np.floating], width: float, direct: bool
) -> npt.NDArray[np.float64]: ...
def density(
    theta: npt.NDArray[np.floating], bins: int, fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], float, float, float]: ...
def potential(
    counts: npt.NDArray[np.int64], spacing: float, width: float, fft: bool
) -> npt.NDArray[np.float64]: ...
def mean_field_energy(
    counts: npt.NDArray[np.int64], spacing: float, width: float, log: bool = False
) -> float: ...
def force(
    theta: npt.NDArray[np.floating], width: float, bins: int, fft: bool, log: bool = False
) -> npt.NDArray[np.floating]: ...
def force_table(
    counts: npt.NDArray[np.int64], spacing: float, width: float, fft: bool
) -> npt.NDArray[np.float64]: ...
def pack(indices: npt.NDArray[np.integer[Any]], bits: int) -> npt.NDArray[np.uint8]: ...
def unpack(
    packed: npt.NDArray[np.uint8],
    bits: int,
    sizes: npt.NDArray[np.int64],
    edges: npt.NDArray[np.int64],
    table: npt.NDArray[Any],
    out: npt.NDArray[Any],
) -> npt.NDArray[np.int64]: ...
def encode(
    indices: npt.NDArray[np.integer[Any]],
    counts: npt.NDArray[np.integer[Any]],
    sizes: npt.NDArray[np.int64],
    edges: npt.NDArray[np.int64],
    chunk: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]: ...
def decode(
    words: npt.NDArray[np.uint8],
    lengths: npt.NDArray[np.int64],
    first: int,
    chunk: int,
    counts: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    edges: npt.NDArray[np.int64],
    table: npt.NDArray[Any],
    out: npt.NDArray[Any],
) -> None: ...
def best_union(
    counts: npt.NDArray[np.float64],
    sums: npt.NDArray[np.float64],
    squares: npt.NDArray[np.float64],
    variance: float,
    rd_weight: float,
    most: int,
) -> npt.NDArray[np.int64]: ...
def merge(
    values: npt.NDArray[np.float64],
    counts: npt.NDArray[np.float64],
    pinned: npt.NDArray[np.uint8],
    sizes: npt.NDArray[np.int64],
    rd_weight: float,
    rate: Rate,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]: ...
def lower_envelope(values: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> npt.NDArray[Any]: ...
def cheapest_clusters(
    values: npt.NDArray[np.float32],
    counts: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    weights: npt.NDArray[np.int64],
    rd_weight: float,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]: ...
def assign(
    weights: int,
    edges: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    ends: npt.NDArray[np.float32],
    order: npt.NDArray[np.int32],
    values: npt.NDArray[Any],
    kept: int,
    clusters: int,
    out: int,
) -> npt.NDArray[np.int64]: ...
def sum_by_cluster(
    gradients: int, scalar: Scalar, clusters: int, size: int, number: int, scale: float
) -> npt.NDArray[np.int64]: ...
