"""Loading a compressed file into a model."""

from __future__ import annotations

import os
from typing import TypeVar, overload

import torch
from torch import Tensor, nn

from pysoftq.artifact.format import ArtifactError, check_storable, identity
from pysoftq.artifact.read import File, read
from pysoftq.models import build_model

Model = TypeVar("Model", bound=nn.Module)


@overload
def load_compressed(path: str | os.PathLike[str]) -> nn.Module: ...
@overload
def load_compressed(path: str | os.PathLike[str], model: Model) -> Model: ...


def load_compressed(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Load a compressed file into `model`, or into a new one built from its specification.

    Every tensor comes back bit-equal, in the dtype that was saved. On an error `model` is as it
    was before.

    Raises:
        ArtifactError: the file is altered, cut short, foreign or of another version, holds no
            specification where `model` is not given, or names, shapes, dtypes or ties differ from
            those of `model`.
        OSError: the file cannot be read.
    """
    file = read(path)
    if model is None:
        model = _rebuild(file)
    _check_fits(file, model)
    model.load_state_dict(file.tensors())
    return model


def load_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Every tensor of a compressed file under its name, for a model that it cannot build.

    Bit-equal and in the dtype that was saved; tied names share one tensor.

    Raises:
        ArtifactError: the file is altered, cut short, foreign or of another version.
        OSError: the file cannot be read.
    """
    return read(path).tensors()


def _rebuild(file: File) -> nn.Module:
    if file.model is None:
        raise ArtifactError(
            f"{file.path} does not say how to build its model; "
            "give one: load_compressed(path, model)"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # loading shall not disturb the caller's stream
            model = build_model(**file.model)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{file.path}: its model cannot be built: {error}") from error
    dtypes = {record.name: record.dtype for record in file.records}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(dtypes.get(file.ties.get(name, name), tensor.dtype))
    return model


def _check_fits(file: File, model: nn.Module) -> None:
    """Compare names, shapes, dtypes and ties, before anything is unpacked or changed."""
    records = {record.name: record for record in file.records}
    records |= {name: records[owner] for name, owner in file.ties.items()}
    tensors = model.state_dict(keep_vars=True)
    problems = [f"{name} is not in the file" for name in tensors if name not in records]
    problems += [f"{name} is not in the model" for name in records if name not in tensors]
    owners: dict[object, str] = {}
    for name in tensors.keys() & records.keys():
        tensor, record = tensors[name], records[name]
        check_storable(name, tensor)
        if tuple(tensor.shape) != record.shape:
            shapes = f"{tuple(tensor.shape)} in the model, {record.shape} in the file"
            problems.append(f"{name} has shape {shapes}")
        elif tensor.dtype != record.dtype:
            problems.append(f"{name} is {tensor.dtype} in the model, {record.dtype} in the file")
        elif owners.setdefault(identity(tensor), record.name) != record.name:
            problems.append(f"{name} is tied to another tensor in the model, but not in the file")
    if problems:
        raise ArtifactError(f"{file.path} does not fit the model: {'; '.join(sorted(problems))}")
