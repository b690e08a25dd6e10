"""The processes that train one model together, and all that they exchange."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pysoftq.errors import portable

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")


class ProcessRanks:
    """Processes of `torch.distributed`, in groups along the dimensions of a mesh.

    Every exchange goes over all groups, one after the other: then every process of the mesh has
    what all have. Extremes and integers come out the same whatever the order.

    Args:
        groups: one for each dimension of the mesh.
        device: the kind of device that the groups exchange tensors of.

    Attributes:
        device: as given.
    """

    def __init__(self, groups: Sequence[ProcessGroup], device: str) -> None:
        self._groups = tuple(groups)
        self.device = device

    def maximum(self, values: Tensor) -> Tensor:
        """The largest of each value."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def total(self, values: Tensor) -> Tensor:
        """The sum of each value, integers."""
        return self._reduced(values, dist.ReduceOp.SUM)

    @property
    def first(self) -> bool:
        """Whether this process is the first one of each group."""
        return all(dist.get_rank(group) == 0 for group in self._groups)

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows (n, k) of all processes, one behind the other."""

        def to_all(padded: Tensor, group: ProcessGroup) -> list[Tensor]:
            parts = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
            dist.all_gather(parts, padded, group=group)
            return parts

        return self._joined(rows, to_all)

    def to_first(self, rows: Tensor) -> Tensor:
        """The same in the first process; the others receive those of some processes, or none."""

        def to_one(padded: Tensor, group: ProcessGroup) -> list[Tensor]:
            one, size = dist.get_rank(group) == 0, dist.get_world_size(group)
            parts = [torch.empty_like(padded) if one else padded[:0] for _ in range(size)]
            home = dist.get_global_rank(group, 0)
            dist.gather(padded, parts if one else None, dst=home, group=group)
            return parts

        return self._joined(rows, to_one)

    def _joined(
        self, rows: Tensor, exchange: Callable[[Tensor, ProcessGroup], list[Tensor]]
    ) -> Tensor:
        """The rows of all processes; `exchange` is given as many rows in each."""
        place = rows.device
        own = torch.empty(rows.shape, dtype=rows.dtype, device=self.device).copy_(rows)
        own = own.view(torch.uint8)  # no backend takes all dtypes
        for group in self._groups:
            number = torch.tensor([len(own)], device=own.device)
            numbers = [torch.empty_like(number) for _ in range(dist.get_world_size(group))]
            dist.all_gather(numbers, number, group=group)
            lengths = torch.cat(numbers).tolist()
            padded = own
            if len(own) < max(lengths):
                padded = own.new_zeros(max(lengths), own.shape[1])
                padded[: len(own)] = own
            parts = exchange(padded, group)
            own = torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])
        return own.view(rows.dtype).to(place)

    def collected(self, thing: Any) -> list[Any]:
        """What each process passes."""
        things = [thing]
        for group in self._groups:
            parts: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(parts, things, group=group)
            things = [thing for part in parts for thing in part]
        return things

    def attempt(self, call: Callable[[], T]) -> T:
        """What a call returns in this process; an error in one process is raised in all of them.

        Of several errors, that of the first process. The call exchanges nothing with others, so
        that none waits for one that has failed.
        """
        result, error, rank = None, None, dist.get_rank()
        try:
            result = call()
        except Exception as raised:  # noqa: BLE001 - in all processes
            error = raised
        own = None if error is None else (rank, portable(error))
        failed = [found for found in self.collected(own) if found is not None]
        if failed:
            raise min(failed, key=lambda found: int(found[0]))[1] from error
        return result  # type: ignore[return-value]

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Raise ValueError in every process if the facts differ between processes."""
        found = self.collected((dist.get_rank(), {key: repr(facts[key]) for key in facts}))
        (first, expected), *others = sorted(found, key=lambda own: int(own[0]))
        for rank, values in others:
            for key, value in values.items():
                if value != expected.get(key):
                    raise ValueError(
                        f"the processes differ in {key}: {_abridged(expected.get(key))} on rank "
                        f"{first}, {_abridged(value)} on rank {rank}"
                    )

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        if not values.numel():
            return values
        found = values.to(self.device, copy=True)
        for group in self._groups:
            dist.all_reduce(found, operation, group=group)
        return found.to(values.device)

    def __deepcopy__(self, memo: dict[int, Any]) -> ProcessRanks:
        return self  # a process has each group once

    def __reduce__(self) -> Any:
        raise TypeError(
            "a SoftQuantizer of weights that are sharded between processes cannot be pickled; "
            "save its state_dict()"
        )


def fingerprint(*values: Any) -> Tensor:
    """A number and its negative, (2,) float64: their maxima add up to 0 if all processes agree."""
    digest = hashlib.blake2b(repr(values).encode(), digest_size=6).digest()
    number = float(int.from_bytes(digest, "big"))
    return torch.tensor([number, -number], dtype=torch.float64)


def digest(values: Any) -> str:
    """A short name of long values."""
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()


def _abridged(text: str | None) -> str:
    if text is None:
        return "nothing"
    return text if len(text) <= 60 else f"{text[:57]}..."
