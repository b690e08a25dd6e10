"""The one place where weights given by users become flat arrays for the core, and back."""

from __future__ import annotations

import math
import operator
import sys
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Weights: TypeAlias = "npt.NDArray[Any] | torch.Tensor"
FlatWeights: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]

MAX_BINS = 2**24  # beyond that float32 cannot tell the bins apart


def flatten(theta: Weights) -> FlatWeights:
    """Flatten weights into a contiguous float32 or float64 array, without a copy where possible.

    float16 and bfloat16 become float32, float64 stays.

    Raises:
        TypeError: `theta` is neither a NumPy array nor a torch tensor of real floating dtype.
        ValueError: the tensor is not on the CPU.
    """
    if _is_tensor(theta):
        import torch

        if theta.device.type != "cpu":
            raise ValueError(f"theta must be on the CPU, not on {theta.device}: use theta.cpu()")
        if not theta.dtype.is_floating_point:
            raise TypeError(f"theta must have a floating dtype, not {theta.dtype}")
        wide = theta.detach() if theta.dtype == torch.float64 else theta.detach().float()
        return np.ascontiguousarray(wide.numpy().reshape(-1))
    if not isinstance(theta, np.ndarray):
        raise TypeError(
            f"theta must be a NumPy array or a torch tensor, not {type(theta).__name__}"
        )
    # kind 'V' with this name: ml_dtypes' bfloat16
    if theta.dtype.kind != "f" and theta.dtype.name != "bfloat16":
        raise TypeError(f"theta must have a floating dtype, not {theta.dtype}")
    if theta.dtype.itemsize > 8:
        raise TypeError(f"theta must be float16, bfloat16, float32 or float64, not {theta.dtype}")
    dtype = np.float64 if theta.dtype.itemsize == 8 else np.float32
    return np.ascontiguousarray(theta.reshape(-1), dtype=dtype)


def like(theta: Weights, values: npt.NDArray[Any]) -> Any:
    """Give flat values theta's shape and kind (NumPy array or torch tensor)."""
    shaped = values.reshape(tuple(theta.shape))
    if not _is_tensor(theta):
        return shaped
    import torch

    return torch.from_numpy(shaped)


def _is_tensor(theta: object) -> TypeGuard[torch.Tensor]:
    """Whether theta is a torch tensor; who has one has imported torch, which is slow to import."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(theta, torch.Tensor)


def check_width(width: float) -> float:
    """Return the width as float, or raise ValueError unless it is finite and > 0."""
    value = float(width)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"width must be finite and greater than 0, not {width}")
    return value


def finite_energy(energy: float) -> float:
    """Return the energy, or raise ValueError where it has overflowed."""
    if not math.isfinite(energy):
        raise ValueError("the energy of these weights at this width overflows float64")
    return energy


def check_bins(bins: int) -> int:
    """Return the number of bins, or raise ValueError unless it is in 1 … 2**24."""
    return _check_integer("bins", bins, 1, MAX_BINS)


def check_fraction(fraction: float) -> float:
    """Return the sampling fraction, or raise ValueError unless it is in (0, 1]."""
    value = float(fraction)
    if not 0 < value <= 1:
        raise ValueError(f"fraction must be greater than 0 and at most 1, not {fraction}")
    return value


def check_method(method: str, choices: tuple[str, str]) -> bool:
    """Tell whether `method` is the second choice; raise ValueError if it is neither."""
    if method not in choices:
        raise ValueError(f"method must be '{choices[0]}' or '{choices[1]}', not {method!r}")
    return method == choices[1]


def check_seed(seed: int, name: str = "seed") -> int:
    """Return the seed, or raise ValueError unless it is an integer in 0 … 2**64 - 1."""
    return _check_integer(name, seed, 0, 2**64 - 1)


def _check_integer(name: str, value: int, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, not {value!r}")
    return number
