"""Loading a compressed file into a model."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from pysoftq.artifact.format import Record
from pysoftq.artifact.lazy import CompressedTensor, compress_parameter
from pysoftq.artifact.read import File, read
from pysoftq.artifact.tensors import (
    as_tensor,
    check_storable,
    identity,
    tensors,
    torch_dtype,
)
from pysoftq.errors import ArtifactError
from pysoftq.models.build import build_model
from pysoftq.models.huggingface import PREFIX, is_folder_model

Model = TypeVar("Model", bound=nn.Module)


@overload
def load_compressed(path: str | os.PathLike[str], *, lazy: bool = False) -> nn.Module: ...
@overload
def load_compressed(path: str | os.PathLike[str], model: Model, *, lazy: bool = False) -> Model: ...


def load_compressed(
    path: str | os.PathLike[str], model: nn.Module | None = None, *, lazy: bool = False
) -> nn.Module:
    """Load a compressed file into `model`, or into a new one built from its specification.

    Every tensor comes back bit-equal, in the dtype that was saved. On an error `model` is as it
    was before.

    With `lazy`, clustered parameters stay compressed in memory, packed, and are rebuilt whenever
    their module uses them (`pysoftq.artifact.lazy`); the file is unpacked one tensor at a time.
    The model comes in evaluation mode, and such a parameter can neither be trained nor set. Its
    state dict is the ordinary one.

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
    lazily = _compressed(file, model) if lazy else {}
    state = tensors(file, without=lazily.keys())
    _materialize(model, lazily.keys())
    model.load_state_dict(state, strict=not lazy)
    for name, weight in lazily.items():
        module, _, parameter = name.rpartition(".")
        compress_parameter(model.get_submodule(module), parameter, weight)
    return model.eval() if lazy else model


def load_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Every tensor of a compressed file under its name, for a model that it cannot build.

    Bit-equal and in the dtype that was saved; tied names share one tensor.

    Raises:
        ArtifactError: the file is altered, cut short, foreign or of another version.
        OSError: the file cannot be read.
    """
    return tensors(read(path))


def _rebuild(file: File) -> nn.Module:
    """The model of the file's specification, its parameters on the meta device."""
    if file.model is None:
        raise ArtifactError(
            f"{file.path} does not say how to build its model; "
            "give one: load_compressed(path, model)"
        )
    if _opens_a_folder(file.model):
        raise ArtifactError(f"{file.path}: its model is in a folder; pass the model")
    try:
        # Loading shall not disturb the caller's stream of random numbers.
        with torch.random.fork_rng(devices=[]), _parameters_on_meta(), _Unfilled():
            model = build_model(**file.model)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ArtifactError(f"{file.path}: its model cannot be built: {error}") from error
    dtypes = {record.name: torch_dtype(record.dtype) for record in file.records}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(dtypes.get(file.ties.get(name, name), tensor.dtype))
    return model


def _opens_a_folder(specification: Any) -> bool:
    """Whether to build a model would open a folder, which could run code from there."""
    if not isinstance(specification, dict):
        return False
    name = str(specification.get("name"))
    return is_folder_model(name) and (name != PREFIX or specification.get("config") is None)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters that this thread registers lose their values, and take no memory."""
    thread = threading.get_ident()

    def emptied(_: nn.Module, __: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.data.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        hook.remove()


class _Unfilled(TorchFunctionMode):
    """Leaves out the initialization of tensors on the meta device, which does nothing slowly."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith(("__", "requires_grad_"))
        if in_place and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def _materialize(model: nn.Module, without: Collection[str]) -> None:
    """Give parameters on the meta device memory of their own, but for some names."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            path = f"{prefix}.{name}" if prefix else name
            if parameter is not None and parameter.is_meta and path not in without:
                if parameter not in made:
                    data = torch.empty_like(parameter, device="cpu")
                    made[parameter] = nn.Parameter(data, parameter.requires_grad)
                setattr(module, name, made[parameter])


def _compressed(file: File, model: nn.Module) -> dict[str, CompressedTensor]:
    """The clustered parameters of a model under each of their names.

    Recurrent layers are left out: they hold their parameters in a second place.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, CompressedTensor] = {}
    for record in file.records:
        names = [record.name, *(name for name, owner in file.ties.items() if owner == record.name)]
        parameters = []
        for name in names:
            module, _, parameter = name.rpartition(".")
            if module in modules and not isinstance(modules[module], nn.RNNBase):
                parameters.append(modules[module]._parameters.get(parameter))
        if record.coding != "raw" and None not in parameters and len(parameters) == len(names):
            found |= dict.fromkeys(names, compressed(file, record))
    return found


def compressed(file: File, record: Record) -> CompressedTensor:
    """A clustered tensor of a file, unpacked only when it is used.

    Raises:
        ArtifactError: its codebook or indices are wrong.
    """
    return CompressedTensor(
        record.shape,
        record.granularity,
        as_tensor(file.codebook(record), record.dtype).clone(),
        torch.from_numpy(file.packed(record)),
        record.container_bits,
        torch.from_numpy(record.first),
    )


def _check_fits(file: File, model: nn.Module) -> None:
    """Compare names, shapes, dtypes and ties, before anything is unpacked or changed."""
    records = {record.name: record for record in file.records}
    records |= {name: records[owner] for name, owner in file.ties.items()}
    state = model.state_dict(keep_vars=True)
    problems = [f"{name} is not in the file" for name in state if name not in records]
    problems += [f"{name} is not in the model" for name in records if name not in state]
    owners: dict[object, str] = {}
    for name in state.keys() & records.keys():
        tensor, record = state[name], records[name]
        check_storable(name, tensor)
        if tuple(tensor.shape) != record.shape:
            shapes = f"{tuple(tensor.shape)} in the model, {record.shape} in the file"
            problems.append(f"{name} has shape {shapes}")
        elif tensor.dtype != (dtype := torch_dtype(record.dtype)):
            problems.append(f"{name} is {tensor.dtype} in the model, {dtype} in the file")
        elif owners.setdefault(identity(tensor), record.name) != record.name:
            problems.append(f"{name} is tied to another tensor in the model, but not in the file")
    if problems:
        raise ArtifactError(f"{file.path} does not fit the model: {'; '.join(sorted(problems))}")
