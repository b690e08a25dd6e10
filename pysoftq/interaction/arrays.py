"""The one place where weights given by users become flat arrays for the core, and back."""

from __future__ import annotations

import math
import operator
import re
import sys
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Weights: TypeAlias = "npt.NDArray[Any] | torch.Tensor | Any"  # Any: an array library of a GPU's
FlatWeights: TypeAlias = "npt.NDArray[np.float32] | npt.NDArray[np.float64] | torch.Tensor"

MAX_BINS = 2**24  # beyond that float32 cannot tell the bins apart
MAX_COUNT = 2**31
FLOAT32_MAX = float(np.finfo(np.float32).max)
GRANULARITY = re.compile(r"layer|channel|group:[1-9][0-9]{0,17}")
POTENTIALS = ("linear", "log")
HOST_MEMORY = (1, 3, 11)  # DLPack's numbers for the CPU, and for what CUDA and ROCm pin there


def special_kind(tensor: torch.Tensor) -> str:
    """What keeps a tensor from being read as the values of its dtype; empty for an ordinary one.

    These are lazy parameters, layouts that are not dense, parts of tensors that FSDP1 has
    flattened, and subclasses with their own storage: torchao's quantized tensors, sharded, nested
    and masked tensors.
    """
    import torch

    from pysoftq.interaction.pieces import flat_part

    if torch.nn.parameter.is_lazy(tensor):
        return "one that is not initialized yet (run a forward pass first)"
    if type(tensor).__name__ == "DTensor":
        return "a DTensor, of which each process holds a piece (pass its full_tensor())"
    part = flat_part(tensor)
    if part is not None and tensor.shape != part.shape:
        return "a part of a tensor that FSDP1 has flattened (use summon_full_params)"
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return f"one of class {type(tensor).__name__}"
    if tensor.layout is not torch.strided:
        return f"one of layout {tensor.layout}"
    return "a nested one" if tensor.is_nested else ""


def check_dense(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Return the tensor, or raise TypeError where its values cannot be read."""
    if kind := special_kind(tensor) or ("one on the meta device" if tensor.is_meta else ""):
        raise TypeError(f"{name} must be a dense tensor with values, got {kind}")
    return tensor


def flatten(theta: Weights) -> FlatWeights:
    """Flatten weights into a contiguous array for a backend, without a copy where possible.

    On the CPU into a NumPy array, in which float16 and bfloat16 have become float32; on any other
    device into a tensor of float16, bfloat16, float32 or float64.

    Raises:
        TypeError: `theta` is neither a NumPy array, a torch tensor nor an array on a GPU that
            speaks DLPack or the CUDA array interface, or its dtype is not a real floating one; or
            it is a sparse or quantized tensor, one without values, or an array with a mask.
    """
    tensor = as_tensor(theta)
    if tensor is not None:
        import torch

        if not tensor.dtype.is_floating_point:
            raise TypeError(f"theta must have a floating dtype, got {tensor.dtype}")
        if _on_host(tensor):
            wide = tensor if tensor.dtype == torch.float64 else tensor.float()
            return np.ascontiguousarray(wide.numpy().reshape(-1))
        flat = tensor.reshape(-1).contiguous()
        return flat.float() if flat.element_size() == 1 else flat
    if not isinstance(theta, np.ndarray):
        raise TypeError(
            f"theta must be a NumPy array or a torch tensor, got {type(theta).__name__}"
        )
    theta = unmasked(theta)
    # kind 'V' with this name: ml_dtypes' bfloat16
    if theta.dtype.kind != "f" and theta.dtype.name != "bfloat16":
        raise TypeError(f"theta must have a floating dtype, got {theta.dtype}")
    if theta.dtype.itemsize > 8:
        raise TypeError(f"theta must be float16, bfloat16, float32 or float64, got {theta.dtype}")
    dtype = np.float64 if theta.dtype.itemsize == 8 else np.float32
    return np.ascontiguousarray(theta.reshape(-1), dtype=dtype)


def flatten_counts(counts: Any) -> Any:
    """Counts as the backends take them: a NumPy array, or an int64 tensor on another device.

    Raises:
        TypeError: they are not integers.
        ValueError: there is no bin, a count is negative, or their sum is 2**31 or more.
    """
    tensor = as_tensor(counts)
    if tensor is None or _on_host(tensor):
        values: Any = unmasked(counts)
        integers = values.dtype.kind in "iu"
    else:
        values = tensor.contiguous()
        integers = "int" in str(values.dtype)  # torch has no name for their kind
    if not integers:
        raise TypeError(f"counts must be integers, got {values.dtype}")
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values, dtype=np.int64)  # the core checks the rest
    if values.ndim != 1 or len(values) == 0:
        raise ValueError("counts must be an array of at least one bin")
    if values.min() < 0 or values.max() >= MAX_COUNT or values.sum() >= MAX_COUNT:
        raise ValueError("counts must not be negative and must sum to less than 2**31")
    return values.long()


def unmasked(array: Any) -> npt.NDArray[Any]:
    """As a plain NumPy array.

    Raises:
        TypeError: some of its entries are masked.
    """
    if np.ma.is_masked(array):
        masked = np.ma.getmaskarray(array).sum()
        raise TypeError(
            f"{masked} of {np.size(array)} entries of the array are masked; "
            "pass array.compressed() for the others, or array.filled(value)"
        )
    return np.asarray(array)


def like(theta: Weights, values: npt.NDArray[Any] | torch.Tensor) -> Any:
    """Give a backend's flat values theta's shape and kind, without a copy."""
    shaped = values.reshape(tuple(theta.shape))
    if isinstance(shaped, np.ndarray):
        if not _is_tensor(theta):
            return shaped
        import torch

        return torch.from_numpy(shaped)
    return kind_of(theta, shaped)


def kind_of(array: Any, tensor: torch.Tensor) -> Any:
    """Give a tensor on a device the kind of `array`: a tensor, or its library's own array.

    It stays a tensor if the library has no from_dlpack.
    """
    if _is_tensor(array):
        return tensor
    library = sys.modules[type(array).__module__.partition(".")[0]]
    from_dlpack = getattr(library, "from_dlpack", None)
    return tensor if from_dlpack is None else from_dlpack(tensor)


def as_tensor(array: object) -> torch.Tensor | None:
    """The tensor that shares memory with `array`, if that is a tensor or an array on a GPU.

    Raises:
        TypeError: it is a tensor, but not a dense one with values.
    """
    if _is_tensor(array):
        return check_dense(array, "the array").detach()
    if isinstance(array, np.ndarray):
        return None
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        if array.__dlpack_device__()[0] in HOST_MEMORY:
            return None
        from torch.utils.dlpack import from_dlpack

        return from_dlpack(array)
    if hasattr(array, "__cuda_array_interface__"):
        import torch

        return torch.as_tensor(array, device="cuda")
    return None


def _is_tensor(theta: object) -> TypeGuard[torch.Tensor]:
    """Whether theta is a torch tensor; who has one has imported torch, which is slow to import."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(theta, torch.Tensor)


def _on_host(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu"


def check_width(width: float) -> float:
    """Return the width as float, or raise ValueError unless it is finite and > 0."""
    try:
        value = float(width)
    except (TypeError, ValueError):
        raise TypeError(f"width must be a number, got {width!r}") from None
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"width must be finite and greater than 0, got {width}")
    return value


def check_spacing(spacing: float) -> float:
    """Return the spacing of bins, or raise ValueError unless it is finite and at least 0."""
    if not (math.isfinite(spacing) and spacing >= 0):
        raise ValueError(f"spacing must be finite and at least 0, got {spacing}")
    return spacing


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
        raise ValueError(f"fraction must be greater than 0 and at most 1, got {fraction}")
    return value


def check_method(method: str, choices: tuple[str, str]) -> bool:
    """Tell whether `method` is the second choice; raise ValueError if it is neither."""
    if method not in choices:
        raise ValueError(f"method must be '{choices[0]}' or '{choices[1]}', got {method!r}")
    return method == choices[1]


def check_potential(potential: str) -> bool:
    """Tell whether the potential is "log"; raise ValueError if it is neither that nor "linear"."""
    if potential not in POTENTIALS:
        raise ValueError(f"potential must be 'linear' or 'log', got {potential!r}")
    return potential == "log"


def check_log_width(width: float, *, double: bool = True) -> float:
    """Return the width as `check_width`, or raise ValueError where 1 / width overflows.

    Args:
        width: of the well.
        double: whether the force is in float64; else in float32.
    """
    value, most = check_width(width), sys.float_info.max if double else FLOAT32_MAX
    if not 1 / value <= most:
        dtype = "float64" if double else "float32"
        raise ValueError(f"width {width} is too small: the log potential's force overflows {dtype}")
    return value


def check_granularity(text: str) -> str:
    """Return the granularity, or raise ValueError unless it is one.

    "layer" makes a tensor one segment, "channel" each of its slices along dimension 0, and
    "group:N" each N consecutive weights within such a slice, of which the last may be fewer.
    """
    if not isinstance(text, str) or not GRANULARITY.fullmatch(text):
        raise ValueError(
            "granularity must be 'layer', 'channel' or 'group:N' with N weights, 1 or more "
            f"(such as 'group:128'), got {text!r}"
        )
    return text


def check_seed(seed: int, name: str = "seed") -> int:
    """Return the seed, or raise ValueError unless it is an integer in 0 … 2**64 - 1."""
    return _check_integer(name, seed, 0, 2**64 - 1)


def _check_integer(name: str, value: int, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}")
    return number
