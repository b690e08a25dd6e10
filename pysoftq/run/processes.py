"""The processes of one run, started by torchrun, and all that they exchange for it.

Every process makes the same calls in the same order. The first one (rank 0) alone writes files and
reports. Steps exchange gradients on the device; decisions are exchanged between the hosts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pysoftq.data.batching import Share
from pysoftq.errors import PeerError, portable
from pysoftq.interaction.pieces import is_dtensor
from pysoftq.interaction.ranks import ProcessRanks

Result = TypeVar("Result")

STEP_TIMEOUT = timedelta(minutes=30)  # how far processes may be apart in a step
PATIENCE = timedelta(days=365)  # while the first process evaluates and writes
REPORT_PATIENCE = timedelta(seconds=3)  # for an error of the first process
BUCKET_BYTES = 2**25  # gradients that are summed in one exchange
_ERROR = "pysoftq/error"


class Processes:
    """The processes that do a run together; by default there is only this one.

    Attributes:
        rank: the number of this process.
        size: how many there are.
        local_rank, local_size: the number of this process on its machine, and of those there.
        launched: whether torchrun has started them.
        share: of each batch, what this process takes.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        local_rank: int = 0,
        local_size: int = 1,
        *,
        launched: bool = False,
        store: Any = None,
    ) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self.launched = launched
        self._store = store
        self.share = Share(rank, size)
        # A long timeout: the other processes wait in this group while the first one works.
        self._patient: Any = None
        if size > 1:
            self._patient = dist.new_group(backend="gloo", timeout=PATIENCE)

    @property
    def several(self) -> bool:
        """Whether there is another process."""
        return self.size > 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def lead(self, work: Callable[[], Result]) -> Result:
        """What ``work`` returns in the first process, which alone does it; the others wait.

        Raises PeerError in the others where it fails.
        """
        if not self.several:
            return work()
        if not self.leads:
            received: Result = self._received()
            return received
        try:
            result = work()
        except BaseException as error:
            self._send((None, portable(error)))
            raise
        self._send((result, None))
        return result

    def lead_only(self, work: Callable[[], Result]) -> Result | None:
        """As `lead`, but nothing is sent: None in the other processes."""
        kept: list[Result] = []
        self.lead(lambda: kept.append(work()))
        return kept[0] if kept else None

    def together(self, work: Callable[[], Result]) -> Result:
        """What ``work``, which exchanges nothing, returns in this process.

        On each machine one process goes first: what it leaves in a cache, the others find there.
        Where it fails in some processes, the first of them raises its error and all others
        PeerError.
        """
        if not self.several:
            return work()
        result: Any = None
        error: Exception | None = None
        for turn in (True, False):
            if turn == (self.local_rank == 0):
                try:
                    result = work()
                except Exception as found:  # noqa: BLE001 - raised below
                    error = found
            failed = self._collected(error)
            first = next((rank for rank, found in enumerate(failed) if found is not None), None)
            if first is not None:
                if error is not None and first == self.rank:
                    raise error
                raise PeerError(first, failed[first])
        return result  # type: ignore[no-any-return]

    def any(self, *facts: bool) -> list[bool]:
        """Of each fact, whether it is true in any process."""
        if not self.several:
            return list(facts)
        found = torch.tensor(facts, dtype=torch.uint8)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return [bool(fact) for fact in found]

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Raise ValueError in every process if the facts differ between processes."""
        if self.several:
            ProcessRanks([self._patient], "cpu").compare(facts)

    def total(self, values: Tensor) -> Tensor:
        """The sum of each value (float64, on the CPU)."""
        if self.several:
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their sums; parameters without one in any process stay so.

        Gradients of DTensors are summed already.
        """
        if not self.several:
            return
        parameters = [parameter for parameter in parameters if not is_dtensor(parameter)]
        if not parameters:
            return
        given = self.any(*(parameter.grad is not None for parameter in parameters))
        gradients: list[Tensor] = []
        for parameter, there in zip(parameters, given, strict=True):
            if there and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if there and parameter.grad is not None:
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            sums = flat.split([gradient.numel() for gradient in bucket])
            for gradient, own in zip(bucket, sums, strict=True):
                gradient.copy_(own.view(gradient.shape))

    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the first process."""
        if not self.several:
            return
        with torch.no_grad():
            for tensor in tensors:
                dense = tensor.detach().contiguous()
                dist.broadcast(dense, 0)
                tensor.copy_(dense)

    def copy_model(self, model: nn.Module) -> None:
        """Give a model the parameters and buffers of the first process."""
        self.copy_first(model.state_dict().values())

    def copy_buffers(self, model: nn.Module) -> None:
        """Give a model the buffers of the first process."""
        self.copy_first(model.buffers())

    def seed(self, seed: int, step: int) -> None:
        """Seed torch's generators in all processes but the first, which keeps its own.

        Numbers that a model draws (dropout) so differ between processes, and a resumed run draws
        the same ones.
        """
        if not self.leads:
            torch.manual_seed(hash((seed, step, self.rank)) % 2**63)

    def reports(self, text: str) -> bool:
        """Whether this process is to report an error: the first one does not report the same."""
        if self._store is None:
            return True
        if self.leads:
            self._store.set(_ERROR, text)
            return True
        with suppress(RuntimeError):  # the first process has none, or its machine is gone
            self._store.wait([_ERROR], REPORT_PATIENCE)
            return bool(self._store.get(_ERROR) != text.encode())
        return True

    def _send(self, outcome: Any) -> None:
        dist.broadcast_object_list([outcome], 0, group=self._patient)

    def _received(self) -> Any:
        outcome: list[Any] = [None]
        dist.broadcast_object_list(outcome, 0, group=self._patient)
        result, error = outcome[0]
        if error is not None:
            raise PeerError(0, error)
        return result

    def _collected(self, thing: Exception | None) -> list[Any]:
        things: list[Any] = [None] * self.size
        own = None if thing is None else portable(thing)
        dist.all_gather_object(things, own, group=self._patient)
        return things


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Within the block, the processes that torchrun has started."""
    from torch.distributed.rendezvous import rendezvous

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, size, *local = (int(os.environ[name]) for name in names)
    if size == 1:
        yield Processes(launched=True)
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, _, _ = next(rendezvous("env://"))
    dist.init_process_group(backend, timeout=STEP_TIMEOUT, store=store, rank=rank, world_size=size)
    yield Processes(rank, size, *local, launched=True, store=store)
    dist.destroy_process_group()  # not after an error: it would wait for the others


def lost_connection(error: BaseException) -> bool:
    """Whether an exchange has failed because another process has ended or does not answer."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Successive gradients of one kind, about as many as make a bucket."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        other = bucket and (gradient.dtype, gradient.device) != (bucket[0].dtype, bucket[0].device)
        if bucket and (other or size + gradient.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket
