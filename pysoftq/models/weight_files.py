"""Weight files; reading them without running any code stored in them."""

from __future__ import annotations

import argparse
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.serialization import safe_globals

from pysoftq.atomic import atomic_write
from pysoftq.errors import abridged
from pysoftq.models.wrappers import unwrapped
from pysoftq.paths import user_path

Value = TypeVar("Value")

PICKLED = (".pt", ".pth", ".th")
SUFFIXES = (*PICKLED, ".safetensors")  # of the files that are written
# What checkpoints are called; .tar only as in model_best.pth.tar, which is no archive.
_READ = (*SUFFIXES, ".ckpt", ".bin", ".pt.tar", ".pth.tar")

# Left in the names by DataParallel, torch.compile, and a LightningModule with `self.model`.
_PREFIXES = ("module.", "_orig_mod.", "model.")

# Plain containers that training scripts keep next to the tensors; making one runs no other code.
_HARMLESS = (argparse.Namespace,)

# How torch says that a file requires more than tensors, or is a TorchScript archive.
_CODE = re.compile(r"GLOBAL|Unsupported class|unrecognized function|TorchScript")


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a checkpoint of PyTorch or a .safetensors file, onto the CPU.

    The suffix is .safetensors, .pt, .pth, .th, .ckpt, .bin, .pt.tar or .pth.tar, in any case. A
    state dict that a checkpoint holds under a key (``state_dict``, ``model``, ``net`` …) is taken
    out. The prefixes ``module.``, ``_orig_mod.`` and ``model.`` are removed where every key has
    them.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no state dict, or several, is a compressed file, or would need
            unpickling of more than tensors and plain values.
    """
    path = user_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a weight file")
    if not path.is_file():
        raise FileNotFoundError(f"no weight file {path}")
    name = path.name.lower()
    if not name.endswith(_READ):
        kind, expected = path.suffix, ", ".join(_READ)
        raise ValueError(f"{path}: unknown kind of weight file {kind!r}; expected {expected}")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty")
    if name.endswith(".safetensors"):
        return without_prefixes(_safetensors(path))
    with path.open("rb") as file:
        return without_prefixes(_state_dict(load_plain(file, path), path))


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            compressed = "pysoftq" in (file.metadata() or {})
        found: dict[str, Tensor] = {} if compressed else load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error
    if compressed:
        raise ValueError(
            f"{path} is a compressed file: load it with `load_compressed`, or write its weights "
            "with `pysoftq export --state-dict`"
        )
    return found


def load_plain(file: BinaryIO, path: Path) -> Any:
    """What ``torch.save`` wrote, if it is made of tensors and plain values only; on the CPU.

    Raises ValueError naming ``path``, where ``file`` is from, if it is broken or foreign.
    """
    try:
        with warnings.catch_warnings(), safe_globals([*_HARMLESS]):
            warnings.simplefilter("ignore")  # what they tell is in the errors below
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own messages are pages long, and explain how to run the code anyway.
        if _CODE.search(str(error)):
            raise ValueError(
                f"{path} holds pickled code besides its tensors, refused: save only the state dict"
            ) from error
        raise ValueError(f"{path} is no PyTorch file, or a broken one") from error


def without_prefixes(state: Mapping[str, Value]) -> dict[str, Value]:
    """The same values without the prefixes that wrappers add, where every name has them."""
    names = list(state)
    while prefix := next((p for p in _PREFIXES if names and _all_begin(names, p)), None):
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, state.values(), strict=True))


def _all_begin(names: Iterable[str], prefix: str) -> bool:
    return all(name.startswith(prefix) and name != prefix for name in names)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and not _has_weights(content):
        nested = {key: value for key, value in content.items() if _has_weights(value)}
        if len(nested) > 1:
            keys = abridged([repr(key) for key in nested])
            raise ValueError(f"{path} holds several state dicts: {keys}; save only one of them")
        content = next(iter(nested.values()), content)
    if not isinstance(content, Mapping) or not content:
        kind = type(content).__name__
        raise ValueError(f"{path} holds no state dict: expected names and tensors, found {kind}")
    if nameless := [repr(key) for key in content if not isinstance(key, str)]:
        raise ValueError(f"{path} holds no state dict: not names: {abridged(nameless)}")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        kinds = abridged(sorted({type(content[key]).__name__ for key in others}))
        raise ValueError(
            f"{path} holds no state dict: not tensors: {abridged(others)} (of type {kinds})"
        )
    return {name: tensor.detach() for name, tensor in content.items()}


def _has_weights(value: Any) -> bool:
    """Whether an entry of a checkpoint is a state dict; metrics are scalars, seeds are integers."""
    return isinstance(value, Mapping) and any(
        isinstance(entry, Tensor) and entry.is_floating_point() and entry.ndim > 0
        for entry in value.values()
    )


def coupled_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are coupled by default: floating point, with two or more dimensions."""
    return {
        name: tensor
        for name, tensor in state.items()
        if tensor.is_floating_point() and tensor.ndim >= 2
    }


def studied_weights(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Those of `coupled_weights` that a study counts, and why other weights are left out, by name.

    Weights that are in the state twice count once: tied ones, and copies bit for bit.
    """
    kept: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in state.items():
        if tensor.ndim < 2:
            continue
        if tensor.layout != torch.strided:
            left_out[name] = "no dense tensor"
        elif not tensor.is_floating_point():
            left_out[name] = str(tensor.dtype)
        elif (same := _first_of(first, name, tensor)) != name:
            left_out[name] = f"the weights of {same}"
        else:
            kept[name] = tensor
    return kept, left_out


def _first_of(first: dict[object, str], name: str, tensor: Tensor) -> str:
    """The first name of the same weights; in `first` by memory, and by shape and content."""
    memory = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.numel())
    content = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data)
    keys = (memory, (tensor.dtype, tuple(tensor.shape), content))
    found = next((first[key] for key in keys if key in first), name) if tensor.numel() else name
    for key in keys:
        first.setdefault(key, found)
    return found


def restore(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy a state dict into a model whose names and shapes match it exactly.

    Prefixes of wrappers are ignored on both sides. ``num_batches_tracked`` may be missing, and so
    may all names but one of a tied tensor.

    Raises ValueError listing keys that are missing, unexpected, wrongly shaped, of integers where
    the model has floating point, or not finite; ``source`` says in the message where the weights
    came from. The model is unchanged then.
    """
    expected = without_prefixes(model.state_dict(keep_vars=True))
    state = without_prefixes(state)
    problems = [f"{what}: {abridged(keys)}" for what, keys in _misfits(expected, state) if keys]
    if problems:
        raise ValueError(f"{source} does not fit the model: {'; '.join(problems)}")
    full = dict(zip(expected, model.state_dict(), strict=True))
    model.load_state_dict({full[name]: value for name, value in state.items()}, strict=False)


def _misfits(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> list[tuple[str, list[str]]]:
    """Each kind of problem, and the names that have it."""
    both = [(key, state[key], expected[key]) for key in expected if key in state]
    filled = {id(place) for _, _, place in both}
    missing = [
        key
        for key, place in expected.items()
        if id(place) not in filled and not key.endswith("num_batches_tracked")
    ]
    shapes = [
        f"{key} is {_shape(value)}, expected {_shape(place)}"
        for key, value, place in both
        if value.shape != place.shape
    ]
    integers = [
        key
        for key, value, place in both
        if place.is_floating_point() and not value.is_floating_point()
    ]
    return [
        ("missing", missing),
        ("unexpected", [key for key in state if key not in expected]),
        ("wrong shape", shapes),
        ("not floating point", integers),
        ("NaN or infinite values", not_finite(state)),
    ]


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity."""
    return [
        name
        for name, value in state.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]


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
        save_file(state, temporary)


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"
