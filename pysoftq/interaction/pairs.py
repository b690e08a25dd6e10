"""Exact interaction of all pairs of weights of one layer (Eqs. 2 and 3).

The log potential (docs/physics.md) requires the occupancy of each weight,

    |V(theta_i)| / w = sum over j of (1 - |theta_i - theta_j| / w) over the weights closer than w,

itself included: 1 for an isolated weight, N where all are equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pysoftq.interaction import backends
from pysoftq.interaction.arrays import (
    Weights,
    check_log_width,
    check_method,
    check_potential,
    check_width,
    finite_energy,
    flatten,
    like,
)

METHODS = ("sort", "direct")


def pair_energy(
    theta: Weights, width: float, method: str = "sort", potential: str = "linear"
) -> float:
    """Energy E = sum over ordered pairs i != j of U_w(theta_i - theta_j) (Eq. 2, without h).

    Of the log potential, the length of the code of the weights under their smoothed density,
    E_log = -sum_i log(|V(theta_i)| / (N w)), in which V includes the self term.

    Args:
        theta: weights of one layer, any shape and floating dtype; differences are taken in float64.
        width: range w of the well, in units of theta.
        method: "sort", O(N log N), or "direct", the O(N²) sum.
        potential: "linear" or "log".

    Returns:
        The energy; 0 for fewer than two weights. Linear: at most 0, in units of theta. Log: from 0
        (all weights equal) to N log N (all isolated), in nats.

    Raises:
        TypeError: theta is not a floating array.
        ValueError: weights are not finite (the message states how many), width is not
            finite and > 0, the method or the potential is unknown, or the energy overflows float64.
    """
    direct, log = check_method(method, METHODS), check_potential(potential)
    flat, w = flatten(theta), check_width(width)
    backend = backends.of(flat)
    if not log:
        return finite_energy(backend.pair_energy(flat, w, direct))
    shares = len(flat) / backend.pair_occupancy(flat, w, direct)
    nats = np.log(shares) if isinstance(shares, np.ndarray) else shares.log()
    return max(float(nats.sum()), 0.0)  # rounding takes it below where all weights are equal


def pair_force(
    theta: Weights, width: float, method: str = "sort", potential: str = "linear"
) -> Any:
    """Exact force F_i = #{j: 0 < theta_i - theta_j < w} - #{j: 0 < theta_j - theta_i < w}.

    F_i is dV/dtheta at theta_i (Eq. 7, without h); the gradient of `pair_energy` is 2 F_i, since
    ordered pairs count twice. Ties and pairs exactly w apart exert no force.

    Of the log potential the force is F_i / |V(theta_i)|, the slope of -log |V| at theta_i, in which
    V includes the self term. An isolated weight feels none.

    Args:
        theta: weights of one layer, any shape and floating dtype.
        width: range w of the well, in units of theta.
        method: "sort", O(N log N), or "direct", the O(N²) sum.
        potential: "linear" or "log".

    Returns:
        Array or tensor in theta's shape, on its device: int64 of the linear potential; float64 of
        the log potential, in nats per unit of theta.

    Raises:
        TypeError: theta is not a floating array.
        ValueError: weights are not finite (the message states how many), width is not
            finite and > 0 (log: so small that 1 / width overflows), or the method or the potential
            is unknown.
    """
    direct, log = check_method(method, METHODS), check_potential(potential)
    flat, w = flatten(theta), check_log_width(width) if log else check_width(width)
    backend = backends.of(flat)
    force = backend.pair_force(flat, w, direct)
    return like(theta, force / backend.pair_occupancy(flat, w, direct) / w if log else force)
