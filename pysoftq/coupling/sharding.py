"""Models whose weights are sharded between processes."""

from __future__ import annotations

from torch import nn


def refuse_sharded(model: nn.Module) -> None:
    """Raise ValueError for a model of which this process holds parts of the tensors only."""
    wrapped = any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules())
    sharded = [name for name, p in model.named_parameters() if type(p.data).__name__ == "DTensor"]
    if wrapped or sharded:
        where = f" ('{sharded[0]}' is a DTensor)" if sharded else ""
        raise ValueError(
            f"the model's weights are sharded between processes{where}, by FSDP or tensor "
            "parallelism; the coupling needs each layer in whole: use DistributedDataParallel"
        )
