"""Soft quantization in a loop of your own with Hugging Face's accelerate."""

from __future__ import annotations

from typing import Any

from torch import nn

from pysoftq.coupling import lifecycle
from pysoftq.coupling.options import ClusteringConfig
from pysoftq.coupling.quantizer import SoftQuantizer

try:
    from accelerate import Accelerator
except ImportError as error:
    raise ImportError(
        "pysoftq.integrations.accelerate requires accelerate: pip install 'pysoftq[accelerate]'"
    ) from error


def prepare(
    accelerator: Accelerator, model: nn.Module, config: ClusteringConfig, *optimizers: Any
) -> SoftQuantizer:
    """Couple the weights of a model at each step of its optimizers, all prepared by accelerate.

    The state of the coupling is saved and loaded by ``accelerator.save_state`` and ``load_state``;
    a loop that resumes from there is bitwise identical. Works with gradient accumulation, mixed
    precision, DDP and FSDP2 (``FullyShardedDataParallelPlugin(fsdp_version=2)``).

    Example::

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        softq = prepare(accelerator, model, config, optimizer)
        for epoch in range(epochs):
            softq.fraction = config.fraction(epoch, epochs)
            …  # your loop, unchanged
        print(softq.finalize(**config.cluster_options))

    Raises:
        ValueError: as `pysoftq.prepare` and `SoftQuantizer.attach`.
        TypeError: an optimizer is none of torch, as with DeepSpeed.
    """
    softq = lifecycle.prepare(model, config)
    softq.attach(*optimizers)
    accelerator.register_for_checkpointing(_Checkpointed(softq))
    return softq


class _Checkpointed:
    """The coupling as accelerate saves and loads it: attached, or not, as before."""

    def __init__(self, softq: SoftQuantizer) -> None:
        self._softq = softq

    def state_dict(self) -> dict[str, Any]:
        return self._softq.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        optimizers = self._softq.optimizers
        self._softq.detach()
        try:
            self._softq.load_state_dict(state)
        finally:
            if optimizers:
                self._softq.attach(*optimizers)
