"""The compressed file: codebooks and packed indices, losslessly.

A safetensors file. Its one metadata entry, `pysoftq`, is a JSON object:

    sha256          of the whole file with these 64 digits set to 0; always the first key
    format_version  1
    model           arguments of `pysoftq.models.build_model`, or null
    weights         {name: shape} of the floating tensors with two or more dimensions, in order
    ties            {name: the name under which the same tensor is stored}
    metadata        the caller's own

A clustered tensor NAME is stored as `codebook/NAME`, its K values in ascending order, and
`indices/NAME`, ceil(log2 K) bits per weight as `pysoftq.packing` orders them (absent for K = 1);
any other parameter or buffer as `raw/NAME`. Clustered are the weights with few enough distinct
values (compared bit by bit) for this to be smaller than raw. Tensors with a NaN or an infinity are
stored raw, so a codebook is always finite.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pysoftq.atomic import atomic_write
from pysoftq.clusters import Clusters, mean_bit_width, total_order, unique
from pysoftq.models import build_model
from pysoftq.packing import pack, packed_bytes, unpack

FORMAT_VERSION = 1

_HEADER_START = b'{"__metadata__":{"pysoftq":"{\\"sha256\\":\\"'
_DIGEST = slice(8 + len(_HEADER_START), 8 + len(_HEADER_START) + 64)
_NO_DIGEST = "0" * 64

_DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)

Model = TypeVar("Model", bound=nn.Module)


class ArtifactError(ValueError):
    """A compressed file that cannot be read, or does not fit the model."""


@dataclass(frozen=True)
class LayerInfo:
    """One weight tensor of a compressed file; bits are per weight.

    container_bits: ceil(log2 K), or the width of the dtype where the tensor is stored raw.
    """

    name: str
    N: int
    K: int
    bits: float
    container_bits: int
    entropy_bits: float


@dataclass(frozen=True)
class ArtifactInfo:
    """What a compressed file holds.

    bytes_float32: the same tensors with every floating value in four bytes.
    mean_bits, container_bits, entropy_bits: means over `layers`, weighted by N (Eq. 8).
    layers: the floating tensors with two or more dimensions, in model order.
    model, metadata: the model's specification, and what was given to `save_compressed`.
    """

    bytes_on_disk: int
    bytes_float32: int
    mean_bits: float
    container_bits: float
    entropy_bits: float
    layers: tuple[LayerInfo, ...]
    model: dict[str, Any] | None
    metadata: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def save_compressed(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write all parameters and buffers of `model` to `path`, atomically and without loss.

    `model.pysoftq_spec`, if there, is stored so that the model can be rebuilt; `metadata` is
    any JSON object to keep with it. Equal models give equal files.

    Raises:
        TypeError: an entry of the state dict is not a plain tensor of a supported dtype, or
            `metadata` is not JSON.
        OSError: the file cannot be written.
    """
    records: list[_Record] = []
    ties: dict[str, str] = {}
    stored: dict[str, Tensor] = {}
    owners: dict[object, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        _check_storable(name, tensor)
        owner = owners.setdefault(_identity(tensor), name)
        if owner == name:
            # A copy, since safetensors refuses tensors that overlap in memory.
            copy = tensor.detach().to("cpu", copy=True).contiguous()
            records.append(_encode(name, copy, stored))
        else:
            ties[name] = owner
    description = {
        "sha256": _NO_DIGEST,
        "format_version": FORMAT_VERSION,
        "model": getattr(model, "pysoftq_spec", None),
        "weights": {record.name: record.shape for record in records if record.is_weight},
        "ties": ties,
        "metadata": dict(metadata or {}),
    }
    try:
        header = json.dumps(description, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata and model specification must be plain JSON: {error}") from error
    data = bytearray(safetensors.torch.save(stored, {"pysoftq": header}))
    if not data.startswith(_HEADER_START, 8):
        raise RuntimeError("the installed safetensors writes its header in an unknown way")
    data[_DIGEST] = _digest(data).encode()
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


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
    file = _read(path)
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
    return _read(path).tensors()


def inspect_compressed(path: str | os.PathLike[str]) -> ArtifactInfo:
    """Describe a compressed file; it is read and checked in full.

    Raises:
        ArtifactError: the file is altered, cut short, foreign or of another version.
        OSError: the file cannot be read.
    """
    file = _read(path)
    layers = [_layer_info(file, record) for record in file.records if record.is_weight]
    sizes = [layer.N for layer in layers]
    return ArtifactInfo(
        bytes_on_disk=file.size,
        bytes_float32=sum(
            record.size * (4 if record.dtype.is_floating_point else record.dtype.itemsize)
            for record in file.records
        ),
        mean_bits=mean_bit_width(sizes, [layer.bits for layer in layers]),
        container_bits=mean_bit_width(sizes, [layer.container_bits for layer in layers]),
        entropy_bits=mean_bit_width(sizes, [layer.entropy_bits for layer in layers]),
        layers=tuple(layers),
        model=file.model,
        metadata=file.metadata,
    )


@dataclass(frozen=True)
class _Record:
    """One stored tensor; K is None where it is stored raw."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    K: int | None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_weight(self) -> bool:
        return self.dtype.is_floating_point and len(self.shape) >= 2

    @property
    def container_bits(self) -> int:
        return 8 * self.dtype.itemsize if self.K is None else (self.K - 1).bit_length()

    @property
    def layout(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Entries of the safetensors file."""
        if self.K is None:
            return {f"raw/{self.name}": (self.dtype, self.shape)}
        entries: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        entries[f"codebook/{self.name}"] = (self.dtype, (self.K,))
        if self.K > 1:
            length = packed_bytes(self.size, self.container_bits)
            entries[f"indices/{self.name}"] = (torch.uint8, (length,))
        return entries


@dataclass(frozen=True)
class _File:
    """A compressed file whose checksum, description and entries have been checked."""

    path: str
    size: int
    model: dict[str, Any] | None
    metadata: dict[str, Any]
    records: list[_Record]
    ties: dict[str, str]
    stored: dict[str, Tensor]

    def clusters(self, record: _Record) -> Clusters:
        if record.K is None:
            return unique(self.stored[f"raw/{record.name}"])
        codebook = self.stored[f"codebook/{record.name}"]
        if not codebook.isfinite().all():
            raise ArtifactError(f"{self.path}: the codebook of {record.name} is not finite")
        if not (total_order(codebook).diff() > 0).all():
            raise ArtifactError(f"{self.path}: the codebook of {record.name} is not ascending")
        if record.K == 1:
            indices = torch.zeros(record.size, dtype=torch.int64)
        else:
            packed = self.stored[f"indices/{record.name}"]
            indices = unpack(packed, record.container_bits, record.size)
        counts = torch.bincount(indices, minlength=record.K)
        if counts.numel() > record.K:
            raise ArtifactError(f"{self.path}: an index of {record.name} is not in its codebook")
        if not counts.all():
            raise ArtifactError(f"{self.path}: a codebook value of {record.name} is not used")
        return Clusters(codebook, indices, counts)

    def tensor(self, record: _Record) -> Tensor:
        if record.K is None:
            return self.stored[f"raw/{record.name}"]
        return self.clusters(record).weights(record.shape)

    def tensors(self) -> dict[str, Tensor]:
        tensors = {record.name: self.tensor(record) for record in self.records}
        return tensors | {name: tensors[owner] for name, owner in self.ties.items()}


def _encode(name: str, tensor: Tensor, stored: dict[str, Tensor]) -> _Record:
    """Put one contiguous CPU tensor into `stored`, in the smaller of its two forms."""
    record = _raw_record(name, tensor)
    if record.is_weight and tensor.isfinite().all():
        clusters = unique(tensor)
        index_bytes = packed_bytes(clusters.size, clusters.container_bits)
        if clusters.K * tensor.itemsize + index_bytes < tensor.nbytes:
            stored[f"codebook/{name}"] = clusters.codebook
            if clusters.K > 1:
                stored[f"indices/{name}"] = pack(clusters.indices, clusters.container_bits)
            return _Record(name, record.shape, record.dtype, clusters.K)
    stored[f"raw/{name}"] = tensor
    return record


def _read(path: str | os.PathLike[str]) -> _File:
    data = Path(path).read_bytes()
    if not data.startswith(_HEADER_START, 8):
        raise ArtifactError(f"{path} is not a compressed file of pysoftq, or is cut short")
    if data[_DIGEST] != _digest(data).encode():
        raise ArtifactError(f"{path} is altered or cut short: its SHA-256 does not match")
    # What follows matters only for files that were made wrong, with a right checksum.
    try:
        return _parse(os.fspath(path), data)
    except ArtifactError:
        raise
    except (SafetensorError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is malformed: {error}") from error


def _parse(path: str, data: bytes) -> _File:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pysoftq"])
    version = header["format_version"]
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version}; this pysoftq reads version {FORMAT_VERSION}"
        )
    stored = safetensors.torch.load(data)
    records = _parse_records(dict(header["weights"]), stored)
    names = {record.name for record in records}
    ties = dict(header["ties"])
    if names & ties.keys() or not names.issuperset(ties.values()):
        raise ValueError("its ties are inconsistent")
    return _File(path, len(data), header["model"], dict(header["metadata"]), records, ties, stored)


def _parse_records(weights: dict[str, Any], stored: Mapping[str, Tensor]) -> list[_Record]:
    records = []
    for name, lengths in weights.items():
        shape = tuple(_length(value) for value in lengths)
        codebook = stored.get(f"codebook/{name}")
        if codebook is None:
            record = _raw_record(name, stored[f"raw/{name}"])
        else:
            record = _Record(name, shape, codebook.dtype, codebook.numel())
        if record.shape != shape or not record.is_weight:
            raise ValueError(f"{name} is not a weight of shape {list(shape)}")
        if record.K is not None and not 1 <= record.K <= record.size:
            raise ValueError(f"{record.size} weights of {name} cannot have {record.K} clusters")
        records.append(record)
    raw = (entry.removeprefix("raw/") for entry in stored if entry.startswith("raw/"))
    records += [_raw_record(name, stored[f"raw/{name}"]) for name in raw if name not in weights]
    wanted = {entry: form for record in records for entry, form in record.layout.items()}
    found = {entry: (tensor.dtype, tuple(tensor.shape)) for entry, tensor in stored.items()}
    wrong = sorted(entry for entry in wanted | found if wanted.get(entry) != found.get(entry))
    if wrong:
        raise ValueError(f"{wrong[0]} is missing, unexpected or of the wrong size")
    unknown = [record.name for record in records if record.dtype not in _DTYPES]
    if unknown:
        raise ValueError(f"the dtype of {unknown[0]} is unknown")
    return records


def _raw_record(name: str, tensor: Tensor) -> _Record:
    return _Record(name, tuple(tensor.shape), tensor.dtype, None)


def _digest(data: bytes | bytearray) -> str:
    view = memoryview(data)
    digest = hashlib.sha256(view[: _DIGEST.start])
    digest.update(_NO_DIGEST.encode())
    digest.update(view[_DIGEST.stop :])
    return digest.hexdigest()


def _rebuild(file: _File) -> nn.Module:
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


def _check_fits(file: _File, model: nn.Module) -> None:
    """Compare names, shapes, dtypes and ties, before anything is unpacked or changed."""
    records = {record.name: record for record in file.records}
    records |= {name: records[owner] for name, owner in file.ties.items()}
    tensors = model.state_dict(keep_vars=True)
    problems = [f"{name} is not in the file" for name in tensors if name not in records]
    problems += [f"{name} is not in the model" for name in records if name not in tensors]
    owners: dict[object, str] = {}
    for name in tensors.keys() & records.keys():
        tensor, record = tensors[name], records[name]
        _check_storable(name, tensor)
        if tuple(tensor.shape) != record.shape:
            shapes = f"{tuple(tensor.shape)} in the model, {record.shape} in the file"
            problems.append(f"{name} has shape {shapes}")
        elif tensor.dtype != record.dtype:
            problems.append(f"{name} is {tensor.dtype} in the model, {record.dtype} in the file")
        elif owners.setdefault(_identity(tensor), record.name) != record.name:
            problems.append(f"{name} is tied to another tensor in the model, but not in the file")
    if problems:
        raise ArtifactError(f"{file.path} does not fit the model: {'; '.join(sorted(problems))}")


def _layer_info(file: _File, record: _Record) -> LayerInfo:
    if record.K == 1:  # nothing stored bounds N: do not unpack
        return LayerInfo(record.name, record.size, 1, 0.0, 0, 0.0)
    clusters = file.clusters(record)
    return LayerInfo(
        record.name,
        clusters.size,
        clusters.K,
        clusters.bits,
        record.container_bits,
        clusters.entropy_bits,
    )


def _check_storable(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; only tensors can be stored")
    if tensor.is_meta or tensor.layout is not torch.strided:
        kind = "on the meta device" if tensor.is_meta else tensor.layout
        raise TypeError(f"{name} is {kind}; want a dense tensor with data")
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} is {tensor.dtype}; want one of {', '.join(map(str, _DTYPES))}")


def _identity(tensor: Tensor) -> object:
    """Equal for two tensors that are the same memory, seen in the same way."""
    if not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _length(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a length")
    return value
