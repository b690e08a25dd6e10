"""How a weight tensor is written as indices into codebooks, and when that saves space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pysoftq.clusters.values import total_order, unique
from pysoftq.interaction.arrays import check_dense
from pysoftq.models.weight_files import coupled_weights


@dataclass(frozen=True, eq=False)
class Codes:
    """A tensor of N weights as indices into S codebooks: one, or one for each slice along dim 0.

    codebooks: (S, K) ascending, in the weights' dtype; a shorter one repeats its last value.
    indices: (S, N / S) int64, of each weight in the codebook of its row.
    """

    codebooks: Tensor
    indices: Tensor

    @property
    def S(self) -> int:
        """The number of codebooks."""
        return self.codebooks.shape[0]

    @property
    def K(self) -> int:
        """The length of the longest codebook."""
        return self.codebooks.shape[1]


@dataclass(frozen=True, eq=False)
class Weight:
    """A floating tensor of a model with two or more dimensions; tied ones have several names."""

    tensor: Tensor
    names: tuple[str, ...]


def weights_in(state: Mapping[str, Tensor]) -> list[Weight]:
    """The floating tensors with two or more dimensions of a state dict, in its order.

    Names of the same tensor are tied.

    Raises:
        TypeError: one is sparse, quantized or on the meta device; an entry is not a tensor.
    """
    for name, entry in state.items():
        if not isinstance(entry, Tensor):
            raise TypeError(f"{name} is a {type(entry).__name__}; only tensors can be exported")
    names: dict[int, list[str]] = {}
    for name, tensor in coupled_weights(state).items():
        check_dense(tensor, name)
        names.setdefault(id(tensor), []).append(name)
    return [Weight(state[tied[0]].detach(), tuple(tied)) for tied in names.values()]


def layer_codes(tensor: Tensor) -> Codes:
    """One codebook for the whole tensor."""
    clusters = unique(tensor)
    return Codes(clusters.codebook[None], clusters.indices[None])


def channel_codes(tensor: Tensor) -> Codes:
    """A codebook for each slice along dim 0."""
    rows = tensor.shape[0]
    keys, order = total_order(tensor).reshape(rows, -1).sort(dim=1)
    values = tensor.detach().reshape(rows, -1).gather(1, order)
    rank = torch.zeros_like(order)
    rank[:, 1:] = (keys[:, 1:] != keys[:, :-1]).cumsum(dim=1)
    longest = int(rank[:, -1].max()) + 1
    codebooks = values[:, -1:].repeat(1, longest).scatter_(1, rank, values)
    return Codes(codebooks, torch.empty_like(rank).scatter_(1, order, rank))


def smallest_codes(tensor: Tensor, size: Callable[[Codes], int | None]) -> Codes | None:
    """The form with the fewest bytes, as `size` reckons them; None where that is the tensor itself.

    `size` gives None for codes that the format has no place for. NaN and infinity stay dense.
    """
    if not tensor.numel() or not tensor.isfinite().all():
        return None
    best, least = None, tensor.nbytes
    for codes in _candidates(tensor):
        bytes_needed = size(codes)
        if bytes_needed is not None and bytes_needed < least:
            best, least = codes, bytes_needed
    return best


def _candidates(tensor: Tensor) -> Iterator[Codes]:
    yield layer_codes(tensor)
    if tensor.shape[0] > 1:
        yield channel_codes(tensor)
