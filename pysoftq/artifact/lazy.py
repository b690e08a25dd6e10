"""Modules that keep indices and codebook of a weight in memory, and rebuild it whenever it is used.

A module of class `Linear` becomes one of class `CompressedLinear`: a `Linear` whose `weight` is a
property. So forward passes, and whatever else reads the weight, are those of the module.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pysoftq.artifact.packing import Palettes, chunks, unpack, unpacked
from pysoftq.interaction.segments import segment_edges, segment_of

_PATTERNS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _nothing() -> None:
    """What a weak reference to no tensor gives."""


@dataclass(eq=False)
class CompressedTensor:
    """A weight as packed indices and codebooks; modules with tied weights share one.

    codebook: (K,) of all segments. packed: the indices within the segments, in `bits` bits each.
    first: (G,) int32, where the codebook of each segment begins.
    """

    shape: tuple[int, ...]
    granularity: str
    codebook: Tensor
    packed: Tensor
    bits: int
    first: Tensor
    _alive: Callable[[], Tensor | None] = field(default=_nothing, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes at rest."""
        parts = (self.codebook, self.packed, self.first)
        return sum(part.untyped_storage().nbytes() for part in parts)

    def tensor(self) -> Tensor:
        """The weight, made anew."""
        if self.codebook.device.type == "cpu":
            return self._on_cpu()
        flat = self.codebook.new_empty(math.prod(self.shape))
        for start, first, length, size in chunks(self.bits, flat.numel()):
            rows = self.packed.new_zeros(-(-size // 8), max(self.bits, 1), dtype=torch.int32)
            rows.view(-1)[:length] = self.packed[first : first + length]
            columns = [unpacked(rows, position, self.bits) for position in range(8)]
            indices = torch.stack(columns, dim=1).view(-1)[:size]
            stop = start + size
            if len(self.first) > 1:
                places = torch.arange(start, stop, device=indices.device)
                indices.add_(self.first[segment_of(places, self.shape, self.granularity)])
            flat[start:stop] = self.codebook.index_select(0, indices)
        return flat.reshape(self.shape)

    def _on_cpu(self) -> Tensor:
        bits = self.codebook.view(_PATTERNS[self.codebook.itemsize])
        ends = torch.tensor([len(bits)], device="cpu")
        sizes = self.first.long().diff(append=ends).numpy()
        palettes = Palettes(sizes, segment_edges(self.shape, self.granularity))
        flat = bits.new_empty(palettes.count)
        unpack(self.packed.numpy(), self.bits, palettes, (bits.numpy(), flat.numpy()))
        return flat.view(self.codebook.dtype).reshape(self.shape)

    def shared(self) -> Tensor:
        """The weight; the same tensor as before while somebody holds that."""
        tensor = self._alive()
        if tensor is None:
            tensor = self.tensor()
            self._alive = weakref.ref(tensor)
        return tensor

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        """Move or cast it, as `nn.Module` does with its parameters; only the codebook is cast."""
        self.codebook = function(self.codebook)
        self.packed = self.packed.to(self.codebook.device)
        self.first = self.first.to(self.codebook.device)

    def to(self, device: torch.device) -> CompressedTensor:
        """Move it; returns itself."""
        self.apply(lambda tensor: tensor.to(device))
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_alive": _nothing}


class CompressedWeights(nn.Module):
    """What a module with compressed weights adds to its class."""

    _compressed: dict[str, CompressedTensor]
    _order: tuple[str, ...]  # of all parameters, compressed ones included

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_compressed", ()):
            raise AttributeError(
                f"{name} of this {type(self).__name__} is compressed and cannot be set; "
                "load the model without lazy=True"
            )
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for compressed in self._compressed.values():
            compressed.apply(fn)
        module: Any = super()
        return module._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        own: dict[str, Any] = {}
        super()._save_to_state_dict(own, prefix, keep_vars)
        for name in self._order:
            key = prefix + name
            if name in self._compressed:
                destination[key] = self._compressed[name].shared()
            elif key in own:  # not a parameter that is None
                destination[key] = own.pop(key)
        destination.update(own)

    def _load_from_state_dict(  # noqa: PLR0913 - torch's signature
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        compressed = {prefix + name for name in self._compressed}
        error_msgs += [
            f"{key} is compressed and cannot be loaded; load the model without lazy=True"
            for key in sorted(compressed & state_dict.keys())
        ]
        rest = {key: value for key, value in state_dict.items() if key not in compressed}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        base = type(self).__mro__[2]
        reduced: Any = super().__reduce_ex__(protocol)
        return _blank, (base, tuple(self._compressed)), *reduced[2:]


def _property(name: str) -> property:
    """A parameter that is rebuilt whenever it is read."""

    def rebuilt(module: CompressedWeights) -> Tensor:  # older torch.compile takes no partial
        if module.training and torch.is_grad_enabled():
            raise RuntimeError(
                f"{name} of this {type(module).__name__} is compressed and cannot be trained: call "
                "eval() on the model, or load it without lazy=True"
            )
        return module._compressed[name].tensor()

    return property(rebuilt)


def compress_parameter(module: nn.Module, name: str, compressed: CompressedTensor) -> None:
    """Let a parameter of `module` be rebuilt from `compressed` from now on."""
    order = tuple(module._parameters)
    parameter = module._parameters.pop(name)
    if parameter is not None and not parameter.is_meta:
        parameter.data.copy_(compressed.tensor())  # something else may hold it, too
    done = isinstance(module, CompressedWeights)
    base = type(module).__mro__[2] if done else type(module)
    module.__dict__.setdefault("_order", order)
    weights = module.__dict__.setdefault("_compressed", {})
    weights[name] = compressed
    module.__class__ = _compressed_class(base, tuple(weights))


@cache
def _compressed_class(base: Any, names: tuple[str, ...]) -> Any:
    properties = {name: _property(name) for name in names}
    return type(f"Compressed{base.__name__}", (CompressedWeights, base), properties)


def _blank(base: Any, names: tuple[str, ...]) -> Any:
    """An empty instance, for `copy` and `pickle`."""
    kind = _compressed_class(base, names)
    return kind.__new__(kind)
