"""Bootstrap over layers, clustered by network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def resample(sizes: Sequence[int], draws: int, seed: int) -> NDArray[np.int64]:
    """How often each of sum(sizes) layers is in each bootstrap sample, (draws, layers).

    Clustered: networks are drawn with replacement, as many as there are, and then from each drawn
    network as many layers as it has; of a single network, only layers are drawn.
    """
    rng = np.random.default_rng(seed)
    networks = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=draws)
    counts = [
        rng.multinomial(size * times, np.full(size, 1 / size))
        for size, times in zip(sizes, networks.T, strict=True)
    ]
    return np.concatenate(counts, axis=1)


def bootstrap_slopes(
    x: NDArray[np.float64], ys: NDArray[np.float64], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Slopes against x (n,) of each of ys (m, n) in each sample of counts (draws, n): (draws, m).

    Samples without two different x have no slope and are left out.
    """
    weights = counts / counts.sum(axis=1, keepdims=True)
    x = x - x.mean()
    mean = weights @ x
    variance = weights @ x**2 - mean**2
    kept = variance > 1e-12
    weights, mean, variance = weights[kept], mean[kept], variance[kept]
    covariance = weights @ (x * ys).T - mean[:, None] * (weights @ ys.T)
    return np.asarray(covariance / variance[:, None])


def intervals95(samples: NDArray[np.float64]) -> list[tuple[float, float]]:
    """The middle 95 % of each column of samples (draws, m)."""
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))
