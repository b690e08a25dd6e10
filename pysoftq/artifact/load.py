"""Loading a compressed file into a model."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from pysoftq.artifact.format import Record
from pysoftq.artifact.lazy import CompressedTensor, compress_parameter
from pysoftq.artifact.read import File, read
from pysoftq.artifact.rollback import unchanged_on_error
from pysoftq.artifact.shared_loading import fill_pieces
from pysoftq.artifact.tensors import (
    as_tensor,
    check_storable,
    identity,
    tensors,
    torch_dtype,
)
from pysoftq.clusters.written import forget_clusters
from pysoftq.errors import ArtifactError, abridged
from pysoftq.interaction.host import on_host
from pysoftq.interaction.pieces import Alone, is_divided, is_dtensor, own_part, shape_of
from pysoftq.models.build import build_model
from pysoftq.models.huggingface import PREFIX, is_folder_model
from pysoftq.models.sharding import Sharding
from pysoftq.models.wrappers import owner, unwrapped

Model = TypeVar("Model", bound=nn.Module)


@overload
def load_compressed(path: str | os.PathLike[str], *, lazy: bool = False) -> nn.Module: ...
@overload
def load_compressed(path: str | os.PathLike[str], model: Model, *, lazy: bool = False) -> Model: ...


def load_compressed(
    path: str | os.PathLike[str], model: nn.Module | None = None, *, lazy: bool = False
) -> nn.Module:
    """Load a compressed file into `model`, or into a new one built from its specification.

    Every tensor comes back bit-equal, in the dtype that was saved. On an error, an interrupt
    included, `model` is as it was before.

    A model on the meta device is filled: its parameters and buffers are made where its other
    tensors are, else on torch's default device, or on the CPU if that is the meta device. Buffers
    that state dicts leave out (persistent=False) are not in the file; they are taken from a model
    that is built from the file's specification, if it has one. A new model is made on torch's
    default device in the same way. What wraps the model (torch.compile, DataParallel, ...) stays
    around it.

    With `lazy`, clustered parameters stay compressed in memory, packed, and are rebuilt whenever
    their module uses them (`pysoftq.artifact.lazy`); the file is unpacked one tensor at a time.
    The model comes in evaluation mode, and such a parameter can neither be trained nor set. Its
    state dict is the ordinary one.

    Where several processes hold the weights of the model in pieces (DTensor), all of them make this
    call with the same file, and each decodes its pieces only. An error in one process is raised in
    all of them, and none of them has changed its part of the model.

    Raises:
        ArtifactError: the file is altered, cut short, foreign or of another version, holds no
            specification where `model` is not given, or names, shapes, dtypes or ties differ from
            those of `model`; or `model` has tensors on the meta device that the file cannot fill.
        TypeError: `model` has sparse, quantized or uninitialized tensors.
        ValueError: `lazy` for a model in pieces, or the processes read different files.
        OSError: the file cannot be read.
    """
    default = torch.get_default_device()
    home = torch.device("cpu") if default.type == "meta" else default
    with on_host():
        if model is None:
            file = read(path)
            model = _rebuild(file)
            return _load(file, model, Sharding(model), torch.device("cpu"), lazy).to(home)
        sharding = Sharding(model)
        ranks = sharding.ranks
        file = ranks.attempt(lambda: read(path, mapped=not isinstance(ranks, Alone)))
        ranks.compare({"the file's SHA-256": file.sha256, "lazy": lazy})
        devices = (x.device for x in (*model.parameters(), *model.buffers()) if not x.is_meta)
        return _load(file, model, sharding, next(devices, home), lazy)


def _load(file: File, model: Model, sharding: Sharding, home: torch.device, lazy: bool) -> Model:
    """Fill the model; what it has on the meta device is made at home."""
    bare, ranks = unwrapped(model), sharding.ranks
    ranks.attempt(lambda: _check_fits(file, bare))
    if sharding and lazy:
        raise ValueError(
            "`lazy` is for a model that one process holds, and several processes hold this one; "
            "pass False"
        )
    unsaved = ranks.attempt(lambda: _unsaved(file, bare))
    lazily = _compressed(file, bare, home) if lazy else {}
    with unchanged_on_error(model):
        ranks.attempt(lambda: _materialize(bare, lazily.keys(), unsaved, home))
        places = bare.state_dict(keep_vars=True)
        shared = {name: tensor for name, tensor in places.items() if is_divided(tensor)}
        # Decoded where they belong, what is clustered takes no further memory.
        state = ranks.attempt(lambda: tensors(file, without={*lazily, *shared}, places=places))
        fill_pieces(file, shared, sharding)
        ranks.attempt(lambda: bare.load_state_dict(state | shared, strict=not lazy))
        # A module that is used in several places has its parameters under several names.
        owners = {owner(model, name): weight for name, weight in lazily.items()}
        for (module, parameter), weight in owners.items():
            compress_parameter(module, parameter, weight)
        forget_clusters(model)
        return model.eval() if lazy else model


@on_host()
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
            "pass one: load_compressed(path, model), or --model on the command line"
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


def _materialize(
    model: nn.Module, without: Collection[str], unsaved: Mapping[str, Tensor], home: torch.device
) -> None:
    """Allocate memory for tensors on the meta device, except the parameters in `without`."""
    made: dict[int, Any] = {}
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            place = f"{path}.{name}" if path else name
            if tensor is None or not tensor.is_meta or place in without:
                continue
            if id(tensor) not in made:
                data = unsaved[place].to(home) if place in unsaved else _memory(tensor, home)
                made[id(tensor)] = data
                if isinstance(tensor, nn.Parameter):
                    made[id(tensor)] = nn.Parameter(data, tensor.requires_grad)
            setattr(module, name, made[id(tensor)])


def _memory(tensor: Any, home: torch.device) -> Tensor:
    if is_dtensor(tensor):
        home = torch.device(tensor.device_mesh.device_type)
    return torch.empty_like(tensor, device=home, requires_grad=False)


def _unsaved(file: File, model: nn.Module) -> dict[str, Tensor]:
    """Values of the buffers on the meta device that are not in a state dict, by name.

    Raises:
        ArtifactError: there are tensors on the meta device whose values are unknown.
    """
    saved = model.state_dict(keep_vars=True).keys()
    buffers = dict(model.named_buffers(remove_duplicate=False))
    lost = {name for name, buffer in buffers.items() if buffer.is_meta and name not in saved}
    attributes = [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_meta
    ]
    made: dict[str, Tensor] = {}
    if lost and file.model is not None and not _opens_a_folder(file.model):
        made = dict(_rebuild(file).named_buffers(remove_duplicate=False))
    known = {
        name
        for name in lost & made.keys()
        if made[name].shape == buffers[name].shape and made[name].dtype == buffers[name].dtype
    }
    if unknown := [*sorted(lost - known), *attributes]:
        raise ArtifactError(
            f"{file.path} cannot fill tensors of the model that are on the meta device and in no "
            f"state dict: {abridged(unknown)}; make them on the CPU, for example by building the "
            "model there"
        )
    return {name: made[name] for name in known}


def _compressed(file: File, model: nn.Module, home: torch.device) -> dict[str, CompressedTensor]:
    """The clustered parameters of a model under each of their names, where the parameters are.

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
        first = parameters[0] if len(parameters) == len(names) else None
        if record.coding != "raw" and first is not None and None not in parameters:
            weight = compressed(file, record).to(home if first.is_meta else first.device)
            found |= dict.fromkeys(names, weight)
    return found


def compressed(file: File, record: Record) -> CompressedTensor:
    """A clustered tensor of a file, unpacked only when it is used.

    Raises:
        ArtifactError: its codebook or indices are wrong.
    """
    return CompressedTensor(
        record.shape,
        record.granularity,
        as_tensor(file.codebook(record).copy(), record.dtype),
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
        check_storable(name, own_part(tensor))
        if (shape := tuple(shape_of(tensor))) != record.shape:
            shapes = f"{shape} in the model, {record.shape} in the file"
            problems.append(f"{name} has shape {shapes}")
        elif tensor.dtype != (dtype := torch_dtype(record.dtype)):
            problems.append(f"{name} is {tensor.dtype} in the model, {dtype} in the file")
        elif owners.setdefault(identity(tensor), record.name) != record.name:
            problems.append(f"{name} is tied to another tensor in the model, but not in the file")
    if problems:
        text = abridged(sorted(problems), separator="; ")
        raise ArtifactError(f"{file.path} does not fit the model: {text}")
