"""Reading weight files without running any code stored in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

PICKLED = (".pt", ".pth", ".th")
SUFFIXES = (*PICKLED, ".safetensors")


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a .pt, .pth, .th or .safetensors file, onto the CPU.

    A dict under the key ``state_dict`` is taken out, and the prefix ``module.`` (left by
    ``DataParallel``) removed where every key has it.

    Raises OSError where the file cannot be read, ValueError where it holds no state dict or would
    need unpickling of anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weight file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from error
    if path.suffix not in PICKLED:
        wanted = ", ".join(SUFFIXES)
        raise ValueError(f"{path}: unknown kind of weight file {path.suffix!r}; wanted {wanted}")
    return _state_dict(load_plain(path), path)


def load_plain(path: Path) -> Any:
    """What ``torch.save`` wrote, if it is made of tensors and plain values only; on the CPU.

    Raises OSError where the file cannot be opened, ValueError where it is broken or foreign.
    """
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} cannot be loaded as plain tensors: {_first(error)}"
            ) from error
        except (RuntimeError, EOFError, KeyError, OSError) as error:
            raise ValueError(
                f"{path} is no PyTorch file, or a broken one: {_first(error)}"
            ) from error


def _first(error: Exception) -> str:
    """First line of a message; torch's own may go on for pages, or be empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        kind = type(content).__name__
        raise ValueError(f"{path} holds no state dict: wanted names and tensors, found {kind}")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{path} holds no state dict: not tensors: {_listed(others)}")
    if all(key.startswith("module.") for key in content):
        return {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def coupled_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are coupled by default: floating point, with two or more dimensions."""
    return {
        name: tensor
        for name, tensor in state.items()
        if tensor.is_floating_point() and tensor.ndim >= 2
    }


def restore(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy a state dict into a model whose names and shapes match it exactly.

    Raises ValueError listing every missing, unexpected and wrongly shaped key; ``source`` says
    in the message where the weights came from. ``num_batches_tracked`` may be missing.
    """
    wanted = model.state_dict()
    missing = [
        key for key in wanted if key not in state and not key.endswith("num_batches_tracked")
    ]
    unexpected = [key for key in state if key not in wanted]
    misshapen = [
        f"{key} is {_shape(state[key])}, wanted {_shape(wanted[key])}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = []
    if missing:
        problems.append(f"missing: {_listed(missing)}")
    if unexpected:
        problems.append(f"unexpected: {_listed(unexpected)}")
    if misshapen:
        problems.append(f"wrong shape: {_listed(misshapen)}")
    if problems:
        raise ValueError(f"{source} does not fit the model: {'; '.join(problems)}")
    model.load_state_dict(dict(state), strict=False)


def _listed(names: list[str]) -> str:
    return ", ".join(names)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"
