"""Weight files; reading them without running any code stored in them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pysoftq.atomic import atomic_write
from pysoftq.models.wrappers import unwrapped

PICKLED = (".pt", ".pth", ".th")
SUFFIXES = (*PICKLED, ".safetensors")

# How torch says that a file wants more than tensors, or is a TorchScript archive.
_CODE = re.compile(r"GLOBAL|Unsupported class|unrecognized function|TorchScript")


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
    with path.open("rb") as file:
        return _state_dict(load_plain(file, path), path)


def load_plain(file: BinaryIO, path: Path) -> Any:
    """What ``torch.save`` wrote, if it is made of tensors and plain values only; on the CPU.

    Raises ValueError naming ``path``, where ``file`` is from, if it is broken or foreign.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they tell is in the errors below
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own texts go on for pages, and tell how to run the code all the same.
        if _CODE.search(str(error)):
            raise ValueError(
                f"{path} holds pickled code beside its tensors, refused: save the state dict alone"
            ) from error
        raise ValueError(f"{path} is no PyTorch file, or a broken one") from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        kind = type(content).__name__
        raise ValueError(f"{path} holds no state dict: wanted names and tensors, found {kind}")
    if nameless := [repr(key) for key in content if not isinstance(key, str)]:
        raise ValueError(f"{path} holds no state dict: not names: {_listed(nameless)}")
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

    Raises ValueError listing every key that is missing, unexpected, wrongly shaped, of integers
    where the model has floating point, or not finite; ``source`` says in the message where the
    weights came from. ``num_batches_tracked`` may be missing. The model is unchanged then.
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
    integers = [
        key
        for key in wanted
        if key in state and wanted[key].is_floating_point() > state[key].is_floating_point()
    ]
    infinite = [
        key
        for key, value in state.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    problems = []
    if missing:
        problems.append(f"missing: {_listed(missing)}")
    if unexpected:
        problems.append(f"unexpected: {_listed(unexpected)}")
    if misshapen:
        problems.append(f"wrong shape: {_listed(misshapen)}")
    if integers:
        problems.append(f"not floating point: {_listed(integers)}")
    if infinite:
        problems.append(f"NaN or infinite values: {_listed(infinite)}")
    if problems:
        raise ValueError(f"{source} does not fit the model: {'; '.join(problems)}")
    model.load_state_dict(dict(state), strict=False)


def cpu_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict on the CPU."""
    return {
        name: value.detach().cpu().clone().contiguous()
        for name, value in unwrapped(model).state_dict().items()
    }


def stored_once(model: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU with tied tensors once, under their first name."""
    tensors = unwrapped(model).state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    kept = set(first.values())
    return {name: value for name, value in cpu_state(model).items() if name in kept}


def save_state(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(state))


def _listed(names: list[str]) -> str:
    return ", ".join(names)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"
