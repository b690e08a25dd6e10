"""The tensors of models and those of compressed files: what may be stored, and both ways."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pysoftq.artifact.format import DTYPES, Dtype, Record
from pysoftq.artifact.read import File
from pysoftq.interaction.arrays import special_kind
from pysoftq.interaction.pieces import is_divided


def dtype_of(tensor: Tensor) -> Dtype:
    """The dtype of a tensor that `check_storable` lets pass, as files describe it."""
    return DTYPES[_name(tensor.dtype)]


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """Torch's own."""
    found: torch.dtype = getattr(torch, dtype.name)
    return found


def as_tensor(values: NDArray[np.generic], dtype: Dtype) -> Tensor:
    """Elements of a file as a tensor, which shares their memory."""
    return torch.from_numpy(values).view(torch_dtype(dtype))


def tensor(file: File, record: Record, place: Tensor | None = None) -> Tensor:
    """A tensor of a file as it was saved.

    place: where it belongs. If it is in indices, it is written there at once where that is
        contiguous on the CPU; if not, it may be in the memory of the file.
    """
    if record.coding == "raw":
        values = file.stored[f"raw/{record.name}"].values
        shares = place is not None and values.flags.writeable
        return as_tensor(values if shares else values.copy(), record.dtype)
    if place is None or place.device.type != "cpu" or not place.is_contiguous():
        place = torch.empty(record.shape, dtype=torch_dtype(record.dtype), device="cpu")
    found = place.detach().reshape(-1)
    patterns = f"i{record.dtype.itemsize}"
    out = found.view(getattr(torch, f"int{8 * found.itemsize}")).numpy()
    file.look_up(record, file.codebook(record).view(patterns), out)
    return found.reshape(record.shape)


def tensors(
    file: File, without: Collection[str] = (), places: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Every tensor of a file under each of its names, but for some names.

    places: by name, tensors of the same shapes and dtypes that may be overwritten with the values.
    """
    kept = [record for record in file.records if record.name not in without]
    found = {record.name: tensor(file, record, (places or {}).get(record.name)) for record in kept}
    ties = {name: owner for name, owner in file.ties.items() if name not in without}
    return found | {name: found[owner] for name, owner in ties.items()}


def identity(tensor: Tensor) -> object:
    """Equal for two tensors that are the same memory, seen in the same way."""
    if tensor.is_meta or not tensor.numel() or is_divided(tensor):
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def check_storable(name: str, tensor: object) -> None:
    """Raise TypeError for what is not a dense tensor, or not one of a dtype that files know."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; only tensors can be stored")
    if kind := special_kind(tensor):
        raise TypeError(f"{name} must be a dense tensor with values, got {kind}")
    if _name(tensor.dtype) not in DTYPES:
        supported = ", ".join(f"torch.{name}" for name in DTYPES)
        raise TypeError(f"{name} must be one of {supported}, got {tensor.dtype}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
