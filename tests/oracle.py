"""Readable brute force in float64: what the core must reproduce."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def differences(theta: npt.ArrayLike) -> npt.NDArray[np.float64]:
    x = np.asarray(theta, dtype=np.float64).reshape(-1)
    with np.errstate(over="ignore"):
        return x[:, None] - x[None, :]


def pair_energy(theta: npt.ArrayLike, width: float) -> float:
    distance = np.abs(differences(theta))
    well = np.where(distance < width, distance - width, 0.0)
    np.fill_diagonal(well, 0.0)
    return float(well.sum())


def pair_force(theta: npt.ArrayLike, width: float) -> npt.NDArray[np.int64]:
    d = differences(theta)
    below = ((d > 0) & (d < width)).sum(axis=1)
    above = ((d < 0) & (-d < width)).sum(axis=1)
    return (below - above).reshape(np.shape(theta))


def bin_index(theta: npt.NDArray[np.floating], bins: int) -> npt.NDArray[np.int64]:
    """The bins of design: trunc((x - low) · inverse) in the weights' own precision."""
    x = theta.reshape(-1)
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    x = x.astype(dtype)
    low, high = x.min(), x.max()
    with np.errstate(over="ignore", divide="ignore"):
        inverse = dtype(bins) / (high - low)
    if (float(high) - float(low)) / bins == 0:
        return np.zeros(x.size, dtype=np.int64)
    if np.isinf(inverse):  # a power of two changes no rounding
        return bin_index(x * dtype(2.0**96 if dtype == np.float32 else 2.0**600), bins)
    return np.minimum(((x - low) * inverse).astype(np.int64), bins - 1)


def potential(
    counts: npt.NDArray[np.int64], spacing: float, width: float
) -> npt.NDArray[np.float64]:
    k = np.arange(len(counts))
    distance = np.abs(k[:, None] - k[None, :]) * spacing
    return np.where(distance < width, distance - width, 0.0) @ counts


def force_table(
    counts: npt.NDArray[np.int64], spacing: float, width: float
) -> npt.NDArray[np.int64]:
    k = np.arange(len(counts))
    d = k[:, None] - k[None, :]
    inside = np.abs(d) * spacing < width
    return np.where(inside, np.sign(d), 0) @ counts


def splitmix64(key: int, n: int) -> int:
    mask = 2**64 - 1
    z = (key + (n + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def pair_occupancy(theta: npt.ArrayLike, width: float) -> npt.NDArray[np.float64]:
    """|V| / w at each weight, self term included."""
    distance = np.abs(differences(theta))
    depths = np.where(distance < width, (width - distance) / width, 0.0)
    return depths.sum(axis=1).reshape(np.shape(theta))


def log_energy(theta: npt.ArrayLike, width: float) -> float:
    occupancy = pair_occupancy(theta, width)
    return float(np.log(occupancy.size / occupancy).sum())


def log_force(theta: npt.ArrayLike, width: float) -> npt.NDArray[np.float64]:
    return pair_force(theta, width) / pair_occupancy(theta, width) / width


def log_gradient(theta: npt.ArrayLike, width: float) -> npt.NDArray[np.float64]:
    """The gradient of `log_energy`: each weight is in the densities of its neighbours, too."""
    d = differences(theta)
    slope = np.where(np.abs(d) < width, np.sign(d), 0.0)
    over = 1 / (width * pair_occupancy(theta, width).reshape(-1))
    return (slope.sum(axis=1) * over + slope @ over).reshape(np.shape(theta))


def bin_occupancy(
    counts: npt.NDArray[np.int64], spacing: float, width: float
) -> npt.NDArray[np.float64]:
    k = np.arange(len(counts))
    distance = np.abs(k[:, None] - k[None, :]) * spacing
    return np.where(distance < width, (width - distance) / width, 0.0) @ counts


def log_force_table(
    counts: npt.NDArray[np.int64], spacing: float, width: float, fraction: float = 1.0
) -> npt.NDArray[np.float64]:
    """Of counts of a fraction of the weights; that at hand is in its own bin, drawn or not."""
    occupancy = np.maximum(bin_occupancy(counts, spacing, width) / fraction, 1)
    return force_table(counts, spacing, width) / fraction / occupancy / width
