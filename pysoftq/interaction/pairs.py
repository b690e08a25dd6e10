"""Exact interaction of all pairs of weights of one layer (Eqs. 2 and 3)."""

from __future__ import annotations

from typing import Any

from pysoftq.interaction import backends
from pysoftq.interaction.arrays import (
    Weights,
    check_method,
    check_width,
    finite_energy,
    flatten,
    like,
)

METHODS = ("sort", "direct")


def pair_energy(theta: Weights, width: float, method: str = "sort") -> float:
    """Energy E = sum over ordered pairs i != j of U_w(theta_i - theta_j) (Eq. 2, without h).

    Args:
        theta: weights of one layer, any shape and floating dtype; differences are taken in float64.
        width: range w of the well, in units of theta.
        method: "sort", O(N log N), or "direct", the O(N²) sum.

    Returns:
        The energy, at most 0, in units of theta; 0 for fewer than two weights.

    Raises:
        TypeError: theta is not a floating array.
        ValueError: weights are not finite (the message states how many), width is not
            finite and > 0, the method is unknown, or the energy overflows float64.
    """
    direct = check_method(method, METHODS)
    flat = flatten(theta)
    return finite_energy(backends.of(flat).pair_energy(flat, check_width(width), direct))


def pair_force(theta: Weights, width: float, method: str = "sort") -> Any:
    """Exact force F_i = #{j: 0 < theta_i - theta_j < w} - #{j: 0 < theta_j - theta_i < w}.

    F_i is dV/dtheta at theta_i (Eq. 7, without h); the gradient of `pair_energy` is 2 F_i, since
    ordered pairs count twice. Ties and pairs exactly w apart exert no force.

    Args:
        theta: weights of one layer, any shape and floating dtype.
        width: range w of the well, in units of theta.
        method: "sort", O(N log N), or "direct", the O(N²) sum.

    Returns:
        int64 array or tensor in theta's shape, on its device.

    Raises:
        TypeError: theta is not a floating array.
        ValueError: weights are not finite (the message states how many), width is not
            finite and > 0, or the method is unknown.
    """
    direct = check_method(method, METHODS)
    flat = flatten(theta)
    return like(theta, backends.of(flat).pair_force(flat, check_width(width), direct))
