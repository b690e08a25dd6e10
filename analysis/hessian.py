"""Leading eigenvalues and trace of a symmetric matrix known by its products with vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh

Vector = NDArray[np.float64]
Product = Callable[[Vector], Vector]


@dataclass(frozen=True, eq=False)
class Eigenvalues:
    """The largest eigenvalues, descending, and how far off they may be.

    ``residuals`` are |A v - lambda v| for the unit vectors v found: an eigenvalue lies within that
    distance of each value.
    """

    values: Vector
    residuals: Vector


def leading_eigenvalues(
    product: Product, size: int, count: int, *, seed: int = 0, tolerance: float = 1e-2
) -> Eigenvalues:
    """The ``count`` largest eigenvalues by Lanczos' method (ARPACK), 0 < count < size.

    Stops at residuals of ``tolerance`` times the eigenvalue; the eigenvalue's own error is of the
    order of the square of that, where the spectrum has gaps.
    """
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    start = np.random.default_rng(seed).standard_normal(size)
    values, vectors = eigsh(operator, k=count, which="LA", v0=start, tol=tolerance)
    order = np.argsort(values)[::-1]
    values = np.asarray(values[order], dtype=np.float64)
    vectors = np.asarray(vectors[:, order], dtype=np.float64)
    residuals = [
        float(np.linalg.norm(product(vector) - value * vector))
        for value, vector in zip(values, vectors.T, strict=True)
    ]
    return Eigenvalues(values, np.array(residuals, dtype=np.float64))


def probe_diagonal(product: Product, size: int, seed: int, probe: int) -> Vector:
    """An unbiased estimate of the diagonal, z ∘ (A z) with random signs z (Hutchinson), (size,).

    The sum over any set of entries estimates the trace of that block; the spread over probes gives
    the standard error of their mean.
    """
    bits = np.random.default_rng((seed, probe)).integers(0, 2, size)
    signs = np.where(bits == 1, 1.0, -1.0)
    return np.asarray(signs * product(signs))
